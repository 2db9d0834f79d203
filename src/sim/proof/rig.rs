//! A whole volume on a bench: one appender, six copies, six simulated disks, and nothing else. No region, no SQL, no network.
//!
//! Decides in which order things happen, from its seed: what a copy takes at once, when its answers arrive, when layers are
//! written. Before each writing call of any disk a *probe* may look (that is where the power is cut, see [`super::powercut`]).
//! Everything the volume says is held against the [`Story`]; the first lie ends the run.

use super::Checked;
use super::bench::Seen;
pub(super) use super::bench::{Bench, Disks, Probe};
use super::changing::{Elsewhere, home};
use super::story::{Said, Story};
use crate::base::{CopyId, Epoch, GroupId, Instant, Layout, Limits, LineageId, LogEnd, Lsn, MemberId, Prng, UnixMicros};
use crate::log::Pen;
use crate::sim::disk::SimDisk;
use crate::volume::identity;
use crate::volume::membership::{Incarnation, Membership, Record, Step};
use crate::volume::{Appender, AppenderEffect, Copy, CopyReply, CopyRequest, Disk, Found, LostLog, OpenError, VolumePhase, proven_durable};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Rounds in which a healthy volume must have come to rest.
const ROUNDS_MAX: u32 = 6000;
/// No copy is given more requests than this without being asked to flush.
pub(super) const BURST: u64 = 6;
/// Of a million starts so many have lost the note of where a copy lives that was replaced.
const PLACE_FORGOTTEN: u64 = 250_000;

#[derive(Default)]
pub(super) struct Slot {
    pub copy: Option<Copy>,
    pub(super) requests: VecDeque<CopyRequest>,
    pub(super) replies: VecDeque<CopyReply>,
    /// Not opened before `release`.
    held: bool,
}

/// One protection group.
pub(super) fn member(copy: CopyId) -> MemberId {
    MemberId { group: GroupId(0), copy }
}

/// What is allowed to be wrong with a disk, beyond a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// Nothing: a copy that cannot be opened is a failure.
    None,
    /// Damage: such a copy is moved aside and rebuilt as soon as the volume serves without it.
    Damage,
    /// Calls that fail: such a copy is opened again.
    Errors,
    /// As damage, of disks that said they had synced: what was durable may be missing, and that must be said.
    Lies,
}

pub(super) struct Rig {
    pub bench: Arc<Bench>,
    /// Why recovery waits, as it says.
    pub waits: Option<String>,
    /// What recovery found to be missing: whoever drives it halts then.
    pub lost: Option<LostLog>,
    /// The writer's machine stood still for so long, its clocks too: those of the copies are ahead.
    pub ahead: Duration,
    /// The rule that is switched off: frames carry no gate.
    pub ungated: bool,
    /// Copies that came with less than they once had.
    pub forgot: Vec<String>,
    /// Behind this it goes on, or would.
    pub behind: LogEnd,
    /// Why writes were stopped last, as the volume said.
    pub stopped: Option<String>,
    /// Said when a copy was found damaged.
    pub damage: Vec<String>,
    harm: Harm,
    limits: Limits,
    pub(super) prng: Prng,
    pub(super) now: Instant,
    pub(super) appender: Appender,
    pen: Option<Pen>,
    pub(super) ready: bool,
    /// Who opened last in each slot.
    pub(super) incarnations: [Incarnation; 6],
    /// The membership that was put on the copies last.
    pub(super) record: Option<Membership>,
    /// It is to be replaced as soon as that may begin.
    pub(super) wanted: Option<CopyId>,
    /// The place of the candidate that came last, and whether it is to be sent away again.
    pub(super) candidate: String,
    pub(super) cancels: bool,
    /// Copies that were replaced, and replacements that were cancelled, to their ends.
    pub(super) changes: [u32; 2],
    control: Vec<u8>,
    pub(super) control_asked: u64,
    pub(super) slots: [Slot; 6],
}

pub(super) fn limits() -> Limits {
    Limits { version_retain: Duration::from_millis(40), log_retain_bytes: 6 << 10, ..Limits::tiny() }
}

/// Some of them sealed, as the seed says.
pub(super) fn new_disks(seed: u64) -> Disks {
    let mut prng = Prng::new(seed).fork("sealed");
    let all = [false, true].map(|sealed| alike(seed, sealed));
    std::array::from_fn(|i| Arc::clone(&all[usize::from(prng.chance(400_000))][i]))
}

/// All of them sealed, or none.
pub(super) fn alike(seed: u64, sealed: bool) -> Disks {
    std::array::from_fn(|i| {
        let seed = seed ^ ((i as u64 + 1) << 56);
        Arc::new(if sealed { SimDisk::sealed(seed) } else { SimDisk::new(seed) })
    })
}

impl Rig {
    /// The volume's first start on these disks, or the next one.
    pub(super) fn start(disks: Disks, story: Story, seed: u64, harm: Harm, probe: Option<Probe>) -> Checked<Rig> {
        Rig::start_with(limits(), disks, story, seed, harm, probe)
    }

    /// As [`Rig::start`], where copies were replaced.
    pub(super) fn start_from(disks: Disks, elsewhere: Elsewhere, story: Story, seed: u64, probe: Option<Probe>) -> Checked<Rig> {
        let mut rig = Rig::new(limits(), disks, story, seed, Harm::None, probe);
        *rig.bench.elsewhere.lock() = elsewhere;
        if rig.prng.chance(PLACE_FORGOTTEN) {
            rig.forget_a_place()?;
        }
        rig.open_all()?;
        Ok(rig)
    }

    /// As [`Rig::start`], within other bounds.
    pub(super) fn start_with(limits: Limits, disks: Disks, story: Story, seed: u64, harm: Harm, probe: Option<Probe>) -> Checked<Rig> {
        let mut rig = Rig::new(limits, disks, story, seed, harm, probe);
        rig.open_all()?;
        Ok(rig)
    }

    fn new(limits: Limits, disks: Disks, story: Story, seed: u64, harm: Harm, probe: Option<Probe>) -> Rig {
        let mut prng = Prng::new(seed).fork("rig");
        let bench = Arc::new(Bench {
            disks: Mutex::new(disks),
            elsewhere: Mutex::default(),
            story: Mutex::new(story),
            doing: Mutex::new("opening a copy"),
            calls: AtomicU64::new(0),
            probe,
        });
        let appender = Appender::new(limits.clone(), Layout::default(), prng.fork("appender"), UnixMicros(1), false);
        Rig {
            bench,
            waits: None,
            lost: None,
            behind: LogEnd::EMPTY,
            forgot: Vec::new(),
            ahead: Duration::ZERO,
            ungated: false,
            stopped: None,
            damage: Vec::new(),
            harm,
            limits,
            prng,
            now: Instant { ns: 1_000_000_000 },
            appender,
            pen: None,
            ready: false,
            incarnations: [Incarnation::UNKNOWN; 6],
            record: None,
            wanted: None,
            candidate: String::new(),
            cancels: false,
            changes: [0; 2],
            control: Vec::new(),
            control_asked: 0,
            slots: Default::default(),
        }
    }

    /// The process is killed and started again; the disks keep what is in the page cache.
    pub(super) fn restart(&mut self) -> Checked {
        for slot in &mut self.slots {
            *slot = Slot { held: slot.held, ..Slot::default() };
        }
        self.appender = Appender::new(self.limits.clone(), Layout::default(), self.prng.fork("appender"), UnixMicros(1), false);
        (self.pen, self.ready, self.waits, self.stopped) = (None, false, None, None);
        self.lost = None;
        if self.prng.chance(PLACE_FORGOTTEN) {
            self.forget_a_place()?;
        }
        self.open_all()
    }

    fn open_all(&mut self) -> Checked {
        self.tell_needs();
        let first = self.prng.below(6);
        for i in 0..6 {
            self.open(CopyId(u8::try_from((first + i) % 6).expect("BUG: six copies")))?;
        }
        self.effects()
    }

    pub(super) fn disk(&self, c: CopyId) -> Arc<SimDisk> {
        Arc::clone(&self.bench.disks.lock()[c.index()])
    }

    pub(super) fn do_as<T>(&mut self, doing: &'static str, act: impl FnOnce(&mut Rig) -> T) -> T {
        let before = std::mem::replace(&mut *self.bench.doing.lock(), doing);
        let out = act(self);
        *self.bench.doing.lock() = before;
        out
    }

    pub(super) fn open(&mut self, c: CopyId) -> Checked {
        if self.slots[c.index()].held || self.slots[c.index()].copy.is_some() {
            return Ok(());
        }
        let disk = self.disk(c);
        disk.restart();
        let seen: Arc<dyn Disk> = Arc::new(Seen { disk, bench: Arc::clone(&self.bench) });
        let limits = self.limits.clone();
        let fresh = self.fresh_incarnation();
        match self.do_as("opening a copy", |_| identity::settle(&*seen, &home(c), fresh).and_then(|_| Copy::open(seen, &limits))) {
            Ok(copy) => {
                self.incarnations[c.index()] = copy.state().incarnation;
                self.note_votes();
                let said = self.bench.story.lock().copies[c.index()];
                let end = copy.state().end;
                if copy.promised() < said.promised && self.harm != Harm::Lies {
                    return Err(format!("copy {c} promised generation {} and knows of {}", said.promised, copy.promised()));
                }
                if end < said.end && !matches!(self.harm, Harm::Damage | Harm::Lies) {
                    return Err(format!("copy {c} said that {} is fsynced and ends at {end}", said.end));
                }
                self.appender.copy_opened(self.now, member(c), copy.promised());
                self.slots[c.index()] = Slot { copy: Some(copy), ..Slot::default() };
                Ok(())
            }
            // The note of where it lives was lost, and the directory that it left says so.
            Err(OpenError::Replaced { place, .. }) => {
                self.move_to(c, place)?;
                self.open(c)
            }
            Err(e @ OpenError::Disk(_)) if self.harm == Harm::Errors || self.disk(c).is_down() => {
                self.lose(c, &e.to_string());
                Ok(())
            }
            Err(e) if matches!(self.harm, Harm::Damage | Harm::Lies) => {
                self.damage.push(format!("{c}: {e}"));
                if let Some((lineage, durable)) = proven_durable(&*self.disk(c)) {
                    self.appender.copy_proves(member(c), lineage, durable);
                }
                if *self.appender.phase() == VolumePhase::Serving && matches!(e, OpenError::Damaged { .. }) {
                    // Its peers have everything: it is moved aside and rebuilt.
                    self.wipe(c);
                    return self.open(c);
                }
                self.slots[c.index()].held = true;
                self.lose(c, &e.to_string());
                Ok(())
            }
            Err(e) => Err(format!("copy {c} cannot be opened after nothing worse than a crash: {e}")),
        }
    }

    /// The copy is out of duty.
    pub(super) fn lose(&mut self, c: CopyId, reason: &str) {
        let held = self.slots[c.index()].held;
        self.slots[c.index()] = Slot { held, ..Slot::default() };
        self.appender.copy_lost(self.now, member(c), reason.to_owned());
    }

    /// Somebody read a copy and found damage: it is moved aside and rebuilt.
    pub(super) fn damaged(&mut self, c: CopyId, reason: &str) {
        self.damage.push(format!("{c}: {reason}"));
        self.lose(c, reason);
        self.wipe(c);
    }

    /// Stops a copy until `release`.
    pub(super) fn hold(&mut self, c: CopyId) {
        self.slots[c.index()].held = true;
        if self.slots[c.index()].copy.is_some() {
            self.lose(c, "stopped");
        }
    }

    pub(super) fn release(&mut self, c: CopyId) {
        self.slots[c.index()].held = false;
    }

    /// A new and empty disk.
    pub(super) fn wipe(&mut self, c: CopyId) {
        let seed = self.prng.next_u64();
        let mut disks = self.bench.disks.lock();
        disks[c.index()] = Arc::new(disks[c.index()].another(seed));
        drop(disks);
        self.bench.story.lock().copies[c.index()] = Said::default();
        self.incarnations[c.index()] = Incarnation::UNKNOWN;
        self.note_votes();
    }

    // ---- what the appender wants -----------------------------------------------------------------------------------

    pub(super) fn effects(&mut self) -> Checked {
        loop {
            let mut moves = BTreeMap::new();
            self.carry_out(&mut moves)?;
            if moves.is_empty() {
                return Ok(());
            }
            // As in a region's process: what recovery found was answered by then.
            self.follow(moves)?;
        }
    }

    fn carry_out(&mut self, moves: &mut BTreeMap<CopyId, Option<String>>) -> Checked {
        while let Some(effect) = self.appender.poll_effect() {
            match effect {
                AppenderEffect::ToCopy { copy: MemberId { copy, .. }, mut request } => {
                    if let (true, CopyRequest::Append { gate, .. }) = (self.ungated, &mut request) {
                        *gate = None;
                    }
                    if let CopyRequest::Append { frames, .. } = &request {
                        let mut story = self.bench.story.lock();
                        for frame in frames {
                            // Control frames are the appender's own; all others a pen wrote.
                            if frame.is_control() { story.note(frame)? } else { story.knows(frame)? }
                        }
                    }
                    if let CopyRequest::PutControl { control, .. } = &request {
                        self.record = Record::decode(control).and_then(|record| record.membership);
                        self.note_votes();
                    }
                    if self.slots[copy.index()].copy.is_some() {
                        self.slots[copy.index()].requests.push_back(request);
                    }
                }
                AppenderEffect::Recovered { found } => self.recovered(&found)?,
                AppenderEffect::RecoveryBeginsAnew => (self.pen, self.ready) = (None, false),
                AppenderEffect::RecoveryWaits { reason, .. } => self.waits = Some(reason),
                AppenderEffect::Restarted { vdl } => {
                    self.bench.story.lock().acknowledge(&vdl)?;
                    self.ready = true;
                }
                AppenderEffect::Durable { vdl, .. } => self.bench.story.lock().acknowledge(&vdl)?,
                AppenderEffect::ControlDurable => {
                    let mut story = self.bench.story.lock();
                    story.control = story.control.max(self.control_asked);
                    let founding = self.pen.is_none() && *self.appender.phase() == VolumePhase::AwaitingSeed;
                    drop(story);
                    if founding {
                        let lineage = LineageId(u128::from(self.prng.next_u64()));
                        self.pen = Some(self.appender.found(self.now, self.wall(), lineage));
                    }
                }
                AppenderEffect::QuorumLost { reason, .. } => self.stopped = Some(reason),
                AppenderEffect::CopyForgot { copy, what } => self.forgot.push(format!("{}: {what}", copy.copy)),
                AppenderEffect::Places { places } => moves.extend(places),
                AppenderEffect::Retired { slot, place, by } => self.retired(slot, place.as_deref(), by[0]),
                AppenderEffect::QuorumRegained | AppenderEffect::CopyChanged { .. } | AppenderEffect::Scrubbed { .. } => {}
                // Met while layers were merged, or read for a peer; the appender has it rebuilt.
                AppenderEffect::CopyDamaged { copy, damage } if matches!(self.harm, Harm::Damage | Harm::Lies) => {
                    self.damage.push(format!("{}: {damage}", copy.copy));
                }
                other => return Err(format!("the volume did what nobody asked for: {other:?}")),
            }
        }
        Ok(())
    }

    fn wall(&self) -> UnixMicros {
        UnixMicros(self.now.ns / 1000)
    }

    fn recovered(&mut self, found: &Found) -> Checked {
        self.waits = None;
        let (acknowledged, control) = {
            let story = self.bench.story.lock();
            (story.acknowledged, story.control)
        };
        let (Found::Empty { control: kept } | Found::Log { control: kept, .. }) = found;
        let kept_control = kept.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        if kept_control < control {
            return Err(format!("control state {control} was durable and {kept_control} is what was found"));
        }
        (self.control, self.control_asked) = (kept.clone(), kept_control);
        if let Found::Log { consistent, .. } = found {
            self.behind = *consistent;
        }
        match found {
            Found::Empty { .. } if acknowledged != LogEnd::EMPTY => {
                Err(format!("durability: {acknowledged} was acknowledged and the volume is taken for empty"))
            }
            Found::Empty { .. } => {
                self.put_control();
                Ok(())
            }
            Found::Log { lost: Some(lost), .. } if self.harm == Harm::Lies => {
                self.lost = Some(lost.clone());
                Ok(())
            }
            Found::Log { lost: Some(lost), .. } => Err(format!("nothing durable is missing, and recovery says: {lost}")),
            Found::Log { consistent, .. } => {
                if !self.bench.story.lock().holds(consistent, &acknowledged)? {
                    return Err(format!("durability: {acknowledged} was acknowledged and recovery goes on behind {consistent}"));
                }
                self.pen = Some(self.appender.lead(self.now, self.wall(), Epoch(1), *consistent));
                Ok(())
            }
        }
    }

    pub(super) fn put_control(&mut self) {
        self.control_asked += 1;
        self.control = self.control_asked.to_le_bytes().to_vec();
        self.control.resize(8 + usize::try_from(self.prng.below(40)).expect("BUG: a small number"), 7);
        self.appender.put_control(self.control.clone(), true);
    }

    // ---- one thing at a time ---------------------------------------------------------------------------------------

    /// A copy takes some of what waits for it, fsyncs once and answers; then it works on its pages.
    pub(super) fn work(&mut self, c: CopyId, most: u64) -> Checked<bool> {
        let Some(mut copy) = self.slots[c.index()].copy.take() else { return Ok(false) };
        let mut replies = Vec::new();
        copy.time_is(self.now + self.ahead);
        let mut appends = 0;
        let mut worked = false;
        for _ in 0..most {
            let Some(request) = self.slots[c.index()].requests.pop_front() else { break };
            worked = true;
            let mut settles = false;
            let doing = match &request {
                CopyRequest::Raise { .. } => "generation raise",
                CopyRequest::PutControl { control, .. } => {
                    let record = Record::decode(control).and_then(|record| record.membership);
                    let changing = record.is_some_and(|m| *m.step() != Step::Settled);
                    self.bench.story.lock().copies[c.index()].changing |= changing;
                    settles = !changing;
                    if changing { "membership change" } else { "control state" }
                }
                CopyRequest::Append { frames, .. } => {
                    appends += u32::from(!frames.is_empty());
                    "cut of a tail"
                }
                CopyRequest::SeedBegin { base, .. } => {
                    self.bench.story.lock().copies[c.index()].pages_from = base.end.end_lsn;
                    "seed"
                }
                _ => "seed",
            };
            self.do_as(doing, |_| copy.handle(request, &mut replies));
            if settles {
                self.bench.story.lock().copies[c.index()].changing = false;
            }
        }
        self.do_as(if appends > 1 { "group commit" } else { "commit" }, |_| copy.flush(&mut replies));
        worked |= self.do_as("trim", |_| copy.ingest(&mut replies));
        self.heard(c, copy, replies)?;
        Ok(worked)
    }

    /// Writes or merges layers, if there is anything to do.
    pub(super) fn job(&mut self, c: CopyId) -> Checked<bool> {
        let Some(mut copy) = self.slots[c.index()].copy.take() else { return Ok(false) };
        let Some(job) = copy.background_job() else {
            self.slots[c.index()].copy = Some(copy);
            return Ok(false);
        };
        let done = self.do_as(if job.merges() { "compaction" } else { "layer write" }, |_| job.run());
        let mut replies = Vec::new();
        self.do_as("trim", |_| copy.finish(done, &mut replies));
        self.heard(c, copy, replies)?;
        Ok(true)
    }

    /// Notes what a copy says from now on to be true, and puts it on its way.
    fn heard(&mut self, c: CopyId, copy: Copy, replies: Vec<CopyReply>) -> Checked {
        let failed = copy.failed().map(str::to_owned);
        let down = self.disk(c).is_down();
        for reply in &replies {
            let mut story = self.bench.story.lock();
            let said = &mut story.copies[c.index()];
            match reply {
                CopyReply::Raised { generation, .. } => said.promised = said.promised.max(*generation),
                CopyReply::Appended { end, .. } => said.end = *end,
                CopyReply::Log { frames, .. } => {
                    for frame in frames {
                        story.knows(frame)?;
                    }
                }
                CopyReply::Unreadable { reason, .. } if self.harm == Harm::None && !down && reason.contains("damaged") => {
                    return Err(format!("copy {c} is damaged after nothing worse than a crash: {reason}"));
                }
                _ => {}
            }
        }
        let slot = &mut self.slots[c.index()];
        slot.copy = Some(copy);
        slot.replies.extend(replies.into_iter().filter(|r| !matches!(r, CopyReply::Failed { .. })));
        if let Some(reason) = failed {
            if self.harm == Harm::None && !down {
                return Err(format!("copy {c} left its duty on a healthy disk: {reason}"));
            }
            if self.harm == Harm::Damage {
                self.damage.push(format!("{c}: {reason}"));
            }
            // What it said before it failed may still arrive; what a machine without power said does not.
            if !down {
                while self.deliver(c)? {}
            }
            self.lose(c, &reason);
            self.effects()?;
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self, c: CopyId) -> Checked<bool> {
        let Some(reply) = self.slots[c.index()].replies.pop_front() else { return Ok(false) };
        self.appender.handle_reply(self.now, member(c), reply);
        self.effects()?;
        Ok(true)
    }

    pub(super) fn pass(&mut self, ns: u64) -> Checked {
        self.now = Instant { ns: self.now.ns + ns };
        if self.appender.next_timeout().is_some_and(|at| at <= self.now) {
            self.appender.handle_timeout(self.now);
        }
        self.effects()
    }

    /// A commit. `false`: the volume takes none now.
    pub(super) fn write(&mut self) -> Checked<bool> {
        if !self.ready || !self.appender.has_quorum() {
            return Ok(false);
        }
        let Some(pen) = self.pen.as_mut() else { return Ok(false) };
        let frames = self.bench.story.lock().write(&mut self.prng, pen, self.now.ns / 1000)?;
        self.appender.append(self.now, frames);
        self.effects()?;
        Ok(true)
    }

    pub(super) fn tell_needs(&mut self) {
        let pin = self.bench.story.lock().pin;
        self.appender.set_needs(pin.map_or(Lsn(u64::MAX), |p| p.end_lsn), None, None, None);
    }

    pub(super) fn any(&mut self) -> CopyId {
        CopyId(u8::try_from(self.prng.below(6)).expect("BUG: six copies"))
    }

    /// Until the volume serves and all copies that are not held have everything, as layers and pages, too.
    pub(super) fn rest(&mut self) -> Checked {
        for _ in 0..ROUNDS_MAX {
            let mut busy = false;
            for c in CopyId::all() {
                if self.slots[c.index()].copy.is_none() && !self.slots[c.index()].held {
                    self.open(c)?;
                }
                self.effects()?;
                busy |= self.work(c, BURST)?;
                while self.deliver(c)? {
                    busy = true;
                }
                busy |= self.job(c)?;
            }
            if busy {
                continue;
            }
            if self.harm == Harm::Damage && *self.appender.phase() == VolumePhase::Serving && self.slots.iter().any(|s| s.held) {
                // Looked at again after a moment, as every copy that left its duty.
                for c in CopyId::all() {
                    self.release(c);
                }
                continue;
            }
            if self.is_at_rest() {
                return Ok(());
            }
            let next = self.appender.next_timeout().map_or(1_000_000, |at| at.ns.saturating_sub(self.now.ns).max(10_000));
            self.pass(next.min(500_000_000))?;
        }
        Err(format!("the volume does not come to rest: {}", self.describe()))
    }

    fn is_at_rest(&self) -> bool {
        let vdl = *self.appender.vdl();
        let has_all = |c: CopyId| {
            let slot = &self.slots[c.index()];
            slot.held || slot.copy.as_ref().is_some_and(|copy| copy.state().end == vdl && copy.pages().ingested() == vdl.end_lsn)
        };
        self.ready
            && !self.appender.is_changing()
            && vdl != LogEnd::EMPTY
            && vdl == *self.appender.end()
            && CopyId::all().into_iter().all(has_all)
    }

    pub(super) fn describe(&self) -> String {
        let copies: Vec<String> =
            (self.appender.copies().iter()).map(|c| format!("{} {:?} at {}", c.copy, c.health, c.durable_end)).collect();
        format!(
            "{:?}, {:?}, end {}, VDL {}, {:?}; {}",
            self.appender.phase(),
            self.record.as_ref().map(Membership::step),
            self.appender.end(),
            self.appender.vdl(),
            self.waits,
            copies.join("; ")
        )
    }
}
