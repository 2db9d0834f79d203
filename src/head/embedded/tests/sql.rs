use super::*;
use crate::head::sql::{Column, TxMode, TxState};

#[tokio::test]
async fn a_table_is_made_filled_and_read_with_parameters() {
    let region = Region::primary(settings());
    let mut s = region.writer();
    run(&mut s, "CREATE TABLE t(id integer primary key, name text not null, score double precision)").await.unwrap();
    assert_eq!(run(&mut s, "INSERT INTO t(name, score) VALUES ('a', 1.5), ('b', 2.5)").await.unwrap(), 2);
    let inserted = rows_with(
        &mut s,
        "INSERT INTO t(name, score) VALUES ($1, $2::double) RETURNING id, name",
        vec![Value::Text("c".to_string()), Value::Real(3.5)],
    )
    .await
    .unwrap();
    assert_eq!(inserted, vec![vec![Value::Integer(3), Value::Text("c".to_string())]]);
    let found =
        rows_with(&mut s, "SELECT name FROM t WHERE score > $2 AND id <> $1", vec![Value::Integer(2), Value::Real(1.0)]).await.unwrap();
    assert_eq!(found, vec![vec![Value::Text("a".to_string())], vec![Value::Text("c".to_string())]]);
    assert_eq!(run(&mut s, "UPDATE t SET score = 0").await.unwrap(), 3);
    assert_eq!(run(&mut s, "CREATE INDEX i ON t(name)").await.unwrap(), 0, "DDL changes no rows");
    assert_eq!(run(&mut s, "-- nothing").await.unwrap(), 0);
    assert!(s.last_commit_lsn().is_some_and(|lsn| lsn <= region.engine.visible()));
    assert_eq!(text(&mut s, "PRAGMA integrity_check").await, "ok");

    let many = rows(&mut s, "SELECT value, 'x' FROM generate_series(1, 5000)").await.unwrap();
    assert_eq!((many.len(), &many[4999][0]), (5000, &Value::Integer(5000)));
}

#[tokio::test]
async fn describing_tells_columns_parameters_and_whether_it_writes() {
    let region = Region::primary(settings());
    let mut s = region.writer();
    run(&mut s, "CREATE TABLE t(id bigint primary key, at timestamptz)").await.unwrap();
    let d = s.describe("SELECT id, at, count(*) AS n FROM t WHERE id = $2 OR id = ?1").await.unwrap();
    let column = |name: &str, ty: Option<&str>| Column { name: name.to_string(), declared_type: ty.map(str::to_string) };
    assert_eq!(d.columns[..], [column("id", Some("bigint")), column("at", Some("timestamptz")), column("n", None)]);
    assert_eq!((d.parameters, d.read_only), (2, true));
    let d = s.describe("INSERT INTO t VALUES ($1, $2::timestamptz) RETURNING id").await.unwrap();
    assert_eq!((d.parameters, d.read_only, d.columns.len()), (2, false, 1));
    assert_eq!(s.describe("SELECT * FROM missing").await.unwrap_err().code, "42P01");

    s.begin(TxMode::default()).await.unwrap();
    run(&mut s, "CREATE TABLE mine(x int)").await.unwrap();
    assert_eq!(s.describe("SELECT x FROM mine").await.unwrap().columns.len(), 1, "a transaction sees its own tables");
    assert_eq!(region.writer().describe("SELECT x FROM mine").await.unwrap_err().code, "42P01");
    s.rollback().await.unwrap();
}

#[tokio::test]
async fn errors_carry_their_sqlstate() {
    let region = Region::primary(settings());
    let mut s = region.writer();
    for sql in [
        "CREATE TABLE t(id integer primary key, u text unique, n text not null, c int check (c > 0))",
        "CREATE TABLE child(t integer references t(id))",
        "INSERT INTO t VALUES (1, 'u', 'n', 1)",
    ] {
        run(&mut s, sql).await.unwrap();
    }
    // one line per case: statement, SQLSTATE
    let cases = [
        ("INSERT INTO t VALUES (1, 'v', 'n', 1)", "23505"),
        ("INSERT INTO t VALUES (2, 'u', 'n', 1)", "23505"),
        ("INSERT INTO t VALUES (2, 'v', NULL, 1)", "23502"),
        ("INSERT INTO t VALUES (2, 'v', 'n', 0)", "23514"),
        ("INSERT INTO child VALUES (77)", "23503"),
        ("SELECT * FROM missing", "42P01"),
        ("INSERT INTO missing VALUES (1)", "42P01"),
        ("SELECT missing FROM t", "42703"),
        ("SELECT \"missing\" FROM t", "42703"),
        ("INSERT INTO t(missing) VALUES (1)", "42703"),
        ("SELECT missing(1)", "42883"),
        ("SELECT version(1, 2)", "42883"),
        ("SELEC 1", "42601"),
        ("SELECT (", "42601"),
        ("SELECT 1; SELECT 2", "42601"),
        ("INSERT INTO t VALUES (1)", "42601"),
        ("CREATE TABLE t(x)", "42P07"),
        ("INSERT INTO t VALUES ('x', 'v', 'n', 1)", "42804"),
        ("SELECT $1", "08P01"),
        ("SELECT :name", "42P02"),
        ("SELECT zeroblob(1000000000)", "54000"),
        ("SELECT abs(-9223372036854775808)", "22003"),
    ];
    for (sql, want) in cases {
        assert_eq!(code(&mut s, sql).await, want, "{sql}");
        assert_eq!(s.tx(), TxState::Idle);
    }
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn clients_find_the_functions_they_expect() {
    let region = Region::primary(settings());
    let mut s = region.writer();
    assert!(text(&mut s, "SELECT version()").await.contains("SQLite"));
    assert_eq!(text(&mut s, "SELECT current_database() || '.' || current_schema()").await, "parhelion.public");
    assert_eq!(number(&mut s, "SELECT pg_backend_pid()").await, i64::from(s.id()));
    assert_eq!(number(&mut s, "SELECT pg_is_in_recovery()").await, 0);
    assert_eq!(number(&mut region.reader(), "SELECT pg_is_in_recovery()").await, 1);
    assert!(text(&mut s, "SELECT now()").await.ends_with("+00"));
    assert_eq!(text(&mut s, "SELECT gen_random_uuid()").await.len(), 36);
    assert_eq!(text(&mut s, "SELECT aurora_db_instance_identifier()").await, "local-1");
    run(&mut s, "CREATE TABLE t(id text default (gen_random_uuid()), at text default (now()), n int)").await.unwrap();
    run(&mut s, "INSERT INTO t(n) VALUES (1)").await.unwrap();
    assert_eq!(number(&mut s, "SELECT length(id) FROM t").await, 36);
    let status = rows(&mut s, "SELECT * FROM aurora_global_db_status() ORDER BY aws_region").await.unwrap();
    assert_eq!((status.len(), status[0].len(), &status[0][3]), (2, 7, &Value::Integer(40)));
    let instances = rows(&mut s, "SELECT session_id, visibility_lag_in_msec FROM aurora_global_db_instance_status()").await.unwrap();
    assert_eq!(instances, vec![vec![Value::Text("MASTER_SESSION_ID".to_string()), Value::Integer(-1)]]);
    assert_eq!(rows(&mut s, "SELECT * FROM aurora_global_db_instance_status()").await.unwrap()[0].len(), 9);
}

#[tokio::test]
async fn a_running_statement_is_cancelled_on_a_reader_and_on_the_writer() {
    let region = Region::primary(settings());
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    for writing in [false, true] {
        let mut s = region.writer();
        if writing {
            s.begin(TxMode::default()).await.unwrap();
        }
        let canceller = s.canceller();
        let running = tokio::spawn(async move { (code(&mut s, endless).await, s) });
        while !running.is_finished() {
            canceller.cancel();
            tokio::task::yield_now().await;
        }
        let (code, mut s) = running.await.unwrap();
        assert_eq!(code, "57014");
        s.rollback().await.unwrap();
        canceller.cancel();
        assert_eq!(number(&mut s, "SELECT 1").await, 1, "cancelling is for one statement");
    }
    // Also when the first rows have gone out already.
    let mut s = region.writer();
    let Outcome::Rows { mut rows, .. } = s.execute("SELECT value FROM generate_series(1, 100000000)", Vec::new()).await.unwrap() else {
        panic!("rows")
    };
    rows.recv().await.unwrap().unwrap();
    s.canceller().cancel();
    let error = loop {
        if let Err(error) = rows.recv().await.expect("an error comes before the end") {
            break error;
        }
    };
    assert_eq!(error.code, "57014");
}

#[tokio::test]
async fn a_client_that_takes_its_rows_slowly_does_not_stop_the_others() {
    let region = Region::primary(settings());
    let mut slow = Vec::new();
    for _ in 0..6 {
        let mut s = region.writer();
        let outcome = s.execute("SELECT value FROM generate_series(1, 100000)", Vec::new()).await.unwrap();
        slow.push((s, outcome));
    }
    assert_eq!(number(&mut region.writer(), "SELECT 42").await, 42);
    for (_, outcome) in &mut slow {
        let Outcome::Rows { rows, .. } = outcome else { panic!("rows") };
        let mut count = 0;
        while let Some(batch) = rows.recv().await {
            count += batch.unwrap().len();
        }
        assert_eq!(count, 100_000);
    }
}
