//! `parhelion volume verify` and the scrub, on the files of real processes: what is intact is said to be, whatever is not is found, and a running
//! region repairs it while it takes writes.

mod common;

use common::{Cluster, Region, ensure, http_get, metric, parhelion, run, text, until};
use parhelion::base::{Limits, Lsn, PageNo, Prng};
use parhelion::io::disk::FileDisk;
use parhelion::log::SeedBase;
use parhelion::ops::verify::{Site, verify};
use parhelion::volume::{Copy, CopyReply, CopyRequest};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Small memtables, so that there are layers; a scrub that always runs.
const SETTINGS: &str = "\n[limits]\nmemtable_bytes_max = 65536\n\n[volume]\nscrub_mb_per_s = 200\nscrub_every_s = 1\n";

/// A cluster whose primary has layers in every copy, and scrubs without end.
fn cluster() -> Cluster {
    let mut cluster = Cluster::start(2, "none");
    let primary = cluster.primary().clone();
    cluster.kill_region(&primary.name);
    let config = std::fs::read_to_string(&primary.config).unwrap();
    std::fs::write(&primary.config, config + SETTINGS).unwrap();
    cluster.start_region(&primary.name);
    let create = "create table t (id integer primary key, v text not null)";
    until("it writes", || cluster.ready.sql(&primary.writer, create).map(drop));
    for from in [1, 3001, 6001] {
        let rows = format!("insert into t select value, 'row ' || value || ' of many' from generate_series({from}, {})", from + 2999);
        cluster.ready.must(&primary.writer, &rows);
    }
    until("there are layers", || {
        let all = (0..6).all(|i| !files(&copy_dir(&primary, NAMES[i]), "layer-").is_empty());
        ensure(all, "not in every copy")
    });
    cluster.until_whole();
    cluster
}

const NAMES: [&str; 6] = ["a1", "a2", "b1", "b2", "c1", "c2"];

fn copy_dir(region: &Region, name: &str) -> PathBuf {
    region.data_dir.join("copies").join(name)
}

/// Names in the directory that begin so, sorted; nothing that is under construction.
fn files(dir: &Path, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|n| n.starts_with(prefix) && !n.contains(".tmp"));
    names.sort();
    names
}

/// The exit code, and the JSON.
fn verified(region: &Region) -> (i32, Value) {
    let output = run(parhelion().args(["volume", "verify", "--json", "--config"]).arg(&region.config), "");
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code().unwrap(), json)
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(file, bytes).unwrap();
}

/// Where the last mark of a log file begins: everything before it was fsynced.
fn last_mark(log: &[u8]) -> Option<usize> {
    log.windows(4).rposition(|four| four == b"PHLN")
}

/// Everything below the directory, to see that nothing changed.
fn fingerprint(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            all.extend(fingerprint(&entry.path()));
        } else {
            all.push((entry.path(), metadata.len(), metadata.modified().unwrap()));
        }
    }
    all.sort();
    all
}

fn copy_row(cluster: &Cluster, name: &str) -> Result<Value, String> {
    let primary = &cluster.primary().name;
    let copies = cluster.row(primary, primary)?["copies"].clone();
    copies.as_array().and_then(|c| c.iter().find(|c| c["name"] == name)).cloned().ok_or_else(|| copies.to_string())
}

#[test]
fn what_is_intact_is_said_to_be_and_every_flipped_byte_is_found() {
    let mut cluster = cluster();
    let primary = cluster.primary().clone();

    // Running, under load.
    let over = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let load = {
        let (ready, writer, over, written) = (cluster.ready.clone(), primary.writer.clone(), Arc::clone(&over), Arc::clone(&written));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = ready.connect(&writer).await.unwrap();
                while !over.load(Ordering::Relaxed) {
                    let n = written.fetch_add(1, Ordering::Relaxed);
                    let n = i64::try_from(1_000_000 + n).unwrap();
                    client.execute("insert into t values ($1, hex(randomblob(400)))", &[&n]).await.unwrap();
                }
            });
        })
    };
    for _ in 0..6 {
        let before = written.load(Ordering::Relaxed);
        let (code, report) = verified(&primary);
        assert!(code == 0 && report["intact"] == true, "{report}");
        assert!(report["comparisons"][0]["compared"].as_array().unwrap().len() >= 4, "{report}");
        until("writes go on", || ensure(written.load(Ordering::Relaxed) > before, "none"));
    }
    over.store(true, Ordering::Relaxed);
    load.join().unwrap();

    // Stopped, and nothing is changed by looking.
    cluster.kill_region(&primary.name);
    let before = fingerprint(&primary.data_dir);
    let (code, report) = verified(&primary);
    assert!(code == 0 && report["intact"] == true, "{report}");
    let comparison = &report["comparisons"][0];
    assert!(comparison["compared"].as_array().unwrap().len() == 6 && comparison["pages"].as_u64().unwrap() > 50, "{comparison}");
    assert_eq!(fingerprint(&primary.data_dir), before);
    let output = run(parhelion().args(["volume", "verify", "--config"]).arg(&primary.config), "");
    let shown = text(&output.stdout);
    assert!(shown.contains("all the same") && shown.ends_with("all copies are intact\n"), "{shown}");

    // One byte in each kind of file, many times; the newest log file up to its last mark.
    let mut prng = Prng::new(u64::from(std::process::id()));
    let mut found = 0;
    let site = Site::load(&primary.config).unwrap();
    for (i, prefix) in ["layer-", "log-", "MANIFEST", "promise", "control", "identity"].into_iter().enumerate() {
        let dir = copy_dir(&primary, NAMES[i]);
        for round in 0..25 {
            // A log file that was begun a moment ago may have no mark yet: what it ends with is told from a torn write by nobody.
            let marked = |name: &String| prefix != "log-" || last_mark(&std::fs::read(dir.join(name)).unwrap()).is_some();
            let names: Vec<String> = files(&dir, prefix).into_iter().filter(marked).collect();
            let name = &names[usize::try_from(prng.below(names.len() as u64)).unwrap()];
            let file = dir.join(name);
            let bytes = std::fs::read(&file).unwrap();
            let used = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
            let sure = if prefix == "log-" { last_mark(&bytes).unwrap() } else { used };
            let at = usize::try_from(prng.below(sure as u64)).unwrap();
            flip(&file, at);
            let report = verify(&site).unwrap();
            let damage = &report.copies[i].damage;
            assert!(!report.intact && report.copies[i].state == "damaged", "{name} at {at}");
            assert!(damage.iter().all(|d| d.file == *name), "{name} at {at}: {damage:?}");
            assert!(damage.iter().all(|d| d.offset.is_none_or(|o| o <= at as u64)), "{name} at {at}: {damage:?}");
            assert_eq!(report.copies.iter().filter(|c| c.state == "intact").count(), 5);
            found += 1;
            if round == 0 {
                let (code, json) = verified(&primary);
                assert!(code == 1 && json["copies"][i]["damage"][0]["file"] == name.as_str(), "{json}");
            }
            std::fs::write(&file, bytes).unwrap();
        }
    }
    assert_eq!(found, 150);

    // A directory is gone, another one is new, a third is from before: told apart, with what to do.
    let old = primary.data_dir.join("old");
    let away = |name: &str| std::fs::rename(copy_dir(&primary, name), old.join(name)).unwrap();
    std::fs::create_dir(&old).unwrap();
    away("a1");
    away("c2");
    std::fs::create_dir(copy_dir(&primary, "c2")).unwrap();
    let output = run(parhelion().args(["volume", "verify", "--config"]).arg(&primary.config), "");
    let (shown, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
    assert!(shown.contains("missing") && shown.contains("empty") && said.contains("a1, c2") && said.contains("4 of 6"), "{shown}{said}");
    cluster.start_region(&primary.name);
    cluster.until_whole();
    cluster.kill_region(&primary.name);
    assert_eq!(verified(&primary).0, 0);
}

/// Replaces the content of a copy by valid files that say the same of the log and something else of one page, as a write that was lost
/// and is hidden by a newer one would. Returns the page.
fn other_page(dir: &Path) -> u32 {
    let disk = Arc::new(FileDisk::open(dir).unwrap());
    let mut copy = Copy::open(disk, &Limits { memtable_bytes_max: usize::MAX, ..Limits::default() }).unwrap();
    let state = copy.state();
    let generation = copy.promised();
    let mut replies = Vec::new();
    let (frames, at) = (Vec::new(), state.consistent);
    copy.handle(
        CopyRequest::Append { generation, frames, vdl: at, horizon: Lsn(0), trim: parhelion::base::Seq(0), gate: None },
        &mut replies,
    );
    copy.flush(&mut replies);
    while copy.ingest(&mut replies) {}
    let mut pages = Vec::new();
    let mut from = Some(PageNo(0));
    while let Some(page) = from {
        let (some, next) = copy.pages().scan(at.end_lsn, page, 1 << 20).unwrap();
        pages.extend(some);
        from = next;
    }
    let which = pages.len() / 2;
    let mut bytes = pages[which].1.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    pages[which].1 = bytes.into();
    let page = pages[which].0.0;
    let base = SeedBase { lineage: state.lineage.unwrap(), end: at, history: state.history.clone() };
    replies.clear();
    let step = u64::MAX / 2;
    copy.handle(CopyRequest::SeedBegin { generation, step, base }, &mut replies);
    copy.handle(CopyRequest::SeedPages { generation, step: step + 1, pages }, &mut replies);
    copy.handle(CopyRequest::SeedEnd { generation, steps: step + 1 }, &mut replies);
    assert!(matches!(replies.last(), Some(CopyReply::Appended { .. })), "{replies:?}");
    page
}

#[test]
fn a_copy_with_other_pages_and_one_with_rot_are_found_and_rebuilt_while_writes_go_on() {
    let mut cluster = cluster();
    let ready = cluster.ready.clone();
    let primary = cluster.primary().clone();

    // No checksum shows it: only the comparison does.
    cluster.kill_region(&primary.name);
    let page = other_page(&copy_dir(&primary, "b2"));
    let (code, report) = verified(&primary);
    let differ = &report["comparisons"][0]["differ"];
    assert!(code == 1 && differ[0]["copy"] == "b2" && differ[0]["pages"][0] == page && differ.as_array().unwrap().len() == 1, "{report}");
    cluster.start_region(&primary.name);
    until("it was found and rebuilt", || {
        let row = copy_row(&cluster, "b2")?;
        let page = http_get(&primary.http, "/metrics")?.1;
        let lost = metric(&page, "parhelion_lost_write_total{copy=\"b2\",az=\"b\"}");
        ensure(row["state"] == "up" && row["scrub"]["repaired_total"] == 1 && row["damage"].is_null() && lost == Some(1.0), (row, lost))
    });
    let events = cluster.events(&primary.name).unwrap();
    assert!(events.iter().any(|e| e["kind"] == "copy_damaged" && e["what"].as_str().unwrap().contains("b2")), "{events:?}");

    // A byte in a layer of a running copy, one in a log file, while rows are written.
    let mut next = 100_000;
    let mut insert = || {
        next += 1;
        ready.must(&primary.writer, &format!("insert into t values ({next}, 'while it is repaired')"));
    };
    for (name, prefix) in [("a1", "layer-"), ("c1", "log-")] {
        let dir = copy_dir(&primary, name);
        let file = dir.join(&files(&dir, prefix)[0]);
        let before = copy_row(&cluster, name).unwrap()["scrub"]["repaired_total"].as_u64().unwrap();
        flip_in_place(&file, 700);
        until("it was found and rebuilt", || {
            insert();
            let row = copy_row(&cluster, name)?;
            ensure(row["scrub"]["repaired_total"].as_u64() > Some(before) && row["state"] == "up" && row["damage"].is_null(), row)
        });
    }
    // Said to people, too.
    until("a pass without damage ends in all copies", || {
        let copies = NAMES.iter().map(|n| copy_row(&cluster, n)).collect::<Result<Vec<_>, _>>()?;
        let clean = copies.iter().all(|c| c["scrub"]["found"] == 0 && c["scrub"]["read_bytes"].as_u64() > Some(0));
        ensure(clean, copies)
    });
    let shown = cluster.verb(&primary.name, &["status"]).unwrap();
    assert!(shown.contains("scrub: ended ") && shown.contains("(in a1, b2, c1)"), "{shown}");
    cluster.until_whole();
    cluster.kill_region(&primary.name);
    let (code, report) = verified(&primary);
    assert!(code == 0 && report["comparisons"][0]["compared"].as_array().unwrap().len() == 6, "{report}");

    // A directory from before: it has no vote as what it was, gets what it lacks, and is a new member then (D11).
    let old = primary.data_dir.join("b1.old");
    copy_files(&copy_dir(&primary, "b1"), &old);
    cluster.start_region(&primary.name);
    until("it writes", || ready.sql(&primary.writer, "insert into t values (900000, 'after')").map(drop));
    cluster.until_whole();
    cluster.kill_region(&primary.name);
    std::fs::remove_dir_all(copy_dir(&primary, "b1")).unwrap();
    copy_files(&old, &copy_dir(&primary, "b1"));
    let (_, report) = verified(&primary);
    assert!(report["copies"][2]["behind_frames"].as_u64() > Some(0), "{report}");
    let identity = |dir: &Path| std::fs::read(dir.join("identity")).unwrap();
    let before = identity(&copy_dir(&primary, "b1"));
    cluster.start_region(&primary.name);
    until("it is said", || {
        let events = cluster.events(&primary.name)?;
        let said = events.iter().any(|e| e["kind"] == "copy_forgot" && e["what"].as_str().is_some_and(|w| w.contains("copy b1")));
        ensure(said, events)
    });
    cluster.until_whole();
    assert_ne!(identity(&copy_dir(&primary, "b1")), before, "it is somebody else from then on");
    assert_eq!(ready.must(&primary.writer, "select count(*) from t where id = 900000"), "1");
    cluster.kill_region(&primary.name);
    let (code, report) = verified(&primary);
    assert!(code == 0 && report["comparisons"][0]["compared"].as_array().unwrap().len() == 6, "{report}");
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in files(from, "") {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// In the file that the running process has open.
fn flip_in_place(file: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x40;
    file.write_all_at(&byte, at).unwrap();
    file.sync_all().unwrap();
}
