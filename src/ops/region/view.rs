//! What a region shows: its report and events to HTTP and admin, rows to SQL; and how it asks the others.

use super::links::Links;
use super::space;
use crate::base::{CopyId, MemberId, RegionName, TimelineId};
use crate::control::{AutoFailover, FailoverRecord, OpView, Order};
use crate::endpoint::http::RegionView;
use crate::head::embedded::Engine;
use crate::head::{EventRow, GlobalStatusRow, InstanceStatusRow, StatusSource};
use crate::io::clock;
use crate::io::copies::slow::Drills;
use crate::io::copies::{Drill, places};
use crate::io::driver::Shared;
use crate::io::link::admin_once_of;
use crate::io::quic::RefusalKind;
use crate::io::sealing::Key;
use crate::io::tls::Subject;
use crate::node::Event;
use crate::node::report::{LagReport, OperatorEvent, RegionReport, Role, VolumeReport};
use crate::ops::admin::{AdminAnswer, AdminPort, AdminRequest};
use crate::ops::audit::AuditReport;
use crate::ops::config::{Config, parse_auto_failover};
use crate::ops::membership::invites::{Invited, Invites};
use crate::ops::membership::retire;
use crate::ops::membership::wire::Guest;
use crate::ops::witness::peers;
use crate::volume::identity::Home;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Another region has so long to answer; `admin::answer` has its own, shorter limit.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// An order's first state is looked for so often and so long.
const ORDER_LOOKED_FOR_EVERY: Duration = Duration::from_millis(10);
const ORDER_KNOWN_WITHIN: Duration = Duration::from_millis(1200);
/// Reports of other regions are asked for so often, for SQL's status functions.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

pub struct View {
    config: Config,
    key: Option<Arc<Key>>,
    shared: Arc<Shared>,
    links: Arc<Links>,
    drills: Drills,
    invites: Arc<Invites>,
    retired: tokio::sync::Notify,
    engine: OnceLock<Arc<Engine>>,
    /// The last reports of the other regions.
    others: RwLock<BTreeMap<RegionName, RegionReport>>,
    /// Measured about once a second.
    space: RwLock<Option<VolumeReport>>,
    refreshers: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl View {
    pub fn new(config: &Config, key: Option<Arc<Key>>, shared: Arc<Shared>, links: Arc<Links>, drills: Drills) -> Arc<View> {
        let invites = Invites::new(config, links.inbox().clone(), Arc::clone(&shared), Arc::clone(links.roster()));
        let view = Arc::new(View {
            config: config.clone(),
            key,
            shared,
            links,
            drills,
            invites,
            retired: tokio::sync::Notify::new(),
            engine: OnceLock::new(),
            others: RwLock::new(BTreeMap::new()),
            space: RwLock::new(None),
            refreshers: Mutex::new(Vec::new()),
        });
        let weak = Arc::downgrade(&view);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(REFRESH_EVERY).await;
                let Some(view) = weak.upgrade() else { return };
                view.refresh().await;
            }
        });
        let weak = Arc::downgrade(&view);
        let measurer = tokio::spawn(async move {
            loop {
                tokio::time::sleep(REFRESH_EVERY).await;
                let Some(view) = weak.upgrade() else { return };
                let look = move || {
                    let measured = space::measure(view.engine.get().map(Arc::as_ref), &view.config);
                    *view.space.write() = Some(measured);
                };
                // It panics only when the process ends.
                let _ = tokio::task::spawn_blocking(look).await;
            }
        });
        view.refreshers.lock().extend([task, measurer]);
        view
    }

    /// Until an operator has retired this region.
    pub async fn retired(&self) {
        self.retired.notified().await;
        // The answer to that leaves first.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    pub fn attach(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::clone(engine));
    }

    async fn refresh(&self) {
        if self.shared.control.read().as_ref().is_some_and(|c| c.out.is_some()) {
            return self.others.write().clear(); // nobody answers it any more
        }
        for region in self.links.roster().regions().into_iter().filter(|r| *r != self.config.region) {
            let asked = tokio::time::timeout(REFRESH_EVERY, self.ask(&region, AdminRequest::Report)).await;
            match asked {
                Ok(Ok(AdminAnswer::Report(report))) => {
                    self.others.write().insert(region, *report);
                }
                // Not known now: rather no row's figure than an old one.
                _ => {
                    self.others.write().remove(&region);
                }
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        for task in self.refreshers.lock().drain(..) {
            task.abort();
        }
    }
}

impl RegionView for View {
    fn report(&self) -> RegionReport {
        let mut report = (**self.shared.report.read()).clone();
        // What an operator does to a copy is no state of the volume: the node does not know of it.
        for copy in report.copies.iter_mut().filter(|c| c.reason.is_none()) {
            // `a1.g1` is a1 as well: an order is for a place, in all groups.
            let place = copy.name.split('.').next().and_then(|name| name.parse().ok());
            copy.reason = place.and_then(|id| self.drills.note(id));
        }
        if let (Some(roles), Some(control)) = (&mut report.control, self.links.control()) {
            roles.peers = peers(control);
            roles.stale = self.links.roster().stale();
            roles.certificate_days_left = Some(self.links.quic().material().days_left(clock::unix_now()));
        }
        if let Some(space) = &*self.space.read() {
            report.volume.clone_from(space);
        }
        report
    }

    fn events(&self, after_no: u64) -> Vec<OperatorEvent> {
        self.shared.events.lock().iter().filter(|e| e.no > after_no).cloned().collect()
    }

    fn refusals(&self) -> Vec<(String, u64)> {
        let links = RefusalKind::ALL.iter().map(|k| (k.label().to_owned(), self.links.quic().refusals().get(*k)));
        links.chain(self.invites.refusals()).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
    fn counters(&self) -> Vec<(&'static str, &'static str, f64)> {
        let Some(engine) = self.engine.get() else { return Vec::new() };
        let stats = engine.stats();
        let (links, short_links) = self.links.quic().link_log().counts();
        vec![
            ("commits", "Transactions that wrote and were handed to the log", stats.commits as f64),
            ("rollbacks", "Writing transactions that were rolled back", stats.rollbacks as f64),
            ("given_back_bytes", "Free pages that went out of the database by themselves", stats.given_back_bytes as f64),
            ("links", "Links with other regions that came up", links as f64),
            (
                "short_links",
                "Of these, links that ended within seconds: a region that seeks the primary has one after the other",
                short_links as f64,
            ),
            ("statements", "SQL statements run", stats.statements as f64),
            ("pool_hits", "Pages found in the buffer pool", stats.pool_hits as f64),
            ("pool_misses", "Pages read from a copy", stats.pool_misses as f64),
        ]
    }
}

#[async_trait]
impl AdminPort for View {
    async fn ask(&self, region: &RegionName, request: AdminRequest) -> Result<AdminAnswer, String> {
        if let Some(witness) = self.links.roster().witness().filter(|w| w.name == *region) {
            // It has no link but the control link, and that carries no questions: a connection for this one.
            let request = Bytes::from(request.encode());
            let material = Arc::clone(self.links.quic().material());
            let asked = admin_once_of(Subject::Witness, material, &witness.quic, region, request, ASK_TIMEOUT).await;
            return AdminAnswer::decode(&asked.map_err(|e| e.to_string())?).map_err(|e| e.to_string());
        }
        let link = self.links.for_questions(region).await?;
        let bytes = link.request_admin(request.encode().into(), ASK_TIMEOUT).await.map_err(|e| e.to_string())?;
        AdminAnswer::decode(&bytes).map_err(|e| e.to_string())
    }

    async fn set_copy_on_duty(&self, copy: CopyId, on_duty: bool) -> Result<String, String> {
        self.links.inbox().drill(copy, if on_duty { Drill::Start } else { Drill::Stop });
        let what = if on_duty { "back on duty; it catches up by itself" } else { "out of duty until it is started again" };
        Ok(format!("copy {copy} of {} is {what}", self.config.region))
    }

    async fn replace_copy(&self, copy: CopyId, place: Option<String>) -> Result<String, String> {
        if let Some(addr) = self.config.copies.get(&copy) {
            return Err(format!("copy {copy} is in a process of its own at {addr}: give that one another data_dir and start it again"));
        }
        let Some(place) = place else { return self.links.inbox().replace(copy, None).await };
        let here = self.report().copies.into_iter().find(|c| c.name == copy.to_string() && c.place.as_ref() == Some(&place));
        if let Some(here) = here {
            return Ok(match here.reason {
                Some(reason) => format!("copy {copy}, which goes to {place}, is {}: {reason}", here.state),
                None => format!("copy {copy} lives in {place} already, and is {}", here.state),
            });
        }
        let (cluster, region, layout, at) = (self.config.cluster.clone(), self.config.region.clone(), self.config.layout, place.clone());
        let home = move |m: MemberId| Home { cluster: cluster.clone(), region: region.clone(), group: m.group.0, slot: m.copy };
        let key = self.key.clone();
        let prepared = tokio::task::spawn_blocking(move || places::prepare(&at, copy, layout, key.as_deref(), home)).await;
        let candidate = prepared.map_err(|e| format!("the directory cannot be prepared: {e}"))??;
        self.links.inbox().replace(copy, Some((candidate, place))).await
    }

    fn witness(&self) -> Option<RegionName> {
        self.links.roster().witness().map(|w| w.name)
    }

    fn witness_beside(&self, primary: &RegionName) -> Option<String> {
        self.config.beside(&self.links.roster().witness()?, primary)
    }

    async fn order(&self, order: Order) -> Result<Option<OpView>, String> {
        let id = order.id;
        if self.shared.control.read().is_none() {
            return Err("this region is still recovering and takes no orders yet; try again in a moment".into());
        }
        self.links.inbox().send(Event::Order(order));
        let known = async {
            loop {
                if let Some(op) = self.shared.ops().into_iter().find(|o| o.order.id == id) {
                    return op;
                }
                tokio::time::sleep(ORDER_LOOKED_FOR_EVERY).await;
            }
        };
        Ok(tokio::time::timeout(ORDER_KNOWN_WITHIN, known).await.ok())
    }

    fn ops(&self) -> Vec<OpView> {
        self.shared.ops()
    }

    fn failovers(&self) -> Vec<FailoverRecord> {
        self.shared.ledger.read().failovers().to_vec()
    }

    async fn set(&self, key: String, value: String, actor: String) -> Result<String, String> {
        let auto = match key.as_str() {
            "auto_failover" => Some(parse_auto_failover(&value)?),
            "max_loss" => Some(parse_auto_failover(&format!("max_loss={value}"))?),
            _ => None,
        };
        let Some(auto) = auto else { return self.links.inbox().set(key, value, actor).await };
        self.links.inbox().set_auto_failover(auto, actor).await?;
        let kept = async {
            while !self.shared.control.read().as_ref().is_some_and(|c| c.auto == auto && c.auto_told) {
                tokio::time::sleep(ORDER_LOOKED_FOR_EVERY).await;
            }
        };
        let told = tokio::time::timeout(ORDER_KNOWN_WITHIN, kept).await.is_ok();
        let how = if told { "a majority of the voters keeps it" } else { "whether a majority of the voters keeps it is not known yet" };
        let lease = self.config.control.lease;
        let then = match auto {
            AutoFailover::MaxLoss(bound) => format!(
                "; the bound is one of what is known to be lost, and a primary that is cut off may go on for the rest of its lease of {} beyond {}",
                humantime::format_duration(lease),
                humantime::format_duration(bound)
            ),
            AutoFailover::Lossless => "; that nothing is lost can be proven only while a rule of sync=1 or more is in force".to_owned(),
            AutoFailover::Off => String::new(),
        };
        Ok(format!("auto_failover={auto} for the whole global cluster: {how}{then}"))
    }

    async fn audit(&self) -> Result<AuditReport, String> {
        let region = self.config.region.clone();
        AuditReport::of_running(region, &self.config.data_dir, || *self.shared.audit_head.lock()).await
    }

    async fn invite(&self, guest: Guest, ttl: Duration, listen: SocketAddr, address: Option<String>) -> Result<Invited, String> {
        self.invites.invite(guest, ttl, listen, address).await
    }

    async fn drop_archive(&self, archive: TimelineId, actor: String) -> Result<String, String> {
        self.links.inbox().drop_archive(archive, actor).await
    }

    fn retire(&self, lineage: &str) -> Result<String, String> {
        let report = self.report();
        let (region, own) = (&self.config.region, report.lineage.map(|l| l.0).unwrap_or_default());
        let rivals = self.shared.control.read().as_ref().map(|c| c.rivals.clone()).unwrap_or_default();
        let given = lineage.to_ascii_lowercase();
        if given.len() < 8 || !own.starts_with(&given) {
            return Err(format!("{region} is of lineage {own}, and not of {lineage}; where that one is: parhelion status"));
        }
        if rivals.is_empty() {
            return Err(format!("{region} has met no member of another lineage: there is nothing to retire it for"));
        }
        if !self.config.copies.is_empty() {
            return Err(format!(
                "copies of {region} are in processes of their own: stop all, move their directories away, and start them empty"
            ));
        }
        retire::order(&self.config.data_dir, &own)?;
        self.retired.notify_one();
        Ok(format!(
            "{region} gives up lineage {own} and its process ends; start it again: parhelion region --config {}. Its copies are moved into {}/retired then, \
             and it is seeded as a secondary of the other lineage",
            self.config.file.display(),
            self.config.data_dir.display()
        ))
    }

    fn authority(&self) -> Result<String, String> {
        self.invites.authority()
    }

    async fn slow_copy(&self, copy: CopyId, delay: Duration) -> Result<String, String> {
        self.links.inbox().drill(copy, Drill::Slow(delay));
        let region = &self.config.region;
        Ok(match delay {
            Duration::ZERO => format!("copy {copy} of {region} is as fast as its disk again"),
            delay => format!(
                "copy {copy} of {region} answers {} later until `parhelion copy slow {copy} --delay 0`",
                humantime::Duration::from(delay)
            ),
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a lag in whole milliseconds fits")]
fn whole_ms(ms: Option<f64>) -> Option<i64> {
    ms.map(|m| m.round() as i64)
}

fn lsn(lsn: crate::base::Lsn) -> Option<i64> {
    i64::try_from(lsn.0).ok()
}

fn timestamp(at: crate::base::UnixMicros) -> Option<String> {
    let at = jiff::Timestamp::from_microsecond(i64::try_from(at.0).ok()?).ok()?;
    Some(at.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string())
}

/// One region as SQL's status functions see it.
struct Seen {
    region: RegionName,
    is_primary: bool,
    /// `None`: not heard of now.
    report: Option<RegionReport>,
    lag: LagReport,
}

impl View {
    fn seen(&self) -> Vec<Seen> {
        let own = self.report();
        let others = self.others.read();
        let primary = own.primary.clone();
        let regions = self.links.roster().regions();
        regions
            .into_iter()
            .map(|region| {
                let report = if region == own.region { Some(own.clone()) } else { others.get(&region).cloned() };
                // The primary hears of its secondaries ten times a second; that is newer than what was asked.
                let told = own.secondaries.iter().find(|s| s.region == region).map(|s| s.lag);
                let lag = told.or_else(|| report.as_ref().map(|r| r.lag)).unwrap_or_default();
                let is_primary = report.as_ref().map_or(primary.as_ref() == Some(&region), |r| r.role == Role::Primary);
                Seen { region, is_primary, report, lag }
            })
            .collect()
    }
}

impl StatusSource for View {
    fn global_status(&self) -> Vec<GlobalStatusRow> {
        let rows = self.seen().into_iter().map(|s| GlobalStatusRow {
            aws_region: s.region.to_string(),
            highest_lsn_written: s.report.as_ref().and_then(|r| lsn(if s.is_primary { r.written_lsn } else { r.durable_lsn })),
            durability_lag_in_msec: if s.is_primary { Some(-1) } else { whole_ms(s.lag.durability_ms) },
            rpo_lag_in_msec: if s.is_primary { Some(-1) } else { whole_ms(s.lag.rpo_ms) },
            last_lag_calculation_time: if s.is_primary { timestamp(clock::unix_now()) } else { s.lag.measured_at.and_then(timestamp) },
            feedback_epoch: s.report.as_ref().map(|_| 0),
            feedback_xmin: s.report.as_ref().map(|_| 0),
        });
        rows.collect()
    }

    fn events(&self) -> Vec<EventRow> {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let row = |e: OperatorEvent| EventRow {
            no: number(e.no),
            at: timestamp(e.at),
            aws_region: e.region.to_string(),
            kind: e.kind,
            epoch: number(e.epoch.0),
            durable_lsn: lsn(e.durable_lsn),
            what: e.what,
            operation: e.op,
            actor: e.actor,
            duration_in_msec: e.duration_ms.map(number),
        };
        RegionView::events(self, 0).into_iter().map(row).collect()
    }

    fn instance_status(&self) -> Vec<InstanceStatusRow> {
        let rows = self.seen().into_iter().map(|s| InstanceStatusRow {
            server_id: format!("{}-1", s.region),
            session_id: if s.is_primary { "MASTER_SESSION_ID".into() } else { format!("{}-{}", self.config.cluster, s.region) },
            aws_region: s.region.to_string(),
            durable_lsn: s.report.as_ref().and_then(|r| lsn(r.durable_lsn)),
            highest_lsn_rcvd: s.report.as_ref().and_then(|r| lsn(r.written_lsn)),
            feedback_epoch: s.report.as_ref().map(|_| 0),
            feedback_xmin: s.report.as_ref().map(|_| 0),
            oldest_read_view_lsn: s.report.as_ref().and_then(|r| lsn(r.oldest_read_view_lsn)),
            visibility_lag_in_msec: if s.is_primary { Some(-1) } else { whole_ms(s.lag.visibility_ms) },
        });
        rows.collect()
    }
}
