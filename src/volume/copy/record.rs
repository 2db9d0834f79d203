//! What lies in a log file, byte for byte, and how it is read in order.
//!
//! ```text
//!  log file = header (see codec) frame+ (mark frame+)*  zeros up to the reserved length
//!  mark     = magic "PHLN" | synced seq u64 | durable: epoch u64, generation u64, seq u64, LSN u64, checksum u32
//!             | CRC32C u32 of (lineage, file number, own offset, all of it)
//! ```
//! A mark opens every batch behind the first and says: all frames up to `synced seq` were fsynced before this batch was
//! written. So a bad record that a later mark covers is damage, and one that none covers is where the last write tore.
//! It also says, as the header does, up to where the region told this copy that the log is durable: four copies said that they had
//! fsynced that much. A recovery that finds less knows that disks lied ([`crate::volume::recovery`]). The mark's checksum covers its place, so that bytes
//! in a frame's payload are never taken for one. Files of version 1, whose marks ("PHLM") and header say nothing of that, are read as well.
//!
//! On a disk with a cipher the header and each frame are sealed ([`super::sealed`]), and so is each mark; the free space is as it is:
//! ```text
//!  mark     = magic "PHLn" | nonce 12 | what a mark says, 44 bytes, sealed | tag 16
//! ```
//! The place of a mark and of a frame, which its tag covers, is lineage, file number, own offset. There is one form in a directory: neither
//! is ever taken for the other.

use super::{codec, sealed};
use crate::base::{Epoch, Generation, LineageId, LogEnd, Lsn, Seq};
use crate::log::{DecodeError, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_LIMIT, Frame, History};
use crate::volume::{Cipher, Disk, DiskError, SEAL_BYTES};
use bytes::Bytes;

const FILE_MAGIC: [u8; 4] = *b"PHLF";
const FILE_VERSION: u16 = 2;
/// Without `durable`.
const FILE_VERSION_PLAIN: u16 = 1;
const MARK_MAGIC: [u8; 4] = *b"PHLN";
const MARK_BYTES: usize = 52;
/// What a mark says, between its magic and its checksum.
const MARK_SAID_BYTES: usize = 44;
const MARK_SEALED_MAGIC: [u8; 4] = *b"PHLn";
const MARK_SEALED_BYTES: usize = 4 + MARK_SAID_BYTES + SEAL_BYTES;
/// Of the header of a log file: which file it is, it says itself.
const HEADER_PLACE: &[u8] = b"log";
/// Of files of version 1: without `durable`.
const MARK_PLAIN_MAGIC: [u8; 4] = *b"PHLM";
const MARK_PLAIN_BYTES: usize = 16;
/// The zeros behind the log are skipped in such steps.
const SEARCH_BYTES: usize = 64 << 10;
static ZEROS: [u8; SEARCH_BYTES] = [0; SEARCH_BYTES];

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct FileHeader {
    pub number: u64,
    pub lineage: LineageId,
    /// The file that holds `before`; 0 when the log begins with this one.
    pub previous: u64,
    /// The log's end before this file's first frame. Frames behind it in older files are void.
    pub before: LogEnd,
    /// Terms up to `before`.
    pub history: History,
    /// Frames up to here were fsynced before the file got its name.
    pub proven: Seq,
    /// Up to here the log was said to be durable in the region.
    pub durable: LogEnd,
}

/// A header as version 1 has it.
#[derive(bincode::Encode, bincode::Decode)]
struct PlainHeader {
    number: u64,
    lineage: LineageId,
    previous: u64,
    before: LogEnd,
    history: History,
    proven: Seq,
}

impl From<PlainHeader> for FileHeader {
    fn from(p: PlainHeader) -> FileHeader {
        let PlainHeader { number, lineage, previous, before, history, proven } = p;
        FileHeader { number, lineage, previous, before, history, proven, durable: LogEnd::EMPTY }
    }
}

impl FileHeader {
    /// As it is written to `disk`.
    pub(super) fn encode(&self, disk: &dyn Disk) -> Result<Bytes, DiskError> {
        sealed::seal(disk, HEADER_PLACE, codec::encode(FILE_MAGIC, FILE_VERSION, self))
    }

    /// The header, and where the first record begins.
    pub(super) fn read(disk: &dyn Disk, name: &str) -> Result<Result<(FileHeader, u64), codec::CodecError>, DiskError> {
        let head = disk.read(name, 0, 4096)?;
        let whole = match disk.cipher() {
            None => codec::whole_len(&head, FILE_MAGIC),
            Some(_) => {
                let longest = codec::CHECKED_HEADER_BYTES + codec::BODY_BYTES_MAX;
                sealed::whole_len(&head, longest).ok_or(codec::CodecError::Corrupt("it is not sealed, and what is here is"))
            }
        };
        let len = match whole {
            Ok(len) => len,
            Err(e) => return Ok(Err(e)),
        };
        let bytes = if len <= head.len() { head.slice(..len) } else { disk.read(name, 0, len)? };
        let bytes = match disk.cipher() {
            None => bytes,
            Some(cipher) => match sealed::open(cipher, HEADER_PLACE, &bytes) {
                Some(bytes) => bytes,
                None => return Ok(Err(codec::CodecError::Corrupt(sealed::BROKEN))),
            },
        };
        let header = match codec::decode::<FileHeader>(&bytes, FILE_MAGIC, FILE_VERSION) {
            Err(codec::CodecError::Unsupported(FILE_VERSION_PLAIN)) => {
                codec::decode::<PlainHeader>(&bytes, FILE_MAGIC, FILE_VERSION_PLAIN).map(FileHeader::from)
            }
            other => other,
        };
        Ok(header.map(|header| (header, len as u64)))
    }
}

/// What a mark says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// All frames up to here were fsynced before what follows was written.
    pub synced: Seq,
    /// Up to here the log was said to be durable in the region.
    pub durable: LogEnd,
}

impl Mark {
    /// What both prove together.
    pub(super) fn and(self, other: Mark) -> Mark {
        Mark { synced: self.synced.max(other.synced), durable: self.durable.max(other.durable) }
    }
}

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub lineage: LineageId,
    /// Of the log file.
    pub number: u64,
    pub at: u64,
}

impl Place {
    fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.lineage.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..].copy_from_slice(&self.at.to_le_bytes());
        bytes
    }

    /// Of a mark without its checksum.
    fn mark_sum(self, said: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.bytes()), said)
    }
}

/// Length of a mark on `disk`.
pub(super) fn mark_bytes(disk: &dyn Disk) -> u64 {
    mark_len(disk.cipher()) as u64
}

fn mark_len(cipher: Option<&dyn Cipher>) -> usize {
    if cipher.is_some() { MARK_SEALED_BYTES } else { MARK_BYTES }
}

/// Length of `frames` on `disk`.
pub(super) fn frames_bytes(disk: &dyn Disk, frames: &[Frame]) -> u64 {
    let one = |plain: usize| if disk.cipher().is_some() { sealed::len_of(plain) } else { plain };
    frames.iter().map(|f| one(f.bytes().len()) as u64).sum()
}

/// Puts `frames` behind `parts` as they are written to `disk`, the first of them at `place`.
pub(super) fn encode_frames(disk: &dyn Disk, mut place: Place, frames: &[Frame], parts: &mut Vec<Bytes>) -> Result<(), DiskError> {
    for frame in frames {
        let bytes = sealed::seal(disk, &place.bytes(), frame.bytes().clone())?;
        place.at += bytes.len() as u64;
        parts.push(bytes);
    }
    Ok(())
}

/// A mark as it is written to `disk` at `place`.
pub(super) fn encode_mark(disk: &dyn Disk, place: Place, mark: Mark) -> Result<Bytes, DiskError> {
    let Mark { synced, durable } = mark;
    let mut said = Vec::with_capacity(MARK_SAID_BYTES);
    for word in [synced.0, durable.epoch.0, durable.generation.0, durable.seq.0, durable.end_lsn.0] {
        said.extend_from_slice(&word.to_le_bytes());
    }
    said.extend_from_slice(&durable.checksum.to_le_bytes());
    let mut out = Vec::with_capacity(MARK_SEALED_BYTES);
    match disk.cipher() {
        None => {
            out.extend_from_slice(&MARK_MAGIC);
            out.extend_from_slice(&said);
            out.extend_from_slice(&place.mark_sum(&said).to_le_bytes());
        }
        Some(cipher) => {
            out.extend_from_slice(&MARK_SEALED_MAGIC);
            out.extend_from_slice(&cipher.seal(&place.bytes(), &said)?);
        }
    }
    assert_eq!(out.len(), mark_len(disk.cipher()), "BUG: a mark's length");
    Ok(Bytes::from(out))
}

/// The mark at the beginning of `bytes`, and its length.
fn decode_mark(cipher: Option<&dyn Cipher>, bytes: &[u8], place: Place) -> Option<(Mark, usize)> {
    let magic = bytes.get(..4)?;
    if let Some(cipher) = cipher {
        let sealed = bytes.get(4..MARK_SEALED_BYTES).filter(|_| magic == MARK_SEALED_MAGIC)?;
        return Some((decode_said(&cipher.open(&place.bytes(), sealed)?)?, MARK_SEALED_BYTES));
    }
    let len = if magic == MARK_MAGIC {
        MARK_BYTES
    } else if magic == MARK_PLAIN_MAGIC {
        MARK_PLAIN_BYTES
    } else {
        return None;
    };
    let (said, sum) = bytes.get(4..len)?.split_last_chunk::<4>()?;
    if *sum != place.mark_sum(said).to_le_bytes() {
        return None;
    }
    Some((decode_said(said)?, len))
}

/// What a mark says, in the form of today or that of version 1.
fn decode_said(said: &[u8]) -> Option<Mark> {
    let word = |i: usize| u64::from_le_bytes(said[i * 8..][..8].try_into().expect("BUG: eight bytes"));
    let durable = match said.len() {
        MARK_SAID_BYTES => {
            let checksum = u32::from_le_bytes(said[40..].try_into().expect("BUG: four bytes"));
            LogEnd { epoch: Epoch(word(1)), generation: Generation(word(2)), seq: Seq(word(3)), end_lsn: Lsn(word(4)), checksum }
        }
        8 => LogEnd::EMPTY,
        _ => return None,
    };
    Some(Mark { synced: Seq(word(0)), durable })
}

pub(super) enum Record {
    Frame(Frame),
    Mark(Mark),
    /// Nothing valid begins here.
    Invalid,
    /// A frame of a format that this version does not read.
    Unsupported(u16),
}

/// Reads the records of one file in order.
pub(super) struct RecordReader<'a> {
    disk: &'a dyn Disk,
    name: &'a str,
    number: u64,
    lineage: LineageId,
    /// Offset in the file of the first byte of `buffer`.
    at: u64,
    buffer: Bytes,
    /// How much is read at once.
    chunk_bytes: usize,
}

impl<'a> RecordReader<'a> {
    pub(super) fn new(disk: &'a dyn Disk, name: &'a str, number: u64, lineage: LineageId, at: u64, chunk_bytes: usize) -> RecordReader<'a> {
        RecordReader { disk, name, number, lineage, at, buffer: Bytes::new(), chunk_bytes }
    }

    /// Offset of the next record.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    pub(super) fn next(&mut self) -> Result<Record, DiskError> {
        let cipher = self.disk.cipher();
        let head_bytes = FRAME_HEADER_BYTES.max(mark_len(cipher));
        if self.buffer.len() < head_bytes {
            self.fill(head_bytes)?;
        }
        if let Some((mark, len)) = decode_mark(cipher, &self.buffer, self.place()) {
            self.advance(len);
            return Ok(Record::Mark(mark));
        }
        if let Some(cipher) = cipher {
            return self.next_sealed(cipher);
        }
        loop {
            match Frame::decode(&self.buffer) {
                Ok(frame) => {
                    self.advance(frame.bytes().len());
                    return Ok(Record::Frame(frame));
                }
                Err(DecodeError::Incomplete { needed_bytes }) => {
                    // Bounded: a frame's header bounds its length before this asks for it.
                    debug_assert!(needed_bytes <= FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_LIMIT);
                    if needed_bytes <= self.buffer.len() || !self.fill(needed_bytes)? {
                        return Ok(Record::Invalid);
                    }
                }
                // A write can tear inside the version field, and then reads as version 0.
                Err(DecodeError::Corrupt { .. } | DecodeError::Unsupported { version: 0 }) => return Ok(Record::Invalid),
                Err(DecodeError::Unsupported { version }) => {
                    return Ok(if self.is_ours_but_for_the_version()? { Record::Invalid } else { Record::Unsupported(version) });
                }
            }
        }
    }

    fn next_sealed(&mut self, cipher: &dyn Cipher) -> Result<Record, DiskError> {
        // Bounded before anything is read for it.
        let Some(len) = sealed::whole_len(&self.buffer, FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_LIMIT) else { return Ok(Record::Invalid) };
        if len > self.buffer.len() && !self.fill(len)? {
            return Ok(Record::Invalid);
        }
        let Some(bytes) = sealed::open(cipher, &self.place().bytes(), &self.buffer[..len]) else { return Ok(Record::Invalid) };
        Ok(match Frame::decode(&bytes) {
            Ok(frame) if frame.bytes().len() == bytes.len() => {
                self.advance(len);
                Record::Frame(frame)
            }
            // The seal holds, so no bit of it was flipped.
            Err(DecodeError::Unsupported { version }) => Record::Unsupported(version),
            _ => Record::Invalid,
        })
    }

    fn place(&self) -> Place {
        Place { lineage: self.lineage, number: self.number, at: self.at }
    }

    /// Whether this is a frame of today's format with flipped bits in its version: damage, which the copy's peers can mend, and
    /// not the work of a newer parhelion, which they cannot.
    fn is_ours_but_for_the_version(&mut self) -> Result<bool, DiskError> {
        loop {
            match Frame::decode_as_today(&self.buffer) {
                Ok(_) => return Ok(true),
                Err(DecodeError::Incomplete { needed_bytes }) if needed_bytes > self.buffer.len() => {
                    if !self.fill(needed_bytes)? {
                        return Ok(false);
                    }
                }
                Err(_) => return Ok(false),
            }
        }
    }

    fn advance(&mut self, by: usize) {
        self.buffer = self.buffer.slice(by..);
        self.at += by as u64;
    }

    /// Whether at least `needed` bytes are there now.
    fn fill(&mut self, needed: usize) -> Result<bool, DiskError> {
        self.buffer = self.disk.read(self.name, self.at, self.chunk_bytes.max(needed))?;
        Ok(self.buffer.len() >= needed)
    }
}

/// What all marks at or behind `from` prove together.
pub(super) fn search_marks(disk: &dyn Disk, name: &str, number: u64, lineage: LineageId, from: u64) -> Result<Option<Mark>, DiskError> {
    let cipher = disk.cipher();
    let mut best: Option<Mark> = None;
    let mut at = from;
    loop {
        let bytes = disk.read(name, at, SEARCH_BYTES)?;
        if bytes != ZEROS[..bytes.len()] {
            for i in (0..bytes.len()).filter(|i| bytes[*i] == MARK_MAGIC[0]) {
                if let Some((mark, _)) = decode_mark(cipher, &bytes[i..], Place { lineage, number, at: at + i as u64 }) {
                    best = Some(best.unwrap_or_default().and(mark));
                }
            }
        }
        if bytes.len() < SEARCH_BYTES {
            return Ok(best);
        }
        // The pieces overlap, so that every mark lies whole in one of them.
        at += (bytes.len() - mark_len(cipher) + 1) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::disk::SimDisk;
    use proptest::prelude::*;

    const LINEAGE: LineageId = LineageId(9);

    #[test]
    fn a_mark_counts_only_at_its_own_place() {
        a_mark_counts_only_at_its_own_place_on(&SimDisk::plain(0));
        a_mark_counts_only_at_its_own_place_on(&SimDisk::sealed(0));
    }

    fn a_mark_counts_only_at_its_own_place_on(disk: &SimDisk) {
        let said = Mark {
            synced: Seq(7),
            durable: LogEnd { epoch: Epoch(2), generation: Generation(1 << 20), seq: Seq(6), end_lsn: Lsn(99), checksum: 5 },
        };
        let mark = encode_mark(disk, Place { lineage: LINEAGE, number: 3, at: 100 }, said).unwrap();
        disk.write("f", 100, std::slice::from_ref(&mark)).unwrap();
        disk.write("f", 300, &[mark]).unwrap();
        assert_eq!(search_marks(disk, "f", 3, LINEAGE, 0).unwrap(), Some(said));
        assert_eq!(search_marks(disk, "f", 3, LINEAGE, 101).unwrap(), None, "a copied mark proves nothing");
        assert_eq!(search_marks(disk, "f", 4, LINEAGE, 0).unwrap(), None);
        for at in [SEARCH_BYTES as u64 - 8, SEARCH_BYTES as u64 * 2 + 5] {
            let said = Mark { synced: Seq(at), durable: LogEnd::EMPTY };
            let mark = encode_mark(disk, Place { lineage: LINEAGE, number: 3, at }, said).unwrap();
            disk.write("g", at, &[mark]).unwrap();
            assert_eq!(search_marks(disk, "g", 3, LINEAGE, 0).unwrap(), Some(said), "across the edge of a piece");
        }
    }

    #[test]
    fn a_file_of_version_1_is_read_and_says_nothing_of_what_was_durable() {
        let disk = SimDisk::plain(0);
        let header =
            PlainHeader { number: 1, lineage: LINEAGE, previous: 0, before: LogEnd::EMPTY, history: History::default(), proven: Seq(4) };
        let head = codec::encode(FILE_MAGIC, FILE_VERSION_PLAIN, &header);
        let at = head.len() as u64;
        let mut mark = MARK_PLAIN_MAGIC.to_vec();
        mark.extend_from_slice(&9u64.to_le_bytes());
        mark.extend_from_slice(&Place { lineage: LINEAGE, number: 1, at }.mark_sum(&mark[4..]).to_le_bytes());
        disk.write("f", 0, &[head, Bytes::from(mark)]).unwrap();
        let (found, content) = FileHeader::read(&disk, "f").unwrap().unwrap();
        assert_eq!((found.proven, found.durable, content), (Seq(4), LogEnd::EMPTY, at));
        let mut reader = RecordReader::new(&disk, "f", 1, LINEAGE, content, 1024);
        assert!(matches!(reader.next().unwrap(), Record::Mark(m) if m == Mark { synced: Seq(9), durable: LogEnd::EMPTY }));
        assert_eq!(reader.position(), at + MARK_PLAIN_BYTES as u64);
    }

    #[test]
    fn a_sealed_frame_is_read_at_its_own_place_only_and_a_flip_in_it_is_damage() {
        use crate::base::{Epoch, Generation, UnixMicros};
        use crate::log::Flags;
        let frame = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(1), Flags::CONSISTENCY_POINT, UnixMicros(1), b"canary");
        let disk = SimDisk::sealed(0);
        let mut parts = Vec::new();
        encode_frames(&disk, Place { lineage: LINEAGE, number: 1, at: 10 }, &[frame.clone(), frame.clone()], &mut parts).unwrap();
        let len = parts[0].len() as u64;
        assert_eq!(frames_bytes(&disk, &[frame.clone(), frame.clone()]), 2 * len);
        assert!(!parts.concat().windows(6).any(|w| w == b"canary" || w.starts_with(b"PHL1")));
        disk.write("f", 10, &parts).unwrap();
        let read = |number, at| RecordReader::new(&disk, "f", number, LINEAGE, at, 80).next().unwrap();
        assert!(matches!((read(1, 10), read(1, 10 + len)), (Record::Frame(a), Record::Frame(b)) if a == frame && b == frame));
        assert!(matches!(read(2, 10), Record::Invalid));
        disk.write("f", 10, &[parts[1].clone()]).unwrap();
        assert!(matches!(read(1, 10), Record::Invalid), "a copied frame is none");
        disk.write("f", 10, &[parts[0].clone()]).unwrap();
        for at in 10..10 + len {
            disk.flip_bits("f", at, 1);
            assert!(matches!(read(1, 10), Record::Invalid), "flipped at {at}");
            disk.flip_bits("f", at, 1);
        }
    }

    #[test]
    fn a_flipped_version_is_damage_and_a_newer_one_is_not() {
        use crate::base::{Epoch, Generation, UnixMicros};
        use crate::log::Flags;
        let frame = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(1), Flags::CONSISTENCY_POINT, UnixMicros(1), &[7; 200]);
        let read = |bytes: Vec<u8>| {
            let disk = SimDisk::plain(0);
            disk.write("f", 0, &[Bytes::from(bytes)]).unwrap();
            RecordReader::new(&disk, "f", 1, LINEAGE, 0, 80).next().unwrap()
        };
        for bit in 0..16 {
            let mut bytes = frame.bytes().to_vec();
            bytes[4 + bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(read(bytes), Record::Invalid), "bit {bit}");
        }
        let mut newer = frame.bytes().to_vec();
        newer[4] = 2;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&newer[..60]), &newer[64..]);
        newer[60..64].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(read(newer), Record::Unsupported(2)));
    }

    proptest! {
        #[test]
        fn no_garbage_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), magic in 0usize..4) {
            let mut bytes = bytes;
            if bytes.len() >= 6 {
                bytes[..4].copy_from_slice([b"PHL1", b"PHLN", b"PHLF", b"PHLe"][magic]);
                bytes[4..6].copy_from_slice(&[1, 0]);
            }
            let disk = SimDisk::plain(0);
            disk.write("f", 0, &[Bytes::from(bytes)]).unwrap();
            prop_assert!(FileHeader::read(&disk, "f").unwrap().is_err());
            let mut reader = RecordReader::new(&disk, "f", 1, LINEAGE, 0, 1024);
            prop_assert!(matches!(reader.next().unwrap(), Record::Invalid | Record::Unsupported(_)));
            prop_assert_eq!(search_marks(&disk, "f", 1, LINEAGE, 0).unwrap(), None);
        }
    }
}
