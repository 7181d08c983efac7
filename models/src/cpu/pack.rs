//! [`WeightPlan::pack`]: reads and packs what a plan found. Matrices that read the same activations are stacked into one
//! where their layouts agree.

use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::matmul::{PackedMatrix, Part};
use tokenmill_kernels::pool::Pool;
use tokenmill_kernels::quant::{Format, QuantMatrix};

use super::plan::{GatedPlan, LayerPlan, MatrixPlan, MlpPlan, WeightPlan};
use super::weights::{GatedMlp, LayerWeights, MlpWeights, ModelWeights, Projection};
use crate::error::LoadError;
use crate::open::OpenModel;
use crate::weights::float8::f8_matrix;
use crate::weights::{Tensor, Weights};

impl WeightPlan {
    /// Reads and packs everything, letting go of the file's pages tensor by tensor.
    pub(super) fn pack(self, model: &OpenModel, isa: Isa, pool: &Pool) -> Result<ModelWeights, LoadError> {
        let packer = Packer { weights: &model.weights, isa, pool };
        Ok(ModelWeights {
            embedding: packer.stack(&[self.embedding])?,
            layers: self.layers.into_iter().map(|plan| packer.layer(plan)).collect::<Result<_, _>>()?,
            final_norm: self.final_norm,
            output: self.output.map(|plan| packer.stack(&[plan])).transpose()?,
        })
    }
}

/// Where the values of a matrix come from.
enum Source<'a> {
    /// The file, in a format that kernels know.
    Stored(Tensor<'a>),
    /// 8-bit floats, as f32.
    Widened(Vec<u8>),
}

struct Packer<'a> {
    weights: &'a Weights,
    isa: Isa,
    pool: &'a Pool,
}

impl Packer<'_> {
    fn layer(&self, plan: LayerPlan) -> Result<LayerWeights, LoadError> {
        Ok(LayerWeights {
            norms: plan.norms,
            qkv: self.projection(&plan.qkv)?,
            attention_output: self.projection(&plan.attention_output)?,
            mlp: match plan.mlp {
                MlpPlan::Dense(mlp) => MlpWeights::Dense(self.gated(&mlp)?),
                MlpPlan::Experts { router, experts } => MlpWeights::Experts {
                    router: self.stack(&[router])?,
                    experts: experts.iter().map(|expert| self.gated(expert)).collect::<Result<_, _>>()?,
                },
            },
        })
    }

    fn gated(&self, plan: &GatedPlan) -> Result<GatedMlp, LoadError> {
        Ok(GatedMlp { gate_up: self.projection(&plan.gate_up)?, down: self.projection(&plan.down)? })
    }

    /// Packs matrices that read the same rows, neighbours of one layout as one matrix.
    fn projection(&self, plans: &[MatrixPlan]) -> Result<Projection, LoadError> {
        let rows = plans.iter().map(|plan| plan.rows).sum();
        let stacks = plans.chunk_by(|a, b| a.layout == b.layout && a.bias.is_some() == b.bias.is_some());
        let matrices = stacks.map(|stack| self.stack(stack)).collect::<Result<_, _>>()?;
        Ok(Projection { matrices, rows })
    }

    fn source(&self, plan: &MatrixPlan) -> Result<Source<'_>, LoadError> {
        if self.weights.is_f8(&plan.name) {
            return f8_matrix(self.weights, &plan.name, plan.rows, plan.cols).map(Source::Widened);
        }
        let rows = plan.first_row..plan.first_row + plan.rows;
        self.weights.rows(&plan.name, &plan.stored, rows).map(Source::Stored)
    }

    fn stack(&self, plans: &[MatrixPlan]) -> Result<PackedMatrix, LoadError> {
        let layout = plans[0].layout;
        let mut sources: Vec<(Source<'_>, Option<Vec<u32>>)> = Vec::with_capacity(plans.len());
        for plan in plans {
            let order = plan.paired_heads.map(|heads| unpaired_order(plan.rows, heads));
            sources.push((self.source(plan)?, order));
        }
        let mut parts = Vec::with_capacity(plans.len());
        for (plan, (source, order)) in plans.iter().zip(&sources) {
            let (format, bytes) = match source {
                Source::Stored(tensor) => (tensor.format, tensor.bytes()),
                Source::Widened(bytes) => (Format::F32, &bytes[..]),
            };
            let matrix = QuantMatrix::new(format, plan.rows, plan.cols, bytes)
                .map_err(|error| LoadError::tensor(&plan.name, error.to_string()))?;
            parts.push(Part { matrix, row_order: order.as_deref() });
        }
        let packed = PackedMatrix::pack(self.isa, self.pool, &parts, layout);
        for (source, _) in &sources {
            if let Source::Stored(tensor) = source {
                tensor.release();
            }
        }
        let bias: Vec<f32> = plans.iter().filter_map(|plan| plan.bias.as_deref()).flatten().copied().collect();
        Ok(if bias.is_empty() { packed } else { packed.with_bias(bias) })
    }
}

/// Where each row of a matrix with rows in pairs lies: `[h][2][d/2]` is stored as `[h][d/2][2]`.
pub(super) fn unpaired_order(rows: usize, num_heads: usize) -> Vec<u32> {
    let half = rows / num_heads / 2;
    let order = (0..num_heads).flat_map(|head| {
        let first = head * 2 * half;
        (0..2).flat_map(move |side| (0..half).map(move |pair| first + 2 * pair + side))
    });
    order.map(|row| u32::try_from(row).expect("the spec's check bounds rows")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_rows_are_put_in_halves() {
        // Two heads of four rows: stored 0 2 | 1 3 as pairs (0, 1), (2, 3).
        assert_eq!(unpaired_order(8, 2), [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
