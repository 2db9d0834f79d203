//! The log of one copy: numbered files of frames, always one gapless chain.
//!
//! Decides where the log ends after a crash, which file holds a seq, when a new file begins. Never decides whether frames
//! are accepted ([`super::Copy`] does); what is appended here follows the end, what replaces follows what it replaces.
//!
//! - A file is written under a temporary name, fsynced, renamed: with its first batch in it. Rename is the atomic step.
//! - A file voids everything from its first seq on in older files. That is how a tail is cut by what replaces it.
//! - A file is written by one incarnation only. Whatever a torn write left behind is never overwritten.
//! - An fsync that failed may leave bytes that read back and are not on the disk. So frames that nothing proves to be
//!   synced are written again, into a new file, before they count.

use super::OpenError;
use super::codec::CodecError;
use super::manifest::{Archive, Cut, Manifest, TEMPORARY};
use super::record::{FileHeader, Mark, Place, Record, RecordReader, encode_frames, encode_mark, frames_bytes, mark_bytes, search_marks};
use crate::base::{LineageId, LogEnd, Seq};
use crate::log::{FRAME_HEADER_BYTES, Frame, History};
use crate::volume::{Disk, DiskError};
use std::collections::BTreeSet;
use std::sync::Arc;

/// One entry of the sparse index per so many bytes of log.
const INDEX_EVERY_BYTES: u64 = 64 << 10;
/// Read at once when the log is read: at least, at most.
const READ_BYTES: (usize, usize) = (16 << 10, 256 << 10);

pub(super) struct Wal {
    disk: Arc<dyn Disk>,
    lineage: Option<LineageId>,
    file_bytes: u64,
    /// Of a file that is begun on a full disk; 0: none is.
    small_file_bytes: u64,
    /// The last file is written on up to here.
    capacity: u64,
    /// Oldest first.
    files: Vec<LogFile>,
    /// Where the last file is written on; `None`: the next batch begins a new file.
    write_at: Option<u64>,
    /// The last file is small and of an earlier incarnation: the next file takes over its frames, so that restarts do not
    /// pile up small files.
    merge_last: bool,
    next_number: u64,
    /// The log's end while there are no files.
    base: LogEnd,
    end: LogEnd,
    history: History,
    /// Files of archives: they stay when the log does without them.
    held: BTreeSet<u64>,
    /// The highest position that was ever said to be durable in the region, as far as files say that are read when the log is opened.
    told: LogEnd,
}

struct LogFile {
    number: u64,
    name: String,
    previous: u64,
    before: LogEnd,
    /// (seq, offset at or before its frame), ascending; never empty.
    index: Vec<(Seq, u64)>,
}

/// Where a sequential reader stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    number: u64,
    seq: Seq,
    at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WalReadError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the log is damaged at seq {seq} in '{file}', offset {at}")]
    Damaged {
        file: String,
        seq: Seq,
        at: u64,
        /// Nothing is where the frame was written.
        lost: bool,
    },
}

pub(super) fn name_of(number: u64) -> String {
    format!("log-{number:08}.log")
}

pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".log")?;
    if digits.len() < 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn damaged(what: &str, reason: impl Into<String>) -> OpenError {
    OpenError::Damaged { what: what.to_string(), reason: reason.into() }
}

impl LogFile {
    fn new(header: &FileHeader, content_at: u64) -> LogFile {
        LogFile {
            number: header.number,
            name: name_of(header.number),
            previous: header.previous,
            before: header.before,
            index: vec![(header.before.seq.next(), content_at)],
        }
    }

    fn note(&mut self, seq: Seq, at: u64) {
        let &(last_seq, last_at) = self.index.last().expect("BUG: an index has its first entry");
        if seq > last_seq && at >= last_at + INDEX_EVERY_BYTES {
            self.index.push((seq, at));
        }
    }
}

impl Wal {
    /// Finds the log's end and makes it certain. Reads only files that hold frames above the manifest's `flushed`; of the
    /// others only the header. Also gives the last consistency point.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        manifest: &Manifest,
        file_bytes: u64,
        small_file_bytes: u64,
    ) -> Result<(Wal, LogEnd), OpenError> {
        let flushed = manifest.flushed;
        let mut numbers: Vec<u64> = disk.list()?.iter().filter_map(|n| number_of(n)).collect();
        numbers.sort_unstable();
        let newest_number = numbers.last().copied().unwrap_or(0);
        let mut wal = Wal {
            lineage: manifest.lineage,
            file_bytes,
            small_file_bytes,
            capacity: file_bytes,
            files: Vec::new(),
            write_at: None,
            merge_last: false,
            next_number: (newest_number + 1).max(manifest.log_first_number).max(manifest.rewinds.cut.as_ref().map_or(0, |c| c.below)),
            base: manifest.base,
            end: manifest.base,
            history: manifest.base_history.clone(),
            held: held_by(&manifest.rewinds.archives),
            told: LogEnd::EMPTY,
            disk,
        };
        let chain = wal.chain(&numbers, manifest)?;
        let Some((newest, _)) = chain.last() else {
            if flushed != manifest.base {
                return Err(damaged("log", format!("there is no log file, but the layers hold the log up to {flushed}")));
            }
            return Ok((wal, manifest.base));
        };
        wal.lineage = Some(newest.lineage);
        wal.told = chain.iter().map(|(header, _)| header.durable).max().unwrap_or_default();
        wal.files = chain.iter().map(|(header, at)| LogFile::new(header, *at)).collect();
        let mut consistent = flushed;
        for (i, pair) in chain.windows(2).enumerate() {
            if pair[1].0.before.seq > flushed.seq {
                wal.check_whole(i, &pair[1].0.before, &flushed, &mut consistent)?;
            }
        }
        match manifest.rewinds.cut.as_ref().filter(|cut| newest.number < cut.below) {
            Some(cut) => {
                if cut.at.seq > flushed.seq {
                    wal.check_whole(chain.len() - 1, &cut.at, &flushed, &mut consistent)?;
                }
                wal.end = cut.at;
                wal.history = cut.history.clone();
            }
            None => wal.find_end(newest, &flushed, &mut consistent)?,
        }
        Ok((wal, consistent))
    }

    /// The log of an archive, to be read only.
    pub(super) fn of_archive(disk: Arc<dyn Disk>, archive: &Archive) -> Result<Wal, OpenError> {
        let mut files: Vec<LogFile> = Vec::new();
        let mut lineage = None;
        for &number in &archive.files {
            let name = name_of(number);
            let (header, content_at) = match FileHeader::read(&*disk, &name)? {
                Ok(found) => found,
                Err(CodecError::Unsupported(version)) => return Err(OpenError::Unsupported { file: name, version }),
                Err(e) => return Err(damaged(&name, format!("its header is not readable: {e}"))),
            };
            let joined = files.last().map_or(header.before.seq <= archive.from.seq, |f| f.before.seq < header.before.seq);
            if header.number != number || !joined || lineage.is_some_and(|l| l != header.lineage) {
                return Err(damaged(&name, "its header belongs to another log"));
            }
            lineage = Some(header.lineage);
            files.push(LogFile::new(&header, content_at));
        }
        if files.is_empty() && archive.from.seq < archive.end.seq {
            return Err(damaged("log", "the archive names no file"));
        }
        Ok(Wal {
            lineage,
            file_bytes: 0,
            small_file_bytes: 0,
            capacity: 0,
            files,
            write_at: None,
            merge_last: false,
            next_number: u64::MAX,
            base: archive.from,
            end: archive.end,
            history: History::default(),
            held: BTreeSet::new(),
            told: LogEnd::EMPTY,
            disk,
        })
    }

    /// Reads headers from the newest file down, drops files that are void, and gives the chain, oldest first.
    fn chain(&self, numbers: &[u64], manifest: &Manifest) -> Result<Vec<(FileHeader, u64)>, OpenError> {
        let mut chain: Vec<(FileHeader, u64)> = Vec::new();
        let cut_off = |number: u64| manifest.rewinds.cut.as_ref().is_some_and(|cut| number < cut.below && number > cut.last);
        for &number in numbers.iter().rev() {
            let name = name_of(number);
            let newer = chain.last().map(|(h, _)| h);
            if number < manifest.log_first_number || newer.map_or_else(|| cut_off(number), |n| number > n.previous) {
                // A seed or a cut replaced it and the crash came before it was removed, or an archive has it.
                self.discard(number)?;
                continue;
            }
            if let Some(newer) = newer
                && number < newer.previous
            {
                if self.held.contains(&number) {
                    continue; // the log was trimmed, an archive has it still
                }
                return Err(damaged(&name_of(newer.previous), "the file is missing in the middle of the log"));
            }
            let (header, content_at) = match FileHeader::read(&*self.disk, &name)? {
                Ok(found) => found,
                Err(CodecError::Unsupported(version)) => return Err(OpenError::Unsupported { file: name, version }),
                Err(e) => return Err(damaged(&name, format!("its header is not readable: {e}"))),
            };
            let fits = newer.is_none_or(|n| header.before.seq < n.before.seq && header.lineage == n.lineage);
            if header.number != number || !fits || manifest.lineage.is_some_and(|l| l != header.lineage) {
                return Err(damaged(&name, "its header belongs to another log"));
            }
            chain.push((header, content_at));
        }
        if let Some((oldest, _)) = chain.last() {
            let begins = oldest.previous == 0 && oldest.before == manifest.base;
            let trimmed = oldest.previous != 0 && oldest.before.seq <= manifest.flushed.seq;
            if !begins && !trimmed {
                return Err(damaged(&name_of(oldest.previous), "the file is missing at the beginning of the log"));
            }
        }
        chain.reverse();
        Ok(chain)
    }

    /// Checks a file that is not the newest: it must hold everything up to `end`.
    fn check_whole(&mut self, i: usize, end: &LogEnd, flushed: &LogEnd, consistent: &mut LogEnd) -> Result<(), OpenError> {
        let (name, number, before, at) = {
            let f = &self.files[i];
            (f.name.clone(), f.number, f.before, f.index[0].1)
        };
        let lineage = self.lineage.expect("BUG: a log with files has a lineage");
        let disk = Arc::clone(&self.disk);
        let mut reader = RecordReader::new(&*disk, &name, number, lineage, at, READ_BYTES.1);
        let mut last = before;
        while last.seq < end.seq {
            let at = reader.position();
            match reader.next()? {
                Record::Frame(frame) if frame.follows(&last) => {
                    last = frame.log_end();
                    self.files[i].note(last.seq, at);
                    check_flushed(&name, &last, flushed)?;
                    if frame.is_consistency_point() && last.seq > consistent.seq {
                        *consistent = last;
                    }
                }
                Record::Mark(mark) => self.told = self.told.max(mark.durable),
                Record::Unsupported(version) => return Err(OpenError::Unsupported { file: name, version }),
                _ => {
                    return Err(damaged(
                        &name,
                        format!("frame {} is not readable and a later file proves that it was fsynced", last.seq.next()),
                    ));
                }
            }
        }
        if last != *end {
            return Err(damaged(&name, format!("frame {} is not the one that the next file follows", last.seq)));
        }
        Ok(())
    }

    /// Reads the newest file to its end, decides between a torn tail and damage, and writes again what is not proven.
    fn find_end(&mut self, header: &FileHeader, flushed: &LogEnd, consistent: &mut LogEnd) -> Result<(), OpenError> {
        let i = self.files.len() - 1;
        let (name, at) = (self.files[i].name.clone(), self.files[i].index[0].1);
        let disk = Arc::clone(&self.disk);
        let mut reader = RecordReader::new(&*disk, &name, header.number, header.lineage, at, READ_BYTES.1);
        let mut end = header.before;
        let mut proven = header.proven;
        // What would have to be written again: all of a small file (see `merge_last`), else what is behind the last mark. `kept_from` and `history` are the log's end before the first kept frame.
        let mut kept: Vec<Frame> = Vec::new();
        let mut kept_bytes = 0;
        let mut whole = true;
        let mut kept_from = header.before;
        let mut history = header.history.clone();
        loop {
            let at = reader.position();
            match reader.next()? {
                Record::Frame(frame) if frame.follows(&end) => {
                    end = frame.log_end();
                    self.files[i].note(end.seq, at);
                    check_flushed(&name, &end, flushed)?;
                    if frame.is_consistency_point() && end.seq > consistent.seq {
                        *consistent = end;
                    }
                    kept_bytes += frame.bytes().len() as u64;
                    whole &= kept_bytes <= self.file_bytes / 4;
                    kept.push(frame);
                }
                Record::Mark(mark) => {
                    proven = proven.max(mark.synced);
                    self.told = self.told.max(mark.durable);
                }
                Record::Unsupported(version) => return Err(OpenError::Unsupported { file: name, version }),
                Record::Frame(_) | Record::Invalid => {
                    let beyond = search_marks(&*disk, &name, header.number, header.lineage, at)?.unwrap_or_default();
                    proven = proven.max(beyond.synced);
                    self.told = self.told.max(beyond.durable);
                    break;
                }
            }
            if !whole {
                let done = kept.partition_point(|f| f.seq() <= proven);
                for frame in kept.drain(..done) {
                    kept_from = frame.log_end();
                    history.note(&frame);
                }
            }
        }
        if end.seq < proven {
            return Err(damaged(&name, format!("the log is readable up to {end}, but seq {proven} was fsynced")));
        }
        if end.seq < flushed.seq {
            return Err(damaged(&name, format!("the log ends at {end}, before what the layers hold ({flushed})")));
        }
        if end.seq > proven {
            self.start_file(kept_from, &history, &kept, false)?;
        } else {
            self.merge_last = whole;
        }
        for frame in &kept {
            history.note(frame);
        }
        self.end = end;
        self.history = history;
        Ok(())
    }

    pub(super) fn lineage(&self) -> Option<LineageId> {
        self.lineage
    }

    /// The lineage of a log that is about to get its first frame.
    pub(super) fn set_lineage(&mut self, lineage: LineageId) {
        self.lineage = Some(lineage);
    }

    /// Seq of the oldest frame that is here, or would be the next.
    pub(super) fn first(&self) -> Seq {
        self.before_first().seq.next()
    }

    /// The log's end before its oldest frame here.
    pub(super) fn before_first(&self) -> &LogEnd {
        self.files.first().map_or(&self.base, |f| &f.before)
    }

    /// Everything up to here is fsynced.
    pub(super) fn end(&self) -> &LogEnd {
        &self.end
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Up to here the region said that the log is durable. Kept with what is written next.
    pub(super) fn tell(&mut self, durable: LogEnd) {
        self.told = self.told.max(durable);
    }

    /// See [`Wal::tell`]: what was kept of it, and what will be.
    pub(super) fn told(&self) -> &LogEnd {
        &self.told
    }

    /// Writes frames behind the end: one write, one fsync.
    pub(super) fn append(&mut self, frames: &[Frame]) -> Result<(), DiskError> {
        let Some(last) = frames.last() else { return Ok(()) };
        let (mark_len, bytes) = (mark_bytes(&*self.disk), frames_bytes(&*self.disk, frames));
        match self.write_at {
            Some(at) if at + mark_len + bytes <= self.capacity => {
                let lineage = self.lineage.expect("BUG: a log with files has a lineage");
                let file = self.files.last_mut().expect("BUG: there is a file to write on");
                let mut parts = Vec::with_capacity(frames.len() + 1);
                let place = Place { lineage, number: file.number, at };
                parts.push(encode_mark(&*self.disk, place, Mark { synced: self.end.seq, durable: self.told })?);
                encode_frames(&*self.disk, Place { at: at + mark_len, ..place }, frames, &mut parts)?;
                self.disk.write(&file.name, at, &parts)?;
                self.disk.sync(&file.name)?;
                file.note(frames[0].seq(), at);
                self.write_at = Some(at + mark_len + bytes);
            }
            _ => self.roll(frames)?,
        }
        for frame in frames {
            self.history.note(frame);
        }
        self.end = last.log_end();
        Ok(())
    }

    fn roll(&mut self, frames: &[Frame]) -> Result<(), DiskError> {
        let history = self.history.clone();
        let (true, Some(before)) = (self.merge_last, self.files.last().map(|f| f.before)) else {
            return self.start_file(self.end, &history, frames, true);
        };
        match self.read(&mut None, before.seq.next(), self.end.seq, usize::MAX) {
            Ok(mut all) => {
                let mut history = history;
                history.cut_from(before.seq.next());
                all.extend_from_slice(frames);
                self.start_file(before, &history, &all, true)
            }
            Err(WalReadError::Disk(e)) => Err(e),
            Err(e @ WalReadError::Damaged { .. }) => Err(DiskError::Failed { name: "log".into(), reason: e.to_string() }),
        }
    }

    /// Cuts the log behind `before` and goes on with `frames`, in one atomic step.
    pub(super) fn replace(&mut self, before: LogEnd, frames: &[Frame]) -> Result<(), DiskError> {
        let last = frames.last().expect("BUG: a log is only ever cut by the frame that replaces what was cut");
        let mut history = self.history.clone();
        history.cut_from(before.seq.next());
        self.start_file(before, &history, frames, true)?;
        for frame in frames {
            history.note(frame);
        }
        self.history = history;
        self.end = last.log_end();
        Ok(())
    }

    /// A new file whose first frame is behind `before`, with `frames` in it. Whatever older files have from there on is void
    /// from the rename on.
    fn start_file(&mut self, before: LogEnd, history: &History, frames: &[Frame], reserve: bool) -> Result<(), DiskError> {
        let last = frames.last().expect("BUG: a log file begins with a frame");
        let kept = self.files.partition_point(|f| f.before.seq < before.seq);
        let previous = match kept {
            0 => self.files.first().map_or(0, |f| f.previous),
            n => self.files[n - 1].number,
        };
        let header = FileHeader {
            number: self.next_number,
            lineage: self.lineage.expect("BUG: the lineage is known before the first frame"),
            previous,
            before,
            history: history.clone(),
            proven: last.seq(),
            durable: self.told,
        };
        self.next_number += 1;
        let temporary = format!("log{TEMPORARY}");
        let mut parts = vec![header.encode(&*self.disk)?];
        let content_at = parts[0].len() as u64;
        let place = Place { lineage: header.lineage, number: header.number, at: content_at };
        encode_frames(&*self.disk, place, frames, &mut parts)?;
        let len: u64 = parts.iter().map(|p| p.len() as u64).sum();
        self.capacity = self.file_bytes;
        match self.disk.allocate(&temporary, self.file_bytes) {
            Err(DiskError::Full { .. }) if self.small_file_bytes > 0 => {
                // What was allocated of it is in the way of what comes now, out of the copy's reserve.
                self.disk.remove(&temporary)?;
                self.capacity = len.max(self.small_file_bytes);
                self.disk.allocate(&temporary, self.capacity)?;
            }
            // When a copy is opened it must not need room for more than what it has to write again.
            Err(DiskError::Full { .. }) if !reserve => {}
            other => other?,
        }
        self.disk.write(&temporary, 0, &parts)?;
        self.disk.sync(&temporary)?;
        let file = LogFile::new(&header, content_at);
        self.disk.rename(&temporary, &file.name)?;
        let void = self.files.split_off(kept);
        self.files.push(file);
        self.write_at = Some(len);
        self.merge_last = false;
        for file in void {
            self.discard(file.number)?;
        }
        Ok(())
    }

    /// The log does without a file.
    fn discard(&self, number: u64) -> Result<(), DiskError> {
        if self.held.contains(&number) { Ok(()) } else { self.disk.remove(&name_of(number)) }
    }

    /// The files that hold everything behind `from`, oldest first.
    pub(super) fn files_behind(&self, from: Seq) -> Vec<u64> {
        let first = self.files.partition_point(|f| f.before.seq <= from).saturating_sub(1);
        self.files[first..].iter().map(|f| f.number).collect()
    }

    /// What a manifest must say for the log to end at `at`, which lies in it behind its beginning.
    pub(super) fn cut_at(&self, at: LogEnd) -> Cut {
        let kept = self.files.partition_point(|f| f.before.seq < at.seq);
        let last = self.files[kept.checked_sub(1).expect("BUG: the log begins before the cut")].number;
        let mut history = self.history.clone();
        history.cut_from(at.seq.next());
        Cut { below: self.next_number, last, at, history }
    }

    /// Ends where the manifest that is in place says. The next frame begins a new file.
    pub(super) fn cut(&mut self, cut: &Cut) -> Result<(), DiskError> {
        let void = self.files.split_off(self.files.partition_point(|f| f.before.seq < cut.at.seq));
        if let Some(last) = self.files.last_mut() {
            let kept = last.index.partition_point(|(seq, _)| *seq <= cut.at.seq).max(1);
            last.index.truncate(kept);
        }
        self.end = cut.at;
        self.history = cut.history.clone();
        self.write_at = None;
        self.merge_last = false;
        for file in void {
            self.discard(file.number)?;
        }
        Ok(())
    }

    /// Files of `archives` stay from now on; those of others that the log does without may go.
    pub(super) fn hold(&mut self, archives: &[Archive]) {
        self.held = held_by(archives);
    }

    /// Removes files that an archive let go and the log does without.
    pub(super) fn discard_all(&self, numbers: &[u64]) -> Result<(), DiskError> {
        for &number in numbers.iter().filter(|n| self.files.iter().all(|f| f.number != **n)) {
            self.discard(number)?;
        }
        Ok(())
    }

    /// Frames `from..=upto`, about `bytes_max` of them but at least one; each checked, and each following the one before.
    pub(super) fn read(&mut self, cursor: &mut Option<Cursor>, from: Seq, upto: Seq, bytes_max: usize) -> Result<Vec<Frame>, WalReadError> {
        let disk = Arc::clone(&self.disk);
        self.read_on(&*disk, cursor, from, upto, bytes_max)
    }

    /// As [`Wal::read`], on another view of the same disk.
    pub(super) fn read_on(
        &mut self,
        disk: &dyn Disk,
        cursor: &mut Option<Cursor>,
        from: Seq,
        upto: Seq,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, WalReadError> {
        assert!(from >= self.first() && upto <= self.end.seq, "BUG: frames {from} to {upto} are not in the log");
        let lineage = self.lineage.expect("BUG: a log with frames has a lineage");
        let mut out: Vec<Frame> = Vec::new();
        let mut bytes = 0;
        let mut wanted = from;
        while wanted <= upto && (out.is_empty() || bytes < bytes_max) {
            let i = self.files.partition_point(|f| f.before.seq < wanted) - 1;
            let last = self.files.get(i + 1).map_or(upto, |next| next.before.seq.min(upto));
            let file = &mut self.files[i];
            let (mut seq, at) = match cursor {
                Some(c) if c.number == file.number && c.seq == wanted => (wanted, c.at),
                _ => file.index[file.index.partition_point(|(seq, _)| *seq <= wanted) - 1],
            };
            let name = file.name.clone();
            let mut reader = RecordReader::new(disk, &name, file.number, lineage, at, bytes_max.clamp(READ_BYTES.0, READ_BYTES.1));
            while seq <= last && (out.is_empty() || bytes < bytes_max) {
                let at = reader.position();
                match reader.next()? {
                    Record::Frame(frame) if frame.seq() == seq && out.last().is_none_or(|p| frame.follows(&p.log_end())) => {
                        file.note(seq, at);
                        if seq >= wanted {
                            bytes += frame.bytes().len();
                            out.push(frame);
                        }
                        seq = seq.next();
                    }
                    Record::Mark(_) => {}
                    _ => {
                        let lost = disk.read(&name, at, FRAME_HEADER_BYTES)?.iter().all(|b| *b == 0);
                        return Err(WalReadError::Damaged { file: name, seq, at, lost });
                    }
                }
            }
            *cursor = Some(Cursor { number: file.number, seq, at: reader.position() });
            wanted = seq;
        }
        Ok(out)
    }

    /// Whether the headers of all files are what was written; else which is not, and why.
    pub(super) fn check_headers(&self, disk: &dyn Disk) -> Result<(), (String, String)> {
        for file in &self.files {
            let found = FileHeader::read(disk, &file.name).map_err(|e| (file.name.clone(), e.to_string()))?;
            let (header, _) = found.map_err(|e| (file.name.clone(), format!("its header is not readable: {e}")))?;
            if header.number != file.number || header.before != file.before || Some(header.lineage) != self.lineage {
                return Err((file.name.clone(), "its header is not the one that was written".into()));
            }
        }
        Ok(())
    }

    /// Removes files whose frames all lie below `below`; never the newest.
    pub(super) fn trim(&mut self, below: Seq) -> Result<(), DiskError> {
        while self.files.len() > 1 && self.files[1].before.seq < below {
            self.discard(self.files[0].number)?;
            self.files.remove(0);
        }
        Ok(())
    }

    /// Forgets everything and goes on behind `base`. The manifest that makes the old files void is already in place.
    pub(super) fn restart(&mut self, lineage: LineageId, base: LogEnd, history: History) -> Result<(), DiskError> {
        self.lineage = Some(lineage);
        self.base = base;
        self.end = base;
        self.told = LogEnd::EMPTY;
        self.history = history;
        self.write_at = None;
        self.merge_last = false;
        for file in std::mem::take(&mut self.files) {
            self.discard(file.number)?;
        }
        Ok(())
    }
}

pub(super) fn held_by(archives: &[Archive]) -> BTreeSet<u64> {
    archives.iter().flat_map(|a| a.files.iter().copied()).collect()
}

fn check_flushed(name: &str, end: &LogEnd, flushed: &LogEnd) -> Result<(), OpenError> {
    if end.seq == flushed.seq && end != flushed {
        return Err(damaged(name, format!("frame {} is not the one up to which the layers hold the log", end.seq)));
    }
    Ok(())
}
