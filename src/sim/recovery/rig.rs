//! Six copies and the processes that append to them, without time or chance: one message after the other, in an order that the
//! plan says, and a look at the disks before every call of one of them.
//!
//! Drives the same [`Node`] and [`Copy`] as production and knows nothing of what they say to each other. What must hold is
//! judged against [`Truth`]: what was once announced as durable stays, and every log is the primary's.

use super::super::checker::Checked;
use super::super::checker::truth::Truth;
use super::super::disk::SimDisk;
use super::{Image, Mutant, Order};
use crate::base::{ClusterName, CopyId, Generation, GroupId, Instant, Layout, Limits, LogEnd, MemberId, Prng, RegionName, Seq, UnixMicros};
use crate::log::{Frame, Pen};
use crate::node::{Effect, Event, Identity, Node};
use crate::volume::{Cipher, Copy, CopyReply, CopyRequest, Disk, DiskError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const EPOCH_US: u64 = 1_790_000_000_000_000;
/// More messages than any recovery of a few frames needs: something spins.
const STEPS_MAX: usize = 2_000;
/// More timers in a row than any recovery needs before it is quiet.
const TIMEOUTS_MAX: usize = 200;

/// A disk that is looked at before each call that changes it.
pub(super) struct LookedAtDisk {
    pub inner: Arc<SimDisk>,
    /// What lay there before each call of this step; `None`: nobody looks.
    looks: Mutex<Option<Vec<SimDisk>>>,
    mutant: Option<Mutant>,
}

impl LookedAtDisk {
    fn look(&self) {
        if let Some(looks) = &mut *self.looks.lock() {
            looks.push(self.inner.fork(looks.len() as u64));
        }
    }
}

impl Disk for LookedAtDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.inner.list()
    }
    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.inner.len(name)
    }
    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.inner.read(name, offset, len_max)
    }
    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.look();
        self.inner.write(name, offset, parts)
    }
    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        self.look();
        self.inner.allocate(name, len)
    }
    fn room(&self) -> u64 {
        self.inner.room()
    }
    fn sync(&self, name: &str) -> Result<(), DiskError> {
        self.look();
        self.inner.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.look();
        if self.mutant == Some(Mutant::PromiseForgotten) && to == "promise" && self.inner.len(to)?.is_some() {
            return self.inner.remove(from);
        }
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.look();
        self.inner.remove(name)
    }
    fn sync_names(&self) -> Result<(), DiskError> {
        self.inner.sync_names()
    }
    fn cipher(&self) -> Option<&dyn Cipher> {
        self.inner.cipher()
    }
}

/// What is under way. Between one process and one copy messages keep their order.
#[expect(clippy::large_enum_variant, reason = "a few dozen at once")]
enum What {
    Request(CopyRequest),
    Event(Event),
}

struct Mail {
    process: usize,
    copy: CopyId,
    what: What,
}

/// A region process: the newest is the one that must get through; an older one may still be there and not know.
pub(super) struct Process {
    pub node: Node,
    pub pen: Option<Pen>,
    born_ns: u64,
    /// The copies it has a way to.
    pub reaches: [bool; 6],
    /// It said itself that it is over, and why.
    pub over: Option<String>,
}

pub(super) struct Rig {
    disks: [Arc<LookedAtDisk>; 6],
    pub copies: [Option<Copy>; 6],
    /// What each copy says is fsynced, or said last.
    pub claims: [LogEnd; 6],
    frozen: [Option<(Arc<SimDisk>, u64)>; 6],
    pub truth: Arc<Truth>,
    pub processes: Vec<Process>,
    mail: VecDeque<Mail>,
    pub order: Order,
    now_ns: u64,
    limits: Limits,
    mutant: Option<Mutant>,
    steps: usize,
    /// Timers in a row, and nothing came of them.
    timeouts: usize,
    /// Where the newest generation goes on: the end of what older ones left.
    old_tail: Option<LogEnd>,
    /// The last copy whose disk was written to.
    acted: CopyId,
}

/// One way in which the step under way could have been the last.
pub(super) struct CrashPoint {
    pub copy: CopyId,
    pub call: u64,
    pub disk: SimDisk,
}

fn member(copy: CopyId) -> MemberId {
    MemberId { group: GroupId(0), copy }
}

fn identity() -> Identity {
    let region = RegionName::new("us-east").expect("BUG: a valid name");
    Identity {
        cluster: ClusterName::new("sun").expect("BUG: a valid name"),
        region: region.clone(),
        founder: region.clone(),
        members: vec![region],
        addrs: std::collections::BTreeMap::new(),
        witness: None,
        // One voter, and no renewal before the end: a recovery ends when nothing moves any more.
        control: crate::control::Settings {
            lease: Duration::from_secs(36_000),
            renew_every: Duration::from_secs(3_600),
            ..crate::control::Settings::default()
        },
        version: "sim".into(),
        layout: Layout::default(),
    }
}

impl Rig {
    /// The six disks as `image` has them; nothing runs yet.
    pub(super) fn new(image: &Image, order: Order, mutant: Option<Mutant>, look: bool) -> Rig {
        // Frame by frame: what comes in one request is on a copy as a whole or not at all.
        // No scrub: it never ends, and decides nothing about the log.
        let limits = Limits { batch_bytes_max: 1, scrub_bytes_per_s: 0, ..Limits::tiny() };
        Rig {
            disks: std::array::from_fn(|i| {
                let inner = Arc::new(image.disks[i].0.fork(i as u64));
                inner.restart();
                Arc::new(LookedAtDisk { inner, looks: Mutex::new(look.then(Vec::new)), mutant })
            }),
            copies: std::array::from_fn(|_| None),
            claims: image.claims,
            frozen: std::array::from_fn(|i| Some(image.disks[i].clone())),
            truth: Arc::clone(&image.truth),
            processes: Vec::new(),
            mail: VecDeque::new(),
            order,
            now_ns: 0,
            limits,
            mutant,
            steps: 0,
            timeouts: 0,
            old_tail: None,
            acted: CopyId(0),
        }
    }

    /// A region process starts: the `incarnation`-th on these disks.
    pub(super) fn start(&mut self, incarnation: u64) -> usize {
        let wall = UnixMicros(EPOCH_US + incarnation * 1_000_000);
        let node = Node::new(identity(), self.limits.clone(), Prng::new(incarnation), wall);
        self.processes.push(Process { node, pen: None, born_ns: self.now_ns, reaches: [false; 6], over: None });
        self.processes.len() - 1
    }

    /// `process` gets a way to copy `c`, which is opened unless somebody has it open.
    pub(super) fn connect(&mut self, process: usize, c: CopyId) -> Checked {
        let promised = match &self.copies[c.index()] {
            Some(copy) => copy.promised(),
            None => self.open(c)?,
        };
        self.processes[process].reaches[c.index()] = true;
        self.mail.push_back(Mail { process, copy: c, what: What::Event(Event::CopyOpened { copy: member(c), promised }) });
        Ok(())
    }

    fn open(&mut self, c: CopyId) -> Checked<Generation> {
        let disk = Arc::clone(&self.disks[c.index()]) as Arc<dyn Disk>;
        match Copy::open(disk, &self.limits) {
            Ok(copy) => {
                let promised = copy.promised();
                self.copies[c.index()] = Some(copy);
                self.look_at(c);
                Ok(promised)
            }
            Err(e) => Err(format!("copy {c} cannot be opened after nothing worse than a crash: {e}")),
        }
    }

    fn look_at(&mut self, c: CopyId) {
        self.acted = c;
        if let Some(copy) = &self.copies[c.index()] {
            self.claims[c.index()] = copy.state().end;
        }
        self.frozen[c.index()] = None;
    }

    /// The power of one copy goes and comes; everybody who had it open is told, and finds it again.
    pub(super) fn power_cycle(&mut self, c: CopyId) -> Checked {
        self.disks[c.index()].inner.crash();
        self.reopen(c)
    }

    fn reopen(&mut self, c: CopyId) -> Checked {
        self.disks[c.index()].inner.restart();
        self.copies[c.index()] = None;
        // What was under way to it or from it is lost with its connections.
        self.mail.retain(|m| m.copy != c);
        let promised = self.open(c)?;
        for process in 0..self.processes.len() {
            if self.processes[process].reaches[c.index()] {
                let lost = Event::CopyLost { copy: member(c), reason: "its power went".into() };
                self.mail.push_back(Mail { process, copy: c, what: What::Event(lost) });
                self.mail.push_back(Mail { process, copy: c, what: What::Event(Event::CopyOpened { copy: member(c), promised }) });
            }
        }
        Ok(())
    }

    /// The power of `c` goes in the `n`-th call of its disk from now on.
    pub(super) fn cut_power_at(&self, c: CopyId, n: u64) {
        self.disks[c.index()].inner.cut_power_at(n);
    }

    pub(super) fn calls(&self, c: CopyId) -> u64 {
        self.disks[c.index()].inner.calls()
    }

    /// The six disks as they are, each with the hash of its content.
    pub(super) fn disks(&mut self) -> [(Arc<SimDisk>, u64); 6] {
        std::array::from_fn(|i| {
            let disk = &self.disks[i].inner;
            self.frozen[i]
                .get_or_insert_with(|| {
                    let fork = disk.fork(7);
                    let hash = fork.content_hash();
                    (Arc::new(fork), hash)
                })
                .clone()
        })
    }

    /// What the disks were before each call of the last step.
    pub(super) fn crash_points(&mut self) -> Vec<CrashPoint> {
        let copy = self.acted;
        let looks = match &mut *self.disks[copy.index()].looks.lock() {
            Some(looks) => std::mem::take(looks),
            None => return Vec::new(),
        };
        let before = self.calls(copy) + 1 - looks.len() as u64;
        looks.into_iter().zip(before..).map(|(disk, call)| CrashPoint { copy, call, disk }).collect()
    }

    // ---- messages --------------------------------------------------------------------------------------------------

    fn next(&mut self, fits: &dyn Fn(usize, CopyId) -> bool) -> Option<Mail> {
        let fits = |m: &Mail| fits(m.process, m.copy);
        let first = self.mail.iter().position(fits)?;
        let at = match self.order {
            Order::Fifo => first,
            Order::Races(c) => self.mail.iter().position(|m| fits(m) && m.copy == c).unwrap_or(first),
            Order::Lags(c) => self.mail.iter().position(|m| fits(m) && m.copy != c).unwrap_or(first),
        };
        self.mail.remove(at)
    }

    /// Delivers one message between a process and a copy that fit. `false`: there is none.
    pub(super) fn step(&mut self, fits: &dyn Fn(usize, CopyId) -> bool) -> Checked<bool> {
        let Some(Mail { process, copy, what }) = self.next(fits) else { return Ok(false) };
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(format!("{STEPS_MAX} messages and no end: something spins"));
        }
        match what {
            What::Request(request) => self.to_copy(process, copy, request)?,
            What::Event(event) => self.to_node(process, event)?,
        }
        Ok(true)
    }

    /// One message of `only` (or of anybody), or else the next timer. `false`: all is quiet.
    pub(super) fn advance(&mut self, only: Option<usize>) -> Checked<bool> {
        if self.step(&|p, _| only.is_none_or(|o| o == p))? {
            self.timeouts = 0;
            return Ok(true);
        }
        let due = (0..self.processes.len()).filter(|p| only.is_none_or(|o| o == *p) && self.processes[*p].over.is_none());
        let Some((at, process)) = due.filter_map(|p| Some((self.due_ns(p)?, p))).min() else { return Ok(false) };
        self.timeouts += 1;
        if self.timeouts > TIMEOUTS_MAX {
            return Err(format!("it is never quiet: {}", self.describe()));
        }
        self.now_ns = self.now_ns.max(at);
        self.to_node(process, Event::Timeout)?;
        Ok(true)
    }

    /// Until nothing is under way and no timer is set. `each` sees the rig after every message.
    pub(super) fn settle(&mut self, only: Option<usize>, each: &mut dyn FnMut(&mut Rig) -> Checked) -> Checked {
        while self.advance(only)? {
            each(self)?;
        }
        Ok(())
    }

    fn due_ns(&self, process: usize) -> Option<u64> {
        let process = &self.processes[process];
        let due = process.node.next_timeout().map(|at| at.ns.saturating_sub(1_000_000_000) + process.born_ns);
        // The next renewal of the lease is no part of a recovery.
        due.filter(|at| *at < self.now_ns + 600_000_000_000)
    }

    #[expect(clippy::wrong_self_convention, reason = "something goes to a copy; nothing is converted")]
    fn to_copy(&mut self, process: usize, c: CopyId, request: CopyRequest) -> Checked {
        let Some(copy) = &mut self.copies[c.index()] else {
            if matches!(request, CopyRequest::Append { .. }) {
                // Somebody vouched for it; nobody is there.
                let lost = Event::CopyLost { copy: member(c), reason: "nobody answers".into() };
                self.mail.push_back(Mail { process, copy: c, what: What::Event(lost) });
            }
            return Ok(());
        };
        let mut replies = Vec::new();
        copy.handle(request, &mut replies);
        copy.flush(&mut replies);
        loop {
            while copy.ingest(&mut replies) {}
            let Some(job) = copy.background_job() else { break };
            copy.finish(job.run(), &mut replies);
        }
        if self.disks[c.index()].inner.is_down() {
            self.acted = c;
            return self.reopen(c);
        }
        if let Some(reason) = copy.failed() {
            return Err(format!("copy {c} left its duty on a healthy disk: {reason}"));
        }
        self.look_at(c);
        if self.mutant == Some(Mutant::OldTailCounts)
            && let Some(tail) = self.old_tail
            && self.holders(&tail) >= 4
        {
            // The mutant tells whoever waits for it.
            Arc::make_mut(&mut self.truth).commit(&tail)?;
        }
        for mut reply in replies {
            if let (Some(Mutant::EmptyCopiesVote), CopyReply::Raised { state, .. }) = (self.mutant, &mut reply)
                && state.lineage.is_none()
            {
                // It looks as one that has the log, up to nothing.
                state.lineage = self.copies.iter().flatten().find_map(|copy| copy.state().lineage);
            }
            if let (Some(Mutant::RecoverFromTwo), CopyReply::Raised { .. }) = (self.mutant, &reply) {
                self.vouch(process, &reply);
            }
            self.mail.push_back(Mail { process, copy: c, what: What::Event(Event::CopyReplied { copy: member(c), reply }) });
        }
        Ok(())
    }

    /// The mutant: where there are two, a third that nobody heard counts as one that says the same as the first of them.
    fn vouch(&mut self, process: usize, reply: &CopyReply) {
        let reaches = &mut self.processes[process].reaches;
        if reaches.iter().filter(|r| **r).count() == 2
            && let Some(other) = CopyId::all().into_iter().find(|o| !reaches[o.index()])
        {
            let promised = Generation(0);
            self.mail.push_back(Mail { process, copy: other, what: What::Event(Event::CopyOpened { copy: member(other), promised }) });
            let event = Event::CopyReplied { copy: member(other), reply: reply.clone() };
            self.mail.push_back(Mail { process, copy: other, what: What::Event(event) });
            reaches[other.index()] = true;
        }
    }

    #[expect(clippy::wrong_self_convention, reason = "something goes to a node; nothing is converted")]
    fn to_node(&mut self, p: usize, event: Event) -> Checked {
        let process = &mut self.processes[p];
        if process.over.is_some() {
            return Ok(());
        }
        let local = Instant { ns: self.now_ns - process.born_ns + 1_000_000_000 };
        let wall = UnixMicros(EPOCH_US + self.now_ns / 1000);
        process.node.handle(local, wall, event);
        let mut effects = Vec::new();
        while let Some(effect) = process.node.poll_effect() {
            effects.push(effect);
        }
        for effect in effects {
            self.carry(p, effect)?;
        }
        Ok(())
    }

    fn carry(&mut self, p: usize, effect: Effect) -> Checked {
        match effect {
            Effect::ToCopy { copy: MemberId { copy, .. }, request } => {
                if let CopyRequest::Append { frames, .. } = &request {
                    for frame in frames {
                        Arc::make_mut(&mut self.truth).observe(frame)?;
                        if frame.is_control() && frame.seq() > Seq(1) {
                            let before = (Seq(frame.seq().0 - 1), frame.header().prev_checksum);
                            self.old_tail = self.truth.end_of(before);
                        }
                    }
                }
                if self.processes[p].reaches[copy.index()] {
                    self.mail.push_back(Mail { process: p, copy, what: What::Request(request) });
                }
            }
            Effect::HeadWrites { pen } => {
                Arc::make_mut(&mut self.truth).go_on_with(pen.end())?;
                self.processes[p].pen = Some(pen);
            }
            Effect::HeadReset { at: vdl } | Effect::HeadAdvances { vdl, .. } => self.announced(&vdl)?,
            // No disk lies here.
            Effect::Note(note) if note.kind == "log_lost" => return Err(format!("durability: {}", note.what)),
            Effect::Note(note) if matches!(note.kind.as_str(), "fenced" | "halted") => {
                self.processes[p].over = Some(note.what);
                self.mail.retain(|m| m.process != p);
            }
            _ => {}
        }
        Ok(())
    }

    /// A process says that everything up to `vdl` is durable: from now on it must never go.
    pub(super) fn announced(&mut self, vdl: &LogEnd) -> Checked {
        if vdl.seq < self.truth.committed().seq {
            return Err(format!("durability: a recovery came to {vdl}, and {} was durable before", self.truth.committed()));
        }
        Arc::make_mut(&mut self.truth).commit(vdl)?;
        let holders = self.holders(vdl);
        if holders < 4 {
            return Err(format!("durability: {vdl} counts as durable and {holders} copies have fsynced it"));
        }
        Ok(())
    }

    /// Copies whose disk holds the log up to `end`.
    pub(super) fn holders(&self, end: &LogEnd) -> usize {
        self.claims.iter().filter(|claim| self.truth.reaches(claim, end)).count()
    }

    // ---- work ------------------------------------------------------------------------------------------------------

    /// One mini-transaction of so many frames through the pen of `process`.
    pub(super) fn write(&mut self, process: usize, frames: usize) -> Checked<LogEnd> {
        let wall = UnixMicros(EPOCH_US + self.now_ns / 1000);
        let Some(pen) = &mut self.processes[process].pen else { return Err(format!("nobody may write: {}", self.describe())) };
        let mut payloads = Vec::new();
        for i in 0..frames {
            let mut payload = Vec::new();
            let page = crate::base::PageNo(u32::try_from(1 + i).expect("BUG: few frames"));
            crate::log::redo::put_record(
                &mut payload,
                page,
                &crate::log::redo::Change::Image(Bytes::from(pen.end().seq.0.to_le_bytes().to_vec())),
            );
            payloads.push(payload);
        }
        let frames = pen.write(&payloads, true, wall);
        let end = *pen.end();
        for frame in &frames {
            Arc::make_mut(&mut self.truth).write(frame, Vec::new())?;
        }
        self.to_node(process, Event::Submitted { frames })?;
        Ok(end)
    }

    /// Of what is under way to each copy, only the first `kept(copy)` requests arrive, and no timer makes up for the others.
    pub(super) fn deliver_some(&mut self, process: usize, kept: impl Fn(CopyId) -> usize) -> Checked {
        let mut seen = [0; 6];
        self.mail.retain(|m| {
            if m.process != process || !matches!(m.what, What::Request(_)) {
                return true;
            }
            seen[m.copy.index()] += 1;
            seen[m.copy.index()] <= kept(m.copy)
        });
        while self.step(&|p, _| p == process)? {}
        Ok(())
    }

    /// All six have the primary's log, byte for byte, and it ends with what is durable.
    pub(super) fn compare_logs(&mut self) -> Checked {
        let end = *self.truth.committed();
        for c in CopyId::all() {
            let Some(copy) = &mut self.copies[c.index()] else { return Err(format!("copy {c} is down")) };
            let state = copy.state();
            if state.end != end {
                return Err(format!("copy {c} ends at {}, the log at {end}: {}", state.end, self.describe()));
            }
            let mut at = state.first;
            while at <= end.seq {
                let mut replies = Vec::new();
                copy.handle(CopyRequest::ReadLog { id: 1, from: at, bytes_max: 1 << 20 }, &mut replies);
                let Some(CopyReply::Log { frames, .. }) = replies.pop() else {
                    return Err(format!("copy {c} cannot read its log at {at}"));
                };
                if let Some(odd) = frames.iter().find(|f| self.truth.at(f.seq()) != Some(&f.log_end())) {
                    return Err(format!("copy {c} has {odd:?}, the log has {:?}", self.truth.at(odd.seq())));
                }
                let Some(last) = frames.last().map(Frame::seq) else { return Err(format!("copy {c} reads nothing at {at}")) };
                at = Seq(last.0 + 1);
            }
        }
        Ok(())
    }

    pub(super) fn describe(&self) -> String {
        let process = self.processes.last().expect("BUG: somebody recovers");
        let report = process.node.report(Instant { ns: self.now_ns - process.born_ns + 1_000_000_000 }, UnixMicros(EPOCH_US));
        let copies: Vec<String> = report.copies.iter().zip(&self.claims).map(|(c, end)| format!("{} {} {end}", c.name, c.state)).collect();
        format!("{:?} ({}) [{}]", report.state, report.reason.or(process.over.clone()).unwrap_or_default(), copies.join(", "))
    }
}
