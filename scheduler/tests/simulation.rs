//! Seeded simulation of the whole engine: random sizes, random traffic, faults, and the books checked after every step.
//!
//! Each seed switches some kinds of events off and weighs the others at random (swarm testing), so that rare states are
//! reached. Every answer is compared with what the same request gets alone on an engine without a prefix cache.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use crossbeam_channel::{Sender, bounded};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tokenmill_kernels::isa::Isa;
use tokenmill_models::runner::{ContextRules, Geometry, TokenId};
use tokenmill_scheduler::engine::{Engine, EngineLimits};
use tokenmill_scheduler::kv_cache::PrefixCache;
use tokenmill_scheduler::request::{Command, FinishReason, Request, SamplingParams, SeqError, SeqEvent, TokenLogprobs};
use tokenmill_scheduler::sampling::rng::Rng;
use tokenmill_scheduler::sim::{FakeRunner, FakeSeq, Tape};
use tokenmill_scheduler::stats::StepStats;

/// Seeds that a test run goes through.
const SEEDS: Range<u64> = 0..10_000;

/// What one seed's world is like.
struct World {
    rng: Rng,
    geometry: Geometry,
    limits: EngineLimits,
    num_requests: u32,
    num_salts: u32,
    /// Chances in 256.
    arrive: u32,
    abort: u32,
    leave: u32,
    leave_unnoticed: u32,
    poison: u32,
    fail: u32,
    reuse: u32,
    prompt_logprobs: u32,
}

fn between(rng: &mut Rng, range: Range<u32>) -> u32 {
    range.start + rng.below(range.end - range.start)
}

/// Half of the time never, else with any chance up to `most` in 256.
fn chance(rng: &mut Rng, most: u32) -> u32 {
    if rng.below(2) == 0 { 0 } else { rng.below(most) + 1 }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let block_size = between(&mut rng, 1..9);
        let max_batch_seqs = between(&mut rng, 1..9);
        let geometry = Geometry {
            block_size,
            num_blocks: between(&mut rng, 2..40),
            max_batch_tokens: between(&mut rng, 1..40),
            max_batch_seqs,
            max_logits_rows: max_batch_seqs + rng.below(6),
            max_model_len: between(&mut rng, 8..80),
            vocab_size: between(&mut rng, 2..40),
            context: ContextRules {
                window: (rng.below(3) == 0).then(|| between(&mut rng, 1..30)),
                switch_len: (rng.below(4) == 0).then(|| between(&mut rng, 1..60)),
            },
        };
        let secret = [rng.next_u64(), rng.next_u64()];
        let limits = EngineLimits {
            max_waiting: between(&mut rng, 1..40) as usize,
            max_prefill_tokens_with_decodes: between(&mut rng, 1..20),
            min_prefill_tokens: rng.below(5),
            prefix_cache: if rng.below(8) == 0 { PrefixCache::Off } else { PrefixCache::On { secret } },
            isa: Isa::best(),
        };
        let num_requests = between(&mut rng, 1..30);
        let num_salts = between(&mut rng, 1..4);
        let arrive = between(&mut rng, 10..256);
        let [abort, leave] = std::array::from_fn(|_| chance(&mut rng, 20));
        let [leave_unnoticed, poison, reuse] = std::array::from_fn(|_| chance(&mut rng, 200));
        let fail = chance(&mut rng, 10);
        let prompt_logprobs = chance(&mut rng, 256);
        Self {
            rng,
            geometry,
            limits,
            num_requests,
            num_salts,
            arrive,
            abort,
            leave,
            leave_unnoticed,
            poison,
            fail,
            reuse,
            prompt_logprobs,
        }
    }

    fn happens(&mut self, chance: u32) -> bool {
        self.rng.below(256) < chance
    }

    fn max_len(&self) -> u32 {
        self.geometry.max_model_len.min(self.geometry.num_blocks * self.geometry.block_size)
    }

    /// Fresh tokens from a tiny alphabet, so that prompts collide; or the beginning of an earlier conversation, with its
    /// answer, and some more.
    fn prompt(&mut self, clients: &[Client]) -> Vec<TokenId> {
        let max_len = self.max_len();
        let mut prompt = Vec::new();
        if !clients.is_empty() && self.rng.below(256) < self.reuse {
            let earlier = &clients[self.rng.below(u32::try_from(clients.len()).unwrap()) as usize];
            prompt.clone_from(&earlier.prompt);
            prompt.extend(Answer::of(&earlier.tape.events()).tokens);
            let keep = self.rng.below(u32::try_from(prompt.len()).unwrap() + 1) as usize;
            prompt.truncate(keep.max(prompt.len() / 2));
        }
        let alphabet = 2 + self.rng.below(self.geometry.vocab_size - 1);
        let alphabet = alphabet.min(self.geometry.vocab_size);
        for _ in 0..between(&mut self.rng, 1..max_len) {
            let token = self.rng.below(alphabet);
            prompt.push(token);
        }
        // Now and then one that is just too long.
        prompt.truncate(between(&mut self.rng, 1..max_len + 1) as usize);
        prompt
    }

    fn sampling(&mut self) -> SamplingParams {
        let vocab_size = self.geometry.vocab_size;
        let rng = &mut self.rng;
        let mut maybe = |value: f32, off: f32| if rng.below(3) == 0 { value } else { off };
        let mut sampling = SamplingParams {
            temperature: maybe(0.0, 0.9),
            top_p: maybe(0.8, 1.0),
            min_p: maybe(0.1, 0.0),
            frequency_penalty: maybe(0.5, 0.0),
            presence_penalty: maybe(-0.5, 0.0),
            repetition_penalty: maybe(1.3, 1.0),
            ..SamplingParams::default()
        };
        sampling.top_k = if rng.below(3) == 0 { 1 + rng.below(vocab_size) } else { 0 };
        sampling.seed = rng.next_u64();
        sampling.max_tokens = between(rng, 0..40);
        sampling.min_tokens = rng.below(4);
        sampling.stop_token_ids = (0..rng.below(3)).map(|_| rng.below(vocab_size)).collect();
        sampling.num_logprobs = (rng.below(4) == 0).then(|| rng.below(4));
        if rng.below(256) < self.prompt_logprobs {
            sampling.num_prompt_logprobs = Some(rng.below(3));
        }
        sampling
    }

    fn client(&mut self, number: u32, clients: &[Client]) -> Client {
        let salt = u16::try_from(self.rng.below(self.num_salts)).unwrap();
        let is_poisoned = self.rng.below(8) == 0 && self.rng.below(256) < self.poison;
        let prompt = self.prompt(clients);
        let sampling = self.sampling();
        let leaves = self.rng.below(4) == 0 && self.rng.below(256) < self.leave_unnoticed;
        let tape = if leaves { Tape::leaving_after(self.rng.below(6) as usize) } else { Tape::default() };
        Client { seq: FakeSeq { number, salt, is_poisoned }, prompt, sampling, tape }
    }
}

/// One request and what came back.
struct Client {
    seq: FakeSeq,
    prompt: Vec<TokenId>,
    sampling: SamplingParams,
    tape: Tape,
}

impl Client {
    fn request(&self) -> Request {
        Request {
            id: self.seq.id(),
            prompt: self.prompt.clone(),
            sampling: self.sampling.clone(),
            cache_salt: u64::from(self.seq.salt),
            sink: self.tape.sink(),
        }
    }
}

/// The events of one request, with the cut of the prompt's log-probabilities undone.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    num_cached_tokens: Option<u32>,
    prompt_logprobs: Vec<TokenLogprobs>,
    tokens: Vec<TokenId>,
    logprobs: Vec<Option<Box<TokenLogprobs>>>,
    terminal: Option<Result<FinishReason, SeqError>>,
}

impl Answer {
    /// Panics where the order of events is broken.
    fn of(events: &[SeqEvent]) -> Self {
        let mut answer = Self::default();
        for event in events {
            assert_eq!(answer.terminal, None, "{event:?} after the terminal event");
            match event {
                SeqEvent::Started { num_cached_tokens } => {
                    assert_eq!(answer.num_cached_tokens.replace(*num_cached_tokens), None, "started twice");
                }
                SeqEvent::PromptLogprobs(entries) => {
                    assert!(answer.num_cached_tokens.is_some() && answer.tokens.is_empty(), "prompt after output");
                    answer.prompt_logprobs.extend_from_slice(entries);
                }
                SeqEvent::Token { id, logprobs } => {
                    assert!(answer.num_cached_tokens.is_some(), "a token before the start");
                    answer.tokens.push(*id);
                    answer.logprobs.push(logprobs.clone());
                }
                SeqEvent::Finished(reason) => answer.terminal = Some(Ok(*reason)),
                SeqEvent::Failed(error) => answer.terminal = Some(Err(error.clone())),
            }
        }
        answer
    }

    fn is_beginning_of(&self, whole: &Answer) -> bool {
        whole.prompt_logprobs.starts_with(&self.prompt_logprobs)
            && whole.tokens.starts_with(&self.tokens)
            && whole.logprobs.starts_with(&self.logprobs)
    }
}

fn engine(runner: FakeRunner, limits: EngineLimits) -> (Engine<FakeRunner>, Sender<Command>) {
    let (sender, receiver) = bounded(1024);
    (Engine::new(runner, limits, receiver, Box::new(|_, _| {})), sender)
}

/// What `client` gets with the machine to itself: one block, one chunk, no cache.
fn alone(world: &World, client: &Client) -> Answer {
    let max_len = world.max_len();
    let geometry = Geometry {
        block_size: max_len,
        num_blocks: 1,
        max_batch_tokens: max_len,
        max_batch_seqs: 1,
        max_logits_rows: max_len,
        max_model_len: max_len,
        vocab_size: world.geometry.vocab_size,
        context: world.geometry.context,
    };
    let limits = EngineLimits { prefix_cache: PrefixCache::Off, ..EngineLimits::default() };
    let (mut engine, sender) = engine(FakeRunner::new(geometry), limits);
    let tape = Tape::default();
    sender.send(Command::Add(Box::new(Request { sink: tape.sink(), ..client.request() }))).unwrap();
    engine.step();
    while engine.has_work() {
        engine.step();
    }
    Answer::of(&tape.events())
}

/// Runs one seed; returns a digest of everything that could be observed, and adds up the steps in `total`.
fn run(seed: u64, total: &mut StepStats) -> u64 {
    let mut world = World::new(seed);
    let failing: Vec<u64> = (0..2_000).filter(|_| world.rng.below(256) < world.fail).collect();
    let runner = FakeRunner::new(world.geometry).failing_at(failing);
    let (mut engine, sender) = engine(runner, world.limits);
    let mut clients: Vec<Client> = Vec::new();
    let mut digest = DefaultHasher::new();
    let mut num_steps = 0;
    while clients.len() < world.num_requests as usize || engine.has_work() {
        num_steps += 1;
        assert!(num_steps < 100_000, "the engine makes no progress");
        let number = u32::try_from(clients.len()).unwrap();
        if number < world.num_requests && world.happens(world.arrive) {
            let client = world.client(number, &clients);
            sender.send(Command::Add(Box::new(client.request()))).unwrap();
            clients.push(client);
        }
        if number > 0 && world.happens(world.abort) {
            let victim = &clients[world.rng.below(number) as usize];
            sender.send(Command::Abort(victim.seq.id())).unwrap();
        }
        if number > 0 && world.happens(world.leave) {
            clients[world.rng.below(number) as usize].tape.leave();
        }
        let stats = engine.step();
        engine.scheduler().check_integrity();
        let num_ended = stats.num_aborted + stats.num_finished + stats.num_failed;
        assert!(!engine.has_work() || stats.num_seqs > 0 || num_ended > 0, "work, but an empty step: {stats:?}");
        assert!(stats.num_prefill_tokens + stats.num_decode_tokens <= world.geometry.max_batch_tokens);
        format!("{stats:?}").hash(&mut digest);
        total.num_preemptions += stats.num_preemptions;
        total.num_prefix_hit_tokens += stats.num_prefix_hit_tokens;
        total.num_finished += stats.num_finished;
        total.num_aborted += stats.num_aborted;
        total.num_failed += stats.num_failed;
        total.num_refused += stats.num_refused;
    }
    let stats = engine.step();
    assert_eq!(stats.kv_blocks_used, 0, "blocks leak");
    assert_eq!(stats.kv_blocks_cached + stats.kv_blocks_free, world.geometry.num_blocks);
    for client in &clients {
        check_client(&world, client);
        format!("{:?}", client.tape.events()).hash(&mut digest);
    }
    digest.finish()
}

fn check_client(world: &World, client: &Client) {
    let answer = Answer::of(&client.tape.events());
    let expected = alone(world, client);
    assert!(answer.is_beginning_of(&expected), "{:?}\n got  {answer:?}\n want {expected:?}", client.seq);
    if client.sampling.num_prompt_logprobs.is_some() && client.prompt.len() > 1 {
        assert_eq!(answer.num_cached_tokens.unwrap_or(0), 0, "every row of the prompt is computed");
    }
    match (&answer.terminal, client.tape.has_left()) {
        (None, true) => {}
        (None, false) => panic!("{:?} has no terminal event", client.seq),
        (Some(Ok(FinishReason::Abort) | Err(SeqError::Runner(_) | SeqError::QueueFull)), _) => {}
        (Some(_), _) => {
            let got = Answer { num_cached_tokens: None, ..answer };
            assert_eq!(got, Answer { num_cached_tokens: None, ..expected }, "{:?}", client.seq);
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "the seed is what one needs to see the failure again")]
fn answers_never_depend_on_neighbours_chunks_preemption_or_prefix_hits() {
    let mut total = StepStats::default();
    for seed in SEEDS {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed, &mut total))) {
            eprintln!("simulation failed with seed {seed}");
            resume_unwind(panic);
        }
    }
    let StepStats {
        num_preemptions, num_prefix_hit_tokens, num_finished, num_aborted, num_failed, num_refused, ..
    } = total;
    let seen = [num_preemptions, num_prefix_hit_tokens, num_finished, num_aborted, num_failed, num_refused];
    assert!(seen.iter().all(|&num| num > 5_000), "a kind of event hardly occurs: {total:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..50 {
        let [first, second] = [(); 2].map(|()| run(seed, &mut StepStats::default()));
        assert_eq!(first, second, "seed {seed}");
    }
}
