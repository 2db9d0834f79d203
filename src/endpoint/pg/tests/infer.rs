//! What is guessed of parameters and expressions.

use crate::endpoint::pg::infer::{Plan, Schema};
use crate::endpoint::pg::types::PgType;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn schema() -> Schema {
    let accounts = vec![
        ("id".to_owned(), PgType::Int8),
        ("name".to_owned(), PgType::Text),
        ("balance".to_owned(), PgType::Numeric),
        ("score".to_owned(), PgType::Float8),
        ("at".to_owned(), PgType::Timestamptz),
    ];
    BTreeMap::from([
        ("accounts".to_owned(), accounts),
        ("tags".to_owned(), vec![("tag".to_owned(), PgType::Varchar), ("owner".to_owned(), PgType::Int8)]),
    ])
}

fn parameter_types(sql: &str) -> Vec<Option<PgType>> {
    let plan = Plan::of(sql);
    let last = plan.parameters.keys().max().copied().unwrap_or(0);
    (1..=last).map(|n| plan.parameters.get(&n).and_then(|h| plan.resolve(h, &schema()))).collect()
}

fn column_types(sql: &str) -> Vec<Option<PgType>> {
    let plan = Plan::of(sql);
    plan.columns.iter().map(|h| plan.resolve(h, &schema())).collect()
}

use PgType::{Bytea, Float8, Int8, Numeric, Text, Timestamptz, Varchar};

#[test]
fn parameters_get_the_type_of_what_they_meet() {
    for (sql, types) in [
        ("select * from accounts where id = $1 and name = $2", vec![Some(Int8), Some(Text)]),
        ("select * from accounts a where a.at >= $1 limit $2 offset $3", vec![Some(Timestamptz), Some(Int8), Some(Int8)]),
        ("select * from accounts where $1 < score", vec![Some(Float8)]),
        ("insert into accounts (name, balance) values ($1, $2), ($3, $4)", vec![Some(Text), Some(Numeric), Some(Text), Some(Numeric)]),
        ("insert into accounts values ($1, lower($2), $3)", vec![Some(Int8), None, Some(Numeric)]),
        ("insert into main.accounts (id) values ($1) on conflict (id) do update set name = $2", vec![Some(Int8), Some(Text)]),
        ("update accounts set balance = balance + $1 where id = $2", vec![Some(Numeric), Some(Int8)]),
        ("delete from accounts where id in ($1, $2) or id between $3 and $4", vec![Some(Int8); 4]),
        ("select cast($1 as integer), $2 || 'x', $3 like 'y'", vec![Some(Int8), Some(Text), Some(Text)]),
        ("select * from accounts a join tags t on t.owner = a.id where t.tag = $1", vec![Some(Varchar)]),
        ("select 1 where length($1) = $2", vec![None, Some(Int8)]),
        ("select * from accounts where length(name) > $1", vec![Some(Int8)]),
    ] {
        assert_eq!(parameter_types(sql), types, "{sql}");
    }
    assert!(parameter_types("select $1").is_empty());
}

#[test]
fn expressions_get_their_types() {
    for (sql, types) in [
        ("select count(*), sum(id) as s, avg(id), max(name) m from accounts", vec![Some(Int8), Some(Int8), Some(Float8), Some(Text)]),
        ("select 1, 1.5, 'x', x'00', -2 as n", vec![Some(Int8), Some(Float8), Some(Text), Some(Bytea), Some(Int8)]),
        ("select id + 1, balance * 2, score / 2, name || '!' from accounts", vec![Some(Int8), Some(Numeric), Some(Float8), Some(Text)]),
        ("select id > 3, cast(name as bigint), (id), case when 1 then 2 end from accounts", vec![Some(Int8), Some(Int8), Some(Int8), None]),
        ("select row_number() over (order by id), count(*) filter (where id > 1) from accounts", vec![Some(Int8), Some(Int8)]),
        ("insert into accounts (id) values (1) returning id + 1, name", vec![Some(Int8), Some(Text)]),
        ("with q as (select 1 as a) select count(*) from q", vec![Some(Int8)]),
        ("select sum(name) from accounts", vec![None]),
        ("select (select 1), $1", vec![None, None]),
    ] {
        assert_eq!(column_types(sql), types, "{sql}");
    }
    assert!(column_types("select *, 1 from accounts").is_empty());
}

#[test]
fn tables_and_their_aliases() {
    let tables = |sql| Plan::of(sql).tables;
    let t = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(tables("select * from a, b as x join c y on 1"), [t("a", "a"), t("x", "b"), t("y", "c")]);
    assert_eq!(tables("with q(n) as (select 1), r as (select 2) select * from q, r, s"), [t("s", "s")]);
    assert_eq!(tables("select * from generate_series(1, 2), (select 1)"), []);
    assert_eq!(tables("update or replace main.\"T t\" set x = 1"), [t("t t", "t t")]);
}

proptest! {
    #[test]
    fn no_words_panic(words in prop::collection::vec(prop::sample::select(vec![
        "select", "from", "insert", "into", "values", "(", ")", ",", "a", "t", ".", "$1", "$2", "=", "+", "-", "between", "and", "in", "cast", "as",
        "int", "returning", "with", "not", "is", "limit", "*", "'x'", "1", "over", "filter", "distinct", "||", "update", "or", "count", ";",
    ]), 0..24)) {
        let sql = words.join(" ");
        let plan = Plan::of(&sql);
        for hint in plan.columns.iter().chain(plan.parameters.values()) {
            let _ = plan.resolve(hint, &schema());
        }
    }

    #[test]
    fn deep_nesting_is_no_danger(n in 0_usize..3000) {
        let _ = Plan::of(&format!("select {}1", "(".repeat(n)));
        let _ = Plan::of(&format!("select {}1{}", "(".repeat(n), ")".repeat(n)));
    }
}
