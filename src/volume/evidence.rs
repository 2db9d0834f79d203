//! What shows that a recovery found less than was durable.
//!
//! Decides, as a pure function, whether a position that somebody knows to have been durable is missing in the log that goes on. With honest disks it never is
//! (3 + 4 > 6). With disks that lied, all of them or too many, the logs that are left may agree with one another and be too short; then the
//! only thing that tells is what was written elsewhere: the marks and headers of log files carry what the region said to be durable, layers are made of nothing
//! else, the record beside the control state says it, and so do copies that cannot be opened any more ([`crate::volume::proven_durable`]).
//! Other regions' evidence is judged in [`crate::control`]. Never guesses: without evidence nothing is missed.

use crate::base::{Epoch, LogEnd};
use crate::log::History;
use std::fmt;

/// Log that was durable is not there any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostLog {
    /// The highest position that is known to have been durable.
    pub known: LogEnd,
    /// Who knows it: a noun.
    pub by: String,
    /// Up to here it can be proven.
    pub end: LogEnd,
}

impl fmt::Display for LostLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what can be proven ends at {}, and {} shows that the log was durable up to {}", self.end, self.by, self.known)
    }
}

/// The highest of `known` that should be in the log of this `history`, which ends at `end`, and is not. Once a later epoch has begun in the log (or was taken up:
/// `reign`), what an older one had beyond its base is judged by the failover that made it, and not here.
pub fn lost(history: &History, end: &LogEnd, reign: Epoch, known: impl IntoIterator<Item = (LogEnd, String)>) -> Option<LostLog> {
    let newest = history.terms().last().map_or(Epoch(0), |t| t.epoch).max(reign);
    let missing = |at: &LogEnd| at.epoch >= newest && *at != LogEnd::EMPTY && !(at.seq <= end.seq && history.contains(at));
    let highest = known.into_iter().filter(|(at, _)| missing(at)).max_by_key(|(at, _)| *at);
    highest.map(|(known, by)| LostLog { known, by, end: *end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, Lsn, Seq, UnixMicros};
    use crate::log::{Frame, Pen};

    fn log(terms: &[(u64, u64, u64)]) -> (History, LogEnd) {
        let (mut history, mut end) = (History::default(), LogEnd::EMPTY);
        for &(epoch, generation, frames) in terms {
            let mut pen = Pen::new(Epoch(epoch), Generation(generation), end, 100);
            for _ in 0..frames {
                let written: Vec<Frame> = pen.write(&[vec![1; 10]], true, UnixMicros(0));
                written.iter().for_each(|f| history.note(f));
            }
            end = *pen.end();
        }
        (history, end)
    }

    fn at(epoch: u64, generation: u64, seq: u64) -> LogEnd {
        LogEnd { epoch: Epoch(epoch), generation: Generation(generation), seq: Seq(seq), end_lsn: Lsn(seq * 10), checksum: 0 }
    }

    #[test]
    fn what_was_durable_is_missed_where_it_is_not_and_nothing_else_is() {
        let (history, end) = log(&[(1, 1, 5), (1, 2, 5), (3, 7, 4)]);
        assert_eq!(end.seq, Seq(14));
        // what, known, taken up reign, missed
        let cases = [
            ("nothing is known", LogEnd::EMPTY, 0, false),
            ("in the log", at(3, 7, 12), 0, false),
            ("its end", at(3, 7, 14), 0, false),
            ("behind its end", at(3, 7, 15), 0, true),
            ("another generation's, which is not in the log", at(3, 6, 13), 0, true),
            ("of a newer epoch than the log", at(4, 9, 13), 0, true),
            ("of an older epoch, beyond the base of the next one", at(1, 2, 13), 0, false),
            ("the copies went back for a later reign", at(3, 7, 15), 4, false),
        ];
        for (what, known, reign, missed) in cases {
            let found = lost(&history, &end, Epoch(reign), [(known, "somebody".to_owned()), (at(3, 7, 11), "other".to_owned())]);
            assert_eq!(found.map(|l| l.known), missed.then_some(known), "{what}");
        }
    }
}
