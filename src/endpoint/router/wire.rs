//! What two regions say to each other on the stream of a forwarded session: statements one way, answers the other.
//!
//! Decides the bytes and their bounds; never what a statement means. A version stands first on the stream, before any frame; both
//! sides read frames as they arrive, so that a length field alone costs no memory. Nothing that arrives makes a decoder panic.
//!
//! ```text
//!  stream, from the dialling side   magic "PHS", version byte 1, then frames
//!  frame                            u32 length of what follows, u8 kind, u32 number of the request, then by kind:
//!    1 execute                      begin, text, u32 count, values       begin: 0 no, 1 read-write, 2 read-only
//!    2 describe                     begin, text
//!    3 commit   4 rollback          begin (0)
//!    5 savepoint   6 release        begin, text
//!    7 rollback to                  begin, text
//!    8 cancel                       nothing: the request of that number, if it runs
//!    9 ping                         nothing
//!   11 done                         state, u64 rows changed
//!   12 columns                      u32 count, (text, u8 + text if declared); rows follow
//!   13 rows                         u32 count, (u32 count, values)
//!   14 end of the rows              state
//!   15 error                        state, five bytes, u8 elsewhere, text, u8 + text if there is a hint
//!   16 described                    state, u32 parameters, u8 read-only, columns as above
//!   17 said                         state, u8: committed; done
//!   18 pong                         u8: the writer port is served there
//!  state                            u8 of the transaction (0 idle, 1 open, 2 failed), u8 + u32 version of the schema if it is known
//!  text, blob                       u32 length, bytes
//!  value                            0 null; 1 i64; 2 f64; 3 text; 4 blob
//! ```
//! All numbers little-endian.

use crate::head::sql::{Column, Description, Row, SqlError, TxMode, TxState, Value, state};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};

pub const HELLO: [u8; 4] = *b"PHS\x01";
/// A row may hold a value of 256 MiB, a statement has at most 64 MiB with its parameters.
pub const FRAME_BYTES_MAX: usize = 320 << 20;
/// Rows are sent in frames of about so much, so that what is read can be handed on.
pub const ROWS_BYTES: usize = 64 << 10;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Execute { sql: String, params: Vec<Value> },
    Describe { sql: String },
    Commit,
    Rollback,
    Savepoint { name: String },
    Release { name: String },
    RollbackTo { name: String },
    Cancel,
    Ping,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub id: u32,
    /// A transaction begins with it.
    pub begin: Option<TxMode>,
    pub what: What,
}

/// Where the session stands after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub tx: TxState,
    pub schema: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Done { standing: Standing, changed: u64 },
    Columns(Arc<[Column]>),
    Rows(Vec<Row>),
    End { standing: Standing },
    Error { standing: Standing, error: SqlError },
    Described { standing: Standing, description: Description },
    Said { standing: Standing, yes: bool },
    Pong { serves: bool },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub id: u32,
    pub said: Said,
}

/// What arrived makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of a forwarded session cannot be read: {0}")]
pub struct Malformed(pub &'static str);

fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_u32_le(u32::try_from(text.len()).expect("BUG: texts are bounded before"));
    out.put_slice(text);
}

fn put_optional(out: &mut BytesMut, text: Option<&str>) {
    out.put_u8(u8::from(text.is_some()));
    if let Some(text) = text {
        put_text(out, text.as_bytes());
    }
}

fn put_value(out: &mut BytesMut, value: &Value) {
    match value {
        Value::Null => out.put_u8(0),
        Value::Integer(n) => {
            out.put_u8(1);
            out.put_i64_le(*n);
        }
        Value::Real(x) => {
            out.put_u8(2);
            out.put_u64_le(x.to_bits());
        }
        Value::Text(text) => {
            out.put_u8(3);
            put_text(out, text.as_bytes());
        }
        Value::Blob(blob) => {
            out.put_u8(4);
            put_text(out, blob);
        }
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("BUG: counts are bounded before"));
}

fn put_columns(out: &mut BytesMut, columns: &[Column]) {
    put_count(out, columns.len());
    for column in columns {
        put_text(out, column.name.as_bytes());
        put_optional(out, column.declared_type.as_deref());
    }
}

fn put_standing(out: &mut BytesMut, standing: Standing) {
    out.put_u8(match standing.tx {
        TxState::Idle => 0,
        TxState::InTransaction => 1,
        TxState::Failed => 2,
    });
    out.put_u8(u8::from(standing.schema.is_some()));
    if let Some(schema) = standing.schema {
        out.put_u32_le(schema);
    }
}

/// Lays a frame behind what `out` has.
fn frame(out: &mut BytesMut, kind: u8, id: u32, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind);
    out.put_u32_le(id);
    body(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

impl What {
    fn kind(&self) -> u8 {
        match self {
            What::Execute { .. } => 1,
            What::Describe { .. } => 2,
            What::Commit => 3,
            What::Rollback => 4,
            What::Savepoint { .. } => 5,
            What::Release { .. } => 6,
            What::RollbackTo { .. } => 7,
            What::Cancel => 8,
            What::Ping => 9,
        }
    }

    /// A request as a frame.
    ///
    /// # Errors
    /// 54000 when it is larger than a frame may be.
    pub fn encode(&self, id: u32, begin: Option<TxMode>) -> Result<Bytes, SqlError> {
        let mut out = BytesMut::new();
        frame(&mut out, self.kind(), id, |out| {
            if matches!(self, What::Cancel | What::Ping) {
                return;
            }
            out.put_u8(begin.map_or(0, |mode| 1 + u8::from(mode.read_only)));
            match self {
                What::Execute { sql, params } => {
                    put_text(out, sql.as_bytes());
                    put_count(out, params.len());
                    params.iter().for_each(|p| put_value(out, p));
                }
                What::Describe { sql } => put_text(out, sql.as_bytes()),
                What::Savepoint { name } | What::Release { name } | What::RollbackTo { name } => put_text(out, name.as_bytes()),
                What::Commit | What::Rollback | What::Cancel | What::Ping => {}
            }
        });
        if out.len() > FRAME_BYTES_MAX {
            return Err(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, "the statement is too large to be sent to the writer's region"));
        }
        Ok(out.freeze())
    }
}

impl Answer {
    pub fn put(&self, out: &mut BytesMut) {
        let kind = match &self.said {
            Said::Done { .. } => 11,
            Said::Columns(_) => 12,
            Said::Rows(_) => 13,
            Said::End { .. } => 14,
            Said::Error { .. } => 15,
            Said::Described { .. } => 16,
            Said::Said { .. } => 17,
            Said::Pong { .. } => 18,
        };
        frame(out, kind, self.id, |out| match &self.said {
            Said::Done { standing, changed } => {
                put_standing(out, *standing);
                out.put_u64_le(*changed);
            }
            Said::Columns(columns) => put_columns(out, columns),
            Said::Rows(rows) => {
                put_count(out, rows.len());
                for row in rows {
                    put_count(out, row.len());
                    row.iter().for_each(|value| put_value(out, value));
                }
            }
            Said::End { standing } => put_standing(out, *standing),
            Said::Error { standing, error } => {
                put_standing(out, *standing);
                out.put_slice(error.code.as_bytes());
                out.put_u8(u8::from(error.elsewhere));
                put_text(out, error.message.as_bytes());
                put_optional(out, error.hint.as_deref());
            }
            Said::Described { standing, description } => {
                put_standing(out, *standing);
                put_count(out, description.parameters);
                out.put_u8(u8::from(description.read_only));
                put_columns(out, &description.columns);
            }
            Said::Said { standing, yes } => {
                put_standing(out, *standing);
                out.put_u8(u8::from(*yes));
            }
            Said::Pong { serves } => out.put_u8(u8::from(*serves)),
        });
    }
}

/// About how many bytes a row takes in a frame.
#[must_use]
pub fn row_bytes(row: &Row) -> usize {
    let bytes = |value: &Value| match value {
        Value::Null => 1,
        Value::Integer(_) | Value::Real(_) => 9,
        Value::Text(text) => 5 + text.len(),
        Value::Blob(blob) => 5 + blob.len(),
    };
    4 + row.iter().map(bytes).sum::<usize>()
}

/// Takes what a frame holds apart; every length is checked against what is there.
struct Take(Bytes);

type Taken<T> = Result<T, Malformed>;

impl Take {
    fn need(&self, bytes: usize) -> Taken<()> {
        if self.0.remaining() >= bytes { Ok(()) } else { Err(Malformed("it ends too early")) }
    }

    fn u8(&mut self) -> Taken<u8> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    fn flag(&mut self) -> Taken<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag is neither 0 nor 1")),
        }
    }

    fn u32(&mut self) -> Taken<u32> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    fn u64(&mut self) -> Taken<u64> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    /// A count of things that take at least one byte each.
    fn count(&mut self) -> Taken<usize> {
        let count = self.u32()? as usize;
        self.need(count)?;
        Ok(count)
    }

    fn blob(&mut self) -> Taken<Bytes> {
        let length = self.u32()? as usize;
        self.need(length)?;
        Ok(self.0.split_to(length))
    }

    fn text(&mut self) -> Taken<String> {
        String::from_utf8(self.blob()?.into()).map_err(|_| Malformed("a text is not UTF-8"))
    }

    fn optional(&mut self) -> Taken<Option<String>> {
        Ok(if self.flag()? { Some(self.text()?) } else { None })
    }

    fn value(&mut self) -> Taken<Value> {
        Ok(match self.u8()? {
            0 => Value::Null,
            1 => Value::Integer(self.u64()?.cast_signed()),
            2 => Value::Real(f64::from_bits(self.u64()?)),
            3 => Value::Text(self.text()?),
            4 => Value::Blob(self.blob()?.into()),
            _ => return Err(Malformed("a value is of an unknown kind")),
        })
    }

    fn values(&mut self) -> Taken<Vec<Value>> {
        let count = self.count()?;
        (0..count).map(|_| self.value()).collect()
    }

    fn columns(&mut self) -> Taken<Arc<[Column]>> {
        let count = self.count()?;
        (0..count).map(|_| Ok(Column { name: self.text()?, declared_type: self.optional()? })).collect()
    }

    fn begin(&mut self) -> Taken<Option<TxMode>> {
        match self.u8()? {
            0 => Ok(None),
            mode @ 1..=2 => Ok(Some(TxMode { read_only: mode == 2 })),
            _ => Err(Malformed("a transaction of an unknown kind begins")),
        }
    }

    fn standing(&mut self) -> Taken<Standing> {
        let tx = match self.u8()? {
            0 => TxState::Idle,
            1 => TxState::InTransaction,
            2 => TxState::Failed,
            _ => return Err(Malformed("a transaction is in an unknown state")),
        };
        let schema = if self.flag()? { Some(self.u32()?) } else { None };
        Ok(Standing { tx, schema })
    }

    fn error(&mut self) -> Taken<SqlError> {
        self.need(5)?;
        let code = code(&self.0.split_to(5))?;
        let elsewhere = self.flag()?;
        let mut error = SqlError::new(code, self.text()?);
        error.hint = self.optional()?;
        error.elsewhere = elsewhere;
        Ok(error)
    }

    fn end<T>(self, whole: T) -> Taken<T> {
        if self.0.is_empty() { Ok(whole) } else { Err(Malformed("there is more in it than there should be")) }
    }
}

/// How many SQLSTATEs other than those met so far are remembered; there are some 260 in PostgreSQL.
const CODES_MAX: usize = 1000;

/// A SQLSTATE is five capitals or digits. Those that arrive are few and come again and again; they are kept for good.
fn code(bytes: &[u8]) -> Taken<&'static str> {
    static CODES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let text = std::str::from_utf8(bytes).ok().filter(|t| t.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()));
    let text = text.ok_or(Malformed("an SQLSTATE is not five capitals or digits"))?;
    let mut codes = CODES.lock();
    if let Some(known) = codes.get(text) {
        return Ok(known);
    }
    if codes.len() >= CODES_MAX {
        return Ok(state::INTERNAL_ERROR);
    }
    let kept: &'static str = Box::leak(text.into());
    codes.insert(kept);
    Ok(kept)
}

/// What the dialling side sent, without its length.
///
/// # Errors
/// [`Malformed`]
pub fn decode_request(frame: Bytes) -> Result<Request, Malformed> {
    let mut take = Take(frame);
    let (kind, id) = (take.u8()?, take.u32()?);
    let begin = if matches!(kind, 8 | 9) { None } else { take.begin()? };
    let what = match kind {
        1 => What::Execute { sql: take.text()?, params: take.values()? },
        2 => What::Describe { sql: take.text()? },
        3 => What::Commit,
        4 => What::Rollback,
        5 => What::Savepoint { name: take.text()? },
        6 => What::Release { name: take.text()? },
        7 => What::RollbackTo { name: take.text()? },
        8 => What::Cancel,
        9 => What::Ping,
        _ => return Err(Malformed("a request of an unknown kind")),
    };
    take.end(Request { id, begin, what })
}

/// What the writer's side answered, without its length.
///
/// # Errors
/// [`Malformed`]
pub fn decode_answer(frame: Bytes) -> Result<Answer, Malformed> {
    let mut take = Take(frame);
    let (kind, id) = (take.u8()?, take.u32()?);
    let said = match kind {
        11 => Said::Done { standing: take.standing()?, changed: take.u64()? },
        12 => Said::Columns(take.columns()?),
        13 => {
            let count = take.count()?;
            Said::Rows((0..count).map(|_| take.values()).collect::<Taken<_>>()?)
        }
        14 => Said::End { standing: take.standing()? },
        15 => Said::Error { standing: take.standing()?, error: take.error()? },
        16 => {
            let (standing, parameters, read_only) = (take.standing()?, take.u32()? as usize, take.flag()?);
            let columns = take.columns()?;
            Said::Described { standing, description: Description { parameters, columns, read_only } }
        }
        17 => Said::Said { standing: take.standing()?, yes: take.flag()? },
        18 => Said::Pong { serves: take.flag()? },
        _ => return Err(Malformed("an answer of an unknown kind")),
    };
    take.end(Answer { id, said })
}

/// Reads frames; memory grows with what arrives.
pub struct Frames<R> {
    stream: R,
    input: BytesMut,
}

impl<R: AsyncRead + Unpin + Send> Frames<R> {
    pub fn new(stream: R) -> Frames<R> {
        Frames { stream, input: BytesMut::new() }
    }

    /// The version that the other side speaks, before its first frame.
    ///
    /// # Errors
    /// A sentence: the stream broke, or it speaks another one.
    pub async fn hello(&mut self) -> Result<(), String> {
        self.fill_to(HELLO.len()).await?.then_some(()).ok_or("the stream ended before it began")?;
        match self.input.split_to(HELLO.len())[..] == HELLO {
            true => Ok(()),
            false => Err("the other side forwards sessions in another version; run the same parhelion in all regions".to_owned()),
        }
    }

    /// The next frame, without its length; `None` at the end of the stream.
    ///
    /// # Errors
    /// A sentence: the stream broke, or what came is no frame.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        if !self.fill_to(4).await? {
            return Ok(None);
        }
        let length = (&self.input[..4]).get_u32_le() as usize;
        if length > FRAME_BYTES_MAX {
            return Err(format!("a frame of {length} bytes, and at most {FRAME_BYTES_MAX} are taken"));
        }
        if !self.fill_to(4 + length).await? {
            return Err("the stream ended within a frame".to_owned());
        }
        let mut frame = self.input.split_to(4 + length).freeze();
        frame.advance(4);
        Ok(Some(frame))
    }

    /// `false`: the stream ended with nothing of it.
    async fn fill_to(&mut self, bytes: usize) -> Result<bool, String> {
        while self.input.len() < bytes {
            self.input.reserve((bytes - self.input.len()).min(ROWS_BYTES));
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) if self.input.is_empty() => return Ok(false),
                Ok(0) => return Err("the stream ended within a frame".to_owned()),
                Ok(_) => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            (-1e300..1e300).prop_map(Value::Real),
            "[a-zä ]{0,8}".prop_map(Value::Text),
            prop::collection::vec(any::<u8>(), 0..8).prop_map(Value::Blob),
        ]
    }

    fn values() -> impl Strategy<Value = Vec<Value>> {
        prop::collection::vec(value(), 0..5)
    }

    fn request() -> impl Strategy<Value = Request> {
        let text = || "[a-z$1 ;']{0,20}";
        let what = prop_oneof![
            (text(), values()).prop_map(|(sql, params)| What::Execute { sql, params }),
            text().prop_map(|sql| What::Describe { sql }),
            Just(What::Commit),
            Just(What::Rollback),
            text().prop_map(|name| What::Savepoint { name }),
            text().prop_map(|name| What::Release { name }),
            text().prop_map(|name| What::RollbackTo { name }),
            Just(What::Cancel),
            Just(What::Ping),
        ];
        (any::<u32>(), prop::option::of(any::<bool>()), what).prop_map(|(id, begin, what)| {
            let begin = begin.map(|read_only| TxMode { read_only }).filter(|_| !matches!(what, What::Cancel | What::Ping));
            Request { id, begin, what }
        })
    }

    fn columns() -> impl Strategy<Value = Arc<[Column]>> {
        prop::collection::vec(("[a-z]{0,5}", prop::option::of("[a-z]{1,5}")), 0..4)
            .prop_map(|all| all.into_iter().map(|(name, declared_type)| Column { name, declared_type }).collect())
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let standing = || {
            (0..3_usize, prop::option::of(any::<u32>()))
                .prop_map(|(tx, schema)| Standing { tx: [TxState::Idle, TxState::InTransaction, TxState::Failed][tx], schema })
        };
        let error = ("[0-9A-Z]{5}", "[a-z ]{0,9}", prop::option::of("[a-z ]{0,9}"), any::<bool>()).prop_map(
            |(sqlstate, message, hint, elsewhere)| SqlError { code: code(sqlstate.as_bytes()).unwrap(), message, hint, elsewhere },
        );
        let said = prop_oneof![
            (standing(), any::<u64>()).prop_map(|(standing, changed)| Said::Done { standing, changed }),
            columns().prop_map(Said::Columns),
            prop::collection::vec(values(), 0..4).prop_map(Said::Rows),
            standing().prop_map(|standing| Said::End { standing }),
            (standing(), error).prop_map(|(standing, error)| Said::Error { standing, error }),
            (standing(), 0..99_usize, any::<bool>(), columns()).prop_map(|(standing, parameters, read_only, columns)| {
                Said::Described { standing, description: Description { parameters, columns, read_only } }
            }),
            (standing(), any::<bool>()).prop_map(|(standing, yes)| Said::Said { standing, yes }),
            any::<bool>().prop_map(|serves| Said::Pong { serves }),
        ];
        (any::<u32>(), said).prop_map(|(id, said)| Answer { id, said })
    }

    fn read(bytes: &[u8]) -> Result<Vec<Bytes>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut frames = Frames::new(bytes);
            let mut all = Vec::new();
            while let Some(frame) = frames.next().await? {
                all.push(frame);
            }
            Ok(all)
        })
    }

    proptest! {
        #[test]
        fn requests_and_answers_survive_the_way(requests in prop::collection::vec(request(), 0..4), answers in prop::collection::vec(answer(), 0..4)) {
            let mut out = BytesMut::new();
            for r in &requests {
                out.put(r.what.encode(r.id, r.begin).unwrap());
            }
            let got: Vec<Request> = read(&out).unwrap().into_iter().map(|f| decode_request(f).unwrap()).collect();
            // Compared as text: a number that is none is not equal to itself.
            prop_assert_eq!(format!("{got:?}"), format!("{requests:?}"));
            let mut out = BytesMut::new();
            for a in &answers {
                a.put(&mut out);
            }
            let got: Vec<Answer> = read(&out).unwrap().into_iter().map(|f| decode_answer(f).unwrap()).collect();
            prop_assert_eq!(format!("{got:?}"), format!("{answers:?}"));
        }

        #[test]
        fn garbage_is_refused_and_panics_nobody(bytes in prop::collection::vec(any::<u8>(), 0..60), kind in 0..20_u8) {
            let _ = read(&bytes);
            let mut with_kind = vec![kind];
            with_kind.extend(&bytes);
            for frame in [Bytes::from(bytes.clone()), Bytes::from(with_kind)] {
                let _ = decode_request(frame.clone());
                let _ = decode_answer(frame);
            }
        }

        #[test]
        fn a_flipped_bit_or_a_cut_panics_nobody(request in request(), answer in answer(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let mut bytes = BytesMut::new();
            bytes.put(request.what.encode(request.id, request.begin).unwrap());
            answer.put(&mut bytes);
            let at = at.index(bytes.len());
            let _ = read(&bytes[..at]);
            bytes[at] ^= 1 << bit;
            for frame in read(&bytes).unwrap_or_default() {
                let _ = decode_request(frame.clone());
                let _ = decode_answer(frame);
            }
        }
    }

    #[test]
    fn a_length_that_lies_costs_nothing() {
        let mut out = BytesMut::new();
        frame(&mut out, 13, 1, |out| out.put_u32_le(u32::MAX));
        let frames = read(&out).unwrap();
        assert_eq!(decode_answer(frames[0].clone()), Err(Malformed("it ends too early")));
        assert!(read(&u32::MAX.to_le_bytes()).unwrap_err().contains("at most"));
        assert!(read(&[255, 255, 0, 0, 1]).unwrap_err().contains("within a frame"));
    }
}
