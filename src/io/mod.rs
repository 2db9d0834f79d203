//! Where the cores meet the machine: tokio, quinn, files, TLS, clocks, entropy. Drives one node for real.

pub mod clock;
pub mod disk;
