//! The audit on a disk: every entry that a member's control core made, one line of JSON each, in files that only grow.
//!
//! ```text
//!  audit/log       the newest entries            audit/log.1 .. log.N    older ones, the lower the newer
//!  audit/base      where the oldest entry that is left follows: {"no":..,"hash":".."}; not there: entry 1 is the first
//! ```
//! Decides when a file is full, which entries are missing in it, and what a crash left half written. What is written here was kept on four
//! copies before (`crate::control::audit`), so a line that is torn at the end is cut off and written again; anything else that is not as it was
//! written is left as it is, and told by [`read`]. Driven by a thread of its own: a disk that stalls holds nobody up.

use crate::control::audit::{AuditBroken, AuditEntry, AuditHead, verify};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};

/// A file that is longer is put aside, and so many are kept.
const FILE_BYTES_MAX: u64 = 4 << 20;
const OLDER_KEPT: u32 = 7;
/// No line is longer: an entry's texts are bounded.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Writes entries to the files in one directory.
pub struct AuditFile {
    dir: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    /// Where the chain ends in the files.
    last: AuditHead,
    /// What a crash had left and was cut off; a sentence.
    mended: Option<String>,
}

fn log_path(dir: &Path, older: u32) -> PathBuf {
    if older == 0 { dir.join("log") } else { dir.join(format!("log.{older}")) }
}

impl AuditFile {
    /// Opens the files in `dir`, or begins them.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(dir: &Path) -> io::Result<AuditFile> {
        AuditFile::open_with(dir, FILE_BYTES_MAX)
    }

    fn open_with(dir: &Path, bytes_max: u64) -> io::Result<AuditFile> {
        std::fs::create_dir_all(dir)?;
        let path = log_path(dir, 0);
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        // Every line ends with its newline in one write; one that does not was being written when the machine or the process ended.
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let mut mended = None;
        if whole < text.len() {
            file.set_len(whole as u64)?;
            file.sync_all()?;
            file.seek(io::SeekFrom::End(0))?;
            mended = Some(format!("the last line of {} was torn after {} bytes and is written again", path.display(), text.len() - whole));
        }
        sync_dir(dir)?;
        let mut last = lines(&text[..whole]).filter_map(Result::ok).last().map(|e| AuditHead { no: e.no, hash: e.hash });
        // Nothing came since the file before was put aside.
        if last.is_none() {
            let older = std::fs::read(log_path(dir, 1)).unwrap_or_default();
            last = lines(&older).filter_map(Result::ok).last().map(|e| AuditHead { no: e.no, hash: e.hash });
        }
        Ok(AuditFile { dir: dir.to_owned(), file, bytes: whole as u64, bytes_max, last: last.unwrap_or_default(), mended })
    }

    #[must_use]
    pub fn mended(&self) -> Option<&str> {
        self.mended.as_deref()
    }

    /// Writes those of `entries` that are not there yet, and syncs.
    ///
    /// # Errors
    /// When the disk fails: what of it is there is found out at the next opening.
    pub fn write(&mut self, entries: &[AuditEntry]) -> io::Result<()> {
        if entries.last().is_some_and(|e| e.no < self.last.no) || entries.iter().any(|e| e.no == self.last.no && e.hash != self.last.hash) {
            self.begin_anew()?;
        }
        let mut text = Vec::new();
        for entry in entries.iter().filter(|e| e.no > self.last.no) {
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
        }
        if text.is_empty() {
            return Ok(());
        }
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.bytes_max {
            self.put_aside()?;
        }
        self.file.write_all(&text)?;
        self.file.sync_data()?;
        self.bytes += text.len() as u64;
        let last = entries.last().expect("BUG: something was written");
        self.last = AuditHead { no: last.no, hash: last.hash };
        Ok(())
    }

    /// The member's copies know nothing of what is here: they were lost, or belong to another one. It is put aside, and not mixed with theirs.
    fn begin_anew(&mut self) -> io::Result<()> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.dir.with_file_name(format!("{name}.before-{}-{:.8}", self.last.no, self.last.hash.to_string()));
        tracing::warn!("the audit in {} is not this member's any more and is kept as {}", self.dir.display(), aside.display());
        std::fs::rename(&self.dir, &aside)?;
        *self = AuditFile::open_with(&self.dir.clone(), self.bytes_max)?;
        Ok(())
    }

    /// The oldest file goes, and it is noted behind which entry the rest begins.
    fn put_aside(&mut self) -> io::Result<()> {
        let oldest = log_path(&self.dir, OLDER_KEPT);
        if let Ok(text) = std::fs::read(&oldest) {
            if let Some(end) = lines(&text).filter_map(Result::ok).last() {
                let base = AuditHead { no: end.no, hash: end.hash };
                let new = self.dir.join("base.new");
                let mut file = File::create(&new)?;
                file.write_all(&serde_json::to_vec(&base)?)?;
                file.sync_all()?;
                std::fs::rename(new, self.dir.join("base"))?;
                sync_dir(&self.dir)?;
            }
            std::fs::remove_file(&oldest)?;
        }
        for older in (0..OLDER_KEPT).rev() {
            let from = log_path(&self.dir, older);
            if from.exists() {
                std::fs::rename(from, log_path(&self.dir, older + 1))?;
            }
        }
        self.file = OpenOptions::new().create(true).append(true).open(log_path(&self.dir, 0))?;
        self.bytes = 0;
        sync_dir(&self.dir)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The entries of a file; a line that is none is told by its number, from 1 on.
fn lines(text: &[u8]) -> impl Iterator<Item = Result<AuditEntry, usize>> + '_ {
    let lines = text.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(i, line)| {
        let short = Some(line).filter(|l| l.len() <= LINE_BYTES_MAX);
        short.and_then(|line| serde_json::from_slice(line).ok()).ok_or(i + 1)
    })
}

/// What the files of one member hold, and whether it is what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRead {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
    /// Entries before these were put away for good.
    pub base: AuditHead,
    /// The first entry that cannot be believed, and why.
    pub broken: Option<(u64, String)>,
}

/// Reads all files in `dir`. `head`: where the member's copies say that the chain ends, if they were asked. A last line that is being
/// written at this moment is not there yet.
///
/// # Errors
/// When there are none, or they cannot be read.
pub fn read(dir: &Path, head: Option<AuditHead>) -> io::Result<AuditRead> {
    let base = match std::fs::read(dir.join("base")) {
        Ok(text) => {
            serde_json::from_slice::<AuditHead>(&text).map_err(|e| io::Error::other(format!("{}: {e}", dir.join("base").display())))?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => AuditHead::default(),
        Err(e) => return Err(e),
    };
    let (mut entries, mut unreadable): (Vec<AuditEntry>, Option<(u64, String)>) = (Vec::new(), None);
    for older in (0..=OLDER_KEPT).rev() {
        let path = log_path(dir, older);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && older > 0 => continue,
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
        };
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        for line in lines(&text[..whole]) {
            match line {
                Ok(entry) => entries.push(entry),
                Err(line) if unreadable.is_none() => {
                    let no = entries.last().map_or(base.no, |e| e.no) + 1;
                    unreadable = Some((no, format!("entry {no} cannot be read: line {line} of {}", path.display())));
                }
                Err(_) => {}
            }
        }
    }
    let broken = verify(base, &entries, head).err().map(|b: AuditBroken| (b.no(), b.to_string()));
    // A line that is no entry leaves a gap in the numbers, too; what was there is told rather than that something is missing.
    let broken = match (unreadable, broken) {
        (Some(line), Some(chain)) => Some(if line.0 <= chain.0 { line } else { chain }),
        (line, chain) => line.or(chain),
    };
    Ok(AuditRead { entries, base, broken })
}

/// Hands entries to the thread that writes them.
#[derive(Clone)]
pub struct AuditWriter {
    tx: Sender<Vec<AuditEntry>>,
}

impl AuditWriter {
    /// # Errors
    /// When the files cannot be opened or the thread not be started.
    pub fn start(dir: &Path) -> io::Result<AuditWriter> {
        let mut file = Some(AuditFile::open(dir)?);
        if let Some(mended) = file.as_ref().and_then(AuditFile::mended) {
            tracing::warn!("the audit: {mended}");
        }
        let (tx, rx) = channel::<Vec<AuditEntry>>();
        let dir = dir.to_owned();
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            // What could not be written is tried again with the next.
            let mut waiting: Vec<AuditEntry> = Vec::new();
            for entries in rx {
                waiting.extend(entries);
                let written = match &mut file {
                    Some(open) => open.write(&waiting),
                    None => AuditFile::open(&dir).and_then(|mut open| {
                        open.write(&waiting)?;
                        file = Some(open);
                        Ok(())
                    }),
                };
                match written {
                    Ok(()) => waiting.clear(),
                    Err(e) => {
                        tracing::error!("the audit cannot be written to {}: {e}; the newest entries are kept on the copies", dir.display());
                        // After a failed write nothing is known of this handle: it is opened anew.
                        file = None;
                    }
                }
            }
        })?;
        Ok(AuditWriter { tx })
    }

    pub fn write(&self, entries: Vec<AuditEntry>) {
        // Its thread ends with the process.
        let _ = self.tx.send(entries);
    }
}

impl super::driver::AuditLog for AuditWriter {
    fn write(&self, entries: Vec<AuditEntry>) {
        AuditWriter::write(self, entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Epoch, Lsn, RegionName, UnixMicros};
    use crate::control::audit::{Action, Audit};

    fn entries(n: usize) -> Vec<AuditEntry> {
        let (mut audit, mut all) = (Audit::default(), Vec::new());
        for i in 1..=n {
            let action = Action { actor: "me@here".into(), op: None, kind: "order", what: format!("number {i}") };
            audit.append(UnixMicros(i as u64), &RegionName::new("us-east").unwrap(), (Epoch(1), Lsn(0)), action);
            all.push(audit.entries().last().unwrap().clone());
        }
        all
    }

    fn head(entries: &[AuditEntry]) -> Option<AuditHead> {
        entries.last().map(|e| AuditHead { no: e.no, hash: e.hash })
    }

    #[test]
    fn a_torn_line_is_mended_wherever_it_was_torn_and_every_entry_is_written_once() {
        let all = entries(5);
        let line = serde_json::to_vec(&all[4]).unwrap().len();
        for torn in 0..=line {
            let dir = tempfile::tempdir().unwrap();
            AuditFile::open(dir.path()).unwrap().write(&all).unwrap();
            let log = dir.path().join("log");
            let text = std::fs::read(&log).unwrap();
            std::fs::write(&log, &text[..text.len() - 1 - torn]).unwrap();
            let mut file = AuditFile::open(dir.path()).unwrap();
            assert_eq!(file.mended().is_some(), torn < line, "{torn} of {line} bytes gone");
            // All that the copies keep is handed over again, and more.
            file.write(&all).unwrap();
            file.write(&all).unwrap();
            drop(file);
            let read = read(dir.path(), head(&all)).unwrap();
            assert_eq!((read.broken, read.entries), (None, all.clone()), "{torn}");
        }
    }

    #[test]
    fn what_was_changed_or_taken_out_is_named_and_stays_so() {
        let all = entries(9);
        type Tamper = (&'static str, fn(String) -> String, u64);
        let cases: &[Tamper] = &[
            ("a changed word", |t| t.replace("number 4\"", "number 5\""), 4),
            ("a line that is none", |t| t.replacen("{\"no\":6", "{\"nope\":6", 1), 6),
            ("a line taken out", |t| t.lines().filter(|l| !l.contains("\"no\":3,")).map(|l| format!("{l}\n")).collect(), 3),
            (
                "two lines exchanged",
                |t| t.replace("\"no\":7,", "\"no\":x,").replace("\"no\":8,", "\"no\":7,").replace("\"no\":x,", "\"no\":8,"),
                7,
            ),
            ("the last line taken out", |t| t.lines().take(8).map(|l| format!("{l}\n")).collect(), 9),
            ("the first line taken out", |t| t.lines().skip(1).map(|l| format!("{l}\n")).collect(), 1),
            ("another actor at the end", |t| t.replace("me@here", "you@here"), 1),
        ];
        for (what, tamper, no) in cases {
            let dir = tempfile::tempdir().unwrap();
            AuditFile::open(dir.path()).unwrap().write(&all).unwrap();
            let log = dir.path().join("log");
            std::fs::write(&log, tamper(std::fs::read_to_string(&log).unwrap())).unwrap();
            let (broken, why) = read(dir.path(), head(&all)).unwrap().broken.unwrap_or_else(|| panic!("{what}"));
            assert_eq!(broken, *no, "{what}: {why}");
            if *no == 9 {
                continue; // the process writes it again, from its copies
            }
            // Opening it hides nothing.
            AuditFile::open(dir.path()).unwrap().write(&all).unwrap();
            assert_eq!(read(dir.path(), head(&all)).unwrap().broken.map(|b| b.0), Some(*no), "{what}");
        }
    }

    #[test]
    fn another_chain_is_never_mixed_with_what_is_there() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("audit");
        let (old, mut anew) = (entries(9), entries(3));
        AuditFile::open(&dir).unwrap().write(&old).unwrap();
        let mut file = AuditFile::open(&dir).unwrap();
        file.write(&anew).unwrap();
        assert_eq!(read(&dir, head(&anew)).unwrap(), AuditRead { entries: anew.clone(), base: AuditHead::default(), broken: None });
        // Of the same length, and other content.
        anew[2].what.push('!');
        anew[2].hash = anew[2].hash_of();
        file.write(&anew).unwrap();
        assert_eq!(read(&dir, head(&anew)).unwrap().entries, anew);
        let kept: Vec<_> = std::fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(kept.len(), 3, "{kept:?}");
    }

    #[test]
    fn full_files_are_put_aside_and_the_chain_goes_on_through_them() {
        let all = entries(400);
        let dir = tempfile::tempdir().unwrap();
        let mut file = AuditFile::open_with(dir.path(), 2000).unwrap();
        for (i, some) in all.chunks(3).enumerate() {
            if i % 10 == 9 {
                file = AuditFile::open_with(dir.path(), 2000).unwrap();
            }
            file.write(some).unwrap();
        }
        let whole = read(dir.path(), head(&all)).unwrap();
        assert_eq!(whole.broken, None);
        assert!(whole.base.no > 0 && whole.entries.len() < 400, "the oldest are gone: {}", whole.base.no);
        assert_eq!(whole.entries.last(), all.last());
        assert_eq!(whole.base.no + whole.entries.len() as u64, 400);
        // A whole file taken out from the middle, and the oldest.
        std::fs::remove_file(dir.path().join("log.3")).unwrap();
        assert!(read(dir.path(), head(&all)).unwrap().broken.is_some());
        let other = tempfile::tempdir().unwrap();
        let mut file = AuditFile::open_with(other.path(), 2000).unwrap();
        all.chunks(3).for_each(|some| file.write(some).unwrap());
        std::fs::remove_file(other.path().join("log.7")).unwrap();
        let broken = read(other.path(), head(&all)).unwrap().broken.expect("it is missed");
        assert!(broken.1.contains("is missing"), "{}", broken.1);
    }
}
