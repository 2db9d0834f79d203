//! A region's configuration file: any text is a configuration or a sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parhelion::ops::config::{Config, RawConfig};
use std::path::Path;

fuzz_target!(|text: &str| {
    if let Ok(raw) = toml::from_str::<RawConfig>(text) {
        match Config::complete(raw, Path::new("/fuzz/regions/x.toml"), &|_| None) {
            Ok(config) => assert!(!config.regions().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
