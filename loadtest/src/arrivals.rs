//! When requests arrive: a closed loop's number of clients, or an open loop's times.
//!
//! Times of an open loop depend on seed and rate alone, never on the server. Used by `load` and `campaign`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::random::Rng;

/// Requests in flight, at most: past this the server has long since lost.
pub(crate) const MAX_IN_FLIGHT: usize = 10_000;
/// Arrivals of one run, at most.
const MAX_ARRIVALS: usize = 10_000_000;

/// How an open loop's gaps spread around their mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Spread {
    /// Independent arrivals: exponential gaps.
    Poisson,
    /// Equal gaps.
    Even,
    /// Gamma gaps; a shape below 1 gives bursts, 1 is Poisson, above 1 is more even.
    Gamma(f64),
}

impl Spread {
    fn gap(self, rng: &mut Rng) -> f64 {
        match self {
            Self::Poisson => rng.exponential(),
            Self::Even => 1.0,
            Self::Gamma(shape) => rng.gamma(shape),
        }
    }
}

impl FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "poisson" => Ok(Self::Poisson),
            None if text == "even" => Ok(Self::Even),
            Some(("gamma", shape)) => match shape.parse::<f64>() {
                Ok(shape) if (0.01..=1000.0).contains(&shape) => Ok(Self::Gamma(shape)),
                _ => Err(format!("{shape} is no shape between 0.01 and 1000")),
            },
            _ => Err(format!("{text} is no spread: expected poisson, even or gamma:SHAPE")),
        }
    }
}

impl TryFrom<String> for Spread {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Spread> for String {
    fn from(spread: Spread) -> Self {
        spread.to_string()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisson => f.write_str("poisson"),
            Self::Even => f.write_str("even"),
            Self::Gamma(shape) => write!(f, "gamma:{shape}"),
        }
    }
}

/// The load of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Arrivals {
    /// Each client begins its next session when the last has ended.
    Closed {
        /// Clients at once.
        clients: usize,
    },
    /// Sessions begin at times of their own.
    Open {
        /// Mean rate.
        per_second: f64,
        /// How the gaps spread.
        spread: Spread,
    },
    /// Sessions begin when the trace says.
    Trace {
        /// How much faster than recorded.
        speed: f64,
    },
}

impl Arrivals {
    /// # Errors
    /// When the number makes no sense.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Closed { clients } => {
                ensure!((1..=MAX_IN_FLIGHT).contains(&clients), "{clients} clients: 1 to {MAX_IN_FLIGHT} can be run");
            }
            Self::Open { per_second: x, .. } | Self::Trace { speed: x } => {
                ensure!((1e-6..=1e6).contains(&x), "a rate or speed of {x} is not between 0.000001 and 1000000");
            }
        }
        Ok(())
    }

    /// The load as a number on an axis.
    pub(crate) fn amount(self) -> f64 {
        match self {
            Self::Closed { clients } => clients as f64,
            Self::Open { per_second, .. } => per_second,
            Self::Trace { speed } => speed,
        }
    }

    /// What the number counts.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Closed { .. } => "clients",
            Self::Open { .. } => "requests/s",
            Self::Trace { .. } => "trace speed",
        }
    }

    /// Whether latency counts from the moment a request was due.
    pub(crate) fn is_open(self) -> bool {
        !matches!(self, Self::Closed { .. })
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { clients: 1 } => f.write_str("1 client"),
            Self::Closed { clients } => write!(f, "{clients} clients"),
            Self::Open { per_second, .. } => write!(f, "{} req/s", (per_second * 1000.0).round() / 1000.0),
            Self::Trace { speed } => write!(f, "trace × {speed}"),
        }
    }
}

/// Times from the start at which sessions are due, rising, all before `until`.
pub(crate) fn schedule(per_second: f64, spread: Spread, until: Duration, seed: u64) -> Vec<Duration> {
    let mut rng = Rng::stream(seed, 0xa771, 0);
    let mut due = 0.0;
    let mut times = Vec::new();
    while times.len() < MAX_ARRIVALS {
        due += spread.gap(&mut rng) / per_second;
        if due >= until.as_secs_f64() {
            break;
        }
        times.push(Duration::from_secs_f64(due));
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_have_the_rate_and_the_spread() {
        let until = Duration::from_secs(2000);
        for (text, variance) in [("poisson", 1.0), ("even", 0.0), ("gamma:0.25", 4.0), ("gamma:4", 0.25)] {
            let spread: Spread = text.parse().unwrap();
            assert_eq!(spread.to_string(), text);
            let times = schedule(10.0, spread, until, 5);
            assert!((times.len() as f64 / 20_000.0 - 1.0).abs() < 0.04, "{text}: {} arrivals", times.len());
            assert!(times.is_sorted() && times.last().unwrap() < &until);
            let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 10.0).collect();
            let found = gaps.iter().map(|gap| (gap - 1.0).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((found - variance).abs() < 0.15 * variance + 1e-3, "{text}: variance {found}");
        }
    }

    #[test]
    fn what_is_no_load_is_refused() {
        for bad in ["", "uniform", "gamma", "gamma:0", "gamma:x"] {
            assert!(bad.parse::<Spread>().is_err(), "{bad}");
        }
        assert!(Arrivals::Closed { clients: 0 }.check().is_err());
        assert!(Arrivals::Open { per_second: f64::NAN, spread: Spread::Even }.check().is_err());
        assert!(Arrivals::Trace { speed: 0.0 }.check().is_err());
    }
}
