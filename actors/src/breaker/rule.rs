//! What opens a breaker.

use super::TransitionCause;
use super::config::BreakerConfig;
use super::report::RuleReading;

/// A rule that watches the results of calls in the closed state, in fixed memory and constant time.
///
/// The set is closed on purpose: adding a rule means adding a variant, and the compiler then names every place
/// that has to know it.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// Opens after some failures in a row.
    ConsecutiveFailures {
        /// At how many.
        threshold: u32,
        /// How many there are.
        streak: u32,
    },
}

impl Rule {
    /// The rules that this configuration asks for.
    pub(super) fn all(config: &BreakerConfig) -> Vec<Self> {
        vec![Self::ConsecutiveFailures { threshold: config.failure_threshold.max(1), streak: 0 }]
    }

    /// Takes in one result; says why the breaker has to open, if it has to.
    pub(super) fn observe(&mut self, alive: bool) -> Option<TransitionCause> {
        match self {
            Self::ConsecutiveFailures { threshold, streak } => {
                *streak = if alive { 0 } else { streak.saturating_add(1) };
                (*streak >= *threshold).then_some(TransitionCause::ConsecutiveFailures(*streak))
            }
        }
    }

    /// Forgets what it has seen.
    pub(super) fn clear(&mut self) {
        match self {
            Self::ConsecutiveFailures { streak, .. } => *streak = 0,
        }
    }

    /// Whether a success would change anything. While no rule listens, successes are only counted, without a
    /// lock.
    pub(super) fn hears_success(&self) -> bool {
        match self {
            Self::ConsecutiveFailures { streak, .. } => *streak > 0,
        }
    }

    /// Failures in a row, where it counts them.
    pub(super) fn failures(&self) -> u32 {
        match self {
            Self::ConsecutiveFailures { streak, .. } => *streak,
        }
    }

    /// Follows a change of the configuration without forgetting what it has seen.
    pub(super) fn reconfigure(&mut self, config: &BreakerConfig) {
        match self {
            Self::ConsecutiveFailures { threshold, .. } => *threshold = config.failure_threshold.max(1),
        }
    }

    /// How close it is to opening the breaker.
    pub(super) fn reading(&self) -> RuleReading {
        match self {
            Self::ConsecutiveFailures { threshold, streak } => RuleReading {
                rule: "consecutive_failures",
                reading: u64::from(*streak),
                threshold: u64::from(*threshold),
            },
        }
    }
}
