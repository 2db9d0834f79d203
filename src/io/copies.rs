//! The six copies of a region in this process: one thread each, one directory each, one shared thread for layers.
//!
//! Decides nothing about the log: it opens a [`Copy`], feeds it what the node says in the order that the copy asks for, and
//! opens it again, after a moment, when it left its duty. A failed fsync is thus never tried again on the same file: the copy
//! that comes back has read its disk anew. A copy whose disk is full is read on and opened again when there is room. Driven by `io::driver` through [`Copies::send`]; answers come as node events.

pub mod hedge;
mod listeners;
mod mailbox;
mod pages;
pub mod slow;

use super::clock;
use super::copy_link::RemoteCopy;
use super::disk::FileDisk;
use super::driver::Inbox;
use crate::base::{CopyId, Limits};
use crate::volume::{Copy, CopyReply, CopyRequest, FlushDone, FlushJob, OpenError};
use listeners::{Listeners, Outgoing};
use mailbox::{Mail, mailbox};
use slow::Drills;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

pub use listeners::{Listener, OWNER, Says};
pub use mailbox::{Mailbox, request_bytes, waiting_bytes_max};
pub use pages::{Answer, Pages, RemotePages};

/// Between two attempts to open a copy that failed.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
const STOPPED: &str = "stopped by an operator; start it with `parhelion copy start`";

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
    /// Answers come so much later, for a drill; zero ends it.
    Slow(Duration),
    JobDone(FlushDone),
    End,
}

/// Where one of the six is.
enum Home {
    /// A thread of this process.
    Here(Mailbox),
    /// A process on another machine.
    Remote(Arc<RemoteCopy>),
    /// This process has nothing to do with it.
    Elsewhere,
}

/// The copies of this process, a thread each, and the one that writes layers; and those on other machines.
pub struct Copies {
    homes: [Home; 6],
    threads: Vec<JoinHandle<()>>,
    pages: Arc<Pages>,
    /// The volume serves: a damaged copy may be moved aside, because its peers can rebuild it.
    serving: Arc<AtomicBool>,
    drills: Drills,
}

impl Copies {
    /// Starts the threads of a region's copies but the `remote` ones; each opens its copy below `dir` and reports to `inbox`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(dir: &Path, limits: &Limits, inbox: &Inbox, remote: Vec<Arc<RemoteCopy>>) -> std::io::Result<Copies> {
        let drills = Drills::default();
        let mut homes: [Home; 6] = std::array::from_fn(|_| Home::Elsewhere);
        let mut sources: [Option<Arc<dyn RemotePages>>; 6] = Default::default();
        for copy in remote {
            let at = copy.id().index();
            sources[at] = Some(copy.clone());
            homes[at] = Home::Remote(copy);
        }
        let here: Vec<CopyId> = CopyId::all().into_iter().filter(|c| sources[c.index()].is_none()).collect();
        let pages = Pages::new(sources, &drills)?;
        Copies::open(dir, limits, Some(inbox), &here, homes, pages, drills)
    }

    /// Starts the threads of some copies for whoever connects: see [`Order::Attach`].
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn host(dir: &Path, limits: &Limits, copies: &[CopyId]) -> std::io::Result<Copies> {
        let drills = Drills::default();
        let pages = Pages::new(Default::default(), &drills)?;
        Copies::open(dir, limits, None, copies, std::array::from_fn(|_| Home::Elsewhere), pages, drills)
    }

    fn open(
        dir: &Path,
        limits: &Limits,
        inbox: Option<&Inbox>,
        here: &[CopyId],
        homes: [Home; 6],
        pages: Arc<Pages>,
        drills: Drills,
    ) -> std::io::Result<Copies> {
        let serving = Arc::new(AtomicBool::new(false));
        let (jobs, job_rx) = channel::<(FlushJob, Mailbox)>();
        let mut copies = Copies { homes, threads: Vec::new(), pages: Arc::clone(&pages), serving: Arc::clone(&serving), drills };
        // One thread for all layers: compaction takes at most one core, whatever six copies want at once.
        copies.threads.push(std::thread::Builder::new().name("layers".into()).spawn(move || {
            while let Ok((job, back)) = job_rx.recv() {
                let _ = back.send(Order::JobDone(job.run()));
            }
        })?);
        for &id in here {
            let (own, mail) = mailbox(waiting_bytes_max(limits));
            let worker = Worker {
                id,
                dir: dir.join("copies").join(id.to_string()),
                limits: limits.clone(),
                listeners: Listeners::new(id, inbox.map(|inbox| Arc::new(inbox.clone()) as Arc<dyn Listener>)),
                mail,
                own: own.clone(),
                jobs: jobs.clone(),
                pages: Arc::clone(&pages),
                serving: Arc::clone(&serving),
                drills: copies.drills.clone(),
            };
            copies.homes[id.index()] = Home::Here(own);
            copies.threads.push(std::thread::Builder::new().name(format!("copy-{id}")).spawn(move || worker.run())?);
        }
        Ok(copies)
    }

    /// Tells a copy. A request to one that takes nothing is dropped when too much waits already: the appender asks again.
    pub fn send(&self, copy: CopyId, order: Order) {
        if let Order::Slow(delay) = order {
            self.drills.of(copy).set(delay);
        }
        match &self.homes[copy.index()] {
            Home::Here(mailbox) => {
                mailbox.send(order);
            }
            Home::Remote(remote) => remote.send(order),
            Home::Elsewhere => {}
        }
    }

    /// What takes orders for a copy of this process.
    #[must_use]
    pub fn mailbox(&self, copy: CopyId) -> Option<&Mailbox> {
        if let Home::Here(mailbox) = &self.homes[copy.index()] { Some(mailbox) } else { None }
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
        if self.serving.swap(serving, Ordering::Relaxed) != serving {
            self.remote().for_each(|remote| remote.set_serving(serving));
        }
    }

    /// As [`Copies::set_serving`], for whoever does not have the copies themselves.
    pub fn serving_setter(&self) -> impl Fn(bool) + Send + Sync + 'static {
        let serving = Arc::clone(&self.serving);
        move |now| serving.store(now, Ordering::Relaxed)
    }

    fn remote(&self) -> impl Iterator<Item = &Arc<RemoteCopy>> {
        self.homes.iter().filter_map(|home| if let Home::Remote(remote) = home { Some(remote) } else { None })
    }

    /// Ends all threads, after what they were told before.
    pub fn stop(mut self) {
        self.drills.end();
        for home in &mut self.homes {
            if let Home::Here(mailbox) = std::mem::replace(home, Home::Elsewhere) {
                mailbox.send(Order::End);
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Worker {
    id: CopyId,
    dir: PathBuf,
    limits: Limits,
    listeners: Listeners,
    mail: Mail,
    own: Mailbox,
    jobs: Sender<(FlushJob, Mailbox)>,
    pages: Arc<Pages>,
    serving: Arc<AtomicBool>,
    drills: Drills,
}

enum Ended {
    /// Opened again after a moment.
    Failed(String),
    /// By an operator, until he starts it again.
    Stopped,
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
            let (mut reason, mut until) = match ended {
                Ended::Process => return,
                Ended::Failed(reason) => (reason, Some(clock::now() + REOPEN_AFTER)),
                Ended::Stopped => (STOPPED.to_owned(), None),
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
                    Ok(Order::Attach { from, listener }) => self.listeners.attach(from, listener, Says::Lost { reason: reason.clone() }),
                    Ok(Order::Detach { from }) => self.listeners.detach(from),
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
        match Copy::open(disk.clone(), &self.limits) {
            Err(e @ OpenError::Damaged { .. }) if self.serving.load(Ordering::Relaxed) => {
                // The volume serves without it and will rebuild it. What is damaged is kept for whoever wants to look at it.
                let aside = self.dir.with_extension(format!("damaged-{}", clock::unix_now().0 / 1_000_000));
                std::fs::rename(&self.dir, &aside).map_err(|io| format!("{e}; and it cannot be moved aside: {io}"))?;
                tracing::warn!(copy = %self.id, kept = %aside.display(), "{e}");
                let disk = Arc::new(FileDisk::open(&self.dir).map_err(|e| e.to_string())?);
                Copy::open(disk.clone(), &self.limits).map(|copy| (copy, disk)).map_err(|e| e.to_string())
            }
            other => other.map(|copy| (copy, disk)).map_err(|e| e.to_string()),
        }
    }

    fn serve(&mut self, mut copy: Copy) -> Ended {
        self.pages.set(self.id, Some(copy.pages()));
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
                    Order::Start | Order::Slow(_) => continue,
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
                copy.handle(request, &mut replies);
                outgoing.add(from, &mut replies);
                if bytes >= self.limits.copy_window_bytes_max {
                    break;
                }
            }
            copy.flush(&mut replies);
            outgoing.add_for_all(&mut replies);
            if !outgoing.is_empty() {
                self.drills.of(self.id).pause(began);
            }
            self.listeners.send(&mut outgoing);
            if let Some(ended) = ended {
                return ended;
            }
            more = copy.ingest(&mut replies);
            self.pages.moved();
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
