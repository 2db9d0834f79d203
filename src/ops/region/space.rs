//! What the volume takes: what the database uses of it, and what lies on the disks.
//!
//! Decides nothing; measured about once a second, away from everything that commits wait for. What cannot be measured now (no page
//! can be read, a copy's directory is on another machine) is not known, and said so.

use crate::base::{CopyId, Layout, MemberId, SEGMENT_PAGE_BYTES};
use crate::head::embedded::Engine;
use crate::io::copies::places::Places;
use crate::node::report::VolumeReport;
use crate::ops::config::Config;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Looks at everything anew. May wait for a page, and reads directories.
pub fn measure(engine: Option<&Engine>, config: &Config) -> VolumeReport {
    let layout = config.layout;
    let size = engine.and_then(Engine::database_size);
    let bytes = |pages: u32| u64::from(pages) * SEGMENT_PAGE_BYTES;
    VolumeReport {
        // Page 0 and as many pages as there ever were.
        segments: size.map(|s| layout.segment_of(crate::base::PageNo(s.high_water)) + 1),
        used_bytes: size.map(|s| bytes(s.pages)),
        free_bytes: size.map(|s| bytes(s.free_pages)),
        high_water_bytes: size.map(|s| bytes(s.high_water)),
        allocated_bytes: allocated(&config.data_dir, layout, |copy| !config.copies.contains_key(&copy)),
        ..VolumeReport::of(layout)
    }
}

/// Of each group the copy that takes most of those that live `here`, all groups together.
fn allocated(data_dir: &Path, layout: Layout, here: impl Fn(CopyId) -> bool) -> Option<u64> {
    // The directory that a replaced copy left is kept, and counts no more.
    let places = Places::load(&data_dir.join("copies")).ok()?;
    let of_copy = |member: MemberId| on_disk(&places.directory(member));
    layout.all_groups().map(|g| MemberId::of(g).into_iter().filter(|m| here(m.copy)).filter_map(of_copy).max()).sum()
}

fn on_disk(dir: &Path) -> Option<u64> {
    let files = std::fs::read_dir(dir).ok()?.flatten();
    // A file may go while it is looked at: then it takes nothing.
    Some(files.filter_map(|f| f.metadata().ok()).map(|m| m.blocks() * 512).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_the_disks_counts_once_for_each_group() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { segment_pages: 4, groups: 2 };
        let all = |_| true;
        assert_eq!(allocated(dir.path(), layout, all), None, "there is nothing yet");
        for (name, kib) in [("a1", 64), ("b2", 128), ("c1.g1", 256)] {
            std::fs::create_dir_all(dir.path().join("copies").join(name)).unwrap();
            std::fs::write(dir.path().join("copies").join(name).join("layer"), vec![7; kib << 10]).unwrap();
        }
        let got = allocated(dir.path(), layout, all).unwrap();
        assert!((384 << 10..600 << 10).contains(&got), "{got}");
        let got = allocated(dir.path(), layout, |copy| copy.to_string() != "b2").unwrap();
        assert!((320 << 10..384 << 10).contains(&got), "b2 is on another machine: {got}");

        // b2 was replaced, and what it left lies beside the others still.
        let new = dir.path().join("new");
        std::fs::create_dir_all(new.join("b2")).unwrap();
        std::fs::write(new.join("b2/layer"), vec![7; 16 << 10]).unwrap();
        std::fs::write(dir.path().join("copies/PLACES"), format!("b2 {}\n", new.display())).unwrap();
        let got = allocated(dir.path(), layout, all).unwrap();
        assert!((320 << 10..384 << 10).contains(&got), "{got}");
    }
}
