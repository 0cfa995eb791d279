//! A store of your own behind Seawall: everything that an adapter has to do, in one `impl`.
//!
//! ```sh
//! cargo run --release --example custom_backend
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use seawall::Runtime;
use seawall::backend::{Applied, Backend, BackendError, BackendName, Capabilities, Fence, FencedWrite, Health, Stored};
use seawall::operation::{Change, Hit, OperationId, Version};
use seawall::record::{Key, Properties, Record};

/// A store: here a map; in earnest a connection pool. A database keeps the version in a column beside the record.
#[derive(Clone, Default)]
struct Shelf {
    boxes: Arc<Mutex<HashMap<Key, Stored>>>,
}

impl Shelf {
    /// In earnest: a connection or a transaction. What goes wrong there is told by kind: `BackendError::transient`
    /// for what may work later, `permanent` for what never will, `unknown` for a lost reply.
    fn open(&self) -> Result<MutexGuard<'_, HashMap<Key, Stored>>, BackendError> {
        Ok(self.boxes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Backend for Shelf {
    fn name(&self) -> BackendName {
        "shelf".into() // it appears in the journal: do not change it while writes are owed
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exact_match: true, ..Capabilities::default() }
    }

    /// The one rule: apply a change only over an older version, and keep the version, also of what is deleted.
    /// Then a replay or a late write does no harm. In SQL: `UPDATE … WHERE version < $1`, all in one transaction.
    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let mut boxes = self.open()?;
        let mut applied = Applied::default();
        for change in write.changes.iter() {
            let held = boxes.get(change.key());
            let version = held.map_or(Version(0), |stored| stored.version);
            if write.passes(version) {
                let before = held.and_then(|stored| stored.record.clone());
                let stored = Stored { version: write.version, record: change.apply_to(before) };
                boxes.insert(change.key().clone(), stored);
            } else {
                applied.superseded_by = applied.superseded_by.max(Some(version));
            }
        }
        Ok(applied)
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        let boxes = self.open()?;
        Ok(keys.iter().map(|key| boxes.get(key).cloned()).collect())
    }

    async fn find(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        let boxes = self.open()?;
        let fits = |record: &Record| filter.iter().all(|(name, value)| record.properties.get(name) == Some(value));
        let there = boxes.values().filter_map(|stored| Some((stored.record.clone()?, stored.version)));
        let hits = there.filter(|(record, _)| fits(record)).take(limit);
        Ok(hits.map(|(record, version)| Hit { record, version, score: 1.0, via: None }).collect())
    }

    /// Should touch what reads and writes touch: `SELECT 1` says little.
    async fn probe(&self) -> Result<Health, BackendError> {
        self.open().map(|_| Health::Healthy)
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Ok(self.open()?.values().map(|stored| stored.version).max().unwrap_or_default())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let shelf = Shelf::default();
    let runtime = Runtime::builder().data_dir(dir.path()).backend(shelf.clone()).start().await?;
    let handle = runtime.handle();

    let stored = handle.store(Record::new("pump").with("room", "cellar").with("on", false)).await?;
    let updated = handle.update("pump", Properties::new().with("on", true)).await?;
    let read = handle.retrieve("pump").await?;
    println!("the pump is {}, says {:?}, as {}", stored_words(&read.record), read.source, updated.version);
    assert_eq!(read.record, Some(Record::new("pump").with("room", "cellar").with("on", true)));

    // What the rule is good for: the first write comes once more, late, as after a lost reply.
    let late = FencedWrite {
        operation: OperationId::generate(),
        version: stored.version,
        fence: Fence::Write,
        changes: Arc::new([Change::put(Record::new("pump").with("on", false))]),
    };
    let applied = shelf.apply(&late).await?;
    assert_eq!(applied.superseded_by, Some(updated.version));
    println!("a late {} changes nothing: {} is there", stored.version, updated.version);

    // A delete leaves its version behind, for the same reason.
    let deleted = handle.delete("pump").await?;
    shelf.apply(&late).await?;
    let held = shelf.read(&["pump".into()]).await?;
    assert_eq!(held, [Some(Stored { version: deleted.version, record: None })]);
    assert_eq!(handle.retrieve("pump").await?.record, None);
    println!("deleted as {}, and a late write does not bring it back", deleted.version);

    runtime.shutdown().await;
    Ok(())
}

fn stored_words(record: &Option<Record>) -> &'static str {
    match record.as_ref().and_then(|record| record.properties.get("on")) {
        Some(on) if on == true => "on",
        Some(_) => "off",
        None => "not there",
    }
}
