//! The settings of a breaker.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::BackendError;
use crate::config::ConfigProblem;

/// Failures in a row that open it (documents 000 to 004).
const DEFAULT_FAILURE_THRESHOLD: u32 = 5;
/// Successes that close it (documents 000, 001 and 004; document 002 has 3).
const DEFAULT_SUCCESS_THRESHOLD: u32 = 2;
/// The open wait (all documents).
const DEFAULT_RESET_TIMEOUT: Duration = Duration::from_secs(60);
/// As long as a saga may take (document 000): a call that is still out then is as good as lost.
const DEFAULT_HALF_OPEN_LEASE: Duration = Duration::from_secs(30);

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// How many failures open a breaker, how long it stays open, and what closes it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// The breaker opens at this many failures in a row, the last of them included. Default 5, range 1 to 10 000.
    pub failure_threshold: u32,
    /// It closes at this many successes in half-open. Default 2, range 1 to 1 000.
    pub success_threshold: u32,
    /// How long it stays open before it lets probes through. Default 60 s, range 1 ms to 24 h. A plain number is
    /// in seconds. Also known as `timeout_seconds`.
    #[serde(alias = "timeout_seconds", with = "crate::config::seconds")]
    pub reset_timeout: Duration,
    /// Calls that may be out at the same time in half-open. Default: as many as `success_threshold`, range 1 to
    /// 1 000.
    pub half_open_probes: Option<u32>,
    /// How long a call in half-open holds its place. When it has not reported by then, its place is given to
    /// another call. Default 30 s, range 1 ms to 1 h; keep it above the deadline of a call.
    #[serde(with = "crate::config::seconds")]
    pub half_open_lease: Duration,
    /// Errors that say nothing about the backend, by [`BackendError::code`]: they count neither as failure nor
    /// as success. Default: none. Also known as `excluded_exceptions`.
    #[serde(alias = "excluded_exceptions")]
    pub excluded_errors: Vec<String>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_threshold: DEFAULT_FAILURE_THRESHOLD,
            success_threshold: DEFAULT_SUCCESS_THRESHOLD,
            reset_timeout: DEFAULT_RESET_TIMEOUT,
            half_open_probes: None,
            half_open_lease: DEFAULT_HALF_OPEN_LEASE,
            excluded_errors: Vec::new(),
        }
    }
}

impl BreakerConfig {
    /// Appends everything that is wrong with this configuration, which is found at `path`.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        check(path, "failure_threshold", self.failure_threshold, 1..=10_000, problems);
        check(path, "success_threshold", self.success_threshold, 1..=1_000, problems);
        if let Some(probes) = self.half_open_probes {
            check(path, "half_open_probes", probes, 1..=1_000, problems);
        }
        check(path, "reset_timeout", self.reset_timeout, MILLISECOND..=DAY, problems);
        check(path, "half_open_lease", self.half_open_lease, MILLISECOND..=HOUR, problems);
        if self.excluded_errors.iter().any(String::is_empty) {
            problems.push(ConfigProblem::new(path, "excluded_errors", "an error code is empty"));
        }
    }

    /// Calls that may be out at the same time in half-open: at least one, or it would never close.
    #[must_use]
    pub fn permitted_probes(&self) -> usize {
        self.half_open_probes.unwrap_or(self.success_threshold).max(1) as usize
    }

    /// Whether this error counts neither way.
    #[must_use]
    pub fn excludes(&self, error: &BackendError) -> bool {
        error.code.as_ref().is_some_and(|code| self.excluded_errors.iter().any(|excluded| excluded == code))
    }
}

fn check<T: PartialOrd + std::fmt::Debug>(
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<BreakerConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn an_empty_config_has_the_documented_defaults_and_no_problems() {
        let config = read("{}").unwrap();
        assert_eq!(config, BreakerConfig::default());
        assert_eq!((config.failure_threshold, config.success_threshold), (5, 2));
        assert_eq!((config.reset_timeout, config.permitted_probes()), (Duration::from_secs(60), 2));
        let mut problems = Vec::new();
        config.problems("breaker", &mut problems);
        assert_eq!(problems, []);
    }

    #[test]
    fn waits_are_read_as_text_as_number_and_under_the_name_of_document_002() {
        for json in [
            r#"{"reset_timeout": "1m 30s"}"#,
            r#"{"timeout_seconds": 90.0}"#,
            r#"{"reset_timeout": 90}"#,
            r#"{"timeout_seconds": "90"}"#,
        ] {
            assert_eq!(read(json).unwrap().reset_timeout, Duration::from_secs(90), "{json}");
        }
        assert!(read(r#"{"reset_timeout": -1}"#).is_err());
        assert!(read(r#"{"reset_timeout": "soon"}"#).is_err());
    }

    #[test]
    fn a_misspelt_setting_is_refused() {
        assert!(read(r#"{"failure_treshold": 3}"#).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config =
            BreakerConfig { half_open_probes: Some(1), excluded_errors: vec!["23505".into()], ..Default::default() };
        assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn every_problem_is_told_with_its_path() {
        let config = BreakerConfig {
            failure_threshold: 0,
            success_threshold: 0,
            reset_timeout: Duration::ZERO,
            half_open_probes: Some(0),
            half_open_lease: Duration::MAX,
            excluded_errors: vec![String::new()],
        };
        let mut problems = Vec::new();
        config.problems("backends.graph.breaker", &mut problems);
        assert_eq!(problems.len(), 6);
        assert!(problems.iter().any(|p| p.path == "backends.graph.breaker.reset_timeout"), "{problems:?}");
        config.problems("", &mut problems);
        assert!(problems.iter().any(|p| p.path == "reset_timeout"), "{problems:?}");
    }
}
