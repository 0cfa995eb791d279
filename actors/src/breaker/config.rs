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
/// The stretch of time over which failures are counted (document 002).
const DEFAULT_ROLLING_WINDOW: Duration = Duration::from_secs(300);
/// The share of calls that is let through first in a recovery (document 002).
const DEFAULT_RECOVERY_FACTOR: f64 = 0.5;
/// As long as a call may take by default: what takes longer has failed anyway.
const DEFAULT_SLOW_CALL: Duration = Duration::from_secs(10);

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// How many failures open a breaker, how long it stays open, and what closes it again.
///
/// The rules that open it run side by side; the first that fires is the cause. Rates are shares, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// The breaker opens at this many failures in a row, the last of them included. Default 5, range 1 to 10 000.
    pub failure_threshold: u32,
    /// It opens when this share of calls failed, of the last `window_calls` or within `rolling_window`. Default: no
    /// such rule, range 0.01 to 1.
    pub failure_rate: Option<f64>,
    /// It opens when this share of the last `window_calls` took longer than `slow_call`. Default: no such rule, range
    /// 0.01 to 1.
    pub slow_call_rate: Option<f64>,
    /// The rates are looked at when there were so many calls at least. Default 20, range 1 to 1 000 000.
    pub minimum_calls: u32,
    /// Over how many calls rates are taken: exactly up to 128, and to within a 128th of it above. Default 100, range
    /// 1 to 1 000 000; memory and time do not depend on it.
    pub window_calls: u32,
    /// Over what stretch of time the failure rate is taken, to within a thirtieth of it. Default 300 s, range 1 s to
    /// 24 h. Also known as `rolling_window_seconds`.
    #[serde(alias = "rolling_window_seconds", with = "crate::config::seconds")]
    pub rolling_window: Duration,
    /// A call that takes this long is slow. One that is given up at this age, or later, counts as failed: its caller
    /// went, and the backend had its time. Default 10 s, range 1 ms to 1 h. Set it below the deadlines of your
    /// callers, or what they give up says nothing.
    #[serde(with = "crate::config::seconds")]
    pub slow_call: Duration,
    /// It opens when so many calls are out at once for longer than `slow_call`, whether their callers still wait or
    /// not. Default 5, range 1 to 100 000; none for no such rule.
    pub overdue_calls: Option<u32>,
    /// Whether fewer failures in a row open it while the backend is not well: between `adaptive_minimum` and
    /// `failure_threshold`, as its health is (the mean of about the last 20 calls and what the prober finds, whichever
    /// is worse). Default off.
    pub adaptive: bool,
    /// At how many failures in a row the adaptive rule opens it when the backend is as unwell as can be. Default 2,
    /// range 1 to 10 000.
    pub adaptive_minimum: u32,
    /// Other rules, that are tried out beside these: it is told when they would have opened the breaker, and nothing
    /// else comes of it. Only what opens a breaker is looked at in here. Default: none.
    pub shadow: Option<Box<BreakerConfig>>,
    /// It closes at this many successes in half-open. Default 2, range 1 to 1 000.
    pub success_threshold: u32,
    /// How long it stays open before it lets probes through. Default 60 s, range 1 ms to 24 h. A plain number is
    /// in seconds. Also known as `timeout_seconds`.
    #[serde(alias = "timeout_seconds", with = "crate::config::seconds")]
    pub reset_timeout: Duration,
    /// How much longer the next wait is when the probes fail: 2 doubles it each time. Default 1, range 1 to 10.
    pub open_wait_growth: f64,
    /// How long a wait can grow. Default 10 min, range `reset_timeout` to 24 h, and `reset_timeout` where that is
    /// longer.
    #[serde(with = "crate::config::seconds")]
    pub open_wait_max: Duration,
    /// By up to this share a wait is made shorter, at random, so that not everybody comes back at once. Default 0,
    /// range 0 to 1.
    pub open_wait_jitter: f64,
    /// Calls that may be out at the same time in half-open. Default: as many as `success_threshold`, range 1 to
    /// 1 000.
    pub half_open_probes: Option<u32>,
    /// How long a call in half-open holds its place. When it has not reported by then, its place is given to
    /// another call. Default 30 s, range 1 ms to 1 h; keep it above the deadline of a call.
    #[serde(with = "crate::config::seconds")]
    pub half_open_lease: Duration,
    /// Whether load comes back in steps after half-open. Default on (document 002).
    pub gradual_recovery: bool,
    /// The share of calls that is let through in the first step of a recovery; in the later ones it grows evenly.
    /// Default 0.5, range 0.01 to 1 (document 002).
    pub recovery_factor: f64,
    /// The steps of a recovery. Default 3, range 1 to 100.
    pub recovery_steps: u32,
    /// How long a step takes, a tenth more or less. Default 5 s, range 1 ms to 1 h.
    #[serde(with = "crate::config::seconds")]
    pub recovery_step: Duration,
    /// How many calls may be out at once at the end of a recovery; at its beginning, `recovery_factor` of it. Default
    /// 64, range 1 to 100 000.
    pub recovery_calls: u32,
    /// Errors that say nothing about the backend, by [`BackendError::code`]: they count neither as failure nor
    /// as success. Default: none. Also known as `excluded_exceptions`.
    #[serde(alias = "excluded_exceptions")]
    pub excluded_errors: Vec<String>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_threshold: DEFAULT_FAILURE_THRESHOLD,
            failure_rate: None,
            slow_call_rate: None,
            minimum_calls: 20,
            window_calls: 100,
            rolling_window: DEFAULT_ROLLING_WINDOW,
            slow_call: DEFAULT_SLOW_CALL,
            overdue_calls: Some(DEFAULT_FAILURE_THRESHOLD),
            adaptive: false,
            adaptive_minimum: 2,
            shadow: None,
            success_threshold: DEFAULT_SUCCESS_THRESHOLD,
            reset_timeout: DEFAULT_RESET_TIMEOUT,
            open_wait_growth: 1.0,
            open_wait_max: Duration::from_secs(600),
            open_wait_jitter: 0.0,
            half_open_probes: None,
            half_open_lease: DEFAULT_HALF_OPEN_LEASE,
            gradual_recovery: true,
            recovery_factor: DEFAULT_RECOVERY_FACTOR,
            recovery_steps: 3,
            recovery_step: Duration::from_secs(5),
            recovery_calls: 64,
            excluded_errors: Vec::new(),
        }
    }
}

impl BreakerConfig {
    /// Appends everything that is wrong with this configuration, which is found at `path`.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        self.rule_problems(path, problems);
        if let Some(shadow) = &self.shadow {
            let path = if path.is_empty() { "shadow".to_owned() } else { format!("{path}.shadow") };
            shadow.rule_problems(&path, problems);
            if shadow.shadow.is_some() {
                problems.push(ConfigProblem::new(&path, "shadow", "a shadow has no shadow of its own"));
            }
        }
        check(path, "success_threshold", self.success_threshold, 1..=1_000, problems);
        check(path, "open_wait_growth", self.open_wait_growth, 1.0..=10.0, problems);
        check(path, "open_wait_max", self.open_wait_max, MILLISECOND..=DAY, problems);
        check(path, "open_wait_jitter", self.open_wait_jitter, 0.0..=1.0, problems);
        check(path, "recovery_factor", self.recovery_factor, 0.01..=1.0, problems);
        check(path, "recovery_steps", self.recovery_steps, 1..=100, problems);
        check(path, "recovery_step", self.recovery_step, MILLISECOND..=HOUR, problems);
        check(path, "recovery_calls", self.recovery_calls, 1..=100_000, problems);
        if let Some(probes) = self.half_open_probes {
            check(path, "half_open_probes", probes, 1..=1_000, problems);
        }
        check(path, "reset_timeout", self.reset_timeout, MILLISECOND..=DAY, problems);
        check(path, "half_open_lease", self.half_open_lease, MILLISECOND..=HOUR, problems);
        if self.excluded_errors.iter().any(String::is_empty) {
            problems.push(ConfigProblem::new(path, "excluded_errors", "an error code is empty"));
        }
    }

    /// What is wrong with the rules that open it.
    fn rule_problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        check(path, "failure_threshold", self.failure_threshold, 1..=10_000, problems);
        for (name, rate) in [("failure_rate", self.failure_rate), ("slow_call_rate", self.slow_call_rate)] {
            if let Some(rate) = rate {
                check(path, name, rate, 0.01..=1.0, problems);
            }
        }
        check(path, "minimum_calls", self.minimum_calls, 1..=1_000_000, problems);
        check(path, "window_calls", self.window_calls, 1..=1_000_000, problems);
        check(path, "rolling_window", self.rolling_window, Duration::from_secs(1)..=DAY, problems);
        check(path, "slow_call", self.slow_call, MILLISECOND..=HOUR, problems);
        if let Some(calls) = self.overdue_calls {
            check(path, "overdue_calls", calls, 1..=100_000, problems);
        }
        check(path, "adaptive_minimum", self.adaptive_minimum, 1..=10_000, problems);
        let rated = self.failure_rate.is_some() || self.slow_call_rate.is_some();
        if rated && self.minimum_calls > self.window_calls {
            let problem = format!("is above window_calls ({}), so that no rate is ever looked at", self.window_calls);
            problems.push(ConfigProblem::new(path, "minimum_calls", problem));
        }
    }

    /// How long it stays open when it has been opened so often in a row, before any jitter.
    #[must_use]
    pub fn open_wait(&self, attempts: u32) -> Duration {
        let longest = self.open_wait_max.max(self.reset_timeout);
        let growth = self.open_wait_growth.max(1.0).powi(i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX));
        let wait = Duration::try_from_secs_f64(self.reset_timeout.as_secs_f64() * growth).unwrap_or(longest);
        if growth > 1.0 { wait.min(longest) } else { self.reset_timeout }
    }

    /// The share of calls that is let through in this step of a recovery, counted from 0.
    #[must_use]
    pub fn recovery_share(&self, step: u32) -> f64 {
        let done = f64::from(step) / f64::from(self.recovery_steps.max(1));
        (self.recovery_factor + (1.0 - self.recovery_factor) * done).clamp(0.0, 1.0)
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
    fn the_figures_of_document_002_are_the_defaults_of_the_recovery_and_the_rolling_window() {
        let config = BreakerConfig::default();
        assert!(config.gradual_recovery);
        assert_eq!((config.recovery_factor, config.rolling_window), (0.5, Duration::from_secs(300)));
        let config = read(r#"{"rolling_window_seconds": 120, "recovery_factor": 0.2, "recovery_steps": 4}"#).unwrap();
        assert_eq!(config.rolling_window, Duration::from_secs(120));
        let shares: Vec<f64> = (0..5).map(|step| config.recovery_share(step)).collect();
        assert!(shares.iter().zip([0.2, 0.4, 0.6, 0.8, 1.0]).all(|(one, other)| (one - other).abs() < 1e-9));
    }

    #[test]
    fn an_open_wait_grows_up_to_its_limit_and_only_if_it_is_told_to() {
        let config = BreakerConfig::default();
        assert_eq!([1, 2, 50, u32::MAX].map(|attempts| config.open_wait(attempts)), [config.reset_timeout; 4]);
        let config = BreakerConfig { open_wait_growth: 2.0, ..config };
        let seconds = [0, 1, 2, 3, 4, 5, u32::MAX].map(|attempts| config.open_wait(attempts).as_secs());
        assert_eq!(seconds, [60, 60, 120, 240, 480, 600, 600]);
        let config = BreakerConfig { reset_timeout: HOUR, ..config };
        assert_eq!(config.open_wait(9), HOUR, "it never gets shorter");
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
            failure_rate: Some(f64::NAN),
            slow_call_rate: Some(0.0),
            minimum_calls: 101,
            slow_call: Duration::ZERO,
            open_wait_growth: 0.5,
            open_wait_jitter: 1.5,
            recovery_factor: 0.0,
            recovery_steps: 0,
            shadow: Some(Box::new(BreakerConfig { window_calls: 0, ..BreakerConfig::default() })),
            ..BreakerConfig::default()
        };
        let mut problems = Vec::new();
        config.problems("backends.graph.breaker", &mut problems);
        assert_eq!(problems.len(), 15, "{problems:#?}");
        assert!(problems.iter().any(|p| p.path == "backends.graph.breaker.shadow.window_calls"), "{problems:?}");
        assert!(problems.iter().any(|p| p.path == "backends.graph.breaker.reset_timeout"), "{problems:?}");
        config.problems("", &mut problems);
        assert!(problems.iter().any(|p| p.path == "reset_timeout"), "{problems:?}");
    }
}
