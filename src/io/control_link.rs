//! Control links: a QUIC connection of its own between every two members (regions, and the witness), for control messages only.
//!
//! Decides: who gets one (a member, by its certificate), when to dial, which of two connections is used, what is dropped. Never looks into a
//! message. Leases must not wait behind bulk data (protocol.md N12), hence a connection of their own with short timeouts on the same port:
//! a peer that is gone is missed within about two seconds. Driven by the region process and by the witness, which call
//! [`ControlLinks::send`] from any thread and are called back with what comes in.
//!
//! ```text
//!  bidirectional   'V', answered by 'V': this connection is a control link. Nothing follows on it
//!  unidirectional  'M' one message: the rest of the stream. Whole or not at all, in no order
//! ```
//! A message that cannot leave is dropped, the oldest first: whoever sends it repeats it while it matters. Nothing here waits and nothing grows.
//!
//! Both sides may dial, so there may be two connections. All are listened to; the newest is used to send. One that the same side dialled
//! before is closed when its successor comes; of two that were dialled crosswise the member whose name sorts last closes its own, after a moment.

use crate::base::{Instant, Prng, RegionName};
use crate::io::clock;
use crate::io::link::{LinkError, MEMBER, attempt_failed, first_byte, refused, resolve};
use crate::io::quic::{CONTROL_IDLE_TIMEOUT, Quic, RefusalKind, printable};
use crate::io::tls::Subject;
use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, ConnectionError, RecvStream, VarInt};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Longest control message. It fits the window of its stream.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages to one peer that the transport has not taken yet, and their bytes.
const QUEUE_MAX: usize = 64;
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Messages of one connection that are being read.
const READS_MAX: usize = 32;
/// A message that is not whole by then is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a handshake over a long way with a loss or two, shorter than the patience of anybody.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Of a peer that refuses this member or is refused: that is an operator's mistake, and each try is a line in two logs.
const BACKOFF_REFUSED: Duration = Duration::from_secs(15);
/// The member whose name sorts last lets the other dial first.
const COURTESY: Duration = Duration::from_millis(200);
/// A second connection is closed this long after it turned out to be one: what is on its way arrives.
const CROSSED_CLOSES_AFTER: Duration = Duration::from_secs(1);
/// A peer that is none any more is let go so long after it was said: what is on its way arrives.
const GONE_CLOSES_AFTER: Duration = Duration::from_secs(1);
const MESSAGE: u8 = b'M';
const CLOSE: VarInt = VarInt::from_u32(0);

/// Another member, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: RegionName,
    /// A region or the witness.
    pub subject: Subject,
    /// `host:port`; looked up at every attempt.
    pub addr: String,
}

/// A member has dialled this one; for [`ControlLinks::arrived`]. Dropping it closes the connection.
#[derive(Debug)]
pub struct Dialled {
    pub(crate) peer: RegionName,
    pub(crate) connection: Connection,
}

/// How the link with a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    pub name: RegionName,
    pub subject: Subject,
    pub up: bool,
    /// Since when it is so.
    pub since: Instant,
    /// The transport's estimate, while it is up.
    pub rtt: Option<Duration>,
    /// Why it is not up, as far as this side knows; a sentence.
    pub trouble: Option<String>,
    pub sent: u64,
    pub received: u64,
    /// Not sent: the peer was away, or did not take them.
    pub dropped: u64,
}

/// What is called with a message and whom it is from, from many tasks; must not block. The error, a sentence, ends the connection.
pub type OnMessage = dyn Fn(&RegionName, Bytes) -> Result<(), String> + Send + Sync;

/// The control links of one member. Cheap to clone; all end when the last clone is gone.
#[derive(Clone)]
pub struct ControlLinks {
    inner: Arc<Inner>,
    /// The tasks share `inner`; this one is the callers' alone.
    _owner: Arc<Owner>,
}

struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop();
    }
}

type OnRemoved = dyn Fn(&RegionName) + Send + Sync;

struct Inner {
    quic: Quic,
    own: RegionName,
    peers: RwLock<BTreeMap<RegionName, Arc<PeerState>>>,
    /// No peers any more, and spoken to for a moment longer.
    parting: RwLock<BTreeMap<RegionName, Arc<PeerState>>>,
    /// Called with the name of a member that says that this one was taken out.
    on_removed: OnceLock<Box<OnRemoved>>,
    on_message: Box<OnMessage>,
    next_no: AtomicU64,
    stopped: AtomicBool,
    /// Tells the dialling tasks that this is over.
    stopping: Notify,
}

struct PeerState {
    peer: Peer,
    at: Mutex<At>,
    /// It is no peer any more.
    gone: AtomicBool,
    /// A connection ended, or began.
    changed: Notify,
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
}

struct At {
    /// The newest last.
    connections: Vec<Arc<Conn>>,
    since: Instant,
    trouble: Option<String>,
}

struct Conn {
    no: u64,
    dialled: bool,
    connection: Connection,
    queue: Mutex<VecDeque<Bytes>>,
    filled: Notify,
}

impl ControlLinks {
    /// Begins to dial `peers`, and goes on as long as this exists. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(
        quic: &Quic,
        peers: Vec<Peer>,
        on_message: impl Fn(&RegionName, Bytes) -> Result<(), String> + Send + Sync + 'static,
    ) -> ControlLinks {
        let own = quic.region().clone();
        let inner = Arc::new(Inner {
            quic: quic.clone(),
            peers: RwLock::default(),
            parting: RwLock::default(),
            on_removed: OnceLock::new(),
            own,
            on_message: Box::new(on_message),
            next_no: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            stopping: Notify::new(),
        });
        for peer in peers {
            Inner::add(&inner, peer);
        }
        ControlLinks { _owner: Arc::new(Owner(Arc::clone(&inner))), inner }
    }

    /// `told` is called with the name of each member that refuses this one because it was taken out. Once, before or after it began.
    pub fn when_removed(&self, told: impl Fn(&RegionName) + Send + Sync + 'static) {
        let _ = self.inner.on_removed.set(Box::new(told));
    }

    /// From here on these are the peers: new ones and those that moved are dialled; those that are none any more are told so, after a moment in
    /// which what was said last still arrives. Must be called inside a tokio runtime.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        let inner = &self.inner;
        let gone: Vec<Arc<PeerState>> = {
            let mut known = inner.peers.write();
            let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
                std::mem::take(&mut *known).into_iter().partition(|(_, state)| peers.contains(&state.peer));
            *known = stay;
            gone.into_values().collect()
        };
        for state in gone {
            state.gone.store(true, Ordering::Release);
            state.changed.notify_one();
            let moved = peers.iter().any(|p| p.name == state.peer.name);
            if !moved {
                inner.parting.write().insert(state.peer.name.clone(), Arc::clone(&state));
            }
            let inner = Arc::clone(inner);
            tokio::spawn(async move {
                tokio::time::sleep(GONE_CLOSES_AFTER).await;
                inner.parting.write().remove(&state.peer.name);
                let (code, why): (_, &[u8]) =
                    if moved { (CLOSE, b"it moved") } else { (RefusalKind::Removed.code(), b"no member any more") };
                for conn in &state.at.lock().connections {
                    conn.connection.close(code, why);
                }
            });
        }
        for peer in peers {
            if !inner.peers.read().contains_key(&peer.name) {
                Inner::add(inner, peer);
            }
        }
    }

    /// Sends at most [`CONTROL_MESSAGE_BYTES_MAX`]. Never waits; what cannot be sent is dropped and counted.
    pub fn send(&self, to: &RegionName, message: Bytes) {
        assert!(message.len() <= CONTROL_MESSAGE_BYTES_MAX, "BUG: a control message of {} bytes", message.len());
        let parting = || self.inner.parting.read().get(to).cloned();
        let Some(peer) = self.inner.peer(to).or_else(parting) else { return };
        let Some(conn) = peer.newest() else {
            peer.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut queue = conn.queue.lock();
        while queue.len() >= QUEUE_MAX || queue.iter().map(Bytes::len).sum::<usize>() + message.len() > QUEUE_BYTES_MAX {
            queue.pop_front();
            peer.dropped.fetch_add(1, Ordering::Relaxed);
        }
        queue.push_back(message);
        drop(queue);
        conn.filled.notify_one();
    }

    /// Takes over a connection that a peer has made.
    pub fn arrived(&self, arrival: Dialled) {
        let Dialled { peer, connection } = arrival;
        if let Some(state) = self.inner.peer(&peer).filter(|_| !self.inner.stopped.load(Ordering::Acquire)) {
            tracing::info!(%peer, addr = %connection.remote_address(), "control link accepted");
            Inner::up(&self.inner, &state, connection, false);
        } else {
            connection.close(RefusalKind::UnknownRegion.code(), b"not a member");
        }
    }

    /// How the links are, in the order of the names.
    #[must_use]
    pub fn view(&self) -> Vec<PeerView> {
        self.inner.peers.read().values().map(|p| p.view()).collect()
    }

    /// Closes all links and dials no more.
    pub fn stop(&self) {
        self.inner.stop();
    }
}

impl Inner {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.stopping.notify_waiters();
        for peer in self.peers.read().values() {
            peer.changed.notify_one();
            for conn in &peer.at.lock().connections {
                conn.connection.close(CLOSE, b"the process is stopping");
            }
        }
    }

    fn peer(&self, name: &RegionName) -> Option<Arc<PeerState>> {
        self.peers.read().get(name).cloned()
    }

    fn add(inner: &Arc<Inner>, peer: Peer) {
        assert!(peer.name != inner.own, "BUG: a member has no link with itself");
        let at = Mutex::new(At { connections: Vec::new(), since: clock::now(), trouble: None });
        let (sent, received, dropped) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let name = peer.name.clone();
        let state = PeerState { peer, at, gone: AtomicBool::new(false), changed: Notify::new(), sent, received, dropped };
        let state = Arc::new(state);
        inner.peers.write().insert(name, Arc::clone(&state));
        tokio::spawn(keep(Arc::clone(inner), state));
    }

    fn removed(&self, by: &RegionName) {
        if let Some(told) = self.on_removed.get() {
            told(by);
        }
    }

    fn up(inner: &Arc<Inner>, state: &Arc<PeerState>, connection: Connection, dialled: bool) {
        if inner.stopped.load(Ordering::Acquire) {
            return connection.close(CLOSE, b"the process is stopping");
        }
        let no = inner.next_no.fetch_add(1, Ordering::Relaxed);
        let conn = Arc::new(Conn { no, dialled, connection, queue: Mutex::default(), filled: Notify::new() });
        let mut at = state.at.lock();
        if at.connections.is_empty() {
            at.since = clock::now();
        }
        at.trouble = None;
        // The side that dialled has no use for the one before, or does not know of it: it has restarted.
        for older in at.connections.iter().filter(|c| c.dialled == dialled) {
            older.connection.close(CLOSE, b"there is a newer control link");
        }
        let crossed = at.connections.iter().any(|c| c.dialled != dialled);
        at.connections.push(Arc::clone(&conn));
        let mine = at.connections.iter().find(|c| c.dialled && c.connection.close_reason().is_none()).cloned();
        drop(at);
        if crossed
            && inner.own > state.peer.name
            && let Some(mine) = mine
        {
            let state = Arc::clone(state);
            tokio::spawn(async move {
                tokio::time::sleep(CROSSED_CLOSES_AFTER).await;
                let theirs = |c: &Arc<Conn>| !c.dialled && c.connection.close_reason().is_none();
                if state.at.lock().connections.iter().any(theirs) {
                    mine.connection.close(CLOSE, b"both sides dialled");
                }
            });
        }
        tokio::spawn(run(Arc::clone(inner), Arc::clone(state), conn));
        state.changed.notify_one();
    }
}

impl PeerState {
    fn down(&self, conn: &Conn, reason: String) {
        let mut at = self.at.lock();
        at.connections.retain(|c| c.no != conn.no);
        if at.connections.is_empty() {
            tracing::info!(peer = %self.peer.name, reason, "control link lost");
            at.since = clock::now();
            at.trouble = Some(reason);
        }
        let lost = conn.queue.lock().len();
        self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
        drop(at);
        self.changed.notify_one();
    }

    fn newest(&self) -> Option<Arc<Conn>> {
        self.at.lock().connections.iter().rev().find(|c| c.connection.close_reason().is_none()).cloned()
    }

    fn failed(&self, sentence: String) {
        let mut at = self.at.lock();
        if at.connections.is_empty() && at.trouble.as_ref() != Some(&sentence) {
            tracing::info!(peer = %self.peer.name, "no control link: {sentence}");
            at.trouble = Some(sentence);
        }
    }

    fn view(&self) -> PeerView {
        let newest = self.newest();
        let at = self.at.lock();
        // A connection that ended a moment ago, which nobody has taken away yet.
        let just_ended = || at.connections.last().and_then(|c| c.connection.close_reason()).map(|e| sentence(&self.peer.name, &e));
        PeerView {
            name: self.peer.name.clone(),
            subject: self.peer.subject,
            up: newest.is_some(),
            since: at.since,
            trouble: if newest.is_none() { at.trouble.clone().or_else(just_ended) } else { None },
            rtt: newest.map(|c| c.connection.rtt()),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// Dials whenever there is no connection with the peer, until the links are gone.
async fn keep(inner: Arc<Inner>, state: Arc<PeerState>) {
    let name = &state.peer.name;
    let mut seed = [0u8; 8];
    // Without randomness the pauses are all alike, which costs a dial or two.
    let _ = aws_lc_rs::rand::fill(&mut seed);
    let mut prng = Prng::new(u64::from_le_bytes(seed));
    let mut backoff = BACKOFF_MIN;
    let mut first = true;
    while !inner.stopped.load(Ordering::Acquire) && !state.gone.load(Ordering::Acquire) {
        if state.newest().is_some() {
            (backoff, first) = (BACKOFF_MIN, false);
            state.changed.notified().await;
            continue;
        }
        if first && inner.own > *name {
            let _ = tokio::time::timeout(COURTESY, state.changed.notified()).await;
            first = false;
            continue;
        }
        first = false;
        let dialled = tokio::select! {
            dialled = dial(&inner.quic, &state.peer) => dialled,
            () = inner.stopping.notified() => return,
        };
        match dialled {
            Ok(connection) => {
                tracing::info!(peer = %name, addr = %connection.remote_address(), "control link up");
                Inner::up(&inner, &state, connection, true);
            }
            Err(error) => {
                let refused = matches!(error, LinkError::Refused { .. });
                if matches!(error, LinkError::Refused { kind: RefusalKind::Removed, .. }) {
                    inner.removed(name);
                }
                state.failed(error.to_string());
                backoff = if refused { BACKOFF_REFUSED } else { (backoff * 2).min(BACKOFF_MAX) };
                let us = u64::try_from(backoff.as_micros()).unwrap_or(u64::MAX);
                let pause = Duration::from_micros(us / 2 + prng.below(us / 2));
                // Whoever dials us ends the pause.
                let _ = tokio::time::timeout(pause, state.changed.notified()).await;
            }
        }
    }
}

/// A connection that the peer has taken for a control link.
async fn dial(quic: &Quic, peer: &Peer) -> Result<Connection, LinkError> {
    let silent = || LinkError::Silent { region: peer.name.clone(), addr: peer.addr.clone() };
    let dialling = async {
        let ours = quic.local_addr().map_err(|e| LinkError::Endpoint(e.to_string()))?;
        let target = resolve(&peer.name, &peer.addr, |a| ours.is_ipv6() || a.is_ipv4()).await?;
        let connecting = quic.connect_control(peer.subject, &peer.name, target).map_err(|e| LinkError::Address {
            region: peer.name.clone(),
            addr: peer.addr.clone(),
            reason: e.to_string(),
        })?;
        let connection = connecting.await.map_err(|e| refused(quic, &peer.name, &peer.addr, target, &e))?;
        let opened = async {
            let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
            send.write_all(&[MEMBER]).await.map_err(|e| e.to_string())?;
            match first_byte(&mut recv).await? {
                MEMBER => Ok(()),
                other => Err(format!("it answered {other:#04x}")),
            }
        };
        match opened.await {
            Ok(()) => Ok(connection),
            Err(reason) => Err(attempt_failed(quic, &peer.name, &peer.addr, &connection, &reason)),
        }
    };
    tokio::time::timeout(DIAL_TIMEOUT, dialling).await.unwrap_or_else(|_| Err(silent()))
}

/// Lives as long as one connection.
async fn run(inner: Arc<Inner>, state: Arc<PeerState>, conn: Arc<Conn>) {
    let peer = state.peer.name.clone();
    let connection = conn.connection.clone();
    let mut tasks: JoinSet<String> = JoinSet::new();
    tasks.spawn(write(Arc::clone(&state), Arc::clone(&conn)));
    tasks.spawn(read(Arc::clone(&inner), Arc::clone(&state), connection.clone()));
    let reason = tokio::select! {
        error = connection.closed() => sentence(&peer, &error),
        Some(ended) = tasks.join_next() => {
            let ended = ended.unwrap_or_else(|panic| format!("a task of the control link failed: {panic}"));
            match connection.close_reason() {
                Some(error) => sentence(&peer, &error),
                None => {
                    inner.quic.refuse(RefusalKind::Protocol, connection.remote_address(), &ended);
                    connection.close(RefusalKind::Protocol.code(), ended.as_bytes());
                    ended
                }
            }
        }
    };
    tasks.shutdown().await;
    if let Some(ConnectionError::ApplicationClosed(close)) = connection.close_reason()
        && RefusalKind::of_code(close.error_code) == Some(RefusalKind::Removed)
    {
        inner.removed(&peer);
    }
    state.down(&conn, reason);
}

async fn write(state: Arc<PeerState>, conn: Arc<Conn>) -> String {
    loop {
        let next = conn.queue.lock().pop_front();
        let Some(message) = next else {
            conn.filled.notified().await;
            continue;
        };
        let written = async {
            let mut stream = conn.connection.open_uni().await.map_err(|e| e.to_string())?;
            stream.write_all_chunks(&mut [Bytes::from_static(&[MESSAGE]), message]).await.map_err(|e| e.to_string())?;
            stream.finish().map_err(|e| e.to_string())
        };
        if let Err(e) = written.await {
            return format!("a control message cannot be sent: {e}");
        }
        state.sent.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns what ends the connection: nonsense.
async fn read(inner: Arc<Inner>, state: Arc<PeerState>, connection: Connection) -> String {
    let mut reads: JoinSet<Result<Option<Bytes>, String>> = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_uni(), if reads.len() < READS_MAX => match accepted {
                Ok(stream) => { reads.spawn(read_message(stream)); }
                Err(e) => return e.to_string(),
            },
            opened = connection.accept_bi() => match opened {
                Ok(_) => return "a two-way stream on a control link".to_owned(),
                Err(e) => return e.to_string(),
            },
            Some(message) = reads.join_next() => {
                let message = match message.unwrap_or_else(|panic| Err(format!("a task of the control link failed: {panic}"))) {
                    Ok(Some(message)) => message,
                    Ok(None) => continue,
                    Err(reason) => return reason,
                };
                state.received.fetch_add(1, Ordering::Relaxed);
                if let Err(reason) = (inner.on_message)(&state.peer.name, message) {
                    return reason;
                }
            }
        }
    }
}

/// `None`: given up, which is no more than a loss.
async fn read_message(mut stream: RecvStream) -> Result<Option<Bytes>, String> {
    let reading = async {
        match first_byte(&mut stream).await {
            Ok(MESSAGE) => {}
            Ok(other) => return Err(format!("a control message of unknown kind {other:#04x}")),
            Err(_) => return Ok(None),
        }
        let mut message = BytesMut::new();
        loop {
            match stream.read_chunk(CONTROL_MESSAGE_BYTES_MAX + 1, true).await {
                Ok(Some(chunk)) if message.len() + chunk.bytes.len() > CONTROL_MESSAGE_BYTES_MAX => {
                    return Err(format!("a control message is longer than the {CONTROL_MESSAGE_BYTES_MAX} bytes allowed"));
                }
                Ok(Some(chunk)) => message.put(chunk.bytes),
                Ok(None) => return Ok(Some(message.freeze())),
                Err(_) => return Ok(None),
            }
        }
    };
    tokio::time::timeout(READ_TIMEOUT, reading).await.unwrap_or(Ok(None))
}

/// How a connection ended, in words.
fn sentence(peer: &RegionName, error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => match RefusalKind::of_code(close.error_code) {
            Some(kind) => format!("{peer} refused: {}", kind.explanation()),
            None => format!("{peer} closed it: {}", printable(&String::from_utf8_lossy(&close.reason))),
        },
        ConnectionError::TimedOut => format!("nothing was heard from {peer} for {} s", CONTROL_IDLE_TIMEOUT.as_secs()),
        ConnectionError::Reset => format!("{peer} has restarted"),
        ConnectionError::LocallyClosed => "this side closed it".to_owned(),
        other => format!("the connection broke: {}", printable(&other.to_string())),
    }
}
