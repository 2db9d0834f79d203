//! One state of the model: the control cores of a few members, what is kept, their logs, what is on its way.
//!
//! Decides how a cluster begins, and which states are the same. What happens next is in [`super::steps`].

use super::Bounds;
use super::copies::Copies;
use super::steps::Step;
use crate::base::{Epoch, Instant, LineageId, LogEnd, RegionName, UnixMicros};
use crate::control::{Control, ControlMessage, OpId, Order, OrderKind, Promotion, Settings, VoterSet, VoterState, Who};
use crate::sim::roles::RoleMutant;
use crate::sim::roles::log::RegionLog;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub(super) const TICK_NS: u64 = 1_000_000_000;
pub(super) const TICK: Duration = Duration::from_nanos(TICK_NS);
/// So many messages wait on a link that is held; more are lost.
pub(super) const LINK_MAX: usize = 2;

/// Three ticks of lease, of which the holder has two: the third is what clocks may differ by.
pub(super) fn settings(guard: bool) -> Settings {
    Settings {
        lease: TICK * 3,
        renew_every: TICK,
        rho_ppm: 0,
        delta: if guard { TICK } else { Duration::ZERO },
        retry_every: TICK,
        probe_every: TICK,
        vote_patience: TICK * 2,
        handover_patience: TICK * 2,
        backoff_min: TICK,
        backoff_max: TICK,
        ..Settings::default()
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lead {
    pub epoch: Epoch,
    pub generation: u64,
    pub open: bool,
    pub pending: Option<u8>,
    pub draining: Option<OpId>,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub control: Option<Control>,
    pub kept: Option<VoterState>,
    /// Before its last step: for a mutant that answers before it keeps.
    pub kept_before: Option<VoterState>,
    pub log: RegionLog,
    pub generation: u64,
    pub lead: Option<Lead>,
    pub following: Option<(Epoch, RegionName)>,
    pub promoting: Option<(Epoch, Promotion)>,
    pub fetching: Option<(RegionName, LogEnd)>,
    pub clock: u64,
    pub lives: u64,
    pub gate_from_reply: u64,
    pub copies: Copies,
    /// Ticks of a lease that are its holder's.
    pub share: u64,
    /// Of what this member is; nothing while it changes.
    pub hash: OnceLock<u64>,
}

/// What has happened, for those who judge.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Truth {
    pub elected: Vec<(u64, usize)>,
    pub opened: Vec<(u64, usize)>,
    pub acked: Vec<(u8, u64)>,
    pub lost: Vec<u8>,
}

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Used {
    pub losses: u8,
    pub held: u8,
    pub crashes: u8,
    pub drift: u8,
    pub commits: u8,
    pub orders: u8,
    /// So much of the script.
    pub script: u8,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub members: Vec<Arc<Member>>,
    pub links: Vec<VecDeque<Arc<ControlMessage>>>,
    /// Links that are held, a bit each.
    pub held: u32,
    /// Members whose machine stands still with all of its clocks, a bit each.
    pub suspended: u32,
    pub truth: Truth,
    pub used: Used,
}

/// What does not change in a search.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub regions: usize,
    pub who: Vec<Who>,
    pub bounds: Bounds,
    pub mutant: Option<RoleMutant>,
}

impl Rules {
    pub fn new(bounds: Bounds, mutant: Option<RoleMutant>) -> Rules {
        let names: Vec<RegionName> = (0..bounds.regions).map(|i| RegionName::new(&format!("r{i}")).expect("BUG: a name")).collect();
        let witness = bounds.witness.then(|| RegionName::new("witness").expect("BUG: a name"));
        let settings = settings(mutant != Some(RoleMutant::NoDriftGuard));
        let who = |name: &RegionName| Who {
            name: name.clone(),
            regions: names.clone(),
            witness: witness.clone(),
            has_data: witness.as_ref() != Some(name),
            settings: settings.clone(),
            addrs: Default::default(),
        };
        Rules { regions: bounds.regions, who: names.iter().chain(&witness).map(who).collect(), bounds, mutant }
    }

    pub(super) fn index(&self, name: &RegionName) -> usize {
        self.who.iter().position(|w| w.name == *name).expect("BUG: a member")
    }

    pub(super) fn link(&self, from: usize, to: usize) -> usize {
        from * self.who.len() + to
    }

    pub(super) fn order(&self, no: usize) -> (usize, Order) {
        let (at, kind) = self.bounds.orders[no].clone();
        let id = OpId(no as u128 + 1);
        (at, Order { id, kind, dry_run: false, timeout_ms: 4000, at_epoch: None, actor: String::new() })
    }
}

pub(super) fn now(member: &Member) -> Instant {
    Instant { ns: member.clock * TICK_NS }
}

/// Whole ones.
pub(super) fn ticks(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).expect("BUG: seconds") / TICK_NS
}

impl Member {
    fn canonical(&self) -> u64 {
        let mut bytes = self.control.as_ref().map(|c| c.canonical(TICK)).unwrap_or_default();
        bytes.extend(self.kept.as_ref().filter(|_| self.control.is_none()).map(VoterState::canonical).unwrap_or_default());
        let gate = self.gate_from_reply.saturating_sub(self.clock);
        let rest = format!("{:?}{:?}{:?}{:?}", self.lead, self.following, self.promoting, self.fetching);
        let copies = self.copies.canonical(self.clock, self.share);
        // How long ago it died counts as long as a forgotten grant may live; its clock is only compared with itself.
        hash_of(&(bytes, rest, self.log.end().seq.0, self.log.end().checksum, self.generation, gate, copies))
    }
}

impl State {
    /// A founded cluster in which everybody has heard of the primary.
    pub fn new(rules: &Rules) -> Result<State, String> {
        let n = rules.who.len();
        let regions = &rules.who[0].regions;
        let founding = VoterSet::founding(&rules.who[0].name, regions, rules.who[0].witness.as_ref());
        let founder = VoterState::founding(LineageId(7), &rules.who[0].name, founding, UnixMicros(0));
        let blank = |m: usize| Member {
            control: None,
            kept: (m == 0).then(|| founder.clone()),
            kept_before: None,
            log: RegionLog::default(),
            generation: 0,
            lead: None,
            following: None,
            promoting: None,
            fetching: None,
            clock: 100,
            lives: 0,
            gate_from_reply: 0,
            copies: Copies::new(1000),
            share: ticks(rules.who[m].settings.holder_share()),
            hash: OnceLock::new(),
        };
        let mut state = State {
            members: (0..n).map(|m| Arc::new(blank(m))).collect(),
            links: vec![VecDeque::new(); n * n],
            held: 0,
            suspended: 0,
            truth: Truth { elected: vec![(1, 0)], ..Truth::default() },
            used: Used::default(),
        };
        for m in 0..n {
            state.starts(rules, m)?;
        }
        // The quiet way to a primary that is heard, voted for and followed by everybody.
        for _ in 0..200 {
            let next = state.due(rules);
            let settled = state.members.iter().all(|m| m.control.as_ref().is_some_and(|c| c.reign().is_some()));
            match next {
                Some(step) => state = state.after(rules, step)?,
                None if settled => return Ok(state),
                None => state = state.after(rules, Step::Tick { slow: None })?,
            }
        }
        Err("the model's cluster does not begin".into())
    }

    // ---- which state this is --------------------------------------------------------------------------------------------

    /// 64 bits that stand for this state among all: two states that share them by chance are one in 2^64 / states.
    pub fn fingerprint(&self, rules: &Rules) -> u64 {
        let n = rules.who.len();
        let mut all: Vec<u64> = self.members.iter().map(|m| *m.hash.get_or_init(|| m.canonical())).collect();
        for from in 0..n {
            for to in 0..n {
                let (a, b) = (self.members[from].control.as_ref(), self.members[to].control.as_ref());
                for message in &self.links[rules.link(from, to)] {
                    all.push(hash_of(&(from, to, message.canonical(a, b))));
                }
            }
        }
        let before: Vec<u64> = match rules.mutant {
            Some(RoleMutant::AnswersBeforeKept) => {
                self.members.iter().map(|m| hash_of(&m.kept_before.as_ref().map(VoterState::canonical))).collect()
            }
            _ => Vec::new(),
        };
        hash_of(&(all, &self.truth, &self.used, (self.held, self.suspended), before))
    }

    /// No further than this: an epoch beyond the bound was promised.
    pub fn is_beyond(&self, rules: &Rules) -> bool {
        let epochs = self.members.iter().filter_map(|m| m.kept.as_ref()).map(|s| s.promised.0);
        epochs.max().unwrap_or(0) > rules.bounds.epochs
    }

    /// How many reigns opened, by their kind: what a search came to see.
    pub fn reigns(&self) -> usize {
        self.truth.opened.len()
    }
}

/// Seeded by nothing: the same in every process.
fn hash_of(value: &impl std::hash::Hash) -> u64 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

pub(super) fn switchover(to: usize) -> OrderKind {
    OrderKind::Switchover { to: RegionName::new(&format!("r{to}")).expect("BUG: a name") }
}

pub(super) fn failover(to: usize) -> OrderKind {
    let to = RegionName::new(&format!("r{to}")).expect("BUG: a name");
    let consent = crate::control::Consent { allow_data_loss: true, ..Default::default() };
    OrderKind::Failover { to, consent, primary_is_down: None }
}

pub(super) fn voters(names: &[usize]) -> OrderKind {
    OrderKind::SetVoters { voters: names.iter().map(|m| RegionName::new(&format!("r{m}")).expect("BUG: a name")).collect() }
}
