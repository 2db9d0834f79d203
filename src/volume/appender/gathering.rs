//! Reads that need all protection groups: the log, whose frames each lie whole in one group, and pages in order across segments.
//!
//! Decides what is asked of which group and how the answers become one: frames are taken from the group that has them whole; pages
//! come segment by segment, each from its own group, and where a segment ends every group is asked for its next page. One answer that
//! fails fails the whole read; its reader asks again. With one group none of this runs.

use super::*;

/// A read under way in all groups.
#[derive(Debug)]
pub(super) struct Gather {
    want: Want,
    /// By group; `None` while its answer is awaited.
    parts: Vec<Option<Part>>,
}

#[derive(Debug)]
enum Want {
    Log { tag: u64, bytes_max: usize },
    Pages { tag: u64, at: Lsn },
}

#[derive(Debug)]
pub(super) enum Part {
    Log(LogOutcome),
    Pages(Vec<(PageNo, Bytes)>, Option<PageNo>),
}

impl Appender {
    /// Frames from `from` on, from one copy of each group.
    pub(super) fn gather_log(&mut self, now: Instant, tag: u64, from: Seq, bytes_max: usize) {
        let gather = self.begin_gather(Want::Log { tag, bytes_max });
        for group in self.layout.all_groups() {
            self.start_read(now, ReadPurpose::LogPart { gather, group, from, bytes_max }, Vec::new());
        }
    }

    /// The next page of each group, from `from` on.
    fn gather_pages(&mut self, now: Instant, tag: u64, at: Lsn, from: PageNo) {
        let gather = self.begin_gather(Want::Pages { tag, at });
        for group in self.layout.all_groups() {
            self.start_read(now, ReadPurpose::PagesPart { gather, group, at, from }, Vec::new());
        }
    }

    fn begin_gather(&mut self, want: Want) -> u64 {
        let id = self.next_read;
        self.next_read += 1;
        let parts = self.layout.all_groups().map(|_| None).collect();
        self.gathers.insert(id, Gather { want, parts });
        id
    }

    pub(super) fn part_read(&mut self, gather: u64, group: GroupId, part: Part) {
        let Some(waiting) = self.gathers.get_mut(&gather) else { return };
        waiting.parts[group.index()] = Some(part);
        if waiting.parts.iter().any(Option::is_none) {
            return;
        }
        let Some(Gather { want, parts }) = self.gathers.remove(&gather) else { return };
        let parts = parts.into_iter().flatten();
        self.effects.push_back(match want {
            Want::Log { tag, bytes_max } => AppenderEffect::Log { tag, outcome: weave(parts, bytes_max) },
            Want::Pages { tag, at } => {
                let (pages, next) = lowest(parts);
                AppenderEffect::Pages { tag, outcome: PagesOutcome::Pages { at, pages, next } }
            }
        });
    }

    pub(super) fn part_failed(&mut self, gather: u64, reason: String) {
        let Some(Gather { want, .. }) = self.gathers.remove(&gather) else { return };
        self.effects.push_back(match want {
            Want::Log { tag, .. } => AppenderEffect::Log { tag, outcome: LogOutcome::Unreadable { reason } },
            Want::Pages { tag, .. } => AppenderEffect::Pages { tag, outcome: PagesOutcome::Unreadable { reason } },
        });
    }

    /// Pages from `from` on as the group of its segment has them: what lies in later segments of that group is not next in order.
    pub(super) fn segment_read(
        &mut self,
        now: Instant,
        tag: u64,
        at: Lsn,
        from: PageNo,
        mut pages: Vec<(PageNo, Bytes)>,
        next: Option<PageNo>,
    ) {
        let end = self.layout.segment_end(from);
        let goes_on = next.is_some_and(|next| end.is_none_or(|end| next < end));
        if let Some(end) = end.filter(|_| self.layout.groups > 1 && !goes_on) {
            pages.retain(|(page, _)| *page < end);
            if pages.is_empty() {
                return self.gather_pages(now, tag, at, end);
            }
            let outcome = PagesOutcome::Pages { at, pages, next: Some(end) };
            return self.effects.push_back(AppenderEffect::Pages { tag, outcome });
        }
        self.effects.push_back(AppenderEffect::Pages { tag, outcome: PagesOutcome::Pages { at, pages, next } });
    }

    /// A step of the region's seed as one copy gets it: of the pages those of its group.
    pub(super) fn for_member(&self, copy: MemberId, request: &CopyRequest) -> CopyRequest {
        match request {
            CopyRequest::SeedPages { generation, step, pages } if self.layout.groups > 1 => {
                let own = pages.iter().filter(|(page, _)| self.layout.group_of(*page) == copy.group).cloned().collect();
                CopyRequest::SeedPages { generation: *generation, step: *step, pages: own }
            }
            other => other.clone(),
        }
    }
}

/// One log out of each group's, as far as all of them reach.
fn weave(parts: impl Iterator<Item = Part>, bytes_max: usize) -> LogOutcome {
    let mut logs = Vec::new();
    let mut trimmed = None;
    for part in parts {
        match part {
            Part::Log(LogOutcome::Frames(frames)) => logs.push(frames.into_iter()),
            Part::Log(LogOutcome::Trimmed { first }) => trimmed = trimmed.max(Some(first)),
            Part::Log(unreadable @ LogOutcome::Unreadable { .. }) => return unreadable,
            Part::Pages(..) => unreachable!("BUG: pages for a question about the log"),
        }
    }
    if let Some(first) = trimmed {
        return LogOutcome::Trimmed { first };
    }
    let mut whole: Vec<Frame> = Vec::new();
    let mut bytes = 0;
    while let Some(row) = logs.iter_mut().map(Iterator::next).collect::<Option<Vec<Frame>>>() {
        if row.windows(2).any(|pair| pair[0].log_end() != pair[1].log_end()) {
            return LogOutcome::Unreadable { reason: format!("the groups' logs differ at seq {}", row[0].seq()) };
        }
        let Some(frame) = row.into_iter().find(|f| !f.is_elided()) else {
            return LogOutcome::Unreadable { reason: "no group has the payload of a frame".into() };
        };
        bytes += frame.bytes().len();
        if bytes > bytes_max && !whole.is_empty() {
            break;
        }
        whole.push(frame);
    }
    LogOutcome::Frames(whole)
}

/// Of each group's next pages those that no other group can come before.
fn lowest(parts: impl Iterator<Item = Part>) -> (Vec<(PageNo, Bytes)>, Option<PageNo>) {
    let (mut pages, mut next): (Vec<(PageNo, Bytes)>, Option<PageNo>) = (Vec::new(), None);
    for part in parts {
        let Part::Pages(some, goes_on) = part else { unreachable!("BUG: log for a question about pages") };
        pages.extend(some);
        next = [next, goes_on].into_iter().flatten().min();
    }
    pages.retain(|(page, _)| next.is_none_or(|next| *page < next));
    pages.sort_by_key(|(page, _)| *page);
    (pages, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Frame> {
        let mut pen = Pen::new(Epoch(1), Generation(1), LogEnd::EMPTY, 100);
        let payload = |n: u8| vec![n; usize::from(n) + 1];
        let mut frames = Vec::new();
        for n in 0..10 {
            frames.extend(pen.write_groups(&[(GroupId(u32::from(n) % 3), payload(n)), (GroupId(0), payload(n))], true, UnixMicros(1)));
        }
        frames
    }

    fn of(frames: &[Frame], group: u32) -> Part {
        Part::Log(LogOutcome::Frames(frames.iter().map(|f| f.for_group(GroupId(group))).collect()))
    }

    #[test]
    fn the_groups_logs_are_woven_into_the_whole_log() {
        let all = log();
        let LogOutcome::Frames(woven) = weave([of(&all, 0), of(&all, 1), of(&all, 2)].into_iter(), 1 << 20) else { panic!("frames") };
        assert_eq!(woven, all);
        let LogOutcome::Frames(short) = weave([of(&all, 0), of(&all[..7], 1), of(&all, 2)].into_iter(), 1 << 20) else { panic!("frames") };
        assert_eq!(short, all[..7], "as far as all of them reach");
        let LogOutcome::Frames(few) = weave([of(&all, 0), of(&all, 1), of(&all, 2)].into_iter(), 200) else { panic!("frames") };
        assert!(!few.is_empty() && few.iter().map(|f| f.bytes().len()).sum::<usize>() <= 200);
        assert!(matches!(weave([of(&all, 0), of(&all, 0), of(&all, 2)].into_iter(), 1 << 20), LogOutcome::Unreadable { .. }));
        let trimmed = Part::Log(LogOutcome::Trimmed { first: Seq(4) });
        assert!(matches!(weave([of(&all, 0), trimmed, of(&all, 2)].into_iter(), 1 << 20), LogOutcome::Trimmed { first: Seq(4) }));
    }

    #[test]
    fn the_lowest_pages_of_all_groups_come_first() {
        let page = |n: u32| (PageNo(n), Bytes::new());
        let parts = [Part::Pages(vec![page(8)], Some(PageNo(9))), Part::Pages(vec![page(4)], Some(PageNo(6))), Part::Pages(vec![], None)];
        assert_eq!(lowest(parts.into_iter()), (vec![page(4)], Some(PageNo(6))));
        let parts = [Part::Pages(vec![page(9)], None), Part::Pages(vec![page(4)], None)];
        assert_eq!(lowest(parts.into_iter()), (vec![page(4), page(9)], None));
        assert_eq!(lowest([Part::Pages(vec![], None)].into_iter()), (vec![], None));
    }
}
