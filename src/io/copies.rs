//! The copies of a region in this process, up to six for each protection group: one thread each, one directory each, one shared thread
//! for layers; and where the others are.
//!
//! Decides nothing about the log: it opens a [`Copy`], feeds it what the node says in the order that the copy asks for, and
//! opens it again, after a moment, when it left its duty. A failed fsync is thus never tried again on the same file: the copy
//! that comes back has read its disk anew. A copy whose disk is full is read on and opened again when there is room. Driven by `io::driver` through [`Copies::send`]; answers come as node events.

pub mod hedge;
mod layers;
mod listeners;
mod mailbox;
mod pages;
pub mod places;
pub mod slow;

use super::clock;
use super::copy_link::RemoteCopy;
use super::disk::FileDisk;
use super::driver::Inbox;
use super::sealing::{self, Key};
use crate::base::{ClusterName, CopyId, GROUPS_MAX, Layout, Limits, MemberId, RegionName};
use crate::volume::identity::{self, Home};
use crate::volume::membership::Incarnation;
use crate::volume::{Copy, CopyReply, CopyRequest, DiskError, FlushDone, OpenError, proven_durable};
use listeners::{Listeners, Outgoing};
use mailbox::{Mail, mailbox};
use parking_lot::{Mutex, RwLock};
use places::Places;
use slow::Drills;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

pub use listeners::{Listener, OWNER, Says};
pub use mailbox::{Mailbox, request_bytes, waiting_bytes_max};
pub use pages::{Answer, Miss, Pages, RemotePages};

/// Between two attempts to open a copy that failed.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Replaced directories that are followed to the one that took their place, each once.
const MARKS_MAX: usize = 16;
const STOPPED: &str = "stopped by an operator; start it with `parhelion copy start`";

/// What an operator does to a copy, to see what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drill {
    /// Out of duty until `Start`.
    Stop,
    Start,
    /// Answers come so much later; zero ends it.
    Slow(Duration),
}

/// What a copy's thread is told.
pub enum Order {
    Request(CopyRequest),
    /// From one of several that this copy serves: its answer goes to the listener of that number.
    RequestOf {
        from: u64,
        request: CopyRequest,
    },
    /// Whom to tell from now on, beginning with how the copy is.
    Attach {
        from: u64,
        listener: Arc<dyn Listener>,
    },
    Detach {
        from: u64,
    },
    /// Out of duty, for a drill, until `Start`.
    Stop,
    Start,
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

/// Where a copy lives.
enum Lives {
    /// A thread of this process.
    Here(Mailbox),
    /// A process on another machine.
    Remote(Arc<RemoteCopy>),
}

/// The copies of this process, a thread each, and the one that writes layers; and those on other machines.
pub struct Copies {
    homes: RwLock<BTreeMap<MemberId, Lives>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// To the thread that writes layers, which ends with the last of them. `None`: stopping.
    jobs: Mutex<Option<Sender<layers::Job>>>,
    places: Mutex<Places>,
    layout: Layout,
    shared: Shared,
}

/// Whose the copies of this process are, where they lie, and their bounds.
#[derive(Clone, Debug)]
pub struct Whose {
    pub cluster: ClusterName,
    pub region: RegionName,
    /// They are below `copies` there.
    pub data_dir: PathBuf,
    pub limits: Limits,
    /// Their directories are sealed with it.
    pub key: Option<Arc<Key>>,
}

/// What the threads have in common.
#[derive(Clone)]
struct Shared {
    whose: Whose,
    limits: Limits,
    pages: Arc<Pages>,
    /// The volume serves: a damaged copy may be moved aside, because its peers can rebuild it.
    serving: Arc<AtomicBool>,
    drills: Drills,
}

impl Copies {
    /// Starts the threads of a region's copies but the `remote` ones; each opens its copy and reports to `inbox`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(whose: Whose, layout: Layout, inbox: &Inbox, remote: Vec<Arc<RemoteCopy>>) -> std::io::Result<Copies> {
        let sources = remote.iter().map(|copy| (copy.id(), Arc::clone(copy) as Arc<dyn RemotePages>)).collect();
        let copies = Copies::with(whose, layout, sources)?;
        copies.homes.write().extend(remote.into_iter().map(|copy| (copy.id(), Lives::Remote(copy))));
        for id in MemberId::all(layout.groups) {
            if !copies.homes.read().contains_key(&id) {
                copies.open(id, Some(Arc::new(inbox.clone())))?;
            }
        }
        Ok(copies)
    }

    /// None yet, for whoever connects: see [`Copies::mailbox`].
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn host(whose: Whose) -> std::io::Result<Copies> {
        Copies::with(whose, Layout { groups: GROUPS_MAX, ..Layout::default() }, BTreeMap::new())
    }

    fn with(whose: Whose, layout: Layout, remote: BTreeMap<MemberId, Arc<dyn RemotePages>>) -> std::io::Result<Copies> {
        let drills = Drills::default();
        let places = Places::load(&whose.data_dir.join("copies"))?;
        let (jobs, job_rx) = channel::<layers::Job>();
        // One thread for all layers: compaction takes at most one core, whatever six copies want at once.
        let layers = std::thread::Builder::new().name("layers".into()).spawn(move || {
            layers::run(&job_rx);
        })?;
        let shared = Shared {
            limits: whose.limits.clone(),
            whose,
            pages: Pages::new(layout, remote, &drills)?,
            serving: Arc::new(AtomicBool::new(false)),
            drills,
        };
        Ok(Copies {
            homes: RwLock::default(),
            threads: Mutex::new(vec![layers]),
            jobs: Mutex::new(Some(jobs)),
            places: Mutex::new(places),
            layout,
            shared,
        })
    }

    fn open(&self, id: MemberId, owner: Option<Arc<dyn Listener>>) -> std::io::Result<Mailbox> {
        let mut homes = self.homes.write();
        if let Some(Lives::Here(mailbox)) = homes.get(&id) {
            return Ok(mailbox.clone());
        }
        let Some(jobs) = self.jobs.lock().clone() else { return Err(std::io::Error::other("the process is stopping")) };
        let (own, mail) = mailbox(waiting_bytes_max(&self.shared.limits));
        let whose = &self.shared.whose;
        let dir = self.places.lock().directory(id);
        let home = Home { cluster: whose.cluster.clone(), region: whose.region.clone(), group: id.group.0, slot: id.copy };
        let worker =
            Worker { id, home, dir, listeners: Listeners::new(id, owner), mail, own: own.clone(), jobs, shared: self.shared.clone() };
        self.threads.lock().push(std::thread::Builder::new().name(format!("copy-{id}")).spawn(move || worker.run())?);
        homes.insert(id, Lives::Here(own.clone()));
        Ok(own)
    }

    /// What takes orders for a copy of this process, which is opened if it is not.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn mailbox(&self, id: MemberId) -> std::io::Result<Mailbox> {
        self.open(id, None)
    }

    /// Tells a copy. A request to one that takes nothing is dropped when too much waits already: the appender asks again.
    pub fn send(&self, copy: MemberId, request: CopyRequest) {
        match self.homes.read().get(&copy) {
            Some(Lives::Here(mailbox)) => {
                mailbox.send(Order::Request(request));
            }
            Some(Lives::Remote(remote)) => remote.send(request),
            None => {}
        }
    }

    /// An operator's drill, with the copy of that name in every group: it is the name of a place.
    pub fn drill(&self, copy: CopyId, drill: Drill) {
        if let Drill::Slow(delay) = drill {
            self.shared.drills.of(copy).set(delay);
        }
        for (_, home) in self.homes.read().iter().filter(|(id, _)| id.copy == copy) {
            match (home, drill) {
                (Lives::Remote(remote), drill) => remote.drill(drill),
                (Lives::Here(mailbox), Drill::Stop) => drop(mailbox.send(Order::Stop)),
                (Lives::Here(mailbox), Drill::Start) => drop(mailbox.send(Order::Start)),
                (Lives::Here(_), Drill::Slow(_)) => {}
            }
        }
    }

    /// Where copies of this process live from now on: noted for the next start, and each that lives elsewhere moves.
    pub fn set_places(&self, places: BTreeMap<CopyId, Option<String>>) {
        // Not held below: a copy that is opened asks for both locks the other way round.
        let told: Vec<CopyId> = places.keys().copied().collect();
        let noted = {
            let mut noted = self.places.lock();
            if let Err(e) = noted.note(places) {
                tracing::warn!("where the copies live cannot be noted for the next start: {e}; the copies know it");
            }
            noted.clone()
        };
        for (id, home) in self.homes.read().iter() {
            if let (Lives::Here(mailbox), true) = (home, told.contains(&id.copy)) {
                mailbox.send(Order::Move(noted.directory(*id)));
            }
        }
    }

    /// Marks the directories of `slot` in `place`: those of `by` have its slot.
    pub fn retire(&self, slot: CopyId, place: Option<&str>, by: &[Incarnation]) {
        let places = self.places.lock().clone();
        for (group, by) in self.layout.all_groups().zip(by) {
            let member = MemberId { group, copy: slot };
            if let Some(Lives::Here(mailbox)) = self.homes.read().get(&member) {
                let directory = places.base(place).join(member.to_string());
                let lives = places.directory(member).display().to_string();
                mailbox.send(Order::Retire { directory, by: *by, place: lives });
            }
        }
    }

    #[must_use]
    pub fn pages(&self) -> Arc<Pages> {
        Arc::clone(&self.shared.pages)
    }

    #[must_use]
    pub fn drills(&self) -> &Drills {
        &self.shared.drills
    }

    pub fn set_serving(&self, serving: bool) {
        if self.shared.serving.swap(serving, Ordering::Relaxed) != serving {
            for home in self.homes.read().values() {
                if let Lives::Remote(remote) = home {
                    remote.set_serving(serving);
                }
            }
        }
    }

    /// Ends all threads, after what they were told before, and waits for them: nothing is written any more.
    pub fn stop(&self) {
        self.shared.drills.end();
        self.jobs.lock().take();
        for (_, home) in std::mem::take(&mut *self.homes.write()) {
            if let Lives::Here(mailbox) = home {
                mailbox.send(Order::End);
            }
        }
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }
}

struct Worker {
    id: MemberId,
    /// Only a directory that is this one's is opened.
    home: Home,
    dir: PathBuf,
    listeners: Listeners,
    mail: Mail,
    own: Mailbox,
    jobs: Sender<layers::Job>,
    shared: Shared,
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
            let mut proves = None;
            let ended = match self.open() {
                Ok((copy, disk)) => {
                    let ended = self.serve(copy);
                    full = Some(disk).filter(|disk| matches!(ended, Ended::Failed(_)) && self.is_full(disk));
                    ended
                }
                Err(reason) => {
                    // Read only, as far as it can be read.
                    let disk = sealing::look(&self.dir, self.key()).ok();
                    proves = disk.and_then(|disk| proven_durable(&*disk)).map(|(lineage, durable)| Says::Proves { lineage, durable });
                    Ended::Failed(reason)
                }
            };
            proves.iter().for_each(|proves| self.listeners.tell_all(proves));
            match &full {
                // What it has is right: only what is durable in the region becomes pages. Others may be full, too.
                Some(_) => self.shared.pages.leave(self.id),
                None => self.shared.pages.set(self.id, None),
            }
            let (mut reason, mut until) = match ended {
                Ended::Process => return,
                Ended::Failed(reason) => (reason, Some(clock::now() + REOPEN_AFTER)),
                Ended::Stopped => (STOPPED.to_owned(), None),
                Ended::Moved(dir) => {
                    self.dir = dir;
                    ("its slot changes its directory".to_owned(), Some(clock::now()))
                }
            };
            self.listeners.tell_all(&Says::Lost { reason: reason.clone() });
            // What is sent meanwhile is for a copy that is not there.
            loop {
                let order = match until {
                    None => self.mail.recv().ok_or(RecvTimeoutError::Disconnected),
                    Some(at) => self.mail.recv_timeout(at.since(clock::now())),
                };
                match order {
                    Err(RecvTimeoutError::Timeout) if full.as_ref().is_some_and(|disk| self.is_full(disk)) => {
                        until = Some(clock::now() + REOPEN_AFTER);
                    }
                    Ok(Order::Start) | Err(RecvTimeoutError::Timeout) => break,
                    Ok(Order::Stop) => {
                        until = None;
                        STOPPED.clone_into(&mut reason);
                        self.listeners.tell_all(&Says::Lost { reason: reason.clone() });
                    }
                    Ok(Order::Attach { from, listener }) => {
                        proves.iter().for_each(|proves| listener.tell(self.id, proves.clone()));
                        self.listeners.attach(from, listener, Says::Lost { reason: reason.clone() });
                    }
                    Ok(Order::Detach { from }) => self.listeners.detach(from),
                    Ok(Order::Move(dir)) if dir != self.dir => {
                        self.dir = dir;
                        until = until.map(|_| clock::now());
                    }
                    Ok(Order::Retire { directory, by, place }) => places::retire(&directory, by, &place, self.key()),
                    Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(_) => {}
                }
            }
            self.shared.pages.set(self.id, None);
        }
    }

    /// No room for one more file of the log, and the copy met that.
    fn is_full(&self, disk: &FileDisk) -> bool {
        disk.is_full(self.shared.limits.log_file_bytes)
    }

    fn open(&mut self) -> Result<(Copy, Arc<FileDisk>), String> {
        let mut disk = Arc::new(FileDisk::open(&self.dir).map_err(|e| e.to_string())?);
        let mut opened = self.open_on(&disk);
        // The note of where its slot lives was lost: the mark in a directory that was replaced says where it lived then.
        for _ in 0..MARKS_MAX {
            let Err(OpenError::Replaced { place, .. }) = &opened else { break };
            if !Path::new(place).is_dir() {
                break;
            }
            self.dir = PathBuf::from(place);
            disk = Arc::new(FileDisk::open(&self.dir).map_err(|e| e.to_string())?);
            opened = self.open_on(&disk);
        }
        match opened {
            Err(e @ OpenError::Damaged { .. }) if self.shared.serving.load(Ordering::Relaxed) => {
                // The volume serves without it and will rebuild it. What is damaged is kept for whoever wants to look at it.
                let aside = self.dir.with_file_name(format!("{}.damaged-{}", self.id, clock::unix_now().0 / 1_000_000));
                std::fs::rename(&self.dir, &aside).map_err(|io| format!("{e}; and it cannot be moved aside: {io}"))?;
                tracing::warn!(copy = %self.id, kept = %aside.display(), "{e}");
                self.listeners.tell_all(&Says::Lost { reason: format!("{e}; it was moved to {}", aside.display()) });
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
        let disk = sealing::open(disk.clone(), &self.dir, self.key())?;
        identity::settle(&*disk, &self.home, fresh_incarnation()?)?;
        Copy::open_group(self.id.group, disk, &self.shared.limits)
    }

    fn key(&self) -> Option<&Key> {
        self.shared.whose.key.as_deref()
    }

    fn serve(&mut self, mut copy: Copy) -> Ended {
        let own = self.own.clone();
        // The copy tells of it with the next thing it does.
        copy.pages().wake_on_damage(Box::new(move || {
            own.send(Order::Look);
        }));
        self.shared.pages.set(self.id, Some(copy.pages()));
        self.listeners.tell_all(&Says::Opened { promised: copy.promised() });
        let mut replies: Vec<CopyReply> = Vec::new();
        let mut outgoing = Outgoing::default();
        let mut ended = None;
        let mut more = false;
        loop {
            let first = if more {
                match self.mail.try_recv() {
                    Ok(order) => Some(order),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return Ended::Process,
                }
            } else {
                match self.mail.recv() {
                    Some(order) => Some(order),
                    None => return Ended::Process,
                }
            };
            let began = clock::now();
            // Group commit: everything that arrived while the last fsync ran goes into the next one.
            let mut bytes = 0;
            for order in first.into_iter().chain(std::iter::from_fn(|| self.mail.try_recv().ok())) {
                let (from, request) = match order {
                    Order::Request(request) => (OWNER, request),
                    Order::RequestOf { from, request } => (from, request),
                    Order::JobDone(done) => {
                        copy.finish(done, &mut replies);
                        continue;
                    }
                    Order::Attach { from, listener } => {
                        self.listeners.attach(from, listener, Says::Opened { promised: copy.promised() });
                        continue;
                    }
                    Order::Detach { from } => {
                        self.listeners.detach(from);
                        continue;
                    }
                    Order::Retire { directory, by, place } => {
                        places::retire(&directory, by, &place, self.key());
                        continue;
                    }
                    Order::Move(dir) if dir != self.dir => {
                        ended = Some(Ended::Moved(dir));
                        break;
                    }
                    Order::Start | Order::Look | Order::Move(_) => continue,
                    Order::Stop => {
                        ended = Some(Ended::Stopped);
                        break;
                    }
                    Order::End => {
                        ended = Some(Ended::Process);
                        break;
                    }
                };
                if let CopyRequest::Append { frames, .. } = &request {
                    bytes += frames.iter().map(|f| f.bytes().len()).sum::<usize>();
                }
                copy.time_is(clock::now());
                copy.handle(request, &mut replies);
                outgoing.add(from, &mut replies);
                if bytes >= self.shared.limits.copy_window_bytes_max {
                    break;
                }
            }
            copy.flush(&mut replies);
            outgoing.add_for_all(&mut replies);
            if !outgoing.is_empty() {
                self.shared.drills.of(self.id.copy).pause(began);
            }
            self.listeners.send(&mut outgoing);
            if let Some(ended) = ended {
                return ended;
            }
            more = copy.ingest(&mut replies);
            self.shared.pages.moved();
            while let Some(job) = copy.background_job() {
                let _ = self.jobs.send((job, self.own.clone()));
            }
            outgoing.add_for_all(&mut replies);
            self.listeners.send(&mut outgoing);
            if let Some(reason) = copy.failed() {
                return Ended::Failed(reason.to_owned());
            }
        }
    }
}
