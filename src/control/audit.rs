//! The audit of one member: every control action that changed something, in a chain of hashes.
//!
//! Decides what an entry's hash covers and when a chain is whole. An entry is put into what the member persists in the same step as the
//! action itself, so it is kept on four copies (a witness: in both slots) before anything that follows from it leaves (S21). The newest
//! entries stay there, and with them the head of the chain; whoever drives the core writes all of them to a file, where a changed or
//! removed one is found by its hash. It is no proof against somebody who can change copies and files alike.

use super::types::OpId;
use crate::base::{Epoch, Lsn, RegionName, UnixMicros};
use std::fmt;

/// Entries kept in the state; older ones are in the file.
pub const AUDIT_KEPT: usize = 32;
/// No text in an entry is longer.
const TEXT_BYTES_MAX: usize = 400;

/// SHA-256 of an entry and of the hash before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct AuditHash(pub [u8; 32]);

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl serde::Serialize for AuditHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for AuditHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<AuditHash, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("a hash has 64 characters of 0-9 and a-f");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut hash = [0u8; 32];
        for (i, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(AuditHash(hash))
    }
}

/// One action.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// From 1 on, without a gap.
    pub no: u64,
    /// On the member's wall clock.
    pub at: UnixMicros,
    pub member: RegionName,
    /// The newest epoch that it had promised or knew.
    pub epoch: Epoch,
    /// Its log was durable up to here; 0 in a witness.
    pub durable_lsn: Lsn,
    /// Who wanted it: what the command said of its user, another member, or a rule.
    pub actor: String,
    /// The operation, where it is one's.
    pub op: Option<String>,
    /// `order`, `seal`, `promise`, `promotion`, `forced_promotion`, `voters`, `set`, `copy`, `archive`, `ended`.
    pub kind: String,
    /// A sentence.
    pub what: String,
    /// The hash of the entry before it; zeros before the first.
    pub prev: AuditHash,
    pub hash: AuditHash,
}

impl AuditEntry {
    /// What the hash must be.
    #[must_use]
    pub fn hash_of(&self) -> AuditHash {
        let covered = (
            self.no,
            self.at.0,
            &self.member,
            self.epoch,
            self.durable_lsn,
            &self.actor,
            &self.op,
            &self.kind,
            &self.what,
            &self.prev.0[..],
        );
        let bytes = bincode::encode_to_vec(covered, bincode::config::standard()).expect("BUG: names and numbers encode");
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(b"parhelion audit 1");
        context.update(&bytes);
        AuditHash(context.finish().as_ref().try_into().expect("BUG: SHA-256 has 32 bytes"))
    }
}

/// Where a chain ends, or begins behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct AuditHead {
    pub no: u64,
    pub hash: AuditHash,
}

/// The first entry that is not what it was, or not where it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditBroken {
    #[error("entry {no} was changed: its hash does not match what it says")]
    Changed { no: u64 },
    #[error("entry {no} does not follow the one before it: that one was changed or taken out, or this one was put in")]
    Unchained { no: u64 },
    #[error("entry {wanted} is missing: entry {found} is where it should be")]
    Missing { wanted: u64, found: u64 },
    #[error("the entries from {from} to {to} are missing: they were taken off the end, or never came to the file")]
    EndMissing { from: u64, to: u64 },
    #[error("entry {no} is not the one that the member remembers: it and what lies before it were replaced")]
    OtherEnd { no: u64 },
}

impl AuditBroken {
    /// The first entry that cannot be believed.
    #[must_use]
    pub fn no(&self) -> u64 {
        match self {
            AuditBroken::Changed { no } | AuditBroken::Unchained { no } | AuditBroken::OtherEnd { no } => *no,
            AuditBroken::Missing { wanted, .. } => *wanted,
            AuditBroken::EndMissing { from, .. } => *from,
        }
    }
}

/// Follows a chain from behind `base` to its end. `head`: what the member remembers, if that is known.
///
/// # Errors
/// The first entry that breaks it.
pub fn verify<'a>(
    base: AuditHead,
    entries: impl IntoIterator<Item = &'a AuditEntry>,
    head: Option<AuditHead>,
) -> Result<AuditHead, AuditBroken> {
    let mut at = base;
    let mut remembered = head.filter(|h| h.no > base.no);
    for entry in entries {
        if entry.no != at.no + 1 {
            return Err(AuditBroken::Missing { wanted: at.no + 1, found: entry.no });
        }
        if entry.hash_of() != entry.hash {
            return Err(AuditBroken::Changed { no: entry.no });
        }
        if entry.prev != at.hash {
            return Err(AuditBroken::Unchained { no: entry.no });
        }
        at = AuditHead { no: entry.no, hash: entry.hash };
        if let Some(head) = remembered.take_if(|h| h.no == at.no)
            && head.hash != at.hash
        {
            return Err(AuditBroken::OtherEnd { no: at.no });
        }
    }
    match remembered {
        Some(head) => Err(AuditBroken::EndMissing { from: at.no + 1, to: head.no }),
        None => Ok(at),
    }
}

/// The newest entries, and where the chain ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Audit {
    head: AuditHead,
    entries: Vec<AuditEntry>,
}

impl Audit {
    /// Oldest first.
    #[must_use]
    pub fn entries(&self) -> &[AuditEntry] {
        &self.entries
    }

    #[must_use]
    pub fn head(&self) -> AuditHead {
        self.head
    }

    /// Puts an action at the end. Its number and hashes follow from what is there.
    pub fn append(&mut self, at: UnixMicros, member: &RegionName, (epoch, durable_lsn): (Epoch, Lsn), action: Action) {
        let Action { actor, op, kind, what } = action;
        let mut entry = AuditEntry {
            no: self.head.no + 1,
            at,
            member: member.clone(),
            epoch,
            durable_lsn,
            actor: clean(&actor),
            op: op.map(|op| op.to_string()),
            kind: kind.to_owned(),
            what: clean(&what),
            prev: self.head.hash,
            hash: AuditHash::default(),
        };
        entry.hash = entry.hash_of();
        self.head = AuditHead { no: entry.no, hash: entry.hash };
        self.entries.push(entry);
        if self.entries.len() > AUDIT_KEPT {
            self.entries.remove(0);
        }
    }
}

/// What somebody does.
#[derive(Clone, Debug)]
pub struct Action {
    pub actor: String,
    pub op: Option<OpId>,
    pub kind: &'static str,
    pub what: String,
}

/// One line, and no longer than an entry may be.
fn clean(text: &str) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX - 3).rev().find(|at| clean.is_char_boundary(*at)).expect("BUG: 0 is one");
        clean.truncate(end);
        clean.push_str("...");
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(n: u64) -> Vec<AuditEntry> {
        let (mut audit, mut all) = (Audit::default(), Vec::new());
        for i in 1..=n {
            let action = Action { actor: format!("ops{i}@host\n"), op: Some(OpId(u128::from(i))), kind: "order", what: "ä".repeat(300) };
            audit.append(UnixMicros(i), &RegionName::new("us-east").unwrap(), (Epoch(2), Lsn(i * 10)), action);
            all.push(audit.entries().last().unwrap().clone());
        }
        assert_eq!((audit.entries().len(), audit.head().no), (AUDIT_KEPT.min(usize::try_from(n).unwrap()), n));
        all
    }

    #[test]
    fn a_chain_is_whole_and_whatever_is_changed_in_it_is_named() {
        let whole = chain(40);
        let head = AuditHead { no: 40, hash: whole[39].hash };
        let base = AuditHead::default();
        assert_eq!(verify(base, &whole, Some(head)), Ok(head));
        assert_eq!(verify(base, &whole, None), Ok(head));
        // From the middle on, where the rest was rotated away.
        let from = AuditHead { no: 10, hash: whole[9].hash };
        assert_eq!(verify(from, &whole[10..], Some(head)), Ok(head));
        assert!(whole[0].what.len() <= TEXT_BYTES_MAX && whole[0].actor == "ops1@host ", "{:?}", whole[0]);

        type Change = fn(&mut AuditEntry);
        let changed: &[(&str, Change)] = &[
            ("no", |e| e.no = 99),
            ("at", |e| e.at.0 += 1),
            ("member", |e| e.member = RegionName::new("eu-west").unwrap()),
            ("epoch", |e| e.epoch = Epoch(3)),
            ("lsn", |e| e.durable_lsn = Lsn(7)),
            ("actor", |e| e.actor = "somebody else".into()),
            ("op", |e| e.op = None),
            ("kind", |e| e.kind = "set".into()),
            ("what", |e| e.what.push('.')),
            ("prev", |e| e.prev = AuditHash([1; 32])),
            ("hash", |e| e.hash = AuditHash([1; 32])),
        ];
        for (what, change) in changed {
            let mut entries = whole.clone();
            change(&mut entries[19]);
            let broken = verify(base, &entries, Some(head)).expect_err(what);
            assert_eq!(broken.no(), 20, "{what}: {broken}");
            if *what == "hash" {
                continue;
            }
            // Also when its own hash is made anew: the next one does not follow it any more.
            entries[19].hash = entries[19].hash_of();
            let broken = verify(base, &entries, Some(head)).expect_err(what);
            assert!((20..=21).contains(&broken.no()), "{what}: {broken}");
        }
        let without = |range: std::ops::Range<usize>| {
            let mut entries = whole.clone();
            entries.drain(range);
            verify(base, &entries, Some(head))
        };
        assert_eq!(without(19..20), Err(AuditBroken::Missing { wanted: 20, found: 21 }));
        assert_eq!(without(0..5), Err(AuditBroken::Missing { wanted: 1, found: 6 }));
        assert_eq!(without(35..40), Err(AuditBroken::EndMissing { from: 36, to: 40 }));
        // A whole chain of somebody's own making.
        let mut other = chain(40);
        let mut at = AuditHead::default();
        for entry in &mut other {
            entry.actor = "nobody".into();
            entry.prev = at.hash;
            entry.hash = entry.hash_of();
            at = AuditHead { no: entry.no, hash: entry.hash };
        }
        assert_eq!(verify(base, &other, None), Ok(at), "nothing is wrong with it by itself");
        assert_eq!(verify(base, &other, Some(head)), Err(AuditBroken::OtherEnd { no: 40 }));
    }

    #[test]
    fn an_entry_survives_its_line_of_text() {
        for entry in chain(3) {
            let line = serde_json::to_string(&entry).unwrap();
            assert_eq!(serde_json::from_str::<AuditEntry>(&line).unwrap(), entry);
        }
        assert!(serde_json::from_str::<AuditHash>("\"00\"").is_err());
        assert!(serde_json::from_str::<AuditHash>(&format!("\"{}\"", "zz".repeat(32))).is_err());
    }
}
