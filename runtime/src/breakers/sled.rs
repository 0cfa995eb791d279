//! Breaker states on sled, in a small database of its own.

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

    /// Every byte is flipped, every length cut. sled forgets a damaged end without a word, so an older state may come
    /// out, or none: then the breaker starts closed and learns again. What never comes out is a state that nobody
    /// saved, or a panic.
    #[test]
    fn damage_is_an_error_or_an_older_state_and_never_one_that_nobody_saved() {
        let original = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let names = [BackendName::from("graph"), BackendName::from("vector")];
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        {
            let store = SledStateStore::open(original.path()).expect("opens");
            for sequence in 1..=3 {
                for name in &names {
                    assert_eq!(runtime.block_on(store.save(name, saved(sequence))), Ok(()));
                }
            }
        }
        let stride = std::env::var("SEAWALL_SWEEP_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(1);
        let mut cases = Vec::new();
        for file in ["db", "conf"] {
            let length = std::fs::metadata(original.path().join(file)).expect("is there").len() as usize;
            cases.extend((0..length).step_by(stride).flat_map(|at| [(file, at, true), (file, at, false)]));
        }
        // Most of a case is waiting for sled's threads.
        std::thread::scope(|scope| {
            for part in cases.chunks(cases.len().div_ceil(8)) {
                let (original, names) = (original.path(), &names);
                scope.spawn(move || {
                    for (file, at, flip) in part {
                        harm_and_load(original, names, file, *at, *flip);
                    }
                });
            }
        });
    }

    fn harm_and_load(original: &Path, names: &[BackendName], file: &str, at: usize, flip: bool) {
        let copy = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        std::fs::create_dir(copy.path().join("blobs")).expect("is made");
        for name in ["db", "conf"] {
            let mut bytes = std::fs::read(original.join(name)).expect("is there");
            match flip {
                true if name == file => bytes[at] ^= 0x41,
                false if name == file => bytes.truncate(at),
                _ => {}
            }
            std::fs::write(copy.path().join(name), bytes).expect("writes");
        }
        let Ok(store) = SledStateStore::open(copy.path()) else { return };
        let db = store.db.lock().expect("nobody panicked");
        for name in names {
            match held(&db, name) {
                Ok(None) | Err(StoreError::Unreadable(_) | StoreError::Failed(_)) => {}
                Ok(Some(held)) => assert!((1..=3).any(|n| held == saved(n)), "{file} at {at}: {held:?}"),
                Err(error) => panic!("{file} at {at}: {error}"),
            }
        }
    }
}
