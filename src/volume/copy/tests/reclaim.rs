//! A database that shrank gives the disks back what it had, once nobody looks back that far, and is not written again in vain before.

use super::*;
use crate::log::redo::VolumeHeader;
use std::collections::VecDeque;

const PAGE: usize = 4096;
const MANY: u32 = 600;
const FEW: u32 = 20;

struct Shrinking {
    copy: Copy,
    world: World,
    pen: Pen,
    horizon: Lsn,
}

impl Shrinking {
    fn commit(&mut self, pages: u32, changes: impl IntoIterator<Item = (u32, Vec<u8>)>) {
        let mut payload = Vec::new();
        put_record(&mut payload, PageNo::HEADER, &VolumeHeader { page_count: pages, page_bytes: 4096, high_water: MANY }.to_image());
        for (page, bytes) in changes {
            put_record(&mut payload, PageNo(page), &Change::Image(Bytes::from(bytes)));
        }
        let frames = self.pen.write(&[payload], true, UnixMicros(1));
        let CopyRequest::Append { generation, frames, vdl, trim, gate, .. } = self.world.append(frames, *self.pen.end()) else {
            unreachable!("BUG: it appends")
        };
        drive(&mut self.copy, vec![CopyRequest::Append { generation, frames, vdl, horizon: self.horizon, trim, gate }]);
    }

    /// A few pages change all the time.
    fn hot(&mut self, fill: u8) {
        self.commit(FEW, (1..4).map(|page| (page, vec![fill; PAGE])));
    }

    fn stored(&self) -> u64 {
        self.copy.manifest.layers.iter().map(|l| l.bytes).sum()
    }

    fn largest(&self) -> u64 {
        self.copy.manifest.layers.iter().max_by_key(|l| l.bytes).expect("there are layers").number
    }
}

#[test]
fn what_a_database_had_is_gone_from_the_disk_when_nobody_looks_back_and_is_not_written_again_before() {
    let limits = Limits { memtable_bytes_max: 64 << 10, log_file_bytes: 1 << 20, layers_before_compaction: 6, ..Limits::tiny() };
    let mut copy = Copy::open(disk(1) as Arc<dyn Disk>, &limits).unwrap();
    let world = World::founded(1);
    world.fill(&mut copy);
    let pen = Pen::new(Epoch(1), world.generation, world.end(), 64 << 10);
    let mut volume = Shrinking { copy, world, pen, horizon: Lsn(0) };
    for first in (1..=MANY).step_by(10) {
        let fill = u8::try_from(first % 251 + 1).unwrap();
        volume.commit(first + 9, (first..first + 10).map(|page| (page, vec![fill; PAGE])));
    }
    volume.horizon = volume.pen.end().end_lsn;
    for last in (FEW..MANY).rev().step_by(20) {
        volume.commit(last, (last + 1..=last + 20).filter(|page| *page <= MANY).map(|page| (page, Vec::new())));
    }

    // Somebody looks back to before it shrank.
    let (mut rewritten, mut largest) = (0, volume.largest());
    for round in 0..120 {
        volume.hot(round);
        rewritten += u32::from(std::mem::replace(&mut largest, volume.largest()) != volume.largest());
    }
    assert!(volume.stored() > u64::from(MANY) * PAGE as u64, "everything is kept");
    assert!(rewritten < 3, "and written again {rewritten} times");
    assert_eq!(volume.copy.pages().read(PageNo(300), volume.horizon).unwrap()[0], u8::try_from(291 % 251 + 1).unwrap());

    // And nobody does any more, but to a little behind the end: some layer always reaches above that.
    let mut ends = VecDeque::new();
    for round in 0..60 {
        volume.hot(round);
        ends.push_back(volume.pen.end().end_lsn);
        if ends.len() > 10 {
            volume.horizon = ends.pop_front().unwrap();
        }
    }
    let least = u64::from(FEW) * PAGE as u64 * 2 + 8 * (64 << 10);
    assert!(volume.stored() < least + (300 << 10), "{} bytes are stored", volume.stored());
    let end = volume.pen.end().end_lsn;
    assert_eq!(volume.copy.pages().read(PageNo(2), end).unwrap(), vec![59; PAGE]);
    assert!(volume.copy.pages().read(PageNo(300), end).unwrap().is_empty());
}
