//! Changing a running emulator: one JSON request per line over a Unix domain socket, one JSON answer per line.
//!
//! `{"set":{"from":"us-east","to":"*","settings":["delay=38ms"]}}` or `{"show":{}}`; the answer is
//! `{"directions":[...]}` or `{"error":"..."}`. The socket belongs to its user (mode 0600), a request is one bounded
//! line, and a connection that says nothing is closed. Decides nothing: [`super::relay`] applies what is asked.

use super::NetemError;
use super::relay::{DirectionStatus, Fabric};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

/// Name of the control socket in a demo's directory.
pub const CONTROL_SOCKET: &str = "netem.sock";

const REQUEST_BYTES_MAX: u64 = 16 << 10;
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const CONNECTIONS_MAX: usize = 16;
const IDLE_MAX: Duration = Duration::from_secs(30);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// What one can ask a running emulator.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Change the named keys of the directions `from` -> `to`; either may be `*`.
    Set {
        from: String,
        to: String,
        settings: Vec<String>,
    },
    Show {},
}

/// The directions that were changed, or all for `show`, as they are now.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Response {
    pub directions: Vec<DirectionStatus>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Directions(Vec<DirectionStatus>),
    Error(String),
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> NetemError {
    move |e| NetemError::Control { path: path.to_owned(), reason: e.to_string() }
}

/// Asks the emulator that serves at `path`.
///
/// # Errors
/// When none serves there, when it refuses (an unknown region, a bad setting), or does not answer within seconds.
pub fn control(path: &Path, request: &Request) -> Result<Response, NetemError> {
    let mut stream = UnixStream::connect(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => NetemError::NotRunning { path: path.to_owned() },
        _ => failed(path)(e),
    })?;
    let mut line = serde_json::to_vec(request).expect("BUG: a request is plain text");
    line.push(b'\n');
    let mut answer = Vec::new();
    let mut talk = || -> std::io::Result<()> {
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        stream.write_all(&line)?;
        BufReader::new(&stream).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut answer).map(drop)
    };
    talk().map_err(failed(path))?;
    match serde_json::from_slice(&answer) {
        Ok(Answer::Directions(directions)) => Ok(Response { directions }),
        Ok(Answer::Error(error)) => Err(NetemError::Refused(error)),
        Err(_) => {
            let reason = "what answers there is not a link emulator of this version; start the demo again".to_owned();
            Err(NetemError::Control { path: path.to_owned(), reason })
        }
    }
}

/// A bound control socket; its file goes with it.
pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    pub(super) fn bind(path: &Path) -> Result<Listener, NetemError> {
        if UnixStream::connect(path).is_ok() {
            return Err(NetemError::AlreadyRunning { path: path.to_owned() });
        }
        // Made under another name and renamed, so that at its own name it is never open to others, and so that what a
        // killed emulator left there is replaced in one step.
        let new = path.with_extension("new");
        let make = || -> std::io::Result<UnixListener> {
            match std::fs::remove_file(&new) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let listener = UnixListener::bind(&new)?;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&new, path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = make().map_err(|e| {
            let hint =
                if e.kind() == std::io::ErrorKind::InvalidInput { "; the path is too long for a socket, use a shorter --dir" } else { "" };
            NetemError::Control { path: path.to_owned(), reason: format!("cannot be made: {e}{hint}") }
        })?;
        Ok(Listener { listener, path: path.to_owned() })
    }

    /// Answers until dropped. Runs on the receiving thread: requests are small and rare.
    pub(super) async fn serve(self, fabric: Arc<Fabric>) {
        let accepting = self.listener.try_clone().and_then(tokio::net::UnixListener::from_std);
        let listener = match accepting {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the link emulator cannot be controlled"),
        };
        let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        while let Ok(place) = room.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let fabric = fabric.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(error) = converse(stream, &fabric).await {
                            tracing::debug!(%error, "a control connection of the link emulator ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others must close theirs first.
                    tracing::warn!(%error, "the link emulator cannot accept a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A file that is gone already is what we want.
        drop(std::fs::remove_file(&self.path));
    }
}

async fn converse(stream: tokio::net::UnixStream, fabric: &Fabric) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(REQUEST_BYTES_MAX);
        match tokio::time::timeout(IDLE_MAX, bounded.read_until(b'\n', &mut line)).await {
            Err(_) | Ok(Ok(0)) => return Ok(()),
            Ok(Err(e)) => return Err(e),
            Ok(Ok(_)) => {}
        }
        let whole = line.ends_with(b"\n") || (line.len() as u64) < REQUEST_BYTES_MAX;
        let answer = if whole {
            answer(&line, fabric)
        } else {
            Answer::Error(format!("a request is one line of at most {REQUEST_BYTES_MAX} bytes"))
        };
        let mut bytes = serde_json::to_vec(&answer).expect("BUG: an answer is plain data");
        bytes.push(b'\n');
        tokio::time::timeout(IDLE_MAX, write.write_all(&bytes)).await??;
        if !whole {
            return Ok(());
        }
    }
}

fn answer(line: &[u8], fabric: &Fabric) -> Answer {
    match serde_json::from_slice(line) {
        Ok(Request::Show {}) => Answer::Directions(fabric.snapshot()),
        Ok(Request::Set { from, to, settings }) => match fabric.change(&from, &to, &settings) {
            Ok(directions) => Answer::Directions(directions),
            Err(e) => Answer::Error(e.to_string()),
        },
        Err(e) => Answer::Error(format!(
            "not a request: {e}; send {{\"show\":{{}}}} or \
             {{\"set\":{{\"from\":\"REGION\",\"to\":\"REGION\",\"settings\":[\"delay=38ms\"]}}}}"
        )),
    }
}
