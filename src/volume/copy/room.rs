//! Room on a copy's disk: what is kept for the writes that cannot be refused, and when a copy says that it has too little.
//!
//! A region that takes commits until a file of the log finds no room has none left for what must still be written: the frames that are
//! under way, a promise, the start of a generation, the control state, a manifest. So a copy keeps some space back, in files that
//! are allocated and empty, and says that it is low long before its log is full; the appender then refuses new writes, and
//! what is under way goes on. Decides how much is kept, who may have it (all but layer files) and when low begins and ends; never
//! what follows from it ([`crate::volume::Appender`] does).

use super::Copy;
use crate::volume::{Disk, DiskError};
use parking_lot::Mutex;

/// The reserve is given away in so many pieces, so that a few restarts on a full disk find one each.
pub(super) const PIECES: u64 = 4;
/// A copy is low while it has room for fewer than so many files of the log; six copies on one disk begin theirs together.
const LOW_FILES: u64 = 6;
/// And no longer when there is room for so many more.
const ENOUGH_FILES: u64 = 2;

fn piece(i: u64) -> String {
    format!("reserve-{i}")
}

/// See the module. One for each directory.
#[derive(Default)]
pub(super) struct Reserve(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// All pieces together; 0: nothing is kept here.
    bytes: u64,
    whole: bool,
}

impl Reserve {
    /// Nobody keeps anything before this was called.
    pub(super) fn keep(&self, bytes: u64) {
        let mut held = self.0.lock();
        held.bytes = held.bytes.max(bytes);
    }

    /// What all pieces take.
    pub(super) fn bytes(&self) -> u64 {
        self.0.lock().bytes
    }

    /// Makes the pieces that are missing. `false`: there is no room for them.
    fn refill(&self, disk: &dyn Disk) -> Result<bool, DiskError> {
        let mut held = self.0.lock();
        if held.whole || held.bytes == 0 {
            return Ok(true);
        }
        let bytes = held.bytes / PIECES;
        for i in 0..PIECES {
            let name = piece(i);
            if disk.len(&name)? == Some(bytes) {
                continue;
            }
            match disk.allocate(&name, bytes) {
                Ok(()) => {}
                Err(DiskError::Full { .. }) => {
                    disk.remove(&name)?;
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
        held.whole = true;
        Ok(true)
    }

    /// Gives a piece back to the disk. `false`: there is none left.
    pub(super) fn give_up(&self, disk: &dyn Disk) -> Result<bool, DiskError> {
        let mut held = self.0.lock();
        if held.bytes == 0 {
            return Ok(false);
        }
        held.whole = false;
        for i in 0..PIECES {
            if disk.len(&piece(i))?.is_some() {
                disk.remove(&piece(i))?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Copy {
    /// Whether so little room is left on the disk that no new writes should come.
    #[must_use]
    pub fn is_low_on_room(&self) -> bool {
        self.low
    }

    /// Looks at the disk again, and makes the reserve whole where there is room.
    pub(super) fn judge_room(&mut self) -> Result<(), DiskError> {
        let more = if self.low { self.limits.log_file_bytes.saturating_mul(ENOUGH_FILES) } else { 0 };
        // Where a memtable cannot become a layer readers would soon wait for room: then writers do.
        let wanted = self.low_bytes().saturating_add(more).max(self.layer_wants);
        self.low = self.disk.room() < wanted || !self.directory.reserve().refill(&**self.directory.disk())?;
        Ok(())
    }

    fn low_bytes(&self) -> u64 {
        let log = self.limits.log_file_bytes;
        log.saturating_mul(LOW_FILES).max(log.saturating_add((self.limits.memtable_bytes_max as u64).saturating_mul(2)))
    }

    /// Whether the disk is as full as it says it is: an error that says so may have been of the moment.
    pub(super) fn is_full(&self) -> bool {
        self.disk.room() < self.low_bytes()
    }

    /// Whether a memtable of so many bytes can become a layer. Otherwise it stays in memory, and the log as it is.
    pub(super) fn has_room_for_memtable(&self, bytes: usize) -> bool {
        self.disk.room() >= (2 * bytes as u64).max(self.layer_wants)
    }

    /// Whether layers can be merged to one of about so many bytes. They go only when it is whole, and the log comes first.
    pub(super) fn has_room_for_merge(&self, bytes: u64) -> bool {
        !self.low && self.disk.room() >= bytes.saturating_add(self.low_bytes())
    }

    /// A layer did not fit, and what there was of it is removed: the next one waits until there is clearly more.
    pub(super) fn layer_found_no_room(&mut self, name: &str) -> Result<(), DiskError> {
        self.low = true;
        self.directory.disk().remove(name)?;
        self.layer_wants = self.disk.room().max(self.limits.log_file_bytes).saturating_mul(2);
        Ok(())
    }
}
