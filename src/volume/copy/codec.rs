//! Small checked headers: what stands at the head of a log file, in the manifest and in the promise.
//!
//! ```text
//!  0  4  magic          4  2  version       6  2  reserved, 0
//!  8  4  body length   12  4  CRC32C of the 12 bytes before it and of the body       16  -  body (bincode)
//! ```
//! Lengths are bounded before anything is allocated; a body is decoded only after its checksum held.

use bytes::Bytes;

pub(super) const CHECKED_HEADER_BYTES: usize = 16;
/// Longest body; also bincode's bound for what a decoded body takes in memory.
pub(super) const BODY_BYTES_MAX: usize = 16 << 20;

/// Why bytes are not a checked header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    #[error("it is not what was written: {0}")]
    Corrupt(&'static str),
    #[error("it has format version {0}, which this parhelion does not read")]
    Unsupported(u16),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding().with_little_endian().with_limit::<BODY_BYTES_MAX>()
}

pub(super) fn encode<T: bincode::Encode>(magic: [u8; 4], version: u16, body: &T) -> Bytes {
    let body = bincode::encode_to_vec(body, config()).expect("BUG: plain values encode into memory");
    let mut out = Vec::with_capacity(CHECKED_HEADER_BYTES + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&u32::try_from(body.len()).expect("BUG: a header's body is below 16 MiB").to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&out), &body);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&body);
    Bytes::from(out)
}

/// Length of the whole, from its first 16 bytes; to know how much to read.
pub(super) fn whole_len(head: &[u8], magic: [u8; 4]) -> Result<usize, CodecError> {
    if head.len() < CHECKED_HEADER_BYTES {
        return Err(CodecError::Corrupt("it is too short"));
    }
    if head[..4] != magic {
        return Err(CodecError::Corrupt("it does not begin with the magic"));
    }
    let len = u32::from_le_bytes(head[8..12].try_into().expect("BUG: four bytes")) as usize;
    if len > BODY_BYTES_MAX {
        return Err(CodecError::Corrupt("its length is beyond the limit"));
    }
    Ok(CHECKED_HEADER_BYTES + len)
}

/// Decodes what [`encode`] wrote at the beginning of `bytes`.
pub(super) fn decode<T: bincode::Decode<()>>(bytes: &[u8], magic: [u8; 4], version: u16) -> Result<T, CodecError> {
    let len = whole_len(bytes, magic)?;
    let body = bytes.get(CHECKED_HEADER_BYTES..len).ok_or(CodecError::Corrupt("it is cut off"))?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), body);
    if bytes[12..16] != sum.to_le_bytes() {
        return Err(CodecError::Corrupt("the checksum does not match"));
    }
    let found = u16::from_le_bytes([bytes[4], bytes[5]]);
    if found != version {
        return Err(CodecError::Unsupported(found));
    }
    match bincode::decode_from_slice::<T, _>(body, config()) {
        Ok((value, used)) if used == body.len() => Ok(value),
        Ok(_) => Err(CodecError::Corrupt("bytes are left over")),
        Err(_) => Err(CodecError::Corrupt("its fields do not decode")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_garbage_decodes_and_none_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), keep_magic in any::<bool>()) {
            let mut bytes = bytes;
            if keep_magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(b"TEST");
            }
            prop_assert!(decode::<Vec<u64>>(&bytes, *b"TEST", 1).is_err());
        }

        #[test]
        fn any_flipped_bit_is_found(at in 0usize..40, bit in 0u8..8) {
            let good = encode(*b"TEST", 1, &vec![7u64, 8]);
            prop_assert_eq!(decode::<Vec<u64>>(&good, *b"TEST", 1).unwrap(), vec![7, 8]);
            let mut bad = good.to_vec();
            prop_assert_eq!(bad.len(), 40);
            bad[at] ^= 1 << bit;
            prop_assert!(decode::<Vec<u64>>(&bad, *b"TEST", 1).is_err());
        }
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let newer = encode(*b"TEST", 2, &7u64);
        assert_eq!(decode::<u64>(&newer, *b"TEST", 1), Err(CodecError::Unsupported(2)));
    }
}
