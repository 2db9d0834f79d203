//! The configuration of one region: a TOML file as people write it becomes a [`Config`] that is complete and checked.
//!
//! Decides: what a key means, what it is when left out, and which combinations are mistakes; all in one place and once, so
//! that nothing behind it checks again. Never says who is primary: that is state. The file names members, and the
//! region that founds the global cluster on empty disks. Unknown keys are errors: a typing mistake must not
//! silently become a default.

mod checks;
mod control;
mod raw;

pub(super) use checks::{complete_log, reachable};
pub(super) use control::complete_control;
pub use control::{ControlSettings, RawAutoFailover, RawControl, RawWitness, Witness, parse_auto_failover};
pub use raw::{RawConfig, RawEncryption, RawLimits, RawListen, RawLog, RawMember, RawNetem, RawQuic, RawSql, RawTls, RawVolume};

use crate::base::{ClusterName, CopyId, Layout, Limits, RegionName};
use crate::control::{Settings, VoterSet, Who};
use crate::head::embedded::GiveBack;
use crate::io::control_link::Peer;
use crate::io::quic::QuicSettings;
use crate::io::sealing::Key;
use crate::io::tls::Subject;
use crate::ops::certs::PASSWORD_FILE;
use crate::ops::membership::roster::Roster;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
    /// The copies in this region's process are sealed with the key in it.
    pub key_file: Option<PathBuf>,
    pub sql: Sql,
    /// The control file or socket of the demo's WAN emulator.
    pub netem_control: Option<PathBuf>,
    pub log: LogSettings,
    pub quic: QuicSettings,
    pub limits: Limits,
    /// What becomes of the space that dropped tables leave.
    pub give_back: GiveBack,
    /// How page space is cut; fixed when the global cluster is founded.
    pub layout: Layout,
    pub serving: Serving,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
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
    #[error("{0}")]
    Key(String),
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
        let listen = checks::listen(&raw.listen).map_err(invalid)?;
        let given = raw.limits.unwrap_or_default();
        let given_volume = raw.volume.unwrap_or_default();
        let limits = checks::volume(&given_volume, checks::limits(&given).map_err(invalid)?).map_err(invalid)?;
        let witness = raw.witness.map(|w| control::witness(w, &raw.member)).transpose().map_err(invalid)?;
        let members = checks::members(&raw.region, &raw.founder, raw.member, limits.secondaries_max).map_err(invalid)?;
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
            copies: checks::copies(&raw.copies).map_err(invalid)?,
            sql: Sql {
                user: raw.sql.user,
                database: raw.sql.database,
                password_file: raw.sql.password_file.map_or_else(|| tls_dir.join(PASSWORD_FILE), |f| base.join(f)),
            },
            tls_dir,
            key_file: raw.encryption.map(|e| base.join(e.key_file)),
            netem_control: raw.netem.map(|n| base.join(n.control)),
            log: complete_log(raw.log, env).map_err(invalid)?,
            quic: checks::quic(&raw.quic.unwrap_or_default()).map_err(invalid)?,
            limits,
            give_back: checks::give_back(&given_volume).map_err(invalid)?,
            layout: checks::layout(&given_volume).map_err(invalid)?,
            serving: checks::serving(&given).map_err(invalid)?,
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
        Roster::new(self.region.clone(), self.file.clone(), files, self.witness.clone())
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
        Who { name: self.region.clone(), regions: self.regions(), witness, has_data: true, settings, addrs: self.addrs() }
    }

    /// How this region reaches each of them, the witness too.
    #[must_use]
    pub fn addrs(&self) -> BTreeMap<RegionName, String> {
        let regions = self.members.iter().map(|m| (m.region.clone(), m.quic.clone()));
        regions.chain(self.witness.iter().map(|w| (w.name.clone(), w.quic.clone()))).collect()
    }

    /// Who votes if this cluster is founded now.
    #[must_use]
    pub fn founding_voters(&self) -> VoterSet {
        VoterSet::founding(&self.founder, &self.regions(), self.witness.as_ref().map(|w| &w.name))
    }

    /// What is not a mistake and yet not good; sentences, for the log at start.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let Some(witness @ Witness { name, .. }) = &self.witness else { return Vec::new() };
        let mut warnings: Vec<String> = self.members.iter().filter_map(|m| self.beside(witness, &m.region)).collect();
        if !self.founding_voters().contains(name) {
            warnings
                .push(format!("{} regions have an odd number of votes by themselves: the witness {name} gets none", self.members.len()));
        }
        warnings
    }

    /// A sentence when that witness is in the zone of `region`, as far as this file says: what takes that zone takes two votes.
    #[must_use]
    pub fn beside(&self, witness: &Witness, region: &RegionName) -> Option<String> {
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

    /// The key that the copies here are sealed with; `None`: they are not.
    ///
    /// # Errors
    /// [`ConfigError::Key`]
    pub fn key(&self) -> Result<Option<Arc<Key>>, ConfigError> {
        load_key(self.key_file.as_deref())
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

pub(super) fn load_key(file: Option<&Path>) -> Result<Option<Arc<Key>>, ConfigError> {
    file.map(|file| Key::load(file).map(Arc::new).map_err(ConfigError::Key)).transpose()
}

#[cfg(test)]
mod tests;
