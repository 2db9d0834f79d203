//! Control links between members over real sockets: who gets one, what travels, what nonsense does, and how soon the dead are missed.

use bytes::Bytes;
use parhelion::base::{ClusterName, RegionName, UnixMicros};
use parhelion::io::clock::{self, unix_now};
use parhelion::io::control_link::{CONTROL_MESSAGE_BYTES_MAX, ControlLinks, Peer};
use parhelion::io::link::{Arrival, LinkError, dial, serve};
use parhelion::io::quic::{Quic, QuicSettings, RefusalKind};
use parhelion::io::tls::{Material, Subject};
use parhelion::ops::certs::{CertOptions, create};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

fn name(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn material_of(dir: &Path, cluster: &str, who: &str) -> Arc<Material> {
    let cluster = ClusterName::new(cluster).unwrap();
    let subject = subject(who);
    let (regions, witness) = if subject == Subject::Witness { (vec![], Some(name(who))) } else { (vec![name(who)], None) };
    let now: UnixMicros = unix_now();
    create(dir, &cluster, &regions, &CertOptions { witness, ..CertOptions::new(now) }).unwrap();
    Arc::new(Material::load_as(subject, dir, &cluster, &name(who), Path::new("x.toml"), now).unwrap())
}

fn subject(who: &str) -> Subject {
    if who == "witness" { Subject::Witness } else { Subject::Region }
}

fn peer(who: &str, addr: &str) -> Peer {
    Peer { name: name(who), subject: subject(who), addr: addr.to_owned() }
}

/// A member that serves and knows `us`, `eu` and `witness`, with links to `peers`.
struct Site {
    quic: Quic,
    addr: String,
    links: Arc<OnceLock<ControlLinks>>,
    messages: mpsc::UnboundedReceiver<(RegionName, Bytes)>,
    tx: mpsc::UnboundedSender<(RegionName, Bytes)>,
    others: mpsc::UnboundedReceiver<Arrival>,
}

fn site_at(addr: SocketAddr, material: Arc<Material>) -> Site {
    let quic = Quic::bind(addr, material, &[name("us"), name("eu")], &QuicSettings::default()).unwrap().with_witness(Some(name("witness")));
    let addr = quic.local_addr().unwrap().to_string();
    let links: Arc<OnceLock<ControlLinks>> = Arc::default();
    let (tx, messages) = mpsc::unbounded_channel();
    let (others_tx, others) = mpsc::unbounded_channel();
    let to = Arc::clone(&links);
    tokio::spawn(serve(quic.clone(), move |arrival| match arrival {
        Arrival::Control(dialled) => to.get().map_or((), |links| links.arrived(dialled)),
        other => drop(others_tx.send(other)),
    }));
    Site { quic, addr, links, messages, tx, others }
}

fn site(material: Arc<Material>) -> Site {
    site_at("127.0.0.1:0".parse().unwrap(), material)
}

impl Site {
    fn link_with(&self, peers: Vec<Peer>) -> &ControlLinks {
        let tx = self.tx.clone();
        let links = ControlLinks::start(&self.quic, peers, move |from, message| {
            if &message[..] == b"unreadable" {
                return Err("that is no control message".to_owned());
            }
            drop(tx.send((from.clone(), message)));
            Ok(())
        });
        self.links.set(links).ok().expect("once");
        self.links.get().unwrap()
    }

    fn links(&self) -> &ControlLinks {
        self.links.get().unwrap()
    }

    fn trouble(&self, with: &str) -> Option<String> {
        self.links().view().into_iter().find(|p| p.name == name(with)).unwrap().trouble
    }

    fn is_up(&self, with: &str) -> bool {
        self.links().view().iter().any(|p| p.name == name(with) && p.up)
    }

    async fn up(&self, with: &str) {
        within(async {
            while !self.is_up(with) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    async fn refused(&self, kind: RefusalKind) {
        within(async {
            while self.quic.refusals().get(kind) == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Repeats `message` to `to` until it came to `at`, as the protocol above does.
    async fn reaches(&self, to: &str, at: &mut Site, message: &'static [u8]) {
        within(async {
            loop {
                self.links().send(&name(to), Bytes::from_static(message));
                while let Ok(Some((_, got))) = tokio::time::timeout(Duration::from_millis(20), at.messages.recv()).await {
                    if got == message {
                        return;
                    }
                }
            }
        })
        .await;
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing happened")
}

/// A witness and two regions, all linked with all.
async fn three(dir: &Path) -> (Site, Site, Site) {
    let (us, eu, witness) =
        (site(material_of(dir, "sun", "us")), site(material_of(dir, "sun", "eu")), site(material_of(dir, "sun", "witness")));
    us.link_with(vec![peer("eu", &eu.addr), peer("witness", &witness.addr)]);
    eu.link_with(vec![peer("us", &us.addr), peer("witness", &witness.addr)]);
    witness.link_with(vec![peer("us", &us.addr), peer("eu", &eu.addr)]);
    for (site, with) in [(&us, "eu"), (&us, "witness"), (&eu, "us"), (&eu, "witness"), (&witness, "us"), (&witness, "eu")] {
        site.up(with).await;
    }
    (us, eu, witness)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_the_witness_exchange_messages_and_say_who_they_are() {
    let tmp = tempfile::tempdir().unwrap();
    let (mut us, mut eu, mut witness) = three(tmp.path()).await;
    us.reaches("eu", &mut eu, b"from us").await;
    eu.reaches("us", &mut us, b"from eu").await;
    witness.links().send(&name("us"), Bytes::from_static(b"granted"));
    assert_eq!(within(us.messages.recv()).await.unwrap(), (name("witness"), Bytes::from_static(b"granted")));
    // The largest, and an empty one: in no order.
    us.links().send(&name("witness"), Bytes::from(vec![7; CONTROL_MESSAGE_BYTES_MAX]));
    us.links().send(&name("witness"), Bytes::new());
    let mut lengths = [within(witness.messages.recv()).await.unwrap().1.len(), within(witness.messages.recv()).await.unwrap().1.len()];
    lengths.sort_unstable();
    assert_eq!(lengths, [0, CONTROL_MESSAGE_BYTES_MAX]);
    let view = us.links().view();
    assert_eq!(
        view.iter().map(|p| (p.name.as_str(), p.subject)).collect::<Vec<_>>(),
        [("eu", Subject::Region), ("witness", Subject::Witness)]
    );
    assert!(view.iter().all(|p| p.up && p.trouble.is_none() && p.rtt.is_some()));
    // To somebody unknown: nothing happens.
    us.links().send(&name("mars"), Bytes::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_gets_no_log_and_gives_none() {
    let tmp = tempfile::tempdir().unwrap();
    let mut us = site(material_of(tmp.path(), "sun", "us"));
    let witness = site(material_of(tmp.path(), "sun", "witness"));
    let refused = within(dial(&witness.quic, &name("us"), &us.addr)).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { kind: RefusalKind::WrongRole, .. }), "{refused}");
    us.refused(RefusalKind::WrongRole).await;
    // Who takes the witness for a region does not even know its certificate.
    let refused = within(dial(&us.quic, &name("witness"), &witness.addr)).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { kind: RefusalKind::WrongRegion, .. }), "{refused}");
    assert!(us.others.try_recv().is_err(), "nothing arrived");
}

/// `stranger` dials `expected` at a good `eu`; both sides count `kind`, and the stranger knows why it has no link.
async fn refusal(good: &Path, stranger: Arc<Material>, expected: &str, kind: RefusalKind) {
    let eu = site(material_of(good, "sun", "eu"));
    eu.link_with(vec![peer("us", "127.0.0.1:9")]);
    let stranger = site(stranger);
    stranger.link_with(vec![peer(expected, &eu.addr)]);
    stranger.refused(kind).await;
    eu.refused(kind).await;
    within(async {
        while !stranger.trouble(expected).is_some_and(|t| t.contains(kind.explanation())) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(!eu.is_up("us") && !stranger.is_up(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_counted() {
    let (good, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    refusal(good.path(), material_of(other.path(), "sun", "us"), "eu", RefusalKind::WrongCa).await;
    refusal(good.path(), material_of(good.path(), "sun", "mars"), "eu", RefusalKind::UnknownRegion).await;
    refusal(good.path(), material_of(good.path(), "sun", "us"), "witness", RefusalKind::WrongRegion).await;
    let moon = tempfile::tempdir().unwrap();
    refusal(good.path(), material_of(moon.path(), "moon", "us"), "eu", RefusalKind::WrongCa).await;
}

/// `us` with a control link at `eu`, by hand.
async fn rogue(dir: &Path, eu: &Site) -> quinn::Connection {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from((*material_of(dir, "sun", "us").quic_client()).clone()).unwrap();
    let name = parhelion::io::tls::dns_name(&ClusterName::new("sun").unwrap(), &name("eu"));
    let client = quinn::ClientConfig::new(Arc::new(crypto));
    let connection = within(endpoint.connect_with(client, eu.addr.parse().unwrap(), &name).unwrap()).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(b"V").await.unwrap();
    let mut answer = [0];
    within(recv.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"V");
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_ends_its_own_connection_and_no_other() {
    let tmp = tempfile::tempdir().unwrap();
    let (us, mut eu, witness) = three(tmp.path()).await;
    us.links().stop();
    for (what, said) in [
        (&b"X and more"[..], "unknown kind 0x58"),
        (&[b'M'; CONTROL_MESSAGE_BYTES_MAX + 2][..], "longer than"),
        (&b"Munreadable"[..], "no control message"),
    ] {
        let connection = rogue(tmp.path(), &eu).await;
        let mut stream = connection.open_uni().await.unwrap();
        // It may be ended before all is written.
        let _ = stream.write_all(what).await;
        let _ = stream.finish();
        let told = within(connection.closed()).await.to_string();
        assert!(told.contains(said), "{told}");
    }
    let connection = rogue(tmp.path(), &eu).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let _ = send.write_all(b"F").await;
    assert!(within(connection.closed()).await.to_string().contains("two-way stream"));
    assert_eq!(eu.quic.refusals().get(RefusalKind::Protocol), 4);
    // Streams that end in the middle are a loss and no more.
    let connection = rogue(tmp.path(), &eu).await;
    drop(connection.open_uni().await.unwrap());
    let mut whole = connection.open_uni().await.unwrap();
    whole.write_all(b"Mwhole").await.unwrap();
    whole.finish().unwrap();
    assert_eq!(within(eu.messages.recv()).await.unwrap(), (name("us"), Bytes::from_static(b"whole")));
    witness.reaches("eu", &mut eu, b"still here").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_at_its_address_is_linked_again() {
    let tmp = tempfile::tempdir().unwrap();
    let mut us = site(material_of(tmp.path(), "sun", "us"));
    let eu = site(material_of(tmp.path(), "sun", "eu"));
    us.link_with(vec![peer("eu", &eu.addr)]);
    eu.link_with(vec![peer("us", &us.addr)]);
    us.up("eu").await;
    let addr: SocketAddr = eu.addr.parse().unwrap();
    eu.quic.close("a restart").await;
    let Site { quic, links, .. } = eu;
    links.get().unwrap().stop();
    drop((quic, links));
    within(async {
        while us.is_up("eu") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    us.links().send(&name("eu"), Bytes::from_static(b"to nobody"));
    assert!(us.links().view()[0].dropped >= 1);
    let mut again = within(async {
        loop {
            // The old socket goes when the last task that has it does.
            let material = material_of(tmp.path(), "sun", "eu");
            if let Ok(quic) = Quic::bind(addr, Arc::clone(&material), &[name("us")], &QuicSettings::default()) {
                quic.close("").await;
                drop(quic);
                tokio::time::sleep(Duration::from_millis(50)).await;
                return site_at(addr, material);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    again.link_with(vec![peer("us", &us.addr)]);
    us.reaches("eu", &mut again, b"hello again").await;
    again.reaches("us", &mut us, b"hello back").await;
}

/// Passes packets both ways until it is told to pass none, as when a machine loses its power.
async fn relay(target: SocketAddr) -> (String, Arc<AtomicBool>) {
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = front.local_addr().unwrap().to_string();
    let cut = Arc::new(AtomicBool::new(false));
    let is_cut = Arc::clone(&cut);
    tokio::spawn(async move {
        let mut dialler = None;
        let (mut there, mut here) = (vec![0; 2048], vec![0; 2048]);
        loop {
            tokio::select! {
                Ok((n, from)) = front.recv_from(&mut there) => {
                    dialler = Some(from);
                    if !is_cut.load(Ordering::Relaxed) { let _ = back.send_to(&there[..n], target).await; }
                }
                Ok((n, _)) = back.recv_from(&mut here) => {
                    if let (false, Some(dialler)) = (is_cut.load(Ordering::Relaxed), dialler) { let _ = front.send_to(&here[..n], dialler).await; }
                }
            }
        }
    });
    (addr, cut)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_missed_from_both_ends_and_found_again() {
    let tmp = tempfile::tempdir().unwrap();
    let us = site(material_of(tmp.path(), "sun", "us"));
    let mut eu = site(material_of(tmp.path(), "sun", "eu"));
    let (addr, cut) = relay(eu.quic.local_addr().unwrap()).await;
    us.link_with(vec![peer("eu", &addr)]);
    // It never gets through by itself: the link is the one that `us` dials.
    eu.link_with(vec![peer("us", "127.0.0.1:9")]);
    us.up("eu").await;
    eu.up("us").await;
    cut.store(true, Ordering::Relaxed);
    let began = clock::now();
    within(async {
        while us.is_up("eu") || eu.is_up("us") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let took = clock::now().since(began);
    assert!(took < Duration::from_secs(5), "{took:?}, and about two seconds are meant");
    assert!(us.trouble("eu").unwrap().contains("eu"));
    cut.store(false, Ordering::Relaxed);
    us.reaches("eu", &mut eu, b"again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sending_never_waits_and_what_is_too_much_is_dropped() {
    let tmp = tempfile::tempdir().unwrap();
    let (us, eu, _witness) = three(tmp.path()).await;
    let began = clock::now();
    for _ in 0..20_000 {
        us.links().send(&name("eu"), Bytes::from_static(&[1; 1000]));
    }
    assert!(clock::now().since(began) < Duration::from_secs(5));
    within(async {
        loop {
            let view = us.links().view().into_iter().find(|p| p.name == name("eu")).unwrap();
            if view.sent + view.dropped >= 20_000 {
                assert!(view.dropped > 0, "{view:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(eu.is_up("us"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_is_left_where_both_sides_dialled() {
    let tmp = tempfile::tempdir().unwrap();
    let mut us = site(material_of(tmp.path(), "sun", "us"));
    let mut eu = site(material_of(tmp.path(), "sun", "eu"));
    us.link_with(vec![peer("eu", &eu.addr)]);
    eu.link_with(vec![peer("us", &us.addr)]);
    us.up("eu").await;
    // `us` dials although it has a link, as if both had begun in the same moment: its own is the one that goes.
    let extra = rogue(tmp.path(), &eu).await;
    us.reaches("eu", &mut eu, b"one").await;
    eu.links().send(&name("us"), Bytes::from_static(b"on the newest"));
    let mut stream = within(extra.accept_uni()).await.unwrap();
    assert_eq!(within(stream.read_to_end(100)).await.unwrap(), b"Mon the newest");
    extra.close(0u32.into(), b"");
    eu.reaches("us", &mut us, b"on the other again").await;
}
