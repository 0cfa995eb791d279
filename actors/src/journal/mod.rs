//! The port to the one journal: the log of intents, owed steps, compensations and dead letters.
//!
//! A [`Journal`] only appends and says when an append is durable; what the records mean is the [`Ledger`]'s
//! business, a plain fold over them that is the same live and at recovery.
//!
//! ```text
//!            Intent ──────────────► every backend in `owes` owes the write
//!            Done{b} ─────────────► b no longer owes it
//!            Decided ─────────────► from here on what was done is undone instead
//!          Undone{b} ─────────────► b no longer owes the compensation
//!   DeadLetter{b} / Revived{b} ───► b waits for a person / owes again
//!            Closed ──────────────► nobody owes anything; only the outcome is remembered
//! ```

mod ledger;
mod memory;
mod retained;

pub use ledger::*;
pub use memory::MemoryJournal;
pub use retained::{Retained, RetentionError};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::backend::BackendName;
use crate::config::{ConfigProblem, check_range};
use crate::operation::{Change, OperationId, Priority, Version};

/// One entry of the log.
///
/// Encoded with field order and variant names; a golden file holds every variant. Never remove or reorder a field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JournalRecord {
    /// A write was accepted. Opens the entry of its version.
    Intent(Arc<Intent>),
    /// A backend has the write.
    Done {
        /// The entry.
        version: Version,
        /// The backend.
        backend: BackendName,
    },
    /// The write must not go forward: what was done is to be undone.
    Decided {
        /// The entry.
        version: Version,
        /// The backend for which it cannot go forward.
        cause: BackendName,
        /// What that backend said.
        reason: String,
        /// How the entry ends when all is undone.
        ending: Ending,
    },
    /// A backend no longer has the write.
    Undone {
        /// The entry.
        version: Version,
        /// The backend.
        backend: BackendName,
    },
    /// A backend will never take the write (or its compensation).
    DeadLetter {
        /// The entry.
        version: Version,
        /// The backend.
        backend: BackendName,
        /// What the backend said.
        reason: String,
    },
    /// A dead letter is to be tried again.
    Revived {
        /// The entry.
        version: Version,
        /// The backend.
        backend: BackendName,
    },
    /// Nobody owes anything for this entry. Closes it.
    Closed {
        /// The entry.
        version: Version,
        /// The operation, by which the outcome can be asked for.
        operation: OperationId,
        /// How it ended.
        ending: Ending,
    },
    /// Versions up to this one may have been given out.
    Reserved {
        /// The last of them.
        up_to: Version,
    },
    /// What a store has lost of finished writes is owed again: opens the entry of its version anew, or replaces it.
    /// Its changes are what the writes of each key came to by that version, so they also go over that version itself.
    Redriven(Arc<Intent>),
    /// All that comes before this was appended no later. Written while finished entries are retained, by the journal
    /// itself, and never given back by it.
    Tick {
        /// The wall clock, in milliseconds since 1970.
        wall: u64,
        /// For how many milliseconds the journal has been open, over all restarts.
        ran: u64,
    },
}

impl JournalRecord {
    /// The entry that the record belongs to, if it belongs to one. A [`Journal`] keeps all records of an entry
    /// from its `Intent` until its `Closed`.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match self {
            Self::Intent(intent) | Self::Redriven(intent) => Some(intent.version),
            Self::Done { version, .. }
            | Self::Decided { version, .. }
            | Self::Undone { version, .. }
            | Self::DeadLetter { version, .. }
            | Self::Revived { version, .. }
            | Self::Closed { version, .. } => Some(*version),
            Self::Reserved { .. } | Self::Tick { .. } => None,
        }
    }
}

/// An accepted write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// Its version, which names the entry.
    pub version: Version,
    /// Its operation.
    pub operation: OperationId,
    /// How soon it is drained.
    pub priority: Priority,
    /// What it changes.
    pub changes: Arc<[Change]>,
    /// The backends that have to get it.
    pub owes: Vec<BackendName>,
    /// For backends that are tried at once: what takes the write back there, registered before it is applied.
    /// A backend that is not here was not to be tried at once.
    pub undo: Vec<(BackendName, Arc<[Change]>)>,
}

impl Intent {
    /// About how many bytes the entry takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let undo: usize = self.undo.iter().flat_map(|(_, changes)| changes.iter()).map(Change::weight).sum();
        self.changes.iter().map(Change::weight).sum::<usize>() + undo + 64
    }
}

/// How an entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Every required backend has the write.
    Committed,
    /// None has.
    RolledBack,
    /// It was a dead letter and a person discarded it.
    Discarded,
}

/// Whether the journal takes writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalHealth {
    /// It does.
    #[default]
    Healthy,
    /// A write or sync failed. Nothing is acknowledged by it until it has been reopened and read again.
    Failed,
    /// A commit does not return.
    Stalled,
}

/// Why an append is not durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The disk failed. The records may or may not be there when the journal is read again.
    #[error("the journal failed: {0}")]
    Failed(String),
    /// The journal is closed. The records are not in it.
    #[error("the journal is closed")]
    Closed,
}

/// Resolves when the records of one append are durable, or known not to be.
pub type Appended = oneshot::Receiver<Result<(), JournalError>>;

/// Waits for an append. A journal that went away without an answer failed.
pub(crate) async fn appended(append: Appended) -> Result<(), JournalError> {
    append.await.unwrap_or_else(|_| Err(JournalError::Failed("no answer".to_owned())))
}

/// How far the journal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalProgress {
    /// Appends that were submitted.
    pub submitted: u64,
    /// Appends that were answered.
    pub answered: u64,
    /// Whether the disk failed and the journal has not been reopened since.
    pub failed: bool,
    /// Commits (each one sync) so far.
    pub commits: u64,
    /// Bytes on disk, about.
    pub disk_bytes: u64,
    /// Generations on disk.
    pub generations: u32,
    /// Finished entries on disk that a replay can still find.
    pub retained_entries: u64,
    /// Bytes of generations that are there only for a replay.
    pub retained_bytes: u64,
    /// How often retained entries had to go early, for the limit in bytes.
    pub retention_cuts: u64,
}

/// What a damaged journal has lost, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// Rows that are missing or damaged, as inclusive ranges of their sequence numbers, ascending.
    pub rows: Vec<(u64, u64)>,
    /// Damaged directories that were moved aside, by their new names.
    pub quarantined: Vec<String>,
    /// What was found, in words.
    pub findings: Vec<String>,
}

impl LossReport {
    /// Whether nothing is lost, and nothing was found by which something might be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.quarantined.is_empty() && self.findings.is_empty()
    }
}

/// The one durable log of a runtime.
///
/// Records become durable in the order in which they were appended. Appending never blocks.
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Appends records in one atomic step; the answer comes when they are durable.
    fn append(&self, records: Vec<JournalRecord>) -> Appended;

    /// Appends records whose loss in a crash would only cost repeated work. They become durable with a later
    /// [`append`](Self::append), or soon after without one.
    fn note(&self, records: Vec<JournalRecord>);

    /// Whether finished entries are kept for a time, so that they can be given to a store again that has lost them.
    fn retains(&self) -> bool {
        false
    }

    /// What the entries that were finished since this moment have made of their keys. May begin earlier than asked
    /// for, never later: the wall clock is only a label.
    ///
    /// # Errors
    /// When that is not known, or not as far back.
    async fn retained(&self, _since: SystemTime) -> Result<Retained, RetentionError> {
        Err(RetentionError::Off)
    }

    /// How far it is.
    fn progress(&self) -> JournalProgress;

    /// Makes all that was appended durable and stops; later appends are answered with [`JournalError::Closed`].
    async fn close(&self);
}

/// How large the set of owed writes may grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Entries that may be unfinished at once: in flight, owed, compensating and dead. Default 10 000 (documents
    /// 000 and 001), range 1 to 10 000 000.
    #[serde(alias = "max_queue_size")]
    pub max_entries: usize,
    /// Bytes that those may take. Default 64 MiB, range 1 MiB to 16 GiB.
    pub max_bytes: usize,
    /// Finished operations whose outcome is remembered. Default 10 000, range 0 to 1 000 000.
    pub outcomes: usize,
    /// How long finished writes are kept, so that [`replay_since`](crate::sync::replay_since) can give them again to a
    /// store that has lost what it had confirmed. Counted in time for which the runtime ran. At least the time after
    /// which the slowest store has its writes on its own disk (5 s for Qdrant), and better the age of its oldest
    /// backup. Default 0: not at all. Range 1 s to 30 days. While it is on, a write to a single backend is written
    /// down, too, before it is acknowledged.
    #[serde(with = "crate::config::seconds")]
    pub retention: Duration,
    /// Bytes that the journal may take on disk before finished writes go early, the oldest first; it may take one
    /// generation more, and what is owed. Default 1 GiB, range 2 MiB to 1 TiB.
    pub retention_bytes: u64,
    /// What a refused caller is told to wait when the queue is full. Default 1 s, range 1 ms to 1 h.
    #[serde(with = "crate::config::seconds")]
    pub retry_after: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            max_entries: 10_000,
            max_bytes: 64 << 20,
            outcomes: 10_000,
            retention: Duration::ZERO,
            retention_bytes: 1 << 30,
            retry_after: Duration::from_secs(1),
        }
    }
}

impl QueueConfig {
    /// Adds everything that is wrong with these values, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        check_range(path, "max_entries", self.max_entries, 1..=10_000_000, problems);
        check_range(path, "max_bytes", self.max_bytes, 1 << 20..=16 << 30, problems);
        check_range(path, "outcomes", self.outcomes, 0..=1_000_000, problems);
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3_600));
        if !self.retention.is_zero() {
            check_range(path, "retention", self.retention, second..=30 * 24 * hour, problems);
        }
        check_range(path, "retention_bytes", self.retention_bytes, 2 << 20..=1 << 40, problems);
        check_range(path, "retry_after", self.retry_after, Duration::from_millis(1)..=hour, problems);
    }
}
