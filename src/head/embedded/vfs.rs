//! SQLite's file system, as far as SQLite needs one: one registered VFS whose files are Rust objects found by name.
//!
//! Decides nothing: it turns SQLite's calls into calls of [`DatabaseFile`] and errors into result codes. There is no disk
//! under it: whatever is not a registered database (journals, temporary files, ATTACHed paths) cannot be opened at all.
//! Driven by SQLite on the SQL threads. The only other place with `unsafe` is [`super::tables`], where the virtual table
//! trait asks for the word.
//!
//! io methods are of version 1: no shared memory, so no WAL, and no memory mapping. BATCH_ATOMIC is never advertised
//! (SQLite answers an error of its commit by writing the same pages again without it). The commit point is the file
//! control COMMIT_PHASETWO: once per commit, never on rollback, last before the locks go.
//!
//! A panic inside a callback cannot unwind through C: it aborts the process, with its message.

use parking_lot::Mutex;
use rusqlite::ffi;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};

/// The name that connections are opened with.
pub const VFS_NAME: &CStr = c"parhelion";

/// Why a call of a database file failed; becomes a SQLite result code. The sentence for the client goes another way
/// ([`super::context::Context::blame`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileError {
    /// A page could not be read.
    Read,
    /// SQLite asked for something that this file never gives.
    Misuse,
    /// A write lock on a reader.
    ReadOnly,
    /// Refused: the transaction is too large, or the commit may not happen. SQLite then drops what it has cached, which
    /// an I/O error would do too, but IOERR invites some paths of SQLite to try again.
    Refused,
}

impl FileError {
    fn code(self) -> c_int {
        match self {
            FileError::Read => ffi::SQLITE_IOERR_READ,
            FileError::Misuse => ffi::SQLITE_IOERR,
            FileError::ReadOnly => ffi::SQLITE_READONLY,
            FileError::Refused => ffi::SQLITE_FULL,
        }
    }
}

/// Lock levels of SQLite that make a difference here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Shared,
    /// RESERVED, PENDING, EXCLUSIVE: about to write.
    Write,
}

/// One open database. Used by one connection, on one thread.
pub trait DatabaseFile: Send + Sync {
    /// Fills `out` from `offset`; past the end with zeros. `Ok(false)` when not all of it lay inside the file.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, FileError>;
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), FileError>;
    fn truncate(&self, size: u64) -> Result<(), FileError>;
    fn size(&self) -> Result<u64, FileError>;
    fn lock(&self, level: Level) -> Result<(), FileError>;
    fn unlock(&self, level: Level);
    /// The commit point. An error here rolls the transaction back.
    fn commit(&self) -> Result<(), FileError>;
}

type Registry = Mutex<BTreeMap<String, Arc<dyn DatabaseFile>>>;

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::default)
}

/// A name under which a database can be opened, for as long as this lives.
pub struct Registration {
    name: String,
}

impl Registration {
    /// Makes `file` known as `name`, and the VFS to SQLite when this is the first.
    ///
    /// # Errors
    /// SQLite's result code, when it does not take the VFS.
    pub fn new(name: String, file: Arc<dyn DatabaseFile>) -> Result<Registration, c_int> {
        register_vfs()?;
        let before = registry().lock().insert(name.clone(), file);
        assert!(before.is_none(), "BUG: two databases are named '{name}'");
        Ok(Registration { name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        registry().lock().remove(&self.name);
    }
}

/// What SQLite allocates for an open file: its own part first, then ours.
#[repr(C)]
struct OpenFile {
    base: ffi::sqlite3_file,
    file: *mut Arc<dyn DatabaseFile>,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(x_close),
    xRead: Some(x_read),
    xWrite: Some(x_write),
    xTruncate: Some(x_truncate),
    xSync: Some(x_sync),
    xFileSize: Some(x_file_size),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_reserved_lock),
    xFileControl: Some(x_file_control),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

fn register_vfs() -> Result<(), c_int> {
    static DONE: OnceLock<c_int> = OnceLock::new();
    let code = *DONE.get_or_init(|| {
        // SAFETY: sqlite3_initialize may be called from any thread, any number of times; the default VFS that
        // sqlite3_vfs_find returns is a static of SQLite and never goes away.
        let base = unsafe {
            let rc = ffi::sqlite3_initialize();
            if rc != ffi::SQLITE_OK {
                return rc;
            }
            ffi::sqlite3_vfs_find(ptr::null())
        };
        if base.is_null() {
            return ffi::SQLITE_ERROR;
        }
        // SAFETY: `base` is not null (checked) and points to an initialised sqlite3_vfs, which is plain data. Its clock, sleep
        // and randomness functions do not look at their VFS argument, so a copy may lend them.
        let mut vfs = unsafe { ptr::read(base) };
        vfs.iVersion = 2;
        vfs.szOsFile = c_int::try_from(size_of::<OpenFile>()).expect("BUG: a file is two pointers");
        vfs.mxPathname = 512;
        vfs.pNext = ptr::null_mut();
        vfs.zName = VFS_NAME.as_ptr();
        vfs.xOpen = Some(x_open);
        vfs.xDelete = Some(x_delete);
        vfs.xAccess = Some(x_access);
        vfs.xFullPathname = Some(x_full_pathname);
        vfs.xDlOpen = None;
        vfs.xDlError = None;
        vfs.xDlSym = None;
        vfs.xDlClose = None;
        vfs.xGetLastError = None;
        vfs.xSetSystemCall = None;
        vfs.xGetSystemCall = None;
        vfs.xNextSystemCall = None;
        // SAFETY: SQLite keeps the pointer for the life of the process, and the box is leaked for just that; 0 = not the default.
        unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0) }
    });
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(code) }
}

/// # Safety
/// `file` is one that [`x_open`] opened with success and [`x_close`] has not closed: SQLite's own promise for its callbacks.
unsafe fn database<'a>(file: *mut ffi::sqlite3_file) -> &'a dyn DatabaseFile {
    // SAFETY: by the contract above `file` is our OpenFile and its `file` the box that x_open made.
    unsafe { &**(*file.cast::<OpenFile>()).file }
}

fn code(result: Result<(), FileError>) -> c_int {
    match result {
        Ok(()) => ffi::SQLITE_OK,
        Err(e) => e.code(),
    }
}

fn offset(at: ffi::sqlite3_int64) -> u64 {
    u64::try_from(at).expect("BUG: SQLite never passes a negative offset")
}

fn level(lock: c_int) -> Level {
    match lock {
        ffi::SQLITE_LOCK_NONE => Level::None,
        ffi::SQLITE_LOCK_SHARED => Level::Shared,
        _ => Level::Write,
    }
}

unsafe extern "C" fn x_open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes room for szOsFile bytes. A null pMethods says that there is nothing to close after an error.
    unsafe { (*file).pMethods = ptr::null() };
    if name.is_null() || flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: a name that is not null is a C string that outlives the file.
    let Ok(name) = (unsafe { CStr::from_ptr(name) }).to_str() else {
        return ffi::SQLITE_CANTOPEN;
    };
    let Some(found) = registry().lock().get(name).cloned() else {
        return ffi::SQLITE_CANTOPEN;
    };
    // SAFETY: as above, `file` has room for an OpenFile; `out_flags` may be null and is checked.
    unsafe {
        (*file.cast::<OpenFile>()).file = Box::into_raw(Box::new(found));
        (*file).pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes each file that was opened exactly once, and does not use it afterwards; the box is x_open's.
    unsafe {
        let ours = file.cast::<OpenFile>();
        drop(Box::from_raw((*ours).file));
        (*ours).file = ptr::null_mut();
        (*file).pMethods = ptr::null();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_read(file: *mut ffi::sqlite3_file, out: *mut c_void, len: c_int, at: ffi::sqlite3_int64) -> c_int {
    let len = usize::try_from(len).expect("BUG: SQLite never reads a negative length");
    // SAFETY: `out` has room for `len` bytes, which SQLite allocated and nobody else refers to during the call. They are
    // written before they are read: the whole range is zeroed first.
    let (db, out) = unsafe {
        ptr::write_bytes(out.cast::<u8>(), 0, len);
        (database(file), std::slice::from_raw_parts_mut(out.cast::<u8>(), len))
    };
    match db.read(offset(at), out) {
        Ok(true) => ffi::SQLITE_OK,
        Ok(false) => ffi::SQLITE_IOERR_SHORT_READ,
        Err(e) => e.code(),
    }
}

unsafe extern "C" fn x_write(file: *mut ffi::sqlite3_file, data: *const c_void, len: c_int, at: ffi::sqlite3_int64) -> c_int {
    let len = usize::try_from(len).expect("BUG: SQLite never writes a negative length");
    // SAFETY: `data` holds `len` initialised bytes that do not change during the call.
    let (db, data) = unsafe { (database(file), std::slice::from_raw_parts(data.cast::<u8>(), len)) };
    code(db.write(offset(at), data))
}

unsafe extern "C" fn x_truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    // SAFETY: an open file of ours, as SQLite promises.
    code(unsafe { database(file) }.truncate(offset(size)))
}

unsafe extern "C" fn x_sync(_file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    ffi::SQLITE_OK // durability is the volume's, and begins at the commit point
}

unsafe extern "C" fn x_file_size(file: *mut ffi::sqlite3_file, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: an open file of ours, as SQLite promises.
    match unsafe { database(file) }.size() {
        Ok(size) => {
            // SAFETY: `out` points to SQLite's result.
            unsafe { *out = i64::try_from(size).expect("BUG: 2^32 pages of 4 KiB fit 63 bits") };
            ffi::SQLITE_OK
        }
        Err(e) => e.code(),
    }
}

unsafe extern "C" fn x_lock(file: *mut ffi::sqlite3_file, lock: c_int) -> c_int {
    // SAFETY: an open file of ours, as SQLite promises.
    code(unsafe { database(file) }.lock(level(lock)))
}

unsafe extern "C" fn x_unlock(file: *mut ffi::sqlite3_file, lock: c_int) -> c_int {
    // SAFETY: an open file of ours, as SQLite promises.
    unsafe { database(file) }.unlock(level(lock));
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_check_reserved_lock(_file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: `out` points to SQLite's result. Nobody else ever holds a lock: one writer, and readers never wait for it.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_file_control(file: *mut ffi::sqlite3_file, op: c_int, _arg: *mut c_void) -> c_int {
    if op != ffi::SQLITE_FCNTL_COMMIT_PHASETWO {
        return ffi::SQLITE_NOTFOUND;
    }
    // SAFETY: an open file of ours, as SQLite promises.
    code(unsafe { database(file) }.commit())
}

unsafe extern "C" fn x_sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn x_device_characteristics(_file: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn x_delete(_vfs: *mut ffi::sqlite3_vfs, _name: *const c_char, _sync_dir: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_access(_vfs: *mut ffi::sqlite3_vfs, _name: *const c_char, _flags: c_int, out: *mut c_int) -> c_int {
    // SAFETY: `out` points to SQLite's result. No journal is ever left behind, because there is no file at all.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_full_pathname(_vfs: *mut ffi::sqlite3_vfs, name: *const c_char, room: c_int, out: *mut c_char) -> c_int {
    // SAFETY: `name` is a C string, `out` has room for `room` bytes (mxPathname + 1); the name is copied with its final
    // zero only when it fits.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        if bytes.len() > usize::try_from(room).unwrap_or(0) {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr().cast::<c_char>(), out, bytes.len());
    }
    ffi::SQLITE_OK
}
