//! PostgreSQL's binary `numeric` (base 10 000 digits) to and from decimal text, and decimal text to a value of the engine.
//! Pure; driven by [`super::types`]. What has no exact value here (NaN, infinity) is `None`, never a guess.

use crate::head::sql::Value;
use bytes::{BufMut, BytesMut};

const NEGATIVE: u16 = 0x4000;
/// More digits than this after applying an exponent are refused: a few bytes of text must not become megabytes.
const DIGITS_MAX: usize = 20_000;

/// Integer where it is one, float where at most 15 digits make it exact enough to come back, text otherwise.
pub fn value(text: &str) -> Option<Value> {
    if let Ok(i) = text.parse::<i64>() {
        return Some(Value::Integer(i));
    }
    let d = Decimal::parse(text)?;
    if d.digits().skip_while(|b| *b == b'0').count() > 15 {
        return Some(Value::Text(text.to_owned()));
    }
    text.parse::<f64>().ok().filter(|f| f.is_finite()).map(Value::Real)
}

/// A decimal number without exponent: sign, digits before and after the point.
struct Decimal {
    negative: bool,
    whole: String,
    fraction: String,
}

impl Decimal {
    fn digits(&self) -> impl Iterator<Item = u8> + '_ {
        self.whole.bytes().chain(self.fraction.bytes())
    }

    fn parse(text: &str) -> Option<Decimal> {
        let text = text.trim();
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((m, e)) => (m, e.parse::<i32>().ok()?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        let length = whole.len() + fraction.len();
        if length == 0 || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let shift = exponent.unsigned_abs() as usize;
        if length.saturating_add(shift) > DIGITS_MAX {
            return None;
        }
        let (mut whole, mut fraction) = (whole.to_owned(), fraction.to_owned());
        if exponent > 0 {
            while fraction.len() < shift {
                fraction.push('0');
            }
            let rest = fraction.split_off(shift);
            whole.push_str(&fraction);
            fraction = rest;
        } else if exponent < 0 {
            whole.insert_str(0, &"0".repeat(shift.saturating_sub(whole.len())));
            let moved = whole.split_off(whole.len() - shift);
            fraction.insert_str(0, &moved);
        }
        Some(Decimal { negative, whole, fraction })
    }
}

/// Appends the binary form of a decimal text.
pub fn encode(text: &str, out: &mut BytesMut) -> Option<()> {
    let d = Decimal::parse(text)?;
    let scale = d.fraction.len();
    let mut whole = d.whole;
    whole.insert_str(0, &"0".repeat((4 - whole.len() % 4) % 4));
    let mut fraction = d.fraction;
    fraction.push_str(&"0".repeat((4 - fraction.len() % 4) % 4));
    let groups: Vec<i16> = whole
        .as_bytes()
        .chunks(4)
        .chain(fraction.as_bytes().chunks(4))
        .map(|g| g.iter().fold(0, |n, b| n * 10 + i16::from(b - b'0')))
        .collect();
    let leading = groups.iter().take_while(|g| **g == 0).count();
    let kept = &groups[leading..];
    let kept = &kept[..kept.iter().rposition(|g| *g != 0).map_or(0, |p| p + 1)];
    let weight = if kept.is_empty() { 0 } else { i64::try_from(whole.len() / 4).ok()? - 1 - i64::try_from(leading).ok()? };
    out.put_i16(i16::try_from(kept.len()).ok()?);
    out.put_i16(i16::try_from(weight).ok()?);
    out.put_u16(if d.negative && !kept.is_empty() { NEGATIVE } else { 0 });
    out.put_i16(i16::try_from(scale).ok()?);
    for group in kept {
        out.put_i16(*group);
    }
    Some(())
}

/// The decimal text of a binary `numeric`.
pub fn decode(b: &[u8]) -> Option<String> {
    let word = |i: usize| b.get(2 * i..2 * i + 2).map(|w| i16::from_be_bytes([w[0], w[1]]));
    let count = usize::try_from(word(0)?).ok()?;
    let (weight, sign, scale) = (i32::from(word(1)?), word(2)?.cast_unsigned(), usize::try_from(word(3)?).ok()?);
    if b.len() != 8 + 2 * count || (sign != 0 && sign != NEGATIVE) || usize::try_from(weight.max(0)).ok()? * 4 + scale > DIGITS_MAX {
        return None;
    }
    // The group that stands for 10000^power; groups that are not sent are zero.
    let group = |power: i32| -> Option<i16> {
        match usize::try_from(weight - power) {
            Ok(i) if i < count => word(4 + i).filter(|g| (0..10_000).contains(g)),
            _ => Some(0),
        }
    };
    let mut text = String::new();
    if sign == NEGATIVE {
        text.push('-');
    }
    let mut whole = String::new();
    for power in (0..=weight.max(0)).rev() {
        whole.push_str(&format!("{:04}", group(power)?));
    }
    let trimmed = whole.trim_start_matches('0');
    text.push_str(if trimmed.is_empty() { "0" } else { trimmed });
    if scale > 0 {
        let mut fraction = String::new();
        let mut power = -1;
        while fraction.len() < scale {
            fraction.push_str(&format!("{:04}", group(power)?));
            power -= 1;
        }
        text.push('.');
        text.push_str(&fraction[..scale]);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_binary_form_is_postgres_own() {
        let mut out = BytesMut::new();
        encode("-12345.678", &mut out).unwrap();
        // 3 digits (1, 2345, 6780), weight 1, negative, scale 3
        assert_eq!(out.to_vec(), [0, 3, 0, 1, 0x40, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c]);
        for (text, back) in
            [("0", "0"), ("0.00", "0.00"), ("1e3", "1000"), ("1.5E-3", "0.0015"), ("-0.0001", "-0.0001"), ("10000", "10000"), (".5", "0.5")]
        {
            let mut out = BytesMut::new();
            encode(text, &mut out).unwrap();
            assert_eq!(decode(&out).unwrap(), back, "{text}");
        }
        for bad in ["", "-", ".", "1e99999", "NaN", "1.2.3", "0x10"] {
            assert!(encode(bad, &mut BytesMut::new()).is_none(), "{bad}");
        }
    }

    #[test]
    fn values_are_exact_or_text() {
        assert_eq!(value("42"), Some(Value::Integer(42)));
        assert_eq!(value("1.50"), Some(Value::Real(1.5)));
        assert_eq!(value("12345678901234567890"), Some(Value::Text("12345678901234567890".into())));
        assert_eq!(value("abc"), None);
    }

    proptest! {
        #[test]
        fn decimals_come_back(text in "-?[1-9][0-9]{0,20}(\\.[0-9]{1,12})?") {
            let mut out = BytesMut::new();
            encode(&text, &mut out).unwrap();
            prop_assert_eq!(decode(&out).unwrap(), text);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            let _ = decode(&bytes);
        }
    }
}
