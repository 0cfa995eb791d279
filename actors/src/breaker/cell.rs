//! What outlives the actor of a breaker, and what outlives the process.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::config::BreakerConfig;
use super::gate::Gate;
use super::handle::BreakerHandle;
use super::policy::BreakerPolicy;
use super::store::{BreakerStateStore, FORMAT, SavedBreaker, StoreError};
use crate::backend::BackendName;
use crate::event::EventBus;

/// How long a store may take for one record. Only a start waits for it, and not for a store that is remote.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// After how long a save that failed is tried again.
const SAVE_RETRY: Duration = Duration::from_secs(1);

/// A breaker without its actor: what the runtime owns and gives to every incarnation of the actor. Cheap to
/// clone.
#[derive(Clone)]
pub struct BreakerCell {
    pub(super) gate: Arc<Gate>,
    store: Option<Arc<dyn BreakerStateStore>>,
}

impl BreakerCell {
    /// A breaker that goes on where the store says it stopped. Without a store, or when the store fails or hangs
    /// (5 s), it starts closed. It also does while the record of a [remote](BreakerStateStore::is_remote) store is
    /// under way, and goes on from that when it comes.
    ///
    /// The configuration should have no [problems](BreakerConfig::problems); thresholds of 0 count as 1.
    pub async fn open(
        name: BackendName,
        config: BreakerConfig,
        bus: Arc<EventBus>,
        store: Option<Arc<dyn BreakerStateStore>>,
    ) -> Self {
        let saved = match &store {
            Some(store) if !store.is_remote() => load(&name, store.as_ref()).await,
            _ => None,
        };
        let now = Instant::now();
        let gate = match saved {
            Some(saved) => {
                let (sequence, generation) = (saved.sequence, saved.generation);
                Gate::new(name, BreakerPolicy::restore(config, saved, now), bus, sequence, generation, now)
            }
            None => Gate::new(name, BreakerPolicy::new(config, now), bus, 0, 0, now),
        };
        if store.as_ref().is_some_and(|store| store.is_remote()) {
            gate.await_record();
        }
        Self { gate: Arc::new(gate), store }
    }

    /// How others look at it.
    #[must_use]
    pub fn handle(&self) -> BreakerHandle {
        BreakerHandle::new(Arc::clone(&self.gate))
    }

    /// Saves the state now, with what is left of a wait to the moment. For a shutdown, which can wait for it;
    /// else the actor saves at every transition.
    ///
    /// # Errors
    /// When the store did not take it within 5 s.
    pub async fn save(&self) -> Result<(), StoreError> {
        match &self.store {
            // It has nothing to say against a record that it does not know.
            Some(_) if self.gate.awaits_record() => Ok(()),
            Some(store) => save(&self.gate, store.as_ref()).await,
            None => Ok(()),
        }
    }

    /// Saves at every transition, and now and then while a wait is running, as long as it is polled. The newest
    /// state wins: what changes while a save is under way is saved once, after it.
    pub(super) async fn keep_saved(self) {
        let Some(store) = self.store else { return };
        load_late(&self.gate, store.as_ref()).await;
        let mut view = self.gate.watch();
        let mut failures = 0_u64;
        loop {
            view.borrow_and_update();
            let again = if self.gate.needs_saving() {
                match save(&self.gate, store.as_ref()).await {
                    Ok(()) => {
                        failures = 0;
                        self.gate.save_again_in()
                    }
                    Err(error) => {
                        failures += 1;
                        report_failure(self.gate.name(), &error, failures);
                        Some(SAVE_RETRY)
                    }
                }
            } else {
                None
            };
            tokio::select! {
                biased;
                changed = view.changed() => if changed.is_err() { return },
                () = sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
        }
    }
}

/// Only the first failure in a row is loud: a store that is down would say the same every second.
fn report_failure(backend: &BackendName, error: &StoreError, failures: u64) {
    if failures == 1 {
        warn!(%backend, %error, "breaker state not saved, trying again every second");
    } else {
        debug!(%backend, %error, failures, "breaker state still not saved");
    }
}

async fn load(name: &BackendName, store: &dyn BreakerStateStore) -> Option<SavedBreaker> {
    try_load(name, store).await.unwrap_or_else(|error| {
        warn!(backend = %name, %error, "breaker state not loaded, starting closed");
        None
    })
}

async fn try_load(name: &BackendName, store: &dyn BreakerStateStore) -> Result<Option<SavedBreaker>, StoreError> {
    match guarded(store.load(name)).await? {
        Some(saved) if saved.format != FORMAT => {
            Err(StoreError::Unreadable(format!("it has format {}, not {FORMAT}", saved.format)))
        }
        saved => Ok(saved),
    }
}

/// Takes over what a remote store has, as soon as it says so and as long as the breaker has not changed its state. A
/// store that fails is asked again every second, until a call succeeds: then the record is older than what is known.
async fn load_late(gate: &Gate, store: &dyn BreakerStateStore) {
    let mut view = gate.watch();
    let mut failures = 0_u64;
    while gate.awaits_record() {
        let loaded = tokio::select! {
            biased;
            _ = view.changed() => continue,
            loaded = try_load(gate.name(), store) => loaded,
        };
        match loaded {
            Ok(saved) => return gate.take_over(saved),
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    warn!(backend = %gate.name(), %error, "breaker state not loaded, going on closed meanwhile");
                }
                let lasting = matches!(error, StoreError::Unreadable(_));
                if lasting || gate.was_alive() {
                    return gate.take_over(None);
                }
                // Whether it changes meanwhile is asked above.
                let _ = timeout(SAVE_RETRY, view.changed()).await;
            }
        }
    }
}

async fn save(gate: &Gate, store: &dyn BreakerStateStore) -> Result<(), StoreError> {
    match guarded(store.save(gate.name(), gate.record())).await {
        // Of whom that is does not matter: what the breaker is now is newer.
        Err(StoreError::Stale { held }) => {
            gate.follow(held);
            guarded(store.save(gate.name(), gate.record())).await
        }
        result => result,
    }
}

/// A store is somebody else's code: it may hang and panic.
async fn guarded<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match timeout(STORE_TIMEOUT, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(StoreError::Failed("it panicked".to_owned())),
        Err(_) => Err(StoreError::Late(STORE_TIMEOUT)),
    }
}
