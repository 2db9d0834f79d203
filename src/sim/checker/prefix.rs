//! Durability at the moment it is announced, prefixes, and positions that never move back.
//!
//! A VDL is believed when four copies' disks have it (what each says after its fsync, seen at the copy and not at the
//! appender). A secondary's copies hold a prefix of what the primary had committed when it was sent; it shows only
//! consistency points.

use super::Checked;
use crate::base::{LogEnd, Lsn};
use crate::log::Frame;
use crate::ship::Message;
use crate::sim::world::World;
use crate::volume::{CopyRequest, CopyState};

impl World {
    /// Copies of the region that have fsynced everything up to `end`, one that was replaced since included: in the group that has the
    /// fewest.
    fn copies_with(&self, r: usize, end: &LogEnd) -> usize {
        // A reign that is not open yet is on no history but its own.
        let on_history = self.truth.has(end);
        let covers = |claim: &LogEnd| claim.seq >= end.seq && ((on_history && self.truth.has(claim)) || self.truth.reaches(claim, end));
        let of_group = |g| self.regions[r].copies.iter().filter(move |c| c.member.group == g);
        let counts =
            self.plan.layout.all_groups().map(|g| of_group(g).filter(|c| covers(&c.claim) || covers(&c.claim_before_wipe)).count());
        counts.min().unwrap_or(0)
    }

    /// After everything that a node did.
    pub(in crate::sim) fn check_positions(&mut self, r: usize) -> Checked {
        let Some(node) = &self.regions[r].node else { return Ok(()) };
        let (end, vdl) = node.log_positions();
        let before = self.regions[r].vdl;
        if vdl == LogEnd::EMPTY || vdl == before {
            return Ok(());
        }
        let name = self.regions[r].name.clone();
        if vdl.seq < before.seq || (vdl.epoch, vdl.generation) < (before.epoch, before.generation) {
            return Err(format!("{name}: the VDL moved back from {before} to {vdl}"));
        }
        if end.seq < vdl.seq {
            return Err(format!("{name}: the VDL {vdl} is beyond the log's end {end}"));
        }
        self.regions[r].vdl = vdl;
        if before == LogEnd::EMPTY { self.check_found(r, &vdl) } else { self.check_announced(r, &vdl) }
    }

    /// What a region finds again when it starts may be the end of a line that was left while it was away: it goes back when it hears of that (seed
    /// 950031 of moves). It never wrote there, and shows no more of it than was committed.
    pub(in crate::sim) fn check_found(&mut self, r: usize, vdl: &LogEnd) -> Checked {
        let left = vdl.epoch < self.truth.epoch() && self.truth.writer_of(vdl.epoch) != Some(r) && self.truth.was_committed(vdl);
        if left { Ok(()) } else { self.check_announced(r, vdl) }
    }

    /// A region says that everything up to `vdl` is durable.
    pub(in crate::sim) fn check_announced(&mut self, r: usize, vdl: &LogEnd) -> Checked {
        let name = self.regions[r].name.clone();
        let writes = self.truth.writer_of(vdl.epoch) == Some(r);
        if writes && vdl.epoch == self.truth.epoch() {
            let committed = *self.truth.committed();
            // It is to reign anew behind what it voted with, and had only just begun its generation in the old epoch (seed 911444 of moves).
            if vdl.seq < committed.seq && !self.truth.goes_back_over_control_frames(vdl) {
                return Err(format!("durability: {name} came back with VDL {vdl}, {committed} was acknowledged"));
            }
            self.truth.commit(vdl)?;
        } else if writes && !self.truth.has(vdl) {
            // A reign that no majority has granted yet, or the tail of one that is over: durable here, and shown to nobody.
        } else if !self.is_on_history(vdl) {
            return Err(format!("prefix: {name} shows {vdl}, which is not what the primary committed (up to {})", self.truth.committed()));
        } else if self.truth.frame(vdl).is_none_or(|f| !f.is_consistency_point()) {
            return Err(format!("prefix: {name} shows {vdl}, which is no consistency point"));
        }
        let copies = self.copies_with(r, vdl);
        if copies < 4 {
            let claims: Vec<String> = self.regions[r].copies.iter().map(|c| c.claim.to_string()).collect();
            return Err(format!("durability: {name} counts {vdl} as durable and {copies} copies have fsynced it: {}", claims.join("; ")));
        }
        Ok(())
    }

    /// A prefix of what the primary committed; behind it perhaps the handover of an older epoch, which changes no page, by a switchover that a
    /// failover overtook (seed 850431 of moves).
    fn is_on_history(&self, vdl: &LogEnd) -> bool {
        let committed = |end: &LogEnd| end.seq <= self.truth.committed().seq && self.truth.has(end);
        committed(vdl) || (vdl.epoch < self.truth.epoch() && committed(&self.truth.behind_control_frames(vdl)))
    }

    /// Readers and clients are told of newly durable frames.
    pub(in crate::sim) fn check_advance(&mut self, r: usize, vdl: &LogEnd, frames: &[Frame]) -> Checked {
        // What was held until pages were near enough is behind what is durable by now.
        let held = self.truth.writer_of(vdl.epoch) == Some(r) && vdl.seq < self.truth.committed().seq && self.truth.has(vdl);
        if !held {
            self.check_announced(r, vdl)?;
        }
        let name = &self.regions[r].name;
        // Whoever reads what was just acknowledged waits for no more than is in memory anyway.
        if self.truth.writer_of(vdl.epoch) == Some(r) && frames.iter().any(|f| !f.is_control()) {
            let of = |group| self.regions[r].copies.iter().filter(move |c| c.member.group == group).map(|c| c.pages_had).max();
            let pages = self.plan.layout.all_groups().filter_map(of).min().unwrap_or(Lsn(0));
            let behind = vdl.end_lsn.bytes_since(pages);
            if behind > 2 * self.plan.limits.memtable_bytes_max as u64 {
                return Err(format!("{name}: acknowledges up to {vdl} while no copy has pages beyond LSN {pages}, {behind} bytes behind"));
            }
        }
        // A reign that began here goes on as its own log; a majority may not have granted it yet.
        if self.truth.writer_of(vdl.epoch) == Some(r) && vdl.epoch > self.truth.epoch() {
            return Ok(());
        }
        if frames.last().map(Frame::log_end) != Some(*vdl) {
            return Err(format!("{name}: it advances to {vdl} with frames that end elsewhere"));
        }
        match frames.iter().find(|f| !self.truth.has(&f.log_end()) && (!f.is_control() || !self.is_on_history(&f.log_end()))) {
            Some(odd) => Err(format!("prefix: {name} shows {odd:?}, which the primary's history does not have")),
            None => Ok(()),
        }
    }

    /// A message leaves the region.
    pub(in crate::sim) fn check_sent(&self, r: usize, message: &Message) -> Checked {
        let Message::Frames(frames) = message else { return Ok(()) };
        // What was durable when it was sent: as the node says, and that is judged by itself.
        let vdl = self.regions[r].node.as_ref().map_or(LogEnd::EMPTY, |n| n.log_positions().1);
        // A primary whose reign is over and that has not heard of it ships on; whoever promised a later epoch takes nothing of it.
        let over = |f: &Frame| self.truth.writer_of(f.header().epoch) == Some(r) && f.header().epoch < self.truth.epoch();
        match frames.iter().find(|f| f.seq() > vdl.seq || !(self.truth.has(&f.log_end()) || over(f))) {
            Some(odd) => Err(format!("S11: {} ships {odd:?}, its VDL is {vdl}", self.regions[r].name)),
            None => Ok(()),
        }
    }

    /// A request to a copy: every frame that is ever to be stored passes here.
    pub(in crate::sim) fn check_request(&mut self, r: usize, c: crate::base::MemberId, request: &CopyRequest) -> Checked {
        match request {
            CopyRequest::Append { frames, .. } => {
                for frame in frames {
                    self.truth.observe(frame)?;
                    if !frame.fits(c.group) {
                        return Err(format!("{}: {frame:?} of group {} goes to copy {c}", self.regions[r].name, frame.header().group));
                    }
                    self.truth.note_reign(frame, r)?;
                    if self.truth.writer_of(frame.header().epoch) != Some(r) {
                        self.check_foreign(r, &frame.log_end())?;
                    }
                }
                Ok(())
            }
            // A deposed primary rebuilds its copies from one another like any region.
            CopyRequest::SeedBegin { base, .. } if self.truth.writer_of(base.end.epoch) != Some(r) => self.check_foreign(r, &base.end),
            _ => Ok(()),
        }
    }

    /// S2: nothing is acknowledged in an epoch after a later one opened; S5: it is on the history that goes on.
    pub(in crate::sim) fn check_acknowledged(&mut self, r: usize, end: &LogEnd) -> Checked {
        if end.epoch != self.truth.epoch() || !self.truth.has(end) {
            return Err(format!(
                "S2, single writer: {} acknowledges {end}, and epoch {} of another region is open",
                self.regions[r].name,
                self.truth.epoch()
            ));
        }
        self.truth.acknowledge(end);
        Ok(())
    }

    /// A region's head gets a pen: a reign opens, goes on after a restart, or after a drain that was given up.
    pub(in crate::sim) fn check_reign_opens(&mut self, r: usize, pen: &crate::log::Pen) -> Checked {
        let name = self.regions[r].name.clone();
        if self.truth.writer_of(pen.epoch()) != Some(r) || pen.epoch() < self.truth.epoch() {
            return Err(format!(
                "one writer: {name} was handed the pen of epoch {}, and epoch {} is {:?}'s",
                pen.epoch(),
                self.truth.epoch(),
                self.truth.writer_of(self.truth.epoch())
            ));
        }
        if pen.epoch() > self.truth.epoch() {
            // One that was won and never opened is on the path of whoever opened after it: what it loses is lost now (seed 109 of moves).
            let local = self.regions[r].local(self.now);
            let node = self.regions[r].node.as_ref();
            let chain = node.and_then(|n| n.control_view(local)).map(|v| v.chain).unwrap_or_default();
            let mut path = vec![pen.epoch()];
            while let Some(entry) = path.last().and_then(|last| chain.iter().find(|e| e.epoch == *last && e.prev < e.epoch)) {
                path.push(entry.prev);
            }
            let since = self.truth.epoch();
            let records = node.and_then(|n| n.ledger()).map(|l| l.failovers().to_vec()).unwrap_or_default();
            let new = records.into_iter().filter(|f| f.new_epoch > since && path.contains(&f.new_epoch));
            if let Some(record) = new.min_by_key(|f| f.loss.base.seq) {
                self.truth.failover(pen.epoch(), &record);
            }
            let n = self.truth.open(pen.epoch(), pen.end())?;
            self.counts.reigns += 1;
            self.say(|| format!("epoch {} of {name} is open; {n} acknowledged frames are lost", pen.epoch()));
        }
        self.truth.go_on_with(pen.end())?;
        // The reign's first frame is durable already.
        self.truth.commit(pen.end())
    }

    /// What a secondary has on its disks was committed once, by the history that goes on or by one that was cut.
    fn check_was_shipped(&self, r: usize, end: &LogEnd) -> Checked {
        if self.truth.was_committed(end) { Ok(()) } else { self.check_foreign(r, end) }
    }

    fn check_foreign(&self, r: usize, end: &LogEnd) -> Checked {
        let committed = self.truth.committed();
        // Before a region goes back to where its line was left, its copies are fed and rebuilt from one another (seed 60132 of moves).
        let lies_here = |w: &World| w.regions[r].copies.iter().any(|c| c.claim.seq >= end.seq && w.truth.reaches(&c.claim, end));
        if (end.seq > committed.seq || !self.truth.has(end)) && !(self.truth.was_committed(end) && lies_here(self)) {
            return Err(format!(
                "S11: {} stores {end}, which the primary has not committed (its VDL is {committed})",
                self.regions[r].name
            ));
        }
        Ok(())
    }

    /// What a copy says is fsynced there.
    pub(in crate::sim) fn check_claim(&self, r: usize, c: crate::base::MemberId, state: &CopyState) -> Checked {
        let name = &self.regions[r].name;
        if self.truth.writer_of(state.end.epoch) != Some(r) && state.end != LogEnd::EMPTY {
            self.check_was_shipped(r, &state.end)?;
        } else if state.end != LogEnd::EMPTY && self.truth.frame(&state.end).is_none() {
            return Err(format!("{name}: copy {c} ends at {}, which nobody wrote", state.end));
        }
        if state.consistent.seq > state.end.seq
            || (state.consistent != LogEnd::EMPTY && self.truth.frame(&state.consistent).is_none_or(|f| !f.is_consistency_point()))
        {
            return Err(format!("{name}: copy {c} says its last consistency point is {}, its end {}", state.consistent, state.end));
        }
        let committed = self.truth.committed().end_lsn;
        // A region that was left by history has the pages of the line that it committed, until it goes back: also of what became durable there when
        // it was over already (seed 911238 of moves).
        let ingested = self.truth.behind_control_frames(&state.ingested);
        let left = || self.truth.was_committed(&ingested) || self.truth.reaches(&self.regions[r].vdl, &ingested);
        if state.ingested.end_lsn > committed && !left() {
            return Err(format!("{name}: copy {c} has pages up to LSN {}, the primary has committed {committed}", state.ingested));
        }
        Ok(())
    }
}
