//! What two regions say on a forwarded session's stream: what decodes encodes, and to what decodes the same.
#![no_main]

use bytes::{Buf as _, Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use parhelion::endpoint::router::wire::{decode_answer, decode_request};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    // By their text: a number may be NaN, which equals nothing.
    if let Ok(request) = decode_request(bytes.clone()) {
        let mut encoded = request.what.encode(request.id, request.begin).expect("what fitted fits");
        encoded.advance(4);
        let again = decode_request(encoded).expect("what was encoded decodes");
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
    }
    if let Ok(answer) = decode_answer(bytes) {
        let mut encoded = BytesMut::new();
        answer.put(&mut encoded);
        encoded.advance(4);
        let again = decode_answer(encoded.freeze()).expect("what was encoded decodes");
        assert_eq!(format!("{again:?}"), format!("{answer:?}"));
    }
});
