//! The copy as a whole, on a disk that fails. `World` writes a log and knows by the plainest means what every page was.

mod crash;
mod damage;
mod place;
mod reclaim;
mod rewind;
mod rules;
mod scrub;
mod timelines;

use super::*;
use crate::base::{Epoch, PageNo, Prng, UnixMicros};
use crate::log::SeedBase;
use crate::log::redo::{Change, put_record};
use crate::log::{ControlFrame, Pen};
use crate::sim::disk::SimDisk;
use bytes::Bytes;
use std::collections::BTreeMap;

const LINEAGE: LineageId = LineageId(0xfeed);
const PAGES: u32 = 14;
const PAGE_BYTES: usize = 64;
type Image = BTreeMap<PageNo, Vec<u8>>;

/// A log and what the pages are at each of its LSNs.
#[derive(Clone)]
struct World {
    frames: Vec<Frame>,
    /// The log's end before the first of `frames`.
    before: LogEnd,
    images: BTreeMap<Lsn, Image>,
    prng: Prng,
    epoch: Epoch,
    generation: Generation,
}

impl World {
    fn founded(seed: u64) -> World {
        let prng = Prng::new(seed);
        let mut world = World {
            frames: Vec::new(),
            before: LogEnd::EMPTY,
            images: BTreeMap::from([(Lsn(0), Image::new())]),
            prng,
            epoch: Epoch(1),
            generation: Generation(1),
        };
        world.control(&ControlFrame::EpochStart { lineage: LINEAGE });
        world
    }

    /// With about so many frames.
    fn sized(seed: u64, frames: usize) -> World {
        let mut world = World::founded(seed);
        while world.frames.len() < frames {
            world.write();
        }
        world
    }

    fn end(&self) -> LogEnd {
        self.frames.last().map_or(self.before, Frame::log_end)
    }

    fn control(&mut self, control: &ControlFrame) {
        self.frames.push(control.encode(&self.end(), self.epoch, self.generation, UnixMicros(1)));
    }

    fn image(&self, at: Lsn) -> &Image {
        self.images.range(..=at).next_back().expect("BUG: there is an image at 0").1
    }

    /// A mini-transaction of one to three frames.
    fn write(&mut self) -> Vec<Frame> {
        let payloads: Vec<Vec<u8>> = (0..self.prng.between(1, 3)).map(|_| self.payload()).collect();
        let mut pen = Pen::new(self.epoch, self.generation, self.end(), 4096);
        let frames = pen.write(&payloads, true, UnixMicros(1));
        for frame in &frames {
            let mut image = self.image(frame.header().first_lsn).clone();
            for record in redo::records(&frame.payload()).unwrap() {
                record.change.apply(image.entry(record.page).or_default());
            }
            self.images.insert(frame.end_lsn(), image);
        }
        self.frames.extend(frames.iter().cloned());
        frames
    }

    fn payload(&mut self) -> Vec<u8> {
        let mut payload = Vec::new();
        for _ in 0..self.prng.between(1, 3) {
            let page = PageNo(u32::try_from(self.prng.below(u64::from(PAGES))).unwrap());
            let fill = u8::try_from(self.prng.between(1, 255)).unwrap();
            let len = usize::try_from(self.prng.between(1, 20)).unwrap();
            let change = if self.prng.chance(200_000) {
                Change::Image(Bytes::from(vec![fill; PAGE_BYTES - len]))
            } else {
                let offset = u16::try_from(self.prng.below((PAGE_BYTES - len) as u64)).unwrap();
                let mut body = offset.to_le_bytes().to_vec();
                body.extend_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
                body.extend(vec![fill; len]);
                Change::from_parts(2, Bytes::from(body)).unwrap()
            };
            put_record(&mut payload, page, &change);
        }
        payload
    }

    /// The log of a new generation, which cuts this one behind `keep` frames.
    fn cut(&self, keep: usize, generation: Generation) -> World {
        let mut new = self.clone();
        new.frames.truncate(keep);
        let end = new.end().end_lsn;
        new.images.retain(|lsn, _| *lsn <= end);
        new.generation = generation;
        new.control(&ControlFrame::GenerationStart);
        new
    }

    /// The same world seen by who begins at its end.
    fn seeded(&self) -> (World, SeedBase) {
        let mut history = crate::log::History::default();
        for frame in &self.frames {
            history.note(frame);
        }
        let world = World { frames: Vec::new(), before: self.end(), ..self.clone() };
        (world, SeedBase { lineage: LINEAGE, end: self.end(), history })
    }

    fn pages(&self, at: Lsn) -> Vec<(PageNo, Bytes)> {
        self.image(at).iter().map(|(page, bytes)| (*page, Bytes::from(bytes.clone()))).collect()
    }

    fn append(&self, frames: Vec<Frame>, vdl: LogEnd) -> CopyRequest {
        CopyRequest::Append { generation: self.generation, frames, vdl, horizon: Lsn(0), trim: Seq(0), gate: None }
    }

    /// A founded copy that has the whole world, ingested, in layers where there were enough.
    fn fill(&self, copy: &mut Copy) {
        drive(copy, vec![CopyRequest::Raise { generation: self.generation }]);
        for frames in self.frames.chunks(4) {
            let vdl = *copy.wal.end();
            let replies = drive(copy, vec![self.append(frames.to_vec(), vdl)]);
            assert_eq!(acknowledged(&replies), Some(frames.last().unwrap().log_end()));
        }
        drive(copy, vec![self.append(Vec::new(), self.end())]);
    }

    /// Every page at `at`, one by one and by scanning.
    fn check_pages(&self, copy: &Copy, at: Lsn) {
        let store = copy.pages();
        let want = self.image(at);
        for page in (0..PAGES + 1).map(PageNo) {
            let got = store.read(page, at).unwrap_or_else(|e| panic!("{page:?} at {at}: {e}"));
            assert_eq!(trimmed(&got), trimmed(want.get(&page).map_or(&[], |p| p)), "{page:?} at {at}");
        }
        let mut scanned = Vec::new();
        let mut from = Some(PageNo(0));
        while let Some(page) = from {
            let (pages, next) = store.scan(at, page, 100).unwrap();
            assert!(next.is_none_or(|n| n > page), "a scan moves on");
            scanned.extend(pages);
            from = next;
        }
        let scanned: Vec<_> = scanned.iter().map(|(p, b)| (*p, trimmed(b).to_vec())).collect();
        let want: Vec<_> = want.iter().map(|(p, b)| (*p, trimmed(b).to_vec())).collect();
        assert_eq!(scanned, want, "scanned at {at}");
    }
}

fn trimmed(page: &[u8]) -> &[u8] {
    &page[..page.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1)]
}

fn acknowledged(replies: &[CopyReply]) -> Option<LogEnd> {
    replies.iter().rev().find_map(|r| if let CopyReply::Appended { end, .. } = r { Some(*end) } else { None })
}

fn disk(seed: u64) -> Arc<SimDisk> {
    Arc::new(SimDisk::new(seed))
}

fn open(disk: &Arc<SimDisk>) -> Copy {
    try_open(disk).unwrap()
}

fn try_open(disk: &Arc<SimDisk>) -> Result<Copy, OpenError> {
    // What lies there is looked at without an appender, which would show that it is on the volume's history.
    Copy::open(Arc::clone(disk) as Arc<dyn Disk>, &Limits::tiny()).inspect(|copy| copy.pages().trust())
}

/// What the driver does: all requests, one flush, and then everything that is to do in the background.
fn drive(copy: &mut Copy, requests: Vec<CopyRequest>) -> Vec<CopyReply> {
    let mut replies = Vec::new();
    for request in requests {
        copy.handle(request, &mut replies);
    }
    copy.flush(&mut replies);
    settle(copy, &mut replies);
    replies
}

fn settle(copy: &mut Copy, replies: &mut Vec<CopyReply>) {
    loop {
        while copy.ingest(replies) {}
        let Some(job) = copy.background_job() else { return };
        copy.finish(job.run(), replies);
    }
}

/// All frames of a copy, read in small pieces.
fn whole_log(copy: &mut Copy) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut from = copy.state().first;
    loop {
        let mut replies = Vec::new();
        copy.handle(CopyRequest::ReadLog { id: 1, from, bytes_max: 700 }, &mut replies);
        match replies.pop() {
            Some(CopyReply::Log { frames: some, .. }) if some.is_empty() => return frames,
            Some(CopyReply::Log { frames: some, .. }) => frames.extend(some),
            other => panic!("{other:?}"),
        }
        from = frames.last().unwrap().seq().next();
    }
}
