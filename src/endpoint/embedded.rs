//! The embedded head behind the endpoints: its sessions as the endpoint's sessions.

use super::{Port, SqlService, SqlSession};
use crate::head::embedded::{Engine, Session};
use crate::head::sql::{Description, Outcome, SqlError, TxMode, TxState, Value};
use async_trait::async_trait;
use std::sync::Arc;

pub struct EmbeddedService {
    engine: Arc<Engine>,
}

impl EmbeddedService {
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> EmbeddedService {
        EmbeddedService { engine }
    }
}

#[async_trait]
impl SqlService for EmbeddedService {
    async fn open(&self, port: Port) -> Result<Box<dyn SqlSession>, SqlError> {
        Ok(Box::new(self.engine.session(port)))
    }

    fn parameters(&self, port: Port) -> Vec<(String, String)> {
        let writes = port == Port::Writer && self.engine.has_writer();
        let on_off = |on: bool| if on { "on" } else { "off" }.to_owned();
        vec![
            ("in_hot_standby".to_owned(), on_off(!self.engine.has_writer())),
            ("default_transaction_read_only".to_owned(), on_off(!writes)),
        ]
    }
}

#[async_trait]
impl SqlSession for Session {
    fn tx(&self) -> TxState {
        Session::tx(self)
    }

    async fn describe(&mut self, sql: &str) -> Result<Description, SqlError> {
        Session::describe(self, sql).await
    }

    async fn execute(&mut self, sql: &str, params: Vec<Value>) -> Result<Outcome, SqlError> {
        Session::execute(self, sql, params).await
    }

    async fn begin(&mut self, mode: TxMode) -> Result<(), SqlError> {
        Session::begin(self, mode).await
    }

    async fn commit(&mut self) -> Result<bool, SqlError> {
        Session::commit(self).await
    }

    async fn rollback(&mut self) -> Result<(), SqlError> {
        Session::rollback(self).await
    }

    async fn savepoint(&mut self, name: &str) -> Result<(), SqlError> {
        Session::savepoint(self, name).await
    }

    async fn release(&mut self, name: &str) -> Result<(), SqlError> {
        Session::release(self, name).await
    }

    async fn rollback_to(&mut self, name: &str) -> Result<(), SqlError> {
        Session::rollback_to(self, name).await
    }

    fn may_answer(&mut self) -> Result<(), SqlError> {
        Session::may_answer(self)
    }

    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let canceller = Session::canceller(self);
        Box::new(move || canceller.cancel())
    }
}
