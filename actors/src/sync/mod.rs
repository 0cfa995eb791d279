//! Giving the stores what they are owed.
//!
//! One lane per backend works off the ledger: owed writes for the [`SyncWorker`], owed compensations for the
//! [`SagaCoordinator`](crate::saga::SagaCoordinator), by the same code. Every step takes a lease from the
//! backend's gate, so a lane stops within one step of a breaker's opening, and its successes and failures count
//! like those of live calls. How many steps run side by side says its [`DrainWindow`]: one at first, one more with each
//! success, one again after a failure, fewer while users call the same backend; and it never takes the last place of the
//! backend's [bulkhead](crate::call::Bulkhead).
//!
//! A backend that [takes several writes in one call](crate::backend::Backend::apply_batch) gets as many as the window
//! allows. After a failure it gets one, which then fails or succeeds for itself.
//!
//! Order: of one key at most one step runs on a backend, oldest write first; high priority goes before low among
//! different keys. An owed write that a later owed one replaces whole is not sent; it is struck off when the later
//! one has arrived.
//!
//! | setting | default | source |
//! |---|---|---|
//! | `batch` | 100 | documents 000, 001 (`drain_batch_size`) |
//! | `concurrency` | 16 | measured: 0.92 of the backend's own rate |
//! | `backoff`, `max_backoff` | 100 ms, 30 s | |
//! | `sweep_after` | 1 h | far longer than a write can be on its way |
//!
//! Beside that the worker writes down what could not be written down, and lets the stores forget deletes whose
//! tombstones nothing needs any more.
//!
//! Receives: wake-ups (something is owed, the plan or a breaker changed), queries. Sends: events, records to the
//! journal. If it crashes: its lanes stop, steps in flight become owed again, its successor goes on.

mod actor;
pub(crate) mod lane;
mod policy;
mod replay;
mod sweep;
#[cfg(test)]
mod tests;

pub use actor::{DrainProgress, LaneStatus, Lanes, SyncArguments, SyncHandle, SyncMessage, SyncWorker};
pub use policy::DrainWindow;
pub use replay::{ReplayError, Replayed, replay_since};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigProblem, check_range};

/// Settings of the sync worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncConfig {
    /// After how many steps progress is told and the window is looked at anew. Default 100 (document 000), range 1
    /// to 10 000, at most the queue's `max_entries`.
    #[serde(alias = "drain_batch_size")]
    pub batch: usize,
    /// Steps that run side by side on one backend at the most. Default 16, range 1 to 1 024.
    pub concurrency: usize,
    /// The wait after a step that failed; it doubles with each failure in a row, with jitter. Default 100 ms, range
    /// 1 ms to 1 min.
    #[serde(with = "crate::config::seconds")]
    pub backoff: Duration,
    /// The longest such wait. Default 30 s, at least `backoff`.
    #[serde(with = "crate::config::seconds")]
    pub max_backoff: Duration,
    /// How long a write that was sent may be on its way to a store, at the very most. Deletes are forgotten so long
    /// after all that is older was finished, and no later than twice as long. Default 1 h, range 1 s to 30 days; 0
    /// keeps them for ever.
    #[serde(with = "crate::config::seconds")]
    pub sweep_after: Duration,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            batch: 100,
            concurrency: 16,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            sweep_after: Duration::from_secs(3_600),
        }
    }
}

impl SyncConfig {
    /// Adds all that is wrong with these settings.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let (ms, hour) = (Duration::from_millis(1), Duration::from_secs(3_600));
        check_range(path, "batch", self.batch, 1..=10_000, problems);
        check_range(path, "concurrency", self.concurrency, 1..=1_024, problems);
        check_range(path, "backoff", self.backoff, ms..=Duration::from_secs(60), problems);
        check_range(path, "max_backoff", self.max_backoff, self.backoff..=hour, problems);
        if !self.sweep_after.is_zero() {
            check_range(path, "sweep_after", self.sweep_after, 1_000 * ms..=30 * 24 * hour, problems);
        }
    }
}
