//! One copy's directory on a real file system: the [`Disk`] of a running region.
//!
//! Decides how the trait's promises are kept: fdatasync for bytes and length, fsync of the directory for names, fallocate
//! for space. It holds the directory's lock for as long as it lives, so that two processes never share a copy. It never
//! tries a failed fsync again: the file is out of use until it is removed. Driven by a copy, from any thread.

use crate::volume::{Cipher, Disk, DiskError};
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Handles kept open at most; past it all are closed and opened again as they are needed.
const HANDLES_MAX: usize = 64;
/// The kernel takes at most 1024 pieces in one write.
const PIECES_MAX: usize = 1024;

/// Files in one directory. To open a failed copy anew, pass the same `FileDisk` again: the lock is per `FileDisk`.
pub struct FileDisk {
    path: PathBuf,
    directory: File,
    state: Mutex<State>,
    /// A write found no space, since this was opened.
    full: AtomicBool,
}

#[derive(Default)]
struct State {
    handles: BTreeMap<String, Arc<File>>,
    /// Made here and not yet synced: their first sync must make the name durable as well.
    new: BTreeSet<String>,
    /// Their fsync failed; nothing is known about them any more.
    broken: BTreeSet<String>,
}

impl FileDisk {
    /// Makes the directory where there is none and locks it.
    ///
    /// # Errors
    /// When it cannot be made or read, or another process has it.
    pub fn open(path: &Path) -> Result<FileDisk, DiskError> {
        let shown = path.display().to_string();
        let missing = path.ancestors().skip(1).take_while(|p| !p.as_os_str().is_empty() && !p.exists()).count();
        std::fs::create_dir_all(path).map_err(|e| error(&shown, &e))?;
        let directory = File::open(path).map_err(|e| error(&shown, &e))?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            Errno::WOULDBLOCK => DiskError::Failed { name: shown.clone(), reason: "another process uses it; stop that one first".into() },
            e => error(&shown, &e.into()),
        })?;
        // Its own name, and those of the directories above it that were made for it.
        for parent in path.ancestors().skip(1).take(1 + missing).filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent).and_then(|p| p.sync_all()).map_err(|e| error(&shown, &e))?;
        }
        Ok(FileDisk { path: path.to_path_buf(), directory, state: Mutex::default(), full: AtomicBool::new(false) })
    }

    /// Whether a write found the disk full and it still has less than `bytes` left.
    #[must_use]
    pub fn is_full(&self, bytes: u64) -> bool {
        self.full.load(Ordering::Relaxed) && self.room() < bytes
    }

    /// As [`error`], of a call that takes space.
    fn space_error(&self, name: &str, e: &std::io::Error) -> DiskError {
        let error = error(name, e);
        if matches!(error, DiskError::Full { .. }) {
            self.full.store(true, Ordering::Relaxed);
        }
        error
    }

    fn handle(&self, name: &str, make: bool) -> Result<Arc<File>, DiskError> {
        assert!(!name.is_empty() && !name.contains('/'), "BUG: '{name}' is not a plain file name");
        let mut state = self.state.lock();
        if let Some(file) = state.handles.get(name) {
            return Ok(Arc::clone(file));
        }
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match options.open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound && make => {
                let file = options.create(true).truncate(false).open(&path).map_err(|e| error(name, &e))?;
                state.new.insert(name.to_string());
                file
            }
            other => other.map_err(|e| error(name, &e))?,
        };
        let file = Arc::new(file);
        if state.handles.len() >= HANDLES_MAX {
            state.handles.clear();
        }
        state.handles.insert(name.to_string(), Arc::clone(&file));
        Ok(file)
    }

    fn refuse_broken(&self, name: &str) -> Result<(), DiskError> {
        if self.state.lock().broken.contains(name) {
            return Err(DiskError::Failed { name: name.to_string(), reason: "an earlier fsync of this file failed".into() });
        }
        Ok(())
    }

    fn sync_directory(&self, name: &str) -> Result<(), DiskError> {
        self.directory.sync_all().map_err(|e| error(name, &e))
    }
}

fn error(name: &str, e: &std::io::Error) -> DiskError {
    match e.kind() {
        ErrorKind::NotFound => DiskError::NotFound { name: name.to_string() },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DiskError::Full { name: name.to_string() },
        _ => DiskError::Failed { name: name.to_string(), reason: e.to_string() },
    }
}

fn read_at_most(file: &File, offset: u64, len_max: usize) -> std::io::Result<Bytes> {
    let len = file.metadata()?.len();
    // What is asked for is bounded by what is there before anything is allocated.
    let want = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(len_max);
    let mut bytes = vec![0; want];
    let mut got = 0;
    while got < want {
        match file.read_at(&mut bytes[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(got);
    Ok(Bytes::from(bytes))
}

/// Writes all pieces at `offset`, as one call where the kernel takes them at once.
fn write_all_vectored_at(file: &File, mut offset: u64, mut pieces: &mut [IoSlice<'_>]) -> std::io::Result<()> {
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        let n = pieces.len().min(PIECES_MAX);
        match rustix::io::pwritev(file, &pieces[..n], offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut pieces, written);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

impl Disk for FileDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        let shown = || self.path.display().to_string();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(|e| error(&shown(), &e))? {
            let entry = entry.map_err(|e| error(&shown(), &e))?;
            if let (true, Ok(name)) = (entry.file_type().is_ok_and(|t| t.is_file()), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        match std::fs::metadata(self.path.join(name)) {
            Ok(m) => Ok(Some(m.len())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(error(name, &e)),
        }
    }

    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        let file = self.handle(name, false)?;
        read_at_most(&file, offset, len_max).map_err(|e| error(name, &e))
    }

    fn read_cold(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        let file = self.handle(name, false)?;
        // Only a hint, and only pages that are clean go: where it is not taken, memory is read.
        let len = std::num::NonZeroU64::new(len_max.min(1 << 40) as u64);
        let _ = rustix::fs::fadvise(&*file, offset, len, rustix::fs::Advice::DontNeed);
        self.read(name, offset, len_max)
    }

    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.refuse_broken(name)?;
        let file = self.handle(name, true)?;
        let mut pieces: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        write_all_vectored_at(&file, offset, &mut pieces).map_err(|e| self.space_error(name, &e))
    }

    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        self.refuse_broken(name)?;
        let file = self.handle(name, true)?;
        match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&*file, FallocateFlags::empty(), 0, len)) {
            Ok(()) => Ok(()),
            // This file system cannot reserve; the length alone still spares most syncs the inode.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let now = file.metadata().map_err(|e| error(name, &e))?.len();
                if now < len { file.set_len(len).map_err(|e| error(name, &e)) } else { Ok(()) }
            }
            Err(e) => Err(self.space_error(name, &e.into())),
        }
    }

    fn room(&self) -> u64 {
        rustix::fs::fstatvfs(&self.directory).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    fn sync(&self, name: &str) -> Result<(), DiskError> {
        self.refuse_broken(name)?;
        let file = self.handle(name, false)?;
        if let Err(e) = file.sync_data() {
            self.state.lock().broken.insert(name.to_string());
            return Err(error(name, &e));
        }
        let new = self.state.lock().new.contains(name);
        if new {
            self.sync_directory(name)?;
            self.state.lock().new.remove(name);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.refuse_broken(from)?;
        {
            let mut state = self.state.lock();
            std::fs::rename(self.path.join(from), self.path.join(to)).map_err(|e| error(from, &e))?;
            state.handles.remove(to);
            state.broken.remove(to);
            state.new.remove(from);
            if let Some(file) = state.handles.remove(from) {
                state.handles.insert(to.to_string(), file);
            }
        }
        self.sync_directory(to)
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        {
            let mut state = self.state.lock();
            state.handles.remove(name);
            match std::fs::remove_file(self.path.join(name)) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(error(name, &e)),
            }
            state.new.remove(name);
            state.broken.remove(name);
        }
        self.sync_directory(name)
    }

    fn sync_names(&self) -> Result<(), DiskError> {
        self.sync_directory(&self.path.display().to_string())
    }

    fn cipher(&self) -> Option<&dyn Cipher> {
        None
    }
}

/// A copy's directory as it is at one moment, to be read only: no lock is taken, and nothing is changed. The files of a running copy stay
/// readable when it removes them; what it appends meanwhile may be seen.
pub struct ReadOnlyDisk {
    files: BTreeMap<String, File>,
}

/// So often a directory that changes is listed again, until its names and the manifest stand still for a moment.
const LISTINGS_MAX: usize = 200;

impl ReadOnlyDisk {
    /// # Errors
    /// When the directory or a file in it cannot be read.
    pub fn open(path: &Path) -> Result<ReadOnlyDisk, DiskError> {
        let mut last = ReadOnlyDisk { files: BTreeMap::new() };
        for _ in 0..LISTINGS_MAX {
            let mut files = BTreeMap::new();
            let mut gone = false;
            for name in ReadOnlyDisk::names(path)? {
                match File::open(path.join(&name)) {
                    Ok(file) => drop(files.insert(name, file)),
                    Err(e) if e.kind() == ErrorKind::NotFound => gone = true,
                    Err(e) => return Err(error(&name, &e)),
                }
            }
            let same = |(name, file): (&String, &File)| {
                let inode = |m: std::io::Result<std::fs::Metadata>| m.map(|m| std::os::unix::fs::MetadataExt::ino(&m)).ok();
                inode(file.metadata()) == inode(std::fs::metadata(path.join(name)))
            };
            // A manifest that was replaced may name layers that were made after the listing.
            let still = !gone && ReadOnlyDisk::names(path)?.iter().eq(files.keys()) && files.iter().all(same);
            last.files = files;
            if still {
                break;
            }
        }
        Ok(last)
    }

    /// Sorted; without what is under construction.
    fn names(path: &Path) -> Result<Vec<String>, DiskError> {
        let shown = path.display().to_string();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| error(&shown, &e))? {
            let entry = entry.map_err(|e| error(&shown, &e))?;
            if let (true, Ok(name)) = (entry.file_type().is_ok_and(|t| t.is_file()), entry.file_name().into_string())
                && !name.contains(".tmp")
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn refuse<T>(name: &str) -> Result<T, DiskError> {
        Err(DiskError::Failed { name: name.to_string(), reason: "it is open for reading only".into() })
    }
}

impl Disk for ReadOnlyDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        Ok(self.files.keys().cloned().collect())
    }

    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.files.get(name).map(|f| f.metadata().map(|m| m.len()).map_err(|e| error(name, &e))).transpose()
    }

    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        let file = self.files.get(name).ok_or_else(|| DiskError::NotFound { name: name.to_string() })?;
        read_at_most(file, offset, len_max).map_err(|e| error(name, &e))
    }

    fn write(&self, name: &str, _offset: u64, _parts: &[Bytes]) -> Result<(), DiskError> {
        ReadOnlyDisk::refuse(name)
    }

    fn allocate(&self, name: &str, _len: u64) -> Result<(), DiskError> {
        ReadOnlyDisk::refuse(name)
    }

    fn room(&self) -> u64 {
        0
    }

    fn sync(&self, name: &str) -> Result<(), DiskError> {
        ReadOnlyDisk::refuse(name)
    }

    fn rename(&self, from: &str, _to: &str) -> Result<(), DiskError> {
        ReadOnlyDisk::refuse(from)
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        ReadOnlyDisk::refuse(name)
    }

    fn sync_names(&self) -> Result<(), DiskError> {
        ReadOnlyDisk::refuse("the directory")
    }

    fn cipher(&self) -> Option<&dyn Cipher> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_in_pieces_read_back_renamed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(&dir.path().join("copy")).unwrap();
        let parts: Vec<Bytes> = (0..3000u32).map(|i| Bytes::from(i.to_le_bytes().to_vec())).collect();
        disk.write("a.tmp", 5, &parts).unwrap();
        disk.sync("a.tmp").unwrap();
        disk.rename("a.tmp", "a").unwrap();
        assert_eq!(disk.list().unwrap(), ["a"]);
        assert_eq!(disk.len("a").unwrap(), Some(12_005));
        assert_eq!(disk.read("a", 5, usize::MAX).unwrap(), parts.concat());
        assert!(disk.read("a", 20_000, 10).unwrap().is_empty());
        disk.allocate("a", 1 << 20).unwrap();
        assert_eq!(disk.len("a").unwrap(), Some(1 << 20));
        assert_eq!(disk.read("a", 12_005, 4).unwrap().as_ref(), [0; 4]);
        disk.remove("a").unwrap();
        disk.remove("a").unwrap();
        assert_eq!(disk.len("a").unwrap(), None);
        assert!(matches!(disk.read("a", 0, 1), Err(DiskError::NotFound { .. })));
    }

    #[test]
    fn a_directory_is_read_while_its_owner_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let owner = FileDisk::open(dir.path()).unwrap();
        for name in ["a", "b", "b.tmp"] {
            owner.write(name, 0, &[Bytes::from_static(b"one")]).unwrap();
            owner.sync(name).unwrap();
        }
        let seen = ReadOnlyDisk::open(dir.path()).unwrap();
        owner.remove("a").unwrap();
        owner.write("b", 3, &[Bytes::from_static(b"two")]).unwrap();
        assert_eq!(seen.list().unwrap(), ["a", "b"]);
        assert_eq!(seen.read("a", 1, 9).unwrap(), "ne");
        assert_eq!((seen.len("b").unwrap(), seen.len("c").unwrap()), (Some(6), None));
        assert!(seen.write("a", 0, &[]).is_err() && seen.remove("b").is_err() && seen.read("c", 0, 1).is_err());
        assert_eq!(owner.read("b", 0, 9).unwrap(), "onetwo");
    }

    #[test]
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = FileDisk::open(dir.path()).unwrap();
        let second = FileDisk::open(dir.path()).err().expect("the lock is taken");
        assert!(second.to_string().contains("another process"), "{second}");
        drop(first);
        FileDisk::open(dir.path()).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path()).unwrap();
        // More than any file system has.
        let e = disk.allocate("a", 1 << 50).unwrap_err();
        assert!(matches!(e, DiskError::Full { .. } | DiskError::Failed { .. }), "{e}");
        assert!(!disk.is_full(1), "there is room again for what is not absurd");
        assert_eq!(disk.is_full(u64::MAX), matches!(e, DiskError::Full { .. }));
    }
}
