//! Pages of the region for its SQL engine, read past the copies' threads: a read never waits for an fsync, and no disk that stalls
//! stops a reader.
//!
//! What lies in memory is read on the reader's own thread. Everything else is asked of a copy (its few reading threads, or its process
//! on another machine), and of another one when that takes longer than it usually does; the first good answer counts. Which
//! copy, and when the next, is [`super::hedge`]'s decision. Driven by the readers' threads, which wait here.

use super::hedge::Hedge;
use super::slow::Drills;
use crate::base::{CopyId, Generation, GroupId, Instant, Layout, Lsn, MemberId, PageNo};
use crate::head::{PageError, PageSource};
use crate::io::clock;
use crate::volume::{PageStore, ReadError};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

/// A reader waits so long for some copy to have the page versions it asks for.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Threads that read one copy's disk. When all of them are stuck in it, the copy is not asked.
const THREADS_PER_COPY: usize = 2;
/// Reads that wait for those threads.
const WAITING_PER_COPY: usize = 32;

/// Where a page may come from that is not in this process.
pub trait RemotePages: Send + Sync {
    /// Asks, without waiting. False: the copy cannot be asked now.
    fn ask(&self, of: Generation, page: PageNo, at: Lsn, answer: Answer) -> bool;
}

/// Why a copy, or none of them, gave a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It folded it away: versions are there from `first` on.
    Folded { first: Lsn },
    /// It may come in a moment, or from another copy.
    Now { reason: String },
}

impl Miss {
    #[must_use]
    pub fn now(reason: impl Into<String>) -> Miss {
        Miss::Now { reason: reason.into() }
    }
}

/// Where the answer to one question goes; how long it took is noted whenever it comes.
pub struct Answer {
    source: usize,
    began: Instant,
    hedge: Arc<Mutex<Hedge>>,
    to: Sender<Result<Bytes, Miss>>,
}

impl Answer {
    /// The page, or why it cannot be read there.
    pub fn give(self, page: Result<Bytes, Miss>) {
        let now = clock::now();
        self.hedge.lock().answered(self.source, now.since(self.began), now);
        // Another copy may have been faster: then nobody waits any more.
        let _ = self.to.send(page);
    }
}

/// Takes a page, or why it cannot be read there.
pub type Give = Box<dyn FnOnce(Result<Bytes, Miss>) + Send>;

struct Question {
    store: Arc<PageStore>,
    page: PageNo,
    at: Lsn,
    began: Instant,
    give: Give,
}

/// The page stores of the copies in this process; the copies on other machines.
pub struct Pages {
    layout: Layout,
    /// In the order of [`MemberId::all`].
    stores: RwLock<Vec<Option<Arc<PageStore>>>>,
    /// Copies that left their duty and are still read.
    left: Mutex<BTreeSet<MemberId>>,
    /// The volume's: a copy that has not heard of it may be on a history that the volume left.
    generation: AtomicU64,
    /// Of each place: the disk is the same for its copies of all groups.
    readers: Vec<SyncSender<Question>>,
    remote: BTreeMap<MemberId, Arc<dyn RemotePages>>,
    hedge: Arc<Mutex<Hedge>>,
    drills: Drills,
    hedged: AtomicU64,
    waiters: AtomicU32,
    moved: Mutex<()>,
    moved_signal: Condvar,
}

impl Pages {
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(layout: Layout, remote: BTreeMap<MemberId, Arc<dyn RemotePages>>, drills: &Drills) -> std::io::Result<Arc<Pages>> {
        let is_remote = |copy: CopyId| remote.keys().any(|id| id.copy == copy);
        let mut readers = Vec::new();
        for copy in CopyId::all() {
            let (tx, rx) = sync_channel(WAITING_PER_COPY);
            let rx = Arc::new(Mutex::new(rx));
            let threads = if is_remote(copy) { 0 } else { THREADS_PER_COPY };
            for _ in 0..threads {
                let (rx, drills) = (Arc::clone(&rx), drills.clone());
                // They end when `Pages` does. One that is stuck in its disk is waited for by nobody.
                std::thread::Builder::new().name(format!("pages-{copy}")).spawn(move || read_pages(copy, &rx, &drills))?;
            }
            readers.push(tx);
        }
        Ok(Arc::new(Pages {
            layout,
            stores: RwLock::new(vec![None; MemberId::all(layout.groups).count()]),
            left: Mutex::default(),
            generation: AtomicU64::new(0),
            readers,
            hedge: Arc::new(Mutex::new(Hedge::new(CopyId::all().map(is_remote)))),
            remote,
            drills: drills.clone(),
            hedged: AtomicU64::new(0),
            waiters: AtomicU32::new(0),
            moved: Mutex::new(()),
            moved_signal: Condvar::new(),
        }))
    }

    pub(super) fn set(&self, copy: MemberId, store: Option<Arc<PageStore>>) {
        let mut stores = self.stores.write();
        self.left.lock().remove(&copy);
        stores[copy.index()] = store;
    }

    pub(super) fn leave(&self, copy: MemberId) {
        self.left.lock().insert(copy);
    }

    /// The volume begins anew at some position, under `generation`: what a copy out of duty has may not be what lies there now.
    pub fn forget_left(&self, generation: Generation) {
        self.generation.store(generation.0, Ordering::SeqCst);
        let mut stores = self.stores.write();
        for copy in std::mem::take(&mut *self.left.lock()) {
            stores[copy.index()] = None;
        }
    }

    fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::SeqCst))
    }

    pub(super) fn moved(&self) {
        if self.waiters.load(Ordering::Relaxed) > 0 {
            let _held = self.moved.lock();
            self.moved_signal.notify_all();
        }
    }

    /// Reads for which a second copy was asked, since the start.
    #[must_use]
    pub fn hedged(&self) -> u64 {
        self.hedged.load(Ordering::Relaxed)
    }

    /// What needs no disk, from whichever copy of this process has it.
    fn in_memory(&self, group: GroupId, page: PageNo, at: Lsn) -> Option<Bytes> {
        let stores = self.stores.read();
        let fast = |id: &MemberId| self.drills.of(id.copy).delay().is_zero();
        let mut open = MemberId::of(group).into_iter().filter(fast).filter_map(|id| stores[id.index()].as_ref());
        // What is in memory is about the same in all of them.
        let of = self.generation();
        open.find(|store| store.serves(of) && store.ingested() >= at)?.read_in_memory(page, at)
    }

    /// From whichever copy has it, hedged. `Err` with the last reason when none has it now.
    fn try_read(&self, page: PageNo, at: Lsn, until: Instant) -> Result<Bytes, Miss> {
        let group = self.layout.group_of(page);
        if let Some(bytes) = self.in_memory(group, page, at) {
            return Ok(bytes);
        }
        let members = MemberId::of(group);
        let able = {
            let stores = self.stores.read();
            members.map(|id| stores[id.index()].is_some() || self.remote.contains_key(&id))
        };
        let mut order = self.hedge.lock().order(able, clock::now()).into_iter();
        let (to, answers) = channel();
        let mut missed = None;
        let mut waiting = 0;
        loop {
            let began = clock::now();
            let asked = order.by_ref().find(|i| self.ask(members[*i], page, at, began, &to));
            let patience = match asked {
                Some(source) => {
                    waiting += 1;
                    self.hedge.lock().patience(source)
                }
                // All were asked that could be: whoever answers first.
                None => until.since(began),
            };
            if waiting == 0 {
                return Err(missed.unwrap_or_else(|| Miss::now("no copy is open")));
            }
            match answers.recv_timeout(patience) {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(miss)) => {
                    missed = Some(worst(missed, miss));
                    waiting -= 1;
                }
                Err(RecvTimeoutError::Timeout) => match asked {
                    Some(source) => {
                        self.hedge.lock().overdue(source, patience, clock::now());
                        self.hedged.fetch_add(1, Ordering::Relaxed);
                    }
                    None => return Err(Miss::now(format!("{waiting} copies do not answer"))),
                },
                Err(RecvTimeoutError::Disconnected) => unreachable!("BUG: this function holds a sender"),
            }
        }
    }

    fn ask(&self, id: MemberId, page: PageNo, at: Lsn, began: Instant, to: &Sender<Result<Bytes, Miss>>) -> bool {
        let answer = Answer { source: id.copy.index(), began, hedge: Arc::clone(&self.hedge), to: to.clone() };
        match self.remote.get(&id) {
            Some(remote) => remote.ask(self.generation(), page, at, answer),
            None => self.read_of(id, self.generation(), page, at, Box::new(move |page| answer.give(page))),
        }
    }

    /// Asks one copy of this process, for a volume of generation `of`. False: it is not open, or has not heard of that, or its threads are stuck in their disk.
    pub fn read_of(&self, id: MemberId, of: Generation, page: PageNo, at: Lsn, give: Give) -> bool {
        let Some(store) = self.stores.read()[id.index()].clone().filter(|store| store.serves(of)) else { return false };
        let question = Question { store, page, at, began: clock::now(), give };
        match self.readers[id.copy.index()].try_send(question) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

/// Folded only where all say so.
fn worst(before: Option<Miss>, next: Miss) -> Miss {
    match (before, next) {
        (None, miss) => miss,
        (Some(Miss::Folded { first }), Miss::Folded { first: other }) => Miss::Folded { first: first.min(other) },
        (Some(now @ Miss::Now { .. }), Miss::Folded { .. }) => now,
        (Some(_), now) => now,
    }
}

fn read_pages(copy: CopyId, questions: &Mutex<Receiver<Question>>, drills: &Drills) {
    loop {
        let question = questions.lock().recv();
        let Ok(Question { store, page, at, began, give }) = question else { return };
        let read = store.read(page, at);
        drills.of(copy).pause(began);
        give(read.map_err(|e| match e {
            ReadError::TooOld { first, .. } => Miss::Folded { first },
            // Behind: another copy may have it. The rest is worth a line.
            ReadError::NotYet { .. } | ReadError::Distrusted { .. } => Miss::now(e.to_string()),
            e => {
                tracing::warn!(%copy, page = page.0, "{e}");
                Miss::now(e.to_string())
            }
        }));
    }
}

impl PageSource for Pages {
    fn page_at(&self, page: PageNo, at: Lsn) -> Result<Bytes, PageError> {
        let until = clock::now() + PAGE_WAIT_MAX;
        if let Ok(bytes) = self.try_read(page, at, until) {
            return Ok(bytes);
        }
        // Copies turn frames into pages a moment after they are durable.
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let outcome = loop {
            match self.try_read(page, at, until) {
                Ok(bytes) => break Ok(bytes),
                Err(Miss::Folded { first }) => break Err(PageError::TooOld { at, first }),
                Err(Miss::Now { reason }) if clock::now() >= until => break Err(PageError::Unavailable { page, at, reason }),
                Err(_) => {
                    let mut held = self.moved.lock();
                    self.moved_signal.wait_for(&mut held, Duration::from_millis(2));
                }
            }
        };
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ClusterName, Limits, RegionName};
    use crate::io::copies::{Copies, Drill, Whose};
    use crate::io::driver::Queue;

    /// Answers at once, or never.
    struct Far {
        answers: bool,
        asked: AtomicU64,
        /// Held for ever: its process was stopped.
        held: Mutex<Vec<Answer>>,
    }

    impl RemotePages for Far {
        fn ask(&self, _: Generation, page: PageNo, _: Lsn, answer: Answer) -> bool {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.answers {
                answer.give(Ok(Bytes::copy_from_slice(&page.0.to_le_bytes())));
            } else {
                self.held.lock().push(answer);
            }
            true
        }
    }

    #[test]
    fn a_copy_that_does_not_answer_is_asked_no_more_than_now_and_then() {
        let far: Vec<Arc<Far>> =
            (0..6).map(|i| Arc::new(Far { answers: i == 4, asked: AtomicU64::new(0), held: Mutex::default() })).collect();
        let remote = MemberId::all(1).zip(&far).map(|(id, far)| (id, Arc::clone(far) as Arc<dyn RemotePages>)).collect();
        let pages = Pages::new(Layout::default(), remote, &Drills::default()).unwrap();
        for page in 0..500 {
            assert_eq!(&pages.page_at(PageNo(page), Lsn(1)).unwrap()[..], page.to_le_bytes());
        }
        let hedged = pages.hedged();
        assert!(hedged > 0 && hedged < 250, "{hedged} of 500 reads were hedged");
        assert_eq!(far[4].asked.load(Ordering::Relaxed), 500);
    }

    #[test]
    fn disks_that_stall_stop_no_reader_while_one_answers() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::new();
        let whose = Whose {
            cluster: ClusterName::new("sun").unwrap(),
            region: RegionName::new("us").unwrap(),
            data_dir: dir.path().to_path_buf(),
            limits: Limits::tiny(),
            key: None,
        };
        let copies = Copies::start(whose, Layout::default(), &queue.inbox, Vec::new()).unwrap();
        let pages = copies.pages();
        // Waits until the first of them is open. An empty copy knows of every page, as of the beginning, that it is not there.
        assert!(pages.page_at(PageNo(1), Lsn(0)).unwrap().is_empty());
        for copy in CopyId::all().into_iter().filter(|c| *c != CopyId(3)) {
            copies.drill(copy, Drill::Slow(Duration::from_secs(60)));
        }
        std::thread::scope(|readers| {
            for reader in 0..4 {
                let pages = &pages;
                readers.spawn(move || {
                    for page in 0..100 {
                        // Would end in an error if it waited for one of the five.
                        assert!(pages.page_at(PageNo(1 + reader * 100 + page), Lsn(0)).unwrap().is_empty());
                    }
                });
            }
        });
        assert!(pages.hedged() > 0);
        copies.stop();
    }
}
