use super::*;
use crate::head::WriteGate;
use crate::head::sql::{TxMode, TxState};
use std::time::Duration;

async fn with_table(settings: EngineSettings) -> Region {
    let region = Region::primary(settings);
    run(&mut region.writer(), "CREATE TABLE t(id integer primary key, n integer)").await.unwrap();
    region
}

#[tokio::test]
async fn an_answer_waits_for_durability_and_others_see_nothing_before() {
    let region = with_table(settings()).await;
    region.volume.hold();
    let mut s = region.writer();
    let writing = tokio::spawn(async move { run(&mut s, "INSERT INTO t VALUES (1, 1)").await.map(|_| s) });
    until(|| region.volume.pending() > 0 && region.engine.stats().commits_waiting == 1).await;
    assert!(!writing.is_finished());
    assert_eq!(number(&mut region.writer(), "SELECT count(*) FROM t").await, 0);
    // The writer does not wait: another commit goes on top, and a transaction that sees both waits with its answer.
    let mut other = region.writer();
    let second = tokio::spawn(async move {
        other.begin(TxMode::default()).await.unwrap();
        let seen = number(&mut other, "SELECT count(*) FROM t").await;
        run(&mut other, "INSERT INTO t VALUES (2, 2)").await.unwrap();
        (seen, other.commit().await)
    });
    until(|| region.engine.stats().commits_waiting == 2).await;
    region.volume.go_on();
    writing.await.unwrap().unwrap();
    assert_eq!(second.await.unwrap(), (1, Ok(true)));
    assert_eq!(number(&mut region.reader(), "SELECT count(*) FROM t").await, 2);
    assert_eq!(region.engine.stats().commits, 3);
}

#[tokio::test]
async fn a_commit_that_does_not_become_durable_has_an_unknown_outcome() {
    let region = with_table(EngineSettings { commit_wait_max: Duration::from_millis(50), ..settings() }).await;
    region.volume.hold();
    let mut s = region.writer();
    let error = rows(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap_err();
    assert_eq!(error.code, "40003", "{error}");
    region.engine.set_gate(WriteGate::Closed { reason: "3 of 6 copies answer".to_string() });
    let error = rows(&mut s, "INSERT INTO t VALUES (2, 1)").await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), ("58030", "writes are stopped: 3 of 6 copies answer. Reads go on"));
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 0, "reads go on");
    s.begin(TxMode::default()).await.unwrap();
    assert_eq!(code(&mut s, "SELECT count(*) FROM t").await, "58030", "on the writer it would see what is not durable");
    s.rollback().await.unwrap();
    region.volume.go_on();
    region.engine.set_gate(WriteGate::Open);
    run(&mut s, "INSERT INTO t VALUES (2, 1)").await.unwrap();
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 2, "it had happened after all");
}

#[tokio::test]
async fn a_gate_that_closes_in_a_transaction_refuses_the_commit_and_leaves_no_trace() {
    let region = with_table(settings()).await;
    let mut s = region.writer();
    s.begin(TxMode::default()).await.unwrap();
    run(&mut s, "INSERT INTO t SELECT value, value FROM generate_series(1, 5000)").await.unwrap();
    region.engine.set_gate(WriteGate::Closed { reason: "fenced".to_string() });
    assert_eq!(s.commit().await.unwrap_err().code, "58030");
    assert_eq!(s.tx(), TxState::Idle);
    region.engine.set_gate(WriteGate::Open);
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 0);
    run(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    s.begin(TxMode::default()).await.unwrap();
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 1, "the writer's own cache has forgotten it too");
    assert_eq!(text(&mut s, "PRAGMA integrity_check").await, "ok");
    s.commit().await.unwrap();
    assert_eq!(text(&mut s, "PRAGMA integrity_check").await, "ok");
}

#[tokio::test]
async fn rollback_and_savepoints_undo() {
    let region = with_table(settings()).await;
    let mut s = region.writer();
    s.begin(TxMode::default()).await.unwrap();
    run(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    s.rollback().await.unwrap();
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 0);

    s.begin(TxMode::default()).await.unwrap();
    s.savepoint("a").await.unwrap();
    run(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    s.savepoint("b").await.unwrap();
    assert_eq!(code(&mut s, "INSERT INTO t VALUES (1, 2)").await, "23505");
    assert_eq!((s.tx(), code(&mut s, "SELECT 1").await), (TxState::Failed, "25P02"));
    s.rollback_to("b").await.unwrap();
    assert_eq!(s.tx(), TxState::InTransaction);
    run(&mut s, "INSERT INTO t VALUES (2, 2)").await.unwrap();
    s.release("b").await.unwrap();
    assert_eq!(s.rollback_to("b").await.unwrap_err().code, "3B001");
    s.rollback_to("a").await.unwrap();
    run(&mut s, "INSERT INTO t VALUES (3, 3)").await.unwrap();
    assert!(s.commit().await.unwrap());
    assert_eq!(number(&mut s, "SELECT sum(id) FROM t").await, 3);
    assert_eq!(s.savepoint("x").await.unwrap_err().code, "25P01");

    // A failed transaction gives the writer free at once, and its COMMIT says that it rolled back.
    s.begin(TxMode::default()).await.unwrap();
    run(&mut s, "INSERT INTO t VALUES (4, 4)").await.unwrap();
    assert_eq!(code(&mut s, "INSERT INTO t VALUES (3, 3)").await, "23505");
    run(&mut region.writer(), "INSERT INTO t VALUES (5, 5)").await.unwrap();
    assert_eq!(s.commit().await, Ok(false));
    assert_eq!(number(&mut s, "SELECT sum(id) FROM t").await, 8);

    // A constraint that is only looked at by COMMIT.
    run(&mut s, "CREATE TABLE c(t integer references t(id) deferrable initially deferred)").await.unwrap();
    s.begin(TxMode::default()).await.unwrap();
    run(&mut s, "INSERT INTO c VALUES (99)").await.unwrap();
    assert_eq!(s.commit().await.unwrap_err().code, "23503");
    assert_eq!(number(&mut s, "SELECT count(*) FROM c").await, 0);
}

#[tokio::test]
async fn a_transaction_that_is_too_large_fails_whole_and_the_next_one_works() {
    let region = with_table(EngineSettings { transaction_bytes_max: 16 << 20, ..settings() }).await;
    let mut s = region.writer();
    let big = "INSERT INTO t SELECT NULL, zeroblob(1000) FROM generate_series(1, 40000)";
    for inside in [false, true] {
        if inside {
            s.begin(TxMode::default()).await.unwrap();
            s.savepoint("a").await.unwrap();
            run(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap();
        }
        let error = rows(&mut s, big).await.unwrap_err();
        assert_eq!(error.code, "54000", "{error}");
        if inside {
            assert_eq!(s.rollback_to("a").await.unwrap_err().code, "25P02", "SQLite rolled it back as a whole");
            s.rollback().await.unwrap();
        }
        assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 0);
    }
    // Larger than SQLite's cache, so it spills; and undone by a savepoint half-way.
    s.begin(TxMode::default()).await.unwrap();
    run(&mut s, "INSERT INTO t SELECT value, 1 FROM generate_series(1, 1000)").await.unwrap();
    s.savepoint("a").await.unwrap();
    run(&mut s, "INSERT INTO t SELECT NULL, zeroblob(1000) FROM generate_series(1, 12000)").await.unwrap();
    s.rollback_to("a").await.unwrap();
    s.commit().await.unwrap();
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 1000);
    assert_eq!(text(&mut s, "PRAGMA integrity_check").await, "ok");
    // A result that is too large undoes its statement.
    let region = with_table(EngineSettings { result_bytes_max: 10_000, ..settings() }).await;
    let mut s = region.writer();
    assert_eq!(code(&mut s, "INSERT INTO t SELECT value, 1 FROM generate_series(1, 1000) RETURNING id, n").await, "54000");
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 0);
}

#[tokio::test]
async fn a_client_that_thinks_too_long_loses_its_transaction_and_the_others_go_on() {
    let region = with_table(EngineSettings { idle_in_transaction_max: Duration::from_millis(50), ..settings() }).await;
    for by_commit in [false, true] {
        let mut s = region.writer();
        s.begin(TxMode::default()).await.unwrap();
        run(&mut s, "INSERT INTO t VALUES (1, 1)").await.unwrap();
        assert_eq!(run(&mut region.writer(), "INSERT INTO t VALUES (NULL, 2)").await.unwrap(), 1);
        if by_commit {
            assert_eq!(s.commit().await.unwrap_err().code, "25P03");
        } else {
            assert_eq!(code(&mut s, "SELECT 1").await, "25P03");
            assert_eq!(code(&mut s, "SELECT 1").await, "25P02");
            assert_eq!(s.commit().await, Ok(false));
        }
        assert_eq!(s.tx(), TxState::Idle);
        run(&mut region.writer(), "DELETE FROM t").await.unwrap();
    }
    // A session that is dropped gives the writer free, in its transaction and in the queue before it.
    let mut owner = region.writer();
    owner.begin(TxMode::default()).await.unwrap();
    run(&mut owner, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    drop(owner);
    run(&mut region.writer(), "INSERT INTO t VALUES (1, 3)").await.unwrap();
    assert_eq!(number(&mut region.writer(), "SELECT n FROM t").await, 3);
}

#[tokio::test]
async fn a_cancelled_statement_that_waits_for_the_writer_never_runs() {
    let region = with_table(EngineSettings { idle_in_transaction_max: Duration::from_secs(60), ..settings() }).await;
    let mut owner = region.writer();
    owner.begin(TxMode::default()).await.unwrap();
    run(&mut owner, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    let mut s = region.writer();
    let canceller = s.canceller();
    let waiting = tokio::spawn(async move { code(&mut s, "INSERT INTO t VALUES (2, 2)").await });
    until(|| region.engine.stats().writer_queue == 1).await;
    canceller.cancel();
    assert_eq!(waiting.await.unwrap(), "57014");
    owner.commit().await.unwrap();
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn losing_the_role_ends_transactions_and_tells_what_is_unknown() {
    let region = with_table(settings()).await;
    let mut owner = region.writer();
    owner.begin(TxMode::default()).await.unwrap();
    run(&mut owner, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    let mut queued = region.writer();
    let queued = tokio::spawn(async move { code(&mut queued, "INSERT INTO t VALUES (2, 2)").await });
    until(|| region.engine.stats().writer_queue == 1).await;
    region.engine.close_writer("switched over to eu-west".to_string());
    assert_eq!(queued.await.unwrap(), "57P01");
    let error = owner.commit().await.unwrap_err();
    assert_eq!(error.code, "57P01");
    assert!(error.message.contains("switched over to eu-west"), "{error}");
    assert_eq!(code(&mut owner, "INSERT INTO t VALUES (3, 3)").await, "25006");
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t").await, 0);

    // Back again; a commit that was on its way when the role went away a second time.
    region.open(2);
    run(&mut owner, "INSERT INTO t VALUES (4, 4)").await.unwrap();
    region.volume.hold();
    let mut s = region.writer();
    let unknown = tokio::spawn(async move { code(&mut s, "INSERT INTO t VALUES (5, 5)").await });
    until(|| region.engine.stats().commits_waiting == 1).await;
    region.engine.close_writer("fenced".to_string());
    assert_eq!(unknown.await.unwrap(), "08007");
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t").await, 1);
    region.volume.go_on();
    until(|| region.volume.pending() == 0 && region.engine.visible() == region.volume.end().end_lsn).await;
    assert_eq!(number(&mut owner, "SELECT count(*) FROM t").await, 2, "it became durable after all, and is seen");
}

#[tokio::test]
async fn a_snapshot_stays_while_the_writer_goes_on_and_ends_when_nobody_uses_it() {
    let region = with_table(EngineSettings { idle_snapshot_max: Duration::from_millis(20), ..settings() }).await;
    let mut w = region.writer();
    run(&mut w, "INSERT INTO t VALUES (1, 1)").await.unwrap();
    let mut s = region.reader();
    s.begin(TxMode::default()).await.unwrap();
    assert_eq!(number(&mut s, "SELECT sum(n) FROM t").await, 1);
    let pinned = region.engine.oldest_pin();
    run(&mut w, "UPDATE t SET n = 2").await.unwrap();
    assert_eq!(number(&mut s, "SELECT sum(n) FROM t").await, 1);
    assert_eq!(region.engine.oldest_pin(), pinned);
    assert_eq!(number(&mut w, "SELECT sum(n) FROM t").await, 2);
    until(|| {
        // Any progress of the log looks for snapshots that nobody uses.
        region.engine.advance(region.volume.end(), &[]);
        region.engine.oldest_pin() > pinned
    })
    .await;
    assert_eq!(code(&mut s, "SELECT sum(n) FROM t").await, "25P03");
    s.rollback().await.unwrap();
    assert_eq!(number(&mut s, "SELECT sum(n) FROM t").await, 2);
}

#[tokio::test]
async fn before_the_volume_is_recovered_nothing_is_served() {
    let region = Region::empty(settings());
    assert_eq!(code(&mut region.writer(), "SELECT 1").await, "57P03");
    assert_eq!(code(&mut region.writer(), "INSERT INTO t VALUES (1)").await, "57P03");
    region.engine.reset(LogEnd::EMPTY);
    assert_eq!(number(&mut region.writer(), "SELECT count(*) FROM sqlite_master").await, 0, "an empty volume is an empty database");
}
