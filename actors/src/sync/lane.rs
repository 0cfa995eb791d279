//! One lane: what one backend owes, worked off step by step.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backend::{Applied, BackendName, Fence, FencedWrite};
use crate::breaker::{BreakerState, Purpose};
use crate::event::EventKind;
use crate::fallback::Access;
use crate::journal::{JournalRecord, Step, StepResult};
use crate::plane::{CallPermit, DataPlane, FailedCall, Store, Tries, is_foreign};
use crate::sync::{DrainWindow, LaneStatus, SyncConfig};

/// How soon a lane that was refused asks again at the earliest, if nothing wakes it.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// A lane: owed writes, or owed compensations, of one backend.
pub(crate) struct Lane {
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) store: Arc<Store>,
    pub(crate) config: Arc<SyncConfig>,
    pub(crate) status: Arc<LaneStatus>,
    pub(crate) undo: bool,
}

/// A step that is handed out. If it is dropped unsettled, it is owed again.
struct Taken<'a> {
    plane: &'a DataPlane,
    backend: &'a BackendName,
    step: Option<Step>,
}

impl Taken<'_> {
    fn settle(mut self, result: &StepResult) {
        if let Some(step) = self.step.take() {
            settle(self.plane, self.backend, &step, result);
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(step) = self.step.take() {
            settle(self.plane, self.backend, &step, &StepResult::Again);
        }
    }
}

/// Why a lane pauses.
enum Pause {
    /// Nothing can be done now.
    Idle,
    /// The gate refuses, or the last step failed: not before this moment.
    Until(Instant),
}

impl Lane {
    /// Works until it is dropped.
    pub(crate) async fn run(self) {
        let mut work = self.plane.work.subscribe();
        let mut plans = self.plane.fallback.plan().subscribe();
        let mut breaker = self.store.breaker.watch();
        let mut window = DrainWindow::new(&self.config);
        loop {
            work.mark_unchanged();
            plans.mark_unchanged();
            breaker.mark_unchanged();
            let pause = if self.may_drain() { self.drain(&mut window).await } else { Pause::Idle };
            let until = match pause {
                Pause::Idle => None,
                Pause::Until(until) => Some(until),
            };
            tokio::select! {
                biased;
                _ = work.changed(), if until.is_none() => {}
                _ = plans.changed() => {}
                _ = breaker.changed() => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    fn may_drain(&self) -> bool {
        self.plane.fallback.plan().load().may_drain() && self.ready() > 0
    }

    fn ready(&self) -> usize {
        self.plane.ledger().ready(&self.store.name, self.undo)
    }

    fn purpose(&self) -> Purpose {
        if self.undo { Purpose::Compensation } else { Purpose::Drain }
    }

    /// Works until nothing is left, a step fails or the gate refuses.
    async fn drain(&self, window: &mut DrainWindow) -> Pause {
        window.begin();
        let mut running = FuturesUnordered::new();
        let mut pause = None;
        let mut session = Session::default();
        loop {
            let mut crowded = None;
            while pause.is_none() && self.may_drain() && running.len() < window.allows(self.store.bulkhead.live()) {
                let permit = match self.store.permit(self.purpose()) {
                    Ok(permit) => permit,
                    Err(denied) if denied.is_crowded() => {
                        crowded = Some(denied.retry_after());
                        break;
                    }
                    Err(denied) => {
                        pause = Some(Instant::now() + denied.retry_after().max(ASK_AGAIN));
                        break;
                    }
                };
                let most = window.batch(self.store.max_batch);
                let steps = self.plane.ledger().take(&self.store.name, self.undo, most);
                if steps.is_empty() {
                    break;
                }
                // From here on the steps are given back, also if their future is dropped before it was ever polled.
                let taken = |step| Taken { plane: &self.plane, backend: &self.store.name, step: Some(step) };
                let taken = steps.iter().cloned().map(taken).collect();
                session.start(self);
                running.push(self.work(taken, steps, permit));
            }
            // Others have taken all places: the drain is still on, and comes again in a moment.
            if let (true, Some(wait)) = (running.is_empty(), crowded) {
                sleep(wait).await;
                continue;
            }
            let Some(results) = running.next().await else { break };
            if results.contains(&StepResult::Again) {
                let wait = self.status.failed(window, &self.config);
                pause = Some(Instant::now() + wait);
            } else if results.contains(&StepResult::Done) {
                window.succeeded();
            }
            for _ in results.iter().filter(|result| **result != StepResult::Again) {
                self.status.drained();
                session.step(self);
            }
        }
        session.stop(self);
        pause.map_or(Pause::Idle, Pause::Until)
    }

    async fn work(&self, taken: Vec<Taken<'_>>, steps: Vec<Step>, mut permit: CallPermit) -> Vec<StepResult> {
        let until = Instant::now() + self.store.config.timeout;
        let results = match &steps[..] {
            [step] => vec![attempt(&self.plane, &mut permit, step, until, Tries::One).await],
            steps => attempt_batch(&self.plane, &mut permit, steps, until).await,
        };
        drop(permit);
        let alone = steps.len() == 1;
        for ((taken, step), result) in taken.into_iter().zip(&steps).zip(&results) {
            taken.settle(result);
            // An outage says nothing about this step, nor does what happened to many.
            if alone && *result == StepResult::Again && self.store.breaker.view().state == BreakerState::Closed {
                self.plane.ledger().failed(&self.store.name, step);
            }
        }
        results
    }
}

/// One stretch of draining, for the events.
#[derive(Default)]
struct Session {
    started: bool,
    drained: usize,
}

impl Session {
    fn start(&mut self, lane: &Lane) {
        if !self.started {
            self.started = true;
            lane.publish(|backend, owed| EventKind::DrainStarted { backend, owed });
        }
    }

    fn step(&mut self, lane: &Lane) {
        self.drained += 1;
        if self.drained.is_multiple_of(lane.config.batch) {
            let drained = self.drained;
            lane.publish(|backend, owed| EventKind::DrainProgressed { backend, drained, owed });
        }
    }

    fn stop(&self, lane: &Lane) {
        if self.started {
            let drained = self.drained;
            lane.publish(|backend, owed| EventKind::DrainStopped { backend, drained, owed });
        }
    }
}

impl Lane {
    fn publish(&self, kind: impl FnOnce(BackendName, usize) -> EventKind) {
        let owed = self.plane.ledger().owed(&self.store.name);
        self.plane.events.publish(kind(self.store.name.clone(), owed));
    }
}

/// Tries one step on its backend.
pub(crate) async fn attempt(
    plane: &DataPlane,
    permit: &mut CallPermit,
    step: &Step,
    until: Instant,
    tries: Tries,
) -> StepResult {
    let result = permit.apply(until, tries, &fenced(step), false, &plane.versions).await;
    judge(plane, &permit.store().name, result)
}

/// Tries several steps of different keys on their backend, in one call.
async fn attempt_batch(plane: &DataPlane, permit: &mut CallPermit, steps: &[Step], until: Instant) -> Vec<StepResult> {
    let writes: Vec<FencedWrite> = steps.iter().map(fenced).collect();
    let answers = permit.apply_batch(until, &writes, &plane.versions).await.unwrap_or_default();
    let name = &permit.store().name;
    let mut results: Vec<StepResult> = answers.into_iter().map(|answer| judge(plane, name, answer)).collect();
    // What went wrong with all of them is found out with one alone.
    results.resize(steps.len(), StepResult::Again);
    results
}

fn fenced(step: &Step) -> FencedWrite {
    FencedWrite {
        operation: step.operation,
        version: step.version,
        fence: if step.undo || step.redriven { Fence::Compensation } else { Fence::Write },
        changes: Arc::clone(&step.changes),
    }
}

/// What became of a step, when its backend said this.
fn judge(plane: &DataPlane, name: &BackendName, result: Result<Applied, FailedCall>) -> StepResult {
    match result {
        Ok(_) => {
            if plane.fallback.plan().load().access(name) == Access::ReadOnly {
                plane.fallback.write_accepted(name.clone());
            }
            StepResult::Done
        }
        Err(error) => match error.backend() {
            Some(error) => {
                if error.kind == crate::backend::ErrorKind::ReadOnly {
                    plane.fallback.write_refused(name.clone());
                }
                // A version of somebody else's stays in the way for ever: a person has to look.
                if error.verdict().hopeless || is_foreign(error) {
                    StepResult::Dead(error.to_string())
                } else {
                    StepResult::Again
                }
            }
            None => StepResult::Again,
        },
    }
}

/// Gives a step back to the ledger, and tells the journal and everybody else.
pub(crate) fn settle(plane: &DataPlane, backend: &BackendName, step: &Step, result: &StepResult) {
    let (records, others) = {
        let mut ledger = plane.ledger();
        (ledger.settle(backend, step, result), ledger.ready(backend, !step.undo))
    };
    if others > 0 {
        // A write may have waited for this compensation, or the other way round, and another lane has it.
        plane.work.send_replace(());
    }
    for record in &records {
        match record {
            JournalRecord::DeadLetter { version, backend, reason } => {
                plane.sagas.parked();
                plane.events.publish(EventKind::DeadLetterAdded {
                    operation: step.operation,
                    version: *version,
                    backend: backend.clone(),
                    reason: reason.clone(),
                });
            }
            JournalRecord::Closed { version, operation, .. } if step.undo => {
                plane.events.publish(EventKind::SagaRolledBack { operation: *operation, version: *version });
            }
            _ => {}
        }
    }
    plane.note(records);
}
