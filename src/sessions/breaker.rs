//! A circuit breaker: while a server is away, asking it costs nothing.
//!
//! The first failure opens it. From then on a task of its own asks at short intervals whether the server is back, so no
//! request ever waits for the answer; the first success closes the breaker.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Between two questions whether the server is back.
const PROBE_EVERY: Duration = Duration::from_millis(300);

/// Open or closed.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    is_open: AtomicBool,
}

impl Breaker {
    /// Whether the server is known to be away.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// The server has failed. `probe` says whether it is back: `None` when nobody needs to know any more.
    pub(super) fn trip<F>(self: &Arc<Self>, probe: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Option<bool>> + Send,
    {
        if self.is_open.swap(true, Ordering::AcqRel) {
            return;
        }
        let breaker = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PROBE_EVERY).await;
                match probe().await {
                    Some(false) => {}
                    Some(true) => break,
                    None => return,
                }
            }
            breaker.is_open.store(false, Ordering::Release);
            tracing::info!("the session store is back");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test(start_paused = true)]
    async fn it_stays_open_until_a_probe_succeeds() {
        let breaker = Arc::new(Breaker::default());
        let num_probes = Arc::new(AtomicUsize::new(0));
        let probe = |num_probes: &Arc<AtomicUsize>| {
            let num_probes = Arc::clone(num_probes);
            move || {
                let number = num_probes.fetch_add(1, Ordering::Relaxed);
                async move { Some(number >= 2) }
            }
        };
        assert!(!breaker.is_open());
        breaker.trip(probe(&num_probes));
        // A second failure starts no second probe.
        breaker.trip(probe(&num_probes));
        tokio::time::sleep(PROBE_EVERY * 2 + PROBE_EVERY / 2).await;
        assert!(breaker.is_open() && num_probes.load(Ordering::Relaxed) == 2);
        tokio::time::sleep(PROBE_EVERY).await;
        assert!(!breaker.is_open() && num_probes.load(Ordering::Relaxed) == 3);
    }
}
