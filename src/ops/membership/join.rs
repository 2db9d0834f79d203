//! `parhelion invite` and `parhelion join`: the two commands.
//!
//! Decides where a token comes from (a file, standard input, the environment, and never the command line), what is written on a new
//! machine and in which order: the key first, which never leaves it, then what the inviter sent, the file of the region or the witness last.
//! Run again after a failure it goes on with the same key. Never starts anything.

use super::cli::note_zones;
use super::wire::{self, Guest, JoinAnswer, JoinRequest, Token, Welcome, WitnessWelcome};
use crate::base::{ClusterName, RegionName};
use crate::io::clock;
use crate::io::join_tls;
use crate::io::tls::{self, Material, Subject};
use crate::ops::admin::{AdminAnswer, AdminRequest};
use crate::ops::certs;
use crate::ops::cli::{AskArgs, say};
use crate::ops::client::Client;
use crate::ops::config::{
    Config, RawConfig, RawControl, RawListen, RawMember, RawSql, RawTls, RawVolume, RawWitness, parse, reachable, render,
};
use crate::ops::failure::{FAILED, Failure, REFUSED, UNREACHABLE, USAGE, io_failure};
use crate::ops::orders::line;
use crate::ops::witness::config::{self as witness_config, RawWitnessConfig, RawWitnessListen, WitnessConfig};
use clap::Args;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where a region, and a witness, listens if nobody says otherwise.
const REGION_PORT: u16 = 7400;
const WITNESS_PORT: u16 = 7700;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the inviter waits for the primary.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);
const TOKEN_BYTES_MAX: u64 = 8192;
/// Where a token is looked for without --token-file.
const TOKEN_ENV: &str = "PARHELION_JOIN_TOKEN";

#[derive(Debug, Args)]
#[group(id = "guest", required = true, multiple = false, args = ["region", "witness"])]
pub struct InviteArgs {
    /// The name of the region that is to come
    #[arg(long, value_name = "NAME")]
    pub region: Option<RegionName>,
    /// Or the name of a witness: one that no witness and no region ever had
    #[arg(long, value_name = "NAME")]
    pub witness: Option<RegionName>,
    /// Of a witness: its failure domain, as the regions' files call theirs
    #[arg(long, value_name = "ZONE", conflicts_with = "region")]
    pub zone: Option<String>,
    /// How long the invitation is good
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub ttl: Duration,
    /// Where this region listens for it (TCP); another address than a loopback one only because you say so
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// How the new member reaches that [default: the address of --listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The file with the token, or - for standard input [default: PARHELION_JOIN_TOKEN of the environment]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The file of the region or the witness, which is written
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The QUIC port (UDP); a region's writer, reader, HTTP and instance are 1, 2, 3 and 10 above, a witness's HTTP 3. Kept from the file if there
    /// is one [default: 127.0.0.1:7400, of a witness 127.0.0.1:7700]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// How the regions reach that [default: the address of --listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// The directory of its data [default: data/NAME beside the file]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The directory of its certificate and key [default: certs beside the file]
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// # Errors
/// [`Failure`]: the region refuses, or does not answer.
pub async fn invite(args: InviteArgs) -> Result<(), Failure> {
    if let Some(address) = &args.address {
        reachable(address).map_err(|why| Failure::new(USAGE, format!("--address {address} {why}")))?;
    }
    let guest = match (args.region, args.witness) {
        (Some(name), _) => Guest::Region { name },
        (None, Some(name)) => {
            note_zones(args.ask.config.as_deref(), &name, args.zone.as_ref())?;
            Guest::Witness { name, zone: args.zone }
        }
        (None, None) => unreachable!("BUG: one of them is required"),
    };
    let client = Client::open(args.ask.config.as_deref())?;
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = AdminRequest::Invite { guest, ttl_ms, listen: args.listen.to_string(), address: args.address };
    match client.ask(&request).await? {
        AdminAnswer::Invited(invited) if args.ask.json => {
            let token = &invited.token;
            say(&line(&json!({
                "token": token.reveal(), token.guest.kind(): token.guest.name(), "inviter": token.inviter, "address": token.addr,
                "expires_at": token.expires_at,
            })))
        }
        AdminAnswer::Invited(invited) => {
            let token = &invited.token;
            let name = token.guest.name();
            eprintln!(
                "note: good once, for {name}, for {}, at {}; it is a secret. There: parhelion join --token-file FILE --config regions/{name}.toml",
                humantime::format_duration(args.ttl),
                token.addr,
            );
            say(&format!("{}\n", token.reveal()))
        }
        AdminAnswer::Refused(why) => Err(Failure::new(REFUSED, why)),
        _ => Err(Failure::new(FAILED, "the region answered something else than was asked; is it the same version of parhelion?")),
    }
}

fn token(args: &JoinArgs) -> Result<Token, Failure> {
    let text = match &args.token_file {
        Some(file) if file == Path::new("-") => {
            let mut text = String::new();
            std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(io_failure("read standard input"))?;
            text
        }
        Some(file) => {
            let mut text = String::new();
            let tried = format!("read {}", file.display());
            let file = std::fs::File::open(file).map_err(io_failure(&tried))?;
            file.take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(io_failure(&tried))?;
            text
        }
        None => std::env::var(TOKEN_ENV).map_err(|_| {
            Failure::new(USAGE, format!("no invitation: name --token-file FILE (- for standard input), or set {TOKEN_ENV}"))
        })?,
    };
    Token::parse(&text).map_err(|e| Failure::new(FAILED, e.to_string()))
}

/// # Errors
/// [`Failure`]: refused, or something cannot be written. What was written stays, and the same command again goes on.
pub async fn join(args: JoinArgs) -> Result<(), Failure> {
    let token = token(&args)?;
    match token.guest {
        Guest::Region { .. } => join_region(&args, &token).await,
        Guest::Witness { .. } => join_witness(&args, &token).await,
    }
}

/// Where the new member is, and what it is known by.
struct Place {
    tls_dir: PathBuf,
    listen: SocketAddr,
    /// How the regions reach it.
    address: String,
}

/// By the command line, or by the file that is there already: its directory of certificates, and where it listens.
fn place(args: &JoinArgs, token: &Token, before: Option<(&Path, &str)>) -> Result<Place, Failure> {
    let base = args.config.parent().unwrap_or(Path::new(""));
    let tls_dir = match (&args.tls_dir, before) {
        (Some(dir), _) => std::path::absolute(dir).map_err(io_failure("find --tls-dir"))?,
        (None, before) => base.join(before.map_or(Path::new("certs"), |(dir, _)| dir)),
    };
    let port = if let Guest::Region { .. } = token.guest { REGION_PORT } else { WITNESS_PORT };
    let asked = args.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let listen = before.and_then(|(_, listen)| listen.parse().ok()).unwrap_or(asked);
    let address = match &args.address {
        Some(address) => address.clone(),
        None if listen.ip().is_unspecified() => {
            let what = format!("{listen} can be listened on but not reached: name the address by which the others reach it with --address");
            return Err(Failure::new(USAGE, what));
        }
        None => listen.to_string(),
    };
    reachable(&address).map_err(|why| Failure::new(USAGE, format!("--address {address} {why}")))?;
    Ok(Place { tls_dir, listen, address })
}

/// The key is made or found, and the inviter asked for a certificate and for everything else.
async fn welcomed(token: &Token, place: &Place) -> Result<JoinAnswer, Failure> {
    let name = token.guest.name();
    let csr = certs::request(token.guest.subject(), &place.tls_dir, &token.cluster, name)?;
    let (addr, version) = (place.address.clone(), env!("CARGO_PKG_VERSION").into());
    match ask(token, &JoinRequest { name: name.clone(), secret: token.secret, csr, addr, version }).await? {
        JoinAnswer::Refused(why) => Err(Failure::new(REFUSED, why)),
        welcome => Ok(welcome),
    }
}

fn another_answer() -> Failure {
    Failure::new(FAILED, "the region that invites answered something else than was asked; is it the same version of parhelion?")
}

async fn join_region(args: &JoinArgs, token: &Token) -> Result<(), Failure> {
    let region = token.guest.name();
    let before: Option<RawConfig> = existing(&args.config, token, |raw: &RawConfig| (&raw.region, &raw.cluster))?;
    let place = place(args, token, before.as_ref().map(|raw| (raw.tls.dir.as_path(), raw.listen.quic.as_str())))?;
    let JoinAnswer::Welcome(welcome) = welcomed(token, &place).await? else { return Err(another_answer()) };
    let Place { tls_dir, listen, address } = place;
    certs::install(Subject::Region, &tls_dir, region, &welcome.ca_pem, &welcome.certificate_pem, Some(&welcome.sql_password))?;
    let raw = configured(args, token, &welcome, before, listen, &address);
    write_config(&args.config, &render(&raw))?;
    // Whatever would be in the way of its start is in the way now, where it is understood.
    let config = Config::load(&args.config)?;
    Material::load(&config.tls_dir, &config.cluster, &config.region, &config.file, clock::unix_now())?;
    config.password()?;
    if args.json {
        return say(&line(&json!({
            "region": region, "cluster": token.cluster, "config": args.config, "quic": listen, "address": address, "tls_dir": tls_dir,
            "data_dir": config.data_dir, "members": welcome.members.iter().map(|(r, _)| r).collect::<Vec<_>>(),
        })));
    }
    let members: Vec<&str> = welcome.members.iter().map(|(r, _)| r.as_str()).collect();
    say(&format!(
        "{region} is a member of the global cluster {}, with {}; its key is {} and never left this machine\nstart it: parhelion region --config {}\n",
        token.cluster,
        members.join(", "),
        tls::key_file(&tls_dir, region).display(),
        args.config.display()
    ))
}

async fn join_witness(args: &JoinArgs, token: &Token) -> Result<(), Failure> {
    let name = token.guest.name();
    let before: Option<RawWitnessConfig> = existing(&args.config, token, |raw: &RawWitnessConfig| (&raw.name, &raw.cluster))?;
    let place = place(args, token, before.as_ref().map(|raw| (raw.tls.dir.as_path(), raw.listen.quic.as_str())))?;
    let JoinAnswer::WelcomeWitness(welcome) = welcomed(token, &place).await? else { return Err(another_answer()) };
    let Place { tls_dir, listen, address } = place;
    certs::install(Subject::Witness, &tls_dir, name, &welcome.ca_pem, &welcome.certificate_pem, None)?;
    let raw = witness_configured(args, token, &welcome, before, listen);
    write_config(&args.config, &witness_config::render(&raw))?;
    let config = WitnessConfig::load(&args.config)?;
    Material::load_as(Subject::Witness, &config.tls_dir, &config.cluster, name, &config.file, clock::unix_now())?;
    let members: Vec<&str> = welcome.members.iter().map(|(r, _)| r.as_str()).collect();
    if args.json {
        return say(&line(&json!({
            "witness": name, "cluster": token.cluster, "config": args.config, "quic": listen, "address": address, "tls_dir": tls_dir,
            "data_dir": config.data_dir, "members": members,
        })));
    }
    say(&format!(
        "{name} is the witness of the global cluster {}, of {}; its key is {} and never left this machine\nstart it: parhelion witness --config {}\n",
        token.cluster,
        members.join(", "),
        Subject::Witness.key_file(&tls_dir, name).display(),
        args.config.display()
    ))
}

/// The file that is there already: it must be this member's.
fn existing<T: DeserializeOwned>(
    file: &Path,
    token: &Token,
    whose: impl Fn(&T) -> (&RegionName, &ClusterName),
) -> Result<Option<T>, Failure> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_failure(format!("read {}", file.display()))(e)),
    };
    let raw: T = parse(file, &text)?;
    let (name, cluster) = whose(&raw);
    if name != token.guest.name() || *cluster != token.cluster {
        return Err(Failure::new(
            REFUSED,
            format!(
                "{} is the file of {name} of the global cluster {cluster}, and the invitation is for {} of {}; name another --config",
                file.display(),
                token.guest.name(),
                token.cluster
            ),
        ));
    }
    Ok(Some(raw))
}

async fn ask(token: &Token, request: &JoinRequest) -> Result<JoinAnswer, Failure> {
    let at = &token.addr;
    let gone = |why: String| {
        Failure::new(UNREACHABLE, format!("{} does not answer at {at} ({why})", token.inviter))
            .hint(format!("an invitation ends with the process that made it; there: {} --listen IP:PORT", token.guest.invited_by()))
    };
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(at.as_str())).await;
    let stream = connecting.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(|e| gone(e.to_string()))?;
    let name = ServerName::try_from(tls::dns_name(&token.cluster, &token.inviter)).expect("BUG: region and cluster are DNS labels");
    let connector = TlsConnector::from(join_tls::joiner(token.ca_sha256));
    let handshake = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await;
    let mut stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            let what = format!(
                "whoever answers at {at} is not {} of the global cluster of this invitation ({e}); nothing was sent there",
                token.inviter
            );
            return Err(Failure::new(REFUSED, what).hint("is something between the two machines? else ask for another invitation"));
        }
        Err(_) => return Err(gone("no TLS handshake".into())),
    };
    wire::send(&mut stream, request).await.map_err(gone)?;
    wire::receive(&mut stream, ANSWER_WITHIN).await.map_err(gone)
}

fn members_of(welcome: &[(RegionName, String)]) -> Vec<RawMember> {
    welcome.iter().map(|(region, quic)| RawMember { region: region.clone(), quic: quic.clone(), zone: None }).collect()
}

fn time(ms: u64) -> Option<String> {
    Some(humantime::format_duration(Duration::from_millis(ms)).to_string())
}

fn absolute(dir: &PathBuf) -> PathBuf {
    std::path::absolute(dir).unwrap_or_else(|_| dir.clone())
}

fn witness_configured(
    args: &JoinArgs,
    token: &Token,
    welcome: &WitnessWelcome,
    before: Option<RawWitnessConfig>,
    listen: SocketAddr,
) -> RawWitnessConfig {
    let member = members_of(&welcome.members);
    if let Some(before) = before {
        return RawWitnessConfig { member, ..before };
    }
    let name = token.guest.name();
    let http = SocketAddr::new(listen.ip(), listen.port().saturating_add(3));
    RawWitnessConfig {
        cluster: token.cluster.clone(),
        name: name.clone(),
        data_dir: args.data_dir.as_ref().map_or_else(|| Path::new("data").join(name.as_str()), absolute),
        listen: RawWitnessListen {
            quic: listen.to_string(),
            http: Some(http.to_string()),
            expose: (!listen.ip().is_loopback()).then_some(true),
        },
        tls: RawTls { dir: args.tls_dir.as_ref().map_or_else(|| PathBuf::from("certs"), absolute) },
        encryption: None,
        log: None,
        control: Some(RawControl {
            lease: time(welcome.lease_ms),
            renew: time(welcome.renew_ms),
            drain: time(welcome.drain_ms),
            auto_failover: None,
        }),
        member,
    }
}

fn configured(
    args: &JoinArgs,
    token: &Token,
    welcome: &Welcome,
    before: Option<RawConfig>,
    listen: SocketAddr,
    address: &str,
) -> RawConfig {
    let name = token.guest.name();
    let mut member = members_of(&welcome.members);
    member.push(RawMember { region: name.clone(), quic: address.to_owned(), zone: None });
    if let Some(before) = before {
        return RawConfig { member, ..before };
    }
    let port = |n: u16| SocketAddr::new(listen.ip(), listen.port().saturating_add(n)).to_string();
    let segment_kib = u64::from(welcome.segment_pages) * (crate::base::SEGMENT_PAGE_BYTES >> 10);
    let units = [("TiB", 30), ("GiB", 20), ("MiB", 10), ("KiB", 0)];
    let (unit, bits) = units.into_iter().find(|(_, bits)| segment_kib.is_multiple_of(1 << bits)).expect("BUG: KiB always do");
    RawConfig {
        cluster: token.cluster.clone(),
        region: name.clone(),
        data_dir: args.data_dir.as_ref().map_or_else(|| Path::new("data").join(name.as_str()), absolute),
        founder: welcome.founder_among(&member),
        listen: RawListen {
            quic: listen.to_string(),
            writer: port(1),
            reader: port(2),
            http: port(3),
            instance: Some(port(10)),
            expose: (!listen.ip().is_loopback()).then_some(true),
        },
        tls: RawTls { dir: args.tls_dir.as_ref().map_or_else(|| PathBuf::from("certs"), absolute) },
        encryption: None,
        sql: RawSql { user: welcome.sql_user.clone(), database: welcome.sql_database.clone(), password_file: None },
        netem: None,
        log: None,
        quic: None,
        limits: None,
        copies: std::collections::BTreeMap::new(),
        volume: Some(RawVolume {
            segment: Some(format!("{}{unit}", segment_kib >> bits)),
            groups: Some(welcome.groups),
            ..RawVolume::default()
        }),
        control: Some(RawControl {
            lease: time(welcome.lease_ms),
            renew: time(welcome.renew_ms),
            drain: time(welcome.drain_ms),
            auto_failover: None,
        }),
        witness: welcome.witness.as_ref().map(|(name, quic)| RawWitness { name: name.clone(), quic: quic.clone(), zone: None }),
        member,
    }
}

impl Welcome {
    /// The founder may have been taken out since: then any other member stands for it, as it founds nothing again.
    fn founder_among(&self, members: &[RawMember]) -> RegionName {
        let is = |name: &RegionName| members.iter().any(|m| m.region == *name);
        if is(&self.founder) { self.founder.clone() } else { members[0].region.clone() }
    }
}

/// Whole or not at all; one that was there is kept beside it.
fn write_config(file: &Path, text: &str) -> Result<(), Failure> {
    let write = || {
        if let Some(dir) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir)?;
        }
        if file.exists() {
            std::fs::copy(file, file.with_extension("toml.before"))?;
        }
        let beside = file.with_extension("toml.new");
        std::fs::write(&beside, text)?;
        std::fs::File::open(&beside)?.sync_all()?;
        std::fs::rename(&beside, file)
    };
    write().map_err(io_failure(format!("write {}", file.display())))
}
