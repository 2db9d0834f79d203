//! Where the directories of copies are: below the data directory, unless a copy was replaced.
//!
//! Decides nothing: the membership on the copies says where each slot lives, and `PLACES` beside them is a note of it, so that a start
//! finds them. A note that is old costs a moment: the record on the others says where the copy is, and it is opened there.

use crate::base::{CopyId, Layout, MemberId};
use crate::io::disk::FileDisk;
use crate::io::sealing::{self, Key, SEALED};
use crate::volume::identity::{self, Home};
use crate::volume::membership::{Incarnation, PLACE_BYTES_MAX};
use crate::volume::{Disk, DiskError, OpenError};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PLACES: &str = "PLACES";
const NOTE_BYTES_MAX: usize = 6 * (PLACE_BYTES_MAX + 8);

/// For each slot the directory its members' directories are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    default: PathBuf,
    moved: [Option<String>; 6],
}

impl Places {
    /// # Errors
    /// When the note cannot be read, or is none.
    pub fn load(copies: &Path) -> std::io::Result<Places> {
        let bad = |line: &str| {
            let text = format!("{} does not say where a copy is: '{line}'; a line is `a1 /path`", copies.join(PLACES).display());
            std::io::Error::new(std::io::ErrorKind::InvalidData, text)
        };
        let mut places = Places { default: copies.to_path_buf(), moved: Default::default() };
        let note = match std::fs::read(copies.join(PLACES)) {
            Ok(bytes) if bytes.len() > NOTE_BYTES_MAX => return Err(bad("it is too long")),
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| bad("it is no text"))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(places),
            Err(e) => return Err(e),
        };
        for line in note.lines().filter(|l| !l.is_empty()) {
            let (slot, place) = line.split_once(' ').ok_or_else(|| bad(line))?;
            let slot: CopyId = slot.parse().map_err(|_| bad(line))?;
            places.moved[slot.index()] = Some(place.to_owned());
        }
        Ok(places)
    }

    /// Notes where those slots live now; `true`: something changed.
    ///
    /// # Errors
    /// When it cannot be written. The record on the copies is what counts.
    pub fn note(&mut self, places: BTreeMap<CopyId, Option<String>>) -> Result<bool, DiskError> {
        let mut moved = self.moved.clone();
        for (slot, place) in places {
            moved[slot.index()] = place;
        }
        if self.moved == moved {
            return Ok(false);
        }
        self.moved = moved;
        let lines = CopyId::all().into_iter().zip(&self.moved).filter_map(|(slot, place)| Some(format!("{slot} {}\n", place.as_ref()?)));
        let text: String = lines.collect();
        let disk = FileDisk::open(&self.default)?;
        disk.remove("PLACES.tmp")?;
        disk.write("PLACES.tmp", 0, &[Bytes::from(text)])?;
        disk.sync("PLACES.tmp")?;
        disk.rename("PLACES.tmp", PLACES)?;
        Ok(true)
    }

    #[must_use]
    pub fn directory(&self, member: MemberId) -> PathBuf {
        self.base(self.moved[member.copy.index()].as_deref()).join(member.to_string())
    }

    /// The directory that `place` names.
    #[must_use]
    pub fn base(&self, place: Option<&str>) -> PathBuf {
        place.map_or_else(|| self.default.clone(), PathBuf::from)
    }
}

/// Makes the directories of a candidate in `place`, one for each group, and draws who they are. Done again it says the same.
///
/// # Errors
/// A sentence: they cannot be made, are in use, or hold a copy's data.
pub fn prepare(
    place: &str,
    slot: CopyId,
    layout: Layout,
    key: Option<&Key>,
    home: impl Fn(MemberId) -> Home,
) -> Result<Vec<Incarnation>, String> {
    if !Path::new(place).is_absolute() || place.len() > PLACE_BYTES_MAX || place.contains('\n') {
        return Err(format!("'{place}' is no absolute path of a directory"));
    }
    let one = |group| {
        let member = MemberId { group, copy: slot };
        let path = Path::new(place).join(member.to_string());
        let disk = Arc::new(FileDisk::open(&path).map_err(|e| e.to_string())?);
        let disk = sealing::open(disk, &path, key).map_err(|e| e.to_string())?;
        let fresh = super::fresh_incarnation().map_err(|e| e.to_string())?;
        let incarnation = identity::settle(&*disk, &home(member), fresh).map_err(|e| format!("{}: {e}", path.display()))?;
        // It is said again, and relied on, also when the first time the directory could not be synced.
        disk.sync_names().map_err(|e| e.to_string())?;
        let held = disk.list().map_err(|e| e.to_string())?.into_iter().find(|n| n != identity::IDENTITY && !SEALED.contains(&n.as_str()));
        match held {
            None => Ok(incarnation),
            Some(name) => Err(format!("{} is not empty (there is '{name}'); name a directory for a new copy", path.display())),
        }
    };
    layout.all_groups().map(one).collect()
}

/// Marks the directory of a copy that left, so that nobody opens it for what it was. One that is gone needs no mark.
pub fn retire(directory: &Path, by: Incarnation, place: &str, key: Option<&Key>) {
    if !directory.exists() {
        return;
    }
    let mark = || -> Result<(), OpenError> {
        let disk = sealing::open(Arc::new(FileDisk::open(directory)?), directory, key)?;
        Ok(identity::retire(&*disk, by, place)?)
    };
    match mark() {
        Ok(()) => tracing::info!(kept = %directory.display(), "the directory of the copy that left is kept and marked; move it away"),
        // It has no vote, with the mark or without it.
        Err(e) => tracing::warn!(kept = %directory.display(), "the directory of the copy that left cannot be marked: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_survives_and_says_where_each_member_is() {
        let dir = tempfile::tempdir().unwrap();
        let copies = dir.path().join("copies");
        let a1 = MemberId::of(crate::base::GroupId(1))[0];
        let mut places = Places::load(&copies).unwrap();
        assert_eq!(places.directory(a1), copies.join("a1.g1"));
        let moved = BTreeMap::from([(CopyId(0), Some("/mnt/a new one".to_owned()))]);
        assert_eq!(places.note(moved.clone()), Ok(true));
        assert_eq!(places.note(moved), Ok(false));
        let again = Places::load(&copies).unwrap();
        assert_eq!(again.directory(a1), Path::new("/mnt/a new one/a1.g1"));
        assert_eq!(again, places);
        std::fs::write(copies.join(PLACES), "a9 /x\n").unwrap();
        assert!(Places::load(&copies).unwrap_err().to_string().contains("a9 /x"));
    }
}
