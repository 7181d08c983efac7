//! A model of a server in tokio's time, for tests: known delays, a known capacity, planned failures.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::answer::{Answer, Ask, Failure, FailureKind, Prompt};
use crate::live::Waiting;

/// Answers with the given delays; a token is a word.
pub(crate) struct ModelServer {
    pub(crate) first: Duration,
    pub(crate) gap: Duration,
    /// Requests in work at once.
    pub(crate) workers: Semaphore,
    /// When nothing is begun.
    pub(crate) pause: Option<Range<Instant>>,
    /// Each such request fails.
    pub(crate) fail_every: u64,
    pub(crate) asked: AtomicU64,
}

impl ModelServer {
    /// Any number at once.
    pub(crate) fn parallel(first: Duration, gap: Duration) -> Self {
        let workers = Semaphore::new(Semaphore::MAX_PERMITS);
        Self { first, gap, workers, pause: None, fail_every: u64::MAX, asked: AtomicU64::new(0) }
    }

    /// One after another: its highest rate is one per `each`.
    pub(crate) fn serial(each: Duration) -> Self {
        Self { workers: Semaphore::new(1), ..Self::parallel(each, Duration::ZERO) }
    }
}

impl Ask for ModelServer {
    async fn ask(&self, prompt: &Prompt, waiting: Waiting) -> Result<Answer, Failure> {
        let sent = Instant::now();
        if (self.asked.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.fail_every) {
            return Err(Failure::new(FailureKind::Status, "status 503"));
        }
        let _worker = self.workers.acquire().await.expect("it is never closed");
        if let Some(pause) = self.pause.as_ref().filter(|pause| pause.contains(&Instant::now())) {
            sleep_until(pause.end).await;
        }
        sleep(self.first).await;
        drop(waiting);
        let first_token = sent.elapsed();
        let mut gaps_us = Vec::new();
        for _ in 1..prompt.output_tokens {
            let before = Instant::now();
            sleep(self.gap).await;
            gaps_us.push(u32::try_from(before.elapsed().as_micros()).expect("a short gap"));
        }
        let words = prompt.messages.iter().filter_map(|message| message["content"].as_str());
        let prompt_tokens: usize = words.map(|text| text.split_whitespace().count()).sum();
        Ok(Answer {
            first_token,
            gaps_us,
            total: sent.elapsed(),
            prompt_tokens: Some(prompt_tokens as u64),
            output_tokens: prompt.output_tokens,
            is_counted_by_server: true,
            text: "word ".repeat(prompt.output_tokens as usize),
        })
    }
}
