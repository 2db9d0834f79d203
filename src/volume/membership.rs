//! Which directories make up the volume, and how one of them is replaced while writes go on.
//!
//! Decides what a quorum is: of six members, or, while copy F is being replaced by G, of both sets of six at once. A replacement is
//! two steps, each a record that four of the old *and* four of the new set keep before it is acted on: `Joint` (F and G), then `Leaving`
//! (F is gone, or, when it was cancelled, G), and `Settled` when that is in force. Never decides when to take a step (the appender does) and never
//! touches a disk. Pure values: who stored what is told to it.
//!
//! Why no crash splits the volume: a record is put only behind one that is in force, and it is in force when quorums of both sets keep it. So whoever
//! recovers from three of either set has it, or a newer one. A record that recovery found is put again, under the new generation, before
//! the next step builds on it: what an older process left on one copy is outranked from then on.

use super::quorum::{COPIES, READ_QUORUM, WRITE_QUORUM};
use crate::base::{CopyId, Generation, LineageId, LogEnd};
use std::fmt;

/// Seats of a group: the six slots, and one for the copy that is to take a slot.
pub const SEATS: usize = COPIES + 1;
/// Where the candidate sits until it has its slot.
pub const CANDIDATE: CopyId = CopyId(6);
/// Directories that were replaced and are remembered by name.
const REPLACED_KEPT: usize = 256;
/// Longest place of a directory, in bytes.
pub const PLACE_BYTES_MAX: usize = 4096;
const GROUPS_MAX: usize = 1024;
/// Bound of a decoded record in memory: 1024 groups of six and seven places.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// One directory of a copy: 128 bits, drawn when it was made. A directory that was emptied is another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct Incarnation(pub u128);

impl Incarnation {
    /// No directory's: a slot that nothing has taken yet.
    pub const UNKNOWN: Incarnation = Incarnation(0);
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a replacement is. The incarnations are one for each protection group: a place is replaced in all of them.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Step {
    Settled,
    /// F keeps its slot and G has the seventh seat: everything needs quorums with F and quorums with G.
    Joint {
        slot: CopyId,
        candidate: Vec<Incarnation>,
        place: String,
    },
    /// One of the two is gone. Until this is in force, quorums of both sets are needed still.
    Leaving {
        slot: CopyId,
        gone: Vec<Incarnation>,
        /// Where its directories are; `None`: where the configuration says.
        place: Option<String>,
    },
}

/// What a directory is to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has a vote in recovery.
    Member,
    /// The membership does not know it: new, emptied, or rebuilt and not yet recorded. It takes frames and has no vote.
    New,
    /// Its place was given to another. It takes no part.
    Replaced,
}

/// Why a step is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error("copy {slot} is being replaced already, by {place}; `parhelion copy replace {slot} --cancel` ends that")]
    Busy { slot: CopyId, place: String },
    #[error("the last replacement, of copy {slot}, is still being recorded on the other copies; try again in a moment")]
    Unsettled { slot: CopyId },
    #[error("no copy is being replaced")]
    Nothing,
    #[error("the directory belongs to the volume already, or did and was replaced; give an empty one")]
    Known,
}

/// The members, where they live, and where a replacement is.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Membership {
    members: Vec<[Incarnation; COPIES]>,
    /// Empty: where the configuration says.
    places: [String; COPIES],
    step: Step,
    /// The newest last.
    replaced: Vec<Incarnation>,
}

impl Membership {
    /// Of a new volume: one row of six for each group.
    ///
    /// # Panics
    /// Without a group.
    #[must_use]
    pub fn founded(members: Vec<[Incarnation; COPIES]>) -> Membership {
        assert!(!members.is_empty(), "BUG: a volume without a group");
        Membership { members, places: Default::default(), step: Step::Settled, replaced: Vec::new() }
    }

    #[must_use]
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// Where the copy of `slot` lives; `None`: where the configuration says.
    #[must_use]
    pub fn place(&self, slot: CopyId) -> Option<&str> {
        Some(self.places[slot.index()].as_str()).filter(|p| !p.is_empty())
    }

    /// Where the directory that is open in `slot` is to be: the candidate's, while there is one.
    #[must_use]
    pub fn lives_in(&self, slot: CopyId) -> Option<&str> {
        match &self.step {
            Step::Joint { slot: changing, place, .. } if *changing == slot => Some(place),
            _ => self.place(slot),
        }
    }

    /// The seat that the directory `incarnation`, open in `slot`, takes: that slot, or the seventh when it is the other of the two that a
    /// replacement is about.
    #[must_use]
    pub fn seat(&self, group: usize, slot: CopyId, incarnation: Incarnation) -> CopyId {
        match &self.step {
            Step::Joint { slot: changing, candidate: other, .. } | Step::Leaving { slot: changing, gone: other, .. }
                if *changing == slot && other[group] == incarnation =>
            {
                CANDIDATE
            }
            _ => slot,
        }
    }

    /// Whether what the directory open in `slot` stores counts in its seat.
    ///
    /// A new directory counts where the one before it is gone for good. While a slot changes hands the one before it may come back, and a
    /// third one counts for neither.
    #[must_use]
    pub fn counts(&self, group: usize, slot: CopyId, incarnation: Incarnation) -> bool {
        match &self.step {
            Step::Joint { slot: changing, .. } | Step::Leaving { slot: changing, .. } if *changing == slot => {
                self.seat(group, slot, incarnation) == CANDIDATE || self.members[group][slot.index()] == incarnation
            }
            _ => self.standing(group, slot, incarnation) != Standing::Replaced,
        }
    }

    #[must_use]
    pub fn groups(&self) -> usize {
        self.members.len()
    }

    /// The directory that has the slot in `group`.
    #[must_use]
    pub fn member(&self, group: usize, slot: CopyId) -> Incarnation {
        self.members[group][slot.index()]
    }

    /// What `incarnation`, which sits at `seat` in `group`, is to the volume.
    #[must_use]
    pub fn standing(&self, group: usize, seat: CopyId, incarnation: Incarnation) -> Standing {
        let own = match &self.step {
            _ if seat != CANDIDATE => self.members[group][seat.index()],
            Step::Joint { candidate, .. } => candidate[group],
            Step::Settled | Step::Leaving { .. } => Incarnation::UNKNOWN,
        };
        if incarnation == own && incarnation != Incarnation::UNKNOWN {
            Standing::Member
        } else if self.replaced.contains(&incarnation) {
            Standing::Replaced
        } else {
            Standing::New
        }
    }

    // ---- quorums ---------------------------------------------------------------------------------------------------

    /// The set with the slots as they are, and the one in which the seventh seat has the slot that changes.
    fn sets(&self) -> (Set, Option<Set>) {
        let slots = Set([true, true, true, true, true, true, false]);
        let other = match &self.step {
            Step::Settled => None,
            Step::Joint { slot, .. } | Step::Leaving { slot, .. } => {
                let mut other = Set([true; SEATS]);
                other.0[slot.index()] = false;
                Some(other)
            }
        };
        (slots, other)
    }

    /// The highest position that a write quorum (during a replacement: one of each set) has reached.
    #[must_use]
    pub fn durable<T: Ord + Copy>(&self, reached: [T; SEATS]) -> T {
        let (slots, other) = self.sets();
        let durable = slots.nth_highest(&reached, WRITE_QUORUM);
        other.map_or(durable, |o| durable.min(o.nth_highest(&reached, WRITE_QUORUM)))
    }

    /// Whether those seats can make something durable.
    #[must_use]
    pub fn can_write(&self, able: [bool; SEATS]) -> bool {
        self.durable(able)
    }

    /// Whether the voters that were heard are enough to know what was durable, and to keep every older appender from making more so: three
    /// of the set that has the slots.
    ///
    /// Also during step 1: what is durable then is on four of both sets, what was so before it on four of this one, and if a step behind
    /// it were in force, one of any three of this set would have said so.
    #[must_use]
    pub fn can_recover(&self, heard: [bool; SEATS]) -> bool {
        self.sets().0.nth_highest(&heard, READ_QUORUM)
    }

    // ---- steps -----------------------------------------------------------------------------------------------------

    /// Step 1: `candidate` (one directory for each group) shall take `slot`.
    ///
    /// # Errors
    /// [`StepError`]: another replacement is under way, or the directory is no new one.
    pub fn begin(&self, slot: CopyId, candidate: Vec<Incarnation>, place: String) -> Result<Membership, StepError> {
        assert!(slot != CANDIDATE && candidate.len() == self.groups() && place.len() <= PLACE_BYTES_MAX, "BUG: no such slot or place");
        match &self.step {
            Step::Joint { slot, place, .. } => return Err(StepError::Busy { slot: *slot, place: place.clone() }),
            Step::Leaving { slot, .. } => return Err(StepError::Unsettled { slot: *slot }),
            Step::Settled => {}
        }
        let known =
            |i: &Incarnation| *i == Incarnation::UNKNOWN || self.replaced.contains(i) || self.members.iter().flatten().any(|m| m == i);
        if candidate.iter().any(known) {
            return Err(StepError::Known);
        }
        Ok(Membership { step: Step::Joint { slot, candidate, place }, ..self.clone() })
    }

    /// Step 2: the candidate has the slot. Only when the joint step is in force, and all that was ever durable is so in both sets: what was
    /// durable before step 1 was so in one of them.
    ///
    /// # Errors
    /// [`StepError::Nothing`]
    pub fn finish(&self) -> Result<Membership, StepError> {
        let Step::Joint { slot, candidate, place } = &self.step else { return Err(StepError::Nothing) };
        let mut next = self.clone();
        let gone: Vec<Incarnation> = self.members.iter().map(|row| row[slot.index()]).collect();
        for (row, new) in next.members.iter_mut().zip(candidate) {
            row[slot.index()] = *new;
        }
        let before = std::mem::replace(&mut next.places[slot.index()], place.clone());
        next.leave(*slot, gone, Some(before).filter(|p| !p.is_empty()));
        Ok(next)
    }

    /// Instead of step 2: all is as it was before step 1.
    ///
    /// # Errors
    /// [`StepError::Nothing`]
    pub fn cancel(&self) -> Result<Membership, StepError> {
        let Step::Joint { slot, candidate, place } = &self.step else { return Err(StepError::Nothing) };
        let mut next = self.clone();
        next.leave(*slot, candidate.clone(), Some(place.clone()));
        Ok(next)
    }

    fn leave(&mut self, slot: CopyId, gone: Vec<Incarnation>, place: Option<String>) {
        self.remember(gone.iter().copied());
        self.step = Step::Leaving { slot, gone, place };
    }

    fn remember(&mut self, gone: impl Iterator<Item = Incarnation>) {
        self.replaced.extend(gone.filter(|i| *i != Incarnation::UNKNOWN));
        let most = REPLACED_KEPT.max(self.groups() * COPIES);
        let past = self.replaced.len().saturating_sub(most);
        self.replaced.drain(..past);
    }

    /// The leaving of one of the two is in force: quorums of one set do from now on. `None` when nothing was leaving.
    #[must_use]
    pub fn settle(&self) -> Option<Membership> {
        matches!(self.step, Step::Leaving { .. }).then(|| Membership { step: Step::Settled, ..self.clone() })
    }

    /// A directory that was emptied, and rebuilt by its peers, has its slot's vote from now on. Safe at once, because it has all that is
    /// durable; the directory that it takes the place of has none any more. `None`: it has it already, or a replacement is under way.
    #[must_use]
    pub fn rejoin(&self, group: usize, slot: CopyId, incarnation: Incarnation) -> Option<Membership> {
        let member = self.members[group][slot.index()];
        if self.step != Step::Settled
            || incarnation == member
            || incarnation == Incarnation::UNKNOWN
            || self.replaced.contains(&incarnation)
        {
            return None;
        }
        let mut next = self.clone();
        next.members[group][slot.index()] = incarnation;
        next.remember(std::iter::once(member));
        Some(next)
    }
}

struct Set([bool; SEATS]);

impl Set {
    /// The `n`-th highest of those in the set.
    fn nth_highest<T: Ord + Copy>(&self, values: &[T; SEATS], n: usize) -> T {
        let mut own: Vec<T> = values.iter().zip(self.0).filter(|(_, member)| *member).map(|(v, _)| *v).collect();
        own.sort_unstable_by(|a, b| b.cmp(a));
        own[n - 1]
    }
}

/// What the copies keep beside the log: the membership, and bytes that mean something to [`crate::control`].
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Record {
    pub membership: Option<Membership>,
    pub control: Vec<u8>,
    /// This region wrote, and what it wrote may lie nowhere else: it is never given up for a seed. `None`: it never said.
    pub holds_commits: Option<bool>,
    /// Up to here the log of this lineage was durable when the record was put.
    pub durable: Option<(LineageId, LogEnd)>,
    /// What each directory had at least, in the order of [`crate::base::MemberId::all`]; empty: nobody knows.
    pub seen: Vec<Seen>,
}

/// What a directory had when it was last seen. One that comes back with less is not what it was: somebody put an old one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Seen {
    pub incarnation: Incarnation,
    /// It promised this generation, and keeps that.
    pub promised: Generation,
    /// It had fsynced this.
    pub end: LogEnd,
}

impl Seen {
    pub const NOTHING: Seen = Seen { incarnation: Incarnation::UNKNOWN, promised: Generation(0), end: LogEnd::EMPTY };

    /// Whether a directory of that incarnation, which promised `promised` when it was opened and whose log ranks as `rank`, has forgotten what it had.
    #[must_use]
    pub fn is_forgotten_by(&self, incarnation: Incarnation, promised: Generation, rank: &LogEnd) -> bool {
        incarnation == self.incarnation && incarnation != Incarnation::UNKNOWN && (promised < self.promised || *rank < self.end)
    }
}

/// First byte of a record. One of the first version begins with 0 or 1: whether there is a membership.
const RECORD_VERSION: u8 = 2;

/// A record of the first version.
#[derive(bincode::Encode, bincode::Decode)]
struct PlainRecord {
    membership: Option<Membership>,
    control: Vec<u8>,
    holds_commits: Option<bool>,
}

impl Record {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![RECORD_VERSION];
        bytes.extend(bincode::encode_to_vec(self, bincode::config::standard()).expect("BUG: names and numbers encode"));
        bytes
    }

    /// `None` when the bytes are not one. Nothing kept is `Some` of the default.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        if bytes.is_empty() {
            return Some(Record::default());
        }
        let config = bincode::config::standard().with_limit::<RECORD_BYTES_MAX>();
        let kept = match bytes.split_first() {
            Some((&RECORD_VERSION, bytes)) => {
                let (kept, read) = bincode::decode_from_slice::<Record, _>(bytes, config).ok()?;
                (read == bytes.len()).then_some(kept)?
            }
            _ => {
                let (PlainRecord { membership, control, holds_commits }, read) = bincode::decode_from_slice(bytes, config).ok()?;
                (read == bytes.len()).then_some(Record { membership, control, holds_commits, ..Record::default() })?
            }
        };
        kept.membership.as_ref().is_none_or(Membership::is_sound).then_some(kept)
    }
}

impl Membership {
    fn is_sound(&self) -> bool {
        let groups = self.groups();
        let of_six = |slot: &CopyId| slot.index() < COPIES;
        let step = match &self.step {
            Step::Settled => true,
            Step::Joint { slot, candidate, place } => of_six(slot) && candidate.len() == groups && place.len() <= PLACE_BYTES_MAX,
            Step::Leaving { slot, gone, place } => {
                of_six(slot) && gone.len() == groups && place.as_ref().is_none_or(|p| p.len() <= PLACE_BYTES_MAX)
            }
        };
        step && (1..=GROUPS_MAX).contains(&groups) && self.places.iter().all(|p| p.len() <= PLACE_BYTES_MAX)
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
