//! The two bounds on what waits and runs: sequences, and prompt tokens that wait for their first step.
//!
//! Every choice of every prompt is a sequence. A permit travels inside the sequence's event sink, so it comes back exactly
//! when the engine lets the sequence go, however that happens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much one engine takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Sequences that run or wait.
    pub max_seqs: u32,
    /// Prompt tokens that wait.
    pub max_queued_tokens: u32,
}

/// One of the bounds is reached; the request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct QueueFull;

/// Hands out permits; never waits.
#[derive(Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    seqs: Arc<Semaphore>,
    queued_tokens: Arc<Semaphore>,
    /// The first of the requests that have been turned away since one was taken.
    refusing_since: Mutex<Option<Instant>>,
}

/// Permission to run a number of sequences; dropping it gives them back.
#[derive(Debug)]
pub struct SeqPermits(OwnedSemaphorePermit);

/// Permission for one sequence.
#[derive(Debug)]
pub struct SeqPermit {
    _seq: OwnedSemaphorePermit,
    queued_tokens: Option<OwnedSemaphorePermit>,
}

impl Admission {
    /// Everything is free.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            seqs: Arc::new(Semaphore::new(limits.max_seqs as usize)),
            queued_tokens: Arc::new(Semaphore::new(limits.max_queued_tokens as usize)),
            refusing_since: Mutex::new(None),
        }
    }

    /// The bounds.
    #[must_use]
    pub fn limits(&self) -> AdmissionLimits {
        self.limits
    }

    /// Sequences that run or wait now.
    #[must_use]
    pub fn num_seqs(&self) -> usize {
        (self.limits.max_seqs as usize).saturating_sub(self.seqs.available_permits())
    }

    /// Permission for `num_seqs` sequences at once.
    ///
    /// # Errors
    /// [`QueueFull`] when fewer are free.
    pub fn admit(&self, num_seqs: u32) -> Result<SeqPermits, QueueFull> {
        let permits = self.seqs.clone().try_acquire_many_owned(num_seqs).map(SeqPermits).map_err(|_| QueueFull);
        let mut since = self.refusing_since.lock().unwrap_or_else(PoisonError::into_inner);
        match permits {
            Ok(_) => *since = None,
            Err(QueueFull) => *since = since.or_else(|| Some(Instant::now())),
        }
        permits
    }

    /// How long every request has been turned away; zero as soon as there is room for one sequence.
    #[must_use]
    pub fn closed_for(&self) -> Duration {
        if self.seqs.available_permits() > 0 {
            return Duration::ZERO;
        }
        let since = *self.refusing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Permission for a prompt of `num_tokens` to wait. A prompt longer than the bound waits alone.
    ///
    /// # Errors
    /// [`QueueFull`] when too many tokens wait already.
    pub fn queue(&self, num_tokens: usize) -> Result<OwnedSemaphorePermit, QueueFull> {
        let num_tokens = u32::try_from(num_tokens).unwrap_or(u32::MAX).min(self.limits.max_queued_tokens);
        self.queued_tokens.clone().try_acquire_many_owned(num_tokens).map_err(|_| QueueFull)
    }
}

impl SeqPermits {
    /// Takes one sequence's share out, with the permit for its prompt if it waits with one of its own.
    ///
    /// # Panics
    /// When all shares have been taken.
    pub fn take_one(&mut self, queued_tokens: Option<OwnedSemaphorePermit>) -> SeqPermit {
        let seq = self.0.split(1).expect("a request takes one permit per sequence");
        SeqPermit { _seq: seq, queued_tokens }
    }

    /// Sequences that it still allows.
    #[must_use]
    pub fn num_seqs(&self) -> usize {
        self.0.num_permits()
    }
}

impl SeqPermit {
    /// The sequence has entered its first step: its prompt waits no more.
    pub fn leave_queue(&mut self) {
        self.queued_tokens = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_back_one_by_one() {
        let admission = Admission::new(AdmissionLimits { max_seqs: 4, max_queued_tokens: 100 });
        let mut permits = admission.admit(3).unwrap();
        assert_eq!(admission.admit(2).unwrap_err(), QueueFull);
        let first = permits.take_one(None);
        drop(permits);
        assert_eq!(admission.num_seqs(), 1);
        drop(first);
        assert_eq!(admission.num_seqs(), 0);
        assert!(admission.admit(4).is_ok());
    }

    #[test]
    fn closed_is_full_and_refusing() {
        let admission = Admission::new(AdmissionLimits { max_seqs: 1, max_queued_tokens: 100 });
        let held = admission.admit(1).unwrap();
        assert_eq!(admission.closed_for(), Duration::ZERO, "full, but nobody has been turned away");
        admission.admit(1).unwrap_err();
        let first = admission.refusing_since.lock().unwrap().unwrap();
        admission.admit(1).unwrap_err();
        assert_eq!(*admission.refusing_since.lock().unwrap(), Some(first));
        assert!(admission.closed_for() > Duration::ZERO);
        drop(held);
        assert_eq!(admission.closed_for(), Duration::ZERO);
        let _again = admission.admit(1).unwrap();
        assert_eq!(admission.closed_for(), Duration::ZERO, "a request was taken since");
    }

    #[test]
    fn queued_tokens_are_given_back_at_the_first_step() {
        let admission = Admission::new(AdmissionLimits { max_seqs: 4, max_queued_tokens: 100 });
        let mut permits = admission.admit(1).unwrap();
        let mut permit = permits.take_one(Some(admission.queue(80).unwrap()));
        assert_eq!(admission.queue(30).unwrap_err(), QueueFull);
        permit.leave_queue();
        // Longer than the bound: alone it may wait.
        let whole = admission.queue(1000).unwrap();
        assert_eq!(admission.queue(1).unwrap_err(), QueueFull);
        drop(whole);
        assert!(admission.queue(1).is_ok());
    }
}
