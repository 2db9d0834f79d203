//! Frames: bytes from anywhere, one or many; what decodes is exactly what would be encoded.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use parhelion::base::{Epoch, Generation, LogEnd, UnixMicros};
use parhelion::log::{ControlFrame, Flags, Frame, Header, split_frames};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let _ = Header::decode(data);
    if let Ok(frame) = Frame::decode(&bytes) {
        assert_eq!(frame.bytes()[..], bytes[..frame.header().frame_len()]);
        let _ = ControlFrame::decode(&frame);
    }
    if let Ok(frames) = split_frames(bytes) {
        assert_eq!(frames.iter().map(|f| f.bytes().len()).sum::<usize>(), data.len());
    }
    // A checksum that holds, so that what lies behind it is reached: the input as the payload of both kinds of frame.
    for flags in [Flags::CONSISTENCY_POINT, Flags::CONTROL.with(Flags::CONSISTENCY_POINT)] {
        let payload = &data[..data.len().min(4096)];
        let frame = Frame::encode(&LogEnd::EMPTY, Epoch(1), Generation(1), flags, UnixMicros(1), payload);
        assert_eq!(Frame::decode(frame.bytes()).expect("what was encoded decodes").payload(), payload);
        let _ = ControlFrame::decode(&frame);
    }
});
