//! The moving parts: relay sockets, one thread that receives and asks the link, one that delivers on time.
//!
//! The receiving thread waits for all sockets at once (a current-thread runtime: readiness only, never its timers, which
//! are too coarse). The delivery thread keeps packets in a heap by due time and sleeps until the next one; it wakes a
//! little late, never early, and reports how late. Bursts move with one system call each way (GRO in, GSO out); loss and
//! order are decided per packet. Nothing here interprets settings: [`super::link`] does.

use super::link::{Counts, Link, Verdict};
use super::port::{BURST_BYTES_MAX, DATAGRAM_BYTES_MAX, Port, packets_in};
use super::{NetemError, Settings, control};
use crate::base::{Instant, Prng, RegionName};
use crate::io::clock;
use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use quinn_udp::{EcnCodepoint, RecvMeta};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

/// A direction: packets travel from the first to the second.
pub type Pair = (RegionName, RegionName);

/// Senders that one relay remembers. A region that restarts comes from a new port; the one unused for longest is forgotten.
const FLOWS_PER_RELAY_MAX: usize = 8;
const RECEIVE_RETRY_AFTER: Duration = Duration::from_millis(100);
/// Packets due closer together than this leave together: on a fast link each would cost a wake-up otherwise.
const SLEEP_MIN: Duration = Duration::from_micros(40);
/// Parcels the delivery thread takes out of the heap at a time.
const PARCELS_PER_ROUND_MAX: usize = 1024;

/// What an emulator is made of.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Two regions or more.
    pub regions: Vec<RegionName>,
    /// The real UDP address of each region.
    pub targets: BTreeMap<RegionName, SocketAddr>,
    /// Where nothing is given the direction impairs nothing.
    pub settings: BTreeMap<Pair, Settings>,
    /// Ports that the relays had before, so that addresses written down stay valid. One that is taken is replaced by a free one.
    pub ports: BTreeMap<Pair, u16>,
    /// Same seed, same draws of loss, jitter and order per direction.
    pub seed: u64,
}

/// One direction, as shown to people and programs.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct DirectionStatus {
    pub from: RegionName,
    pub to: RegionName,
    pub settings: Settings,
    pub counts: Counts,
    /// How long after their due time packets left, since the start: the emulator's own error.
    pub late_mean_us: f64,
    pub late_max_us: f64,
}

/// A running emulator. Dropping it ends its threads and closes its sockets.
pub struct Emulator {
    fabric: Arc<Fabric>,
    relays: BTreeMap<Pair, SocketAddr>,
    commands: Option<mpsc::UnboundedSender<control::Listener>>,
    threads: Vec<JoinHandle<()>>,
}

/// What control requests act on.
pub(super) struct Fabric {
    regions: Vec<RegionName>,
    directions: BTreeMap<Pair, Arc<Direction>>,
    wheel: Wheel,
}

struct Direction {
    state: Mutex<DirectionState>,
}

struct DirectionState {
    link: Link,
    late_sum_us: f64,
    late_max_us: f64,
}

/// Where packets of one flow and direction come out.
struct Outlet {
    port: Arc<Port>,
    to: SocketAddr,
    direction: Arc<Direction>,
}

/// Packets of one outlet that are due together: `bytes` cut at every `stride`; only the last may be shorter.
struct Parcel {
    due: Instant,
    /// Ties keep the order of arrival.
    order: u64,
    outlet: Arc<Outlet>,
    bytes: Bytes,
    stride: usize,
    ecn: Option<EcnCodepoint>,
}

impl PartialEq for Parcel {
    fn eq(&self, other: &Parcel) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}
impl Eq for Parcel {}
impl PartialOrd for Parcel {
    fn partial_cmp(&self, other: &Parcel) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Parcel {
    fn cmp(&self, other: &Parcel) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl Parcel {
    fn packets(&self) -> usize {
        packets_in(self.bytes.len(), self.stride)
    }
}

/// Everything on its way, by due time.
struct Wheel {
    pending: Mutex<Pending>,
    earlier: Condvar,
}

#[derive(Default)]
struct Pending {
    heap: BinaryHeap<Reverse<Parcel>>,
    next_order: u64,
    stop: bool,
}

impl Direction {
    fn delivered(&self, offered: (usize, usize), taken: (usize, usize), late: Duration) {
        let mut state = self.state.lock();
        state.link.delivered(taken.0 as u64, taken.1 as u64);
        if offered.0 > taken.0 {
            state.link.dropped_by_host((offered.0 - taken.0) as u64, (offered.1 - taken.1) as u64);
        }
        let late_us = late.as_secs_f64() * 1e6;
        state.late_sum_us += late_us * taken.0 as f64;
        state.late_max_us = state.late_max_us.max(late_us);
    }
}

impl Outlet {
    fn send(&self, ecn: Option<EcnCodepoint>, bytes: &[u8], stride: usize, due: Instant) {
        let late = clock::now().since(due);
        let taken = self.port.send(self.to, ecn, bytes, stride);
        self.direction.delivered((packets_in(bytes.len(), stride), bytes.len()), taken, late);
    }
}

impl Wheel {
    fn push(&self, parcels: impl Iterator<Item = Parcel>) {
        let mut pending = self.pending.lock();
        let next = pending.heap.peek().map(|Reverse(p)| p.due);
        let mut earlier = false;
        for mut parcel in parcels {
            parcel.order = pending.next_order;
            pending.next_order += 1;
            earlier |= next.is_none_or(|next| parcel.due < next);
            pending.heap.push(Reverse(parcel));
        }
        drop(pending);
        if earlier {
            self.earlier.notify_one();
        }
    }

    fn stop(&self) {
        self.pending.lock().stop = true;
        self.earlier.notify_one();
    }

    /// Waits for the next due parcels, in order. Empty: the emulator ends.
    fn due(&self, out: &mut Vec<Parcel>) {
        let mut pending = self.pending.lock();
        loop {
            if pending.stop {
                return;
            }
            let now = clock::now();
            while out.len() < PARCELS_PER_ROUND_MAX && pending.heap.peek().is_some_and(|Reverse(p)| p.due <= now) {
                out.extend(pending.heap.pop().map(|Reverse(p)| p));
            }
            if !out.is_empty() {
                return;
            }
            match pending.heap.peek().map(|Reverse(p)| p.due) {
                Some(due) => {
                    self.earlier.wait_for(&mut pending, due.since(now).max(SLEEP_MIN));
                }
                None => self.earlier.wait(&mut pending),
            }
        }
    }
}

/// The kernel rounds sleeps up by 50 us to save wake-ups; here punctuality is the point. Where it cannot be had, packets
/// are that much later, which the statistics show.
fn ask_for_punctual_timers() {
    let set = || -> io::Result<()> {
        let thread = std::fs::read_link("/proc/thread-self")?;
        let id = thread.file_name().ok_or(io::ErrorKind::NotFound)?;
        std::fs::write(Path::new("/proc").join(id).join("timerslack_ns"), "1")
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "the link emulator keeps the kernel's default timer slack");
    }
}

fn deliver(fabric: &Fabric) {
    ask_for_punctual_timers();
    let mut due = Vec::new();
    let mut burst = Vec::with_capacity(BURST_BYTES_MAX);
    loop {
        fabric.wheel.due(&mut due);
        if due.is_empty() {
            return;
        }
        let mut parcels = due.drain(..).peekable();
        while let Some(first) = parcels.next() {
            // What leaves through the same outlet at once and has the same size goes as one burst.
            let joins = |p: &Parcel, bytes: usize, packets: usize| {
                bytes > 0
                    && bytes.is_multiple_of(first.stride)
                    && Arc::ptr_eq(&p.outlet, &first.outlet)
                    && p.ecn == first.ecn
                    && (p.stride == first.stride || (p.packets() == 1 && p.bytes.len() < first.stride))
                    && !p.bytes.is_empty()
                    && bytes + p.bytes.len() <= BURST_BYTES_MAX
                    && packets + p.packets() <= first.outlet.port.state.max_gso_segments()
            };
            if !parcels.peek().is_some_and(|p| joins(p, first.bytes.len(), first.packets())) {
                first.outlet.send(first.ecn, &first.bytes, first.stride, first.due);
                continue;
            }
            burst.clear();
            burst.extend_from_slice(&first.bytes);
            let mut packets = first.packets();
            while let Some(p) = parcels.next_if(|p| joins(p, burst.len(), packets)) {
                burst.extend_from_slice(&p.bytes);
                packets += p.packets();
            }
            first.outlet.send(first.ecn, &burst, first.stride, first.due);
        }
    }
}

impl Fabric {
    /// Packets arrived for `outlet` at `now`: decides about each, and sends or stores what survives.
    fn ingest(&self, outlet: &Arc<Outlet>, now: Instant, bytes: &[u8], stride: usize, ecn: Option<EcnCodepoint>) {
        let stride = stride.max(1);
        let packets = packets_in(bytes.len(), stride);
        let packet = |i: usize| &bytes[i * stride..bytes.len().min((i + 1) * stride)];
        let (verdicts, idle) = {
            let mut state = outlet.direction.state.lock();
            let idle = state.link.counts().in_flight_packets == 0;
            ((0..packets).map(|i| state.link.offer(now, packet(i).len())).collect::<Vec<_>>(), idle)
        };
        // Nothing to wait for and nobody in front: no detour through the other thread.
        if idle && verdicts.iter().all(|v| matches!(v, Verdict::Deliver { at, twice: false } if *at <= now)) {
            outlet.send(ecn, bytes, stride, now);
            return;
        }
        let mut kept = BytesMut::new();
        let mut runs: Vec<(Instant, usize, usize)> = Vec::new();
        for (i, verdict) in verdicts.iter().enumerate() {
            let Verdict::Deliver { at, twice } = *verdict else { continue };
            if kept.is_empty() {
                kept.reserve(bytes.len());
            }
            for _ in 0..=u8::from(twice) {
                let start = kept.len();
                kept.extend_from_slice(packet(i));
                match runs.last_mut() {
                    Some((due, run_start, run_end))
                        if *due == at && (*run_end - *run_start).is_multiple_of(stride) && start > *run_start =>
                    {
                        *run_end = kept.len();
                    }
                    _ => runs.push((at, start, kept.len())),
                }
            }
        }
        if runs.is_empty() {
            return;
        }
        let kept = kept.freeze();
        let parcel = |(due, start, end): (Instant, usize, usize)| Parcel {
            due,
            order: 0,
            outlet: outlet.clone(),
            bytes: kept.slice(start..end),
            stride,
            ecn,
        };
        self.wheel.push(runs.into_iter().map(parcel));
    }

    fn status(&self, (from, to): &Pair, direction: &Direction) -> DirectionStatus {
        let state = direction.state.lock();
        let counts = *state.link.counts();
        DirectionStatus {
            from: from.clone(),
            to: to.clone(),
            settings: state.link.settings().clone(),
            late_mean_us: if counts.delivered == 0 { 0.0 } else { state.late_sum_us / counts.delivered as f64 },
            late_max_us: state.late_max_us,
            counts,
        }
    }

    pub(super) fn snapshot(&self) -> Vec<DirectionStatus> {
        self.directions.iter().map(|(pair, direction)| self.status(pair, direction)).collect()
    }

    fn direction(&self, from: &RegionName, to: &RegionName) -> Result<&Arc<Direction>, NetemError> {
        self.matching(from.as_str(), to.as_str()).map(|mut found| found.swap_remove(0).1)
    }

    /// The directions that `from` and `to` name; `*` stands for every region.
    fn matching(&self, from: &str, to: &str) -> Result<Vec<(&Pair, &Arc<Direction>)>, NetemError> {
        for given in [from, to] {
            if given != "*" && !self.regions.iter().any(|r| r.as_str() == given) {
                let known = self.regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", ");
                return Err(NetemError::UnknownRegion { given: given.to_owned(), known });
            }
        }
        if from == to && from != "*" {
            return Err(NetemError::SameRegion { region: from.to_owned() });
        }
        let names = |pattern: &str, region: &RegionName| pattern == "*" || pattern == region.as_str();
        Ok(self.directions.iter().filter(|((f, t), _)| names(from, f) && names(to, t)).collect())
    }

    /// All or nothing: one bad key changes no direction.
    pub(super) fn change(&self, from: &str, to: &str, changes: &[String]) -> Result<Vec<DirectionStatus>, NetemError> {
        let directions = self.matching(from, to)?;
        Settings::default().with(changes)?;
        for (_, direction) in &directions {
            let mut state = direction.state.lock();
            let new = state.link.settings().with(changes)?;
            state.link.set(new);
        }
        Ok(directions.into_iter().map(|(pair, direction)| self.status(pair, direction)).collect())
    }
}

/// Receive buffers, shared by all sockets of the receiving thread.
struct Buffers {
    memory: Vec<u8>,
    meta: [RecvMeta; quinn_udp::BATCH_SIZE],
}

/// Waits for packets on `port` for ever and hands each burst to `packet` (source, bytes, stride, ECN).
async fn receive(
    port: Arc<Port>,
    buffers: Rc<std::cell::RefCell<Buffers>>,
    mut packet: impl FnMut(Instant, SocketAddr, &[u8], usize, Option<EcnCodepoint>),
) {
    // A second descriptor of the same socket: the runtime watches this one, the delivery thread sends through the other.
    let watched = match port.socket.try_clone().and_then(tokio::net::UdpSocket::from_std) {
        Ok(watched) => watched,
        Err(error) => {
            tracing::error!(%error, "the link emulator cannot watch a socket; raise the limit of open files (ulimit -n)");
            return;
        }
    };
    while watched.readable().await.is_ok() {
        let failed = {
            let mut buffers = buffers.borrow_mut();
            let Buffers { memory, meta } = &mut *buffers;
            let received = watched.try_io(tokio::io::Interest::READABLE, || {
                let mut slices = memory.chunks_mut(DATAGRAM_BYTES_MAX).map(IoSliceMut::new).collect::<Vec<_>>();
                port.state.recv((&port.socket).into(), &mut slices, meta)
            });
            let now = clock::now();
            for (meta, bytes) in meta[..*received.as_ref().unwrap_or(&0)].iter().zip(memory.chunks(DATAGRAM_BYTES_MAX)) {
                packet(now, meta.addr, &bytes[..meta.len], meta.stride, meta.ecn);
            }
            received.err().filter(|e| e.kind() != io::ErrorKind::WouldBlock)
        };
        if let Some(error) = failed {
            // Such as no memory: packets wait in the kernel, or are lost there, as on any machine.
            tracing::warn!(%error, "the link emulator cannot receive for now");
            tokio::time::sleep(RECEIVE_RETRY_AFTER).await;
        }
    }
}

/// The relay that `from` dials to reach `to`.
struct Relay {
    fabric: Arc<Fabric>,
    there: Arc<Direction>,
    back: Arc<Direction>,
    port: Arc<Port>,
    target: SocketAddr,
}

struct Flow {
    there: Arc<Outlet>,
    last_used: Instant,
    reader: tokio::task::AbortHandle,
}

impl Relay {
    async fn run(self, buffers: Rc<std::cell::RefCell<Buffers>>) {
        let mut flows: BTreeMap<SocketAddr, Flow> = BTreeMap::new();
        let mut warned = false;
        receive(self.port.clone(), buffers.clone(), |now, source, bytes, stride, ecn| {
            if !flows.contains_key(&source) {
                if flows.len() >= FLOWS_PER_RELAY_MAX {
                    let oldest = flows.iter().min_by_key(|(_, f)| f.last_used).map(|(source, _)| *source);
                    oldest.and_then(|oldest| flows.remove(&oldest)).iter().for_each(|flow| flow.reader.abort());
                }
                match self.flow(source, now, buffers.clone()) {
                    Ok(flow) => drop(flows.insert(source, flow)),
                    Err(error) => {
                        // Once per relay: it would be the same sentence for every packet. The statistics count them.
                        if !std::mem::replace(&mut warned, true) {
                            tracing::error!(%error, "the link emulator drops packets of {source}");
                        }
                        self.there.state.lock().link.refused_by_host(packets_in(bytes.len(), stride) as u64, bytes.len() as u64);
                        return;
                    }
                }
            }
            let flow = flows.get_mut(&source).expect("BUG: a flow that was just made is missing");
            flow.last_used = now;
            self.fabric.ingest(&flow.there, now, bytes, stride, ecn);
        })
        .await;
    }

    fn flow(&self, source: SocketAddr, now: Instant, buffers: Rc<std::cell::RefCell<Buffers>>) -> Result<Flow, NetemError> {
        let port = Arc::new(Port::bind(local_ip_towards(self.target), 0)?);
        let there = Arc::new(Outlet { port: port.clone(), to: self.target, direction: self.there.clone() });
        let back = Arc::new(Outlet { port: self.port.clone(), to: source, direction: self.back.clone() });
        let (fabric, target) = (self.fabric.clone(), self.target);
        let reader = tokio::task::spawn_local(receive(port, buffers, move |now, source, bytes, stride, ecn| {
            // Whoever else found this port is not the other region.
            if source == target {
                fabric.ingest(&back, now, bytes, stride, ecn);
            }
        }));
        Ok(Flow { there, last_used: now, reader: reader.abort_handle() })
    }
}

fn local_ip_towards(target: SocketAddr) -> IpAddr {
    match target.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Emulator {
    /// Binds one relay socket per ordered pair on 127.0.0.1 and starts two threads.
    ///
    /// # Errors
    /// When a region has no target, or a socket or thread cannot be had.
    pub fn start(options: Options) -> Result<Emulator, NetemError> {
        let Options { regions, targets, mut settings, ports, seed } = options;
        let mut prng = Prng::new(seed);
        let every_pair = regions.iter().flat_map(|a| regions.iter().map(move |b| (a.clone(), b.clone())));
        let pairs: Vec<Pair> = every_pair.filter(|(a, b)| a != b).collect();
        let mut directions = BTreeMap::new();
        for pair in &pairs {
            let link = Link::new(settings.remove(pair).unwrap_or_default(), prng.fork(&format!("{}>{}", pair.0, pair.1)));
            let state = DirectionState { link, late_sum_us: 0.0, late_max_us: 0.0 };
            directions.insert(pair.clone(), Arc::new(Direction { state: Mutex::new(state) }));
        }
        let wheel = Wheel { pending: Mutex::new(Pending::default()), earlier: Condvar::new() };
        let fabric = Arc::new(Fabric { regions, directions, wheel });
        let mut relays = Vec::new();
        let mut addresses = BTreeMap::new();
        for pair in pairs {
            let target = *targets.get(&pair.1).ok_or_else(|| NetemError::NoTarget { region: pair.1.to_string() })?;
            let local = Ipv4Addr::LOCALHOST.into();
            let preferred = ports.get(&pair).and_then(|port| Port::bind(local, *port).ok());
            let port = Arc::new(preferred.map_or_else(|| Port::bind(local, 0), Ok)?);
            let direction = |from: &RegionName, to: &RegionName| fabric.direction(from, to).cloned();
            let (there, back) = (direction(&pair.0, &pair.1)?, direction(&pair.1, &pair.0)?);
            addresses.insert(pair, port.address()?);
            relays.push(Relay { fabric: fabric.clone(), there, back, port, target });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NetemError::Start)?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let mut emulator = Emulator { fabric: fabric.clone(), relays: addresses, commands: Some(commands), threads: Vec::new() };
        emulator.spawn("netem-receive", {
            let fabric = fabric.clone();
            move || tokio::task::LocalSet::new().block_on(&runtime, serve(relays, fabric, inbox))
        })?;
        emulator.spawn("netem-deliver", move || deliver(&fabric))?;
        Ok(emulator)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), NetemError> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(NetemError::Start)?);
        Ok(())
    }

    /// The address that `from` has to dial to reach `to` through the emulated link. None: no such pair.
    #[must_use]
    pub fn relay_addr(&self, from: &RegionName, to: &RegionName) -> Option<SocketAddr> {
        self.relays.get(&(from.clone(), to.clone())).copied()
    }

    /// Replaces the settings of one direction, for packets that arrive from now on.
    ///
    /// # Errors
    /// When a region is not known.
    pub fn set(&self, from: &RegionName, to: &RegionName, settings: Settings) -> Result<(), NetemError> {
        self.fabric.direction(from, to)?.state.lock().link.set(settings);
        Ok(())
    }

    /// Changes only the named keys, of one direction or of many: `*` stands for every region. All or nothing.
    ///
    /// # Errors
    /// When a region, key or value is not known.
    pub fn change(&self, from: &str, to: &str, changes: &[String]) -> Result<Vec<DirectionStatus>, NetemError> {
        self.fabric.change(from, to, changes)
    }

    /// # Errors
    /// When a region is not known.
    pub fn get(&self, from: &RegionName, to: &RegionName) -> Result<Settings, NetemError> {
        Ok(self.fabric.direction(from, to)?.state.lock().link.settings().clone())
    }

    /// Every direction, in order of names.
    #[must_use]
    pub fn snapshot(&self) -> Vec<DirectionStatus> {
        self.fabric.snapshot()
    }

    /// Takes control requests on a Unix socket at `path` (mode 0600) until the emulator ends. What a killed one left there
    /// is replaced.
    ///
    /// # Errors
    /// When another emulator serves there, or the socket cannot be made.
    pub fn serve_control(&self, path: &Path) -> Result<(), NetemError> {
        let listener = control::Listener::bind(path)?;
        let commands = self.commands.as_ref().expect("BUG: the emulator is being dropped");
        commands.send(listener).map_err(|_| NetemError::Start(io::Error::other("its receiving thread has ended")))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.commands.take());
        self.fabric.wheel.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the link emulator had panicked");
            }
        }
    }
}

/// The receiving thread: all sockets, and control requests. Ends when the emulator is dropped.
async fn serve(relays: Vec<Relay>, fabric: Arc<Fabric>, mut inbox: mpsc::UnboundedReceiver<control::Listener>) {
    let memory = vec![0; DATAGRAM_BYTES_MAX * quinn_udp::BATCH_SIZE];
    let buffers = Rc::new(std::cell::RefCell::new(Buffers { memory, meta: [RecvMeta::default(); quinn_udp::BATCH_SIZE] }));
    for relay in relays {
        tokio::task::spawn_local(relay.run(buffers.clone()));
    }
    while let Some(listener) = inbox.recv().await {
        tokio::task::spawn_local(listener.serve(fabric.clone()));
    }
}
