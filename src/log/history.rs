//! Which writer wrote from where: the log's terms. Two logs are compared by their terms, without reading frames: up to
//! the end of their last common term they are the same (protocol.md S3; Neon calls it term history).

use super::Frame;
use crate::base::{Epoch, Generation, LogEnd, Seq};

/// From `first_seq` on, frames were assigned by this (epoch, generation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Term {
    pub epoch: Epoch,
    pub generation: Generation,
    pub first_seq: Seq,
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
            self.terms.push(Term { epoch: h.epoch, generation: h.generation, first_seq: h.seq });
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
        History { terms: terms.iter().map(|&(e, g, s)| Term { epoch: Epoch(e), generation: Generation(g), first_seq: Seq(s) }).collect() }
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
