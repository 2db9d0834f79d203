//! What one seed draws before its run begins: how many regions, how long, how bad everything is. Printed with a failure.

use super::SimOptions;
use crate::base::{GROUPS_MAX, Layout, Limits, Prng};
use std::fmt;
use std::time::Duration;

/// Per million.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chances {
    pub loss: u64,
    pub double: u64,
    pub reorder: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub regions: usize,
    pub faults_for_ms: u64,
    /// Mean time between two faults, virtual microseconds.
    pub fault_every_us: u64,
    /// Weights of the faults, in the order of `faults::KINDS`.
    pub weights: [u64; 12],
    pub write_every_us: u64,
    pub fsync_us: u64,
    /// Between a node and its copies: nothing, or as on other machines.
    pub local: Chances,
    pub delay_us: u64,
    pub jitter_us: u64,
    pub datagrams: Chances,
    /// Batches are only lost and doubled in this mode.
    pub batches: Chances,
    pub drill: bool,
    /// An operator replaces copies, and goes back, about so often.
    pub replace_every_ms: Option<u64>,
    /// An operator orders switchovers and failovers, about so often.
    pub operate_every_ms: Option<u64>,
    /// An operator makes backups of copies and puts them back, about so often.
    pub backup_every_ms: Option<u64>,
    /// A layer takes up to so long before anybody writes it, as on disks that have too much to do.
    pub layers_us: u64,
    pub limits: Limits,
    /// How page space is cut.
    pub layout: Layout,
    /// Which copies' files are sealed: a bit for each of the six of each region.
    pub sealed: u64,
}

impl Plan {
    pub(super) fn draw(prng: &mut Prng, options: &SimOptions) -> Plan {
        let regions = options.regions.unwrap_or(2 + usize::try_from(prng.below(3)).expect("BUG: a small number")).clamp(2, 4);
        let faults_for_ms = prng.between(1500, 6000) * if options.moves { 4 } else { 1 };
        let faults_for_ms = options.faults_for_ms.unwrap_or(faults_for_ms);
        let mut weights = [0; 12];
        for weight in &mut weights {
            *weight = if prng.chance(550_000) { prng.between(1, 10) } else { 0 };
        }
        let remote = prng.chance(350_000);
        let unreliable = prng.chance(350_000);
        let drawn = |prng: &mut Prng, on: bool, max: u64| if on { prng.below(max) } else { 0 };
        let mut limits = Limits::tiny();
        limits.version_retain = Duration::from_millis(prng.between(100, 1500));
        limits.resend_after = Duration::from_millis(prng.between(800, 3000));
        if prng.chance(300_000) {
            limits.log_retain_bytes = prng.between(3 << 10, 12 << 10);
        }
        if prng.chance(200_000) {
            // A budget that is never reached.
            limits.log_retain_bytes = 1 << 20;
        }
        Plan {
            regions,
            faults_for_ms,
            fault_every_us: prng.between(60_000, 900_000),
            weights,
            write_every_us: prng.between(4_000, 60_000),
            fsync_us: prng.between(100, 6_000),
            local: Chances {
                loss: drawn(prng, remote, 60_000),
                double: drawn(prng, remote, 40_000),
                reorder: drawn(prng, remote, 120_000),
            },
            delay_us: prng.between(1_000, 120_000),
            jitter_us: prng.between(0, 20_000),
            datagrams: Chances { loss: prng.below(80_000), double: prng.below(20_000), reorder: prng.below(50_000) },
            batches: Chances {
                loss: drawn(prng, unreliable, 150_000),
                double: drawn(prng, unreliable, 60_000),
                reorder: prng.below(100_000),
            },
            drill: prng.chance(250_000),
            limits,
            layout: Plan::layout(prng, options),
            backup_every_ms: None,
            layers_us: 10_000,
            sealed: 0,
            replace_every_ms: prng.chance(350_000).then(|| prng.between(100, 1500)),
            operate_every_ms: options.moves.then(|| prng.between(500, 3000)),
        }
        .with_backups(prng)
        .with_seals(prng, options)
        .with_retention(prng, options)
    }

    /// Drawn behind everything else, for the same reason.
    fn with_backups(self, prng: &mut Prng) -> Plan {
        let backup_every_ms = prng.chance(250_000).then(|| prng.between(100, 1500));
        let layers_us = if prng.chance(200_000) { prng.between(200_000, 3_000_000) } else { self.layers_us };
        Plan { backup_every_ms, layers_us, ..self }
    }

    /// Drawn behind everything else. A mutant knows only files that lie as they are.
    fn with_seals(self, prng: &mut Prng, options: &SimOptions) -> Plan {
        let sealed = if prng.chance(330_000) { prng.next_u64() } else { 0 };
        Plan { sealed: if options.mutant.is_some() { 0 } else { sealed }, ..self }
    }

    /// Whether the copy in `slot` of region `r` has sealed files.
    pub(super) fn is_sealed(&self, r: usize, slot: usize) -> bool {
        self.sealed >> (r * 6 + slot) & 1 == 1
    }

    /// Drawn last. Whoever comes back finds the versions of where it parted, and goes back; without them it is seeded anew.
    fn with_retention(self, prng: &mut Prng, options: &SimOptions) -> Plan {
        let keeps = options.moves && prng.chance(500_000);
        let version_retain = if keeps { Duration::from_secs(300) } else { self.limits.version_retain };
        Plan { limits: Limits { version_retain, ..self.limits }, ..self }
    }
}

impl Plan {
    /// Drawn last, so that a run in one group is what it was before there were more.
    fn layout(prng: &mut Prng, options: &SimOptions) -> Layout {
        let segment_pages = u32::try_from(prng.between(1, 5)).expect("BUG: a small number");
        let groups = u32::try_from(prng.between(1, 3)).expect("BUG: a small number");
        Layout { segment_pages, groups: options.groups.unwrap_or(groups).clamp(1, GROUPS_MAX) }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} regions, segments of {} pages in {} groups, faults for {} ms, one every {} us (weights {:?}), a write every {} us, fsync {} us, copies lose/double/reorder {}/{}/{} ppm, \
             one way {}+{} us, datagrams {}/{}/{} ppm, batches {}/{}/{} ppm, layers after {} us, versions kept {} ms, log kept {} B, resend after {} ms, sealed {:#x}",
            self.regions,
            self.layout.segment_pages,
            self.layout.groups,
            self.faults_for_ms,
            self.fault_every_us,
            self.weights,
            self.write_every_us,
            self.fsync_us,
            self.local.loss,
            self.local.double,
            self.local.reorder,
            self.delay_us,
            self.jitter_us,
            self.datagrams.loss,
            self.datagrams.double,
            self.datagrams.reorder,
            self.batches.loss,
            self.batches.double,
            self.batches.reorder,
            self.layers_us,
            self.limits.version_retain.as_millis(),
            self.limits.log_retain_bytes,
            self.limits.resend_after.as_millis(),
            self.sealed,
        )
    }
}
