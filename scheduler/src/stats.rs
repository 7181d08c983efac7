//! [`StepStats`] and [`StepTimes`]: what one step did, for metrics. The engine hands them to its observer.

use std::time::Duration;

/// What one step did and what it left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Sequences in the batch.
    pub num_seqs: u32,
    /// Tokens computed for sequences that needed more than one.
    pub num_prefill_tokens: u32,
    /// Tokens computed for sequences that needed just one.
    pub num_decode_tokens: u32,
    /// Tokens chosen.
    pub num_sampled_tokens: u32,
    /// Sequences that entered `running`.
    pub num_admitted: u32,
    /// Tokens of the admitted sequences, the base of the prefix cache's hit rate.
    pub num_prefix_query_tokens: u32,
    /// Of those, the tokens found in the prefix cache.
    pub num_prefix_hit_tokens: u32,
    /// Sequences put back for want of blocks.
    pub num_preemptions: u32,
    /// Sequences that ended with a stop token or at their length.
    pub num_finished: u32,
    /// Sequences stopped by the gateway or given up because their client has gone.
    pub num_aborted: u32,
    /// Sequences that failed.
    pub num_failed: u32,
    /// Requests refused on arrival: draining, queue full or not runnable.
    pub num_refused: u32,
    /// Sequences in `running` after the step.
    pub num_running: u32,
    /// Sequences in `waiting` after the step.
    pub num_waiting: u32,
    /// KV blocks of sequences.
    pub kv_blocks_used: u32,
    /// KV blocks without a user whose contents can be reused.
    pub kv_blocks_cached: u32,
    /// KV blocks that hold nothing; used, cached and free add up to all.
    pub kv_blocks_free: u32,
}

/// How long the parts of one step took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Taking commands and planning the batch.
    pub schedule: Duration,
    /// The model.
    pub forward: Duration,
    /// Choosing tokens, sending events, freeing.
    pub sample: Duration,
}
