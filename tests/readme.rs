//! The README cannot rot: its commands are run here as they stand, on a real demo and on regions started by hand.
//!
//! A fenced block says behind its language where it is run: `demo` (all of these in order, as one script beside a running demo),
//! `regions` and `zones` (each in a copy of `regions/`), `ci` (each line stands in `.ci/run`). A block that says none of these fails. Changed in the
//! scripts: the ports, so that tests do not meet; and what reads a secondary, or asks for a cluster that comes up, is repeated
//! until it holds, as nobody types that fast. What needs a client that this machine lacks is left out, and that is said.

use clap::Parser as _;
use parhelion::io::clock;
use parhelion::ops::cli::Cli;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Far more than anything here takes on a machine that builds something else at the same time.
const PATIENCE: Duration = Duration::from_secs(180);

struct Block {
    line: usize,
    language: String,
    place: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("README.md is there")
}

fn blocks() -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    for (i, line) in readme().lines().enumerate() {
        if let Some(info) = line.strip_prefix("```") {
            open = !open;
            if open {
                let (language, place) = info.trim().split_once(' ').unwrap_or((info.trim(), ""));
                found.push(Block { line: i + 1, language: language.to_owned(), place: place.trim().to_owned(), text: String::new() });
            }
        } else if open {
            let block = found.last_mut().expect("BUG: a block was opened");
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(!open, "README.md: the last block is not closed");
    found
}

/// The words of a command line as a shell has them, up to a comment, a pipe or another command.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut started) = (String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (None, '#' | '|' | '&' | ';') if !started => break,
            (None, '\'' | '"') => (quote, started) = (Some(c), true),
            (Some(q), c) if c == q => quote = None,
            (None, ' ') => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            (_, c) => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

fn parses(line: &str) -> Result<(), String> {
    let ours = line.strip_prefix("cargo run --release -- ").map(|rest| format!("parhelion {rest}")).unwrap_or(line.to_owned());
    if !ours.starts_with("parhelion ") {
        return Ok(());
    }
    match Cli::try_parse_from(words(&ours)) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == clap::error::ErrorKind::DisplayHelp => Ok(()),
        Err(e) => Err(format!("`{line}`: {e}")),
    }
}

#[test]
fn every_command_is_one() {
    let mut wrong = Vec::new();
    for block in blocks().iter().filter(|b| b.language == "sh") {
        wrong.extend(block.text.lines().filter_map(|line| parses(line).err()));
    }
    // In the text, a command stands in backquotes; words in capitals are to be filled in.
    for name in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root().join(name)).expect("it is there");
        for span in text.split('`').skip(1).step_by(2).filter(|s| s.starts_with("parhelion ") && !s.contains('\n')) {
            let filled = |w: String| match w.as_str() {
                "SEED" => "7".to_owned(),
                "VERB" => "status".to_owned(),
                _ => w,
            };
            let line: Vec<String> = words(span).into_iter().map(filled).collect();
            wrong.extend(parses(&line.join(" ")).err().map(|e| format!("{name}: {e}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_block_is_run_somewhere() {
    let script = fs::read_to_string(root().join(".ci/run")).expect(".ci/run is there");
    for block in blocks() {
        match (block.language.as_str(), block.place.as_str()) {
            ("text", "") | ("sh" | "python", "demo") | ("sh", "regions" | "zones") => {}
            ("sh", "ci") => {
                for line in block.text.lines() {
                    assert!(script.contains(line), "README.md:{}: `{line}` does not stand in .ci/run", block.line);
                }
            }
            (language, place) => panic!("README.md:{}: nothing runs a block '{language} {place}'", block.line),
        }
    }
}

/// Files and tests that the texts name: `src/a/b.rs`, `tests/a.rs::a_test`.
#[test]
fn what_the_texts_name_exists() {
    let mut missing = Vec::new();
    for name in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root().join(name)).expect("it is there");
        let prose: String = text.split("```").step_by(2).collect();
        for span in prose.split('`').skip(1).step_by(2).filter(|s| ["src/", "tests/", "regions/", "fuzz/"].iter().any(|d| s.starts_with(d)))
        {
            let (file, test) = span.split_once("::").map_or((span, None), |(f, t)| (f, Some(t)));
            let found = root().join(file).exists()
                && test.is_none_or(|t| fs::read_to_string(root().join(file)).is_ok_and(|code| code.contains(&format!("fn {t}("))));
            if !found {
                missing.push(format!("{name}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "these are named and do not exist:\n{}", missing.join("\n"));
}

/// What the README shows of the world stays true of the code.
#[test]
fn numbers_of_the_text_are_those_of_the_code() {
    let text = readme();
    let limits = parhelion::base::Limits::default();
    assert!(text.contains("up to five") && limits.secondaries_max == 5);
    assert!(text.contains("up to 1 GiB of log is kept") && limits.log_retain_bytes == 1 << 30);
    assert!(text.contains(&format!("SQLite {}", rusqlite::version().rsplit_once('.').expect("a.b.c").0)));
    let rust = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml is there");
    assert!(text.contains("Rust 1.95") && rust.contains("rust-version = \"1.95\""));
}

/// Ports `base + 100 * region + port` that nobody has, below those that the kernel gives out.
fn free_base_port(nth: u32) -> u16 {
    let start = 10_000 + (std::process::id() * 7 + nth * 1000) % 20_000;
    let free = |base: &u32| {
        (0..4).all(|i| {
            let port = |n: u32| u16::try_from(base + 100 * i + n).expect("below 65536");
            let tcp = [1, 2, 3, 10].iter().all(|n| TcpListener::bind(("127.0.0.1", port(*n))).is_ok());
            tcp && [0, 4, 5, 6, 50, 51, 52].iter().all(|n| UdpSocket::bind(("127.0.0.1", port(*n))).is_ok())
        })
    };
    let base = (0..40).map(|k| 10_000 + (start - 10_000 + k * 400) % 20_000).find(free).expect("some 400 ports are free");
    u16::try_from(base).expect("below 65536")
}

fn with_ports(text: &str, base: u16) -> String {
    let mut out = text.to_owned();
    for i in 0..4u16 {
        for n in ["00", "01", "02", "03", "04", "05", "06", "10"] {
            let port = base + 100 * i + n.parse::<u16>().expect("a number");
            out = out.replace(&format!("{}{n}", 74 + i), &format!("\u{1}{port}\u{2}"));
        }
    }
    // Marks that stand in no command: a port that was put in is not taken for another one.
    out.replace(['\u{1}', '\u{2}'], "")
}

/// On PATH, or in the directory of this build.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        eprintln!("SKIPPED: {program} is not here; what the README does with it is not run");
    }
    found
}

fn python() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let good = Command::new(&python).args(["-c", "import psycopg"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !good {
        eprintln!("SKIPPED: {python} has no psycopg (set PYTHON to one that has); the README's Python is not run");
    }
    good.then_some(python)
}

const PRELUDE: &str = "set -eu\n\
    eventually() { for _ in $(seq 300); do \"$@\" && return 0; sleep 0.1; done; echo \"in vain: $*\" >&2; return 1; }\n\
    trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n";

/// The blocks of a place as one script.
fn script(place: &str, dir: &Path, base: u16) -> String {
    let (psql, curl, flock, python) = (has("psql"), has("curl"), has("flock"), python());
    let mut script = PRELUDE.to_owned();
    for block in blocks().iter().filter(|b| b.place == place) {
        let text = with_ports(&block.text, base);
        if block.language == "python" {
            let file = dir.join(format!("readme-{}.py", block.line));
            fs::write(&file, &text).expect("the script can be written");
            if let Some(python) = &python {
                writeln!(script, "echo '+ python'; '{python}' '{}'", file.display()).expect("a string grows");
            }
            continue;
        }
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            let command = line.split_whitespace().next().unwrap_or_default();
            if (command == "psql" && !psql) || (command == "curl" && !curl) {
                continue;
            }
            writeln!(script, "echo {}", shell_quoted(&format!("+ {line}"))).expect("a string grows");
            let reads_elsewhere = line.contains(&format!("-p {}", base + 102));
            let comes_up = line.contains("--check")
                || (["regions", "zones"].contains(&place)
                    && ["parhelion status", "parhelion copy list", "parhelion copy slow"].iter().any(|c| line.starts_with(c)));
            if line.starts_with("kill -9") && place == "zones" {
                // Nobody types so fast that the first start, which needs all six, is not over.
                script.push_str("list() { parhelion copy list --config regions/zones/us-east.toml; }\n");
                script.push_str("ups() { test $(list | grep -cE ' (up|catching_up) ') = $1; }\neventually ups 6\n");
            }
            let again = if reads_elsewhere || comes_up { "eventually " } else { "" };
            writeln!(script, "{again}{line}").expect("a string grows");
            if line.starts_with("kill -9") && place == "demo" && flock {
                // The process is gone a moment later: when its lock is free.
                script.push_str("eventually flock --nonblock parhelion-demo/data/eu-west/LOCK true\n");
            }
        }
    }
    script
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn parhelion(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    clean(&mut command, dir);
    command
}

fn clean(command: &mut Command, dir: &Path) {
    for name in ["PARHELION_CONFIG", "PARHELION_DATA_DIR", "PARHELION_LOG", "PARHELION_LOG_FORMAT"] {
        command.env_remove(name);
    }
    command.current_dir(dir).stdin(Stdio::null());
}

fn ends(child: &mut Child) -> Option<ExitStatus> {
    let began = clock::now();
    while clock::now().since(began) < PATIENCE {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

/// Runs the script; its output goes to a file, as what it leaves in the background would keep a pipe open.
fn run(script: &str, dir: &Path) {
    let bin = PathBuf::from(env!("CARGO_BIN_EXE_parhelion"));
    let path = format!("{}:{}", bin.parent().expect("in a directory").display(), std::env::var("PATH").unwrap_or_default());
    let (file, output) = (dir.join("readme.sh"), dir.join("readme.out"));
    fs::write(&file, script).expect("the script can be written");
    let out = fs::File::create(&output).expect("the output can be written");
    let mut bash = Command::new("bash");
    clean(&mut bash, dir);
    bash.arg(&file).env("PATH", path).stdout(out.try_clone().expect("a second handle")).stderr(out);
    let mut bash = bash.spawn().expect("bash runs");
    let status = ends(&mut bash);
    if status.is_none() {
        let _ = bash.kill();
    }
    let said = fs::read_to_string(&output).unwrap_or_default();
    assert!(status.is_some_and(|s| s.success()), "{status:?}; the script said:\n{said}");
    println!("{said}");
}

/// A demo that ends with the test, however that ends.
struct Demo(Child);

impl Demo {
    fn start(dir: &Path, base: u16) -> Demo {
        let log = fs::File::create(dir.join("demo.out")).expect("the log can be written");
        let mut command = parhelion(dir);
        command.args(["demo", "--ready-file", "ready.json", "--base-port", &base.to_string()]);
        let demo = Demo(command.stdout(log.try_clone().expect("a second handle")).stderr(log).spawn().expect("the demo starts"));
        let began = clock::now();
        while !dir.join("ready.json").exists() {
            let said = || fs::read_to_string(dir.join("demo.out")).unwrap_or_default();
            assert!(clock::now().since(began) < PATIENCE, "the demo does not become ready: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        demo
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.0);
        if kill_process(pid, Signal::INT).is_err() || ends(&mut self.0).is_none() {
            let _ = self.0.kill();
        }
    }
}

#[test]
fn the_demo_blocks_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = free_base_port(0);
    let _demo = Demo::start(dir.path(), base);
    let mut script = script("demo", dir.path(), base);
    // After all that was broken: whole again.
    script.push_str("eventually parhelion status --check\n");
    run(&script, dir.path());
}

#[test]
fn the_regions_start_by_hand() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = free_base_port(1);
    copy_with_ports(&root().join("regions"), &dir.path().join("regions"), base);
    let mut script = script("regions", dir.path(), base);
    script.push_str("eventually parhelion status --check --config regions/us-east.toml\n");
    run(&script, dir.path());
}

fn copy_with_ports(from: &Path, to: &Path, base: u16) {
    fs::create_dir(to).expect("a directory");
    for entry in fs::read_dir(from).expect("it is there") {
        let path = entry.expect("an entry").path();
        let copy = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_with_ports(&path, &copy, base);
        } else {
            fs::write(copy, with_ports(&fs::read_to_string(&path).expect("a text"), base)).expect("it can be written");
        }
    }
}

#[test]
fn the_zones_start_by_hand() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = free_base_port(2);
    copy_with_ports(&root().join("regions"), &dir.path().join("regions"), base);
    let mut script = script("zones", dir.path(), base);
    // Nothing stopped: four of six, in two processes. With the third zone's process all are up again.
    script.push_str("eventually ups 4\n");
    script.push_str("parhelion copy slow b1 --delay 0 --config regions/zones/us-east.toml\n");
    script.push_str("parhelion copy --config regions/zones/zone-c.toml &\neventually ups 6\n");
    run(&script, dir.path());
}
