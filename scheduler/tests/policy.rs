//! The scheduler's policy in plain numbers: what goes into each step, who gives way, what is reused, what is freed.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use tokenmill_models::runner::{Batch, ContextRules, Geometry, SeqId, TokenId};
use tokenmill_scheduler::kv_cache::PrefixCache;
use tokenmill_scheduler::request::{FinishReason, Request, SamplingParams, SeqError, SeqEvent};
use tokenmill_scheduler::scheduler::{Policy, Sampled, Scheduler};
use tokenmill_scheduler::sequence::Sequence;
use tokenmill_scheduler::sim::Tape;
use tokenmill_scheduler::stats::StepStats;

const GEOMETRY: Geometry = Geometry {
    block_size: 4,
    num_blocks: 64,
    max_batch_tokens: 16,
    max_batch_seqs: 4,
    max_logits_rows: 8,
    max_model_len: 64,
    vocab_size: 1000,
    context: ContextRules::PLAIN,
};
const POLICY: Policy = Policy {
    max_waiting: 8,
    max_prefill_tokens_with_decodes: 6,
    min_prefill_tokens: 2,
    prefix_cache: PrefixCache::On { secret: [3, 4] },
};

/// A scheduler without a model: every token it asks for is the next of 500, 501, …
struct Bench {
    scheduler: Scheduler,
    batch: Batch,
    next_token: TokenId,
}

/// One slice of a step: sequence, tokens, rows of logits.
type Slice = (u64, u32, u32);

impl Bench {
    fn new(geometry: Geometry, policy: Policy) -> Self {
        Self { scheduler: Scheduler::new(geometry, policy), batch: Batch::with_capacity(&geometry), next_token: 500 }
    }

    fn add(&mut self, id: u64, prompt: impl IntoIterator<Item = TokenId>, max_tokens: u32) -> Tape {
        self.add_with(id, prompt, SamplingParams { max_tokens, ..SamplingParams::default() })
    }

    fn add_with(&mut self, id: u64, prompt: impl IntoIterator<Item = TokenId>, sampling: SamplingParams) -> Tape {
        let tape = Tape::default();
        let prompt = prompt.into_iter().collect();
        let request = Request { id: SeqId(id), prompt, sampling, cache_salt: 0, sink: tape.sink() };
        self.scheduler.add(Sequence::new(request, self.scheduler.geometry()).map_err(|(_, error)| error).unwrap());
        tape
    }

    fn schedule(&mut self) -> Vec<Slice> {
        self.scheduler.schedule(&mut self.batch);
        let seqs = self.batch.seqs.iter();
        seqs.map(|seq| (seq.id.0, seq.tokens.end - seq.tokens.start, seq.num_logits)).collect()
    }

    fn commit(&mut self) -> StepStats {
        let mut sampled: Vec<Sampled> = Vec::new();
        for seq in &self.batch.seqs {
            sampled.push(match seq.num_logits {
                0 => Sampled::Nothing,
                _ => Sampled::Token { id: self.next_token, logprobs: None },
            });
            self.next_token += u32::from(seq.num_logits > 0);
        }
        self.scheduler.commit(&self.batch, &mut sampled);
        self.scheduler.check_integrity();
        self.scheduler.take_stats()
    }

    fn step(&mut self) -> Vec<Slice> {
        let slices = self.schedule();
        self.commit();
        slices
    }

    fn finish(&mut self) {
        while self.scheduler.has_work() {
            self.step();
        }
    }
}

fn cached(tape: &Tape) -> Option<u32> {
    tape.events().iter().find_map(|event| match event {
        SeqEvent::Started { num_cached_tokens } => Some(*num_cached_tokens),
        _ => None,
    })
}

fn tokens(tape: &Tape) -> Vec<TokenId> {
    let events = tape.events();
    let token = |event: &SeqEvent| match event {
        SeqEvent::Token { id, .. } => Some(*id),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

#[test]
fn decodes_come_first_then_prefills_then_waiting_within_the_budget() {
    let mut bench = Bench::new(GEOMETRY, POLICY);
    bench.add(1, 100..103, 9);
    assert_eq!(bench.step(), [(1, 3, 1)]);
    bench.add(2, 200..215, 9);
    bench.add(3, 300..303, 9);
    assert_eq!(bench.step(), [(1, 1, 1), (2, 6, 0)], "a decode, then at most 6 tokens of prompts");
    assert_eq!(bench.step(), [(1, 1, 1), (2, 6, 0)]);
    assert_eq!(bench.step(), [(1, 1, 1), (2, 3, 1), (3, 3, 1)], "the rest of one prompt and the whole next");
    assert_eq!(bench.step(), [(1, 1, 1), (2, 1, 1), (3, 1, 1)]);
}

#[test]
fn without_decodes_a_prompt_takes_the_whole_budget() {
    let mut bench = Bench::new(GEOMETRY, POLICY);
    bench.add(1, 100..120, 9);
    bench.add(2, 200..220, 9);
    assert_eq!(bench.step(), [(1, 16, 0)]);
    assert_eq!(bench.step(), [(1, 4, 1), (2, 12, 0)]);
    assert_eq!(bench.step(), [(1, 1, 1), (2, 6, 0)]);
}

#[test]
fn decodes_leave_room_for_prompts() {
    let geometry = Geometry { max_batch_tokens: 4, max_batch_seqs: 4, ..GEOMETRY };
    let mut bench = Bench::new(geometry, POLICY);
    for id in 1..=4 {
        bench.add(id, [1, 2], 9);
    }
    let most = (0..8).map(|_| bench.step().len()).max();
    assert_eq!(most, Some(2), "of 4 tokens, 2 are kept for prompts");
}

#[test]
fn the_youngest_gives_way_and_nobody_is_admitted_in_that_step() {
    let geometry = Geometry { num_blocks: 5, ..GEOMETRY };
    let mut bench = Bench::new(geometry, POLICY);
    let older = bench.add(1, 100..104, 8);
    let younger = bench.add(2, 200..206, 8);
    bench.step();
    bench.add(3, 300..302, 8);
    assert_eq!(bench.step(), [(1, 1, 1), (2, 1, 1)], "no room for the third with blocks to spare");
    assert_eq!(bench.step(), [(1, 1, 1), (2, 1, 1)]);
    // Tokens: 7 and 9; blocks: 2 and 3. All five are taken.
    assert_eq!(bench.step(), [(1, 1, 1), (2, 1, 1)]);
    assert_eq!(bench.step(), [(1, 1, 1), (2, 1, 1)]);
    assert_eq!(bench.schedule(), [(1, 1, 1)], "the third block of the older one");
    let stats = bench.commit();
    assert_eq!((stats.num_preemptions, stats.num_admitted, stats.num_waiting), (1, 0, 2));
    let so_far = tokens(&younger);
    bench.finish();
    assert_eq!(tokens(&older).len(), 8);
    assert_eq!(tokens(&younger).len(), 8, "nothing is lost and nothing is sent twice");
    assert_eq!(tokens(&younger)[..so_far.len()], so_far);
    assert_eq!(younger.events().last(), Some(&SeqEvent::Finished(FinishReason::Length)));
}

#[test]
fn the_next_turn_starts_where_the_last_ended() {
    let mut bench = Bench::new(GEOMETRY, POLICY);
    let first = bench.add(1, 0..10, 5);
    bench.finish();
    let history: Vec<TokenId> = (0..10).chain(tokens(&first)).collect();
    assert_eq!(history.len(), 15);
    let second = bench.add(2, history.into_iter().chain([900, 901]), 5);
    assert_eq!(bench.schedule(), [(2, 3, 1)]);
    // The last of the answer's tokens was never computed; 12 of 14 come in whole blocks, 2 by a copy.
    assert_eq!(cached(&second), Some(14));
    assert_eq!(bench.batch.copies.len(), 1);
    assert_eq!(bench.batch.copies[0].num_tokens, 2);
    bench.commit();
}

#[test]
fn an_equal_prompt_computes_one_token() {
    for prompt_len in [7, 8, 9] {
        let mut bench = Bench::new(GEOMETRY, POLICY);
        bench.add(1, 0..prompt_len, 9);
        bench.step();
        let second = bench.add(2, 0..prompt_len, 9);
        assert_eq!(bench.step(), [(1, 1, 1), (2, 1, 1)], "while the first still runs");
        assert_eq!(cached(&second), Some(prompt_len - 1));
    }
}

#[test]
fn a_prefix_that_parts_inside_a_block_is_copied_up_to_there() {
    let mut bench = Bench::new(GEOMETRY, POLICY);
    bench.add(1, 0..12, 1);
    bench.finish();
    let second = bench.add(2, [0, 1, 2, 3, 4, 5, 6, 99, 8, 9], 1);
    assert_eq!(bench.step(), [(2, 3, 1)]);
    assert_eq!(cached(&second), Some(7));
}

#[test]
fn the_source_of_a_copy_survives_the_step() {
    // The source is the oldest of the cached blocks, and the third sequence takes more than the empty ones.
    let geometry = Geometry { num_blocks: 7, ..GEOMETRY };
    let mut bench = Bench::new(geometry, POLICY);
    bench.add(1, 0..4, 1);
    bench.finish();
    bench.add(2, 100..112, 1);
    bench.finish();
    bench.add(3, [0, 1, 50], 1);
    bench.add(4, 300..313, 1);
    assert_eq!(bench.schedule(), [(3, 1, 1), (4, 13, 1)]);
    let source = bench.batch.copies[0].from;
    assert!(!bench.batch.block_tables.contains(&source), "{source:?} is given away before it is read");
    bench.commit();
}

#[test]
fn other_salts_share_nothing() {
    let mut bench = Bench::new(GEOMETRY, POLICY);
    bench.add(1, 0..12, 1);
    bench.finish();
    let tape = Tape::default();
    let sampling = SamplingParams::default();
    let request = Request { id: SeqId(2), prompt: (0..12).collect(), sampling, cache_salt: 1, sink: tape.sink() };
    bench.scheduler.add(Sequence::new(request, &GEOMETRY).map_err(|(_, error)| error).unwrap());
    assert_eq!(bench.step(), [(2, 12, 1)]);
    assert_eq!(cached(&tape), Some(0));
}

#[test]
fn a_switched_off_cache_finds_nothing() {
    let mut bench = Bench::new(GEOMETRY, Policy { prefix_cache: PrefixCache::Off, ..POLICY });
    bench.add(1, 0..12, 1);
    bench.finish();
    assert_eq!(bench.scheduler.take_stats().kv_blocks_free, GEOMETRY.num_blocks);
    let second = bench.add(2, 0..12, 1);
    bench.step();
    assert_eq!(cached(&second), Some(0));
}

#[test]
fn the_least_recently_used_prefix_is_evicted_first() {
    let geometry = Geometry { num_blocks: 4, ..GEOMETRY };
    let mut bench = Bench::new(geometry, POLICY);
    bench.add(1, 0..4, 1);
    bench.add(2, 100..104, 1);
    bench.finish();
    // Touches the first again, so the second is the older one now.
    assert_eq!(cached(&bench.add(3, 0..4, 1)), None);
    bench.finish();
    bench.add(4, 200..208, 1);
    bench.finish();
    let (first, second) = (bench.add(5, (0..4).chain([7]), 1), bench.add(6, (100..104).chain([7]), 1));
    bench.finish();
    assert_eq!((cached(&first), cached(&second)), (Some(4), Some(0)));
}

#[test]
fn prompt_logprobs_take_rows_within_the_limit_and_no_cached_prefix() {
    let mut bench = Bench::new(GEOMETRY, POLICY);
    bench.add(1, 0..12, 1);
    bench.finish();
    let sampling = SamplingParams { num_prompt_logprobs: Some(0), max_tokens: 1, ..SamplingParams::default() };
    let tape = bench.add_with(2, 0..12, sampling);
    assert_eq!(bench.schedule(), [(2, 8, 8)], "8 rows of logits per step");
    assert_eq!(cached(&tape), Some(0));
}

#[test]
fn abort_frees_at_once_in_every_state() {
    let geometry = Geometry { num_blocks: 8, max_batch_seqs: 3, ..GEOMETRY };
    let mut bench = Bench::new(geometry, Policy { max_prefill_tokens_with_decodes: 4, ..POLICY });
    let decoding = bench.add(1, 100..103, 20);
    bench.step();
    let prefilling = bench.add(2, 200..212, 4);
    bench.step();
    let waiting = bench.add(3, 300..310, 4);
    let stats = {
        bench.schedule();
        bench.commit()
    };
    assert_eq!((stats.num_running, stats.num_waiting, stats.kv_blocks_used), (2, 1, 4));
    for (id, tape, used) in [(3, waiting, 4), (2, prefilling, 2), (1, decoding, 0)] {
        assert!(bench.scheduler.abort(SeqId(id)));
        assert!(!bench.scheduler.abort(SeqId(id)), "it has ended");
        bench.scheduler.check_integrity();
        assert_eq!(bench.scheduler.take_stats().kv_blocks_used, used);
        assert_eq!(tape.events().last(), Some(&SeqEvent::Finished(FinishReason::Abort)));
    }
}

#[test]
fn a_preempted_sequence_can_be_aborted() {
    let geometry = Geometry { num_blocks: 3, ..GEOMETRY };
    let mut bench = Bench::new(geometry, POLICY);
    bench.add(1, 100..103, 9);
    let younger = bench.add(2, 200..203, 9);
    while bench.scheduler.take_stats().num_preemptions == 0 {
        bench.schedule();
        let preempted = bench.batch.seqs.len() == 1 && !tokens(&younger).is_empty();
        bench.commit();
        if preempted {
            break;
        }
    }
    assert!(bench.scheduler.abort(SeqId(2)));
    bench.finish();
    assert_eq!(younger.events().last(), Some(&SeqEvent::Finished(FinishReason::Abort)));
    assert_eq!(bench.scheduler.take_stats().kv_blocks_used, 0);
}

#[test]
fn a_client_that_left_is_given_up_within_one_step_in_every_state() {
    let mut bench = Bench::new(Geometry { max_batch_seqs: 2, ..GEOMETRY }, POLICY);
    let decoding = bench.add(1, 100..103, 20);
    bench.step();
    let prefilling = bench.add(2, 200..230, 4);
    bench.step();
    let waiting = bench.add(3, 300..310, 4);
    bench.step();
    for tape in [&waiting, &prefilling, &decoding] {
        tape.leave();
        bench.schedule();
        let stats = bench.commit();
        assert_eq!(stats.num_aborted, 1);
    }
    assert!(!bench.scheduler.has_work());
    assert_eq!(bench.scheduler.take_stats().kv_blocks_used, 0);
}

#[test]
fn lengths_end_sequences() {
    let mut bench = Bench::new(Geometry { max_model_len: 12, ..GEOMETRY }, POLICY);
    for (id, max_tokens, expected) in [(1, 3, 3), (2, 100, 4), (3, 0, 0)] {
        let tape = bench.add_with(id, 0..8, SamplingParams { max_tokens, ..SamplingParams::default() });
        if max_tokens == 0 {
            // Nothing is chosen; the engine's sampler knows that, this bench does not.
            bench.schedule();
            bench.scheduler.commit(&bench.batch, &mut [Sampled::Nothing]);
        }
        bench.finish();
        assert_eq!(tokens(&tape).len(), expected);
        assert_eq!(tape.events().last(), Some(&SeqEvent::Finished(FinishReason::Length)));
    }
}

#[test]
fn a_stop_token_is_the_last_token() {
    let mut bench = Bench::new(GEOMETRY, POLICY);
    let sampling = SamplingParams { stop_token_ids: vec![502], max_tokens: 9, ..SamplingParams::default() };
    let tape = bench.add_with(1, 0..3, sampling);
    bench.finish();
    assert_eq!(tokens(&tape), [500, 501, 502]);
    assert_eq!(tape.events().last(), Some(&SeqEvent::Finished(FinishReason::Stop)));
}

#[test]
fn what_cannot_run_is_refused() {
    let check = |prompt: Vec<TokenId>, sampling: SamplingParams, expected: bool| {
        let request = Request { id: SeqId(1), prompt, sampling, cache_salt: 0, sink: Tape::default().sink() };
        match Sequence::new(request, &GEOMETRY) {
            Ok(_) => assert!(expected),
            Err((_, error)) => assert!(!expected && matches!(error, SeqError::Invalid(_)), "{error}"),
        }
    };
    let sampling = SamplingParams::default();
    check(vec![], sampling.clone(), false);
    check(vec![1; 63], sampling.clone(), true);
    check(vec![1; 64], sampling.clone(), false);
    check(vec![1; 64], SamplingParams { max_tokens: 0, ..sampling.clone() }, true);
    check(vec![1000], sampling.clone(), false);
    check(vec![1], SamplingParams { logit_bias: vec![(1000, 0.0)], ..sampling.clone() }, false);
    check(vec![1], SamplingParams { allowed_token_ids: vec![1000], ..sampling.clone() }, false);
    check(vec![1], SamplingParams { stop_token_ids: vec![1000], ..sampling }, true);
}

#[test]
fn a_failed_step_fails_its_batch_alone() {
    let mut bench = Bench::new(Geometry { max_batch_seqs: 1, ..GEOMETRY }, POLICY);
    let first = bench.add(1, 0..8, 3);
    let second = bench.add(2, 0..8, 3);
    bench.schedule();
    bench.scheduler.fail_batch(&SeqError::Runner("it broke".to_owned()));
    bench.scheduler.check_integrity();
    assert_eq!(bench.scheduler.take_stats().num_failed, 1);
    assert!(matches!(first.events().last(), Some(SeqEvent::Failed(SeqError::Runner(_)))));
    bench.finish();
    assert_eq!(cached(&second), Some(0), "what a failed step wrote is not reused");
    assert_eq!(tokens(&second).len(), 3);
}
