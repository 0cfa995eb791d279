//! A journal as a disk is.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use seawall::ledger::{Appended, Journal, JournalError, JournalProgress, JournalRecord, Retained, RetentionError};
use tokio::sync::oneshot;

/// Keeps what was appended. What was only noted is kept from the next append on, as nothing promises more; a sync
/// can be held up, fail, or be cut off by a crash.
#[derive(Default)]
pub struct Disk(Mutex<State>);

type Answer = oneshot::Sender<Result<(), JournalError>>;

#[derive(Default)]
struct State {
    durable: Vec<JournalRecord>,
    noted: Vec<JournalRecord>,
    /// Appends whose sync hangs.
    held: Option<Vec<(Vec<JournalRecord>, Answer)>>,
    failed: bool,
    /// The power is off: nothing gets in any more.
    cut: bool,
    submitted: u64,
    answered: u64,
}

impl Disk {
    /// A disk on which these records are.
    pub fn holding(durable: Vec<JournalRecord>) -> Self {
        Self(Mutex::new(State { durable, ..State::default() }))
    }

    /// What is found after a crash.
    pub fn records(&self) -> Vec<JournalRecord> {
        self.state().durable.clone()
    }

    /// Syncs do not return from now on.
    pub fn hold(&self) {
        self.state().held.get_or_insert_default();
    }

    /// They do again, those that hang first.
    pub fn release(&self) {
        let mut state = self.state();
        for (records, answer) in state.held.take().unwrap_or_default() {
            let result = state.sync(records);
            let _ = answer.send(result);
        }
    }

    /// Syncs fail, or work again.
    pub fn fail(&self, failed: bool) {
        self.state().failed = failed;
    }

    /// The power goes.
    pub fn cut(&self) {
        self.state().cut = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sync(&mut self, records: Vec<JournalRecord>) -> Result<(), JournalError> {
        self.answered += 1;
        if self.cut {
            return Err(JournalError::Closed);
        }
        if self.failed {
            return Err(JournalError::Failed("made to fail".to_owned()));
        }
        let noted = mem::take(&mut self.noted);
        self.durable.extend(noted);
        self.durable.extend(records);
        Ok(())
    }
}

#[async_trait]
impl Journal for Disk {
    fn append(&self, records: Vec<JournalRecord>) -> Appended {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        state.submitted += 1;
        if let Some(held) = &mut state.held {
            held.push((records, sender));
        } else {
            let _ = sender.send(state.sync(records));
        }
        receiver
    }

    fn note(&self, records: Vec<JournalRecord>) {
        let mut state = self.state();
        if let Some(held) = &mut state.held {
            // Behind the appends that hang: records become durable in their order.
            let (sender, _) = oneshot::channel();
            held.push((records, sender));
        } else if !state.cut {
            state.noted.extend(records);
        }
    }

    /// Everything that is finished, however early.
    async fn retained(&self, _since: SystemTime) -> Result<Retained, RetentionError> {
        let mut retained = Retained::default();
        let state = self.state();
        state.durable.iter().chain(&state.noted).for_each(|record| retained.record(record.clone(), true));
        retained.finish();
        Ok(retained)
    }

    fn progress(&self) -> JournalProgress {
        let state = self.state();
        JournalProgress {
            submitted: state.submitted,
            answered: state.answered,
            failed: state.failed,
            commits: state.answered,
            ..JournalProgress::default()
        }
    }

    async fn close(&self) {
        let mut state = self.state();
        if !state.cut && !state.failed && state.held.is_none() {
            let _ = state.sync(Vec::new());
        }
        state.cut = true;
    }
}
