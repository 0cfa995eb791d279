//! The meaning of the journal: which backend owes what.
//!
//! A plain fold over [`JournalRecord`]s, the same live and at recovery, plus what only lives: which legs are being
//! worked on right now. It gives the per-key order (a write queues behind what its key still owes to a backend),
//! the read overlay (an owed write is newer than what the backends hold) and the work for the drain.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::backend::BackendName;
use crate::journal::{Ending, Intent, JournalRecord, QueueConfig};
use crate::operation::{Change, OperationId, Outcome, Priority, Version};
use crate::record::{Key, Record};

const NO_PRE_IMAGE: &str = "there is no pre-image to go back to";

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
    /// Whether later writes of the key have to wait for this leg. A dead letter blocks nobody.
    fn blocks(&self) -> bool {
        matches!(self, Self::Owed | Self::InFlight | Self::UndoOwed)
    }
}

#[derive(Debug)]
struct Leg {
    backend: BackendName,
    state: LegState,
    /// The backend may have the write, though nobody has seen it confirm.
    attempted: bool,
}

#[derive(Debug)]
struct Decision {
    cause: BackendName,
    ending: Ending,
}

#[derive(Debug)]
struct Entry {
    intent: Arc<Intent>,
    legs: Vec<Leg>,
    decision: Option<Decision>,
    /// It would survive a crash.
    durable: bool,
    /// A saga works on it. Until it lets go, the drain leaves the entry alone.
    held: bool,
    /// Its caller has a receipt, so readers see it. Without one they do not until the saga lets go.
    acknowledged: bool,
    bytes: usize,
}

impl Entry {
    fn leg(&self, backend: &BackendName) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.backend == *backend)
    }

    fn leg_mut(&mut self, backend: &BackendName) -> Option<&mut Leg> {
        self.legs.iter_mut().find(|leg| leg.backend == *backend)
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

/// One piece of work on one backend, handed out by [`Ledger::take`] and to be given back by
/// [`Ledger::settle`].
#[derive(Clone, Debug)]
pub struct Step {
    /// The entry.
    pub version: Version,
    /// Its operation.
    pub operation: OperationId,
    /// What is to be applied.
    pub changes: Arc<[Change]>,
    /// Older entries of the same key that this step makes superfluous: struck off with it.
    pub supersedes: Vec<Version>,
    /// Whether this is a compensation.
    pub undo: bool,
}

/// How a [`Step`] went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// The backend has it.
    Done,
    /// Not now; it may have happened all the same.
    Again,
    /// It never will, for this reason.
    Dead(String),
}

/// What the journal knows of a key that the backends may not know yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlay {
    /// The changes since the last one that says all, oldest first; never empty.
    pub changes: Vec<(Version, Change)>,
    /// The newest of them is a dead letter: a backend may hold something newer by now.
    pub settled: bool,
}

impl Overlay {
    /// The newest version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.changes.last().map(|(version, _)| *version).unwrap_or_default()
    }

    /// Whether the changes say all, without a base from a backend or the cache.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.settled && self.changes.first().is_some_and(|(_, change)| change.is_full())
    }

    /// The record that the changes make of a base of this version: only what is newer than the base is applied.
    #[must_use]
    pub fn over(&self, base: Option<Record>, base_version: Version) -> Option<Record> {
        self.changes
            .iter()
            .filter(|(version, _)| *version > base_version)
            .fold(base, |record, (_, change)| change.apply_to(record))
    }
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
}

#[derive(Debug, Default)]
struct Lane {
    /// Legs that are not finished: owed, in flight or dead.
    owed: usize,
    /// Legs that could be worked on now: nothing of their keys is in front of them.
    ready: BTreeSet<(Reverse<Priority>, Version)>,
    /// Compensations among the ready legs.
    ready_undo: BTreeSet<Version>,
}

/// The index over all unfinished entries, and a memory of finished ones.
#[derive(Debug)]
pub struct Ledger {
    limits: QueueConfig,
    entries: BTreeMap<Version, Entry>,
    /// Unfinished entries of each key, oldest first.
    chains: HashMap<Key, Vec<Version>>,
    lanes: HashMap<BackendName, Lane>,
    operations: HashMap<OperationId, Version>,
    finished: HashMap<OperationId, (Version, Ending)>,
    finished_order: VecDeque<OperationId>,
    bytes: usize,
    dead: usize,
    deciding: usize,
    highest: Version,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(limits: QueueConfig) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            chains: HashMap::new(),
            lanes: HashMap::new(),
            operations: HashMap::new(),
            finished: HashMap::new(),
            finished_order: VecDeque::new(),
            bytes: 0,
            dead: 0,
            deciding: 0,
            highest: Version(0),
        }
    }

    // ----- what is known ------------------------------------------------------------------------------------

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

    /// Whether a write to these keys has to queue on this backend behind something that is owed.
    #[must_use]
    pub fn is_behind<'a>(&self, backend: &BackendName, keys: impl IntoIterator<Item = &'a Key>) -> bool {
        keys.into_iter().any(|key| {
            self.chain(key).any(|version| self.entries[&version].leg(backend).is_some_and(|leg| leg.state.blocks()))
        })
    }

    /// What is known of a key beyond what the backends hold. Entries that are not acknowledged yet are not shown;
    /// those that are being undone are, as what was there before.
    #[must_use]
    pub fn overlay(&self, key: &Key) -> Option<Overlay> {
        let mut changes = Vec::new();
        let mut settled = false;
        for version in self.chain(key) {
            let entry = &self.entries[&version];
            if !entry.acknowledged && entry.decision.is_none() {
                continue;
            }
            let source = match &entry.decision {
                None => Some(&entry.intent.changes),
                // Being undone: readers see what was there before.
                Some(_) => entry.intent.undo.first().map(|(_, changes)| changes),
            };
            if let Some(change) = source.and_then(|changes| changes.iter().find(|change| change.key() == key)) {
                if change.is_full() {
                    changes.clear();
                }
                changes.push((version, change.clone()));
                settled = !entry.legs.iter().any(|leg| leg.state.blocks());
            }
        }
        (!changes.is_empty()).then_some(Overlay { changes, settled })
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
        let owing = legs(LegState::blocks);
        let refused_by = legs(|state| matches!(state, LegState::Dead(_)));
        if !refused_by.is_empty() {
            Outcome::DeadLetter { version, refused_by }
        } else if entry.decision.is_some() {
            Outcome::Compensating { version, owing }
        } else {
            Outcome::Pending { version, owing, durable: entry.durable }
        }
    }

    /// Whether a saga still works on this operation.
    #[must_use]
    pub fn is_held(&self, operation: OperationId) -> bool {
        self.operations.get(&operation).is_some_and(|version| self.entries[version].held)
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
                    });
                }
            }
        }
        letters
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

    /// The records that say all about an entry, for writing it down anew.
    #[must_use]
    pub fn records_of(&self, version: Version) -> Vec<JournalRecord> {
        let Some(entry) = self.entries.get(&version) else { return Vec::new() };
        let mut records = vec![JournalRecord::Intent(Arc::clone(&entry.intent))];
        let backend = |leg: &Leg| leg.backend.clone();
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

    // ----- the fold -----------------------------------------------------------------------------------------

    /// Folds one record in. A record that does not fit what is known is passed over: it belongs to an entry
    /// that is finished.
    pub fn apply(&mut self, record: &JournalRecord) {
        self.highest = self.highest.max(match record {
            JournalRecord::Reserved { up_to } => *up_to,
            other => other.version().unwrap_or_default(),
        });
        match record {
            JournalRecord::Intent(intent) => self.insert(Arc::clone(intent), true, false),
            JournalRecord::Done { version, backend } => self.set(*version, backend, LegState::Done),
            JournalRecord::Undone { version, backend } => self.set(*version, backend, LegState::Undone),
            JournalRecord::DeadLetter { version, backend, reason } => {
                self.set(*version, backend, LegState::Dead(reason.clone()));
            }
            JournalRecord::Revived { version, backend } => self.revive(*version, backend),
            JournalRecord::Decided { version, cause, ending, .. } => self.decide(*version, cause, *ending),
            JournalRecord::Closed { version, operation, ending } => {
                self.remove(*version);
                self.remember(*operation, *version, *ending);
            }
            JournalRecord::Reserved { .. } => {}
        }
    }

    /// Lets go of legs and entries that were being worked on: after recovery, nobody works on anything.
    /// A leg in flight may have happened.
    pub fn release_all(&mut self) {
        let versions: Vec<Version> = self.entries.keys().copied().collect();
        for version in versions {
            self.release(version);
        }
    }

    /// Adds an accepted write that a saga works on: the legs in `now` are in flight, the others owed.
    pub fn begin(&mut self, intent: &Arc<Intent>, now: &[BackendName], durable: bool) {
        self.highest = self.highest.max(intent.version);
        self.insert(Arc::clone(intent), durable, true);
        for backend in now {
            self.set(intent.version, backend, LegState::InFlight);
        }
    }

    /// Forgets an entry that was begun and could not be written down.
    pub fn abandon(&mut self, version: Version) {
        self.remove(version);
    }

    /// The entry is written down.
    pub fn set_durable(&mut self, version: Version) {
        if let Some(entry) = self.entries.get_mut(&version) {
            entry.durable = true;
        }
    }

    /// The caller has a receipt, though the saga goes on: readers see the entry from here on.
    pub fn acknowledge(&mut self, version: Version) {
        if let Some(entry) = self.entries.get_mut(&version) {
            entry.acknowledged = true;
        }
    }

    /// The saga lets go of its entry: what is not finished is the drain's from here on, and readers see it. Says
    /// whether anything is left.
    pub fn release(&mut self, version: Version) -> bool {
        let Some(entry) = self.entries.get_mut(&version) else { return false };
        (entry.held, entry.acknowledged) = (false, true);
        let undo = entry.decision.is_some();
        for leg in &mut entry.legs {
            if leg.state == LegState::InFlight {
                leg.attempted = true;
                leg.state = if undo { LegState::UndoOwed } else { LegState::Owed };
            }
        }
        self.refresh(version);
        true
    }

    /// The saga found a leg done, or not done.
    pub fn leg(&mut self, version: Version, backend: &BackendName, done: bool, perhaps: bool) {
        if done {
            self.set(version, backend, LegState::Done);
        } else {
            if let Some(leg) = self.entries.get_mut(&version).and_then(|entry| entry.leg_mut(backend)) {
                leg.attempted |= perhaps;
            }
            self.set(version, backend, LegState::Owed);
        }
    }

    /// From here on the entry is undone. Legs that never reached their backend need nothing; legs that did, or
    /// may have, owe the compensation.
    pub fn decide(&mut self, version: Version, cause: &BackendName, ending: Ending) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        if let Some(decision) = &mut entry.decision {
            decision.ending = ending;
            return;
        }
        self.deciding += 1;
        entry.decision = Some(Decision { cause: cause.clone(), ending });
        let states: Vec<(BackendName, LegState)> = entry
            .legs
            .iter()
            .map(|leg| {
                let touched = leg.attempted || matches!(leg.state, LegState::Done | LegState::InFlight);
                let state = match (touched, entry.undo_for(&leg.backend)) {
                    (false, _) => LegState::Undone,
                    (true, Some(_)) => LegState::UndoOwed,
                    (true, None) => LegState::Dead(NO_PRE_IMAGE.to_owned()),
                };
                (leg.backend.clone(), state)
            })
            .collect();
        for (backend, state) in states {
            self.set(version, &backend, state);
        }
    }

    /// The records that say which legs of an entry need no undoing. They belong with the decision: who reads it back
    /// does not know which backends were reached.
    #[must_use]
    pub fn undone(&self, version: Version) -> Vec<JournalRecord> {
        let legs = self.entries.get(&version).map(|entry| entry.legs.as_slice()).unwrap_or_default();
        let undone = legs.iter().filter(|leg| leg.state == LegState::Undone);
        undone.map(|leg| JournalRecord::Undone { version, backend: leg.backend.clone() }).collect()
    }

    /// Lets go of everything that is owed to a backend that is no longer there.
    pub fn forget_backend(&mut self, backend: &BackendName) {
        let versions: Vec<Version> = self.entries.keys().copied().collect();
        for version in versions {
            let Some(entry) = self.entries.get(&version) else { continue };
            let goal = if entry.decision.is_some() { LegState::Undone } else { LegState::Done };
            if let Some(entry) = self.entries.get_mut(&version)
                && let Some(leg) = entry.leg_mut(backend)
            {
                leg.state = goal;
            }
        }
        self.lanes.remove(backend);
        self.dead = self
            .entries
            .values()
            .flat_map(|entry| &entry.legs)
            .filter(|leg| matches!(leg.state, LegState::Dead(_)))
            .count();
        let versions: Vec<Version> = self.entries.keys().copied().collect();
        for version in versions {
            self.refresh(version);
            let _ = self.close(version);
        }
    }

    /// A dead letter is to be tried again.
    pub fn revive(&mut self, version: Version, backend: &BackendName) {
        let Some(entry) = self.entries.get(&version) else { return };
        let Some(Leg { state: LegState::Dead(_), .. }) = entry.leg(backend) else { return };
        let state = if entry.decision.is_some() { LegState::UndoOwed } else { LegState::Owed };
        self.set(version, backend, state);
    }

    /// A person gives up on the dead letters of an entry. What other backends have of it is undone where there is a
    /// pre-image to go back to; the rest stays as it is. Gives what is to be written down; nothing when the entry
    /// has no dead letter.
    pub fn discard(&mut self, version: Version) -> Vec<JournalRecord> {
        let dead_legs = |entry: &Entry| -> Vec<BackendName> {
            let dead = entry.legs.iter().filter(|leg| matches!(leg.state, LegState::Dead(_)));
            dead.map(|leg| leg.backend.clone()).collect()
        };
        let Some(cause) = self.entries.get(&version).and_then(|entry| dead_legs(entry).into_iter().next()) else {
            return Vec::new();
        };
        let mut records = Vec::new();
        let decided =
            JournalRecord::Decided { version, cause, reason: "discarded".to_owned(), ending: Ending::Discarded };
        self.apply(&decided);
        records.push(decided);
        let dead = self.entries.get(&version).map(dead_legs).unwrap_or_default();
        for backend in dead {
            self.apply(&JournalRecord::Undone { version, backend });
        }
        records.extend(self.undone(version));
        records.extend(self.close(version));
        records
    }

    /// The version of an unfinished operation.
    #[must_use]
    pub fn version_of(&self, operation: OperationId) -> Option<Version> {
        self.operations.get(&operation).copied()
    }

    /// Closes the entry if nobody owes anything for it: gives the record that says so.
    pub fn close(&mut self, version: Version) -> Option<JournalRecord> {
        let entry = self.entries.get(&version)?;
        let ending = entry.ending()?;
        let record = JournalRecord::Closed { version, operation: entry.intent.operation, ending };
        self.apply(&record);
        Some(record)
    }

    // ----- the drain ----------------------------------------------------------------------------------------

    /// Hands out at most `most` steps for a backend, high priority first, no two of one key: `undo` gives
    /// compensations, else writes. Owed writes of a key that a later one replaces whole go with that one.
    pub fn take(&mut self, backend: &BackendName, undo: bool, most: usize) -> Vec<Step> {
        let Some(lane) = self.lanes.get(backend) else { return Vec::new() };
        let ready: Vec<Version> = if undo {
            lane.ready_undo.iter().copied().take(most).collect()
        } else {
            lane.ready.iter().map(|(_, version)| *version).take(most).collect()
        };
        let mut steps = Vec::with_capacity(ready.len());
        for version in ready {
            let step = if undo { self.undo_step(version, backend) } else { Some(self.step(version, backend)) };
            let Some(step) = step else { continue };
            for version in step.supersedes.iter().chain([&step.version]) {
                self.set(*version, backend, LegState::InFlight);
            }
            steps.push(step);
        }
        steps
    }

    /// The compensations that one entry owes, handed out to the saga that still holds it.
    pub fn take_undo(&mut self, version: Version) -> Vec<(BackendName, Step)> {
        let Some(entry) = self.entries.get(&version) else { return Vec::new() };
        let owing: Vec<BackendName> =
            entry.legs.iter().filter(|leg| leg.state == LegState::UndoOwed).map(|leg| leg.backend.clone()).collect();
        let mut steps = Vec::with_capacity(owing.len());
        for backend in owing {
            if let Some(step) = self.undo_step(version, &backend) {
                self.set(version, &backend, LegState::InFlight);
                steps.push((backend, step));
            }
        }
        steps
    }

    /// How many steps could be handed out now.
    #[must_use]
    pub fn ready(&self, backend: &BackendName, undo: bool) -> usize {
        self.lanes.get(backend).map_or(0, |lane| if undo { lane.ready_undo.len() } else { lane.ready.len() })
    }

    /// Takes a step back with its result, and gives what is to be written down.
    pub fn settle(&mut self, backend: &BackendName, step: &Step, result: &StepResult) -> Vec<JournalRecord> {
        let mut records = Vec::with_capacity(1);
        match result {
            StepResult::Again => {
                for version in step.supersedes.iter().chain([&step.version]) {
                    if let Some(leg) = self.entries.get_mut(version).and_then(|entry| entry.leg_mut(backend)) {
                        leg.attempted = true;
                    }
                    self.set(*version, backend, if step.undo { LegState::UndoOwed } else { LegState::Owed });
                }
            }
            StepResult::Dead(reason) => {
                // What it would have replaced gets its own turn.
                for version in &step.supersedes {
                    self.set(*version, backend, LegState::Owed);
                }
                let record = JournalRecord::DeadLetter {
                    version: step.version,
                    backend: backend.clone(),
                    reason: reason.clone(),
                };
                self.apply(&record);
                records.push(record);
            }
            StepResult::Done => {
                for version in step.supersedes.iter().chain([&step.version]) {
                    let (version, backend) = (*version, backend.clone());
                    let record = if step.undo {
                        JournalRecord::Undone { version, backend }
                    } else {
                        JournalRecord::Done { version, backend }
                    };
                    self.apply(&record);
                    // The closing says it too.
                    records.push(self.close(version).unwrap_or(record));
                }
            }
        }
        records
    }

    fn step(&self, version: Version, backend: &BackendName) -> Step {
        let entry = &self.entries[&version];
        let mut last = version;
        let mut between = Vec::new();
        if let [change] = &*entry.intent.changes {
            let mut passed = vec![version];
            for later in self.chain(change.key()).filter(|later| *later > version) {
                let candidate = &self.entries[&later];
                // Never past an entry of several keys: its changes belong together.
                let plain = candidate.intent.changes.len() == 1 && !candidate.held && candidate.decision.is_none();
                match candidate.leg(backend).map(|leg| &leg.state) {
                    Some(LegState::Owed) if plain => {}
                    Some(LegState::Done | LegState::Undone | LegState::Dead(_)) | None => continue,
                    _ => break,
                }
                if candidate.intent.changes[0].is_full() {
                    last = later;
                    between.clone_from(&passed);
                }
                passed.push(later);
            }
        }
        let entry = &self.entries[&last];
        Step {
            version: last,
            operation: entry.intent.operation,
            changes: Arc::clone(&entry.intent.changes),
            supersedes: between,
            undo: false,
        }
    }

    fn undo_step(&self, version: Version, backend: &BackendName) -> Option<Step> {
        let entry = &self.entries[&version];
        let changes = Arc::clone(entry.undo_for(backend)?);
        Some(Step { version, operation: entry.intent.operation, changes, supersedes: Vec::new(), undo: true })
    }

    // ----- inside -------------------------------------------------------------------------------------------

    fn chain(&self, key: &Key) -> impl Iterator<Item = Version> {
        self.chains.get(key).into_iter().flatten().copied()
    }

    fn insert(&mut self, intent: Arc<Intent>, durable: bool, held: bool) {
        let version = intent.version;
        // Written down anew: the records that follow say the rest again.
        self.remove(version);
        let bytes = intent.weight();
        self.bytes += bytes;
        self.operations.insert(intent.operation, version);
        for change in &*intent.changes {
            let chain = self.chains.entry(change.key().clone()).or_default();
            let place = chain.partition_point(|other| *other < version);
            chain.insert(place, version);
        }
        let legs = intent
            .owes
            .iter()
            .map(|backend| Leg {
                backend: backend.clone(),
                state: LegState::Owed,
                // Read back after a crash: whoever registered how to take it back was about to do it.
                attempted: !held && intent.undo.iter().any(|(name, _)| name == backend),
            })
            .collect();
        for backend in &intent.owes {
            self.lanes.entry(backend.clone()).or_default().owed += 1;
        }
        self.entries.insert(version, Entry { intent, legs, decision: None, durable, held, acknowledged: !held, bytes });
        self.refresh(version);
    }

    fn remove(&mut self, version: Version) {
        let Some(entry) = self.entries.remove(&version) else { return };
        self.bytes -= entry.bytes;
        // A later try of the same operation may have taken the place.
        if self.operations.get(&entry.intent.operation) == Some(&version) {
            self.operations.remove(&entry.intent.operation);
        }
        self.deciding -= usize::from(entry.decision.is_some());
        for leg in &entry.legs {
            if matches!(leg.state, LegState::Dead(_)) {
                self.dead -= 1;
            }
            if let Some(lane) = self.lanes.get_mut(&leg.backend) {
                lane.owed -= usize::from(!matches!(leg.state, LegState::Done | LegState::Undone));
                lane.ready.remove(&(Reverse(entry.intent.priority), version));
                lane.ready_undo.remove(&version);
            }
        }
        for change in &*entry.intent.changes {
            if let Some(chain) = self.chains.get_mut(change.key()) {
                chain.retain(|other| *other != version);
                if chain.is_empty() {
                    self.chains.remove(change.key());
                }
            }
        }
        self.refresh_followers(&entry.intent, version);
    }

    fn set(&mut self, version: Version, backend: &BackendName, state: LegState) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        let state = match state {
            // Too late: the write is being undone, so what has just arrived has to go again.
            LegState::Done | LegState::Owed if entry.decision.is_some() => match entry.undo_for(backend) {
                Some(_) => LegState::UndoOwed,
                None => LegState::Dead(NO_PRE_IMAGE.to_owned()),
            },
            state => state,
        };
        let Some(leg) = entry.leg_mut(backend) else { return };
        let before = std::mem::replace(&mut leg.state, state.clone());
        let finished = |state: &LegState| matches!(state, LegState::Done | LegState::Undone);
        let is_dead = |state: &LegState| matches!(state, LegState::Dead(_));
        self.dead = self.dead + usize::from(is_dead(&state)) - usize::from(is_dead(&before));
        if let Some(lane) = self.lanes.get_mut(backend) {
            lane.owed = lane.owed + usize::from(finished(&before)) - usize::from(finished(&state));
        }
        let intent = Arc::clone(&entry.intent);
        self.refresh(version);
        if before.blocks() != state.blocks() {
            self.refresh_followers(&intent, version);
        }
    }

    /// Recomputes whether the legs of an entry can be worked on.
    fn refresh(&mut self, version: Version) {
        let Some(entry) = self.entries.get(&version) else { return };
        for leg in &entry.legs {
            let free = !entry.held && {
                let behind = |key: &Key| {
                    self.chain(key)
                        .take_while(|earlier| *earlier < version)
                        .any(|earlier| self.entries[&earlier].leg(&leg.backend).is_some_and(|leg| leg.state.blocks()))
                };
                !entry.intent.changes.iter().any(|change| behind(change.key()))
            };
            let rank = (Reverse(entry.intent.priority), version);
            let Some(lane) = self.lanes.get_mut(&leg.backend) else { continue };
            if free && leg.state == LegState::Owed {
                lane.ready.insert(rank);
            } else {
                lane.ready.remove(&rank);
            }
            if free && leg.state == LegState::UndoOwed {
                lane.ready_undo.insert(version);
            } else {
                lane.ready_undo.remove(&version);
            }
        }
    }

    fn refresh_followers(&mut self, intent: &Intent, version: Version) {
        for change in &*intent.changes {
            // On each backend only the first that blocks the rest can have become free.
            let mut waiting: Vec<&BackendName> = intent.owes.iter().collect();
            let later: Vec<Version> = self.chain(change.key()).filter(|other| *other > version).collect();
            for other in later {
                self.refresh(other);
                let entry = &self.entries[&other];
                waiting.retain(|backend| !entry.leg(backend).is_some_and(|leg| leg.state.blocks()));
                if waiting.is_empty() {
                    break;
                }
            }
        }
    }

    fn remember(&mut self, operation: OperationId, version: Version, ending: Ending) {
        if self.limits.outcomes == 0 {
            return;
        }
        if self.finished.insert(operation, (version, ending)).is_none() {
            self.finished_order.push_back(operation);
        }
        while self.finished_order.len() > self.limits.outcomes {
            if let Some(oldest) = self.finished_order.pop_front() {
                self.finished.remove(&oldest);
            }
        }
    }
}
