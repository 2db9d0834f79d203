//! Links: one QUIC connection between two regions that know each other, and what travels on it.
//!
//! Decides: who gets a link (a member, by its certificate), what each stream is (by its first byte), and how much may wait
//! in memory. Never looks into a message. Driven by the region process: [`serve`] and [`dial`] hand out a [`Link`] to
//! send on and a receiver of [`LinkEvent`]s; dropping the receiver closes the link. Several links between the same two
//! regions may exist (each side may dial); the caller decides which one it uses.
//!
//! ```text
//!  bidirectional   'C' control: u32 length + message, both ways; exactly one, opened and closed by the dialler's link
//!                  'F' a forwarded SQL session: statements and answers (`endpoint::router::wire`)
//!                  'A' one question, one answer: u32 length + bytes each
//!                  'V' the connection is a control link ([`crate::io::control_link`]) and nothing else
//!  unidirectional  'B' one batch of frames: the whole stream is one message
//!  datagrams       heartbeats: may be lost, never late
//! ```
//! A connection whose first stream is 'A' is a command's, and may open nothing else. Lengths are little-endian.
//!
//! Memory: what the receiver has not taken stays at the sender, since no more streams are accepted then. As long as a
//! sender keeps less than [`crate::io::quic`]'s connection window (64 MiB) of batches in flight, batches that nobody takes
//! cannot keep control messages from arriving.

mod saying;
mod serve;
mod streams;

pub use saying::LinkLog;
pub use serve::{Arrival, admin_once, admin_once_of, dial, serve};
pub(crate) use serve::{attempt_failed, refused, resolve};
pub use streams::{AdminReply, BATCH_BYTES_MAX, MESSAGE_BYTES_MAX};
pub(crate) use streams::{MEMBER, first_byte};

use crate::base::{Instant, RegionName};
use crate::io::clock;
use crate::io::quic::{RefusalKind, printable};
use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Events that wait for the receiver before the streams do.
const EVENTS_MAX: usize = 64;
/// Written by us and not yet taken by the transport. A peer that lets more pile up is not taking anything.
const CONTROL_QUEUE_BYTES_MAX: usize = 16 << 20;
const BATCH_QUEUE_BYTES_MAX: usize = 256 << 20;
/// Some round trips on any path.
const CLOSE_AFTER_SESSIONS: Duration = Duration::from_secs(1);
const SILENCE_LOOKED_AT_EVERY: Duration = Duration::from_millis(40);
/// An application close without a refusal.
const CLOSE: VarInt = VarInt::from_u32(0);

/// Control before SQL sessions before batches: who ships a backlog must still be heard.
const PRIORITY_CONTROL: i32 = 2;
const PRIORITY_SESSION: i32 = 1;

/// What a link brings. Control messages arrive in order; nothing else is ordered, not even against them.
#[derive(Debug)]
pub enum LinkEvent {
    Control(Bytes),
    Batch(Bytes),
    Datagram(Bytes),
    /// A SQL session that the peer forwards to this region's writer.
    Forward(SendStream, RecvStream),
    Admin(Bytes, AdminReply),
    /// The last event, with the reason as a sentence.
    Closed(String),
}

/// Why a link could not be had or used. Each is a sentence for the operator.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the address {addr} of {region} leads nowhere: {reason}; correct its [[member]] quic")]
    Address { region: RegionName, addr: String, reason: String },
    #[error("{region} does not answer at {addr}; is its process running, and does UDP pass?")]
    Silent { region: RegionName, addr: String },
    #[error("no connection with {region} at {addr}: {} ({detail})", kind.explanation())]
    Refused { region: RegionName, addr: String, kind: RefusalKind, detail: String },
    #[error("the connection with {region} ended: {reason}")]
    Closed { region: RegionName, reason: String },
    #[error("{region} has not answered within {} ms; it may still carry out what was asked", after.as_millis())]
    NoAnswer { region: RegionName, after: Duration },
    #[error("the connection cannot be opened: {0}")]
    Endpoint(String),
}

/// The transport's view of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    pub rtt: Duration,
    /// Since the link began, with headers and repeats.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub lost_packets: u64,
    pub congestion_window_bytes: u64,
}

/// One connection to another region. Cheap to clone; no method but [`Link::open_forward`] and [`Link::request_admin`] waits.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    peer: RegionName,
    connection: Connection,
    dialled: bool,
    control: Outbox,
    batches: Outbox,
    /// Why this side closed the link; the transport itself remembers only that it did.
    closed_because: OnceLock<String>,
    /// For what is to be sent in a moment: callers have threads of their own.
    runtime: tokio::runtime::Handle,
    /// When something was last seen to have arrived, nanoseconds of the raw clock.
    heard_ns: AtomicU64,
    /// Held once for each forwarded session that is open on this link.
    sessions: Arc<()>,
}

/// Keeps a link that is to be closed open a little longer; see [`Link::close_after_sessions`].
#[derive(Clone, Debug)]
pub struct InUse {
    _held: Arc<()>,
}

/// Messages on their way to the task that writes them, with their bytes counted.
struct Outbox {
    tx: mpsc::UnboundedSender<Vec<Bytes>>,
    queued_bytes: AtomicUsize,
    bytes_max: usize,
}

impl Outbox {
    fn new(bytes_max: usize) -> (Outbox, mpsc::UnboundedReceiver<Vec<Bytes>>) {
        let (tx, rx) = mpsc::unbounded_channel();
        (Outbox { tx, queued_bytes: AtomicUsize::new(0), bytes_max }, rx)
    }

    /// False when too much waits already.
    fn push(&self, parts: Vec<Bytes>) -> bool {
        let bytes = cost(&parts);
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bytes_max {
            return false;
        }
        // A closed link takes messages and forgets them; its end is told by the event.
        let _ = self.tx.send(parts);
        true
    }

    fn written(&self, bytes: usize) {
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// With something for the message itself, so that empty ones cannot pile up without end.
fn cost(parts: &[Bytes]) -> usize {
    64 + parts.iter().map(Bytes::len).sum::<usize>()
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.inner.peer).field("addr", &self.remote_addr()).finish_non_exhaustive()
    }
}

impl Link {
    /// The region at the other end, by its certificate.
    #[must_use]
    pub fn peer(&self) -> &RegionName {
        &self.inner.peer
    }

    /// True on the side that dialled.
    #[must_use]
    pub fn dialled(&self) -> bool {
        self.inner.dialled
    }

    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        self.inner.connection.remote_address()
    }

    /// Sends a control message of at most [`MESSAGE_BYTES_MAX`]; they arrive in order. Closes the link when more
    /// than 16 MiB wait to be sent.
    pub fn send_control(&self, message: Bytes) {
        assert!(message.len() <= MESSAGE_BYTES_MAX, "BUG: a control message of {} bytes", message.len());
        if !self.inner.control.push(vec![message]) {
            self.close("the other side does not take its control messages");
        }
    }

    /// Sends one batch, the concatenation of `parts`, of at most [`BATCH_BYTES_MAX`], on a stream of its own. The bytes are
    /// not copied. Arrives whole or not at all, in any order with others. Closes the link when more than 256 MiB wait.
    pub fn send_batch(&self, parts: Vec<Bytes>) {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        assert!(bytes <= BATCH_BYTES_MAX, "BUG: a batch of {bytes} bytes");
        if !self.inner.batches.push(parts) {
            self.close("the other side does not take its batches");
        }
    }

    /// Sends a small message that may be lost. Silently dropped when it does not fit a packet or the path takes none.
    pub fn send_datagram(&self, message: Bytes) {
        let _ = self.inner.connection.send_datagram(message);
    }

    /// [`Link::send_batch`], a moment later.
    pub fn send_batch_after(&self, delay: Duration, parts: Vec<Bytes>) {
        let link = self.clone();
        self.inner.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            link.send_batch(parts);
        });
    }

    /// [`Link::send_datagram`], a moment later: so that it does not share its packet with what was sent just before.
    pub fn send_datagram_after(&self, delay: Duration, message: Bytes) {
        let connection = self.inner.connection.clone();
        self.inner.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = connection.send_datagram(message);
        });
    }

    /// Opens a session with the peer's writer.
    ///
    /// # Errors
    /// [`LinkError::Closed`]
    pub async fn open_forward(&self) -> Result<(SendStream, RecvStream), LinkError> {
        let opened = async {
            let (mut send, recv) = self.inner.connection.open_bi().await.map_err(|e| self.ended(&e))?;
            // The priority of a fresh stream can always be set.
            let _ = send.set_priority(PRIORITY_SESSION);
            send.write_all(&[streams::FORWARD]).await.map_err(|e| self.broken(&e))?;
            Ok((send, recv))
        };
        opened.await
    }

    /// Asks one question of at most [`MESSAGE_BYTES_MAX`] and waits for the answer.
    ///
    /// # Errors
    /// [`LinkError::NoAnswer`] after `timeout`, [`LinkError::Closed`] when the link ends or the peer declines.
    pub async fn request_admin(&self, request: Bytes, timeout: Duration) -> Result<Bytes, LinkError> {
        match tokio::time::timeout(timeout, streams::ask(&self.inner.connection, &request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(reason)) => Err(self.broken(&reason)),
            Err(_) => Err(LinkError::NoAnswer { region: self.inner.peer.clone(), after: timeout }),
        }
    }

    /// How long nothing has arrived, to within a few hundredths of a second. The transport itself gives a silent link up much later.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        clock::now().since(Instant { ns: self.inner.heard_ns.load(Ordering::Relaxed) })
    }

    /// The transport's estimate of the round trip.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.inner.connection.rtt()
    }

    #[must_use]
    pub fn stats(&self) -> LinkStats {
        let s = self.inner.connection.stats();
        LinkStats {
            rtt: s.path.rtt,
            sent_bytes: s.udp_tx.bytes,
            received_bytes: s.udp_rx.bytes,
            sent_packets: s.path.sent_packets,
            lost_packets: s.path.lost_packets,
            congestion_window_bytes: s.path.cwnd,
        }
    }

    /// Ends the link. The peer is told `reason` if one packet arrives; this side gets [`LinkEvent::Closed`] with it.
    pub fn close(&self, reason: &str) {
        let _ = self.inner.closed_because.set(reason.to_owned());
        self.inner.connection.close(CLOSE, reason.as_bytes());
    }

    /// For as long as a forwarded session, of either side, is open on this link.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        InUse { _held: self.inner.sessions.clone() }
    }

    /// [`Link::close`]; but when forwarded sessions are open on it, a moment later: a statement that is under way gets its answer
    /// (mostly that this is no writer any more), where it would be lost and nobody would know what became of it.
    pub fn close_after_sessions(&self, reason: String) {
        if Arc::strong_count(&self.inner.sessions) == 1 {
            return self.close(&reason);
        }
        let link = self.clone();
        self.inner.runtime.spawn(async move {
            tokio::time::sleep(CLOSE_AFTER_SESSIONS).await;
            link.close(&reason);
        });
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.connection.close_reason().is_some()
    }

    fn ended(&self, error: &ConnectionError) -> LinkError {
        LinkError::Closed { region: self.inner.peer.clone(), reason: self.sentence(error) }
    }

    /// A stream failed: mostly because the connection did, and then that is the reason.
    fn broken(&self, reason: &dyn std::fmt::Display) -> LinkError {
        match self.inner.connection.close_reason() {
            Some(error) => self.ended(&error),
            None => LinkError::Closed { region: self.inner.peer.clone(), reason: reason.to_string() },
        }
    }

    fn sentence(&self, error: &ConnectionError) -> String {
        match (error, self.inner.closed_because.get()) {
            (ConnectionError::LocallyClosed, Some(reason)) => reason.clone(),
            _ => sentence(&self.inner.peer, error),
        }
    }

    /// Starts the tasks of a link whose control stream is open.
    fn start(
        peer: RegionName,
        connection: Connection,
        dialled: bool,
        control: (SendStream, RecvStream),
        log: &Arc<LinkLog>,
    ) -> (Link, mpsc::Receiver<LinkEvent>) {
        if log.up(&peer) {
            tracing::info!(%peer, addr = %connection.remote_address(), dialled, "link up");
        }
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (control_box, control_rx) = Outbox::new(CONTROL_QUEUE_BYTES_MAX);
        let (batch_box, batch_rx) = Outbox::new(BATCH_QUEUE_BYTES_MAX);
        let closed_because = OnceLock::new();
        let runtime = tokio::runtime::Handle::current();
        let heard_ns = AtomicU64::new(clock::now().ns);
        let inner = Inner {
            peer,
            connection,
            dialled,
            control: control_box,
            batches: batch_box,
            closed_because,
            runtime,
            heard_ns,
            sessions: Arc::default(),
        };
        let link = Link { inner: Arc::new(inner) };
        tokio::spawn(run(link.clone(), control, control_rx, batch_rx, events, Arc::clone(log)));
        (link, receiver)
    }
}

/// Lives as long as the link. Whatever ends first (the connection, a task that met nonsense, the caller's receiver) ends all.
async fn run(
    link: Link,
    (control_send, control_recv): (SendStream, RecvStream),
    control_rx: mpsc::UnboundedReceiver<Vec<Bytes>>,
    batch_rx: mpsc::UnboundedReceiver<Vec<Bytes>>,
    events: mpsc::Sender<LinkEvent>,
    log: Arc<LinkLog>,
) {
    let began = clock::now();
    let connection = link.inner.connection.clone();
    let mut tasks: JoinSet<String> = JoinSet::new();
    tasks.spawn(streams::write_control(Arc::clone(&link.inner), control_send, control_rx));
    tasks.spawn(streams::write_batches(Arc::clone(&link.inner), batch_rx));
    tasks.spawn(streams::read_control(control_recv, events.clone()));
    tasks.spawn(streams::accept_batches(connection.clone(), events.clone()));
    tasks.spawn(streams::accept_sessions(connection.clone(), events.clone()));
    tasks.spawn(streams::read_datagrams(connection.clone(), events.clone()));
    tasks.spawn(listen_for_silence(Arc::clone(&link.inner)));
    let error = tokio::select! {
        error = connection.closed() => error,
        () = events.closed() => {
            link.close("this side has no more use for the link");
            connection.closed().await
        }
        Some(ended) = tasks.join_next() => {
            if connection.close_reason().is_none() {
                link.close(&ended.unwrap_or_else(|panic| format!("a task of the link failed: {panic}")));
            }
            connection.closed().await
        }
    };
    // What has arrived whole but was not taken yet goes with the link: the protocol above resumes by position.
    tasks.shutdown().await;
    let reason = link.sentence(&error);
    match log.ended(&link.inner.peer, clock::now().since(began), &reason) {
        Some(0) => tracing::info!(peer = %link.inner.peer, addr = %link.remote_addr(), reason, "link closed"),
        Some(untold) => {
            tracing::info!(peer = %link.inner.peer, addr = %link.remote_addr(), reason, untold, "link closed; those that were not told ended at once, for reasons told before");
        }
        None => tracing::debug!(peer = %link.inner.peer, reason, "link closed, as those before it"),
    }
    let _ = events.send(LinkEvent::Closed(reason)).await;
}

/// Notes when bytes arrive; ends with the link.
async fn listen_for_silence(inner: Arc<Inner>) -> String {
    let mut before = 0;
    loop {
        let bytes = inner.connection.stats().udp_rx.bytes;
        if bytes != before {
            inner.heard_ns.store(clock::now().ns, Ordering::Relaxed);
            before = bytes;
        }
        tokio::time::sleep(SILENCE_LOOKED_AT_EVERY).await;
    }
}

/// How a connection ended, in words.
fn sentence(peer: &RegionName, error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => match RefusalKind::of_code(close.error_code) {
            Some(kind) => format!("{peer} refused: {}", kind.explanation()),
            None => format!("{peer} closed the link: {}", printable(&String::from_utf8_lossy(&close.reason))),
        },
        ConnectionError::TimedOut => format!("nothing was heard from {peer} for {} s", crate::io::quic::IDLE_TIMEOUT.as_secs()),
        ConnectionError::Reset => format!("{peer} has restarted"),
        ConnectionError::LocallyClosed => "this side closed it".to_owned(),
        other => format!("the connection broke: {}", printable(&other.to_string())),
    }
}
