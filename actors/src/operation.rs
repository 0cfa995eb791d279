//! What can be asked for: writes with an operation id and a version, reads, and the answers to both.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backend::BackendName;
use crate::fallback::{DegradationLevel, Mode};
use crate::record::{Embedding, Key, Properties, Record, Relation, value_weight};

/// Names one operation; the idempotency key. Two writes with one id have the effect of one.
///
/// New ids are UUIDs of version 7, so they sort by the time of their making. A caller may bring its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(Uuid);

impl OperationId {
    /// A new, unique id.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as 128 bits, for adapters that store it.
    #[must_use]
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }
}

impl From<Uuid> for OperationId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl From<u128> for OperationId {
    fn from(id: u128) -> Self {
        Self(Uuid::from_u128(id))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Orders the writes of one runtime: a write that was accepted later has a higher version.
///
/// A counter, reserved durably in blocks, never a clock. Per key it only grows, over restarts too; a backend
/// applies a write only over a lower version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Which of the owed writes are drained first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Priority {
    /// After everything else.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before everything else. The writes of one key keep their order whatever their priorities.
    High,
}

/// One change to one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// The record becomes this one, whatever was there. Shared with the cache, and so not copied for it.
    Put(Arc<Record>),
    /// The properties are merged over those that are there (`null` removes one); embedding and relations
    /// stay. Where there is no record, one with just these properties comes to be: an update that was
    /// accepted can then be replayed without ever failing for what it does not find.
    Merge {
        /// The record to change.
        key: Key,
        /// What changes.
        properties: Properties,
    },
    /// The record is gone.
    Delete {
        /// The record to delete.
        key: Key,
    },
}

impl Change {
    /// [`Change::Put`] of this record.
    #[must_use]
    pub fn put(record: impl Into<Arc<Record>>) -> Self {
        Self::Put(record.into())
    }

    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(record) => &record.key,
            Self::Merge { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Whether the change says all about the record, so that earlier changes of the key no longer matter.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !matches!(self, Self::Merge { .. })
    }

    /// What the record becomes, when it was `before`.
    #[must_use]
    pub fn apply_to(&self, before: Option<Record>) -> Option<Record> {
        match self {
            Self::Put(record) => Some(Record::clone(record)),
            Self::Delete { .. } => None,
            Self::Merge { key, properties } => {
                let mut record = before.unwrap_or_else(|| Record::new(key.clone()));
                record.properties.merge(properties);
                Some(record)
            }
        }
    }

    /// About how many bytes the change takes, for limits.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Put(record) => record.weight(),
            Self::Delete { key } => key.as_str().len(),
            Self::Merge { key, properties } => {
                key.as_str().len()
                    + properties.iter().map(|(name, value)| name.len() + value_weight(value)).sum::<usize>()
            }
        }
    }
}

/// A write as a caller gives it: one change, or several that are applied together or not at all.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its id; a write with the id of one that was accepted earlier gets that one's outcome.
    pub operation: OperationId,
    /// The changes, at most one a key.
    pub changes: Vec<Change>,
    /// How soon it is drained, should it have to be queued.
    pub priority: Priority,
    /// How long the caller waits for the receipt; `None` is the gateway's default (30 s).
    pub timeout: Option<Duration>,
}

impl Write {
    fn of(changes: Vec<Change>) -> Self {
        Self { operation: OperationId::generate(), changes, priority: Priority::default(), timeout: None }
    }

    /// Stores a record, over whatever was there.
    #[must_use]
    pub fn store(record: Record) -> Self {
        Self::of(vec![Change::put(record)])
    }

    /// Stores several records, all or none.
    #[must_use]
    pub fn store_batch(records: impl IntoIterator<Item = Record>) -> Self {
        Self::of(records.into_iter().map(Change::put).collect())
    }

    /// Merges properties into a record; see [`Change::Merge`].
    #[must_use]
    pub fn update(key: impl Into<Key>, properties: Properties) -> Self {
        Self::of(vec![Change::Merge { key: key.into(), properties }])
    }

    /// Deletes a record.
    #[must_use]
    pub fn delete(key: impl Into<Key>) -> Self {
        Self::of(vec![Change::Delete { key: key.into() }])
    }

    /// With this operation id instead of a new one.
    #[must_use]
    pub fn with_operation(mut self, operation: OperationId) -> Self {
        self.operation = operation;
        self
    }

    /// With this priority.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// With this time to wait for the receipt.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// About how many bytes the changes take.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.changes.iter().map(Change::weight).sum()
    }
}

impl From<Record> for Write {
    fn from(record: Record) -> Self {
        Self::store(record)
    }
}

/// How an acknowledged write is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Held {
    /// In every required backend.
    Committed,
    /// Durable in the journal, on its way to the backends that still owe it.
    Queued {
        /// Which those are.
        owing: Vec<BackendName>,
    },
    /// In memory only; lost if this process dies. Only the mode `MEMORY_ONLY` answers so.
    Volatile {
        /// The backends that still owe it.
        owing: Vec<BackendName>,
    },
}

/// The acknowledgement of a write, which says what it is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The operation.
    pub operation: OperationId,
    /// The version that the write was given.
    pub version: Version,
    /// How it is held now.
    pub held: Held,
}

/// What became of an operation, as [`Request::Outcome`](crate::gateway::Request::Outcome) tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// In every required backend.
    Committed(Version),
    /// Accepted, still owed to these backends.
    Pending {
        /// Its version.
        version: Version,
        /// The backends that owe it.
        owing: Vec<BackendName>,
        /// Whether it would survive a crash.
        durable: bool,
    },
    /// It is being undone; these backends still owe the compensation.
    Compensating {
        /// Its version.
        version: Version,
        /// The backends that owe the compensation.
        owing: Vec<BackendName>,
    },
    /// Undone: no required backend has it. Where there is one required backend, and so little in the journal, this may
    /// be an earlier try of an operation that was sent again and never acknowledged.
    RolledBack(Version),
    /// A backend will never take it; it waits among the dead letters for a person.
    DeadLetter {
        /// Its version.
        version: Version,
        /// The backends that refused it.
        refused_by: Vec<BackendName>,
    },
    /// It was a dead letter, and a person discarded it.
    Discarded(Version),
    /// Not known: never accepted, or finished too long ago to be remembered.
    NotFound,
}

/// Which way relations are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// From a record to what it points to.
    #[default]
    Outgoing,
    /// From a record to what points to it.
    Incoming,
    /// Both.
    Both,
}

/// A walk along relations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traversal {
    /// Where it starts.
    pub from: Key,
    /// The kinds of relation to follow; empty follows all.
    pub kinds: Vec<Arc<str>>,
    /// How many steps at the most, 1 to [`Limits::depth`](crate::limits::Limits::depth).
    pub depth: u32,
    /// Which way.
    pub direction: Direction,
    /// How many records at the most, nearest first.
    pub limit: usize,
}

impl Traversal {
    /// One step along all outgoing relations, at most 100 records.
    pub fn from(key: impl Into<Key>) -> Self {
        Self { from: key.into(), kinds: Vec::new(), depth: 1, direction: Direction::Outgoing, limit: 100 }
    }

    /// Following relations of this kind (too).
    #[must_use]
    pub fn along(mut self, kind: impl Into<Arc<str>>) -> Self {
        self.kinds.push(kind.into());
        self
    }

    /// At most this many steps.
    #[must_use]
    pub fn depth(mut self, depth: u32) -> Self {
        self.depth = depth;
        self
    }

    /// In this direction.
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// At most this many records.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// What a search looks near to.
#[derive(Clone, Debug, PartialEq)]
pub enum Near {
    /// A point in the vector space.
    Embedding(Embedding),
    /// Where the record of this key lies. When vector search is lost, its neighbours in the graph can stand in.
    Key(Key),
}

/// A nearest-neighbour search.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// Near to what.
    pub near: Near,
    /// Only records whose properties equal these.
    pub filter: Properties,
    /// How many records at the most.
    pub limit: usize,
}

impl Search {
    /// The ten records nearest to this point.
    pub fn near(embedding: impl Into<Embedding>) -> Self {
        Self { near: Near::Embedding(embedding.into()), filter: Properties::new(), limit: 10 }
    }

    /// The ten records nearest to this record.
    pub fn like(key: impl Into<Key>) -> Self {
        Self { near: Near::Key(key.into()), filter: Properties::new(), limit: 10 }
    }

    /// Only records with this property.
    #[must_use]
    pub fn filter(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.filter.set(name, value);
        self
    }

    /// At most this many records.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// One record that a search or a traversal found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// The record.
    pub record: Record,
    /// Its version.
    pub version: Version,
    /// For a search: the similarity in the backend's metric, higher is nearer. For a traversal: the number of
    /// steps from the start, lower is nearer.
    pub score: f32,
    /// For a traversal: the relation that was followed last.
    pub via: Option<Relation>,
}

/// Where an answer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A backend, asked just now.
    Backend(BackendName),
    /// A write that is accepted and still owed to a backend: newer than what the backends hold.
    Owed,
    /// The fallback cache.
    Cache {
        /// How long ago the entry was known to be current.
        age: Duration,
    },
}

/// The answer to a retrieve: the record or its absence, and what that is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Retrieved {
    /// The record; `None` when there is none, or it was deleted.
    pub record: Option<Record>,
    /// Its version; `None` when the key was never written.
    pub version: Option<Version>,
    /// Where this was read.
    pub source: Source,
    /// The newest write to the key is known, but not what it was merged into: the backends that hold the rest
    /// cannot be reached. Only what was acknowledged here is shown.
    pub partial: bool,
    /// Nobody could be asked whether something newer exists.
    pub stale: bool,
}

/// The answer to a search or a traversal, and what it is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What was found, best first.
    pub hits: Vec<Hit>,
    /// Where.
    pub source: Source,
    /// Why this is less than was asked for, if it is.
    pub degraded: Option<Degraded>,
    /// How many accepted writes the answering backend had not been given when it was asked, or has not been given yet.
    /// Hits may be older than these writes; without any, and from a required backend, they are not.
    pub pending: usize,
}

/// In what way an answer is less than what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// The level at which the answer was given.
    pub level: DegradationLevel,
    /// What stood in for what was asked.
    pub served_by: StandIn,
}

/// What stands in for a lost capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StandIn {
    /// A vector search near the start of the traversal.
    VectorSearch,
    /// The graph neighbours of the record that the search was to be near to.
    Neighbours,
    /// An exact match of the filter, unordered.
    ExactMatch,
}

/// The state of a running Seawall in brief.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The fallback mode in force.
    pub mode: Mode,
    /// The degradation level.
    pub level: DegradationLevel,
    /// Every backend.
    pub backends: Vec<BackendStatus>,
    /// Accepted writes that some backend still owes, compensations and dead letters included.
    pub owed: usize,
    /// Bytes that those take.
    pub owed_bytes: usize,
    /// Dead letters among them.
    pub dead_letters: usize,
    /// Operations that are being worked on.
    pub in_flight: usize,
    /// Whether the journal takes writes.
    pub journal_healthy: bool,
}

/// The state of one backend in brief.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Which.
    pub name: BackendName,
    /// The state of its breaker.
    pub breaker: crate::breaker::BreakerState,
    /// Writes that it owes.
    pub owed: usize,
}
