//! A reader's database file: the database at one pinned LSN.
//!
//! Decides nothing but what SQLite must believe so that it drops its page cache when the snapshot moved: bytes 24..27 of
//! page 1, the file change counter, are replaced by a counter that grows whenever a lock is taken at another snapshot
//! than the last one. Driven by SQLite on one reader thread, which sets the snapshot before each statement.

use super::PAGE_BYTES;
use super::context::Context;
use super::horizon::Snapshot;
use super::pool::{Page, PoolError};
use super::shared::Shared;
use super::vfs::{DatabaseFile, FileError, Level};
use crate::base::PageNo;
use crate::head::PageError;
use crate::head::sql::{SqlError, state};
use crate::log::redo::VolumeHeader;
use parking_lot::Mutex;
use std::sync::Arc;

const COUNTER_AT: usize = 24;

#[derive(Default)]
struct View {
    /// What the next lock will see.
    next: Option<Snapshot>,
    /// What SQLite's cache holds: the snapshot of the last lock.
    cached: Option<Snapshot>,
    counter: u32,
    /// While locked: the snapshot and the size of the database in it.
    locked: Option<(Snapshot, u32)>,
}

pub struct ReaderFile {
    shared: Arc<Shared>,
    context: Arc<Context>,
    view: Mutex<View>,
}

impl ReaderFile {
    pub fn new(shared: Arc<Shared>, context: Arc<Context>) -> ReaderFile {
        ReaderFile { shared, context, view: Mutex::default() }
    }

    /// What the statements from now on see.
    pub fn set_snapshot(&self, snapshot: Option<Snapshot>) {
        self.view.lock().next = snapshot;
    }

    fn page(&self, page: PageNo, snapshot: Snapshot) -> Result<Page, FileError> {
        self.shared.pool.at(page, snapshot, &*self.shared.source).map_err(|e| {
            let code = match e {
                PoolError::Stale => state::SERIALIZATION_FAILURE,
                PoolError::Source(PageError::TooOld { .. }) => state::SNAPSHOT_TOO_OLD,
                PoolError::Source(_) => state::IO_ERROR,
            };
            self.context.blame(SqlError::new(code, e.to_string()));
            FileError::Read
        })
    }
}

impl DatabaseFile for ReaderFile {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool, FileError> {
        let view = self.view.lock();
        // SQLite looks at the header once without a lock, when it opens a file. It reads it again with one.
        let Some((snapshot, page_count)) = view.locked else { return Ok(false) };
        let (number, at) = super::place(offset);
        if number > page_count {
            return Ok(false);
        }
        if at + out.len() > PAGE_BYTES {
            return Err(FileError::Misuse);
        }
        let page = self.page(PageNo(number), snapshot)?;
        super::copy_part(&page, at, out);
        if number == 1 {
            self.shared.note_schema(snapshot.incarnation, snapshot.lsn, &page);
            for (i, byte) in view.counter.to_be_bytes().into_iter().enumerate() {
                if let Some(place) = (COUNTER_AT + i).checked_sub(at).and_then(|i| out.get_mut(i)) {
                    *place = byte;
                }
            }
        }
        Ok(true)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), FileError> {
        Err(FileError::ReadOnly)
    }

    fn truncate(&self, _size: u64) -> Result<(), FileError> {
        Err(FileError::ReadOnly)
    }

    fn size(&self) -> Result<u64, FileError> {
        Ok(self.view.lock().locked.map_or(0, |(_, count)| u64::from(count) * PAGE_BYTES as u64))
    }

    fn lock(&self, level: Level) -> Result<(), FileError> {
        if level == Level::Write {
            return Err(FileError::ReadOnly);
        }
        let mut view = self.view.lock();
        if view.locked.is_some() {
            return Ok(());
        }
        let snapshot = view.next.ok_or(FileError::Misuse)?;
        let header = VolumeHeader::from_page(&self.page(PageNo::HEADER, snapshot)?);
        if view.cached != Some(snapshot) {
            view.counter = view.counter.wrapping_add(1);
            view.cached = Some(snapshot);
        }
        view.locked = Some((snapshot, header.page_count));
        Ok(())
    }

    fn unlock(&self, level: Level) {
        if level == Level::None {
            self.view.lock().locked = None;
        }
    }

    fn commit(&self) -> Result<(), FileError> {
        Ok(())
    }
}
