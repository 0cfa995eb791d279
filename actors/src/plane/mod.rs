//! What every operation shares: the stores with their gates, the ledger, the journal, the plan, the cache.
//!
//! Actors own what changes slowly (verdicts, modes, schedules) and publish it here; operations read it without a
//! message. Nothing in here is lost when an actor dies, and no lock in here is held over an await.

mod locks;
mod permit;
#[cfg(test)]
pub(crate) mod rehearsal;
#[cfg(all(test, any(seawall_loom, seawall_shuttle)))]
mod schedules;
mod store;
mod versions;

pub use locks::{KeyGuard, KeyLocks};
pub use permit::{CallPermit, Cause, FailedCall, Tries};
pub(crate) use permit::{Called, call_all, fenced};
pub use store::{Call, FOREIGN_VERSION, Store};
pub(crate) use store::{check_fence, is_foreign};
pub use versions::Versions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::backend::{BackendName, Role};
use crate::event::EventBus;
use crate::fallback::FallbackHandle;
use crate::journal::{Journal, JournalRecord, Ledger};
use crate::limits::{InvalidInput, Limits};
use crate::saga::SagaCounters;
use crate::supervisor::OperationTasks;

/// What every operation shares.
pub struct DataPlane {
    /// The backends, in the order in which they were declared: reads ask the first one first.
    pub stores: Vec<Arc<Store>>,
    /// Which backend owes what. Locked for moments only; see [`ledger`](Self::ledger).
    ledger: Mutex<Ledger>,
    /// Where accepted writes are made durable.
    pub journal: Arc<dyn Journal>,
    /// The plan in force, and the cache.
    pub fallback: FallbackHandle,
    /// Gives out versions.
    pub versions: Versions,
    /// One write at a time a key.
    pub locks: KeyLocks,
    /// What a request may be.
    pub limits: Limits,
    /// State changes.
    pub events: Arc<EventBus>,
    /// Changes when something is owed that was not: wakes the lanes of the sync worker and the coordinator.
    pub work: watch::Sender<()>,
    /// Told when a saga leaves an entry behind that is not written down, or of which nobody knows how it ends until it
    /// is written down anew.
    pub unwritten: Notify,
    /// What a caller is told to wait when the queue is full.
    pub queue_retry_after: Duration,
    /// How the sagas of this process went.
    pub sagas: SagaCounters,
    /// The tasks of single operations.
    pub tasks: OperationTasks,
}

impl DataPlane {
    /// Puts the parts together. The ledger holds what the journal had.
    #[expect(clippy::too_many_arguments, reason = "called once, at the start, with every part there is")]
    pub fn new(
        stores: Vec<Arc<Store>>,
        ledger: Ledger,
        journal: Arc<dyn Journal>,
        fallback: FallbackHandle,
        versions: Versions,
        limits: Limits,
        events: Arc<EventBus>,
        tasks: OperationTasks,
    ) -> Self {
        let queue_retry_after = ledger.limits().retry_after;
        Self {
            stores,
            ledger: Mutex::new(ledger),
            journal,
            fallback,
            versions,
            locks: KeyLocks::default(),
            limits,
            events,
            work: watch::Sender::new(()),
            unwritten: Notify::new(),
            queue_retry_after,
            sagas: SagaCounters::default(),
            tasks,
        }
    }

    /// The ledger, locked. Never held over an await.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend of this name.
    ///
    /// # Errors
    /// [`InvalidInput::UnknownBackend`].
    pub fn store(&self, name: &BackendName) -> Result<&Arc<Store>, InvalidInput> {
        self.stores
            .iter()
            .find(|store| store.name == *name)
            .ok_or_else(|| InvalidInput::UnknownBackend(name.to_string()))
    }

    /// The backends that a write needs.
    pub fn required(&self) -> impl Iterator<Item = &Arc<Store>> {
        self.stores.iter().filter(|store| store.role == Role::Required)
    }

    /// The backends that a write is only told to.
    pub fn best_effort(&self) -> impl Iterator<Item = &Arc<Store>> {
        self.stores.iter().filter(|store| store.role == Role::BestEffort)
    }

    /// Writes down what would only cost repeated work if it were lost.
    pub fn note(&self, records: Vec<JournalRecord>) {
        if !records.is_empty() {
            self.journal.note(records);
        }
    }
}
