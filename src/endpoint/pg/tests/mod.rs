//! The protocol as clients see it: tokio-postgres, psql and pgbench against a port, and bytes that no client sends.

mod clients;
pub mod driver;
mod engine;
mod infer;

use super::{PgSettings, ScramVerifier, accept, serve};
use crate::endpoint::{Port, SqlService};
use engine::Engine;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Server {
    pub address: SocketAddr,
    pub stop: watch::Sender<bool>,
    pub task: JoinHandle<()>,
}

pub struct Options {
    pub port: Port,
    pub connections_max: usize,
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

impl Default for Options {
    fn default() -> Options {
        Options { port: Port::Writer, connections_max: 20, tls: None }
    }
}

pub const PASSWORD: &str = "correct horse";

impl Server {
    pub async fn start() -> Server {
        Server::with(Options::default(), Arc::new(Engine::new())).await
    }

    pub async fn with(options: Options, service: Arc<dyn SqlService>) -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let settings = PgSettings {
            user: "app".into(),
            scram: ScramVerifier::generate(PASSWORD),
            database: "parhelion".into(),
            connections_max: options.connections_max,
            require_tls: false,
            tls: options.tls,
        };
        let (stop, shutdown) = watch::channel(false);
        let (hand, incoming) = tokio::sync::mpsc::channel(64);
        tokio::spawn(accept(listener, shutdown.clone(), move |connection| drop(hand.try_send(connection))));
        let task = tokio::spawn(serve(incoming, options.port, Arc::new(settings), service, shutdown));
        Server { address, stop, task }
    }

    pub fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.address.port()).user("app").password(PASSWORD).dbname("parhelion");
        config
    }

    pub async fn connect(&self) -> tokio_postgres::Client {
        connect(&self.config()).await.expect("connects")
    }
}

pub async fn connect(config: &tokio_postgres::Config) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub fn code(e: &tokio_postgres::Error) -> String {
    e.code().map_or_else(|| format!("no SQLSTATE: {e:?}"), |c| c.code().to_owned())
}
