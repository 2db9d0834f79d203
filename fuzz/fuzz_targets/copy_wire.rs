//! Messages between a region and its copies on other machines: what decodes encodes, and to what decodes the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use parhelion::io::copy_link::wire::{PageQuestion, ToCopy, decode_page, decode_says, encode_page, encode_says};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(message) = ToCopy::decode(&bytes) {
        let encoded = Bytes::from(message.encode().concat());
        let again = ToCopy::decode(&encoded).expect("what was encoded decodes");
        assert_eq!(again.encode().concat(), encoded);
    }
    if let Ok(says) = decode_says(&bytes) {
        let encoded = Bytes::from(encode_says(&says).concat());
        let again = decode_says(&encoded).expect("what was encoded decodes");
        assert_eq!(encode_says(&again).concat(), encoded);
    }
    if let Ok(question) = PageQuestion::decode(&bytes) {
        assert_eq!(PageQuestion::decode(&Bytes::from(question.encode().concat())), Ok(question));
    }
    if let Ok(answer) = decode_page(&bytes) {
        assert_eq!(decode_page(&Bytes::from(encode_page(&answer).concat())), Ok(answer));
    }
});
