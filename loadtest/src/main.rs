//! Load test for any OpenAI-compatible server.
//!
//! It measures from outside: it imports nothing of the server's and speaks only HTTP. A closed loop keeps a number of
//! clients busy; an open loop or a trace sends requests at times of its own whether or not earlier ones were answered, and
//! counts latency from the moment a request was due, so that a slow server cannot slow its own measurement down.
//!
//! `campaign` decides what is run, `load` runs it, `client` asks, `report` tells.

mod answer;
mod arrivals;
mod campaign;
mod cli;
mod client;
#[cfg(test)]
mod fake;
mod figures;
mod lag;
mod lengths;
mod live;
mod load;
#[cfg(test)]
mod model;
mod progress;
mod random;
mod report;
mod search;
mod trace;
mod workload;

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use serde_json::{Map, Value};

use crate::campaign::{Campaign, Plan, Server};
use crate::cli::{Cli, Command, Common, Task};
use crate::client::Client;
use crate::report::{Report, SCHEMA, TargetInfo, page_of};

// One thread: the client shares its machine with the server.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let command = Cli::parse().command;
    if let Command::Report { json, html } = &command {
        let mut reports = json.iter().map(|path| read_report(path));
        let mut all = reports.next().context("no report is given")??;
        for report in reports {
            all.absorb(report?);
        }
        return write_file(html, page_of(&all).as_bytes());
    }
    match command.task()? {
        Some((common, plan, task, settings)) => measure(common, plan, task, settings).await,
        None => Ok(()),
    }
}

async fn measure(common: &Common, mut plan: Plan, task: Task, settings: Map<String, Value>) -> Result<()> {
    let is_json_on_stdout = common.json.as_deref() == Some(Path::new("-"));
    plan.is_quiet |= is_json_on_stdout;
    let (mut servers, mut targets) = (Vec::new(), Vec::new());
    let manner = common.manner()?;
    for target in common.targets()? {
        let client = Client::new(target, manner.clone()).with_model(common.model.as_deref()).await?;
        let (target, model) = (client.target.clone(), client.model.clone());
        let server = Server::calibrated(&target.name, client, &plan).await?;
        targets.push(TargetInfo {
            name: target.name,
            url: target.base,
            model,
            template_tokens: figures::rounded(server.scale.overhead_tokens),
            tokens_per_word: figures::rounded(server.scale.tokens_per_word),
        });
        servers.push(server);
    }
    let mut stdout = std::io::stdout();
    let mut campaign = Campaign { plan, servers, report: Report::new(settings, targets), out: &mut stdout };
    match task {
        Task::Sweep(loads) => campaign.sweep(&loads).await?,
        Task::Search(range) => campaign.search(range).await?,
    }
    let report = campaign.report;
    let json = serde_json::to_vec_pretty(&report).context("the report is plain data")?;
    if is_json_on_stdout {
        stdout.write_all(&json).and_then(|()| stdout.write_all(b"\n")).context("cannot write to standard output")?;
    } else if let Some(path) = &common.json {
        write_file(path, &json)?;
    }
    if let Some(path) = &common.html {
        write_file(path, page_of(&report).as_bytes())?;
    }
    ensure!(report.has_answers(), "not one request was answered; see the errors above");
    Ok(())
}

fn read_report(path: &Path) -> Result<Report> {
    let name = path.display();
    let text = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
    let value: Value = serde_json::from_slice(&text).with_context(|| format!("{name} is not JSON"))?;
    let schema = value["schema"].as_str().unwrap_or("none");
    ensure!(schema == SCHEMA, "{name} has the schema {schema}, not {SCHEMA}: did --json write it?");
    serde_json::from_value(value).with_context(|| format!("{name} is not a report"))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
