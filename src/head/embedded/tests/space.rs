//! Space that dropped tables leave goes out of the database by itself; what is in it stays as it is, here and in secondaries.

use super::super::space::Free;
use super::super::{DatabaseSize, GiveBack, PAGE_BYTES};
use super::*;
use crate::base::{GroupId, UnixMicros};
use crate::head::sql::TxMode;
use crate::log::Flags;
use crate::log::redo::{self, Change, VolumeHeader};
use std::time::Duration;

/// No free page stays longer than it takes.
pub const AT_ONCE: GiveBack = GiveBack { bytes_per_s: 1 << 40, keep_percent: 0, keep_pages: 0, look_after: Duration::ZERO };

fn size(region: &Region) -> DatabaseSize {
    region.engine.database_size().expect("it can be read")
}

/// As the first page says: a connection's own word is as old as its last look.
fn has_map(region: &Region) -> bool {
    Free::of(&region.volume.page_at(PageNo(1), region.volume.end().end_lsn).unwrap()).by_steps
}

async fn fill(s: &mut Session, table: &str, rows: u32) {
    run(s, &format!("CREATE TABLE {table} AS SELECT value AS id, randomblob(2000) AS v FROM generate_series(1, {rows})")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_table_leaves_the_database_without_vacuum() {
    let keep_pages = 40;
    let region = Region::primary(EngineSettings { give_back: GiveBack { keep_pages, ..AT_ONCE }, ..settings() });
    let mut s = region.writer();
    fill(&mut s, "before", 50).await;
    fill(&mut s, "big", 2000).await;
    fill(&mut s, "behind", 50).await;
    assert!(has_map(&region));
    let full = size(&region);
    assert!(full.pages > 1000 && full.free_pages < 10, "{full:?}");
    let digest = "SELECT (SELECT sum(length(v) + id) FROM before) || (SELECT group_concat(hex(v)) FROM behind)";
    let before = text(&mut s, digest).await;
    let mut looks_back = region.reader();
    looks_back.begin(TxMode { read_only: true }).await.unwrap();
    assert_eq!(number(&mut looks_back, "SELECT count(*) FROM big").await, 2000);

    run(&mut s, "DROP TABLE big").await.unwrap();
    until(|| size(&region).pages < full.pages / 4).await;
    until(|| size(&region).free_pages <= keep_pages / 2).await;
    let small = size(&region);
    assert_eq!(small.high_water, full.high_water, "the most there ever were is told still");
    assert!(small.free_pages > 0, "a few are kept: {small:?}");
    let user_commits = region.volume.log().iter().filter(|f| f.header().flags.has(Flags::USER_COMMIT)).count();
    assert_eq!((user_commits, region.engine.stats().commits), (4, 4), "no client's commit");
    let given = u64::from(full.pages - small.pages) * PAGE_BYTES as u64;
    until(|| region.engine.stats().given_back_bytes == given).await;
    // Whoever looked at it still sees it.
    assert_eq!(number(&mut looks_back, "SELECT sum(length(v)) FROM big").await, 4_000_000);
    looks_back.commit().await.unwrap();
    assert!(text(&mut s, digest).await == before, "the other tables are as they were");
    assert_eq!(text(&mut region.reader(), "PRAGMA integrity_check").await, "ok");

    let secondary = Region::secondary(settings());
    secondary.volume.settle(&region.volume.log());
    assert_eq!(size(&secondary), small);
    assert!(text(&mut secondary.reader(), digest).await == before, "the secondary has the same");
    assert_eq!(text(&mut secondary.reader(), "PRAGMA integrity_check").await, "ok");
    assert_eq!(secondary.engine.stats().given_back_bytes, 0, "it follows, and does nothing by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_write_on_while_space_is_given_back() {
    let region = Region::primary(EngineSettings { give_back: AT_ONCE, ..settings() });
    let mut s = region.writer();
    run(&mut s, "CREATE TABLE t (id integer primary key, v blob)").await.unwrap();
    fill(&mut s, "big", 4000).await;
    let full = size(&region);
    run(&mut s, "DROP TABLE big").await.unwrap();
    let mut written = 0;
    while size(&region).pages > full.pages / 4 {
        s.begin(TxMode::default()).await.unwrap();
        run(&mut s, &format!("INSERT INTO t VALUES ({written}, randomblob(100))")).await.unwrap();
        s.commit().await.unwrap();
        written += 1;
    }
    assert_eq!(number(&mut s, "SELECT count(*) FROM t").await, written);
    assert_eq!(text(&mut region.reader(), "PRAGMA integrity_check").await, "ok");
}

/// What a writer left undone the next one does, here or in another region.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_writer_goes_on_with_what_is_free() {
    let never = GiveBack { bytes_per_s: 0, ..AT_ONCE };
    let region = Region::primary(EngineSettings { give_back: never, ..settings() });
    let mut s = region.writer();
    fill(&mut s, "small", 10).await;
    fill(&mut s, "big", 1000).await;
    run(&mut s, "DROP TABLE big").await.unwrap();
    assert!(size(&region).free_pages > 400, "nothing goes by itself where that is switched off");
    let next = Region::empty(EngineSettings { give_back: AT_ONCE, ..settings() });
    next.volume.settle(&region.volume.log());
    next.engine.reset(next.volume.end());
    next.open_as(2, 2);
    until(|| size(&next).free_pages == 0).await;
    assert!(size(&next).pages < 50);
    assert_eq!(number(&mut next.reader(), "SELECT sum(length(v)) FROM small").await, 20_000);
}

/// As databases were founded before: without the map.
fn founded_before() -> Vec<Frame> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db");
    let db = rusqlite::Connection::open(&file).unwrap();
    db.execute_batch("PRAGMA page_size = 4096; CREATE TABLE old (id integer primary key, v)").unwrap();
    for id in 0..400 {
        db.execute("INSERT INTO old VALUES (?1, zeroblob(3000))", [id]).unwrap();
    }
    drop(db);
    let bytes = std::fs::read(&file).unwrap();
    let pages: Vec<&[u8]> = bytes.chunks(PAGE_BYTES).collect();
    let header = VolumeHeader { page_count: u32::try_from(pages.len()).unwrap(), page_bytes: 4096, high_water: 0 };
    let mut payloads = vec![Vec::new()];
    redo::put_record(&mut payloads[0], PageNo::HEADER, &header.to_image());
    for (number, page) in (1..).zip(pages) {
        let mut payload = Vec::new();
        redo::put_record(&mut payload, PageNo(number), &Change::Image(Bytes::copy_from_slice(page)));
        payloads.push(payload);
    }
    let payloads: Vec<_> = payloads.into_iter().map(|payload| (GroupId(0), payload)).collect();
    Pen::new(Epoch(1), Generation(1), LogEnd::EMPTY, 64 << 10).write_groups(&payloads, true, UnixMicros(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_database_is_left_as_it_is_and_converted_by_vacuum() {
    let region = Region::empty(EngineSettings { give_back: AT_ONCE, ..settings() });
    region.volume.settle(&founded_before());
    region.engine.reset(region.volume.end());
    let at = region.volume.end();
    region.open(2);
    let mut s = region.writer();
    assert!(!has_map(&region));
    assert_eq!(number(&mut s, "SELECT count(*) FROM old").await, 400);
    assert_eq!(region.volume.end(), at, "to open it writes nothing");
    run(&mut s, "DELETE FROM old WHERE id >= 10").await.unwrap();
    assert!(number(&mut s, "PRAGMA freelist_count").await > 300);
    run(&mut s, "VACUUM").await.unwrap();
    assert!(has_map(&region));
    fill(&mut s, "big", 1000).await;
    let full = size(&region);
    run(&mut s, "DROP TABLE big").await.unwrap();
    until(|| size(&region).pages < full.pages / 4).await;
    assert_eq!(number(&mut s, "SELECT count(*) FROM old").await, 10);
    assert_eq!(text(&mut region.reader(), "PRAGMA integrity_check").await, "ok");
}

#[tokio::test]
async fn giving_back_is_not_for_clients() {
    let region = Region::primary(settings());
    let mut s = region.writer();
    fill(&mut s, "t", 1).await;
    for sql in ["PRAGMA incremental_vacuum(1)", "PRAGMA incremental_vacuum", "PRAGMA auto_vacuum", "PRAGMA auto_vacuum = 0"] {
        assert_eq!(code(&mut s, sql).await, "42501", "{sql}");
    }
}
