//! The admin protocol: one question, one answer, between a command and a region, and between regions.
//!
//! Decides: what may be asked, how it is encoded, and how a question about the whole global cluster is spread over the
//! members and merged. Never decides what is true of a region: its [`RegionView`] says that. The question travels over the
//! region's QUIC port with mutual TLS (`io::link`), so whoever asks holds a certificate of this global cluster.
//!
//! ```text
//!  byte 0   version of this protocol (4)
//!  rest     bincode, standard configuration; variants are only ever appended
//! ```

use super::audit::AuditReport;
use super::events::{self, EventCursor};
use super::membership::invites::Invited;
use super::membership::wire::Guest;
use super::status::{self, ClusterStatus};
use crate::base::{CopyId, RegionName, TimelineId};
use crate::control::{FailoverRecord, OpView, Order};
use crate::endpoint::http::RegionView;
use crate::node::report::{ControlReport, FailoverReport, OperationReport, OperatorEvent, RegionReport, Role};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// First byte of every question and answer.
pub const ADMIN_VERSION: u8 = 4;
/// Longest question, bytes.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Longest answer, bytes; also what a decoder may allocate for one, several times over.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A region that has not answered after so long is shown as disconnected.
pub const REGION_TIMEOUT: Duration = Duration::from_millis(1500);
/// Containers are charged by their size in memory, which is some times that on the wire.
const DECODE_MEMORY_MAX: usize = 8 << 20;
const REQUEST_MEMORY_MAX: usize = 64 << 10;

/// A question to one region.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum AdminRequest {
    /// What it says of itself.
    Report,
    /// Its events after the cursor.
    Events {
        after: EventCursor,
    },
    /// What it and all others say of themselves, merged.
    Cluster,
    /// The events of all regions, each after its cursor (from the beginning where there is none).
    ClusterEvents {
        after: Vec<(RegionName, EventCursor)>,
    },
    /// A drill: takes a copy of this region out of duty until it is started again.
    StopCopy {
        copy: CopyId,
    },
    StartCopy {
        copy: CopyId,
    },
    /// A drill: a copy's answers come so much later; 0 ends it.
    SlowCopy {
        copy: CopyId,
        delay_us: u64,
    },
    /// Replaces a copy by a new one in a directory of the region's machine; `None` goes back to the copy that is being replaced.
    ReplaceCopy {
        copy: CopyId,
        place: Option<String>,
    },
    /// What a member says of roles; the only question that a witness answers.
    Voter,
    /// An operator's order, to any region. It is under way when the answer comes, or refused.
    Order(Box<Order>),
    /// Operations that the region knows of, newest first.
    Ops,
    /// Failovers that the region knows of, newest first.
    Failovers,
    /// Changes a rule of the whole global cluster, `max_rpo` to `2s`; passed on to the primary.
    Set {
        key: String,
        value: String,
        /// Who wants it, as the command says of itself.
        actor: String,
    },
    /// What was done to the member, and whether its record of that is whole.
    Audit,
    /// Makes an invitation for a new region, or a witness. Only of a region's own commands.
    Invite {
        guest: Guest,
        ttl_ms: u64,
        listen: String,
        address: Option<String>,
    },
    /// Where the CA's key is, if it is on this region's machine.
    Authority,
    /// Gives this region's lineage up: its process ends, and its next start is an empty secondary. Only of a region's own commands.
    Retire {
        lineage: String,
    },
    /// Drops a lost tail of this region for good. Only of a region's own commands.
    DropArchive {
        archive: TimelineId,
        actor: String,
    },
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub enum AdminAnswer {
    Report(Box<RegionReport>),
    Events(Vec<OperatorEvent>),
    Cluster(Box<ClusterStatus>),
    /// With the regions that did not answer, and why.
    ClusterEvents {
        events: Vec<OperatorEvent>,
        silent: Vec<(RegionName, String)>,
    },
    /// Done; a sentence.
    Done(String),
    /// Not done, and why; a sentence that says what to do.
    Refused(String),
    Voter(Box<ControlReport>),
    /// How the operation stands.
    Op(Box<OperationReport>),
    Ops(Vec<OperationReport>),
    Failovers(Vec<FailoverReport>),
    Audit(Box<AuditReport>),
    Invited(Box<Invited>),
}

/// Why bytes are not a question or an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminCodecError {
    #[error(
        "the other side speaks version {given} of the admin protocol, this program speaks {ADMIN_VERSION}; use the same version of parhelion on both"
    )]
    Version { given: u8 },
    #[error("an admin message of {bytes} bytes is longer than the {max} that are allowed")]
    TooLong { bytes: usize, max: usize },
    #[error("the bytes are no admin message: {0}; is the other side the same version of parhelion?")]
    Malformed(String),
}

impl AdminRequest {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// # Errors
    /// [`AdminCodecError`]
    pub fn decode(bytes: &[u8]) -> Result<AdminRequest, AdminCodecError> {
        let body = body(bytes, REQUEST_BYTES_MAX)?;
        let request = finish(bincode::decode_from_slice(body, bincode::config::standard().with_limit::<REQUEST_MEMORY_MAX>()), body)?;
        match &request {
            AdminRequest::StopCopy { copy }
            | AdminRequest::StartCopy { copy }
            | AdminRequest::SlowCopy { copy, .. }
            | AdminRequest::ReplaceCopy { copy, .. }
                if !CopyId::all().contains(copy) =>
            {
                Err(AdminCodecError::Malformed(format!("copy {} of six", copy.0)))
            }
            _ => Ok(request),
        }
    }
}

impl AdminAnswer {
    /// At most [`ANSWER_BYTES_MAX`]: of too many events the oldest are left out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bytes = encode(self);
        if bytes.len() <= ANSWER_BYTES_MAX {
            return bytes;
        }
        let newest = |events: &[OperatorEvent]| events[events.len().div_ceil(2)..].to_vec();
        match self {
            AdminAnswer::Events(events) if !events.is_empty() => AdminAnswer::Events(newest(events)).encode(),
            AdminAnswer::ClusterEvents { events, silent } if !events.is_empty() => {
                AdminAnswer::ClusterEvents { events: newest(events), silent: silent.clone() }.encode()
            }
            _ => encode(&AdminAnswer::Refused(format!("the answer would have {} bytes, {ANSWER_BYTES_MAX} are allowed", bytes.len()))),
        }
    }

    /// # Errors
    /// [`AdminCodecError`]
    pub fn decode(bytes: &[u8]) -> Result<AdminAnswer, AdminCodecError> {
        let body = body(bytes, ANSWER_BYTES_MAX)?;
        finish(bincode::decode_from_slice(body, bincode::config::standard().with_limit::<DECODE_MEMORY_MAX>()), body)
    }
}

fn encode<T: bincode::Encode>(message: &T) -> Vec<u8> {
    let mut bytes = vec![ADMIN_VERSION];
    bytes.extend(bincode::encode_to_vec(message, bincode::config::standard()).expect("BUG: an admin message is plain data"));
    bytes
}

fn body(bytes: &[u8], max: usize) -> Result<&[u8], AdminCodecError> {
    match bytes.split_first() {
        _ if bytes.len() > max => Err(AdminCodecError::TooLong { bytes: bytes.len(), max }),
        None => Err(AdminCodecError::Malformed("it is empty".to_owned())),
        Some((&ADMIN_VERSION, body)) => Ok(body),
        Some((&given, _)) => Err(AdminCodecError::Version { given }),
    }
}

fn finish<T>(decoded: Result<(T, usize), bincode::error::DecodeError>, body: &[u8]) -> Result<T, AdminCodecError> {
    match decoded {
        Ok((message, read)) if read == body.len() => Ok(message),
        Ok((_, read)) => Err(AdminCodecError::Malformed(format!("{} bytes follow its end", body.len() - read))),
        Err(error) => Err(AdminCodecError::Malformed(error.to_string())),
    }
}

/// What answering needs of the region process around it.
#[async_trait::async_trait]
pub trait AdminPort: Send + Sync + 'static {
    /// Asks another region. The error is a sentence. [`answer`] sets the time limit.
    async fn ask(&self, region: &RegionName, request: AdminRequest) -> Result<AdminAnswer, String>;

    /// Takes one of this region's copies out of duty, or back. Both ways a sentence.
    async fn set_copy_on_duty(&self, copy: CopyId, on_duty: bool) -> Result<String, String>;

    /// Makes one of this region's copies answer `delay` later; zero ends that. Both ways a sentence.
    async fn slow_copy(&self, copy: CopyId, delay: Duration) -> Result<String, String>;

    /// Replaces one of this region's copies by a new one in the directory `place`, or (`None`) goes back. Both ways a sentence.
    async fn replace_copy(&self, copy: CopyId, place: Option<String>) -> Result<String, String>;

    /// The member without data, if there is one: it can be asked as well.
    fn witness(&self) -> Option<RegionName>;

    /// A sentence when the witness is in the failure domain of `primary`, as far as the configuration says.
    fn witness_beside(&self, primary: &RegionName) -> Option<String>;

    /// Gives an order to this region's control core, and says how it stands a moment later; `None`: not known yet.
    async fn order(&self, order: Order) -> Result<Option<OpView>, String>;

    /// The operations that this region knows of, newest first.
    fn ops(&self) -> Vec<OpView>;

    /// The failovers that it knows of, newest first.
    fn failovers(&self) -> Vec<FailoverRecord>;

    /// Changes a rule in this region, which is the primary. Both ways a sentence.
    async fn set(&self, key: String, value: String, actor: String) -> Result<String, String>;

    /// This region's audit.
    async fn audit(&self) -> Result<AuditReport, String>;

    /// Invites somebody. The error is a sentence.
    async fn invite(&self, guest: Guest, ttl: Duration, listen: SocketAddr, address: Option<String>) -> Result<Invited, String>;

    /// Where the CA's key is on this machine; or that it is not.
    fn authority(&self) -> Result<String, String>;

    /// Drops one of this region's lost tails. Both ways a sentence.
    async fn drop_archive(&self, archive: TimelineId, actor: String) -> Result<String, String>;

    /// Gives this region's lineage up. Both ways a sentence.
    fn retire(&self, lineage: &str) -> Result<String, String>;
}

/// Answers a question. `members` are all regions, in the order to show them; the one `view` tells of is not asked over the wire.
pub async fn answer(request: AdminRequest, view: Arc<dyn RegionView>, port: Arc<dyn AdminPort>, members: &[RegionName]) -> AdminAnswer {
    answer_within(REGION_TIMEOUT, request, view, port, members).await
}

/// As [`answer`], from bytes to bytes: what the region process does with a question that arrives.
pub async fn respond(request: &[u8], view: Arc<dyn RegionView>, port: Arc<dyn AdminPort>, members: &[RegionName]) -> Vec<u8> {
    let answer = match AdminRequest::decode(request) {
        Ok(request) => answer(request, view, port, members).await,
        Err(error) => AdminAnswer::Refused(error.to_string()),
    };
    answer.encode()
}

async fn answer_within(
    timeout: Duration,
    request: AdminRequest,
    view: Arc<dyn RegionView>,
    port: Arc<dyn AdminPort>,
    members: &[RegionName],
) -> AdminAnswer {
    match request {
        AdminRequest::Report => AdminAnswer::Report(Box::new(view.report())),
        AdminRequest::Events { after } => AdminAnswer::Events(after.after(view.events(0))),
        AdminRequest::Cluster => {
            let own = view.report();
            let mut questions: Vec<(RegionName, AdminRequest)> = others(members, &own.region).map(|r| (r, AdminRequest::Report)).collect();
            questions.extend(port.witness().map(|w| (w, AdminRequest::Voter)));
            let mut said = ask_all(timeout, &port, questions).await;
            let witness = port.witness().map(|name| {
                let answer = said.remove(&name).unwrap_or_else(|| Err("it was not asked".to_owned()));
                (name, answer.and_then(voter_of))
            });
            let mut answers: BTreeMap<RegionName, Result<RegionReport, String>> =
                said.into_iter().map(|(region, answer)| (region, answer.and_then(report_of))).collect();
            let (region, at) = (own.region.clone(), own.reported_at);
            answers.insert(region.clone(), Ok(own));
            let mut status = status::merge(&region, at, members, &answers, &witness);
            status.notes.extend(status.primary.as_ref().and_then(|primary| port.witness_beside(primary)));
            AdminAnswer::Cluster(Box::new(status))
        }
        AdminRequest::ClusterEvents { after } => {
            let cursor = |region: &RegionName| after.iter().find(|(r, _)| r == region).map(|(_, c)| *c).unwrap_or_default();
            let own = view.report().region;
            let questions = others(members, &own).map(|r| (r.clone(), AdminRequest::Events { after: cursor(&r) })).collect();
            let mut events = cursor(&own).after(view.events(0));
            let mut silent = Vec::new();
            for (region, answer) in ask_all(timeout, &port, questions).await {
                match answer.and_then(events_of) {
                    Ok(more) => events.extend(more),
                    Err(why) => silent.push((region, why)),
                }
            }
            events::order(&mut events);
            AdminAnswer::ClusterEvents { events, silent }
        }
        AdminRequest::StopCopy { copy } => done(port.set_copy_on_duty(copy, false).await),
        AdminRequest::StartCopy { copy } => done(port.set_copy_on_duty(copy, true).await),
        AdminRequest::ReplaceCopy { copy, place } => done(port.replace_copy(copy, place).await),
        AdminRequest::SlowCopy { copy, delay_us } => done(port.slow_copy(copy, Duration::from_micros(delay_us)).await),
        AdminRequest::Voter => match view.report().control {
            Some(control) => AdminAnswer::Voter(control),
            None => AdminAnswer::Refused("the region process is recovering and knows nothing of roles yet".into()),
        },
        AdminRequest::Order(order) => match port.order(*order).await {
            Ok(Some(op)) => AdminAnswer::Op(Box::new(OperationReport::of(&op))),
            Ok(None) => AdminAnswer::Done("the order was taken; who carries it out has not answered yet".into()),
            Err(why) => AdminAnswer::Refused(why),
        },
        AdminRequest::Audit => port.audit().await.map_or_else(AdminAnswer::Refused, |r| AdminAnswer::Audit(Box::new(r))),
        AdminRequest::Ops => AdminAnswer::Ops(port.ops().iter().map(OperationReport::of).collect()),
        AdminRequest::Failovers => AdminAnswer::Failovers(port.failovers().iter().map(FailoverReport::of).collect()),
        AdminRequest::Set { key, value, actor } => set(timeout, (key, value, actor), &*view, &port).await,
        AdminRequest::Invite { guest, ttl_ms, listen, address } => {
            let own = view.report().region;
            invite(timeout, &own, members, &port, (guest, Duration::from_millis(ttl_ms), listen, address)).await
        }
        AdminRequest::Authority => done(port.authority()),
        AdminRequest::Retire { lineage } => done(port.retire(&lineage)),
        AdminRequest::DropArchive { archive, actor } => done(port.drop_archive(archive, actor).await),
    }
}

/// The primary has the rules: any other region passes it on, once.
async fn set(
    timeout: Duration,
    (key, value, actor): (String, String, String),
    view: &dyn RegionView,
    port: &Arc<dyn AdminPort>,
) -> AdminAnswer {
    let own = view.report();
    match own.primary {
        _ if own.role == Role::Primary => done(port.set(key, value, actor).await),
        Some(primary) if primary != own.region => {
            let asked = tokio::time::timeout(timeout, port.ask(&primary, AdminRequest::Set { key, value, actor })).await;
            asked.unwrap_or_else(|_| Err(format!("no answer within {} ms", timeout.as_millis()))).unwrap_or_else(|why| {
                AdminAnswer::Refused(format!(
                    "the primary {primary} was asked and did not answer ({why}); `parhelion status` shows how it is"
                ))
            })
        }
        _ => AdminAnswer::Refused(
            "no primary is known here, and only a primary has this rule; `parhelion status` shows what is going on".into(),
        ),
    }
}

/// Without the CA's key it is asked who has it.
async fn invite(
    timeout: Duration,
    own: &RegionName,
    members: &[RegionName],
    port: &Arc<dyn AdminPort>,
    (guest, ttl, listen, address): (Guest, Duration, String, Option<String>),
) -> AdminAnswer {
    let Ok(listen) = listen.parse() else { return AdminAnswer::Refused(format!("{listen} is no address: write IP:port")) };
    let Err(missing) = port.authority() else {
        return match port.invite(guest, ttl, listen, address).await {
            Ok(invited) => AdminAnswer::Invited(Box::new(invited)),
            Err(why) => AdminAnswer::Refused(why),
        };
    };
    let said = ask_all(timeout, port, others(members, own).map(|r| (r, AdminRequest::Authority)).collect()).await;
    let has = said.into_iter().find_map(|(r, answer)| match answer {
        Ok(AdminAnswer::Done(place)) => Some((r, place)),
        _ => None,
    });
    AdminAnswer::Refused(match has {
        Some((other, place)) => format!(
            "{own} cannot issue certificates ({missing}); {other} can, with {place}. There: {} --config <the file of {other}>",
            guest.invited_by()
        ),
        None => format!(
            "{own} cannot issue certificates ({missing}), nor can any region that answers: bring the CA's key, as parhelion certs made it, to one of them for the time of this"
        ),
    })
}

fn others<'a>(members: &'a [RegionName], own: &RegionName) -> impl Iterator<Item = RegionName> + use<'a> {
    let own = own.clone();
    members.iter().filter(move |m| **m != own).cloned()
}

fn done(result: Result<String, String>) -> AdminAnswer {
    match result {
        Ok(what) => AdminAnswer::Done(what),
        Err(why) => AdminAnswer::Refused(why),
    }
}

fn report_of(answer: AdminAnswer) -> Result<RegionReport, String> {
    match answer {
        AdminAnswer::Report(report) => Ok(*report),
        AdminAnswer::Refused(why) => Err(why),
        _ => Err("it answered something else; is it the same version of parhelion?".to_owned()),
    }
}

fn voter_of(answer: AdminAnswer) -> Result<ControlReport, String> {
    match answer {
        AdminAnswer::Voter(report) => Ok(*report),
        AdminAnswer::Refused(why) => Err(why),
        _ => Err("it answered something else; is it the same version of parhelion?".to_owned()),
    }
}

fn events_of(answer: AdminAnswer) -> Result<Vec<OperatorEvent>, String> {
    match answer {
        AdminAnswer::Events(events) => Ok(events),
        AdminAnswer::Refused(why) => Err(why),
        _ => Err("it answered something else; is it the same version of parhelion?".to_owned()),
    }
}

/// All at once, each with its own time limit: one dead region costs no more than [`REGION_TIMEOUT`] in all.
async fn ask_all(
    timeout: Duration,
    port: &Arc<dyn AdminPort>,
    questions: Vec<(RegionName, AdminRequest)>,
) -> BTreeMap<RegionName, Result<AdminAnswer, String>> {
    let mut asking = JoinSet::new();
    for (region, request) in questions {
        let port = Arc::clone(port);
        asking.spawn(async move {
            let answer = tokio::time::timeout(timeout, port.ask(&region, request)).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} ms", timeout.as_millis())));
            (region, answer)
        });
    }
    asking.join_all().await.into_iter().collect()
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
