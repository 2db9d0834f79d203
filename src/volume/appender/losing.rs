//! Log that was durable and is not there any more: found while the copies are heard, or when one comes late.
//!
//! Decides what the copies, the record and the files of copies that cannot be opened show together ([`crate::volume::evidence`] judges it). Never what follows:
//! the node halts a region that led, and a region that follows fetches what is missing. A copy that shows more than a leading region has
//! is left as it is, so that nothing of it is cut.

use super::*;
use crate::volume::agreement::Chosen;
use crate::volume::membership::Record;

impl Appender {
    /// The files of a copy that cannot be opened show that the log was durable up to `durable`.
    pub fn copy_proves(&mut self, copy: MemberId, lineage: LineageId, durable: LogEnd) {
        self.proofs.insert(copy, (lineage, durable));
    }

    /// What is missing in the log that recovery chose.
    pub(super) fn judge_lost(&self, chosen: &Chosen, heard: &[Heard<'_>], kept: &Record) -> Option<LostLog> {
        let copies = self.members().zip(heard).filter_map(|(copy, heard)| match heard {
            Heard::Raised(state) if state.lineage == Some(chosen.lineage) => Some((state.durable, format!("copy {copy}"))),
            _ => None,
        });
        let ours = |lineage: LineageId| lineage == chosen.lineage;
        let unopened = self
            .proofs
            .iter()
            .filter(|(_, (lineage, _))| ours(*lineage))
            .map(|(copy, (_, at))| (*at, format!("copy {copy}, which is damaged,")));
        let record =
            kept.durable.filter(|(lineage, _)| ours(*lineage)).map(|(_, at)| (at, "the record beside the control state".to_owned()));
        evidence::lost(&chosen.history, &chosen.consistent, chosen.reign, copies.chain(unopened).chain(record))
    }

    /// What recovery waits for, with what the copies that cannot be opened show.
    pub(super) fn with_proofs(&self, reason: String) -> String {
        let heard = self.members().filter_map(|copy| match &self.peers[copy.index()].contact {
            Contact::Raised(state) => Some((copy, state.durable)),
            _ => None,
        });
        let unopened = self.proofs.iter().map(|(copy, (_, at))| (*copy, *at));
        match unopened.chain(heard).max_by_key(|(_, at)| *at).filter(|_| !self.proofs.is_empty()) {
            Some((copy, at)) => {
                format!("{reason}. The log was durable up to {at} at least, as copy {copy} shows; with less nothing goes on")
            }
            None => reason,
        }
    }

    /// A copy comes to a volume that went on without it. `true`: it shows log that was durable and that this volume, which leads, does not have. It is
    /// out of duty, and nothing of it is cut.
    pub(super) fn came_too_late(&mut self, now: Instant, copy: MemberId) -> bool {
        let Contact::Raised(state) = &self.peers[copy.index()].contact else { return false };
        if state.lineage.is_none() || state.lineage != self.lineage {
            return false;
        }
        // What this volume will append may still be what the copy has: only another history counts.
        let open_end = LogEnd { seq: Seq(u64::MAX), ..self.end };
        let found = evidence::lost(&self.history, &open_end, self.reign, [(state.durable, format!("copy {copy}"))]);
        let Some(lost) = found.map(|lost| LostLog { end: self.end, ..lost }) else { return false };
        let leads = self.leads;
        self.effects.push_back(AppenderEffect::LogLost { copy, lost: lost.clone() });
        if leads {
            let reason = format!("it has log that was durable and that this region went on without: {lost}; it is left as it is");
            self.copy_lost(now, copy, reason);
        }
        leads
    }
}
