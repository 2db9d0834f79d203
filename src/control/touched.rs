//! Tables and keys that a lost tail changed, cut to a size that travels with the record of a failover.
//!
//! Decides the bounds. Never opens a tail: whoever can read one (`crate::ops::salvage`) says what it changed.

/// Tables that are named, and keys of each; the rest is counted. With all failovers that are kept, far below what a state may take.
const TABLES_MAX: usize = 8;
const KEYS_MAX: usize = 8;
const TABLE_BYTES_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 40;

#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Touched {
    /// By name.
    pub tables: Vec<TouchedTable>,
    /// So many more tables.
    pub tables_more: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode, serde::Serialize, serde::Deserialize)]
pub struct TouchedTable {
    pub table: String,
    /// Rows that were inserted, deleted or have other values.
    pub rows_changed: u64,
    /// Primary keys of the first of them, as text; of several columns, with commas.
    pub keys: Vec<String>,
    /// So many more rows.
    pub more: u64,
}

impl Touched {
    /// Keys of each table that are worth collecting.
    pub const KEYS_WANTED: usize = KEYS_MAX;

    /// Takes the next table over; beyond the bounds it is only counted.
    pub fn add<'a>(&mut self, table: &str, rows_changed: u64, keys: impl Iterator<Item = &'a [String]>) {
        if self.tables.len() >= TABLES_MAX {
            self.tables_more += 1;
            return;
        }
        let keys: Vec<String> = keys.take(KEYS_MAX).map(|key| cut(&key.join(","), KEY_BYTES_MAX)).collect();
        let more = rows_changed.saturating_sub(keys.len() as u64);
        self.tables.push(TouchedTable { table: cut(table, TABLE_BYTES_MAX), rows_changed, keys, more });
    }
}

/// At most so many bytes, and nothing that moves a terminal.
fn cut(text: &str, bytes_max: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() <= bytes_max {
        return clean;
    }
    let end = (0..=bytes_max - 3).rev().find(|at| clean.is_char_boundary(*at)).expect("BUG: 0 is one");
    format!("{}...", &clean[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_counted_and_no_text_is_too_long() {
        let mut touched = Touched::default();
        let keys: Vec<Vec<String>> = (0..20).map(|n| vec!["ä".repeat(n * 3), format!("\x1b{n}")]).collect();
        for n in 0..11 {
            touched.add(&format!("t{n}{}", "x".repeat(99)), 1000, keys.iter().map(Vec::as_slice));
        }
        assert_eq!((touched.tables.len(), touched.tables_more), (TABLES_MAX, 3));
        let first = &touched.tables[0];
        assert_eq!((first.keys.len(), first.more, first.rows_changed), (KEYS_MAX, 992, 1000));
        assert!(first.table.len() == TABLE_BYTES_MAX && first.table.ends_with("..."), "{}", first.table);
        assert_eq!(first.keys[0], ", 0");
        assert!(first.keys.iter().all(|k| k.len() <= KEY_BYTES_MAX), "{first:?}");
        touched.add("never", 1, std::iter::empty());
        assert_eq!(touched.tables_more, 4);
        let bytes = bincode::encode_to_vec(&touched, bincode::config::standard()).unwrap();
        assert!(bytes.len() < 4096, "64 of them fit a state many times: {}", bytes.len());
    }
}
