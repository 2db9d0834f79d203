//! The emulator over real sockets on loopback, in one process and so on one clock.

use super::*;
use crate::base::{Instant, RegionName};
use crate::io::clock;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn name(s: &str) -> RegionName {
    RegionName::new(s).unwrap()
}

fn settings(s: &str) -> Settings {
    s.parse().unwrap()
}

/// Regions a and b: their real sockets, and the emulator between them.
struct World {
    a: UdpSocket,
    b: UdpSocket,
    emulator: Emulator,
}

impl World {
    fn new(there: &str, back: &str) -> World {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            // Whole bursts wait here, packet by packet, until the test reads them.
            socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
            // Only a broken emulator runs into this.
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket
        };
        let (a, b) = (socket(), socket());
        let emulator = Emulator::start(Options {
            regions: vec![name("a"), name("b")],
            targets: BTreeMap::from([(name("a"), a.local_addr().unwrap()), (name("b"), b.local_addr().unwrap())]),
            settings: BTreeMap::from([((name("a"), name("b")), settings(there)), ((name("b"), name("a")), settings(back))]),
            seed: 1,
            ..Options::default()
        })
        .unwrap();
        World { a, b, emulator }
    }

    fn relay(&self) -> SocketAddr {
        self.emulator.relay_addr(&name("a"), &name("b")).unwrap()
    }

    fn status(&self, from: &str) -> DirectionStatus {
        self.emulator.snapshot().into_iter().find(|d| d.from == name(from)).unwrap()
    }

    /// As [`World::status`], once nothing is in flight: a packet is counted just after it was sent.
    fn settled(&self, from: &str) -> DirectionStatus {
        loop {
            let status = self.status(from);
            if status.counts.in_flight_packets == 0 {
                return status;
            }
            std::thread::yield_now();
        }
    }

    fn set(&self, from: &str, to: &str, s: &str) {
        self.emulator.set(&name(from), &name(to), settings(s)).unwrap();
    }

    /// One packet from a to b and one back; how long each took.
    fn ping(&self, n: u32) -> (Duration, Duration) {
        let (bytes, mut buffer) = (n.to_le_bytes(), [0; 64]);
        let sent = clock::now();
        self.a.send_to(&bytes, self.relay()).unwrap();
        let (len, from) = self.b.recv_from(&mut buffer).unwrap();
        let there = clock::now().since(sent);
        assert_eq!(&buffer[..len], bytes);
        let sent = clock::now();
        self.b.send_to(&bytes, from).unwrap();
        let (len, from) = self.a.recv_from(&mut buffer).unwrap();
        let back = clock::now().since(sent);
        assert_eq!((&buffer[..len], from), (&bytes[..], self.relay()));
        (there, back)
    }

    fn pings(&self, n: u32) -> (Vec<Duration>, Vec<Duration>) {
        let (mut there, mut back): (Vec<_>, Vec<_>) = (0..n).map(|i| self.ping(i)).unzip();
        there.sort();
        back.sort();
        (there, back)
    }
}

#[test]
fn a_delay_one_way_adds_exactly_that_in_that_direction_only() {
    for (there_ms, back_ms) in [(20, 0), (0, 20), (3, 7)] {
        let world = World::new(&format!("delay={there_ms}ms"), &format!("delay={back_ms}ms"));
        let (there, back) = world.pings(50);
        for (way, took, ms) in [("a->b", there, there_ms), ("b->a", back, back_ms)] {
            let delay = Duration::from_millis(ms);
            let (least, median, most) = (took[0], took[took.len() / 2], took[took.len() - 1]);
            println!("{way} set {delay:?}: least {least:?}, median {median:?}, most {most:?}");
            assert!(least >= delay, "{way}: {least:?} is earlier than {delay:?}");
            // Loose, for a machine with other things to do.
            assert!(median <= delay + Duration::from_millis(5), "{way}: {median:?} is far later than {delay:?}");
        }
        let late = if there_ms > 0 { world.settled("a") } else { world.settled("b") };
        println!("late by {:.0} us on average, {:.0} us at most", late.late_mean_us, late.late_max_us);
    }
}

#[test]
fn settings_change_while_it_runs_and_a_blackhole_takes_everything() {
    let world = World::new("none", "none");
    world.ping(1);
    world.set("a", "b", "blackhole=on");
    for _ in 0..10 {
        world.a.send_to(b"lost", world.relay()).unwrap();
    }
    // Seen and dropped; the direction back still works, which the next ping shows.
    while world.status("a").counts.dropped_blackhole < 10 {
        std::thread::yield_now();
    }
    world.set("a", "b", "delay=30ms");
    let (there, _) = world.ping(2);
    assert!(there >= Duration::from_millis(30), "{there:?}");
    world.set("a", "b", "none");
    world.ping(3);
    let a = world.settled("a");
    assert_eq!((a.counts.packets, a.counts.delivered, a.counts.dropped_blackhole), (13, 3, 10));
    assert_eq!(world.emulator.get(&name("a"), &name("b")).unwrap(), Settings::default());
}

/// Sends `bursts` of 40 numbered packets of 1200 bytes, each with one system call where the kernel can, and a shorter last one.
fn send_bursts(from: &UdpSocket, to: SocketAddr, bursts: u32) -> u32 {
    const PACKET_BYTES: usize = 1200;
    let state = quinn_udp::UdpSocketState::new(from.into()).unwrap();
    let mut n = 0_u32;
    for _ in 0..bursts {
        let mut bytes = Vec::new();
        for i in 0..40 {
            let len = if i == 39 { 500 } else { PACKET_BYTES };
            bytes.extend(std::iter::repeat_n(n.to_le_bytes(), len / 4).flatten());
            n += 1;
        }
        let step = PACKET_BYTES * if state.max_gso_segments() >= 40 { 40 } else { 1 };
        for contents in bytes.chunks(step) {
            let transmit = quinn_udp::Transmit { destination: to, ecn: None, contents, segment_size: Some(PACKET_BYTES), src_ip: None };
            state.try_send(from.into(), &transmit).unwrap();
        }
    }
    n
}

/// Receives `count` numbered packets, checks every byte, and returns the numbers in order of arrival.
fn receive_numbers(socket: &UdpSocket, count: usize) -> Vec<u32> {
    let mut buffer = [0; 2048];
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let (len, _) = socket.recv_from(&mut buffer).unwrap();
        let number = u32::from_le_bytes(buffer[..4].try_into().unwrap());
        assert_eq!(len, if number % 40 == 39 { 500 } else { 1200 });
        assert!(buffer[..len].chunks(4).all(|c| c == number.to_le_bytes()));
        numbers.push(number);
    }
    numbers
}

#[test]
fn bursts_arrive_whole_and_in_order() {
    // Directly, through the heap, spaced by a rate, and with a jitter that gives every packet its own time.
    for there in ["none", "delay=5ms", "rate=800mbit queue=10MB", "delay=2ms jitter=3ms"] {
        let world = World::new(there, "none");
        let sent = send_bursts(&world.a, world.relay(), 3);
        assert_eq!(receive_numbers(&world.b, sent as usize), (0..sent).collect::<Vec<_>>(), "{there}");
    }
}

#[test]
fn packets_of_many_sizes_keep_their_bounds() {
    // Due at the same time, so that they leave together: a burst must not glue a small one to its neighbour.
    let world = World::new("delay=20ms", "none");
    let state = quinn_udp::UdpSocketState::new((&world.a).into()).unwrap();
    world.a.set_nonblocking(false).unwrap();
    let mut expected = Vec::new();
    for (n, (packets, size)) in
        [(1, 1200), (3, 100), (2, 1200), (1, 50), (1, 50), (1, 0), (4, 300), (1, 1500), (1, 9)].into_iter().enumerate()
    {
        let contents = vec![n as u8; packets * size];
        for contents in if state.max_gso_segments() >= 4 { vec![&contents[..]] } else { contents.chunks(size.max(1)).collect() } {
            let transmit =
                quinn_udp::Transmit { destination: world.relay(), ecn: None, contents, segment_size: Some(size.max(1)), src_ip: None };
            state.try_send((&world.a).into(), &transmit).unwrap();
        }
        expected.extend(std::iter::repeat_n(vec![n as u8; size], packets));
    }
    let mut buffer = [0; 2048];
    for packet in expected {
        let (len, _) = world.b.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], packet);
    }
}

#[test]
fn bursts_lose_and_reorder_packet_by_packet() {
    let world = World::new("delay=5ms loss=20%", "none");
    let sent = send_bursts(&world.a, world.relay(), 3);
    while world.status("a").counts.packets < u64::from(sent) {
        std::thread::yield_now();
    }
    let lost = world.status("a").counts.dropped_loss;
    assert!((5..=50).contains(&lost), "{lost}");
    let arrived = receive_numbers(&world.b, sent as usize - lost as usize);
    assert!(arrived.is_sorted());

    let world = World::new("delay=5ms reorder=10% duplicate=10%", "none");
    let sent = send_bursts(&world.a, world.relay(), 3);
    while world.status("a").counts.packets < u64::from(sent) + world.status("a").counts.duplicated {
        std::thread::yield_now();
    }
    let counts = world.status("a").counts;
    let arrived = receive_numbers(&world.b, sent as usize + counts.duplicated as usize);
    assert!(counts.reordered > 0 && counts.duplicated > 0 && !arrived.is_sorted());
    assert_eq!(arrived.into_iter().collect::<BTreeSet<_>>().len(), sent as usize);
}

#[test]
fn an_empty_datagram_passes() {
    for there in ["none", "delay=1ms"] {
        let world = World::new(there, "none");
        world.a.send_to(b"", world.relay()).unwrap();
        assert_eq!(world.b.recv_from(&mut [0; 8]).unwrap().0, 0);
    }
}

#[test]
fn several_senders_have_their_own_way_back() {
    let world = World::new("none", "delay=1ms");
    let others: Vec<UdpSocket> = (0..20).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (i, other) in others.iter().enumerate() {
        other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        other.send_to(&[i as u8], world.relay()).unwrap();
        let mut buffer = [0; 8];
        let (_, from) = world.b.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[0], i as u8);
        // A stranger at the upstream socket is not the region.
        world.a.send_to(b"x", from).unwrap();
        world.b.send_to(&[buffer[0] + 100], from).unwrap();
        assert_eq!(other.recv_from(&mut buffer).unwrap().1, world.relay());
        assert_eq!(buffer[0], i as u8 + 100);
    }
    world.ping(1);
}

#[test]
fn relay_ports_are_kept_across_a_restart_unless_taken() {
    let start = |ports| {
        Emulator::start(Options {
            regions: vec![name("a"), name("b")],
            targets: [("a", 1), ("b", 2)].map(|(n, port)| (name(n), SocketAddr::from(([127, 0, 0, 1], port)))).into(),
            ports,
            ..Options::default()
        })
        .unwrap()
    };
    let pair = (name("a"), name("b"));
    let first = start(BTreeMap::new());
    let port = first.relay_addr(&pair.0, &pair.1).unwrap().port();
    let other = start(BTreeMap::from([(pair.clone(), port)]));
    assert_ne!(other.relay_addr(&pair.0, &pair.1).unwrap().port(), port, "taken by the first");
    drop(first);
    let again = start(BTreeMap::from([(pair.clone(), port)]));
    assert_eq!(again.relay_addr(&pair.0, &pair.1).unwrap().port(), port);
    assert_eq!(again.relay_addr(&name("a"), &name("a")), None);
}

#[test]
fn a_region_without_an_address_is_named() {
    let error = Emulator::start(Options { regions: vec![name("a"), name("b")], ..Options::default() }).err().unwrap();
    assert!(error.to_string().contains("address of region 'b'"), "{error}");
}

#[test]
fn the_control_socket_changes_and_shows() {
    let world = World::new("delay=1ms", "none");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CONTROL_SOCKET);
    let error = control(&path, &Request::Show {}).unwrap_err().to_string();
    assert_eq!(error, format!("no emulator is running at {}; start the demo, or give --dir of the one that runs", path.display()));

    world.emulator.serve_control(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(world.emulator.serve_control(&path), Err(NetemError::AlreadyRunning { .. })));
    let set = |from: &str, to: &str, keys: &[&str]| {
        let settings = keys.iter().map(|k| (*k).to_owned()).collect();
        control(&path, &Request::Set { from: from.to_owned(), to: to.to_owned(), settings })
    };
    let changed = set("a", "b", &["loss=0.5%", "rate=1gbit"]).unwrap().directions;
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].settings.to_string(), "delay=1ms loss=0.5% rate=1000mbit");
    assert_eq!(set("*", "*", &["delay=2ms"]).unwrap().directions.len(), 2);
    assert_eq!(set("*", "a", &["none"]).unwrap().directions.len(), 1);
    let shown = control(&path, &Request::Show {}).unwrap().directions;
    assert_eq!(shown.iter().map(|d| d.settings.to_string()).collect::<Vec<_>>(), ["delay=2ms loss=0.5% rate=1000mbit", "none"]);

    for (from, to, key, expected) in [
        ("a", "mars", "delay=1ms", "there is no region 'mars' here; the regions are a, b (or * for all)"),
        ("a", "a", "delay=1ms", "'a' to itself is not a link"),
        ("*", "*", "delay=1", "'delay=1' is not a link setting: a time has a unit"),
    ] {
        let error = set(from, to, &["loss=9%", key]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(world.emulator.get(&name("a"), &name("b")).unwrap().loss_ppm, 5_000, "a refused request changes nothing");

    // Garbage, unknown keys and endless lines are answered and hurt nobody.
    for garbage in [b"hello\n".to_vec(), b"{\"set\":{\"from\":\"a\"}}\n".to_vec(), b"{\"show\":{\"x\":1}}\n".to_vec(), vec![b'x'; 20_000]] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&garbage).unwrap();
        let mut answer = [0; 256];
        let n = stream.read(&mut answer).unwrap();
        assert!(answer[..n].starts_with(b"{\"error\":\""), "{}", String::from_utf8_lossy(&answer[..n]));
    }
    drop(world);
    assert!(!path.exists());
}

#[test]
fn a_socket_left_by_a_killed_emulator_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CONTROL_SOCKET);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(control(&path, &Request::Show {}), Err(NetemError::NotRunning { .. })));
    let world = World::new("none", "none");
    world.emulator.serve_control(&path).unwrap();
    assert_eq!(control(&path, &Request::Show {}).unwrap().directions.len(), 2);
    let long = dir.path().join("x".repeat(120));
    let error = world.emulator.serve_control(&long).unwrap_err().to_string();
    assert!(error.contains("use a shorter --dir"), "{error}");
}

#[test]
fn everything_in_flight_is_accounted_for() {
    let world = World::new("delay=10ms loss=10% rate=100mbit queue=30kB", "none");
    let sent = send_bursts(&world.a, world.relay(), 5);
    let settled = || {
        let c = world.status("a").counts;
        (c.packets == u64::from(sent) && c.in_flight_packets == 0).then_some(c)
    };
    let counts = loop {
        match settled() {
            Some(counts) => break counts,
            None => std::thread::yield_now(),
        }
    };
    assert_eq!(counts.packets, counts.delivered + counts.dropped_loss + counts.dropped_queue + counts.dropped_host);
    assert!(counts.dropped_queue > 0 && counts.dropped_loss > 0 && counts.in_flight_bytes == 0);
}

#[test]
fn the_throughput_measurement_moves_bytes() {
    let seen = measure_relay_throughput(settings("delay=5ms"), 8 << 20, Duration::from_millis(300)).unwrap();
    println!("{:.0} MB/s, {} packets lost", seen.bytes_per_s / 1e6, seen.packets_lost);
    assert!(seen.bytes_per_s > 0.0);
}

#[test]
fn a_late_wakeup_is_reported_not_hidden() {
    let world = World::new("delay=2ms", "none");
    let began: Instant = clock::now();
    world.ping(1);
    let took_us = clock::now().since(began).as_secs_f64() * 1e6;
    let status = world.settled("a");
    assert!(status.late_max_us > 0.0 && status.late_max_us < took_us);
    assert!((status.late_mean_us - status.late_max_us).abs() < 1.0, "one packet");
}
