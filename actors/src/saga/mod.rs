//! A write to several backends: all of them have it in the end, or none.
//!
//! ```text
//!           admitted ─ per-key lock ─ plan ─ leases
//!               │
//!   prepare     │  read what is there (the pre-image), begin native transactions
//!               ▼
//!           Intent ──────────────► journal, durable: who owes what, and how to take it back
//!               │
//!   execute     │  one leg per backend, side by side, each call under a lease; 3 retries
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

/// Settings of sagas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SagaConfig {
    /// How long all the legs of a write may take together. Default 30 s (document 000), range 10 ms to 1 h.
    #[serde(alias = "timeout_seconds", with = "crate::config::seconds")]
    pub timeout: Duration,
    /// How long one call to a backend may take. Default 10 s, at most `timeout`. A call that takes longer has an
    /// unknown outcome.
    #[serde(with = "crate::config::seconds")]
    pub step_timeout: Duration,
    /// How often a call that failed is tried again while the caller waits. Default 3 (document 000), range 0 to 20.
    /// Where the mode may queue, nothing is retried in front of the caller: the drain does it.
    pub max_retries: u32,
    /// The wait before the first retry; it doubles with each, with jitter. Default 50 ms, range 1 ms to 1 min.
    #[serde(with = "crate::config::seconds")]
    pub backoff: Duration,
    /// The longest wait between retries, of compensations too. Default 5 s, at least `backoff`.
    #[serde(with = "crate::config::seconds")]
    pub max_backoff: Duration,
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
            step_timeout: Duration::from_secs(10),
            max_retries: 3,
            backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
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
        check_range(path, "step_timeout", self.step_timeout, ms..=self.timeout, problems);
        check_range(path, "max_retries", self.max_retries, 0..=20, problems);
        check_range(path, "backoff", self.backoff, ms..=Duration::from_secs(60), problems);
        check_range(path, "max_backoff", self.max_backoff, self.backoff..=hour, problems);
        check_range(path, "rollback_timeout", self.rollback_timeout, ms..=hour, problems);
    }

    /// The waits before the retries, with jitter: between half of the doubled wait and the whole.
    #[must_use]
    pub fn wait_before(&self, retry: u32) -> Duration {
        let doubled = self.backoff.saturating_mul(1_u32 << retry.min(20)).min(self.max_backoff);
        doubled.mul_f64(0.5 + fastrand::f64() / 2.0)
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
