//! Which writer wrote from where: the log's terms. Two logs are compared by their terms, without reading frames: up to
//! the end of their last common term they are the same (protocol.md S3; Neon calls it term history).

use super::Frame;
use crate::base::{Epoch, Generation, LogEnd, Lsn, Seq};

/// From `first_seq` on, frames were assigned by this (epoch, generation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Term {
    pub epoch: Epoch,
    pub generation: Generation,
    pub first_seq: Seq,
    /// The log's end before its first frame, as that frame says: LSN and checksum.
    pub before_lsn: Lsn,
    pub before_checksum: u32,
}

/// The terms of one log, oldest first; at most one entry for each (epoch, generation).
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct History {
    terms: Vec<Term>,
}

impl History {
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Notes a frame that was appended, or that replaced what stood at its seq and behind.
    pub fn note(&mut self, frame: &Frame) {
        let h = frame.header();
        self.cut_from(h.seq);
        if self.terms.last().is_none_or(|t| (t.epoch, t.generation) != (h.epoch, h.generation)) {
            let (before_lsn, before_checksum) = (h.first_lsn, h.prev_checksum);
            self.terms.push(Term { epoch: h.epoch, generation: h.generation, first_seq: h.seq, before_lsn, before_checksum });
        }
    }

    /// Forgets everything from `seq` on.
    pub fn cut_from(&mut self, seq: Seq) {
        while self.terms.last().is_some_and(|t| t.first_seq >= seq) {
            self.terms.pop();
        }
    }

    /// The last seq up to which two logs are the same. `0` when they share nothing, not even a first frame.
    #[must_use]
    pub fn common_seq(&self, own_end: Seq, other: &History, other_end: Seq) -> Seq {
        let shared = self.terms.iter().zip(&other.terms).take_while(|(a, b)| a == b).count();
        if shared == 0 {
            return Seq(0);
        }
        let end_of = |terms: &[Term], end: Seq| terms.get(shared).map_or(end, |next| Seq(next.first_seq.0 - 1));
        end_of(&self.terms, own_end).min(end_of(&other.terms, other_end))
    }

    /// Where each term but the last ended: always a consistency point, because whoever began the next one went on behind one.
    pub fn ends_of_terms(&self) -> impl Iterator<Item = LogEnd> {
        self.terms.windows(2).map(|pair| LogEnd {
            epoch: pair[0].epoch,
            generation: pair[0].generation,
            seq: Seq(pair[1].first_seq.0 - 1),
            end_lsn: pair[1].before_lsn,
            checksum: pair[1].before_checksum,
        })
    }

    /// The position at `seq` where it is the end of a term (but the last one).
    #[must_use]
    pub fn end_of_term_at(&self, seq: Seq) -> Option<LogEnd> {
        self.ends_of_terms().find(|end| end.seq == seq)
    }

    /// The term that holds `seq`, when the history reaches back that far.
    #[must_use]
    pub fn term_of(&self, seq: Seq) -> Option<Term> {
        self.terms.iter().rev().find(|t| t.first_seq <= seq).copied()
    }

    /// Whether `end` lies on this history: its seq was written by its (epoch, generation).
    #[must_use]
    pub fn contains(&self, end: &LogEnd) -> bool {
        end.seq == Seq(0) || self.term_of(end.seq).is_some_and(|t| (t.epoch, t.generation) == (end.epoch, end.generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(terms: &[(u64, u64, u64)]) -> History {
        let term = |&(e, g, s): &(u64, u64, u64)| Term {
            epoch: Epoch(e),
            generation: Generation(g),
            first_seq: Seq(s),
            before_lsn: Lsn(s),
            before_checksum: 0,
        };
        History { terms: terms.iter().map(term).collect() }
    }

    #[test]
    fn a_history_knows_where_its_terms_ended() {
        let mut pen = crate::log::Pen::new(Epoch(1), Generation(1), LogEnd::EMPTY, 100);
        let first = pen.write(&[vec![1; 7]], true, crate::base::UnixMicros(0));
        let mut newer = crate::log::Pen::new(Epoch(1), Generation(2), *pen.end(), 100);
        let mut history = History::default();
        first.iter().chain(&newer.write(&[vec![2; 9]], true, crate::base::UnixMicros(0))).for_each(|f| history.note(f));
        assert_eq!(history.ends_of_terms().collect::<Vec<_>>(), [*pen.end()]);
    }

    #[test]
    fn logs_are_common_up_to_the_end_of_their_last_common_term() {
        // one line per case: own terms, own end, other's terms, other's end, common
        type Terms = &'static [(u64, u64, u64)];
        let cases: &[(Terms, u64, Terms, u64, u64)] = &[
            (&[(1, 1, 1)], 10, &[(1, 1, 1)], 7, 7),                       // the other is behind
            (&[(1, 1, 1)], 10, &[(1, 1, 1), (1, 2, 8)], 8, 7),            // it was cut at 8 and replaced
            (&[(1, 1, 1), (1, 2, 5)], 5, &[(1, 1, 1), (1, 3, 9)], 20, 4), // both diverged: the lower start decides
            (&[(1, 1, 1), (1, 2, 5)], 9, &[(1, 1, 1), (1, 2, 5)], 12, 9),
            (&[(1, 1, 1)], 3, &[(2, 1, 1)], 3, 0), // nothing in common
            (&[], 0, &[(1, 1, 1)], 3, 0),
        ];
        for (own, own_end, other, other_end, common) in cases {
            let got = history(own).common_seq(Seq(*own_end), &history(other), Seq(*other_end));
            assert_eq!(got, Seq(*common), "{own:?} to {own_end} against {other:?} to {other_end}");
            let back = history(other).common_seq(Seq(*other_end), &history(own), Seq(*own_end));
            assert_eq!(back, got, "the comparison is symmetric");
        }
    }
}
