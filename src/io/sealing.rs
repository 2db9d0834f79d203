//! Encryption at rest: the key file, what it wraps, and whether a directory may be opened with it.
//!
//! ```text
//!  key file  = "parhelion-key-1 " | base64 of 32 random bytes | "\n"       0600; made by `parhelion key`
//!  SEALED    = magic "PHLK" | version u16 1 | 0 u16 | key id 8 bytes
//!            | nonce 12 | the directory's own key, 32 bytes, sealed with the key file's | tag 16 | CRC32C u32 of all before it
//! ```
//! Each directory of a copy has a key of its own, drawn when it is made, which never leaves it but wrapped: that is what its files are
//! sealed with ([`crate::volume::Cipher`]: AES-256-GCM-SIV, a random nonce for each seal). `SEALED`, and `SEALED.2` which is the same, are the first files of such a directory. The
//! key id follows from the key file's bytes and tells nothing of them. Decides which directories a process may open: a sealed one with its
//! key, a plain one without, and never the one for the other; there is no falling back to plain files. Never decides what is sealed: the
//! volume does.

use crate::io::disk::{FileDisk, ReadOnlyDisk};
use crate::volume::identity::IDENTITY;
use crate::volume::{Cipher, Disk, DiskError, OpenError, SEAL_BYTES, Sealed};
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Say which key a directory is sealed with, both the same: one that rots is written again from the other.
pub const SEALED: [&str; 2] = ["SEALED", "SEALED.2"];
const SEALED_NEW: &str = "SEALED.tmp";
const MAGIC: [u8; 4] = *b"PHLK";
const VERSION: u16 = 1;
const WRAPPED_AT: usize = 16;
const WRAPPED_BYTES: usize = KEY_BYTES + SEAL_BYTES;
const SEALED_BYTES: usize = WRAPPED_AT + WRAPPED_BYTES + 4;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const KEY_FILE_PREFIX: &str = "parhelion-key-1 ";
/// The beginning of a file that the volume sealed.
const SEALED_FILE_MAGIC: [u8; 4] = *b"PHLS";

/// What tells keys apart and may be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// AES-256-GCM-SIV with one key.
struct Aead(RandomizedNonceKey);

impl Aead {
    fn new(bytes: &[u8; KEY_BYTES]) -> Aead {
        Aead(RandomizedNonceKey::new(&AES_256_GCM_SIV, bytes).expect("BUG: a key of 32 bytes is one"))
    }
}

impl Cipher for Aead {
    fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, DiskError> {
        let failed =
            |_| DiskError::Failed { name: "seal".into(), reason: "the system gives no random numbers, or the cipher failed".into() };
        let mut out = Vec::with_capacity(plain.len() + SEAL_BYTES);
        out.extend_from_slice(&[0; NONCE_BYTES]);
        out.extend_from_slice(plain);
        let (nonce, tag) = self.0.seal_in_place_separate_tag(Aad::from(place), &mut out[NONCE_BYTES..]).map_err(failed)?;
        out[..NONCE_BYTES].copy_from_slice(nonce.as_ref());
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let mut plain = rest.to_vec();
        let len = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place), &mut plain).ok()?.len();
        plain.truncate(len);
        Some(plain)
    }
}

/// The key of a key file. It wraps the keys of directories and seals nothing else.
pub struct Key {
    aead: Aead,
    id: KeyId,
    file: PathBuf,
}

/// Nobody prints a key by accident.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} of {})", self.id, self.file.display())
    }
}

impl Key {
    /// Draws a key and writes it to a new file that only its owner can read.
    ///
    /// # Errors
    /// A sentence: there is a file already, or it cannot be written.
    pub fn make(file: &Path) -> Result<Key, String> {
        let mut bytes = [0; KEY_BYTES];
        random(&mut bytes)?;
        let cannot = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!(
                    "{} exists, and a key is never overwritten: what is sealed with it could not be read any more; name another file",
                    file.display()
                )
            }
            _ => format!("the key cannot be written to {}: {e}", file.display()),
        };
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(cannot)?;
        let text = format!("{KEY_FILE_PREFIX}{}\n", STANDARD.encode(bytes));
        out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(cannot)?;
        if let Some(parent) = file.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::File::open(parent).and_then(|p| p.sync_all()).map_err(cannot)?;
        }
        Ok(Key::of(&bytes, file))
    }

    /// # Errors
    /// A sentence: the file cannot be read, other users can read it, or it holds no key. It says nothing of what stands in it.
    pub fn load(file: &Path) -> Result<Key, String> {
        let shown = file.display();
        let next = "name the file that the data is sealed with as key_file in [encryption]; a new one is made by: parhelion key --out FILE";
        let metadata = std::fs::metadata(file).map_err(|e| format!("the key file {shown} cannot be read: {e}; {next}"))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(format!("the key file {shown} can be read by other users (mode {mode:04o}); run: chmod 600 {shown}"));
        }
        let text = std::fs::read(file).map_err(|e| format!("the key file {shown} cannot be read: {e}; {next}"))?;
        let bytes = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().strip_prefix(KEY_FILE_PREFIX));
        let bytes = bytes.and_then(|encoded| STANDARD.decode(encoded).ok()).and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| format!("{shown} is no key file: it must hold the one line that parhelion key wrote; {next}"))?;
        Ok(Key::of(&bytes, file))
    }

    fn of(bytes: &[u8; KEY_BYTES], file: &Path) -> Key {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), b"parhelion key id");
        let id = KeyId(tag.as_ref()[..8].try_into().expect("BUG: a hash is longer"));
        Key { aead: Aead::new(bytes), id, file: file.to_path_buf() }
    }

    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The file of a directory whose key is `own`.
    fn wrap(&self, own: &[u8; KEY_BYTES]) -> Result<Header, DiskError> {
        let mut out = Vec::with_capacity(SEALED_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.id.0);
        let wrapped = self.aead.seal(&out, own)?;
        out.extend_from_slice(&wrapped);
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        Ok(out.try_into().expect("BUG: the layout of SEALED"))
    }
}

fn random(bytes: &mut [u8]) -> Result<(), String> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| "the system gives no random numbers".to_owned())
}

fn damaged(reason: &str) -> OpenError {
    OpenError::Damaged { what: SEALED[0].into(), reason: reason.into() }
}

type Header = [u8; SEALED_BYTES];

/// What the files say that say it; empty: there is none. One that is damaged counts for nothing while the other is not.
fn headers(disk: &dyn Disk) -> Result<Vec<Header>, OpenError> {
    let mut good = Vec::new();
    let mut bad = None;
    for name in SEALED {
        match header(disk, name) {
            Ok(header) => good.extend(header),
            Err(e @ OpenError::Damaged { .. }) => bad = Some(e),
            Err(e) => return Err(e),
        }
    }
    match bad {
        Some(e) if good.is_empty() => Err(e),
        _ => Ok(good),
    }
}

fn header(disk: &dyn Disk, name: &str) -> Result<Option<Header>, OpenError> {
    let damaged = |reason: &str| Err(OpenError::Damaged { what: name.into(), reason: reason.into() });
    if disk.len(name)?.is_none() {
        return Ok(None);
    }
    let bytes = disk.read(name, 0, SEALED_BYTES + 1)?;
    let Ok(header) = Header::try_from(&bytes[..]) else { return damaged("it has not the length that was written") };
    let (said, sum) = header.split_last_chunk::<4>().expect("BUG: it is longer");
    if *sum != crc32c::crc32c(said).to_le_bytes() || header[..4] != MAGIC {
        return damaged("its checksum does not match");
    }
    match u16::from_le_bytes([header[4], header[5]]) {
        VERSION => Ok(Some(header)),
        version => Err(OpenError::Unsupported { file: name.into(), version }),
    }
}

fn id_of(header: &Header) -> KeyId {
    KeyId(header[8..WRAPPED_AT].try_into().expect("BUG: eight bytes"))
}

/// The directory's own key.
fn unwrap(header: &Header, key: &Key) -> Option<[u8; KEY_BYTES]> {
    let own = key.aead.open(&header[..WRAPPED_AT], &header[WRAPPED_AT..WRAPPED_AT + WRAPPED_BYTES])?;
    own.try_into().ok()
}

/// Each in one step: at a crash it is the old file or the new one.
fn publish(disk: &dyn Disk, header: &Header) -> Result<(), DiskError> {
    for name in SEALED {
        disk.remove(SEALED_NEW)?;
        disk.write(SEALED_NEW, 0, &[Bytes::copy_from_slice(header)])?;
        disk.sync(SEALED_NEW)?;
        disk.rename(SEALED_NEW, name)?;
    }
    Ok(())
}

/// Whether a file lies here that was published, and is sealed; `None`: the directory is as new.
fn holds_sealed(disk: &dyn Disk) -> Result<Option<bool>, DiskError> {
    let Some(any) = disk.list()?.into_iter().find(|n| !n.ends_with(".tmp") && !SEALED.contains(&n.as_str())) else { return Ok(None) };
    // The first file of every directory; where it is gone any other says as much.
    let name = if disk.len(IDENTITY)?.is_some() { IDENTITY } else { &any };
    Ok(Some(disk.read(name, 0, 4)?[..] == SEALED_FILE_MAGIC))
}

/// What the directory `dir`, which lies on `disk`, is sealed with, and its own key; `None`: it is plain and may be. Writes nothing.
fn found(disk: &dyn Disk, dir: &Path, key: Option<&Key>) -> Result<Option<(Header, [u8; KEY_BYTES])>, OpenError> {
    let dir = dir.display();
    let headers = headers(disk)?;
    let refuse = |sentence: String| Err(OpenError::Key(sentence));
    match (headers.first(), key) {
        (Some(first), Some(key)) => {
            // While the key is changed the two differ.
            let Some(header) = headers.iter().find(|h| id_of(h) == key.id) else {
                return refuse(format!(
                    "{dir} is sealed with the key {}, and {} holds the key {}: name the right file as key_file in [encryption]; nothing was read or written",
                    id_of(first),
                    key.file.display(),
                    key.id
                ));
            };
            let own = unwrap(header, key).ok_or_else(|| damaged("the directory's key in it does not open"))?;
            Ok(Some((*header, own)))
        }
        (Some(first), None) => refuse(format!(
            "{dir} is sealed with the key {}, and no key is named: name its file as key_file in [encryption]; nothing was read or written",
            id_of(first)
        )),
        (None, key) => match (holds_sealed(disk)?, key) {
            (Some(true), Some(_)) => Err(damaged("it is missing beside sealed files")),
            (Some(true), None) => refuse(format!(
                "{dir} holds sealed files, and no key is named: name the key file as key_file in [encryption]; nothing was read or written"
            )),
            (Some(false), Some(key)) => refuse(format!(
                "{dir} holds plain files, and {} is named as key_file: what lies there is not sealed afterwards. Take [encryption] out of the file, or give it an \
                 empty data_dir: a region is seeded anew from another one; nothing was read or written",
                key.file.display()
            )),
            (None, _) | (Some(false), None) => Ok(None),
        },
    }
}

/// The directory `dir` on `disk`, as its files are to be read and written. A new one is sealed from here on, if there is a key.
///
/// # Errors
/// [`OpenError::Key`], with what to do: it is sealed with another key, or with one and none is named, or it is plain and one is named.
/// [`OpenError::Damaged`]: nobody can tell any more; its peers rebuild the copy.
pub fn open(disk: Arc<dyn Disk>, dir: &Path, key: Option<&Key>) -> Result<Arc<dyn Disk>, OpenError> {
    let own = match (found(&*disk, dir, key)?, key) {
        (None, None) => return Ok(disk),
        (Some((header, own)), _) => {
            if SEALED.iter().any(|name| !matches!(self::header(&*disk, name), Ok(Some(h)) if h == header)) {
                publish(&*disk, &header)?;
            }
            own
        }
        (None, Some(key)) => {
            let mut own = [0; KEY_BYTES];
            random(&mut own).map_err(|reason| DiskError::Failed { name: SEALED[0].into(), reason })?;
            publish(&*disk, &key.wrap(&own)?)?;
            own
        }
    };
    Ok(Arc::new(Sealed { disk, cipher: Arc::new(Aead::new(&own)) }))
}

/// A directory that is looked at and not changed. One that is empty stays so.
///
/// # Errors
/// As [`open`].
pub fn look(dir: &Path, key: Option<&Key>) -> Result<Arc<dyn Disk>, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk::open(dir)?);
    Ok(match found(&*disk, dir, key)? {
        None => disk,
        Some((_, own)) => Arc::new(Sealed { disk, cipher: Arc::new(Aead::new(&own)) }),
    })
}

/// Before a process starts its copies: no directory among `dirs` may be refused for its key. Damage in one is for the copy to tell.
///
/// # Errors
/// The sentence of the first one that is.
pub fn check(dirs: impl IntoIterator<Item = PathBuf>, key: Option<&Key>) -> Result<(), String> {
    for dir in dirs.into_iter().filter(|dir| dir.is_dir()) {
        if let Err(OpenError::Key(sentence)) = look(&dir, key) {
            return Err(sentence);
        }
    }
    Ok(())
}

/// Wraps the key of the directory `dir` with `new` in place of `old`; the files stay as they are. `true`: it was done here; `false`: it
/// had been done before.
///
/// # Errors
/// A sentence: a process uses a directory, or it is not sealed with `old`. What was done before stays, and the same again goes on.
pub fn rotate(dir: &Path, old: &Key, new: &Key) -> Result<bool, String> {
    let shown = dir.display();
    let disk = FileDisk::open(dir).map_err(|e| format!("{shown}: {e}"))?;
    let headers = headers(&disk).map_err(|e| format!("{shown}: {e}"))?;
    if headers.is_empty() {
        return Err(format!("{shown} is not sealed: there is no key in it to wrap anew"));
    }
    let own = match headers.iter().find(|h| id_of(h) == old.id) {
        Some(header) => unwrap(header, old).ok_or_else(|| format!("{shown}: the key in {} does not open", SEALED[0]))?,
        None if headers.iter().any(|h| id_of(h) == new.id) => return Ok(false),
        None => return Err(format!("{shown} is sealed with neither key: not with {} and not with {}", old.id, new.id)),
    };
    let header = new.wrap(&own).map_err(|e| format!("{shown}: {e}"))?;
    publish(&disk, &header).map_err(|e| format!("{shown}: {e}"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ClusterName, CopyId, RegionName};
    use crate::sim::disk::SimDisk;
    use crate::volume::identity::{self, Home};
    use crate::volume::membership::Incarnation;
    use std::collections::{BTreeMap, BTreeSet};

    fn home() -> Home {
        Home { cluster: ClusterName::new("sun").unwrap(), region: RegionName::new("us-east").unwrap(), group: 0, slot: CopyId(0) }
    }

    fn settled(dir: &Path, key: Option<&Key>) -> Result<Incarnation, OpenError> {
        let disk = open(Arc::new(FileDisk::open(dir)?), dir, key)?;
        identity::settle(&*disk, &home(), Incarnation(7))
    }

    fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    fn contains(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|w| w == part)
    }

    #[test]
    fn a_key_is_made_once_and_read_only_from_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let key = Key::make(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Key::load(&file).unwrap().id() == key.id());
        assert!(Key::make(&dir.path().join("other")).unwrap().id() != key.id());
        let text = std::fs::read_to_string(&file).unwrap();
        let secret = text.trim_end().strip_prefix(KEY_FILE_PREFIX).unwrap();
        let again = Key::make(&file).unwrap_err();
        assert!(again.contains("never overwritten"), "{again}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        assert!(!format!("{key:?}").contains(secret), "{key:?}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Key::load(&file).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&file, &text[..text.len() - 3]).unwrap();
        let cut = Key::load(&file).unwrap_err();
        assert!(cut.contains("is no key file") && !cut.contains(&secret[..20]), "{cut}");
        assert!(Key::load(&dir.path().join("nowhere")).unwrap_err().contains("parhelion key --out"));
    }

    #[test]
    fn a_directory_opens_with_its_own_key_only_and_whatever_is_refused_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| Key::make(&dir.path().join(name)).unwrap());
        let (sealed, plain) = (dir.path().join("a1"), dir.path().join("a2"));
        settled(&sealed, Some(&one)).unwrap();
        settled(&plain, None).unwrap();
        let before = (files(&sealed), files(&plain));
        assert!(before.0.values().all(|bytes| !contains(bytes, b"us-east")) && before.1.values().any(|bytes| contains(bytes, b"us-east")));
        assert_eq!((settled(&sealed, Some(&one)), settled(&plain, None)), (Ok(Incarnation(7)), Ok(Incarnation(7))));
        let refused = |dir: &Path, key: Option<&Key>, words: &[&str]| {
            let OpenError::Key(sentence) = settled(dir, key).unwrap_err() else { panic!("another error") };
            assert!(words.iter().all(|w| sentence.contains(w)) && sentence.contains("nothing was read or written"), "{sentence}");
            assert_eq!(check([dir.to_path_buf()], key), Err(sentence.clone()));
            assert!(matches!(look(dir, key).err(), Some(OpenError::Key(s)) if s == sentence));
        };
        refused(&sealed, Some(&two), &[&one.id().to_string(), &two.id().to_string(), "name the right file"]);
        refused(&sealed, None, &[&one.id().to_string(), "no key is named"]);
        refused(&plain, Some(&one), &["holds plain files", "seeded anew"]);
        assert_eq!(check([sealed.clone(), dir.path().join("nowhere")], Some(&one)), Ok(()));
        assert_eq!((files(&sealed), files(&plain)), before);
        // One that is empty is looked at and stays so.
        let empty = dir.path().join("b1");
        std::fs::create_dir(&empty).unwrap();
        look(&empty, Some(&one)).unwrap();
        assert!(files(&empty).is_empty());
    }

    #[test]
    fn one_file_that_says_the_key_is_mended_from_the_other_and_without_both_it_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::make(&dir.path().join("key")).unwrap();
        let copy = dir.path().join("a1");
        settled(&copy, Some(&key)).unwrap();
        let [first, second] = SEALED.map(|name| copy.join(name));
        let good = std::fs::read(&first).unwrap();
        assert_eq!((good.len(), std::fs::read(&second).unwrap() == good), (SEALED_BYTES, true));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            for file in [&first, &second] {
                std::fs::write(file, &bad).unwrap();
                settled(&copy, Some(&key)).unwrap();
                assert!(std::fs::read(file).unwrap() == good, "flipped at {at}, and not mended");
            }
            for file in [&first, &second] {
                std::fs::write(file, &bad).unwrap();
            }
            assert!(matches!(settled(&copy, Some(&key)), Err(OpenError::Damaged { .. })), "flipped at {at}");
            std::fs::write(&first, &good).unwrap();
            settled(&copy, Some(&key)).unwrap();
        }
        std::fs::remove_file(&first).unwrap();
        std::fs::remove_file(&second).unwrap();
        assert!(matches!(settled(&copy, Some(&key)), Err(OpenError::Damaged { .. })));
        assert!(matches!(settled(&copy, None), Err(OpenError::Key(_))));
    }

    #[test]
    fn power_lost_while_a_directory_is_made_leaves_one_that_opens() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::make(&dir.path().join("key")).unwrap();
        for cut in 1..12 {
            let disk = Arc::new(SimDisk::plain(cut));
            let make = || {
                let disk = open(disk.clone(), dir.path(), Some(&key))?;
                identity::settle(&*disk, &home(), Incarnation(7))
            };
            disk.cut_power_at(cut);
            let first = make();
            disk.crash();
            disk.restart();
            assert_eq!(make(), Ok(Incarnation(7)), "cut at {cut}, first {first:?}");
        }
    }

    #[test]
    fn no_nonce_is_drawn_twice_and_the_same_bytes_never_look_the_same() {
        let aead = Aead::new(&[3; KEY_BYTES]);
        let sealed: Vec<Vec<u8>> = (0..20_000).map(|_| aead.seal(b"place", b"the same").unwrap()).collect();
        let nonces: BTreeSet<&[u8]> = sealed.iter().map(|s| &s[..NONCE_BYTES]).collect();
        assert_eq!(nonces.len(), sealed.len());
        assert!(sealed.iter().all(|s| aead.open(b"place", s).as_deref() == Some(b"the same") && aead.open(b"other", s).is_none()));
    }

    #[test]
    fn another_key_file_wraps_what_the_first_did_and_the_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, three] = ["one", "two", "three"].map(|name| Key::make(&dir.path().join(name)).unwrap());
        let copy = dir.path().join("a1");
        settled(&copy, Some(&one)).unwrap();
        let identity = std::fs::read(copy.join(IDENTITY)).unwrap();
        assert!(rotate(&copy, &two, &three).unwrap_err().contains("neither"));
        assert_eq!((rotate(&copy, &one, &two), rotate(&copy, &one, &two)), (Ok(true), Ok(false)));
        assert_eq!(std::fs::read(copy.join(IDENTITY)).unwrap(), identity);
        assert_eq!(settled(&copy, Some(&two)), Ok(Incarnation(7)));
        assert!(matches!(settled(&copy, Some(&one)), Err(OpenError::Key(_))));
        // The power went between the two files: either key opens it, and the next start or the same order makes them the same.
        let [_, second] = SEALED.map(|name| copy.join(name));
        let by_two = std::fs::read(&second).unwrap();
        assert_eq!(rotate(&copy, &two, &three), Ok(true));
        std::fs::write(&second, &by_two).unwrap();
        assert_eq!((rotate(&copy, &two, &three), rotate(&copy, &two, &three)), (Ok(true), Ok(false)));
        std::fs::write(&second, &by_two).unwrap();
        assert_eq!(settled(&copy, Some(&two)), Ok(Incarnation(7)));
        assert!(matches!(settled(&copy, Some(&three)), Err(OpenError::Key(_))));
        let _owner = FileDisk::open(&copy).unwrap();
        assert!(rotate(&copy, &two, &three).unwrap_err().contains("another process uses it"));
    }
}
