//! `tokenmill synth`: models with random weights at the real shape of published ones, for benches on any machine.
//!
//! Speed, memory and every code path are those of the real model; the text is nonsense. The file is a GGUF like any
//! other, with a generated vocabulary ([`vocabulary`]) that encodes English and whose every token prints something.

mod random;
mod vocabulary;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use random::Random;
use tokenmill_kernels::quant::Format;
use tokenmill_models::weights::gguf_writer::{GgufHeader, GgufWriteError, GgufWriter};

/// A published model whose sizes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// SmolLM2-135M
    #[value(name = "smollm2-135m")]
    SmolLm2135M,
    /// Qwen2.5-0.5B
    #[value(name = "qwen2.5-0.5b")]
    Qwen25Half,
    /// Qwen3-0.6B
    #[value(name = "qwen3-0.6b")]
    Qwen306,
    /// Llama-3.2-1B
    #[value(name = "llama-3.2-1b")]
    Llama321,
}

/// How the matrices are stored. Norms and biases are f32 in every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SynthFormat {
    /// 8 bits a weight in blocks of 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits a weight in blocks of 32; the embedding, which is also the head, in 8 bits, as in published files
    #[value(name = "q4_0")]
    Q4_0,
    /// 16 bits a weight
    #[value(name = "bf16")]
    Bf16,
}

/// What [`synth`] is asked for.
#[derive(Clone, Debug)]
pub struct SynthOptions {
    /// Sizes of the model.
    pub shape: Shape,
    /// Storage of the matrices.
    pub format: SynthFormat,
    /// The file to write.
    pub out: PathBuf,
    /// Whether a file that is there may be replaced.
    pub force: bool,
    /// Of the weights: the same seed gives the same file.
    pub seed: u64,
}

/// What [`synth`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynthReport {
    /// Weights of the model, a tied head counted once.
    pub num_params: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// Why no file was written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// There is a file already.
    #[error("{} exists; pass --force to replace it", .0.display())]
    Exists(PathBuf),
    /// The file system refused.
    #[error("{} cannot be written ({file_bytes} bytes are needed): {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Bytes of the whole file.
        file_bytes: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Sizes of a decoder, from its published config.json.
struct Sizes {
    name: &'static str,
    architecture: &'static str,
    hidden_dim: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    ffn_dim: usize,
    vocab_size: usize,
    context_len: u32,
    norm_eps: f32,
    rope_theta: f32,
    qkv_bias: bool,
    qk_norm: bool,
    /// Divisors of the rotary frequencies, by Llama 3's rule: factor, low, high, original context.
    rope_scaling: Option<(f32, f32, f32, f32)>,
    /// `tokenizer.ggml.pre`, the splitting rule of the real vocabulary.
    pre: &'static str,
    /// The id of `<|endoftext|>`; `<|im_start|>` and `<|im_end|>` follow.
    first_special: usize,
}

/// Others differ from it.
const QWEN25_HALF: Sizes = Sizes {
    name: "Qwen2.5-0.5B",
    architecture: "qwen2",
    hidden_dim: 896,
    num_layers: 24,
    num_heads: 14,
    num_kv_heads: 2,
    head_dim: 64,
    ffn_dim: 4864,
    vocab_size: 151_936,
    context_len: 32_768,
    norm_eps: 1e-6,
    rope_theta: 1e6,
    qkv_bias: true,
    qk_norm: false,
    rope_scaling: None,
    pre: "qwen2",
    first_special: 151_643,
};

impl Shape {
    fn sizes(self) -> Sizes {
        match self {
            Self::Qwen25Half => QWEN25_HALF,
            Self::Qwen306 => Sizes {
                name: "Qwen3-0.6B",
                architecture: "qwen3",
                hidden_dim: 1024,
                num_layers: 28,
                num_heads: 16,
                num_kv_heads: 8,
                head_dim: 128,
                ffn_dim: 3072,
                context_len: 40_960,
                qkv_bias: false,
                qk_norm: true,
                ..QWEN25_HALF
            },
            Self::SmolLm2135M => Sizes {
                name: "SmolLM2-135M",
                architecture: "llama",
                hidden_dim: 576,
                num_layers: 30,
                num_heads: 9,
                num_kv_heads: 3,
                ffn_dim: 1536,
                vocab_size: 49_152,
                context_len: 8192,
                norm_eps: 1e-5,
                rope_theta: 1e5,
                qkv_bias: false,
                pre: "smollm",
                first_special: 0,
                ..QWEN25_HALF
            },
            Self::Llama321 => Sizes {
                name: "Llama-3.2-1B",
                architecture: "llama",
                hidden_dim: 2048,
                num_layers: 16,
                num_heads: 32,
                num_kv_heads: 8,
                ffn_dim: 8192,
                vocab_size: 128_256,
                context_len: 131_072,
                norm_eps: 1e-5,
                rope_theta: 5e5,
                qkv_bias: false,
                rope_scaling: Some((32.0, 1.0, 4.0, 8192.0)),
                pre: "llama-bpe",
                first_special: 128_000,
                ..QWEN25_HALF
            },
        }
    }
}

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Ones,
    Zeros,
    Random,
    RopeDivisors,
}

/// A tensor of the file, in the file's order.
struct Planned {
    name: String,
    shape: Vec<usize>,
    format: Format,
    fill: Fill,
}

/// Writes a model with random weights; takes seconds, and memory for the vocabulary only.
///
/// # Errors
/// [`SynthError`]; no half-written file stays at `options.out`.
pub fn synth(options: &SynthOptions) -> Result<SynthReport, SynthError> {
    if options.out.exists() && !options.force {
        return Err(SynthError::Exists(options.out.clone()));
    }
    synth_sizes(&options.shape.sizes(), options)
}

fn synth_sizes(sizes: &Sizes, options: &SynthOptions) -> Result<SynthReport, SynthError> {
    let plan = plan(sizes, options.format);
    let mut header = metadata(sizes);
    for tensor in &plan {
        header.declare(&tensor.name, &tensor.shape, tensor.format).expect("published sizes are whole blocks");
    }
    let file_bytes = header.file_bytes();
    let partial = partial_path(&options.out);
    let written =
        write_file(&partial, header, &plan, sizes, options.seed).and_then(|()| std::fs::rename(&partial, &options.out));
    if let Err(source) = written {
        // Best effort: the error that matters is the first.
        drop(std::fs::remove_file(&partial));
        return Err(SynthError::Io { path: options.out.clone(), file_bytes, source });
    }
    let is_weight = |tensor: &&Planned| tensor.fill != Fill::RopeDivisors;
    let num_params = plan.iter().filter(is_weight).map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
    Ok(SynthReport { num_params, file_bytes })
}

/// Where the file grows before it gets its name.
fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn write_file(path: &Path, header: GgufHeader, plan: &[Planned], sizes: &Sizes, seed: u64) -> io::Result<()> {
    let as_io = |error: GgufWriteError| match error {
        GgufWriteError::Io(error) => error,
        other @ GgufWriteError::Shape { .. } => io::Error::other(other),
    };
    let out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut writer = header.start(out).map_err(as_io)?;
    let mut random = Random::new(seed);
    for tensor in plan {
        write_tensor(&mut writer, tensor, sizes, &mut random).map_err(as_io)?;
    }
    writer.finish().map_err(as_io)?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn write_tensor<W: Write>(
    writer: &mut GgufWriter<W>,
    tensor: &Planned,
    sizes: &Sizes,
    random: &mut Random,
) -> Result<(), GgufWriteError> {
    let cols = *tensor.shape.last().expect("every tensor has a dimension");
    let num_rows = tensor.shape.iter().product::<usize>() / cols;
    if tensor.fill == Fill::Random {
        let mut row = vec![0; tensor.format.row_bytes(cols).expect("published sizes are whole blocks")];
        for _ in 0..num_rows {
            random.fill_row(tensor.format, &mut row);
            writer.write(&row)?;
        }
        return Ok(());
    }
    let values = match tensor.fill {
        Fill::Ones => vec![1.0; cols],
        Fill::Zeros | Fill::Random => vec![0.0; cols],
        Fill::RopeDivisors => rope_divisors(sizes),
    };
    let bytes: Vec<u8> = values.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
    writer.write(&bytes)
}

fn plan(sizes: &Sizes, format: SynthFormat) -> Vec<Planned> {
    let (matrix, embedding) = match format {
        SynthFormat::Q8_0 => (Format::Q8_0, Format::Q8_0),
        SynthFormat::Q4_0 => (Format::Q4_0, Format::Q8_0),
        SynthFormat::Bf16 => (Format::BF16, Format::BF16),
    };
    let (hidden, ffn) = (sizes.hidden_dim, sizes.ffn_dim);
    let (q_dim, kv_dim) = (sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim);
    let mut plan = Vec::new();
    let mut add = |name: String, shape: &[usize], format: Format, fill: Fill| {
        plan.push(Planned { name, shape: shape.to_vec(), format, fill });
    };
    add("token_embd.weight".to_owned(), &[sizes.vocab_size, hidden], embedding, Fill::Random);
    if sizes.rope_scaling.is_some() {
        add("rope_freqs.weight".to_owned(), &[sizes.head_dim / 2], Format::F32, Fill::RopeDivisors);
    }
    for layer in 0..sizes.num_layers {
        let name = |stem: &str| format!("blk.{layer}.{stem}");
        add(name("attn_norm.weight"), &[hidden], Format::F32, Fill::Ones);
        for (stem, rows) in [("attn_q", q_dim), ("attn_k", kv_dim), ("attn_v", kv_dim)] {
            add(name(&format!("{stem}.weight")), &[rows, hidden], matrix, Fill::Random);
            if sizes.qkv_bias {
                add(name(&format!("{stem}.bias")), &[rows], Format::F32, Fill::Zeros);
            }
        }
        if sizes.qk_norm {
            add(name("attn_q_norm.weight"), &[sizes.head_dim], Format::F32, Fill::Ones);
            add(name("attn_k_norm.weight"), &[sizes.head_dim], Format::F32, Fill::Ones);
        }
        add(name("attn_output.weight"), &[hidden, q_dim], matrix, Fill::Random);
        add(name("ffn_norm.weight"), &[hidden], Format::F32, Fill::Ones);
        add(name("ffn_gate.weight"), &[ffn, hidden], matrix, Fill::Random);
        add(name("ffn_up.weight"), &[ffn, hidden], matrix, Fill::Random);
        add(name("ffn_down.weight"), &[hidden, ffn], matrix, Fill::Random);
    }
    add("output_norm.weight".to_owned(), &[hidden], Format::F32, Fill::Ones);
    plan
}

fn metadata(sizes: &Sizes) -> GgufHeader {
    let number = |size: usize| u32::try_from(size).expect("published sizes fit");
    let mut header = GgufHeader::new();
    let architecture = sizes.architecture;
    header.put_str("general.architecture", architecture);
    header.put_str("general.name", &format!("{} with random weights", sizes.name));
    for (key, size) in [
        ("block_count", sizes.num_layers),
        ("embedding_length", sizes.hidden_dim),
        ("feed_forward_length", sizes.ffn_dim),
        ("attention.head_count", sizes.num_heads),
        ("attention.head_count_kv", sizes.num_kv_heads),
        ("attention.key_length", sizes.head_dim),
        ("attention.value_length", sizes.head_dim),
        ("rope.dimension_count", sizes.head_dim),
        ("vocab_size", sizes.vocab_size),
    ] {
        header.put_u32(&format!("{architecture}.{key}"), number(size));
    }
    header.put_u32(&format!("{architecture}.context_length"), sizes.context_len);
    header.put_f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), sizes.norm_eps);
    header.put_f32(&format!("{architecture}.rope.freq_base"), sizes.rope_theta);
    vocabulary::generate(sizes.vocab_size, sizes.first_special).put_into(&mut header, sizes.pre);
    header
}

/// What Llama 3's scaling divides each rotary frequency by: long waves by the factor, short ones by 1, a ramp between.
fn rope_divisors(sizes: &Sizes) -> Vec<f32> {
    let (factor, low, high, original) = sizes.rope_scaling.unwrap_or((1.0, 1.0, 4.0, 1.0));
    (0..sizes.head_dim / 2)
        .map(|idx| {
            let exponent = 2.0 * idx as f32 / sizes.head_dim as f32;
            let wave_len = std::f32::consts::TAU * sizes.rope_theta.powf(exponent);
            if wave_len < original / high {
                1.0
            } else if wave_len > original / low {
                factor
            } else {
                let smooth = (original / wave_len - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::{ChatTemplate, TemplateInput, Tokenizer, encode_chat};
    use tokenmill_kernels::quant::QuantMatrix;
    use tokenmill_models::weights::gguf::Gguf;

    const SHAPES: [Shape; 4] = [Shape::SmolLm2135M, Shape::Qwen25Half, Shape::Qwen306, Shape::Llama321];

    fn tiny() -> Sizes {
        Sizes {
            hidden_dim: 64,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            ffn_dim: 96,
            vocab_size: 600,
            first_special: 590,
            ..Shape::Qwen25Half.sizes()
        }
    }

    fn options(out: PathBuf, format: SynthFormat, seed: u64) -> SynthOptions {
        SynthOptions { shape: Shape::Qwen25Half, format, out, force: false, seed }
    }

    #[test]
    fn sizes_are_the_published_ones() {
        let published = [134_515_008, 494_032_768, 596_049_920, 1_235_814_400_usize];
        for (shape, expected) in SHAPES.into_iter().zip(published) {
            let weights = plan(&shape.sizes(), SynthFormat::Q8_0);
            let weights = weights.iter().filter(|tensor| tensor.fill != Fill::RopeDivisors);
            assert_eq!(
                weights.map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>(),
                expected,
                "{shape:?}"
            );
        }
    }

    #[test]
    fn rope_divisors_follow_llama_3() {
        let divisors = rope_divisors(&Shape::Llama321.sizes());
        assert_eq!(divisors.len(), 32);
        assert_eq!((divisors[0], divisors[31]), (1.0, 32.0));
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]), "{divisors:?}");
    }

    #[test]
    fn files_are_models_with_sane_weights() {
        let dir = tempfile::tempdir().unwrap();
        for (format, embedding) in
            [(SynthFormat::Q8_0, Format::Q8_0), (SynthFormat::Q4_0, Format::Q8_0), (SynthFormat::Bf16, Format::BF16)]
        {
            let out = dir.path().join(format!("{format:?}.gguf"));
            let report = synth_sizes(&tiny(), &options(out.clone(), format, 1)).unwrap();
            assert_eq!(report.file_bytes, std::fs::metadata(&out).unwrap().len());
            assert!(!partial_path(&out).exists());
            let file = Gguf::open(&out).unwrap();
            assert_eq!(file.tensor("token_embd.weight").unwrap().format, Some(embedding));
            for (name, tensor) in file.tensors().filter(|(_, tensor)| tensor.shape.dims().len() == 2) {
                let dims: Vec<usize> = tensor.shape.dims().iter().map(|&dim| usize::try_from(dim).unwrap()).collect();
                let data = &file.file_of(tensor).bytes()[tensor.data.clone()];
                let matrix = QuantMatrix::new(tensor.format.unwrap(), dims[0], dims[1], data).unwrap();
                let mut row = vec![0.0; dims[1]];
                let (mut sum, mut squares) = (0.0, 0.0);
                for idx in 0..dims[0] {
                    matrix.dequantize_row(idx, &mut row);
                    sum += row.iter().sum::<f32>();
                    squares += row.iter().map(|value| value * value).sum::<f32>();
                }
                let count = (dims[0] * dims[1]) as f32;
                let std = (squares / count).sqrt();
                assert!((0.019..0.021).contains(&std), "{name}: deviation {std}");
                assert!((sum / count).abs() < 0.002, "{name}: mean {}", sum / count);
            }
            let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
            let template = ChatTemplate::from_tokenizer(&tokenizer).unwrap();
            let messages = serde_json::json!([{"role": "user", "content": "hello"}]);
            let chat = encode_chat(&tokenizer, &template, &TemplateInput::new(messages)).unwrap();
            assert_eq!(chat.text, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
        }
    }

    #[test]
    fn the_seed_decides() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, seed: u64| {
            let out = dir.path().join(name);
            synth_sizes(&tiny(), &options(out.clone(), SynthFormat::Q4_0, seed)).unwrap();
            std::fs::read(out).unwrap()
        };
        assert!(write("a", 1) == write("b", 1));
        assert!(write("c", 2) != write("a", 1));
    }

    #[test]
    fn files_are_not_overwritten_or_left_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("there.gguf");
        std::fs::write(&out, "mine").unwrap();
        let refused = synth(&options(out.clone(), SynthFormat::Q8_0, 1)).unwrap_err();
        assert!(refused.to_string().contains("--force"), "{refused}");
        assert_eq!(std::fs::read(&out).unwrap(), b"mine");
        let nowhere = dir.path().join("no/such/folder.gguf");
        let failed = synth_sizes(&tiny(), &options(nowhere, SynthFormat::Q8_0, 1)).unwrap_err();
        assert!(failed.to_string().contains("bytes are needed"), "{failed}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
