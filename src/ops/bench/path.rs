//! Shipping without the disks: the same links, frames and wire messages between two endpoints of this process, over an emulated
//! path of 80 ms. What is left of `ship` when six fsynced copies are taken away; it tells where `ship`'s time goes.

use super::Figure;
use super::cluster::failed;
use crate::base::{ClusterName, Epoch, Generation, LogEnd, RegionName};
use crate::io::clock;
use crate::io::link::{self, Arrival, LinkEvent};
use crate::io::quic::{Quic, QuicSettings};
use crate::io::tls::Material;
use crate::log::Pen;
use crate::ops::certs::{self, CertOptions};
use crate::ops::failure::Failure;
use crate::ops::netem::{Emulator, Options, Settings};
use crate::ship::wire::{Lane, Message};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

const BATCHES: usize = 700;
const BATCH_BYTES: usize = 768 << 10;
/// In flight, as a sender bounds it.
const WINDOW_BATCHES: usize = 42;

fn name(text: &str) -> RegionName {
    RegionName::new(text).expect("BUG: a constant name is valid")
}

pub async fn measure(dir: &Path) -> Result<Vec<Figure>, Failure> {
    let say = |e: &dyn std::fmt::Display| failed(e.to_string());
    let cluster = ClusterName::new("bench").expect("BUG: a constant name is valid");
    let (east, west) = (name("us-east"), name("eu-west"));
    let members = [east.clone(), west.clone()];
    let now = clock::unix_now();
    certs::create(dir, &cluster, &members, &CertOptions::new(now)).map_err(|e| say(&e))?;
    let endpoint = |region: &RegionName| -> Result<Quic, Failure> {
        let material = Material::load(dir, &cluster, region, dir, now).map_err(|e| say(&e))?;
        Quic::bind(([127, 0, 0, 1], 0).into(), Arc::new(material), &members, &QuicSettings::default()).map_err(|e| say(&e))
    };
    let (sender, receiver) = (endpoint(&east)?, endpoint(&west)?);
    let addr = |quic: &Quic| quic.local_addr().map_err(|e| say(&e));
    let both_ways = ["delay=40ms".to_owned()];
    let delayed = Settings::default().with(&both_ways).map_err(|e| say(&e))?;
    let emulator = Emulator::start(Options {
        regions: members.to_vec(),
        targets: BTreeMap::from([(east.clone(), addr(&sender)?), (west.clone(), addr(&receiver)?)]),
        settings: BTreeMap::from([((east.clone(), west.clone()), delayed.clone()), ((west.clone(), east.clone()), delayed)]),
        ports: BTreeMap::new(),
        seed: 1,
    })
    .map_err(|e| say(&e))?;

    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    tokio::spawn(link::serve(receiver.clone(), move |arrival| {
        if let Arrival::Link(link, events) = arrival {
            let _ = arrived.send((link, events));
        }
    }));
    let relay = emulator.relay_addr(&east, &west).ok_or_else(|| failed("the emulator has no such path"))?;
    let (out, mut answers) = link::dial(&sender, &west, &relay.to_string()).await.map_err(|e| say(&e))?;
    let (back, mut events) = arrivals.recv().await.ok_or_else(|| failed("the link did not arrive"))?;

    // The receiver decodes and checks every frame, and says so, as a secondary does.
    let receiving = tokio::spawn(async move {
        let mut bytes = 0;
        let mut first = None;
        while let Some(event) = events.recv().await {
            let LinkEvent::Batch(batch) = event else { continue };
            first.get_or_insert_with(clock::now);
            let Ok(Message::Frames(frames)) = Message::decode(Lane::Batch, &batch) else { return None };
            bytes += frames.iter().map(|f| f.bytes().len()).sum::<usize>();
            back.send_control(bytes::Bytes::from_static(b"taken"));
            if bytes >= BATCHES * BATCH_BYTES {
                return first.map(|f| (bytes, f));
            }
        }
        None
    });
    let window = Arc::new(Semaphore::new(WINDOW_BATCHES));
    let taken = Arc::clone(&window);
    tokio::spawn(async move {
        while let Some(event) = answers.recv().await {
            if matches!(event, LinkEvent::Control(_)) {
                taken.add_permits(1);
            }
        }
    });
    let mut pen = Pen::new(Epoch(1), Generation(1), LogEnd::EMPTY, 256 << 10);
    for _ in 0..=BATCHES {
        let payload = vec![7u8; (BATCH_BYTES / 3) - 64];
        let frames = pen.write(&[payload.clone(), payload.clone(), payload], true, now);
        window.acquire().await.map_err(|e| say(&e))?.forget();
        out.send_batch(Message::Frames(frames).encode());
        if receiving.is_finished() {
            break;
        }
    }
    let received = tokio::time::timeout(Duration::from_secs(60), receiving).await.map_err(|_| failed("the batches did not arrive"))?;
    let (bytes, first) = received.map_err(|e| say(&e))?.ok_or_else(|| failed("a batch could not be read"))?;
    let took = clock::now().since(first);
    let lost = out.stats().lost_packets;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    let note = format!("{} MB of frames over 80 ms round trip, {lost} packets lost; decoded and checked, not stored", bytes / 1_000_000);
    Ok(vec![Figure::new("ship_path_mb_s", rate, "MB/s", "at least 100", note)])
}
