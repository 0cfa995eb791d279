//! The meaning of the journal: which backend owes what.
//!
//! A plain fold over [`JournalRecord`]s, the same live and at recovery, plus what only lives: which legs are being
//! worked on right now. It gives the per-key order (a write queues behind what its key still owes to a backend),
//! the read overlay (an owed write is newer than what the backends hold) and the work for the drain.
//!
//! | file | what it has |
//! |---|---|
//! | here | the entries, and what can be asked about them |
//! | `fold` | how records and sagas change them |
//! | `lanes` | what is ready for each backend: the order, and the work of the drain |
//! | `overlay` | what a reader has to know of a key |
//! | `redrive` | what a store has lost is owed again |

mod fold;
mod lanes;
mod overlay;
mod redrive;
#[cfg(test)]
mod tests;

pub use lanes::{Step, StepResult};
pub use overlay::{Overlay, Pending};
pub use redrive::Redriven;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use self::lanes::{Lane, Place};
use crate::backend::BackendName;
use crate::journal::{Ending, Intent, JournalRecord, QueueConfig};
use crate::operation::{Change, OperationId, Outcome, Version};
use crate::record::Key;

/// The reason of a dead letter in an entry that is written down anew, when it is none any more.
pub const TRIED_AGAIN: &str = "tried again since";

/// Where one backend stands with one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegState {
    /// It owes the write.
    Owed,
    /// It is being given the write, or its compensation.
    InFlight,
    /// It has the write.
    Done,
    /// It owes the compensation.
    UndoOwed,
    /// It does not have the write.
    Undone,
    /// It will never take the write (or its compensation), for this reason.
    Dead(String),
}

impl LegState {
    /// Whether work is left that nobody has to ask for.
    fn is_owing(&self) -> bool {
        matches!(self, Self::Owed | Self::InFlight | Self::UndoOwed)
    }

    fn is_finished(&self) -> bool {
        matches!(self, Self::Done | Self::Undone)
    }
}

/// How a leg stands in the way of later writes of its keys on its backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bar {
    /// Not at all.
    Open,
    /// A merge has to wait: without this write it would be merged into the wrong thing, and what is merged could
    /// not be told apart later. A change that says all may pass.
    Merges,
    /// Everything has to wait.
    All,
}

#[derive(Debug)]
struct Leg {
    backend: BackendName,
    state: LegState,
    /// The backend may have the write, though nobody has seen it confirm.
    attempted: bool,
    /// It was a dead letter, and may be one still.
    died: bool,
    /// It is a merge that waits for a dead letter, and so for a person.
    parked: bool,
    /// How often the drain has failed with it while the backend was well.
    failed: u32,
    /// Where it is among the ready ones of its lane, if it is.
    place: Option<Place>,
}

impl Leg {
    fn owed(backend: BackendName) -> Self {
        Self { backend, state: LegState::Owed, attempted: false, died: false, parked: false, failed: 0, place: None }
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, LegState::Dead(_))
    }

    fn bar(&self) -> Bar {
        match self.state {
            LegState::Done | LegState::Undone => Bar::Open,
            LegState::Dead(_) => Bar::Merges,
            LegState::Owed if self.parked => Bar::Merges,
            LegState::Owed | LegState::InFlight | LegState::UndoOwed => Bar::All,
        }
    }
}

#[derive(Debug)]
struct Decision {
    cause: BackendName,
    ending: Ending,
}

#[derive(Debug)]
struct Entry {
    intent: Arc<Intent>,
    legs: SmallVec<[Leg; 2]>,
    decision: Option<Decision>,
    /// It would survive a crash.
    durable: bool,
    /// A saga works on it. Until it lets go, the drain leaves the entry alone.
    held: bool,
    /// The caller has a receipt: readers see it though it is held.
    acknowledged: bool,
    /// It is, or has been, such that a later write of its keys could be finished before it.
    passable: bool,
    /// It was read back after a restart.
    recovered: bool,
    /// What was to be written down of it could not be, and may be found by a restart all the same. Until it is written
    /// down anew nobody knows how it ends, and nothing is done for it: a restart may decide otherwise, and does not
    /// know of what happened since.
    doubtful: bool,
    /// It is over before it began, in doubt only because the disk may have its intent. Nothing of its keys passes it
    /// before its end is written down: a restart would put it in its place.
    doomed: bool,
    /// It gives a store again what it has lost: what its changes say goes over its own version, too.
    redriven: bool,
    bytes: usize,
}

impl Entry {
    fn leg(&self, backend: &BackendName) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.backend == *backend)
    }

    fn leg_mut(&mut self, backend: &BackendName) -> Option<&mut Leg> {
        self.legs.iter_mut().find(|leg| leg.backend == *backend)
    }

    fn states(&self) -> Vec<(BackendName, LegState)> {
        self.legs.iter().map(|leg| (leg.backend.clone(), leg.state.clone())).collect()
    }

    fn undo_for(&self, backend: &BackendName) -> Option<&Arc<[Change]>> {
        self.intent.undo.iter().find(|(name, _)| name == backend).map(|(_, changes)| changes)
    }

    /// The ending that the legs have come to, if they all have.
    fn ending(&self) -> Option<Ending> {
        let (goal, ending) = match &self.decision {
            None => (LegState::Done, Ending::Committed),
            Some(decision) => (LegState::Undone, decision.ending),
        };
        self.legs.iter().all(|leg| leg.state == goal).then_some(ending)
    }
}

/// Why the ledger takes no more entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Entries that it holds.
    pub entries: usize,
    /// Bytes that they take.
    pub bytes: usize,
}

/// One dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The operation.
    pub operation: OperationId,
    /// Its version.
    pub version: Version,
    /// The keys that it changes.
    pub keys: Vec<Key>,
    /// The backend that refuses it.
    pub backend: BackendName,
    /// What the backend said.
    pub reason: String,
    /// Whether it is the compensation that is refused.
    pub undo: bool,
    /// Whether it can be tried again. A compensation without anything to go back to can only be discarded.
    pub retriable: bool,
}

/// The index over all unfinished entries, and a memory of finished ones.
#[derive(Debug)]
pub struct Ledger {
    limits: QueueConfig,
    /// Boxed: a map that holds its values inside wastes half of that when they come in their order.
    entries: BTreeMap<Version, Box<Entry>>,
    /// Unfinished entries of each key, oldest first.
    chains: HashMap<Key, SmallVec<[Version; 2]>, RandomState>,
    lanes: HashMap<BackendName, Lane, RandomState>,
    operations: HashMap<OperationId, Version, RandomState>,
    finished: HashMap<OperationId, (Version, Ending), RandomState>,
    finished_order: VecDeque<(OperationId, Version)>,
    bytes: usize,
    dead: usize,
    deciding: usize,
    highest: Version,
    /// What has ended, while somebody follows.
    following: Option<Vec<(Arc<Intent>, Ending)>>,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(limits: QueueConfig) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            chains: HashMap::default(),
            lanes: HashMap::default(),
            operations: HashMap::default(),
            finished: HashMap::default(),
            finished_order: VecDeque::new(),
            bytes: 0,
            dead: 0,
            deciding: 0,
            highest: Version(0),
            following: None,
        }
    }

    /// How much it may hold.
    #[must_use]
    pub fn limits(&self) -> &QueueConfig {
        &self.limits
    }

    /// Unfinished entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is unfinished.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that the unfinished entries take, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Dead letters.
    #[must_use]
    pub fn dead(&self) -> usize {
        self.dead
    }

    /// Entries that are being undone.
    #[must_use]
    pub fn compensating(&self) -> usize {
        self.deciding
    }

    /// The highest version that any record named.
    #[must_use]
    pub fn highest(&self) -> Version {
        self.highest
    }

    /// The lowest version that is not finished.
    #[must_use]
    pub fn oldest(&self) -> Option<Version> {
        self.entries.first_key_value().map(|(version, _)| *version)
    }

    /// Legs of a backend that are not finished, dead letters included.
    #[must_use]
    pub fn owed(&self, backend: &BackendName) -> usize {
        self.lanes.get(backend).map_or(0, |lane| lane.owed)
    }

    /// The backends that anything is owed to.
    pub fn backends(&self) -> impl Iterator<Item = (&BackendName, usize)> {
        self.lanes.iter().filter(|(_, lane)| lane.owed > 0).map(|(name, lane)| (name, lane.owed))
    }

    /// Whether an entry of this weight may be added.
    ///
    /// # Errors
    /// How full the ledger is.
    pub fn room(&self, bytes: usize) -> Result<(), Full> {
        if self.entries.len() >= self.limits.max_entries || self.bytes + bytes > self.limits.max_bytes {
            return Err(Full { entries: self.entries.len(), bytes: self.bytes });
        }
        Ok(())
    }

    /// What became of an operation.
    #[must_use]
    pub fn outcome(&self, operation: OperationId) -> Outcome {
        if let Some(version) = self.operations.get(&operation) {
            return self.outcome_of(*version);
        }
        match self.finished.get(&operation) {
            Some((version, Ending::Committed)) => Outcome::Committed(*version),
            Some((version, Ending::RolledBack)) => Outcome::RolledBack(*version),
            Some((version, Ending::Discarded)) => Outcome::Discarded(*version),
            None => Outcome::NotFound,
        }
    }

    fn outcome_of(&self, version: Version) -> Outcome {
        let entry = &self.entries[&version];
        let legs = |wanted: fn(&LegState) -> bool| -> Vec<BackendName> {
            entry.legs.iter().filter(|leg| wanted(&leg.state)).map(|leg| leg.backend.clone()).collect()
        };
        let owing = legs(LegState::is_owing);
        let refused_by = legs(|state| matches!(state, LegState::Dead(_)));
        if !refused_by.is_empty() {
            Outcome::DeadLetter { version, refused_by }
        } else if entry.decision.is_some() {
            Outcome::Compensating { version, owing }
        } else {
            Outcome::Pending { version, owing, durable: entry.durable }
        }
    }

    /// Whether nobody knows yet how this operation ends: a saga still works on it, or left it in doubt.
    #[must_use]
    pub fn is_unsettled(&self, operation: OperationId) -> bool {
        let entry = self.operations.get(&operation).map(|version| &self.entries[version]);
        entry.is_some_and(|entry| entry.held || entry.doubtful)
    }

    /// All dead letters, oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let mut letters = Vec::with_capacity(self.dead);
        for (version, entry) in &self.entries {
            for leg in &entry.legs {
                if let LegState::Dead(reason) = &leg.state {
                    letters.push(DeadLetter {
                        operation: entry.intent.operation,
                        version: *version,
                        keys: entry.intent.changes.iter().map(|change| change.key().clone()).collect(),
                        backend: leg.backend.clone(),
                        reason: reason.clone(),
                        undo: entry.decision.is_some(),
                        retriable: entry.decision.is_none() || entry.undo_for(&leg.backend).is_some(),
                    });
                }
            }
        }
        letters
    }

    /// Whether there is an entry of this version that would not survive a crash.
    #[must_use]
    pub fn is_volatile(&self, version: Version) -> bool {
        self.entries.get(&version).is_some_and(|entry| !entry.durable)
    }

    /// The intents that would not survive a crash and that no saga holds, oldest first.
    #[must_use]
    pub fn volatile(&self) -> Vec<Arc<Intent>> {
        self.entries
            .values()
            .filter(|entry| !entry.durable && !entry.held)
            .map(|entry| Arc::clone(&entry.intent))
            .collect()
    }

    /// The records that say all about an entry, for writing it down anew; of one that is doomed, that it is over.
    #[must_use]
    pub fn records_of(&self, version: Version) -> Vec<JournalRecord> {
        let Some(entry) = self.entries.get(&version) else { return Vec::new() };
        if entry.doomed {
            let operation = entry.intent.operation;
            return vec![JournalRecord::Closed { version, operation, ending: Ending::RolledBack }];
        }
        let intent = Arc::clone(&entry.intent);
        let opens = if entry.redriven { JournalRecord::Redriven(intent) } else { JournalRecord::Intent(intent) };
        let mut records = vec![opens];
        let backend = |leg: &Leg| leg.backend.clone();
        for leg in entry.legs.iter().filter(|leg| leg.died && !leg.is_dead()) {
            let reason = TRIED_AGAIN.to_owned();
            records.push(JournalRecord::DeadLetter { version, backend: backend(leg), reason });
            records.push(JournalRecord::Revived { version, backend: backend(leg) });
        }
        records.extend(
            entry
                .legs
                .iter()
                .filter(|leg| matches!(leg.state, LegState::Done | LegState::UndoOwed))
                .map(|leg| JournalRecord::Done { version, backend: backend(leg) }),
        );
        if let Some(decision) = &entry.decision {
            records.push(JournalRecord::Decided {
                version,
                cause: decision.cause.clone(),
                reason: String::new(),
                ending: decision.ending,
            });
        }
        for leg in &entry.legs {
            match &leg.state {
                LegState::Undone => records.push(JournalRecord::Undone { version, backend: backend(leg) }),
                LegState::Dead(reason) => {
                    records.push(JournalRecord::DeadLetter { version, backend: backend(leg), reason: reason.clone() });
                }
                _ => {}
            }
        }
        records
    }

    /// The version of an unfinished operation.
    #[must_use]
    pub fn version_of(&self, operation: OperationId) -> Option<Version> {
        self.operations.get(&operation).copied()
    }

    fn chain(&self, key: &Key) -> impl Iterator<Item = Version> {
        self.chains.get(key).into_iter().flatten().copied()
    }
}
