//! Rows of a tensor from one format to another, some at a time and on several threads.

use tokenmill_kernels::quant::{Format, QuantMatrix, quantize_row};
use tokenmill_models::LoadError;
use tokenmill_models::weights::Tensor;

use super::{Planned, QuantizeError};

/// Values that are converted at a time: a few megabytes, many times what a thread takes to start.
const CHUNK_VALUES: usize = 2 << 20;

/// Hands the bytes of `planned` to `write` in order. Memory is bounded by [`CHUNK_VALUES`] or a row, if that is longer.
///
/// # Errors
/// [`QuantizeError::NotFinite`], or those of `write`.
pub(super) fn convert(
    source: &Tensor<'_>,
    planned: &Planned,
    num_threads: usize,
    write: &mut dyn FnMut(&[u8]) -> Result<(), QuantizeError>,
) -> Result<(), QuantizeError> {
    let (cols, num_rows) = planned.rows();
    let matrix = QuantMatrix::new(source.format, num_rows, cols, source.bytes())
        .map_err(|error| LoadError::Tensor { name: planned.source.clone(), reason: error.to_string() })?;
    let row_bytes = planned.format.row_bytes(cols).expect("declared before");
    let rows_per_chunk = (CHUNK_VALUES / cols).clamp(1, num_rows);
    let mut chunk = vec![0; rows_per_chunk * row_bytes];
    for first in (0..num_rows).step_by(rows_per_chunk) {
        let num_in_chunk = rows_per_chunk.min(num_rows - first);
        let out = &mut chunk[..num_in_chunk * row_bytes];
        let share = num_in_chunk.div_ceil(num_threads.max(1));
        let results: Vec<Result<(), QuantizeError>> = std::thread::scope(|scope| {
            let tasks = out.chunks_mut(share * row_bytes).enumerate().map(|(idx, out)| {
                let rows = Rows { matrix, planned, first: first + idx * share };
                scope.spawn(move || rows.convert(out, row_bytes))
            });
            let tasks: Vec<_> = tasks.collect();
            tasks.into_iter().map(|task| task.join().expect("converting rows does not panic")).collect()
        });
        results.into_iter().collect::<Result<(), _>>()?;
        write(out)?;
    }
    Ok(())
}

/// What one thread converts.
struct Rows<'a> {
    matrix: QuantMatrix<'a>,
    planned: &'a Planned,
    first: usize,
}

impl Rows<'_> {
    fn convert(&self, out: &mut [u8], row_bytes: usize) -> Result<(), QuantizeError> {
        let mut values = vec![0.0; self.matrix.cols()];
        for (row, out) in (self.first..).zip(out.chunks_mut(row_bytes)) {
            // The rows of a bias are its values.
            let is_bias = self.planned.shape.len() == 1;
            let source_row = match self.planned.paired_heads.filter(|_| !is_bias) {
                Some(heads) => paired_row(row, self.matrix.rows() / heads),
                None => row,
            };
            if self.matrix.format() == self.planned.format && !is_bias {
                out.copy_from_slice(self.matrix.row(source_row));
                continue;
            }
            self.matrix.dequantize_row(source_row, &mut values);
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(QuantizeError::NotFinite {
                    name: self.planned.source.clone(),
                    value: *value,
                    row: source_row,
                });
            }
            if let Some(heads) = self.planned.paired_heads.filter(|_| is_bias) {
                let head_dim = values.len() / heads;
                values = (0..values.len()).map(|idx| values[paired_row(idx, head_dim)]).collect();
            }
            store(self.planned.format, &values, out);
        }
        Ok(())
    }
}

/// f16 ends at 65504; a larger weight would become infinite.
fn store(format: Format, values: &[f32], out: &mut [u8]) {
    const LARGEST: f32 = 65504.0;
    if format == Format::F16 && values.iter().any(|value| value.abs() > LARGEST) {
        let clamped: Vec<f32> = values.iter().map(|value| value.clamp(-LARGEST, LARGEST)).collect();
        return quantize_row(format, &clamped, out);
    }
    quantize_row(format, values, out);
}

/// The row of a folder's matrix that becomes row `row` of the file: `[h][2][d/2]` is stored as `[h][d/2][2]`.
fn paired_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_heads_become_pairs() {
        let rows: Vec<usize> = (0..8).map(|row| paired_row(row, 4)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
