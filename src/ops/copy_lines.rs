//! The six copies of a region in a few lines for a person: state and position by zone, how far a rebuilding is, what the scrub found.
//!
//! Decides wording only. What is not known is not said.

use super::text;
use crate::base::UnixMicros;
use crate::node::report::{CopyReport, RepairReport};
use std::collections::BTreeMap;

/// `120 of 4300 pages, 1.2 MB at 3.4 MB/s`
#[must_use]
pub fn repair(repair: &RepairReport) -> String {
    let of = repair.pages_in_all.map_or(String::new(), |all| format!(" of {}", all.max(repair.pages)));
    let rate = repair.bytes_per_s.map_or(String::new(), |r| format!(" at {}/s", text::bytes(r)));
    format!("{}{of} pages, {}{rate}", repair.pages, text::bytes(repair.bytes))
}

fn copy(copy: &CopyReport) -> String {
    let mut out = format!("{} {} {}", copy.name, copy.state, copy.durable_lsn);
    if let Some(r) = &copy.repair {
        out = format!("{} rebuilding: {}", copy.name, repair(r));
    }
    if copy.damage.is_some() && copy.repair.is_none() {
        out.push_str(", damaged");
    }
    out
}

/// What becomes of damage that was found.
#[must_use]
pub fn damage_ends(copy: &CopyReport) -> &'static str {
    if copy.repair.is_some() { "it is being rebuilt from its peers" } else { "it is rebuilt as soon as four others take writes" }
}

/// `ended 10:41:05, read 3.1 MB and compared 800 pages in six copies: nothing found`
#[must_use]
pub fn scrub(copies: &[CopyReport], now: UnixMicros) -> String {
    let running = copies.iter().any(|c| c.scrub.running);
    let done: Vec<&CopyReport> = copies.iter().filter(|c| c.scrub.ended_at.is_some()).collect();
    let sum = |pick: fn(&CopyReport) -> u64| copies.iter().map(pick).sum::<u64>();
    let (found, repaired) = (sum(|c| c.scrub.found_total), sum(|c| c.scrub.repaired_total));
    let mut out = match done.iter().filter_map(|c| c.scrub.ended_at).max() {
        None if running => "the first pass is under way".to_owned(),
        None => "no pass has ended since this process began".to_owned(),
        Some(at) => {
            let read: u64 = done.iter().map(|c| c.scrub.read_bytes).sum();
            let pages = done.iter().map(|c| c.scrub.pages).max().unwrap_or(0);
            let now_running = if running { ", another pass is under way" } else { "" };
            let at = text::clock(at, now);
            format!("ended {at}, read {} in {} copies, compared {pages} pages{now_running}", text::bytes(read), done.len())
        }
    };
    if found > 0 {
        let worst: Vec<String> = copies.iter().filter(|c| c.scrub.found_total > 0).map(|c| c.name.clone()).collect();
        out.push_str(&format!("; damage found since the start: {found} (in {}), repaired: {repaired}", worst.join(", ")));
    } else if !done.is_empty() {
        out.push_str(": no damage");
    }
    out
}

/// One line for each zone and one for the scrub.
#[must_use]
pub fn lines(copies: &[CopyReport], now: UnixMicros) -> Vec<String> {
    let mut by_az: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for c in copies {
        by_az.entry(&c.az).or_default().push(copy(c));
    }
    let zones = by_az.into_iter().map(|(az, copies)| format!("{az}: {}", copies.join("   ")));
    zones.chain([format!("scrub: {}", scrub(copies, now))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::report::ScrubReport;
    use crate::ops::status::tests::{NOW, sample};

    #[test]
    fn a_copy_is_shown_with_its_rebuilding_and_what_was_found() {
        let mut copies = sample("us-east", crate::node::report::Role::Primary).copies;
        assert_eq!(lines(&copies, NOW)[0], "a: a1 up 100   a2 up 100");
        assert_eq!(lines(&copies, NOW)[3], "scrub: no pass has ended since this process began");
        let since = NOW;
        copies[3].damage = Some("layer-00000001: a block's checksum does not match".into());
        assert_eq!(lines(&copies, NOW)[1], "b: b1 up 100   b2 up 100, damaged");
        let at = Some(2 << 20);
        copies[3].state = "seeding".into();
        copies[3].repair = Some(RepairReport { since, pages: 120, pages_in_all: Some(4300), bytes: 480 << 10, bytes_per_s: at });
        for c in &mut copies {
            c.scrub = ScrubReport { ended_at: Some(NOW), read_bytes: 1 << 20, pages: 4300, ..ScrubReport::default() };
        }
        assert!(scrub(&copies, NOW).ends_with("in 6 copies, compared 4300 pages: no damage"), "{}", scrub(&copies, NOW));
        (copies[3].scrub.found_total, copies[3].scrub.found) = (1, 1);
        let lines = lines(&copies, NOW);
        assert!(lines[1].starts_with("b: b1 up 100   b2 rebuilding: 120 of 4300 pages, "), "{}", lines[1]);
        assert!(
            lines[3].starts_with("scrub: ended 10:41:05, read ") && lines[3].contains("found since the start: 1 (in b2), repaired: 0"),
            "{}",
            lines[3]
        );
    }
}
