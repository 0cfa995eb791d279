//! A journal in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::journal::{Appended, Journal, JournalError, JournalProgress, JournalRecord, Retained, RetentionError};

/// A journal in memory: for measurements and rehearsals. What it takes is gone with the process.
///
/// [`recording`](Self::recording) keeps the records, so that a test can start again from them;
/// [`fail`](Self::fail) makes it refuse, as a failing disk does.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    records: Option<Mutex<Vec<JournalRecord>>>,
    submitted: AtomicU64,
    failed: AtomicBool,
    closed: AtomicBool,
    retains: bool,
}

impl MemoryJournal {
    /// A journal that forgets what it takes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A journal that remembers all that it takes.
    #[must_use]
    pub fn recording() -> Self {
        Self { records: Some(Mutex::default()), ..Self::default() }
    }

    /// The same, and it gives back what was finished, all of it, however early.
    #[must_use]
    pub fn retaining() -> Self {
        Self { retains: true, ..Self::recording() }
    }

    /// All records so far; empty unless it is [`recording`](Self::recording).
    #[must_use]
    pub fn records(&self) -> Vec<JournalRecord> {
        self.records.as_ref().map(|records| lock(records).clone()).unwrap_or_default()
    }

    /// Makes it fail, or work again.
    pub fn fail(&self, failed: bool) {
        self.failed.store(failed, Ordering::SeqCst);
    }

    fn keep(&self, records: Vec<JournalRecord>) -> Result<(), JournalError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(JournalError::Closed);
        }
        if self.failed.load(Ordering::SeqCst) {
            return Err(JournalError::Failed("made to fail".to_owned()));
        }
        if let Some(kept) = &self.records {
            lock(kept).extend(records);
        }
        Ok(())
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    fn append(&self, records: Vec<JournalRecord>) -> Appended {
        let (sender, receiver) = oneshot::channel();
        self.submitted.fetch_add(1, Ordering::SeqCst);
        let _ = sender.send(self.keep(records));
        receiver
    }

    fn note(&self, records: Vec<JournalRecord>) {
        let _ = self.keep(records);
    }

    fn retains(&self) -> bool {
        self.retains
    }

    async fn retained(&self, _since: SystemTime) -> Result<Retained, RetentionError> {
        if !self.retains {
            return Err(RetentionError::Off);
        }
        let mut retained = Retained::default();
        self.records().into_iter().for_each(|record| retained.record(record, true));
        retained.finish();
        Ok(retained)
    }

    fn progress(&self) -> JournalProgress {
        let submitted = self.submitted.load(Ordering::SeqCst);
        JournalProgress {
            submitted,
            answered: submitted,
            failed: self.failed.load(Ordering::SeqCst),
            commits: submitted,
            ..JournalProgress::default()
        }
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

fn lock(records: &Mutex<Vec<JournalRecord>>) -> MutexGuard<'_, Vec<JournalRecord>> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}
