//! Quorums of both sets intersect, by enumeration; and a model of directories that store records and a log, crashed at every point.

use super::*;
use crate::base::{Prng, Seq};
use proptest::prelude::*;

const OLD: Incarnation = Incarnation(1);
const NEW: Incarnation = Incarnation(7);

fn founded() -> Membership {
    Membership::founded(vec![std::array::from_fn(|i| Incarnation(i as u128 + 1))])
}

fn joint() -> Membership {
    founded().begin(CopyId(0), vec![NEW], "/new".into()).unwrap()
}

fn subsets() -> impl Iterator<Item = [bool; SEATS]> {
    (0u32..1 << SEATS).map(|bits| std::array::from_fn(|i| bits >> i & 1 == 1))
}

fn meet(a: &[bool; SEATS], b: &[bool; SEATS]) -> bool {
    (0..SEATS).any(|i| a[i] && b[i])
}

/// Of the seats a directory has, whatever the record calls them: seat 0 is F and seat 6 is G while both are there.
fn swapped(set: [bool; SEATS]) -> [bool; SEATS] {
    let mut out = set;
    out.swap(0, CANDIDATE.index());
    out
}

#[test]
fn whatever_one_record_made_durable_the_next_ones_recovery_meets() {
    let (old, joint) = (founded(), joint());
    let cancelled = joint.cancel().unwrap();
    let mut checked = 0;
    for wrote in subsets() {
        for heard in subsets() {
            let met = meet(&wrote, &heard);
            for (writer, reader) in [
                (&old, &old),
                (&old, &joint),
                (&joint, &old),
                (&joint, &joint),
                (&joint, &cancelled),
                (&cancelled, &joint),
                (&cancelled, &cancelled),
            ] {
                if writer.can_write(wrote) && reader.can_recover(heard) {
                    assert!(met, "{wrote:?} by {writer:?} is not met by {heard:?} of {reader:?}");
                    checked += 1;
                }
            }
            // When the new one stays it has the slot: of the same directories, seats 0 and 6 are told the other way round.
            let finished = joint.finish().unwrap();
            let settled = finished.settle().unwrap();
            let heard_after = swapped(heard);
            // What is kept by quorums of both (a record as well as a frame) is met by who goes by either step.
            if finished.can_write(swapped(wrote))
                && (joint.can_recover(heard) || finished.can_recover(heard_after) || settled.can_recover(heard_after))
            {
                assert!(met);
                checked += 1;
            }
        }
    }
    assert!(checked > 10_000, "{checked}");
}

#[test]
fn two_write_quorums_always_meet_and_one_zone_and_the_leaving_copy_may_be_away() {
    let records = [founded(), joint(), joint().cancel().unwrap()];
    for a in subsets() {
        for b in subsets() {
            for (x, y) in records.iter().flat_map(|x| records.iter().map(move |y| (x, y))) {
                assert!(!x.can_write(a) || !y.can_write(b) || meet(&a, &b));
            }
        }
    }
    // F is dead: the other five are four and one to spare, with G or without it.
    assert!(joint().can_write([false, true, true, true, true, false, false]));
    // Two of them away: G makes up for one in the new set, nothing does in the old one.
    assert!(!joint().can_write([false, true, true, true, false, false, true]));
    assert!(joint().cancel().unwrap().settle().unwrap().can_write([true, true, true, true, false, false, false]));
}

#[test]
fn durable_is_the_lower_of_both_sets() {
    assert_eq!(founded().durable([9, 9, 9, 9, 0, 0, 0]), 9);
    assert_eq!(joint().durable([9, 9, 9, 9, 0, 0, 0]), 0);
    assert_eq!(joint().durable([9, 9, 9, 9, 0, 0, 5]), 5);
    assert_eq!(joint().durable([0, 9, 8, 7, 6, 0, 0]), 6);
}

#[test]
fn steps_go_forth_and_back_and_name_what_is_in_the_way() {
    let joint = joint();
    assert_eq!(joint.standing(0, CANDIDATE, NEW), Standing::Member);
    assert_eq!(joint.standing(0, CopyId(0), OLD), Standing::Member);
    assert!(matches!(joint.begin(CopyId(1), vec![Incarnation(8)], "/x".into()), Err(StepError::Busy { slot: CopyId(0), .. })));
    let finished = joint.finish().unwrap();
    assert!(matches!(finished.begin(CopyId(1), vec![Incarnation(8)], "/x".into()), Err(StepError::Unsettled { .. })));
    let settled = finished.settle().unwrap();
    assert_eq!((settled.place(CopyId(0)), settled.member(0, CopyId(0))), (Some("/new"), NEW));
    assert_eq!(settled.standing(0, CopyId(0), OLD), Standing::Replaced);
    assert_eq!(settled.standing(0, CopyId(0), Incarnation(9)), Standing::New);
    assert_eq!(settled.begin(CopyId(0), vec![OLD], "/old".into()), Err(StepError::Known));
    let cancelled = joint.cancel().unwrap().settle().unwrap();
    assert_eq!((cancelled.place(CopyId(0)), cancelled.member(0, CopyId(0))), (None, OLD));
    assert_eq!(cancelled.standing(0, CANDIDATE, NEW), Standing::Replaced);
    assert_eq!((cancelled.cancel(), cancelled.finish(), cancelled.settle()), (Err(StepError::Nothing), Err(StepError::Nothing), None));
}

#[test]
fn an_emptied_directory_votes_again_when_it_was_rebuilt_and_the_lost_one_never() {
    let before = founded();
    let emptied = Incarnation(20);
    assert_eq!(before.standing(0, CopyId(2), emptied), Standing::New);
    let after = before.rejoin(0, CopyId(2), emptied).unwrap();
    assert_eq!(after.standing(0, CopyId(2), emptied), Standing::Member);
    assert_eq!(after.standing(0, CopyId(2), Incarnation(3)), Standing::Replaced);
    assert_eq!(after.rejoin(0, CopyId(2), emptied), None);
    assert_eq!(after.rejoin(0, CopyId(2), Incarnation(3)), None, "a directory that was replaced does not come back");
    assert_eq!(joint().rejoin(0, CopyId(2), emptied), None, "one change at a time");
}

// ---- the model ---------------------------------------------------------------------------------------------------------

/// A directory: F is 0, G is 6, the five between are in both sets.
#[derive(Clone, Debug)]
struct Directory {
    promised: u32,
    /// (generation, number of the put in it) and what was put.
    rank: (u32, u32),
    record: Membership,
    /// (generation that wrote it, position) of its log's end.
    log: (u32, u32),
}

/// One process of the region: what it knows since its recovery.
struct Process {
    generation: u32,
    puts: u32,
    record: Membership,
    stored: [bool; SEATS],
    /// Where its log ended when it recovered.
    began: u32,
    end: u32,
    reached: [u32; SEATS],
    vdl: u32,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Broken {
    Nothing,
    /// Recovery believes two voters.
    RecoversFromTwo,
    /// A step builds on a record that was found and not put again.
    ActsOnWhatItFound,
    /// Step 2 before the new set has what the old one made durable.
    FinishesTooEarly,
}

struct Model {
    directories: [Directory; SEATS],
    acknowledged: u32,
    prng: Prng,
    broken: Broken,
    ends: [u64; 3],
}

impl Model {
    fn new(seed: u64, broken: Broken) -> Model {
        let directories = std::array::from_fn(|_| Directory { promised: 0, rank: (0, 0), record: founded(), log: (0, 0) });
        Model { directories, acknowledged: 0, prng: Prng::new(seed), broken, ends: [0; 3] }
    }

    /// In a record that calls G the slot's owner, G sits there and F nowhere.
    fn seats(record: &Membership, of: [bool; SEATS]) -> [bool; SEATS] {
        if record.member(0, CopyId(0)) == NEW { swapped(of) } else { of }
    }

    fn draw(&mut self) -> [bool; SEATS] {
        let per_million = self.prng.between(250_000, 950_000);
        std::array::from_fn(|_| self.prng.chance(per_million))
    }

    /// A new process hears some directories. `Err`: what was acknowledged is gone.
    fn recover(&mut self, generation: u32) -> Result<Option<Process>, String> {
        let answering = self.draw();
        let heard: Vec<usize> = (0..SEATS).filter(|i| answering[*i]).collect();
        for i in &heard {
            self.directories[*i].promised = generation;
        }
        let Some(newest) = heard.iter().max_by_key(|i| self.directories[**i].rank).copied() else { return Ok(None) };
        let record = self.directories[newest].record.clone();
        let votes = |record: &Membership, i: usize| match i {
            0 => record.standing(0, CopyId(0), OLD) == Standing::Member,
            6 => record.standing(0, CANDIDATE, NEW) == Standing::Member || record.standing(0, CopyId(0), NEW) == Standing::Member,
            _ => true,
        };
        let voting: [bool; SEATS] = std::array::from_fn(|i| answering[i] && votes(&record, i));
        let seats = Model::seats(&record, voting);
        let enough = if self.broken == Broken::RecoversFromTwo {
            seats[..COPIES].iter().filter(|s| **s).count() >= 2
        } else {
            record.can_recover(seats)
        };
        if !enough {
            return Ok(None);
        }
        let best = (0..SEATS).filter(|i| voting[*i]).max_by_key(|i| self.directories[*i].log).expect("BUG: a quorum has voters");
        let log = self.directories[best].log;
        if log.1 < self.acknowledged {
            return Err(format!("{} were acknowledged, {answering:?} with {record:?} goes on with {log:?}", self.acknowledged));
        }
        Ok(Some(Process { generation, puts: 0, record, stored: [false; SEATS], began: log.1, end: log.1, reached: [0; SEATS], vdl: 0 }))
    }

    /// Puts the process's record on some directories; `true`: it is in force.
    fn put(&mut self, p: &mut Process) -> bool {
        for i in (0..SEATS).filter(|i| self.prng.chance(600_000) && *i < SEATS).collect::<Vec<_>>() {
            let d = &mut self.directories[i];
            if d.promised <= p.generation {
                d.promised = p.generation;
                d.rank = (p.generation, p.puts);
                d.record = p.record.clone();
                p.stored[i] = true;
            }
        }
        p.record.can_write(Model::seats(&p.record, p.stored))
    }

    /// Writes a frame to some directories, behind all that went before.
    fn write(&mut self, p: &mut Process) {
        p.end += 1;
        for i in 0..SEATS {
            let d = &mut self.directories[i];
            if self.prng.chance(600_000) && d.promised <= p.generation {
                d.promised = p.generation;
                d.log = (p.generation, p.end);
                p.reached[i] = p.end;
            }
        }
        p.vdl = p.vdl.max(Model::durable(p));
        self.acknowledged = self.acknowledged.max(p.vdl);
    }

    fn durable(p: &Process) -> u32 {
        let mut reached = p.reached;
        if p.record.member(0, CopyId(0)) == NEW {
            reached.swap(0, CANDIDATE.index());
        }
        p.record.durable(reached)
    }

    /// All that was durable before step 1 is so in both sets: only then may the old one go.
    fn both_have_everything(&self, p: &Process) -> bool {
        let durable = Model::durable(p);
        durable >= p.vdl && durable > p.began || self.broken == Broken::FinishesTooEarly
    }

    fn run(&mut self) -> Result<(), String> {
        for generation in 1..24 {
            let Some(mut p) = self.recover(generation)? else { continue };
            let mut in_force = self.broken == Broken::ActsOnWhatItFound;
            // Crashed after any number of these.
            for _ in 0..self.prng.between(0, 9) {
                match self.prng.below(3) {
                    0 => self.write(&mut p),
                    1 if !in_force => in_force = self.put(&mut p),
                    1 => {}
                    _ if in_force => {
                        let next = match p.record.step() {
                            Step::Settled if p.record.member(0, CopyId(0)) == OLD && !p.record.replaced.contains(&NEW) => {
                                p.record.begin(CopyId(0), vec![NEW], "/new".into()).ok()
                            }
                            Step::Settled => None,
                            Step::Joint { .. } if self.prng.chance(400_000) => p.record.cancel().ok(),
                            Step::Joint { .. } if self.both_have_everything(&p) => p.record.finish().ok(),
                            Step::Joint { .. } => None,
                            Step::Leaving { .. } => p.record.settle(),
                        };
                        if let Some(next) = next {
                            if *next.step() == Step::Settled {
                                self.ends[usize::from(next.member(0, CopyId(0)) == NEW)] += 1;
                            }
                            p.record = next;
                            p.puts += 1;
                            p.stored = [false; SEATS];
                            in_force = self.put(&mut p);
                        }
                    }
                    _ => {}
                }
            }
        }
        self.ends[2] += u64::from(self.acknowledged > 0);
        Ok(())
    }
}

fn walk(broken: Broken, seeds: u64) -> (Option<String>, [u64; 3]) {
    let mut ends = [0; 3];
    for seed in 0..seeds {
        let mut model = Model::new(seed, broken);
        if let Err(e) = model.run() {
            return (Some(format!("seed {seed}: {e}")), ends);
        }
        for (sum, n) in ends.iter_mut().zip(model.ends) {
            *sum += n;
        }
    }
    (None, ends)
}

#[test]
fn a_replacement_crashed_anywhere_loses_nothing_and_ends_with_either() {
    let (lost, ends) = walk(Broken::Nothing, 15_000);
    assert_eq!(lost, None);
    assert!(ends.iter().all(|n| *n > 100), "cancelled, finished, with commits: {ends:?}");
}

#[test]
fn each_rule_switched_off_is_found_out() {
    for broken in [Broken::RecoversFromTwo, Broken::ActsOnWhatItFound, Broken::FinishesTooEarly] {
        let found = walk(broken, 40_000).0;
        assert!(found.is_some(), "{broken:?} was not found out");
    }
}

proptest! {
    #[test]
    fn records_survive_the_round_trip_and_garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 1..200), flip in 0usize..4000) {
        let seen = Seen { incarnation: Incarnation(9), promised: Generation(1 << 40), end: LogEnd { seq: Seq(7), ..LogEnd::EMPTY } };
        let durable = Some((LineageId(5), seen.end));
        let kept = Record { membership: Some(joint()), control: vec![1, 2, 3], holds_commits: Some(true), durable, seen: vec![seen; 6] };
        let mut good = kept.encode();
        prop_assert_eq!(Record::decode(&good), Some(kept.clone()));
        let plain = PlainRecord { membership: kept.membership.clone(), control: kept.control.clone(), holds_commits: kept.holds_commits };
        let plain = bincode::encode_to_vec(plain, bincode::config::standard()).unwrap();
        prop_assert_eq!(Record::decode(&plain), Some(Record { durable: None, seen: Vec::new(), ..kept }));
        let at = flip % good.len();
        good.truncate(at);
        prop_assert!(at == 0 || Record::decode(&good).is_none());
        // It never panics, and what it takes is sound.
        if let Some(Record { membership: Some(m), .. }) = Record::decode(&bytes) {
            prop_assert!(m.is_sound());
        }
    }
}
