//! What the gate tells about itself.

use tokio::time::Instant;

use super::{Gate, heard};
use crate::breaker::BreakerState;
use crate::breaker::policy::Grant;
use crate::breaker::report::{BreakerSnapshot, Explanation, ratio};

impl Gate {
    /// The counters and times now.
    pub(in crate::breaker) fn snapshot(&self) -> BreakerSnapshot {
        let mut core = self.lock();
        let now = Instant::now();
        core.policy.hear(heard(&self.tally.totals()));
        core.policy.tick(now);
        self.publish(&mut core, now);
        let rolling = core.policy.rolling(now);
        let policy = &core.policy;
        let totals = self.tally.totals();
        let state = policy.state();
        let spent = |account| policy.history().spent(account, state, now);
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        BreakerSnapshot {
            name: self.name.clone(),
            state,
            generation: policy.generation(),
            total_requests: totals.admitted + totals.rejected,
            admitted: totals.admitted,
            successful: totals.successful,
            slow: totals.slow,
            failed: totals.failed,
            rejected: totals.rejected,
            throttled: totals.throttled,
            ignored: totals.ignored,
            cancelled: totals.cancelled,
            panicked: totals.panicked,
            expired: totals.expired,
            in_flight: totals.in_flight(),
            stale_results: totals.stale,
            state_transitions: policy.history().changes(),
            time_in_closed: spent(BreakerState::Closed),
            time_in_open: spent(BreakerState::Open),
            time_in_half_open: spent(BreakerState::HalfOpen),
            time_in_recovering: spent(BreakerState::Recovering),
            time_in_manual: spent(BreakerState::ForcedOpen),
            failure_rate: ratio(rolling.failed, rolling.calls).unwrap_or(0.0),
            slow_call_rate: ratio(rolling.slow, rolling.calls).unwrap_or(0.0),
            shadow_opened: policy.shadow_opened(),
            last_failure: age(core.last_failure),
            last_success: age(core.last_success),
            retry_after: policy.retry_after(now),
        }
    }

    /// Why the state is what it is.
    pub(in crate::breaker) fn explain(&self) -> Explanation {
        self.act(|policy, now| {
            policy.tick(now);
            policy.explain(self.name.clone(), now)
        })
    }

    /// When a call loses the place that it holds now.
    pub(in crate::breaker) fn deadline(&self, grant: Grant) -> Option<Instant> {
        self.lock().policy.deadline(grant)
    }
}
