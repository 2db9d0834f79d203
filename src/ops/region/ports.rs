//! The region's SQL ports: who serves a connection, and the way of statements to the primary.
//!
//! The writer port is served here, in every region, with sessions whose statements go to whoever writes
//! ([`crate::endpoint::router`]); this module gives them the region's own links to go over, and serves the other end. The
//! instance's port is its writer in the primary and its reader elsewhere: that is decided for each connection, when it comes in.

use crate::base::RegionName;
use crate::endpoint::pg;
use crate::endpoint::router::{Way, Ways};
use crate::io::driver::Shared;
use crate::io::link::{InUse, Link};
use async_trait::async_trait;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// A primary speaks every tenth of a second. One that was silent for longer is asked before it is sent a statement.
const SILENT_AFTER: Duration = Duration::from_millis(400);

/// What a port's server is handed.
pub type Incoming = (TcpStream, SocketAddr);

fn hand(to: &mpsc::Sender<Incoming>, incoming: Incoming) {
    if let Err(mpsc::error::TrySendError::Full((_, peer))) = to.try_send(incoming) {
        tracing::warn!(%peer, "too many connections at once, this one is closed");
    }
}

/// A port that is served here, whatever comes.
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

/// The region's links, as the ways of its writer port's statements.
pub struct Forwarding {
    pub shared: Arc<Shared>,
}

impl Forwarding {
    /// Of several, the one that was heard from last: another may be dead and not know it.
    fn link(&self, region: &RegionName) -> Option<Link> {
        let links = self.shared.links.read();
        links.values().filter(|l| l.peer() == region && !l.is_closed()).min_by_key(|l| l.silent_for()).cloned()
    }
}

/// A link with a session on it.
struct Used {
    link: Link,
    _link: InUse,
}

impl Used {
    fn hears(&self) -> bool {
        self.link.silent_for() < SILENT_AFTER
    }
}

#[async_trait]
impl Ways for Forwarding {
    async fn open(&self, region: &RegionName) -> Result<Way, String> {
        let link = self.link(region).ok_or_else(|| format!("there is no link to the primary {region} now"))?;
        let (send, recv) = link.open_forward().await.map_err(|e| e.to_string())?;
        let in_use = Used { _link: link.in_use(), link };
        Ok(Way { recv: Box::new(recv), send: Box::new(send), hears: Box::new(move || in_use.hears()) })
    }

    fn reaches(&self, region: &RegionName) -> bool {
        self.link(region).is_some()
    }
}
