//! What the policy leaves to the next process, and takes over from the one before.

use std::time::Duration;

use tokio::time::Instant;

use super::{Automatic, BreakerPolicy, Manual, later};
use crate::breaker::store::{FORMAT, SavedBreaker, SavedOverride};
use crate::breaker::{BreakerConfig, BreakerState, TransitionCause, word};

impl BreakerPolicy {
    /// A breaker that goes on where an earlier process stopped. It waits no longer than configured; half-open and
    /// recovering become open without a wait: the calls that held places are gone.
    #[must_use]
    pub fn restore(config: BreakerConfig, saved: SavedBreaker, now: Instant) -> Self {
        let mut policy = Self::new(config, now);
        policy.automatic = match saved.state {
            BreakerState::Open => {
                let longest = policy.config.open_wait(saved.attempts);
                Automatic::Open { until: later(now, saved.remaining_wait.min(longest)) }
            }
            BreakerState::HalfOpen | BreakerState::Recovering => Automatic::Open { until: now },
            _ => Automatic::Closed,
        };
        policy.manual = saved.manual.filter(|manual| manual.state.is_manual()).map(|manual| Manual {
            state: manual.state,
            reason: manual.reason,
            until: manual.remaining.map(|remaining| later(now, remaining)),
        });
        policy.generation = saved.generation.min(word::LAST_GENERATION);
        policy.attempts = saved.attempts;
        policy.half_open_attempts = saved.half_open_attempts;
        policy.history.restore(saved.history, now);
        if policy.state() != BreakerState::Closed {
            let from = policy.history.last_state().unwrap_or_default();
            policy.changed(from, TransitionCause::Restored, now);
        }
        policy
    }

    /// The same for a breaker that has not changed its state yet, as it is configured now.
    pub fn take_over(&mut self, saved: SavedBreaker, now: Instant) {
        let heard = self.heard;
        *self = Self { heard, ..Self::restore(self.config.clone(), saved, now) };
        // The calls that were counted so far are none of the generation that begins.
        self.rules.clear(self.moment(now));
        self.ages.clear(heard, now);
    }

    /// What is to be saved.
    #[must_use]
    pub fn saved(&self, sequence: u64, now: Instant) -> SavedBreaker {
        let manual = self.manual.as_ref().map(|manual| SavedOverride {
            state: manual.state,
            reason: manual.reason.clone(),
            remaining: manual.until.map(|until| until.saturating_duration_since(now)),
        });
        SavedBreaker {
            format: FORMAT,
            sequence,
            state: self.automatic.state(),
            generation: self.generation,
            failure_count: self.failure_count(),
            remaining_wait: match self.automatic {
                Automatic::Open { until } => until.saturating_duration_since(now),
                _ => Duration::ZERO,
            },
            attempts: self.attempts,
            manual,
            half_open_attempts: self.half_open_attempts,
            history: self.history.transitions(now),
        }
    }

    /// While a wait is running: how soon to save again what is left of it. A process that is killed waits again
    /// for a thirtieth of the open wait, or 5 s, at most.
    #[must_use]
    pub fn save_again_in(&self) -> Option<Duration> {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        match (&self.automatic, &self.manual) {
            (Automatic::Open { .. }, _) => Some((self.config.reset_timeout / 30).clamp(shortest, longest)),
            (_, Some(Manual { until: Some(_), .. })) => Some(longest),
            _ => None,
        }
    }

    fn failure_count(&self) -> u32 {
        match (&self.opened, &self.automatic) {
            (Some((TransitionCause::ConsecutiveFailures(count), _)), Automatic::Open { .. }) => *count,
            _ => self.rules.failures(self.heard.successes),
        }
    }
}
