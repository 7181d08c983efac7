//! What a request asks and how it ended, whoever is asked.
//!
//! `load` knows servers only as [`Ask`]: `client` asks real ones, tests ask a model of one in paused time.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::live::Waiting;

/// Characters of a failure's detail, at most.
const MAX_DETAIL_CHARS: usize = 160;

/// Something that answers chat requests.
pub(crate) trait Ask: Send + Sync + 'static {
    /// Sends `prompt` and reads the answer to its end; drops `waiting` at the first text.
    fn ask(&self, prompt: &Prompt, waiting: Waiting) -> impl Future<Output = Result<Answer, Failure>> + Send;
}

/// One request.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// The whole conversation so far.
    pub(crate) messages: Vec<Value>,
    /// Asked for, exactly.
    pub(crate) output_tokens: u64,
    /// Whether the answer's text is needed, for the next turn.
    pub(crate) keep_text: bool,
}

/// What one answered request took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// From sending to the first event with text.
    pub(crate) first_token: Duration,
    /// Gaps between successive events with text, in microseconds.
    pub(crate) gaps_us: Vec<u32>,
    /// From sending to the end of the stream.
    pub(crate) total: Duration,
    /// Prompt tokens by the server's count.
    pub(crate) prompt_tokens: Option<u64>,
    /// Output tokens by the server's count; without one, events with text.
    pub(crate) output_tokens: u64,
    /// Whether `output_tokens` is the server's count.
    pub(crate) is_counted_by_server: bool,
    /// The text, if it was to be kept.
    pub(crate) text: String,
}

impl Answer {
    /// Mean time per output token after the first, in microseconds; `None` below two tokens.
    pub(crate) fn per_token_us(&self) -> Option<u64> {
        let sum: u64 = self.gaps_us.iter().map(|gap| u64::from(*gap)).sum();
        (self.output_tokens > 1).then(|| sum / (self.output_tokens - 1))
    }
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FailureKind {
    /// No connection, or it broke before the answer began.
    Connection,
    /// An answer with a status other than 2xx.
    Status,
    /// The stream ended without `[DONE]`, or broke off.
    Cut,
    /// An error event in the stream.
    ErrorEvent,
    /// Not ended within the time limit.
    Timeout,
    /// Something in the stream that is no chunk.
    Malformed,
    /// The stream carried no text.
    Empty,
    /// Never sent: too many requests were in flight.
    NotSent,
}

/// Why a request failed, in few words, so that equal failures count together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, detail: impl fmt::Display) -> Self {
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        Self { kind, detail: detail.to_string().chars().take(MAX_DETAIL_CHARS).map(clean).collect() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}
