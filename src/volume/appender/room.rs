//! What follows when the disks of copies fill: new writes stop while the log still has room for those under way, for a promise, for the
//! start of a generation; and they go on by themselves when enough copies say that they have room again.
//!
//! Decides whether there is room, from what the copies say with each acknowledgement (`volume::copy::room` decides that), and when they
//! are asked again. A copy that is low takes frames and counts for what is durable as any other.

use super::*;

/// A copy that is low is asked again after this.
const ASK_FOR_ROOM_EVERY: Duration = Duration::from_secs(1);

impl Appender {
    /// Whether too few copies have room for new writes, and nothing else is wrong.
    #[must_use]
    pub fn is_short_of_room(&self) -> bool {
        self.short_of_room
    }

    /// A group of which fewer than four copies have room.
    pub(super) fn group_without_room(&self) -> Option<GroupId> {
        self.layout.all_groups().find(|g| !self.reached_in(*g, |p| p.is_joined() && !p.low))
    }

    /// A sentence for [`AppenderEffect::QuorumLost`].
    pub(super) fn too_little_room(&self, group: GroupId) -> String {
        let of_group = if self.layout.groups == 1 { String::new() } else { format!(" of protection group {group}") };
        let (mut roomy, mut lacking) = (0, Vec::new());
        for (copy, peer) in MemberId::of(group).into_iter().zip(self.six(group)) {
            match &peer.contact {
                Contact::Joined if !peer.low => roomy += 1,
                Contact::Joined => lacking.push(format!("{copy} (disk almost full)")),
                Contact::Down { reason } => lacking.push(format!("{copy} ({reason})")),
                _ => lacking.push(format!("{copy} (being rebuilt)")),
            }
        }
        let lacking = lacking.join(", ");
        format!("{roomy} of 6 copies{of_group} have room on their disks and {WRITE_QUORUM} are needed; missing: {lacking}")
    }

    fn is_asked_for_room(peer: &Peer) -> bool {
        peer.is_joined() && peer.low
    }

    pub(super) fn room_timeout(&self) -> Option<Instant> {
        let low = self.peers.iter().filter(|p| Appender::is_asked_for_room(p));
        low.map(|p| p.last_asked + ASK_FOR_ROOM_EVERY).min().filter(|_| self.phase == VolumePhase::Serving)
    }

    pub(super) fn ask_for_room(&mut self, now: Instant) {
        if self.phase != VolumePhase::Serving {
            return;
        }
        for copy in self.members() {
            let peer = &self.peers[copy.index()];
            if Appender::is_asked_for_room(peer) && now >= peer.last_asked + ASK_FOR_ROOM_EVERY {
                self.send_append(now, copy, Vec::new());
            }
        }
    }
}
