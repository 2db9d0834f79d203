//! Links between regions over real sockets: what travels, who is refused, what nonsense does.

use bytes::Bytes;
use parhelion::base::{ClusterName, RegionName, UnixMicros};
use parhelion::io::clock::unix_now;
use parhelion::io::link::{Arrival, BATCH_BYTES_MAX, Link, LinkError, LinkEvent, MESSAGE_BYTES_MAX, admin_once, dial, serve};
use parhelion::io::quic::{Quic, QuicError, QuicSettings, RefusalKind};
use parhelion::io::tls::{Material, dns_name};
use parhelion::ops::certs::{CertOptions, create};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(20);
const DAY_US: u64 = 86_400_000_000;

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn cluster(name: &str) -> ClusterName {
    ClusterName::new(name).unwrap()
}

/// Certificates made at `made`, loaded as of then.
fn material_of(dir: &Path, cluster_name: &str, name: &str, made: UnixMicros) -> Arc<Material> {
    create(dir, &cluster(cluster_name), &[region(name)], &CertOptions::new(made)).unwrap();
    Arc::new(Material::load(dir, &cluster(cluster_name), &region(name), Path::new("x.toml"), made).unwrap())
}

fn material(dir: &Path, name: &str) -> Arc<Material> {
    material_of(dir, "sun", name, unix_now())
}

struct Site {
    quic: Quic,
    addr: String,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
}

/// A region that serves, and knows the members `us` and `eu`.
fn site(material: Arc<Material>) -> Site {
    site_at("127.0.0.1:0".parse().unwrap(), material)
}

fn site_at(addr: SocketAddr, material: Arc<Material>) -> Site {
    let quic = Quic::bind(addr, material, &[region("us"), region("eu")], &QuicSettings::default()).unwrap();
    let addr = quic.local_addr().unwrap().to_string();
    let (tx, arrivals) = mpsc::unbounded_channel();
    tokio::spawn(serve(quic.clone(), move |arrival| drop(tx.send(arrival))));
    Site { quic, addr, arrivals }
}

impl Site {
    async fn link(&mut self) -> (Link, mpsc::Receiver<LinkEvent>) {
        match within(self.arrivals.recv()).await {
            Some(Arrival::Link(link, events)) => (link, events),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the counter to move: the two sides of a refusal notice it one after the other.
    async fn refused(&self, kind: RefusalKind) {
        within(async {
            while self.quic.refusals().get(kind) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for other in RefusalKind::ALL.into_iter().filter(|k| *k != kind) {
            assert_eq!(self.quic.refusals().get(other), 0, "{other:?} beside {kind:?}");
        }
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing happened")
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    within(events.recv()).await.expect("the link ended without a word")
}

async fn closed(events: &mut mpsc::Receiver<LinkEvent>) -> String {
    loop {
        if let LinkEvent::Closed(reason) = next(events).await {
            assert!(within(events.recv()).await.is_none(), "an event after the last");
            return reason;
        }
    }
}

type Ends = (Site, Site, (Link, mpsc::Receiver<LinkEvent>), (Link, mpsc::Receiver<LinkEvent>));

/// `us` has dialled `eu`.
async fn linked(dir: &Path) -> Ends {
    let us = site(material(dir, "us"));
    let mut eu = site(material(dir, "eu"));
    let from_us = within(dial(&us.quic, &region("eu"), &eu.addr)).await.unwrap();
    let at_eu = eu.link().await;
    (us, eu, from_us, at_eu)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_regions_exchange_everything_a_link_carries() {
    let tmp = tempfile::tempdir().unwrap();
    let (_us, _eu, (us, mut us_events), (eu, mut eu_events)) = linked(tmp.path()).await;
    assert_eq!((us.peer().as_str(), us.dialled()), ("eu", true));
    assert_eq!((eu.peer().as_str(), eu.dialled()), ("us", false));

    // Control: in order, both ways, the largest among them.
    let largest = Bytes::from(vec![7; MESSAGE_BYTES_MAX]);
    for message in [Bytes::from_static(b"one"), Bytes::new(), largest.clone()] {
        us.send_control(message);
    }
    eu.send_control(Bytes::from_static(b"back"));
    for expected in [Bytes::from_static(b"one"), Bytes::new(), largest] {
        assert!(matches!(next(&mut eu_events).await, LinkEvent::Control(got) if got == expected));
    }
    assert!(matches!(next(&mut us_events).await, LinkEvent::Control(got) if got == "back"));

    // Batches: whole, up to the limit, from several parts.
    let frames = Bytes::from((0..BATCH_BYTES_MAX - 5).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    us.send_batch(vec![Bytes::from_static(b"head:"), frames.clone()]);
    match next(&mut eu_events).await {
        LinkEvent::Batch(got) => assert!(got[..5] == *b"head:" && got[5..] == frames),
        other => panic!("{other:?}"),
    }

    // Datagrams: small ones arrive (nothing is lost on loopback with nothing else under way), big ones go quietly.
    us.send_datagram(Bytes::from(vec![0; 100_000]));
    us.send_datagram(Bytes::from_static(b"beat"));
    assert!(matches!(next(&mut eu_events).await, LinkEvent::Datagram(got) if got == "beat"));

    // A question, answered; one that is dropped; one that nobody answers in time.
    let asking = us.clone();
    let asked = tokio::spawn(async move { asking.request_admin(Bytes::from_static(b"status"), PATIENCE).await });
    match next(&mut eu_events).await {
        LinkEvent::Admin(question, reply) => {
            assert_eq!(question, "status");
            reply.send(Bytes::from_static(b"well"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(asked.await.unwrap().unwrap(), "well");
    let asking = us.clone();
    let asked = tokio::spawn(async move { asking.request_admin(Bytes::new(), PATIENCE).await });
    drop(next(&mut eu_events).await);
    assert!(matches!(asked.await.unwrap(), Err(LinkError::Closed { .. })));
    let asking = us.clone();
    let asked = tokio::spawn(async move { asking.request_admin(Bytes::new(), Duration::from_millis(1)).await });
    let unanswered = next(&mut eu_events).await;
    assert!(matches!(asked.await.unwrap(), Err(LinkError::NoAnswer { .. })));
    drop(unanswered);

    // A forwarded session.
    let (mut send, mut recv) = us.open_forward().await.unwrap();
    send.write_all(b"select 1").await.unwrap();
    send.finish().unwrap();
    match next(&mut eu_events).await {
        LinkEvent::Forward(mut echo, mut from) => {
            let got = within(from.read_to_end(100)).await.unwrap();
            echo.write_all(&got).await.unwrap();
            echo.finish().unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(within(recv.read_to_end(100)).await.unwrap(), b"select 1");

    assert!(us.stats().sent_bytes > 2_000_000 && eu.stats().received_bytes > 2_000_000);
    assert!(us.rtt() > Duration::ZERO);
    us.close("enough for today");
    assert_eq!(closed(&mut us_events).await, "enough for today");
    assert_eq!(closed(&mut eu_events).await, "us closed the link: enough for today");
    assert!(matches!(us.open_forward().await, Err(LinkError::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_behind_holds_up_the_sender_and_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let (_us, _eu, (us, _us_events), (_eu_link, mut eu_events)) = linked(tmp.path()).await;
    // More than the events and the readers of the receiving side hold; nobody takes any of it for now.
    const BATCHES: usize = 400;
    for i in 0..BATCHES {
        let mut batch = vec![0; 64 << 10];
        batch[..8].copy_from_slice(&(i as u64).to_le_bytes());
        us.send_batch(vec![Bytes::from(batch)]);
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < BATCHES {
        match next(&mut eu_events).await {
            LinkEvent::Batch(batch) => assert!(seen.insert(u64::from_le_bytes(batch[..8].try_into().unwrap()))),
            other => panic!("{other:?}"),
        }
    }
    drop(eu_events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_receiver_closes_the_link() {
    let tmp = tempfile::tempdir().unwrap();
    let (_us, _eu, (_link, mut us_events), (_eu_link, eu_events)) = linked(tmp.path()).await;
    drop(eu_events);
    assert_eq!(closed(&mut us_events).await, "eu closed the link: this side has no more use for the link");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_asks_with_the_certificate_of_the_region_itself() {
    let tmp = tempfile::tempdir().unwrap();
    let own = material(tmp.path(), "us");
    let mut us = site(Arc::clone(&own));
    let addr = us.addr.clone();
    let asked = tokio::spawn(async move {
        admin_once(own, &addr, &region("us"), Bytes::from_static(b"lag"), PATIENCE).await.map_err(|e| e.to_string())
    });
    match within(us.arrivals.recv()).await {
        Some(Arrival::Admin { from, request, reply }) => {
            assert_eq!((from.as_str(), &request[..]), ("us", &b"lag"[..]));
            reply.send(Bytes::from(vec![1; MESSAGE_BYTES_MAX]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(asked.await.unwrap().unwrap().len(), MESSAGE_BYTES_MAX);

    // But it gets no link.
    let refused = within(dial(&us.quic, &region("us"), &us.addr)).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { kind: RefusalKind::Protocol, .. }), "{refused}");
}

/// `stranger` dials `expected` at a good site `eu`; both sides must count `kind`, and the dialler must read `words`.
async fn refusal(good: &Path, stranger: Arc<Material>, expected: &str, kind: RefusalKind, words: &str) {
    let eu = site(material(good, "eu"));
    let stranger = site(stranger);
    let refused = within(dial(&stranger.quic, &region(expected), &eu.addr)).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { kind: k, .. } if k == kind), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains(words) && text.contains(kind.explanation()), "{text}");
    stranger.refused(kind).await;
    eu.refused(kind).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_is_refused() {
    let (good, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The same cluster name, so that the CAs differ in their key alone.
    refusal(good.path(), material(other.path(), "us"), "eu", RefusalKind::WrongCa, "no connection with eu").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_of_another_cluster_is_refused() {
    let (good, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    refusal(good.path(), material_of(other.path(), "moon", "us", unix_now()), "eu", RefusalKind::WrongCa, "different CAs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_member_is_refused() {
    let good = tempfile::tempdir().unwrap();
    refusal(good.path(), material(good.path(), "mars"), "eu", RefusalKind::UnknownRegion, "mars.sun.parhelion.internal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_at_the_address_of_another_is_refused() {
    let good = tempfile::tempdir().unwrap();
    refusal(good.path(), material(good.path(), "us"), "ap", RefusalKind::WrongRegion, "another region answered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_refused_from_both_sides() {
    let good = tempfile::tempdir().unwrap();
    // The CA of 400 days ago is still good, the certificate of a year is not.
    let old = material_of(good.path(), "sun", "us", UnixMicros(unix_now().0 - 400 * DAY_US));
    refusal(good.path(), Arc::clone(&old), "eu", RefusalKind::Expired, "not valid now").await;
    // Dialled, it is the dialler who refuses.
    let old = site(old);
    let eu = site(material(good.path(), "eu"));
    let refused = within(dial(&eu.quic, &region("us"), &old.addr)).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { kind: RefusalKind::Expired, .. }), "{refused:?}");
    eu.refused(RefusalKind::Expired).await;
    old.refused(RefusalKind::Expired).await;
}

/// A certificate by hand, from the CA in `dir`: what `parhelion certs` would not make.
fn odd_certificate(dir: &Path, name: &str) -> (rustls::pki_types::CertificateDer<'static>, rcgen::KeyPair) {
    let ca_key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(dir.join("ca.key")).unwrap()).unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(rcgen::DnType::OrganizationName, "Parhelion");
    ca.distinguished_name.push(rcgen::DnType::CommonName, "CA of the global cluster sun");
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    (params.signed_by(&key, &issuer).unwrap().der().clone(), key)
}

/// A QUIC endpoint with a configuration of its own, dialling `eu`.
async fn raw_dial(config: rustls::ClientConfig, addr: &str) -> quinn::Connection {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(crypto));
    within(endpoint.connect_with(client, addr.parse().unwrap(), &dns_name(&cluster("sun"), &region("eu"))).unwrap()).await.unwrap()
}

fn raw_config(dir: &Path) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    rustls::ClientConfig::builder_with_provider(parhelion::io::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_our_ca_for_another_cluster_is_refused() {
    let good = tempfile::tempdir().unwrap();
    let eu = site(material(good.path(), "eu"));
    let (cert, key) = odd_certificate(good.path(), "us.moon.parhelion.internal");
    let mut config = raw_config(good.path()).with_client_auth_cert(vec![cert], key.into()).unwrap();
    config.alpn_protocols = vec![b"parhelion/1".to_vec()];
    let connection = raw_dial(config, &eu.addr).await;
    let error = within(connection.closed()).await.to_string();
    assert!(error.contains("us.moon.parhelion.internal"), "{error}");
    eu.refused(RefusalKind::WrongCluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_nobody_enters() {
    let good = tempfile::tempdir().unwrap();
    let eu = site(material(good.path(), "eu"));
    let mut config = raw_config(good.path()).with_no_client_auth();
    config.alpn_protocols = vec![b"parhelion/1".to_vec()];
    let connection = raw_dial(config, &eu.addr).await;
    within(connection.closed()).await;
    eu.refused(RefusalKind::NoCertificate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_the_protocol_is_refused() {
    let good = tempfile::tempdir().unwrap();
    let eu = site(material(good.path(), "eu"));
    let mut config = (*material(good.path(), "us").quic_client()).clone();
    config.alpn_protocols = vec![b"parhelion/9".to_vec()];
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(crypto));
    let name = dns_name(&cluster("sun"), &region("eu"));
    within(endpoint.connect_with(client, eu.addr.parse().unwrap(), &name).unwrap()).await.unwrap_err();
    eu.refused(RefusalKind::Protocol).await;
}

/// A member that has a control stream at `eu` and then does as it likes.
async fn rogue(dir: &Path, eu: &mut Site) -> (quinn::Connection, quinn::SendStream, mpsc::Receiver<LinkEvent>) {
    let connection = raw_dial((*material(dir, "us").quic_client()).clone(), &eu.addr).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(b"C").await.unwrap();
    let mut accepted = [0];
    within(recv.read_exact(&mut accepted)).await.unwrap();
    let (_link, events) = eu.link().await;
    (connection, send, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_that_are_not_allowed_end_the_link_with_a_reason() {
    let tmp = tempfile::tempdir().unwrap();
    let mut eu = site(material(tmp.path(), "eu"));

    let (connection, mut control, mut events) = rogue(tmp.path(), &mut eu).await;
    control.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let reason = closed(&mut events).await;
    assert_eq!(reason, "bad control stream: a message of 4294967295 bytes, and at most 1048576 are taken");
    let told = within(connection.closed()).await.to_string();
    assert!(told.contains("4294967295"), "{told}");

    let (connection, _control, mut events) = rogue(tmp.path(), &mut eu).await;
    let mut batch = connection.open_uni().await.unwrap();
    let mut big = vec![0; BATCH_BYTES_MAX + 2];
    big[0] = b'B';
    // The receiver may end the link before all is written.
    let _ = batch.write_all(&big).await;
    let reason = closed(&mut events).await;
    assert!(reason.contains("a batch is longer than"), "{reason}");

    let (connection, _control, mut events) = rogue(tmp.path(), &mut eu).await;
    let (mut question, _answer) = connection.open_bi().await.unwrap();
    question.write_all(b"A\xff\xff\xff\x7f").await.unwrap();
    let reason = closed(&mut events).await;
    assert!(reason.contains("bad question: a message of 2147483647 bytes"), "{reason}");

    for nonsense in [&b"C"[..], &b"\x16\x03\x01"[..]] {
        let (connection, _control, mut events) = rogue(tmp.path(), &mut eu).await;
        let (mut stream, _) = connection.open_bi().await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        let reason = closed(&mut events).await;
        assert!(reason.contains("control stream") || reason.contains("unknown kind 0x16"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_does_no_harm() {
    let tmp = tempfile::tempdir().unwrap();
    let mut eu = site(material(tmp.path(), "eu"));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut prng = parhelion::base::Prng::new(1);
    for i in 0..2000u64 {
        let length = usize::try_from(prng.below(1400)).unwrap();
        let mut packet: Vec<u8> = (0..length).map(|_| prng.next_u64().to_le_bytes()[0]).collect();
        // Some look like the beginning of a handshake of version 1.
        if i % 3 == 0 && length > 6 {
            packet[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        // The kernel may drop it, as networks do.
        let _ = socket.send_to(&packet, &eu.addr);
    }
    let us = site(material(tmp.path(), "us"));
    let (link, _events) = within(dial(&us.quic, &region("eu"), &eu.addr)).await.unwrap();
    let (_eu_link, mut at_eu) = eu.link().await;
    link.send_control(Bytes::from_static(b"still here"));
    assert!(matches!(next(&mut at_eu).await, LinkEvent::Control(got) if got == "still here"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_and_an_address_of_others_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let us = site(material(tmp.path(), "us"));
    let members = [region("us"), region("eu")];
    let bind = |addr: SocketAddr| Quic::bind(addr, material(tmp.path(), "eu"), &members, &QuicSettings::default()).map(|_| ()).unwrap_err();
    let taken = bind(us.quic.local_addr().unwrap());
    assert!(matches!(taken, QuicError::InUse { .. }), "{taken:?}");
    assert!(taken.to_string().contains(&us.addr) && taken.to_string().contains("change listen.quic"), "{taken}");
    let not_ours = bind("192.0.2.1:7400".parse().unwrap());
    assert!(matches!(not_ours, QuicError::NotHere { .. }), "{not_ours:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_leads_nowhere_is_an_error_and_not_a_wait() {
    let tmp = tempfile::tempdir().unwrap();
    let us = site(material(tmp.path(), "us"));
    let nowhere = within(dial(&us.quic, &region("eu"), "no-such-host.invalid:7400")).await.unwrap_err();
    assert!(matches!(nowhere, LinkError::Address { .. }), "{nowhere:?}");
    let nowhere = within(dial(&us.quic, &region("eu"), "127.0.0.1")).await.unwrap_err();
    assert!(nowhere.to_string().contains("correct its [[member]] quic"), "{nowhere}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_killed_and_came_back_is_noticed_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let us = site(material(tmp.path(), "us"));
    // `eu` lives in a runtime of its own, which dies without a goodbye.
    let eu_material = material(tmp.path(), "eu");
    let (addr_tx, addr_rx) = tokio::sync::oneshot::channel();
    let (die_tx, die_rx) = tokio::sync::oneshot::channel::<()>();
    let first = Arc::clone(&eu_material);
    let life = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move {
            let eu = site(first);
            addr_tx.send(eu.addr.clone()).unwrap();
            die_rx.await.unwrap();
        });
        runtime.shutdown_background();
    });
    let addr = within(addr_rx).await.unwrap();
    let (link, mut events) = within(dial(&us.quic, &region("eu"), &addr)).await.unwrap();
    die_tx.send(()).unwrap();
    life.join().unwrap();
    let addr: SocketAddr = addr.parse().unwrap();
    // The old socket may take a moment to be closed by the dying runtime.
    let _again = within(async {
        loop {
            match Quic::bind(addr, Arc::clone(&eu_material), &[region("us"), region("eu")], &QuicSettings::default()) {
                Ok(quic) => break quic,
                Err(QuicError::InUse { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    })
    .await;
    link.send_control(Bytes::from(vec![0; 2000]));
    assert_eq!(closed(&mut events).await, "eu has restarted");
}
