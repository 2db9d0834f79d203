//! Commands with a witness's file: they ask the witness itself, with its own certificate, which gets nobody into a region.
//!
//! Decides how a file is told to be a witness's, and how it shows itself.

use super::config::WitnessConfig;
use crate::io::clock;
use crate::io::link::admin_once_of;
use crate::io::tls::{Material, Subject};
use crate::node::report::ControlReport;
use crate::ops::admin::{AdminAnswer, AdminRequest};
use crate::ops::config::Config;
use crate::ops::failure::{FAILED, Failure, UNREACHABLE};
use crate::ops::text;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(4);

/// The file's configuration, when it is a witness's and no region's.
#[must_use]
pub fn witness_file(file: &Path) -> Option<WitnessConfig> {
    if Config::load(file).is_ok() { None } else { WitnessConfig::load(file).ok() }
}

/// Asks the witness.
///
/// # Errors
/// When its certificate cannot be used, or it does not answer.
pub async fn ask(config: &WitnessConfig, request: &AdminRequest) -> Result<AdminAnswer, Failure> {
    let material = Material::load_as(Subject::Witness, &config.tls_dir, &config.cluster, &config.name, &config.file, clock::unix_now())?;
    let (addr, request) = (config.quic.to_string(), request.encode().into());
    let asked = admin_once_of(Subject::Witness, Arc::new(material), &addr, &config.name, request, TIMEOUT).await;
    let answer = asked.map_err(Failure::from).map_err(|f| match f {
        Failure { code: UNREACHABLE, message, hint: None } => {
            Failure::new(UNREACHABLE, message).hint(format!("start it: parhelion witness --config {}", config.file.display()))
        }
        other => other,
    })?;
    AdminAnswer::decode(&answer).map_err(|e| Failure::new(FAILED, format!("{}: {e}", config.name)))
}

/// What a witness knows, for people: its own vote, and who answers it.
#[must_use]
pub fn render(report: &ControlReport) -> String {
    let known = |epoch: Option<crate::base::Epoch>| epoch.map_or_else(|| "none".to_owned(), |e| e.to_string());
    let primary = report.primary.as_ref().map_or_else(|| "nobody that it knows of".to_owned(), ToString::to_string);
    let mut out = match report.role.as_str() {
        "removed" => format!("{} was a witness and is none any more: it votes no more\n", report.member),
        _ => format!("{} is a witness: it votes and holds no data. A region's file shows the whole cluster\n", report.member),
    };
    let _ = writeln!(out, "primary: {primary}, epoch {}; it has promised epoch {}", known(report.epoch), report.promised);
    let voters: Vec<&str> = report.voters.iter().map(crate::base::RegionName::as_str).collect();
    let own = if report.votes { "" } else { "; this one is none of them" };
    let _ = writeln!(out, "voters: {}{own}", voters.join(", "));
    if report.grant_left_ms > 0 {
        let _ = writeln!(out, "its grant is over in {} ms", report.grant_left_ms);
    }
    let _ = writeln!(out, "auto_failover={}", report.auto_failover);
    let rows = report.peers.iter().map(|p| {
        let way = p.round_trip_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        let since = text::rfc3339(p.since);
        vec![p.name.to_string(), (if p.up { "up" } else { "down" }).to_owned(), since, way, p.trouble.clone().unwrap_or_default()]
    });
    out.push_str(&text::table(&["MEMBER", "LINK", "SINCE", "ROUND TRIP", ""], &[3], rows.collect()));
    if let Some(reason) = &report.reason {
        let _ = writeln!(out, "note: {reason}");
    }
    out
}
