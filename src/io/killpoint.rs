//! Where a process ends itself as `kill -9` would: at the point that a file names, for drills of changes of roles and of members.
//!
//! `PARHELION_KILL_POINT` names the file. While it holds `before:handover`, the process takes the file away and ends just before it says
//! its handover; `after:` ends it when the words are on their way. `@3` behind it: only about epoch 3 or a later one. Points are messages,
//! phases of operations, effects, and the kinds of events (`before:region_removed`). Without the
//! variable (always, but in a drill) nothing is looked at. Whoever may set it could as well send the signal: only the moment is exact.
//!
//! Decides nothing of the protocol. Driven by whoever drives a control core: a region's driver, and a witness.

use crate::base::Epoch;
use crate::control::{ControlMessage, OpState, OpView};
use std::path::PathBuf;
use std::time::Duration;

/// A sealed queue needs so long to bring the last words out.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// One process's points; does nothing unless its environment asked for it.
pub struct KillPoint {
    file: Option<PathBuf>,
}

/// Something is about to be done, or was.
pub struct Passing {
    die_after: bool,
}

impl KillPoint {
    #[must_use]
    pub fn from_env() -> KillPoint {
        KillPoint { file: std::env::var_os("PARHELION_KILL_POINT").map(PathBuf::from) }
    }

    /// Does not return if this is the point and the process is to die before it.
    #[must_use]
    pub fn before(&self, point: &str, epoch: Option<Epoch>) -> Passing {
        let Some(file) = &self.file else { return Passing { die_after: false } };
        let asked = std::fs::read_to_string(file).unwrap_or_default();
        let Some(after) = is_it(asked.trim(), point, epoch) else { return Passing { die_after: false } };
        // Once: the process that is started next lives.
        let _ = std::fs::remove_file(file);
        if !after {
            die(point);
        }
        Passing { die_after: true }
    }

    #[must_use]
    pub fn before_message(&self, message: &ControlMessage) -> Passing {
        if self.file.is_none() {
            return Passing { die_after: false };
        }
        let (point, epoch) = match message {
            // The first words about who is to be a member, or a voter.
            ControlMessage::Renew(renew) if renew.voters_next.is_some() => ("propose", Some(renew.entry.epoch)),
            ControlMessage::Renew(renew) => ("renew", Some(renew.entry.epoch)),
            ControlMessage::Granted { epoch, .. } => ("granted", Some(*epoch)),
            ControlMessage::Vote(vote) => ("vote", Some(vote.epoch)),
            ControlMessage::Voted(voted) => ("voted", Some(voted.epoch)),
            ControlMessage::Handover(handover) => ("handover", Some(handover.epoch)),
            _ => return Passing { die_after: false },
        };
        self.before(point, epoch)
    }

    /// `begin-seal`: the phase begins, here or elsewhere.
    #[must_use]
    pub fn before_phase(&self, op: &OpView) -> Passing {
        match &op.state {
            OpState::Running(phase) if self.file.is_some() => self.before(&format!("begin-{phase}"), None),
            _ => Passing { die_after: false },
        }
    }
}

impl Passing {
    pub fn passed(self, point: &str) {
        if self.die_after {
            std::thread::sleep(LAST_WORDS);
            die(point);
        }
    }
}

/// Whether `asked` is about this point, and if so whether the process dies after it.
fn is_it(asked: &str, point: &str, epoch: Option<Epoch>) -> Option<bool> {
    let (when, what) = asked.split_once(':')?;
    let (name, from) = match what.split_once('@') {
        Some((name, from)) => (name, from.parse().ok()?),
        None => (what, 0),
    };
    let meant = name == point && epoch.is_none_or(|e| e.0 >= from);
    match when {
        "before" if meant => Some(false),
        "after" if meant => Some(true),
        _ => None,
    }
}

fn die(point: &str) -> ! {
    tracing::warn!("this process kills itself at '{point}', as PARHELION_KILL_POINT asks");
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal is on its way.
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::is_it;
    use crate::base::Epoch;

    #[test]
    fn only_the_point_that_is_named_is_one() {
        assert_eq!(is_it("before:vote", "vote", Some(Epoch(2))), Some(false));
        assert_eq!(is_it("after:vote@2", "vote", Some(Epoch(2))), Some(true));
        assert_eq!(is_it("after:vote@3", "vote", Some(Epoch(2))), None);
        for other in ["", "vote", "before:voted", "during:vote", "before:vote@soon"] {
            assert_eq!(is_it(other, "vote", None), None, "{other}");
        }
    }
}
