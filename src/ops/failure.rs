//! How a command fails: an exit code, a sentence, and what to run next.
//!
//! Decides only the codes; scripts rely on them. Every verb returns one of these and `main` prints it.

use super::certs::CertsError;
use super::config::ConfigError;
use super::netem::NetemError;
use crate::io::link::LinkError;
use crate::io::tls::TlsError;

/// It did not work: a file, a port, a process. `volume verify`: something is damaged.
pub const FAILED: u8 = 1;
/// The command line itself is wrong (clap's own code).
pub const USAGE: u8 = 2;
/// No region answered.
pub const UNREACHABLE: u8 = 3;
/// A region answered no, or `status --check` found the cluster not healthy.
pub const REFUSED: u8 = 4;
/// An operation goes on, or it is not known how it ended.
pub const UNFINISHED: u8 = 5;
/// Another operation was there first.
pub const SUPERSEDED: u8 = 6;

/// Shown under `parhelion --help`.
pub const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed (a file, a port, a process), or damage was found (volume verify); 2 wrong command line; 3 no region could be \
reached; 4 refused by the region, or not healthy (status --check); 5 an operation is not over, or its end is not known (switchover, failover); 6 another operation was there \
first.";

/// Why a command ends with another code than 0.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    /// What to run or to look at next.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// `error: ...` and `hint: ...` on stderr.
    pub fn print(&self) {
        eprintln!("error: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}

/// `cannot create x: no space left`, from what was tried and how it failed.
pub fn io_failure(tried: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
    move |e| Failure::new(FAILED, format!("cannot {tried}: {e}"))
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(FAILED, error.to_string())
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Failure {
        Failure::new(FAILED, error.to_string())
    }
}

impl From<CertsError> for Failure {
    fn from(error: CertsError) -> Failure {
        Failure::new(FAILED, error.to_string())
    }
}

impl From<NetemError> for Failure {
    fn from(error: NetemError) -> Failure {
        let code = match &error {
            NetemError::NotRunning { .. } => UNREACHABLE,
            NetemError::Refused(_) => REFUSED,
            NetemError::Setting { .. } | NetemError::UnknownProfile { .. } | NetemError::TooManyRegions { .. } => USAGE,
            _ => FAILED,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Failure {
        let code = if matches!(error, LinkError::Refused { .. }) { REFUSED } else { UNREACHABLE };
        Failure::new(code, error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(FAILED, format!("{error:#}"))
    }
}
