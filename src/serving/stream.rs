//! The events of one request: of all its sequences, in the order in which they happened.
//!
//! One bounded channel per request. Its capacity is the number of events that its sequences can have in all, so a send fails
//! only if nobody listens any more; memory grows with what has been produced and not read, never with what was asked for.
//! Dropping the stream stops every sequence of it within one step.

use std::{sync::Arc, time::Instant};

use tokenmill_models::runner::{SeqId, TokenId};
use tokenmill_scheduler::request::{Disconnected, EventSink, Request, SamplingParams, SeqError, SeqEvent};
use tokio::sync::mpsc;

use super::{
    admission::{SeqPermit, SeqPermits},
    handle::{EngineGone, EngineLink},
};

/// One event of one choice.
#[derive(Debug)]
pub struct ChoiceEvent {
    /// Choice `j` of prompt `i` is `i * n + j`.
    pub choice: u32,
    /// When the engine produced it.
    pub at: Instant,
    /// What happened.
    pub event: SeqEvent,
}

/// Events per sequence besides tokens and prompt log-probabilities: started, terminal, lost, and some to spare.
const EVENTS_BESIDES_TOKENS: usize = 8;

/// One prompt and how much may follow it.
#[derive(Debug)]
pub struct PromptTokens {
    /// At least one.
    pub ids: Vec<TokenId>,
    /// At least 1; prompt and output fit the model.
    pub max_tokens: u32,
}

/// What the sequences of a request have in common.
#[derive(Debug)]
pub struct GenerateRequest {
    /// At least one.
    pub prompts: Vec<PromptTokens>,
    /// Choices per prompt.
    pub n: u32,
    /// `seed` and `max_tokens` are filled in per sequence: choice `j` of a prompt has seed `seed + j`.
    pub sampling: SamplingParams,
    /// Seed of the first choice of every prompt.
    pub seed: u64,
    /// Prompts are shared only under the same salt.
    pub cache_salt: u64,
    /// For `prompts.len() * n` sequences.
    pub permits: SeqPermits,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeqState {
    /// A further choice that waits for the first one's first token, so that it finds the prompt in the prefix cache.
    Planned,
    Live(SeqId),
    Ended,
}

/// The events of a request.
pub struct GenerationStream {
    events: mpsc::Receiver<ChoiceEvent>,
    /// For the choices that are still planned.
    sender: mpsc::Sender<ChoiceEvent>,
    engine: Arc<EngineLink>,
    request: GenerateRequest,
    seqs: Vec<SeqState>,
    num_open: usize,
}

impl GenerationStream {
    /// Sends the first choice of every prompt to the engine.
    ///
    /// # Errors
    /// [`SubmitError`]; what was sent already is stopped.
    pub(super) fn start(engine: Arc<EngineLink>, request: GenerateRequest) -> Result<Self, super::handle::SubmitError> {
        let num_seqs = request.prompts.len() * request.n as usize;
        debug_assert_eq!(request.permits.num_seqs(), num_seqs, "one permit per sequence");
        let (sender, events) = mpsc::channel(capacity(&request));
        let mut stream =
            Self { events, sender, engine, request, seqs: vec![SeqState::Planned; num_seqs], num_open: num_seqs };
        for prompt_idx in 0..stream.request.prompts.len() {
            let queued = stream.engine.admission.queue(stream.request.prompts[prompt_idx].ids.len())?;
            let permit = stream.request.permits.take_one(Some(queued));
            stream.submit(prompt_idx, 0, permit)?;
        }
        Ok(stream)
    }

    /// The next event; `None` when every choice has had its terminal event or was [ended](Self::end).
    ///
    /// Cancel-safe: an event is handed out or stays.
    pub async fn next(&mut self) -> Option<ChoiceEvent> {
        while self.num_open > 0 {
            let event = self.events.recv().await.expect("the stream holds a sender itself");
            if let Some(event) = self.accept(event) {
                return Some(event);
            }
        }
        None
    }

    /// The next event if it has happened already.
    pub fn try_next(&mut self) -> Option<ChoiceEvent> {
        while let Ok(event) = self.events.try_recv() {
            if let Some(event) = self.accept(event) {
                return Some(event);
            }
        }
        None
    }

    /// Stops one choice (its stop string has come up) and drops what else it produced.
    pub fn end(&mut self, choice: u32) {
        let state = &mut self.seqs[choice as usize];
        if let SeqState::Live(id) = *state {
            self.engine.abort(id);
        }
        if *state != SeqState::Ended {
            *state = SeqState::Ended;
            self.num_open -= 1;
        }
    }

    /// Whether every choice has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.num_open == 0
    }

    /// Books an event; `None` for one of a choice that has ended for the client.
    fn accept(&mut self, event: ChoiceEvent) -> Option<ChoiceEvent> {
        let choice = event.choice as usize;
        if self.seqs[choice] == SeqState::Ended {
            return None;
        }
        let is_terminal = matches!(event.event, SeqEvent::Finished(_) | SeqEvent::Failed(_));
        if is_terminal {
            self.seqs[choice] = SeqState::Ended;
            self.num_open -= 1;
        }
        let is_first_choice = choice.is_multiple_of(self.request.n as usize);
        if is_first_choice && (is_terminal || matches!(event.event, SeqEvent::Token { .. })) {
            self.start_siblings(choice);
        }
        Some(event)
    }

    /// Sends the other choices of a prompt, once.
    fn start_siblings(&mut self, first_choice: usize) {
        let n = self.request.n as usize;
        for offset in 1..n {
            if self.seqs[first_choice + offset] != SeqState::Planned {
                continue;
            }
            let permit = self.request.permits.take_one(None);
            if self.submit(first_choice / n, offset, permit).is_err() {
                // The sink was dropped unsent, which has put a failure into the channel: the choice is open until it is read.
                self.seqs[first_choice + offset] = SeqState::Live(SeqId(u64::MAX));
            }
        }
    }

    fn submit(&mut self, prompt_idx: usize, offset: usize, permit: SeqPermit) -> Result<(), EngineGone> {
        let choice = prompt_idx * self.request.n as usize + offset;
        let id = self.engine.next_seq_id();
        let prompt = &mut self.request.prompts[prompt_idx];
        let mut sampling = self.request.sampling.clone();
        sampling.max_tokens = prompt.max_tokens;
        sampling.seed = self.request.seed.wrapping_add(offset as u64);
        if offset > 0 {
            sampling.num_prompt_logprobs = None;
        }
        let is_last_use = offset + 1 == self.request.n as usize;
        let ids = if is_last_use { std::mem::take(&mut prompt.ids) } else { prompt.ids.clone() };
        let choice_u32 = u32::try_from(choice).expect("permits count in u32");
        let sink = ChannelSink { choice: choice_u32, events: self.sender.clone(), permit, is_over: false };
        let cache_salt = self.request.cache_salt;
        self.engine.add(Request { id, prompt: ids, sampling, cache_salt, sink: Box::new(sink) })?;
        self.seqs[choice] = SeqState::Live(id);
        Ok(())
    }
}

impl Drop for GenerationStream {
    fn drop(&mut self) {
        // First: a sequence whose abort command finds no room in the channel learns it from its sink.
        self.events.close();
        for state in &self.seqs {
            if let SeqState::Live(id) = *state {
                self.engine.abort(id);
            }
        }
    }
}

/// Events that all sequences of `request` can have. Nothing of this size is allocated.
fn capacity(request: &GenerateRequest) -> usize {
    let mut total = 0_usize;
    for prompt in &request.prompts {
        let prompt_events = if request.sampling.num_prompt_logprobs.is_some() { prompt.ids.len() } else { 0 };
        let per_choice = prompt.max_tokens as usize + EVENTS_BESIDES_TOKENS;
        total = total.saturating_add(prompt_events + per_choice.saturating_mul(request.n as usize));
    }
    total.min(tokio::sync::Semaphore::MAX_PERMITS)
}

/// The engine's end of a stream, for one choice.
struct ChannelSink {
    choice: u32,
    events: mpsc::Sender<ChoiceEvent>,
    permit: SeqPermit,
    is_over: bool,
}

impl EventSink for ChannelSink {
    fn send(&mut self, event: SeqEvent) -> Result<(), Disconnected> {
        match event {
            SeqEvent::Started { .. } => self.permit.leave_queue(),
            SeqEvent::Finished(_) | SeqEvent::Failed(_) => self.is_over = true,
            SeqEvent::PromptLogprobs(_) | SeqEvent::Token { .. } => {}
        }
        let event = ChoiceEvent { choice: self.choice, at: Instant::now(), event };
        self.events.try_send(event).map_err(|_| Disconnected)
    }

    fn is_disconnected(&self) -> bool {
        self.events.is_closed()
    }
}

impl Drop for ChannelSink {
    /// Dropped before its end: the engine has died. The client must learn it.
    fn drop(&mut self) {
        if !self.is_over {
            let lost = SeqEvent::Failed(SeqError::Runner("the engine has stopped".to_owned()));
            // Nobody to tell if this fails.
            let _ = self.send(lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, bounded};
    use tokenmill_models::runner::{ContextRules, Geometry};
    use tokenmill_scheduler::{
        engine::{Engine, EngineLimits},
        request::{Command, FinishReason},
        sim::FakeRunner,
    };

    use super::*;
    use crate::serving::admission::{Admission, AdmissionLimits};

    const GEOMETRY: Geometry = Geometry {
        block_size: 16,
        num_blocks: 64,
        max_batch_tokens: 64,
        max_batch_seqs: 8,
        max_logits_rows: 64,
        max_model_len: 256,
        vocab_size: 100,
        context: ContextRules::PLAIN,
    };

    struct Bench {
        link: Arc<EngineLink>,
        engine: Option<Engine<FakeRunner>>,
    }

    impl Bench {
        fn new() -> Self {
            let (commands, receiver) = bounded(64);
            let admission = Admission::new(AdmissionLimits { max_seqs: 8, max_queued_tokens: 200 });
            let link = EngineLink::new(commands, receiver.clone(), admission);
            Self { link: Arc::new(link), engine: Some(engine(receiver)) }
        }

        fn start(&self, n: u32, prompts: &[usize]) -> GenerationStream {
            let permits = self.link.admission.admit(n * u32::try_from(prompts.len()).unwrap()).unwrap();
            let prompts = prompts.iter().map(|len| PromptTokens { ids: (0..*len as u32).collect(), max_tokens: 5 });
            let request = GenerateRequest {
                prompts: prompts.collect(),
                n,
                sampling: SamplingParams { temperature: 1.0, ..SamplingParams::default() },
                seed: 7,
                cache_salt: 0,
                permits,
            };
            GenerationStream::start(Arc::clone(&self.link), request).unwrap()
        }

        fn step(&mut self) {
            let stats = self.engine.as_mut().unwrap().step();
            assert_eq!(stats.num_failed, 0);
        }

        /// Steps until all choices of `stream` have ended; their tokens.
        fn drain(&mut self, stream: &mut GenerationStream) -> Vec<Vec<TokenId>> {
            let mut tokens = vec![Vec::new(); stream.seqs.len()];
            for _ in 0..200 {
                self.step();
                while let Some(ChoiceEvent { choice, event, .. }) = stream.try_next() {
                    match event {
                        SeqEvent::Token { id, .. } => tokens[choice as usize].push(id),
                        SeqEvent::Finished(reason) => assert_eq!(reason, FinishReason::Length),
                        SeqEvent::Started { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert!(stream.is_finished());
            tokens
        }
    }

    fn engine(commands: Receiver<Command>) -> Engine<FakeRunner> {
        Engine::new(FakeRunner::new(GEOMETRY), EngineLimits::default(), commands, Box::new(|_, _| {}))
    }

    #[test]
    fn choices_share_the_prompt_and_differ_by_seed() {
        let mut bench = Bench::new();
        let mut stream = bench.start(3, &[40]);
        let mut cached = Vec::new();
        for _ in 0..50 {
            bench.step();
            while let Some(event) = stream.try_next() {
                if let SeqEvent::Started { num_cached_tokens } = event.event {
                    cached.push((event.choice, num_cached_tokens));
                }
            }
        }
        assert!(stream.is_finished());
        assert_eq!(cached[0], (0, 0));
        assert!(cached[1..].iter().all(|(_, cached)| *cached >= 32), "{cached:?}");

        let mut stream = bench.start(3, &[30]);
        let tokens = bench.drain(&mut stream);
        assert!(tokens.iter().all(|choice| choice.len() == 5));
        assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2]);
        // The second choice is what its seed gives alone.
        let mut alone = bench.start(1, &[30]);
        assert_eq!(bench.drain(&mut alone), [tokens[0].clone()]);
        drop(stream);
        assert_eq!(bench.link.admission.num_seqs(), 0);
    }

    #[test]
    fn each_prompt_of_a_list_is_what_it_is_alone() {
        let mut bench = Bench::new();
        let mut stream = bench.start(2, &[20, 35]);
        let together = bench.drain(&mut stream);
        let mut alone = bench.start(2, &[35]);
        assert_eq!(together[2..], bench.drain(&mut alone)[..]);
    }

    #[test]
    fn dropping_the_stream_frees_everything_within_a_step() {
        let mut bench = Bench::new();
        let stream = bench.start(1, &[100]);
        bench.step();
        assert_eq!(bench.link.admission.num_seqs(), 1);
        drop(stream);
        bench.step();
        assert_eq!(bench.link.admission.num_seqs(), 0);
        assert!(!bench.engine.as_ref().unwrap().has_work());
    }

    #[test]
    fn a_choice_that_is_ended_is_silent() {
        let mut bench = Bench::new();
        let mut stream = bench.start(1, &[10]);
        bench.step();
        stream.end(0);
        bench.step();
        assert!(stream.try_next().is_none() && stream.is_finished());
        assert_eq!(bench.link.admission.num_seqs(), 0);
    }

    #[test]
    fn prompt_tokens_that_wait_are_bounded() {
        let bench = Bench::new();
        let _waiting = bench.start(1, &[150]);
        let permits = bench.link.admission.admit(1).unwrap();
        let prompts = vec![PromptTokens { ids: vec![1; 100], max_tokens: 5 }];
        let sampling = SamplingParams::default();
        let request = GenerateRequest { prompts, n: 1, sampling, seed: 0, cache_salt: 0, permits };
        assert!(GenerationStream::start(Arc::clone(&bench.link), request).is_err());
        assert_eq!(bench.link.admission.num_seqs(), 1);
    }

    #[tokio::test]
    async fn the_death_of_the_engine_reaches_every_choice() {
        let mut bench = Bench::new();
        let mut stream = bench.start(2, &[10, 12]);
        bench.step();
        bench.engine = None;
        bench.link.end();
        let mut failed = Vec::new();
        while let Some(event) = stream.next().await {
            if matches!(event.event, SeqEvent::Failed(_)) {
                failed.push(event.choice);
            }
        }
        failed.sort_unstable();
        assert_eq!(failed, [0, 1, 2, 3]);
    }
}
