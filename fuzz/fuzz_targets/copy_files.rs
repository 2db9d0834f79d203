//! The files of a copy: a copy that worked for a while, one of its files damaged, opened again. It opens, or says what is wrong;
//! what it then says of its log is a prefix of what it was given.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use parhelion::base::{Epoch, Generation, Limits, LineageId, LogEnd, Lsn, PageNo, Seq, UnixMicros};
use parhelion::log::redo::{difference, put_record};
use parhelion::log::{ControlFrame, Frame, Pen};
use parhelion::sim::disk::SimDisk;
use parhelion::volume::{Copy, CopyRequest, Disk};
use std::sync::Arc;

const GENERATION: Generation = Generation(1 << 16);

fn log() -> Vec<Frame> {
    let start = ControlFrame::EpochStart { lineage: LineageId(7) };
    let mut frames = vec![start.encode(&LogEnd::EMPTY, Epoch(1), GENERATION, UnixMicros(1))];
    let mut pen = Pen::new(Epoch(1), GENERATION, frames[0].log_end(), 512);
    for i in 0..24u8 {
        let mut payload = Vec::new();
        let change = difference(&[], &[i + 1; 200]).expect("they differ");
        put_record(&mut payload, PageNo(u32::from(i % 5) + 1), &change);
        frames.extend(pen.write(&[payload], true, UnixMicros(2)));
    }
    frames
}

fuzz_target!(|data: &[u8]| {
    let [file, at_high, at_low, replace @ ..] = data else { return };
    let disk = Arc::new(SimDisk::new(1));
    let frames = log();
    let end = frames.last().expect("there are some").log_end();
    {
        let mut copy = Copy::open(Arc::clone(&disk) as Arc<dyn Disk>, &Limits::tiny()).expect("an empty disk opens");
        let mut replies = Vec::new();
        copy.handle(CopyRequest::Raise { generation: GENERATION }, &mut replies);
        for chunk in frames.chunks(4) {
            let request =
                CopyRequest::Append { generation: GENERATION, frames: chunk.to_vec(), vdl: end, horizon: Lsn(0), trim: Seq(0) };
            copy.handle(request, &mut replies);
            copy.flush(&mut replies);
        }
        while copy.ingest(&mut replies) {}
    }
    let mut names = disk.list().expect("a directory is listed");
    names.sort();
    let name = &names[usize::from(*file) % names.len()];
    let len = disk.len(name).expect("it has a length").unwrap_or(0);
    let at = u64::from(u16::from_be_bytes([*at_high, *at_low])) % (len + 1);
    disk.write(name, at, &[Bytes::copy_from_slice(replace)]).expect("the damage is written");
    disk.sync(name).expect("and stays");
    if let Ok(copy) = Copy::open(Arc::clone(&disk) as Arc<dyn Disk>, &Limits::tiny()) {
        let state = copy.state();
        let known = |e: &LogEnd| *e == LogEnd::EMPTY || frames.iter().any(|f| f.log_end() == *e);
        assert!(known(&state.end) && known(&state.consistent), "{state:?}");
    }
});
