//! How hard a backend is called: for how long, how often again, and how many calls at the same time.
//!
//! ```text
//!  Store::permit ── bulkhead: a place? ── gate: a lease? ──► CallPermit
//!                        │ no                 │ no
//!                        └────── Denied ──────┘   the backend is not touched
//!
//!  CallPermit::call ── attempt ── fails, worth a retry ── wait ── budget: a token? gate: a lease? ──┐
//!                         ▲                                                                         │
//!                         └─────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A [`CallPermit`](crate::plane::CallPermit) is the only way to a backend, but for the probes of the health prober,
//! which ask the gate alone. What is decided is here, without I/O and without a clock of its own.
//!
//! | setting | default | why |
//! |---|---|---|
//! | `timeout` | 10 s | document 000: a rollback, which is a call to each backend, has 10 s |
//! | `max_concurrent` | 256 | a quarter of the requests that the gateway lets in |
//! | `retry.max_retries` | 3 | document 000, where it is `saga.max_retries` |
//! | `retry.backoff`, `max_backoff` | 50 ms, 5 s | |
//! | `retry.budget` | 0.1 per call, 1 per second, at most 10 | a tenth more calls in an outage, not four times as many |

mod budget;
mod bulkhead;
mod config;
#[cfg(test)]
mod tests;

pub use budget::RetryBudget;
pub use bulkhead::{Bulkhead, Place};
pub use config::{BudgetConfig, CallConfig, RetryConfig};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::BackendName;
use crate::breaker::{BreakerState, Rejected};
use crate::error::Refusal;

/// A call that was not made. The backend was not touched, and none of this says anything about its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// The breaker does not let it through.
    #[error(transparent)]
    Breaker(#[from] Rejected),
    /// As many calls as there may be are out already.
    #[error("{limit} calls are out already; retry after {retry_after:?}")]
    Bulkhead {
        /// How many may be: [`CallConfig::max_concurrent`].
        limit: usize,
        /// When to try again.
        retry_after: Duration,
    },
}

impl Denied {
    /// When to try again.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Breaker(rejected) => rejected.retry_after(),
            Self::Bulkhead { retry_after, .. } => *retry_after,
        }
    }

    /// Whether it is only that others have the places: as soon as one of them is done, there may be one.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        match self {
            Self::Breaker(rejected) => rejected.is_throttled(),
            Self::Bulkhead { .. } => true,
        }
    }

    /// What the caller is told whose request needs this backend.
    #[must_use]
    pub fn refusal(&self, backend: BackendName) -> Refusal {
        let retry_after = self.retry_after();
        match self {
            Self::Breaker(rejected) if rejected.is_throttled() => Refusal::Throttled { backend, retry_after },
            Self::Breaker(rejected) => {
                let reason = match rejected.state {
                    BreakerState::Open => "its breaker is open",
                    BreakerState::HalfOpen => "its breaker is half-open, and all its places are taken",
                    BreakerState::ForcedOpen => "its breaker was forced open",
                    _ => "its breaker lets nobody through",
                };
                Refusal::Unavailable { backend, reason: reason.to_owned(), retry_after: Some(retry_after) }
            }
            Self::Bulkhead { .. } => {
                Refusal::Unavailable { backend, reason: self.to_string(), retry_after: Some(retry_after) }
            }
        }
    }
}

/// How the calls to a backend stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallStats {
    /// Places that are taken now, by calls of every purpose but probes.
    pub in_flight: u64,
    /// Calls that were made again because they had failed, since the start.
    pub retries: u64,
    /// Calls that were not made again because the budget was empty, since the start.
    pub budget_exhausted: u64,
    /// Calls of users that found no place, since the start.
    pub bulkhead_rejections: u64,
    /// Deletes that it has forgotten, since the start.
    pub swept: u64,
}
