//! The way back of an old primary that wrote on alone: how long it takes from its start until it is a caught-up secondary and what it lost is
//! counted.
//!
//! It is cut off, writes as much as was asked for while it still has its lease, and dies. Another region is promoted; then it is started.

use super::Figure;
use super::cluster::{Cluster, failed, sql};
use super::measure::ms;
use crate::io::clock;
use crate::ops::failure::Failure;
use std::path::Path;
use std::time::Duration;

/// The lease of 6 s, less what the promise of it costs.
const WITHIN: Duration = Duration::from_millis(5500);
const ROWS_PER_MIB: u64 = 16;

pub async fn measure(dir: &Path, base_port: u16, tail_mib: u64) -> Result<Vec<Figure>, Failure> {
    let mut cluster = Cluster::start(dir, base_port, 3, "none").await?;
    cluster.netem("*", "*", &["delay=40ms"]).await?;
    let client = cluster.connect(0, "writer").await?;
    client.batch_execute("create table moved (id integer primary key, what blob)").await.map_err(sql)?;
    client.batch_execute("insert into moved values (0, 'kept')").await.map_err(sql)?;
    let kept = cluster.lsn(0, "durable_lsn").await?;
    cluster.until(1, "the secondary has it", |r| r["durable_lsn"].as_u64() >= Some(kept)).await?;
    // Its control links go on: only what it writes reaches nobody. Each of them is full.
    let name = cluster.text(0, "name");
    cluster.netem(&name, "*", &["blackhole=on"]).await?;
    let began = clock::now();
    let (mut mib, mut commits) = (0, 0_u64);
    while mib < tail_mib && clock::now().since(began) < WITHIN {
        let (from, to) = (1 + mib * ROWS_PER_MIB, (mib + 1) * ROWS_PER_MIB);
        let statement =
            format!("insert into moved select value, randomblob({}) from generate_series({from}, {to})", (1 << 20) / ROWS_PER_MIB);
        if client.batch_execute(&statement).await.is_err() {
            break;
        }
        (mib, commits) = (mib + 1, commits + 1);
    }
    let tail = cluster.lsn(0, "durable_lsn").await?.saturating_sub(kept);
    cluster.kill(0)?;
    cluster.netem(&name, "*", &["blackhole=off"]).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    cluster.command(&["failover", "--to", &cluster.text(1, "name"), "--allow-data-loss", "--config", &cluster.text(1, "config")]).await?;
    let started = clock::now();
    cluster.restart(0)?;
    let follows = cluster.until(0, "the old primary follows", |r| {
        r["role"] == "secondary" && ["streaming", "idle"].contains(&r["state"].as_str().unwrap_or_default())
    });
    let caught_up = ms(follows.await?.since(started));
    let deadline = started + Duration::from_secs(120);
    while cluster.json(1, &["status"]).await?["failovers"][0]["complete"] != true {
        if clock::now() > deadline {
            return Err(failed("what was lost is not counted two minutes after the old primary came back"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counted = ms(clock::now().since(started));
    let lost = cluster.json(1, &["status"]).await?["failovers"][0]["lost_commits"].as_u64();
    let events = cluster.command(&["events", "--json", "--config", &cluster.text(0, "config")]).await?;
    // It went back by what it has, and got no pages from anybody.
    let rewound = events.contains("\"rewound\"") && !events.contains("\"seeded_anew\"");
    cluster.stop().await;
    if mib < tail_mib / 2 {
        return Err(failed(format!(
            "only {mib} MiB were written within the lease; this machine's disk is too slow for a tail of {tail_mib} MiB"
        )));
    }
    #[expect(clippy::cast_precision_loss, reason = "MiB for people")]
    let tail_mib = tail as f64 / f64::from(1 << 20);
    if lost != Some(commits) {
        return Err(failed(format!("{commits} commits were acknowledged to nobody's use, and {lost:?} were counted as lost")));
    }
    if !rewound {
        return Err(failed("the old primary was copied anew instead of going back: it says no `rewound` among its events"));
    }
    let note = format!("{commits} commits that nobody else had, counted; rewound, no full copy");
    Ok(vec![
        Figure::new("return_tail_mib", tail_mib, "MiB", "100", note),
        Figure::new("return_caught_up_ms", caught_up, "ms", "under 30000", "from its start to following the new primary"),
        Figure::new("return_counted_ms", counted, "ms", "", "until the failover's record is exact, everywhere"),
    ])
}
