//! How page space is cut: segments of equal size, dealt out to protection groups in turn.
//!
//! Decides which segment and which group a page belongs to, as a pure function of its number, so that the volume grows by another
//! segment without anybody being asked. A property of the lineage: fixed when the global cluster is founded, the same in all
//! regions. Page 0, the volume's header, is in group 0.

use super::{GroupId, PageNo};
use std::fmt;

/// What a page is long where segments are given in bytes: the size of the embedded head's pages.
pub const SEGMENT_PAGE_BYTES: u64 = 4096;
/// Protection groups of a volume, at most.
pub const GROUPS_MAX: u32 = 16;

/// The cut of page space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Layout {
    /// Pages of one segment, at least 1.
    pub segment_pages: u32,
    /// Protection groups, 1 to [`GROUPS_MAX`].
    pub groups: u32,
}

impl Default for Layout {
    /// One group, segments of 10 GiB (of pages of 4 KiB).
    fn default() -> Layout {
        Layout { segment_pages: 10 << 18, groups: 1 }
    }
}

impl Layout {
    /// Whether the numbers are in their ranges; what comes from a disk or a peer is asked before it is used.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.segment_pages >= 1 && (1..=GROUPS_MAX).contains(&self.groups)
    }

    /// The segment that holds `page`, counted from 0.
    #[must_use]
    pub fn segment_of(&self, page: PageNo) -> u32 {
        page.0 / self.segment_pages
    }

    #[must_use]
    pub fn group_of(&self, page: PageNo) -> GroupId {
        GroupId(self.segment_of(page) % self.groups)
    }

    /// First page behind the segment of `page`; `None` behind the last page there can be.
    #[must_use]
    pub fn segment_end(&self, page: PageNo) -> Option<PageNo> {
        u32::try_from((u64::from(self.segment_of(page)) + 1) * u64::from(self.segment_pages)).ok().map(PageNo)
    }

    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_pages) * SEGMENT_PAGE_BYTES
    }

    /// All groups, in order.
    pub fn all_groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.groups).map(GroupId)
    }
}

fn in_words(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(bits, _)| bytes.is_multiple_of(1 << bits));
    unit.map_or_else(|| format!("{bytes}B"), |(bits, name)| format!("{}{name}", bytes >> bits))
}

/// As it stands in the configuration: `segment = "10GiB", groups = 1`.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment = \"{}\", groups = {}", in_words(self.segment_bytes()), self.groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn segments_are_dealt_out_in_turn() {
        let layout = Layout { segment_pages: 4, groups: 3 };
        let groups: Vec<u32> = (0..20).map(|p| layout.group_of(PageNo(p)).0).collect();
        assert_eq!(groups, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(layout.segment_end(PageNo(5)), Some(PageNo(8)));
        assert_eq!(layout.segment_end(PageNo(u32::MAX)), None);
        assert_eq!(Layout::default().to_string(), "segment = \"10GiB\", groups = 1");
        assert_eq!(layout.to_string(), "segment = \"16KiB\", groups = 3");
        assert_eq!(Layout::default().segment_of(PageNo(10 << 18)), 1, "10 GiB of pages of 4 KiB");
    }

    proptest! {
        #[test]
        fn a_segment_ends_where_the_next_begins(segment_pages in 1u32.., groups in 1u32..=GROUPS_MAX, page: u32) {
            let layout = Layout { segment_pages, groups };
            prop_assert!(layout.group_of(PageNo(page)).0 < groups);
            if let Some(end) = layout.segment_end(PageNo(page)) {
                prop_assert!(end.0 > page);
                prop_assert_eq!(layout.segment_of(end), layout.segment_of(PageNo(page)) + 1);
                prop_assert_eq!(layout.segment_of(PageNo(end.0 - 1)), layout.segment_of(PageNo(page)));
            }
        }
    }
}
