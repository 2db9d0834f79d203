//! Regions that come and go, as people and processes see it: who is a member and where, orders that change it, invitations, joining.
//!
//! Decides nothing about who may be one: that is [`crate::control::membership`]. [`roster`] is what a running process knows.

pub mod cli;
pub mod invites;
pub mod join;
pub mod lineages;
pub mod retire;
pub mod roster;
pub mod wire;
