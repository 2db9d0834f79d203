//! A disk that is only read, under changes that stay in memory.
//!
//! Opening a copy removes what a crash left and writes again what nothing proves to be synced. Over this, a copy can be opened as it would
//! open, and asked, while its files stay as they are. Driven by `parhelion volume verify`.

use super::{Cipher, Disk, DiskError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub struct Overlay {
    below: Arc<dyn Disk>,
    /// What differs from below; `None`: removed.
    changed: Mutex<BTreeMap<String, Option<Vec<u8>>>>,
}

impl Overlay {
    #[must_use]
    pub fn new(below: Arc<dyn Disk>) -> Overlay {
        Overlay { below, changed: Mutex::default() }
    }

    fn not_found(name: &str) -> DiskError {
        DiskError::NotFound { name: name.to_owned() }
    }

    /// The whole file as it is seen here.
    fn content(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        if let Some(changed) = self.changed.lock().get(name) {
            return Ok(changed.clone());
        }
        match self.below.len(name)? {
            Some(_) => Ok(Some(self.below.read(name, 0, usize::MAX)?.to_vec())),
            None => Ok(None),
        }
    }
}

impl Disk for Overlay {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        let changed = self.changed.lock();
        let mut names: Vec<String> = self.below.list()?.into_iter().filter(|n| !changed.contains_key(n)).collect();
        names.extend(changed.iter().filter(|(_, c)| c.is_some()).map(|(n, _)| n.clone()));
        Ok(names)
    }

    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        match self.changed.lock().get(name) {
            Some(content) => Ok(content.as_ref().map(|c| c.len() as u64)),
            None => self.below.len(name),
        }
    }

    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        match self.changed.lock().get(name) {
            Some(Some(content)) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let to = from.saturating_add(len_max).min(content.len());
                Ok(Bytes::copy_from_slice(&content[from..to]))
            }
            Some(None) => Err(Overlay::not_found(name)),
            None => self.below.read(name, offset, len_max),
        }
    }

    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let mut content = self.content(name)?.unwrap_or_default();
        let at = usize::try_from(offset).map_err(|_| DiskError::Full { name: name.to_owned() })?;
        let len = parts.iter().map(Bytes::len).sum::<usize>();
        if content.len() < at + len {
            content.resize(at + len, 0);
        }
        content[at..at + len].copy_from_slice(&parts.concat());
        self.changed.lock().insert(name.to_owned(), Some(content));
        Ok(())
    }

    /// Memory needs no reservation.
    fn allocate(&self, name: &str, _len: u64) -> Result<(), DiskError> {
        let content = self.content(name)?.unwrap_or_default();
        self.changed.lock().insert(name.to_owned(), Some(content));
        Ok(())
    }

    fn room(&self) -> u64 {
        u64::MAX
    }

    fn sync(&self, _name: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let content = self.content(from)?.ok_or_else(|| Overlay::not_found(from))?;
        let mut changed = self.changed.lock();
        changed.insert(from.to_owned(), None);
        changed.insert(to.to_owned(), Some(content));
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.changed.lock().insert(name.to_owned(), None);
        Ok(())
    }

    fn sync_names(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn cipher(&self) -> Option<&dyn Cipher> {
        self.below.cipher()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::disk::SimDisk;

    #[test]
    fn changes_are_seen_above_and_nothing_changes_below() {
        let below = Arc::new(SimDisk::new(1));
        for name in ["a", "b", "c"] {
            below.write(name, 0, &[Bytes::from_static(b"below")]).unwrap();
            below.sync(name).unwrap();
        }
        let calls = below.calls();
        let disk = Overlay::new(below.clone());
        disk.write("a", 3, &[Bytes::from_static(b"xyz")]).unwrap();
        disk.remove("b").unwrap();
        disk.allocate("t", 100).unwrap();
        disk.write("t", 0, &[Bytes::from_static(b"new")]).unwrap();
        disk.sync("t").unwrap();
        disk.rename("t", "c").unwrap();
        let mut names = disk.list().unwrap();
        names.sort();
        assert_eq!(names, ["a", "c"]);
        assert_eq!((disk.read("a", 0, 99).unwrap(), disk.read("c", 0, 99).unwrap()), ("belxyz".into(), "new".into()));
        assert_eq!((disk.len("b").unwrap(), disk.len("c").unwrap()), (None, Some(3)));
        assert!(disk.read("b", 0, 1).is_err() && disk.rename("t", "z").is_err());
        assert_eq!(below.calls(), calls);
        assert_eq!(below.read("c", 0, 99).unwrap(), "below");
    }
}
