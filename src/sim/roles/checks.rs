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
    promised: BTreeMap<usize, Epoch>,
    ops_opened: BTreeMap<OpId, Epoch>,
    ops_ended: BTreeMap<OpId, OpState>,
    named: BTreeSet<u64>,
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

    pub fn elected(&mut self, entry: &EpochEntry) -> Result<(), String> {
        match self.elected.insert(entry.epoch, entry.region.clone()) {
            // Once more by the same region, behind the same frame: its first try at its own volume failed.
            Some(other) if other == entry.region => Ok(()),
            Some(other) => Err(format!("S1: epoch {} was won by {other} and by {}", entry.epoch, entry.region)),
            None => Ok(()),
        }
    }

    pub fn founded(&mut self, entry: &EpochEntry) {
        self.elected.insert(entry.epoch, entry.region.clone());
    }

    pub fn frame(&mut self, frame: &Frame) -> Result<(), String> {
        let h = frame.header();
        match self.frames.insert((h.epoch.0, h.generation.0, h.seq.0), frame.log_end().checksum) {
            Some(other) if other != frame.log_end().checksum => Err(format!("S3: two frames are called {}", frame.log_end())),
            _ => Ok(()),
        }
    }

    /// The commit point of a commit.
    pub fn acknowledged(&mut self, commit: Acked) -> Result<(), String> {
        if let Some((later, entry)) = self.opened.iter().find(|(e, _)| **e > commit.epoch) {
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
        if let Some((other, epoch)) = writable {
            return Err(format!("S2: {} opens in epoch {} while {other} can write in epoch {epoch}", entry.region, entry.epoch));
        }
        if self.elected.get(&entry.epoch) != Some(&entry.region) {
            return Err(format!("S1: {} reigns in epoch {} without having been elected", entry.region, entry.epoch));
        }
        let again = self.opened.contains_key(&entry.epoch);
        self.opened.insert(entry.epoch, entry.clone());
        if let Some(op) = entry.op.filter(|_| !again) {
            if let Some(before) = self.ops_opened.insert(op, entry.epoch) {
                return Err(format!("S16: operation {op} took effect in epoch {before} and in epoch {}", entry.epoch));
            }
            self.judge_op(op)?;
        }
        if entry.kind == ReignKind::Planned {
            let base = usize::try_from(entry.base.seq.0).expect("BUG: a model's log fits memory");
            let last = base.checked_sub(1).and_then(|i| log.durable().get(i));
            if last.is_none_or(|f| kind_of(f) != Kind::Handover) {
                return Err(format!("S6: epoch {} is planned and its base {} is no handover frame", entry.epoch, entry.base));
            }
        }
        let has: BTreeSet<u64> = log.commits().collect();
        if let Some((id, by)) = self.lost.iter().find(|(id, _)| has.contains(id)) {
            return Err(format!("S8: commit {id} was lost in epoch {by} and is back in epoch {}", entry.epoch));
        }
        let mut newly = 0;
        let gone: Vec<Acked> = self.acked.values().filter(|a| !has.contains(&a.id) && !self.lost.contains_key(&a.id)).copied().collect();
        for commit in gone {
            // The first reign that did not have it lost it.
            let named = records.iter().rev().find(|f| {
                let holds = commit.epoch <= f.old_epoch && commit.end.seq > f.loss.base.seq && f.consent.allow_data_loss;
                holds && f.new_epoch <= entry.epoch && path.contains(&f.new_epoch)
            });
            let Some(named) = named else {
                return Err(format!(
                    "S5: commit {} of epoch {} at {} is not in epoch {} ({:?}, base {}) and no failover with consent names it: {records:?}",
                    commit.id, commit.epoch, commit.end, entry.epoch, entry.kind, entry.base
                ));
            };
            self.lost.insert(commit.id, named.new_epoch);
            newly += 1;
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

    /// At the end, in quiet: every failover that lost acknowledged commits is complete and names all of them.
    pub fn settled(&mut self, records: &[FailoverRecord], main: &RegionLog) -> Result<(), String> {
        for (id, epoch) in &self.lost {
            let commit = self.acked[id];
            let of_it = |f: &&FailoverRecord| f.new_epoch <= *epoch && commit.epoch <= f.old_epoch && commit.end.seq > f.loss.base.seq;
            if !records.iter().any(|f| f.new_epoch == *epoch) {
                return Err(format!("S7: commit {id} was lost in epoch {epoch} and nobody has its failover any more"));
            }
            if let Some(open) = records.iter().filter(of_it).find(|f| !f.complete) {
                return Err(format!("S7: the failover into epoch {} is not complete though everybody is back: {open:?}", open.new_epoch));
            }
            // The failovers between its epoch and the one that opened without it name it together: one of them may never have opened.
            let names = |f: &FailoverRecord| f.tail.as_ref().is_some_and(|t| commit.end.seq > t.from.seq && commit.end.seq <= t.to.seq);
            if !records.iter().filter(of_it).any(names) {
                return Err(format!("S7: commit {id} at {} was lost and no complete report names it: {records:?}", commit.end));
            }
            self.named.insert(*id);
        }
        let has: BTreeSet<u64> = main.commits().collect();
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
