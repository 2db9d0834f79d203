//! The world of one run: time, the network, clients, and what each member's core wants.
//!
//! Decides the order of everything from one seed. What goes wrong, and when, is in [`super::faults`].

use super::checks::{self, Acked, Truth};
use super::log::Kind;
use super::member::{Clock, Lead, Member, Pending};
use super::mutants::RoleMutant;
use super::plots::Plot;
use super::{RolesCounts, RolesOptions};
use crate::base::{Epoch, Instant, LineageId, LogEnd, Prng, RegionName, Seq, UnixMicros};
use crate::control::{
    AutoFailover, Control, ControlMessage, Input, LogPosition, OpId, OpState, OrderKind, Output, Promotion, ReignKind, Settings, VoterSet,
    VoterState, Who,
};
use crate::log::{Frame, History};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(super) const MS: u64 = 1_000_000;
/// How far clocks differ in these worlds: far more than crystals, so that what ignores it is seen.
const RHO_PPM: u32 = 100_000;
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
    pub members: Vec<Member>,
    pub regions: usize,
    pub network: Network,
    pub truth: Truth,
    pub counts: RolesCounts,
    pub mutant: Option<RoleMutant>,
    pub healthy: bool,
    /// Volumes cannot always be taken.
    pub flaky: bool,
    pub sync_wanted: bool,
    pub next_commit: u64,
    todo: VecDeque<(usize, Input)>,
    busy: bool,
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
    last_elected: Option<u64>,
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
        let mut world = World::build(prng, regions, has_witness, &settings, trace);
        world.counts.shapes[regions - 2] = 1;
        world.counts.alone = u64::from(regions == 2 && !has_witness);
        world.mutant = options.mutant;
        world.flaky = true;
        world.sync_wanted = auto_failover == AutoFailover::Lossless || world.prng.chance(200_000);
        let faults_for = world.prng.between(30, 150) * 1000 * MS;
        world.at(8000 * MS, Event::Fault);
        world.at(9000 * MS, Event::Order);
        world.at(8000 * MS + faults_for, Event::Heal);
        world
    }

    /// A world in which nothing goes wrong by itself.
    #[cfg(test)]
    pub fn quiet(regions: usize, witness: bool, settings: &Settings) -> World {
        World::build(Prng::new(1), regions, witness, settings, Arc::new(Mutex::new(Trace::new(400))))
    }

    fn build(mut prng: Prng, regions: usize, has_witness: bool, settings: &Settings, trace: Arc<Mutex<Trace>>) -> World {
        let names: Vec<RegionName> = (0..regions).map(|i| RegionName::new(&format!("r{i}")).expect("BUG: a name")).collect();
        let witness = has_witness.then(|| RegionName::new("witness").expect("BUG: a name"));
        let mut members = Vec::new();
        for name in names.iter().chain(&witness) {
            let who = Who {
                name: name.clone(),
                regions: names.clone(),
                witness: witness.clone(),
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

    /// Everything is well since two minutes: what must have come about.
    fn at_rest(&mut self, ends: u64, settled_epochs: usize) -> Result<(), String> {
        let open: Vec<usize> = (0..self.regions).filter(|m| self.members[*m].gate_open(self.now, None)).collect();
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

    // ---- members --------------------------------------------------------------------------------------------------------

    pub fn start(&mut self, m: usize) {
        let now = self.now;
        let mut prng = self.prng.fork("control");
        let local = self.prng.below(1 << 40);
        let mut kept = self.members[m].kept_state();
        if let (Some(state), true) = (&mut kept, self.members[m].life > 0) {
            self.tamper_kept(m, state);
        }
        let member = &mut self.members[m];
        member.known = crate::control::MembersView::default();
        member.clock = Clock::new(now, local, member.clock.rate_ppm);
        let resumes = kept.as_ref().and_then(|s| s.chain.top()).filter(|t| t.region == *member.name()).cloned();
        let control = Control::new(member.who.clone(), kept, Instant { ns: local }, prng.fork("core"));
        member.control = Some(control);
        let life = member.life;

        self.say(|| format!("{} starts", self.members[m].name()));
        if m < self.regions {
            self.tell_log(m);
            self.after_ms(20, 100, Event::Write { m, life });
            self.after_ms(20, 100, Event::Pull { m, life });
        } else {
            self.input(m, Input::Timeout);
        }
        if let (Some(RoleMutant::ResumesUnasked), Some(entry)) = (self.mutant, resumes.filter(|_| life > 0)) {
            let share = self.members[m].who.settings.holder_share();
            let member = &mut self.members[m];
            member.generation += 8;
            let mut lead = Lead::new(entry.epoch, member.generation * 8 + m as u64);
            lead.open = true;
            member.lead = Some(lead);
            member.gate_from_reply = member.clock.local(now) + share;
        }
    }

    pub fn crash(&mut self, m: usize) {
        self.say(|| format!("{} dies", self.members[m].name()));
        let kept = usize::try_from(self.prng.below(self.members[m].log.volatile_len() as u64 + 1)).expect("BUG: small");
        let reached = usize::try_from(self.prng.below(self.members[m].writing.len() as u64 + 1)).expect("BUG: small");
        let member = &mut self.members[m];
        member.control = None;
        member.life += 1;
        // What was on its way to the disks may have come there or not.
        if let Some((_, bytes)) = member.writing.iter().take(reached).next_back() {
            member.kept = Some(bytes.clone());
        }
        member.writing.clear();
        let settled = member.log.abandon(kept);
        (member.lead, member.following, member.promoting, member.fetching) = (None, None, None, None);
        (member.paused_until, member.suspended_since, member.timer, member.unsealed) = (None, None, None, None);
        member.gate_from_reply = Instant::ZERO;
        member.disk_stuck_until = 0;
        self.note_frames(&settled);
    }

    pub(super) fn tell_log(&mut self, m: usize) {
        let member = &self.members[m];
        let position = LogPosition { end: member.log.end(), history: member.log.history().clone(), covers: member.covers };
        self.input(m, Input::Log(position));
    }

    pub(super) fn note_frames(&mut self, frames: &[Frame]) {
        for frame in frames {
            let outcome = self.truth.frame(frame);
            self.fails(outcome);
        }
    }

    pub fn input(&mut self, m: usize, input: Input) {
        self.todo.push_back((m, input));
        if std::mem::replace(&mut self.busy, true) {
            return;
        }
        while let Some((m, input)) = self.todo.pop_front() {
            let (now, wall) = (self.now, UnixMicros(self.now / 1000));
            let member = &mut self.members[m];
            let Some(control) = &mut member.control else { continue };
            control.handle(member.clock.local(now), wall, input);
            while let Some(output) = self.members[m].control.as_mut().and_then(Control::poll_output) {
                self.perform(m, output);
            }
            let member = &self.members[m];
            let Some(control) = &member.control else { continue };
            let next = control.next_timeout().map(|at| member.clock.real(at, now + 1000));
            if let Some(at) = next.filter(|at| self.members[m].timer.is_none_or(|known| *at < known || known <= now)) {
                self.members[m].timer = Some(at);
                let life = self.members[m].life;
                self.at(at, Event::Timer { m, life, at });
            }
        }
        self.busy = false;
    }

    pub(super) fn disk_ms(&mut self, m: usize) -> u64 {
        let wait = self.prng.between(MS / 2, 5 * MS);
        self.members[m].disk_stuck_until.max(self.now) + wait
    }

    /// Does what the core wants, as a node would.
    fn perform(&mut self, m: usize, output: Output) {
        let life = self.members[m].life;
        if !matches!(output, Output::Persist { .. }) {
            self.say(|| {
                let mut said = match &output {
                    Output::Send { to, message } => format!("-> {to}: {message:?}"),
                    Output::OpMoved(view) => format!("OpMoved {} {:?} by {}", view.order.id, view.state, view.by),
                    other => format!("{other:?}"),
                };
                said.truncate(230);
                format!("{} {said}", self.members[m].name())
            });
        }
        match output {
            Output::Send { to, message } => self.send(m, &to, &message),
            Output::Persist { token, state } => {
                self.members[m].writing.push_back((token, state.encode()));
                let at = self.disk_ms(m);
                self.at(at, Event::Kept { m, life });
                if self.mutant == Some(RoleMutant::AnswersBeforeKept) {
                    self.input(m, Input::Persisted { token });
                }
            }
            Output::Lease { .. } => {
                let now = self.now;
                let member = &mut self.members[m];
                member.gate_from_reply = member.clock.local(now) + member.who.settings.holder_share();
            }
            Output::Touch => {
                let lead = self.members[m].lead.as_ref().map(|l| (l.epoch, l.generation));
                if let Some((epoch, generation)) = lead {
                    self.append(m, epoch, generation, Kind::Empty);
                }
            }
            Output::Drain { op, deadline } => {
                let now = self.now;
                let member = &mut self.members[m];
                if let Some(lead) = &mut member.lead {
                    lead.draining = Some(op);
                }
                let at = member.clock.real(deadline, now);
                self.at(at, Event::DrainEnds { m, life, op });
                self.check_drained(m);
            }
            Output::Undrain { .. } => {
                if let Some(lead) = &mut self.members[m].lead {
                    lead.draining = None;
                }
            }
            Output::Seal { op, epoch, .. } => {
                let Some(generation) = self.members[m].lead.as_ref().filter(|l| l.epoch == epoch).map(|l| l.generation) else { return };
                let end = self.append(m, epoch, generation, Kind::Handover);
                let unseals = self.mutant == Some(RoleMutant::UnsealsItself);
                let member = &mut self.members[m];
                let lead = member.lead.as_mut().expect("BUG: just seen");
                lead.sealing = Some((op, end));
                if unseals {
                    (member.unsealed, lead.draining) = (Some(epoch), None);
                }
            }
            Output::CatchUp { from, up_to } => {
                let member = &mut self.members[m];
                member.fetching = Some((from.clone(), up_to));
                let (end, history) = (member.log.end(), member.log.history().clone());
                if let Some(to) = self.index(&from) {
                    self.ship(m, to, Ship::Fetch { end, history, up_to });
                }
                self.after_ms(3000, 3000, Event::FetchEnds { m, life, from });
            }
            Output::Promote { epoch, how } => {
                if let Promotion::Begin { entry } = &how {
                    let outcome = self.truth.elected(entry);
                    self.fails(outcome);
                    self.last_elected = Some(self.now);
                    let kept = self.members[m].kept_state();
                    self.fails(checks::audited(entry, kept.as_ref()));
                }
                let member = &mut self.members[m];
                member.lead = None;
                member.following = None;
                member.promotion_no += 1;
                member.promoting = Some((epoch, how));
                let no = member.promotion_no;
                self.after_ms(20, 200, Event::Taken { m, life, no });
            }
            Output::Open { epoch } => self.opened(m, epoch),
            Output::Follow { primary, epoch } => {
                let keeps = self.mutant == Some(RoleMutant::ReceivesOldEpoch) && primary.is_none();
                let kept = usize::try_from(self.prng.below(self.members[m].log.volatile_len() as u64 + 1)).expect("BUG: small");
                let member = &mut self.members[m];
                let settled = member.log.abandon(kept);
                (member.lead, member.promoting) = (None, None);
                if !keeps {
                    member.following = primary.map(|p| (epoch, p));
                }
                self.note_frames(&settled);
                if !settled.is_empty() {
                    self.tell_log(m);
                }
            }
            Output::Members(members) => {
                let member = &mut self.members[m];
                member.known = *members;
                if let Some(lead) = &mut member.lead {
                    lead.leaving = None;
                    lead.secondaries.retain(|r, _| !member.known.removed.iter().any(|(gone, _)| gone == r));
                }
                self.counts.member_changes += 1;
            }
            Output::Leaving { region } => {
                if let Some(lead) = &mut self.members[m].lead {
                    lead.secondaries.remove(&region);
                    lead.leaving = Some(region);
                }
            }
            Output::Verify { op, .. } => self.after_ms(5, 100, Event::Verified { m, life, op }),
            Output::CommitRule { sync } => {
                if let Some(lead) = &mut self.members[m].lead {
                    lead.enforced = sync;
                }
            }
            Output::OpMoved(view) => {
                if view.by == *self.members[m].name() && view.state.is_final() {
                    match view.state {
                        OpState::Refused { .. } => self.counts.orders_refused += 1,
                        OpState::Superseded { .. } => self.counts.orders_superseded += 1,
                        _ => {}
                    }
                }
                let outcome = self.truth.op_moved(&view);
                self.fails(outcome);
            }
            Output::Note { kind: "voters_changed", .. } => self.counts.voter_changes += 1,
            Output::Failover(_) => {
                if let Some(epoch) = self.members[m].lead.as_ref().filter(|l| l.open).map(|l| l.epoch) {
                    self.tell_tails(m, epoch);
                }
            }
            Output::LeaseLost { .. } | Output::Note { .. } => {}
        }
    }

    fn opened(&mut self, m: usize, epoch: Epoch) {
        let Some(control) = &self.members[m].control else { return };
        let state = control.state().expect("BUG: it reigns");
        let entry = state.chain.get(epoch).expect("BUG: it reigns").clone();
        // Everything that any member keeps: a failover that was won and never opened is known to the one that won it.
        let mut records = state.ledger.failovers().to_vec();
        for kept in self.members.iter().filter_map(|m| m.kept_state()) {
            for record in kept.ledger.failovers().iter().chain(&kept.pending) {
                if !records.iter().any(|r| r.new_epoch == record.new_epoch) {
                    records.push(record.clone());
                }
            }
        }
        let path: Vec<Epoch> = state.chain.path(epoch).iter().map(|e| e.epoch).collect();
        // A suspended machine's clock stands still; what it does when it goes on is judged then.
        let writable = (0..self.regions)
            .filter(|o| *o != m && self.members[*o].suspended_since.is_none() && self.members[*o].gate_open(self.now, self.mutant))
            .map(|o| (self.members[o].name().clone(), self.members[o].lead.as_ref().expect("BUG: it can write").epoch))
            .next();
        if let Some((name, epoch)) = &writable {
            let o = &self.members[self.index(name).expect("BUG: a member")];
            let control = o.control.as_ref().expect("BUG: it can write");
            self.say(|| {
                format!("{name} can write in {epoch}: {} < {}, rate {}", o.clock.local(self.now), control.lease_until(), o.clock.rate_ppm)
            });
        }
        let outcome = self.truth.opened(&entry, &self.members[m].log, &records, &path, writable);
        self.fails(outcome.map(|_| ()));
        let wanted = self.sync_wanted && self.prng.chance(800_000);
        if let Some(lead) = self.members[m].lead.as_mut().filter(|l| l.epoch == epoch) {
            lead.open = true;
        }
        self.tell_tails(m, epoch);
        let life = self.members[m].life;
        if wanted {
            self.after_ms(10, 3000, Event::Rule { m, life, sync: 1 });
            if self.prng.chance(200_000) {
                self.after_ms(5000, 20000, Event::Rule { m, life, sync: 0 });
            }
        }
    }

    // ---- the network ----------------------------------------------------------------------------------------------------

    pub fn index(&self, name: &RegionName) -> Option<usize> {
        self.members.iter().position(|m| m.name() == name)
    }

    fn send(&mut self, from: usize, to: &RegionName, message: &ControlMessage) {
        let Some(to) = self.index(to) else { return };
        for (to, from, forged) in self.forged(from, to, message) {
            self.after_ms(1, 20, Event::Message { to, from, bytes: forged.encode() });
        }
        self.plot_sees(from, to, message);
        self.counts.messages += 1;
        let bytes = message.encode();
        if self.network.cut.contains(&(from, to)) || self.prng.chance(self.network.loss_ppm) {
            self.counts.messages_lost += 1;
            return;
        }
        if self.prng.chance(self.network.double_ppm) {
            self.counts.messages_doubled += 1;
            let at = self.arrival();
            self.at(at, Event::Message { to, from, bytes: bytes.clone() });
        }
        let mut at = self.arrival();
        if matches!(message, ControlMessage::Handover(_)) && self.now < self.network.handovers_late_until {
            at += self.prng.between(500, 4000) * MS;
        }
        self.at(at, Event::Message { to, from, bytes });
    }

    pub(super) fn ship(&mut self, from: usize, to: usize, ship: Ship) {
        if self.network.cut.contains(&(from, to)) || self.prng.chance(self.network.loss_ppm) {
            return;
        }
        let at = self.arrival();
        self.at(at, Event::Ship { to, from, ship });
    }

    fn arrival(&mut self) -> u64 {
        let (from, to) = self.network.delay_ms;
        let late = self.prng.chance(self.network.late_ppm);
        let ms = if late { self.prng.between(to, 12_000) } else { self.prng.between(from, to) };
        self.counts.messages_late += u64::from(late);
        self.now + ms * MS + self.prng.below(MS)
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
            Event::Fault => self.fault(),
            Event::Order => self.order(),
            Event::Plot => self.plot_goes_on(),
            Event::RestartHeard { m } => self.restart_heard(m),
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
