//! How others look at a breaker and override it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::BreakerState;
use super::config::BreakerConfig;
use super::gate::Gate;
use super::message::Control;
use super::report::{BreakerSnapshot, BreakerView, Explanation};
use crate::config::ConfigProblem;

/// A breaker, as everybody but its actor sees it. Cheap to clone; works while the actor is being restarted.
///
/// What a method returns has happened: after [`force_open`](Self::force_open) no call is admitted.
#[derive(Clone, Debug)]
pub struct BreakerHandle {
    gate: Arc<Gate>,
}

impl BreakerHandle {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self { gate }
    }

    /// The gate, by which calls are admitted.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// State and generation now.
    #[must_use]
    pub fn view(&self) -> BreakerView {
        self.gate.view()
    }

    /// Tells of every change of the view; whoever is slow sees the newest.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BreakerView> {
        self.gate.watch()
    }

    /// The counters and times now.
    #[must_use]
    pub fn snapshot(&self) -> BreakerSnapshot {
        self.gate.snapshot()
    }

    /// Why the state is what it is.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        self.gate.explain()
    }

    /// Refuses all calls, until it is lifted or this long. A later override replaces it.
    pub fn force_open(&self, reason: impl Into<String>, expires_in: Option<Duration>) {
        self.control(Control::ForceOpen { reason: reason.into(), expires_in });
    }

    /// Admits all calls, whatever becomes of them, until it is lifted or this long.
    pub fn force_closed(&self, reason: impl Into<String>, expires_in: Option<Duration>) {
        self.control(Control::ForceClosed { reason: reason.into(), expires_in });
    }

    /// Admits all calls and counts nothing, until it is lifted or this long.
    pub fn disable(&self, reason: impl Into<String>, expires_in: Option<Duration>) {
        self.control(Control::Disable { reason: reason.into(), expires_in });
    }

    /// Admits all calls and judges them, but tells only when it would have opened, until it is lifted or this long.
    pub fn metrics_only(&self, reason: impl Into<String>, expires_in: Option<Duration>) {
        self.control(Control::MetricsOnly { reason: reason.into(), expires_in });
    }

    /// Takes in what the prober finds, 0 (failing) to 1 (well), for the adaptive rule.
    pub fn probed_health(&self, health: f64) {
        self.gate.act(|policy, _| policy.probed_health(health));
    }

    /// Ends an override, if there is one: the state that it covered is back, and an open wait has gone on.
    pub fn lift(&self) {
        self.control(Control::Lift);
    }

    /// Closes it and forgets what led here, an override included. Calls that are out no longer count.
    pub fn reset(&self) {
        self.control(Control::Reset);
    }

    /// Does one of these.
    pub fn control(&self, control: Control) {
        self.gate.act(|policy, now| match control {
            Control::ForceOpen { reason, expires_in } => {
                policy.force(BreakerState::ForcedOpen, reason, expires_in, now);
            }
            Control::ForceClosed { reason, expires_in } => {
                policy.force(BreakerState::ForcedClosed, reason, expires_in, now);
            }
            Control::Disable { reason, expires_in } => policy.force(BreakerState::Disabled, reason, expires_in, now),
            Control::MetricsOnly { reason, expires_in } => {
                policy.force(BreakerState::MetricsOnly, reason, expires_in, now);
            }
            Control::Lift => policy.lift(now),
            Control::Reset => policy.reset(now),
        });
    }

    /// Follows another configuration without a transition. An open wait gets shorter with it, not longer.
    ///
    /// # Errors
    /// Everything that is wrong with it, with paths from its own root; nothing has changed then.
    pub fn reconfigure(&self, config: BreakerConfig) -> Result<(), Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        config.problems("", &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        self.gate.act(|policy, now| policy.reconfigure(config, now));
        Ok(())
    }
}
