//! The copies of a region in this process, six for each protection group: one thread each, one directory each, one shared thread for
//! layers.
//!
//! Decides nothing about the log: it opens a [`Copy`], feeds it what the node says in the order that the copy asks for, and
//! opens it again, after a moment, when it left its duty. A failed fsync is thus never tried again on the same file: the copy
//! that comes back has read its disk anew. A copy whose disk is full is read on and opened again when there is room. Driven by `io::driver` through [`Copies::send`]; answers come as node events.

mod layers;
pub mod places;
pub mod slow;

use super::clock;
use super::disk::FileDisk;
use super::driver::Inbox;
use crate::base::{ClusterName, CopyId, Layout, Limits, Lsn, MemberId, PageNo, RegionName};
use crate::head::{PageError, PageSource};
use crate::node::Event;
use crate::volume::identity::{self, Home};
use crate::volume::membership::Incarnation;
use crate::volume::{Copy, CopyRequest, DiskError, FlushDone, OpenError, PageStore, ReadError};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use places::Places;
use slow::Drills;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two attempts to open a copy that failed.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
const STOPPED: &str = "stopped by an operator; start it with `parhelion copy start`";
/// A reader waits so long for some copy to have the page versions it asks for.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a copy's thread is told.
pub enum Order {
    Request(CopyRequest),
    /// Out of duty, for a drill, until `Start`.
    Stop,
    Start,
    /// Answers come so much later, for a drill; zero ends it.
    Slow(Duration),
    JobDone(FlushDone),
    /// From now on its directory is this one.
    Move(PathBuf),
    /// Its former (or intended) directory has left the volume for good: mark it.
    Retire {
        directory: PathBuf,
        by: Incarnation,
        place: String,
    },
    /// A reader met damage: the copy is to tell of it.
    Look,
    End,
}

/// The copies' threads, and the one that writes layers.
pub struct Copies {
    /// In the order of [`MemberId::all`].
    orders: Vec<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
    pages: Arc<Pages>,
    /// The volume serves: a damaged copy may be moved aside, because its peers can rebuild it.
    serving: Arc<AtomicBool>,
    drills: Drills,
    places: Places,
}

/// Pages of the region for its SQL engine, read past the copies' threads: a read never waits for an fsync.
pub struct Pages {
    layout: Layout,
    /// In the order of [`MemberId::all`].
    stores: RwLock<Vec<Option<Arc<PageStore>>>>,
    /// Copies that left their duty and are still read.
    left: Mutex<BTreeSet<MemberId>>,
    waiters: AtomicU32,
    moved: Mutex<()>,
    moved_signal: Condvar,
    turn: AtomicU32,
}

impl Copies {
    /// Starts all threads; each opens its copy below `dir` and reports to `inbox`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        dir: &Path,
        cluster: &ClusterName,
        region: &RegionName,
        limits: &Limits,
        layout: Layout,
        inbox: &Inbox,
    ) -> std::io::Result<Copies> {
        let pages = Arc::new(Pages {
            layout,
            stores: RwLock::new(vec![None; MemberId::all(layout.groups).count()]),
            left: Mutex::default(),
            waiters: AtomicU32::new(0),
            moved: Mutex::new(()),
            moved_signal: Condvar::new(),
            turn: AtomicU32::new(0),
        });
        let serving = Arc::new(AtomicBool::new(false));
        let (jobs, job_rx) = channel::<layers::Job>();
        let mut copies = Copies {
            orders: Vec::new(),
            threads: Vec::new(),
            pages: Arc::clone(&pages),
            serving: Arc::clone(&serving),
            drills: Drills::default(),
            places: Places::load(&dir.join("copies"))?,
        };
        // One thread for all layers: compaction takes at most one core, whatever six copies want at once.
        copies.threads.push(std::thread::Builder::new().name("layers".into()).spawn(move || {
            layers::run(&job_rx);
        })?);
        for id in MemberId::all(layout.groups) {
            let (tx, rx) = channel();
            let home = Home { cluster: cluster.clone(), region: region.clone(), group: id.group.0, slot: id.copy };
            let worker = Worker {
                id,
                home,
                dir: copies.places.directory(id),
                limits: limits.clone(),
                inbox: inbox.clone(),
                rx,
                own: tx.clone(),
                jobs: jobs.clone(),
                pages: Arc::clone(&pages),
                serving: Arc::clone(&serving),
                drills: copies.drills.clone(),
            };
            copies.orders.push(tx);
            copies.threads.push(std::thread::Builder::new().name(format!("copy-{id}")).spawn(move || worker.run())?);
        }
        Ok(copies)
    }

    pub fn send(&self, copy: MemberId, request: CopyRequest) {
        // A copy thread only ends at `End`; a message behind that is for nobody.
        let _ = self.orders[copy.index()].send(Order::Request(request));
    }

    /// An operator's order (stop, start, slow), to the copy of that name in every group: it is the name of a place.
    pub fn order(&self, copy: CopyId, order: Order) {
        for group in self.pages.layout.all_groups() {
            let order = match &order {
                Order::Stop => Order::Stop,
                Order::Start => Order::Start,
                Order::Slow(delay) => return self.drills.of(copy).set(*delay),
                Order::Request(_) | Order::JobDone(_) | Order::Move(_) | Order::Retire { .. } | Order::Look | Order::End => {
                    unreachable!("BUG: no operator orders that")
                }
            };
            let _ = self.orders[MemberId { group, copy }.index()].send(order);
        }
    }

    /// Where the copies live from now on: noted for the next start, and each that lives elsewhere moves.
    pub fn set_places(&mut self, places: [Option<String>; 6]) {
        if let Err(e) = self.places.note(places) {
            tracing::warn!("where the copies live cannot be noted for the next start: {e}; the copies know it");
        }
        for member in MemberId::all(self.pages.layout.groups) {
            let _ = self.orders[member.index()].send(Order::Move(self.places.directory(member)));
        }
    }

    /// Marks the directories of `slot` in `place`: those of `by` have its slot.
    pub fn retire(&self, slot: CopyId, place: Option<&str>, by: &[Incarnation]) {
        for (group, by) in self.pages.layout.all_groups().zip(by) {
            let member = MemberId { group, copy: slot };
            let directory = self.places.base(place).join(member.to_string());
            let lives = self.places.directory(member).display().to_string();
            let _ = self.orders[member.index()].send(Order::Retire { directory, by: *by, place: lives });
        }
    }

    #[must_use]
    pub fn pages(&self) -> Arc<Pages> {
        Arc::clone(&self.pages)
    }

    #[must_use]
    pub fn drills(&self) -> &Drills {
        &self.drills
    }

    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// Ends all threads, after what they were told before.
    pub fn stop(mut self) {
        self.drills.end();
        for orders in self.orders.drain(..) {
            let _ = orders.send(Order::End);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Worker {
    id: MemberId,
    /// Only a directory that is this one's is opened.
    home: Home,
    dir: PathBuf,
    limits: Limits,
    inbox: Inbox,
    rx: Receiver<Order>,
    own: Sender<Order>,
    jobs: Sender<layers::Job>,
    pages: Arc<Pages>,
    serving: Arc<AtomicBool>,
    drills: Drills,
}

/// For a directory that is new; no two of any region share it.
fn fresh_incarnation() -> Result<Incarnation, DiskError> {
    let mut bits = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bits)
        .map_err(|_| DiskError::Failed { name: "identity".into(), reason: "the system gives no random numbers".into() })?;
    Ok(Incarnation(u128::from_le_bytes(bits)))
}

enum Ended {
    /// Opened again after a moment.
    Failed(String),
    /// By an operator, until he starts it again.
    Stopped,
    /// It lives elsewhere now, and is opened there.
    Moved(PathBuf),
    Process,
}

impl Worker {
    fn run(mut self) {
        loop {
            let mut full = None;
            let ended = match self.open() {
                Ok((copy, disk)) => {
                    let ended = self.serve(copy);
                    full = Some(disk).filter(|disk| matches!(ended, Ended::Failed(_)) && self.is_full(disk));
                    ended
                }
                Err(reason) => Ended::Failed(reason),
            };
            match &full {
                // What it has is right: only what is durable in the region becomes pages. Others may be full, too.
                Some(_) => self.pages.leave(self.id),
                None => self.pages.set(self.id, None),
            }
            let (reason, mut until) = match ended {
                Ended::Process => return,
                Ended::Failed(reason) => (reason, Some(clock::now() + REOPEN_AFTER)),
                Ended::Stopped => (STOPPED.to_owned(), None),
                Ended::Moved(dir) => {
                    self.dir = dir;
                    ("its slot changes its directory".to_owned(), Some(clock::now()))
                }
            };
            self.inbox.send(Event::CopyLost { copy: self.id, reason });
            // What is sent meanwhile is for a copy that is not there.
            loop {
                let order = match until {
                    None => self.rx.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(at) => self.rx.recv_timeout(at.since(clock::now())),
                };
                match order {
                    Err(RecvTimeoutError::Timeout) if full.as_ref().is_some_and(|disk| self.is_full(disk)) => {
                        until = Some(clock::now() + REOPEN_AFTER);
                    }
                    Ok(Order::Start) | Err(RecvTimeoutError::Timeout) => break,
                    Ok(Order::Stop) => {
                        until = None;
                        self.inbox.send(Event::CopyLost { copy: self.id, reason: STOPPED.to_owned() });
                    }
                    Ok(Order::Move(dir)) if dir != self.dir => {
                        self.dir = dir;
                        until = until.map(|_| clock::now());
                    }
                    Ok(Order::Retire { directory, by, place }) => places::retire(&directory, by, &place),
                    Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(_) => {}
                }
            }
            self.pages.set(self.id, None);
        }
    }

    /// No room for one more file of the log, and the copy met that.
    fn is_full(&self, disk: &FileDisk) -> bool {
        disk.is_full(self.limits.log_file_bytes)
    }

    fn open(&self) -> Result<(Copy, Arc<FileDisk>), String> {
        let disk = Arc::new(FileDisk::open(&self.dir).map_err(|e| e.to_string())?);
        match self.open_on(&disk) {
            Err(e @ OpenError::Damaged { .. }) if self.serving.load(Ordering::Relaxed) => {
                // The volume serves without it and will rebuild it. What is damaged is kept for whoever wants to look at it.
                let aside = self.dir.with_file_name(format!("{}.damaged-{}", self.id, clock::unix_now().0 / 1_000_000));
                std::fs::rename(&self.dir, &aside).map_err(|io| format!("{e}; and it cannot be moved aside: {io}"))?;
                tracing::warn!(copy = %self.id, kept = %aside.display(), "{e}");
                self.inbox.send(Event::CopyLost { copy: self.id, reason: format!("{e}; it was moved to {}", aside.display()) });
                self.forget_older_than(&aside);
                let disk = Arc::new(FileDisk::open(&self.dir).map_err(|e| e.to_string())?);
                self.open_on(&disk).map(|copy| (copy, disk)).map_err(|e| e.to_string())
            }
            other => other.map(|copy| (copy, disk)).map_err(|e| e.to_string()),
        }
    }

    /// Of the damaged directories of this copy the newest is kept: otherwise a bad disk fills itself.
    fn forget_older_than(&self, newest: &Path) {
        let (Some(parent), Some(stem)) = (self.dir.parent(), self.dir.file_name().and_then(|n| n.to_str())) else { return };
        let Ok(entries) = std::fs::read_dir(parent) else { return };
        for old in entries.flatten().map(|e| e.path()).filter(|p| p != newest) {
            let of_this_copy = old.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&format!("{stem}.damaged-")));
            if of_this_copy {
                match std::fs::remove_dir_all(&old) {
                    Ok(()) => tracing::info!(copy = %self.id, "{} is removed: only the newest damaged directory is kept", old.display()),
                    Err(e) => tracing::warn!(copy = %self.id, "{} cannot be removed: {e}; remove it by hand", old.display()),
                }
            }
        }
    }

    fn open_on(&self, disk: &Arc<FileDisk>) -> Result<Copy, OpenError> {
        identity::settle(&**disk, &self.home, fresh_incarnation()?)?;
        Copy::open_group(self.id.group, disk.clone(), &self.limits)
    }

    fn serve(&self, mut copy: Copy) -> Ended {
        let own = self.own.clone();
        // The copy tells of it with the next thing it does.
        copy.pages().wake_on_damage(Box::new(move || drop(own.send(Order::Look))));
        self.pages.set(self.id, Some(copy.pages()));
        self.inbox.send(Event::CopyOpened { copy: self.id, promised: copy.promised() });
        let mut replies = Vec::new();
        let mut ended = None;
        let mut more = false;
        loop {
            let first = if more {
                match self.rx.try_recv() {
                    Ok(order) => Some(order),
                    Err(std::sync::mpsc::TryRecvError::Empty) => None,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ended::Process,
                }
            } else {
                match self.rx.recv() {
                    Ok(order) => Some(order),
                    Err(_) => return Ended::Process,
                }
            };
            let began = clock::now();
            // Group commit: everything that arrived while the last fsync ran goes into the next one.
            let mut bytes = 0;
            for order in first.into_iter().chain(std::iter::from_fn(|| self.rx.try_recv().ok())) {
                match order {
                    Order::Request(request) => {
                        if let CopyRequest::Append { frames, .. } = &request {
                            bytes += frames.iter().map(|f| f.bytes().len()).sum::<usize>();
                        }
                        copy.handle(request, &mut replies);
                    }
                    Order::JobDone(done) => copy.finish(done, &mut replies),
                    Order::Move(dir) if dir == self.dir => {}
                    Order::Move(dir) => ended = Some(Ended::Moved(dir)),
                    Order::Retire { directory, by, place } => places::retire(&directory, by, &place),
                    Order::Stop => ended = Some(Ended::Stopped),
                    Order::Start | Order::Look | Order::Slow(_) => {}
                    Order::End => ended = Some(Ended::Process),
                }
                if ended.is_some() || bytes >= self.limits.copy_window_bytes_max {
                    break;
                }
            }
            copy.flush(&mut replies);
            self.drills.of(self.id.copy).pause(began);
            self.reply(&mut replies);
            if let Some(ended) = ended {
                return ended;
            }
            more = copy.ingest(&mut replies);
            self.pages.moved();
            while let Some(job) = copy.background_job() {
                let _ = self.jobs.send((job, self.own.clone()));
            }
            self.reply(&mut replies);
            if let Some(reason) = copy.failed() {
                return Ended::Failed(reason.to_owned());
            }
        }
    }

    fn reply(&self, replies: &mut Vec<crate::volume::CopyReply>) {
        for reply in replies.drain(..) {
            // Leaving duty is told once, by `CopyLost`.
            if !matches!(reply, crate::volume::CopyReply::Failed { .. }) {
                self.inbox.send(Event::CopyReplied { copy: self.id, reply });
            }
        }
    }
}

impl Pages {
    fn set(&self, copy: MemberId, store: Option<Arc<PageStore>>) {
        let mut stores = self.stores.write();
        self.left.lock().remove(&copy);
        stores[copy.index()] = store;
    }

    fn leave(&self, copy: MemberId) {
        self.left.lock().insert(copy);
    }

    /// The volume begins anew at some position: what a copy out of duty has may not be what lies there now.
    pub fn forget_left(&self) {
        let mut stores = self.stores.write();
        for copy in std::mem::take(&mut *self.left.lock()) {
            stores[copy.index()] = None;
        }
    }

    fn moved(&self) {
        if self.waiters.load(Ordering::Relaxed) > 0 {
            let _held = self.moved.lock();
            self.moved_signal.notify_all();
        }
    }

    /// From whichever copy has it. `Err` with the last reason when none has it now.
    fn try_read(&self, page: PageNo, at: Lsn) -> Result<Bytes, Miss> {
        let group = self.layout.group_of(page);
        let stores = self.stores.read()[MemberId { group, copy: CopyId(0) }.index()..][..6].to_vec();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let mut reason = "no copy is open".to_owned();
        let (mut folded, mut other) = (None::<Lsn>, false);
        for i in 0..stores.len() {
            if let Some(store) = &stores[(turn + i) % stores.len()] {
                match store.read(page, at) {
                    Ok(bytes) => return Ok(bytes),
                    // Behind, folded away or damaged here: another copy may have it.
                    Err(ReadError::TooOld { first, .. }) => folded = Some(folded.map_or(first, |f| f.min(first))),
                    Err(e @ (ReadError::NotYet { .. } | ReadError::Distrusted { .. })) => (reason, other) = (e.to_string(), true),
                    Err(e) => {
                        other = true;
                        tracing::warn!(page = page.0, "{e}");
                        reason = e.to_string();
                    }
                }
            }
        }
        Err(match folded {
            Some(first) if !other => Miss::Folded { first },
            _ => Miss::Now { reason },
        })
    }
}

/// Why no copy gave a page.
enum Miss {
    /// All that are open folded it away.
    Folded { first: Lsn },
    /// It may come in a moment.
    Now { reason: String },
}

impl PageSource for Pages {
    fn page_at(&self, page: PageNo, at: Lsn) -> Result<Bytes, PageError> {
        if let Ok(bytes) = self.try_read(page, at) {
            return Ok(bytes);
        }
        // Copies turn frames into pages a moment after they are durable.
        let until = clock::now() + PAGE_WAIT_MAX;
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let outcome = loop {
            match self.try_read(page, at) {
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
