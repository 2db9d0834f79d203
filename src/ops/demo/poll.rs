//! What the demo knows of its regions: each one's own report, asked over its HTTP port several times a second.
//!
//! Plain HTTP/1.1, bounded in time and size. A region that does not answer is an `Err` with the reason, which the merge shows
//! as disconnected; whether its process lives is another question and not asked here.

use super::plan::Plan;
use crate::base::{RegionName, UnixMicros};
use crate::node::report::RegionReport;
use crate::ops::status::{self, ClusterStatus};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

const ANSWER_BYTES_MAX: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(1);

type Answers = Arc<Mutex<BTreeMap<RegionName, Result<RegionReport, String>>>>;

/// Asks all regions, again and again, until dropped.
pub struct Poller {
    members: Vec<RegionName>,
    answers: Answers,
    every: watch::Sender<Duration>,
    _tasks: JoinSet<()>,
}

impl Poller {
    #[must_use]
    pub fn start(plan: &Plan, every: Duration) -> Poller {
        let answers = Answers::default();
        let (every, _) = watch::channel(every);
        let mut tasks = JoinSet::new();
        for site in &plan.regions {
            let (name, http, answers, mut every) = (site.name.clone(), site.http, Arc::clone(&answers), every.subscribe());
            tasks.spawn(async move {
                loop {
                    let answer = tokio::time::timeout(TIMEOUT, ask(http)).await;
                    let answer = answer.unwrap_or_else(|_| Err(format!("its HTTP port gave no answer within {} s", TIMEOUT.as_secs())));
                    answers.lock().insert(name.clone(), answer);
                    let pause = *every.borrow_and_update();
                    // A change of pace counts at once; a sender that is gone ends this task together with the poller.
                    tokio::select! { () = tokio::time::sleep(pause) => {} _ = every.changed() => {} }
                }
            });
        }
        Poller { members: plan.names(), answers, every, _tasks: tasks }
    }

    /// From now on ask so often.
    pub fn pace(&self, every: Duration) {
        self.every.send_replace(every);
    }

    /// The newest of what all said.
    #[must_use]
    pub fn status(&self, now: UnixMicros) -> ClusterStatus {
        let answers = self.answers.lock();
        let first = self.members.iter().find(|m| matches!(answers.get(*m), Some(Ok(_)))).unwrap_or(&self.members[0]);
        status::merge(first, now, &self.members, &answers, &None)
    }
}

async fn ask(http: SocketAddr) -> Result<RegionReport, String> {
    let body = get(http, "/status").await.map_err(|e| match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "nothing listens on its HTTP port".to_owned(),
        _ => format!("its HTTP port: {e}"),
    })?;
    serde_json::from_slice(&body).map_err(|e| format!("its HTTP port answered something else than a report: {e}"))
}

/// One GET; the body of a 200.
async fn get(addr: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    match end {
        Some(end) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(answer.split_off(end + 4)),
        _ => Err(std::io::Error::other("the answer is no 200")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::report::Role;
    use crate::ops::status::tests::sample;
    use tokio::net::TcpListener;

    /// Answers one connection with these bytes.
    async fn once(answer: String) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /status HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        addr
    }

    #[tokio::test]
    async fn a_report_is_read_and_anything_else_is_a_reason() {
        let report = sample("us-east", Role::Primary);
        let json = serde_json::to_string(&report).unwrap();
        let addr = once(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{json}")).await;
        assert_eq!(ask(addr).await, Ok(report));
        for (answer, reason) in [
            ("HTTP/1.1 503 No\r\n\r\n{}", "no 200"),
            ("SSH-2.0-OpenSSH\r\n", "no 200"),
            ("", "no 200"),
            ("HTTP/1.1 200 OK\r\n\r\n{}", "something else than a report"),
        ] {
            let error = ask(once(answer.to_owned()).await).await.unwrap_err();
            assert!(error.contains(reason), "{answer:?}: {error}");
        }
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(ask(free).await, Err("nothing listens on its HTTP port".to_owned()));
    }
}
