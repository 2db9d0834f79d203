//! Timelines of one copy: branched, read and written on both sides, branched again, dropped, collected; and the power cut at every
//! call of it.

use super::*;
use std::collections::BTreeSet;

const CHILD: TimelineId = TimelineId(7);
const GRANDCHILD: TimelineId = TimelineId(0x1_0000_0008);

fn directory(disk: &Arc<SimDisk>) -> Arc<Directory> {
    Directory::open(Arc::clone(disk) as Arc<dyn Disk>).unwrap()
}

fn try_open_in(directory: &Arc<Directory>, timeline: TimelineId) -> Result<Copy, OpenError> {
    Copy::open_in(directory, GroupId(0), timeline, &Limits::tiny()).inspect(|copy| copy.pages().trust())
}

fn open_in(directory: &Arc<Directory>, timeline: TimelineId) -> Copy {
    try_open_in(directory, timeline).unwrap()
}

/// What a branch behind the first `keep` frames writes, as `generation`.
fn child_of(world: &World, keep: usize, generation: u64) -> World {
    let mut child = world.cut(keep, Generation(generation));
    child.prng = Prng::new(generation * 31);
    child
}

/// A number of frames that ends in a consistency point, near `near`.
fn point_near(world: &World, near: usize) -> usize {
    (near..world.frames.len()).find(|&n| world.frames[n - 1].is_consistency_point()).expect("a mini-transaction has three frames at most")
}

/// Everything that `world` has from `from` on, in small batches; all of it becomes pages.
fn write_all(copy: &mut Copy, world: &World, from: usize, horizon: Lsn) {
    let mut vdl = copy.state().consistent;
    for frames in world.frames[from..].chunks(4) {
        let trim = if horizon > Lsn(0) { vdl.seq } else { Seq(0) };
        let request = CopyRequest::Append { generation: world.generation, frames: frames.to_vec(), vdl, horizon, trim, gate: None };
        let replies = drive(copy, vec![request]);
        assert_eq!(acknowledged(&replies), Some(frames.last().unwrap().log_end()), "{replies:?}");
        vdl = copy.state().consistent;
    }
    drive(
        copy,
        vec![CopyRequest::Append { generation: world.generation, frames: Vec::new(), vdl: world.end(), horizon, trim: Seq(0), gate: None }],
    );
    assert_eq!(copy.pages().ingested(), world.end().end_lsn);
}

fn write_some(copy: &mut Copy, world: &mut World, frames: usize, horizon: Lsn) {
    let from = world.frames.len();
    while world.frames.len() < from + frames {
        world.write();
    }
    write_all(copy, world, from, horizon);
}

fn branch(copy: &mut Copy, child: TimelineId, at: LogEnd) -> Result<(), String> {
    let generation = copy.promised();
    let replies = drive(copy, vec![CopyRequest::Branch { generation, child, at }]);
    match replies.last() {
        Some(CopyReply::Branched { child: c, .. }) if *c == child => Ok(()),
        Some(CopyReply::BranchRefused { child: c, reason, .. }) if *c == child => Err(reason.clone()),
        other => panic!("{other:?}"),
    }
}

fn drop_branch(copy: &mut Copy, child: TimelineId) {
    let generation = copy.promised();
    let replies = drive(copy, vec![CopyRequest::DropBranch { generation, child }]);
    assert!(matches!(replies[..], [CopyReply::BranchDropped { .. }]), "{replies:?}");
}

/// Every LSN at which the pages can be read, or a few of them.
fn check(copy: &Copy, world: &World, stride: usize) {
    let (first, last) = (copy.pages().first_readable(), copy.pages().ingested());
    for at in world.images.keys().filter(|at| **at >= first && **at <= last).step_by(stride).copied().chain([last]) {
        world.check_pages(copy, at);
    }
}

fn layer_files(disk: &SimDisk) -> BTreeSet<String> {
    disk.list().unwrap().into_iter().filter(|n| n.contains("layer-")).collect()
}

/// Exactly what the manifests of all timelines name.
fn named(directory: &Arc<Directory>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for view in directory.timelines().unwrap() {
        let manifest = Manifest::load(&*directory.view(view.timeline), view.timeline).unwrap().unwrap();
        names.extend(manifest.layers.iter().map(|l| directory::layer_name(l.id())));
    }
    names
}

#[test]
fn a_child_shares_layers_and_both_sides_are_read_and_written() {
    for seed in 0..6 {
        let disk = disk(seed);
        let dir = directory(&disk);
        let mut parent = open_in(&dir, TimelineId::ROOT);
        let mut world = World::sized(seed, 70);
        world.fill(&mut parent);
        let keep = point_near(&world, 20 + 8 * usize::try_from(seed).unwrap());
        let at = world.frames[keep - 1].log_end();
        let (before, calls) = (layer_files(&disk), disk.calls());
        branch(&mut parent, CHILD, at).unwrap();
        if at.seq <= parent.manifest.flushed.seq {
            assert_eq!(layer_files(&disk), before, "nothing is copied");
            assert_eq!(disk.calls() - calls, 6, "promise and manifest, each written, synced, renamed");
        }
        let views = parent.timelines().unwrap();
        assert_eq!(views.iter().map(|v| v.timeline).collect::<Vec<_>>(), [TimelineId::ROOT, CHILD]);
        assert_eq!(views[1].origin, Some(Origin { parent: TimelineId::ROOT, at }));
        assert!(views[1].shared_bytes > 0 && views[1].own_bytes == 0);

        let mut child = open_in(&dir, CHILD);
        assert_eq!(child.state().end, at);
        assert_eq!(child.state().lineage, Some(LINEAGE));
        let mut other = child_of(&world, keep, 5);
        check(&child, &other, 1);
        let e = child.pages().read(PageNo(1), at.end_lsn.plus(1)).unwrap_err();
        assert!(matches!(e, ReadError::NotYet { .. }), "what the parent wrote behind the point is not there: {e}");
        write_all(&mut child, &other, keep, Lsn(0));
        for round in 0..6 {
            write_some(&mut parent, &mut world, 15, Lsn(0));
            write_some(&mut child, &mut other, 12, Lsn(0));
            check(&parent, &world, 7);
            check(&child, &other, 7);
            match round {
                2 => {
                    parent = try_open_in(&dir, TimelineId::ROOT).unwrap();
                    write_all(&mut parent, &world, world.frames.len(), Lsn(0));
                }
                4 => {
                    child = try_open_in(&dir, CHILD).unwrap();
                    write_all(&mut child, &other, other.frames.len(), Lsn(0));
                }
                _ => {}
            }
        }
        assert_eq!(child.state().first, at.seq.next(), "a log of its own");
        assert_eq!(whole_log(&mut child), other.frames[keep..]);
        assert_eq!(child.state().history.common_seq(other.end().seq, &parent.state().history, world.end().seq), at.seq);

        // A grandchild, of what only the child wrote; and one of what both share.
        let deep = point_near(&other, keep + 20);
        branch(&mut child, GRANDCHILD, other.frames[deep - 1].log_end()).unwrap();
        let shallow = point_near(&other, keep / 2);
        branch(&mut child, TimelineId(9), other.frames[shallow - 1].log_end()).unwrap();
        let mut third = child_of(&other, deep, 6);
        let mut grandchild = open_in(&dir, GRANDCHILD);
        write_all(&mut grandchild, &third, deep, Lsn(0));
        write_some(&mut grandchild, &mut third, 30, Lsn(0));
        let early = open_in(&dir, TimelineId(9));
        check(&early, &child_of(&other, shallow, 8), 1);

        // The power goes; everything is there again.
        disk.crash();
        disk.restart();
        drop((parent, child, grandchild, early, dir));
        let dir = directory(&disk);
        let mut parent = open_in(&dir, TimelineId::ROOT);
        let mut grandchild = open_in(&dir, GRANDCHILD);
        let mut child = open_in(&dir, CHILD);
        for (copy, world) in [(&mut parent, &world), (&mut child, &other), (&mut grandchild, &third)] {
            write_all(copy, world, world.frames.len(), Lsn(0));
            check(copy, world, 5);
        }
        // The child goes, what the grandchild shares with it stays; then that goes, too.
        drop(child);
        let open = open_in(&dir, TimelineId(9));
        drop_branch(&mut parent, CHILD);
        assert!(matches!(try_open_in(&dir, CHILD), Err(OpenError::Dropped { .. })));
        check(&grandchild, &third, 5);
        check(&parent, &world, 9);
        drop_branch(&mut parent, GRANDCHILD);
        check(&grandchild, &third, 9); // whoever still reads it ends with what it began with
        let frames = third.write();
        let replies = drive(&mut grandchild, vec![third.append(frames, LogEnd::EMPTY)]);
        assert!(matches!(replies[..], [CopyReply::Failed { .. }]), "but nothing is written any more: {replies:?}");
        drop_branch(&mut parent, TimelineId(9));
        drop((grandchild, open));
        assert_eq!(layer_files(&disk), named(&dir), "what nobody needs is gone");
        assert!(disk.list().unwrap().iter().all(|n| !n.starts_with('t')), "{:?}", disk.list().unwrap());
        check(&parent, &world, 9);
    }
}

#[test]
fn what_the_parent_folds_and_merges_away_stays_for_its_child() {
    for seed in 0..4 {
        let disk = disk(seed);
        let dir = directory(&disk);
        let mut parent = open_in(&dir, TimelineId::ROOT);
        let mut world = World::sized(seed, 80);
        world.fill(&mut parent);
        let keep = point_near(&world, 50);
        let at = world.frames[keep - 1].log_end();
        branch(&mut parent, CHILD, at).unwrap();
        let mut other = child_of(&world, keep, 5);
        // The parent goes on, its horizon far behind the point: it merges and folds all that the child shares.
        let shared = parent.manifest.layers[0].clone();
        let horizon = world.end().end_lsn;
        while parent.manifest.layers[0] == shared {
            write_some(&mut parent, &mut world, 20, horizon);
        }
        assert!(parent.pages().first_readable() > at.end_lsn && parent.state().first > at.seq);
        let names: BTreeSet<_> = parent.manifest.layers.iter().map(manifest::LayerMeta::id).collect();
        assert!(layer_files(&disk).len() > names.len(), "the child's layers are kept");
        assert_eq!(layer_files(&disk), named(&dir));
        let mut child = open_in(&dir, CHILD);
        check(&child, &other, 1);
        // Too late for another one; and the sentence says from where on.
        let e = branch(&mut parent, GRANDCHILD, at).unwrap_err();
        assert!(e.contains(&format!("below LSN {} were folded", parent.pages().first_readable())), "{e}");
        // The child merges what it shares into layers of its own, and needs the parent's no more.
        write_all(&mut child, &other, keep, Lsn(0));
        let horizon = other.end().end_lsn;
        while dir.timelines().unwrap()[1].shared_bytes > 0 {
            write_some(&mut child, &mut other, 20, horizon);
        }
        check(&child, &other, 3);
        assert_eq!(layer_files(&disk), named(&dir));
        assert!(layer_files(&disk).iter().filter(|n| n.starts_with("layer-")).count() <= names.len() + 1);
        // Nothing of it is missed after a restart.
        drop((parent, child, dir));
        let dir = directory(&disk);
        assert_eq!(layer_files(&disk), named(&dir));
        let mut child = open_in(&dir, CHILD);
        write_all(&mut child, &other, other.frames.len(), Lsn(0));
        check(&child, &other, 3);
    }
}

#[test]
fn a_branch_that_cannot_be_is_refused_with_a_sentence_and_the_same_again_is_answered_again() {
    let disk = disk(1);
    let dir = directory(&disk);
    let mut parent = open_in(&dir, TimelineId::ROOT);
    let mut world = World::sized(1, 60);
    world.fill(&mut parent);
    let keep = point_near(&world, 30);
    let at = world.frames[keep - 1].log_end();
    branch(&mut parent, CHILD, at).unwrap();
    let calls = disk.calls();
    branch(&mut parent, CHILD, at).unwrap();
    assert_eq!(disk.calls(), calls, "nothing is done twice");
    let other_point = world.frames[point_near(&world, keep + 1) - 1].log_end();
    assert!(branch(&mut parent, CHILD, other_point).unwrap_err().contains("exists already"));
    assert!(branch(&mut parent, TimelineId::ROOT, at).unwrap_err().contains("exists already"));
    // Not a consistency point, and not of this log.
    if let Some(inside) = world.frames.iter().find(|f| !f.is_consistency_point() && f.seq() <= parent.manifest.flushed.seq) {
        assert!(branch(&mut parent, GRANDCHILD, inside.log_end()).unwrap_err().contains("no consistency point"));
    }
    let stranger = LogEnd { checksum: !at.checksum, ..at };
    assert!(branch(&mut parent, GRANDCHILD, stranger).unwrap_err().contains("no consistency point"));
    // An older generation may not branch.
    drive(&mut parent, vec![CopyRequest::Raise { generation: Generation(3) }]);
    for request in [
        CopyRequest::Branch { generation: Generation(1), child: GRANDCHILD, at },
        CopyRequest::DropBranch { generation: Generation(1), child: CHILD },
    ] {
        let replies = drive(&mut parent, vec![request]);
        assert!(matches!(replies[..], [CopyReply::Refused { .. }]), "{replies:?}");
    }
    world.generation = Generation(3);
    // What is not durable yet is waited for, and what is in memory only becomes a layer first.
    world.control(&ControlFrame::GenerationStart);
    world.write();
    let from = usize::try_from(parent.state().end.seq.0).unwrap();
    let vdl = parent.state().consistent;
    let wanted = world.end();
    let order = CopyRequest::Branch { generation: Generation(3), child: GRANDCHILD, at: wanted };
    let replies = drive(&mut parent, vec![world.append(world.frames[from..].to_vec(), vdl), order.clone(), order]);
    assert!(!replies.iter().any(|r| matches!(r, CopyReply::Branched { .. } | CopyReply::BranchRefused { .. })), "{replies:?}");
    let replies = drive(&mut parent, vec![world.append(Vec::new(), wanted)]);
    assert_eq!(replies.iter().filter(|r| matches!(r, CopyReply::Branched { .. })).count(), 1, "{replies:?}");
    assert_eq!(parent.manifest.flushed, wanted);
    check(&open_in(&dir, GRANDCHILD), &world, 5);
    // A drop is for good, also of what never came.
    for child in [CHILD, TimelineId(99)] {
        drop_branch(&mut parent, child);
        drop_branch(&mut parent, child);
        assert!(branch(&mut parent, child, at).unwrap_err().contains("was dropped"));
    }
    for child in [TimelineId::ROOT, parent.timeline()] {
        let replies = drive(&mut parent, vec![CopyRequest::DropBranch { generation: Generation(3), child }]);
        assert!(matches!(&replies[..], [CopyReply::BranchRefused { reason, .. }] if reason.contains("never")), "{replies:?}");
    }
    drop((parent, dir));
    let dir = directory(&disk);
    assert!(matches!(try_open_in(&dir, CHILD), Err(OpenError::Dropped { .. })), "also after a restart");
}

#[test]
fn a_timeline_that_is_not_here_is_an_empty_copy_and_is_seeded() {
    let disk = disk(1);
    let dir = directory(&disk);
    let mut parent = open_in(&dir, TimelineId::ROOT);
    let world = World::sized(3, 40);
    world.fill(&mut parent);
    let mut child = open_in(&dir, CHILD);
    assert_eq!(child.state().lineage, None, "it has no vote in a recovery");
    let flushed = parent.manifest.flushed;
    assert!(branch(&mut parent, CHILD, flushed).unwrap_err().contains("rebuilt"));
    let (mut other, base) = world.seeded();
    let generation = Generation(9);
    other.generation = generation;
    let at = base.end.end_lsn;
    drive_seed(&mut child, generation, base, other.pages(at));
    check(&child, &other, 1);
    drop(child);
    let child = open_in(&dir, CHILD);
    check(&child, &other, 1);
    check(&parent, &world, 9);
    assert_eq!(layer_files(&disk), named(&dir));
}

fn drive_seed(copy: &mut Copy, generation: Generation, base: SeedBase, pages: Vec<(PageNo, Bytes)>) {
    for request in [
        CopyRequest::SeedBegin { generation, step: 0, base },
        CopyRequest::SeedPages { generation, step: 1, pages },
        CopyRequest::SeedEnd { generation, steps: 1 },
    ] {
        let replies = drive(copy, vec![request]);
        assert!(matches!(replies[..], [CopyReply::Seeded { .. } | CopyReply::Appended { .. }]), "{replies:?}");
    }
}

#[test]
fn a_childs_damaged_manifest_costs_only_the_child() {
    let disk = disk(2);
    let dir = directory(&disk);
    let mut parent = open_in(&dir, TimelineId::ROOT);
    let mut world = World::sized(2, 60);
    world.fill(&mut parent);
    let flushed = parent.manifest.flushed;
    branch(&mut parent, CHILD, flushed).unwrap();
    drop((parent, dir));
    let name = disk.list().unwrap().into_iter().find(|n| n.starts_with('t') && n.ends_with(manifest::MANIFEST)).unwrap();
    disk.flip(&name, 40);
    let dir = directory(&disk);
    assert!(matches!(try_open_in(&dir, CHILD), Err(OpenError::Damaged { .. })));
    let mut parent = open_in(&dir, TimelineId::ROOT);
    let before = layer_files(&disk);
    for _ in 0..5 {
        let horizon = world.end().end_lsn;
        write_some(&mut parent, &mut world, 20, horizon);
    }
    assert!(before.is_subset(&layer_files(&disk)), "nobody knows what it names, so nothing is removed");
    drop_branch(&mut parent, CHILD);
    drop((parent, dir));
    let dir = directory(&disk);
    assert_eq!(layer_files(&disk), named(&dir));
    check(&open_in(&dir, TimelineId::ROOT), &world, 5);
}

/// What was promised about a timeline before the power went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Said {
    #[default]
    Nothing,
    Ordered,
    Whole,
    DropOrdered,
    Dropped,
}

/// Branches, writes, branches again and drops, until the disk fails. What was said, and how far each log was acknowledged.
struct Run {
    worlds: [World; 3],
    acked: [LogEnd; 3],
    said: [Said; 3],
}

const TIMELINES: [TimelineId; 3] = [TimelineId::ROOT, CHILD, GRANDCHILD];

impl Run {
    fn new(seed: u64) -> Run {
        let world = World::sized(seed, 46);
        let keep = point_near(&world, 20);
        let mut child = child_of(&world, keep, 5);
        while child.frames.len() < keep + 24 {
            child.write();
        }
        let deep = point_near(&child, keep + 10);
        let mut third = child_of(&child, deep, 6);
        while third.frames.len() < deep + 8 {
            third.write();
        }
        let acked = [LogEnd::EMPTY, world.frames[keep - 1].log_end(), child.frames[deep - 1].log_end()];
        Run { worlds: [world, child, third], acked, said: Default::default() }
    }

    /// `None`: the disk failed.
    fn write(&mut self, copy: &mut Copy, which: usize, upto: usize) -> Option<()> {
        let world = &self.worlds[which];
        let from = usize::try_from(self.acked[which].seq.0).unwrap();
        for frames in world.frames[from..upto].chunks(5) {
            let vdl = copy.state().consistent;
            let request = CopyRequest::Append {
                generation: world.generation,
                frames: frames.to_vec(),
                vdl,
                horizon: Lsn(0),
                trim: Seq(0),
                gate: None,
            };
            let replies = drive(copy, vec![request]);
            self.acked[which] = acknowledged(&replies).unwrap_or(self.acked[which]);
            copy.failed().is_none().then_some(())?;
        }
        Some(())
    }

    fn order(&mut self, copy: &mut Copy, which: usize, request: CopyRequest, before: Said, after: Said) -> Option<()> {
        self.said[which] = before;
        let replies = drive(copy, vec![request]);
        if replies.iter().any(|r| matches!(r, CopyReply::Branched { .. } | CopyReply::BranchDropped { .. })) {
            self.said[which] = after;
        }
        assert!(!replies.iter().any(|r| matches!(r, CopyReply::BranchRefused { .. })), "{replies:?}");
        copy.failed().is_none().then_some(())
    }

    fn run(&mut self, disk: &Arc<SimDisk>) -> Option<()> {
        let dir = Directory::open(Arc::clone(disk) as Arc<dyn Disk>).ok()?;
        let (ends, points) = (self.worlds.clone().map(|w| w.frames.len()), self.acked);
        let mut parent = try_open_in(&dir, TimelineId::ROOT).ok()?;
        self.write(&mut parent, 0, ends[0] - 10)?;
        let generation = self.worlds[0].generation;
        let order = CopyRequest::Branch { generation, child: CHILD, at: points[1] };
        self.order(&mut parent, 1, order, Said::Ordered, Said::Whole)?;
        let mut child = try_open_in(&dir, CHILD).ok()?;
        self.write(&mut child, 1, ends[1])?;
        let vdl = child.state().consistent;
        let generation = self.worlds[1].generation;
        drive(&mut child, vec![self.worlds[1].append(Vec::new(), vdl)]);
        let order = CopyRequest::Branch { generation, child: GRANDCHILD, at: points[2] };
        self.order(&mut child, 2, order, Said::Ordered, Said::Whole)?;
        let mut grandchild = try_open_in(&dir, GRANDCHILD).ok()?;
        self.write(&mut grandchild, 2, ends[2])?;
        self.write(&mut parent, 0, ends[0])?;
        drop(child);
        let generation = self.worlds[0].generation;
        self.order(&mut parent, 1, CopyRequest::DropBranch { generation, child: CHILD }, Said::DropOrdered, Said::Dropped)?;
        drop(grandchild);
        self.order(&mut parent, 2, CopyRequest::DropBranch { generation, child: GRANDCHILD }, Said::DropOrdered, Said::Dropped)
    }

    fn check(&self, disk: &Arc<SimDisk>, label: &str) {
        let dir = directory(disk);
        assert!(
            layer_files(disk).is_subset(&named(&dir)) && named(&dir).is_subset(&layer_files(disk)),
            "{label}: leftovers, or a layer is missing"
        );
        let here: BTreeSet<TimelineId> = dir.timelines().unwrap().iter().map(|v| v.timeline).collect();
        for (i, timeline) in TIMELINES.into_iter().enumerate() {
            let known = here.contains(&timeline);
            match self.said[i] {
                Said::Whole => assert!(known, "{label}: timeline {timeline} was branched"),
                Said::Nothing | Said::Dropped => assert!(!known || i == 0, "{label}: timeline {timeline} is not"),
                Said::Ordered | Said::DropOrdered => {}
            }
            if !known {
                let prefix = format!("t{:016x}", timeline.0);
                let left: Vec<String> =
                    disk.list().unwrap().into_iter().filter(|n| n.starts_with(&prefix) && !named(&dir).contains(n)).collect();
                assert!(i == 0 || left.is_empty(), "{label}: {left:?}");
                continue;
            }
            let mut copy = try_open_in(&dir, timeline).unwrap_or_else(|e| panic!("{label}: timeline {timeline}: {e}"));
            let end = copy.state().end;
            if i == 0 || self.said[i] != Said::Ordered {
                assert!(end.seq >= self.acked[i].seq, "{label}: {end} of timeline {timeline}, {} was acknowledged", self.acked[i]);
            }
            // Whatever is there is right, and it goes on from there.
            let world = &self.worlds[i];
            if end.seq > Seq(0) {
                assert_eq!(world.frames[usize::try_from(end.seq.0).unwrap() - 1].log_end(), end, "{label}");
            }
            write_all(&mut copy, world, usize::try_from(end.seq.0).unwrap(), Lsn(0));
            check(&copy, world, 6);
        }
        assert_eq!(layer_files(disk), named(&dir), "{label}");
    }
}

#[test]
fn a_branch_and_a_drop_are_whole_or_not_at_all_wherever_the_power_goes() {
    let mut met: BTreeSet<String> = BTreeSet::new();
    for seed in 0..4 {
        for n in 1.. {
            let disk = disk(seed * 1000 + n);
            let mut run = Run::new(seed);
            disk.cut_power_at(n);
            let finished = run.run(&disk).is_some() && !disk.is_down();
            disk.crash();
            disk.restart();
            if n % 3 == 0 {
                // Again, while it is put in order.
                disk.cut_power_at(1 + n % 5);
                if let Ok(dir) = Directory::open(Arc::clone(&disk) as Arc<dyn Disk>) {
                    let _ = try_open_in(&dir, TimelineId::ROOT);
                }
                disk.crash();
                disk.restart();
            }
            met.insert(format!("{:?}", &run.said[1..]));
            run.check(&disk, &format!("power cut at call {n}, seed {seed}"));
            if finished {
                assert!(n > 100, "the run is long enough: {n}");
                break;
            }
        }
    }
    assert!(met.len() >= 8, "every step was cut: {met:?}");
}
