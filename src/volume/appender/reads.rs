//! Reads of the log and of pages on behalf of others: a secondary's sender, a copy that fell behind, a copy that is rebuilt. One
//! copy is asked, the next one when it cannot answer.

use super::*;

impl Appender {
    pub(super) fn source_for(&self, purpose: &ReadPurpose, tried: &[MemberId]) -> Option<MemberId> {
        let able = |p: &Peer| match purpose {
            ReadPurpose::Backfill { copy } => p.acked.seq > self.peers[copy.index()].sent,
            ReadPurpose::Log { from, .. } | ReadPurpose::LogPart { from, .. } => p.acked.seq >= *from,
            ReadPurpose::Point { child } => p.acked.seq >= self.point_from(*child),
            ReadPurpose::Archive { archive, .. } => p.archives.iter().any(|a| a.id == *archive),
            ReadPurpose::Pages { at, .. } | ReadPurpose::PagesPart { at, .. } => p.ingested >= *at || p.acked.end_lsn >= *at,
            ReadPurpose::Repair { copy } => p.acked.seq >= self.vdl.seq.max(self.known_durable[copy.group.index()].seq),
        };
        // Only the copies of one group have its pages, and its frames whole.
        let group = match purpose {
            ReadPurpose::Backfill { copy } | ReadPurpose::Repair { copy } => copy.group,
            ReadPurpose::LogPart { group, .. } | ReadPurpose::PagesPart { group, .. } | ReadPurpose::Archive { group, .. } => *group,
            ReadPurpose::Log { .. } | ReadPurpose::Point { .. } => GroupId(0),
            ReadPurpose::Pages { from, .. } => self.layout.group_of(*from),
        };
        // Who is damaged may still have what is asked for, but is asked last; whose pages are other ones is not asked for pages.
        let trusted = |p: &Peer| {
            !(matches!(purpose, ReadPurpose::Pages { .. } | ReadPurpose::PagesPart { .. } | ReadPurpose::Repair { .. })
                && p.has_other_pages())
        };
        MemberId::of(group)
            .into_iter()
            .filter(|c| self.peers[c.index()].is_joined() && !tried.contains(c) && able(&self.peers[c.index()]))
            .filter(|c| trusted(&self.peers[c.index()]))
            .max_by_key(|c| {
                (
                    self.archived_upto(*c, purpose),
                    self.peers[c.index()].damage.is_none(),
                    self.peers[c.index()].ingested,
                    std::cmp::Reverse(*c),
                )
            })
    }

    pub(super) fn start_read(&mut self, now: Instant, purpose: ReadPurpose, tried: Vec<MemberId>) {
        let Some(source) = self.source_for(&purpose, &tried) else {
            self.read_failed(now, purpose, "no copy can answer".into());
            return;
        };
        let id = self.next_read;
        self.next_read += 1;
        let request = match &purpose {
            ReadPurpose::Backfill { copy } => {
                let peer = &mut self.peers[copy.index()];
                peer.reading = Some(id);
                CopyRequest::ReadLog { id, from: peer.sent.next(), bytes_max: self.limits.batch_bytes_max }
            }
            ReadPurpose::Point { child } => {
                CopyRequest::ReadLog { id, from: self.point_from(*child), bytes_max: self.limits.batch_bytes_max }
            }
            ReadPurpose::Archive { archive, from, bytes_max, .. } => {
                CopyRequest::ReadArchive { id, archive: *archive, from: *from, bytes_max: *bytes_max }
            }
            ReadPurpose::Log { from, bytes_max, .. } | ReadPurpose::LogPart { from, bytes_max, .. } => {
                CopyRequest::ReadLog { id, from: *from, bytes_max: *bytes_max }
            }
            ReadPurpose::Pages { at, from, bytes_max, .. } => CopyRequest::ReadPages { id, at: *at, from: *from, bytes_max: *bytes_max },
            // One page, at least; about nothing more.
            ReadPurpose::PagesPart { at, from, .. } => CopyRequest::ReadPages { id, at: *at, from: *from, bytes_max: 1 },
            ReadPurpose::Repair { copy } => {
                let peer = &mut self.peers[copy.index()];
                let Contact::Repairing(repair) = &peer.contact else { return };
                peer.pace.asked(now);
                peer.read_at = None;
                // Small, because commits wait behind it at the copy that is read.
                CopyRequest::ReadPages { id, at: repair.at(), from: repair.next_page(), bytes_max: self.limits.batch_bytes_max / 2 }
            }
        };
        self.reads.insert(id, PendingRead { purpose, source, asked: now, tried });
        self.effects.push_back(AppenderEffect::ToCopy { copy: source, request });
    }

    pub(super) fn log_read(&mut self, now: Instant, id: u64, outcome: LogOutcome) {
        let Some(read) = self.reads.remove(&id) else { return };
        match read.purpose {
            ReadPurpose::Log { tag, .. } | ReadPurpose::Archive { tag, .. } => {
                self.effects.push_back(AppenderEffect::Log { tag, outcome });
            }
            ReadPurpose::Point { child } => self.point_read(now, child, outcome),
            ReadPurpose::LogPart { gather, group, .. } => self.part_read(gather, group, gathering::Part::Log(outcome)),
            ReadPurpose::Backfill { copy } => {
                let peer = &mut self.peers[copy.index()];
                if peer.reading != Some(id) {
                    return;
                }
                peer.reading = None;
                match outcome {
                    // What is read is only fed as it follows; a copy may have moved on meanwhile.
                    LogOutcome::Frames(frames) if frames.first().is_some_and(|f| f.seq() == peer.sent.next()) => {
                        self.feed(now, copy, frames);
                        self.pump(now, copy);
                    }
                    LogOutcome::Frames(_) => self.pump(now, copy),
                    LogOutcome::Trimmed { .. } => self.repair(now, copy),
                    LogOutcome::Unreadable { .. } => {}
                }
            }
            ReadPurpose::Pages { .. } | ReadPurpose::PagesPart { .. } | ReadPurpose::Repair { .. } => {}
        }
    }

    pub(super) fn pages_read(&mut self, now: Instant, id: u64, at: Lsn, pages: Vec<(PageNo, Bytes)>, next: Option<PageNo>) {
        let Some(read) = self.reads.remove(&id) else { return };
        match read.purpose {
            ReadPurpose::Pages { tag, from, .. } => self.segment_read(now, tag, at, from, pages, next),
            ReadPurpose::PagesPart { gather, group, .. } => self.part_read(gather, group, gathering::Part::Pages(pages, next)),
            ReadPurpose::Repair { copy } => {
                let generation = self.generation;
                if let Contact::Repairing(repair) = &mut self.peers[copy.index()].contact
                    && let Some(request) = repair.pages_arrived(now, generation, pages, next)
                {
                    self.peers[copy.index()].last_asked = now;
                    self.effects.push_back(AppenderEffect::ToCopy { copy, request });
                }
            }
            ReadPurpose::Log { .. }
            | ReadPurpose::LogPart { .. }
            | ReadPurpose::Backfill { .. }
            | ReadPurpose::Point { .. }
            | ReadPurpose::Archive { .. } => {}
        }
    }

    pub(super) fn unreadable(&mut self, now: Instant, id: u64, reason: String) {
        let Some(mut read) = self.reads.remove(&id) else { return };
        read.tried.push(read.source);
        if let ReadPurpose::Backfill { copy } = read.purpose {
            self.peers[copy.index()].reading = None;
        }
        if self.source_for(&read.purpose, &read.tried).is_some() {
            self.start_read(now, read.purpose, read.tried);
        } else {
            self.read_failed(now, read.purpose, reason);
        }
    }

    pub(super) fn read_failed(&mut self, now: Instant, purpose: ReadPurpose, reason: String) {
        match purpose {
            ReadPurpose::Log { tag, .. } | ReadPurpose::Archive { tag, .. } => {
                self.effects.push_back(AppenderEffect::Log { tag, outcome: LogOutcome::Unreadable { reason } });
            }
            ReadPurpose::Pages { tag, .. } => {
                self.effects.push_back(AppenderEffect::Pages { tag, outcome: PagesOutcome::Unreadable { reason } })
            }
            ReadPurpose::Point { child } => self.point_read(now, child, LogOutcome::Unreadable { reason }),
            ReadPurpose::LogPart { gather, .. } | ReadPurpose::PagesPart { gather, .. } => self.part_failed(gather, reason),
            // Asked again by the timer, when another copy may have what is needed.
            ReadPurpose::Backfill { copy } => self.peers[copy.index()].last_asked = now,
            // The versions at the base are gone or unreadable: begin anew at the present VDL, by the timer.
            ReadPurpose::Repair { copy } => {
                self.peers[copy.index()].last_asked = now;
                if let Contact::Repairing(repair) = &mut self.peers[copy.index()].contact {
                    repair.restart_later();
                }
            }
        }
    }

    pub(super) fn drop_reads_of(&mut self, copy: MemberId) {
        self.reads.retain(|_, r| !matches!(r.purpose, ReadPurpose::Backfill { copy: c } | ReadPurpose::Repair { copy: c } if c == copy));
    }

    pub(super) fn retry_orphaned_reads(&mut self, now: Instant) {
        let orphans: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, r)| matches!(self.peers[r.source.index()].contact, Contact::Down { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in orphans {
            self.unreadable(now, id, "the copy went down".into());
        }
    }

    /// Where the next seed's steps are counted from: no two seeds share a step.
    pub(super) fn first_step(&mut self) -> u64 {
        self.seeds += 1;
        self.seeds << 32
    }
}
