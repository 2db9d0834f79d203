//! `parhelion bench`: the figures of the README, measured on a demo of its own with real processes, real disks and emulated links.
//!
//! Decides nothing: it starts the same demo as a user would, drives it as a client would (SQL, HTTP, signals) and reports what it
//! saw from outside, with the target beside each figure. A figure is never an assertion: machines differ.

mod cluster;
mod measure;
mod path;
mod returning;
mod roles;
mod volume;

use super::failure::Failure;
use super::text;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Which: start, commit, lag, path, ship, restart [default: all of these], volume, history, switchover, failover, automatic, return
    #[arg(value_name = "WHAT", value_parser = ["start", "commit", "lag", "path", "ship", "restart", "volume", "history", "switchover", "failover", "automatic", "return"])]
    pub what: Vec<String>,
    /// Where the demos keep their data; removed afterwards
    #[arg(long, value_name = "DIR", default_value = "./parhelion-bench")]
    pub dir: PathBuf,
    /// First port of the demos
    #[arg(long, default_value_t = 23400)]
    pub base_port: u16,
    /// Log to write for `restart`, and a quarter of it for `ship`, in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub log_mib: u64,
    /// For `volume`: seconds that one measurement lasts
    #[arg(long, default_value_t = 4, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub window: u64,
    /// For `volume`, `failover` and `automatic`: how often each trouble is measured; the median counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// For `switchover`: how often the primary moves
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub moves: u32,
    /// For `return`: log that the old primary has and nobody else, in MiB
    #[arg(long, default_value_t = 100, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub tail_mib: u64,
    /// For `volume`: pages in the volume when a copy or a region is rebuilt, in MiB
    #[arg(long, default_value_t = 128, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    pub rebuild_mib: u64,
    /// For `commit`: the regions' files are encrypted
    #[arg(long)]
    pub encrypt: bool,
    /// Also kill -9 and restart behind so many commits; may be given several times. `history` does nothing else [default there: 1000000 and 10000000]
    #[arg(long, value_name = "COMMITS")]
    pub history: Vec<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// One figure.
#[derive(Debug, serde::Serialize)]
pub struct Figure {
    /// Stable: `lag_rtt80_loss0_p50_ms` ...
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// What the project wants it to be, in words.
    pub target: &'static str,
    pub note: String,
}

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str, target: &'static str, note: impl Into<String>) -> Figure {
        Figure { name: name.into(), value, unit, target, note: note.into() }
    }
}

/// # Errors
/// When a demo cannot be started or stops answering.
pub async fn run(args: BenchArgs) -> Result<(), Failure> {
    let all = ["start", "commit", "lag", "path", "ship", "restart"];
    let wanted: Vec<&str> = if args.what.is_empty() { all.to_vec() } else { args.what.iter().map(String::as_str).collect() };
    let mut figures = Vec::new();
    for what in wanted {
        let dir = args.dir.join(what);
        // What an earlier run left is of no use: every figure begins with an empty cluster.
        let _ = std::fs::remove_dir_all(&dir);
        let found = match what {
            "start" => measure::start(&dir, args.base_port).await?,
            "commit" => measure::commit(&dir, args.base_port, args.encrypt).await?,
            "lag" => measure::lag(&dir, args.base_port).await?,
            "path" => path::measure(&dir).await?,
            "ship" => measure::ship(&dir, args.base_port, args.log_mib / 4).await?,
            "switchover" => roles::switchover(&dir, args.base_port, args.moves).await?,
            "return" => returning::measure(&dir, args.base_port, args.tail_mib).await?,
            "automatic" => roles::automatic(&dir, args.base_port, args.rounds).await?,
            "failover" => roles::failover(&dir, args.base_port, args.rounds).await?,
            "volume" => {
                let options = volume::VolumeOptions {
                    window: Duration::from_secs(args.window),
                    rounds: args.rounds,
                    rebuild_mib: args.rebuild_mib,
                    history: args.history.clone(),
                };
                volume::measure(&dir, args.base_port, &options).await?
            }
            "history" => {
                let of = if args.history.is_empty() { &[1_000_000, 10_000_000][..] } else { &args.history };
                volume::restarts(&dir, args.base_port, of).await?
            }
            _ => measure::restart(&dir, args.base_port, args.log_mib).await?,
        };
        if !args.json {
            for f in &found {
                println!("{:<34} {:>10} {:<9} {}", f.name, number(f.value), f.unit, f.note);
            }
        }
        figures.extend(found);
        let _ = std::fs::remove_dir_all(&dir);
    }
    let _ = std::fs::remove_dir(&args.dir);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures).expect("BUG: plain data becomes JSON"));
    } else {
        let rows = figures.iter().map(|f| vec![f.name.clone(), format!("{} {}", number(f.value), f.unit), f.target.to_owned()]).collect();
        println!("\n{}", text::table(&["FIGURE", "MEASURED", "TARGET"], &[1], rows));
    }
    Ok(())
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
