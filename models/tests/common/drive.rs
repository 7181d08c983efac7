//! [`Driver`]: a runner with the bookkeeping of a scheduler, as simple as can be.

use tokenmill_kernels::isa::Isa;
use tokenmill_models::runner::{Batch, BatchSeq, BlockId, Geometry, Logits, ModelRunner, SeqId, TokenId};
use tokenmill_models::{LoadOptions, Quantize};

/// Options that the golden models fit.
pub(crate) fn options(quantize: Quantize) -> LoadOptions {
    LoadOptions {
        isa: Isa::best(),
        num_threads: 1,
        quantize,
        kv_type: None,
        memory_bytes: 256 << 20,
        max_model_len: None,
        max_batch_tokens: 256,
        max_batch_seqs: 8,
    }
}

/// Runs whole prompts, each with blocks of its own that no other run uses at the same time.
pub(crate) struct Driver<R> {
    runner: R,
    geometry: Geometry,
    batch: Batch,
    logits: Logits,
}

/// A prompt on its way through the model.
struct Sequence<'a> {
    ids: &'a [TokenId],
    blocks: Vec<BlockId>,
    num_done: usize,
    is_long: bool,
}

impl<R: ModelRunner> Driver<R> {
    pub(crate) fn new(runner: R) -> Self {
        let geometry = runner.geometry();
        Self { batch: Batch::with_capacity(&geometry), logits: Logits::with_capacity(&geometry), runner, geometry }
    }

    /// Logits after every token of `ids`, computed in the given chunks (each cut further to what a step may return).
    pub(crate) fn all_logits(&mut self, ids: &[TokenId], chunks: &[usize]) -> Vec<Vec<f32>> {
        let mut seq = self.sequence(ids, 0);
        let mut rows = Vec::new();
        for chunk in chunks {
            let num_tokens = (*chunk).min(ids.len() - seq.num_done);
            // Logits of all rows need as many steps as they are more than a step returns: first the whole chunk, then
            // its last tokens once more, further back each time. Writing a token's K and V again changes nothing.
            let mut wanted = Vec::new();
            for end in (1..=num_tokens).rev().step_by(self.geometry.max_logits_rows as usize) {
                self.batch.clear();
                let num_logits = end.min(self.geometry.max_logits_rows as usize);
                self.push(&seq, end, num_logits);
                wanted.push(self.run());
            }
            rows.extend(wanted.into_iter().rev().flatten());
            seq.num_done += num_tokens;
        }
        rows
    }

    /// The last row of logits of each prompt, all of them in the same steps; prompt `i` in chunks of `chunks[i % 4]`.
    pub(crate) fn last_logits_together(&mut self, prompts: &[&[TokenId]], chunks: &[usize; 4]) -> Vec<Vec<f32>> {
        let mut seqs: Vec<Sequence<'_>> = Vec::new();
        for (ids, slot) in prompts.iter().zip(0..) {
            seqs.push(self.sequence(ids, slot));
        }
        let mut rows = vec![Vec::new(); prompts.len()];
        while seqs.iter().any(|seq| seq.num_done < seq.ids.len()) {
            self.batch.clear();
            let mut finishing = Vec::new();
            let mut budget = self.geometry.max_batch_tokens as usize;
            for (i, seq) in seqs.iter_mut().enumerate() {
                let left = seq.ids.len() - seq.num_done;
                let num_tokens = chunks[i % 4].min(left).min(budget);
                if num_tokens == 0 {
                    continue;
                }
                budget -= num_tokens;
                let is_last = num_tokens == left;
                self.push(seq, num_tokens, usize::from(is_last));
                seq.num_done += num_tokens;
                if is_last {
                    finishing.push(i);
                }
            }
            for (i, row) in finishing.into_iter().zip(self.run()) {
                rows[i] = row;
            }
        }
        rows
    }

    /// `num_tokens` greedy tokens after `prompt`.
    pub(crate) fn greedy(&mut self, prompt: &[TokenId], num_tokens: usize) -> Vec<TokenId> {
        let mut ids = prompt.to_vec();
        let mut blocks = self.sequence(&ids, 0).blocks;
        let mut num_done = 0;
        for _ in 0..num_tokens {
            let needed = self.geometry.num_blocks_for(u32::try_from(ids.len()).unwrap());
            blocks.extend((u32::try_from(blocks.len()).unwrap()..needed).map(BlockId));
            let is_long = self.geometry.context.is_long(u32::try_from(ids.len()).unwrap());
            if is_long && !self.geometry.context.is_long(u32::try_from(num_done).unwrap()) {
                num_done = 0;
            }
            let seq = Sequence { ids: &ids, blocks: blocks.clone(), num_done, is_long };
            self.batch.clear();
            self.push(&seq, ids.len() - num_done, 1);
            let row = self.run().pop().unwrap();
            num_done = ids.len();
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            ids.push(u32::try_from(best).unwrap());
        }
        ids.split_off(prompt.len())
    }

    /// Why a step over `ids` fails.
    pub(crate) fn failure(&mut self, ids: &[TokenId]) -> String {
        let seq = self.sequence(ids, 0);
        self.batch.clear();
        self.push(&seq, ids.len(), 1);
        self.runner.forward(&self.batch, &mut self.logits).unwrap_err().to_string()
    }

    /// A sequence with blocks that no other `slot` has, in an order that is not ascending.
    fn sequence<'a>(&self, ids: &'a [TokenId], slot: u32) -> Sequence<'a> {
        let num_blocks = self.geometry.num_blocks_for(u32::try_from(ids.len()).unwrap());
        let stride = self.geometry.num_blocks / self.geometry.max_batch_seqs;
        assert!(num_blocks <= stride, "{num_blocks} blocks for a prompt, {stride} for each");
        let blocks = (0..num_blocks).rev().map(|block| BlockId(slot * stride + block)).collect();
        let blocks = if slot == 0 { (0..num_blocks).map(BlockId).collect() } else { blocks };
        let is_long = self.geometry.context.is_long(u32::try_from(ids.len()).unwrap());
        Sequence { ids, blocks, num_done: 0, is_long }
    }

    fn push(&mut self, seq: &Sequence<'_>, num_tokens: usize, num_logits: usize) {
        let batch = &mut self.batch;
        let first_token = u32::try_from(batch.tokens.len()).unwrap();
        let first_block = u32::try_from(batch.block_tables.len()).unwrap();
        let range = seq.num_done..seq.num_done + num_tokens;
        batch.tokens.extend(&seq.ids[range.clone()]);
        batch.positions.extend(range.clone().map(|position| u32::try_from(position).unwrap()));
        batch.block_tables.extend(&seq.blocks);
        batch.seqs.push(BatchSeq {
            id: SeqId(0),
            tokens: first_token..u32::try_from(batch.tokens.len()).unwrap(),
            blocks: first_block..u32::try_from(batch.block_tables.len()).unwrap(),
            context_len: u32::try_from(range.end).unwrap(),
            num_logits: u32::try_from(num_logits).unwrap(),
            is_long: seq.is_long,
        });
    }

    fn run(&mut self) -> Vec<Vec<f32>> {
        self.runner.forward(&self.batch, &mut self.logits).unwrap();
        (0..self.logits.num_rows()).map(|row| self.logits.row_mut(row).to_vec()).collect()
    }
}
