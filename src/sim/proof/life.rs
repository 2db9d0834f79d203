//! A busy life of the volume on the bench: one thing after the other, drawn from the seed, and now and then something that goes wrong.
//!
//! Decides what happens next, and never more than A3 allows: at most two copies are without their data or their vote at any time.

use super::Checked;
use super::rig::{BURST, Rig, Slot};
use crate::base::{CopyId, LogEnd};

impl Rig {
    /// One step of a busy life, and now and then something that goes wrong in it.
    pub(super) fn live(&mut self, rough: bool) -> Checked {
        self.go_on_changing()?;
        let c = self.any();
        match self.prng.below(1000) {
            0..=219 => {
                self.write()?;
            }
            220..=519 => {
                let c = self.one_where(c, |slot| !slot.requests.is_empty());
                let most = self.prng.between(1, BURST);
                self.work(c, most)?;
            }
            520..=839 => {
                let c = self.one_where(c, |slot| !slot.replies.is_empty());
                for _ in 0..self.prng.between(1, 3) {
                    self.deliver(c)?;
                }
            }
            840..=899 => {
                self.job(c)?;
            }
            900..=949 => {
                // Recovery waits for those who are away.
                let ns = if self.ready { self.prng.between(100_000, 3_000_000) } else { 60_000_000 };
                self.pass(ns)?;
            }
            950..=959 => self.pin(),
            960..=962 if self.ready && self.bench.story.lock().control == self.control_asked => {
                self.put_control();
                self.effects()?;
            }
            963..=975 => {
                for c in CopyId::all() {
                    self.open(c)?;
                }
            }
            976..=995 if rough => self.trouble(c)?,
            996..=999 => self.wanted = Some(c),
            _ => {}
        }
        Ok(())
    }

    /// At most two copies are without their data at any time (A3).
    fn trouble(&mut self, c: CopyId) -> Checked {
        match self.prng.below(8) {
            0 | 1 => {
                // Some are away while it recovers, perhaps with a tail that nobody else has.
                for _ in 0..self.prng.below(3) {
                    let away = self.any();
                    self.hold(away);
                }
                self.restart()?;
            }
            2 | 3 => {
                let n = self.prng.between(1, 20);
                self.disk(c).cut_power_at(n);
            }
            4 | 5 if self.others_have_data(c) => {
                self.hold(c);
                self.release(c);
                self.wipe(c);
            }
            6 => self.hold(c),
            _ => {
                for c in CopyId::all() {
                    self.release(c);
                }
            }
        }
        self.effects()
    }

    fn others_have_data(&self, c: CopyId) -> bool {
        let story = self.bench.story.lock();
        let has = |o: CopyId| self.votes(o) && story.copies[o.index()].end != LogEnd::EMPTY;
        self.is_settled() && CopyId::all().into_iter().filter(|o| *o != c).all(has)
    }

    /// A reader begins, or ends, to hold the pages as of now.
    fn pin(&mut self) {
        let vdl = *self.appender.vdl();
        {
            let mut story = self.bench.story.lock();
            story.pin = if story.pin.is_none() && vdl != LogEnd::EMPTY { Some(vdl) } else { None };
        }
        self.tell_needs();
    }

    /// `c`, or the next one of which `has` holds.
    fn one_where(&self, c: CopyId, has: impl Fn(&Slot) -> bool) -> CopyId {
        let from = c.index();
        (0..6).map(|i| CopyId::all()[(from + i) % 6]).find(|c| has(&self.slots[c.index()])).unwrap_or(c)
    }
}
