//! Replacing everything in a copy by pages at an LSN.
//!
//! The pages are written to a new layer file beside what is there; one swap of the manifest publishes them and makes the
//! old layers and log files void. A crash before it leaves the old content, after it the new. Steps count, so that a
//! message that was doubled is answered again, and one that was lost is asked for by telling the step that is stored.

use super::Copy;
use super::layer::{LayerWriter, Place};
use super::manifest::{Manifest, Rewinds};
use crate::base::{Epoch, Generation, Lsn, PageNo};
use crate::log::SeedBase;
use crate::log::redo::{Change, PAGE_BYTES_MAX};
use crate::volume::{CopyReply, DiskError};
use bytes::Bytes;
use std::sync::Arc;

/// A seed under way.
pub(super) struct Seed {
    generation: Generation,
    base: SeedBase,
    /// Where its steps are counted from.
    first: u64,
    step: u64,
    next_page: Option<PageNo>,
    writer: LayerWriter,
    layer_number: u64,
}

/// The last seed that was published, to answer a doubled `SeedEnd`.
pub(super) struct SeedDone {
    generation: Generation,
    steps: u64,
}

fn lost(generation: Generation, reason: &str) -> CopyReply {
    CopyReply::SeedLost { generation, reason: reason.to_string() }
}

impl Copy {
    pub(super) fn seed_begin(
        &mut self,
        generation: Generation,
        step: u64,
        base: SeedBase,
        replies: &mut Vec<CopyReply>,
    ) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        // A doubled message, or one of an older seed, changes nothing.
        if let Some(seed) = self.seed.as_ref().filter(|s| s.generation == generation && s.first >= step) {
            replies.push(CopyReply::Seeded { generation, step: seed.step });
            return Ok(());
        }
        self.drop_seed()?;
        let layer_number = self.take_layer_number();
        let place = Place { lineage: base.lineage, timeline: self.timeline, number: layer_number, epoch: base.end.epoch };
        let writer = LayerWriter::begin(&self.directory, place)?;
        self.seed = Some(Seed { generation, base, first: step, step, next_page: Some(PageNo(0)), writer, layer_number });
        replies.push(CopyReply::Seeded { generation, step });
        Ok(())
    }

    pub(super) fn drop_seed(&mut self) -> Result<(), DiskError> {
        match self.seed.take() {
            Some(seed) => self.disk.remove(&super::layer::name_of(seed.layer_number)),
            None => Ok(()),
        }
    }

    pub(super) fn seed_pages(
        &mut self,
        generation: Generation,
        step: u64,
        pages: &[(PageNo, Bytes)],
        replies: &mut Vec<CopyReply>,
    ) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        let Some(seed) = self.seed.as_mut().filter(|s| s.generation == generation) else {
            replies.push(lost(generation, "no seed is under way here"));
            return Ok(());
        };
        if step == seed.step + 1 {
            let at = seed.base.end.end_lsn;
            for (page, bytes) in pages {
                if seed.next_page.is_none_or(|next| *page < next) || bytes.len() > PAGE_BYTES_MAX {
                    self.drop_seed()?;
                    replies.push(lost(generation, "the pages did not come in order, or one is longer than a page can be"));
                    return Ok(());
                }
                seed.writer.push((*page, at), &Change::Image(bytes.clone()))?;
                seed.next_page = page.0.checked_add(1).map(PageNo);
            }
            seed.step = step;
        }
        replies.push(CopyReply::Seeded { generation, step: seed.step });
        Ok(())
    }

    pub(super) fn seed_end(&mut self, generation: Generation, steps: u64, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if !self.admit(generation, replies)? {
            return Ok(());
        }
        match self.seed.take() {
            Some(seed) if seed.generation == generation && seed.step == steps => {
                self.publish_seed(seed)?;
                self.seed_done = Some(SeedDone { generation, steps });
                replies.push(self.appended(generation));
            }
            Some(seed) if seed.generation == generation => {
                replies.push(CopyReply::Seeded { generation, step: seed.step });
                self.seed = Some(seed);
            }
            other => {
                self.seed = other;
                let doubled = self.seed_done.as_ref().is_some_and(|d| d.generation == generation && d.steps == steps);
                replies.push(if doubled { self.appended(generation) } else { lost(generation, "no seed is under way here") });
            }
        }
        Ok(())
    }

    fn publish_seed(&mut self, seed: Seed) -> Result<(), DiskError> {
        let SeedBase { lineage, end, history } = seed.base;
        let layer = Arc::new(seed.writer.finish(Lsn::ZERO, end.end_lsn)?);
        let manifest = Manifest {
            timeline: self.timeline,
            group: self.manifest.group,
            lineage: Some(lineage),
            origin: self.manifest.origin,
            base: end,
            base_history: history.clone(),
            flushed: end,
            layers: vec![layer.meta().clone()],
            folded: end.end_lsn,
            log_first_number: self.wal.next_number(),
            next_layer: self.next_layer,
            // Archives stay; the log they were cut from is gone, and a reign is taken up again with what comes behind this.
            rewinds: Rewinds { cut: None, reign: Epoch::ZERO, ..self.manifest.rewinds.clone() },
        };
        self.directory.store(self.timeline, &manifest)?;
        self.manifest = manifest;
        self.damage = None;
        (self.checking, self.check_cursor) = (None, None);
        self.contents += 1;
        self.pending.clear();
        self.pending_for = None;
        self.recent.clear();
        self.recent_bytes = 0;
        self.consistent = end;
        self.vdl = end;
        self.agreed = end.seq;
        self.ingested = end;
        self.proven = true;
        self.ingested_consistent = true;
        (self.ingest_cursor, self.read_cursor) = (None, None);
        for layer in self.pages.reset(layer, end).iter() {
            layer.retire();
        }
        self.wal.restart(lineage, end, history)?;
        super::manifest::remove_distrust(&*self.disk)
    }
}
