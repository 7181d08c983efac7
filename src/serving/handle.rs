//! One served model: its engine's thread, its tokenizer and template, and what it can do.
//!
//! The engine's thread alone touches scheduler, KV cache and runner. A handle talks to it through one bounded channel of
//! commands; requests get there only with an admission permit, so the channel has room for them by construction.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use tokenmill_models::{
    ModelInfo,
    runner::{Geometry, ModelRunner, SeqId},
};
use tokenmill_scheduler::{
    engine::{Engine, EngineLimits, Observer},
    request::{Command, Request},
};
use tokio::sync::Semaphore;

use super::{
    admission::{Admission, AdmissionLimits, QueueFull, SeqPermits},
    stream::{GenerateRequest, GenerationStream},
};
use crate::{
    error::ApiError,
    metrics::ModelMetrics,
    prompt::{ChatTemplate, Tokenizer},
};

/// Texts that are tokenized at the same time per model: the work is pure CPU time, and steps need the cores too.
const MAX_TEXT_TASKS: usize = 2;

/// Seconds after which a client may try again when the queue is full.
const RETRY_AFTER_S: u32 = 1;

/// Longest wait for the engine to take the command to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a model beside its weights.
pub struct ServedModel {
    /// What clients call it.
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Sizes, special tokens, defaults.
    pub info: ModelInfo,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text; base models have none.
    pub template: Option<ChatTemplate>,
    /// Where its requests are counted.
    pub metrics: ModelMetrics,
}

/// The engine's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineGone;

/// Why a request could not be handed to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SubmitError {
    #[error(transparent)]
    QueueFull(#[from] QueueFull),
    #[error(transparent)]
    EngineGone(#[from] EngineGone),
}

/// The way to an engine's thread.
///
/// A request that comes while the engine ends must not be forgotten in the channel: what the engine no longer takes is
/// dropped by whoever sees last that it has ended, and the dropped sinks tell their clients.
pub(super) struct EngineLink {
    commands: Sender<Command>,
    /// The engine's end of the channel once more, for what it leaves behind.
    leftover: Receiver<Command>,
    pub(super) admission: Admission,
    is_alive: AtomicBool,
}

impl EngineLink {
    pub(super) fn new(commands: Sender<Command>, leftover: Receiver<Command>, admission: Admission) -> Self {
        Self { commands, leftover, admission, is_alive: AtomicBool::new(true) }
    }

    /// An id that no other sequence of this process has.
    #[expect(clippy::unused_self, reason = "ids are handed out by engines, and unique beyond one")]
    pub(super) fn next_seq_id(&self) -> SeqId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        SeqId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a request whose sequence has a permit.
    pub(super) fn add(&self, request: Request) -> Result<(), EngineGone> {
        if !self.is_alive() {
            return Err(EngineGone);
        }
        // The channel holds more than all permits, so it is full only if the engine takes nothing any more.
        self.commands.try_send(Command::Add(Box::new(request))).map_err(|_| EngineGone)?;
        // Either the engine's thread finds the request when it clears up, or this finds that it has ended.
        if !self.is_alive() {
            self.drop_leftover();
        }
        Ok(())
    }

    fn is_alive(&self) -> bool {
        self.is_alive.load(Ordering::SeqCst)
    }

    /// The engine has ended: nothing is taken any more.
    pub(super) fn end(&self) {
        self.is_alive.store(false, Ordering::SeqCst);
        self.drop_leftover();
    }

    fn drop_leftover(&self) {
        while self.leftover.try_recv().is_ok() {}
    }

    /// Stops a sequence. Where the channel is full, the sequence ends at its next event: its receiver is gone.
    pub(super) fn abort(&self, id: SeqId) {
        let _sent = self.commands.try_send(Command::Abort(id));
    }
}

/// One served model.
pub struct ModelHandle {
    model: ServedModel,
    geometry: Geometry,
    fingerprint: String,
    longest_token_bytes: usize,
    link: Arc<EngineLink>,
    /// Bounds the tokenizing and templating that goes on at once.
    pub(crate) text_tasks: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ModelHandle {
    /// Starts the thread `engine-NAME` on `runner`. `on_death` is called if it ever panics.
    ///
    /// # Errors
    /// The system starts no thread.
    pub fn start<R: ModelRunner + 'static>(
        model: ServedModel,
        runner: R,
        limits: EngineLimits,
        admission: AdmissionLimits,
        observer: Observer,
        on_death: Box<dyn FnOnce() + Send>,
    ) -> io::Result<Arc<Self>> {
        let geometry = runner.geometry();
        // An add and an abort per permit, twice: those of sequences that ended in the step that is under way, and their
        // successors'. The last place is for the command to stop.
        let (commands, receiver) = bounded(admission.max_seqs as usize * 4 + 1);
        let link = Arc::new(EngineLink::new(commands, receiver.clone(), Admission::new(admission)));
        let engine = Engine::new(runner, limits, receiver, observer);
        let thread = thread::Builder::new().name(format!("engine-{}", model.name)).spawn({
            let link = Arc::clone(&link);
            move || {
                let result = catch_unwind(AssertUnwindSafe(|| engine.run()));
                link.end();
                if let Err(panic) = result {
                    tracing::error!(panic = panic_text(panic.as_ref()), "the engine has died");
                    on_death();
                }
            }
        })?;
        let longest_token_bytes = longest_token_bytes(&model.tokenizer);
        Ok(Arc::new(Self {
            fingerprint: fingerprint(&model),
            model,
            geometry,
            longest_token_bytes,
            link,
            text_tasks: Arc::new(Semaphore::new(MAX_TEXT_TASKS)),
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// What clients call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.model.name
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn created(&self) -> u64 {
        self.model.created
    }

    /// Sizes, special tokens, defaults.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.model.info
    }

    /// Text to ids and back.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.model.tokenizer
    }

    /// Messages to text, if the model can chat.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.model.template.as_ref()
    }

    /// Where its requests are counted.
    #[must_use]
    pub fn metrics(&self) -> &ModelMetrics {
        &self.model.metrics
    }

    /// Sizes of the runner.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Tokens that prompt and output of a request may have together: by the model, and by the KV cache.
    #[must_use]
    pub fn max_model_len(&self) -> u32 {
        self.geometry.max_model_len.min(self.geometry.num_blocks.saturating_mul(self.geometry.block_size))
    }

    /// Ids below this are tokens.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        self.geometry.vocab_size
    }

    /// Longest text that can fit: no text has fewer tokens than bytes divided by the longest token's.
    ///
    /// Normalizers may shorten a text (composed characters), by no more than a factor of three.
    #[must_use]
    pub fn max_text_bytes(&self) -> usize {
        (self.max_model_len() as usize).saturating_mul(self.longest_token_bytes).saturating_mul(3)
    }

    /// OpenAI's `system_fingerprint`: the same as long as the same request gives the same answer.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether the engine's thread runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.link.is_alive()
    }

    /// The bounds on what it takes on.
    #[must_use]
    pub fn admission_limits(&self) -> AdmissionLimits {
        self.link.admission.limits()
    }

    /// Sequences that run or wait now.
    #[must_use]
    pub fn num_seqs(&self) -> usize {
        self.link.admission.num_seqs()
    }

    /// How long every request has been turned away for want of room.
    #[must_use]
    pub fn closed_for(&self) -> Duration {
        self.link.admission.closed_for()
    }

    /// Permission for `num_seqs` sequences, to be had before any work is spent on a request.
    ///
    /// # Errors
    /// 503 `server_is_overloaded` when fewer are free; 500 when the engine has died.
    pub fn admit(&self, num_seqs: u32) -> Result<SeqPermits, ApiError> {
        if !self.is_alive() {
            return Err(ApiError::server(EngineGone));
        }
        self.link.admission.admit(num_seqs).map_err(|QueueFull| self.overloaded())
    }

    fn overloaded(&self) -> ApiError {
        self.model.metrics.rejected.increment(1);
        ApiError::overloaded(RETRY_AFTER_S)
    }

    /// Hands a request to the engine.
    ///
    /// # Errors
    /// 503 `server_is_overloaded` when too many prompt tokens wait; 500 when the engine has died.
    pub fn submit(&self, request: GenerateRequest) -> Result<GenerationStream, ApiError> {
        GenerationStream::start(Arc::clone(&self.link), request).map_err(|error| match error {
            SubmitError::QueueFull(QueueFull) => self.overloaded(),
            SubmitError::EngineGone(gone) => ApiError::server(gone),
        })
    }

    /// Lets the engine finish what it has, then waits for its thread to end. Blocks.
    pub fn stop(&self) {
        // Fails only if the engine has ended already.
        let _sent = self.link.commands.send_timeout(Command::Drain, STOP_PATIENCE);
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked outside the engine");
        }
    }
}

impl Drop for ModelHandle {
    /// The engine finishes what it has, then its thread ends.
    fn drop(&mut self) {
        let _sent = self.link.commands.try_send(Command::Drain);
    }
}

/// The longest byte string of one token, at least 1.
fn longest_token_bytes(tokenizer: &Tokenizer) -> usize {
    let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    ids.map(|id| tokenizer.token_bytes(id).len()).max().unwrap_or(1).max(1)
}

fn fingerprint(model: &ServedModel) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
    hasher.update(model.name.as_bytes());
    hasher.update(format!("{:?}", model.info).as_bytes());
    format!("fp_{}", &hasher.finalize().to_hex()[..10])
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
