//! Operations: what people and their tools do with a running global cluster.

pub mod admin;
pub mod audit;
pub mod bench;
pub mod certs;
pub mod cli;
pub mod client;
pub mod config;
pub mod copy;
pub mod copy_lines;
pub mod demo;
pub mod drill;
pub mod events;
mod expiry;
pub mod failure;
pub mod keys;
pub mod lag;
pub mod membership;
pub mod netem;
pub mod orders;
mod orders_text;
pub mod proof;
pub mod region;
pub mod salvage;
pub mod status;
pub mod status_roles;
pub mod verify;
pub mod witness;

pub use crate::endpoint::text;
