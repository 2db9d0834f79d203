//! What an operator of the simulated cluster orders: switchovers and failovers, at any region, whatever state things are in.
//!
//! Orders are given twice now and then, and to two regions at once: that is what operators do.

use super::checker::Checked;
use super::world::{MS, What, World};
use crate::control::{Consent, OpId, OpState, OpView, Order, OrderKind};
use crate::node::Event;

impl World {
    pub(super) fn operate(&mut self) -> Checked {
        let Some(every) = self.plan.operate_every_ms else { return Ok(()) };
        let after = self.operator.between(every / 2, every * 3 / 2);
        self.after(after * MS, What::Operate);
        if !self.stormy {
            return Ok(());
        }
        let n = self.regions.len() as u64;
        let to = usize::try_from(self.operator.below(n)).expect("BUG: few regions");
        let planned = self.operator.chance(600_000);
        let to_name = self.regions[to].name.clone();
        let kind = if planned {
            OrderKind::Switchover { to: to_name }
        } else {
            let consent = Consent { allow_data_loss: self.operator.chance(800_000), max_loss_ms: None, max_loss_bytes: None };
            OrderKind::Failover { to: to_name, consent, primary_is_down: None }
        };
        let id = (u128::from(self.operator.next_u64()) << 64) | u128::from(self.operator.next_u64());
        let order = Order { id: OpId(id), kind, dry_run: false, timeout_ms: 5_000, at_epoch: None, actor: "sim".into() };
        self.say(|| format!("the operator orders {:?}", order.kind));
        self.give(order.clone())?;
        if self.operator.chance(200_000) {
            self.give(order)?;
        }
        Ok(())
    }

    /// At some region; if its process is down nobody takes the order.
    fn give(&mut self, order: Order) -> Checked {
        let at = usize::try_from(self.operator.below(self.regions.len() as u64)).expect("BUG: few regions");
        let incarnation = self.regions[at].incarnation;
        self.to_node(at, incarnation, Event::Order(order))
    }

    /// An operation moved on, as a region was told.
    pub(super) fn op_moved(&mut self, r: usize, op: OpView) {
        let name = self.regions[r].name.clone();
        self.say(|| format!("{name}: operation {} {:?}: {:?}", op.order.id, op.order.kind, op.state));
        if op.state == OpState::Done && self.ops_done.insert(op.order.id.0) {
            match op.order.kind {
                OrderKind::Switchover { .. } => self.counts.switchovers += 1,
                OrderKind::Failover { .. } => self.counts.failovers += 1,
                OrderKind::SetVoters { .. }
                | OrderKind::AddRegion { .. }
                | OrderKind::RemoveRegion { .. }
                | OrderKind::AddWitness { .. }
                | OrderKind::RemoveWitness { .. }
                | OrderKind::NewLineage { .. } => {}
            }
        }
    }
}
