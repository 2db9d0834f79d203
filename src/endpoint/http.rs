//! The HTTP port of a region (and of a witness, which has less to say): what load balancers, Prometheus and people with curl ask. Read-only.
//!
//! Decides: which answer means "send traffic here". Never changes anything, and reads no request body. Every connection has
//! a deadline for its headers and a bound on their size; there are at most so many connections; garbage ends its connection
//! and nothing else. Driven by the region process, which gives a listener and a [`RegionView`].

use super::{metrics, text};
use crate::node::report::{ControlReport, OperatorEvent, RegionReport, RegionState, Role};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

const HEADERS_BYTES_MAX: usize = 16 << 10;
const HEADERS_COUNT_MAX: usize = 64;
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: usize = 256;
const PATHS: &str = "/healthz\n/primary\n/replica?max_lag=500ms\n/status\n/events?after=0\n/metrics\n";

/// What a region says of itself, from memory and at once.
pub trait RegionView: Send + Sync + 'static {
    fn report(&self) -> RegionReport;
    /// Those kept whose number is larger, oldest first; 0 for all.
    fn events(&self, after_no: u64) -> Vec<OperatorEvent>;
    /// What was refused since the start: kind (`wrong_ca`, `bad_password` ...) and how often.
    fn refusals(&self) -> Vec<(String, u64)>;
    /// Counters since the start: name (`frames_shipped`; `parhelion_` and `_total` are added), help (no full stop), value.
    fn counters(&self) -> Vec<(&'static str, &'static str, f64)>;
}

/// What a member without data says of itself, from memory and at once.
pub trait MemberView: Send + Sync + 'static {
    fn report(&self) -> ControlReport;
    /// As [`RegionView::refusals`].
    fn refusals(&self) -> Vec<(String, u64)>;
}

type View = Arc<dyn RegionView>;

/// Serves until `shutdown` says true (or its sender is gone).
pub async fn serve_http(listener: TcpListener, view: Arc<dyn RegionView>, shutdown: watch::Receiver<bool>) {
    serve(listener, router(view), shutdown).await;
}

/// As [`serve_http`], of a witness: `/healthz`, `/status` and `/metrics`.
pub async fn serve_member(listener: TcpListener, view: Arc<dyn MemberView>, shutdown: watch::Receiver<bool>) {
    let app = Router::new()
        .route("/healthz", get(member_healthz))
        .route("/status", get(async |State(view): State<Arc<dyn MemberView>>| json_response(StatusCode::OK, &view.report())))
        .route("/metrics", get(member_metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here; the paths are\n/healthz\n/status\n/metrics\n") })
        .with_state(view);
    serve(listener, app, shutdown).await;
}

/// A witness is well while it is one and hears a region.
async fn member_healthz(State(view): State<Arc<dyn MemberView>>) -> Response {
    let report = view.report();
    let refused = if report.role == "removed" {
        report.reason.clone()
    } else {
        (!report.peers.iter().any(|p| p.up)).then(|| "no region is connected".to_owned())
    };
    let status = if refused.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "ok": refused.is_none(), "member": report.member, "role": report.role, "promised": report.promised, "votes": report.votes, "reason": refused,
    });
    json_response(status, &body)
}

async fn member_metrics(State(view): State<Arc<dyn MemberView>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render_member(&*view)).into_response()
}

async fn serve(listener: TcpListener, app: Router, shutdown: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut stop = shutdown.clone();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = async {
                let place = Arc::clone(&room).acquire_owned().await.expect("BUG: the semaphore is never closed");
                (listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), place) => {
                let app = app.clone();
                connections.spawn(async move {
                    serve_connection(stream, app).await;
                    drop(place);
                });
            }
            (Err(error), _) => {
                // Out of descriptors, most likely: others must close theirs first.
                tracing::warn!(%error, "the HTTP port cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // A sender that is gone is a process that ends.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn serve_connection(stream: TcpStream, app: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_headers(HEADERS_COUNT_MAX)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

fn router(view: View) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/primary", get(primary))
        .route("/replica", get(replica))
        .route("/status", get(status))
        .route("/events", get(events))
        .route("/metrics", get(metrics_page))
        .fallback(|| async { (StatusCode::NOT_FOUND, format!("there is nothing here; the paths are\n{PATHS}")) })
        .with_state(view)
}

/// 200 with `ok: true`, or 503 with the reason.
fn verdict(report: &RegionReport, refused: Option<String>, more: &[(&str, Value)]) -> Response {
    let status = if refused.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({
        "ok": refused.is_none(), "region": report.region, "role": report.role, "state": report.state, "reason": refused,
    });
    for (key, value) in more {
        body[*key] = value.clone();
    }
    json_response(status, &body)
}

fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let mut text = serde_json::to_string(body).expect("BUG: plain data becomes JSON");
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], text).into_response()
}

/// Why this region does not take writes; `None` when it does.
fn not_writable(report: &RegionReport) -> Option<String> {
    let why = report.reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
    match report.role {
        Role::Primary if report.state == RegionState::Writable => None,
        Role::Primary => Some(format!("the primary is {}{why}", text::word(&report.state))),
        _ => Some(match &report.primary {
            Some(primary) => format!("the primary is {primary}"),
            None => "no primary is known here yet".to_owned(),
        }),
    }
}

/// Why nobody should read here; `None` when reads are served, however old what they show may be.
fn not_readable(report: &RegionReport) -> Option<String> {
    let why = report.reason.as_ref().map_or(String::new(), |r| format!(": {r}"));
    if report.role == Role::Unknown || report.state == RegionState::Starting {
        return Some(format!("{} is starting{why}", report.region));
    }
    if report.readers == 0 && report.role == Role::Secondary {
        return Some(format!("no reader answers in this region{why}"));
    }
    // `idle` and `streaming` say that it has data, even if the log is still empty.
    let has_data = report.visible_lsn.0 > 0 || matches!(report.state, RegionState::Idle | RegionState::Streaming | RegionState::Writable);
    if has_data { None } else { Some(format!("{} has no data to show yet ({}){why}", report.region, text::word(&report.state))) }
}

/// Whether the process serves its role: the primary takes writes, a secondary answers reads.
async fn healthz(State(view): State<View>) -> Response {
    let report = view.report();
    let refused = if report.role == Role::Primary { not_writable(&report) } else { not_readable(&report) };
    verdict(&report, refused, &[])
}

async fn primary(State(view): State<View>) -> Response {
    let report = view.report();
    verdict(&report, not_writable(&report), &[("epoch", json!(report.epoch))])
}

/// Whether reads are served here, no older than `max_lag`. The primary serves reads, too, and is not behind.
async fn replica(
    State(view): State<View>,
    query: Result<Query<BTreeMap<String, String>>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let max_lag = match query {
        Err(error) => return bad_request(&error.to_string()),
        Ok(Query(mut query)) => {
            let max_lag = query.remove("max_lag");
            if let Some(unknown) = query.keys().next() {
                return bad_request(&format!("there is no parameter '{}'; the only one is max_lag", unknown.escape_default()));
            }
            max_lag
        }
    };
    let max_lag = match max_lag.map(|given| parse_duration(&given)).transpose() {
        Ok(max_lag) => max_lag,
        Err(error) => return bad_request(&error),
    };
    let report = view.report();
    let lag_ms = match report.role {
        Role::Primary => Some(0.0),
        _ => report.lag.visibility_ms.filter(|_| report.lag.known()),
    };
    let refused = not_readable(&report).or_else(|| match (max_lag, lag_ms) {
        (None, _) => None,
        (Some(max), Some(lag)) if lag <= max.as_secs_f64() * 1000.0 => None,
        (Some(_), Some(lag)) => Some(format!("what readers see here is {} old", text::lag_ms(lag))),
        (Some(_), None) => Some(match report.lag.unknown_since {
            Some(since) => format!("the lag is not known since {}", text::rfc3339(since)),
            None => "the lag is not known".to_owned(),
        }),
    });
    verdict(&report, refused, &[("visibility_lag_ms", json!(lag_ms)), ("lag_known", json!(lag_ms.is_some()))])
}

fn bad_request(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response()
}

/// `500ms`, `2s`, `1m 30s`.
fn parse_duration(given: &str) -> Result<Duration, String> {
    humantime::parse_duration(given).map_err(|e| {
        format!("max_lag={} is no duration ({e}); write it like 500ms or 2s", given.chars().take(40).collect::<String>().escape_default())
    })
}

async fn status(State(view): State<View>) -> Response {
    json_response(StatusCode::OK, &view.report())
}

/// This region's events that are kept, oldest first; with `after` those of a larger number.
async fn events(
    State(view): State<View>,
    query: Result<Query<BTreeMap<String, String>>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let mut query = match query {
        Err(error) => return bad_request(&error.to_string()),
        Ok(Query(query)) => query,
    };
    let after = query.remove("after").unwrap_or_else(|| "0".to_owned());
    if let Some(unknown) = query.keys().next() {
        return bad_request(&format!("there is no parameter '{}'; the only one is after", unknown.escape_default()));
    }
    match after.parse() {
        Ok(after) => json_response(StatusCode::OK, &json!({ "events": view.events(after) })),
        Err(_) => bad_request(&format!(
            "after={} is no number of an event; each event has one as `no`",
            after.chars().take(40).collect::<String>().escape_default()
        )),
    }
}

async fn metrics_page(State(view): State<View>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&*view)).into_response()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
