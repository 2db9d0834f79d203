//! `parhelion key`: makes the key that a region's copies are encrypted with, and wraps what it wraps with another one.
//!
//! Decides where the directories are that a key is asked about. What a key may open `io::sealing` decides.

use super::config::{Config, ConfigError};
use super::copy::config::CopyConfig;
use super::failure::{FAILED, Failure, REFUSED};
use super::region::lock;
use super::witness::VOTER_DIR;
use super::witness::config::WitnessConfig;
use crate::base::{CopyId, GROUPS_MAX, MemberId};
use crate::io::copies::places::Places;
use crate::io::sealing::{self, Key};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct KeyArgs {
    #[command(subcommand)]
    pub what: Option<KeyVerb>,
    /// The file to write the new key to; only its owner can read it, and one that exists is not overwritten
    #[arg(long, value_name = "FILE", required = true)]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Wrap what a stopped process's directories are encrypted with in a new key; their files stay as they are
    Rotate {
        /// The file of the region, of a process of copies, or of the witness; it names the key as it is now
        #[arg(long, value_name = "FILE", env = "PARHELION_CONFIG")]
        config: PathBuf,
        /// The file of the new key, made by parhelion key --out
        #[arg(long, value_name = "FILE")]
        new: PathBuf,
    },
}

/// The verb; what it says.
///
/// # Errors
/// When a key cannot be made or read, or a directory is not sealed with it.
pub fn run(args: &KeyArgs) -> Result<String, Failure> {
    match (&args.what, &args.out) {
        (Some(KeyVerb::Rotate { config, new }), _) => rotate(config, new),
        (None, Some(out)) => {
            let key = Key::make(out).map_err(|e| Failure::new(FAILED, e))?;
            Ok(format!(
                "key {} is in {}\nkeep a copy of it where the data is not: without it nothing of the data can be read\nnext, in the region's file before its first start:\n\n[encryption]\nkey_file = \"{}\"\n",
                key.id(),
                out.display(),
                out.display()
            ))
        }
        (None, None) => unreachable!("BUG: clap asks for --out"),
    }
}

/// What a process has that has a key.
struct Holder {
    data_dir: PathBuf,
    key: Option<Arc<Key>>,
    directories: Vec<PathBuf>,
}

impl Holder {
    /// Whose file it is, it says itself.
    fn of(file: &Path) -> Result<Holder, ConfigError> {
        if let Ok(config) = WitnessConfig::load(file) {
            let directories = vec![config.data_dir.join(VOTER_DIR)];
            return Ok(Holder { key: config.key()?, data_dir: config.data_dir, directories });
        }
        if let Ok(config) = CopyConfig::load(file) {
            let directories = directories(&config.data_dir, |copy| config.copies.contains(&copy), GROUPS_MAX)?;
            return Ok(Holder { key: config.key()?, data_dir: config.data_dir, directories });
        }
        let config = Config::load(file)?;
        let directories = directories(&config.data_dir, |copy| !config.copies.contains_key(&copy), config.layout.groups)?;
        Ok(Holder { key: config.key()?, data_dir: config.data_dir, directories })
    }
}

fn rotate(file: &Path, new: &Path) -> Result<String, Failure> {
    let Holder { data_dir, key, directories } = Holder::of(file)?;
    let Some(old) = key else {
        return Err(Failure::new(REFUSED, format!("{} names no key: there is no [encryption] in it", file.display())));
    };
    let new_key = Key::load(new).map_err(|e| Failure::new(FAILED, e))?;
    let _lock = lock(&data_dir, file, "the process whose data this is")?;
    let mut done = 0;
    for dir in directories.into_iter().filter(|dir| dir.is_dir()) {
        sealing::rotate(&dir, &old, &new_key).map_err(|e| Failure::new(FAILED, e).hint("the same command goes on where it stopped"))?;
        done += 1;
    }
    Ok(format!(
        "{done} directories are sealed with key {} now, and no more with {}\nnext: name {} as key_file in {}; keep the old key while there are backups from before\n",
        new_key.id(),
        old.id(),
        new.display(),
        file.display()
    ))
}

fn directories(data_dir: &Path, here: impl Fn(CopyId) -> bool, groups: u32) -> Result<Vec<PathBuf>, ConfigError> {
    let copies = data_dir.join("copies");
    let places = Places::load(&copies).map_err(|e| ConfigError::Key(format!("{} cannot be read: {e}", copies.display())))?;
    Ok(MemberId::all(groups).filter(|m| here(m.copy)).map(|m| places.directory(m)).collect())
}

/// Whether the copies of this process, those that are `here`, may be opened with `key`: told before the first of them is.
///
/// # Errors
/// [`ConfigError::Key`]: a sentence with what to do.
pub fn check(data_dir: &Path, here: impl Fn(CopyId) -> bool, groups: u32, key: Option<&Key>) -> Result<(), ConfigError> {
    sealing::check(directories(data_dir, here, groups)?, key).map_err(ConfigError::Key)
}
