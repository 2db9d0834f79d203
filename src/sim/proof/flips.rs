//! Bytes flip in a volume's files, in each region of each kind of file: in one copy, in two, in three, in all six; while the volume is
//! stopped and while it runs.
//!
//! Expected of up to three: each flip is found by whoever reads the copy, no wrong byte is ever served, everything acknowledged
//! is there, and the copies are whole again in the end. Of a running volume: nothing of a flip is left when it was scrubbed as a whole, opened again and
//! scrubbed once more. Of all six: what is damaged is not served, and somebody says so by name.
//! Decides nothing about the volume. Flips come from the seed, and `--only` one of them again.

use super::Checked;
use super::look::Sight;
use super::rig::{Disks, Harm, Rig, alike};
use super::story::Story;
use crate::base::{CopyId, Prng};
use crate::sim::cipher::frame_at;
use crate::sim::disk::{Left, SimDisk};
use crate::sim::proof::powercut::guarded;
use crate::sim::runs::spread;
use crate::volume::{Disk, DiskError, SEAL_BYTES};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Commits of the volume that is damaged; enough for log files, layers and a merge of layers.
const COMMITS: u32 = 60;
const FAILURES_MAX: usize = 5;
/// In so many copies the same byte is flipped.
const IN_COPIES: [usize; 4] = [1, 2, 3, 6];

/// What to run.
#[derive(Clone, Debug)]
pub struct FlipOptions {
    pub seed: u64,
    pub flips: u64,
    pub threads: usize,
    /// The files are sealed.
    pub sealed: bool,
    pub only: Option<u64>,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct FlipReport {
    pub flips: u64,
    /// By region of a file: how many, and how many of them were found.
    pub regions: BTreeMap<&'static str, (u64, u64)>,
    /// All six were flipped and somebody said so.
    pub named_halts: u64,
    pub failures: Vec<String>,
}

impl fmt::Display for FlipReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flips, {} failed; {} halts with a name", self.flips, self.failures.len(), self.named_halts)?;
        for (region, (flips, found)) in &self.regions {
            write!(f, "\n  {flips:>7}  {region}: {found} found")?;
        }
        Ok(())
    }
}

/// Where nothing lies that means anything.
const FREE: &str = "log: free space";
/// Whether it was fsynced is proven by what comes behind it, and nothing has: damage in it looks as a torn write does.
const LAST: &str = "log: last batch";

struct Target {
    file: String,
    region: &'static str,
    bytes: Range<u64>,
}

/// The volume before it is damaged.
struct Base {
    disks: Disks,
    story: Story,
    targets: BTreeMap<&'static str, Vec<Target>>,
}

/// Flips bytes until there were enough. `say` is given each failure as it is found.
///
/// # Errors
/// When the volume cannot be made that is to be damaged.
pub fn run(options: &FlipOptions, say: &(dyn Fn(&str) + Sync)) -> Result<FlipReport, String> {
    let base = Base::make(options.seed, options.sealed)?;
    let report = Mutex::new(FlipReport::default());
    let next = AtomicU64::new(0);
    spread(options.threads, || {
        loop {
            let no = options.only.unwrap_or_else(|| next.fetch_add(1, Ordering::Relaxed));
            if no >= options.flips && options.only.is_none() || report.lock().failures.len() >= FAILURES_MAX {
                return;
            }
            let flip = Flip::draw(&base, options.seed, no);
            let (region, how) = (flip.region, flip.how.clone());
            let outcome = guarded(|| flip.check(&base));
            let mut report = report.lock();
            report.flips += 1;
            match outcome {
                Ok(Outcome { found, named_halt }) => {
                    let counts = report.regions.entry(region).or_default();
                    counts.0 += 1;
                    counts.1 += u64::from(found);
                    report.named_halts += u64::from(named_halt);
                }
                Err(what) => {
                    let sealed = if options.sealed { " --sealed" } else { "" };
                    let again = format!("parhelion flips --seed {} --only {no}{sealed}", options.seed);
                    report.failures.push(format!("seed {}, flip {no} ({how}): {what}\n  again: {again}", options.seed));
                    say(report.failures.last().expect("BUG: it was just put there"));
                }
            }
            if options.only.is_some() {
                return;
            }
        }
    });
    Ok(report.into_inner())
}

impl Base {
    fn make(seed: u64, sealed: bool) -> Checked<Base> {
        let mut rig = Rig::start(alike(seed, sealed), Story::new(), seed, Harm::None, None)?;
        rig.rest()?;
        for _ in 0..COMMITS {
            rig.write()?;
            rig.rest()?;
        }
        rig.check(&[])?;
        let disks: Disks = std::array::from_fn(|i| Arc::new(rig.disk(CopyId::all()[i]).image(Left::Cached, i as u64)));
        let mut targets: BTreeMap<&'static str, Vec<Target>> = BTreeMap::new();
        let mut files = disks[0].list().map_err(|e| e.to_string())?;
        files.sort();
        let newest = files.iter().rfind(|f| f.starts_with("log-")).cloned();
        for file in &files {
            for target in targets_in(&disks[0], file, newest.as_ref() == Some(file))? {
                targets.entry(target.region).or_default().push(target);
            }
        }
        let story = rig.bench.story.lock().clone();
        Ok(Base { disks, story, targets })
    }
}

/// The regions of one file, by what the formats say (not by the code that reads them).
fn targets_in(disk: &SimDisk, file: &str, newest: bool) -> Checked<Vec<Target>> {
    let bytes = disk.read(file, 0, usize::MAX).map_err(|e| e.to_string())?;
    let len = bytes.len() as u64;
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("BUG: eight bytes"));
    let target = |region, bytes| Target { file: file.to_owned(), region, bytes };
    let cipher = disk.sim_cipher();
    let (head, mark, mark_len) = if cipher.is_some() { (8 + SEAL_BYTES, b"PHLn", 4 + 44 + SEAL_BYTES) } else { (16, b"PHLN", 52) };
    let len_at = if cipher.is_some() { 4 } else { 8 };
    let head =
        head as u64 + bytes.get(len_at..len_at + 4).map_or(0, |b| u64::from(u32::from_le_bytes(b.try_into().expect("BUG: four bytes"))));
    Ok(match file {
        "MANIFEST" => vec![target("manifest", 0..len)],
        "promise" => vec![target("promise", 0..len)],
        "control" => vec![target("control", 0..len)],
        "identity" => vec![target("identity", 0..len)],
        _ if file.starts_with("layer-") => {
            let index = u64_at(bytes.len() - 72 + 48);
            vec![target("layer: block", 0..index), target("layer: index", index..len - 72), target("layer: footer", len - 72..len)]
        }
        _ if file.starts_with("log-") => {
            let mut targets = vec![target("log: header", 0..head)];
            let mut at = head;
            while at < len {
                let rest = bytes.slice(usize::try_from(at).expect("BUG: an offset")..);
                if rest.starts_with(mark) {
                    targets.push(target("log: mark", at..at + mark_len as u64));
                    at += mark_len as u64;
                } else if let Some((_, len)) = frame_at(cipher, &rest) {
                    let end = at + len as u64;
                    let header = if cipher.is_some() { 20 } else { 64 };
                    targets.push(target("log: frame header", at..at + header));
                    targets.push(target("log: frame payload", at + header..end));
                    at = end;
                } else {
                    targets.push(target(FREE, at..len));
                    break;
                }
            }
            targets.retain(|t| !t.bytes.is_empty());
            // The header of a file proves its first batch.
            let last = targets.iter().rposition(|t| t.region == "log: mark").filter(|_| newest);
            for target in last.into_iter().flat_map(|last| last..targets.len()).filter(|i| targets[*i].region != FREE).collect::<Vec<_>>() {
                targets[target].region = LAST;
            }
            targets
        }
        other => return Err(format!("a copy has a file that nobody knows: {other}")),
    })
}

struct Flip {
    region: &'static str,
    file: String,
    at: u64,
    /// Of the region that it is in.
    bytes: Range<u64>,
    mask: u8,
    copies: Vec<CopyId>,
    /// The volume runs when it happens.
    running: bool,
    how: String,
    prng: Prng,
}

struct Outcome {
    found: bool,
    named_halt: bool,
}

impl Flip {
    fn draw(base: &Base, seed: u64, no: u64) -> Flip {
        let mut prng = Prng::new(seed ^ no.wrapping_mul(0x9e37_79b9_7f4a_7c15)).fork("flip");
        let regions: Vec<&&str> = base.targets.keys().collect();
        let mut pick = |n: usize| usize::try_from(prng.below(n as u64)).expect("BUG: an index");
        let region = *regions[pick(regions.len())];
        let targets = &base.targets[region];
        let target = &targets[pick(targets.len())];
        let mut copies = CopyId::all().to_vec();
        let first = pick(6);
        copies.rotate_left(first);
        copies.truncate(IN_COPIES[pick(IN_COPIES.len())]);
        let at = prng.between(target.bytes.start, target.bytes.end - 1);
        let mask = if prng.chance(500_000) { 1 << prng.below(8) } else { 0xff };
        let running = copies.len() < 6 && prng.chance(300_000);
        let names: Vec<String> = copies.iter().map(ToString::to_string).collect();
        let when = if running { "running" } else { "stopped" };
        let how = format!("{region}, {} at {at} ^ {mask:#04x}, copies {}, {when}", target.file, names.join(" "));
        Flip { region, file: target.file.clone(), at, bytes: target.bytes.clone(), mask, copies, running, how, prng }
    }

    fn check(mut self, base: &Base) -> Checked<Outcome> {
        let disks: Disks = std::array::from_fn(|i| Arc::new(base.disks[i].image(Left::Cached, self.prng.next_u64())));
        let acknowledged = base.story.acknowledged;
        if !self.running {
            self.flip(&disks);
        }
        // Whoever reads such a copy finds it.
        let found = if self.running { None } else { Some(self.is_found(base, &disks)?) };
        let mut rig = Rig::start(disks, base.story.clone(), self.prng.next_u64(), Harm::Damage, None)?;
        if self.copies.len() == 6 {
            return self.check_all_six(rig, found == Some(true));
        }
        rig.rest()?;
        let mut flipped = Vec::new();
        if self.running {
            let disks = rig.bench.disks.lock().clone();
            self.flip(&disks);
            flipped = self.lies_there(&disks)?;
        }
        let said = rig.damage.len();
        rig.write()?;
        rig.rest()?;
        rig.scrub()?;
        rig.rest()?;
        rig.check(&[acknowledged])?;
        if self.running {
            // What is read only when a copy is opened, and what was in memory until then.
            rig.restart()?;
            rig.rest()?;
            rig.scrub()?;
            rig.rest()?;
            rig.check(&[acknowledged])?;
            self.is_gone_or_free(&rig, &flipped)?;
        }
        let found = found.unwrap_or(rig.damage.len() > said);
        Ok(Outcome { found, named_halt: false })
    }

    fn flip(&self, disks: &Disks) {
        for c in &self.copies {
            disks[c.index()].flip_bits(&self.file, self.at, self.mask);
        }
    }

    /// Opens one of the damaged copies by itself and reads all of it.
    fn is_found(&mut self, base: &Base, disks: &Disks) -> Checked<bool> {
        let disk = disks[self.copies[0].index()].image(Left::Cached, self.prng.next_u64());
        let sight = super::look::read_alone(Arc::new(disk), &base.story)?;
        match (sight, self.region) {
            (Sight::Whole, FREE) | (Sight::Short(_), LAST) => Ok(false),
            (Sight::Damaged, _) => Ok(true),
            (Sight::Whole, _) => Err("nobody found it".into()),
            (Sight::Short(end), _) => Err(format!("what was fsynced is taken for a torn tail: the log ends at {end}")),
        }
    }

    /// What lies in the region of each copy that is flipped; `None`: nothing.
    fn lies_there(&self, disks: &Disks) -> Checked<Vec<Option<Bytes>>> {
        let len = usize::try_from(self.bytes.end - self.bytes.start).expect("BUG: a file of a few KiB");
        let read = |c: &CopyId| {
            let disk = &disks[c.index()];
            Ok(disk.len(&self.file)?.map(|_| disk.read(&self.file, self.bytes.start, len)).transpose()?.filter(|bytes| !bytes.is_empty()))
        };
        self.copies.iter().map(read).collect::<Result<_, DiskError>>().map_err(|e| e.to_string())
    }

    /// It need not be found by name: what is written anew in the volume's course (a promise, a manifest) or goes (a log that is trimmed, a layer that
    /// was merged from memory) takes the flip with it, and nobody can meet it any more. What is left must have been found, and so be no more.
    fn is_gone_or_free(&self, rig: &Rig, flipped: &[Option<Bytes>]) -> Checked {
        let disks = rig.bench.disks.lock().clone();
        let left = self.lies_there(&disks)?;
        match self.copies.iter().zip(flipped.iter().zip(&left)).find(|(_, (then, now))| then.is_some() && then == now) {
            // What no mark proves a copy writes again into a new file when it is opened, as these were: what is left of it here belongs to no log.
            Some((c, _)) if self.region != FREE && self.region != LAST => {
                Err(format!("it lies in copy {c} still: nobody found it while the volume ran"))
            }
            _ => Ok(()),
        }
    }

    fn is_gone(&self, rig: &Rig) -> Checked<bool> {
        let lens: Result<Vec<_>, _> = self.copies.iter().map(|c| rig.disk(*c).len(&self.file)).collect();
        Ok(lens.map_err(|e| e.to_string())?.iter().all(Option::is_none))
    }

    /// Nothing can be rebuilt. What is damaged must not be served, and somebody must say what is wrong.
    fn check_all_six(&mut self, mut rig: Rig, found: bool) -> Checked<Outcome> {
        let acknowledged = rig.bench.story.lock().acknowledged;
        let rested = rig.rest();
        if let Err(what) = &rested
            && !what.starts_with("the volume does not come to rest")
        {
            // Nobody can tell that it was ever acknowledged.
            return if self.region == LAST { Ok(Outcome { found, named_halt: false }) } else { Err(what.clone()) };
        }
        let lines = rig.read_all_that_can_be_read()?;
        let named = !rig.damage.is_empty() || !lines.is_empty();
        match rested {
            Ok(()) if !found => Ok(Outcome { found, named_halt: false }),
            Ok(()) if named => Ok(Outcome { found, named_halt: true }),
            // The layers hold what the file did, and it was trimmed.
            Ok(()) if self.is_gone(&rig)? => rig.check(&[acknowledged]).map(|()| Outcome { found, named_halt: false }),
            Ok(()) => Err("all six are damaged and the volume goes on as if nothing were".into()),
            // It waits, and says for what.
            Err(_) if named => Ok(Outcome { found, named_halt: true }),
            Err(what) => Err(format!("it halts without a name: {what}")),
        }
    }
}
