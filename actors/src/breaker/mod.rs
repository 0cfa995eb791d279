//! Whether a backend may be called: one verdict, published as a gate that costs almost nothing to ask.

use serde::{Deserialize, Serialize};

/// The state of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Calls are admitted.
    #[default]
    Closed,
    /// Calls are refused until the wait is over.
    Open,
    /// A few calls are admitted to see whether the backend is back.
    HalfOpen,
    /// Calls are refused until a person lifts it.
    ForcedOpen,
    /// Calls are admitted, whatever happens, until a person lifts it.
    ForcedClosed,
    /// Calls are admitted and not even counted.
    Disabled,
}

/// Why a breaker changed its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TransitionCause {
    /// This many calls failed in a row.
    ConsecutiveFailures(u32),
    /// The wait in the open state was over.
    WaitElapsed,
    /// Enough probes succeeded.
    ProbesSucceeded(u32),
    /// A probe failed.
    ProbeFailed,
    /// By hand, for this reason.
    Manual(String),
    /// The state was loaded from the store.
    Restored,
}
