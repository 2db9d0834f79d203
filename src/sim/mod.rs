//! (being built)

pub mod disk;
