//! The `parhelion` binary: parse, do, and say how it failed. Everything else is in the library.

use clap::Parser as _;
use parhelion::ops::cli::{self, Cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}
