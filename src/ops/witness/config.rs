//! The configuration of a witness: whose it is, where it keeps what it promised, where the regions are.
//!
//! Decides what a key means and which combinations are mistakes, once. Unknown keys are errors.

use crate::base::{ClusterName, RegionName};
use crate::control::Who;
use crate::io::control_link::Peer;
use crate::io::sealing::Key;
use crate::io::tls::Subject;
use crate::ops::config::{
    ConfigError, ControlSettings, LogSettings, Member, RawControl, RawEncryption, RawLog, RawMember, RawTls, complete_control,
    complete_log, load_key, parse, reachable,
};
use crate::ops::membership::roster::Roster;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stands in `regions/witness.toml`. Paths are relative to the file's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWitnessConfig {
    pub cluster: ClusterName,
    pub name: RegionName,
    pub data_dir: PathBuf,
    pub listen: RawWitnessListen,
    pub tls: RawTls,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<RawEncryption>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<RawLog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<RawControl>,
    #[serde(default)]
    pub member: Vec<RawMember>,
}

/// `[listen]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWitnessListen {
    pub quic: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose: Option<bool>,
}

/// The TOML text of a witness's file, as a join writes it.
#[must_use]
pub fn render(raw: &RawWitnessConfig) -> String {
    let body = toml::to_string(raw).expect("BUG: a configuration is made of tables, strings and numbers");
    format!("# The witness {} of the global cluster {}: it votes, and holds no data.\n\n{body}", raw.name, raw.cluster)
}

/// The configuration of a witness: complete and checked.
#[derive(Clone, Debug)]
pub struct WitnessConfig {
    /// The file this came from, to be named in messages.
    pub file: PathBuf,
    pub cluster: ClusterName,
    pub name: RegionName,
    pub data_dir: PathBuf,
    pub quic: SocketAddr,
    /// `/metrics` and `/healthz`.
    pub http: Option<SocketAddr>,
    /// All regions, in the order of the file.
    pub members: Vec<Member>,
    pub tls_dir: PathBuf,
    /// What it keeps is sealed with the key in it.
    pub key_file: Option<PathBuf>,
    pub control: ControlSettings,
    pub log: LogSettings,
}

impl WitnessConfig {
    /// Reads and checks the file; `PARHELION_DATA_DIR`, `PARHELION_LOG` and `PARHELION_LOG_FORMAT` override it.
    ///
    /// # Errors
    /// [`ConfigError`], as a sentence for the operator.
    pub fn load(file: &Path) -> Result<WitnessConfig, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable { file: file.to_path_buf(), source })?;
        WitnessConfig::complete(&text, file, &|name| std::env::var(name).ok())
    }

    /// Checks `text` as if it stood in `file`, and fills in what it leaves out.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn complete(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<WitnessConfig, ConfigError> {
        let raw: RawWitnessConfig = parse(file, text)?;
        let invalid = |message: String| ConfigError::Invalid { file: file.to_path_buf(), message };
        let base = file.parent().unwrap_or(Path::new(""));
        let address = |key: &str, given: &str| {
            let wrong = || invalid(format!("listen.{key} = \"{given}\" is no address: write IP:port, as in 127.0.0.1:7700"));
            let addr: SocketAddr = given.parse().map_err(|_| wrong())?;
            if raw.listen.expose != Some(true) && !addr.ip().is_loopback() {
                return Err(invalid(format!(
                    "listen.{key} = \"{addr}\" can be reached from other machines: write 127.0.0.1, or say `expose = true` in [listen]"
                )));
            }
            Ok(addr)
        };
        let quic = address("quic", &raw.listen.quic)?;
        let http = raw.listen.http.as_deref().map(|given| address("http", given)).transpose()?;
        let mut members: Vec<Member> = Vec::new();
        for RawMember { region, quic, zone } in raw.member {
            if region == raw.name {
                return Err(invalid(format!("the witness is called {region}, and so is a member: give it a name of its own")));
            }
            if members.iter().any(|m| m.region == region) {
                return Err(invalid(format!("the member {region} is listed twice")));
            }
            reachable(&quic).map_err(|why| invalid(format!("quic = \"{quic}\" of the member {region} {why}")))?;
            members.push(Member { region, quic, zone });
        }
        if members.len() < 2 {
            return Err(invalid("a witness votes between at least 2 regions: add a [[member]] with `region` and `quic` for each".into()));
        }
        Ok(WitnessConfig {
            file: file.to_path_buf(),
            cluster: raw.cluster,
            name: raw.name,
            data_dir: env("PARHELION_DATA_DIR").map_or_else(|| base.join(raw.data_dir), PathBuf::from),
            quic,
            http,
            members,
            tls_dir: base.join(raw.tls.dir),
            key_file: raw.encryption.map(|e| base.join(e.key_file)),
            control: complete_control(raw.control).map_err(invalid)?,
            log: complete_log(raw.log, env).map_err(invalid)?,
        })
    }

    /// As [`crate::ops::config::Config::key`].
    ///
    /// # Errors
    /// [`ConfigError::Key`]
    pub fn key(&self) -> Result<Option<Arc<Key>>, ConfigError> {
        load_key(self.key_file.as_deref())
    }

    /// All regions.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionName> {
        self.members.iter().map(|m| m.region.clone()).collect()
    }

    /// Who the members are, for a process that runs.
    #[must_use]
    pub fn roster(&self) -> Roster {
        let files = self.members.iter().map(|m| (m.region.clone(), m.quic.clone())).collect();
        Roster::of_witness(self.name.clone(), self.file.clone(), files)
    }

    /// The regions, as control links reach them.
    #[must_use]
    pub fn control_peers(&self) -> Vec<Peer> {
        let peer = |m: &Member| Peer { name: m.region.clone(), subject: Subject::Region, addr: m.quic.clone() };
        self.members.iter().map(peer).collect()
    }

    /// This member, for the control core.
    #[must_use]
    pub fn who(&self) -> Who {
        let addrs = self.members.iter().map(|m| (m.region.clone(), m.quic.clone())).collect();
        let (name, settings) = (self.name.clone(), self.control.settings());
        Who { witness: Some(name.clone()), name, regions: self.regions(), has_data: false, settings, addrs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::config::Config;

    fn example() -> (PathBuf, String) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("regions/witness.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        (file, text)
    }

    #[test]
    fn the_example_fits_the_two_regions_that_have_it() {
        let (file, text) = example();
        let witness = WitnessConfig::complete(&text, &file, &|_| None).unwrap();
        for name in ["us-east", "eu-west"] {
            let region = Config::load_with(&file.with_file_name(format!("two/{name}.toml")), &|_| None).unwrap();
            assert_eq!((&region.cluster, region.control), (&witness.cluster, witness.control));
            let named = region.witness.as_ref().unwrap();
            assert_eq!((&named.name, &named.quic), (&witness.name, &witness.quic.to_string()));
            let addr = |members: &[Member]| members.iter().map(|m| (m.region.clone(), m.quic.clone())).collect::<Vec<_>>();
            assert_eq!(addr(&region.members), addr(&witness.members));
            assert_eq!(region.warnings(), Vec::<String>::new());
            assert!(region.founding_voters().contains(&witness.name));
            assert_eq!(region.tls_dir.file_name(), witness.tls_dir.file_name());
        }
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        let (file, good) = example();
        for (from, to, said) in [
            ("quic = \"127.0.0.1:7700\"", "quic = \"10.0.0.2:7700\"", "say `expose = true`"),
            ("quic = \"127.0.0.1:7700\"", "quic = \"here\"", "write IP:port"),
            ("name = \"witness\"", "name = \"us-east\"", "and so is a member"),
            ("name = \"witness\"", "name = \"witness\"\nfounder = \"us-east\"", "unknown key 'founder'"),
            ("region = \"eu-west\"", "region = \"us-east\"", "listed twice"),
            ("[tls]", "[control]\nlease = \"1ms\"\n[tls]", "control.lease"),
            ("[tls]", "[sql]\n[tls]", "unknown key 'sql'"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = WitnessConfig::complete(&good.replacen(from, to, 1), &file, &|_| None).map(drop).unwrap_err().to_string();
            assert!(error.contains("witness.toml") && error.contains(said), "{error}");
        }
        let one = &good[..good.rfind("[[member]]").unwrap()];
        assert!(WitnessConfig::complete(one, &file, &|_| None).map(drop).unwrap_err().to_string().contains("at least 2 regions"));
    }
}
