use super::*;
use crate::head::sql::TxState;

#[tokio::test]
async fn sql_reaches_no_files_and_no_switches() {
    let region = Region::primary(settings());
    let mut s = region.writer();
    run(&mut s, "CREATE TABLE t(x)").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.db").display().to_string();
    // one line per case: statement, SQLSTATE
    let cases = [
        (format!("ATTACH 'file:{file}?vfs=unix' AS a"), "42501"),
        (format!("ATTACH '{file}' AS a"), "42501"),
        ("ATTACH '' AS a".to_string(), "42501"),
        ("ATTACH ':memory:' AS a".to_string(), "42501"),
        (format!("ATTACH '{file}' || '' AS a"), "42501"),
        ("DETACH main".to_string(), "42501"),
        (format!("VACUUM INTO '{file}'"), "42501"),
        ("SELECT load_extension('x')".to_string(), "42501"),
        ("SELECT readfile('/etc/passwd')".to_string(), "42883"),
        ("SELECT writefile('x', 'y')".to_string(), "42883"),
        ("SELECT edit('x')".to_string(), "42883"),
        ("SELECT fts3_tokenizer('simple')".to_string(), "42501"),
        ("PRAGMA writable_schema = ON".to_string(), "42501"),
        ("PRAGMA journal_mode = DELETE".to_string(), "42501"),
        ("PRAGMA locking_mode = EXCLUSIVE".to_string(), "42501"),
        ("PRAGMA page_size = 1024".to_string(), "42501"),
        ("PRAGMA foreign_keys = OFF".to_string(), "42501"),
        ("PRAGMA temp_store_directory = '/tmp'".to_string(), "42501"),
        ("PRAGMA mmap_size = 1000000".to_string(), "42501"),
        ("PRAGMA cache_spill = OFF".to_string(), "42501"),
        ("SELECT * FROM pragma_cache_size".to_string(), "42501"),
        ("UPDATE sqlite_master SET sql = ''".to_string(), "42000"),
        ("CREATE TEMP TABLE x(y)".to_string(), "0A000"),
        ("CREATE TABLE temp.x(y)".to_string(), "0A000"),
        ("CREATE VIRTUAL TABLE temp.x USING fts5(y)".to_string(), "0A000"),
        ("BEGIN EXCLUSIVE".to_string(), "0A000"),
        ("SAVEPOINT x".to_string(), "0A000"),
        ("COMMIT".to_string(), "0A000"),
    ];
    for (sql, want) in &cases {
        assert_eq!(code(&mut s, sql).await, *want, "{sql}");
    }
    // Inside a writing transaction it is the other connection that refuses.
    for (sql, want) in cases.iter().filter(|(sql, _)| !sql.starts_with("VACUUM")) {
        s.begin(crate::head::sql::TxMode::default()).await.unwrap();
        assert_eq!(code(&mut s, sql).await, *want, "{sql} in a transaction");
        assert_eq!(s.tx(), TxState::Failed);
        s.rollback().await.unwrap();
    }
    let mut reader = region.reader();
    for (sql, want) in &cases {
        let got = code(&mut reader, sql).await;
        assert!(got == *want || got == "25006", "{sql} on the reader port: {got}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file was made");
    let error = rows(&mut s, "PRAGMA journal_mode = WAL").await.unwrap_err();
    assert!(error.message.contains("journal_mode is not allowed"), "{error}");
}

#[tokio::test]
async fn what_only_looks_is_allowed() {
    let region = Region::primary(settings());
    let mut s = region.writer();
    run(&mut s, "CREATE TABLE t(x integer primary key, y text)").await.unwrap();
    assert_eq!(rows(&mut s, "PRAGMA table_info(t)").await.unwrap().len(), 2);
    assert_eq!(rows(&mut s, "SELECT name FROM pragma_table_info('t')").await.unwrap().len(), 2);
    assert_eq!(number(&mut s, "PRAGMA page_size").await, 4096);
    assert_eq!(number(&mut s, "PRAGMA foreign_keys").await, 1);
    run(&mut s, "PRAGMA user_version = 7").await.unwrap();
    assert_eq!(number(&mut s, "PRAGMA user_version").await, 7);
    run(&mut s, "PRAGMA optimize").await.unwrap();
    run(&mut s, "CREATE VIRTUAL TABLE docs USING fts5(body)").await.unwrap();
    run(&mut s, "INSERT INTO docs VALUES ('the bright image'), ('the sun')").await.unwrap();
    assert_eq!(number(&mut s, "SELECT count(*) FROM docs WHERE docs MATCH 'image'").await, 1);
    run(&mut s, "ALTER TABLE t RENAME TO t2").await.unwrap();
    run(&mut s, "ALTER TABLE t2 DROP COLUMN y").await.unwrap();
    run(&mut s, "CREATE TABLE u(a, b); -- and a comment behind it").await.unwrap();
}

#[tokio::test]
async fn a_write_on_a_reader_names_the_primary() {
    let primary = Region::primary(settings());
    let secondary = Region::secondary(EngineSettings { region: "eu-west".to_string(), ..settings() });
    run(&mut primary.writer(), "CREATE TABLE t(x)").await.unwrap();
    secondary.volume.settle(&primary.volume.log());
    for mut s in [secondary.reader(), secondary.writer()] {
        let error = rows(&mut s, "/* really */ insert into t values (1)").await.unwrap_err();
        let want = "cannot execute INSERT in a read-only region: eu-west is a secondary; the primary is us-east. Use the writer port";
        assert_eq!((error.code, error.message.as_str()), ("25006", want));
        s.begin(crate::head::sql::TxMode::default()).await.unwrap();
        assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, 0);
        assert_eq!(code(&mut s, "DELETE FROM t").await, "25006");
        assert_eq!(code(&mut s, "SELECT 1").await, "25P02");
        assert!(!s.commit().await.unwrap());
    }
    assert_eq!(code(&mut primary.reader(), "INSERT INTO t VALUES (1)").await, "25006");
    let mut s = primary.writer();
    s.begin(crate::head::sql::TxMode { read_only: true }).await.unwrap();
    assert_eq!(code(&mut s, "INSERT INTO t VALUES (1)").await, "25006");
}
