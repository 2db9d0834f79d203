//! The driver: one thread that owns the node, feeds it events and carries out its effects.
//!
//! Drains its queue before it flushes, so group commit falls out of the loop. Decides nothing. What it publishes (the region's
//! report, the events) is a copy; nobody else touches the node.

use super::clock;
use super::copies::{Copies, Drill};
use super::killpoint::KillPoint;
use super::link::Link;
use crate::base::{ConnId, CopyId, Instant, RegionName, TimelineId, WhoWrites};
use crate::control::{AuditEntry, AuditHead, AutoFailover, ControlMessage, ControlView, Ledger, MembersView, OpView};
use crate::head::embedded::Engine;
use crate::head::{LogSink, WriteGate};
use crate::log::Frame;
use crate::node::report::{OperatorEvent, RegionReport};
use crate::node::{Effect, Event, Node};
use crate::ship::wire::{Lane, Message};
use crate::volume::membership::Incarnation;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// The published report is at most this old.
const REPORT_EVERY: Duration = Duration::from_millis(20);
/// A thin batch's twin follows so much later: a packet of its own, that is not lost with the first one.
const TWIN_AFTER: Duration = Duration::from_millis(2);
/// A batch of several packets goes twice as well while it is no larger: pages that split, in a log that is thin otherwise. A log that
/// is not thin comes in larger batches, and bandwidth is not spent on it.
const TWIN_BATCH_BYTES_MAX: usize = 16 << 10;
/// Operator events kept in memory.
const EVENTS_KEPT: usize = 4096;
/// Events handled before effects of later ones may wait: bounds how stale the timers get.
const BURST: usize = 256;

/// What wakes the driver.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are events")]
enum Wake {
    Event(Event),
    LinkUp {
        link: Link,
        dialled: bool,
        conn: ConnId,
    },
    Drill {
        copy: CopyId,
        drill: Drill,
    },
    Replace {
        slot: CopyId,
        by: Option<(Vec<Incarnation>, String)>,
        answer: oneshot::Sender<Result<String, String>>,
    },
    /// One commit rule, as `parhelion set` names it.
    Set {
        key: String,
        value: String,
        actor: String,
        answer: oneshot::Sender<Result<String, String>>,
    },
    SetAutoFailover {
        auto: AutoFailover,
        actor: String,
        answer: oneshot::Sender<Result<(), String>>,
    },
    DropArchive {
        archive: TimelineId,
        actor: String,
        answer: oneshot::Sender<Result<String, String>>,
    },
    Stop,
}

/// Where events for the node are put, from any thread.
#[derive(Clone)]
pub struct Inbox {
    tx: Sender<Wake>,
}

impl Inbox {
    pub fn send(&self, event: Event) {
        // After the driver's end nobody wants to know.
        let _ = self.tx.send(Wake::Event(event));
    }

    pub fn link_up(&self, conn: ConnId, link: Link, dialled: bool) {
        let _ = self.tx.send(Wake::LinkUp { link, dialled, conn });
    }

    /// Takes a copy out of duty, or back, for a drill.
    pub fn drill(&self, copy: CopyId, drill: Drill) {
        let _ = self.tx.send(Wake::Drill { copy, drill });
    }

    /// Replaces a copy by new directories in a place, or (`None`) goes back to it. The answer is a sentence.
    ///
    /// # Errors
    /// A sentence: why not.
    pub async fn replace(&self, slot: CopyId, by: Option<(Vec<Incarnation>, String)>) -> Result<String, String> {
        let (answer, told) = oneshot::channel();
        let _ = self.tx.send(Wake::Replace { slot, by, answer });
        told.await.unwrap_or_else(|_| Err("the region process is stopping".into()))
    }

    /// Sets a commit rule, in the primary. The answer is a sentence.
    ///
    /// # Errors
    /// A sentence: why not.
    pub async fn set(&self, key: String, value: String, actor: String) -> Result<String, String> {
        let (answer, told) = oneshot::channel();
        let _ = self.tx.send(Wake::Set { key, value, actor, answer });
        told.await.unwrap_or_else(|_| Err("the region process is stopping".into()))
    }

    /// Sets what the cluster does by itself, in the primary. It holds when a majority keeps it, which the control core's view says.
    ///
    /// # Errors
    /// A sentence: why not.
    pub async fn set_auto_failover(&self, auto: AutoFailover, actor: String) -> Result<(), String> {
        let (answer, told) = oneshot::channel();
        let _ = self.tx.send(Wake::SetAutoFailover { auto, actor, answer });
        told.await.unwrap_or_else(|_| Err("the region process is stopping".into()))
    }

    /// Drops a lost tail from all copies that are there. The answer is a sentence.
    ///
    /// # Errors
    /// A sentence: why not.
    pub async fn drop_archive(&self, archive: TimelineId, actor: String) -> Result<String, String> {
        let (answer, told) = oneshot::channel();
        let _ = self.tx.send(Wake::DropArchive { archive, actor, answer });
        told.await.unwrap_or_else(|_| Err("the region process is stopping".into()))
    }

    pub fn stop(&self) {
        let _ = self.tx.send(Wake::Stop);
    }
}

impl LogSink for Inbox {
    fn submit(&self, frames: Vec<Frame>) {
        self.send(Event::Submitted { frames });
    }
}

/// What others may see of the node, and of the links that are up.
pub struct Shared {
    pub report: RwLock<Arc<RegionReport>>,
    pub events: Mutex<VecDeque<OperatorEvent>>,
    pub links: RwLock<BTreeMap<ConnId, Link>>,
    /// Who serves the writer port's statements: sessions that wait for a writer are woken by every change.
    pub who: watch::Sender<WhoWrites>,
    /// The control core, and what it knows of operations and failovers; `None` before recovery is over.
    pub control: RwLock<Option<Arc<ControlView>>>,
    pub ledger: RwLock<Arc<Ledger>>,
    /// Where the audit's chain ends, as the copies keep it.
    pub audit_head: Mutex<Option<AuditHead>>,
    /// Operations that moved lately, the newest last; also those that nobody keeps, dry runs and refusals.
    moved: Mutex<VecDeque<OpView>>,
}

/// Operations that moved and are remembered by the driver.
const MOVED_KEPT: usize = 64;

impl Shared {
    /// The engine writes: statements at the writer port are served here.
    #[must_use]
    pub fn is_writer(&self) -> bool {
        self.who.borrow().here
    }

    #[must_use]
    pub fn primary(&self) -> Option<RegionName> {
        self.who.borrow().primary.clone()
    }

    fn add_link(&self, conn: ConnId, link: Link) {
        self.links.write().insert(conn, link);
        self.who.send_modify(|who| who.links += 1);
    }

    fn remove_link(&self, conn: ConnId) -> Option<Link> {
        let link = self.links.write().remove(&conn);
        self.who.send_modify(|who| who.links += 1);
        link
    }

    fn op_moved(&self, op: OpView) {
        note_moved(&mut self.moved.lock(), op);
    }

    /// Operations that this region knows of, the newest first: those that moved lately, then what the ledger has.
    #[must_use]
    pub fn ops(&self) -> Vec<OpView> {
        let mut ops: Vec<OpView> = self.moved.lock().iter().rev().cloned().collect();
        for kept in self.ledger.read().ops() {
            match ops.iter_mut().find(|o| o.order.id == kept.order.id) {
                // What is final stays, whichever was heard last.
                Some(known) if !known.state.is_final() && kept.state.is_final() => known.clone_from(kept),
                Some(_) => {}
                None => ops.push(kept.clone()),
            }
        }
        ops.sort_by_key(|o| std::cmp::Reverse(o.began_at));
        ops
    }

    /// A live link to `region`, the newest one.
    #[must_use]
    pub fn link_to(&self, region: &RegionName) -> Option<Link> {
        self.links.read().values().rev().find(|l| l.peer() == region && !l.is_closed()).cloned()
    }
}

/// News of an operation come in any order; what is final stays.
fn note_moved(moved: &mut VecDeque<OpView>, op: OpView) {
    if moved.iter().any(|o| o.order.id == op.order.id && o.state.is_final() && !op.state.is_final()) {
        return;
    }
    moved.retain(|o| o.order.id != op.order.id);
    if moved.len() >= MOVED_KEPT {
        moved.pop_front();
    }
    moved.push_back(op);
}

/// Carries what the control core says to other members; may drop it.
pub trait Members: Send + 'static {
    fn send(&self, to: &RegionName, message: &ControlMessage);

    /// Who they are from here on.
    fn changed(&self, members: &MembersView);
}

/// Asks for a link to a region; the answer comes as an event.
pub trait Dialler: Send + 'static {
    fn dial(&self, region: RegionName);
}

/// Opens lost tails as databases, on a thread of its own; the answer comes as an event.
pub trait Tails: Send + 'static {
    fn read(&self, archive: TimelineId);
}

/// Writes the audit to its file, on a thread of its own: what must not be lost of it lies on the copies already.
pub trait AuditLog: Send + 'static {
    fn write(&self, entries: Vec<AuditEntry>);
}

/// What a driver asks of the process around it.
pub struct Around {
    pub dialler: Box<dyn Dialler>,
    pub members: Box<dyn Members>,
    pub tails: Box<dyn Tails>,
    pub audit: Box<dyn AuditLog>,
}

pub struct Driver {
    node: Node,
    rx: Receiver<Wake>,
    inbox: Inbox,
    copies: Copies,
    engine: Arc<Engine>,
    shared: Arc<Shared>,
    around: Around,
    reported_at: Instant,
    watch: clock::Watch,
    kill: KillPoint,
}

/// The queue of a driver that is not made yet: copies and links need it before.
pub struct Queue {
    rx: Receiver<Wake>,
    pub inbox: Inbox,
}

impl Queue {
    #[must_use]
    pub fn new() -> Queue {
        let (tx, rx) = channel();
        Queue { rx, inbox: Inbox { tx } }
    }
}

impl Default for Queue {
    fn default() -> Queue {
        Queue::new()
    }
}

impl Shared {
    #[must_use]
    pub fn new(node: &Node) -> Arc<Shared> {
        Arc::new(Shared {
            report: RwLock::new(Arc::new(node.report(clock::now(), clock::unix_now()))),
            events: Mutex::new(VecDeque::new()),
            links: RwLock::new(BTreeMap::new()),
            who: watch::Sender::new(WhoWrites::default()),
            control: RwLock::new(None),
            ledger: RwLock::new(Arc::new(Ledger::default())),
            audit_head: Mutex::default(),
            moved: Mutex::default(),
        })
    }
}

impl Driver {
    #[must_use]
    pub fn new(node: Node, queue: Queue, copies: Copies, engine: Arc<Engine>, shared: Arc<Shared>, around: Around) -> Driver {
        // Nothing is answered before the control core holds a lease.
        engine.set_lease(Instant::ZERO);
        Driver {
            node,
            inbox: queue.inbox,
            rx: queue.rx,
            copies,
            engine,
            shared,
            around,
            reported_at: Instant::ZERO,
            watch: clock::Watch::new(),
            kill: KillPoint::from_env(),
        }
    }

    /// Until [`Inbox::stop`].
    pub fn run(mut self) {
        loop {
            let now = clock::now();
            let wait = self.node.next_timeout().map_or(REPORT_EVERY, |at| at.since(now).min(REPORT_EVERY));
            let mut woken = match self.rx.recv_timeout(wait) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => Some(Wake::Event(Event::Timeout)),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            // Before anything is decided by a clock that cannot be trusted.
            if let Some(reason) = self.watch.broke() {
                self.node.handle(clock::now(), clock::unix_now(), Event::ClockBroke { reason });
                self.flush();
                self.engine.trust_clock();
            }
            let mut burst = 0;
            while let Some(wake) = woken {
                if !self.take(wake) {
                    self.engine.close_writer("the region process is stopping".into());
                    self.copies.stop();
                    return;
                }
                self.flush();
                burst += 1;
                woken = if burst < BURST { self.rx.try_recv().ok() } else { None };
            }
            self.publish();
        }
        self.copies.stop();
    }

    fn take(&mut self, wake: Wake) -> bool {
        let event = match wake {
            Wake::Event(Event::Unlinked { conn, reason }) => {
                self.shared.remove_link(conn);
                Event::Unlinked { conn, reason }
            }
            Wake::Event(event) => event,
            Wake::LinkUp { link, dialled, conn } => {
                let peer = link.peer().clone();
                self.shared.add_link(conn, link);
                Event::Linked { conn, peer, dialled }
            }
            Wake::Drill { copy, drill } => {
                self.copies.drill(copy, drill);
                return true;
            }
            Wake::Replace { slot, by, answer } => {
                let now = clock::now();
                let done = match by {
                    Some((candidate, place)) => self.node.replace_copy(now, slot, candidate, place),
                    None => self.node.cancel_replace(now, slot),
                };
                // Who asked may have gone away; it is done all the same.
                let _ = answer.send(done);
                return true;
            }
            Wake::Set { key, value, actor, answer } => {
                let rules = self.node.rules().set(&key, &value, |time| humantime::parse_duration(time).ok());
                let _ = answer.send(rules.and_then(|rules| self.node.set_rules(clock::now(), clock::unix_now(), rules, &actor)));
                return true;
            }
            Wake::SetAutoFailover { auto, actor, answer } => {
                let _ = answer.send(self.node.set_auto_failover(clock::now(), clock::unix_now(), auto, &actor));
                return true;
            }
            Wake::DropArchive { archive, actor, answer } => {
                let _ = answer.send(self.node.drop_archive(clock::now(), clock::unix_now(), archive, &actor));
                return true;
            }
            Wake::Stop => return false,
        };
        self.node.handle(clock::now(), clock::unix_now(), event);
        true
    }

    fn flush(&mut self) {
        while let Some(effect) = self.node.poll_effect() {
            match effect {
                Effect::ToCopy { copy, request } => self.copies.send(copy, request),
                Effect::Dial { region } => self.around.dialler.dial(region),
                Effect::Send { conn, message } => self.send(conn, &message),
                Effect::Unlink { conn, reason } => {
                    if let Some(link) = self.shared.remove_link(conn) {
                        link.close_after_sessions(reason);
                    }
                }
                Effect::HeadReset { at } => {
                    self.copies.pages().forget_left(self.node.generation());
                    self.engine.reset(at);
                    self.shared.who.send_modify(|who| who.here = false);
                    self.node.handle(clock::now(), clock::unix_now(), Event::HeadSees { end: at, written_at: None });
                }
                Effect::HeadAdvances { vdl, frames } => {
                    self.engine.advance(vdl, &frames);
                    let written_at = frames.last().map(|f| f.header().source_time);
                    self.node.handle(clock::now(), clock::unix_now(), Event::HeadSees { end: vdl, written_at });
                }
                Effect::HeadWrites { pen } => {
                    let passing = self.kill.before("writes", None);
                    // Reads no page, so it may be done on this thread, in the order of the effects: a stop that follows at once
                    // must not be overtaken.
                    if let Err(e) = self.engine.open_writer(pen, Arc::new(self.inbox.clone())) {
                        tracing::error!("the writer cannot be opened: {e}");
                        std::process::exit(1);
                    }
                    self.shared.who.send_modify(|who| who.here = true);
                    passing.passed("writes");
                }
                Effect::HeadStops { reason } => {
                    let passing = self.kill.before("stops", None);
                    self.engine.close_writer(reason);
                    self.shared.who.send_modify(|who| who.here = false);
                    passing.passed("stops");
                }
                Effect::ToMember { to, message } => {
                    let passing = self.kill.before_message(&message);
                    self.around.members.send(&to, &message);
                    passing.passed("a message");
                }
                Effect::Lease { until } => self.engine.set_lease(until),
                Effect::HeadDrain { op, deadline } => {
                    let passing = self.kill.before("drain", None);
                    let inbox = self.inbox.clone();
                    self.engine.drain(deadline, move |drained| {
                        tracing::info!(rolled_back = drained.rolled_back, unanswered = drained.unanswered, "the writer is drained");
                        inbox.send(Event::HeadDrained { op });
                    });
                    passing.passed("drain");
                }
                Effect::HeadUndrain => self.engine.undrain(),
                Effect::CommitsPause(paused) => self.engine.commits_pause(paused),
                Effect::OpMoved(op) => {
                    tracing::info!(op = %op.order.id, by = %op.by, "an operation moved on: {:?}", op.state);
                    let passing = self.kill.before_phase(&op);
                    self.shared.op_moved(*op);
                    passing.passed("a phase");
                }
                Effect::Failover(record) => tracing::info!(op = %record.op, complete = record.complete, "a failover is recorded"),
                Effect::Audited(entries) => self.around.audit.write(entries),
                Effect::ReadTouched { archive } => self.around.tails.read(archive),
                Effect::Gate(gate) => {
                    match &gate {
                        WriteGate::Open => {}
                        WriteGate::Closed { reason } => tracing::warn!("writes are stopped: {reason}"),
                        WriteGate::Fenced { reason, .. } => tracing::warn!("the writer port is not served any more: {reason}"),
                    }
                    self.engine.set_gate(gate);
                }
                Effect::PrimaryIs(primary) => {
                    self.engine.set_primary(primary.as_ref().map(ToString::to_string));
                    self.shared.who.send_modify(|who| who.primary = primary);
                }
                Effect::Members(members) => {
                    let passing = self.kill.before("members", None);
                    self.around.members.changed(&members);
                    passing.passed("members");
                }
                Effect::HeadHides { reason } => {
                    let passing = self.kill.before("hides", None);
                    self.engine.hide(reason);
                    passing.passed("hides");
                }
                Effect::Places { places } => self.copies.set_places(places),
                Effect::Retired { slot, place, by } => self.copies.retire(slot, place.as_deref(), &by),
                Effect::Note(event) => {
                    tracing::info!(kind = %event.kind, epoch = event.epoch.0, "{}", event.what);
                    let passing = self.kill.before(&event.kind, None);
                    let mut events = self.shared.events.lock();
                    if events.len() >= EVENTS_KEPT {
                        events.pop_front();
                    }
                    events.push_back(event);
                    drop(events);
                    passing.passed("an event");
                }
            }
        }
    }

    fn send(&self, conn: ConnId, message: &Message) {
        let Some(link) = self.shared.links.read().get(&conn).cloned() else { return };
        let mut parts = message.encode();
        match message.lane() {
            Lane::Batch => {
                let bytes: usize = parts.iter().map(bytes::Bytes::len).sum();
                if let Some(twin) = message.encode_twin() {
                    link.send_datagram_after(TWIN_AFTER, twin);
                } else if bytes <= TWIN_BATCH_BYTES_MAX {
                    link.send_batch_after(TWIN_AFTER, parts.clone());
                }
                link.send_batch(parts);
            }
            Lane::Control => link.send_control(parts.swap_remove(0)),
            Lane::Datagram => link.send_datagram(parts.swap_remove(0)),
        }
    }

    fn publish(&mut self) {
        let now = clock::now();
        if now.since(self.reported_at) < REPORT_EVERY {
            return;
        }
        self.reported_at = now;
        self.node.handle(now, clock::unix_now(), Event::HeadPins { oldest: self.engine.oldest_pin() });
        self.flush();
        self.copies.set_serving(self.node.rebuilds_copies());
        *self.shared.control.write() = self.node.control_view(now).map(Arc::new);
        *self.shared.audit_head.lock() = self.node.audit_head();
        if let Some(ledger) = self.node.ledger()
            && **self.shared.ledger.read() != *ledger
        {
            *self.shared.ledger.write() = Arc::new(ledger.clone());
        }
        *self.shared.report.write() = Arc::new(self.node.report(now, clock::unix_now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::UnixMicros;
    use crate::control::{OpId, OpState, Order, OrderKind, Phase};

    #[test]
    fn the_end_of_an_operation_stays_whatever_comes_late() {
        let region = RegionName::new("us-east").unwrap();
        let view = |state: OpState| OpView {
            order: Order {
                id: OpId(7),
                kind: OrderKind::RemoveRegion { region: region.clone() },
                dry_run: true,
                timeout_ms: 1,
                at_epoch: None,
                actor: String::new(),
            },
            from: None,
            by: region.clone(),
            state,
            phases: Vec::new(),
            began_at: UnixMicros(0),
            epoch: None,
            checks: Vec::new(),
            loss: None,
            predicted_gap_ms: None,
        };
        let mut moved = VecDeque::new();
        for state in [OpState::Running(Phase::Check), OpState::Done, OpState::Running(Phase::Check)] {
            note_moved(&mut moved, view(state));
        }
        assert_eq!(moved.iter().map(|o| o.state.clone()).collect::<Vec<_>>(), [OpState::Done]);
    }
}
