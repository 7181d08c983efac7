//! `tokenmill quantize`: a model as a GGUF file in fewer bits, from a GGUF file or a Hugging Face folder.
//!
//! Tensors are streamed a few rows at a time, so that memory does not grow with the model; the file grows under another
//! name and gets its own when it is whole. A GGUF file may be of any architecture: only its tensors change. A folder is
//! translated ([`folder`]), its tokenizer too ([`tokenizer`]). Which tensor gets which format is decided in [`mix`].

mod folder;
mod mix;
mod rows;
mod tokenizer;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use tokenmill_kernels::quant::Format;
use tokenmill_models::LoadError;
use tokenmill_models::weights::Weights;
use tokenmill_models::weights::gguf_writer::{GgufHeader, GgufWriteError, GgufWriter};

use self::mix::Mix;
use crate::prompt::TokenizerError;

/// What a model is quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// 8 bits a weight
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits a weight in blocks of 32; the output projection in 6 or 8
    #[value(name = "q4_0")]
    Q4_0,
    /// 4 bits a weight in super-blocks of 256, what matters most in 6; the best of four bits
    #[value(name = "q4_k_m")]
    Q4KM,
}

/// What [`quantize`] is asked for.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// The model: a GGUF file or a Hugging Face folder.
    pub source: PathBuf,
    /// The file to write.
    pub out: PathBuf,
    /// What to store it as.
    pub target: Target,
    /// Whether a file that is there may be replaced.
    pub force: bool,
    /// Threads that quantize.
    pub num_threads: usize,
}

/// How far it is, told before each tensor.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Tensors written.
    pub tensor_idx: usize,
    /// Tensors in all.
    pub num_tensors: usize,
    /// The next tensor.
    pub name: &'a str,
    /// What it becomes.
    pub format: Format,
    /// Bytes written of the tensors, and of all.
    pub num_bytes: (u64, u64),
}

/// What [`quantize`] has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizeReport {
    /// Tensors in the file.
    pub num_tensors: usize,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Matrices whose rows do not fit the target's blocks and got a format that they do fit.
    pub num_fallbacks: usize,
}

/// Why no file was written.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// There is a file already.
    #[error("{} exists; pass --force to replace it", .0.display())]
    Exists(PathBuf),
    /// The source cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The folder's tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The folder cannot be translated.
    #[error("{}: {reason}", path.display())]
    Translate {
        /// The folder or file.
        path: PathBuf,
        /// What stands in the way, and what to do.
        reason: String,
    },
    /// A tensor's numbers are damaged.
    #[error("tensor '{name}' holds {value} in row {row}; the file is damaged")]
    NotFinite {
        /// The tensor.
        name: String,
        /// A NaN or an infinity.
        value: f32,
        /// Which row.
        row: usize,
    },
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

/// A tensor of the new file.
struct Planned {
    /// Its name in the new file.
    name: String,
    /// Its name in the source.
    source: String,
    /// Outermost first.
    shape: Vec<usize>,
    format: Format,
    /// Heads of a matrix whose rows are to lie in pairs.
    paired_heads: Option<usize>,
    /// Values that the source has under another form: the rotary divisors.
    values: Option<Vec<f32>>,
}

/// Writes the model of `options`; `progress` hears of every tensor.
///
/// # Errors
/// [`QuantizeError`]; no half-written file stays at `options.out`.
pub fn quantize(
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<QuantizeReport, QuantizeError> {
    if options.out.exists() && !options.force {
        return Err(QuantizeError::Exists(options.out.clone()));
    }
    let weights = Weights::open(&options.source)?;
    let mut header = GgufHeader::new();
    let mut plan = match &weights {
        Weights::Gguf(gguf) => {
            for (key, value_type, bytes) in gguf.metadata().raw_entries().filter(|(key, ..)| is_kept(key)) {
                header.put_raw(key, value_type, bytes);
            }
            let each = gguf.tensors().map(|(name, tensor)| Planned::new(name, name, tensor.shape.dims()));
            each.collect::<Result<Vec<_>, _>>()?
        }
        Weights::Folder(_) => folder::translate(&options.source, &weights, &mut header)?,
    };
    header.put_u32("general.file_type", mix::file_type(options.target));
    header.put_u32("general.quantization_version", 2);
    let num_fallbacks = choose_formats(&mut plan, &weights, options.target)?;
    for tensor in &plan {
        header.declare(&tensor.name, &tensor.shape, tensor.format).map_err(|error| translate(options, &error))?;
    }
    let report = QuantizeReport {
        num_tensors: plan.len(),
        source_bytes: weights.summaries().iter().map(|tensor| tensor.size_bytes).sum(),
        file_bytes: header.file_bytes(),
        num_fallbacks,
    };
    let partial = partial_path(&options.out);
    let written = Writing { options, weights: &weights, file_bytes: report.file_bytes }
        .write(&partial, header, &plan, progress)
        .and_then(|()| {
            let renamed = std::fs::rename(&partial, &options.out);
            renamed.map_err(|source| io_error(&options.out, report.file_bytes, source))
        });
    if let Err(error) = written {
        // Best effort: the error that matters is the first.
        drop(std::fs::remove_file(&partial));
        return Err(error);
    }
    Ok(report)
}

impl Planned {
    fn new(name: &str, source: &str, dims: &[u64]) -> Result<Self, QuantizeError> {
        let size = |dim: &u64| usize::try_from(*dim).map_err(|_| too_large(source));
        let shape = dims.iter().map(size).collect::<Result<_, _>>()?;
        let (name, source) = (name.to_owned(), source.to_owned());
        Ok(Self { name, source, shape, format: Format::F32, paired_heads: None, values: None })
    }

    /// Values in a row, and rows.
    fn rows(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        (cols, self.shape.iter().product::<usize>() / cols.max(1))
    }
}

fn too_large(name: &str) -> QuantizeError {
    LoadError::Unsupported(format!("tensor '{name}', which is larger than this machine can address")).into()
}

/// What is true of the old file only is left out.
fn is_kept(key: &str) -> bool {
    let replaced = ["general.file_type", "general.quantization_version", "general.alignment"];
    !replaced.contains(&key) && !key.starts_with("split.")
}

/// Decides every tensor's format; returns how many did not get the one that the target wants.
fn choose_formats(plan: &mut [Planned], weights: &Weights, target: Target) -> Result<usize, QuantizeError> {
    let names: Vec<String> = plan.iter().map(|tensor| tensor.name.clone()).collect();
    let mix = Mix::new(target, names.iter().map(String::as_str));
    let mut num_fallbacks = 0;
    for tensor in plan.iter_mut().filter(|tensor| tensor.values.is_none()) {
        let stored = weights.tensor(&tensor.source)?.format;
        let (cols, _) = tensor.rows();
        let chosen = mix.choose(&tensor.name, tensor.shape.len(), cols, stored);
        tensor.format = chosen.format;
        num_fallbacks += usize::from(chosen.is_fallback);
    }
    Ok(num_fallbacks)
}

fn translate(options: &QuantizeOptions, error: &GgufWriteError) -> QuantizeError {
    QuantizeError::Translate { path: options.source.clone(), reason: error.to_string() }
}

fn io_error(path: &Path, file_bytes: u64, source: io::Error) -> QuantizeError {
    QuantizeError::Io { path: path.to_owned(), file_bytes, source }
}

/// Where the file grows before it gets its name.
fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

struct Writing<'a> {
    options: &'a QuantizeOptions,
    weights: &'a Weights,
    file_bytes: u64,
}

impl Writing<'_> {
    fn write(
        &self,
        path: &Path,
        header: GgufHeader,
        plan: &[Planned],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), QuantizeError> {
        let io = |source| io_error(&self.options.out, self.file_bytes, source);
        let out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
        let mut writer = header.start(out).map_err(|error| self.write_error(error))?;
        let bytes_of = |tensor: &Planned| {
            let (cols, rows) = tensor.rows();
            (tensor.format.row_bytes(cols).expect("declared above") * rows) as u64
        };
        let all_bytes = plan.iter().map(bytes_of).sum();
        let mut num_written = 0;
        for (tensor_idx, tensor) in plan.iter().enumerate() {
            progress(Progress {
                tensor_idx,
                num_tensors: plan.len(),
                name: &tensor.name,
                format: tensor.format,
                num_bytes: (num_written, all_bytes),
            });
            self.write_tensor(&mut writer, tensor)?;
            num_written += bytes_of(tensor);
        }
        let out = writer.finish().map_err(|error| self.write_error(error))?;
        out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()).map_err(io)
    }

    fn write_tensor<W: Write>(&self, writer: &mut GgufWriter<W>, tensor: &Planned) -> Result<(), QuantizeError> {
        if let Some(values) = &tensor.values {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            return writer.write(&bytes).map_err(|error| self.write_error(error));
        }
        let source = self.weights.tensor(&tensor.source)?;
        rows::convert(&source, tensor, self.options.num_threads, &mut |bytes| {
            writer.write(bytes).map_err(|error| self.write_error(error))
        })?;
        source.release();
        Ok(())
    }

    fn write_error(&self, error: GgufWriteError) -> QuantizeError {
        match error {
            GgufWriteError::Io(error) => io_error(&self.options.out, self.file_bytes, error),
            other @ GgufWriteError::Shape { .. } => translate(self.options, &other),
        }
    }
}

#[cfg(test)]
mod tests;
