//! How much the emulator itself can carry: what is measured through it can never be faster.
//!
//! Sends through a running emulator and counts what comes out. Decides nothing; `parhelion bench` calls it.

use super::port::{DATAGRAM_BYTES_MAX, Port};
use super::{Emulator, NetemError, Options, Settings};
use crate::base::RegionName;
use crate::io::clock;
use quinn_udp::RecvMeta;
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What [`measure_relay_throughput`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    pub bytes_per_s: f64,
    pub packets_lost: u64,
}

/// How fast packets of 1200 bytes pass one direction with these settings: a sender, the emulator's two threads and a
/// receiver, all on this machine, with at most `window_bytes` on their way. To fill a delay that is at least rate x delay;
/// beyond the socket buffers (4 MiB) the sender's bursts may arrive as one and overflow the receiver, which counts as loss.
///
/// # Errors
/// When the emulator or a socket cannot be had.
pub fn measure_relay_throughput(settings: Settings, window_bytes: u64, run_for: Duration) -> Result<Throughput, NetemError> {
    const PACKET_BYTES: usize = 1200;
    const PACKETS_PER_BURST: usize = 40;
    // Nothing arrives for so long: what is missing was lost.
    let silence = Duration::from_millis(500) + Duration::from_micros(settings.delay_us + settings.jitter_us);
    let name = |s| RegionName::new(s).expect("BUG: a valid name");
    let (a, b) = (name("a"), name("b"));
    let loopback = Ipv4Addr::LOCALHOST.into();
    let (sender, sink) = (Port::bind(loopback, 0)?, Arc::new(Port::bind(loopback, 0)?));
    let unused = Port::bind(loopback, 0)?.address()?;
    let emulator = Emulator::start(Options {
        regions: vec![a.clone(), b.clone()],
        targets: BTreeMap::from([(a.clone(), unused), (b.clone(), sink.address()?)]),
        settings: BTreeMap::from([((a.clone(), b.clone()), settings)]),
        ..Options::default()
    })?;
    let relay = emulator.relay_addr(&a, &b).expect("BUG: the pair exists");
    let received = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    sink.socket.set_nonblocking(false).map_err(NetemError::Start)?;
    sink.socket.set_read_timeout(Some(Duration::from_millis(20))).map_err(NetemError::Start)?;
    let counter = {
        let (sink, received, stop) = (sink.clone(), received.clone(), stop.clone());
        let body = move || {
            let mut memory = vec![0; DATAGRAM_BYTES_MAX];
            let mut meta = [RecvMeta::default()];
            while !stop.load(Ordering::Relaxed) {
                if sink.state.recv((&sink.socket).into(), &mut [IoSliceMut::new(&mut memory)], &mut meta).is_ok() {
                    received.fetch_add(meta[0].len as u64, Ordering::Relaxed);
                }
            }
        };
        std::thread::Builder::new().name("netem-sink".to_owned()).spawn(body).map_err(NetemError::Start)?
    };
    let burst = vec![7; PACKET_BYTES * PACKETS_PER_BURST];
    let began = clock::now();
    let (mut sent, mut written_off) = (0_u64, 0_u64);
    let (mut seen, mut seen_at) = (0, began);
    while clock::now().since(began) < run_for {
        let arrived = received.load(Ordering::Relaxed);
        if arrived != seen {
            (seen, seen_at) = (arrived, clock::now());
        }
        if sent.saturating_sub(arrived + written_off) < window_bytes {
            sent += sender.send(relay, None, &burst, PACKET_BYTES).1 as u64;
        } else if clock::now().since(seen_at) > silence {
            written_off = sent.saturating_sub(arrived);
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    let (arrived, took) = (received.load(Ordering::Relaxed), clock::now().since(began));
    // What is on its way still counts as delivered, what does not come any more as lost.
    let mut last = (arrived, clock::now());
    while last.0 < sent && clock::now().since(last.1) < silence {
        std::thread::sleep(Duration::from_millis(1));
        let so_far = received.load(Ordering::Relaxed);
        if so_far != last.0 {
            last = (so_far, clock::now());
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(counter.join().is_ok(), "BUG: the counting thread panicked");
    let packets_lost = sent.saturating_sub(last.0) / PACKET_BYTES as u64;
    Ok(Throughput { bytes_per_s: arrived as f64 / took.as_secs_f64(), packets_lost })
}
