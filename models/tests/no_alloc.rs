//! A step allocates nothing: not on the first of its kind after a warm-up, not for any mixture of prefill and decode.
//! A program of its own without the test harness, because the counter sees every thread.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use std::path::Path;

use common::alloc::{Allocated, Counting, measure};
use common::drive::options;
use tokenmill_models::runner::{Batch, BatchSeq, BlockCopy, BlockId, Logits, ModelRunner, SeqId};
use tokenmill_models::{LoadOptions, Quantize, load};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One sequence of a step: which, first position, tokens, rows of logits.
type Share = (u32, u32, u32, u32);

/// Steps of every kind: chunks with and without logits, decodes, both together, many rows of logits.
const STEPS: &[&[Share]] = &[
    &[(0, 0, 70, 0)],
    &[(0, 70, 30, 1), (1, 0, 110, 1)],
    &[(0, 100, 1, 1), (1, 110, 1, 1), (2, 0, 1, 1)],
    &[(0, 101, 1, 1), (1, 111, 8, 7), (2, 1, 100, 0)],
    &[(2, 101, 8, 0)],
    &[(0, 102, 1, 1), (1, 119, 1, 1), (2, 109, 1, 1), (3, 0, 120, 1)],
];

fn fill(batch: &mut Batch, shares: &[Share], with_copy: bool) {
    batch.clear();
    if with_copy {
        batch.copies.push(BlockCopy { from: BlockId(0), to: BlockId(31), num_tokens: 17 });
    }
    for (seq, start, num_tokens, num_logits) in shares {
        let end = start + num_tokens;
        let at = |len: usize| u32::try_from(len).unwrap();
        let (first_token, first_block) = (at(batch.tokens.len()), at(batch.block_tables.len()));
        batch.tokens.extend((*start..end).map(|position| (position * 31 + seq) % 64));
        batch.positions.extend(*start..end);
        batch.block_tables.extend((0..end.div_ceil(64)).map(|block| BlockId(seq * 4 + block)));
        batch.seqs.push(BatchSeq {
            id: SeqId(u64::from(*seq)),
            tokens: first_token..at(batch.tokens.len()),
            blocks: first_block..at(batch.block_tables.len()),
            context_len: end,
            num_logits: *num_logits,
            is_long: false,
        });
    }
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, quantize, num_threads) in [
        ("llama-biased", Quantize::None, 1),
        ("qwen2-tied", Quantize::Q8_0, 2),
        ("qwen3-sharded", Quantize::Q4_0, 2),
        ("olmoe-clipped", Quantize::None, 2),
        ("mixtral", Quantize::Q8_0, 1),
        ("gemma3", Quantize::None, 2),
        ("phi3-longrope", Quantize::None, 1),
    ] {
        let options = LoadOptions { num_threads, ..options(quantize) };
        let mut runner = load(&root.join(name), &options).unwrap().runner;
        let geometry = runner.geometry();
        let (mut batch, mut logits) = (Batch::with_capacity(&geometry), Logits::with_capacity(&geometry));
        fill(&mut batch, STEPS[0], false);
        runner.forward(&batch, &mut logits).unwrap();
        for round in 0..10 {
            for (step_idx, shares) in STEPS.iter().enumerate() {
                let (result, allocated) = measure(|| {
                    fill(&mut batch, shares, round % 2 == 0);
                    runner.forward(&batch, &mut logits)
                });
                result.unwrap();
                assert_eq!(allocated, Allocated { calls: 0, bytes: 0 }, "{name}, round {round}, step {step_idx}");
            }
        }
    }
}
