//! Super-blocks of 256 values as the K formats store them, with their bit fields taken apart.
//!
//! [`MinBlock`] is what `Q4_K` and `Q5_K` hold, [`SignedBlock`] what `Q3_K` and `Q6_K` hold. The formats read and write them,
//! [`crate::matmul`] packs them.

use half::f16;

/// Values in a super-block.
pub(crate) const SUPER_LEN: usize = 256;
/// Values that share a scale and a minimum in a [`MinBlock`].
pub(crate) const BLOCK_LEN: usize = 32;
/// Values that share a scale in a [`SignedBlock`].
pub(crate) const SIXTEENTH_LEN: usize = 16;
/// Bytes of eight scales and eight minima of six bits.
pub(super) const SCALES_BYTES: usize = 12;

/// value = scale * scales\[b\] * quant - min * mins\[b\], where b is the value's block of 32.
pub(crate) struct MinBlock {
    pub(crate) scale: f16,
    pub(crate) min: f16,
    /// Six bits each.
    pub(crate) scales: [u8; 8],
    /// Six bits each.
    pub(crate) mins: [u8; 8],
    /// Four or five bits each.
    pub(crate) quants: [u8; SUPER_LEN],
}

/// value = scale * scales\[s\] * quant, where s is the value's sixteenth.
pub(crate) struct SignedBlock {
    pub(crate) scale: f16,
    pub(crate) scales: [i8; 16],
    /// -32..=31.
    pub(crate) quants: [i8; SUPER_LEN],
}

impl MinBlock {
    pub(super) fn dequantize(&self, out: &mut [f32; SUPER_LEN]) {
        let (scale, min) = (self.scale.to_f32(), self.min.to_f32());
        for (b, (out, quants)) in out.chunks_mut(BLOCK_LEN).zip(self.quants.chunks(BLOCK_LEN)).enumerate() {
            let (scale, min) = (scale * f32::from(self.scales[b]), min * f32::from(self.mins[b]));
            for (value, quant) in out.iter_mut().zip(quants) {
                *value = scale * f32::from(*quant) - min;
            }
        }
    }
}

impl SignedBlock {
    pub(super) fn dequantize(&self, out: &mut [f32; SUPER_LEN]) {
        let scale = self.scale.to_f32();
        for (s, (out, quants)) in out.chunks_mut(SIXTEENTH_LEN).zip(self.quants.chunks(SIXTEENTH_LEN)).enumerate() {
            let scale = scale * f32::from(self.scales[s]);
            for (value, quant) in out.iter_mut().zip(quants) {
                *value = scale * f32::from(*quant);
            }
        }
    }
}

/// Takes eight scales and eight minima of six bits apart.
///
/// The first four of each lie in the low six bits of bytes 0..4 and 4..8; of the others, the low four bits lie in bytes
/// 8..12 (scales in the low halves, minima in the high ones) and the high two bits at the top of bytes 0..8.
pub(super) fn unpack_scales(packed: &[u8; SCALES_BYTES]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for b in 0..4 {
        scales[b] = packed[b] & 63;
        mins[b] = packed[b + 4] & 63;
        scales[b + 4] = packed[b + 8] & 15 | packed[b] >> 6 << 4;
        mins[b + 4] = packed[b + 8] >> 4 | packed[b + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// The reverse of [`unpack_scales`].
pub(super) fn pack_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; SCALES_BYTES] {
    let mut packed = [0; SCALES_BYTES];
    for b in 0..4 {
        packed[b] = scales[b] | scales[b + 4] >> 4 << 6;
        packed[b + 4] = mins[b] | mins[b + 4] >> 4 << 6;
        packed[b + 8] = scales[b + 4] & 15 | mins[b + 4] << 4;
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bits_survive_packing() {
        let scales = [0, 1, 15, 16, 31, 32, 47, 63];
        let mins = [63, 62, 48, 33, 16, 15, 1, 0];
        assert_eq!(unpack_scales(&pack_scales(&scales, &mins)), (scales, mins));
        let packed: [u8; SCALES_BYTES] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let (scales, mins) = unpack_scales(&packed);
        assert_eq!(pack_scales(&scales, &mins), packed);
    }
}
