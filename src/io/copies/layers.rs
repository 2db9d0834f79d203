//! The thread that writes layer files, one for all copies of a process.
//!
//! Decides whose slice is next: memtables that ingesting will soon wait for go first, everything else takes turns and rests longer than it
//! worked, so that the log's fsyncs find the disk and the cores free. A merge that is late (layers pile up, reads get dearer) does not rest.
//! The thread has the priority of the others: on a busy machine commits would wait for a memtable that nobody gets to write. Never decides
//! what is merged. Driven by the jobs that copies hand in; ends when the last of them is gone.

use super::{Mailbox, Order};
use crate::io::clock;
use crate::volume::{FlushJob, Slice};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Written between two looks at what else there is to do.
const SLICE_BYTES: usize = 256 << 10;
/// So many times as long as a slice took, nothing is done.
const RESTS: u32 = 2;
/// It rests no longer than this, however slow the disk was.
const REST_MAX: Duration = Duration::from_millis(100);

pub(super) type Job = (FlushJob, Mailbox);

/// Runs until every sender of jobs is gone.
pub(super) fn run(jobs: &Receiver<Job>) {
    let mut waiting: VecDeque<Job> = VecDeque::new();
    let mut rest = Duration::ZERO;
    loop {
        if waiting.is_empty() {
            match jobs.recv() {
                Ok(job) => waiting.push_back(job),
                Err(_) => return,
            }
        } else if !rest.is_zero() && !waiting.iter().any(|(job, _)| job.is_urgent()) {
            match jobs.recv_timeout(rest) {
                Ok(job) => waiting.push_back(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        waiting.extend(jobs.try_iter());
        let next = waiting.iter().position(|(job, _)| job.is_urgent()).unwrap_or(0);
        let Some((job, back)) = waiting.remove(next) else { continue };
        let (began, urgent) = (clock::now(), job.is_urgent());
        match job.run_slice(SLICE_BYTES) {
            Slice::More(job) => waiting.push_back((job, back)),
            // A copy that is gone meanwhile waits for nothing.
            Slice::Done(done) => drop(back.send(Order::JobDone(done))),
        }
        rest = if urgent { Duration::ZERO } else { (clock::now().since(began) * RESTS).min(REST_MAX) };
    }
}
