//! `parhelion copy --config FILE`: some of a region's copies in a process of their own, on a machine of their own.
//!
//! Decides the order of starting and stopping. Everything about the log is decided by the copies and by the region's process that
//! connects; this one knows no other region and no SQL. `kill -9` at any moment costs what the loss of these copies costs.

pub mod config;

use super::expiry;
use super::keys;
use super::region::{RunOptions, lock, until_told};
use crate::base::GROUPS_MAX;
use crate::io::clock;
use crate::io::copies::{Copies, Whose};
use crate::io::copy_link::{self, Host};
use crate::io::quic::Quic;
use crate::io::tls::{Material, Subject};
use anyhow::Context as _;
use config::CopyConfig;
use std::sync::Arc;
use tokio::sync::watch;

/// Runs the copies of `config` until `shutdown` says so.
///
/// # Errors
/// When it cannot start, with a sentence that says what to do.
pub async fn run(config: CopyConfig, options: RunOptions, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let names = config.copies.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let _lock = lock(&config.data_dir, &config.file, &format!("a process of copies of {}", config.region))?;
    let key = config.key()?;
    keys::check(&config.data_dir, |copy| config.copies.contains(&copy), GROUPS_MAX, key.as_deref())?;
    let material = Material::load_as(Subject::Copies, &config.tls_dir, &config.cluster, &config.region, &config.file, clock::unix_now())?;
    let material = Arc::new(material);
    let _watch = expiry::watch(&material, &config.file);
    let quic = Quic::bind_copies(config.listen, material)
        .with_context(|| format!("the copies cannot be reached; see listen in {}", config.file.display()))?;
    let whose = Whose {
        cluster: config.cluster.clone(),
        region: config.region.clone(),
        data_dir: config.data_dir.clone(),
        limits: config.limits.clone(),
        key,
    };
    let copies = Copies::host(whose).context("a thread for a copy cannot be started")?;
    let host = Host::new(copies, &config.copies);
    let accepting = tokio::spawn(copy_link::serve(quic.clone(), Arc::clone(&host)));
    tracing::info!(region = %config.region, listen = %config.listen, "copies {names} are served");
    let why = until_told(options, shutdown).await;
    tracing::info!("stopping: {why}");
    accepting.abort();
    quic.close("the process of these copies is stopping").await;
    let _ = tokio::task::spawn_blocking(move || host.stop()).await;
    Ok(())
}
