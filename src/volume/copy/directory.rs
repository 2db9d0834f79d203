//! One copy's directory and the timelines in it: who names which layer file.
//!
//! The root timeline's files have plain names, a child's begin with `t<id>-`. A timeline exists when its manifest does; it may name
//! layer files of others, which are never written again. A layer file goes when no manifest names it and nobody reads it.
//! Decides what is left over and may be removed; never what a page was ([`super::pages`]) nor when a timeline is made
//! ([`super::branch`]). Shared by all copies that are open on the directory; opening one `Directory` twice at a time would let
//! each remove what the other makes.

use super::layer::{self, Layer, LayerError, LayerFile};
use super::manifest::{self, LayerMeta, Manifest, Origin, TEMPORARY};
use super::room::Reserve;
use super::{OpenError, codec};
use crate::base::{Generation, LineageId, LogEnd, Lsn, TimelineId};
use crate::volume::{Cipher, Cold, Disk, DiskError};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

/// Ids of timelines that were dropped, so that an order that comes late does not bring one back.
const DROPPED: &str = "dropped";
const DROPPED_MAGIC: [u8; 4] = *b"PHLO";
/// So many are remembered; what is older than so many drops comes no more.
const DROPPED_KEPT_MAX: usize = 4096;

/// A layer file: who wrote it, and its number there.
pub(super) type LayerId = (TimelineId, u64);

/// See the module.
pub struct Directory {
    disk: Arc<dyn Disk>,
    reserve: Reserve,
    state: Mutex<State>,
    /// Held while a timeline is made or opened: one that is opened before it was branched stays the empty copy that it is.
    making: Mutex<()>,
    /// Whoever writes files of a child holds it shared, so that nothing is written behind a drop.
    dropped: RwLock<BTreeSet<TimelineId>>,
}

#[derive(Default)]
struct State {
    /// What each manifest names. While one is being replaced, what the old one or the new one names.
    named: BTreeMap<TimelineId, BTreeSet<LayerId>>,
    /// Manifests that cannot be read: nobody knows what they name, so nothing is removed.
    unreadable: BTreeSet<TimelineId>,
    /// Above every number that was seen or given.
    next_layer: BTreeMap<TimelineId, u64>,
    /// Files that are open, each once.
    open: BTreeMap<LayerId, Weak<LayerFile>>,
}

impl State {
    fn is_named(&self, id: LayerId) -> bool {
        !self.unreadable.is_empty() || self.named.values().any(|ids| ids.contains(&id))
    }

    /// For the outside of the lock only: letting go of the last one takes it.
    fn live(&self, id: LayerId) -> Option<Arc<LayerFile>> {
        self.open.get(&id).and_then(Weak::upgrade)
    }

    fn is_wanted(&self, id: LayerId) -> bool {
        self.is_named(id) || self.open.get(&id).is_some_and(|file| file.strong_count() > 0)
    }
}

/// A timeline as a copy lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineView {
    pub timeline: TimelineId,
    /// Where it begins; `None` for the root, and for a child that has nothing yet and is to be rebuilt by its peers.
    pub origin: Option<Origin>,
    /// Pages can be read from here on.
    pub first_readable: Lsn,
    /// Its layers hold everything up to here.
    pub flushed: LogEnd,
    /// Bytes of layer files that others wrote, and that it reads.
    pub shared_bytes: u64,
    /// Bytes of layer files of its own.
    pub own_bytes: u64,
}

fn prefix(timeline: TimelineId) -> String {
    if timeline == TimelineId::ROOT { String::new() } else { format!("t{:016x}-", timeline.0) }
}

/// Whose file this is, and its name there.
fn split(name: &str) -> (TimelineId, &str) {
    let child = || {
        let (id, rest) = name.strip_prefix('t')?.split_at_checked(16)?;
        let rest = rest.strip_prefix('-')?;
        let hex = id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let id = u64::from_str_radix(id, 16).ok().filter(|id| hex && *id != 0)?;
        Some((TimelineId(id), rest))
    };
    child().unwrap_or((TimelineId::ROOT, name))
}

pub(super) fn layer_name((timeline, number): LayerId) -> String {
    format!("{}{}", prefix(timeline), layer::name_of(number))
}

impl Directory {
    /// Reads what every manifest names, ends what a crash left half done, removes what nobody names.
    ///
    /// # Errors
    /// [`OpenError`]: the disk failed, or the list of what was dropped is damaged. A manifest that is damaged is told when its timeline is opened.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Arc<Directory>, OpenError> {
        // A manifest whose rename failed halfway may be the old one again after a crash: what only that one names goes when this one is sure.
        disk.sync_names()?;
        let dropped: Vec<TimelineId> = manifest::read_checked(&*disk, DROPPED, DROPPED_MAGIC)?.unwrap_or_default();
        let directory = Arc::new(Directory {
            disk,
            reserve: Reserve::default(),
            state: Mutex::default(),
            making: Mutex::new(()),
            dropped: RwLock::new(dropped.into_iter().collect()),
        });
        let names = directory.disk.list()?;
        let timelines: BTreeSet<TimelineId> = names.iter().map(|n| split(n).0).chain([TimelineId::ROOT]).collect();
        for &timeline in &timelines {
            if directory.is_dropped(timeline) {
                directory.disk.remove(&format!("{}{}", prefix(timeline), manifest::MANIFEST))?;
                continue;
            }
            match Manifest::load(&*directory.view(timeline), timeline) {
                Ok(Some(manifest)) => directory.names(timeline, &manifest.layers),
                // A root without a manifest is empty, or damaged: its copy will tell.
                Ok(None) if timeline != TimelineId::ROOT => {}
                Ok(None) | Err(OpenError::Damaged { .. } | OpenError::Unsupported { .. }) => {
                    directory.state.lock().unreadable.insert(timeline);
                }
                Err(e) => return Err(e),
            }
        }
        for &timeline in &timelines {
            directory.tidy(timeline)?;
        }
        Ok(directory)
    }

    /// The log and layer files in the directory on `disk` that nothing reads by itself: those that only archives are made of, and layers that no
    /// manifest names, because they are not finished or because removing them failed. The latter go when the directory is opened next.
    ///
    /// # Errors
    /// [`OpenError`]: the manifest cannot be read, or the directory cannot.
    pub fn idle_files(disk: &Arc<dyn Disk>) -> Result<BTreeSet<String>, OpenError> {
        let Some(root) = Manifest::load(&**disk, TimelineId::ROOT)? else { return Ok(BTreeSet::new()) };
        let mut files: BTreeSet<String> = disk.list()?.into_iter().filter(|name| layer::number_of(name).is_some()).collect();
        for named in &root.layers {
            files.remove(&layer_name(named.id()));
        }
        files.extend(root.rewinds.archives.iter().flat_map(|a| &a.files).map(|number| super::wal::name_of(*number)));
        Ok(files)
    }

    /// Removes what `timeline`'s last life left: files under construction, layers that nobody names, and everything of a timeline
    /// that has no manifest. Its copy must not be open.
    pub(super) fn tidy(&self, timeline: TimelineId) -> Result<(), DiskError> {
        let gone = {
            let state = self.state.lock();
            !state.named.contains_key(&timeline) && !state.unreadable.contains(&timeline)
        };
        for name in self.disk.list()? {
            let (of, plain) = split(&name);
            if of != timeline {
                continue;
            }
            let left = plain.ends_with(TEMPORARY)
                || match layer::number_of(plain) {
                    Some(number) => {
                        let mut state = self.state.lock();
                        let next = state.next_layer.entry(timeline).or_default();
                        *next = (*next).max(number.saturating_add(1));
                        !state.is_wanted((timeline, number))
                    }
                    None => gone,
                };
            if left {
                self.disk.remove(&name)?;
            }
        }
        Ok(())
    }

    /// The same, read from the medium again and for itself.
    pub(super) fn cold_layer(&self, lineage: LineageId, meta: &LayerMeta) -> Result<Layer, LayerError> {
        let cold = Arc::new(Cold(Arc::clone(&self.disk)));
        Layer::new(Arc::new(LayerFile::open(None, cold, lineage, meta)?), meta)
    }

    /// The files of one timeline as a disk of their own.
    pub(super) fn view(self: &Arc<Directory>, timeline: TimelineId) -> Arc<dyn Disk> {
        Arc::new(TimelineDisk { directory: Arc::clone(self), timeline, prefix: prefix(timeline) })
    }

    /// The files of one timeline in a directory that is only looked at.
    pub(super) fn look(disk: &Arc<dyn Disk>, timeline: TimelineId) -> Arc<dyn Disk> {
        let directory = Directory {
            disk: Arc::clone(disk),
            reserve: Reserve::default(),
            state: Mutex::default(),
            making: Mutex::new(()),
            dropped: RwLock::default(),
        };
        Arc::new(directory).view(timeline)
    }

    /// A layer in such a directory.
    pub(super) fn look_at_layer(disk: &Arc<dyn Disk>, lineage: LineageId, meta: &LayerMeta) -> Result<Layer, LayerError> {
        Layer::new(Arc::new(LayerFile::open(None, Arc::clone(disk), lineage, meta)?), meta)
    }

    /// See [`Directory::making`]; not to be held while anything is taken in or waited for.
    pub(super) fn making(&self) -> MutexGuard<'_, ()> {
        self.making.lock()
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(super) fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Runs a call that takes space. What is `needed` gets the reserve, piece by piece, when the disk is full.
    fn with_reserve(&self, needed: bool, call: impl Fn() -> Result<(), DiskError>) -> Result<(), DiskError> {
        loop {
            match call() {
                Err(DiskError::Full { .. }) if needed && self.reserve.give_up(&*self.disk)? => {}
                other => return other,
            }
        }
    }

    pub(super) fn is_dropped(&self, timeline: TimelineId) -> bool {
        self.dropped.read().contains(&timeline)
    }

    /// The number of `timeline`'s next layer file: never one that was used before, be it by a job whose copy is gone.
    pub(super) fn take_layer(&self, timeline: TimelineId, at_least: u64) -> u64 {
        let mut state = self.state.lock();
        let next = state.next_layer.entry(timeline).or_default();
        let number = at_least.max(*next);
        *next = number + 1;
        number
    }

    /// Replaces a timeline's manifest. Until that is certain nothing that the old one or the new one names is removed.
    pub(super) fn store(self: &Arc<Directory>, timeline: TimelineId, manifest: &Manifest) -> Result<(), DiskError> {
        if self.is_dropped(timeline) {
            return Err(dropped_error(timeline));
        }
        let ids = manifest.layers.iter().map(LayerMeta::id);
        self.state.lock().named.entry(timeline).or_default().extend(ids);
        manifest.store(&*self.view(timeline))?;
        self.names(timeline, &manifest.layers);
        Ok(())
    }

    fn names(&self, timeline: TimelineId, layers: &[LayerMeta]) {
        let mut state = self.state.lock();
        state.unreadable.remove(&timeline);
        state.named.insert(timeline, layers.iter().map(LayerMeta::id).collect());
    }

    /// A layer that a manifest names; its file is opened once, however many timelines read it.
    pub(super) fn layer(self: &Arc<Directory>, lineage: LineageId, meta: &LayerMeta) -> Result<Layer, LayerError> {
        let live = self.state.lock().live(meta.id());
        let file = match live {
            Some(file) => file,
            None => {
                let file = Arc::new(LayerFile::open(Some(Arc::clone(self)), Arc::clone(&self.disk), lineage, meta)?);
                self.opened(&file);
                file
            }
        };
        Layer::new(file, meta)
    }

    pub(super) fn opened(&self, file: &Arc<LayerFile>) {
        let mut state = self.state.lock();
        state.open.retain(|_, file| file.strong_count() > 0);
        state.open.insert(file.id(), Arc::downgrade(file));
    }

    /// The last reader of a file that some timeline replaced is gone.
    pub(super) fn let_go(&self, id: LayerId) {
        let state = self.state.lock();
        if !state.is_wanted(id) {
            // If this fails the file is removed when the directory is opened next: no manifest names it.
            let _ = self.disk.remove(&layer_name(id));
        }
    }

    /// All timelines that are here, the root first.
    ///
    /// # Errors
    /// [`OpenError`]: the disk failed, or a manifest is damaged.
    pub fn timelines(self: &Arc<Directory>) -> Result<Vec<TimelineView>, OpenError> {
        let ids: BTreeSet<TimelineId> =
            self.disk.list()?.iter().map(|n| split(n)).filter(|(_, n)| *n == manifest::MANIFEST).map(|(t, _)| t).collect();
        let mut views = Vec::new();
        for timeline in ids {
            let Some(manifest) = Manifest::load(&*self.view(timeline), timeline)? else { continue };
            let bytes = |own: bool| manifest.layers.iter().filter(|l| (l.timeline == timeline) == own).map(|l| l.bytes).sum();
            views.push(TimelineView {
                timeline,
                origin: manifest.origin,
                first_readable: manifest.folded,
                flushed: manifest.flushed,
                shared_bytes: bytes(false),
                own_bytes: bytes(true),
            });
        }
        Ok(views)
    }

    /// Where `timeline` begins; `None`: it is not here.
    pub(super) fn origin(self: &Arc<Directory>, timeline: TimelineId) -> Result<Option<Option<Origin>>, OpenError> {
        if self.is_dropped(timeline) {
            return Err(OpenError::Dropped { timeline });
        }
        if timeline == TimelineId::ROOT {
            return Ok(Some(None));
        }
        Ok(Manifest::load(&*self.view(timeline), timeline)?.map(|manifest| manifest.origin))
    }

    /// Makes `child` in one atomic step, the rename of its manifest: before it there is no branch, after it a whole one.
    pub(super) fn make(self: &Arc<Directory>, child: TimelineId, manifest: &Manifest, promised: Generation) -> Result<(), DiskError> {
        manifest::store_promise(&*self.view(child), promised)?;
        self.store(child, manifest)
    }

    /// Drops a timeline for good, whether it is here or not: its id means nothing any more. What its own children share with it stays
    /// until they go. A copy that is open on it fails at its next write.
    ///
    /// # Errors
    /// [`DiskError`]; then it is dropped or not, and the same again makes it certain.
    ///
    /// # Panics
    /// When it is the root.
    pub fn drop_timeline(&self, timeline: TimelineId) -> Result<(), DiskError> {
        assert_ne!(timeline, TimelineId::ROOT, "BUG: the root timeline is not dropped");
        let mut dropped = self.dropped.write();
        if !dropped.contains(&timeline) {
            let list: Vec<TimelineId> = dropped.iter().copied().chain([timeline]).rev().take(DROPPED_KEPT_MAX).collect();
            manifest::publish(&*self.disk, DROPPED, codec::encode(DROPPED_MAGIC, manifest::VERSION, &list))?;
            *dropped = list.into_iter().collect();
        }
        self.disk.remove(&format!("{}{}", prefix(timeline), manifest::MANIFEST))?;
        let mut candidates = {
            let mut state = self.state.lock();
            state.unreadable.remove(&timeline);
            state.named.remove(&timeline).unwrap_or_default()
        };
        for name in self.disk.list()? {
            match split(&name) {
                (of, plain) if of == timeline => match layer::number_of(plain) {
                    Some(number) => {
                        candidates.insert((timeline, number));
                    }
                    None => self.disk.remove(&name)?,
                },
                _ => {}
            }
        }
        for id in candidates {
            let live = self.state.lock().live(id);
            match live {
                Some(file) => file.retire(),
                None if !self.state.lock().is_wanted(id) => self.disk.remove(&layer_name(id))?,
                None => {}
            }
        }
        Ok(())
    }
}

fn dropped_error(timeline: TimelineId) -> DiskError {
    DiskError::Failed { name: format!("timeline {timeline}"), reason: "this timeline was dropped".into() }
}

/// What a copy sees of the directory: the files of its timeline under plain names.
struct TimelineDisk {
    directory: Arc<Directory>,
    timeline: TimelineId,
    prefix: String,
}

impl TimelineDisk {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Runs a writing call, unless the timeline was dropped.
    fn write_with<T>(&self, call: impl FnOnce(&dyn Disk) -> Result<T, DiskError>) -> Result<T, DiskError> {
        if self.timeline == TimelineId::ROOT {
            return call(&*self.directory.disk);
        }
        let dropped = self.directory.dropped.read();
        if dropped.contains(&self.timeline) {
            return Err(dropped_error(self.timeline));
        }
        call(&*self.directory.disk)
    }
}

impl Disk for TimelineDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        let names = self.directory.disk.list()?;
        let own = names.iter().map(|n| split(n)).filter(|(of, plain)| *of == self.timeline && *plain != DROPPED);
        Ok(own.map(|(_, plain)| plain.to_string()).collect())
    }

    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.directory.disk.len(&self.name(name))
    }

    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.directory.disk.read(&self.name(name), offset, len_max)
    }

    fn read_cold(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.directory.disk.read_cold(&self.name(name), offset, len_max)
    }

    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let needed = layer::number_of(name).is_none();
        self.write_with(|disk| self.directory.with_reserve(needed, || disk.write(&self.name(name), offset, parts)))
    }

    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        // A whole log file is more than the reserve: whoever finds no room for it asks for less.
        let needed = layer::number_of(name).is_none() && len <= self.directory.reserve.bytes();
        self.write_with(|disk| self.directory.with_reserve(needed, || disk.allocate(&self.name(name), len)))
    }

    fn room(&self) -> u64 {
        self.directory.disk.room()
    }

    fn sync(&self, name: &str) -> Result<(), DiskError> {
        self.write_with(|disk| disk.sync(&self.name(name)))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.write_with(|disk| disk.rename(&self.name(from), &self.name(to)))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.write_with(|disk| disk.remove(&self.name(name)))
    }

    fn sync_names(&self) -> Result<(), DiskError> {
        self.directory.disk.sync_names()
    }

    fn cipher(&self) -> Option<&dyn Cipher> {
        self.directory.disk.cipher()
    }
}
