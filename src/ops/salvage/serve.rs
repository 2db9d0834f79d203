//! A lost tail as a read-only SQL database: the embedded engine over the archive's pages, behind a port that speaks PostgreSQL.

use super::{Salvaged, name};
use crate::base::TimelineId;
use crate::endpoint::pg::{self, PgSettings};
use crate::endpoint::{EmbeddedService, Port, SqlService};
use crate::head::embedded::{Engine, EngineSettings};
use crate::head::{GlobalStatusRow, InstanceStatusRow, StatusSource};
use crate::ops::config::Config;
use crate::ops::failure::{FAILED, Failure, REFUSED, io_failure};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

const INCOMING_MAX: usize = 16;

/// There is no cluster behind it.
struct Nobody;

impl StatusSource for Nobody {
    fn global_status(&self) -> Vec<GlobalStatusRow> {
        Vec::new()
    }

    fn instance_status(&self) -> Vec<InstanceStatusRow> {
        Vec::new()
    }
}

/// An engine that reads `salvaged` at its end and never writes.
pub(super) fn engine(config: &Config, salvaged: Salvaged) -> Result<Arc<Engine>, Failure> {
    let at = salvaged.at();
    let settings = EngineSettings {
        region: format!("{} (a lost tail)", config.region),
        instance: format!("{}-salvage", config.region),
        database: config.sql.database.clone(),
        user: config.sql.user.clone(),
        layout: config.layout,
        ..EngineSettings::default()
    };
    let engine = Engine::start(settings, Arc::new(salvaged), Arc::new(Nobody)).map_err(|e| Failure::new(FAILED, e.to_string()))?;
    engine.reset(at);
    Ok(engine)
}

/// Serves archive `id` on `listen`, a loopback address, to whoever has the region's SQL password, until `shutdown` says so.
///
/// # Errors
/// When it cannot be opened, or the port is taken.
pub async fn serve(
    config: Config,
    id: TimelineId,
    listen: SocketAddr,
    shutdown: watch::Receiver<bool>,
    say: impl FnOnce(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if !listen.ip().is_loopback() {
        return Err(Failure::new(REFUSED, format!("{listen} can be reached from other machines, and this port has no TLS"))
            .hint("listen on 127.0.0.1, and reach it through a tunnel"));
    }
    let password = config.password()?;
    let (salvaged, base) = {
        let config = config.clone();
        let open = move || Salvaged::open(&config, id).map(|s| (s.base(), s));
        let (base, salvaged) = tokio::task::spawn_blocking(open).await.expect("BUG: opening an archive does not panic")?;
        (salvaged, base)
    };
    let at = salvaged.at();
    let engine = engine(&config, salvaged)?;
    let listener = TcpListener::bind(listen).await.map_err(io_failure(format!("listen on {listen}")))?;
    let listen = listener.local_addr().map_err(io_failure("see the port"))?;
    let settings = Arc::new(PgSettings {
        user: config.sql.user.clone(),
        scram: pg::ScramVerifier::generate(&password),
        database: config.sql.database.clone(),
        connections_max: config.serving.connections_max,
        require_tls: true,
        tls: None,
    });
    let service: Arc<dyn SqlService> = Arc::new(EmbeddedService::new(engine));
    let (tx, rx) = mpsc::channel(INCOMING_MAX);
    let server = tokio::spawn(pg::serve(rx, Port::Reader, settings, service, shutdown.clone()));
    say(&format!(
        "archive {} of {}: the database as of LSN {}, read-only; the history that goes on parted at LSN {}\n\
         psql \"host={} port={} user={} dbname={} sslmode=disable\"\n",
        name(id),
        config.region,
        at.end_lsn,
        base.end_lsn,
        listen.ip(),
        listen.port(),
        config.sql.user,
        config.sql.database
    ))?;
    pg::accept(listener, shutdown, |incoming| {
        if let Err(mpsc::error::TrySendError::Full((_, peer))) = tx.try_send(incoming) {
            tracing::warn!(%peer, "too many connections at once, this one is closed");
        }
    })
    .await;
    drop(tx);
    let _ = server.await;
    Ok(())
}
