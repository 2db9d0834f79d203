//! `parhelion volume verify`: the copies of a region as they lie in their files, and where they differ.
//!
//! Decides which copies are compared at which position, and what to tell an operator. Changes no file and takes no lock: a copy is read through
//! a view of its directory, and opened over memory as it would open. Whether the region runs makes no difference; a running one goes
//! on writing meanwhile. What a file is, and whether it is intact, the volume decides. Never asks another machine: copies in other
//! processes are verified where they live, with the files of those processes.

use super::config::{Config, ConfigError};
use super::copy::config::CopyConfig;
use super::failure::{FAILED, Failure};
use super::text;
use crate::base::{ClusterName, CopyId, GROUPS_MAX, GroupId, Limits, LogEnd, Lsn, MemberId, PageNo, RegionName, Seq};
use crate::io::copies::places::Places;
use crate::io::sealing::{self, Key};
use crate::volume::identity::{Home, settle};
use crate::volume::membership::Incarnation;
use crate::volume::{Copy, CopyReply, CopyRequest, Digest, Disk, FileDamage, OpenError, Overlay, Verdict, judge, verify_files};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pages of one comparison.
const RANGE_PAGES: u32 = 256;
/// So many differing pages of a copy are named.
const NAMED_PAGES_MAX: usize = 20;
/// The files of a running copy are looked at again so often when they changed while it was opened.
const LOOKS: usize = 5;

/// What a process has of a region's copies, and where.
#[derive(Debug)]
pub struct Site {
    file: PathBuf,
    cluster: ClusterName,
    region: RegionName,
    data_dir: PathBuf,
    key: Option<Arc<Key>>,
    places: Places,
    /// Those that live here, of all groups that are known of.
    here: Vec<MemberId>,
    groups: u32,
    /// Where the others are, as far as the file says that.
    elsewhere: BTreeMap<CopyId, String>,
}

impl Site {
    /// From the file of a region, or of a process of copies: which of them it is, it says itself.
    ///
    /// # Errors
    /// [`ConfigError`]: neither of them, or the key or the note of places cannot be read.
    pub fn load(file: &Path) -> Result<Site, ConfigError> {
        let Ok(config) = CopyConfig::load(file) else { return Site::of(&Config::load(file)?) };
        let places = places(&config.data_dir)?;
        let here = |m: &MemberId| config.copies.contains(&m.copy);
        // The region's file has their number: here there are as many as there are directories.
        let there = MemberId::all(GROUPS_MAX).filter(here).filter(|m| places.directory(*m).is_dir());
        let groups = there.map(|m| m.group.0 + 1).max().unwrap_or(1);
        Ok(Site {
            here: MemberId::all(groups).filter(here).collect(),
            key: config.key()?,
            file: config.file,
            cluster: config.cluster,
            region: config.region,
            data_dir: config.data_dir,
            places,
            groups,
            elsewhere: BTreeMap::new(),
        })
    }

    /// # Errors
    /// As [`Site::load`].
    pub fn of(config: &Config) -> Result<Site, ConfigError> {
        let groups = config.layout.groups;
        Ok(Site {
            file: config.file.clone(),
            cluster: config.cluster.clone(),
            region: config.region.clone(),
            data_dir: config.data_dir.clone(),
            key: config.key()?,
            places: places(&config.data_dir)?,
            here: MemberId::all(groups).filter(|m| !config.copies.contains_key(&m.copy)).collect(),
            groups,
            elsewhere: config.copies.clone(),
        })
    }

    /// Whether all of the region's copies live here: only then what one of them lacks can be judged.
    fn has_all(&self) -> bool {
        self.here.len() == MemberId::all(self.groups).count()
    }
}

fn places(data_dir: &Path) -> Result<Places, ConfigError> {
    let copies = data_dir.join("copies");
    Places::load(&copies).map_err(|e| ConfigError::Key(format!("{} cannot be read: {e}", copies.display())))
}

/// The answer; `--json` is exactly this.
#[derive(Debug, serde::Serialize)]
pub struct VerifyReport {
    pub region: String,
    /// All copies that live here are there and intact, and those that could be compared are the same.
    pub intact: bool,
    pub copies: Vec<CopyVerdict>,
    /// One for each protection group.
    pub comparisons: Vec<Comparison>,
    /// Directories that were damaged and moved aside.
    pub aside: Vec<PathBuf>,
    /// What to do, in sentences.
    pub next: Vec<String>,
}

#[derive(Debug, serde::Serialize)]
pub struct CopyVerdict {
    pub name: String,
    pub az: String,
    /// `intact`, `damaged`, `missing` (no directory), `empty` (new, while others have data or are not here), `elsewhere` (not looked at).
    pub state: &'static str,
    /// The address of the process that has it, where it is elsewhere.
    pub elsewhere: Option<String>,
    /// Where it lies, when it lives here.
    pub directory: Option<PathBuf>,
    pub files: u64,
    pub bytes: u64,
    pub damage: Vec<Damaged>,
    /// Its last frame that is readable and fsynced; null where that cannot be known.
    pub seq: Option<u64>,
    pub lsn: Option<u64>,
    /// Its last consistency point.
    pub consistent_lsn: Option<u64>,
    /// The newest generation that may write there.
    pub generation: Option<u64>,
    /// Frames that the furthest intact copy of its group has more.
    pub behind_frames: Option<u64>,
}

#[derive(Debug, serde::Serialize)]
pub struct Damaged {
    pub file: String,
    /// In the file; null where it is the file as a whole.
    pub offset: Option<u64>,
    pub reason: String,
}

#[derive(Debug, serde::Serialize)]
pub struct Comparison {
    pub group: u32,
    /// The consistency point at which they were compared; null: fewer than two can be read at a common one.
    pub at_lsn: Option<u64>,
    pub compared: Vec<String>,
    pub pages: u64,
    pub differ: Vec<Difference>,
    /// They differ, and no majority says which are right.
    pub undecided: bool,
}

/// A copy that has other pages, or another log, than most.
#[derive(Debug, serde::Serialize)]
pub struct Difference {
    pub copy: String,
    /// The first of them.
    pub pages: Vec<u32>,
    /// Its log at the common position is not that of the others.
    pub other_log: bool,
}

/// A copy that could be opened.
struct Opened {
    member: MemberId,
    copy: Copy,
    consistent: LogEnd,
}

/// Reads everything. Memory: what is not in layers yet, for each copy.
///
/// # Errors
/// When a copy is not sealed with the key: then nothing can be said of what it holds.
pub fn verify(site: &Site) -> Result<VerifyReport, Failure> {
    let key = site.key.as_deref();
    let mut copies = Vec::new();
    let mut opened = Vec::new();
    sealing::check(site.here.iter().map(|m| site.places.directory(*m)), key).map_err(ConfigError::Key)?;
    for member in MemberId::all(site.groups) {
        if site.here.contains(&member) {
            let (verdict, copy) = look_at(site, key, member);
            copies.push(verdict);
            opened.extend(copy);
        } else if let Some(address) = site.elsewhere.get(&member.copy) {
            copies.push(CopyVerdict { state: "elsewhere", elsewhere: Some(address.clone()), ..CopyVerdict::of(member) });
        }
    }
    // Beside copies with data an empty one is not as it should be, and what copies elsewhere have is not known.
    if site.has_all() && !copies.iter().any(|c| c.state == "intact" || c.state == "damaged") {
        for copy in copies.iter_mut().filter(|c| c.state == "empty") {
            copy.state = "intact";
        }
    }
    let mut comparisons = Vec::new();
    for group in (0..site.groups).map(GroupId) {
        let mut own: Vec<Opened> = Vec::new();
        let mut rest = Vec::new();
        for o in opened {
            if o.member.group == group { own.push(o) } else { rest.push(o) }
        }
        opened = rest;
        let furthest = own.iter().map(|o| o.copy.state().end.seq).max().unwrap_or(Seq::ZERO);
        for o in &own {
            let name = o.member.to_string();
            let verdict = copies.iter_mut().find(|c| c.name == name).expect("BUG: what was opened was looked at");
            verdict.behind_frames = Some(furthest.0 - o.copy.state().end.seq.0);
        }
        comparisons.push(compare(group, &mut own));
    }
    let aside = aside(site);
    let differ = comparisons.iter().any(|c| !c.differ.is_empty() || c.undecided);
    let intact = copies.iter().all(|c| !c.is_bad()) && !differ;
    let next = what_next(site, &copies, &comparisons);
    Ok(VerifyReport { region: site.region.to_string(), intact, copies, comparisons, aside, next })
}

impl CopyVerdict {
    fn of(member: MemberId) -> CopyVerdict {
        CopyVerdict {
            name: member.to_string(),
            az: member.copy.az().to_string(),
            state: "missing",
            elsewhere: None,
            directory: None,
            files: 0,
            bytes: 0,
            damage: Vec::new(),
            seq: None,
            lsn: None,
            consistent_lsn: None,
            generation: None,
            behind_frames: None,
        }
    }

    /// It lives here and is not as it should be.
    fn is_bad(&self) -> bool {
        self.state != "intact" && self.state != "elsewhere"
    }
}

fn look_at(site: &Site, key: Option<&Key>, member: MemberId) -> (CopyVerdict, Option<Opened>) {
    let mut dir = site.places.directory(member);
    let mut verdict = CopyVerdict { directory: Some(dir.clone()), ..CopyVerdict::of(member) };
    if !dir.is_dir() {
        return (verdict, None);
    }
    let mut outcome = None;
    for _ in 0..LOOKS {
        let disk: Arc<dyn Disk> = match sealing::look(&dir, key) {
            Ok(disk) => disk,
            Err(OpenError::Damaged { what, reason }) => {
                outcome = Some((vec![damaged(&what, None, reason)], None));
                break;
            }
            Err(e) => {
                outcome = Some((vec![damaged(".", None, e.to_string())], None));
                break;
            }
        };
        let files = verify_files(&disk);
        (verdict.files, verdict.bytes) = (files.files, files.bytes);
        if files.empty {
            verdict.state = "empty";
            return (verdict, None);
        }
        let damage: Vec<Damaged> =
            files.damage.into_iter().map(|FileDamage { file, offset, reason }| damaged(&file, offset, reason)).collect();
        // As much in memory as it takes: nothing is written.
        let limits = Limits { memtable_bytes_max: usize::MAX, ..Limits::default() };
        let home = Home { cluster: site.cluster.clone(), region: site.region.clone(), group: member.group.0, slot: member.copy };
        let overlay = Arc::new(Overlay::new(disk));
        match settle(&*overlay, &home, Incarnation::UNKNOWN).and_then(|_| Copy::open(overlay, &limits)) {
            Ok(copy) => {
                copy.pages().trust();
                outcome = Some((damage, Some(copy)));
                break;
            }
            // The note of where it lives was lost: the mark says where it lived then, and a copy that is opened follows it as well.
            Err(OpenError::Replaced { place, .. }) if Path::new(&place).is_dir() => {
                dir = PathBuf::from(place);
                verdict.directory = Some(dir.clone());
                outcome =
                    Some((vec![damaged(".", None, "it was replaced again and again; parhelion copy list says where it lives")], None));
            }
            Err(e) => {
                let settled = !damage.is_empty();
                let e = match e {
                    OpenError::Damaged { what, reason } => damaged(&what, None, reason),
                    e => damaged(".", None, e.to_string()),
                };
                outcome = Some((if settled { damage } else { vec![e] }, None));
                if settled {
                    break;
                }
            }
        }
    }
    let (damage, copy) = outcome.expect("BUG: it was looked at");
    verdict.damage = damage;
    verdict.state = if verdict.damage.is_empty() { "intact" } else { "damaged" };
    let Some(copy) = copy else { return (verdict, None) };
    let state = copy.state();
    verdict.seq = Some(state.end.seq.0);
    verdict.lsn = Some(state.end.end_lsn.0);
    verdict.consistent_lsn = Some(state.consistent.end_lsn.0);
    verdict.generation = Some(copy.promised().0);
    // What is damaged is not compared: it is to be rebuilt whatever that would show.
    let usable = verdict.damage.is_empty();
    (verdict, usable.then_some(Opened { member, copy, consistent: state.consistent }))
}

fn damaged(file: &str, offset: Option<u64>, reason: impl Into<String>) -> Damaged {
    Damaged { file: file.to_owned(), offset, reason: reason.into() }
}

/// The position at which most can be read; of several the newest.
fn common(own: &[Opened]) -> Option<LogEnd> {
    let readable = |o: &Opened, at: &LogEnd| o.copy.pages().first_readable() <= at.end_lsn && at.seq <= o.consistent.seq;
    own.iter()
        .map(|o| o.consistent)
        .filter(|at| *at != LogEnd::EMPTY)
        .max_by_key(|at| (own.iter().filter(|o| readable(o, at)).count(), at.seq))
}

fn compare(group: GroupId, own: &mut [Opened]) -> Comparison {
    let mut out = Comparison { group: group.0, at_lsn: None, compared: Vec::new(), pages: 0, differ: Vec::new(), undecided: false };
    let Some(at) = common(own) else { return out };
    let mut logs: Vec<(CopyId, u32)> = Vec::new();
    let mut able = Vec::new();
    for o in own.iter_mut() {
        if o.copy.pages().first_readable() > at.end_lsn || at.seq > o.consistent.seq {
            continue;
        }
        // Its own frame at that position; its log may be another one.
        let mut own_at = at;
        if let Some(CopyReply::Log { frames, .. }) = ask(&mut o.copy, CopyRequest::ReadLog { id: 1, from: at.seq, bytes_max: 1 }).pop()
            && let Some(frame) = frames.first()
        {
            own_at = frame.log_end();
        }
        logs.push((o.member.copy, own_at.checksum));
        let vdl = CopyRequest::Append {
            generation: o.copy.promised(),
            frames: Vec::new(),
            vdl: own_at,
            horizon: Lsn(0),
            trim: Seq(0),
            gate: None,
        };
        let mut replies = ask(&mut o.copy, vdl);
        o.copy.flush(&mut replies);
        while o.copy.ingest(&mut replies) {}
        able.push(o);
    }
    out.at_lsn = (able.len() > 1).then_some(at.end_lsn.0);
    out.compared = able.iter().map(|o| o.member.to_string()).collect();
    if able.len() < 2 {
        return out;
    }
    let name = |copy: CopyId| MemberId { group, copy }.to_string();
    let as_digests: Vec<(CopyId, Digest)> =
        logs.iter().map(|(c, sum)| (*c, Digest { hash: u64::from(*sum), pages: 0, bytes: 0, next: None })).collect();
    match judge(&as_digests) {
        Verdict::Same => {}
        Verdict::Odd(odd) => out.differ.extend(odd.into_iter().map(|c| Difference { copy: name(c), pages: Vec::new(), other_log: true })),
        Verdict::Undecided => out.undecided = true,
    }
    let mut from = Some(PageNo(0));
    while let Some(first) = from {
        let answers = digests(&mut able, at.end_lsn, first, RANGE_PAGES);
        out.pages += answers.iter().map(|(_, d)| u64::from(d.pages)).max().unwrap_or(0);
        from = answers.iter().filter_map(|(_, d)| d.next).filter(|n| *n > first).min();
        if judge(&answers) == Verdict::Same {
            continue;
        }
        for page in first.0..first.0.saturating_add(RANGE_PAGES) {
            // What lies behind the page is another page's matter.
            let mut one = digests(&mut able, at.end_lsn, PageNo(page), 1);
            one.iter_mut().for_each(|(_, d)| d.next = None);
            match judge(&one) {
                Verdict::Same => {}
                Verdict::Undecided => out.undecided = true,
                Verdict::Odd(odd) => odd.into_iter().for_each(|c| note(&mut out.differ, name(c), page)),
            }
        }
    }
    out
}

fn note(differ: &mut Vec<Difference>, copy: String, page: u32) {
    let i = differ.iter().position(|d| d.copy == copy).unwrap_or_else(|| {
        differ.push(Difference { copy, pages: Vec::new(), other_log: false });
        differ.len() - 1
    });
    if differ[i].pages.len() < NAMED_PAGES_MAX {
        differ[i].pages.push(page);
    }
}

fn ask(copy: &mut Copy, request: CopyRequest) -> Vec<CopyReply> {
    let mut replies = Vec::new();
    copy.handle(request, &mut replies);
    replies
}

fn digests(able: &mut [&mut Opened], at: Lsn, from: PageNo, pages_max: u32) -> Vec<(CopyId, Digest)> {
    let one = |o: &mut &mut Opened| {
        let digest = o.copy.pages().digest(at, from, pages_max);
        digest.ok().map(|d| (o.member.copy, d))
    };
    able.iter_mut().filter_map(one).collect()
}

/// Beside each copy that lives here.
fn aside(site: &Site) -> Vec<PathBuf> {
    let homes: BTreeSet<PathBuf> = site.here.iter().filter_map(|m| site.places.directory(*m).parent().map(Path::to_path_buf)).collect();
    let entries = homes.into_iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flat_map(Iterator::flatten).map(|e| e.path());
    let mut all: Vec<PathBuf> = entries.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().contains(".damaged-"))).collect();
    all.sort();
    all
}

fn what_next(site: &Site, copies: &[CopyVerdict], comparisons: &[Comparison]) -> Vec<String> {
    let mut next = Vec::new();
    for group in (0..site.groups).map(GroupId) {
        let of_group: Vec<&CopyVerdict> =
            site.here.iter().filter(|m| m.group == group).filter_map(|m| copies.iter().find(|c| c.name == m.to_string())).collect();
        let (intact, all) = (of_group.iter().filter(|c| c.state == "intact").count(), of_group.len());
        if intact == all {
            continue;
        }
        if all < 6 {
            next.push(format!(
                "{intact} of the {all} copies that live here are intact: what is damaged, missing or empty is rebuilt from the region's others while it \
                 runs, if three of the six are intact; verify those elsewhere with the files of their processes"
            ));
        } else if intact >= 3 {
            next.push(format!(
                "{intact} of 6 copies are intact: start the region if it is stopped; what is damaged, missing or empty is rebuilt from the others by \
                 itself (a damaged file that is only read now and then when the scrub meets it, see scrub_every_s in [volume])"
            ));
        } else {
            next.push(format!(
                "only {intact} of 6 copies are intact and a region starts with 3: bring back directories of missing copies, or those that were moved \
                 aside (*.damaged-*). In a secondary you may instead move all six away: it is seeded from the primary"
            ));
        }
    }
    for comparison in comparisons {
        for odd in &comparison.differ {
            let what = if odd.other_log { "another log" } else { "other pages" };
            let directory = copies.iter().find(|c| c.name == odd.copy).and_then(|c| c.directory.as_deref()).unwrap_or(Path::new(""));
            next.push(format!(
                "copy {} has {what} than most: the scrub of a running region finds that and rebuilds it. To do it now: stop the region, move the \
                 directory {} away, start the region",
                odd.copy,
                directory.display()
            ));
        }
        if comparison.undecided {
            next.push("the copies differ and no majority agrees: keep all directories as they are and compare with another region".into());
        }
        if comparison.at_lsn.is_none() && site.here.len() > 1 && copies.iter().any(|c| c.state == "intact") {
            next.push("fewer than two copies can be read at a common position: nothing was compared".into());
        }
    }
    if !site.has_all() {
        next.push(
            "copies in other processes were not looked at: on each of their machines, parhelion volume verify --config with the file of that process"
                .into(),
        );
    }
    next
}

/// For a person.
#[must_use]
pub fn render(report: &VerifyReport) -> String {
    let mut out = format!("region {}\n\n", report.region);
    let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let rows = report.copies.iter().map(|c| {
        if let Some(address) = &c.elsewhere {
            let nothing = || "-".to_owned();
            return vec![
                c.name.clone(),
                c.az.clone(),
                c.state.to_owned(),
                nothing(),
                nothing(),
                nothing(),
                nothing(),
                format!("elsewhere: {address}"),
            ];
        }
        let behind = c.behind_frames.filter(|n| *n > 0).map_or(String::new(), |n| format!("{n} frames behind"));
        vec![
            c.name.clone(),
            c.az.clone(),
            c.state.to_owned(),
            c.files.to_string(),
            text::bytes(c.bytes),
            number(c.seq),
            number(c.lsn),
            behind,
        ]
    });
    out.push_str(&text::table(&["COPY", "AZ", "STATE", "FILES", "READ", "SEQ", "LSN", ""], &[3, 4, 5, 6], rows.collect()));
    out.push('\n');
    for copy in &report.copies {
        for d in &copy.damage {
            let at = d.offset.map_or(String::new(), |o| format!(" at offset {o}"));
            let _ = writeln!(out, "! {}: {}{at}: {}", copy.name, d.file, d.reason);
        }
    }
    for c in &report.comparisons {
        let group = if report.comparisons.len() > 1 { format!("group {}: ", c.group) } else { String::new() };
        if let Some(at) = c.at_lsn {
            let same = if c.differ.is_empty() && !c.undecided { ": all the same" } else { "" };
            let _ = writeln!(out, "{group}{} compared at LSN {at}, {} pages{same}", c.compared.join(" "), c.pages);
        }
        for d in &c.differ {
            let pages: Vec<String> = d.pages.iter().map(ToString::to_string).collect();
            let more = if d.pages.len() == NAMED_PAGES_MAX { " ..." } else { "" };
            let _ = match d.other_log {
                true => writeln!(out, "! {group}copy {} has another log there", d.copy),
                false => writeln!(out, "! {group}copy {} has other pages than most: {}{more}", d.copy, pages.join(" ")),
            };
        }
    }
    for dir in &report.aside {
        let _ = writeln!(out, "moved aside as damaged earlier: {}", dir.display());
    }
    for sentence in &report.next {
        let _ = writeln!(out, "next: {sentence}");
    }
    let looked_at = report.copies.iter().filter(|c| c.elsewhere.is_none()).count();
    match (report.intact, looked_at) {
        (false, _) => {}
        (true, 0) => out.push_str("no copy lives here: nothing was read\n"),
        (true, n) if n % 6 == 0 => out.push_str("all copies are intact\n"),
        (true, n) => {
            let _ = writeln!(out, "all {n} copies that live here are intact");
        }
    }
    out
}

/// The verb: the report goes to stdout, and damage is a failure.
///
/// # Errors
/// When something is damaged, missing or different, or there is nothing to look at.
pub fn run(file: &Path, json: bool, say: impl FnOnce(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    let site = Site::load(file)?;
    if !site.here.is_empty() && !site.data_dir.join("copies").is_dir() {
        return Err(Failure::new(FAILED, format!("there are no copies in {}", site.data_dir.display())).hint(format!(
            "run this where they live, or start the process of {} once; data_dir in that file says where the copies are",
            site.file.display()
        )));
    }
    let report = verify(&site)?;
    let shown = if json { format!("{}\n", serde_json::to_string(&report).expect("BUG: plain data becomes JSON")) } else { render(&report) };
    say(&shown)?;
    if report.intact {
        return Ok(());
    }
    let bad: Vec<&str> = report.copies.iter().filter(|c| c.is_bad()).map(|c| c.name.as_str()).collect();
    let differ: Vec<&str> = report.comparisons.iter().flat_map(|c| c.differ.iter().map(|d| d.copy.as_str())).collect();
    let mut what = Vec::new();
    if !bad.is_empty() {
        what.push(format!("not intact: {}", bad.join(", ")));
    }
    if !differ.is_empty() || report.comparisons.iter().any(|c| c.undecided) {
        what.push(format!("different: {}", if differ.is_empty() { "no majority agrees".to_owned() } else { differ.join(", ") }));
    }
    let failure = Failure::new(FAILED, format!("the volume of {} has damage; {}", site.region, what.join("; ")));
    Err(match report.next.first() {
        Some(next) => failure.hint(next.clone()),
        None => failure,
    })
}
