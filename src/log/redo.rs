//! What the embedded head writes into a frame's payload: changes of pages.
//!
//! ```text
//!  payload = record*          all little-endian, read to the last byte
//!  record  = page u32 | kind u8 | length u32 | body
//!  kind 1  image: the body is the page. An image shorter than the page is filled with zeros.
//!  kind 2  delta: the body is (offset u16, length u16, bytes)*, to lay over the page's last version
//! ```
//! Page 0 is the volume's header page: an image of (page count u32, page size u32, highest page count ever u32), see [`VolumeHeader`].

use crate::base::PageNo;
use bytes::Bytes;

/// Pages are at most this long (SQLite's own limit).
pub const PAGE_BYTES_MAX: usize = 65536;
/// Bytes of a record before its body.
pub const RECORD_HEADER_BYTES: usize = 9;
const KIND_IMAGE: u8 = 1;
const KIND_DELTA: u8 = 2;

/// A change of one page, with its body still in the frame's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Image(Bytes),
    /// Byte ranges, already checked to be well-formed.
    Delta(Bytes),
}

/// A page and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub page: PageNo,
    pub change: Change,
}

/// Why a payload is not a row of records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a redo record is corrupt: {reason}")]
pub struct RedoError {
    pub reason: &'static str,
}

impl Change {
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(self, Change::Image(_))
    }

    #[must_use]
    pub fn body(&self) -> &Bytes {
        match self {
            Change::Image(b) | Change::Delta(b) => b,
        }
    }

    /// The byte ranges that this change sets: offset and bytes. An image is one range at 0 (it clears the rest as well).
    pub fn ranges(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let (image, delta) = match self {
            Change::Image(image) => (Some((0, image.as_ref())), None),
            Change::Delta(ranges) => (None, Some(Ranges(ranges))),
        };
        image.into_iter().chain(delta.into_iter().flatten())
    }

    /// The kind byte, as it is stored.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Change::Image(_) => KIND_IMAGE,
            Change::Delta(_) => KIND_DELTA,
        }
    }

    /// A change from its stored kind and body.
    ///
    /// # Errors
    /// When the kind is unknown or a delta's ranges are not well-formed.
    pub fn from_parts(kind: u8, body: Bytes) -> Result<Change, RedoError> {
        match kind {
            KIND_IMAGE if body.len() <= PAGE_BYTES_MAX => Ok(Change::Image(body)),
            KIND_IMAGE => Err(RedoError { reason: "an image is longer than a page can be" }),
            KIND_DELTA => {
                check_ranges(&body)?;
                Ok(Change::Delta(body))
            }
            _ => Err(RedoError { reason: "its kind is unknown" }),
        }
    }

    /// Lays this change over `page`. An image sets the whole page (the rest zero); a delta grows the page where it must.
    pub fn apply(&self, page: &mut Vec<u8>) {
        match self {
            Change::Image(image) => {
                let len = page.len().max(image.len());
                page.clear();
                page.extend_from_slice(image);
                page.resize(len, 0);
            }
            Change::Delta(ranges) => {
                for (offset, bytes) in Ranges(ranges) {
                    if page.len() < offset + bytes.len() {
                        page.resize(offset + bytes.len(), 0);
                    }
                    page[offset..offset + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
    }
}

/// Writes one record behind what is already in `payload`.
pub fn put_record(payload: &mut Vec<u8>, page: PageNo, change: &Change) {
    payload.extend_from_slice(&page.0.to_le_bytes());
    payload.push(change.kind());
    payload.extend_from_slice(&u32::try_from(change.body().len()).expect("BUG: a body is at most two pages").to_le_bytes());
    payload.extend_from_slice(change.body());
}

/// All records of a payload, sharing its bytes.
///
/// # Errors
/// When the payload is anything but a row of whole, well-formed records.
pub fn records(payload: &Bytes) -> Result<Vec<Record>, RedoError> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let head = payload.get(at..at + RECORD_HEADER_BYTES).ok_or(RedoError { reason: "its header is cut off" })?;
        let page = PageNo(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
        let len = u32::from_le_bytes([head[5], head[6], head[7], head[8]]) as usize;
        let body_at = at + RECORD_HEADER_BYTES;
        if len > payload.len() - body_at {
            return Err(RedoError { reason: "its length is beyond the payload" });
        }
        out.push(Record { page, change: Change::from_parts(head[4], payload.slice(body_at..body_at + len))? });
        at = body_at + len;
    }
    Ok(out)
}

/// The shorter of a delta and an image that turns `before` into `after`. `None` when they are the same.
///
/// Ranges closer than a range header are joined: a gap of equal bytes costs less than four bytes more of header.
#[must_use]
pub fn difference(before: &[u8], after: &[u8]) -> Option<Change> {
    const RANGE_HEADER_BYTES: usize = 4;
    debug_assert!(after.len() <= PAGE_BYTES_MAX);
    let byte = |i: usize| before.get(i).copied().unwrap_or(0);
    let mut delta: Vec<u8> = Vec::new();
    let mut at = 0;
    while at < after.len() {
        // Eight bytes at a time over what is the same: most of a page is.
        if let (Some(a), Some(b)) = (after.get(at..at + 8), before.get(at..at + 8))
            && a == b
        {
            at += 8;
            continue;
        }
        if after[at] == byte(at) {
            at += 1;
            continue;
        }
        let start = at;
        let mut end = at + 1;
        let mut same = 0;
        let mut i = end;
        while i < after.len() && same <= RANGE_HEADER_BYTES && i - start < usize::from(u16::MAX) {
            if after[i] == byte(i) {
                same += 1;
            } else {
                same = 0;
                end = i + 1;
            }
            i += 1;
        }
        delta.extend_from_slice(&u16::try_from(start).expect("BUG: an offset lies inside a page").to_le_bytes());
        delta.extend_from_slice(&u16::try_from(end - start).expect("BUG: a range is cut at 65535").to_le_bytes());
        delta.extend_from_slice(&after[start..end]);
        at = end;
    }
    if delta.is_empty() {
        return None;
    }
    let image_len = after.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
    if delta.len() < image_len {
        Some(Change::Delta(Bytes::from(delta)))
    } else {
        Some(Change::Image(Bytes::copy_from_slice(&after[..image_len])))
    }
}

struct Ranges<'a>(&'a [u8]);

impl<'a> Iterator for Ranges<'a> {
    type Item = (usize, &'a [u8]);
    fn next(&mut self) -> Option<(usize, &'a [u8])> {
        if self.0.is_empty() {
            return None;
        }
        let offset = usize::from(u16::from_le_bytes([self.0[0], self.0[1]]));
        let len = usize::from(u16::from_le_bytes([self.0[2], self.0[3]]));
        let (bytes, rest) = self.0[4..].split_at(len);
        self.0 = rest;
        Some((offset, bytes))
    }
}

fn check_ranges(mut body: &[u8]) -> Result<(), RedoError> {
    while !body.is_empty() {
        let head = body.get(..4).ok_or(RedoError { reason: "a range's header is cut off" })?;
        let offset = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if offset + len > PAGE_BYTES_MAX {
            return Err(RedoError { reason: "a range leaves the page" });
        }
        body = body.get(4 + len..).ok_or(RedoError { reason: "a range is cut off" })?;
    }
    Ok(())
}

/// What page 0 says: how large the head's database is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeHeader {
    pub page_count: u32,
    pub page_bytes: u32,
    /// The highest page count there ever was.
    pub high_water: u32,
}

impl VolumeHeader {
    #[must_use]
    pub fn to_image(self) -> Change {
        let mut body = Vec::with_capacity(12);
        body.extend_from_slice(&self.page_count.to_le_bytes());
        body.extend_from_slice(&self.page_bytes.to_le_bytes());
        body.extend_from_slice(&self.high_water.to_le_bytes());
        Change::Image(Bytes::from(body))
    }

    /// An absent or all-zero header page is an empty database. Copies leave out what is zero at the end, within a number too.
    #[must_use]
    pub fn from_page(page: &[u8]) -> VolumeHeader {
        let byte = |at: usize| page.get(at).copied().unwrap_or(0);
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| byte(at + i)));
        VolumeHeader { page_count: u32_at(0), page_bytes: u32_at(4), high_water: u32_at(8).max(u32_at(0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_is_read_without_the_zeros_at_its_end() {
        for high_water in [1, 255, 256, 1058, 0x0001_0000, 0x0100_0000] {
            let header = VolumeHeader { page_count: 1, page_bytes: 4096, high_water };
            let image = header.to_image();
            let end = image.body().iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
            assert_eq!(VolumeHeader::from_page(&image.body()[..end]), header);
        }
        assert_eq!(VolumeHeader::from_page(&[]), VolumeHeader { page_count: 0, page_bytes: 0, high_water: 0 });
    }

    proptest! {
        #[test]
        fn a_difference_applied_gives_the_page(before in proptest::collection::vec(any::<u8>(), 512), edits in proptest::collection::vec((0usize..512, any::<u8>()), 0..40)) {
            let mut after = before.clone();
            for (at, b) in edits {
                after[at] = b;
            }
            let mut page = before.clone();
            if let Some(change) = difference(&before, &after) {
                let mut payload = Vec::new();
                put_record(&mut payload, PageNo(3), &change);
                let back = records(&Bytes::from(payload)).unwrap();
                prop_assert_eq!(back.len(), 1);
                back[0].change.apply(&mut page);
            } else {
                prop_assert_eq!(&before, &after);
            }
            prop_assert_eq!(page, after);
        }

        #[test]
        fn no_input_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(found) = records(&Bytes::from(bytes)) {
                for r in found {
                    r.change.apply(&mut vec![0; 64]);
                }
            }
        }
    }

    #[test]
    fn a_new_page_is_an_image_without_its_trailing_zeros_and_equal_pages_are_nothing() {
        let mut after = vec![0u8; 4096];
        after[..10].copy_from_slice(b"0123456789");
        let change = difference(&[0; 4096], &after).unwrap();
        assert_eq!(change, Change::Image(Bytes::from_static(b"0123456789")));
        assert_eq!(difference(&after, &after), None);
        let full = vec![7u8; 65536];
        let mut page = vec![0; 65536];
        difference(&page, &full).unwrap().apply(&mut page);
        assert_eq!(page, full, "a page of the largest size");
    }

    #[test]
    fn a_range_that_leaves_the_page_is_refused() {
        let body = Bytes::from_static(&[0xff, 0xff, 2, 0, 1, 1]);
        assert!(Change::from_parts(2, body).is_err());
    }
}
