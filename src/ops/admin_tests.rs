//! The codec on bad input, and the fan-out with regions that are slow, wrong or gone.

use super::*;
use crate::base::{Epoch, Lsn, Prng, UnixMicros};
use crate::node::report::{RegionState, Role};
use crate::ops::status::tests::{NOW, name, sample};
use proptest::prelude::*;

fn event(region: &str, no: u64, what: &str) -> OperatorEvent {
    OperatorEvent {
        no,
        at: UnixMicros(NOW.0 + no),
        region: name(region),
        kind: "started".into(),
        epoch: Epoch(1),
        durable_lsn: Lsn(1),
        what: what.into(),
        op: None,
        actor: None,
        duration_ms: None,
    }
}

struct View(RegionReport);

impl RegionView for View {
    fn report(&self) -> RegionReport {
        self.0.clone()
    }
    fn events(&self, after_no: u64) -> Vec<OperatorEvent> {
        let own = self.0.region.as_str();
        [event(own, 1, "one"), event(own, 2, "two")].into_iter().filter(|e| e.no > after_no).collect()
    }
    fn refusals(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    fn counters(&self) -> Vec<(&'static str, &'static str, f64)> {
        Vec::new()
    }
}

/// `eu-west` answers, `ap-south` never does.
struct Port;

#[async_trait::async_trait]
impl AdminPort for Port {
    async fn ask(&self, region: &RegionName, request: AdminRequest) -> Result<AdminAnswer, String> {
        match (region.as_str(), request) {
            ("eu-west", AdminRequest::Report) => Ok(AdminAnswer::Report(Box::new(sample("eu-west", Role::Secondary)))),
            ("eu-west", AdminRequest::Events { after }) => Ok(AdminAnswer::Events(after.after(vec![event("eu-west", 1, "there")]))),
            ("us-east", _) => panic!("the asked region asked itself"),
            _ => std::future::pending().await,
        }
    }
    async fn set_copy_on_duty(&self, copy: CopyId, on_duty: bool) -> Result<String, String> {
        if on_duty { Ok(format!("{copy} is back")) } else { Err(format!("{copy} is stopped already")) }
    }
    async fn replace_copy(&self, copy: CopyId, place: Option<String>) -> Result<String, String> {
        place.map(|p| format!("{copy} goes to {p}")).ok_or_else(|| format!("{copy} is not being replaced"))
    }
    async fn drop_archive(&self, archive: TimelineId, actor: String) -> Result<String, String> {
        Ok(format!("archive {} is dropped for {actor}", archive.0))
    }
    async fn slow_copy(&self, copy: CopyId, delay: Duration) -> Result<String, String> {
        Ok(format!("{copy} is {} ms slow", delay.as_millis()))
    }
    fn witness(&self) -> Option<RegionName> {
        None
    }
    fn witness_beside(&self, _primary: &RegionName) -> Option<String> {
        None
    }
    async fn order(&self, order: Order) -> Result<Option<OpView>, String> {
        if order.dry_run { Ok(None) } else { Err(format!("{} is not carried out here", order.id)) }
    }
    fn ops(&self) -> Vec<OpView> {
        Vec::new()
    }
    fn failovers(&self) -> Vec<FailoverRecord> {
        Vec::new()
    }
    async fn invite(&self, guest: Guest, _: Duration, _: std::net::SocketAddr, _: Option<String>) -> Result<super::Invited, String> {
        Err(format!("{} is a member already", guest.name()))
    }

    fn retire(&self, lineage: &str) -> Result<String, String> {
        Err(format!("{lineage} has met no other"))
    }

    fn authority(&self) -> Result<String, String> {
        Err("ca.key does not exist here".into())
    }

    async fn set(&self, key: String, value: String, _actor: String) -> Result<String, String> {
        Ok(format!("{key} is {value}"))
    }
    async fn audit(&self) -> Result<AuditReport, String> {
        Err("it keeps none".into())
    }
}

async fn asked(request: AdminRequest) -> AdminAnswer {
    let members = ["us-east", "eu-west", "ap-south"].map(name);
    answer_within(Duration::from_millis(100), request, Arc::new(View(sample("us-east", Role::Primary))), Arc::new(Port), &members).await
}

#[tokio::test]
async fn any_region_answers_for_all_and_a_silent_one_costs_one_time_limit() {
    let AdminAnswer::Cluster(status) = asked(AdminRequest::Cluster).await else { panic!("no cluster") };
    let states: Vec<_> = status.regions.iter().map(|r| (r.name.as_str(), r.state, r.answered)).collect();
    assert_eq!(
        states,
        [
            ("us-east", RegionState::Writable, true),
            ("eu-west", RegionState::Streaming, true),
            ("ap-south", RegionState::Disconnected, false)
        ]
    );
    assert!(status.notes[0].contains("no answer within 100 ms"), "{:?}", status.notes);

    let after = vec![(name("us-east"), EventCursor { no: 1, at: UnixMicros(NOW.0 + 1) })];
    let AdminAnswer::ClusterEvents { events, silent } = asked(AdminRequest::ClusterEvents { after }).await else { panic!("no events") };
    assert_eq!(events.iter().map(|e| e.what.as_str()).collect::<Vec<_>>(), ["there", "two"]);
    assert_eq!(silent.len(), 1);
}

#[tokio::test]
async fn copies_are_stopped_and_started_by_the_region_itself() {
    assert_eq!(asked(AdminRequest::StartCopy { copy: CopyId(5) }).await, AdminAnswer::Done("c2 is back".into()));
    assert_eq!(asked(AdminRequest::StopCopy { copy: CopyId(0) }).await, AdminAnswer::Refused("a1 is stopped already".into()));
    assert_eq!(asked(AdminRequest::SlowCopy { copy: CopyId(1), delay_us: 50_000 }).await, AdminAnswer::Done("a2 is 50 ms slow".into()));
    assert!(AdminRequest::decode(&AdminRequest::SlowCopy { copy: CopyId(6), delay_us: 1 }.encode()).is_err(), "there are six");
}

fn order(dry_run: bool) -> AdminRequest {
    let kind = crate::control::OrderKind::Switchover { to: name("eu-west") };
    let order = Order { id: crate::control::OpId(7), kind, dry_run, timeout_ms: 1, at_epoch: None, actor: "me".into() };
    AdminRequest::Order(Box::new(order))
}

#[tokio::test]
async fn orders_are_taken_or_refused_and_rules_are_passed_on_to_the_primary() {
    assert!(matches!(asked(order(false)).await, AdminAnswer::Refused(why) if why.ends_with("7 is not carried out here")));
    assert!(matches!(asked(order(true)).await, AdminAnswer::Done(_)));
    assert_eq!(AdminRequest::decode(&order(true).encode()), Ok(order(true)));
    assert_eq!(asked(AdminRequest::Ops).await, AdminAnswer::Ops(Vec::new()));
    let rule = || AdminRequest::Set { key: "max_rpo".into(), value: "2s".into(), actor: "ops@here".into() };
    assert_eq!(asked(rule()).await, AdminAnswer::Done("max_rpo is 2s".into()));
    // A secondary asks the primary, which is not there.
    let members = ["us-east", "eu-west", "ap-south"].map(name);
    let mut secondary = sample("eu-west", Role::Secondary);
    secondary.primary = Some(name("ap-south"));
    let passed = answer_within(Duration::from_millis(50), rule(), Arc::new(View(secondary)), Arc::new(Port), &members).await;
    assert!(matches!(&passed, AdminAnswer::Refused(why) if why.contains("the primary ap-south was asked")), "{passed:?}");
}

#[test]
fn messages_survive_the_wire_and_mistakes_are_told_apart() {
    let request = AdminRequest::ClusterEvents { after: vec![(name("us-east"), EventCursor::default())] };
    let bytes = request.encode();
    assert_eq!(AdminRequest::decode(&bytes), Ok(request));
    let answer = AdminAnswer::Report(Box::new(sample("us-east", Role::Primary)));
    assert_eq!(AdminAnswer::decode(&answer.encode()), Ok(answer));

    assert_eq!(AdminRequest::decode(&[7, 0]), Err(AdminCodecError::Version { given: 7 }));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(AdminRequest::decode(&longer), Err(AdminCodecError::Malformed(_))));
    assert!(matches!(AdminRequest::decode(&[]), Err(AdminCodecError::Malformed(_))));
    assert!(matches!(AdminRequest::decode(&vec![1; REQUEST_BYTES_MAX + 1]), Err(AdminCodecError::TooLong { .. })));
    // A seventh copy is no copy, whatever the integer says.
    assert!(matches!(AdminRequest::decode(&encode(&AdminRequest::StopCopy { copy: CopyId(6) })), Err(AdminCodecError::Malformed(_))));
    // A claimed length is not allocated: 2^40 cursors.
    assert!(AdminRequest::decode(&[1, 3, 253, 0, 0, 0, 0, 0, 1, 0, 0]).is_err());
}

#[test]
fn too_many_events_lose_the_oldest_not_the_answer() {
    let events: Vec<_> = (1..=3000).map(|n| event("us-east", n, &"x".repeat(500))).collect();
    let bytes = AdminAnswer::Events(events).encode();
    assert!(bytes.len() <= ANSWER_BYTES_MAX);
    let Ok(AdminAnswer::Events(kept)) = AdminAnswer::decode(&bytes) else { panic!("no events") };
    assert!(kept.len() > 1000 && kept.last().map(|e| e.no) == Some(3000));
    let huge = AdminAnswer::Done("x".repeat(ANSWER_BYTES_MAX));
    assert!(matches!(AdminAnswer::decode(&huge.encode()), Ok(AdminAnswer::Refused(_))));
}

#[test]
fn bytes_flipped_anywhere_never_panic() {
    let status = AdminAnswer::Report(Box::new(sample("us-east", Role::Primary))).encode();
    let mut prng = Prng::new(7);
    for _ in 0..2000 {
        let mut bytes = status.clone();
        let at = usize::try_from(prng.below(bytes.len() as u64)).unwrap();
        bytes[at] = u8::try_from(prng.below(256)).unwrap();
        drop(AdminAnswer::decode(&bytes));
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        drop(AdminRequest::decode(&bytes));
        drop(AdminAnswer::decode(&bytes));
        bytes.insert(0, ADMIN_VERSION);
        drop(AdminRequest::decode(&bytes));
        drop(AdminAnswer::decode(&bytes));
    }
}
