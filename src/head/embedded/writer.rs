//! The writer: one thread with the one connection that may write, and the queue before it.
//!
//! Decides who writes next: statements of their own in the order they came, and interactive transactions, each of which
//! owns the connection from its first statement to its end. Never waits for durability: an answer carries the LSN that it
//! saw, and the session waits for that. A client that thinks for longer than the limit loses its transaction.
//! While no client waits, it gives free pages back ([`super::space`]).
//! A drain lets what runs come to its end, until a deadline, and begins nothing: what comes waits in the queue.
//! Driven by sessions through the queue. A panic here aborts the process: the volume is as after a crash, and recovery is
//! the way back that is always tested.

mod thread;

use super::commit::WriterFile;
use super::context::{Context, Token};
use super::shared::Shared;
use super::space::Pace;
use super::vfs::Registration;
use super::{AbortOnPanic, EngineError, spawn};
use crate::base::{Epoch, Generation, Instant, Lsn};
use crate::head::LogSink;
use crate::head::sql::{Column, Description, Row, SqlError, Value, state};
use crate::io::clock;
use crate::log::Pen;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use thread::Thread;
use tokio::sync::oneshot;

/// While a drain waits for the last answers to be given.
const ANSWERS_LOOKED_AT_EVERY: Duration = Duration::from_millis(1);

/// What is asked of the writer, for whom.
pub struct Request {
    pub session: i32,
    pub cancel: Arc<Token>,
    pub work: Work,
    pub reply: oneshot::Sender<Answer>,
    /// Goes over into the answer: the request is under way until the session has done with it.
    pub under_way: UnderWay,
}

/// Counts requests from when they are made until their answer has been given.
pub struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Transactions and statements that did not come to their end in time and were rolled back (40001).
    pub rolled_back: usize,
    /// Answers that still waited for durability when the deadline came.
    pub unanswered: usize,
}

/// A drain that was ordered: nothing begins, and what runs has so long.
struct Drain {
    until: Instant,
    rolled_back: usize,
    /// Called once, when nothing runs any more.
    done: Option<Box<dyn FnOnce(Drained) + Send>>,
}

pub enum Work {
    /// `keep`: there is a savepoint to go back to, so an error does not end the transaction.
    Statement {
        sql: String,
        params: Vec<Value>,
        keep: bool,
    },
    Describe {
        sql: String,
        keep: bool,
    },
    /// SAVEPOINT, RELEASE or ROLLBACK TO, ready for SQLite.
    Mark {
        sql: String,
        keep: bool,
    },
    Commit,
    Rollback,
}

pub enum Product {
    Nothing,
    Description(Description),
    Rows { columns: Arc<[Column]>, rows: Vec<Row> },
    Changed(u64),
}

pub struct Answer {
    pub result: Result<Product, SqlError>,
    /// Everything that the result depends on lies below this LSN.
    pub seen: Lsn,
    /// End of the commit, when there was one.
    pub committed: Option<Lsn>,
    /// The transaction is no more.
    pub over: bool,
    pub under_way: UnderWay,
}

/// Why a transaction was ended without its client; told at its next statement.
pub type Ended = Arc<Mutex<Option<SqlError>>>;

enum Job {
    Single { id: u64, request: Request },
    Transaction { id: u64, ended: Ended, first: Request },
}

#[derive(Default)]
struct Queue {
    next_id: u64,
    jobs: VecDeque<Job>,
    owner: Option<u64>,
    owner_requests: VecDeque<Request>,
    owner_gone: bool,
    closed: Option<String>,
    drain: Option<Drain>,
}

pub struct Writer {
    shared: Arc<Shared>,
    context: Arc<Context>,
    file: Arc<WriterFile>,
    queue: Mutex<Queue>,
    wake: Condvar,
    under_way: Arc<AtomicUsize>,
    /// Its number in [`super::progress::Progress`].
    pub reign: u64,
}

/// A session's hold on the writer. Dropping it rolls back.
pub struct Hold {
    pub writer: Arc<Writer>,
    id: u64,
    ended: Ended,
}

/// What the thread does next, while nobody owns the writer.
enum Turn {
    Job(Job),
    /// The moment that it asked for has come, and no client waits.
    Quiet,
    Closed,
}

enum Next {
    Request(Request),
    Idle,
    Gone,
    Closed(String),
    Drained,
}

impl Writer {
    pub fn open(shared: &Arc<Shared>, pen: Pen, log: Arc<dyn LogSink>, reign: u64) -> Result<Arc<Writer>, EngineError> {
        let context = Arc::new(Context::default());
        let file = Arc::new(WriterFile::new(shared.clone(), context.clone(), pen, log, reign));
        let name = format!("w-{}-{reign}", shared.id);
        let registration = Arc::new(Registration::new(name.clone(), file.clone()).map_err(|code| EngineError::Vfs { code })?);
        let (queue, wake, under_way) = (Mutex::default(), Condvar::new(), Arc::default());
        let writer = Arc::new(Writer { shared: shared.clone(), context, file, queue, wake, under_way, reign });
        let pace = Pace::new(shared.settings.give_back, clock::now());
        let thread = Thread { writer: writer.clone(), registration, db: None, pace };
        spawn(name, move || {
            let _bug = AbortOnPanic("the writer thread");
            thread.work();
        })?;
        Ok(writer)
    }

    pub fn head(&self) -> Lsn {
        self.file.head()
    }

    /// The (epoch, generation) of the frames that this writer wrote; `None` before the first.
    pub fn wrote_as(&self) -> Option<(Epoch, Generation)> {
        self.file.wrote_as()
    }

    pub fn waiting(&self) -> usize {
        self.queue.lock().jobs.len()
    }

    /// No frame leaves after this; whoever owns the writer or waits for it is told `reason`. Never blocks on a page.
    pub fn close(&self, reason: String) {
        self.file.close();
        self.queue.lock().closed = Some(reason);
        self.context.stop.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }

    pub fn under_way(&self) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(self.under_way.clone())
    }

    /// Begins nothing from now on; what runs may come to its end until `until` and is rolled back then. `done` is called on
    /// the writer's thread when nothing runs and every answer is given; never, when the writer closes or the drain is called
    /// off before. A second drain takes the place of the first.
    pub fn drain(&self, until: Instant, done: Box<dyn FnOnce(Drained) + Send>) {
        self.queue.lock().drain = Some(Drain { until, rolled_back: 0, done: Some(done) });
        self.context.until_ns.store(until.ns, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub fn undrain(&self) {
        self.context.until_ns.store(u64::MAX, Ordering::SeqCst);
        self.queue.lock().drain = None;
        self.wake.notify_one();
    }

    /// A statement of its own. Returns a number to withdraw it by.
    pub fn submit(&self, request: Request) -> u64 {
        let mut queue = self.queue.lock();
        if let Some(reason) = queue.closed.clone() {
            drop(queue);
            request.refuse(shut_down(&reason).run_elsewhere());
            return 0;
        }
        queue.next_id += 1;
        let id = queue.next_id;
        queue.jobs.push_back(Job::Single { id, request });
        drop(queue);
        self.wake.notify_one();
        id
    }

    /// The first statement of a transaction: from its turn on the writer belongs to the returned hold.
    pub fn begin(self: &Arc<Writer>, first: Request) -> Hold {
        let ended = Ended::default();
        let mut queue = self.queue.lock();
        queue.next_id += 1;
        let id = queue.next_id;
        if let Some(reason) = queue.closed.clone() {
            drop(queue);
            first.refuse(shut_down(&reason).run_elsewhere());
        } else {
            queue.jobs.push_back(Job::Transaction { id, ended: ended.clone(), first });
            drop(queue);
            self.wake.notify_one();
        }
        Hold { writer: self.clone(), id, ended }
    }

    /// Takes back what has not begun. `false`: it has.
    pub fn withdraw(&self, id: u64) -> bool {
        let mut queue = self.queue.lock();
        let before = queue.jobs.len();
        queue.jobs.retain(|job| !matches!(job, Job::Single { id: i, .. } | Job::Transaction { id: i, .. } if *i == id));
        queue.jobs.len() < before
    }

    /// Whether anybody or anything waits for the thread.
    fn is_wanted(&self) -> bool {
        let queue = self.queue.lock();
        !queue.jobs.is_empty() || queue.drain.is_some() || queue.closed.is_some()
    }

    fn next_turn(&self, due: Option<Instant>) -> Turn {
        let mut queue = self.queue.lock();
        loop {
            if let Some(reason) = queue.closed.clone() {
                let jobs = std::mem::take(&mut queue.jobs);
                drop(queue);
                for job in jobs {
                    let (Job::Single { request, .. } | Job::Transaction { first: request, .. }) = job;
                    request.refuse(shut_down(&reason).run_elsewhere());
                }
                return Turn::Closed;
            }
            if queue.drain.is_some() {
                self.rest(&mut queue);
                continue;
            }
            if let Some(job) = queue.jobs.pop_front() {
                if let Job::Transaction { id, .. } = &job {
                    queue.owner = Some(*id);
                    queue.owner_gone = false;
                }
                return Turn::Job(job);
            }
            match due.map(|due| due.since(clock::now())) {
                None => self.wake.wait(&mut queue),
                Some(left) if left.is_zero() => return Turn::Quiet,
                Some(left) => {
                    self.wake.wait_for(&mut queue, left);
                }
            }
        }
    }

    /// While a drain lasts and nothing runs: says so once every answer has been given, then waits.
    fn rest(&self, queue: &mut MutexGuard<'_, Queue>) {
        let waiting = queue.jobs.len();
        let Some(drain) = queue.drain.as_mut().filter(|d| d.done.is_some()) else {
            return self.wake.wait(queue);
        };
        let unanswered = self.under_way.load(Ordering::SeqCst).saturating_sub(waiting);
        if unanswered > 0 && clock::now() < drain.until {
            // Answers leave on other threads, which have no need to know of this one.
            self.wake.wait_for(queue, ANSWERS_LOOKED_AT_EVERY);
            return;
        }
        let rolled_back = drain.rolled_back;
        if let Some(done) = drain.done.take() {
            MutexGuard::unlocked(queue, || done(Drained { rolled_back, unanswered }));
        }
    }

    fn next_request(&self) -> Next {
        let mut queue = self.queue.lock();
        let idle_max = self.shared.settings.idle_in_transaction_max;
        let begun = clock::now();
        loop {
            if let Some(reason) = &queue.closed {
                return Next::Closed(reason.clone());
            }
            if queue.owner_gone {
                return Next::Gone;
            }
            let now = clock::now();
            let drained_in = queue.drain.as_ref().map(|d| d.until.since(now));
            if drained_in.is_some_and(|left| left.is_zero()) {
                return Next::Drained;
            }
            if let Some(request) = queue.owner_requests.pop_front() {
                return Next::Request(request);
            }
            // Other sessions' jobs wake this thread too and count for nothing.
            let left = idle_max.saturating_sub(now.since(begun));
            if left.is_zero() {
                return Next::Idle;
            }
            self.wake.wait_for(&mut queue, drained_in.map_or(left, |d| d.min(left)));
        }
    }

    /// The owner's transaction is over; `why`, when it was not the owner's doing.
    fn release(&self, ended: &Ended, why: Option<SqlError>) {
        *ended.lock() = why.clone();
        let mut queue = self.queue.lock();
        queue.owner = None;
        let late = std::mem::take(&mut queue.owner_requests);
        drop(queue);
        for request in late {
            request.refuse(why.clone().unwrap_or_else(over));
        }
    }
}

impl Hold {
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next statement of the transaction.
    ///
    /// # Errors
    /// Why the transaction is already over.
    pub fn submit(&self, request: Request) -> Result<(), SqlError> {
        let mut queue = self.writer.queue.lock();
        if queue.owner != Some(self.id) {
            drop(queue);
            return Err(self.ended.lock().clone().unwrap_or_else(over));
        }
        queue.owner_requests.push_back(request);
        drop(queue);
        // One wake-up for one waiter: only the writer thread ever waits here.
        self.writer.wake.notify_one();
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.writer.withdraw(self.id) {
            return;
        }
        let mut queue = self.writer.queue.lock();
        if queue.owner == Some(self.id) {
            queue.owner_gone = true;
            drop(queue);
            self.writer.wake.notify_one();
        }
    }
}

impl Request {
    fn refuse(self, error: SqlError) {
        let Request { reply, under_way, .. } = self;
        let _ = reply.send(Answer { result: Err(error), seen: Lsn::ZERO, committed: None, over: true, under_way });
    }
}

fn shut_down(reason: &str) -> SqlError {
    SqlError::new(state::ADMIN_SHUTDOWN, format!("terminating the transaction: {reason}"))
}

fn drained() -> SqlError {
    let message = "the transaction was rolled back: the role of this region as the writer is about to be handed over";
    SqlError::new(state::SERIALIZATION_FAILURE, message).hint("Run it again: it goes to the new writer.")
}

fn over() -> SqlError {
    SqlError::new(state::IN_FAILED_TRANSACTION, "the transaction is already over; send ROLLBACK")
}
