//! The configuration of one region: a TOML file as people write it becomes a [`Config`] that is complete and checked.
//!
//! Decides: what a key means, what it is when left out, and which combinations are mistakes; all in one place and once, so
//! that nothing behind it checks again. Never says who is primary: that is state. The file names members, and the
//! region that founds the global cluster on empty disks. Unknown keys are errors: a typing mistake must not
//! silently become a default.

mod control;

pub(super) use control::complete_control;
pub use control::{ControlSettings, RawAutoFailover, RawControl, RawWitness, Witness, parse_auto_failover};

use crate::base::{ClusterName, CopyId, GROUPS_MAX, Layout, Limits, RegionName, SEGMENT_PAGE_BYTES};
use crate::control::{Settings, VoterSet, Who};
use crate::io::control_link::Peer;
use crate::io::quic::{Congestion, QuicSettings};
use crate::io::tls::Subject;
use crate::ops::certs::PASSWORD_FILE;
use crate::ops::membership::roster::Roster;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What stands in `regions/*.toml`. Paths are relative to the file's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub cluster: ClusterName,
    pub region: RegionName,
    pub data_dir: PathBuf,
    pub founder: RegionName,
    pub listen: RawListen,
    pub tls: RawTls,
    pub sql: RawSql,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netem: Option<RawNetem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<RawLog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quic: Option<RawQuic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<RawLimits>,
    /// `[copies]`: which of the six are in processes of their own, and where.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<RawVolume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<RawControl>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<RawWitness>,
    #[serde(default)]
    pub member: Vec<RawMember>,
}

/// `[listen]`: addresses as `IP:port`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawListen {
    pub quic: String,
    pub writer: String,
    pub reader: String,
    pub http: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose: Option<bool>,
}

/// `[[member]]`: one region of the global cluster, as this region reaches it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMember {
    pub region: RegionName,
    pub quic: String,
    /// Its failure domain as you call it; a witness must not be in that of the primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// `[tls]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    pub dir: PathBuf,
}

/// `[sql]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSql {
    pub user: String,
    pub database: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// `[netem]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNetem {
    pub control: PathBuf,
}

/// `[log]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
}

/// `[quic]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawQuic {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion: Option<Congestion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_buffer_bytes: Option<usize>,
}

/// `[volume]`: how page space is cut. Fixed when the global cluster is founded, the same in all regions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVolume {
    /// Size of a segment, `10GiB` when left out: a number and KiB, MiB, GiB or TiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Protection groups, 1 to 16; 1 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<u32>,
    /// What the scrub reads of each copy in a second, MB; 0: no scrub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_mb_per_s: Option<u64>,
    /// A pass of the scrub begins so often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_every_s: Option<u64>,
}

/// `[limits]`: what may be set; the rest keeps its default.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secondaries_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_retain_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_retain_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_retain_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_retain_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed_held_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed_bytes_per_s_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memtable_bytes_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_bytes_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_in_transaction_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_wait_ms: Option<u64>,
    pub writer_wait_ms: Option<u64>,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// A region's configuration: complete, checked, paths absolute or relative to the working directory.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file this came from, to be named in messages.
    pub file: PathBuf,
    pub cluster: ClusterName,
    pub region: RegionName,
    /// Creates the global cluster, once, on empty disks. Means nothing afterwards.
    pub founder: RegionName,
    pub data_dir: PathBuf,
    pub listen: Listen,
    /// All regions of the global cluster, this one among them, in the order of the file.
    pub members: Vec<Member>,
    /// The voter without data, if there is one.
    pub witness: Option<Witness>,
    pub control: ControlSettings,
    /// Copies of this region in processes of their own (`parhelion copy --config`), as `host:port`. The others are in the region's process.
    pub copies: BTreeMap<CopyId, String>,
    pub tls_dir: PathBuf,
    pub sql: Sql,
    /// The control file or socket of the demo's WAN emulator.
    pub netem_control: Option<PathBuf>,
    pub log: LogSettings,
    pub quic: QuicSettings,
    pub limits: Limits,
    /// How page space is cut; fixed when the global cluster is founded.
    pub layout: Layout,
    pub serving: Serving,
}

/// Where this region listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub quic: SocketAddr,
    pub writer: SocketAddr,
    pub reader: SocketAddr,
    pub http: SocketAddr,
    /// Of instance 0; instance n listens n ports above.
    pub instance: SocketAddr,
}

/// One region of the global cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub region: RegionName,
    /// `host:port` by which this region reaches it. A host name is looked up at every connection attempt.
    pub quic: String,
    pub zone: Option<String>,
}

/// Who may log in.
#[derive(Clone, Debug)]
pub struct Sql {
    pub user: String,
    pub database: String,
    pub password_file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct LogSettings {
    /// As of tracing's filters: `info`, `parhelion=debug,quinn=warn`.
    pub level: String,
    pub format: LogFormat,
}

/// Bounds of what serves clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Read connections of an instance (threads), 1 to 256.
    pub readers: usize,
    /// Page versions an instance keeps in memory, bytes.
    pub pool_bytes_max: usize,
    /// SQL clients at a time, over all ports.
    pub connections_max: usize,
    /// A transaction whose client says nothing for so long is ended.
    pub idle_in_transaction: Duration,
    /// A commit that is not durable after so long is answered with an error (its outcome is then unknown).
    pub commit_wait: Duration,
    /// A statement at the writer port waits so long for a writer, while the role changes or none can be reached.
    pub writer_wait: Duration,
}

/// Why a configuration is refused. Each names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{} cannot be read: {source}; name a region's file with --config, for example regions/us-east.toml", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {message}", file.display())]
    Parse { file: PathBuf, line: usize, message: String },
    #[error("{}: {message}", file.display())]
    Invalid { file: PathBuf, message: String },
    #[error("the password file {} {reason}", file.display())]
    Password { file: PathBuf, reason: String },
}

impl Config {
    /// Reads and checks the file of a region; `PARHELION_DATA_DIR`, `PARHELION_LOG` (level) and `PARHELION_LOG_FORMAT`
    /// override it.
    ///
    /// # Errors
    /// [`ConfigError`], as a sentence for the operator.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        Config::load_with(file, &|name| std::env::var(name).ok())
    }

    /// As [`Config::load`], with the environment as an argument.
    ///
    /// # Errors
    /// [`ConfigError`], as a sentence for the operator.
    pub fn load_with(file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable { file: file.to_path_buf(), source })?;
        Config::complete(parse(file, &text)?, file, env)
    }

    /// Checks `raw` as if it stood in `file`, and fills in what it leaves out.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with what is wrong and what would be right.
    pub fn complete(raw: RawConfig, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let invalid = |message: String| ConfigError::Invalid { file: file.to_path_buf(), message };
        let base = file.parent().unwrap_or(Path::new(""));
        let listen = listen(&raw.listen).map_err(invalid)?;
        let given = raw.limits.unwrap_or_default();
        let given_volume = raw.volume.unwrap_or_default();
        let limits = volume(&given_volume, limits(&given).map_err(invalid)?).map_err(invalid)?;
        let witness = raw.witness.map(|w| control::witness(w, &raw.member)).transpose().map_err(invalid)?;
        let members = members(&raw.region, &raw.founder, raw.member, limits.secondaries_max).map_err(invalid)?;
        for (key, value) in [("user", &raw.sql.user), ("database", &raw.sql.database)] {
            if value.is_empty() || value.len() > 63 || value.contains(char::is_control) {
                return Err(invalid(format!("sql.{key} = {value:?}: write 1 to 63 characters")));
            }
        }
        let tls_dir = base.join(raw.tls.dir);
        Ok(Config {
            file: file.to_path_buf(),
            cluster: raw.cluster,
            region: raw.region,
            founder: raw.founder,
            data_dir: env("PARHELION_DATA_DIR").map_or_else(|| base.join(raw.data_dir), PathBuf::from),
            listen,
            members,
            witness,
            control: complete_control(raw.control).map_err(invalid)?,
            copies: copies(&raw.copies).map_err(invalid)?,
            sql: Sql {
                user: raw.sql.user,
                database: raw.sql.database,
                password_file: raw.sql.password_file.map_or_else(|| tls_dir.join(PASSWORD_FILE), |f| base.join(f)),
            },
            tls_dir,
            netem_control: raw.netem.map(|n| base.join(n.control)),
            log: complete_log(raw.log, env).map_err(invalid)?,
            quic: quic(&raw.quic.unwrap_or_default()).map_err(invalid)?,
            limits,
            layout: layout(&given_volume).map_err(invalid)?,
            serving: serving(&given).map_err(invalid)?,
        })
    }

    /// Names of all members, in the order of the file.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionName> {
        self.members.iter().map(|m| m.region.clone()).collect()
    }

    /// The member of that name.
    #[must_use]
    pub fn member(&self, region: &RegionName) -> Option<&Member> {
        self.members.iter().find(|m| m.region == *region)
    }

    /// Who the members are, for a process that runs.
    #[must_use]
    pub fn roster(&self) -> Roster {
        let files = self.members.iter().map(|m| (m.region.clone(), m.quic.clone())).collect();
        let witness = self.witness.as_ref().map(|w| Peer { name: w.name.clone(), subject: Subject::Witness, addr: w.quic.clone() });
        Roster::new(self.region.clone(), self.file.clone(), files, witness)
    }

    /// The other members, as control links reach them.
    #[must_use]
    pub fn control_peers(&self) -> Vec<Peer> {
        let regions = self.members.iter().filter(|m| m.region != self.region);
        let region = |m: &Member| Peer { name: m.region.clone(), subject: Subject::Region, addr: m.quic.clone() };
        let witness = |w: &Witness| Peer { name: w.name.clone(), subject: Subject::Witness, addr: w.quic.clone() };
        regions.map(region).chain(self.witness.as_ref().map(witness)).collect()
    }

    /// This member, for the control core.
    #[must_use]
    pub fn who(&self) -> Who {
        let witness = self.witness.as_ref().map(|w| w.name.clone());
        let settings = Settings { secondaries_max: self.limits.secondaries_max, ..self.control.settings() };
        Who { name: self.region.clone(), regions: self.regions(), witness, settings, addrs: self.addrs() }
    }

    /// How this region reaches each of them.
    #[must_use]
    pub fn addrs(&self) -> BTreeMap<RegionName, String> {
        self.members.iter().map(|m| (m.region.clone(), m.quic.clone())).collect()
    }

    /// Who votes if this cluster is founded now.
    #[must_use]
    pub fn founding_voters(&self) -> VoterSet {
        VoterSet::founding(&self.founder, &self.regions(), self.witness.as_ref().map(|w| &w.name))
    }

    /// What is not a mistake and yet not good; sentences, for the log at start.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let Some(Witness { name, .. }) = &self.witness else { return Vec::new() };
        let mut warnings: Vec<String> = self.members.iter().filter_map(|m| self.witness_beside(&m.region)).collect();
        if !self.founding_voters().contains(name) {
            warnings
                .push(format!("{} regions have an odd number of votes by themselves: the witness {name} gets none", self.members.len()));
        }
        warnings
    }

    /// A sentence when the witness is in the zone of `region`: what takes that zone takes two votes.
    #[must_use]
    pub fn witness_beside(&self, region: &RegionName) -> Option<String> {
        let witness = self.witness.as_ref()?;
        let zone = witness.zone.as_ref().filter(|zone| self.member(region).is_some_and(|m| m.zone.as_ref() == Some(*zone)))?;
        Some(format!(
            "the witness {} is in the zone of {region} ({zone}): what takes that zone takes two votes; move the witness to a third one",
            witness.name
        ))
    }

    /// `host:port` at which a command reaches this region's process.
    #[must_use]
    pub fn admin_addr(&self) -> &str {
        &self.member(&self.region).expect("BUG: a region is a member of its own configuration").quic
    }

    /// The SQL user's password.
    ///
    /// # Errors
    /// When the file is missing, empty, or readable by others.
    pub fn password(&self) -> Result<String, ConfigError> {
        let file = &self.sql.password_file;
        let wrong = |reason: String| ConfigError::Password { file: file.clone(), reason };
        let text = std::fs::read_to_string(file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => wrong(format!("does not exist; run: parhelion certs --config {}", self.file.display())),
            _ => wrong(format!("cannot be read: {e}")),
        })?;
        let metadata = std::fs::metadata(file).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(wrong(format!("can be read by other users (mode {mode:04o}); run: chmod 600 {}", file.display())));
        }
        let password = text.lines().next().unwrap_or("").trim();
        if password.is_empty() {
            return Err(wrong("is empty; write the password into its first line".to_owned()));
        }
        Ok(password.to_owned())
    }
}

/// The TOML text of a configuration, as the demo writes it.
#[must_use]
pub fn render(raw: &RawConfig) -> String {
    let body = toml::to_string(raw).expect("BUG: a configuration is made of tables, strings and numbers");
    format!("# Region {} of the global cluster {}. Who is primary is state, not configuration.\n\n{body}", raw.region, raw.cluster)
}

pub(in crate::ops) fn parse<T: serde::de::DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::Parse { file: file.to_path_buf(), line, message: sentence(e.message()) }
    })
}

/// The parser's words in ours: a key, not a field; and what the keys are.
fn sentence(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let rest = rest.replace(", expected one of ", "; the keys here are ").replace(", expected ", "; the only key here is ");
        return format!("unknown key {rest}").replace('`', "'");
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        let key = key.replace('`', "'");
        let why = match key.as_str() {
            "'founder'" => ": the region that creates the global cluster, once, on empty disks",
            "'data_dir'" => ": the directory of this region's data",
            "'cluster'" => ": the name of the global cluster",
            "'region'" => ": the name of this region",
            _ => "",
        };
        return format!("the key {key} is missing{why}");
    }
    if message == control::NO_AUTO_FAILOVER {
        return control::AUTO_FAILOVER.to_owned();
    }
    message.replace('`', "'")
}

/// `[log]`, and what the environment says of it.
pub(super) fn complete_log(raw: Option<RawLog>, env: &dyn Fn(&str) -> Option<String>) -> Result<LogSettings, String> {
    let log = raw.unwrap_or_default();
    let format = match env("PARHELION_LOG_FORMAT").as_deref() {
        None => log.format.unwrap_or_default(),
        Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => return Err(format!("PARHELION_LOG_FORMAT is '{other}' in the environment: text or json")),
    };
    Ok(LogSettings { level: env("PARHELION_LOG").or(log.level).unwrap_or_else(|| "info".to_owned()), format })
}

fn layout(raw: &RawVolume) -> Result<Layout, String> {
    let mut layout = Layout::default();
    if let Some(text) = &raw.segment {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
        let found = units.into_iter().find_map(|(unit, bits)| text.strip_suffix(unit).map(|number| (number.trim_end(), bits)));
        let bytes = found.and_then(|(number, bits)| number.parse::<u64>().ok()?.checked_mul(1 << bits));
        layout.segment_pages = bytes
            .filter(|b| b.is_multiple_of(SEGMENT_PAGE_BYTES))
            .and_then(|b| u32::try_from(b / SEGMENT_PAGE_BYTES).ok())
            .filter(|pages| *pages > 0)
            .ok_or_else(|| {
                format!("volume.segment = \"{text}\": write a size of 4KiB or a multiple of it, below 16TiB, as in \"10GiB\"")
            })?;
    }
    if let Some(groups) = raw.groups {
        if !(1..=GROUPS_MAX).contains(&groups) {
            return Err(format!("volume.groups = {groups}: write 1 to {GROUPS_MAX}"));
        }
        layout.groups = groups;
    }
    Ok(layout)
}

fn listen(raw: &RawListen) -> Result<Listen, String> {
    let parse = |key: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| format!("listen.{key} = \"{text}\" is no address: write IP:port, as in 127.0.0.1:7400"))
    };
    let (quic, writer) = (parse("quic", &raw.quic)?, parse("writer", &raw.writer)?);
    let instance = match &raw.instance {
        Some(text) => parse("instance", text)?,
        // Base + 10 + n, in the numbering of the demo. A base of 0 means "any free port", here too.
        None if quic.port() == 0 => SocketAddr::new(writer.ip(), 0),
        None => match quic.port().checked_add(10) {
            Some(port) => SocketAddr::new(writer.ip(), port),
            None => return Err("listen.quic has a port above 65525: name listen.instance as well".to_owned()),
        },
    };
    let listen = Listen { quic, writer, reader: parse("reader", &raw.reader)?, http: parse("http", &raw.http)?, instance };
    let all =
        [("quic", listen.quic), ("writer", listen.writer), ("reader", listen.reader), ("http", listen.http), ("instance", listen.instance)];
    if raw.expose != Some(true)
        && let Some((key, addr)) = all.iter().find(|(_, addr)| !addr.ip().is_loopback())
    {
        return Err(format!(
            "listen.{key} = \"{addr}\" can be reached from other machines: write 127.0.0.1, or say `expose = true` in [listen]"
        ));
    }
    // QUIC is UDP: only the others can collide.
    let tcp = &all[1..];
    for (i, (key, addr)) in tcp.iter().enumerate() {
        if let Some((other, _)) = tcp[..i].iter().find(|(_, other)| other == addr && addr.port() != 0) {
            return Err(format!("listen.{other} and listen.{key} are both {addr}: each needs a port of its own"));
        }
    }
    Ok(listen)
}

/// `host:port` that can be reached.
pub(in crate::ops) fn reachable(addr: &str) -> Result<(), &'static str> {
    let good = addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    if !good {
        return Err("is no address: write host:port, as in 127.0.0.1:7400");
    }
    if addr.parse::<SocketAddr>().is_ok_and(|a| a.ip().is_unspecified()) {
        return Err("can be listened on but not reached: name its real address");
    }
    Ok(())
}

fn copies(raw: &BTreeMap<String, String>) -> Result<BTreeMap<CopyId, String>, String> {
    let copy = |(name, addr): (&String, &String)| {
        let id: CopyId = name.parse().map_err(|e| format!("[copies]: {e}"))?;
        reachable(addr).map_err(|why| format!("[copies] {name} = \"{addr}\" {why}"))?;
        Ok((id, addr.clone()))
    };
    raw.iter().map(copy).collect()
}

fn members(region: &RegionName, founder: &RegionName, raw: Vec<RawMember>, secondaries_max: usize) -> Result<Vec<Member>, String> {
    let mut members: Vec<Member> = Vec::new();
    for RawMember { region, quic, zone } in raw {
        if members.iter().any(|m| m.region == region) {
            return Err(format!("the member {region} is listed twice"));
        }
        reachable(&quic).map_err(|why| format!("quic = \"{quic}\" of the member {region} {why}"))?;
        members.push(Member { region, quic, zone });
    }
    let names = || members.iter().map(|m| m.region.to_string()).collect::<Vec<_>>().join(", ");
    if members.len() < 2 {
        return Err("a global cluster has at least 2 regions: add a [[member]] with `region` and `quic` for each".to_owned());
    }
    if members.len() > secondaries_max + 1 {
        let count = members.len() - 1;
        return Err(format!(
            "a global cluster has one primary and at most {secondaries_max} secondaries, and here are {count}: take members out ({})",
            names()
        ));
    }
    for (key, name) in [("region", region), ("founder", founder)] {
        if !members.iter().any(|m| m.region == *name) {
            return Err(format!("{key} = \"{name}\" is not among the members ({}): add a [[member]] or correct the name", names()));
        }
    }
    Ok(members)
}

fn within<T: PartialOrd + std::fmt::Display>(key: &str, value: T, min: T, max: T) -> Result<T, String> {
    if value < min || value > max { Err(format!("limits.{key} = {value}: it must lie between {min} and {max}")) } else { Ok(value) }
}

/// Up to a month.
fn seconds(key: &str, given: Option<u64>, default: Duration) -> Result<Duration, String> {
    Ok(Duration::from_secs(within(key, given.unwrap_or(default.as_secs()), 1, 31 * 24 * 3600)?))
}

fn limits(raw: &RawLimits) -> Result<Limits, String> {
    let d = Limits::default();
    Ok(Limits {
        secondaries_max: within("secondaries_max", raw.secondaries_max.unwrap_or(d.secondaries_max), 1, 15)?,
        log_retain_bytes: within("log_retain_bytes", raw.log_retain_bytes.unwrap_or(d.log_retain_bytes), 1 << 20, 1 << 44)?,
        // Log goes by whole files: they are small against their budget.
        log_file_bytes: d.log_file_bytes.min(raw.log_retain_bytes.unwrap_or(d.log_retain_bytes) / 4),
        log_retain: seconds("log_retain_s", raw.log_retain_s, d.log_retain)?,
        version_retain: seconds("version_retain_s", raw.version_retain_s, d.version_retain)?,
        version_retain_bytes: within("version_retain_bytes", raw.version_retain_bytes.unwrap_or(d.version_retain_bytes), 1 << 20, 1 << 44)?,
        seed_held: seconds("seed_held_s", raw.seed_held_s, d.seed_held)?,
        seed_bytes_per_s_max: within("seed_bytes_per_s_max", raw.seed_bytes_per_s_max.unwrap_or(d.seed_bytes_per_s_max), 1 << 16, 1 << 40)?,
        memtable_bytes_max: within("memtable_bytes_max", raw.memtable_bytes_max.unwrap_or(d.memtable_bytes_max), 1 << 16, 1 << 32)?,
        ..d
    })
}

/// `[volume]` over the rest.
fn volume(raw: &RawVolume, limits: Limits) -> Result<Limits, String> {
    let checked = |key: &str, value: u64, min: u64, max: u64| {
        within(key, value, min, max).map_err(|sentence| sentence.replacen("limits.", "volume.", 1))
    };
    let scrub_mb_per_s = checked("scrub_mb_per_s", raw.scrub_mb_per_s.unwrap_or(limits.scrub_bytes_per_s >> 20), 0, 1 << 20)?;
    let every_s = checked("scrub_every_s", raw.scrub_every_s.unwrap_or(limits.scrub_every.as_secs()), 1, 365 * 86_400)?;
    Ok(Limits { scrub_bytes_per_s: scrub_mb_per_s << 20, scrub_every: Duration::from_secs(every_s), ..limits })
}

fn serving(raw: &RawLimits) -> Result<Serving, String> {
    Ok(Serving {
        readers: within("readers", raw.readers.unwrap_or(4), 1, 256)?,
        pool_bytes_max: within("pool_bytes_max", raw.pool_bytes_max.unwrap_or(32 << 20), 1 << 20, 1 << 40)?,
        connections_max: within("connections_max", raw.connections_max.unwrap_or(200), 1, 100_000)?,
        idle_in_transaction: Duration::from_millis(within(
            "idle_in_transaction_ms",
            raw.idle_in_transaction_ms.unwrap_or(5_000),
            10,
            3_600_000,
        )?),
        commit_wait: Duration::from_millis(within("commit_wait_ms", raw.commit_wait_ms.unwrap_or(10_000), 10, 3_600_000)?),
        writer_wait: Duration::from_millis(within("writer_wait_ms", raw.writer_wait_ms.unwrap_or(10_000), 10, 3_600_000)?),
    })
}

fn quic(raw: &RawQuic) -> Result<QuicSettings, String> {
    let d = QuicSettings::default();
    let udp_buffer_bytes = raw.udp_buffer_bytes.unwrap_or(d.udp_buffer_bytes);
    if !(64 << 10..=1 << 30).contains(&udp_buffer_bytes) {
        return Err(format!("quic.udp_buffer_bytes = {udp_buffer_bytes}: it must lie between 65536 and 1073741824"));
    }
    Ok(QuicSettings { congestion: raw.congestion.unwrap_or(d.congestion), udp_buffer_bytes })
}

#[cfg(test)]
mod tests;
