//! One region of a run: its process (a node, a model of the head, six copies), its clocks, and the carrying of effects.

use super::checker::Checked;
use super::copies::CopySlot;
use super::plan::Plan;
use super::world::{MS, What, World};
use super::{Mutant, workload};
use crate::base::{ClusterName, CopyId, Instant, LogEnd, Lsn, MemberId, Prng, RegionName, TimelineId, UnixMicros, WriteGate};
use crate::control::{OpId, Settings, Touched};
use crate::log::{Frame, Pen};
use crate::node::{Effect, Event, Identity, Node};
use crate::volume::membership::Membership;
use std::collections::VecDeque;

const NAMES: [&str; 4] = ["us-east", "eu-west", "ap-northeast", "sa-east"];
const EPOCH_US: u64 = 1_790_000_000_000_000;

/// What the node told the head, on its way.
pub(super) enum HeadNews {
    Reset(LogEnd),
    Advances { vdl: LogEnd, written_at: Option<UnixMicros> },
    Writes(Pen),
    Stops,
    Drain { op: OpId, deadline: Instant },
    Undrain,
    Touched { archive: TimelineId },
    Gate(WriteGate),
}

/// A commit on its way to its client.
pub(super) struct Commit {
    pub number: u64,
    pub end: LogEnd,
}

/// The model of a head: writes mini-transactions with the pen, sees what is durable, pins what it reads.
#[derive(Default)]
pub(super) struct Head {
    pub pen: Option<Pen>,
    pub gate_open: bool,
    pub gate_reason: String,
    /// Its readers see everything up to here.
    pub visible: LogEnd,
    pub waiting: VecDeque<Commit>,
    pub acknowledged_write: u64,
    pub pin: Option<(Lsn, u64)>,
    /// On this process's clock.
    pub lease_until: Instant,
    /// It is to write nothing, and to say when everything it wrote is acknowledged.
    pub draining: Option<(OpId, Instant)>,
    pub drained: bool,
    /// News arrive in the order in which they were told.
    news_at: u64,
    pub submit_at: u64,
}

/// Short, so that a run of some seconds sees them end.
fn leases() -> Settings {
    let ms = std::time::Duration::from_millis;
    Settings { lease: ms(1500), renew_every: ms(300), handover_patience: ms(2500), ..Settings::default() }
}

pub(super) struct Region {
    pub name: RegionName,
    pub who: Identity,
    /// 0: never started.
    pub incarnation: u64,
    pub node: Option<Node>,
    prng: Prng,
    /// This process's monotonic clock minus virtual time.
    origin_ns: u64,
    timer_at: Option<u64>,
    clock_us: i64,
    clock_ppm: i64,
    /// In the order of [`MemberId::all`].
    pub copies: Vec<CopySlot>,
    pub head: Head,
    /// The last VDL that is not void, in this incarnation.
    pub vdl: LogEnd,
    /// A copy's content was replaced at this time, the last one.
    pub rebuilt_at: u64,
    /// Whose directories have a vote, as was put on the copies last.
    pub membership: Option<Membership>,
    /// The operator began to replace this copy.
    pub replacing: Option<CopyId>,
}

impl Region {
    pub(super) fn new(index: usize, plan: &Plan, prng: &mut Prng, mutant: Option<Mutant>) -> Region {
        let (of, layout) = (plan.regions, plan.layout);
        let members: Vec<RegionName> = NAMES[..of].iter().map(|n| RegionName::new(n).expect("BUG: a valid name")).collect();
        let who = Identity {
            cluster: ClusterName::new("sun").expect("BUG: a valid name"),
            region: members[index].clone(),
            founder: members[0].clone(),
            members: members.clone(),
            addrs: std::collections::BTreeMap::new(),
            witness: None,
            control: leases(),
            version: "sim".into(),
            layout,
        };
        Region {
            name: members[index].clone(),
            who,
            incarnation: 0,
            node: None,
            origin_ns: 0,
            timer_at: None,
            clock_us: i64::try_from(prng.below(1_000_000)).expect("BUG: below a second") - 500_000,
            clock_ppm: i64::try_from(prng.below(400)).expect("BUG: a small number") - 200,
            copies: MemberId::all(layout.groups)
                .map(|m| CopySlot::new(m, prng.next_u64(), plan.is_sealed(index, m.copy.index()), mutant))
                .collect(),
            prng: prng.fork("node"),
            head: Head::default(),
            vdl: LogEnd::EMPTY,
            rebuilt_at: 0,
            membership: None,
            replacing: None,
        }
    }

    pub(super) fn local(&self, now: u64) -> Instant {
        Instant { ns: self.origin_ns + now }
    }

    pub(super) fn wall(&self, now: u64) -> UnixMicros {
        let us = i64::try_from(now / 1000).expect("BUG: virtual time is short");
        UnixMicros(EPOCH_US.saturating_add_signed(self.clock_us + us + us * self.clock_ppm / 1_000_000))
    }

    pub(super) fn step_clock(&mut self, us: i64) {
        self.clock_us += us;
    }
}

impl World {
    /// The region's process starts, unless it runs.
    pub(super) fn start(&mut self, r: usize) {
        let (now, limits) = (self.now, self.plan.limits.clone());
        let region = &mut self.regions[r];
        if region.node.is_some() {
            return;
        }
        region.incarnation += 1;
        region.origin_ns = region.prng.below(1_000_000 * MS);
        region.timer_at = None;
        region.vdl = LogEnd::EMPTY;
        region.head = Head { gate_open: true, ..Head::default() };
        let prng = region.prng.fork("incarnation");
        region.node = Some(Node::new(region.who.clone(), limits, prng, region.wall(now)));
        let (name, incarnation) = (region.name.clone(), region.incarnation);
        self.counts.recoveries += u64::from(incarnation > 1);
        self.say(|| format!("{name} starts, incarnation {incarnation}"));
        self.forget_places(r);
        for copy in self.members() {
            if !self.regions[r].copies[copy.index()].held {
                // Some disks are slow to mount.
                let late = if self.delays.chance(50_000) { 800 * MS } else { 10 * MS };
                let after = self.delays.below(late);
                self.open_copy_after(r, copy, after);
            }
        }
        self.settle_timer(r);
    }

    /// The region's process is gone, at this very moment. `power`: so is the power of its disks.
    pub(super) fn crash_region(&mut self, r: usize, power: bool) {
        let region = &mut self.regions[r];
        if region.node.take().is_none() {
            return;
        }
        let (name, incarnation) = (region.name.clone(), region.incarnation);
        self.say(|| format!("{name} crashes{}, incarnation {incarnation}", if power { " with its power" } else { "" }));
        self.counts.region_crashes += 1;
        for copy in self.members() {
            self.drop_copy(r, copy, power);
        }
        self.break_links_of(r);
        let down = if self.stormy { self.faults.between(20, 2500) } else { 20 };
        self.after(down * MS, What::Start { region: r });
    }

    pub(super) fn timer(&mut self, r: usize, incarnation: u64) -> Checked {
        let region = &mut self.regions[r];
        if region.incarnation != incarnation || region.node.is_none() || region.timer_at != Some(self.now) {
            return Ok(());
        }
        region.timer_at = None;
        self.to_node(r, incarnation, Event::Timeout)
    }

    #[expect(clippy::wrong_self_convention, reason = "something goes to a node; nothing is converted")]
    pub(super) fn to_node(&mut self, r: usize, incarnation: u64, event: Event) -> Checked {
        let now = self.now;
        let region = &mut self.regions[r];
        if region.incarnation != incarnation {
            return Ok(());
        }
        let (local, wall, name) = (region.local(now), region.wall(now), region.name.clone());
        let Some(node) = &mut region.node else { return Ok(()) };
        if !matches!(event, Event::Timeout) {
            self.trace.lock().say(|| format!("{name} <- {}", workload::shortly(&format!("{event:?}"))));
        }
        node.handle(local, wall, event);
        let mut effects = Vec::new();
        while let Some(effect) = node.poll_effect() {
            effects.push(effect);
        }
        for effect in effects {
            self.carry(r, effect)?;
        }
        self.check_positions(r)?;
        self.settle_timer(r);
        Ok(())
    }

    fn settle_timer(&mut self, r: usize) {
        let now = self.now;
        let region = &mut self.regions[r];
        let Some(at) = region.node.as_ref().and_then(Node::next_timeout) else {
            region.timer_at = None;
            return;
        };
        // A timer never fires early; a driver that comes late is ordinary.
        let late = if self.delays.chance(20_000) { self.delays.below(5 * MS) } else { 1000 };
        let at = at.ns.saturating_sub(region.origin_ns).max(now) + late;
        if region.timer_at.is_none_or(|t| t <= now || at < t) {
            region.timer_at = Some(at);
            let incarnation = region.incarnation;
            self.at(at, What::Timer { region: r, incarnation });
        }
    }

    fn carry(&mut self, r: usize, effect: Effect) -> Checked {
        let name = &self.regions[r].name;
        match &effect {
            Effect::Note(note) => self.say(|| format!("{name} notes {}: {}", note.kind, note.what)),
            other => self.say(|| format!("{name} -> {}", workload::shortly(&format!("{other:?}")))),
        }
        let news = match effect {
            Effect::ToCopy { copy, request } => return self.send_to_copy(r, copy, request),
            Effect::Dial { region } => {
                let to = self.regions.iter().position(|other| other.name == region).ok_or("a node dials a region that is no member")?;
                self.dial(r, to);
                return Ok(());
            }
            Effect::Send { conn, message } => return self.send(r, conn, &message),
            Effect::Unlink { conn, .. } => {
                self.unlink(r, conn);
                return Ok(());
            }
            Effect::HeadReset { at } => {
                self.check_found(r, &at)?;
                HeadNews::Reset(at)
            }
            Effect::HeadWrites { pen } => {
                self.check_reign_opens(r, &pen)?;
                HeadNews::Writes(pen)
            }
            Effect::ToMember { to, message } => {
                let to = self.regions.iter().position(|other| other.name == to).ok_or("a node speaks to somebody who is no member")?;
                self.tell_member(r, to, &message);
                return Ok(());
            }
            Effect::Lease { until } => {
                self.regions[r].head.lease_until = until;
                return Ok(());
            }
            Effect::HeadDrain { op, deadline } => HeadNews::Drain { op, deadline },
            Effect::HeadUndrain => HeadNews::Undrain,
            Effect::CommitsPause(_) => return Ok(()),
            Effect::OpMoved(op) => {
                self.op_moved(r, *op);
                return Ok(());
            }
            Effect::Failover(record) => {
                if record.new_epoch > self.truth.epoch() {
                    self.truth.failover(record.new_epoch, &record);
                }
                return Ok(());
            }
            Effect::Audited(_) => return Ok(()),
            // Its pages are no database here.
            Effect::ReadTouched { archive } => HeadNews::Touched { archive },
            Effect::HeadAdvances { vdl, frames } => {
                self.check_advance(r, &vdl, &frames)?;
                HeadNews::Advances { vdl, written_at: frames.last().map(|f| f.header().source_time) }
            }
            Effect::HeadStops { .. } => HeadNews::Stops,
            Effect::Gate(gate) => HeadNews::Gate(gate),
            // No operator adds or takes out regions here.
            Effect::PrimaryIs(_) | Effect::Members(_) | Effect::HeadHides { .. } => return Ok(()),
            Effect::Places { places } => {
                self.move_copies(r, &places);
                return Ok(());
            }
            Effect::Retired { slot, place, by } => {
                self.retired(r, slot, place, &by);
                return Ok(());
            }
            Effect::Note(note) => {
                match note.kind.as_str() {
                    "seeding_done" if r == self.primary() => self.counts.seeds_shipped += 1,
                    "seeding_resumed" => self.counts.seeds_resumed += 1,
                    // The one time that a VDL goes back: what lies beyond is on no history any more.
                    "rewound" => {
                        self.counts.ways_back += 1;
                        self.regions[r].vdl = LogEnd::EMPTY;
                    }
                    "seeded_anew" => {
                        self.counts.seeded_anew += 1;
                        self.regions[r].vdl = LogEnd::EMPTY;
                    }
                    "violation" => return Err(format!("{} calls what it received a violation: {}", self.regions[r].name, note.what)),
                    "halted" | "fenced" => return Err(format!("{} stopped for good: {}", self.regions[r].name, note.what)),
                    "copy_damaged" | "copies_differ" if !self.damage_is_expected(r) => {
                        return Err(format!("{}: damage where nothing was damaged: {}", self.regions[r].name, note.what));
                    }
                    "refused" => return Err(format!("{}: {}", self.regions[r].name, note.what)),
                    // No disk of this world lies on all six copies.
                    "log_lost" | "secondary_lost_log" => {
                        return Err(format!("durability: {} says that it lost log: {}", self.regions[r].name, note.what));
                    }
                    "copy_forgot" if self.counts.backups_put_back == 0 => {
                        return Err(format!("durability: {}: a copy forgot what it had: {}", self.regions[r].name, note.what));
                    }
                    "copy_forgot" => self.counts.copies_reborn += 1,
                    _ => {}
                }
                return Ok(());
            }
        };
        let most = if self.delays.chance(30_000) { 20 * MS } else { MS };
        let after = self.delays.between(1000, most);
        let head = &mut self.regions[r].head;
        head.news_at = head.news_at.max(self.now + after);
        let (at, incarnation) = (head.news_at, self.regions[r].incarnation);
        self.at(at, What::Head { region: r, incarnation, news });
        Ok(())
    }

    pub(super) fn head_news(&mut self, r: usize, incarnation: u64, news: HeadNews) -> Checked {
        let region = &mut self.regions[r];
        if region.incarnation != incarnation || region.node.is_none() {
            return Ok(());
        }
        match news {
            HeadNews::Reset(at) => {
                region.head.visible = at;
                region.head.pin = None;
                self.to_node(r, incarnation, Event::HeadSees { end: at, written_at: None })
            }
            HeadNews::Advances { vdl, written_at } => {
                if vdl.seq < region.head.visible.seq {
                    return Err(format!("{}: what readers see moves back from {} to {vdl}", region.name, region.head.visible));
                }
                region.head.visible = vdl;
                let mut count = 0;
                // The commit point: what is durable when the lease is over stays without an answer.
                let leased = region.local(self.now) < region.head.lease_until;
                let mut last = None;
                while region.head.waiting.front().is_some_and(|c| c.end.seq <= vdl.seq) {
                    let commit = region.head.waiting.pop_front().expect("BUG: a front was seen");
                    if leased {
                        region.head.acknowledged_write = commit.number;
                        count += 1;
                        last = Some(commit.end);
                    }
                }
                self.truth.acknowledged += count;
                if let Some(end) = last {
                    self.check_acknowledged(r, &end)?;
                }
                self.drain_head(r, incarnation)?;
                self.to_node(r, incarnation, Event::HeadSees { end: vdl, written_at })
            }
            HeadNews::Writes(pen) => {
                region.head.pen = Some(pen);
                let after = self.work.below(20 * MS);
                self.after(after, What::Write { region: r, incarnation });
                Ok(())
            }
            HeadNews::Stops => {
                region.head.pen = None;
                region.head.draining = None;
                region.head.waiting.clear();
                Ok(())
            }
            HeadNews::Drain { op, deadline } => {
                region.head.draining = Some((op, deadline));
                region.head.drained = false;
                let at = deadline.ns.saturating_sub(region.origin_ns).max(self.now) + MS;
                self.at(at, What::Drain { region: r, incarnation });
                self.drain_head(r, incarnation)
            }
            HeadNews::Touched { archive } => self.to_node(r, incarnation, Event::Touched { archive, touched: Ok(Touched::default()) }),
            HeadNews::Undrain => {
                region.head.draining = None;
                Ok(())
            }
            HeadNews::Gate(gate) => {
                region.head.gate_open = gate == WriteGate::Open;
                match gate {
                    WriteGate::Open => {}
                    WriteGate::Closed { reason } => region.head.gate_reason = reason,
                    WriteGate::Fenced { reason, .. } => {
                        // Whoever waits is told that the outcome is not known.
                        region.head.waiting.clear();
                        region.head.gate_reason = reason;
                    }
                }
                Ok(())
            }
        }
    }

    /// Drained when everything it wrote is acknowledged, and past the deadline all the same: then some clients do not know.
    pub(super) fn drain_head(&mut self, r: usize, incarnation: u64) -> Checked {
        let region = &mut self.regions[r];
        let Some((op, deadline)) = region.head.draining.filter(|_| region.incarnation == incarnation) else { return Ok(()) };
        if region.head.drained || (!region.head.waiting.is_empty() && region.local(self.now) < deadline) {
            return Ok(());
        }
        region.head.waiting.clear();
        region.head.drained = true;
        // Behind everything that was submitted.
        let at = region.head.submit_at.max(self.now) + 1;
        region.head.submit_at = at;
        self.at(at, What::Node { region: r, incarnation, event: Event::HeadDrained { op } });
        Ok(())
    }

    /// The head hands frames over, in the order of its pen.
    pub(super) fn submit(&mut self, r: usize, frames: Vec<Frame>) {
        let after = self.delays.between(1000, 200_000);
        let region = &mut self.regions[r];
        region.head.submit_at = region.head.submit_at.max(self.now + after);
        let (at, incarnation) = (region.head.submit_at, region.incarnation);
        self.at(at, What::Node { region: r, incarnation, event: Event::Submitted { frames } });
    }
}
