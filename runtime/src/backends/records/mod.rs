//! What the embedded stores have in common: whole records under a fence, in memory to be read and searched, and in
//! a guarded database to survive.
//!
//! ```text
//! apply ──► queue ──► owner ──► plan (table: fence, merge) ──► rows (one batch, one sync) ──► install ──► reply
//! read, search ─────────────────────────────────────────────────────► table (never waits for the disk)
//! ```
//!
//! | when | then |
//! |---|---|
//! | a commit fails | its writes answer `Unknown`; the next use opens the database anew and reads everything again |
//! | the reopen fails | `Transient` until it succeeds, tried again after 100 ms, doubling up to 10 s; a probe tries at once |
//! | rows can be read and not written | writes answer `ReadOnly`, a probe says so, reads go on |
//! | the process dies | what was acknowledged is there at the next open |
//! | a caller goes away | its write is done all the same |
//!
//! A delete leaves a tombstone: a version is what keeps an old write from coming back. Tombstones cost their key and
//! some 50 bytes; [`sweep`](RecordStore::sweep) removes those that nothing can be older than.

mod rows;
mod table;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(feature = "neo4j")]
pub(super) use table::nests_at_most;
pub(super) use table::{Index, Table, matches};
#[cfg(feature = "qdrant")]
pub(super) use table::{admit_nesting, after};

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use seawall_actors::backend::{Applied, BackendError, FencedWrite, Health, Stored};
use seawall_actors::operation::Version;
use seawall_actors::record::Key;

use self::writer::{Job, Owner, Writer};
use super::StoreOpenError;
use crate::guard::GuardOptions;

/// Up to how many records a scan is done at once, in about a millisecond; a longer one goes to the blocking pool.
const SCAN_INLINE: usize = 20_000;

/// A store of records with one kind of index.
pub(super) struct RecordStore<I: Index> {
    table: Arc<RwLock<Table<I>>>,
    /// Without one, the store is in memory only.
    writer: Option<Arc<Writer<I>>>,
}

impl<I: Index> RecordStore<I> {
    pub(super) fn in_memory(index: I) -> Self {
        Self { table: Arc::new(RwLock::new(Table::new(index))), writer: None }
    }

    /// Opens the store in this directory, or makes one. Blocks.
    pub(super) fn open(
        dir: PathBuf,
        kind: &'static str,
        options: GuardOptions,
        index: I,
    ) -> Result<Self, StoreOpenError> {
        let owner = Owner::open(dir, kind, options, index)?;
        Ok(Self { table: owner.table(), writer: Some(Arc::new(Writer::new(owner))) })
    }

    /// The records, to be looked at without awaiting.
    pub(super) fn table(&self) -> RwLockReadGuard<'_, Table<I>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at all records.
    pub(super) async fn scan<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Table<I>) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        if self.table().len() <= SCAN_INLINE {
            return Ok(look(&self.table()));
        }
        let table = Arc::clone(&self.table);
        tokio::task::spawn_blocking(move || look(&table.read().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|_| BackendError::transient("the scan was cut off"))
    }

    pub(super) async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        match &self.writer {
            Some(writer) => writer.ask(|reply| Job::Apply(write.clone(), reply)).await,
            None => {
                let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
                let mut plan = table.plan();
                let applied = plan.add(write)?;
                let changes = plan.into_changes();
                table.install(changes);
                Ok(applied)
            }
        }
    }

    pub(super) fn read(&self, keys: &[Key]) -> Vec<Option<Stored>> {
        let table = self.table();
        keys.iter().map(|key| table.get(key).cloned()).collect()
    }

    pub(super) async fn probe(&self) -> Result<Health, BackendError> {
        match &self.writer {
            Some(writer) => writer.ask(Job::Probe).await,
            None => Ok(Health::Healthy),
        }
    }

    /// Forgets deletes below a version, and gives how many.
    pub(super) async fn sweep(&self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        match &self.writer {
            Some(writer) => writer.ask(|reply| Job::Sweep(older_than, at_most, reply)).await,
            None => {
                let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
                let keys = table.tombstones(older_than, at_most);
                let swept = keys.len();
                table.install(keys.into_iter().map(|key| (key, None)).collect());
                Ok(swept)
            }
        }
    }

    /// Finishes what waits and lets go of the directory.
    pub(super) async fn close(&self) -> Result<(), BackendError> {
        match &self.writer {
            Some(writer) => writer.ask(Job::Close).await,
            None => Ok(()),
        }
    }
}
