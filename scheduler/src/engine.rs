//! [`Engine`]: the thread that owns scheduler, runner and sampler, and runs one step after another.
//!
//! A step: take commands, plan a batch, run the model, choose tokens, send events. Between steps nothing is shared; the
//! only way in is the command channel, the only ways out are the sinks and the observer.
//!
//! Invariants: every request that comes in gets exactly one terminal event; after warm-up only admissions and sinks
//! allocate. With nothing to do the thread blocks on the channel.

use crate::kv_cache::PrefixCache;
use crate::request::{Command, Request, SeqError, SeqEvent};
use crate::sampling::{History, Sampler, Scratch};
use crate::scheduler::{Policy, Sampled, Scheduler};
use crate::sequence::Sequence;
use crate::stats::{StepStats, StepTimes};
use crossbeam_channel::{Receiver, TryRecvError};
use std::time::Duration;
use tokenmill_kernels::isa::Isa;
use tokenmill_models::runner::{Batch, Logits, ModelRunner};
use tracing::{debug, info, warn};

/// Called after every step; records metrics.
pub type Observer = Box<dyn FnMut(&StepStats, StepTimes) + Send>;

/// The engine's settings. Everything else follows from the runner's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Sequences that may wait inside the engine; one more fails with [`SeqError::QueueFull`]. The gateway's own
    /// admission limit should be at most this.
    pub max_waiting: usize,
    /// Prompt tokens per step at most while some sequence decodes: bounds the gap between two tokens of a stream.
    pub max_prefill_tokens_with_decodes: u32,
    /// Tokens of each step that decodes leave to prompts, by limiting how many sequences run.
    pub min_prefill_tokens: u32,
    /// Reuse of K and V across requests.
    pub prefix_cache: PrefixCache,
    /// Instruction set for the passes over logits.
    pub isa: Isa,
}

impl Default for EngineLimits {
    /// For interactive use on a few cores; the prefix cache's secret is 0 and should be replaced by a random one.
    fn default() -> Self {
        Self {
            max_waiting: 1024,
            max_prefill_tokens_with_decodes: 64,
            min_prefill_tokens: 8,
            prefix_cache: PrefixCache::On { secret: [0, 0] },
            isa: Isa::best(),
        }
    }
}

/// Scheduler, runner and sampler of one model.
pub struct Engine<R> {
    runner: R,
    scheduler: Scheduler,
    commands: Receiver<Command>,
    observer: Observer,
    batch: Batch,
    logits: Logits,
    sampled: Vec<Sampled>,
    scratch: Scratch,
    is_draining: bool,
}

impl<R: ModelRunner> Engine<R> {
    /// An engine with nothing to do. `commands` is bounded by whoever made it.
    ///
    /// # Panics
    /// When the runner's geometry leaves no room for a sequence.
    pub fn new(runner: R, limits: EngineLimits, commands: Receiver<Command>, observer: Observer) -> Self {
        let geometry = runner.geometry();
        let EngineLimits { max_waiting, max_prefill_tokens_with_decodes, min_prefill_tokens, prefix_cache, isa } =
            limits;
        let policy = Policy { max_waiting, max_prefill_tokens_with_decodes, min_prefill_tokens, prefix_cache };
        Self {
            runner,
            scheduler: Scheduler::new(geometry, policy),
            commands,
            observer,
            batch: Batch::with_capacity(&geometry),
            logits: Logits::with_capacity(&geometry),
            sampled: Vec::with_capacity(geometry.max_batch_seqs as usize),
            scratch: Scratch::new(isa, geometry.vocab_size as usize),
            is_draining: false,
        }
    }

    /// Body of the engine's thread: steps while there is work, blocks on the channel while there is none, returns when
    /// it has drained (on [`Command::Drain`], or when every sender has gone).
    pub fn run(mut self) {
        #[expect(
            clippy::disallowed_methods,
            reason = "times are measured here and nowhere else; no decision reads them"
        )]
        let start = std::time::Instant::now();
        let mut clock = || start.elapsed();
        info!(geometry = ?self.scheduler.geometry(), "engine started");
        loop {
            if !self.scheduler.has_work() {
                if self.is_draining {
                    break;
                }
                match self.commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => self.is_draining = true,
                }
            }
            let (stats, times) = self.timed_step(&mut clock);
            (self.observer)(&stats, times);
        }
        // Whoever asked after the last step still gets an answer.
        self.take_commands();
        info!("engine drained");
    }

    /// Takes the commands that are there and runs one step, without a clock. Deterministic.
    pub fn step(&mut self) -> StepStats {
        self.timed_step(&mut || Duration::ZERO).0
    }

    /// Whether any sequence is running or waiting.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// The scheduler, for checks between steps.
    #[must_use]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn timed_step(&mut self, clock: &mut dyn FnMut() -> Duration) -> (StepStats, StepTimes) {
        let started = clock();
        self.take_commands();
        self.scheduler.schedule(&mut self.batch);
        let scheduled = clock();
        if self.batch.seqs.is_empty() {
            let times = StepTimes { schedule: scheduled.saturating_sub(started), ..StepTimes::default() };
            return (self.scheduler.take_stats(), times);
        }
        let result = self.runner.forward(&self.batch, &mut self.logits);
        let computed = clock();
        match result {
            Ok(()) => {
                self.sample();
                self.scheduler.commit(&self.batch, &mut self.sampled);
            }
            Err(error) => {
                warn!(%error, num_seqs = self.batch.seqs.len(), "the step failed");
                self.scheduler.fail_batch(&SeqError::Runner(error.to_string()));
            }
        }
        let times = StepTimes {
            schedule: scheduled.saturating_sub(started),
            forward: computed.saturating_sub(scheduled),
            sample: clock().saturating_sub(computed),
        };
        (self.scheduler.take_stats(), times)
    }

    /// Takes what is in the channel without blocking. Bounded by the channel's capacity at each call's start, so that
    /// busy senders cannot hold up a step.
    fn take_commands(&mut self) {
        for _ in 0..self.commands.len() {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(request) => self.add(*request),
            Command::Abort(id) => {
                // An unknown id has ended already.
                self.scheduler.abort(id);
            }
            Command::Drain => self.is_draining = true,
        }
    }

    fn add(&mut self, request: Request) {
        if self.is_draining {
            return self.refuse(request, SeqError::Draining);
        }
        if self.scheduler.is_full() {
            return self.refuse(request, SeqError::QueueFull);
        }
        match Sequence::new(request, self.scheduler.geometry()) {
            Ok(seq) => self.scheduler.add(seq),
            Err((request, error)) => self.refuse(request, error),
        }
    }

    fn refuse(&mut self, mut request: Request, error: SeqError) {
        debug!(seq = request.id.0, %error, "refused");
        self.scheduler.count_refused();
        if request.sink.send(SeqEvent::Failed(error)).is_err() {
            debug!(seq = request.id.0, "nobody heard of the refusal");
        }
    }

    /// Turns the step's rows of logits into one [`Sampled`] per sequence of the batch.
    fn sample(&mut self) {
        self.sampled.clear();
        assert_eq!(self.logits.num_rows(), self.batch.num_logits(), "the runner fills one row per row asked for");
        let mut first_row = 0;
        for (batch_idx, slice) in self.batch.seqs.iter().enumerate() {
            let seq = self.scheduler.scheduled_mut(batch_idx);
            let rows = Rows { logits: &mut self.logits, first_row, num_rows: slice.num_logits };
            self.sampled.push(match sample_seq(seq, slice.context_len, rows, &mut self.scratch) {
                Ok(sampled) => sampled,
                Err(error) => Sampled::Failed(error),
            });
            first_row += slice.num_logits as usize;
        }
    }
}

/// One sequence's rows of logits: for its tokens before `context_len`, the last ones.
struct Rows<'a> {
    logits: &'a mut Logits,
    first_row: usize,
    num_rows: u32,
}

fn sample_seq(
    seq: &mut Sequence,
    context_len: u32,
    rows: Rows<'_>,
    scratch: &mut Scratch,
) -> Result<Sampled, SeqError> {
    let Rows { logits, first_row, num_rows } = rows;
    if num_rows == 0 {
        return Ok(Sampled::Nothing);
    }
    if seq.prompt_logprobs_from().is_some() {
        let num_top = seq.sampler.params().num_prompt_logprobs.unwrap_or(0);
        let first = context_len - num_rows;
        let last = context_len.min(seq.num_prompt_tokens - 1);
        let mut entries = Vec::with_capacity((last - first) as usize);
        for (row_idx, position) in (first_row..).zip(first..last) {
            let next = seq.tokens[position as usize + 1];
            entries.push(Sampler::prompt_logprobs(logits.row_mut(row_idx), next, num_top, scratch)?);
        }
        seq.num_prompt_logprobs_sent = last;
        seq.emit(SeqEvent::PromptLogprobs(entries));
    }
    if context_len < seq.len() || seq.sampler.params().max_tokens == 0 {
        return Ok(Sampled::Nothing);
    }
    let row = logits.row_mut(first_row + num_rows as usize - 1);
    let (prompt, output) = seq.tokens.split_at(seq.num_prompt_tokens as usize);
    let (id, logprobs) = seq.sampler.sample(row, History { prompt, output }, scratch)?;
    Ok(Sampled::Token { id, logprobs })
}
