//! Copies on other machines: the connection between a region's process and a process that holds some of its copies.
//!
//! Decides who is let in (both ends show a certificate of the same region, one of them as its storage node), what each stream is,
//! and how much may wait in memory. Never looks into what a copy is told: requests and replies are those of the volume, with everything
//! that a network may do to them. The region dials ([`RemoteCopy`]), a process of copies serves ([`serve`]).
//!
//! ```text
//!  every stream is bidirectional, opened by the region, and begins with   kind u8 | address (group u8 | copy u8)
//!  'O'  one for each copy: what must keep its order. Messages both ways, each with its length u32 in front
//!  'R'  one read of the log or of many pages: a message there, a message back. Waits behind no append
//!  'P'  one page as of an LSN: the same
//! ```
//! Memory: what a copy does not take stays in the region up to a bound, beyond it requests are dropped (the appender asks again); what
//! the region does not take ends the connection.

mod dial;
mod serve;
pub mod wire;

pub use dial::{RemoteCopy, connect};
pub use serve::{Host, serve};

use crate::io::quic::{Quic, RefusalKind, classify};
use bytes::{BufMut, Bytes, BytesMut};
use quinn::{ReadExactError, RecvStream, SendStream, VarInt};
use std::time::Duration;
use wire::MESSAGE_BYTES_MAX;

const ORDERED: u8 = b'O';
const READ: u8 = b'R';
const PAGE: u8 = b'P';

/// An end without a refusal.
const CLOSE: VarInt = VarInt::from_u32(0);
/// A read that has no answer here.
const DECLINED: VarInt = VarInt::from_u32(1);
/// Acknowledgements and pages before appends before reads of many pages: who is behind must still be heard.
const PRIORITY_PAGE: i32 = 1;
const PRIORITY_READ: i32 = -1;
/// What is asked of a copy that has not answered after so long is asked of another.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What a refusal is between a region and copies: that of the other name in a certificate means another region.
fn refusal(error: &quinn::ConnectionError, quic: &Quic) -> Option<RefusalKind> {
    classify(error, quic.material.cluster()).map(ours)
}

fn ours(kind: RefusalKind) -> RefusalKind {
    match kind {
        RefusalKind::WrongRegion | RefusalKind::UnknownRegion => RefusalKind::ForeignCopies,
        other => other,
    }
}

/// A message with its length in front.
fn framed(parts: Vec<Bytes>) -> Vec<Bytes> {
    let bytes: usize = parts.iter().map(Bytes::len).sum();
    let length = u32::try_from(bytes).expect("BUG: messages are far below 4 GiB");
    std::iter::once(Bytes::copy_from_slice(&length.to_le_bytes())).chain(parts).collect()
}

async fn write(stream: &mut SendStream, parts: Vec<Bytes>) -> Result<(), String> {
    stream.write_all_chunks(&mut framed(parts)).await.map_err(|e| e.to_string())
}

/// One message; `None` at the end of the stream. The buffer grows with what has arrived, not with what was claimed.
async fn read(stream: &mut RecvStream) -> Result<Option<Bytes>, String> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    }
    let length = usize::try_from(u32::from_le_bytes(length)).expect("BUG: usize holds 32 bits here");
    if length > MESSAGE_BYTES_MAX {
        return Err(format!("a message of {length} bytes, and at most {MESSAGE_BYTES_MAX} are taken"));
    }
    let mut message = BytesMut::new();
    while message.len() < length {
        match stream.read_chunk(length - message.len(), true).await {
            // Mostly all of it is there at once, and nothing is copied.
            Ok(Some(chunk)) if message.is_empty() && chunk.bytes.len() == length => return Ok(Some(chunk.bytes)),
            Ok(Some(chunk)) => message.put(chunk.bytes),
            Ok(None) => return Err(format!("it ended after {} of {length} bytes of a message", message.len())),
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(Some(message.freeze()))
}
