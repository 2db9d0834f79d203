//! The numbers, listed and not computed, with what must intersect asserted beside them.

/// Copies of a protection group: two in each of three availability zones.
pub const COPIES: usize = 6;
/// Copies that must have fsynced a frame before it is durable.
pub const WRITE_QUORUM: usize = 4;
/// Intact copies that recovery must hear from; as many, raised to a new generation, fence the old appender.
pub const READ_QUORUM: usize = 3;

const _: () = assert!(
    WRITE_QUORUM + READ_QUORUM > COPIES,
    "recovery must meet at least one copy of every durable frame, and a raised copy in every old quorum"
);
const _: () = assert!(2 * WRITE_QUORUM > COPIES, "two appenders must never both reach a write quorum");
const _: () = assert!(COPIES - 2 >= WRITE_QUORUM, "losing a zone (two copies) must not stop writes");
const _: () = assert!(COPIES - 3 >= READ_QUORUM, "losing a zone and one more copy must not lose data");

/// The highest position that at least [`WRITE_QUORUM`] of the six have reached: the 4th highest.
#[must_use]
pub fn durable<T: Ord + Copy>(acknowledged: [T; COPIES]) -> T {
    let mut sorted = acknowledged;
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted[WRITE_QUORUM - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests/data/quorum/durable.txt shows six acknowledged positions and the durable one; this reads and checks it.
    #[test]
    fn the_table_in_tests_data_holds() {
        let table = include_str!("../../tests/data/quorum/durable.txt");
        let mut rows = 0;
        for line in table.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (acks, want) = line.split_once("->").expect("a row is: six positions -> durable");
            let acks: Vec<u64> = acks.split_whitespace().map(|n| n.parse().expect("a position")).collect();
            let acks: [u64; COPIES] = acks.try_into().expect("six positions");
            assert_eq!(durable(acks), want.trim().parse::<u64>().expect("a position"), "{line}");
            rows += 1;
        }
        assert!(rows >= 6, "the table lost its rows");
    }
}
