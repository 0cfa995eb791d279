//! What a person does to a breaker. It dominates what follows from results and time.

use std::time::Duration;

use tokio::time::Instant;

use super::shadow::Shadow;
use super::{Automatic, BreakerPolicy, Manual, later};
use crate::breaker::config::BreakerConfig;
use crate::breaker::{BreakerState, TransitionCause};

impl BreakerPolicy {
    /// Puts the breaker into a manual state, until it is lifted or this long.
    pub fn force(&mut self, state: BreakerState, reason: String, expires_in: Option<Duration>, now: Instant) {
        self.tick(now);
        let from = self.state();
        if let Automatic::HalfOpen { .. } | Automatic::Recovering(_) = self.automatic {
            // The calls that hold its places no longer count; it probes anew when the override ends.
            self.automatic = Automatic::Open { until: now };
        }
        let until = expires_in.map(|wait| later(now, wait));
        self.manual = Some(Manual { state, reason: reason.clone(), until });
        self.changed(from, TransitionCause::Manual(reason), now);
    }

    /// Ends an override: the state that it covered is back, and an open wait has gone on meanwhile.
    pub fn lift(&mut self, now: Instant) {
        self.tick(now);
        if self.manual.is_some() {
            self.uncover(TransitionCause::Lifted, now);
        }
    }

    /// Closes it and forgets what led here, an override included. Calls that are out no longer count.
    pub fn reset(&mut self, now: Instant) {
        let from = self.state();
        self.manual = None;
        self.automatic = Automatic::Closed;
        self.forget_attempts();
        self.opened = None;
        self.changed(from, TransitionCause::Reset, now);
    }

    /// Follows a new configuration without a transition. A wait that is running gets shorter with it, not longer.
    pub fn reconfigure(&mut self, config: BreakerConfig, now: Instant) {
        self.tick(now);
        let moment = self.moment(now);
        self.rules.reconfigure(&config, moment);
        if self.config.shadow != config.shadow {
            self.shadow = Shadow::of(&config, moment);
        }
        self.ages.reconfigure(config.slow_call);
        if let Automatic::Open { until } = &mut self.automatic {
            *until = (*until).min(later(now, config.open_wait(self.attempts)));
        }
        self.config = config;
        self.tick(now);
    }

    pub(super) fn uncover(&mut self, cause: TransitionCause, now: Instant) {
        let from = self.state();
        self.manual = None;
        self.changed(from, cause, now);
        self.tick(now);
    }
}
