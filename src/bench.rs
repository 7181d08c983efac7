//! `tokenmill bench`: how fast a model runs here, as a share of what this machine can do.
//!
//! Measures the runner alone, through the same batches as the scheduler makes: no HTTP, no sampling. The machine's
//! limits are probed in the same process, because those of a virtual machine change from minute to minute.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokenmill_kernels::pool::Pool;
use tokenmill_kernels::probe;
use tokenmill_models::runner::{Batch, BatchSeq, BlockId, Geometry, Logits, ModelRunner, RunnerError, SeqId};
use tokenmill_models::{CpuRunner, LoadError, LoadOptions, ModelInfo, load};

/// Lengths of the prompts that are prefilled.
const PREFILL_TOKENS: [u32; 4] = [16, 64, 256, 1024];
/// Sequences that decode together.
const BATCH_SIZES: [u32; 6] = [1, 2, 4, 8, 16, 32];
/// Tokens that a decoding sequence has behind it.
const CONTEXT_LEN: u32 = 256;
/// Steps measured at least, and time after which no more are begun.
const MIN_STEPS: usize = 3;
const MAX_STEPS: usize = 64;
const MEASURED: Duration = Duration::from_millis(1500);

/// What `bench` is asked to do.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// How to load the model. At least 32 sequences per step measure every batch size.
    pub load: LoadOptions,
    /// JSON instead of a table.
    pub json: bool,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A step failed.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// The result could not be written.
    #[error("cannot write the result: {0}")]
    Write(#[from] std::io::Error),
    /// The result could not be turned into JSON.
    #[error("cannot write the result: {0}")]
    Json(#[from] serde_json::Error),
}

/// What this machine can do at most.
struct Machine {
    read_gb_per_s: f64,
    int8_gops: f64,
}

/// One line of the result.
struct Figure {
    /// Tokens that a step computes, and how many of them belong to a sequence of their own.
    num_tokens: u32,
    num_seqs: u32,
    median: Duration,
    best: Duration,
    /// Of what the machine could read in the median step.
    bandwidth_share: f64,
    /// Of what the machine could multiply in the median step; none for float weights.
    int8_share: Option<f64>,
}

/// Loads the model at `path`, measures it and writes the result to `out`.
///
/// # Errors
/// See [`BenchError`].
pub fn run(path: &Path, options: &BenchOptions, out: &mut impl Write) -> Result<(), BenchError> {
    let started = Instant::now();
    let loaded = load(path, &options.load)?;
    let load_time = started.elapsed();
    let machine = probe_machine(&options.load);
    let mut bench = Bench::new(loaded.runner, loaded.info);
    let prefill = bench.prefill(&machine)?;
    let decode = bench.decode(&machine)?;
    if options.json {
        let report = json!({
            "model": model_json(&bench.info, load_time),
            "machine": {
                "isa": options.load.isa.name(),
                "threads": options.load.num_threads,
                "read_gb_per_s": machine.read_gb_per_s,
                "int8_gops": machine.int8_gops,
            },
            "prefill": prefill.iter().map(Figure::json).collect::<Vec<_>>(),
            "decode": decode.iter().map(Figure::json).collect::<Vec<_>>(),
        });
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    write_header(out, &bench.info, options, &machine, load_time)?;
    writeln!(out, "\nprefill   tokens   tokens/s   ms (best)        of bandwidth   of int8 peak")?;
    for figure in &prefill {
        writeln!(out, "          {:>6}{}", figure.num_tokens, figure.columns())?;
    }
    writeln!(out, "\ndecode     batch   tokens/s   ms (best)        of bandwidth   of int8 peak")?;
    for figure in &decode {
        writeln!(out, "          {:>6}{}", figure.num_seqs, figure.columns())?;
    }
    Ok(())
}

fn probe_machine(options: &LoadOptions) -> Machine {
    let pool = Pool::new(options.num_threads);
    Machine { read_gb_per_s: probe::read_bandwidth(&pool), int8_gops: probe::int8_gops(options.isa, &pool) }
}

fn write_header(
    out: &mut impl Write,
    info: &ModelInfo,
    options: &BenchOptions,
    machine: &Machine,
    load_time: Duration,
) -> std::io::Result<()> {
    let millions = info.num_params as f64 / 1e6;
    let weights_mib = info.weights_bytes >> 20;
    writeln!(
        out,
        "model     {} ({}), {millions:.1} M parameters, {weights_mib} MiB as {}, KV {:?} {} bytes/token, loaded in {:.1} s",
        info.family,
        info.architecture,
        info.layout,
        info.kv_type,
        info.kv_bytes_per_token,
        load_time.as_secs_f64()
    )?;
    writeln!(
        out,
        "machine   {}, {} threads, reads {:.1} GB/s, int8 peak {:.0} GOP/s",
        options.load.isa, options.load.num_threads, machine.read_gb_per_s, machine.int8_gops
    )
}

fn model_json(info: &ModelInfo, load_time: Duration) -> Value {
    json!({
        "family": info.family,
        "architecture": info.architecture,
        "parameters": info.num_params,
        "weights_bytes": info.weights_bytes,
        "layout": info.layout,
        "kv_type": format!("{:?}", info.kv_type),
        "kv_bytes_per_token": info.kv_bytes_per_token,
        "load_seconds": load_time.as_secs_f64(),
    })
}

impl Figure {
    fn tokens_per_s(&self) -> f64 {
        f64::from(self.num_tokens) / self.median.as_secs_f64()
    }

    fn columns(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let int8 = self.int8_share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
        format!(
            " {:>12.1} {:>9.2} ({:.2}) {:>12.0} % {:>14}",
            self.tokens_per_s(),
            ms(self.median),
            ms(self.best),
            self.bandwidth_share * 100.0,
            int8
        )
    }

    fn json(&self) -> Value {
        json!({
            "tokens": self.num_tokens,
            "sequences": self.num_seqs,
            "tokens_per_s": self.tokens_per_s(),
            "median_ms": self.median.as_secs_f64() * 1e3,
            "best_ms": self.best.as_secs_f64() * 1e3,
            "bandwidth_share": self.bandwidth_share,
            "int8_share": self.int8_share,
        })
    }
}

/// A runner and the batches that measure it.
struct Bench {
    runner: CpuRunner,
    info: ModelInfo,
    geometry: Geometry,
    batch: Batch,
    logits: Logits,
}

impl Bench {
    fn new(runner: CpuRunner, info: ModelInfo) -> Self {
        let geometry = runner.geometry();
        let (batch, logits) = (Batch::with_capacity(&geometry), Logits::with_capacity(&geometry));
        Self { runner, info, geometry, batch, logits }
    }

    /// Whole prompts from nothing, in chunks of what a step takes.
    fn prefill(&mut self, machine: &Machine) -> Result<Vec<Figure>, BenchError> {
        let mut figures = Vec::new();
        for len in PREFILL_TOKENS {
            if !self.has_room(1, len) {
                continue;
            }
            let times = measure(|_| self.prefill_once(0, len))?;
            let num_steps = u64::from(len.div_ceil(self.geometry.max_batch_tokens));
            let bytes = self.info.step_bytes * num_steps;
            let products = u64::from(len) * self.runner.spec().layer_products() + self.runner.spec().output_products();
            figures.push(self.figure(machine, (len, 1), times, (bytes, products)));
        }
        Ok(figures)
    }

    /// One token for each of several sequences at a time.
    fn decode(&mut self, machine: &Machine) -> Result<Vec<Figure>, BenchError> {
        let mut figures = Vec::new();
        let max_len = CONTEXT_LEN + u32::try_from(MAX_STEPS).expect("a small constant");
        for num_seqs in BATCH_SIZES {
            if !self.has_room(num_seqs, max_len) {
                continue;
            }
            for seq in 0..num_seqs {
                self.prefill_once(seq, CONTEXT_LEN)?;
            }
            let times = measure(|step| {
                let position = CONTEXT_LEN + u32::try_from(step).expect("few steps");
                self.batch.clear();
                for seq in 0..num_seqs {
                    self.push(seq, position..position + 1, true);
                }
                Ok(self.runner.forward(&self.batch, &mut self.logits)?)
            })?;
            let kv_bytes = u64::from(num_seqs * CONTEXT_LEN) * self.info.kv_bytes_per_token;
            let spec = self.runner.spec();
            let products = u64::from(num_seqs) * (spec.layer_products() + spec.output_products());
            let bytes = self.info.step_bytes + kv_bytes;
            figures.push(self.figure(machine, (num_seqs, num_seqs), times, (bytes, products)));
        }
        Ok(figures)
    }

    fn figure(
        &self,
        machine: &Machine,
        (num_tokens, num_seqs): (u32, u32),
        mut times: Vec<Duration>,
        (bytes, products): (u64, u64),
    ) -> Figure {
        times.sort_unstable();
        let (median, best) = (times[times.len() / 2], times[0]);
        let nanos = median.as_secs_f64() * 1e9;
        let is_int8 = !matches!(self.info.layout, "F32" | "F16" | "BF16");
        Figure {
            num_tokens,
            num_seqs,
            median,
            best,
            bandwidth_share: bytes as f64 / nanos / machine.read_gb_per_s,
            int8_share: is_int8.then(|| 2.0 * products as f64 / nanos / machine.int8_gops),
        }
    }

    /// Whether `num_seqs` sequences of `len` tokens fit the geometry.
    fn has_room(&self, num_seqs: u32, len: u32) -> bool {
        let geometry = &self.geometry;
        let blocks = u64::from(num_seqs) * u64::from(geometry.num_blocks_for(len));
        len <= geometry.max_model_len && num_seqs <= geometry.max_batch_seqs && blocks <= u64::from(geometry.num_blocks)
    }

    fn prefill_once(&mut self, seq: u32, len: u32) -> Result<(), BenchError> {
        let mut done = 0;
        while done < len {
            let end = len.min(done + self.geometry.max_batch_tokens);
            self.batch.clear();
            self.push(seq, done..end, end == len);
            self.runner.forward(&self.batch, &mut self.logits)?;
            done = end;
        }
        Ok(())
    }

    /// Adds `positions` of sequence `seq`, which has blocks of its own, with arbitrary tokens.
    fn push(&mut self, seq: u32, positions: std::ops::Range<u32>, wants_logits: bool) {
        let geometry = self.geometry;
        let max_len = positions.end.max(CONTEXT_LEN + u32::try_from(MAX_STEPS).expect("a small constant"));
        let blocks_per_seq = geometry.num_blocks_for(max_len.min(geometry.max_model_len));
        let batch = &mut self.batch;
        let index = |len: usize| u32::try_from(len).expect("a batch is small");
        let (first_token, first_block) = (index(batch.tokens.len()), index(batch.block_tables.len()));
        batch.tokens.extend(positions.clone().map(|position| (position * 7919 + seq * 104_729) % geometry.vocab_size));
        batch.positions.extend(positions.clone());
        let num_blocks = geometry.num_blocks_for(positions.end);
        batch.block_tables.extend((0..num_blocks).map(|block| BlockId(seq * blocks_per_seq + block)));
        batch.seqs.push(BatchSeq {
            id: SeqId(u64::from(seq)),
            tokens: first_token..index(batch.tokens.len()),
            blocks: first_block..index(batch.block_tables.len()),
            context_len: positions.end,
            num_logits: u32::from(wants_logits),
            is_long: geometry.context.is_long(positions.end),
        });
    }
}

/// Times of `step`, called with 0, 1, 2 …; the first call warms up and does not count.
fn measure(mut step: impl FnMut(usize) -> Result<(), BenchError>) -> Result<Vec<Duration>, BenchError> {
    step(0)?;
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < MIN_STEPS || (times.len() + 1 < MAX_STEPS && begun.elapsed() < MEASURED) {
        let started = Instant::now();
        step(times.len() + 1)?;
        times.push(started.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenmill_kernels::isa::Isa;
    use tokenmill_models::Quantize;

    #[test]
    fn a_tiny_model_gives_figures_in_both_forms() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/golden/qwen2-tied");
        let load = LoadOptions {
            isa: Isa::best(),
            num_threads: 1,
            quantize: Quantize::Q8_0,
            kv_type: None,
            memory_bytes: 256 << 20,
            max_model_len: None,
            max_batch_tokens: 64,
            max_batch_seqs: 2,
        };
        let mut text = Vec::new();
        run(&path, &BenchOptions { load: load.clone(), json: false }, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("qwen2") && text.contains("prefill") && text.contains("int8 peak"), "{text}");
        let mut json = Vec::new();
        run(&path, &BenchOptions { load, json: true }, &mut json).unwrap();
        let report: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(report["prefill"][2]["tokens"], 256);
        assert!(report["prefill"][0]["tokens_per_s"].as_f64().unwrap() > 0.0);
        // Its 256 positions have no room for a context of 256 and some steps.
        assert_eq!(report["decode"].as_array().unwrap().len(), 0);
    }
}
