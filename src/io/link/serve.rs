//! How a link comes to be: dialling, being dialled, and asking one question without a link.
//!
//! A dialler is answered on its control stream only after the other side has identified it. That byte is why a refusal is
//! an error of [`dial`] and not a link that ends at once: in TLS 1.3 the dialler's own handshake is complete before the
//! other side has looked at its certificate.

use super::{Link, LinkError, LinkEvent, sentence, streams};
use crate::base::RegionName;
use crate::io::control_link::Dialled;
use crate::io::quic::{IDLE_TIMEOUT, Quic, RefusalKind, classify, printable};
use crate::io::tls::{Material, Subject};
use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Connections that are not identified yet. Beyond half of them a dialler must first prove its address.
const HANDSHAKES_MAX: usize = 128;

/// Who came in.
#[derive(Debug)]
pub enum Arrival {
    /// A region has dialled this one.
    Link(Link, mpsc::Receiver<LinkEvent>),
    /// A command asks one question. It has shown the certificate of `from`, mostly this region's own.
    Admin { from: RegionName, request: Bytes, reply: streams::AdminReply },
    /// A member, perhaps the witness, wants a control link.
    Control(Dialled),
}

/// Accepts connections until the endpoint is closed. `on_arrival` is called from many tasks and must not block.
pub async fn serve(quic: Quic, on_arrival: impl Fn(Arrival) + Send + Sync + 'static) {
    let on_arrival = Arc::new(on_arrival);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = quic.endpoint.accept().await {
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if handshakes.available_permits() < HANDSHAKES_MAX / 2 && !incoming.remote_address_validated() && incoming.may_retry() {
            // Cannot fail where it may be done.
            let _ = incoming.retry();
            continue;
        }
        let (quic, on_arrival) = (quic.clone(), Arc::clone(&on_arrival));
        tokio::spawn(async move {
            let Ok(Some(welcomed)) = tokio::time::timeout(IDLE_TIMEOUT, welcome(&quic, incoming)).await else { return };
            drop(permit);
            match welcomed {
                Welcomed::Region(peer, connection, control) => {
                    let (link, events) = Link::start(peer, connection, false, control, quic.link_log());
                    on_arrival(Arrival::Link(link, events));
                }
                Welcomed::Member(peer, connection) => on_arrival(Arrival::Control(Dialled { peer, connection })),
                Welcomed::Command(from, connection, first) => answer_command(&from, &connection, first, &*on_arrival).await,
            }
        });
    }
}

enum Welcomed {
    Region(RegionName, Connection, (SendStream, RecvStream)),
    Member(RegionName, Connection),
    Command(RegionName, Connection, (SendStream, RecvStream)),
}

/// Handshake, identity, first stream. `None` when it came to nothing, which has then been counted and logged.
async fn welcome(quic: &Quic, incoming: quinn::Incoming) -> Option<Welcomed> {
    let addr = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let connection = match handshake.await {
        Ok(connection) => connection,
        Err(error) => {
            if let Some(kind) = classify(&error, quic.material.cluster()) {
                quic.refuse(kind, addr, &error.to_string());
            }
            return None;
        }
    };
    let refuse = |kind: RefusalKind, detail: &str| {
        connection.close(kind.code(), detail.as_bytes());
        quic.refuse(kind, addr, detail);
    };
    let (peer, subject) = match quic.identify(&connection) {
        Ok(named) => named,
        Err((kind, detail)) => {
            refuse(kind, &detail);
            return None;
        }
    };
    let (mut send, mut recv) = match connection.accept_bi().await {
        Ok(streams) => streams,
        Err(error) => {
            // The dialler took a look at us and left.
            if let Some(kind) = classify(&error, quic.material.cluster()) {
                quic.refuse(kind, addr, &error.to_string());
            }
            return None;
        }
    };
    let first = streams::first_byte(&mut recv).await;
    match first {
        // Whoever is at which end: between a witness and a region there is nothing but a control link. Its own commands ask it.
        Ok(streams::CONTROL) if quic.material.subject() == Subject::Witness => refuse(RefusalKind::WrongRole, "this is a witness"),
        Ok(streams::CONTROL | streams::ADMIN) if subject == Subject::Witness && peer != *quic.region() => {
            refuse(RefusalKind::WrongRole, "a witness asked for a link");
        }
        Ok(streams::MEMBER) if peer == *quic.region() => refuse(RefusalKind::Protocol, "a member has no link with itself"),
        Ok(streams::MEMBER) => {
            if send.write_all(&[streams::MEMBER]).await.is_ok() {
                return Some(Welcomed::Member(peer, connection));
            }
        }
        Ok(streams::CONTROL) if peer == *quic.region() => refuse(RefusalKind::Protocol, "a region has no link with itself"),
        Ok(streams::CONTROL) => {
            if send.write_all(&[streams::CONTROL]).await.is_ok() {
                return Some(Welcomed::Region(peer, connection, (send, recv)));
            }
        }
        Ok(streams::ADMIN) => return Some(Welcomed::Command(peer, connection, (send, recv))),
        Ok(other) => refuse(RefusalKind::Protocol, &format!("the first stream is of unknown kind {other:#04x}")),
        Err(reason) => refuse(RefusalKind::Protocol, &reason),
    }
    None
}

/// A command's connection: one question, and nothing else. The command ends it.
async fn answer_command(from: &RegionName, connection: &Connection, (send, recv): (SendStream, RecvStream), on_arrival: &impl Fn(Arrival)) {
    let deliver = async |request, reply| {
        on_arrival(Arrival::Admin { from: from.clone(), request, reply });
        Ok(())
    };
    let ended = match streams::answer(send, recv, deliver).await {
        Err(reason) => reason,
        Ok(()) => tokio::select! {
            _ = connection.closed() => return,
            _ = connection.accept_bi() => "a command asks one question".to_owned(),
            _ = connection.accept_uni() => "a command sends no batches".to_owned(),
        },
    };
    connection.close(RefusalKind::Protocol.code(), ended.as_bytes());
}

/// Connects to `member` at `addr` (`host:port`) and returns when it has accepted this region. Dropping the future gives up;
/// who knows that the other side is only just starting may do so early and dial again, as the handshake repeats itself
/// ever more slowly (after about 0.3, 0.9, 2.1, 4.5 s).
///
/// # Errors
/// [`LinkError`]: the address leads nowhere, nobody answers for ten seconds, or one side refuses the other.
pub async fn dial(quic: &Quic, member: &RegionName, addr: &str) -> Result<(Link, mpsc::Receiver<LinkEvent>), LinkError> {
    let silent = || LinkError::Silent { region: member.clone(), addr: addr.to_owned() };
    let dialling = async {
        let connection = connect(quic, Subject::Region, member, addr).await?;
        let opened = async {
            let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
            send.write_all(&[streams::CONTROL]).await.map_err(|e| e.to_string())?;
            match streams::first_byte(&mut recv).await? {
                streams::CONTROL => Ok((send, recv)),
                other => Err(format!("it answered {other:#04x}")),
            }
        };
        match opened.await {
            Ok(control) => Ok(Link::start(member.clone(), connection, true, control, quic.link_log())),
            Err(reason) => Err(attempt_failed(quic, member, addr, &connection, &reason)),
        }
    };
    tokio::time::timeout(IDLE_TIMEOUT, dialling).await.unwrap_or_else(|_| Err(silent()))
}

/// Asks the process of `region` at `addr` one question, with that region's own certificate: for commands.
///
/// # Errors
/// [`LinkError`]: as [`dial`], and [`LinkError::NoAnswer`] after `timeout`.
pub async fn admin_once(
    material: Arc<Material>,
    addr: &str,
    region: &RegionName,
    request: Bytes,
    timeout: Duration,
) -> Result<Bytes, LinkError> {
    admin_once_of(Subject::Region, material, addr, region, request, timeout).await
}

/// As [`admin_once`], of a region or of the witness.
///
/// # Errors
/// As [`admin_once`].
pub async fn admin_once_of(
    subject: Subject,
    material: Arc<Material>,
    addr: &str,
    region: &RegionName,
    request: Bytes,
    timeout: Duration,
) -> Result<Bytes, LinkError> {
    let target = resolve(region, addr, |_| true).await?;
    let quic = Quic::dialler(target, material).map_err(|e| LinkError::Endpoint(e.to_string()))?;
    let asked = async {
        let connecting = tokio::time::timeout(timeout, connect(&quic, subject, region, addr));
        let connection = connecting.await.unwrap_or_else(|_| Err(LinkError::Silent { region: region.clone(), addr: addr.to_owned() }))?;
        match tokio::time::timeout(timeout, streams::ask(&connection, &request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(reason)) => Err(attempt_failed(&quic, region, addr, &connection, &reason)),
            Err(_) => Err(LinkError::NoAnswer { region: region.clone(), after: timeout }),
        }
    };
    let answer = asked.await;
    quic.close("done").await;
    answer
}

async fn connect(quic: &Quic, subject: Subject, region: &RegionName, addr: &str) -> Result<Connection, LinkError> {
    let ours = quic.local_addr().map_err(|e| LinkError::Endpoint(e.to_string()))?;
    let target = resolve(region, addr, |a| ours.is_ipv6() || a.is_ipv4()).await?;
    let connecting = quic.connect(subject, region, target).map_err(|e| LinkError::Address {
        region: region.clone(),
        addr: addr.to_owned(),
        reason: e.to_string(),
    })?;
    connecting.await.map_err(|error| refused(quic, region, addr, target, &error))
}

/// A host name may move: it is looked up at every attempt.
pub(crate) async fn resolve(region: &RegionName, addr: &str, usable: impl Fn(&SocketAddr) -> bool) -> Result<SocketAddr, LinkError> {
    let nowhere = |reason: String| LinkError::Address { region: region.clone(), addr: addr.to_owned(), reason };
    let mut found = tokio::net::lookup_host(addr).await.map_err(|e| nowhere(e.to_string()))?;
    found.find(usable).ok_or_else(|| nowhere("the name has no address of the family this region listens on".to_owned()))
}

pub(crate) fn attempt_failed(quic: &Quic, region: &RegionName, addr: &str, connection: &Connection, reason: &str) -> LinkError {
    match connection.close_reason() {
        Some(error) => refused(quic, region, addr, connection.remote_address(), &error),
        None => {
            connection.close(RefusalKind::Protocol.code(), reason.as_bytes());
            LinkError::Closed { region: region.clone(), reason: printable(reason) }
        }
    }
}

pub(crate) fn refused(quic: &Quic, region: &RegionName, addr: &str, target: SocketAddr, error: &ConnectionError) -> LinkError {
    let (region_name, addr) = (region.clone(), addr.to_owned());
    if matches!(error, ConnectionError::TimedOut) {
        return LinkError::Silent { region: region_name, addr };
    }
    let Some(kind) = classify(error, quic.material.cluster()) else {
        return LinkError::Closed { region: region_name, reason: sentence(region, error) };
    };
    let detail = printable(&error.to_string());
    quic.refuse(kind, target, &detail);
    LinkError::Refused { region: region_name, addr, kind, detail }
}
