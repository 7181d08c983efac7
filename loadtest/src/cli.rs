//! The command line: what can be asked, and which plan it becomes.
//!
//! Every value is checked before the first request is sent. Used by `main`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value};

use crate::arrivals::{Arrivals, Spread};
use crate::campaign::{Plan, Range};
use crate::client::{Manner, Target};
use crate::lengths::Lengths;
use crate::load::Limits;
use crate::trace;
use crate::workload::{Shape, Source};

/// Environment variable of the API key.
const API_KEY_VARIABLE: &str = "TOKENMILL_API_KEY";
/// Rounds, at most.
const MAX_ROUNDS: usize = 1000;

/// Measures OpenAI-compatible servers: time to first token, inter-token latency, throughput, goodput, errors.
#[derive(Debug, Parser)]
#[command(name = "tokenmill-loadtest", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep a number of clients busy: each begins its next session when its last one has ended
    Closed {
        /// Numbers of clients, one run each
        #[arg(short, long, value_delimiter = ',', default_value = "1,4,16", value_name = "N,…")]
        clients: Vec<usize>,
        #[command(flatten)]
        drawn: Drawn,
        #[command(flatten)]
        common: Common,
    },
    /// Begin sessions at given mean rates, whatever the server does
    Open {
        /// Sessions per second, one run each
        #[arg(short, long, value_delimiter = ',', default_value = "1,2,4", value_name = "R,…")]
        rate: Vec<f64>,
        /// How the gaps spread: poisson, even, or gamma:SHAPE (below 1: bursts)
        #[arg(long, default_value = "poisson")]
        arrivals: Spread,
        #[command(flatten)]
        drawn: Drawn,
        #[command(flatten)]
        common: Common,
    },
    /// Replay recorded requests at their times
    Trace {
        /// JSON lines or CSV; docs/LOADTEST.md tells the fields
        file: PathBuf,
        /// How much faster than recorded, one run each
        #[arg(long, value_delimiter = ',', default_value = "1", value_name = "X,…")]
        speed: Vec<f64>,
        /// Only the first requests of the file
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        common: Common,
    },
    /// Find the highest rate at which 95 % of the requests keep the limits and none fails
    Search {
        /// First rate tried, in sessions per second
        #[arg(long, default_value_t = 1.0, value_name = "R")]
        from: f64,
        /// Highest rate tried
        #[arg(long, default_value_t = 1000.0, value_name = "R")]
        to: f64,
        /// Ends when passed and failed rate are this close, as a share
        #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
        precision: f64,
        /// How the gaps spread: poisson, even, or gamma:SHAPE (below 1: bursts)
        #[arg(long, default_value = "poisson")]
        arrivals: Spread,
        #[command(flatten)]
        drawn: Drawn,
        #[command(flatten)]
        common: Common,
    },
    /// Draw reports that `--json` wrote, of several days or machines if need be, as one page
    Report {
        /// Files that `--json` wrote
        #[arg(required = true)]
        json: Vec<PathBuf>,
        /// The page to write
        #[arg(long, value_name = "FILE")]
        html: PathBuf,
    },
}

/// Requests drawn from distributions. A LENGTH is `64`, `32-512`, `normal:MEAN,SD`, `lognormal:MEAN,SD` or `file:PATH`.
#[derive(Debug, Args)]
pub(crate) struct Drawn {
    /// Prompt tokens of a session's first turn, chat template included, prefix not
    #[arg(long, default_value = "64", value_name = "LENGTH")]
    prompt: Lengths,
    /// Output tokens
    #[arg(long, default_value = "64", value_name = "LENGTH")]
    output: Lengths,
    /// Turns of a session; each sends the whole history
    #[arg(long, default_value = "1", value_name = "LENGTH")]
    turns: Lengths,
    /// Tokens of the messages after the first [default: as --prompt]
    #[arg(long, value_name = "LENGTH")]
    turn_prompt: Option<Lengths>,
    /// Between an answer's end and the session's next turn, as in 500ms
    #[arg(long, default_value = "0s", value_parser = duration, value_name = "TIME")]
    think: Duration,
    /// Groups of sessions that share a system message; 0 for none
    #[arg(long, default_value_t = 0, value_name = "N")]
    prefix_groups: u64,
    /// Tokens of that message
    #[arg(long, default_value = "256", value_name = "LENGTH")]
    prefix: Lengths,
}

/// What every run has.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where the server listens
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Servers to compare side by side, instead of --url; repeat it
    #[arg(long, value_name = "NAME=URL", conflicts_with = "url")]
    target: Vec<String>,
    /// Model to ask for [default: the first that each server lists]
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// File with the API key to send to every server [default: the variable `TOKENMILL_API_KEY`]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Fields of the request body as a JSON object; null takes out one of ours, such as `ignore_eos`
    #[arg(long, value_parser = json_object, value_name = "JSON")]
    extra: Option<Map<String, Value>>,
    /// Seconds that each run counts (a trace counts to its end)
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Seconds before counting starts, at each run's load [default: 3, of a trace 0]
    #[arg(long)]
    warmup: Option<f64>,
    /// Times that everything is run; servers take turns
    #[arg(long, default_value_t = 1, value_name = "N")]
    rounds: usize,
    /// Goodput: longest good time to first token, as in 500ms
    #[arg(long, value_parser = duration, value_name = "TIME")]
    ttft_limit: Option<Duration>,
    /// Goodput: longest good mean time per token after the first
    #[arg(long, value_parser = duration, value_name = "TIME")]
    itl_limit: Option<Duration>,
    /// Time after which a request counts as failed
    #[arg(long, default_value = "120s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// Of texts, lengths and arrival times [default: another each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Write the report as JSON to this file; `-` for standard output instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the report as one HTML page with plots
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// No live line
    #[arg(long)]
    quiet: bool,
}

/// What is run.
pub(crate) enum Task {
    Sweep(Vec<Arrivals>),
    Search(Range),
}

/// What is run and how, with its settings for the report.
pub(crate) type Asked<'a> = (&'a Common, Plan, Task, Map<String, Value>);

impl Drawn {
    fn source(&self) -> Source {
        Source::Drawn(Box::new(Shape {
            prompt: self.prompt.clone(),
            output: self.output.clone(),
            turns: self.turns.clone(),
            turn_prompt: self.turn_prompt.clone().unwrap_or_else(|| self.prompt.clone()),
            think: self.think,
            prefix_groups: self.prefix_groups,
            prefix: self.prefix.clone(),
        }))
    }
}

impl Common {
    /// What all runs have in common.
    ///
    /// # Errors
    /// When a number makes no sense.
    pub(crate) fn plan(&self, source: Source) -> Result<Plan> {
        let seconds = |value: f64, name: &str| {
            let time = Duration::try_from_secs_f64(value).ok().filter(|time| *time <= LONGEST);
            time.with_context(|| format!("--{name} {value} is not a number of seconds up to {}", LONGEST.as_secs()))
        };
        let counted = seconds(self.seconds, "seconds")?;
        ensure!(!counted.is_zero(), "--seconds must be more than 0");
        ensure!((1..=MAX_ROUNDS).contains(&self.rounds), "--rounds {} is not between 1 and {MAX_ROUNDS}", self.rounds);
        let default_warmup = if matches!(source, Source::Trace(_)) { 0.0 } else { 3.0 };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Plan {
            source: Arc::new(source),
            warmup: seconds(self.warmup.unwrap_or(default_warmup), "warmup")?,
            counted,
            limits: Limits { ttft: self.ttft_limit, itl: self.itl_limit },
            seed: self.seed.unwrap_or(now.as_nanos() as u64 & 0xffff_ffff),
            rounds: self.rounds,
            is_quiet: self.quiet,
        })
    }

    /// The servers, each with a name of its own.
    ///
    /// # Errors
    /// When an address makes no sense or a name is given twice.
    pub(crate) fn targets(&self) -> Result<Vec<Target>> {
        if self.target.is_empty() {
            return Ok(vec![Target::new(None, &self.url)?]);
        }
        let mut targets: Vec<Target> = Vec::new();
        for text in &self.target {
            let (name, url) = text.split_once('=').with_context(|| format!("--target {text} is not NAME=URL"))?;
            let target = Target::new(Some(name.trim()), url)?;
            ensure!(!target.name.is_empty(), "--target {text} has no name");
            ensure!(targets.iter().all(|other| other.name != target.name), "--target {name} is there twice");
            targets.push(target);
        }
        Ok(targets)
    }

    /// How requests are made.
    ///
    /// # Errors
    /// When the file of the key cannot be read.
    pub(crate) fn manner(&self) -> Result<Manner> {
        let api_key = match &self.api_key_file {
            None => environment(API_KEY_VARIABLE),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Some(text)
            }
        };
        let api_key = api_key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        Ok(Manner { api_key, timeout: self.timeout, extra: self.extra.clone().unwrap_or_default() })
    }

    fn settings(&self, plan: &Plan) -> Map<String, Value> {
        let time = |time: Option<Duration>| time.map_or(Value::Null, |time| format!("{time:?}").into());
        let mut settings = Map::new();
        let mut set = |name: &str, value: Value| settings.insert(name.to_owned(), value);
        set("counted_seconds", plan.counted.as_secs_f64().into());
        set("warmup_seconds", plan.warmup.as_secs_f64().into());
        set("rounds", plan.rounds.into());
        set("ttft_limit", time(plan.limits.ttft));
        set("per_token_limit", time(plan.limits.itl));
        set("timeout", time(Some(self.timeout)));
        set("seed", plan.seed.into());
        set("extra", self.extra.clone().map_or(Value::Null, Value::Object));
        if let Source::Drawn(shape) = &*plan.source {
            set("prompt_tokens", shape.prompt.to_string().into());
            set("output_tokens", shape.output.to_string().into());
            set("turns", shape.turns.to_string().into());
            if !shape.turns.is_one() {
                set("turn_prompt_tokens", shape.turn_prompt.to_string().into());
                set("think", time(Some(shape.think)));
            }
            set("prefix_groups", shape.prefix_groups.into());
            if shape.prefix_groups > 0 {
                set("prefix_tokens", shape.prefix.to_string().into());
            }
        }
        settings
    }
}

impl Command {
    /// What is to be run, with its settings for the report; none for `report`.
    ///
    /// # Errors
    /// When something makes no sense.
    pub(crate) fn task(&self) -> Result<Option<Asked<'_>>> {
        let mut own = Map::new();
        let (common, source, task) = match self {
            Self::Report { .. } => return Ok(None),
            Self::Closed { clients, drawn, common } => {
                let loads = clients.iter().map(|clients| Arrivals::Closed { clients: *clients });
                (common, drawn.source(), Task::Sweep(loads.collect()))
            }
            Self::Open { rate, arrivals, drawn, common } => {
                own.insert("arrivals".to_owned(), arrivals.to_string().into());
                let loads = rate.iter().map(|rate| Arrivals::Open { per_second: *rate, spread: *arrivals });
                (common, drawn.source(), Task::Sweep(loads.collect()))
            }
            Self::Trace { file, speed, limit, common } => {
                own.insert("trace".to_owned(), file.display().to_string().into());
                let source = Source::Trace(trace::read(file, limit.unwrap_or(usize::MAX))?);
                let loads = speed.iter().map(|speed| Arrivals::Trace { speed: *speed });
                (common, source, Task::Sweep(loads.collect()))
            }
            Self::Search { from, to, precision, arrivals, drawn, common } => {
                own.insert("arrivals".to_owned(), arrivals.to_string().into());
                ensure!(0.001 <= *precision && *precision <= 1.0, "--precision {precision} is not between 0.001 and 1");
                ensure!(from <= to, "--from {from} is above --to {to}");
                if common.ttft_limit.is_none() && common.itl_limit.is_none() {
                    bail!("a search needs --ttft-limit or --itl-limit: within what shall the rate be?");
                }
                let range = Range { first: *from, highest: *to, precision: *precision, spread: *arrivals };
                (common, drawn.source(), Task::Search(range))
            }
        };
        let ends = match &task {
            Task::Search(Range { first, highest, spread, .. }) => {
                [*first, *highest].map(|per_second| Arrivals::Open { per_second, spread: *spread }).to_vec()
            }
            Task::Sweep(loads) => loads.clone(),
        };
        ends.into_iter().try_for_each(Arrivals::check)?;
        let plan = common.plan(source)?;
        let mut settings = common.settings(&plan);
        settings.extend(own);
        Ok(Some((common, plan, task, settings)))
    }
}

/// Longest time that can be asked for.
const LONGEST: Duration = Duration::from_secs(86_400);

/// `500ms`, `2s`, `5m`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[number.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        unit => return Err(format!("{unit} is no unit: expected ms, s or m")),
    };
    let value: f64 = number.trim().parse().map_err(|_| format!("{text} is no time: expected one such as 500ms"))?;
    let time = Duration::try_from_secs_f64(value * unit).ok().filter(|time| *time <= LONGEST);
    time.ok_or_else(|| format!("{text} is not between 0 and {} s", LONGEST.as_secs()))
}

fn json_object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

/// A variable of the environment, if it is there and text.
fn environment(name: &str) -> Option<String> {
    let mut variables = std::env::vars_os();
    variables.find(|(key, _)| key == name).and_then(|(_, value)| value.into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn task(arguments: &str) -> Result<String> {
        let words = ["tokenmill-loadtest"].into_iter().chain(arguments.split(' '));
        let cli = Cli::try_parse_from(words)?;
        let (common, plan, _, settings) = cli.command.task()?.context("a report")?;
        let targets = common.targets()?;
        let _manner = common.manner()?;
        Ok(format!("{plan:?} {settings:?} {targets:?}"))
    }

    #[test]
    fn clap_finds_nothing_wrong() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_asked_becomes_a_plan() {
        let text =
            task("open --rate 3 --arrivals gamma:0.5 --ttft-limit 250ms --target a=http://h:1 --target b=http://h:2");
        let text = text.unwrap();
        for part in ["ttft: Some(250ms)", "gamma:0.5", "name: \"a\", base: \"http://h:1\"", "warmup: 3s"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(task("closed --extra {\"top_k\":1} --seed 4").unwrap().contains("top_k"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (arguments, part) in [
            ("closed --clients 0", "0 clients"),
            ("closed --seconds 0", "--seconds"),
            ("closed --rounds 0", "--rounds"),
            ("closed --url https://h", "http://"),
            ("closed --target x", "NAME=URL"),
            ("closed --target a=http://h --target a=http://i", "twice"),
            ("closed --extra [1]", "JSON object"),
            ("closed --timeout 5h", "unit"),
            ("closed --prompt zipf:3", "distribution"),
            ("closed --api-key-file /no/such", "/no/such"),
            ("open --rate 0", "rate"),
            ("search", "--ttft-limit"),
            ("search --ttft-limit 1s --precision 0", "--precision"),
            ("search --ttft-limit 1s --from 9 --to 3", "--from"),
            ("trace /no/such", "/no/such"),
        ] {
            let error = format!("{:#}", task(arguments).unwrap_err());
            assert!(error.contains(part), "{arguments}: {error}");
        }
    }
}
