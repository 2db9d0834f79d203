//! `parhelion audit`: what was done to a member, by whom and when, and whether its record of that is whole.
//!
//! Decides whom to believe: the running process, which compares its files with the end of the chain on its copies; and when it does not run,
//! the files alone, and says so. Never changes anything.

use super::admin::{AdminAnswer, AdminRequest};
use super::cli::{AskArgs, say};
use super::client::{Client, config_file};
use super::config::Config;
use super::failure::{FAILED, Failure, REFUSED, UNREACHABLE};
use super::text;
use super::witness::ask;
use super::witness::config::WitnessConfig;
use crate::base::RegionName;
use crate::control::{AuditEntry, AuditHead};
use crate::io::audit;
use clap::Args;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Below a member's `data_dir`.
pub const AUDIT_DIR: &str = "audit";
/// Entries in an answer, the newest.
const ENTRIES_MAX: usize = 1000;
/// What the copies keep is written to the file a moment later.
const FILE_IS_BEHIND: Duration = Duration::from_millis(100);
const LOOKS: usize = 10;

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Follow the whole chain of hashes; exit with 4 and name the first entry that was changed or is missing
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// A member's audit. `--json` is this.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize)]
pub struct AuditReport {
    pub member: RegionName,
    /// The newest, oldest first.
    pub entries: Vec<AuditEntry>,
    /// Entries in its files; older ones were put away.
    pub entries_in_all: u64,
    /// The number of the oldest that is there.
    pub first_no: Option<u64>,
    pub last_no: Option<u64>,
    /// Every entry is what was written, as far as that can be told.
    pub intact: bool,
    /// The first that is not, and a sentence.
    pub first_broken: Option<u64>,
    pub why: Option<String>,
    /// The end of the chain was compared with what the copies (of a witness: its slots) keep. Otherwise entries may have been taken off the end.
    pub compared: bool,
}

impl AuditReport {
    /// What lies in the files of `member` below `data_dir`.
    ///
    /// # Errors
    /// A sentence.
    pub fn read(member: &RegionName, data_dir: &Path, head: Option<AuditHead>) -> Result<AuditReport, String> {
        let dir = data_dir.join(AUDIT_DIR);
        let read = audit::read(&dir, head).map_err(|e| format!("the audit of {member} cannot be read: {e}"))?;
        let (first_no, last_no) = (read.entries.first().map(|e| e.no), read.entries.last().map(|e| e.no));
        let skipped = read.entries.len().saturating_sub(ENTRIES_MAX);
        let (first_broken, why) = read.broken.unzip();
        Ok(AuditReport {
            member: member.clone(),
            entries_in_all: read.entries.len() as u64,
            entries: read.entries.into_iter().skip(skipped).collect(),
            first_no,
            last_no,
            intact: first_broken.is_none(),
            first_broken,
            why,
            compared: head.is_some(),
        })
    }

    /// As [`AuditReport::read`], in the process that writes them: what is on its way to the file is waited for.
    ///
    /// # Errors
    /// A sentence.
    pub async fn of_running(member: RegionName, data_dir: &Path, head: impl Fn() -> Option<AuditHead>) -> Result<AuditReport, String> {
        let mut looks = 0;
        loop {
            let (head, name, dir) = (head(), member.clone(), data_dir.to_owned());
            let read = tokio::task::spawn_blocking(move || AuditReport::read(&name, &dir, head)).await;
            let report = read.map_err(|e| format!("the audit cannot be read: {e}"))??;
            looks += 1;
            let may_come = head.is_some_and(|h| report.first_broken.is_some_and(|no| no > report.last_no.unwrap_or(0) && no <= h.no));
            if !may_come || looks == LOOKS {
                return Ok(report);
            }
            tokio::time::sleep(FILE_IS_BEHIND).await;
        }
    }
}

/// Shows the audit of the member whose file is given.
///
/// # Errors
/// [`Failure`]: it cannot be had, or `--verify` found that it is not whole.
pub async fn run(args: AuditArgs) -> Result<(), Failure> {
    let file = config_file(args.ask.config.as_deref())?;
    let (name, data_dir, asked) = match ask::witness_file(&file) {
        Some(config) => {
            let asked = ask::ask(&config, &AdminRequest::Audit).await;
            let WitnessConfig { name, data_dir, .. } = config;
            (name, data_dir, asked)
        }
        None => {
            let asked = match Client::open(Some(&file)) {
                Ok(client) => client.ask(&AdminRequest::Audit).await,
                Err(failure) => Err(failure),
            };
            let Config { region, data_dir, .. } = Config::load(&file)?;
            (region, data_dir, asked)
        }
    };
    let report = match asked {
        Ok(AdminAnswer::Audit(report)) => *report,
        Ok(AdminAnswer::Refused(why)) => return Err(Failure::new(REFUSED, why)),
        Ok(_) => {
            return Err(Failure::new(FAILED, "the member answered something else than was asked; is it the same version of parhelion?"));
        }
        Err(failure) if failure.code == UNREACHABLE => {
            eprintln!("note: {}; its files are read without it", failure.message);
            AuditReport::read(&name, &data_dir, None).map_err(|why| Failure::new(FAILED, why))?
        }
        Err(failure) => return Err(failure),
    };
    if args.ask.json {
        say(&format!("{}\n", serde_json::to_string(&report).expect("BUG: plain data becomes JSON")))?;
    } else if args.verify {
        say(&verdict(&report))?;
    } else {
        say(&render(&report))?;
    }
    match &report.why {
        Some(why) if args.verify => Err(Failure::new(REFUSED, format!("the audit of {} is not what was written: {why}", report.member))
            .hint("everything before that entry can be believed; compare what follows with the audits of the other members")),
        _ => Ok(()),
    }
}

fn verdict(report: &AuditReport) -> String {
    let (first, last) = (report.first_no.unwrap_or(0), report.last_no.unwrap_or(0));
    let alone = if report.compared { "" } else { " (the end could not be compared with the copies: entries may be missing there)" };
    let entries = format!("{} entries of {}, {first} to {last}", report.entries_in_all, report.member);
    match &report.why {
        None => format!("{entries}: every one follows the one before it{alone}\n"),
        Some(why) => format!("{entries}: {why}\n"),
    }
}

fn render(report: &AuditReport) -> String {
    let row = |e: &AuditEntry| {
        let op = e.op.as_deref().map_or("-", |op| &op[..op.len().min(8)]);
        vec![
            e.no.to_string(),
            text::rfc3339(e.at),
            e.kind.clone(),
            e.epoch.to_string(),
            e.durable_lsn.to_string(),
            op.to_owned(),
            e.actor.clone(),
            e.what.clone(),
        ]
    };
    let mut out = if report.entries.is_empty() {
        format!("nothing was done to {} yet\n", report.member)
    } else {
        text::table(
            &["NO", "TIME", "KIND", "EPOCH", "DURABLE", "OPERATION", "BY", "WHAT"],
            &[0, 3, 4],
            report.entries.iter().map(row).collect(),
        )
    };
    if let Some(why) = &report.why {
        let _ = writeln!(out, "NOT WHOLE: {why}");
    }
    out
}
