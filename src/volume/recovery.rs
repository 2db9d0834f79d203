//! Recovery's one decision: which of the logs that were found goes on. A pure function over what the raised copies said.
//!
//! Called again whenever another copy answers, until it decides. It never guesses: with fewer than three intact copies
//! that hold data it says what is missing (design.md section 4.5; the exception for a founding that crashed is stated below).

use super::message::CopyState;
use super::quorum::{COPIES, READ_QUORUM};
use crate::base::{CopyId, Lsn};

/// What is known of one copy while recovery runs.
#[derive(Clone, Debug)]
pub enum Heard<'a> {
    /// Not answered yet, or down.
    Nothing,
    Raised(&'a CopyState),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Too few have answered to tell.
    Wait { reason: String },
    /// All six are new and empty.
    Empty,
    /// The log of this copy is the longest that recovery can be asked for.
    Log { source: CopyId },
}

/// Chooses among the raised copies: the log whose last frame has the highest (epoch, generation, seq) of at least three.
///
/// A copy that was rewound for the sake of a reign ranks as one that has nothing yet of that reign: above every log of an older one
/// (see [`CopyState::rank`]), so a tail that was rewound on four copies is never taken up again.
///
/// New and empty copies hold no vote: one of them may be a replaced disk that acknowledged what it no longer has. One
/// exception: when all six answered and those with data hold nothing but control frames (LSN 0), nothing can ever have been
/// acknowledged to a client, and the founding is finished instead of blocking for ever. A region that may be seeded anew
/// (`reseedable`: another region is the primary) does not block either: a seeding that crashed half-way counts as empty.
#[must_use]
pub fn choose(heard: &[Heard<'_>; COPIES], reseedable: bool) -> Choice {
    let raised: Vec<(CopyId, &CopyState)> = CopyId::all()
        .into_iter()
        .zip(heard)
        .filter_map(|(id, h)| match h {
            Heard::Raised(state) => Some((id, *state)),
            Heard::Nothing => None,
        })
        .collect();
    let with_data: Vec<(CopyId, &CopyState)> = raised.iter().filter(|(_, s)| s.lineage.is_some()).copied().collect();
    let best = with_data.iter().max_by_key(|(id, s)| (s.rank(), std::cmp::Reverse(*id))).map(|(id, _)| *id);
    match best {
        None if raised.len() == COPIES => Choice::Empty,
        None if raised.is_empty() => Choice::Wait { reason: "none of the six copies can be opened; see what each of them says".into() },
        None => Choice::Wait {
            reason: format!(
                "{} of six copies answered, all of them empty; an empty volume is only believed when all six say so",
                raised.len()
            ),
        },
        Some(source) if with_data.len() >= READ_QUORUM => Choice::Log { source },
        Some(source) if raised.len() == COPIES && with_data.iter().all(|(_, s)| s.end.end_lsn == Lsn(0)) => Choice::Log { source },
        Some(_) if raised.len() == COPIES && reseedable => Choice::Empty,
        Some(_) => Choice::Wait {
            reason: format!("{} of six copies with data answered; {READ_QUORUM} are needed to know what was durable", with_data.len()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Epoch, Generation, LineageId, LogEnd, Seq};
    use crate::log::History;

    fn state(lineage: bool, generation: u64, seq: u64) -> CopyState {
        // One control frame, then frames of ten bytes.
        let end_lsn = Lsn(seq.saturating_sub(1) * 10);
        let end = LogEnd { epoch: Epoch(1), generation: Generation(generation), seq: Seq(seq), end_lsn, checksum: 0 };
        CopyState {
            incarnation: crate::volume::membership::Incarnation::UNKNOWN,
            lineage: lineage.then_some(LineageId(1)),
            first: Seq(1),
            end,
            consistent: end,
            history: History::default(),
            ingested: LogEnd::EMPTY,
            flushed: LogEnd::EMPTY,
            control_version: 0,
            control: Vec::new(),
            reign: Epoch(0),
            archives: Vec::new(),
            durable: LogEnd::EMPTY,
        }
    }

    fn choose_of(copies: &[Option<(bool, u64, u64)>; 6]) -> Choice {
        let states: Vec<Option<CopyState>> = copies.iter().map(|c| c.map(|(l, g, s)| state(l, g, s))).collect();
        let heard: Vec<Heard<'_>> = states.iter().map(|s| s.as_ref().map_or(Heard::Nothing, Heard::Raised)).collect();
        choose(&heard.try_into().expect("six"), false)
    }

    #[test]
    fn the_newest_generation_wins_over_the_longest_log() {
        let got = choose_of(&[Some((true, 1, 90)), Some((true, 2, 50)), Some((true, 1, 99)), None, None, None]);
        assert_eq!(got, Choice::Log { source: CopyId(1) });
    }

    #[test]
    fn empty_copies_have_no_vote() {
        let got = choose_of(&[Some((true, 1, 9)), Some((true, 1, 9)), Some((false, 0, 0)), Some((false, 0, 0)), Some((false, 0, 0)), None]);
        assert!(matches!(got, Choice::Wait { .. }), "{got:?}");
        let got = choose_of(&[Some((true, 1, 9)), Some((true, 1, 9)), Some((false, 0, 0)), Some((true, 1, 3)), None, None]);
        assert_eq!(got, Choice::Log { source: CopyId(0) });
    }

    #[test]
    fn an_empty_volume_is_only_believed_from_all_six() {
        let empty = Some((false, 0, 0));
        assert_eq!(choose_of(&[empty; 6]), Choice::Empty);
        assert!(matches!(choose_of(&[empty, empty, empty, empty, empty, None]), Choice::Wait { .. }));
    }

    #[test]
    fn a_founding_that_crashed_is_finished() {
        let empty = Some((false, 0, 0));
        assert_eq!(choose_of(&[Some((true, 1, 1)), empty, empty, empty, empty, empty]), Choice::Log { source: CopyId(0) });
        assert!(matches!(choose_of(&[Some((true, 1, 2)), empty, empty, empty, empty, empty]), Choice::Wait { .. }));
    }
}
