//! What lies between the regions: connections as QUIC makes them, on paths that delay, lose, double and reorder.
//!
//! Control messages arrive in order or the connection breaks; batches overtake each other; datagrams are lost and doubled. A
//! path that is cut in one direction or both holds everything back until it heals, or until each side finds the silence out.
//! Messages travel as bytes: what is sent is encoded, what arrives is decoded.

use super::checker::Checked;
use super::plan::Plan;
use super::world::{MS, What, World};
use crate::base::ConnId;
use crate::control::ControlMessage;
use crate::node::Event;
use crate::ship::Message;
use crate::ship::wire::Lane;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Which end of a connection: 0 dialled, 1 was dialled.
pub(super) type LinkSide = usize;

struct End {
    region: usize,
    incarnation: u64,
    open: bool,
}

struct Conn {
    ends: [End; 2],
    /// Under way to each side, in order.
    control: [VecDeque<Bytes>; 2],
    control_at: [u64; 2],
}

pub(super) struct Network {
    conns: BTreeMap<u64, Conn>,
    next_conn: u64,
    /// Directions that carry nothing.
    cut: BTreeSet<(usize, usize)>,
    cuts: u64,
    cut_number: BTreeMap<(usize, usize), u64>,
    /// Delay of each direction relative to the plan's.
    skew: u64,
}

impl Network {
    pub(super) fn new(plan: &Plan) -> Network {
        Network {
            conns: BTreeMap::new(),
            next_conn: 1,
            cut: BTreeSet::new(),
            cuts: 0,
            cut_number: BTreeMap::new(),
            skew: plan.delay_us % 7,
        }
    }

    /// Open connections between the two, as seen by `a`.
    pub(super) fn is_linked(&self, a: usize, b: usize) -> bool {
        self.conns.values().any(|c| {
            let regions = (c.ends[0].region, c.ends[1].region);
            (regions == (a, b) || regions == (b, a)) && c.ends.iter().all(|e| e.open)
        })
    }
}

impl World {
    fn path_delay(&mut self, from: usize, to: usize) -> u64 {
        let base = self.plan.delay_us * (4 + (from as u64 * 3 + to as u64 + self.network.skew) % 4) / 4;
        (base + self.delays.below(self.plan.jitter_us + 1)) * 1000
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.network.cut.contains(&(from, to))
    }

    // ---- dialling --------------------------------------------------------------------------------------------------

    pub(super) fn dial(&mut self, from: usize, to: usize) {
        let there = self.path_delay(from, to);
        let back = self.path_delay(to, from);
        let incarnation = self.regions[from].incarnation;
        let lost = self.is_cut(from, to) || self.is_cut(to, from) || (self.stormy && self.faults.chance(20_000));
        if lost {
            let after = self.delays.between(500 * MS, 5000 * MS);
            self.after(after, What::Node { region: from, incarnation, event: self.dial_failed(to, "no answer") });
        } else {
            self.after(there + back, What::DialEnds { from, incarnation, to });
        }
    }

    fn dial_failed(&self, to: usize, reason: &str) -> Event {
        Event::DialFailed { region: self.regions[to].name.clone(), reason: reason.into() }
    }

    pub(super) fn dial_ends(&mut self, from: usize, incarnation: u64, to: usize) -> Checked {
        if self.regions[from].incarnation != incarnation || self.regions[from].node.is_none() {
            return Ok(());
        }
        if self.regions[to].node.is_none() || self.is_cut(from, to) {
            let event = self.dial_failed(to, "connection refused");
            return self.to_node(from, incarnation, event);
        }
        let number = self.network.next_conn;
        self.network.next_conn += 1;
        let end = |region: usize, incarnation: u64| End { region, incarnation, open: true };
        let conn = Conn {
            ends: [end(from, incarnation), end(to, self.regions[to].incarnation)],
            control: [VecDeque::new(), VecDeque::new()],
            control_at: [0, 0],
        };
        self.network.conns.insert(number, conn);
        let gap = self.delays.below(5 * MS);
        self.after(0, What::Linked { conn: number, side: 1 });
        self.after(gap, What::Linked { conn: number, side: 0 });
        Ok(())
    }

    pub(super) fn linked(&mut self, number: u64, side: LinkSide) -> Checked {
        let Some(conn) = self.network.conns.get(&number) else { return Ok(()) };
        let (end, other) = (&conn.ends[side], &conn.ends[1 - side]);
        if !end.open {
            return Ok(());
        }
        let event = Event::Linked { conn: ConnId(number), peer: self.regions[other.region].name.clone(), dialled: side == 0 };
        self.to_node(end.region, end.incarnation, event)
    }

    // ---- breaking --------------------------------------------------------------------------------------------------

    /// This side is done with the connection: the other one hears of it, if it can.
    pub(super) fn unlink(&mut self, r: usize, conn: ConnId) {
        let Some(c) = self.network.conns.get_mut(&conn.0) else { return };
        let Some(side) = c.ends.iter().position(|e| e.region == r) else { return };
        c.ends[side].open = false;
        let other = c.ends[1 - side].region;
        let after = if self.is_cut(r, other) { self.delays.between(1000 * MS, 4000 * MS) } else { self.path_delay(r, other) };
        self.after(after, What::Unlinked { conn: conn.0, side: 1 - side, reason: "closed by the peer" });
    }

    pub(super) fn unlinked(&mut self, number: u64, side: LinkSide, reason: &'static str) -> Checked {
        let Some(conn) = self.network.conns.get_mut(&number) else { return Ok(()) };
        let end = &mut conn.ends[side];
        let was_open = std::mem::replace(&mut end.open, false);
        let (region, incarnation) = (end.region, end.incarnation);
        if conn.ends.iter().all(|e| !e.open) {
            self.network.conns.remove(&number);
        }
        if !was_open {
            return Ok(());
        }
        // Whoever is left alone on a connection finds the silence out.
        let after = self.delays.between(200 * MS, 3500 * MS);
        self.after(after, What::Unlinked { conn: number, side: 1 - side, reason: "timed out" });
        self.to_node(region, incarnation, Event::Unlinked { conn: ConnId(number), reason: reason.into() })
    }

    /// Some connection breaks; each side finds out on its own.
    pub(super) fn break_some_link(&mut self) {
        let open: Vec<u64> = self.network.conns.iter().filter(|(_, c)| c.ends.iter().all(|e| e.open)).map(|(n, _)| *n).collect();
        let Some(&conn) = open.get(usize::try_from(self.faults.below(open.len() as u64)).expect("BUG: few links")) else { return };
        self.counts.broken_links += 1;
        for side in [0, 1] {
            let after = self.faults.below(2000) * MS;
            self.after(after, What::Unlinked { conn, side, reason: "broken" });
        }
    }

    /// The region's process is gone: the peers find out by a reset, or by silence.
    pub(super) fn break_links_of(&mut self, r: usize) {
        let mut told = Vec::new();
        for (number, conn) in &mut self.network.conns {
            for side in [0, 1] {
                if conn.ends[side].region == r {
                    conn.ends[side].open = false;
                    told.push((*number, 1 - side));
                }
            }
        }
        for (conn, side) in told {
            let after = if self.delays.chance(500_000) { self.delays.below(200 * MS) } else { self.delays.between(500 * MS, 3000 * MS) };
            self.after(after, What::Unlinked { conn, side, reason: "no answer" });
        }
    }

    pub(super) fn cut_some_path(&mut self) {
        let n = self.regions.len() as u64;
        let a = usize::try_from(self.faults.below(n)).expect("BUG: few regions");
        let b = (a + usize::try_from(self.faults.between(1, n - 1)).expect("BUG: few regions")) % self.regions.len();
        let both = self.faults.chance(600_000);
        let lasts = self.faults.between(50, 4500) * MS;
        self.counts.partitions += 1;
        for pair in [(a, b), (b, a)].into_iter().take(if both { 2 } else { 1 }) {
            self.network.cut.insert(pair);
            self.network.cuts += 1;
            let number = self.network.cuts;
            self.network.cut_number.insert(pair, number);
            self.after(lasts, What::PartitionEnds { pair, number });
            // Without acknowledgements either side gives up, after its own idle timeout.
            let between: Vec<u64> = self
                .network
                .conns
                .iter()
                .filter(|(_, c)| c.ends.iter().any(|e| e.region == a) && c.ends.iter().any(|e| e.region == b))
                .map(|(n, _)| *n)
                .collect();
            for conn in between {
                for side in [0, 1] {
                    let after = self.faults.between(1000, 3500) * MS;
                    self.after(after, What::SilenceFound { conn, side, number });
                }
            }
        }
        let (a, b) = (self.regions[a].name.clone(), self.regions[b].name.clone());
        self.say(|| format!("the path {a} to {b} is cut{} for {} ms", if both { " both ways" } else { "" }, lasts / MS));
    }

    pub(super) fn partition_ends(&mut self, pair: (usize, usize), number: u64) {
        if self.network.cut_number.get(&pair) == Some(&number) {
            self.network.cut.remove(&pair);
            self.network.cut_number.remove(&pair);
        }
    }

    pub(super) fn silence_found(&mut self, conn: u64, side: LinkSide, number: u64) -> Checked {
        if self.network.cut_number.values().any(|n| *n == number) { self.unlinked(conn, side, "timed out") } else { Ok(()) }
    }

    pub(super) fn heal_network(&mut self) {
        self.network.cut.clear();
        self.network.cut_number.clear();
    }

    // ---- messages --------------------------------------------------------------------------------------------------

    pub(super) fn send(&mut self, r: usize, conn: ConnId, message: &Message) -> Checked {
        self.check_sent(r, message)?;
        self.put_on_wire(r, conn, message);
        Ok(())
    }

    /// What a mutant sends is not judged here.
    pub(super) fn put_on_wire(&mut self, r: usize, conn: ConnId, message: &Message) {
        let lane = message.lane();
        let bytes = Bytes::from(message.encode().concat());
        let Some(c) = self.network.conns.get(&conn.0) else { return };
        let Some(side) = c.ends.iter().position(|e| e.region == r && e.open) else { return };
        let (to, to_region) = (1 - side, c.ends[1 - side].region);
        let delay = self.path_delay(r, to_region);
        if lane == Lane::Control {
            let c = self.network.conns.get_mut(&conn.0).expect("BUG: it was just there");
            c.control[to].push_back(bytes);
            c.control_at[to] = c.control_at[to].max(self.now + delay) + 1;
            let at = c.control_at[to];
            self.at(at, What::ControlArrives { conn: conn.0, to });
            return;
        }
        let chances = if lane == Lane::Batch { self.plan.batches } else { self.plan.datagrams };
        let stormy = self.stormy;
        if (stormy && self.delays.chance(chances.loss)) || (lane == Lane::Datagram && self.is_cut(r, to_region)) {
            self.counts.messages_lost += 1;
            return;
        }
        let late = if self.delays.chance(chances.reorder) { self.delays.below(150 * MS) } else { 0 };
        if stormy && self.delays.chance(chances.double) {
            self.counts.messages_doubled += 1;
            let again = delay + self.delays.below(400 * MS);
            self.after(again, What::Arrives { conn: conn.0, to, lane, bytes: bytes.clone() });
        }
        self.after(delay + late, What::Arrives { conn: conn.0, to, lane, bytes });
    }

    /// To another member's control core: on a connection of its own, which loses, doubles and reorders.
    pub(super) fn tell_member(&mut self, r: usize, to: usize, message: &ControlMessage) {
        let bytes = Bytes::from(message.encode());
        let lost = self.is_cut(r, to) || (self.stormy && self.delays.chance(self.plan.datagrams.loss));
        if lost {
            self.counts.messages_lost += 1;
            return;
        }
        let delay = self.path_delay(r, to);
        if self.stormy && self.delays.chance(self.plan.datagrams.double) {
            let again = delay + self.delays.below(3000 * MS);
            self.after(again, What::MemberHears { from: r, to, bytes: bytes.clone() });
        }
        self.after(delay, What::MemberHears { from: r, to, bytes });
    }

    pub(super) fn member_hears(&mut self, from: usize, to: usize, bytes: &Bytes) -> Checked {
        let message = ControlMessage::decode(bytes).map_err(|e| format!("a control message that was sent cannot be read: {e}"))?;
        let (incarnation, from) = (self.regions[to].incarnation, self.regions[from].name.clone());
        self.to_node(to, incarnation, Event::Member { from, message: Box::new(message) })
    }

    pub(super) fn control_arrives(&mut self, number: u64, to: LinkSide) -> Checked {
        let Some(conn) = self.network.conns.get(&number) else { return Ok(()) };
        let (from, to_region) = (conn.ends[1 - to].region, conn.ends[to].region);
        if self.is_cut(from, to_region) {
            let again = self.delays.between(20 * MS, 100 * MS);
            self.after(again, What::ControlArrives { conn: number, to });
            return Ok(());
        }
        let conn = self.network.conns.get_mut(&number).expect("BUG: it was just there");
        let Some(bytes) = conn.control[to].pop_front() else { return Ok(()) };
        self.deliver(number, to, Lane::Control, &bytes)
    }

    pub(super) fn arrives(&mut self, number: u64, to: LinkSide, lane: Lane, bytes: &Bytes) -> Checked {
        let Some(conn) = self.network.conns.get(&number) else { return Ok(()) };
        if lane == Lane::Batch && self.is_cut(conn.ends[1 - to].region, conn.ends[to].region) {
            let again = self.delays.between(20 * MS, 100 * MS);
            self.after(again, What::Arrives { conn: number, to, lane, bytes: bytes.clone() });
            return Ok(());
        }
        self.deliver(number, to, lane, bytes)
    }

    fn deliver(&mut self, number: u64, to: LinkSide, lane: Lane, bytes: &Bytes) -> Checked {
        let end = &self.network.conns[&number].ends[to];
        if !end.open {
            return Ok(());
        }
        let message = Message::decode(lane, bytes).map_err(|e| format!("a message that was sent cannot be read: {e}"))?;
        self.to_node(end.region, end.incarnation, Event::Received { conn: ConnId(number), message })
    }

    /// Connections on which this region was dialled, for a mutant.
    pub(super) fn links_to_secondaries(&self, r: usize) -> Vec<ConnId> {
        self.network.conns.iter().filter(|(_, c)| c.ends[1].region == r && c.ends[1].open).map(|(n, _)| ConnId(*n)).collect()
    }
}
