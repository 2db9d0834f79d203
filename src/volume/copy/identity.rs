//! Who a copy's directory is: drawn once, when the directory is made, and never changed again.
//!
//! Decides whether a directory may be opened where it was found: another region's or another slot's is refused, and so is one that
//! was replaced. Never decides whether it may vote: the region's membership does, by the incarnation that stands here
//! (`volume/membership.rs`). Called by whoever opens copies, before [`super::Copy::open`].
//!
//! Two files: `identity` before anything else is written to a new directory, so that a directory with data and without identity
//! is damaged; `replaced` when the copy retired, so that nobody takes what lies here for what it was.

use super::OpenError;
use super::manifest::{self, MANIFEST, TEMPORARY, publish};
use super::{codec, wal};
use crate::base::{ClusterName, CopyId, RegionName};
use crate::volume::membership::Incarnation;
use crate::volume::{Disk, DiskError};
use std::fmt;

/// The file of a directory's identity: the only one in a new directory.
pub const IDENTITY: &str = "identity";
const REPLACED: &str = "replaced";
const IDENTITY_MAGIC: [u8; 4] = *b"PHLI";
const REPLACED_MAGIC: [u8; 4] = *b"PHLX";
const VERSION: u16 = 1;
/// Longest sentence kept beside a replaced copy; what names a place is cut to it.
const PLACE_BYTES_MAX: usize = 4096;

/// The place that a directory has in a global cluster.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Home {
    pub cluster: ClusterName,
    pub region: RegionName,
    /// Protection group, from 0.
    pub group: u32,
    pub slot: CopyId,
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            0 => write!(f, "copy {} of region {} (global cluster {})", self.slot, self.region, self.cluster),
            g => write!(f, "copy {} of group {g} of region {} (global cluster {})", self.slot, self.region, self.cluster),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Identity {
    home: Home,
    pub(super) incarnation: Incarnation,
}

/// Who took the place of a copy that retired.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
struct Replaced {
    by: Incarnation,
    place: String,
}

/// Sees to it that the directory on `disk` is that of `home`. A new and empty one becomes it, with the incarnation `fresh`.
///
/// # Errors
/// [`OpenError::Misplaced`] when it is somebody else's, [`OpenError::Replaced`] when it retired, [`OpenError::Damaged`] when its identity
/// is missing beside data or cannot be read.
pub fn settle(disk: &dyn Disk, home: &Home, fresh: Incarnation) -> Result<Incarnation, OpenError> {
    if let Some(replaced) = manifest::read_checked::<Replaced>(disk, REPLACED, REPLACED_MAGIC)? {
        return Err(OpenError::Replaced { home: home.to_string(), by: replaced.by.to_string(), place: replaced.place });
    }
    if let Some(identity) = load(disk)? {
        if identity.home != *home {
            return Err(OpenError::Misplaced { is: identity.home.to_string(), wanted: home.to_string() });
        }
        return Ok(identity.incarnation);
    }
    let names = disk.list()?;
    let held = names.iter().find(|n| !n.ends_with(TEMPORARY) && (*n == MANIFEST || *n == manifest::PROMISE || wal::number_of(n).is_some()));
    if held.is_some() {
        return Err(OpenError::Damaged { what: IDENTITY.into(), reason: "it is missing beside data".into() });
    }
    let identity = Identity { home: home.clone(), incarnation: fresh };
    store(disk, &identity)?;
    Ok(fresh)
}

/// Marks the directory as that of a copy that was replaced: it is never opened again.
///
/// # Errors
/// [`DiskError`]
pub fn retire(disk: &dyn Disk, by: Incarnation, place: &str) -> Result<(), DiskError> {
    let mut place = place.to_owned();
    place.truncate(place.floor_char_boundary(PLACE_BYTES_MAX));
    publish(disk, REPLACED, codec::encode(REPLACED_MAGIC, VERSION, &Replaced { by, place }))
}

pub(super) fn store(disk: &dyn Disk, identity: &Identity) -> Result<(), DiskError> {
    publish(disk, IDENTITY, codec::encode(IDENTITY_MAGIC, VERSION, identity))
}

/// `None` where none was ever settled.
pub(super) fn load(disk: &dyn Disk) -> Result<Option<Identity>, OpenError> {
    let identity: Option<Identity> = manifest::read_checked(disk, IDENTITY, IDENTITY_MAGIC)?;
    match identity {
        Some(i) if !CopyId::all().contains(&i.home.slot) => {
            Err(OpenError::Damaged { what: IDENTITY.into(), reason: "it names a copy that is none of six".into() })
        }
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::disk::SimDisk;
    use proptest::prelude::*;

    fn home(region: &str, slot: u8) -> Home {
        Home { cluster: ClusterName::new("sun").unwrap(), region: RegionName::new(region).unwrap(), group: 0, slot: CopyId(slot) }
    }

    #[test]
    fn a_new_directory_is_settled_once_and_says_who_it_is_for_ever() {
        let disk = SimDisk::new(1);
        let a1 = home("us-east", 0);
        assert_eq!(settle(&disk, &a1, Incarnation(7)), Ok(Incarnation(7)));
        assert_eq!(settle(&disk, &a1, Incarnation(8)), Ok(Incarnation(7)));
        disk.crash();
        disk.restart();
        assert_eq!(settle(&disk, &a1, Incarnation(9)), Ok(Incarnation(7)));
    }

    #[test]
    fn another_slots_or_regions_directory_is_refused_with_where_it_belongs() {
        let disk = SimDisk::new(1);
        settle(&disk, &home("us-east", 0), Incarnation(7)).unwrap();
        for (wrong, words) in
            [(home("us-east", 3), "b2"), (home("eu-west", 0), "eu-west"), (Home { group: 1, ..home("us-east", 0) }, "group 1")]
        {
            let e = settle(&disk, &wrong, Incarnation(8)).unwrap_err().to_string();
            assert!(e.contains("copy a1 of region us-east") && e.contains(words) && e.contains("Move it"), "{e}");
        }
    }

    #[test]
    fn a_replaced_directory_is_never_opened_again() {
        let disk = SimDisk::new(1);
        let a1 = home("us-east", 0);
        settle(&disk, &a1, Incarnation(7)).unwrap();
        retire(&disk, Incarnation(8), "/mnt/new").unwrap();
        let e = settle(&disk, &a1, Incarnation(9)).unwrap_err().to_string();
        assert!(e.contains("was replaced") && e.contains("/mnt/new") && e.contains("ove it away"), "{e}");
    }

    #[test]
    fn data_without_an_identity_is_damage() {
        let disk = SimDisk::new(1);
        manifest::store_promise(&disk, crate::base::Generation(4)).unwrap();
        assert!(matches!(settle(&disk, &home("us-east", 0), Incarnation(7)), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn power_lost_while_settling_leaves_nothing_or_all() {
        for cut in 1..8 {
            let disk = SimDisk::new(cut);
            disk.cut_power_at(cut);
            let first = settle(&disk, &home("us-east", 0), Incarnation(7));
            disk.crash();
            disk.restart();
            disk.forget_faults();
            let second = settle(&disk, &home("us-east", 0), Incarnation(8)).unwrap();
            assert!(second == Incarnation(7) || first.is_err(), "cut at {cut}: {first:?}, then {second}");
        }
    }

    proptest! {
        #[test]
        fn flipped_bits_and_garbage_are_damage_and_never_an_identity(at in 0usize..200, bit in 0u8..8, garbage in proptest::collection::vec(any::<u8>(), 0..120)) {
            let disk = SimDisk::new(1);
            let a1 = home("us-east", 0);
            settle(&disk, &a1, Incarnation(7)).unwrap();
            let mut bytes = disk.read(IDENTITY, 0, 4096).unwrap().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            publish(&disk, IDENTITY, bytes.into()).unwrap();
            prop_assert!(settle(&disk, &a1, Incarnation(8)).is_err());
            publish(&disk, IDENTITY, garbage.into()).unwrap();
            prop_assert!(settle(&disk, &a1, Incarnation(8)).is_err());
        }
    }
}
