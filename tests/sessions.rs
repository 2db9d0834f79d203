//! Sessions of the writer port of a secondary, with real processes, while the primary dies and comes back.

mod common;

use common::{Cluster, ensure, signal, until};
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio_postgres::{Client, Error, SimpleQueryMessage};

fn sqlstate(error: &Error) -> String {
    error.as_db_error().map_or_else(|| format!("no answer of the server's: {error}"), |e| e.code().code().to_owned())
}

async fn one(client: &Client, sql: &str) -> String {
    let rows = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = rows.iter().find_map(|m| if let SimpleQueryMessage::Row(row) = m { row.get(0).map(str::to_owned) } else { None });
    row.unwrap_or_default()
}

async fn fails(client: &Client, sql: &str) -> String {
    sqlstate(&client.simple_query(sql).await.map(|_| ()).expect_err(sql))
}

#[test]
fn idle_sessions_live_through_the_death_of_the_primary_and_transactions_fail_loudly() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let connect = || Arc::new(runtime.block_on(ready.connect(&second.writer)).unwrap());
    let (idle, open, fresh) = (connect(), connect(), connect());
    runtime.block_on(idle.batch_execute("create table t (id integer primary key, v text); set application_name = 'kept'")).unwrap();
    let insert = runtime.block_on(idle.prepare("insert into t (id, v) values ($1, $2)")).unwrap();
    for round in 0..2_i64 {
        // One that holds the writer, and behind it one that has only said that it begins.
        runtime.block_on(open.batch_execute("begin; insert into t values (-1, 'lost')")).unwrap();
        runtime.block_on(fresh.batch_execute("begin")).unwrap();
        cluster.kill_region(&primary.name);
        until("the death is seen", || {
            let row = cluster.row(&second.name, &primary.name)?;
            ensure(row["state"] == "disconnected", row)
        });
        // Asked while nobody is there: it waits, with a statement that was prepared before.
        let (client, insert) = (idle.clone(), insert.clone());
        let waiting = runtime.spawn(async move { client.execute(&insert, &[&round, &"after"]).await });
        let client = fresh.clone();
        let script = format!("insert into t values (100 + {round}, 'begun elsewhere'); commit");
        let held = runtime.spawn(async move { client.batch_execute(&script).await });
        cluster.start_region(&primary.name);
        runtime.block_on(async {
            assert_eq!(fails(&open, "insert into t values (-2, 'lost')").await, "40001");
            assert_eq!(fails(&open, "select 1").await, "25P02");
            open.batch_execute("rollback").await.unwrap();
            assert_eq!(waiting.await.unwrap().unwrap(), 1);
            held.await.unwrap().unwrap();
            assert_eq!(one(&idle, "show application_name").await, "kept");
            assert_eq!(one(&idle, "select count(*) from t where id < 0").await, "0");
            assert_eq!(one(&open, "select count(*) from t").await, (2 * (round + 1)).to_string());
            // A commit that is asked for when the writer is gone for good.
            open.batch_execute("begin; insert into t values (-3, 'lost')").await.unwrap();
        });
        cluster.kill_region(&primary.name);
        cluster.start_region(&primary.name);
        runtime.block_on(async {
            let said = fails(&open, "commit").await;
            assert!(["40001", "08007"].contains(&said.as_str()), "{said}");
            assert_eq!(one(&open, "select count(*) from t where id < 0").await, "0");
        });
    }
}

#[test]
fn a_client_that_works_on_knows_of_each_statement_whether_it_was_done() {
    let mut cluster = Cluster::start(2, "none");
    let ready = cluster.ready.clone();
    let (primary, second) = (cluster.primary().clone(), cluster.secondaries()[0].clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    ready.must(&second.writer, "create table t (id integer primary key)");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let workers: Vec<_> = (0..4_i64)
        .map(|worker| {
            let (stop, done, client) = (stop.clone(), done.clone(), runtime.block_on(ready.connect(&second.writer)).unwrap());
            runtime.spawn(async move {
                let mut known = Vec::new();
                let mut id = worker;
                while !stop.load(Ordering::SeqCst) {
                    id += 4;
                    let said = client.simple_query(&format!("insert into t values ({id})")).await;
                    let sure = match said {
                        Ok(_) => Some(true),
                        Err(error) => {
                            let code = sqlstate(&error);
                            assert!(["08007", "57P03"].contains(&code.as_str()), "{error:?}");
                            (code == "57P03").then_some(false)
                        }
                    };
                    if let Some(sure) = sure {
                        known.push((id, sure));
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
                known
            })
        })
        .collect();
    let progress = |what: &str| {
        let before = done.load(Ordering::SeqCst);
        until(what, || ensure(done.load(Ordering::SeqCst) >= before + 200, "too few statements"));
    };
    progress("they work");
    // A process that stands still for a while and goes on is no loss at all.
    signal(primary.pid, Signal::STOP);
    until("the silence is seen", || {
        let row = cluster.row(&second.name, &primary.name)?;
        ensure(row["state"] == "disconnected", row)
    });
    signal(primary.pid, Signal::CONT);
    progress("they go on");
    for _ in 0..2 {
        cluster.kill_region(&primary.name);
        cluster.start_region(&primary.name);
        progress("they work again");
    }
    stop.store(true, Ordering::SeqCst);
    let rows = ready.must(&second.writer, "select id from t");
    let rows: std::collections::BTreeSet<i64> = rows.lines().map(|id| id.parse().unwrap()).collect();
    for worker in workers {
        for (id, sure) in runtime.block_on(worker).unwrap() {
            assert_eq!(rows.contains(&id), sure, "{id}");
        }
    }
}
