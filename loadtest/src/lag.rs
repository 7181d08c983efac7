//! How late the load test itself is: the delay of its event loop, and the processor time it takes.
//!
//! A client that is late sees the server late. Used by `campaign`, once per run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::figures::Durations;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Measures until it is finished or dropped.
pub(crate) struct LagMeter {
    delays: Arc<Mutex<Durations>>,
    looking: JoinHandle<()>,
    started: Instant,
    cpu_before: Option<Duration>,
}

/// What the load test cost and how late it was.
#[derive(Clone, Debug)]
pub(crate) struct Lag {
    /// How much later than asked for the event loop woke up; timers have steps of 1 ms.
    pub(crate) delays: Durations,
    /// Processor time per time passed; 1 is one core.
    pub(crate) cpu_share: Option<f64>,
}

impl LagMeter {
    /// Begins to look; must run on the runtime that sends the requests.
    pub(crate) fn start() -> Self {
        let delays = Arc::new(Mutex::new(Durations::new()));
        let looks = Arc::clone(&delays);
        let looking = tokio::spawn(async move {
            loop {
                let due = Instant::now() + INTERVAL;
                sleep_until(due).await;
                looks.lock().expect("nothing panics under this lock").add(due.elapsed());
            }
        });
        Self { delays, looking, started: Instant::now(), cpu_before: cpu_time() }
    }

    /// What was seen.
    pub(crate) fn finish(self) -> Lag {
        let spent = cpu_time().zip(self.cpu_before).map(|(after, before)| after.saturating_sub(before));
        let cpu_share = spent.map(|spent| spent.as_secs_f64() / self.started.elapsed().as_secs_f64().max(1e-9));
        let delays = self.delays.lock().expect("nothing panics under this lock").clone();
        Lag { delays, cpu_share }
    }
}

impl Drop for LagMeter {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

/// Processor time of this process so far.
#[cfg(unix)]
fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// Not known here.
#[cfg(not(unix))]
fn cpu_time() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blocked_event_loop_is_seen() {
        let meter = LagMeter::start();
        tokio::time::sleep(INTERVAL * 3).await;
        let blocked = std::time::Instant::now();
        while blocked.elapsed() < Duration::from_millis(80) {
            std::hint::spin_loop();
        }
        tokio::time::sleep(INTERVAL * 3).await;
        let lag = meter.finish();
        assert!(lag.delays.max_ms() >= 65.0, "{}", lag.delays.max_ms());
        assert!(!cfg!(unix) || lag.cpu_share.unwrap() > 0.1);
    }
}
