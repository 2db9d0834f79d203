//! One region process, put together: lock, certificates, ports, six copies, the engine, the node on its driver, the endpoints.
//!
//! Decides the order of starting and stopping, and says in a sentence what is in the way. Everything after the start is decided
//! by the node. A crash anywhere here loses nothing: what counts lies on the copies.

mod links;
mod ports;
mod space;
mod tails;
mod view;

use super::audit::AUDIT_DIR;
use super::config::Config;
use super::expiry;
use super::keys;
use super::membership::retire;
use super::membership::roster::Roster;
use crate::base::{Prng, RegionName};
use crate::control::{ControlMessage, MembersView};
use crate::endpoint::pg::auth::ScramVerifier;
use crate::endpoint::router::RoutedService;
use crate::endpoint::{EmbeddedService, Port, SqlService, http, pg};
use crate::head::embedded::{Engine, EngineSettings};
use crate::io::audit::AuditWriter;
use crate::io::clock;
use crate::io::control_link::{CONTROL_MESSAGE_BYTES_MAX, ControlLinks};
use crate::io::copies::{Copies, Listener, Whose};
use crate::io::copy_link;
use crate::io::driver::{self, Around, Driver, Inbox, Queue, Shared};
use crate::io::link;
use crate::io::quic::Quic;
use crate::io::tls::Material;
use crate::node::{Event, Identity, Node};
use anyhow::{Context, bail};
use links::Links;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use view::View;

/// Connections handed to a port's server and not yet taken.
const INCOMING_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Stop when standard input ends: the parent is gone.
    pub exit_with_stdin: bool,
}

/// Runs the region of `config` until `shutdown` says so.
///
/// # Errors
/// When it cannot start, with a sentence that says what to do.
pub async fn run(config: Config, options: RunOptions, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let _lock = lock(&config.data_dir, &config.file, &format!("region {}", config.region))?;
    let key = config.key()?;
    // Before anything is read or written: a directory that is not sealed with this key, or not sealed, is nobody's to touch.
    keys::check(&config.data_dir, |copy| !config.copies.contains_key(&copy), config.layout.groups, key.as_deref())?;
    if let Some(to) = retire::carry_out(&config.data_dir).context("the copies of a retired lineage cannot be moved away")? {
        tracing::warn!("this region was retired: what it had lies in {}; it is seeded anew", to.display());
    }
    let material = Arc::new(Material::load(&config.tls_dir, &config.cluster, &config.region, &config.file, clock::unix_now())?);
    let _watch = expiry::watch(&material, &config.file);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let password = config.password()?;
    let regions: Vec<RegionName> = config.regions();
    let witness = config.witness.as_ref().map(|w| w.name.clone());
    let quic = Quic::bind(config.listen.quic, Arc::clone(&material), &regions, &config.quic)?.with_witness(witness.clone());
    let writer = bind(config.listen.writer, "listen.writer").await?;
    let reader = bind(config.listen.reader, "listen.reader").await?;
    let instance = bind(config.listen.instance, "listen.instance").await?;
    let http = bind(config.listen.http, "listen.http").await?;

    let roster = Arc::new(config.roster());
    let queue = Queue::new();
    let inbox = queue.inbox.clone();
    let listener: Arc<dyn Listener> = Arc::new(inbox.clone());
    let to_copies = if config.copies.is_empty() { None } else { Some(quic.copies_dialler()?) };
    let remote = to_copies
        .as_ref()
        .map(|quic| copy_link::connect(quic, &config.copies, config.layout, &config.limits, &listener))
        .unwrap_or_default();
    let whose = Whose {
        cluster: config.cluster.clone(),
        region: config.region.clone(),
        data_dir: config.data_dir.clone(),
        limits: config.limits.clone(),
        key: key.clone(),
    };
    let copies = Copies::start(whose, config.layout, &inbox, remote).context("a thread for a copy cannot be started")?;
    let who = Identity {
        cluster: config.cluster.clone(),
        region: config.region.clone(),
        founder: retire::founder(&config.data_dir, &config.region, &config.founder, &regions),
        members: regions.clone(),
        addrs: config.addrs(),
        witness,
        control: config.control.settings(),
        version: env!("CARGO_PKG_VERSION").into(),
        layout: config.layout,
    };
    let node = Node::new(who, config.limits.clone(), Prng::new(entropy()?), clock::unix_now());
    let shared = Shared::new(&node);
    let (stop, stopping) = watch::channel(false);
    let links = Links::new(quic.clone(), inbox.clone(), Arc::clone(&shared), Arc::clone(&roster));
    let view = View::new(&config, key, Arc::clone(&shared), Arc::clone(&links), copies.drills().clone());
    links.answer_with(&view);
    let engine = Engine::start(engine_settings(&config), copies.pages(), view.clone()).context("the SQL engine cannot start")?;
    view.attach(&engine);
    links.forward_to(&engine);
    let control = ControlLinks::start(&quic, roster.control_peers(), hear(inbox.clone()));
    let told = inbox.clone();
    control.when_removed(move |by| told.send(Event::SaidOut { by: by.clone() }));
    links.control_with(&control);
    let around = Around {
        dialler: Box::new(Arc::clone(&links)),
        members: Box::new(Members { links: control.clone(), quic: quic.clone(), roster, runtime: tokio::runtime::Handle::current() }),
        audit: Box::new(AuditWriter::start(&config.data_dir.join(AUDIT_DIR)).context("the audit cannot be written; see data_dir")?),
        tails: Box::new(tails::Tails::new(&config, inbox.clone())),
    };
    let driver = Driver::new(node, queue, copies, Arc::clone(&engine), Arc::clone(&shared), around);
    let driver =
        std::thread::Builder::new().name("node".into()).spawn(move || driver.run()).context("the node's thread cannot be started")?;

    let settings = Arc::new(pg::PgSettings {
        user: config.sql.user.clone(),
        scram: ScramVerifier::generate(&password),
        database: config.sql.database.clone(),
        connections_max: config.serving.connections_max,
        require_tls: true,
        tls: Some(material.postgres()),
    });
    let service: Arc<dyn SqlService> = Arc::new(EmbeddedService::new(Arc::clone(&engine)));
    let ways = Arc::new(ports::Forwarding { shared: Arc::clone(&shared) });
    let (own, who) = (config.region.clone(), shared.who.subscribe());
    let routed: Arc<dyn SqlService> = Arc::new(RoutedService::new(Arc::clone(&engine), own, who, ways, config.serving.writer_wait));
    let mut servers = tokio::task::JoinSet::new();
    let (writer_tx, writer_rx) = mpsc::channel(INCOMING_MAX);
    let (reader_tx, reader_rx) = mpsc::channel(INCOMING_MAX);
    let (instance_tx, instance_rx) = mpsc::channel(INCOMING_MAX);
    servers.spawn(pg::serve(writer_rx, Port::Writer, Arc::clone(&settings), routed, stopping.clone()));
    servers.spawn(pg::serve(instance_rx, Port::Writer, Arc::clone(&settings), Arc::clone(&service), stopping.clone()));
    servers.spawn(pg::serve(reader_rx, Port::Reader, settings, service, stopping.clone()));
    servers.spawn(ports::accept(writer, writer_tx, stopping.clone()));
    servers.spawn(ports::route_instance(instance, instance_tx, reader_tx.clone(), Arc::clone(&shared), stopping.clone()));
    servers.spawn(ports::accept(reader, reader_tx, stopping.clone()));
    servers.spawn(http::serve_http(http, view.clone(), stopping.clone()));
    let accepting = tokio::spawn(link::serve(quic.clone(), move |arrival| links.arrived(arrival)));
    tracing::info!(
        region = %config.region, quic = %config.listen.quic, writer = %config.listen.writer, reader = %config.listen.reader, http = %config.listen.http,
        "the region process runs"
    );

    let why = tokio::select! {
        why = until_told(options, shutdown) => why,
        () = view.retired() => "an operator retired it",
    };
    tracing::info!("stopping: {why}");
    let _ = stop.send(true);
    while servers.join_next().await.is_some() {}
    accepting.abort();
    inbox.stop();
    let _ = tokio::task::spawn_blocking(move || driver.join()).await;
    if let Some(quic) = to_copies {
        quic.close("the region process is stopping").await;
    }
    quic.close("the region process is stopping").await;
    Ok(())
}

/// What a member says goes to the node; nonsense ends its connection.
fn hear(inbox: Inbox) -> impl Fn(&RegionName, bytes::Bytes) -> Result<(), String> + Send + Sync {
    move |from, bytes| {
        let message = ControlMessage::decode(&bytes).map_err(|e| e.to_string())?;
        inbox.send(Event::Member { from: from.clone(), message: Box::new(message) });
        Ok(())
    }
}

/// The other members, as the driver knows them.
struct Members {
    links: ControlLinks,
    quic: Quic,
    roster: Arc<Roster>,
    runtime: tokio::runtime::Handle,
}

impl driver::Members for Members {
    fn send(&self, to: &RegionName, message: &ControlMessage) {
        let bytes = message.encode();
        if bytes.len() > CONTROL_MESSAGE_BYTES_MAX {
            tracing::warn!(%to, bytes = bytes.len(), "a control message is too long and is not sent");
            return;
        }
        self.links.send(to, bytes.into());
    }

    fn changed(&self, members: &MembersView) {
        let _inside = self.runtime.enter();
        self.roster.changed(members, &self.quic, &self.links);
    }
}

fn engine_settings(config: &Config) -> EngineSettings {
    EngineSettings {
        region: config.region.to_string(),
        instance: format!("{}-1", config.region),
        database: config.sql.database.clone(),
        user: config.sql.user.clone(),
        layout: config.layout,
        readers: config.serving.readers,
        pool_bytes_max: config.serving.pool_bytes_max,
        idle_in_transaction_max: config.serving.idle_in_transaction,
        commit_wait_max: config.serving.commit_wait,
        give_back: config.give_back,
        ..EngineSettings::default()
    }
}

/// One process for one directory: the second one is told which the first is.
pub(super) fn lock(dir: &Path, config: &Path, what: &str) -> anyhow::Result<std::fs::File> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("the data directory {} cannot be made; see data_dir in {}", dir.display(), config.display()))?;
    let path = dir.join("LOCK");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("{} cannot be opened; is the directory writable?", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            use std::io::Write;
            // Only for whoever is refused; the lock itself is the kernel's.
            let noted = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
            if let Err(e) = noted {
                tracing::warn!("the process id cannot be noted in {}: {e}", path.display());
            }
            Ok(file)
        }
        Err(std::fs::TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "{what} already runs on {} (process {}); stop that one first, or give this one another data_dir",
                dir.display(),
                pid.trim()
            )
        }
        Err(std::fs::TryLockError::Error(e)) => bail!("{} cannot be locked: {e}", path.display()),
    }
}

async fn bind(addr: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("the address {addr} is in use: another process listens there, perhaps this region itself; stop it (`ss -tlpn` names it) or change {key}")
        }
        _ => anyhow::anyhow!("cannot listen on {addr} ({key}): {e}"),
    })
}

fn entropy() -> anyhow::Result<u64> {
    let mut seed = [0u8; 8];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(u64::from_le_bytes(seed))
}

/// What ended it.
pub(super) async fn until_told(options: RunOptions, mut shutdown: watch::Receiver<bool>) -> &'static str {
    let parent_gone = async {
        if !options.exit_with_stdin {
            return std::future::pending().await;
        }
        // A thread of its own: a read of standard input cannot be taken back.
        let (gone, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ = gone.send(ended);
        });
        let _ = told.await;
    };
    tokio::select! {
        _ = shutdown.wait_for(|told| *told) => "it was told to",
        () = parent_gone => "the process that started this one is gone",
    }
}
