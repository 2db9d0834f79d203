//! The power is cut at every disk call of a run that does everything a copy does.

use super::*;

/// The logs that were written one after the other, each replacing the one before, and how far the copy acknowledged.
struct Script {
    worlds: Vec<World>,
    /// (which log, its acknowledged end)
    acked: (usize, LogEnd),
    promised: Generation,
    /// Seq of the frame that outranks the first log's tail.
    outranks: Seq,
    seeded: bool,
}

/// Frames of the first log that the second one keeps.
const KEEP: usize = 44;

impl Script {
    /// `false`: the copy failed.
    fn step(&mut self, copy: &mut Copy, world: usize, request: CopyRequest) -> bool {
        let replies = drive(copy, vec![request]);
        for reply in &replies {
            match reply {
                CopyReply::Appended { end, .. } => self.acked = (world, *end),
                CopyReply::Raised { generation, .. } => self.promised = *generation,
                CopyReply::Misplaced { .. } | CopyReply::Unreadable { .. } | CopyReply::SeedLost { .. } => panic!("{reply:?}"),
                _ => {}
            }
        }
        copy.failed().is_none()
    }

    fn appends(&mut self, copy: &mut Copy, world: usize, frames: Vec<Frame>, vdl_lag: usize, trim: bool) -> bool {
        let mut vdl = frames.first().map_or(LogEnd::EMPTY, |_| self.acked.1);
        let mut sent: Vec<LogEnd> = Vec::new();
        for batch in frames.chunks(3) {
            let generation = self.promised;
            let horizon = Lsn(vdl.end_lsn.0 / 2);
            let trim = if trim { Seq(vdl.seq.0 / 2) } else { Seq(0) };
            let request = CopyRequest::Append { generation, frames: batch.to_vec(), vdl, horizon, trim, gate: None };
            if !self.step(copy, world, request) {
                return false;
            }
            sent.push(batch.last().unwrap().log_end());
            if sent.len() > vdl_lag {
                vdl = sent[sent.len() - 1 - vdl_lag];
            }
        }
        true
    }

    /// Everything once. `false`: the disk failed on the way.
    fn run(&mut self, disk: &Arc<SimDisk>, seed: u64) -> bool {
        let Ok(mut copy) = try_open(disk) else { return false };
        if !self.step(&mut copy, 0, CopyRequest::Raise { generation: Generation(1) }) {
            return false;
        }
        // Generation 1 writes KEEP frames that become durable and a few more that do not reach this copy. Generation 2 did not
        // see those either, wrote a tail that only this copy has, and was cut by generation 3, which did.
        let mut shared = (0..).map(|i| World::sized(seed * 1000 + i, KEEP)).find(|w| w.end().seq == Seq(KEEP as u64)).expect("one fits");
        let mut first = shared.cut(KEEP, Generation(2));
        for _ in 0..5 {
            first.write();
        }
        shared.prng = Prng::new(seed + 77);
        for _ in 0..2 {
            shared.write();
        }
        let mut second = shared.cut(shared.frames.len(), Generation(3));
        let outranks = shared.frames.len();
        self.outranks = Seq(outranks as u64 + 1);
        for _ in 0..20 {
            second.write();
        }
        self.worlds.push(first.clone());
        // Founding, layers, compaction, trimming.
        if !self.appends(&mut copy, 0, first.frames[..KEEP].to_vec(), 2, true) {
            return false;
        }
        let durable = first.frames[KEEP - 1].log_end();
        if !self.step(&mut copy, 0, CopyRequest::Raise { generation: Generation(2) }) {
            return false;
        }
        let tail = first.append(first.frames[KEEP..].to_vec(), LogEnd::EMPTY);
        if !self.step(&mut copy, 0, tail) {
            return false;
        }
        // A process that was killed, not a machine.
        drop(copy);
        let Ok(mut copy) = try_open(disk) else { return false };
        // The next generation cuts the tail.
        if !self.step(&mut copy, 0, CopyRequest::Raise { generation: Generation(3) }) {
            return false;
        }
        self.worlds.push(second.clone());
        let overlap = second.append(second.frames[KEEP - 3..outranks + 3].to_vec(), durable);
        if !self.step(&mut copy, 1, overlap) || !self.appends(&mut copy, 1, second.frames[outranks + 3..].to_vec(), 0, false) {
            return false;
        }
        // A seed from another place, and the log behind it.
        let mut source = World::founded(seed + 1);
        source.generation = Generation(3);
        for _ in 0..50 {
            source.write();
        }
        let (mut third, base) = source.seeded();
        let generation = third.generation;
        let mut pages = third.pages(base.end.end_lsn);
        let rest = pages.split_off(pages.len() / 2);
        for _ in 0..12 {
            third.write();
        }
        self.worlds.push(third.clone());
        self.seeded = true;
        self.step(&mut copy, 2, CopyRequest::SeedBegin { generation, step: 0, base })
            && self.step(&mut copy, 2, CopyRequest::SeedPages { generation, step: 1, pages })
            && self.step(&mut copy, 2, CopyRequest::SeedPages { generation, step: 2, pages: rest })
            && self.step(&mut copy, 2, CopyRequest::SeedEnd { generation, steps: 2 })
            && self.appends(&mut copy, 2, third.frames.clone(), 1, true)
            && self.step(&mut copy, 2, third.append(Vec::new(), third.end()))
    }

    /// What must hold of a copy that was opened after the crash.
    fn check(&self, copy: &mut Copy, label: &str) {
        assert!(copy.promised() >= self.promised, "{label}: a promise was lost");
        let state = copy.state();
        let log = whole_log(copy);
        // Which of the logs is it? The newest that has its end.
        let lies_in = |world: &World| {
            let at = state.end.seq.0.checked_sub(world.before.seq.0 + 1);
            match at {
                None => state.end == world.before,
                Some(at) => world.frames.get(usize::try_from(at).unwrap()).is_some_and(|f| f.log_end() == state.end),
            }
        };
        let (acked_world, acked) = self.acked;
        let Some(which) = self.worlds.iter().rposition(lies_in) else {
            assert!(state.end == LogEnd::EMPTY && acked == LogEnd::EMPTY, "{label}: {state:?}");
            return;
        };
        if acked != LogEnd::EMPTY {
            // An end in the shared beginning of two logs counts for the older one.
            let shared = which == 1 && state.end.seq.0 <= KEEP as u64;
            let which = if shared { 0 } else { which };
            assert!(
                which > acked_world || (which == acked_world && state.end.seq >= acked.seq),
                "{label}: acknowledged {acked} of log {acked_world}, found {} of log {which}",
                state.end
            );
            assert!(which <= acked_world + 1, "{label}");
            assert!(which != 1 || state.end.seq >= self.outranks, "{label}: the tail went before what outranks it was there");
        }
        let world = &self.worlds[which];
        let from = usize::try_from(state.first.0 - 1 - world.before.seq.0).unwrap();
        assert_eq!(log[..], world.frames[from..from + log.len()], "{label}");
        let want = world.frames[..from + log.len()].iter().rev().find(|f| f.is_consistency_point()).map_or(world.before, Frame::log_end);
        assert_eq!(state.consistent, want, "{label}");
        // Told that all of it is durable, it has the pages.
        let replies = drive(
            copy,
            vec![CopyRequest::Append {
                generation: copy.promised(),
                frames: Vec::new(),
                vdl: state.end,
                horizon: Lsn(0),
                trim: Seq(0),
                gate: None,
            }],
        );
        assert_eq!(acknowledged(&replies), Some(state.end), "{label}");
        assert_eq!(copy.pages().ingested(), state.end.end_lsn, "{label}");
        world.check_pages(copy, state.end.end_lsn);
        world.check_pages(copy, copy.pages().first_readable());
        let left: Vec<String> = copy.disk.list().unwrap().into_iter().filter(|n| n.ends_with(manifest::TEMPORARY)).collect();
        assert!(left.is_empty(), "{label}: {left:?}");
    }
}

fn script() -> Script {
    Script { worlds: Vec::new(), acked: (0, LogEnd::EMPTY), promised: Generation::ZERO, outranks: Seq(0), seeded: false }
}

#[test]
fn whatever_was_acknowledged_is_there_wherever_the_power_goes() {
    let mut met = std::collections::BTreeSet::new();
    for n in 1.. {
        let mut finished = true;
        for seed in 0..3 {
            let disk = disk(n * 10 + seed);
            let mut script = script();
            disk.cut_power_at(n);
            let done = script.run(&disk, seed);
            finished &= done;
            met.insert((script.acked.0, script.seeded));
            // The power fails again while the copy is being opened, then no more.
            disk.crash();
            disk.restart();
            if n % 2 == 0 {
                disk.cut_power_at(1 + n % 7);
                drop(try_open(&disk));
                disk.crash();
                disk.restart();
            }
            let label = format!("power cut at call {n}, seed {seed}");
            let mut copy = try_open(&disk).unwrap_or_else(|e| panic!("{label}: {e}"));
            script.check(&mut copy, &label);
        }
        if finished {
            assert!(n > 150, "the script is long enough: {n}");
            break;
        }
    }
    assert!(met.contains(&(0, false)) && met.contains(&(1, false)) && met.contains(&(1, true)) && met.contains(&(2, true)), "{met:?}");
}

#[test]
fn a_torn_tail_ends_where_it_tore() {
    let mut ends = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let disk = disk(seed);
        let mut world = World::founded(1);
        // More and less, so that the last batch does not always begin a new file.
        for _ in 0..4 + seed % 8 {
            world.write();
        }
        let mut copy = open(&disk);
        world.fill(&mut copy);
        let acked = world.end();
        for _ in 0..4 {
            world.write();
        }
        let rest = usize::try_from(acked.seq.0).unwrap();
        let mut replies = Vec::new();
        copy.handle(world.append(world.frames[rest..].to_vec(), acked), &mut replies);
        // The write happens, its fsync does not.
        disk.cut_power_at(2);
        copy.flush(&mut replies);
        assert!(matches!(replies[..], [CopyReply::Failed { .. }]));
        disk.restart();
        let mut copy = open(&disk);
        let end = copy.state().end;
        assert!(end.seq >= acked.seq);
        ends.insert(end.seq.0 - acked.seq.0);
        let kept = usize::try_from(end.seq.0).unwrap();
        assert_eq!(whole_log(&mut copy), world.frames[..kept]);
        // It goes on from there, and what was torn never comes back.
        let replies = drive(&mut copy, vec![world.append(world.frames[kept - 1..].to_vec(), world.end())]);
        assert_eq!(acknowledged(&replies), Some(world.end()));
        disk.crash();
        disk.restart();
        assert_eq!(whole_log(&mut open(&disk)), world.frames);
    }
    assert!(ends.len() > 3, "{ends:?}");
}
