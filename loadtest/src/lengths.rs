//! How long prompts and answers are: distributions of token counts, written as people type them.
//!
//! Every drawn length is between 1 and [`MAX_TOKENS`]. Used by `workload`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::random::Rng;

/// Longest length in tokens; text of this length is still sent in one body.
pub(crate) const MAX_TOKENS: u64 = 1_000_000;
/// Most lengths taken from a file.
const MAX_FILE_LENGTHS: usize = 1_000_000;
/// What the syntax looks like, for messages.
const SYNTAX: &str =
    "expected 64, 32-512, normal:MEAN,SD, lognormal:MEAN,SD (both optionally with ,MIN-MAX), or file:PATH";

/// A distribution of token counts.
#[derive(Clone, Debug)]
pub(crate) struct Lengths {
    shape: Shape,
    min: u64,
    max: u64,
    /// As typed.
    text: String,
}

#[derive(Clone, Debug)]
enum Shape {
    /// Each of `min..=max` as likely.
    Uniform,
    /// Of the count itself.
    Normal { mean: f64, sd: f64 },
    /// Of the count's logarithm: many short, few long.
    LogNormal { mu: f64, sigma: f64 },
    /// One of these, each as likely.
    Listed(Arc<[u64]>),
}

impl Lengths {
    /// A token count.
    pub(crate) fn draw(&self, rng: &mut Rng) -> u64 {
        let value = match &self.shape {
            Shape::Uniform => return self.min + rng.below(self.max - self.min + 1),
            Shape::Listed(lengths) => return lengths[rng.below(lengths.len() as u64) as usize],
            Shape::Normal { mean, sd } => mean + sd * rng.normal(),
            Shape::LogNormal { mu, sigma } => (mu + sigma * rng.normal()).exp(),
        };
        (value.round().max(0.0) as u64).clamp(self.min, self.max)
    }

    /// A length that most draws do not exceed, for calibration.
    pub(crate) fn typical_max(&self) -> u64 {
        match &self.shape {
            Shape::Uniform => self.max,
            Shape::Listed(lengths) => lengths.iter().copied().max().unwrap_or(1),
            Shape::Normal { mean, sd } => ((mean + 2.0 * sd) as u64).clamp(self.min, self.max),
            Shape::LogNormal { mu, sigma } => ((mu + 2.0 * sigma).exp() as u64).clamp(self.min, self.max),
        }
    }

    /// Whether every draw is 1.
    pub(crate) fn is_one(&self) -> bool {
        self.typical_max() == 1
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (kind, rest) = text.split_once(':').unwrap_or(("uniform", text));
        let (shape, (min, max)) = match kind {
            "uniform" => (Shape::Uniform, range(rest)?),
            "normal" | "lognormal" => bell(kind, rest)?,
            "file" => (listed(Path::new(rest))?, (1, MAX_TOKENS)),
            _ => return Err(format!("{text} is no distribution: {SYNTAX}")),
        };
        Ok(Self { shape, min, max, text: text.to_owned() })
    }
}

/// `64` or `32-512`.
fn range(text: &str) -> Result<(u64, u64), String> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    let parse = |part: &str| part.trim().parse::<u64>().map_err(|_| format!("{text} is no length: {SYNTAX}"));
    let (min, max) = (parse(min)?, parse(max)?);
    if min == 0 || min > max || max > MAX_TOKENS {
        return Err(format!("{text} must be between 1 and {MAX_TOKENS}, and a range must rise"));
    }
    Ok((min, max))
}

/// `MEAN,SD` or `MEAN,SD,MIN-MAX`, in tokens for both.
fn bell(kind: &str, text: &str) -> Result<(Shape, (u64, u64)), String> {
    let parts: Vec<&str> = text.split(',').collect();
    let limits = match parts[..] {
        [_, _] => (1, MAX_TOKENS),
        [_, _, limits] => range(limits)?,
        _ => return Err(format!("{kind}:{text} needs a mean and a deviation: {SYNTAX}")),
    };
    let parse = |part: &str| part.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    let (Some(mean), Some(sd)) = (parse(parts[0]), parse(parts[1])) else {
        return Err(format!("{kind}:{text} has a mean or deviation that is no number from 0 up: {SYNTAX}"));
    };
    if kind == "normal" {
        return Ok((Shape::Normal { mean, sd }, limits));
    }
    if mean <= 0.0 {
        return Err(format!("lognormal:{text} needs a mean above 0"));
    }
    let sigma_squared = (1.0 + (sd / mean).powi(2)).ln();
    Ok((Shape::LogNormal { mu: mean.ln() - sigma_squared / 2.0, sigma: sigma_squared.sqrt() }, limits))
}

/// One length per line; blank lines and lines that start with `#` are skipped.
fn listed(path: &Path) -> Result<Shape, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let mut lengths = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let length = line.parse().ok().filter(|length| (1..=MAX_TOKENS).contains(length));
        lengths.push(length.ok_or_else(|| format!("{name} line {}: {line} is no length from 1 up", idx + 1))?);
        if lengths.len() > MAX_FILE_LENGTHS {
            return Err(format!("{name} has more than {MAX_FILE_LENGTHS} lengths"));
        }
    }
    if lengths.is_empty() {
        return Err(format!("{name} holds no length"));
    }
    Ok(Shape::Listed(lengths.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn draws(text: &str) -> Vec<u64> {
        let lengths: Lengths = text.parse().unwrap();
        assert_eq!(lengths.to_string(), text);
        let mut rng = Rng::stream(3, 0, 0);
        (0..20_000).map(|_| lengths.draw(&mut rng)).collect()
    }

    fn mean_and_deviation(draws: &[u64]) -> (f64, f64) {
        let mean = draws.iter().sum::<u64>() as f64 / draws.len() as f64;
        let variance = draws.iter().map(|x| (*x as f64 - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn each_distribution_has_its_mean_deviation_and_limits() {
        assert!(draws("64").iter().all(|length| *length == 64));
        let uniform = draws("uniform:10-19");
        assert!((10..=19).all(|length| uniform.contains(&length)));
        assert!(uniform.iter().all(|length| (10..=19).contains(length)));
        for text in ["normal:500,50", "lognormal:500,50"] {
            let (mean, deviation) = mean_and_deviation(&draws(text));
            assert!((mean - 500.0).abs() < 2.0 && (deviation - 50.0).abs() < 1.5, "{text}: {mean} ± {deviation}");
        }
        let mut sorted = draws("lognormal:100,200");
        sorted.sort_unstable();
        assert!((sorted[sorted.len() / 2] as f64) < 60.0, "the median lies far below the mean");
        assert!(draws("normal:100,100,50-150").iter().all(|length| (50..=150).contains(length)));
    }

    #[test]
    fn lengths_come_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# observed\n7\n\n900").unwrap();
        let drawn = draws(&format!("file:{}", file.path().display()));
        assert!(drawn.contains(&7) && drawn.contains(&900) && drawn.iter().all(|length| [7, 900].contains(length)));
        writeln!(file, "0").unwrap();
        let error = format!("file:{}", file.path().display()).parse::<Lengths>().unwrap_err();
        assert!(error.contains("line 5"), "{error}");
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for bad in [
            "",
            "0",
            "a",
            "9-3",
            "-4",
            "1-",
            "normal:5",
            "normal:a,1",
            "normal:5,-1",
            "lognormal:0,1",
            "zipf:3",
            "file:/no/such",
            "1-9999999",
            "normal:5,1,0-4",
            "normal:5,1,2-4,6",
        ] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad}");
        }
    }
}
