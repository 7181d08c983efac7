//! [`MemoryPlan`]: what a model will take, worked out before anything is allocated.

use tokenmill_kernels::kv_cache::{BLOCK_SIZE, KvCache, KvShape, KvType};

use super::arena::ArenaSize;
use super::load::LoadOptions;
use super::weights::BufferKinds;
use crate::error::LoadError;
use crate::runner::{ContextRules, Geometry};
use crate::spec::DecoderSpec;

/// For what is not counted one by one: norms, tables, thread stacks, the allocator's own needs.
const MARGIN_BYTES: u64 = 16 << 20;
/// Longest context that is offered unless the caller asks for more.
const DEFAULT_MAX_MODEL_LEN: u32 = 32_768;
/// Shortest context that is worth serving, unless the model has less.
const MIN_MODEL_LEN: u32 = 256;
/// Rows of logits per step at least, so that the log-probabilities of a prompt take few steps.
const MIN_LOGITS_ROWS: u32 = 8;
/// Sequences of full length that the KV cache is made for at most, if the step takes fewer at a time: more memory than
/// that would only keep very old prefixes.
const MIN_FULL_SEQS: u64 = 16;
const MIB: u64 = 1 << 20;

/// Sizes that fit the memory, decided before loading.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryPlan {
    pub(super) geometry: Geometry,
    pub(super) kv_shape: KvShape,
    pub(super) kv_type: KvType,
}

/// What a plan is made from.
pub(super) struct MemoryNeeds<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) options: &'a LoadOptions,
    pub(super) weights_bytes: u64,
    pub(super) kinds: BufferKinds,
    pub(super) kv_type: KvType,
}

/// Bytes of one KV block of all layers.
pub(crate) fn kv_block_bytes(spec: &DecoderSpec, kv_type: KvType) -> u64 {
    KvCache::size_bytes(kv_shape(spec, 1), kv_type) as u64
}

fn kv_shape(spec: &DecoderSpec, num_blocks: usize) -> KvShape {
    KvShape { num_layers: spec.num_layers(), num_blocks, num_kv_heads: spec.num_kv_heads, head_dim: spec.head_dim }
}

impl MemoryNeeds<'_> {
    /// Shares out `memory_bytes`: weights and buffers first, the KV cache gets what remains.
    ///
    /// # Errors
    /// [`LoadError::DoesNotFit`] when not even the shortest useful context fits, [`LoadError::Options`] when an option
    /// is 0 or asks for more than the model has.
    pub(super) fn plan(&self) -> Result<MemoryPlan, LoadError> {
        self.check_options()?;
        let (spec, options) = (self.spec, self.options);
        let block_bytes = kv_block_bytes(spec, self.kv_type);
        let block_size = u32::try_from(BLOCK_SIZE).expect("a block is small");
        let asked = options.max_model_len;
        let wanted_len = asked.unwrap_or(spec.max_position_embeddings.min(DEFAULT_MAX_MODEL_LEN));
        let least_len = asked.unwrap_or(wanted_len.min(MIN_MODEL_LEN));
        let mut geometry = Geometry {
            block_size,
            num_blocks: 0,
            max_batch_tokens: options.max_batch_tokens,
            max_batch_seqs: options.max_batch_seqs,
            max_logits_rows: options.max_batch_seqs.max(MIN_LOGITS_ROWS),
            max_model_len: wanted_len,
            vocab_size: u32::try_from(spec.vocab_size).expect("checked by the spec"),
            context: ContextRules { window: spec.window(), switch_len: spec.switch_len() },
        };
        let arena = ArenaSize { spec, geometry, kinds: self.kinds, num_threads: options.num_threads };
        let arena_bytes = arena.size_bytes();
        let fixed_bytes = self.weights_bytes + arena_bytes + MARGIN_BYTES;
        let blocks_for = |len: u32| u64::from(len.div_ceil(block_size));
        let needed_bytes = fixed_bytes + blocks_for(least_len) * block_bytes;
        if needed_bytes > options.memory_bytes {
            return Err(self.does_not_fit(needed_bytes, arena_bytes, (least_len, blocks_for(least_len) * block_bytes)));
        }
        let fitting = (options.memory_bytes - fixed_bytes) / block_bytes;
        let fitting_len = u32::try_from(fitting.saturating_mul(block_size.into())).unwrap_or(u32::MAX);
        geometry.max_model_len = wanted_len.min(fitting_len);
        let full_seqs = u64::from(options.max_batch_seqs).max(MIN_FULL_SEQS);
        let useful = blocks_for(geometry.max_model_len).saturating_mul(full_seqs);
        geometry.num_blocks = u32::try_from(fitting.min(useful)).unwrap_or(u32::MAX);
        let kv_shape = kv_shape(spec, geometry.num_blocks as usize);
        Ok(MemoryPlan { geometry, kv_shape, kv_type: self.kv_type })
    }

    fn check_options(&self) -> Result<(), LoadError> {
        let options = self.options;
        let counts = [
            ("threads", options.num_threads),
            ("tokens per step", options.max_batch_tokens as usize),
            ("sequences per step", options.max_batch_seqs as usize),
            ("tokens of context", options.max_model_len.unwrap_or(1) as usize),
        ];
        if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(LoadError::Options(format!("the number of {what} must be at least 1")));
        }
        if options.max_batch_tokens < options.max_batch_seqs {
            let (tokens, seqs) = (options.max_batch_tokens, options.max_batch_seqs);
            return Err(LoadError::Options(format!("{tokens} tokens per step are fewer than {seqs} sequences")));
        }
        let positions = self.spec.max_position_embeddings;
        match options.max_model_len.filter(|len| *len > positions) {
            Some(len) => Err(LoadError::Options(format!(
                "a context of {len} tokens was asked for, but the model has {positions} positions: use --ctx \
                 {positions} or less"
            ))),
            None => Ok(()),
        }
    }

    fn does_not_fit(&self, needed_bytes: u64, arena_bytes: u64, (len, kv_bytes): (u32, u64)) -> LoadError {
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        let detail = format!(
            "weights {} MiB, KV cache for {len} tokens {} MiB, buffers {} MiB",
            mib(self.weights_bytes),
            mib(kv_bytes),
            mib(arena_bytes + MARGIN_BYTES)
        );
        let mut advice = Vec::new();
        if self.options.max_model_len.is_some_and(|len| len > MIN_MODEL_LEN) {
            advice.push("a shorter --ctx".to_owned());
        }
        if self.options.quantize != super::load::Quantize::Q4_0 {
            advice.push("--quantize q4_0".to_owned());
        }
        advice.push(format!("--memory {} or more, or a smaller model", format_args!("{}MiB", mib(needed_bytes))));
        let advice = format!("use {}", advice.join(", "));
        LoadError::DoesNotFit { needed_bytes, available_bytes: self.options.memory_bytes, detail, advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::load::Quantize;
    use tokenmill_kernels::activations::ActivationKind;
    use tokenmill_kernels::isa::Isa;

    fn options(memory_bytes: u64) -> LoadOptions {
        LoadOptions {
            isa: Isa::SCALAR,
            num_threads: 1,
            quantize: Quantize::Auto,
            kv_type: None,
            memory_bytes,
            max_model_len: None,
            max_batch_tokens: 64,
            max_batch_seqs: 4,
        }
    }

    fn plan(options: &LoadOptions) -> Result<MemoryPlan, LoadError> {
        let spec = DecoderSpec { max_position_embeddings: 1000, ..crate::spec::tests::tiny() };
        let kinds = BufferKinds::uniform(ActivationKind::F32);
        MemoryNeeds { spec: &spec, options, weights_bytes: 10 * MIB, kinds, kv_type: KvType::F32 }.plan()
    }

    /// Two layers, two heads of 16, K and V, four bytes each, 64 tokens.
    const BLOCK_BYTES: u64 = 2 * 2 * 16 * 2 * 4 * 64;

    #[test]
    fn the_kv_cache_gets_what_remains_up_to_what_is_useful() {
        let roomy = plan(&options(1 << 30)).unwrap().geometry;
        assert_eq!(roomy.max_model_len, 1000);
        assert_eq!(u64::from(roomy.num_blocks), 16 * MIN_FULL_SEQS, "16 blocks for each full sequence");
        let kinds = BufferKinds::uniform(ActivationKind::F32);
        let spec = DecoderSpec { max_position_embeddings: 1000, ..crate::spec::tests::tiny() };
        let arena = ArenaSize { spec: &spec, geometry: roomy, kinds, num_threads: 1 }.size_bytes();
        let fixed = 10 * MIB + MARGIN_BYTES + arena;
        let tight = plan(&options(fixed + 7 * BLOCK_BYTES + 5)).unwrap().geometry;
        assert_eq!((tight.num_blocks, tight.max_model_len), (7, 448), "one full sequence always fits");
    }

    #[test]
    fn what_does_not_fit_says_how_much_and_what_to_change() {
        let error = plan(&options(5 * MIB)).unwrap_err().to_string();
        for part in ["needs at least 27 MiB", "weights 10 MiB", "may use 5 MiB", "--quantize q4_0", "--memory 27MiB"] {
            assert!(error.contains(part), "'{error}' does not say '{part}'");
        }
        let long = LoadOptions { max_model_len: Some(1000), ..options(26 * MIB) };
        let error = plan(&long).unwrap_err().to_string();
        assert!(error.contains("1000 tokens") && error.contains("shorter --ctx"), "{error}");
    }

    #[test]
    fn impossible_options_are_refused() {
        let refused = |edit: fn(&mut LoadOptions), named: &str| {
            let mut options = options(1 << 30);
            edit(&mut options);
            let error = plan(&options).unwrap_err().to_string();
            assert!(error.contains(named), "'{error}' does not say '{named}'");
        };
        refused(|o| o.max_model_len = Some(1001), "--ctx 1000");
        refused(|o| o.max_model_len = Some(0), "tokens of context");
        refused(|o| o.num_threads = 0, "threads");
        refused(|o| o.max_batch_tokens = 3, "fewer than 4 sequences");
    }
}
