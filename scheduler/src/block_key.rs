//! [`BlockKey`]: the identity of a run of tokens from a sequence's start to the end of one block.
//!
//! Chained: the key of a block covers the key of the block before it, and the first one covers the tenant's salt, so
//! equal keys mean equal tokens from the very start under the same salt. The hash is `SipHash-2-4` with 128 bits
//! (Aumasson and Bernstein 2012) under a secret key, so nobody outside can construct two runs with one key; the block
//! pool compares the tokens all the same.

use tokenmill_models::runner::TokenId;

/// Names the tokens from a sequence's start to the end of one block, under one salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockKey(u128);

impl BlockKey {
    /// A key that stands for nothing yet.
    pub(crate) const NONE: BlockKey = BlockKey(0);

    /// Which of `num_buckets` (a power of two) this key belongs to.
    pub(crate) fn bucket(self, num_buckets: usize) -> usize {
        debug_assert!(num_buckets.is_power_of_two(), "buckets are selected by a mask");
        let low = u32::try_from(self.0 & u128::from(u32::MAX)).expect("masked to 32 bits");
        low as usize & (num_buckets - 1)
    }
}

/// Makes block keys under one secret.
#[derive(Clone, Copy)]
pub(crate) struct BlockKeyHasher {
    secret: [u64; 2],
}

impl BlockKeyHasher {
    /// `secret` should be random per process, so that keys cannot be predicted.
    #[must_use]
    pub(crate) fn new(secret: [u64; 2]) -> Self {
        Self { secret }
    }

    /// The key that stands before the first block of every sequence with this salt.
    #[must_use]
    pub(crate) fn root(&self, salt: u64) -> BlockKey {
        let mut state = SipState::new(self.secret);
        state.word(salt);
        BlockKey(state.finish(8, 0))
    }

    /// The key of a block that holds `tokens` and follows `parent`.
    #[must_use]
    pub(crate) fn child(&self, parent: BlockKey, tokens: &[TokenId]) -> BlockKey {
        let [first, second] = halves(parent.0);
        let mut state = SipState::new(self.secret);
        state.word(first);
        state.word(second);
        let pairs = tokens.chunks_exact(2);
        let rest = pairs.remainder().first().copied().unwrap_or(0);
        for pair in pairs {
            state.word(u64::from(pair[0]) | u64::from(pair[1]) << 32);
        }
        BlockKey(state.finish(16 + 4 * tokens.len(), u64::from(rest)))
    }
}

fn halves(value: u128) -> [u64; 2] {
    let low = u64::try_from(value & u128::from(u64::MAX)).expect("masked to 64 bits");
    let high = u64::try_from(value >> 64).expect("64 bits are left");
    [low, high]
}

/// The four words of `SipHash`, fed with little-endian 64-bit words.
struct SipState {
    v: [u64; 4],
}

impl SipState {
    fn new([k0, k1]: [u64; 2]) -> Self {
        let v0 = k0 ^ 0x736f_6d65_7073_6575;
        // The 128-bit variant differs in this 0xee and in the finish.
        let v1 = k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee;
        Self { v: [v0, v1, k0 ^ 0x6c79_6765_6e65_7261, k1 ^ 0x7465_6462_7974_6573] }
    }

    fn rounds(&mut self, count: usize) {
        let [mut v0, mut v1, mut v2, mut v3] = self.v;
        for _ in 0..count {
            v0 = v0.wrapping_add(v1);
            v2 = v2.wrapping_add(v3);
            v1 = v1.rotate_left(13) ^ v0;
            v3 = v3.rotate_left(16) ^ v2;
            v0 = v0.rotate_left(32);
            v2 = v2.wrapping_add(v1);
            v0 = v0.wrapping_add(v3);
            v1 = v1.rotate_left(17) ^ v2;
            v3 = v3.rotate_left(21) ^ v0;
            v2 = v2.rotate_left(32);
        }
        self.v = [v0, v1, v2, v3];
    }

    fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.rounds(2);
        self.v[0] ^= word;
    }

    /// `rest` holds the bytes after the last whole word; `num_bytes` counts the whole message.
    fn finish(mut self, num_bytes: usize, rest: u64) -> u128 {
        let length = u64::try_from(num_bytes & 0xff).expect("masked to 8 bits");
        self.word(rest | length << 56);
        self.v[2] ^= 0xee;
        self.rounds(4);
        let low = self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3];
        self.v[1] ^= 0xdd;
        self.rounds(4);
        let high = self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3];
        u128::from(low) | u128::from(high) << 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the reference vectors: bytes 00 01 … 0f.
    const SECRET: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn equals_the_reference_vectors() {
        let empty = SipState::new(SECRET).finish(0, 0);
        assert_eq!(empty.to_be_bytes(), *b"\x93\x02\x55\xc7\x14\x72\xf6\x6d\xe6\xa8\x25\xba\x04\x7f\x81\xa3");
        let one_byte = SipState::new(SECRET).finish(1, 0);
        assert_eq!(one_byte.to_be_bytes(), *b"\x45\xfc\x22\x9b\x11\x59\x76\x34\x44\xaf\x99\x6b\xd8\xc1\x87\xda");
    }

    #[test]
    fn every_part_of_the_chain_changes_the_key() {
        let hasher = BlockKeyHasher::new(SECRET);
        let root = hasher.root(1);
        let child = hasher.child(root, &[1, 2, 3]);
        assert_eq!(child, hasher.child(hasher.root(1), &[1, 2, 3]));
        assert_ne!(child, hasher.child(hasher.root(2), &[1, 2, 3]), "another salt");
        assert_ne!(child, hasher.child(root, &[1, 2, 4]), "another last token");
        assert_ne!(child, hasher.child(root, &[1, 2]), "fewer tokens");
        assert_ne!(child, hasher.child(root, &[1, 2, 3, 0]), "one zero more");
        assert_ne!(child, hasher.child(child, &[1, 2, 3]), "another parent");
        assert_ne!(child, BlockKeyHasher::new([0, 0]).child(root, &[1, 2, 3]), "another secret");
    }
}
