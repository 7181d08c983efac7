//! What this machine can do at most: the limits that kernels are measured against, in the same process and minute.
//!
//! Used by `tokenmill bench` and the criterion benches. Absolute speeds of a virtual machine change from minute to
//! minute; a share of these does not.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::aligned::AlignedVec;
use crate::isa::{Isa, Level};
use crate::pool::Pool;

/// How long a probe runs; its fastest sample counts. Long enough for the system to move a new thread to a core of its own.
const PROBE_TIME: Duration = Duration::from_millis(200);
const DOTS_PER_SAMPLE: u64 = 2_000_000;
/// Read by the bandwidth probe: more than the last-level cache of small machines.
const READ_BYTES: usize = 128 << 20;

/// The most 8-bit integer operations a second (a multiplication and an addition count as two), in units of 10⁹, with
/// all threads of the pool: what the integer kernels would reach if nothing but their dot products took time.
///
/// Takes 0.2 s.
#[must_use]
pub fn int8_gops(isa: Isa, pool: &Pool) -> f64 {
    let ops_per_dot = match isa.level() {
        Level::Scalar => 2,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => 2 * 32,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => 2 * 64,
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDot => 2 * 16,
        #[cfg(target_arch = "aarch64")]
        Level::NeonI8mm => 2 * 32,
    };
    let dots = |count| match isa.level() {
        Level::Scalar => scalar_dots(count),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only if the CPU has these features.
        Level::Avx2 => unsafe { x86::avx2_dots(count) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only if the CPU has these features.
        Level::Avx512Vnni => unsafe { x86::avx512_dots(count) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 CPU has NEON.
        Level::Neon => unsafe { aarch64::widening_dots(count) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: an `Isa` of this level exists only if the CPU has these features.
        Level::NeonDot => unsafe { aarch64::dots(count) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: an `Isa` of this level exists only if the CPU has these features.
        Level::NeonI8mm => unsafe { aarch64::squares(count) },
    };
    let best = fastest(|| {
        pool.run(|_| {
            black_box(dots(black_box(DOTS_PER_SAMPLE)));
        });
    });
    per_second(DOTS_PER_SAMPLE * ops_per_dot * pool.num_threads() as u64, best)
}

/// Bytes that all threads of the pool together read from memory in a second, in units of 10⁹.
///
/// Reads 128 MiB again and again for 0.2 s.
#[must_use]
pub fn read_bandwidth(pool: &Pool) -> f64 {
    const CHUNK: usize = 64 << 10;
    let mut data = AlignedVec::<u64>::zeroed(READ_BYTES / size_of::<u64>());
    // An untouched page is not memory yet.
    data.fill(1);
    let total = AtomicU64::new(0);
    let best = fastest(|| {
        pool.for_each(data.len() / CHUNK, 1, |chunks| {
            let sum = sum(&data[chunks.start * CHUNK..chunks.end * CHUNK]);
            total.fetch_add(sum, Ordering::Relaxed);
        });
    });
    black_box(total);
    per_second(READ_BYTES as u64, best)
}

/// Compiled to vector additions of several chains on any instruction set.
fn sum(values: &[u64]) -> u64 {
    const STEP: usize = 64;
    let mut sums = [0u64; STEP];
    for values in values.as_chunks::<STEP>().0 {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |sum, s| sum.wrapping_add(*s))
}

fn fastest(mut sample: impl FnMut()) -> Duration {
    let started = Instant::now();
    let mut best = Duration::MAX;
    while best == Duration::MAX || started.elapsed() < PROBE_TIME {
        let start = Instant::now();
        sample();
        best = best.min(start.elapsed());
    }
    best.max(Duration::from_nanos(1))
}

#[expect(clippy::cast_precision_loss, reason = "a rate to show")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64() / 1e9
}

fn scalar_dots(count: u64) -> i32 {
    let mut sum = 0i32;
    for i in 0..count {
        #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
        let value = black_box(i as i32);
        sum = sum.wrapping_add(value.wrapping_mul(3));
    }
    sum
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16,
        _mm256_setzero_si256, _mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
    };
    use std::hint::black_box;

    /// Chains under way, so that none waits for its own last result.
    const CHAINS: u64 = 16;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn avx512_dots(count: u64) -> i32 {
        let (a, b) = (_mm512_set1_epi32(black_box(0x0102_0304)), _mm512_set1_epi32(black_box(0x0403_0201)));
        let mut sums = [_mm512_setzero_si512(); CHAINS as usize];
        for _ in 0..count / CHAINS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        sums.into_iter().fold(0, |total, sum| total.wrapping_add(_mm512_reduce_add_epi32(sum)))
    }

    /// A dot without saturation takes three instructions.
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2_dots(count: u64) -> i32 {
        let (a, b, ones) =
            (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(5)), _mm256_set1_epi16(black_box(1)));
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..count / 8 {
            for sum in &mut sums {
                let pairs = _mm256_maddubs_epi16(black_box(a), b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
        0
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::{int8x16_t, int32x4_t, vaddvq_s32, vdupq_n_s8, vdupq_n_s32};
    use std::hint::black_box;

    use crate::matmul::neon::{dot, dot_2x2, dot_widening};

    /// Chains under way, so that none waits for its own last result.
    const CHAINS: u64 = 16;

    macro_rules! chains {
        ($name:ident, $features:literal, $dot:path) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(count: u64) -> i32 {
                let (a, b): (int8x16_t, int8x16_t) = (vdupq_n_s8(black_box(3)), vdupq_n_s8(black_box(5)));
                let mut sums: [int32x4_t; CHAINS as usize] = [vdupq_n_s32(0); CHAINS as usize];
                for _ in 0..count / CHAINS {
                    for sum in &mut sums {
                        *sum = $dot(*sum, a, b);
                    }
                }
                sums.into_iter().fold(0, |total, sum| total.wrapping_add(vaddvq_s32(sum)))
            }
        };
    }

    chains!(widening_dots, "neon", dot_widening);
    chains!(dots, "neon,dotprod", dot);
    chains!(squares, "neon,i8mm", dot_2x2);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_find_a_speed() {
        let pool = Pool::new(2);
        for isa in Isa::available() {
            let gops = int8_gops(isa, &pool);
            assert!(gops.is_finite() && gops > 0.01, "{isa}: {gops}");
        }
        let bandwidth = read_bandwidth(&pool);
        assert!(bandwidth.is_finite() && bandwidth > 0.01, "{bandwidth}");
    }
}
