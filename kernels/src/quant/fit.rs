//! Searching for the scales of K formats: tries several and keeps what loses least.
//!
//! Rounding to a grid is not smooth in the grid's step, so for each candidate step the values are rounded and the best
//! scale for those integers follows by least squares. Large values weigh more: they move the outputs more.

use half::f16;

use super::super_block::{BLOCK_LEN, MinBlock, SIXTEENTH_LEN, SUPER_LEN, SignedBlock};

/// Values that are summed side by side, so that the compiler can use vectors.
const LANES: usize = 8;
/// Candidates for the step of a block of 32.
const NUM_STEPS: u8 = 20;
/// Candidates on each side for the step of a sixteenth.
const NUM_SIDE_STEPS: i8 = 9;
/// Largest scale of six bits.
const MAX_SIX_BITS: f32 = 63.0;

/// Rounds to the nearest integer, for magnitudes below 2^22.
fn round(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + ROUND) - ROUND
}

/// 1 / x, and 0 where that is no number.
fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Sums of a block for one candidate: w is the weight, q the integer, x the value.
#[derive(Clone, Copy, Default)]
struct Moments {
    w: f32,
    wx: f32,
    wq: f32,
    wqq: f32,
    wqx: f32,
}

fn moments(values: &[f32; BLOCK_LEN], weights: &[f32; BLOCK_LEN], quants: &[f32; BLOCK_LEN]) -> Moments {
    let mut sums = [[0.0; LANES]; 5];
    for i in (0..BLOCK_LEN).step_by(LANES) {
        for lane in 0..LANES {
            let (w, x, q) = (weights[i + lane], values[i + lane], quants[i + lane]);
            sums[0][lane] += w;
            sums[1][lane] += w * x;
            sums[2][lane] += w * q;
            sums[3][lane] += w * q * q;
            sums[4][lane] += w * q * x;
        }
    }
    let [w, wx, wq, wqq, wqx] = sums.map(|lanes| lanes.iter().sum());
    Moments { w, wx, wq, wqq, wqx }
}

fn weighted_error(values: &[f32; BLOCK_LEN], weights: &[f32; BLOCK_LEN], at: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for i in (0..BLOCK_LEN).step_by(LANES) {
        for lane in 0..LANES {
            let difference = at(i + lane) - values[i + lane];
            sums[lane] += weights[i + lane] * difference * difference;
        }
    }
    sums.iter().sum()
}

/// Scale and minimum, neither negative, so that `scale * q - min` with q in `0..=max_quant` comes close to the values.
fn fit_min(values: &[f32; BLOCK_LEN], max_quant: f32) -> (f32, f32) {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(f32::MIN, f32::max);
    let range = high - low;
    if range.is_nan() || range <= 0.0 {
        // All values are the same and not positive.
        return (0.0, -low);
    }
    let mean_square = values.iter().map(|x| x * x).sum::<f32>() / BLOCK_LEN as f32;
    let base = mean_square.sqrt();
    let weights = values.map(|x| base + x.abs());
    let mut best = (range / max_quant, -low);
    let mut least = f32::INFINITY;
    for step in 0..=NUM_STEPS {
        let inverse = (max_quant - 1.0 + 0.1 * f32::from(step)) / range;
        let quants = values.map(|x| round((x - low) * inverse).clamp(0.0, max_quant));
        let m = moments(values, &weights, &quants);
        let determinant = m.w * m.wqq - m.wq * m.wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (m.w * m.wqx - m.wx * m.wq) / determinant;
        let mut offset = (m.wqq * m.wx - m.wq * m.wqx) / determinant;
        if offset > 0.0 {
            offset = 0.0;
            scale = m.wqx / m.wqq;
        }
        let error = weighted_error(values, &weights, |i| scale * quants[i] + offset);
        if scale > 0.0 && error < least {
            least = error;
            best = (scale, -offset);
        }
    }
    best
}

/// Fits a super-block with minima; quants are in `0..=max_quant`.
pub(super) fn min_block(values: &[f32; SUPER_LEN], max_quant: u8) -> MinBlock {
    let max = f32::from(max_quant);
    let blocks = values.as_chunks::<BLOCK_LEN>().0;
    let mut fits = [(0.0, 0.0); 8];
    for (fit, values) in fits.iter_mut().zip(blocks) {
        *fit = fit_min(values, max);
    }
    let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let (scale, min) = (f16::from_f32(largest(|f| f.0) / MAX_SIX_BITS), f16::from_f32(largest(|f| f.1) / MAX_SIX_BITS));
    let (scale_inverse, min_inverse) = (inverse(scale.to_f32()), inverse(min.to_f32()));
    let mut out = MinBlock { scale, min, scales: [0; 8], mins: [0; 8], quants: [0; SUPER_LEN] };
    for (b, values) in blocks.iter().enumerate() {
        let six_bits = |x: f32| round(x).clamp(0.0, MAX_SIX_BITS);
        let (scales, mins) = (six_bits(fits[b].0 * scale_inverse), six_bits(fits[b].1 * min_inverse));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..=63")]
        let (as_scale, as_min) = (scales as u8, mins as u8);
        (out.scales[b], out.mins[b]) = (as_scale, as_min);
        let (inverse, min) = (inverse(scale.to_f32() * scales), min.to_f32() * mins);
        for (quant, x) in out.quants[b * BLOCK_LEN..][..BLOCK_LEN].iter_mut().zip(values) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..=31")]
            let rounded = round((x + min) * inverse).clamp(0.0, max) as u8;
            *quant = rounded;
        }
    }
    out
}

/// The scale, of either sign, so that `scale * q` with q in -32..=31 comes close to the values.
fn fit_signed(values: &[f32; SIXTEENTH_LEN]) -> f32 {
    let max = values.iter().fold(0.0f32, |max, x| if x.abs() > max.abs() { *x } else { max });
    let (mut best, mut most) = (0.0, 0.0);
    for step in -NUM_SIDE_STEPS..=NUM_SIDE_STEPS {
        let candidate = -(32.0 + 0.1 * f32::from(step)) * inverse(max);
        let mut sums = [[0.0; LANES]; 2];
        for i in (0..SIXTEENTH_LEN).step_by(LANES) {
            for lane in 0..LANES {
                let x = values[i + lane];
                let (w, q) = (x * x, round(x * candidate).clamp(-32.0, 31.0));
                sums[0][lane] += w * q * x;
                sums[1][lane] += w * q * q;
            }
        }
        let [wqx, wqq] = sums.map(|lanes| lanes.iter().sum::<f32>());
        // What remains of the error is the same for all candidates but for this term.
        if wqq > 0.0 && wqx * wqx > most * wqq {
            most = wqx * wqx / wqq;
            best = wqx / wqq;
        }
    }
    best
}

/// Fits a super-block of signed values.
pub(super) fn signed_block(values: &[f32; SUPER_LEN]) -> SignedBlock {
    let sixteenths = values.as_chunks::<SIXTEENTH_LEN>().0;
    let mut fits = [0.0; 16];
    for (fit, values) in fits.iter_mut().zip(sixteenths) {
        *fit = fit_signed(values);
    }
    let largest = fits.iter().fold(0.0f32, |max, x| if x.abs() > max.abs() { *x } else { max });
    // The largest becomes -128, the one number of eight bits whose opposite is none.
    let scale = f16::from_f32(largest / -128.0);
    let scale_inverse = inverse(scale.to_f32());
    let mut out = SignedBlock { scale, scales: [0; 16], quants: [0; SUPER_LEN] };
    for (s, values) in sixteenths.iter().enumerate() {
        let scales = round(fits[s] * scale_inverse).clamp(-128.0, 127.0);
        #[expect(clippy::cast_possible_truncation, reason = "in -128..=127")]
        let as_scale = scales as i8;
        out.scales[s] = as_scale;
        let inverse = inverse(scale.to_f32() * scales);
        for (quant, x) in out.quants[s * SIXTEENTH_LEN..][..SIXTEENTH_LEN].iter_mut().zip(values) {
            #[expect(clippy::cast_possible_truncation, reason = "in -32..=31")]
            let rounded = round(x * inverse).clamp(-32.0, 31.0) as i8;
            *quant = rounded;
        }
    }
    out
}
