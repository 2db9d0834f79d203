//! The writer's thread: runs what its turn has come for, on the one connection that may write.
//!
//! Decides nothing about whose turn it is ([`super::Writer`]); decides what becomes of a transaction whose statement fails.

use super::{Answer, Ended, Job, Next, Product, Request, Turn, Work, Writer, drained, shut_down};
use crate::head::embedded::PAGE_BYTES;
use crate::head::embedded::connection::{Db, Prepared, Use, cancelled};
use crate::head::embedded::context::Token;
use crate::head::embedded::space::{Pace, STEP_TIME_MAX};
use crate::head::embedded::vfs::Registration;
use crate::head::sql::{SqlError, Value, state};
use crate::io::clock;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) struct Thread {
    pub writer: Arc<Writer>,
    pub registration: Arc<Registration>,
    pub db: Option<Db>,
    pub pace: Pace,
}

impl Thread {
    pub fn work(mut self) {
        loop {
            match self.writer.next_turn(self.pace.due()) {
                Turn::Job(Job::Single { request, .. }) => self.single(request),
                Turn::Job(Job::Transaction { ended, first, .. }) => self.transaction(&ended, first),
                Turn::Quiet => self.give_back(),
                Turn::Closed => return,
            }
            self.writer.context.leave();
            self.pace.wrote(self.writer.head(), clock::now());
        }
    }

    /// A step, if it is the moment for one.
    fn give_back(&mut self) {
        let (writer, shared, began) = (self.writer.clone(), self.writer.shared.clone(), clock::now());
        // Not where a client could not write, nor while commits wait for another region, nor faster than the log gets away.
        if shared.may_write().is_err() || shared.progress.is_paused() || shared.horizon.visible() < self.pace.stepped_to {
            return self.pace.put_off(began);
        }
        writer.context.enter(0, false, clock::unix_now(), Arc::default());
        let Ok((free, pages)) = writer.file.space() else { return self.pace.put_off(began) };
        let wanted = self.pace.wanted(free, pages, writer.head());
        if wanted > 0 {
            let enough = || writer.is_wanted() || clock::now().since(began) >= STEP_TIME_MAX;
            writer.file.set_own(true);
            let given = self.open().and_then(|()| self.db().give_back(wanted, enough));
            writer.file.set_own(false);
            match given {
                Ok(0) => self.pace.put_off(began),
                Ok(_) => {
                    // With the pages of the map that went with them.
                    let given = pages.saturating_sub(writer.file.space().map_or(pages, |(_, left)| left));
                    shared.counters.given_back_bytes.fetch_add(u64::from(given) * PAGE_BYTES as u64, Ordering::Relaxed);
                    self.pace.stepped(given, writer.head(), began, clock::now());
                }
                // The role went, or a page is not to be had now: nothing has happened.
                Err(why) => {
                    tracing::debug!("free pages were not given back now: {}", why.message);
                    self.pace.put_off(began);
                }
            }
        }
        if let Some(bytes) = self.pace.at_an_end() {
            tracing::info!(bytes, pages_left = pages, "free pages were given back");
        }
    }

    fn enter(&self, request: &Request) {
        self.writer.shared.counters.statements.fetch_add(1, Ordering::Relaxed);
        self.writer.context.enter(request.session, false, clock::unix_now(), request.cancel.clone());
    }

    /// Opened at the first use and again after a failure: the first pages may have to come from a copy.
    fn open(&mut self) -> Result<(), SqlError> {
        if self.db.is_none() {
            self.db = Some(Db::open(&self.writer.shared, &self.writer.context, &self.registration, Use::Writing)?);
        }
        Ok(())
    }

    fn db(&self) -> &Db {
        self.db.as_ref().expect("BUG: open comes before every use")
    }

    /// What an error means when the thread is to stop: the interruption, or the page that could not be had, was ours and not the
    /// client's. Without a commit nothing has happened.
    fn explain(&self, error: SqlError, cancel: &Token) -> SqlError {
        let mut queue = self.writer.queue.lock();
        if let Some(reason) = &queue.closed {
            return if matches!(error.code, state::QUERY_CANCELED | state::IO_ERROR | state::ADMIN_SHUTDOWN) {
                shut_down(reason).run_elsewhere()
            } else {
                error
            };
        }
        if error.code == state::QUERY_CANCELED && !cancel.is_cancelled() && self.writer.context.is_due() {
            if let Some(drain) = &mut queue.drain {
                drain.rolled_back += 1;
            }
            return drained().run_elsewhere();
        }
        error
    }

    fn single(&mut self, request: Request) {
        self.enter(&request);
        let before = self.writer.head();
        let result = if request.cancel.is_cancelled() {
            Err(cancelled())
        } else {
            self.open().and_then(|()| match &request.work {
                Work::Statement { sql, params, .. } => self.alone(sql, params),
                _ => unreachable!("BUG: only statements come alone"),
            })
        };
        let seen = self.writer.head();
        let committed = (seen > before).then_some(seen);
        let result = result.map_err(|e| self.explain(e, &request.cancel));
        let Request { reply, under_way, .. } = request;
        let _ = reply.send(Answer { result, seen, committed, over: true, under_way });
    }

    fn alone(&self, sql: &str, params: &[Value]) -> Result<Product, SqlError> {
        let prepared = self.db().prepare(sql)?;
        if prepared.is_read_only() || !prepared.has_columns() {
            return self.run(prepared, params);
        }
        // It writes and returns rows: a result that is too large must undo it, so it gets a transaction of its own.
        drop(prepared);
        self.db().control("BEGIN IMMEDIATE")?;
        let result = self.db().prepare(sql).and_then(|prepared| self.run(prepared, params)).and_then(|product| {
            self.db().control("COMMIT")?;
            Ok(product)
        });
        if result.is_err() {
            self.roll_back();
        }
        result
    }

    fn run(&self, prepared: Prepared<'_>, params: &[Value]) -> Result<Product, SqlError> {
        if !prepared.is_read_only() {
            self.writer.shared.may_write()?;
        }
        let bytes_max = self.writer.shared.settings.result_bytes_max;
        let mut rows = Vec::new();
        let mut held = 0;
        let finished = prepared.run(params, |_, row, bytes| {
            held += bytes;
            if held > bytes_max {
                let message = format!("the result is larger than {bytes_max} bytes, the limit inside a writing transaction");
                return ControlFlow::Break(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, message).hint("Read it outside, or in parts."));
            }
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        Ok(match finished.columns {
            Some(columns) => Product::Rows { columns, rows },
            None => Product::Changed(finished.changed),
        })
    }

    fn roll_back(&self) {
        if let Some(db) = &self.db
            && !db.is_autocommit()
        {
            self.writer.shared.counters.rollbacks.fetch_add(1, Ordering::Relaxed);
            if let Err(e) = db.control("ROLLBACK") {
                // SQLite is back in autocommit whatever ROLLBACK says, or the process state is not to be trusted.
                assert!(db.is_autocommit(), "BUG: a rollback failed: {e}");
            }
        }
    }

    fn transaction(&mut self, ended: &Ended, first: Request) {
        self.enter(&first);
        let begun =
            if first.cancel.is_cancelled() { Err(cancelled()) } else { self.open().and_then(|()| self.db().control("BEGIN IMMEDIATE")) };
        if let Err(error) = begun {
            self.writer.release(ended, None);
            let error = self.explain(error, &first.cancel);
            first.refuse(error);
            return;
        }
        let now_us = self.writer.context.now_us.load(Ordering::Relaxed);
        let mut request = first;
        let why = loop {
            if self.step(request, ended) {
                return;
            }
            request = match self.writer.next_request() {
                Next::Request(request) => request,
                Next::Gone => break None,
                Next::Closed(reason) => break Some(shut_down(&reason)),
                Next::Drained => {
                    if let Some(drain) = &mut self.writer.queue.lock().drain {
                        drain.rolled_back += 1;
                    }
                    break Some(drained());
                }
                Next::Idle => {
                    let limit = self.writer.shared.settings.idle_in_transaction_max;
                    let message = format!(
                        "terminating the transaction: it was idle for more than {limit:?}, and others want to write; it was rolled back"
                    );
                    break Some(SqlError::new(state::IDLE_IN_TRANSACTION_TIMEOUT, message));
                }
            };
            self.enter(&request);
            self.writer.context.now_us.store(now_us, Ordering::Relaxed); // now() stands still within a transaction
        };
        self.roll_back();
        self.writer.release(ended, why);
    }

    /// One request of the owner. `true`: the transaction is over, and the writer free again.
    fn step(&self, request: Request, ended: &Ended) -> bool {
        let before = self.writer.head();
        let (result, keep) = match &request.work {
            Work::Statement { sql, params, keep } => (self.db().prepare(sql).and_then(|p| self.run(p, params)), *keep),
            Work::Describe { sql, keep } => (self.db().describe(sql).map(Product::Description), *keep),
            Work::Mark { sql, keep } => (self.db().control(sql).map(|()| Product::Nothing), *keep),
            Work::Commit => (self.db().control("COMMIT").map(|()| Product::Nothing), false),
            Work::Rollback => {
                self.roll_back();
                (Ok(Product::Nothing), false)
            }
        };
        // With the drain's time over there is none to go back to a savepoint either.
        if result.is_err() && (!keep || self.writer.context.is_due()) {
            self.roll_back();
        }
        // Also where SQLite ended it by itself, as it does on a full or interrupted transaction.
        let over = self.db().is_autocommit();
        self.writer.context.leave();
        if over {
            self.writer.release(ended, None);
        }
        let seen = self.writer.head();
        let committed = (seen > before).then_some(seen);
        let result = result.map_err(|e| self.explain(e, &request.cancel));
        let Request { reply, under_way, .. } = request;
        let _ = reply.send(Answer { result, seen, committed, over, under_way });
        over
    }
}
