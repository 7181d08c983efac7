//! When requests are sent, and which of them count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Client, Failure, Timing};
use crate::workload::{Rng, Workload};

/// Requests in flight of an open loop, at most: past this the server has long since lost.
const MAX_IN_FLIGHT: usize = 10_000;

/// How requests arrive.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Arrivals {
    /// Each client sends its next request when the last is answered.
    Closed {
        /// Clients at once.
        clients: usize,
    },
    /// Independent arrivals.
    Poisson {
        /// Mean rate.
        per_second: f64,
    },
}

impl Arrivals {
    /// # Errors
    /// When the number makes no sense.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Closed { clients } => {
                ensure!((1..=MAX_IN_FLIGHT).contains(&clients), "{clients} clients: 1 to {MAX_IN_FLIGHT} can be run");
            }
            Self::Poisson { per_second } => {
                ensure!(per_second.is_finite() && per_second > 0.0, "a rate of {per_second} is not more than 0");
            }
        }
        Ok(())
    }
}

/// One run: a warm-up and a counted part at one load.
pub(crate) struct Load {
    pub(crate) arrivals: Arrivals,
    pub(crate) warmup: Duration,
    pub(crate) counted: Duration,
    pub(crate) seed: u64,
}

/// What happened in the counted part.
pub(crate) struct Outcome {
    pub(crate) arrivals: Arrivals,
    /// Length of the counted part, until the last counted answer of an open loop.
    pub(crate) wall: Duration,
    pub(crate) answered: Vec<Timing>,
    /// Failures with their number.
    pub(crate) failed: BTreeMap<Failure, u64>,
}

/// A request's end: when it was due, when it ended, how.
struct End {
    due: Instant,
    ended: Instant,
    result: Result<Timing, Failure>,
}

impl Load {
    /// Sends the load and waits for every answer.
    ///
    /// A closed loop counts requests that *ended* in the counted part (its clients stop there); an open loop counts
    /// those that were *due* in it, however late they ended, else the slowest would be left out.
    pub(crate) async fn run(&self, client: &Arc<Client>, workload: &Arc<Workload>) -> Outcome {
        let start = Instant::now();
        let count_from = start + self.warmup;
        let count_to = count_from + self.counted;
        let (ends, mut received) = mpsc::channel(MAX_IN_FLIGHT);
        match self.arrivals {
            Arrivals::Closed { clients } => spawn_closed(clients, count_to, client, workload, &ends),
            Arrivals::Poisson { per_second } => {
                let gaps = Rng::new(self.seed ^ 0xa7717a1);
                let (client, workload, ends) = (Arc::clone(client), Arc::clone(workload), ends.clone());
                tokio::spawn(send_poisson(per_second, gaps, count_to, client, workload, ends));
            }
        }
        drop(ends);
        let mut outcome =
            Outcome { arrivals: self.arrivals, wall: self.counted, answered: Vec::new(), failed: BTreeMap::new() };
        while let Some(end) = received.recv().await {
            let counted_at = match self.arrivals {
                Arrivals::Closed { .. } => end.ended,
                Arrivals::Poisson { .. } => end.due,
            };
            if counted_at < count_from || counted_at >= count_to {
                continue;
            }
            if matches!(self.arrivals, Arrivals::Poisson { .. }) {
                outcome.wall = outcome.wall.max(end.ended - count_from);
            }
            match end.result {
                Ok(timing) => outcome.answered.push(timing),
                Err(failure) => *outcome.failed.entry(failure).or_default() += 1,
            }
        }
        outcome
    }
}

fn spawn_closed(
    clients: usize,
    until: Instant,
    client: &Arc<Client>,
    workload: &Arc<Workload>,
    ends: &mpsc::Sender<End>,
) {
    let next_job = Arc::new(AtomicU64::new(0));
    for _ in 0..clients {
        let (client, workload) = (Arc::clone(client), Arc::clone(workload));
        let (next_job, ends) = (Arc::clone(&next_job), ends.clone());
        tokio::spawn(async move {
            while Instant::now() < until {
                let job = workload.job(next_job.fetch_add(1, Ordering::Relaxed));
                let due = Instant::now();
                let result = client.complete(&job.prompt, job.output_tokens).await;
                let failed = result.is_err();
                if ends.send(End { due, ended: Instant::now(), result }).await.is_err() {
                    return;
                }
                if failed {
                    // A server that refuses at once must not be hammered in a tight loop.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
}

async fn send_poisson(
    per_second: f64,
    mut gaps: Rng,
    until: Instant,
    client: Arc<Client>,
    workload: Arc<Workload>,
    ends: mpsc::Sender<End>,
) {
    let mut due = Instant::now();
    let mut job_idx = 0;
    loop {
        due += Duration::from_secs_f64(gaps.exponential() / per_second);
        if due >= until {
            return;
        }
        tokio::time::sleep_until(due).await;
        let job = workload.job(job_idx);
        job_idx += 1;
        let (client, ends) = (Arc::clone(&client), ends.clone());
        tokio::spawn(async move {
            let late = due.elapsed();
            let mut result = client.complete(&job.prompt, job.output_tokens).await;
            if let Ok(timing) = &mut result {
                // Our own lateness is the server's user's lateness too.
                timing.first_token += late;
                timing.total += late;
            }
            // The receiver lives until every sender is gone.
            drop(ends.send(End { due, ended: Instant::now(), result }).await);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Target;
    use crate::workload::Length;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    /// Answers every chat request with two tokens after `delay`; every `fail_every`-th with 503.
    async fn serve(listener: TcpListener, delay: Duration, fail_every: u64) {
        let served = Arc::new(AtomicU64::new(1));
        while let Ok((socket, _)) = listener.accept().await {
            let served = Arc::clone(&served);
            tokio::spawn(async move { answer(socket, delay, fail_every, &served).await.ok() });
        }
    }

    async fn answer(socket: TcpStream, delay: Duration, fail_every: u64, served: &AtomicU64) -> std::io::Result<()> {
        let mut socket = BufReader::new(socket);
        loop {
            let (mut length, mut is_list) = (0, false);
            loop {
                let mut line = String::new();
                if socket.read_line(&mut line).await? == 0 {
                    return Ok(());
                }
                is_list |= line.starts_with("GET /v1/models");
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            socket.read_exact(&mut body).await?;
            let (status, text) = if is_list {
                ("200 OK", r#"{"data":[{"id":"fake"}]}"#.to_owned())
            } else if served.fetch_add(1, Ordering::Relaxed).is_multiple_of(fail_every) {
                ("503 Service Unavailable", "{}".to_owned())
            } else {
                tokio::time::sleep(delay).await;
                let words = String::from_utf8_lossy(&body).split_whitespace().count();
                let text = r#"data: {"choices":[{"delta":{"content":"x"}}]}"#;
                let usage = format!(r#"{{"prompt_tokens":{words},"completion_tokens":2}}"#);
                let last = format!(r#"data: {{"choices":[],"usage":{usage}}}"#);
                ("200 OK", format!("{text}\n\n{text}\n\n{last}\n\ndata: [DONE]\n\n"))
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", text.len());
            socket.get_mut().write_all((head + &text).as_bytes()).await?;
        }
    }

    async fn measure(arrivals: Arrivals, delay: Duration, fail_every: u64) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, delay, fail_every));
        let target = Target::new(&url, None, Duration::from_secs(10)).unwrap();
        let client = Arc::new(Client::new(target).with_model(None).await.unwrap());
        assert_eq!(client.model(), "fake");
        let (prompt, output) = (Length { min: 20, max: 20 }, Length { min: 2, max: 2 });
        let workload = Arc::new(Workload::calibrated(&client, prompt, output, 1).await.unwrap());
        let (warmup, counted) = (Duration::from_millis(100), Duration::from_millis(600));
        Load { arrivals, warmup, counted, seed: 1 }.run(&client, &workload).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_closed_loop_sends_the_next_request_after_the_answer() {
        let outcome = measure(Arrivals::Closed { clients: 3 }, Duration::from_millis(50), u64::MAX).await;
        // 3 clients, 600 ms, at least 50 ms each: 36 answers at most; a third of it is left to a busy machine.
        assert!((12..=36).contains(&outcome.answered.len()), "{}", outcome.answered.len());
        assert!(outcome.failed.is_empty());
        assert!(outcome.answered.iter().all(|timing| timing.output_tokens == 2 && timing.gaps.len() == 1));
        assert!(outcome.answered.iter().all(|timing| timing.first_token >= Duration::from_millis(50)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_open_loop_does_not_wait_for_answers() {
        let outcome = measure(Arrivals::Poisson { per_second: 60.0 }, Duration::from_millis(500), u64::MAX).await;
        // 36 are due on average; if each waited for the last, there would be two.
        assert!(outcome.answered.len() > 15, "{}", outcome.answered.len());
        assert!(outcome.wall >= Duration::from_millis(600));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn failures_are_counted_by_kind() {
        let outcome = measure(Arrivals::Closed { clients: 2 }, Duration::from_millis(5), 4).await;
        assert_eq!(outcome.failed.keys().collect::<Vec<_>>(), [&Failure("status 503".to_owned())]);
        assert!(!outcome.answered.is_empty());
    }
}
