//! Every file of a copy that is not open, read and judged on its own; nothing is changed.
//!
//! Decides, file by file, what is intact and what is not, with offset and reason, and goes on behind what is not: [`super::Copy::open`] stops at the
//! first. Never decides what follows, and never takes a torn end of the newest log file for damage: only what a mark, a later file or the
//! manifest says was there must be there. The log of a running copy grows while it is read; what looks damaged there is looked at again.

use super::OpenError;
use super::layer::{LayerError, LayerFile};
use super::manifest::{self, Manifest};
use super::record::{FileHeader, Record, RecordReader, search_marks};
use super::{identity, layer, wal};
use crate::base::{LineageId, LogEnd, Seq, TimelineId};
use crate::volume::{Disk, DiskError};
use std::sync::Arc;

const READ_BYTES: usize = 256 << 10;
/// So often a log that may be growing is read again before its damage is believed.
const LOOKS: usize = 3;

/// One thing in a file that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDamage {
    pub file: String,
    /// Where in the file; `None` where it is the file as a whole.
    pub offset: Option<u64>,
    pub reason: String,
}

/// All files of one copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesVerdict {
    /// Files that belong to the copy (what a crash left over does not).
    pub files: u64,
    /// Read from them.
    pub bytes: u64,
    pub damage: Vec<FileDamage>,
    /// A new copy: nothing was ever stored here.
    pub empty: bool,
}

struct Look<'a> {
    disk: &'a Arc<dyn Disk>,
    verdict: FilesVerdict,
}

/// Reads everything. A file that cannot be read is damage, too.
#[must_use]
pub fn verify_files(disk: &Arc<dyn Disk>) -> FilesVerdict {
    let mut look = Look { disk, verdict: FilesVerdict::default() };
    let names = match disk.list() {
        Ok(names) => names,
        Err(e) => {
            look.bad(".", None, e.to_string());
            return look.verdict;
        }
    };
    look.small(manifest::PROMISE, manifest::load_promise(&**disk).map(|p| p.is_some()));
    look.small(manifest::CONTROL, manifest::load_control(&**disk).map(|c| c.version > 0));
    look.small(identity::IDENTITY, identity::load(&**disk).map(|i| i.is_some()));
    if let Ok(Some(reason)) = manifest::load_distrust(&**disk) {
        look.bad(manifest::PAGES, None, reason);
    }
    let log: Vec<u64> = names.iter().filter_map(|n| wal::number_of(n)).collect();
    let manifest = Manifest::load(&**disk, TimelineId::ROOT);
    look.small(manifest::MANIFEST, manifest.as_ref().map(Option::is_some).map_err(Clone::clone));
    match manifest {
        Ok(Some(manifest)) => {
            for meta in &manifest.layers {
                look.layer(&manifest, meta);
            }
            look.verdict.empty = manifest.lineage.is_none() && log.is_empty();
            look.log(log, Some(&manifest));
            for archive in &manifest.rewinds.archives {
                look.archive(archive);
            }
        }
        Ok(None) => {
            look.verdict.empty =
                !names.iter().any(|n| wal::number_of(n).is_some() || layer::number_of(n).is_some() || n == manifest::PROMISE);
            if !look.verdict.empty {
                look.bad(manifest::MANIFEST, None, "it is missing");
                look.log(log, None);
            }
        }
        // Said above. Without it nobody knows which layers count.
        Err(_) => look.log(log, None),
    }
    look.verdict
}

impl Look<'_> {
    fn bad(&mut self, file: &str, offset: Option<u64>, reason: impl Into<String>) {
        self.verdict.damage.push(FileDamage { file: file.into(), offset, reason: reason.into() });
    }

    fn small(&mut self, name: &str, found: Result<bool, OpenError>) {
        match found {
            Ok(there) => {
                self.verdict.files += u64::from(there);
                self.verdict.bytes += if there { self.disk.len(name).ok().flatten().unwrap_or(0) } else { 0 };
            }
            Err(OpenError::Damaged { reason, .. }) => self.bad(name, Some(0), reason),
            Err(e) => self.bad(name, Some(0), e.to_string()),
        }
    }

    fn layer(&mut self, manifest: &Manifest, meta: &manifest::LayerMeta) {
        self.verdict.files += 1;
        let name = layer::name_of(meta.number);
        let Some(lineage) = manifest.lineage else {
            return self.bad(manifest::MANIFEST, None, "it names layers and no lineage");
        };
        let layer = match LayerFile::open(None, Arc::clone(self.disk), lineage, meta) {
            Ok(layer) => layer,
            Err(e) => return self.bad_layer(&name, e),
        };
        let mut at = 0;
        while at < layer.block_count() {
            match layer.check(at, 1) {
                Ok((bytes, next)) => {
                    self.verdict.bytes += bytes;
                    at = next;
                }
                Err(e) => {
                    self.bad_layer(&name, e);
                    at += 1;
                }
            }
        }
    }

    fn bad_layer(&mut self, name: &str, e: LayerError) {
        match e {
            LayerError::Damaged { reason, at, .. } => self.bad(name, at, reason),
            LayerError::Disk(DiskError::NotFound { .. }) => self.bad(name, None, "the file is missing"),
            e => self.bad(name, None, e.to_string()),
        }
    }

    /// The chain of log files, from the newest down, as [`super::wal::Wal`] finds it when it is opened; then each of them, oldest first.
    fn log(&mut self, mut numbers: Vec<u64>, manifest: Option<&Manifest>) {
        numbers.sort_unstable();
        let first_number = manifest.map_or(0, |m| m.log_first_number);
        let cut = manifest.and_then(|m| m.rewinds.cut.as_ref());
        let held = manifest.map(|m| wal::held_by(&m.rewinds.archives)).unwrap_or_default();
        let cut_off = |number: u64| cut.is_some_and(|cut| number < cut.below && number > cut.last);
        let mut chain: Vec<(String, Option<(FileHeader, u64)>)> = Vec::new();
        let mut previous: Option<u64> = None;
        for number in numbers.into_iter().rev() {
            // What a seed or a cut replaced, and a crash left.
            if number < first_number || previous.map_or_else(|| cut_off(number), |p| number > p) {
                continue;
            }
            let name = wal::name_of(number);
            if previous.is_some_and(|p| number < p) && held.contains(&number) {
                continue;
            }
            if let Some(p) = previous.filter(|p| number < *p) {
                self.bad(&wal::name_of(p), None, "the file is missing in the middle of the log");
            }
            self.verdict.files += 1;
            let header = match FileHeader::read(&**self.disk, &name) {
                Ok(Ok((header, at))) if header.number == number => Some((header, at)),
                Ok(Ok(_)) => {
                    self.bad(&name, Some(0), "its header belongs to another file");
                    None
                }
                Ok(Err(e)) => {
                    self.bad(&name, Some(0), format!("its header is not readable: {e}"));
                    None
                }
                Err(e) => {
                    self.bad(&name, Some(0), e.to_string());
                    None
                }
            };
            // Behind a header that cannot be read the next older file is taken for the one before.
            previous = header.as_ref().map_or(previous, |(h, _)| Some(h.previous));
            chain.push((name, header));
            if previous == Some(0) {
                break;
            }
        }
        chain.reverse();
        if let (Some(m), Some((name, Some((oldest, _))))) = (manifest, chain.first()) {
            let begins = oldest.previous == 0 && oldest.before == m.base;
            let trimmed = oldest.previous != 0 && oldest.before.seq <= m.flushed.seq;
            if !begins && !trimmed {
                let what =
                    format!("a file is missing before it: it begins behind seq {}, the layers end at {}", oldest.before.seq, m.flushed.seq);
                self.bad(&name.clone(), None, what);
            }
        }
        if let (Some(m), true) = (manifest, chain.is_empty())
            && m.flushed != m.base
        {
            self.bad("log", None, format!("there is no log file, but the layers hold the log up to {}", m.flushed));
        }
        for i in 0..chain.len() {
            let (name, Some((header, at))) = &chain[i] else { continue };
            let next = chain.get(i + 1).and_then(|(_, h)| h.as_ref()).map(|(h, _)| h.before);
            // Rewound, and nothing was written since: it ends where the manifest says.
            let ends = cut.filter(|cut| i + 1 == chain.len() && header.number < cut.below).map(|cut| cut.at);
            let (newest, next) = (i + 1 == chain.len() && ends.is_none(), next.or(ends));
            let flushed = manifest.map_or(Seq::ZERO, |m| m.flushed.seq);
            self.log_file(name, header, *at, next, newest, flushed);
        }
    }

    /// The files of a lost tail, up to its end. Those that it shares with the log are read once more.
    fn archive(&mut self, archive: &manifest::Archive) {
        let mut files = Vec::new();
        for &number in &archive.files {
            let name = wal::name_of(number);
            self.verdict.files += 1;
            match FileHeader::read(&**self.disk, &name) {
                Ok(Ok((header, at))) if header.number == number => files.push((name, header, at)),
                Ok(Ok(_)) => return self.bad(&name, Some(0), "its header belongs to another file"),
                Ok(Err(e)) => return self.bad(&name, Some(0), format!("its header is not readable: {e}")),
                Err(e) => return self.bad(&name, Some(0), e.to_string()),
            }
        }
        for (i, (name, header, at)) in files.iter().enumerate() {
            let next = files.get(i + 1).map_or(archive.end, |(_, h, _)| h.before);
            self.log_file(name, header, *at, Some(next), false, Seq::ZERO);
        }
    }

    fn log_file(&mut self, name: &str, header: &FileHeader, at: u64, next: Option<LogEnd>, newest: bool, flushed: Seq) {
        let mut last = self.read_log_file(name, header, at, next, newest, flushed);
        for _ in 1..LOOKS {
            let Err(before) = &last else { break };
            let again = self.read_log_file(name, header, at, next, newest, flushed);
            if again.as_ref().err() == Some(before) {
                break;
            }
            last = again;
        }
        match last {
            Ok(bytes) => self.verdict.bytes += bytes,
            Err((offset, reason)) => self.bad(name, Some(offset), reason),
        }
    }

    /// Bytes that were read, or where it ends too early and why that is damage.
    fn read_log_file(
        &self,
        name: &str,
        header: &FileHeader,
        at: u64,
        next: Option<LogEnd>,
        newest: bool,
        flushed: Seq,
    ) -> Result<u64, (u64, String)> {
        let lineage: LineageId = header.lineage;
        let mut reader = RecordReader::new(&**self.disk, name, header.number, lineage, at, READ_BYTES);
        let mut end = header.before;
        let mut proven = header.proven;
        let said = |at: u64, e: DiskError| (at, e.to_string());
        // A file that is not the newest ends where the next one begins; behind that it may be void.
        while next.is_none_or(|n| end.seq < n.seq) {
            let at = reader.position();
            match reader.next().map_err(|e| said(at, e))? {
                Record::Frame(frame) if frame.follows(&end) => end = frame.log_end(),
                Record::Mark(mark) => proven = proven.max(mark.synced),
                Record::Unsupported(version) => {
                    return Err((at, format!("a frame has format version {version}, which this parhelion does not read")));
                }
                Record::Frame(_) | Record::Invalid if !newest => {
                    return Err((at, format!("frame {} is not readable and a later file proves that it was fsynced", end.seq.next())));
                }
                Record::Frame(_) | Record::Invalid => {
                    let marks = search_marks(&**self.disk, name, header.number, lineage, at).map_err(|e| said(at, e))?;
                    proven = proven.max(marks.unwrap_or_default().synced).max(flushed);
                    if end.seq < proven {
                        return Err((at, format!("frame {} is not readable, and seq {proven} was fsynced", end.seq.next())));
                    }
                    break;
                }
            }
        }
        match next {
            Some(next) if end != next => Err((reader.position(), format!("frame {} is not the one that the next file follows", end.seq))),
            _ => Ok(reader.position()),
        }
    }
}
