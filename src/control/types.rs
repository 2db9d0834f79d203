//! The nouns of roles: who votes, what is ordered, what is known of it, what a promotion would lose.
//!
//! Decides nothing. Everything here is plain data with bounds; sentences in it are for operators.

use super::members::Membership;
use super::touched::Touched;
use crate::base::{Epoch, LogEnd, RegionName, UnixMicros};
use crate::log::{History, Term};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// One member of a global cluster, seen from its own control core.
#[derive(Clone, Debug)]
pub struct Who {
    pub name: RegionName,
    /// All regions that hold data, this one too when it does.
    pub regions: Vec<RegionName>,
    /// The member without data that only votes.
    pub witness: Option<RegionName>,
    /// This one is a region. A witness stays none when it is taken out.
    pub has_data: bool,
    pub settings: Settings,
    /// How this member reaches the others, `host:port`; told to those that come later.
    pub addrs: BTreeMap<RegionName, String>,
}

impl Who {
    pub(super) fn addr(&self, name: &RegionName) -> String {
        self.addrs.get(name).cloned().unwrap_or_default()
    }

    /// Everybody but this member.
    pub fn others(&self) -> impl Iterator<Item = &RegionName> {
        self.regions.iter().chain(&self.witness).filter(|m| **m != self.name)
    }
}

/// What a cluster does by itself when its primary is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub enum AutoFailover {
    #[default]
    Off,
    /// Only when it is proven that nothing is lost: a `sync` rule was in force and the regions that hold it were heard.
    Lossless,
    /// When what is known to be lost spans no more than this.
    MaxLoss(Duration),
}

/// As it is typed in `parhelion set`: `off`, `lossless`, `max_loss=5s`.
impl fmt::Display for AutoFailover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AutoFailover::Off => f.write_str("off"),
            AutoFailover::Lossless => f.write_str("lossless"),
            AutoFailover::MaxLoss(bound) => write!(f, "max_loss={}", humantime::format_duration(*bound)),
        }
    }
}

/// What the whole global cluster does by itself: set in its primary, kept by every member that hears of it. The later one holds; a new
/// primary makes it its own, so that what an old one set and told nobody is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct AutoRule {
    /// Of the primary that set it or took it over.
    pub epoch: Epoch,
    /// Grows with every change; 0: nobody has set it, and each member goes by its file.
    pub version: u64,
    pub auto: AutoFailover,
}

impl AutoRule {
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.version > 0
    }
}

/// Periods and bounds of the control core. All time is counted on CLOCK_MONOTONIC_RAW of one's own machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A voter refuses every other candidate for so long after a grant.
    pub lease: Duration,
    pub renew_every: Duration,
    /// How far the rates of two clocks may differ, in parts per million.
    pub rho_ppm: u32,
    /// Taken off the holder's share for scheduling between check and effect.
    pub delta: Duration,
    /// A vote, an activation or a handover that is not answered is sent again.
    pub retry_every: Duration,
    /// Rounds of questions, after a lease ran out and before a campaign.
    pub probe_every: Duration,
    /// A campaign without a majority for so long is given up.
    pub vote_patience: Duration,
    /// A sealed primary waits for its target so long before it asks for an epoch of its own.
    pub handover_patience: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// What this member's file says, if anything: it counts until the cluster has a rule.
    pub auto_failover: Option<AutoFailover>,
    /// What running transactions get to finish before a switchover ends them.
    pub drain: Duration,
    /// A switchover to a target that is behind by more is refused.
    pub switchover_lag_bytes_max: u64,
    /// Regions beside the primary.
    pub secondaries_max: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            lease: Duration::from_secs(6),
            renew_every: Duration::from_millis(1500),
            rho_ppm: 1000,
            delta: Duration::from_millis(50),
            retry_every: Duration::from_millis(200),
            probe_every: Duration::from_millis(500),
            vote_patience: Duration::from_secs(2),
            handover_patience: Duration::from_secs(5),
            backoff_min: Duration::from_millis(300),
            backoff_max: Duration::from_secs(8),
            auto_failover: None,
            drain: Duration::from_secs(5),
            switchover_lag_bytes_max: 16 << 20,
            secondaries_max: 5,
        }
    }
}

impl Settings {
    /// The holder's share of a lease, counted from sending: `L (1 - rho) / (1 + rho) - delta`. Whatever the two clocks do within
    /// rho, it is over before the voter's own share is (protocol.md section 4).
    #[must_use]
    pub fn holder_share(&self) -> Duration {
        let ns = self.lease.as_nanos() * u128::from(1_000_000 - self.rho_ppm) / u128::from(1_000_000 + self.rho_ppm);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)).saturating_sub(self.delta)
    }
}

/// Who votes, and who is a member. Changed one voter at a time, never by a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct VoterSet {
    /// Grows with every change.
    pub version: u64,
    /// Sorted by name; their number is odd.
    pub voters: Vec<RegionName>,
    /// Those that ever granted. A voter that finds itself here and has no state has lost it: it must not vote.
    pub heard: Vec<RegionName>,
    /// The regions, since the first order that changed them; before, they are what the files say.
    pub members: Option<Membership>,
}

impl VoterSet {
    /// The voters of a new global cluster: an odd number of at most five. Two regions without a witness have one, the founder
    /// ("unproven": a failover by hand cannot prove that the other side is down).
    #[must_use]
    pub fn founding(founder: &RegionName, regions: &[RegionName], witness: Option<&RegionName>) -> VoterSet {
        let mut voters: Vec<RegionName> = regions.to_vec();
        if let (2 | 4, Some(w)) = (voters.len(), witness) {
            voters.push(w.clone());
        } else if voters.len() == 2 {
            voters = vec![founder.clone()];
        } else if voters.len().is_multiple_of(2) {
            // The last that is not the founder.
            let out = voters.iter().rposition(|r| r != founder).expect("BUG: an even number of regions has another than the founder");
            voters.remove(out);
        }
        voters.sort();
        VoterSet { version: 1, voters, heard: Vec::new(), members: None }
    }

    /// Of a member that knows of none.
    #[must_use]
    pub fn unknown() -> VoterSet {
        VoterSet { version: 0, voters: Vec::new(), heard: Vec::new(), members: None }
    }

    #[must_use]
    pub fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    #[must_use]
    pub fn contains(&self, name: &RegionName) -> bool {
        self.voters.contains(name)
    }
}

/// What the primary of an epoch demands of secondaries before it acknowledges: every commit acknowledged in `epoch` is durable in so
/// many of them. Strengthened first at the primary and then said; weakened first said to a majority and then at the primary: so
/// whoever hears a majority and takes the least is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct SyncRule {
    pub epoch: Epoch,
    /// Grows with every change in an epoch.
    pub version: u64,
    pub secondaries: u8,
}

/// Which operation. Chosen by whoever orders it, so that an order sent twice is one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct OpId(pub u128);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for OpId {
    type Err = String;
    fn from_str(given: &str) -> Result<OpId, String> {
        let parsed = (given.len() <= 32).then(|| u128::from_str_radix(given, 16).ok()).flatten();
        parsed.map(OpId).ok_or_else(|| format!("'{given}' is no id of an operation: up to 32 characters of 0-9 and a-f"))
    }
}

/// What the operator agreed to lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Consent {
    pub allow_data_loss: bool,
    pub max_loss_ms: Option<u64>,
    pub max_loss_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum OrderKind {
    Switchover {
        to: RegionName,
    },
    Failover {
        to: RegionName,
        consent: Consent,
        /// The operator's word that this region is stopped. Asked for only where no majority can prove it.
        primary_is_down: Option<RegionName>,
    },
    /// One voter more, less or another: through majorities of the old and of the new set.
    SetVoters {
        voters: Vec<RegionName>,
    },
    /// One region more; it is reached at `addr`.
    AddRegion {
        region: RegionName,
        addr: String,
    },
    RemoveRegion {
        region: RegionName,
    },
    /// Another history goes on here. `stopped`: forced where a majority is lost, by the operator's word that the old primary is stopped;
    /// without: a region that was taken out stands alone.
    NewLineage {
        survivors: Vec<RegionName>,
        stopped: Option<RegionName>,
    },
    /// A voter without data; it is reached at `addr`.
    AddWitness {
        witness: RegionName,
        addr: String,
        /// Its failure domain, as an operator calls it.
        zone: Option<String>,
    },
    RemoveWitness {
        witness: RegionName,
    },
}

impl OrderKind {
    #[must_use]
    pub fn to(&self) -> Option<&RegionName> {
        match self {
            OrderKind::Switchover { to } | OrderKind::Failover { to, .. } => Some(to),
            OrderKind::SetVoters { .. }
            | OrderKind::AddRegion { .. }
            | OrderKind::RemoveRegion { .. }
            | OrderKind::AddWitness { .. }
            | OrderKind::RemoveWitness { .. }
            | OrderKind::NewLineage { .. } => None,
        }
    }

    /// The region that comes or goes.
    #[must_use]
    pub fn region(&self) -> Option<&RegionName> {
        match self {
            OrderKind::AddRegion { region, .. } | OrderKind::RemoveRegion { region } => Some(region),
            _ => None,
        }
    }

    /// The witness that comes or goes.
    #[must_use]
    pub fn witness(&self) -> Option<&RegionName> {
        match self {
            OrderKind::AddWitness { witness, .. } | OrderKind::RemoveWitness { witness } => Some(witness),
            _ => None,
        }
    }

    /// The member that comes or goes.
    #[must_use]
    pub fn member(&self) -> Option<&RegionName> {
        self.region().or(self.witness())
    }

    /// It takes a member out.
    #[must_use]
    pub fn removes(&self) -> bool {
        matches!(self, OrderKind::RemoveRegion { .. } | OrderKind::RemoveWitness { .. })
    }

    /// It changes who votes or who is a member.
    #[must_use]
    pub fn changes_members(&self) -> bool {
        matches!(self, OrderKind::SetVoters { .. }) || self.member().is_some()
    }
}

/// For people.
impl fmt::Display for OrderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OrderKind::Switchover { to } => write!(f, "switchover to {to}"),
            OrderKind::Failover { to, consent, primary_is_down } => {
                let loss = if consent.allow_data_loss { ", data loss allowed" } else { "" };
                let bound = consent.max_loss_ms.map_or_else(String::new, |ms| format!(" up to {ms} ms"));
                let down = primary_is_down.as_ref().map_or_else(String::new, |r| format!(", by the word that {r} is down"));
                write!(f, "failover to {to}{loss}{bound}{down}")
            }
            OrderKind::AddRegion { region, addr } => write!(f, "adding {region} at {addr}"),
            OrderKind::RemoveRegion { region } => write!(f, "taking out {region}"),
            OrderKind::AddWitness { witness, addr, .. } => write!(f, "adding the witness {witness} at {addr}"),
            OrderKind::RemoveWitness { witness } => write!(f, "taking out the witness {witness}"),
            OrderKind::NewLineage { survivors, stopped } => {
                let names: Vec<&str> = survivors.iter().map(RegionName::as_str).collect();
                let how = stopped.as_ref().map_or_else(|| "on purpose".to_owned(), |r| format!("forced, by the word that {r} is stopped"));
                write!(f, "a new lineage in {}, {how}", names.join(", "))
            }
            OrderKind::SetVoters { voters } => {
                let names: Vec<&str> = voters.iter().map(RegionName::as_str).collect();
                write!(f, "voters {}", names.join(", "))
            }
        }
    }
}

/// What an operator wants. May be given to any region; it goes to the one that carries it out.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Order {
    pub id: OpId,
    pub kind: OrderKind,
    /// Every check, a prediction, and nothing changes.
    pub dry_run: bool,
    /// Until the point of no return is reached: after it, the order is dropped and nothing has changed.
    pub timeout_ms: u64,
    /// The epoch that the order is about: the region that took it fills in the one it knows. Where another one reigns by now, the
    /// order is refused: it cannot take effect twice, however late it comes.
    pub at_epoch: Option<Epoch>,
    /// Who ordered it, for the audit.
    pub actor: String,
}

/// How far an operation is. In this order; a planned one skips what it does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub enum Phase {
    /// Checks; nothing was changed.
    Check,
    /// No new write transactions in the old primary.
    Drain,
    /// The handover frame becomes durable.
    Seal,
    /// The target waits for the handover frame in its log.
    HandOver,
    /// A failover waits until the voters' grants are over.
    Wait,
    /// Fetches what another region has more.
    CatchUp,
    Vote,
    /// The new primary's copies are fenced and its epoch begins in the log.
    Promote,
    Activate,
    /// A write through the new primary is looked for in a secondary.
    Verify,
    /// Majorities of the old and of the new voters agree on a change.
    Agree,
    /// The voters follow the number of regions, one at a time.
    Voters,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Check => "check",
            Phase::Drain => "drain",
            Phase::Seal => "seal",
            Phase::HandOver => "handover",
            Phase::Wait => "wait",
            Phase::CatchUp => "catch_up",
            Phase::Vote => "vote",
            Phase::Promote => "promote",
            Phase::Activate => "activate",
            Phase::Verify => "verify",
            Phase::Agree => "agree",
            Phase::Voters => "voters",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum OpState {
    Running(Phase),
    Done,
    /// Nothing was changed; the sentence says why and what would be right.
    Refused {
        reason: String,
    },
    /// It was tried and did not come about; the sentence says how things stand.
    Failed {
        reason: String,
    },
    /// Whoever carries it out does not answer: it may have been done or not. Asking again will tell.
    Unknown {
        reason: String,
    },
    /// Another operation was there first.
    Superseded {
        by: Option<OpId>,
        epoch: Epoch,
        region: RegionName,
    },
}

/// For people.
impl fmt::Display for OpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpState::Running(phase) => write!(f, "under way, in {phase}"),
            OpState::Done => f.write_str("done"),
            OpState::Refused { reason } => write!(f, "refused: {reason}"),
            OpState::Failed { reason } => write!(f, "failed: {reason}"),
            OpState::Unknown { reason } => write!(f, "not known: {reason}"),
            OpState::Superseded { by, epoch, region } => {
                let by = by.map_or_else(String::new, |id| format!(" by operation {id}"));
                write!(f, "superseded{by}: {region} is the primary of epoch {epoch}")
            }
        }
    }
}

impl OpState {
    /// It does not move any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, OpState::Running(_) | OpState::Unknown { .. })
    }
}

/// An operation as anybody may see it. Kept until newer ones push it out, in every member that heard of it.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct OpView {
    pub order: Order,
    /// The primary when it began.
    pub from: Option<RegionName>,
    /// The member that carries it out at the moment.
    pub by: RegionName,
    pub state: OpState,
    /// Phases that are over, and how long each took on the clock of whoever did it.
    pub phases: Vec<(Phase, u64)>,
    pub began_at: UnixMicros,
    /// Of the reign that it made.
    pub epoch: Option<Epoch>,
    pub checks: Vec<Check>,
    pub loss: Option<Loss>,
    /// A dry run's guess at how long writes would stand still.
    pub predicted_gap_ms: Option<u64>,
}

/// One thing that was looked at before anything was done.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub says: String,
}

/// How sure it is what a promotion loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Sureness {
    /// Nothing is lost: the candidate wrote the last epoch itself, has its handover, or a rule of synchronous commits was in force
    /// and enough regions were heard.
    Proven,
    /// At least what is said; the old primary may have gone on for so long after it was last heard.
    AtLeast { unheard_ms: u64 },
    /// The old region's tail was read.
    Exact,
}

/// What a promotion loses, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Loss {
    /// What stays ends here.
    pub base: LogEnd,
    /// The farthest that anybody heard of in the old epoch.
    pub known_end: LogEnd,
    pub bytes: u64,
    /// Each commit is at least one frame.
    pub commits_at_most: u64,
    /// From the time that the base covers to the last sign of the old primary, on its clock. `None`: unknown.
    pub ms: Option<u64>,
    /// So long after that sign the old primary may have gone on acknowledging: until its lease was over, or for ever where nothing ends it.
    pub alone_ms: u64,
    pub sure: Sureness,
}

impl Loss {
    #[must_use]
    pub fn is_none_for_sure(&self) -> bool {
        self.sure == Sureness::Proven
    }
}

/// One unplanned change of the primary and what it cost. Never thrown away silently; complete when the old region's tail was read.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct FailoverRecord {
    pub op: OpId,
    pub from: RegionName,
    pub to: RegionName,
    pub old_epoch: Epoch,
    pub new_epoch: Epoch,
    pub began_at: UnixMicros,
    /// Who agreed: an operator's name, or the rule.
    pub actor: String,
    pub consent: Consent,
    /// No majority said so, only an operator.
    pub unproven: bool,
    pub loss: Loss,
    pub complete: bool,
    /// Exact once complete.
    pub tail: Option<LostTail>,
}

impl FailoverRecord {
    /// A sentence, when two wrote at the same time: an operator's word ended a reign that went on, as the clocks of the two regions have it.
    /// Where a majority ended it that cannot be.
    #[must_use]
    pub fn wrote_beside(&self) -> Option<String> {
        let tail = self.tail.as_ref().filter(|t| self.unproven && t.commits > 0 && t.to_time.is_some_and(|at| at > self.began_at))?;
        Some(format!(
            "two regions wrote at the same time: {} went on after {} had taken over in epoch {} by the word of {}. This history is {}'s; of {} up to {} commits \
             are not in it, and are kept: parhelion failover report {}",
            self.from, self.to, self.new_epoch, self.actor, self.to, self.from, tail.commits, self.op
        ))
    }
}

/// What the old region's log held beyond the base, read after it came back.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct LostTail {
    pub new_epoch: Epoch,
    pub from: LogEnd,
    pub to: LogEnd,
    pub commits: u64,
    pub from_time: Option<UnixMicros>,
    pub to_time: Option<UnixMicros>,
    /// What it changed; or why that could not be read: a sentence.
    pub touched: Result<Touched, String>,
}

/// This region's log, told whenever it changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// The last consistency point that is durable on 4 of 6.
    pub end: LogEnd,
    pub history: History,
    /// Everything up to this time of the primary's clock is in it. In the primary: not used.
    pub covers: Option<UnixMicros>,
}

/// How a position travels: its end, and its last terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Standing {
    pub end: LogEnd,
    pub terms: Vec<Term>,
    pub covers: Option<UnixMicros>,
    /// (x, e): frames of epoch x and later were cut here for the reign e, which may never have been active. About epochs from x up to
    /// before e this log proves nothing.
    pub cut: Option<(Epoch, Epoch)>,
}

/// Terms that travel with a position.
const TERMS_SENT: usize = 64;

impl LogPosition {
    #[must_use]
    pub fn standing(&self, cut: Option<(Epoch, Epoch)>) -> Standing {
        let terms = self.history.terms();
        Standing { end: self.end, terms: terms[terms.len().saturating_sub(TERMS_SENT)..].to_vec(), covers: self.covers, cut }
    }
}
