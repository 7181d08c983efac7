//! What goes into the engine and what comes out: requests, commands, events.

use tokenmill_models::runner::{SeqId, TokenId};

/// How the next token is chosen. Validated by the gateway: every id is below the vocabulary's size.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token; else logits are divided by it.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens with at least this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens with at least `min_p` times the probability of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Subtracted once per earlier occurrence in the output (OpenAI's definition).
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in the output (OpenAI's definition).
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and output (CTRL, Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logit of each token; at most one entry per token, −∞ forbids it.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// If not empty, only these tokens may be chosen.
    pub allowed_token_ids: Vec<TokenId>,
    /// Seed of this sequence's own generator.
    pub seed: u64,
    /// Output tokens at most; 0 computes the prompt (for its log-probabilities) and chooses nothing.
    pub max_tokens: u32,
    /// No stop token may be chosen before this many output tokens.
    pub min_tokens: u32,
    /// Tokens that end the sequence (end-of-sequence tokens included unless the client ignores them).
    pub stop_token_ids: Vec<TokenId>,
    /// Log-probabilities with each output token: of the token, and of this many most likely ones.
    pub num_logprobs: Option<u32>,
    /// The same for every prompt token but the first.
    pub num_prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    /// OpenAI's defaults: temperature 1, nothing cut off, nothing penalised; 16 tokens.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_token_ids: Vec::new(),
            seed: 0,
            max_tokens: 16,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            num_logprobs: None,
            num_prompt_logprobs: None,
        }
    }
}

/// Log-probabilities at one position, natural logarithm.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that stands at this position.
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was chosen (it is the last `Token` event).
    Stop,
    /// `max_tokens` were produced, or the model's length is reached.
    Length,
    /// The gateway asked for it.
    Abort,
}

/// Why a sequence failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeqError {
    /// The model runner failed on a step that this sequence was part of.
    #[error("the model failed: {0}")]
    Runner(String),
    /// The model's logits for this sequence are not numbers.
    #[error("the model produced logits that are not finite")]
    NotFinite,
    /// Bias, allowed tokens and banned stop tokens together leave no token to choose.
    #[error("logit_bias, allowed_token_ids and min_tokens together forbid every token")]
    NothingAllowed,
    /// The request breaks a promise of [`Request`]; the gateway should have refused it.
    #[error("the request cannot run: {0}")]
    Invalid(String),
    /// As many sequences wait as the engine's limits allow.
    #[error("the engine's queue is full")]
    QueueFull,
    /// The engine is draining and takes nothing new.
    #[error("the engine is shutting down")]
    Draining,
}

/// What happens to one sequence, in order: `Started`, prompt log-probabilities if wanted, tokens, one terminal event.
#[derive(Clone, Debug, PartialEq)]
pub enum SeqEvent {
    /// The sequence enters its first step; `num_cached_tokens` of its prompt need no computation.
    Started {
        /// Prompt tokens found in the prefix cache.
        num_cached_tokens: u32,
    },
    /// Log-probabilities of the next prompt tokens, in order; the first entry of all is for prompt token 1.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// One output token.
    Token {
        /// The token that was chosen.
        id: TokenId,
        /// Present if `num_logprobs` was set.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// Terminal.
    Finished(FinishReason),
    /// Terminal.
    Failed(SeqError),
}

/// The receiver of a sequence's events has gone; the sequence is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnected;

/// Where one sequence's events go. The gateway implements it on a bounded channel.
///
/// It must not block. Dropping a sink without a terminal event means that the engine died.
pub trait EventSink: Send {
    /// Hands over one event.
    ///
    /// # Errors
    /// [`Disconnected`] when nobody listens any more.
    fn send(&mut self, event: SeqEvent) -> Result<(), Disconnected>;

    /// Whether nobody listens any more, as far as can be told without sending. Asked once per step, so that a sequence
    /// that waits or computes its prompt is given up as soon as its client has gone.
    fn is_disconnected(&self) -> bool {
        false
    }
}

/// One sequence to run.
pub struct Request {
    /// Its identity.
    pub id: SeqId,
    /// At least one token, every one below the vocabulary's size, and fewer than the model's length.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Prefixes are shared only between requests with the same salt (a keyed digest of the tenant).
    pub cache_salt: u64,
    /// Receives the events.
    pub sink: Box<dyn EventSink>,
}

/// What the gateway asks of the engine.
pub enum Command {
    /// Run a sequence.
    Add(Box<Request>),
    /// Stop a sequence; nothing happens if it has ended already.
    Abort(SeqId),
    /// Finish what was admitted, take nothing new, then return from `Engine::run`.
    Drain,
}
