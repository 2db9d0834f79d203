//! Guesses the types that SQLite does not tell: of parameters (`WHERE id = $1`, `VALUES ($1, $2)`) and of expressions in a
//! result (`count(*)`, `sum(balance)`).
//!
//! Drivers ask for them before a statement runs (Describe of a statement) and send and read binary values accordingly. This
//! reads the words of the statement, not its grammar: it knows the common shapes and says nothing (`None`) about the rest,
//! which is then `text`. A wrong guess cannot corrupt anything: a value that does not fit is an error ([`super::types`]).
//! Pure; the session asks the engine for the columns of the [`Plan::tables`].

use super::split::{Kind, Token, words};
use super::types::PgType;
use std::collections::BTreeMap;

/// Longer statements (bulk inserts) are not looked at.
const TOKENS_MAX: usize = 5000;
/// Deeper parentheses are not looked at: the reading of expressions recurses.
const NESTING_MAX: usize = 50;
const TABLES_MAX: usize = 8;

/// What is known of a parameter or an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    Type(PgType),
    Column {
        qualifier: Option<String>,
        name: String,
    },
    /// The nth column of the table that is inserted into.
    InsertColumn {
        table: String,
        n: usize,
    },
    /// Arithmetic over these.
    Arithmetic(Vec<Hint>),
    Nothing,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// (name or alias, table), both in lower case.
    pub tables: Vec<(String, String)>,
    /// By number, from 1.
    pub parameters: BTreeMap<usize, Hint>,
    /// One per expression of the result list; empty where it has a `*`.
    pub columns: Vec<Hint>,
}

/// The columns of the tables that a plan names: table to (column, type), in lower case.
pub type Schema = BTreeMap<String, Vec<(String, PgType)>>;

impl Plan {
    #[must_use]
    pub fn of(sql: &str) -> Plan {
        let tokens: Vec<Token> = words(sql).take(TOKENS_MAX + 1).collect();
        if tokens.len() > TOKENS_MAX || nesting(&tokens) > NESTING_MAX {
            return Plan::default();
        }
        let tables = tables(&tokens);
        Plan { parameters: parameters(&tokens), columns: columns(&tokens), tables }
    }

    #[must_use]
    pub fn resolve(&self, hint: &Hint, schema: &Schema) -> Option<PgType> {
        match hint {
            Hint::Type(t) => Some(*t),
            Hint::Nothing => None,
            Hint::InsertColumn { table, n } => schema.get(table)?.get(*n).map(|c| c.1),
            Hint::Column { qualifier, name } => {
                let name = name.to_ascii_lowercase();
                self.tables
                    .iter()
                    .filter(|(alias, _)| qualifier.as_ref().is_none_or(|q| q.eq_ignore_ascii_case(alias)))
                    .find_map(|(_, table)| schema.get(table)?.iter().find(|c| c.0 == name).map(|c| c.1))
            }
            Hint::Arithmetic(parts) => {
                let types: Vec<PgType> = parts.iter().map(|p| self.resolve(p, schema)).collect::<Option<_>>()?;
                let any = |t: &[PgType]| types.iter().any(|x| t.contains(x));
                if any(&[PgType::Float4, PgType::Float8]) {
                    Some(PgType::Float8)
                } else if any(&[PgType::Numeric]) {
                    Some(PgType::Numeric)
                } else if types.iter().all(|t| matches!(t, PgType::Int2 | PgType::Int4 | PgType::Int8 | PgType::Bool | PgType::Oid)) {
                    Some(PgType::Int8)
                } else {
                    None
                }
            }
        }
    }
}

fn nesting(tokens: &[Token]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for t in tokens {
        if t.is("(") {
            depth += 1;
            deepest = deepest.max(depth);
        } else if t.is(")") {
            depth = depth.saturating_sub(1);
        }
    }
    deepest
}

fn is_name(t: &Token) -> bool {
    t.kind == Kind::QuotedName || (t.kind == Kind::Word && !KEYWORDS.iter().any(|k| t.is(k)))
}

const KEYWORDS: &[&str] = &[
    "ALL",
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "COLLATE",
    "CROSS",
    "DELETE",
    "DESC",
    "DISTINCT",
    "ELSE",
    "END",
    "ESCAPE",
    "EXCEPT",
    "EXISTS",
    "FILTER",
    "FROM",
    "FULL",
    "GLOB",
    "GROUP",
    "HAVING",
    "IN",
    "INDEXED",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTO",
    "IS",
    "ISNULL",
    "JOIN",
    "LEFT",
    "LIKE",
    "LIMIT",
    "MATCH",
    "NATURAL",
    "NOT",
    "NOTNULL",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "REGEXP",
    "RETURNING",
    "RIGHT",
    "SELECT",
    "SET",
    "THEN",
    "UNION",
    "UPDATE",
    "USING",
    "VALUES",
    "WHEN",
    "WHERE",
    "WINDOW",
    "WITH",
];

const COMPARISONS: &[&str] = &["=", "==", "<", ">", "<=", ">=", "<>", "!=", "IS"];
const ARITHMETIC: &[&str] = &["+", "-", "*", "/", "%"];

fn any_of(t: Option<&Token>, set: &[&str]) -> bool {
    t.is_some_and(|t| set.iter().any(|s| t.is(s)))
}

/// Tables after FROM, JOIN, INTO and UPDATE, with their aliases; not the names that WITH gives.
fn tables(tokens: &[Token]) -> Vec<(String, String)> {
    let lower = |t: &Token| t.unquoted().to_ascii_lowercase();
    let mut common: Vec<String> = Vec::new();
    if any_of(tokens.first(), &["WITH"]) {
        for (i, t) in tokens.iter().enumerate() {
            let after_list = tokens.get(i + 1).is_some_and(|n| n.is("(")) && any_of(tokens.get(closing(tokens, i + 1) + 1), &["AS"]);
            if is_name(t) && (any_of(tokens.get(i + 1), &["AS"]) || after_list) {
                common.push(lower(t));
            }
        }
    }
    let mut found: Vec<(String, String)> = Vec::new();
    let mut in_from = false;
    for i in 0..tokens.len() {
        let t = &tokens[i];
        let starts = any_of(Some(t), &["FROM", "JOIN", "INTO", "UPDATE"]);
        in_from = match () {
            () if starts => true,
            () if any_of(
                Some(t),
                &["WHERE", "ON", "GROUP", "ORDER", "SET", "VALUES", "SELECT", "LIMIT", "RETURNING", "UNION", "USING", "(", ")"],
            ) =>
            {
                false
            }
            () => in_from,
        };
        if !(starts || (in_from && t.is(","))) {
            continue;
        }
        let mut at = i + 1;
        if t.is("UPDATE") && any_of(tokens.get(at), &["OR"]) {
            at += 2;
        }
        if tokens.get(at + 1).is_some_and(|n| n.is(".")) {
            at += 2;
        }
        let Some(table) = tokens.get(at).filter(|t| is_name(t)).map(lower) else { continue };
        let inserts = t.is("INTO");
        if common.contains(&table) || (!inserts && tokens.get(at + 1).is_some_and(|n| n.is("("))) {
            continue;
        }
        at += 1 + usize::from(any_of(tokens.get(at + 1), &["AS"]));
        let alias = tokens.get(at).filter(|t| is_name(t)).map_or_else(|| table.clone(), lower);
        if found.len() < TABLES_MAX && !found.contains(&(alias.clone(), table.clone())) {
            found.push((alias, table));
        }
    }
    found
}

/// Index of the parenthesis that closes the one at `open` (or the end).
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, t) in tokens.iter().enumerate().skip(open) {
        if t.is("(") {
            depth += 1;
        } else if t.is(")") {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return i;
            }
        }
    }
    tokens.len()
}

/// Index of the parenthesis that opens the one that closes at `close`.
fn opening(tokens: &[Token], close: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for i in (0..=close).rev() {
        if tokens[i].is(")") {
            depth += 1;
        } else if tokens[i].is("(") {
            depth -= 1;
            if depth == 0 {
                return Some(i);
            }
        }
    }
    None
}

/// The operand that ends before index `end`: a column, a literal or a function call.
fn operand_before(tokens: &[Token], end: usize) -> Hint {
    let Some(last) = end.checked_sub(1) else { return Hint::Nothing };
    if tokens[last].is(")") {
        return match opening(tokens, last) {
            Some(open) if open > 0 && is_name(&tokens[open - 1]) => expression(&tokens[open - 1..end]),
            Some(open) => expression(&tokens[open..end]),
            None => Hint::Nothing,
        };
    }
    let start = if last >= 2 && tokens[last - 1].is(".") { last - 2 } else { last };
    expression(&tokens[start..end])
}

fn operand_after(tokens: &[Token], start: usize) -> Hint {
    let Some(t) = tokens.get(start) else { return Hint::Nothing };
    let end = match tokens.get(start + 1) {
        Some(n) if n.is(".") => start + 3,
        Some(n) if n.is("(") && is_name(t) => closing(tokens, start + 1) + 1,
        _ => start + 1,
    };
    tokens.get(start..end).map_or(Hint::Nothing, expression)
}

fn parameters(tokens: &[Token]) -> BTreeMap<usize, Hint> {
    let mut hints = BTreeMap::new();
    let insert = insert_target(tokens);
    for (i, t) in tokens.iter().enumerate() {
        let number = t.text.strip_prefix(['$', '?']).and_then(|n| n.parse::<usize>().ok());
        let Some(number) = number.filter(|_| t.kind == Kind::Parameter) else { continue };
        let hint = parameter(tokens, i, insert.as_ref());
        if hint != Hint::Nothing {
            hints.entry(number).or_insert(hint);
        }
    }
    hints
}

fn parameter(tokens: &[Token], i: usize, insert: Option<&Insert>) -> Hint {
    let back = |n: usize| i.checked_sub(n).map(|j| &tokens[j]);
    let next = tokens.get(i + 1);
    if any_of(back(1), &["("]) && any_of(back(2), &["CAST"]) && any_of(next, &["AS"]) {
        return cast_type(tokens, i + 2);
    }
    if any_of(back(1), &["LIMIT", "OFFSET"]) {
        return Hint::Type(PgType::Int8);
    }
    if any_of(back(1), &["||", "LIKE", "GLOB", "MATCH"]) || any_of(next, &["||", "LIKE", "GLOB"]) {
        return Hint::Type(PgType::Text);
    }
    if any_of(back(1), &["BETWEEN"]) {
        return operand_before(tokens, i - 1 - usize::from(any_of(back(2), &["NOT"])));
    }
    if any_of(back(1), &["AND"]) && any_of(back(3), &["BETWEEN"]) {
        return operand_before(tokens, i - 3 - usize::from(any_of(back(4), &["NOT"])));
    }
    let operator = |t: Option<&Token>| any_of(t, COMPARISONS) || any_of(t, ARITHMETIC);
    if any_of(back(1), &["NOT"]) && any_of(back(2), &["IS"]) {
        return operand_before(tokens, i - 2);
    }
    if operator(back(1)) {
        let hint = operand_before(tokens, i - 1);
        if hint != Hint::Nothing {
            return hint;
        }
    }
    if operator(next) {
        return operand_after(tokens, i + 2);
    }
    if any_of(back(1), &["(", ","]) && any_of(next, &[")", ","]) {
        let mut j = i;
        let mut n = 0;
        // Back over the values of the list to its parenthesis; calls in it are stepped over as a whole.
        while let Some(k) = j.checked_sub(1) {
            j = k;
            if tokens[j].is("(") {
                break;
            } else if tokens[j].is(")") {
                match opening(tokens, j) {
                    Some(open) => j = open,
                    None => return Hint::Nothing,
                }
            } else if tokens[j].is(",") {
                n += 1;
            }
        }
        let before = |n: usize| j.checked_sub(n).map(|k| &tokens[k]);
        if any_of(before(1), &["IN"]) {
            return operand_before(tokens, j - 1 - usize::from(any_of(before(2), &["NOT"])));
        }
        if let Some(insert) = insert.filter(|v| j > v.values_at && any_of(before(1), &["VALUES", ","])) {
            return match insert.columns.get(n) {
                Some(name) => Hint::Column { qualifier: Some(insert.table.clone()), name: name.clone() },
                None if insert.columns.is_empty() => Hint::InsertColumn { table: insert.table.clone(), n },
                None => Hint::Nothing,
            };
        }
    }
    Hint::Nothing
}

struct Insert {
    table: String,
    columns: Vec<String>,
    values_at: usize,
}

fn insert_target(tokens: &[Token]) -> Option<Insert> {
    let into = tokens.iter().position(|t| t.is("INTO"))?;
    if !tokens[..into].iter().any(|t| t.is("INSERT") || t.is("REPLACE")) {
        return None;
    }
    let mut at = into + 1;
    if tokens.get(at + 1).is_some_and(|t| t.is(".")) {
        at += 2;
    }
    let table = tokens.get(at)?.unquoted().to_ascii_lowercase();
    let open = at + 1;
    let columns = if tokens.get(open).is_some_and(|t| t.is("(")) {
        tokens[open..closing(tokens, open).min(tokens.len())].iter().filter(|t| is_name(t)).map(Token::unquoted).collect()
    } else {
        Vec::new()
    };
    let values_at = tokens.iter().position(|t| t.is("VALUES"))?;
    Some(Insert { table, columns, values_at })
}

fn cast_type(tokens: &[Token], from: usize) -> Hint {
    let words: Vec<&str> = tokens[from.min(tokens.len())..].iter().take_while(|t| t.kind == Kind::Word).map(|t| t.text).collect();
    if words.is_empty() { Hint::Nothing } else { Hint::Type(PgType::from_declared(&words.join(" "))) }
}

/// The expressions of the result list of SELECT or RETURNING.
fn columns(tokens: &[Token]) -> Vec<Hint> {
    let mut depth = 0_usize;
    let mut start = None;
    for (i, t) in tokens.iter().enumerate() {
        if t.is("(") {
            depth += 1;
        } else if t.is(")") {
            depth = depth.saturating_sub(1);
        } else if depth == 0 && (t.is("RETURNING") || (t.is("SELECT") && !tokens[..i].iter().any(|t| t.is("INSERT") || t.is("REPLACE")))) {
            start = Some(i + 1);
            break;
        }
    }
    let Some(mut start) = start else { return Vec::new() };
    start += usize::from(any_of(tokens.get(start), &["DISTINCT", "ALL"]));
    let mut items = Vec::new();
    let (mut from, mut i) = (start, start);
    loop {
        let ends = i >= tokens.len()
            || any_of(tokens.get(i), &["FROM", "WHERE", "UNION", "EXCEPT", "INTERSECT", "ORDER", "LIMIT", "GROUP", "HAVING", ";"]);
        if ends || tokens[i].is(",") {
            items.push(&tokens[from..i]);
            from = i + 1;
            if ends {
                break;
            }
        }
        i = if tokens[i].is("(") { closing(tokens, i) + 1 } else { i + 1 };
        i = i.min(tokens.len());
    }
    if items.iter().any(|item| item.last().is_none_or(|t| t.is("*"))) {
        return Vec::new();
    }
    items.into_iter().map(|item| expression(without_alias(item))).collect()
}

fn without_alias<'a, 'b>(item: &'a [Token<'b>]) -> &'a [Token<'b>] {
    match item {
        [rest @ .., a, _] if a.is("AS") => rest,
        [rest @ .., before, last]
            if is_name(last) && (before.is(")") || matches!(before.kind, Kind::Number | Kind::Text | Kind::Parameter)) =>
        {
            &item[..rest.len() + 1]
        }
        [rest @ .., before, last] if is_name(last) && is_name(before) => &item[..rest.len() + 1],
        _ => item,
    }
}

fn expression(tokens: &[Token]) -> Hint {
    let signs = tokens.iter().take_while(|t| t.is("-") || t.is("+")).count();
    match &tokens[signs..] {
        [] => Hint::Nothing,
        [one] => literal(one),
        [q, dot, name] if dot.is(".") && is_name(name) => Hint::Column { qualifier: Some(q.unquoted()), name: name.unquoted() },
        tokens @ [open, inner @ .., _] if open.is("(") && closing(tokens, 0) == tokens.len() - 1 => {
            if any_of(inner.first(), &["SELECT", "WITH"]) { Hint::Nothing } else { expression(inner) }
        }
        tokens @ [name, open, ..] if open.is("(") && is_name(name) => {
            let end = closing(tokens, 1);
            let windowed = any_of(tokens.get(end + 1), &["FILTER", "OVER"]) && !operators(&tokens[end + 1..]);
            if end + 1 == tokens.len() || windowed { call(name, &tokens[2..end.min(tokens.len())]) } else { compound(tokens) }
        }
        tokens => compound(tokens),
    }
}

fn literal(t: &Token) -> Hint {
    match t.kind {
        Kind::Number if t.text.contains(['.', 'e', 'E']) && !t.text.starts_with("0x") => Hint::Type(PgType::Float8),
        Kind::Number => Hint::Type(PgType::Int8),
        Kind::Text => Hint::Type(PgType::Text),
        Kind::Blob => Hint::Type(PgType::Bytea),
        Kind::Word if t.is("TRUE") || t.is("FALSE") => Hint::Type(PgType::Int8),
        Kind::Word if t.is("CURRENT_TIMESTAMP") || t.is("CURRENT_DATE") || t.is("CURRENT_TIME") => Hint::Type(PgType::Text),
        _ if is_name(t) => Hint::Column { qualifier: None, name: t.unquoted() },
        _ => Hint::Nothing,
    }
}

/// Operators outside parentheses.
fn operators(tokens: &[Token]) -> bool {
    let mut i = 0;
    while i < tokens.len() {
        if any_of(tokens.get(i), ARITHMETIC) || any_of(tokens.get(i), COMPARISONS) || tokens[i].is("||") {
            return true;
        }
        i = if tokens[i].is("(") { closing(tokens, i) + 1 } else { i + 1 };
    }
    false
}

fn compound(tokens: &[Token]) -> Hint {
    let mut outside = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        outside.push(i);
        i = if tokens[i].is("(") { closing(tokens, i) + 1 } else { i + 1 };
    }
    let has = |set: &[&str]| outside.iter().any(|&i| any_of(tokens.get(i), set));
    if has(&["CASE", "->", "->>", "OVER", "FILTER", "COLLATE"]) {
        return Hint::Nothing;
    }
    if has(&["AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "GLOB", "EXISTS", "ISNULL", "NOTNULL"]) || has(COMPARISONS) {
        return Hint::Type(PgType::Int8);
    }
    if has(&["||"]) {
        return Hint::Type(PgType::Text);
    }
    let mut parts = Vec::new();
    let mut from = 0;
    for &i in &outside {
        if i > from && any_of(tokens.get(i), ARITHMETIC) {
            parts.push(expression(&tokens[from..i]));
            from = i + 1;
        }
    }
    if parts.is_empty() || parts.len() > 64 {
        return Hint::Nothing;
    }
    parts.push(expression(&tokens[from..]));
    Hint::Arithmetic(parts)
}

fn call(name: &Token, arguments: &[Token]) -> Hint {
    let mut first = arguments.len();
    let mut i = 0;
    while i < arguments.len() {
        if arguments[i].is(",") {
            first = i;
            break;
        }
        i = if arguments[i].is("(") { closing(arguments, i) + 1 } else { i + 1 };
    }
    let first = &arguments[..first];
    match name.unquoted().to_ascii_lowercase().as_str() {
        "cast" => arguments.iter().rposition(|t| t.is("AS")).map_or(Hint::Nothing, |i| cast_type(arguments, i + 1)),
        "count" | "length" | "char_length" | "octet_length" | "instr" | "unicode" | "row_number" | "rank" | "dense_rank" | "ntile"
        | "changes" | "total_changes" | "last_insert_rowid" | "random" | "unixepoch" | "sign" => Hint::Type(PgType::Int8),
        "avg" | "total" | "julianday" | "percent_rank" | "cume_dist" | "round" | "sqrt" | "power" | "pow" | "exp" | "ln" | "log" => {
            Hint::Type(PgType::Float8)
        }
        "lower" | "upper" | "trim" | "ltrim" | "rtrim" | "substr" | "substring" | "replace" | "printf" | "format" | "hex" | "quote"
        | "char" | "typeof" | "group_concat" | "string_agg" | "date" | "time" | "datetime" | "strftime" | "concat" | "concat_ws"
        | "version" | "sqlite_version" | "json" | "json_object" | "json_array" | "json_group_array" | "json_group_object" => {
            Hint::Type(PgType::Text)
        }
        "pg_is_in_recovery" => Hint::Type(PgType::Bool),
        "pg_backend_pid" => Hint::Type(PgType::Int8),
        "gen_random_uuid" => Hint::Type(PgType::Uuid),
        "randomblob" | "zeroblob" | "unhex" => Hint::Type(PgType::Bytea),
        "sum" | "abs" => match expression(first) {
            Hint::Nothing => Hint::Nothing,
            // As arithmetic it is only a number if its argument is one.
            hint => Hint::Arithmetic(vec![hint]),
        },
        "min" | "max" | "coalesce" | "ifnull" | "nullif" | "lag" | "lead" | "first_value" | "last_value" => {
            expression(first.strip_prefix(&[Token { kind: Kind::Word, text: "DISTINCT" }]).unwrap_or(first))
        }
        _ => Hint::Nothing,
    }
}
