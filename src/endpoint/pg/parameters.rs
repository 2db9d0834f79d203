//! A session's parameters (SET, SHOW, RESET and the startup packet).
//!
//! Decides which parameters exist and which values are honest here: a setting that would change what the client sees and that
//! we cannot follow is refused (0A000), an unknown name is 42704. SET is not undone by ROLLBACK (PostgreSQL undoes it); SET LOCAL
//! ends with its transaction. Driven by the login and the session.

use super::types::bool_text;
use crate::head::sql::{SqlError, state};
use std::collections::BTreeMap;

/// How long a SET holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Session,
    Transaction,
}

/// What values a parameter takes.
enum Rule {
    /// Cannot be set.
    Fixed,
    /// Any text; has no effect beyond being shown.
    Any,
    Bool,
    /// Milliseconds, or with a unit.
    Duration,
    Encoding,
    DateStyle,
    SearchPath,
    /// Only these (whatever the case); others exist in PostgreSQL but not here.
    Only(&'static [&'static str]),
}

struct Known {
    name: &'static str,
    default: &'static str,
    /// The client is told of changes (ParameterStatus).
    reported: bool,
    rule: Rule,
}

/// What a client may make the session remember.
const VALUE_BYTES_MAX: usize = 1024;
const NAMES_MAX: usize = 256;

const fn known(name: &'static str, default: &'static str, reported: bool, rule: Rule) -> Known {
    Known { name, default, reported, rule }
}

const SERVER_VERSION: &str = concat!("15.0 (Parhelion ", env!("CARGO_PKG_VERSION"), ")");
const ISOLATION: &[&str] = &["serializable", "repeatable read", "read committed", "read uncommitted"];

const KNOWN: &[Known] = &[
    known("application_name", "", true, Rule::Any),
    known("bytea_output", "hex", false, Rule::Only(&["hex"])),
    known("client_encoding", "UTF8", true, Rule::Encoding),
    known("client_min_messages", "notice", false, Rule::Any),
    known("DateStyle", "ISO, MDY", true, Rule::DateStyle),
    known("default_transaction_isolation", "serializable", false, Rule::Only(ISOLATION)),
    known("default_transaction_read_only", "off", true, Rule::Bool),
    known("extra_float_digits", "1", false, Rule::Any),
    known("idle_in_transaction_session_timeout", "0", false, Rule::Duration),
    known("in_hot_standby", "off", true, Rule::Fixed),
    known("integer_datetimes", "on", true, Rule::Fixed),
    known("IntervalStyle", "postgres", true, Rule::Any),
    known("is_superuser", "off", true, Rule::Fixed),
    known("lock_timeout", "0", false, Rule::Duration),
    known("max_identifier_length", "63", false, Rule::Fixed),
    known("row_security", "on", false, Rule::Any),
    known("search_path", "\"$user\", public", false, Rule::SearchPath),
    known("server_encoding", "UTF8", true, Rule::Fixed),
    known("server_version", SERVER_VERSION, true, Rule::Fixed),
    known("server_version_num", "150000", false, Rule::Fixed),
    known("session_authorization", "", true, Rule::Fixed),
    known("standard_conforming_strings", "on", true, Rule::Only(&["on", "true", "1"])),
    known("statement_timeout", "0", false, Rule::Duration),
    known("synchronize_seqscans", "on", false, Rule::Any),
    known("TimeZone", "UTC", true, Rule::Any),
    known("transaction_isolation", "serializable", false, Rule::Only(ISOLATION)),
    known("transaction_read_only", "off", false, Rule::Bool),
    known("xmloption", "content", false, Rule::Any),
];

fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.name.eq_ignore_ascii_case(name))
}

/// A change that the client must be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub name: String,
    pub value: String,
}

#[derive(Default)]
pub struct Parameters {
    /// By name as shown; only what differs from the defaults of [`KNOWN`].
    values: BTreeMap<String, String>,
    /// What RESET goes back to: the startup packet's and the instance's.
    defaults: BTreeMap<String, String>,
    /// What SET LOCAL has hidden, oldest last.
    hidden: Vec<(String, Option<String>)>,
}

impl Parameters {
    /// `given` holds what the instance says of itself and who has logged in; it is taken as it is.
    #[must_use]
    pub fn new(given: impl IntoIterator<Item = (String, String)>) -> Parameters {
        let defaults: BTreeMap<String, String> = given.into_iter().collect();
        Parameters { values: defaults.clone(), defaults, hidden: Vec::new() }
    }

    /// What a client is told when it logs in.
    #[must_use]
    pub fn reported(&self) -> Vec<Report> {
        KNOWN.iter().filter(|k| k.reported).map(|k| Report { name: k.name.to_owned(), value: self.value_of(k) }).collect()
    }

    /// All, as SHOW ALL lists them.
    #[must_use]
    pub fn all(&self) -> Vec<(String, String)> {
        KNOWN.iter().map(|k| (k.name.to_owned(), self.value_of(k))).collect()
    }

    fn value_of(&self, k: &Known) -> String {
        self.values.get(k.name).cloned().unwrap_or_else(|| k.default.to_owned())
    }

    /// The parameter's name as it is written, and its value.
    ///
    /// # Errors
    /// 42704 when there is none of that name.
    pub fn get(&self, name: &str) -> Result<(String, String), SqlError> {
        match find(name) {
            Some(k) => Ok((k.name.to_owned(), self.value_of(k))),
            None => self.values.get_key_value(name).map(|(k, v)| (k.clone(), v.clone())).ok_or_else(|| unknown(name)),
        }
    }

    /// Sets a parameter from the startup packet; RESET goes back to it.
    ///
    /// # Errors
    /// As [`Parameters::set`].
    pub fn start_with(&mut self, name: &str, value: &str) -> Result<(), SqlError> {
        self.set(Scope::Session, name, Some(value))?;
        let name = find(name).map_or(name, |k| k.name);
        if let Some(v) = self.values.get(name) {
            self.defaults.insert(name.to_owned(), v.clone());
        }
        Ok(())
    }

    /// Sets a parameter, or resets it (`None`).
    ///
    /// # Errors
    /// 42704 unknown name, 55P02 cannot be changed, 22023 not a value, 0A000 a value that is not supported.
    pub fn set(&mut self, scope: Scope, name: &str, value: Option<&str>) -> Result<Option<Report>, SqlError> {
        let known = find(name);
        let key = match known {
            Some(k) => k.name.to_owned(),
            // PostgreSQL lets any name with a dot be set: it belongs to an extension or the application.
            None if name.contains('.') => name.to_owned(),
            None => return Err(unknown(name)),
        };
        let new = match (value, known) {
            (_, Some(Known { rule: Rule::Fixed, name, .. })) => {
                return Err(SqlError::new("55P02", format!("parameter \"{name}\" cannot be changed")));
            }
            (Some(v), Some(k)) => Some(accept(k, v)?),
            (Some(v), None) if v.len() <= VALUE_BYTES_MAX && self.values.len() < NAMES_MAX && name.len() <= 128 => Some(v.to_owned()),
            (Some(_), None) => {
                return Err(SqlError::new(state::PROGRAM_LIMIT_EXCEEDED, "too many or too long parameters of the session's own"));
            }
            (None, _) => self.defaults.get(&key).cloned(),
        };
        let old = match new {
            Some(v) => self.values.insert(key.clone(), v),
            None => self.values.remove(&key),
        };
        if scope == Scope::Transaction {
            self.hidden.push((key.clone(), old));
        }
        Ok(known.filter(|k| k.reported).map(|k| Report { name: key, value: self.value_of(k) }))
    }

    /// RESET ALL.
    pub fn reset(&mut self) -> Vec<Report> {
        let before = self.reported();
        self.values = self.defaults.clone();
        self.hidden.clear();
        self.changes(&before)
    }

    /// Ends what SET LOCAL set.
    pub fn end_transaction(&mut self) -> Vec<Report> {
        if self.hidden.is_empty() {
            return Vec::new();
        }
        let before = self.reported();
        while let Some((key, old)) = self.hidden.pop() {
            match old {
                Some(v) => self.values.insert(key, v),
                None => self.values.remove(&key),
            };
        }
        self.changes(&before)
    }

    fn changes(&self, before: &[Report]) -> Vec<Report> {
        self.reported().into_iter().filter(|r| !before.contains(r)).collect()
    }

    fn duration_ms(&self, name: &str) -> Option<std::time::Duration> {
        let ms = self.values.get(name)?.parse::<u64>().ok().filter(|ms| *ms > 0)?;
        Some(std::time::Duration::from_millis(ms))
    }

    #[must_use]
    pub fn statement_timeout(&self) -> Option<std::time::Duration> {
        self.duration_ms("statement_timeout")
    }

    #[must_use]
    pub fn idle_in_transaction_timeout(&self) -> Option<std::time::Duration> {
        self.duration_ms("idle_in_transaction_session_timeout")
    }

    /// Whether new transactions are read-only.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.values.get("default_transaction_read_only").is_some_and(|v| v == "on")
    }
}

fn unknown(name: &str) -> SqlError {
    SqlError::new("42704", format!("unrecognized configuration parameter \"{name}\""))
}

/// The value as it is kept.
fn accept(k: &Known, value: &str) -> Result<String, SqlError> {
    let invalid = || SqlError::new("22023", format!("invalid value for parameter \"{}\": \"{value}\"", k.name));
    let unsupported = || SqlError::new(state::FEATURE_NOT_SUPPORTED, format!("\"{value}\" is not supported for parameter \"{}\"", k.name));
    match k.rule {
        Rule::Fixed => Err(invalid()),
        // A name or a zone is short; anything longer would only be memory held for a client.
        Rule::Any => {
            if value.len() > VALUE_BYTES_MAX {
                Err(invalid())
            } else {
                Ok(value.to_owned())
            }
        }
        Rule::Bool => bool_text(value).map(|b| if b { "on" } else { "off" }.to_owned()).ok_or_else(invalid),
        Rule::Duration => duration_ms(value).map(|ms| ms.to_string()).ok_or_else(invalid),
        Rule::Encoding => {
            let plain: String = value.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_uppercase();
            match plain.as_str() {
                "UTF8" | "UNICODE" => Ok("UTF8".into()),
                // Bytes as they are, which is UTF-8.
                "SQLASCII" => Ok("SQL_ASCII".into()),
                _ => Err(unsupported().hint("Text is UTF-8 here: SET client_encoding TO UTF8, or set PGCLIENTENCODING=UTF8.")),
            }
        }
        Rule::DateStyle => {
            let mut order = "MDY";
            for word in value.split(',').map(|w| w.trim().to_ascii_uppercase()) {
                match word.as_str() {
                    "ISO" => {}
                    "MDY" | "US" | "NONEURO" | "NONEUROPEAN" => order = "MDY",
                    "DMY" | "EURO" | "EUROPEAN" => order = "DMY",
                    "YMD" => order = "YMD",
                    "SQL" | "POSTGRES" | "GERMAN" => return Err(unsupported()),
                    _ => return Err(invalid()),
                }
            }
            Ok(format!("ISO, {order}"))
        }
        Rule::SearchPath => {
            let harmless = ["", "$user", "public", "main", "pg_catalog"];
            let all = value.split(',').all(|s| harmless.contains(&s.trim().trim_matches('"').to_ascii_lowercase().as_str()));
            if all {
                Ok(value.to_owned())
            } else {
                Err(unsupported().hint("There is one schema; search_path may name \"$user\" and public."))
            }
        }
        Rule::Only(values) => {
            if values.iter().any(|v| v.eq_ignore_ascii_case(value)) {
                Ok(values[0].to_owned())
            } else {
                Err(unsupported())
            }
        }
    }
}

fn duration_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit).filter(|ms| *ms <= u64::from(i32::MAX.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        Parameters::new([("in_hot_standby".to_owned(), "on".to_owned())])
    }

    #[test]
    fn known_values_are_kept_and_reported() {
        let mut p = parameters();
        assert_eq!(p.get("IN_HOT_STANDBY").unwrap().1, "on");
        let report = p.set(Scope::Session, "datestyle", Some("iso, dmy")).unwrap().unwrap();
        assert_eq!((report.name.as_str(), report.value.as_str()), ("DateStyle", "ISO, DMY"));
        p.set(Scope::Session, "statement_timeout", Some("2s")).unwrap();
        assert_eq!(p.statement_timeout(), Some(std::time::Duration::from_secs(2)));
        p.set(Scope::Session, "my.var", Some("x")).unwrap();
        assert_eq!(p.get("my.var").unwrap().1, "x");
        assert_eq!(p.reset().len(), 1);
        assert_eq!(p.statement_timeout(), None);
        assert!(p.reported().iter().any(|r| r.name == "server_version" && r.value.starts_with("15.0 (Parhelion ")));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let mut p = parameters();
        for (name, value, code) in [
            ("nonsense", "1", "42704"),
            ("server_version", "16", "55P02"),
            ("client_encoding", "LATIN1", "0A000"),
            ("DateStyle", "German", "0A000"),
            ("DateStyle", "xyz", "22023"),
            ("standard_conforming_strings", "off", "0A000"),
            ("search_path", "tenant_7", "0A000"),
            ("statement_timeout", "-1", "22023"),
            ("default_transaction_read_only", "perhaps", "22023"),
        ] {
            assert_eq!(p.set(Scope::Session, name, Some(value)).unwrap_err().code, code, "{name}");
        }
    }

    #[test]
    fn set_local_ends_with_its_transaction() {
        let mut p = parameters();
        p.set(Scope::Session, "application_name", Some("a")).unwrap();
        p.set(Scope::Transaction, "application_name", Some("b")).unwrap();
        p.set(Scope::Transaction, "application_name", Some("c")).unwrap();
        assert_eq!(p.get("application_name").unwrap().1, "c");
        assert_eq!(p.end_transaction(), [Report { name: "application_name".into(), value: "a".into() }]);
        p.start_with("application_name", "s").unwrap();
        p.set(Scope::Session, "application_name", Some("t")).unwrap();
        p.set(Scope::Session, "application_name", None).unwrap();
        assert_eq!(p.get("application_name").unwrap().1, "s");
    }
}
