//! Reading everything again: whatever is not what was written is found, small things are healed, and no copy that is damaged is a source.

use super::*;
use crate::sim::disk::Fault;
use crate::volume::{CheckPlace, Digest};

/// A copy of a world with layers, several log files and a control state.
fn filled(disk: &Arc<SimDisk>, world: &World) -> Copy {
    let name = |n| crate::base::RegionName::new(n).unwrap();
    let home = identity::Home {
        cluster: crate::base::ClusterName::new("sun").unwrap(),
        region: name("here"),
        group: 0,
        slot: crate::base::CopyId(1),
    };
    if disk.list().unwrap().is_empty() {
        identity::settle(&**disk, &home, Incarnation(7)).unwrap();
    }
    let mut copy = open(disk);
    world.fill(&mut copy);
    let control = CopyRequest::PutControl { generation: world.generation, version: 1, control: Bytes::from_static(b"state") };
    drive(&mut copy, vec![control]);
    copy
}

fn world(seed: u64) -> World {
    World::sized(seed, 120)
}

/// Checks everything: what was found, and how many bytes were read.
fn check(copy: &mut Copy) -> (Vec<Damage>, u64) {
    let (mut found, mut read) = (Vec::new(), 0);
    let mut from: Option<CheckPlace> = None;
    loop {
        let mut next = None;
        for reply in drive(copy, vec![CopyRequest::Check { id: 1, from, bytes_max: 900 }]) {
            match reply {
                CopyReply::Checked { bytes, next: n, .. } => {
                    read += bytes;
                    next = n;
                }
                CopyReply::Damaged { damage } => found.push(damage),
                other => panic!("{other:?}"),
            }
        }
        let Some(place) = next else { return (found, read) };
        assert_ne!(from, Some(place), "it moves on");
        from = Some(place);
    }
}

fn used(disk: &SimDisk, name: &str) -> Vec<u8> {
    let bytes = disk.read(name, 0, usize::MAX).unwrap();
    bytes[..bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1)].to_vec()
}

#[test]
fn every_flipped_byte_of_every_file_is_found_and_what_is_small_is_healed() {
    let disk = disk(1);
    let world = world(1);
    let mut copy = filled(&disk, &world);
    let (found, read) = check(&mut copy);
    assert!(found.is_empty(), "{found:?}");
    let names = disk.list().unwrap();
    let whole: usize = names.iter().filter(|n| n.starts_with("l")).map(|n| used(&disk, n).len()).sum();
    assert!(read as usize > whole / 2, "{read} of {whole} bytes of layers and logs");
    let mut kinds = std::collections::BTreeMap::<&str, u32>::new();
    for name in &names {
        let bytes = used(&disk, name);
        // Of the many log files the oldest and the newest.
        let some_log = name.starts_with("log-") && name != &names[names.iter().position(|n| n.starts_with("log-")).unwrap()];
        let newest = names.iter().rfind(|n| n.starts_with("log-")) == Some(name);
        let step = if some_log && !newest { 17 } else { 3 };
        for at in (0..bytes.len()).step_by(step) {
            disk.flip(name, at as u64);
            let (found, _) = check(&mut copy);
            let kind = ["layer-", "log-", "MANIFEST", "promise", "control", "identity"].into_iter().find(|k| name.starts_with(k)).unwrap();
            *kinds.entry(kind).or_default() += 1;
            let [damage] = found.as_slice() else { panic!("{name} at {at}: {found:?}") };
            assert!(damage.file == *name || damage.file == "log" && kind == "log-", "{name} at {at}: {damage}");
            assert_eq!(damage.healed, !name.starts_with('l'), "{damage}");
            if !damage.healed {
                disk.flip(name, at as u64);
            }
            copy.damage = None;
        }
    }
    assert_eq!(kinds.len(), 6, "{kinds:?}");
    assert!(check(&mut copy).0.is_empty());
    drop(copy);
    open(&disk);
}

#[test]
fn a_lost_write_is_found_and_told_apart() {
    let world = world(2);
    let all = world.frames.len();
    // The last batch, an older promise, an older manifest, a block: acknowledged and not there.
    for what in ["log", "promise", "MANIFEST", "layer-"] {
        let disk = disk(3);
        let mut copy = open(&disk);
        drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(1) }]);
        let old = |name: &str| disk.read(name, 0, usize::MAX).ok();
        let (promise, manifest) = (old("promise").unwrap(), old("MANIFEST").unwrap());
        drop(copy);
        let mut copy = filled(&disk, &world);
        drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(5) }]);
        let back = |name: &str, bytes: Bytes| {
            disk.remove(name).unwrap();
            disk.write(name, 0, &[bytes]).unwrap();
            disk.sync(name).unwrap();
        };
        match what {
            "promise" => back("promise", promise),
            "MANIFEST" => back("MANIFEST", manifest),
            "log" => {
                let name = disk.list().unwrap().into_iter().filter(|n| n.starts_with("log-")).max().unwrap();
                let mut bytes = used(&disk, &name);
                let last = usize::try_from(record::frames_bytes(&*disk, &world.frames[all - 1..])).unwrap();
                let keep = bytes.len() - last;
                bytes[keep..].fill(0);
                back(&name, Bytes::from(bytes));
            }
            _ => {
                let meta = copy.manifest.layers[0].clone();
                let name = layer::name_of(meta.number);
                let mut bytes = disk.read(&name, 0, usize::MAX).unwrap().to_vec();
                bytes[..200].fill(0);
                back(&name, Bytes::from(bytes));
            }
        }
        let (found, _) = check(&mut copy);
        let [damage] = found.as_slice() else { panic!("{what}: {found:?}") };
        assert!(damage.file.starts_with(what), "{what}: {damage}");
        assert!(damage.lost_write || what == "layer-", "{what}: {damage}");
    }
}

/// Digests over everything at `at`, in ranges of four pages.
fn digests(copy: &mut Copy, at: Lsn) -> Result<Vec<Digest>, String> {
    let mut all = Vec::new();
    let mut from = Some(PageNo(0));
    while let Some(page) = from {
        let replies = drive(copy, vec![CopyRequest::Digest { id: 1, at, from: page, pages_max: 4 }]);
        match replies.into_iter().next().unwrap() {
            CopyReply::Digested { digest, .. } => {
                from = digest.next;
                all.push(digest);
            }
            CopyReply::Unreadable { reason, .. } => return Err(reason),
            other => panic!("{other:?}"),
        }
    }
    Ok(all)
}

#[test]
fn digests_tell_pages_and_not_how_they_lie_there() {
    let world = world(4);
    let at = world.end().end_lsn;
    let mut in_layers = filled(&disk(1), &world);
    let mut in_memory = Copy::open(disk(2) as Arc<dyn Disk>, &Limits { memtable_bytes_max: 1 << 20, ..Limits::tiny() }).unwrap();
    world.fill(&mut in_memory);
    let (mut seeded, base) = (open(&disk(3)), world.seeded().1);
    let seed = |pages: Vec<(PageNo, Bytes)>, step: u64| {
        vec![
            CopyRequest::SeedBegin { generation: Generation(1), step, base: base.clone() },
            CopyRequest::SeedPages { generation: Generation(1), step: step + 1, pages },
            CopyRequest::SeedEnd { generation: Generation(1), steps: step + 1 },
        ]
    };
    drive(&mut seeded, seed(world.pages(at), 1 << 32));
    let want = digests(&mut in_layers, at).unwrap();
    assert!(want.len() > 1 && want.iter().map(|d| d.pages).sum::<u32>() > 8);
    assert_eq!(digests(&mut in_memory, at).unwrap(), want);
    assert_eq!(digests(&mut seeded, at).unwrap(), want);
    // One byte in one page.
    let mut pages = world.pages(at);
    let mut other = pages[5].1.to_vec();
    other[0] ^= 1;
    pages[5].1 = Bytes::from(other);
    drive(&mut seeded, seed(pages, 2 << 32));
    let got = digests(&mut seeded, at).unwrap();
    assert_eq!(got.iter().zip(&want).filter(|(a, b)| a != b).count(), 1);
    assert!(digests(&mut seeded, Lsn(at.0 + 1)).unwrap_err().contains("wait"));
}

#[test]
fn who_is_not_trusted_is_read_by_nobody_until_it_was_rebuilt() {
    let disk = disk(5);
    let world = world(5);
    let at = world.end().end_lsn;
    let mut copy = filled(&disk, &world);
    let replies = drive(&mut copy, vec![CopyRequest::Distrust { generation: Generation(1), reason: "others differ".into() }]);
    assert!(replies.iter().any(|r| matches!(r, CopyReply::Damaged { damage } if damage.file == "pages")), "{replies:?}");
    drop(copy);
    // Nor after a restart; and whoever raises it is told again.
    let mut copy = open(&disk);
    let replies = drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(2) }]);
    assert!(matches!(replies.as_slice(), [CopyReply::Raised { .. }, CopyReply::Damaged { .. }]), "{replies:?}");
    assert!(matches!(copy.pages().read(PageNo(1), Lsn(1)), Err(ReadError::Distrusted { .. })));
    let read = CopyRequest::ReadPages { id: 7, at, from: PageNo(0), bytes_max: 1000 };
    assert!(matches!(drive(&mut copy, vec![read.clone()])[..], [CopyReply::Unreadable { id: 7, .. }]));
    // It still takes frames, and its log is as good as any.
    assert_eq!(whole_log(&mut copy), world.frames[usize::try_from(copy.state().first.0).unwrap() - 1..]);
    let base = world.seeded().1;
    let generation = Generation(2);
    drive(
        &mut copy,
        vec![
            CopyRequest::SeedBegin { generation, step: 1 << 32, base },
            CopyRequest::SeedPages { generation, step: (1 << 32) + 1, pages: world.pages(at) },
            CopyRequest::SeedEnd { generation, steps: (1 << 32) + 1 },
        ],
    );
    world.check_pages(&copy, at);
    drop(copy);
    let copy = open(&disk);
    assert!(copy.damage.is_none());
    world.check_pages(&copy, at);
}

#[test]
fn damage_that_is_met_is_told_and_the_copy_goes_on_as_far_as_it_can() {
    let disk = disk(6);
    let mut world = world(6);
    let mut copy = filled(&disk, &world);
    let name = layer::name_of(copy.manifest.layers[0].number);
    disk.flip(&name, 40);
    // A reader meets it, on another thread; the copy tells with the next thing it does, once.
    let pages = copy.pages();
    let woken = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = Arc::clone(&woken);
    pages.wake_on_damage(Box::new(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let bad = (0..PAGES).filter(|p| matches!(pages.read(PageNo(*p), world.end().end_lsn), Err(ReadError::Damaged { .. }))).count();
    assert!(bad > 0 && woken.load(std::sync::atomic::Ordering::Relaxed) > 0);
    let told = |replies: &[CopyReply]| replies.iter().filter(|r| matches!(r, CopyReply::Damaged { .. })).count();
    let mut replies = Vec::new();
    copy.ingest(&mut replies);
    assert_eq!(told(&replies), 1);
    // As a source it says that it cannot; nothing wrong comes from it.
    let read = CopyRequest::ReadPages { id: 7, at: world.end().end_lsn, from: PageNo(0), bytes_max: 100_000 };
    assert!(matches!(drive(&mut copy, vec![read])[..], [CopyReply::Unreadable { id: 7, .. }]));
    // Layers are merged no more, and frames are still acknowledged.
    drop(copy);
    copy = open(&disk);
    drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(1) }]);
    let mut merges_told = 0;
    for _ in 0..200 {
        let vdl = *copy.wal.end();
        let frames = world.write();
        let replies = drive(&mut copy, vec![world.append(frames.clone(), vdl)]);
        assert_eq!(acknowledged(&replies), Some(frames.last().unwrap().log_end()), "{replies:?}");
        merges_told += told(&replies);
    }
    assert!(merges_told == 1 && copy.failed().is_none() && copy.damage.is_some(), "{merges_told} {:?}", copy.damage);
    // A failed fsync is another matter: out at once.
    disk.fail_next(Fault::Failed);
    let frames = world.write();
    let replies = drive(&mut copy, vec![world.append(frames, LogEnd::EMPTY)]);
    assert!(replies.iter().any(|r| matches!(r, CopyReply::Failed { .. })) && copy.failed().is_some());
}
