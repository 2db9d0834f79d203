//! The world of one run: time, what happens in which order, and what must have come about in the end.
//!
//! Decides the order of everything from one seed. What the cores want is done in [`super::perform`]; what goes wrong, and when, is in [`super::faults`].

use super::checks::{Acked, Truth};
use super::log::Kind;
use super::member::{Clock, Member, Pending};
use super::mutants::RoleMutant;
use super::plots::Plot;
use super::{RolesCounts, RolesOptions};
use crate::base::{Epoch, LineageId, LogEnd, Prng, RegionName, Seq, UnixMicros};
use crate::control::{AutoFailover, ControlMessage, Input, OpId, OrderKind, ReignKind, Settings, VoterSet, VoterState, Who};
use crate::log::{Frame, History};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(super) const MS: u64 = 1_000_000;
/// How far clocks differ in these worlds: far more than crystals, so that what ignores it is seen.
const RHO_PPM: u32 = 100_000;
/// Of a stream of its own it is drawn whether witnesses come and go: a seed in which none does is the run that it was before they could.
const WITNESSES_COME: u64 = 0x0077_6974_6e65_7373;
/// Witnesses that may be added, one after the other: names are not used twice.
const SPARES: usize = 3;
/// Two leases, the waits between two tries at their longest, and the rest of what was under way.
const FLOWS_WITHIN_S: u64 = 60;

/// The last steps, for whoever looks at a failure.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub lines: VecDeque<String>,
    lines_max: usize,
    pub now_ns: u64,
}

impl Trace {
    pub fn new(lines_max: usize) -> Trace {
        Trace { lines_max, ..Trace::default() }
    }
}

#[derive(Debug)]
pub(super) enum Event {
    Message {
        to: usize,
        from: usize,
        bytes: Vec<u8>,
    },
    Ship {
        to: usize,
        from: usize,
        ship: Ship,
    },
    Kept {
        m: usize,
        life: u64,
    },
    Settled {
        m: usize,
        life: u64,
        void_no: u64,
        seq: Seq,
    },
    Timer {
        m: usize,
        life: u64,
        at: u64,
    },
    Write {
        m: usize,
        life: u64,
    },
    Pull {
        m: usize,
        life: u64,
    },
    Taken {
        m: usize,
        life: u64,
        no: u64,
    },
    DrainEnds {
        m: usize,
        life: u64,
        op: OpId,
    },
    Verified {
        m: usize,
        life: u64,
        op: OpId,
    },
    AckLater {
        m: usize,
        life: u64,
        commit: Acked,
    },
    FetchEnds {
        m: usize,
        life: u64,
        from: RegionName,
    },
    Rule {
        m: usize,
        life: u64,
        sync: u8,
    },
    Resume {
        m: usize,
    },
    Restart {
        m: usize,
    },
    Crash {
        m: usize,
    },
    CrashShortly {
        m: usize,
    },
    Parted {
        a: usize,
        b: usize,
    },
    OrderOf {
        at: usize,
        kind: OrderKind,
    },
    Plot,
    /// Of the region that an operator swore to be stopped.
    RestartHeard {
        m: usize,
    },
    RestartUnheard {
        m: usize,
    },
    Fault,
    Order,
    Heal,
    /// A member refused `m`, which was taken out.
    Refused {
        m: usize,
        life: u64,
        by: usize,
    },
    /// An operator takes regions in again that were taken out.
    TakeBack,
    /// An operator adds a witness, or takes it out.
    OrderWitness,
}

#[derive(Debug)]
pub(super) enum Ship {
    Pull { epoch: Epoch, end: LogEnd, history: History },
    Frames { epoch: Epoch, asked: LogEnd, common: Seq, frames: Vec<Frame>, as_of: Option<UnixMicros> },
    Fetch { end: LogEnd, history: History, up_to: LogEnd },
    Fetched { common: Seq, frames: Vec<Frame> },
}

/// What the network does at the moment.
#[derive(Debug)]
pub(super) struct Network {
    /// (from, to) that get nothing through.
    pub cut: BTreeSet<(usize, usize)>,
    pub loss_ppm: u64,
    pub double_ppm: u64,
    pub late_ppm: u64,
    pub delay_ms: (u64, u64),
    /// Handovers sent before this are on their way for seconds.
    pub handovers_late_until: u64,
}

pub(super) struct World {
    pub prng: Prng,
    pub now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    event_no: u64,
    /// The regions, the witness of the founding if there is one, and those that may be added.
    pub members: Vec<Member>,
    pub regions: usize,
    pub spares: usize,
    pub network: Network,
    pub truth: Truth,
    pub counts: RolesCounts,
    pub mutant: Option<RoleMutant>,
    pub healthy: bool,
    /// Volumes cannot always be taken.
    pub flaky: bool,
    pub sync_wanted: bool,
    pub next_commit: u64,
    pub todo: VecDeque<(usize, Input)>,
    pub busy: bool,
    wrong: Option<String>,
    trace: Arc<Mutex<Trace>>,
    pub orders_given: Vec<(usize, crate::control::Order)>,
    pub last_ack: u64,
    /// A schedule that waits for a message.
    pub plot: Option<Plot>,
    /// Nothing goes wrong by chance before.
    pub calm_until: u64,
    /// A region that stays away when everything else is well.
    pub away: Option<usize>,
    /// An operator swore that this region is stopped, and keeps it so for a while.
    pub sworn: Option<usize>,
    /// When the first commit after all faults was acknowledged.
    healed_at: u64,
    flows_since: Option<u64>,
    pub last_elected: Option<u64>,
}

impl World {
    pub fn new(seed: u64, options: &RolesOptions, trace: Arc<Mutex<Trace>>) -> World {
        let mut prng = Prng::new(seed);
        let regions = options.regions.unwrap_or_else(|| [2, 2, 2, 3, 3, 4, 5, 6][prng.below(8) as usize]);
        // Two without a witness have one vote between them; four have three voters, or five with a witness; six have five.
        let has_witness = match regions {
            2 => prng.chance(700_000),
            4 => prng.chance(500_000),
            _ => false,
        };
        let auto = [AutoFailover::Off, AutoFailover::Lossless, AutoFailover::MaxLoss(Duration::from_secs(20))];
        let auto_failover = auto[prng.below(3) as usize];
        let guard = options.mutant != Some(RoleMutant::NoDriftGuard);
        let settings = Settings {
            rho_ppm: if guard { RHO_PPM } else { 0 },
            delta: Duration::from_millis(if guard { 50 } else { 0 }),
            auto_failover: Some(auto_failover),
            // A candidate that is more patient than a lease is long meets voters whose grants ended while it asked.
            vote_patience: Duration::from_secs(if prng.chance(250_000) { 12 } else { 2 }),
            ..Settings::default()
        };
        let come = Prng::new(seed ^ WITNESSES_COME).chance(300_000);
        let mut world = World::build(prng, regions, (has_witness, if come { SPARES } else { 0 }), &settings, trace);
        world.counts.shapes[regions - 2] = 1;
        world.counts.alone = u64::from(regions == 2 && !has_witness);
        world.mutant = options.mutant;
        world.flaky = true;
        world.sync_wanted = auto_failover == AutoFailover::Lossless || world.prng.chance(200_000);
        let faults_for = world.prng.between(30, 150) * 1000 * MS;
        world.at(8000 * MS, Event::Fault);
        world.at(9000 * MS, Event::Order);
        world.at(8000 * MS + faults_for, Event::Heal);
        if come {
            world.at(8500 * MS, Event::OrderWitness);
        }
        world
    }

    /// A world in which nothing goes wrong by itself.
    #[cfg(test)]
    pub fn quiet(regions: usize, witness: bool, settings: &Settings) -> World {
        World::quiet_with_spares(regions, (witness, 0), settings)
    }

    /// And with witnesses that are none yet.
    #[cfg(test)]
    pub fn quiet_with_spares(regions: usize, witnesses: (bool, usize), settings: &Settings) -> World {
        World::build(Prng::new(1), regions, witnesses, settings, Arc::new(Mutex::new(Trace::new(400))))
    }

    fn build(mut prng: Prng, regions: usize, (has_witness, spares): (bool, usize), settings: &Settings, trace: Arc<Mutex<Trace>>) -> World {
        let names: Vec<RegionName> = (0..regions).map(|i| RegionName::new(&format!("r{i}")).expect("BUG: a name")).collect();
        let witness = has_witness.then(|| RegionName::new("witness").expect("BUG: a name"));
        let later: Vec<RegionName> = (0..spares).map(|i| RegionName::new(&format!("w{}", i + 2)).expect("BUG: a name")).collect();
        let mut members = Vec::new();
        for name in names.iter().chain(&witness).chain(&later) {
            let who = Who {
                name: name.clone(),
                regions: names.clone(),
                // As its own file says.
                witness: later.iter().find(|w| *w == name).or(witness.as_ref()).cloned(),
                has_data: names.contains(name),
                settings: settings.clone(),
                addrs: std::collections::BTreeMap::new(),
            };
            let rho = i64::from(RHO_PPM) * 99 / 100;
            let rate = [-rho, rho, 0, 500][prng.below(4) as usize];
            members.push(Member::new(who, Clock::new(0, prng.below(1 << 40), rate)));
        }
        let founding = VoterSet::founding(&names[0], &names, witness.as_ref());
        let state = VoterState::founding(LineageId(7), &names[0], founding, UnixMicros(0));
        let mut truth = Truth::default();
        truth.founded(state.chain.top().expect("BUG: founded"));
        members[0].kept = Some(state.encode());
        let mut world = World {
            prng,
            now: 0,
            queue: BTreeMap::new(),
            event_no: 0,
            members,
            regions,
            spares,
            network: Network { cut: BTreeSet::new(), loss_ppm: 0, double_ppm: 0, late_ppm: 0, delay_ms: (1, 40), handovers_late_until: 0 },
            truth,
            counts: RolesCounts { runs: 1, ..RolesCounts::default() },
            mutant: None,
            healthy: false,
            flaky: false,
            sync_wanted: false,
            next_commit: 1,
            todo: VecDeque::new(),
            busy: false,
            wrong: None,
            trace,
            orders_given: Vec::new(),
            last_ack: 0,
            plot: None,
            calm_until: 0,
            away: None,
            sworn: None,
            healed_at: u64::MAX,
            flows_since: None,
            last_elected: None,
        };
        for m in 0..world.members.len() {
            world.start(m);
        }
        world
    }

    /// Lets so much time pass.
    #[cfg(test)]
    pub fn run_for(&mut self, ms: u64) -> Result<(), String> {
        let until = self.now + ms * MS;
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= until) {
            let ((when, _), event) = entry.remove_entry();
            self.now = when;
            self.counts.events += 1;
            self.happen(event);
            if let Some(what) = self.wrong.take() {
                return Err(format!("{what}\n{}", self.trace.lock().lines.iter().cloned().collect::<Vec<_>>().join("\n")));
            }
        }
        self.now = until;
        Ok(())
    }

    pub fn say(&self, line: impl FnOnce() -> String) {
        let mut trace = self.trace.lock();
        trace.now_ns = self.now;
        if trace.lines_max > 0 {
            if trace.lines.len() >= trace.lines_max {
                trace.lines.pop_front();
            }
            let line = format!("+{:>9.3}s {}", self.now as f64 / 1e9, line());
            trace.lines.push_back(line);
        }
    }

    pub fn at(&mut self, when: u64, event: Event) {
        self.event_no += 1;
        self.queue.insert((when.max(self.now), self.event_no), event);
    }

    pub fn after_ms(&mut self, from: u64, to: u64, event: Event) {
        let wait = self.prng.between(from * MS, to * MS);
        self.at(self.now + wait, event);
    }

    pub(super) fn fails(&mut self, outcome: Result<(), String>) {
        if let Err(what) = outcome {
            self.wrong.get_or_insert(what);
        }
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Result<RolesCounts, String> {
        let mut ends = u64::MAX;
        let mut settled_epochs = 0;
        while let Some(((when, _), event)) = self.queue.pop_first() {
            self.now = when;
            self.counts.events += 1;
            if self.counts.events > 3_000_000 {
                return Err(format!("it does not come to rest: {event:?}"));
            }
            if let Event::Heal = event {
                self.heal();
                self.healed_at = self.now;
                ends = self.now + 120_000 * MS;
                settled_epochs = self.truth.epochs_elected();
            } else {
                self.happen(event);
            }
            if let Some(what) = self.wrong.take() {
                self.trace.lock().now_ns = self.now;
                return Err(what);
            }
            if self.now >= ends {
                break;
            }
        }
        self.trace.lock().now_ns = self.now;
        self.counts.virtual_s = self.now / (1000 * MS);
        self.at_rest(ends, settled_epochs)?;
        self.counts.lost_and_named = self.truth.lost();
        for entry in self.truth.reigns() {
            self.counts.reigns += 1;
            match entry.kind {
                ReignKind::Planned => self.counts.switchovers += 1,
                ReignKind::Unplanned => self.counts.failovers += 1,
                ReignKind::Regained => self.counts.regained += 1,
                ReignKind::Unproven => self.counts.unproven += 1,
                ReignKind::Founding => {}
            }
        }
        Ok(self.counts)
    }

    /// A commit was acknowledged now.
    pub(super) fn commit_flows(&mut self) {
        self.last_ack = self.now;
        if self.now > self.healed_at {
            self.flows_since.get_or_insert(self.now);
        }
    }

    /// By a word of the operator that was not true; both say so, and what helps.
    fn took_each_other_out(&self) -> bool {
        let says =
            |m: &super::member::Member| m.control.as_ref().and_then(|c| c.out()).is_some_and(|why| why.contains("force-new-lineage"));
        self.truth.was_forsworn() && self.members[..self.regions].iter().all(says)
    }

    /// Everything is well since two minutes: what must have come about.
    fn at_rest(&mut self, ends: u64, settled_epochs: usize) -> Result<(), String> {
        let open: Vec<usize> = (0..self.regions).filter(|m| self.members[*m].gate_open(self.now, None)).collect();
        if open.is_empty() && self.took_each_other_out() {
            return Ok(()); // which history goes on an operator has to say
        }
        let [primary] = open[..] else {
            let views: Vec<String> = self
                .members
                .iter()
                .filter_map(|m| Some(format!("{}: {:?}", m.name(), m.control.as_ref()?.view(m.clock.local(self.now)))))
                .collect();
            return Err(format!("L1: {} regions can write two minutes after everything was well: {views:#?}", open.len()));
        };
        if self.last_ack + 10_000 * MS < ends {
            return Err(format!("L1: the last commit was acknowledged {} s before the end", (ends - self.last_ack) / (1000 * MS)));
        }
        let took = self.flows_since.map_or(u64::MAX, |at| (at - self.healed_at) / (1000 * MS));
        if took > FLOWS_WITHIN_S {
            return Err(format!("L1: the first commit was acknowledged {took} s after everything was well"));
        }
        let end = self.members[primary].log.end();
        for (i, m) in self.members[..self.regions].iter().enumerate() {
            if self.away == Some(i) {
                continue;
            }
            if m.log.end().seq.0 + 50 < end.seq.0 || !self.members[primary].log.holds(&m.log.end()) {
                return Err(format!("L3: {} stands at {} and the primary at {end}; following {:?}", m.name(), m.log.end(), m.following));
            }
        }
        let epochs = self.truth.epochs_elected() - settled_epochs;
        if epochs > 6 {
            return Err(format!("L5: {epochs} epochs in two minutes of quiet"));
        }
        if let Some(late) = self.last_elected.filter(|at| *at > self.healed_at + 60_000 * MS) {
            return Err(format!("L5: an epoch was won {} s after everything was well", (late - self.healed_at) / (1000 * MS)));
        }
        let mut records = Vec::new();
        for m in self.members.iter().filter_map(|m| m.control.as_ref()) {
            for record in m.failovers() {
                match records.iter_mut().find(|r: &&mut crate::control::FailoverRecord| r.new_epoch == record.new_epoch) {
                    Some(known) if !known.complete => *known = record.clone(),
                    Some(_) => {}
                    None => records.push(record.clone()),
                }
            }
            if let Some(op) = m.state().and_then(|s| s.ledger.ops().iter().find(|o| !o.state.is_final())) {
                // Whoever is away may have had it.
                if self.away.is_none_or(|a| *self.members[a].name() != op.by) {
                    return Err(format!("L2, S16: an operation has not ended two minutes after everything was well: {op:?}"));
                }
            }
        }
        let path = self.members[primary].control.as_ref().and_then(|c| {
            let (state, epoch) = (c.state()?, c.reign()?.0);
            Some(state.chain.path(epoch).iter().map(|e| e.epoch).collect::<Vec<_>>())
        });
        let away = self.away.map(|a| self.members[a].name().clone());
        self.truth.settled(&records, &path.unwrap_or_default(), &self.members[primary].log, away.as_ref())
    }

    // ---- what happens ---------------------------------------------------------------------------------------------------

    fn happen(&mut self, event: Event) {
        if let Some((m, until)) = self.held_back(&event) {
            let _ = m;
            return self.at(until + 1, event);
        }
        match event {
            Event::Message { to, from, bytes } => {
                let message = ControlMessage::decode(&bytes).expect("BUG: what was encoded can be decoded");
                let message = self.tampered(to, from, message);
                let name = self.members[from].name().clone();
                if !self.members[to].lets_in(&name) {
                    let life = self.members[from].life;
                    return self.after_ms(1, 40, Event::Refused { m: from, life, by: to });
                }
                self.input(to, Input::Message { from: name, message });
            }
            Event::Ship { to, from, ship } if self.members[to].control.is_some() => self.shipped(to, from, ship),
            Event::Kept { m, life } if self.lives(m, life) => {
                let Some((token, bytes)) = self.members[m].writing.pop_front() else { return };
                self.members[m].kept = Some(bytes);
                let tampers = matches!(self.mutant, Some(RoleMutant::VoterLosesState | RoleMutant::ResumesSealed));
                if let Some(state) = self.members[m].kept_state().filter(|_| !tampers) {
                    let outcome = self.truth.promised(m, state.promised);
                    self.fails(outcome);
                }
                self.input(m, Input::Persisted { token });
            }
            Event::Settled { m, life, void_no, seq } if self.lives(m, life) && self.members[m].log.void_no == void_no => {
                self.settled(m, seq)
            }
            Event::Timer { m, life, at } if self.lives(m, life) && self.members[m].timer == Some(at) => {
                self.members[m].timer = None;
                self.input(m, Input::Timeout);
            }
            Event::Write { m, life } if self.lives(m, life) => {
                self.write(m);
                self.after_ms(20, 150, Event::Write { m, life });
            }
            Event::Pull { m, life } if self.lives(m, life) => self.pull(m),
            Event::Taken { m, life, no } if self.lives(m, life) => self.taken(m, no),
            Event::DrainEnds { m, life, op } if self.lives(m, life) => {
                if let Some(lead) = self.members[m].lead.as_mut().filter(|l| l.draining == Some(op)) {
                    // Their clients are told that nothing is known of them.
                    lead.pending.clear();
                    self.check_drained(m);
                }
            }
            Event::Verified { m, life, op } if self.lives(m, life) => self.input(m, Input::Verified { op, outcome: Ok(()) }),
            Event::AckLater { m, life, commit } if self.lives(m, life) => self.acknowledged(commit),
            Event::FetchEnds { m, life, from } if self.lives(m, life) => self.input(m, Input::CaughtUp { from }),
            Event::Rule { m, life, sync } if self.lives(m, life) => self.set_rule(m, sync),
            Event::Resume { m } => self.resume(m),
            Event::Restart { m } if self.members[m].control.is_none() && self.away != Some(m) && self.sworn != Some(m) => self.start(m),
            Event::CrashShortly { m } if !self.healthy => self.crash_for(m, 20, 200),
            Event::Parted { a, b } if !self.healthy => {
                self.network.cut.insert((a, b));
                self.network.cut.insert((b, a));
            }
            Event::Crash { m } if !self.healthy => self.crash_for(m, 20, 4000),
            Event::OrderOf { at, kind } => self.order_of(at, kind),
            Event::Refused { m, life, by } if self.lives(m, life) => {
                let by = self.members[by].name().clone();
                self.input(m, Input::SaidOut { by });
            }
            Event::TakeBack => self.take_back(),
            Event::OrderWitness => self.order_witness(),
            Event::Fault => self.fault(),
            Event::Order => self.order(),
            Event::Plot => self.plot_goes_on(),
            Event::RestartHeard { m } => self.restart_heard(m),
            Event::RestartUnheard { m } => self.restart_unheard(m),
            _ => {}
        }
    }

    /// An operator wants another rule of commits.
    pub fn set_rule(&mut self, m: usize, sync: u8) {
        let Some(lead) = self.members[m].lead.as_mut().filter(|l| l.open) else { return };
        if sync > lead.enforced {
            lead.strengthens = Some(sync);
            self.acknowledge(m);
        } else if sync < lead.enforced {
            self.input(m, Input::CommitRule { sync });
        }
    }

    fn lives(&self, m: usize, life: u64) -> bool {
        self.members[m].life == life && self.members[m].control.is_some()
    }

    /// A machine that stands still does nothing; what comes waits.
    fn held_back(&self, event: &Event) -> Option<(usize, u64)> {
        let m = match event {
            Event::Message { to, .. } | Event::Ship { to, .. } => *to,
            Event::Settled { m, .. }
            | Event::Kept { m, .. }
            | Event::Timer { m, .. }
            | Event::Write { m, .. }
            | Event::Pull { m, .. }
            | Event::Taken { m, .. }
            | Event::DrainEnds { m, .. }
            | Event::Verified { m, .. }
            | Event::AckLater { m, .. }
            | Event::FetchEnds { m, .. }
            | Event::Rule { m, .. } => *m,
            _ => return None,
        };
        self.members[m].paused_until.map(|until| (m, until))
    }

    fn write(&mut self, m: usize) {
        let gate = self.members[m].gate_open(self.now, self.mutant);
        let tries = gate || self.prng.chance(100_000);
        let Some(lead) = self.members[m].lead.as_ref() else { return };
        if !(lead.open && lead.draining.is_none() && lead.pending.len() < 20 && tries) || self.members[m].promoting.is_some() {
            return;
        }
        let (epoch, generation, id) = (lead.epoch, lead.generation, self.next_commit);
        self.next_commit += 1;
        let end = self.append(m, epoch, generation, Kind::Commit(id));
        let lead = self.members[m].lead.as_mut().expect("BUG: just seen");
        lead.pending.push_back(Pending { id, end, durable: false });
    }
}
