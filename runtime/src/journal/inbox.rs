//! What the committer is asked to do, and what it has gathered for the next commit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use seawall_actors::journal::{JournalError, Retained, RetentionError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Counters;
use super::codec::Encoded;

/// Bytes of records that one commit gathers, unless a single append has more.
const COMMIT_BYTES: usize = 4 << 20;
/// What the thread is asked to do.
pub(super) enum Command {
    Append(Vec<Encoded>, Reply),
    Note(Vec<Encoded>),
    /// Records of the oldest generation, read back to be carried forward.
    Carried(Vec<(u64, Encoded)>),
    /// The oldest generation is read, or could not be.
    CarryEnded(Result<(), String>),
    /// Somebody wants to have what was finished since then.
    Retained(SystemTime, RetainedReply),
    /// The generations are read.
    ReadEnded,
    Close(oneshot::Sender<()>),
}

/// The answer to somebody who wants finished entries.
pub(super) type RetainedReply = oneshot::Sender<Result<Retained, RetentionError>>;

/// The answer to one append. Dropped without one, it says what is then true.
pub(super) struct Reply {
    sender: Option<oneshot::Sender<Result<(), JournalError>>>,
    counters: Arc<Counters>,
}

impl Reply {
    pub(super) fn new(sender: oneshot::Sender<Result<(), JournalError>>, counters: Arc<Counters>) -> Self {
        Self { sender: Some(sender), counters }
    }

    pub(super) fn answer(mut self, answer: Result<(), JournalError>) {
        self.send(answer);
    }

    fn send(&mut self, answer: Result<(), JournalError>) {
        if let Some(sender) = self.sender.take() {
            self.counters.answered.fetch_add(1, Ordering::Relaxed);
            // Whoever asked may have gone.
            let _ = sender.send(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let answer = if std::thread::panicking() {
            JournalError::Failed("the committer panicked".into())
        } else {
            JournalError::Closed
        };
        self.send(Err(answer));
    }
}

/// Where a record of a commit comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Append,
    Note,
    Carried(u64),
}

/// What one commit will hold.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) records: Vec<(Origin, Encoded)>,
    pub(super) replies: Vec<Reply>,
    bytes: usize,
    /// Whether somebody waits for it.
    pub(super) urgent: bool,
    /// Since when something is in it.
    pub(super) since: Option<Instant>,
}

impl Gathered {
    pub(super) fn add(&mut self, records: impl IntoIterator<Item = (Origin, Encoded)>) {
        let before = self.bytes;
        for record in records {
            self.bytes += record.1.bytes.len();
            self.records.push(record);
        }
        if self.bytes > before {
            self.since.get_or_insert_with(Instant::now);
        }
        self.urgent |= self.bytes >= COMMIT_BYTES;
    }

    pub(super) fn is_full(&self, max_batch: usize) -> bool {
        self.replies.len() >= max_batch.max(1) || self.bytes >= COMMIT_BYTES
    }
}
