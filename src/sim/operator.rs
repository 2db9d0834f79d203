//! What an operator of the simulated cluster orders: switchovers and failovers, and what became of them.

use super::world::World;
use crate::control::{OpState, OpView, OrderKind};

impl World {
    /// An operation moved on, as a region was told.
    pub(super) fn op_moved(&mut self, r: usize, op: OpView) {
        let name = self.regions[r].name.clone();
        self.say(|| format!("{name}: operation {} {:?}: {:?}", op.order.id, op.order.kind, op.state));
        if op.state == OpState::Done && self.ops_done.insert(op.order.id.0) {
            match op.order.kind {
                OrderKind::Switchover { .. } => self.counts.switchovers += 1,
                OrderKind::Failover { .. } => self.counts.failovers += 1,
                OrderKind::SetVoters { .. } => {}
            }
        }
    }
}
