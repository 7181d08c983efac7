//! Finding the highest rate that passes, in few probes: doubles until one fails, then halves the interval by its ratio.
//!
//! Between two probes `low` has passed and `high` has failed. Used by `campaign`.

/// Probes of one search, at most.
const MAX_PROBES: usize = 24;
/// How far below the first rate is looked, as a factor.
const MAX_DESCENT: f64 = 1024.0;

/// A search that goes on.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    first: f64,
    /// Highest rate probed.
    highest: f64,
    /// Ratio of failed and passed rate at which it ends, less 1.
    precision: f64,
    passed: Option<f64>,
    failed: Option<f64>,
    num_probes: usize,
}

impl Search {
    /// Begins at `first`, never goes above `highest`, ends when the answer is known to a share of `precision`.
    pub(crate) fn new(first: f64, highest: f64, precision: f64) -> Self {
        Self { first: first.min(highest), highest, precision, passed: None, failed: None, num_probes: 0 }
    }

    /// The rate to probe next; `None` at the end.
    pub(crate) fn next_rate(&self) -> Option<f64> {
        if self.num_probes >= MAX_PROBES {
            return None;
        }
        match (self.passed, self.failed) {
            (None, None) => Some(self.first),
            (Some(passed), None) => (passed < self.highest).then(|| (passed * 2.0).min(self.highest)),
            (None, Some(failed)) => (failed > self.first / MAX_DESCENT).then(|| failed / 2.0),
            (Some(passed), Some(failed)) => {
                (failed / passed > 1.0 + self.precision).then(|| round_down(passed, (passed * failed).sqrt()))
            }
        }
    }

    /// Says whether `rate` passed.
    pub(crate) fn tell(&mut self, rate: f64, has_passed: bool) {
        self.num_probes += 1;
        if has_passed {
            self.passed = Some(rate);
        } else {
            self.failed = Some(rate);
        }
    }

    /// The highest rate that passed.
    pub(crate) fn found(&self) -> Option<f64> {
        self.passed
    }

    /// Whether the answer may lie above what may be probed.
    pub(crate) fn is_bounded_by_highest(&self) -> bool {
        self.failed.is_none() && self.passed.is_some()
    }
}

/// Three digits, as long as that is still above `passed`.
fn round_down(passed: f64, rate: f64) -> f64 {
    let step = 10_f64.powf(rate.log10().floor() - 2.0);
    let rounded = (rate / step).floor() * step;
    if rounded > passed { rounded } else { rate }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(first: f64, highest: f64, knee: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(first, highest, 0.05);
        let mut probes = Vec::new();
        while let Some(rate) = search.next_rate() {
            assert!(rate <= highest && !probes.contains(&rate), "{rate} after {probes:?}");
            probes.push(rate);
            search.tell(rate, rate <= knee);
        }
        (search.found(), probes.len())
    }

    #[test]
    fn it_finds_the_knee_from_below_and_from_above() {
        for (first, knee) in [(1.0, 37.0), (1.0, 1.01), (100.0, 37.0), (100.0, 0.3), (7.0, 7.0), (0.01, 0.9)] {
            let (found, num_probes) = check(first, 1000.0, knee);
            let found = found.unwrap();
            assert!(found <= knee && found * 1.05 >= knee, "{found} for {knee} from {first}");
            assert!(num_probes <= 16, "{num_probes} probes for {knee} from {first}");
        }
    }

    #[test]
    fn it_ends_where_there_is_no_knee() {
        assert_eq!(check(1.0, 50.0, 1e9).0, Some(50.0));
        let (found, num_probes) = check(1.0, 50.0, 0.0);
        assert!(found.is_none() && num_probes <= 12, "{num_probes}");
    }
}
