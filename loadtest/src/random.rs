//! Random numbers that a seed fixes: words, lengths, arrival times.
//!
//! Equal seeds give equal numbers on every machine. Used by `lengths`, `workload` and `arrivals`.

/// `SplitMix64` (Steele et al. 2014): small, seedable, good enough for words and arrival times.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A stream of its own for each `(seed, part, idx)`.
    pub(crate) fn stream(seed: u64, part: u64, idx: u64) -> Self {
        let mut mixed = Self(seed);
        let mut mixed = Self(mixed.next_u64() ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(mixed.next_u64() ^ idx.wrapping_mul(0xa076_1d64_78bd_642f))
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Even over `0..bound`; the bias of a remainder does not matter at these bounds.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Even over (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Exponential with mean 1: the gap between arrivals of a Poisson process.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma with the given shape and mean 1 (Marsaglia and Tsang 2000).
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        // Below 1 the method draws at shape + 1 and scales down.
        let (d, boost) = if shape < 1.0 {
            (shape + 1.0 - 1.0 / 3.0, self.unit().powf(1.0 / shape))
        } else {
            (shape - 1.0 / 3.0, 1.0)
        };
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * boost / shape;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shape: &str, mut draw: impl FnMut(&mut Rng) -> f64, mean: f64, variance: f64) {
        let mut rng = Rng::stream(7, 0, 0);
        let drawn: Vec<f64> = (0..200_000).map(|_| draw(&mut rng)).collect();
        let found_mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        let found_variance = drawn.iter().map(|x| (x - found_mean).powi(2)).sum::<f64>() / drawn.len() as f64;
        assert!((found_mean - mean).abs() < 0.02, "{shape}: mean {found_mean}");
        assert!((found_variance - variance).abs() < 0.05 * variance, "{shape}: variance {found_variance}");
    }

    #[test]
    fn distributions_have_their_mean_and_variance() {
        check("exponential", Rng::exponential, 1.0, 1.0);
        check("normal", Rng::normal, 0.0, 1.0);
        for shape in [0.25, 0.5, 1.0, 4.0] {
            check("gamma", |rng| rng.gamma(shape), 1.0, 1.0 / shape);
        }
    }

    #[test]
    fn streams_differ_by_each_part() {
        let first = |seed, part, idx| Rng::stream(seed, part, idx).next_u64();
        let all = [first(1, 0, 0), first(2, 0, 0), first(1, 1, 0), first(1, 0, 1)];
        assert_eq!(first(1, 0, 0), all[0]);
        assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])));
    }
}
