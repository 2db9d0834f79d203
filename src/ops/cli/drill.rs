//! Drills with a running region: its six copies, one by one, and the demo's emulated network.

use super::{AskArgs, json, say, unexpected};
use crate::base::CopyId;
use crate::io::copies::slow::DELAY_MAX;
use crate::ops::admin::{AdminAnswer, AdminRequest};
use crate::ops::client::{Client, DEMO_DIR};
use crate::ops::config::Config;
use crate::ops::copy_lines;
use crate::ops::failure::{Failure, USAGE, io_failure};
use crate::ops::netem::{self, CONTROL_SOCKET};
use crate::ops::text;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct CopyArgs {
    #[command(subcommand)]
    pub what: Option<CopyVerb>,
    /// The file of a process of copies, as in regions/zones/zone-a.toml
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Option<PathBuf>,
    /// End when stdin ends: the process that started this one is gone
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

#[derive(Debug, Subcommand)]
pub enum CopyVerb {
    /// Take a copy out of duty, as if its disk had gone
    Stop {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Bring it back: it catches up from its peers
    Start {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Make a copy slow without being dead: its answers come so much later, until --delay 0
    Slow {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        /// How much later: 50ms, 2s; 0 ends it
        #[arg(long, value_name = "TIME", value_parser = delay)]
        delay: Duration,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Replace a copy by a new one in another directory, while writes go on; --cancel goes back as long as it is not done
    Replace {
        /// a1 a2 b1 b2 c1 or c2
        copy: CopyId,
        /// The directory for the new copy, on the region's machine
        #[arg(long, value_name = "DIR", required_unless_present = "cancel", conflicts_with = "cancel")]
        with: Option<PathBuf>,
        /// Go back to the copy that is being replaced
        #[arg(long)]
        cancel: bool,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Show the six copies of the region
    List(AskArgs),
}

#[derive(Debug, Args)]
pub struct NetemArgs {
    /// The demo's directory [default: ./parhelion-demo]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Or the file of any of its regions
    #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum NetemVerb {
    /// Change one direction: parhelion netem set us-east eu-west delay=38ms loss=0.5%
    Set {
        /// A region, or * for all
        from: String,
        /// A region, or * for all
        to: String,
        #[arg(required = true, value_name = "KEY=VALUE", help = netem::settings::KEYS)]
        settings: Vec<String>,
        /// The way back, too
        #[arg(long)]
        both: bool,
        #[command(flatten)]
        at: NetemArgs,
    },
    /// Show every direction, with what it did to packets
    Show(NetemArgs),
}

pub(super) async fn run_copy(verb: CopyVerb) -> Result<(), Failure> {
    let (ask, request) = match verb {
        CopyVerb::List(ask) => (ask, AdminRequest::Report),
        CopyVerb::Stop { copy, ask } => (ask, AdminRequest::StopCopy { copy }),
        CopyVerb::Start { copy, ask } => (ask, AdminRequest::StartCopy { copy }),
        CopyVerb::Replace { copy, with, ask, .. } => {
            let place = match with {
                Some(dir) => {
                    let whole = std::path::absolute(&dir).map_err(io_failure("find the directory"))?;
                    let text = whole.into_os_string().into_string();
                    Some(text.map_err(|_| Failure::new(USAGE, "the name of the directory is not UTF-8; give another one"))?)
                }
                None => None,
            };
            (ask, AdminRequest::ReplaceCopy { copy, place })
        }
        CopyVerb::Slow { copy, delay, ask } => {
            let delay_us = u64::try_from(delay.as_micros()).expect("BUG: the parser bounds a delay");
            (ask, AdminRequest::SlowCopy { copy, delay_us })
        }
    };
    let client = Client::open(ask.config.as_deref())?;
    match client.ask(&request).await? {
        AdminAnswer::Report(report) if ask.json => say(&json(&report.copies)),
        AdminAnswer::Report(report) => {
            let rows = report.copies.iter().map(|c| {
                let repair = c.repair.as_ref().map(copy_lines::repair);
                let reason = c.reason.clone().or(repair).or_else(|| c.damage.clone()).unwrap_or_default();
                vec![c.name.clone(), c.az.clone(), c.state.clone(), c.durable_lsn.to_string(), reason]
            });
            say(&text::table(&["COPY", "AZ", "STATE", "DURABLE", "REASON"], &[3], rows.collect()))
        }
        AdminAnswer::Done(what) if ask.json => say(&json(&serde_json::json!({ "ok": true, "what": what }))),
        AdminAnswer::Done(what) => say(&format!("{what}\n")),
        other => Err(unexpected(other)),
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    let delay = if text == "0" { Duration::ZERO } else { humantime::parse_duration(text).map_err(|e| e.to_string())? };
    if delay > DELAY_MAX {
        Err(format!("at most {}; `parhelion copy stop` takes a copy out", humantime::Duration::from(DELAY_MAX)))
    } else {
        Ok(delay)
    }
}

pub(super) fn run_netem(verb: NetemVerb) -> Result<(), Failure> {
    let (at, requests) = match verb {
        NetemVerb::Show(at) => (at, vec![netem::Request::Show {}]),
        NetemVerb::Set { from, to, settings, both, at } => {
            let there = netem::Request::Set { from: from.clone(), to: to.clone(), settings: settings.clone() };
            let back = both.then_some(netem::Request::Set { from: to, to: from, settings });
            (at, std::iter::once(there).chain(back).collect())
        }
    };
    let socket = netem_socket(&at)?;
    let mut directions = Vec::new();
    for request in &requests {
        directions.extend(netem::control(&socket, request)?.directions);
    }
    if at.json {
        return say(&json(&serde_json::json!({ "directions": directions })));
    }
    let rows = directions
        .iter()
        .map(|d| {
            let dropped = d.counts.dropped_loss + d.counts.dropped_queue + d.counts.dropped_blackhole + d.counts.dropped_host;
            let (packets, bytes) = (d.counts.packets.to_string(), text::bytes(d.counts.bytes));
            vec![d.from.to_string(), d.to.to_string(), packets, bytes, dropped.to_string(), d.settings.to_string()]
        })
        .collect();
    say(&text::table(&["FROM", "TO", "PACKETS", "BYTES", "DROPPED", "SETTINGS"], &[2, 3, 4], rows))
}

fn netem_socket(at: &NetemArgs) -> Result<PathBuf, Failure> {
    match (&at.dir, &at.config) {
        (Some(dir), _) => Ok(dir.join(CONTROL_SOCKET)),
        (None, Some(file)) => Config::load(file)?.netem_control.ok_or_else(|| {
            Failure::new(USAGE, format!("{} has no [netem]: its links are real ones", file.display()))
                .hint("netem works on a demo: name its directory with --dir")
        }),
        (None, None) => Ok(Path::new(DEMO_DIR).join(CONTROL_SOCKET)),
    }
}
