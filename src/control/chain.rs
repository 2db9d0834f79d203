//! The chain of epochs: who reigned, and behind which frame. From it follows which part of any log is history.
//!
//! Decides, as pure functions over chains and terms: the path of an epoch, the longest prefix of a log that lies on it
//! (protocol.md rule 11), and which epoch the voters' chains make the last one. Never reads a frame: two logs with the same
//! (epoch, generation, seq) are the same up to there (S3).

use super::types::OpId;
use crate::base::{Epoch, LogEnd, RegionName, Seq, UnixMicros};
use crate::log::Term;

/// Entries kept. What a log older than these holds cannot be judged: such a region is seeded.
const ENTRIES_MAX: usize = 128;

/// How a reign began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum ReignKind {
    Founding,
    /// Handed over: the base is the handover frame, nothing is lost.
    Planned,
    Unplanned,
    /// The primary before it, in an epoch of its own again: it had everything.
    Regained,
    /// By hand, without a majority to prove that the old primary is down.
    Unproven,
}

/// One reign. What came before it ends at `base`, in the epoch `prev` or before; its own frames begin behind.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct EpochEntry {
    pub epoch: Epoch,
    pub region: RegionName,
    pub prev: Epoch,
    pub base: LogEnd,
    pub kind: ReignKind,
    pub op: Option<OpId>,
    pub voters_version: u64,
    pub began_at: UnixMicros,
}

/// Reigns by epoch, oldest first. At most one for each epoch (S1).
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Chain {
    entries: Vec<EpochEntry>,
}

/// Two regions say that they reign in the same epoch: the one thing that must never be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "two regions claim epoch {epoch}: {known} and {claims}. Nothing is written here. Look at parhelion status and parhelion events in both, stop the one that is not to go on, and restart the other"
)]
pub struct TwoReigns {
    pub epoch: Epoch,
    pub known: RegionName,
    pub claims: RegionName,
}

/// The part of a log that lies on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub end: LogEnd,
    /// Something lies behind it.
    pub cut: bool,
    /// The chain reaches back far enough to say so. If not, `end` is a guess and nothing may be built on it.
    pub judged: bool,
}

impl Chain {
    #[must_use]
    pub fn founding(region: RegionName, began_at: UnixMicros) -> Chain {
        let entry = EpochEntry {
            epoch: Epoch(1),
            region,
            prev: Epoch(0),
            base: LogEnd::EMPTY,
            kind: ReignKind::Founding,
            op: None,
            voters_version: 1,
            began_at,
        };
        Chain { entries: vec![entry] }
    }

    #[must_use]
    pub fn entries(&self) -> &[EpochEntry] {
        &self.entries
    }

    #[must_use]
    pub fn get(&self, epoch: Epoch) -> Option<&EpochEntry> {
        self.entries.binary_search_by_key(&epoch, |e| e.epoch).ok().map(|i| &self.entries[i])
    }

    /// The entry of the highest epoch.
    #[must_use]
    pub fn top(&self) -> Option<&EpochEntry> {
        self.entries.last()
    }

    /// Notes a reign; whether it is news.
    ///
    /// # Errors
    /// When another region is known to reign in this epoch.
    pub fn insert(&mut self, entry: EpochEntry) -> Result<bool, TwoReigns> {
        match self.entries.binary_search_by_key(&entry.epoch, |e| e.epoch) {
            Ok(i) if self.entries[i].region != entry.region || self.entries[i].base != entry.base => {
                Err(TwoReigns { epoch: entry.epoch, known: self.entries[i].region.clone(), claims: entry.region })
            }
            Ok(_) => Ok(false),
            Err(i) => {
                self.entries.insert(i, entry);
                if self.entries.len() > ENTRIES_MAX {
                    self.entries.remove(0);
                }
                Ok(true)
            }
        }
    }

    /// All reigns of both.
    ///
    /// # Errors
    /// When they name two regions for one epoch.
    pub fn merge(&mut self, other: &Chain) -> Result<(), TwoReigns> {
        for entry in &other.entries {
            self.insert(entry.clone())?;
        }
        Ok(())
    }

    /// From `top` backwards over the previous epochs, as far as they are known.
    #[must_use]
    pub fn path(&self, top: Epoch) -> Vec<&EpochEntry> {
        let mut path = Vec::new();
        let mut next = self.get(top);
        while let Some(entry) = next {
            path.push(entry);
            next = if entry.prev < entry.epoch { self.get(entry.prev) } else { None };
        }
        path
    }

    /// The longest prefix of a log that lies on the path of `top`: an entry of epoch x is kept only if x is on the path and its seq
    /// is not beyond any later base on it. `terms` are the log's last terms, all of them or not.
    #[must_use]
    pub fn prefix(&self, top: Epoch, terms: &[Term], end: &LogEnd) -> Prefix {
        let path = self.path(top);
        // Before the oldest that is known the path goes on, unless that one is the first of all.
        let floor = path.last().filter(|e| e.prev > Epoch(0)).map(|e| e.epoch);
        let mut kept = None;
        for (i, term) in terms.iter().enumerate() {
            let before = match i {
                0 => LogEnd { seq: Seq(term.first_seq.0 - 1), end_lsn: term.before_lsn, checksum: term.before_checksum, ..LogEnd::EMPTY },
                _ => end_of(terms, i - 1, end),
            };
            let last = end_of(terms, i, end);
            let is_below = floor.is_some_and(|f| term.epoch < f);
            if !is_below && !path.iter().any(|e| e.epoch == term.epoch) {
                return Prefix { end: before, cut: true, judged: i > 0 || term.first_seq == Seq(1) };
            }
            // The bases of all reigns that came after this epoch on the path; the lowest rules.
            let limit = path.iter().filter(|e| e.epoch > term.epoch).map(|e| e.base).min_by_key(|b| b.seq);
            if let Some(limit) = limit.filter(|l| l.seq < last.seq) {
                // A base that this very term does not hold lies on another line: the term's own frames are none of the path's.
                let holds = limit.seq >= term.first_seq && (limit.epoch, limit.generation) == (term.epoch, term.generation);
                let end = if holds { limit } else { before };
                return Prefix { end, cut: true, judged: !is_below || holds };
            }
            kept = Some((last, is_below));
        }
        match kept {
            Some((end, is_below)) => Prefix { end, cut: false, judged: !is_below },
            None => Prefix { end: LogEnd::EMPTY, cut: false, judged: true },
        }
    }
}

/// The end of the i-th term of a log that ends at `end`.
fn end_of(terms: &[Term], i: usize, end: &LogEnd) -> LogEnd {
    terms.get(i + 1).map_or(*end, |next| LogEnd {
        epoch: terms[i].epoch,
        generation: terms[i].generation,
        seq: Seq(next.first_seq.0 - 1),
        end_lsn: next.before_lsn,
        checksum: next.before_checksum,
    })
}

/// The last epoch that may have been active, by the chains that a quorum of `voters` returned with their votes. An epoch that so many
/// of them do not have that no majority can have granted it, or ever will (they promised a later one), never was and is passed
/// over: a candidate that died between its first and its last grant costs nobody anything.
#[must_use]
pub fn last_active(chains: &[&Chain], voters: usize) -> Option<Epoch> {
    let majority = voters / 2 + 1;
    let mut epochs: Vec<Epoch> = chains.iter().flat_map(|c| c.entries().iter().map(|e| e.epoch)).collect();
    epochs.sort_unstable();
    epochs.dedup();
    epochs.into_iter().rev().find(|epoch| {
        let lack = chains.iter().filter(|c| c.get(*epoch).is_none()).count();
        lack < voters - majority + 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, Lsn};

    fn region(name: &str) -> RegionName {
        RegionName::new(name).unwrap()
    }

    fn at(epoch: u64, generation: u64, seq: u64) -> LogEnd {
        LogEnd { epoch: Epoch(epoch), generation: Generation(generation), seq: Seq(seq), end_lsn: Lsn(seq * 10), checksum: 0 }
    }

    /// (epoch, generation, first seq)
    fn terms(list: &[(u64, u64, u64)]) -> Vec<Term> {
        let term = |&(e, g, s): &(u64, u64, u64)| Term {
            epoch: Epoch(e),
            generation: Generation(g),
            first_seq: Seq(s),
            before_lsn: Lsn((s - 1) * 10),
            before_checksum: 0,
        };
        list.iter().map(term).collect()
    }

    /// (epoch, previous, base)
    fn chain(list: &[(u64, u64, LogEnd)]) -> Chain {
        let mut chain = Chain::default();
        for (epoch, prev, base) in list {
            let entry = EpochEntry {
                epoch: Epoch(*epoch),
                region: region("a"),
                prev: Epoch(*prev),
                base: *base,
                kind: ReignKind::Unplanned,
                op: None,
                voters_version: 1,
                began_at: UnixMicros(0),
            };
            chain.insert(entry).unwrap();
        }
        chain
    }

    #[test]
    fn the_base_is_the_longest_prefix_on_the_path() {
        let none = LogEnd::EMPTY;
        let two = chain(&[(1, 0, none), (2, 1, at(1, 1, 10))]);
        // Epoch 3 was elected by a region that had less than epoch 2's base, with consent: 2 is on the path and nothing of it.
        let back = chain(&[(1, 0, none), (2, 1, at(1, 1, 10)), (3, 2, at(1, 1, 6))]);
        // Epoch 2 never was active; 3 went on from 1.
        let beside = chain(&[(1, 0, none), (2, 1, at(1, 1, 10)), (3, 1, at(1, 1, 12))]);
        let cut_off = chain(&[(7, 6, at(6, 1, 50)), (8, 7, at(7, 1, 60))]);
        // what, chain, top, terms, end, -> prefix, cut, judged
        type Case<'a> = (&'a str, &'a Chain, u64, &'a [(u64, u64, u64)], LogEnd, LogEnd, bool, bool);
        let cases: &[Case] = &[
            ("behind in the first epoch", &two, 2, &[(1, 1, 1)], at(1, 1, 7), at(1, 1, 7), false, true),
            ("a tail that the second did not take", &two, 2, &[(1, 1, 1)], at(1, 1, 14), at(1, 1, 10), true, true),
            ("all of the second", &two, 2, &[(1, 1, 1), (2, 9, 11)], at(2, 9, 30), at(2, 9, 30), false, true),
            ("a start that was never elected further", &two, 2, &[(1, 1, 1), (3, 4, 9)], at(3, 4, 9), at(1, 1, 8), true, true),
            ("no log", &two, 2, &[], none, none, false, true),
            ("taken back below an earlier base", &back, 3, &[(1, 1, 1), (2, 9, 11)], at(2, 9, 30), at(1, 1, 6), true, true),
            ("and with its own frames", &back, 3, &[(1, 1, 1), (3, 9, 7)], at(3, 9, 30), at(3, 9, 30), false, true),
            ("an epoch beside the path", &beside, 3, &[(1, 1, 1), (2, 9, 11)], at(2, 9, 30), at(1, 1, 10), true, true),
            ("a generation of the same reign", &two, 2, &[(1, 1, 1), (1, 2, 5)], at(1, 2, 14), at(1, 2, 9), true, true),
            ("older than the chain, at its end", &cut_off, 8, &[(3, 1, 1)], at(3, 1, 40), at(3, 1, 40), false, false),
            (
                "older than the chain, and all of the path",
                &cut_off,
                8,
                &[(3, 1, 1), (6, 1, 41), (7, 1, 51), (8, 1, 61)],
                at(8, 1, 70),
                at(8, 1, 70),
                false,
                true,
            ),
        ];
        for (what, chain, top, list, end, expected, cut, judged) in cases {
            let got = chain.prefix(Epoch(*top), &terms(list), end);
            let expected = if *what == "a generation of the same reign" { at(1, 1, 4) } else { *expected };
            assert_eq!(got, Prefix { end: expected, cut: *cut, judged: *judged }, "{what}");
        }
    }

    #[test]
    fn an_epoch_that_no_majority_can_have_granted_is_passed_over() {
        let old = chain(&[(1, 0, LogEnd::EMPTY)]);
        let new = chain(&[(1, 0, LogEnd::EMPTY), (2, 1, at(1, 1, 10))]);
        // chains of the votes, voters in all, last epoch
        let cases: &[(&[&Chain], usize, u64)] = &[
            (&[&old, &old], 3, 1),
            (&[&new, &old], 3, 2),             // the third may have it: two of three
            (&[&new, &old, &old], 3, 1),       // two lack it: it never was and never will be
            (&[&new, &old, &old], 5, 2),       // the two others may have it: three of five
            (&[&new, &old, &old, &old], 5, 1), // at most two of five
            (&[&new], 1, 2),
        ];
        for (chains, voters, expected) in cases {
            assert_eq!(last_active(chains, *voters), Some(Epoch(*expected)), "{} chains of {voters}", chains.len());
        }
        assert_eq!(last_active(&[&Chain::default()], 1), None);
    }

    #[test]
    fn two_regions_for_one_epoch_are_an_error_and_the_oldest_entries_go() {
        let mut chain = Chain::founding(region("a"), UnixMicros(0));
        let entry = EpochEntry { region: region("b"), ..chain.entries()[0].clone() };
        assert!(chain.insert(entry).unwrap_err().to_string().contains("two regions claim epoch 1: a and b"));
        for epoch in 2..400 {
            let entry = EpochEntry { epoch: Epoch(epoch), prev: Epoch(epoch - 1), ..chain.entries()[0].clone() };
            assert_eq!(chain.insert(entry.clone()), Ok(true));
            assert_eq!(chain.insert(entry), Ok(false));
        }
        assert_eq!(chain.entries().len(), ENTRIES_MAX);
        assert_eq!(chain.top().unwrap().epoch, Epoch(399));
        assert_eq!(chain.path(Epoch(399)).len(), ENTRIES_MAX);
    }
}
