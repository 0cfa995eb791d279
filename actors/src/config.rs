//! How configuration says what is wrong with it: everything at once, each with the path of its setting.

use std::fmt;
use std::ops::RangeInclusive;

/// One thing that is wrong with a configuration.
///
/// Every configuration has a `problems(&self, path, problems)` that appends all of them, so that a service is
/// corrected in one go and not one restart per mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Which setting, with dots: `backends.graph.breaker.failure_threshold`.
    pub path: String,
    /// What is wrong with it, and what it may be.
    pub problem: String,
}

impl ConfigProblem {
    /// A problem of one field of the configuration at this path. An empty path is the root.
    #[must_use]
    pub fn new(path: &str, field: &str, problem: impl Into<String>) -> Self {
        let path = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        Self { path, problem: problem.into() }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// Appends a problem of this field unless its value is within the range.
pub fn check_range<T: PartialOrd + fmt::Debug>(
    path: &str,
    field: &str,
    value: T,
    range: RangeInclusive<T>,
    problems: &mut Vec<ConfigProblem>,
) {
    if !range.contains(&value) {
        let problem = format!("{value:?} is out of range; it must be {:?} to {:?}", range.start(), range.end());
        problems.push(ConfigProblem::new(path, field, problem));
    }
}

/// Durations as `"60s"`, `"250ms"` or plain seconds, whole or not: `#[serde(with = "crate::config::seconds")]`.
pub mod seconds {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};

    /// Writes the text form, which is exact.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        humantime_serde::serialize(duration, serializer)
    }

    /// Reads either form.
    ///
    /// # Errors
    /// When it is neither, or a negative or infinite number of seconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(Seconds)
    }

    struct Seconds;

    impl Visitor<'_> for Seconds {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"60s\", or a number of seconds")
        }

        fn visit_u64<E: Error>(self, seconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_secs(seconds))
        }

        fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
            u64::try_from(seconds)
                .map(Duration::from_secs)
                .map_err(|_| E::invalid_value(Unexpected::Signed(seconds), &self))
        }

        fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
            Duration::try_from_secs_f64(seconds).map_err(|_| E::invalid_value(Unexpected::Float(seconds), &self))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            if let Ok(seconds) = text.trim().parse() {
                return self.visit_f64(seconds);
            }
            humantime_serde::deserialize(serde::de::value::StrDeserializer::<E>::new(text))
                .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}
