//! `parhelion invite`, in the region process: tokens that are good once, and the listener at which they are used.
//!
//! Decides whether a token opens: its secret, its name, its time, that it was not used. Then the region, or the witness, is made a member by an
//! order like any other, its certificate is issued with the cluster CA's key, and it gets what its file needs. Invitations live in memory only: a restart of
//! this process ends them. The secret itself is not kept, only its hash; a private key is never seen here. Listens on loopback unless whoever
//! invites names another address.

use super::wire::{self, Guest, JoinAnswer, JoinRequest, Secret, Token, Welcome, WitnessWelcome};
use crate::base::{Instant, UnixMicros};
use crate::control::{OpId, OpState, OpView, Order, OrderKind};
use crate::io::clock;
use crate::io::driver::{Inbox, Shared};
use crate::io::join_tls;
use crate::io::tls::ca_key_file;
use crate::node::Event;
use crate::ops::certs;
use crate::ops::config::{Config, reachable};
use crate::ops::membership::roster::Roster;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Invitations at a time.
const INVITES_MAX: usize = 16;
/// An invitation is good for no longer.
pub const TTL_MAX: Duration = Duration::from_secs(7 * 86_400);
/// After its end it is still told why, for so long.
const TOLD_AFTERWARDS: Duration = Duration::from_secs(60);
/// Connections to one listener at a time.
const GUESTS_MAX: usize = 8;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An order to make somebody a member is waited for so long.
const ORDER_WITHIN: Duration = Duration::from_secs(20);
/// The same for a look whether it could be one: the command waits no longer.
const LOOK_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(30);
/// Days that the certificate of a member that joins is valid.
const CERTIFICATE_DAYS: u32 = 365;

/// What an operator gets.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Invited {
    pub token: Token,
}

/// Why somebody did not join; labels of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turned {
    Garbage,
    UnknownToken,
    Expired,
    Used,
    WrongName,
    Unfit,
}

impl Turned {
    const ALL: [(Turned, &str); 6] = [
        (Turned::Garbage, "join_garbage"),
        (Turned::UnknownToken, "join_unknown_token"),
        (Turned::Expired, "join_expired"),
        (Turned::Used, "join_used"),
        (Turned::WrongName, "join_wrong_name"),
        (Turned::Unfit, "join_unfit"),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Somebody is joining with it at the moment.
    InUse,
    Used,
}

struct Invite {
    guest: Guest,
    secret_sha256: [u8; 32],
    until: Instant,
    state: Mutex<State>,
}

/// See the module.
pub struct Invites {
    config: Config,
    inbox: Inbox,
    shared: Arc<Shared>,
    roster: Arc<Roster>,
    open: Mutex<Vec<Arc<Invite>>>,
    turned: [AtomicU64; Turned::ALL.len()],
}

impl Invites {
    #[must_use]
    pub fn new(config: &Config, inbox: Inbox, shared: Arc<Shared>, roster: Arc<Roster>) -> Arc<Invites> {
        Arc::new(Invites { config: config.clone(), inbox, shared, roster, open: Mutex::default(), turned: Default::default() })
    }

    /// How many were turned away, and why.
    #[must_use]
    pub fn refusals(&self) -> Vec<(String, u64)> {
        Turned::ALL.iter().map(|(t, label)| ((*label).to_owned(), self.turned[*t as usize].load(Ordering::Relaxed))).collect()
    }

    /// Where the CA's key is on this machine.
    ///
    /// # Errors
    /// It is not here.
    pub fn authority(&self) -> Result<String, String> {
        let file = ca_key_file(&self.config.tls_dir);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if file.exists() {
            Ok(format!("{} on {}", file.display(), host.trim()))
        } else {
            Err(format!("{} does not exist on {}", file.display(), host.trim()))
        }
    }

    /// Makes an invitation and listens for whoever uses it.
    ///
    /// # Errors
    /// A sentence: it cannot be a member, or nobody can listen there.
    pub async fn invite(
        self: &Arc<Invites>,
        guest: Guest,
        ttl: Duration,
        listen: SocketAddr,
        address: Option<String>,
    ) -> Result<Invited, String> {
        self.authority().map_err(|why| format!("this region cannot issue certificates: {why}"))?;
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(format!("an invitation is good for up to {}", humantime::format_duration(TTL_MAX)));
        }
        let now = clock::now();
        self.open.lock().retain(|i| now < i.until + TOLD_AFTERWARDS && *i.state.lock() != State::Used);
        if self.open.lock().len() >= INVITES_MAX {
            return Err(format!("{INVITES_MAX} invitations are open already; wait until one is used or ends"));
        }
        // Every check that joining makes, before anybody is told to come.
        self.order(added(&guest, "to-be-told:1".into()), true).await?;
        let (tls, ca_sha256) =
            join_tls::inviter(&self.config.tls_dir, &self.config.region, &self.config.file).map_err(|e| e.to_string())?;
        let listener = TcpListener::bind(listen).await.map_err(|e| format!("cannot listen on {listen}: {e}; name another --listen"))?;
        let bound = listener.local_addr().map_err(|e| e.to_string())?;
        let addr = match address {
            Some(addr) => addr,
            None if bound.ip().is_unspecified() => {
                return Err(format!(
                    "{listen} can be listened on but not reached: name the address by which {} reaches it with --address",
                    guest.name()
                ));
            }
            None => bound.to_string(),
        };
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| "the system gives no random numbers".to_owned())?;
        let expires_at = UnixMicros(clock::unix_now().0.saturating_add(u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX)));
        let invite = Arc::new(Invite {
            guest: guest.clone(),
            secret_sha256: hash(&Secret(secret)),
            until: clock::now() + ttl,
            state: Mutex::new(State::Open),
        });
        self.open.lock().push(Arc::clone(&invite));
        tracing::info!(name = %guest.name(), %bound, "a {} is invited and may join here", guest.kind());
        let until = invite.until;
        tokio::spawn(Arc::clone(self).listen(listener, TlsAcceptor::from(tls), until));
        let (cluster, inviter) = (self.config.cluster.clone(), self.config.region.clone());
        Ok(Invited { token: Token { cluster, guest, inviter, addr, ca_sha256, secret: Secret(secret), expires_at } })
    }

    /// Until a little after the invitation ended.
    async fn listen(self: Arc<Invites>, listener: TcpListener, tls: TlsAcceptor, until: Instant) {
        let guests = Arc::new(Semaphore::new(GUESTS_MAX));
        let accepting = async {
            loop {
                let Ok((stream, peer)) = listener.accept().await else {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                };
                let Ok(permit) = Arc::clone(&guests).try_acquire_owned() else { continue };
                let (invites, tls) = (Arc::clone(&self), tls.clone());
                tokio::spawn(async move {
                    invites.serve(stream, peer, &tls).await;
                    drop(permit);
                });
            }
        };
        let left = until.since(clock::now()) + TOLD_AFTERWARDS;
        let _ = tokio::time::timeout(left, accepting).await;
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, tls: &TlsAcceptor) {
        // Who breaks a handshake off has not shown any token yet: noise, or the wrong program.
        let Ok(Ok(mut stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else {
            return self.turn(Turned::Garbage, peer, "no TLS handshake");
        };
        let request: JoinRequest = match wire::receive(&mut stream, wire::REQUEST_WITHIN).await {
            Ok(request) => request,
            Err(why) => return self.turn(Turned::Garbage, peer, &why),
        };
        let answer = match self.join(&request).await {
            Ok(welcome) => {
                tracing::info!(name = %request.name, %peer, "a new member has joined");
                welcome
            }
            Err((turned, why)) => {
                self.turn(turned, peer, &why);
                JoinAnswer::Refused(why)
            }
        };
        if let Err(why) = wire::send(&mut stream, &answer).await {
            tracing::warn!(%peer, "the answer to a member that joins cannot be sent: {why}");
        }
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
    }

    fn turn(&self, turned: Turned, peer: SocketAddr, why: &str) {
        self.turned[turned as usize].fetch_add(1, Ordering::Relaxed);
        let why: String = why.chars().filter(|c| !c.is_control()).take(300).collect();
        tracing::warn!(%peer, kind = ?turned, "somebody who wanted to join was turned away: {why}");
    }

    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, (Turned, String)> {
        let again = |guest: &Guest| format!("ask for another one: {}", guest.invited_by());
        let given = hash(&request.secret);
        let found = self.open.lock().iter().find(|i| same(&i.secret_sha256, &given)).cloned();
        let Some(invite) = found else {
            let why = "this invitation is not known here, or the process that made it has restarted; ask for another one: parhelion invite";
            return Err((Turned::UnknownToken, why.to_owned()));
        };
        if clock::now() >= invite.until {
            return Err((Turned::Expired, format!("this invitation has ended; {}", again(&invite.guest))));
        }
        if request.name != *invite.guest.name() {
            return Err((Turned::WrongName, format!("this invitation is for {}, and not for {}", invite.guest.name(), request.name)));
        }
        reachable(&request.addr).map_err(|why| (Turned::Unfit, format!("the address {} {why}", request.addr)))?;
        {
            let mut state = invite.state.lock();
            match *state {
                State::Open => *state = State::InUse,
                State::InUse => return Err((Turned::Used, "somebody is joining with this invitation at the moment".to_owned())),
                State::Used => {
                    let why = format!(
                        "this invitation was used, and it is good once. If it was not by you: parhelion {} remove {}; else {}",
                        invite.guest.kind(),
                        invite.guest.name(),
                        again(&invite.guest)
                    );
                    return Err((Turned::Used, why));
                }
            }
        }
        let joined = self.take_in(&invite.guest, request).await;
        // What came to nothing may be tried again.
        *invite.state.lock() = if joined.is_ok() { State::Used } else { State::Open };
        joined.map_err(|why| (Turned::Unfit, why))
    }

    /// A certificate, then a member: one that is a member and has none would be in nobody's way, but in its own.
    async fn take_in(&self, guest: &Guest, request: &JoinRequest) -> Result<JoinAnswer, String> {
        let config = &self.config;
        let (dir, csr, subject) = (config.tls_dir.clone(), request.csr.clone(), guest.subject());
        let (cluster, name) = (config.cluster.clone(), guest.name().clone());
        let issuing = move || certs::issue(subject, &dir, &cluster, &name, &csr, CERTIFICATE_DAYS, clock::unix_now());
        let issued = tokio::task::spawn_blocking(issuing).await.map_err(|e| format!("the certificate cannot be made: {e}"))?;
        let (certificate_pem, ca_pem) = issued.map_err(|e| e.to_string())?;
        let sql_password = config.password().map_err(|e| e.to_string())?;
        self.order(added(guest, request.addr.clone()), false).await?;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let others = self.roster.regions().into_iter().filter(|r| r != guest.name());
        let own = (config.region.clone(), config.admin_addr().to_owned());
        let members = others.map(|r| if r == config.region { own.clone() } else { (r.clone(), self.roster.addr(&r).unwrap_or_default()) });
        let members = members.filter(|(_, addr)| !addr.is_empty()).collect();
        let (lease_ms, renew_ms, drain_ms) = (ms(config.control.lease), ms(config.control.renew), ms(config.control.drain));
        if let Guest::Witness { .. } = guest {
            let welcome = WitnessWelcome { certificate_pem, ca_pem, members, lease_ms, renew_ms, drain_ms };
            return Ok(JoinAnswer::WelcomeWitness(Box::new(welcome)));
        }
        Ok(JoinAnswer::Welcome(Box::new(Welcome {
            certificate_pem,
            ca_pem,
            founder: config.founder.clone(),
            members,
            witness: self.roster.witness().map(|w| (w.name, w.quic)),
            sql_user: config.sql.user.clone(),
            sql_database: config.sql.database.clone(),
            sql_password,
            segment_pages: config.layout.segment_pages,
            groups: config.layout.groups,
            lease_ms,
            renew_ms,
            drain_ms,
        })))
    }

    /// Orders, and waits for the end. The error is why it did not come about.
    async fn order(&self, kind: OrderKind, dry_run: bool) -> Result<(), String> {
        if self.shared.control.read().is_none() {
            return Err("this region is still recovering; try again in a moment".into());
        }
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| "the system gives no random numbers".to_owned())?;
        let id = OpId(u128::from_le_bytes(id));
        let timeout_ms = u64::try_from(ORDER_WITHIN.as_millis()).unwrap_or(u64::MAX);
        let actor = format!("an invitation of {}", self.config.region);
        self.inbox.send(Event::Order(Order { id, kind, dry_run, timeout_ms, at_epoch: None, actor }));
        let ended = async {
            loop {
                let op: Option<OpView> = self.shared.ops().into_iter().find(|o| o.order.id == id);
                match op.map(|o| o.state) {
                    Some(OpState::Done) => return Ok(()),
                    Some(OpState::Refused { reason } | OpState::Failed { reason } | OpState::Unknown { reason }) => return Err(reason),
                    Some(OpState::Superseded { by, .. }) => {
                        let by = by.map_or_else(String::new, |by| format!(" ({by})"));
                        return Err(format!("another operation is under way{by}; wait for it: parhelion op"));
                    }
                    Some(OpState::Running(_)) | None => tokio::time::sleep(LOOK_EVERY).await,
                }
            }
        };
        tokio::time::timeout(if dry_run { LOOK_WITHIN } else { ORDER_WITHIN }, ended)
            .await
            .unwrap_or_else(|_| Err("the primary has not answered; look at parhelion status, then try again".into()))
    }
}

/// The order that makes it a member.
fn added(guest: &Guest, addr: String) -> OrderKind {
    match guest.clone() {
        Guest::Region { name } => OrderKind::AddRegion { region: name, addr },
        Guest::Witness { name, zone } => OrderKind::AddWitness { witness: name, addr, zone },
    }
}

fn hash(secret: &Secret) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &secret.0);
    digest.as_ref().try_into().expect("BUG: SHA-256 has 32 bytes")
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}
