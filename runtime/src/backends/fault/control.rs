//! The handle that tells a [`FaultyBackend`](super::FaultyBackend) what to do, and what it did.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seawall_actors::backend::{Applied, Fence, FencedWrite};
use seawall_actors::operation::{OperationId, Version};
use seawall_actors::record::Key;
use tokio::sync::watch;
use tokio::time::Instant;

use super::plan::Seeded;
use super::{Fault, FaultPlan, Op, Ops};

const OPS: usize = Op::ALL.len();

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// How many were made.
    pub made: u64,
    /// How many of those met a fault, [`Fault::Slow`] included.
    pub faulted: u64,
    /// How many got through to the backend, late ones included.
    pub reached: u64,
}

/// All calls so far. A call that is dropped is no longer running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of all kinds.
    pub total: u64,
    /// Calls that are running.
    pub running: u64,
    /// The most that were running at the same time.
    pub running_max: u64,
    of: [Calls; OPS],
}

impl Counts {
    /// Calls of one kind.
    #[must_use]
    pub fn of(&self, op: Op) -> Calls {
        self.of[op as usize]
    }
}

/// A change that the wrapped backend answered with success, whether or not the caller learnt of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// When, by tokio's clock.
    pub at: Instant,
    /// The operation.
    pub operation: OperationId,
    /// The key that it changes.
    pub key: Key,
    /// Its version.
    pub version: Version,
    /// Its fence.
    pub fence: Fence,
    /// What the backend said of the whole write. What was superseded is in the history too.
    pub applied: Applied,
}

/// Tells a [`FaultyBackend`](super::FaultyBackend) what to do. Clones control the same backend.
#[derive(Clone, Debug)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    /// How often each kind of call was healed.
    healed: watch::Sender<[u64; OPS]>,
}

#[derive(Debug, Default)]
struct State {
    scripted: [VecDeque<Scripted>; OPS],
    set: [Option<Fault>; OPS],
    /// Calls since the fault was set, for [`Fault::FailsNofM`].
    since_set: [u64; OPS],
    seeded: Seeded,
    counts: Counts,
    history: Option<Vec<Accepted>>,
}

/// A fault for a number of calls.
#[derive(Clone, Copy, Debug)]
struct Scripted {
    fault: Fault,
    calls: u64,
    made: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

impl Faults {
    /// No faults.
    #[must_use]
    pub fn new() -> Self {
        Self::seeded(0, FaultPlan::new())
    }

    /// Faults by chance. The same seed gives the n-th call of a kind the same fault.
    #[must_use]
    pub fn seeded(seed: u64, plan: FaultPlan) -> Self {
        let state = State { seeded: Seeded { seed, plan }, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), healed: watch::Sender::new([0; OPS]) }
    }

    /// Sets a fault for these calls until it is changed or healed. Calls that hang are woken, as by healing.
    pub fn set(&self, ops: impl Into<Ops>, fault: Fault) {
        self.change(ops.into(), |state, op| {
            state.set[op] = Some(fault);
            state.since_set[op] = 0;
        });
    }

    /// Scripts a fault for the next `calls` of each of these kinds, after what was scripted before.
    pub fn next(&self, ops: impl Into<Ops>, calls: u64, fault: Fault) {
        let ops = ops.into();
        let mut state = self.state();
        for op in Op::ALL.into_iter().filter(|op| ops.has(*op) && calls > 0) {
            state.scripted[op as usize].push_back(Scripted { fault, calls, made: 0 });
        }
    }

    /// Ends the faults that are set or scripted for these calls, and wakes those that hang. A plan stays.
    pub fn heal(&self, ops: impl Into<Ops>) {
        self.change(ops.into(), |state, op| {
            state.set[op] = None;
            state.scripted[op].clear();
        });
    }

    /// Replaces the plan and the seed; the calls are counted on.
    pub fn replan(&self, seed: u64, plan: FaultPlan) {
        self.state().seeded = Seeded { seed, plan };
    }

    /// All calls so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts.clone()
    }

    /// Keeps a history of accepted writes from now on. It is not bounded.
    pub fn keep_history(&self) {
        self.state().history.get_or_insert_default();
    }

    /// The accepted writes in the order in which the backend answered; empty when they are not kept.
    #[must_use]
    pub fn history(&self) -> Vec<Accepted> {
        self.state().history.clone().unwrap_or_default()
    }

    fn change(&self, ops: Ops, change: impl Fn(&mut State, usize)) {
        let ops = || Op::ALL.into_iter().filter(|op| ops.has(*op)).map(|op| op as usize);
        let mut state = self.state();
        ops().for_each(|op| change(&mut state, op));
        drop(state);
        self.healed.send_modify(|healed| ops().for_each(|op| healed[op] += 1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and says what it meets.
    pub(super) fn begin(&self, op: Op) -> Call {
        // Before the fault is chosen: a healing in between is then not missed.
        let healed = self.healed.subscribe();
        let mut state = self.state();
        let n = op as usize;
        let nth = state.counts.of[n].made;
        state.counts.of[n].made += 1;
        state.counts.total += 1;
        state.counts.running += 1;
        state.counts.running_max = state.counts.running_max.max(state.counts.running);
        let fault = state.fault(op, nth);
        state.counts.of[n].faulted += u64::from(fault != Fault::None);
        drop(state);
        let healed_before = healed.borrow()[n];
        Call { faults: self.clone(), op, fault, healed, healed_before }
    }

    pub(super) fn reached(&self, op: Op) {
        self.state().counts.of[op as usize].reached += 1;
    }

    pub(super) fn accepted(&self, write: &FencedWrite, applied: Applied) {
        let at = Instant::now();
        let mut state = self.state();
        if let Some(history) = &mut state.history {
            history.extend(write.changes.iter().map(|change| Accepted {
                at,
                operation: write.operation,
                key: change.key().clone(),
                version: write.version,
                fence: write.fence,
                applied,
            }));
        }
    }
}

impl State {
    fn fault(&mut self, op: Op, nth: u64) -> Fault {
        let n = op as usize;
        let fault = self.scripted_fault(n).or_else(|| {
            let fault = self.set[n]?;
            self.since_set[n] += 1;
            Some((fault, self.since_set[n] - 1))
        });
        match fault.or_else(|| Some((self.seeded.draw(op, nth)?, nth))) {
            Some((Fault::FailsNofM { n, m }, nth)) if nth % u64::from(m.max(1)) < u64::from(n) => Fault::Down,
            Some((Fault::FailsNofM { .. }, _)) | None => Fault::None,
            Some((Fault::ReadOnly, _)) if !op.is_write() && op != Op::Probe => Fault::None,
            Some((fault, _)) => fault,
        }
    }

    /// The next scripted fault, and how many calls met it before this one.
    fn scripted_fault(&mut self, n: usize) -> Option<(Fault, u64)> {
        let script = self.scripted[n].front_mut()?;
        script.made += 1;
        let Scripted { fault, calls, made } = *script;
        if made == calls {
            self.scripted[n].pop_front();
        }
        Some((fault, made - 1))
    }
}

/// A call that is running.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) faults: Faults,
    pub(super) op: Op,
    pub(super) fault: Fault,
    healed: watch::Receiver<[u64; OPS]>,
    healed_before: u64,
}

impl Call {
    /// Waits until calls of this kind are healed.
    pub(super) async fn hang(&mut self) {
        let (op, before) = (self.op as usize, self.healed_before);
        let healed = self.healed.wait_for(|healed| healed[op] != before).await;
        // An error means that the sender is gone, of which the call itself holds a clone.
        drop(healed);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.faults.state().counts.running -= 1;
    }
}
