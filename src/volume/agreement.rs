//! Recovery over all protection groups: where the volume's log goes on, given which log each group chose.
//!
//! Each group is judged by itself first ([`super::recovery::choose`]). What was durable in the volume was durable in every group, so
//! it lies in every chosen log: the volume goes on behind the last consistency point that all of them share. What one group has
//! beyond it never was durable, whatever its term: it lacks a quorum in another group. A pure function, called again whenever another
//! copy answers.

use super::message::CopyState;
use super::quorum::COPIES;
use super::recovery::{self, Heard};
use crate::base::{Epoch, GroupId, LineageId, LogEnd, Lsn, MemberId, Seq};
use crate::log::History;

/// What recovery goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Too few have answered to tell.
    Wait {
        reason: String,
    },
    /// There is no log: all copies are new, or a founding (or a seeding) stopped half-way over the groups.
    Empty,
    Log(Box<Chosen>),
}

/// The volume's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub lineage: LineageId,
    /// Oldest frame that all chosen logs can still read.
    pub first: Seq,
    /// Up to here, about, the chosen logs are the same.
    pub end: LogEnd,
    /// The last consistency point that all of them share.
    pub consistent: LogEnd,
    /// Terms of the newest of them.
    pub history: History,
    /// The reign for whose sake it was rewound, while it has nothing of it: what other logs have behind `consistent` is void, but for what
    /// ranks as high; 0: there is none.
    pub reign: Epoch,
}

/// `heard`: all members, in the order of [`MemberId::all`].
#[must_use]
pub fn choose(heard: &[Heard<'_>], reseedable: bool) -> Choice {
    let groups = heard.len() / COPIES;
    let mut chosen: Vec<&CopyState> = Vec::with_capacity(groups);
    let mut empty: Option<GroupId> = None;
    for (group, six) in (0u32..).map(GroupId).zip(heard.chunks(COPIES)) {
        let six: &[Heard<'_>; COPIES] = six.try_into().expect("BUG: six copies in each group");
        match recovery::choose(six, reseedable) {
            recovery::Choice::Wait { reason } if groups == 1 => return Choice::Wait { reason },
            recovery::Choice::Wait { reason } => return Choice::Wait { reason: format!("protection group {group}: {reason}") },
            recovery::Choice::Empty => empty = Some(group),
            recovery::Choice::Log { source } => {
                let Heard::Raised(state) = &six[source.index()] else { unreachable!("BUG: the chosen copy was raised") };
                chosen.push(state);
            }
        }
    }
    let Some(best) = chosen.iter().max_by_key(|s| s.rank()) else { return Choice::Empty };
    // Nothing was ever written for a client: its pen comes only when the first frame is on four copies of every group.
    let void = reseedable || chosen.iter().all(|s| s.end.end_lsn == Lsn(0));
    if let Some(empty) = empty {
        return if void {
            Choice::Empty
        } else {
            let reason = format!(
                "all six copies of protection group {empty} are empty and those of other groups are not; put its directories back \
                 (the copies named *.{empty})"
            );
            Choice::Wait { reason }
        };
    }
    if let Some(other) = chosen.iter().find(|s| s.lineage != best.lineage) {
        let [a, b] = [best.lineage, other.lineage].map(|l| l.map_or_else(String::new, |l| l.to_string()));
        let reason =
            format!("the groups' copies are of different lineages, {a} and {b}: two histories are never merged; put the right ones back");
        return Choice::Wait { reason };
    }
    let upto = chosen.iter().map(|s| best.history.common_seq(best.end.seq, &s.history, s.end.seq)).min().expect("BUG: there is a best");
    if upto == Seq::ZERO {
        return if void {
            Choice::Empty
        } else {
            Choice::Wait { reason: "the groups' logs have nothing in common; put the directories of one volume together".into() }
        };
    }
    // The shortest log ends in the shared part, and knows the last consistency point before its end; or a term ends there, and a term
    // only ever begins behind a consistency point.
    let points = chosen.iter().flat_map(|s| s.history.ends_of_terms().chain([s.consistent, s.flushed]));
    let consistent = points.filter(|p| p.seq <= upto && best.history.contains(p)).max_by_key(|p| p.seq).unwrap_or(LogEnd::EMPTY);
    let end = chosen.iter().map(|s| s.end).filter(|e| e.seq == upto && best.history.contains(e)).max().unwrap_or(consistent);
    Choice::Log(Box::new(Chosen {
        lineage: best.lineage.expect("BUG: a chosen copy has a lineage"),
        first: chosen.iter().map(|s| s.first).max().unwrap_or(Seq::ZERO),
        end,
        consistent,
        history: best.history.clone(),
        reign: chosen.iter().map(|s| s.reign).filter(|reign| *reign > consistent.epoch).max().unwrap_or_default(),
    }))
}

/// The control state kept on the copies of group 0: its version and bytes.
#[must_use]
pub fn control(heard: &[Heard<'_>]) -> (u64, Vec<u8>) {
    let kept = MemberId::of(GroupId(0)).into_iter().filter_map(|m| match heard.get(m.index()) {
        Some(Heard::Raised(s)) => Some((s.control_version, &s.control)),
        _ => None,
    });
    kept.max().map_or((0, Vec::new()), |(version, control)| (version, control.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, Prng, UnixMicros};
    use crate::log::{ControlFrame, Flags, Frame};
    use crate::volume::quorum;
    use proptest::prelude::*;

    const LINEAGE: LineageId = LineageId(1);

    fn founded(generation: u64) -> Vec<Frame> {
        let start = ControlFrame::EpochStart { lineage: LINEAGE };
        vec![start.encode(&LogEnd::EMPTY, Epoch(1), Generation(generation), UnixMicros(0))]
    }

    fn end_of(log: &[Frame]) -> LogEnd {
        log.last().map_or(LogEnd::EMPTY, Frame::log_end)
    }

    fn start(log: &mut Vec<Frame>, generation: u64) {
        log.push(ControlFrame::GenerationStart.encode(&end_of(log), Epoch(1), Generation(generation), UnixMicros(0)));
    }

    fn write(log: &mut Vec<Frame>, consistent: bool) {
        let end = end_of(log);
        let flags = if consistent { Flags::CONSISTENCY_POINT } else { Flags::default() };
        log.push(Frame::encode(&end, end.epoch, end.generation, flags, UnixMicros(0), &[7; 10]));
    }

    fn state(log: &[Frame]) -> CopyState {
        let mut history = History::default();
        log.iter().for_each(|f| history.note(f));
        CopyState {
            incarnation: crate::volume::membership::Incarnation::UNKNOWN,
            lineage: (!log.is_empty()).then_some(LINEAGE),
            first: Seq(1),
            end: end_of(log),
            consistent: log.iter().rev().find(|f| f.is_consistency_point()).map_or(LogEnd::EMPTY, Frame::log_end),
            history,
            ingested: LogEnd::EMPTY,
            flushed: LogEnd::EMPTY,
            control_version: 0,
            control: Vec::new(),
            reign: Epoch(0),
            archives: Vec::new(),
            durable: LogEnd::EMPTY,
        }
    }

    /// All six of each group have the same.
    fn choose_of(groups: &[&CopyState], reseedable: bool) -> Choice {
        let heard: Vec<Heard<'_>> = groups.iter().flat_map(|s| vec![Heard::Raised(s); COPIES]).collect();
        choose(&heard, reseedable)
    }

    fn goes_on_behind(choice: &Choice) -> LogEnd {
        let Choice::Log(chosen) = choice else { panic!("{choice:?}") };
        chosen.consistent
    }

    #[test]
    fn the_volume_goes_on_behind_the_last_point_that_all_groups_share() {
        let mut long = founded(6);
        write(&mut long, true);
        write(&mut long, false);
        write(&mut long, true);
        let (whole, middle) = (state(&long), state(&long[..3]));
        assert_eq!(goes_on_behind(&choose_of(&[&whole, &whole], false)), long[3].log_end());
        assert_eq!(goes_on_behind(&choose_of(&[&whole, &middle], false)), long[1].log_end(), "half a mini-transaction counts nowhere");
        assert_eq!(goes_on_behind(&choose_of(&[&middle, &whole, &whole], false)), long[1].log_end());
    }

    #[test]
    fn a_generation_start_that_reached_one_group_only_never_counted() {
        let mut old = founded(6);
        write(&mut old, true);
        let mut new = old.clone();
        start(&mut new, 7);
        write(&mut old, true);
        write(&mut old, true);
        // Group 0 has it on all six, group 1 nowhere but has a longer tail of before.
        let choice = choose_of(&[&state(&new), &state(&old)], false);
        assert_eq!(goes_on_behind(&choice), old[1].log_end());
        // Two recoveries that both stopped so, one behind the other.
        let mut newer = old[..1].to_vec();
        start(&mut newer, 8);
        assert_eq!(goes_on_behind(&choose_of(&[&state(&new), &state(&newer)], false)), old[0].log_end());
    }

    #[test]
    fn a_founding_that_stopped_between_two_groups_begins_again_and_data_is_never_thrown_away() {
        let empty = state(&[]);
        let mut log = founded(5);
        assert_eq!(choose_of(&[&empty, &empty], false), Choice::Empty);
        assert_eq!(choose_of(&[&state(&log), &empty], false), Choice::Empty);
        assert_eq!(choose_of(&[&state(&log), &state(&founded(6))], false), Choice::Empty, "two foundings, each in one group");
        write(&mut log, true);
        assert!(matches!(choose_of(&[&state(&log), &empty], false), Choice::Wait { .. }));
        assert!(matches!(choose_of(&[&state(&log), &state(&founded(6))], false), Choice::Wait { .. }));
        assert_eq!(choose_of(&[&state(&log), &empty], true), Choice::Empty, "a secondary is seeded anew");
        let other = CopyState { lineage: Some(LineageId(2)), ..state(&log) };
        assert!(matches!(choose_of(&[&state(&log), &other], false), Choice::Wait { .. }));
    }

    #[test]
    fn a_group_without_a_quorum_is_named() {
        let log = state(&founded(5));
        let mut heard = vec![Heard::Raised(&log); 2 * COPIES];
        heard[8..].fill(Heard::Nothing);
        let Choice::Wait { reason } = choose(&heard, false) else { panic!("two copies of group 1 are not enough") };
        assert!(reason.starts_with("protection group g1:"), "{reason}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Incarnations that write, reach whoever they reach and end anywhere, also in the middle of a recovery; each recovery hears any
        /// three or more of each group. What was durable in all groups is in everything that any of them goes on with.
        #[test]
        fn whatever_was_durable_in_all_groups_is_gone_on_with(seed: u64, groups in 1usize..=3) {
            let mut prng = Prng::new(seed);
            let mut copies: Vec<Vec<Frame>> = vec![founded(1); groups * COPIES];
            let mut durable = LogEnd::EMPTY;
            for generation in 2..30 {
                let states: Vec<CopyState> = copies.iter().map(|log| state(log)).collect();
                let mut heard: Vec<Heard<'_>> = states.iter().map(Heard::Raised).collect();
                for six in heard.chunks_mut(COPIES) {
                    for _ in 0..prng.below(4) {
                        six[prng.below(6) as usize] = Heard::Nothing;
                    }
                }
                let choice = choose(&heard, false);
                let consistent = goes_on_behind(&choice);
                let Choice::Log(chosen) = &choice else { unreachable!() };
                prop_assert!(consistent.seq >= durable.seq && chosen.history.contains(&durable), "{durable} was durable, {consistent}");
                let source = copies.iter().find(|log| log.iter().any(|f| f.log_end() == consistent)).expect("somebody has it");
                let mut log: Vec<Frame> = source[..consistent.seq.0 as usize].to_vec();
                start(&mut log, generation);
                let began = log.len();
                for _ in 0..prng.below(6) {
                    let consistent = prng.chance(600_000);
                    write(&mut log, consistent);
                }
                let mut acked = vec![0; copies.len()];
                for (copy, acked) in copies.iter_mut().zip(&mut acked) {
                    // A copy has all of this log, some of it, or nothing that is new; a tail only goes when its successor comes.
                    let reach = prng.between(began as u64 - 1, log.len() as u64) as usize;
                    if prng.chance(700_000) && reach >= began {
                        *copy = log[..reach].to_vec();
                        *acked = reach;
                    }
                }
                let by_group = acked.chunks(COPIES).map(|six| quorum::durable(<[usize; COPIES]>::try_from(six).unwrap()));
                let reached = by_group.min().unwrap();
                if let Some(point) = log[..reached].iter().rev().find(|f| f.is_consistency_point()) {
                    durable = point.log_end();
                }
            }
        }
    }
}
