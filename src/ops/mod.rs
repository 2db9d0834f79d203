//! Operations: what people and their tools do with a running global cluster.

pub mod certs;
pub mod config;
pub mod netem;
