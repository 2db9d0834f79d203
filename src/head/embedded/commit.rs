//! The writer's database file: a buffer for the running transaction, and the commit that turns it into the log.
//!
//! Decides what a commit writes: for each dirty page the difference to its version before, the volume's header page when
//! the size changed, packed into frames as one mini-transaction. Never waits for durability. A crash before `submit`
//! means that nothing happened; after it, recovery decides by what reached the copies.
//! Driven by SQLite on the writer thread; `close` may come from any thread and never waits for a page.
//!
//! Invariant: pages of the volume beyond the database's size are empty. So a page that the database grows into can be
//! written as a difference to nothing, although it may have existed before a VACUUM.

use super::PAGE_BYTES;
use super::context::Context;
use super::pool::{Page, Pool, PoolError};
use super::shared::Shared;
use super::space::Free;
use super::vfs::{DatabaseFile, FileError, Level};
use crate::base::{Epoch, Generation, GroupId, Layout, Lsn, PageNo};
use crate::head::LogSink;
use crate::head::sql::{SqlError, state};
use crate::io::clock;
use crate::log::Pen;
use crate::log::redo::{self, Change, RECORD_HEADER_BYTES, VolumeHeader};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Pen and sink of an open writer.
struct Outlet {
    pen: Pen,
    log: Arc<dyn LogSink>,
}

#[derive(Default)]
struct Buffer {
    /// Read from the header page at the first use, then kept here.
    committed_pages: Option<u32>,
    /// The most pages there ever were, as the header page says.
    high_water: u32,
    pages: BTreeMap<u32, Box<[u8]>>,
    /// Size of the database as the running transaction sees it.
    page_count: u32,
    writing: bool,
}

pub struct WriterFile {
    shared: Arc<Shared>,
    context: Arc<Context>,
    buffer: Mutex<Buffer>,
    /// `None` once the writer is closed: from then on nothing leaves, whatever the thread is still doing.
    outlet: Mutex<Option<Outlet>>,
    payload_bytes_max: usize,
    head: AtomicU64,
    reign: u64,
    /// The transaction is the writer's own and no client's: nobody counts it as a commit.
    own: AtomicBool,
    /// Term of the frames, known from the first one.
    term: OnceLock<(Epoch, Generation)>,
}

impl WriterFile {
    pub fn new(shared: Arc<Shared>, context: Arc<Context>, pen: Pen, log: Arc<dyn LogSink>, reign: u64) -> WriterFile {
        let head = AtomicU64::new(pen.end().end_lsn.0);
        let payload_bytes_max = pen.payload_bytes_max();
        let outlet = Mutex::new(Some(Outlet { pen, log }));
        WriterFile {
            shared,
            context,
            buffer: Mutex::default(),
            outlet,
            payload_bytes_max,
            head,
            reign,
            own: AtomicBool::new(false),
            term: OnceLock::new(),
        }
    }

    /// End of the last commit, durable or not: what a read on this connection sees.
    pub fn head(&self) -> Lsn {
        Lsn(self.head.load(Ordering::SeqCst))
    }

    pub fn wrote_as(&self) -> Option<(Epoch, Generation)> {
        self.term.get().copied()
    }

    /// Free pages, and pages in all. Asked between transactions.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn space(&self) -> Result<(Free, u32), FileError> {
        let pages = self.load_size(&mut self.buffer.lock())?;
        let free = if pages == 0 { Free::of(&[]) } else { Free::of(&self.newest(PageNo(1))?) };
        Ok((free, pages))
    }

    /// What is committed from now on is the writer's own, or a client's again.
    pub fn set_own(&self, own: bool) {
        self.own.store(own, Ordering::Relaxed);
    }

    /// When this returns, no frame leaves any more.
    pub fn close(&self) {
        *self.outlet.lock() = None;
    }

    fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    fn newest(&self, page: PageNo) -> Result<Page, FileError> {
        self.pool().newest(page, self.shared.horizon.visible(), self.reign, &*self.shared.source).map_err(|e| self.refuse_page(&e))
    }

    fn refuse_page(&self, error: &PoolError) -> FileError {
        self.context.blame(SqlError::new(state::IO_ERROR, error.to_string()));
        FileError::Read
    }

    fn load_size(&self, buffer: &mut Buffer) -> Result<u32, FileError> {
        if let Some(count) = buffer.committed_pages {
            return Ok(count);
        }
        let header = VolumeHeader::from_page(&self.newest(PageNo::HEADER)?);
        if !matches!(header.page_bytes as usize, 0 | PAGE_BYTES) {
            let message = format!("this volume has pages of {} bytes; this parhelion serves pages of {PAGE_BYTES}", header.page_bytes);
            self.context.blame(SqlError::new(state::DATA_CORRUPTED, message));
            return Err(FileError::Read);
        }
        buffer.committed_pages = Some(header.page_count);
        buffer.high_water = header.high_water;
        buffer.page_count = header.page_count;
        Ok(header.page_count)
    }

    /// The whole change of the transaction: redo records packed into payloads, and the pages as they will be.
    fn collect(&self, buffer: &Buffer, committed: u32) -> Result<Collected, FileError> {
        let layout = self.shared.settings.layout;
        let mut payloads = Packer { layout, payloads: Vec::new(), bytes_max: self.payload_bytes_max };
        let mut versions = Vec::with_capacity(buffer.pages.len() + 1);
        if buffer.page_count != committed {
            let (page_count, high_water) = (buffer.page_count, buffer.high_water.max(buffer.page_count));
            let header = VolumeHeader { page_count, page_bytes: PAGE_BYTES as u32, high_water }.to_image();
            versions.push((PageNo::HEADER, Page::from(&header.body()[..])));
            payloads.put(PageNo::HEADER, &header);
        }
        for (&number, after) in buffer.pages.range(..=buffer.page_count) {
            let page = PageNo(number);
            let change = if number > committed {
                redo::difference(&[], after)
            } else {
                let before = self.newest(page)?;
                redo::difference(&before, after)
            };
            if let Some(change) = change {
                payloads.put(page, &change);
                versions.push((page, Page::from(&after[..])));
            }
        }
        for number in buffer.page_count + 1..=committed {
            payloads.put(PageNo(number), &Change::Image(Bytes::new()));
            versions.push((PageNo(number), Page::from(&[][..])));
        }
        Ok(Collected { payloads: payloads.payloads, versions })
    }

    fn refuse(&self, code: &'static str, message: String) -> FileError {
        self.context.blame(SqlError::new(code, message));
        FileError::Refused
    }
}

struct Collected {
    payloads: Vec<(GroupId, Vec<u8>)>,
    versions: Vec<(PageNo, Page)>,
}

/// Records of one transaction on their way into frames: each frame takes the pages of one protection group.
struct Packer {
    layout: Layout,
    payloads: Vec<(GroupId, Vec<u8>)>,
    bytes_max: usize,
}

impl Packer {
    fn put(&mut self, page: PageNo, change: &Change) {
        let len = RECORD_HEADER_BYTES + change.body().len();
        let group = self.layout.group_of(page);
        // The newest of that group; the others before it are full.
        match self.payloads.iter_mut().rev().find(|(g, _)| *g == group).map(|(_, payload)| payload) {
            Some(last) if last.len() + len <= self.bytes_max => redo::put_record(last, page, change),
            _ => {
                let mut payload = Vec::with_capacity(len);
                redo::put_record(&mut payload, page, change);
                self.payloads.push((group, payload));
            }
        }
    }
}

impl DatabaseFile for WriterFile {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, FileError> {
        let mut buffer = self.buffer.lock();
        self.load_size(&mut buffer)?;
        let (number, at) = super::place(offset);
        if number > buffer.page_count {
            return Ok(false);
        }
        if at + out.len() > PAGE_BYTES {
            return Err(FileError::Misuse);
        }
        if let Some(page) = buffer.pages.get(&number) {
            super::copy_part(page, at, out);
        } else if buffer.committed_pages.is_some_and(|count| number <= count) {
            super::copy_part(&self.newest(PageNo(number))?, at, out);
        }
        Ok(true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let mut buffer = self.buffer.lock();
        let (number, at) = super::place(offset);
        if at != 0 || data.len() != PAGE_BYTES || !buffer.writing {
            return Err(FileError::Misuse);
        }
        buffer.pages.insert(number, Box::from(data));
        buffer.page_count = buffer.page_count.max(number);
        let max = self.shared.settings.transaction_bytes_max;
        if buffer.pages.len() * PAGE_BYTES > max {
            let message = format!(
                "this transaction changes more than {max} bytes of pages, which is the limit of one transaction; split it into smaller ones"
            );
            return Err(self.refuse(state::PROGRAM_LIMIT_EXCEEDED, message));
        }
        Ok(())
    }

    fn truncate(&self, size: u64) -> Result<(), FileError> {
        let mut buffer = self.buffer.lock();
        let count = u32::try_from(size.div_ceil(PAGE_BYTES as u64)).map_err(|_| FileError::Misuse)?;
        buffer.page_count = count;
        buffer.pages.retain(|&number, _| number <= count);
        Ok(())
    }

    fn size(&self) -> Result<u64, FileError> {
        let mut buffer = self.buffer.lock();
        self.load_size(&mut buffer)?;
        Ok(u64::from(buffer.page_count) * PAGE_BYTES as u64)
    }

    fn lock(&self, level: Level) -> Result<(), FileError> {
        let mut buffer = self.buffer.lock();
        self.load_size(&mut buffer)?;
        buffer.writing |= level == Level::Write;
        Ok(())
    }

    fn unlock(&self, _level: Level) {
        // Whatever was not committed is dropped here: a rollback needs no more.
        let mut buffer = self.buffer.lock();
        buffer.writing = false;
        buffer.pages = BTreeMap::new();
        if let Some(count) = buffer.committed_pages {
            buffer.page_count = count;
        }
    }

    fn commit(&self) -> Result<(), FileError> {
        let mut buffer = self.buffer.lock();
        let committed = self.load_size(&mut buffer)?;
        if buffer.pages.is_empty() && buffer.page_count == committed {
            return Ok(());
        }
        // Before the outlet is taken, because a before-image may have to come from a copy.
        let Collected { payloads, versions } = self.collect(&buffer, committed).map_err(|_| FileError::Refused)?;
        if payloads.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.shared.may_write() {
            self.context.blame(error);
            return Err(FileError::Refused);
        }
        let mut outlet = self.outlet.lock();
        let Some(open) = outlet.as_mut() else {
            return Err(
                self.refuse(state::ADMIN_SHUTDOWN, "this region is no longer the writer; the transaction was rolled back".to_string())
            );
        };
        let own = self.own.load(Ordering::Relaxed);
        let frames = open.pen.write_groups(&payloads, !own, clock::unix_now());
        let last = frames.last().expect("BUG: payloads are not empty");
        let end = last.end_lsn();
        self.term.get_or_init(|| (last.header().epoch, last.header().generation));
        if let Some((_, page_one)) = versions.iter().find(|(page, _)| page.0 == 1) {
            self.shared.note_schema(self.shared.horizon.incarnation(), end, page_one);
        }
        // Into the pool first: once submitted, they may become visible at any moment.
        self.pool().install(versions, end, self.shared.horizon.oldest());
        self.head.store(end.0, Ordering::SeqCst);
        open.log.submit(frames);
        drop(outlet);
        self.shared.counters.commits.fetch_add(u64::from(!own), Ordering::Relaxed);
        buffer.committed_pages = Some(buffer.page_count);
        buffer.high_water = buffer.high_water.max(buffer.page_count);
        Ok(())
    }
}
