//! Rotary position embedding: a table of cosines and sines per step, and the rotation of one head.
//!
//! Numbers follow Hugging Face transformers: the angle is the product of an `f32` frequency and an `f32` position,
//! rounded to `f32`; its cosine and sine are rounded to `f32`, then scaled by the attention factor.

use crate::aligned::AlignedVec;

/// Cosines and sines for the tokens of one step. Sized once.
pub struct RopeTable {
    inv_freq: Vec<f32>,
    /// Empty unless long contexts have frequencies of their own.
    long_inv_freq: Vec<f32>,
    attention_factor: f32,
    max_tokens: usize,
    num_tokens: usize,
    /// `[max_tokens, inv_freq.len()]`
    cos: AlignedVec<f32>,
    /// `[max_tokens, inv_freq.len()]`
    sin: AlignedVec<f32>,
}

impl RopeTable {
    /// Room for `max_tokens` tokens. `inv_freq` is `[rotary_dim / 2]`, radians per position, after any scaling of long
    /// contexts; `attention_factor` multiplies cosines and sines (1 unless the scaling has one).
    #[must_use]
    pub fn new(max_tokens: usize, inv_freq: &[f32], attention_factor: f32) -> Self {
        let len = max_tokens * inv_freq.len();
        let (cos, sin) = (AlignedVec::zeroed(len), AlignedVec::zeroed(len));
        let (inv_freq, long_inv_freq) = (inv_freq.to_vec(), Vec::new());
        Self { inv_freq, long_inv_freq, attention_factor, max_tokens, num_tokens: 0, cos, sin }
    }

    /// Gives long contexts frequencies of their own, `[rotary_dim / 2]`; see [`RopeTable::set_long`].
    ///
    /// # Panics
    /// When there are not as many as of the others.
    #[must_use]
    pub fn with_long(mut self, inv_freq: Vec<f32>) -> Self {
        assert_eq!(inv_freq.len(), self.inv_freq.len(), "as many frequencies for long contexts as for short ones");
        self.long_inv_freq = inv_freq;
        self
    }

    /// Fills the table for tokens at `positions`.
    ///
    /// # Panics
    /// When there are more than `max_tokens`.
    pub fn set_positions(&mut self, positions: &[u32]) {
        assert!(positions.len() <= self.max_tokens, "{} positions, room for {}", positions.len(), self.max_tokens);
        self.num_tokens = positions.len();
        self.fill(0, positions, false);
    }

    /// Fills the rows from `first_token` on once more, with the frequencies of long contexts. Does nothing if there are
    /// none.
    ///
    /// # Panics
    /// When they are more than [`RopeTable::set_positions`] was given.
    pub fn set_long(&mut self, first_token: usize, positions: &[u32]) {
        assert!(first_token + positions.len() <= self.num_tokens, "tokens beyond {}", self.num_tokens);
        if !self.long_inv_freq.is_empty() {
            self.fill(first_token, positions, true);
        }
    }

    fn fill(&mut self, first_token: usize, positions: &[u32], is_long: bool) {
        let half = self.inv_freq.len();
        let frequencies = if is_long { &self.long_inv_freq } else { &self.inv_freq };
        for (token_idx, position) in (first_token..).zip(positions) {
            let row = token_idx * half..(token_idx + 1) * half;
            let (cos, sin) = (&mut self.cos[row.clone()], &mut self.sin[row]);
            for (i, inv_freq) in frequencies.iter().enumerate() {
                let angle = inv_freq * *position as f32;
                let (sine, cosine) = f64::from(angle).sin_cos();
                cos[i] = cosine as f32 * self.attention_factor;
                sin[i] = sine as f32 * self.attention_factor;
            }
        }
    }

    /// Tokens of the current step.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Leading elements of a head that are rotated.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }

    /// Cosines and sines of one token, each `[rotary_dim / 2]`.
    ///
    /// # Panics
    /// When `token_idx` is not below `num_tokens`.
    #[must_use]
    pub fn row(&self, token_idx: usize) -> (&[f32], &[f32]) {
        assert!(token_idx < self.num_tokens, "token {token_idx} of {}", self.num_tokens);
        let half = self.inv_freq.len();
        let row = token_idx * half..(token_idx + 1) * half;
        (&self.cos[row.clone()], &self.sin[row])
    }
}

/// Rotates one head in place (RoPE, Su et al. 2021, eq. 34), element `i` paired with `i + rotary_dim / 2` as in
/// Hugging Face's `rotate_half`.
///
/// `head` is `[head_dim]`, `cos` and `sin` are `[rotary_dim / 2]`; what lies beyond `rotary_dim` stays. Products and sum
/// are rounded one by one, as PyTorch does.
///
/// # Panics
/// When `cos` and `sin` differ in length or exceed half of the head.
#[inline]
pub fn rotate_neox_row(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    rotate_neox(head, cos, sin);
}

/// [`rotate_neox_row`], inlined into a task so that it is compiled for the task's instruction set.
#[inline(always)]
pub(crate) fn rotate_neox(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert!(sin.len() == half && 2 * half <= head.len(), "{half} rotations of a head of {}", head.len());
    let (first, second) = head[..2 * half].split_at_mut(half);
    for i in 0..half {
        let (a, b) = (first[i], second[i]);
        first[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_pairs_by_position_times_frequency() {
        let inv_freq: Vec<f32> = (0..8).map(|i| 10_000_f32.powf(-(i as f32) / 8.0)).collect();
        let mut table = RopeTable::new(3, &inv_freq, 1.0);
        table.set_positions(&[0, 5, 30_000]);
        for (token_idx, position) in [0_u32, 5, 30_000].into_iter().enumerate() {
            let mut head: Vec<f32> = (0..20).map(|i| i as f32 - 7.5).collect();
            let before = head.clone();
            let (cos, sin) = table.row(token_idx);
            rotate_neox_row(&mut head, cos, sin);
            for i in 0..8 {
                // The rounded angle is the specification, whatever its error.
                let angle = f64::from(inv_freq[i] * position as f32);
                let (a, b) = (f64::from(before[i]), f64::from(before[i + 8]));
                let exact = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
                assert!((f64::from(head[i]) - exact[0]).abs() < 3e-6, "{position} {i}");
                assert!((f64::from(head[i + 8]) - exact[1]).abs() < 3e-6, "{position} {i}");
            }
            assert_eq!(head[16..], before[16..], "beyond the rotary part");
        }
        let mut head = vec![1.5; 16];
        let (cos, sin) = table.row(0);
        rotate_neox_row(&mut head, cos, sin);
        assert_eq!(head, vec![1.5; 16], "position 0");
    }

    #[test]
    fn the_attention_factor_scales_the_result() {
        let mut table = RopeTable::new(1, &[0.0, 0.0], 1.25);
        table.set_positions(&[17]);
        assert_eq!(table.row(0), (&[1.25, 1.25][..], &[0.0, 0.0][..]));
    }

    #[test]
    fn long_contexts_have_their_own_frequencies() {
        let mut table = RopeTable::new(3, &[0.5], 1.0).with_long(vec![0.25]);
        table.set_positions(&[1, 2, 4]);
        table.set_long(1, &[2, 4]);
        let cosines: Vec<f32> = (0..3).map(|token_idx| table.row(token_idx).0[0]).collect();
        assert_eq!(cosines, [0.5_f64, 0.5, 1.0].map(|angle| angle.cos() as f32));
    }
}
