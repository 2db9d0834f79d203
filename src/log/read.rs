//! Answers to reads of the log and of pages, and where a seed begins: said between the volume, shipping and the node, which
//! do not know each other.

use super::{Frame, History};
use crate::base::{LineageId, LogEnd, Lsn, PageNo, Seq};
use bytes::Bytes;

#[derive(Debug)]
pub enum LogOutcome {
    Frames(Vec<Frame>),
    /// The log no longer reaches back that far.
    Trimmed {
        first: Seq,
    },
    Unreadable {
        reason: String,
    },
}

#[derive(Debug)]
pub enum PagesOutcome {
    Pages { at: Lsn, pages: Vec<(PageNo, Bytes)>, next: Option<PageNo> },
    Unreadable { reason: String },
}

/// Where a seeded copy, or a seeded region, begins.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SeedBase {
    pub lineage: LineageId,
    /// A consistency point: the pages are as of its `end_lsn`, the log goes on with the seq behind it.
    pub end: LogEnd,
    pub history: History,
}
