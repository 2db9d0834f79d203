//! How a command asks running regions: over their QUIC port, with the certificate of the region whose file it was given.
//!
//! Decides whom to ask: the region of the file, and, for questions that any region can answer, soon also the others, so that
//! one dead region does not hide the cluster. Never asks two regions to *do* something.

use super::admin::{AdminAnswer, AdminRequest};
use super::config::{Config, Member};
use super::failure::{FAILED, Failure, REFUSED, UNREACHABLE, USAGE};
use crate::base::RegionName;
use crate::io::clock;
use crate::io::link::admin_once;
use crate::io::tls::Material;
use crate::node::report::ControlReport;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// For the handshake and for the answer, each. The asked region itself waits 1.5 s for the others.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Without an answer for so long the next region is asked as well.
const ASK_NEXT_AFTER: Duration = Duration::from_millis(700);
/// Where a demo lives if nobody says otherwise.
pub const DEMO_DIR: &str = "parhelion-demo";

/// A region's file and certificate, to ask with.
pub struct Client {
    pub config: Config,
    material: Arc<Material>,
    /// Whom [`Client::ask`] asks: the region of the file, unless another one was found to answer.
    pub asked: RegionName,
}

impl Client {
    /// # Errors
    /// When the file or the certificate cannot be used.
    pub fn open(config: Option<&Path>) -> Result<Client, Failure> {
        let file = config_file(config)?;
        let config = Config::load(&file)?;
        let material = Material::load(&config.tls_dir, &config.cluster, &config.region, &config.file, clock::unix_now())?;
        let asked = config.region.clone();
        Ok(Client { config, material: Arc::new(material), asked })
    }

    /// As [`Client::open`], and looks for a region that answers: that of the file first. What is ordered is then ordered there.
    ///
    /// # Errors
    /// When the file or the certificate cannot be used, or no region answers.
    pub async fn open_to_any(config: Option<&Path>) -> Result<(Client, Box<ControlReport>), Failure> {
        let mut client = Client::open(config)?;
        match client.ask_any(&AdminRequest::Voter).await? {
            AdminAnswer::Voter(report) => {
                if report.member != client.asked {
                    eprintln!("note: {} does not answer; {} is asked", client.asked, report.member);
                }
                client.asked = report.member.clone();
                Ok((client, report))
            }
            AdminAnswer::Refused(why) => Err(Failure::new(REFUSED, why)),
            _ => Err(Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?")),
        }
    }

    /// Asks one region, and no other.
    ///
    /// # Errors
    /// When it does not answer, or says no.
    pub async fn ask(&self, request: &AdminRequest) -> Result<AdminAnswer, Failure> {
        let own = self.config.member(&self.asked).expect("BUG: only members are asked");
        let answer = ask_one(Arc::clone(&self.material), own.clone(), request.encode().into()).await;
        answer.map_err(|f| self.how_to_start(f))
    }

    /// Asks the region of the file, and the others too if it takes its time; the first answer counts.
    ///
    /// # Errors
    /// When no region answers, or the first one says no.
    pub async fn ask_any(&self, request: &AdminRequest) -> Result<AdminAnswer, Failure> {
        let request = Bytes::from(request.encode());
        let own = &self.config.region;
        let others = self.config.members.iter().filter(|m| m.region != *own);
        let mut waiting = self.config.members.iter().filter(|m| m.region == *own).chain(others).cloned();
        let (mut asked, mut first_failure) = (JoinSet::new(), None);
        loop {
            let next = waiting.next();
            let last = next.is_none();
            if let Some(member) = next {
                asked.spawn(ask_one(Arc::clone(&self.material), member, request.clone()));
            }
            let answered = async {
                if last { asked.join_next().await } else { tokio::time::timeout(ASK_NEXT_AFTER, asked.join_next()).await.ok().flatten() }
            };
            match answered.await {
                Some(Ok(Ok(answer))) => return Ok(answer),
                Some(Ok(Err(failure))) => drop(first_failure.get_or_insert(failure)),
                Some(Err(panic)) => return Err(Failure::new(FAILED, format!("BUG: asking failed: {panic}"))),
                None if last => break,
                None => {}
            }
        }
        let failure = first_failure.unwrap_or_else(|| Failure::new(UNREACHABLE, "no region was asked"));
        Err(self.how_to_start(failure))
    }

    fn how_to_start(&self, failure: Failure) -> Failure {
        match failure {
            Failure { code: UNREACHABLE, message, hint: None } => Failure::new(UNREACHABLE, message)
                .hint(format!("start the region: parhelion region --config {}", self.config.file.display())),
            other => other,
        }
    }
}

async fn ask_one(material: Arc<Material>, member: Member, request: Bytes) -> Result<AdminAnswer, Failure> {
    let answer = admin_once(material, &member.quic, &member.region, request, TIMEOUT).await?;
    AdminAnswer::decode(&answer).map_err(|e| Failure::new(FAILED, format!("{}: {e}", member.region)))
}

/// The file that was given, or one of the demo in this directory.
///
/// # Errors
/// When neither is there.
pub fn config_file(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(file) = given {
        return Ok(file.to_path_buf());
    }
    let dir = Path::new(DEMO_DIR).join("regions");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .map(|dir| dir.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect())
        .unwrap_or_default();
    files.sort();
    // The region that founded the cluster, so that the default does not depend on the alphabet.
    let founder = files.first().and_then(|f| Config::load(f).ok()).map(|c| dir.join(format!("{}.toml", c.founder)));
    founder.filter(|f| f.exists()).or_else(|| files.into_iter().next()).ok_or_else(|| {
        Failure::new(USAGE, format!("which region? no --config was given, PARHELION_CONFIG is not set, and there is no ./{DEMO_DIR}"))
            .hint("name the file of any region: --config regions/us-east.toml; or start one here: parhelion demo")
    })
}
