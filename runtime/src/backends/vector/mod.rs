//! An embedded vector store: exact nearest-neighbour search over one matrix in memory.
//!
//! A search compares with every embedding, so that its answer is exact and its time grows with their number; see
//! [`VectorBackend`] for how much that is.

mod matrix;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use seawall_actors::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, FencedWrite, Health, Role, Stored,
};
use seawall_actors::operation::{Hit, Near, Search, Version};
use seawall_actors::record::{Embedding, Key, Properties};
use serde::{Deserialize, Serialize};

use self::matrix::VectorIndex;
pub(super) use self::matrix::check_embedding;
use super::records::{RecordStore, Table, matches};
use super::{StoreOpenError, open_blocking};
use crate::guard::GuardOptions;

/// How near two embeddings are. Higher is nearer in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The cosine of the angle between them, -1 to 1; 0 when one has no length. The default.
    #[default]
    Cosine,
    /// Their dot product.
    Dot,
    /// Their Euclidean distance, negated: 0 for the same point, less for others.
    Euclidean,
}

/// How a [`VectorBackend`] presents itself and compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VectorConfig {
    /// Its name. Default `vector`.
    pub name: BackendName,
    /// Whether writes need it. Default: they do.
    pub role: Role,
    /// How near is measured. Default [`Metric::Cosine`]. May change from one opening to the next.
    pub metric: Metric,
    /// Dimensions of every embedding. Default `None`: those of the first that is stored, for as long as the store
    /// holds any.
    pub dimension: Option<usize>,
}

impl Default for VectorConfig {
    fn default() -> Self {
        Self { name: "vector".into(), role: Role::Required, metric: Metric::default(), dimension: None }
    }
}

/// A vector store in the process: whole records, found by where they lie and by their properties.
///
/// Records without an embedding are stored too, and never found by a search. An embedding of another dimension is
/// a permanent error with the code `wrong_dimension`, one with a component that is no number `not_finite`; a search
/// near a key without an embedding is one with the code `no_embedding`. Of equally near records the one with the
/// lower key is first.
///
/// Embeddings are in memory twice, in their records and in the matrix that is searched: 3 KB each at 384 dimensions.
pub struct VectorBackend {
    config: VectorConfig,
    store: RecordStore<VectorIndex>,
}

impl VectorBackend {
    /// A store in memory, gone when it is dropped. It answers at once and uses no thread, also while time is paused
    /// (up to 20 000 records).
    #[must_use]
    pub fn in_memory(config: VectorConfig) -> Self {
        let store = RecordStore::in_memory(VectorIndex::new(config.metric, config.dimension));
        Self { config, store }
    }

    /// Opens the store in this directory, or makes one in it. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`StoreOpenError`].
    pub async fn open(dir: impl AsRef<Path>, config: VectorConfig) -> Result<Self, StoreOpenError> {
        open_blocking(dir.as_ref().to_owned(), |dir| Self::open_blocking(dir, config)).await
    }

    /// The same from a thread that may block.
    ///
    /// # Errors
    /// See [`StoreOpenError`].
    pub fn open_blocking(dir: impl Into<PathBuf>, config: VectorConfig) -> Result<Self, StoreOpenError> {
        Self::open_with(dir.into(), config, GuardOptions::rewriting())
    }

    pub(crate) fn open_with(dir: PathBuf, config: VectorConfig, options: GuardOptions) -> Result<Self, StoreOpenError> {
        let store = RecordStore::open(dir, "vector", options, VectorIndex::new(config.metric, config.dimension))?;
        Ok(Self { config, store })
    }

    /// Finishes the writes that wait and lets go of the directory; writes and probes fail from then on. Dropping
    /// the store does the same some time later.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn close(&self) -> Result<(), BackendError> {
        self.store.close().await
    }
}

impl fmt::Debug for VectorBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VectorBackend").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for VectorBackend {
    fn name(&self) -> BackendName {
        self.config.name.clone()
    }

    fn role(&self) -> Role {
        self.config.role
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { vector_search: true, exact_match: true, ..Capabilities::default() }
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.store.apply(write).await
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        Ok(self.store.read(keys))
    }

    async fn search(&self, search: &Search) -> Result<Vec<Hit>, BackendError> {
        let search = search.clone();
        self.store.scan(move |table| nearest(table, &search)).await?
    }

    async fn find(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        let filter = filter.clone();
        self.store.scan(move |table| table.find(&filter, limit)).await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        self.store.probe().await
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Ok(self.store.table().newest())
    }

    async fn sweep(&self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        self.store.sweep(older_than, at_most).await
    }
}

fn nearest(table: &Table<VectorIndex>, search: &Search) -> Result<Vec<Hit>, BackendError> {
    let (point, own) = match &search.near {
        Near::Embedding(embedding) => (embedding, None),
        Near::Key(key) => (embedding_of(table, key)?, Some(key)),
    };
    check_embedding(point, table.index().dimension())?;
    let keep = |key: &Key| {
        let found = table.record(key).is_some_and(|(record, _)| matches(record, &search.filter));
        found && Some(key) != own
    };
    let found = table.index().nearest(point.as_slice(), search.limit, keep);
    let hits = found.into_iter().filter_map(|(key, score)| {
        let (record, version) = table.record(key)?;
        Some(Hit { record: record.clone(), version, score, via: None })
    });
    Ok(hits.collect())
}

fn embedding_of<'a>(table: &'a Table<VectorIndex>, key: &Key) -> Result<&'a Embedding, BackendError> {
    let embedding = table.record(key).and_then(|(record, _)| record.embedding.as_ref());
    embedding
        .ok_or_else(|| BackendError::permanent("the record to search near has no embedding").with_code("no_embedding"))
}
