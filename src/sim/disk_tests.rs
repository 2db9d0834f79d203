//! What is left of a simulated disk, and what fails on it, is what was ordered.

use super::*;

fn write(disk: &SimDisk, name: &str, offset: u64, bytes: &'static [u8]) {
    disk.write(name, offset, &[Bytes::from_static(bytes)]).unwrap();
}

#[test]
fn what_was_synced_survives_and_the_rest_is_kept_torn_or_gone() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        write(&disk, "a", 0, b"synced");
        disk.sync("a").unwrap();
        write(&disk, "a", 6, b"late");
        write(&disk, "never synced", 0, b"x");
        disk.crash();
        assert!(disk.read("a", 0, 1).is_err(), "the power is off");
        disk.restart();
        let got = disk.read("a", 0, 100).unwrap();
        assert!(got.starts_with(b"synced"));
        seen.insert(got.len());
        assert_eq!(disk.len("never synced").unwrap(), None);
    }
    assert!(seen.contains(&6) && seen.contains(&10) && seen.len() > 2, "{seen:?}");
}

#[test]
fn a_failed_sync_reads_back_and_is_lost_even_after_a_later_sync() {
    let disk = SimDisk::new(1);
    write(&disk, "a", 0, b"one");
    disk.sync("a").unwrap();
    write(&disk, "a", 3, b"two");
    disk.fail_next(Fault::Failed);
    assert!(disk.sync("a").is_err());
    assert_eq!(disk.read("a", 0, 100).unwrap(), "onetwo");
    disk.sync("a").unwrap();
    disk.crash();
    disk.restart();
    assert_eq!(disk.read("a", 0, 100).unwrap(), "one");
}

#[test]
fn a_name_whose_directory_was_not_synced_is_seen_and_goes_with_the_power_unless_it_is_synced_later() {
    for synced in [false, true] {
        let disk = SimDisk::plain(2);
        for (name, bytes) in [("a", &b"old"[..]), ("b", b"gone"), ("a.tmp", b"new"), ("never", b"x")] {
            write(&disk, name, 0, bytes);
            if name != "never" {
                disk.sync(name).unwrap();
            }
        }
        for call in [&|d: &SimDisk| d.rename("a.tmp", "a") as Result<(), DiskError>, &|d| d.remove("b"), &|d| d.sync("never")]
            as [&dyn Fn(&SimDisk) -> _; 3]
        {
            disk.fail_next(Fault::NamesUnsynced);
            assert!(call(&disk).is_err());
        }
        assert_eq!((disk.read("a", 0, 9).unwrap(), disk.len("b").unwrap(), disk.len("a.tmp").unwrap()), ("new".into(), None, None));
        assert!(disk.has_unsynced());
        if synced {
            disk.sync_names().unwrap();
            assert!(!disk.has_unsynced());
        }
        let image = disk.image(Left::Cached, 1).image(Left::Synced, 1);
        let found = (image.read("a", 0, 9).unwrap(), image.len("b").unwrap(), image.len("a.tmp").unwrap(), image.len("never").unwrap());
        let wanted = if synced { ("new".into(), None, None, Some(1)) } else { ("old".into(), Some(4), Some(3), None) };
        assert_eq!(found, wanted);
    }
}

#[test]
fn an_image_shows_what_each_loss_leaves_and_the_disk_goes_on() {
    let disk = SimDisk::new(7);
    write(&disk, "a", 0, b"synced");
    disk.sync("a").unwrap();
    write(&disk, "a", 6, &[7; 64]);
    write(&disk, "a", 70, b"later");
    write(&disk, "new", 0, b"x");
    let all = disk.read("a", 0, 100).unwrap();
    let (mut torn, mut reordered, mut holes) = (0, 0, 0);
    for seed in 0..200 {
        assert_eq!(disk.image(Left::Cached, seed).read("a", 0, 100).unwrap(), all);
        let synced = disk.image(Left::Synced, seed);
        assert_eq!((synced.read("a", 0, 100).unwrap(), synced.len("new").unwrap()), (Bytes::from_static(b"synced"), None));
        let prefix = disk.image(Left::Prefix, seed).read("a", 0, 100).unwrap();
        torn += u32::from(prefix.len() > 7 && prefix[6..].iter().filter(|b| **b == 7).count() < 64);
        let subset = disk.image(Left::Subset, seed).read("a", 0, 100).unwrap();
        reordered += u32::from(subset.len() == 75 && subset[6..70] == [0; 64]);
        let sectors = disk.image(Left::Sectors, seed).read("a", 0, 100).unwrap();
        holes += u32::from(sectors.len() > 60 && sectors[6..16] == [0; 10] && sectors[16..32] == [7; 16]);
        assert!(sectors.starts_with(b"synced"));
    }
    assert!(torn > 10 && reordered > 20 && holes > 3, "{torn} {reordered} {holes}");
    assert_eq!(disk.read("a", 0, 100).unwrap(), all);
}

#[test]
fn a_quota_and_a_read_error_are_met_where_they_were_ordered() {
    let disk = SimDisk::new(8);
    disk.set_quota(Some(10));
    write(&disk, "a", 0, b"12345678");
    assert!(matches!(disk.allocate("b", 3), Err(DiskError::Full { .. })));
    write(&disk, "a", 0, b"overwritten"[..8].into());
    assert_eq!(disk.used_bytes(), 8);
    disk.set_quota(None);
    disk.allocate("b", 3).unwrap();
    disk.fail_read_at(2);
    assert!(disk.len("a").is_ok() && disk.read("a", 0, 1).is_err() && disk.read("a", 0, 1).is_ok());
}

#[test]
fn the_power_goes_at_the_call_that_was_named() {
    let disk = SimDisk::new(3);
    disk.cut_power_at(2);
    write(&disk, "a", 0, b"x");
    assert!(disk.sync("a").is_err());
    assert!(disk.is_down() && disk.list().is_err());
    disk.restart();
    assert!(disk.list().is_ok());
}
