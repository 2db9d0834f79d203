//! The role comes and goes: writers that close and open again, drains, leases and fences.

use super::*;
use crate::base::Instant;
use crate::head::WriteGate;
use crate::head::embedded::Drained;
use crate::head::sql::{TxMode, TxState};
use crate::io::clock;
use std::time::Duration;
use tokio::sync::oneshot;

const LONG: Duration = Duration::from_secs(60);

fn named(region: &str) -> Region {
    Region::empty(EngineSettings { region: region.to_string(), idle_in_transaction_max: LONG, ..settings() })
}

async fn with_table() -> Region {
    let region = named("us-east");
    region.open(1);
    run(&mut region.writer(), "CREATE TABLE t(id integer primary key, n integer)").await.unwrap();
    region
}

/// The frames that `to` does not have yet.
fn ship(from: &Region, to: &Region) {
    let log = from.volume.log();
    let have = to.volume.log().len();
    to.volume.settle(&log[have..]);
}

fn drain(region: &Region, until: Instant) -> oneshot::Receiver<Drained> {
    let (tell, told) = oneshot::channel();
    region.engine.drain(until, move |drained| {
        let _ = tell.send(drained);
    });
    told
}

async fn refused_elsewhere(session: &mut Session, sql: &str) -> SqlError {
    let error = rows(session, sql).await.unwrap_err();
    assert!(error.elsewhere && error.code == "57P03", "{error:?}");
    error
}

#[tokio::test]
async fn the_role_goes_there_and_back_many_times_and_every_state_is_the_same_on_both_sides() {
    let (east, west) = (named("us-east"), named("eu-west"));
    west.engine.reset(LogEnd::EMPTY);
    let (mut e, mut w) = (east.engine.writer_session(), west.engine.writer_session());
    let (mut er, mut wr) = (east.reader(), west.reader());
    for turn in 1..=12_u64 {
        let east_leads = turn % 2 == 1;
        let (lead, follow) = if east_leads { (&east, &west) } else { (&west, &east) };
        lead.open_as(turn, turn * 10);
        let (s, other) = if east_leads { (&mut e, &mut w) } else { (&mut w, &mut e) };
        refused_elsewhere(other, "SELECT 1").await;
        refused_elsewhere(other, &format!("CREATE TABLE no{turn}(a)")).await;
        // The schema changes too, and pages that both sides have in memory.
        run(s, &format!("CREATE TABLE t{turn}(id integer primary key, n)")).await.unwrap();
        for table in 1..=turn {
            run(s, &format!("INSERT INTO t{table}(n) SELECT value FROM generate_series(1, {})", 50 * turn)).await.unwrap();
        }
        s.begin(TxMode::default()).await.unwrap();
        run(s, &format!("UPDATE t1 SET n = n + {turn}")).await.unwrap();
        assert!(s.commit().await.unwrap());
        if turn % 3 == 0 {
            run(s, &format!("DROP TABLE t{}", turn - 1)).await.unwrap();
            run(s, &format!("CREATE TABLE t{}(n, other text)", turn - 1)).await.unwrap();
        }
        // A reader follows while the writer is open, and reads what it has in memory.
        ship(lead, follow);
        assert_eq!(dump(&mut er).await.unwrap(), dump(&mut wr).await.unwrap(), "turn {turn}");
        run(s, &format!("UPDATE t{turn} SET n = 7 WHERE id % 3 = 0")).await.unwrap();
        // A transaction is open when the role goes.
        s.begin(TxMode::default()).await.unwrap();
        run(s, "DELETE FROM t1").await.unwrap();
        lead.engine.close_writer(format!("handed over in turn {turn}"));
        let error = s.commit().await.unwrap_err();
        assert!(error.code == "57P01" && !error.elsewhere && s.tx() == TxState::Idle, "{error:?}");
        ship(lead, follow);
        assert_eq!(dump(&mut er).await.unwrap(), dump(&mut wr).await.unwrap(), "turn {turn}");
    }
    east.open_as(13, 130);
    e.begin(TxMode::default()).await.unwrap();
    assert_eq!(text(&mut e, "PRAGMA integrity_check").await, "ok");
    assert_eq!(number(&mut e, "SELECT count(*) FROM t1").await, (1..=12).map(|turn| 50 * turn).sum::<i64>());
    e.commit().await.unwrap();
}

/// The old writer's thread may be in the middle of a statement when others' frames arrive: it must leave nothing in the pool.
#[tokio::test]
async fn a_writers_thread_that_is_still_at_work_spoils_nothing() {
    for _ in 0..5 {
        let (east, west) = (with_table().await, named("eu-west"));
        run(&mut east.writer(), "INSERT INTO t SELECT value, value FROM generate_series(1, 30000)").await.unwrap();
        ship(&east, &west);
        let mut s = east.engine.writer_session();
        let running = tokio::spawn(async move { rows(&mut s, "UPDATE t SET n = n + 1").await.map(|_| ()) });
        until(|| east.engine.stats().statements > 2).await;
        east.engine.close_writer("handed over".to_string());
        // What was handed over before may still become durable.
        until(|| east.volume.pending() == 0 && east.engine.visible() == east.volume.end().end_lsn).await;
        ship(&east, &west);
        west.open_as(2, 2);
        run(&mut west.writer(), "UPDATE t SET n = n + 100").await.unwrap();
        ship(&west, &east);
        if let Err(error) = running.await.unwrap() {
            assert!(error.elsewhere || error.code == "08007", "{error:?}");
        }
        assert_eq!(dump(&mut east.reader()).await.unwrap(), dump(&mut west.reader()).await.unwrap());
    }
}

#[tokio::test]
async fn another_history_under_the_same_schema_number_is_read_with_its_own_schema() {
    let (east, west) = (with_table().await, named("eu-west"));
    ship(&east, &west);
    // The tail that is cut, and what takes its place, change the schema once each.
    let mut s = east.writer();
    run(&mut s, "CREATE TABLE lost(a, b, c)").await.unwrap();
    run(&mut s, "INSERT INTO lost VALUES (1, 2, 3)").await.unwrap();
    let mut reader = east.reader();
    assert_eq!(number(&mut reader, "SELECT c FROM lost").await, 3);
    assert_eq!(number(&mut east.reader(), "SELECT c FROM lost").await, 3);
    west.open_as(2, 2);
    run(&mut west.writer(), "CREATE TABLE kept(x)").await.unwrap();
    run(&mut west.writer(), "INSERT INTO kept VALUES (4)").await.unwrap();
    east.volume.replace(&west.volume.log());
    for _ in 0..4 {
        assert_eq!(number(&mut reader, "SELECT x FROM kept").await, 4);
        assert_eq!(code(&mut reader, "SELECT c FROM lost").await, "42P01");
    }
    refused_elsewhere(&mut east.engine.writer_session(), "SELECT 1").await;
    west.engine.close_writer("back".to_string());
    east.open_as(3, 3);
    run(&mut s, "INSERT INTO kept VALUES (5)").await.unwrap();
    assert_eq!(number(&mut s, "SELECT sum(x) FROM kept").await, 9);
}

#[tokio::test]
async fn a_commit_that_was_handed_over_and_not_durable_is_never_acknowledged() {
    let region = with_table().await;
    region.volume.hold();
    let mut s = region.engine.writer_session();
    let unknown = tokio::spawn(async move { run(&mut s, "INSERT INTO t VALUES (1, 1)").await });
    // It has seen what is not durable, and says something about it.
    let mut other = region.engine.writer_session();
    until(|| region.engine.stats().commits_waiting == 1).await;
    let duplicate = tokio::spawn(async move { run(&mut other, "INSERT INTO t VALUES (1, 2)").await });
    until(|| region.engine.stats().commits_waiting == 2).await;
    region.engine.close_writer("handed over".to_string());
    region.open(2);
    region.volume.go_on();
    let error = unknown.await.unwrap().unwrap_err();
    assert!(error.code == "08007" && !error.elsewhere, "{error:?}");
    let error = duplicate.await.unwrap().unwrap_err();
    assert!(error.elsewhere, "nothing was written, and what it collided with may be gone: {error:?}");
}

#[tokio::test]
async fn a_drain_lets_what_runs_end_and_what_comes_wait() {
    let region = with_table().await;
    let mut owner = region.engine.writer_session();
    owner.begin(TxMode::default()).await.unwrap();
    run(&mut owner, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    let mut drained = drain(&region, clock::now() + LONG);
    let mut late = region.engine.writer_session();
    let late = tokio::spawn(async move { run(&mut late, "INSERT INTO t VALUES (2, 2)").await });
    until(|| region.engine.stats().writer_queue == 1).await;
    assert_eq!(number(&mut region.engine.writer_session(), "SELECT count(*) FROM t").await, 0, "reads go on");
    run(&mut owner, "INSERT INTO t VALUES (3, 3)").await.unwrap();
    assert!(drained.try_recv().is_err());
    // Its commit is durable only later; until its answer is given, nothing is drained.
    region.volume.hold();
    let committing = tokio::spawn(async move { owner.commit().await.map(|_| owner) });
    until(|| region.engine.stats().commits_waiting == 1).await;
    assert!(drained.try_recv().is_err());
    region.volume.go_on();
    assert_eq!(drained.await.unwrap(), Drained { rolled_back: 0, unanswered: 0 });
    let mut owner = committing.await.unwrap().unwrap();
    assert!(!late.is_finished());
    region.engine.undrain();
    assert_eq!(late.await.unwrap().unwrap(), 1);
    assert_eq!(number(&mut owner, "SELECT sum(id) FROM t").await, 6);

    // Again, and this time the role goes: what waited has not begun.
    let drained = drain(&region, clock::now() + LONG);
    assert_eq!(drained.await.unwrap(), Drained { rolled_back: 0, unanswered: 0 });
    let waiting = tokio::spawn(async move { run(&mut owner, "INSERT INTO t VALUES (4, 4)").await });
    let mut opening = region.engine.writer_session();
    let opening = tokio::spawn(async move {
        opening.begin(TxMode::default()).await.unwrap();
        run(&mut opening, "INSERT INTO t VALUES (5, 5)").await
    });
    until(|| region.engine.stats().writer_queue == 2).await;
    region.engine.close_writer("handed over to eu-west".to_string());
    assert!(waiting.await.unwrap().unwrap_err().elsewhere && opening.await.unwrap().unwrap_err().elsewhere);
}

#[tokio::test]
async fn a_drain_rolls_back_at_its_deadline_what_does_not_end() {
    // A client that thinks.
    let region = with_table().await;
    let mut owner = region.engine.writer_session();
    owner.begin(TxMode::default()).await.unwrap();
    run(&mut owner, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    let drained = drain(&region, clock::now() + Duration::from_millis(20));
    assert_eq!(drained.await.unwrap(), Drained { rolled_back: 1, unanswered: 0 });
    let error = owner.commit().await.unwrap_err();
    assert_eq!((error.code, error.elsewhere), ("40001", false), "{error}");
    region.engine.undrain();

    // A statement that runs on and on: within a transaction, with a savepoint, and alone.
    let endless = "INSERT INTO t SELECT value, 0 FROM generate_series(10, 1000000000) WHERE value % 1000000000 = 11";
    for inside in [true, false] {
        let mut s = region.engine.writer_session();
        if inside {
            s.begin(TxMode::default()).await.unwrap();
            s.savepoint("a").await.unwrap();
        }
        let before = region.engine.stats().statements;
        let running = tokio::spawn(async move {
            let error = run(&mut s, endless).await.unwrap_err();
            (error, s)
        });
        until(|| region.engine.stats().statements > before).await;
        let drained = drain(&region, clock::now() + Duration::from_millis(20));
        let (error, mut s) = running.await.unwrap();
        assert_eq!((error.code, error.elsewhere), ("40001", !inside), "{error}");
        assert_eq!(drained.await.unwrap().rolled_back, 1);
        region.engine.undrain();
        if inside {
            assert_eq!(s.rollback_to("a").await.unwrap_err().code, "25P02", "as a whole");
            s.rollback().await.unwrap();
        }
    }
    assert_eq!(number(&mut region.engine.writer_session(), "SELECT count(*) FROM t").await, 0);
    // Called off before anything ended: nobody is told.
    let mut s = region.engine.writer_session();
    s.begin(TxMode::default()).await.unwrap();
    run(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    let drained = drain(&region, clock::now() + LONG);
    region.engine.undrain();
    assert!(drained.await.is_err());
    assert!(s.commit().await.unwrap());
}

#[tokio::test]
async fn behind_a_fence_or_a_lease_nothing_is_answered_at_the_writer_port() {
    let region = with_table().await;
    run(&mut region.writer(), "INSERT INTO t VALUES (1, 1)").await.unwrap();
    let fenced =
        WriteGate::Fenced { reason: "eu-west was promoted".to_string(), primary: Some(crate::base::RegionName::new("eu-west").unwrap()) };
    for by_lease in [false, true] {
        let shut = || if by_lease { region.engine.set_lease(clock::now()) } else { region.engine.set_gate(fenced.clone()) };
        let open = || {
            region.engine.set_lease(clock::now() + LONG);
            region.engine.set_gate(WriteGate::Open);
        };
        open();
        // Under way when it goes: a commit, a result half given, a transaction that has begun, one that has only said so.
        region.volume.hold();
        let mut s = region.engine.writer_session();
        let insert = format!("INSERT INTO t VALUES ({}, 1)", 2 + i64::from(by_lease));
        let commit = tokio::spawn(async move { run(&mut s, &insert).await });
        until(|| region.engine.stats().commits_waiting == 1).await;
        let mut half = region.engine.writer_session();
        let Outcome::Rows { rows: mut result, .. } =
            half.execute("SELECT value FROM generate_series(1, 100000)", Vec::new()).await.unwrap()
        else {
            panic!("rows")
        };
        assert!(result.recv().await.unwrap().is_ok());
        let mut unsent = region.engine.writer_session();
        run(&mut unsent, "SELECT 1").await.unwrap();
        let mut reading = region.engine.writer_session();
        reading.begin(TxMode { read_only: true }).await.unwrap();
        assert_eq!(number(&mut reading, "SELECT count(*) FROM t WHERE id = 1").await, 1);
        let mut fresh = region.engine.writer_session();
        fresh.begin(TxMode::default()).await.unwrap();

        shut();
        assert!(!by_lease || !region.engine.may_acknowledge());
        region.volume.go_on();
        let error = commit.await.unwrap().unwrap_err();
        assert_eq!((error.code, error.elsewhere), ("08007", false), "{error}");
        let error = result.recv().await.unwrap().unwrap_err();
        assert_eq!((error.code, error.elsewhere), ("40001", false), "{error}");
        assert!(result.recv().await.is_none());
        assert_eq!(unsent.may_answer().unwrap_err().code, "40001");
        let error = rows(&mut reading, "SELECT count(*) FROM t").await.unwrap_err();
        assert_eq!((error.code, error.elsewhere), ("57P01", false), "{error}");
        refused_elsewhere(&mut fresh, "INSERT INTO t VALUES (9, 9)").await;
        for sql in ["SELECT 1", "INSERT INTO t VALUES (9, 9)"] {
            let error = refused_elsewhere(&mut region.engine.writer_session(), sql).await;
            assert!(by_lease || (error.message.contains("promoted") && error.hint.as_ref().unwrap().contains("eu-west")), "{error:?}");
        }
        let error = region.engine.writer_session().describe("SELECT 1").await.unwrap_err();
        assert!(error.elsewhere);
        assert_eq!(number(&mut region.reader(), "SELECT count(*) FROM t WHERE id = 9").await, 0, "the reader port goes on");
        assert!(region.engine.serves_writer_port().is_err());

        // The same reign may get it back.
        open();
        assert!(region.engine.serves_writer_port().is_ok());
        assert_eq!(number(&mut region.engine.writer_session(), "SELECT count(*) FROM t").await, 2 + i64::from(by_lease));
    }
}

#[tokio::test]
async fn the_schema_has_a_number_that_statements_meet() {
    let region = with_table().await;
    let mut s = region.engine.writer_session();
    let first = region.engine.schema_version().unwrap();
    number(&mut s, "SELECT count(*) FROM t").await;
    assert_eq!(region.engine.schema_version(), Some(first));
    run(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    assert_eq!(region.engine.schema_version(), Some(first), "rows change no schema");
    run(&mut s, "CREATE TABLE u(a)").await.unwrap();
    assert_ne!(region.engine.schema_version(), Some(first), "known with the commit");
    region.engine.close_writer("handed over".to_string());
    assert_eq!(region.engine.schema_version(), None);
}
