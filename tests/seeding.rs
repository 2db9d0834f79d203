//! A secondary that is seeded over a bad line: what it has it keeps, and it says how far it is.

mod common;

use common::{Cluster, Region, ensure, http_get, metric, until};
use serde_json::Value;

const CONTENT: &str = "select count(*), sum(id), sum(length(v)) from t";

/// A cluster whose secondary is empty and gets its pages over a thin line; in the middle of that, more than a quarter of them are there.
fn in_the_middle_of_a_seed() -> (Cluster, Region, Region, Value) {
    let mut cluster = Cluster::start(2, "none");
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    cluster.ready.must(&primary.writer, "create table t (id integer primary key, v blob)");
    let insert = |from: u32| {
        let one = |i: u32| format!("insert into t values ({i}, randomblob(200000));\n");
        cluster.ready.must(&primary.writer, &(from..from + 100).map(one).collect::<String>());
    };
    insert(1);
    cluster.kill_region(&second.name);
    std::fs::remove_dir_all(&second.data_dir).unwrap();
    cluster.netem(&["set", &primary.name, &second.name, "rate=24mbit"]);
    cluster.start_region(&second.name);
    let far = until("a part of the pages is there", || {
        let far = cluster.row(&primary.name, &second.name)?["catching_up"].clone();
        let part = far["pages_done"].as_u64().unwrap_or(0) * 4 > far["pages_total"].as_u64().unwrap_or(u64::MAX);
        ensure(far["kind"] == "seed" && part && far["time_left_ms"].is_u64() && far["bytes_per_s"].is_u64(), &far)?;
        Ok(far)
    });
    (cluster, primary, second, far)
}

fn pages(far: &Value) -> u64 {
    far["pages_done"].as_u64().unwrap_or_default()
}

fn kinds(cluster: &Cluster, region: &Region, kind: &str) -> usize {
    let events = cluster.events(&region.name).unwrap_or_default();
    events.iter().filter(|e| e["kind"] == kind && e["region"] == region.name.as_str()).count()
}

/// From now on the pages that are there only become more, until the secondary has everything.
fn until_it_has_everything(cluster: &Cluster, primary: &Region, second: &Region, least: u64) {
    let mut least = least;
    let mut resumed = false;
    until("the seed goes on to its end", || {
        let far = cluster.row(&primary.name, &second.name)?["catching_up"].clone();
        if far["kind"] == "seed" && far["pages_total"].as_u64().unwrap_or(0) > 0 {
            assert!(pages(&far) >= least, "{far} after {least}");
            least = pages(&far);
            resumed |= far["resumed"] == 1;
        }
        ensure(kinds(cluster, primary, "seeding_resumed") > 0 && kinds(cluster, second, "seeding_done") > 0, far)
    });
    assert!(resumed, "it was seen to go on");
    let all = cluster.ready.must(&primary.writer, CONTENT);
    until("the secondary has everything", || cluster.ready.sql(&second.reader, CONTENT).and_then(|got| ensure(got == all, got)));
    cluster.netem(&["set", &primary.name, &second.name, "none", "--both"]);
    cluster.until_whole();
    assert_eq!(kinds(cluster, second, "seeding_began"), 1, "it began once");
}

#[test]
fn a_link_that_is_lost_in_the_middle_of_a_seed_costs_no_page_that_is_there() {
    let (cluster, primary, second, far) = in_the_middle_of_a_seed();
    let page = || http_get(&primary.http, "/metrics").map(|(_, page)| page).unwrap();
    let sent = |page: &str| metric(page, &format!("parhelion_secondary_seed_pages_sent{{region=\"{}\"}}", second.name));
    let shown = page();
    for name in ["bytes_left", "bytes_per_second", "left_milliseconds", "pages", "pages_total"] {
        let name = format!("parhelion_secondary_catch_up_{name}{{region=\"{}\"}}", second.name);
        assert!(metric(&shown, &name).is_some(), "{name} is missing: {shown}");
    }
    let status = cluster.verb(&primary.name, &["status"]).unwrap();
    assert!(status.contains("being seeded: ") && status.contains(" left"), "{status}");

    let lost = kinds(&cluster, &primary, "secondary_disconnected");
    cluster.netem(&["set", &primary.name, &second.name, "blackhole=on", "--both"]);
    until("the connection is given up", || ensure(kinds(&cluster, &primary, "secondary_disconnected") > lost, "it is not"));
    cluster.ready.must(&primary.writer, "insert into t values (1000, randomblob(1000))");
    let own = cluster.row(&second.name, &second.name).unwrap()["catching_up"].clone();
    assert!(pages(&own) >= pages(&far), "it still says what it has: {own} after {far}");
    cluster.netem(&["set", &primary.name, &second.name, "blackhole=off", "--both"]);
    until_it_has_everything(&cluster, &primary, &second, pages(&far));

    let (sent, total) = (sent(&page()).unwrap(), far["pages_total"].as_f64().unwrap());
    assert!(sent < 2.0 * total, "{sent} pages were sent of {total}");
}

#[test]
fn a_primary_that_restarts_in_the_middle_of_a_seed_goes_on_with_it() {
    let (mut cluster, primary, second, far) = in_the_middle_of_a_seed();
    cluster.kill_region(&primary.name);
    cluster.start_region(&primary.name);
    until("the primary writes again", || cluster.ready.sql(&primary.writer, "insert into t values (1000, randomblob(1000))"));
    until_it_has_everything(&cluster, &primary, &second, pages(&far));
}
