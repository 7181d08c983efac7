//! What all handlers share, and the stage of life the server is in.

use crate::api::{ROUTES, Route};
use crate::auth::ApiKeys;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::serving::registry::Registry;
use crate::sessions::Sessions;
use crate::sse::SseOptions;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// No step takes this long.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What handlers share; one per server.
pub struct App {
    /// The settings, validated.
    pub config: Config,
    /// The models that are served.
    pub models: Registry,
    /// Conversations that are remembered.
    pub sessions: Sessions,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Who may ask.
    pub keys: ApiKeys,
    /// The endpoints.
    pub routes: &'static [Route],
    /// Loading, ready, draining.
    pub lifecycle: Lifecycle,
    /// KiB that request bodies may hold together (setting `server.max_body_total`).
    pub body_budget: Arc<Semaphore>,
    /// When the server started.
    pub started_at: Instant,
    /// The same in seconds since 1970, for `created` of models.
    pub started_at_unix_s: u64,
}

impl App {
    /// An app that is still loading; `keys` are those of the settings.
    pub fn new(config: Config, keys: ApiKeys) -> Arc<Self> {
        Self::with_routes(config, keys, ROUTES)
    }

    /// The same with other endpoints, for tests of what lies beneath them.
    pub fn with_routes(config: Config, keys: ApiKeys, routes: &'static [Route]) -> Arc<Self> {
        let budget = usize::try_from(config.server.max_body_total.get() >> 10).unwrap_or(usize::MAX);
        Arc::new(Self {
            body_budget: Arc::new(Semaphore::new(budget.min(Semaphore::MAX_PERMITS))),
            sessions: Sessions::new(&config),
            config,
            models: Registry::default(),
            metrics: Metrics::new(),
            keys,
            routes,
            lifecycle: Lifecycle::default(),
            started_at: Instant::now(),
            started_at_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        })
    }

    /// How event streams of this server behave.
    pub fn sse_options(&self) -> SseOptions {
        SseOptions {
            stall: self.config.server.stall_timeout.get(),
            keep_alive: self.config.server.sse_keep_alive.get(),
            cut: self.lifecycle.cut.clone(),
        }
    }
}

/// Where the server is in its life; it only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The model is being loaded.
    Loading,
    /// Everything is served.
    Ready,
    /// What runs is finished, nothing new is taken.
    Draining,
}

/// The server's stage of life, and what is still running.
#[derive(Debug, Default)]
pub struct Lifecycle {
    stage: AtomicU8,
    engine_dead: CancellationToken,
    num_steps: AtomicU64,
    /// The count of steps while there was work, and since when it has been that.
    seen: Mutex<Option<(u64, Instant)>>,
    in_flight: AtomicUsize,
    idle: Notify,
    draining: CancellationToken,
    cut: CancellationToken,
    closed: CancellationToken,
}

impl Lifecycle {
    /// The stage.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Loading,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }

    /// The model is loaded. Nothing happens while draining.
    pub fn set_ready(&self) {
        self.stage.fetch_max(1, Ordering::AcqRel);
    }

    /// Takes nothing new from now on.
    pub fn start_draining(&self) {
        self.stage.fetch_max(2, Ordering::AcqRel);
        self.draining.cancel();
    }

    /// Resolves when draining starts.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// The drain has run out of time: streams end with an error event, other requests with 503.
    pub fn cut_short(&self) {
        self.cut.cancel();
    }

    /// Resolves when the drain has run out of time.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Every connection is dropped, whatever runs on it.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Resolves when connections are to be dropped.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// The engine has died: `/health` and `/readyz` say so, the server drains and the process ends.
    pub fn set_engine_dead(&self) {
        self.engine_dead.cancel();
    }

    /// Whether the engine has died.
    pub fn is_engine_dead(&self) -> bool {
        self.engine_dead.is_cancelled()
    }

    /// Resolves when the engine has died.
    pub async fn engine_dead(&self) {
        self.engine_dead.cancelled().await;
    }

    /// The engine has finished a step.
    pub fn note_step(&self) {
        self.num_steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the engine has had work for [`STUCK_AFTER`] without finishing a step, as far as calls of this tell: the first
    /// call during a long step starts the clock.
    pub fn is_engine_stuck(&self, has_work: bool) -> bool {
        let num_steps = self.num_steps.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((steps, since)) if has_work && steps == num_steps => since.elapsed() > STUCK_AFTER,
            _ => {
                *seen = has_work.then(|| (num_steps, Instant::now()));
                false
            }
        }
    }

    /// Requests whose response has not been written to its end.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Resolves when nothing is in flight.
    pub async fn idle(&self) {
        loop {
            // Registered before the count is read, so that no wake-up is lost in between.
            let mut waiting = std::pin::pin!(self.idle.notified());
            waiting.as_mut().enable();
            if self.num_in_flight() == 0 {
                return;
            }
            waiting.await;
        }
    }

    pub(crate) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn leave(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_only_move_forward() {
        let life = Lifecycle::default();
        assert_eq!(life.stage(), Stage::Loading);
        life.start_draining();
        life.set_ready();
        assert_eq!(life.stage(), Stage::Draining);
    }

    #[test]
    fn an_engine_is_stuck_only_if_no_step_ends_while_there_is_work() {
        let life = Lifecycle::default();
        let long_ago = Instant::now().checked_sub(STUCK_AFTER + Duration::from_secs(1)).unwrap();
        let check = |has_work: bool, stuck: bool| assert_eq!(life.is_engine_stuck(has_work), stuck);
        check(true, false);
        *life.seen.lock().unwrap() = Some((0, long_ago));
        check(true, true);
        life.note_step();
        check(true, false);
        *life.seen.lock().unwrap() = Some((1, long_ago));
        check(false, false);
        check(true, false);
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_request() {
        let life = Arc::new(Lifecycle::default());
        life.idle().await;
        life.enter();
        life.enter();
        let waiter = tokio::spawn({
            let life = life.clone();
            async move { life.idle().await }
        });
        tokio::task::yield_now().await;
        life.leave();
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        life.leave();
        waiter.await.unwrap();
    }
}
