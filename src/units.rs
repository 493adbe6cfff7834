//! Quantities that people write: percent, bytes, durations.
//!
//! Each keeps the user's text (so that an apply changes nothing) and parses it on demand; the
//! schema's pattern admits nothing that does not parse.

use std::fmt;
use std::time::Duration as StdDuration;

use serde::{Deserialize, Serialize};

macro_rules! text_unit {
    ($(#[$doc:meta])* $name:ident, $pattern:literal, $max:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        #[cfg(feature = "crd")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": $pattern,
                    "maxLength": $max,
                })
            }
        }
    };
}

text_unit!(
    /// A share of one hundred, such as `1%` or `0.5%`.
    Percent, "^(100(\\.0+)?|[0-9]{1,2}(\\.[0-9]{1,6})?)%$", 12, "1%"
);
text_unit!(
    /// A number of bytes, such as `5Mi`, `2G` or `1048576`.
    ByteSize, "^[0-9]{1,15}(\\.[0-9]{1,6})?(k|M|G|T|Ki|Mi|Gi|Ti)?$", 24, "5Mi"
);
text_unit!(
    /// A length of time, such as `50ms`, `2s`, `1m30s` or `1h`.
    Duration, "^([0-9]{1,9}(\\.[0-9]{1,6})?(us|ms|s|m|h))+$", 40, "50ms"
);

/// A text that is not the quantity it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {want}")]
pub struct NotAQuantity {
    text: String,
    want: &'static str,
}

impl Percent {
    /// The share as a fraction: `1%` is 0.01.
    pub fn fraction(&self) -> Result<f64, NotAQuantity> {
        let number = self.0.strip_suffix('%').and_then(|n| n.parse::<f64>().ok());
        match number {
            Some(n) if (0.0..=100.0).contains(&n) => Ok(n / 100.0),
            _ => Err(NotAQuantity { text: self.0.clone(), want: "a percentage such as 1%" }),
        }
    }
}

impl ByteSize {
    /// The size in bytes, rounded down.
    pub fn bytes(&self) -> Result<u64, NotAQuantity> {
        let split = self.0.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(self.0.len());
        let (number, unit) = self.0.split_at(split);
        let factor: Option<u64> = match unit {
            "" => Some(1),
            "k" => Some(1_000),
            "M" => Some(1_000_000),
            "G" => Some(1_000_000_000),
            "T" => Some(1_000_000_000_000),
            "Ki" => Some(1 << 10),
            "Mi" => Some(1 << 20),
            "Gi" => Some(1 << 30),
            "Ti" => Some(1 << 40),
            _ => None,
        };
        match (number.parse::<f64>(), factor) {
            (Ok(n), Some(f)) if n >= 0.0 && n.is_finite() => Ok((n * f as f64) as u64),
            _ => Err(NotAQuantity { text: self.0.clone(), want: "a size such as 5Mi" }),
        }
    }
}

impl Duration {
    /// The length as a standard duration.
    pub fn parse(&self) -> Result<StdDuration, NotAQuantity> {
        let wrong =
            || NotAQuantity { text: self.0.clone(), want: "a duration such as 50ms or 1m30s" };
        let mut rest = self.0.as_str();
        let mut total = 0.0_f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let seconds = match unit {
                "us" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            total += number.parse::<f64>().map_err(|_| wrong())? * seconds;
            rest = tail;
        }
        if self.0.is_empty() {
            return Err(wrong());
        }
        StdDuration::try_from_secs_f64(total).map_err(|_| wrong())
    }
}

/// A byte count as people read it: `16.8 MB`.
pub fn human_bytes(bytes: u64) -> String {
    const STEPS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let value = bytes as f64;
    STEPS
        .iter()
        .find(|(_, size)| value >= *size)
        .map_or_else(|| format!("{bytes} B"), |(unit, size)| format!("{:.1} {unit}", value / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_parse_to_their_value() {
        assert_eq!(Percent::from("1%").fraction(), Ok(0.01));
        assert_eq!(ByteSize::from("5Mi").bytes(), Ok(5 << 20));
        assert_eq!(ByteSize::from("1.5k").bytes(), Ok(1500));
        assert_eq!(Duration::from("1m30s").parse(), Ok(StdDuration::from_secs(90)));
        assert_eq!(Duration::from("250us").parse(), Ok(StdDuration::from_micros(250)));
    }

    #[test]
    fn nonsense_names_itself_and_the_mend() {
        let error = Percent::from("101%").fraction().unwrap_err().to_string();
        assert_eq!(error, "\"101%\" is not a percentage such as 1%");
        assert!(ByteSize::from("5Xi").bytes().is_err());
        assert!(Duration::from("").parse().is_err());
        assert!(Duration::from("5").parse().is_err());
        assert!(Duration::from("5d").parse().is_err());
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(human_bytes(17_600_000), "17.6 MB");
        assert_eq!(human_bytes(900), "900 B");
    }
}
