//! The region processes of a demo: started, watched, stopped. One that dies is reported and stays dead.
//!
//! Each gets a pipe as stdin which nobody writes to: when it ends, the demo is gone, and the region ends cleanly too. Each is
//! a process group of its own, so that Ctrl-C in the terminal reaches the demo alone, which then ends them in order.

use super::plan::Site;
use crate::base::RegionName;
use crate::ops::failure::{Failure, io_failure};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};

const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_TAIL_BYTES: u64 = 16 << 10;
const LOG_TAIL_LINES: usize = 12;

/// A region process ended.
#[derive(Debug)]
pub struct Exit {
    pub region: RegionName,
    pub pid: u32,
    pub status: ExitStatus,
}

impl Exit {
    /// `was killed by signal 9`, `ended with code 1`.
    #[must_use]
    pub fn how(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("ended with code {code}"),
            (None, Some(9)) => "was killed by signal 9 (SIGKILL)".to_owned(),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => format!("ended: {}", self.status),
        }
    }
}

/// A started region process.
pub struct Child {
    pub region: RegionName,
    pub pid: u32,
    /// Where in the log this process begins.
    log_from: u64,
    /// Kept open: its end tells the region that the demo is gone.
    _stdin: ChildStdin,
    kill: mpsc::UnboundedSender<rustix::process::Signal>,
    gone: oneshot::Receiver<()>,
}

/// Starts the region of `site`; its end will be told through `exits`.
///
/// # Errors
/// When the program or the log file cannot be opened.
pub fn start(site: &Site, exits: mpsc::UnboundedSender<Exit>) -> Result<Child, Failure> {
    let program = std::env::current_exe().map_err(io_failure("find this program's own file"))?;
    let mut log = File::options().create(true).append(true).open(&site.log).map_err(io_failure(format!("open {}", site.log.display())))?;
    let log_from = log.seek(SeekFrom::End(0)).map_err(io_failure(format!("read {}", site.log.display())))?;
    let also = log.try_clone().map_err(io_failure("share the log file"))?;
    let mut command = Command::new(program);
    command.arg("region").arg("--config").arg(&site.config).arg("--exit-with-parent");
    command.stdin(Stdio::piped()).stdout(log).stderr(also).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(io_failure(format!("start the process of {}", site.name)))?;
    let pid = child.id().expect("BUG: a process just started has an id");
    let stdin = child.stdin.take().expect("BUG: stdin is a pipe");
    let (kill, mut kills) = mpsc::unbounded_channel();
    let (told, gone) = oneshot::channel();
    let region = site.name.clone();
    tokio::spawn(async move {
        // Signals are sent from here and before the exit is collected: the id cannot be another process's.
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                Some(signal) = kills.recv() => {
                    if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
                        // It may have ended in between: then there is nothing to end.
                        let _ = rustix::process::kill_process(pid, signal);
                    }
                }
            }
        };
        if let Ok(status) = status {
            // The demo may be ending and no longer listen.
            let _ = exits.send(Exit { region, pid, status });
        }
        let _ = told.send(());
    });
    Ok(Child { region: site.name.clone(), pid, log_from, _stdin: stdin, kill, gone })
}

impl Child {
    /// Asks it to end; kills it after ten seconds, or at once when `hurry` resolves. True when it ended by itself.
    async fn stop(self, mut hurry: tokio::sync::watch::Receiver<bool>) -> bool {
        let Child { kill, mut gone, .. } = self;
        let _ = kill.send(rustix::process::Signal::TERM);
        let clean = tokio::select! {
            _ = &mut gone => true,
            () = tokio::time::sleep(STOP_TIMEOUT) => false,
            _ = hurry.wait_for(|h| *h) => false,
        };
        if !clean {
            let _ = kill.send(rustix::process::Signal::KILL);
            let _ = gone.await;
        }
        clean
    }

    /// The last lines that this process wrote.
    #[must_use]
    pub fn log_tail(&self, log: &Path) -> String {
        tail(log, self.log_from).unwrap_or_else(|e| format!("{} cannot be read: {e}", log.display()))
    }
}

/// Ends all of them at the same time; those that had to be killed.
pub async fn stop_all(children: Vec<Child>, hurry: tokio::sync::watch::Receiver<bool>) -> Vec<RegionName> {
    let stops = children.into_iter().map(|child| {
        let (region, hurry) = (child.region.clone(), hurry.clone());
        async move { (region, child.stop(hurry).await) }
    });
    futures::future::join_all(stops).await.into_iter().filter(|(_, clean)| !clean).map(|(region, _)| region).collect()
}

fn tail(log: &Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].iter().map(|l| format!("  {l}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_begins_where_the_process_began() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a.log");
        std::fs::write(&log, "of an earlier run\n").unwrap();
        let from = std::fs::metadata(&log).unwrap().len();
        assert_eq!(tail(&log, from).unwrap(), "");
        let lines: String = (0..40).map(|i| format!("line {i}\n")).collect();
        std::fs::write(&log, format!("of an earlier run\n{lines}")).unwrap();
        let tail = tail(&log, from).unwrap();
        assert!(tail.starts_with("  line 28\n") && tail.ends_with("  line 39\n"), "{tail}");
    }

    #[test]
    fn exits_are_told_in_words() {
        let exit = |raw| Exit { region: RegionName::new("a").unwrap(), pid: 1, status: ExitStatus::from_raw(raw) }.how();
        assert_eq!(exit(9), "was killed by signal 9 (SIGKILL)");
        assert_eq!(exit(1 << 8), "ended with code 1");
        assert_eq!(exit(11), "was ended by signal 11");
    }
}
