//! The buffer pool: versions of pages, each valid from one LSN until another, shared by all connections of an instance.
//!
//! Decides what a page was at a snapshot when memory knows it, and what to forget. Never decides what is visible. Driven
//! by the writer (new versions, before they are durable), by `advance` (newly durable frames on a secondary) and by
//! readers (look-ups, loads on a miss).
//!
//! A reader that loads a page at its pinned LSN races with changes of that page. Two things keep it honest:
//! - a load is registered before it goes to the volume, and each change marks the registered loads of its page;
//! - each shard remembers which pages changed since the oldest pin (`recent`). A load at an older LSN than its page's last
//!   change, or older than that memory reaches, is kept as valid at exactly its own LSN.

use super::horizon::Snapshot;
use crate::base::{LogEnd, Lsn, PageNo};
use crate::head::{PageError, PageSource};
use crate::log::Frame;
use crate::log::redo::{self, Change};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Valid until changed.
const STILL: Lsn = Lsn(u64::MAX);
/// What a version costs beside its bytes.
const VERSION_OVERHEAD_BYTES: usize = 96;
const SHARD_BYTES_MIN: usize = 256 << 10;
const RECENT_MAX: usize = 4096;

/// A page's bytes; it may be shorter than a page, the rest is zero.
pub type Page = Arc<[u8]>;

/// Why a page could not be given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    #[error(transparent)]
    Source(#[from] PageError),
    /// The volume was replaced under the snapshot.
    #[error("the region's volume was replaced while the statement ran; run it again")]
    Stale,
}

struct Version {
    from: Lsn,
    until: Lsn,
    page: Page,
    used: bool,
}

/// A load on its way: at which LSN, and the first change of the page since it was registered.
struct Load {
    id: u64,
    changed_at: Option<Lsn>,
}

/// Who looks: a reader of an incarnation, or the writer of a reign.
#[derive(Clone, Copy)]
enum For {
    Reader(u64),
    Writer(u64),
}

#[derive(Default)]
struct Shard {
    incarnation: u64,
    /// The writer that is admitted; 0: none.
    reign: u64,
    pages: BTreeMap<PageNo, Vec<Version>>,
    loads: BTreeMap<PageNo, Vec<Load>>,
    /// Last change of each page that changed after `floor`.
    recent: BTreeMap<PageNo, Lsn>,
    recent_prune_at: usize,
    floor: Lsn,
    /// Second chance: the oldest first. An entry whose version is gone is skipped.
    clock: VecDeque<(PageNo, Lsn)>,
    versions: usize,
    bytes: usize,
}

pub struct Pool {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes_max: usize,
    /// Held while changes are taken over; up to here they have been.
    applied: Mutex<Lsn>,
    /// Above it nothing is evicted: no copy can give it yet.
    durable: AtomicU64,
    next_load: AtomicU64,
    bytes: AtomicUsize,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Pool {
    pub fn new(bytes_max: usize) -> Pool {
        let shards = (bytes_max / SHARD_BYTES_MIN).clamp(1, 64);
        Pool {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_bytes_max: bytes_max / shards,
            applied: Mutex::default(),
            durable: AtomicU64::new(0),
            next_load: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Look-ups answered from memory, and those that went to a copy.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    pub fn applied(&self) -> Lsn {
        *self.applied.lock()
    }

    /// The page at a snapshot.
    ///
    /// # Errors
    /// When no copy can give it, or the volume was replaced.
    pub fn at(&self, page: PageNo, snapshot: Snapshot, source: &dyn PageSource) -> Result<Page, PoolError> {
        self.find(page, snapshot.lsn, For::Reader(snapshot.incarnation), source)
    }

    /// The page's newest version, durable or not. Only for the writer of `reign`: nobody else changes pages while it is admitted.
    ///
    /// # Errors
    /// When no copy can give it, or the writer was dismissed: its thread may still be at work when others change pages again.
    pub fn newest(&self, page: PageNo, visible: Lsn, reign: u64, source: &dyn PageSource) -> Result<Page, PoolError> {
        self.find(page, visible, For::Writer(reign), source)
    }

    /// From here to the next call only this writer changes pages (0: no writer does).
    pub fn admit(&self, reign: u64) {
        for shard in &self.shards {
            shard.lock().reign = reign;
        }
    }

    fn find(&self, page: PageNo, at: Lsn, whom: For, source: &dyn PageSource) -> Result<Page, PoolError> {
        let for_writer = matches!(whom, For::Writer(_));
        let is_stale = |shard: &Shard| match whom {
            For::Reader(incarnation) => incarnation != shard.incarnation,
            For::Writer(reign) => reign != shard.reign,
        };
        let mut shard = self.shard(page);
        if is_stale(&shard) {
            return Err(PoolError::Stale);
        }
        if let Some(version) = shard
            .pages
            .get_mut(&page)
            .and_then(|versions| versions.iter_mut().find(|v| if for_writer { v.until == STILL } else { v.from <= at && at < v.until }))
        {
            version.used = true;
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(version.page.clone());
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        // What was evicted was durable, so for the writer the newest version is the one at the visible LSN.
        let is_newest = for_writer || (at >= shard.floor && shard.recent.get(&page).is_none_or(|&changed| changed <= at));
        let id = self.next_load.fetch_add(1, Ordering::Relaxed);
        shard.loads.entry(page).or_default().push(Load { id, changed_at: None });
        drop(shard);

        let loaded = source.page_at(page, at);

        let mut shard = self.shard(page);
        // A cleared pool has forgotten the load: then it must not be kept.
        let load = shard.take_load(page, id);
        let loaded: Page = Arc::from(&loaded?[..]);
        if let Some(load) = load {
            let until = match (is_newest, load.changed_at) {
                (true, None) => STILL,
                (true, Some(changed)) => changed,
                (false, _) => at.next(),
            };
            self.keep(&mut shard, page, Version { from: at, until, page: loaded.clone(), used: true });
        }
        if is_stale(&shard) {
            return Err(PoolError::Stale);
        }
        Ok(loaded)
    }

    /// The writer's own commit, before it is handed to the log: these pages are so from `from` on.
    pub fn install(&self, changes: Vec<(PageNo, Page)>, from: Lsn, oldest_pin: Lsn) {
        let mut applied = self.applied.lock();
        assert!(from > *applied, "BUG: a commit at LSN {from} behind {}", *applied);
        for (page, bytes) in changes {
            let mut shard = self.shard(page);
            self.bytes.fetch_sub(shard.changed(page, from, oldest_pin), Ordering::Relaxed);
            self.keep(&mut shard, page, Version { from, until: STILL, page: bytes, used: true });
        }
        *applied = from;
    }

    /// Newly durable frames, up to the consistency point `vdl`. What the writer installed itself is skipped; on a
    /// secondary the changes are laid over the pages that are cached. Frames that do not fit empty the pool: then
    /// everything is read from the volume anew.
    pub fn advance(&self, vdl: &LogEnd, frames: &[Frame], oldest_pin: Lsn) {
        let mut applied = self.applied.lock();
        if vdl.end_lsn > *applied {
            match gather(frames, *applied, vdl.end_lsn) {
                Ok(changes) => {
                    for (page, changes) in changes {
                        self.apply(page, &changes, vdl.end_lsn, oldest_pin);
                    }
                }
                Err(reason) => {
                    tracing::warn!(applied = applied.0, vdl = vdl.end_lsn.0, reason, "the buffer pool starts anew");
                    self.forget(vdl.end_lsn, None);
                }
            }
            *applied = vdl.end_lsn;
        }
        self.durable.fetch_max(vdl.end_lsn.0, Ordering::SeqCst);
    }

    fn apply(&self, page: PageNo, changes: &[Change], from: Lsn, oldest_pin: Lsn) {
        let mut shard = self.shard(page);
        let newest = shard.pages.get(&page).and_then(|versions| versions.iter().find(|v| v.until == STILL)).map(|v| v.page.clone());
        self.bytes.fetch_sub(shard.changed(page, from, oldest_pin), Ordering::Relaxed);
        if let Some(newest) = newest {
            let mut bytes = newest.to_vec();
            for change in changes {
                change.apply(&mut bytes);
            }
            self.keep(&mut shard, page, Version { from, until: STILL, page: Arc::from(bytes), used: false });
        }
    }

    /// The volume was replaced: forgets everything. `at` is where the new one stands.
    pub fn reset(&self, at: Lsn, incarnation: u64) {
        let mut applied = self.applied.lock();
        self.forget(at, Some(incarnation));
        *applied = at;
        self.durable.store(at.0, Ordering::SeqCst);
    }

    /// The writer is gone: versions that are not durable may never become so. Durable ones are read again.
    pub fn forget_unsettled(&self, durable: Lsn) {
        let mut applied = self.applied.lock();
        if *applied > durable {
            self.forget(durable, None);
            *applied = durable;
        }
    }

    fn forget(&self, floor: Lsn, incarnation: Option<u64>) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            self.bytes.fetch_sub(shard.bytes, Ordering::Relaxed);
            let (incarnation, reign) = (incarnation.unwrap_or(shard.incarnation), shard.reign);
            *shard = Shard { incarnation, reign, floor, ..Shard::default() };
        }
    }

    fn shard(&self, page: PageNo) -> parking_lot::MutexGuard<'_, Shard> {
        self.shards[page.0 as usize % self.shards.len()].lock()
    }

    /// Puts a version in, joins it with the same one if it is there, and evicts what is too much.
    fn keep(&self, shard: &mut Shard, page: PageNo, version: Version) {
        let versions = shard.pages.entry(page).or_default();
        if let Some(same) = versions.iter_mut().find(|v| v.until == version.until && (version.until == STILL || v.from == version.from)) {
            // Two loads of the same version met; it is valid from the earlier one's LSN on.
            if version.from < same.from {
                let key = (page, same.from);
                same.from = version.from;
                if let Some(entry) = shard.clock.iter_mut().find(|e| **e == key) {
                    entry.1 = version.from;
                }
            }
            return;
        }
        let from = version.from;
        let cost = version.page.len() + VERSION_OVERHEAD_BYTES;
        versions.push(version);
        shard.clock.push_back((page, from));
        shard.versions += 1;
        shard.bytes += cost;
        self.bytes.fetch_add(cost, Ordering::Relaxed);
        let before = shard.bytes;
        shard.tidy_clock();
        shard.evict(self.shard_bytes_max, Lsn(self.durable.load(Ordering::SeqCst)));
        self.bytes.fetch_sub(before - shard.bytes, Ordering::Relaxed);
    }
}

impl Shard {
    /// `page` is another one from `from` on. Versions that no pin can see any more go; returns their bytes.
    fn changed(&mut self, page: PageNo, from: Lsn, oldest_pin: Lsn) -> usize {
        let mut freed = 0;
        if let Some(versions) = self.pages.get_mut(&page) {
            versions.retain_mut(|v| {
                v.until = v.until.min(from);
                let keep = v.until > oldest_pin && v.from < v.until;
                if !keep {
                    self.versions -= 1;
                    freed += v.page.len() + VERSION_OVERHEAD_BYTES;
                }
                keep
            });
        }
        self.bytes -= freed;
        for load in self.loads.get_mut(&page).into_iter().flatten() {
            load.changed_at.get_or_insert(from);
        }
        self.recent.insert(page, from);
        if self.recent.len() >= self.recent_prune_at.max(64) {
            // Every reader's LSN is at or above the oldest pin.
            self.recent.retain(|_, changed| *changed > oldest_pin);
            self.floor = self.floor.max(oldest_pin);
            if self.recent.len() > RECENT_MAX {
                self.recent.clear();
                self.floor = from;
            }
            self.recent_prune_at = self.recent.len() * 2;
        }
        freed
    }

    fn take_load(&mut self, page: PageNo, id: u64) -> Option<Load> {
        let loads = self.loads.get_mut(&page)?;
        let at = loads.iter().position(|l| l.id == id)?;
        let load = loads.swap_remove(at);
        if loads.is_empty() {
            self.loads.remove(&page);
        }
        Some(load)
    }

    /// A page that is written all the time leaves an entry behind for each version that went without eviction.
    fn tidy_clock(&mut self) {
        if self.clock.len() > 64 + 2 * self.versions {
            let pages = &self.pages;
            self.clock.retain(|(page, from)| pages.get(page).is_some_and(|versions| versions.iter().any(|v| v.from == *from)));
        }
    }

    fn evict(&mut self, bytes_max: usize, durable: Lsn) {
        // Once round to take away the second chances, once more to take the pages.
        let mut looks = self.clock.len() * 2;
        while self.bytes > bytes_max && looks > 0 {
            looks -= 1;
            let Some((page, from)) = self.clock.pop_front() else { return };
            let Some(versions) = self.pages.get_mut(&page) else { continue };
            let Some(at) = versions.iter().position(|v| v.from == from) else { continue };
            let version = &mut versions[at];
            // A closed version goes without a second chance: it can only be of use to snapshots that are passing.
            if version.from > durable || (version.used && version.until == STILL) {
                version.used = false;
                self.clock.push_back((page, from));
                continue;
            }
            self.bytes -= version.page.len() + VERSION_OVERHEAD_BYTES;
            versions.swap_remove(at);
            self.versions -= 1;
            if versions.is_empty() {
                self.pages.remove(&page);
            }
        }
    }
}

/// The changes of each page in `frames`, in order, from `applied` up to `end`.
fn gather(frames: &[Frame], applied: Lsn, end: Lsn) -> Result<BTreeMap<PageNo, Vec<Change>>, &'static str> {
    let mut changes: BTreeMap<PageNo, Vec<Change>> = BTreeMap::new();
    let mut at = applied;
    for frame in frames.iter().filter(|f| !f.is_control() && f.end_lsn() > applied && f.end_lsn() <= end) {
        if frame.header().first_lsn != at {
            return Err("there is a gap in the frames");
        }
        at = frame.end_lsn();
        for record in redo::records(&frame.payload()).map_err(|e| e.reason)? {
            changes.entry(record.page).or_default().push(record.change);
        }
    }
    if at == end { Ok(changes) } else { Err("the frames do not reach the VDL") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::mpsc;

    const P: PageNo = PageNo(7);

    /// Says what it was asked, and answers what it is told.
    struct Slow {
        asked: mpsc::SyncSender<Lsn>,
        answers: Mutex<mpsc::Receiver<Bytes>>,
    }

    impl PageSource for Slow {
        fn page_at(&self, _page: PageNo, at: Lsn) -> Result<Bytes, PageError> {
            self.asked.send(at).unwrap();
            Ok(self.answers.lock().recv().unwrap())
        }
    }

    fn slow() -> (Arc<Slow>, mpsc::Receiver<Lsn>, mpsc::Sender<Bytes>) {
        let (asked, asks) = mpsc::sync_channel(10);
        let (answer, answers) = mpsc::channel();
        (Arc::new(Slow { asked, answers: Mutex::new(answers) }), asks, answer)
    }

    fn at(lsn: u64) -> Snapshot {
        Snapshot { lsn: Lsn(lsn), incarnation: 0 }
    }

    #[test]
    fn a_page_that_changes_while_it_is_loaded_is_not_kept_as_current() {
        let pool = Arc::new(Pool::new(1 << 20));
        let (source, asks, answer) = slow();
        let reader = {
            let (pool, source) = (pool.clone(), source.clone());
            std::thread::spawn(move || pool.at(P, at(0), &*source).unwrap())
        };
        assert_eq!(asks.recv().unwrap(), Lsn(0));
        pool.install(vec![(P, Arc::from(&b"new"[..]))], Lsn(10), Lsn(0));
        answer.send(Bytes::from_static(b"old")).unwrap();
        assert_eq!(&reader.join().unwrap()[..], b"old");
        assert_eq!(&pool.at(P, at(10), &*source).unwrap()[..], b"new");
        assert_eq!(&pool.at(P, at(5), &*source).unwrap()[..], b"old", "what was loaded is valid up to the change");
        assert_eq!(pool.hits_and_misses(), (2, 1));
    }

    #[test]
    fn a_load_behind_a_change_that_is_already_past_is_valid_at_its_own_lsn_only() {
        let pool = Pool::new(1 << 20);
        let (source, _asks, answer) = slow();
        // Not cached, so the change is only remembered; then a reader of an older snapshot loads the page.
        pool.shard(P).changed(P, Lsn(10), Lsn(0));
        answer.send(Bytes::from_static(b"old")).unwrap();
        assert_eq!(&pool.at(P, at(4), &*source).unwrap()[..], b"old");
        assert_eq!(&pool.at(P, at(4), &*source).unwrap()[..], b"old", "kept for its own snapshot");
        answer.send(Bytes::from_static(b"new")).unwrap();
        assert_eq!(&pool.at(P, at(12), &*source).unwrap()[..], b"new", "but not for others");
        assert_eq!(pool.hits_and_misses(), (1, 2));
    }

    #[test]
    fn a_writer_that_was_dismissed_leaves_nothing_in_the_pool() {
        let pool = Pool::new(1 << 20);
        let (source, _asks, answer) = slow();
        pool.admit(3);
        pool.admit(0);
        // Another writer's change is laid over what is cached (nothing) before the old writer's thread looks.
        pool.shard(P).changed(P, Lsn(10), Lsn(0));
        answer.send(Bytes::from_static(b"old")).unwrap();
        assert!(matches!(pool.newest(P, Lsn(4), 3, &*source), Err(PoolError::Stale)), "it would be kept as the newest");
        assert_eq!((pool.hits_and_misses(), pool.bytes()), ((0, 0), 0));
    }

    #[test]
    fn what_is_not_durable_is_never_evicted_and_the_rest_stays_in_its_bounds() {
        let pool = Pool::new(8 * (64 + VERSION_OVERHEAD_BYTES));
        let (source, _asks, answer) = slow();
        let page = |n: u8| -> Page { Arc::from(&[n; 64][..]) };
        pool.install((0..20).map(|n| (PageNo(n), page(1))).collect(), Lsn(10), Lsn(0));
        for n in 0..20 {
            assert_eq!(pool.newest(PageNo(n), Lsn(0), 0, &*source).unwrap(), page(1));
        }
        pool.durable.store(10, Ordering::SeqCst);
        pool.install(vec![(PageNo(0), page(2))], Lsn(20), Lsn(10));
        assert!(pool.bytes() <= 8 * (64 + VERSION_OVERHEAD_BYTES), "{} bytes", pool.bytes());
        for _ in 0..12 {
            answer.send(Bytes::copy_from_slice(&page(1))).unwrap();
        }
        assert_eq!(pool.newest(PageNo(0), Lsn(10), 0, &*source).unwrap(), page(2), "the version at 20 is not durable");
    }

    #[test]
    fn a_page_that_is_written_all_the_time_costs_no_more_memory_over_time() {
        let pool = Pool::new(1 << 20);
        for n in 1..10_000 {
            pool.install(vec![(P, Arc::from(&[1u8; 100][..]))], Lsn(n), Lsn(n - 1));
            pool.durable.store(n, Ordering::SeqCst);
        }
        let shard = pool.shard(P);
        assert!(shard.versions <= 2 && shard.clock.len() < 100 && shard.recent.len() == 1, "{} {}", shard.versions, shard.clock.len());
        assert_eq!(pool.bytes(), shard.bytes);
    }

    #[test]
    fn a_reset_makes_old_snapshots_stale_and_forgets_loads_on_their_way() {
        let pool = Arc::new(Pool::new(1 << 20));
        let (source, asks, answer) = slow();
        let reader = {
            let (pool, source) = (pool.clone(), source.clone());
            std::thread::spawn(move || pool.at(P, at(0), &*source))
        };
        asks.recv().unwrap();
        pool.reset(Lsn(3), 1);
        answer.send(Bytes::from_static(b"of the old volume")).unwrap();
        assert!(matches!(reader.join().unwrap(), Err(PoolError::Stale)));
        assert!(matches!(pool.at(P, at(0), &*source), Err(PoolError::Stale)));
        answer.send(Bytes::from_static(b"of the new one")).unwrap();
        let new = pool.at(P, Snapshot { lsn: Lsn(3), incarnation: 1 }, &*source).unwrap();
        assert_eq!(&new[..], b"of the new one");
    }
}
