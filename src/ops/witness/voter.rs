//! The thread that drives a witness's control core: messages in, promises onto the disk, messages out.
//!
//! Decides nothing. A state is on both slots before the next output is looked at, so nothing that depends on it can leave earlier. When the
//! disk fails, the thread ends and the process with it: a witness that cannot keep a promise must not make one.

use super::View;
use crate::base::{Prng, RegionName};
use crate::control::{AuditEntry, Control, ControlMessage, Input, Output, VoterState};
use crate::io::audit::AuditWriter;
use crate::io::clock;
use crate::io::control_link::{CONTROL_MESSAGE_BYTES_MAX, ControlLinks};
use crate::io::killpoint::KillPoint;
use crate::io::slots::Slots;
use crate::node::report::ControlReport;
use crate::ops::membership::roster::Roster;
use anyhow::Context as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Messages that wait for the thread; more are dropped, as on the way.
const QUEUE_MAX: usize = 1024;
/// The clocks are looked at so often, at least.
const LOOK_EVERY: Duration = Duration::from_millis(100);

enum Wake {
    Member {
        from: RegionName,
        message: Box<ControlMessage>,
    },
    /// A region refused this witness: it was taken out.
    SaidOut {
        by: RegionName,
    },
    Stop,
}

/// Where messages for the voter are put, from any thread.
#[derive(Clone)]
pub(super) struct Inbox(SyncSender<Wake>);

pub(super) struct Queue(Receiver<Wake>);

pub(super) fn queue() -> (Inbox, Queue) {
    let (tx, rx) = sync_channel(QUEUE_MAX);
    (Inbox(tx), Queue(rx))
}

impl Inbox {
    /// The thread takes what is in the queue, and then ends.
    pub(super) fn stop(&self) {
        // It may have ended by itself.
        let _ = self.0.send(Wake::Stop);
    }

    pub(super) fn said_out(&self, by: &RegionName) {
        // Lost like any message: it is said again when that region is dialled again.
        let _ = self.0.try_send(Wake::SaidOut { by: by.clone() });
    }
}

/// What a member says goes to the core; nonsense ends its connection.
pub(super) fn hear(inbox: Inbox) -> impl Fn(&RegionName, bytes::Bytes) -> Result<(), String> + Send + Sync {
    move |from, bytes| {
        let message = ControlMessage::decode(&bytes).map_err(|e| e.to_string())?;
        let _ = inbox.0.try_send(Wake::Member { from: from.clone(), message: Box::new(message) });
        Ok(())
    }
}

pub(super) fn prng(seed: [u8; 8]) -> Prng {
    Prng::new(u64::from_le_bytes(seed))
}

/// What was promised before this process began.
pub(super) fn kept(slots: &Slots) -> anyhow::Result<Option<VoterState>> {
    let Some(bytes) = slots.state() else { return Ok(None) };
    let state = VoterState::decode(bytes).context(
        "what this witness has promised is of a version that this parhelion does not read: use the version that wrote it, or a newer one",
    )?;
    Ok(Some(state))
}

pub(super) fn report(name: &RegionName, core: &Control) -> ControlReport {
    ControlReport::of(name, &core.view(clock::now()), core.state().map(|s| &s.ledger), None)
}

pub(super) struct Voter {
    core: Control,
    slots: Slots,
    links: ControlLinks,
    view: Arc<View>,
    watch: clock::Watch,
    /// Entries of the audit up to this one were handed to its file.
    audited: u64,
    kill: KillPoint,
    around: Around,
}

/// What the voter hands things to.
pub(super) struct Around {
    pub roster: Arc<Roster>,
    pub runtime: tokio::runtime::Handle,
    pub audit: AuditWriter,
}

impl Voter {
    pub(super) fn new(core: Control, slots: Slots, links: ControlLinks, view: Arc<View>, around: Around) -> Voter {
        Voter { core, slots, links, view, watch: clock::Watch::new(), audited: 0, kill: KillPoint::from_env(), around }
    }

    /// Until it is told to stop.
    ///
    /// # Errors
    /// When a promise cannot be kept.
    pub(super) fn run(mut self, queue: &Queue) -> anyhow::Result<()> {
        if let Some(kept) = self.core.state().cloned() {
            self.tell_audit(&kept);
        }
        loop {
            self.flush()?;
            self.publish();
            let now = clock::now();
            let wait = self.core.next_timeout().map_or(LOOK_EVERY, |at| at.since(now).min(LOOK_EVERY));
            let woken = queue.0.recv_timeout(wait);
            // Before anything is decided by a clock that cannot be trusted.
            if let Some(reason) = self.watch.broke() {
                tracing::warn!("{reason}");
                self.handle(Input::ClockBroke { reason });
            }
            match woken {
                Ok(Wake::Member { from, message }) => self.handle(Input::Message { from, message: *message }),
                Ok(Wake::SaidOut { by }) => self.handle(Input::SaidOut { by }),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.core.next_timeout().is_some_and(|at| clock::now() >= at) {
                self.handle(Input::Timeout);
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.core.handle(clock::now(), clock::unix_now(), input);
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { token, state } => {
                    let kept = self.slots.put(&state.encode().into());
                    kept.context(
                        "this witness cannot keep what it promises and stops; see to the disk of its data_dir and start it again",
                    )?;
                    self.tell_audit(&state);
                    self.handle(Input::Persisted { token });
                }
                Output::Send { to, message } => {
                    let bytes = message.encode();
                    if bytes.len() > CONTROL_MESSAGE_BYTES_MAX {
                        tracing::warn!(%to, bytes = bytes.len(), "a control message is too long and is not sent");
                        continue;
                    }
                    let passing = self.kill.before_message(&message);
                    self.links.send(&to, bytes.into());
                    passing.passed("a message");
                }
                Output::Follow { epoch, primary: Some(primary) } => tracing::info!(epoch = epoch.0, %primary, "a primary reigns"),
                Output::OpMoved(op) => tracing::info!(op = %op.order.id, by = %op.by, "an operation moved on: {:?}", op.state),
                Output::Failover(record) => tracing::info!(op = %record.op, complete = record.complete, "a failover is recorded"),
                Output::Note { kind, what } if kind == "taken_out" || kind == "voter_lost_state" => tracing::warn!(kind, "{what}"),
                Output::Note { kind, what } => tracing::info!(kind, "{what}"),
                Output::Members(members) => {
                    let _inside = self.around.runtime.enter();
                    self.around.roster.changed(&members, &self.view.quic, &self.links);
                }
                // Of a member with data.
                Output::Follow { primary: None, .. } | Output::CommitRule { .. } | Output::LeaseLost { .. } => {}
                other => unreachable!("BUG: a witness was asked for {other:?}"),
            }
        }
        Ok(())
    }

    /// What lies in the slots of the audit goes to its file as well.
    fn tell_audit(&mut self, kept: &VoterState) {
        let news: Vec<AuditEntry> = kept.audit.entries().iter().filter(|e| e.no > self.audited).cloned().collect();
        if let Some(last) = news.last() {
            self.audited = last.no;
            self.around.audit.write(news);
        }
        *self.view.head.write() = Some(kept.audit.head());
    }

    fn publish(&self) {
        let name = self.view.report.read().member.clone();
        *self.view.report.write() = report(&name, &self.core);
    }
}
