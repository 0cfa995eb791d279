//! The port to where the state of breakers survives a restart.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::BreakerState;
use super::report::Transition;
use crate::backend::BackendName;

/// The format of [`SavedBreaker`] that is written.
pub const FORMAT: u16 = 1;

/// The highest sequence that a record may have: a higher one would leave no room for those that come after it, and
/// no store would ever take one again.
pub const LAST_SEQUENCE: u64 = u64::MAX >> 1;

/// What is saved of a breaker. It holds no point in time, only durations: the wall clock may jump while nothing
/// runs, and an open breaker must neither wait longer than configured nor skip its wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedBreaker {
    /// [`FORMAT`] when it was written. A record of another format is not used.
    pub format: u16,
    /// Greater in every later record of this breaker; see [`SavedBreaker::may_replace`].
    pub sequence: u64,
    /// The state, without what was forced by hand: `Closed`, `Open` or `HalfOpen`.
    pub state: BreakerState,
    /// The generation.
    pub generation: u64,
    /// Failures in a row.
    pub failure_count: u32,
    /// What was left of the open wait.
    #[serde(with = "humantime_serde")]
    pub remaining_wait: Duration,
    /// How often it was opened since it was last closed.
    pub attempts: u32,
    /// What was forced by hand.
    pub manual: Option<SavedOverride>,
    /// How often it was half-open since it was last closed.
    pub half_open_attempts: u32,
    /// The last transitions, oldest first.
    pub history: Vec<Transition>,
}

/// A saved override.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedOverride {
    /// `ForcedOpen`, `ForcedClosed` or `Disabled`.
    pub state: BreakerState,
    /// Why.
    pub reason: String,
    /// What was left of it, if it ends by itself.
    #[serde(with = "humantime_serde")]
    pub remaining: Option<Duration>,
}

impl SavedBreaker {
    /// Whether a store that holds this sequence may take this record. Saves can arrive out of order, when one
    /// hung and the next did not; an older one must not win.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when it may not.
    pub fn may_replace(&self, held: Option<u64>) -> Result<(), StoreError> {
        match held {
            Some(held) if held >= self.sequence => Err(StoreError::Stale { held }),
            _ => Ok(()),
        }
    }
}

/// Why the state of a breaker could not be loaded or saved. Never a reason to fail or delay a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store holds a newer record, which was kept.
    #[error("the store holds a record with sequence {held}, which is not older")]
    Stale {
        /// Its sequence.
        held: u64,
    },
    /// The store holds something that cannot be read.
    #[error("the saved state cannot be read: {0}")]
    Unreadable(String),
    /// The store failed; it may or may not have the record.
    #[error("the breaker-state store failed: {0}")]
    Failed(String),
    /// The store did not answer in time.
    #[error("the breaker-state store did not answer within {0:?}")]
    Late(Duration),
}

/// Where the state of breakers survives a restart.
///
/// Calls may hang, fail or panic: breakers then go on in memory and try again later.
#[async_trait]
pub trait BreakerStateStore: Send + Sync + 'static {
    /// The newest record, if there is one.
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError>;

    /// Keeps the record if [`SavedBreaker::may_replace`] allows it, comparing and replacing in one atomic step.
    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError>;

    /// Whether it is on another machine, so that not even a start may wait for it. A breaker then starts closed and
    /// takes the record over when it comes, unless it has changed its state by then. Default `false`.
    fn is_remote(&self) -> bool {
        false
    }
}

/// A store in memory: for tests, and for breakers that only have to survive a restart of the runtime inside a
/// process.
#[derive(Debug, Default)]
pub struct MemoryStateStore(Mutex<HashMap<BackendName, SavedBreaker>>);

impl MemoryStateStore {
    /// The record that it holds.
    #[must_use]
    pub fn get(&self, backend: &BackendName) -> Option<SavedBreaker> {
        self.lock().get(backend).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BackendName, SavedBreaker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl BreakerStateStore for MemoryStateStore {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        Ok(self.get(backend))
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        let mut held = self.lock();
        record.may_replace(held.get(backend).map(|held| held.sequence))?;
        held.insert(backend.clone(), record);
        Ok(())
    }
}
