//! The configuration of a process of copies: which copies of which region, where they lie, where the region finds them.
//!
//! Decides what a key means and which combinations are mistakes, once. Unknown keys are errors.

use crate::base::{ClusterName, CopyId, Limits, RegionName};
use crate::io::sealing::Key;
use crate::ops::config::{ConfigError, LogSettings, RawEncryption, RawLog, RawTls, complete_log, load_key, parse};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stands in the file. Paths are relative to the file's directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCopyConfig {
    cluster: ClusterName,
    region: RegionName,
    copies: Vec<String>,
    data_dir: PathBuf,
    listen: String,
    expose: Option<bool>,
    tls: RawTls,
    encryption: Option<RawEncryption>,
    log: Option<RawLog>,
    limits: Option<RawCopyLimits>,
}

/// `[limits]`: as in the region's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCopyLimits {
    memtable_bytes_max: Option<usize>,
}

/// The configuration of a process of copies: complete and checked.
#[derive(Clone, Debug)]
pub struct CopyConfig {
    /// The file this came from, to be named in messages.
    pub file: PathBuf,
    pub cluster: ClusterName,
    pub region: RegionName,
    /// At least one, in order.
    pub copies: Vec<CopyId>,
    pub data_dir: PathBuf,
    /// UDP, for the region's process.
    pub listen: SocketAddr,
    pub tls_dir: PathBuf,
    /// These copies are sealed with the key in it.
    pub key_file: Option<PathBuf>,
    pub log: LogSettings,
    pub limits: Limits,
}

impl CopyConfig {
    /// Reads and checks the file; `PARHELION_DATA_DIR`, `PARHELION_LOG` and `PARHELION_LOG_FORMAT` override it.
    ///
    /// # Errors
    /// [`ConfigError`], as a sentence for the operator.
    pub fn load(file: &Path) -> Result<CopyConfig, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable { file: file.to_path_buf(), source })?;
        CopyConfig::complete(&text, file, &|name| std::env::var(name).ok())
    }

    /// As [`crate::ops::config::Config::key`].
    ///
    /// # Errors
    /// [`ConfigError::Key`]
    pub fn key(&self) -> Result<Option<Arc<Key>>, ConfigError> {
        load_key(self.key_file.as_deref())
    }

    fn complete(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<CopyConfig, ConfigError> {
        let raw: RawCopyConfig = parse(file, text)?;
        let invalid = |message: String| ConfigError::Invalid { file: file.to_path_buf(), message };
        let base = file.parent().unwrap_or(Path::new(""));
        let listen: SocketAddr = raw
            .listen
            .parse()
            .map_err(|_| invalid(format!("listen = \"{}\" is no address: write IP:port, as in 127.0.0.1:7480", raw.listen)))?;
        if raw.expose != Some(true) && !listen.ip().is_loopback() {
            return Err(invalid(format!(
                "listen = \"{listen}\" can be reached from other machines: write 127.0.0.1, or say `expose = true`"
            )));
        }
        let mut copies = raw.copies.iter().map(|name| name.parse()).collect::<Result<Vec<CopyId>, String>>().map_err(invalid)?;
        copies.sort_unstable();
        copies.dedup();
        if copies.is_empty() {
            return Err(invalid("copies = []: name those that live here, as in [\"a1\", \"a2\"]".to_owned()));
        }
        let d = Limits::default();
        let memtable_bytes_max = raw.limits.unwrap_or_default().memtable_bytes_max.unwrap_or(d.memtable_bytes_max);
        if !(1 << 16..=1 << 32).contains(&memtable_bytes_max) {
            return Err(invalid(format!("limits.memtable_bytes_max = {memtable_bytes_max}: it must lie between 65536 and 4294967296")));
        }
        Ok(CopyConfig {
            file: file.to_path_buf(),
            cluster: raw.cluster,
            region: raw.region,
            copies,
            data_dir: env("PARHELION_DATA_DIR").map_or_else(|| base.join(raw.data_dir), PathBuf::from),
            listen,
            tls_dir: base.join(raw.tls.dir),
            key_file: raw.encryption.map(|e| base.join(e.key_file)),
            log: complete_log(raw.log, env).map_err(invalid)?,
            limits: Limits { memtable_bytes_max, ..d },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster = "sun"
region = "us-east"
copies = ["a2", "a1"]
data_dir = "../../data/zone-a"
listen = "127.0.0.1:7481"

[tls]
dir = "../../certs"
"#;

    fn load(text: &str) -> Result<CopyConfig, String> {
        CopyConfig::complete(text, Path::new("zones/zone-a.toml"), &|_| None).map_err(|e| e.to_string())
    }

    #[test]
    fn a_good_file_is_completed() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.copies, [CopyId(0), CopyId(1)]);
        assert_eq!(config.data_dir, Path::new("zones/../../data/zone-a"));
        assert_eq!(config.tls_dir, Path::new("zones/../../certs"));
        assert_eq!(config.listen.port(), 7481);
        assert_eq!(config.key_file, None);
        let sealed = load(&GOOD.replace("[tls]", "[encryption]\nkey_file = \"key\"\n[tls]")).unwrap();
        assert_eq!(sealed.key_file.as_deref(), Some(Path::new("zones/key")));
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        for (from, to, said) in [
            ("\"a2\", \"a1\"", "\"d1\"", "the six are a1 a2 b1 b2 c1 c2"),
            ("\"a2\", \"a1\"", "", "name those that live here"),
            ("127.0.0.1:7481", "10.0.0.2:7481", "say `expose = true`"),
            ("127.0.0.1:7481", "here", "write IP:port"),
            ("listen =", "listens =", "unknown key 'listens'"),
            ("[tls]", "[encryption]\nkeyfile = \"k\"\n[tls]", "unknown key 'keyfile'"),
            ("[tls]", "[limits]\nmemtable_bytes_max = 1\n[tls]", "between 65536"),
        ] {
            let error = load(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.starts_with("zones/zone-a.toml") && error.contains(said), "{error}");
        }
        let exposed =
            GOOD.replace("127.0.0.1:7481", "10.0.0.2:7481").replace("[tls]", "[log]\n[tls]").replacen("[log]", "expose = true\n[log]", 1);
        assert!(load(&exposed).is_ok());
    }
}
