//! Whether a backend may be called: one verdict, published as a gate that costs almost nothing to ask.
//!
//! - **receives** results of calls (through their [`Lease`]), [`BreakerMessage`]s, and its own timer;
//! - **sends** [`EventKind::BreakerChanged`](crate::event::EventKind::BreakerChanged), the
//!   [watch](BreakerHandle::watch) of its view, and [`SavedBreaker`]s to its [`BreakerStateStore`].
//!
//! ```text
//!            failure_threshold failures in a row
//!   Closed ─────────────────────────────────────► Open ◄──────────────┐
//!     ▲                                            │ reset_timeout    │ any failure
//!     │      success_threshold successes           ▼                  │
//!     └─────────────────────────────────────── HalfOpen ──────────────┘
//!
//!   any ── force_open, force_closed, disable ──► ForcedOpen, ForcedClosed, Disabled
//!   any of these ── lift, or their time is up ──► the state that was covered (HalfOpen probes anew)
//!   any ── reset ──► Closed
//! ```
//!
//! Every transition begins a new generation. A result counts for the verdict only in the generation in which its
//! call was admitted; an older one is counted in `stale_results` and changes nothing else.
//!
//! In half-open at most `half_open_probes` calls are out at once. A call holds its place until it reports, or for
//! `half_open_lease`; then the place is given away, and what the call reports later changes nothing. An expired
//! place is not a failure: it says that a caller is slow or gone, and the next call finds out about the backend.
//!
//! | setting | default | from |
//! |---|---|---|
//! | `failure_threshold` | 5 | documents 000 to 004 |
//! | `success_threshold` | 2 | documents 000, 001, 004 |
//! | `reset_timeout` | 60 s; at exactly 60 s a call is admitted | documents 000 to 004 |
//! | `half_open_probes` | as `success_threshold` | fewer could not close it without waiting |
//! | `half_open_lease` | 30 s | the longest a saga may take, document 000 |
//! | `excluded_errors` | none | documents 000, 001 |
//!
//! | outcome of a call | for the verdict |
//! |---|---|
//! | `Success`, `Slow`, `Refused` (a conflict, a throttle: it answered) | success |
//! | `Failure`, a panic | failure |
//! | `Ignored` (an excluded error), `Cancelled` (a lease that is dropped) | nothing; its place in half-open is free |
//!
//! | if this crashes | then |
//! |---|---|
//! | the actor | the gate goes on: it opens, refuses, lets probes through, closes and tells of it. Only watchers without traffic wait for the next incarnation, and saves are made up for then |
//! | the process | the next one goes on with the saved state and what was left of the wait, give or take a thirtieth of it |
//! | the store | breakers go on in memory; saves are tried again every second |
//! | a [remote](BreakerStateStore::is_remote) store, at a start | nobody waits: breakers start closed, and take the record over if it comes before they change their state |

mod actor;
mod cell;
mod config;
mod gate;
mod handle;
mod history;
mod lease;
mod message;
mod policy;
mod report;
mod rule;
mod store;
mod word;

#[cfg(test)]
mod tests;

pub use actor::{BreakerActor, BreakerArguments};
pub use cell::BreakerCell;
pub use config::BreakerConfig;
pub use gate::Gate;
pub use handle::BreakerHandle;
pub use history::{HISTORY, SAMPLES};
pub use lease::{CallOutcome, Lease, OwnedLease, Purpose, Rejected};
pub use message::{BreakerMessage, Control};
pub use policy::{BreakerPolicy, Effects, Evidence, Grant, ProbeGrant, Settled};
pub use report::{
    BreakerSnapshot, BreakerView, Explanation, FailureKind, FailureSample, ProbeReading, RuleReading, Transition,
};
pub use store::{BreakerStateStore, FORMAT, LAST_SEQUENCE, MemoryStateStore, SavedBreaker, SavedOverride, StoreError};

use std::fmt;

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

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::Open, Self::HalfOpen, Self::ForcedOpen, Self::ForcedClosed, Self::Disabled];

    /// Its name, as in metrics and saved records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
            Self::Disabled => "disabled",
        }
    }

    /// Whether every call is admitted.
    #[must_use]
    pub fn admits_freely(self) -> bool {
        matches!(self, Self::Closed | Self::ForcedClosed | Self::Disabled)
    }

    /// Whether a person has to have put it there.
    #[must_use]
    pub fn is_manual(self) -> bool {
        matches!(self, Self::ForcedOpen | Self::ForcedClosed | Self::Disabled)
    }
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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
    /// The override by hand was lifted.
    Lifted,
    /// The time of the override by hand was up.
    OverrideExpired,
    /// It was reset by hand.
    Reset,
    /// The state was loaded from the store.
    Restored,
}

impl fmt::Display for TransitionCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(count) => write!(f, "{count} calls failed in a row"),
            Self::WaitElapsed => f.write_str("the open wait was over"),
            Self::ProbesSucceeded(count) => write!(f, "{count} probes succeeded"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::Manual(reason) => write!(f, "it was forced: {reason}"),
            Self::Lifted => f.write_str("an override was lifted"),
            Self::OverrideExpired => f.write_str("the time of an override was up"),
            Self::Reset => f.write_str("it was reset"),
            Self::Restored => f.write_str("it was so when the last process stopped"),
        }
    }
}
