//! Whom a copy's thread tells: the node of its own process, or the region processes that are connected to it.
//!
//! Decides who hears what: an answer goes to whoever asked; that frames are fsynced, that there is damage, and that the copy came or went, goes to all. A
//! process of an earlier generation may still be among them: what it hears carries a generation, and it is refused by the copy.

use crate::base::{Generation, LineageId, LogEnd, MemberId};
use crate::io::driver::Inbox;
use crate::node::Event;
use crate::volume::CopyReply;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The number of the only one that an in-process copy serves.
pub const OWNER: u64 = 0;

/// What a copy's thread has to say.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are replies")]
pub enum Says {
    /// Opened (again), with the generation that it promised last.
    Opened {
        promised: Generation,
    },
    /// It cannot be opened, and its files show that the log was durable up to there. Said before it is lost.
    Proves {
        lineage: LineageId,
        durable: LogEnd,
    },
    Lost {
        reason: String,
    },
    Replied(CopyReply),
}

/// Takes what a copy says, from its thread; must not wait.
pub trait Listener: Send + Sync {
    fn tell(&self, copy: MemberId, says: Says);
}

impl Listener for Inbox {
    fn tell(&self, copy: MemberId, says: Says) {
        self.send(match says {
            Says::Opened { promised } => Event::CopyOpened { copy, promised },
            Says::Proves { lineage, durable } => Event::CopyProves { copy, lineage, durable },
            Says::Lost { reason } => Event::CopyLost { copy, reason },
            Says::Replied(reply) => Event::CopyReplied { copy, reply },
        });
    }
}

/// Replies on their way, with who asked.
#[derive(Default)]
pub(super) struct Outgoing(Vec<(Option<u64>, CopyReply)>);

impl Outgoing {
    /// `replies` came from what `from` asked.
    pub(super) fn add(&mut self, from: u64, replies: &mut Vec<CopyReply>) {
        let to = |reply: &CopyReply| (!matches!(reply, CopyReply::Appended { .. } | CopyReply::Damaged { .. })).then_some(from);
        self.0.extend(replies.drain(..).map(|reply| (to(&reply), reply)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add_for_all(&mut self, replies: &mut Vec<CopyReply>) {
        self.0.extend(replies.drain(..).map(|reply| (None, reply)));
    }
}

pub(super) struct Listeners {
    copy: MemberId,
    of: BTreeMap<u64, Arc<dyn Listener>>,
}

impl Listeners {
    pub(super) fn new(copy: MemberId, owner: Option<Arc<dyn Listener>>) -> Listeners {
        Listeners { copy, of: owner.into_iter().map(|listener| (OWNER, listener)).collect() }
    }

    pub(super) fn attach(&mut self, from: u64, listener: Arc<dyn Listener>, now: Says) {
        listener.tell(self.copy, now);
        self.of.insert(from, listener);
    }

    pub(super) fn detach(&mut self, from: u64) {
        self.of.remove(&from);
    }

    pub(super) fn tell_all(&self, says: &Says) {
        self.of.values().for_each(|listener| listener.tell(self.copy, says.clone()));
    }

    pub(super) fn send(&self, outgoing: &mut Outgoing) {
        for (to, reply) in outgoing.0.drain(..) {
            match to {
                // Leaving duty is told once, by `Lost`.
                _ if matches!(reply, CopyReply::Failed { .. }) => {}
                None => self.tell_all(&Says::Replied(reply)),
                Some(to) => {
                    if let Some(listener) = self.of.get(&to) {
                        listener.tell(self.copy, Says::Replied(reply));
                    }
                }
            }
        }
    }
}
