//! What clients connect to. `pg` speaks the PostgreSQL protocol; the HTTP API and the console have their place here too.
//!
//! An endpoint decides who gets in and how bytes become statements and values. It never decides what SQL means, what is
//! durable or who may write: for that it asks a [`SqlService`] for sessions and believes their answers. Driven by the
//! process that owns the ports.

mod embedded;
pub mod http;
pub mod metrics;
pub mod pg;
pub mod router;
pub mod text;

pub use crate::head::embedded::Port;
pub use embedded::EmbeddedService;

use crate::head::sql::{Description, Outcome, SqlError, TxMode, TxState, Value};
use async_trait::async_trait;

/// What statements that were fed came to, in their order, up to the first that failed.
#[derive(Debug, Default)]
pub struct Fed {
    /// Rows changed by each that worked.
    pub changed: Vec<u64>,
    pub failed: Option<SqlError>,
}

/// One client's conversation with an engine. One statement at a time. Dropping it rolls back what is open; dropping the
/// receiver of an [`Outcome::Rows`] stops the statement.
#[async_trait]
pub trait SqlSession: Send {
    fn tx(&self) -> TxState;

    /// Prepares one statement without running it.
    async fn describe(&mut self, sql: &str) -> Result<Description, SqlError>;

    /// Runs one statement. Outside a transaction it is its own transaction, durable when this returns `Done` or when the
    /// rows have come to their end.
    async fn execute(&mut self, sql: &str, params: Vec<Value>) -> Result<Outcome, SqlError>;

    /// Whether statements of the open transaction may be fed: their answers come from far away.
    fn feeds(&self) -> bool {
        false
    }

    /// Runs a statement, one of many in a transaction, whose rows nobody wants. It may still be under way when this returns; then
    /// what it came to is told by [`SqlSession::fed`]. An error is that of an earlier one, and stays until then.
    async fn feed(&mut self, sql: &str, params: Vec<Value>) -> Result<(), SqlError> {
        self.execute(sql, params).await.map(drop)
    }

    /// Waits for all that was fed.
    async fn fed(&mut self) -> Fed {
        Fed::default()
    }

    async fn begin(&mut self, mode: TxMode) -> Result<(), SqlError>;

    /// True: committed and durable. False: the transaction had failed and was rolled back instead.
    async fn commit(&mut self) -> Result<bool, SqlError>;

    /// Also fine when nothing is open.
    async fn rollback(&mut self) -> Result<(), SqlError>;

    async fn savepoint(&mut self, name: &str) -> Result<(), SqlError>;

    async fn release(&mut self, name: &str) -> Result<(), SqlError>;

    /// Also ends [`TxState::Failed`]; the savepoint stays.
    async fn rollback_to(&mut self, name: &str) -> Result<(), SqlError>;

    /// Asked right before what the session has answered leaves the process: whether it still may. An error ends the connection,
    /// and the answers go nowhere.
    fn may_answer(&mut self) -> Result<(), SqlError> {
        Ok(())
    }

    /// Interrupts the statement that runs now, from any thread (it then fails with 57014); does nothing when none runs.
    fn canceller(&self) -> Box<dyn Fn() + Send + Sync>;
}

/// Where an endpoint gets its sessions.
#[async_trait]
pub trait SqlService: Send + Sync {
    /// # Errors
    /// When no session can be given now (57P03, 53300 ...): the client is told and disconnected.
    async fn open(&self, port: Port) -> Result<Box<dyn SqlSession>, SqlError>;

    /// What a client is told about the instance behind the port when it logs in: `in_hot_standby` and
    /// `default_transaction_read_only`, each `on` or `off`.
    fn parameters(&self, port: Port) -> Vec<(String, String)>;
}
