//! The journal's disk: takes time, fails, hangs, and of what was not durable a crash leaves what it likes.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use seawall::ledger::{Appended, Journal, JournalError, JournalProgress, JournalRecord};
use seawall::operation::Version;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::scene::{Life, Scene, locked, trace};
use crate::weather::{DiskHabits, Flaw, MS, time_up_to};

/// How long a note waits for an append to ride along with.
const NOTES: Duration = Duration::from_millis(50);

/// The journal of one process.
pub(crate) struct Disk {
    scene: Arc<Scene>,
    life: Arc<Life>,
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    random: fastrand::Rng,
    habits: DiskHabits,
    durable: Vec<JournalRecord>,
    /// Versions whose intent is durable.
    intents: BTreeSet<Version>,
    /// What is being written, and what failed to be: void as soon as the journal is open again, but not before.
    written: Vec<Step>,
    waiting: VecDeque<Step>,
    failed: bool,
    closed: bool,
    submitted: u64,
    answered: u64,
    unheard: Vec<Answer>,
}

type Answer = oneshot::Sender<Result<(), JournalError>>;

/// One append or note.
struct Step {
    records: Vec<JournalRecord>,
    answer: Option<Answer>,
}

impl Disk {
    /// The disk with what is on it, and the task that writes to it.
    pub(crate) fn open(
        scene: &Arc<Scene>,
        life: &Arc<Life>,
        found: Vec<JournalRecord>,
        seed: u64,
    ) -> (Arc<Self>, JoinSet<()>) {
        let state = State {
            random: fastrand::Rng::with_seed(seed),
            habits: scene.weather.disk,
            intents: found.iter().filter_map(intent).collect(),
            durable: found,
            written: Vec::new(),
            waiting: VecDeque::new(),
            failed: false,
            closed: false,
            submitted: 0,
            answered: 0,
            unheard: Vec::new(),
        };
        let disk = Arc::new(Self {
            scene: Arc::clone(scene),
            life: Arc::clone(life),
            state: Mutex::new(state),
            wake: Notify::new(),
        });
        let mut committer = JoinSet::new();
        committer.spawn(Arc::clone(&disk).run());
        (disk, committer)
    }

    /// Whether a crash would leave the intent of this version.
    pub(crate) fn has_intent(&self, version: Version) -> bool {
        locked(&self.state).intents.contains(&version)
    }

    /// From here on nothing goes wrong.
    pub(crate) fn heal(&self) {
        let mut state = locked(&self.state);
        (state.habits.fails, state.habits.stalls) = (0.0, 0.0);
    }

    /// What the next process finds, once this one is dead: all that is durable, and of the rest a part from its front.
    pub(crate) fn remains(&self) -> Vec<JournalRecord> {
        let mut state = locked(&self.state);
        let mut left = mem::take(&mut state.durable);
        let written = mem::take(&mut state.written);
        // The journal was open again before anything else was taken.
        let rest: Vec<Step> = written.into_iter().chain(mem::take(&mut state.waiting)).collect();
        let kept = if state.closed { rest.len() } else { state.random.usize(0..=rest.len()) };
        left.extend(rest.into_iter().take(kept).flat_map(|step| step.records));
        if state.random.bool() { compacted(left) } else { left }
    }

    async fn run(self: Arc<Self>) {
        loop {
            if locked(&self.state).waiting.is_empty() {
                self.wake.notified().await;
            }
            let urgent = || {
                let state = locked(&self.state);
                state.closed || state.waiting.iter().any(|step| step.answer.is_some())
            };
            let _ = timeout(NOTES, async {
                while !urgent() {
                    self.wake.notified().await;
                }
            })
            .await;
            let (time, fails, reopens) = self.begin();
            sleep(time).await;
            if !self.life.acts() {
                return;
            }
            self.end(fails);
            if fails {
                sleep(reopens).await;
                self.reopen();
            }
        }
    }

    fn begin(&self) -> (Duration, bool, Duration) {
        let mut state = locked(&self.state);
        state.written = mem::take(&mut state.waiting).into();
        let State { random, habits, .. } = &mut *state;
        let limit = if random.f64() < habits.stalls { habits.stall } else { habits.latency };
        let time = time_up_to(random, limit);
        (time, random.f64() < habits.fails, time_up_to(random, habits.reopens) + MS)
    }

    fn end(&self, fails: bool) {
        let mut state = locked(&self.state);
        let State { written, waiting, durable, intents, .. } = &mut *state;
        let mut answers = Vec::new();
        if fails {
            // What was only noted is still true, and is told again; what was appended is answered, and so is what
            // came meanwhile.
            let mut notes = VecDeque::new();
            for step in written.iter_mut().chain(waiting.iter_mut()) {
                match step.answer.take() {
                    Some(answer) => answers.push(answer),
                    None => notes.push_back(Step { records: step.records.clone(), answer: None }),
                }
            }
            *waiting = notes;
        } else {
            for step in written.drain(..) {
                intents.extend(step.records.iter().filter_map(intent));
                durable.extend(step.records);
                answers.extend(step.answer);
            }
        }
        state.failed = fails;
        state.answered += answers.len() as u64;
        trace!(self.scene, "disk: {} answers, {}", answers.len(), if fails { "failed" } else { "durable" });
        drop(state);
        for answer in answers {
            let _ = answer.send(if fails { Err(failed()) } else { Ok(()) });
        }
    }

    fn reopen(&self) {
        let mut state = locked(&self.state);
        state.failed = false;
        state.written.clear();
        trace!(self.scene, "disk: open again");
    }

    fn put(&self, records: Vec<JournalRecord>, answer: Option<Answer>) {
        if !self.life.acts() {
            // Nobody hears of it any more; a dropped sender would be an answer.
            return locked(&self.state).unheard.extend(answer);
        }
        trace!(self.scene, "disk: {} {records:?}", if answer.is_some() { "append" } else { "note" });
        for record in &records {
            self.scene.history.noted(record);
        }
        let mut state = locked(&self.state);
        state.submitted += u64::from(answer.is_some());
        match answer {
            Some(answer) if state.closed || state.failed => {
                state.answered += 1;
                let _ = answer.send(Err(if state.closed { JournalError::Closed } else { failed() }));
            }
            None if state.closed => {}
            Some(answer) if self.scene.weather.flaw == Some(Flaw::JournalLies) => {
                state.answered += 1;
                let _ = answer.send(Ok(()));
                state.waiting.push_back(Step { records, answer: None });
            }
            answer => state.waiting.push_back(Step { records, answer }),
        }
        drop(state);
        self.wake.notify_one();
    }
}

#[async_trait]
impl Journal for Disk {
    fn append(&self, records: Vec<JournalRecord>) -> Appended {
        let (sender, receiver) = oneshot::channel();
        self.put(records, Some(sender));
        receiver
    }

    fn note(&self, records: Vec<JournalRecord>) {
        self.put(records, None);
    }

    fn progress(&self) -> JournalProgress {
        let state = locked(&self.state);
        JournalProgress {
            submitted: state.submitted,
            answered: state.answered,
            failed: state.failed,
            ..JournalProgress::default()
        }
    }

    async fn close(&self) {
        self.life.act().await;
        loop {
            {
                let mut state = locked(&self.state);
                if state.failed || (state.written.is_empty() && state.waiting.is_empty()) {
                    state.closed = true;
                    // What failed to be written is not tried again, and may be found or not.
                    let rest = mem::take(&mut state.waiting);
                    state.written.extend(rest);
                    let kept = if state.written.is_empty() { 0 } else { 1 + state.written.len() };
                    let kept = state.random.usize(0..=kept).min(state.written.len());
                    state.written.truncate(kept);
                    return;
                }
            }
            self.wake.notify_one();
            sleep(MS).await;
        }
    }
}

fn failed() -> JournalError {
    JournalError::Failed("the disk failed".to_owned())
}

fn intent(record: &JournalRecord) -> Option<Version> {
    match record {
        JournalRecord::Intent(intent) => Some(intent.version),
        _ => None,
    }
}

/// What a journal gives back that has thrown away what is not needed: of a closed entry only its closing, of an open one
/// all, and the last reservation.
fn compacted(records: Vec<JournalRecord>) -> Vec<JournalRecord> {
    let closed: BTreeSet<Version> = records
        .iter()
        .filter_map(|record| match record {
            JournalRecord::Closed { version, .. } => Some(*version),
            _ => None,
        })
        .collect();
    let last = records.iter().rposition(|record| matches!(record, JournalRecord::Reserved { .. }));
    let keeps = |(place, record): &(usize, JournalRecord)| match record {
        JournalRecord::Closed { .. } => true,
        JournalRecord::Reserved { .. } => last == Some(*place),
        other => other.version().is_none_or(|version| !closed.contains(&version)),
    };
    records.into_iter().enumerate().filter(keeps).map(|(_, record)| record).collect()
}
