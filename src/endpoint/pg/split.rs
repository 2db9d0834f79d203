//! Where one SQL statement ends and the next begins, and the words in it.
//!
//! Decides only that: a small lexer of SQLite's dialect (strings, quoted names, comments, parameters) and a splitter on top,
//! which knows the bodies of triggers as `sqlite3_complete` does. Never says whether SQL is right; the engine does. Total on
//! any input: nothing panics and nothing is lost (the pieces put together are the text). Driven by the session.

/// What a [`Token`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A keyword or a plain name.
    Word,
    /// `"name"`, `` `name` `` or `[name]`.
    QuotedName,
    /// `'text'` or `$tag$text$tag$`.
    Text,
    /// `x'00ff'`
    Blob,
    Number,
    /// `$1`, `?`, `?1`, `:name`, `@name`
    Parameter,
    /// Everything else; `||`, `<=`, `>=`, `<>`, `!=`, `==`, `->`, `->>`, `<<`, `>>` are one token.
    Symbol,
    /// White space and comments.
    Space,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
}

impl Token<'_> {
    /// The keyword or symbol, whatever its case.
    #[must_use]
    pub fn is(&self, what: &str) -> bool {
        matches!(self.kind, Kind::Word | Kind::Symbol) && self.text.eq_ignore_ascii_case(what)
    }

    /// The name without its quotes, or the text of a string.
    #[must_use]
    pub fn unquoted(&self) -> String {
        let inner = |from: usize| self.text.get(from..self.text.len().saturating_sub(1)).unwrap_or("");
        match (self.kind, self.text.as_bytes().first()) {
            (Kind::QuotedName, Some(b'"')) => inner(1).replace("\"\"", "\""),
            (Kind::QuotedName, Some(b'`')) => inner(1).replace("``", "`"),
            (Kind::QuotedName, _) => inner(1).to_owned(),
            (Kind::Text, Some(b'\'')) => inner(1).replace("''", "'"),
            (Kind::Text, _) => {
                let tag = self.text[1..].find('$').map_or(0, |i| i + 2);
                self.text.get(tag..self.text.len().saturating_sub(tag)).unwrap_or("").to_owned()
            }
            _ => self.text.to_owned(),
        }
    }
}

/// All tokens of the text, white space included.
#[must_use]
pub fn lex(sql: &str) -> Lexer<'_> {
    Lexer { rest: sql }
}

/// The tokens that mean something.
pub fn words(sql: &str) -> impl Iterator<Item = Token<'_>> {
    lex(sql).filter(|t| t.kind != Kind::Space)
}

#[derive(Clone)]
pub struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let (kind, length) = measure(self.rest);
        // A length is found on bytes that are ASCII or on whole characters, so it is a boundary; the fallback keeps this total.
        let length = if self.rest.is_char_boundary(length) { length } else { self.rest.len() };
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(Token { kind, text })
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80
}

/// Kind and length (at least 1) of the first token of a text that is not empty.
fn measure(s: &str) -> (Kind, usize) {
    let b = s.as_bytes();
    let at = |i: usize| b.get(i).copied().unwrap_or(0);
    let run = |from: usize, f: fn(u8) -> bool| b[from..].iter().position(|&c| !f(c)).map_or(b.len(), |n| from + n);
    match b[0] {
        c if c.is_ascii_whitespace() || c == 0x0b => (Kind::Space, run(0, |c| c.is_ascii_whitespace() || c == 0x0b)),
        b'-' if at(1) == b'-' => (Kind::Space, s.find('\n').map_or(b.len(), |n| n + 1)),
        b'/' if at(1) == b'*' => (Kind::Space, s[2..].find("*/").map_or(b.len(), |n| n + 4)),
        b'\'' => (Kind::Text, quoted(b, b'\'')),
        b'x' | b'X' if at(1) == b'\'' => (Kind::Blob, 1 + quoted(&b[1..], b'\'')),
        c @ (b'"' | b'`') => (Kind::QuotedName, quoted(b, c)),
        b'[' => (Kind::QuotedName, s.find(']').map_or(b.len(), |n| n + 1)),
        b'$' => dollar(s),
        b'?' => (Kind::Parameter, run(1, |c| c.is_ascii_digit())),
        b':' | b'@' if is_word(at(1)) => (Kind::Parameter, run(1, is_word)),
        c if c.is_ascii_digit() || (c == b'.' && at(1).is_ascii_digit()) => (Kind::Number, number(b)),
        c if is_word(c) => (Kind::Word, run(0, is_word)),
        _ => {
            let long = ["->>", "||", "<=", ">=", "<>", "!=", "==", "->", "<<", ">>", "::"];
            (Kind::Symbol, long.iter().find(|l| s.starts_with(**l)).map_or(1, |l| l.len()))
        }
    }
}

/// Length of a quoted thing; a doubled quote stands for itself; without an end it goes to the end of the text.
fn quoted(b: &[u8], quote: u8) -> usize {
    let mut i = 1;
    while let Some(n) = b.get(i..).and_then(|r| r.iter().position(|&c| c == quote)) {
        i += n + 1;
        if b.get(i) != Some(&quote) {
            return i;
        }
        i += 1;
    }
    b.len()
}

fn number(b: &[u8]) -> usize {
    let mut i = 0;
    while let Some(&c) = b.get(i) {
        let exponent_sign = (c == b'+' || c == b'-') && i > 0 && matches!(b[i - 1], b'e' | b'E') && !b.starts_with(b"0x");
        if !(c.is_ascii_alphanumeric() || c == b'.' || c == b'_' || exponent_sign) {
            break;
        }
        i += 1;
    }
    i
}

/// `$1` and `$name` are parameters, `$tag$ ... $tag$` is a string.
fn dollar(s: &str) -> (Kind, usize) {
    let b = s.as_bytes();
    let name = b[1..].iter().position(|&c| !(c.is_ascii_alphanumeric() || c == b'_' || c >= 0x80)).unwrap_or(b.len() - 1);
    let tag_like = name == 0 || !b[1].is_ascii_digit();
    if tag_like && b.get(1 + name) == Some(&b'$') {
        let tag = &s[..name + 2];
        if let Some(end) = s[tag.len()..].find(tag) {
            return (Kind::Text, tag.len() * 2 + end);
        }
    }
    if name == 0 { (Kind::Symbol, 1) } else { (Kind::Parameter, 1 + name) }
}

/// One statement of a text, without its semicolon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    pub text: &'a str,
    pub has_parameter: bool,
}

/// The statements of a text, one by one; pieces without a word in them (stray semicolons, comments) are left out.
pub fn statements(sql: &str) -> impl Iterator<Item = Statement<'_>> {
    Pieces { rest: sql }.filter(|p| p.has_word).map(|p| Statement { text: p.statement, has_parameter: p.has_parameter })
}

/// What lies between two ends of statements; `piece` includes the semicolon.
#[derive(Debug)]
struct Piece<'a> {
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests check that no byte is lost"))]
    piece: &'a str,
    statement: &'a str,
    has_word: bool,
    has_parameter: bool,
}

struct Pieces<'a> {
    rest: &'a str,
}

/// How far into `CREATE TRIGGER ... BEGIN ...; END` a statement is, as `sqlite3_complete` tells it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trigger {
    /// Nothing seen yet (or only EXPLAIN).
    Start,
    /// After CREATE (TEMP).
    Create,
    /// An ordinary statement: the next semicolon ends it.
    Ordinary,
    /// In a trigger: only `; END ;` ends it.
    Body,
    BodySemicolon,
    BodyEnd,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let whole = self.rest;
        let (mut length, mut has_word, mut has_parameter) = (0, false, false);
        let mut depth = 0_usize;
        let mut trigger = Trigger::Start;
        for token in lex(whole) {
            length += token.text.len();
            if token.kind == Kind::Space {
                continue;
            }
            if token.is(";") {
                let ends = match trigger {
                    Trigger::Body | Trigger::BodySemicolon => false,
                    Trigger::BodyEnd => true,
                    _ => depth == 0,
                };
                if ends {
                    let (piece, rest) = whole.split_at(length);
                    self.rest = rest;
                    return Some(Piece { piece, statement: piece[..length - 1].trim(), has_word, has_parameter });
                }
                if trigger == Trigger::Body {
                    trigger = Trigger::BodySemicolon;
                }
                continue;
            }
            has_word = true;
            has_parameter |= token.kind == Kind::Parameter && !token.text.starts_with(':');
            match token.text {
                "(" => depth += 1,
                ")" => depth = depth.saturating_sub(1),
                _ => {}
            }
            trigger = match trigger {
                Trigger::Start if token.is("EXPLAIN") => Trigger::Start,
                Trigger::Start if token.is("CREATE") => Trigger::Create,
                Trigger::Create if token.is("TEMP") || token.is("TEMPORARY") => Trigger::Create,
                Trigger::Create if token.is("TRIGGER") => Trigger::Body,
                Trigger::Start | Trigger::Create | Trigger::Ordinary => Trigger::Ordinary,
                Trigger::BodySemicolon if token.is("END") => Trigger::BodyEnd,
                Trigger::Body | Trigger::BodySemicolon | Trigger::BodyEnd => Trigger::Body,
            };
        }
        self.rest = "";
        Some(Piece { piece: whole, statement: whole.trim(), has_word, has_parameter })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(sql: &str) -> Vec<&str> {
        statements(sql).map(|s| s.text).collect()
    }

    #[test]
    fn statements_end_at_their_semicolons_only() {
        assert_eq!(split("select 1; select 2"), ["select 1", "select 2"]);
        assert_eq!(split(" ;; ; -- nothing\n /* ; */ ;"), Vec::<&str>::new());
        assert_eq!(split("select ';' ; select \"a;b\", `c;d`, [e;f]"), ["select ';'", "select \"a;b\", `c;d`, [e;f]"]);
        assert_eq!(split("select 'it''s; fine'; x"), ["select 'it''s; fine'", "x"]);
        assert_eq!(split("select 1 -- one; two\n, 2; select /* ; */ 3"), ["select 1 -- one; two\n, 2", "select /* ; */ 3"]);
        assert_eq!(split("select $a$x;y$a$; select $$;$$; z"), ["select $a$x;y$a$", "select $$;$$", "z"]);
        assert_eq!(split("select 'never ends; "), ["select 'never ends;"]);
        assert_eq!(split("select (1; 2)"), ["select (1; 2)"]);
    }

    #[test]
    fn a_trigger_is_one_statement() {
        let trigger = "create temp trigger t after insert on a begin update b set x = case when 1 then 2 end; delete from c; end";
        let text = format!("{trigger}; select 1;");
        assert_eq!(split(&text), [trigger, "select 1"]);
        assert_eq!(split("create table t(a); insert into t values (1)").len(), 2);
    }

    #[test]
    fn parameters_are_seen() {
        let seen: Vec<bool> = statements("select $1; select '$1'; select ?; select 1").map(|s| s.has_parameter).collect();
        assert_eq!(seen, [true, false, true, false]);
    }

    #[test]
    fn names_and_strings_lose_their_quotes() {
        let texts: Vec<String> = words("\"a\"\"b\" [c d] 'it''s' $q$x$q$ y").map(|t| t.unquoted()).collect();
        assert_eq!(texts, ["a\"b", "c d", "it's", "x", "y"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_panics(sql in "[-a-c;'\"`\\[\\]()$?:@1.e/*x \né\u{1F600}|<>=]{0,60}") {
            let tokens: String = lex(&sql).map(|t| t.text).collect();
            prop_assert_eq!(&tokens, &sql);
            let pieces: String = Pieces { rest: &sql }.map(|p| p.piece).collect();
            prop_assert_eq!(&pieces, &sql);
            for token in lex(&sql) {
                let _ = token.unquoted();
            }
        }

        #[test]
        fn any_text_at_all(sql in any::<String>()) {
            let pieces: String = Pieces { rest: &sql }.map(|p| p.piece).collect();
            prop_assert_eq!(&pieces, &sql);
        }

        #[test]
        fn statements_come_back_as_they_went_in(parts in prop::collection::vec("select '[a-z;]{0,5}'", 1..6)) {
            let joined = parts.join(";\n");
            let back: Vec<&str> = split(&joined);
            prop_assert_eq!(back, parts);
        }
    }
}
