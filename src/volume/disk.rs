//! One copy's directory as a flat set of files: the small trait between a copy and its disk.
//!
//! Implemented by `io::FileDisk` (real files, real fsync) and by `sim::SimDisk` (unsynced writes are dropped, torn and
//! reordered at a crash). A copy relies on nothing but what stands here:
//!
//! - a write that was not followed by a successful `sync` of the same file may be lost at a crash, in whole or in part;
//! - `sync` makes a file's bytes, length and existence under its present name durable;
//! - `rename` and `remove` are atomic, and durable when they return;
//! - one of them that failed, or the first `sync` of a new file, may have happened all the same: it is seen from then on, and a crash may undo it
//!   until `sync_names` has succeeded;
//! - after `sync` failed on a file, nothing is known about the writes before it, and it is never tried again.

use bytes::Bytes;

/// Why a disk call failed. `Clone`, because it travels in replies and into status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error("there is no file '{name}'")]
    NotFound { name: String },
    #[error("the disk is full (writing '{name}')")]
    Full { name: String },
    #[error("the disk failed ({name}): {reason}")]
    Failed { name: String, reason: String },
}

/// Seals what holds users' bytes before it is written, and opens it again. Comes in with the [`Disk`], because a core has neither keys nor
/// the randomness of nonces. What is sealed grows by [`SEAL_BYTES`].
pub trait Cipher: Send + Sync {
    /// `place` says where it belongs: it is not kept, and only at the same place it can be opened.
    ///
    /// # Errors
    /// [`DiskError::Failed`]: there is no randomness, or the cipher failed. Nothing may be written then.
    fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, DiskError>;

    /// `None`: it is not what was sealed for this place with this key.
    fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>>;
}

/// Nonce and tag.
pub const SEAL_BYTES: usize = 12 + 16;

/// Files of one copy. Names are plain (no directories). Shared between the thread that appends and the one that
/// writes layers, so everything takes `&self`.
pub trait Disk: Send + Sync {
    /// Names of all files, in any order.
    ///
    /// # Errors
    /// As every call here: [`DiskError`].
    fn list(&self) -> Result<Vec<String>, DiskError>;

    /// Length in bytes, or `None` when there is no such file.
    fn len(&self, name: &str) -> Result<Option<u64>, DiskError>;

    /// Up to `len_max` bytes from `offset`; fewer at the end of the file, none past it.
    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError>;

    /// As [`Disk::read`], from the medium itself where the system allows that, not from what it keeps in memory: a scrub wants to know
    /// what would be there after a restart.
    fn read_cold(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.read(name, offset, len_max)
    }

    /// Writes all `parts`, one behind the other, at `offset`. Makes the file where there is none.
    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError>;

    /// Reserves space up to `len` bytes, so that later writes below it do not find the disk full. New bytes read as zero.
    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError>;

    /// Bytes that files here could still grow by, all together; `u64::MAX` where nobody knows. Others may take them first.
    fn room(&self) -> u64;

    fn sync(&self, name: &str) -> Result<(), DiskError>;

    /// Replaces `to` where it exists.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;

    /// Removing what is not there is no error.
    fn remove(&self, name: &str) -> Result<(), DiskError>;

    /// Makes durable which files there are and what they are called, whatever failed before. Has no default, so that no view of a disk
    /// forgets it.
    fn sync_names(&self) -> Result<(), DiskError>;

    /// What the files here are sealed with; `None`: they are written as they are. The disk itself carries bytes and seals nothing. Has no
    /// default, so that no view of a disk forgets its cipher.
    fn cipher(&self) -> Option<&dyn Cipher>;
}

/// A disk whose every read goes to the medium (see [`Disk::read_cold`]).
pub struct Cold(pub std::sync::Arc<dyn Disk>);

impl Disk for Cold {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.0.list()
    }
    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.0.len(name)
    }
    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.0.read_cold(name, offset, len_max)
    }
    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.0.write(name, offset, parts)
    }
    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        self.0.allocate(name, len)
    }
    fn room(&self) -> u64 {
        self.0.room()
    }
    fn sync(&self, name: &str) -> Result<(), DiskError> {
        self.0.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.0.remove(name)
    }
    fn sync_names(&self) -> Result<(), DiskError> {
        self.0.sync_names()
    }
    fn cipher(&self) -> Option<&dyn Cipher> {
        self.0.cipher()
    }
}

/// A disk whose files are sealed.
pub struct Sealed {
    pub disk: std::sync::Arc<dyn Disk>,
    pub cipher: std::sync::Arc<dyn Cipher>,
}

impl Disk for Sealed {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.disk.list()
    }
    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.disk.len(name)
    }
    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.disk.read(name, offset, len_max)
    }
    fn read_cold(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.disk.read_cold(name, offset, len_max)
    }
    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.disk.write(name, offset, parts)
    }
    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        self.disk.allocate(name, len)
    }
    fn room(&self) -> u64 {
        self.disk.room()
    }
    fn sync(&self, name: &str) -> Result<(), DiskError> {
        self.disk.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.disk.remove(name)
    }
    fn sync_names(&self) -> Result<(), DiskError> {
        self.disk.sync_names()
    }
    fn cipher(&self) -> Option<&dyn Cipher> {
        Some(&*self.cipher)
    }
}
