//! A witness as a real process: what it grants is kept, it is killed and comes back, and it does not vote before what it forgot is over.

mod common;

use bytes::Bytes;
use common::{json_of, parhelion, run, text, until};
use parhelion::base::{Epoch, LineageId, LogEnd, RegionName, UnixMicros};
use parhelion::control::message::{Renew, Round, Vote};
use parhelion::control::{ControlMessage, VoterSet, VoterState};
use parhelion::io::clock;
use parhelion::io::control_link::{ControlLinks, Peer};
use parhelion::io::link::{Arrival, admin_once_of, serve};
use parhelion::io::quic::{Quic, QuicSettings};
use parhelion::io::tls::{Material, Subject};
use parhelion::node::report::ControlReport;
use parhelion::ops::admin::{AdminAnswer, AdminRequest};
use parhelion::ops::certs::{CertOptions, create};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const LEASE: Duration = Duration::from_millis(2000);
const PATIENCE: Duration = Duration::from_secs(60);

fn name(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

/// A directory with certificates and the witness's file. Two regions that the test plays.
struct Scene {
    dir: tempfile::TempDir,
    file: PathBuf,
    addr: String,
    ours: [String; 2],
}

const REGIONS: [&str; 2] = ["us", "eu"];

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let cluster = "sun".parse().unwrap();
    let options = CertOptions { witness: Some(name("witness")), ..CertOptions::new(clock::unix_now()) };
    create(&dir.path().join("certs"), &cluster, &REGIONS.map(name), &options).unwrap();
    let (addr, ours) = (format!("127.0.0.1:{}", free_port()), [0, 1].map(|_| format!("127.0.0.1:{}", free_port())));
    let file = dir.path().join("witness.toml");
    let lease = LEASE.as_millis();
    let members: String = REGIONS.iter().zip(&ours).map(|(r, a)| format!("[[member]]\nregion = \"{r}\"\nquic = \"{a}\"\n")).collect();
    std::fs::write(
        &file,
        format!(
            "cluster = \"sun\"\nname = \"witness\"\ndata_dir = \"data\"\n[listen]\nquic = \"{addr}\"\nhttp = \"127.0.0.1:0\"\n\
             [tls]\ndir = \"certs\"\n[control]\nlease = \"{lease}ms\"\n{members}"
        ),
    )
    .unwrap();
    Scene { dir, file, addr, ours }
}

/// The witness's process; ends with the test.
struct Witness(Child);

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Scene {
    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn start(&self) -> Witness {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path().join("log")).unwrap();
        let mut command = parhelion();
        command.args(["witness", "--config"]).arg(&self.file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Witness(command.spawn().unwrap())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    fn material(&self, region: &str) -> Arc<Material> {
        let certs = self.path().join("certs");
        Arc::new(Material::load(&certs, &"sun".parse().unwrap(), &name(region), &self.file, clock::unix_now()).unwrap())
    }

    /// A region, as far as a witness is concerned.
    fn region(&self, region: &str) -> Region {
        let at = REGIONS.iter().position(|r| *r == region).unwrap();
        let addr = self.ours[at].parse().unwrap();
        let quic = Quic::bind(addr, self.material(region), &REGIONS.map(name), &QuicSettings::default()).unwrap();
        let quic = quic.with_witness(Some(name("witness")));
        let peers = vec![Peer { name: name("witness"), subject: Subject::Witness, addr: self.addr.clone() }];
        let (tx, heard) = mpsc::unbounded_channel();
        let links = ControlLinks::start(&quic, peers, move |_, bytes: Bytes| {
            drop(tx.send(ControlMessage::decode(&bytes).map_err(|e| e.to_string())?));
            Ok(())
        });
        let to = links.clone();
        tokio::spawn(serve(quic, move |arrival| {
            if let Arrival::Control(dialled) = arrival {
                to.arrived(dialled);
            }
        }));
        Region { links, heard }
    }

    async fn report(&self) -> Result<ControlReport, String> {
        let question = AdminRequest::Voter.encode().into();
        let witness = name("witness");
        let asked = admin_once_of(Subject::Witness, self.material("us"), &self.addr, &witness, question, Duration::from_secs(2)).await;
        match AdminAnswer::decode(&asked.map_err(|e| e.to_string())?) {
            Ok(AdminAnswer::Voter(report)) => Ok(*report),
            other => Err(format!("{other:?}")),
        }
    }

    async fn until(&self, holds: impl Fn(&ControlReport) -> bool) -> ControlReport {
        let began = clock::now();
        loop {
            match self.report().await {
                Ok(report) if holds(&report) => return report,
                other => assert!(clock::now().since(began) < PATIENCE, "{other:?}\n{}", self.log()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

struct Region {
    links: ControlLinks,
    heard: mpsc::UnboundedReceiver<ControlMessage>,
}

impl Region {
    /// Says `message` until an answer comes for which `wanted` says something.
    async fn ask<T>(&mut self, message: &ControlMessage, mut wanted: impl FnMut(ControlMessage) -> Option<T>) -> T {
        let asking = async {
            loop {
                self.links.send(&name("witness"), message.encode().into());
                while let Ok(Some(heard)) = tokio::time::timeout(Duration::from_millis(50), self.heard.recv()).await {
                    if let Some(answer) = wanted(heard) {
                        return answer;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("the witness says nothing")
    }
}

fn founding() -> VoterState {
    let voters = VoterSet::founding(&name("us"), &REGIONS.map(name), Some(&name("witness")));
    VoterState::founding(LineageId(7), &name("us"), voters, UnixMicros(1))
}

fn renew(no: u64) -> ControlMessage {
    let state = founding();
    ControlMessage::Renew(Renew {
        lineage: state.lineage,
        voters: state.voters.clone(),
        voters_next: None,
        round: Round { incarnation: 1, no },
        lease_ms: u64::try_from(LEASE.as_millis()).unwrap(),
        entry: state.chain.entries()[0].clone(),
        path: Vec::new(),
        active: true,
        durable: LogEnd::EMPTY,
        sent_at: clock::unix_now(),
        sync: Default::default(),
        auto: Default::default(),
        ledger_digest: 0,
    })
}

fn vote(epoch: u64) -> ControlMessage {
    let state = founding();
    ControlMessage::Vote(Vote {
        lineage: state.lineage,
        voters_version: state.voters.version,
        epoch: Epoch(epoch),
        round: Round { incarnation: 2, no: epoch },
        released: None,
        op: None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_was_killed_waits_for_what_it_forgot_and_keeps_what_it_promised() {
    let scene = scene();
    let mut witness = scene.start();
    let (mut us, mut eu) = (scene.region("us"), scene.region("eu"));
    // It grants the primary, and refuses another candidate meanwhile.
    us.ask(&renew(1), |said| matches!(said, ControlMessage::Granted { epoch: Epoch(1), .. }).then_some(())).await;
    let waits = eu.ask(&vote(2), |said| if let ControlMessage::NotVoted { wait_ms, .. } = said { Some(wait_ms) } else { None }).await;
    assert!(waits > 0 && waits <= 2000, "{waits}");
    scene.until(|r| r.promised == Epoch(1) && r.votes && r.role == "witness").await;

    // Killed: who holds a grant is forgotten, and that there is one is not.
    us.ask(&renew(2), |said| matches!(said, ControlMessage::Granted { .. }).then_some(())).await;
    witness.0.kill().unwrap();
    witness.0.wait().unwrap();
    let killed = clock::now();
    witness = scene.start();
    let mut refused = 0;
    let candidacy = vote(2);
    let voted = eu.ask(&candidacy, |said| match said {
        ControlMessage::Voted(voted) => Some(voted.epoch),
        ControlMessage::NotVoted { .. } => {
            refused += 1;
            None
        }
        _ => None,
    });
    assert_eq!(voted.await, Epoch(2));
    let took = clock::now().since(killed);
    assert!(took >= LEASE, "it voted {took:?} after it was killed");
    assert!(refused > 0, "it said that it waits");

    // What it promised holds: also after the next kill, and against the old primary.
    witness.0.kill().unwrap();
    witness.0.wait().unwrap();
    let _witness = scene.start();
    us.ask(&renew(3), |said| if let ControlMessage::Refused { promised, .. } = said { Some(promised) } else { None }).await;
    scene.until(|r| r.promised == Epoch(2)).await;
    assert!(!scene.log().contains("panicked"), "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_says_what_it_is_and_ends_when_it_is_asked() {
    let scene = scene();
    let mut witness = scene.start();
    let report = scene.until(|_| true).await;
    assert_eq!((report.role.as_str(), report.votes, report.promised), ("witness", false, Epoch(0)));
    assert_eq!(report.peers.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["eu", "us"]);
    // One process for one directory.
    let second = run(parhelion().args(["witness", "--config"]).arg(&scene.file), "");
    let said = text(&second.stderr);
    assert!(second.status.code() == Some(1) && said.contains("the witness witness already runs on"), "{said}");
    let pid = rustix::process::Pid::from_raw(witness.0.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(witness.0.wait().unwrap().success(), "{}", scene.log());
    assert!(scene.log().contains("it votes and holds no data; it has promised nothing yet"), "{}", scene.log());

    // Both slots gone: it does not vote as if it had never promised anything.
    for slot in ["voter-0", "voter-1"] {
        let path = scene.path().join("data/voter").join(slot);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let halted = run(parhelion().args(["witness", "--config"]).arg(&scene.file), "");
    let said = text(&halted.stderr);
    assert!(halted.status.code() == Some(1) && said.contains("both slots") && said.contains("must not vote"), "{said}");
}

#[test]
fn what_is_wrong_with_the_file_or_the_certificate_is_said() {
    let scene = scene();
    let certs = scene.path().join("certs");
    let start = || {
        let output = run(parhelion().args(["witness", "--config"]).arg(&scene.file), "");
        (output.status.code(), text(&output.stderr))
    };
    std::fs::rename(certs.join("witness.witness.pem"), certs.join("kept.pem")).unwrap();
    let (code, said) = start();
    assert!(code == Some(1) && said.contains("witness.witness.pem does not exist"), "{said}");
    // A region's certificate makes no witness.
    std::fs::copy(certs.join("us.pem"), certs.join("witness.witness.pem")).unwrap();
    let (code, said) = start();
    assert!(code == Some(1) && said.contains("is for us.sun.") && said.contains("witness.witness.sun."), "{said}");
    // What certs makes is what it needs.
    std::fs::remove_file(certs.join("witness.witness.pem")).unwrap();
    let args = ["certs", "--dir", "certs", "--cluster", "sun", "--region", "us", "--region", "eu", "--witness", "witness", "--json"];
    let made = json_of(parhelion().current_dir(scene.path()).args(args)).unwrap();
    assert!(made["created"].to_string().contains("witness.witness.pem"), "{made}");
    let mut witness = scene.start();
    until("it runs", || if scene.log().contains("it votes and holds no data") { Ok(()) } else { Err(scene.log()) });
    assert!(witness.0.try_wait().unwrap().is_none());
}
