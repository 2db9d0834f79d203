//! The streams of a link: who writes, who reads, how long anything may be.
//!
//! Each function is one task of a link; it returns the reason as a sentence when the link must end because of it.
//! No length is believed before it is checked, and no buffer grows ahead of the bytes that have arrived.

use super::{Inner, LinkEvent, PRIORITY_CONTROL, PRIORITY_SESSION, cost};
use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, ReadExactError, RecvStream, SendStream, VarInt};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Largest control message, question or answer, bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Largest batch, bytes: 1 MiB of frames and some for its header. Fits the stream window of 1.25 MB, so that a batch never
/// waits for its own receiver to read.
pub const BATCH_BYTES_MAX: usize = (1 << 20) + (64 << 10);

pub(super) const CONTROL: u8 = b'C';
pub(super) const FORWARD: u8 = b'F';
pub(super) const ADMIN: u8 = b'A';
/// The whole connection is a control link.
pub(crate) const MEMBER: u8 = b'V';
const BATCH: u8 = b'B';

/// Batches read at a time: as many may wait for a lost packet each without holding up the others.
const BATCH_READS_MAX: usize = 64;
/// The answer was not given; the peer's stream ends with it.
const DECLINED: VarInt = VarInt::from_u32(1);

/// Where the answer to a question goes. Dropping it declines to answer.
#[derive(Debug)]
pub struct AdminReply {
    tx: oneshot::Sender<Bytes>,
}

impl AdminReply {
    /// Answers, with at most [`MESSAGE_BYTES_MAX`] bytes.
    pub fn send(self, answer: Bytes) {
        assert!(answer.len() <= MESSAGE_BYTES_MAX, "BUG: an answer of {} bytes", answer.len());
        // Who asked may be gone.
        let _ = self.tx.send(answer);
    }
}

pub(super) async fn write_control(link: Arc<Inner>, mut stream: SendStream, mut queue: mpsc::UnboundedReceiver<Vec<Bytes>>) -> String {
    let _ = stream.set_priority(PRIORITY_CONTROL);
    while let Some(parts) = queue.recv().await {
        let bytes = cost(&parts);
        let mut chunks = vec![length_of(&parts)];
        chunks.extend(parts);
        if let Err(e) = stream.write_all_chunks(&mut chunks).await {
            return format!("the control stream cannot be written: {e}");
        }
        link.control.written(bytes);
    }
    unreachable!("BUG: the link holds the other end of its own queue")
}

/// One after the other, so that batches leave in order. A batch fits its stream's window: only the connection as a whole can
/// make it wait, and then there is nothing else to send either.
pub(super) async fn write_batches(link: Arc<Inner>, mut queue: mpsc::UnboundedReceiver<Vec<Bytes>>) -> String {
    while let Some(parts) = queue.recv().await {
        let bytes = cost(&parts);
        let mut chunks = vec![Bytes::from_static(&[BATCH])];
        chunks.extend(parts);
        let written = async {
            let mut stream = link.connection.open_uni().await.map_err(|e| e.to_string())?;
            stream.write_all_chunks(&mut chunks).await.map_err(|e| e.to_string())?;
            stream.finish().map_err(|e| e.to_string())
        };
        if let Err(e) = written.await {
            return format!("a batch cannot be sent: {e}");
        }
        link.batches.written(bytes);
    }
    unreachable!("BUG: the link holds the other end of its own queue")
}

pub(super) async fn read_control(mut stream: RecvStream, events: mpsc::Sender<LinkEvent>) -> String {
    loop {
        let event = match read_message(&mut stream).await {
            Ok(Some(message)) => LinkEvent::Control(message),
            Ok(None) => return "the other side ended the control stream".to_owned(),
            Err(reason) => return format!("bad control stream: {reason}"),
        };
        if events.send(event).await.is_err() {
            return "nobody takes the control messages".to_owned();
        }
    }
}

/// While [`BATCH_READS_MAX`] batches are being read or wait for the caller, no further stream is accepted: the rest waits in
/// the connection's window, and behind that at the sender.
pub(super) async fn accept_batches(connection: Connection, events: mpsc::Sender<LinkEvent>) -> String {
    let mut reads: JoinSet<Result<(), String>> = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_uni(), if reads.len() < BATCH_READS_MAX => match accepted {
                Ok(stream) => { reads.spawn(read_batch(stream, events.clone())); }
                Err(e) => return e.to_string(),
            },
            Some(read) = reads.join_next() => if let Err(reason) = flat(read) { return reason },
        }
    }
}

async fn read_batch(mut stream: RecvStream, events: mpsc::Sender<LinkEvent>) -> Result<(), String> {
    match first_byte(&mut stream).await? {
        BATCH => {}
        other => return Err(format!("a one-way stream of unknown kind {other:#04x}")),
    }
    let mut batch = BytesMut::new();
    while let Some(chunk) = stream.read_chunk(BATCH_BYTES_MAX + 1, true).await.map_err(|e| format!("a batch broke off: {e}"))? {
        if batch.len() + chunk.bytes.len() > BATCH_BYTES_MAX {
            return Err(format!("a batch is longer than the {BATCH_BYTES_MAX} bytes allowed"));
        }
        batch.put(chunk.bytes);
    }
    events.send(LinkEvent::Batch(batch.freeze())).await.map_err(|_| "nobody takes the batches".to_owned())
}

/// SQL sessions and questions. Their number is bounded by the streams that the transport grants the peer.
pub(super) async fn accept_sessions(connection: Connection, events: mpsc::Sender<LinkEvent>) -> String {
    let mut sessions: JoinSet<Result<(), String>> = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => { sessions.spawn(begin_session(send, recv, events.clone())); }
                Err(e) => return e.to_string(),
            },
            Some(session) = sessions.join_next() => if let Err(reason) = flat(session) { return reason },
        }
    }
}

async fn begin_session(send: SendStream, mut recv: RecvStream, events: mpsc::Sender<LinkEvent>) -> Result<(), String> {
    let _ = send.set_priority(PRIORITY_SESSION);
    let gone = || "nobody takes the sessions".to_owned();
    match first_byte(&mut recv).await? {
        FORWARD => events.send(LinkEvent::Forward(send, recv)).await.map_err(|_| gone()),
        ADMIN => {
            let deliver = async |request, reply| events.send(LinkEvent::Admin(request, reply)).await.map_err(|_| gone());
            answer(send, recv, deliver).await
        }
        CONTROL => Err("a second control stream".to_owned()),
        other => Err(format!("a two-way stream of unknown kind {other:#04x}")),
    }
}

pub(super) async fn read_datagrams(connection: Connection, events: mpsc::Sender<LinkEvent>) -> String {
    loop {
        match connection.read_datagram().await {
            // Full: the next heartbeat says the same, newer.
            Ok(datagram) => drop(events.try_send(LinkEvent::Datagram(datagram))),
            Err(e) => return e.to_string(),
        }
    }
}

/// Reads the question behind the first byte of a stream and writes the answer. Errs only where the link must end.
pub(super) async fn answer(
    mut send: SendStream,
    mut recv: RecvStream,
    deliver: impl AsyncFnOnce(Bytes, AdminReply) -> Result<(), String>,
) -> Result<(), String> {
    let Some(request) = read_message(&mut recv).await.map_err(|reason| format!("bad question: {reason}"))? else {
        return Err("a question without a length".to_owned());
    };
    let (tx, rx) = oneshot::channel();
    deliver(request, AdminReply { tx }).await?;
    let Ok(answer) = rx.await else {
        let _ = send.reset(DECLINED);
        return Ok(());
    };
    let parts = [answer];
    // Who asked may have given up on this one; that concerns nobody else on the link.
    let written = send.write_all_chunks(&mut [length_of(&parts), parts[0].clone()]).await;
    if written.is_ok() {
        let _ = send.finish();
    }
    Ok(())
}

/// Asks one question on a stream of its own.
pub(super) async fn ask(connection: &Connection, question: &Bytes) -> Result<Bytes, String> {
    assert!(question.len() <= MESSAGE_BYTES_MAX, "BUG: a question of {} bytes", question.len());
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
    let _ = send.set_priority(PRIORITY_SESSION);
    let mut chunks = [Bytes::from_static(&[ADMIN]), length_of(std::slice::from_ref(question)), question.clone()];
    send.write_all_chunks(&mut chunks).await.map_err(|e| e.to_string())?;
    send.finish().map_err(|e| e.to_string())?;
    match read_message(&mut recv).await? {
        Some(answer) => Ok(answer),
        None => Err("it declined to answer".to_owned()),
    }
}

pub(crate) async fn first_byte(stream: &mut RecvStream) -> Result<u8, String> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await.map_err(|e| format!("a stream ended before it said what it is: {e}"))?;
    Ok(byte[0])
}

fn length_of(parts: &[Bytes]) -> Bytes {
    let bytes: usize = parts.iter().map(Bytes::len).sum();
    let length = u32::try_from(bytes).expect("BUG: messages are checked against their limit before");
    Bytes::copy_from_slice(&length.to_le_bytes())
}

/// One message with its length in front; `None` at the end of the stream.
async fn read_message(stream: &mut RecvStream) -> Result<Option<Bytes>, String> {
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
            Ok(Some(chunk)) => message.put(chunk.bytes),
            Ok(None) => return Err(format!("it ended after {} of {length} bytes of a message", message.len())),
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(Some(message.freeze()))
}

fn flat(joined: Result<Result<(), String>, tokio::task::JoinError>) -> Result<(), String> {
    joined.unwrap_or_else(|panic| Err(format!("a task of the link failed: {panic}")))
}
