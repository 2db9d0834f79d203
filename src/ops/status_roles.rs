//! Who votes, who may write and what is under way, merged from what the members say of themselves.
//!
//! Decides whom to believe: a member about its own vote, the primary about its lease, whoever knows more about a failover. Says loudly when
//! more than one region writes or there is more than one history. Part of [`super::status`].

use super::status::ClusterStatus;
use super::text;
use crate::base::{Epoch, RegionName};
use crate::io::tls::expiry_tone;
use crate::node::report::{ControlReport, FailoverReport, OperationReport, RegionReport, RulesReport};
use std::collections::{BTreeMap, BTreeSet};

/// The witness, and what it answered, where a cluster has one.
pub type WitnessAnswer = Option<(RegionName, Result<ControlReport, String>)>;

/// Roles as one value: part of `status --json`.
#[derive(Clone, Debug, Default, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct RolesStatus {
    /// Who votes, sorted by name; empty when nobody who answers knows.
    pub voters: Vec<VoterStatus>,
    /// One voter alone: a failover by hand cannot be proven.
    pub unproven: bool,
    /// What is left of the primary's lease; null when it did not answer, 0 when it has none.
    pub lease_left_ms: Option<u64>,
    /// What a commit waits for in the primary; null when it did not answer.
    pub rules: Option<RulesReport>,
    /// What the cluster does by itself when its primary is gone: `off`, `lossless`, `max_loss=5s`; null when nobody who answers knows.
    pub auto_failover: Option<String>,
    /// Regions that write, or claimed to at the same time; more than 1 is an emergency.
    pub writers_seen: u32,
    /// Of the membership; 0: nobody has changed it, it is what the files say.
    pub members_version: u64,
    /// The member without data; null where there is none.
    pub witness: Option<WitnessStatus>,
    /// Under way, or the last one.
    pub operation: Option<OperationReport>,
    /// Newest first.
    pub failovers: Vec<FailoverReport>,
}

/// The witness, whether it has a vote at the moment or not.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct WitnessStatus {
    pub name: RegionName,
    /// It is a voter: it is when two or four regions have it.
    pub votes: bool,
    pub answered: bool,
    /// Why it did not, or why it does not vote; a sentence.
    pub trouble: Option<String>,
    /// Until its certificate ends, in whole days; null when it did not answer.
    pub certificate_days_left: Option<i64>,
}

/// One voter.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct VoterStatus {
    pub name: RegionName,
    /// It votes and holds no data.
    pub witness: bool,
    /// Whether it answered. If not, the rest is null.
    pub answered: bool,
    /// Why not; a sentence.
    pub trouble: Option<String>,
    pub promised: Option<Epoch>,
    /// Another primary than the one it granted gets nothing before.
    pub grant_left_ms: Option<u64>,
    /// It granted the primary within a lease; null when the primary did not answer.
    pub heard_by_primary: Option<bool>,
}

/// Members' words as one.
#[must_use]
pub fn merge(answers: &BTreeMap<RegionName, Result<RegionReport, String>>, witness: &WitnessAnswer) -> RolesStatus {
    let regions = || answers.values().filter_map(|a| a.as_ref().ok()?.control.as_deref());
    let all = || regions().chain(witness.iter().filter_map(|(_, answer)| answer.as_ref().ok()));
    let Some(newest) = all().max_by_key(|c| (c.voters_version, c.promised)) else { return RolesStatus::default() };
    let primary = regions().filter(|c| c.role == "primary").max_by_key(|c| c.epoch);
    let reigns = primary.or_else(|| regions().filter(|c| c.role == "fenced").max_by_key(|c| c.epoch));
    let voter = |name: &RegionName| {
        let report = all().find(|c| c.member == *name);
        let why = answers.get(name).and_then(|a| a.as_ref().err());
        let why = why.or_else(|| witness.as_ref().filter(|(w, _)| w == name).and_then(|(_, a)| a.as_ref().err()));
        VoterStatus {
            name: name.clone(),
            witness: witness.as_ref().is_some_and(|(w, _)| w == name),
            answered: report.is_some(),
            trouble: why.cloned().filter(|_| report.is_none()),
            promised: report.map(|r| r.promised),
            grant_left_ms: report.map(|r| r.grant_left_ms),
            heard_by_primary: primary.map(|p| p.voters_heard.contains(name)),
        }
    };
    let mut voters: Vec<VoterStatus> = newest.voters.iter().map(voter).collect();
    voters.sort_by(|a, b| a.name.cmp(&b.name));
    let writing = regions().filter(|c| c.role == "primary" && c.lease_left_ms > 0).count();
    let operations = || all().filter_map(|c| c.operation.as_ref());
    // Whoever is furthest: its executor knows first, and what is final stays.
    let rank = |o: &&OperationReport| (o.began_at, !o.is_running(), o.phases.len());
    let mut failovers: BTreeMap<Epoch, FailoverReport> = BTreeMap::new();
    for failover in all().flat_map(|c| &c.failovers) {
        let known = failovers.get(&failover.new_epoch);
        if known.is_none_or(|k| !k.complete && failover.complete) {
            failovers.insert(failover.new_epoch, failover.clone());
        }
    }
    RolesStatus {
        voters,
        unproven: newest.unproven,
        lease_left_ms: reigns.map(|p| p.lease_left_ms),
        rules: reigns.and_then(|p| p.rules),
        auto_failover: reigns.or(Some(newest)).map(|c| c.auto_failover.clone()),
        writers_seen: all().map(|c| c.writers_seen).max().unwrap_or(0).max(u32::try_from(writing).unwrap_or(u32::MAX)),
        members_version: all().map(|c| c.members_version).max().unwrap_or(0),
        witness: witness.as_ref().map(|(name, answer)| WitnessStatus {
            name: name.clone(),
            votes: newest.voters.contains(name),
            answered: answer.is_ok(),
            trouble: match answer {
                Err(why) => Some(why.clone()),
                Ok(report) => report.reason.clone().filter(|_| !report.votes),
            },
            certificate_days_left: answer.as_ref().ok().and_then(|report| report.certificate_days_left),
        }),
        operation: operations().max_by_key(rank).cloned(),
        failovers: failovers.into_values().rev().collect(),
    }
}

/// What is not as it should be, the worst first.
#[must_use]
pub fn notes(roles: &RolesStatus, answers: &BTreeMap<RegionName, Result<RegionReport, String>>) -> Vec<String> {
    let mut notes = Vec::new();
    let controls = || answers.values().filter_map(|a| a.as_ref().ok()?.control.as_deref());
    let lineages: BTreeSet<&str> =
        answers.values().filter_map(|a| a.as_ref().ok()).filter_map(|r| r.lineage.as_ref().map(|l| l.0.as_str())).collect();
    if lineages.len() > 1 {
        let of = |lineage: &&str| {
            let same = |r: &&RegionReport| r.lineage.as_ref().is_some_and(|l| l.0 == **lineage);
            let names: Vec<&str> = answers.values().filter_map(|a| a.as_ref().ok()).filter(same).map(|r| r.region.as_str()).collect();
            format!("{lineage} in {}", names.join(", "))
        };
        let list: Vec<String> = lineages.iter().map(of).collect();
        notes.push(format!(
            "EMERGENCY: the regions hold {} histories of different origin ({}); they are never merged, and nobody writes. Decide which one goes on; in each region of the other: parhelion retire --lineage LINEAGE --confirm REGION --config FILE",
            lineages.len(),
            list.join("; ")
        ));
    }
    if roles.writers_seen > 1 {
        notes.push(format!(
            "EMERGENCY: {} regions claimed to write at the same time; stop all but one of them and look at `parhelion events`",
            roles.writers_seen
        ));
    }
    // Until another failover is the newest one.
    notes.extend(roles.failovers.first().and_then(|f| f.wrote_beside.as_ref()).map(|what| format!("EMERGENCY: {what}")));
    let majority = roles.voters.len() / 2 + 1;
    let answer = roles.voters.iter().filter(|v| v.answered).count();
    for voter in roles.voters.iter().filter(|v| !v.answered) {
        let what = if voter.witness { "witness" } else { "voter" };
        let why = voter.trouble.as_deref().unwrap_or("it says nothing of roles yet");
        let rule = if answer >= majority {
            format!("{majority} of {} are enough", roles.voters.len())
        } else {
            format!("{majority} of {} are needed: without them no primary keeps its lease and none can be made", roles.voters.len())
        };
        // A region's silence is told for itself.
        if voter.witness || answer < majority {
            notes.push(format!("the {what} {} does not answer ({why}); {rule}", voter.name));
        }
    }
    if let Some(WitnessStatus { name, votes, answered: true, trouble: Some(why), .. }) = &roles.witness {
        let what = if *votes { "the witness has a vote and does not use it" } else { "the witness says" };
        notes.push(format!("{what}: {name}: {why}"));
    }
    for deaf in roles.voters.iter().filter(|v| v.answered && v.heard_by_primary == Some(false)) {
        notes.push(format!("the primary has not had the vote of {} within a lease, although it answers here", deaf.name));
    }
    // Without a primary: why nobody takes over by itself.
    if !roles.voters.is_empty() && roles.lease_left_ms.unwrap_or(0) == 0 {
        let auto = roles.auto_failover.as_deref().unwrap_or("off");
        if auto == "off" {
            notes.push(
                "no region holds the lease of a primary, and with auto_failover=off nobody takes over by itself; what it would cost: parhelion failover --to REGION --dry-run"
                    .to_owned(),
            );
        }
        for waits in controls().filter(|c| c.role == "secondary" || c.role == "candidate") {
            notes.extend(waits.reason.as_ref().map(|why| format!("{}: {why}", waits.member)));
        }
    }
    for other in controls().filter(|c| c.auto_failover_of_file.as_ref().is_some_and(|file| *file != c.auto_failover)) {
        let file = other.auto_failover_of_file.as_deref().unwrap_or_default();
        notes.push(format!(
            "the file of {} says auto_failover={file}, and the cluster's rule is {}: that holds. parhelion set auto_failover={file} changes it; or mend the file",
            other.member, other.auto_failover
        ));
    }
    for stale in controls().flat_map(|c| c.stale.iter().map(|s| (&c.member, s))) {
        notes.push(format!("{}: {}", stale.0, stale.1));
    }
    let of_witness = roles.witness.iter().map(|w| (&w.name, w.certificate_days_left));
    for (member, days) in controls().map(|c| (&c.member, c.certificate_days_left)).chain(of_witness) {
        let Some((days, tone)) = days.and_then(|days| Some((days, expiry_tone(days)?))) else { continue };
        notes.push(format!(
            "{tone}the certificate of {member} ends in {days} days, and the others refuse it then; parhelion certs --config <the file of {member}> --renew, and start it again"
        ));
    }
    for open in roles.failovers.iter().filter(|f| !f.complete) {
        notes.push(format!(
            "what the failover {} from {} to {} lost is not known exactly before {} is back: parhelion failover report {}",
            open.id, open.from, open.to, open.from, open.id
        ));
    }
    notes
}

/// Lines for a person, below the table; none while nobody knows anything.
#[must_use]
pub fn lines(status: &ClusterStatus) -> String {
    let roles = &status.roles;
    let mut out = String::new();
    if roles.voters.is_empty() {
        return out;
    }
    let voter = |v: &VoterStatus| {
        let what = if v.witness { " (witness)" } else { "" };
        match (v.answered, v.promised) {
            (true, Some(promised)) => format!("{}{what} epoch {promised}", v.name),
            _ => format!("{}{what} does not answer", v.name),
        }
    };
    let list: Vec<String> = roles.voters.iter().map(voter).collect();
    let alone = if roles.unproven { "; alone: whether it is down, nobody else can prove" } else { "" };
    let without = match &roles.witness {
        Some(WitnessStatus { name, votes: false, answered, .. }) => {
            format!("; the witness {name}{} has no vote at the moment", if *answered { "" } else { ", which does not answer," })
        }
        _ => String::new(),
    };
    out.push_str(&format!("voters: {}{alone}{without}\n", list.join(", ")));
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    match (&status.primary, roles.lease_left_ms) {
        (Some(primary), Some(0)) => out.push_str(&format!("lease: {primary} has none and acknowledges nothing\n")),
        (Some(primary), Some(ms)) => {
            out.push_str(&format!("lease: {primary} may write for {} more, and renews it\n", text::lag_ms(ms as f64)))
        }
        _ => {
            let left = roles.voters.iter().filter_map(|v| v.grant_left_ms).max().unwrap_or(0);
            let over = if left == 0 { "all grants are over".into() } else { format!("grants are over in {}", text::lag_ms(left as f64)) };
            out.push_str(&format!("lease: the primary does not answer; {over}\n"));
        }
    }
    if let Some(rules) = roles.rules.filter(|r| r.sync > 0 || r.max_rpo_ms.is_some()) {
        let sync = (rules.sync > 0).then(|| format!("{} secondaries have it (sync={})", rules.sync, rules.sync));
        let alone = if rules.pause_alone { ", also while none is connected" } else { "" };
        let rpo = rules.max_rpo_ms.map(|ms| format!("a secondary is behind by {ms} ms at most (max_rpo){alone}"));
        let both: Vec<String> = sync.into_iter().chain(rpo).collect();
        out.push_str(&format!("commits are acknowledged when {}\n", both.join(" and ")));
    }
    if let Some(auto) = roles.auto_failover.as_deref().filter(|auto| *auto != "off") {
        out.push_str(&format!("without a primary the cluster fails over by itself: auto_failover={auto}\n"));
    }
    if let Some(op) = roles.operation.as_ref().filter(|o| o.is_running()) {
        let to = op.to.as_ref().map_or_else(String::new, |to| format!(" to {to}"));
        let phase = op.phase.as_deref().unwrap_or("check");
        out.push_str(&format!("under way: {}{to}, in {phase} for {} (parhelion op {})\n", op.kind, op.by, op.id));
    }
    for failover in &roles.failovers {
        let lost = match (failover.complete, failover.lost_commits) {
            (true, Some(n)) => format!("lost {n} commits"),
            (_, Some(0)) => "lost nothing".to_owned(),
            _ => "what it lost is not known exactly yet".to_owned(),
        };
        out.push_str(&format!(
            "failover {} from {} to {} (epoch {}) at {}: {lost}\n",
            failover.id,
            failover.from,
            failover.to,
            failover.new_epoch,
            text::rfc3339(failover.began_at)
        ));
    }
    out
}
