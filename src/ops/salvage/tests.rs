//! A region's copies on real files: a database, a tail that is lost, another history behind the same base.

use super::*;
use crate::base::{Epoch, Generation, LineageId, RegionName, UnixMicros};
use crate::head::embedded::{Engine, EngineSettings, Session};
use crate::head::sql::{Outcome, Value};
use crate::head::{GlobalStatusRow, InstanceStatusRow, LogSink, StatusSource};
use crate::io::disk::FileDisk;
use crate::log::{ControlFrame, Frame, Pen, Reign};
use crate::volume::archive_id;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};

const LINEAGE: LineageId = LineageId(0x5a1);

struct Nobody;

impl StatusSource for Nobody {
    fn global_status(&self) -> Vec<GlobalStatusRow> {
        Vec::new()
    }

    fn instance_status(&self) -> Vec<InstanceStatusRow> {
        Vec::new()
    }
}

/// Twelve copies of two groups, written without an appender.
struct Volume {
    config: Config,
    copies: Mutex<Vec<(MemberId, Copy)>>,
    end: Mutex<LogEnd>,
    generation: Mutex<Generation>,
}

impl Volume {
    fn new(config: &Config) -> Volume {
        let open = |member: MemberId| {
            let disk = FileDisk::open(&config.data_dir.join("copies").join(member.to_string())).unwrap();
            let home = Home { cluster: config.cluster.clone(), region: config.region.clone(), group: member.group.0, slot: member.copy };
            settle(&disk, &home, Incarnation(member.index() as u128 + 1)).unwrap();
            // Small, so that some of it is in layers and some is not.
            let limits = Limits { memtable_bytes_max: 24 << 10, log_file_bytes: 64 << 10, ..Limits::default() };
            (member, Copy::open_group(member.group, Arc::new(disk), &limits).unwrap())
        };
        let copies = MemberId::all(config.layout.groups).map(open).collect();
        Volume { config: config.clone(), copies: Mutex::new(copies), end: Mutex::default(), generation: Mutex::new(Generation(1)) }
    }

    fn tell(&self, member: &MemberId, copy: &mut Copy, request: CopyRequest) {
        let mut replies = Vec::new();
        copy.handle(request, &mut replies);
        copy.flush(&mut replies);
        loop {
            while copy.ingest(&mut replies) {}
            let Some(job) = copy.background_job() else { break };
            copy.finish(job.run(), &mut replies);
        }
        let bad = |r: &CopyReply| {
            matches!(
                r,
                CopyReply::Misplaced { .. } | CopyReply::Refused { .. } | CopyReply::Failed { .. } | CopyReply::RewindRefused { .. }
            )
        };
        assert!(!replies.iter().any(bad), "{member}: {replies:?}");
    }

    fn tell_all(&self, but: Option<usize>, request: impl Fn(MemberId) -> CopyRequest) {
        for (i, (member, copy)) in self.copies.lock().iter_mut().enumerate().filter(|(i, _)| Some(*i) != but) {
            let _ = i;
            self.tell(member, copy, request(*member));
        }
    }

    fn append(&self, but: Option<usize>, frames: &[Frame]) {
        let end = frames.last().unwrap().log_end();
        let generation = *self.generation.lock();
        self.tell_all(but, |member| CopyRequest::Append {
            generation,
            frames: frames.iter().map(|f| f.for_group(member.group)).collect(),
            vdl: end,
            horizon: Lsn(0),
            trim: Seq(0),
            gate: None,
        });
        *self.end.lock() = end;
    }
}

impl PageSource for Volume {
    fn page_at(&self, page: PageNo, at: Lsn) -> Result<Bytes, PageError> {
        let group = self.config.layout.group_of(page);
        let store = self.copies.lock().iter().find(|(m, _)| m.group == group).expect("BUG: all groups are open").1.pages();
        store.read(page, at).map_err(|e| PageError::Unavailable { page, at, reason: e.to_string() })
    }
}

struct Sink(Mutex<Sender<Vec<Frame>>>);

impl LogSink for Sink {
    fn submit(&self, frames: Vec<Frame>) {
        let _ = self.0.lock().send(frames);
    }
}

/// Runs `sql` as one reign's writer, statement by statement. `but`: a copy that is away.
fn write(volume: &Arc<Volume>, epoch: Epoch, but: Option<usize>, sql: &[&str]) {
    let settings = EngineSettings { layout: volume.config.layout, readers: 1, ..EngineSettings::default() };
    let engine = Engine::start(settings, Arc::clone(volume) as Arc<dyn PageSource>, Arc::new(Nobody)).unwrap();
    let end = *volume.end.lock();
    let (tx, rx) = channel::<Vec<Frame>>();
    let driven = {
        let (volume, engine) = (Arc::clone(volume), Arc::downgrade(&engine));
        std::thread::spawn(move || {
            for frames in rx {
                volume.append(but, &frames);
                if let Some(engine) = engine.upgrade() {
                    engine.advance(frames.last().unwrap().log_end(), &frames);
                }
            }
        })
    };
    let pen = Pen::new(epoch, *volume.generation.lock(), end, 64 << 10);
    engine.open_writer(pen, Arc::new(Sink(Mutex::new(tx)))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut session = engine.session(crate::endpoint::Port::Writer);
        for statement in sql {
            run(&mut session, statement).await;
        }
    });
    engine.close_writer("the test is over".into());
    drop(engine);
    driven.join().unwrap();
}

async fn run(session: &mut Session, sql: &str) -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    if let Outcome::Rows { mut rows, .. } = session.execute(sql, Vec::new()).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")) {
        while let Some(some) = rows.recv().await {
            all.extend(some.unwrap());
        }
    }
    all
}

fn config(dir: &Path) -> Config {
    let file = dir.join("us-east.toml");
    let text = r#"
cluster = "sun"
region = "us-east"
data_dir = "data"
founder = "us-east"
[listen]
quic = "127.0.0.1:7400"
writer = "127.0.0.1:7401"
reader = "127.0.0.1:7402"
http = "127.0.0.1:7403"
[tls]
dir = "certs"
[sql]
user = "app"
database = "app"
[[member]]
region = "us-east"
quic = "127.0.0.1:7400"
[[member]]
region = "eu-west"
quic = "127.0.0.1:7500"
"#;
    std::fs::write(&file, text).unwrap();
    let mut config = Config::load(&file).unwrap();
    config.layout = crate::base::Layout { segment_pages: 2, groups: 2 };
    config
}

/// The region with its lost tail, and the archive's id.
fn region(dir: &Path) -> (Config, TimelineId) {
    let config = config(dir);
    let volume = Arc::new(Volume::new(&config));
    volume.tell_all(None, |_| CopyRequest::Raise { generation: Generation(1) });
    let founding = ControlFrame::EpochStart { lineage: LINEAGE };
    volume.append(None, &[founding.encode(&LogEnd::EMPTY, Epoch(1), Generation(1), UnixMicros(1))]);
    write(
        &volume,
        Epoch(1),
        None,
        &[
            "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT, balance INTEGER)",
            "CREATE TABLE note (region TEXT, n INTEGER, body TEXT, PRIMARY KEY (region, n)) WITHOUT ROWID",
            "CREATE TABLE plain (word TEXT)",
            "INSERT INTO account SELECT value, 'owner ' || value, 100 FROM generate_series(1, 300)",
            "INSERT INTO note SELECT 'us', value, hex(randomblob(40)) FROM generate_series(1, 100)",
            "INSERT INTO plain VALUES ('one'), ('two')",
        ],
    );
    let base = *volume.end.lock();
    write(
        &volume,
        Epoch(1),
        None,
        &[
            "UPDATE account SET balance = 7 WHERE id IN (2, 150)",
            "DELETE FROM account WHERE id = 300",
            "INSERT INTO account VALUES (1000, 'lost', 5), (1001, 'lost too', NULL)",
            "INSERT INTO note VALUES ('eu', 1, 'only here')",
            "UPDATE plain SET word = 'zwei' WHERE word = 'two'",
            "CREATE TABLE fresh (a INTEGER PRIMARY KEY)",
            "INSERT INTO fresh VALUES (1), (2)",
        ],
    );
    let id = archive_id(&base, Epoch(1));
    // One copy of group 0 is away while the others go back, and has the old tail still.
    let away = Some(0);
    *volume.generation.lock() = Generation(2);
    volume.tell_all(away, |_| CopyRequest::Rewind { generation: Generation(2), number: 1, archive: Some(id), at: base, reign: Epoch(2) });
    let reign = Reign { lineage: LINEAGE, prev: Epoch(1), base, region: RegionName::new("eu-west").unwrap(), op: 1, config: 1 };
    volume.copies.lock().rotate_left(1); // pages are read from one that is there
    let away = Some(11);
    volume.append(away, &[ControlFrame::Reign(reign).encode(&base, Epoch(2), Generation(2), UnixMicros(1))]);
    write(
        &volume,
        Epoch(2),
        away,
        &[
            "UPDATE account SET balance = 8 WHERE id IN (2, 3)",
            "INSERT INTO account VALUES (1000, 'found', 5)",
            "INSERT INTO plain VALUES ('three')",
        ],
    );
    (config, id)
}

fn row(diff: &TableDiff, key: &str) -> (Change, Option<String>, Option<String>) {
    let row = diff.rows.iter().find(|r| r.key.join(",") == key).unwrap_or_else(|| panic!("{key} in {diff:?}"));
    let last = |r: &Option<Vec<Option<String>>>| r.as_ref().and_then(|v| v.last().cloned().flatten());
    (row.change, last(&row.lost), last(&row.other))
}

#[test]
fn a_lost_tail_is_told_compared_and_queried() {
    let dir = tempfile::tempdir().unwrap();
    let (config, id) = region(dir.path());
    let all = list(&config).unwrap();
    assert_eq!(all.iter().map(|a| a.id).collect::<Vec<_>>(), [id]);

    let lost = summary(&config, id).unwrap();
    assert_eq!((lost.lost_commits, lost.old_epoch, lost.torn_frames), (7, 1, 0), "{lost:?}");
    assert_eq!((lost.lost_from_lsn, lost.lost_to_lsn), (all[0].base.end_lsn.0, all[0].consistent.end_lsn.0));
    assert!(lost.pages >= 6 && lost.first_pages.len() as u64 == lost.pages, "{lost:?}");
    assert!(lost.lost_from_us.unwrap() > 0 && lost.lost_from_us <= lost.lost_to_us);

    let refused = touched(&config, id, 3, 4096).unwrap_err();
    assert!(refused.message.contains("--diff TABLE"), "{}", refused.message);
    let touched = touched(&config, id, 3, u64::MAX).unwrap();
    let figures: Vec<_> = touched.iter().map(|t| (t.table.as_str(), t.there, t.inserted, t.updated, t.deleted, t.more)).collect();
    assert_eq!(
        figures,
        [
            ("account", "both", 2, 2, 1, true),
            ("fresh", "lost_only", 2, 0, 0, false),
            ("note", "both", 1, 0, 0, false),
            ("plain", "both", 0, 1, 0, false),
        ]
    );
    assert_eq!(touched[0].rows.iter().map(|r| r.key[0].as_str()).collect::<Vec<_>>(), ["2", "150", "300"], "by key, as numbers");
    assert_eq!(row(&touched[2], "eu,1"), (Change::Inserted, Some("only here".into()), None));

    let accounts = diff(&config, id, "ACCOUNT").unwrap();
    assert_eq!((accounts.inserted, accounts.updated, accounts.deleted), (1, 4, 1), "{accounts:?}");
    assert_eq!(row(&accounts, "2"), (Change::Updated, Some("7".into()), Some("8".into())));
    assert_eq!(row(&accounts, "3"), (Change::Updated, Some("100".into()), Some("8".into())));
    assert_eq!(row(&accounts, "1001").0, Change::Inserted);
    assert_eq!(row(&accounts, "300").0, Change::Deleted);
    let shown = rows::render(&accounts);
    assert!(shown.contains("lost too") && shown.contains("NULL") && shown.contains("account: 1 rows only in the lost tail"), "{shown}");
    let refused = diff(&config, id, "nothing").unwrap_err();
    assert!(refused.hint.as_ref().is_some_and(|h| h.contains("account, fresh, note, plain")), "{refused:?}");

    // psql's side of it, without the socket.
    let engine = serve::engine(&config, Salvaged::open(&config, id).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut session = engine.session(crate::endpoint::Port::Reader);
        let got = run(&mut session, "SELECT id, owner FROM account WHERE id >= 299 ORDER BY id").await;
        let text = |s: &str| Value::Text(s.to_owned());
        assert_eq!(
            got,
            [
                vec![Value::Integer(299), text("owner 299")],
                vec![Value::Integer(1000), text("lost")],
                vec![Value::Integer(1001), text("lost too")]
            ]
        );
        assert_eq!(run(&mut session, "SELECT count(*) FROM fresh").await, [[Value::Integer(2)]]);
        let Err(refused) = session.execute("DELETE FROM account", Vec::new()).await else { panic!("it is read-only") };
        assert_eq!(refused.code, "25006", "{refused:?}");
    });
    let Err(missing) = Salvaged::open(&config, TimelineId(1 << 63)) else { panic!("it is not there") };
    assert!(missing.message.contains("no copy of protection group g0 here keeps archive 8000000000000000"), "{missing:?}");
}
