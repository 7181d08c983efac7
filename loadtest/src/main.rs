//! Load test for any OpenAI-compatible server.
//!
//! It measures from outside: it imports nothing of the server's and speaks only HTTP. A closed loop keeps a number of
//! clients busy; an open loop sends requests at random times (Poisson) whether or not earlier ones were answered, and
//! counts latency from the moment a request was due, so that a slow server cannot slow its own measurement down.

mod client;
mod load;
mod report;
mod workload;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::client::{Client, Target};
use crate::load::{Arrivals, Load};
use crate::report::Report;
use crate::workload::{Length, Workload};

/// Measures an OpenAI-compatible server: time to first token, inter-token latency, throughput, errors.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keeps a number of clients busy: each sends its next request when the last one is answered.
    Closed {
        /// Numbers of clients, one run each.
        #[arg(short, long, value_delimiter = ',', default_value = "1,4,16")]
        clients: Vec<usize>,
        #[command(flatten)]
        common: Common,
    },
    /// Sends requests at random times with a given mean rate (Poisson), whatever the server does.
    Open {
        /// Requests per second, one run each.
        #[arg(short, long, value_delimiter = ',', default_value = "1,2,4")]
        rate: Vec<f64>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    /// Where the server listens.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Model to ask for [default: the first of /v1/models].
    #[arg(long)]
    model: Option<String>,
    /// File with the API key to send, if the server wants one.
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// Prompt tokens: a number, or a range such as 32-512.
    #[arg(long, default_value = "64")]
    prompt: Length,
    /// Output tokens: a number, or a range such as 16-256.
    #[arg(long, default_value = "64")]
    output: Length,
    /// Seconds that each run counts.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Seconds before counting starts, at each run's load.
    #[arg(long, default_value_t = 3.0)]
    warmup: f64,
    /// Seconds after which a request counts as failed.
    #[arg(long, default_value_t = 120.0)]
    timeout: f64,
    /// Seed of prompts, lengths and arrival times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the figures as JSON to this file; `-` for standard output instead of the table.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Closed { clients, common } => {
            let loads = clients.into_iter().map(|clients| Arrivals::Closed { clients });
            run(&common, loads.collect()).await
        }
        Command::Open { rate, common } => {
            let loads = rate.into_iter().map(|per_second| Arrivals::Poisson { per_second });
            run(&common, loads.collect()).await
        }
    }
}

async fn run(common: &Common, loads: Vec<Arrivals>) -> Result<()> {
    for arrivals in &loads {
        arrivals.check()?;
    }
    let seconds = |value: f64, name: &str| {
        Duration::try_from_secs_f64(value).with_context(|| format!("--{name} {value} is not a number of seconds"))
    };
    let counted = seconds(common.seconds, "seconds")?;
    ensure!(!counted.is_zero(), "--seconds must be more than 0");
    let client = Client::new(target(common, seconds(common.timeout, "timeout")?)?);
    let client = Arc::new(client.with_model(common.model.clone()).await?);
    let workload = Workload::calibrated(&client, common.prompt, common.output, common.seed).await?;
    let workload = Arc::new(workload);
    let mut report = Report::new(&common.url, client.model(), &workload);
    for arrivals in loads {
        let load = Load { arrivals, warmup: seconds(common.warmup, "warmup")?, counted, seed: common.seed };
        let outcome = load.run(&client, &workload).await;
        report.add(&outcome);
        if common.json.as_deref() != Some("-".as_ref()) {
            write_out(report.last_lines().as_bytes())?;
        }
    }
    if let Some(path) = &common.json {
        let json = serde_json::to_vec_pretty(&report).context("the report is plain data")?;
        if path.as_os_str() == "-" {
            write_out(&json)?;
        } else {
            std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    ensure!(report.has_answers(), "not one request was answered; see the errors above");
    Ok(())
}

fn target(common: &Common, timeout: Duration) -> Result<Target> {
    let api_key = match &common.api_key_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(text.trim().to_owned())
        }
    };
    Target::new(&common.url, api_key, timeout)
}

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.write_all(b"\n")).context("cannot write to standard output")
}
