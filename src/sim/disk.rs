//! A disk in memory that keeps the promises of [`Disk`] and no other.
//!
//! Decides, from its seed, what is left after the power went: every write that no sync covered is kept whole, kept up to
//! some byte, or gone, each on its own, so that later ones may survive earlier ones. A file that was made and never
//! synced nor renamed vanishes. [`SimDisk::image`] gives what would be left at this moment, again and again and in other ways,
//! while the disk itself goes on. After a failed sync the bytes read back as if nothing had happened, and are lost with the
//! power even when a later sync succeeds. A name that changed while the directory could not be synced is seen as it is now, and is what it was
//! after a power cut, unless the directory was synced meanwhile. Driven by the simulator and by the copy's own tests.

use super::cipher::SimCipher;
use crate::base::Prng;
use crate::volume::{Cipher, Disk, DiskError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// How a disk call fails on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Full,
    Failed,
    /// It is done, and the sync of the directory behind it fails: so does the call. What became of names is lost with the power until a later
    /// sync of the directory.
    NamesUnsynced,
}

/// What the power leaves of the writes that no sync covered, each write on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// All, and still unsynced: only the process went, the page cache is there.
    Cached,
    /// Nothing.
    Synced,
    /// All of a write, or nothing: later ones may survive earlier ones.
    Subset,
    /// The beginning of a write, up to any byte.
    Prefix,
    /// Any of a write's sectors.
    Sectors,
    /// One of these.
    Mixed,
}

/// See the module. All methods take `&self`; put it into an `Arc` and give one to the copy.
pub struct SimDisk {
    state: Mutex<State>,
    /// What lies here is sealed.
    cipher: Option<SimCipher>,
}

struct State {
    files: BTreeMap<String, SimFile>,
    /// Changes of names that no sync of the directory covers, oldest first.
    names: Vec<Renaming>,
    prng: Prng,
    /// Writing calls so far: write, allocate, sync, rename, remove; and a sync of names that has something to do.
    calls: u64,
    cut_at: Option<u64>,
    fail_at: Option<(u64, Fault)>,
    /// Reading calls so far: list, len, read.
    reads: u64,
    fail_read_at: Option<u64>,
    /// Bytes that all files together may take.
    quota: Option<u64>,
    /// Syncs say that they did, and do nothing.
    lies: bool,
    down: bool,
}

#[derive(Clone, Default)]
struct SimFile {
    /// What a reader sees: the page cache.
    current: Vec<u8>,
    /// What is on the platter; `None`: not even the name.
    durable: Option<Vec<u8>>,
    unsynced: Vec<Unsynced>,
}

/// What was under the names that one call changed; `None`: nothing.
type Renaming = Vec<(String, Option<SimFile>)>;

/// As much is undone as `kept` does not cover: a directory goes back to an earlier state of its own, not to any mixture.
fn undo(names: &[Renaming], kept: usize, files: &mut BTreeMap<String, SimFile>) {
    for (name, before) in names.iter().skip(kept).rev().flatten() {
        match before {
            Some(file) => drop(files.insert(name.clone(), file.clone())),
            None => drop(files.remove(name)),
        }
    }
}

#[derive(Clone)]
enum Unsynced {
    Write { offset: usize, bytes: Vec<u8> },
    Extend { len: usize },
}

impl Unsynced {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Unsynced::Write { offset, bytes } => {
                if file.len() < offset + bytes.len() {
                    file.resize(offset + bytes.len(), 0);
                }
                file[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Unsynced::Extend { len } => {
                if file.len() < *len {
                    file.resize(*len, 0);
                }
            }
        }
    }
}

/// What a disk writes whole or not at all; some are smaller than the common 512 bytes, so that small frames tear as well.
const SECTORS: [usize; 3] = [512, 64, 16];

impl Unsynced {
    /// As much of it as `left` says.
    fn apply_some(&self, left: Left, prng: &mut Prng, file: &mut Vec<u8>) {
        let left = match left {
            Left::Mixed => [Left::Synced, Left::Cached, Left::Prefix, Left::Sectors][prng.below(4) as usize],
            other => other,
        };
        let (Left::Prefix | Left::Sectors, Unsynced::Write { offset, bytes }) = (left, self) else {
            let all = match left {
                Left::Synced => false,
                Left::Cached => true,
                _ => prng.chance(500_000),
            };
            if all {
                self.apply(file);
            }
            return;
        };
        if left == Left::Prefix {
            let kept = usize::try_from(prng.below(bytes.len() as u64 + 1)).expect("BUG: a length fits");
            Unsynced::Write { offset: *offset, bytes: bytes[..kept].to_vec() }.apply(file);
            return;
        }
        let sector = SECTORS[prng.below(3) as usize];
        let mut from = 0;
        while from < bytes.len() {
            let to = ((offset + from) / sector * sector + sector - offset).min(bytes.len());
            if prng.chance(500_000) {
                Unsynced::Write { offset: offset + from, bytes: bytes[from..to].to_vec() }.apply(file);
            }
            from = to;
        }
    }
}

impl SimFile {
    fn note(&mut self, change: Unsynced) {
        change.apply(&mut self.current);
        self.unsynced.push(change);
    }

    /// `None`: not even its name is left.
    fn image(&self, left: Left, prng: &mut Prng) -> Option<SimFile> {
        if left == Left::Cached {
            return Some(self.clone());
        }
        // A name that was never synced may have reached the disk all the same.
        let mut durable = match &self.durable {
            Some(durable) => durable.clone(),
            None if left == Left::Synced || prng.chance(500_000) => return None,
            None => Vec::new(),
        };
        for change in &self.unsynced {
            change.apply_some(left, prng, &mut durable);
        }
        Some(SimFile { current: durable.clone(), durable: Some(durable), unsynced: Vec::new() })
    }

    fn sync(&mut self) {
        let durable = self.durable.get_or_insert_default();
        for change in self.unsynced.drain(..) {
            change.apply(durable);
        }
    }
}

/// What comes out of the check that every writing call makes first.
enum Go {
    Normal,
    /// The power goes during this call: `true` if its effect still happens.
    Last(bool),
    /// Its effect happens, and it fails.
    NamesUnsynced,
}

impl State {
    fn enter(&mut self, name: &str) -> Result<Go, DiskError> {
        self.check_power(name)?;
        self.calls += 1;
        if self.cut_at == Some(self.calls) {
            self.cut_at = None;
            return Ok(Go::Last(self.prng.chance(500_000)));
        }
        if let Some((at, fault)) = self.fail_at
            && at == self.calls
        {
            self.fail_at = None;
            return match fault {
                Fault::Full => Err(DiskError::Full { name: name.to_string() }),
                Fault::Failed => Err(failed(name, "an injected I/O error")),
                Fault::NamesUnsynced => Ok(Go::NamesUnsynced),
            };
        }
        Ok(Go::Normal)
    }

    fn check_power(&self, name: &str) -> Result<(), DiskError> {
        if self.down { Err(failed(name, "the power is off")) } else { Ok(()) }
    }

    /// As [`State::check_power`], of a reading call.
    fn enter_read(&mut self, name: &str) -> Result<(), DiskError> {
        self.check_power(name)?;
        self.reads += 1;
        if self.fail_read_at == Some(self.reads) {
            self.fail_read_at = None;
            return Err(failed(name, "an injected I/O error"));
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.files.values().map(|f| f.current.len() as u64).sum()
    }

    /// Whether `name` may grow to `len`.
    fn has_room(&self, name: &str, len: usize) -> bool {
        let grows = len.saturating_sub(self.files.get(name).map_or(0, |f| f.current.len()));
        self.quota.is_none_or(|quota| grows == 0 || self.used() + grows as u64 <= quota)
    }

    fn crash(&mut self) {
        self.down = true;
        self.cut_at = None;
        self.fail_at = None;
        self.fail_read_at = None;
        let State { files, prng, names, .. } = self;
        if !names.is_empty() {
            let kept = usize::try_from(prng.below(names.len() as u64 + 1)).expect("BUG: a length fits");
            undo(&std::mem::take(names), kept, files);
        }
        files.retain(|_, file| {
            let Some(durable) = file.durable.as_mut() else { return false };
            for change in file.unsynced.drain(..) {
                match prng.below(3) {
                    0 => {}
                    1 => change.apply(durable),
                    _ => match change {
                        Unsynced::Write { offset, mut bytes } => {
                            let kept = usize::try_from(prng.below(bytes.len() as u64)).expect("BUG: a length fits");
                            bytes.truncate(kept);
                            Unsynced::Write { offset, bytes }.apply(durable);
                        }
                        Unsynced::Extend { .. } => change.apply(durable),
                    },
                }
            }
            file.current.clone_from(durable);
            true
        });
    }

    /// Runs `effect` as the whole of a writing call, and lets the power go if this was the call for it.
    fn finish(&mut self, go: &Go, name: &str, effect: impl FnOnce(&mut State) -> Result<(), DiskError>) -> Result<(), DiskError> {
        match go {
            Go::Normal => effect(self),
            Go::NamesUnsynced => {
                effect(self)?;
                Err(failed(name, "an injected I/O error, of the directory"))
            }
            Go::Last(happens) => {
                if *happens {
                    effect(self)?;
                }
                self.crash();
                Err(failed(name, "the power went"))
            }
        }
    }
}

impl State {
    /// To be called before a call changes what is under `changed`: with its success all names are durable, and with its failure none of those.
    fn rename_as(&mut self, go: &Go, changed: &[&str]) {
        match go {
            Go::NamesUnsynced => {
                let before = changed.iter().map(|name| ((*name).to_string(), self.files.get(*name).cloned()));
                self.names.push(before.collect());
            }
            Go::Normal if !self.lies => self.names.clear(),
            Go::Normal | Go::Last(_) => {}
        }
    }
}

fn failed(name: &str, reason: &str) -> DiskError {
    DiskError::Failed { name: name.to_string(), reason: reason.to_string() }
}

impl SimDisk {
    /// A new and empty disk. With `PARHELION_SEALED` in the environment the unit tests run on sealed ones.
    #[must_use]
    pub fn new(seed: u64) -> SimDisk {
        #[cfg(test)]
        if std::env::var_os("PARHELION_SEALED").is_some() {
            return SimDisk::sealed(seed);
        }
        SimDisk::plain(seed)
    }

    /// A new and empty disk whose files are sealed, with a key from the seed.
    #[must_use]
    pub fn sealed(seed: u64) -> SimDisk {
        SimDisk { cipher: Some(SimCipher::new(seed)), ..SimDisk::plain(seed) }
    }

    /// A new and empty disk in the place of this one: sealed if this one is, with a key of its own.
    #[must_use]
    pub fn another(&self, seed: u64) -> SimDisk {
        if self.cipher.is_some() { SimDisk::sealed(seed) } else { SimDisk::new(seed) }
    }

    /// What its files are sealed with, for whoever looks at them from outside.
    #[must_use]
    pub fn sim_cipher(&self) -> Option<SimCipher> {
        self.cipher
    }

    /// A new and empty disk whose files are as they are written.
    #[must_use]
    pub fn plain(seed: u64) -> SimDisk {
        SimDisk {
            cipher: None,
            state: Mutex::new(State {
                files: BTreeMap::new(),
                names: Vec::new(),
                prng: Prng::new(seed),
                calls: 0,
                cut_at: None,
                fail_at: None,
                reads: 0,
                fail_read_at: None,
                quota: None,
                lies: false,
                down: false,
            }),
        }
    }

    /// A disk of its own with what would be left here if the power went now.
    #[must_use]
    pub fn image(&self, left: Left, seed: u64) -> SimDisk {
        let image = SimDisk { cipher: self.cipher, ..SimDisk::plain(seed) };
        let mut prng = Prng::new(seed).fork("image");
        let state = self.state.lock();
        let mut files = BTreeMap::new();
        let mut seen = state.files.clone();
        if left == Left::Cached {
            image.state.lock().names.clone_from(&state.names);
        } else if !state.names.is_empty() {
            let kept = if left == Left::Synced { 0 } else { prng.below(state.names.len() as u64 + 1) };
            undo(&state.names, usize::try_from(kept).expect("BUG: a length fits"), &mut seen);
        }
        for (name, file) in &seen {
            if let Some(file) = file.image(left, &mut prng) {
                files.insert(name.clone(), file);
            }
        }
        image.state.lock().files = files;
        image
    }

    /// The power goes now. Every call fails until [`SimDisk::restart`]. Faults that were ordered and not yet met are forgotten.
    pub fn crash(&self) {
        self.state.lock().crash();
    }

    /// The power is back. (A process that was only killed needs neither: what it wrote is still in the page cache.)
    pub fn restart(&self) {
        self.state.lock().down = false;
    }

    /// Another disk with the same files, synced or not, and its own randomness: what may become of this one.
    #[must_use]
    pub fn fork(&self, seed: u64) -> SimDisk {
        let fork = SimDisk { cipher: self.cipher, ..SimDisk::plain(seed) };
        {
            let (state, mut other) = (self.state.lock(), fork.state.lock());
            other.files.clone_from(&state.files);
            other.names.clone_from(&state.names);
            other.down = state.down;
        }
        fork
    }

    /// Whether something would be lost if the power went now.
    #[must_use]
    pub fn has_unsynced(&self) -> bool {
        let state = self.state.lock();
        !state.names.is_empty() || state.files.values().any(|f| f.durable.is_none() || !f.unsynced.is_empty())
    }

    /// The same for two disks that no reader can tell apart, now or after a power cut.
    #[must_use]
    pub fn content_hash(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        let state = self.state.lock();
        for (name, file) in &state.files {
            (name, &file.current, file.durable.as_ref() == Some(&file.current)).hash(&mut hasher);
            if !file.unsynced.is_empty() {
                file.durable.hash(&mut hasher);
            }
        }
        for (name, before) in state.names.iter().flatten() {
            (name, before.as_ref().map(|file| (&file.current, &file.durable))).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Writing calls so far (write, allocate, sync, rename, remove).
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// The power goes in the `n`-th writing call from now (1: the next); its effect happens or not, as the seed says.
    pub fn cut_power_at(&self, n: u64) {
        let mut state = self.state.lock();
        state.cut_at = Some(state.calls + n);
    }

    /// The `n`-th writing call from now (1: the next) fails. A sync that fails loses what it was to make durable.
    pub fn fail_at(&self, n: u64, fault: Fault) {
        let mut state = self.state.lock();
        state.fail_at = Some((state.calls + n, fault));
    }

    /// The `n`-th reading call from now (1: the next; list, len and read) fails.
    pub fn fail_read_at(&self, n: u64) {
        let mut state = self.state.lock();
        state.fail_read_at = Some(state.reads + n);
    }

    /// Reading calls so far (list, len, read).
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// All files together may take so many bytes; what would take more finds the disk full. `None`: without bound.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.state.lock().quota = bytes;
    }

    /// From now on its syncs say that they did, and do nothing.
    pub fn set_lying(&self, lies: bool) {
        self.state.lock().lies = lies;
    }

    /// What all files together take.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used()
    }

    /// The next writing call fails.
    pub fn fail_next(&self, fault: Fault) {
        self.fail_at(1, fault);
    }

    /// Faults that were ordered and not yet met do not happen.
    pub fn forget_faults(&self) {
        let mut state = self.state.lock();
        state.cut_at = None;
        state.fail_at = None;
        state.fail_read_at = None;
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.state.lock().down
    }

    /// Damage: inverts the byte at `offset`, on the platter and in the page cache. `false` if there is no such byte.
    pub fn flip(&self, name: &str, offset: u64) -> bool {
        self.flip_bits(name, offset, 0xff)
    }

    /// As [`SimDisk::flip`], of some of the byte's bits.
    pub fn flip_bits(&self, name: &str, offset: u64, mask: u8) -> bool {
        let mut state = self.state.lock();
        let Some(file) = state.files.get_mut(name) else { return false };
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(byte) = file.durable.as_mut().and_then(|d| d.get_mut(at)) {
            *byte ^= mask;
        }
        match file.current.get_mut(at) {
            Some(byte) => {
                *byte ^= mask;
                true
            }
            None => false,
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        let mut state = self.state.lock();
        state.enter_read("directory")?;
        Ok(state.files.keys().cloned().collect())
    }

    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        let mut state = self.state.lock();
        state.enter_read(name)?;
        Ok(state.files.get(name).map(|f| f.current.len() as u64))
    }

    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        let mut state = self.state.lock();
        state.enter_read(name)?;
        let file = state.files.get(name).ok_or_else(|| DiskError::NotFound { name: name.to_string() })?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.current.len());
        let to = from.saturating_add(len_max).min(file.current.len());
        Ok(Bytes::copy_from_slice(&file.current[from..to]))
    }

    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let go = state.enter(name)?;
        let offset = usize::try_from(offset).map_err(|_| failed(name, "the offset is out of range"))?;
        if !state.has_room(name, offset + parts.iter().map(Bytes::len).sum::<usize>()) {
            return Err(DiskError::Full { name: name.to_string() });
        }
        state.finish(&go, name, |s| {
            s.files.entry(name.to_string()).or_default().note(Unsynced::Write { offset, bytes: parts.concat() });
            Ok(())
        })
    }

    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let go = state.enter(name)?;
        let len = usize::try_from(len).map_err(|_| failed(name, "the length is out of range"))?;
        if !state.has_room(name, len) {
            return Err(DiskError::Full { name: name.to_string() });
        }
        state.finish(&go, name, |s| {
            s.files.entry(name.to_string()).or_default().note(Unsynced::Extend { len });
            Ok(())
        })
    }

    fn room(&self) -> u64 {
        let state = self.state.lock();
        state.quota.map_or(u64::MAX, |quota| quota.saturating_sub(state.used()))
    }

    fn sync(&self, name: &str) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let go = match state.enter(name) {
            Ok(go) => go,
            Err(e) => {
                // The kernel forgets that these pages were dirty: they read back and are never written.
                if !state.down
                    && let Some(file) = state.files.get_mut(name)
                {
                    file.unsynced.clear();
                }
                return Err(e);
            }
        };
        if state.files.get(name).is_some_and(|file| file.durable.is_none()) {
            state.rename_as(&go, &[name]);
            if let (Go::NamesUnsynced, Some(renaming)) = (&go, state.names.last_mut()) {
                *renaming = vec![(name.to_string(), None)];
            }
        }
        state.finish(&go, name, |s| match s.files.get_mut(name) {
            Some(file) => {
                if !s.lies {
                    file.sync();
                }
                Ok(())
            }
            None => Err(DiskError::NotFound { name: name.to_string() }),
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let go = state.enter(from)?;
        if state.files.contains_key(from) {
            state.rename_as(&go, &[to, from]);
        }
        state.finish(&go, from, |s| match s.files.remove(from) {
            Some(mut file) => {
                // The name is durable now, the bytes only as far as they were synced.
                file.durable.get_or_insert_default();
                s.files.insert(to.to_string(), file);
                Ok(())
            }
            None => Err(DiskError::NotFound { name: from.to_string() }),
        })
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        let go = state.enter(name)?;
        // Nothing is synced where nothing was removed.
        if state.files.contains_key(name) {
            state.rename_as(&go, &[name]);
        }
        state.finish(&go, name, |s| {
            s.files.remove(name);
            Ok(())
        })
    }

    fn sync_names(&self) -> Result<(), DiskError> {
        let mut state = self.state.lock();
        state.check_power("directory")?;
        if state.names.is_empty() {
            return Ok(());
        }
        let go = state.enter("directory")?;
        if let Go::Normal = go {
            state.rename_as(&go, &[]);
        }
        state.finish(&go, "directory", |_| Ok(()))
    }

    fn cipher(&self) -> Option<&dyn Cipher> {
        self.cipher.as_ref().map(|c| c as &dyn Cipher)
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
