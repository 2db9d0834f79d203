//! One connection's bytes: whole messages in, messages out.
//!
//! Decides how much a client may send before it is cut off, and that a message is well formed before `pgwire` decodes it
//! (its decoders trust the counts and lengths inside a message and would panic, or read on into the next message). Reads
//! grow with what arrives, never with what a length field claims. Never looks at what messages mean. Driven by the login and
//! the session.

use crate::head::sql::{SqlError, state};
use bytes::{Buf, BytesMut};
use pgwire::messages::response::{ErrorResponse, NoticeResponse};
use pgwire::messages::startup::Startup;
use pgwire::messages::{DecodeContext, Message, PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion};
use std::collections::BTreeMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest message before the client has logged in (PostgreSQL's own limit for a startup packet).
pub const LOGIN_MESSAGE_BYTES_MAX: usize = 10_000;
/// Largest message of a client that has logged in: a statement with its parameters, or one piece of COPY data.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Output is sent on when this much has gathered.
const OUTPUT_BYTES_SOFT: usize = 32 << 10;
/// While a statement runs the connection is read ahead (to notice that the client has gone) up to this much.
const READ_AHEAD_BYTES_MAX: usize = 64 << 10;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Why a connection cannot go on, or a statement did not work.
#[derive(Debug)]
pub enum Stop {
    /// The client is gone or cannot be talked to; nothing more is sent.
    Gone,
    /// The session ends with this error.
    Fatal(SqlError),
    /// This statement ends with this error; the session goes on.
    Sql(SqlError),
}

impl From<SqlError> for Stop {
    fn from(e: SqlError) -> Stop {
        Stop::Sql(e)
    }
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Stop {
        Stop::Gone
    }
}

/// The first packet of a connection.
pub enum Opening {
    Tls,
    Gss,
    Cancel { pid: i32, secret: i32 },
    Startup { minor: u16, parameters: BTreeMap<String, String> },
}

pub struct Wire {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: BytesMut,
    pub message_bytes_max: usize,
}

impl Wire {
    pub fn new(stream: Box<dyn Stream>) -> Wire {
        Wire { stream, input: BytesMut::new(), output: BytesMut::new(), message_bytes_max: LOGIN_MESSAGE_BYTES_MAX }
    }

    /// The stream, to put TLS on it; `None` when the client sent something in plain text after asking for TLS, which somebody
    /// in between may have slipped in.
    pub fn into_stream(self) -> Option<Box<dyn Stream>> {
        self.input.is_empty().then_some(self.stream)
    }

    async fn fill(&mut self) -> Result<(), Stop> {
        self.input.reserve(8192);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(Stop::Gone),
            _ => Ok(()),
        }
    }

    /// Returns when the client has closed the connection. What it sends meanwhile is kept for later.
    pub async fn peer_gone(&mut self) {
        while self.input.len() < READ_AHEAD_BYTES_MAX {
            if self.fill().await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// The first packet, which has no type byte. Anything that is not PostgreSQL's protocol is `Gone`: it would not understand
    /// an answer.
    pub async fn opening(&mut self) -> Result<Opening, Stop> {
        while self.input.len() < 8 {
            self.fill().await?;
        }
        let length = (&self.input[..4]).get_u32() as usize;
        let code = (&self.input[4..8]).get_i32();
        if !(8..=LOGIN_MESSAGE_BYTES_MAX).contains(&length) {
            return Err(Stop::Gone);
        }
        while self.input.len() < length {
            self.fill().await?;
        }
        let mut packet = self.input.split_to(length);
        match (code, length) {
            (80_877_103, 8) => Ok(Opening::Tls),
            (80_877_104, 8) => Ok(Opening::Gss),
            (80_877_102, 16) => Ok(Opening::Cancel { pid: (&packet[8..12]).get_i32(), secret: (&packet[12..16]).get_i32() }),
            (code, _) if code >> 16 == 3 => {
                let startup = Startup::decode(&mut packet, &context()).ok().flatten().ok_or(Stop::Gone)?;
                Ok(Opening::Startup { minor: startup.protocol_number_minor, parameters: startup.parameters })
            }
            (code, _) if code >> 16 == 2 || code >> 16 == 1 => {
                Err(Stop::Fatal(SqlError::new(state::FEATURE_NOT_SUPPORTED, "unsupported frontend protocol: server supports 3.0")))
            }
            _ => Err(Stop::Gone),
        }
    }

    /// Sends one byte, the answer to a request for TLS or GSS.
    pub async fn answer(&mut self, byte: u8) -> Result<(), Stop> {
        self.stream.write_all(&[byte]).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The next message; waits for it.
    pub async fn next(&mut self) -> Result<PgWireFrontendMessage, Stop> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The type byte of the next message, if it has arrived.
    pub fn peek(&self) -> Option<u8> {
        self.input.first().copied()
    }

    fn take(&mut self) -> Result<Option<PgWireFrontendMessage>, Stop> {
        let Some(&kind) = self.input.first() else { return Ok(None) };
        let bad = |what: String| Stop::Fatal(SqlError::new("08P01", what));
        if !b"QPBDECHSXpdcf".contains(&kind) {
            return Err(bad(format!("invalid frontend message type {kind}")));
        }
        if self.input.len() < 5 {
            return Ok(None);
        }
        let length = (&self.input[1..5]).get_u32() as usize;
        if length < 4 {
            return Err(bad(format!("invalid message length {length}")));
        }
        let small = matches!(kind, b'D' | b'E' | b'C' | b'H' | b'S' | b'X' | b'c' | b'p' | b'f');
        let max = if small { self.message_bytes_max.min(LOGIN_MESSAGE_BYTES_MAX) } else { self.message_bytes_max };
        if length > max {
            let error =
                SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, format!("a message of {length} bytes is larger than the {max} bytes allowed"));
            return Err(Stop::Fatal(error.hint("Send less in one statement; load much data with COPY.")));
        }
        if self.input.len() < 1 + length {
            return Ok(None);
        }
        let mut frame = self.input.split_to(1 + length);
        well_formed(kind, &frame[5..]).map_err(|e| Stop::Fatal(SqlError::new(e.0, e.1)))?;
        match PgWireFrontendMessage::decode(&mut frame, &context()) {
            Ok(Some(message)) => Ok(Some(message)),
            Ok(None) => Err(bad(format!("message '{}' ends too early", kind as char))),
            Err(e) => Err(bad(e.to_string())),
        }
    }

    /// Puts a message into the output. It leaves with the next [`Wire::flush`].
    pub fn put(&mut self, message: &PgWireBackendMessage) -> Result<(), Stop> {
        let before = self.output.len();
        message.encode(&mut self.output).map_err(|e| {
            self.output.truncate(before);
            Stop::Sql(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, format!("an answer cannot be sent: {e}")))
        })
    }

    pub fn put_error(&mut self, severity: &str, e: &SqlError) -> Result<(), Stop> {
        self.put(&PgWireBackendMessage::ErrorResponse(ErrorResponse::new(fields(severity, e))))
    }

    pub fn put_warning(&mut self, e: &SqlError) -> Result<(), Stop> {
        self.put(&PgWireBackendMessage::NoticeResponse(NoticeResponse::new(fields("WARNING", e))))
    }

    /// Forgets what has gathered and was not sent.
    pub fn discard(&mut self) {
        self.output.clear();
    }

    /// How much has gathered and was not sent.
    pub fn gathered(&self) -> usize {
        self.output.len()
    }

    /// Takes back what has gathered from `at` on.
    pub fn take_from(&mut self, at: usize) -> BytesMut {
        self.output.split_off(at)
    }

    /// Puts back what was taken.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    pub async fn flush(&mut self) -> Result<(), Stop> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.output.clear();
            if self.output.capacity() > 4 * OUTPUT_BYTES_SOFT {
                self.output = BytesMut::new();
            }
        }
        self.stream.flush().await?;
        Ok(())
    }

    /// Sends what has gathered if it is much: a slow client slows down its own statement only.
    pub async fn relieve(&mut self) -> Result<(), Stop> {
        if self.output.len() >= OUTPUT_BYTES_SOFT { self.flush().await } else { Ok(()) }
    }

    /// Sends a last error and ends the connection, politely if the client lets us.
    pub async fn farewell(&mut self, e: &SqlError) {
        if self.put_error("FATAL", e).is_ok() && self.flush().await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
    }
}

fn context() -> DecodeContext {
    let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
    context.awaiting_frontend_ssl = false;
    context.awaiting_frontend_startup = false;
    context
}

fn fields(severity: &str, e: &SqlError) -> Vec<(u8, String)> {
    // A NUL would end the field early and shift everything after it.
    let clean = |s: &str| s.replace('\0', "?");
    let mut fields = vec![(b'S', severity.to_owned()), (b'V', severity.to_owned()), (b'C', e.code.to_owned()), (b'M', clean(&e.message))];
    if let Some(hint) = &e.hint {
        fields.push((b'H', clean(hint)));
    }
    fields
}

type Malformed = (&'static str, String);

/// Whether a body is exactly what its type says: every string ends and is UTF-8, every count and length stays inside.
fn well_formed(kind: u8, body: &[u8]) -> Result<(), Malformed> {
    let mut r = Reader { rest: body };
    match kind {
        b'Q' | b'f' => r.string()?,
        b'P' => {
            r.string()?;
            r.string()?;
            let n = r.u16()?;
            r.skip(4 * usize::from(n))?;
        }
        b'B' => {
            r.string()?;
            r.string()?;
            let n = r.u16()?;
            r.skip(2 * usize::from(n))?;
            for _ in 0..r.u16()? {
                match r.i32()? {
                    -1 => {}
                    n => r.skip(usize::try_from(n).map_err(|_| short())?)?,
                }
            }
            let n = r.u16()?;
            r.skip(2 * usize::from(n))?;
        }
        b'D' | b'C' => {
            if !matches!(r.rest.first(), Some(b'S' | b'P')) {
                return Err(("08P01", "a statement ('S') or a portal ('P') must be named".into()));
            }
            r.skip(1)?;
            r.string()?;
        }
        b'E' => {
            r.string()?;
            r.skip(4)?;
        }
        b'p' | b'd' => return Ok(()),
        _ => {}
    }
    if r.rest.is_empty() { Ok(()) } else { Err(("08P01", format!("message '{}' is longer than its contents", kind as char))) }
}

fn short() -> Malformed {
    ("08P01", "insufficient data left in message".to_owned())
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn skip(&mut self, n: usize) -> Result<(), Malformed> {
        self.rest = self.rest.get(n..).ok_or_else(short)?;
        Ok(())
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let v = self.rest.get(..2).ok_or_else(short)?;
        let v = u16::from_be_bytes([v[0], v[1]]);
        self.skip(2)?;
        Ok(v)
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        let v = self.rest.get(..4).ok_or_else(short)?.get_i32();
        self.skip(4)?;
        Ok(v)
    }

    fn string(&mut self) -> Result<(), Malformed> {
        let end = self.rest.iter().position(|b| *b == 0).ok_or_else(short)?;
        if std::str::from_utf8(&self.rest[..end]).is_err() {
            return Err(("22021", "invalid byte sequence for encoding \"UTF8\"".to_owned()));
        }
        self.skip(end + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take_all(bytes: &[u8]) {
        let (near, _far) = tokio::io::duplex(64);
        let mut wire = Wire::new(Box::new(near));
        wire.message_bytes_max = MESSAGE_BYTES_MAX;
        wire.input.extend_from_slice(bytes);
        while let Ok(Some(_)) = wire.take() {}
    }

    proptest! {
        #[test]
        fn no_bytes_panic(kind in prop::sample::select(b"QPBDECHSXpdcfz".to_vec()), body in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 4, b'S', b'a', 255]), 0..40)) {
            let mut bytes = vec![kind];
            bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            bytes.extend_from_slice(&body);
            take_all(&bytes);
            take_all(&body);
        }
    }

    #[tokio::test]
    async fn a_length_is_believed_only_within_the_limit() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut wire = Wire::new(Box::new(near));
        wire.message_bytes_max = MESSAGE_BYTES_MAX;
        far.write_all(b"Q\x7f\xff\xff\xff").await.unwrap();
        let Err(Stop::Fatal(e)) = wire.next().await else { panic!("must be refused") };
        assert_eq!(e.code, state::PROGRAM_LIMIT_EXCEEDED);
        assert!(wire.input.capacity() < 1 << 20);
    }
}
