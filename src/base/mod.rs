//! The nouns, with their units: positions in the log, names, time, randomness, limits.
//!
//! Decides nothing. Everything above speaks in these types and no other module defines a second word for them.

mod gate;
mod ids;
mod layout;
mod limits;
mod pace;
mod position;
mod prng;
mod rules;
mod time;

pub use gate::{WhoWrites, WriteGate};
pub use ids::{Az, ClusterName, ConnId, CopyId, GroupId, LineageId, MemberId, NameError, RegionName};
pub use layout::{GROUPS_MAX, Layout, SEGMENT_PAGE_BYTES};
pub use limits::Limits;
pub use pace::Pace;
pub use position::{Epoch, Generation, LogEnd, Lsn, PageNo, Seq, TimelineId};
pub use prng::Prng;
pub use rules::{CommitRules, CommitsPause};
pub use time::{Instant, UnixMicros};
