//! Whether a backend may be called: one verdict, published as a gate that costs almost nothing to ask.
//!
//! - **receives** results of calls (through their [`Lease`]), [`BreakerMessage`]s, and its own timer;
//! - **sends** [`EventKind::BreakerChanged`](crate::event::EventKind::BreakerChanged), the
//!   [watch](BreakerHandle::watch) of its view, and [`SavedBreaker`]s to its [`BreakerStateStore`].
//!
//! ```text
//!                any rule fires
//!   Closed ──────────────────────► Open ◄──────────────────────┐
//!     ▲                             │ the open wait is over     │ a probe fails
//!     │ all steps                   ▼                           │ or a step is bad
//!     │ were good                HalfOpen ──────────────────────┤
//!     │                             │ success_threshold         │
//!     │                             ▼ successes                 │
//!     └──────────────────────── Recovering ─────────────────────┘
//!
//!   any ── force_open, force_closed, disable, metrics_only ──► ForcedOpen, ForcedClosed, Disabled, MetricsOnly
//!   any of these ── lift, or their time is up ──► the state that was covered (places were given up: HalfOpen anew)
//!   any ── reset ──► Closed
//! ```
//!
//! Every transition begins a new generation. A result counts for the verdict only in the generation in which its
//! call was admitted; an older one is counted in `stale_results` and changes nothing else.
//!
//! In half-open at most `half_open_probes` calls are out at once. A call holds its place until it reports, or for
//! `half_open_lease`; then the place is given away, and what the call reports later changes nothing. An expired
//! place is not a failure: it says that a caller is slow or gone, and the next call finds out about the backend.
//! No window of time is looked at: however rarely a probe comes, it counts.
//!
//! Then load comes back in steps (`gradual_recovery`): a share of the calls of users, and so many calls at once, of
//! which drains and compensations may take half. A call that is held back is refused with
//! [`BreakerState::Recovering`], which tells it from one that an open breaker refuses.
//!
//! | rule that opens it | fires at | default |
//! |---|---|---|
//! | `consecutive_failures` | `failure_threshold` failures in a row | 5, documents 000 to 004 |
//! | `failure_rate` | this share of the last `window_calls` failed, of `minimum_calls` at least | off; 100, 20 |
//! | `rolling_failure_rate` | the same within `rolling_window` | off; 300 s, document 002 |
//! | `slow_call_rate` | this share of the last `window_calls` took `slow_call` or longer | off; 10 s |
//! | `overdue_calls` | so many calls are out for `slow_call` or longer | 5 |
//! | `adaptive_failures` | fewer failures in a row the less well the backend is (document 004) | off |
//!
//! All are asked when a call goes badly; one that goes well only adds to a counter, and its age is known without a
//! clock. So a call costs the same whichever rules are on and however long their windows are. A `shadow` is a second
//! set of rules beside them, which tells when it would have opened the breaker
//! ([`EventKind::BreakerWouldOpen`](crate::event::EventKind::BreakerWouldOpen)).
//!
//! | other setting | default | from |
//! |---|---|---|
//! | `success_threshold` | 2 | documents 000, 001, 004 |
//! | `reset_timeout` | 60 s; at exactly 60 s a call is admitted | documents 000 to 004 |
//! | `open_wait_growth`, `open_wait_max`, `open_wait_jitter` | 1, 10 min, 0: always `reset_timeout` | the documents |
//! | `half_open_probes` | as `success_threshold` | fewer could not close it without waiting |
//! | `half_open_lease` | 30 s | the longest a saga may take, document 000 |
//! | `gradual_recovery`, `recovery_factor` | on, 0.5 | document 002 |
//! | `recovery_steps`, `recovery_step`, `recovery_calls` | 3 of 5 s, 64 calls at once in the end | 15 s in all, a quarter of the open wait |
//! | `excluded_errors` | none | documents 000, 001 |
//!
//! | outcome of a call | for the verdict |
//! |---|---|
//! | `Success`, `Refused` (not found, a conflict, a throttle: it answered) | success |
//! | `Slow`, or a success after `slow_call` | success, and slow |
//! | `Failure`, a panic, a call that is given up after `slow_call` | failure |
//! | `Ignored` (an excluded error), `Cancelled` (a lease that is dropped) | nothing; its place is free |
//!
//! | if this crashes | then |
//! |---|---|
//! | the actor | the gate goes on: it opens, refuses, lets probes through, closes and tells of it. Only watchers without traffic wait for the next incarnation, and saves are made up for then |
//! | the process | the next one goes on with the saved state and what was left of the wait, give or take a thirtieth of it |
//! | the store | breakers go on in memory; saves are tried again every second |
//! | a [remote](BreakerStateStore::is_remote) store, at a start | nobody waits: breakers start closed, and take the record over if it comes before they change their state |

mod actor;
mod ages;
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
mod tally;
mod window;
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
pub use policy::{BreakerPolicy, Effects, Evidence, Grant, Heard, Settled, WouldOpen};
pub use report::{
    BreakerSnapshot, BreakerView, Explanation, FailureKind, FailureSample, ProbeReading, RecoveryReading, RuleReading,
    ShadowReading, Transition,
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
    /// More and more calls are admitted, step by step.
    Recovering,
    /// Calls are admitted and judged, but nothing comes of it, until a person lifts it.
    MetricsOnly,
}

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::ForcedOpen,
        Self::ForcedClosed,
        Self::Disabled,
        Self::Recovering,
        Self::MetricsOnly,
    ];

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
            Self::Recovering => "recovering",
            Self::MetricsOnly => "metrics_only",
        }
    }

    /// Whether every call is admitted.
    #[must_use]
    pub fn admits_freely(self) -> bool {
        matches!(self, Self::Closed | Self::ForcedClosed | Self::Disabled | Self::MetricsOnly)
    }

    /// Whether a person has to have put it there.
    #[must_use]
    pub fn is_manual(self) -> bool {
        matches!(self, Self::ForcedOpen | Self::ForcedClosed | Self::Disabled | Self::MetricsOnly)
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
    /// This many calls failed in a row, while the backend was not well.
    AdaptiveFailures(u32),
    /// This share of the last calls failed.
    FailureRate {
        /// In percent.
        percent: u8,
        /// Of how many.
        calls: u64,
    },
    /// This share of the calls of the last stretch of time failed.
    RollingFailureRate {
        /// In percent.
        percent: u8,
        /// Of how many.
        calls: u64,
    },
    /// This share of the last calls was slow.
    SlowCallRate {
        /// In percent.
        percent: u8,
        /// Of how many.
        calls: u64,
    },
    /// This many calls were out for too long, at least.
    CallsOverdue(u64),
    /// The wait in the open state was over.
    WaitElapsed,
    /// Enough probes succeeded.
    ProbesSucceeded(u32),
    /// A probe failed.
    ProbeFailed,
    /// Every step of a recovery was good.
    Recovered,
    /// A step of a recovery was bad.
    RecoveryFailed {
        /// Which, counted from 1.
        step: u32,
    },
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
            Self::AdaptiveFailures(count) => {
                write!(f, "{count} calls failed in a row while the backend was not well")
            }
            Self::FailureRate { percent, calls } => write!(f, "{percent} % of the last {calls} calls failed"),
            Self::RollingFailureRate { percent, calls } => {
                write!(f, "{percent} % of the {calls} calls in the rolling window failed")
            }
            Self::SlowCallRate { percent, calls } => write!(f, "{percent} % of the last {calls} calls were slow"),
            Self::CallsOverdue(count) => write!(f, "{count} calls were out for too long"),
            Self::Recovered => f.write_str("all steps of the recovery were good"),
            Self::RecoveryFailed { step } => write!(f, "step {step} of the recovery was bad"),
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
