//! The way back: everything above a consistency point goes in one atomic step, and what goes is kept as an archive.
//!
//! A region that was primary has a tail that the new history does not have. Other than a tail that recovery cuts it was durable and became
//! pages. One swap of the manifest caps the layers at the point and ends the log there; a crash leaves the old tail or none, never some of
//! it. Nothing is written again: the archive names the log files that hold the tail, which stay where they are, and a timeline of the same id
//! names the layers as they were. Decides whether this copy can go back so far; never to where (the appender knows the common point), and never
//! when an archive may go. The promise that the order's reign made is kept in the same step: from then on what lies here outranks every
//! log of an older reign ([`crate::volume::recovery`]), so no recovery takes up a tail again that another copy still has.

use super::manifest::{Archive, LayerMeta, Manifest};
use super::wal::{Wal, WalReadError};
use super::{Copy, Directory, OpenError, pages};
use crate::base::{Epoch, Generation, LogEnd, Lsn, Seq, TimelineId};
use crate::log::{Frame, redo};
use crate::volume::{ArchiveView, CopyReply, Disk, DiskError, archive_id};
use std::sync::Arc;

/// Tails that a copy keeps at once; one more and it refuses, so that somebody looks.
pub const ARCHIVES_MAX: usize = 64;
/// Read at once where an archive's pages are made.
const READ_BYTES: usize = 1 << 20;

/// The order to go back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub generation: Generation,
    pub number: u64,
    /// Where the tail goes; `None`: nothing goes, only the reign is taken up.
    pub archive: Option<TimelineId>,
    pub at: LogEnd,
    pub reign: Epoch,
}

impl Copy {
    pub(super) fn rewind(&mut self, order: Order, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if !self.admit(order.generation, replies)? {
            return Ok(());
        }
        self.flush_pending(replies)?;
        let Order { generation, number, at, .. } = order;
        if (generation, number) > self.manifest.rewinds.done {
            let end = *self.wal.end();
            let refused = match order.archive {
                // Remembered all the same: said late once more, it must not cut what came since.
                _ if end.seq < at.seq || end == at => None,
                _ => match (self.cannot_rewind(&order), self.met_in_log.take()) {
                    (Ok(refused), _) => refused,
                    // Asked again it would meet that again: it is copied afresh, and its tail is the other copies' to keep (seed 911149 of moves).
                    (Err(_), Some(damage)) => {
                        let reason = format!("what lies here is damaged ({}: {}); it is copied afresh instead", damage.file, damage.reason);
                        self.tell(damage, replies);
                        replies.push(CopyReply::RewindRefused { generation, number, reason });
                        return Ok(());
                    }
                    (Err(disk), None) => return Err(disk),
                },
            };
            if let Some(reason) = refused {
                replies.push(match self.keep_tail(order)? {
                    true => CopyReply::TailKept { generation, number, reason, state: self.state() },
                    false => CopyReply::RewindRefused { generation, number, reason },
                });
                return Ok(());
            }
            if end.seq > at.seq && order.archive.is_some() {
                self.go_back(order)?;
            } else {
                let manifest = self.after(order);
                self.directory.store(self.timeline, &manifest)?;
                self.manifest = manifest;
            }
        }
        replies.push(CopyReply::Rewound { generation, number, state: self.state() });
        Ok(())
    }

    /// The reign counts only where the whole log up to the point is: a copy that lacks some of it must outrank nobody who has it.
    fn after(&self, order: Order) -> Manifest {
        let mut manifest = self.manifest.clone();
        manifest.rewinds.done = (order.generation, order.number);
        if self.wal.end().seq >= order.at.seq {
            manifest.rewinds.reign = manifest.rewinds.reign.max(order.reign);
        }
        manifest
    }

    fn cannot_rewind(&mut self, order: &Order) -> Result<Option<String>, DiskError> {
        let at = &order.at;
        if at.seq == Seq::ZERO {
            return Ok(Some("nothing would be left; it is copied afresh instead".into()));
        }
        if at.end_lsn < self.manifest.folded && order.archive.is_some() {
            let folded = self.manifest.folded;
            return Ok(Some(format!(
                "page versions below LSN {folded} were folded together, and it should go back to LSN {}; it is copied afresh instead",
                at.end_lsn
            )));
        }
        if !self.was_here(at)? {
            return Ok(Some(format!("{at} is no consistency point of the log here, which ends at {}", self.wal.end())));
        }
        if order.archive.is_some() && self.manifest.rewinds.archives.len() >= ARCHIVES_MAX {
            return Ok(Some(format!(
                "{ARCHIVES_MAX} lost tails are kept here already; look at them (`parhelion salvage`), and let some go with --drop"
            )));
        }
        Ok(None)
    }

    /// Archives what is behind the point and leaves everything as it is: the log that is here, and pages of it as far back as there are versions.
    /// `false`: it is not kept.
    fn keep_tail(&mut self, order: Order) -> Result<bool, DiskError> {
        let Some(id) = order.archive else { return Ok(false) };
        let end = *self.wal.end();
        // Said late once more, when this was copied afresh already: what lies here now is the history that is followed.
        let is_tail = end.epoch < order.reign || id == archive_id(&order.at, end.epoch);
        let full = self.manifest.archive(id).is_none() && self.manifest.rewinds.archives.len() >= ARCHIVES_MAX;
        if order.at.seq == Seq::ZERO || !is_tail || full || self.directory.is_dropped(id) || !self.was_here(&order.at)? {
            return Ok(false);
        }
        let mut manifest = self.manifest.clone();
        self.archive_tail(order, &mut manifest)?;
        if manifest != self.manifest {
            self.directory.store(self.timeline, &manifest)?;
            self.manifest = manifest;
            self.wal.hold(&self.manifest.rewinds.archives);
        }
        Ok(true)
    }

    fn go_back(&mut self, order: Order) -> Result<(), DiskError> {
        let at = order.at;
        self.drop_seed()?;
        let mut manifest = self.after(order);
        self.archive_tail(order, &mut manifest)?;
        let layers = self.pages.layers();
        let (kept, gone): (Vec<_>, Vec<_>) = layers.iter().cloned().partition(|l| l.meta().above < at.end_lsn);
        let kept: Vec<_> = kept.into_iter().map(|l| if l.meta().cap > at.end_lsn { Arc::new(l.capped(at.end_lsn)) } else { l }).collect();
        let in_layers = manifest.flushed.seq >= at.seq;
        // Without a layer that ends there, or without the log below, the log begins anew behind the point.
        let anew = at.seq <= self.wal.before_first().seq || (in_layers && kept.is_empty());
        manifest.lineage = self.lineage();
        manifest.layers = pages::PageStore::metas(&kept);
        manifest.next_layer = self.next_layer;
        if in_layers {
            manifest.flushed = at;
        }
        if anew {
            manifest.base = at;
            manifest.base_history = self.wal.history().clone();
            manifest.base_history.cut_from(at.seq.next());
            manifest.log_first_number = self.wal.next_number();
            manifest.rewinds.cut = None;
        } else {
            manifest.rewinds.cut = Some(self.wal.cut_at(at));
        }
        self.directory.store(self.timeline, &manifest)?;
        self.manifest = manifest;

        let flushed = self.manifest.flushed;
        self.contents += 1;
        (self.checking, self.check_cursor) = (None, None);
        (self.ingest_cursor, self.read_cursor) = (None, None);
        while let Some(frame) = self.recent.pop_back_if(|f| f.seq() > at.seq) {
            self.recent_bytes -= frame.bytes().len();
        }
        self.consistent = at;
        if self.vdl.seq > at.seq {
            self.vdl = at;
        }
        self.ingested = flushed;
        self.ingested_consistent = true;
        self.agreed = flushed.seq;
        self.agreed_with = order.generation;
        self.horizon = self.horizon.min(at.end_lsn);
        self.trim = self.trim.min(at.seq);
        self.branches.retain(|w| w.at.seq <= at.seq);
        self.pages.go_back(kept, flushed);
        self.proven_upto(at.end_lsn, true);
        for layer in gone {
            layer.retire();
        }
        self.wal.hold(&self.manifest.rewinds.archives);
        match &self.manifest.rewinds.cut {
            Some(cut) => self.wal.cut(cut),
            None => {
                let lineage = self.manifest.lineage.expect("BUG: there is a log, so there is a lineage");
                self.wal.restart(lineage, at, self.manifest.base_history.clone())
            }
        }
    }

    /// Makes the timeline that keeps the tail's layers, and enters the tail in `manifest`. Counts only with that: an order that is given again
    /// makes it again.
    fn archive_tail(&mut self, order: Order, manifest: &mut Manifest) -> Result<(), DiskError> {
        let directory = Arc::clone(&self.directory);
        let _making = directory.making();
        let Some(id) = order.archive else { return Ok(()) };
        let end = *self.wal.end();
        let kept = manifest.rewinds.archives.iter().position(|a| a.id == id);
        if directory.is_dropped(id) || kept.is_some_and(|i| manifest.rewinds.archives[i].end >= end) {
            return Ok(()); // nobody wants it any more, or it was archived before
        }
        if let Some(i) = kept {
            manifest.rewinds.archives.remove(i);
        }
        let flushed = self.manifest.flushed;
        let from = if flushed.seq < order.at.seq { flushed } else { order.at };
        // The log is kept down to what the layers hold, so whatever is behind `from` is in it.
        let from = if from.seq < self.wal.before_first().seq { *self.wal.before_first() } else { from };
        directory.make(id, &self.child_at(id, flushed), self.promised)?;
        let (base, consistent) = (order.at, self.consistent);
        manifest.rewinds.archives.push(Archive { id, base, end, consistent, from, files: self.wal.files_behind(from.seq) });
        Ok(())
    }

    pub(super) fn archives(&self) -> Vec<ArchiveView> {
        self.manifest.rewinds.archives.iter().map(Archive::view).collect()
    }

    pub(super) fn read_archive(&mut self, id: u64, archive: TimelineId, from: Seq, bytes_max: usize, replies: &mut Vec<CopyReply>) {
        let frames = match self.manifest.archive(archive) {
            Some(kept) => read_tail(&self.disk, kept, from, bytes_max),
            None => Err(format!("there is no archive {archive} here")),
        };
        replies.push(match frames {
            Ok(frames) => CopyReply::Log { id, frames },
            Err(reason) => CopyReply::Unreadable { id, reason },
        });
    }

    pub(super) fn drop_archive(
        &mut self,
        generation: Generation,
        archive: TimelineId,
        replies: &mut Vec<CopyReply>,
    ) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        if archive != TimelineId::ROOT && archive != self.timeline {
            let mut manifest = self.manifest.clone();
            manifest.rewinds.archives.retain(|a| a.id != archive);
            let gone = self.manifest.archive(archive).map(|a| a.files.clone()).unwrap_or_default();
            if manifest != self.manifest {
                self.directory.store(self.timeline, &manifest)?;
                self.manifest = manifest;
                self.wal.hold(&self.manifest.rewinds.archives);
                self.wal.discard_all(&gone)?;
            }
            self.directory.drop_timeline(archive)?;
        }
        replies.push(CopyReply::ArchiveDropped { generation, archive });
        Ok(())
    }
}

impl Archive {
    fn view(&self) -> ArchiveView {
        ArchiveView { id: self.id, base: self.base, consistent: self.consistent, end: self.end }
    }
}

/// Frames of the tail from `from` on, about `bytes_max` of them; none behind its end.
fn read_tail(disk: &Arc<dyn Disk>, archive: &Archive, from: Seq, bytes_max: usize) -> Result<Vec<Frame>, String> {
    let from = from.max(archive.base.seq.next()).max(archive.from.seq.next());
    if from > archive.end.seq {
        return Ok(Vec::new());
    }
    let mut log = Wal::of_archive(Arc::clone(disk), archive).map_err(|e| e.to_string())?;
    let frames = log.read(&mut None, from, archive.end.seq, bytes_max).map_err(|e| e.to_string())?;
    let follows = from != archive.base.seq.next() || frames.first().is_some_and(|f| f.follows(&archive.base));
    let ends = frames.last().is_none_or(|f| f.seq() != archive.end.seq || f.log_end() == archive.end);
    if follows && ends { Ok(frames) } else { Err("the tail that lies here is not the one that was archived".into()) }
}

/// An archived tail as it lies in one copy's directory, which nobody need have opened and somebody may be writing in. Nothing is changed.
pub struct ArchivedTail {
    view: ArchiveView,
    log: Wal,
    pages: pages::PageStore,
}

impl ArchivedTail {
    /// The archives in the directory on `disk`.
    ///
    /// # Errors
    /// [`OpenError`]: the manifest cannot be read.
    pub fn list(disk: &Arc<dyn Disk>) -> Result<Vec<ArchiveView>, OpenError> {
        let manifest = Manifest::load(&**disk, TimelineId::ROOT)?;
        Ok(manifest.map(|m| m.rewinds.archives.iter().map(Archive::view).collect()).unwrap_or_default())
    }

    /// Opens one: its pages can be read from what was not folded when it was archived up to its last consistency point. What the layers do not
    /// hold is held in memory.
    ///
    /// # Errors
    /// [`OpenError`]: it is not here, or damaged.
    pub fn open(disk: &Arc<dyn Disk>, id: TimelineId) -> Result<ArchivedTail, OpenError> {
        let missing = |what: &str| OpenError::Damaged { what: format!("archive {id}"), reason: what.to_owned() };
        let parent = Manifest::load(&**disk, TimelineId::ROOT)?;
        let archive = parent.as_ref().and_then(|m| m.archive(id)).cloned().ok_or_else(|| missing("it is not here"))?;
        let view = Directory::look(disk, id);
        let manifest = Manifest::load(&*view, id)?.ok_or_else(|| missing("its timeline is missing"))?;
        let layers: Result<Vec<_>, OpenError> = (manifest.layers.iter())
            .map(|meta: &LayerMeta| {
                let lineage = manifest.lineage.ok_or_else(|| missing("its timeline has layers and no lineage"))?;
                Ok(Arc::new(Directory::look_at_layer(disk, lineage, meta)?))
            })
            .collect();
        let mut log = Wal::of_archive(Arc::clone(disk), &archive)?;
        let pages = pages::PageStore::new(layers?, manifest.flushed, manifest.folded);
        pages.trust();
        let mut cursor = None;
        let mut next = manifest.flushed.seq.next();
        while next <= archive.consistent.seq {
            let frames = log.read(&mut cursor, next, archive.consistent.seq, READ_BYTES).map_err(|e| match e {
                WalReadError::Disk(e) => OpenError::Disk(e),
                e @ WalReadError::Damaged { .. } => missing(&e.to_string()),
            })?;
            let mut versions = Vec::new();
            let Some(last) = frames.last().map(Frame::log_end) else { break };
            for frame in frames.iter().filter(|f| !f.is_control() && !f.is_elided()) {
                let records = redo::records(&frame.payload()).map_err(|e| missing(&format!("frame {} is no redo: {e}", frame.seq())))?;
                versions.push((frame.end_lsn(), records));
            }
            pages.ingest(versions, last);
            next = last.seq.next();
        }
        Ok(ArchivedTail { view: archive.view(), log, pages })
    }

    #[must_use]
    pub fn view(&self) -> ArchiveView {
        self.view
    }

    #[must_use]
    pub fn pages(&self) -> &pages::PageStore {
        &self.pages
    }

    /// Frames of the tail from `from` on, about `bytes_max` of them; none behind its end. Those of other groups come without payload.
    ///
    /// # Errors
    /// A sentence: the file is damaged.
    pub fn frames(&mut self, from: Seq, bytes_max: usize) -> Result<Vec<Frame>, String> {
        let from = from.max(self.view.base.seq.next()).max(self.log.first());
        if from > self.view.end.seq {
            return Ok(Vec::new());
        }
        self.log.read(&mut None, from, self.view.end.seq, bytes_max).map_err(|e| e.to_string())
    }

    /// The oldest LSN at which its pages can be read.
    #[must_use]
    pub fn first_readable(&self) -> Lsn {
        self.pages.first_readable()
    }
}
