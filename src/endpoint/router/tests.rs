//! Two regions' engines, the role going to and fro between them, and clients (tokio-postgres) of the second region's writer port.

use super::*;
use crate::base::LogEnd;
use crate::endpoint::pg::tests::driver::{Raw, message};
use crate::endpoint::pg::tests::{Options, Server, code};
use crate::head::embedded::EngineSettings;
use crate::head::embedded::tests::{Region, settings, until};
use futures::{SinkExt as _, TryStreamExt as _};
use std::sync::atomic::AtomicUsize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_postgres::SimpleQueryMessage;

const LONG: Duration = Duration::from_secs(60);

fn name(region: &str) -> RegionName {
    RegionName::new(region).unwrap()
}

/// The ways out of one region: to the engines of the others, over pipes that the test can cut or silence.
struct Pipes {
    engines: Mutex<Vec<(RegionName, Arc<Engine>)>>,
    open: Mutex<Vec<AbortHandle>>,
    requests: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

/// Counts what is written: the client's end writes each request at once.
struct Counting<W> {
    inner: W,
    requests: Arc<AtomicUsize>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Counting<W> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        let written = std::pin::Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.requests.fetch_add(usize::from(written.is_ready()), Ordering::SeqCst);
        written
    }

    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Ways for Pipes {
    async fn open(&self, region: &RegionName) -> Result<Way, String> {
        let engine = self.engines.lock().iter().find(|(r, _)| r == region).map(|(_, e)| e.clone()).ok_or("there is no link")?;
        let (near, far) = tokio::io::duplex(1 << 20);
        let (recv, send) = tokio::io::split(far);
        let silent = self.silent.clone();
        let serving = if silent.load(Ordering::SeqCst) {
            // A process that is gone, and nobody knows: what is sent is taken, and nothing comes back.
            tokio::spawn(async move { hold(recv, send).await })
        } else {
            tokio::spawn(serve(engine, recv, send))
        };
        self.open.lock().push(serving.abort_handle());
        let (recv, send) = tokio::io::split(near);
        let send = Counting { inner: send, requests: self.requests.clone() };
        Ok(Way { recv: Box::new(recv), send: Box::new(send), hears: Box::new(move || !silent.load(Ordering::SeqCst)) })
    }

    fn reaches(&self, region: &RegionName) -> bool {
        self.engines.lock().iter().any(|(r, _)| r == region)
    }
}

async fn hold(mut recv: impl AsyncRead + Unpin, send: impl AsyncWrite) {
    let mut sink = tokio::io::sink();
    let _ = tokio::io::copy(&mut recv, &mut sink).await;
    std::future::pending::<()>().await;
    drop(send);
}

/// us-east leads at first; clients are eu-west's.
struct Pair {
    east: Region,
    west: Region,
    epoch: u64,
    pipes: Arc<Pipes>,
    who: watch::Sender<WhoWrites>,
    server: Server,
}

impl Pair {
    async fn start(wait_max: Duration) -> Pair {
        let region = |name: &str| Region::empty(EngineSettings { region: name.to_string(), idle_in_transaction_max: LONG, ..settings() });
        let (east, west) = (region("us-east"), region("eu-west"));
        west.engine.reset(LogEnd::EMPTY);
        east.open_as(1, 1);
        let pipes = Arc::new(Pipes {
            engines: Mutex::new(vec![(name("us-east"), east.engine.clone())]),
            open: Mutex::default(),
            requests: Arc::default(),
            silent: Arc::default(),
        });
        let who = watch::Sender::new(WhoWrites { here: false, primary: Some(name("us-east")), links: 0 });
        let service = RoutedService::new(west.engine.clone(), name("eu-west"), who.subscribe(), pipes.clone(), wait_max);
        let server = Server::with(Options::default(), Arc::new(service)).await;
        Pair { east, west, epoch: 1, pipes, who, server }
    }

    async fn with_table() -> (Pair, tokio_postgres::Client) {
        let pair = Pair::start(LONG).await;
        let c = pair.server.connect().await;
        c.batch_execute("create table t (id integer primary key, n integer)").await.unwrap();
        (pair, c)
    }

    fn ship(&self) {
        let (from, to) = if self.who.borrow().here { (&self.west, &self.east) } else { (&self.east, &self.west) };
        let log = from.volume.log();
        let have = to.volume.log().len();
        to.volume.settle(&log[have..]);
    }

    /// Nobody writes, and the region says so.
    fn close(&mut self) {
        let here = self.who.borrow().here;
        let lead = if here { &self.west } else { &self.east };
        lead.engine.close_writer("handed over".to_string());
        self.ship();
        self.who.send_modify(|who| who.primary = here.then(|| name("eu-west")));
        self.who.send_modify(|who| who.here = false);
        self.epoch += 1;
    }

    fn open_west(&mut self) {
        self.west.open_as(self.epoch, self.epoch);
        self.who.send_modify(|who| (who.here, who.primary) = (true, Some(name("eu-west"))));
    }

    fn open_east(&mut self) {
        self.east.open_as(self.epoch, self.epoch);
        self.who.send_modify(|who| (who.here, who.primary) = (false, Some(name("us-east"))));
    }

    fn cut(&self) {
        for serving in self.pipes.open.lock().drain(..) {
            serving.abort();
        }
    }

    /// Requests sent to the other region since the last call.
    fn requests(&self) -> usize {
        self.pipes.requests.swap(0, Ordering::SeqCst)
    }
}

async fn one(c: &tokio_postgres::Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    let rows = c.simple_query(sql).await?;
    Ok(rows
        .iter()
        .filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        })
        .collect::<Vec<_>>()
        .join(","))
}

async fn fails(c: &tokio_postgres::Client, sql: &str) -> String {
    code(&c.simple_query(sql).await.map(|_| ()).expect_err(sql))
}

async fn finish<T>(task: JoinHandle<T>) -> T {
    task.await.unwrap()
}

#[tokio::test]
async fn idle_sessions_keep_all_they_have_while_the_role_goes_there_and_back() {
    let (mut pair, c) = Pair::with_table().await;
    c.batch_execute("set application_name = 'kept'").await.unwrap();
    let insert = c.prepare("insert into t (id, n) values ($1, $2)").await.unwrap();
    let select = c.prepare("select n from t where id = $1").await.unwrap();
    for turn in 0..6_i64 {
        assert_eq!(c.execute(&insert, &[&turn, &(turn * 10)]).await.unwrap(), 1);
        for id in 0..=turn {
            assert_eq!(c.query_one(&select, &[&id]).await.unwrap().get::<_, i64>(0), id * 10, "turn {turn}");
        }
        pair.close();
        if turn % 2 == 0 {
            pair.open_west()
        } else {
            pair.open_east()
        }
        assert_eq!(one(&c, "show application_name").await.unwrap(), "kept");
        assert_eq!(one(&c, "select count(*) from t").await.unwrap(), (turn + 1).to_string());
        assert_eq!(fails(&c, "insert into t values (0, 0)").await, "23505");
    }
}

#[tokio::test]
async fn a_statement_costs_one_way_there_and_back() {
    let (pair, c) = Pair::with_table().await;
    pair.requests();
    c.simple_query("insert into t values (1, 1)").await.unwrap();
    assert_eq!(pair.requests(), 1, "a simple statement");
    assert_eq!(one(&c, "select n from t").await.unwrap(), "1");
    assert_eq!(pair.requests(), 1, "a simple question");
    // The schema has come here: what a statement is is known without asking.
    pair.ship();
    let insert = c.prepare("insert into t (id, n) values ($1, $2) returning n, id").await.unwrap();
    assert_eq!(pair.requests(), 0, "preparing");
    assert_eq!(c.query(&insert, &[&2_i64, &2_i64]).await.unwrap().len(), 1);
    assert_eq!(pair.requests(), 1, "running what was prepared");
    c.batch_execute("begin").await.unwrap();
    assert_eq!(pair.requests(), 0, "a transaction begins with its first statement");
    c.execute(&insert, &[&3_i64, &3_i64]).await.unwrap();
    c.query("select n + 1 from t where id = $1", &[&3_i64]).await.unwrap();
    assert_eq!(pair.requests(), 2, "statements of a transaction");
    c.batch_execute("commit").await.unwrap();
    assert_eq!(pair.requests(), 1, "its commit");

    // A change of the schema is seen at once by who made it and by others of this port, before it has come here.
    c.batch_execute("alter table t add column later text").await.unwrap();
    let other = pair.server.connect().await;
    for c in [&c, &other] {
        assert_eq!(c.prepare("select * from t").await.unwrap().columns().len(), 3);
        c.execute("update t set later = $1", &[&"x"]).await.unwrap();
    }
    c.batch_execute("begin; create table u (a text)").await.unwrap();
    c.execute("insert into u (a) values ($1)", &[&"in the same transaction"]).await.unwrap();
    c.batch_execute("rollback").await.unwrap();
    assert_eq!(fails(&c, "select * from u").await, "42P01");
    pair.ship();
    pair.requests();
    assert_eq!(c.prepare("select later, t.* from t").await.unwrap().columns().len(), 4);
    assert_eq!(pair.requests(), 0, "and when it has come, it is known here again");
}

/// As drivers send batches: many at once, one answer to all.
#[tokio::test]
async fn a_pipeline_goes_ahead_and_each_statement_gets_its_own_answer() {
    let (pair, c) = Pair::with_table().await;
    pair.ship();
    // In the simple protocol: the first with its transaction, the others together, the commit.
    let script: String = (1..=50).map(|id| format!("insert into t values ({id}, {id});")).collect();
    let counts = |messages: Vec<SimpleQueryMessage>| -> Vec<u64> {
        messages.iter().filter_map(|m| if let SimpleQueryMessage::CommandComplete(n) = m { Some(*n) } else { None }).collect()
    };
    let said = c.simple_query(&format!("{script} update t set n = 0 where id > 40; select count(*) from t")).await.unwrap();
    let said = counts(said);
    assert_eq!((said.len(), said[..50].iter().sum::<u64>(), said[50]), (52, 50, 10));
    // The error is that of the statement that failed, and nothing is left.
    let error =
        c.simple_query("delete from t; insert into t values (1, 1); insert into t values (1, 2); insert into t values (2, 1); select 1");
    let error = error.await.map(|_| ()).unwrap_err();
    assert_eq!(code(&error), "23505");
    assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "50");
    c.batch_execute("begin; savepoint a; insert into t values (60, 1)").await.unwrap();
    assert_eq!(fails(&c, "insert into t values (61, 1); insert into t values (61, 1); insert into t values (62, 1)").await, "23505");
    assert_eq!(fails(&c, "select 1").await, "25P02");
    c.batch_execute("rollback to a; insert into t values (63, 1); commit").await.unwrap();
    assert_eq!(one(&c, "select max(id) from t").await.unwrap(), "63");

    // In the extended protocol, by hand: Parse, then Bind and Execute again and again, one Sync.
    let mut raw = Raw::login(&pair.server).await;
    let batch = |values: &[&str]| {
        let mut bytes = message(b'P', &[b"s\0", b"insert into t (id, n) values ($1, 5)\0", b"\0\0"]);
        for value in values {
            let length = u32::try_from(value.len()).unwrap().to_be_bytes();
            bytes.extend(message(b'B', &[b"\0s\0", b"\0\0", b"\0\x01", &length, value.as_bytes(), b"\0\0"]));
            bytes.extend(message(b'E', &[b"\0", b"\0\0\0\0"]));
        }
        bytes.extend(message(b'C', &[b"Ss\0"]));
        bytes.extend(message(b'S', &[]));
        bytes
    };
    pair.requests();
    let many: Vec<String> = (100..300).map(|id| id.to_string()).collect();
    raw.send(&batch(&many.iter().map(String::as_str).collect::<Vec<_>>())).await;
    let (kinds, _) = raw.until_ready().await;
    assert_eq!(kinds, format!("1{}3Z", "2C".repeat(200)), "each Bind and each Execute in its place");
    assert_eq!(pair.requests(), 201);
    raw.send(&batch(&["500", "501", "100", "502", "503"])).await;
    assert_eq!(raw.until_ready().await.0, "12C2C2EZ", "nothing behind the error");
    raw.send(&batch(&["600", "not a number", "601"])).await;
    assert_eq!(raw.until_ready().await.0, "EZ", "the statement stayed, as the Close was skipped");
    assert_eq!(one(&c, "select count(*) from t where id >= 100").await.unwrap(), "200");
}

#[tokio::test]
async fn a_transaction_that_is_open_is_lost_loudly_and_the_session_goes_on() {
    for here in [false, true] {
        let (mut pair, c) = Pair::with_table().await;
        if here {
            pair.close();
            pair.open_west();
        }
        c.batch_execute("begin; insert into t values (1, 1); savepoint a").await.unwrap();
        let other = pair.server.connect().await;
        other.batch_execute("begin").await.unwrap();
        let reading = pair.server.connect().await;
        reading.batch_execute("begin read only; select * from t").await.unwrap();
        pair.close();
        if here {
            pair.open_east()
        } else {
            pair.open_west()
        }
        assert_eq!(fails(&c, "insert into t values (2, 2)").await, "40001");
        assert_eq!(fails(&c, "select 1").await, "25P02");
        assert!(matches!(fails(&c, "rollback to a").await.as_str(), "25P02" | "40001"));
        assert_eq!(one(&c, "commit; select count(*) from t").await.unwrap(), "0");
        assert_eq!(fails(&reading, "select * from t").await, "40001");
        // Nothing of this one was anywhere yet.
        other.batch_execute("insert into t values (3, 3); commit").await.unwrap();
        assert_eq!(one(&c, "select id from t").await.unwrap(), "3");

        // The way to it breaks, and that is known before the next statement.
        if !here {
            pair.close();
            pair.open_east();
            for sql in ["insert into t values (5, 5)", "commit"] {
                c.batch_execute("begin; insert into t values (4, 4)").await.unwrap();
                let open = pair.pipes.open.lock().drain(..).collect::<Vec<_>>();
                open.iter().for_each(AbortHandle::abort);
                until(|| open.iter().all(AbortHandle::is_finished)).await;
                assert_eq!(fails(&c, sql).await, "40001", "{sql}");
                c.batch_execute("rollback").await.unwrap();
            }
            pair.close();
            pair.open_west();
        }

        // At the commit itself.
        c.batch_execute("begin; insert into t values (4, 4)").await.unwrap();
        pair.close();
        if here {
            pair.open_west()
        } else {
            pair.open_east()
        }
        assert_eq!(fails(&c, "commit").await, "40001");
        assert_eq!(one(&c, "select id from t").await.unwrap(), "3");
    }
}

#[tokio::test]
async fn a_commit_under_way_has_an_unknown_outcome_and_is_never_run_twice() {
    for way in ["the writer goes", "the link goes"] {
        for sql in
            ["insert into t (n) values (7)", "begin; insert into t (n) values (7); commit", "insert into t (n) values (7) returning id"]
        {
            let (mut pair, c) = Pair::with_table().await;
            pair.east.volume.hold();
            let task = tokio::spawn(async move {
                let failed = fails(&c, sql).await;
                (failed, c)
            });
            until(|| pair.east.engine.stats().commits_waiting == 1).await;
            if way == "the link goes" {
                pair.cut();
            } else {
                pair.east.engine.close_writer("fenced".to_string());
            }
            let (failed, c) = finish(task).await;
            assert_eq!(failed, "08007", "{sql}, {way}");
            pair.east.volume.go_on();
            until(|| pair.east.volume.pending() == 0).await;
            pair.close();
            pair.open_west();
            assert_eq!(one(&c, "rollback; select count(*) from t where n = 7").await.unwrap(), "1", "{sql}, {way}");
        }
    }
}

#[tokio::test]
async fn a_statement_waits_for_a_writer_up_to_its_bound() {
    let (mut pair, c) = Pair::with_table().await;
    pair.close();
    let waiting = tokio::spawn(async move {
        c.execute("insert into t (id, n) values (1, 1)", &[]).await.unwrap();
        c
    });
    // It comes in, finds nobody, and stays.
    until(|| pair.who.receiver_count() > 1).await;
    pair.open_west();
    let c = finish(waiting).await;
    assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "1");

    // A drain that ends with the role: what waited in the old writer's queue is run by the new one.
    let (tell, told) = tokio::sync::oneshot::channel();
    pair.west.engine.drain(clock::now() + LONG, move |drained| {
        let _ = tell.send(drained);
    });
    told.await.unwrap();
    let waiting = tokio::spawn(async move {
        let inserted = c.simple_query("insert into t values (2, 2)").await.map(|_| ());
        (inserted, c)
    });
    until(|| pair.west.engine.stats().writer_queue == 1).await;
    pair.close();
    pair.open_east();
    let (inserted, c) = finish(waiting).await;
    inserted.unwrap();
    assert_eq!(one(&c, "select id from t").await.unwrap(), "1,2");

    // Cancelled while it waits.
    pair.close();
    let cancel = c.cancel_token();
    let waiting = tokio::spawn(async move {
        let failed = fails(&c, "insert into t values (3, 3)").await;
        (failed, c)
    });
    until(|| pair.who.receiver_count() > 1).await;
    cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let (failed, c) = finish(waiting).await;
    assert_eq!(failed, "57014");
    c.batch_execute("set statement_timeout = 50").await.unwrap();
    assert_eq!(fails(&c, "select 1").await, "57014");

    // Nobody comes.
    let pair = Pair::start(Duration::from_millis(60)).await;
    let c = pair.server.connect().await;
    pair.who.send_modify(|who| who.primary = None);
    let error = c.simple_query("select 1").await.map(|_| ()).unwrap_err();
    assert_eq!(code(&error), "57P03");
    let message = error.as_db_error().unwrap().message();
    assert!(message.contains("60ms") && message.contains("knows of no primary"), "{message}");
    pair.who.send_modify(|who| who.primary = Some(name("ap-south")));
    let error = c.simple_query("select 1").await.map(|_| ()).unwrap_err();
    let message = error.as_db_error().unwrap().message();
    assert!(message.contains("the primary ap-south cannot be reached from eu-west"), "{message}");
    let error = crate::endpoint::pg::tests::connect(&pair.server.config()).await.err().unwrap();
    assert_eq!(code(&error), "57P03", "at the login as well");
}

/// A primary that lost its lease, at the moment of answering: over the link and at its own port.
#[tokio::test]
async fn behind_a_lease_that_is_over_statements_wait_and_what_was_ready_is_not_given() {
    for here in [false, true] {
        let (mut pair, c) = Pair::with_table().await;
        if here {
            pair.close();
            pair.open_west();
        }
        let lead = if here { &pair.west } else { &pair.east };
        // Under way when it ends.
        lead.volume.hold();
        let task = tokio::spawn(async move {
            let failed = fails(&c, "insert into t values (1, 1)").await;
            (failed, c)
        });
        until(|| lead.engine.stats().commits_waiting == 1).await;
        lead.engine.set_lease(clock::now());
        lead.volume.go_on();
        let (failed, c) = finish(task).await;
        assert_eq!(failed, "08007");
        // It is given back: what waited goes on.
        let task = tokio::spawn(async move { one(&c, "select count(*) from t").await });
        until(|| pair.who.receiver_count() > 1).await;
        assert!(!task.is_finished());
        lead.engine.set_lease(clock::now() + LONG);
        assert_eq!(finish(task).await.unwrap(), "1");
    }
}

#[tokio::test]
async fn what_only_reads_is_run_again_and_half_a_result_is_an_error() {
    let (pair, c) = Pair::with_table().await;
    c.simple_query("insert into t select value, value from generate_series(1, 200000)").await.unwrap();
    // Between statements: the next one opens another stream.
    pair.cut();
    assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "200000");
    // In the middle of it.
    let rows = c.query_raw("select id, n, 'something to fill a window with' from t", Vec::<i64>::new()).await.unwrap();
    futures::pin_mut!(rows);
    assert!(rows.try_next().await.unwrap().is_some());
    pair.cut();
    let mut got = 1;
    let error = loop {
        match rows.try_next().await {
            Ok(Some(_)) => got += 1,
            Ok(None) => panic!("{got} rows passed for the whole"),
            Err(error) => break error,
        }
    };
    assert!(got < 200_000 && code(&error) == "40001", "{got} rows, {error:?}");
    assert_eq!(one(&c, "select max(n) from t").await.unwrap(), "200000");
}

#[tokio::test]
async fn nothing_is_sent_to_a_region_that_is_silent() {
    let (mut pair, c) = Pair::with_table().await;
    pair.pipes.silent.store(true, Ordering::SeqCst);
    pair.cut();
    pair.requests();
    let waiting = tokio::spawn(async move {
        c.simple_query("insert into t (n) values (1)").await.unwrap();
        c
    });
    // The greeting and the question whether anybody is there, and no statement.
    until(|| pair.pipes.requests.load(Ordering::SeqCst) >= 2).await;
    pair.close();
    pair.open_west();
    let opened = crate::io::clock::now();
    let c = finish(waiting).await;
    // A question that did nothing is left at once: a statement gets a second, because its outcome would be unknown.
    let waited = crate::io::clock::now().since(opened);
    assert!(waited < Duration::from_millis(950), "{waited:?}");
    assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "1");
    assert_eq!(pair.requests(), 2);
}

#[tokio::test]
async fn copies_portals_and_cancels_go_through() {
    let (pair, mut c) = Pair::with_table().await;
    pair.requests();
    let lines: String = (0..20_000).map(|i| format!("{i}\t{}\n", i * 2)).collect();
    let sink = c.copy_in("copy t from stdin").await.unwrap();
    futures::pin_mut!(sink);
    sink.send(bytes::Bytes::from(lines)).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 20_000);
    assert_eq!(one(&c, "select sum(n) from t").await.unwrap(), (19_999_i64 * 20_000).to_string());
    let out = c.copy_out("copy (select id from t order by id) to stdout").await.unwrap();
    let bytes: usize = out.try_fold(0, |sum, piece| async move { Ok(sum + piece.len()) }).await.unwrap();
    assert_eq!(bytes, (0..20_000).map(|i: i32| i.to_string().len() + 1).sum::<usize>());
    // A line that fails undoes the whole, also when it is found out later.
    let sink = c.copy_in("copy t from stdin").await.unwrap();
    futures::pin_mut!(sink);
    let lines: String = (30_000..40_000).map(|i| format!("{}\t1\n", if i == 35_000 { 5 } else { i })).collect();
    sink.send(bytes::Bytes::from(lines)).await.unwrap();
    assert_eq!(code(&sink.finish().await.unwrap_err()), "23505");
    assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "20000");
    // And within the client's own transaction.
    let tx = c.transaction().await.unwrap();
    tx.execute("delete from t where id >= $1", &[&10_000_i64]).await.unwrap();
    {
        let sink = tx.copy_in("copy t (id, n) from stdin").await.unwrap();
        futures::pin_mut!(sink);
        let lines: String = (50_000..52_000).map(|i| format!("{i}\t1\n")).collect();
        sink.send(bytes::Bytes::from(lines)).await.unwrap();
        assert_eq!(sink.finish().await.unwrap(), 2_000);
    }
    // A result in parts, given up in the middle.
    let select = tx.prepare("select id from t order by id").await.unwrap();
    let portal = tx.bind(&select, &[]).await.unwrap();
    assert_eq!(tx.query_portal(&portal, 10).await.unwrap().len(), 10);
    assert_eq!(tx.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 12_000);
    let more = tx.query_portal(&portal, 10).await.unwrap();
    assert_eq!(more[0].get::<_, i64>(0), 10);
    let nested = "update t set n = n + 1";
    assert_eq!(tx.execute(nested, &[]).await.unwrap(), 12_000);
    tx.rollback().await.unwrap();
    assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "20000");

    let endless = "select count(*) from generate_series(1, 100000000000)";
    for sql in [
        endless,
        "insert into t (n) select count(*) from generate_series(1, 100000000000)",
        "select value from generate_series(1, 100000000000)",
    ] {
        let cancel = c.cancel_token();
        let before = pair.east.engine.stats().statements;
        let task = tokio::spawn(async move {
            let failed = fails(&c, sql).await;
            (failed, c)
        });
        until(|| pair.east.engine.stats().statements > before).await;
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        let failed;
        (failed, c) = finish(task).await;
        assert_eq!(failed, "57014", "{sql}");
        assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "20000");
    }
    // A client that goes leaves nothing open at the writer.
    c.batch_execute("begin; insert into t values (-1, 1)").await.unwrap();
    drop(c);
    let other = pair.server.connect().await;
    other.batch_execute("insert into t values (-1, 2)").await.unwrap();
    assert_eq!(one(&other, "select n from t where id = -1").await.unwrap(), "2");
}

#[tokio::test]
async fn nonsense_ends_its_stream_and_nothing_else() {
    let (pair, c) = Pair::with_table().await;
    for bytes in [&b"PHS\x02"[..], b"GET / HTTP/1.1\r\n\r\n", b"PHS\x01\xff\xff\xff\xff", b"PHS\x01\x05\0\0\0\x63\0\0\0\0", b"PHS\x01\x01"]
    {
        let (near, far) = tokio::io::duplex(1024);
        let (recv, send) = tokio::io::split(far);
        let serving = tokio::spawn(serve(pair.east.engine.clone(), recv, send));
        let (_recv, mut send) = tokio::io::split(near);
        send.write_all(bytes).await.unwrap();
        send.shutdown().await.unwrap();
        finish(serving).await;
    }
    assert_eq!(one(&c, "select count(*) from t").await.unwrap(), "0");
}
