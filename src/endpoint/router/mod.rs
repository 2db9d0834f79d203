//! The writer port's sessions: they live where the client is connected, and each statement goes to whoever writes.
//!
//! Decides, for each statement outside a transaction and for the first one of each transaction, where it runs: on this region's
//! engine when it is the writer, else over the region's own link at the primary ([`remote`], [`serve`], [`wire`]). So an idle
//! session lives through a switchover, a failover and a restart of the primary: it holds nothing there. While nobody writes, a
//! statement waits, up to a bound, and then fails with 57P03. What was under way when the writer, or the way to it, went:
//!
//! | what is known | what becomes of it |
//! |---|---|
//! | it surely did nothing (refused, not sent, read only) | it is run again at the next writer |
//! | it may have committed | 08007 |
//! | a transaction had begun | 40001; nothing of it is there |
//!
//! Never decides who writes ([`WhoWrites`] says so) and never what a statement means. What a statement is (its parameters and
//! columns) is asked here as long as this region's schema is the writer's, so that preparing costs no way to the writer.
//! Driven by the PostgreSQL sessions of the writer port.

mod remote;
pub mod serve;
#[cfg(test)]
mod tests;
pub mod wire;

pub use remote::{BoxRead, BoxWrite};
pub use serve::serve;

use super::pg::split::words;
use super::{Fed, Port, SqlService, SqlSession};
use crate::base::{Instant, RegionName, WhoWrites};
use crate::head::embedded::{Canceller, Engine, Session};
use crate::head::sql::{Description, Outcome, SqlError, TxMode, TxState, Value, state};
use crate::io::clock;
use async_trait::async_trait;
use parking_lot::Mutex;
use remote::{Failure, Remote, Reply};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use wire::What;

/// While a statement waits for a writer it looks again after so long, also when nothing was said to have changed.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// A client that logs in while there is no writer is kept waiting no longer, so that a driver with several hosts tries the next one.
const LOGIN_WAIT_MAX: Duration = Duration::from_secs(3);
/// The link has so long to give a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// The ways to other regions.
#[async_trait]
pub trait Ways: Send + Sync {
    /// A new stream to the end of forwarded sessions in `region`.
    ///
    /// # Errors
    /// A sentence.
    async fn open(&self, region: &RegionName) -> Result<Way, String>;

    /// Whether there is a link to `region`.
    fn reaches(&self, region: &RegionName) -> bool;
}

/// A stream to another region.
pub struct Way {
    pub recv: BoxRead,
    pub send: BoxWrite,
    /// Whether the other side was heard from a moment ago: a link may be dead and not know it. A statement goes to a silent one
    /// only after it has answered.
    pub hears: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What the writer port of a region is served with.
#[derive(Clone)]
pub struct RoutedService {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    own: RegionName,
    who: watch::Receiver<WhoWrites>,
    ways: Arc<dyn Ways>,
    wait_max: Duration,
    /// The newest version of the schema that an answer of this region told.
    schema: Mutex<Option<(RegionName, u32)>>,
}

enum Place {
    Here,
    There(RegionName),
}

impl RoutedService {
    /// `wait_max`: how long a statement waits for a writer.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        own: RegionName,
        who: watch::Receiver<WhoWrites>,
        ways: Arc<dyn Ways>,
        wait_max: Duration,
    ) -> RoutedService {
        RoutedService { inner: Arc::new(Inner { engine, own, who, ways, wait_max, schema: Mutex::default() }) }
    }
}

#[async_trait]
impl SqlService for RoutedService {
    async fn open(&self, _port: Port) -> Result<Box<dyn SqlSession>, SqlError> {
        let inner = self.inner.clone();
        let local = inner.engine.writer_session();
        let cancel = Cancel { local: local.canceller(), asked: AtomicBool::new(false), wake: Notify::new(), remote: Mutex::default() };
        let cancel = Arc::new(cancel);
        let mut session = RoutedSession { inner, local, here: None, remote: None, tx: Tx::None, schema_touched: false, cancel };
        session.find_writer().await?;
        Ok(Box::new(session))
    }

    fn parameters(&self, _port: Port) -> Vec<(String, String)> {
        // Wherever the writer is, this port writes.
        ["in_hot_standby", "default_transaction_read_only"].map(|name| (name.to_owned(), "off".to_owned())).into()
    }
}

/// Waits until something may have changed. `false`: the time is over.
async fn pause(who: &mut watch::Receiver<WhoWrites>, until: Instant) -> bool {
    let left = until.since(clock::now());
    if left.is_zero() {
        return false;
    }
    tokio::select! {
        // Nobody is left to say so when the process stops: then only time passes.
        Ok(()) = who.changed() => {}
        () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
    }
    true
}

impl Inner {
    fn place(&self) -> Result<Place, String> {
        let who = self.who.borrow();
        match &who.primary {
            _ if who.here => Ok(Place::Here),
            None => Err("this region knows of no primary yet".to_owned()),
            Some(primary) if *primary == self.own => Err(format!("{primary} is the primary and does not write now")),
            Some(primary) => Ok(Place::There(primary.clone())),
        }
    }

    fn unreachable(&self, region: &RegionName) -> String {
        format!("the primary {region} cannot be reached from {} now", self.own)
    }

    fn note_schema(&self, remote: &Remote) {
        let Some(version) = remote.standing().schema else { return };
        let mut known = self.schema.lock();
        match &mut *known {
            // Answers overtake one another; within a reign the number only grows.
            Some((region, newest)) if region == remote.region() => *newest = version.max(*newest),
            other => *other = Some((remote.region().clone(), version)),
        }
    }
}

/// Cancels what a session does, wherever that is.
struct Cancel {
    local: Canceller,
    asked: AtomicBool,
    wake: Notify,
    remote: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
}

impl Cancel {
    fn cancel(&self) {
        self.asked.store(true, Ordering::SeqCst);
        // Whoever is not waiting just now looks at `asked`, or is cancelled again in a moment.
        self.wake.notify_waiters();
        self.local.cancel();
        if let Some(remote) = &*self.remote.lock() {
            remote();
        }
    }
}

enum Tx {
    None,
    /// Begun by the client, and nowhere yet.
    Fresh(TxMode),
    Here,
    There(TxMode),
    /// The writer went, and it with it; or the way to it.
    Lost,
}

struct RoutedSession {
    inner: Arc<Inner>,
    local: Session,
    /// Answers what statements are, while the writer is elsewhere.
    here: Option<Session>,
    remote: Option<Remote>,
    tx: Tx,
    /// The open transaction has changed the schema.
    schema_touched: bool,
    cancel: Arc<Cancel>,
}

/// The refusal of what did nothing, to be tried again.
fn again(reason: impl Into<String>) -> SqlError {
    SqlError::new(state::CANNOT_CONNECT_NOW, reason).run_elsewhere()
}

fn gone(reason: &str) -> SqlError {
    let text = format!("the transaction is lost with its writer, and nothing of it was committed: {reason}");
    SqlError::new(state::SERIALIZATION_FAILURE, text).hint("Run it again from its beginning: it goes to the new writer.")
}

fn unknown(reason: &str) -> SqlError {
    SqlError::new(state::RESOLUTION_UNKNOWN, format!("the commit's outcome is unknown: {reason}"))
        .hint("It may have been committed. Look for its effect before you repeat it.")
}

/// The engine ends the sessions of a region that is not the writer any more; those of this port only lose their transaction.
fn softened(error: SqlError) -> SqlError {
    if error.code == state::ADMIN_SHUTDOWN { gone(&error.message) } else { error }
}

/// Statements that change nothing, whatever their tables and functions are. Others may, as far as can be seen here.
fn only_reads(sql: &str) -> bool {
    words(sql).next().is_some_and(|verb| ["SELECT", "VALUES", "EXPLAIN"].iter().any(|read| verb.is(read)))
}

fn changes_schema(sql: &str) -> bool {
    words(sql).next().is_some_and(|verb| ["CREATE", "DROP", "ALTER", "VACUUM", "REINDEX", "ANALYZE"].iter().any(|ddl| verb.is(ddl)))
}

fn outcome(reply: Reply) -> Result<Outcome, SqlError> {
    match reply {
        Reply::Outcome(outcome) => Ok(outcome),
        other => Err(misunderstood(&other)),
    }
}

fn misunderstood(reply: &Reply) -> SqlError {
    SqlError::new(state::INTERNAL_ERROR, format!("the writer's region answered something else than it was asked: {reply:?}"))
}

impl RoutedSession {
    /// For the login: there is a writer, and a way to it.
    async fn find_writer(&mut self) -> Result<(), SqlError> {
        let until = clock::now() + self.inner.wait_max.min(LOGIN_WAIT_MAX);
        let mut who = self.inner.who.clone();
        loop {
            who.borrow_and_update();
            let found = match self.inner.place() {
                Ok(Place::Here) => Ok(()),
                // Asked in any case: it may have died this moment.
                Ok(Place::There(region)) => self.connect(&region, &mut who, until, true).await,
                Err(reason) => Err(reason),
            };
            let Err(reason) = found else { return Ok(()) };
            if !pause(&mut who, until).await {
                let hint = "Reads go on at this region's reader port. The writer port works again when there is a writer and a way to it.";
                return Err(SqlError::new(state::CANNOT_CONNECT_NOW, reason).hint(hint));
            }
        }
    }

    /// Runs `what` where there is a writer, and waits for one up to the bound. `begin`: it is the first of a transaction.
    async fn anywhere(&mut self, what: &What, begin: Option<TxMode>) -> Result<Reply, SqlError> {
        self.cancel.asked.store(false, Ordering::SeqCst);
        let until = clock::now() + self.inner.wait_max;
        let mut who = self.inner.who.clone();
        loop {
            who.borrow_and_update();
            let tried = match self.inner.place() {
                Err(reason) => Err(again(reason)),
                Ok(Place::Here) => self.here_first(what, begin).await,
                Ok(Place::There(region)) => self.there_first(&region, what, begin, &mut who, until).await,
            };
            let reason = match tried {
                Err(error) if error.elsewhere => error.message,
                other => return other,
            };
            if self.cancel.asked.load(Ordering::SeqCst) {
                return Err(SqlError::new(state::QUERY_CANCELED, "canceling statement due to user request"));
            }
            let cancel = self.cancel.clone();
            let goes_on = tokio::select! {
                goes_on = pause(&mut who, until) => goes_on,
                () = cancel.wake.notified() => true,
            };
            if !goes_on {
                let text = format!("no writer within {:?}: {reason}", self.inner.wait_max);
                return Err(SqlError::new(state::CANNOT_CONNECT_NOW, text)
                    .hint("The statement was not run. Reads go on at the reader port; run it again when there is a writer."));
            }
        }
    }

    async fn here_first(&mut self, what: &What, begin: Option<TxMode>) -> Result<Reply, SqlError> {
        if let Some(mode) = begin {
            self.local.rollback().await?;
            self.local.begin(mode).await?;
        }
        let reply = self.locally(what).await;
        match (&reply, begin) {
            (_, None) => {}
            (Err(error), Some(_)) if error.elsewhere => self.local.rollback().await?,
            (_, Some(_)) => self.tx = Tx::Here,
        }
        reply
    }

    async fn locally(&mut self, what: &What) -> Result<Reply, SqlError> {
        match what {
            What::Execute { sql, params } => self.local.execute(sql, params.clone()).await.map(Reply::Outcome),
            What::Describe { sql } => self.local.describe(sql).await.map(Reply::Described),
            What::Savepoint { name } => self.local.savepoint(name).await.map(|()| Reply::Yes(true)),
            What::Release { name } => self.local.release(name).await.map(|()| Reply::Yes(true)),
            What::RollbackTo { name } => self.local.rollback_to(name).await.map(|()| Reply::Yes(true)),
            What::Commit | What::Rollback | What::Cancel | What::Ping => unreachable!("BUG: nothing begins with this"),
        }
    }

    async fn there_first(
        &mut self,
        region: &RegionName,
        what: &What,
        begin: Option<TxMode>,
        who: &mut watch::Receiver<WhoWrites>,
        until: Instant,
    ) -> Result<Reply, SqlError> {
        self.connect(region, who, until, false).await.map_err(again)?;
        let Some(remote) = &mut self.remote else { return Err(again(self.inner.unreachable(region))) };
        let may_commit = begin.is_none() && matches!(what, What::Execute { sql, .. } if !only_reads(sql));
        let broken = if may_commit { unknown("its rows were not given as a whole") } else { gone("its rows were not given as a whole") };
        let asked = remote.ask(what, begin, broken, who).await;
        match asked {
            Ok(said) => {
                self.inner.note_schema(remote);
                let refused = said.as_ref().is_err_and(|error| error.elsewhere);
                if let (Some(mode), false) = (begin, refused) {
                    self.tx = Tx::There(mode);
                }
                said.map_err(softened)
            }
            Err(Failure::NotSent(reason)) => Err(again(reason)),
            Err(Failure::Lost(reason)) if may_commit => Err(unknown(&reason)),
            // Reading has no effect, nor has the beginning of a transaction that never commits.
            Err(Failure::Lost(reason)) => Err(again(reason)),
        }
    }

    /// A stream to the writer's region that has been heard from lately, or (`ask`) just now.
    async fn connect(
        &mut self,
        region: &RegionName,
        who: &mut watch::Receiver<WhoWrites>,
        until: Instant,
        ask: bool,
    ) -> Result<(), String> {
        if self.remote.as_ref().is_some_and(|r| r.is_closed() || r.region() != region) {
            self.disconnect();
        }
        if self.remote.is_none() {
            if !self.inner.ways.reaches(region) {
                return Err(self.inner.unreachable(region));
            }
            let opened = tokio::time::timeout(OPEN_TIMEOUT, self.inner.ways.open(region)).await;
            let way = opened.map_err(|_| format!("the primary {region} does not answer {}", self.inner.own))??;
            let remote = Remote::start(region.clone(), way).await?;
            *self.cancel.remote.lock() = Some(Box::new(remote.canceller()));
            self.remote = Some(remote);
        }
        let own = self.inner.own.clone();
        let silent = || format!("the primary {region} does not answer {own}");
        let Some(remote) = &mut self.remote else { return Err(silent()) };
        if !ask && remote.is_proven() {
            return Ok(());
        }
        let cancel = self.cancel.clone();
        let unanswered = tokio::select! {
            proven = remote.prove(who) => return proven,
            () = tokio::time::sleep(until.since(clock::now())) => silent(),
            () = cancel.wake.notified() => silent(),
        };
        // Nothing was sent on it but this question: whatever comes of it later is of no use.
        self.disconnect();
        Err(unanswered)
    }

    fn disconnect(&mut self) {
        self.remote = None;
        *self.cancel.remote.lock() = None;
    }

    /// A further request of the transaction that lives at the writer's region.
    async fn in_transaction(&mut self, what: &What) -> Result<Reply, SqlError> {
        let asked = match &mut self.remote {
            None => Err(Failure::NotSent("the stream to it is gone".to_owned())),
            Some(remote) => match remote.fed().await {
                Ok(Fed { failed: None, .. }) => remote.ask(what, None, gone("its rows were not given as a whole"), &self.inner.who).await,
                Ok(Fed { failed: Some(error), .. }) => Ok(Err(error)),
                Err(failure) => Err(failure),
            },
        };
        if let (Some(remote), Ok(_)) = (&self.remote, &asked) {
            self.inner.note_schema(remote);
        }
        match asked {
            Ok(said) => said.map_err(softened),
            Err(Failure::NotSent(reason) | Failure::Lost(reason)) => {
                self.disconnect();
                self.tx = Tx::Lost;
                Err(gone(&reason))
            }
        }
    }

    /// The first request of a transaction, or one of one that is open.
    async fn mark(&mut self, what: What) -> Result<(), SqlError> {
        match self.tx {
            Tx::None => Err(SqlError::new("25P01", "savepoints can only be used in transaction blocks")),
            Tx::Fresh(mode) => self.anywhere(&what, Some(mode)).await.map(|_| ()),
            Tx::Here => self.locally(&what).await.map(|_| ()).map_err(softened),
            Tx::There(_) => self.in_transaction(&what).await.map(|_| ()),
            Tx::Lost => Err(aborted()),
        }
    }

    /// What this region's own schema says, if it is known to be the writer's.
    async fn described_here(&mut self, sql: &str) -> Option<Description> {
        let (region, version) = self.inner.schema.lock().clone()?;
        if self.inner.who.borrow().primary.as_ref() != Some(&region) {
            return None;
        }
        let here = self.here.get_or_insert_with(|| self.inner.engine.session(Port::Reader));
        let description = here.describe(sql).await.ok()?;
        // Asked behind it: describing has looked at the newest schema here.
        (self.inner.engine.schema_version() == Some(version)).then_some(description)
    }
}

fn aborted() -> SqlError {
    let text = "current transaction is aborted, commands ignored until end of transaction block";
    SqlError::new(state::IN_FAILED_TRANSACTION, text)
}

#[async_trait]
impl SqlSession for RoutedSession {
    fn tx(&self) -> TxState {
        match &self.tx {
            Tx::None => TxState::Idle,
            Tx::Fresh(_) => TxState::InTransaction,
            Tx::Here => self.local.tx(),
            // One whose stream broke has failed as well; but nobody has been told yet, and the next statement tells it (40001).
            Tx::There(_) => match &self.remote {
                Some(remote) if remote.standing().tx == TxState::Failed => TxState::Failed,
                _ => TxState::InTransaction,
            },
            Tx::Lost => TxState::Failed,
        }
    }

    async fn describe(&mut self, sql: &str) -> Result<Description, SqlError> {
        let what = || What::Describe { sql: sql.to_owned() };
        let reply = match self.tx {
            Tx::Here => return self.local.describe(sql).await.map_err(softened),
            Tx::Lost => return Err(aborted()),
            // A transaction that changes the schema says so in no number yet; it is asked itself.
            Tx::There(_) if self.schema_touched => self.in_transaction(&what()).await,
            _ if self.tx() == TxState::Failed => return Err(aborted()),
            Tx::There(_) => match self.described_here(sql).await {
                Some(description) => return Ok(description),
                None => self.in_transaction(&what()).await,
            },
            Tx::None | Tx::Fresh(_) => {
                let elsewhere = !self.inner.who.borrow().here;
                if elsewhere && let Some(description) = self.described_here(sql).await {
                    return Ok(description);
                }
                self.anywhere(&what(), None).await
            }
        };
        match reply? {
            Reply::Described(description) => Ok(description),
            other => Err(misunderstood(&other)),
        }
    }

    async fn execute(&mut self, sql: &str, params: Vec<Value>) -> Result<Outcome, SqlError> {
        match self.tx {
            Tx::Here => return self.local.execute(sql, params).await.map_err(softened),
            Tx::Lost => return Err(aborted()),
            _ => {}
        }
        let what = What::Execute { sql: sql.to_owned(), params };
        let reply = match self.tx {
            Tx::Fresh(mode) => self.anywhere(&what, Some(mode)).await?,
            Tx::There(_) => self.in_transaction(&what).await?,
            _ => self.anywhere(&what, None).await?,
        };
        self.schema_touched |= matches!(self.tx, Tx::There(_)) && changes_schema(sql);
        outcome(reply)
    }

    async fn feed(&mut self, sql: &str, params: Vec<Value>) -> Result<(), SqlError> {
        let Tx::There(_) = self.tx else {
            return self.execute(sql, params).await.map(drop);
        };
        let what = What::Execute { sql: sql.to_owned(), params };
        let fed = match &mut self.remote {
            None => Err(Failure::NotSent("the stream to it is gone".to_owned())),
            Some(remote) => remote.feed(&what, gone("its rows were not given as a whole")).await,
        };
        match fed {
            Ok(fed) => fed.map_err(softened),
            Err(Failure::NotSent(reason) | Failure::Lost(reason)) => {
                self.disconnect();
                self.tx = Tx::Lost;
                Err(gone(&reason))
            }
        }
    }

    fn feeds(&self) -> bool {
        matches!(self.tx, Tx::There(_)) && self.tx() == TxState::InTransaction
    }

    async fn fed(&mut self) -> Fed {
        let fed = match (&self.tx, &mut self.remote) {
            (Tx::There(_), Some(remote)) => remote.fed().await,
            _ => return Fed::default(),
        };
        match fed {
            Ok(Fed { changed, failed }) => Fed { changed, failed: failed.map(softened) },
            Err(Failure::NotSent(reason) | Failure::Lost(reason)) => {
                self.disconnect();
                self.tx = Tx::Lost;
                Fed { changed: Vec::new(), failed: Some(gone(&reason)) }
            }
        }
    }

    async fn begin(&mut self, mode: TxMode) -> Result<(), SqlError> {
        if !matches!(self.tx, Tx::None) {
            return Err(SqlError::new("25001", "there is already a transaction in progress"));
        }
        // It is begun where its first statement runs.
        self.tx = Tx::Fresh(mode);
        self.schema_touched = false;
        Ok(())
    }

    async fn commit(&mut self) -> Result<bool, SqlError> {
        if self.tx() == TxState::Failed {
            self.rollback().await?;
            return Ok(false);
        }
        match std::mem::replace(&mut self.tx, Tx::None) {
            Tx::None | Tx::Fresh(_) => Ok(true),
            Tx::Here => self.local.commit().await.map_err(softened),
            Tx::Lost => Ok(false),
            Tx::There(mode) => {
                let Some(remote) = &mut self.remote else { return Err(gone("the stream to it is gone")) };
                let mut fed = remote.fed().await.map(|fed| fed.failed.map_or(Ok(()), Err));
                if matches!(fed, Ok(Ok(()))) && !remote.hears() {
                    // A commit that is sent to nobody would have an unknown outcome for nothing.
                    fed = remote.ask(&What::Ping, None, gone("silence"), &self.inner.who).await.map(|said| said.map(drop));
                }
                let asked = match fed {
                    Ok(Ok(())) => remote.ask(&What::Commit, None, gone("it ended"), &self.inner.who).await,
                    Ok(Err(error)) => {
                        remote.say(&What::Rollback).await;
                        return Err(softened(error));
                    }
                    Err(failure) => Err(Failure::NotSent(match failure {
                        Failure::NotSent(reason) | Failure::Lost(reason) => reason,
                    })),
                };
                self.inner.note_schema(remote);
                match asked {
                    Ok(Ok(Reply::Yes(committed))) => Ok(committed),
                    Ok(Ok(other)) => Err(misunderstood(&other)),
                    Ok(Err(error)) => Err(softened(error)),
                    Err(failure) => {
                        self.disconnect();
                        match failure {
                            // All that it read was given under the writer's lease.
                            _ if mode.read_only => Ok(true),
                            Failure::NotSent(reason) => Err(gone(&reason)),
                            Failure::Lost(reason) => Err(unknown(&reason)),
                        }
                    }
                }
            }
        }
    }

    async fn rollback(&mut self) -> Result<(), SqlError> {
        match std::mem::replace(&mut self.tx, Tx::None) {
            Tx::None | Tx::Fresh(_) | Tx::Lost => Ok(()),
            Tx::Here => self.local.rollback().await.map_err(softened),
            Tx::There(_) => {
                if let Some(remote) = &mut self.remote {
                    let _ = remote.fed().await;
                    // Whatever comes next on the stream comes behind it; without the stream it is rolled back as well.
                    remote.say(&What::Rollback).await;
                }
                Ok(())
            }
        }
    }

    async fn savepoint(&mut self, name: &str) -> Result<(), SqlError> {
        self.mark(What::Savepoint { name: name.to_owned() }).await
    }

    async fn release(&mut self, name: &str) -> Result<(), SqlError> {
        self.mark(What::Release { name: name.to_owned() }).await
    }

    async fn rollback_to(&mut self, name: &str) -> Result<(), SqlError> {
        self.mark(What::RollbackTo { name: name.to_owned() }).await
    }

    fn may_answer(&mut self) -> Result<(), SqlError> {
        self.local.may_answer()
    }

    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let cancel = self.cancel.clone();
        Box::new(move || cancel.cancel())
    }
}
