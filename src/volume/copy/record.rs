//! What lies in a log file, byte for byte, and how it is read in order.
//!
//! ```text
//!  log file = header (see codec) frame+ (mark frame+)*  zeros up to the reserved length
//!  mark     = magic "PHLM" | synced seq u64 | CRC32C u32 of (lineage, file number, own offset, synced seq)
//! ```
//! A mark opens every batch behind the first and says: all frames up to `synced seq` were fsynced before this batch was
//! written. So a bad record that a later mark covers is damage, and one that none covers is where the last write tore.
//! The mark's checksum covers its place, so that bytes in a frame's payload are never taken for one.

use super::codec;
use crate::base::{LineageId, LogEnd, Seq};
use crate::log::{DecodeError, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_LIMIT, Frame, History};
use crate::volume::{Disk, DiskError};
use bytes::Bytes;

const FILE_MAGIC: [u8; 4] = *b"PHLF";
const FILE_VERSION: u16 = 1;
const MARK_MAGIC: [u8; 4] = *b"PHLM";
pub(super) const MARK_BYTES: usize = 16;
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
}

impl FileHeader {
    pub(super) fn encode(&self) -> Bytes {
        codec::encode(FILE_MAGIC, FILE_VERSION, self)
    }

    /// The header, and where the first record begins.
    pub(super) fn read(disk: &dyn Disk, name: &str) -> Result<Result<(FileHeader, u64), codec::CodecError>, DiskError> {
        let head = disk.read(name, 0, 4096)?;
        let len = match codec::whole_len(&head, FILE_MAGIC) {
            Ok(len) => len,
            Err(e) => return Ok(Err(e)),
        };
        let bytes = if len <= head.len() { head } else { disk.read(name, 0, len)? };
        Ok(codec::decode(&bytes, FILE_MAGIC, FILE_VERSION).map(|header| (header, len as u64)))
    }
}

fn mark_sum(lineage: LineageId, number: u64, at: u64, synced: Seq) -> u32 {
    let mut covered = [0; 40];
    covered[..16].copy_from_slice(&lineage.0.to_le_bytes());
    covered[16..24].copy_from_slice(&number.to_le_bytes());
    covered[24..32].copy_from_slice(&at.to_le_bytes());
    covered[32..].copy_from_slice(&synced.0.to_le_bytes());
    crc32c::crc32c(&covered)
}

pub(super) fn encode_mark(lineage: LineageId, number: u64, at: u64, synced: Seq) -> Bytes {
    let mut out = Vec::with_capacity(MARK_BYTES);
    out.extend_from_slice(&MARK_MAGIC);
    out.extend_from_slice(&synced.0.to_le_bytes());
    out.extend_from_slice(&mark_sum(lineage, number, at, synced).to_le_bytes());
    Bytes::from(out)
}

fn decode_mark(bytes: &[u8], lineage: LineageId, number: u64, at: u64) -> Option<Seq> {
    if bytes.len() < MARK_BYTES || bytes[..4] != MARK_MAGIC {
        return None;
    }
    let synced = Seq(u64::from_le_bytes(bytes[4..12].try_into().expect("BUG: eight bytes")));
    let sum = u32::from_le_bytes(bytes[12..16].try_into().expect("BUG: four bytes"));
    (sum == mark_sum(lineage, number, at, synced)).then_some(synced)
}

pub(super) enum Record {
    Frame(Frame),
    Mark(Seq),
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
        if self.buffer.len() < FRAME_HEADER_BYTES {
            self.fill(FRAME_HEADER_BYTES)?;
        }
        if let Some(synced) = decode_mark(&self.buffer, self.lineage, self.number, self.at) {
            self.advance(MARK_BYTES);
            return Ok(Record::Mark(synced));
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

/// The highest seq that any mark at or behind `from` proves to be fsynced.
pub(super) fn search_marks(disk: &dyn Disk, name: &str, number: u64, lineage: LineageId, from: u64) -> Result<Option<Seq>, DiskError> {
    let mut best = None;
    let mut at = from;
    loop {
        let bytes = disk.read(name, at, SEARCH_BYTES)?;
        if bytes.len() < MARK_BYTES {
            return Ok(best);
        }
        if bytes != ZEROS[..bytes.len()] {
            for i in 0..=bytes.len() - MARK_BYTES {
                if bytes[i] == MARK_MAGIC[0] {
                    best = best.max(decode_mark(&bytes[i..], lineage, number, at + i as u64));
                }
            }
        }
        // The pieces overlap, so that every mark lies whole in one of them.
        at += (bytes.len() - MARK_BYTES + 1) as u64;
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
        let disk = SimDisk::new(0);
        let mark = encode_mark(LINEAGE, 3, 100, Seq(7));
        disk.write("f", 100, std::slice::from_ref(&mark)).unwrap();
        disk.write("f", 300, &[mark]).unwrap();
        assert_eq!(search_marks(&disk, "f", 3, LINEAGE, 0).unwrap(), Some(Seq(7)));
        assert_eq!(search_marks(&disk, "f", 3, LINEAGE, 101).unwrap(), None, "a copied mark proves nothing");
        assert_eq!(search_marks(&disk, "f", 4, LINEAGE, 0).unwrap(), None);
        for at in [SEARCH_BYTES as u64 - 8, SEARCH_BYTES as u64 * 2 + 5] {
            disk.write("g", at, &[encode_mark(LINEAGE, 3, at, Seq(at))]).unwrap();
            assert_eq!(search_marks(&disk, "g", 3, LINEAGE, 0).unwrap(), Some(Seq(at)), "across the edge of a piece");
        }
    }

    #[test]
    fn a_flipped_version_is_damage_and_a_newer_one_is_not() {
        use crate::base::{Epoch, Generation, UnixMicros};
        use crate::log::Flags;
        let frame = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(1), Flags::CONSISTENCY_POINT, UnixMicros(1), &[7; 200]);
        let read = |bytes: Vec<u8>| {
            let disk = SimDisk::new(0);
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
                bytes[..4].copy_from_slice([b"PHL1", b"PHLM", b"PHLF", b"PHLe"][magic]);
                bytes[4..6].copy_from_slice(&[1, 0]);
            }
            let disk = SimDisk::new(0);
            disk.write("f", 0, &[Bytes::from(bytes)]).unwrap();
            prop_assert!(FileHeader::read(&disk, "f").unwrap().is_err());
            let mut reader = RecordReader::new(&disk, "f", 1, LINEAGE, 0, 1024);
            prop_assert!(matches!(reader.next().unwrap(), Record::Invalid | Record::Unsupported(_)));
            prop_assert_eq!(search_marks(&disk, "f", 1, LINEAGE, 0).unwrap(), None);
        }
    }
}
