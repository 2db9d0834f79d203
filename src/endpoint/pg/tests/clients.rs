//! PostgreSQL's own programs, where they are installed.

use super::engine::Engine;
use super::{Options, PASSWORD, Server};
use std::process::{Output, Stdio};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The program, or `None` (and a word on stderr) where it is not installed.
fn program(name: &str) -> Option<String> {
    let places = [format!("/usr/lib/postgresql/15/bin/{name}"), format!("/usr/bin/{name}"), format!("/usr/local/bin/{name}")];
    let found = places.into_iter().find(|p| std::path::Path::new(p).exists());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

async fn run(program: &str, server: &Server, args: &[&str], input: &str) -> Output {
    run_as(program, server, args, input, &[]).await
}

async fn run_as(program: &str, server: &Server, args: &[&str], input: &str, environment: &[(&str, &str)]) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", server.address.port().to_string())
        .env("PGUSER", "app")
        .env("PGPASSWORD", PASSWORD)
        .env("PGDATABASE", "parhelion")
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("reads");
    drop(stdin);
    child.wait_with_output().await.expect("ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn psql_creates_loads_queries_and_updates() {
    let Some(psql) = program("psql") else { return };
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("t.csv");
    std::fs::write(&csv, "id,name\n10,\"x,y\"\n11,\n").unwrap();
    let script = format!(
        "create table t (id integer primary key, name text);\n\
         insert into t values (1, 'one'), (2, null);\n\
         copy t from stdin;\n3\tthree\\ttabs\n4\t\\N\n\\.\n\
         \\copy t from '{}' with (format csv, header)\n\
         select * from t order by id;\n\
         update t set name = 'uno' where id = 1;\n\
         begin; delete from t;\nrollback;\n\
         select 1 \\; select 2;\n\
         \\copy (select id, name from t where id < 3 order by id) to stdout csv\n\
         create trigger tr after insert on t begin update t set name = 'tr' where id = new.id\\; end;\n\
         insert into t values (5, 'five');\n\
         select name from t where id = 5;\n\
         show transaction_read_only;\n\
         select count(*), 1.5 as f from t;\n",
        csv.display()
    );
    let out = run(&psql, &server, &["-X", "-A", "-v", "ON_ERROR_STOP=1"], &script).await;
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    assert_eq!(text(&out.stderr), "");
    let expected = "CREATE TABLE\nINSERT 0 2\nCOPY 2\nCOPY 2\nid|name\n1|one\n2|\n3|three\ttabs\n4|\n10|x,y\n11|\n(6 rows)\nUPDATE 1\nBEGIN\nDELETE 6\nROLLBACK\n\
                    1\n1\n(1 row)\n2\n2\n(1 row)\n1,uno\n2,\nCREATE TRIGGER\nINSERT 0 1\nname\ntr\n(1 row)\ntransaction_read_only\noff\n(1 row)\n\
                    count(*)|f\n7|1.5\n(1 row)\n";
    assert_eq!(text(&out.stdout), expected);
}

#[tokio::test]
async fn psql_shows_errors_and_goes_on() {
    let Some(psql) = program("psql") else { return };
    let server = Server::start().await;
    let script = "begin;\nselect * from nowhere;\nselect 1;\ncommit;\nselect 'on' || 'ward';\n";
    let out = run(&psql, &server, &["-X", "-A", "-t", "-v", "VERBOSITY=verbose"], script).await;
    let errors = text(&out.stderr);
    assert!(errors.contains("ERROR:  42P01") && errors.contains("ERROR:  25P02"), "{errors}");
    assert_eq!(text(&out.stdout), "BEGIN\nROLLBACK\nonward\n");

    let out = run_as(&psql, &server, &["-X", "-c", "select 1"], "", &[("PGPASSWORD", "wrong")]).await;
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("password authentication failed for user \"app\""), "{}", text(&out.stderr));
    let out = run_as(&psql, &server, &["-X", "-c", "select 1"], "", &[("PGDATABASE", "elsewhere")]).await;
    assert!(text(&out.stderr).contains("HINT:  The database here is \"parhelion\"") || text(&out.stderr).contains("does not exist"));
}

#[tokio::test]
async fn psql_connects_with_tls() {
    let Some(psql) = program("psql") else { return };
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    let server = Server::with(Options { tls: Some(Arc::new(config)), ..Options::default() }, Arc::new(Engine::new())).await;
    for (mode, encrypted) in [("require", true), ("disable", false)] {
        let out = run_as(&psql, &server, &["-X", "-A", "-t", "-c", "\\conninfo", "-c", "select 7"], "", &[("PGSSLMODE", mode)]).await;
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert_eq!(text(&out.stdout).contains("SSL connection"), encrypted, "{}", text(&out.stdout));
        assert!(text(&out.stdout).ends_with("7\n"));
    }
}

#[tokio::test]
async fn pgbench_runs_a_script_in_all_modes() {
    let Some(pgbench) = program("pgbench") else { return };
    let server = Server::start().await;
    let c = server.connect().await;
    c.batch_execute("create table accounts (aid integer primary key, abalance integer, at timestamp); create table history (aid integer, delta integer)")
        .await
        .unwrap();
    c.batch_execute("insert into accounts values (1, 0, null), (2, 0, null), (3, 0, null)").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script.sql");
    std::fs::write(
        &script,
        "\\set aid random(1, 3)\n\\set delta random(-50, 50)\nBEGIN;\nUPDATE accounts SET abalance = abalance + :delta, at = CURRENT_TIMESTAMP WHERE aid = :aid;\n\
         SELECT abalance FROM accounts WHERE aid = :aid;\nINSERT INTO history (aid, delta) VALUES (:aid, :delta);\nEND;\n",
    )
    .unwrap();
    for mode in ["simple", "extended", "prepared"] {
        let args = ["-n", "-f", script.to_str().unwrap(), "-M", mode, "-t", "30", "-c", "1"];
        let out = run(&pgbench, &server, &args, "").await;
        assert!(out.status.success(), "{mode}: {}{}", text(&out.stdout), text(&out.stderr));
        assert!(text(&out.stdout).contains("transactions actually processed: 30/30"), "{}", text(&out.stdout));
    }
    let row =
        c.query_one("select count(*), sum(delta), (select sum(abalance) from accounts) = sum(delta) from history", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 90);
    assert_eq!(row.get::<_, i64>(2), 1);
}

/// psycopg 3 sends types that it knows, leaves others open, and reads text and binary.
const PSYCOPG: &str = r#"
import datetime, decimal, psycopg, uuid
c = psycopg.connect("", autocommit=False)
assert c.info.server_version == 150000, c.info.server_version
x = c.cursor()
x.execute("create table t (id integer primary key, name text, data bytea, n numeric(10,2), at timestamptz, d date, ok boolean, f real, u uuid)")
at = datetime.datetime(2024, 2, 29, 12, 30, 0, 500, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
u = uuid.uuid4()
row = (1, "on\u00e9", b"\x00\xff", decimal.Decimal("12.50"), at, datetime.date(2024, 2, 29), True, 1.5, u)
x.execute("insert into t values (%s, %s, %s, %s, %s, %s, %s, %s, %s)", row)
assert x.rowcount == 1
for binary in (False, True):
    r = c.cursor(binary=binary).execute("select * from t where id = %s", (1,)).fetchone()
    assert r == row, r
c.commit()
x.executemany("insert into t (id, name) values (%s, %s)", [(i, f"n{i}") for i in range(2, 102)])
assert x.rowcount == 100, x.rowcount
assert x.execute("select count(*), sum(id), avg(f), max(name) from t").fetchone() == (101, 5151, 1.5, "on\u00e9")
assert x.execute("select %s + 1, %s || 'x', abs(%s)", (1, "a", -3)).fetchone() == (2, "ax", 3)
assert x.execute("select name from t where id in (%s, %s) order by id limit %s", (3, 2, 5)).fetchall() == [("n2",), ("n3",)]
for i in range(20):  # psycopg prepares a statement after five executions
    assert x.execute("select id, case when id > 1 then 'b' else 'a' end from t where id = %s", (i + 1,)).fetchone()[0] == i + 1
c.rollback()
assert x.execute("select count(*) from t").fetchone() == (1,)
with x.copy("copy t (id, name) from stdin") as copy:
    for i in range(10, 1010):
        copy.write_row((i, None if i % 2 else f"a\tb{i}"))
with x.copy("copy (select id, name from t where id between 10 and 11 order by id) to stdout") as copy:
    assert [tuple(r) for r in copy.rows()] == [("10", "a\tb10"), ("11", None)]
try:
    x.execute("insert into t (id) values (10)")
    assert False
except psycopg.errors.UniqueViolation:
    pass
try:
    x.execute("select 1")
    assert False
except psycopg.errors.InFailedSqlTransaction:
    pass
c.rollback()
with c.pipeline():
    for i in range(50, 60):
        x.execute("insert into t (id) values (%s)", (i,))
c.commit()
assert x.execute("select count(*) from t").fetchone() == (11,)
with c.transaction():
    try:
        with c.transaction():
            x.execute("delete from t")
            raise RuntimeError
    except RuntimeError:
        pass
assert x.execute("select count(*) from t").fetchone() == (11,)
for row in x.stream("select id from t order by id"):
    pass
c.rollback()
c.read_only = True
try:
    x.execute("delete from t")
    assert False
except psycopg.errors.ReadOnlySqlTransaction:
    pass
c.rollback()
c.close()
print("fine")
"#;

#[tokio::test]
async fn psycopg_does_what_applications_do() {
    let Some(python) = std::env::var("PYTHON").ok().or_else(|| program("python3")) else { return };
    let server = Server::start().await;
    if !run(&python, &server, &["-c", "import psycopg"], "").await.status.success() {
        eprintln!("skipped: psycopg 3 is not installed (set PYTHON to an interpreter that has it)");
        return;
    }
    let out = run(&python, &server, &["-"], PSYCOPG).await;
    assert!(out.status.success() && text(&out.stdout) == "fine\n", "{}{}", text(&out.stdout), text(&out.stderr));
}
