//! A layer file: versions of pages, sorted by (page, LSN), never changed once written.
//!
//! ```text
//!  file   = block* index footer
//!  block  = CRC32C u32 | length u32 | entry*          about 32 KiB; the CRC also covers where the block belongs:
//!           lineage, timeline, file number, epoch, offset, first and last (page, LSN)
//!  entry  = page u32 | LSN u64 | kind u8 | length u32 | body            kinds as in log::redo
//!  index  = (first page u32, first LSN u64, last page u32, last LSN u64, offset u64, length u32, CRC32C of the block u32)*
//!  footer = magic "PHLY" | version u16 | 0 u16 | lineage u128 | timeline u64 | number u64 | epoch u64 | above u64 | upto u64
//!           | index offset u64 | index length u64 | index CRC32C u32 | CRC32C u32 of all before it
//! ```
//! On a disk with a cipher the version is 2, and a block's entries are sealed: nonce 12 | entry* | tag 16, where the tag covers where the
//! block belongs. Length and CRC are those of what lies there, so rot is found as it is without a cipher. Index and footer say no user's byte
//! and stay as they are.
//!
//! The index stays in memory, blocks are read and checked each time. The manifest holds the footer's checksum, the footer the
//! index's, the index each block's: so whatever lies there and is not what this file was written with is found, be it flipped, from
//! another place, from another file, or from an older file of the same name.

use super::directory::{Directory, LayerId, layer_name};
use super::manifest::LayerMeta;
use crate::base::{Epoch, LineageId, Lsn, PageNo, TimelineId};
use crate::log::redo::Change;
use crate::volume::{Disk, DiskError};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MAGIC: [u8; 4] = *b"PHLY";
const VERSION: u16 = 1;
/// Of a file whose blocks are sealed.
const VERSION_SEALED: u16 = 2;
const BLOCK_TARGET_BYTES: usize = 32 << 10;
/// No block is longer: the last entry of a block may be a change of a whole frame.
const BLOCK_BYTES_MAX: usize = 2 << 20;
const BLOCK_HEADER_BYTES: usize = 8;
const ENTRY_HEADER_BYTES: usize = 17;
const INDEX_ENTRY_BYTES: usize = 40;
const FOOTER_BYTES: usize = 88;
/// What is written is synced as often as this, so that the last sync, and with it every sync of the log beside it, is short.
const SYNC_EVERY_BYTES: u64 = 1 << 20;

/// Why versions cannot be read from a layer file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LayerError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("layer file '{file}' is damaged: {reason}")]
    Damaged {
        file: String,
        reason: String,
        /// Where in the file, where that is known.
        at: Option<u64>,
        /// Nothing is where something was written.
        lost: bool,
    },
    #[error("layer file '{file}' has format version {version}, which this parhelion does not read")]
    Unsupported { file: String, version: u16 },
}

/// Where a version stands in the order of a layer.
pub(super) type Key = (PageNo, Lsn);

#[derive(Clone, Debug)]
struct BlockRef {
    first: Key,
    last: Key,
    offset: u64,
    len: u32,
    checksum: u32,
}

/// What every checksum of a file covers beside the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub lineage: LineageId,
    pub timeline: TimelineId,
    pub number: u64,
    pub epoch: Epoch,
}

impl Place {
    fn sum(&self, offset: u64, first: Key, last: Key, body: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.of(offset, first, last)), body)
    }

    /// The place of a block.
    fn of(&self, offset: u64, first: Key, last: Key) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[..16].copy_from_slice(&self.lineage.0.to_le_bytes());
        let fields = [self.timeline.0, self.number, self.epoch.0, offset, u64::from(first.0.0), first.1.0, u64::from(last.0.0), last.1.0];
        for (at, field) in bytes[16..].chunks_exact_mut(8).zip(fields) {
            at.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn index_sum(&self, offset: u64, index: &[u8]) -> u32 {
        self.sum(offset, Key::default(), Key::default(), index)
    }
}

/// A file, open once however many timelines read it.
pub(super) struct LayerFile {
    /// `None`: it is only looked at.
    directory: Option<Arc<Directory>>,
    /// The directory's, or that of who looks.
    disk: Arc<dyn Disk>,
    place: Place,
    name: String,
    blocks: Vec<BlockRef>,
    /// Its file goes when the last reader lets go of it and no timeline names it.
    obsolete: AtomicBool,
    bytes: u64,
    checksum: u32,
    above: Lsn,
    upto: Lsn,
}

/// A file as one timeline sees it.
pub(super) struct Layer {
    file: Arc<LayerFile>,
    meta: LayerMeta,
}

pub(super) fn name_of(number: u64) -> String {
    format!("layer-{number:08}")
}

pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("layer-")?;
    if digits.len() < 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("BUG: four bytes"))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("BUG: eight bytes"))
}

/// Reads the entry at the beginning of `bytes`: key, kind, and the body's length. Bounded, not yet checked by kind.
fn entry_at(bytes: &[u8]) -> Option<(Key, u8, usize)> {
    let head = bytes.get(..ENTRY_HEADER_BYTES)?;
    let len = u32_at(head, 13) as usize;
    (len <= bytes.len() - ENTRY_HEADER_BYTES).then(|| ((PageNo(u32_at(head, 0)), Lsn(u64_at(head, 4))), head[12], len))
}

impl LayerFile {
    /// Opens the file that the manifest names and checks its footer and index. Without a directory it is only looked at.
    pub(super) fn open(
        directory: Option<Arc<Directory>>,
        disk: Arc<dyn Disk>,
        lineage: LineageId,
        meta: &LayerMeta,
    ) -> Result<LayerFile, LayerError> {
        let name = layer_name(meta.id());
        let damaged = |reason: &str| LayerError::Damaged { file: name.clone(), reason: reason.into(), at: None, lost: false };
        if disk.len(&name)? != Some(meta.bytes) || meta.bytes < FOOTER_BYTES as u64 {
            return Err(damaged("it is missing or has another length than the manifest says"));
        }
        let footer_at = meta.bytes - FOOTER_BYTES as u64;
        let footer = disk.read(&name, footer_at, FOOTER_BYTES)?;
        if footer.len() < FOOTER_BYTES || footer[..4] != MAGIC {
            return Err(damaged("it has no footer"));
        }
        let checksum = u32_at(&footer, FOOTER_BYTES - 4);
        if crc32c::crc32c(&footer[..FOOTER_BYTES - 4]) != checksum {
            return Err(damaged("the footer's checksum does not match"));
        }
        let version = u16::from_le_bytes([footer[4], footer[5]]);
        match (version, disk.cipher().is_some()) {
            (VERSION, false) | (VERSION_SEALED, true) => {}
            (VERSION, true) => return Err(damaged("it is not sealed, and what is here is")),
            (VERSION_SEALED, false) => return Err(damaged("it is sealed, and what is here is not")),
            _ => return Err(LayerError::Unsupported { file: name, version }),
        }
        let place = Place {
            lineage: LineageId(u128::from_le_bytes(footer[8..24].try_into().expect("BUG: sixteen bytes"))),
            timeline: TimelineId(u64_at(&footer, 24)),
            number: u64_at(&footer, 32),
            epoch: Epoch(u64_at(&footer, 40)),
        };
        let (above, upto) = (Lsn(u64_at(&footer, 48)), Lsn(u64_at(&footer, 56)));
        let wanted = Place { lineage, timeline: meta.timeline, number: meta.number, epoch: meta.epoch };
        if place != wanted || (above, upto) != (meta.above, meta.upto) {
            return Err(damaged("it belongs elsewhere"));
        }
        if checksum != meta.checksum {
            return Err(damaged("it is not the file that the manifest names, but another of the same name"));
        }
        let (index_at, index_len) = (u64_at(&footer, 64), u64_at(&footer, 72));
        if index_at.checked_add(index_len) != Some(footer_at) || index_len % INDEX_ENTRY_BYTES as u64 != 0 {
            return Err(damaged("its index lies outside"));
        }
        let index = disk.read(&name, index_at, usize::try_from(index_len).map_err(|_| damaged("its index is too long"))?)?;
        if index.len() as u64 != index_len || place.index_sum(index_at, &index) != u32_at(&footer, 80) {
            return Err(damaged("the index's checksum does not match"));
        }
        let mut blocks: Vec<BlockRef> = Vec::with_capacity(index.len() / INDEX_ENTRY_BYTES);
        let mut offset = 0;
        for e in index.chunks_exact(INDEX_ENTRY_BYTES) {
            let block = BlockRef {
                first: (PageNo(u32_at(e, 0)), Lsn(u64_at(e, 4))),
                last: (PageNo(u32_at(e, 12)), Lsn(u64_at(e, 16))),
                offset: u64_at(e, 24),
                len: u32_at(e, 32),
                checksum: u32_at(e, 36),
            };
            let ordered = block.first <= block.last && blocks.last().is_none_or(|b| b.last < block.first);
            if !ordered || block.offset != offset || block.len as usize > BLOCK_BYTES_MAX {
                return Err(damaged("its index is not in order"));
            }
            offset += u64::from(block.len);
            blocks.push(block);
        }
        let obsolete = AtomicBool::new(false);
        Ok(LayerFile { directory, disk, place, name, blocks, obsolete, bytes: meta.bytes, checksum, above, upto })
    }

    pub(super) fn id(&self) -> LayerId {
        (self.place.timeline, self.place.number)
    }

    /// Some timeline does without it: the file is removed when nobody reads it any more and no other names it.
    pub(super) fn retire(&self) {
        self.obsolete.store(true, Ordering::Relaxed);
    }

    fn damaged(&self, reason: &str) -> LayerError {
        LayerError::Damaged { file: self.name.clone(), reason: reason.into(), at: None, lost: false }
    }

    fn bad_block(&self, i: usize, what: &str, found: &[u8]) -> LayerError {
        let lost = found.iter().all(|b| *b == 0);
        let at = self.blocks[i].offset;
        let reason = format!("{what} (the block at offset {at}{})", if lost { " is not there" } else { "" });
        LayerError::Damaged { file: self.name.clone(), reason, at: Some(at), lost }
    }

    /// Blocks in the file.
    pub(super) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Reads and checks everything from block `from` on, about `bytes_max` of it but at least one block: how many bytes that were, and
    /// the next block.
    pub(super) fn check(&self, from: usize, bytes_max: usize) -> Result<(u64, usize), LayerError> {
        let (mut i, mut read) = (from, 0);
        while i < self.blocks.len() && (i == from || read < bytes_max as u64) {
            let mut rest = self.block(i)?;
            let mut last: Option<Key> = None;
            while !rest.is_empty() {
                let (key, kind, len) = entry_at(&rest).ok_or_else(|| self.bad_block(i, "an entry is cut off", &rest))?;
                let end = ENTRY_HEADER_BYTES + len;
                Change::from_parts(kind, rest.slice(ENTRY_HEADER_BYTES..end)).map_err(|e| self.bad_block(i, e.reason, &rest))?;
                let first = last.is_some() || key == self.blocks[i].first;
                if !first || last.is_some_and(|l| l >= key) || key > self.blocks[i].last {
                    return Err(self.bad_block(i, "its versions are not those of the index", &rest));
                }
                last = Some(key);
                rest = rest.slice(end..);
            }
            read += u64::from(self.blocks[i].len);
            i += 1;
        }
        Ok((read, i))
    }

    /// The entries of a block, its checksum verified.
    fn block(&self, i: usize) -> Result<Bytes, LayerError> {
        let block = &self.blocks[i];
        let len = block.len as usize;
        let bytes = self.disk.read(&self.name, block.offset, len)?;
        if bytes.len() != len || len < BLOCK_HEADER_BYTES || u32_at(&bytes, 4) as usize != len - BLOCK_HEADER_BYTES {
            return Err(self.bad_block(i, "a block has a wrong length", &bytes));
        }
        let sum = self.place.sum(block.offset, block.first, block.last, &bytes[4..]);
        if sum != u32_at(&bytes, 0) || sum != block.checksum {
            return Err(self.bad_block(i, "a block's checksum does not match", &bytes));
        }
        let Some(cipher) = self.disk.cipher() else { return Ok(bytes.slice(BLOCK_HEADER_BYTES..)) };
        let place = self.place.of(block.offset, block.first, block.last);
        let entries = cipher.open(&place, &bytes[BLOCK_HEADER_BYTES..]);
        entries.map(Bytes::from).ok_or_else(|| self.bad_block(i, "a block's seal does not hold", &bytes))
    }
}

impl Drop for LayerFile {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Relaxed)
            && let Some(directory) = &self.directory
        {
            directory.let_go(self.id());
        }
    }
}

impl Layer {
    /// `file`, seen as far as `meta` says.
    pub(super) fn new(file: Arc<LayerFile>, meta: &LayerMeta) -> Result<Layer, LayerError> {
        if (file.id(), file.bytes, file.checksum) != (meta.id(), meta.bytes, meta.checksum)
            || (file.above, file.upto) != (meta.above, meta.upto)
        {
            return Err(file.damaged("two manifests name it and mean different files"));
        }
        Ok(Layer { file, meta: meta.clone() })
    }

    pub(super) fn meta(&self) -> &LayerMeta {
        &self.meta
    }

    /// The same, seen up to `cap`.
    pub(super) fn capped(&self, cap: crate::base::Lsn) -> Layer {
        Layer { file: Arc::clone(&self.file), meta: LayerMeta { cap, ..self.meta.clone() } }
    }

    pub(super) fn file(&self) -> &LayerFile {
        &self.file
    }

    /// Another layer took its place.
    pub(super) fn retire(&self) {
        self.file.retire();
    }

    /// Appends to `newest_first` the page's versions at or below `at`, back to its newest image. `true`: there was one.
    pub(super) fn collect(&self, page: PageNo, at: Lsn, newest_first: &mut Vec<Change>) -> Result<bool, LayerError> {
        let (file, at) = (&*self.file, at.min(self.meta.cap));
        let mut i = file.blocks.partition_point(|b| b.first <= (page, at));
        while i > 0 && file.blocks[i - 1].last >= (page, Lsn::ZERO) {
            i -= 1;
            let mut found = Vec::new();
            let mut rest = file.block(i)?;
            while !rest.is_empty() {
                let ((found_page, lsn), kind, len) = entry_at(&rest).ok_or_else(|| file.damaged("an entry is cut off"))?;
                if found_page > page || (found_page == page && lsn > at) {
                    break;
                }
                let end = ENTRY_HEADER_BYTES + len;
                if found_page == page {
                    let change = Change::from_parts(kind, rest.slice(ENTRY_HEADER_BYTES..end));
                    found.push(change.map_err(|e| file.damaged(e.reason))?);
                }
                rest = rest.slice(end..);
            }
            while let Some(change) = found.pop() {
                let image = change.is_image();
                newest_first.push(change);
                if image {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Reads a layer in order.
pub(super) struct LayerCursor {
    layer: Arc<Layer>,
    next_block: usize,
    entries: VecDeque<(Key, Change)>,
}

impl LayerCursor {
    /// From `page`'s first version on.
    pub(super) fn new(layer: Arc<Layer>, page: PageNo) -> Result<LayerCursor, LayerError> {
        let next_block = layer.file.blocks.partition_point(|b| b.last < (page, Lsn::ZERO));
        let mut cursor = LayerCursor { layer, next_block, entries: VecDeque::new() };
        cursor.fill()?;
        while cursor.entries.front().is_some_and(|(key, _)| key.0 < page) {
            cursor.next()?;
        }
        Ok(cursor)
    }

    fn fill(&mut self) -> Result<(), LayerError> {
        let file = &*self.layer.file;
        while self.entries.is_empty() && self.next_block < file.blocks.len() {
            let mut rest = file.block(self.next_block)?;
            self.next_block += 1;
            while !rest.is_empty() {
                let (key, kind, len) = entry_at(&rest).ok_or_else(|| file.damaged("an entry is cut off"))?;
                let end = ENTRY_HEADER_BYTES + len;
                let change = Change::from_parts(kind, rest.slice(ENTRY_HEADER_BYTES..end)).map_err(|e| file.damaged(e.reason))?;
                if key.1 <= self.layer.meta.cap {
                    self.entries.push_back((key, change));
                }
                rest = rest.slice(end..);
            }
        }
        Ok(())
    }

    pub(super) fn peek(&self) -> Option<Key> {
        self.entries.front().map(|(key, _)| *key)
    }

    pub(super) fn next(&mut self) -> Result<Option<(Key, Change)>, LayerError> {
        let entry = self.entries.pop_front();
        self.fill()?;
        Ok(entry)
    }
}

/// Writes a layer file, entry by entry in order; memory is bounded by one block and the index.
pub(super) struct LayerWriter {
    directory: Arc<Directory>,
    /// The files of the timeline that it is for.
    disk: Arc<dyn Disk>,
    place: Place,
    name: String,
    offset: u64,
    synced: u64,
    block: Vec<u8>,
    first: Option<Key>,
    last: Option<Key>,
    blocks: Vec<BlockRef>,
}

impl LayerWriter {
    /// Whatever a crash left under this number is removed.
    pub(super) fn begin(directory: &Arc<Directory>, place: Place) -> Result<LayerWriter, DiskError> {
        let disk = directory.view(place.timeline);
        let name = name_of(place.number);
        disk.remove(&name)?;
        Ok(LayerWriter {
            directory: Arc::clone(directory),
            disk,
            place,
            name,
            offset: 0,
            synced: 0,
            block: Vec::new(),
            first: None,
            last: None,
            blocks: Vec::new(),
        })
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.offset + self.block.len() as u64
    }

    pub(super) fn push(&mut self, key: Key, change: &Change) -> Result<(), DiskError> {
        assert!(self.last.is_none_or(|last| last < key), "BUG: versions come in order");
        if self.block.len() + ENTRY_HEADER_BYTES + change.body().len() > BLOCK_TARGET_BYTES {
            self.end_block()?;
        }
        self.first.get_or_insert(key);
        self.last = Some(key);
        self.block.extend_from_slice(&key.0.0.to_le_bytes());
        self.block.extend_from_slice(&key.1.0.to_le_bytes());
        self.block.push(change.kind());
        self.block.extend_from_slice(&u32::try_from(change.body().len()).expect("BUG: a change is below 4 GiB").to_le_bytes());
        self.block.extend_from_slice(change.body());
        Ok(())
    }

    fn end_block(&mut self) -> Result<(), DiskError> {
        let (Some(first), Some(last)) = (self.first.take(), self.last) else { return Ok(()) };
        let mut entries = std::mem::take(&mut self.block);
        if let Some(cipher) = self.disk.cipher() {
            entries = cipher.seal(&self.place.of(self.offset, first, last), &entries)?;
        }
        let mut bytes = Vec::with_capacity(BLOCK_HEADER_BYTES + entries.len());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&u32::try_from(entries.len()).expect("BUG: a block is below 4 GiB").to_le_bytes());
        bytes.append(&mut entries);
        assert!(bytes.len() <= BLOCK_BYTES_MAX, "BUG: a change of {} bytes does not fit a block", bytes.len());
        let checksum = self.place.sum(self.offset, first, last, &bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        let len = bytes.len();
        self.disk.write(&self.name, self.offset, &[Bytes::from(bytes)])?;
        self.blocks.push(BlockRef { first, last, offset: self.offset, len: u32::try_from(len).expect("BUG: bounded above"), checksum });
        self.offset += len as u64;
        if self.offset - self.synced >= SYNC_EVERY_BYTES {
            self.disk.sync(&self.name)?;
            self.synced = self.offset;
        }
        Ok(())
    }

    /// Writes index and footer and fsyncs. The file counts once a manifest names it.
    pub(super) fn finish(mut self, above: Lsn, upto: Lsn) -> Result<Layer, DiskError> {
        self.end_block()?;
        let mut index = Vec::with_capacity(self.blocks.len() * INDEX_ENTRY_BYTES);
        for b in &self.blocks {
            index.extend_from_slice(&b.first.0.0.to_le_bytes());
            index.extend_from_slice(&b.first.1.0.to_le_bytes());
            index.extend_from_slice(&b.last.0.0.to_le_bytes());
            index.extend_from_slice(&b.last.1.0.to_le_bytes());
            index.extend_from_slice(&b.offset.to_le_bytes());
            index.extend_from_slice(&b.len.to_le_bytes());
            index.extend_from_slice(&b.checksum.to_le_bytes());
        }
        let Place { lineage, timeline, number, epoch } = self.place;
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend_from_slice(&MAGIC);
        let version = if self.disk.cipher().is_some() { VERSION_SEALED } else { VERSION };
        footer.extend_from_slice(&version.to_le_bytes());
        footer.extend_from_slice(&[0, 0]);
        footer.extend_from_slice(&lineage.0.to_le_bytes());
        for field in [timeline.0, number, epoch.0, above.0, upto.0, self.offset, index.len() as u64] {
            footer.extend_from_slice(&field.to_le_bytes());
        }
        footer.extend_from_slice(&self.place.index_sum(self.offset, &index).to_le_bytes());
        let checksum = crc32c::crc32c(&footer);
        footer.extend_from_slice(&checksum.to_le_bytes());
        assert_eq!(footer.len(), FOOTER_BYTES, "BUG: the footer's layout");
        let bytes = self.offset + index.len() as u64 + FOOTER_BYTES as u64;
        self.disk.write(&self.name, self.offset, &[Bytes::from(index), Bytes::from(footer)])?;
        self.disk.sync(&self.name)?;
        let file = Arc::new(LayerFile {
            name: layer_name((timeline, number)),
            disk: Arc::clone(self.directory.disk()),
            directory: Some(Arc::clone(&self.directory)),
            place: self.place,
            blocks: self.blocks,
            obsolete: AtomicBool::new(false),
            bytes,
            checksum,
            above,
            upto,
        });
        self.directory.opened(&file);
        Ok(Layer { meta: LayerMeta { timeline, number, bytes, checksum, epoch, above, upto, cap: upto }, file })
    }
}
