//! What a run writes and reads: mini-transactions through the pen, pages at LSNs that readers may see.

use super::Mutant;
use super::checker::Checked;
use super::checker::truth::{Op, without_zeros};
use super::regions::Commit;
use super::world::{MS, What, World};
use crate::base::{CopyId, GroupId, Lsn, MemberId, PageNo};
use crate::log::redo::{Change, VolumeHeader, put_record};
use crate::node::Event;
use crate::ship::Message;
use crate::volume::ReadError;
use bytes::Bytes;
use std::collections::BTreeMap;

const PAGES: u64 = 14;
const PAGE_BYTES: usize = 160;
/// The head waits when so much is not durable.
const WAITING_MAX: usize = 24;

/// The beginning of a debug text: what a trace needs.
pub(super) fn shortly(text: &str) -> String {
    text.chars().take(260).collect()
}

impl World {
    pub(super) fn write(&mut self, r: usize, incarnation: u64) -> Checked {
        if self.regions[r].incarnation != incarnation || self.regions[r].head.pen.is_none() {
            return Ok(());
        }
        let after = self.work.between(self.plan.write_every_us / 4, self.plan.write_every_us * 7 / 4) * 1000;
        self.after(after, What::Write { region: r, incarnation });
        let head = &self.regions[r].head;
        if !self.writing || !head.gate_open || head.draining.is_some() || head.waiting.len() >= WAITING_MAX {
            return Ok(());
        }
        // Now and then many at once.
        let burst = if self.work.chance(30_000) { self.work.between(2, 12) } else { 1 };
        for _ in 0..burst {
            self.write_one(r)?;
        }
        Ok(())
    }

    fn write_one(&mut self, r: usize) -> Checked {
        self.counts.writes += 1;
        let number = self.counts.writes;
        let wall = self.regions[r].wall(self.now);
        let count = if self.work.chance(200_000) { self.work.between(2, 5) } else { 1 };
        let (mut payloads, mut changes) = (Vec::new(), Vec::new());
        for _ in 0..count {
            // A frame takes the pages of one group.
            let mut frames: BTreeMap<GroupId, (Vec<u8>, Vec<Op>)> = BTreeMap::new();
            for _ in 0..self.work.between(1, 2) {
                self.change(number, &mut frames);
            }
            for (group, (payload, ops)) in frames {
                payloads.push((group, payload));
                changes.push(ops);
            }
        }
        let user = self.work.chance(900_000);
        let pen = self.regions[r].head.pen.as_mut().expect("BUG: the caller saw a pen");
        let frames = pen.write_groups(&payloads, user, wall);
        let end = *pen.end();
        for (frame, ops) in frames.iter().zip(changes) {
            self.truth.write(frame, ops)?;
        }
        self.regions[r].head.waiting.push_back(Commit { number, end });
        if self.mutant == Some(Mutant::ShipAboveVdl) {
            for conn in self.links_to_secondaries(r) {
                self.put_on_wire(r, conn, &Message::Frames(frames.clone()));
            }
        }
        self.submit(r, frames);
        Ok(())
    }

    /// One change of one page; its content carries the number of the commit.
    fn change(&mut self, number: u64, frames: &mut BTreeMap<GroupId, (Vec<u8>, Vec<Op>)>) {
        let page = u32::try_from(self.work.below(PAGES)).expect("BUG: few pages");
        let (payload, ops) = frames.entry(self.plan.layout.group_of(PageNo(page))).or_default();
        if page == 0 {
            let page_count = u32::try_from(PAGES + number).expect("BUG: a small number");
            let header = VolumeHeader { page_count, page_bytes: 160, high_water: page_count };
            let image = header.to_image();
            put_record(payload, PageNo::HEADER, &image);
            ops.push(Op::Image { page, bytes: image.body().to_vec() });
            return;
        }
        let len = usize::try_from(self.work.between(8, 150)).expect("BUG: a page is small");
        let mut bytes = vec![u8::try_from(self.work.below(256)).expect("BUG: a byte"); len];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        if self.work.chance(250_000) {
            put_record(payload, PageNo(page), &Change::Image(Bytes::from(bytes.clone())));
            ops.push(Op::Image { page, bytes });
        } else {
            let at = usize::try_from(self.work.below((PAGE_BYTES - len) as u64 + 1)).expect("BUG: a page is small");
            let mut ranges = Vec::new();
            ranges.extend_from_slice(&u16::try_from(at).expect("BUG: a page is small").to_le_bytes());
            ranges.extend_from_slice(&u16::try_from(len).expect("BUG: a page is small").to_le_bytes());
            ranges.extend_from_slice(&bytes);
            put_record(payload, PageNo(page), &Change::Delta(Bytes::from(ranges)));
            ops.push(Op::Delta { page, at, bytes });
        }
    }

    // ---- reading ---------------------------------------------------------------------------------------------------

    pub(super) fn read_pages(&mut self) -> Checked {
        let after = self.work.between(5 * MS, 60 * MS);
        self.after(after, What::Read);
        for r in 0..self.regions.len() {
            let region = &self.regions[r];
            if region.node.is_none() || region.head.visible.seq.0 == 0 {
                continue;
            }
            // A deposed primary's readers see its own tail until it hears of the reign that has left it.
            if !self.truth.has(&region.head.visible) {
                continue;
            }
            let at = region.head.pin.map_or(region.head.visible.end_lsn, |(lsn, _)| lsn);
            let pinned_at = region.head.pin.map(|(_, since)| since);
            let copy = CopyId::all()[usize::try_from(self.work.below(6)).expect("BUG: six copies")];
            let page = PageNo(u32::try_from(self.work.below(PAGES)).expect("BUG: few pages"));
            let c = MemberId { group: self.plan.layout.group_of(page), copy };
            self.read_page(r, c, page, at, pinned_at)?;
        }
        Ok(())
    }

    fn read_page(&mut self, r: usize, c: MemberId, page: PageNo, at: Lsn, pinned_at: Option<u64>) -> Checked {
        let region = &self.regions[r];
        let Some(copy) = &region.copies[c.index()].copy else { return Ok(()) };
        // As readers do: a copy that has not heard of the volume's generation is not asked.
        let serves = region.node.as_ref().is_some_and(|node| copy.pages().serves(node.generation()));
        if !serves {
            return Ok(());
        }
        match copy.pages().read(page, at) {
            Ok(bytes) => {
                self.counts.page_reads += 1;
                if without_zeros(&bytes) != self.truth.page(page, at) {
                    return Err(format!(
                        "{}: copy {c} gives a wrong page {} as of LSN {at}: {}, the model has {}",
                        region.name,
                        page.0,
                        described(&bytes),
                        described(self.truth.page(page, at))
                    ));
                }
                Ok(())
            }
            Err(ReadError::NotYet { .. }) => Ok(()),
            Err(ReadError::Damaged { .. }) if region.copies[c.index()].is_rotten() => Ok(()),
            Err(e @ ReadError::TooOld { .. }) => match pinned_at {
                Some(since) if region.rebuilt_at < since => Err(format!("{}: copy {c} folded what a reader has pinned: {e}", region.name)),
                _ => Ok(()),
            },
            Err(e) => Err(format!("{}: copy {c} cannot read page {}: {e}", region.name, page.0)),
        }
    }

    /// As `io` does it: a moment after a reader pinned, the node is told.
    pub(super) fn pin(&mut self) -> Checked {
        let after = self.work.between(15 * MS, 25 * MS);
        self.after(after, What::Pin);
        for r in 0..self.regions.len() {
            let (begin, end) = (self.work.chance(50_000), self.work.chance(30_000));
            let now = self.now;
            let region = &mut self.regions[r];
            if region.node.is_none() || region.head.visible.seq.0 == 0 {
                continue;
            }
            // A copy that is being rebuilt, or a region that is being seeded, has lost old versions already.
            let visible = region.head.visible.end_lsn;
            let all_have = region.copies.iter().all(|c| c.copy.as_ref().is_some_and(|c| c.pages().first_readable() <= visible));
            if region.head.pin.is_none() && begin && all_have {
                region.head.pin = Some((region.head.visible.end_lsn, now));
            } else if end {
                region.head.pin = None;
            }
            let oldest = region.head.pin.map_or(Lsn(u64::MAX), |(lsn, _)| lsn);
            let incarnation = region.incarnation;
            self.to_node(r, incarnation, Event::HeadPins { oldest })?;
        }
        Ok(())
    }
}

fn described(bytes: &[u8]) -> String {
    let number = bytes.get(..8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("BUG: eight bytes")));
    format!("{} bytes, first word {number}, sum {:08x}", without_zeros(bytes).len(), crc32c::crc32c(without_zeros(bytes)))
}
