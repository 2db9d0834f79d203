//! Reading again what lies here: is it still what was written?
//!
//! Decides, piece by piece, whether the files are intact: manifest, promise and control state against what is in memory, the header of every
//! log file, every block of every layer, every frame of the log and the chain through them, up to the very end that was acknowledged. What is small
//! is written again on the spot; anything else is told as damage, and the appender has this copy rebuilt. Never decides when (the
//! appender asks, at its rate), and never changes a layer or a log file. Reads go to the medium where the system allows it.

use super::Copy;
use super::OpenError;
use super::directory::{LayerId, layer_name};
use super::layer::LayerError;
use super::manifest::{self, LayerMeta, Manifest};
use super::wal::WalReadError;
use crate::base::{Generation, Seq, TimelineId};
use crate::volume::message::{CheckPlace, Damage};
use crate::volume::{Cold, CopyReply, DiskError};
use std::sync::Arc;

fn rebuild(file: impl Into<String>, reason: impl Into<String>, lost_write: bool) -> Damage {
    Damage { file: file.into(), reason: reason.into(), lost_write, healed: false }
}

/// What a failed read of a layer means: whatever cannot be read is missing.
pub(super) fn layer_damage(name: &str, e: LayerError) -> Damage {
    match e {
        LayerError::Damaged { file, reason, lost, .. } => rebuild(file, reason, lost),
        LayerError::Disk(DiskError::NotFound { name }) => rebuild(name, "the file is gone", true),
        e @ (LayerError::Disk(_) | LayerError::Unsupported { .. }) => rebuild(name, e.to_string(), false),
    }
}

pub(super) fn log_damage(e: WalReadError) -> Damage {
    match e {
        WalReadError::Damaged { file, seq, at, lost } => {
            let what = if lost { "is not there" } else { "is not readable" };
            rebuild(file, format!("frame {seq} at offset {at} {what}, and it was fsynced"), lost)
        }
        WalReadError::Disk(e) => rebuild("log", e.to_string(), false),
    }
}

/// A small file as it was found, against what it should say.
fn compare<T: PartialEq>(found: Result<Option<T>, OpenError>, expected: &T) -> Option<(String, bool)> {
    match found {
        Ok(Some(found)) if found == *expected => None,
        Ok(Some(_)) => Some(("it is an older one than was written".into(), true)),
        Ok(None) => Some(("it is gone".into(), true)),
        Err(OpenError::Damaged { reason, .. }) => Some((reason, false)),
        Err(e) => Some((e.to_string(), false)),
    }
}

impl Copy {
    pub(super) fn check(
        &mut self,
        id: u64,
        from: Option<CheckPlace>,
        bytes_max: usize,
        replies: &mut Vec<CopyReply>,
    ) -> Result<(), DiskError> {
        let cold = Arc::new(Cold(Arc::clone(&self.disk)));
        let outcome = match from {
            None => {
                self.check_small_files(&cold, replies)?;
                let newest = self.manifest.layers.iter().filter(|l| l.timeline == self.timeline).map(|l| l.number).max().unwrap_or(0);
                let (timeline, log_until) = (TimelineId::ROOT, self.wal.end().seq);
                let place = CheckPlace::Layers { timeline, number: 0, block: 0, until: newest, log_until };
                let headers = self.wal.check_headers(&*cold).map_err(|(file, reason)| rebuild(file, reason, false));
                headers.map(|()| (0, Some(place)))
            }
            Some(CheckPlace::Layers { timeline, number, block, until, log_until }) => {
                self.check_layer((timeline, number), block, until, bytes_max).map(|(bytes, next)| {
                    let log = CheckPlace::Log { from: Seq(0), until: log_until };
                    let place = |((timeline, number), block)| CheckPlace::Layers { timeline, number, block, until, log_until };
                    (bytes, Some(next.map_or(log, place)))
                })
            }
            Some(CheckPlace::Log { from, until }) => self.check_log(&cold, from, until, bytes_max),
        };
        match outcome {
            Ok((bytes, next)) => replies.push(CopyReply::Checked { id, bytes, next }),
            Err(damage) => {
                // It is rebuilt as a whole: nothing more to look for.
                self.tell(damage, replies);
                replies.push(CopyReply::Checked { id, bytes: 0, next: None });
            }
        }
        Ok(())
    }

    /// What memory knows is written again.
    fn check_small_files(&mut self, cold: &Cold, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        let mut healed = |file: &str, (reason, lost_write): (String, bool)| {
            replies.push(CopyReply::Damaged { damage: Damage { file: file.into(), reason, lost_write, healed: true } });
        };
        if let Some(bad) = compare(Manifest::load(cold, self.timeline), &self.manifest) {
            self.manifest.store(&*self.disk)?;
            healed(manifest::MANIFEST, bad);
        }
        if let Some(identity) = &self.identity
            && self.timeline == TimelineId::ROOT
            && let Some(bad) = compare(super::identity::load(cold), identity)
        {
            super::identity::store(&*self.disk, identity)?;
            healed(super::identity::IDENTITY, bad);
        }
        if self.promised > Generation::ZERO
            && let Some(bad) = compare(manifest::load_promise(cold), &self.promised)
        {
            manifest::store_promise(&*self.disk, self.promised)?;
            healed(manifest::PROMISE, bad);
        }
        if self.control.version > 0
            && let Some(bad) = compare(manifest::load_control(cold).map(Some), &self.control)
        {
            manifest::store_control(&*self.disk, &self.control)?;
            healed(manifest::CONTROL, bad);
        }
        Ok(())
    }

    /// The bytes that were read, and which layer and block are next.
    fn check_layer(&mut self, from: LayerId, block: u32, until: u64, bytes_max: usize) -> Result<(u64, Option<(LayerId, u32)>), Damage> {
        // Layers that were merged meanwhile are gone, and what took their place is newer than `until`.
        let known = |l: &&LayerMeta| l.id() >= from && (l.timeline != self.timeline || l.number <= until);
        let Some(meta) = self.manifest.layers.iter().filter(known).min_by_key(|l| l.id()).cloned() else {
            self.checking = None;
            return Ok((0, None));
        };
        let (timeline, number) = meta.id();
        let name = layer_name(meta.id());
        let lineage = self.manifest.lineage.expect("BUG: there are layers, so there is a lineage");
        let block = if meta.id() == from { block as usize } else { 0 };
        let layer = match self.checking.take() {
            Some(layer) if layer.meta() == &meta && block > 0 => layer,
            _ => self.directory.cold_layer(lineage, &meta).map_err(|e| layer_damage(&name, e))?,
        };
        let (bytes, reached) = layer.file().check(block, bytes_max).map_err(|e| layer_damage(&name, e))?;
        if reached >= layer.file().block_count() {
            return Ok((bytes, Some(((timeline, number + 1), 0))));
        }
        self.checking = Some(layer);
        Ok((bytes, Some((meta.id(), u32::try_from(reached).expect("BUG: a layer has fewer blocks")))))
    }

    fn check_log(&mut self, cold: &Arc<Cold>, from: Seq, until: Seq, bytes_max: usize) -> Result<(u64, Option<CheckPlace>), Damage> {
        let end = *self.wal.end();
        let upto = until.min(end.seq);
        // One frame is read twice, so that the chain is checked across the pieces.
        let first = Seq(from.0.saturating_sub(1)).max(self.wal.first());
        if first > upto || from > upto {
            self.check_cursor = None;
            return Ok((0, None));
        }
        let frames = self.wal.read_on(&**cold, &mut self.check_cursor, first, upto, bytes_max).map_err(log_damage)?;
        let (head, last) = (frames.first().expect("BUG: at least one frame"), frames.last().expect("BUG: at least one frame"));
        if first == self.wal.first() && !head.follows(self.wal.before_first()) {
            return Err(rebuild("log", format!("frame {first} does not follow what the log begins behind"), true));
        }
        if last.seq() == end.seq && last.log_end() != end {
            return Err(rebuild("log", format!("frame {} is not the one that was acknowledged", end.seq), true));
        }
        let bytes = frames.iter().map(|f| f.bytes().len() as u64).sum();
        // The cursor stands behind the last frame; the next piece begins with it again.
        self.check_cursor = None;
        let next = (last.seq() < upto).then(|| CheckPlace::Log { from: last.seq().next(), until });
        Ok((bytes, next))
    }

    /// Remembers what needs rebuilding, and tells it.
    pub(super) fn tell(&mut self, damage: Damage, replies: &mut Vec<CopyReply>) {
        replies.push(CopyReply::Damaged { damage: damage.clone() });
        self.damage.get_or_insert(damage);
    }

    /// What a reader met on another thread.
    pub(super) fn tell_what_readers_met(&mut self, replies: &mut Vec<CopyReply>) {
        if let Some(damage) = self.pages.take_damage()
            && self.damage.is_none()
        {
            self.tell(damage, replies);
        }
    }

    /// The other copies have other pages. Persisted, so that no restart makes this copy be read again before it was rebuilt.
    pub(super) fn distrust(&mut self, generation: Generation, reason: String, replies: &mut Vec<CopyReply>) -> Result<(), DiskError> {
        if self.admit(generation, replies)? {
            manifest::store_distrust(&*self.disk, &reason)?;
            self.pages.distrust(reason.clone());
            self.tell(rebuild(manifest::PAGES, reason, true), replies);
        }
        Ok(())
    }
}
