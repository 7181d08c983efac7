//! Every format through the GGUF reader, against the reference's numbers, where the shared golden set lies beside the project.

use std::path::Path;

use tokenmill_kernels::quant::QuantMatrix;
use tokenmill_models::weights::Weights;

#[test]
fn tensors_of_a_file_mean_what_the_reference_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/quants");
    let file = dir.join("quants.gguf");
    if !file.exists() {
        #[expect(clippy::print_stderr, reason = "says why a test is skipped")]
        {
            eprintln!("skipped: {} is not there", file.display());
        }
        return;
    }
    let weights = Weights::open(&file).unwrap();
    let mut formats = Vec::new();
    for summary in weights.summaries() {
        if !summary.is_supported {
            let error = weights.tensor(summary.name).unwrap_err().to_string();
            assert!(error.contains(summary.name) && error.contains(summary.type_name), "{error}");
            continue;
        }
        let Ok(expected) = std::fs::read(dir.join(format!("{}.f32", summary.name))) else { continue };
        let expected: Vec<f32> = expected.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let tensor = weights.tensor(summary.name).unwrap();
        let cols = usize::try_from(tensor.shape.row_len()).unwrap();
        let matrix = QuantMatrix::new(tensor.format, expected.len() / cols, cols, tensor.bytes()).unwrap();
        let mut row = vec![0.0; cols];
        for (idx, expected) in expected.chunks(cols).enumerate() {
            matrix.dequantize_row(idx, &mut row);
            assert_eq!(row, expected, "{} row {idx}", summary.name);
        }
        formats.push(summary.type_name);
    }
    formats.sort_unstable();
    formats.dedup();
    assert!(formats.len() >= 15, "only {formats:?}");
}
