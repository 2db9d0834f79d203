//! The region's links: who dialled or was dialled, and where what they bring goes.
//!
//! One set of links for everything: shipping, forwarded sessions, questions between regions. The node decides with whom it ships;
//! a link that is only used for questions costs it nothing.

use super::view::View;
use crate::base::{ConnId, RegionName};
use crate::endpoint::router;
use crate::head::embedded::Engine;
use crate::io::control_link::ControlLinks;
use crate::io::driver::{Dialler, Inbox, Shared};
use crate::io::link::{self, Arrival, Link, LinkEvent};
use crate::io::quic::Quic;
use crate::node::Event;
use crate::ops::admin;
use crate::ops::membership::roster::Roster;
use crate::ship::wire::{Lane, Message};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// A dial that got no answer in this time is given up; whoever wanted it tries again.
const DIAL_TIMEOUT: Duration = Duration::from_millis(2500);

pub struct Links {
    quic: Quic,
    inbox: Inbox,
    shared: Arc<Shared>,
    roster: Arc<Roster>,
    view: OnceLock<Weak<View>>,
    control: OnceLock<ControlLinks>,
    /// Whose writer serves the sessions that other regions forward.
    engine: OnceLock<Weak<Engine>>,
    next_conn: AtomicU64,
    /// One dial for questions at a time: many of them want the same region at once.
    asking: tokio::sync::Mutex<()>,
    runtime: tokio::runtime::Handle,
}

impl Links {
    pub fn new(quic: Quic, inbox: Inbox, shared: Arc<Shared>, roster: Arc<Roster>) -> Arc<Links> {
        Arc::new(Links {
            quic,
            inbox,
            shared,
            roster,
            view: OnceLock::new(),
            control: OnceLock::new(),
            engine: OnceLock::new(),
            next_conn: AtomicU64::new(1),
            asking: tokio::sync::Mutex::new(()),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    pub fn answer_with(&self, view: &Arc<View>) {
        let _ = self.view.set(Arc::downgrade(view));
    }

    /// From now on members that dial get control links.
    pub fn control_with(&self, control: &ControlLinks) {
        let _ = self.control.set(control.clone());
    }

    pub fn forward_to(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    pub fn control(&self) -> Option<&ControlLinks> {
        self.control.get()
    }

    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    pub fn quic(&self) -> &Quic {
        &self.quic
    }

    pub fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Somebody came in. Called by the endpoint; does not wait.
    pub fn arrived(self: &Arc<Self>, arrival: Arrival) {
        match arrival {
            Arrival::Link(link, events) => self.start(link, events, false),
            Arrival::Admin { from, request, reply } => {
                let links = Arc::clone(self);
                tokio::spawn(async move { reply.send(links.answer(&from, &request).await) });
            }
            Arrival::Control(dialled) => match self.control.get() {
                Some(control) => control.arrived(dialled),
                None => drop(dialled),
            },
        }
    }

    /// A link for questions to `region`: one that is up, or a new one.
    pub async fn for_questions(self: &Arc<Self>, region: &RegionName) -> Result<Link, String> {
        if let Some(link) = self.shared.link_to(region) {
            return Ok(link);
        }
        let _one = self.asking.lock().await;
        if let Some(link) = self.shared.link_to(region) {
            return Ok(link);
        }
        let (link, events) = self.connect(region).await?;
        // To the node it is like one that came in: nothing is said on it before somebody says hello.
        self.start(link.clone(), events, false);
        Ok(link)
    }

    async fn connect(&self, region: &RegionName) -> Result<(Link, mpsc::Receiver<LinkEvent>), String> {
        let addr = self.roster.addr(region)?;
        match tokio::time::timeout(DIAL_TIMEOUT, link::dial(&self.quic, region, &addr)).await {
            Ok(dialled) => dialled.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer at {addr}")),
        }
    }

    fn start(self: &Arc<Self>, link: Link, events: mpsc::Receiver<LinkEvent>, dialled: bool) {
        let conn = ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed));
        self.inbox.link_up(conn, link.clone(), dialled);
        tokio::spawn(Arc::clone(self).pump(conn, link, events));
    }

    /// Carries what a link brings to whom it is for, until the link ends.
    async fn pump(self: Arc<Self>, conn: ConnId, link: Link, mut events: mpsc::Receiver<LinkEvent>) {
        let mut ended = "the link ended".to_owned();
        while let Some(event) = events.recv().await {
            let (lane, bytes) = match event {
                LinkEvent::Control(bytes) => (Lane::Control, bytes),
                LinkEvent::Batch(bytes) => (Lane::Batch, bytes),
                LinkEvent::Datagram(bytes) => (Lane::Datagram, bytes),
                LinkEvent::Forward(send, recv) => {
                    match self.engine.get().and_then(Weak::upgrade) {
                        Some(engine) => {
                            let in_use = link.in_use();
                            tokio::spawn(async move {
                                router::serve(engine, recv, send).await;
                                drop(in_use);
                            });
                        }
                        None => tracing::debug!("a forwarded session came before the engine, or after it"),
                    }
                    continue;
                }
                LinkEvent::Admin(request, reply) => {
                    let (links, from) = (Arc::clone(&self), link.peer().clone());
                    tokio::spawn(async move { reply.send(links.answer(&from, &request).await) });
                    continue;
                }
                LinkEvent::Closed(reason) => {
                    ended = reason;
                    break;
                }
            };
            match Message::decode(lane, &bytes) {
                Ok(message) => self.inbox.send(Event::Received { conn, message }),
                Err(e) => {
                    tracing::warn!(peer = %link.peer(), "a message cannot be read: {e}");
                    link.close(&e.to_string());
                    ended = e.to_string();
                    break;
                }
            }
        }
        self.inbox.send(Event::Unlinked { conn, reason: ended });
    }

    async fn answer(&self, from: &RegionName, request: &[u8]) -> bytes::Bytes {
        // A stolen certificate of another region must not make new ones (X14).
        let own = |r: &admin::AdminRequest| {
            use admin::AdminRequest as R;
            matches!(r, R::Invite { .. } | R::Retire { .. } | R::DropArchive { .. })
        };
        if from != self.quic.region() && admin::AdminRequest::decode(request).is_ok_and(|r| own(&r)) {
            let why = format!("only a command on the machine of {} does that there", self.quic.region());
            return admin::AdminAnswer::Refused(why).encode().into();
        }
        match self.view.get().and_then(Weak::upgrade) {
            Some(view) => admin::respond(request, view.clone(), view, &self.roster.regions()).await.into(),
            None => admin::AdminAnswer::Refused("the region process is starting or stopping".into()).encode().into(),
        }
    }
}

impl Dialler for Arc<Links> {
    fn dial(&self, region: RegionName) {
        let links = Arc::clone(self);
        self.runtime.spawn(async move {
            match links.connect(&region).await {
                Ok((link, events)) => links.start(link, events, true),
                Err(reason) => links.inbox.send(Event::DialFailed { region, reason }),
            }
        });
    }
}
