//! An embedded graph store: relations both ways, walked breadth first.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use seawall_actors::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, FencedWrite, Health, Role, Stored,
};
use seawall_actors::operation::{Direction, Hit, Traversal, Version};
use seawall_actors::record::{Key, Properties, Record, Relation};
use serde::{Deserialize, Serialize};

use super::records::{Index, RecordStore, Table};
use super::{StoreOpenError, open_blocking};
use crate::guard::GuardOptions;

/// How a [`GraphBackend`] presents itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphConfig {
    /// Its name. Default `graph`.
    pub name: BackendName,
    /// Whether writes need it. Default: they do.
    pub role: Role,
}

impl Default for GraphConfig {
    fn default() -> Self {
        Self { name: "graph".into(), role: Role::Required }
    }
}

/// A graph store in the process: whole records, walked along their relations and found by their properties.
///
/// A walk goes by the relations that live records hold. A key without a record ends it, except as its start. Of the
/// ways to a record the one that is found first counts, with outgoing relations before incoming ones; its last
/// relation is in [`Hit::via`], which for an incoming one points back to where the walk came from.
pub struct GraphBackend {
    config: GraphConfig,
    store: RecordStore<GraphIndex>,
}

impl GraphBackend {
    /// A store in memory, gone when it is dropped. It answers at once and uses no thread, also while time is paused.
    #[must_use]
    pub fn in_memory(config: GraphConfig) -> Self {
        Self { config, store: RecordStore::in_memory(GraphIndex::default()) }
    }

    /// Opens the store in this directory, or makes one in it. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`StoreOpenError`].
    pub async fn open(dir: impl AsRef<Path>, config: GraphConfig) -> Result<Self, StoreOpenError> {
        open_blocking(dir.as_ref().to_owned(), |dir| Self::open_blocking(dir, config)).await
    }

    /// The same from a thread that may block.
    ///
    /// # Errors
    /// See [`StoreOpenError`].
    pub fn open_blocking(dir: impl Into<PathBuf>, config: GraphConfig) -> Result<Self, StoreOpenError> {
        Self::open_with(dir.into(), config, GuardOptions::rewriting())
    }

    pub(crate) fn open_with(dir: PathBuf, config: GraphConfig, options: GuardOptions) -> Result<Self, StoreOpenError> {
        let store = RecordStore::open(dir, "graph", options, GraphIndex::default())?;
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

impl fmt::Debug for GraphBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphBackend").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for GraphBackend {
    fn name(&self) -> BackendName {
        self.config.name.clone()
    }

    fn role(&self) -> Role {
        self.config.role
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { graph_traversal: true, exact_match: true, ..Capabilities::default() }
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.store.apply(write).await
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        Ok(self.store.read(keys))
    }

    async fn traverse(&self, traversal: &Traversal) -> Result<Vec<Hit>, BackendError> {
        let traversal = traversal.clone();
        self.store.scan(move |table| Walk::new(table, &traversal).run()).await
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

/// Who points to a key, and by what kind of relation. (Where a record points to, it says itself.)
#[derive(Default)]
struct GraphIndex {
    incoming: HashMap<Key, BTreeSet<(Key, Arc<str>)>>,
}

impl Index for GraphIndex {
    type Draft = ();

    fn emptied(&self) -> Self {
        Self::default()
    }

    fn draft(&self) {}

    fn admit((): &mut (), _: &Record) -> Result<(), BackendError> {
        Ok(())
    }

    fn replace(&mut self, key: &Key, before: Option<&Record>, after: Option<&Record>) {
        for relation in before.into_iter().flat_map(|record| &record.relations) {
            if let Some(from) = self.incoming.get_mut(&relation.to) {
                from.remove(&(key.clone(), Arc::clone(&relation.kind)));
                if from.is_empty() {
                    self.incoming.remove(&relation.to);
                }
            }
        }
        for relation in after.into_iter().flat_map(|record| &record.relations) {
            let from = self.incoming.entry(relation.to.clone()).or_default();
            from.insert((key.clone(), Arc::clone(&relation.kind)));
        }
    }
}

/// A walk that is going on.
struct Walk<'a> {
    table: &'a Table<GraphIndex>,
    traversal: &'a Traversal,
    seen: HashSet<&'a Key>,
    hits: Vec<Hit>,
}

impl<'a> Walk<'a> {
    fn new(table: &'a Table<GraphIndex>, traversal: &'a Traversal) -> Self {
        Self { table, traversal, seen: HashSet::from([&traversal.from]), hits: Vec::new() }
    }

    fn run(mut self) -> Vec<Hit> {
        let mut frontier = vec![&self.traversal.from];
        for step in 1..=self.traversal.depth {
            let mut reached = Vec::new();
            for from in frontier {
                self.step(from, step, &mut reached);
                if self.hits.len() >= self.traversal.limit {
                    return self.hits;
                }
            }
            if reached.is_empty() {
                break;
            }
            frontier = reached;
        }
        self.hits
    }

    /// Follows what leads away from one key.
    fn step(&mut self, from: &'a Key, step: u32, reached: &mut Vec<&'a Key>) {
        let table = self.table;
        if self.traversal.direction != Direction::Incoming
            && let Some((record, _)) = table.record(from)
        {
            for relation in &record.relations {
                self.reach(&relation.to, &relation.kind, &relation.to, step, reached);
            }
        }
        if self.traversal.direction != Direction::Outgoing
            && let Some(incoming) = table.index().incoming.get(from)
        {
            for (key, kind) in incoming {
                self.reach(key, kind, from, step, reached);
            }
        }
    }

    fn reach(&mut self, key: &'a Key, kind: &Arc<str>, points_to: &Key, step: u32, reached: &mut Vec<&'a Key>) {
        let kinds = &self.traversal.kinds;
        if self.hits.len() >= self.traversal.limit || !(kinds.is_empty() || kinds.contains(kind)) {
            return;
        }
        if let Some((record, version)) = self.table.record(key)
            && self.seen.insert(key)
        {
            let via = Relation { kind: Arc::clone(kind), to: points_to.clone() };
            // A walk is far shorter than the 2^24 steps that an f32 counts exactly.
            self.hits.push(Hit { record: record.clone(), version, score: step as f32, via: Some(via) });
            reached.push(key);
        }
    }
}
