//! The way back of a whole volume: copies crash, are away, and lose messages while it goes back and follows another history. Whatever
//! happens, what was rewound never comes back, what was durable stays, no page of the lost tail is read, and the tail is kept.

use crate::base::*;
use crate::log::redo::{Change, put_record, records};
use crate::log::{ControlFrame, Frame, History, Pen, Reign};
use crate::sim::disk::SimDisk;
use crate::volume::*;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const LINEAGE: LineageId = LineageId(0xbee);
const PAGES: u32 = 12;
type Image = BTreeMap<PageNo, Vec<u8>>;

fn limits() -> Limits {
    Limits { log_retain_bytes: 1 << 20, version_retain: Duration::from_secs(36000), ..Limits::tiny() }
}

/// A history, and what every page is at each of its LSNs.
#[derive(Clone, Default)]
struct Story {
    frames: Vec<Frame>,
    images: BTreeMap<Lsn, Image>,
}

impl Story {
    fn push(&mut self, frames: impl IntoIterator<Item = Frame>) {
        for frame in frames {
            let mut image = self.images.values().next_back().cloned().unwrap_or_default();
            if !frame.is_control() {
                for record in records(&frame.payload()).unwrap() {
                    record.change.apply(image.entry(record.page).or_default());
                }
            }
            self.images.insert(frame.end_lsn(), image);
            self.frames.push(frame);
        }
    }

    fn end(&self) -> LogEnd {
        self.frames.last().map_or(LogEnd::EMPTY, Frame::log_end)
    }

    fn has(&self, end: &LogEnd) -> bool {
        *end == LogEnd::EMPTY || self.frames.get(end.seq.0 as usize - 1).is_some_and(|f| f.log_end() == *end)
    }

    fn upto(&self, keep: usize) -> Story {
        let mut story = Story::default();
        story.push(self.frames[..keep].iter().cloned());
        story
    }

    fn history(&self) -> History {
        let mut history = History::default();
        self.frames.iter().for_each(|f| history.note(f));
        history
    }
}

fn mini_transaction(prng: &mut Prng, layout: &Layout) -> Vec<(GroupId, Vec<u8>)> {
    let mut payloads = Vec::new();
    for _ in 0..prng.between(1, 3) {
        let page = PageNo(u32::try_from(prng.below(u64::from(PAGES))).unwrap());
        let (fill, at) = (u8::try_from(prng.between(1, 255)).unwrap(), u8::try_from(prng.below(40)).unwrap());
        let change = if prng.chance(200_000) {
            Change::Image(Bytes::from(vec![fill; 50]))
        } else {
            Change::from_parts(2, Bytes::from(vec![at, 0, 6, 0, fill, fill, fill, fill, fill, fill])).unwrap()
        };
        let mut payload = Vec::new();
        put_record(&mut payload, page, &change);
        payloads.push((layout.group_of(page), payload));
    }
    payloads
}

/// Another region's history behind `base` of `story`: two reigns, so that the path does not begin with the newest.
fn reigns(story: &mut Story, prng: &mut Prng, layout: &Layout, writes: u64) {
    for epoch in 2..=3 {
        let base = story.end();
        let region = RegionName::new("eu-west").unwrap();
        let reign = Reign { lineage: LINEAGE, prev: base.epoch, base, region, op: 1, config: 1 };
        let generation = Generation(epoch * 7);
        story.push([ControlFrame::Reign(reign).encode(&base, Epoch(epoch), generation, UnixMicros(1))]);
        let mut pen = Pen::new(Epoch(epoch), generation, story.end(), 512);
        for _ in 0..prng.between(1, writes) {
            story.push(pen.write_groups(&mini_transaction(prng, layout), true, UnixMicros(1)));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    Recovering,
    /// The old primary.
    Leading,
    /// On the way back.
    Rewinding,
    Following,
}

struct Rig {
    layout: Layout,
    disks: Vec<Arc<SimDisk>>,
    copies: Vec<Option<Copy>>,
    app: Appender,
    stage: Stage,
    pen: Option<Pen>,
    now: Instant,
    wall_s: u64,
    prng: Prng,
    /// Messages are lost, doubled and reordered.
    wild: bool,
    /// What this region wrote.
    old: Story,
    /// What is followed; `None` while nobody else reigns.
    path: Option<Story>,
    /// Durable of the old history, and of the path.
    durable: LogEnd,
    followed: LogEnd,
    /// Four copies of every group went back: the old tail is never chosen again.
    went_back: bool,
    orders: u32,
    requests: Vec<(MemberId, CopyRequest)>,
    replies: Vec<(MemberId, CopyReply)>,
    label: String,
}

impl Rig {
    fn new(seed: u64, groups: u32) -> Rig {
        let layout = Layout { segment_pages: 2, groups };
        let members = groups as usize * 6;
        let mut rig = Rig {
            layout,
            disks: (0..members as u64).map(|i| Arc::new(SimDisk::new(seed * 100 + i))).collect(),
            copies: (0..members).map(|_| None).collect(),
            app: Appender::new(limits(), layout, Prng::new(seed), UnixMicros(10_000_000), false),
            stage: Stage::Recovering,
            pen: None,
            now: Instant::ZERO + Duration::from_secs(1),
            wall_s: 10,
            prng: Prng::new(seed),
            wild: false,
            old: Story::default(),
            path: None,
            durable: LogEnd::EMPTY,
            followed: LogEnd::EMPTY,
            went_back: false,
            orders: 0,
            requests: Vec::new(),
            replies: Vec::new(),
            label: format!("seed {seed}, {groups} groups"),
        };
        rig.old.images.insert(Lsn(0), Image::new());
        for i in 0..members {
            rig.open(i);
        }
        rig.settle();
        assert_eq!(rig.stage, Stage::Leading, "{}", rig.label);
        rig
    }

    fn member(&self, i: usize) -> MemberId {
        MemberId::all(self.layout.groups).nth(i).unwrap()
    }

    fn open(&mut self, i: usize) {
        let member = self.member(i);
        if self.disks[i].is_down() {
            self.disks[i].crash();
            self.disks[i].restart();
        }
        let copy = match Copy::open_group(member.group, Arc::clone(&self.disks[i]) as Arc<dyn Disk>, &limits()) {
            Ok(copy) => copy,
            // The power goes once more.
            Err(OpenError::Disk(_)) if self.disks[i].is_down() => return,
            Err(e) => panic!("{}: copy {member}: {e}", self.label),
        };
        self.app.copy_opened(self.now, member, copy.promised());
        self.copies[i] = Some(copy);
    }

    /// A copy loses its power, at once or in the middle of what it does next.
    fn crash(&mut self, i: usize) {
        self.copies[i] = None;
        self.disks[i].crash();
        self.disks[i].restart();
        let member = self.member(i);
        self.requests.retain(|(m, _)| *m != member);
        self.replies.retain(|(m, _)| *m != member);
        self.app.copy_lost(self.now, member, "it crashed".into());
    }

    /// The region's process ends, and perhaps its copies lose their power.
    fn restart(&mut self) {
        let power = self.prng.chance(500_000);
        for i in 0..self.copies.len() {
            self.copies[i] = None;
            if power {
                self.disks[i].crash();
                self.disks[i].restart();
            }
        }
        self.requests.clear();
        self.replies.clear();
        self.wall_s += 5;
        let wall = UnixMicros(self.wall_s * 1_000_000);
        self.app = Appender::new(limits(), self.layout, Prng::new(self.prng.next_u64()), wall, self.path.is_some());
        (self.stage, self.pen) = (Stage::Recovering, None);
        // Some stay away for now; three of each group are enough to recover.
        for i in 0..self.copies.len() {
            if self.prng.chance(700_000) {
                self.open(i);
            }
        }
    }

    fn effects(&mut self) -> bool {
        let mut any = false;
        while let Some(effect) = self.app.poll_effect() {
            any = true;
            match effect {
                AppenderEffect::ToCopy { copy, request } => self.requests.push((copy, request)),
                AppenderEffect::Recovered { found: Found::Empty { .. } } => {
                    assert!(self.old.frames.is_empty(), "{}: everything is gone", self.label);
                    self.pen = Some(self.app.found(self.now, UnixMicros(1), LINEAGE));
                    let start = ControlFrame::EpochStart { lineage: LINEAGE };
                    self.old.push([start.encode(&LogEnd::EMPTY, Epoch(1), self.app.end().generation, UnixMicros(1))]);
                    self.stage = Stage::Leading;
                }
                AppenderEffect::Recovered { found: Found::Log { consistent, .. } } => self.recovered(consistent),
                AppenderEffect::RecoveryBeginsAnew => self.stage = Stage::Recovering,
                AppenderEffect::Rewound { at } => {
                    assert!(self.path.as_ref().unwrap().has(&at));
                    self.went_back = true;
                    self.stage = Stage::Following;
                }
                AppenderEffect::RewindImpossible { reason, .. } => panic!("{}: {reason}", self.label),
                AppenderEffect::Restarted { vdl } | AppenderEffect::Durable { vdl, .. } => match self.stage {
                    Stage::Leading => self.durable = self.durable.max(vdl),
                    Stage::Following => self.followed = self.followed.max(vdl),
                    _ => {}
                },
                AppenderEffect::Fenced { promised } => panic!("{}: fenced by {promised}", self.label),
                AppenderEffect::CopyDamaged { copy, damage } => panic!("{}: {copy} {damage}", self.label),
                _ => {}
            }
        }
        any
    }

    /// What the node does: lead while nobody else reigns, else find the common point and follow from there.
    fn recovered(&mut self, consistent: LogEnd) {
        let Some(path) = &self.path else {
            assert!(self.old.has(&consistent) && consistent.seq >= self.durable.seq, "{}: {} was durable", self.label, self.durable);
            self.old = self.old.upto(consistent.seq.0 as usize);
            self.pen = Some(self.app.lead(self.now, UnixMicros(1), Epoch(1), consistent));
            let start = ControlFrame::GenerationStart;
            self.old.push([start.encode(&consistent, Epoch(1), self.app.end().generation, UnixMicros(1))]);
            self.stage = Stage::Leading;
            return;
        };
        if path.has(&consistent) {
            let followed = self.followed;
            assert!(consistent.seq >= followed.seq, "{}: {followed} was durable and recovery has {consistent}", self.label);
            self.app.follow(self.now, consistent);
            self.stage = Stage::Following;
            return;
        }
        assert!(!self.went_back, "{}: the old tail came back: {consistent}", self.label);
        assert!(consistent.seq >= self.durable.seq, "{}: {} of the tail was durable", self.label, self.durable);
        if self.prng.chance(300_000) {
            // The node learns later of the other reign.
            self.app.follow(self.now, consistent);
        }
        self.stage = Stage::Rewinding;
    }

    fn order(&mut self) {
        let ready = matches!(self.app.phase(), VolumePhase::Chosen | VolumePhase::Serving);
        if self.stage != Stage::Rewinding || !ready || self.app.is_rewinding() {
            return;
        }
        let path = self.path.as_ref().unwrap();
        let common = self.app.history().common_seq(self.app.end().seq, &path.history(), path.end().seq);
        let at = path.frames[common.0 as usize - 1].log_end();
        let archive = archive_id(&at, self.app.end().epoch);
        self.app.rewind(self.now, archive, at, Epoch(3));
        self.orders += 1;
    }

    /// One message each way for every one that waits, in any order.
    fn carry(&mut self) -> bool {
        let mut any = self.effects();
        let mut requests = std::mem::take(&mut self.requests);
        let wild = self.wild;
        let copies_of = |prng: &mut Prng| if wild { [1, 1, 1, 1, 1, 1, 1, 1, 2, 0][prng.below(10) as usize] } else { 1 };
        while !requests.is_empty() {
            any = true;
            let next = if wild { self.prng.below(requests.len().min(4) as u64) as usize } else { 0 };
            let (member, request) = requests.remove(next);
            for _ in 0..copies_of(&mut self.prng) {
                let mut said = Vec::new();
                let Some(copy) = &mut self.copies[member.index()] else { continue };
                copy.handle(request.clone(), &mut said);
                if !wild || self.prng.chance(600_000) {
                    copy.flush(&mut said);
                }
                self.replies.extend(said.into_iter().map(|r| (member, r)));
            }
        }
        for i in 0..self.copies.len() {
            let member = self.member(i);
            let Some(copy) = &mut self.copies[i] else { continue };
            let mut said = Vec::new();
            copy.flush(&mut said);
            while copy.ingest(&mut said) {}
            if !wild || self.prng.chance(500_000) {
                while let Some(job) = copy.background_job() {
                    copy.finish(job.run(), &mut said);
                    while copy.ingest(&mut said) {}
                }
            }
            self.replies.extend(said.into_iter().map(|r| (member, r)));
        }
        let mut replies = std::mem::take(&mut self.replies);
        while !replies.is_empty() {
            any = true;
            let next = if wild { self.prng.below(replies.len().min(4) as u64) as usize } else { 0 };
            let (member, reply) = replies.remove(next);
            if matches!(reply, CopyReply::Failed { .. }) {
                self.crash(member.index());
                continue;
            }
            for _ in 0..copies_of(&mut self.prng) {
                self.app.handle_reply(self.now, member, reply.clone());
            }
        }
        any |= self.effects();
        self.check_reads();
        any
    }

    /// Nobody reads a page of another history than the one that is served.
    fn check_reads(&self) {
        let story = match (self.stage, &self.path) {
            (Stage::Following, Some(path)) => path,
            (Stage::Leading, None) => &self.old,
            _ => return,
        };
        let vdl = *self.app.vdl();
        if vdl == LogEnd::EMPTY {
            return;
        }
        assert!(story.has(&vdl), "{}: {vdl} is on another history", self.label);
        for (i, copy) in self.copies.iter().enumerate() {
            // What readers do: they ask copies that have heard of the generation that serves.
            let Some(copy) = copy.as_ref().filter(|c| c.pages().serves(self.app.generation())) else { continue };
            for page in (0..PAGES).map(PageNo).filter(|p| self.layout.group_of(*p) == self.member(i).group) {
                if let Ok(got) = copy.pages().read(page, vdl.end_lsn) {
                    let want = story.images[&vdl.end_lsn].get(&page).cloned().unwrap_or_default();
                    assert_eq!(cut(&got), cut(&want), "{}: copy {} gives another {page:?} at {vdl}", self.label, self.member(i));
                }
            }
        }
    }

    fn tick(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.app.handle_timeout(self.now);
    }

    fn settle(&mut self) {
        for _ in 0..30 {
            for _ in 0..200 {
                if !self.carry() {
                    break;
                }
            }
            self.tick(100);
        }
    }

    fn write(&mut self) {
        if self.stage != Stage::Leading || *self.app.phase() != VolumePhase::Serving {
            return;
        }
        let payloads = mini_transaction(&mut self.prng, &self.layout);
        let frames = self.pen.as_mut().unwrap().write_groups(&payloads, true, UnixMicros(1));
        self.old.push(frames.iter().cloned());
        self.app.append(self.now, frames);
    }

    fn follow(&mut self) {
        if self.stage != Stage::Following || *self.app.phase() != VolumePhase::Serving {
            return;
        }
        let path = self.path.as_ref().unwrap();
        let from = self.app.end().seq.0 as usize;
        let upto = (from + self.prng.between(1, 5) as usize).min(path.frames.len());
        if from < upto {
            self.app.append(self.now, path.frames[from..upto].to_vec());
        }
    }

    /// Anything may happen.
    fn trouble(&mut self) {
        let i = self.prng.below(self.copies.len() as u64) as usize;
        match self.prng.below(100) {
            0..4 if self.copies[i].is_some() => self.crash(i),
            4..8 if self.copies[i].is_some() => self.disks[i].cut_power_at(self.prng.between(1, 20)),
            8..22 if self.copies[i].is_none() => self.open(i),
            22..24 => self.restart(),
            _ => {}
        }
    }

    fn end_of_trouble(&mut self) {
        self.wild = false;
        for i in 0..self.copies.len() {
            self.disks[i].forget_faults();
            if self.disks[i].is_down() {
                self.crash(i);
            }
            while self.copies[i].is_none() {
                self.open(i);
            }
        }
    }
}

fn cut(page: &[u8]) -> &[u8] {
    &page[..page.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1)]
}

fn run(seed: u64, groups: u32) -> (u32, bool) {
    let mut rig = Rig::new(seed, groups);
    for _ in 0..rig.prng.between(5, 40) {
        rig.write();
        rig.carry();
        rig.tick(5);
    }
    rig.settle();
    let shared = rig.old.frames.len();
    let points: Vec<usize> = (1..=shared).filter(|n| rig.old.frames[n - 1].is_consistency_point()).collect();
    let at = points[rig.prng.below(points.len() as u64) as usize];
    // The primary goes on, cut off from the others and in trouble of its own; what it made durable is lost.
    rig.wild = true;
    for _ in 0..rig.prng.between(10, 120) {
        if rig.prng.chance(400_000) {
            rig.write();
        }
        rig.trouble();
        rig.carry();
        rig.tick(20);
    }
    rig.end_of_trouble();
    rig.settle();
    let lost = rig.durable;
    assert_eq!(lost, rig.old.end(), "{}", rig.label);
    // Another region reigned meanwhile.
    let mut path = rig.old.upto(at);
    path.images.insert(Lsn(0), Image::new());
    reigns(&mut path, &mut rig.prng, &rig.layout, 25);
    let base = path.frames[at - 1].log_end();
    rig.path = Some(path.clone());
    rig.restart();
    rig.wild = true;
    for _ in 0..rig.prng.between(30, 250) {
        if rig.prng.chance(300_000) {
            rig.order();
        }
        if rig.prng.chance(400_000) {
            rig.follow();
        }
        rig.trouble();
        rig.carry();
        rig.tick(20);
    }
    rig.end_of_trouble();
    // The other region goes on: whoever missed what is durable hears of it now.
    let mut pen = Pen::new(Epoch(3), path.end().generation, path.end(), 512);
    for _ in 0..4 {
        path.push(pen.write_groups(&mini_transaction(&mut rig.prng, &rig.layout), true, UnixMicros(1)));
    }
    rig.path = Some(path.clone());
    for _ in 0..400 {
        rig.settle();
        rig.order();
        rig.follow();
        if *rig.app.vdl() == path.end() && rig.copies.iter().flatten().all(|c| c.state().end == path.end()) {
            break;
        }
    }
    rig.settle();
    assert_eq!((rig.stage, *rig.app.vdl()), (Stage::Following, path.end()), "{}: {:?}", rig.label, rig.app.copies());
    for (i, copy) in rig.copies.iter_mut().enumerate() {
        let copy = copy.as_mut().unwrap();
        assert_eq!(copy.state().end, path.end(), "{}: copy {i}", rig.label);
        assert_eq!(copy.pages().ingested(), path.end().end_lsn, "{}: copy {i}", rig.label);
    }
    rig.check_reads();
    tail_is_kept(&rig, &base, &lost);
    tails_go_by_order(&mut rig);
    (rig.orders, lost != base)
}

/// All of the tail that was durable is in the archive of some copy of each group, and its pages are what they were.
fn tail_is_kept(rig: &Rig, base: &LogEnd, lost: &LogEnd) {
    if base == lost {
        return;
    }
    let id = archive_id(base, Epoch(1));
    let known = rig.app.archives();
    assert!(known.iter().any(|a| a.id == id && a.end >= *lost), "{}: {known:?}", rig.label);
    for group in rig.layout.all_groups() {
        let of_group = MemberId::of(group).map(|m| Arc::clone(&rig.disks[m.index()]) as Arc<dyn Disk>);
        let has = of_group.iter().find(|disk| ArchivedTail::list(disk).unwrap().iter().any(|a| a.id == id && a.end >= *lost));
        let disk = has.unwrap_or_else(|| panic!("{}: no copy of {group} keeps the tail up to {lost}", rig.label));
        let mut tail = ArchivedTail::open(disk, id).unwrap();
        for page in (0..PAGES).map(PageNo).filter(|p| rig.layout.group_of(*p) == group) {
            let want = rig.old.images[&lost.end_lsn].get(&page).cloned().unwrap_or_default();
            assert_eq!(cut(&tail.pages().read(page, lost.end_lsn).unwrap()), cut(&want), "{}: {page:?}", rig.label);
        }
        let frames = tail.frames(Seq(0), usize::MAX).unwrap();
        let first = base.seq.0 as usize;
        let want: Vec<LogEnd> = rig.old.frames[first..lost.seq.0 as usize].iter().map(Frame::log_end).collect();
        assert_eq!(frames.iter().map(Frame::log_end).take(want.len()).collect::<Vec<_>>(), want, "{}", rig.label);
    }
}

/// Every copy drops them when it is told to, and nothing that is read now goes along; that they are gone outlives a crash.
fn tails_go_by_order(rig: &mut Rig) {
    for archive in rig.app.archives() {
        assert_eq!(rig.app.drop_archive(archive.id), 0, "{}: every copy is there", rig.label);
    }
    for crashes in [false, true] {
        for i in (0..rig.copies.len()).filter(|_| crashes) {
            rig.crash(i);
            while rig.copies[i].is_none() {
                rig.open(i);
            }
        }
        rig.settle();
        assert!(rig.app.archives().is_empty(), "{}: {:?}", rig.label, rig.app.archives());
        for disk in &rig.disks {
            let disk = Arc::clone(disk) as Arc<dyn Disk>;
            assert!(ArchivedTail::list(&disk).unwrap().is_empty(), "{}", rig.label);
        }
        rig.check_reads();
    }
}

#[test]
fn a_volume_goes_back_whatever_happens_and_what_it_lost_is_kept() {
    let (mut orders, mut tails) = (0, 0);
    let seeds = std::env::var("PARHELION_REWIND_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(14);
    let first = std::env::var("PARHELION_REWIND_FIRST").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let (given, tail) = run(seed, 1);
        orders += given;
        tails += u32::from(tail);
    }
    for seed in first + 1000..first + 1000 + seeds / 3 {
        run(seed, 2);
    }
    assert!(u64::from(tails) > seeds / 2 && orders > tails, "{orders} orders for {tails} tails");
}
