//! Questions and answers of the admin protocol.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parhelion::ops::admin::{AdminAnswer, AdminRequest};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = AdminRequest::decode(data) {
        assert!(AdminRequest::decode(&request.encode()).is_ok());
    }
    if let Ok(answer) = AdminAnswer::decode(data) {
        let _ = answer.encode();
    }
});
