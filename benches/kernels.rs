//! Matrix products by layout, shape and rows. Compare a result with the two limits printed first, which belong to this
//! machine and minute: few rows are bound by memory (GiB/s), many by arithmetic.
//!
//! Names are `matmul/<layout>/<output x input>/<rows>`, on the best instruction set. Up to 4 rows throughput counts
//! weight bytes, from 8 rows on operations (a multiplication and an addition are two elements).

use std::hint::black_box;
use std::io::Write as _;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokenmill_kernels::activations::{ActivationKind, ActivationKinds, Activations};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::matmul::{Layout, PackedMatrix, Part, Place, matmul};
use tokenmill_kernels::pool::Pool;
use tokenmill_kernels::probe;
use tokenmill_kernels::quant::{QuantMatrix, quantize_row};

/// Output and input channels of the projections of a model with 0.5 B parameters.
const SHAPES: [(usize, usize); 3] = [(896, 896), (9728, 896), (896, 4864)];
const ROWS: [usize; 5] = [1, 4, 8, 16, 64];
/// Rows from which arithmetic is the limit.
const MANY_ROWS: usize = 8;
/// Weights that are multiplied in turn, so that they come from memory as in a model.
const COLD_BYTES: usize = 96 << 20;

fn matmuls(c: &mut Criterion) {
    let (isa, pool) = (Isa::best(), Pool::new(num_threads()));
    show_limits(isa, &pool);
    for layout in Layout::ALL {
        for (outputs, inputs) in SHAPES {
            let size_bytes = PackedMatrix::size_bytes_for(outputs, inputs, layout);
            let weights = cold_weights(isa, &pool, layout, (outputs, inputs), COLD_BYTES.div_ceil(size_bytes));
            let mut group = c.benchmark_group(format!("matmul/{}/{outputs}x{inputs}", layout.name()));
            for rows in ROWS {
                let x = activations(isa, &pool, layout, rows, inputs);
                let mut out = vec![0.0; rows * outputs];
                group.throughput(if rows < MANY_ROWS {
                    Throughput::Bytes(size_bytes as u64)
                } else {
                    Throughput::Elements(2 * (rows * outputs * inputs) as u64)
                });
                let mut next = 0;
                group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                    b.iter(|| {
                        next = (next + 1) % weights.len();
                        matmul(&pool, &weights[next], &x, black_box(&mut out), Place::rows_of(outputs));
                    });
                });
            }
            group.finish();
        }
    }
}

fn quantization(c: &mut Criterion) {
    let (isa, pool) = (Isa::best(), Pool::new(1));
    let mut group = c.benchmark_group("quantize");
    for cols in [896, 4864] {
        let values = noise(cols);
        let mut x = Activations::new(isa, 1, cols, ActivationKinds { int8: true, f32: false });
        group.throughput(Throughput::Elements(cols as u64));
        group.bench_function(BenchmarkId::from_parameter(cols), |b| {
            b.iter(|| x.fill(&pool, 1, |_, out| out.copy_from_slice(black_box(&values))));
        });
    }
    group.finish();
}

fn num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn show_limits(isa: Isa, pool: &Pool) {
    let (gops, bandwidth) = (probe::int8_gops(isa, pool), probe::read_bandwidth(pool));
    let text =
        format!("limits of {isa} on {} threads: {gops:.0} GOP/s int8, {bandwidth:.1} GB/s read", pool.num_threads());
    writeln!(std::io::stderr(), "{text}").expect("standard error can be written");
}

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect()
}

fn cold_weights(
    isa: Isa,
    pool: &Pool,
    layout: Layout,
    (rows, cols): (usize, usize),
    copies: usize,
) -> Vec<PackedMatrix> {
    let format = layout.native_format();
    let mut bytes = vec![0; rows * format.row_bytes(cols).expect("shapes are whole blocks")];
    quantize_row(format, &noise(rows * cols), &mut bytes);
    let matrix = QuantMatrix::new(format, rows, cols, &bytes).expect("the bytes were made for it");
    (0..copies).map(|_| PackedMatrix::pack(isa, pool, &[Part::new(matrix)], layout)).collect()
}

fn activations(isa: Isa, pool: &Pool, layout: Layout, rows: usize, cols: usize) -> Activations {
    let int8 = layout.activation_kind() == ActivationKind::Int8;
    let mut x = Activations::new(isa, rows, cols, ActivationKinds { int8, f32: !int8 });
    let values = noise(rows * cols);
    x.fill(pool, rows, |row, out| out.copy_from_slice(&values[row * cols..][..cols]));
    x
}

criterion_group!(benches, matmuls, quantization);
criterion_main!(benches);
