//! Where breaker states survive a restart: a small sled database of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use seawall_actors::backend::BackendName;
use seawall_actors::breaker::{BreakerStateStore, FORMAT, LAST_SEQUENCE, SavedBreaker, StoreError};

use crate::guard::{Batch, GuardOptions, GuardedDb, OpenError};

/// Breaker states on sled, behind the same guards as the journal.
pub struct SledStateStore {
    db: Arc<Mutex<GuardedDb>>,
}

impl SledStateStore {
    /// Opens the database in this directory. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let db = GuardedDb::open(dir, GuardOptions::rewriting())?;
        Ok(Self { db: Arc::new(Mutex::new(db)) })
    }

    /// sled blocks, so it never runs on a thread of the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&GuardedDb) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let db = Arc::clone(&self.db);
        let work = tokio::task::spawn_blocking(move || work(&db.lock().unwrap_or_else(PoisonError::into_inner)));
        work.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
    }
}

fn held(db: &GuardedDb, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
    let Some(row) = db.get(backend.as_str()).map_err(failed)? else { return Ok(None) };
    decode(&row).map(Some)
}

pub(crate) fn decode(row: &[u8]) -> Result<SavedBreaker, StoreError> {
    let saved: SavedBreaker = rmp_serde::from_slice(row).map_err(|e| StoreError::Unreadable(e.to_string()))?;
    if saved.format != FORMAT {
        return Err(StoreError::Unreadable(format!("format {}", saved.format)));
    }
    if saved.sequence > LAST_SEQUENCE {
        return Err(StoreError::Unreadable(format!("sequence {}", saved.sequence)));
    }
    Ok(saved)
}

fn failed(error: crate::guard::GuardError) -> StoreError {
    StoreError::Failed(error.to_string())
}

#[async_trait]
impl BreakerStateStore for SledStateStore {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        let backend = backend.clone();
        self.blocking(move |db| held(db, &backend)).await
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        let backend = backend.clone();
        self.blocking(move |db| {
            // What cannot be read is no newer record, and has to go.
            record.may_replace(held(db, &backend).ok().flatten().map(|held| held.sequence))?;
            let row = rmp_serde::to_vec_named(&record).map_err(|error| StoreError::Failed(error.to_string()))?;
            let mut batch = Batch::new();
            batch.insert(backend.as_str(), row);
            db.commit(batch).map_err(failed)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use seawall_actors::breaker::BreakerState;

    use super::*;

    fn saved(sequence: u64) -> SavedBreaker {
        SavedBreaker {
            format: FORMAT,
            sequence,
            state: BreakerState::Open,
            generation: sequence,
            failure_count: 5,
            remaining_wait: std::time::Duration::from_secs(60),
            attempts: 1,
            manual: None,
            half_open_attempts: 0,
            history: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_state_survives_reopening_and_an_older_one_never_replaces_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let name = BackendName::from("graph");
        {
            let store = SledStateStore::open(dir.path()).expect("opens");
            assert_eq!(store.load(&name).await, Ok(None));
            assert_eq!(store.save(&name, saved(2)).await, Ok(()));
            assert_eq!(store.save(&name, saved(1)).await, Err(StoreError::Stale { held: 2 }));
        }
        let store = SledStateStore::open(dir.path()).expect("opens again");
        assert_eq!(store.load(&name).await, Ok(Some(saved(2))));
    }
}
