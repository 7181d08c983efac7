//! [`ModelWeights`]: every weight of a decoder, packed for the kernels, and [`WeightPlan`], the same before packing.
//!
//! The plan finds and checks every tensor and decides its layout without allocating for it, so that a model that is
//! incomplete or does not fit is refused before anything is read. Matrices that read the same activations are stacked
//! into one where their layouts agree.

use tokenmill_kernels::activations::{ActivationKind, ActivationKinds, Activations};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::matmul::{Layout, PackedMatrix, Part, Place, Store, matmul};
use tokenmill_kernels::pool::Pool;
use tokenmill_kernels::quant::{Format, QuantMatrix};

use super::load::Quantize;
use crate::error::LoadError;
use crate::families::{TensorNames, tensor_name};
use crate::open::OpenModel;
use crate::spec::DecoderSpec;
use crate::weights::{Tensor, Weights};

/// Folders with more weights than this are quantized by default: below, exact arithmetic is fast enough.
const MAX_EXACT_BYTES: u64 = 64 << 20;

/// The weights of a decoder, packed.
pub(super) struct ModelWeights {
    /// `[vocab_size, hidden_dim]`
    pub(super) embedding: PackedMatrix,
    pub(super) layers: Vec<LayerWeights>,
    /// `[hidden_dim]`
    pub(super) final_norm: Vec<f32>,
    /// `[vocab_size, hidden_dim]`; none if it is the embedding.
    output: Option<PackedMatrix>,
}

/// The weights of one layer.
pub(super) struct LayerWeights {
    /// `[hidden_dim]`
    pub(super) attention_norm: Vec<f32>,
    /// `[qkv_dim, hidden_dim]`
    pub(super) qkv: Projection,
    /// `[head_dim]`
    pub(super) q_norm: Option<Vec<f32>>,
    /// `[head_dim]`
    pub(super) k_norm: Option<Vec<f32>>,
    /// `[hidden_dim, attention_dim]`
    pub(super) attention_output: Projection,
    /// `[hidden_dim]`
    pub(super) mlp_norm: Vec<f32>,
    /// `[2 * ffn_dim, hidden_dim]`
    pub(super) gate_up: Projection,
    /// `[hidden_dim, ffn_dim]`
    pub(super) down: Projection,
}

/// Matrices that read the same rows, their products side by side; one matrix unless layouts differ.
pub(super) struct Projection {
    matrices: Vec<PackedMatrix>,
    rows: usize,
}

impl ModelWeights {
    /// The matrix that turns hidden states into logits, `[vocab_size, hidden_dim]`.
    pub(super) fn output(&self) -> &PackedMatrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

impl Projection {
    /// `out[r, ..rows] = x[r, :] · Wᵀ`, or added to it; rows of `out` are contiguous.
    pub(super) fn apply(&self, pool: &Pool, x: &Activations, out: &mut [f32], store: Store) {
        let mut offset = 0;
        for matrix in &self.matrices {
            matmul(pool, matrix, x, out, Place { stride: self.rows, offset, store });
            offset += matrix.rows();
        }
    }
}

/// Forms of activations that each buffer has to keep.
#[derive(Clone, Copy)]
pub(super) struct BufferKinds {
    /// Input of qkv, gate, up and the output projection.
    pub(super) normed: ActivationKinds,
    /// Input of the attention's output projection.
    pub(super) attention: ActivationKinds,
    /// Input of the down projection.
    pub(super) mlp: ActivationKinds,
}

/// A matrix that was found and checked, and how it will be packed.
struct MatrixPlan {
    name: String,
    rows: usize,
    cols: usize,
    layout: Layout,
    /// Heads of a matrix whose rows lie in pairs.
    paired_heads: Option<usize>,
    /// `[rows]`
    bias: Option<Vec<f32>>,
}

impl MatrixPlan {
    fn size_bytes(&self) -> u64 {
        PackedMatrix::size_bytes_for(self.rows, self.cols, self.layout) as u64
    }
}

struct LayerPlan {
    attention_norm: Vec<f32>,
    qkv: Vec<MatrixPlan>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attention_output: Vec<MatrixPlan>,
    mlp_norm: Vec<f32>,
    gate_up: Vec<MatrixPlan>,
    down: Vec<MatrixPlan>,
}

/// Every tensor of a model, found and checked; small vectors are read already.
pub(super) struct WeightPlan {
    embedding: MatrixPlan,
    layers: Vec<LayerPlan>,
    final_norm: Vec<f32>,
    output: Option<MatrixPlan>,
}

impl WeightPlan {
    /// Finds and checks every tensor of `model`.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] or [`LoadError::Unsupported`], naming the tensor.
    pub(super) fn new(model: &OpenModel, quantize: Quantize) -> Result<Self, LoadError> {
        let planner = Planner::new(model, quantize);
        let (spec, names) = (&model.spec, planner.names);
        let embedding = planner.matrix(names.embedding, 0, (spec.vocab_size, spec.hidden_dim), Role::Vocabulary)?;
        let output = if spec.tie_embeddings {
            None
        } else {
            Some(planner.matrix(names.output, 0, (spec.vocab_size, spec.hidden_dim), Role::Vocabulary)?)
        };
        let layers = (0..spec.num_layers).map(|layer_idx| planner.layer(layer_idx)).collect::<Result<_, _>>()?;
        let final_norm = planner.vector(names.final_norm, 0, spec.hidden_dim)?;
        planner.refuse_unknown_biases()?;
        Ok(Self { embedding, layers, final_norm, output })
    }

    /// Bytes of all packed weights.
    pub(super) fn size_bytes(&self) -> u64 {
        self.matrices().map(MatrixPlan::size_bytes).sum()
    }

    /// Bytes of what a step with logits reads in full.
    pub(super) fn step_bytes(&self) -> u64 {
        let only_looked_up = self.output.as_ref().map_or(0, |_| self.embedding.size_bytes());
        self.size_bytes() - only_looked_up
    }

    /// Name of the layout that holds most of the weights.
    pub(super) fn layout_name(&self) -> &'static str {
        let bytes_of = |layout: Layout| -> u64 {
            self.matrices().filter(|m| m.layout == layout).map(|m| (m.rows * m.cols) as u64).sum()
        };
        Layout::ALL.into_iter().max_by_key(|layout| bytes_of(*layout)).expect("there are layouts").name()
    }

    /// Whether some matrix is multiplied in integers.
    pub(super) fn is_quantized(&self) -> bool {
        self.matrices().any(|m| m.layout.activation_kind() == ActivationKind::Int8)
    }

    /// The forms that the activations must be kept in.
    pub(super) fn buffer_kinds(&self) -> BufferKinds {
        let vocabulary = self.output.as_ref().unwrap_or(&self.embedding);
        let normed = self.layers.iter().flat_map(|layer| layer.qkv.iter().chain(&layer.gate_up));
        BufferKinds {
            normed: kinds(normed.chain([vocabulary])),
            attention: kinds(self.layers.iter().flat_map(|layer| &layer.attention_output)),
            mlp: kinds(self.layers.iter().flat_map(|layer| &layer.down)),
        }
    }

    /// Reads and packs everything, letting go of the file's pages tensor by tensor.
    pub(super) fn pack(self, model: &OpenModel, isa: Isa, pool: &Pool) -> Result<ModelWeights, LoadError> {
        let packer = Packer { weights: &model.weights, isa, pool };
        let layer = |plan: LayerPlan| {
            Ok(LayerWeights {
                attention_norm: plan.attention_norm,
                qkv: packer.projection(&plan.qkv)?,
                q_norm: plan.q_norm,
                k_norm: plan.k_norm,
                attention_output: packer.projection(&plan.attention_output)?,
                mlp_norm: plan.mlp_norm,
                gate_up: packer.projection(&plan.gate_up)?,
                down: packer.projection(&plan.down)?,
            })
        };
        Ok(ModelWeights {
            embedding: packer.stack(&[self.embedding])?,
            layers: self.layers.into_iter().map(layer).collect::<Result<_, LoadError>>()?,
            final_norm: self.final_norm,
            output: self.output.map(|plan| packer.stack(&[plan])).transpose()?,
        })
    }

    fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        self.layers.iter().flat_map(LayerPlan::matrices).chain([&self.embedding]).chain(&self.output)
    }
}

impl LayerPlan {
    fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        self.qkv.iter().chain(&self.attention_output).chain(&self.gate_up).chain(&self.down)
    }
}

fn kinds<'a>(matrices: impl Iterator<Item = &'a MatrixPlan>) -> ActivationKinds {
    let mut out = ActivationKinds { int8: false, f32: false };
    for matrix in matrices {
        match matrix.layout.activation_kind() {
            ActivationKind::Int8 => out.int8 = true,
            ActivationKind::F32 => out.f32 = true,
        }
    }
    out
}

/// What a matrix is for, as far as its layout depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Embedding or output projection: errors there reach the output directly.
    Vocabulary,
    /// Inside a layer.
    Layer,
    /// q or k with this many heads, which a GGUF file may hold in pairs of rows.
    Heads(usize),
}

struct Planner<'a> {
    model: &'a OpenModel,
    spec: &'a DecoderSpec,
    names: &'static TensorNames,
    quantize: Quantize,
}

impl<'a> Planner<'a> {
    fn new(model: &'a OpenModel, quantize: Quantize) -> Self {
        let stored_bytes: u64 = model.weights.summaries().iter().map(|tensor| tensor.size_bytes).sum();
        let is_folder = matches!(model.weights, Weights::Folder(_));
        let quantize = match quantize {
            Quantize::Auto if is_folder && stored_bytes > MAX_EXACT_BYTES => Quantize::Q8_0,
            other => other,
        };
        Self { model, spec: &model.spec, names: model.tensor_names(), quantize }
    }

    fn layer(&self, layer_idx: usize) -> Result<LayerPlan, LoadError> {
        let (spec, names) = (self.spec, self.names);
        let (hidden, ffn) = (spec.hidden_dim, spec.ffn_dim);
        let (attention_dim, kv_dim) = (spec.attention_dim(), spec.kv_dim());
        let matrix = |stem: &str, rows: usize, cols: usize, role: Role, has_bias: bool| {
            let mut plan = self.matrix(stem, layer_idx, (rows, cols), role)?;
            if has_bias {
                plan.bias = Some(self.bias(stem, layer_idx, &plan)?);
            }
            Ok::<_, LoadError>(plan)
        };
        let head_norm = |stem: &str| {
            let wanted = spec.qk_norm.then(|| self.vector(stem, layer_idx, spec.head_dim));
            wanted.transpose()
        };
        let biases = spec.biases;
        Ok(LayerPlan {
            attention_norm: self.vector(names.attention_norm, layer_idx, hidden)?,
            qkv: vec![
                matrix(names.q, attention_dim, hidden, Role::Heads(spec.num_heads), biases.qkv)?,
                matrix(names.k, kv_dim, hidden, Role::Heads(spec.num_kv_heads), biases.qkv)?,
                matrix(names.v, kv_dim, hidden, Role::Layer, biases.qkv)?,
            ],
            q_norm: head_norm(names.q_norm)?,
            k_norm: head_norm(names.k_norm)?,
            attention_output: vec![matrix(
                names.attention_output,
                hidden,
                attention_dim,
                Role::Layer,
                biases.attention_output,
            )?],
            mlp_norm: self.vector(names.mlp_norm, layer_idx, hidden)?,
            gate_up: vec![
                matrix(names.gate, ffn, hidden, Role::Layer, biases.mlp)?,
                matrix(names.up, ffn, hidden, Role::Layer, biases.mlp)?,
            ],
            down: vec![matrix(names.down, hidden, ffn, Role::Layer, biases.mlp)?],
        })
    }

    fn matrix(
        &self,
        stem: &str,
        layer_idx: usize,
        (rows, cols): (usize, usize),
        role: Role,
    ) -> Result<MatrixPlan, LoadError> {
        let name = tensor_name(stem, layer_idx, "weight");
        let tensor = self.model.weights.matrix(&name, rows, cols)?;
        let layout = layout_for(self.quantize, tensor.format, cols, role);
        let paired_heads = match role {
            Role::Heads(heads) if self.model.pairs_rows() => Some(heads),
            _ => None,
        };
        Ok(MatrixPlan { name, rows, cols, layout, paired_heads, bias: None })
    }

    fn bias(&self, stem: &str, layer_idx: usize, plan: &MatrixPlan) -> Result<Vec<f32>, LoadError> {
        let stored = self.vector_named(&tensor_name(stem, layer_idx, "bias"), plan.rows)?;
        let order = plan.paired_heads.map(|heads| unpaired_order(plan.rows, heads));
        Ok(match order {
            Some(order) => order.into_iter().map(|row| stored[row as usize]).collect(),
            None => stored,
        })
    }

    fn vector(&self, stem: &str, layer_idx: usize, len: usize) -> Result<Vec<f32>, LoadError> {
        self.vector_named(&tensor_name(stem, layer_idx, "weight"), len)
    }

    fn vector_named(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.model.weights.vector(name, len)
    }

    /// A bias that the family does not add would be left out silently; the model is another one than its name says.
    fn refuse_unknown_biases(&self) -> Result<(), LoadError> {
        let (names, biases) = (self.names, self.spec.biases);
        let possible = [
            (names.q, biases.qkv),
            (names.k, biases.qkv),
            (names.v, biases.qkv),
            (names.attention_output, biases.attention_output),
            (names.gate, biases.mlp),
            (names.up, biases.mlp),
            (names.down, biases.mlp),
        ];
        for (stem, _) in possible.into_iter().filter(|(_, is_added)| !is_added) {
            let name = tensor_name(stem, 0, "bias");
            if self.model.weights.contains(&name) {
                let family = self.model.family.name;
                return Err(LoadError::Unsupported(format!("tensor '{name}', which a {family} model does not have")));
            }
        }
        Ok(())
    }
}

/// The layout for a matrix stored as `format` with rows of `cols` values.
fn layout_for(quantize: Quantize, format: Format, cols: usize, role: Role) -> Layout {
    let native = format.info().native_layout;
    let is_quantized = native.activation_kind() == ActivationKind::Int8;
    let wanted = match quantize {
        Quantize::Auto => return native,
        Quantize::None if is_quantized => return Layout::F32,
        Quantize::None => return native,
        // Four bits are too few for the logits; the models that llama.cpp calls q4_0 keep more there as well.
        Quantize::Q4_0 if role == Role::Vocabulary => Layout::Q8,
        Quantize::Q8_0 => Layout::Q8,
        Quantize::Q4_0 => Layout::Q4,
    };
    // More bits than the file has would cost memory and restore nothing.
    let bits = |layout: Layout| layout.native_format().info().bits_per_value();
    if is_quantized && bits(native) <= bits(wanted) {
        return native;
    }
    if wanted.native_format().row_bytes(cols).is_some() { wanted } else { Layout::F16 }
}

/// Where each row of a matrix with rows in pairs lies: `[h][2][d/2]` is stored as `[h][d/2][2]`.
fn unpaired_order(rows: usize, num_heads: usize) -> Vec<u32> {
    let half = rows / num_heads / 2;
    let order = (0..num_heads).flat_map(|head| {
        let first = head * 2 * half;
        (0..2).flat_map(move |side| (0..half).map(move |pair| first + 2 * pair + side))
    });
    order.map(|row| u32::try_from(row).expect("the spec's check bounds rows")).collect()
}

struct Packer<'a> {
    weights: &'a Weights,
    isa: Isa,
    pool: &'a Pool,
}

impl Packer<'_> {
    /// Packs matrices that read the same rows, neighbours of one layout as one matrix.
    fn projection(&self, plans: &[MatrixPlan]) -> Result<Projection, LoadError> {
        let rows = plans.iter().map(|plan| plan.rows).sum();
        let stacks = plans.chunk_by(|a, b| a.layout == b.layout && a.bias.is_some() == b.bias.is_some());
        let matrices = stacks.map(|stack| self.stack(stack)).collect::<Result<_, _>>()?;
        Ok(Projection { matrices, rows })
    }

    fn stack(&self, plans: &[MatrixPlan]) -> Result<PackedMatrix, LoadError> {
        let layout = plans[0].layout;
        let mut sources: Vec<(Tensor<'_>, Option<Vec<u32>>)> = Vec::with_capacity(plans.len());
        for plan in plans {
            let order = plan.paired_heads.map(|heads| unpaired_order(plan.rows, heads));
            sources.push((self.weights.matrix(&plan.name, plan.rows, plan.cols)?, order));
        }
        let mut parts = Vec::with_capacity(plans.len());
        for (plan, (tensor, order)) in plans.iter().zip(&sources) {
            let matrix = QuantMatrix::new(tensor.format, plan.rows, plan.cols, tensor.bytes())
                .map_err(|error| LoadError::tensor(&plan.name, error.to_string()))?;
            parts.push(Part { matrix, row_order: order.as_deref() });
        }
        let packed = PackedMatrix::pack(self.isa, self.pool, &parts, layout);
        for (tensor, _) in &sources {
            tensor.release();
        }
        let bias: Vec<f32> = plans.iter().filter_map(|plan| plan.bias.as_deref()).flatten().copied().collect();
        Ok(if bias.is_empty() { packed } else { packed.with_bias(bias) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_rows_are_put_in_halves() {
        // Two heads of four rows: stored 0 2 | 1 3 as pairs (0, 1), (2, 3).
        assert_eq!(unpaired_order(8, 2), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn layouts_follow_the_option_and_never_invent_bits() {
        let layout = |quantize, format, cols, role| layout_for(quantize, format, cols, role);
        assert_eq!(layout(Quantize::Auto, Format::Q4_0, 64, Role::Layer), Layout::Q4);
        assert_eq!(layout(Quantize::Auto, Format::BF16, 64, Role::Layer), Layout::BF16);
        assert_eq!(layout(Quantize::None, Format::Q4_0, 64, Role::Layer), Layout::F32);
        assert_eq!(layout(Quantize::None, Format::F16, 64, Role::Layer), Layout::F16);
        assert_eq!(layout(Quantize::Q8_0, Format::BF16, 64, Role::Layer), Layout::Q8);
        assert_eq!(layout(Quantize::Q8_0, Format::BF16, 72, Role::Layer), Layout::F16);
        assert_eq!(layout(Quantize::Q8_0, Format::Q4_0, 64, Role::Layer), Layout::Q4);
        assert_eq!(layout(Quantize::Q4_0, Format::Q8_0, 64, Role::Layer), Layout::Q4);
        assert_eq!(layout(Quantize::Auto, Format::Q4_K, 256, Role::Layer), Layout::Q4K);
        assert_eq!(layout(Quantize::Auto, Format::IQ4_XS, 256, Role::Layer), Layout::Iq4);
        assert_eq!(layout(Quantize::Q8_0, Format::Q6_K, 256, Role::Layer), Layout::Q6K);
        assert_eq!(layout(Quantize::Q4_0, Format::Q6_K, 256, Role::Layer), Layout::Q4);
        assert_eq!(layout(Quantize::None, Format::Q2_K, 256, Role::Layer), Layout::F32);
        assert_eq!(layout(Quantize::Q4_0, Format::BF16, 64, Role::Vocabulary), Layout::Q8);
    }
}
