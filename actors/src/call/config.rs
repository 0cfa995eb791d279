//! The settings of calls to a backend.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{BackendError, ErrorKind};
use crate::config::{ConfigProblem, check_range};
use crate::plane::is_foreign;

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// How a backend is called. Each backend can have its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallConfig {
    /// How long one call may take. Default 10 s, range 1 ms to 1 h. A call that takes longer has an unknown outcome.
    /// Where what it is part of has less time left (a saga, a rollback, a read), it has no more than that.
    #[serde(with = "crate::config::seconds")]
    pub timeout: Duration,
    /// What happens to calls that fail while somebody waits.
    pub retry: RetryConfig,
    /// Calls that may be out at the same time. Default 256, range 1 to 100 000. One more is refused at once, as if
    /// the breaker were open. A write has its place until it is done, and whoever waits for another try keeps his.
    /// The drain and compensations never take the last place. Probes are not counted.
    pub max_concurrent: usize,
}

/// When a call that failed is made again.
///
/// It is while its caller waits, the breaker lets it through and the budget has a token; never after an error that
/// another try cannot change. A write that may queue is left to the drain instead, and a read to the next backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// How often at the most. Default 3 (document 000, there `saga.max_retries`), range 0 to 20.
    pub max_retries: u32,
    /// The wait before the first retry; it doubles with each, and is cut by up to a half at random. A backend that
    /// asks for a longer wait gets it. Default 50 ms, range 1 ms to 1 min.
    #[serde(with = "crate::config::seconds")]
    pub backoff: Duration,
    /// The longest such wait, and the longest between tries of compensations that nobody waits for. Default 5 s, at
    /// least `backoff`, at most 1 h.
    #[serde(with = "crate::config::seconds")]
    pub max_backoff: Duration,
    /// How many retries all callers of the backend have together.
    pub budget: BudgetConfig,
}

/// A bucket of tokens that all callers of a backend share: each retry takes one. It is full at the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Tokens that it holds at the most. Default 10, range 0 to 10 000; with 0 nothing is ever retried.
    pub capacity: u32,
    /// Tokens that each call brings which is not a retry. Default 0.1, so that in a long outage at most one call in
    /// eleven is a retry; range 0 to 10.
    pub per_call: f64,
    /// Tokens that come with each second, for backends that are seldom called. Default 1, range 0 to 1 000.
    pub per_second: f64,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), retry: RetryConfig::default(), max_concurrent: 256 }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_retries: 3,
            backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            budget: BudgetConfig::default(),
        }
    }
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { capacity: 10, per_call: 0.1, per_second: 1.0 }
    }
}

impl CallConfig {
    /// Adds all that is wrong with these settings.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        check_range(path, "timeout", self.timeout, MILLISECOND..=HOUR, problems);
        check_range(path, "max_concurrent", self.max_concurrent, 1..=100_000, problems);
        self.retry.problems(&format!("{path}.retry"), problems);
    }
}

impl RetryConfig {
    fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        check_range(path, "max_retries", self.max_retries, 0..=20, problems);
        check_range(path, "backoff", self.backoff, MILLISECOND..=MINUTE, problems);
        check_range(path, "max_backoff", self.max_backoff, self.backoff..=HOUR, problems);
        let BudgetConfig { capacity, per_call, per_second } = self.budget;
        let path = format!("{path}.budget");
        check_range(&path, "capacity", capacity, 0..=10_000, problems);
        check_range(&path, "per_call", per_call, 0.0..=10.0, problems);
        check_range(&path, "per_second", per_second, 0.0..=1_000.0, problems);
    }

    /// How long to wait before the next try after this error, when this many retries were made before; `None` when
    /// another try is one too many or cannot help. `random` is a number from 0 to 1.
    #[must_use]
    pub fn wait(&self, retries: u32, error: &BackendError, random: f64) -> Option<Duration> {
        if retries >= self.max_retries || !is_worth_a_retry(error) {
            return None;
        }
        let doubled = self.backoff.saturating_mul(1_u32 << retries.min(20)).min(self.max_backoff);
        let jittered = doubled.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        Some(jittered.max(error.retry_after.unwrap_or_default()))
    }
}

/// Whether the same call may go better in a moment. A full disk does not empty, and a version of somebody else's
/// does not go away.
fn is_worth_a_retry(error: &BackendError) -> bool {
    !error.verdict().hopeless && error.kind != ErrorKind::ReadOnly && !is_foreign(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_an_empty_section_has_them() {
        let mut problems = Vec::new();
        let config: CallConfig = serde_json::from_str("{}").unwrap();
        config.problems("call", &mut problems);
        assert_eq!((problems, config), (Vec::new(), CallConfig::default()));
    }

    #[test]
    fn every_problem_is_told_with_its_path() {
        let budget = BudgetConfig { capacity: 10_001, per_call: f64::NAN, per_second: -1.0 };
        let retry = RetryConfig { max_retries: 21, backoff: MINUTE * 2, max_backoff: MINUTE, budget };
        let config = CallConfig { timeout: Duration::ZERO, retry, max_concurrent: 0 };
        let mut problems = Vec::new();
        config.problems("backends.graph.call", &mut problems);
        let mut paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        paths.sort_unstable();
        let expected = [
            "max_concurrent",
            "retry.backoff",
            "retry.budget.capacity",
            "retry.budget.per_call",
            "retry.budget.per_second",
            "retry.max_backoff",
            "retry.max_retries",
            "timeout",
        ];
        assert_eq!(paths, expected.map(|field| format!("backends.graph.call.{field}")));
    }

    fn any_error() -> impl Strategy<Value = BackendError> {
        let kinds =
            [ErrorKind::Transient, ErrorKind::Permanent, ErrorKind::Unknown, ErrorKind::Refused, ErrorKind::ReadOnly];
        (prop::sample::select(kinds.to_vec()), prop::option::of(0..100_u64)).prop_map(|(kind, wait)| BackendError {
            retry_after: wait.map(Duration::from_secs),
            ..BackendError::new(kind, "")
        })
    }

    proptest! {
        #[test]
        fn waits_double_up_to_the_longest_and_are_never_shorter_than_the_backend_asks(
            error in any_error(),
            retries in 0..30_u32,
            random in 0.0..=1.0_f64,
        ) {
            let config = RetryConfig { max_retries: 20, ..RetryConfig::default() };
            let helps = !matches!(error.kind, ErrorKind::Permanent | ErrorKind::ReadOnly);
            let wait = config.wait(retries, &error, random);
            prop_assert_eq!(wait.is_some(), retries < 20 && helps);
            if let Some(wait) = wait {
                let whole = (config.backoff * (1 << retries)).min(config.max_backoff);
                let asked = error.retry_after.unwrap_or_default();
                prop_assert!(wait >= asked && wait >= whole / 2 && wait <= whole.max(asked), "{wait:?}");
            }
        }
    }
}
