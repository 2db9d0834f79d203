//! Messages between regions, on each of their lanes: what decodes encodes, and to what decodes the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use parhelion::ship::Message;
use parhelion::ship::wire::Lane;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    for lane in [Lane::Control, Lane::Batch, Lane::Datagram] {
        if let Ok(message) = Message::decode(lane, &bytes) {
            // On its own lane: a thin batch may come as a datagram. By their bytes: a lag may be NaN, which equals nothing.
            let encoded = Bytes::from(message.encode().concat());
            let again = Message::decode(message.lane(), &encoded).expect("what was encoded decodes");
            assert_eq!(again.encode().concat(), encoded);
        }
    }
});
