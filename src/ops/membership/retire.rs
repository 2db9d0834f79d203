//! `parhelion retire`: a region gives up its lineage, keeps what it has, and comes back as an empty secondary.
//!
//! Decides nothing about which lineage goes on: an operator does. The region's process notes the order beside its data and ends; its next
//! start moves the copies into `retired/`, in one rename, and then it is a new region that never founds anything. A crash in between is the
//! order still standing, or done. What was moved is never removed by Parhelion.

use crate::base::RegionName;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The order, in the region's data directory: the lineage.
const ORDER: &str = "RETIRE";
/// The region is no founder any more: empty copies are to be seeded.
const JOINS: &str = "JOINS";
const RETIRED: &str = "retired";
const COPIES: &str = "copies";

/// Orders it for the next start.
///
/// # Errors
/// A sentence.
pub fn order(data_dir: &Path, lineage: &str) -> Result<(), String> {
    write(&data_dir.join(JOINS), "this region was retired once: it joins, and founds nothing\n")
        .and_then(|()| write(&data_dir.join(ORDER), lineage))
        .map_err(|e| format!("the order cannot be written into {}: {e}", data_dir.display()))
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    let mut out = std::fs::File::create(&beside)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(&beside, file)?;
    std::fs::File::open(file.parent().expect("BUG: a file in a directory"))?.sync_all()
}

/// What was ordered, before the copies are opened. Where they went, if it was.
///
/// # Errors
/// When they cannot be moved.
pub fn carry_out(data_dir: &Path) -> std::io::Result<Option<PathBuf>> {
    let order = data_dir.join(ORDER);
    let lineage = match std::fs::read_to_string(&order) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let name: String = lineage.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    let retired = data_dir.join(RETIRED);
    std::fs::create_dir_all(&retired)?;
    let to = (0..).map(|n| retired.join(if n == 0 { name.clone() } else { format!("{name}.{n}") })).find(|to| !to.exists());
    let to = to.expect("BUG: there is always another number");
    let copies = data_dir.join(COPIES);
    if copies.exists() {
        // A directory of its own, so that it can be looked at as a region's data directory.
        std::fs::create_dir(&to)?;
        std::fs::rename(&copies, to.join(COPIES))?;
    }
    std::fs::remove_file(&order)?;
    std::fs::File::open(data_dir)?.sync_all()?;
    Ok(Some(to))
}

/// Who founds the global cluster when all disks are empty: never a region that was retired.
#[must_use]
pub fn founder(data_dir: &Path, own: &RegionName, configured: &RegionName, members: &[RegionName]) -> RegionName {
    let other = || members.iter().find(|m| *m != own).unwrap_or(configured).clone();
    if data_dir.join(JOINS).exists() && configured == own { other() } else { configured.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_moved_once_and_kept_and_the_region_founds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let (east, west) = (RegionName::new("us-east").unwrap(), RegionName::new("eu-west").unwrap());
        let members = [east.clone(), west.clone()];
        assert_eq!(carry_out(data).unwrap(), None);
        assert_eq!(founder(data, &east, &east, &members), east);
        for n in 0..2 {
            std::fs::create_dir_all(data.join("copies/a1")).unwrap();
            std::fs::write(data.join("copies/a1/log"), n.to_string()).unwrap();
            order(data, "00ff").unwrap();
            let to = carry_out(data).unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(to.join("copies/a1/log")).unwrap(), n.to_string());
            assert!(!data.join("copies").exists());
            assert_eq!(carry_out(data).unwrap(), None);
        }
        assert_eq!(founder(data, &east, &east, &members), west);
        assert_eq!(founder(data, &east, &west, &members), west);
    }
}
