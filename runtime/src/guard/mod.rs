//! One sled 0.34 database in a directory, with what sled lacks to be trusted.
//!
//! | sled 0.34.7 on its own | here |
//! |---|---|
//! | `flush` is no fsync: a power cut loses flushed rows or the whole file | every [`commit`](GuardedDb::commit) ends with `sync_data` on a descriptor of our own; the background flusher is off |
//! | `flush_async` deadlocks from seven callers on | never called |
//! | values from about 16 KiB on end in blob files that nobody syncs | a row is at most [`MAX_ROW_BYTES`]; `blobs/` must stay empty |
//! | a crash during a snapshot leaves `snap.*.generating`, and no open works again | removed before every open |
//! | a torn snapshot is reported as corruption | snapshots are only a shortcut: removed once, and the open repeated |
//! | damage panics at open, in reads and in `Drop` | panics are caught and become [`OpenError::Damaged`] and [`GuardError::Failed`] |
//! | an I/O error sticks to the handle for good | the first error poisons: nothing is acknowledged until the directory is opened anew |
//! | a directory that is in use is an immediate, untyped I/O error | retried for a while, then [`OpenError::Locked`] |
//!
//! What it cannot give: sled opens a file with a damaged tail without a word. Whoever stores rows here has to
//! know what must be there.

mod batch;
mod db;
mod fault;
mod files;
#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use db::{GuardedDb, Rows};
pub use fault::{FaultHook, Step};
pub use files::quarantine;
pub(crate) use files::{create_dir_durably, pause, sync_dir};

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a row (key and value together) may have: 4 KiB. sled packs up to 17 rows in a page and moves pages
/// of more than 128 KiB to files that it never syncs.
pub const MAX_ROW_BYTES: usize = 4096;

/// How a [`GuardedDb`] is opened.
#[derive(Clone)]
pub struct GuardOptions {
    /// Bytes of pages kept in memory. Default 8 MiB; sled's own default of 1 GiB is a first-in-first-out list that
    /// fills up.
    pub cache_bytes: u64,
    /// Bytes of a segment of sled's log, a power of two from 64 KiB to 16 MiB. It cannot change for a directory
    /// that exists. Small segments deadlock at random when rows are removed.
    pub segment_bytes: usize,
    /// How long an open waits for another holder of the directory to let go. Default 2 s.
    pub lock_patience: Duration,
    /// Called before every step that touches the disk, to make it fail in tests. Default none.
    #[doc(hidden)]
    pub fault: Option<Arc<dyn FaultHook>>,
}

impl GuardOptions {
    /// For a database that is only ever appended to: segments of 512 KiB.
    #[must_use]
    pub fn append_only() -> Self {
        Self { cache_bytes: 8 << 20, segment_bytes: 512 << 10, lock_patience: Duration::from_secs(2), fault: None }
    }

    /// For a database whose rows are overwritten or removed: segments of 8 MiB.
    #[must_use]
    pub fn rewriting() -> Self {
        Self { segment_bytes: 8 << 20, ..Self::append_only() }
    }

    pub(crate) fn check(&self, step: Step) -> io::Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| fault.before(step))
    }
}

impl fmt::Debug for GuardOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardOptions")
            .field("cache_bytes", &self.cache_bytes)
            .field("segment_bytes", &self.segment_bytes)
            .field("lock_patience", &self.lock_patience)
            .finish_non_exhaustive()
    }
}

/// Why a database was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another handle in this one, has it open.
    #[error("`{}` is in use by another process or handle; stop that one first", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// sled cannot make sense of the files.
    #[error("`{}` is damaged: {reason}; move it aside (see `guard::quarantine`) or restore it", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What sled said.
        reason: String,
    },
    /// The operating system refused. The directory may be fine.
    #[error("cannot open `{}`: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Why a database did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// An earlier write or sync failed. Drop the handle and open the directory anew.
    #[error("an earlier write to this store failed; it has to be reopened")]
    Poisoned,
    /// A row is larger than [`MAX_ROW_BYTES`]. Nothing of the batch was written.
    #[error("a row of {bytes} bytes exceeds the limit of {MAX_ROW_BYTES}; split it")]
    RowTooLarge {
        /// Its size, key and value together.
        bytes: usize,
    },
    /// The step failed. What it should have written may or may not be there after the next open.
    #[error("{step} failed: {reason}")]
    Failed {
        /// Which step.
        step: Step,
        /// What went wrong.
        reason: String,
    },
}
