//! What the node orders: lead, follow, found, append, keep, read, seed.
//!
//! Decides what each order asserts, and puts it on its way; what becomes of it comes out of [`super`]. Driven by the node.

use super::*;

impl Appender {
    /// Goes on as the primary: cuts the tail above the last consistency point by a generation start. Returns the pen; nothing
    /// it writes, and nothing of the old tail, is durable before that frame is.
    ///
    /// # Panics
    /// When recovery has not chosen a log.
    pub fn lead(&mut self, now: Instant, wall: UnixMicros, epoch: Epoch, consistent: LogEnd) -> Pen {
        assert_eq!(self.phase, VolumePhase::Chosen, "BUG: lead before recovery chose a log");
        let start = ControlFrame::GenerationStart.encode(&consistent, epoch, self.generation, wall);
        self.end = consistent;
        self.history.cut_from(consistent.seq.next());
        self.vdl = LogEnd::EMPTY;
        self.push(start);
        self.leads = true;
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Goes on as the primary of a new epoch: cuts everything behind the reign's base by the reign's first frame, also what became pages
    /// (copies that have such are rewound, and what is cut stays as an archive). Returns the pen; nothing it writes is durable before
    /// that frame is.
    ///
    /// # Panics
    /// When recovery has not chosen a log, when the base is not on it, or when the epoch is not newer than all of it.
    pub fn lead_epoch(&mut self, now: Instant, wall: UnixMicros, epoch: Epoch, reign: Reign) -> Pen {
        assert_eq!(self.phase, VolumePhase::Chosen, "BUG: lead before recovery chose a log");
        let base = reign.base;
        let ours = base.seq <= self.end.seq && base != LogEnd::EMPTY && self.history.contains(&base);
        assert!(ours && Some(reign.lineage) == self.lineage, "BUG: {base} is not on the log that ends at {}", self.end);
        assert!(epoch > self.end.epoch, "BUG: epoch {epoch} does not outrank {}", self.end);
        let start = ControlFrame::Reign(reign).encode(&base, epoch, self.generation, wall);
        self.end = base;
        self.history.cut_from(base.seq.next());
        self.vdl = LogEnd::EMPTY;
        self.push(start);
        self.leads = true;
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Founds a new global cluster on empty copies, or once more where a founding stopped half-way over the groups.
    ///
    /// # Panics
    /// When the copies are not all empty.
    pub fn found(&mut self, now: Instant, wall: UnixMicros, lineage: LineageId) -> Pen {
        assert!(self.phase == VolumePhase::AwaitingSeed && self.seeding.is_none(), "BUG: founding on a volume that is not empty");
        let epoch = Epoch(1);
        self.lineage = Some(lineage);
        self.end = LogEnd::EMPTY;
        self.leads = true;
        self.push(ControlFrame::EpochStart { lineage }.encode(&LogEnd::EMPTY, epoch, self.generation, wall));
        self.serve(now);
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Begins a reign behind the end of a log that this process holds already: as a secondary, all of it durable. Its generation is the
    /// one that the copies promised, so nobody else can append. Returns the pen; nothing it writes is durable before the first frame is.
    ///
    /// # Panics
    /// When the log's end is not durable, or is not the reign's base.
    pub fn begin_reign(&mut self, now: Instant, wall: UnixMicros, epoch: Epoch, reign: Reign) -> Pen {
        assert!(self.phase == VolumePhase::Serving && self.vdl == self.end, "BUG: a reign behind what is not durable");
        assert!(reign.base == self.end && epoch > self.end.epoch, "BUG: epoch {epoch} behind {}", self.end);
        let start = ControlFrame::Reign(reign).encode(&self.end, epoch, self.generation, wall);
        self.leads = true;
        self.append(now, vec![start]);
        self.pen(epoch)
    }

    /// A pen that goes on at the log's end. There is no other one, or it was given back.
    #[must_use]
    pub fn pen(&self, epoch: Epoch) -> Pen {
        Pen::new(epoch, self.generation, self.end, self.limits.frame_payload_bytes_max)
    }

    /// Goes on as a secondary behind the log that was chosen.
    ///
    /// # Panics
    /// When recovery has not chosen a log.
    pub fn follow(&mut self, now: Instant, consistent: LogEnd) {
        assert_eq!(self.phase, VolumePhase::Chosen, "BUG: follow before recovery chose a log");
        self.leads = false;
        self.vdl = LogEnd::EMPTY;
        // The beginning of a mini-transaction behind it comes again, and copies skip what they have: so whoever is told of newly
        // durable frames is told of all of them.
        self.end = consistent;
        self.history.cut_from(consistent.seq.next());
        self.points.push_back(consistent);
        self.serve(now);
    }

    /// Appends frames that follow `end`: the pen's, or those that a primary shipped.
    ///
    /// # Panics
    /// When a frame does not follow the log's end: the caller (the pen's holder, the receiver) has checked it.
    pub fn append(&mut self, now: Instant, frames: Vec<Frame>) {
        assert_eq!(self.phase, VolumePhase::Serving, "BUG: append to a volume that does not serve");
        assert!(!self.is_rewinding(), "BUG: append to a volume that goes back");
        for frame in frames {
            assert!(frame.follows(&self.end), "BUG: {frame:?} does not follow {}", self.end);
            self.push(frame);
        }
        for copy in self.members() {
            self.pump(now, copy);
        }
    }

    /// Keeps `control` on the six copies of group 0; `ControlDurable` when four have it. `holds_commits`: what lies here may lie nowhere else.
    pub fn put_control(&mut self, control: Vec<u8>, holds_commits: bool) {
        self.node_control = control;
        self.holds_commits = Some(holds_commits);
        if self.membership.is_none() {
            self.membership = self.membership_of_all();
        }
        self.put_kept();
        self.node_put = Some(self.control_version);
    }

    /// Frames from `from` on; answered by an effect, from memory or from the copy that can.
    pub fn read_log(&mut self, now: Instant, tag: u64, from: Seq, bytes_max: usize) {
        if let Some(frames) = self.ring_from(from, bytes_max) {
            self.effects.push_back(AppenderEffect::Log { tag, outcome: LogOutcome::Frames(frames) });
            return;
        }
        if self.layout.groups > 1 {
            return self.gather_log(now, tag, from, bytes_max);
        }
        self.start_read(now, ReadPurpose::Log { tag, from, bytes_max }, Vec::new());
    }

    /// All pages as of `at`, from `from` on; answered by an effect.
    pub fn read_pages(&mut self, now: Instant, tag: u64, at: Lsn, from: PageNo, bytes_max: usize) {
        self.start_read(now, ReadPurpose::Pages { tag, at, from, bytes_max }, Vec::new());
    }

    /// What must stay readable: the oldest LSN that a reader pins, the LSN that a seed is being read at, and the first seq
    /// that a secondary still needs. `fork`: the oldest LSN at which a later reign may begin, so that this region would have to go back to there.
    /// Bounded by the limits; nothing holds the log back longer than its budget.
    pub fn set_needs(&mut self, readers: Lsn, pages: Option<Lsn>, secondaries: Option<Seq>, fork: Option<Lsn>) {
        self.fork_need = fork;
        self.readers_need = readers;
        self.pages_need = pages;
        self.secondaries_need = secondaries;
    }

    /// Begins to replace the whole volume by the primary's pages at `base`.
    pub fn seed_begin(&mut self, now: Instant, base: SeedBase) {
        self.phase = VolumePhase::AwaitingSeed;
        self.way_back = None;
        (self.reign, self.reign_at) = (Epoch(0), LogEnd::EMPTY);
        self.scrubs.iter_mut().for_each(Scrub::stop);
        self.ring.clear();
        self.ring_bytes = 0;
        self.points.clear();
        self.reads.clear();
        self.gathers.clear();
        self.milestones.clear();
        self.vdl = LogEnd::EMPTY;
        self.known_durable.fill(LogEnd::EMPTY);
        self.forget_what_was_seen();
        let first = self.first_step();
        let request = CopyRequest::SeedBegin { generation: self.generation, step: first, base: base.clone() };
        self.seeding =
            Some(Seeding { base, first, requests: VecDeque::from([(0, request)]), last_step: 0, stored: 0, ending: false, stalled: false });
        for copy in self.members() {
            let peer = &mut self.peers[copy.index()];
            if matches!(peer.contact, Contact::Raised(_) | Contact::Joined | Contact::Repairing(_) | Contact::GoingBack(_)) {
                peer.contact = Contact::Joined;
                peer.acked = LogEnd::EMPTY;
                peer.reading = None;
                peer.splice = None;
                peer.seed_step = None;
                peer.seed_said = None;
                self.set_health(copy, CopyHealth::Seeding);
            } else {
                peer.acked = LogEnd::EMPTY;
            }
            self.feed_seed(now, copy);
        }
    }

    /// The next pages of the region's seed. Returns the step's number.
    pub fn seed_pages(&mut self, now: Instant, pages: Vec<(PageNo, Bytes)>) -> u64 {
        let generation = self.generation;
        self.seed_step(now, false, |step| CopyRequest::SeedPages { generation, step, pages })
    }

    /// The seed is complete: publish it. `SeedStored` with the returned step says it is on four.
    pub fn seed_end(&mut self, now: Instant) -> u64 {
        let generation = self.generation;
        self.seed_step(now, true, |step| CopyRequest::SeedEnd { generation, steps: step - 1 })
    }
}
