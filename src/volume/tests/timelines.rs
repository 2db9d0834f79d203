//! Timelines of a whole volume: six copies with their appender on disks in memory, and a model that knows what every page was.

use crate::base::*;
use crate::log::redo::{Change, put_record, records};
use crate::log::{Frame, Pen};
use crate::sim::disk::SimDisk;
use crate::volume::*;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const LINEAGE: LineageId = LineageId(0xbee);
const CHILD: TimelineId = TimelineId(3);
const GRANDCHILD: TimelineId = TimelineId(4);
const PAGES: u32 = 12;
type Image = BTreeMap<PageNo, Vec<u8>>;

fn limits() -> Limits {
    Limits { log_retain_bytes: 1 << 20, version_retain: Duration::from_secs(3600), ..Limits::tiny() }
}

/// Six directories, each shared by the copies of all timelines.
struct Site {
    disks: Vec<Arc<SimDisk>>,
    directories: Vec<Arc<Directory>>,
}

impl Site {
    fn new(seed: u64) -> Site {
        let disks: Vec<_> = (0..6).map(|i| Arc::new(SimDisk::new(seed * 10 + i))).collect();
        let mut site = Site { disks, directories: Vec::new() };
        site.open();
        site
    }

    fn open(&mut self) {
        self.directories = self.disks.iter().map(|d| Directory::open(Arc::clone(d) as Arc<dyn Disk>).unwrap()).collect();
    }

    /// Every machine loses its power.
    fn crash(&mut self) {
        for disk in &self.disks {
            disk.crash();
            disk.restart();
        }
        self.open();
    }
}

/// One timeline served: an appender, its six copies, and what the pages are at each LSN.
struct Volume {
    timeline: TimelineId,
    app: Appender,
    copies: Vec<Option<Copy>>,
    directories: Vec<Arc<Directory>>,
    now: Instant,
    pen: Option<Pen>,
    images: BTreeMap<Lsn, Image>,
    prng: Prng,
    /// Orders about branches, and their answers, are lost or doubled.
    lossy: bool,
}

impl Volume {
    /// Opens `timeline` on the copies that are `up` and recovers it. `wall_s` tells incarnations apart.
    fn start(site: &Site, timeline: TimelineId, up: [bool; 6], images: BTreeMap<Lsn, Image>, wall_s: u64) -> Volume {
        let wall = UnixMicros(wall_s * 1_000_000);
        let mut volume = Volume {
            timeline,
            app: Appender::new(limits(), Layout::default(), Prng::new(wall_s), wall, false),
            copies: (0..6).map(|_| None).collect(),
            directories: site.directories.clone(),
            now: Instant::ZERO + Duration::from_secs(1),
            pen: None,
            images,
            prng: Prng::new(wall_s + timeline.0 * 77),
            lossy: false,
        };
        for (i, _) in up.iter().enumerate().filter(|(_, up)| **up) {
            volume.open(i);
        }
        volume.settle();
        assert_eq!(*volume.app.phase(), VolumePhase::Serving, "timeline {timeline} recovers");
        volume
    }

    fn open(&mut self, i: usize) {
        let copy = Copy::open_in(&self.directories[i], GroupId(0), self.timeline, &limits()).unwrap();
        let member = MemberId::all(1).nth(i).unwrap();
        self.app.copy_opened(self.now, member, copy.promised());
        self.copies[i] = Some(copy);
    }

    fn close(&mut self, i: usize) {
        self.copies[i] = None;
        self.app.copy_lost(self.now, MemberId::all(1).nth(i).unwrap(), "it was closed".into());
    }

    /// Carries messages until nothing is left to say.
    fn run(&mut self) {
        loop {
            let mut quiet = true;
            let mut replies: Vec<Vec<CopyReply>> = vec![Vec::new(); 6];
            while let Some(effect) = self.app.poll_effect() {
                quiet = false;
                match effect {
                    AppenderEffect::ToCopy { copy, request } => {
                        let branch = matches!(request, CopyRequest::Branch { .. } | CopyRequest::DropBranch { .. });
                        for _ in 0..self.times(branch) {
                            if let Some(c) = &mut self.copies[copy.index()] {
                                c.handle(request.clone(), &mut replies[copy.index()]);
                            }
                        }
                    }
                    AppenderEffect::Recovered { found: Found::Empty { .. } } => {
                        self.pen = Some(self.app.found(self.now, UnixMicros(1), LINEAGE));
                    }
                    AppenderEffect::Recovered { found: Found::Log { consistent, .. } } => {
                        self.pen = Some(self.app.lead(self.now, UnixMicros(1), Epoch(1), consistent));
                        self.images.split_off(&consistent.end_lsn.plus(1));
                    }
                    AppenderEffect::Fenced { promised } => panic!("fenced by {promised}"),
                    _ => {}
                }
            }
            for (i, mut said) in replies.into_iter().enumerate() {
                let Some(copy) = &mut self.copies[i] else { continue };
                copy.flush(&mut said);
                loop {
                    while copy.ingest(&mut said) {}
                    let Some(job) = copy.background_job() else { break };
                    copy.finish(job.run(), &mut said);
                }
                for reply in said {
                    quiet = false;
                    let branch = matches!(reply, CopyReply::Branched { .. } | CopyReply::BranchDropped { .. });
                    for _ in 0..self.times(branch) {
                        self.app.handle_reply(self.now, MemberId::all(1).nth(i).unwrap(), reply.clone());
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// How often a message arrives.
    fn times(&mut self, branch: bool) -> u64 {
        if self.lossy && branch { self.prng.below(3) } else { 1 }
    }

    fn settle(&mut self) {
        self.run();
        for _ in 0..30 {
            self.now = self.now + Duration::from_millis(100);
            self.app.handle_timeout(self.now);
            self.run();
        }
    }

    /// One mini-transaction.
    fn write(&mut self) {
        let payloads: Vec<Vec<u8>> = (0..self.prng.between(1, 2)).map(|_| self.payload()).collect();
        let frames = self.pen.as_mut().expect("it leads").write(&payloads, true, UnixMicros(1));
        let mut image = self.images.values().next_back().cloned().unwrap_or_default();
        for record in frames.iter().filter(|f| !f.is_control()).flat_map(|f| records(&f.payload()).unwrap()) {
            record.change.apply(image.entry(record.page).or_default());
        }
        self.images.insert(frames.last().map(Frame::end_lsn).unwrap(), image);
        self.app.append(self.now, frames);
        self.now = self.now + Duration::from_millis(3);
        self.app.handle_timeout(self.now);
        self.run();
    }

    fn payload(&mut self) -> Vec<u8> {
        let mut payload = Vec::new();
        let page = PageNo(u32::try_from(self.prng.below(u64::from(PAGES))).unwrap());
        let (fill, at) = (u8::try_from(self.prng.between(1, 255)).unwrap(), u8::try_from(self.prng.below(40)).unwrap());
        let change = if self.prng.chance(200_000) {
            Change::Image(Bytes::from(vec![fill; 50]))
        } else {
            Change::from_parts(2, Bytes::from(vec![at, 0, 6, 0, fill, fill, fill, fill, fill, fill])).unwrap()
        };
        put_record(&mut payload, page, &change);
        payload
    }

    fn write_many(&mut self, count: usize) {
        for _ in 0..count {
            self.write();
        }
        self.settle();
        assert_eq!(self.app.vdl().end_lsn, *self.images.last_key_value().unwrap().0);
    }

    fn lsns(&self) -> Vec<Lsn> {
        self.images.keys().copied().collect()
    }

    /// All pages at some LSNs, old and new, on every copy that can tell; `four` of them at least can.
    fn check(&self) {
        let last = *self.images.last_key_value().unwrap().0;
        for (at, image) in self.images.iter().rev().step_by(9) {
            let mut able = 0;
            for copy in self.copies.iter().flatten().filter(|c| c.pages().first_readable() <= *at && c.pages().ingested() >= last) {
                able += 1;
                for page in (0..PAGES).map(PageNo) {
                    let got = copy.pages().read(page, *at).unwrap();
                    let want = image.get(&page).cloned().unwrap_or_default();
                    let len = got.len().max(want.len());
                    let padded = |b: &[u8]| [b, &vec![0; len - b.len()]].concat();
                    assert_eq!(padded(&got), padded(&want), "timeline {} {page:?} at {at}", self.timeline);
                }
            }
            assert!(able >= 4, "timeline {}: {able} copies can read at {at}", self.timeline);
        }
    }

    /// The images that a branch at `at` begins with.
    fn images_upto(&self, at: Lsn) -> BTreeMap<Lsn, Image> {
        self.images.range(..=at).map(|(l, i)| (*l, i.clone())).collect()
    }
}

fn start(site: &Site, timeline: TimelineId, images: BTreeMap<Lsn, Image>, wall_s: u64) -> Volume {
    Volume::start(site, timeline, [true; 6], images, wall_s)
}

#[test]
fn a_volume_is_branched_written_on_both_sides_and_dropped() {
    for seed in 0..5 {
        let mut site = Site::new(seed);
        let mut parent = start(&site, TimelineId::ROOT, BTreeMap::from([(Lsn(0), Image::new())]), 10);
        parent.write_many(60);
        parent.lossy = seed % 2 == 1;
        // Between two commits means behind the earlier one.
        let lsns = parent.lsns();
        let old = lsns[15 + usize::try_from(seed).unwrap() * 5];
        // Two copies are away: four are enough.
        parent.close(0);
        parent.close(3);
        parent.app.branch(parent.now, CHILD, old.plus(1));
        parent.write_many(5);
        let Some(BranchState::Whole { at }) = parent.app.branch_state(CHILD).cloned() else {
            panic!("{:?}", parent.app.branch_state(CHILD))
        };
        assert_eq!(at.end_lsn, old);
        // Asked again, it is the same.
        parent.app.branch(parent.now, CHILD, old.plus(1));
        parent.settle();
        assert_eq!(parent.app.branch_state(CHILD), Some(&BranchState::Whole { at }));

        let mut child = start(&site, CHILD, parent.images_upto(old), 20);
        assert!(child.app.vdl().seq > at.seq);
        child.check();
        for round in 0..3 {
            parent.write_many(12);
            child.write_many(10);
            parent.check();
            child.check();
            if round == 0 {
                // They come back. What the branch was not made on is rebuilt by the child's own appender.
                parent.open(0);
                parent.open(3);
                parent.settle();
            }
        }
        assert!(child.copies.iter().flatten().all(|c| c.state().end == *child.app.end()), "all six are level");
        assert_ne!(parent.images.last_key_value(), child.images.last_key_value());

        // A grandchild of what the child wrote, and the power goes everywhere.
        let point = child.lsns()[child.images.len() - 12];
        assert!(point > old);
        child.app.branch(child.now, GRANDCHILD, point);
        child.settle();
        assert!(matches!(child.app.branch_state(GRANDCHILD), Some(BranchState::Whole { .. })), "{:?}", child.app.branch_state(GRANDCHILD));
        let (mine, theirs, third) = (parent.images.clone(), child.images.clone(), child.images_upto(point));
        drop((parent, child));
        site.crash();
        let mut parent = start(&site, TimelineId::ROOT, mine, 30);
        let mut child = start(&site, CHILD, theirs, 31);
        let mut grandchild = start(&site, GRANDCHILD, third, 32);
        for volume in [&mut parent, &mut child, &mut grandchild] {
            volume.write_many(8);
            volume.check();
        }
        // An incarnation that did not order it can order it again, and it is the same branch.
        parent.lossy = seed % 2 == 1;
        parent.app.branch(parent.now, CHILD, old);
        parent.settle();
        parent.settle();
        assert_eq!(parent.app.branch_state(CHILD), Some(&BranchState::Whole { at }));

        // The child goes; its child and its parent go on.
        drop(child);
        parent.app.drop_branch(parent.now, CHILD);
        parent.settle();
        parent.settle();
        assert_eq!(parent.app.branch_state(CHILD), Some(&BranchState::Dropped { done: true }));
        for volume in [&mut parent, &mut grandchild] {
            volume.write_many(8);
            volume.check();
        }
        drop(grandchild);
        parent.app.drop_branch(parent.now, GRANDCHILD);
        parent.write_many(30);
        parent.settle();
        assert_eq!(parent.app.branch_state(GRANDCHILD), Some(&BranchState::Dropped { done: true }));
        parent.check();
        drop(parent);
        site.crash();
        for (disk, directory) in site.disks.iter().zip(&site.directories) {
            assert_eq!(directory.timelines().unwrap().len(), 1);
            let names: BTreeSet<String> = disk.list().unwrap().into_iter().filter(|n| n.starts_with('t')).collect();
            assert!(names.is_empty(), "what nobody needs is collected: {names:?}");
        }
    }
}

#[test]
fn a_branch_needs_four_copies_and_an_id_of_its_own() {
    let site = Site::new(9);
    let mut parent = start(&site, TimelineId::ROOT, BTreeMap::from([(Lsn(0), Image::new())]), 10);
    parent.write_many(40);
    let ahead = parent.app.vdl().end_lsn.plus(1);
    parent.app.branch(parent.now, TimelineId(50), ahead);
    assert!(
        matches!(parent.app.branch_state(TimelineId(50)), Some(BranchState::Refused { reason }) if reason.contains("not durable here yet"))
    );
    for i in 0..3 {
        parent.close(i);
    }
    let at = parent.lsns()[20];
    parent.app.branch(parent.now, CHILD, at);
    parent.settle();
    assert_eq!(parent.app.branch_state(CHILD), Some(&BranchState::Asked), "three are not enough");
    parent.open(0);
    parent.settle();
    assert!(matches!(parent.app.branch_state(CHILD), Some(BranchState::Whole { .. })));
    // The same id for another point, on copies that have the first.
    let wall = UnixMicros(99_000_000);
    let mut other = Volume { app: Appender::new(limits(), Layout::default(), Prng::new(5), wall, false), ..parent };
    for i in 0..6 {
        other.copies[i] = None;
        other.open(i);
    }
    other.settle();
    let elsewhere = other.lsns()[30];
    other.app.branch(other.now, CHILD, elsewhere);
    other.settle();
    assert!(matches!(other.app.branch_state(CHILD), Some(BranchState::Refused { reason }) if reason.contains("exists already")));
}
