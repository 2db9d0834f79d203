//! A copy goes back, and keeps what it had.

use super::*;
use crate::base::Epoch;
use crate::volume::{ArchivedTail, archive_id};

const NEXT: Epoch = Epoch(2);

fn goes_back(world: &World, number: u64, at: LogEnd) -> CopyRequest {
    let archive = Some(archive_id(&at, Epoch(1)));
    CopyRequest::Rewind { generation: world.generation, number, archive, at, reign: NEXT }
}

fn rewound(replies: &[CopyReply]) -> Option<&CopyState> {
    replies.iter().find_map(|r| if let CopyReply::Rewound { state, .. } = r { Some(state) } else { None })
}

/// A consistency point of the log, about `part` of the way.
fn point(world: &World, part: f64) -> usize {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let near = (world.frames.len() as f64 * part) as usize;
    (near..world.frames.len()).find(|i| world.frames[*i].is_consistency_point()).expect("BUG: the log ends in one")
}

/// The history that is followed after the first `keep` frames.
fn other(world: &World, keep: usize, writes: usize) -> World {
    let mut new = world.clone();
    new.frames.truncate(keep);
    let end = new.end();
    new.images.retain(|lsn, _| *lsn <= end.end_lsn);
    new.prng = Prng::new(77);
    new.generation = Generation(world.generation.0 + 1);
    let reign = crate::log::Reign {
        lineage: LINEAGE,
        prev: Epoch(1),
        base: end,
        region: crate::base::RegionName::new("eu-west").unwrap(),
        op: 1,
        config: 1,
    };
    new.frames.push(ControlFrame::Reign(reign).encode(&end, NEXT, new.generation, UnixMicros(1)));
    new.epoch = NEXT;
    for _ in 0..writes {
        new.write();
    }
    new
}

fn archive_has(disk: &Arc<SimDisk>, world: &World, at: usize, label: &str) {
    let disk = Arc::clone(disk) as Arc<dyn Disk>;
    let base = world.frames[at].log_end();
    let id = archive_id(&base, Epoch(1));
    let mut tail = ArchivedTail::open(&disk, id).unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!((tail.view().base, tail.view().end, tail.view().consistent), (base, world.end(), world.end()), "{label}");
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        let from = frames.last().map_or(Seq(0), |f| f.seq().next());
        let some = tail.frames(from, 500).unwrap();
        if some.is_empty() {
            break;
        }
        frames.extend(some);
    }
    assert_eq!(frames, world.frames[at + 1..], "{label}: the tail is as it was written");
    for (lsn, image) in world.images.range(tail.first_readable()..).step_by(5).chain(world.images.iter().next_back()) {
        for (page, bytes) in image {
            assert_eq!(trimmed(&tail.pages().read(*page, *lsn).unwrap()), trimmed(bytes), "{label}: {page:?} at {lsn}");
        }
    }
}

/// As far back as it can be read.
fn pages_are(copy: &Copy, world: &World) {
    let first = copy.pages().first_readable();
    for lsn in world.images.range(first..).map(|(lsn, _)| *lsn).step_by(4).chain([world.end().end_lsn]) {
        world.check_pages(copy, lsn);
    }
}

#[test]
fn a_copy_goes_back_and_follows_another_history_and_its_tail_stays() {
    for seed in 0..12u64 {
        let disk = disk(seed);
        let mut world = World::founded(seed);
        for _ in 0..60 {
            world.write();
        }
        let mut copy = open(&disk);
        world.fill(&mut copy);
        let at = point(&world, [0.05, 0.4, 0.7, 0.97][seed as usize % 4]);
        let base = world.frames[at].log_end();
        let replies = drive(&mut copy, vec![goes_back(&world, 1, base)]);
        let state = rewound(&replies).unwrap_or_else(|| panic!("{replies:?}"));
        assert_eq!((state.end, state.consistent, state.reign), (base, base, NEXT));
        assert!(state.flushed.seq <= base.seq && state.ingested.seq <= base.seq);
        archive_has(&disk, &world, at, "at once");
        if seed % 3 == 0 {
            disk.crash();
            disk.restart();
            copy = open(&disk);
            assert_eq!((copy.state().end, copy.state().consistent, copy.state().reign), (base, base, NEXT));
        }
        let new = other(&world, at + 1, 40);
        for frames in new.frames[at + 1..].chunks(5) {
            let vdl = *copy.wal.end();
            let replies = drive(&mut copy, vec![new.append(frames.to_vec(), vdl)]);
            assert_eq!(acknowledged(&replies), Some(frames.last().unwrap().log_end()));
        }
        // Said once more, late: an older generation says it.
        let replies = drive(&mut copy, vec![goes_back(&world, 1, base)]);
        assert!(matches!(replies[..], [CopyReply::Refused { .. }]));
        let again = CopyRequest::Rewind { generation: new.generation, number: 7, archive: None, at: base, reign: NEXT };
        let replies = drive(&mut copy, vec![again.clone(), again]);
        assert_eq!(rewound(&replies).unwrap().end, new.end(), "taking up a reign cuts nothing");
        drive(&mut copy, vec![new.append(Vec::new(), new.end())]);
        pages_are(&copy, &new);
        // Everything below what the layers hold is trimmed; not what the archive needs.
        let trim = CopyRequest::Append {
            generation: new.generation,
            frames: Vec::new(),
            vdl: new.end(),
            horizon: new.end().end_lsn,
            trim: new.end().seq,
            gate: None,
        };
        drive(&mut copy, vec![trim]);
        drop(copy);
        archive_has(&disk, &world, at, "after trimming");
        disk.crash();
        disk.restart();
        let mut copy = open(&disk);
        assert_eq!(copy.state().end, new.end());
        archive_has(&disk, &world, at, "after a crash");
        let log = whole_log(&mut copy);
        assert_eq!(log[..], new.frames[new.frames.len() - log.len()..]);
        assert!(verify_files(&(Arc::clone(&disk) as Arc<dyn Disk>)).damage.is_empty());

        let archive = archive_id(&base, Epoch(1));
        let drop_it = CopyRequest::DropArchive { generation: new.generation, archive };
        let before = disk.list().unwrap().len();
        let replies = drive(&mut copy, vec![drop_it.clone(), drop_it]);
        assert_eq!(replies.len(), 2, "{replies:?}");
        assert!(copy.state().archives.is_empty() && disk.list().unwrap().len() < before);
        assert!(disk.list().unwrap().iter().all(|n| !n.starts_with('t')), "its timeline is gone");
        drop(copy);
        let mut copy = open(&disk);
        assert_eq!(copy.state().end, new.end());
        drive(&mut copy, vec![new.append(Vec::new(), new.end())]);
        new.check_pages(&copy, new.end().end_lsn);
    }
}

#[test]
fn an_order_is_carried_out_once_whatever_came_since() {
    let disk = disk(3);
    let mut world = World::founded(3);
    for _ in 0..30 {
        world.write();
    }
    let mut copy = open(&disk);
    world.fill(&mut copy);
    let at = point(&world, 0.5);
    let order = goes_back(&world, 4, world.frames[at].log_end());
    drive(&mut copy, vec![order.clone(), order.clone()]);
    // The same appender goes on, with the frames of another reign.
    let new = World { generation: world.generation, ..other(&world, at + 1, 12) };
    for frames in new.frames[at + 1..].chunks(4) {
        let vdl = *copy.wal.end();
        drive(&mut copy, vec![new.append(frames.to_vec(), vdl)]);
    }
    for round in 0..2 {
        let replies = drive(&mut copy, vec![order.clone()]);
        assert_eq!(rewound(&replies).unwrap().end, new.end(), "round {round}");
        copy = open(&disk);
    }
    let CopyRequest::Rewind { archive, .. } = order else { unreachable!() };
    assert_eq!(copy.state().archives.iter().map(|a| Some(a.id)).collect::<Vec<_>>(), [archive]);
}

/// The frame at the point is damaged: the copy says both, and is copied afresh instead of being asked for ever (seed 911149 of moves).
#[test]
fn a_copy_that_cannot_read_its_point_says_so_and_refuses() {
    let disk = disk(4);
    let mut world = World::founded(4);
    for _ in 0..40 {
        world.write();
    }
    let mut copy = open(&disk);
    world.fill(&mut copy);
    drop(copy);
    disk.restart();
    let mut copy = open(&disk);
    let at = world.frames[point(&world, 0.5)].log_end();
    let frame = world.frames.iter().find(|f| f.log_end() == at).unwrap().bytes().clone();
    let lies_in = |log: &String| disk.read(log, 0, usize::MAX).unwrap().windows(frame.len()).position(|w| w == &frame[..]);
    let found = disk.list().unwrap().into_iter().find_map(|log| Some((lies_in(&log)?, log)));
    let (offset, log) = found.expect("BUG: it lies in a log as it was sent");
    assert!(disk.flip(&log, offset as u64 + 20));
    let order = goes_back(&world, 1, at);
    for _ in 0..2 {
        let replies = drive(&mut copy, vec![order.clone()]);
        let refused = replies.iter().any(|r| matches!(r, CopyReply::RewindRefused { number: 1, reason, .. } if reason.contains("damaged")));
        let told = replies.iter().any(|r| matches!(r, CopyReply::Damaged { .. }));
        assert!(refused && told, "{replies:?}");
    }
    assert_eq!(copy.state().end, world.end(), "nothing was cut");
}

#[test]
fn what_cannot_be_gone_back_to_is_refused_and_cuts_nothing() {
    let disk = disk(4);
    let mut world = World::founded(4);
    for _ in 0..80 {
        world.write();
    }
    let mut copy = open(&disk);
    world.fill(&mut copy);
    let horizon = world.frames[point(&world, 0.8)].log_end().end_lsn;
    let fold =
        CopyRequest::Append { generation: world.generation, frames: Vec::new(), vdl: world.end(), horizon, trim: Seq(0), gate: None };
    drive(&mut copy, vec![fold]);
    for _ in 0..40 {
        let frames = world.write();
        let vdl = *copy.wal.end();
        drive(&mut copy, vec![world.append(frames, vdl)]);
    }
    assert!(copy.pages().first_readable() > Lsn(0), "something was folded");
    let before = copy.state();
    let at = point(&world, 0.1);
    let folded = goes_back(&world, 1, world.frames[at].log_end());
    let elsewhere = goes_back(&world, 2, LogEnd { checksum: 1, ..world.frames[point(&world, 0.9)].log_end() });
    let nothing = goes_back(&world, 3, LogEnd::EMPTY);
    for (order, why) in [(elsewhere, "no consistency point"), (nothing, "nothing would be left")] {
        let replies = drive(&mut copy, vec![order]);
        assert!(matches!(&replies[..], [CopyReply::RewindRefused { reason, .. }] if reason.contains(why)), "{replies:?}");
    }
    assert_eq!(copy.state(), before);
    let replies = drive(&mut copy, vec![folded.clone(), folded.clone()]);
    let [CopyReply::TailKept { reason, state, .. }, CopyReply::TailKept { state: again, .. }] = &replies[..] else { panic!("{replies:?}") };
    assert!(reason.contains("folded"), "{reason}");
    let kept = CopyState { archives: state.archives.clone(), ..before };
    assert_eq!((state, again), (&kept, &kept), "nothing but the archive is new");
    archive_has(&disk, &world, at, "kept");
    disk.crash();
    disk.restart();
    let mut copy = open(&disk);
    assert_eq!((copy.state().end, copy.state().archives), (kept.end, kept.archives));
    // It is copied afresh, and the order comes late once more: what lies here now is no tail.
    let new = other(&world, at + 1, 30);
    let seeded_at = new.end();
    let (pages, base, generation) = (new.pages(seeded_at.end_lsn), new.seeded().1, new.generation);
    let seed = [
        CopyRequest::SeedBegin { generation, step: 0, base },
        CopyRequest::SeedPages { generation, step: 1, pages },
        CopyRequest::SeedEnd { generation, steps: 1 },
    ];
    let replies = drive(&mut copy, seed.into());
    assert_eq!(acknowledged(&replies), Some(seeded_at), "{replies:?}");
    let archives = copy.state().archives;
    let CopyRequest::Rewind { number, archive, at: point_of, reign, .. } = folded else { unreachable!() };
    let replies = drive(&mut copy, vec![CopyRequest::Rewind { generation, number, archive, at: point_of, reign }]);
    assert!(matches!(replies[..], [CopyReply::RewindRefused { .. }]), "{replies:?}");
    assert_eq!(copy.state().archives, archives);
    archive_has(&disk, &world, at, "after it was copied afresh");
    disk.crash();
    disk.restart();
    let mut copy = open(&disk);
    archive_has(&disk, &world, at, "and after a crash");
    drive(&mut copy, vec![new.append(Vec::new(), new.end())]);
    new.check_pages(&copy, new.end().end_lsn);
    let world = new;
    // Behind: it says so, and outranks nobody.
    let behind = LogEnd { seq: Seq(world.end().seq.0 + 9), ..world.end() };
    let replies = drive(&mut copy, vec![goes_back(&world, 4, behind)]);
    let state = rewound(&replies).unwrap();
    assert_eq!((state.end, state.reign), (world.end(), Epoch(0)));
}

/// Pages of a tail that others must not see are not given before an appender has shown that they are its own.
#[test]
fn a_copy_that_was_away_gives_no_pages_of_a_tail_that_the_others_have_not() {
    let disk = disk(5);
    let mut world = World::founded(5);
    for _ in 0..50 {
        world.write();
    }
    let mut copy = open(&disk);
    world.fill(&mut copy);
    let at = point(&world, 0.4);
    let new = other(&world, at + 1, 60);
    assert!(new.end().seq > world.end().seq);
    drop(copy);
    let mut copy = Copy::open(Arc::clone(&disk) as Arc<dyn Disk>, &Limits::tiny()).unwrap();
    let readable = |copy: &Copy, lsn: Lsn| copy.pages().read(PageNo(1), lsn).is_ok();
    let base = world.frames[at].log_end();
    assert!(!readable(&copy, world.end().end_lsn), "nobody said whose history it is");
    drive(&mut copy, vec![CopyRequest::Raise { generation: new.generation }, new.append(Vec::new(), new.end())]);
    assert!(!readable(&copy, world.end().end_lsn) && !readable(&copy, base.end_lsn));
    drive(&mut copy, vec![new.append(Vec::new(), base)]);
    assert!(readable(&copy, base.end_lsn) && !readable(&copy, base.end_lsn.plus(1)), "up to where it was shown");
    drive(
        &mut copy,
        vec![CopyRequest::Rewind { generation: new.generation, number: 1, archive: Some(TimelineId(1 << 63)), at: base, reign: NEXT }],
    );
    drive(&mut copy, vec![new.append(new.frames[at + 1..].to_vec(), LogEnd::EMPTY), new.append(Vec::new(), new.end())]);
    pages_are(&copy, &new);
}

/// A life with two ways back; the disk loses its power at any call.
fn life(disk: &Arc<SimDisk>, world: &World, new: &World, at: usize) -> Option<()> {
    let mut copy = try_open(disk).ok()?;
    let base = world.frames[at].log_end();
    let state = copy.state();
    let mut replies = Vec::new();
    if state.reign < NEXT {
        copy.handle(CopyRequest::Raise { generation: world.generation }, &mut replies);
        let from = usize::try_from(state.end.seq.0).unwrap();
        for frames in world.frames[from..].chunks(6) {
            let vdl = *copy.wal.end();
            replies.extend(drive(&mut copy, vec![world.append(frames.to_vec(), vdl)]));
        }
        replies.extend(drive(&mut copy, vec![world.append(Vec::new(), world.end()), goes_back(world, 1, base)]));
    }
    if copy.failed().is_some() {
        return None;
    }
    let from = usize::try_from(copy.state().end.seq.0).unwrap();
    for frames in new.frames[from..].chunks(6) {
        let vdl = *copy.wal.end();
        replies.extend(drive(&mut copy, vec![new.append(frames.to_vec(), vdl)]));
    }
    replies.extend(drive(&mut copy, vec![new.append(Vec::new(), new.end())]));
    copy.failed().is_none().then_some(())
}

#[test]
fn a_crash_at_any_disk_call_leaves_the_old_tail_or_the_way_back_and_never_a_mixture() {
    let mut cases = 0;
    for seed in 0..3u64 {
        let mut world = World::founded(seed);
        for _ in 0..26 {
            world.write();
        }
        let at = point(&world, [0.3, 0.6, 0.9][seed as usize]);
        let base = world.frames[at].log_end();
        let new = other(&world, at + 1, 14);
        let calls = {
            let disk = disk(seed);
            life(&disk, &world, &new, at).unwrap();
            disk.calls()
        };
        for call in 1..=calls {
            let disk = disk(seed * 1000 + call);
            disk.cut_power_at(call);
            let _ = life(&disk, &world, &new, at);
            disk.crash();
            disk.restart();
            cases += 1;
            let label = format!("seed {seed}, call {call}");
            {
                let copy = try_open(&disk).unwrap_or_else(|e| panic!("{label}: {e}"));
                let state = copy.state();
                let (log, images) = if state.reign == NEXT { (&new.frames, &new) } else { (&world.frames, &world) };
                let end = state.end.seq.0 as usize;
                assert!(end == 0 || log[end - 1].log_end() == state.end, "{label}: {}", state.end);
                if state.reign == NEXT {
                    assert!(state.end.seq >= base.seq, "{label}");
                    archive_has(&disk, &world, at, &label);
                } else {
                    assert!(state.archives.is_empty(), "{label}");
                }
                let ingested = copy.pages().ingested();
                images.check_pages(&copy, images.images.range(..=ingested).next_back().map(|(l, _)| *l).unwrap());
            }
            assert!(verify_files(&(Arc::clone(&disk) as Arc<dyn Disk>)).damage.is_empty(), "{label}");
            life(&disk, &world, &new, at).unwrap_or_else(|| panic!("{label}: it goes on"));
            archive_has(&disk, &world, at, &label);
            let copy = open(&disk);
            assert_eq!(copy.state().end, new.end(), "{label}");
        }
    }
    assert!(cases > 300, "{cases}");
}
