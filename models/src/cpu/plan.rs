//! [`WeightPlan`]: every tensor of a model found and checked, before anything large is allocated.
//!
//! The plan decides the layout of each matrix, so that a model that is incomplete or does not fit is refused before
//! anything is read. Used by `load`; `pack` carries it out.

use tokenmill_kernels::activations::{ActivationKind, ActivationKinds};
use tokenmill_kernels::matmul::{Layout, PackedMatrix};
use tokenmill_kernels::quant::Format;

use super::load::Quantize;
use super::pack::unpaired_order;
use super::weights::{BufferKinds, LayerNorms};
use crate::error::LoadError;
use crate::families::{TensorNames, expert_stem, tensor_name};
use crate::open::OpenModel;
use crate::spec::{DecoderSpec, ExpertSpec, QkNorm};
use crate::weights::Weights;

/// Folders with more weights than this are quantized by default: below, exact arithmetic is fast enough.
const MAX_EXACT_BYTES: u64 = 64 << 20;

/// A matrix that was found and checked, and how it will be packed.
pub(super) struct MatrixPlan {
    pub(super) name: String,
    /// Shape of the stored tensor: `[rows, cols]`, or `[num_experts, rows, cols]`.
    pub(super) stored: Vec<usize>,
    /// Rows of the stored tensor that come before.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) layout: Layout,
    /// Heads of a matrix whose rows lie in pairs.
    pub(super) paired_heads: Option<usize>,
    /// `[rows]`
    pub(super) bias: Option<Vec<f32>>,
}

impl MatrixPlan {
    fn size_bytes(&self) -> u64 {
        PackedMatrix::size_bytes_for(self.rows, self.cols, self.layout) as u64
    }
}

pub(super) struct LayerPlan {
    pub(super) norms: LayerNorms,
    pub(super) qkv: Vec<MatrixPlan>,
    pub(super) attention_output: Vec<MatrixPlan>,
    pub(super) mlp: MlpPlan,
}

pub(super) enum MlpPlan {
    Dense(GatedPlan),
    Experts { router: MatrixPlan, experts: Vec<GatedPlan> },
}

pub(super) struct GatedPlan {
    pub(super) gate_up: Vec<MatrixPlan>,
    pub(super) down: Vec<MatrixPlan>,
}

/// Every tensor of a model, found and checked; small vectors are read already.
pub(super) struct WeightPlan {
    pub(super) embedding: MatrixPlan,
    pub(super) layers: Vec<LayerPlan>,
    pub(super) final_norm: Vec<f32>,
    pub(super) output: Option<MatrixPlan>,
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
        let layers = (0..spec.num_layers()).map(|layer_idx| planner.layer(layer_idx)).collect::<Result<_, _>>()?;
        let final_norm = planner.norm(names.final_norm, 0, spec.hidden_dim)?;
        planner.refuse_unknown_biases()?;
        Ok(Self { embedding, layers, final_norm, output })
    }

    /// Bytes of all packed weights.
    pub(super) fn size_bytes(&self) -> u64 {
        self.matrices().map(MatrixPlan::size_bytes).sum()
    }

    /// Bytes of what a step with logits for one token reads: not an embedding that is only looked up, and of the experts
    /// the `num_active` of each layer.
    pub(super) fn step_bytes(&self, num_active: usize) -> u64 {
        let only_looked_up = self.output.as_ref().map_or(0, |_| self.embedding.size_bytes());
        let idle: u64 = self.layers.iter().map(|layer| layer.mlp.idle_bytes(num_active)).sum();
        self.size_bytes() - only_looked_up - idle
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
        let layers = || self.layers.iter();
        let mlps = || layers().map(|layer| &layer.mlp);
        let normed = layers().flat_map(|layer| &layer.qkv).chain(mlps().flat_map(MlpPlan::inputs));
        BufferKinds {
            normed: kinds(normed.chain([vocabulary])),
            attention: kinds(layers().flat_map(|layer| &layer.attention_output)),
            mlp: kinds(mlps().filter_map(MlpPlan::dense).flat_map(|mlp| &mlp.down)),
            expert_input: kinds(mlps().flat_map(MlpPlan::experts).flat_map(|mlp| &mlp.gate_up)),
            expert_mlp: kinds(mlps().flat_map(MlpPlan::experts).flat_map(|mlp| &mlp.down)),
        }
    }

    fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        self.layers.iter().flat_map(LayerPlan::matrices).chain([&self.embedding]).chain(&self.output)
    }
}

impl LayerPlan {
    fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        self.qkv.iter().chain(&self.attention_output).chain(self.mlp.matrices())
    }
}

impl GatedPlan {
    fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        self.gate_up.iter().chain(&self.down)
    }
}

impl MlpPlan {
    fn dense(&self) -> Option<&GatedPlan> {
        if let Self::Dense(mlp) = self { Some(mlp) } else { None }
    }

    fn experts(&self) -> &[GatedPlan] {
        if let Self::Experts { experts, .. } = self { experts } else { &[] }
    }

    fn router(&self) -> Option<&MatrixPlan> {
        if let Self::Experts { router, .. } = self { Some(router) } else { None }
    }

    /// What reads the layer's normed rows.
    fn inputs(&self) -> impl Iterator<Item = &MatrixPlan> {
        self.router().into_iter().chain(self.dense().into_iter().flat_map(|mlp| &mlp.gate_up))
    }

    fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        let gated = self.dense().into_iter().chain(self.experts());
        self.router().into_iter().chain(gated.flat_map(GatedPlan::matrices))
    }

    /// Bytes of the experts that a token does not go to.
    fn idle_bytes(&self, num_active: usize) -> u64 {
        let experts = self.experts();
        let all: u64 = experts.iter().flat_map(GatedPlan::matrices).map(MatrixPlan::size_bytes).sum();
        let num_idle = experts.len().saturating_sub(num_active) as u64;
        all / experts.len().max(1) as u64 * num_idle
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
    /// Chooses experts: small, and a rounding error may choose another.
    Router,
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
        let output = (spec.hidden_dim, spec.attention_dim());
        Ok(LayerPlan {
            norms: self.norms(layer_idx)?,
            qkv: self.qkv(layer_idx)?,
            attention_output: vec![self.biased(
                names.attention_output,
                layer_idx,
                output,
                Role::Layer,
                spec.biases.attention_output,
            )?],
            mlp: match spec.experts.filter(|_| spec.layers[layer_idx].has_experts) {
                Some(experts) => self.experts(layer_idx, experts)?,
                None => MlpPlan::Dense(self.dense(layer_idx)?),
            },
        })
    }

    fn norms(&self, layer_idx: usize) -> Result<LayerNorms, LoadError> {
        let (spec, names) = (self.spec, self.names);
        let norm = |wanted: bool, stem: &str, len: usize| wanted.then(|| self.norm(stem, layer_idx, len)).transpose();
        let (has_qk, q_len, k_len) = match spec.qk_norm {
            QkNorm::None => (false, 0, 0),
            QkNorm::PerHead => (true, spec.head_dim, spec.head_dim),
            QkNorm::AllHeads => (true, spec.attention_dim(), spec.kv_dim()),
        };
        Ok(LayerNorms {
            attention: norm(spec.norms.before, names.attention_norm, spec.hidden_dim)?,
            q: norm(has_qk, names.q_norm, q_len)?,
            k: norm(has_qk, names.k_norm, k_len)?,
            attention_post: norm(spec.norms.after, names.attention_post_norm, spec.hidden_dim)?,
            mlp: norm(spec.norms.before, names.mlp_norm, spec.hidden_dim)?,
            mlp_post: norm(spec.norms.after, names.mlp_post_norm, spec.hidden_dim)?,
        })
    }

    fn qkv(&self, layer_idx: usize) -> Result<Vec<MatrixPlan>, LoadError> {
        let (spec, names) = (self.spec, self.names);
        let (hidden, has_bias) = (spec.hidden_dim, spec.biases.qkv);
        if self.is_in_one(names.q, names.qkv, layer_idx) {
            if self.model.pairs_rows() {
                return Err(LoadError::Unsupported(format!("tensor '{}' with rows in pairs", names.qkv)));
            }
            return Ok(vec![self.biased(names.qkv, layer_idx, (spec.qkv_dim(), hidden), Role::Layer, has_bias)?]);
        }
        let (q_rows, kv_rows) = (spec.attention_dim(), spec.kv_dim());
        Ok(vec![
            self.biased(names.q, layer_idx, (q_rows, hidden), Role::Heads(spec.num_heads), has_bias)?,
            self.biased(names.k, layer_idx, (kv_rows, hidden), Role::Heads(spec.num_kv_heads), has_bias)?,
            self.biased(names.v, layer_idx, (kv_rows, hidden), Role::Layer, has_bias)?,
        ])
    }

    fn dense(&self, layer_idx: usize) -> Result<GatedPlan, LoadError> {
        let (names, has_bias) = (self.names, self.spec.biases.mlp);
        let (hidden, ffn) = (self.spec.hidden_dim, self.spec.ffn_dim);
        let matrix = |stem, shape| self.biased(stem, layer_idx, shape, Role::Layer, has_bias);
        // GGUF calls the matrix of both by the name of one: the rows tell that it is not merely that one, the other missing.
        let is_only_up = || {
            let shape = self.model.weights.shape(&self.stored_name(names.gate_up, layer_idx));
            names.gate_up == names.up && shape.is_some_and(|shape| shape.dims().first() == Some(&(ffn as u64)))
        };
        let gate_up = if self.is_in_one(names.gate, names.gate_up, layer_idx) && !is_only_up() {
            vec![matrix(names.gate_up, (2 * ffn, hidden))?]
        } else {
            vec![matrix(names.gate, (ffn, hidden))?, matrix(names.up, (ffn, hidden))?]
        };
        Ok(GatedPlan { gate_up, down: vec![matrix(names.down, (hidden, ffn))?] })
    }

    fn experts(&self, layer_idx: usize, spec: ExpertSpec) -> Result<MlpPlan, LoadError> {
        let (names, hidden, ffn) = (&self.names.experts, self.spec.hidden_dim, spec.ffn_dim);
        let router = self.matrix(names.router, layer_idx, (spec.num_experts, hidden), Role::Router)?;
        let is_each_apart = self.contains(&expert_stem(names.down, 0), layer_idx);
        let expert = |expert_idx: usize| {
            let apart = |stem: &str, shape| self.matrix(&expert_stem(stem, expert_idx), layer_idx, shape, Role::Layer);
            let stacked = |stem: &str, shape| self.stacked(stem, layer_idx, (expert_idx, spec.num_experts), shape);
            Ok(if is_each_apart {
                let gate_up = vec![apart(names.gate, (ffn, hidden))?, apart(names.up, (ffn, hidden))?];
                GatedPlan { gate_up, down: vec![apart(names.down, (hidden, ffn))?] }
            } else {
                let gate_up = if self.is_in_one(names.all_gate, names.all_gate_up, layer_idx) {
                    vec![stacked(names.all_gate_up, (2 * ffn, hidden))?]
                } else {
                    vec![stacked(names.all_gate, (ffn, hidden))?, stacked(names.all_up, (ffn, hidden))?]
                };
                GatedPlan { gate_up, down: vec![stacked(names.all_down, (hidden, ffn))?] }
            })
        };
        Ok(MlpPlan::Experts { router, experts: (0..spec.num_experts).map(expert).collect::<Result<_, LoadError>>()? })
    }

    fn contains(&self, stem: &str, layer_idx: usize) -> bool {
        self.model.weights.contains(&self.stored_name(stem, layer_idx))
    }

    /// The name with `.weight`, unless the file has the tensor without: stacks of experts in folders.
    fn stored_name(&self, stem: &str, layer_idx: usize) -> String {
        let name = tensor_name(stem, layer_idx, "weight");
        match name.strip_suffix(".weight").filter(|bare| self.model.weights.contains(bare)) {
            Some(bare) => bare.to_owned(),
            None => name,
        }
    }

    /// Whether the file holds the matrix `whole` instead of its `part`s.
    fn is_in_one(&self, part: &str, whole: &str, layer_idx: usize) -> bool {
        !self.contains(part, layer_idx) && self.contains(whole, layer_idx)
    }

    fn matrix(
        &self,
        stem: &str,
        layer_idx: usize,
        (rows, cols): (usize, usize),
        role: Role,
    ) -> Result<MatrixPlan, LoadError> {
        let name = self.stored_name(stem, layer_idx);
        let weights = &self.model.weights;
        let format = if weights.is_f8(&name) {
            weights.f8_bytes(&name, rows, cols)?;
            Format::F32
        } else {
            weights.matrix(&name, rows, cols)?.format
        };
        let layout = layout_for(self.quantize, format, cols, role);
        let paired_heads = match role {
            Role::Heads(heads) if self.model.pairs_rows() => Some(heads),
            _ => None,
        };
        Ok(MatrixPlan { name, stored: vec![rows, cols], first_row: 0, rows, cols, layout, paired_heads, bias: None })
    }

    /// The matrix of expert `expert_idx` in a tensor that holds those of `num_experts`.
    fn stacked(
        &self,
        stem: &str,
        layer_idx: usize,
        (expert_idx, num_experts): (usize, usize),
        (rows, cols): (usize, usize),
    ) -> Result<MatrixPlan, LoadError> {
        let name = self.stored_name(stem, layer_idx);
        let (stored, first_row) = (vec![num_experts, rows, cols], expert_idx * rows);
        let tensor = self.model.weights.rows(&name, &stored, first_row..first_row + rows)?;
        let layout = layout_for(self.quantize, tensor.format, cols, Role::Layer);
        Ok(MatrixPlan { name, stored, first_row, rows, cols, layout, paired_heads: None, bias: None })
    }

    /// [`Planner::matrix`] with its bias, if it `has_bias`.
    fn biased(
        &self,
        stem: &str,
        layer_idx: usize,
        shape: (usize, usize),
        role: Role,
        has_bias: bool,
    ) -> Result<MatrixPlan, LoadError> {
        let mut plan = self.matrix(stem, layer_idx, shape, role)?;
        if has_bias {
            let stored = self.model.weights.vector(&tensor_name(stem, layer_idx, "bias"), plan.rows)?;
            let order = plan.paired_heads.map(|heads| unpaired_order(plan.rows, heads));
            plan.bias = Some(match order {
                Some(order) => order.into_iter().map(|row| stored[row as usize]).collect(),
                None => stored,
            });
        }
        Ok(plan)
    }

    fn norm(&self, stem: &str, layer_idx: usize, len: usize) -> Result<Vec<f32>, LoadError> {
        let mut weights = self.model.weights.vector(&tensor_name(stem, layer_idx, "weight"), len)?;
        if self.spec.norms.stored_less_one {
            weights.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(weights)
    }

    /// A bias that the family does not add would be left out silently; the model is another one than its name says.
    fn refuse_unknown_biases(&self) -> Result<(), LoadError> {
        let (names, biases) = (self.names, self.spec.biases);
        let possible = [
            (names.q, biases.qkv),
            (names.k, biases.qkv),
            (names.v, biases.qkv),
            (names.qkv, biases.qkv),
            (names.attention_output, biases.attention_output),
            (names.gate, biases.mlp),
            (names.up, biases.mlp),
            (names.gate_up, biases.mlp),
            (names.down, biases.mlp),
            (names.experts.router, false),
            (names.output, false),
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
    if role == Role::Router {
        return if is_quantized { Layout::F32 } else { native };
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(layout(Quantize::Q4_0, Format::BF16, 64, Role::Router), Layout::BF16);
        assert_eq!(layout(Quantize::Auto, Format::Q8_0, 64, Role::Router), Layout::F32);
    }
}
