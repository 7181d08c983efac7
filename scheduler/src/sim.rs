//! [`FakeRunner`] and [`Tape`]: a model and a client for tests and benches, without weights or a network.
//!
//! The fake model computes each token's K and V from everything it *reads through the block table*, and the logits from
//! that, so a wrong block, a missing copy, a chunk out of place or a prefix from another tenant shows as wrong text. It
//! also checks the runner contract from the other side and panics where the scheduler breaks it.

use crate::request::{Disconnected, EventSink, SeqEvent};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokenmill_models::runner::{Batch, BatchSeq, Geometry, Logits, ModelRunner, RunnerError, SeqId};

/// No sequence.
const NOBODY: u32 = u32::MAX;

/// What makes a sequence special to the fake model; part of its [`SeqId`], since a runner sees nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FakeSeq {
    /// Distinguishes sequences.
    pub number: u32,
    /// Goes into K and V, so that text computed from another tenant's blocks is wrong. Equal to the request's salt.
    pub salt: u16,
    /// All its logits are NaN.
    pub is_poisoned: bool,
}

impl FakeSeq {
    /// The id that carries this.
    #[must_use]
    pub fn id(self) -> SeqId {
        SeqId(u64::from(self.is_poisoned) << 63 | u64::from(self.salt) << 32 | u64::from(self.number))
    }

    fn of(id: SeqId) -> Self {
        let number = u32::try_from(id.0 & u64::from(u32::MAX)).expect("masked to 32 bits");
        let salt = u16::try_from(id.0 >> 32 & u64::from(u16::MAX)).expect("masked to 16 bits");
        Self { number, salt, is_poisoned: id.0 >> 63 == 1 }
    }
}

/// A model whose next token is a function of the whole context, as read from its own KV memory.
pub struct FakeRunner {
    geometry: Geometry,
    /// `[num_blocks, block_size]`, K and V of one token each.
    slots: Vec<u64>,
    /// `[num_blocks]`, which sequence of the batch writes to a block.
    writers: Vec<u32>,
    num_steps: u64,
    failing_steps: BTreeSet<u64>,
}

impl FakeRunner {
    /// A model of these sizes.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let num_slots = geometry.num_blocks as usize * geometry.block_size as usize;
        let writers = vec![NOBODY; geometry.num_blocks as usize];
        Self { geometry, slots: vec![0xdead; num_slots], writers, num_steps: 0, failing_steps: BTreeSet::new() }
    }

    /// Makes these steps fail, counted from 0; each leaves garbage in every slot that it should have written.
    #[must_use]
    pub fn failing_at(mut self, steps: impl IntoIterator<Item = u64>) -> Self {
        self.failing_steps = steps.into_iter().collect();
        self
    }

    fn slot(&self, batch: &Batch, seq: &BatchSeq, position: u32) -> usize {
        let block_size = self.geometry.block_size;
        let block = batch.block_tables[(seq.blocks.start + position / block_size) as usize];
        block.0 as usize * block_size as usize + (position % block_size) as usize
    }

    /// A digest of what stands in the slots of `positions`.
    fn read(&self, batch: &Batch, seq: &BatchSeq, salt: u16, positions: Range<u32>) -> u64 {
        let start = mix(u64::from(salt), 1 + u64::from(seq.is_long));
        positions.fold(start, |state, position| mix(state, self.slots[self.slot(batch, seq, position)]))
    }

    fn copy_blocks(&mut self, batch: &Batch) {
        let block_size = self.geometry.block_size;
        for copy in &batch.copies {
            assert!(copy.num_tokens > 0 && copy.num_tokens < block_size, "{copy:?} copies a part of a block");
            assert_ne!(copy.from, copy.to, "a copy has two ends");
            let from = copy.from.0 as usize * block_size as usize;
            let to = copy.to.0 as usize * block_size as usize;
            self.slots.copy_within(from..from + copy.num_tokens as usize, to);
        }
    }

    /// Panics if a slice is malformed or two sequences would disturb each other.
    fn check(&mut self, batch: &Batch) {
        let Geometry { block_size, max_batch_tokens, max_batch_seqs, max_logits_rows, .. } = self.geometry;
        assert!(batch.tokens.len() <= max_batch_tokens as usize, "{} tokens", batch.tokens.len());
        assert!(!batch.seqs.is_empty() && batch.seqs.len() <= max_batch_seqs as usize, "{} seqs", batch.seqs.len());
        assert!(batch.num_logits() <= max_logits_rows as usize, "{} rows", batch.num_logits());
        self.writers.fill(NOBODY);
        for (seq_idx, seq) in (0..).zip(&batch.seqs) {
            let num_tokens = seq.tokens.end - seq.tokens.start;
            assert!(seq.is_long || !self.geometry.context.is_long(seq.context_len), "{seq:?} is long");
            assert!(num_tokens > 0 && seq.num_logits <= num_tokens, "{seq:?}");
            let positions = &batch.positions[seq.tokens.start as usize..seq.tokens.end as usize];
            let first = seq.context_len - num_tokens;
            assert!(positions.iter().copied().eq(first..seq.context_len), "{seq:?} {positions:?}");
            assert_eq!(seq.blocks.end - seq.blocks.start, seq.context_len.div_ceil(block_size), "{seq:?}");
            for position in first..seq.context_len {
                let block = self.slot(batch, seq, position) / block_size as usize;
                let writer = std::mem::replace(&mut self.writers[block], seq_idx);
                assert!(writer == NOBODY || writer == seq_idx, "two sequences write to block {block}");
            }
        }
        for (seq_idx, seq) in (0..).zip(&batch.seqs) {
            let first_written = seq.context_len - (seq.tokens.end - seq.tokens.start);
            let num_unreached = self.geometry.context.first_reached(first_written) / block_size;
            let reached = seq.blocks.start + num_unreached;
            for block in &batch.block_tables[reached as usize..seq.blocks.end as usize] {
                let writer = self.writers[block.0 as usize];
                assert!(writer == NOBODY || writer == seq_idx, "a block that is written is shared");
            }
        }
    }
}

impl ModelRunner for FakeRunner {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), RunnerError> {
        self.check(batch);
        self.copy_blocks(batch);
        let vocab_size = self.geometry.vocab_size as usize;
        let fails = self.failing_steps.contains(&self.num_steps);
        self.num_steps += 1;
        let rows = logits.reset(batch.num_logits());
        let mut row_idx = 0;
        for seq in &batch.seqs {
            let FakeSeq { salt, is_poisoned, .. } = FakeSeq::of(seq.id);
            let first_written = seq.context_len - (seq.tokens.end - seq.tokens.start);
            let first_row = seq.context_len - seq.num_logits;
            for position in first_written..seq.context_len {
                let token = batch.tokens[(seq.tokens.start + position - first_written) as usize];
                let before = self.read(batch, seq, salt, self.geometry.context.first_reached(position)..position);
                let slot = self.slot(batch, seq, position);
                self.slots[slot] =
                    if fails { 0xbad } else { mix(before, u64::from(token) << 32 | u64::from(position)) };
                let state = mix(before, self.slots[slot]);
                if position >= first_row {
                    let row = &mut rows[row_idx * vocab_size..][..vocab_size];
                    fill_row(row, state, is_poisoned);
                    row_idx += 1;
                }
            }
        }
        if fails { Err(RunnerError::Backend("a fault was injected".to_owned())) } else { Ok(()) }
    }
}

/// Logits between −4 and 4.
fn fill_row(row: &mut [f32], state: u64, is_poisoned: bool) {
    for (id, logit) in (0..).zip(row) {
        let bits = u16::try_from(mix(state, id) >> 48).expect("16 bits are left");
        *logit = if is_poisoned { f32::NAN } else { f32::from(bits) / 8192.0 - 4.0 };
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x2545_f491_4f6c_dd1d);
    let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 29)
}

/// A client that records what it is sent, and may go away.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    shared: Arc<Mutex<TapeState>>,
}

#[derive(Debug, Default)]
struct TapeState {
    events: Vec<SeqEvent>,
    /// Sends that succeed before the client is found gone; `None`: it stays.
    sends_left: Option<usize>,
    is_gone: bool,
}

impl Tape {
    /// A client that goes away unnoticed after `num_events` events: the next send fails.
    #[must_use]
    pub fn leaving_after(num_events: usize) -> Self {
        let state = TapeState { sends_left: Some(num_events), ..TapeState::default() };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// The client goes away now, visibly.
    pub fn leave(&self) {
        self.with(|state| state.is_gone = true);
    }

    /// Whether the client has gone or a send has failed.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.with(|state| state.is_gone)
    }

    /// What was received so far.
    #[must_use]
    pub fn events(&self) -> Vec<SeqEvent> {
        self.with(|state| state.events.clone())
    }

    /// The engine's end of it.
    #[must_use]
    pub fn sink(&self) -> Box<dyn EventSink> {
        Box::new(self.clone())
    }

    fn with<T>(&self, read: impl FnOnce(&mut TapeState) -> T) -> T {
        read(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl EventSink for Tape {
    fn send(&mut self, event: SeqEvent) -> Result<(), Disconnected> {
        self.with(|state| {
            match &mut state.sends_left {
                Some(0) => state.is_gone = true,
                Some(left) => *left -= 1,
                None => {}
            }
            if state.is_gone {
                return Err(Disconnected);
            }
            state.events.push(event);
            Ok(())
        })
    }

    fn is_disconnected(&self) -> bool {
        self.with(|state| state.is_gone)
    }
}
