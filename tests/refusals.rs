//! What is in the way is said in a sentence, with what to do next, and costs nobody anything: not a row, and not the others' time.

mod common;

use common::{ByHand, Cluster, Ports, Ready, Region, ensure, http_get, metric, parhelion, run, tail, text, until};
use parhelion::base::{ClusterName, Prng, RegionName, UnixMicros};
use parhelion::io::clock::unix_now;
use parhelion::ops::certs::{CertOptions, create};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DAY_US: u64 = 86_400_000_000;

/// The founder of a cluster of its own, without a demo around it.
struct Site {
    dir: tempfile::TempDir,
    ports: Ports,
}

impl Site {
    fn new() -> Site {
        let site = Site { dir: tempfile::tempdir().unwrap(), ports: Ports::reserve(2) };
        site.write("good", |text| text);
        site
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.toml"))
    }

    /// A configuration, changed.
    fn write(&self, name: &str, change: impl Fn(String) -> String) -> PathBuf {
        let base = self.ports.base;
        let [writer, reader, http, instance, other] = [1, 2, 3, 10, 100].map(|n| base + n);
        let good = format!(
            "cluster = \"sun\"\nregion = \"us\"\ndata_dir = \"data\"\nfounder = \"us\"\n\n[listen]\nquic = \"127.0.0.1:{base}\"\n\
             writer = \"127.0.0.1:{writer}\"\nreader = \"127.0.0.1:{reader}\"\nhttp = \"127.0.0.1:{http}\"\ninstance = \"127.0.0.1:{instance}\"\n\n\
             [tls]\ndir = \"certs\"\n\n[sql]\nuser = \"app\"\ndatabase = \"app\"\n\n\
             [[member]]\nregion = \"us\"\nquic = \"127.0.0.1:{base}\"\n\n[[member]]\nregion = \"eu\"\nquic = \"127.0.0.1:{other}\"\n"
        );
        let file = self.file(name);
        std::fs::write(&file, change(good)).unwrap();
        file
    }

    /// Must not start: its sentence, in which all of `parts` stand.
    fn refused(&self, file: &Path, parts: &[&str]) -> String {
        let output = run(parhelion().args(["region", "--config"]).arg(file), "");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in parts {
            assert!(said.contains(part), "no '{part}' in: {said}");
        }
        said
    }

    fn certs(&self, dir: &str, cluster: &str, made: UnixMicros, days: u32) {
        let names = ["us", "eu"].map(|n| RegionName::new(n).unwrap());
        let options = CertOptions { days, renew: true, ..CertOptions::new(made) };
        create(&self.dir.path().join(dir), &ClusterName::new(cluster).unwrap(), &names, &options).unwrap();
    }

    fn runs(&self) -> (ByHand, Ready) {
        let process = ByHand::start(&self.file("good"), &self.dir.path().join("us.log"));
        let password = std::fs::read_to_string(self.dir.path().join("certs/sql-password")).unwrap().trim().to_owned();
        let ready = Ready { cluster: "sun".into(), user: "app".into(), password, database: "app".into(), regions: Vec::new() };
        until("it writes", || ready.sql(&self.writer(), "create table if not exists t (id integer primary key)").map(drop));
        (process, ready)
    }

    fn writer(&self) -> String {
        format!("127.0.0.1:{}", self.ports.base + 1)
    }
}

#[test]
fn what_is_in_the_way_of_a_start_is_named() {
    let site = Site::new();
    let good = site.file("good");

    // Certificates: missing, of another cluster, expired, half there.
    let said = site.refused(&good, &["parhelion certs --config"]);
    assert!(said.contains(&good.display().to_string()), "a command one can copy: {said}");
    let made = run(parhelion().args(["certs", "--config"]).arg(&good), "");
    assert!(made.status.success(), "{}", text(&made.stderr));
    site.certs("of-moon", "moon", unix_now(), 30);
    let other = site.write("other-cluster", |t| t.replace("\"certs\"", "\"of-moon\""));
    site.refused(&other, &["us.moon", "`cluster`", "[tls] dir"]);
    site.certs("old", "sun", UnixMicros(unix_now().0 - 40 * DAY_US), 30);
    let expired = site.write("expired", |t| t.replace("\"certs\"", "\"old\""));
    site.refused(&expired, &["expired", "--renew"]);
    site.certs("broken", "sun", unix_now(), 30);
    std::fs::write(site.dir.path().join("broken/us.pem"), "no certificate\n").unwrap();
    let broken = site.write("broken", |t| t.replace("\"certs\"", "\"broken\""));
    site.refused(&broken, &["us.pem", "parhelion certs"]);
    std::fs::remove_file(site.dir.path().join("broken/us.pem")).unwrap();
    site.refused(&broken, &["us.pem", "parhelion certs"]);
    let open = site.dir.path().join("certs/sql-password");
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    site.refused(&good, &["chmod 600"]);
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    // The file itself.
    let unknown = site.write("unknown", |t| t.replace("[tls]", "pool = 3\n[tls]"));
    site.refused(&unknown, &["unknown.toml:13", "unknown key 'pool'", "quic"]);
    let unknown = site.write("unknown", |t| t.replace("data_dir", "datadir"));
    site.refused(&unknown, &["unknown.toml:3", "unknown key 'datadir'", "data_dir"]);
    let six = site.write("seven", |t| {
        let more = (0..5).map(|i| format!("\n[[member]]\nregion = \"more-{i}\"\nquic = \"127.0.0.1:{}\"\n", 60_000 + i));
        t + &more.collect::<String>()
    });
    site.refused(&six, &["at most 5 secondaries", "here are 6", "more-4"]);
    let exposed = site.write("exposed", |t| t.replace("http = \"127.0.0.1", "http = \"0.0.0.0"));
    site.refused(&exposed, &["listen.http", "expose = true"]);

    // Ports of others, TCP and UDP.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let port = site.write("port", |t| t.replace(&format!("127.0.0.1:{}", site.ports.base + 3), &at));
    site.refused(&port, &[&at, "in use", "listen.http"]);
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let port = site.write("port", |t| t.replace(&format!("quic = \"127.0.0.1:{}\"", site.ports.base), &format!("quic = \"{at}\"")));
    site.refused(&port, &[&at, "in use", "listen.quic"]);

    // A directory that cannot be one.
    std::fs::write(site.dir.path().join("file"), "").unwrap();
    let file = site.write("file", |t| t.replace("\"data\"", "\"file\""));
    site.refused(&file, &["data_dir"]);

    // None of it left anything behind that is in the way of a good start. A second process is told who the first is.
    let (first, ready) = site.runs();
    let said = site.refused(&good, &["already runs", "stop that one first"]);
    assert!(said.contains(&first.child.id().to_string()), "{said}");
    ready.must(&site.writer(), "insert into t values (1)");
    first.stop();
    let (again, ready) = site.runs();
    assert_eq!(ready.must(&site.writer(), "select count(*) from t"), "1");
    again.stop();
}

#[test]
fn a_demo_names_what_is_in_its_way() {
    let temp = tempfile::tempdir().unwrap();
    let ports = Ports::reserve(2);
    let base = ports.base.to_string();
    let dir = temp.path().join("d");
    let demo = |args: &[&str]| {
        let output = run(parhelion().arg("demo").args(["--base-port", &base, "--profile", "none", "--dir"]).arg(&dir).args(args), "");
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = demo(&["--regions", "7"]);
    assert!(code == Some(2) && said.contains("2..=6"), "one primary and five secondaries: {said}");
    let taken = TcpListener::bind(("127.0.0.1", ports.base + 101)).unwrap();
    let (code, said) = demo(&["--regions", "2"]);
    assert!(code == Some(1) && said.contains(&format!("port {}", ports.base + 101)) && said.contains("--base-port"), "{said}");
    drop(taken);
    let cluster = Cluster::start_in(dir.clone(), ports, &["--regions", "2", "--profile", "none"]);
    let (code, said) = demo(&["--regions", "2"]);
    assert!(code == Some(1) && said.contains("another demo is running"), "{said}");
    cluster.until_whole();
}

/// What reaches a port from people who do not know what it is.
fn nonsense(prng: &mut Prng, no: u64) -> Vec<u8> {
    let length = usize::try_from(prng.between(1, 1200)).unwrap();
    let mut bytes: Vec<u8> = (0..length).map(|_| u8::try_from(prng.below(256)).unwrap()).collect();
    let front: &[u8] = match no % 10 {
        // A startup message that claims 2 GiB, one of a negative length, one that is right and then nonsense.
        0 => &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        1 => &[0xff, 0xff, 0xff, 0xff],
        2 => b"\0\0\0\x10\0\x03\0\0user\0a\0\0p\x7f\xff\xff\xff",
        // SSLRequest, and then no TLS.
        3 => &[0, 0, 0, 8, 4, 210, 22, 47],
        4 => b"GET / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n",
        5 => b"POST /status HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        // The beginning of a QUIC packet, and one of another version.
        6 => &[0xc3, 0, 0, 0, 1, 8],
        7 => &[0xff, 0xfa, 0xce, 0xb0, 0x0c, 20],
        8 => &[22, 3, 1, 2, 0],
        _ => &[],
    };
    bytes.splice(..0, front.iter().copied());
    bytes
}

fn peak_memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_wrong_password_and_nonsense_on_every_port_reach_nobody() {
    let cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key)");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = Ready { password: "guessed".into(), ..ready.clone() };
    let stranger = Ready { user: "somebody".into(), ..ready.clone() };
    for address in [&primary.writer, &primary.reader, &second.writer, &second.reader] {
        for who in [&wrong, &stranger] {
            let error = runtime.block_on(who.connect(address)).map(drop).unwrap_err();
            assert_eq!(error.as_db_error().map(|e| e.code().code()), Some("28P01"), "{address}: {error:?}");
        }
    }
    assert!(wrong.sql(&primary.writer, "select 1").unwrap_err().contains("password authentication failed"));

    // A client works while every port gets nonsense.
    let over = AtomicBool::new(false);
    let mut tcp = Vec::new();
    for region in &ready.regions {
        let (host, port) = region.quic.rsplit_once(':').unwrap();
        tcp.extend([region.writer.clone(), region.reader.clone(), region.http.clone()]);
        tcp.push(format!("{host}:{}", port.parse::<u16>().unwrap() + 10));
    }
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            runtime.block_on(async {
                let client = ready.connect(&second.writer).await.unwrap();
                let mut id = 0i64;
                while !over.load(Ordering::Relaxed) {
                    id += 1;
                    client.execute("insert into t values ($1)", &[&id]).await.unwrap();
                }
                id
            })
        });
        let throwers: Vec<_> = tcp
            .iter()
            .enumerate()
            .map(|(who, address)| {
                scope.spawn(move || {
                    let mut prng = Prng::new(who as u64);
                    for no in 0..60 {
                        let Ok(mut stream) = TcpStream::connect(address) else { panic!("{address} takes no connections any more") };
                        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                        // It may hang up at any moment; that is an answer, too.
                        let _ = stream.write_all(&nonsense(&mut prng, no));
                        let _ = stream.read(&mut [0; 512]);
                        let _ = stream.write_all(&nonsense(&mut prng, 9));
                    }
                })
            })
            .collect();
        for (who, region) in ready.regions.iter().enumerate() {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut prng = Prng::new(100 + who as u64);
            for no in 0..2000 {
                let _ = socket.send_to(&nonsense(&mut prng, no), &region.quic);
            }
        }
        for thrower in throwers {
            thrower.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        let inserted = client.join().unwrap();
        assert!(inserted > 0);
        assert_eq!(ready.must(&primary.writer, "select count(*), max(id) from t"), format!("{inserted}|{inserted}"));
    });
    cluster.until_whole();
    for region in &ready.regions {
        assert!(common::runs(region.pid), "{} is the same process as before", region.name);
        let kib = peak_memory_kib(region.pid);
        assert!(kib < 400 << 10, "{}: nothing was allocated because somebody claimed so: {kib} KiB", region.name);
    }
    for words in ["panicked", "BUG:"] {
        assert!(!cluster.logs().contains(words), "{}", cluster.logs());
    }
}

#[test]
fn a_certificate_of_another_ca_is_refused_counted_and_logged() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key)");
    cluster.until_whole();
    cluster.kill_region(&second.name);

    // The same cluster by name, the same region by name, another CA.
    let other = cluster.dir.join("other-certs");
    let names: Vec<RegionName> = cluster.names().iter().map(|n| RegionName::new(n).unwrap()).collect();
    create(&other, &ClusterName::new(&ready.cluster).unwrap(), &names, &CertOptions::new(unix_now())).unwrap();
    let config = std::fs::read_to_string(&second.config).unwrap();
    let imposter = second.config.with_extension("imposter.toml");
    std::fs::write(&imposter, config.replace("../certs", "../other-certs")).unwrap();
    let log = cluster.dir.join("logs/imposter.log");
    let process = ByHand::start(&imposter, &log);
    let counted = |region: &Region| -> Result<f64, String> {
        let page = http_get(&region.http, "/metrics")?.1;
        metric(&page, "parhelion_refusals_total{kind=\"wrong_ca\"}").ok_or(page)
    };
    until("both sides count it", || {
        for region in [&primary, &second] {
            let n = counted(region)?;
            ensure(n >= 1.0, format!("{}: {n}", region.name))?;
        }
        Ok(())
    });
    let logged = tail(&log);
    assert!(logged.contains("wrong_ca") && logged.contains("ca.pem"), "{logged}");
    assert!(cluster.logs().contains("wrong_ca"));
    until("the secondary says why", || {
        let body = http_get(&second.http, "/status")?.1;
        let status: serde_json::Value = serde_json::from_str(&body).map_err(|e| e.to_string())?;
        ensure(status["state"] == "disconnected" && status["reason"].as_str().is_some_and(|r| r.contains("CA")), status)
    });
    until("the primary knows of no such region", || {
        let row = cluster.row(&primary.name, &second.name)?;
        ensure(row["state"] == "disconnected" && row["lag_known"] == false, row)
    });
    // Commands with such a certificate are told, too.
    let output = run(parhelion().args(["copy", "list", "--config"]).arg(&primary.config), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let spy = primary.config.with_extension("spy.toml");
    let config = std::fs::read_to_string(&primary.config).unwrap();
    std::fs::write(&spy, config.replace("../certs", "../other-certs")).unwrap();
    let output = run(parhelion().args(["copy", "stop", "a1", "--config"]).arg(&spy), "");
    assert!(output.status.code() == Some(4) && text(&output.stderr).contains("CA"), "{output:?}");

    // With its own certificate it goes on where it was.
    ready.must(&primary.writer, "insert into t values (1)");
    process.stop();
    cluster.start_region(&second.name);
    until("it follows again", || ready.sql(&second.reader, "select count(*) from t").and_then(|n| ensure(n == "1", n)));
    cluster.until_whole();
}

/// A small file system in memory; gone when dropped.
struct Mount(PathBuf);

impl Mount {
    /// `None` where that is not allowed.
    fn at(dir: &Path, mib: u32) -> Option<Mount> {
        std::fs::create_dir_all(dir).unwrap();
        let mut mount = std::process::Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(dir).output();
        match output {
            Ok(output) if output.status.success() => Some(Mount(dir.to_owned())),
            other => {
                eprintln!("skipped: a file system in memory cannot be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still be in it.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_writes_with_a_sentence_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("demo");
    let Some(_mount) = Mount::at(&dir.join("data/us-east"), 900) else { return };
    let mut cluster = Cluster::start_in(dir, Ports::reserve(2), &["--regions", "2", "--profile", "none"]);
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v blob)");

    // Somebody else takes all that is left.
    let filler = primary.data_dir.join("filler");
    let fill = || {
        let mut file = std::fs::File::options().create(true).append(true).open(&filler).unwrap();
        while file.write_all(&[0xAB; 1 << 16]).is_ok() {}
    };
    fill();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut acknowledged = 0i64;
    let refusal = runtime.block_on(async {
        let client = ready.connect(&primary.writer).await.unwrap();
        let insert = client.prepare("insert into t values ($1, randomblob(200000))").await.unwrap();
        loop {
            match client.execute(&insert, &[&(acknowledged + 1)]).await {
                Ok(_) => acknowledged += 1,
                Err(e) => break common::sql::said(&e),
            }
            assert!(acknowledged < 5000, "1 GB fits nowhere");
        }
    });
    assert!(refusal.contains("58030") && refusal.contains("writes are stopped"), "{refusal}");
    // Before the log was full: no copy has left its duty, and what was under way is durable.
    let refused = |cluster: &Cluster| {
        until("what is full is said", || match ready.sql(&primary.writer, "insert into t values (1000000, null)") {
            Err(e) if e.contains("have room on their disks") && e.contains("almost full") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        until("status says it of each copy", || {
            let status = cluster.row(&primary.name, &primary.name)?;
            let copies = status["copies"].as_array().ok_or("no copies")?;
            let up = copies.iter().all(|c| c["state"] == "up");
            // Each says it with what it acknowledges; with three of them writes stop.
            let low = copies.iter().filter(|c| c["low_on_room"] == true && c["reason"].as_str().is_some_and(|r| r.contains("full")));
            let low = up && low.count() >= 3;
            ensure(status["state"] == "fenced" && status["reason"].as_str().is_some_and(|r| r.contains("room")) && low, status)
        });
        let metrics = http_get(&primary.http, "/metrics").unwrap().1;
        assert!(metrics.lines().filter(|l| l.starts_with("parhelion_copy_low_on_room{") && l.ends_with(" 1")).count() >= 3, "{metrics}");
        assert_eq!(http_get(&primary.http, "/primary").unwrap().0, 503);
    };
    refused(&cluster);
    assert!(!cluster.logs().contains("is down"), "{}", cluster.logs());

    // Reads go on, everywhere.
    for address in [&primary.writer, &primary.reader, &second.reader] {
        let count: i64 = ready.must(address, "select count(*) from t where id <= 5000").parse().unwrap();
        assert!(count >= acknowledged - i64::from(*address == second.reader) * 100, "{address}: {count} of {acknowledged}");
    }

    // A process that is killed begins its generation out of what the copies kept back for it, and says the same.
    for _ in 0..2 {
        cluster.kill_region(&primary.name);
        // What its old log file had to spare is free for a moment.
        fill();
        cluster.start_region(&primary.name);
        refused(&cluster);
        let count: i64 = ready.must(&primary.reader, "select count(*) from t where id <= 5000").parse().unwrap();
        assert!(count >= acknowledged, "{count} of {acknowledged}");
    }

    // Room again: writes resume by themselves.
    std::fs::remove_file(&filler).unwrap();
    until("writes resume", || ready.sql(&primary.writer, "insert or replace into t values (2000000, null)").map(drop));
    let range = format!("select count(*) from t where id between 1 and {acknowledged} and length(v) = 200000");
    assert_eq!(ready.must(&primary.writer, &range), acknowledged.to_string());
    until("the secondary has them, too", || {
        let count = ready.sql(&second.reader, &range)?;
        ensure(count == acknowledged.to_string(), count)
    });
    cluster.until_whole();
}

#[test]
fn a_full_disk_in_a_secondary_is_nobody_elses_trouble() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("demo");
    let Some(_mount) = Mount::at(&dir.join("data/eu-west"), 900) else { return };
    let cluster = Cluster::start_in(dir, Ports::reserve(2), &["--regions", "2", "--profile", "none"]);
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key, v blob)");
    cluster.until_whole();
    let filler = second.data_dir.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0xAB; 1 << 16]).is_ok() {}
    drop(file);
    // More than the log that it has space for.
    ready.must(&primary.writer, &(1..=250).map(|i| format!("insert into t values ({i}, randomblob(200000));\n")).collect::<String>());
    until("it says what it lacks", || {
        let row = cluster.row(&primary.name, &second.name)?;
        let copies = row["copies"].to_string();
        ensure(["stalled", "catching_up", "disconnected"].iter().any(|s| row["state"] == *s) && copies.contains("full"), row)
    });
    assert_eq!(cluster.row(&primary.name, &primary.name).unwrap()["state"], "writable");
    ready.must(&second.reader, "select count(*) from t");
    std::fs::remove_file(&filler).unwrap();
    until("it catches up by itself", || {
        let count = ready.sql(&second.reader, "select count(*) from t where length(v) = 200000")?;
        ensure(count == "250", count)
    });
    cluster.until_whole();
}
