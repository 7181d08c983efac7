//! Cost of a step outside the model: planning and committing a batch, admitting a known prompt, choosing a token.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tokenmill_kernels::isa::Isa;
use tokenmill_models::runner::{Batch, ContextRules, Geometry, SeqId, TokenId};
use tokenmill_scheduler::kv_cache::PrefixCache;
use tokenmill_scheduler::request::{Disconnected, EventSink, Request, SamplingParams, SeqEvent};
use tokenmill_scheduler::sampling::rng::Rng;
use tokenmill_scheduler::sampling::{History, Sampler, Scratch};
use tokenmill_scheduler::scheduler::{Policy, Sampled, Scheduler};
use tokenmill_scheduler::sequence::Sequence;

/// The sizes of a small model on a small machine; the vocabulary is Qwen2.5's.
const GEOMETRY: Geometry = Geometry {
    block_size: 64,
    num_blocks: 4096,
    max_batch_tokens: 256,
    max_batch_seqs: 32,
    max_logits_rows: 32,
    max_model_len: 8192,
    vocab_size: 151_936,
    context: ContextRules::PLAIN,
};
const POLICY: Policy = Policy {
    max_waiting: 64,
    max_prefill_tokens_with_decodes: 64,
    min_prefill_tokens: 8,
    prefix_cache: PrefixCache::On { secret: [1, 2] },
};

struct NullSink;

impl EventSink for NullSink {
    fn send(&mut self, event: SeqEvent) -> Result<(), Disconnected> {
        black_box(event);
        Ok(())
    }
}

struct Steps {
    scheduler: Scheduler,
    batch: Batch,
    sampled: Vec<Sampled>,
}

impl Steps {
    fn new() -> Self {
        let batch = Batch::with_capacity(&GEOMETRY);
        Self { scheduler: Scheduler::new(GEOMETRY, POLICY), batch, sampled: Vec::new() }
    }

    fn add(&mut self, number: u32, prompt: Vec<TokenId>, max_tokens: u32) {
        let sampling = SamplingParams { max_tokens, ..SamplingParams::default() };
        let id = SeqId(u64::from(number));
        let request = Request { id, prompt, sampling, cache_salt: 0, sink: Box::new(NullSink) };
        let seq = Sequence::new(request, &GEOMETRY).map_err(|(_, error)| error).expect("the prompt fits");
        self.scheduler.add(seq);
    }

    fn step(&mut self) {
        self.scheduler.schedule(&mut self.batch);
        self.sampled.clear();
        self.sampled.extend(self.batch.seqs.iter().map(|seq| match seq.num_logits {
            0 => Sampled::Nothing,
            _ => Sampled::Token { id: 7, logprobs: None },
        }));
        self.scheduler.commit(&self.batch, &mut self.sampled);
    }
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("schedule/decode");
    for num_seqs in [1, 8, 32] {
        let mut steps = Steps::new();
        group.throughput(Throughput::Elements(u64::from(num_seqs)));
        group.bench_function(BenchmarkId::from_parameter(num_seqs), |bencher| {
            bencher.iter(|| {
                if !steps.scheduler.has_work() {
                    for number in 0..num_seqs {
                        steps.add(number, vec![number; 64], 8000);
                    }
                }
                steps.step();
            });
        });
    }
    group.finish();
}

/// One sequence from arrival to its only token, all of its prompt but the last token being known.
fn admit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("schedule/admit_known_prompt");
    for prompt_len in [64, 1024, 8000] {
        let mut steps = Steps::new();
        let prompt: Vec<TokenId> = (0..prompt_len).collect();
        steps.add(0, prompt.clone(), 1);
        while steps.scheduler.has_work() {
            steps.step();
        }
        group.bench_function(BenchmarkId::from_parameter(prompt_len), |bencher| {
            bencher.iter(|| {
                steps.add(1, prompt.clone(), 1);
                steps.step();
            });
        });
    }
    group.finish();
}

fn sample(criterion: &mut Criterion) {
    let isa = Isa::best();
    let mut rng = Rng::new(1);
    let mut noise = |scale: f64| -> Vec<f32> {
        // The sum of four uniform numbers is close enough to a normal one.
        let mut normal = || (0..4).map(|_| rng.next_f64() - 0.5).sum::<f64>() * scale;
        (0..GEOMETRY.vocab_size).map(|_| normal() as f32).collect()
    };
    let rows = [("peaked", noise(8.0)), ("flat", noise(0.5))];
    let base = SamplingParams::default();
    let knobs = [
        ("greedy", SamplingParams { temperature: 0.0, ..base.clone() }),
        ("temperature", base.clone()),
        ("top_p", SamplingParams { top_p: 0.9, ..base.clone() }),
        ("top_k", SamplingParams { top_k: 40, ..base.clone() }),
        ("min_p", SamplingParams { min_p: 0.05, ..base.clone() }),
        ("logprobs", SamplingParams { num_logprobs: Some(5), ..base }),
    ];
    let mut scratch = Scratch::new(isa, GEOMETRY.vocab_size as usize);
    let mut group = criterion.benchmark_group(format!("sample/{isa}"));
    for (shape, row) in &rows {
        for (knob, params) in &knobs {
            let mut sampler = Sampler::new(params.clone());
            // None of these knobs changes the row, so it can be used again.
            let mut row = row.clone();
            group.bench_function(BenchmarkId::new(*knob, shape), |bencher| {
                bencher.iter(|| sampler.sample(&mut row, History { prompt: &[], output: &[] }, &mut scratch));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decode, admit, sample);
criterion_main!(benches);
