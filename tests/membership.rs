//! Members that come and go, with real processes: regions are taken out and serve nothing, come back, are invited and join; and so does a
//! witness, without which two regions cannot prove a failover.

mod common;

use common::two::{Two, WITNESS};
use common::{ByHand, Cluster, ensure, must, parhelion, run, text, until, verb};
use parhelion::base::RegionName;
use parhelion::io::clock;
use parhelion::ops::membership::wire::{Guest, Token};
use serde_json::Value;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Refused, with this in the sentence.
fn refused(config: &Path, args: &[&str], said: &str) {
    let (code, out, err) = verb(config, args);
    assert!(code == Some(4) && err.contains(said), "{args:?}: {code:?} {out}{err}");
}

fn names(status: &Value, key: &str) -> Vec<String> {
    status[key].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str().map(str::to_owned)).collect()
}

fn refusals(http: &str, kind: &str) -> f64 {
    let page = common::http_get(http, "/metrics").map(|(_, page)| page).unwrap_or_default();
    common::metric(&page, &format!("parhelion_refusals_total{{kind=\"{kind}\"}}")).unwrap_or(0.0)
}

#[test]
fn a_region_is_taken_out_serves_nothing_and_comes_back() {
    let mut cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (primary, second, third) = (cluster.primary().clone(), cluster.secondaries()[0].clone(), cluster.secondaries()[1].clone());
    ready.must(&primary.writer, "create table t (id integer primary key); insert into t values (1)");
    cluster.until_whole();

    // What makes no sense is refused with what would be right, and changes nothing.
    let to = |name: &str| format!("switch over first: parhelion switchover --to {name}");
    refused(&second.config, &["region", "remove", &primary.name], &to(&second.name));
    refused(&second.config, &["region", "remove", "mars"], "there is no region 'mars'");
    refused(&third.config, &["region", "add", &second.name, "--quic", "127.0.0.1:9"], "is a member already");
    assert_eq!(cluster.status_of(&primary.name).unwrap()["members_version"], 0);
    let dry = must(&second.config, &["region", "remove", &third.name, "--dry-run", "--json"]);
    assert!(dry["dry_run"] == true && dry["state"] == "done", "{dry}");
    assert_eq!(names(&cluster.status_of(&primary.name).unwrap(), "regions").len(), 3);

    // Taken out, by order of another region than the primary.
    let done = must(&second.config, &["region", "remove", &third.name, "--json"]);
    assert!(done["state"] == "done" && done["region"] == third.name.as_str(), "{done}");
    let stays = [primary.name.clone(), second.name.clone()];
    for asked in [&primary, &second] {
        until("it is no member", || {
            let status = cluster.status_of(&asked.name)?;
            ensure(names(&status, "regions") == stays && names(&status, "voters") == [primary.name.clone()], &status)?;
            let notes = status["notes"].to_string();
            ensure(notes.contains("is older than the membership") && notes.contains(&third.name), notes)
        });
    }
    let serves_nothing = || {
        let row = cluster.row(&third.name, &third.name)?;
        ensure(
            row["state"] == "fenced" && row["reason"].as_str().is_some_and(|r| r.contains("was taken out of the global cluster")),
            &row,
        )?;
        let read = ready.sql(&third.reader, "select count(*) from t");
        ensure(read.as_ref().is_err_and(|e| e.contains("was taken out")), read)?;
        let (code, body) = common::http_get(&third.http, "/replica")?;
        ensure(code == 503, body)
    };
    until("the region that was taken out says so and serves nothing", serves_nothing);
    ready.must(&primary.writer, "insert into t values (2)");
    until("the others go on", || ready.sql(&second.reader, "select count(*) from t").and_then(|n| ensure(n == "2", n)));

    // A restart, with the file that still names everybody, makes it none again: its certificate is good and its name is not.
    cluster.kill_region(&third.name);
    let before = refusals(&primary.http, "removed");
    cluster.start_region(&third.name);
    until("it is refused by name", || ensure(refusals(&primary.http, "removed") > before, "it was not"));
    let cluster = cluster;
    until("it still says so", || {
        let row = cluster.row(&third.name, &third.name)?;
        ensure(row["reason"].as_str().is_some_and(|r| r.contains("was taken out")), &row)
    });
    refused(&third.config, &["failover", "--to", &third.name, "--allow-data-loss"], "was taken out");

    // No more than the limit; those that are no processes get no vote.
    for n in 0..4 {
        must(&second.config, &["region", "add", &format!("far-{n}"), "--quic", "127.0.0.1:9", "--json"]);
    }
    refused(&second.config, &["region", "add", "far-4", "--quic", "127.0.0.1:9"], "has 5 secondaries already");
    for n in 0..4 {
        must(&second.config, &["region", "remove", &format!("far-{n}"), "--json"]);
    }
    assert_eq!(names(&cluster.status_of(&primary.name).unwrap(), "voters"), std::slice::from_ref(&primary.name));

    // Back again: its own process takes it up, and the voters follow.
    must(&primary.config, &["region", "add", &third.name, "--quic", &third.quic, "--json"]);
    until("it follows and is read again", || ready.sql(&third.reader, "select count(*) from t").and_then(|n| ensure(n == "2", n)));
    until("three vote again", || {
        let status = cluster.status_of(&second.name)?;
        ensure(names(&status, "voters").len() == 3 && names(&status, "regions").len() == 3, &status)
    });
    must(&second.config, &["switchover", "--to", &third.name, "--json"]);
    until("it writes", || ready.sql(&third.writer, "insert into t values (3)").map(drop));
}

/// It was away while a region came back and was made primary: that one is a stranger to it and is not let in, so it asks the others.
#[test]
fn a_region_that_was_away_follows_one_that_it_does_not_know() {
    let mut cluster = Cluster::start(4, "none");
    let ready = cluster.ready.clone();
    let (primary, away, comes) = (cluster.primary().clone(), cluster.secondaries()[1].clone(), cluster.secondaries()[2].clone());
    ready.must(&primary.writer, "create table t (id integer primary key)");
    cluster.until_whole();
    must(&primary.config, &["region", "remove", &comes.name, "--json"]);
    until("it knows that one is out", || {
        let status = cluster.status_of(&away.name)?;
        ensure(status["regions"].as_array().is_some_and(|r| r.len() == 3), &status)
    });
    cluster.kill_region(&away.name);
    must(&primary.config, &["region", "add", &comes.name, "--quic", &comes.quic, "--json"]);
    until("the one that is back follows", || ready.sql(&comes.reader, "select count(*) from t").map(drop));
    let switched = || {
        let (code, out, err) = verb(&primary.config, &["switchover", "--to", &comes.name, "--json"]);
        ensure(code == Some(0), format!("{code:?} {out}{err}"))
    };
    until("and is the primary", switched);
    ready.must(&comes.writer, "insert into t values (1)");
    cluster.start_region(&away.name);
    until("it finds out, and follows", || ready.sql(&away.reader, "select count(*) from t").and_then(|n| ensure(n == "1", n)));
}

/// A directory that stands for a new machine, and what `parhelion join` is told there.
struct Machine {
    dir: tempfile::TempDir,
    listen: String,
}

impl Machine {
    fn new(listen: &str) -> Machine {
        Machine { dir: tempfile::tempdir().unwrap(), listen: listen.to_owned() }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("regions/here.toml")
    }

    /// The token comes by standard input.
    fn join(&self, token: &str) -> (Option<i32>, String, String) {
        let mut command = parhelion();
        command.args(["join", "--token-file", "-", "--json", "--listen", &self.listen, "--config"]).arg(self.config());
        let output = run(&mut command, token);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn turned_away(&self, token: &str, said: &str) {
        let (code, out, err) = self.join(token);
        assert!(code == Some(4) && err.contains(said), "{said}: {code:?} {out}{err}");
        assert!(!self.config().exists(), "a region that was turned away has no file");
    }
}

fn mode(file: &Path) -> u32 {
    std::fs::metadata(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).permissions().mode() & 0o777
}

#[test]
fn a_region_is_invited_joins_once_and_follows() {
    let cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key); insert into t values (1), (2), (3)");
    cluster.until_whole();
    let port = cluster.ports.base + 200;
    let machine = Machine::new(&format!("127.0.0.1:{port}"));
    let reader = format!("127.0.0.1:{}", port + 2);
    let invite = |name: &str, more: &[&str]| {
        let said = must(&second.config, &[&["invite", "--region", name, "--json"], more].concat());
        assert!(said["address"].as_str().is_some_and(|a| a.starts_with("127.0.0.1:")), "nobody asked for another address: {said}");
        Token::parse(said["token"].as_str().unwrap()).unwrap()
    };
    let counted = |kind: &str| refusals(&second.http, kind);

    // By a secondary; and only for a name that is free.
    refused(&second.config, &["invite", "--region", &primary.name], "is a member already");
    refused(&second.config, &["invite", "--region", "ap-south", "--ttl", "30d"], "is good for up to");
    let token = invite("ap-south", &[]);
    let other = Machine::new(&machine.listen);
    let with = |change: &dyn Fn(&mut Token)| {
        let mut changed = token.clone();
        change(&mut changed);
        changed.reveal()
    };
    let name = |name: &str| RegionName::new(name).unwrap();
    let (code, _, err) = other.join("hello");
    assert!(code == Some(1) && err.contains("this is no invitation"), "{code:?} {err}");
    other.turned_away(
        &with(&|t| t.guest = Guest::Region { name: name("ap-north") }),
        "this invitation is for ap-south, and not for ap-north",
    );
    other.turned_away(&with(&|t| t.secret.0[5] ^= 1), "not known here");
    // Whoever stands in between has another CA: nothing is said to it.
    other.turned_away(&with(&|t| t.ca_sha256[0] ^= 1), "nothing was sent there");
    let mut noise = std::net::TcpStream::connect(&token.addr).unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    until("noise is counted", || ensure(counted("join_garbage") >= 1.0, "it is not"));
    assert_eq!((counted("join_wrong_name"), counted("join_unknown_token")), (1.0, 1.0));
    let short = invite("ap-late", &["--ttl", "200ms"]);
    until("it ends", || ensure(clock::unix_now().0 > short.expires_at.0 + 100_000, "not yet"));
    other.turned_away(&short.reveal(), "this invitation has ended");
    assert_eq!(counted("join_expired"), 1.0);
    // None of them made anybody a member.
    assert_eq!(names(&cluster.status_of(&primary.name).unwrap(), "regions").len(), 2);

    // It joins. Its key was made here; what is secret is readable by nobody else.
    let (code, out, err) = machine.join(&token.reveal());
    assert_eq!(code, Some(0), "{out}{err}");
    let said: Value = serde_json::from_str(&out).unwrap();
    assert!(said["region"] == "ap-south" && said["members"].as_array().map(Vec::len) == Some(2), "{said}");
    let certs = machine.config().with_file_name("certs");
    for secret in ["ap-south.key", "sql-password"] {
        assert_eq!(mode(&certs.join(secret)), 0o600, "{secret}");
    }
    assert!(!certs.join("ca.key").exists() && !cluster.dir.join("certs/ap-south.key").exists());
    // Once.
    other.turned_away(&token.reveal(), "this invitation was used");
    assert_eq!(counted("join_used"), 1.0);
    let secret = token.reveal();
    assert!(!cluster.logs().contains(&secret[secret.len() - 60..]), "the token stands in a log");

    // Its process runs: it is seeded, read, shown, and votes.
    let log = machine.dir.path().join("log");
    let process = ByHand::start(&machine.config(), &log);
    let follows = |rows: &str| {
        until("the new region shows the rows", || {
            ready
                .sql(&reader, "select count(*) from t")
                .and_then(|n| ensure(n == rows, n))
                .map_err(|e| format!("{e}\n{}", common::tail(&log)))
        });
    };
    follows("3");
    until("it is shown everywhere, and three vote", || {
        for region in [&primary, &second] {
            let status = cluster.status_of(&region.name)?;
            let row = common::row(&status, "ap-south")?;
            ensure(["streaming", "idle"].contains(&row["state"].as_str().unwrap_or_default()), &row)?;
            ensure(names(&status, "voters").len() == 3, &status["voters"])?;
        }
        Ok(())
    });
    // It can be all that the others are.
    must(&machine.config(), &["switchover", "--to", "ap-south", "--json"]);
    until("it writes", || ready.sql(&format!("127.0.0.1:{}", port + 1), "insert into t values (4)").map(drop));
    until("it goes back", || {
        // While its disks are slow it may be refused, with nothing changed.
        let (code, out, err) = verb(&machine.config(), &["switchover", "--to", &primary.name, "--json"]);
        ensure(code == Some(0), format!("{out}{err}"))
    });

    // Taken out, and back by another invitation, with the key and the file that are there.
    must(&primary.config, &["region", "remove", "ap-south", "--json"]);
    until("it serves nothing", || {
        let read = ready.sql(&reader, "select 1 from t");
        ensure(read.as_ref().is_err_and(|e| e.contains("was taken out")), read)
    });
    ready.must(&primary.writer, "insert into t values (5)");
    let key = std::fs::read(certs.join("ap-south.key")).unwrap();
    let (code, out, err) = machine.join(&invite("ap-south", &[]).reveal());
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(std::fs::read(certs.join("ap-south.key")).unwrap(), key);
    follows("5");
    process.stop();
}

/// What `asked` says of the votes: their names, once the primary has heard all of them.
fn voters_heard(asked: &Path) -> Result<Vec<String>, String> {
    let status = common::json_of(parhelion().args(["status", "--json", "--config"]).arg(asked))?;
    let heard = status["voters"].as_array().is_some_and(|v| !v.is_empty() && v.iter().all(|v| v["heard_by_primary"] == true));
    ensure(heard, &status).map(|()| names(&status, "voters"))
}

fn until_these_vote(asked: &Path, expected: &[&str]) {
    let mut expected: Vec<&str> = expected.to_vec();
    expected.sort_unstable();
    until(&format!("{expected:?} vote"), || voters_heard(asked).and_then(|v| ensure(v == expected, v)));
}

/// Of a witness: what it says of itself.
fn witness_says(config: &Path) -> Result<Value, String> {
    common::json_of(parhelion().args(["status", "--json", "--config"]).arg(config))
}

/// The invited witness makes its key on its machine, and gets everything but the password of SQL.
fn join_witness(asked: &Path, name: &str, more: &[&str], machine: &Machine) {
    let said = must(asked, &[&["invite", "--witness", name, "--json"], more].concat());
    assert_eq!(said["witness"], name, "{said}");
    let (code, out, err) = machine.join(said["token"].as_str().unwrap());
    assert_eq!(code, Some(0), "{out}{err}");
    let joined: Value = serde_json::from_str(&out).unwrap();
    assert!(joined["witness"] == name && joined["members"].as_array().map(Vec::len) == Some(2), "{joined}");
    let certs = machine.config().with_file_name("certs");
    assert_eq!(mode(&certs.join(format!("{name}.witness.key"))), 0o600);
    assert!(!certs.join("ca.key").exists() && !certs.join("sql-password").exists());
}

#[test]
fn two_regions_get_a_witness_fail_over_by_a_majority_and_do_without_it_again() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (first, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&first.writer, "create table t (id integer primary key); insert into t values (1)");
    cluster.until_whole();
    until_these_vote(&second.config, &[&first.name]);
    let port = cluster.ports.base + 200;
    let (quic, http) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", port + 3));

    // What makes no sense is refused, and a dry run changes nothing.
    refused(&second.config, &["invite", "--witness", &first.name], &format!("the region {} has that name", first.name));
    refused(&second.config, &["witness", "remove", "w1"], "there is no witness 'w1'");
    let dry = must(&second.config, &["witness", "add", "w1", "--quic", &quic, "--dry-run", "--json"]);
    assert!(dry["dry_run"] == true && dry["state"] == "done" && dry["witness"] == "w1", "{dry}");
    let status = cluster.status_of(&second.name).unwrap();
    assert!(status["members_version"] == 0 && status["witness"].is_null(), "{status}");

    // Invited by a secondary, it joins; it has a vote when its process is heard, and not before.
    let machine = Machine::new(&quic);
    join_witness(&second.config, "w1", &[], &machine);
    let status = cluster.status_of(&first.name).unwrap();
    assert!(status["witness"]["name"] == "w1" && status["witness"]["votes"] == false && status["witness"]["answered"] == false, "{status}");
    assert_eq!(names(&status, "voters"), std::slice::from_ref(&first.name));
    let log = machine.dir.path().join("log");
    let witness = ByHand::start_witness(&machine.config(), &log);
    let all = [first.name.as_str(), &second.name, "w1"];
    for asked in [&first, &second] {
        until_these_vote(&asked.config, &all);
    }
    until("it says that it votes", || {
        let says = witness_says(&machine.config())?;
        ensure(says["role"] == "witness" && says["votes"] == true && says["primary"] == first.name.as_str(), &says)
    });
    let status = cluster.status_of(&second.name).unwrap();
    assert!(status["witness"]["votes"] == true && status["witness"]["answered"] == true && status["unproven"] == false, "{status}");
    assert!(status["notes"].to_string().contains("put the witness w1 into [witness]"), "{status}");
    let page = common::http_get(&first.http, "/metrics").unwrap().1;
    assert_eq!(common::metric(&page, "parhelion_witness_votes{member=\"w1\"}"), Some(1.0));
    let events = cluster.events(&second.name).unwrap();
    assert!(events.iter().any(|e| e["kind"] == "witness_added"), "{events:?}");
    let audit = must(&first.config, &["audit", "--json"]);
    assert!(audit.to_string().contains(&format!("adding the witness w1 at {quic}")), "{audit}");
    let again = must(&first.config, &["witness", "add", "w1", "--quic", &quic, "--json"]);
    assert_eq!(again["state"], "done", "it is done already: {again}");

    // The primary dies. Two of three prove it, and nobody's word is asked for.
    cluster.kill_region(&first.name);
    let done = must(&second.config, &["failover", "--to", &second.name, "--allow-data-loss", "--json"]);
    assert!(done["state"] == "done" && done["unproven"] == false, "{done}");
    ready.must(&second.writer, "insert into t values (2)");
    cluster.start_region(&first.name);
    until("the old primary follows", || ready.sql(&first.reader, "select count(*) from t").and_then(|n| ensure(n == "2", n)));
    until_these_vote(&first.config, &all);

    // And out again: it says so, and what to do. Its name is not used twice.
    let out = must(&first.config, &["witness", "remove", "w1", "--json"]);
    assert!(out["state"] == "done" && out["witness"] == "w1", "{out}");
    assert_eq!(must(&first.config, &["witness", "remove", "w1", "--json"])["state"], "done");
    until_these_vote(&first.config, &[&second.name]);
    until("it says that it is out", || {
        let says = witness_says(&machine.config())?;
        let why = says["reason"].as_str().unwrap_or_default();
        ensure(says["role"] == "removed" && says["votes"] == false && why.contains("parhelion invite --witness NAME"), &says)?;
        let (code, body) = common::http_get(&http, "/healthz")?;
        ensure(code == 503 && body.contains("was taken out"), body)
    });
    let (_, people, _) = verb(&machine.config(), &["status"]);
    assert!(people.contains("w1 was a witness and is none any more"), "{people}");
    refused(&second.config, &["witness", "add", "w1", "--quic", &quic], "a name that was never used");
    ready.must(&second.writer, "insert into t values (3)");
    let status = cluster.status_of(&first.name).unwrap();
    assert!(status["witness"].is_null() && status["unproven"] == true, "{status}");
    witness.stop();
}

#[test]
fn a_witness_that_burned_down_is_replaced_by_another() {
    let mut two = Two::start_with_table("");
    let (us, eu) = (two.ready.regions[0].clone(), two.ready.regions[1].clone());
    two.kill_witness();
    let port = two.spare_port();
    let machine = Machine::new(&format!("127.0.0.1:{port}"));
    let quic = machine.listen.clone();
    refused(&eu.config, &["witness", "add", "w2", "--quic", &quic], "take it out first: parhelion witness remove witness");
    refused(&eu.config, &["invite", "--witness", "w2"], "take it out first: parhelion witness remove witness");
    let done = must(&eu.config, &["witness", "remove", WITNESS, "--json"]);
    assert_eq!(done["state"], "done", "the two regions are a majority: {done}");
    until_these_vote(&eu.config, &[&us.name]);
    // O6: whoever puts it beside the primary is warned, then and in status (when a region has read its file anew).
    for region in [&us, &eu] {
        let text = std::fs::read_to_string(&region.config).unwrap();
        let zoned = text.replace("[[member]]\nregion = \"us-east\"\n", "[[member]]\nregion = \"us-east\"\nzone = \"a\"\n");
        assert_ne!(zoned, text);
        std::fs::write(&region.config, zoned).unwrap();
    }
    let beside = "the witness w2 is in the zone of us-east (a): what takes that zone takes two votes";
    let (code, _, err) = verb(&us.config, &["witness", "add", "w2", "--quic", &quic, "--zone", "a", "--dry-run"]);
    assert!(code == Some(0) && err.contains(beside), "{err}");
    join_witness(&us.config, "w2", &["--zone", "a"], &machine);
    let log = machine.dir.path().join("log");
    let process = ByHand::start_witness(&machine.config(), &log);
    let all = [us.name.as_str(), &eu.name, "w2"];
    until_these_vote(&eu.config, &all);
    let status = two.status(1).unwrap();
    assert!(status["notes"].to_string().contains("put the witness w2 into [witness]"), "{status}");

    // The old one is found again, with all that it had promised. It is none.
    two.start_witness();
    until("it says that it is out", || {
        let says = witness_says(&two.witness_file)?;
        ensure(
            says["role"] == "removed" && says["votes"] == false && says["reason"].as_str().is_some_and(|r| r.contains("taken out")),
            &says,
        )
    });
    // A restart of the region that takes over, with its old file, changes nothing of that.
    two.stop_region(1);
    two.start_region(1);
    until_these_vote(&eu.config, &all);
    // What the primary heard may be from before: it has to have heard of the primary itself.
    until("it follows again", || {
        let row = common::row(&two.status(1)?, &eu.name)?;
        ensure(["streaming", "idle"].contains(&row["state"].as_str().unwrap_or_default()), row)
    });
    let status = two.status(1).unwrap();
    assert!(status["primary"] == us.name.as_str() && status["notes"].to_string().contains(beside), "{status}");
    two.kill_region(0);
    let done = must(&eu.config, &["failover", "--to", &eu.name, "--allow-data-loss", "--json"]);
    assert!(done["state"] == "done" && done["unproven"] == false, "{done}");
    until("it writes", || two.ready.sql(&eu.writer, "insert into t values (1)").map(drop));
    two.start_region(0);
    until_these_vote(&us.config, &all);
    process.stop();
}

#[test]
fn a_region_without_the_cas_key_names_one_that_has_it() {
    let mut cluster = Cluster::start(2, "none");
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    cluster.until_whole();
    // As on machines of their own: each has its own certificate, and one has the key that makes new ones.
    let certs = cluster.dir.join("certs-of-second");
    std::fs::create_dir(&certs).unwrap();
    for file in ["ca.pem", "sql-password", &format!("{}.pem", second.name), &format!("{}.key", second.name)] {
        std::fs::copy(cluster.dir.join("certs").join(file), certs.join(file)).unwrap();
    }
    let before = std::fs::read_to_string(&second.config).unwrap();
    let changed = before.replace("dir = \"../certs\"", "dir = \"../certs-of-second\"");
    assert_ne!(changed, before, "{before}");
    std::fs::write(&second.config, changed).unwrap();
    cluster.kill_region(&second.name);
    cluster.start_region(&second.name);
    until("it answers, and says who can", || {
        let (code, out, err) = verb(&second.config, &["invite", "--region", "ap-south"]);
        let said = format!("{} can, with", primary.name);
        ensure(code == Some(4) && err.contains(&said) && err.contains("ca.key"), format!("{code:?} {out}{err}"))
    });
}

#[test]
fn a_secondary_is_detached_and_two_histories_go_on() {
    let cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    ready.must(&primary.writer, "create table t (id integer primary key); insert into t values (1)");
    let before = cluster.until_whole();

    let (code, _, err) = verb(&second.config, &["detach", &second.name, "--confirm", "mars"]);
    assert!(code == Some(2) && err.contains("nothing was done"), "{code:?} {err}");
    let (code, _, err) = verb(&primary.config, &["detach", &second.name, "--confirm", &second.name]);
    assert!(code == Some(2) && err.contains("this is asked for at"), "{code:?} {err}");
    let to = format!("switch over first: parhelion switchover --to {}", second.name);
    refused(&primary.config, &["detach", &primary.name, "--confirm", &primary.name], &to);
    assert_eq!(cluster.status_of(&primary.name).unwrap()["epoch"], before["epoch"]);

    let done = must(&second.config, &["detach", &second.name, "--confirm", &second.name, "--json"]);
    assert!(done["state"] == "done" && done["lineage"].is_string(), "{done}");
    until("it writes", || ready.sql(&second.writer, "insert into t values (2), (3)").map(drop));
    until("and so does the primary", || ready.sql(&primary.writer, "insert into t values (4)").map(drop));
    for (region, rows) in [(&second, "3"), (&primary, "2")] {
        until("each shows its own", || ready.sql(&region.reader, "select count(*) from t").and_then(|n| ensure(n == rows, n)));
        until("each is alone", || {
            let status = cluster.status_of(&region.name)?;
            let alone = names(&status, "regions") == [region.name.clone()] && names(&status, "voters") == [region.name.clone()];
            ensure(alone && status["primary"] == region.name.as_str(), &status)
        });
    }
    // Neither has anything to do with the other any more.
    for region in [&primary, &second] {
        let page = common::http_get(&region.http, "/metrics").unwrap().1;
        assert_eq!(common::metric(&page, "parhelion_lineage_conflict"), Some(0.0));
    }
}

#[test]
fn a_forced_lineage_meets_the_old_one_and_nobody_writes_before_one_is_retired() {
    let mut cluster = Cluster::start(3, "none");
    let ready = cluster.ready.clone();
    let (old, other, last) = (cluster.primary().clone(), cluster.secondaries()[0].clone(), cluster.secondaries()[1].clone());
    ready.must(&old.writer, "create table t (id integer primary key); insert into t values (1)");
    cluster.until_whole();
    let lineage_of = |region: &common::Region| {
        let (code, body) = common::http_get(&region.http, "/status")?;
        ensure(code == 200, &body)?;
        let report: Value = serde_json::from_str(&body).map_err(|e| e.to_string())?;
        report["lineage"].as_str().map(str::to_owned).ok_or(body)
    };
    let before = lineage_of(&old).unwrap();
    let confirmed = format!("--i-confirm-old-primary-is-stopped={}", old.name);
    let force = ["force-new-lineage", "--survivors", &last.name, &confirmed, "--json"];

    // Not while it answers, nor by the wrong name.
    refused(&last.config, &force, "it is not stopped");
    let wrong = format!("--i-confirm-old-primary-is-stopped={}", other.name);
    refused(
        &last.config,
        &["force-new-lineage", "--survivors", &last.name, &wrong],
        &format!("the last primary that is known here is {}", old.name),
    );

    for gone in [&old, &other] {
        cluster.kill_region(&gone.name);
    }
    let done = until("the lease is over and the lineage forced", || {
        let (code, out, err) = verb(&last.config, &force);
        ensure(code == Some(0), format!("{code:?} {out}{err}")).map(|()| serde_json::from_str::<Value>(&out).unwrap())
    });
    let forced = done["lineage"].as_str().unwrap().to_owned();
    assert_ne!(forced, before);
    until("it writes", || ready.sql(&last.writer, "insert into t values (2)").map(drop));

    // The old primary was not stopped for good.
    let conflict = |region: &common::Region| {
        let page = common::http_get(&region.http, "/metrics")?.1;
        let metrics = ["parhelion_lineage_conflict", "parhelion_writers_seen"].map(|m| common::metric(&page, m));
        ensure(metrics[0] == Some(1.0) && metrics[1] >= Some(1.0), metrics)?;
        let (_, people, err) = verb(&region.config, &["status"]);
        ensure(people.contains("EMERGENCY") && people.contains("parhelion retire"), format!("{people}{err}"))
    };
    cluster.start_region(&old.name);
    until("both say so", || conflict(&old).and_then(|()| conflict(&last)));
    // With a majority of the old voters there are two that could write, and none does.
    cluster.start_region(&other.name);
    until("all say so", || [&old, &other, &last].into_iter().try_for_each(conflict));
    for region in [&old, &last] {
        let write = ready.sql(&region.instance(), "insert into t values (9)");
        assert!(write.is_err(), "{} writes: {write:?}", region.name);
    }

    // One is retired, region by region: it keeps what it has, and comes back as a secondary of the other.
    refused(&old.config, &["retire", "--lineage", &forced, "--confirm", &old.name], "and not of");
    for region in [&old, &other] {
        must(&region.config, &["retire", "--lineage", &before, "--confirm", &region.name, "--json"]);
        cluster.until_ended(&region.name);
        cluster.start_region(&region.name);
    }
    for region in [&old, &other] {
        until("it follows the other lineage", || {
            let rows = ready.sql(&region.reader, "select count(*) from t")?;
            ensure(rows == "2" && lineage_of(region)? == forced, rows)
        });
        assert!(region.data_dir.join("retired").join(&before).join("copies/a1").is_dir());
    }
    until("it writes again", || ready.sql(&last.writer, "insert into t values (3)").map(drop));
    until("the conflict is over everywhere, and three vote", || {
        for region in [&old, &other, &last] {
            let page = common::http_get(&region.http, "/metrics")?.1;
            ensure(common::metric(&page, "parhelion_lineage_conflict") == Some(0.0), "a conflict")?;
        }
        let status = cluster.status_of(&old.name)?;
        ensure(
            names(&status, "voters").len() == 3
                && status["notes"].as_array().is_some_and(|n| !n.iter().any(|n| n.to_string().contains("EMERGENCY"))),
            &status,
        )
    });
}
