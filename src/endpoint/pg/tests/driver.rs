//! What a driver in binary mode sees (tokio-postgres), and raw bytes.

use super::engine::Engine;
use super::{Options, PASSWORD, Server, code, connect};
use crate::endpoint::pg::{PgSettings, ScramVerifier, Shared};
use crate::endpoint::{Port, SqlService, SqlSession};
use crate::head::sql::SqlError;
use bytes::Bytes;
use futures::{SinkExt, StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::Type;

#[tokio::test]
async fn the_main_path_of_an_application() {
    let server = Server::start().await;
    let mut c = server.connect().await;
    c.batch_execute(
        "create table t (id integer primary key, name text not null, score double precision, data bytea, at timestamptz, ok boolean)",
    )
    .await
    .unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
    let n = c
        .execute(
            "insert into t (id, name, score, data, at, ok) values ($1, $2, $3, $4, $5, $6)",
            &[&1_i64, &"one", &1.5_f64, &vec![0_u8, 255], &at, &true],
        )
        .await
        .unwrap();
    assert_eq!(n, 1);
    c.execute("insert into t (id, name) values ($1, $2)", &[&2_i64, &"two"]).await.unwrap();
    let row = c.query_one("select * from t where id = $1", &[&1_i64]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1), row.get::<_, f64>(2)), (1, "one", 1.5));
    assert_eq!((row.get::<_, &[u8]>(3), row.get::<_, SystemTime>(4), row.get::<_, bool>(5)), (&[0_u8, 255][..], at, true));
    let row = c.query_one("select score, at from t where id = $1", &[&2_i64]).await.unwrap();
    assert_eq!((row.get::<_, Option<f64>>(0), row.get::<_, Option<SystemTime>>(1)), (None, None));
    assert_eq!(c.execute("update t set name = name || $1 where id >= $2", &[&"!", &1_i64]).await.unwrap(), 2);
    let row = c.query_one("select count(*), max(name), sum(id), avg(id), 'x' || name from t", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1), row.get::<_, i64>(2), row.get::<_, f64>(3)), (2, "two!", 3, 1.5));
    let row = c.query_one("insert into t (id, name) values ($1, $2) returning id, upper(name) as n", &[&3_i64, &"three"]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (3, "THREE"));

    let tx = c.transaction().await.unwrap();
    tx.execute("delete from t", &[]).await.unwrap();
    assert_eq!(tx.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 0);
    tx.rollback().await.unwrap();
    let mut tx = c.transaction().await.unwrap();
    tx.execute("delete from t where id = 3", &[]).await.unwrap();
    let inner = tx.savepoint("s").await.unwrap();
    inner.execute("delete from t", &[]).await.unwrap();
    inner.rollback().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(c.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 2);
}

#[tokio::test]
async fn errors_have_their_sqlstate_and_the_session_goes_on() {
    let server = Server::start().await;
    let c = server.connect().await;
    c.batch_execute("create table t (id integer primary key)").await.unwrap();
    c.execute("insert into t values (1)", &[]).await.unwrap();
    for (sql, expected) in [
        ("select * from nowhere", "42P01"),
        ("selct 1", "42601"),
        ("insert into t values (1)", "23505"),
        ("listen x", "0A000"),
        ("set nonsense = 1", "42704"),
        ("select 1; select 2", "42601"),
        ("savepoint s", "25P01"),
    ] {
        assert_eq!(code(&c.execute(sql, &[]).await.unwrap_err()), expected, "{sql}");
        if expected != "42601" || sql == "selct 1" {
            assert_eq!(code(&c.batch_execute(sql).await.unwrap_err()), expected, "{sql}");
        }
    }
    assert_eq!(code(&c.batch_execute("select $1").await.unwrap_err()), "42P02");
    assert_eq!(c.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_failed_transaction_accepts_only_its_end() {
    let server = Server::start().await;
    let c = server.connect().await;
    c.batch_execute("create table t (id integer primary key)").await.unwrap();
    c.batch_execute("begin; insert into t values (1)").await.unwrap();
    assert_eq!(code(&c.batch_execute("select * from nowhere").await.unwrap_err()), "42P01");
    for sql in ["select 1", "insert into t values (2)", "show server_version", "savepoint x", "begin"] {
        assert_eq!(code(&c.batch_execute(sql).await.unwrap_err()), "25P02", "{sql}");
        assert_eq!(code(&c.query(sql, &[]).await.unwrap_err()), "25P02", "{sql}");
    }
    c.batch_execute("commit").await.unwrap();
    assert!(c.query("select * from t", &[]).await.unwrap().is_empty(), "COMMIT of a failed transaction rolls back");

    c.batch_execute("begin; savepoint s; insert into t values (5)").await.unwrap();
    assert!(c.batch_execute("insert into t values (5)").await.is_err());
    c.batch_execute("rollback to s; insert into t values (6); commit").await.unwrap();
    assert_eq!(c.query_one("select id from t", &[]).await.unwrap().get::<_, i64>(0), 6);
}

#[tokio::test]
async fn several_statements_in_one_message_are_one_transaction() {
    let server = Server::start().await;
    let c = server.connect().await;
    c.batch_execute("create table t (id integer primary key)").await.unwrap();
    assert_eq!(code(&c.batch_execute("insert into t values (1); insert into t values (1)").await.unwrap_err()), "23505");
    assert_eq!(c.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 0);
    // An explicit COMMIT inside keeps what came before it.
    assert!(c.batch_execute("begin; insert into t values (1); commit; insert into t values (2); insert into t values (2)").await.is_err());
    assert_eq!(c.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 1);
    let messages = c.simple_query("select 1 as a; ; select 'x' as b, null as c; update t set id = 7").await.unwrap();
    let shown: Vec<String> = messages
        .iter()
        .filter_map(|m| match m {
            SimpleQueryMessage::Row(r) => Some(format!("{:?}", (0..r.len()).map(|i| r.get(i)).collect::<Vec<_>>())),
            SimpleQueryMessage::CommandComplete(n) => Some(n.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(shown, ["[Some(\"1\")]", "1", "[Some(\"x\"), None]", "1", "1"]);
    let nothing = c.simple_query(" -- nothing\n").await.unwrap();
    assert!(matches!(nothing[..], [SimpleQueryMessage::CommandComplete(0)]), "an empty query is answered as one: {nothing:?}");
}

#[tokio::test]
async fn statements_up_to_a_sync_are_one_transaction() {
    let server = Server::start().await;
    let mut raw = Raw::login(&server).await;
    raw.query("create table t (id integer primary key)").await;
    let one = |id: i32| {
        let sql = format!("insert into t values ({id})");
        [message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]), message(b'B', &[b"\0\0\0\0\0\0\0\0"]), message(b'E', &[b"\0\0\0\0\0"])]
            .concat()
    };
    raw.send(&[one(1), one(2), one(1), one(3), message(b'S', &[])].concat()).await;
    let (kinds, _) = raw.until_ready().await;
    assert_eq!(kinds, "12C12C12EZ", "two went well, the third failed, the fourth was skipped");
    assert_eq!(raw.query("select count(*) from t").await.1, "0");
    raw.send(&[one(1), one(2), message(b'S', &[])].concat()).await;
    assert_eq!(raw.until_ready().await.0, "12C12CZ");
    assert_eq!(raw.query("select count(*) from t").await.1, "2");
}

#[tokio::test]
async fn a_portal_gives_its_rows_in_parts() {
    let server = Server::start().await;
    let mut c = server.connect().await;
    c.batch_execute("create table t (id integer primary key)").await.unwrap();
    c.batch_execute("insert into t with recursive n(i) as (values (1) union all select i + 1 from n where i < 1000) select i from n")
        .await
        .unwrap();
    let tx = c.transaction().await.unwrap();
    let portal = tx.bind("select id from t order by id", &[]).await.unwrap();
    let mut sum = 0;
    for part in [400, 400, 200] {
        let rows = tx.query_portal(&portal, 400).await.unwrap();
        assert_eq!(rows.len(), part);
        sum += rows.iter().map(|r| r.get::<_, i64>(0)).sum::<i64>();
        // Another statement in between does not disturb the portal.
        assert_eq!(tx.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 1000);
    }
    assert_eq!(sum, 500_500);
    assert!(tx.query_portal(&portal, 400).await.unwrap().is_empty());
    // A result that is left behind does not block anything.
    let stream = tx.query_raw("select a.id from t a, t b", Vec::<i32>::new()).await.unwrap();
    drop(stream);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn types_travel_in_binary() {
    let server = Server::start().await;
    let c = server.connect().await;
    c.batch_execute("create table t (a smallint, b int4, c real, d varchar(9), e numeric(10,2), f uuid, g json, h date)").await.unwrap();
    let types = [Type::INT2, Type::INT4, Type::FLOAT4, Type::VARCHAR, Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT];
    let insert = c.prepare_typed("insert into t values ($1, $2, $3, $4, $5, $6, $7, $8)", &types).await.unwrap();
    let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    c.execute(&insert, &[&-2_i16, &70_000_i32, &0.25_f32, &"x", &"12.50", &uuid, &"{}", &"2024-02-29"]).await.unwrap();
    let select = c.prepare("select * from t").await.unwrap();
    let names: Vec<&str> = select.columns().iter().map(|c| c.type_().name()).collect();
    assert_eq!(names, ["int2", "int4", "float8", "varchar", "numeric", "uuid", "json", "date"]);
    let row = c.query_one(&select, &[]).await.unwrap();
    assert_eq!((row.get::<_, i16>(0), row.get::<_, i32>(1), row.get::<_, f64>(2), row.get::<_, &str>(3)), (-2, 70_000, 0.25, "x"));
    // A value that SQLite stored although it is not of the column's type is refused, not turned into something else.
    c.batch_execute("update t set b = 'many'").await.unwrap();
    assert_eq!(code(&c.query("select b from t", &[]).await.unwrap_err()), "42804");
    let parameter_types = c.prepare("select a from t where b = $1 and d = $2 and e < $3 limit $4").await.unwrap();
    let names: Vec<&str> = parameter_types.params().iter().map(Type::name).collect();
    assert_eq!(names, ["int4", "varchar", "numeric", "int8"]);
    assert_eq!(code(&c.prepare_typed("select $1", &[Type::INT4_ARRAY]).await.unwrap_err()), "0A000");
}

#[tokio::test]
async fn copy_in_and_out() {
    let server = Server::start().await;
    let c = server.connect().await;
    c.batch_execute("create table t (id integer primary key, name text, ok boolean)").await.unwrap();
    let sink = c.copy_in("copy t (id, name, ok) from stdin with (format csv)").await.unwrap();
    futures::pin_mut!(sink);
    for chunk in 0..10 {
        let lines: String = (0..100).map(|i| format!("{},\"n,{i}\",t\n", chunk * 100 + i)).collect();
        sink.send(Bytes::from(lines)).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 1000);
    let row = c.query_one("select count(*), max(name), sum(ok) from t where ok = 1", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (1000, "n,99"));
    let out: Vec<Bytes> =
        c.copy_out("copy (select id, name, ok from t where id < 2 order by id) to stdout").await.unwrap().try_collect().await.unwrap();
    assert_eq!(out.concat(), b"0\tn,0\tt\n1\tn,1\tt\n");

    // An error in the middle leaves nothing of it, and the session goes on.
    let sink = c.copy_in::<_, Bytes>("copy t from stdin").await.unwrap();
    futures::pin_mut!(sink);
    sink.send(Bytes::from_static(b"5000\ta\tt\n5001\tb\tperhaps\n")).await.unwrap();
    assert_eq!(code(&sink.finish().await.unwrap_err()), "22P02");
    assert_eq!(c.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 1000);
}

#[tokio::test]
async fn a_cancel_interrupts_the_statement_and_only_it() {
    let server = Server::start().await;
    let c = server.connect().await;
    let endless = "with recursive n(i) as (values (1) union all select i + 1 from n) select count(*) from n";
    let token = c.cancel_token();
    // Before anything runs: no effect on what comes.
    token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let cancel = async {
        loop {
            token.cancel_query(tokio_postgres::NoTls).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let error = tokio::select! {
        e = c.batch_execute(endless) => e.unwrap_err(),
        () = cancel => unreachable!("loops"),
    };
    assert_eq!(code(&error), "57014");
    c.batch_execute("set statement_timeout = '50ms'").await.unwrap();
    let error = c.batch_execute(endless).await.unwrap_err();
    assert_eq!(code(&error), "57014");
    assert!(error.as_db_error().unwrap().message().contains("statement timeout"));
    c.batch_execute("set statement_timeout = 0; select 1").await.unwrap();
}

#[tokio::test]
async fn the_reader_port_says_that_it_is_one() {
    let engine = Arc::new(Engine::new());
    let writer = Server::with(Options::default(), engine.clone()).await;
    let reader = Server::with(Options { port: Port::Reader, ..Options::default() }, engine).await;
    writer.connect().await.batch_execute("create table t (id integer)").await.unwrap();
    let c = reader.connect().await;
    assert_eq!(code(&c.batch_execute("insert into t values (1)").await.unwrap_err()), "25006");
    let shown = c.query_one("show in_hot_standby", &[]).await.unwrap();
    assert_eq!(shown.get::<_, &str>(0), "on");
    assert_eq!(c.query_one("show transaction_read_only", &[]).await.unwrap().get::<_, &str>(0), "on");
    let mut config = reader.config();
    config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    assert!(connect(&config).await.is_err());
    let mut config = writer.config();
    config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    let c = connect(&config).await.unwrap();
    c.batch_execute("set default_transaction_read_only = on").await.unwrap();
    assert_eq!(code(&c.batch_execute("insert into t values (1)").await.unwrap_err()), "25006");
}

#[tokio::test]
async fn who_may_not_come_in_is_told_why() {
    let server = Server::with(Options { connections_max: 1, ..Options::default() }, Arc::new(Engine::new())).await;
    let mut wrong = server.config();
    wrong.password("battery staple");
    let wrong = connect(&wrong).await.err().unwrap();
    let mut unknown = server.config();
    unknown.user("mallory");
    let unknown = connect(&unknown).await.err().unwrap();
    assert_eq!((code(&wrong), code(&unknown)), ("28P01".into(), "28P01".into()));
    assert_eq!(
        wrong.as_db_error().unwrap().message().replace("app", "?"),
        unknown.as_db_error().unwrap().message().replace("mallory", "?")
    );
    let mut other = server.config();
    other.dbname("elsewhere");
    let other = connect(&other).await.err().unwrap();
    assert_eq!(code(&other), "3D000");
    assert!(other.as_db_error().unwrap().hint().unwrap().contains("\"parhelion\""));
    let mut option = server.config();
    option.options("-c nonsense=1");
    assert_eq!(code(&connect(&option).await.err().unwrap()), "42704");

    let first = server.connect().await;
    let second = connect(&server.config()).await.err().unwrap();
    assert_eq!(code(&second), "53300");
    first.batch_execute("select 1").await.unwrap();
    drop(first);
    // The place is free when the server has seen the first client leave.
    while connect(&server.config()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn plain_text_from_another_machine_is_refused_where_tls_is_required() {
    let settings = PgSettings {
        user: "app".into(),
        scram: ScramVerifier::generate(PASSWORD),
        database: "parhelion".into(),
        connections_max: 5,
        require_tls: true,
        tls: None,
    };
    let (_stop, shutdown) = tokio::sync::watch::channel(false);
    let shared = Arc::new(Shared::new(Port::Writer, Arc::new(settings), Arc::new(Engine::new()), shutdown));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (peer, refused) in [("192.0.2.7", true), ("::ffff:192.0.2.7", true), ("127.0.0.1", false), ("::1", false)] {
        let shared = shared.clone();
        let (login, client) = tokio::join!(
            async {
                let (stream, _) = listener.accept().await.unwrap();
                shared.login(stream, peer.parse().unwrap()).await
            },
            async {
                let mut config = tokio_postgres::Config::new();
                config.host("127.0.0.1").port(port).user("app").password(PASSWORD);
                connect(&config).await
            }
        );
        assert_eq!(login.is_none(), refused, "{peer}");
        assert_eq!(client.err().map(|e| code(&e)), refused.then(|| "28000".to_owned()), "{peer}");
    }
}

#[tokio::test]
async fn what_returning_gives_may_stay_unread() {
    let server = Server::start().await;
    let mut c = server.connect().await;
    c.batch_execute("create table t (id integer primary key)").await.unwrap();
    let tx = c.transaction().await.unwrap();
    let sql = "insert into t with recursive n(i) as (values (1) union all select i + 1 from n where i < 500) select i from n returning id";
    let portal = tx.bind(sql, &[]).await.unwrap();
    assert_eq!(tx.query_portal(&portal, 3).await.unwrap().len(), 3);
    drop(portal);
    tx.commit().await.unwrap();
    assert_eq!(c.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 500);
}

#[tokio::test]
async fn a_stop_ends_sessions_with_57p01() {
    let server = Server::start().await;
    let idle = server.connect().await;
    let busy = server.connect().await;
    busy.batch_execute("create table t (id integer); begin; insert into t values (1)").await.unwrap();
    let mut raw = Raw::login(&server).await;
    let (runs, it_runs) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(async move {
        let endless = "with recursive n(i) as (values (1) union all select i + 1 from n) select i from n";
        let stream = busy.query_raw(endless, Vec::<i32>::new()).await.unwrap();
        futures::pin_mut!(stream);
        stream.next().await.unwrap().unwrap();
        runs.send(()).unwrap();
        while let Some(row) = stream.next().await {
            if let Err(e) = row {
                return Some(e);
            }
        }
        None
    });
    it_runs.await.unwrap();
    server.stop.send(true).unwrap();
    assert_eq!(code(&running.await.unwrap().expect("ends with an error")), "57P01");
    let (kinds, text) = raw.until_closed().await;
    assert_eq!(kinds, "E");
    assert!(text.contains("57P01") && text.contains("FATAL"), "{text}");
    server.task.await.unwrap();
    assert!(idle.batch_execute("select 1").await.is_err());
}

#[tokio::test]
async fn garbage_does_no_harm() {
    let server = Server::start().await;
    let good = server.connect().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaa",
        b"\0\0\0\0\0\0\0\0",
        b"\0\0\0\x08\0\x03\0\0",
        b"\0\0\0\x09\0\x03\0\0\0",
        b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut s = TcpStream::connect(server.address).await.unwrap();
        s.write_all(bytes).await.unwrap();
        s.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end.
        let _ = s.read_to_end(&mut answer).await;
        assert!(answer.len() < 300);
    }
    for (bytes, expected) in [
        (message(b'z', &[]), "08P01"),
        (message(b'Q', &[b"select 1"]), "08P01"),
        (message(b'Q', &[b"select '\xff'\0"]), "22021"),
        (message(b'P', &[b"\0select 1\0\xff\xff"]), "08P01"),
        (message(b'B', &[b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0"]), "08P01"),
        (b"Q\x7f\xff\xff\xff".to_vec(), "54000"),
        (b"S\0\0\0\0".to_vec(), "08P01"),
        (message(b'p', &[b"x"]), "08P01"),
    ] {
        let mut raw = Raw::login(&server).await;
        raw.send(&bytes).await;
        let (_, text) = raw.until_closed().await;
        assert!(text.contains(expected), "{bytes:?}: {text}");
    }
    good.batch_execute("select 1").await.unwrap();
}

/// Gives no sessions.
struct Nobody;

#[async_trait::async_trait]
impl SqlService for Nobody {
    async fn open(&self, _port: Port) -> Result<Box<dyn SqlSession>, SqlError> {
        Err(SqlError::new("57P03", "the primary us-east cannot be reached").hint("parhelion status"))
    }

    fn parameters(&self, _port: Port) -> Vec<(String, String)> {
        Vec::new()
    }
}

#[tokio::test]
async fn a_service_without_sessions_can_say_why() {
    let server = Server::with(Options::default(), Arc::new(Nobody)).await;
    let e = connect(&server.config()).await.err().unwrap();
    assert_eq!(code(&e), "57P03");
    assert_eq!(e.as_db_error().unwrap().hint(), Some("parhelion status"));
}

pub fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut m = vec![kind];
    m.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    m.extend_from_slice(&body);
    m
}

/// A logged-in connection whose bytes the test writes itself. The login is a driver's, spoken through a relay.
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    pub async fn login(server: &Server) -> Raw {
        // The driver logs in over one end of a pipe; when it is ready, the socket behind the pipe is ours.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let (mut near, far) = tokio::io::duplex(65_536);
        let config = server.config();
        let login = tokio::spawn(async move {
            let (client, _connection) = config.connect_raw(far, tokio_postgres::NoTls).await.unwrap();
            drop(client);
        });
        let mut login = std::pin::pin!(login);
        loop {
            let (mut a, mut b) = ([0; 4096], [0; 4096]);
            tokio::select! {
                r = &mut login => { r.unwrap(); break }
                n = near.read(&mut a) => match n.unwrap() {
                    0 => {}
                    n => stream.write_all(&a[..n]).await.unwrap(),
                },
                n = stream.read(&mut b) => near.write_all(&b[..n.unwrap()]).await.unwrap(),
            }
        }
        Raw { stream }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn one(&mut self) -> Option<(u8, Vec<u8>)> {
        let kind = self.stream.read_u8().await.ok()?;
        let length = self.stream.read_u32().await.ok()?;
        let mut body = vec![0; length as usize - 4];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((kind, body))
    }

    /// The types of the answers up to ReadyForQuery, and the last field of the last row.
    pub async fn until_ready(&mut self) -> (String, String) {
        let (mut kinds, mut last) = (String::new(), String::new());
        loop {
            let (kind, body) = self.one().await.expect("an answer");
            kinds.push(kind as char);
            if kind == b'D' {
                last = String::from_utf8_lossy(&body[6..]).into_owned();
            }
            if kind == b'Z' {
                return (kinds, last);
            }
        }
    }

    async fn until_closed(&mut self) -> (String, String) {
        let (mut kinds, mut text) = (String::new(), String::new());
        while let Some((kind, body)) = self.one().await {
            kinds.push(kind as char);
            text = String::from_utf8_lossy(&body).into_owned();
        }
        (kinds, text)
    }

    async fn query(&mut self, sql: &str) -> (String, String) {
        self.send(&message(b'Q', &[sql.as_bytes(), b"\0"])).await;
        self.until_ready().await
    }
}
