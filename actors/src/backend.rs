//! The port to a store: what an adapter implements, and how its errors are judged.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::operation::{Change, Hit, OperationId, Search, Traversal, Version};
use crate::record::{Key, Properties, Record};

/// The name of a backend, unique in a runtime: it appears in the journal, in metrics and in events.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackendName(Arc<str>);

impl BackendName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Arc<str>>> From<T> for BackendName {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a write needs this backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A write is committed only when this backend has it.
    #[default]
    Required,
    /// A cache or a copy: it is told of every write, and its failure never fails one.
    BestEffort,
}

/// What a backend can be asked for, beside storing and reading whole records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Capability {
    /// Nearest-neighbour search over embeddings.
    VectorSearch,
    /// Walking along relations.
    GraphTraversal,
    /// Finding records by equal properties.
    ExactMatch,
}

/// A set of [`Capability`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// Can do [`Backend::search`].
    pub vector_search: bool,
    /// Can do [`Backend::traverse`].
    pub graph_traversal: bool,
    /// Can do [`Backend::find`].
    pub exact_match: bool,
}

impl Capabilities {
    /// Whether the set has this one.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        match capability {
            Capability::VectorSearch => self.vector_search,
            Capability::GraphTraversal => self.graph_traversal,
            Capability::ExactMatch => self.exact_match,
        }
    }
}

/// What a backend holds under a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The version of the write that made it so.
    pub version: Version,
    /// The record, or `None` where a delete left a tombstone.
    pub record: Option<Record>,
}

/// Over which versions a write may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fence {
    /// Over any lower version: a write, or its replay.
    Write,
    /// Over any version up to and including its own: a compensation, which takes back the write of the same
    /// version, whether that one arrived or is still on its way. What the compensation writes keeps that
    /// version, so the write it undoes cannot land after it.
    Compensation,
}

/// A write with the fence under which a backend has to apply it.
///
/// For each change alone: compare the version that the backend holds for the key (0 when it has never seen it;
/// a tombstone counts) with [`version`](Self::version); skip the change when the fence forbids it, else apply it
/// and hold the new version. A delete leaves a tombstone with the version. All of that in one atomic step.
#[derive(Clone, Debug)]
pub struct FencedWrite {
    /// The operation, for backends that can store it.
    pub operation: OperationId,
    /// The version that the keys get.
    pub version: Version,
    /// Over what it may go.
    pub fence: Fence,
    /// The changes, each to another key; all are applied in one atomic step.
    pub changes: Arc<[Change]>,
}

impl FencedWrite {
    /// Whether this write goes over what a backend holds.
    #[must_use]
    pub fn passes(&self, held: Version) -> bool {
        match self.fence {
            Fence::Write => held < self.version,
            Fence::Compensation => held <= self.version,
        }
    }
}

/// What a backend did with a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The highest version that stood in the way of a change, if any did. A version of a later write is no
    /// error: the write is superseded.
    pub superseded_by: Option<Version>,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Reads and writes work.
    Healthy,
    /// Reads work; writes do not (a full or read-only disk).
    ReadOnly,
}

/// A store behind Seawall.
///
/// Calls may run at the same time, and a caller may stop waiting for one at any moment (its future is dropped).
/// An adapter needs no timeouts, retries or breaker of its own.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> BackendName;

    /// Whether writes need it. Default: they do.
    fn role(&self) -> Role {
        Role::Required
    }

    /// What it can be asked for. Default: storing and reading only.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Applies a write under its fence. Applying it again changes nothing.
    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError>;

    /// How many owed writes a drain gives it in one call at the most; see [`apply_batch`](Self::apply_batch). Default 1.
    fn max_batch(&self) -> usize {
        1
    }

    /// Applies several writes, each under its own fence and independent of the others: no two are about the same key.
    /// For a drain, where that costs less than a call for each. Gives an answer for each, in their order, or an error
    /// that is about all of them; a single write of them may fare better then. Default: one after another.
    async fn apply_batch(&self, writes: &[FencedWrite]) -> Result<Vec<Result<Applied, BackendError>>, BackendError> {
        let mut answers = Vec::with_capacity(writes.len());
        for write in writes {
            answers.push(self.apply(write).await);
        }
        Ok(answers)
    }

    /// What is held under each of these keys, in their order; `None` for a key that was never written.
    /// Tombstones are told. Also the pre-image from which a compensation is made.
    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError>;

    /// The nearest records with an embedding, best first.
    async fn search(&self, _search: &Search) -> Result<Vec<Hit>, BackendError> {
        Err(BackendError::permanent("this backend has no vector search"))
    }

    /// The records that a walk reaches, without its start, nearest first.
    async fn traverse(&self, _traversal: &Traversal) -> Result<Vec<Hit>, BackendError> {
        Err(BackendError::permanent("this backend has no graph traversal"))
    }

    /// The records whose properties equal all of these, at most `limit`.
    async fn find(&self, _filter: &Properties, _limit: usize) -> Result<Vec<Hit>, BackendError> {
        Err(BackendError::permanent("this backend has no exact match"))
    }

    /// Whether it is well. Should touch what reads and writes touch, and cost little.
    async fn probe(&self) -> Result<Health, BackendError>;

    /// The highest version that it holds for any key, so that a runtime whose data directory is new does not
    /// give out versions that the fence would refuse. `Version(0)` when it holds nothing.
    async fn newest_version(&self) -> Result<Version, BackendError>;

    /// Forgets deletes below a version: nothing that is older than their tombstones can come any more. Not many more
    /// than `at_most` of them, if the store can choose, so that a call is short. Gives how many; 0 when none are left.
    /// The newest version stays what it is. Default: deletes are never forgotten.
    async fn sweep(&self, _older_than: Version, _at_most: usize) -> Result<usize, BackendError> {
        Ok(0)
    }

    /// Native transactions, where the store has them.
    fn transactions(&self) -> Option<&dyn Transactions> {
        None
    }
}

/// Native transactions of a store.
#[async_trait]
pub trait Transactions: Send + Sync {
    /// Begins a transaction and applies the write in it, without committing.
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError>;
}

/// A write that is applied and not yet committed. Dropping it rolls back.
#[async_trait]
pub trait Transaction: Send {
    /// Makes the write visible and durable. A lost reply is [`ErrorKind::Unknown`].
    async fn commit(self: Box<Self>) -> Result<Applied, BackendError>;

    /// Takes it back.
    async fn rollback(self: Box<Self>) -> Result<(), BackendError>;
}

/// What kind of failure an adapter met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ErrorKind {
    /// It did not happen, and may work later: connection refused, deadlock, overload.
    Transient,
    /// It did not happen and never will: the store understood the request and rejects it for what it is.
    Permanent,
    /// It may or may not have happened: a timeout, a reset, a lost reply.
    Unknown,
    /// The store is alive and did not do it now: a conflict, a throttle, a lock.
    Refused,
    /// The store is alive and takes no writes at all: a full or read-only disk.
    ReadOnly,
}

/// An error of an adapter.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind:?}: {message}")]
pub struct BackendError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// The store's own error code or type, which `excluded_errors` of a breaker can name.
    pub code: Option<Cow<'static, str>>,
    /// What happened, without payloads or secrets: it is logged.
    pub message: Cow<'static, str>,
    /// When to try again, where the store said so.
    pub retry_after: Option<Duration>,
}

impl BackendError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, code: None, message: message.into(), retry_after: None }
    }

    /// [`ErrorKind::Transient`].
    pub fn transient(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }

    /// [`ErrorKind::Permanent`].
    pub fn permanent(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Permanent, message)
    }

    /// [`ErrorKind::Unknown`].
    pub fn unknown(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unknown, message)
    }

    /// [`ErrorKind::Refused`].
    pub fn refused(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// [`ErrorKind::ReadOnly`].
    pub fn read_only(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::ReadOnly, message)
    }

    /// With the store's own code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// With a time after which to try again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// What this error means. Breaker, retry, saga and sync all ask here, so that they never disagree.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.kind {
            ErrorKind::Transient => Verdict { alive: false, happened: Happened::No, hopeless: false },
            ErrorKind::Unknown => Verdict { alive: false, happened: Happened::Perhaps, hopeless: false },
            ErrorKind::Refused | ErrorKind::ReadOnly => {
                Verdict { alive: true, happened: Happened::No, hopeless: false }
            }
            ErrorKind::Permanent => Verdict { alive: true, happened: Happened::No, hopeless: true },
        }
    }
}

/// What an error means; see [`BackendError::verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The store answered: no failure for its breaker.
    pub alive: bool,
    /// Whether the work may have been done all the same.
    pub happened: Happened,
    /// Trying again will never help: a dead letter or a rollback.
    pub hopeless: bool,
}

/// Whether a failed call had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It had none.
    No,
    /// Nobody knows; apply it again or take it back, both under the fence.
    Perhaps,
}
