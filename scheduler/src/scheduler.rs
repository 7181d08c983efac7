//! [`Scheduler`]: decides which tokens each step computes.
//!
//! There is no prefill phase and no decode phase, only tokens still to compute. The policy in full: running sequences
//! that need one token, then the other running ones, then waiting ones, each oldest first, within the step's budget.
//! If a running sequence finds no block, the youngest running one gives its blocks back and waits again, at the front.
//! Nobody is admitted in a step that preempted.
//!
//! While some sequence decodes, at most `max_prefill_tokens_with_decodes` tokens of a step belong to prompts, so a long
//! prompt does not stall the streams; and places are kept free for `min_prefill_tokens`, so the streams do not starve
//! the prompts.
//!
//! Invariants: `running` and `waiting` together are in order of arrival; the oldest running sequence can always go on,
//! so every step makes progress. Deals in block ids only; owned by `engine`.

use crate::kv_cache::{KvCacheManager, PrefixCache};
use crate::request::{FinishReason, SeqError, SeqEvent, TokenLogprobs};
use crate::sequence::{End, Sequence};
use crate::stats::StepStats;
use std::collections::VecDeque;
use tokenmill_models::runner::{Batch, BatchSeq, BlockCopy, Geometry, SeqId, TokenId};
use tracing::{debug, trace};

/// Sequences per block kept free at an admission, so that those running can go on for a while without preempting.
const RUNNING_PER_SPARE_BLOCK: usize = 8;

/// The scheduler's settings, apart from the runner's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Sequences in `waiting` at most.
    pub max_waiting: usize,
    /// Prompt tokens per step at most while some sequence decodes.
    pub max_prefill_tokens_with_decodes: u32,
    /// Tokens per step kept for prompts: limits how many sequences run.
    pub min_prefill_tokens: u32,
    /// Reuse of K and V across sequences.
    pub prefix_cache: PrefixCache,
}

/// What the sampler found for one sequence of the batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampled {
    /// No logits were asked for, or none to sample from.
    Nothing,
    /// The next token.
    Token {
        /// It.
        id: TokenId,
        /// Present if `num_logprobs` was set.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The sequence cannot go on.
    Failed(SeqError),
}

/// What is left of a step's limits while it is planned.
struct Budget {
    tokens: u32,
    prefill_tokens: u32,
    rows: u32,
}

/// Which sequences run, and in which order.
pub struct Scheduler {
    geometry: Geometry,
    policy: Policy,
    max_running: usize,
    kv: KvCacheManager,
    /// Oldest first; preempted ones at the front.
    waiting: VecDeque<Box<Sequence>>,
    /// Oldest first.
    #[expect(clippy::vec_box, reason = "sequences move between the queues, and only their pointers should")]
    running: Vec<Box<Sequence>>,
    /// `[batch.seqs.len()]`, indices into `running`.
    scheduled: Vec<usize>,
    copies: Vec<BlockCopy>,
    stats: StepStats,
}

impl Scheduler {
    /// A scheduler with nothing to do, for a runner of this geometry.
    ///
    /// # Panics
    /// When the geometry leaves no room for a single sequence.
    #[must_use]
    pub fn new(geometry: Geometry, policy: Policy) -> Self {
        let Geometry { max_batch_tokens, max_batch_seqs, max_logits_rows, .. } = geometry;
        assert!(max_batch_tokens > 0 && max_batch_seqs > 0, "a step has room for a sequence");
        assert!(max_logits_rows >= max_batch_seqs, "{max_logits_rows} rows of logits for {max_batch_seqs} sequences");
        let max_decodes = max_batch_tokens.saturating_sub(policy.min_prefill_tokens).max(1);
        let max_running = max_batch_seqs.min(max_decodes) as usize;
        Self {
            geometry,
            policy,
            max_running,
            kv: KvCacheManager::new(&geometry, policy.prefix_cache),
            // A preempted sequence returns to a queue that may be full.
            waiting: VecDeque::with_capacity(policy.max_waiting + max_running),
            running: Vec::with_capacity(max_running),
            scheduled: Vec::with_capacity(max_running),
            copies: Vec::with_capacity(max_running),
            stats: StepStats::default(),
        }
    }

    /// The sizes it plans for.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether any sequence is running or waiting.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// Whether [`Scheduler::add`] would exceed the queue's bound.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= self.policy.max_waiting
    }

    /// Queues a sequence behind all others.
    ///
    /// # Panics
    /// When the queue is full; ask [`Scheduler::is_full`] first.
    pub fn add(&mut self, seq: Sequence) {
        assert!(!self.is_full(), "{} sequences wait already", self.waiting.len());
        self.waiting.push_back(Box::new(seq));
    }

    /// Stops a sequence in whatever state it is, frees its blocks and sends `Finished(Abort)`. False if it has ended.
    pub fn abort(&mut self, id: SeqId) -> bool {
        let seq = if let Some(idx) = self.running.iter().position(|seq| seq.id == id) {
            self.running.remove(idx)
        } else if let Some(idx) = self.waiting.iter().position(|seq| seq.id == id) {
            self.waiting.remove(idx).expect("the position was just found")
        } else {
            return false;
        };
        self.drop_aborted(seq);
        true
    }

    fn drop_aborted(&mut self, mut seq: Box<Sequence>) {
        debug!(seq = seq.id.0, num_tokens = seq.len(), gone = seq.is_gone, "aborted");
        self.kv.free(&mut seq);
        self.stats.num_aborted += 1;
        seq.finish(End::Finished(FinishReason::Abort));
    }

    /// Counts a request that was refused before it became a sequence.
    pub(crate) fn count_refused(&mut self) {
        self.stats.num_refused += 1;
    }

    /// Gives up the sequences whose clients have gone.
    fn sweep_gone(&mut self) {
        let mut idx = 0;
        while idx < self.running.len() {
            if self.running[idx].poll_gone() {
                let seq = self.running.remove(idx);
                self.drop_aborted(seq);
            } else {
                idx += 1;
            }
        }
        let mut idx = 0;
        while idx < self.waiting.len() {
            if self.waiting[idx].poll_gone() {
                let seq = self.waiting.remove(idx).expect("below the length");
                self.drop_aborted(seq);
            } else {
                idx += 1;
            }
        }
    }

    /// Fills `batch` with the next step. It is empty only if there is no work.
    pub fn schedule(&mut self, batch: &mut Batch) {
        self.sweep_gone();
        self.copies.clear();
        let num_decodes = self.running.iter().filter(|seq| seq.num_pending_tokens() == 1).count();
        let max_prefill = match num_decodes {
            0 => self.geometry.max_batch_tokens,
            _ => self.policy.max_prefill_tokens_with_decodes.max(1),
        };
        let mut budget = Budget {
            tokens: self.geometry.max_batch_tokens,
            prefill_tokens: max_prefill,
            rows: self.geometry.max_logits_rows,
        };
        let num_preempted = self.stats.num_preemptions;
        self.plan_running(&mut budget, |seq| seq.num_pending_tokens() == 1);
        self.plan_running(&mut budget, |seq| seq.num_pending_tokens() > 1);
        if self.stats.num_preemptions == num_preempted {
            self.admit(&mut budget);
        }
        self.fill(batch);
        if batch.seqs.is_empty() {
            // Everybody who was admitted turned out to be gone, so no commit will follow.
            self.kv.unpin();
        }
    }

    /// Plans those running sequences that `belongs` selects, oldest first.
    fn plan_running(&mut self, budget: &mut Budget, belongs: impl Fn(&Sequence) -> bool) {
        let mut idx = 0;
        while idx < self.running.len() {
            if belongs(&self.running[idx]) {
                self.plan_one(idx, budget);
            }
            idx += 1;
        }
    }

    /// Plans one running sequence; preempts from the young end while there is no room, itself last.
    fn plan_one(&mut self, idx: usize, budget: &mut Budget) {
        let seq = &self.running[idx];
        let is_prefill = seq.num_pending_tokens() > 1;
        let tokens_left = if is_prefill { budget.tokens.min(budget.prefill_tokens) } else { budget.tokens };
        let start = seq.num_computed_tokens;
        let (wanted, _) = seq.chunk_from(start, tokens_left, budget.rows);
        if wanted == 0 {
            return;
        }
        while idx < self.running.len() {
            let seq = &mut self.running[idx];
            // A shorter chunk is better than throwing away what a younger sequence has computed.
            let room = self.kv.max_coverage(seq).saturating_sub(start);
            let (num_tokens, num_rows) = seq.chunk_from(start, wanted.min(room), budget.rows);
            if num_tokens > 0 {
                self.kv.grow(seq, start + num_tokens).expect("coverage was asked for");
                plan(seq, num_tokens, num_rows, is_prefill, budget);
                return;
            }
            self.preempt_youngest(budget);
        }
    }

    fn preempt_youngest(&mut self, budget: &mut Budget) {
        let mut seq = self.running.pop().expect("the caller holds an index into running");
        debug!(seq = seq.id.0, num_blocks = seq.blocks.len(), "preempted");
        // What was planned for it in this step is available again.
        budget.tokens += seq.num_scheduled_tokens;
        budget.rows += seq.num_scheduled_rows;
        seq.num_scheduled_tokens = 0;
        seq.num_scheduled_rows = 0;
        self.kv.free(&mut seq);
        self.stats.num_preemptions += 1;
        self.waiting.push_front(seq);
    }

    /// Moves waiting sequences to `running` while all their tokens find room.
    fn admit(&mut self, budget: &mut Budget) {
        while self.running.len() < self.max_running && budget.rows > 0 {
            let tokens_left = budget.tokens.min(budget.prefill_tokens);
            let num_reserved = self.num_reserved_blocks();
            let Some(seq) = self.waiting.front_mut() else { break };
            if tokens_left == 0 {
                break;
            }
            seq.reserve(&self.geometry);
            let Ok(prefix) = self.kv.attach_prefix(seq, num_reserved) else { break };
            let mut seq = self.waiting.pop_front().expect("it was just looked at");
            if !std::mem::replace(&mut seq.has_started, true) {
                seq.emit(SeqEvent::Started { num_cached_tokens: prefix.num_tokens });
            }
            if seq.is_gone {
                // The copy into its last block will not be carried out, so nothing of it may be offered.
                self.kv.discard(&mut seq);
                self.drop_aborted(seq);
                continue;
            }
            trace!(seq = seq.id.0, num_tokens = seq.len(), num_cached_tokens = prefix.num_tokens, "admitted");
            self.copies.extend(prefix.copy);
            let (num_tokens, num_rows) = seq.chunk_from(prefix.num_tokens, tokens_left, budget.rows);
            assert!(num_tokens > 0, "a budget of at least one token and one row plans at least one token");
            self.kv.grow(&mut seq, prefix.num_tokens + num_tokens).expect("attaching made sure of the room");
            self.stats.num_admitted += 1;
            self.stats.num_prefix_query_tokens += seq.len();
            self.stats.num_prefix_hit_tokens += prefix.num_tokens;
            plan(&mut seq, num_tokens, num_rows, true, budget);
            self.running.push(seq);
        }
    }

    /// Blocks that the running sequences will want soon: the rest of their prompts, and some to go on.
    fn num_reserved_blocks(&self) -> u32 {
        let missing: u32 = self.running.iter().map(|seq| self.kv.num_missing(seq)).sum();
        let spare = self.running.len().div_ceil(RUNNING_PER_SPARE_BLOCK);
        missing + u32::try_from(spare).expect("at most the number of sequences")
    }

    /// Writes the plan into the batch, decodes first.
    fn fill(&mut self, batch: &mut Batch) {
        batch.clear();
        batch.copies.extend_from_slice(&self.copies);
        self.scheduled.clear();
        for wants_decode in [true, false] {
            for (idx, seq) in self.running.iter().enumerate() {
                let is_decode = seq.num_pending_tokens() == 1;
                if seq.num_scheduled_tokens == 0 || is_decode != wants_decode {
                    continue;
                }
                push_slice(seq, &self.geometry, batch);
                self.scheduled.push(idx);
                let stats = &mut self.stats;
                let counter = if is_decode { &mut stats.num_decode_tokens } else { &mut stats.num_prefill_tokens };
                *counter += seq.num_scheduled_tokens;
            }
        }
        self.stats.num_seqs = len_u32(&batch.seqs);
    }

    /// The sequence at `batch_idx` of the batch that was scheduled last.
    pub(crate) fn scheduled_mut(&mut self, batch_idx: usize) -> &mut Sequence {
        &mut self.running[self.scheduled[batch_idx]]
    }

    /// Applies a step's result, `sampled` in batch order: appends tokens, sends events, finishes, frees.
    pub fn commit(&mut self, batch: &Batch, sampled: &mut [Sampled]) {
        assert_eq!(sampled.len(), batch.seqs.len(), "one result for each sequence of the batch");
        for ((slice, &idx), sampled) in batch.seqs.iter().zip(&self.scheduled).zip(sampled) {
            let seq = &mut self.running[idx];
            let sampled = std::mem::replace(sampled, Sampled::Nothing);
            if let Sampled::Failed(error) = sampled {
                // What made the logits useless may stand in the cache too.
                self.kv.discard(seq);
                seq.end = Some(End::Failed(error));
                continue;
            }
            seq.num_computed_tokens = slice.context_len;
            self.kv.commit(seq);
            self.kv.leave_behind(seq);
            match sampled {
                Sampled::Nothing if seq.num_pending_tokens() == 0 => {
                    seq.end = Some(End::Finished(FinishReason::Length));
                }
                Sampled::Nothing => {}
                Sampled::Token { id, logprobs } => {
                    self.stats.num_sampled_tokens += 1;
                    seq.tokens.push(id);
                    seq.emit(SeqEvent::Token { id, logprobs });
                    seq.end = finish_reason(seq, id).map(End::Finished);
                    if seq.end.is_none() && self.geometry.context.is_long(seq.len()) != seq.is_long {
                        self.kv.free(seq);
                        seq.become_long();
                    }
                }
                Sampled::Failed(_) => unreachable!("handled above"),
            }
        }
        self.kv.unpin();
        self.remove_ended();
    }

    /// The runner failed: every sequence of the batch fails with `error`, the others are untouched.
    pub fn fail_batch(&mut self, error: &SeqError) {
        for &idx in &self.scheduled {
            let seq = &mut self.running[idx];
            self.kv.discard(seq);
            seq.end = Some(End::Failed(error.clone()));
        }
        self.kv.unpin();
        self.remove_ended();
    }

    /// Takes the sequences that have ended, or whose client has gone, out of `running`.
    fn remove_ended(&mut self) {
        let mut idx = 0;
        while idx < self.running.len() {
            let seq = &mut self.running[idx];
            seq.num_scheduled_tokens = 0;
            seq.num_scheduled_rows = 0;
            if seq.end.is_none() && !seq.is_gone {
                idx += 1;
                continue;
            }
            let mut seq = self.running.remove(idx);
            let Some(end) = seq.end.take() else {
                self.drop_aborted(seq);
                continue;
            };
            match end {
                End::Finished(_) => self.stats.num_finished += 1,
                End::Failed(_) => self.stats.num_failed += 1,
            }
            // Blocks first: who sees the last event finds them free.
            self.kv.free(&mut seq);
            seq.finish(end);
        }
        self.scheduled.clear();
    }

    /// What happened since the last call, with the state that is left.
    pub fn take_stats(&mut self) -> StepStats {
        let mut stats = std::mem::take(&mut self.stats);
        stats.num_running = len_u32(&self.running);
        stats.num_waiting = u32::try_from(self.waiting.len()).expect("bounded by the policy");
        stats.kv_blocks_used = self.kv.num_used();
        stats.kv_blocks_cached = self.kv.num_cached();
        stats.kv_blocks_free = self.kv.num_free();
        stats
    }

    /// Panics where the books of blocks, sequences and limits disagree.
    pub fn check_integrity(&self) {
        let live = self.running.iter().chain(&self.waiting).map(|seq| &**seq);
        self.kv.check_integrity(live);
        assert!(self.running.len() <= self.max_running, "{} sequences run", self.running.len());
        assert!(self.waiting.iter().all(|seq| seq.blocks.is_empty()), "a waiting sequence has no blocks");
        assert!(
            self.running.iter().all(|seq| seq.num_pending_tokens() > 0),
            "a running sequence has tokens to compute"
        );
    }
}

/// Enters a chunk into the plan and takes it from the budget.
fn plan(seq: &mut Sequence, num_tokens: u32, num_rows: u32, is_prefill: bool, budget: &mut Budget) {
    seq.num_scheduled_tokens = num_tokens;
    seq.num_scheduled_rows = num_rows;
    budget.tokens -= num_tokens;
    budget.rows -= num_rows;
    if is_prefill {
        budget.prefill_tokens -= num_tokens;
    }
}

/// Appends one sequence's planned chunk to the batch.
fn push_slice(seq: &Sequence, geometry: &Geometry, batch: &mut Batch) {
    let start = seq.num_computed_tokens;
    let context_len = start + seq.num_scheduled_tokens;
    let num_blocks = geometry.num_blocks_for(context_len) as usize;
    let first_token = len_u32(&batch.tokens);
    let first_block = len_u32(&batch.block_tables);
    batch.tokens.extend_from_slice(&seq.tokens[start as usize..context_len as usize]);
    batch.positions.extend(start..context_len);
    batch.block_tables.extend_from_slice(&seq.blocks[..num_blocks]);
    batch.seqs.push(BatchSeq {
        id: seq.id,
        tokens: first_token..len_u32(&batch.tokens),
        blocks: first_block..len_u32(&batch.block_tables),
        context_len,
        num_logits: seq.num_scheduled_rows,
        is_long: seq.is_long,
    });
}

fn finish_reason(seq: &Sequence, last: TokenId) -> Option<FinishReason> {
    if seq.sampler.params().stop_token_ids.contains(&last) {
        return Some(FinishReason::Stop);
    }
    (seq.len() >= seq.max_len).then_some(FinishReason::Length)
}

fn len_u32<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).expect("bounded by the geometry")
}
