//! What operators and users run beside a region: the WAN emulator.

pub mod netem;
