//! The PostgreSQL protocol, over TCP and TLS.
//!
//! Decides who may connect (limits, TLS, password, database) and gives each client a [`session::Session`] of its own. Never
//! runs SQL and never keeps a password. Whatever one client sends, only its own connection suffers: messages are checked and
//! bounded before anything is made of them, half-open logins end after ten seconds. Driven by [`serve`], one task per
//! connection. All of `pgwire` is used below this module and nowhere else.

pub mod auth;
mod copy;
mod copy_format;
mod datetime;
mod extended;
mod infer;
mod numeric;
mod parameters;
mod running;
mod session;
pub(super) mod split;
#[cfg(test)]
pub(super) mod tests;
mod types;
mod utility;
mod wire;

pub use auth::ScramVerifier;

use super::{Port, SqlService};
use crate::head::sql::{SqlError, state};
use parameters::Parameters;
use parking_lot::Mutex;
use pgwire::messages::PgWireBackendMessage as Out;
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey};
use running::{Target, Watch, stopped};
use session::Session;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use wire::{MESSAGE_BYTES_MAX, Opening, Stop, Wire};

/// From the first byte to the end of the login.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients that have not logged in yet; beyond this, connections are closed at once.
const LOGINS_MAX: usize = 100;
/// When the server stops, sessions have this long to say goodbye.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How a port behaves.
#[derive(Debug)]
pub struct PgSettings {
    /// The one user.
    pub user: String,
    /// What its password is checked against.
    pub scram: ScramVerifier,
    /// The one database.
    pub database: String,
    /// Clients that are logged in at once, per port; one more is told 53300.
    pub connections_max: usize,
    /// Refuse plain text (28000) from other machines.
    pub require_tls: bool,
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

struct Shared {
    port: Port,
    settings: Arc<PgSettings>,
    service: Arc<dyn SqlService>,
    shutdown: watch::Receiver<bool>,
    tls: Option<TlsAcceptor>,
    /// For the made-up salts of unknown users.
    secret: [u8; 32],
    connections: Arc<Semaphore>,
    next_pid: AtomicI32,
    /// Who can be cancelled, by what they were told at login.
    targets: Mutex<BTreeMap<(i32, i32), Arc<Target>>>,
}

/// Takes a listener's connections until `shutdown` becomes true (or its sender is gone), and gives each to `on`.
pub async fn accept(listener: TcpListener, mut shutdown: watch::Receiver<bool>, on: impl Fn((TcpStream, SocketAddr)) + Send) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut shutdown) => return,
        };
        match accepted {
            Ok(incoming) => on(incoming),
            Err(e) => {
                // Out of file descriptors, or the client was gone already: others must not suffer, so a moment's rest.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves the connections that it is handed (which of a port's connections those are is decided by who accepts them) until
/// `shutdown` becomes true (or its sender is gone). Sessions then end with 57P01, statements that run are cancelled; returns
/// when all have ended, after at most a few seconds.
pub async fn serve(
    mut incoming: mpsc::Receiver<(TcpStream, SocketAddr)>,
    port: Port,
    settings: Arc<PgSettings>,
    service: Arc<dyn SqlService>,
    mut shutdown: watch::Receiver<bool>,
) {
    let shared = Arc::new(Shared::new(port, settings, service, shutdown.clone()));
    let logins = Arc::new(Semaphore::new(LOGINS_MAX));
    let mut clients = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            Some(handed) = incoming.recv() => handed,
            () = stopped(&mut shutdown) => break,
        };
        while clients.try_join_next().is_some() {}
        let Ok(login) = logins.clone().try_acquire_owned() else {
            tracing::warn!(%peer, ?port, "too many logins at once, connection closed");
            continue;
        };
        let shared = shared.clone();
        clients.spawn(async move {
            tune(&stream);
            let opened = tokio::time::timeout(LOGIN_TIMEOUT, shared.login(stream, peer.ip())).await;
            drop(login);
            match opened {
                Ok(Some(client)) => client.run().await,
                Ok(None) => {}
                Err(_) => tracing::debug!(%peer, ?port, "login took too long"),
            }
        });
    }
    drop(incoming);
    let _ = tokio::time::timeout(STOP_TIMEOUT, async { while clients.join_next().await.is_some() {} }).await;
    clients.shutdown().await;
}

/// Answers with small packets at once, and notices in minutes rather than hours that a client's machine is gone.
fn tune(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    let tuned = stream.set_nodelay(true).and_then(|()| socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(e) = tuned {
        tracing::debug!(error = %e, "cannot set socket options");
    }
}

/// A client that has logged in; takes itself off the lists when it is dropped.
struct Client {
    session: Session,
    _registered: Registered,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Client {
    async fn run(self) {
        let Client { session, _registered, _permit } = self;
        session.run().await;
    }
}

struct Registered {
    shared: Arc<Shared>,
    key: (i32, i32),
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.targets.lock().remove(&self.key);
    }
}

impl Shared {
    fn new(port: Port, settings: Arc<PgSettings>, service: Arc<dyn SqlService>, shutdown: watch::Receiver<bool>) -> Shared {
        Shared {
            port,
            service,
            shutdown,
            tls: settings.tls.clone().map(TlsAcceptor::from),
            secret: auth::random(),
            connections: Arc::new(Semaphore::new(settings.connections_max.min(Semaphore::MAX_PERMITS))),
            next_pid: AtomicI32::new(1),
            targets: Mutex::new(BTreeMap::new()),
            settings,
        }
    }

    async fn login(self: &Arc<Self>, stream: TcpStream, peer: IpAddr) -> Option<Client> {
        let mut wire = Wire::new(Box::new(stream));
        let mut secure = false;
        let mut startup = None;
        for _ in 0..4 {
            match wire.opening().await {
                Ok(Opening::Tls) if self.tls.is_some() && !secure => {
                    wire.answer(b'S').await.ok()?;
                    let stream = wire.into_stream()?;
                    let stream = self.tls.as_ref()?.accept(stream).await;
                    let stream = stream.inspect_err(|e| tracing::debug!(%peer, error = %e, "TLS handshake failed")).ok()?;
                    wire = Wire::new(Box::new(stream));
                    secure = true;
                }
                Ok(Opening::Tls | Opening::Gss) => wire.answer(b'N').await.ok()?,
                Ok(Opening::Cancel { pid, secret }) => {
                    self.cancel(pid, secret);
                    return None;
                }
                Ok(Opening::Startup { minor, parameters }) => {
                    startup = Some((minor, parameters));
                    break;
                }
                Err(Stop::Fatal(e)) => {
                    wire.farewell(&e).await;
                    return None;
                }
                Err(_) => return None,
            }
        }
        let (minor, parameters) = startup?;
        match self.admit(wire, peer, secure, minor, parameters).await {
            Ok(client) => Some(client),
            Err((mut wire, Stop::Fatal(e) | Stop::Sql(e))) => {
                tracing::info!(%peer, port = ?self.port, code = e.code, "login refused: {}", e.message);
                wire.farewell(&e).await;
                None
            }
            Err((_, Stop::Gone)) => None,
        }
    }

    fn cancel(&self, pid: i32, secret: i32) {
        let target = self.targets.lock().get(&(pid, secret)).cloned();
        if let Some(target) = target {
            target.cancel();
        }
    }

    async fn admit(
        self: &Arc<Self>,
        mut wire: Wire,
        peer: IpAddr,
        secure: bool,
        minor: u16,
        given: BTreeMap<String, String>,
    ) -> Result<Client, (Wire, Stop)> {
        match self.check(&mut wire, peer, secure, minor, &given).await {
            Ok((session, parameters, registered, permit)) => {
                let (sql, watch) = session;
                let session = Session::new(wire, sql, watch, parameters, self.port);
                Ok(Client { session, _registered: registered, _permit: permit })
            }
            Err(stop) => Err((wire, stop)),
        }
    }

    async fn check(
        self: &Arc<Self>,
        wire: &mut Wire,
        peer: IpAddr,
        secure: bool,
        minor: u16,
        given: &BTreeMap<String, String>,
    ) -> Result<Admitted, Stop> {
        let settings = &self.settings;
        let fatal = |e: SqlError| Stop::Fatal(e);
        if settings.require_tls && !secure && !peer.to_canonical().is_loopback() {
            let e = SqlError::new("28000", format!("connections from {peer} must be encrypted"));
            return Err(fatal(e.hint("Connect with sslmode=require.")));
        }
        let extensions: Vec<String> = given.keys().filter(|k| k.starts_with("_pq_.")).cloned().collect();
        if minor > 0 || !extensions.is_empty() {
            wire.put(&Out::NegotiateProtocolVersion(NegotiateProtocolVersion::new(0, extensions)))?;
        }
        let user = given.get("user").filter(|u| !u.is_empty());
        let user = user.ok_or_else(|| fatal(SqlError::new("28000", "no PostgreSQL user name specified in startup packet")))?;
        if given.get("replication").is_some_and(|r| types::bool_text(r) != Some(false)) {
            return Err(fatal(SqlError::new(state::FEATURE_NOT_SUPPORTED, "replication connections are not supported")));
        }
        let known = (*user == settings.user).then_some(&settings.scram);
        auth::authenticate(wire, user, known, &self.secret).await?;

        let database = given.get("database").unwrap_or(&settings.database);
        if *database != settings.database {
            let e = SqlError::new("3D000", format!("database \"{database}\" does not exist"));
            return Err(fatal(e.hint(format!("The database here is \"{}\".", settings.database))));
        }
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            let e = SqlError::new("53300", format!("sorry, too many clients already ({})", settings.connections_max));
            return Err(fatal(e.hint("Close connections, use a pool, or raise connections_max.")));
        };
        let mut about = self.service.parameters(self.port);
        about.push(("session_authorization".to_owned(), user.clone()));
        let mut parameters = Parameters::new(about);
        for (name, value) in given {
            match name.as_str() {
                "user" | "database" | "replication" => {}
                "options" => start_options(&mut parameters, value).map_err(fatal)?,
                name if name.starts_with("_pq_.") => {}
                name => parameters.start_with(name, value).map_err(fatal)?,
            }
        }
        let sql = self.service.open(self.port).await.map_err(fatal)?;
        let target = Arc::new(Target::new(sql.canceller()));
        let key = (self.next_pid.fetch_add(1, Ordering::Relaxed), i32::from_be_bytes(auth::random()));
        self.targets.lock().insert(key, target.clone());
        let registered = Registered { shared: self.clone(), key };

        wire.put(&Out::Authentication(Authentication::Ok))?;
        for report in parameters.reported() {
            wire.put(&Out::ParameterStatus(ParameterStatus::new(report.name, report.value)))?;
        }
        wire.put(&Out::BackendKeyData(BackendKeyData::new(key.0, SecretKey::I32(key.1))))?;
        let idle = pgwire::messages::response::TransactionStatus::Idle;
        wire.put(&Out::ReadyForQuery(pgwire::messages::response::ReadyForQuery::new(idle)))?;
        wire.flush().await?;
        wire.message_bytes_max = MESSAGE_BYTES_MAX;
        let watch = Watch::new(target, self.shutdown.clone());
        Ok(((sql, watch), parameters, registered, permit))
    }
}

type Admitted = ((Box<dyn super::SqlSession>, Watch), Parameters, Registered, tokio::sync::OwnedSemaphorePermit);

/// `-c name=value` and `--name=value`, as libpq's `options` (and PGOPTIONS) send them.
fn start_options(parameters: &mut Parameters, options: &str) -> Result<(), SqlError> {
    let mut words = options.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c").filter(|s| !s.is_empty())) {
            Some(setting) => setting,
            None if word == "-c" => words.next().unwrap_or(""),
            None => return Err(SqlError::new("42601", format!("invalid command-line argument for server process: {word}"))),
        };
        let (name, value) = setting.split_once('=').ok_or_else(|| SqlError::new("42601", format!("-c {setting} requires a value")))?;
        parameters.start_with(name, &value.replace('\\', ""))?;
    }
    Ok(())
}
