//! The direction of the code, read from the code: which module may name which, what the cores must not touch, and where
//! `unsafe` may stand. ARCHITECTURE.md draws the same arrows for people; here a wrong one fails with its place and the reason.
//!
//! Reads paths that begin with `crate::` (grouped `use crate::{a, b}` too) outside comments and outside tests. A relative path
//! cannot leave its module without passing `super` at the top, and that is caught as well.

use std::fs;
use std::path::{Path, PathBuf};

/// What each module may name. An entry with `::` allows that part of the module and no other.
const ARROWS: &[(&str, &[&str])] = &[
    // The nouns know nobody.
    ("base", &[]),
    ("log", &["base"]),
    // These three never know one another; they meet in `node`.
    ("volume", &["base", "log"]),
    ("ship", &["base", "log"]),
    ("control", &["base", "log"]),
    ("node", &["base", "log", "volume", "ship", "control"]),
    // A head sees no copy, no quorum and no other region. The clock is an edge's, and a head is one.
    ("head", &["base", "log", "io::clock"]),
    // `io` drives a node for real and never knows who asked for it.
    ("io", &["base", "log", "volume", "ship::wire", "control", "node", "head"]),
    ("endpoint", &["base", "head", "node::report", "io::clock"]),
    ("ops", &["base", "log", "volume", "ship", "control", "node", "head", "io", "endpoint", "sim"]),
    // `sim` drives the same node under virtual time and never meets the world.
    ("sim", &["base", "log", "volume", "ship", "control", "node"]),
];

const CORES: &[&str] = &["base", "log", "volume", "ship", "control", "node"];

/// What a core must not touch, and what it does instead.
const BANNED_IN_CORES: &[(&str, &str)] = &[
    ("Instant::now", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("std::time::Instant", "base::Instant is the cores' time"),
    ("std::fs", "effects ask for what is to be written; files belong to io"),
    ("std::net", "messages are effects; sockets belong to io"),
    ("std::thread", "a core is a plain machine; whoever drives it has the threads"),
    ("std::process", "a core never ends the process"),
    ("tokio", "a core is a plain machine; whoever drives it has the runtime"),
    ("quinn", "messages are effects; sockets belong to io"),
    ("HashMap", "randomly hashed: a replay would differ. Use BTreeMap"),
    ("HashSet", "randomly hashed: a replay would differ. Use BTreeSet"),
    ("println!", "a core says what happened in effects"),
    ("tracing::", "a core says what happened in effects"),
];

/// The simulator's own exception: whole seeds are spread over threads, nothing inside one is.
const SIM_THREADS: &str = "src/sim/runs.rs";

/// SQLite's interface for file systems and for virtual tables is C.
const UNSAFE: &[&str] = &["src/head/embedded/vfs.rs", "src/head/embedded/tables.rs"];

struct Source {
    path: String,
    /// The top module: `volume` for src/volume/copy/mod.rs.
    module: String,
    /// Without comments, string contents and tests; the lines keep their numbers.
    code: String,
    is_test: bool,
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the source directory can be listed") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    files_below(&root.join("src"), &mut files);
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let path = file.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            let mut parts = path.split('/').skip(1);
            let first = parts.next().expect("a file below src");
            // src/ops/status.rs and src/ops.rs alike are `ops`; lib.rs and main.rs are the roots and may name everything.
            let module = first.trim_end_matches(".rs").to_owned();
            let is_test = path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs");
            let code = without_tests(&without_comments(&fs::read_to_string(&file).expect("a source file is text")));
            Source { path, module, code, is_test }
        })
        .collect()
}

/// Blanks out comments and what is inside string and character literals. Lines stay where they are.
fn without_comments(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    let blank = |out: &mut Vec<u8>, b: u8| out.push(if b == b'\n' { b'\n' } else { b' ' });
    while i < bytes.len() {
        let rest = &bytes[i..];
        let word_before = i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_');
        let end = if rest.starts_with(b"//") {
            i + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            i + 2 + find(&rest[2..], b"*/").map_or(rest.len() - 2, |n| n + 2)
        } else if let Some(hashes) = raw_string(rest).filter(|_| !word_before || bytes[i - 1] == b'b') {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let open = 2 + hashes;
            i + open + find(&rest[open..], &close).map_or(rest.len() - open, |n| n + close.len())
        } else if rest[0] == b'"' {
            i + 1 + quoted(&rest[1..])
        } else if let Some(length) = character(rest) {
            i + length
        } else {
            out.push(rest[0]);
            i += 1;
            continue;
        };
        for b in &bytes[i..end] {
            blank(&mut out, *b);
        }
        i = end;
    }
    String::from_utf8(out).expect("what is blanked out is whole characters")
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest.strip_prefix(b"r")?.iter().take_while(|b| **b == b'#').count();
    (rest.get(1 + hashes) == Some(&b'"')).then_some(hashes)
}

fn quoted(rest: &[u8]) -> usize {
    let mut i = 0;
    while i < rest.len() && rest[i] != b'"' {
        i += if rest[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

/// `'x'`, `'\n'`, `'\u{1F}'`, and not the lifetime `'a`.
fn character(rest: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(rest.strip_prefix(b"'")?.get(..12.min(rest.len() - 1))?).ok();
    let inner = rest.strip_prefix(b"'")?;
    if inner.first() == Some(&b'\\') {
        return inner[1..].iter().skip(1).position(|b| *b == b'\'').map(|n| n + 4);
    }
    let width = text.and_then(|t| t.chars().next()).map_or_else(|| utf8_width(inner[0]), char::len_utf8);
    (inner.get(width) == Some(&b'\'')).then_some(width + 2)
}

fn utf8_width(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// Blanks out what belongs to a `#[cfg(test)]`: the item up to its closing brace, or its semicolon.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let bytes = out.as_bytes();
        let mut depth = 0;
        let mut end = bytes.len();
        for (i, b) in bytes.iter().enumerate().skip(start) {
            match b {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        end = i + 1;
                        break;
                    }
                }
                b';' if depth == 0 => {
                    end = i + 1;
                    break;
                }
                _ => {}
            }
        }
        let blank: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blank);
    }
    out
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Every path behind `crate::` as (offset, "io::clock"): groups are taken apart, two steps deep.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if at > 0 && code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let mut expanded = Vec::new();
        expand(&code[at + "crate::".len()..], "", &mut expanded);
        found.extend(expanded.into_iter().map(|path| (at, path)));
    }
    found
}

/// Reads one use tree (`a::b`, `a::{b, c::d}`) at the beginning of `text`; returns what is left of it.
fn expand<'a>(text: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            rest = expand(rest, prefix, found).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
            if rest.is_empty() {
                return rest;
            }
        }
    }
    let length = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(text.len());
    if length == 0 {
        // Neither a name nor a group: not a path (never in code that compiles), but never a loop either.
        return text.get(1..).unwrap_or("");
    }
    let path = if prefix.is_empty() { text[..length].to_owned() } else { format!("{prefix}::{}", &text[..length]) };
    let rest = &text[length..];
    match rest.strip_prefix("::") {
        Some(more) if !more.starts_with('<') => expand(more, &path, found),
        _ => {
            let rest = rest.trim_start();
            let rest =
                rest.strip_prefix("as ").map_or(rest, |r| r.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'));
            found.push(path);
            rest
        }
    }
}

fn allowed(module: &str, path: &str) -> bool {
    let top = path.split("::").next().expect("a path has a first step");
    if top == module {
        return true;
    }
    let arrows = ARROWS.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, arrows)| arrows);
    arrows.iter().any(|arrow| path == *arrow || path.strip_prefix(arrow).is_some_and(|more| more.starts_with("::")))
}

#[test]
fn every_arrow_points_the_right_way() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test && s.module != "lib" && s.module != "main") {
        assert!(
            ARROWS.iter().any(|(name, _)| *name == source.module),
            "{}: say in ARROWS what module '{}' may name",
            source.path,
            source.module
        );
        for (at, path) in paths(&source.code) {
            if !allowed(&source.module, &path) {
                let top = path.split("::").next().unwrap_or_default();
                wrong.push(format!("{}:{}: {} -> {top} (crate::{path})", source.path, line_of(&source.code, at), source.module));
            }
        }
        // `super` at a module's root would reach a sibling without naming the crate.
        let depth = source.path.matches('/').count() - usize::from(source.path.ends_with("/mod.rs"));
        let climb = "super::".repeat(depth);
        if depth > 0 && source.code.contains(&climb) {
            wrong.push(format!("{}: {climb} leaves module '{}' without saying crate::", source.path, source.module));
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that are not allowed (ARCHITECTURE.md has the map, ARROWS in this test the rules):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn cores_have_no_clock_no_file_no_socket_no_thread() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test && (CORES.contains(&s.module.as_str()) || s.module == "sim")) {
        for (banned, instead) in BANNED_IN_CORES {
            if source.path == SIM_THREADS && *banned == "std::thread" {
                continue;
            }
            for (at, _) in source.code.match_indices(banned) {
                wrong.push(format!("{}:{}: {banned}: {instead}", source.path, line_of(&source.code, at)));
            }
        }
    }
    assert!(wrong.is_empty(), "what cores must not touch:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_where_sqlite_is_called() {
    let mut wrong = Vec::new();
    for source in sources() {
        let is_word = |at: usize| !source.code[at + "unsafe".len()..].starts_with('_');
        for (at, _) in source.code.match_indices("unsafe").filter(|(at, _)| is_word(*at)) {
            if !UNSAFE.contains(&source.path.as_str()) {
                wrong.push(format!("{}:{}", source.path, line_of(&source.code, at)));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside {UNSAFE:?}:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|s| !s.is_test)
        .filter(|s| !fs::read_to_string(root.join(&s.path)).expect("a source file is text").starts_with("//!"))
        .map(|s| s.path)
        .collect();
    assert!(silent.is_empty(), "these files do not begin with what they decide and who drives them: {silent:?}");
}

/// The bans of clippy.toml are of use only if each says what to use instead.
#[test]
fn every_ban_names_its_replacement() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("clippy.toml")).expect("clippy.toml is there");
    let table: toml::Table = text.parse().expect("clippy.toml is TOML");
    for list in ["disallowed-methods", "disallowed-types"] {
        let bans = table[list].as_array().expect("a list of bans");
        assert!(!bans.is_empty(), "{list} is empty");
        for ban in bans {
            let reason = ban.get("reason").and_then(toml::Value::as_str).unwrap_or_default();
            assert!(reason.to_lowercase().contains("use ") || reason.contains("argument"), "{ban}: say what to use instead");
        }
    }
    for path in ["std::time::Instant::now", "std::time::SystemTime::now", "tokio::time::Instant::now", "std::collections::HashMap"] {
        assert!(text.contains(path), "clippy.toml no longer bans {path}");
    }
}

#[test]
fn the_reader_of_code_reads_right() {
    let code = without_tests(&without_comments(
        "use crate::io::{clock, link::{self, Link}}; // crate::a\nlet c = '\"'; let s = \"crate::b \\\" \"; let l: &'static str = r#\"crate::c\"#;\n\
         #[cfg(test)]\nmod tests { use crate::d; }\nfn f() { crate::head::sql::f(crate::base::Lsn(1)) }",
    ));
    let got: Vec<String> = paths(&code).into_iter().map(|(_, p)| p).collect();
    assert_eq!(got, ["io::clock", "io::link::self", "io::link::Link", "head::sql::f", "base::Lsn"]);
    assert!(allowed("head", "io::clock::now") && !allowed("head", "io::clocks") && !allowed("head", "io"));
    assert!(!allowed("volume", "ship::Sender") && !allowed("io", "sim::disk") && allowed("volume", "volume::Copy"));
}
