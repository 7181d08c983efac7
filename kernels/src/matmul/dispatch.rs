//! Which kernel multiplies a layout on an instruction set: the one table of all variants.

use half::{bf16, f16};

use super::job::Kernel;
use super::scalar;
use super::super_units::{Q4KUnit, Q5KUnit, Q6KUnit};
use super::units::{Iq4Unit, LANES, Q4Unit, Q5Unit, Q8Unit};
#[cfg(target_arch = "x86_64")]
use super::{avx2_float, avx2_int8, avx2_super, avx512_float, avx512_int8};
#[cfg(target_arch = "aarch64")]
use super::{neon_float, neon_int8};
use crate::isa::{Isa, Level};

macro_rules! kernels {
    // The integer layouts of aarch64 have one kernel for all units.
    ($($layout:ident: $unit:ty, $avx2:path, $avx512:path;)+) => {
        kernels! { $(
            $layout: $unit, $avx2, $avx512,
            neon_int8::widening::int8, neon_int8::dotprod::int8, neon_int8::i8mm::int8;
        )+ }
    };
    ($($layout:ident: $unit:ty, $avx2:path, $avx512:path, $neon:path, $dot:path, $i8mm:path;)+) => { $(
        pub(super) fn $layout(isa: Isa) -> Kernel<$unit> {
            match isa.level() {
                Level::Scalar => scalar::$layout,
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only if the CPU has these features.
                Level::Avx2 => |job, blocks| unsafe { $avx2(job, blocks) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only if the CPU has these features.
                Level::Avx512Vnni => |job, blocks| unsafe { $avx512(job, blocks) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: an `Isa` of this level exists only if the CPU has these features.
                Level::Neon => |job, blocks| unsafe { $neon(job, blocks) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: an `Isa` of this level exists only if the CPU has these features.
                Level::NeonDot => |job, blocks| unsafe { $dot(job, blocks) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: an `Isa` of this level exists only if the CPU has these features.
                Level::NeonI8mm => |job, blocks| unsafe { $i8mm(job, blocks) },
            }
        }
    )+ };
}

kernels! {
    q8: Q8Unit, avx2_int8::q8, avx512_int8::q8;
    q4: Q4Unit, avx2_int8::q4, avx512_int8::q4;
    q5: Q5Unit, avx2_int8::q5, avx512_int8::q5;
    iq4: Iq4Unit, avx2_int8::iq4, avx512_int8::iq4;
    q4_k: Q4KUnit, avx2_super::q4_k, avx512_int8::q4_k;
    q5_k: Q5KUnit, avx2_super::q5_k, avx512_int8::q5_k;
    q6_k: Q6KUnit, avx2_super::q6_k, avx512_int8::q6_k;
}

kernels! {
    f32: [f32; LANES], avx2_float::f32, avx512_float::f32, neon_float::f32, neon_float::f32, neon_float::f32;
    f16: [f16; LANES], avx2_float::f16, avx512_float::f16, neon_float::f16, neon_float::f16, neon_float::f16;
    bf16: [bf16; LANES], avx2_float::bf16, avx512_float::bf16, neon_float::bf16, neon_float::bf16, neon_float::bf16;
}
