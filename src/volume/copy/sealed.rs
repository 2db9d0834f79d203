//! What is sealed, byte for byte: a whole small file, the header of a log file, a frame in the log.
//!
//! ```text
//!  0  4  magic "PHLS"     4  4  length of what is sealed     8  -  nonce 12 | the sealed bytes | tag 16
//! ```
//! What is sealed is what would lie there otherwise, with its own magic, version and checksum; a disk without a cipher
//! ([`Disk::cipher`]) has that. The tag covers the place: a small file's name, a frame's log file and offset. Nothing that does not open is
//! ever looked into. Marks ([`super::record`]) and blocks of layers ([`super::layer`]) are sealed in forms of their own.

use crate::volume::{Cipher, Disk, DiskError, SEAL_BYTES};
use bytes::Bytes;

const MAGIC: [u8; 4] = *b"PHLS";
pub(super) const HEADER_BYTES: usize = 8;

/// Length of `plain` bytes when they are sealed.
pub(super) fn len_of(plain: usize) -> usize {
    HEADER_BYTES + plain + SEAL_BYTES
}

/// `plain`, as it is to be written to a disk.
pub(super) fn seal(disk: &dyn Disk, place: &[u8], plain: Bytes) -> Result<Bytes, DiskError> {
    let Some(cipher) = disk.cipher() else { return Ok(plain) };
    let sealed = cipher.seal(place, &plain)?;
    assert_eq!(sealed.len(), plain.len() + SEAL_BYTES, "BUG: a seal has another length than was reckoned with");
    let mut out = Vec::with_capacity(HEADER_BYTES + sealed.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&u32::try_from(plain.len()).expect("BUG: what is sealed at once is below 4 GiB").to_le_bytes());
    out.extend_from_slice(&sealed);
    Ok(Bytes::from(out))
}

/// Length of the whole, from its beginning; `None`: nothing that is sealed begins here, or it is longer than `plain_max` allows.
pub(super) fn whole_len(head: &[u8], plain_max: usize) -> Option<usize> {
    let len = u32::from_le_bytes(head.strip_prefix(&MAGIC)?.get(..4)?.try_into().expect("BUG: four bytes")) as usize;
    (len <= plain_max).then(|| len_of(len))
}

/// What [`seal`] was given; `bytes` are exactly what it gave.
pub(super) fn open(cipher: &dyn Cipher, place: &[u8], bytes: &[u8]) -> Option<Bytes> {
    let whole = whole_len(bytes, usize::MAX)?;
    (whole == bytes.len()).then(|| cipher.open(place, &bytes[HEADER_BYTES..]).map(Bytes::from)).flatten()
}

/// A small file as it was read from a disk; `None`: its seal does not hold.
pub(super) fn open_file(disk: &dyn Disk, name: &str, bytes: Bytes) -> Option<Bytes> {
    match disk.cipher() {
        None => Some(bytes),
        Some(cipher) => open(cipher, name.as_bytes(), &bytes),
    }
}

/// Why a small file that does not open is none.
pub(super) const BROKEN: &str = "its seal does not hold: it is not what was written here with this key";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::disk::SimDisk;
    use proptest::prelude::*;

    #[test]
    fn what_is_sealed_opens_at_its_own_place_only_and_without_a_cipher_it_stays_as_it_is() {
        let (plain, disk) = (SimDisk::plain(1), SimDisk::sealed(1));
        let bytes = Bytes::from_static(b"the canary sings");
        assert_eq!(seal(&plain, b"a", bytes.clone()).unwrap(), bytes);
        let sealed = seal(&disk, b"a", bytes.clone()).unwrap();
        assert_eq!(whole_len(&sealed, bytes.len()), Some(sealed.len()));
        assert_eq!(whole_len(&sealed, bytes.len() - 1), None);
        assert!(!sealed.windows(6).any(|w| w == b"canary"));
        let open_at = |place: &[u8]| open(disk.cipher().unwrap(), place, &sealed);
        assert_eq!((open_at(b"a"), open_at(b"b")), (Some(bytes), None));
        assert_eq!(open(SimDisk::sealed(2).cipher().unwrap(), b"a", &sealed), None, "another key");
    }

    proptest! {
        #[test]
        fn no_flipped_bit_and_no_garbage_opens(at in 0usize..46, bit in 0u8..8, garbage in proptest::collection::vec(any::<u8>(), 0..80)) {
            let disk = SimDisk::sealed(1);
            let cipher = disk.cipher().unwrap();
            let mut bytes = seal(&disk, b"a", Bytes::from_static(b"ten bytes.")).unwrap().to_vec();
            prop_assert_eq!(bytes.len(), 46);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(open(cipher, b"a", &bytes), None);
            prop_assert_eq!(open(cipher, b"a", &garbage), None);
        }
    }
}
