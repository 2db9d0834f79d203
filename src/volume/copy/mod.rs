//! One copy: one of the six homes of the log and of the pages.
//!
//! Decides what it accepts, what is durable here, what a page was. Never decides what is durable in the region (the
//! appender counts) and never acknowledges what it has not fsynced. A core without thread or clock; its disk is a
//! [`Disk`]. Whoever drives it calls, in this order and as long as requests come:
//!
//! 1. [`Copy::handle`] for every request that waits; 2. [`Copy::flush`] once (group commit); 3. sends the replies;
//! 4. [`Copy::ingest`] until it says `false`; 5. [`Copy::background_job`]: runs the job on any thread and brings the result
//!    back to [`Copy::finish`].
//!
//! After any disk error it answers `Failed` until it is opened anew: a failed fsync is never tried again.

mod append;
mod branch;
mod check;
mod codec;
mod directory;
pub mod identity;
mod jobs;
mod layer;
mod manifest;
mod merge;
mod pages;
mod proof;
mod record;
mod rewind;
mod room;
mod sealed;
mod seed;
#[cfg(test)]
mod tests;
mod verify;
mod wal;

pub use directory::{Directory, TimelineView};
pub use jobs::{FlushDone, FlushJob, Slice};
pub use manifest::Origin;
pub use pages::{PageStore, ReadError};
pub use proof::proven_durable;
pub use rewind::{ARCHIVES_MAX, ArchivedTail};
pub use verify::{FileDamage, FilesVerdict, verify_files};

use crate::base::{Generation, GroupId, Instant, Limits, LineageId, LogEnd, Lsn, Seq, TimelineId};
use crate::log::{Frame, redo};
use crate::volume::membership::Incarnation;
use crate::volume::{CopyReply, CopyRequest, CopyState, Damage, Disk, DiskError};
use branch::Waiting;
use identity::Identity;
use layer::{Layer, LayerError};
use manifest::{KeptControl, Manifest};
use seed::{Seed, SeedDone};
use std::collections::VecDeque;
use std::sync::Arc;
use wal::{Cursor, Wal, WalReadError};

/// Log that one call of [`Copy::ingest`] works on, so that appends do not wait long behind it.
const INGEST_BYTES: usize = 1 << 20;

/// Why a copy cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It must not vote. Move its directory away and start again: it is rebuilt from the other copies.
    #[error("this copy is damaged ({what}): {reason}. Move its directory away; it will be rebuilt from the other copies")]
    Damaged { what: String, reason: String },
    /// It must neither vote nor serve: its pages are those of other segments.
    #[error(
        "this directory is that of a copy of protection group {found}, and a copy of {wanted} is looked for here. Put the directories back"
    )]
    OtherGroup { found: GroupId, wanted: GroupId },
    #[error("'{file}' has format version {version}; a newer parhelion wrote it. Upgrade this one first")]
    Unsupported { file: String, version: u16 },
    #[error("timeline {timeline} was dropped; branch again, under an id that was never used")]
    Dropped { timeline: TimelineId },
    #[error(
        "this directory is that of {is}, and {wanted} was looked for. Move it back to where it belongs, and give this copy its own directory or an empty one"
    )]
    Misplaced { is: String, wanted: String },
    #[error("this directory was {home} until it was replaced by {by} in {place}. It takes no part any more; move it away")]
    Replaced { home: String, by: String, place: String },
    /// Nothing was read or written.
    #[error("{0}")]
    Key(String),
}

impl From<LayerError> for OpenError {
    fn from(e: LayerError) -> OpenError {
        match e {
            LayerError::Disk(e) => OpenError::Disk(e),
            LayerError::Damaged { file, reason, .. } => OpenError::Damaged { what: file, reason },
            LayerError::Unsupported { file, version } => OpenError::Unsupported { file, version },
        }
    }
}

/// Why some of the log does not become pages.
enum IngestError {
    /// It cannot be read here; the copy is rebuilt and goes on with what it has until then.
    Damaged(Damage),
    Failed(String),
}

/// See the module.
pub struct Copy {
    directory: Arc<Directory>,
    timeline: TimelineId,
    /// The files of this timeline.
    disk: Arc<dyn Disk>,
    limits: Limits,
    manifest: Manifest,
    identity: Option<Identity>,
    promised: Generation,
    control: KeptControl,
    wal: Wal,
    pages: Arc<PageStore>,

    /// Accepted and not yet written: they follow the log's end.
    pending: Vec<Frame>,
    /// The generation whose frames are pending; it gets the acknowledgement.
    pending_for: Option<Generation>,
    /// The newest frames of the log, so that they need not be read again to be ingested, compared or shipped.
    recent: VecDeque<Frame>,
    recent_bytes: usize,
    /// The last consistency point at or below the log's end.
    consistent: LogEnd,

    /// The highest VDL that an appender told.
    vdl: LogEnd,
    /// The log here is that of the appender of generation `agreed_with` up to `agreed`: what lies behind may be a tail that it
    /// cut. Only what agrees and is at or below the VDL becomes pages.
    agreed: Seq,
    agreed_with: Generation,
    /// What became pages here is on the history of the generation that is promised.
    proven: bool,
    ingested: LogEnd,
    /// Whether `ingested` is a consistency point: only there a memtable may end.
    ingested_consistent: bool,
    horizon: Lsn,
    trim: Seq,
    ingest_cursor: Option<Cursor>,
    read_cursor: Option<Cursor>,

    /// Ends with this copy: jobs of an earlier one are void.
    life: Arc<()>,
    flushing: bool,
    compacting: bool,
    /// Branches that wait until the layers reach their point.
    branches: Vec<Waiting>,
    /// Grows when a seed replaces everything; a job that began before is void.
    contents: u64,
    next_layer: u64,
    seed: Option<Seed>,
    seed_done: Option<SeedDone>,
    /// What was found here and makes a rebuilding necessary; until then the copy goes on as far as it can.
    damage: Option<Damage>,
    /// Damage that was met while frames were compared with the log here; nothing was changed.
    met_in_log: Option<Damage>,
    /// The layer that a check is in, and where in the log it is.
    checking: Option<Layer>,
    check_cursor: Option<Cursor>,
    /// See `room`.
    low: bool,
    layer_wants: u64,
    /// See `jobs`: up to where layers were looked at for what is to come back.
    reclaim_looked: Seq,
    /// Since this LSN at the latest the database is much smaller than the layers.
    shrunk: Option<Lsn>,
    /// Whom it last told what is fsynced here.
    tells: Option<Generation>,
    /// Ingesting waited for a memtable, which is a layer now: whoever waits for page versions is told how far it came, unasked.
    tell_ingested: bool,
    /// Of this copy's machine: never compared with another one's.
    now: Instant,
    failed: Option<String>,
}

impl Copy {
    /// Opens the root timeline on `disk`; a new directory gives an empty copy. Time and memory depend on what is not yet in layers,
    /// not on the length of the history.
    ///
    /// # Errors
    /// [`OpenError`]: the disk failed, or something that was once durable is not there.
    pub fn open(disk: Arc<dyn Disk>, limits: &Limits) -> Result<Copy, OpenError> {
        Copy::open_group(GroupId(0), disk, limits)
    }

    /// As [`Copy::open`], for a copy of protection group `group`.
    ///
    /// # Errors
    /// As [`Copy::open`]; also when the directory is that of another group.
    pub fn open_group(group: GroupId, disk: Arc<dyn Disk>, limits: &Limits) -> Result<Copy, OpenError> {
        Copy::open_in(&Directory::open(disk)?, group, TimelineId::ROOT, limits)
    }

    /// Opens one timeline of a directory, which must not be open already. One that is not here gives an empty copy, which its peers
    /// rebuild: it was branched while this copy was away.
    ///
    /// # Errors
    /// As [`Copy::open_group`], and when the timeline was dropped.
    pub fn open_in(directory: &Arc<Directory>, group: GroupId, timeline: TimelineId, limits: &Limits) -> Result<Copy, OpenError> {
        if directory.is_dropped(timeline) {
            return Err(OpenError::Dropped { timeline });
        }
        let disk = directory.view(timeline);
        // What is read below is relied on from the first answer on, and nothing of it is written again unless something newer comes. If this copy
        // left its duty because the directory could not be synced behind a rename, it would answer for a promise, a control state or a manifest
        // that a crash takes back. Their bytes are durable (synced before the rename), so their names are all that may be missing; no file
        // need be written again.
        disk.sync_names()?;
        let making = directory.making();
        directory.tidy(timeline)?;
        let promised = manifest::load_promise(&*disk)?;
        let manifest = match Manifest::load(&*disk, timeline)? {
            Some(manifest) => manifest,
            None => {
                let left = disk.list()?.iter().any(|n| wal::number_of(n).is_some() || layer::number_of(n).is_some());
                if left || promised.is_some() {
                    return Err(OpenError::Damaged { what: manifest::MANIFEST.into(), reason: "it is missing".into() });
                }
                let manifest = Manifest { timeline, group, log_first_number: 1, next_layer: 1, ..Manifest::default() };
                directory.store(timeline, &manifest)?;
                manifest
            }
        };
        drop(making);
        if manifest.group != group {
            return Err(OpenError::OtherGroup { found: manifest.group, wanted: group });
        }
        let mut layers = Vec::new();
        for meta in &manifest.layers {
            let lineage = manifest
                .lineage
                .ok_or_else(|| OpenError::Damaged { what: manifest::MANIFEST.into(), reason: "it names layers and no lineage".into() })?;
            layers.push(Arc::new(directory.layer(lineage, meta)?));
        }
        let reserve_bytes = limits.reserve_bytes.min(limits.log_file_bytes / 2);
        directory.reserve().keep(reserve_bytes);
        let (wal, consistent) = Wal::open(Arc::clone(&disk), &manifest, limits.log_file_bytes, reserve_bytes / room::PIECES)?;
        if wal.end().seq > Seq::ZERO && promised.is_none() {
            return Err(OpenError::Damaged { what: manifest::PROMISE.into(), reason: "it is missing beside a log".into() });
        }
        let flushed = manifest.flushed;
        let distrust = manifest::load_distrust(&*disk)?;
        let pages = PageStore::new(layers, flushed, manifest.folded);
        pages.promise(promised.unwrap_or(Generation::ZERO));
        if let Some(reason) = &distrust {
            pages.distrust(reason.clone());
        }
        Ok(Copy {
            identity: identity::load(&**directory.disk())?,
            limits: limits.clone(),
            promised: promised.unwrap_or(Generation::ZERO),
            control: manifest::load_control(&*disk)?,
            pages: Arc::new(pages),
            pending: Vec::new(),
            pending_for: None,
            recent: VecDeque::new(),
            recent_bytes: 0,
            consistent,
            vdl: flushed,
            agreed: flushed.seq,
            agreed_with: Generation::ZERO,
            proven: false,
            ingested: flushed,
            ingested_consistent: true,
            horizon: Lsn::ZERO,
            trim: Seq::ZERO,
            ingest_cursor: None,
            read_cursor: None,
            life: Arc::new(()),
            flushing: false,
            compacting: false,
            branches: Vec::new(),
            contents: 0,
            next_layer: manifest.next_layer,
            seed: None,
            seed_done: None,
            damage: distrust.as_ref().map(|reason| Damage {
                file: manifest::PAGES.into(),
                reason: reason.clone(),
                lost_write: true,
                healed: false,
            }),
            met_in_log: None,
            checking: None,
            check_cursor: None,
            low: false,
            layer_wants: 0,
            reclaim_looked: Seq::ZERO,
            shrunk: None,
            tells: None,
            tell_ingested: false,
            now: Instant::ZERO,
            failed: None,
            wal,
            manifest,
            disk,
            directory: Arc::clone(directory),
            timeline,
        })
    }

    /// The newest generation that may write here.
    #[must_use]
    pub fn promised(&self) -> Generation {
        self.promised
    }

    /// Why this copy has left its duty, if it has.
    #[must_use]
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// What is fsynced here.
    #[must_use]
    pub fn state(&self) -> CopyState {
        CopyState {
            incarnation: self.identity.as_ref().map_or(Incarnation::UNKNOWN, |i| i.incarnation),
            lineage: self.lineage(),
            first: self.wal.first(),
            end: *self.wal.end(),
            consistent: self.consistent,
            history: self.wal.history().clone(),
            ingested: self.ingested,
            flushed: self.manifest.flushed,
            control_version: self.control.version,
            control: self.control.bytes.clone(),
            reign: self.manifest.rewinds.reign,
            archives: self.archives(),
            durable: self.manifest.proves_durable().max(*self.wal.told()),
        }
    }

    /// The pages, shared with readers on other threads. Stays the same through seeds; a copy that is opened anew has another.
    #[must_use]
    pub fn pages(&self) -> Arc<PageStore> {
        Arc::clone(&self.pages)
    }

    fn lineage(&self) -> Option<LineageId> {
        // A lineage that was only accepted is not yet what lies here.
        if self.wal.end().seq > Seq::ZERO { self.wal.lineage() } else { self.manifest.lineage }
    }

    /// What the clock of this copy's machine says, raw and monotonic. To be told before it is handed anything.
    pub fn time_is(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Takes a request. Replies that need no fsync of the log come at once, the others from [`Copy::flush`]. What is rare and
    /// must be ordered (a raise, a cut, a seed) is written here.
    pub fn handle(&mut self, request: CopyRequest, replies: &mut Vec<CopyReply>) {
        if let Some(reason) = &self.failed {
            replies.push(CopyReply::Failed { reason: reason.clone() });
            return;
        }
        let done = match request {
            CopyRequest::Raise { generation } => self.raise(generation, replies),
            CopyRequest::Reborn { generation, incarnation } => self.reborn(generation, incarnation, replies),
            CopyRequest::Append { generation, frames, vdl, horizon, trim, gate } => {
                if !frames.is_empty() && gate.is_some_and(|shut| self.now >= shut) && generation == self.promised {
                    replies.push(CopyReply::Gated { generation, at: self.now });
                    return;
                }
                self.append(generation, frames, vdl, horizon, trim, replies)
            }
            CopyRequest::PutControl { generation, version, control } => self.put_control(generation, version, &control, replies),
            CopyRequest::ReadLog { id, from, bytes_max } => self.read_log(id, from, bytes_max, replies),
            CopyRequest::ReadPages { id, at, from, bytes_max } => {
                replies.push(match self.pages.scan(at, from, bytes_max) {
                    Ok((pages, next)) => CopyReply::Pages { id, at, pages, next },
                    Err(e) => CopyReply::Unreadable { id, reason: e.to_string() },
                });
                Ok(())
            }
            CopyRequest::Check { id, from, bytes_max } => self.check(id, from, bytes_max, replies),
            CopyRequest::Digest { id, at, from, pages_max } => {
                replies.push(match self.pages.digest(at, from, pages_max) {
                    Ok(digest) => CopyReply::Digested { id, digest },
                    Err(e) => CopyReply::Unreadable { id, reason: e.to_string() },
                });
                Ok(())
            }
            CopyRequest::Distrust { generation, reason } => self.distrust(generation, reason, replies),
            CopyRequest::SeedBegin { generation, step, base } => self.seed_begin(generation, step, base, replies),
            CopyRequest::SeedPages { generation, step, pages } => self.seed_pages(generation, step, &pages, replies),
            CopyRequest::SeedEnd { generation, steps } => self.seed_end(generation, steps, replies),
            CopyRequest::Branch { generation, child, at } => self.branch(generation, child, at, replies),
            CopyRequest::DropBranch { generation, child } => self.drop_branch(generation, child, replies),
            CopyRequest::Rewind { generation, number, archive, at, reign } => {
                self.rewind(rewind::Order { generation, number, archive, at, reign }, replies)
            }
            CopyRequest::ReadArchive { id, archive, from, bytes_max } => {
                self.read_archive(id, archive, from, bytes_max, replies);
                Ok(())
            }
            CopyRequest::DropArchive { generation, archive } => self.drop_archive(generation, archive, replies),
        };
        self.fail_on(done, replies);
        self.tell_what_readers_met(replies);
    }

    /// Writes all frames that were accepted since the last call, in one write and one fsync, and acknowledges them.
    pub fn flush(&mut self, replies: &mut Vec<CopyReply>) {
        let done = self.judge_room_before_flush().and_then(|()| self.flush_pending(replies));
        self.fail_on(done, replies);
    }

    /// Only frames fill the log; and a copy that is low is asked now and then whether it still is.
    fn judge_room_before_flush(&mut self) -> Result<(), DiskError> {
        if self.failed.is_none() && (self.low || self.pending_for.is_some()) { self.judge_room() } else { Ok(()) }
    }

    fn fail_on(&mut self, done: Result<(), DiskError>, replies: &mut Vec<CopyReply>) {
        match (done, self.met_in_log.take()) {
            (Ok(()), _) => {}
            (Err(_), Some(damage)) => self.tell(damage, replies),
            (Err(e), None) => self.fail(e.to_string(), replies),
        }
    }

    fn fail(&mut self, reason: String, replies: &mut Vec<CopyReply>) {
        self.pending.clear();
        self.pending_for = None;
        replies.push(CopyReply::Failed { reason: reason.clone() });
        self.failed = Some(reason);
    }

    /// `false`: it was refused, and the reply says so. A newer generation than the promised one is promised first.
    fn admit(&mut self, generation: Generation, replies: &mut Vec<CopyReply>) -> Result<bool, DiskError> {
        if generation < self.promised {
            replies.push(CopyReply::Refused { promised: self.promised });
            return Ok(false);
        }
        if generation > self.promised {
            // What the older generation sent counts before the promise, or not at all: nothing of it is written afterwards.
            self.flush_pending(replies)?;
            manifest::store_promise(&*self.disk, generation)?;
            self.promised = generation;
            // Its history may be another one than the last writer's.
            self.proven = false;
            self.pages.promise(generation);
        }
        Ok(true)
    }

    /// The log here up to `upto` is that of the generation that is promised.
    fn proven_upto(&mut self, upto: Lsn, all: bool) {
        self.proven = all;
        self.pages.prove(if all { Lsn(u64::MAX) } else { upto });
    }

    fn raise(&mut self, generation: Generation, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if self.admit(generation, replies)? {
            replies.push(CopyReply::Raised { generation, state: self.state() });
            if let Some(damage) = &self.damage {
                replies.push(CopyReply::Damaged { damage: damage.clone() });
            }
        }
        Ok(())
    }

    /// What lies here stays; it only does not count as what it was.
    fn reborn(&mut self, generation: Generation, incarnation: Incarnation, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        if let Some(identity) = &mut self.identity {
            let mut next = identity.clone();
            next.incarnation = incarnation;
            identity::store(&**self.directory.disk(), &next)?;
            *identity = next;
        }
        self.raise(generation, replies)
    }

    fn put_control(&mut self, generation: Generation, version: u64, bytes: &[u8], replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if self.admit(generation, replies)? {
            if version > self.control.version {
                let control = KeptControl { version, bytes: bytes.to_vec() };
                manifest::store_control(&*self.disk, &control)?;
                self.control = control;
            }
            replies.push(CopyReply::ControlStored { generation, version });
        }
        Ok(())
    }

    fn flush_pending(&mut self, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        let Some(generation) = self.pending_for.take() else { return Ok(()) };
        let frames = std::mem::take(&mut self.pending);
        self.wal.tell(self.vdl);
        self.wal.append(&frames)?;
        // What is acknowledged here must not be replaced by pages of before: whoever appends goes on with the log that is here.
        self.drop_seed()?;
        self.remember(frames);
        replies.push(self.appended(generation));
        Ok(())
    }

    fn appended(&mut self, generation: Generation) -> CopyReply {
        self.tells = Some(generation);
        CopyReply::Appended { generation, end: *self.wal.end(), ingested: self.ingested.end_lsn, low: self.low, at: self.now }
    }

    /// Frames that are fsynced now.
    fn remember(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            if frame.is_consistency_point() {
                self.consistent = frame.log_end();
            }
            self.recent_bytes += frame.bytes().len();
            self.recent.push_back(frame);
        }
        while self.recent_bytes > self.limits.ring_bytes_max / 4 {
            let Some(old) = self.recent.pop_front() else { break };
            self.recent_bytes -= old.bytes().len();
        }
    }

    /// Frames `from..=upto` from memory, if they are there.
    fn recent(&self, from: Seq, upto: Seq, bytes_max: usize) -> Option<Vec<Frame>> {
        let first = self.recent.front()?.seq();
        let skip = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        let mut bytes = 0;
        let mut out = Vec::new();
        for frame in self.recent.iter().skip(skip) {
            if frame.seq() > upto || (bytes >= bytes_max && !out.is_empty()) {
                break;
            }
            bytes += frame.bytes().len();
            out.push(frame.clone());
        }
        Some(out)
    }

    fn read_log(&mut self, id: u64, from: Seq, bytes_max: usize, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        let end = self.wal.end().seq;
        let reply = if from < self.wal.first() {
            CopyReply::LogTrimmed { id, first: self.wal.first() }
        } else if from > end {
            CopyReply::Log { id, frames: Vec::new() }
        } else if let Some(frames) = self.recent(from, end, bytes_max) {
            CopyReply::Log { id, frames }
        } else {
            match self.wal.read(&mut self.read_cursor, from, end, bytes_max) {
                Ok(frames) => CopyReply::Log { id, frames },
                Err(WalReadError::Disk(e)) => return Err(e),
                Err(e) => {
                    let reason = e.to_string();
                    self.tell(check::log_damage(e), replies);
                    CopyReply::Unreadable { id, reason }
                }
            }
        };
        replies.push(reply);
        Ok(())
    }

    /// Turns some of the durable log into page versions, and drops log files that nobody needs. To be called when the replies
    /// are on their way; `true`: there is more to do.
    pub fn ingest(&mut self, replies: &mut Vec<CopyReply>) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let branched = self.branch_waiting(replies);
        self.fail_on(branched, replies);
        self.tell_what_readers_met(replies);
        match self.ingest_some() {
            Ok(more) => {
                if !more
                    && std::mem::take(&mut self.tell_ingested)
                    && let Some(generation) = self.tells
                {
                    replies.push(self.appended(generation));
                }
                more
            }
            Err(IngestError::Damaged(damage)) => {
                if self.damage.is_none() {
                    self.tell(damage, replies);
                }
                false
            }
            Err(IngestError::Failed(reason)) => {
                self.fail(reason, replies);
                false
            }
        }
    }

    fn ingest_some(&mut self) -> Result<bool, IngestError> {
        let room = self.make_room();
        let upto = self.vdl.seq.min(self.agreed).min(self.wal.end().seq);
        if self.ingested.seq >= upto || !room {
            self.wal.trim(self.trim.min(self.manifest.flushed.seq)).map_err(|e| IngestError::Failed(e.to_string()))?;
            return Ok(false);
        }
        let from = self.ingested.seq.next();
        let frames = match self.recent(from, upto, INGEST_BYTES) {
            Some(frames) => frames,
            None => self.wal.read(&mut self.ingest_cursor, from, upto, INGEST_BYTES).map_err(|e| match e {
                WalReadError::Disk(e) => IngestError::Failed(e.to_string()),
                e @ WalReadError::Damaged { .. } => IngestError::Damaged(check::log_damage(e)),
            })?,
        };
        let mut versions = Vec::new();
        let mut bytes = self.pages.open_bytes();
        for frame in frames {
            // Frames of other groups are in the log for their place only.
            if !frame.is_control() && !frame.is_elided() {
                let payload = frame.payload();
                let records = redo::records(&payload)
                    .map_err(|e| IngestError::Failed(format!("frame {} is durable and is no redo: {e}", frame.seq())))?;
                bytes += records.iter().map(|r| pages::entry_bytes(&r.change)).sum::<usize>();
                versions.push((frame.end_lsn(), records));
            }
            self.ingested = frame.log_end();
            self.ingested_consistent = frame.is_consistency_point();
            if self.ingested_consistent && bytes >= self.limits.memtable_bytes_max {
                break;
            }
        }
        self.pages.ingest(versions, self.ingested);
        Ok(true)
    }

    /// Sets a full memtable aside. `false`: both are full, ingesting waits for the disk.
    fn make_room(&mut self) -> bool {
        let full = self.pages.open_bytes() >= self.limits.memtable_bytes_max || self.branch_wants_layers();
        if !self.ingested_consistent || !full {
            return true;
        }
        if self.pages.frozen().is_some() {
            // On a full disk no memtable becomes a layer, no new writes come, and readers want to see those that did.
            return self.low && self.pages.open_bytes() < self.limits.memtable_bytes_max.saturating_mul(4);
        }
        self.pages.freeze();
        true
    }
}
