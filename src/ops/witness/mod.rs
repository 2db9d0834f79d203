//! `parhelion witness --config FILE`: a member that votes and holds no data, so that two regions can tell which of them is cut off.
//!
//! Decides the order of starting and stopping. What is granted and voted for is decided by the control core ([`crate::control`]), whose
//! state is on the disk before anything that depends on it leaves. It knows no log and no SQL, and its certificate gets it none.

pub mod ask;
pub mod config;
mod voter;

use super::expiry;
use super::region::{RunOptions, lock, until_told};
use crate::control::{AuditHead, Control};
use crate::endpoint::http::{self, MemberView};
use crate::io::audit::AuditWriter;
use crate::io::clock;
use crate::io::control_link::ControlLinks;
use crate::io::disk::FileDisk;
use crate::io::link::{self, Arrival};
use crate::io::quic::{Quic, QuicSettings, RefusalKind};
use crate::io::sealing;
use crate::io::slots::Slots;
use crate::io::tls::{Material, Subject};
use crate::node::report::{ControlReport, PeerReport};
use crate::ops::admin::{AdminAnswer, AdminRequest};
use crate::ops::audit::{AUDIT_DIR, AuditReport};
use crate::volume::OpenError;
use anyhow::Context as _;
use config::WitnessConfig;
use parking_lot::RwLock;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use voter::{Around, Voter};

/// Below a witness's `data_dir`.
pub const VOTER_DIR: &str = "voter";

/// Runs the witness of `config` until `shutdown` says so.
///
/// # Errors
/// When it cannot start, or can keep its promises no longer, with a sentence that says what to do.
pub async fn run(config: WitnessConfig, options: RunOptions, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let name = config.name.clone();
    let _lock = lock(&config.data_dir, &config.file, &format!("the witness {name}"))?;
    let (key, voter) = (config.key()?, config.data_dir.join(VOTER_DIR));
    let disk = sealing::open(Arc::new(FileDisk::open(&voter)?), &voter, key.as_deref()).map_err(|e| match e {
        OpenError::Damaged { reason, .. } => anyhow::anyhow!(
            "what says the key of {} is damaged ({reason}): this witness must not vote, since it may have promised what it cannot read. Bring back its directory as it \
             was at the end, or remove the directory and put a witness of another name in its place",
            voter.display()
        ),
        e => e.into(),
    })?;
    let material = Material::load_as(Subject::Witness, &config.tls_dir, &config.cluster, &name, &config.file, clock::unix_now())?;
    let material = Arc::new(material);
    let _watch = expiry::watch(&material, &config.file);
    let slots = Slots::open(disk, &format!("{}/{name}", config.cluster), random()?)?;
    if let Some(damage) = slots.damage() {
        tracing::warn!("one of the two slots of what was promised was damaged and is mended ({damage}); look after the disk");
    }
    let kept = voter::kept(&slots)?;
    let known = kept.as_ref().map_or_else(
        || "it has promised nothing yet".to_owned(),
        |k| format!("it has promised epoch {}, and votes after {} ms at the earliest", k.promised, k.grant_ms_max),
    );
    // Its own commands come with its own certificate.
    let quic = Quic::bind(config.quic, material, &config.regions(), &QuicSettings::default())?.with_witness(Some(name.clone()));
    let http = match config.http {
        Some(addr) => Some(TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr} (listen.http)"))?),
        None => None,
    };

    let core = Control::new(config.who(), kept, clock::now(), voter::prng(random()?));
    let audit = AuditWriter::start(&config.data_dir.join(AUDIT_DIR)).context("the audit cannot be written; see data_dir")?;
    let (inbox, queue) = voter::queue();
    let roster = Arc::new(config.roster());
    let links = ControlLinks::start(&quic, roster.control_peers(), voter::hear(inbox.clone()));
    let told = inbox.clone();
    links.when_removed(move |by| told.said_out(by));
    let view = Arc::new(View {
        links: links.clone(),
        quic: quic.clone(),
        report: RwLock::new(voter::report(&name, &core)),
        head: RwLock::default(),
    });
    let runtime = tokio::runtime::Handle::current();
    let voter = Voter::new(core, slots, links.clone(), Arc::clone(&view), Around { roster, runtime, audit });
    let (ended, mut end) = watch::channel(false);
    let voter = std::thread::Builder::new()
        .name("voter".into())
        .spawn(move || {
            let outcome = voter.run(&queue);
            let _ = ended.send(true);
            outcome
        })
        .context("the voter's thread cannot be started")?;
    let (stop, stopping) = watch::channel(false);
    let page = http.map(|listener| tokio::spawn(http::serve_member(listener, Arc::clone(&view) as Arc<dyn MemberView>, stopping)));
    let accepting = tokio::spawn(link::serve(quic.clone(), arrived(links.clone(), Arc::clone(&view), config.data_dir.clone())));
    tracing::info!(
        cluster = %config.cluster, quic = %config.quic,
        "the witness {name} runs: it votes and holds no data; {known}"
    );

    let why = tokio::select! {
        why = until_told(options, shutdown) => why.to_string(),
        _ = end.wait_for(|ended| *ended) => "the voter ended".to_owned(),
    };
    tracing::info!("stopping: {why}");
    let _ = stop.send(true);
    accepting.abort();
    inbox.stop();
    links.stop();
    let outcome = tokio::task::spawn_blocking(move || voter.join()).await.context("the voter's thread cannot be joined")?;
    if let Some(page) = page {
        let _ = page.await;
    }
    quic.close("the witness is stopping").await;
    outcome.map_err(|_| anyhow::anyhow!("the voter's thread panicked; what it promised is on the disk: start it again"))?
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(bytes)
}

/// What the witness shows of itself.
struct View {
    links: ControlLinks,
    quic: Quic,
    report: RwLock<ControlReport>,
    /// Where the chain of its audit ends, as its slots keep it.
    head: RwLock<Option<AuditHead>>,
}

impl MemberView for View {
    fn report(&self) -> ControlReport {
        let mut report = self.report.read().clone();
        report.peers = peers(&self.links);
        report.certificate_days_left = Some(self.quic.material().days_left(clock::unix_now()));
        report
    }

    fn refusals(&self) -> Vec<(String, u64)> {
        RefusalKind::ALL.iter().map(|k| (k.label().to_owned(), self.quic.refusals().get(*k))).collect()
    }
}

/// The control links, for people.
#[must_use]
pub fn peers(links: &ControlLinks) -> Vec<PeerReport> {
    let (now, wall) = (clock::now(), clock::unix_now());
    let of = |peer: crate::io::control_link::PeerView| PeerReport {
        name: peer.name,
        up: peer.up,
        since: crate::base::UnixMicros(wall.0.saturating_sub(u64::try_from(now.since(peer.since).as_micros()).unwrap_or(u64::MAX))),
        round_trip_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        trouble: peer.trouble,
    };
    links.view().into_iter().map(of).collect()
}

/// A witness has control links and one answer.
fn arrived(links: ControlLinks, view: Arc<View>, data_dir: PathBuf) -> impl Fn(Arrival) + Send + Sync {
    move |arrival| match arrival {
        Arrival::Control(dialled) => links.arrived(dialled),
        Arrival::Admin { request, reply, .. } => {
            let answer = match AdminRequest::decode(&request) {
                Ok(AdminRequest::Voter) => AdminAnswer::Voter(Box::new(view.report())),
                Ok(AdminRequest::Audit) => {
                    let (view, data_dir) = (Arc::clone(&view), data_dir.clone());
                    tokio::spawn(async move {
                        let name = view.report.read().member.clone();
                        let read = AuditReport::of_running(name, &data_dir, || *view.head.read()).await;
                        let answer = read.map_or_else(AdminAnswer::Refused, |r| AdminAnswer::Audit(Box::new(r)));
                        reply.send(answer.encode().into());
                    });
                    return;
                }
                Ok(_) => AdminAnswer::Refused("this is a witness: it votes and knows nothing else; ask a region".into()),
                Err(e) => AdminAnswer::Refused(e.to_string()),
            };
            reply.send(answer.encode().into());
        }
        // The endpoint lets none in; if it did, nothing would be taken from it.
        Arrival::Link(link, _) => link.close("a witness votes and nothing else"),
    }
}
