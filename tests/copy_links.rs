//! A region and its copies on other machines, over real sockets: who is let in, who hears what, and what a copy that takes nothing costs.

use bytes::Bytes;
use parhelion::base::{
    ClusterName, CopyId, Epoch, Generation, GroupId, Layout, Limits, LineageId, LogEnd, Lsn, MemberId, RegionName, Seq, UnixMicros,
};
use parhelion::io::clock::unix_now;
use parhelion::io::copies::{Copies, Listener, Says, Whose};
use parhelion::io::copy_link::{self, Host, RemoteCopy};
use parhelion::io::quic::{Quic, QuicSettings, RefusalKind};
use parhelion::io::tls::{COPY_ALPN, Material, Subject, copies_dns_name};
use parhelion::log::{ControlFrame, Frame};
use parhelion::ops::certs::{CertOptions, create};
use parhelion::volume::{CopyReply, CopyRequest};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(20);

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn cluster() -> ClusterName {
    ClusterName::new("sun").unwrap()
}

fn material(dir: &Path, name: &str, subject: Subject) -> Arc<Material> {
    let options = CertOptions { copies_of: vec![region("us"), region("eu")], ..CertOptions::new(unix_now()) };
    create(dir, &cluster(), &[region("us"), region("eu")], &options).unwrap();
    Arc::new(Material::load_as(subject, dir, &cluster(), &region(name), Path::new("x.toml"), unix_now()).unwrap())
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing happened")
}

/// A process of copies a1 and a2 of region us.
struct Site {
    quic: Quic,
    addr: SocketAddr,
    host: Arc<Host>,
}

fn site(dir: &Path, limits: &Limits) -> Site {
    let quic = Quic::bind_copies("127.0.0.1:0".parse().unwrap(), material(&dir.join("certs"), "us", Subject::Copies)).unwrap();
    let whose = Whose { cluster: cluster(), region: region("us"), data_dir: dir.to_path_buf(), limits: limits.clone(), key: None };
    let host = Host::new(Copies::host(whose).unwrap(), &[CopyId(0), CopyId(1)]);
    tokio::spawn(copy_link::serve(quic.clone(), Arc::clone(&host)));
    Site { addr: quic.local_addr().unwrap(), quic, host }
}

impl Site {
    async fn stop(self) {
        self.quic.close("the test is over").await;
        tokio::task::spawn_blocking(move || self.host.stop()).await.unwrap();
    }
}

/// What a region hears of its copies.
struct Ear(mpsc::UnboundedSender<(MemberId, Says)>);

impl Listener for Ear {
    fn tell(&self, copy: MemberId, says: Says) {
        let _ = self.0.send((copy, says));
    }
}

struct Region {
    quic: Quic,
    copies: Vec<Arc<RemoteCopy>>,
    heard: mpsc::UnboundedReceiver<(MemberId, Says)>,
}

fn region_with(dir: &Path, name: &str, copies: &[(u8, SocketAddr)], limits: &Limits) -> Region {
    let own = material(&dir.join("certs"), name, Subject::Region);
    let quic = Quic::bind("127.0.0.1:0".parse().unwrap(), own, &[region("us"), region("eu")], &QuicSettings::default()).unwrap();
    let addresses: BTreeMap<CopyId, String> = copies.iter().map(|(c, addr)| (CopyId(*c), addr.to_string())).collect();
    let (tx, heard) = mpsc::unbounded_channel();
    let listener: Arc<dyn Listener> = Arc::new(Ear(tx));
    let copies = copy_link::connect(&quic.copies_dialler().unwrap(), &addresses, Layout::default(), limits, &listener);
    Region { quic, copies, heard }
}

impl Region {
    async fn hears(&mut self) -> (MemberId, Says) {
        within(self.heard.recv()).await.expect("there is a listener")
    }

    async fn replied(&mut self) -> CopyReply {
        match self.hears().await {
            (_, Says::Replied(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }
}

fn notice(generation: Generation, frames: Vec<Frame>) -> CopyRequest {
    CopyRequest::Append { generation, frames, vdl: LogEnd::EMPTY, horizon: Lsn(0), trim: Seq(0), gate: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_own_region_is_let_in_and_only_its_own_copies_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), &Limits::default());
    // Another region's certificate, and that of copies, which no region shows: both would take the copies' own.
    for (who, n) in
        [(material(&dir.path().join("certs"), "eu", Subject::Region), 1), (material(&dir.path().join("certs"), "us", Subject::Copies), 2)]
    {
        let mut crypto = rustls::ClientConfig::clone(&who.quic_client());
        crypto.alpn_protocols = vec![COPY_ALPN.to_vec()];
        let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let name = copies_dns_name(&cluster(), &region("us"));
        let connection = within(endpoint.connect_with(client, site.addr, &name).unwrap()).await.unwrap();
        let closed = within(connection.closed()).await.to_string();
        assert!(closed.contains("sun.parhelion.internal"), "{closed}");
        within(async {
            while site.quic.refusals().get(RefusalKind::ForeignCopies) < n {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    // A region that dials another one's copies refuses them, and says so.
    let mut eu = region_with(dir.path(), "eu", &[(0, site.addr)], &Limits::default());
    let (_, Says::Lost { reason }) = eu.hears().await else { panic!("it is lost") };
    assert!(reason.contains("a region takes only copies of its own"), "{reason}");
    assert!(eu.quic.refusals().get(RefusalKind::ForeignCopies) > 0, "counted with the region's other refusals");
    // Its own: what is there is opened, and a copy that is not there is named, without harm to the other.
    let mut us = region_with(dir.path(), "us", &[(1, site.addr), (5, site.addr)], &Limits::default());
    let mut heard = [us.hears().await, us.hears().await];
    heard.sort_by_key(|(id, _)| *id);
    assert!(matches!(&heard[0], (id, Says::Opened { promised: Generation(0) }) if id.copy == CopyId(1)), "{heard:?}");
    assert!(matches!(&heard[1], (_, Says::Lost { reason }) if reason.contains("holds a1, a2 and not c2")), "{heard:?}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_an_earlier_generation_is_refused_and_nobody_else_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), &Limits::default());
    let mut older = region_with(dir.path(), "us", &[(0, site.addr)], &Limits::default());
    assert!(matches!(older.hears().await.1, Says::Opened { .. }));
    let mut newer = region_with(dir.path(), "us", &[(0, site.addr)], &Limits::default());
    assert!(matches!(newer.hears().await.1, Says::Opened { .. }));
    let (first, second) = (Generation(1 << 16), Generation(2 << 16));
    older.copies[0].send(CopyRequest::Raise { generation: first });
    assert!(matches!(older.replied().await, CopyReply::Raised { generation, .. } if generation == first));
    newer.copies[0].send(CopyRequest::Raise { generation: second });
    assert!(matches!(newer.replied().await, CopyReply::Raised { generation, .. } if generation == second));
    let start = ControlFrame::EpochStart { lineage: LineageId(7) };
    older.copies[0].send(notice(first, vec![start.encode(&LogEnd::EMPTY, Epoch(1), first, UnixMicros(1))]));
    assert!(matches!(older.replied().await, CopyReply::Refused { promised } if promised == second));
    let frame = start.encode(&LogEnd::EMPTY, Epoch(1), second, UnixMicros(1));
    newer.copies[0].send(notice(second, vec![frame.clone()]));
    // The first that it hears after its raise: nothing of what the other was told.
    assert!(matches!(newer.replied().await, CopyReply::Appended { end, .. } if end == frame.log_end()));
    // Read on a stream of its own.
    newer.copies[0].send(CopyRequest::ReadLog { id: 77, from: Seq(1), bytes_max: 1 << 20 });
    let CopyReply::Log { id: 77, frames } = newer.replied().await else { panic!("the log") };
    assert_eq!(frames, [frame]);
    assert_eq!(older.copies[0].id(), MemberId { group: GroupId(0), copy: CopyId(0) });
    site.stop().await;
}

/// A peer that takes the connection and its streams, and reads nothing.
fn deaf(dir: &Path) -> (quinn::Endpoint, SocketAddr) {
    let mut crypto = rustls::ServerConfig::clone(&material(&dir.join("certs"), "us", Subject::Copies).quic_server());
    crypto.alpn_protocols = vec![COPY_ALPN.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        let connection = accepting.accept().await.unwrap().await.unwrap();
        let mut kept = Vec::new();
        while let Ok(stream) = connection.accept_bi().await {
            kept.push(stream);
        }
    });
    (endpoint, addr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_takes_nothing_costs_the_region_a_bounded_amount_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (_endpoint, addr) = deaf(dir.path());
    let limits = Limits { copy_window_bytes_max: 1 << 20, ..Limits::default() };
    let us = region_with(dir.path(), "us", &[(0, addr)], &limits);
    let frame = ControlFrame::EpochStart { lineage: LineageId(7) }.encode(&LogEnd::EMPTY, Epoch(1), Generation(1), UnixMicros(1));
    let copy = &us.copies[0];
    within(async {
        while copy.waiting_bytes() == 0 {
            copy.send(notice(Generation(1), vec![frame.clone()]));
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Bytes that make sense to nobody: they are not read.
    let big = CopyRequest::PutControl { generation: Generation(1), version: 1, control: Bytes::from(vec![0; 1 << 20]) };
    let bound = 2 * limits.copy_window_bytes_max + (4 << 20) + (2 << 20);
    for _ in 0..200 {
        copy.send(big.clone());
        assert!(copy.waiting_bytes() <= bound, "{} bytes wait", copy.waiting_bytes());
        tokio::task::yield_now().await;
    }
    assert!(copy.waiting_bytes() > 1 << 20, "and it did pile up");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), &Limits::default());
    let own = material(&dir.path().join("certs"), "us", Subject::Region);
    for nonsense in
        [&b"X\0\0"[..], b"O\0\x07", b"O\xff\0", b"O\0\0\xff\xff\xff\xff", b"P\0\0\x04\0\0\0\xff\xff\xff\xff", b"R\0\0\x01\0\0\0\0"]
    {
        let mut crypto = rustls::ClientConfig::clone(&own.quic_client());
        crypto.alpn_protocols = vec![COPY_ALPN.to_vec()];
        let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let name = copies_dns_name(&cluster(), &region("us"));
        let connection = within(endpoint.connect_with(client, site.addr, &name).unwrap()).await.unwrap();
        let (mut send, _recv) = within(connection.open_bi()).await.unwrap();
        within(send.write_all(nonsense)).await.unwrap();
        within(connection.closed()).await;
    }
    let mut us = region_with(dir.path(), "us", &[(0, site.addr)], &Limits::default());
    assert!(matches!(us.hears().await.1, Says::Opened { .. }));
    site.stop().await;
}
