//! What happened, for people and for programs: one line per event, in the order of time, over all regions.
//!
//! Decides only order and looks. Each process numbers its events from 1; a follower therefore remembers, per region, the
//! number *and* the time of the last one it saw, and a process that restarted is noticed because that pair is not its own.

use super::text;
use crate::base::{RegionName, UnixMicros};
use crate::node::report::OperatorEvent;
use std::collections::BTreeMap;

/// The last event somebody saw of one region's process; the default is "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct EventCursor {
    pub no: u64,
    pub at: UnixMicros,
}

impl EventCursor {
    /// Those of `all` (one process's, oldest first) that come after the cursor. All of them when the cursor is of an earlier
    /// process, or when what it points at is no longer kept.
    #[must_use]
    pub fn after(self, all: Vec<OperatorEvent>) -> Vec<OperatorEvent> {
        match all.iter().position(|e| e.no == self.no) {
            Some(i) if all[i].at == self.at => all.into_iter().skip(i + 1).collect(),
            _ => all,
        }
    }
}

/// Remembers what was shown of each region.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    seen: BTreeMap<RegionName, EventCursor>,
}

impl Follower {
    /// For the next question.
    #[must_use]
    pub fn cursors(&self) -> Vec<(RegionName, EventCursor)> {
        self.seen.iter().map(|(r, c)| (r.clone(), *c)).collect()
    }

    /// Notes that these were shown.
    pub fn note(&mut self, events: &[OperatorEvent]) {
        for event in events {
            let cursor = EventCursor { no: event.no, at: event.at };
            let seen = self.seen.entry(event.region.clone()).or_default();
            // Numbers begin again in a new process; its events are later ones.
            if (cursor.at, cursor.no) >= (seen.at, seen.no) {
                *seen = cursor;
            }
        }
    }
}

/// Sorts by time, then region and number: what an operator reads as one story.
pub fn order(events: &mut [OperatorEvent]) {
    events.sort_by(|a, b| (a.at, &a.region, a.no).cmp(&(b.at, &b.region, b.no)));
}

/// `2026-11-20 10:41:05.123  us-east   copy_down  c2 (AZ c) stopped answering`
#[must_use]
pub fn line(event: &OperatorEvent) -> String {
    let at = text::rfc3339(event.at).replace('T', " ");
    // The sentence comes from another process: control characters do not reach the terminal.
    let what: String = event.what.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let kind: String = event.kind.chars().filter(|c| !c.is_control()).collect();
    let took = event.duration_ms.map_or_else(String::new, |ms| format!(", {ms} ms"));
    let clean = |text: &String| text.chars().filter(|c| !c.is_control()).collect::<String>();
    let by = event.actor.as_ref().map_or_else(String::new, |actor| format!(", by {}", clean(actor)));
    let op = event.op.as_ref().map_or_else(String::new, |op| format!(", operation {:.8}", clean(op)));
    format!("{at}  {:<12} {kind:<22} {what}  (epoch {}, durable {}{took}{op}{by})", event.region.as_str(), event.epoch, event.durable_lsn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Epoch, Lsn};

    fn event(region: &str, no: u64, at: u64) -> OperatorEvent {
        OperatorEvent {
            no,
            at: UnixMicros(1_795_171_265_000_000 + at),
            region: RegionName::new(region).unwrap(),
            kind: "copy_down".into(),
            epoch: Epoch(1),
            durable_lsn: Lsn(100),
            what: "c2 (AZ c)\x1b[2J\nstopped".into(),
            op: None,
            actor: None,
            duration_ms: None,
        }
    }

    #[test]
    fn a_follower_sees_each_event_once_and_a_restart_from_its_beginning() {
        let mut follower = Follower::default();
        let first: Vec<_> = (1..=3).map(|n| event("us-east", n, n)).collect();
        follower.note(&first);
        let cursor = follower.cursors()[0].1;
        let more: Vec<_> = (1..=4).map(|n| event("us-east", n, n)).collect();
        assert_eq!(cursor.after(more).iter().map(|e| e.no).collect::<Vec<_>>(), [4]);
        let restarted: Vec<_> = (1..=5).map(|n| event("us-east", n, 100 + n)).collect();
        assert_eq!(cursor.after(restarted).len(), 5, "another process counts from 1 again");
        assert_eq!(cursor.after(vec![event("us-east", 1, 200)]).len(), 1);
        assert_eq!(EventCursor::default().after(first).len(), 3);
    }

    #[test]
    fn lines_are_in_order_of_time_and_carry_no_control_characters() {
        let mut events = [event("b", 1, 20), event("a", 2, 10), event("a", 1, 10)];
        order(&mut events);
        assert_eq!(events.each_ref().map(|e| (e.region.as_str(), e.no)), [("a", 1), ("a", 2), ("b", 1)]);
        let line = line(&events[0]);
        let phase =
            OperatorEvent { op: Some("ab12cd34ef56".into()), actor: Some("me\x1b@here".into()), duration_ms: Some(7), ..events[0].clone() };
        assert!(super::line(&phase).ends_with("(epoch 1, durable 100, 7 ms, operation ab12cd34, by me@here)"), "{}", super::line(&phase));
        assert!(line.starts_with("2026-11-20 10:41:05.000Z  a            copy_down              c2 (AZ c) [2J stopped"), "{line}");
    }
}
