//! One run: sends a load, waits for every answer, and says which of them count.
//!
//! Latency counts requests that *ended* in the counted part of a closed loop (its clients stop there), and those *due* in
//! it of an open loop, however late they ended, else the slowest would be left out; an open loop's latency counts from
//! the due time, so that neither a slow server nor a late client hides itself. Throughput counts what ended in the counted
//! part. Used by `campaign`.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::answer::{Answer, Ask, Failure, FailureKind, Prompt};
use crate::arrivals::{Arrivals, MAX_IN_FLIGHT};
use crate::figures::Durations;
use crate::live::Live;
use crate::workload::{Session, Workload};

/// A client whose request failed waits this long: a server that refuses at once must not be hammered.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// How often a run that may be given up is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Different failures told apart; the rest count as one.
const MAX_FAILURES: usize = 40;

/// What makes an answer a good one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Of the time to the first token.
    pub(crate) ttft: Option<Duration>,
    /// Of the mean time per token after it.
    pub(crate) itl: Option<Duration>,
}

impl Limits {
    fn are_kept_by(self, answer: &Answer) -> bool {
        let within = |limit: Duration, us: u64| us <= limit.as_micros() as u64;
        self.ttft.is_none_or(|limit| answer.first_token <= limit)
            && self.itl.is_none_or(|limit| answer.per_token_us().is_none_or(|us| within(limit, us)))
    }

    /// Whether there is a limit.
    pub(crate) fn are_set(self) -> bool {
        self.ttft.is_some() || self.itl.is_some()
    }
}

/// A warm-up and a counted part at one load.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) arrivals: Arrivals,
    /// When sessions are due, for an open loop.
    pub(crate) schedule: Vec<Duration>,
    pub(crate) warmup: Duration,
    pub(crate) counted: Duration,
    pub(crate) limits: Limits,
    /// Requests with a late first token after which the run is given up, as is at the first failure.
    pub(crate) give_up_at: Option<u64>,
}

/// One request that counts for latency.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// When it was due, after the counted part's start; before it for a closed loop's first.
    pub(crate) at_s: f64,
    pub(crate) turn: usize,
    pub(crate) first_token: Duration,
    pub(crate) total: Duration,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) is_counted_by_server: bool,
    pub(crate) per_token_us: Option<u64>,
    pub(crate) is_good: bool,
}

/// What ended in the counted part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Finished {
    pub(crate) requests: u64,
    pub(crate) good: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Length of the counted part; for a trace, until the last answer.
    pub(crate) seconds: f64,
    pub(crate) samples: Vec<Sample>,
    /// Gaps between events with text.
    pub(crate) gaps: Durations,
    /// Failures with their number.
    pub(crate) failed: BTreeMap<Failure, u64>,
    pub(crate) finished: Finished,
    /// How much later than due requests were sent.
    pub(crate) send_delays: Durations,
    /// Whether the run was ended early because it could not pass any more.
    pub(crate) was_given_up: bool,
}

/// A request's end: when it was due, sent and ended, how.
struct End {
    turn: usize,
    due: Instant,
    sent: Instant,
    ended: Instant,
    result: Result<Answer, Failure>,
}

/// What every task of a run needs.
struct Shared<A> {
    asker: Arc<A>,
    workload: Workload,
    live: Arc<Live>,
    ends: mpsc::Sender<End>,
    /// Nothing is begun from here on.
    until: Instant,
    /// Whether later turns are sent however late.
    has_all_turns: bool,
}

impl Load {
    /// Sends the load to `asker` and waits for every answer.
    pub(crate) async fn run<A: Ask>(&self, asker: &Arc<A>, workload: &Workload, live: &Arc<Live>) -> Outcome {
        let start = Instant::now();
        let count_from = start + self.warmup;
        let (ends, mut received) = mpsc::channel(MAX_IN_FLIGHT);
        live.start(count_from);
        let shared = Arc::new(Shared {
            asker: Arc::clone(asker),
            workload: workload.clone(),
            live: Arc::clone(live),
            ends,
            until: count_from + self.counted,
            has_all_turns: matches!(self.arrivals, Arrivals::Trace { .. }),
        });
        let mut outcome = Outcome::new(self.counted);
        let mut sending = pin!(self.send(shared, start));
        let mut is_sending = true;
        loop {
            tokio::select! {
                end = received.recv() => match end {
                    Some(end) => self.count(&mut outcome, end, count_from),
                    None => return outcome,
                },
                () = &mut sending, if is_sending => is_sending = false,
                () = sleep(LOOK), if self.give_up_at.is_some() => {}
            }
            let is_hopeless = |limit| !outcome.failed.is_empty() || live.num_late() > limit;
            if self.give_up_at.is_some_and(is_hopeless) {
                // What is in flight is dropped with `sending`.
                outcome.was_given_up = true;
                outcome.seconds = Instant::now().saturating_duration_since(count_from).min(self.counted).as_secs_f64();
                return outcome;
            }
        }
    }

    async fn send<A: Ask>(&self, shared: Arc<Shared<A>>, start: Instant) {
        match self.arrivals {
            Arrivals::Closed { clients } => keep_busy(clients, shared).await,
            Arrivals::Open { .. } | Arrivals::Trace { .. } => send_on_time(&self.schedule, start, shared).await,
        }
    }

    fn count(&self, outcome: &mut Outcome, end: End, count_from: Instant) {
        let count_to = count_from + self.counted;
        let is_in = |moment: Instant| moment >= count_from && moment < count_to;
        let is_trace = matches!(self.arrivals, Arrivals::Trace { .. });
        let has_ended_in = is_in(end.ended) || (is_trace && end.due >= count_from);
        let counts_for_latency = if self.arrivals.is_open() { is_in(end.due) } else { is_in(end.ended) };
        if is_trace {
            outcome.seconds = outcome.seconds.max(end.ended.saturating_duration_since(count_from).as_secs_f64());
        }
        let late = end.sent.saturating_duration_since(end.due);
        match end.result {
            Ok(mut answer) => {
                // Our own lateness is the user's lateness too.
                answer.first_token += late;
                answer.total += late;
                let is_good = self.limits.are_kept_by(&answer);
                if has_ended_in {
                    outcome.finished.take(&answer, is_good);
                }
                if counts_for_latency {
                    outcome.send_delays.add(late);
                    let at_s = seconds_between(count_from, end.due);
                    outcome.take(&answer, at_s, end.turn, is_good);
                }
            }
            Err(failure) if counts_for_latency => outcome.take_failure(failure, 1),
            Err(_) => {}
        }
    }
}

/// `to` after `from`, negative where it is before.
fn seconds_between(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() - from.saturating_duration_since(to).as_secs_f64()
}

impl Finished {
    fn take(&mut self, answer: &Answer, is_good: bool) {
        self.requests += 1;
        self.good += u64::from(is_good);
        self.prompt_tokens += answer.prompt_tokens.unwrap_or(0);
        self.output_tokens += answer.output_tokens;
    }
}

impl Outcome {
    fn new(counted: Duration) -> Self {
        Self {
            seconds: counted.as_secs_f64(),
            samples: Vec::new(),
            gaps: Durations::new(),
            failed: BTreeMap::new(),
            finished: Finished::default(),
            send_delays: Durations::new(),
            was_given_up: false,
        }
    }

    fn take(&mut self, answer: &Answer, at_s: f64, turn: usize, is_good: bool) {
        answer.gaps_us.iter().for_each(|gap| self.gaps.add_us(u64::from(*gap)));
        self.samples.push(Sample {
            at_s,
            turn,
            first_token: answer.first_token,
            total: answer.total,
            prompt_tokens: answer.prompt_tokens.unwrap_or(0),
            output_tokens: answer.output_tokens,
            is_counted_by_server: answer.is_counted_by_server,
            per_token_us: answer.per_token_us(),
            is_good,
        });
    }

    fn take_failure(&mut self, failure: Failure, count: u64) {
        let is_new = !self.failed.contains_key(&failure);
        let failure = if is_new && self.failed.len() >= MAX_FAILURES {
            Failure::new(failure.kind, "others, not told apart")
        } else {
            failure
        };
        *self.failed.entry(failure).or_default() += count;
    }

    /// Requests that failed.
    pub(crate) fn num_failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Adds another round of the same load.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.samples.extend(other.samples);
        self.gaps.absorb(&other.gaps);
        self.send_delays.absorb(&other.send_delays);
        other.failed.into_iter().for_each(|(failure, count)| self.take_failure(failure, count));
        self.finished.requests += other.finished.requests;
        self.finished.good += other.finished.good;
        self.finished.prompt_tokens += other.finished.prompt_tokens;
        self.finished.output_tokens += other.finished.output_tokens;
        self.was_given_up |= other.was_given_up;
    }
}

/// A closed loop: clients that begin a session when their last has ended.
async fn keep_busy<A: Ask>(clients: usize, shared: Arc<Shared<A>>) {
    let next_session = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (shared, next_session) = (Arc::clone(&shared), Arc::clone(&next_session));
        tasks.spawn(async move {
            while Instant::now() < shared.until {
                let session = shared.workload.session(next_session.fetch_add(1, Ordering::Relaxed));
                if !converse(session, Instant::now(), &shared).await {
                    sleep(AFTER_FAILURE).await;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// An open loop: sessions begin when they are due, whatever became of earlier ones.
async fn send_on_time<A: Ask>(schedule: &[Duration], start: Instant, shared: Arc<Shared<A>>) {
    let mut tasks = JoinSet::new();
    for (idx, offset) in schedule.iter().enumerate() {
        // Made before it is due, so that making it does not make it late.
        let session = shared.workload.session(idx as u64);
        let due = start + *offset;
        sleep_until(due).await;
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MAX_IN_FLIGHT {
            let shared = Arc::clone(&shared);
            tasks.spawn(async move { converse(session, due, &shared).await });
        } else {
            let failure = Failure::new(FailureKind::NotSent, format!("not sent: {MAX_IN_FLIGHT} are in flight"));
            drop(shared.live.begin(due));
            shared.end(End { turn: 0, due, sent: due, ended: Instant::now(), result: Err(failure) }).await;
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Asks a session's turns one after another, the whole history each time. Returns whether all were answered.
async fn converse<A: Ask>(session: Session, first_due: Instant, shared: &Shared<A>) -> bool {
    let (mut due, mut messages) = (first_due, session.opening);
    let num_turns = session.turns.len();
    for (turn, asked) in session.turns.into_iter().enumerate() {
        if turn > 0 {
            due = Instant::now() + session.think;
            // Even no time at all would be a step of the timer.
            if !session.think.is_zero() {
                sleep_until(due).await;
            }
        }
        if due >= shared.until && !shared.has_all_turns {
            return true;
        }
        messages.extend(asked.messages);
        let keep_text = turn + 1 < num_turns;
        let prompt = Prompt { messages, output_tokens: asked.output_tokens, keep_text };
        let waiting = shared.live.begin(due);
        let sent = Instant::now();
        let result = shared.asker.ask(&prompt, waiting).await;
        messages = prompt.messages;
        if let (Ok(answer), true) = (&result, keep_text) {
            messages.push(json!({"role": "assistant", "content": answer.text}));
        }
        let is_answered = result.is_ok();
        shared.end(End { turn, due, sent, ended: Instant::now(), result }).await;
        if !is_answered {
            // Without the answer it would be another conversation.
            return false;
        }
    }
    true
}

impl<A> Shared<A> {
    async fn end(&self, end: End) {
        self.live.end(end.result.as_ref().ok().map(|answer| answer.output_tokens));
        // The receiver is only gone when the run has been given up, and this task with it.
        drop(self.ends.send(end).await);
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
