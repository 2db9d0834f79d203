//! The rebuilding of one copy from its peers: pages at the VDL of the moment it began, one batch at a time, then the log.
//!
//! Decides only the next step of one copy; the appender reads the pages from a good copy and carries the messages. The copy
//! keeps what it has until the last step, so a crash anywhere here costs nothing but the work.

use super::message::CopyRequest;
use crate::base::{Generation, Instant, LogEnd, Lsn, PageNo};
use crate::log::SeedBase;
use crate::log::redo::VolumeHeader;
use bytes::Bytes;

#[derive(Debug)]
pub(super) struct Repair {
    base: Option<SeedBase>,
    /// Where its steps are counted from at the copy (see `SeedBegin`); here they count from 0.
    first: u64,
    /// Steps stored at the copy; 0 is `SeedBegin`.
    stored: Option<u64>,
    /// The request that was sent and not yet answered, for sending it again.
    unanswered: Option<CopyRequest>,
    next_page: Option<PageNo>,
    /// The pages at the base can no longer be read.
    restart: bool,
    /// The copy says that it is at another step than the one asked for. Perhaps an old answer; if nothing better comes, a late
    /// `SeedBegin` put it back, and the seed begins anew.
    astray: bool,
    view: RepairView,
}

/// How far the rebuilding of a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairView {
    pub began: Instant,
    /// Pages stored so far, and their bytes.
    pub pages: u64,
    pub bytes: u64,
    /// Pages in all, as the volume's header says; `None` before that was read.
    pub pages_in_all: Option<u64>,
    /// When the last of them were read from a peer.
    pub moved: Instant,
}

pub(super) enum Next {
    /// Read the next pages from a peer.
    Read,
    Send(CopyRequest),
    /// Nothing can be done before it is begun anew.
    Nothing,
}

impl Repair {
    /// Nothing can be copied yet (the volume itself is not durable).
    pub(super) fn waiting() -> Repair {
        Repair {
            base: None,
            first: 0,
            stored: None,
            unanswered: None,
            next_page: None,
            restart: true,
            astray: false,
            view: RepairView::default(),
        }
    }

    pub(super) fn begin(now: Instant, generation: Generation, first: u64, base: SeedBase) -> (Repair, CopyRequest) {
        let request = CopyRequest::SeedBegin { generation, step: first, base: base.clone() };
        let repair = Repair {
            base: Some(base),
            first,
            stored: None,
            unanswered: Some(request.clone()),
            next_page: Some(PageNo(0)),
            restart: false,
            astray: false,
            view: RepairView { began: now, moved: now, ..RepairView::default() },
        };
        (repair, request)
    }

    /// The LSN that the pages are read at; versions there must stay.
    pub(super) fn at(&self) -> Lsn {
        self.base.as_ref().map_or(Lsn(u64::MAX), |b| b.end.end_lsn)
    }

    pub(super) fn next_page(&self) -> PageNo {
        self.next_page.unwrap_or_default()
    }

    pub(super) fn is_done_at(&self, end: &LogEnd) -> bool {
        self.next_page.is_none() && self.base.as_ref().is_some_and(|b| b.end == *end)
    }

    pub(super) fn restart_later(&mut self) {
        self.restart = true;
    }

    /// `None`: it has not begun.
    pub(super) fn view(&self) -> Option<RepairView> {
        self.base.as_ref().map(|_| self.view)
    }

    /// Pages came from a peer: the request that stores them. `None`: nothing was asked for, because something is being stored.
    pub(super) fn pages_arrived(
        &mut self,
        now: Instant,
        generation: Generation,
        pages: Vec<(PageNo, Bytes)>,
        next: Option<PageNo>,
    ) -> Option<CopyRequest> {
        let step = self.stored.filter(|_| self.unanswered.is_none())? + 1;
        self.next_page = next;
        for (page, bytes) in &pages {
            if *page == PageNo::HEADER {
                self.view.pages_in_all = Some(VolumeHeader::from_page(bytes).page_count.into());
            }
            self.view.bytes += bytes.len() as u64;
        }
        self.view.pages += pages.len() as u64;
        self.view.moved = now;
        let request = CopyRequest::SeedPages { generation, step: self.first + step, pages };
        self.unanswered = Some(request.clone());
        Some(request)
    }

    /// The copy stored `step`.
    pub(super) fn stored(&mut self, generation: Generation, step: u64) -> Next {
        let Some(step) = step.checked_sub(self.first) else { return Next::Nothing };
        if self.restart || step != self.stored.map_or(0, |s| s + 1) || self.unanswered.is_none() {
            self.astray = self.stored != Some(step);
            return Next::Nothing;
        }
        self.astray = false;
        self.stored = Some(step);
        self.unanswered = None;
        if self.next_page.is_some() {
            return Next::Read;
        }
        let request = CopyRequest::SeedEnd { generation, steps: self.first + step };
        self.unanswered = Some(request.clone());
        Next::Send(request)
    }

    pub(super) fn ask_again(&self) -> Next {
        match &self.unanswered {
            _ if self.restart || self.astray => Next::Nothing,
            Some(request) => Next::Send(request.clone()),
            None => Next::Read,
        }
    }
}
