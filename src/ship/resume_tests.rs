//! A seed over several links: the primary's sender and the secondary's receiver, with what goes wrong between them.

use super::wire::Control;
use super::{Hello, Message, Receiver, ReceiverEffect, Seed, SeedStep, Sender, SenderEffect, Start, UnfinishedSeed};
use crate::base::{ClusterName, Epoch, Generation, Instant, Limits, LineageId, LogEnd, Lsn, PageNo, RegionName, Seq, UnixMicros};
use crate::log::{Flags, Frame, History, PagesOutcome, SeedBase};
use bytes::Bytes;
use std::time::Duration;

const LINEAGE: LineageId = LineageId(7);
const PAGES: u32 = 400;

struct Primary {
    vdl: LogEnd,
    history: History,
    limits: Limits,
    now: Instant,
}

impl Primary {
    fn new() -> Primary {
        let frame = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(9), Flags::CONSISTENCY_POINT, UnixMicros(7), b"payload");
        let mut history = History::default();
        history.note(&frame);
        let now = Instant { ns: 5_000_000_000 };
        Primary { vdl: frame.log_end(), history, limits: Limits { batch_bytes_max: 2000, ..Limits::default() }, now }
    }

    fn commit(&mut self) {
        let frame = Frame::encode(&self.vdl, Epoch(1), Generation(9), Flags::CONSISTENCY_POINT, UnixMicros(7), b"more");
        self.history.note(&frame);
        self.vdl = frame.log_end();
    }

    fn greet(&self, unfinished: Option<UnfinishedSeed>, log_from: Seq) -> (Sender, Start) {
        let hello = Hello {
            cluster: ClusterName::new("sun").unwrap(),
            region: RegionName::new("eu-west").unwrap(),
            epoch: Epoch(1),
            layout: crate::base::Layout::default(),
            position: None,
            unfinished,
            catches_up: false,
        };
        Sender::greet(&hello, (LINEAGE, LINEAGE), &self.history, &self.vdl, log_from, self.limits.clone(), self.now).unwrap()
    }

    fn base(&self) -> SeedBase {
        SeedBase { lineage: LINEAGE, end: self.vdl, history: self.history.clone() }
    }
}

/// The secondary's volume: what it was given, in order; it stores everything at once, unless told not to.
#[derive(Default)]
struct Volume {
    begun: u32,
    pages: Vec<PageNo>,
    ended: bool,
    steps: u64,
    lazy: bool,
    not_said: Vec<u64>,
}

impl Volume {
    fn take(&mut self, receiver: &mut Receiver, to_primary: &mut Vec<Message>) {
        while let Some(effect) = receiver.poll_effect() {
            match effect {
                ReceiverEffect::SeedBegin(_) => {
                    (self.begun, self.steps, self.ended) = (self.begun + 1, 0, false);
                    self.pages.clear();
                }
                ReceiverEffect::SeedPages(pages) => {
                    self.pages.extend(pages.iter().map(|(n, _)| *n));
                    self.steps += 1;
                }
                ReceiverEffect::SeedEnd => {
                    self.ended = true;
                    self.steps += 1;
                }
                ReceiverEffect::Send(message) => {
                    to_primary.push(message);
                    continue;
                }
                other => panic!("{other:?}"),
            }
            if self.lazy {
                self.not_said.push(self.steps);
            } else {
                receiver.seed_stored(self.steps);
            }
        }
    }
}

/// Carries messages both ways until nothing moves, or until the secondary was given `steps_max` steps on this link.
fn carry(primary: &mut Primary, sender: &mut Sender, receiver: &mut Receiver, volume: &mut Volume, steps_max: u64) -> bool {
    let upto = volume.steps + steps_max;
    let mut back = Vec::new();
    volume.take(receiver, &mut back);
    loop {
        let mut moved = false;
        while let Some(effect) = sender.poll_effect() {
            moved = true;
            match effect {
                SenderEffect::ReadPages { at, from, bytes_max } => {
                    let last = (from.0 + u32::try_from(bytes_max / 100).unwrap()).min(PAGES);
                    let pages = (from.0..last).map(|n| (PageNo(n), Bytes::from(vec![1; 100]))).collect();
                    let next = (last < PAGES).then_some(PageNo(last));
                    assert!(!sender.handle_pages(primary.now, PagesOutcome::Pages { at, pages, next }));
                }
                SenderEffect::Send(Message::Pages { base, step, pages }) => {
                    receiver.handle_seed_step(base, step, SeedStep::Pages(pages));
                }
                SenderEffect::Send(Message::Control(Control::SeedBegin(base))) => receiver.handle_seed_begin(base),
                SenderEffect::Send(Message::Control(Control::SeedEnd { base, step })) => {
                    receiver.handle_seed_step(base, step, SeedStep::End);
                }
                SenderEffect::Send(_) | SenderEffect::SeedBegan { .. } | SenderEffect::SeedResumed { .. } => {}
                SenderEffect::SeedDone => return true,
                SenderEffect::ReadLog { .. } => {}
            }
            volume.take(receiver, &mut back);
            if volume.steps >= upto {
                break;
            }
        }
        for message in back.drain(..) {
            moved = true;
            if let Message::Control(Control::SeedStored { base, step }) = message {
                sender.handle_seed_stored(primary.now, base, step, &primary.vdl);
            }
        }
        if !moved || volume.steps >= upto {
            return false;
        }
        primary.now = primary.now + Duration::from_millis(1);
    }
}

fn fresh(primary: &Primary, sender: &mut Sender) -> Receiver {
    sender.become_catch_up(primary.now, primary.base());
    Receiver::new(Epoch(1), LogEnd::EMPTY, LogEnd::EMPTY, true, &primary.limits)
}

fn all_pages() -> Vec<PageNo> {
    (0..PAGES).map(PageNo).collect()
}

#[test]
fn a_seed_cut_again_and_again_sends_nothing_twice_that_was_taken_over() {
    let mut primary = Primary::new();
    let mut volume = Volume::default();
    let (mut sender, start) = primary.greet(None, Seq(0));
    assert_eq!(start, Start::Seed);
    let mut receiver = fresh(&primary, &mut sender);
    let mut sent = 0;
    let mut links = 1;
    while !carry(&mut primary, &mut sender, &mut receiver, &mut volume, 7) {
        sent += sender.pages_sent();
        let half = receiver.interrupted().expect("the seed is under way");
        let said = half.unfinished();
        assert_eq!(said.next_page.0 as usize, volume.pages.len());
        // Commits go on; the base stays.
        primary.commit();
        let (next, start) = primary.greet(Some(said), Seq(1));
        assert_eq!(start, Start::ResumedSeed);
        sender = next;
        receiver = Receiver::resuming(Epoch(1), LogEnd::EMPTY, LogEnd::EMPTY, half, &primary.limits);
        let far = sender.catching_up(&primary.vdl).unwrap();
        assert_eq!((far.pages_done, far.resumed), (volume.pages.len() as u64, links));
        links += 1;
    }
    sent += sender.pages_sent();
    assert!(links > 4, "{links}");
    assert_eq!((volume.begun, volume.ended), (1, true));
    assert_eq!(volume.pages, all_pages());
    assert!(sent < u64::from(PAGES) * 2, "{sent} pages were sent for {PAGES}");
    assert_eq!(receiver.received(), sender.durable(), "the log goes on behind the base on both sides");
}

#[test]
fn a_seed_whose_last_step_was_taken_over_ends_over_the_next_link() {
    for stored_between_links in [false, true] {
        let mut primary = Primary::new();
        let mut volume = Volume::default();
        let (mut sender, _) = primary.greet(None, Seq(0));
        let mut receiver = fresh(&primary, &mut sender);
        // Everything is stored but what comes last.
        for _ in 0..1000 {
            if volume.ended {
                break;
            }
            volume.lazy = volume.pages.len() == PAGES as usize;
            assert!(!carry(&mut primary, &mut sender, &mut receiver, &mut volume, 1));
        }
        let mut half: Seed = receiver.interrupted().unwrap();
        let said = half.unfinished();
        let whole = stored_between_links && volume.not_said.drain(..).fold(false, |_, step| half.stored(step));
        assert_eq!(whole, stored_between_links);
        let (mut sender, start) = primary.greet(Some(said), Seq(0));
        assert_eq!(start, Start::ResumedSeed);
        let mut receiver = if whole {
            // The secondary had it whole before the welcome came.
            Receiver::new(Epoch(1), primary.base().end, primary.base().end, false, &primary.limits)
        } else {
            Receiver::resuming(Epoch(1), LogEnd::EMPTY, LogEnd::EMPTY, half, &primary.limits)
        };
        volume.lazy = false;
        let mut done = carry(&mut primary, &mut sender, &mut receiver, &mut volume, 1000);
        for step in std::mem::take(&mut volume.not_said) {
            receiver.seed_stored(step);
            done |= carry(&mut primary, &mut sender, &mut receiver, &mut volume, 1000);
        }
        assert!(done);
        assert_eq!(volume.pages, all_pages());
    }
}

#[test]
fn what_cannot_go_on_begins_anew() {
    let mut primary = Primary::new();
    let base = primary.base();
    let half = |base: SeedBase| UnfinishedSeed { base, step: 3, next_page: PageNo(30), pages_total: PAGES, bytes: 3000, resumed: 0 };
    for _ in 0..5 {
        primary.commit();
    }
    assert_eq!(primary.greet(Some(half(base.clone())), Seq(2)).1, Start::ResumedSeed);
    assert_eq!(primary.greet(Some(half(base.clone())), Seq(3)).1, Start::Seed, "the log behind it is gone");
    assert_eq!(primary.greet(Some(half(SeedBase { lineage: LineageId(8), ..base.clone() })), Seq(0)).1, Start::Seed);
    let ahead = LogEnd { seq: Seq(50), ..base.end };
    assert_eq!(primary.greet(Some(half(SeedBase { end: ahead, ..base.clone() })), Seq(0)).1, Start::Seed);

    // Its pages can no longer be read at the base: after some attempts, one per heartbeat, the caller begins at another.
    let (mut sender, _) = primary.greet(Some(half(base.clone())), Seq(0));
    let mut reads = 0;
    let gave_up = loop {
        while let Some(effect) = sender.poll_effect() {
            reads += u32::from(matches!(effect, SenderEffect::ReadPages { at, .. } if at == base.end.end_lsn));
        }
        if sender.handle_pages(primary.now, PagesOutcome::Unreadable { reason: "folded".into() }) {
            break true;
        }
        sender.handle_timeout(primary.now, UnixMicros(1), &primary.vdl);
        assert!(sender.next_timeout() > primary.now, "it would spin");
        primary.now = primary.now + primary.limits.heartbeat_every;
        sender.handle_timeout(primary.now, UnixMicros(1), &primary.vdl);
        if reads > 100 {
            break false;
        }
    };
    assert!(gave_up && reads >= 20, "{reads}");
    sender.become_catch_up(primary.now, primary.base());
    assert_eq!(sender.needs_pages_at(), Some(primary.vdl.end_lsn));
    assert_ne!(sender.needs_pages_at(), Some(Lsn(base.end.end_lsn.0)));
}
