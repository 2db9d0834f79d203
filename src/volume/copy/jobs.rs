//! Work that needs no answer soon: writing a full memtable as a layer file, and merging layer files.
//!
//! Decides when there is such work and which layers are merged. A job has all it needs, may run on any thread, and comes in
//! slices, so that whoever runs it can let others go first; nothing it writes counts until [`Copy::finish`] swapped the manifest.
//! One of each kind at a time: a memtable does not wait for a long merge.

use super::Copy;
use super::directory::Directory;
use super::layer::{Layer, LayerCursor, LayerError, LayerWriter, Place};
use super::merge::{Before, Merge, Source, write_page};
use super::pages::{Memtable, PageStore};
use crate::base::{LogEnd, Lsn, PageNo};
use crate::log::redo::VolumeHeader;
use crate::volume::{CopyReply, DiskError};
use std::sync::{Arc, Weak};

/// What is to come back must be worth so many memtables.
const RECLAIM_MEMTABLES: u64 = 8;

/// A layer file to be written. See [`Copy::background_job`].
pub struct FlushJob {
    directory: Arc<Directory>,
    place: Place,
    life: Weak<()>,
    contents: u64,
    above: Lsn,
    upto: Lsn,
    /// Versions at or below this are folded.
    horizon: Lsn,
    before: Before,
    replaces: Replaces,
    /// There are far too many layers.
    urgent: bool,
    /// Ingesting waits for a memtable to be written when the next one is full. `None`: it merges layers.
    open: Option<(Weak<PageStore>, usize)>,
    work: Work,
}

enum Work {
    Flush(Arc<Memtable>),
    Compact(Vec<Arc<Layer>>),
    UnderWay { merge: Merge, writer: Box<LayerWriter> },
}

/// What a job came to; goes back to the copy it came from.
pub struct FlushDone {
    life: Weak<()>,
    contents: u64,
    /// Versions below this were folded.
    folded: Lsn,
    replaces: Replaces,
    outcome: Result<Layer, LayerError>,
}

#[derive(Clone, Copy)]
enum Replaces {
    /// The frozen memtable, which ends here.
    Memtable { upto: LogEnd },
    /// So many layers, the oldest of them with this number.
    Layers { first: (crate::base::TimelineId, u64), count: usize },
}

impl Replaces {
    fn is_memtable(&self) -> bool {
        matches!(self, Replaces::Memtable { .. })
    }
}

/// How far a slice of a job came.
pub enum Slice {
    More(FlushJob),
    Done(FlushDone),
}

impl FlushJob {
    /// Frees memory that ingesting will soon wait for, or merges layers of which there are far too many. Anything else can wait.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        let fills_up = |(pages, half): &(Weak<PageStore>, usize)| pages.upgrade().is_none_or(|pages| pages.open_bytes() >= *half);
        self.urgent || self.open.as_ref().is_some_and(fills_up)
    }

    /// Whether it merges layers; else it writes a new one.
    #[must_use]
    pub fn merges(&self) -> bool {
        !self.replaces.is_memtable()
    }

    /// Reads and writes; may take as long as a layer is large. Changes nothing that counts.
    #[must_use]
    pub fn run(self) -> FlushDone {
        let mut job = self;
        loop {
            match job.run_slice(usize::MAX) {
                Slice::More(rest) => job = rest,
                Slice::Done(done) => return done,
            }
        }
    }

    /// As [`FlushJob::run`], but gives the rest back when about `bytes` were written.
    #[must_use]
    pub fn run_slice(mut self, bytes: usize) -> Slice {
        let outcome = match self.write(bytes) {
            Ok(None) => return Slice::More(self),
            Ok(Some(layer)) => Ok(layer),
            Err(e) => Err(e),
        };
        Slice::Done(FlushDone { life: self.life, contents: self.contents, folded: self.horizon, replaces: self.replaces, outcome })
    }

    fn write(&mut self, bytes: usize) -> Result<Option<Layer>, LayerError> {
        if self.life.strong_count() == 0 {
            // Its copy is gone, and the next one may be there: nobody waits for this.
            let reason = "the copy was closed".to_string();
            return Err(LayerError::Disk(DiskError::Failed { name: "layer".into(), reason }));
        }
        let mut work = std::mem::replace(&mut self.work, Work::Compact(Vec::new()));
        let (merge, writer) = loop {
            work = match &mut work {
                Work::UnderWay { merge, writer } => break (merge, writer),
                Work::Flush(table) => self.begin(vec![Source::memory(Arc::clone(table), PageNo(0))])?,
                Work::Compact(layers) => {
                    let cursors: Result<Vec<_>, _> = layers.drain(..).map(|l| LayerCursor::new(l, PageNo(0)).map(Source::Layer)).collect();
                    self.begin(cursors?)?
                }
            };
        };
        let stop_at = writer.written().saturating_add(bytes as u64);
        while writer.written() < stop_at {
            if !write_page(merge, writer, self.horizon, &self.before)? {
                let Work::UnderWay { writer, .. } = work else { unreachable!("BUG: it was just under way") };
                return Ok(Some(writer.finish(self.above, self.upto)?));
            }
        }
        self.work = work;
        Ok(None)
    }

    fn begin(&self, sources: Vec<Source>) -> Result<Work, DiskError> {
        Ok(Work::UnderWay { merge: Merge::new(sources), writer: Box::new(LayerWriter::begin(&self.directory, self.place)?) })
    }
}

/// How many of the newest layers to merge, given all sizes, oldest first: the two newest, and each older one while it is not
/// larger than what is merged already. So every version is written again only as often as the volume doubles.
fn newest_to_merge(sizes: &[u64]) -> usize {
    let mut newest_first = sizes.iter().rev();
    let mut sum = newest_first.next().copied().unwrap_or(0) + newest_first.next().copied().unwrap_or(0);
    let mut count = sizes.len().min(2);
    for &size in newest_first {
        if size > sum {
            break;
        }
        sum += size;
        count += 1;
    }
    count
}

impl Copy {
    /// The next thing to do in the background, if there is one. Run it on any thread, whole or in slices, then give the result
    /// to [`Copy::finish`]. It may also be dropped with the copy, never alone.
    pub fn background_job(&mut self) -> Option<FlushJob> {
        if self.failed.is_some() {
            return None;
        }
        let layers = self.pages.layers();
        if let Some(table) = self.pages.frozen()
            && !self.flushing
            && self.has_room_for_memtable(table.bytes())
        {
            self.flushing = true;
            let (above, upto) = (table.above, table.upto);
            let before = if layers.is_empty() { Before::Nothing } else { Before::Layers(layers.to_vec()) };
            let replaces = Replaces::Memtable { upto };
            return Some(self.job(above, upto.end_lsn, upto.epoch, before, replaces, Work::Flush(table)));
        }
        if self.compacting || self.damage.is_some() {
            return None;
        }
        let range = if layers.len() >= self.limits.layers_before_compaction.max(2) {
            let sizes: Vec<u64> = layers.iter().map(|l| l.meta().bytes).collect();
            layers.len() - newest_to_merge(&sizes)..layers.len()
        } else {
            0..self.worth_reclaiming(&layers)?
        };
        if !self.has_room_for_merge(layers[range.clone()].iter().map(|l| l.meta().bytes).sum()) {
            return None;
        }
        self.compacting = true;
        let (older, merged) = (&layers[..range.start], &layers[range]);
        let before = if older.is_empty() { Before::Nothing } else { Before::Layers(older.to_vec()) };
        let (first, last) = (merged[0].meta(), merged[merged.len() - 1].meta());
        let replaces = Replaces::Layers { first: first.id(), count: merged.len() };
        Some(self.job(first.above, last.end(), last.epoch, before, replaces, Work::Compact(merged.to_vec())))
    }

    /// How many of the oldest layers to write again because most of what they hold is nothing any more: the database shrank, and without this
    /// its space came back only when as much had been written again. Looked at once for each layer that comes; done when nobody looks back to
    /// before that, since until then all of it would be written again as it is. The newest of the layers may reach above the horizon: where
    /// a few pages change all the time there is always one that does.
    fn worth_reclaiming(&mut self, layers: &[Arc<Layer>]) -> Option<usize> {
        let horizon = self.fold_horizon();
        let flushed = self.manifest.flushed;
        if self.reclaim_looked != flushed.seq {
            self.reclaim_looked = flushed.seq;
            if !self.is_mostly_nothing(layers) {
                self.shrunk = None;
            } else if self.shrunk.is_none() {
                self.shrunk = Some(flushed.end_lsn);
            }
        }
        self.shrunk.filter(|at| *at <= horizon)?;
        self.shrunk = None;
        Some(layers.iter().take_while(|l| l.meta().above < horizon).count()).filter(|count| *count > 0)
    }

    /// Whether the layers take much more than the database has pages.
    fn is_mostly_nothing(&self, layers: &[Arc<Layer>]) -> bool {
        let bytes: u64 = layers.iter().map(|l| l.meta().bytes).sum();
        let least = RECLAIM_MEMTABLES.saturating_mul(self.limits.memtable_bytes_max as u64);
        if bytes < least {
            return false;
        }
        // Only the group that holds the header knows.
        let Ok(header) = self.pages.read(PageNo::HEADER, self.ingested.end_lsn) else { return false };
        let header = VolumeHeader::from_page(&header);
        let used = u64::from(header.page_count) * u64::from(header.page_bytes);
        used > 0 && bytes >= used.saturating_mul(2).saturating_add(least)
    }

    fn job(&mut self, above: Lsn, upto: Lsn, epoch: crate::base::Epoch, before: Before, replaces: Replaces, work: Work) -> FlushJob {
        let lineage = self.lineage().expect("BUG: there are pages, so there is a lineage");
        FlushJob {
            directory: Arc::clone(&self.directory),
            place: Place { lineage, timeline: self.timeline, number: self.take_layer_number(), epoch },
            life: Arc::downgrade(&self.life),
            contents: self.contents,
            above,
            upto,
            horizon: self.fold_horizon().min(upto),
            before,
            replaces,
            urgent: self.pages.layers().len() >= 2 * self.limits.layers_before_compaction.max(2),
            open: replaces.is_memtable().then(|| (Arc::downgrade(&self.pages), self.limits.memtable_bytes_max / 2)),
            work,
        }
    }

    pub(super) fn take_layer_number(&mut self) -> u64 {
        let number = self.directory.take_layer(self.timeline, self.next_layer);
        self.next_layer = number + 1;
        number
    }

    /// Publishes what a job wrote, in one atomic step. A job that failed, or a disk that does, takes the copy out of its duty.
    pub fn finish(&mut self, done: FlushDone, replies: &mut Vec<CopyReply>) {
        if !std::ptr::eq(done.life.as_ptr(), Arc::as_ptr(&self.life)) {
            return; // of an earlier life of this copy; what it wrote is left over
        }
        match done.replaces {
            Replaces::Memtable { .. } => self.flushing = false,
            Replaces::Layers { .. } => self.compacting = false,
        }
        let published = match done.outcome {
            // A seed replaced everything meanwhile.
            Ok(layer) if done.contents != self.contents || self.failed.is_some() => {
                layer.retire();
                Ok(())
            }
            Ok(layer) => self.publish(layer, done.replaces, done.folded).map_err(|e| e.to_string()),
            Err(_) if done.contents != self.contents || self.failed.is_some() => Ok(()),
            // A layer that was to be merged: the copy is rebuilt, and goes on until then.
            Err(e @ LayerError::Damaged { .. }) => {
                self.tell(super::check::layer_damage("layer", e), replies);
                Ok(())
            }
            // Somebody else took the room. Until there is some again, what was to become a layer stays where it is.
            Err(LayerError::Disk(DiskError::Full { name })) if self.is_full() => self.layer_found_no_room(&name).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(reason) = published {
            self.fail(reason, replies);
        }
    }

    fn publish(&mut self, layer: Layer, replaces: Replaces, folded: Lsn) -> Result<(), DiskError> {
        let mut layers = self.pages.layers().to_vec();
        let mut manifest = self.manifest.clone();
        let mut retired = Vec::new();
        match replaces {
            Replaces::Memtable { upto } => {
                layers.push(Arc::new(layer));
                manifest.flushed = upto;
            }
            Replaces::Layers { first, count } => {
                let at = layers.iter().position(|l| l.meta().id() == first).expect("BUG: one merge at a time changes the layers");
                retired = layers.splice(at..at + count, [Arc::new(layer)]).collect();
            }
        }
        manifest.layers = PageStore::metas(&layers);
        manifest.lineage = self.lineage();
        manifest.folded = manifest.folded.max(folded);
        manifest.next_layer = self.next_layer;
        self.directory.store(self.timeline, &manifest)?;
        self.layer_wants = 0;
        self.manifest = manifest;
        self.tell_ingested |= replaces.is_memtable();
        self.pages.publish(layers, folded, replaces.is_memtable());
        for layer in retired {
            layer.retire();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_merged_and_older_ones_while_they_are_not_larger() {
        for (sizes, count) in [
            (&[10u64, 10, 10][..], 3),
            (&[1000, 10, 10], 2),
            (&[1000, 400, 150, 50, 20, 16, 16], 4),
            (&[100, 90], 2),
            (&[1, 1, 1000, 1], 4),
        ] {
            assert_eq!(newest_to_merge(sizes), count, "{sizes:?}");
        }
    }
}
