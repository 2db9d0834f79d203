//! Every path and status code over a real socket, with a region made up for the purpose; then garbage.

use super::*;
use crate::base::UnixMicros;
use crate::node::report::{RepairReport, ScrubReport};
use crate::ops::status::tests::sample;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Fake(parking_lot::Mutex<RegionReport>);

impl RegionView for Fake {
    fn report(&self) -> RegionReport {
        self.0.lock().clone()
    }
    fn events(&self, _: u64) -> Vec<OperatorEvent> {
        Vec::new()
    }
    fn refusals(&self) -> Vec<(String, u64)> {
        vec![("wrong_ca".into(), 3)]
    }
    fn counters(&self) -> Vec<(&'static str, &'static str, f64)> {
        vec![("frames_shipped", "Frames sent to secondaries", 12.0)]
    }
}

struct Rig {
    addr: SocketAddr,
    fake: Arc<Fake>,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn new(role: Role) -> Rig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let name = if role == Role::Primary { "us-east" } else { "eu-west" };
        let fake = Arc::new(Fake(parking_lot::Mutex::new(sample(name, role))));
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve_http(listener, fake.clone(), stopped));
        Rig { addr, fake, stop, server }
    }

    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        // The server may close while we still write: that is an answer, too.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn change(&self, change: impl FnOnce(&mut RegionReport)) {
        change(&mut self.fake.0.lock());
    }
}

#[tokio::test]
async fn the_primary_is_the_primary_only_while_it_takes_writes() {
    let rig = Rig::new(Role::Primary).await;
    assert_eq!(rig.get("/primary").await.0, 200);
    let (code, body) = rig.get("/healthz").await;
    assert_eq!(code, 200);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["ok"], &body["region"], &body["state"]), (&true.into(), &"us-east".into(), &"writable".into()));
    assert_eq!(rig.get("/replica?max_lag=1ms").await.0, 200, "the primary is not behind itself");
    rig.change(|r| (r.state, r.reason) = (RegionState::Fenced, Some("3 of 6 copies are up".into())));
    for path in ["/primary", "/healthz"] {
        let (code, body) = rig.get(path).await;
        assert!(code == 503 && body.contains("fenced: 3 of 6"), "{code} {body}");
    }
}

#[tokio::test]
async fn a_secondary_is_a_replica_while_its_lag_is_known_and_small_enough() {
    let rig = Rig::new(Role::Secondary).await;
    let (code, body) = rig.get("/primary").await;
    assert!(code == 503 && body.contains("the primary is us-east"), "{body}");
    assert_eq!(rig.get("/healthz").await.0, 200);
    for (path, expected) in [
        ("/replica", 200),
        ("/replica?max_lag=500ms", 200),
        ("/replica?max_lag=41ms", 200),
        ("/replica?max_lag=40ms", 503),
        ("/replica?max_lag=500", 400),
        ("/replica?max_lag=", 400),
        ("/replica?max_lag=-1s", 400),
        ("/replica?max_lag=99999999999999999999s", 400),
        ("/replica?maxlag=1s", 400),
    ] {
        let (code, body) = rig.get(path).await;
        assert_eq!(code, expected, "{path}: {body}");
    }
    let (_, body) = rig.get("/replica?max_lag=40ms").await;
    assert!(body.contains("\"visibility_lag_ms\":41.0") && body.contains("41.0 ms old"), "{body}");

    rig.change(|r| {
        r.state = RegionState::Disconnected;
        r.lag.unknown_since = Some(UnixMicros(1));
    });
    assert_eq!(rig.get("/replica").await.0, 200, "old, but readable");
    assert_eq!(rig.get("/healthz").await.0, 200);
    let (code, body) = rig.get("/replica?max_lag=1h").await;
    assert!(code == 503 && body.contains("\"visibility_lag_ms\":null") && body.contains("not known since"), "{body}");

    rig.change(|r| r.readers = 0);
    assert_eq!(rig.get("/healthz").await.0, 503);
    rig.change(|r| (r.readers, r.visible_lsn.0, r.state) = (1, 0, RegionState::CatchingUp));
    assert_eq!(rig.get("/replica").await.0, 503, "nothing to show before the seed is there");
    rig.change(|r| (r.role, r.state, r.primary) = (Role::Unknown, RegionState::Starting, None));
    assert_eq!((rig.get("/healthz").await.0, rig.get("/primary").await.0), (503, 503));
}

#[tokio::test]
async fn status_metrics_and_unknown_paths() {
    let rig = Rig::new(Role::Secondary).await;
    let (code, body) = rig.get("/status").await;
    let report: RegionReport = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &report), (200, &rig.fake.report()));
    let (code, body) = rig.get("/nothing").await;
    assert!(code == 404 && body.contains("/replica?max_lag=500ms"));
    assert!(
        rig.raw(b"POST /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await.starts_with("HTTP/1.1 405")
    );

    let (code, body) = rig.get("/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "parhelion_durable_lsn 100",
        "parhelion_visible_lsn 90",
        "parhelion_is_primary 0",
        "parhelion_epoch 1",
        "parhelion_lag_visibility_milliseconds{region=\"eu-west\"} 41.0",
        "parhelion_copy_up{copy=\"a1\",az=\"a\"} 1",
        "parhelion_state{state=\"streaming\"} 1",
        "parhelion_state{state=\"idle\"} 0",
        "parhelion_refusals_total{kind=\"wrong_ca\"} 3",
        "parhelion_frames_shipped_total 12.0",
        "# EOF",
    ] {
        assert!(body.lines().any(|l| l == line), "no line {line} in\n{body}");
    }
    rig.change(|r| r.lag.unknown_since = Some(UnixMicros(1)));
    let (_, body) = rig.get("/metrics").await;
    assert!(body.contains("parhelion_lag_known 0") && !body.contains("parhelion_lag_visibility_milliseconds{"), "{body}");

    let primary = Rig::new(Role::Primary).await;
    let (_, body) = primary.get("/metrics").await;
    assert!(body.contains("parhelion_is_primary 1") && body.contains("parhelion_secondary_durable_lsn{region=\"eu-west\"} 97"), "{body}");
}

/// What status says of the copies, the metrics say as well.
#[tokio::test]
async fn a_copys_state_rebuilding_scrub_and_findings_are_in_status_and_metrics_alike() {
    let rig = Rig::new(Role::Primary).await;
    rig.change(|r| {
        let copy = &mut r.copies[3];
        copy.state = "seeding".into();
        copy.durable_lsn.0 = 70;
        copy.damage = Some("layer-00000001: a block's checksum does not match".into());
        copy.repair =
            Some(RepairReport { since: UnixMicros(1), pages: 120, pages_in_all: Some(4300), bytes: 5000, bytes_per_s: Some(900) });
        let ended_at = Some(UnixMicros(7_000_000));
        copy.scrub = ScrubReport {
            running: true,
            ended_at,
            read_bytes: 11,
            pages: 12,
            found: 1,
            found_total: 3,
            repaired_total: 2,
            lost_writes_total: 1,
        };
        r.copies[4].low_on_room = true;
    });
    let status: Value = serde_json::from_str(&rig.get("/status").await.1).unwrap();
    let (_, metrics) = rig.get("/metrics").await;
    let of_copy = |name: &str| format!("{{copy=\"b2\",az=\"b\"}} {name}");
    let copy = &status["copies"][3];
    assert_eq!((&copy["name"], &copy["az"], &copy["state"]), (&"b2".into(), &"b".into(), &"seeding".into()));
    for (path, metric) in [
        ("/durable_lsn", "copy_durable_lsn"),
        ("/repair/pages", "copy_repair_pages"),
        ("/repair/pages_in_all", "copy_repair_pages_in_all"),
        ("/repair/bytes", "copy_repair_bytes"),
        ("/repair/bytes_per_s", "copy_repair_bytes_per_second"),
        ("/scrub/read_bytes", "copy_scrub_read_bytes"),
        ("/scrub/pages", "copy_scrub_pages"),
        ("/scrub/found", "copy_scrub_found"),
        ("/scrub/found_total", "copy_damage_found_total"),
        ("/scrub/repaired_total", "copy_damage_repaired_total"),
        ("/scrub/lost_writes_total", "lost_write_total"),
    ] {
        let figure = copy.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("status has no {path}: {copy}"));
        let line = format!("parhelion_{metric}{}", of_copy(&figure.to_string()));
        assert!(metrics.lines().any(|l| l == line), "no line {line} in\n{metrics}");
    }
    for line in [
        "parhelion_copy_state{copy=\"b2\",az=\"b\",state=\"seeding\"} 1",
        "parhelion_copy_state{copy=\"b2\",az=\"b\",state=\"up\"} 0",
        "parhelion_copy_state{copy=\"a1\",az=\"a\",state=\"up\"} 1",
        "parhelion_copy_damaged{copy=\"b2\",az=\"b\"} 1",
        "parhelion_copy_scrub_running{copy=\"b2\",az=\"b\"} 1",
        "parhelion_copy_scrub_ended_seconds{copy=\"b2\",az=\"b\"} 7",
        "parhelion_copy_low_on_room{copy=\"c1\",az=\"c\"} 1",
        "parhelion_copy_low_on_room{copy=\"a1\",az=\"a\"} 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "no line {line} in\n{metrics}");
    }
}

#[tokio::test]
async fn garbage_harms_nobody_and_the_end_is_clean() {
    let rig = Rig::new(Role::Secondary).await;
    rig.raw(&[0xff; 4096]).await;
    rig.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(64 << 10));
    let answer = rig.raw(long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let many: String = (0..200).map(|i| format!("h{i}: x\r\n")).collect();
    assert!(rig.raw(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await.starts_with("HTTP/1.1 4"));
    assert_eq!(rig.get("/healthz").await.0, 200);
    // An idle connection does not hold up the end.
    let _idle = TcpStream::connect(rig.addr).await.unwrap();
    rig.stop.send(true).unwrap();
    rig.server.await.unwrap();
}
