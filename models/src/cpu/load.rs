//! [`load`]: from files to a runner.

use std::path::Path;
use std::time::Instant;

use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::{BLOCK_SIZE, KvCache, KvType};
use tokenmill_kernels::pool::{MAX_THREADS, Pool};

use super::arena::{Arena, ArenaSize};
use super::memory::{MemoryNeeds, kv_block_bytes};
use super::plan::WeightPlan;
use super::runner::CpuRunner;
use crate::error::LoadError;
use crate::open::{GenerationDefaults, ModelSource, OpenModel};
use crate::runner::TokenId;

/// What to do with weights at load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// GGUF files as they are; folders of more than 64 MiB as [`Quantize::Q8_0`], smaller ones as they are.
    #[default]
    Auto,
    /// Blocks of 32 bytes with a scale.
    Q8_0,
    /// Blocks of 32 half bytes with a scale; embedding and output projection as [`Quantize::Q8_0`].
    Q4_0,
    /// Exact: everything is computed in f32, the KV cache included.
    None,
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The kernels to use.
    pub isa: Isa,
    /// Threads that compute, the caller's included.
    pub num_threads: usize,
    /// What to do with the weights.
    pub quantize: Quantize,
    /// How to store keys and values; by default f16, and f32 with [`Quantize::None`].
    pub kv_type: Option<KvType>,
    /// Memory for weights, KV cache and buffers together.
    pub memory_bytes: u64,
    /// Tokens of a sequence; by default what the model was trained for, at most 32,768, and what fits.
    pub max_model_len: Option<u32>,
    /// Tokens per step.
    pub max_batch_tokens: u32,
    /// Sequences per step.
    pub max_batch_seqs: u32,
}

/// A model that is ready to run.
pub struct LoadedModel {
    /// Runs it.
    pub runner: CpuRunner,
    /// What it is.
    pub info: ModelInfo,
    /// Where its tokenizer and chat template are.
    pub source: ModelSource,
}

/// What is known of a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name of the family.
    pub family: &'static str,
    /// The architecture as its files spell it.
    pub architecture: String,
    /// Weights in all.
    pub num_params: u64,
    /// Bytes of the packed weights.
    pub weights_bytes: u64,
    /// Bytes of the weights that a step of one token reads: not an embedding that is not the output projection too, nor
    /// experts that the token does not go to.
    pub step_bytes: u64,
    /// Bytes that a token takes in the KV cache.
    pub kv_bytes_per_token: u64,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// How most weights are packed.
    pub layout: &'static str,
    /// Tokens of a sequence that are served.
    pub max_model_len: u32,
    /// Tokens of a sequence that the model was trained for.
    pub max_position_embeddings: u32,
    /// Entries of a row of logits.
    pub vocab_size: u32,
    /// Tokens after which generation ends, ascending.
    pub eos_token_ids: Vec<TokenId>,
    /// The token that begins a sequence, if there is one.
    pub bos_token_id: Option<TokenId>,
    /// How the model's authors sample.
    pub generation: GenerationDefaults,
}

/// Loads the GGUF file or Hugging Face folder at `path`.
///
/// # Errors
/// Any [`LoadError`]; [`LoadError::DoesNotFit`] before anything large is allocated.
pub fn load(path: &Path, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let started = Instant::now();
    let model = OpenModel::open(path)?;
    let plan = WeightPlan::new(&model, options.quantize)?;
    let kv_type = options.kv_type.unwrap_or(default_kv_type(&plan, options.quantize));
    let (weights_bytes, kinds, layout) = (plan.size_bytes(), plan.buffer_kinds(), plan.layout_name());
    let step_bytes = plan.step_bytes(model.spec.experts.map_or(0, |experts| experts.num_active));
    if options.num_threads > MAX_THREADS {
        return Err(LoadError::Options(format!("{} threads are more than {MAX_THREADS}", options.num_threads)));
    }
    let memory = MemoryNeeds { spec: &model.spec, options, weights_bytes, kinds, kv_type }.plan()?;
    let pool = Pool::new(options.num_threads);
    let weights = plan.pack(&model, options.isa, &pool)?;
    let size = ArenaSize { spec: &model.spec, geometry: memory.geometry, kinds, num_threads: options.num_threads };
    let arena = Arena::new(options.isa, size);
    let kv = KvCache::new(memory.kv_shape, memory.kv_type);
    let geometry = memory.geometry;
    tracing::info!(
        family = model.family.name,
        layout,
        weights_mib = weights_bytes >> 20,
        kv_mib = (u64::from(geometry.num_blocks) * kv_block_bytes(&model.spec, kv_type)) >> 20,
        max_model_len = geometry.max_model_len,
        elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "model loaded"
    );
    let info = ModelInfo {
        family: model.family.name,
        architecture: model.architecture,
        num_params: model.spec.num_params(),
        weights_bytes,
        step_bytes,
        kv_bytes_per_token: kv_block_bytes(&model.spec, kv_type) / u64::from(geometry.block_size),
        kv_type,
        layout,
        max_model_len: geometry.max_model_len,
        max_position_embeddings: model.spec.max_position_embeddings,
        vocab_size: geometry.vocab_size,
        eos_token_ids: model.eos_token_ids,
        bos_token_id: model.bos_token_id,
        generation: model.generation,
    };
    let runner = CpuRunner { isa: options.isa, pool, spec: model.spec, weights, kv, arena, geometry };
    Ok(LoadedModel { runner, info, source: model.source })
}

/// What a model will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes of the packed weights.
    pub weights_bytes: u64,
    /// How most weights will be packed.
    pub layout: &'static str,
    /// How keys and values will be stored.
    pub kv_type: KvType,
    /// Bytes that a token takes in the KV cache.
    pub kv_bytes_per_token: u64,
}

/// What `model` would take, without loading it; finds and checks every tensor.
///
/// # Errors
/// [`LoadError::Tensor`] or [`LoadError::Unsupported`], naming the tensor that stands in the way.
pub fn estimate(model: &OpenModel, quantize: Quantize) -> Result<Estimate, LoadError> {
    let plan = WeightPlan::new(model, quantize)?;
    let kv_type = default_kv_type(&plan, quantize);
    Ok(Estimate {
        weights_bytes: plan.size_bytes(),
        layout: plan.layout_name(),
        kv_type,
        kv_bytes_per_token: kv_block_bytes(&model.spec, kv_type) / BLOCK_SIZE as u64,
    })
}

/// f32 where the arithmetic is exact, else f16.
fn default_kv_type(plan: &WeightPlan, quantize: Quantize) -> KvType {
    if quantize == Quantize::None || !plan.is_quantized() { KvType::F32 } else { KvType::F16 }
}
