//! Where the cores meet the machine: tokio, quinn, files, TLS, clocks, entropy. Drives one node for real.

pub mod audit;
pub mod clock;
mod congestion;
pub mod control_link;
pub mod copies;
pub mod copy_link;
pub mod disk;
pub mod driver;
pub mod join_tls;
pub mod killpoint;
pub mod link;
pub mod quic;
pub mod sealing;
pub mod slots;
pub mod tls;
