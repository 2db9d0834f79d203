//! The PostgreSQL port before anybody is logged in: any bytes end their own connection and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parhelion::endpoint::pg::{PgSettings, ScramVerifier, serve};
use parhelion::endpoint::{Port, SqlService, SqlSession};
use parhelion::head::sql::SqlError;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

struct Nobody;

#[async_trait::async_trait]
impl SqlService for Nobody {
    fn open(&self, _: Port) -> Result<Box<dyn SqlSession>, SqlError> {
        Err(SqlError::new("57P03", "nobody is served here"))
    }

    fn parameters(&self, _: Port) -> Vec<(String, String)> {
        Vec::new()
    }
}

struct Server {
    runtime: tokio::runtime::Runtime,
    to: mpsc::Sender<(tokio::net::TcpStream, SocketAddr)>,
    listener: TcpListener,
    _shutdown: watch::Sender<bool>,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (to, incoming) = mpsc::channel(1);
        let (stop, shutdown) = watch::channel(false);
        let settings = Arc::new(PgSettings {
            user: "u".into(),
            scram: ScramVerifier::generate("p"),
            database: "d".into(),
            connections_max: 4,
            require_tls: false,
            tls: None,
        });
        runtime.spawn(async move { serve(incoming, Port::Writer, settings, Arc::new(Nobody), shutdown).await });
        Server { runtime, to, listener: TcpListener::bind("127.0.0.1:0").expect("a port"), _shutdown: stop }
    })
}

fuzz_target!(|data: &[u8]| {
    let server = server();
    let mut client = TcpStream::connect(server.listener.local_addr().expect("an address")).expect("it connects");
    let (accepted, peer) = server.listener.accept().expect("it is accepted");
    accepted.set_nonblocking(true).expect("a socket");
    let _guard = server.runtime.enter();
    let accepted = tokio::net::TcpStream::from_std(accepted).expect("a socket");
    server.to.blocking_send((accepted, peer)).expect("the server lives");
    client.set_read_timeout(Some(Duration::from_secs(15))).expect("a socket");
    let _ = client.write_all(data);
    let _ = client.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection hangs"),
        _ => {}
    }
});
