//! Two slots for one small state that must never be lost nor go back: what a witness has promised.
//!
//! Decides: which of two slots holds the newest state, and when neither can be believed. Never looks into the state. Driven by the
//! witness, which answers nothing before [`Slots::put`] has returned.
//!
//! A state is written to one slot and synced, then to the other and synced. So whatever tears a write or flips a bit in one of them, the
//! other holds what was promised last: a single slot in rotation would turn a flipped bit into a forgotten promise. Space is reserved when
//! the slots are made, so that a full disk cannot keep a promise from being written.
//!
//! ```text
//!  0  4  magic PHLV       4  2  version 1        6  2  reserved, 0
//!  8  8  sequence, grows with every state       16 16  identity of the directory, random
//! 32  4  length of the state                    36  4  CRC32C of the 36 bytes before it, of the owner and of the state
//! 40  -  the state
//! ```
//! On a disk with a cipher the version is 2, and the state is sealed: nonce 12 | state | tag 16. The checksum is that of what lies there.
//! The owner (cluster and name) is in the checksum and not in the file: a slot that was put under another's name is damaged.
//! A third file, `made`, is written when both slots are there: with it and without a readable slot, something was lost.

use crate::volume::{Disk, DiskError, SEAL_BYTES};
use bytes::Bytes;
use std::sync::Arc;

const SLOTS: [&str; 2] = ["voter-0", "voter-1"];
const MADE: &str = "made";
const MADE_NEW: &str = "made.new";
const MAGIC: [u8; 4] = *b"PHLV";
const VERSION: u16 = 1;
/// The state is sealed.
const VERSION_SEALED: u16 = 2;
const HEADER_BYTES: usize = 40;
/// Longest state.
pub const SLOT_STATE_BYTES_MAX: usize = 1 << 20;

/// Why the slots cannot be used. The witness must not vote.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    #[error("{0}")]
    Disk(#[from] DiskError),
    #[error(
        "both slots of what this witness has promised are damaged ({first}; {second}): it must not vote, since it may have promised what it no longer knows. \
         Bring back its directory as it was at the end, or remove the directory and put a witness of another name in its place"
    )]
    BothBad { first: String, second: String },
    #[error("the slots are of format version {0}, which this parhelion does not read; use the version that wrote them, or a newer one")]
    Version(u16),
    #[error("after an earlier failure nothing is known about the slots any more; start this process again")]
    Broken,
}

/// See the module.
pub struct Slots {
    disk: Arc<dyn Disk>,
    owner: String,
    identity: [u8; 16],
    sequence: u64,
    state: Option<Bytes>,
    /// What was wrong with one of them when they were opened; a sentence.
    damage: Option<String>,
    broken: bool,
}

struct Slot {
    sequence: u64,
    identity: [u8; 16],
    state: Bytes,
}

enum Read {
    Good(Slot),
    Bad(String),
    Unsupported(u16),
}

impl Slots {
    /// Opens the slots on `disk`, or makes them where there never were any. `owner` says whose they are, `fresh` is random.
    ///
    /// # Errors
    /// [`SlotsError`]: then nobody may vote with them.
    pub fn open(disk: Arc<dyn Disk>, owner: &str, fresh: [u8; 16]) -> Result<Slots, SlotsError> {
        // `made` may be here by a rename whose sync failed; after a crash it would be gone, and everything promised since taken for nothing.
        disk.sync_names()?;
        let mut slots = Slots { disk, owner: owner.to_owned(), identity: fresh, sequence: 0, state: None, damage: None, broken: false };
        if slots.disk.len(MADE)?.is_none() {
            // Whatever lies here was never promised by anybody: no answer left before this file was there.
            slots.make()?;
            return Ok(slots);
        }
        let newest = match (slots.read(SLOTS[0])?, slots.read(SLOTS[1])?) {
            (Read::Unsupported(version), _) | (_, Read::Unsupported(version)) => return Err(SlotsError::Version(version)),
            (Read::Bad(first), Read::Bad(second)) => return Err(SlotsError::BothBad { first, second }),
            (Read::Good(one), Read::Bad(why)) | (Read::Bad(why), Read::Good(one)) => {
                slots.damage = Some(why);
                one
            }
            (Read::Good(a), Read::Good(b)) if a.identity != b.identity => {
                let why = || "the two are of different directories".to_owned();
                return Err(SlotsError::BothBad { first: why(), second: why() });
            }
            (Read::Good(a), Read::Good(b)) => {
                if a.sequence >= b.sequence {
                    a
                } else {
                    b
                }
            }
        };
        (slots.identity, slots.sequence) = (newest.identity, newest.sequence);
        // Both again, also after a crash between the two: what was read here may be acted on, so it must be as safe as any.
        let state = newest.state;
        if state.is_empty() {
            slots.put_bytes(&state)?;
        } else {
            slots.put(&state)?;
        }
        Ok(slots)
    }

    /// The state that was put last; `None`: there never was one.
    #[must_use]
    pub fn state(&self) -> Option<&Bytes> {
        self.state.as_ref()
    }

    /// What was wrong with one of the slots and has been mended; a sentence for the log.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Drawn when the directory was made.
    #[must_use]
    pub fn identity(&self) -> u128 {
        u128::from_le_bytes(self.identity)
    }

    /// Keeps `state`. When it returns, both slots hold it.
    ///
    /// # Errors
    /// When the disk fails: then it is not known what is kept, and these slots do nothing any more.
    pub fn put(&mut self, state: &Bytes) -> Result<(), SlotsError> {
        assert!(!state.is_empty() && state.len() <= SLOT_STATE_BYTES_MAX, "BUG: a state of {} bytes", state.len());
        self.put_bytes(state)?;
        self.state = Some(state.clone());
        Ok(())
    }

    fn put_bytes(&mut self, state: &Bytes) -> Result<(), SlotsError> {
        if self.broken {
            return Err(SlotsError::Broken);
        }
        self.broken = true;
        self.sequence += 1;
        let kept = match self.disk.cipher() {
            None => state.clone(),
            Some(cipher) => Bytes::from(cipher.seal(self.owner.as_bytes(), state)?),
        };
        let header = self.header(&kept);
        for name in SLOTS {
            self.disk.write(name, 0, &[header.clone(), kept.clone()])?;
            self.disk.sync(name)?;
        }
        self.broken = false;
        Ok(())
    }

    fn make(&mut self) -> Result<(), SlotsError> {
        for name in SLOTS {
            self.disk.remove(name)?;
            self.disk.allocate(name, (HEADER_BYTES + self.kept_bytes_max()) as u64)?;
        }
        self.put_bytes(&Bytes::new())?;
        self.disk.remove(MADE_NEW)?;
        self.disk.write(MADE_NEW, 0, &[Bytes::copy_from_slice(self.owner.as_bytes())])?;
        self.disk.sync(MADE_NEW)?;
        self.disk.rename(MADE_NEW, MADE)?;
        Ok(())
    }

    fn version(&self) -> u16 {
        if self.disk.cipher().is_some() { VERSION_SEALED } else { VERSION }
    }

    fn kept_bytes_max(&self) -> usize {
        SLOT_STATE_BYTES_MAX + if self.disk.cipher().is_some() { SEAL_BYTES } else { 0 }
    }

    fn header(&self, state: &[u8]) -> Bytes {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&self.version().to_le_bytes());
        header.extend_from_slice(&[0, 0]);
        header.extend_from_slice(&self.sequence.to_le_bytes());
        header.extend_from_slice(&self.identity);
        header.extend_from_slice(&u32::try_from(state.len()).expect("BUG: bounded").to_le_bytes());
        let sum = self.sum(&header, state);
        header.extend_from_slice(&sum.to_le_bytes());
        header.into()
    }

    fn sum(&self, header: &[u8], state: &[u8]) -> u32 {
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..HEADER_BYTES - 4]), self.owner.as_bytes());
        crc32c::crc32c_append(sum, state)
    }

    fn read(&self, name: &str) -> Result<Read, SlotsError> {
        let bad = |why: &str| Ok(Read::Bad(format!("{name}: {why}")));
        let head = match self.disk.read(name, 0, HEADER_BYTES) {
            Ok(head) => head,
            Err(DiskError::NotFound { .. }) => return bad("it is not there"),
            // What cannot be read counts as damaged, as everywhere; the other slot is there for that.
            Err(DiskError::Failed { reason, .. }) => return bad(&format!("it cannot be read: {reason}")),
            Err(e) => return Err(e.into()),
        };
        if head.len() < HEADER_BYTES || head[..4] != MAGIC {
            return bad("it is no slot");
        }
        let field = |from: usize, n: usize| &head[from..from + n];
        let length = u32::from_le_bytes(field(32, 4).try_into().expect("BUG: four bytes")) as usize;
        if length > self.kept_bytes_max() {
            return bad("its length is beyond the limit");
        }
        let state = match self.disk.read(name, HEADER_BYTES as u64, length) {
            Ok(state) if state.len() == length => state,
            Ok(_) => return bad("it is cut off"),
            Err(e) => return bad(&format!("it cannot be read: {e}")),
        };
        if field(36, 4) != self.sum(&head, &state).to_le_bytes() {
            return bad("the checksum does not match");
        }
        let version = u16::from_le_bytes(field(4, 2).try_into().expect("BUG: two bytes"));
        if version != self.version() {
            return Ok(Read::Unsupported(version));
        }
        let state = match self.disk.cipher() {
            None => state,
            Some(cipher) => match cipher.open(self.owner.as_bytes(), &state) {
                Some(state) => Bytes::from(state),
                None => return bad("its seal does not hold"),
            },
        };
        let sequence = u64::from_le_bytes(field(8, 8).try_into().expect("BUG: eight bytes"));
        Ok(Read::Good(Slot { sequence, identity: field(16, 16).try_into().expect("BUG: sixteen bytes"), state }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;
    use crate::io::disk::FileDisk;
    use crate::sim::disk::{Fault, Left, SimDisk};

    const OWNER: &str = "sun/witness";

    fn open(disk: &Arc<SimDisk>) -> Result<Slots, SlotsError> {
        Slots::open(Arc::clone(disk) as Arc<dyn Disk>, OWNER, [9; 16])
    }

    fn state(n: u64) -> Bytes {
        let mut text = format!("state {n} ").into_bytes();
        // Of different lengths, and of several sectors: so a torn one is neither the old nor the new one.
        text.resize(20 + usize::try_from(n * 97 % 3000).unwrap(), b'0' + u8::try_from(n % 10).unwrap());
        text.into()
    }

    fn number(state: Option<&Bytes>) -> u64 {
        let Some(state) = state else { return 0 };
        let text = std::str::from_utf8(state).unwrap();
        let n = text.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(*state, super::tests::state(n), "whole");
        n
    }

    #[test]
    fn what_was_put_is_there_wherever_the_power_goes() {
        let mut torn = 0;
        for seed in 0..400u64 {
            let mut prng = Prng::new(seed);
            let disk = Arc::new(SimDisk::new(seed));
            disk.cut_power_at(prng.between(1, 40));
            let mut kept = 0;
            let mut tried = 0;
            let mut put_all = || -> Result<(), SlotsError> {
                let mut slots = open(&disk)?;
                for n in 1..=8 {
                    tried = n;
                    slots.put(&state(n))?;
                    kept = n;
                }
                Ok(())
            };
            if put_all().is_ok() {
                disk.crash();
            }
            let left = [Left::Synced, Left::Subset, Left::Prefix, Left::Sectors][usize::try_from(seed % 4).unwrap()];
            let after = Arc::new(disk.image(left, seed ^ 77));
            let slots = open(&after).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            let found = number(slots.state());
            assert!(found >= kept && found <= tried, "seed {seed}: {kept} was promised and {found} is there");
            torn += usize::from(slots.damage().is_some());
            drop(slots);
            // And once more: what was read is as safe as what was put.
            let again = open(&Arc::new(after.image(Left::Synced, 1))).unwrap();
            assert_eq!(number(again.state()), found, "seed {seed}");
        }
        assert!(torn > 5, "the cuts hit slots that were being written: {torn}");
    }

    #[test]
    fn one_flipped_bit_costs_nothing_and_two_slots_stop_the_witness() {
        let disk = Arc::new(SimDisk::new(1));
        let mut slots = open(&disk).unwrap();
        for n in 1..=3 {
            slots.put(&state(n)).unwrap();
        }
        let end = HEADER_BYTES as u64 + state(3).len() as u64;
        for name in SLOTS {
            for at in (0..end).step_by(3).filter(|at| !(6..8).contains(at)) {
                let damaged = Arc::new(disk.fork(at));
                assert!(damaged.flip_bits(name, at, 1 << (at % 8)));
                let opened = match open(&damaged) {
                    // The version is read only under a good checksum.
                    Ok(opened) => opened,
                    Err(e) => panic!("{name} at {at}: {e}"),
                };
                assert_eq!(number(opened.state()), 3, "{name} at {at}");
                assert!(opened.damage().is_some(), "{name} at {at}");
                drop(opened);
                assert!(open(&damaged).unwrap().damage().is_none(), "it was mended");
            }
        }
        let both = Arc::new(disk.fork(0));
        assert!(both.flip(SLOTS[0], 50) && both.flip(SLOTS[1], 51));
        let refused = open(&both).map(drop).unwrap_err().to_string();
        assert!(refused.contains("must not vote") && refused.contains("voter-0: the checksum"), "{refused}");
        let gone = Arc::new(disk.fork(0));
        for name in SLOTS {
            gone.remove(name).unwrap();
        }
        assert!(matches!(open(&gone), Err(SlotsError::BothBad { .. })), "that there were some is not forgotten");
    }

    #[test]
    fn slots_of_another_witness_are_not_ours() {
        let disk = Arc::new(SimDisk::new(1));
        open(&disk).unwrap().put(&state(1)).unwrap();
        let other = Slots::open(Arc::clone(&disk) as Arc<dyn Disk>, "moon/witness", [1; 16]).map(drop).unwrap_err();
        assert!(matches!(other, SlotsError::BothBad { .. }), "{other}");
    }

    #[test]
    fn after_a_failed_sync_nothing_is_believed_and_nothing_tried_again() {
        for call in 1..=4 {
            let disk = Arc::new(SimDisk::new(call));
            let mut slots = open(&disk).unwrap();
            slots.put(&state(1)).unwrap();
            disk.fail_at(call, Fault::Failed);
            assert!(matches!(slots.put(&state(2)), Err(SlotsError::Disk(_))), "call {call}");
            assert!(matches!(slots.put(&state(3)), Err(SlotsError::Broken)));
            disk.crash();
            let after = Arc::new(disk.image(Left::Synced, call));
            assert!((1..=2).contains(&number(open(&after).unwrap().state())), "call {call}");
        }
    }

    #[test]
    fn slots_whose_names_were_not_synced_when_they_were_made_keep_what_is_put_later() {
        let mut failed = 0;
        for call in 1..16 {
            let disk = Arc::new(SimDisk::new(call));
            disk.fail_at(call, Fault::NamesUnsynced);
            failed += u32::from(open(&disk).is_err());
            disk.forget_faults();
            open(&disk).unwrap().put(&state(1)).unwrap();
            let after = Arc::new(disk.image(Left::Synced, call));
            assert_eq!(number(open(&after).unwrap().state()), 1, "call {call}");
        }
        assert!(failed > 4, "{failed}");
    }

    #[test]
    fn a_full_disk_does_not_keep_a_promise_from_being_written() {
        let disk = Arc::new(SimDisk::new(1));
        let mut slots = open(&disk).unwrap();
        disk.set_quota(Some(disk.used_bytes()));
        for n in 1..40 {
            slots.put(&state(n)).unwrap();
        }
        assert_eq!(number(open(&disk).unwrap().state()), 39);
    }

    #[test]
    fn on_real_files_and_only_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(dir.path()).unwrap());
        let mut slots = Slots::open(disk, OWNER, [3; 16]).unwrap();
        assert!(slots.state().is_none());
        slots.put(&state(5)).unwrap();
        assert!(FileDisk::open(dir.path()).map(drop).unwrap_err().to_string().contains("another process uses it"));
        drop(slots);
        let again = Slots::open(Arc::new(FileDisk::open(dir.path()).unwrap()), OWNER, [4; 16]).unwrap();
        assert_eq!((number(again.state()), again.identity()), (5, u128::from_le_bytes([3; 16])));
    }
}
