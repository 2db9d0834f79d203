//! What the files of a copy prove, whether it can be opened or not.
//!
//! Decides up to where they show that the log was durable in the region. Never whether the copy is any good: whoever reads this does so because it
//! cannot be opened, and what it lost may be what others lost, too (see [`crate::volume::evidence`]).

use super::manifest::Manifest;
use super::record::{FileHeader, search_marks};
use super::wal;
use crate::base::{LineageId, LogEnd, TimelineId};
use crate::volume::Disk;

/// The lineage, and the highest position that the files on `disk` show to have been durable; `None`: they show nothing.
#[must_use]
pub fn proven_durable(disk: &dyn Disk) -> Option<(LineageId, LogEnd)> {
    let manifest = Manifest::load(disk, TimelineId::ROOT).ok().flatten();
    let mut proven = manifest.as_ref().and_then(|m| Some((m.lineage?, m.proves_durable())));
    let first = manifest.as_ref().map_or(0, |m| m.log_first_number);
    let mut numbers: Vec<u64> = disk.list().ok()?.iter().filter_map(|name| wal::number_of(name)).filter(|n| *n >= first).collect();
    numbers.sort_unstable();
    for number in numbers {
        let name = wal::name_of(number);
        let Ok(Ok((header, content))) = FileHeader::read(disk, &name) else { continue };
        let of_another = proven.is_some_and(|(lineage, _)| lineage != header.lineage);
        if header.number != number || of_another {
            continue;
        }
        let marks = search_marks(disk, &name, number, header.lineage, content).ok().flatten().unwrap_or_default();
        let before = proven.map_or(LogEnd::EMPTY, |(_, at)| at);
        proven = Some((header.lineage, before.max(header.durable).max(marks.durable)));
    }
    proven.filter(|(_, at)| *at != LogEnd::EMPTY)
}
