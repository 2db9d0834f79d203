//! Six disks under the eyes of a probe, which may look before each writing call.
//!
//! Decides what a call is said to be a part of. Never touches a disk; [`super::rig`] says what it is doing.

use super::changing::Elsewhere;
use super::story::Story;
use crate::sim::disk::SimDisk;
use crate::volume::{Cipher, Disk, DiskError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) type Disks = [Arc<SimDisk>; 6];

/// Called before each writing call, with what is being done.
pub(super) type Probe = Box<dyn Fn(&Bench, u64, &'static str) + Send + Sync>;

/// What the probe sees: the disks as they are, and what was said so far.
pub(super) struct Bench {
    pub disks: Mutex<Disks>,
    /// The directories that are open in no slot.
    pub elsewhere: Mutex<Elsewhere>,
    pub story: Mutex<Story>,
    pub doing: Mutex<&'static str>,
    pub calls: AtomicU64,
    pub probe: Option<Probe>,
}

impl Bench {
    fn before(&self, name: &str) {
        let no = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(probe) = &self.probe {
            let doing = *self.doing.lock();
            let doing = match (doing, name) {
                ("commit" | "group commit", "log.tmp") => "new log file",
                (_, "MANIFEST" | "MANIFEST.tmp") if doing != "opening a copy" => "manifest swap",
                _ => doing,
            };
            probe(self, no, doing);
        }
    }
}

/// A disk under the probe's eyes.
pub(super) struct Seen {
    pub disk: Arc<SimDisk>,
    pub bench: Arc<Bench>,
}

impl Disk for Seen {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.disk.list()
    }
    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.disk.len(name)
    }
    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.disk.read(name, offset, len_max)
    }
    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.bench.before(name);
        self.disk.write(name, offset, parts)
    }
    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        self.bench.before(name);
        self.disk.allocate(name, len)
    }
    fn room(&self) -> u64 {
        self.disk.room()
    }
    fn sync(&self, name: &str) -> Result<(), DiskError> {
        self.bench.before(name);
        self.disk.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.bench.before(to);
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.bench.before(name);
        self.disk.remove(name)
    }
    /// Nothing fails here that it would mend: the disk is the same before and after it.
    fn sync_names(&self) -> Result<(), DiskError> {
        self.disk.sync_names()
    }
    fn cipher(&self) -> Option<&dyn Cipher> {
        self.disk.cipher()
    }
}
