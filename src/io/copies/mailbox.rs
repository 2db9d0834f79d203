//! What a copy's thread is told, and how much of it may wait.
//!
//! A copy that is slow must not fill the memory of those that are not. So requests beyond a bound are dropped, as a network
//! would: the protocol bears losses, and the appender asks again. Everything else (drills, finished jobs, the end) always arrives.

use super::Order;
use crate::base::Limits;
use crate::volume::CopyRequest;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

/// What an order takes beside its frames and pages.
const ORDER_BYTES: usize = 512;

/// What a request holds in memory, about.
#[must_use]
pub fn request_bytes(request: &CopyRequest) -> usize {
    ORDER_BYTES
        + match request {
            CopyRequest::Append { frames, .. } => frames.iter().map(|f| f.bytes().len() + 64).sum::<usize>(),
            CopyRequest::SeedPages { pages, .. } => pages.iter().map(|(_, p)| p.len() + 64).sum(),
            CopyRequest::PutControl { control, .. } => control.len(),
            _ => 0,
        }
}

/// So much may wait for one copy: its window twice, as what is lost on the way is sent again, and some.
#[must_use]
pub fn waiting_bytes_max(limits: &Limits) -> usize {
    2 * limits.copy_window_bytes_max + (4 << 20)
}

fn order_bytes(order: &Order) -> usize {
    match order {
        Order::Request(request) | Order::RequestOf { request, .. } => request_bytes(request),
        _ => 0,
    }
}

#[derive(Clone)]
pub struct Mailbox {
    tx: Sender<Order>,
    waiting: Arc<AtomicUsize>,
    bytes_max: usize,
}

pub struct Mail {
    rx: Receiver<Order>,
    waiting: Arc<AtomicUsize>,
}

#[must_use]
pub fn mailbox(bytes_max: usize) -> (Mailbox, Mail) {
    let (tx, rx) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (Mailbox { tx, waiting: Arc::clone(&waiting), bytes_max }, Mail { rx, waiting })
}

impl Mailbox {
    /// False when it was dropped.
    pub fn send(&self, order: Order) -> bool {
        let bytes = order_bytes(&order);
        if bytes > 0 && self.is_full() {
            return false;
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        // A copy's thread only ends at `End`; a message behind that is for nobody.
        self.tx.send(order).is_ok()
    }

    /// Requests would be dropped.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= self.bytes_max
    }
}

impl Mail {
    fn taken(&self, order: Order) -> Order {
        self.waiting.fetch_sub(order_bytes(&order), Ordering::Relaxed);
        order
    }

    /// `None`: nobody can send any more.
    pub fn recv(&self) -> Option<Order> {
        self.rx.recv().ok().map(|order| self.taken(order))
    }

    /// # Errors
    /// Nothing came in time, or nobody can send any more.
    pub fn recv_timeout(&self, wait: Duration) -> Result<Order, RecvTimeoutError> {
        self.rx.recv_timeout(wait).map(|order| self.taken(order))
    }

    /// # Errors
    /// Nothing is there, or nobody can send any more.
    pub fn try_recv(&self) -> Result<Order, TryRecvError> {
        self.rx.try_recv().map(|order| self.taken(order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Generation, LogEnd, Lsn, Seq};

    #[test]
    fn what_waits_for_a_copy_that_takes_nothing_is_bounded_and_orders_still_arrive() {
        let notice = || {
            let generation = Generation(1);
            Order::Request(CopyRequest::Append {
                generation,
                frames: Vec::new(),
                vdl: LogEnd::EMPTY,
                horizon: Lsn(0),
                trim: Seq(0),
                gate: None,
            })
        };
        let (mailbox, mail) = mailbox(10 * ORDER_BYTES);
        let taken = (0..1000).filter(|_| mailbox.send(notice())).count();
        assert_eq!(taken, 10);
        assert!(mailbox.send(Order::Stop) && mailbox.send(Order::End), "an operator and the end of the process are heard");
        assert_eq!(std::iter::from_fn(|| mail.try_recv().ok()).count(), 12);
        assert!(!mailbox.is_full() && mailbox.send(notice()), "there is room again");
        drop(mailbox);
        assert!(mail.recv().is_some() && mail.recv().is_none());
    }
}
