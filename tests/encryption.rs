//! Encryption at rest, on real processes: what users write is in no file of a region or a witness that has a key, and who has not the
//! right key is told so before anything is read.

mod common;

use common::two::{NAMES, Two, WITNESS};
use common::{ensure, http_get, must, parhelion, run, text, until, verb};
use parhelion::io::sealing::Key;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Stands in rows, in keys, in a table's name, and in what is lost.
const CANARY: &str = "canary_k7w2_sings";

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

/// The files below `dir` in which `word` stands.
fn holding(dir: &Path, word: &str) -> Vec<PathBuf> {
    let has = |file: &PathBuf| std::fs::read(file).is_ok_and(|bytes| bytes.windows(word.len()).any(|w| w == word.as_bytes()));
    files_below(dir).into_iter().filter(has).collect()
}

struct Site {
    two: Two,
    dir: tempfile::TempDir,
}

impl Site {
    fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    fn start(encrypted: bool) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let made = run(parhelion().args(["key", "--out"]).arg(dir.path().join("key")), "");
        assert!(made.status.success(), "{}", text(&made.stderr));
        let section = format!("[encryption]\nkey_file = \"{}\"\n", dir.path().join("key").display());
        // Layers come early.
        let two = Two::start_with_regions(if encrypted { &section } else { "" }, "[limits]\nmemtable_bytes_max = 65536\n");
        Site { two, dir }
    }

    /// Rows, so many that there are layers; then a lost tail. Returns the failover's id.
    fn lose_a_tail(&mut self) -> String {
        let two = &mut self.two;
        let [east, west] = [0, 1].map(|i| two.ready.regions[i].clone());
        let ready = two.ready.clone();
        two.until_all_vote();
        let made = format!("create table {CANARY} (id text primary key, v text); insert into {CANARY} values ('{CANARY} 1', '{CANARY}')");
        until("it writes", || ready.sql(&east.writer, &made).map(drop));
        // More than a memtable takes.
        for _ in 0..10 {
            ready.must(
                &east.writer,
                "create table if not exists big (b blob); insert into big select randomblob(10000) from generate_series(1, 40)",
            );
        }
        until("the secondary has all", || {
            let there = ready.sql(&west.reader, "select count(*) from big")?;
            ensure(there == "400", there)
        });
        // Nobody hears of the last commit.
        two.kill_region(1);
        ready.must(&east.writer, &format!("insert into {CANARY} values ('{CANARY} lost', '{CANARY}')"));
        two.kill_region(0);
        two.start_region(1);
        let done = until("the other one takes over", || {
            let (code, out, err) = verb(&west.config, &["failover", "--to", NAMES[1], "--allow-data-loss", "--json"]);
            ensure(code == Some(0), format!("{out}{err}")).map(|()| serde_json::from_str::<serde_json::Value>(&out).unwrap())
        });
        let id = done["id"].as_str().expect("an id").to_owned();
        ready.must(&west.writer, &format!("insert into {CANARY} values ('{CANARY} after', '')"));
        two.start_region(0);
        until("what was lost is known, by table and key", || {
            let report = must(&west.config, &["failover", "report", &id, "--json"]);
            ensure(report["touched"][0]["keys"][0] == format!("{CANARY} lost"), report)
        });
        id
    }
}

#[test]
fn what_users_write_is_in_no_file_of_who_has_a_key_and_the_key_is_shown_nowhere() {
    let mut site = Site::start(true);
    let id = site.lose_a_tail();
    let east = site.two.ready.regions[0].clone();
    let ready = site.two.ready.clone();
    let key = std::fs::read_to_string(site.key()).unwrap();
    let secret = key.trim_end().rsplit(' ').next().unwrap().to_owned();

    // Whoever runs with the key reads it: rows, the lost tail, the files.
    until("it is read", || {
        let rows = ready.sql(&east.reader, &format!("select count(*) from {CANARY}"))?;
        ensure(rows == "2", rows)
    });
    let lost = must(&east.config, &["salvage", "--json"]);
    let archive = lost[0]["id"].as_str().unwrap_or_else(|| panic!("an archive: {lost}")).to_owned();
    let (code, rows, err) = verb(&east.config, &["salvage", &archive, "--diff", CANARY]);
    assert!(code == Some(0) && rows.contains(&format!("{CANARY} lost")), "{rows}{err}");
    let verified = until("the files are at rest", || {
        let (code, out, err) = verb(&east.config, &["volume", "verify", "--json"]);
        ensure(code == Some(0), format!("{out}{err}")).map(|()| out)
    });
    assert!(verified.contains("\"intact\":true"), "{verified}");

    // Nothing that is shown contains the key: logs, status, metrics, events, the report.
    let mut shown = vec![must(&east.config, &["status", "--json"]).to_string(), http_get(&east.http, "/metrics").unwrap().1];
    shown.push(verb(&east.config, &["events", "--json"]).1);
    shown.push(must(&east.config, &["failover", "report", &id, "--json"]).to_string());
    shown.extend([NAMES[0], NAMES[1], WITNESS].map(|name| std::fs::read_to_string(site.two.log(name)).unwrap()));
    assert!(shown.iter().all(|said| !said.contains(&secret)));

    // And after a crash, and when all has ended, nothing lies anywhere.
    site.two.kill_region(0);
    site.two.start_region(0);
    until("it is read again", || {
        let rows = ready.sql(&east.reader, &format!("select count(*) from {CANARY}"))?;
        ensure(rows == "2", rows)
    });
    let root = site.two.root().to_path_buf();
    for i in 0..2 {
        site.two.stop_region(i);
    }
    assert_eq!(holding(&root, CANARY), Vec::<PathBuf>::new());
    assert_eq!(holding(&root, &secret), Vec::<PathBuf>::new());
    let layers = files_below(&root).into_iter().filter(|f| f.file_name().is_some_and(|n| n.to_string_lossy().contains("layer-"))).count();
    assert!(layers > 0, "nothing was tried of layers");

    // The wrong key, none, one that others can read: refused before anything changes, each with what to do.
    let before: Vec<(PathBuf, Vec<u8>)> = copies(&east.data_dir);
    let refused = |change: &dyn Fn(&str) -> String, words: &[&str]| {
        let file = east.config.with_file_name("changed.toml");
        std::fs::write(&file, change(&std::fs::read_to_string(&east.config).unwrap())).unwrap();
        for args in [&["region"][..], &["volume", "verify"]] {
            let output = run(parhelion().args(args).arg("--config").arg(&file), "");
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            assert!(words.iter().all(|w| said.contains(w)) && !said.contains(&secret), "{args:?}: {said}");
        }
        assert!(copies(&east.data_dir) == before, "something was written");
    };
    let other = site.dir.path().join("other");
    let other_id = Key::make(&other).unwrap().id().to_string();
    let (named, other_name) = (site.key().display().to_string(), other.display().to_string());
    refused(
        &|t| t.replace(&named, &other_name),
        &["is sealed with the key", &other_id, "name the right file", "nothing was read or written"],
    );
    let none = |t: &str| t.replace(&format!("[encryption]\nkey_file = \"{named}\"\n"), "");
    refused(&none, &["is sealed with the key", "no key is named", "key_file in [encryption]"]);
    refused(&|t| t.replace(&named, "nowhere"), &["cannot be read", "parhelion key --out"]);
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&|t| t.replace(&named, &other_name), &["chmod 600"]);
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();

    // Another key in its place: the files stay, the old one opens nothing any more.
    let (code, said, err) = verb(&east.config, &["key", "rotate", "--new", &other_name]);
    assert!(code == Some(0) && said.contains(&other_id), "{said}{err}");
    let (code, _, err) = verb(&east.config, &["volume", "verify"]);
    assert!(code == Some(1) && err.contains("name the right file"), "{err}");
    let text = std::fs::read_to_string(&east.config).unwrap().replace(&named, &other_name);
    std::fs::write(&east.config, text).unwrap();
    let (code, out, err) = verb(&east.config, &["volume", "verify"]);
    assert_eq!(code, Some(0), "{out}{err}");
}

fn copies(data_dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = files_below(&data_dir.join("copies")).into_iter().map(|f| (f.clone(), std::fs::read(f).unwrap())).collect();
    files.sort();
    files
}

/// So that the test above can fail: without a key it lies there, in the log, in layers, and in what every member knows of the failover.
#[test]
fn without_a_key_it_lies_in_the_files_and_a_key_named_later_is_refused() {
    let mut site = Site::start(false);
    site.lose_a_tail();
    let east = site.two.ready.regions[0].clone();
    let root = site.two.root().to_path_buf();
    until("the witness knows of it, too", || ensure(!holding(&root.join(WITNESS), CANARY).is_empty(), "nothing"));
    for i in 0..2 {
        site.two.stop_region(i);
    }
    let found: Vec<String> = holding(&root, CANARY).iter().map(|f| f.strip_prefix(&root).unwrap().display().to_string()).collect();
    for part in ["us-east/copies/a1/log-", "us-east/copies/a1/control", "us-east/copies/a1/layer-", "witness/voter/voter-0"] {
        assert!(found.iter().any(|f| f.starts_with(part)), "{part} in {found:?}");
    }
    let before = copies(&east.data_dir);
    let file = east.config.with_file_name("changed.toml");
    let section = format!("[encryption]\nkey_file = \"{}\"\n[sql]", site.key().display());
    std::fs::write(&file, std::fs::read_to_string(&east.config).unwrap().replace("[sql]", &section)).unwrap();
    let output = run(parhelion().args(["region", "--config"]).arg(&file), "");
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("holds plain files") && said.contains("nothing was read or written"),
        "{said}"
    );
    assert!(copies(&east.data_dir) == before, "something was written");
}
