//! What clients connect to.

pub mod http;
