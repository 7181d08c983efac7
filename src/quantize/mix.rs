//! [`Mix`]: which tensor is stored in which format.
//!
//! Vectors stay exact. Of the matrices, those that errors pass through most directly get more bits: the output
//! projection, and for `q4_k_m` the values of attention and the down projections of the first eighth, the last eighth and
//! every third layer between, as in the files that people know by this name.

use tokenmill_kernels::quant::Format;

use super::Target;

/// `general.file_type`: llama.cpp's number for each mixture.
pub(super) fn file_type(target: Target) -> u32 {
    match target {
        Target::Q4_0 => 2,
        Target::Q8_0 => 7,
        Target::Q4KM => 15,
    }
}

/// How the tensors of one model are stored.
pub(super) struct Mix {
    target: Target,
    num_layers: usize,
    /// Whether the embedding is the output projection too.
    is_tied: bool,
}

/// A tensor's format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) format: Format,
    /// Whether the rows are too short or odd for the format that was wanted.
    pub(super) is_fallback: bool,
}

impl Mix {
    /// For a model with tensors of these names, as GGUF names them.
    pub(super) fn new<'a>(target: Target, names: impl Iterator<Item = &'a str>) -> Self {
        let (mut num_layers, mut is_tied) = (0, true);
        for name in names {
            num_layers = num_layers.max(layer_of(name).map_or(0, |layer| layer + 1));
            is_tied &= name != "output.weight";
        }
        Self { target, num_layers, is_tied }
    }

    /// The format for a tensor that is stored as `stored` with `num_dims` dimensions and rows of `cols` values.
    pub(super) fn choose(&self, name: &str, num_dims: usize, cols: usize, stored: Format) -> Choice {
        let as_is = |format| Choice { format, is_fallback: false };
        // A router is a matrix, but a small one that decides everything.
        if num_dims < 2 || !name.ends_with(".weight") || name.contains("_norm") || name.contains("ffn_gate_inp") {
            return as_is(if stored.info().block_len == 1 { Format::F32 } else { stored });
        }
        let wanted = self.wanted(name);
        // More bits than there are would restore nothing.
        if stored.info().block_len > 1 && stored.info().bits_per_value() <= wanted.info().bits_per_value() {
            return as_is(stored);
        }
        let fits = |format: Format| format.row_bytes(cols).is_some();
        if fits(wanted) {
            return as_is(wanted);
        }
        let next = match wanted {
            Format::Q4_K => Format::Q5_0,
            Format::Q5_K => Format::Q5_1,
            _ => Format::Q8_0,
        };
        Choice { format: if fits(next) { next } else { Format::F16 }, is_fallback: true }
    }

    fn wanted(&self, name: &str) -> Format {
        let is_output = name == "output.weight" || self.is_tied && name == "token_embd.weight";
        match self.target {
            Target::Q8_0 => Format::Q8_0,
            Target::Q4_0 | Target::Q4KM if is_output => Format::Q6_K,
            Target::Q4_0 => Format::Q4_0,
            Target::Q4KM if name.contains("attn_qkv") => Format::Q5_K,
            Target::Q4KM if name.contains("attn_v.") || name.contains("ffn_down") => {
                if layer_of(name).is_some_and(|layer| self.gets_more_bits(layer)) { Format::Q6_K } else { Format::Q4_K }
            }
            Target::Q4KM => Format::Q4_K,
        }
    }

    fn gets_more_bits(&self, layer: usize) -> bool {
        let eighth = self.num_layers / 8;
        layer < eighth || layer >= 7 * self.num_layers / 8 || (layer - eighth) % 3 == 2
    }
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(target: Target, is_tied: bool) -> Mix {
        Mix { target, num_layers: 24, is_tied }
    }

    #[test]
    fn matrices_get_what_the_target_says_and_what_fits_their_rows() {
        let format = |target, name: &str, cols| mix(target, true).choose(name, 2, cols, Format::BF16).format;
        assert_eq!(format(Target::Q8_0, "blk.0.attn_q.weight", 896), Format::Q8_0);
        assert_eq!(format(Target::Q4_0, "blk.0.attn_q.weight", 896), Format::Q4_0);
        assert_eq!(format(Target::Q4_0, "token_embd.weight", 896), Format::Q8_0);
        assert_eq!(format(Target::Q4_0, "token_embd.weight", 1024), Format::Q6_K);
        assert_eq!(format(Target::Q4KM, "blk.0.attn_q.weight", 1024), Format::Q4_K);
        assert_eq!(format(Target::Q4KM, "blk.0.attn_q.weight", 896), Format::Q5_0);
        assert_eq!(format(Target::Q4KM, "blk.0.attn_v.weight", 1024), Format::Q6_K);
        assert_eq!(format(Target::Q4KM, "blk.0.attn_v.weight", 896), Format::Q8_0);
        assert_eq!(format(Target::Q4KM, "blk.3.ffn_down.weight", 4864), Format::Q4_K);
        assert_eq!(format(Target::Q4KM, "blk.5.ffn_down.weight", 4864), Format::Q6_K);
        assert_eq!(format(Target::Q4KM, "blk.0.attn_q.weight", 100), Format::F16);
        let untied = mix(Target::Q4KM, false);
        assert_eq!(untied.choose("token_embd.weight", 2, 1024, Format::BF16).format, Format::Q4_K);
        assert_eq!(untied.choose("output.weight", 2, 1024, Format::BF16).format, Format::Q6_K);
    }

    #[test]
    fn vectors_and_what_has_fewer_bits_stay() {
        let choose = |name: &str, num_dims, stored| mix(Target::Q8_0, true).choose(name, num_dims, 1024, stored).format;
        assert_eq!(choose("blk.0.attn_norm.weight", 1, Format::BF16), Format::F32);
        assert_eq!(choose("blk.0.attn_q.bias", 1, Format::F16), Format::F32);
        assert_eq!(choose("blk.0.ffn_gate_inp.weight", 2, Format::BF16), Format::F32);
        assert_eq!(choose("blk.0.attn_q.weight", 2, Format::Q4_K), Format::Q4_K);
        assert_eq!(choose("blk.0.ffn_down_exps.weight", 3, Format::F32), Format::Q8_0);
    }

    #[test]
    fn layers_are_counted_by_name() {
        let names = ["token_embd.weight", "blk.0.attn_q.weight", "blk.11.attn_q.weight", "output.weight"];
        let mix = Mix::new(Target::Q4KM, names.into_iter());
        assert_eq!((mix.num_layers, mix.is_tied), (12, false));
    }
}
