//! The region's side: one [`RemoteCopy`] for each copy on another machine, and a connection to each process that holds some.
//!
//! A copy whose connection ends is lost, with the reason; the process is dialled again and again, and when it answers the copy says
//! what it promised, as if it had been opened. Nothing waits here: what a copy does not take is dropped beyond a bound, and the
//! appender asks again. Driven by the region's driver ([`RemoteCopy::send`]) and by readers of pages.

use super::wire::{self, Address, PageAnswer, PageQuestion, ToCopy};
use super::{CLOSE, ORDERED, PAGE, PRIORITY_PAGE, PRIORITY_READ, READ, READ_TIMEOUT, read, refusal, write};
use crate::base::{CopyId, Generation, Layout, Limits, Lsn, MemberId, PageNo};
use crate::io::copies::{Answer, Drill, Listener, Miss, RemotePages, Says, request_bytes, waiting_bytes_max};
use crate::io::quic::{NEAR_IDLE_TIMEOUT, Quic, printable};
use crate::volume::{CopyReply, CopyRequest};
use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// Reads of one copy under way; another one is for another copy.
const READS_MAX: usize = 64;
/// What a message takes beside its frames and pages.
const MESSAGE_BYTES: usize = 512;

/// A copy of this region that a process on another machine holds.
pub struct RemoteCopy {
    id: MemberId,
    addr: String,
    listener: Arc<dyn Listener>,
    runtime: tokio::runtime::Handle,
    waiting_bytes_max: usize,
    line: Mutex<Line>,
    opened: AtomicBool,
    reads: AtomicUsize,
}

/// The connection, while there is one; and what a new one begins with.
struct Line {
    up: Option<Up>,
    on_duty: bool,
    delay: Duration,
    serving: bool,
    /// Why it is down, as it was told last.
    told: Option<String>,
}

#[derive(Clone)]
struct Up {
    connection: Connection,
    outbox: mpsc::UnboundedSender<(usize, Vec<Bytes>)>,
    waiting: Arc<AtomicUsize>,
}

impl RemoteCopy {
    #[must_use]
    pub fn id(&self) -> MemberId {
        self.id
    }

    /// Does not wait. The request is dropped when there is no connection, or when the copy does not take what it was sent.
    pub fn send(self: &Arc<Self>, request: CopyRequest) {
        if matches!(request, CopyRequest::ReadLog { .. } | CopyRequest::ReadPages { .. }) {
            return self.read(request);
        }
        if let Some(up) = &self.line.lock().up
            && up.waiting.load(Ordering::Relaxed) < self.waiting_bytes_max
        {
            up.push(request_bytes(&request), &ToCopy::Request(request));
        }
    }

    pub fn drill(&self, drill: Drill) {
        let mut line = self.line.lock();
        match drill {
            Drill::Stop => line.on_duty = false,
            Drill::Start => line.on_duty = true,
            Drill::Slow(delay) => line.delay = delay,
        }
        if let Some(up) = &line.up {
            up.push(MESSAGE_BYTES, &ToCopy::Drill { on_duty: line.on_duty, delay: line.delay });
        }
    }

    /// What was sent and not yet taken by the connection, about; bounded.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.line.lock().up.as_ref().map_or(0, |up| up.waiting.load(Ordering::Relaxed))
    }

    pub fn set_serving(&self, serving: bool) {
        let mut line = self.line.lock();
        line.serving = serving;
        if let Some(up) = &line.up {
            up.push(MESSAGE_BYTES, &ToCopy::Serving(serving));
        }
    }

    fn connection(&self) -> Option<Connection> {
        self.line.lock().up.as_ref().map(|up| up.connection.clone())
    }

    fn read(self: &Arc<Self>, request: CopyRequest) {
        let (CopyRequest::ReadLog { id, .. } | CopyRequest::ReadPages { id, .. }) = request else { return };
        let Some(connection) = self.connection() else { return };
        let copy = Arc::clone(self);
        let under_way = self.reads.fetch_add(1, Ordering::Relaxed);
        self.runtime.spawn(async move {
            let asked = async {
                if under_way >= READS_MAX {
                    return Err(format!("{READS_MAX} reads of it are under way already"));
                }
                let answer = ask(&connection, READ, copy.id, PRIORITY_READ, ToCopy::Request(request).encode());
                let answer = tokio::time::timeout(READ_TIMEOUT, answer).await.map_err(|_| "it did not answer in time".to_owned())??;
                wire::decode_says(&answer).map_err(|e| e.to_string())
            };
            let says = asked.await;
            copy.reads.fetch_sub(1, Ordering::Relaxed);
            let reply = match says {
                Ok(Says::Replied(reply)) => reply,
                Ok(_) => CopyReply::Unreadable { id, reason: "it answered something else".to_owned() },
                Err(reason) => CopyReply::Unreadable { id, reason },
            };
            copy.listener.tell(copy.id, Says::Replied(reply));
        });
    }

    /// There is no connection, or the copy behind it is not open; told once for each reason.
    fn lost(&self, reason: &str) {
        self.opened.store(false, Ordering::Release);
        let mut line = self.line.lock();
        if line.told.as_deref() != Some(reason) {
            line.told = Some(reason.to_owned());
            drop(line);
            self.listener.tell(self.id, Says::Lost { reason: reason.to_owned() });
        }
    }

    fn says(&self, says: Says) {
        match says {
            Says::Lost { reason } => self.lost(&reason),
            Says::Opened { .. } => {
                self.line.lock().told = None;
                self.opened.store(true, Ordering::Release);
                self.listener.tell(self.id, says);
            }
            Says::Proves { .. } | Says::Replied(_) => self.listener.tell(self.id, says),
        }
    }
}

impl RemotePages for RemoteCopy {
    fn ask(&self, of: Generation, page: PageNo, at: Lsn, answer: Answer) -> bool {
        let Some(connection) = self.connection().filter(|_| self.opened.load(Ordering::Acquire)) else { return false };
        let id = self.id;
        self.runtime.spawn(async move {
            let asked = async {
                let question = ask(&connection, PAGE, id, PRIORITY_PAGE, PageQuestion { of, page, at }.encode());
                let bytes = tokio::time::timeout(READ_TIMEOUT, question).await.map_err(|_| "it did not answer in time".to_owned())??;
                wire::decode_page(&bytes).map_err(|e| e.to_string())
            };
            let page: Result<PageAnswer, String> = asked.await;
            answer.give(page.unwrap_or_else(|why| Err(Miss::now(format!("copy {id}: {why}")))));
        });
        true
    }
}

impl Up {
    fn push(&self, bytes: usize, message: &ToCopy) {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        // The end of the connection is told by whoever notices it.
        let _ = self.outbox.send((bytes, message.encode()));
    }
}

/// One question on a stream of its own.
async fn ask(connection: &Connection, kind: u8, copy: MemberId, priority: i32, question: Vec<Bytes>) -> Result<Bytes, String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
    // The priority of a fresh stream can always be set.
    let _ = send.set_priority(priority);
    send.write_all(&head(kind, copy)).await.map_err(|e| e.to_string())?;
    write(&mut send, question).await?;
    send.finish().map_err(|e| e.to_string())?;
    read(&mut recv).await?.ok_or_else(|| "it declined to answer".to_owned())
}

fn head(kind: u8, id: MemberId) -> [u8; 1 + Address::BYTES] {
    let [group, copy] = Address { id }.encode();
    [kind, group, copy]
}

/// The copies at `addresses` (`host:port`), of all groups, from now on until the runtime ends. Must be called inside a tokio runtime.
#[must_use]
pub fn connect(
    quic: &Quic,
    addresses: &BTreeMap<CopyId, String>,
    layout: Layout,
    limits: &Limits,
    listener: &Arc<dyn Listener>,
) -> Vec<Arc<RemoteCopy>> {
    let new = |(id, addr): (MemberId, &String)| {
        Arc::new(RemoteCopy {
            id,
            addr: addr.clone(),
            listener: Arc::clone(listener),
            runtime: tokio::runtime::Handle::current(),
            waiting_bytes_max: waiting_bytes_max(limits),
            line: Mutex::new(Line { up: None, on_duty: true, delay: Duration::ZERO, serving: false, told: None }),
            opened: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
        })
    };
    let named = MemberId::all(layout.groups).filter_map(|id| addresses.get(&id.copy).map(|addr| (id, addr)));
    let copies: Vec<Arc<RemoteCopy>> = named.map(new).collect();
    let mut by_addr: BTreeMap<&str, Vec<Arc<RemoteCopy>>> = BTreeMap::new();
    for copy in &copies {
        by_addr.entry(&copy.addr).or_default().push(Arc::clone(copy));
    }
    for (addr, copies) in by_addr {
        tokio::spawn(keep(quic.clone(), addr.to_owned(), copies));
    }
    copies
}

/// Connected as long as it can be.
async fn keep(quic: Quic, addr: String, copies: Vec<Arc<RemoteCopy>>) {
    let mut back_off = BACK_OFF_MIN;
    loop {
        let reason = match tokio::time::timeout(DIAL_TIMEOUT, dial(&quic, &addr)).await {
            Ok(Ok(connection)) => {
                back_off = BACK_OFF_MIN;
                tracing::info!(addr, "connected with the process of copies there");
                let reason = converse(&quic, &connection, &copies).await;
                connection.close(CLOSE, reason.as_bytes());
                tracing::warn!(addr, "the connection with the process of copies ended: {reason}");
                format!("the connection with its process at {addr} ended: {reason}")
            }
            Ok(Err(reason)) => reason,
            Err(_) => format!("its process at {addr} does not answer; does `parhelion copy` run there, and does UDP pass?"),
        };
        for copy in &copies {
            copy.line.lock().up = None;
            copy.lost(&reason);
        }
        tokio::time::sleep(back_off).await;
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

async fn dial(quic: &Quic, addr: &str) -> Result<Connection, String> {
    let ours = quic.local_addr().map_err(|e| e.to_string())?;
    let nowhere = |why: &str| format!("its address {addr} leads nowhere: {why}; correct [copies]");
    // A host name may move: it is looked up at every attempt.
    let mut found = tokio::net::lookup_host(addr).await.map_err(|e| nowhere(&e.to_string()))?;
    let target = found.find(|a| ours.is_ipv6() || a.is_ipv4()).ok_or_else(|| nowhere("no address of a family that this region uses"))?;
    let connecting = quic.connect_copies(target).map_err(|e| nowhere(&e.to_string()))?;
    connecting.await.map_err(|error| match refusal(&error, quic) {
        Some(kind) => {
            quic.refuse(kind, target, &error.to_string());
            format!("no connection with its process at {addr}: {}", kind.explanation())
        }
        None => format!("no connection with its process at {addr}: {}", sentence(&error)),
    })
}

/// Until the connection ends; how it did.
async fn converse(quic: &Quic, connection: &Connection, copies: &[Arc<RemoteCopy>]) -> String {
    let mut tasks: JoinSet<String> = JoinSet::new();
    for copy in copies {
        tasks.spawn(attend(Arc::clone(copy), connection.clone()));
    }
    let ended = tasks.join_next().await.map(|ended| ended.unwrap_or_else(|panic| format!("a task of the connection failed: {panic}")));
    tasks.shutdown().await;
    match connection.close_reason() {
        Some(error) => {
            // The other side refuses only after this side's handshake is complete.
            if let Some(kind) = refusal(&error, quic) {
                quic.refuse(kind, connection.remote_address(), &error.to_string());
                return kind.explanation().to_owned();
            }
            sentence(&error)
        }
        None => ended.unwrap_or_default(),
    }
}

fn sentence(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => printable(&String::from_utf8_lossy(&close.reason)),
        ConnectionError::TimedOut => format!("nothing was heard from it for {} s", NEAR_IDLE_TIMEOUT.as_secs()),
        ConnectionError::Reset => "it has restarted".to_owned(),
        other => printable(&other.to_string()),
    }
}

/// The ordered stream of one copy, until it ends.
async fn attend(copy: Arc<RemoteCopy>, connection: Connection) -> String {
    let opened = async {
        let (mut send, recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        send.write_all(&head(ORDERED, copy.id)).await.map_err(|e| e.to_string())?;
        Ok::<_, String>((send, recv))
    };
    let (mut send, mut recv) = match opened.await {
        Ok(streams) => streams,
        Err(reason) => return reason,
    };
    let (outbox, mut messages) = mpsc::unbounded_channel();
    let up = Up { connection: connection.clone(), outbox, waiting: Arc::default() };
    let waiting = Arc::clone(&up.waiting);
    {
        let mut line = copy.line.lock();
        up.push(MESSAGE_BYTES, &ToCopy::Drill { on_duty: line.on_duty, delay: line.delay });
        up.push(MESSAGE_BYTES, &ToCopy::Serving(line.serving));
        line.up = Some(up);
    }
    let saying = async {
        while let Some((bytes, parts)) = messages.recv().await {
            if let Err(reason) = write(&mut send, parts).await {
                // It does not hold this copy, and said so; the connection is for the others as well.
                if connection.close_reason().is_none() {
                    return std::future::pending().await;
                }
                return reason;
            }
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        "this side has no more use for it".to_owned()
    };
    let hearing = async {
        loop {
            match read(&mut recv).await {
                Ok(Some(message)) => match wire::decode_says(&message) {
                    Ok(says) => copy.says(says),
                    Err(e) => return e.to_string(),
                },
                Ok(None) => return std::future::pending().await,
                Err(reason) => return reason,
            }
        }
    };
    let closed = connection.closed();
    tokio::select! { ended = saying => ended, ended = hearing => ended, error = closed => error.to_string() }
}
