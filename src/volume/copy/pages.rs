//! Pages at an LSN: the newest image at or below it and the deltas after it.
//!
//! Decides what a page was. Never decides up to where the log is durable ([`super::Copy`] feeds it only that) nor when
//! anything is written to disk. Shared with SQL readers: the lock is held only to look into memory, never during disk
//! access, so a read waits for no fsync, and layers that are replaced meanwhile stay until the read is over.

use super::layer::{Key, Layer, LayerCursor, LayerError};
use super::manifest::LayerMeta;
use super::merge::{Fold, Merge, Source};
use crate::base::{Generation, LogEnd, Lsn, PageNo, Seq};
use crate::log::redo::{Change, Record};
use crate::volume::DiskError;
use crate::volume::message::{Damage, Digest};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// What an entry takes in memory beside its body.
const ENTRY_OVERHEAD_BYTES: usize = 96;
/// Pages of the open memtable that one scan looks at, so that it holds the lock for a bounded time.
const SCAN_PAGES_MAX: usize = 1024;
/// After so many changes of one page in memory the whole page is kept once: a page that changes with every commit costs no more to
/// read than others.
const CHAIN_MAX: u32 = 64;
/// Pages in memory at once while a range is digested.
const DIGEST_SCAN_BYTES: usize = 256 << 10;

/// Why a page cannot be read here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this copy has page versions only up to LSN {ingested}, LSN {at} was asked for; wait, or ask another copy")]
    NotYet { at: Lsn, ingested: Lsn },
    #[error("versions below LSN {first} were folded together, LSN {at} was asked for; read at a newer LSN")]
    TooOld { at: Lsn, first: Lsn },
    #[error("'{file}' is damaged: {reason}; ask another copy, and rebuild this one")]
    Damaged { file: String, reason: String, lost: bool },
    #[error("this copy's pages differ from those of the other copies ({reason}); ask another copy")]
    Distrusted { reason: String },
    #[error("{reason}; ask another copy")]
    Failed { reason: String },
}

impl From<LayerError> for ReadError {
    fn from(e: LayerError) -> ReadError {
        match e {
            LayerError::Disk(DiskError::NotFound { name }) => {
                ReadError::Damaged { file: name, reason: "the file is gone".into(), lost: true }
            }
            LayerError::Disk(e) => ReadError::Failed { reason: e.to_string() },
            LayerError::Damaged { file, reason, lost, .. } => ReadError::Damaged { file, reason, lost },
            LayerError::Unsupported { file, version } => ReadError::Damaged {
                file,
                reason: format!("it has format version {version}, which this parhelion does not read"),
                lost: false,
            },
        }
    }
}

/// 64 bits over `bytes`: against accidents, not against an adversary (a copy is one of us).
fn hash(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let mut h = bytes.len() as u64;
    for word in &mut words {
        h = mix(h, u64::from_le_bytes(word.try_into().expect("BUG: eight bytes")));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    mix(h, u64::from_le_bytes(last))
}

fn mix(h: u64, word: u64) -> u64 {
    let h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ (h >> 29)
}

/// Whole pages in order, and where to go on (`None`: these were the last).
pub type Scanned = (Vec<(PageNo, Bytes)>, Option<PageNo>);

/// What a version takes in memory, about.
pub(super) fn entry_bytes(change: &Change) -> usize {
    change.body().len() + ENTRY_OVERHEAD_BYTES
}

/// Versions in memory, sharing the bytes of the frames they came with.
#[derive(Default)]
pub(super) struct Memtable {
    versions: BTreeMap<Key, Change>,
    /// Changes of each page behind its last image.
    chains: BTreeMap<PageNo, u32>,
    bytes: usize,
    /// Versions above this ...
    pub above: Lsn,
    /// ... up to this.
    pub upto: LogEnd,
}

impl Memtable {
    fn new(above: LogEnd) -> Memtable {
        Memtable { versions: BTreeMap::new(), chains: BTreeMap::new(), bytes: 0, above: above.end_lsn, upto: above }
    }

    /// What it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// `true`: the page has as many changes behind its last image as there may be.
    fn insert(&mut self, key: Key, change: Change) -> bool {
        self.bytes += entry_bytes(&change);
        let chain = self.chains.entry(key.0).or_default();
        *chain = if change.is_image() { 0 } else { *chain + 1 };
        let long = *chain >= CHAIN_MAX;
        match self.versions.entry(key) {
            std::collections::btree_map::Entry::Vacant(v) => {
                v.insert(change);
            }
            // Two records of one frame for the same page.
            std::collections::btree_map::Entry::Occupied(mut o) => {
                let mut fold = Fold::new(false);
                fold.add(o.get().clone());
                fold.add(change);
                o.insert(fold.into_change());
            }
        }
        long
    }

    /// The version at `key` becomes the whole page as of then.
    fn make_image(&mut self, key: Key, page: Bytes) {
        if let Some(version) = self.versions.get_mut(&key) {
            self.bytes = self.bytes.saturating_sub(entry_bytes(version));
            *version = Change::Image(page);
            self.bytes += entry_bytes(version);
            self.chains.insert(key.0, 0);
        }
    }

    /// What the pages from `from` on are made of as of `at`, of so many pages, and where the next one is.
    fn as_of(&self, from: PageNo, at: Lsn, pages_max: usize) -> (Memtable, Option<PageNo>) {
        let mut out = Memtable::default();
        let mut next = Some(from);
        for _ in 0..pages_max {
            let Some(page) = next.and_then(|n| self.first_at_or_after((n, Lsn::ZERO))).map(|key| key.0) else { return (out, None) };
            for (key, change) in self.versions.range((page, Lsn::ZERO)..=(page, at)).rev() {
                let image = change.is_image();
                out.insert(*key, change.clone());
                if image {
                    break;
                }
            }
            next = page.0.checked_add(1).map(PageNo);
        }
        (out, next.and_then(|n| self.first_at_or_after((n, Lsn::ZERO))).map(|key| key.0))
    }

    pub(super) fn get(&self, key: Key) -> Option<&Change> {
        self.versions.get(&key)
    }

    pub(super) fn first_at_or_after(&self, key: Key) -> Option<Key> {
        self.versions.range(key..).next().map(|(k, _)| *k)
    }

    pub(super) fn first_after(&self, key: Key) -> Option<Key> {
        self.versions.range((Bound::Excluded(key), Bound::Unbounded)).next().map(|(k, _)| *k)
    }

    fn collect(&self, page: PageNo, at: Lsn, newest_first: &mut Vec<Change>) -> bool {
        for (_, change) in self.versions.range((page, Lsn::ZERO)..=(page, at)).rev() {
            newest_first.push(change.clone());
            if change.is_image() {
                return true;
            }
        }
        false
    }
}

/// The page that an image and the changes after it make.
fn whole(newest_first: &[Change]) -> Bytes {
    if let [Change::Image(image)] = newest_first {
        return image.clone();
    }
    let mut bytes = Vec::new();
    for change in newest_first.iter().rev() {
        change.apply(&mut bytes);
    }
    Bytes::from(bytes)
}

/// The page versions of one copy.
pub struct PageStore {
    state: RwLock<State>,
    /// What a reader met, until the copy tells of it.
    met: Mutex<Met>,
}

#[derive(Default)]
struct Met {
    damage: Option<Damage>,
    /// Called when there is damage to be told of.
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

struct State {
    open: Memtable,
    /// Being written as a layer file; readable until that is published.
    frozen: Option<Arc<Memtable>>,
    /// Oldest first.
    layers: Arc<Vec<Arc<Layer>>>,
    ingested: LogEnd,
    /// What lies here up to this is on the volume's history, as whoever appends has shown. What is above may be a tail that the volume has
    /// not: this copy was away when it was rewound.
    proven: Lsn,
    /// The newest generation that the copy promised: whoever reads for an older or a newer one may mean another history.
    promised: Generation,
    folded: Lsn,
    /// Why nothing here is to be read.
    distrusted: Option<String>,
}

impl State {
    fn check(&self, at: Lsn) -> Result<(), ReadError> {
        if let Some(reason) = &self.distrusted {
            return Err(ReadError::Distrusted { reason: reason.clone() });
        }
        let upto = self.ingested.end_lsn.min(self.proven);
        if at > upto {
            return Err(ReadError::NotYet { at, ingested: upto });
        }
        if at < self.folded {
            return Err(ReadError::TooOld { at, first: self.folded });
        }
        Ok(())
    }
}

impl PageStore {
    pub(super) fn new(layers: Vec<Arc<Layer>>, flushed: LogEnd, folded: Lsn) -> PageStore {
        PageStore {
            state: RwLock::new(State {
                open: Memtable::new(flushed),
                frozen: None,
                layers: Arc::new(layers),
                ingested: flushed,
                proven: Lsn::ZERO,
                promised: Generation::ZERO,
                folded,
                distrusted: None,
            }),
            met: Mutex::default(),
        }
    }

    /// The page as of `at`. It may be shorter than a page (the rest is zero), or empty (it does not exist yet).
    ///
    /// # Errors
    /// [`ReadError`]: not yet there, folded away, damaged, or the disk failed.
    pub fn read(&self, page: PageNo, at: Lsn) -> Result<Bytes, ReadError> {
        self.note(self.find(page, at))
    }

    fn find(&self, page: PageNo, at: Lsn) -> Result<Bytes, ReadError> {
        let mut newest_first = Vec::new();
        let layers = {
            let state = self.state.read();
            state.check(at)?;
            let mut image = state.open.collect(page, at, &mut newest_first);
            if let (false, Some(frozen)) = (image, &state.frozen) {
                image = frozen.collect(page, at, &mut newest_first);
            }
            if image { None } else { Some(Arc::clone(&state.layers)) }
        };
        for layer in layers.iter().flat_map(|l| l.iter().rev()) {
            if layer.meta().above < at && layer.collect(page, at, &mut newest_first)? {
                break;
            }
        }
        Ok(whole(&newest_first))
    }

    /// The page as of `at` if that takes no disk: all of it lies in memory. `None` says nothing else.
    #[must_use]
    pub fn read_in_memory(&self, page: PageNo, at: Lsn) -> Option<Bytes> {
        let mut newest_first = Vec::new();
        let state = self.state.read();
        state.check(at).ok()?;
        let image = state.open.collect(page, at, &mut newest_first)
            || state.frozen.as_ref().is_some_and(|frozen| frozen.collect(page, at, &mut newest_first));
        drop(state);
        image.then(|| whole(&newest_first))
    }

    /// Pages that exist at `at`, whole and in order, from `from` on: at least one, about `bytes_max`, and where to go on
    /// (`None`: these were the last).
    ///
    /// # Errors
    /// As [`PageStore::read`].
    pub fn scan(&self, at: Lsn, from: PageNo, bytes_max: usize) -> Result<Scanned, ReadError> {
        self.note(self.gather(at, from, bytes_max))
    }

    fn gather(&self, at: Lsn, from: PageNo, bytes_max: usize) -> Result<Scanned, ReadError> {
        let (recent, mut beyond, frozen, layers) = {
            let state = self.state.read();
            state.check(at)?;
            let (recent, beyond) = state.open.as_of(from, at, SCAN_PAGES_MAX);
            (recent, beyond, state.frozen.clone(), Arc::clone(&state.layers))
        };
        let frozen = frozen.map(|table| {
            let (older, next) = table.as_of(from, at, SCAN_PAGES_MAX);
            beyond = [beyond, next].into_iter().flatten().min();
            older
        });
        let mut sources = Vec::new();
        for layer in layers.iter().filter(|l| l.meta().above < at) {
            sources.push(Source::Layer(LayerCursor::new(Arc::clone(layer), from)?));
        }
        sources.extend(frozen.map(|table| Source::memory(Arc::new(table), from)));
        sources.push(Source::memory(Arc::new(recent), from));
        let mut merge = Merge::new(sources);
        let mut pages = Vec::new();
        let mut bytes = 0;
        while let Some(page) = merge.page() {
            if beyond.is_some_and(|b| page >= b) || (bytes >= bytes_max && !pages.is_empty()) {
                return Ok((pages, Some(page)));
            }
            let mut fold: Option<Fold> = None;
            merge.versions::<LayerError>(page, |lsn, change| {
                if lsn <= at {
                    fold.get_or_insert_with(|| Fold::new(true)).add(change);
                }
                Ok(())
            })?;
            if let Some(fold) = fold {
                let body = fold.into_change().body().clone();
                bytes += body.len() + ENTRY_OVERHEAD_BYTES;
                pages.push((page, body));
            }
        }
        Ok((pages, beyond))
    }

    /// The pages `from..from + pages_max` as one number, the same in every copy: what is empty counts as not there, and zeros at a page's
    /// end count for nothing.
    ///
    /// # Errors
    /// As [`PageStore::read`].
    pub fn digest(&self, at: Lsn, from: PageNo, pages_max: u32) -> Result<Digest, ReadError> {
        let end = from.0.saturating_add(pages_max.max(1));
        let mut digest = Digest { hash: 0xcbf2_9ce4_8422_2325, pages: 0, bytes: 0, next: None };
        let mut at_page = Some(from);
        while let Some(page) = at_page.filter(|p| p.0 < end) {
            let (pages, next) = self.scan(at, page, DIGEST_SCAN_BYTES)?;
            at_page = next;
            for (page, bytes) in pages {
                if page.0 >= end {
                    digest.next = Some(page);
                    return Ok(digest);
                }
                let content = &bytes[..bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1)];
                if !content.is_empty() {
                    digest.hash = mix(mix(digest.hash, u64::from(page.0) << 32 | content.len() as u64), hash(content));
                    digest.pages += 1;
                    digest.bytes += content.len() as u64;
                }
            }
        }
        digest.next = at_page;
        Ok(digest)
    }

    /// Remembers damage that a reader met, until the copy takes it.
    fn note<T>(&self, outcome: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Damaged { reason, file, lost }) = &outcome {
            let mut met = self.met.lock();
            met.damage.get_or_insert_with(|| Damage { file: file.clone(), reason: reason.clone(), lost_write: *lost, healed: false });
            if let Some(wake) = &met.wake {
                wake();
            }
        }
        outcome
    }

    pub(super) fn take_damage(&self) -> Option<Damage> {
        self.met.lock().damage.take()
    }

    /// `wake` is called, from the thread of a reader, when that met damage: whoever drives the copy makes it tell of it (any call does).
    pub fn wake_on_damage(&self, wake: Box<dyn Fn() + Send + Sync>) {
        self.met.lock().wake = Some(wake);
    }

    /// Nothing is read here any more, until a seed replaces everything.
    pub(super) fn distrust(&self, reason: String) {
        self.state.write().distrusted = Some(reason);
    }

    /// Page versions up to here can be read.
    #[must_use]
    pub fn ingested(&self) -> Lsn {
        let state = self.state.read();
        state.ingested.end_lsn.min(state.proven)
    }

    /// Everything here is what it is: nobody appends, and whoever looks wants to see it.
    pub fn trust(&self) {
        self.prove(Lsn(u64::MAX));
    }

    /// Another generation was promised, and has shown nothing yet.
    pub(super) fn promise(&self, generation: Generation) {
        let mut state = self.state.write();
        (state.promised, state.proven) = (generation, Lsn::ZERO);
    }

    /// Whether the copy heard of `generation`. One that did not is on a history that the volume may have left; after this, a read gives only
    /// what that generation, or a later one, has shown to be its own.
    #[must_use]
    pub fn serves(&self, generation: Generation) -> bool {
        self.state.read().promised >= generation
    }

    /// What lies here up to `upto`, and what is taken in behind it, is on the volume's history.
    pub(super) fn prove(&self, upto: Lsn) {
        self.state.write().proven = upto;
    }

    /// The oldest LSN at which pages can still be read.
    #[must_use]
    pub fn first_readable(&self) -> Lsn {
        self.state.read().folded
    }

    /// Takes in the records of frames up to `upto`.
    pub(super) fn ingest(&self, versions: Vec<(Lsn, Vec<Record>)>, upto: LogEnd) {
        let mut long = Vec::new();
        {
            let mut state = self.state.write();
            for (lsn, records) in versions {
                for record in records {
                    let key = (record.page, lsn);
                    if state.open.insert(key, record.change) {
                        // The next ones begin to count anew, whether this one can be read now or not.
                        state.open.chains.insert(record.page, 0);
                        long.push(key);
                    }
                }
            }
            state.open.upto = upto;
            state.ingested = upto;
        }
        for (page, lsn) in long {
            // What cannot be read stays a chain: nothing is lost but time.
            if let Ok(whole) = self.read(page, lsn) {
                self.state.write().open.make_image((page, lsn), whole);
            }
        }
    }

    /// Bytes of the open memtable.
    pub(super) fn open_bytes(&self) -> usize {
        self.state.read().open.bytes
    }

    pub(super) fn frozen(&self) -> Option<Arc<Memtable>> {
        self.state.read().frozen.clone()
    }

    /// What is being written as a layer ends at or behind `seq`.
    pub(super) fn frozen_holds(&self, seq: Seq) -> bool {
        self.state.read().frozen.as_ref().is_some_and(|table| table.upto.seq >= seq)
    }

    pub(super) fn layers(&self) -> Arc<Vec<Arc<Layer>>> {
        Arc::clone(&self.state.read().layers)
    }

    /// Sets the open memtable aside to be written; the log position where it ends must be a consistency point.
    pub(super) fn freeze(&self) {
        let mut state = self.state.write();
        assert!(state.frozen.is_none(), "BUG: one memtable is written at a time");
        let upto = state.open.upto;
        let full = std::mem::replace(&mut state.open, Memtable::new(upto));
        state.frozen = Some(Arc::new(full));
    }

    /// The manifest names `layers` now. `flushed`: the frozen memtable is among them.
    pub(super) fn publish(&self, layers: Vec<Arc<Layer>>, folded: Lsn, flushed: bool) {
        let mut state = self.state.write();
        state.layers = Arc::new(layers);
        state.folded = state.folded.max(folded);
        if flushed {
            state.frozen = None;
        }
    }

    /// A seed was published: only its pages are here.
    pub(super) fn reset(&self, layer: Arc<Layer>, base: LogEnd) -> Arc<Vec<Arc<Layer>>> {
        let mut state = self.state.write();
        let old = std::mem::replace(&mut state.layers, Arc::new(vec![layer]));
        state.open = Memtable::new(base);
        state.frozen = None;
        state.ingested = base;
        state.proven = Lsn(u64::MAX);
        state.folded = base.end_lsn;
        state.distrusted = None;
        drop(state);
        self.met.lock().damage = None;
        old
    }

    /// Only what `layers` hold, up to `flushed`, is here any more.
    pub(super) fn go_back(&self, layers: Vec<Arc<Layer>>, flushed: LogEnd) {
        let mut state = self.state.write();
        state.layers = Arc::new(layers);
        state.open = Memtable::new(flushed);
        state.frozen = None;
        state.ingested = flushed;
    }

    pub(super) fn metas(layers: &[Arc<Layer>]) -> Vec<LayerMeta> {
        layers.iter().map(|l| l.meta().clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Epoch, Seq};

    #[test]
    fn a_page_that_changes_with_every_commit_costs_no_more_to_read() {
        let store = PageStore::new(Vec::new(), LogEnd::EMPTY, Lsn::ZERO);
        store.trust();
        let (hot, cold) = (PageNo(3), PageNo(9));
        let mut page = vec![0u8; 200];
        let mut states = vec![page.clone()];
        for n in 1..=1000u64 {
            let at = usize::try_from(n * 37 % 190).unwrap();
            let mut body = Vec::new();
            body.extend_from_slice(&u16::try_from(at).unwrap().to_le_bytes());
            body.extend_from_slice(&8u16.to_le_bytes());
            body.extend_from_slice(&n.to_le_bytes());
            let change = Change::from_parts(2, Bytes::from(body)).unwrap();
            page[at..at + 8].copy_from_slice(&n.to_le_bytes());
            states.push(page.clone());
            let mut records = vec![Record { page: hot, change: change.clone() }];
            records.extend((n == 1).then_some(Record { page: cold, change }));
            let end = LogEnd { epoch: Epoch(1), generation: Generation(1), seq: Seq(n), end_lsn: Lsn(n), checksum: 0 };
            store.ingest(vec![(Lsn(n), records)], end);
        }
        let cut = |bytes: &[u8]| bytes[..bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1)].to_vec();
        for (n, state) in states.iter().enumerate().skip(1) {
            let want = cut(state);
            let at = Lsn(n as u64);
            assert_eq!(cut(&store.read(hot, at).unwrap()), want, "as of {n}");
            let (pages, next) = store.scan(at, PageNo(0), usize::MAX).unwrap();
            assert_eq!((pages.len(), next), (2, None));
            assert_eq!((pages[0].0, cut(&pages[0].1), pages[1].0), (hot, want, cold));
            let mut parts = Vec::new();
            let _ = store.state.read().open.collect(hot, at, &mut parts);
            assert!(parts.len() <= CHAIN_MAX as usize, "{} parts as of {n}", parts.len());
        }
        assert_eq!(store.scan(Lsn(1000), PageNo(4), usize::MAX).unwrap().0.len(), 1);
    }
}
