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

use super::codec;
use crate::base::{Epoch, Generation, LineageId, LogEnd, Lsn, Seq};
use crate::log::{DecodeError, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_LIMIT, Frame, History};
use crate::volume::{Disk, DiskError};
use bytes::Bytes;

const FILE_MAGIC: [u8; 4] = *b"PHLF";
const FILE_VERSION: u16 = 2;
/// Without `durable`.
const FILE_VERSION_PLAIN: u16 = 1;
const MARK_MAGIC: [u8; 4] = *b"PHLN";
pub(super) const MARK_BYTES: usize = 52;
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

/// Of a mark without its checksum.
fn mark_sum(lineage: LineageId, number: u64, at: u64, said: &[u8]) -> u32 {
    let mut covered = [0; 32];
    covered[..16].copy_from_slice(&lineage.0.to_le_bytes());
    covered[16..24].copy_from_slice(&number.to_le_bytes());
    covered[24..].copy_from_slice(&at.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&covered), said)
}

pub(super) fn encode_mark(lineage: LineageId, number: u64, at: u64, mark: Mark) -> Bytes {
    let Mark { synced, durable } = mark;
    let mut out = Vec::with_capacity(MARK_BYTES);
    out.extend_from_slice(&MARK_MAGIC);
    for word in [synced.0, durable.epoch.0, durable.generation.0, durable.seq.0, durable.end_lsn.0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&durable.checksum.to_le_bytes());
    let sum = mark_sum(lineage, number, at, &out[4..]);
    out.extend_from_slice(&sum.to_le_bytes());
    Bytes::from(out)
}

/// The mark at the beginning of `bytes`, and its length.
fn decode_mark(bytes: &[u8], lineage: LineageId, number: u64, at: u64) -> Option<(Mark, usize)> {
    let magic = bytes.get(..4)?;
    let len = if magic == MARK_MAGIC {
        MARK_BYTES
    } else if magic == MARK_PLAIN_MAGIC {
        MARK_PLAIN_BYTES
    } else {
        return None;
    };
    let (said, sum) = bytes.get(4..len)?.split_last_chunk::<4>()?;
    if *sum != mark_sum(lineage, number, at, said).to_le_bytes() {
        return None;
    }
    let word = |i: usize| u64::from_le_bytes(said[i * 8..][..8].try_into().expect("BUG: eight bytes"));
    let durable = if len == MARK_PLAIN_BYTES {
        LogEnd::EMPTY
    } else {
        let checksum = u32::from_le_bytes(said[40..44].try_into().expect("BUG: four bytes"));
        LogEnd { epoch: Epoch(word(1)), generation: Generation(word(2)), seq: Seq(word(3)), end_lsn: Lsn(word(4)), checksum }
    };
    Some((Mark { synced: Seq(word(0)), durable }, len))
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
        if self.buffer.len() < FRAME_HEADER_BYTES {
            self.fill(FRAME_HEADER_BYTES)?;
        }
        if let Some((mark, len)) = decode_mark(&self.buffer, self.lineage, self.number, self.at) {
            self.advance(len);
            return Ok(Record::Mark(mark));
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

/// What all marks at or behind `from` prove together.
pub(super) fn search_marks(disk: &dyn Disk, name: &str, number: u64, lineage: LineageId, from: u64) -> Result<Option<Mark>, DiskError> {
    let mut best: Option<Mark> = None;
    let mut at = from;
    loop {
        let bytes = disk.read(name, at, SEARCH_BYTES)?;
        if bytes != ZEROS[..bytes.len()] {
            for i in (0..bytes.len()).filter(|i| bytes[*i] == MARK_MAGIC[0]) {
                if let Some((mark, _)) = decode_mark(&bytes[i..], lineage, number, at + i as u64) {
                    best = Some(best.unwrap_or_default().and(mark));
                }
            }
        }
        if bytes.len() < SEARCH_BYTES {
            return Ok(best);
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
        let said = Mark {
            synced: Seq(7),
            durable: LogEnd { epoch: Epoch(2), generation: Generation(1 << 20), seq: Seq(6), end_lsn: Lsn(99), checksum: 5 },
        };
        let mark = encode_mark(LINEAGE, 3, 100, said);
        disk.write("f", 100, std::slice::from_ref(&mark)).unwrap();
        disk.write("f", 300, &[mark]).unwrap();
        assert_eq!(search_marks(&disk, "f", 3, LINEAGE, 0).unwrap(), Some(said));
        assert_eq!(search_marks(&disk, "f", 3, LINEAGE, 101).unwrap(), None, "a copied mark proves nothing");
        assert_eq!(search_marks(&disk, "f", 4, LINEAGE, 0).unwrap(), None);
        for at in [SEARCH_BYTES as u64 - 8, SEARCH_BYTES as u64 * 2 + 5] {
            let said = Mark { synced: Seq(at), durable: LogEnd::EMPTY };
            disk.write("g", at, &[encode_mark(LINEAGE, 3, at, said)]).unwrap();
            assert_eq!(search_marks(&disk, "g", 3, LINEAGE, 0).unwrap(), Some(said), "across the edge of a piece");
        }
    }

    #[test]
    fn a_file_of_version_1_is_read_and_says_nothing_of_what_was_durable() {
        let disk = SimDisk::new(0);
        let header =
            PlainHeader { number: 1, lineage: LINEAGE, previous: 0, before: LogEnd::EMPTY, history: History::default(), proven: Seq(4) };
        let head = codec::encode(FILE_MAGIC, FILE_VERSION_PLAIN, &header);
        let at = head.len() as u64;
        let mut mark = MARK_PLAIN_MAGIC.to_vec();
        mark.extend_from_slice(&9u64.to_le_bytes());
        mark.extend_from_slice(&mark_sum(LINEAGE, 1, at, &mark[4..]).to_le_bytes());
        disk.write("f", 0, &[head, Bytes::from(mark)]).unwrap();
        let (found, content) = FileHeader::read(&disk, "f").unwrap().unwrap();
        assert_eq!((found.proven, found.durable, content), (Seq(4), LogEnd::EMPTY, at));
        let mut reader = RecordReader::new(&disk, "f", 1, LINEAGE, content, 1024);
        assert!(matches!(reader.next().unwrap(), Record::Mark(m) if m == Mark { synced: Seq(9), durable: LogEnd::EMPTY }));
        assert_eq!(reader.position(), at + MARK_PLAIN_BYTES as u64);
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
                bytes[..4].copy_from_slice([b"PHL1", b"PHLN", b"PHLF", b"PHLe"][magic]);
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
