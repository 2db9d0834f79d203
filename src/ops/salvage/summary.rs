//! A lost tail in figures: from where to where, how many commits, when, which pages.

use super::{Salvaged, TimelineId, name};
use crate::base::{PageNo, Seq, UnixMicros};
use crate::log::{Flags, redo};
use crate::ops::config::Config;
use crate::ops::failure::{FAILED, Failure};
use crate::ops::text;
use std::collections::BTreeSet;

/// So many of the pages are named.
const NAMED_PAGES_MAX: usize = 64;
const READ_BYTES: usize = 1 << 20;

/// The exact list of what was lost, but for the rows. `--json` is this.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LostTail {
    /// The archive's name.
    pub id: String,
    pub region: String,
    /// The reign that wrote it: of its last frame.
    pub old_epoch: u64,
    /// Both histories have everything up to here.
    pub base_seq: u64,
    pub lost_from_lsn: u64,
    /// The last state of the lost history that can be opened.
    pub lost_to_lsn: u64,
    pub lost_bytes: u64,
    /// Transactions of users that were committed there and are not in the history that goes on. Not all were answered: the last ones may
    /// not have been durable on four copies.
    pub lost_commits: u64,
    /// When the first and the last of what was lost was written, by the clock of the writer; null: nothing but control frames.
    pub lost_from_time: Option<String>,
    pub lost_to_time: Option<String>,
    pub lost_from_us: Option<i64>,
    pub lost_to_us: Option<i64>,
    /// Pages that were changed, and the first of them.
    pub pages: u64,
    pub first_pages: Vec<u32>,
    /// What was lost is kept from this seq on only, and what lies before is not in the figures; null: all of it is kept.
    pub kept_from_seq: Option<u64>,
    /// Frames behind the last whole transaction: never to be opened.
    pub torn_frames: u64,
}

/// # Errors
/// When it is not here, or damaged in all copies that have it.
pub fn summary(config: &Config, id: TimelineId) -> Result<LostTail, Failure> {
    let mut salvaged = Salvaged::open(config, id)?;
    let (base, end) = (salvaged.base(), salvaged.at());
    let mut pages: BTreeSet<PageNo> = BTreeSet::new();
    let (mut commits, mut torn) = (0, 0);
    let mut kept_from = Seq(0);
    let mut times: Option<(UnixMicros, UnixMicros)> = None;
    for (i, tail) in salvaged.tails.iter_mut().enumerate() {
        let mut next = Seq(0);
        let mut first = end.seq.next();
        loop {
            let frames = tail.frames(next, READ_BYTES).map_err(|e| Failure::new(FAILED, format!("archive {}: {e}", name(id))))?;
            let Some(last) = frames.last() else { break };
            next = last.seq().next();
            first = first.min(frames[0].seq());
            for frame in frames {
                let lost = frame.seq() <= end.seq;
                if i == 0 {
                    torn += u64::from(!lost);
                    commits += u64::from(lost && frame.header().flags.has(Flags::USER_COMMIT));
                    if lost && !frame.is_control() {
                        let at = frame.header().source_time;
                        times = Some(times.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
                    }
                }
                if lost && !frame.is_control() && !frame.is_elided() {
                    let payload = frame.payload();
                    let records = redo::records(&payload).map_err(|e| Failure::new(FAILED, format!("frame {}: {e}", frame.seq())))?;
                    pages.extend(records.iter().map(|r| r.page));
                }
            }
        }
        kept_from = kept_from.max(first);
    }
    let time = |at: Option<UnixMicros>| at.map(text::rfc3339);
    Ok(LostTail {
        id: name(id),
        region: config.region.to_string(),
        old_epoch: end.epoch.0,
        base_seq: base.seq.0,
        lost_from_lsn: base.end_lsn.0,
        lost_to_lsn: end.end_lsn.0,
        lost_bytes: end.end_lsn.bytes_since(base.end_lsn),
        lost_commits: commits,
        lost_from_time: time(times.map(|t| t.0)),
        lost_to_time: time(times.map(|t| t.1)),
        lost_from_us: times.map(|t| t.0.0).and_then(|us| i64::try_from(us).ok()),
        lost_to_us: times.map(|t| t.1.0).and_then(|us| i64::try_from(us).ok()),
        pages: pages.len() as u64,
        first_pages: pages.iter().take(NAMED_PAGES_MAX).map(|p| p.0).collect(),
        kept_from_seq: Some(kept_from.0).filter(|from| *from > base.seq.0 + 1 && base.seq < end.seq),
        torn_frames: torn,
    })
}
