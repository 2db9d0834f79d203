//! The world of one run: virtual time, the queue of what will happen, the regions and the network, and the two phases.
//!
//! Everything that happens is a [`What`] at a time; two at the same time happen in the order in which they were queued. The
//! running hash over all of them tells whether two runs were the same.

use super::backups::Backup;
use super::checker::Checked;
use super::checker::truth::Truth;
use super::network::{LinkSide, Network};
use super::plan::Plan;
use super::regions::{HeadNews, Region};
use super::{Mutant, SimOptions};
use crate::base::{MemberId, Prng};
use crate::node::Event;
use crate::ship::wire::Lane;
use crate::volume::{CopyReply, CopyRequest, FlushDone, FlushJob};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(super) const MS: u64 = 1_000_000;
/// The healthy core must converge within this.
const CONVERGE_WITHIN_MS: u64 = 60_000;
/// More steps than any run needs: something spins.
const STEPS_MAX: u64 = 3_000_000;

/// What happens next.
pub(super) enum What {
    Timer {
        region: usize,
        incarnation: u64,
    },
    /// Reaches the node of this incarnation, or nobody.
    Node {
        region: usize,
        incarnation: u64,
        event: Event,
    },
    Start {
        region: usize,
    },
    CopyOpen {
        region: usize,
        copy: MemberId,
        life: u64,
    },
    CopyRequest {
        region: usize,
        copy: MemberId,
        life: u64,
        request: CopyRequest,
    },
    CopyReply {
        region: usize,
        copy: MemberId,
        life: u64,
        incarnation: u64,
        reply: CopyReply,
    },
    CopyLost {
        region: usize,
        copy: MemberId,
        life: u64,
        incarnation: u64,
        reason: String,
    },
    CopyFlush {
        region: usize,
        copy: MemberId,
        life: u64,
    },
    CopyIngest {
        region: usize,
        copy: MemberId,
        life: u64,
    },
    JobRun {
        region: usize,
        copy: MemberId,
        life: u64,
        job: FlushJob,
    },
    JobDone {
        region: usize,
        copy: MemberId,
        life: u64,
        done: FlushDone,
    },
    Head {
        region: usize,
        incarnation: u64,
        news: HeadNews,
    },
    Write {
        region: usize,
        incarnation: u64,
    },
    Read,
    Pin,
    Status,
    Fault,
    Replace,
    BackUp,
    Operate,
    Release {
        region: usize,
        copy: MemberId,
    },
    DialEnds {
        from: usize,
        incarnation: u64,
        to: usize,
    },
    Linked {
        conn: u64,
        side: LinkSide,
    },
    Unlinked {
        conn: u64,
        side: LinkSide,
        reason: &'static str,
    },
    ControlArrives {
        conn: u64,
        to: LinkSide,
    },
    Arrives {
        conn: u64,
        to: LinkSide,
        lane: Lane,
        bytes: Bytes,
    },
    /// Between the control cores of two members.
    MemberHears {
        from: usize,
        to: usize,
        bytes: Bytes,
    },
    /// The head looks whether it is drained.
    Drain {
        region: usize,
        incarnation: u64,
    },
    PartitionEnds {
        pair: (usize, usize),
        number: u64,
    },
    SilenceFound {
        conn: u64,
        side: LinkSide,
        number: u64,
    },
}

/// What was done to the cluster, and what it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub steps: u64,
    pub virtual_ms: u64,
    pub writes: u64,
    pub acknowledged: u64,
    pub page_reads: u64,
    pub region_crashes: u64,
    pub recoveries: u64,
    pub copy_crashes: u64,
    pub disk_faults: u64,
    pub wipes: u64,
    pub backups_put_back: u64,
    pub copies_reborn: u64,
    pub bytes_rotted: u64,
    pub copies_stopped: u64,
    pub partitions: u64,
    pub broken_links: u64,
    pub messages_lost: u64,
    pub messages_doubled: u64,
    pub seeds_shipped: u64,
    /// Seeds that went on over another link.
    pub seeds_resumed: u64,
    pub copies_rebuilt: u64,
    pub replacements: u64,
    pub replacements_cancelled: u64,
    pub replacements_finished: u64,
    pub reigns: u64,
    pub switchovers: u64,
    pub failovers: u64,
    /// A region went back to where its history parts from the primary's; or could not, and was seeded.
    pub ways_back: u64,
    pub seeded_anew: u64,
}

#[derive(Default)]
pub(super) struct Trace {
    pub lines_max: usize,
    pub lines: VecDeque<String>,
    pub now_ns: u64,
}

impl Trace {
    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        if self.lines_max == 0 {
            return;
        }
        if self.lines.len() >= self.lines_max {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("+{}.{:06}s {}", self.now_ns / 1_000_000_000, self.now_ns / 1000 % 1_000_000, what()));
    }
}

pub(super) struct World {
    pub now: u64,
    queue: BTreeMap<(u64, u64), What>,
    queued: u64,
    hash: u64,
    pub plan: Plan,
    pub mutant: Option<Mutant>,
    pub regions: Vec<Region>,
    pub network: Network,
    pub truth: Truth,
    pub counts: Counts,
    pub trace: Arc<Mutex<Trace>>,
    /// One generator for each concern: a draw more in one shifts no other.
    pub delays: Prng,
    pub faults: Prng,
    pub operator: Prng,
    pub backups_drawn: Prng,
    pub work: Prng,
    pub backups: Vec<Backup>,
    /// Operations that ended well.
    pub ops_done: std::collections::BTreeSet<u128>,
    /// The first phase: faults happen.
    pub stormy: bool,
    pub writing: bool,
}

impl World {
    pub(super) fn new(seed: u64, options: &SimOptions, trace: Arc<Mutex<Trace>>) -> World {
        let mut prng = Prng::new(seed);
        let plan = Plan::draw(&mut prng.fork("plan"), options);
        let mut world = World {
            now: 0,
            queue: BTreeMap::new(),
            queued: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            mutant: options.mutant,
            network: Network::new(&plan),
            regions: Vec::new(),
            truth: Truth::default(),
            counts: Counts::default(),
            trace,
            delays: prng.fork("delays"),
            faults: prng.fork("faults"),
            work: prng.fork("work"),
            operator: prng.fork("operator"),
            backups_drawn: Prng::new(seed).fork("backups"),
            backups: Vec::new(),
            ops_done: std::collections::BTreeSet::new(),
            stormy: true,
            writing: true,
            plan,
        };
        for i in 0..world.plan.regions {
            let mut own = prng.fork("region");
            world.regions.push(Region::new(i, &world.plan, &mut own, options.mutant));
        }
        for i in 0..world.regions.len() {
            let after = world.delays.below(200 * MS);
            world.after(after, What::Start { region: i });
        }
        for (what, first_ms) in
            [(What::Fault, 50), (What::Read, 100), (What::Pin, 120), (What::Status, 70), (What::Replace, 200), (What::Operate, 700)]
        {
            world.after(first_ms * MS, what);
        }
        if world.plan.backup_every_ms.is_some() {
            world.after(300 * MS, What::BackUp);
        }
        world
    }

    /// The copies of every region: six for each protection group.
    pub(super) fn members(&self) -> impl Iterator<Item = MemberId> + use<> {
        MemberId::all(self.plan.layout.groups)
    }

    /// The region whose epoch is open.
    pub(super) fn primary(&self) -> usize {
        self.truth.writer_of(self.truth.epoch()).unwrap_or(0)
    }

    pub(super) fn after(&mut self, ns: u64, what: What) {
        self.at(self.now + ns, what);
    }

    pub(super) fn at(&mut self, at: u64, what: What) {
        self.queued += 1;
        self.queue.insert((at, self.queued), what);
    }

    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        self.trace.lock().say(what);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn note(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// The whole run.
    pub(super) fn run(&mut self) -> Checked {
        self.until(self.plan.faults_for_ms * MS, |_| Ok(false))?;
        self.heal()?;
        self.converge()?;
        if self.plan.drill {
            self.drill()?;
        }
        self.counts.virtual_ms = self.now / MS;
        self.counts.acknowledged = self.truth.acknowledged;
        Ok(())
    }

    /// Writes flow again, then everybody has everything.
    pub(super) fn converge(&mut self) -> Checked {
        let deadline = self.now + CONVERGE_WITHIN_MS * MS;
        let healed = self.counts.writes;
        self.writing = true;
        let flows = |w: &mut World| Ok(w.regions.iter().any(|r| r.head.acknowledged_write > healed));
        if !self.until(deadline, flows)? {
            return Err(format!("liveness: no new write was acknowledged within 60 s after all faults were over: {}", self.describe()));
        }
        self.writing = false;
        if !self.until(deadline, |w| Ok(w.trouble().is_none()))? {
            let what = self.trouble().expect("BUG: there was trouble a moment ago");
            return Err(format!("liveness: not converged within 60 s after all faults were over: {what}: {}", self.describe()));
        }
        self.compare_everything()
    }

    /// Lets things happen until `done`, which is asked every 20 ms. `false`: the time was over before.
    pub(super) fn until(&mut self, end: u64, mut done: impl FnMut(&mut World) -> Checked<bool>) -> Checked<bool> {
        let mut ask = self.now;
        loop {
            let Some((&(at, _), _)) = self.queue.first_key_value() else { return Err("the world stood still".into()) };
            if self.now >= ask {
                if done(self)? {
                    return Ok(true);
                }
                ask = self.now + 20 * MS;
            }
            if at > end {
                self.now = end;
                return done(self);
            }
            let (_, what) = self.queue.pop_first().expect("BUG: it was just seen");
            self.now = at;
            self.counts.steps += 1;
            if self.counts.steps > STEPS_MAX {
                return Err(format!("{STEPS_MAX} steps and no end: something spins"));
            }
            self.trace.lock().now_ns = at;
            self.step(what)?;
        }
    }

    fn step(&mut self, what: What) -> Checked {
        self.note(self.now ^ kind(&what) << 56);
        match what {
            What::Timer { region, incarnation } => self.timer(region, incarnation),
            What::Node { region, incarnation, event } => self.to_node(region, incarnation, event),
            What::Start { region } => {
                self.start(region);
                Ok(())
            }
            What::CopyOpen { region, copy, life } => self.copy_open(region, copy, life),
            What::CopyRequest { region, copy, life, request } => self.copy_request(region, copy, life, request),
            What::CopyReply { region, copy, life, incarnation, reply } => self.copy_reply(region, copy, life, incarnation, reply),
            What::CopyLost { region, copy, life, incarnation, reason } => self.copy_lost(region, copy, life, incarnation, reason),
            What::CopyFlush { region, copy, life } => self.copy_flush(region, copy, life),
            What::CopyIngest { region, copy, life } => self.copy_ingest(region, copy, life),
            What::JobRun { region, copy, life, job } => self.job_run(region, copy, life, job),
            What::JobDone { region, copy, life, done } => self.job_done(region, copy, life, done),
            What::Head { region, incarnation, news } => self.head_news(region, incarnation, news),
            What::Write { region, incarnation } => self.write(region, incarnation),
            What::Read => self.read_pages(),
            What::Pin => self.pin(),
            What::Status => self.check_status(),
            What::Fault => self.fault(),
            What::Replace => self.replace(),
            What::BackUp => self.back_up(),
            What::Operate => self.operate(),
            What::Release { region, copy } => {
                if self.stormy {
                    self.release(region, copy);
                }
                Ok(())
            }
            What::DialEnds { from, incarnation, to } => self.dial_ends(from, incarnation, to),
            What::Linked { conn, side } => self.linked(conn, side),
            What::Unlinked { conn, side, reason } => self.unlinked(conn, side, reason),
            What::ControlArrives { conn, to } => self.control_arrives(conn, to),
            What::Arrives { conn, to, lane, bytes } => self.arrives(conn, to, lane, &bytes),
            What::MemberHears { from, to, bytes } => self.member_hears(from, to, &bytes),
            What::Drain { region, incarnation } => self.drain_head(region, incarnation),
            What::PartitionEnds { pair, number } => {
                self.partition_ends(pair, number);
                Ok(())
            }
            What::SilenceFound { conn, side, number } => self.silence_found(conn, side, number),
        }
    }
}

fn kind(what: &What) -> u64 {
    match what {
        What::Timer { .. } => 1,
        What::Node { .. } => 2,
        What::Start { .. } => 3,
        What::CopyOpen { .. } => 4,
        What::CopyRequest { .. } => 5,
        What::CopyReply { .. } => 6,
        What::CopyLost { .. } => 7,
        What::CopyFlush { .. } => 8,
        What::CopyIngest { .. } => 9,
        What::JobRun { .. } => 10,
        What::JobDone { .. } => 11,
        What::Head { .. } => 12,
        What::Write { .. } => 13,
        What::Read => 14,
        What::Pin => 15,
        What::Status => 16,
        What::Fault => 17,
        What::DialEnds { .. } => 18,
        What::Linked { .. } => 19,
        What::Unlinked { .. } => 20,
        What::ControlArrives { .. } => 21,
        What::Arrives { .. } => 22,
        What::PartitionEnds { .. } => 23,
        What::SilenceFound { .. } => 24,
        What::Release { .. } => 25,
        What::Replace => 26,
        What::MemberHears { .. } => 27,
        What::Drain { .. } => 28,
        What::Operate => 29,
        What::BackUp => 30,
    }
}
