//! Many sources of versions read as one, and old versions folded together.
//!
//! Decides what a page's versions at or below the horizon become: one image where an image (or the beginning of all
//! things) is among them, else one delta in which the newest bytes win. Versions above the horizon stay as they are, but for an
//! image in the place of a delta wherever a page's chain of deltas gets long.

use super::layer::{Key, Layer, LayerCursor, LayerError, LayerWriter};
use super::pages::Memtable;
use crate::base::{Lsn, PageNo};
use crate::log::redo::Change;
use crate::volume::DiskError;
use bytes::Bytes;
use std::sync::Arc;

/// One source of versions in order of (page, LSN).
pub(super) enum Source {
    Layer(LayerCursor),
    Memory { table: Arc<Memtable>, next: Option<Key> },
}

impl Source {
    pub(super) fn memory(table: Arc<Memtable>, page: PageNo) -> Source {
        let next = table.first_at_or_after((page, Lsn::ZERO));
        Source::Memory { table, next }
    }

    fn peek(&self) -> Option<Key> {
        match self {
            Source::Layer(cursor) => cursor.peek(),
            Source::Memory { next, .. } => *next,
        }
    }

    fn next(&mut self) -> Result<Option<(Key, Change)>, LayerError> {
        match self {
            Source::Layer(cursor) => cursor.next(),
            Source::Memory { table, next } => {
                let Some(key) = *next else { return Ok(None) };
                let change = table.get(key).cloned();
                *next = table.first_after(key);
                Ok(change.map(|c| (key, c)))
            }
        }
    }
}

/// Sources from oldest to newest; their LSN ranges do not overlap, so a page's versions come in order of LSN.
pub(super) struct Merge {
    sources: Vec<Source>,
}

impl Merge {
    pub(super) fn new(oldest_first: Vec<Source>) -> Merge {
        Merge { sources: oldest_first }
    }

    /// The lowest page that is still to come.
    pub(super) fn page(&self) -> Option<PageNo> {
        self.sources.iter().filter_map(Source::peek).map(|key| key.0).min()
    }

    /// Takes all versions of `page`, oldest first.
    pub(super) fn versions<E: From<LayerError>>(
        &mut self,
        page: PageNo,
        mut each: impl FnMut(Lsn, Change) -> Result<(), E>,
    ) -> Result<(), E> {
        for source in &mut self.sources {
            while source.peek().is_some_and(|key| key.0 == page) {
                if let Some((key, change)) = source.next()? {
                    each(key.1, change)?;
                }
            }
        }
        Ok(())
    }
}

/// Deltas of one page that follow one another in a layer at most, and their bytes; then there is an image. So what a read of a page
/// costs depends on the number of layers, not on how often the page was written.
pub(super) const CHAIN_DELTAS_MAX: usize = 64;
const CHAIN_BYTES_MAX: usize = 16 << 10;

/// What a page was before the oldest version that is being merged.
pub(super) enum Before {
    /// There are no older versions anywhere: a page begins as zeros.
    Nothing,
    /// It is in these layers, oldest first.
    Layers(Vec<Arc<Layer>>),
}

impl Before {
    /// `None`: it cannot be read. Then there is no image, and whoever reads the page itself will tell.
    fn page(&self, page: PageNo) -> Option<Vec<u8>> {
        let mut newest_first = Vec::new();
        if let Before::Layers(layers) = self {
            for layer in layers.iter().rev() {
                if layer.collect(page, layer.meta().end(), &mut newest_first).ok()? {
                    break;
                }
            }
        }
        let mut bytes = Vec::new();
        for change in newest_first.iter().rev() {
            change.apply(&mut bytes);
        }
        Some(bytes)
    }
}

/// Writes the next page of `merge`, its versions at or below `horizon` folded into one. `false`: there was none.
pub(super) fn write_page(merge: &mut Merge, writer: &mut LayerWriter, horizon: Lsn, before: &Before) -> Result<bool, LayerError> {
    let Some(page) = merge.page() else { return Ok(false) };
    let mut chain = Chain { page, before, image: None, deltas: Vec::new(), bytes: 0 };
    let mut fold: Option<(Lsn, Fold)> = None;
    merge.versions::<LayerError>(page, |lsn, change| {
        if lsn <= horizon {
            let (at, fold) = fold.get_or_insert_with(|| (lsn, Fold::new(matches!(before, Before::Nothing))));
            *at = lsn;
            fold.add(change);
            return Ok(());
        }
        if let Some((at, fold)) = fold.take() {
            chain.write(writer, at, fold.into_change())?;
        }
        Ok(chain.write(writer, lsn, change)?)
    })?;
    if let Some((at, fold)) = fold.take() {
        chain.write(writer, at, fold.into_change())?;
    }
    Ok(true)
}

/// The versions of one page as they are written: now and then an image in the place of a delta.
struct Chain<'a> {
    page: PageNo,
    before: &'a Before,
    /// The last image, and what came behind it.
    image: Option<Bytes>,
    deltas: Vec<Change>,
    bytes: usize,
}

impl Chain<'_> {
    fn write(&mut self, writer: &mut LayerWriter, lsn: Lsn, change: Change) -> Result<(), DiskError> {
        let change = match change {
            Change::Delta(_) => self.lengthen(change),
            image @ Change::Image(_) => image,
        };
        if let Change::Image(image) = &change {
            self.image = Some(image.clone());
            self.deltas.clear();
            self.bytes = 0;
        }
        writer.push((self.page, lsn), &change)
    }

    /// The delta, or the image that it leads to.
    fn lengthen(&mut self, delta: Change) -> Change {
        self.bytes += delta.body().len();
        self.deltas.push(delta.clone());
        if self.deltas.len() < CHAIN_DELTAS_MAX && self.bytes < CHAIN_BYTES_MAX {
            return delta;
        }
        let base = match &self.image {
            Some(image) => Some(image.to_vec()),
            None => self.before.page(self.page),
        };
        let Some(mut page) = base else {
            self.deltas.clear();
            self.bytes = 0;
            return delta;
        };
        for change in &self.deltas {
            change.apply(&mut page);
        }
        let len = page.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
        page.truncate(len);
        Change::Image(Bytes::from(page))
    }
}

/// Several changes of one page becoming one.
pub(super) struct Fold {
    page: Vec<u8>,
    /// Which bytes were set; not kept once the whole page is known.
    set: Vec<bool>,
    whole: bool,
    /// As long as there is only one it is passed on as it is.
    only: Option<Change>,
    count: usize,
}

impl Fold {
    pub(super) fn new(from_nothing: bool) -> Fold {
        Fold { page: Vec::new(), set: Vec::new(), whole: from_nothing, only: None, count: 0 }
    }

    pub(super) fn add(&mut self, change: Change) {
        self.count += 1;
        change.apply(&mut self.page);
        if change.is_image() {
            self.whole = true;
        }
        if !self.whole {
            self.set.resize(self.page.len(), false);
            for (offset, bytes) in change.ranges() {
                self.set[offset..offset + bytes.len()].fill(true);
            }
        }
        self.only = (self.count == 1).then_some(change);
    }

    pub(super) fn into_change(mut self) -> Change {
        match self.only {
            Some(change) if change.is_image() || !self.whole => return change,
            _ => {}
        }
        if self.whole {
            let len = self.page.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
            self.page.truncate(len);
            return Change::Image(Bytes::from(self.page));
        }
        let mut delta = Vec::new();
        let mut at = 0;
        while at < self.set.len() {
            if !self.set[at] {
                at += 1;
                continue;
            }
            let longest = (at + usize::from(u16::MAX)).min(self.set.len());
            let end = (at..longest).find(|&i| !self.set[i]).unwrap_or(longest);
            delta.extend_from_slice(&u16::try_from(at).expect("BUG: an offset lies inside a page").to_le_bytes());
            delta.extend_from_slice(&u16::try_from(end - at).expect("BUG: a range is cut at 65535").to_le_bytes());
            delta.extend_from_slice(&self.page[at..end]);
            at = end;
        }
        Change::Delta(Bytes::from(delta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change() -> impl Strategy<Value = Change> {
        let range = (0usize..60, proptest::collection::vec(any::<u8>(), 1..12));
        prop_oneof![
            1 => proptest::collection::vec(any::<u8>(), 0..64).prop_map(|b| Change::Image(Bytes::from(b))),
            4 => proptest::collection::vec(range, 0..5).prop_map(|ranges| {
                let mut body = Vec::new();
                for (offset, bytes) in ranges {
                    body.extend_from_slice(&(offset as u16).to_le_bytes());
                    body.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
                    body.extend_from_slice(&bytes);
                }
                Change::from_parts(2, Bytes::from(body)).unwrap()
            }),
        ]
    }

    fn trimmed(page: &[u8]) -> &[u8] {
        &page[..page.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1)]
    }

    proptest! {
        #[test]
        fn folded_changes_do_what_they_did_one_by_one(changes in proptest::collection::vec(change(), 1..8), before in proptest::collection::vec(any::<u8>(), 0..64), nothing in any::<bool>()) {
            let before = if nothing { Vec::new() } else { before };
            let mut one_by_one = before.clone();
            let mut fold = Fold::new(nothing);
            for c in changes {
                c.apply(&mut one_by_one);
                fold.add(c);
            }
            let folded = fold.into_change();
            prop_assert!(!nothing || folded.is_image());
            let folded = Change::from_parts(folded.kind(), folded.body().clone()).unwrap();
            let mut at_once = before;
            folded.apply(&mut at_once);
            prop_assert_eq!(trimmed(&at_once), trimmed(&one_by_one));
        }
    }
}
