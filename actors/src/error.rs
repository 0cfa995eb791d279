//! Why a request was refused. Every refusal says what to do next.

use std::time::Duration;

use crate::backend::{BackendName, Capability};
use crate::limits::InvalidInput;
use crate::operation::OperationId;

/// A request that was not acknowledged.
///
/// For a write, every variant but [`Unknown`](Self::Unknown) means that no required backend has it or keeps it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The request itself is wrong. Correct it.
    #[error("invalid request: {0}")]
    Invalid(#[from] InvalidInput),
    /// Too many requests in flight. Try again later.
    #[error("overloaded: {limit} operations are in flight; retry after {retry_after:?}")]
    Overloaded {
        /// How many may be.
        limit: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The journal holds as many owed writes as it may. Try again when some are drained.
    #[error("the queue is full ({entries} entries, {bytes} bytes); retry after {retry_after:?}")]
    QueueFull {
        /// Entries that it holds.
        entries: usize,
        /// Bytes that it holds.
        bytes: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// A backend that the request needs cannot be reached, and the mode allows no other way.
    #[error("backend `{backend}` is unavailable: {reason}")]
    Unavailable {
        /// Which.
        backend: BackendName,
        /// Why.
        reason: String,
        /// When to try again, if that is known.
        retry_after: Option<Duration>,
    },
    /// A backend that the request needs was away and gets its load back little by little: this call is held back, the
    /// next one may get through.
    #[error("backend `{backend}` is recovering; retry after {} ms", retry_after.as_millis())]
    Throttled {
        /// Which.
        backend: BackendName,
        /// When to try again.
        retry_after: Duration,
    },
    /// The write was tried, a backend could not take it, and what others had done is undone or will be.
    #[error("rolled back, because backend `{backend}` failed: {reason}")]
    RolledBack {
        /// The backend that failed.
        backend: BackendName,
        /// How.
        reason: String,
        /// When to try again, if that is known.
        retry_after: Option<Duration>,
    },
    /// A backend rejects the request for what it is. Trying again will not help.
    #[error("rejected by backend `{backend}`: {reason}")]
    Rejected {
        /// Which.
        backend: BackendName,
        /// Why.
        reason: String,
    },
    /// Writes are refused in this mode.
    #[error("read only: {reason}")]
    ReadOnly {
        /// Who set the mode, and why.
        reason: String,
    },
    /// Nothing that can be reached now can answer this.
    #[error("{capability:?} is unavailable now{}", hint(*retry_after))]
    CapabilityUnavailable {
        /// What was asked for.
        capability: Capability,
        /// When to try again, if that is known.
        retry_after: Option<Duration>,
    },
    /// No backend of this runtime can do this.
    #[error("no backend offers {0:?}")]
    Unsupported(Capability),
    /// The journal does not take writes, so nothing can be promised.
    #[error("the journal does not take writes: {reason}; retry after {retry_after:?}")]
    JournalUnavailable {
        /// Why.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The write may or may not come to be. Ask for its outcome by the operation id, or send it again with the
    /// same id.
    #[error("the outcome of operation {operation} is not known yet; ask for it by this id")]
    Unknown {
        /// The operation.
        operation: OperationId,
    },
    /// The time was up. For a write: before anything was done.
    #[error("the deadline passed before an answer was there")]
    DeadlineExceeded,
    /// The runtime is stopping.
    #[error("shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// When to try again, where that is known. `None` does not mean never.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. }
            | Self::Throttled { retry_after, .. }
            | Self::QueueFull { retry_after, .. }
            | Self::JournalUnavailable { retry_after, .. } => Some(*retry_after),
            Self::Unavailable { retry_after, .. }
            | Self::RolledBack { retry_after, .. }
            | Self::CapabilityUnavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// When to try again, in words; nothing where that is not known.
fn hint(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| format!("; retry after {} ms", wait.as_millis()))
}
