//! Commit rules: what a commit waits for beyond the six copies of its own region.
//!
//! Decides, as a pure function of how far the secondaries are, up to where commits may be acknowledged. They pause and are never aborted by
//! a rule: they go on by themselves when a secondary is near enough again. Driven by the node of the primary; kept beside its log, and told
//! to the secondaries, so that whoever is primary next has them.

use super::{Seq, UnixMicros};
use std::fmt;
use std::time::Duration;

/// How many secondaries a commit can be made to wait for.
pub const SYNC_MAX: u8 = 5;

/// For a whole global cluster, changed at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct CommitRules {
    /// A commit waits until it is durable in so many secondaries; 0: in none.
    pub sync: u8,
    /// Commits pause while every secondary is behind by more.
    pub max_rpo_ms: Option<u64>,
    /// With `max_rpo_ms`: they pause also while no secondary is connected. Otherwise a primary without one goes on alone.
    pub pause_alone: bool,
}

/// Why commits stand still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitsPause {
    TooFarBehind {
        max_rpo_ms: u64,
        behind_ms: u64,
    },
    NoSecondary,
    Sync {
        wanted: u8,
        connected: usize,
    },
    /// Connected, and not durable there for so long.
    SyncSlow {
        wanted: u8,
        waits_ms: u64,
    },
    /// More was written than the copies' disks can turn into pages.
    PagesBehind {
        behind_bytes: u64,
        waits_ms: u64,
    },
}

impl fmt::Display for CommitsPause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommitsPause::TooFarBehind { max_rpo_ms, behind_ms } => {
                write!(f, "commits pause: every secondary is behind by more than {max_rpo_ms} ms (max_rpo), the nearest by {behind_ms} ms")
            }
            CommitsPause::NoSecondary => {
                f.write_str("commits pause: max_rpo is set, no secondary is connected, and pause_alone says to wait for one")
            }
            CommitsPause::Sync { wanted, connected } => {
                write!(f, "commits pause: sync = {wanted} waits for that many secondaries, and {connected} are connected")
            }
            CommitsPause::PagesBehind { behind_bytes, waits_ms } => {
                write!(
                    f,
                    "commits wait, for {waits_ms} ms now: the disks of the copies are {} MiB of log behind with writing pages, and go on by themselves",
                    behind_bytes >> 20
                )
            }
            CommitsPause::SyncSlow { wanted, waits_ms } => {
                write!(
                    f,
                    "commits pause: sync = {wanted} waits for that many secondaries, and for {waits_ms} ms too few of those that are connected have kept anything"
                )
            }
        }
    }
}

impl CommitRules {
    /// Nothing is waited for.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.sync == 0 && self.max_rpo_ms.is_none()
    }

    /// Up to where commits may be acknowledged. `durable`: how far each connected secondary is; `oldest_missing`: when the first commit was
    /// made that not even the nearest of them has.
    ///
    /// # Errors
    /// Why nothing more may be, for status.
    pub fn allowed(&self, durable: &[Seq], oldest_missing: Option<UnixMicros>, now: UnixMicros) -> Result<Seq, CommitsPause> {
        if let Some(max_rpo_ms) = self.max_rpo_ms {
            let behind_ms = oldest_missing.map_or(0, |at| now.0.saturating_sub(at.0) / 1000);
            if durable.is_empty() && self.pause_alone {
                return Err(CommitsPause::NoSecondary);
            }
            if !durable.is_empty() && behind_ms > max_rpo_ms {
                return Err(CommitsPause::TooFarBehind { max_rpo_ms, behind_ms });
            }
        }
        if self.sync == 0 {
            return Ok(Seq(u64::MAX));
        }
        let mut durable = durable.to_vec();
        durable.sort_unstable_by(|a, b| b.cmp(a));
        let connected = durable.len();
        durable.get(usize::from(self.sync) - 1).copied().ok_or(CommitsPause::Sync { wanted: self.sync, connected })
    }

    /// One word of `parhelion set`: `sync=1`, `max_rpo=2s`, `max_rpo=off`, `pause_alone=yes`.
    ///
    /// # Errors
    /// A sentence with what can be written.
    pub fn set(mut self, key: &str, value: &str, time: impl Fn(&str) -> Option<Duration>) -> Result<CommitRules, String> {
        match (key, value) {
            ("sync", k) => {
                self.sync = (k.parse().ok().filter(|k| *k <= SYNC_MAX))
                    .ok_or_else(|| format!("sync={k}: write the number of secondaries that a commit waits for, 0 to {SYNC_MAX}"))?;
            }
            ("max_rpo", "off") => self.max_rpo_ms = None,
            ("max_rpo", given) => {
                let parsed =
                    time(given).map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)).filter(|ms| (10..=86_400_000).contains(ms));
                self.max_rpo_ms = Some(parsed.ok_or_else(|| format!("max_rpo={given}: write a time from 10ms to 1day, or off"))?);
            }
            ("pause_alone", "yes") => self.pause_alone = true,
            ("pause_alone", "no") => self.pause_alone = false,
            _ => return Err(format!("{key}={value}: what can be set is sync=K, max_rpo=TIME or off, pause_alone=yes or no")),
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_wait_for_the_secondaries_that_the_rules_name() {
        let seqs = |list: &[u64]| list.iter().map(|s| Seq(*s)).collect::<Vec<_>>();
        let rules = |sync, max_rpo_ms, pause_alone| CommitRules { sync, max_rpo_ms, pause_alone };
        let all = Ok(Seq(u64::MAX));
        let now = UnixMicros(10_000_000);
        // what, rules, secondaries, age of the first commit that none has, -> up to where
        type Case<'a> = (&'a str, CommitRules, &'a [u64], Option<u64>, Result<Seq, CommitsPause>);
        let cases: &[Case] = &[
            ("nothing is waited for", rules(0, None, false), &[], Some(9_000), all.clone()),
            ("one of three", rules(1, None, false), &[3, 9, 5], None, Ok(Seq(9))),
            ("two of three", rules(2, None, false), &[3, 9, 5], None, Ok(Seq(5))),
            ("more than there are", rules(2, None, false), &[3], None, Err(CommitsPause::Sync { wanted: 2, connected: 1 })),
            ("near enough", rules(0, Some(2_000), false), &[3], Some(2_000), all.clone()),
            (
                "too far",
                rules(0, Some(2_000), false),
                &[3],
                Some(2_001),
                Err(CommitsPause::TooFarBehind { max_rpo_ms: 2_000, behind_ms: 2_001 }),
            ),
            ("alone, and it goes on", rules(0, Some(2_000), false), &[], Some(9_000), all),
            ("alone, and it waits", rules(0, Some(2_000), true), &[], None, Err(CommitsPause::NoSecondary)),
            ("both", rules(1, Some(2_000), false), &[7], Some(5), Ok(Seq(7))),
        ];
        for (what, rules, durable, age_ms, expected) in cases {
            let oldest = age_ms.map(|ms| UnixMicros(now.0 - ms * 1000));
            assert_eq!(rules.allowed(&seqs(durable), oldest, now), *expected, "{what}");
        }
    }

    #[test]
    fn what_is_set_is_understood_or_refused_with_what_can_be_written() {
        let time = |t: &str| t.strip_suffix('s').and_then(|n| n.parse().ok()).map(Duration::from_secs);
        let set = |k: &str, v: &str| CommitRules::default().set(k, v, time);
        assert_eq!(set("sync", "2").unwrap().sync, 2);
        assert_eq!(set("max_rpo", "2s").unwrap().max_rpo_ms, Some(2000));
        assert_eq!(set("max_rpo", "off").unwrap(), CommitRules::default());
        assert!(set("pause_alone", "yes").unwrap().pause_alone);
        for (key, value) in
            [("sync", "9"), ("sync", "one"), ("max_rpo", "soon"), ("max_rpo", "0s"), ("pause_alone", "maybe"), ("rpo", "2s")]
        {
            assert!(set(key, value).unwrap_err().starts_with(&format!("{key}={value}: ")), "{key}={value}");
        }
    }
}
