//! A journal that takes its time, and of which a crash leaves what was durable and perhaps a little more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use seawall::ledger::{Appended, Journal, JournalError, JournalProgress, JournalRecord};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

type Answer = oneshot::Sender<Result<(), JournalError>>;

/// A disk in memory: records become durable in order, some virtual time after they were appended.
#[derive(Default)]
pub(crate) struct SlowJournal {
    disk: Arc<Mutex<Disk>>,
    written: Arc<Notify>,
}

#[derive(Default)]
struct Disk {
    /// Each append or note as one atomic step.
    steps: Vec<(Vec<JournalRecord>, Option<Answer>)>,
    durable: usize,
    submitted: u64,
    answered: u64,
    /// Between a failed commit and the reopening.
    failed: bool,
    closed: bool,
    crashed: bool,
}

impl SlowJournal {
    /// A journal that was left with these records. Commits take up to `slowest`, and every `fails`-th one fails, if
    /// any: what waited for it is refused, and may be found again after a crash.
    pub(crate) fn new(found: Vec<JournalRecord>, seed: u64, slowest: Duration, fails: Option<u64>) -> Arc<Self> {
        let journal = Arc::new(Self::default());
        let steps: Vec<_> = found.into_iter().map(|record| (vec![record], None)).collect();
        let durable = steps.len();
        *lock(&journal.disk) = Disk { steps, durable, ..Disk::default() };
        tokio::spawn(commit(Arc::clone(&journal.disk), Arc::clone(&journal.written), seed, slowest, fails));
        journal
    }

    /// Ends it as a dying process does, and gives what the next one finds: all that is durable, and of the rest as
    /// much as `more` says, from the front.
    pub(crate) fn crash(&self, more: f64) -> Vec<JournalRecord> {
        let mut disk = lock(&self.disk);
        disk.crashed = true;
        let rest = disk.steps.len() - disk.durable;
        let kept = disk.durable + (rest as f64 * more) as usize;
        disk.steps.drain(..).take(kept).flat_map(|(records, _)| records).collect()
    }

    fn put(&self, records: Vec<JournalRecord>, answer: Option<Answer>) {
        let mut disk = lock(&self.disk);
        disk.submitted += u64::from(answer.is_some());
        let refused = match (disk.closed || disk.crashed, disk.failed && answer.is_some()) {
            (true, _) => Some(JournalError::Closed),
            (false, true) => Some(JournalError::Failed("the disk failed".to_owned())),
            (false, false) => None,
        };
        match (refused, answer) {
            (None, answer) => disk.steps.push((records, answer)),
            (Some(error), Some(answer)) => {
                disk.answered += 1;
                let _ = answer.send(Err(error));
            }
            (Some(_), None) => {}
        }
        drop(disk);
        self.written.notify_one();
    }
}

/// Makes durable what waits, for as long as anybody may wait for it.
async fn commit(disk: Arc<Mutex<Disk>>, written: Arc<Notify>, seed: u64, slowest: Duration, fails: Option<u64>) {
    let mut random = fastrand::Rng::with_seed(seed);
    for commit in 1_u64.. {
        written.notified().await;
        let until = lock(&disk).steps.len();
        sleep(slowest.mul_f64(random.f64())).await;
        let failing = fails.is_some_and(|every| commit.is_multiple_of(every));
        {
            let mut disk = lock(&disk);
            if disk.crashed {
                return;
            }
            let begun = disk.durable;
            let until = until.min(disk.steps.len());
            let mut refused = Vec::new();
            for (records, answer) in &mut disk.steps[begun..until] {
                let Some(answer) = answer.take() else { continue };
                let result = if failing { Err(JournalError::Failed("the disk failed".to_owned())) } else { Ok(()) };
                if failing {
                    // Nobody may find it later: the next generation begins before it.
                    records.clear();
                }
                refused.push((answer, result));
            }
            disk.answered += refused.len() as u64;
            for (answer, result) in refused {
                let _ = answer.send(result);
            }
            disk.durable = until.max(begun);
            disk.failed = failing;
            if disk.steps.len() > disk.durable {
                written.notify_one();
            }
        }
        if failing {
            sleep(Duration::from_millis(300)).await;
            lock(&disk).failed = false;
            written.notify_one();
        }
    }
}

#[async_trait]
impl Journal for SlowJournal {
    fn append(&self, records: Vec<JournalRecord>) -> Appended {
        let (sender, receiver) = oneshot::channel();
        self.put(records, Some(sender));
        receiver
    }

    fn note(&self, records: Vec<JournalRecord>) {
        self.put(records, None);
    }

    fn progress(&self) -> JournalProgress {
        let disk = lock(&self.disk);
        JournalProgress {
            submitted: disk.submitted,
            answered: disk.answered,
            failed: disk.failed,
            ..JournalProgress::default()
        }
    }

    async fn close(&self) {
        loop {
            {
                let mut disk = lock(&self.disk);
                if disk.durable >= disk.steps.len() || disk.crashed {
                    disk.closed = true;
                    return;
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}
