//! `[control]` and `[witness]`: leases, votes, and what a cluster may do by itself.
//!
//! Decides what these keys mean and which values are mistakes. The voters themselves are state; the files only say who could be one.

use super::{RawMember, reachable};
use crate::base::RegionName;
use crate::control::{AutoFailover, Settings};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[witness]`: a voter without data, in a failure domain of its own (`parhelion witness`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWitness {
    #[serde(default = "witness_name")]
    pub name: RegionName,
    pub quic: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

fn witness_name() -> RegionName {
    RegionName::new("witness").expect("BUG: a good name")
}

/// `[control]`: the same in all files of a global cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawControl {
    /// How long a primary may write after it last heard of a majority of the voters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// How often it asks them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew: Option<String>,
    /// What running transactions get to finish before a switchover ends them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_failover: Option<RawAutoFailover>,
}

/// A word, or a table with one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RawAutoFailover {
    Word(String),
    Loss(std::collections::BTreeMap<String, String>),
}

/// What the parser says of a value that is neither; nobody has to know the name of a type.
pub(super) const NO_AUTO_FAILOVER: &str = "data did not match any variant of untagged enum RawAutoFailover";
pub(super) const AUTO_FAILOVER: &str = "auto_failover is \"off\", \"lossless\", or a bound as in { max_loss = \"5s\" }";

const MAX_LOSS_MAX: Duration = Duration::from_secs(86_400);

/// The witness of the global cluster, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    pub name: RegionName,
    /// `host:port` by which this member reaches it.
    pub quic: String,
    /// Its failure domain, as an operator calls it.
    pub zone: Option<String>,
}

/// `off`, `lossless`, `max_loss=5s` or `5s`: as it is typed in `parhelion set`; shown so by its `Display`.
///
/// # Errors
/// A sentence.
pub fn parse_auto_failover(given: &str) -> Result<AutoFailover, String> {
    match given {
        "off" => Ok(AutoFailover::Off),
        "lossless" => Ok(AutoFailover::Lossless),
        other => {
            let bound = other.strip_prefix("max_loss=").unwrap_or(other);
            let parsed = time("auto_failover", bound, Duration::ZERO, MAX_LOSS_MAX);
            parsed.map(AutoFailover::MaxLoss).map_err(|_| format!("auto_failover = \"{given}\": write off, lossless, or max_loss=5s"))
        }
    }
}

/// What of the control protocol can be set in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    pub lease: Duration,
    pub renew: Duration,
    pub drain: Duration,
    /// Where the file says it.
    pub auto_failover: Option<AutoFailover>,
}

impl Default for ControlSettings {
    fn default() -> ControlSettings {
        ControlSettings {
            lease: Duration::from_secs(6),
            renew: Duration::from_millis(1500),
            drain: Duration::from_secs(5),
            auto_failover: None,
        }
    }
}

impl ControlSettings {
    /// For the control core; what cannot be set has its default.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings { lease: self.lease, renew_every: self.renew, drain: self.drain, auto_failover: self.auto_failover, ..Settings::default() }
    }
}

/// A time as people write it, `1.5s`, `250ms`, `1m 30s`, within bounds.
fn time(key: &str, given: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let wrong = |why: &str| Err(format!("{key} = \"{given}\": {why}"));
    let Ok(parsed) = humantime::parse_duration(given) else { return wrong("write a time, as in \"1.5s\" or \"250ms\"") };
    if parsed < min || parsed > max {
        return wrong(&format!("it must lie between {} and {}", humantime::format_duration(min), humantime::format_duration(max)));
    }
    Ok(parsed)
}

/// `[control]`, checked.
pub(in crate::ops) fn complete_control(raw: Option<RawControl>) -> Result<ControlSettings, String> {
    let raw = raw.unwrap_or_default();
    let d = ControlSettings::default();
    let ms = Duration::from_millis;
    let given = |key: &str, value: Option<&String>, default: Duration, min: Duration, max: Duration| match value {
        Some(text) => time(&format!("control.{key}"), text, min, max),
        None => Ok(default),
    };
    let lease = given("lease", raw.lease.as_ref(), d.lease, ms(500), ms(600_000))?;
    // Four times in a lease, so that three of them may be lost.
    let renew = given("renew", raw.renew.as_ref(), d.renew.min(lease / 4), ms(20), ms(150_000))?;
    if renew > lease / 3 {
        return Err(format!(
            "control.renew = \"{}\" is too long for a lease of {}: a lost message or two must not cost the lease, so at most {}",
            humantime::format_duration(renew),
            humantime::format_duration(lease),
            humantime::format_duration(lease / 3)
        ));
    }
    let drain = given("drain", raw.drain.as_ref(), d.drain, Duration::ZERO, ms(300_000))?;
    let auto_failover = match &raw.auto_failover {
        None => d.auto_failover,
        Some(RawAutoFailover::Word(word)) if word == "off" => Some(AutoFailover::Off),
        Some(RawAutoFailover::Word(word)) if word == "lossless" => Some(AutoFailover::Lossless),
        Some(RawAutoFailover::Word(word)) => return Err(format!("control.auto_failover = \"{word}\": {AUTO_FAILOVER}")),
        Some(RawAutoFailover::Loss(table)) => match (table.len(), table.get("max_loss")) {
            (1, Some(bound)) => Some(AutoFailover::MaxLoss(time("control.auto_failover.max_loss", bound, Duration::ZERO, MAX_LOSS_MAX)?)),
            _ => return Err(format!("control.auto_failover has keys that mean nothing: {AUTO_FAILOVER}")),
        },
    };
    Ok(ControlSettings { lease, renew, drain, auto_failover })
}

pub(super) fn witness(raw: RawWitness, members: &[RawMember]) -> Result<Witness, String> {
    let RawWitness { name, quic, zone } = raw;
    if members.iter().any(|m| m.region == name) {
        return Err(format!("the witness is called {name}, and so is a member: give it a name of its own"));
    }
    reachable(&quic).map_err(|why| format!("quic = \"{quic}\" of the witness {why}"))?;
    Ok(Witness { name, quic, zone })
}
