//! `parhelion salvage`: what a region had that the history it follows now has not, opened to be looked at.
//!
//! A lost tail lies archived in the region's copies ([`crate::volume::ArchivedTail`]). Decides which copy of each group it is read from, and
//! how it is shown: as a read-only SQL database, as rows that differ from the present history ([`rows`]), as figures ([`summary`]).
//! Changes no file and takes no lock: whether the region runs makes no difference, but for what is to be kept no longer, which it is asked for
//! ([`dropping`]). Never decides what was lost.

mod dropping;
mod rows;
mod serve;
mod summary;
#[cfg(test)]
mod tests;

pub use dropping::drop_archive;
pub use rows::{Change, RowDiff, TableDiff, diff, touched};
pub use serve::serve;
pub use summary::{LostTail, summary};

use super::config::Config;
use super::failure::{FAILED, Failure, REFUSED, USAGE};
use super::text;
use crate::base::{GroupId, Limits, LogEnd, Lsn, MemberId, PageNo, Seq, TimelineId};
use crate::head::{PageError, PageSource};
use crate::io::sealing;
use crate::node::report::FailoverReport;
use crate::volume::identity::{Home, settle};
use crate::volume::membership::Incarnation;
use crate::volume::{ArchiveView, ArchivedTail, Copy, CopyReply, CopyRequest, Disk, OpenError, Overlay};
use bytes::Bytes;
use std::fmt::Write as _;
use std::sync::Arc;

/// Files of a running region change while they are opened: looked at so often.
const LOOKS: usize = 5;

/// An archive as it is typed and shown.
#[must_use]
pub fn name(id: TimelineId) -> String {
    format!("{:016x}", id.0)
}

/// What people have in their hands when they want a lost tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    Archive(TimelineId),
    /// The id of the failover that lost it, or its beginning: its record says which archive that is.
    Failover(String),
}

/// # Errors
/// When it is neither.
pub fn parse_name(typed: &str) -> Result<Named, String> {
    let hex = (1..=32).contains(&typed.len()) && typed.bytes().all(|b| b.is_ascii_hexdigit());
    let archive = u64::from_str_radix(typed, 16).ok().filter(|_| typed.len() == 16).map(TimelineId);
    match archive {
        _ if !hex => Err(format!("'{typed}' names no archive and no failover; `parhelion salvage --config FILE` lists archives")),
        Some(id) => Ok(Named::Archive(id)),
        None => Ok(Named::Failover(typed.to_ascii_lowercase())),
    }
}

/// The archive of what a failover lost, as its record has it; it must be one of the region of `config`.
///
/// # Errors
/// When nothing was lost, or its copies are elsewhere.
pub fn archive_of(config: &Config, record: &FailoverReport) -> Result<TimelineId, Failure> {
    let Some(archive) = &record.archive else {
        return Err(Failure::new(REFUSED, format!("failover {} lost nothing: there is no archive of it", record.id)));
    };
    if record.from != config.region {
        let what = format!(
            "what failover {} lost is kept by copies of {}, and {} is the file of {}",
            record.id,
            record.from,
            config.file.display(),
            config.region
        );
        return Err(Failure::new(REFUSED, what).hint(format!("where that region lives: --config <the file of {}>", record.from)));
    }
    match parse_name(archive) {
        Ok(Named::Archive(id)) => Ok(id),
        _ => Err(Failure::new(FAILED, format!("the record names archive '{archive}'; is that region the same version of parhelion?"))),
    }
}

/// A copy that cannot be read is left out; one that is not sealed with the region's key ends it.
fn disks(config: &Config, group: GroupId) -> Result<Vec<Arc<dyn Disk>>, Failure> {
    let key = config.key()?;
    let dirs = MemberId::of(group).map(|m| config.data_dir.join("copies").join(m.to_string()));
    let open = |dir: &std::path::PathBuf| match sealing::look(dir, key.as_deref()) {
        Err(OpenError::Key(sentence)) => Some(Err(Failure::new(FAILED, sentence))),
        other => other.ok().map(Ok),
    };
    dirs.iter().filter(|dir| dir.is_dir()).filter_map(open).collect()
}

/// The lost tails that the region of `config` keeps, each as far as the copy reaches that has most of it.
///
/// # Errors
/// When there are no copies here.
pub fn list(config: &Config) -> Result<Vec<ArchiveView>, Failure> {
    let disks = disks(config, GroupId(0))?;
    if disks.is_empty() {
        return Err(Failure::new(FAILED, format!("there are no copies in {}", config.data_dir.display()))
            .hint("run this where the region lives; data_dir in its file says where the copies are"));
    }
    let mut all: Vec<ArchiveView> = Vec::new();
    for archive in disks.iter().flat_map(|d| ArchivedTail::list(d).unwrap_or_default()) {
        match all.iter_mut().find(|a| a.id == archive.id) {
            Some(known) if known.end >= archive.end => {}
            Some(known) => *known = archive,
            None => all.push(archive),
        }
    }
    all.sort_by_key(|a| (a.base.seq, a.id));
    Ok(all)
}

/// A lost tail, open in all groups. Its pages are a [`PageSource`].
pub struct Salvaged {
    config: Config,
    /// One for each group.
    tails: Vec<ArchivedTail>,
}

impl Salvaged {
    /// # Errors
    /// When no copy of some group has it, or it is damaged in all that do.
    pub fn open(config: &Config, id: TimelineId) -> Result<Salvaged, Failure> {
        let tails: Result<Vec<ArchivedTail>, Failure> = config.layout.all_groups().map(|g| open_tail(config, g, id)).collect();
        Ok(Salvaged { config: config.clone(), tails: tails? })
    }

    /// The last position that all groups can be read at: the end of what was lost.
    #[must_use]
    pub fn at(&self) -> LogEnd {
        self.tails.iter().map(|t| t.view().consistent).min_by_key(|c| c.seq).expect("BUG: there is a group")
    }

    /// What both histories have.
    #[must_use]
    pub fn base(&self) -> LogEnd {
        self.tails[0].view().base
    }
}

fn open_tail(config: &Config, group: GroupId, id: TimelineId) -> Result<ArchivedTail, Failure> {
    let mut why = None;
    let mut best: Option<ArchivedTail> = None;
    for disk in disks(config, group)? {
        let listed = ArchivedTail::list(&disk).unwrap_or_default().into_iter().find(|a| a.id == id);
        let Some(view) = listed.filter(|view| best.as_ref().is_none_or(|b| view.end > b.view().end)) else { continue };
        match ArchivedTail::open(&disk, view.id) {
            Ok(tail) => best = Some(tail),
            Err(e) => why = Some(e.to_string()),
        }
    }
    best.ok_or_else(|| {
        let of = if config.layout.groups > 1 { format!(" of protection group {group}") } else { String::new() };
        let why = why.map_or_else(|| format!("no copy{of} here keeps archive {}", name(id)), |e| format!("archive {}: {e}", name(id)));
        Failure::new(REFUSED, why).hint(format!("list them: parhelion salvage --config {}", config.file.display()))
    })
}

impl PageSource for Salvaged {
    fn page_at(&self, page: PageNo, at: Lsn) -> Result<Bytes, PageError> {
        let tail = &self.tails[self.config.layout.group_of(page).index()];
        tail.pages().read(page, at).map_err(|e| PageError::Unavailable { page, at, reason: e.to_string() })
    }
}

/// The history that the region follows now, as its files have it. Its pages are a [`PageSource`].
pub struct Present {
    config: Config,
    /// One for each group.
    copies: Vec<Copy>,
    at: LogEnd,
}

impl Present {
    /// # Errors
    /// When the copies cannot be opened, or have nothing in common.
    pub fn open(config: &Config) -> Result<Present, Failure> {
        let copies: Result<Vec<Copy>, Failure> = config.layout.all_groups().map(|g| open_present(config, g)).collect();
        let mut copies = copies?;
        let at = copies.iter().map(|c| c.state().consistent).min_by_key(|c| c.seq).expect("BUG: there is a group");
        for copy in &mut copies {
            let generation = copy.promised();
            let vdl = CopyRequest::Append { generation, frames: Vec::new(), vdl: at, horizon: Lsn(0), trim: Seq(0), gate: None };
            let mut replies: Vec<CopyReply> = Vec::new();
            copy.handle(vdl, &mut replies);
            copy.flush(&mut replies);
            while copy.ingest(&mut replies) {}
            if copy.pages().ingested() < at.end_lsn {
                return Err(Failure::new(FAILED, "the groups' copies are on different histories; wait until the region has caught up"));
            }
        }
        Ok(Present { config: config.clone(), copies, at })
    }

    #[must_use]
    pub fn at(&self) -> LogEnd {
        self.at
    }
}

impl PageSource for Present {
    fn page_at(&self, page: PageNo, at: Lsn) -> Result<Bytes, PageError> {
        let copy = &self.copies[self.config.layout.group_of(page).index()];
        copy.pages().read(page, at).map_err(|e| PageError::Unavailable { page, at, reason: e.to_string() })
    }
}

/// The copy whose log would be gone on with: one that was away when the others went back still has the lost tail.
fn open_present(config: &Config, group: GroupId) -> Result<Copy, Failure> {
    let key = config.key()?;
    let mut best: Option<Copy> = None;
    let mut why = format!("there are no copies of protection group {group} in {}", config.data_dir.display());
    for member in MemberId::of(group) {
        let dir = config.data_dir.join("copies").join(member.to_string());
        let home = Home { cluster: config.cluster.clone(), region: config.region.clone(), group: group.0, slot: member.copy };
        for look in 0..LOOKS {
            let disk = match sealing::look(&dir, key.as_deref()) {
                Ok(disk) => disk,
                Err(e @ OpenError::Key(_)) => return Err(Failure::new(FAILED, e.to_string())),
                Err(_) => break,
            };
            let overlay = Arc::new(Overlay::new(disk));
            // As much in memory as it takes: nothing is written.
            let limits = Limits { memtable_bytes_max: usize::MAX, ..Limits::default() };
            match settle(&*overlay, &home, Incarnation::UNKNOWN).and_then(|_| Copy::open_group(group, overlay, &limits)) {
                Ok(copy) => {
                    if best.as_ref().is_none_or(|b| copy.state().rank() > b.state().rank()) {
                        best = Some(copy);
                    }
                    break;
                }
                // Its files changed meanwhile, perhaps.
                Err(OpenError::Damaged { .. }) if look + 1 < LOOKS => {}
                Err(e) => {
                    why = format!("copy {member}: {e}");
                    break;
                }
            }
        }
    }
    best.ok_or_else(|| Failure::new(FAILED, why))
}

/// What to do with an archive.
pub enum What {
    Summary,
    Diff { table: String },
}

/// The verb, but for serving.
///
/// # Errors
/// [`Failure`]
pub fn run(
    config: &Config,
    id: Option<TimelineId>,
    what: &What,
    json: bool,
    say: impl FnOnce(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(id) = id else {
        if matches!(what, What::Diff { .. }) {
            return Err(Failure::new(USAGE, "say which archive: parhelion salvage ID --diff TABLE"));
        }
        let all: Result<Vec<LostTail>, Failure> = list(config)?.iter().map(|a| summary(config, a.id)).collect();
        let all = all?;
        return say(&if json { as_json(&all) } else { render_list(&all) });
    };
    match what {
        What::Summary => {
            let lost = summary(config, id)?;
            say(&if json { as_json(&lost) } else { render_list(&[lost]) })
        }
        What::Diff { table } => {
            let diff = diff(config, id, table)?;
            say(&if json { as_json(&diff) } else { rows::render(&diff) })
        }
    }
}

fn as_json<T: serde::Serialize>(value: &T) -> String {
    format!("{}\n", serde_json::to_string(value).expect("BUG: plain data becomes JSON"))
}

fn render_list(all: &[LostTail]) -> String {
    if all.is_empty() {
        return "this region keeps no lost tail\n".to_owned();
    }
    let row = |t: &LostTail| {
        let time = |at: &Option<String>| at.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            t.id.clone(),
            t.old_epoch.to_string(),
            t.lost_from_lsn.to_string(),
            t.lost_to_lsn.to_string(),
            t.lost_commits.to_string(),
            time(&t.lost_from_time),
            time(&t.lost_to_time),
            t.pages.to_string(),
        ]
    };
    let mut out = text::table(
        &["archive", "epoch", "from LSN", "to LSN", "commits", "from", "to", "pages"],
        &[1, 2, 3, 4, 7],
        all.iter().map(row).collect(),
    );
    let _ = writeln!(out, "open one: parhelion salvage ARCHIVE --config FILE --listen 127.0.0.1:PORT");
    out
}
