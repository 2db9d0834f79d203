//! A cipher for simulated disks: keyed, the same from the same seed, and found out by every flip. It keeps no secret from anybody.
//!
//! The nonce is a checksum of key, place and plain bytes, so nothing is drawn: two disks on which the same was written are the same, and a
//! run is replayed whatever is sealed in it. A real one draws its nonces (`io`).

use crate::base::Prng;
use crate::log::Frame;
use crate::volume::{Cipher, DiskError, SEAL_BYTES};
use bytes::Bytes;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimCipher {
    key: u64,
}

const NONCE_BYTES: usize = 12;

impl SimCipher {
    #[must_use]
    pub fn new(seed: u64) -> SimCipher {
        SimCipher { key: Prng::new(seed).fork("cipher").next_u64() }
    }

    /// Of all that a seal covers.
    fn sum(&self, place: &[u8], plain: &[u8]) -> [u8; SEAL_BYTES] {
        let mut state = self.key;
        for part in [place, plain] {
            state = mix(state, part.len() as u64);
            for piece in part.chunks(8) {
                let mut word = [0; 8];
                word[..piece.len()].copy_from_slice(piece);
                state = mix(state, u64::from_le_bytes(word));
            }
        }
        let mut sum = [0; SEAL_BYTES];
        self.fill(state, &mut sum);
        sum
    }

    fn fill(&self, seed: u64, bytes: &mut [u8]) {
        let mut prng = Prng::new(seed ^ self.key.rotate_left(32));
        for piece in bytes.chunks_mut(8) {
            let word = prng.next_u64().to_le_bytes();
            piece.iter_mut().zip(word).for_each(|(b, k)| *b ^= k);
        }
    }

    /// The plain bytes, wherever they were sealed: for whoever looks at a disk from outside.
    #[must_use]
    pub fn look(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_BYTES)?;
        let mut plain = rest.get(..sealed.len().checked_sub(SEAL_BYTES)?)?.to_vec();
        self.fill(u64::from_le_bytes(nonce[..8].try_into().expect("BUG: eight bytes")), &mut plain);
        Some(plain)
    }
}

/// The frame at the beginning of `bytes`, which are of a log file, and how many of them it takes; by what the formats say, not by the code
/// that reads them.
#[must_use]
pub fn frame_at(cipher: Option<SimCipher>, bytes: &Bytes) -> Option<(Frame, usize)> {
    let Some(cipher) = cipher else {
        let frame = Frame::decode(bytes).ok()?;
        let len = frame.bytes().len();
        return Some((frame, len));
    };
    let len = bytes.strip_prefix(b"PHLS")?.get(..4)?;
    let whole = 8 + u32::from_le_bytes(len.try_into().expect("BUG: four bytes")) as usize + SEAL_BYTES;
    let plain = Bytes::from(cipher.look(bytes.get(8..whole)?)?);
    Some((Frame::decode(&plain).ok()?, whole))
}

fn mix(state: u64, word: u64) -> u64 {
    Prng::new(state.rotate_left(17) ^ word).next_u64()
}

impl Cipher for SimCipher {
    fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, DiskError> {
        let sum = self.sum(place, plain);
        let mut out = sum[..NONCE_BYTES].to_vec();
        out.extend_from_slice(plain);
        self.fill(u64::from_le_bytes(sum[..8].try_into().expect("BUG: eight bytes")), &mut out[NONCE_BYTES..]);
        out.extend_from_slice(&sum[NONCE_BYTES..]);
        Ok(out)
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let plain = self.look(sealed)?;
        let sum = self.sum(place, &plain);
        let tag = &sealed[sealed.len() - (SEAL_BYTES - NONCE_BYTES)..];
        (sealed[..NONCE_BYTES] == sum[..NONCE_BYTES] && *tag == sum[NONCE_BYTES..]).then_some(plain)
    }
}
