//! One process, its cores wired together: a closed event in, a closed effect out. (being built)

pub mod report;
