//! The heads: engines that answer SQL on top of the log. `embedded` is SQLite on the volume's pages; `postgres` (the
//! user's own server) comes with its own issue and has its place here.
//!
//! A head sees the volume through two small traits and is told by the driver how far things are; it never sees a copy, a
//! quorum or another region.

pub use crate::base::WriteGate;

pub mod embedded;
pub mod sql;

use crate::base::{Lsn, PageNo};
use crate::log::Frame;
use bytes::Bytes;

/// Why a page could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PageError {
    #[error("no copy of this region can give page {} as of LSN {at}: {reason}", page.0)]
    Unavailable { page: PageNo, at: Lsn, reason: String },
    /// Its versions were folded together meanwhile: whoever looks at so old a state has looked for too long.
    #[error(
        "snapshot too old: the database as of LSN {at} is no longer kept, it begins at LSN {first} (limits.version_retain_bytes); begin a new transaction"
    )]
    TooOld { at: Lsn, first: Lsn },
}

/// Pages of the volume at an LSN. Called from SQL threads; may block for a moment, until some copy has the page as of `at`.
pub trait PageSource: Send + Sync + 'static {
    /// The page as of `at`, which lies at or below the VDL. It may be shorter than a page (the rest is zero) or empty (the
    /// page does not exist yet).
    ///
    /// # Errors
    /// When no copy can give it within a few seconds.
    fn page_at(&self, page: PageNo, at: Lsn) -> Result<Bytes, PageError>;
}

/// Where the writer hands its frames. Never waits for durability.
pub trait LogSink: Send + Sync + 'static {
    /// Takes over the frames of one mini-transaction, in the order of the pen that wrote them.
    fn submit(&self, frames: Vec<Frame>);
}

/// One row of `aurora_global_db_status()`, with the columns that Aurora PostgreSQL documents. `None` is SQL NULL: not known.
#[derive(Clone, Debug, Default)]
pub struct GlobalStatusRow {
    pub aws_region: String,
    pub highest_lsn_written: Option<i64>,
    /// -1 for the primary itself.
    pub durability_lag_in_msec: Option<i64>,
    pub rpo_lag_in_msec: Option<i64>,
    /// `2026-11-20 10:41:00.123456+00`
    pub last_lag_calculation_time: Option<String>,
    pub feedback_epoch: Option<i64>,
    pub feedback_xmin: Option<i64>,
}

/// One row of `aurora_global_db_instance_status()`.
#[derive(Clone, Debug, Default)]
pub struct InstanceStatusRow {
    pub server_id: String,
    /// `MASTER_SESSION_ID` for the writer.
    pub session_id: String,
    pub aws_region: String,
    pub durable_lsn: Option<i64>,
    pub highest_lsn_rcvd: Option<i64>,
    pub feedback_epoch: Option<i64>,
    pub feedback_xmin: Option<i64>,
    pub oldest_read_view_lsn: Option<i64>,
    /// -1 for the writer.
    pub visibility_lag_in_msec: Option<i64>,
}

/// What SQL may ask about the global cluster. Answers at once, from the last known state.
/// One row of `parhelion_events()`: what happened in the region that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventRow {
    /// Counts from 1 in each process.
    pub no: i64,
    pub at: Option<String>,
    pub aws_region: String,
    pub kind: String,
    pub epoch: i64,
    pub durable_lsn: Option<i64>,
    pub what: String,
    /// Of an operation.
    pub operation: Option<String>,
    pub actor: Option<String>,
    pub duration_in_msec: Option<i64>,
}

pub trait StatusSource: Send + Sync + 'static {
    /// Oldest first.
    fn events(&self) -> Vec<EventRow> {
        Vec::new()
    }
    fn global_status(&self) -> Vec<GlobalStatusRow>;
    fn instance_status(&self) -> Vec<InstanceStatusRow>;
}
