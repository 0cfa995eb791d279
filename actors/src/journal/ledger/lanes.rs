//! What is ready for each backend, and how it is handed out and taken back.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Ledger, LegState};
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

#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Legs that are not finished: owed, in flight or dead.
    pub(super) owed: usize,
    /// Legs that could be worked on now: nothing of their keys is in front of them.
    pub(super) ready: BTreeSet<(Reverse<Priority>, Version)>,
    /// Compensations among the ready legs.
    pub(super) ready_undo: BTreeSet<Version>,
}

impl Ledger {
    /// Whether a write to these keys has to queue on this backend behind something that is owed.
    #[must_use]
    pub fn is_behind<'a>(&self, backend: &BackendName, keys: impl IntoIterator<Item = &'a Key>) -> bool {
        keys.into_iter().any(|key| {
            self.chain(key).any(|version| self.entries[&version].leg(backend).is_some_and(|leg| leg.state.blocks()))
        })
    }

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

    /// Recomputes whether the legs of an entry can be worked on.
    pub(super) fn refresh(&mut self, version: Version) {
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

    pub(super) fn refresh_followers(&mut self, intent: &Intent, version: Version) {
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
}
