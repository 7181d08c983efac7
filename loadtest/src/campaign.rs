//! All runs of a test: each load on each server in turns, or a search for the highest rate.
//!
//! Servers are never loaded at the same time, and take turns in every round, so that what changes on the machine meanwhile
//! meets all of them. Every server gets the same requests at the same times. Used by `main`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::answer::{Ask, Prompt};
use crate::arrivals::{Arrivals, Spread, schedule};
use crate::lag::LagMeter;
use crate::live::Live;
use crate::load::{Limits, Load, Outcome};
use crate::progress::Progress;
use crate::report::{Gathered, Probe, Report, Run, SearchResult, head, row};
use crate::search::Search;
use crate::workload::{Scale, Source, Workload, longest_prompt};

/// Share of requests that must keep a limit for a rate to pass.
pub(crate) const PASSING_SHARE: f64 = 0.95;

/// What all runs have in common.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) source: Arc<Source>,
    pub(crate) warmup: Duration,
    pub(crate) counted: Duration,
    pub(crate) limits: Limits,
    pub(crate) seed: u64,
    pub(crate) rounds: usize,
    /// Neither a live line nor a table.
    pub(crate) is_quiet: bool,
}

/// Which rates a search may try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) first: f64,
    pub(crate) highest: f64,
    pub(crate) precision: f64,
    pub(crate) spread: Spread,
}

/// A server with what is known of it.
pub(crate) struct Server<A> {
    pub(crate) name: String,
    pub(crate) asker: Arc<A>,
    pub(crate) scale: Scale,
}

impl<A: Ask> Server<A> {
    /// Finds out how many tokens text takes there, so that prompts come out at the wanted length.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn calibrated(name: &str, asker: A, plan: &Plan) -> Result<Self> {
        let asker = Arc::new(asker);
        let live = Live::new(None);
        let count = |text: String| {
            let (asker, live) = (Arc::clone(&asker), Arc::clone(&live));
            async move {
                let messages = vec![serde_json::json!({"role": "user", "content": text})];
                let prompt = Prompt { messages, output_tokens: 1, keep_text: false };
                let answer = asker.ask(&prompt, live.begin(tokio::time::Instant::now())).await;
                Ok(answer.map_err(|failure| anyhow!("{failure}"))?.prompt_tokens)
            }
        };
        let scale = Scale::measure(longest_prompt(&plan.source), plan.seed, count).await;
        let scale = scale.with_context(|| format!("the first request to {name} failed"))?;
        Ok(Self { name: name.to_owned(), asker, scale })
    }
}

/// A test in progress.
pub(crate) struct Campaign<'a, A> {
    pub(crate) plan: Plan,
    pub(crate) servers: Vec<Server<A>>,
    pub(crate) report: Report,
    /// Where the table goes.
    pub(crate) out: &'a mut dyn Write,
}

impl<A: Ask> Campaign<'_, A> {
    /// Every load on every server, `rounds` times.
    ///
    /// # Errors
    /// When a load cannot be sent, or the table cannot be written.
    pub(crate) async fn sweep(&mut self, loads: &[Arrivals]) -> Result<()> {
        let (num_servers, rounds) = (self.servers.len(), self.plan.rounds);
        let mut gathered: Vec<Option<Gathered>> = (0..loads.len() * num_servers).map(|_| None).collect();
        self.write_head()?;
        for round in 0..rounds {
            for (load_idx, arrivals) in loads.iter().enumerate() {
                for turn in 0..num_servers {
                    // Who is first in one round is last in the next.
                    let server_idx = if round % 2 == 0 { turn } else { num_servers - 1 - turn };
                    let number = (round * loads.len() + load_idx) * num_servers + turn + 1;
                    let place = format!("[{number}/{}]", loads.len() * num_servers * rounds);
                    let salt = (round * loads.len() + load_idx) as u64;
                    let load = self.load(*arrivals, salt)?;
                    let mine = self.run(server_idx, &load, salt, &place).await;
                    let slot = &mut gathered[load_idx * num_servers + server_idx];
                    match slot {
                        None => *slot = Some(mine),
                        Some(all) => all.absorb(mine),
                    }
                }
                let all = &gathered[load_idx * num_servers..][..num_servers];
                for (server_idx, all) in all.iter().flatten().enumerate().filter(|_| round + 1 == rounds) {
                    self.keep(server_idx, *arrivals, all)?;
                }
            }
        }
        Ok(())
    }

    /// The highest rate at which each server keeps the limits.
    ///
    /// # Errors
    /// When no request would be due at a rate, or the table cannot be written.
    pub(crate) async fn search(&mut self, range: Range) -> Result<()> {
        self.write_head()?;
        for server_idx in 0..self.servers.len() {
            let mut search = Search::new(range.first, range.highest, range.precision);
            let mut probes = Vec::new();
            while let Some(rate) = search.next_rate() {
                let salt = probes.len() as u64;
                let arrivals = Arrivals::Open { per_second: rate, spread: range.spread };
                let mut load = match self.load(arrivals, salt) {
                    // Too low a rate to be measured in this time.
                    Err(_) if !probes.is_empty() => break,
                    load => load?,
                };
                load.give_up_at = Some(self.allowed_late(&load));
                let gathered = self.run(server_idx, &load, salt, &format!("[probe {}]", salt + 1)).await;
                let run = self.keep(server_idx, arrivals, &gathered)?;
                let (has_passed, finding) = verdict(&run, self.plan.limits);
                search.tell(rate, has_passed);
                probes.push(Probe { rate, has_passed, finding });
            }
            let result = SearchResult {
                target: self.servers[server_idx].name.clone(),
                criterion: criterion(self.plan.limits),
                highest_rate: search.found(),
                is_bounded: search.is_bounded_by_highest(),
                probes,
            };
            let found = result.highest_rate.map_or_else(|| "none".to_owned(), |rate| format!("{rate:.3} req/s"));
            let bound = if result.is_bounded { " (the highest tried)" } else { "" };
            self.write(&format!("{}: highest rate with {}: {found}{bound}", result.target, result.criterion))?;
            self.report.searches.push(result);
        }
        Ok(())
    }

    fn load(&self, arrivals: Arrivals, salt: u64) -> Result<Load> {
        arrivals.check()?;
        let Plan { warmup, mut counted, limits, .. } = self.plan;
        let schedule = match (arrivals, &*self.plan.source) {
            (Arrivals::Closed { .. }, _) => Vec::new(),
            (Arrivals::Open { per_second, spread }, _) => {
                schedule(per_second, spread, warmup + counted, self.plan.seed.wrapping_add(salt))
            }
            (Arrivals::Trace { speed }, Source::Trace(entries)) => {
                entries.iter().map(|entry| entry.at.div_f64(speed)).collect()
            }
            (Arrivals::Trace { .. }, Source::Drawn(_)) => Vec::new(),
        };
        if let (Arrivals::Trace { .. }, Some(last)) = (arrivals, schedule.last()) {
            counted = (*last + Duration::from_millis(1)).saturating_sub(warmup);
        }
        let is_counted = |due: &Duration| *due >= warmup;
        ensure!(
            !arrivals.is_open() || schedule.iter().any(is_counted),
            "{arrivals} leaves nothing to count after a warm-up of {warmup:?}; raise --seconds or the rate, or lower --warmup"
        );
        Ok(Load { arrivals, schedule, warmup, counted, limits, give_up_at: None })
    }

    /// Late first tokens that a passing run may have; of sessions with turns, as many as there can be.
    fn allowed_late(&self, load: &Load) -> u64 {
        let turns = match &*self.plan.source {
            Source::Drawn(shape) => shape.turns.typical_max(),
            Source::Trace(_) => 1,
        };
        let num_due = load.schedule.iter().filter(|due| **due >= load.warmup).count() as u64 * turns;
        num_due - (num_due as f64 * PASSING_SHARE).ceil() as u64
    }

    async fn run(&self, server_idx: usize, load: &Load, salt: u64, place: &str) -> Gathered {
        let server = &self.servers[server_idx];
        let Plan { source, seed, .. } = &self.plan;
        let workload = Workload { source: Arc::clone(source), scale: server.scale, seed: *seed, salt };
        let live = Live::new(load.limits.ttft);
        let label = format!("{place} {}, {}", server.name, load.arrivals);
        let progress = Progress::start(label, load.warmup + load.counted, &live, self.plan.is_quiet);
        let meter = LagMeter::start();
        let outcome: Outcome = load.run(&server.asker, &workload, &live).await;
        drop(progress);
        Gathered::new(outcome, meter.finish())
    }

    /// Puts a finished run into the report and the table.
    fn keep(&mut self, server_idx: usize, arrivals: Arrivals, gathered: &Gathered) -> Result<Run> {
        let run = gathered.run(&self.servers[server_idx].name, arrivals, self.plan.limits.are_set());
        self.write(&row(&run, self.servers.len() > 1))?;
        self.report.runs.push(run.clone());
        Ok(run)
    }

    fn write_head(&mut self) -> Result<()> {
        let has_names = self.servers.len() > 1;
        for target in self.report.targets.clone() {
            self.write(&format!("{}: {} model {}", target.name, target.url, target.model))?;
        }
        self.write(&head(has_names))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        if self.plan.is_quiet {
            return Ok(());
        }
        writeln!(self.out, "{text}").context("cannot write to standard output")
    }
}

/// What a rate must keep, in words.
fn criterion(limits: Limits) -> String {
    let ms = |name: &str, limit: Option<Duration>| {
        limit.map(|limit| format!("p95 {name} ≤ {} ms", limit.as_secs_f64() * 1000.0))
    };
    let limits = [ms("TTFT", limits.ttft), ms("time per token", limits.itl)];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    format!("{} and no error", limits.join(", "))
}

/// Whether a run keeps the limits, and why or why not.
fn verdict(run: &Run, limits: Limits) -> (bool, String) {
    let ttft = format!("p95 TTFT {:.1} ms, p95 per token {:.1} ms", run.ttft_ms.p95, run.per_token_ms.p95);
    let exceeds = |limit: Option<Duration>, ms: f64| limit.is_some_and(|limit| ms > limit.as_secs_f64() * 1000.0);
    if let Some(error) = run.errors.first() {
        (false, format!("{} failed: {}", run.num_failed, error.detail))
    } else if run.was_given_up {
        (false, "ended early: more than 5 % of the first tokens came too late".to_owned())
    } else if run.num_answered == 0 {
        (false, "nothing was answered".to_owned())
    } else {
        (!exceeds(limits.ttft, run.ttft_ms.p95) && !exceeds(limits.itl, run.per_token_ms.p95), ttft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelServer;
    use crate::report::Report;
    use crate::workload::Shape;

    fn campaign<'a>(servers: Vec<ModelServer>, out: &'a mut Vec<u8>) -> Campaign<'a, ModelServer> {
        let shape = Shape {
            prompt: "20".parse().unwrap(),
            output: "5".parse().unwrap(),
            turns: "1".parse().unwrap(),
            turn_prompt: "10".parse().unwrap(),
            think: Duration::ZERO,
            prefix_groups: 0,
            prefix: "1".parse().unwrap(),
        };
        let plan = Plan {
            source: Arc::new(Source::Drawn(Box::new(shape))),
            warmup: Duration::from_secs(5),
            counted: Duration::from_secs(120),
            limits: Limits { ttft: Some(Duration::from_millis(500)), itl: None },
            seed: 3,
            rounds: 2,
            is_quiet: false,
        };
        let scale = Scale { overhead_tokens: 0.0, tokens_per_word: 1.0 };
        let named = |(i, server)| Server { name: format!("server {i}"), asker: Arc::new(server), scale };
        let servers = servers.into_iter().enumerate().map(named).collect();
        Campaign { plan, servers, report: Report::new(serde_json::Map::new(), Vec::new()), out }
    }

    /// One worker, 50 ms each, evenly spaced: up to 20 per second nothing waits; above, the queue of 120 s passes the limit
    /// of 500 ms as soon as the rate is some 0.4 % too high.
    #[tokio::test(start_paused = true)]
    async fn the_search_finds_the_knee_of_a_server() {
        let mut out = Vec::new();
        let servers = [50, 20].map(|ms| ModelServer::serial(Duration::from_millis(ms))).into();
        let mut campaign = campaign(servers, &mut out);
        let range = Range { first: 1.0, highest: 1000.0, precision: 0.02, spread: Spread::Even };
        campaign.search(range).await.unwrap();
        for (result, knee) in campaign.report.searches.iter().zip([20.0, 50.0]) {
            let found = result.highest_rate.unwrap();
            assert!((0.96 * knee..=1.01 * knee).contains(&found), "{found} of {knee}: {:?}", result.probes);
            assert!(result.probes.len() < 16 && !result.is_bounded);
        }
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("server 1: highest rate with p95 TTFT ≤ 500 ms and no error:"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn errors_fail_every_rate() {
        let mut out = Vec::new();
        let server = ModelServer { fail_every: 1, ..ModelServer::serial(Duration::from_millis(1)) };
        let mut campaign = campaign(vec![server], &mut out);
        let range = Range { first: 1.0, highest: 10.0, precision: 0.1, spread: Spread::Poisson };
        campaign.search(range).await.unwrap();
        assert!(campaign.report.searches[0].highest_rate.is_none());
        assert!(campaign.report.runs.iter().all(|run| run.num_failed > 0));
    }

    #[tokio::test(start_paused = true)]
    async fn servers_take_turns_and_get_the_same() {
        let mut out = Vec::new();
        let servers = [50, 100].map(|ms| ModelServer::parallel(Duration::from_millis(ms), Duration::ZERO)).into();
        let mut campaign = campaign(servers, &mut out);
        let loads = [Arrivals::Closed { clients: 1 }, Arrivals::Open { per_second: 3.0, spread: Spread::Poisson }];
        campaign.sweep(&loads).await.unwrap();
        let runs = &campaign.report.runs;
        assert_eq!(runs.len(), 4);
        assert!(
            runs.iter().all(|run| run.rounds.len() == 2 && run.num_failed == 0 && run.goodput.unwrap().share == 1.0)
        );
        let closed: Vec<f64> =
            runs.iter().filter(|run| !run.load.is_open()).map(|run| run.requests_per_second.round()).collect();
        assert!(closed.contains(&20.0) && closed.contains(&10.0), "{closed:?}");
        let open: Vec<u64> = runs.iter().filter(|run| run.load.is_open()).map(|run| run.num_answered).collect();
        assert_eq!(open[0], open[1]);
        assert!((runs[0].seconds - 240.0).abs() < 1e-6, "two rounds of 120 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_calibrated_by_its_counts() {
        let mut out = Vec::new();
        let plan = campaign(Vec::new(), &mut out).plan;
        let server = ModelServer::parallel(Duration::ZERO, Duration::ZERO);
        let server = Server::calibrated("a", server, &plan).await.unwrap();
        assert!((server.scale.tokens_per_word - 1.0).abs() < 1e-9 && server.scale.overhead_tokens.abs() < 1e-9);
        let failing = ModelServer { fail_every: 1, ..ModelServer::parallel(Duration::ZERO, Duration::ZERO) };
        let error = Server::calibrated("b", failing, &plan).await.err().unwrap();
        assert!(format!("{error:#}").contains("the first request to b failed: status 503"), "{error:#}");
    }
}
