//! What a promotion takes over and what it loses: rule 11 of protocol.md, over the answers of a majority.
//!
//! Decides, as a pure function of what was answered: the last epoch that may have been active, the base in the candidate's own log, the
//! loss and how sure it is, and who has more. Never decides whether that is acceptable.

use super::chain::{Chain, EpochEntry, ReignKind, TwoReigns, last_active};
use super::message::Seen;
use super::types::{Consent, FailoverRecord, Loss, Standing, Sureness, SyncRule, VoterSet};
use super::{AutoFailover, LogPosition};
use crate::base::{Epoch, LogEnd, RegionName, UnixMicros};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// One member's answer: with its vote it is a promise, with a question it is a hint.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub chain: Chain,
    pub pending: Vec<FailoverRecord>,
    pub log: Option<Standing>,
    pub seen: Seen,
    pub sync: SyncRule,
}

/// Everything that the decision is made of.
pub(super) struct Evidence<'a> {
    pub own: &'a RegionName,
    pub regions: &'a [RegionName],
    pub voters: &'a VoterSet,
    pub log: &'a LogPosition,
    /// The candidate itself is among them.
    pub heard: &'a BTreeMap<RegionName, Heard>,
    /// The longest that the old primary may have gone on acknowledging after it was last heard; `None`: nothing ends that.
    pub lease: Option<Duration>,
    /// (epoch, where its handover frame ends): it was sealed, and that is its last word.
    pub handed: Option<(Epoch, LogEnd)>,
}

/// What a promotion by this evidence would be.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// The last epoch that may have been active, and its primary.
    pub prev: Epoch,
    pub from: RegionName,
    pub base: LogEnd,
    pub kind: ReignKind,
    pub loss: Loss,
    /// It can be proven that nothing is lost, once everything that was heard of is here.
    pub provable: bool,
    /// The epoch of the first frame behind `base` in the own log, when there is one.
    pub cuts: Option<Epoch>,
    /// The reigns up to the last one, newest first.
    pub path: Vec<EpochEntry>,
    /// Failovers on it that nobody may have told of yet.
    pub inherited: Vec<FailoverRecord>,
    /// A region that was heard has more of the path than this one: who, and up to where.
    pub more: Option<(RegionName, LogEnd)>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoOutcome {
    #[error("{0}")]
    TwoReigns(#[from] TwoReigns),
    #[error("no reign is known to anybody; found the global cluster first")]
    NoReign,
    #[error("this region's log is too old to be compared with the epochs that are still known; it must be seeded")]
    TooOld,
}

impl Evidence<'_> {
    pub fn weigh(&self) -> Result<Outcome, NoOutcome> {
        let mut union = Chain::default();
        for heard in self.heard.values() {
            union.merge(&heard.chain)?;
        }
        let voting: Vec<&Chain> = self.heard.iter().filter(|(r, _)| self.voters.contains(r)).map(|(_, h)| &h.chain).collect();
        // By an operator's word, without any voter: everybody that answered.
        let voting = if voting.is_empty() { self.heard.values().map(|h| &h.chain).collect() } else { voting };
        let prev = last_active(&voting, self.voters.voters.len()).ok_or(NoOutcome::NoReign)?;
        let last = union.get(prev).expect("BUG: the last epoch comes from these chains").clone();
        let own = union.prefix(prev, self.log.history.terms(), &self.log.end);
        if !own.judged {
            return Err(NoOutcome::TooOld);
        }
        let base = own.end;
        // Others' logs as far as they are history.
        let on_path = |log: &Standing| Some(union.prefix(prev, &log.terms, &log.end)).filter(|p| p.judged).map(|p| p.end);
        let others: Vec<(&RegionName, LogEnd)> = (self.heard.iter())
            .filter(|(region, _)| *region != self.own)
            .filter_map(|(region, heard)| Some((region, on_path(heard.log.as_ref()?)?)))
            .collect();
        let more = others.iter().filter(|(_, end)| end.seq > base.seq).max_by_key(|(_, end)| end.seq).map(|(r, e)| ((*r).clone(), *e));
        let kind = match self.handed {
            Some((epoch, at)) if epoch == prev && base == at => ReignKind::Planned,
            _ if last.region == *self.own && base.epoch == prev && self.is_whole(self.own, prev) => ReignKind::Regained,
            _ => ReignKind::Unplanned,
        };
        // Where nothing ends what the old primary does, it may have gone through reigns that nobody here has heard of, under any rule.
        let provable = self.lease.is_some() && (kind != ReignKind::Unplanned || self.sync_proves(prev, &last.region));
        let proven = provable && (kind != ReignKind::Unplanned || (more.is_none() && base.epoch == prev));
        let whole = !own.cut;
        let loss = self.loss(&union, prev, base, whole, &others, proven);
        let path: Vec<EpochEntry> = union.path(prev).into_iter().cloned().collect();
        let mut inherited: Vec<FailoverRecord> = Vec::new();
        for record in self.heard.values().flat_map(|h| &h.pending) {
            if path.iter().any(|e| e.epoch == record.new_epoch) && !inherited.iter().any(|r| r.new_epoch == record.new_epoch) {
                inherited.push(record.clone());
            }
        }
        let cuts = own.cut.then(|| self.log.history.term_of(base.seq.next()).map(|t| t.epoch)).flatten();
        Ok(Outcome { provable, cuts, path, inherited, prev, from: last.region, base, kind, loss, more })
    }

    /// Every commit acknowledged in `epoch` is in k secondaries; among those heard there is one of any k when only k - 1 are missing.
    fn sync_proves(&self, epoch: Epoch, primary: &RegionName) -> bool {
        let secondaries = || self.regions.iter().filter(|r| *r != primary);
        let voted = self.heard.iter().filter(|(r, _)| self.voters.contains(r));
        let k = voted.map(|(_, h)| if h.sync.epoch == epoch { usize::from(h.sync.secondaries) } else { 0 }).min().unwrap_or(0);
        let heard = secondaries().filter(|r| self.heard.get(*r).is_some_and(|h| h.log.is_some()) && self.is_whole(r, epoch)).count();
        k > 0 && heard + k > secondaries().count()
    }

    /// Whether a member's log still holds all that it ever held of `epoch` and before.
    fn is_whole(&self, region: &RegionName, epoch: Epoch) -> bool {
        let cut = self.heard.get(region).and_then(|h| h.log.as_ref()).and_then(|l| l.cut);
        cut.is_none_or(|(from, reign)| epoch < from || epoch >= reign)
    }

    fn loss(&self, union: &Chain, prev: Epoch, base: LogEnd, whole: bool, others: &[(&RegionName, LogEnd)], proven: bool) -> Loss {
        if proven {
            return Loss { base, known_end: base, bytes: 0, commits_at_most: 0, ms: Some(0), alone_ms: 0, sure: Sureness::Proven };
        }
        let path = union.path(prev);
        let said = self.heard.values().map(|h| h.seen.durable).filter(|d| path.iter().any(|e| e.epoch == d.epoch));
        let known_end = said.chain(others.iter().map(|(_, end)| *end)).chain([base]).max_by_key(|e| e.seq).expect("BUG: the base is one");
        // Whoever was started since then has heard nothing, and its silence is no shorter for that.
        let last = self.heard.values().map(|h| h.seen).filter(|s| s.sent_at > UnixMicros(0)).max_by_key(|s| (s.sent_at, Reverse(s.ago_ms)));
        let last_sign = last.map(|s| s.sent_at);
        let unheard_ms = last.map(|s| s.ago_ms).or(self.heard.values().map(|h| h.seen.ago_ms).max()).unwrap_or(0);
        let lease_ms = self.lease.map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX));
        let alone_ms = match (last, lease_ms) {
            (_, None) => unheard_ms,
            (Some(_), Some(lease)) => unheard_ms.min(lease),
            (None, Some(lease)) => lease,
        };
        let covers = self.log.covers.filter(|_| whole);
        let ms = last_sign.zip(covers).map(|(sign, covers)| u64::try_from(sign.micros_since(covers).max(0)).unwrap_or(0).div_ceil(1000));
        Loss {
            base,
            known_end,
            bytes: known_end.end_lsn.bytes_since(base.end_lsn),
            commits_at_most: known_end.seq.0 - base.seq.0,
            ms,
            alone_ms,
            sure: Sureness::AtLeast { unheard_ms },
        }
    }
}

/// Whether an operator's consent covers a loss. The sentence says what is missing.
pub(super) fn covered_by(consent: &Consent, loss: &Loss) -> Result<(), String> {
    if loss.is_none_for_sure() {
        return Ok(());
    }
    let said = describe(loss);
    if !consent.allow_data_loss {
        return Err(format!("{said}. Nothing was changed; to accept it, add --allow-data-loss"));
    }
    match (consent.max_loss_ms, loss.ms) {
        (Some(max), Some(ms)) if ms.saturating_add(loss.alone_ms) > max => {
            let alone = loss.alone_ms;
            return Err(format!(
                "{said}. With the {alone} ms in which it may have gone on before its lease was over, that is up to {} ms, and --max-loss allows {max} ms",
                ms.saturating_add(alone)
            ));
        }
        (Some(_), None) => return Err(format!("{said}; --max-loss is given and how much time that is is not known")),
        _ => {}
    }
    match consent.max_loss_bytes {
        Some(max) if loss.bytes > max => Err(format!("{said}; at most {max} bytes are allowed")),
        _ => Ok(()),
    }
}

/// Whether the cluster may do it by itself. A bound is one of what is known to be lost: with what a primary may do in the rest of its lease,
/// no bound below a lease would ever allow anything.
pub(super) fn covered_by_rule(rule: AutoFailover, loss: &Loss) -> bool {
    match rule {
        AutoFailover::Off => false,
        AutoFailover::Lossless => loss.is_none_for_sure(),
        AutoFailover::MaxLoss(max) => loss.is_none_for_sure() || loss.ms.is_some_and(|ms| u128::from(ms) <= max.as_millis()),
    }
}

pub(super) fn describe(loss: &Loss) -> String {
    let time = loss.ms.map_or_else(|| "an unknown time".to_owned(), |ms| format!("{ms} ms"));
    let known = format!(
        "{} bytes in at most {} commits are known, {time} up to the last sign of the old primary",
        loss.bytes, loss.commits_at_most
    );
    match loss.sure {
        Sureness::Proven => "nothing is lost, and that is proven".to_owned(),
        Sureness::AtLeast { unheard_ms } => {
            format!("commits may be lost: {known}, which was {unheard_ms} ms ago; what it acknowledged after that is not known")
        }
        Sureness::Exact => format!("commits were lost: {known}"),
    }
}
