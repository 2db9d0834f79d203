//! The scrub: everything in every copy is read again, and what the copies say of the pages is compared.
//!
//! Decides what is asked next, of whom and when (a bounded rate for each copy), and which copy is the odd one out. Never decides what
//! follows from that: the appender has a copy rebuilt. A pass walks each copy through its files ([`CheckPlace`] by place) and all copies
//! together through the pages, range by range, each range at one consistency point. A copy that leaves its duty leaves the pass; the next
//! one takes it in again. Driven by the appender: time comes in, requests go out.

use super::message::{CheckPlace, Digest};
use super::quorum::{COPIES, READ_QUORUM, WRITE_QUORUM};
use crate::base::{CopyId, Instant, Limits, Lsn, PageNo};
use std::time::Duration;

/// The first pass begins so long after the volume serves, unless passes come more often.
const FIRST_PASS_AFTER: Duration = Duration::from_secs(60);
/// A copy that has not answered after so long is asked again, so many times.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);
const ASK_AGAIN_MAX: u32 = 10;
/// A page is taken for so many bytes when a range is chosen.
const PAGE_BYTES_ABOUT: usize = 4096;

/// What is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Check { copy: CopyId, id: u64, from: Option<CheckPlace>, bytes_max: usize },
    Digest { copy: CopyId, id: u64, at: Lsn, from: PageNo, pages_max: u32 },
}

/// What a comparison shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    /// These have other pages than the majority.
    Odd(Vec<CopyId>),
    /// They differ, and no three that agree outnumber the others: nobody is believed.
    Undecided,
}

/// Who is the odd one out. Three must agree, and outnumber all others together: fewer could be the ones that are wrong.
#[must_use]
pub fn judge(answers: &[(CopyId, Digest)]) -> Verdict {
    let votes = |digest: &Digest| answers.iter().filter(|(_, d)| d == digest).count();
    let Some((_, best)) = answers.iter().max_by_key(|(_, d)| votes(d)) else { return Verdict::Same };
    let agree = votes(best);
    if agree == answers.len() {
        Verdict::Same
    } else if agree >= READ_QUORUM && 2 * agree > answers.len() {
        Verdict::Odd(answers.iter().filter(|(_, d)| d != best).map(|(c, _)| *c).collect())
    } else {
        Verdict::Undecided
    }
}

/// The last finished pass of one copy, or the one under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubView {
    /// `None`: no pass has ended since the process began.
    pub ended: Option<Instant>,
    /// Files read in that pass, bytes.
    pub read_bytes: u64,
    /// Pages compared with the other copies in that pass.
    pub pages: u64,
    /// What it found in this copy in that pass; repaired or not.
    pub found: u64,
    /// A pass is under way.
    pub running: bool,
}

#[derive(Clone, Copy, Debug)]
enum Walk {
    /// The next piece is due at `at`.
    Due {
        from: Option<CheckPlace>,
        at: Instant,
    },
    Asked {
        id: u64,
        from: Option<CheckPlace>,
        since: Instant,
        times: u32,
    },
    Done,
    /// It left its duty: nothing is said of it in this pass.
    Left,
}

#[derive(Debug)]
enum Comparing {
    Due { from: PageNo, at: Instant, times: u32 },
    Asked { id: u64, lsn: Lsn, from: PageNo, since: Instant, times: u32, missing: Vec<CopyId>, answers: Vec<(CopyId, Digest)> },
    Done,
}

#[derive(Debug)]
struct Pass {
    walks: [Walk; COPIES],
    comparing: Comparing,
    read_bytes: [u64; COPIES],
    pages: [u64; COPIES],
    found: [u64; COPIES],
}

#[derive(Debug)]
pub(super) struct Scrub {
    bytes_per_s: u64,
    every: Duration,
    piece_bytes: usize,
    next_pass: Option<Instant>,
    pass: Option<Pass>,
    last: [ScrubView; COPIES],
    next_id: u64,
}

impl Scrub {
    pub(super) fn new(limits: &Limits) -> Scrub {
        Scrub {
            bytes_per_s: limits.scrub_bytes_per_s,
            every: limits.scrub_every,
            piece_bytes: limits.scrub_piece_bytes.max(1),
            next_pass: None,
            pass: None,
            last: [ScrubView::default(); COPIES],
            // Apart from the numbers of the appender's own reads.
            next_id: 1 << 63,
        }
    }

    /// The volume serves: passes are planned from here on.
    pub(super) fn serve(&mut self, now: Instant) {
        self.pass = None;
        self.next_pass = (self.bytes_per_s > 0).then(|| now + FIRST_PASS_AFTER.min(self.every));
    }

    /// The volume does not serve any more: a pass under way is void.
    pub(super) fn stop(&mut self) {
        (self.pass, self.next_pass) = (None, None);
    }

    pub(super) fn view(&self, copy: CopyId) -> ScrubView {
        ScrubView { running: self.pass.is_some(), ..self.last[copy.index()] }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let Some(pass) = &self.pass else { return self.next_pass };
        let walks = pass.walks.iter().filter_map(|w| match w {
            Walk::Due { at, .. } => Some(*at),
            Walk::Asked { since, .. } => Some(*since + ASK_AGAIN_AFTER),
            Walk::Done | Walk::Left => None,
        });
        let comparing = match &pass.comparing {
            Comparing::Due { at, .. } => Some(*at),
            Comparing::Asked { since, .. } => Some(*since + ASK_AGAIN_AFTER),
            Comparing::Done => None,
        };
        walks.chain(comparing).min()
    }

    /// What is due now. `on_duty`: copies that take frames; `at`: the last consistency point that is durable.
    pub(super) fn due(&mut self, now: Instant, on_duty: &[CopyId], at: Lsn) -> Vec<Ask> {
        let mut asks = Vec::new();
        if self.pass.is_none() && self.next_pass.is_some_and(|t| now >= t) {
            self.begin(now, on_duty);
        }
        let Some(pass) = &mut self.pass else { return asks };
        for copy in CopyId::all() {
            let walk = &mut pass.walks[copy.index()];
            if !on_duty.contains(&copy) && !matches!(walk, Walk::Done) {
                *walk = Walk::Left;
            }
            let (from, times) = match *walk {
                Walk::Due { from, at } if now >= at => (from, 0),
                Walk::Asked { since, times, .. } if now >= since + ASK_AGAIN_AFTER && times >= ASK_AGAIN_MAX => {
                    *walk = Walk::Left;
                    continue;
                }
                Walk::Asked { from, since, times, .. } if now >= since + ASK_AGAIN_AFTER => (from, times + 1),
                _ => continue,
            };
            let id = self.next_id;
            self.next_id += 1;
            *walk = Walk::Asked { id, from, since: now, times };
            asks.push(Ask::Check { copy, id, from, bytes_max: self.piece_bytes });
        }
        let (from, times) = match &pass.comparing {
            Comparing::Due { from, at, times } if now >= *at => (*from, *times),
            // Who has not answered by now has no voice in this range: it is behind, or slow.
            Comparing::Asked { since, from, times, .. } if now >= *since + ASK_AGAIN_AFTER => (*from, times + 1),
            _ => return asks,
        };
        if on_duty.len() < WRITE_QUORUM || times > ASK_AGAIN_MAX {
            // Too few to tell who is right.
            pass.comparing = Comparing::Done;
            return asks;
        }
        let id = self.next_id;
        self.next_id += 1;
        pass.comparing = Comparing::Asked { id, lsn: at, from, since: now, times, missing: on_duty.to_vec(), answers: Vec::new() };
        let pages_max = u32::try_from((self.piece_bytes / PAGE_BYTES_ABOUT).clamp(1, 1 << 16)).expect("BUG: clamped");
        asks.extend(on_duty.iter().map(|copy| Ask::Digest { copy: *copy, id, at, from, pages_max }));
        asks
    }

    fn begin(&mut self, now: Instant, on_duty: &[CopyId]) {
        self.next_pass = Some(now + self.every);
        // Not all at the same moment: the disks may be one.
        let apart = self.pace(self.piece_bytes as u64) / u32::try_from(COPIES).expect("BUG: six");
        let walk = |i: usize| {
            let copy = CopyId::all()[i];
            let at = now + apart * u32::from(copy.0);
            if on_duty.contains(&copy) { Walk::Due { from: None, at } } else { Walk::Left }
        };
        self.pass = Some(Pass {
            walks: std::array::from_fn(walk),
            comparing: Comparing::Due { from: PageNo::default(), at: now, times: 0 },
            read_bytes: [0; COPIES],
            pages: [0; COPIES],
            found: [0; COPIES],
        });
    }

    /// How long the reading of so much may take at least.
    fn pace(&self, bytes: u64) -> Duration {
        Duration::from_nanos(u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.max(1))).unwrap_or(u64::MAX))
    }

    /// A copy checked a piece. `true`: the pass is over.
    pub(super) fn checked(&mut self, now: Instant, copy: CopyId, id: u64, bytes: u64, next: Option<CheckPlace>) -> bool {
        let pause = self.pace(bytes.min(16 * self.piece_bytes as u64));
        let Some(pass) = &mut self.pass else { return false };
        let walk = &mut pass.walks[copy.index()];
        if !matches!(walk, Walk::Asked { id: asked, .. } if *asked == id) {
            return false;
        }
        pass.read_bytes[copy.index()] += bytes;
        *walk = next.map_or(Walk::Done, |from| Walk::Due { from: Some(from), at: now + pause });
        self.ended(now)
    }

    /// A copy told its digest; the verdict when all have, or all that can.
    pub(super) fn digested(&mut self, now: Instant, copy: CopyId, id: u64, digest: Option<Digest>) -> Option<(Lsn, PageNo, Verdict)> {
        let pause = self.pace(self.piece_bytes as u64);
        let pass = self.pass.as_mut()?;
        let Comparing::Asked { id: asked, lsn, from, times, missing, answers, .. } = &mut pass.comparing else { return None };
        if *asked != id || !missing.contains(&copy) {
            return None;
        }
        missing.retain(|c| *c != copy);
        answers.extend(digest.map(|d| (copy, d)));
        if !missing.is_empty() {
            return None;
        }
        let (lsn, from, times, answers) = (*lsn, *from, *times, std::mem::take(answers));
        if answers.len() < WRITE_QUORUM {
            // They have not made pages of it yet, or the versions are folded: again, at a later point.
            pass.comparing = if times < ASK_AGAIN_MAX {
                Comparing::Due { from, at: now + pause.max(Duration::from_millis(200)), times: times + 1 }
            } else {
                Comparing::Done
            };
            return None;
        }
        for (copy, digest) in &answers {
            pass.pages[copy.index()] += u64::from(digest.pages);
        }
        let next = answers.iter().filter_map(|(_, d)| d.next).filter(|next| *next > from).min();
        pass.comparing = next.map_or(Comparing::Done, |from| Comparing::Due { from, at: now + pause, times: 0 });
        Some((lsn, from, judge(&answers)))
    }

    /// Something was found in `copy`.
    pub(super) fn found(&mut self, copy: CopyId) {
        if let Some(pass) = &mut self.pass {
            pass.found[copy.index()] += 1;
        }
    }

    /// Closes the pass when there is nothing more to ask. `true`: it did.
    pub(super) fn ended(&mut self, now: Instant) -> bool {
        let over = |p: &Pass| matches!(p.comparing, Comparing::Done) && p.walks.iter().all(|w| matches!(w, Walk::Done | Walk::Left));
        let Some(pass) = self.pass.take_if(|p| over(p)) else { return false };
        for i in 0..COPIES {
            // Of a copy that left its duty only what was found in it is known: mostly that is why it left.
            if matches!(pass.walks[i], Walk::Done) || pass.found[i] > 0 {
                self.last[i] = ScrubView {
                    ended: Some(now),
                    read_bytes: pass.read_bytes[i],
                    pages: pass.pages[i],
                    found: pass.found[i],
                    running: false,
                };
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(hash: u64) -> Digest {
        Digest { hash, pages: 1, bytes: 1, next: None }
    }

    fn verdict(hashes: &[u64]) -> Verdict {
        judge(&CopyId::all().into_iter().zip(hashes).map(|(c, h)| (c, digest(*h))).collect::<Vec<_>>())
    }

    #[test]
    fn a_majority_of_at_least_three_decides_and_nobody_else() {
        for (hashes, odd) in
            [(&[1u64, 1, 1, 1, 1, 2][..], &[5u8][..]), (&[1, 2, 1, 1, 3, 1], &[1, 4]), (&[2, 2, 1, 1, 1], &[0, 1]), (&[1, 1, 2, 1], &[2])]
        {
            assert_eq!(verdict(hashes), Verdict::Odd(odd.iter().map(|c| CopyId(*c)).collect()), "{hashes:?}");
        }
        for hashes in [&[1u64, 1, 1, 2, 2, 2][..], &[1, 1, 2, 2], &[1, 1, 2], &[1, 1, 1, 2, 3, 4], &[1, 2]] {
            assert_eq!(verdict(hashes), Verdict::Undecided, "{hashes:?}");
        }
        assert_eq!((verdict(&[7; 6]), verdict(&[])), (Verdict::Same, Verdict::Same));
    }

    fn at(ms: u64) -> Instant {
        Instant { ns: ms * 1_000_000 }
    }

    fn limits() -> Limits {
        Limits { scrub_bytes_per_s: 1 << 20, scrub_every: Duration::from_secs(10), scrub_piece_bytes: 64 << 10, ..Limits::default() }
    }

    /// A whole pass over copies of 1 MiB each: when each piece was asked for, and when it was over.
    fn pass(scrub: &mut Scrub, mut answers: impl FnMut(CopyId, u64) -> Option<Digest>) -> (u64, Vec<(u64, CopyId)>, Vec<Verdict>) {
        let (mut asked, mut verdicts) = (Vec::new(), Vec::new());
        for ms in 0..60_000 {
            for ask in scrub.due(at(ms), &CopyId::all(), Lsn(5)) {
                match ask {
                    Ask::Check { copy, id, from, bytes_max } => {
                        asked.push((ms, copy));
                        let done = match from {
                            None => 0,
                            Some(CheckPlace::Log { from, .. }) => from.0,
                            Some(CheckPlace::Layers { .. }) => unreachable!(),
                        } + bytes_max as u64;
                        let next =
                            (done < 1 << 20).then_some(CheckPlace::Log { from: crate::base::Seq(done), until: crate::base::Seq(u64::MAX) });
                        if scrub.checked(at(ms), copy, id, bytes_max as u64, next) {
                            return (ms, asked, verdicts);
                        }
                    }
                    Ask::Digest { copy, id, from, .. } => {
                        verdicts.extend(scrub.digested(at(ms), copy, id, answers(copy, u64::from(from.0))).map(|(_, _, v)| v));
                    }
                }
            }
            if scrub.ended(at(ms)) {
                return (ms, asked, verdicts);
            }
        }
        panic!("no end: {scrub:?}");
    }

    #[test]
    fn a_pass_reads_everything_at_the_rate_and_comes_again() {
        let mut scrub = Scrub::new(&limits());
        scrub.serve(at(0));
        let (ended, asked, verdicts) = pass(&mut scrub, |_, from| Some(Digest { next: (from < 160).then_some(PageNo(160)), ..digest(3) }));
        // 1 MiB at 1 MiB/s, from the tenth second on.
        assert!((10_900..11_200).contains(&ended), "{ended}");
        assert_eq!(asked.len(), 16 * 6);
        assert_eq!(verdicts, [Verdict::Same, Verdict::Same]);
        let view = scrub.view(CopyId(3));
        assert_eq!((view.ended, view.read_bytes, view.pages, view.found), (Some(at(ended)), 1 << 20, 2, 0));
        assert_eq!(scrub.next_timeout(), Some(at(20_000)));
    }

    #[test]
    fn what_has_no_answer_does_not_hold_the_pass_up_and_who_is_odd_is_named() {
        let mut scrub = Scrub::new(&limits());
        scrub.serve(at(0));
        // One cannot, one differs.
        let (_, _, verdicts) = pass(&mut scrub, |copy, _| match copy.0 {
            0 => None,
            1 => Some(digest(9)),
            _ => Some(digest(3)),
        });
        assert_eq!(verdicts, [Verdict::Odd(vec![CopyId(1)])]);
        // Nobody answers at all: it gives up, and says of no copy that it was scrubbed.
        let mut scrub = Scrub::new(&limits());
        scrub.serve(at(0));
        for ms in 0..200_000 {
            scrub.due(at(ms), &CopyId::all(), Lsn(5));
            if scrub.ended(at(ms)) {
                assert_eq!(scrub.view(CopyId(0)).ended, None);
                return;
            }
        }
        panic!("it waits for ever");
    }

    #[test]
    fn off_is_off() {
        let mut scrub = Scrub::new(&Limits { scrub_bytes_per_s: 0, ..limits() });
        scrub.serve(at(0));
        assert_eq!(scrub.next_timeout(), None);
        assert!(scrub.due(at(1_000_000), &CopyId::all(), Lsn(5)).is_empty());
    }
}
