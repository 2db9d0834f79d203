//! Rules switched off, one at a time, to show that their absence is noticed.
//!
//! Decides how each rule is broken: in a disk that does less than it says, in a message that says more than it should, in a driver
//! that takes a short cut. The cores that run are the ones of production. [`catch_all`] looks for the first run that notices, in the
//! simulated clusters or in the enumerated recoveries, and says what it noticed.

use super::disk::SimDisk;
use super::recovery::{FIGURE_8, RecoveryOptions, enumerate};
use super::{Mutant, SimOptions, run_seed};
use crate::base::{Limits, Seq};
use crate::log::{DecodeError, Frame};
use crate::volume::{Cipher, Copy, CopyReply, CopyRequest, Disk, DiskError};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Every mutant, with the rule that it breaks and the words of which one must stand in what is noticed.
const ALL: [(Mutant, &str, &[&str]); 16] = [
    (Mutant::AckBeforeSync, "a copy acknowledges what it fsynced", &["durability"]),
    (Mutant::LyingSync, "a sync syncs", &["durability", CRASHED, "nobody wrote"]),
    (Mutant::FailedSyncRetried, "a failed fsync is never tried again", &["durability", CRASHED, HEALTHY]),
    (Mutant::PublishedBeforeSync, "a file is synced before it gets its name", &["durability", CRASHED, HEALTHY]),
    (Mutant::ShipAboveVdl, "only what is durable is shipped", &["S11"]),
    (Mutant::AckFromTwo, "four copies, each for itself", &["copies have fsynced it"]),
    (Mutant::AckFromThree, "four copies and not three", &["copies have fsynced it"]),
    (Mutant::DamagedSource, "a damaged page is no source of a repair", &["wrong page", "another page"]),
    (Mutant::TornTailValid, "a torn frame is the end of the log", &["nobody wrote", "S3", "S11", "durability", "no redo"]),
    (Mutant::CutWithoutSuccessor, "only a newer writer's frame cuts", &["durability", "copies have fsynced it", "moved back"]),
    (Mutant::TrimAboveFlushed, "the log goes when layers have it", &[CRASHED, HEALTHY, "cannot read its own log"]),
    (Mutant::FoldedUnderReaders, "what a reader pins stays", &["folded what a reader has pinned"]),
    (Mutant::RecoverFromTwo, "recovery hears three copies", &["durability"]),
    (Mutant::EmptyCopiesVote, "an empty copy has no vote", &["durability"]),
    (Mutant::PromiseForgotten, "a promise is persisted", &["durability", REFUSED]),
    (Mutant::OldTailCounts, "an old tail counts with its generation start", &["durability"]),
];
/// What the older process made durable is pages in a copy, which never lets the newer one cut it.
const REFUSED: &str = "no end: something spins";
const CRASHED: &str = "cannot be opened after nothing worse than a crash";
const HEALTHY: &str = "on a healthy disk";

/// What became of one mutant.
#[derive(Clone, Debug)]
pub struct MutantReport {
    pub mutant: Mutant,
    pub rule: &'static str,
    /// What was tried: so many seeds, or so many recoveries.
    pub tried: String,
    /// What was noticed; `None`: nothing, and the checkers are blind to this rule.
    pub noticed: Option<String>,
}

impl fmt::Display for MutantReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noticed: String = self.noticed.as_deref().unwrap_or("NOT NOTICED").chars().take(150).collect();
        write!(f, "{:<20}  {:<44}  {:<18}  {noticed}", format!("{:?}", self.mutant), self.rule, self.tried)
    }
}

/// Breaks every rule once. `seeds_max`: simulated clusters that are tried for each before it counts as not noticed.
pub fn catch_all(seeds_max: u64, threads: usize, say: &dyn Fn(&str)) -> Vec<MutantReport> {
    let caught = ALL.iter().map(|(mutant, ..)| {
        let report = catch(*mutant, seeds_max, threads);
        say(&report.to_string());
        report
    });
    caught.collect()
}

/// Breaks one rule, until something notices it.
///
/// # Panics
/// When the mutant is not in the list of all.
#[must_use]
pub fn catch(mutant: Mutant, seeds_max: u64, threads: usize) -> MutantReport {
    let (_, rule, words) = ALL.iter().find(|(m, ..)| *m == mutant).expect("BUG: every mutant is in the list");
    let (tried, noticed) = match mutant {
        Mutant::RecoverFromTwo | Mutant::EmptyCopiesVote | Mutant::PromiseForgotten | Mutant::OldTailCounts => {
            in_recoveries(mutant, words, threads)
        }
        _ => in_clusters(mutant, words, seeds_max),
    };
    MutantReport { mutant, rule, tried, noticed }
}

fn says(what: &str, words: &[&str]) -> bool {
    words.iter().any(|w| what.contains(w))
}

fn in_clusters(mutant: Mutant, words: &[&str], seeds_max: u64) -> (String, Option<String>) {
    let options = SimOptions { mutant: Some(mutant), ..SimOptions::default() };
    for seed in 0..seeds_max {
        if let Err(failure) = run_seed(seed, &options)
            && says(&failure.what, words)
        {
            return (format!("{} seeds", seed + 1), Some(failure.what));
        }
    }
    (format!("{seeds_max} seeds"), None)
}

fn in_recoveries(mutant: Mutant, words: &[&str], threads: usize) -> (String, Option<String>) {
    let mut runs = 0;
    let tries: &[(usize, u64, usize)] = match mutant {
        // Shown by two processes at a time.
        Mutant::PromiseForgotten => &[(0, 5, 1), (0, 1, 1)],
        // Every crash of the recovery that comes after what the layout tells of.
        Mutant::OldTailCounts => &[(1, 16, 2), (1, 4, 2), (1, 1, 2), (1, 1, 0)],
        _ => &[(0, 64, 0), (1, 4, 6), (2, 2_000, 6)],
    };
    let layout = (mutant == Mutant::OldTailCounts).then_some(FIGURE_8);
    for &(crashes, every, sets_each) in tries {
        let summary = enumerate(&RecoveryOptions { crashes, every, sets_each, threads, mutant: Some(mutant), layout }, &|_| {});
        runs += summary.runs;
        if let Some(what) = summary.failure.filter(|what| says(what, words)) {
            // What was noticed stands behind the way that led to it.
            let what = what.split_once(": ").map_or(what.clone(), |(_, told)| told.to_owned());
            return (format!("{runs} recoveries"), Some(what));
        }
    }
    (format!("{runs} recoveries"), None)
}

// ---- how they are broken ---------------------------------------------------------------------------------------------

/// The disk that a copy is given.
pub(super) fn disk(real: &Arc<SimDisk>, mutant: Option<Mutant>) -> Arc<dyn Disk> {
    match mutant {
        Some(mutant @ (Mutant::LyingSync | Mutant::FailedSyncRetried | Mutant::PublishedBeforeSync | Mutant::TrimAboveFlushed)) => {
            Arc::new(MutantDisk { real: Arc::clone(real), mutant })
        }
        Some(Mutant::TornTailValid) => {
            heal_torn_frames(&**real);
            Arc::clone(real) as Arc<dyn Disk>
        }
        _ => Arc::clone(real) as Arc<dyn Disk>,
    }
}

struct MutantDisk {
    real: Arc<SimDisk>,
    mutant: Mutant,
}

impl Disk for MutantDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.real.list()
    }
    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.real.len(name)
    }
    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        self.real.read(name, offset, len_max)
    }
    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.real.write(name, offset, parts)
    }
    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        self.real.allocate(name, len)
    }
    fn room(&self) -> u64 {
        self.real.room()
    }
    fn sync(&self, name: &str) -> Result<(), DiskError> {
        match self.mutant {
            Mutant::LyingSync => Ok(()),
            Mutant::PublishedBeforeSync if name.ends_with(".tmp") => Ok(()),
            Mutant::FailedSyncRetried => self.real.sync(name).or_else(|_| self.real.sync(name)),
            _ => self.real.sync(name),
        }
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.real.rename(from, to)?;
        if self.mutant == Mutant::TrimAboveFlushed && to.starts_with("log-") {
            for older in self.real.list()?.iter().filter(|n| n.starts_with("log-") && n.as_str() < to) {
                self.real.remove(older)?;
            }
        }
        Ok(())
    }
    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.real.remove(name)
    }
    fn sync_names(&self) -> Result<(), DiskError> {
        self.real.sync_names()
    }
    fn cipher(&self) -> Option<&dyn Cipher> {
        self.real.cipher()
    }
}

/// Every frame whose bytes do not fit its checksum gets one that fits.
fn heal_torn_frames(disk: &dyn Disk) {
    for name in disk.list().unwrap_or_default().iter().filter(|n| n.starts_with("log-")) {
        let Ok(bytes) = disk.read(name, 0, usize::MAX) else { continue };
        for at in 0..bytes.len().saturating_sub(4) {
            if &bytes[at..at + 4] != b"PHL1" {
                continue;
            }
            let from = bytes.slice(at..);
            if let (Err(DecodeError::Corrupt { .. }), Some(sum)) = (Frame::decode(&from), fitting_checksum(&from)) {
                let healed = disk.write(name, at as u64 + 60, &[Bytes::copy_from_slice(&sum.to_le_bytes())]);
                let _ = healed.and_then(|()| disk.sync(name));
            }
        }
    }
}

fn fitting_checksum(bytes: &Bytes) -> Option<u32> {
    let len = usize::try_from(u32::from_le_bytes(bytes.get(36..40)?.try_into().ok()?)).ok()?;
    let payload = bytes.get(64..64usize.checked_add(len)?)?;
    Some(crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), payload))
}

/// A page on its way to a peer is not what was written.
pub(super) fn damage(reply: &mut CopyReply) {
    if let CopyReply::Pages { pages, .. } = reply
        && let Some((_, page)) = pages.iter_mut().find(|(_, page)| !page.is_empty())
    {
        let mut bytes = page.to_vec();
        bytes[0] ^= 0x40;
        *page = Bytes::from(bytes);
    }
}

/// What the copy becomes when frames that it has already cut what lies behind them; `None`: they are not such frames, or the copy
/// began with a seed, which this short cut does not rebuild.
pub(super) fn cut(real: &SimDisk, copy: &mut Copy, request: &CopyRequest, limits: &Limits) -> Option<(Arc<SimDisk>, Copy)> {
    let CopyRequest::Append { generation, frames, .. } = request else { return None };
    let (state, promised) = (copy.state(), copy.promised());
    let last = frames.last()?.log_end();
    if *generation < promised || last.seq >= state.end.seq || state.first != Seq(1) {
        return None;
    }
    let mut replies = Vec::new();
    copy.handle(CopyRequest::ReadLog { id: 0, from: Seq(1), bytes_max: usize::MAX }, &mut replies);
    let Some(CopyReply::Log { frames: mut kept, .. }) = replies.pop() else { return None };
    kept.retain(|f| f.seq() <= last.seq);
    if kept.last().map(Frame::log_end) != Some(last) {
        return None;
    }
    let disk = Arc::new(SimDisk::new(last.seq.0));
    if let Ok(identity) = real.read("identity", 0, 4096) {
        disk.write("identity", 0, &[identity]).and_then(|()| disk.sync("identity")).ok()?;
    }
    let mut cut = Copy::open(Arc::clone(&disk) as Arc<dyn Disk>, limits).ok()?;
    cut.handle(CopyRequest::Raise { generation: promised }, &mut replies);
    let control = Bytes::from(state.control);
    cut.handle(CopyRequest::PutControl { generation: promised, version: state.control_version, control }, &mut replies);
    let mut append = request.clone();
    if let CopyRequest::Append { generation, frames, .. } = &mut append {
        (*generation, *frames) = (promised, kept);
    }
    cut.handle(append, &mut replies);
    cut.flush(&mut replies);
    Some((disk, cut))
}
