//! The contract between a scheduler and a model: ids, sizes, one batch in, rows of logits out.
//!
//! The scheduler deals in block *ids*; the runner owns block *memory*. Neither knows the other's trade.

use std::ops::Range;

/// Index of a token in the model's vocabulary.
pub type TokenId = u32;

/// Identity of one sequence, unique for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// Index of one KV block in a runner's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl BlockId {
    /// In a block table: a block that was given back because no token will reach it again.
    pub const LEFT_BEHIND: Self = Self(u32::MAX);
}

/// Sizes fixed when a runner is built. Everything is preallocated from these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks in all.
    pub num_blocks: u32,
    /// Tokens per step.
    pub max_batch_tokens: u32,
    /// Sequences per step.
    pub max_batch_seqs: u32,
    /// Rows of logits per step; at least `max_batch_seqs`.
    pub max_logits_rows: u32,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: u32,
    /// Entries of a row of logits.
    pub vocab_size: u32,
    /// How K and V hang on the context.
    pub context: ContextRules,
}

/// How the K and V of a sequence hang on its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextRules {
    /// A token reads K and V of itself and of the `window - 1` tokens before it at most; of its whole context if `None`.
    pub window: Option<u32>,
    /// Sequences of more tokens than this have other K and V, from their first token on; see [`BatchSeq::is_long`].
    pub switch_len: Option<u32>,
}

impl ContextRules {
    /// Every token reads its whole context, which is computed once.
    pub const PLAIN: Self = Self { window: None, switch_len: None };

    /// First position whose K and V the token at `position` reads.
    #[must_use]
    pub fn first_reached(&self, position: u32) -> u32 {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Whether a sequence of `num_tokens` tokens has the K and V of long ones.
    #[must_use]
    pub fn is_long(&self, num_tokens: u32) -> bool {
        self.switch_len.is_some_and(|switch_len| num_tokens > switch_len)
    }
}

impl Geometry {
    /// KV blocks that a sequence of `num_tokens` tokens occupies.
    #[must_use]
    pub fn num_blocks_for(&self, num_tokens: u32) -> u32 {
        num_tokens.div_ceil(self.block_size)
    }
}

/// Copies the K and V of the first `num_tokens` slots of one block to another, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Block that is read.
    pub from: BlockId,
    /// Block that is written.
    pub to: BlockId,
    /// Slots copied, counted from the block's start; less than `block_size`.
    pub num_tokens: u32,
}

/// Input of one step: sequences laid end to end. Cleared and refilled, never reallocated.
#[derive(Debug, Default)]
pub struct Batch {
    /// `[num_tokens]`
    pub tokens: Vec<TokenId>,
    /// `[num_tokens]`, position of each token in its sequence.
    pub positions: Vec<u32>,
    /// All block tables end to end.
    pub block_tables: Vec<BlockId>,
    /// `[num_seqs]`
    pub seqs: Vec<BatchSeq>,
    /// Carried out, in order, before anything else of the step.
    pub copies: Vec<BlockCopy>,
}

/// One sequence's share of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSeq {
    /// Whose tokens these are.
    pub id: SeqId,
    /// Into `tokens`; length 1 is a decode, more a prefill chunk.
    pub tokens: Range<u32>,
    /// Into `block_tables`; covers positions `0..context_len`. Blocks that no token of the slice reaches may be
    /// [`BlockId::LEFT_BEHIND`].
    pub blocks: Range<u32>,
    /// Tokens in the KV cache after this step.
    pub context_len: u32,
    /// Rows of logits wanted, for the last `num_logits` tokens of the slice: 0 for all but a prompt's last chunk, 1 to
    /// sample, more for the log-probabilities of a prompt.
    pub num_logits: u32,
    /// Whether the sequence, prompt and output so far, is longer than [`ContextRules::switch_len`]. All K and V in its
    /// blocks were computed with the same answer.
    pub is_long: bool,
}

impl Batch {
    /// An empty batch that never reallocates within `geometry`.
    #[must_use]
    pub fn with_capacity(geometry: &Geometry) -> Self {
        let num_tokens = geometry.max_batch_tokens as usize;
        let num_seqs = geometry.max_batch_seqs as usize;
        let blocks_per_seq = geometry.num_blocks_for(geometry.max_model_len) as usize;
        Self {
            tokens: Vec::with_capacity(num_tokens),
            positions: Vec::with_capacity(num_tokens),
            block_tables: Vec::with_capacity(num_seqs * blocks_per_seq),
            seqs: Vec::with_capacity(num_seqs),
            copies: Vec::with_capacity(num_seqs),
        }
    }

    /// Empties every list and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.block_tables.clear();
        self.seqs.clear();
        self.copies.clear();
    }

    /// Rows of logits that the sequences of this batch want in all.
    #[must_use]
    pub fn num_logits(&self) -> usize {
        self.seqs.iter().map(|seq| seq.num_logits as usize).sum()
    }
}

/// Output of one step: `[num_rows, vocab_size]`, f32, rows in batch order.
#[derive(Debug)]
pub struct Logits {
    data: Vec<f32>,
    vocab_size: usize,
    num_rows: usize,
}

impl Logits {
    /// Room for `geometry.max_logits_rows` rows; none is in use yet.
    #[must_use]
    pub fn with_capacity(geometry: &Geometry) -> Self {
        let vocab_size = geometry.vocab_size as usize;
        Self { data: vec![0.0; geometry.max_logits_rows as usize * vocab_size], vocab_size, num_rows: 0 }
    }

    /// Sets how many rows the step fills and hands them out, `[num_rows, vocab_size]`, with stale contents.
    ///
    /// # Panics
    /// When `num_rows` exceeds the capacity.
    pub fn reset(&mut self, num_rows: usize) -> &mut [f32] {
        assert!(num_rows * self.vocab_size <= self.data.len(), "{num_rows} rows of logits exceed the capacity");
        self.num_rows = num_rows;
        &mut self.data[..num_rows * self.vocab_size]
    }

    /// Rows filled by the last step.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Row `row_idx`, `[vocab_size]`; the sampler edits it in place.
    ///
    /// # Panics
    /// When `row_idx` is not below `num_rows`.
    pub fn row_mut(&mut self, row_idx: usize) -> &mut [f32] {
        assert!(row_idx < self.num_rows, "row {row_idx} of {} rows of logits", self.num_rows);
        &mut self.data[row_idx * self.vocab_size..][..self.vocab_size]
    }
}

/// Why a step failed. The step's sequences are lost; the runner stays usable.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The back end failed.
    #[error("the back end failed: {0}")]
    Backend(String),
}

/// Runs a decoder-only model one step at a time.
pub trait ModelRunner: Send {
    /// The sizes that this runner was built with; they never change.
    fn geometry(&self) -> Geometry;

    /// Carries out `batch.copies`, writes K and V of every token into its slot, and fills `logits` with
    /// [`Batch::num_logits`] rows in batch order.
    ///
    /// A row depends only on that sequence's tokens and on `is_long`, never on who shares the batch or on how its prefill was cut.
    ///
    /// # Errors
    /// See [`RunnerError`]; nothing about the batch may be assumed then.
    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), RunnerError>;
}
