//! The lines of COPY, in the text format and as CSV: fields in, fields out.
//!
//! Decides where a line and a field end. Keeps only the line that is being read. Driven by [`super::copy`].

use super::wire::MESSAGE_BYTES_MAX;
use crate::head::sql::{SqlError, state};

pub const BAD_COPY: &str = "22P04";

/// How a line is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub csv: bool,
    pub delimiter: u8,
    pub null: String,
    pub header: bool,
    pub quote: u8,
    pub escape: u8,
}

/// Takes backslash sequences out of a field of the text format.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        if field[i] != b'\\' || i + 1 == field.len() {
            out.push(field[i]);
            i += 1;
            continue;
        }
        i += 1;
        let digits =
            |from: usize, max: usize, radix: u32| field[from..].iter().take(max).take_while(|b| (**b as char).is_digit(radix)).count();
        let number = |from: usize, n: usize, radix: u32| {
            field[from..from + n].iter().fold(0_u32, |v, b| v * radix + (*b as char).to_digit(radix).unwrap_or(0))
        };
        match field[i] {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'0'..=b'7' => {
                let n = digits(i, 3, 8);
                out.push((number(i, n, 8) & 0xff) as u8);
                i += n - 1;
            }
            b'x' if digits(i + 1, 2, 16) > 0 => {
                let n = digits(i + 1, 2, 16);
                out.push(number(i + 1, n, 16) as u8);
                i += n;
            }
            other => out.push(other),
        }
        i += 1;
    }
    out
}

/// Turns the stream of COPY data into fields, line by line.
pub struct Lines {
    shape: Shape,
    buffer: Vec<u8>,
    /// Up to here the buffer has been searched for the end of the line.
    searched: usize,
    /// State of the search: after a backslash, inside quotes.
    escaped: bool,
    quoted: bool,
    /// Of the line that was read last, from 1.
    number: u64,
    ended: bool,
}

pub type Fields = Vec<Option<String>>;

impl Lines {
    pub fn new(shape: Shape) -> Lines {
        Lines { shape, buffer: Vec::new(), searched: 0, escaped: false, quoted: false, number: 0, ended: false }
    }

    pub fn push(&mut self, data: &[u8]) -> Result<(), SqlError> {
        if self.buffer.len() + data.len() > 2 * MESSAGE_BYTES_MAX {
            return Err(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, format!("COPY line {} is too long", self.number + 1)));
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    /// All lines that are complete; with `end`, also what is left.
    pub fn take(&mut self, end: bool, mut each: impl FnMut(u64, Fields)) -> Result<(), SqlError> {
        let mut start = 0;
        loop {
            let line_end = self.search();
            let (stop, next) = match line_end {
                Some(n) => (n, n + 1),
                None if end && start < self.buffer.len() => (self.buffer.len(), self.buffer.len()),
                None => break,
            };
            let line = &self.buffer[start..stop];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            self.number += 1;
            if line == b"\\." {
                self.ended = true;
            }
            let header = self.shape.header && self.number == 1;
            if !self.ended && !header {
                if self.quoted {
                    return Err(SqlError::new(BAD_COPY, "unterminated CSV quoted field"));
                }
                let fields = if self.shape.csv { self.csv_fields(line) } else { self.text_fields(line) };
                each(self.number, fields.map_err(|e| SqlError { message: format!("{} (COPY line {})", e.message, self.number), ..e })?);
            }
            start = next;
            self.searched = next;
            if line_end.is_none() {
                break;
            }
        }
        self.buffer.drain(..start);
        self.searched -= start;
        Ok(())
    }

    /// The next newline that ends a line.
    fn search(&mut self) -> Option<usize> {
        while let Some(&b) = self.buffer.get(self.searched) {
            let at = self.searched;
            self.searched += 1;
            if self.shape.csv {
                if self.escaped {
                    self.escaped = false;
                } else if self.quoted && b == self.shape.escape && self.shape.escape != self.shape.quote {
                    self.escaped = true;
                } else if b == self.shape.quote {
                    self.quoted = !self.quoted;
                } else if b == b'\n' && !self.quoted {
                    return Some(at);
                }
            } else if self.escaped {
                self.escaped = false;
            } else if b == b'\\' {
                self.escaped = true;
            } else if b == b'\n' {
                return Some(at);
            }
        }
        None
    }

    fn utf8(bytes: Vec<u8>) -> Result<String, SqlError> {
        String::from_utf8(bytes).map_err(|_| SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\""))
    }

    fn text_fields(&self, line: &[u8]) -> Result<Fields, SqlError> {
        let mut fields = Vec::new();
        let mut start = 0;
        let mut i = 0;
        loop {
            match line.get(i) {
                Some(b'\\') => {
                    i += 2;
                    continue;
                }
                Some(b) if *b != self.shape.delimiter => {
                    i += 1;
                    continue;
                }
                _ => {}
            }
            let raw = &line[start..i.min(line.len())];
            fields.push(if raw == self.shape.null.as_bytes() { None } else { Some(Lines::utf8(unescape(raw))?) });
            if i >= line.len() {
                return Ok(fields);
            }
            i += 1;
            start = i;
        }
    }

    fn csv_fields(&self, line: &[u8]) -> Result<Fields, SqlError> {
        let s = &self.shape;
        let mut fields = Vec::new();
        let mut i = 0;
        loop {
            let (mut field, mut was_quoted, mut inside) = (Vec::new(), false, false);
            while let Some(&b) = line.get(i) {
                let next = line.get(i + 1).copied();
                if inside && b == s.escape && (next == Some(s.quote) || (next == Some(s.escape) && s.escape != s.quote)) {
                    field.push(next.unwrap_or(b));
                    i += 1;
                } else if b == s.quote {
                    inside = !inside;
                    was_quoted = true;
                } else if b == s.delimiter && !inside {
                    break;
                } else {
                    field.push(b);
                }
                i += 1;
            }
            let field = Lines::utf8(field)?;
            fields.push(if !was_quoted && field == s.null { None } else { Some(field) });
            if i >= line.len() {
                return Ok(fields);
            }
            i += 1;
        }
    }
}

impl Shape {
    /// A line of COPY TO.
    pub fn write(&self, fields: &[Option<String>], out: &mut Vec<u8>) {
        for (i, field) in fields.iter().enumerate() {
            if i > 0 {
                out.push(self.delimiter);
            }
            match field {
                None => out.extend_from_slice(self.null.as_bytes()),
                Some(text) if self.csv => {
                    let special = |b: &u8| [self.delimiter, self.quote, b'\n', b'\r'].contains(b);
                    if *text == self.null || text == "\\." || text.as_bytes().iter().any(special) {
                        out.push(self.quote);
                        for b in text.bytes() {
                            if b == self.quote || b == self.escape {
                                out.push(self.escape);
                            }
                            out.push(b);
                        }
                        out.push(self.quote);
                    } else {
                        out.extend_from_slice(text.as_bytes());
                    }
                }
                Some(text) => {
                    for b in text.bytes() {
                        match b {
                            b'\\' => out.extend_from_slice(b"\\\\"),
                            b'\n' => out.extend_from_slice(b"\\n"),
                            b'\r' => out.extend_from_slice(b"\\r"),
                            b'\t' => out.extend_from_slice(b"\\t"),
                            b if b == self.delimiter => out.extend_from_slice(&[b'\\', b]),
                            b => out.push(b),
                        }
                    }
                }
            }
        }
        out.push(b'\n');
    }
}
