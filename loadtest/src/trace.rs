//! Recorded loads: a file of requests with their arrival times, as JSON lines or CSV.
//!
//! Entries come out sorted, the first at time 0. Field names of the published Mooncake and Azure traces are understood;
//! docs/LOADTEST.md lists them. Used by `workload` and `campaign`.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::lengths::MAX_TOKENS;

/// Requests of one trace, at most.
const MAX_ENTRIES: usize = 1_000_000;
/// Output tokens where a line of messages names none.
const DEFAULT_OUTPUT_TOKENS: u64 = 128;

/// Arrival in seconds.
const SECONDS: &[&str] = &["arrival_time", "arrived_at", "arrival_time_s", "time"];
/// Arrival in milliseconds (Mooncake).
const MILLISECONDS: &[&str] = &["timestamp", "arrival_time_ms", "timestamp_ms"];
/// Arrival as date and time (Azure).
const DATES: &[&str] = &["TIMESTAMP"];
const INPUTS: &[&str] =
    &["input_length", "ContextTokens", "input_tokens", "prompt_tokens", "num_prefill_tokens", "prompt_len"];
const OUTPUTS: &[&str] = &[
    "output_length",
    "GeneratedTokens",
    "output_tokens",
    "completion_tokens",
    "num_decode_tokens",
    "output_len",
    "max_tokens",
];

/// One recorded request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Since the first entry.
    pub(crate) at: Duration,
    pub(crate) input: Input,
    pub(crate) output_tokens: u64,
}

/// What a recorded request says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// These messages, as they are.
    Messages(Vec<Value>),
    /// Text of a length; equal ids stand for equal blocks of it, from the front (Mooncake: 512 tokens each).
    Length { tokens: u64, hash_ids: Vec<u64> },
}

/// Reads the first `limit` requests of a trace.
///
/// # Errors
/// When the file cannot be read, or a line cannot be understood; the message names it.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<Entry>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot read the trace {name}"))?;
    let mut entries = Vec::new();
    let mut header: Option<Vec<String>> = None;
    for (idx, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read the trace {name}"))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fields = match (line.starts_with('{'), &header) {
            (true, _) => serde_json::from_str(line).map_err(Into::into),
            (false, Some(columns)) => Ok(csv_fields(columns, line)),
            (false, None) => {
                header = Some(line.split(',').map(|column| column.trim().to_owned()).collect());
                continue;
            }
        };
        let entry = fields.and_then(|fields| entry_of(&fields));
        entries.push(entry.with_context(|| format!("{name} line {}", idx + 1))?);
        ensure!(entries.len() <= MAX_ENTRIES, "{name} has more than {MAX_ENTRIES} requests; cut it, or use --limit");
        if entries.len() >= limit {
            break;
        }
    }
    ensure!(!entries.is_empty(), "{name} holds no request");
    entries.sort_by(|a, b| a.0.total_cmp(&b.0));
    let first = entries[0].0;
    let rebase = |(at, entry): (f64, Entry)| {
        let at = Duration::try_from_secs_f64(at - first).context("an arrival time is out of range")?;
        Ok(Entry { at, ..entry })
    };
    entries.into_iter().map(rebase).collect()
}

/// A CSV line without quoting, as the published ones are.
fn csv_fields(columns: &[String], line: &str) -> Map<String, Value> {
    let value = |cell: &str| cell.parse::<f64>().map_or_else(|_| Value::from(cell), Value::from);
    columns.iter().zip(line.split(',')).map(|(column, cell)| (column.clone(), value(cell.trim()))).collect()
}

/// Seconds on the trace's own clock, and the entry.
fn entry_of(fields: &Map<String, Value>) -> Result<(f64, Entry)> {
    let at = arrival(fields)?;
    ensure!(at.is_finite() && at.abs() < 1e12, "the arrival time {at} is out of range");
    let output_tokens = count(fields, OUTPUTS)?;
    let input = if let Some(messages) = fields.get("messages") {
        let messages = messages.as_array().filter(|messages| !messages.is_empty());
        Input::Messages(messages.context("`messages` is not a list of messages")?.clone())
    } else if let Some(prompt) = fields.get("prompt").and_then(Value::as_str) {
        Input::Messages(vec![serde_json::json!({"role": "user", "content": prompt})])
    } else {
        let tokens = count(fields, INPUTS)?;
        let tokens = tokens.with_context(|| format!("neither `messages` nor any of {INPUTS:?}"))?;
        let ids = fields.get("hash_ids").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Input::Length { tokens, hash_ids: ids.iter().filter_map(Value::as_u64).collect() }
    };
    let output_tokens = match (output_tokens, &input) {
        (Some(tokens), _) => tokens,
        (None, Input::Messages(_)) => DEFAULT_OUTPUT_TOKENS,
        (None, Input::Length { .. }) => bail!("none of {OUTPUTS:?}"),
    };
    Ok((at, Entry { at: Duration::ZERO, input, output_tokens }))
}

fn arrival(fields: &Map<String, Value>) -> Result<f64> {
    let number = |names: &[&str]| names.iter().find_map(|name| fields.get(*name)?.as_f64());
    if let Some(seconds) = number(SECONDS) {
        return Ok(seconds);
    }
    if let Some(ms) = number(MILLISECONDS) {
        return Ok(ms / 1000.0);
    }
    let date = DATES.iter().chain(SECONDS).chain(MILLISECONDS).find_map(|name| fields.get(*name)?.as_str());
    let date = date.context("no arrival time: expected `timestamp` (ms), `arrival_time` (s) or `TIMESTAMP` (date)")?;
    seconds_of_date(date).with_context(|| format!("{date} is not a date such as 2023-11-16 18:17:03.979"))
}

/// Seconds since 1970 of `2023-11-16 18:17:03.9799600`, also with `T` and `Z`; other zones are not told apart.
fn seconds_of_date(text: &str) -> Option<f64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let time = time.trim_end_matches('Z').split('+').next()?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':').map(|part| part.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next().flatten().unwrap_or(0.0));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from civil: years begin in March, so that the leap day is the last.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * shifted_year + shifted_year.div_euclid(4) - shifted_year.div_euclid(100)
        + shifted_year.div_euclid(400)
        + (153 * shifted_month + 2) / 5
        + day
        - 719_469;
    Some(days as f64 * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}

/// The first of `names` that is there, as a token count.
fn count(fields: &Map<String, Value>, names: &[&str]) -> Result<Option<u64>> {
    let Some((name, value)) = names.iter().find_map(|name| Some((name, fields.get(*name)?))) else { return Ok(None) };
    let value = value.as_f64().with_context(|| format!("`{name}` is not a number"))?;
    ensure!((0.0..=MAX_TOKENS as f64).contains(&value), "`{name}` is {value}: 0 to {MAX_TOKENS} can be sent");
    // Traces hold requests that were answered with nothing; at least one token can be asked for.
    Ok(Some((value as u64).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn read_text(text: &str) -> Result<Vec<Entry>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{text}").unwrap();
        read(file.path(), 100)
    }

    fn length(ms: u64, tokens: u64, output_tokens: u64, hash_ids: &[u64]) -> Entry {
        let input = Input::Length { tokens, hash_ids: hash_ids.to_vec() };
        Entry { at: Duration::from_millis(ms), input, output_tokens }
    }

    #[test]
    fn mooncake_lines_are_understood_and_sorted() {
        let trace = "{\"timestamp\": 27482, \"input_length\": 6955, \"output_length\": 52, \"hash_ids\": [46, 47]}\n\n\
                     {\"timestamp\": 27000, \"input_length\": 10, \"output_length\": 0}\n";
        assert_eq!(read_text(trace).unwrap(), [length(0, 10, 1, &[]), length(482, 6955, 52, &[46, 47])]);
    }

    #[test]
    fn azure_csv_is_understood() {
        let trace = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.5000000,4808,10\r\n\
                     2023-11-17 00:00:01.2500000,3180,8\r\n";
        assert_eq!(read_text(trace).unwrap(), [length(0, 4808, 10, &[]), length(1750, 3180, 8, &[])]);
        assert_eq!(seconds_of_date("2000-02-29T12:00:00Z"), Some(951_825_600.0));
    }

    #[test]
    fn messages_are_kept_as_they_are() {
        let trace = r#"{"arrival_time": 1.5, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
                       {"arrival_time": 2, "prompt": "hi"}"#;
        let entries = read_text(trace).unwrap();
        assert_eq!(entries[0].input, entries[1].input);
        assert_eq!((entries[0].output_tokens, entries[1].output_tokens), (9, DEFAULT_OUTPUT_TOKENS));
        assert_eq!(entries[1].at, Duration::from_millis(500));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (trace, part) in [
            ("", "holds no request"),
            ("{\"timestamp\": 1}", "input_length"),
            ("{\"timestamp\": 1, \"input_length\": 3}", "output_length"),
            ("{\"input_length\": 3, \"output_length\": 3}", "no arrival time"),
            ("{\"timestamp\": 1, \"input_length\": -3, \"output_length\": 3}", "-3"),
            ("{\"timestamp\": 1, \"messages\": []}", "messages"),
            ("TIMESTAMP,ContextTokens\nyesterday,3", "yesterday"),
            ("{\"timestamp\": 1, ", "line 1"),
        ] {
            let error = format!("{:#}", read_text(trace).unwrap_err());
            assert!(error.contains(part), "{trace}: {error}");
        }
    }
}
