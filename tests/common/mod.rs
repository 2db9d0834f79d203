//! Whole global clusters for tests: the real program, one process per region, on ports and directories of their own.
//!
//! A [`Cluster`] is a demo; [`Cluster::start_region`] runs a region by hand, as an operator would after a crash. Everything that is
//! waited for is polled with a deadline ([`until`]), and whoever waits in vain is told the end of every log. Dropped, everything ends.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod sql;
pub mod two;

use parhelion::base::Instant;
use parhelion::io::clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Far more than anything here takes on a machine that builds something else at the same time.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(20);

pub fn parhelion() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    for name in ["PARHELION_CONFIG", "PARHELION_DATA_DIR", "PARHELION_LOG", "PARHELION_LOG_FORMAT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Polls until `check` says `Ok`; panics with its last word when that takes too long.
pub fn until<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let began = clock::now();
    loop {
        match check() {
            Ok(done) => return done,
            Err(last) if clock::now().since(began) > PATIENCE => panic!("{what}: not after {PATIENCE:?}; last: {last}"),
            Err(_) => std::thread::sleep(PACE),
        }
    }
}

/// `Ok` when it holds, else the sentence.
pub fn ensure(holds: bool, otherwise: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{otherwise:?}")) }
}

/// Runs a command to its end; it is killed, and the test fails, when that does not come.
pub fn run(command: &mut Command, input: &str) -> Output {
    let shown = format!("{command:?}");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let feed = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let status = wait(&mut child, &shown);
    feed.join().expect("the input is fed");
    let bytes = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| thread.join().expect("a reader").expect("a pipe");
    Output { status, stdout: bytes(out), stderr: bytes(err) }
}

/// The end of a process, within bounds.
pub fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let began = clock::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if clock::now().since(began) > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    kill_process(pid, signal).expect("the process is there and ours");
}

/// Whether a process of that id still runs (one that nobody has collected yet does not, when all of its threads are gone: until then
/// its files are open and locked).
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')) || threads() > 1
}

/// In one piece: whoever looks sees the whole point or none.
pub fn arm(file: &Path, point: &str) {
    std::fs::write(file.with_extension("new"), point).expect("a file");
    std::fs::rename(file.with_extension("new"), file).expect("a file");
}

/// A block of 100 ports per region. The listener keeps it from others, in this process and in any other.
pub struct Ports {
    pub base: u16,
    _reserved: TcpListener,
}

impl Ports {
    pub fn reserve(regions: u16) -> Ports {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        const BLOCK: u16 = 400;
        const BLOCKS: u16 = 50;
        assert!(regions <= 4, "a block holds four regions");
        // Below the ports that the system gives out by itself.
        let own = u16::try_from(std::process::id() % u32::from(BLOCKS)).expect("small");
        for _ in 0..BLOCKS {
            let at = (own * 7 + NEXT.fetch_add(1, Ordering::Relaxed)) % BLOCKS;
            let base = 12_000 + at * BLOCK;
            let Ok(reserved) = TcpListener::bind(("127.0.0.1", base + 99)) else { continue };
            let free = |first: u16| {
                [1, 2, 3, 10, 11].iter().all(|n| TcpListener::bind(("127.0.0.1", first + n)).is_ok())
                    && [0, 50, 51, 52, 53].iter().all(|n| UdpSocket::bind(("127.0.0.1", first + n)).is_ok())
            };
            if (0..regions).all(|i| free(base + 100 * i)) {
                return Ports { base, _reserved: reserved };
            }
        }
        panic!("no free ports");
    }
}

/// One entry of the ready file.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    pub name: String,
    pub role: String,
    pub writer: String,
    pub reader: String,
    pub http: String,
    pub quic: String,
    pub pid: u32,
    pub data_dir: PathBuf,
    pub config: PathBuf,
}

impl Region {
    /// The port of the region's one instance: nothing is passed on from there.
    pub fn instance(&self) -> String {
        let (host, port) = self.writer.rsplit_once(':').expect("host:port");
        format!("{host}:{}", port.parse::<u16>().expect("a port") + 9)
    }
}

/// The ready file, exactly as documented: another key, or a missing one, is an error.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub cluster: String,
    pub user: String,
    pub password: String,
    pub database: String,
    pub regions: Vec<Region>,
}

/// A process of a region, or of a witness, started by hand. Killed when dropped.
pub struct ByHand {
    pub child: Child,
    pub log: PathBuf,
}

impl ByHand {
    pub fn start(config: &Path, log: &Path) -> ByHand {
        ByHand::start_with(config, log, &[])
    }

    pub fn start_with(config: &Path, log: &Path, env: &[(&str, &Path)]) -> ByHand {
        ByHand::start_as("region", config, log, env)
    }

    pub fn start_witness(config: &Path, log: &Path) -> ByHand {
        ByHand::start_as("witness", config, log, &[])
    }

    fn start_as(verb: &str, config: &Path, log: &Path, env: &[(&str, &Path)]) -> ByHand {
        let file = std::fs::File::options().create(true).append(true).open(log).expect("a log");
        let mut command = parhelion();
        command.args([verb, "--config"]).arg(config).stdout(Stdio::null()).stderr(file).envs(env.iter().copied());
        ByHand { child: command.spawn().expect("the program runs"), log: log.to_owned() }
    }

    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// As Ctrl-C would.
    pub fn stop(mut self) {
        signal(self.child.id(), Signal::TERM);
        let status = wait(&mut self.child, "a region that was asked to end");
        assert_eq!(status.code(), Some(0), "{}", tail(&self.log));
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A demo, and what is known of it.
pub struct Cluster {
    pub dir: PathBuf,
    pub ready: Ready,
    pub ready_file: PathBuf,
    pub ports: Ports,
    demo: Option<Child>,
    output: Arc<Mutex<String>>,
    by_hand: Vec<(String, ByHand)>,
    /// Goes last.
    _temp: Option<tempfile::TempDir>,
}

impl Cluster {
    pub fn start(regions: u16, profile: &str) -> Cluster {
        let temp = tempfile::tempdir().expect("a directory");
        let dir = temp.path().join("demo");
        let mut cluster = Cluster::start_in(dir, Ports::reserve(regions), &["--regions", &regions.to_string(), "--profile", profile]);
        cluster._temp = Some(temp);
        cluster
    }

    /// On a directory that is the caller's.
    pub fn start_in(dir: PathBuf, ports: Ports, args: &[&str]) -> Cluster {
        let ready_file = dir.with_extension("ready.json");
        // That of a demo that was killed.
        let _ = std::fs::remove_file(&ready_file);
        let mut command = parhelion();
        command.arg("demo").arg("--dir").arg(&dir).args(["--base-port", &ports.base.to_string()]);
        command.arg("--ready-file").arg(&ready_file).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let output = Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for pipe in pipes {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = writeln!(output.lock().expect("a reader lives"), "{line}");
                }
            });
        }
        let ready: Ready = until("the ready file", || {
            if let Some(status) = child.try_wait().expect("a child") {
                panic!("the demo ended with {status}: {}", output.lock().expect("a reader lives"));
            }
            let text = std::fs::read_to_string(&ready_file).map_err(|e| format!("{e}; {}", output.lock().expect("a reader lives")))?;
            Ok(serde_json::from_str(&text).expect("the ready file appears whole, and as documented"))
        });
        Cluster { dir, ready, ready_file, ports, demo: Some(child), output, by_hand: Vec::new(), _temp: None }
    }

    /// What the demo printed so far.
    pub fn output(&self) -> String {
        self.output.lock().expect("a reader lives").clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.ready.regions.iter().map(|r| r.name.clone()).collect()
    }

    pub fn primary(&self) -> &Region {
        &self.ready.regions[0]
    }

    pub fn secondaries(&self) -> &[Region] {
        &self.ready.regions[1..]
    }

    pub fn region(&self, name: &str) -> &Region {
        self.ready.regions.iter().find(|r| r.name == name).expect("a region of the demo")
    }

    /// `kill -9` of the region's process, and waits until it is gone.
    pub fn kill_region(&mut self, name: &str) {
        if let Some(i) = self.by_hand.iter().position(|(n, _)| n == name) {
            self.by_hand.remove(i).1.kill();
            return;
        }
        let pid = self.region(name).pid;
        signal(pid, Signal::KILL);
        until("the end of a killed process", || ensure(!runs(pid), "it runs"));
    }

    /// The same command that the demo names when a region's process dies.
    pub fn start_region(&mut self, name: &str) {
        let log = self.dir.join("logs").join(format!("{name}.by-hand.log"));
        // Where it dies, if that is asked for ([`Cluster::arm`]).
        let point = self.point(name);
        let process = ByHand::start_with(&self.region(name).config, &log, &[("PARHELION_KILL_POINT", &point)]);
        self.by_hand.push((name.to_owned(), process));
    }

    /// A region that was started by hand kills itself when it comes to that point.
    pub fn arm(&self, name: &str, point: &str) {
        arm(&self.point(name), point);
    }

    /// Whether it came to its point.
    pub fn at_its_point(&self, name: &str) -> bool {
        !self.point(name).exists()
    }

    /// It came to its point: waits until it is dead, and starts it again.
    pub fn start_the_dead(&mut self, name: &str) {
        let i = self.by_hand.iter().position(|(n, _)| n == name).expect("it was started by hand");
        let (_, mut process) = self.by_hand.remove(i);
        assert!(!wait(&mut process.child, "a region that kills itself").success());
        self.start_region(name);
    }

    fn point(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.kill"))
    }

    /// Waits for the end of a region that was started by hand and ends by itself.
    pub fn until_ended(&mut self, name: &str) {
        let i = self.by_hand.iter().position(|(n, _)| n == name).expect("it was started by hand");
        let (_, mut process) = self.by_hand.remove(i);
        let status = wait(&mut process.child, "a region that ends by itself");
        assert_eq!(status.code(), Some(0), "{}", tail(&process.log));
    }

    /// Ends a region that was started by hand, as Ctrl-C does.
    pub fn stop_region(&mut self, name: &str) {
        let i = self.by_hand.iter().position(|(n, _)| n == name).expect("it was started by hand");
        self.by_hand.remove(i).1.stop();
    }

    /// `status --json`, asked of one region.
    pub fn status_of(&self, name: &str) -> Result<Value, String> {
        json_of(parhelion().args(["status", "--json", "--config"]).arg(&self.region(name).config))
    }

    /// The row of `region` in the answer of `asked`.
    pub fn row(&self, asked: &str, region: &str) -> Result<Value, String> {
        row(&self.status_of(asked)?, region)
    }

    /// Waits until every region serves its role, with all six copies of each group at the same position.
    pub fn until_whole(&self) -> Value {
        let asked = &self.primary().name;
        until("the whole cluster is well", || {
            let status = self.status_of(asked)?;
            let lsn = &row(&status, asked)?["durable_lsn"];
            for region in self.names() {
                let row = row(&status, &region)?;
                let fine = ["writable", "idle", "streaming"].contains(&row["state"].as_str().unwrap_or_default());
                let copies = row["copies"].as_array().cloned().unwrap_or_default();
                let up = copies.iter().filter(|c| c["state"] == "up" && c["durable_lsn"] == *lsn).count();
                if !fine
                    || row["lag_known"] != true
                    || row["durable_lsn"] != *lsn
                    || row["visible_lsn"] != *lsn
                    || up < 6
                    || up != copies.len()
                {
                    return Err(status.to_string());
                }
            }
            Ok(status)
        })
    }

    pub fn events(&self, asked: &str) -> Result<Vec<Value>, String> {
        let output = run(parhelion().args(["events", "--json", "--config"]).arg(&self.region(asked).config), "");
        if !output.status.success() {
            return Err(text(&output.stderr));
        }
        Ok(text(&output.stdout).lines().map(|l| serde_json::from_str(l).expect("an event per line")).collect())
    }

    /// A verb that takes `--config`, with the file of `region`; stdout, or stderr as the error.
    pub fn verb(&self, region: &str, args: &[&str]) -> Result<String, String> {
        let output = run(parhelion().args(args).arg("--config").arg(&self.region(region).config), "");
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub fn netem(&self, args: &[&str]) {
        let output = run(parhelion().arg("netem").args(args).arg("--dir").arg(&self.dir), "");
        assert!(output.status.success(), "netem {args:?}: {}", text(&output.stderr));
    }

    /// Ctrl-C, and waits for the end. The regions that were started by hand go on.
    pub fn interrupt(&mut self) -> ExitStatus {
        let mut demo = self.demo.take().expect("the demo runs");
        signal(demo.id(), Signal::INT);
        wait(&mut demo, "a demo that was asked to end")
    }

    /// `kill -9` of the demo itself.
    pub fn kill_demo(&mut self) {
        let mut demo = self.demo.take().expect("the demo runs");
        demo.kill().expect("it runs");
        demo.wait().expect("it ends");
    }

    /// The end of every log, for whoever wants to know why.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        let Ok(files) = std::fs::read_dir(self.dir.join("logs")) else { return all };
        for file in files.flatten() {
            let _ = writeln!(all, "--- {}\n{}", file.path().display(), tail(&file.path()));
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.by_hand.clear();
        if let Some(mut demo) = self.demo.take() {
            let pid = Pid::from_raw(demo.id().cast_signed()).expect("a process id");
            let _ = kill_process(pid, Signal::TERM);
            let began = clock::now();
            while demo.try_wait().is_ok_and(|ended| ended.is_none()) && clock::now().since(began) < Duration::from_secs(20) {
                std::thread::sleep(PACE);
            }
            // Its regions end with it.
            let _ = demo.kill();
            let _ = demo.wait();
        }
    }
}

pub fn tail(file: &Path) -> String {
    let text = std::fs::read(file).map(|b| text(&b)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

pub fn json_of(command: &mut Command) -> Result<Value, String> {
    let output = run(command, "");
    if !output.status.success() {
        return Err(text(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON and nothing else on stdout"))
}

pub fn row(status: &Value, region: &str) -> Result<Value, String> {
    let rows = status["regions"].as_array().cloned().unwrap_or_default();
    rows.into_iter().find(|r| r["name"] == region).ok_or_else(|| format!("no {region} in {status}"))
}

/// Status code and body of one HTTP GET.
pub fn http_get(address: &str, path: &str) -> Result<(u16, String), String> {
    let io = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect(address).map_err(io)?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(io)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).map_err(io)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(io)?;
    let answer = text(&bytes);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP: {answer}"))?;
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).ok_or_else(|| format!("no status: {head}"))?;
    Ok((code, body.to_owned()))
}

/// The value of a metric, by its name with labels as Prometheus prints it.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

pub fn now() -> Instant {
    clock::now()
}

/// A verb with `--config`; exit code, stdout, stderr.
pub fn verb(config: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(parhelion().args(args).arg("--config").arg(config), "");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Its JSON, where it must succeed.
pub fn must(config: &Path, args: &[&str]) -> Value {
    let (code, out, err) = verb(config, args);
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: JSON and nothing else on stdout: {e}: {out}"))
}
