//! `kill -9` at the n-th write, fsync, rename … of a real region process, for growing n: strace delivers the signal, a client commits
//! meanwhile, and after each death the same directory must come up with every row that was acknowledged and none that nobody
//! sent. The first deaths come while the cluster is being founded.
//!
//! Bounded by time: `PARHELION_KILL_SECONDS` (30) for all kinds of calls together. Where strace is missing the test says SKIPPED.

mod common;

use common::sql::program;
use common::{ByHand, PATIENCE, Ports, Ready, parhelion, run, tail, text, wait};
use parhelion::io::clock;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Calls that change what lies on a disk, as strace names them (a leading slash: a regular expression).
const CALLS: [(&str, &str); 5] =
    [("write", "/^pwrite"), ("fsync", "/^f(data)?sync$"), ("rename", "/^rename"), ("allocate", "fallocate"), ("remove", "/^unlink")];
/// A region that survived so many commits has no n-th call of that kind.
const COMMITS_MAX: i64 = 40;

struct Site {
    dir: tempfile::TempDir,
    config: PathBuf,
    log: PathBuf,
    ready: Ready,
    writer: String,
    _ports: Ports,
    /// Rows that were sent, and those of them that were acknowledged.
    sent: BTreeSet<i64>,
    acknowledged: BTreeSet<i64>,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::reserve(1);
        let [quic, writer, reader, http, instance] = [0, 1, 2, 3, 10].map(|n| format!("127.0.0.1:{}", ports.base + n));
        let config = dir.path().join("us.toml");
        let text = format!(
            "cluster = \"sun\"\nregion = \"us\"\ndata_dir = \"data\"\nfounder = \"us\"\n\n[listen]\nquic = \"{quic}\"\nwriter = \"{writer}\"\n\
             reader = \"{reader}\"\nhttp = \"{http}\"\ninstance = \"{instance}\"\n\n[tls]\ndir = \"certs\"\n\n[sql]\nuser = \"app\"\ndatabase = \"app\"\n\n\
             [[member]]\nregion = \"us\"\nquic = \"{quic}\"\n\n[[member]]\nregion = \"eu\"\nquic = \"127.0.0.1:{}\"\n",
            ports.base + 20
        );
        std::fs::write(&config, text).unwrap();
        let made = run(parhelion().args(["certs", "--config"]).arg(&config), "");
        assert!(made.status.success(), "{}", common::text(&made.stderr));
        let password = std::fs::read_to_string(dir.path().join("certs/sql-password")).unwrap().trim().to_owned();
        let ready = Ready { cluster: "sun".into(), user: "app".into(), password, database: "app".into(), regions: Vec::new() };
        let log = dir.path().join("us.log");
        Site { dir, config, log, ready, writer, _ports: ports, sent: BTreeSet::new(), acknowledged: BTreeSet::new() }
    }

    /// The region under strace, which kills it in the n-th such call of one of its threads.
    fn doomed(&self, strace: &str, calls: &str, n: u32) -> Child {
        self.injected(strace, calls, &format!("signal=KILL:when={n}"))
    }

    /// The region under strace, which does `what` to such calls of each of its threads.
    fn injected(&self, strace: &str, calls: &str, what: &str) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let plain = parhelion();
        let mut command = Command::new(strace);
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")]);
        command.arg(plain.get_program()).args(["region", "--exit-with-parent", "--config"]).arg(&self.config);
        command.current_dir(self.dir.path()).env_remove("PARHELION_CONFIG").env_remove("PARHELION_DATA_DIR");
        // Its end is this test's end: a tracee outlives its tracer.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Commits until the process is gone. `false`: it lived through all of them.
    fn commit_until_death(&mut self, process: &mut Child) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sent, acknowledged) = (&mut self.sent, &mut self.acknowledged);
        let died = runtime.block_on(async {
            let began = clock::now();
            let client = loop {
                if let Ok(client) = self.ready.connect(&self.writer).await
                    && client.batch_execute("create table if not exists t (id integer primary key, v blob)").await.is_ok()
                {
                    break client;
                }
                if process.try_wait().unwrap().is_some() {
                    return true;
                }
                assert!(clock::now().since(began) < PATIENCE, "it neither serves nor dies: {}", tail(&self.log));
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            for _ in 0..COMMITS_MAX {
                let id = sent.last().map_or(1, |last| last + 1);
                sent.insert(id);
                if client.execute("insert into t values ($1, randomblob(3000))", &[&id]).await.is_err() {
                    return true;
                }
                acknowledged.insert(id);
            }
            false
        });
        drop(process.stdin.take());
        wait(process, "a region that was killed, or whose parent is gone");
        died
    }

    /// Commits so many rows to a process that stays alive, whatever it says in between.
    fn commit_through_errors(&mut self, process: &mut Child, rows: usize, what: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let wanted = self.acknowledged.len() + rows;
        runtime.block_on(async {
            let began = clock::now();
            while self.acknowledged.len() < wanted {
                assert!(process.try_wait().unwrap().is_none(), "{what}: the process ended: {}", tail(&self.log));
                assert!(clock::now().since(began) < PATIENCE, "{what}: it does not take {rows} rows: {}", tail(&self.log));
                let Ok(client) = self.ready.connect(&self.writer).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                if client.batch_execute("create table if not exists t (id integer primary key, v blob)").await.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                while self.acknowledged.len() < wanted {
                    let id = self.sent.last().map_or(1, |last| last + 1);
                    self.sent.insert(id);
                    if client.execute("insert into t values ($1, randomblob(3000))", &[&id]).await.is_err() {
                        break;
                    }
                    self.acknowledged.insert(id);
                }
            }
        });
        drop(process.stdin.take());
        wait(process, "a region whose parent is gone");
    }

    /// Starts it as an operator would and compares.
    fn look(&self, what: &str) {
        let process = ByHand::start(&self.config, &self.log);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found: BTreeSet<i64> = runtime.block_on(async {
            let began = clock::now();
            loop {
                if let Ok(client) = self.ready.connect(&self.writer).await
                    && client.batch_execute("create table if not exists t (id integer primary key, v blob)").await.is_ok()
                {
                    let rows = client.query("select id from t where length(v) = 3000", &[]).await.unwrap();
                    return rows.iter().map(|row| row.get::<_, i64>(0)).collect();
                }
                assert!(clock::now().since(began) < PATIENCE, "killed at {what} it does not serve again: {}", tail(&self.log));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let lost: Vec<_> = self.acknowledged.difference(&found).collect();
        let phantoms: Vec<_> = found.difference(&self.sent).collect();
        assert!(lost.is_empty() && phantoms.is_empty(), "killed at {what}: acknowledged and lost {lost:?}, never sent {phantoms:?}");
        process.kill();
    }
}

/// `None` where it cannot inject; then it is said.
fn strace() -> Option<String> {
    let Some(strace) = program("strace") else {
        eprintln!("SKIPPED: strace is not installed; nothing happens to the calls of a region process");
        return None;
    };
    let can = run(Command::new(&strace).args(["-qq", "-o", "/dev/null", "-e", "inject=/^rename:signal=KILL:when=1", "true"]), "");
    if !can.status.success() {
        eprintln!("SKIPPED: strace may not trace here, or cannot inject: {}", text(&can.stderr));
        return None;
    }
    Some(strace)
}

/// The n-th call of *each* thread fails, so all six copies are hit in about the same moment: they leave their duty, are opened anew, and
/// writes go on in the same process. A call that is only interrupted is nothing at all.
#[test]
fn a_region_whose_calls_fail_goes_on_by_itself_and_loses_nothing() {
    let Some(strace) = strace() else { return };
    let mut site = Site::new();
    // Founded, and with rows, before anything fails.
    let mut process = site.injected(&strace, "/^pwrite", "error=EINTR:when=1+4");
    site.commit_through_errors(&mut process, 10, "interrupted writes");
    for (calls, what) in
        [("/^f(data)?sync$", "error=EINTR:when=1+3"), ("fallocate", "error=EINTR:when=1+2"), ("/^pread", "error=EINTR:when=12+3")]
    {
        let mut process = site.injected(&strace, calls, what);
        site.commit_through_errors(&mut process, 10, &format!("{calls} {what}"));
    }
    let said = std::fs::read_to_string(&site.log).unwrap();
    assert!(!said.contains("is down:"), "an interrupted call is tried again: {said}");
    for (calls, what) in [
        ("fdatasync", "error=EIO:when=6"),
        ("fdatasync", "error=EIO:when=9"),
        ("/^pwrite", "error=EIO:when=8"),
        ("/^pwrite", "error=ENOSPC:when=9"),
        ("fallocate", "error=ENOSPC:when=2"),
        ("/^rename", "error=EIO:when=3"),
        // fsync is that of a directory, behind a rename that was done: whoever is opened again must not believe it for that.
        ("fsync", "error=EIO:when=4"),
        ("fsync", "error=EIO:when=6"),
        ("pread64", "error=EIO:when=14"),
        ("/^unlink", "error=EIO:when=1"),
    ] {
        let mut process = site.injected(&strace, calls, what);
        site.commit_through_errors(&mut process, 25, &format!("{calls} {what}"));
    }
    let said = std::fs::read_to_string(&site.log).unwrap();
    assert!(said.contains("is down: the disk failed"), "no error was ever met: {said}");
    site.look("calls that failed");
}

#[test]
fn a_region_killed_at_any_call_loses_nothing() {
    let Some(strace) = strace() else { return };
    let seconds = std::env::var("PARHELION_KILL_SECONDS").map_or(30, |s| s.parse().expect("seconds"));
    let began = clock::now();
    let mut site = Site::new();
    let mut living: BTreeSet<&str> = CALLS.iter().map(|(name, _)| *name).collect();
    let mut deaths = 0;
    let mut n = 1;
    'time: loop {
        for (name, calls) in CALLS {
            if !living.contains(name) {
                continue;
            }
            if clock::now().since(began) >= Duration::from_secs(seconds) {
                break 'time;
            }
            let mut process = site.doomed(&strace, calls, n);
            if site.commit_until_death(&mut process) {
                deaths += 1;
                site.look(&format!("{name} {n}"));
            } else {
                living.remove(name);
            }
        }
        if living.is_empty() {
            break;
        }
        // Every call at first, then with growing steps.
        n += 1 + n / 6;
    }
    println!("killed at {deaths} calls, up to the {n}th; {} commits acknowledged of {} sent", site.acknowledged.len(), site.sent.len());
    assert!(deaths > 0 || seconds == 0, "nothing was ever killed: {}", tail(&site.log));
}
