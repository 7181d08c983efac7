//! Durations gathered into percentiles and curves, in memory that does not grow with their number.
//!
//! Three digits are exact. Used by `load`, `lag` and `report`.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest duration told apart: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// Durations of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Durations(Histogram<u64>);

/// What is told of durations, in milliseconds. All 0 where there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Durations {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are valid"))
    }

    pub(crate) fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut all = Self::new();
        durations.into_iter().for_each(|duration| all.add(duration));
        all
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        self.add_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add_us(&mut self, us: u64) {
        self.0.saturating_record(us);
    }

    pub(crate) fn absorb(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    /// The least duration that `quantile` of all do not exceed.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { rounded(self.0.value_at_quantile(quantile) as f64 / 1000.0) }
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.0.len(),
            mean: rounded(self.0.mean() / 1000.0),
            p50: self.quantile_ms(0.5),
            p90: self.quantile_ms(0.9),
            p95: self.quantile_ms(0.95),
            p99: self.quantile_ms(0.99),
            max: rounded(self.max_ms()),
        }
    }

    /// The quantiles 0, 0.01, …, 1; empty where there are no durations.
    pub(crate) fn curve(&self) -> Vec<f64> {
        if self.0.is_empty() {
            return Vec::new();
        }
        (0..=100).map(|percent| self.quantile_ms(f64::from(percent) / 100.0)).collect()
    }
}

/// To a thousandth: no figure here is better than that.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_durations() {
        let mut durations = Durations::of((1..=50).map(Duration::from_millis));
        durations.absorb(&Durations::of((51..=100).map(Duration::from_millis)));
        let found = durations.percentiles();
        for (name, value, wanted) in [
            ("mean", found.mean, 50.5),
            ("p50", found.p50, 50.0),
            ("p90", found.p90, 90.0),
            ("p95", found.p95, 95.0),
            ("p99", found.p99, 99.0),
            ("max", found.max, 100.0),
        ] {
            assert!((value - wanted).abs() <= wanted * 0.001 + 0.001, "{name} is {value}, not {wanted}");
        }
        assert_eq!((found.count, durations.curve().len()), (100, 101));
        assert!((durations.curve()[25] - 25.0).abs() < 0.05);
    }

    #[test]
    fn no_durations_are_zeros() {
        assert_eq!(Durations::new().percentiles(), Percentiles::default());
        assert!(Durations::new().curve().is_empty());
    }
}
