//! What a switchover is refused for, on cores that talk to one another: nothing is lost on the way, and each keeps what it says at once.

use crate::base::{Epoch, Generation, Instant, LineageId, LogEnd, Lsn, Prng, RegionName, UnixMicros};
use crate::control::{
    Control, ControlMessage, Input, LogPosition, OpId, OpState, OpView, Order, OrderKind, Output, Role, Settings, VoterSet, VoterState, Who,
};
use crate::log::{History, Pen};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);
const FOUNDER: &str = "us-east";
const TARGET: &str = "eu-west";

fn name(text: &str) -> RegionName {
    RegionName::new(text).unwrap()
}

/// All regions of a global cluster, of which the first reigns.
struct Rig {
    now: Instant,
    members: BTreeMap<RegionName, Control>,
    mail: VecDeque<(RegionName, RegionName, ControlMessage)>,
    /// Of the founder.
    moved: Vec<OpView>,
    log: LogPosition,
}

impl Rig {
    fn new(regions: &[&str]) -> Rig {
        let regions: Vec<RegionName> = regions.iter().map(|r| name(r)).collect();
        let voters = VoterSet::founding(&name(FOUNDER), &regions, None);
        let kept = VoterState::founding(LineageId(7), &name(FOUNDER), voters, UnixMicros(0));
        let mut pen = Pen::new(Epoch(1), Generation(1), LogEnd::EMPTY, 100);
        let mut log = LogPosition { history: History::default(), ..LogPosition::default() };
        pen.write(&[vec![1; 50]], true, UnixMicros(0)).iter().for_each(|frame| log.history.note(frame));
        log.end = *pen.end();
        let core = |(seed, region): (u64, &RegionName)| {
            let (regions, settings) = (regions.clone(), Settings::default());
            let who = Who { name: region.clone(), regions, witness: None, has_data: true, settings, addrs: BTreeMap::default() };
            (region.clone(), Control::new(who, Some(kept.clone()), Instant::ZERO, Prng::new(seed)))
        };
        let members = (1..).zip(&regions).map(core).collect();
        let mut rig = Rig { now: Instant::ZERO, members, mail: VecDeque::new(), moved: Vec::new(), log };
        for region in &regions {
            rig.input(region, Input::Log(rig.log.clone()));
        }
        rig.until("it reigns", |rig| rig.members[&name(FOUNDER)].view(rig.now).role == Role::Primary);
        for region in regions.iter().filter(|r| **r != name(FOUNDER)) {
            rig.input(&name(FOUNDER), Input::Secondary { region: region.clone(), durable: rig.log.end });
        }
        rig
    }

    /// To a member that lives, and everything that follows from it.
    fn input(&mut self, to: &RegionName, input: Input) {
        let mut todo = VecDeque::from([input]);
        while let Some(input) = todo.pop_front() {
            let Some(core) = self.members.get_mut(to) else { return };
            core.handle(self.now, UnixMicros(0), input);
            while let Some(output) = self.members.get_mut(to).and_then(Control::poll_output) {
                match output {
                    Output::Persist { token, .. } => todo.push_back(Input::Persisted { token }),
                    Output::Promote { epoch, .. } => todo.push_back(Input::Promoted { epoch, start: self.log.end }),
                    Output::Touch => todo.push_back(Input::CommitPathMoved),
                    Output::Send { to: other, message } => self.mail.push_back((to.clone(), other, message)),
                    Output::OpMoved(view) if *to == name(FOUNDER) => self.moved.push(*view),
                    _ => {}
                }
            }
        }
    }

    fn tick(&mut self) {
        self.now = self.now + TICK;
        let members: Vec<RegionName> = self.members.keys().cloned().collect();
        for region in &members {
            self.input(region, Input::Timeout);
        }
        while let Some((from, to, message)) = self.mail.pop_front() {
            self.input(&to, Input::Message { from, message });
        }
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&Rig) -> bool) {
        let last = self.now + Duration::from_secs(60);
        while !holds(self) {
            assert!(self.now < last, "{what}: not within a minute; {:?}", self.members[&name(FOUNDER)].view(self.now));
            self.tick();
        }
    }

    /// Orders a switchover at the primary; how it ended.
    fn ordered(&mut self, no: u128) -> OpView {
        let kind = OrderKind::Switchover { to: name(TARGET) };
        let at_epoch = Some(Epoch(1));
        let order = Order { id: OpId(no), kind, dry_run: true, timeout_ms: 30_000, at_epoch, actor: "a test".into() };
        self.input(&name(FOUNDER), Input::Order(order));
        let ended = |rig: &Rig| rig.moved.iter().rfind(|v| v.order.id == OpId(no) && v.state.is_final()).cloned();
        self.until("the checks are over", |rig| ended(rig).is_some());
        ended(self).unwrap()
    }

    fn refused(&mut self, no: u128, check: &str) -> String {
        let view = self.ordered(no);
        let OpState::Refused { reason } = view.state else { panic!("{view:?}") };
        let failed: Vec<&str> = view.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect();
        assert_eq!(failed, [check], "{:?}", view.checks);
        assert_eq!(self.members[&name(FOUNDER)].view(self.now).role, Role::Primary, "nothing was changed");
        reason
    }
}

#[test]
fn a_switchover_to_a_region_that_is_far_behind_is_refused_until_it_has_caught_up() {
    let mut rig = Rig::new(&[FOUNDER, TARGET, "ap-south"]);
    assert_eq!(rig.ordered(1).state, OpState::Done, "all is well");
    let behind = rig.log.end;
    rig.log.end = LogEnd { end_lsn: Lsn(behind.end_lsn.0 + (16 << 20) + 1), ..behind };
    rig.input(&name(FOUNDER), Input::Log(rig.log.clone()));
    let reason = rig.refused(2, "lag");
    assert!(reason.contains("eu-west is 16777217 bytes behind; at most 16777216 are allowed. Wait until it has caught up"), "{reason}");
    rig.input(&name(FOUNDER), Input::Secondary { region: name(TARGET), durable: rig.log.end });
    assert_eq!(rig.ordered(3).state, OpState::Done, "it has caught up");
}

/// The primary still holds its lease and the target answers: it could be handed over, and nobody could go on with it.
#[test]
fn a_switchover_without_a_majority_of_the_voters_is_refused() {
    let mut rig = Rig::new(&[FOUNDER, TARGET, "ap-south", "sa-east", "ca-west"]);
    assert_eq!(rig.ordered(1).state, OpState::Done, "all is well");
    // Just after a renewal, so that the lease outlives the checks.
    let renewed = rig.members[&name(FOUNDER)].lease_until();
    rig.until("the lease is renewed", |rig| rig.members[&name(FOUNDER)].lease_until() > renewed);
    for gone in ["ap-south", "sa-east", "ca-west"] {
        rig.members.remove(&name(gone));
    }
    let reason = rig.refused(2, "voters");
    assert_eq!(reason, "2 of 5 voters answer and agree; a majority is needed");
}
