//! What a breaker tells about itself. Times are ages and remaining waits: the wall clock is never asked.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BreakerState, Purpose, TransitionCause};
use crate::backend::{BackendName, ErrorKind};

/// State and generation, as [`watch`](super::BreakerHandle::watch) tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerView {
    /// The state.
    pub state: BreakerState,
    /// Its generation: one more at every transition.
    pub generation: u64,
}

/// The counters and times of a breaker at one moment.
///
/// Always: `admitted = successful + failed + ignored + cancelled + panicked + expired + in_flight`. Calls in the
/// disabled state are not counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BreakerSnapshot {
    /// Whose breaker.
    pub name: BackendName,
    /// Its state.
    pub state: BreakerState,
    /// Its generation.
    pub generation: u64,
    /// Calls that asked for admission: admitted and rejected.
    pub total_requests: u64,
    /// Calls that were admitted.
    pub admitted: u64,
    /// Calls that showed the backend alive, whatever they got from it.
    pub successful: u64,
    /// Of those, the slow ones.
    pub slow: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Calls that were refused here and never reached the backend.
    pub rejected: u64,
    /// Of those, the ones that a recovery held back.
    pub throttled: u64,
    /// Calls that ended in an excluded error.
    pub ignored: u64,
    /// Calls whose caller stopped waiting.
    pub cancelled: u64,
    /// Calls that panicked. Each is a failure for the verdict.
    pub panicked: u64,
    /// Calls in half-open that lost their place because they did not report in time.
    pub expired: u64,
    /// Calls that have not reported yet.
    pub in_flight: u64,
    /// Results that came too late to count for the verdict: of an older generation, or after their lease.
    pub stale_results: u64,
    /// Changes of the state.
    pub state_transitions: u64,
    /// Time spent closed.
    #[serde(with = "humantime_serde")]
    pub time_in_closed: Duration,
    /// Time spent open.
    #[serde(with = "humantime_serde")]
    pub time_in_open: Duration,
    /// Time spent half-open.
    #[serde(with = "humantime_serde")]
    pub time_in_half_open: Duration,
    /// Time spent recovering.
    #[serde(with = "humantime_serde")]
    pub time_in_recovering: Duration,
    /// Time spent forced, disabled or in metrics-only.
    #[serde(with = "humantime_serde")]
    pub time_in_manual: Duration,
    /// The share of calls that failed within `rolling_window`, since the last transition; 0 without calls.
    pub failure_rate: f64,
    /// The share that was slow.
    pub slow_call_rate: f64,
    /// How often the shadow would have opened it.
    pub shadow_opened: u64,
    /// How long ago a call failed.
    #[serde(with = "humantime_serde")]
    pub last_failure: Option<Duration>,
    /// How long ago a call succeeded, to within the time since a snapshot, a failure or a transition before: a
    /// success reads no clock.
    #[serde(with = "humantime_serde")]
    pub last_success: Option<Duration>,
    /// When to ask again; `None` while calls are admitted.
    #[serde(with = "humantime_serde")]
    pub retry_after: Option<Duration>,
}

impl BreakerSnapshot {
    /// Successes among successes and failures, 0 to 1; 0 without either.
    #[must_use]
    pub fn success_rate(&self) -> f64 {
        ratio(self.successful, self.successful + self.failed + self.panicked).unwrap_or(0.0)
    }

    /// Requests that were not rejected, 0 to 1; 1 without requests.
    #[must_use]
    pub fn availability(&self) -> f64 {
        ratio(self.admitted, self.total_requests).unwrap_or(1.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
pub(super) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Why a breaker is in the state it is in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Whose breaker.
    pub name: BackendName,
    /// Its state.
    pub state: BreakerState,
    /// Its generation.
    pub generation: u64,
    /// How long it has been in this state.
    #[serde(with = "humantime_serde")]
    pub since: Duration,
    /// In how long it ends by itself, if it does.
    #[serde(with = "humantime_serde")]
    pub until: Option<Duration>,
    /// What led to this state; `None` before the first transition.
    pub cause: Option<TransitionCause>,
    /// What the rules show now.
    pub rules: Vec<RuleReading>,
    /// Which rule opened it the last time, since it was last closed.
    pub opened_by: Option<TransitionCause>,
    /// The failures on which it was opened, oldest first.
    pub opened_on: Vec<FailureSample>,
    /// The last failures, oldest first; at most [`SAMPLES`](super::SAMPLES).
    pub failures: Vec<FailureSample>,
    /// The calls that hold a place in half-open or in a recovery.
    pub probes: Vec<ProbeReading>,
    /// Successes since it is half-open.
    pub half_open_successes: u32,
    /// How far a recovery is, while there is one.
    pub recovery: Option<RecoveryReading>,
    /// What the shadow shows, if there is one.
    pub shadow: Option<ShadowReading>,
    /// The last transitions, oldest first; at most [`HISTORY`](super::HISTORY).
    pub history: Vec<Transition>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "breaker `{}` is {} since {:?}", self.name, self.state, self.since)?;
        if let Some(cause) = &self.cause {
            write!(f, ", because {cause}")?;
        }
        if let Some(until) = self.until {
            write!(f, ", for another {until:?}")?;
        }
        if let Some(last) = self.opened_on.last() {
            write!(f, "; opened on {} failures, the last of them {last}", self.opened_on.len())?;
        }
        Ok(())
    }
}

/// What a rule shows, and at what it opens the breaker: a number of calls, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RuleReading {
    /// The rule.
    pub rule: &'static str,
    /// What it shows.
    pub reading: f64,
    /// At what it opens.
    pub threshold: f64,
    /// Of how many calls it is a share, if it is one.
    pub calls: Option<u64>,
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RecoveryReading {
    /// The step, counted from 0.
    pub step: u32,
    /// Of how many.
    pub steps: u32,
    /// The share of calls that is let through.
    pub share: f64,
    /// What is left of the step.
    #[serde(with = "humantime_serde")]
    pub remaining: Duration,
    /// Calls of this step that succeeded.
    pub succeeded: u32,
    /// Calls of this step that failed.
    pub failed: u32,
}

/// What rules that are tried out show.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowReading {
    /// How often they would have opened the breaker.
    pub opened: u64,
    /// Why, the last time.
    pub cause: Option<TransitionCause>,
    /// How long ago that was.
    #[serde(with = "humantime_serde")]
    pub age: Option<Duration>,
    /// What they show now.
    pub rules: Vec<RuleReading>,
}

/// A failure, without its message: that may hold anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureSample {
    /// What failed.
    pub kind: FailureKind,
    /// The code of the backend's error, at most 64 bytes of it.
    pub code: Option<String>,
    /// The generation in which it counted.
    pub generation: u64,
    /// How long ago.
    #[serde(with = "humantime_serde")]
    pub age: Duration,
}

impl fmt::Display for FailureSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)?;
        if let Some(code) = &self.code {
            write!(f, " `{code}`")?;
        }
        write!(f, " {:?} ago", self.age)
    }
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The backend, with an error of this kind.
    Error(ErrorKind),
    /// The call, with a panic.
    Panic,
    /// Nothing, by the time the caller gave it up: it had been out for `slow_call`.
    Abandoned,
    /// The caller said no more than that it failed.
    Unspecified,
}

/// A call that holds a place in half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeReading {
    /// What it is for.
    pub purpose: Purpose,
    /// How long it may hold its place yet.
    #[serde(with = "humantime_serde")]
    pub remaining: Duration,
}

/// A transition in the history of a breaker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// From this state.
    pub from: BreakerState,
    /// To this one.
    pub to: BreakerState,
    /// Because.
    pub cause: TransitionCause,
    /// The generation that it began.
    pub generation: u64,
    /// How long ago. After a restart, without the time in which nothing ran.
    #[serde(with = "humantime_serde")]
    pub age: Duration,
}
