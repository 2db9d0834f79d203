//! What the demo prints: once how to connect, then the lags, and in between whatever happens.
//!
//! On a terminal the table stands still at the bottom and messages scroll above it; on a pipe there is one short line a second;
//! with `--json` there is one JSON object per line, each with a `type`. A reader that goes away does not end the demo.

use super::child::Exit;
use super::load::{LoadSummary, Percentiles};
use super::plan::{Plan, Ready};
use crate::base::RegionName;
use crate::node::report::Role;
use crate::ops::lag;
use crate::ops::status::ClusterStatus;
use crate::ops::text;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Terminal,
    Pipe,
    Json,
}

pub struct Screen {
    kind: Kind,
    /// Lines of the table that stands at the bottom.
    drawn: usize,
}

/// The end of a demo with `--for`, or of any.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    pub cluster: String,
    pub profile: String,
    pub seconds: f64,
    pub load: Option<LoadSummary>,
    pub regions: Vec<RegionSummary>,
    /// Processes that ended by themselves.
    pub exits: u64,
}

/// Lags over the whole run, of the moments in which they were known.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RegionSummary {
    pub name: RegionName,
    pub role: Role,
    pub visibility_lag_ms: Option<Percentiles>,
    pub durability_lag_ms: Option<Percentiles>,
    pub samples: u64,
    pub samples_unknown: u64,
}

impl Screen {
    #[must_use]
    pub fn new(json: bool) -> Screen {
        let terminal = std::io::stdout().is_terminal();
        let kind = if json {
            Kind::Json
        } else if terminal {
            Kind::Terminal
        } else {
            Kind::Pipe
        };
        Screen { kind, drawn: 0 }
    }

    /// How often the lags are to be shown.
    #[must_use]
    pub fn every(&self) -> Duration {
        if self.kind == Kind::Terminal { Duration::from_millis(500) } else { Duration::from_secs(1) }
    }

    pub fn ready(&mut self, plan: &Plan, ready: &Ready, took: Duration) {
        if self.kind == Kind::Json {
            let mut line = serde_json::to_value(ready).expect("BUG: plain data becomes JSON");
            line["type"] = "ready".into();
            line["seconds"] = took.as_secs_f64().into();
            return put(&format!("{line}\n"));
        }
        put(&help(plan, ready, took));
    }

    /// Something happened: `kind` is a stable word for programs.
    pub fn say(&mut self, kind: &str, region: Option<&RegionName>, what: &str) {
        if self.kind == Kind::Json {
            return put(&format!("{}\n", serde_json::json!({ "type": kind, "region": region, "what": what })));
        }
        self.erase();
        put(&format!("{what}\n"));
    }

    pub fn exited(&mut self, exit: &Exit, restart: &str) {
        use std::os::unix::process::ExitStatusExt as _;
        let (code, signal) = (exit.status.code(), exit.status.signal());
        if self.kind == Kind::Json {
            let line = serde_json::json!({
                "type": "region_exited", "region": exit.region, "pid": exit.pid, "code": code, "signal": signal, "restart": restart,
            });
            return put(&format!("{line}\n"));
        }
        self.say(
            "region_exited",
            None,
            &format!("! the process of {} (pid {}) {}; start it again with: {restart}", exit.region, exit.pid, exit.how()),
        );
    }

    pub fn status(&mut self, status: &ClusterStatus, load: Option<(u32, u64)>) {
        match self.kind {
            Kind::Json => {
                let mut line = serde_json::to_value(status).expect("BUG: plain data becomes JSON");
                line["type"] = "status".into();
                line["committed"] = load.map(|(_, n)| n).into();
                put(&format!("{line}\n"));
            }
            Kind::Pipe => {
                let load = load.map_or(String::new(), |(_, n)| format!(" | {n} commits"));
                put(&format!("{}{load}\n", lag::line(status)));
            }
            Kind::Terminal => {
                let mut block = format!("\n{}", lag::render(status));
                if let Some((tps, committed)) = load {
                    let _ = writeln!(block, "load: {tps} commits/s asked, {committed} committed");
                }
                for note in &status.notes {
                    let _ = writeln!(block, "! {note}");
                }
                self.erase();
                self.drawn = block.lines().count();
                // A line that wraps would be two to move up over: no wrapping while the table is drawn.
                put(&format!("\x1b[?7l{block}\x1b[?7h"));
            }
        }
    }

    pub fn summary(&mut self, summary: &Summary) {
        if self.kind == Kind::Json {
            let mut line = serde_json::to_value(summary).expect("BUG: plain data becomes JSON");
            line["type"] = "summary".into();
            return put(&format!("{line}\n"));
        }
        put(&render_summary(summary));
    }

    /// The table stays where it is; what follows comes below.
    pub fn leave_table(&mut self) {
        self.drawn = 0;
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            put(&format!("\x1b[{}A\x1b[J", self.drawn));
            self.drawn = 0;
        }
    }
}

fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever read this is gone; the cluster goes on.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn help(plan: &Plan, ready: &Ready, took: Duration) -> String {
    let mut out = format!(
        "global cluster {}: {} regions on the network '{}', ready in {:.1} s\n\n",
        ready.cluster,
        ready.regions.len(),
        plan.profile.name,
        took.as_secs_f64()
    );
    let url = |addr: std::net::SocketAddr| format!("postgresql://{}:{}@{addr}/{}", ready.user, ready.password, ready.database);
    for region in &ready.regions {
        let _ = writeln!(out, "{} ({}, pid {})", region.name, text::word(&region.role), region.pid);
        let _ = writeln!(out, "  write  psql {}", url(region.writer));
        let _ = writeln!(out, "  read   psql {}", url(region.reader));
        let _ = writeln!(out, "  HTTP   http://{}  (/status /metrics /healthz /primary /replica?max_lag=500ms)", region.http);
    }
    let config = ready.regions.first().map(|r| r.config.display().to_string()).unwrap_or_default();
    let _ = writeln!(out, "\nuser {}   password {}   database {}", ready.user, ready.password, ready.database);
    let _ = writeln!(out, "the cluster:  parhelion status --config {config}");
    let _ = writeln!(out, "the network:  parhelion netem show --dir {}", plan.dir.display());
    let _ = writeln!(out, "Ctrl-C ends it; the same --dir continues with the data.");
    out
}

fn render_summary(summary: &Summary) -> String {
    let mut out = format!("\nran {:.1} s on the network '{}'\n", summary.seconds, summary.profile);
    if let Some(load) = &summary.load {
        let _ = write!(out, "load: {} committed ({}/s of {}/s asked), {} failed", load.committed, load.tps, load.asked_tps, load.errors);
        if let Some(p) = load.commit_ms {
            let _ = write!(out, "; commit p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", p.p50, p.p99, p.max);
        }
        out.push('\n');
        if let Some(error) = &load.last_error {
            let _ = writeln!(out, "last error: {error}");
        }
    }
    let cell = |p: Option<Percentiles>| p.map_or_else(|| "?".to_owned(), |p| format!("{:.1} / {:.1} / {:.1}", p.p50, p.p99, p.max));
    let rows = summary.regions.iter().filter(|r| r.role != Role::Primary).map(|r| {
        #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
        let unknown = 100.0 * r.samples_unknown as f64 / ((r.samples + r.samples_unknown).max(1)) as f64;
        vec![r.name.to_string(), cell(r.durability_lag_ms), cell(r.visibility_lag_ms), format!("{unknown:.0} %")]
    });
    let header = ["REGION", "DURABILITY p50/p99/max ms", "VISIBILITY p50/p99/max ms", "UNKNOWN"];
    out.push_str(&text::table(&header, &[1, 2, 3], rows.collect()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_has_what_one_needs_and_the_summary_what_was_measured() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::open(dir.path(), Some(2), None, 7400).unwrap();
        let first = plan.names()[0].clone();
        let ready = plan.ready("secret", |n| if *n == first { Role::Primary } else { Role::Secondary }, |_| 42);
        let help = help(&plan, &ready, Duration::from_millis(1250));
        for part in
            ["2 regions", "psql postgresql://parhelion:secret@127.0.0.1:7401/parhelion", "http://127.0.0.1:7503", "status --config /"]
        {
            assert!(help.contains(part), "no {part} in\n{help}");
        }
        let region = |i: usize, role| RegionSummary {
            name: plan.names()[i].clone(),
            role,
            visibility_lag_ms: (i == 0).then_some(Percentiles { p50: 41.0, p99: 45.0, max: 60.0 }),
            durability_lag_ms: None,
            samples: 1,
            samples_unknown: 3,
        };
        let load =
            LoadSummary { asked_tps: 200, committed: 0, errors: 2, tps: 0.0, commit_ms: None, last_error: Some("57P01: ended".into()) };
        let summary = Summary {
            cluster: "demo".into(),
            profile: "world".into(),
            seconds: 30.0,
            load: Some(load),
            regions: vec![region(0, Role::Secondary), region(1, Role::Secondary)],
            exits: 0,
        };
        let text = render_summary(&summary);
        assert!(text.contains("41.0 / 45.0 / 60.0") && text.contains("75 %") && text.contains("last error: 57P01"), "{text}");
        assert!(serde_json::to_value(&summary).unwrap()["load"]["commit_ms"].is_null(), "nothing committed has no latency");
    }
}
