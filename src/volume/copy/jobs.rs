//! Work that needs no answer soon: writing a full memtable as a layer file, and merging layer files.
//!
//! Decides when there is such work and which layers are merged. A job has all it needs and may run on any thread; nothing it
//! writes counts until [`Copy::finish`] swapped the manifest. One job at a time.

use super::Copy;
use super::layer::{Layer, LayerCursor, LayerError, LayerWriter};
use super::merge::{Merge, Source, write_folded};
use super::pages::{Memtable, PageStore};
use crate::base::{LineageId, LogEnd, Lsn, PageNo};
use crate::volume::{CopyReply, Disk, DiskError};
use std::sync::Arc;

/// A layer file to be written. See [`Copy::background_job`].
pub struct FlushJob {
    disk: Arc<dyn Disk>,
    lineage: LineageId,
    number: u64,
    contents: u64,
    horizon: Lsn,
    work: Work,
}

enum Work {
    Flush { table: Arc<Memtable>, from_nothing: bool },
    Compact { layers: Vec<Arc<Layer>>, from_nothing: bool },
}

/// What a job came to; goes back to the copy it came from.
pub struct FlushDone {
    contents: u64,
    /// Versions below this were folded.
    folded: Lsn,
    outcome: Result<(Layer, Replaces), LayerError>,
}

enum Replaces {
    /// The frozen memtable, which ends here.
    Memtable { upto: LogEnd },
    /// So many layers, the oldest of them with this number.
    Layers { first_number: u64, count: usize },
}

impl FlushJob {
    /// Whether it merges layers; else it writes a new one.
    #[must_use]
    pub fn merges(&self) -> bool {
        matches!(self.work, Work::Compact { .. })
    }

    /// Reads and writes; may take as long as a layer is large. Changes nothing that counts.
    #[must_use]
    pub fn run(self) -> FlushDone {
        let (above, upto, position) = match &self.work {
            Work::Flush { table, .. } => (table.above, table.upto.end_lsn, Replaces::Memtable { upto: table.upto }),
            Work::Compact { layers, .. } => {
                let (first, last) = (layers[0].meta(), layers[layers.len() - 1].meta());
                (first.above, last.upto, Replaces::Layers { first_number: first.number, count: layers.len() })
            }
        };
        let folded = self.horizon.min(upto);
        let contents = self.contents;
        let outcome = self.write(above, upto, folded).map(|layer| (layer, position));
        FlushDone { contents, folded, outcome }
    }

    fn write(self, above: Lsn, upto: Lsn, folded: Lsn) -> Result<Layer, LayerError> {
        let (sources, from_nothing) = match self.work {
            Work::Flush { table, from_nothing } => (vec![Source::memory(table, PageNo(0))], from_nothing),
            Work::Compact { layers, from_nothing } => {
                let cursors: Result<Vec<_>, _> = layers.into_iter().map(|l| LayerCursor::new(l, PageNo(0)).map(Source::Layer)).collect();
                (cursors?, from_nothing)
            }
        };
        let mut writer = LayerWriter::begin(self.disk, self.lineage, self.number)?;
        write_folded(&mut Merge::new(sources), &mut writer, folded, from_nothing)?;
        Ok(writer.finish(above, upto)?)
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
    /// The next thing to do in the background, if there is one and none is under way. Run it on any thread, then give the result
    /// to [`Copy::finish`]. It may also be dropped with the copy, never alone.
    pub fn background_job(&mut self) -> Option<FlushJob> {
        if self.job_running || self.failed.is_some() {
            return None;
        }
        let layers = self.pages.layers();
        let work = if let Some(table) = self.pages.frozen() {
            Work::Flush { table, from_nothing: layers.is_empty() }
        } else if self.damage.is_none() && layers.len() >= self.limits.layers_before_compaction.max(2) {
            let sizes: Vec<u64> = layers.iter().map(|l| l.meta().bytes).collect();
            let oldest = layers.len() - newest_to_merge(&sizes);
            Work::Compact { layers: layers[oldest..].to_vec(), from_nothing: oldest == 0 }
        } else {
            return None;
        };
        self.job_running = true;
        Some(FlushJob {
            disk: Arc::clone(&self.disk),
            lineage: self.lineage().expect("BUG: there are pages, so there is a lineage"),
            number: self.take_layer_number(),
            contents: self.contents,
            horizon: self.horizon,
            work,
        })
    }

    pub(super) fn take_layer_number(&mut self) -> u64 {
        let number = self.next_layer;
        self.next_layer += 1;
        number
    }

    /// Publishes what a job wrote, in one atomic step. A job that failed, or a disk that does, takes the copy out of its duty.
    pub fn finish(&mut self, done: FlushDone, replies: &mut Vec<CopyReply>) {
        self.job_running = false;
        let published = match done.outcome {
            // A seed replaced everything meanwhile.
            Ok((layer, _)) if done.contents != self.contents || self.failed.is_some() => {
                layer.retire();
                Ok(())
            }
            Ok((layer, replaces)) => self.publish(layer, &replaces, done.folded).map_err(|e| e.to_string()),
            Err(_) if done.contents != self.contents || self.failed.is_some() => Ok(()),
            // A layer that was to be merged: the copy is rebuilt, and goes on until then.
            Err(e @ LayerError::Damaged { .. }) => {
                self.tell(super::check::layer_damage("layer", e), replies);
                Ok(())
            }
            Err(e) => Err(e.to_string()),
        };
        if let Err(reason) = published {
            self.fail(reason, replies);
        }
    }

    fn publish(&mut self, layer: Layer, replaces: &Replaces, folded: Lsn) -> Result<(), DiskError> {
        let mut layers = self.pages.layers().to_vec();
        let mut manifest = self.manifest.clone();
        let mut retired = Vec::new();
        match replaces {
            Replaces::Memtable { upto } => {
                layers.push(Arc::new(layer));
                manifest.flushed = *upto;
            }
            Replaces::Layers { first_number, count } => {
                let at = layers.iter().position(|l| l.meta().number == *first_number).expect("BUG: one job at a time changes the layers");
                retired = layers.splice(at..at + count, [Arc::new(layer)]).collect();
            }
        }
        manifest.layers = PageStore::metas(&layers);
        manifest.lineage = self.lineage();
        manifest.folded = manifest.folded.max(folded);
        manifest.next_layer = self.next_layer;
        manifest.store(&*self.disk)?;
        self.manifest = manifest;
        self.pages.publish(layers, folded, matches!(replaces, Replaces::Memtable { .. }));
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
