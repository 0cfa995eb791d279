//! What a policy hears and says.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::breaker::TransitionCause;
use crate::breaker::report::{FailureKind, Transition};

/// An admission, as its call has to present it when it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The generation in which it was given.
    pub generation: u64,
    /// The tick in which it was given, by which its age is known.
    pub tick: u32,
    /// Its place in half-open or in a recovery.
    pub place: Option<NonZeroU64>,
}

/// What the result of a call says about the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence<'a> {
    /// It answered.
    Alive,
    /// It answered, slowly.
    Slow,
    /// It did not, or failed.
    Dead {
        /// How.
        kind: FailureKind,
        /// With which code.
        code: Option<&'a str>,
    },
    /// Neither.
    Nothing,
}

/// What became of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It counts for the verdict.
    InTime,
    /// Its generation is over: it counts as a call, not for the verdict.
    Stale,
    /// The call was counted as expired before: nothing more happens.
    Expired,
}

/// What the gate has counted so far, without telling the policy of every single call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Calls that were admitted.
    pub admitted: u64,
    /// Calls that succeeded in their own generation. This never gets less.
    pub successes: u64,
    /// Calls that are out.
    pub in_flight: u64,
}

/// What has to be told to others.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Transitions, oldest first.
    pub transitions: Vec<Transition>,
    /// Calls that lost their place in half-open or in a recovery.
    pub expired: u64,
    /// Why it would have been opened, had a rule not been a shadow, or the breaker not in metrics-only.
    pub would_open: Vec<(TransitionCause, WouldOpen)>,
}

/// Why a rule that fired did not open the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WouldOpen {
    /// It is a shadow.
    Shadow,
    /// The breaker is in metrics-only.
    MetricsOnly,
}
