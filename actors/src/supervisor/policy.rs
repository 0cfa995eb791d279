//! What is restarted after a death, when, and when that is no longer worth trying. No clock, no runtime.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::ConfigProblem;

/// Which children are restarted when one dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The one that died.
    OneForOne,
    /// The one that died and all that were started after it: those lean on it.
    RestForOne,
}

/// How often and how soon actors are restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartConfig {
    /// How many deaths within [`window`](Self::window) are answered with a restart; one more escalates. Counted
    /// over all children of a supervisor. Default 10, range 0 to 1 000 000; 0 escalates at the first death.
    pub intensity: u32,
    /// How long a death counts. Default 60 s, more than 0.
    #[serde(with = "crate::config::seconds")]
    pub window: Duration,
    /// The wait before the second restart of a child within the window; it doubles with every further one, and
    /// half of it is jitter. The first restart is immediate. Default 50 ms.
    #[serde(with = "crate::config::seconds")]
    pub backoff_base: Duration,
    /// The longest wait before a restart. Default 5 s, at least [`backoff_base`](Self::backoff_base).
    ///
    /// With these defaults a child that dies whenever it is started escalates after about 16 s at the most.
    #[serde(with = "crate::config::seconds")]
    pub backoff_max: Duration,
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            intensity: 10,
            window: Duration::from_secs(60),
            backoff_base: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl RestartConfig {
    /// Adds everything that is wrong with these settings, which stand at `path`.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let mut report = |field, problem| problems.push(ConfigProblem::new(path, field, problem));
        if self.intensity > 1_000_000 {
            report("intensity", "must be at most 1000000");
        }
        if self.window.is_zero() {
            report("window", "must be more than 0, or deaths are never counted");
        }
        if self.backoff_max < self.backoff_base {
            report("backoff_max", "must be at least `backoff_base`");
        }
    }

    /// The longest wait before the restart after so many deaths of one child within the window.
    fn backoff(&self, deaths: u32) -> Duration {
        let Some(doublings) = deaths.checked_sub(2) else { return Duration::ZERO };
        self.backoff_base.saturating_mul(2_u32.saturating_pow(doublings)).min(self.backoff_max)
    }
}

/// What to do about a death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Restart these children, in this order.
    Restart {
        /// Their places among all children.
        children: Range<usize>,
        /// When.
        after: Duration,
    },
    /// Too many deaths: give up and let the parent decide.
    Escalate,
}

/// The restart policy of one supervisor.
#[derive(Debug)]
pub struct RestartPolicy {
    strategy: Strategy,
    config: RestartConfig,
    children: usize,
    /// The deaths that still count, oldest first; at most `intensity`.
    deaths: VecDeque<(Instant, usize)>,
    rng: fastrand::Rng,
}

impl RestartPolicy {
    /// A policy over this many children that has seen no death. The seed is for the jitter.
    #[must_use]
    pub fn new(strategy: Strategy, config: RestartConfig, children: usize, seed: u64) -> Self {
        Self { strategy, config, children, deaths: VecDeque::new(), rng: fastrand::Rng::with_seed(seed) }
    }

    /// What to do about the death, or the failed start, of this child. A death counts while it is younger than
    /// the window; that of a sibling which the supervisor killed itself is not to be reported here.
    pub fn died(&mut self, now: Instant, child: usize) -> Decision {
        while self.deaths.front().is_some_and(|(at, _)| now.duration_since(*at) >= self.config.window) {
            self.deaths.pop_front();
        }
        if self.deaths.len() >= self.config.intensity as usize {
            return Decision::Escalate;
        }
        self.deaths.push_back((now, child));
        let of_child = self.deaths.iter().filter(|(_, which)| *which == child).count();
        let longest = self.config.backoff(u32::try_from(of_child).unwrap_or(u32::MAX));
        let children = match self.strategy {
            Strategy::OneForOne => child..child + 1,
            Strategy::RestForOne => child..self.children,
        };
        Decision::Restart { children, after: longest.mul_f64(1.0 - self.rng.f64() / 2.0) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(strategy: Strategy, intensity: u32) -> RestartPolicy {
        RestartPolicy::new(strategy, RestartConfig { intensity, ..RestartConfig::default() }, 4, 7)
    }

    #[test]
    fn the_death_after_the_last_allowed_one_escalates() {
        let (now, mut policy) = (Instant::now(), policy(Strategy::OneForOne, 3));
        for _ in 0..3 {
            assert!(matches!(policy.died(now, 0), Decision::Restart { .. }));
        }
        assert_eq!(policy.died(now, 1), Decision::Escalate);
    }

    #[test]
    fn a_death_exactly_as_old_as_the_window_no_longer_counts() {
        let (now, mut policy) = (Instant::now(), policy(Strategy::OneForOne, 1));
        assert!(matches!(policy.died(now, 0), Decision::Restart { .. }));
        assert_eq!(policy.died(now + 60 * SECOND - Duration::from_nanos(1), 0), Decision::Escalate);
        assert!(matches!(policy.died(now + 60 * SECOND, 0), Decision::Restart { .. }));
    }

    #[test]
    fn an_intensity_of_zero_never_restarts() {
        assert_eq!(policy(Strategy::OneForOne, 0).died(Instant::now(), 0), Decision::Escalate);
    }

    #[test]
    fn only_the_child_that_died_waits_longer() {
        let (now, mut policy) = (Instant::now(), policy(Strategy::OneForOne, 10));
        for _ in 0..4 {
            policy.died(now, 0);
        }
        assert_eq!(policy.died(now, 1), Decision::Restart { children: 1..2, after: Duration::ZERO });
    }

    #[test]
    fn a_backoff_of_many_deaths_does_not_overflow() {
        assert_eq!(RestartConfig::default().backoff(u32::MAX), Duration::from_secs(5));
    }

    #[test]
    fn the_default_is_valid_and_every_problem_is_told() {
        let mut problems = Vec::new();
        RestartConfig::default().problems("supervisor", &mut problems);
        assert!(problems.is_empty());
        let wrong = RestartConfig {
            intensity: 2_000_000,
            window: Duration::ZERO,
            backoff_base: SECOND,
            backoff_max: Duration::ZERO,
        };
        wrong.problems("supervisor", &mut problems);
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["supervisor.intensity", "supervisor.window", "supervisor.backoff_max"]);
    }

    proptest! {
        /// Against a model that keeps every restart that was ever granted.
        #[test]
        fn decisions_agree_with_a_model_that_forgets_nothing(
            steps in prop::collection::vec((0_u64..20, 0_usize..4), 1..80),
            intensity in 0_u32..6,
            rest in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let strategy = if rest { Strategy::RestForOne } else { Strategy::OneForOne };
            let config = RestartConfig { intensity, ..RestartConfig::default() };
            let mut policy = RestartPolicy::new(strategy, config, 4, seed);
            let mut now = Instant::now();
            let mut granted: Vec<(Instant, usize)> = Vec::new();
            for (seconds, child) in steps {
                now += SECOND * u32::try_from(seconds).unwrap();
                let young: Vec<_> = granted.iter().filter(|(at, _)| *at + 60 * SECOND > now).collect();
                let expected = young.len() < intensity as usize;
                match policy.died(now, child) {
                    Decision::Escalate => prop_assert!(!expected),
                    Decision::Restart { children, after } => {
                        prop_assert!(expected);
                        let before = young.iter().filter(|(_, which)| *which == child).count();
                        let longest = match before {
                            0 => Duration::ZERO,
                            n => (Duration::from_millis(50) * 2_u32.pow(n as u32 - 1)).min(5 * SECOND),
                        };
                        prop_assert!(after <= longest && after >= longest / 2);
                        prop_assert_eq!(children, child..if rest { 4 } else { child + 1 });
                        granted.push((now, child));
                    }
                }
            }
        }
    }
}
