//! Instruction sets as values that cannot be forged: holding an [`Isa`] proves that this CPU has it.

use std::fmt;

/// Proof that this CPU supports an instruction set.
///
/// Made only by [`Isa::best`], [`Isa::available`], [`Isa::from_name`] and [`Isa::SCALAR`], so a kernel that takes one
/// need not ask the CPU again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// The instruction sets that kernels are written for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Plain Rust, the reference.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// What every aarch64 CPU has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// NEON with dot products and products of matrices of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
}

impl Isa {
    /// Plain Rust, available everywhere.
    pub const SCALAR: Isa = Isa(Level::Scalar);

    /// Every instruction set of this CPU, best first, [`Isa::SCALAR`] last.
    pub fn available() -> impl Iterator<Item = Isa> {
        detected().iter().copied().chain([Isa::SCALAR])
    }

    /// The fastest instruction set of this CPU.
    #[must_use]
    pub fn best() -> Isa {
        detected().first().copied().unwrap_or(Isa::SCALAR)
    }

    /// The instruction set called `name` (`scalar`, `avx2`, `avx512vnni`, `neon`, `neon-dotprod`, `neon-i8mm`), if this CPU has it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::available().find(|isa| isa.name() == name)
    }

    /// The name used in settings, logs and benches.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Level::NeonI8mm => "neon-i8mm",
        }
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn detected() -> &'static [Isa] {
    use std::arch::is_x86_feature_detected as has;
    use std::sync::OnceLock;
    static FOUND: OnceLock<Vec<Isa>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut found = Vec::new();
        let avx2 = has!("avx2") && has!("fma") && has!("f16c");
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        if avx2 && avx512 && has!("avx512vnni") {
            found.push(Isa(Level::Avx512Vnni));
        }
        if avx2 {
            found.push(Isa(Level::Avx2));
        }
        found
    })
}

#[cfg(target_arch = "aarch64")]
fn detected() -> &'static [Isa] {
    use std::arch::is_aarch64_feature_detected as has;
    use std::sync::OnceLock;
    static FOUND: OnceLock<Vec<Isa>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut found = Vec::new();
        if has!("dotprod") && has!("i8mm") {
            found.push(Isa(Level::NeonI8mm));
        }
        if has!("dotprod") {
            found.push(Isa(Level::NeonDot));
        }
        found.push(Isa(Level::Neon));
        found
    })
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> &'static [Isa] {
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_always_last_and_names_round_trip() {
        let all: Vec<Isa> = Isa::available().collect();
        assert_eq!(all.last(), Some(&Isa::SCALAR));
        assert_eq!(all.first(), Some(&Isa::best()));
        for isa in all {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::from_name("avx1024"), None);
    }
}
