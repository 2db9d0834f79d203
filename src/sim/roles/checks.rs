//! What must hold when roles change, judged from ground truth: every commit point, every promotion, every log.
//!
//! Decides nothing and repairs nothing; a sentence that it returns ends the run. It sees all members at once and real time, which no
//! core does.

use super::log::{Kind, RegionLog, kind_of};
use crate::base::{Epoch, LogEnd, RegionName};
use crate::control::audit::verify;
use crate::control::{AuditEntry, AuditHead, EpochEntry, FailoverRecord, OpId, OpState, OpView, ReignKind, VoterState};
use crate::log::Frame;
use std::collections::{BTreeMap, BTreeSet};

/// A commit that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    pub id: u64,
    pub epoch: Epoch,
    pub end: LogEnd,
}

/// What a member is about to do stands in the audit that its disks keep, and that is a chain (S21).
pub(super) fn audited(entry: &EpochEntry, kept: Option<&VoterState>) -> Result<(), String> {
    let Some(audit) = kept.map(|k| &k.audit) else {
        return Err(format!("S21: {} takes epoch {} and keeps nothing", entry.region, entry.epoch));
    };
    let base = audit.entries().first().map(|first| AuditHead { no: first.no - 1, hash: first.prev }).unwrap_or_default();
    if let Err(broken) = verify(base, audit.entries(), Some(audit.head())) {
        return Err(format!("S21: the audit of {} is no chain: {broken}", entry.region));
    }
    let named = |e: &AuditEntry| e.epoch == entry.epoch && ["promotion", "forced_promotion"].contains(&e.kind.as_str());
    if !audit.entries().iter().any(named) {
        return Err(format!("S21: {} takes epoch {} and its disks know of no such thing", entry.region, entry.epoch));
    }
    Ok(())
}

/// A frame's place in its line.
#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    commit: Option<u64>,
}

/// What the line of an epoch has behind a base.
#[derive(Debug)]
struct Tail {
    /// Seq and checksum of where it begins: the base; by a word alone, where the two lines part.
    from: (u64, u32),
    to: LogEnd,
    commits: Vec<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Truth {
    /// Who was elected for an epoch.
    elected: BTreeMap<Epoch, RegionName>,
    /// Reigns that opened, and what they began with.
    opened: BTreeMap<Epoch, EpochEntry>,
    acked: BTreeMap<u64, Acked>,
    /// Commits lost, and the reign that lost them.
    lost: BTreeMap<u64, Epoch>,
    /// Every frame by (epoch, generation, seq): its checksum.
    frames: BTreeMap<(u64, u64, u64), u32>,
    /// Every frame that was durable anywhere, by seq and checksum.
    links: BTreeMap<(u64, u32), Link>,
    /// Where the line of each epoch ends: the last frame of it that was ever durable.
    ends: BTreeMap<Epoch, LogEnd>,
    promised: BTreeMap<usize, Epoch>,
    ops_opened: BTreeMap<OpId, Epoch>,
    ops_ended: BTreeMap<OpId, OpState>,
    /// An operator swore that these are stopped, and they were not, or came back where they could not hear of it: they may write beside
    /// whoever was promoted by that word. What must hold then: it is one history in the end, and what was theirs alone is lost by name.
    forsworn: BTreeSet<RegionName>,
}

impl Truth {
    pub fn promised(&mut self, member: usize, epoch: Epoch) -> Result<(), String> {
        let known = self.promised.entry(member).or_default();
        if epoch < *known {
            return Err(format!("S1: member {member} promised epoch {known} and then stood at {epoch}"));
        }
        *known = epoch;
        Ok(())
    }

    /// Its disk was emptied: what it promised is known to nobody but the others.
    #[cfg(test)]
    pub fn emptied(&mut self, member: usize) {
        self.promised.remove(&member);
    }

    pub fn elected(&mut self, entry: &EpochEntry) -> Result<(), String> {
        match self.elected.insert(entry.epoch, entry.region.clone()) {
            // Once more by the same region, behind the same frame: its first try at its own volume failed.
            Some(other) if other == entry.region => Ok(()),
            Some(other) => Err(format!("S1: epoch {} was won by {other} and by {}", entry.epoch, entry.region)),
            None => Ok(()),
        }
    }

    pub fn forsworn(&mut self, region: &RegionName) {
        self.forsworn.insert(region.clone());
    }

    pub fn was_forsworn(&self) -> bool {
        !self.forsworn.is_empty()
    }

    /// Whether the first that reigned after `epoch` in another region did so by an operator's word that was not true.
    fn is_beside(&self, epoch: Epoch) -> bool {
        let Some(region) = self.elected.get(&epoch).filter(|r| self.forsworn.contains(*r)) else { return false };
        let next = self.opened.range(epoch.next()..).map(|(_, e)| e).find(|e| e.region != *region);
        next.is_some_and(|e| e.kind == ReignKind::Unproven)
    }

    pub fn founded(&mut self, entry: &EpochEntry) {
        self.elected.insert(entry.epoch, entry.region.clone());
    }

    pub fn frame(&mut self, frame: &Frame) -> Result<(), String> {
        let (h, end) = (frame.header(), frame.log_end());
        if let Some(other) = self.frames.insert((h.epoch.0, h.generation.0, h.seq.0), end.checksum)
            && other != end.checksum
        {
            return Err(format!("S3: two frames are called {end}"));
        }
        let commit = if let Kind::Commit(id) = kind_of(frame) { Some(id) } else { None };
        self.links.insert((h.seq.0, end.checksum), Link { before: h.prev_checksum, commit });
        let last = self.ends.entry(h.epoch).or_insert(end);
        // An epoch's first try at its own volume may have failed: what counts is under the last generation.
        if (end.generation, end.seq) > (last.generation, last.seq) {
            *last = end;
        }
        Ok(())
    }

    /// What a failover lost. By an operator's word alone the old region may have gone through epochs of its own that nobody had heard of.
    fn tail_of(&self, f: &FailoverRecord) -> Option<Tail> {
        let own = || self.opened.values().filter(|e| e.region == f.from && e.epoch < f.new_epoch).map(|e| e.epoch).max();
        let last = if f.unproven { own().unwrap_or(f.old_epoch).max(f.old_epoch) } else { f.old_epoch };
        if !f.unproven {
            return self.tail(last, &f.loss.base);
        }
        // The region that was promoted may have had more of a line that this one's last reign had left behind.
        let mut kept = BTreeSet::new();
        let mut at = (f.loss.base.seq.0, f.loss.base.checksum);
        while at.0 > 0 {
            kept.insert(at);
            at = (at.0 - 1, self.links.get(&at)?.before);
        }
        let to = self.ends.get(&last).copied().unwrap_or(f.loss.base);
        let mut at = (to.seq.0, to.checksum);
        let mut commits = Vec::new();
        while at.0 > 0 && !kept.contains(&at) {
            let link = self.links.get(&at)?;
            commits.extend(link.commit);
            at = (at.0 - 1, link.before);
        }
        Some(Tail { from: at, to, commits })
    }

    /// What was ever durable of the line of `epoch` behind `base`; `None`: the line does not hold that base.
    fn tail(&self, epoch: Epoch, base: &LogEnd) -> Option<Tail> {
        let to = self.ends.get(&epoch).copied().unwrap_or(*base);
        let (mut seq, mut checksum) = (to.seq.0, to.checksum);
        let mut commits = Vec::new();
        while seq > base.seq.0 {
            let link = self.links.get(&(seq, checksum))?;
            commits.extend(link.commit);
            (seq, checksum) = (seq - 1, link.before);
        }
        let from = (seq, checksum);
        (seq == base.seq.0 && (seq == 0 || checksum == base.checksum)).then_some(Tail { from, to, commits })
    }

    /// The commit point of a commit.
    pub fn acknowledged(&mut self, commit: Acked) -> Result<(), String> {
        if let Some((later, entry)) = self.opened.iter().find(|(e, _)| **e > commit.epoch)
            && !self.is_beside(commit.epoch)
        {
            return Err(format!(
                "S2: a commit of epoch {} was acknowledged after {} became active in epoch {later}",
                commit.epoch, entry.region
            ));
        }
        self.acked.insert(commit.id, commit);
        Ok(())
    }

    /// A reign is active from this moment on. `writable`: another region that could acknowledge now, and in which epoch. Returns how
    /// many acknowledged commits it lost.
    pub fn opened(
        &mut self,
        entry: &EpochEntry,
        log: &RegionLog,
        records: &[FailoverRecord],
        path: &[Epoch],
        writable: Option<(RegionName, Epoch)>,
    ) -> Result<u64, String> {
        if self.elected.get(&entry.epoch) != Some(&entry.region) {
            return Err(format!("S1: {} reigns in epoch {} without having been elected", entry.region, entry.epoch));
        }
        let again = self.opened.contains_key(&entry.epoch);
        self.opened.insert(entry.epoch, entry.clone());
        if let Some((other, epoch)) = writable.filter(|(_, epoch)| !self.is_beside(entry.epoch.min(*epoch))) {
            return Err(format!("S2: {} opens in epoch {} while {other} can write in epoch {epoch}", entry.region, entry.epoch));
        }
        if let Some(op) = entry.op.filter(|_| !again) {
            if let Some(before) = self.ops_opened.insert(op, entry.epoch) {
                return Err(format!("S16: operation {op} took effect in epoch {before} and in epoch {}", entry.epoch));
            }
            self.judge_op(op)?;
        }
        if entry.kind == ReignKind::Planned {
            self.judge_planned(entry, log)?;
        }
        if entry.kind == ReignKind::Unproven {
            // Reigns that the region which was promoted by a word had not heard of are none of its history, nor is what they lost.
            self.lost.retain(|_, by| path.contains(by) || *by > entry.epoch);
        }
        let has: BTreeSet<u64> = log.commits().collect();
        // One that writes beside a later reign has what that one lost, and lacks what was written there.
        if let Some((id, by)) = self.lost.iter().find(|(id, by)| **by < entry.epoch && has.contains(id)) {
            return Err(format!("S8: commit {id} was lost in epoch {by} and is back in epoch {}", entry.epoch));
        }
        let mut newly = 0;
        let before = self.acked.values().filter(|a| a.epoch <= entry.epoch);
        let gone: Vec<Acked> = before.filter(|a| !has.contains(&a.id) && !self.lost.contains_key(&a.id)).copied().collect();
        for commit in gone {
            // S7: the failover behind whose base it lies on the line of the epoch before.
            let named = records.iter().find(|f| {
                let on_path = f.new_epoch <= entry.epoch && path.contains(&f.new_epoch) && f.consent.allow_data_loss;
                on_path && self.tail_of(f).is_some_and(|t| t.commits.contains(&commit.id))
            });
            let Some(named) = named else {
                return Err(format!(
                    "S5: commit {} of epoch {} at {} is not in epoch {} ({:?}, base {}) and no failover with consent names it: {records:?}",
                    commit.id, commit.epoch, commit.end, entry.epoch, entry.kind, entry.base
                ));
            };
            // One that takes its reign up again beside a later one loses nothing of the history (seed 715133 of roles).
            if self.opened.keys().all(|e| *e <= entry.epoch) {
                self.lost.insert(commit.id, named.new_epoch);
                newly += 1;
            }
        }
        Ok(newly)
    }

    /// Where an operation stands, by any member's word.
    pub fn op_moved(&mut self, view: &OpView) -> Result<(), String> {
        if !view.state.is_final() || view.order.dry_run {
            return Ok(());
        }
        let id = view.order.id;
        if let Some(before) = self.ops_ended.get(&id) {
            // That it did not come about may be told in other words by whoever gave it up and by whoever was not reached.
            if (*before == OpState::Done) != (view.state == OpState::Done) {
                return Err(format!("S16: operation {id} ended as {before:?} and as {:?}", view.state));
            }
        }
        self.ops_ended.entry(id).or_insert_with(|| view.state.clone());
        self.judge_op(id)
    }

    fn judge_op(&self, id: OpId) -> Result<(), String> {
        match (self.ops_opened.get(&id), self.ops_ended.get(&id)) {
            (Some(epoch), Some(OpState::Refused { reason })) => {
                Err(format!("S16: operation {id} was refused ({reason}) and took effect in epoch {epoch}"))
            }
            (Some(epoch), Some(OpState::Superseded { .. })) => {
                Err(format!("S16: operation {id} was superseded and took effect in epoch {epoch}"))
            }
            _ => Ok(()),
        }
    }

    /// S6: the base is the handover frame. Where two regions have one vote between them the frame may have been lost with the process
    /// that sealed; then the base is the last that is durable of its line.
    fn judge_planned(&self, entry: &EpochEntry, log: &RegionLog) -> Result<(), String> {
        let base = usize::try_from(entry.base.seq.0).expect("BUG: a model's log fits memory");
        let last = base.checked_sub(1).and_then(|i| log.durable().get(i));
        let handed = last.is_some_and(|f| kind_of(f) == Kind::Handover);
        let tail = self.tail(entry.prev, &entry.base);
        match tail {
            Some(tail) if !tail.commits.iter().any(|id| self.acked.contains_key(id)) && (handed || entry.voters_version > 1) => Ok(()),
            _ => Err(format!(
                "S6: epoch {} is planned and its base {} is no handover frame, or something was acknowledged behind it",
                entry.epoch, entry.base
            )),
        }
    }

    /// At the end, in quiet. S7: every failover on the path is complete and says exactly what its old region's line had behind the base;
    /// every commit that was lost is named by one of them, and by no other. `away`: a region that is not back.
    pub fn settled(
        &mut self,
        records: &[FailoverRecord],
        path: &[Epoch],
        main: &RegionLog,
        away: Option<&RegionName>,
    ) -> Result<(), String> {
        let has: BTreeSet<u64> = main.commits().collect();
        let mut named: BTreeMap<u64, Epoch> = BTreeMap::new();
        for record in records.iter().filter(|f| path.contains(&f.new_epoch)) {
            let into = record.new_epoch;
            let base = record.loss.base;
            let Some(tail) = self.tail_of(record) else {
                return Err(format!("S7: the line of epoch {} does not hold the base {base} of {record:?}", record.old_epoch));
            };
            if let Some(id) = tail.commits.iter().find(|id| has.contains(id)) {
                return Err(format!("S7: commit {id} counts as lost by the failover into epoch {into} and is in the history: {record:?}"));
            }
            for id in tail.commits.iter().filter(|id| self.acked.contains_key(id)) {
                if let Some(other) = named.insert(*id, into) {
                    return Err(format!("S7: commit {id} is lost by the failovers into epochs {other} and {into}"));
                }
            }
            let gone = away == Some(&record.from);
            match &record.tail {
                Some(told) if record.complete => {
                    let from = (told.from.seq.0, told.from.checksum);
                    let is = told.commits == tail.commits.len() as u64
                        && if tail.to.seq.0 > tail.from.0 {
                            (told.to, from) == (tail.to, tail.from)
                        } else {
                            told.from == told.to && (record.unproven || told.to == base)
                        };
                    if !is {
                        return Err(format!(
                            "S7: the report of the failover into epoch {into} says {told:?}; its tail is ({:?}, {}] with {} commits",
                            tail.from,
                            tail.to,
                            tail.commits.len()
                        ));
                    }
                }
                None if record.complete => {
                    if let Some(id) = tail.commits.iter().find(|id| self.acked.contains_key(id)) {
                        return Err(format!(
                            "S7: the failover into epoch {into} was proven to lose nothing and lost commit {id}: {record:?}"
                        ));
                    }
                }
                _ if gone => {}
                _ => return Err(format!("S7: the failover into epoch {into} is not complete though everybody is back: {record:?}")),
            }
        }
        if let Some((id, epoch)) = self.lost.iter().find(|(id, _)| !named.contains_key(id)) {
            return Err(format!("S7: commit {id} was lost in epoch {epoch} and no failover names it any more"));
        }
        // What was acknowledged beside a later reign: nobody could name it when that opened.
        let beside: Vec<u64> = self.acked.values().filter(|a| self.is_beside(a.epoch)).map(|a| a.id).collect();
        for id in beside.into_iter().filter(|id| !has.contains(id)) {
            if let Some(into) = named.get(&id) {
                self.lost.entry(id).or_insert(*into);
            }
        }
        match self.acked.keys().find(|id| !has.contains(id) && !self.lost.contains_key(id)) {
            Some(id) => Err(format!("S5: commit {id} is in nobody's history and no failover lost it")),
            None => Ok(()),
        }
    }

    pub fn lost(&self) -> u64 {
        self.lost.len() as u64
    }

    pub fn reigns(&self) -> impl Iterator<Item = &EpochEntry> {
        self.opened.values()
    }

    pub fn epochs_elected(&self) -> usize {
        self.elected.len()
    }
}
