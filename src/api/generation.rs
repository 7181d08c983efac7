//! One request from its parameters to its last token, whatever shape its answer has.
//!
//! [`Generation::start`] refuses what can be refused before anything is sent; [`Generation::next`] then yields what is new,
//! choice by choice. Dropping a generation stops it in the engine. Counts and times of the request are kept here.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokenmill_models::runner::TokenId;
use tokenmill_scheduler::request::{FinishReason, SeqError, SeqEvent, TokenLogprobs};
use tokio::time::timeout_at;

use super::{
    Request,
    parameters::{Endpoint, Parameters},
    plan,
    types::usage::{CompletionTokensDetails, PromptTokensDetails, Timings, Usage},
};
use crate::{
    app::App,
    auth::Tenant,
    error::{ApiError, ErrorKind},
    serving::{
        handle::ModelHandle,
        stream::{ChoiceEvent, GenerateRequest, GenerationStream},
    },
    stream::choice::{ChoiceOutput, Delta, Finish},
    trace::{random_id, random_u64},
};

/// One prompt of a request.
pub(super) struct PromptState {
    /// Kept if it is echoed.
    pub(super) text: String,
    /// Kept if they are returned or echoed with log-probabilities.
    pub(super) ids: Vec<TokenId>,
    /// For all tokens but the first, if wanted.
    pub(super) logprobs: Vec<TokenLogprobs>,
    num_tokens: u32,
    num_cached_tokens: u32,
    /// Oldest turns of the conversation that did not fit.
    pub(super) num_dropped_turns: u32,
}

struct ChoiceState {
    output: ChoiceOutput,
    last_token_at: Option<Instant>,
    is_open: bool,
}

/// What is new about one choice.
pub(super) struct Update {
    /// Choice `j` of prompt `i` is `i * n + j`.
    pub(super) choice: u32,
    /// It is the choice's first.
    pub(super) opens: bool,
    /// Text and tokens, if any are ready.
    pub(super) delta: Option<Delta>,
}

/// A request that runs.
pub(super) struct Generation {
    pub(super) params: Parameters,
    pub(super) handle: Arc<ModelHandle>,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) prompts: Vec<PromptState>,
    choices: Vec<ChoiceState>,
    num_unfinished: usize,
    stream: GenerationStream,
    received_at: Instant,
    submitted_at: Instant,
    queue_deadline: Option<tokio::time::Instant>,
    started_at: Option<Instant>,
    first_token_at: Option<Instant>,
    last_token_at: Option<Instant>,
}

impl Generation {
    /// Validates, encodes, admits and submits.
    ///
    /// # Errors
    /// Everything that an HTTP status can still tell: 400, 404, 503.
    pub(super) async fn start(
        app: &App,
        request: &Request,
        endpoint: Endpoint,
        mut params: Parameters,
    ) -> Result<Self, ApiError> {
        let handle = app.models.get(&params.model)?;
        plan::check(&params, &handle, &app.config.limits)?;
        let sampling = plan::sampling(&params, &handle)?;
        let num_prompts = plan::num_prompts(&params);
        // Before any work is spent on the request: when the queue is full, saying so must stay cheap.
        let permits = handle.admit(num_prompts * params.n)?;
        let default_max_tokens = app.config.limits.default_max_tokens;
        let encoded = plan::encode(&mut params, &handle, default_max_tokens).await?;

        let keeps_ids = params.output.token_ids || sampling.num_prompt_logprobs.is_some();
        let mut prompts = Vec::with_capacity(encoded.len());
        let mut states = Vec::with_capacity(encoded.len());
        for prompt in encoded {
            let tokens = plan::fit(prompt.ids, &params, endpoint, default_max_tokens, handle.max_model_len())?;
            states.push(PromptState {
                text: if params.output.echo { prompt.text } else { String::new() },
                ids: if keeps_ids { tokens.ids.clone() } else { Vec::new() },
                logprobs: Vec::new(),
                num_tokens: u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX),
                num_cached_tokens: 0,
                num_dropped_turns: prompt.num_dropped_turns,
            });
            prompts.push(tokens);
        }
        let rules = Arc::new(plan::rules(&params, &handle));
        let num_choices = prompts.len() * params.n as usize;
        let new_choice = || ChoiceState {
            output: ChoiceOutput::new(Arc::clone(handle.tokenizer()), Arc::clone(&rules)),
            last_token_at: None,
            is_open: false,
        };
        let choices = std::iter::repeat_with(new_choice).take(num_choices).collect();
        let stream = handle.submit(GenerateRequest {
            prompts,
            n: params.n,
            sampling,
            seed: params.sampling.seed.map_or_else(random_u64, i64::cast_unsigned),
            cache_salt: cache_salt(request.tenant, &params),
            permits,
        })?;
        let queue_timeout = app.config.limits.queue_timeout.get();
        let num_prompt_tokens: u32 = states.iter().fold(0, |sum, state| sum.saturating_add(state.num_tokens));
        handle.metrics().request_prompt_tokens.record(f64::from(num_prompt_tokens));
        handle.metrics().prompt_tokens.increment(u64::from(num_prompt_tokens));
        Ok(Self {
            id: response_id(endpoint, &params),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            params,
            handle,
            prompts: states,
            choices,
            num_unfinished: num_choices,
            stream,
            received_at: request.received_at,
            submitted_at: Instant::now(),
            queue_deadline: (!queue_timeout.is_zero()).then(|| tokio::time::Instant::now() + queue_timeout),
            started_at: None,
            first_token_at: None,
            last_token_at: None,
        })
    }

    /// Choices in all.
    pub(super) fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// The prompt that `choice` continues.
    pub(super) fn prompt_of(&self, choice: u32) -> &PromptState {
        &self.prompts[(choice / self.params.n) as usize]
    }

    /// Whether every choice has had its last delta.
    pub(super) fn is_complete(&self) -> bool {
        self.num_unfinished == 0
    }

    /// What is new; `None` when all choices have ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        loop {
            let event = match self.queue_deadline.filter(|_| self.started_at.is_none()) {
                Some(deadline) => match timeout_at(deadline, self.stream.next()).await {
                    Ok(event) => event,
                    Err(_) => return Some(Err(ApiError::deadline_exceeded())),
                },
                None => self.stream.next().await,
            };
            if let Some(update) = self.absorb(event?).transpose() {
                return Some(update);
            }
        }
    }

    /// What is new already, without waiting: the rest of a step.
    pub(super) fn try_next(&mut self) -> Option<Result<Update, ApiError>> {
        loop {
            let event = self.stream.try_next()?;
            if let Some(update) = self.absorb(event).transpose() {
                return Some(update);
            }
        }
    }

    fn absorb(&mut self, event: ChoiceEvent) -> Result<Option<Update>, ApiError> {
        let ChoiceEvent { choice, at, event } = event;
        match event {
            SeqEvent::Started { num_cached_tokens } => {
                self.book_start(choice, num_cached_tokens, at);
                return Ok(None);
            }
            SeqEvent::PromptLogprobs(logprobs) => {
                self.prompts[(choice / self.params.n) as usize].logprobs.extend(logprobs);
                return Ok(None);
            }
            SeqEvent::Token { id, logprobs } => {
                self.book_token(choice, at);
                self.choices[choice as usize].output.push(id, logprobs);
            }
            SeqEvent::Finished(reason) => self.choices[choice as usize].output.finish(match reason {
                FinishReason::Stop => Finish::StopToken(None),
                FinishReason::Length => Finish::Length,
                FinishReason::Abort => return Err(ApiError::shutting_down()),
            }),
            SeqEvent::Failed(error) => {
                self.num_unfinished -= 1;
                self.handle.metrics().count_finished("error");
                return Err(seq_error(&error));
            }
        }
        let state = &mut self.choices[choice as usize];
        let delta = state.output.take();
        let opens = !std::mem::replace(&mut state.is_open, true);
        if let Some(finish) = delta.as_ref().and_then(|delta| delta.finish.as_ref()) {
            self.num_unfinished -= 1;
            self.handle.metrics().count_finished(finish.reason());
            if matches!(finish, Finish::StopText(_)) {
                // The engine knows no text: it must be told.
                self.stream.end(choice);
            }
        }
        Ok((opens || delta.is_some()).then_some(Update { choice, opens, delta }))
    }

    fn book_start(&mut self, choice: u32, num_cached_tokens: u32, at: Instant) {
        if choice.is_multiple_of(self.params.n) {
            self.prompts[(choice / self.params.n) as usize].num_cached_tokens = num_cached_tokens;
        }
        if self.started_at.is_none() {
            self.started_at = Some(at);
            self.handle.metrics().queue_time.record(at.saturating_duration_since(self.submitted_at));
        }
    }

    fn book_token(&mut self, choice: u32, at: Instant) {
        if self.first_token_at.is_none() {
            self.first_token_at = Some(at);
            self.handle.metrics().time_to_first_token.record(at.saturating_duration_since(self.received_at));
        }
        self.last_token_at = Some(at);
        if let Some(last) = self.choices[choice as usize].last_token_at.replace(at) {
            self.handle.metrics().inter_token.record(at.saturating_duration_since(last));
        }
    }

    fn num_generated_tokens(&self) -> u64 {
        self.choices.iter().map(|choice| u64::from(choice.output.num_tokens())).sum()
    }

    /// Counts so far.
    pub(super) fn usage(&self) -> Usage {
        let prompt_tokens = self.prompts.iter().map(|prompt| u64::from(prompt.num_tokens)).sum();
        let cached_tokens = self.prompts.iter().map(|prompt| u64::from(prompt.num_cached_tokens)).sum();
        let completion_tokens = self.num_generated_tokens();
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens, audio_tokens: 0 },
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }

    /// Times so far.
    pub(super) fn timings(&self) -> Timings {
        let usage = self.usage();
        let cache_n = usage.prompt_tokens_details.cached_tokens;
        let prompt_n = usage.prompt_tokens - cache_n;
        let predicted_n = usage.completion_tokens;
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        let prompt = Pace::new(prompt_n, between(self.started_at, self.first_token_at));
        let predicted = Pace::new(predicted_n.saturating_sub(1), between(self.first_token_at, self.last_token_at));
        Timings {
            cache_n,
            prompt_n,
            prompt_ms: prompt.total_ms,
            prompt_per_token_ms: prompt.per_token_ms,
            prompt_per_second: prompt.per_second,
            predicted_n,
            predicted_ms: predicted.total_ms,
            predicted_per_token_ms: predicted.per_token_ms,
            predicted_per_second: predicted.per_second,
            queue_ms: millis(between(Some(self.submitted_at), self.started_at)),
        }
    }
}

impl Drop for Generation {
    /// The record of the request, also of one whose client has left.
    fn drop(&mut self) {
        let usage = self.usage();
        let metrics = self.handle.metrics();
        #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
        metrics.request_generated_tokens.record(usage.completion_tokens as f64);
        if let Some(last) = self.last_token_at {
            metrics.request_latency.record(last.saturating_duration_since(self.received_at));
        }
        for _ in 0..self.num_unfinished {
            metrics.count_finished("abort");
        }
        tracing::debug!(
            id = self.id,
            model = self.handle.name(),
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.prompt_tokens_details.cached_tokens,
            completion_tokens = usage.completion_tokens,
            num_unfinished = self.num_unfinished,
            "generation ended"
        );
    }
}

/// A count over a time, in llama.cpp's units.
struct Pace {
    total_ms: f64,
    per_token_ms: f64,
    per_second: f64,
}

impl Pace {
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    fn new(num_tokens: u64, time: Duration) -> Self {
        let total_ms = millis(time);
        let num_tokens = num_tokens as f64;
        let per_token_ms = if num_tokens > 0.0 { total_ms / num_tokens } else { 0.0 };
        let per_second = if total_ms > 0.0 { num_tokens * 1e3 / total_ms } else { 0.0 };
        Self { total_ms, per_token_ms, per_second }
    }
}

/// Rounded to microseconds.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn response_id(endpoint: Endpoint, params: &Parameters) -> String {
    let prefix = match endpoint {
        Endpoint::Chat => "chatcmpl-",
        Endpoint::Completion => "cmpl-",
    };
    params.request_id.as_ref().map_or_else(|| random_id(prefix), |id| format!("{prefix}{id}"))
}

/// Requests of different tenants, or with different salts, never share blocks.
fn cache_salt(tenant: Tenant, params: &Parameters) -> u64 {
    if params.skip_cache {
        return random_u64();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&tenant.salt.to_le_bytes());
    // The tenant's part has a fixed length, so no salt can imitate another tenant; absent differs from every salt.
    if let Some(salt) = &params.cache_salt {
        hasher.update(b"+");
        hasher.update(salt.as_bytes());
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

fn seq_error(error: &SeqError) -> ApiError {
    match error {
        SeqError::Draining => ApiError::shutting_down(),
        SeqError::QueueFull => ApiError::overloaded(1),
        SeqError::NothingAllowed => {
            ApiError::new(ErrorKind::InvalidValue, error.to_string()).with_param("allowed_token_ids")
        }
        SeqError::Runner(_) | SeqError::NotFinite | SeqError::Invalid(_) => ApiError::server(error),
    }
}
