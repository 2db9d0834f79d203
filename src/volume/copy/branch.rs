//! Timelines: a child of this one, that begins behind one of its consistency points.
//!
//! A child shares what the parent's layers hold up to the point and has everything else of its own: manifest, promise, log,
//! memtable, layers. So it is a [`Copy`] over the same directory, and an appender over six of them is a volume. Decides from where on
//! a branch is possible and when the layers reach far enough for it; never where to branch. Nothing is copied, and the parent goes on
//! undisturbed: what it merges away stays as long as a child names it.

use super::Copy;
use super::directory::TimelineView;
use super::manifest::{LayerMeta, Manifest, Origin, Rewinds};
use crate::base::{Generation, LogEnd, Lsn, Seq, TimelineId};
use crate::volume::{CopyReply, DiskError, OpenError};
use std::sync::Arc;

/// A branch that was ordered and waits for the layers.
pub(super) struct Waiting {
    generation: Generation,
    child: TimelineId,
    pub(super) at: LogEnd,
}

/// Orders that wait at once; more are refused. They are few: each is an operator's, and is answered within a layer's writing.
const WAITING_MAX: usize = 64;

impl Copy {
    /// Which timeline this is a copy of.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Where this timeline begins; `None` for the root.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.manifest.origin
    }

    /// All timelines in this copy's directory.
    ///
    /// # Errors
    /// As [`super::Directory::timelines`].
    pub fn timelines(&self) -> Result<Vec<TimelineView>, OpenError> {
        self.directory.timelines()
    }

    pub(super) fn branch(
        &mut self,
        generation: Generation,
        child: TimelineId,
        at: LogEnd,
        replies: &mut Vec<CopyReply>,
    ) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        let refused = |reason: String| CopyReply::BranchRefused { generation, child, reason };
        let origin = Origin { parent: self.timeline, at };
        let directory = Arc::clone(&self.directory);
        let _making = directory.making();
        match self.directory.origin(child) {
            Err(OpenError::Disk(e)) => return Err(e),
            Err(e) => {
                replies.push(refused(e.to_string()));
                return Ok(());
            }
            Ok(Some(found)) if found == Some(origin) => {
                replies.push(CopyReply::Branched { generation, child });
                return Ok(());
            }
            Ok(Some(found)) => {
                let begins =
                    found.map_or("it is being rebuilt here".into(), |o| format!("it begins in timeline {} behind {}", o.parent, o.at));
                replies.push(refused(format!(
                    "timeline {child} exists already and is another one: {begins}; choose an id that was never used"
                )));
                return Ok(());
            }
            Ok(None) => {}
        }
        if let Some(damage) = &self.damage {
            replies.push(refused(format!("this copy is damaged and will be rebuilt ({}: {})", damage.file, damage.reason)));
        } else if at.end_lsn < self.manifest.folded {
            replies.push(refused(format!(
                "versions below LSN {} were folded together: that is the oldest LSN that can be branched from, LSN {} was asked for",
                self.manifest.folded, at.end_lsn
            )));
        } else if at.seq <= self.ingested.seq && !self.was_here(&at)? {
            replies.push(refused(format!("{at} is no consistency point of timeline {}'s log", self.timeline)));
        } else if at.seq <= self.manifest.flushed.seq {
            self.directory.make(child, &self.child_at(child, at), self.promised)?;
            replies.push(CopyReply::Branched { generation, child });
        } else if !self.branches.iter().any(|w| w.child == child && w.at == at && w.generation == generation) {
            if self.branches.len() >= WAITING_MAX {
                replies.push(refused(format!("{WAITING_MAX} branches wait already; ask again in a moment")));
                return Ok(());
            }
            self.branches.push(Waiting { generation, child, at });
        }
        Ok(())
    }

    /// Whether `at` is a consistency point of the log here. Of what was trimmed only the writer is known, and that is enough: what is
    /// durable in the region under one (epoch, generation, seq) is one frame.
    pub(super) fn was_here(&mut self, at: &LogEnd) -> Result<bool, DiskError> {
        if at.seq < self.wal.first() {
            return Ok(*at == *self.wal.before_first() || (at.seq > Seq::ZERO && self.wal.history().contains(at)));
        }
        Ok(self.frame_at(at.seq)?.is_some_and(|f| f.log_end() == *at && f.is_consistency_point()))
    }

    pub(super) fn child_at(&self, child: TimelineId, at: LogEnd) -> Manifest {
        let shared = self.manifest.layers.iter().filter(|l| l.above < at.end_lsn);
        let mut base_history = self.wal.history().clone();
        base_history.cut_from(at.seq.next());
        Manifest {
            timeline: child,
            group: self.manifest.group,
            lineage: self.lineage(),
            origin: Some(Origin { parent: self.timeline, at }),
            base: at,
            base_history,
            flushed: at,
            layers: shared.map(|l| LayerMeta { cap: l.cap.min(at.end_lsn), ..l.clone() }).collect(),
            folded: self.manifest.folded,
            log_first_number: 1,
            next_layer: 1,
            rewinds: Rewinds::default(),
        }
    }

    /// Takes up the branches whose point has come.
    pub(super) fn branch_waiting(&mut self, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if self.branches.is_empty() {
            return Ok(());
        }
        let (flushed, promised) = (self.manifest.flushed.seq, self.promised);
        self.branches.retain(|w| w.generation == promised);
        let (ready, waiting) = std::mem::take(&mut self.branches).into_iter().partition(|w| w.at.seq <= flushed);
        self.branches = waiting;
        for Waiting { generation, child, at } in ready {
            self.branch(generation, child, at, replies)?;
        }
        Ok(())
    }

    /// A branch waits for what is in memory.
    pub(super) fn branch_wants_layers(&self) -> bool {
        self.branches
            .iter()
            .any(|w| w.at.seq > self.manifest.flushed.seq && w.at.seq <= self.ingested.seq && !self.pages.frozen_holds(w.at.seq))
    }

    /// Below this versions may be folded: not above the point of a branch that waits.
    pub(super) fn fold_horizon(&self) -> Lsn {
        self.branches.iter().map(|w| w.at.end_lsn).min().unwrap_or(self.horizon).min(self.horizon)
    }

    pub(super) fn drop_branch(&mut self, generation: Generation, child: TimelineId, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        if child == TimelineId::ROOT || child == self.timeline {
            let reason = "a timeline is dropped by another one, and the root never".to_string();
            replies.push(CopyReply::BranchRefused { generation, child, reason });
            return Ok(());
        }
        self.branches.retain(|w| w.child != child);
        self.directory.drop_timeline(child)?;
        replies.push(CopyReply::BranchDropped { generation, child });
        Ok(())
    }
}
