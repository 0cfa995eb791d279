//! What is ready for each backend, and how it is handed out and taken back.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Bar, Ledger, Leg, LegState};
use crate::backend::BackendName;
use crate::journal::{Intent, JournalRecord};
use crate::operation::{Change, OperationId, Priority, Version};
use crate::record::Key;

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
    /// Whether this gives the backend again what it has lost, and so goes over its own version, too.
    pub redriven: bool,
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

/// How often a step may fail on a backend that is well before others go first.
const PATIENCE: u32 = 8;

/// The order in which what is ready is handed out: what has failed often comes last, so that one write that a backend
/// cannot take, and does not reject either, holds up no others; then by priority; then by age.
type Rank = (u32, Reverse<Priority>, Version);

/// Where a leg is among the ready ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    undo: bool,
    rank: Rank,
}

/// What one backend owes.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Legs that are not finished: owed, in flight or dead.
    pub(super) owed: usize,
    /// Writes that could be worked on now: nothing of their keys is in front of them.
    ready: BTreeSet<Rank>,
    /// The same of compensations.
    ready_undo: BTreeSet<Rank>,
}

impl Lane {
    fn ready(&self, undo: bool) -> &BTreeSet<Rank> {
        if undo { &self.ready_undo } else { &self.ready }
    }

    fn ready_mut(&mut self, undo: bool) -> &mut BTreeSet<Rank> {
        if undo { &mut self.ready_undo } else { &mut self.ready }
    }

    /// Moves a leg from its place to another, or away.
    pub(super) fn put(&mut self, place: &mut Option<Place>, to: Option<Place>) {
        if let Some(Place { undo, rank }) = place.take() {
            self.ready_mut(undo).remove(&rank);
        }
        if let Some(Place { undo, rank }) = to {
            self.ready_mut(undo).insert(rank);
        }
        *place = to;
    }
}

impl Ledger {
    /// Whether a write to these keys has to queue on this backend behind something that is owed. A dead letter counts:
    /// were a later write tried at once and undone, what it leaves would stand in the letter's way for good. The
    /// drain lets what says all about its key past it.
    #[must_use]
    pub fn is_behind<'a>(&self, backend: &BackendName, keys: impl IntoIterator<Item = &'a Key>) -> bool {
        keys.into_iter().any(|key| self.chain(key).any(|version| self.bar(version, backend) != Bar::Open))
    }

    /// Hands out at most `most` steps for a backend, high priority first, no two of one key: `undo` gives
    /// compensations, else writes. Owed writes of a key that a later one replaces whole go with that one.
    pub fn take(&mut self, backend: &BackendName, undo: bool, most: usize) -> Vec<Step> {
        let Some(lane) = self.lanes.get(backend) else { return Vec::new() };
        let ready: Vec<Version> = lane.ready(undo).iter().map(|(_, _, version)| *version).take(most).collect();
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
        self.lanes.get(backend).map_or(0, |lane| lane.ready(undo).len())
    }

    /// A step that was given back failed though the backend is well: after some such failures it goes behind the
    /// others.
    pub fn failed(&mut self, backend: &BackendName, step: &Step) {
        for version in step.supersedes.iter().chain([&step.version]) {
            if let Some(leg) = self.entries.get_mut(version).and_then(|entry| entry.leg_mut(backend)) {
                leg.failed = leg.failed.saturating_add(1);
            }
            self.refresh(*version, backend);
        }
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
            // It is being undone meanwhile, and an earlier try may have had its effect.
            StepResult::Dead(_) if !step.undo && self.is_decided(step.version) => {
                return self.settle(backend, step, &StepResult::Again);
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
                let waits = candidate.held || candidate.doubtful;
                let plain = candidate.intent.changes.len() == 1 && !waits && candidate.decision.is_none();
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
            redriven: entry.redriven,
        }
    }

    fn undo_step(&self, version: Version, backend: &BackendName) -> Option<Step> {
        let entry = &self.entries[&version];
        let changes = Arc::clone(entry.undo_for(backend)?);
        let operation = entry.intent.operation;
        Some(Step { version, operation, changes, supersedes: Vec::new(), undo: true, redriven: false })
    }

    // ----- order --------------------------------------------------------------------------------------------

    pub(super) fn bar(&self, version: Version, backend: &BackendName) -> Bar {
        self.entries.get(&version).and_then(|entry| entry.leg(backend)).map_or(Bar::Open, Leg::bar)
    }

    fn is_decided(&self, version: Version) -> bool {
        self.entries.get(&version).is_some_and(|entry| entry.decision.is_some())
    }

    /// Recomputes whether a leg can be worked on, and whether it waits for a person.
    pub(super) fn refresh(&mut self, version: Version, backend: &BackendName) {
        let Some(entry) = self.entries.get(&version) else { return };
        let Some(leg) = entry.leg(backend) else { return };
        let undo = leg.state == LegState::UndoOwed;
        let waits = undo || leg.state == LegState::Owed;
        let (mut blocked, mut parked) = (entry.held || entry.doubtful, false);
        for change in entry.intent.changes.iter().filter(|_| waits) {
            let merges = !undo && !change.is_full();
            for earlier in self.chain(change.key()).take_while(|earlier| *earlier < version) {
                match self.bar(earlier, backend) {
                    Bar::All => blocked = true,
                    Bar::Merges if merges => (blocked, parked) = (true, true),
                    Bar::Merges | Bar::Open => {}
                }
            }
        }
        let rank = (leg.failed / PATIENCE, Reverse(entry.intent.priority), version);
        let place = (waits && !blocked).then_some(Place { undo, rank });
        let Some(entry) = self.entries.get_mut(&version) else { return };
        entry.passable |= parked;
        if let (Some(leg), Some(lane)) = (entry.leg_mut(backend), self.lanes.get_mut(backend)) {
            leg.parked = parked;
            lane.put(&mut leg.place, place);
        }
    }

    /// The same for all legs of an entry.
    pub(super) fn refresh_all(&mut self, version: Version) {
        let legs = self.entries.get(&version).map(|entry| entry.states()).unwrap_or_default();
        legs.iter().for_each(|(backend, _)| self.refresh(version, backend));
    }

    /// A leg stands in the way of later ones in another way than before: `deep` when dead letters have to do with it.
    pub(super) fn refresh_followers(&mut self, version: Version, backend: &BackendName, deep: bool) {
        let Some(entry) = self.entries.get(&version) else { return };
        let later = self.later(&Arc::clone(&entry.intent), version, backend, deep);
        self.ripple(later, backend);
    }

    /// The entries after this one whose legs its leg may stand in the way of. Whatever blocks everything keeps those
    /// behind it as they are, but for what waits for dead letters, which is seen past it (`deep`).
    pub(super) fn later(
        &self,
        intent: &Intent,
        version: Version,
        backend: &BackendName,
        deep: bool,
    ) -> BTreeSet<Version> {
        let mut later = BTreeSet::new();
        for change in &*intent.changes {
            for other in self.chain(change.key()).filter(|other| *other > version) {
                later.insert(other);
                if !deep && self.bar(other, backend) == Bar::All {
                    break;
                }
            }
        }
        later
    }

    pub(super) fn ripple(&mut self, mut later: BTreeSet<Version>, backend: &BackendName) {
        while let Some(version) = later.pop_first() {
            let before = self.bar(version, backend);
            self.refresh(version, backend);
            if self.bar(version, backend) != before
                && let Some(entry) = self.entries.get(&version)
            {
                later.extend(self.later(&entry.intent, version, backend, true));
            }
        }
    }
}
