//! A copy is replaced by new directories, or that is taken back, by an operator's order.
//!
//! Decides nothing: the appender takes the steps. Each is on record first.

use super::Node;
use crate::base::{CopyId, Instant};
use crate::control::{Action, Input};
use crate::volume::membership::Incarnation;

impl Node {
    /// Begins to replace the copy of `slot` by new directories in `place`, `candidate`: one for each group.
    ///
    /// # Errors
    /// A sentence that says why not, or what it waits for.
    pub fn replace_copy(&mut self, now: Instant, slot: CopyId, candidate: Vec<Incarnation>, place: String) -> Result<String, String> {
        let step = self.appender.replacement(slot, candidate, place.clone())?;
        let what = format!("copy {slot} is to be replaced by a new one in {place}");
        self.tell(now, Input::Audit(Action { actor: "an operator of this region".into(), op: None, kind: "copy", what }));
        self.drive_roles(now);
        self.appender.take_step(step);
        self.note("copy_replacing", format!("copy {slot} is being replaced by a new one in {place}"));
        self.drain_appender(now);
        Ok(format!(
            "copy {slot} is being replaced by a new one in {place}, which is rebuilt from the others while writes go on; \
             `parhelion copy list` shows how far it is, `parhelion copy replace {slot} --cancel` goes back"
        ))
    }

    /// Goes back to the copy that is being replaced.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn cancel_replace(&mut self, now: Instant, slot: CopyId) -> Result<String, String> {
        let step = self.appender.cancellation(slot)?;
        let what = format!("copy {slot} is not to be replaced any more");
        self.tell(now, Input::Audit(Action { actor: "an operator of this region".into(), op: None, kind: "copy", what }));
        self.drive_roles(now);
        self.appender.take_step(step);
        self.note("copy_replace_cancelled", format!("copy {slot} is not replaced: it comes back and catches up"));
        self.drain_appender(now);
        Ok(format!("copy {slot} is not replaced: it comes back and catches up by itself"))
    }

    /// A copy is being replaced, or the end of that is still being recorded: four of the other five are needed.
    #[must_use]
    pub fn is_replacing(&self) -> bool {
        self.appender.is_changing()
    }
}
