//! What stands in `regions/*.toml`, as it is written: names, and nothing of what they mean.

use super::LogFormat;
use super::control::{RawControl, RawWitness};
use crate::base::{ClusterName, RegionName};
use crate::io::quic::Congestion;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

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
    pub encryption: Option<RawEncryption>,
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

/// `[encryption]`: what the copies here write is sealed. Left out: it is not.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawEncryption {
    /// Made by `parhelion key --out FILE`.
    pub key_file: PathBuf,
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
    /// What is given back in a second, at most, of what dropped tables leave, MB; 0: nothing by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub give_back_mb_per_s: Option<u64>,
    /// This part of the database may be free pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_free_percent: Option<u32>,
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
