//! The copies of each region, six for each protection group: real [`Copy`]s on simulated disks, driven as `io` drives them, and all that happens to them.
//!
//! A *life* is one opening of a copy: what was sent to, or by, an earlier life reaches nobody. Within a life messages keep
//! their order unless the plan says that copies live on other machines.

use super::checker::Checked;
use super::disk::SimDisk;
use super::world::{MS, What, World};
use super::{Mutant, mutants};
use crate::base::{CopyId, Instant, LogEnd, Lsn, MemberId};
use crate::log::Frame;
use crate::node::Event;
use crate::volume::identity::{self, Home};
use crate::volume::membership::{Incarnation, Record};
use crate::volume::{Copy, CopyReply, CopyRequest, Directory, Disk, FlushDone, FlushJob, proven_durable};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who dies when a disk's power goes in the middle of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CutScope {
    Copy,
    Region,
}

pub(super) struct CopySlot {
    pub member: MemberId,
    pub disk: Arc<SimDisk>,
    /// Where `disk` is; empty: where the configuration says.
    pub place: String,
    /// Directories that are not open, by place.
    pub elsewhere: BTreeMap<String, Arc<SimDisk>>,
    pub seed: u64,
    pub disks: u64,
    /// Directories that were ever settled, or tried to be: none has the name of another, however late it is opened (seed 850433 of moves).
    born: u64,
    mutant: Option<Mutant>,
    pub copy: Option<Copy>,
    /// As it said when it was last open.
    pub incarnation: Incarnation,
    pub life: u64,
    /// Stopped by the plan until it is released.
    pub held: bool,
    pub slow_until: u64,
    pub cut: Option<CutScope>,
    to_copy_at: u64,
    to_node_at: u64,
    /// The fsync under way ends here.
    busy_until: u64,
    flush_queued: bool,
    ingest_queued: bool,
    /// What it says is fsynced.
    pub claim: LogEnd,
    /// What was fsynced here before the disk was wiped: acknowledgements may still be under way.
    pub claim_before_wipe: LogEnd,
    /// An old backup was put back: who it was then, and what it had.
    pub old: Option<(Incarnation, LogEnd)>,
    /// It has a log, or pages.
    pub has_data: bool,
    /// The newest page versions that it ever had.
    pub pages_had: Lsn,
    /// A file of which a bit was changed, and what it was then.
    rotten: Option<(String, Bytes)>,
}

impl CopySlot {
    pub(super) fn new(member: MemberId, seed: u64, sealed: bool, mutant: Option<Mutant>) -> CopySlot {
        CopySlot {
            member,
            disk: Arc::new(if sealed { SimDisk::sealed(seed) } else { SimDisk::new(seed) }),
            place: String::new(),
            elsewhere: BTreeMap::new(),
            seed,
            disks: 1,
            born: 0,
            mutant,
            copy: None,
            incarnation: Incarnation::UNKNOWN,
            life: 0,
            held: false,
            slow_until: 0,
            cut: None,
            to_copy_at: 0,
            to_node_at: 0,
            busy_until: 0,
            flush_queued: false,
            ingest_queued: false,
            claim: LogEnd::EMPTY,
            claim_before_wipe: LogEnd::EMPTY,
            old: None,
            has_data: false,
            pages_had: Lsn(0),
            rotten: None,
        }
    }

    pub(super) fn incarnation_of_new(&mut self) -> Incarnation {
        self.born += 1;
        Incarnation(u128::from(self.seed) << 64 | u128::from(self.born))
    }

    /// One bit of `name` was changed.
    pub(super) fn rotted(&mut self, name: String) {
        let now = self.disk.read(&name, 0, usize::MAX).unwrap_or_default();
        self.rotten = Some((name, now));
    }

    pub(super) fn was_rotten(&self) -> bool {
        self.rotten.is_some()
    }

    /// Nothing reads what rotted by itself: it is a part of an archive (whoever reads that asks another copy), or left over.
    pub(super) fn rots_unread(&self) -> bool {
        let disk = Arc::clone(&self.disk) as Arc<dyn Disk>;
        self.rotten
            .as_ref()
            .is_some_and(|(name, _)| name.starts_with('t') || Directory::idle_files(&disk).is_ok_and(|files| files.contains(name)))
    }

    /// What rotted still lies there.
    pub(super) fn is_rotten(&self) -> bool {
        self.rotten.as_ref().is_some_and(|(name, then)| self.disk.read(name, 0, usize::MAX).is_ok_and(|now| now == then))
    }

    pub(super) fn is_sound(&self) -> bool {
        self.has_data && !self.disk.is_down() && !self.is_rotten() && self.old.is_none()
    }

    fn is(&self, life: u64) -> bool {
        self.life == life && self.copy.is_some()
    }
}

impl World {
    fn slot(&mut self, r: usize, c: MemberId) -> &mut CopySlot {
        &mut self.regions[r].copies[c.index()]
    }

    // ---- opening and leaving ---------------------------------------------------------------------------------------

    pub(super) fn open_copy_after(&mut self, r: usize, c: MemberId, after: u64) {
        let slot = self.slot(r, c);
        slot.life += 1;
        let life = slot.life;
        self.after(after, What::CopyOpen { region: r, copy: c, life });
    }

    pub(super) fn copy_open(&mut self, r: usize, c: MemberId, life: u64) -> Checked {
        let (now, limits) = (self.now, self.plan.limits.clone());
        let region = &mut self.regions[r];
        let name = region.name.clone();
        let slot = &mut region.copies[c.index()];
        if slot.life != life || slot.copy.is_some() || slot.held || region.node.is_none() {
            return Ok(());
        }
        slot.disk.restart();
        let disk: Arc<dyn Disk> = mutants::disk(&slot.disk, slot.mutant);
        let home = Home { cluster: region.who.cluster.clone(), region: name.clone(), group: c.group.0, slot: c.copy };
        let fresh = slot.incarnation_of_new();
        match identity::settle(&*disk, &home, fresh).and_then(|_| Copy::open_group(c.group, disk, &limits)) {
            Ok(copy) => {
                let promised = copy.promised();
                slot.copy = Some(copy);
                (slot.to_copy_at, slot.to_node_at, slot.busy_until) = (now, now, now);
                (slot.flush_queued, slot.ingest_queued) = (false, false);
                let incarnation = region.incarnation;
                self.look_at(r, c)?;
                let after = self.delays.between(20_000, 300_000);
                let at = self.now + after;
                self.slot(r, c).to_node_at = at;
                self.at(at, What::Node { region: r, incarnation, event: Event::CopyOpened { copy: c, promised } });
                Ok(())
            }
            Err(e) if slot.disk.is_down() || slot.cut.take().is_some() => {
                self.say(|| format!("{name} {c} cannot be opened: {e}"));
                let after = self.delays.between(50 * MS, 600 * MS);
                self.open_copy_after(r, c, after);
                Ok(())
            }
            // Where its slot lives the mark says, or the record on the others.
            Err(crate::volume::OpenError::Replaced { place, .. }) => {
                self.follow_mark(r, c, place);
                Ok(())
            }
            Err(e @ crate::volume::OpenError::Disk(_)) => {
                self.say(|| format!("{name} {c} cannot be opened: {e}"));
                let after = self.delays.between(50 * MS, 600 * MS);
                self.open_copy_after(r, c, after);
                Ok(())
            }
            Err(e @ crate::volume::OpenError::Damaged { .. }) if slot.is_rotten() => {
                let proves = proven_durable(&*slot.disk);
                let incarnation = region.incarnation;
                self.say(|| format!("{name} {c} cannot be opened: {e}"));
                if let Some((lineage, durable)) = proves {
                    self.at(now, What::Node { region: r, incarnation, event: Event::CopyProves { copy: c, lineage, durable } });
                }
                // As in `io`: it is moved aside once recovery goes on without it, and rebuilt from its peers.
                if self.regions[r].node.as_ref().is_some_and(crate::node::Node::rebuilds_copies) {
                    self.wipe(r, c);
                }
                let after = self.delays.between(50 * MS, 600 * MS);
                self.open_copy_after(r, c, after);
                Ok(())
            }
            Err(e) => Err(format!("{name}: copy {c} cannot be opened after nothing worse than a crash: {e}")),
        }
    }

    /// The copy is gone at this moment, with what it had in memory.
    pub(super) fn drop_copy(&mut self, r: usize, c: MemberId, power: bool) {
        let slot = self.slot(r, c);
        slot.copy = None;
        slot.life += 1;
        slot.cut = None;
        if power {
            slot.disk.crash();
        }
    }

    /// The copy leaves its duty and, unless the plan holds it back, comes again.
    pub(super) fn lose_copy(&mut self, r: usize, c: MemberId, power: bool, reason: String) {
        if self.slot(r, c).copy.is_none() {
            return;
        }
        self.drop_copy(r, c, power);
        let after = self.delays.between(20_000, 2 * MS);
        let life = self.slot(r, c).life;
        let (incarnation, name) = (self.regions[r].incarnation, self.regions[r].name.clone());
        self.say(|| format!("{name} {c} is lost: {reason}"));
        self.after(after, What::CopyLost { region: r, copy: c, life, incarnation, reason });
    }

    pub(super) fn copy_lost(&mut self, r: usize, c: MemberId, life: u64, incarnation: u64, reason: String) -> Checked {
        if self.regions[r].incarnation != incarnation || self.regions[r].node.is_none() || self.slot(r, c).life != life {
            return Ok(());
        }
        self.to_node(r, incarnation, Event::CopyLost { copy: c, reason })?;
        if !self.slot(r, c).held {
            let after = self.delays.between(20 * MS, if self.stormy { 900 * MS } else { 100 * MS });
            self.open_copy_after(r, c, after);
        }
        Ok(())
    }

    // ---- messages --------------------------------------------------------------------------------------------------

    /// When a message sent now arrives; `None`: never. Twice, when doubled.
    fn local_arrivals(&mut self, last_at: u64) -> (Option<u64>, Option<u64>) {
        let chances = self.plan.local;
        let delay = |w: &mut World| if w.delays.chance(10_000) { w.delays.below(5 * MS) } else { w.delays.between(5_000, 120_000) };
        let lossy = self.stormy;
        let first = self.now + delay(self);
        let in_order = if lossy && self.delays.chance(chances.reorder) { first + self.delays.below(3 * MS) } else { first.max(last_at) };
        if lossy && self.delays.chance(chances.loss) {
            self.counts.messages_lost += 1;
            return (None, None);
        }
        let second = (lossy && self.delays.chance(chances.double)).then(|| in_order + delay(self) * 3);
        self.counts.messages_doubled += u64::from(second.is_some());
        (Some(in_order), second)
    }

    pub(super) fn send_to_copy(&mut self, r: usize, c: MemberId, mut request: CopyRequest) -> Checked {
        if let (Some(Mutant::FoldedUnderReaders), CopyRequest::Append { vdl, horizon, .. }) = (self.mutant, &mut request) {
            *horizon = vdl.end_lsn;
        }
        self.check_request(r, c, &request)?;
        if let CopyRequest::PutControl { control, .. } = &request {
            self.regions[r].membership = Record::decode(control).and_then(|record| record.membership);
        }
        let slot = self.slot(r, c);
        let (life, last) = (slot.life, slot.to_copy_at);
        if slot.copy.is_none() {
            return Ok(());
        }
        let (first, second) = self.local_arrivals(last);
        if let Some(at) = second {
            self.at(at, What::CopyRequest { region: r, copy: c, life, request: request.clone() });
        }
        if let Some(at) = first {
            self.slot(r, c).to_copy_at = last.max(at);
            self.at(at, What::CopyRequest { region: r, copy: c, life, request });
        }
        Ok(())
    }

    fn send_replies(&mut self, r: usize, c: MemberId, replies: Vec<CopyReply>, after: u64) {
        let (incarnation, mutant) = (self.regions[r].incarnation, self.mutant);
        for mut reply in replies {
            if matches!(reply, CopyReply::Failed { .. }) {
                continue; // said once, by its loss
            }
            if mutant == Some(Mutant::DamagedSource) {
                mutants::damage(&mut reply);
            }
            let slot = self.slot(r, c);
            let (life, last) = (slot.life, slot.to_node_at);
            let (first, second) = self.local_arrivals(last.saturating_sub(after));
            for at in [first, second].into_iter().flatten() {
                let at = at + after;
                let copy_of = reply.clone();
                self.at(at, What::CopyReply { region: r, copy: c, life, incarnation, reply: copy_of });
            }
            if let Some(at) = first {
                self.slot(r, c).to_node_at = last.max(at + after);
            }
            match (mutant, c.copy.0) {
                (Some(Mutant::AckFromTwo), 0 | 1) => self.forge(r, c, &reply, after, &[c.copy.0 + 2, c.copy.0 + 4]),
                (Some(Mutant::AckFromThree), 0) => self.forge(r, c, &reply, after, &[1]),
                _ => {}
            }
        }
    }

    /// The mutant: what one copy acknowledges counts for `others` as well.
    fn forge(&mut self, r: usize, c: MemberId, reply: &CopyReply, after: u64, others: &[u8]) {
        let incarnation = self.regions[r].incarnation;
        if let CopyReply::Appended { .. } = reply {
            for other in others {
                let other = MemberId { copy: CopyId(*other), ..c };
                let life = self.slot(r, other).life;
                let at = self.now + after + MS;
                self.at(at, What::CopyReply { region: r, copy: other, life, incarnation, reply: reply.clone() });
            }
        }
    }

    pub(super) fn copy_reply(&mut self, r: usize, c: MemberId, life: u64, incarnation: u64, reply: CopyReply) -> Checked {
        if self.slot(r, c).life != life {
            return Ok(());
        }
        self.to_node(r, incarnation, Event::CopyReplied { copy: c, reply })
    }

    // ---- what a copy does --------------------------------------------------------------------------------------------

    pub(super) fn copy_request(&mut self, r: usize, c: MemberId, life: u64, request: CopyRequest) -> Checked {
        let (now, mutant, limits) = (self.now, self.mutant, self.plan.limits.clone());
        let slot = self.slot(r, c);
        if !slot.is(life) {
            return Ok(());
        }
        if slot.busy_until > now {
            // It waits behind the fsync under way.
            let at = slot.busy_until;
            self.at(at, What::CopyRequest { region: r, copy: c, life, request });
            return Ok(());
        }
        let forged = match &request {
            CopyRequest::Append { generation, frames, .. } if mutant == Some(Mutant::AckBeforeSync) => {
                frames.last().map(|f| (*generation, Frame::log_end(f)))
            }
            _ => None,
        };
        let replaces = matches!(request, CopyRequest::SeedEnd { .. });
        let mut replies = Vec::new();
        if mutant == Some(Mutant::CutWithoutSuccessor)
            && let Some((disk, copy)) = mutants::cut(&slot.disk, slot.copy.as_mut().expect("BUG: the copy lives"), &request, &limits)
        {
            (slot.disk, slot.copy) = (disk, Some(copy));
        }
        let copy = slot.copy.as_mut().expect("BUG: the copy lives");
        copy.time_is(Instant { ns: now });
        copy.handle(request, &mut replies);
        if let Some((generation, end)) = forged {
            replies.push(CopyReply::Appended {
                generation,
                end,
                ingested: copy.state().ingested.end_lsn,
                low: false,
                at: Instant { ns: now },
            });
        }
        let flush = !slot.flush_queued;
        slot.flush_queued = true;
        if replaces {
            // Also where the log ends as it did before: its old versions are gone, and who pinned them reads another copy.
            self.regions[r].rebuilt_at = now;
        }
        if self.after_copy(r, c)? {
            self.send_replies(r, c, replies, 10_000);
            if flush {
                let gather = self.delays.between(10_000, 400_000);
                self.after(gather, What::CopyFlush { region: r, copy: c, life });
            }
        }
        Ok(())
    }

    pub(super) fn copy_flush(&mut self, r: usize, c: MemberId, life: u64) -> Checked {
        let now = Instant { ns: self.now };
        let slow = self.now < self.slot(r, c).slow_until;
        let fsync_us = if slow { self.plan.fsync_us * 20 + 20_000 } else { self.plan.fsync_us };
        let slot = self.slot(r, c);
        if !slot.is(life) {
            return Ok(());
        }
        slot.flush_queued = false;
        let mut replies = Vec::new();
        let copy = slot.copy.as_mut().expect("BUG: the copy lives");
        copy.time_is(now);
        copy.flush(&mut replies);
        let took = self.delays.between(fsync_us / 4, fsync_us) * 1000;
        let busy = self.now + took;
        self.slot(r, c).busy_until = busy;
        if self.after_copy(r, c)? {
            self.send_replies(r, c, replies, took);
            self.queue_ingest(r, c, took);
        }
        Ok(())
    }

    fn queue_ingest(&mut self, r: usize, c: MemberId, after: u64) {
        let slot = self.slot(r, c);
        if !slot.ingest_queued {
            slot.ingest_queued = true;
            let life = slot.life;
            let after = after + self.delays.between(1000, 2 * MS);
            self.after(after, What::CopyIngest { region: r, copy: c, life });
        }
    }

    pub(super) fn copy_ingest(&mut self, r: usize, c: MemberId, life: u64) -> Checked {
        let slot = self.slot(r, c);
        if !slot.is(life) {
            return Ok(());
        }
        slot.ingest_queued = false;
        let mut replies = Vec::new();
        let copy = slot.copy.as_mut().expect("BUG: the copy lives");
        let more = copy.ingest(&mut replies);
        let jobs: Vec<FlushJob> = std::iter::from_fn(|| copy.background_job()).collect();
        if self.after_copy(r, c)? {
            self.send_replies(r, c, replies, 0);
            if more {
                self.queue_ingest(r, c, 0);
            }
            for job in jobs {
                let after = self.delays.between(10_000, self.plan.layers_us * 1000);
                self.after(after, What::JobRun { region: r, copy: c, life, job });
            }
        }
        Ok(())
    }

    pub(super) fn job_run(&mut self, r: usize, c: MemberId, life: u64, job: FlushJob) -> Checked {
        if !self.slot(r, c).is(life) {
            return Ok(());
        }
        let done = job.run();
        if self.after_copy(r, c)? {
            let after = self.delays.between(10_000, 20 * MS);
            self.after(after, What::JobDone { region: r, copy: c, life, done });
        }
        Ok(())
    }

    pub(super) fn job_done(&mut self, r: usize, c: MemberId, life: u64, done: FlushDone) -> Checked {
        let slot = self.slot(r, c);
        if !slot.is(life) {
            return Ok(());
        }
        let mut replies = Vec::new();
        slot.copy.as_mut().expect("BUG: the copy lives").finish(done, &mut replies);
        if self.after_copy(r, c)? {
            self.send_replies(r, c, replies, 0);
            self.queue_ingest(r, c, 0);
        }
        Ok(())
    }

    /// Looks at a copy after each call of its disk. `false`: it is no more, and what it wanted to say is unsaid.
    fn after_copy(&mut self, r: usize, c: MemberId) -> Checked<bool> {
        let slot = self.slot(r, c);
        if slot.disk.is_down() {
            match slot.cut.take() {
                Some(CutScope::Region) => self.crash_region(r, true),
                Some(CutScope::Copy) | None => self.lose_copy(r, c, true, "its power went".into()),
            }
            return Ok(false);
        }
        if let Some(reason) = slot.copy.as_ref().and_then(|copy| copy.failed().map(str::to_owned)) {
            // Only an order of ours fails a disk.
            if reason.contains("injected") || reason.contains("full") {
                self.lose_copy(r, c, false, reason);
                return Ok(false);
            }
            return Err(format!("{}: copy {c} left its duty on a healthy disk: {reason}", self.regions[r].name));
        }
        self.look_at(r, c)?;
        Ok(true)
    }

    /// Notes what the copy says is fsynced, and judges it.
    fn look_at(&mut self, r: usize, c: MemberId) -> Checked {
        let slot = self.slot(r, c);
        let state = slot.copy.as_ref().expect("BUG: the copy lives").state();
        let rebuilt = state.lineage.is_some() && state.first > slot.claim.seq.next();
        slot.has_data = state.lineage.is_some();
        slot.incarnation = state.incarnation;
        slot.pages_had = slot.pages_had.max(state.ingested.end_lsn);
        // Reborn, or it has again what it had.
        slot.old.take_if(|(was, had)| state.incarnation != *was || state.end >= *had);
        if slot.claim == state.end {
            return Ok(());
        }
        slot.claim = state.end;
        if rebuilt {
            self.regions[r].rebuilt_at = self.now;
            self.counts.copies_rebuilt += 1;
        }
        self.check_claim(r, c, &state)
    }

    /// The disk is replaced by a new and empty one.
    pub(super) fn wipe(&mut self, r: usize, c: MemberId) {
        self.lose_copy(r, c, false, "its disk was replaced".into());
        self.drop_copy(r, c, false);
        let now = self.now;
        let region = &mut self.regions[r];
        region.rebuilt_at = now;
        let running = region.node.is_some();
        let slot = &mut region.copies[c.index()];
        slot.disk = Arc::new(slot.disk.another(slot.seed ^ slot.disks.wrapping_mul(0x9e37_79b9)));
        slot.disks += 1;
        // What an old backup was put in place of is counted on still, for a moment (seed 910104 of moves).
        if slot.claim != LogEnd::EMPTY {
            slot.claim_before_wipe = slot.claim;
        }
        slot.claim = LogEnd::EMPTY;
        slot.old = None;
        slot.has_data = false;
        let life = slot.life;
        let (incarnation, after) = (region.incarnation, self.delays.between(MS, 3 * MS));
        if running {
            self.after(after, What::CopyLost { region: r, copy: c, life, incarnation, reason: "its disk was replaced".into() });
        }
    }
}
