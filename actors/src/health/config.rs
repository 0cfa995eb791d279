//! When a backend is probed, and what is worth an alert.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::config::ConfigProblem;

/// How backends are probed. Times are text (`"30s"`) or a number of seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthConfig {
    /// The time between the end of a probe and the next one. Also known as `check_interval_seconds`. Default 30 s
    /// (documents 000 and 001), range 10 ms to 1 day.
    #[serde(
        alias = "check_interval_seconds",
        deserialize_with = "time",
        serialize_with = "humantime_serde::serialize"
    )]
    pub interval: Duration,
    /// How long a probe may take; one that takes longer has failed. Also known as `timeout_seconds`. Default 5 s
    /// (documents 000 and 001), more than 0 and at most [`interval`](Self::interval).
    #[serde(alias = "timeout_seconds", deserialize_with = "time", serialize_with = "humantime_serde::serialize")]
    pub timeout: Duration,
    /// How many probes in a row have to fail before it is an alert. Default 3 (documents 000 and 001), at least 1.
    pub alert_threshold: u32,
    /// How many probes in a row have to be well before an alert is cleared, so that a backend which comes and goes
    /// gives one alert and not many. Default 3, at least 1.
    pub clear_threshold: u32,
    /// How many times slower than its baseline a backend has to be before that is an alert; it clears at half of
    /// the excess (2, for 3). The baseline is the mean over about 100 probes, 50 minutes by default, so what creeps
    /// up by 2 % and more with every probe is noticed. Default 3, more than 1.
    pub slow_factor: f64,
    /// How many probes in a row have to find it so slow. Default 3, at least 1.
    pub slow_threshold: u32,
    /// A backend that answers faster than this is never called slow, whatever its baseline: below, it is noise.
    /// Default 10 ms.
    #[serde(deserialize_with = "time", serialize_with = "humantime_serde::serialize")]
    pub slow_floor: Duration,
    /// By which part of the interval each wait is shortened or lengthened at random, so that backends are not probed
    /// in lockstep. The first probe comes within this part of an interval. Default 0.1, range 0 to 0.5.
    pub jitter: f64,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            alert_threshold: 3,
            clear_threshold: 3,
            slow_factor: 3.0,
            slow_threshold: 3,
            slow_floor: Duration::from_millis(10),
            jitter: 0.1,
        }
    }
}

impl HealthConfig {
    /// Adds everything that is wrong with these settings, which stand at `path`.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let mut check = |right: bool, field: &str, problem: &str| {
            if !right {
                problems.push(ConfigProblem { path: format!("{path}.{field}"), problem: problem.to_owned() });
            }
        };
        let day = Duration::from_secs(86_400);
        check((Duration::from_millis(10)..=day).contains(&self.interval), "interval", "must be 10ms to 1day");
        check(!self.timeout.is_zero(), "timeout", "must be more than 0, or every probe fails");
        check(self.timeout <= self.interval, "timeout", "must be at most `interval`");
        check(self.alert_threshold > 0, "alert_threshold", "must be at least 1");
        check(self.clear_threshold > 0, "clear_threshold", "must be at least 1");
        check(self.slow_factor.is_finite() && self.slow_factor > 1.0, "slow_factor", "must be a number above 1");
        check(self.slow_threshold > 0, "slow_threshold", "must be at least 1");
        check((0.0..=0.5).contains(&self.jitter), "jitter", "must be 0 to 0.5");
    }
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a time like \"30s\" or a number of seconds")]
    enum Time {
        Seconds(f64),
        Text(#[serde(with = "humantime_serde")] Duration),
    }
    match Time::deserialize(deserializer)? {
        Time::Seconds(seconds) => Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom),
        Time::Text(time) => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_the_documents_are_the_defaults_and_are_understood() {
        let text = r#"{ "check_interval_seconds": 30.0, "timeout_seconds": 5.0, "alert_threshold": 3 }"#;
        assert_eq!(serde_json::from_str::<HealthConfig>(text).unwrap(), HealthConfig::default());
        let text = r#"{ "interval": "1m", "timeout": 2, "slow_floor": "1ms" }"#;
        let config: HealthConfig = serde_json::from_str(text).unwrap();
        assert_eq!((config.interval.as_secs(), config.timeout.as_secs()), (60, 2));
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""interval":"1m""#));
        assert_eq!(serde_json::from_str::<HealthConfig>(&text).unwrap(), config);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [r#"{ "intervall": 3 }"#, r#"{ "timeout": -1 }"#, r#"{ "timeout": "5 apples" }"#] {
            assert!(serde_json::from_str::<HealthConfig>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_is_valid_and_every_problem_is_told() {
        let mut problems = Vec::new();
        HealthConfig::default().problems("health", &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let wrong = HealthConfig {
            interval: Duration::ZERO,
            timeout: Duration::from_secs(1),
            alert_threshold: 0,
            clear_threshold: 0,
            slow_factor: f64::NAN,
            slow_threshold: 0,
            slow_floor: Duration::ZERO,
            jitter: -0.1,
        };
        wrong.problems("health", &mut problems);
        let fields: Vec<_> = problems.iter().map(|problem| problem.path.trim_start_matches("health.")).collect();
        assert_eq!(
            fields,
            ["interval", "timeout", "alert_threshold", "clear_threshold", "slow_factor", "slow_threshold", "jitter"]
        );
    }
}
