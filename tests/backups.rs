//! All six copies of the primary are put back from an old backup: the region itself cannot tell, the others can.

mod common;

use common::{Cluster, Region, ensure, parhelion, run, text, until};
use std::path::Path;

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn copies(region: &Region) -> std::path::PathBuf {
    region.data_dir.join("copies")
}

#[test]
fn a_primary_whose_six_copies_are_older_than_what_others_have_halts_until_an_operator_decides() {
    let mut cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (old, new, third) = (cluster.primary().clone(), cluster.secondaries()[0].clone(), cluster.secondaries()[1].clone());
    ready.must(&old.writer, "create table t (id integer primary key); insert into t values (1)");
    cluster.until_whole();
    cluster.kill_region(&old.name);
    let kept = old.data_dir.join("kept");
    copy_all(&copies(&old), &kept);
    cluster.start_region(&old.name);
    until("it writes", || ready.sql(&old.writer, "insert into t values (2), (3)").map(drop));
    for region in [&new, &third] {
        until("it is there", || ready.sql(&region.reader, "select count(*) from t").and_then(|n| ensure(n == "3", n)));
    }

    cluster.kill_region(&old.name);
    std::fs::remove_dir_all(copies(&old)).unwrap();
    copy_all(&kept, &copies(&old));
    cluster.start_region(&old.name);
    let row = until("it says that log is lost", || {
        let row = cluster.row(&old.name, &old.name)?;
        ensure(row["reason"].as_str().is_some_and(|r| r.contains("have lost log that was durable")), &row).map(|()| row)
    });
    let reason = row["reason"].as_str().unwrap();
    assert!(
        row["state"] == "fenced" && reason.contains("what can be proven ends at seq") && reason.contains("parhelion failover --to"),
        "{row}"
    );
    let refused = ready.sql(&old.writer, "insert into t values (4)").unwrap_err();
    assert!(!refused.is_empty());
    let events = cluster.events(&old.name).unwrap();
    assert!(events.iter().any(|e| e["kind"] == "log_lost"), "{events:?}");

    // A region that has more takes over; the old primary follows by itself, and nothing is lost.
    until("the other region takes over", || {
        let failover = ["failover", "--to", &new.name, "--allow-data-loss", "--config"];
        let output = run(parhelion().args(failover).arg(&new.config), "");
        ensure(output.status.success(), text(&output.stderr))
    });
    until("it writes there", || ready.sql(&new.writer, "insert into t values (5)").map(drop));
    for region in &ready.regions {
        until("all of it is everywhere", || ready.sql(&region.reader, "select count(*) from t").and_then(|n| ensure(n == "4", n)));
    }
    let row = cluster.row(&old.name, &old.name).unwrap();
    assert!(row["role"] == "secondary" && row["reason"].is_null(), "{row}");
}
