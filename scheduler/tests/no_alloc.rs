//! After warm-up a step allocates nothing: counted by the global allocator over a few hundred mixed steps.
#![expect(unsafe_code, reason = "a counting allocator implements an unsafe trait")]

use crossbeam_channel::bounded;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use tokenmill_models::runner::{ContextRules, Geometry, SeqId, TokenId};
use tokenmill_scheduler::engine::{Engine, EngineLimits};
use tokenmill_scheduler::request::{Command, Disconnected, EventSink, Request, SamplingParams, SeqEvent};
use tokenmill_scheduler::sim::FakeRunner;
use tokenmill_scheduler::stats::StepStats;

thread_local! {
    /// Per thread, so that the test harness does not disturb the count.
    static NUM_ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NUM_ALLOCATIONS.set(NUM_ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises to us, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        NUM_ALLOCATIONS.set(NUM_ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct NullSink;

impl EventSink for NullSink {
    fn send(&mut self, _: SeqEvent) -> Result<(), Disconnected> {
        Ok(())
    }
}

/// Every way of sampling, in turn.
fn sampling(number: u32) -> SamplingParams {
    let base = SamplingParams { max_tokens: 60 + number * 20, seed: u64::from(number), ..SamplingParams::default() };
    match number % 6 {
        0 => SamplingParams { temperature: 0.0, ..base },
        1 => SamplingParams { top_p: 0.9, repetition_penalty: 1.1, ..base },
        2 => SamplingParams { top_k: 20, top_p: 0.7, presence_penalty: 0.2, ..base },
        3 => SamplingParams { min_p: 0.1, frequency_penalty: 0.2, temperature: 0.7, ..base },
        4 => SamplingParams { logit_bias: vec![(1, 3.0)], stop_token_ids: vec![2], min_tokens: 500, ..base },
        _ => base,
    }
}

#[test]
fn a_step_allocates_nothing_after_warm_up() {
    // Too few blocks for all, so that sequences are preempted and come back; prompts that share prefixes.
    let geometry = Geometry {
        block_size: 16,
        num_blocks: 70,
        max_batch_tokens: 64,
        max_batch_seqs: 12,
        max_logits_rows: 16,
        max_model_len: 600,
        vocab_size: 3000,
        context: ContextRules::PLAIN,
    };
    let (commands, receiver) = bounded(64);
    let limits = EngineLimits { max_prefill_tokens_with_decodes: 16, ..EngineLimits::default() };
    let mut engine = Engine::new(FakeRunner::new(geometry), limits, receiver, Box::new(|_, _| {}));
    for number in 0..12 {
        let shared = 0..20 * (number % 3);
        let prompt: Vec<TokenId> = shared.chain(number * 200..number * 200 + 30).collect();
        let sampling = sampling(number);
        let request =
            Request { id: SeqId(u64::from(number)), prompt, sampling, cache_salt: 0, sink: Box::new(NullSink) };
        commands.send(Command::Add(Box::new(request))).unwrap();
    }
    // Warm-up: until all have been admitted once.
    let mut num_admitted = 0;
    while num_admitted < 12 {
        num_admitted += engine.step().num_admitted;
    }
    let before = NUM_ALLOCATIONS.get();
    let mut sum = StepStats::default();
    for _ in 0..200 {
        let stats = engine.step();
        sum.num_preemptions += stats.num_preemptions;
        sum.num_prefill_tokens += stats.num_prefill_tokens;
        sum.num_prefix_hit_tokens += stats.num_prefix_hit_tokens;
        sum.num_sampled_tokens += stats.num_sampled_tokens;
        sum.num_finished += stats.num_finished;
    }
    assert_eq!(NUM_ALLOCATIONS.get() - before, 0, "{sum:?}");
    let StepStats { num_preemptions, num_prefill_tokens, num_prefix_hit_tokens, num_finished, .. } = sum;
    let is_mixed = [num_preemptions, num_prefill_tokens, num_prefix_hit_tokens, num_finished].iter().all(|&n| n > 0);
    assert!(is_mixed && sum.num_sampled_tokens > 500, "not every kind of step was seen: {sum:?}");
}
