//! What others see of a region: its report, its events, where its log stands.
//!
//! Decides nothing, and changes nothing but the number of the last event.

use super::report::{self, CopyReport, OperatorEvent, RegionReport, RegionState, Role};
use super::{Effect, Node, Stage};
use crate::base::{Epoch, Instant, LogEnd, Lsn, UnixMicros};
use crate::control::OpId;
use crate::volume::{ARCHIVES_MAX, CopyHealth, HeldBy, VolumePhase};

impl Node {
    pub(super) fn note(&mut self, kind: &str, what: String) {
        self.note_of(kind, what, None, None);
    }

    /// As [`Self::note`], of an operation.
    pub(super) fn note_of(&mut self, kind: &str, what: String, op: Option<(&OpId, &str)>, duration_ms: Option<u64>) {
        self.event_no += 1;
        let event = OperatorEvent {
            no: self.event_no,
            at: self.wall,
            region: self.who.region.clone(),
            kind: kind.into(),
            epoch: self.epoch(),
            durable_lsn: self.appender.vdl().end_lsn,
            what,
            op: op.map(|(id, _)| id.to_string()),
            actor: op.map(|(_, actor)| actor.to_owned()),
            duration_ms,
        };
        self.effects.push_back(Effect::Note(event));
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.roles.reign.as_ref().map_or(Epoch(0), |(epoch, _)| *epoch)
    }

    /// What this region says of itself now.
    #[must_use]
    pub fn report(&self, now: Instant, wall: UnixMicros) -> RegionReport {
        let role = match &self.stage {
            Stage::Leading | Stage::Founding { .. } | Stage::Pending | Stage::Opening { pen: Some(_) } => Role::Primary,
            Stage::Following | Stage::GoingBack { .. } | Stage::Opening { pen: None } => Role::Secondary,
            // Its copies say it was the primary, and only a majority can say that it is.
            Stage::Closed { .. } => Role::Unknown,
            Stage::Recovering | Stage::Halted { .. } => match &self.roles.reign {
                Some((_, primary)) if *primary == self.who.region => Role::Primary,
                Some(_) => Role::Secondary,
                None => Role::Unknown,
            },
        };
        let (state, reason) = match &self.stage {
            Stage::Leading if self.appender.has_quorum() && now < self.lease_until() => (RegionState::Writable, self.committing.pause()),
            Stage::Leading => (RegionState::Fenced, self.roles.stopped().or_else(|| Some("it waits for its lease".into()))),
            Stage::Halted { reason } => (RegionState::Fenced, Some(reason.clone())),
            Stage::Following if self.roles.lost().is_some() => (RegionState::Fenced, self.roles.lost().map(str::to_owned)),
            Stage::Following => self.follower.state(now, &self.limits, &self.appender),
            Stage::GoingBack { primary } => {
                (RegionState::CatchingUp, Some(format!("what {primary} does not have is archived and cut; then this region follows it")))
            }
            Stage::Closed { .. } if self.roles.lost().is_some() => (RegionState::Fenced, self.roles.lost().map(str::to_owned)),
            Stage::Recovering | Stage::Founding { .. } | Stage::Opening { .. } | Stage::Closed { .. } | Stage::Pending => {
                (RegionState::Starting, self.reason.clone())
            }
        };
        let out = self.roles.out();
        let (state, reason) = if out.is_some() { (RegionState::Fenced, out) } else { (state, reason) };
        let vdl = self.appender.vdl();
        let ago = |at: Instant| UnixMicros(wall.0.saturating_sub(u64::try_from(now.since(at).as_micros()).unwrap_or(u64::MAX)));
        let copies = self.appender.copies().into_iter().map(|c| {
            let (state, reason) = match c.health {
                CopyHealth::Starting => ("starting", None),
                CopyHealth::Up => ("up", None),
                CopyHealth::CatchingUp => ("catching_up", None),
                CopyHealth::Seeding => ("seeding", None),
                CopyHealth::Down { reason } => ("down", Some(reason)),
            };
            let replacing = self.appender.replacing().filter(|r| r.slot == c.copy.copy);
            let low = || {
                c.low.then(|| "its disk is almost full: make room there; new writes stop when fewer than four copies have any".to_owned())
            };
            let reason = reason.or_else(|| self.copies_forgot.get(&c.copy).cloned()).or_else(low).or_else(|| {
                replacing.map(|r| {
                    format!("takes the slot of the copy before it, in {}; `parhelion copy replace {} --cancel` goes back", r.place, r.slot)
                })
            });
            CopyReport {
                name: c.copy.to_string(),
                group: c.copy.group.0,
                az: c.copy.copy.az().to_string(),
                state: state.into(),
                durable_lsn: c.durable_end.end_lsn,
                reason,
                place: self.appender.lives_in(c.copy.copy).map(str::to_owned),
                damage: c.damage.as_ref().map(ToString::to_string),
                repair: c.repair.map(|r| report::RepairReport {
                    since: ago(r.began),
                    pages: r.pages,
                    pages_in_all: r.pages_in_all,
                    bytes: r.bytes,
                    bytes_per_s: u64::try_from(u128::from(r.bytes) * 1000 / now.since(r.began).as_millis().max(1))
                        .ok()
                        .filter(|_| r.pages > 0),
                }),
                scrub: report::ScrubReport {
                    running: c.scrub.running,
                    ended_at: c.scrub.ended.map(ago),
                    read_bytes: c.scrub.read_bytes,
                    pages: c.scrub.pages,
                    found: c.scrub.found,
                    found_total: c.kept.found,
                    repaired_total: c.kept.repaired,
                    lost_writes_total: c.kept.lost_writes,
                },
                low_on_room: c.low,
            }
        });
        RegionReport {
            cluster: self.who.cluster.to_string(),
            region: self.who.region.clone(),
            version: self.who.version.clone(),
            role,
            state,
            reason,
            epoch: self.epoch(),
            lineage: self.lineage().map(Into::into),
            primary: self.roles.reign.as_ref().map(|(_, primary)| primary.clone()),
            reported_at: wall,
            written_lsn: self.appender.end().end_lsn,
            durable_lsn: vdl.end_lsn,
            visible_lsn: self.visible_lsn(role, vdl),
            oldest_read_view_lsn: self.oldest_pin.min(vdl.end_lsn),
            disconnected_since: if role == Role::Secondary { self.follower.disconnected_since() } else { None },
            lag: if role == Role::Secondary { self.follower.lag(now, wall) } else { report::LagReport::default() },
            catching_up: if role == Role::Primary { None } else { self.follower.catching_up() },
            retention: self.retention(),
            archives: self.kept_archives(),
            copies: copies.collect(),
            volume: report::VolumeReport::of(self.who.layout),
            readers: u32::from(!self.roles.hidden),
            secondaries: if matches!(self.stage, Stage::Leading) { self.leader.report(now, &self.limits, vdl) } else { Vec::new() },
            control: self
                .control_view(now)
                .map(|view| Box::new(report::ControlReport::of(&self.who.region, &view, self.ledger(), Some(self.rules())))),
        }
    }

    /// Behind a way back the head is told, and says a moment later that it is there: until then it sees more than there is (seed 820066 of moves).
    /// While a volume is seeded anew it sees the old one.
    fn visible_lsn(&self, role: Role, vdl: &LogEnd) -> Lsn {
        match role {
            Role::Secondary if *vdl == LogEnd::EMPTY => self.follower.visible(),
            Role::Secondary => self.follower.visible().min(vdl.end_lsn),
            _ => vdl.end_lsn,
        }
    }

    /// Whether recovery has chosen a log and goes on with it. From then on a copy that cannot be opened may be moved aside and rebuilt:
    /// also before anything is durable again, which with three damaged copies takes one of them.
    #[must_use]
    pub fn rebuilds_copies(&self) -> bool {
        *self.appender.phase() == VolumePhase::Serving
    }

    pub(super) fn retention(&self) -> report::RetentionReport {
        let kept = self.appender.retention();
        let held_by = match kept.held_by {
            HeldBy::Time => "time",
            HeldBy::Reader => "reader",
            HeldBy::Seed => "seed",
            HeldBy::Fork => "fork",
            HeldBy::Repair => "repair",
            HeldBy::Budget => "budget",
        };
        report::RetentionReport {
            versions_bytes: kept.versions_bytes,
            versions_bytes_max: kept.versions_bytes_max,
            versions_s: self.limits.version_retain.as_secs(),
            held_by: held_by.into(),
            log_bytes: kept.log_bytes,
            log_bytes_max: kept.log_bytes_max,
            log_s: self.limits.log_retain.as_secs(),
        }
    }

    fn kept_archives(&self) -> report::ArchivesReport {
        let kept = self.appender.archives();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        report::ArchivesReport {
            count: number(kept.len()),
            count_max: number(ARCHIVES_MAX),
            log_bytes: kept.iter().map(|a| a.end.end_lsn.bytes_since(a.base.end_lsn)).sum(),
        }
    }

    /// Whether this region's readers have something to read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        matches!(self.stage, Stage::Leading | Stage::Pending | Stage::Following)
            && !self.roles.unsettled
            && self.roles.out().is_none()
            && *self.appender.phase() == VolumePhase::Serving
            && *self.appender.vdl() != LogEnd::EMPTY
    }

    /// The region's end of the log and its VDL, for checkers and status.
    #[must_use]
    pub fn log_positions(&self) -> (LogEnd, LogEnd) {
        (*self.appender.end(), *self.appender.vdl())
    }
}
