//! PostgreSQL's types over SQLite's values: which OID a declared type gets, and both formats of every type in both
//! directions. Pure; driven by the session. The rules, so that no client is ever sent garbage:
//!
//! * A table's column has the type it was declared with (`INTEGER` is int8: SQLite's integers have 64 bits).
//! * An expression has no declared type. [`super::infer`] knows the common ones (`count(*)`, `sum(x)`, literals, casts);
//!   otherwise the first row's value decides where rows exist before the description goes out (simple query, Describe of a
//!   portal), and `text` where they do not (Describe of a statement).
//! * A value that is not of its column's type (SQLite lets one store it) goes out as its plain text in the text format; in the
//!   binary format it is an error with a sentence.
//! * Dates and times are ISO text in the engine. Parameters of a date or time type are brought into one form, in UTC
//!   (`2026-11-20 10:41:00.5+00`), so that they compare as text whatever the driver sent.

use super::datetime::{date_text, datetime_text, days, micros, time_micros, time_text};
use super::numeric;
use crate::head::sql::{SqlError, Value, state};
use bytes::{BufMut, BytesMut};

pub const INVALID_TEXT: &str = "22P02";
pub const INVALID_BINARY: &str = "22P03";
const INVALID_DATETIME: &str = "22007";
const OUT_OF_RANGE: &str = "22003";
const NOT_UTF8: &str = "22021";

/// The types that clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PgType {
    Bool,
    Bytea,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Name,
    Varchar,
    Bpchar,
    Json,
    Jsonb,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Unknown,
}

/// (type, OID, bytes in `pg_type.typlen`, name)
const TYPES: &[(PgType, u32, i16, &str)] = &[
    (PgType::Bool, 16, 1, "bool"),
    (PgType::Bytea, 17, -1, "bytea"),
    (PgType::Name, 19, 64, "name"),
    (PgType::Int8, 20, 8, "int8"),
    (PgType::Int2, 21, 2, "int2"),
    (PgType::Int4, 23, 4, "int4"),
    (PgType::Text, 25, -1, "text"),
    (PgType::Oid, 26, 4, "oid"),
    (PgType::Json, 114, -1, "json"),
    (PgType::Float4, 700, 4, "float4"),
    (PgType::Float8, 701, 8, "float8"),
    (PgType::Unknown, 705, -2, "unknown"),
    (PgType::Bpchar, 1042, -1, "bpchar"),
    (PgType::Varchar, 1043, -1, "varchar"),
    (PgType::Date, 1082, 4, "date"),
    (PgType::Time, 1083, 8, "time"),
    (PgType::Timestamp, 1114, 8, "timestamp"),
    (PgType::Timestamptz, 1184, 8, "timestamptz"),
    (PgType::Numeric, 1700, -1, "numeric"),
    (PgType::Uuid, 2950, 16, "uuid"),
    (PgType::Jsonb, 3802, -1, "jsonb"),
];

impl PgType {
    fn entry(self) -> (u32, i16, &'static str) {
        TYPES.iter().find(|t| t.0 == self).map(|t| (t.1, t.2, t.3)).expect("BUG: every PgType has its line in TYPES")
    }

    #[must_use]
    pub fn oid(self) -> u32 {
        self.entry().0
    }

    /// `pg_type.typlen`
    #[must_use]
    pub fn size(self) -> i16 {
        self.entry().1
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().2
    }

    #[must_use]
    pub fn from_oid(oid: u32) -> Option<PgType> {
        TYPES.iter().find(|t| t.1 == oid).map(|t| t.0)
    }

    /// The type for the words of a column's declaration, by their first word. Unknown words: `text`, as everything can be
    /// shown as text.
    #[must_use]
    pub fn from_declared(declared: &str) -> PgType {
        let lower = declared.to_ascii_lowercase();
        let base = lower.split('(').next().unwrap_or("").trim();
        let with_zone = lower.contains("with time zone") && !lower.contains("without");
        match base.split_whitespace().next().unwrap_or("") {
            "integer" | "int" | "bigint" | "int8" | "serial" | "bigserial" | "serial8" | "mediumint" | "tinyint" | "unsigned" => {
                PgType::Int8
            }
            "int4" => PgType::Int4,
            "smallint" | "int2" | "smallserial" => PgType::Int2,
            "real" | "double" | "float" | "float8" => PgType::Float8,
            "float4" => PgType::Float4,
            "numeric" | "decimal" => PgType::Numeric,
            "bool" | "boolean" => PgType::Bool,
            "blob" | "bytea" => PgType::Bytea,
            "varchar" | "nvarchar" => PgType::Varchar,
            "character" | "nchar" if base.contains("varying") => PgType::Varchar,
            // Not bpchar: its blanks are part of PostgreSQL's semantics, and SQLite does not pad.
            "char" | "character" | "nchar" => PgType::Varchar,
            "timestamptz" => PgType::Timestamptz,
            "timestamp" if with_zone => PgType::Timestamptz,
            "timestamp" | "datetime" => PgType::Timestamp,
            "date" => PgType::Date,
            "time" => PgType::Time,
            "uuid" => PgType::Uuid,
            "json" => PgType::Json,
            "jsonb" => PgType::Jsonb,
            "oid" => PgType::Oid,
            _ => PgType::Text,
        }
    }

    /// The type of an expression that came to this value.
    #[must_use]
    pub fn of_value(value: &Value) -> Option<PgType> {
        match value {
            Value::Null => None,
            Value::Integer(_) => Some(PgType::Int8),
            Value::Real(_) => Some(PgType::Float8),
            Value::Text(_) => Some(PgType::Text),
            Value::Blob(_) => Some(PgType::Bytea),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Binary,
}

impl Format {
    /// The format of the `i`th of a list of format codes: none means text, one means it for all.
    ///
    /// # Errors
    /// 08P01 for a code that is neither 0 nor 1, or a list that is too short.
    pub fn nth(codes: &[i16], i: usize) -> Result<Format, SqlError> {
        let code = match codes {
            [] => 0,
            [one] => *one,
            many => *many.get(i).ok_or_else(|| SqlError::new("08P01", format!("there is no format code for number {}", i + 1)))?,
        };
        match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(SqlError::new("08P01", format!("unsupported format code: {other}"))),
        }
    }

    #[must_use]
    pub fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }
}

fn misfit(value: &Value, ty: PgType) -> SqlError {
    let shown = match value {
        Value::Blob(b) => format!("a blob of {} bytes", b.len()),
        Value::Text(t) => format!("the text {:?}", t.chars().take(40).collect::<String>()),
        other => plain_text(other),
    };
    SqlError::new(state::DATATYPE_MISMATCH, format!("the column is described as {}, but a row has {shown}", ty.name()))
        .hint("Read it in the text format, or CAST the column to the type that its values have.")
}

/// Appends the value (not NULL) in the format.
///
/// # Errors
/// 42804 when the value does not fit the type in the binary format.
pub fn encode(value: &Value, ty: PgType, format: Format, out: &mut BytesMut) -> Result<(), SqlError> {
    match format {
        Format::Text => {
            encode_text(value, ty, out);
            Ok(())
        }
        Format::Binary => encode_binary(value, ty, out).ok_or_else(|| misfit(value, ty)),
    }
}

fn encode_text(value: &Value, ty: PgType, out: &mut BytesMut) {
    match (ty, value) {
        (PgType::Bool, v) => match as_bool(v) {
            Some(b) => out.put_slice(if b { b"t" } else { b"f" }),
            None => out.put_slice(plain_text(v).as_bytes()),
        },
        (PgType::Bytea, Value::Text(t)) => out.put_slice(hex(t.as_bytes()).as_bytes()),
        (PgType::Uuid, Value::Blob(b)) if b.len() == 16 => out.put_slice(uuid_text(b).as_bytes()),
        (_, Value::Text(t)) => out.put_slice(t.as_bytes()),
        (_, v) => out.put_slice(plain_text(v).as_bytes()),
    }
}

fn encode_binary(value: &Value, ty: PgType, out: &mut BytesMut) -> Option<()> {
    match ty {
        PgType::Bool => out.put_u8(u8::from(as_bool(value)?)),
        PgType::Int2 => out.put_i16(i16::try_from(as_integer(value)?).ok()?),
        PgType::Int4 => out.put_i32(i32::try_from(as_integer(value)?).ok()?),
        PgType::Int8 => out.put_i64(as_integer(value)?),
        PgType::Oid => out.put_u32(u32::try_from(as_integer(value)?).ok()?),
        PgType::Float4 => out.put_f32(as_real(value)? as f32),
        PgType::Float8 => out.put_f64(as_real(value)?),
        PgType::Numeric => match value {
            Value::Blob(_) => return None,
            v => numeric::encode(&plain_text(v), out)?,
        },
        PgType::Text | PgType::Name | PgType::Varchar | PgType::Bpchar | PgType::Json | PgType::Unknown => match value {
            Value::Text(t) => out.put_slice(t.as_bytes()),
            v => out.put_slice(plain_text(v).as_bytes()),
        },
        PgType::Jsonb => {
            out.put_u8(1);
            match value {
                Value::Blob(_) => return None,
                v => out.put_slice(plain_text(v).as_bytes()),
            }
        }
        PgType::Bytea => match value {
            Value::Blob(b) => out.put_slice(b),
            Value::Text(t) => out.put_slice(t.as_bytes()),
            _ => return None,
        },
        PgType::Uuid => match value {
            Value::Blob(b) if b.len() == 16 => out.put_slice(b),
            Value::Text(t) => out.put_slice(&uuid_bytes(t)?),
            _ => return None,
        },
        PgType::Date => out.put_i32(i32::try_from(days(text_of(value)?)?).ok()?),
        PgType::Time => out.put_i64(time_micros(text_of(value)?)?),
        PgType::Timestamp | PgType::Timestamptz => out.put_i64(micros(text_of(value)?)?),
    }
    Some(())
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::Text(t) => Some(t.trim()),
        _ => None,
    }
}

/// The value as SQLite's shell would show it, floats as PostgreSQL does.
#[must_use]
pub fn plain_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Integer(i) => i.to_string(),
        Value::Real(f) => float_text(*f),
        Value::Text(t) => t.clone(),
        Value::Blob(b) => hex(b),
    }
}

/// Shortest digits that come back as the same float; PostgreSQL's exponent form outside 1e-5 .. 1e15.
fn float_text(f: f64) -> String {
    if f.is_infinite() {
        return if f > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let size = f.abs();
    if f == 0.0 || (1e-4..1e15).contains(&size) || f.is_nan() {
        return f.to_string();
    }
    let e = format!("{f:e}");
    let (digits, exponent) = e.split_once('e').unwrap_or((&e, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Integer(0) => Some(false),
        Value::Integer(1) => Some(true),
        Value::Text(t) => bool_text(t),
        _ => None,
    }
}

/// What PostgreSQL accepts as a boolean.
#[must_use]
pub fn bool_text(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "t" | "true" | "y" | "yes" | "on" | "1" => Some(true),
        "f" | "false" | "n" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn as_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(i) => Some(*i),
        // Up to 2^53 a float is exactly the integer it shows.
        Value::Real(f) if f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0 => Some(*f as i64),
        Value::Text(t) => t.trim().parse().ok(),
        _ => None,
    }
}

fn as_real(value: &Value) -> Option<f64> {
    match value {
        Value::Real(f) => Some(*f),
        Value::Integer(i) if (*i as f64) as i128 == i128::from(*i) => Some(*i as f64),
        Value::Text(t) => t.trim().parse().ok(),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut s = String::with_capacity(2 + bytes.len() * 2);
    s.push_str("\\x");
    for b in bytes {
        s.push(char::from(DIGITS[usize::from(b >> 4)]));
        s.push(char::from(DIGITS[usize::from(b & 15)]));
    }
    s
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.bytes().filter(|b| !b.is_ascii_whitespace()).map(|b| (b as char).to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    Some(digits.chunks(2).map(|p| p[0] << 4 | p[1]).collect())
}

/// `\x00ff`, or the older escape format (`\000`, `\\`).
fn bytea(text: &str) -> Option<Vec<u8>> {
    if let Some(digits) = text.strip_prefix("\\x") {
        return unhex(digits);
    }
    let b = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(b.len()), 0);
    while i < b.len() {
        match (b[i], b.get(i + 1), b.get(i + 1..i + 4)) {
            (b'\\', Some(b'\\'), _) => {
                out.push(b'\\');
                i += 2;
            }
            (b'\\', _, Some(octal)) => {
                out.push(u8::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok()?);
                i += 4;
            }
            (b'\\', _, None) => return None,
            (c, _, _) => {
                out.push(c);
                i += 1;
            }
        }
    }
    Some(out)
}

fn uuid_text(b: &[u8]) -> String {
    let h = hex(b);
    let h = &h[2..];
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

fn uuid_bytes(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.trim().trim_start_matches('{').trim_end_matches('}').chars().filter(|c| *c != '-').collect();
    unhex(&digits).filter(|b| b.len() == 16)
}

fn utf8(bytes: &[u8]) -> Result<&str, SqlError> {
    // A NUL would end the text for half of the engine's functions and not for the others.
    match std::str::from_utf8(bytes) {
        Ok(text) if !bytes.contains(&0) => Ok(text),
        _ => Err(SqlError::new(NOT_UTF8, "invalid byte sequence for encoding \"UTF8\"")),
    }
}

/// A parameter as the client sent it. `declared`: the client named the type itself (or it was cast), so a text that is not of
/// the type is an error; otherwise the type was only guessed from the statement, and such a text stays text.
///
/// # Errors
/// 22P02, 22003, 22007, 22021 (text), 22P03 (binary).
pub fn decode(bytes: &[u8], ty: PgType, declared: bool, format: Format) -> Result<Value, SqlError> {
    match format {
        Format::Text => {
            let text = utf8(bytes)?;
            match decode_text(text, ty) {
                Ok(v) => Ok(v),
                Err(_) if !declared => Ok(Value::Text(text.to_owned())),
                Err(code) => {
                    let shown: String = text.chars().take(60).collect();
                    Err(SqlError::new(code, format!("invalid input syntax for type {}: \"{shown}\"", ty.name())))
                }
            }
        }
        Format::Binary => decode_binary(bytes, ty)?
            .ok_or_else(|| SqlError::new(INVALID_BINARY, format!("{} bytes are not a {} in the binary format", bytes.len(), ty.name()))),
    }
}

/// The engine would silently make NULL of NaN.
fn real(f: f64) -> Option<Value> {
    (!f.is_nan()).then_some(Value::Real(f))
}

fn decode_text(text: &str, ty: PgType) -> Result<Value, &'static str> {
    let integer = |low: i64, high: i64| match text.trim().parse::<i128>() {
        Ok(i) => i64::try_from(i).ok().filter(|i| (low..=high).contains(i)).map(Value::Integer).ok_or(OUT_OF_RANGE),
        Err(_) => Err(INVALID_TEXT),
    };
    match ty {
        PgType::Bool => bool_text(text).map(|b| Value::Integer(i64::from(b))).ok_or(INVALID_TEXT),
        PgType::Int2 => integer(i64::from(i16::MIN), i64::from(i16::MAX)),
        PgType::Int4 => integer(i64::from(i32::MIN), i64::from(i32::MAX)),
        PgType::Int8 => integer(i64::MIN, i64::MAX),
        PgType::Oid => integer(0, i64::from(u32::MAX)),
        PgType::Float4 | PgType::Float8 => text.trim().parse().map_err(|_| INVALID_TEXT).and_then(|f| real(f).ok_or(OUT_OF_RANGE)),
        PgType::Numeric => numeric::value(text.trim()).ok_or(INVALID_TEXT),
        PgType::Bytea => bytea(text).map(Value::Blob).ok_or(INVALID_TEXT),
        PgType::Uuid => uuid_bytes(text).map(|b| Value::Text(uuid_text(&b))).ok_or(INVALID_TEXT),
        PgType::Date => days(text.trim()).and_then(date_text).map(Value::Text).ok_or(INVALID_DATETIME),
        PgType::Time => time_micros(text.trim()).and_then(time_text).map(Value::Text).ok_or(INVALID_DATETIME),
        PgType::Timestamp => micros(text).and_then(|m| datetime_text(m, "")).map(Value::Text).ok_or(INVALID_DATETIME),
        PgType::Timestamptz => micros(text).and_then(|m| datetime_text(m, "+00")).map(Value::Text).ok_or(INVALID_DATETIME),
        PgType::Text | PgType::Name | PgType::Varchar | PgType::Bpchar | PgType::Json | PgType::Jsonb | PgType::Unknown => {
            Ok(Value::Text(text.to_owned()))
        }
    }
}

fn decode_binary(b: &[u8], ty: PgType) -> Result<Option<Value>, SqlError> {
    let i16_ = || b.try_into().ok().map(i16::from_be_bytes);
    let i32_ = || b.try_into().ok().map(i32::from_be_bytes);
    let i64_ = || b.try_into().ok().map(i64::from_be_bytes);
    Ok(match ty {
        PgType::Bool => match b {
            [0] => Some(Value::Integer(0)),
            [1] => Some(Value::Integer(1)),
            _ => None,
        },
        PgType::Int2 => i16_().map(|i| Value::Integer(i64::from(i))),
        PgType::Int4 => i32_().map(|i| Value::Integer(i64::from(i))),
        PgType::Int8 => i64_().map(Value::Integer),
        PgType::Oid => b.try_into().ok().map(|a| Value::Integer(i64::from(u32::from_be_bytes(a)))),
        PgType::Float4 => b.try_into().ok().and_then(|a| real(f64::from(f32::from_be_bytes(a)))),
        PgType::Float8 => b.try_into().ok().and_then(|a| real(f64::from_be_bytes(a))),
        PgType::Numeric => numeric::decode(b).and_then(|t| numeric::value(&t)),
        PgType::Bytea => Some(Value::Blob(b.to_vec())),
        PgType::Uuid => (b.len() == 16).then(|| Value::Text(uuid_text(b))),
        PgType::Date => i32_().and_then(|d| date_text(i64::from(d))).map(Value::Text),
        PgType::Time => i64_().and_then(time_text).map(Value::Text),
        PgType::Timestamp => i64_().and_then(|m| datetime_text(m, "")).map(Value::Text),
        PgType::Timestamptz => i64_().and_then(|m| datetime_text(m, "+00")).map(Value::Text),
        PgType::Jsonb => match b {
            [1, text @ ..] => Some(Value::Text(utf8(text)?.to_owned())),
            _ => None,
        },
        PgType::Text | PgType::Name | PgType::Varchar | PgType::Bpchar | PgType::Json | PgType::Unknown => {
            Some(Value::Text(utf8(b)?.to_owned()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sent(value: &Value, ty: PgType, format: Format) -> Result<Vec<u8>, SqlError> {
        let mut out = BytesMut::new();
        encode(value, ty, format, &mut out)?;
        Ok(out.to_vec())
    }

    fn round(value: &Value, ty: PgType) {
        for format in [Format::Text, Format::Binary] {
            let bytes = sent(value, ty, format).expect("encodes");
            assert_eq!(&decode(&bytes, ty, true, format).expect("decodes"), value, "{ty:?} {format:?} {bytes:?}");
        }
    }

    fn text(t: &str) -> Value {
        Value::Text(t.into())
    }

    #[test]
    fn values_come_back_in_both_formats() {
        for (value, ty) in [
            (Value::Integer(1), PgType::Bool),
            (Value::Integer(-7), PgType::Int2),
            (Value::Integer(70_000), PgType::Int4),
            (Value::Integer(i64::MIN), PgType::Int8),
            (Value::Integer(4_000_000_000), PgType::Oid),
            (Value::Real(0.5), PgType::Float4),
            (Value::Real(1.0e-300), PgType::Float8),
            (Value::Integer(-12_345), PgType::Numeric),
            (Value::Real(1234.5), PgType::Numeric),
            (text("123456789012345678901234567890.123"), PgType::Numeric),
            (text("h\u{e9}llo"), PgType::Text),
            (text(""), PgType::Varchar),
            (text("{\"a\":1}"), PgType::Json),
            (text("[1]"), PgType::Jsonb),
            (Value::Blob(vec![0, 1, 255, b'\\']), PgType::Bytea),
            (text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), PgType::Uuid),
            (text("1999-12-31"), PgType::Date),
            (text("0001-01-01"), PgType::Date),
            (text("23:59:59.25"), PgType::Time),
            (text("1999-12-31 23:59:59.999999"), PgType::Timestamp),
            (text("2026-11-20 10:41:00.5+00"), PgType::Timestamptz),
        ] {
            round(&value, ty);
        }
    }

    #[test]
    fn times_are_brought_into_one_form() {
        for sent in [
            "2024-01-01 12:00:00+02:00",
            "2024-01-01T10:00:00Z",
            "2024-01-01 10:00:00+00",
            "2024-01-01 10:00:00",
            "2024-01-01 10:00:00.000 UTC",
        ] {
            assert_eq!(decode(sent.as_bytes(), PgType::Timestamptz, true, Format::Text).unwrap(), text("2024-01-01 10:00:00+00"), "{sent}");
        }
        assert_eq!(decode(b"2024-01-01", PgType::Timestamp, true, Format::Text).unwrap(), text("2024-01-01 00:00:00"));
        assert_eq!(decode(b"soon", PgType::Timestamp, true, Format::Text).unwrap_err().code, "22007");
        assert_eq!(sent(&text("2000-01-02"), PgType::Date, Format::Binary).unwrap(), [0, 0, 0, 1]);
        assert_eq!(sent(&text("2000-01-01 00:00:01"), PgType::Timestamp, Format::Binary).unwrap(), 1_000_000_i64.to_be_bytes());
    }

    #[test]
    fn a_value_that_does_not_fit_is_an_error_in_binary_and_itself_in_text() {
        for (value, ty) in [
            (text("abc"), PgType::Int8),
            (Value::Integer(70_000), PgType::Int2),
            (Value::Real(1.5), PgType::Int8),
            (Value::Integer(2), PgType::Bool),
            (text("soon"), PgType::Timestamptz),
            (Value::Integer(5), PgType::Date),
            (Value::Blob(vec![1]), PgType::Uuid),
            (text("many"), PgType::Numeric),
            (Value::Integer(1), PgType::Bytea),
            (Value::Integer(i64::MAX), PgType::Float8),
        ] {
            assert_eq!(sent(&value, ty, Format::Binary).unwrap_err().code, state::DATATYPE_MISMATCH, "{value:?} as {ty:?}");
            assert_eq!(sent(&value, ty, Format::Text).unwrap(), plain_text(&value).into_bytes());
        }
    }

    #[test]
    fn what_the_engine_would_change_silently_is_refused() {
        assert_eq!(decode(b"a\0b", PgType::Text, false, Format::Text).unwrap_err().code, "22021");
        assert_eq!(decode(b"NaN", PgType::Float8, true, Format::Text).unwrap_err().code, "22003");
        assert_eq!(decode(&f64::NAN.to_be_bytes(), PgType::Float8, true, Format::Binary).unwrap_err().code, INVALID_BINARY);
    }

    #[test]
    fn declared_types_get_their_oids() {
        for (declared, oid) in [
            ("INTEGER", 20),
            ("int", 20),
            ("BIGINT", 20),
            ("smallint", 21),
            ("VARCHAR(20)", 1043),
            ("character varying(3)", 1043),
            ("TEXT", 25),
            ("double precision", 701),
            ("NUMERIC(10,2)", 1700),
            ("boolean", 16),
            ("BLOB", 17),
            ("timestamp with time zone", 1184),
            ("TIMESTAMP(3) without time zone", 1114),
            ("timestamptz", 1184),
            ("", 25),
            ("whatever", 25),
        ] {
            assert_eq!(PgType::from_declared(declared).oid(), oid, "{declared}");
        }
    }

    #[test]
    fn floats_look_as_postgres_shows_them() {
        for (f, shown) in [
            (1.0, "1"),
            (0.1, "0.1"),
            (1e15, "1e+15"),
            (1.5e-7, "1.5e-07"),
            (-1e300, "-1e+300"),
            (f64::INFINITY, "Infinity"),
            (0.0001, "0.0001"),
        ] {
            assert_eq!(float_text(f), shown);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), which in 0..TYPES.len(), binary in any::<bool>(), declared in any::<bool>()) {
            let format = if binary { Format::Binary } else { Format::Text };
            if let Ok(value) = decode(&bytes, TYPES[which].0, declared, format) {
                let mut out = BytesMut::new();
                let _ = encode(&value, TYPES[which].0, Format::Binary, &mut out);
            }
        }

        #[test]
        fn integers_and_floats_come_back(i in any::<i64>(), f in prop::num::f64::NORMAL) {
            round(&Value::Integer(i), PgType::Int8);
            round(&Value::Real(f), PgType::Float8);
        }

        #[test]
        fn moments_come_back(us in -60_000_000_000_000_000_i64..200_000_000_000_000_000) {
            let value = decode(&us.to_be_bytes(), PgType::Timestamptz, true, Format::Binary).unwrap();
            prop_assert_eq!(sent(&value, PgType::Timestamptz, Format::Binary).unwrap(), us.to_be_bytes());
        }
    }
}
