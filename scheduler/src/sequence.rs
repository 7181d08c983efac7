//! [`Sequence`]: one request on its way through the engine.
//!
//! Invariant: K and V of the first `num_computed_tokens` tokens stand in `blocks`, in order, except those in blocks that
//! were left behind. Owned by the scheduler,
//! in `waiting` or in `running`.

use crate::block_key::BlockKey;
use crate::request::{EventSink, FinishReason, Request, SeqError, SeqEvent};
use crate::sampling::Sampler;
use tokenmill_models::runner::{BlockId, Geometry, SeqId, TokenId};

/// Why a sequence leaves the scheduler after this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished(FinishReason),
    Failed(SeqError),
}

/// One request with everything the engine knows about it.
pub struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) salt: u64,
    /// Prompt, then output.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt_tokens: u32,
    /// Prompt and output tokens at most: limited by `max_tokens` and by the model's length.
    pub(crate) max_len: u32,
    /// Tokens whose K and V are in `blocks`.
    pub(crate) num_computed_tokens: u32,
    /// Tokens and rows of logits planned for the current step.
    pub(crate) num_scheduled_tokens: u32,
    pub(crate) num_scheduled_rows: u32,
    /// Block table; append-only while the sequence runs, but for blocks that are left behind.
    pub(crate) blocks: Vec<BlockId>,
    /// Blocks at the head of the table that were given back because no token will reach them again.
    pub(crate) num_left_behind: u32,
    /// Whether the K and V in `blocks` are those of a long sequence.
    pub(crate) is_long: bool,
    /// `keys[i]` names the tokens before block `i`; computed when first needed, `keys[0]` is the salt's root.
    pub(crate) keys: Vec<BlockKey>,
    /// Full blocks at the head of the table whose contents have been offered for reuse.
    pub(crate) num_published_blocks: u32,
    /// Prompt tokens whose successor's log-probabilities have been sent.
    pub(crate) num_prompt_logprobs_sent: u32,
    pub(crate) has_started: bool,
    pub(crate) is_gone: bool,
    pub(crate) end: Option<End>,
    pub(crate) sampler: Sampler,
    sink: Box<dyn EventSink>,
}

impl Sequence {
    /// Checks what the gateway has promised about a request.
    ///
    /// # Errors
    /// Hands the request back with [`SeqError::Invalid`] if it could never run on a runner of this geometry, or if a
    /// token is outside the vocabulary.
    #[expect(clippy::result_large_err, reason = "the request goes back to the caller, who owns its sink")]
    pub fn new(request: Request, geometry: &Geometry) -> Result<Self, (Request, SeqError)> {
        if let Err(message) = check(&request, geometry) {
            return Err((request, SeqError::Invalid(message)));
        }
        let Request { id, prompt, sampling, cache_salt, sink } = request;
        let num_prompt_tokens = u32::try_from(prompt.len()).expect("checked to be below the model's length");
        let max_len = num_prompt_tokens.saturating_add(sampling.max_tokens).min(max_len(geometry));
        Ok(Self {
            id,
            salt: cache_salt,
            tokens: prompt,
            num_prompt_tokens,
            max_len,
            num_computed_tokens: 0,
            num_scheduled_tokens: 0,
            num_scheduled_rows: 0,
            blocks: Vec::new(),
            num_left_behind: 0,
            is_long: geometry.context.is_long(num_prompt_tokens),
            keys: Vec::new(),
            num_published_blocks: 0,
            num_prompt_logprobs_sent: 0,
            has_started: false,
            is_gone: false,
            end: None,
            sampler: Sampler::new(sampling),
            sink,
        })
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> SeqId {
        self.id
    }

    /// Tokens so far, prompt and output.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.tokens.len()).expect("at most the model's length")
    }

    /// Always false: a prompt has at least one token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens whose K and V are still to compute.
    #[must_use]
    pub fn num_pending_tokens(&self) -> u32 {
        self.len() - self.num_computed_tokens
    }

    /// Output tokens so far.
    #[must_use]
    pub fn num_output_tokens(&self) -> u32 {
        self.len() - self.num_prompt_tokens
    }

    /// The first token whose row of logits is still wanted for the prompt's log-probabilities, if any is.
    pub(crate) fn prompt_logprobs_from(&self) -> Option<u32> {
        let wanted = self.sampler.params().num_prompt_logprobs.is_some();
        (wanted && self.num_prompt_logprobs_sent + 1 < self.num_prompt_tokens).then_some(self.num_prompt_logprobs_sent)
    }

    /// Tokens at the start that may come from the prefix cache: all but the last, whose logits are needed, and none
    /// whose logits are wanted for the prompt's log-probabilities.
    pub(crate) fn max_cached_tokens(&self) -> u32 {
        self.prompt_logprobs_from().unwrap_or(u32::MAX).min(self.len() - 1)
    }

    /// How much of what is pending fits a step with `tokens_left` tokens and `rows_left` rows of logits, if computation
    /// starts at token `start`: tokens and rows.
    ///
    /// ```text
    /// prompt   |------- log-probabilities sent -------|------ one row each ------|
    ///          0      start                         from                 start + tokens
    /// ```
    pub(crate) fn chunk_from(&self, start: u32, tokens_left: u32, rows_left: u32) -> (u32, u32) {
        let num_tokens = (self.len() - start).min(tokens_left);
        if let Some(from) = self.prompt_logprobs_from() {
            let without_row = from.saturating_sub(start);
            let num_tokens = num_tokens.min(without_row.saturating_add(rows_left));
            return (num_tokens, num_tokens.saturating_sub(without_row));
        }
        match (start + num_tokens == self.len(), rows_left) {
            (false, _) => (num_tokens, 0),
            (true, 0) => (num_tokens.saturating_sub(1), 0),
            (true, _) => (num_tokens, 1),
        }
    }

    /// The sequence has outgrown [`ContextRules::switch_len`]: its K and V, which have been given back, are to be computed
    /// anew.
    ///
    /// [`ContextRules::switch_len`]: tokenmill_models::runner::ContextRules::switch_len
    pub(crate) fn become_long(&mut self) {
        self.is_long = true;
        self.keys.clear();
    }

    /// Reserves the memory that the sequence may need until its end, so that no step allocates.
    pub(crate) fn reserve(&mut self, geometry: &Geometry) {
        let max_blocks = geometry.num_blocks_for(self.max_len) as usize + 1;
        self.tokens.reserve_exact(self.max_len as usize - self.tokens.len());
        self.blocks.reserve_exact(max_blocks.saturating_sub(self.blocks.len()));
        self.keys.reserve_exact(max_blocks.saturating_sub(self.keys.len()));
    }

    /// Hands an event to the client; one that has gone is remembered.
    pub(crate) fn emit(&mut self, event: SeqEvent) {
        self.is_gone = self.is_gone || self.sink.send(event).is_err();
    }

    /// Looks whether the client has gone.
    pub(crate) fn poll_gone(&mut self) -> bool {
        self.is_gone = self.is_gone || self.sink.is_disconnected();
        self.is_gone
    }

    /// Sends the terminal event; the sequence ends here.
    pub(crate) fn finish(mut self: Box<Self>, end: End) {
        if !self.is_gone {
            self.emit(match end {
                End::Finished(reason) => SeqEvent::Finished(reason),
                End::Failed(error) => SeqEvent::Failed(error),
            });
        }
    }
}

/// Tokens that one sequence may have at most: limited by the model and by the KV cache.
fn max_len(geometry: &Geometry) -> u32 {
    geometry.max_model_len.min(geometry.num_blocks.saturating_mul(geometry.block_size))
}

fn check(request: &Request, geometry: &Geometry) -> Result<(), String> {
    let Request { prompt, sampling, .. } = request;
    if prompt.is_empty() {
        return Err("the prompt has no tokens".to_owned());
    }
    let max_len = max_len(geometry);
    // A prompt that fills the model's length leaves no place for an output token.
    if prompt.len() + usize::from(sampling.max_tokens > 0) > max_len as usize {
        return Err(format!("a prompt of {} tokens exceeds the engine's {max_len}", prompt.len()));
    }
    let biased = sampling.logit_bias.iter().map(|(token, _)| token);
    let mut tokens = prompt.iter().chain(&sampling.allowed_token_ids).chain(biased);
    if let Some(token) = tokens.find(|&&token| token >= geometry.vocab_size) {
        return Err(format!("token {token} is outside the vocabulary of {}", geometry.vocab_size));
    }
    Ok(())
}
