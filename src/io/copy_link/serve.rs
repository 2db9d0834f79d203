//! The side of the copies: who comes in, and what he may do.
//!
//! Several region processes may be connected at once: one that was believed dead may still be there. Each has a session of its own with
//! each copy; the copy itself refuses the older generation. A session ends with its connection and leaves nothing behind.

use super::wire::{self, Address, PageAnswer, PageQuestion, ToCopy};
use super::{CLOSE, DECLINED, ORDERED, PAGE, PRIORITY_PAGE, PRIORITY_READ, READ, READ_TIMEOUT, ours, read, refusal, write};
use crate::base::{CopyId, MemberId};
use crate::io::copies::{Copies, Listener, Mailbox, Miss, OWNER, Order, Pages, Says};
use crate::io::quic::{IDLE_TIMEOUT, Quic};
use crate::volume::{CopyReply, CopyRequest};
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

/// Connections that are not identified yet.
const HANDSHAKES_MAX: usize = 16;
/// Replies that a region has not taken; beyond it the connection ends.
const REPLIES_MAX: usize = 1 << 16;
/// While a copy's queue is full, its stream is looked at again so often; the rest waits in the region.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// What a process of copies has.
pub struct Host {
    /// The places that are here; the copies there, of all groups, are opened when the region asks for them.
    places: Vec<CopyId>,
    copies: Copies,
    pages: Arc<Pages>,
    next_session: AtomicU64,
}

impl Host {
    #[must_use]
    pub fn new(copies: Copies, places: &[CopyId]) -> Arc<Host> {
        Arc::new(Host { places: places.to_vec(), pages: copies.pages(), copies, next_session: AtomicU64::new(OWNER + 1) })
    }

    /// Ends the copies' threads.
    pub fn stop(&self) {
        self.copies.stop();
    }

    /// The error is a sentence for the region.
    fn mailbox(&self, id: MemberId) -> Result<Mailbox, String> {
        if self.places.contains(&id.copy) {
            return self.copies.mailbox(id).map_err(|e| format!("a thread for it cannot be started: {e}"));
        }
        let here = self.places.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(format!("the process there holds {here} and not {}; correct [copies] of the region, or `copies` there", id.copy))
    }
}

/// Accepts connections until the endpoint is closed.
pub async fn serve(quic: Quic, host: Arc<Host>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = quic.endpoint.accept().await {
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (quic, host) = (quic.clone(), Arc::clone(&host));
        tokio::spawn(async move {
            let welcomed = tokio::time::timeout(IDLE_TIMEOUT, welcome(&quic, incoming)).await;
            drop(permit);
            if let Ok(Some(connection)) = welcomed {
                tracing::info!(addr = %connection.remote_address(), "the region is connected");
                let ended = converse(&connection, &host).await;
                connection.close(CLOSE, ended.as_bytes());
                tracing::info!(addr = %connection.remote_address(), "the region is gone: {ended}");
            }
        });
    }
}

/// `None` when it came to nothing, which has then been counted and logged.
async fn welcome(quic: &Quic, incoming: quinn::Incoming) -> Option<Connection> {
    let addr = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let connection = match handshake.await {
        Ok(connection) => connection,
        Err(error) => {
            if let Some(kind) = refusal(&error, quic) {
                quic.refuse(kind, addr, &error.to_string());
            }
            return None;
        }
    };
    // Only this region's own process: the endpoint knows no other member.
    match quic.identify(&connection) {
        Ok(_) => Some(connection),
        Err((kind, detail)) => {
            let kind = ours(kind);
            connection.close(kind.code(), detail.as_bytes());
            quic.refuse(kind, addr, &detail);
            None
        }
    }
}

/// One region process and one copy.
struct Session {
    from: u64,
    outbox: mpsc::UnboundedSender<Says>,
    waiting: AtomicUsize,
    overrun: Box<dyn Fn() + Send + Sync>,
    /// Reads under way, by the number that the region gave them.
    reads: Mutex<BTreeMap<u64, oneshot::Sender<CopyReply>>>,
}

impl Listener for Session {
    fn tell(&self, _copy: MemberId, says: Says) {
        if let Says::Replied(
            CopyReply::Log { id, .. } | CopyReply::LogTrimmed { id, .. } | CopyReply::Pages { id, .. } | CopyReply::Unreadable { id, .. },
        ) = &says
        {
            if let (Some(to), Says::Replied(reply)) = (self.reads.lock().remove(id), says) {
                // Whoever asked may have given up.
                let _ = to.send(reply);
            }
            return;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= REPLIES_MAX {
            (self.overrun)();
        }
        let _ = self.outbox.send(says);
    }
}

type Sessions = Mutex<BTreeMap<MemberId, Arc<Session>>>;

/// Until the connection ends; how it did.
async fn converse(connection: &Connection, host: &Arc<Host>) -> String {
    let sessions: Arc<Sessions> = Arc::default();
    let mut streams: JoinSet<Result<(), String>> = JoinSet::new();
    let ended = loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => {
                    streams.spawn(stream(connection.clone(), send, recv, Arc::clone(host), Arc::clone(&sessions)));
                }
                Err(e) => break e.to_string(),
            },
            Some(joined) = streams.join_next() => match joined {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => break reason,
                Err(panic) => break format!("a stream's task failed: {panic}"),
            },
        }
    };
    streams.shutdown().await;
    for (copy, session) in std::mem::take(&mut *sessions.lock()) {
        if let Ok(mailbox) = host.mailbox(copy) {
            mailbox.send(Order::Detach { from: session.from });
        }
    }
    ended
}

/// Errs only where the connection must end.
async fn stream(
    connection: Connection,
    send: SendStream,
    mut recv: RecvStream,
    host: Arc<Host>,
    sessions: Arc<Sessions>,
) -> Result<(), String> {
    let mut head = [0; 1 + Address::BYTES];
    recv.read_exact(&mut head).await.map_err(|e| format!("a stream ended before it said what it is: {e}"))?;
    let copy = Address::decode(head[1..].try_into().expect("BUG: the rest of the head")).map_err(|e| e.to_string())?.id;
    match head[0] {
        ORDERED => ordered(connection, send, recv, &host, copy, &sessions).await,
        READ => {
            let _ = send.set_priority(PRIORITY_READ);
            let Some(request) = read(&mut recv).await? else { return Err("a read without a question".to_owned()) };
            let request = match ToCopy::decode(&request).map_err(|e| e.to_string())? {
                ToCopy::Request(request @ (CopyRequest::ReadLog { .. } | CopyRequest::ReadPages { .. })) => request,
                other => return Err(format!("no read: {other:?}").chars().take(100).collect()),
            };
            let session = sessions.lock().get(&copy).cloned();
            let answer = match (session, host.mailbox(copy)) {
                (Some(session), Ok(mailbox)) => {
                    tokio::time::timeout(READ_TIMEOUT, read_log(&session, &mailbox, request)).await.ok().flatten()
                }
                _ => None,
            };
            respond(send, answer.map(|reply| wire::encode_says(&Says::Replied(reply)))).await;
            Ok(())
        }
        PAGE => {
            let _ = send.set_priority(PRIORITY_PAGE);
            let Some(question) = read(&mut recv).await? else { return Err("no page is asked for".to_owned()) };
            let question = PageQuestion::decode(&question).map_err(|e| e.to_string())?;
            let answer = read_page(&host, copy, question).await;
            respond(send, Some(wire::encode_page(&answer))).await;
            Ok(())
        }
        other => Err(format!("a stream of unknown kind {other:#04x}")),
    }
}

async fn respond(mut send: SendStream, answer: Option<Vec<bytes::Bytes>>) {
    // Whoever asked may have given up on this one; that concerns nobody else.
    match answer {
        Some(parts) => {
            if write(&mut send, parts).await.is_ok() {
                let _ = send.finish();
            }
        }
        None => drop(send.reset(DECLINED)),
    }
}

async fn read_log(session: &Session, mailbox: &Mailbox, request: CopyRequest) -> Option<CopyReply> {
    let (CopyRequest::ReadLog { id, .. } | CopyRequest::ReadPages { id, .. }) = request else { return None };
    let (to, answer) = oneshot::channel();
    session.reads.lock().insert(id, to);
    if !mailbox.send(Order::RequestOf { from: session.from, request }) {
        session.reads.lock().remove(&id);
        return None;
    }
    answer.await.ok()
}

async fn read_page(host: &Host, copy: MemberId, question: PageQuestion) -> PageAnswer {
    let (to, answer) = oneshot::channel();
    let give = Box::new(move |page| drop(to.send(page)));
    if !host.pages.read_of(copy, question.of, question.page, question.at, give) {
        return Err(Miss::now(format!("copy {copy} cannot be read now")));
    }
    answer.await.unwrap_or_else(|_| Err(Miss::now("the process of this copy is stopping")))
}

async fn ordered(
    connection: Connection,
    mut send: SendStream,
    mut recv: RecvStream,
    host: &Arc<Host>,
    copy: MemberId,
    sessions: &Sessions,
) -> Result<(), String> {
    let mailbox = match host.mailbox(copy) {
        Ok(mailbox) => mailbox,
        Err(reason) => {
            write(&mut send, wire::encode_says(&Says::Lost { reason })).await?;
            // The other copies are served all the same.
            let _ = (send.finish(), recv.stop(DECLINED));
            let _ = send.stopped().await;
            return Ok(());
        }
    };
    let (outbox, mut replies) = mpsc::unbounded_channel();
    let overrun = Box::new(move || connection.close(CLOSE, b"the region does not take what its copies say"));
    let from = host.next_session.fetch_add(1, Ordering::Relaxed);
    let session = Arc::new(Session { from, outbox, waiting: AtomicUsize::new(0), overrun, reads: Mutex::default() });
    if sessions.lock().insert(copy, Arc::clone(&session)).is_some() {
        return Err(format!("a second ordered stream for {copy}"));
    }
    mailbox.send(Order::Attach { from, listener: session.clone() });
    let taking = async {
        while let Some(message) = read(&mut recv).await? {
            match ToCopy::decode(&message).map_err(|e| e.to_string())? {
                ToCopy::Request(request) => {
                    while mailbox.is_full() {
                        tokio::time::sleep(FULL_PAUSE).await;
                    }
                    mailbox.send(Order::RequestOf { from, request });
                }
                ToCopy::Drill { on_duty, delay } => {
                    host.copies.drills().of(copy.copy).set(delay);
                    mailbox.send(if on_duty { Order::Start } else { Order::Stop });
                }
                ToCopy::Serving(serving) => host.copies.set_serving(serving),
            }
        }
        Ok::<(), String>(())
    };
    let saying = async {
        while let Some(says) = replies.recv().await {
            write(&mut send, wire::encode_says(&says)).await?;
            session.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Ok::<(), String>(())
    };
    tokio::select! { ended = taking => ended, ended = saying => ended }
}
