//! A write to several backends: all of them have it in the end, or none.
//!
//! ```text
//!           admitted ─ per-key lock ─ plan ─ leases
//!               │
//!   prepare     │  read what is there (the pre-image), begin native transactions
//!               ▼
//!           Intent ──────────────► journal, durable: who owes what, and how to take it back
//!               │
//!   execute     │  one leg per backend, side by side, each call under a lease, with retries
//!               │
//!   commit      │  native transactions last
//!               ▼
//!     all done? ── yes ──────────► Committed
//!               ├─ some cannot now, and the mode may queue ──► Queued (or Volatile): the drain goes on
//!               └─ else Decided ─► journal, durable; what was done is undone: RolledBack
//! ```
//!
//! Each operation is one task ([`Operation`]); its decisions are plain code ([`verdict`]). The [`SagaCoordinator`] owns what
//! no caller waits for any more: compensations that could not be done at once, retried until they are done or
//! parked, those found at the start included.
//!
//! Receives: compensations owed (from operations and recovery), queries. Sends: events, records to the journal.
//! If it crashes: what is owed is in the ledger; its successor goes on.

mod actor;
mod policy;
mod run;
#[cfg(test)]
mod tests;

pub use actor::{SagaArguments, SagaCoordinator};
pub use policy::{Failure, LegEnd, Verdict, verdict};
pub use run::Operation;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigProblem, check_range};

/// When a write is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Before the first backend is touched: a crash leaves nothing half done.
    #[default]
    Strict,
    /// While the backends are touched; the receipt waits for both. Saves the time of one sync; a crash can leave a
    /// write that was *not* acknowledged in one backend and not in another.
    Overlapped,
}

/// Settings of sagas. How their calls are made is in [`CallConfig`](crate::call::CallConfig), `max_retries` of document
/// 000 included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SagaConfig {
    /// How long all the legs of a write may take together, retries included. Default 30 s (document 000), range
    /// 10 ms to 1 h.
    #[serde(alias = "timeout_seconds", with = "crate::config::seconds")]
    pub timeout: Duration,
    /// How long the caller waits for the compensations of a write that failed; what is not undone by then is undone
    /// later. Default 10 s (document 000).
    #[serde(with = "crate::config::seconds")]
    pub rollback_timeout: Duration,
    /// When a write is made durable. Default strict.
    pub durability: Durability,
}

impl Default for SagaConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            rollback_timeout: Duration::from_secs(10),
            durability: Durability::Strict,
        }
    }
}

impl SagaConfig {
    /// Adds all that is wrong with these settings.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let (ms, hour) = (Duration::from_millis(1), Duration::from_secs(3_600));
        check_range(path, "timeout", self.timeout, 10 * ms..=hour, problems);
        check_range(path, "rollback_timeout", self.rollback_timeout, ms..=hour, problems);
    }
}

/// How sagas went since the start.
#[derive(Debug, Default)]
pub struct SagaCounters {
    begun: AtomicU64,
    committed: AtomicU64,
    queued: AtomicU64,
    rolled_back: AtomicU64,
    parked: AtomicU64,
}

/// How sagas went since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaTotals {
    /// Writes that were accepted.
    pub begun: u64,
    /// Of those: in every required backend when the caller was answered.
    pub committed: u64,
    /// Of those: still owed to a backend when the caller was answered.
    pub queued: u64,
    /// Of those: decided to be undone.
    pub rolled_back: u64,
    /// Legs that became dead letters.
    pub parked: u64,
}

impl SagaCounters {
    pub(crate) fn begun(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self) {
        self.committed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn queued(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn rolled_back(&self) {
        self.rolled_back.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn parked(&self) {
        self.parked.fetch_add(1, Ordering::Relaxed);
    }

    /// The totals now.
    #[must_use]
    pub fn totals(&self) -> SagaTotals {
        SagaTotals {
            begun: self.begun.load(Ordering::Relaxed),
            committed: self.committed.load(Ordering::Relaxed),
            queued: self.queued.load(Ordering::Relaxed),
            rolled_back: self.rolled_back.load(Ordering::Relaxed),
            parked: self.parked.load(Ordering::Relaxed),
        }
    }
}
