//! What must be there when a volume came to rest: the same log in every copy, and the pages as they were.

use super::Checked;
use super::rig::Rig;
use super::story::Story;
use super::story::{PAGES, trimmed};
use crate::base::{CopyId, LogEnd, PageNo};
use crate::log::Frame;
use crate::sim::disk::SimDisk;
use crate::volume::{Copy, CopyReply, CopyRequest, OpenError, ReadError};
use std::sync::Arc;

impl Rig {
    /// The log and the pages of every copy that is open, as of now, as of what readers hold, and as of a moment in between.
    pub(super) fn check(&mut self, past: &[LogEnd]) -> Checked {
        let vdl = *self.appender.vdl();
        let (chain, pin) = {
            let story = self.bench.story.lock();
            (story.chain(&vdl)?, story.pin)
        };
        let between = chain[usize::try_from(self.prng.below(chain.len() as u64)).expect("BUG: an index")];
        for c in CopyId::all() {
            let Some(mut copy) = self.slots[c.index()].copy.take() else { continue };
            let log = whole_log(&mut copy).map_err(|e| format!("copy {c}: {e}"));
            self.slots[c.index()].copy = Some(copy);
            let log = log?;
            let Some(from) = log.first().map(|f| f.seq().0) else { continue };
            if log.iter().map(Frame::log_end).ne(chain[usize::try_from(from - 1).expect("BUG: an index")..].iter().copied()) {
                return Err(format!("copy {c} has another log than the volume, from seq {from} on"));
            }
        }
        for at in past.iter().chain(&pin).chain([&between, &vdl]) {
            // What a reader held in a history that was cut is nobody's any more.
            if chain.contains(at) {
                self.check_pages(at)?;
            }
        }
        Ok(())
    }

    /// By scanning every copy, and one of them page by page.
    fn check_pages(&mut self, at: &LogEnd) -> Checked {
        let one = self.any();
        let story = self.bench.story.lock();
        let want = story.pages_at(at)?;
        let lsn = at.end_lsn;
        let held = story.pin.is_some_and(|p| p.end_lsn <= lsn) || at.seq >= story.acknowledged.seq;
        for c in CopyId::all() {
            let Some(copy) = &self.slots[c.index()].copy else { continue };
            let store = copy.pages();
            let may_lack = !held || lsn < story.copies[c.index()].pages_from;
            let pages = if c == one { usize::MAX } else { 0 };
            for (page, bytes) in want.iter().map(|(p, b)| (*p, &b[..])).chain([(PageNo(PAGES + 1), &[][..])]).take(pages) {
                match store.read(page, lsn) {
                    Ok(got) if trimmed(&got) == trimmed(bytes) => {}
                    Ok(got) => return Err(format!("copy {c}: page {} at {at} is {got:?} and was {bytes:?}", page.0)),
                    Err(ReadError::TooOld { .. }) if may_lack => {}
                    Err(e) => return Err(format!("copy {c}: page {} at {at}: {e}", page.0)),
                }
            }
            match store.scan(lsn, PageNo(0), usize::MAX) {
                Ok((pages, None)) => {
                    let got = pages.iter().map(|(p, b)| (*p, trimmed(b)));
                    if got.ne(want.iter().map(|(p, b)| (*p, trimmed(b)))) {
                        return Err(format!("copy {c}: the pages at {at} are not what they were"));
                    }
                }
                Ok((_, Some(_))) => return Err(format!("copy {c}: a scan without bound ended early")),
                Err(ReadError::TooOld { .. }) if may_lack => {}
                Err(e) => return Err(format!("copy {c}: a scan at {at}: {e}")),
            }
        }
        Ok(())
    }

    pub(super) fn vdl(&self) -> LogEnd {
        *self.appender.vdl()
    }
}

/// What reading all of a copy shows.
pub(super) enum Sight {
    Whole,
    /// And it says so.
    Damaged,
    /// Intact as far as it goes, and it does not go as far as the copy once said.
    Short(LogEnd),
}

/// Opens a copy by itself and reads everything in it, as a scrub does.
pub(super) fn read_alone(disk: Arc<SimDisk>, story: &Story) -> Checked<Sight> {
    let mut copy = match Copy::open(disk, &super::rig::limits()) {
        Ok(copy) => copy,
        Err(OpenError::Unsupported { file, version }) => return Err(format!("damage in {file} is taken for format version {version}")),
        Err(_) => return Ok(Sight::Damaged),
    };
    copy.pages().trust();
    let state = copy.state();
    if read_all(&mut copy, story)?.is_some() {
        return Ok(Sight::Damaged);
    }
    let short = !story.holds(&state.end, &story.acknowledged)?;
    Ok(if short { Sight::Short(state.end) } else { Sight::Whole })
}

/// The log and the pages of a copy: why they cannot be read, if they cannot. Wrong ones are an error.
fn read_all(copy: &mut Copy, story: &Story) -> Checked<Option<String>> {
    match whole_log(copy) {
        Ok(frames) => frames.iter().try_for_each(|f| story.knows(f))?,
        Err(reason) => return Ok(Some(reason)),
    }
    // What the layers hold, whole and for sure.
    let at = copy.state().flushed;
    let store = copy.pages();
    match store.scan(at.end_lsn, PageNo(0), usize::MAX) {
        Ok((pages, _)) => {
            let want = story.pages_at(&at)?;
            if pages.iter().map(|(p, b)| (*p, trimmed(b))).ne(want.iter().map(|(p, b)| (*p, trimmed(b)))) {
                return Err(format!("the pages at {at} are not what they were"));
            }
            Ok(None)
        }
        Err(ReadError::TooOld { .. }) => Ok(None),
        Err(e) => Ok(Some(e.to_string())),
    }
}

impl Rig {
    /// Reads everything in every copy. One that is damaged leaves its duty, to be rebuilt by its peers.
    pub(super) fn scrub(&mut self) -> Checked {
        for c in CopyId::all() {
            let Some(mut copy) = self.slots[c.index()].copy.take() else { continue };
            let reason = read_all(&mut copy, &self.bench.story.lock())?;
            self.slots[c.index()].copy = Some(copy);
            if let Some(reason) = reason {
                self.damaged(c, &reason);
            }
        }
        Ok(())
    }

    /// Reads whatever answers, as of now: why some of it does not. What does must be right.
    pub(super) fn read_all_that_can_be_read(&mut self) -> Checked<Vec<String>> {
        let vdl = *self.appender.vdl();
        let mut reasons = Vec::new();
        for c in CopyId::all() {
            let Some(mut copy) = self.slots[c.index()].copy.take() else { continue };
            let story = self.bench.story.lock();
            reasons.extend(read_all(&mut copy, &story)?);
            if vdl != LogEnd::EMPTY {
                for (page, bytes) in story.pages_at(&vdl)?.iter() {
                    match copy.pages().read(*page, vdl.end_lsn) {
                        Ok(got) if trimmed(&got)[..] == trimmed(bytes)[..] => {}
                        Ok(_) => return Err(format!("copy {c}: page {} is wrong", page.0)),
                        Err(e) => reasons.push(e.to_string()),
                    }
                }
            }
            drop(story);
            self.slots[c.index()].copy = Some(copy);
        }
        Ok(reasons)
    }
}

/// All frames of a copy.
pub(super) fn whole_log(copy: &mut Copy) -> Checked<Vec<Frame>> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut from = copy.state().first;
    loop {
        let mut replies = Vec::new();
        copy.handle(CopyRequest::ReadLog { id: 1, from, bytes_max: 4096 }, &mut replies);
        match replies.pop() {
            Some(CopyReply::Log { frames: some, .. }) if some.is_empty() => return Ok(frames),
            Some(CopyReply::Log { frames: some, .. }) => frames.extend(some),
            Some(CopyReply::Unreadable { reason, .. } | CopyReply::Failed { reason }) => return Err(reason),
            other => return Err(format!("reading the log from {from} on: {other:?}")),
        }
        from = frames.last().map_or(from, |f| f.seq().next());
    }
}
