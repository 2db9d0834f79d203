//! The region's SQL ports: which connection is served here and which goes to the primary.
//!
//! The writer port always reaches the current writer: here when this region writes, else through this region's own link, as raw
//! bytes (the login is with the primary). The decision is made for each connection, when it comes in.

use crate::base::RegionName;
use crate::endpoint::pg;
use crate::head::sql::{SqlError, state};
use crate::io::driver::Shared;
use crate::io::link::Link;
use quinn::{RecvStream, SendStream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// The primary has so long to take a session.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
/// First byte of the primary's answer on a forwarded stream.
const JOINED: u8 = b'J';

/// What a port's server is handed.
pub type Incoming = (TcpStream, SocketAddr);

fn hand(to: &mpsc::Sender<Incoming>, incoming: Incoming) {
    if let Err(mpsc::error::TrySendError::Full((_, peer))) = to.try_send(incoming) {
        tracing::warn!(%peer, "too many connections at once, this one is closed");
    }
}

/// The reader port: everything is served here.
pub async fn accept(listener: TcpListener, to: mpsc::Sender<Incoming>, stopping: watch::Receiver<bool>) {
    pg::accept(listener, stopping, |incoming| hand(&to, incoming)).await;
}

/// The port of the region's one instance: its writer in the primary, its reader elsewhere.
pub async fn route_instance(
    listener: TcpListener,
    writer: mpsc::Sender<Incoming>,
    reader: mpsc::Sender<Incoming>,
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
) {
    let on = |incoming| hand(if shared.is_writer() { &writer } else { &reader }, incoming);
    pg::accept(listener, stopping, on).await;
}

/// The writer port.
pub async fn route_writer(
    listener: TcpListener,
    here: mpsc::Sender<Incoming>,
    shared: Arc<Shared>,
    own: RegionName,
    stopping: watch::Receiver<bool>,
) {
    pg::accept(listener, stopping, |(stream, addr)| {
        if shared.is_writer() {
            hand(&here, (stream, addr));
        } else {
            tokio::spawn(forward(stream, Arc::clone(&shared), own.clone()));
        }
    })
    .await;
}

/// Joins a client to the primary's writer port.
async fn forward(stream: TcpStream, shared: Arc<Shared>, own: RegionName) {
    let primary = shared.primary();
    let opened = match primary.as_ref().filter(|p| **p != own) {
        None => Err("this region knows of no primary yet".to_owned()),
        Some(primary) => match shared.link_to(primary) {
            None => Err(format!("the primary {primary} cannot be reached from {own} now")),
            Some(link) => match tokio::time::timeout(FORWARD_TIMEOUT, open(&link)).await {
                Ok(opened) => opened,
                Err(_) => Err(format!("the primary {primary} does not answer {own}")),
            },
        },
    };
    match opened {
        Ok((send, recv)) => join(stream, send, recv).await,
        Err(reason) => {
            let error = SqlError::new(state::CANNOT_CONNECT_NOW, reason)
                .hint("Reads go on at this region's reader port. The writer port works again when the link does.");
            pg::refuse(stream, &error).await;
        }
    }
}

/// A session's stream, once the other end has said that it is joined to its writer port: a link may be dead and not know it.
async fn open(link: &Link) -> Result<(SendStream, RecvStream), String> {
    let (send, mut recv) = link.open_forward().await.map_err(|e| e.to_string())?;
    let mut joined = [0];
    recv.read_exact(&mut joined).await.map_err(|e| format!("{} did not take the session: {e}", link.peer()))?;
    Ok((send, recv))
}

/// The primary's end of a forwarded session: its own writer port, over loopback.
pub async fn serve_forwarded(writer: SocketAddr, mut send: SendStream, recv: RecvStream) {
    let mut target = writer;
    if target.ip().is_unspecified() {
        target.set_ip(if target.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    match TcpStream::connect(target).await {
        Ok(stream) => {
            if send.write_all(&[JOINED]).await.is_ok() {
                join(stream, send, recv).await;
            }
        }
        Err(e) => tracing::warn!("a forwarded session cannot reach the own writer port {target}: {e}"),
    }
}

async fn join(mut stream: TcpStream, send: SendStream, recv: RecvStream) {
    let _ = stream.set_nodelay(true);
    let mut remote = tokio::io::join(recv, send);
    // Either side may end first; an error of one is the end of both.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut remote).await;
}
