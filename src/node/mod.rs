//! One region process, its cores wired together: a closed [`Event`] in, a closed [`Effect`] out.
//!
//! Story: the copies are opened, the volume recovers, control says whether this region leads or follows. A primary hands the pen
//! to the head, and ships what is durable to every secondary that says hello ([`lead`]). A secondary finds the primary, says
//! hello, appends what comes and lets its readers see what is durable here ([`follow`]).
//!
//! Decides nothing that a core below it could; it carries their effects to each other and to the driver. No clock, no thread,
//! no socket, no file. Driven by `io` for real and by `sim` under virtual time: `handle` an event, `poll_effect` until empty,
//! call again at `next_timeout`.

mod api;
mod back;
mod committing;
mod control_report;
mod follow;
mod lead;
mod links;
mod members;
mod replacing;
pub mod report;
mod roles;
mod starting;
mod view;
mod volume;

pub use api::{Effect, Event, Identity};

use crate::base::{ConnId, Generation, Instant, Limits, LineageId, LogEnd, Lsn, MemberId, Prng, RegionName, UnixMicros};
use crate::control::{ControlState, Input, LostTail};
use crate::log::Pen;
use crate::volume::{Appender, LostLog};
use committing::Committing;
use follow::Follower;
use lead::Leader;
use roles::Roles;
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
enum Stage {
    Recovering,
    /// Control state is being kept on the copies before the log begins.
    Founding {
        lineage: LineageId,
    },
    /// The log goes on; the pen waits until its first frame is durable.
    Opening {
        pen: Option<Pen>,
    },
    /// This region reigned when its process ended. Readers wait until a majority says whether it still does.
    Closed {
        consistent: LogEnd,
    },
    /// The reign's first frame is on its way, or durable here, and a majority has not granted the reign yet.
    Pending,
    Leading,
    Following,
    /// The volume goes back to the last point that it has in common with the primary's.
    GoingBack {
        primary: RegionName,
    },
    /// Cannot go on; the sentence says why and what to do.
    Halted {
        reason: String,
    },
}

#[derive(Debug)]
pub struct Node {
    who: Identity,
    limits: Limits,
    prng: Prng,
    wall: UnixMicros,
    stage: Stage,
    /// Why writes stand still, or what recovery waits for.
    reason: Option<String>,
    control: Option<ControlState>,
    roles: Roles,
    counting: Option<back::Counting>,
    /// Log that was durable is missing here, as this region's copies show.
    lost: Option<LostLog>,
    /// What an old primary lost, and the core was not told yet.
    untold: Vec<LostTail>,
    committing: Committing,
    appender: Appender,
    leader: Leader,
    follower: Follower,
    links: BTreeMap<ConnId, RegionName>,
    /// When something last came on a link.
    heard: BTreeMap<ConnId, Instant>,
    /// Who asked for a read of the log or of pages: (connection, what its tag stands for).
    reads: BTreeMap<u64, ConnId>,
    next_tag: u64,
    oldest_pin: Lsn,
    event_no: u64,
    /// The last that was noted of each copy: one that fails in the same way every second is one event.
    copies_noted: BTreeMap<MemberId, String>,
    /// Copies that came with less than they once had, and are not up yet.
    copies_forgot: BTreeMap<MemberId, String>,
    effects: VecDeque<Effect>,
}

impl Node {
    /// Under which this region's copies are written: pages are read from copies that have heard of it.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.appender.generation()
    }

    #[must_use]
    pub fn new(who: Identity, limits: Limits, mut prng: Prng, wall: UnixMicros) -> Node {
        let reseedable = who.region != who.founder;
        let appender = Appender::new(limits.clone(), who.layout, prng.fork("appender"), wall, reseedable);
        let follower = Follower::new(&who, &limits, prng.fork("follower"), wall);
        Node {
            leader: Leader::default(),
            follower,
            who,
            limits,
            prng,
            wall,
            stage: Stage::Recovering,
            reason: None,
            control: None,
            roles: Roles::default(),
            counting: None,
            lost: None,
            untold: Vec::new(),
            committing: Committing::default(),
            appender,
            links: BTreeMap::new(),
            heard: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_tag: 1,
            oldest_pin: Lsn(u64::MAX),
            event_no: 0,
            copies_noted: BTreeMap::new(),
            copies_forgot: BTreeMap::new(),
            effects: VecDeque::new(),
        }
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let mut next = self.appender.next_timeout();
        let more = match &self.stage {
            Stage::Leading => self.leader.next_timeout(),
            Stage::Following => self.follower.next_timeout().into_iter().chain(self.leader.next_timeout()).min(),
            _ => None,
        };
        if let Some(at) = more {
            next = Some(next.map_or(at, |n| n.min(at)));
        }
        next.into_iter().chain(self.roles.next_timeout()).chain(self.committing.next_timeout()).min()
    }

    /// Takes one event. `wall` is this process's wall clock, for lag and for people.
    pub fn handle(&mut self, now: Instant, wall: UnixMicros, event: Event) {
        self.wall = wall;
        match event {
            Event::Member { from, message } => self.tell(now, Input::Message { from, message: *message }),
            Event::SaidOut { by } => self.tell(now, Input::SaidOut { by }),
            Event::Order(order) => self.tell(now, Input::Order(order)),
            Event::ClockBroke { reason } => self.tell(now, Input::ClockBroke { reason }),
            Event::HeadDrained { op } => self.tell(now, Input::Drained { op }),
            Event::CopyOpened { copy, promised } => self.appender.copy_opened(now, copy, promised),
            Event::CopyLost { copy, reason } => self.appender.copy_lost(now, copy, reason),
            Event::CopyProves { copy, lineage, durable } => self.appender.copy_proves(copy, lineage, durable),
            Event::CopyReplied { copy, reply } => self.appender.handle_reply(now, copy, reply),
            Event::Submitted { frames } => {
                if matches!(self.stage, Stage::Leading) {
                    self.appender.append(now, frames);
                }
            }
            Event::HeadSees { end, written_at } => {
                self.follower.head_sees(now, wall, end, written_at);
                self.drain_follower(now);
            }
            Event::HeadPins { oldest } => self.oldest_pin = oldest,
            Event::Touched { archive, touched } => self.touched(now, archive, touched),
            Event::Linked { conn, peer, dialled } => self.linked(now, conn, peer, dialled),
            Event::Unlinked { conn, reason } => self.unlinked(now, conn, &reason),
            Event::DialFailed { region, reason } => self.follower.dial_failed(now, &region, reason),
            Event::Received { conn, message } => self.received(now, conn, message),
            Event::Timeout => {}
        }
        self.timers(now);
        self.drain_appender(now);
        self.drive_roles(now);
        self.judge_out(now);
        self.drain_appender(now);
    }

    fn timers(&mut self, now: Instant) {
        if self.appender.next_timeout().is_some_and(|t| now >= t) {
            self.appender.handle_timeout(now);
        }
        match &self.stage {
            Stage::Leading => {
                self.lead_timers(now);
                if self.committing.is_due(now, self.appender.readable()) {
                    self.release(now);
                }
            }
            Stage::Following => {
                self.follow_timers(now);
                self.lead_timers(now);
            }
            _ => {}
        }
        let leads = matches!(self.stage, Stage::Leading) || self.leader.ships();
        let (log, pages) = if leads { self.leader.needs(now, &self.limits, self.who.members.len()) } else { (None, None) };
        let fork = if leads { self.leader.fork(now, &self.limits) } else { None };
        self.appender.set_needs(self.pinned(), pages, log, fork);
    }
}
