//! Values with units, as settings and flags write them: `4GiB`, `30s`, `auto`.

use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A value, or `auto` for one that is found out at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto<T> {
    /// Found out at start.
    Auto,
    /// Set.
    Value(T),
}

impl<T: Clone> Auto<T> {
    /// The value, or what `find` finds.
    pub fn get_or(&self, find: impl FnOnce() -> T) -> T {
        match self {
            Self::Value(value) => value.clone(),
            Self::Auto => find(),
        }
    }

    /// The value if it is set.
    pub fn value(&self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value.clone()),
            Self::Auto => None,
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        if value == "auto" {
            return Ok(Self::Auto);
        }
        // The tree of settings is a JSON value, so an owned copy of the leaf deserializes without borrowing.
        let text = value.to_string();
        T::deserialize(value)
            .map(Self::Value)
            .map_err(|error| de::Error::custom(format!("{error}, or auto")))
            .map_err(|error: D::Error| de::Error::custom(format!("{error} (got {text})")))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// From bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(bad_size(text)),
        };
        let bytes = scale(number, factor).ok_or_else(|| bad_size(text))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30_u32), ("MiB", 20), ("KiB", 10)] {
            let whole = self.0 >> shift;
            if whole > 0 {
                let tenths = ((self.0 >> (shift - 10)) & 1023) * 10 / 1024;
                return if tenths == 0 { write!(f, "{whole} {unit}") } else { write!(f, "{whole}.{tenths} {unit}") };
            }
        }
        write!(f, "{} B", self.0)
    }
}

fn bad_size(text: &str) -> String {
    format!("'{text}' is not a size; write 512MiB, 4GiB, 1GB or a number of bytes")
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// From a duration.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// As a duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let factor_ms = match unit {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad_span(text)),
        };
        let millis = scale(number, factor_ms).ok_or_else(|| bad_span(text))?;
        // Beyond that, adding it to a clock could overflow.
        if millis > 365 * 86_400_000 {
            return Err(format!("'{text}' is more than a year"));
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

fn bad_span(text: &str) -> String {
    format!("'{text}' is not a time; write 500ms, 30s, 5m or a number of seconds")
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// `number * factor` for a decimal number with at most three digits after the point, exactly.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 3 {
        return None;
    }
    let thousandths = format!("{fraction:0<3}").parse::<u64>().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(thousandths.checked_mul(factor)? / 1000)
}

/// A number or a text, the two forms that a value with a unit has in YAML.
struct Written(String);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number with or without a unit")
            }

            fn visit_str<E>(self, text: &str) -> Result<Written, E> {
                Ok(Written(text.to_owned()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Written, E> {
                Ok(Written(number.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Written, E> {
                Ok(Written(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Written, E> {
                Ok(Written(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Written::deserialize(deserializer)?.0.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Written::deserialize(deserializer)?.0.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(text.parse::<ByteSize>().ok().map(ByteSize::get), bytes, "{text}");
        };
        check("4GiB", Some(4 << 30));
        check("4 gib", Some(4 << 30));
        check("1.5G", Some(3 << 29));
        check("512MB", Some(512_000_000));
        check("4096", Some(4096));
        for bad in ["", "GiB", "-1", "4 parsecs", "1.", ".5", "1.2.3", "99999999999999TiB"] {
            check(bad, None);
        }
        assert_eq!(ByteSize::new(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(ByteSize::new(512 << 20).to_string(), "512 MiB");
    }

    #[test]
    fn spans() {
        let check = |text: &str, millis: Option<u128>| {
            assert_eq!(text.parse::<Span>().ok().map(|span| span.get().as_millis()), millis, "{text}");
        };
        check("30s", Some(30_000));
        check("1.5", Some(1500));
        check("250ms", Some(250));
        check("5m", Some(300_000));
        check("2h", Some(7_200_000));
        for bad in ["", "s", "-3s", "3 days", "10000h", "99999999999999999999s"] {
            check(bad, None);
        }
    }

    #[test]
    fn auto_is_a_word_or_a_value() {
        let parse = |json: &str| serde_json::from_str::<Auto<u32>>(json);
        assert_eq!(parse("\"auto\"").unwrap(), Auto::Auto);
        assert_eq!(parse("7").unwrap(), Auto::Value(7));
        assert!(parse("\"many\"").unwrap_err().to_string().contains("auto"));
        assert!(parse("-1").is_err());
    }
}
