//! Matrices of 8-bit floats (`F8_E4M3`) with their scales, as f32. Used at load by `cpu::pack`.
//!
//! No kernel reads these, so a matrix is widened while it is packed: four times its bytes exist for that moment.

use tokenmill_kernels::quant::{Format, QuantMatrix};

use super::Weights;
use crate::error::LoadError;

/// Rows and columns that share a scale where a file has a grid of them.
const BLOCK: usize = 128;

/// The matrix called `name`, `[rows, cols]` in `F8_E4M3`, times its scales, as the bytes of f32 values.
///
/// A scale is the tensor `weight_scale_inv` or `weight_scale` beside the weight: one for all, one per row, or one per
/// block of 128 by 128. Without any, the values are as they are.
///
/// # Errors
/// As [`Weights::matrix`], and [`LoadError::Unsupported`] when the scales have another shape.
pub fn f8_matrix(weights: &Weights, name: &str, rows: usize, cols: usize) -> Result<Vec<u8>, LoadError> {
    let bytes = weights.f8_bytes(name, rows, cols)?;
    let stem = name.strip_suffix("weight").unwrap_or(name);
    let scale_name = ["weight_scale_inv", "weight_scale"]
        .map(|suffix| format!("{stem}{suffix}"))
        .into_iter()
        .find(|n| weights.contains(n));
    let (scales, grid) = match scale_name {
        Some(scale_name) => read_scales(weights, &scale_name, rows, cols)?,
        None => (vec![1.0], Grid { rows_per_scale: rows, cols_per_scale: cols }),
    };
    let scales_per_row = cols.div_ceil(grid.cols_per_scale);
    let matrix = QuantMatrix::new(Format::F8_E4M3, rows, cols, bytes)
        .map_err(|error| LoadError::tensor(name, error.to_string()))?;
    let mut out = Vec::with_capacity(rows * cols * 4);
    let mut row = vec![0.0; cols];
    for row_idx in 0..rows {
        matrix.dequantize_row(row_idx, &mut row);
        let scales = &scales[row_idx / grid.rows_per_scale * scales_per_row..][..scales_per_row];
        for (chunk, scale) in row.chunks(grid.cols_per_scale).zip(scales) {
            out.extend(chunk.iter().flat_map(|value| (value * scale).to_le_bytes()));
        }
    }
    Ok(out)
}

/// How much of a matrix shares a scale.
struct Grid {
    rows_per_scale: usize,
    cols_per_scale: usize,
}

fn read_scales(weights: &Weights, name: &str, rows: usize, cols: usize) -> Result<(Vec<f32>, Grid), LoadError> {
    let shape = weights.shape(name).ok_or_else(|| LoadError::tensor(name, "is missing from the file"))?;
    let blocks = [rows.div_ceil(BLOCK) as u64, cols.div_ceil(BLOCK) as u64];
    let grid = match shape.dims() {
        [] | [1] | [1, 1] => Grid { rows_per_scale: rows, cols_per_scale: cols },
        [n] | [n, 1] if *n == rows as u64 => Grid { rows_per_scale: 1, cols_per_scale: cols },
        dims if dims == blocks => Grid { rows_per_scale: BLOCK, cols_per_scale: BLOCK },
        _ => {
            let reason = format!("tensor '{name}' of shape {shape} for a matrix [{rows}, {cols}]");
            return Err(LoadError::Unsupported(reason));
        }
    };
    Ok((weights.values(name)?, grid))
}
