//! Which kernel multiplies a layout on an instruction set: the one table of all variants.

use half::{bf16, f16};

use super::job::Kernel;
use super::scalar;
use super::units::{LANES, Q4Unit, Q8Unit};
use crate::isa::Isa;

pub(super) fn q8(_isa: Isa) -> Kernel<Q8Unit> {
    scalar::q8
}

pub(super) fn q4(_isa: Isa) -> Kernel<Q4Unit> {
    scalar::q4
}

pub(super) fn f32(_isa: Isa) -> Kernel<[f32; LANES]> {
    scalar::f32
}

pub(super) fn f16(_isa: Isa) -> Kernel<[f16; LANES]> {
    scalar::f16
}

pub(super) fn bf16(_isa: Isa) -> Kernel<[bf16; LANES]> {
    scalar::bf16
}
