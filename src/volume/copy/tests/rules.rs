//! What is accepted, what is answered, what pages are.

use super::*;
use crate::io::disk::FileDisk;

#[test]
fn a_group_commit_is_one_write_one_fsync_one_acknowledgement() {
    let disk = disk(1);
    let mut copy = open(&disk);
    let mut world = World::founded(1);
    world.fill(&mut copy);
    let calls = disk.calls();
    let mut replies = Vec::new();
    for _ in 0..5 {
        let frames = world.write();
        copy.handle(world.append(frames, LogEnd::EMPTY), &mut replies);
    }
    assert!(replies.is_empty(), "nothing is acknowledged before the fsync");
    copy.flush(&mut replies);
    assert_eq!(disk.calls() - calls, 2);
    assert_eq!(replies.len(), 1);
    assert_eq!(acknowledged(&replies), Some(world.end()));
    assert_eq!(whole_log(&mut copy), world.frames);
    disk.crash();
    disk.restart();
    assert_eq!(whole_log(&mut open(&disk)), world.frames);
}

#[test]
fn pages_are_what_they_were_through_layers_compaction_and_restarts() {
    for seed in 0..12 {
        let disk = disk(seed);
        let mut copy = open(&disk);
        let mut world = World::founded(seed);
        let mut prng = Prng::new(seed + 1000);
        world.fill(&mut copy);
        let mut horizon = Lsn(0);
        for round in 0..90 {
            let vdl = world.end();
            let frames = world.write();
            if prng.chance(150_000) {
                horizon = Lsn(prng.between(horizon.0, vdl.end_lsn.0));
            }
            let request = CopyRequest::Append { generation: world.generation, frames, vdl, horizon, trim: Seq(0), gate: None };
            drive(&mut copy, vec![request]);
            assert_eq!(copy.pages().ingested(), vdl.end_lsn);
            if prng.chance(60_000) {
                if prng.chance(500_000) {
                    disk.crash();
                    disk.restart();
                }
                copy = open(&disk);
                drive(&mut copy, vec![world.append(Vec::new(), world.end())]);
            }
            if round % 9 == 0 {
                let ingested = copy.pages().ingested();
                let first = copy.pages().first_readable();
                assert!(first <= horizon);
                for _ in 0..6 {
                    world.check_pages(&copy, Lsn(prng.between(first.0, ingested.0)));
                }
                world.check_pages(&copy, ingested);
                if first > Lsn(0) {
                    let e = copy.pages().read(PageNo(1), Lsn(first.0 - 1)).unwrap_err();
                    assert!(matches!(e, ReadError::TooOld { .. }), "{e}");
                }
                let e = copy.pages().read(PageNo(1), ingested.plus(1)).unwrap_err();
                assert!(matches!(e, ReadError::NotYet { .. }), "{e}");
            }
        }
        assert!(copy.manifest.next_layer > 8, "the test meets many layers: {}", copy.manifest.next_layer);
        let layers = copy.pages().layers().len();
        assert!(layers <= copy.limits.layers_before_compaction, "layers stay bounded: {layers}");
        assert_eq!(disk.list().unwrap().iter().filter(|n| n.starts_with("layer-")).count(), layers, "what was merged is removed");
    }
}

#[test]
fn a_job_may_take_its_time_and_a_seed_makes_it_void() {
    let mut both = false;
    for seed in 0..20 {
        let disk = disk(seed);
        let mut copy = open(&disk);
        let mut world = World::founded(seed);
        world.fill(&mut copy);
        let mut prng = Prng::new(seed);
        let mut running: Vec<FlushDone> = Vec::new();
        let mut replies = Vec::new();
        for _ in 0..150 {
            let vdl = world.end();
            let frames = world.write();
            copy.handle(world.append(frames, vdl), &mut replies);
            copy.flush(&mut replies);
            while copy.ingest(&mut replies) {}
            running.extend(std::iter::from_fn(|| copy.background_job()).map(FlushJob::run));
            assert!(running.len() <= 2, "one of each kind at a time");
            both |= running.len() == 2;
            // A reader that began before the layers changed ends with what it began with.
            if prng.chance(200_000) && !running.is_empty() {
                let done = running.swap_remove(usize::try_from(prng.below(running.len() as u64)).unwrap());
                let before = copy.pages().layers();
                copy.finish(done, &mut replies);
                for layer in before.iter() {
                    layer.collect(PageNo(1), vdl.end_lsn, &mut Vec::new()).unwrap();
                }
            }
            let at = Lsn(prng.between(0, copy.pages().ingested().0));
            world.check_pages(&copy, at);
        }
        assert!(copy.failed().is_none());
        assert!(copy.pages().open_bytes() < copy.limits.memtable_bytes_max * 2, "memory is bounded while a job takes its time");
        let (world, base) = world.seeded();
        let generation = world.generation;
        let pages = world.pages(base.end.end_lsn);
        drive_no_jobs(&mut copy, CopyRequest::SeedBegin { generation, step: 0, base: base.clone() });
        drive_no_jobs(&mut copy, CopyRequest::SeedPages { generation, step: 1, pages });
        drive_no_jobs(&mut copy, CopyRequest::SeedEnd { generation, steps: 1 });
        for done in running {
            copy.finish(done, &mut replies);
        }
        world.check_pages(&copy, base.end.end_lsn);
        assert_eq!(disk.list().unwrap().iter().filter(|n| n.starts_with("layer-")).count(), 1);
        assert_eq!(open(&disk).state(), copy.state());
    }
    assert!(both, "a memtable is written while layers are merged");
}

fn drive_no_jobs(copy: &mut Copy, request: CopyRequest) {
    let mut replies = Vec::new();
    copy.handle(request, &mut replies);
    assert!(!replies.iter().any(|r| matches!(r, CopyReply::Failed { .. } | CopyReply::SeedLost { .. })), "{replies:?}");
}

#[test]
fn what_is_held_is_skipped_and_gaps_and_strangers_are_misplaced() {
    let disk = disk(2);
    let mut copy = open(&disk);
    let mut world = World::founded(2);
    for _ in 0..20 {
        world.write();
    }
    let f = world.frames.clone();
    let misplaced = |replies: &[CopyReply]| matches!(replies, [CopyReply::Misplaced { .. }]);
    assert!(misplaced(&drive(&mut copy, vec![world.append(f[1..3].to_vec(), LogEnd::EMPTY)])), "a new copy begins with the first frame");
    assert_eq!(copy.state().lineage, None);
    world.fill(&mut copy);
    assert_eq!(copy.state().lineage, Some(LINEAGE));
    for (from, to) in [(0, f.len()), (3, 7), (f.len() - 1, f.len())] {
        let calls = disk.calls();
        let replies = drive(&mut copy, vec![world.append(f[from..to].to_vec(), LogEnd::EMPTY)]);
        assert_eq!(acknowledged(&replies), Some(world.end()));
        assert_eq!(disk.calls(), calls, "nothing is written twice");
    }
    let new = world.write();
    let newer = world.write();
    assert!(misplaced(&drive(&mut copy, vec![world.append(newer.clone(), LogEnd::EMPTY)])), "a gap");
    // A copy whose pending frames are compared as well.
    let half = new.iter().chain(&newer).cloned().collect::<Vec<_>>();
    let replies = drive(&mut copy, vec![world.append(new, LogEnd::EMPTY), world.append(half, LogEnd::EMPTY)]);
    assert_eq!(acknowledged(&replies), Some(world.end()));
    // Another history of the same generation.
    let mut other = world.clone();
    other.frames.truncate(f.len() - 2);
    other.prng = Prng::new(99);
    let stranger = other.write();
    assert!(misplaced(&drive(&mut copy, vec![world.append(stranger, LogEnd::EMPTY)])));
    assert_eq!(whole_log(&mut copy), world.frames);
}

#[test]
fn a_promise_refuses_every_older_writer_also_after_a_restart() {
    let disk = disk(3);
    let mut copy = open(&disk);
    let mut world = World::founded(3);
    world.fill(&mut copy);
    // Frames of the old generation that wait for their fsync are in the answer to the raise.
    let frames = world.write();
    let replies = drive(&mut copy, vec![world.append(frames, LogEnd::EMPTY), CopyRequest::Raise { generation: Generation(5) }]);
    let Some(CopyReply::Raised { state, .. }) = replies.iter().find(|r| matches!(r, CopyReply::Raised { .. })) else {
        panic!("{replies:?}")
    };
    assert_eq!(state.end, world.end());
    disk.crash();
    disk.restart();
    let mut copy = open(&disk);
    assert_eq!(copy.promised(), Generation(5));
    let frames = world.write();
    for request in [
        world.append(frames, LogEnd::EMPTY),
        CopyRequest::Raise { generation: Generation(4) },
        CopyRequest::SeedEnd { generation: Generation(4), steps: 0 },
    ] {
        let replies = drive(&mut copy, vec![request]);
        assert!(matches!(replies[..], [CopyReply::Refused { promised: Generation(5) }]), "{replies:?}");
    }
    let replies = drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(5) }]);
    assert!(matches!(replies[..], [CopyReply::Raised { .. }]), "the same generation again is fine");
}

#[test]
fn a_tail_is_replaced_only_by_a_newer_writer_and_never_becomes_pages() {
    let disk = disk(4);
    let mut copy = open(&disk);
    let mut world = World::founded(4);
    for _ in 0..8 {
        world.write();
    }
    let durable = world.end();
    let keep = world.frames.len();
    for _ in 0..4 {
        world.write();
    }
    drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(1) }]);
    drive(&mut copy, vec![world.append(world.frames.clone(), durable)]);
    drive(&mut copy, vec![world.append(Vec::new(), durable)]);
    assert_eq!(copy.pages().ingested(), durable.end_lsn);
    let mut new = world.cut(keep, Generation(2));
    // The new appender's VDL is past seqs that here belong to the old tail: they must not be ingested.
    for _ in 0..12 {
        new.write();
    }
    drive(&mut copy, vec![new.append(Vec::new(), new.end())]);
    assert_eq!(copy.state().ingested, durable);
    // Nothing that became pages is ever cut, not even by a newer writer.
    let below = world.cut(keep - 3, Generation(9));
    let replies = drive(&mut copy, vec![new.append(below.frames[keep - 5..].to_vec(), durable)]);
    assert!(matches!(replies[..], [CopyReply::Misplaced { .. }]), "{replies:?}");
    // Nor is anything cut by the writer who wrote it.
    let mut same = world.clone();
    same.frames.truncate(keep);
    for seed in 0.. {
        same.prng = Prng::new(seed);
        same.write();
        if same.frames.len() == keep + 1 {
            break;
        }
        same.frames.truncate(keep);
    }
    let replies = drive(&mut copy, vec![new.append(same.frames[keep..].to_vec(), durable)]);
    assert!(matches!(replies[..], [CopyReply::Misplaced { .. }]), "{replies:?}");
    // Frames of the new history that lack the one that outranks the tail are refused.
    let only_old = new.frames[..keep].to_vec();
    assert_eq!(acknowledged(&drive(&mut copy, vec![new.append(only_old, durable)])), Some(world.end()), "held, cuts nothing");
    assert_eq!(copy.state().end, world.end());
    let replies = drive(&mut copy, vec![new.append(new.frames[keep - 2..].to_vec(), new.end())]);
    assert_eq!(acknowledged(&replies), Some(new.end()));
    assert_eq!(copy.state().consistent, new.end());
    drive(&mut copy, vec![new.append(Vec::new(), new.end())]);
    assert_eq!(whole_log(&mut copy), new.frames);
    new.check_pages(&copy, new.end().end_lsn);
    let copy = open(&disk);
    assert_eq!(copy.state().end, new.end());
    assert_eq!(copy.state().history.terms().len(), 2);
}

#[test]
fn a_seed_replaces_everything_and_its_steps_may_be_doubled_or_lost() {
    let disk = disk(5);
    let mut copy = open(&disk);
    let mut old = World::founded(50);
    for _ in 0..30 {
        old.write();
    }
    old.fill(&mut copy);
    let mut source = World::founded(5);
    source.generation = Generation(3);
    for _ in 0..40 {
        source.write();
    }
    let (mut world, base) = source.seeded();
    let generation = Generation(3);
    let pages = world.pages(base.end.end_lsn);
    let (some, rest) = pages.split_at(5);
    let step = |step: u64, pages: &[(PageNo, Bytes)]| CopyRequest::SeedPages { generation, step, pages: pages.to_vec() };
    let seeded = |replies: Vec<CopyReply>, want: u64| {
        assert!(matches!(replies[..], [CopyReply::Seeded { step, .. }] if step == want), "{replies:?}");
    };
    let begin = CopyRequest::SeedBegin { generation, step: 0, base: base.clone() };
    let replies = drive(&mut copy, vec![step(1, some)]);
    assert!(matches!(replies[..], [CopyReply::SeedLost { .. }]), "{replies:?}");
    seeded(drive(&mut copy, vec![begin.clone()]), 0);
    seeded(drive(&mut copy, vec![begin]), 0);
    seeded(drive(&mut copy, vec![step(2, rest)]), 0);
    seeded(drive(&mut copy, vec![step(1, some)]), 1);
    seeded(drive(&mut copy, vec![step(1, some)]), 1);
    copy.pages().trust();
    old.check_pages(&copy, old.end().end_lsn);
    seeded(drive(&mut copy, vec![CopyRequest::SeedEnd { generation, steps: 2 }]), 1);
    seeded(drive(&mut copy, vec![step(2, rest)]), 2);
    for _ in 0..2 {
        let replies = drive(&mut copy, vec![CopyRequest::SeedEnd { generation, steps: 2 }]);
        assert_eq!(acknowledged(&replies), Some(base.end));
    }
    assert_eq!(copy.state().history, base.history);
    world.check_pages(&copy, base.end.end_lsn);
    assert_eq!(disk.list().unwrap().iter().filter(|n| n.starts_with("log-")).count(), 0);
    // The log goes on behind the base, across a restart.
    let mut copy = open(&disk);
    assert_eq!(copy.state().end, base.end);
    assert_eq!(copy.state().first, base.end.seq.next());
    for _ in 0..30 {
        let frames = world.write();
        drive(&mut copy, vec![world.append(frames, LogEnd::EMPTY)]);
    }
    drive(&mut copy, vec![world.append(Vec::new(), world.end())]);
    let mut copy = open(&disk);
    drive(&mut copy, vec![world.append(Vec::new(), world.end())]);
    assert_eq!(whole_log(&mut copy), world.frames);
    world.check_pages(&copy, world.end().end_lsn);
    // Pages out of order end the seed, and nothing else.
    drive(&mut copy, vec![CopyRequest::SeedBegin { generation, step: 0, base }]);
    let replies = drive(&mut copy, vec![step(1, &[pages[1].clone(), pages[0].clone()])]);
    assert!(matches!(replies[..], [CopyReply::SeedLost { .. }]), "{replies:?}");
    world.check_pages(&copy, world.end().end_lsn);
}

#[test]
fn log_files_go_when_nobody_needs_them_and_restarts_do_not_pile_them_up() {
    let disk = disk(6);
    let mut copy = open(&disk);
    let mut world = World::founded(6);
    for _ in 0..120 {
        world.write();
    }
    world.fill(&mut copy);
    let log_files = |disk: &SimDisk| disk.list().unwrap().iter().filter(|n| n.starts_with("log-")).count();
    let before = log_files(&disk);
    assert!(before > 4, "{before} files");
    let trim = |world: &World, trim: Seq| CopyRequest::Append {
        generation: world.generation,
        frames: Vec::new(),
        vdl: world.end(),
        horizon: Lsn(0),
        trim,
        gate: None,
    };
    let half = Seq(world.end().seq.0 / 2);
    drive(&mut copy, vec![trim(&world, half)]);
    let first = copy.state().first;
    assert!(first > Seq(1) && first <= half);
    drive(&mut copy, vec![trim(&world, world.end().seq)]);
    assert!(log_files(&disk) < before && copy.state().first <= copy.manifest.flushed.seq.next(), "what is not in layers stays");
    let replies = drive(&mut copy, vec![CopyRequest::ReadLog { id: 7, from: Seq(1), bytes_max: 1 }]);
    assert!(matches!(replies[..], [CopyReply::LogTrimmed { id: 7, first }] if first == copy.state().first));
    let files = log_files(&disk);
    for _ in 0..20 {
        drop(open(&disk));
        copy = open(&disk);
        assert_eq!(copy.state().end, world.end());
        let frames = world.write();
        drive(&mut copy, vec![world.append(frames, LogEnd::EMPTY)]);
    }
    assert!(log_files(&disk) <= files + 10, "{} after 20 restarts, {files} before", log_files(&disk));
    copy = open(&disk);
    drive(&mut copy, vec![world.append(Vec::new(), world.end())]);
    world.check_pages(&copy, world.end().end_lsn);
    let first = copy.state().first;
    assert_eq!(whole_log(&mut copy), world.frames[usize::try_from(first.0 - 1).unwrap()..]);
}

#[test]
fn log_that_is_in_no_layer_is_never_trimmed() {
    let disk = disk(9);
    let mut copy = open(&disk);
    let mut world = World::founded(9);
    drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(1) }]);
    for _ in 0..60 {
        world.write();
    }
    for frames in world.frames.chunks(4) {
        let trim = world.end().seq;
        let (generation, frames) = (world.generation, frames.to_vec());
        drive(&mut copy, vec![CopyRequest::Append { generation, frames, vdl: LogEnd::EMPTY, horizon: Lsn(0), trim, gate: None }]);
    }
    assert_eq!(copy.state().first, Seq(1));
    assert_eq!(whole_log(&mut open(&disk)), world.frames);
}

#[test]
fn a_payload_that_is_no_redo_takes_the_copy_out_with_a_reason() {
    let disk = disk(8);
    let mut copy = open(&disk);
    let mut world = World::founded(8);
    world.fill(&mut copy);
    let mut pen = Pen::new(Epoch(1), world.generation, world.end(), 4096);
    world.frames.extend(pen.write(&[b"nonsense".to_vec()], false, UnixMicros(0)));
    let replies = drive(&mut copy, vec![world.append(world.frames.clone(), world.end())]);
    assert!(matches!(replies.last(), Some(CopyReply::Failed { reason }) if reason.contains("no redo")), "{replies:?}");
}

#[test]
fn the_same_on_real_files() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(&dir.path().join("a1")).unwrap());
    let mut world = World::founded(7);
    for _ in 0..60 {
        world.write();
    }
    let mut copy = Copy::open(Arc::clone(&disk), &Limits::tiny()).unwrap();
    world.fill(&mut copy);
    world.check_pages(&copy, world.end().end_lsn);
    drop(copy);
    let mut copy = Copy::open(Arc::clone(&disk), &Limits::tiny()).unwrap();
    assert_eq!(whole_log(&mut copy), world.frames);
    let new = world.cut(world.frames.len(), Generation(2));
    let replies = drive(&mut copy, vec![new.append(new.frames[new.frames.len() - 3..].to_vec(), new.end())]);
    assert_eq!(acknowledged(&replies), Some(new.end()));
    drop(copy);
    let mut copy = Copy::open(disk, &Limits::default()).unwrap();
    drive(&mut copy, vec![new.append(Vec::new(), new.end())]);
    new.check_pages(&copy, new.end().end_lsn);
}

#[test]
fn what_is_late_of_an_older_seed_is_no_part_of_a_newer_one_and_an_append_ends_a_seed() {
    let disk = Arc::new(SimDisk::new(8));
    let mut copy = open(&disk);
    let mut source = World::founded(6);
    source.generation = Generation(3);
    for _ in 0..40 {
        source.write();
    }
    let (mut world, base) = source.seeded();
    let generation = Generation(3);
    let pages = world.pages(base.end.end_lsn);
    let (some, rest) = pages.split_at(3);
    let begin = |step: u64| CopyRequest::SeedBegin { generation, step, base: base.clone() };
    let step = |step: u64, pages: &[(PageNo, Bytes)]| CopyRequest::SeedPages { generation, step, pages: pages.to_vec() };
    let seeded = |replies: Vec<CopyReply>, want: u64| {
        assert!(matches!(replies[..], [CopyReply::Seeded { step, .. }] if step == want), "{replies:?}");
    };
    seeded(drive(&mut copy, vec![begin(100)]), 100);
    seeded(drive(&mut copy, vec![begin(200)]), 200);
    // The older seed cut its pages elsewhere; taken as step 1 of the newer one they would leave a hole.
    seeded(drive(&mut copy, vec![step(101, rest)]), 200);
    seeded(drive(&mut copy, vec![begin(100)]), 200);
    seeded(drive(&mut copy, vec![step(201, some)]), 201);
    seeded(drive(&mut copy, vec![begin(200)]), 201);
    seeded(drive(&mut copy, vec![CopyRequest::SeedEnd { generation, steps: 101 }]), 201);
    seeded(drive(&mut copy, vec![step(202, rest)]), 202);
    assert_eq!(acknowledged(&drive(&mut copy, vec![CopyRequest::SeedEnd { generation, steps: 202 }])), Some(base.end));
    world.check_pages(&copy, base.end.end_lsn);
    // Frames that were acknowledged are not replaced by pages of before.
    seeded(drive(&mut copy, vec![begin(300)]), 300);
    seeded(drive(&mut copy, vec![step(301, &pages)]), 301);
    let frames = world.write();
    drive(&mut copy, vec![world.append(frames, LogEnd::EMPTY)]);
    let replies = drive(&mut copy, vec![CopyRequest::SeedEnd { generation, steps: 301 }]);
    assert!(matches!(replies[..], [CopyReply::SeedLost { .. }]), "{replies:?}");
    assert_eq!(copy.state().end, world.end());
}

#[test]
fn a_copy_whose_full_memtable_became_a_layer_tells_how_far_its_pages_are() {
    let world = World::sized(77, 300);
    let mut copy = open(&disk(77));
    drive(&mut copy, vec![CopyRequest::Raise { generation: world.generation }]);
    let mut replies = Vec::new();
    for frames in world.frames.chunks(4) {
        copy.handle(world.append(frames.to_vec(), frames[frames.len() - 1].log_end()), &mut replies);
        copy.flush(&mut replies);
        while copy.ingest(&mut replies) {}
    }
    // Two memtables are full, nobody writes them, and nothing more becomes pages.
    let stuck = copy.pages().ingested();
    assert!(stuck < world.end().end_lsn);
    replies.clear();
    while copy.ingest(&mut replies) {}
    assert!(replies.is_empty(), "nothing moved: {replies:?}");

    while copy.pages().ingested() < world.end().end_lsn {
        let job = copy.background_job().expect("a memtable is to be written");
        copy.finish(job.run(), &mut replies);
        replies.clear();
        while copy.ingest(&mut replies) {}
        let told =
            replies.iter().find_map(|r| if let CopyReply::Appended { end, ingested, .. } = r { Some((*end, *ingested)) } else { None });
        let now = copy.pages().ingested();
        assert!(told.is_none_or(|told| told == (world.end(), now)), "{told:?}, and its pages are up to {now}");
        assert!(told.is_some() || now == stuck, "it went on from {stuck} to {now} and nobody heard");
    }
}
