//! What a run looks like while it goes on: for the progress line, and for giving up a probe that cannot pass any more.
//!
//! Counts agree with what was begun and ended so far. Written by `load` and `client`, read by `progress` and `load`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// The counts of one run.
pub(crate) struct Live {
    /// Of the first token; later ones are counted.
    limit: Option<Duration>,
    counts: Mutex<Counts>,
}

/// How far a run is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    started: Option<Instant>,
    count_from: Option<Instant>,
    begun: u64,
    pub(crate) in_flight: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) output_tokens: u64,
    /// First tokens that came after the limit, of requests due in the counted part.
    late: u64,
    /// Requests without a first token yet, oldest first.
    waiting: BTreeSet<(Instant, u64)>,
}

/// A request that waits for its first token; dropped when it comes, or when the request ends without one.
pub(crate) struct Waiting {
    live: Arc<Live>,
    due: Instant,
    id: u64,
}

impl Live {
    pub(crate) fn new(limit: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { limit, counts: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("nothing panics under this lock")
    }

    /// The run begins; only what is due from `count_from` on counts as late.
    pub(crate) fn start(&self, count_from: Instant) {
        let mut counts = self.lock();
        counts.started = Some(Instant::now());
        counts.count_from = Some(count_from);
    }

    /// A request begins that was due at `due`.
    pub(crate) fn begin(self: &Arc<Self>, due: Instant) -> Waiting {
        let mut counts = self.lock();
        let id = counts.begun;
        counts.begun += 1;
        counts.in_flight += 1;
        counts.waiting.insert((due, id));
        Waiting { live: Arc::clone(self), due, id }
    }

    /// A request has ended; `output_tokens` if it was answered.
    pub(crate) fn end(&self, output_tokens: Option<u64>) {
        let mut counts = self.lock();
        counts.in_flight -= 1;
        match output_tokens {
            Some(tokens) => {
                counts.answered += 1;
                counts.output_tokens += tokens;
            }
            None => counts.failed += 1,
        }
    }

    /// A copy of the counts, without the requests that wait.
    pub(crate) fn counts(&self) -> Counts {
        let counts = self.lock();
        Counts { waiting: BTreeSet::new(), ..*counts }
    }

    /// Requests of the counted part whose first token came late, or is already late.
    pub(crate) fn num_late(&self) -> u64 {
        let counts = self.lock();
        let (Some(limit), Some(count_from)) = (self.limit, counts.count_from) else { return 0 };
        let now = Instant::now();
        let overdue = counts.waiting.iter().map(|(due, _)| *due).take_while(|due| *due + limit < now);
        counts.late + overdue.filter(|due| *due >= count_from).count() as u64
    }
}

impl Counts {
    /// Time since the run began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.map(|started| started.elapsed()).unwrap_or_default()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut counts = self.live.lock();
        counts.waiting.remove(&(self.due, self.id));
        let is_late = self.live.limit.is_some_and(|limit| self.due.elapsed() > limit);
        if is_late && counts.count_from.is_some_and(|count_from| self.due >= count_from) {
            counts.late += 1;
        }
    }
}
