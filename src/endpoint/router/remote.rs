//! The dialling end of a forwarded session: requests out, answers in, over one stream of the link to the writer's region.
//!
//! Decides what a broken stream means for the request that was under way: not sent, or lost. Never decides where a statement
//! runs or whether it is run again ([`super`] does). Driven by the session; one task of its own reads the answers.

use super::Way;
use super::wire::{Answer, Frames, HELLO, Said, Standing, What, decode_answer};
use crate::base::{RegionName, WhoWrites};
use crate::endpoint::Fed;
use crate::head::sql::{Description, Outcome, Row, RowStream, SqlError, TxMode, TxState};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot, watch};

/// Batches of rows read ahead of a slow client; what lies behind waits in the stream's window, and then at the writer.
const BATCHES_AHEAD: usize = 4;
/// Statements of a COPY or a pipeline that are under way at once; the other side takes more.
const FED_MAX: usize = 512;
const FED_BYTES_MAX: usize = 4 << 20;
/// When another region is said to be the writer, the old one has so long to answer what it was asked before.
const GRACE: Duration = Duration::from_secs(1);

pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;
type Told = oneshot::Receiver<Result<Reply, SqlError>>;
type Sending = Arc<tokio::sync::Mutex<BoxWrite>>;

/// What a request came to.
#[derive(Debug)]
pub enum Reply {
    Outcome(Outcome),
    Described(Description),
    Yes(bool),
    Pong { serves: bool },
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The request was not sent as a whole, so nobody can have run it.
    NotSent(String),
    /// It was sent; whether it was run is not known.
    Lost(String),
}

struct Waiter {
    tell: oneshot::Sender<Result<Reply, SqlError>>,
    /// What the rows end with if the stream does.
    broken: SqlError,
}

struct State {
    waiting: BTreeMap<u32, Waiter>,
    standing: Standing,
    closed: Option<String>,
}

struct Inner {
    state: Mutex<State>,
    /// The request that was sent last and has not come to its end; 0: none.
    running: AtomicU32,
}

/// One stream.
pub struct Remote {
    region: RegionName,
    send: Sending,
    hears: Box<dyn Fn() -> bool + Send + Sync>,
    /// It has answered as the writer the last time.
    proven: bool,
    inner: Arc<Inner>,
    next_id: u32,
    fed: VecDeque<(Told, usize)>,
    fed_bytes: usize,
    fed_changed: Vec<u64>,
    fed_failed: Option<SqlError>,
    reading: tokio::task::AbortHandle,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Remote {
    /// Takes over a new stream. Waits for nothing that the other side would have to do.
    ///
    /// # Errors
    /// A sentence: it is broken already.
    pub async fn start(region: RegionName, way: Way) -> Result<Remote, String> {
        let Way { recv, mut send, hears } = way;
        send.write_all(&HELLO).await.map_err(|e| e.to_string())?;
        let standing = Standing { tx: TxState::Idle, schema: None };
        let state = Mutex::new(State { waiting: BTreeMap::new(), standing, closed: None });
        let inner = Arc::new(Inner { state, running: AtomicU32::new(0) });
        let send: Sending = Arc::new(tokio::sync::Mutex::new(send));
        let reading = tokio::spawn(read(Frames::new(recv), inner.clone(), send.clone())).abort_handle();
        Ok(Remote {
            region,
            send,
            hears,
            proven: false,
            inner,
            next_id: 1,
            fed: VecDeque::new(),
            fed_bytes: 0,
            fed_changed: Vec::new(),
            fed_failed: None,
            reading,
        })
    }

    /// Whether the other side was heard from a moment ago.
    pub fn hears(&self) -> bool {
        (self.hears)()
    }

    /// Whether a statement may be sent without asking first: it would be lost, with an unknown outcome, where a link is dead, or
    /// about to be given up because nobody writes at its other end yet.
    pub fn is_proven(&self) -> bool {
        self.proven && self.hears()
    }

    /// Whether somebody is there and serves the writer port.
    ///
    /// # Errors
    /// A sentence: nobody is, or not yet.
    pub async fn prove(&mut self, who: &watch::Receiver<WhoWrites>) -> Result<(), String> {
        let silence = SqlError::new(crate::head::sql::state::CANNOT_CONNECT_NOW, "silence");
        self.proven = false;
        match self.ask(&What::Ping, None, silence, who).await {
            Ok(Ok(Reply::Pong { serves: true })) => {
                self.proven = true;
                Ok(())
            }
            Ok(Ok(Reply::Pong { serves: false })) => Err(format!("{} does not write now", self.region)),
            Ok(Ok(other)) => Err(format!("{} answered {other:?} to a ping", self.region)),
            Ok(Err(error)) => Err(error.message),
            Err(Failure::NotSent(reason) | Failure::Lost(reason)) => Err(reason),
        }
    }

    pub fn region(&self) -> &RegionName {
        &self.region
    }

    pub fn is_closed(&self) -> bool {
        self.inner.state.lock().closed.is_some()
    }

    /// Where the session stood at its last answer.
    pub fn standing(&self) -> Standing {
        self.inner.state.lock().standing
    }

    /// Cancels what runs, from anywhere.
    pub fn canceller(&self) -> impl Fn() + Send + Sync + use<> {
        let (inner, send, runtime) = (self.inner.clone(), self.send.clone(), tokio::runtime::Handle::current());
        move || {
            let id = inner.running.load(Ordering::SeqCst);
            if id != 0 {
                runtime.spawn(send_cancel(send.clone(), id));
            }
        }
    }

    async fn send(&mut self, what: &What, begin: Option<TxMode>, broken: SqlError) -> Result<(Told, usize), Result<Failure, SqlError>> {
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        let frame = what.encode(id, begin).map_err(Err)?;
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.inner.state.lock();
            if let Some(reason) = &state.closed {
                return Err(Ok(Failure::NotSent(reason.clone())));
            }
            if begin.is_some() {
                state.standing.tx = TxState::InTransaction;
            }
            state.waiting.insert(id, Waiter { tell, broken });
        }
        self.inner.running.store(id, Ordering::SeqCst);
        // A stream that does not take the whole frame does not deliver it either.
        if let Err(e) = self.send.lock().await.write_all(&frame).await {
            self.inner.close(&e.to_string());
            return Err(Ok(Failure::NotSent(e.to_string())));
        }
        Ok((told, frame.len()))
    }

    /// One request and its answer. `broken`: with what the rows end if the stream does while they come.
    ///
    /// # Errors
    /// The answer, when it is an error; the outer one, when there is none.
    pub async fn ask(
        &mut self,
        what: &What,
        begin: Option<TxMode>,
        broken: SqlError,
        who: &watch::Receiver<WhoWrites>,
    ) -> Result<Result<Reply, SqlError>, Failure> {
        let told = match self.send(what, begin, broken).await {
            Ok((told, _)) => told,
            Err(Ok(failure)) => return Err(failure),
            Err(Err(error)) => return Ok(Err(error)),
        };
        let region = self.region.clone();
        // A question that does nothing may be left without an answer at once; whoever asks it waits for a writer.
        let grace = if *what == What::Ping { Duration::ZERO } else { GRACE };
        tokio::select! {
            biased;
            told = told => {
                let told = told.map_err(|_| Failure::Lost(self.why_closed()))?;
                self.proven &= !told.as_ref().is_err_and(|error| error.elsewhere);
                Ok(told)
            }
            () = another_writes(who.clone(), &region, grace) => {
                self.inner.close("another region is the writer now");
                Err(Failure::Lost("another region is the writer now, and this one does not answer".to_owned()))
            }
        }
    }

    /// A request whose answer nobody waits for; what comes behind it on the stream is carried out after it.
    pub async fn say(&mut self, what: &What) {
        let broken = SqlError::new(crate::head::sql::state::INTERNAL_ERROR, "nobody reads this");
        let _ = self.send(what, None, broken).await;
    }

    /// Sends a statement ahead, without waiting for its answer unless much is under way.
    ///
    /// # Errors
    /// Of an earlier one; [`Remote::fed`] tells it again.
    pub async fn feed(&mut self, what: &What, broken: SqlError) -> Result<Result<(), SqlError>, Failure> {
        while self.fed_failed.is_none() && (self.fed.len() >= FED_MAX || self.fed_bytes >= FED_BYTES_MAX) {
            self.fed_one().await?;
        }
        if let Some(error) = &self.fed_failed {
            return Ok(Err(error.clone()));
        }
        match self.send(what, None, broken).await {
            Ok((told, bytes)) => {
                self.fed.push_back((told, bytes));
                self.fed_bytes += bytes;
                Ok(Ok(()))
            }
            Err(Ok(failure)) => Err(failure),
            Err(Err(error)) => Ok(Err(error)),
        }
    }

    async fn fed_one(&mut self) -> Result<(), Failure> {
        let Some((told, bytes)) = self.fed.pop_front() else { return Ok(()) };
        self.fed_bytes -= bytes;
        let said = told.await.map_err(|_| Failure::Lost(self.why_closed()))?;
        if self.fed_failed.is_none() {
            match said {
                Ok(Reply::Outcome(Outcome::Done { changed })) => self.fed_changed.push(changed),
                Ok(_) => self.fed_changed.push(0),
                Err(error) => self.fed_failed = Some(error),
            }
        }
        Ok(())
    }

    /// Waits for the answers to all that was fed.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn fed(&mut self) -> Result<Fed, Failure> {
        while !self.fed.is_empty() {
            self.fed_one().await?;
        }
        Ok(Fed { changed: std::mem::take(&mut self.fed_changed), failed: self.fed_failed.take() })
    }

    fn why_closed(&self) -> String {
        self.inner.state.lock().closed.clone().unwrap_or_else(|| "it did not answer".to_owned())
    }
}

/// Returns a while after somebody else than `region` is said to write.
async fn another_writes(mut who: watch::Receiver<WhoWrites>, region: &RegionName, grace: Duration) {
    let is_another = |who: &WhoWrites| who.here || who.primary.as_ref().is_some_and(|p| p != region);
    if who.wait_for(is_another).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(grace).await;
}

async fn send_cancel(send: Sending, id: u32) {
    if let Ok(frame) = What::Cancel.encode(id, None) {
        // A stream that is broken has nothing to cancel.
        let _ = send.lock().await.write_all(&frame).await;
    }
}

impl Inner {
    /// Whoever waits sees its sender go.
    fn close(&self, reason: &str) {
        let mut state = self.state.lock();
        state.closed.get_or_insert_with(|| reason.to_owned());
        state.waiting.clear();
    }

    /// Request `id` has come to its end.
    fn end(&self, id: u32, standing: Standing) -> Option<Waiter> {
        let _ = self.running.compare_exchange(id, 0, Ordering::SeqCst, Ordering::SeqCst);
        let mut state = self.state.lock();
        state.standing = standing;
        state.waiting.remove(&id)
    }
}

/// Rows on their way to the session that asked for them.
struct Streaming {
    id: u32,
    /// `None`: nobody takes them any more.
    to: Option<mpsc::Sender<Result<Vec<Row>, SqlError>>>,
    broken: SqlError,
}

/// Takes answers to whom they are for, until the stream ends.
async fn read(mut frames: Frames<BoxRead>, inner: Arc<Inner>, send: Sending) {
    let mut streaming: Option<Streaming> = None;
    let reason = loop {
        let answer = match frames.next().await {
            Ok(Some(frame)) => decode_answer(frame).map_err(|e| e.to_string()),
            Ok(None) => Err("the writer's region ended the session's stream".to_owned()),
            Err(reason) => Err(reason),
        };
        match answer {
            Ok(answer) => {
                if let Err(reason) = take(answer, &inner, &send, &mut streaming).await {
                    break reason;
                }
            }
            Err(reason) => break reason,
        }
    };
    inner.close(&reason);
    if let Some(Streaming { to: Some(to), mut broken, .. }) = streaming {
        broken.message = format!("{}: {reason}", broken.message);
        let _ = to.send(Err(broken)).await;
    }
}

async fn take(Answer { id, said }: Answer, inner: &Inner, send: &Sending, streaming: &mut Option<Streaming>) -> Result<(), String> {
    let (standing, reply) = match said {
        Said::Columns(columns) => {
            let Some(waiter) = inner.state.lock().waiting.remove(&id) else {
                *streaming = Some(Streaming { id, to: None, broken: nobody() });
                return Ok(());
            };
            let (to, rows) = mpsc::channel(BATCHES_AHEAD);
            *streaming = Some(Streaming { id, to: Some(to), broken: waiter.broken });
            let _ = waiter.tell.send(Ok(Reply::Outcome(Outcome::Rows { columns, rows: RowStream::new(rows) })));
            return Ok(());
        }
        Said::Rows(rows) => {
            let Some(current) = streaming.as_mut().filter(|s| s.id == id) else {
                return Err("rows came that nobody has asked for".to_owned());
            };
            if let Some(to) = &current.to
                && to.send(Ok(rows)).await.is_err()
            {
                // Nobody takes them: the statement is stopped, and what is under way is read and forgotten.
                current.to = None;
                send_cancel(send.clone(), id).await;
            }
            return Ok(());
        }
        Said::End { standing } => {
            inner.end(id, standing);
            // Dropped behind the news of where the session stands.
            *streaming = None;
            return Ok(());
        }
        Said::Error { standing, error } => {
            let waiter = inner.end(id, standing);
            if let Some(current) = streaming.take_if(|s| s.id == id) {
                if let Some(to) = current.to {
                    let _ = to.send(Err(error)).await;
                }
                return Ok(());
            }
            if let Some(waiter) = waiter {
                let _ = waiter.tell.send(Err(error));
            }
            return Ok(());
        }
        Said::Done { standing, changed } => (Some(standing), Reply::Outcome(Outcome::Done { changed })),
        Said::Described { standing, description } => (Some(standing), Reply::Described(description)),
        Said::Said { standing, yes } => (Some(standing), Reply::Yes(yes)),
        Said::Pong { serves } => (None, Reply::Pong { serves }),
    };
    let standing = standing.unwrap_or_else(|| inner.state.lock().standing);
    if let Some(waiter) = inner.end(id, standing) {
        let _ = waiter.tell.send(Ok(reply));
    }
    Ok(())
}

fn nobody() -> SqlError {
    SqlError::new(crate::head::sql::state::INTERNAL_ERROR, "nobody reads this")
}
