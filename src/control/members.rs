//! Who the members are, and which of them vote: plain data, and the rules that need nothing else.
//!
//! Decides what a change makes of the members, which voters so many regions have, and the next step on the way there. Never decides whether a
//! change is made, nor when: that is [`super::membership`], in the primary.

use super::types::OpId;
use crate::base::RegionName;

/// Names of regions, and of witnesses, that were taken out and are remembered; and orders that made the members what they are.
const REMOVED_MAX: usize = 32;
const ORDERS_MAX: usize = 32;
/// In place of the version with which one was taken out: it never was a member of this lineage.
pub(super) const STRANGER: u64 = 0;
/// No more voters than these, however many regions there are.
const VOTERS_MAX: usize = 5;

/// A region of the global cluster.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct MemberAt {
    pub name: RegionName,
    /// `host:port`, as whoever added it said; empty when only the files know.
    pub addr: String,
    /// The version with which it was added; 0: it stood in the files when the membership became state.
    pub since: u64,
}

/// The witness of the global cluster: it votes and holds no data.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct WitnessAt {
    pub name: RegionName,
    /// As of a region.
    pub addr: String,
    /// Its failure domain, if whoever added it named one.
    pub zone: Option<String>,
    /// As of a region.
    pub since: u64,
}

/// The members of a global cluster, once an order has changed them.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Membership {
    pub regions: Vec<MemberAt>,
    /// Taken out, and with which version; the newest last.
    pub removed: Vec<(RegionName, u64)>,
    /// The voters follow the number of regions. An order that names voters ends that.
    pub by_rule: bool,
    pub witness: Option<WitnessAt>,
    /// As `removed`. Their names are not used again: an empty witness under an old name would be asked for promises that it never heard of.
    pub witnesses_removed: Vec<(RegionName, u64)>,
    /// The orders that made it so; the newest last. That the members are what an order wanted says nothing of that order: it may have been
    /// refused, and another one done.
    pub orders: Vec<OpId>,
}

impl Membership {
    #[must_use]
    pub fn names(&self) -> Vec<RegionName> {
        self.regions.iter().map(|m| m.name.clone()).collect()
    }

    #[must_use]
    pub fn contains(&self, name: &RegionName) -> bool {
        self.regions.iter().any(|m| m.name == *name)
    }

    #[must_use]
    pub fn witness_name(&self) -> Option<&RegionName> {
        self.witness.as_ref().map(|w| &w.name)
    }

    /// Everybody: the regions, and the witness.
    #[must_use]
    pub fn all(&self) -> Vec<RegionName> {
        self.regions.iter().map(|m| &m.name).chain(self.witness_name()).cloned().collect()
    }

    /// The version with which it was taken out.
    #[must_use]
    pub fn removed_with(&self, name: &RegionName) -> Option<u64> {
        version_of(&self.removed, name)
    }

    /// The same of a witness.
    #[must_use]
    pub fn witness_removed_with(&self, name: &RegionName) -> Option<u64> {
        version_of(&self.witnesses_removed, name)
    }

    pub(super) fn without(&self, name: &RegionName, version: u64) -> Membership {
        let mut next = Membership { by_rule: true, ..self.clone() };
        next.regions.retain(|m| m.name != *name);
        remember(&mut next.removed, name, version);
        next
    }

    pub(super) fn with(&self, name: &RegionName, addr: &str, version: u64) -> Membership {
        let mut next = Membership { by_rule: true, ..self.clone() };
        next.removed.retain(|(r, _)| r != name);
        next.regions.push(MemberAt { name: name.clone(), addr: addr.to_owned(), since: version });
        next
    }

    pub(super) fn without_witness(&self, version: u64) -> Membership {
        let mut next = Membership { by_rule: true, ..self.clone() };
        if let Some(gone) = next.witness.take() {
            remember(&mut next.witnesses_removed, &gone.name, version);
        }
        next
    }

    pub(super) fn with_witness(&self, witness: WitnessAt) -> Membership {
        Membership { by_rule: true, witness: Some(witness), ..self.clone() }
    }

    pub(super) fn by_order(mut self, order: OpId) -> Membership {
        self.orders.push(order);
        if self.orders.len() > ORDERS_MAX {
            self.orders.remove(0);
        }
        self
    }
}

fn version_of(removed: &[(RegionName, u64)], name: &RegionName) -> Option<u64> {
    removed.iter().rfind(|(r, _)| r == name).map(|(_, v)| *v)
}

fn remember(removed: &mut Vec<(RegionName, u64)>, name: &RegionName, version: u64) {
    removed.retain(|(r, _)| r != name);
    removed.push((name.clone(), version));
    if removed.len() > REMOVED_MAX {
        removed.remove(0);
    }
}

/// What drivers are told: whom to speak with, whom to refuse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembersView {
    /// Of the voters that it came with; 0: nobody has changed what the files say.
    pub version: u64,
    pub regions: Vec<MemberAt>,
    pub removed: Vec<(RegionName, u64)>,
    pub witness: Option<WitnessAt>,
    pub witnesses_removed: Vec<(RegionName, u64)>,
}

/// The voters that so many regions have by rule: an odd number, those that vote already first, the primary first among equals.
#[must_use]
pub fn voters_by_rule(
    primary: &RegionName,
    current: &[RegionName],
    regions: &[RegionName],
    witness: Option<&RegionName>,
) -> Vec<RegionName> {
    let mut voters: Vec<RegionName> = match (regions.len(), witness) {
        (2 | 4, Some(witness)) => regions.iter().chain([witness]).cloned().collect(),
        (2, None) => vec![primary.clone()],
        (n, _) => {
            let odd = (if n.is_multiple_of(2) { n - 1 } else { n }).min(VOTERS_MAX);
            let mut order: Vec<&RegionName> = regions.iter().collect();
            order.sort_by_key(|r| (!current.contains(r), *r != primary));
            order.into_iter().take(odd).cloned().collect()
        }
    };
    voters.sort();
    voters
}

/// The next set on the way from `current` to `wanted`: one voter more, less or another. `None`: there, or it has to wait for regions
/// that are not heard.
pub(super) fn next_voters(
    current: &[RegionName],
    wanted: &[RegionName],
    members: &[RegionName],
    heard: &dyn Fn(&RegionName) -> bool,
) -> Option<Vec<RegionName>> {
    let mut missing: Vec<&RegionName> = wanted.iter().filter(|v| !current.contains(v)).collect();
    let mut extra: Vec<&RegionName> = current.iter().filter(|v| !wanted.contains(v)).collect();
    // Who left goes first, then who is silent; who is heard comes first.
    extra.sort_by_key(|v| (members.contains(v), heard(v)));
    missing.sort_by_key(|v| !heard(v));
    let gone = extra.first().is_some_and(|v| !members.contains(v));
    let step = match (missing.first(), extra.first()) {
        (Some(new), Some(old)) if gone || heard(new) => current.iter().filter(|v| v != old).chain([*new]).cloned().collect(),
        (None, Some(old)) => current.iter().filter(|v| v != old).cloned().collect(),
        // From an odd number it grows by two: both must be there. From an even one the odd number is never worse.
        (Some(new), None) if !current.len().is_multiple_of(2) && missing.iter().all(|v| heard(v)) => grown(current, new),
        (Some(new), None) if current.len().is_multiple_of(2) => grown(current, new),
        _ => return None,
    };
    Some(step)
}

fn grown(current: &[RegionName], new: &RegionName) -> Vec<RegionName> {
    current.iter().chain([new]).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<RegionName> {
        list.split_whitespace().map(|n| RegionName::new(n).unwrap()).collect()
    }

    #[test]
    fn the_rule_makes_an_odd_number_and_keeps_who_votes() {
        let w = RegionName::new("w").unwrap();
        // primary, voters, regions, with a witness, -> voters
        for (primary, current, regions, witness, expected) in [
            ("a", "a b c", "a b c d", false, "a b c"),
            ("a", "a b d", "a b c d", false, "a b d"),
            ("a", "a b c", "a c", false, "a"),
            ("a", "a b c", "a c", true, "a c w"),
            ("c", "a b c", "a c d", false, "a c d"),
            ("d", "a b c", "a b c d", false, "a b c"),
            ("a", "a", "a b c", false, "a b c"),
            ("a", "a b c", "a b c d e f", false, "a b c d e"),
            ("a", "a b", "a", true, "a"),
            ("a", "a b c d e", "a b c d", false, "a b c"),
            ("d", "a b c d e", "a b c d", false, "a b d"),
        ] {
            let regions = names(regions);
            let got = voters_by_rule(&names(primary)[0], &names(current), &regions, witness.then_some(&w));
            assert_eq!(got, names(expected), "{primary}: {current} of {regions:?}");
            assert!(!got.len().is_multiple_of(2));
        }
    }

    #[test]
    fn voters_go_to_the_rule_one_at_a_time_and_wait_for_whom_they_need() {
        // current, wanted, members, heard -> the next set
        for (current, wanted, members, heard, expected) in [
            ("a b c", "a", "a c", "a c", Some("a c")), // who left goes first
            ("a c", "a", "a c", "a c", Some("a")),
            ("a", "a b c", "a b c", "a b c", Some("a b")),
            ("a", "a b c", "a b c", "a b", None),            // two of two would be worse than one of one
            ("a b", "a b c", "a b c", "a b", Some("a b c")), // and two of three never is
            ("a b c", "a c d", "a c d", "a c", Some("a c d")),
            ("a b c", "a b d", "a b c d", "a b c", None), // it still is one, and the other is not there
            ("a b c", "a b d", "a b c d", "a b c d", Some("a b d")),
            ("a b c", "a b c", "a b c", "a", None),
        ] {
            let heard = names(heard);
            let got = next_voters(&names(current), &names(wanted), &names(members), &|v| heard.contains(v));
            let got = got.map(|mut set| {
                set.sort();
                set
            });
            assert_eq!(got, expected.map(names), "{current} -> {wanted}, heard {heard:?}");
        }
    }
}
