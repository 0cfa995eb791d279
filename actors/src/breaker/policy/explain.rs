//! Why the policy is in its state.

use tokio::time::Instant;

use super::{Automatic, BreakerPolicy, Probe};
use crate::backend::BackendName;
use crate::breaker::BreakerState;
use crate::breaker::report::{Explanation, ProbeReading};

impl BreakerPolicy {
    /// Why it is in this state.
    #[must_use]
    pub fn explain(&mut self, name: BackendName, now: Instant) -> Explanation {
        let moment = self.moment(now);
        let failures = self.history.failures(now);
        let opened_on = match self.opened {
            Some((_, generation)) => failures.iter().filter(|f| f.generation == generation).cloned().collect(),
            None => Vec::new(),
        };
        let (half_open_successes, probes) = match &self.automatic {
            Automatic::HalfOpen { successes, probes } => (*successes, probes.as_slice()),
            Automatic::Recovering(recovery) => (0, recovery.probes()),
            _ => (0, [].as_slice()),
        };
        let reading = |probe: &Probe| ProbeReading {
            purpose: probe.purpose,
            remaining: probe.deadline.saturating_duration_since(now),
        };
        Explanation {
            name,
            state: self.state(),
            generation: self.generation,
            since: self.history.since(now),
            until: match self.state() {
                BreakerState::Closed | BreakerState::HalfOpen => None,
                _ => self.wake_at().map(|at| at.saturating_duration_since(now)),
            },
            cause: self.history.last_cause().cloned(),
            rules: self.rules.readings(moment),
            opened_by: self.opened.as_ref().map(|(cause, _)| cause.clone()),
            opened_on,
            failures,
            probes: probes.iter().map(reading).collect(),
            half_open_successes,
            recovery: match (&self.automatic, &self.manual) {
                (Automatic::Recovering(recovery), None) => Some(recovery.reading(&self.config, now)),
                _ => None,
            },
            shadow: self.shadow.as_mut().map(|shadow| shadow.reading(moment)),
            history: self.history.transitions(now),
        }
    }
}
