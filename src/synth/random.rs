//! Random weights in the blocks of a format, faster than a disk takes them.

use tokenmill_kernels::quant::{Format, quantize_row};

/// Standard deviation of the weights, as published models are initialized with.
const WEIGHT_STD: f32 = 0.02;

/// A stream of random weights: splitmix64, made straight into blocks, some gigabytes a second.
pub(super) struct Random {
    state: u64,
}

impl Random {
    /// A stream that the seed determines.
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Fills a row with evenly distributed weights of deviation [`WEIGHT_STD`] and mean 0.
    pub(super) fn fill_row(&mut self, format: Format, row: &mut [u8]) {
        match format {
            Format::Q8_0 => {
                // 255 even levels have a deviation of 73.6 steps.
                let scale = half_bytes(WEIGHT_STD / 73.6);
                for block in row.chunks_exact_mut(34) {
                    block[..2].copy_from_slice(&scale);
                    for eight in block[2..].chunks_exact_mut(8) {
                        eight.copy_from_slice(&self.next().to_le_bytes());
                        // No quantizer writes -128.
                        eight.iter_mut().for_each(|byte| *byte = if *byte == 0x80 { 0x81 } else { *byte });
                    }
                }
            }
            Format::Q4_0 => {
                // 16 even levels have a deviation of 4.61 steps; their mean is not 0, so scales come with both signs.
                let scales = [half_bytes(WEIGHT_STD / 4.61), half_bytes(-WEIGHT_STD / 4.61)];
                for block in row.chunks_exact_mut(18) {
                    let words = [self.next(), self.next()];
                    block[..2].copy_from_slice(&scales[usize::from(self.next() & 1 == 1)]);
                    block[2..10].copy_from_slice(&words[0].to_le_bytes());
                    block[10..].copy_from_slice(&words[1].to_le_bytes());
                }
            }
            _ => {
                let block_len = format.info().block_len.max(4);
                let mut values = vec![0.0_f32; block_len];
                for block in row.chunks_exact_mut(format.row_bytes(block_len).expect("one block")) {
                    for four in values.chunks_mut(4) {
                        let bytes = self.next().to_le_bytes();
                        for (value, pair) in four.iter_mut().zip(bytes.chunks_exact(2)) {
                            let level = f32::from(i16::from_le_bytes([pair[0], pair[1]]));
                            *value = level * (WEIGHT_STD * 3.0_f32.sqrt() / 32_768.0);
                        }
                    }
                    quantize_row(format, &values, block);
                }
            }
        }
    }
}

/// `value` as IEEE half precision.
fn half_bytes(value: f32) -> [u8; 2] {
    let mut bytes = [0; 2];
    quantize_row(Format::F16, &[value], &mut bytes);
    bytes
}
