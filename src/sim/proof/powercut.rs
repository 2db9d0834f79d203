//! The power goes at every writing call of a volume's life: before each, some images are made of what would be left on the six
//! disks, and from each image the volume must come back with everything that was acknowledged.
//!
//! Images at one call: everything unsynced is gone from all six; each write is torn at some byte or keeps any of its sectors; any
//! subset of the writes is there; one zone, or one copy, lost power while the other disks keep their page cache, and a zone is
//! slow to return. During some recoveries the power goes again. The life itself has its own trouble: killed processes, single
//! copies that lose power while the others go on, copies that are away, new disks.
//!
//! Decides nothing about the volume. The same seed gives the same life, and `--only` one image of it again.

use super::Checked;
use super::changing::Elsewhere;
use super::rig::{Bench, Disks, Harm, Probe, Rig, new_disks};
use super::story::Story;
use crate::base::{CopyId, Prng};
use crate::sim::disk::Left;
use crate::sim::runs::{said, spread};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Images made at one call.
const IMAGES_PER_CALL: u64 = 4;
/// Of each operation a life has images made at so many of its calls, one behind the other; and then now and then. So what is rare is
/// met in every life, and there is time for many lives.
const CALLS_OF_EACH: u64 = 2;
const CALLS_BETWEEN: u64 = 40;
/// Steps of one life.
const STEPS: (u64, u64) = (1500, 3500);
/// A volume that is broken breaks everywhere: enough is enough.
const FAILURES_MAX: usize = 5;

/// What to run.
#[derive(Clone, Debug)]
pub struct PowercutOptions {
    /// The first life's seed.
    pub seed: u64,
    /// At least so many images.
    pub images: u64,
    pub threads: usize,
    /// Of one life only this image: (call, image).
    pub only: Option<(u64, u64)>,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct PowercutReport {
    pub lives: u64,
    pub images: u64,
    /// Images by what was being done when the power went.
    pub by_operation: BTreeMap<&'static str, u64>,
    pub failures: Vec<String>,
}

impl fmt::Display for PowercutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images of {} lives, {} failed", self.images, self.lives, self.failures.len())?;
        for (operation, images) in &self.by_operation {
            write!(f, "\n  {images:>7}  {operation}")?;
        }
        Ok(())
    }
}

/// Runs lives until there were enough images. `say` is given each failure as it is found.
pub fn run(options: &PowercutOptions, say: &(dyn Fn(&str) + Sync)) -> PowercutReport {
    let report = Arc::new(Mutex::new(PowercutReport::default()));
    let next = AtomicU64::new(0);
    let told = Mutex::new(0);
    spread(options.threads, || {
        loop {
            let life = next.fetch_add(1, Ordering::Relaxed);
            if (life > 0 && options.only.is_some()) || is_over(&report, options) {
                return;
            }
            let seed = options.seed.wrapping_add(life);
            if let Err(what) = guarded(|| live(seed, options, &report)) {
                report
                    .lock()
                    .failures
                    .push(format!("seed {seed}, in the life itself: {what}\n  again: parhelion powercut --seed {seed} --images 1"));
            }
            let mut report = report.lock();
            report.lives += 1;
            let mut told = told.lock();
            for failure in &report.failures[*told..] {
                say(failure);
            }
            *told = report.failures.len();
        }
    });
    Arc::try_unwrap(report).map_or_else(|shared| shared.lock().clone(), Mutex::into_inner)
}

fn is_over(report: &Mutex<PowercutReport>, options: &PowercutOptions) -> bool {
    let report = report.lock();
    report.images >= options.images.max(1) || report.failures.len() >= FAILURES_MAX
}

pub(super) fn guarded<T>(run: impl FnOnce() -> Checked<T>) -> Checked<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(format!("it panicked: {}", said(&*panic))))
}

/// One life, with the power cut at each of its calls.
fn live(seed: u64, options: &PowercutOptions, report: &Arc<Mutex<PowercutReport>>) -> Checked {
    let probe = probe(seed, options.clone(), Arc::clone(report));
    let mut prng = Prng::new(seed).fork("life");
    let mut rig = Rig::start(new_disks(seed), Story::new(), seed, Harm::None, Some(probe))?;
    for step in 0..prng.between(STEPS.0, STEPS.1) {
        if is_over(report, options) {
            return Ok(());
        }
        // The first commits come undisturbed, or there would be many lives of an empty volume.
        rig.live(step > 80)?;
    }
    for c in CopyId::all() {
        rig.release(c);
    }
    rig.rest()?;
    rig.check(&[])
}

fn probe(seed: u64, options: PowercutOptions, report: Arc<Mutex<PowercutReport>>) -> Probe {
    let met = Mutex::new(BTreeMap::<&'static str, u64>::new());
    Box::new(move |bench, call, doing| {
        let met = {
            let mut met = met.lock();
            let met = met.entry(doing).or_default();
            *met += 1;
            *met
        };
        // Lives of consecutive seeds begin at different calls.
        let at = met.wrapping_sub(seed % CALLS_OF_EACH);
        if options.only.is_none() && at >= CALLS_OF_EACH && !at.is_multiple_of(CALLS_BETWEEN) {
            return;
        }
        for no in 0..IMAGES_PER_CALL {
            if options.only.is_some_and(|only| only != (call, no)) || is_over(&report, &options) {
                continue;
            }
            let image = Image::at(bench, seed, call, no);
            let how = image.how.clone();
            let outcome = guarded(|| image.check(&report));
            let mut report = report.lock();
            report.images += 1;
            *report.by_operation.entry(doing).or_default() += 1;
            if let Err(what) = outcome {
                let again = format!("parhelion powercut --seed {seed} --only {call}.{no}");
                report.failures.push(format!("seed {seed}, call {call} ({doing}), image {no} ({how}): {what}\n  again: {again}"));
            }
        }
    })
}

/// What is left of a volume at one moment, and who is slow to return.
struct Image {
    disks: Disks,
    elsewhere: Elsewhere,
    story: Story,
    how: String,
    away: Vec<CopyId>,
    prng: Prng,
    /// The power may go once more while this one recovers.
    again: bool,
}

impl Image {
    fn at(bench: &Bench, seed: u64, call: u64, no: u64) -> Image {
        let mut prng = Prng::new(seed ^ call.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (no << 60)).fork("image");
        let zone =
            |first: u64| [CopyId(u8::try_from(first * 2).expect("BUG: a zone")), CopyId(u8::try_from(first * 2 + 1).expect("BUG: a zone"))];
        let (left, who, what): (&[Left], Vec<CopyId>, &str) = match no % IMAGES_PER_CALL {
            0 => (&[Left::Synced], CopyId::all().to_vec(), "all six lose what was not synced"),
            1 => (&[Left::Prefix, Left::Sectors], CopyId::all().to_vec(), "all six, torn"),
            2 => (&[Left::Subset, Left::Mixed], CopyId::all().to_vec(), "all six, reordered"),
            _ if prng.chance(500_000) => (&[Left::Mixed], zone(prng.below(3)).to_vec(), "one zone loses power"),
            _ => (&[Left::Mixed], vec![CopyId(u8::try_from(prng.below(6)).expect("BUG: six copies"))], "one copy loses power"),
        };
        let left_of = |i: usize, prng: &mut Prng| {
            let lost = who.iter().any(|c| c.index() == i);
            if lost { left[usize::try_from(prng.below(left.len() as u64)).expect("BUG: an index")] } else { Left::Cached }
        };
        let disks = {
            let disks = bench.disks.lock();
            std::array::from_fn(|i| {
                let left = left_of(i, &mut prng);
                Arc::new(disks[i].image(left, prng.next_u64()))
            })
        };
        let elsewhere = bench.elsewhere.lock().image(|disk, i| {
            let left = left_of(i, &mut prng);
            disk.image(left, prng.next_u64())
        });
        let away = if bench.story.lock().spares_a_zone() && prng.chance(200_000) { zone(prng.below(3)).to_vec() } else { Vec::new() };
        let how = if away.is_empty() { what.to_owned() } else { format!("{what}; zone {} is slow to return", away[0].az()) };
        let story = bench.story.lock().clone();
        Image { disks, elsewhere, story, how, away, again: prng.chance(250_000), prng }
    }

    /// Recovers from it, goes on, and looks at everything.
    fn check(mut self, report: &Arc<Mutex<PowercutReport>>) -> Checked {
        let acknowledged = self.story.acknowledged;
        let inner = Arc::new(Mutex::new(Ok(())));
        let again = self.again.then(|| self.once_more(&inner, report));
        let mut rig = Rig::start_from(self.disks, self.elsewhere, self.story, self.prng.next_u64(), again)?;
        for c in &self.away {
            rig.hold(*c);
        }
        if !self.away.is_empty() {
            rig.rest()?;
            for c in &self.away {
                rig.release(*c);
            }
        }
        rig.rest()?;
        let recovered = rig.vdl();
        for _ in 0..2 {
            if !rig.write()? {
                return Err(format!("the volume recovered and takes no commit: {}", rig.describe()));
            }
        }
        rig.rest()?;
        rig.check(&[acknowledged, recovered])?;
        let inner = inner.lock().clone();
        inner.map_err(|what| format!("and again during the recovery: {what}"))
    }

    /// The power goes at one call of the recovery, too.
    fn once_more(&mut self, outcome: &Arc<Mutex<Checked>>, report: &Arc<Mutex<PowercutReport>>) -> Probe {
        let (at, seed) = (self.prng.between(1, 60), self.prng.next_u64());
        let (outcome, report) = (Arc::clone(outcome), Arc::clone(report));
        Box::new(move |bench, call, _| {
            if call == at {
                let image = Image { again: false, ..Image::at(bench, seed, call, seed % IMAGES_PER_CALL) };
                let checked = guarded(|| image.check(&report));
                let mut report = report.lock();
                report.images += 1;
                *report.by_operation.entry("recovery").or_default() += 1;
                *outcome.lock() = checked;
            }
        })
    }
}
