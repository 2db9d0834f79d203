//! A demo of the bench's own, as a child process, and what one does with it from outside.

use crate::base::Instant;
use crate::io::clock;
use crate::ops::failure::{FAILED, Failure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

const DEADLINE: Duration = Duration::from_secs(60);

pub struct Cluster {
    demo: Child,
    dir: PathBuf,
    pub ready: serde_json::Value,
    /// From starting the demo to its ready file.
    pub ready_after: Duration,
    /// Started by hand, which region each of them is; the newest one counts.
    restarted: Vec<(usize, Child)>,
}

pub fn failed(what: impl Into<String>) -> Failure {
    Failure::new(FAILED, what)
}

fn exe() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| failed(format!("this program cannot find itself: {e}")))
}

impl Cluster {
    pub async fn start(dir: &Path, base_port: u16, regions: usize, profile: &str) -> Result<Cluster, Failure> {
        Cluster::start_with(dir, base_port, regions, profile, &[]).await
    }

    pub async fn start_with(dir: &Path, base_port: u16, regions: usize, profile: &str, more: &[&str]) -> Result<Cluster, Failure> {
        std::fs::create_dir_all(dir).map_err(|e| failed(format!("{} cannot be made: {e}", dir.display())))?;
        let ready_file = dir.join("ready.json");
        let began = clock::now();
        let mut demo = Command::new(exe()?)
            .args(["demo", "--regions", &regions.to_string(), "--profile", profile, "--base-port", &base_port.to_string()])
            .args(more)
            .arg("--dir")
            .arg(dir.join("demo"))
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("the demo cannot be started: {e}")))?;
        loop {
            if let Some(ready) = std::fs::read(&ready_file).ok().and_then(|b| serde_json::from_slice(&b).ok()) {
                let ready_after = clock::now().since(began);
                return Ok(Cluster { demo, dir: dir.join("demo"), ready, ready_after, restarted: Vec::new() });
            }
            if let Ok(Some(status)) = demo.try_wait() {
                return Err(failed(format!("the demo ended with {status} before it was ready")));
            }
            if clock::now().since(began) > DEADLINE {
                return Err(failed("the demo was not ready in time"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn text(&self, region: usize, key: &str) -> String {
        self.ready["regions"][region][key].as_str().unwrap_or_default().to_owned()
    }

    pub fn pid(&self, region: usize) -> u32 {
        if let Some(pid) = self.restarted.iter().rev().find(|(r, _)| *r == region).and_then(|(_, child)| child.id()) {
            return pid;
        }
        self.ready["regions"][region]["pid"].as_u64().and_then(|p| u32::try_from(p).ok()).unwrap_or_default()
    }

    pub async fn connect(&self, region: usize, port: &str) -> Result<tokio_postgres::Client, Failure> {
        let addr = self.text(region, port);
        let (host, port) = addr.rsplit_once(':').ok_or_else(|| failed(format!("'{addr}' is no address")))?;
        let part = |key: &str| self.ready[key].as_str().unwrap_or_default().to_owned();
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(port.parse().unwrap_or_default()).user(part("user")).password(part("password")).dbname(part("database"));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(sql)?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The region's own report, over HTTP.
    pub async fn report(&self, region: usize) -> Result<serde_json::Value, Failure> {
        let addr = self.text(region, "http");
        let asked = async {
            let mut stream = tokio::net::TcpStream::connect(&addr).await?;
            stream.write_all(format!("GET /status HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = asked.await.map_err(|e| failed(format!("{addr} does not answer: {e}")))?;
        let body = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |i| i + 4);
        serde_json::from_slice(&answer[body..]).map_err(|e| failed(format!("{addr} answered something else: {e}")))
    }

    pub async fn lsn(&self, region: usize, which: &str) -> Result<u64, Failure> {
        Ok(self.report(region).await?[which].as_u64().unwrap_or_default())
    }

    /// A verb of this program, as a user would type it; what it printed.
    pub async fn command(&self, args: &[&str]) -> Result<String, Failure> {
        let said = Command::new(exe()?)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|e| failed(format!("{} cannot be run: {e}", args.join(" "))))?;
        if said.status.success() {
            return Ok(String::from_utf8_lossy(&said.stdout).into_owned());
        }
        Err(failed(format!("{} failed: {}", args.join(" "), String::from_utf8_lossy(&said.stderr).trim())))
    }

    /// A verb asked of a region, as scripts would.
    pub async fn json(&self, region: usize, args: &[&str]) -> Result<serde_json::Value, Failure> {
        let config = self.text(region, "config");
        let said = self.command(&[args, &["--json", "--config", &config]].concat()).await?;
        serde_json::from_str(&said).map_err(|e| failed(format!("{} answered something else: {e}", args.join(" "))))
    }

    pub async fn netem(&self, from: &str, to: &str, settings: &[&str]) -> Result<(), Failure> {
        let status = Command::new(exe()?)
            .args(["netem", "set", from, to])
            .args(settings)
            .arg("--dir")
            .arg(&self.dir)
            .stdout(Stdio::null())
            .status()
            .await
            .map_err(|e| failed(format!("netem cannot be run: {e}")))?;
        if status.success() { Ok(()) } else { Err(failed("netem set failed")) }
    }

    pub fn kill(&self, region: usize) -> Result<(), Failure> {
        let pid = i32::try_from(self.pid(region))
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .ok_or_else(|| failed("there is no process id"))?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).map_err(|e| failed(format!("the region cannot be killed: {e}")))
    }

    /// Starts a region that was killed, by hand, as the demo says.
    pub fn restart(&mut self, region: usize) -> Result<(), Failure> {
        let child = Command::new(exe()?)
            .args(["region", "--config", &self.text(region, "config")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("the region cannot be started: {e}")))?;
        self.restarted.push((region, child));
        Ok(())
    }

    /// Waits until `done` says so of the region's report. Returns when that was.
    pub async fn until(&self, region: usize, what: &str, done: impl Fn(&serde_json::Value) -> bool) -> Result<Instant, Failure> {
        let began = clock::now();
        loop {
            if let Ok(report) = self.report(region).await
                && done(&report)
            {
                return Ok(clock::now());
            }
            if clock::now().since(began) > DEADLINE * 5 {
                return Err(failed(format!("{what}: not in time")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn stop(mut self) {
        for (_, child) in &mut self.restarted {
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
        if let Some(pid) = self.demo.id().and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.demo.wait().await;
    }
}

pub fn sql(e: tokio_postgres::Error) -> Failure {
    match e.as_db_error() {
        Some(db) => failed(format!("the database answered {}: {}", db.code().code(), db.message())),
        None => failed(format!("the connection to the database failed: {e}")),
    }
}

/// Resident memory of a process in MiB, as the kernel counts it.
pub fn memory_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib: f64 =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0);
    kib / 1024.0
}
