//! Settings of an emulated link as people write them, and requests on the emulator's socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parhelion::ops::netem::Settings;

fuzz_target!(|text: &str| {
    let changes: Vec<&str> = text.split(' ').collect();
    if let Ok(settings) = Settings::default().with(&changes) {
        // What is shown can be typed again and means the same.
        let shown = settings.to_string();
        let words: Vec<&str> = shown.split(' ').filter(|w| w.contains('=')).collect();
        let again = Settings::default().with(&words).expect("what is shown can be typed");
        assert_eq!(again.to_string(), shown);
    }
});
