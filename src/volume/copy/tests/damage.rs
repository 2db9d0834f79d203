//! Damage is found and told from a torn tail, and no damaged byte is ever served.

use super::*;
use crate::base::{ClusterName, CopyId, RegionName};
use crate::sim::disk::{Fault, Left};
use proptest::prelude::*;

fn log_names(disk: &SimDisk) -> Vec<String> {
    let mut names: Vec<String> = disk.list().unwrap().into_iter().filter(|n| n.starts_with("log-")).collect();
    names.sort();
    names
}

#[test]
fn damage_in_what_was_synced_is_never_taken_for_the_end() {
    let disk = disk(1);
    let mut world = World::founded(1);
    for _ in 0..25 {
        world.write();
    }
    let mut copy = open(&disk);
    drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(1) }]);
    let mut proven = Seq(0);
    for frames in world.frames.chunks(2) {
        proven = copy.state().end.seq;
        drive(&mut copy, vec![world.append(frames.to_vec(), LogEnd::EMPTY)]);
    }
    drop(copy);
    let names = log_names(&disk);
    assert!(names.len() > 1, "the test wants a file behind another");
    let mut damaged = 0;
    for name in &names {
        for at in 0..disk.len(name).unwrap().unwrap() {
            // Each on its own: damage, look, undo. The undo works because a damaged copy touches nothing, and one that opens
            // is opened from a disk of its own.
            let broken = clone_disk(&disk);
            broken.flip(name, at);
            match try_open(&broken) {
                Err(OpenError::Damaged { .. } | OpenError::Unsupported { .. }) => damaged += 1,
                Err(e) => panic!("{name} {at}: {e}"),
                Ok(mut copy) => {
                    let end = copy.state().end.seq;
                    assert!(end >= proven, "{name} at {at}: the log ends at {end}, {proven} was proven to be synced");
                    let log = whole_log(&mut copy);
                    assert_eq!(log[..], world.frames[..log.len()], "{name} at {at}");
                }
            }
        }
    }
    assert!(damaged > 2000, "{damaged}");
}

/// What is durable on `disk`, on a disk of its own.
fn clone_disk(disk: &SimDisk) -> Arc<SimDisk> {
    let new = disk.fork(9);
    for name in disk.list().unwrap() {
        new.sync(&name).unwrap();
    }
    Arc::new(new)
}

#[test]
fn a_missing_file_is_damage() {
    let disk = disk(2);
    let mut world = World::founded(2);
    for _ in 0..60 {
        world.write();
    }
    let mut copy = open(&disk);
    world.fill(&mut copy);
    assert!(!copy.manifest.layers.is_empty());
    drop(copy);
    let names = disk.list().unwrap();
    assert!(log_names(&disk).len() > 3);
    let newest_log = log_names(&disk).pop().unwrap();
    for name in names {
        let broken = clone_disk(&disk);
        broken.remove(&name).unwrap();
        match try_open(&broken) {
            Err(OpenError::Damaged { .. }) => {}
            Err(e) => panic!("without {name}: {e}"),
            // The oldest file may have been trimmed as well; nothing tells whether the newest ever was.
            Ok(copy) => assert!(name == newest_log || name == log_names(&disk)[0], "without {name}: {:?}", copy.state()),
        }
    }
}

#[test]
fn no_damaged_page_is_ever_served() {
    let disk = disk(3);
    let mut world = World::founded(3);
    for _ in 0..60 {
        world.write();
    }
    let mut copy = open(&disk);
    world.fill(&mut copy);
    let at = copy.manifest.flushed.end_lsn;
    drop(copy);
    let layers: Vec<String> = disk.list().unwrap().into_iter().filter(|n| n.starts_with("layer-")).collect();
    assert!(!layers.is_empty());
    let mut found = 0;
    for name in &layers {
        for offset in 0..disk.len(name).unwrap().unwrap() {
            let broken = clone_disk(&disk);
            broken.flip(name, offset);
            let Ok(copy) = try_open(&broken) else {
                found += 1;
                continue;
            };
            for page in (0..PAGES).map(PageNo) {
                match copy.pages().read(page, at) {
                    Ok(bytes) => assert_eq!(trimmed(&bytes), trimmed(world.image(at).get(&page).map_or(&[], |p| p)), "{name} {offset}"),
                    Err(ReadError::Damaged { .. }) => found += 1,
                    Err(e) => panic!("{e}"),
                }
            }
            assert!(matches!(copy.pages().scan(at, PageNo(0), usize::MAX), Err(ReadError::Damaged { .. })), "{name} {offset}");
        }
    }
    assert!(found > 1000);
}

#[test]
fn a_manifest_that_cannot_be_read_is_said_so() {
    let disk = disk(4);
    let mut copy = open(&disk);
    World::founded(4).fill(&mut copy);
    drop(copy);
    for name in [manifest::MANIFEST, manifest::PROMISE] {
        for at in 0..disk.len(name).unwrap().unwrap() {
            let broken = clone_disk(&disk);
            broken.flip(name, at);
            let e = try_open(&broken).err().expect("it is damaged");
            assert!(matches!(e, OpenError::Damaged { ref what, .. } if what == name), "{e}");
        }
    }
}

/// Files that only some directories have: no byte of them is without a checksum either.
#[test]
fn a_flipped_byte_in_a_mark_in_a_list_or_in_another_timelines_files_is_damage() {
    let (child, gone) = (TimelineId(7), TimelineId(9));
    let (cluster, region) = (ClusterName::new("sun").unwrap(), RegionName::new("us").unwrap());
    let home = identity::Home { cluster, region, group: 0, slot: CopyId(0) };
    let disk = disk(6);
    identity::settle(&*disk, &home, Incarnation(3)).unwrap();
    let mut copy = open(&disk);
    let world = World::sized(6, 30);
    world.fill(&mut copy);
    let (generation, at) = (world.generation, world.end());
    for child in [child, gone] {
        let replies = drive(&mut copy, vec![CopyRequest::Branch { generation, child, at }]);
        assert!(replies.iter().any(|r| matches!(r, CopyReply::Branched { .. })), "{replies:?}");
    }
    drive(&mut copy, vec![CopyRequest::DropBranch { generation, child: gone }]);
    drive(&mut copy, vec![CopyRequest::Distrust { generation, reason: "others differ".into() }]);
    drop(copy);
    identity::retire(&*disk, Incarnation(4), "/new").unwrap();
    let opens = |disk: &Arc<SimDisk>| -> Result<(), OpenError> {
        match identity::settle(&**disk, &home, Incarnation(5)) {
            Err(OpenError::Replaced { place, .. }) if place == "/new" => {}
            other => return Err(other.expect_err("it was replaced")),
        }
        let directory = Directory::open(Arc::clone(disk) as Arc<dyn Disk>)?;
        for timeline in [TimelineId::ROOT, child] {
            Copy::open_in(&directory, GroupId(0), timeline, &Limits::tiny())?;
        }
        Ok(())
    };
    opens(&clone_disk(&disk)).unwrap();
    for name in ["identity", "replaced", "distrust", "dropped", "t0000000000000007-MANIFEST", "t0000000000000007-promise"] {
        for at in 0..disk.len(name).unwrap().expect("there is such a file") {
            let broken = clone_disk(&disk);
            broken.flip(name, at);
            let e = opens(&broken).err().unwrap_or_else(|| panic!("{name} at {at}: nobody found it"));
            assert!(matches!(&e, OpenError::Damaged { what, .. } if name.ends_with(what.as_str())), "{name} at {at}: {e}");
        }
    }
}

/// The call fails behind its effect: a copy that is opened again finds what it was about to store, and whatever it answers from then on must
/// be true after a power cut, also when nothing else is ever stored.
#[test]
fn what_a_failed_sync_of_the_directory_left_is_durable_before_a_copy_relies_on_it() {
    let (g2, control) = (Generation(2), Bytes::from_static(b"who may write"));
    let mut failed = 0;
    for n in 1..60 {
        let disk = disk(n);
        let mut world = World::sized(n, 20);
        let mut copy = open(&disk);
        world.fill(&mut copy);
        let had = world.end();
        drop(copy);
        // Its log is proven to its end: to open it once more writes nothing, and syncs no name in passing.
        let mut copy = open(&disk);
        world.generation = g2;
        world.control(&ControlFrame::GenerationStart);
        let requests = [
            CopyRequest::Raise { generation: g2 },
            CopyRequest::PutControl { generation: g2, version: 3, control: control.clone() },
            world.append(world.frames[usize::try_from(had.seq.0).unwrap()..].to_vec(), had),
        ];
        disk.fail_at(n, Fault::NamesUnsynced);
        requests.iter().for_each(|request| drop(drive(&mut copy, vec![request.clone()])));
        disk.forget_faults();
        failed += u32::from(copy.failed().is_some());
        drop(copy);

        let mut copy = open(&disk);
        for request in requests {
            let replies = drive(&mut copy, vec![request]);
            let after = open(&Arc::new(disk.image(Left::Synced, n))).state();
            let promised = open(&Arc::new(disk.image(Left::Synced, n))).promised();
            for reply in replies {
                match reply {
                    CopyReply::Raised { generation, state } => {
                        assert!(promised >= generation, "call {n}: {generation:?} was promised, and is {promised:?}");
                        assert!(after.end >= state.end && after.control_version >= state.control_version, "call {n}: {after:?} {state:?}");
                    }
                    CopyReply::ControlStored { version, .. } => assert_eq!(after.control_version, version, "call {n}"),
                    CopyReply::Appended { end, .. } => assert_eq!(after.end, end, "call {n}"),
                    other => panic!("call {n}: {other:?}"),
                }
            }
        }
    }
    assert!(failed > 3, "{failed}");
}

#[test]
fn a_disk_that_fails_at_any_call_takes_the_copy_out_until_it_is_opened_anew() {
    for fault in [Fault::Full, Fault::Failed] {
        for n in 1.. {
            let disk = disk(n);
            let mut world = World::founded(n);
            let mut copy = open(&disk);
            drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(1) }]);
            disk.fail_at(n, fault);
            let mut acked = LogEnd::EMPTY;
            let mut failed = false;
            for _ in 0..12 {
                let vdl = acked;
                let frames = world.write();
                let from = usize::try_from(frames[0].seq().0 - 1).unwrap();
                let from = if from == 1 { 0 } else { from };
                let replies = drive(&mut copy, vec![world.append(world.frames[from..].to_vec(), vdl)]);
                acked = acknowledged(&replies).unwrap_or(acked);
                failed |= replies.iter().any(|r| matches!(r, CopyReply::Failed { .. }));
                if failed {
                    break;
                }
            }
            if !failed {
                assert!(n > 20, "the test meets every call");
                break;
            }
            let calls = disk.calls();
            let replies = drive(&mut copy, vec![world.append(Vec::new(), acked), CopyRequest::Raise { generation: Generation(9) }]);
            assert!(replies.iter().all(|r| matches!(r, CopyReply::Failed { .. })), "{replies:?}");
            assert_eq!(disk.calls(), calls, "it writes nothing any more");
            // The page cache still shows what the failed sync did not write. It must be written again before it counts.
            let mut copy = open(&disk);
            let end = copy.state().end;
            assert!(end.seq >= acked.seq, "{end} {acked}");
            disk.crash();
            disk.restart();
            drop(copy);
            copy = open(&disk);
            assert_eq!(copy.state().end, end, "call {n}: what was said when it was opened is on the disk");
            let kept = usize::try_from(end.seq.0).unwrap();
            assert_eq!(whole_log(&mut copy), world.frames[..kept]);
            drive(&mut copy, vec![world.append(world.frames[kept.saturating_sub(1)..].to_vec(), world.end())]);
            drive(&mut copy, vec![world.append(Vec::new(), world.end())]);
            world.check_pages(&copy, world.end().end_lsn);
        }
    }
}

proptest! {
    #[test]
    fn no_garbage_in_any_file_makes_opening_panic(
        which in 0usize..4,
        at in 0u64..600,
        bytes in proptest::collection::vec(any::<u8>(), 1..120),
    ) {
        let disk = disk(5);
        let mut world = World::founded(5);
        for _ in 0..30 {
            world.write();
        }
        let mut copy = open(&disk);
        world.fill(&mut copy);
        drop(copy);
        let names = disk.list().unwrap();
        let prefix = ["layer-", "log-", "MANIFEST", "promise"][which];
        let name = names.iter().rev().find(|n| n.starts_with(prefix)).unwrap();
        disk.write(name, at, &[Bytes::from(bytes)]).unwrap();
        if let Ok(copy) = try_open(&disk) {
            for page in (0..PAGES).map(PageNo) {
                let _ = copy.pages().read(page, copy.pages().ingested());
            }
        }
    }
}
