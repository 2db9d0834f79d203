//! What clients meet: ports that reach whom they are for, SQL that reaches no files, and figures that say what is so.

mod common;

use common::sql::{environment, program};
use common::{Cluster, Region, ensure, http_get, metric, run, text, until};
use serde_json::Value;
use std::process::Command;

fn sqlstate(error: &tokio_postgres::Error) -> &str {
    error.as_db_error().map_or("no answer of the server's", |e| e.code().code())
}

#[test]
fn every_port_reaches_whom_it_is_for() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());

    // The secondary's writer port is the primary's writer, through the link.
    ready.must(&second.writer, "create table t (id integer primary key, v text)");
    ready.must(&second.writer, "insert into t values (1, 'through the link')");
    assert_eq!(ready.must(&second.writer, "select v from t"), "through the link");
    assert_eq!(ready.must(&primary.writer, "select v from t"), "through the link");
    let rows: String = (0..20_000).map(|i| format!("{i}\tcopied {i}\n")).collect();
    ready.must(&second.writer, &format!("create table big (id integer primary key, v text);\ncopy big from stdin;\n{rows}\\.\n"));
    let all: String = (0..20_000).map(|i| format!("{i}|copied {i}\n")).collect();
    assert!(ready.must(&second.writer, "select * from big order by id") == all.trim_end(), "20,000 rows there and back");
    until("the secondary reads it", || {
        let got = ready.sql(&second.reader, "select v from t; select count(*) from big")?;
        ensure(got == "through the link\n20000", got)
    });

    // Readers read, and say where to write.
    for address in [&second.reader, &second.instance()] {
        let error = ready.sql(address, "insert into t values (2, 'no')").unwrap_err();
        assert!(error.contains("25006") && error.contains(&primary.name), "{address}: {error}");
        assert_eq!(ready.must(address, "select pg_is_in_recovery() <> 0; show transaction_read_only"), "1\non");
    }
    assert!(ready.sql(&primary.reader, "insert into t values (2, 'no')").unwrap_err().contains("25006"));
    assert_eq!(ready.must(&primary.reader, "select v from t"), "through the link");
    ready.must(&primary.instance(), "insert into t values (3, 'on the instance')");
    assert_eq!(ready.must(&second.writer, "select count(*) from t"), "2");

    // A driver that is given several hosts finds the one it wants.
    if let Some(psql) = program("psql") {
        let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
        for (wanted, expected) in [("read-write", "off"), ("standby", "on"), ("primary", "off"), ("read-only", "on")] {
            let mut command = Command::new(&psql);
            environment(&mut command, &ready, &second.reader);
            command.env("PGHOST", "127.0.0.1,127.0.0.1").env("PGPORT", format!("{},{}", port(&second.reader), port(&primary.writer)));
            command.env("PGTARGETSESSIONATTRS", wanted).args(["-X", "-A", "-t", "-c", "show transaction_read_only"]);
            let output = run(&mut command, "");
            assert_eq!(text(&output.stdout).trim(), expected, "{wanted}: {}", text(&output.stderr));
        }
    }

    // Without the primary: the writer port says so in a sentence, reads go on.
    cluster.kill_region(&primary.name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let error = ready.connect(&second.writer).await.map(drop).unwrap_err();
        assert_eq!(sqlstate(&error), "57P03", "{error:?}");
    });
    let sentence = ready.sql(&second.writer, "select 1").unwrap_err();
    assert!(sentence.contains(&format!("the primary {}", primary.name)), "{sentence}");
    assert_eq!(ready.must(&second.reader, "select count(*) from t"), "2");
    let (code, body) = http_get(&second.http, "/healthz").unwrap();
    assert_eq!(code, 200, "{body}");
    cluster.start_region(&primary.name);
    until("the writer port works again", || ready.sql(&second.writer, "insert or replace into t values (4, 'back')").map(|_| ()));
}

const STATES: [&str; 8] = ["writable", "idle", "streaming", "catching_up", "stalled", "disconnected", "fenced", "starting"];

/// What the documented part of `status --json` promises, of a cluster that is well.
fn check_shape(status: &Value, cluster: &Cluster) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}: {status}"));
    if status["cluster"] != cluster.ready.cluster.as_str() || status["primary"] != cluster.primary().name.as_str() || status["epoch"] != 1 {
        return wrong("cluster, primary or epoch");
    }
    let rows = status["regions"].as_array().cloned().unwrap_or_default();
    if rows.iter().map(|r| r["name"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>() != cluster.names() {
        return wrong("the regions");
    }
    for row in &rows {
        let is_primary = row["name"] == cluster.primary().name.as_str();
        let lags = ["durability_lag_ms", "rpo_lag_ms", "visibility_lag_ms"];
        let fine = row["role"] == if is_primary { "primary" } else { "secondary" }
            && row["state"].as_str().is_some_and(|s| STATES.contains(&s) && (s == "writable") == is_primary)
            && row["durable_lsn"].is_u64()
            && row["visible_lsn"].is_u64()
            && lags.iter().all(|l| row[l].as_f64().is_some_and(|ms| ms >= 0.0))
            && row["lag_known"] == true
            && row["readers"].as_u64().is_some_and(|n| n >= 1);
        let copies = row["copies"].as_array().cloned().unwrap_or_default();
        let azs: Vec<_> = copies.iter().map(|c| c["az"].as_str().unwrap_or_default()).collect();
        let copies_fine = copies.iter().all(|c| c["state"] == "up" && c["durable_lsn"].is_u64());
        if !fine || azs != ["a", "a", "b", "b", "c", "c"] || !copies_fine {
            return wrong("a region");
        }
    }
    Ok(())
}

#[test]
fn figures_say_what_is_so_from_every_region() {
    let mut cluster = Cluster::start(3, "lan");
    let ready = cluster.ready.clone();
    let primary = cluster.primary().clone();
    let [second, third] = [0, 1].map(|i| cluster.secondaries()[i].clone());
    ready.must(&primary.writer, "create table t (id integer primary key); insert into t values (1), (2)");
    for name in cluster.names() {
        until("status", || {
            let status = cluster.status_of(&name)?;
            ensure(status["answered_by"] == name.as_str(), &status)?;
            check_shape(&status, &cluster)
        });
    }
    let whole = cluster.until_whole();
    let lsn = whole["regions"][0]["durable_lsn"].as_u64().unwrap();
    assert!(lsn > 0);
    until("nothing to do is told apart", || {
        let row = cluster.row(&third.name, &second.name)?;
        ensure(row["state"] == "idle", row)
    });

    // SQL, with the names that drivers know, from any region.
    for address in [&primary.writer, &primary.reader, &second.reader, &third.writer] {
        until("the status functions", || {
            let rows = ready.sql(
                address,
                "select aws_region, highest_lsn_written, durability_lag_in_msec, rpo_lag_in_msec, last_lag_calculation_time is not null, \
                 feedback_epoch is not null, feedback_xmin is not null from aurora_global_db_status()",
            )?;
            let rows: Vec<Vec<&str>> = rows.lines().map(|l| l.split('|').collect()).collect();
            ensure(rows.len() == 3 && rows[0][0] == primary.name && rows[0][2..4] == ["-1", "-1"], &rows)?;
            ensure(rows.iter().all(|r| r[1].parse() == Ok(lsn) && r[4] == "1" && r[5] == "1" && r[6] == "1"), &rows)?;
            ensure(rows[1..].iter().all(|r| r[2].parse::<i64>().is_ok_and(|ms| ms >= 0)), &rows)
        });
        until("the instances", || {
            let rows = ready.sql(
                address,
                "select server_id, session_id, aws_region, durable_lsn, highest_lsn_rcvd, visibility_lag_in_msec, \
                 feedback_epoch is not null, feedback_xmin is not null, oldest_read_view_lsn is not null from aurora_global_db_instance_status()",
            )?;
            let rows: Vec<Vec<&str>> = rows.lines().map(|l| l.split('|').collect()).collect();
            ensure(rows.len() == 3 && rows[0][1] == "MASTER_SESSION_ID" && rows[0][2] == primary.name && rows[0][5] == "-1", &rows)?;
            ensure(rows.iter().filter(|r| r[1] == "MASTER_SESSION_ID").count() == 1, &rows)?;
            ensure(rows.iter().all(|r| r[3].parse() == Ok(lsn) && r[4].parse() == Ok(lsn) && r[6..9] == ["1", "1", "1"]), &rows)?;
            ensure(rows[1..].iter().all(|r| r[5].parse::<i64>().is_ok_and(|ms| ms >= 0)), &rows)
        });
    }
    let columns = |function: &str| {
        let asked = format!("select group_concat(name, ' ') from pragma_table_xinfo('{function}') where hidden = 0");
        ready.must(&primary.writer, &asked)
    };
    assert_eq!(
        columns("aurora_global_db_status"),
        "aws_region highest_lsn_written durability_lag_in_msec rpo_lag_in_msec last_lag_calculation_time feedback_epoch feedback_xmin"
    );
    assert_eq!(
        columns("aurora_global_db_instance_status"),
        "server_id session_id aws_region durable_lsn highest_lsn_rcvd feedback_epoch feedback_xmin oldest_read_view_lsn visibility_lag_in_msec"
    );

    // HTTP, for load balancers and Prometheus.
    let code = |region: &Region, path: &str| http_get(&region.http, path).map(|(code, _)| code).unwrap();
    assert_eq!((code(&primary, "/healthz"), code(&primary, "/primary"), code(&primary, "/replica?max_lag=1us")), (200, 200, 200));
    assert_eq!((code(&second, "/healthz"), code(&second, "/primary"), code(&second, "/replica")), (200, 503, 200));
    until("a bound that is kept", || http_get(&second.http, "/replica?max_lag=20s").and_then(|a| ensure(a.0 == 200, a)));
    until("a bound that cannot be kept", || http_get(&second.http, "/replica?max_lag=1ns").and_then(|a| ensure(a.0 == 503, a)));
    for garbage in ["/replica?max_lag=soon", "/replica?max_lag=", "/replica?max_lag=-1s", "/replica?min_lag=1s", "/replica?max_lag=%ff"] {
        assert_eq!(code(&second, garbage), 400, "{garbage}");
    }
    for region in &ready.regions {
        let (code, page) = http_get(&region.http, "/metrics").unwrap();
        assert!(code == 200 && page.ends_with("# EOF\n"), "{page}");
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            let value = line.rsplit_once(' ').map(|(_, v)| v.parse::<f64>());
            assert!(line.starts_with("parhelion_") && matches!(value, Some(Ok(_))), "{line}");
        }
        assert_eq!(metric(&page, "parhelion_is_primary"), Some(f64::from(u8::from(region.name == primary.name))));
        assert_eq!(metric(&page, "parhelion_copy_up{copy=\"a1\",az=\"a\"}"), Some(1.0));
        match program("promtool") {
            Some(promtool) => {
                let output = run(Command::new(promtool).args(["check", "metrics"]), &page);
                assert!(output.status.success(), "{}", text(&output.stderr));
            }
            None => eprintln!("skipped: promtool is not installed"),
        }
    }

    // One that is gone is gone, and its lag is unknown: never 0, and never the last one.
    cluster.kill_region(&second.name);
    for asked in [&primary, &third] {
        until("the death is seen", || {
            let status = cluster.status_of(&asked.name)?;
            let row = common::row(&status, &second.name)?;
            let unknown = ["durability_lag_ms", "rpo_lag_ms", "visibility_lag_ms"].iter().all(|l| row[l].is_null());
            ensure(row["state"] == "disconnected" && unknown && row["lag_known"] == false && row["answered"] == false, &row)?;
            ensure(
                status["notes"].as_array().is_some_and(|n| n.iter().any(|n| n.as_str().unwrap_or_default().contains(&second.name))),
                status,
            )
        });
    }
    until("SQL says unknown, too", || {
        let asked = "select durability_lag_in_msec is null, rpo_lag_in_msec is null from aurora_global_db_status() where aws_region = ";
        let got = ready.sql(&primary.writer, &format!("{asked}'{}'", second.name))?;
        ensure(got == "1|1", got)
    });
    until("since when", || {
        let row = cluster.row(&primary.name, &second.name)?;
        ensure(row["disconnected_since"].is_u64() && row["lag_unknown_since"].is_u64(), row)
    });
    let lag = cluster.verb(&primary.name, &["lag"]).unwrap();
    assert!(lag.contains("disconnected") && lag.contains('?'), "{lag}");
    let check = cluster.verb(&primary.name, &["status", "--check"]).unwrap_err();
    assert!(check.contains("not healthy") && check.contains(&second.name), "{check}");

    // And without the primary: what a secondary shows is no longer known to be fresh.
    cluster.kill_region(&primary.name);
    until("a secondary alone", || {
        let row = cluster.row(&third.name, &third.name)?;
        ensure(row["state"] == "disconnected" && row["lag_known"] == false && row["visibility_lag_ms"].is_null(), row)
    });
    until("and load balancers are told", || http_get(&third.http, "/replica?max_lag=20s").and_then(|a| ensure(a.0 == 503, a)));
    assert_eq!(code(&third, "/replica"), 200, "whoever names no bound takes what there is");
    let page = http_get(&third.http, "/metrics").unwrap().1;
    assert_eq!(metric(&page, "parhelion_lag_known"), Some(0.0));
    assert!(!page.contains("\nparhelion_lag_visibility_milliseconds{"), "no figure rather than an old one: {page}");
}

#[test]
fn sql_reaches_no_files_and_pgbench_adds_up() {
    let cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v text); insert into t values (1, 'kept')");
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("out.db");
    for statement in [
        format!("attach '{}' as other", file.display()),
        format!("vacuum into '{}'", file.display()),
        "detach main".into(),
        "pragma journal_mode = wal".into(),
        "pragma journal_mode".into(),
        "pragma locking_mode = normal".into(),
        "pragma page_size = 8192".into(),
        "pragma writable_schema = on".into(),
        "pragma cache_size = -1".into(),
        "select * from pragma_journal_mode".into(),
        "select load_extension('x')".into(),
        format!("select writefile('{}', 'x')", file.display()),
        format!("create virtual table x using csv('{}')", file.display()),
        "create temp table x (a)".into(),
        format!("copy t to '{}'", file.display()),
        format!("copy t from '{}'", file.display()),
        "copy t from program 'true'".into(),
    ] {
        for address in [&primary.writer, &primary.reader, &second.reader, &second.writer] {
            let error = ready.sql(address, &statement).expect_err(&statement);
            // The last is that of a function or module which is not there at all.
            let denied = ["42501", "0A000", "42883", "42704", "25006"].iter().any(|code| error.contains(&format!(" {code}: ")));
            assert!(denied, "{statement} at {address}: {error}");
        }
    }
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "no file was made");
    assert_eq!(ready.must(&primary.writer, "select v from t; select integrity_check from pragma_integrity_check"), "kept\nok");

    let Some(pgbench) = program("pgbench") else { return eprintln!("skipped: pgbench is not installed") };
    ready.must(
        &primary.writer,
        "create table accounts (id integer primary key, balance integer not null);
         create table history (a integer, b integer, n integer);
         insert into accounts select value, 0 from generate_series(1, 100)",
    );
    let script = temp.path().join("move.sql");
    let lines = "\\set a random(1, 100)\n\\set b random(1, 100)\n\\set n random(1, 1000)\nbegin;\n\
                 update accounts set balance = balance - :n where id = :a;\nupdate accounts set balance = balance + :n where id = :b;\n\
                 select balance from accounts where id = :a;\ninsert into history (a, b, n) values (:a, :b, :n);\ncommit;\n";
    std::fs::write(&script, lines).unwrap();
    let mut done = 0;
    for (mode, address) in
        [("simple", &primary.writer), ("extended", &primary.writer), ("prepared", &primary.writer), ("prepared", &second.writer)]
    {
        let mut command = Command::new(&pgbench);
        environment(&mut command, &ready, address);
        command.args(["-n", "-c", "4", "-j", "2", "-t", "50", "-M", mode, "-f"]).arg(&script);
        let output = run(&mut command, "");
        let said = text(&output.stdout);
        assert!(output.status.success() && text(&output.stderr).lines().all(|l| !l.contains("error")), "{mode}: {}", text(&output.stderr));
        assert!(said.contains("transactions actually processed: 200/200") && said.contains("failed transactions: 0 "), "{mode}: {said}");
        done += 200;
        assert_eq!(ready.must(&primary.writer, "select count(*) from history; select sum(balance) from accounts"), format!("{done}\n0"));
    }
    let wrong = "select count(*) from accounts where balance <> (select coalesce(sum(case when b = id then n else 0 end), 0) \
                 - coalesce(sum(case when a = id then n else 0 end), 0) from history where a = id or b = id)";
    assert_eq!(ready.must(&primary.writer, wrong), "0", "every balance is the sum of its history");
    until("the secondary agrees", || {
        let got = ready.sql(&second.reader, &format!("select count(*) from history; {wrong}"))?;
        ensure(got == format!("{done}\n0"), got)
    });

    python(&cluster);
}

/// psycopg, where it is installed.
fn python(cluster: &Cluster) {
    let found = program("python3").filter(|p| run(Command::new(p).args(["-c", "import psycopg"]), "").status.success());
    let Some(python) = found else { return eprintln!("skipped: psycopg is not installed") };
    let script = "import psycopg\n\
                  with psycopg.connect('') as c:\n  c.execute('create table py (id integer primary key, v text)')\n  \
                  c.cursor().executemany('insert into py values (%s, %s)', [(i, f'v{i}') for i in range(100)])\n\
                  with psycopg.connect('') as c:\n  print(c.execute('select count(*), max(v) from py where id < %s', (50,)).fetchone())\n";
    let mut command = Command::new(python);
    environment(&mut command, &cluster.ready, &cluster.primary().writer);
    let output = run(command.args(["-c", script]), "");
    assert_eq!(text(&output.stdout).trim(), "(50, 'v9')", "{}", text(&output.stderr));
}
