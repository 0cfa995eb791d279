//! How records and sagas change the ledger.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Bar, Decision, Entry, Ledger, Leg, LegState};
use crate::backend::BackendName;
use crate::journal::{Ending, Intent, JournalRecord};
use crate::operation::{OperationId, Version};

const NO_PRE_IMAGE: &str = "there is no pre-image to go back to";

impl Ledger {
    /// Folds one record in. A record that does not fit what is known is passed over: it belongs to an entry
    /// that is finished.
    pub fn apply(&mut self, record: &JournalRecord) {
        self.highest = self.highest.max(match record {
            JournalRecord::Reserved { up_to } => *up_to,
            other => other.version().unwrap_or_default(),
        });
        match record {
            JournalRecord::Intent(intent) => self.insert(Arc::clone(intent), true, None, false),
            JournalRecord::Redriven(intent) => self.insert(Arc::clone(intent), true, None, true),
            JournalRecord::Done { version, backend } => self.set(*version, backend, LegState::Done),
            JournalRecord::Undone { version, backend } => {
                // Nothing is taken back without a decision, though that may not have been written down.
                if self.entries.get(version).is_some_and(|entry| entry.decision.is_none()) {
                    self.decide(*version, backend, Ending::RolledBack);
                }
                self.set(*version, backend, LegState::Undone);
            }
            JournalRecord::DeadLetter { version, backend, reason } => {
                self.set(*version, backend, LegState::Dead(reason.clone()));
            }
            JournalRecord::Revived { version, backend } => self.revive(*version, backend),
            JournalRecord::Decided { version, cause, ending, .. } => self.decide(*version, cause, *ending),
            JournalRecord::Closed { version, operation, ending } => {
                if let Some(entry) = self.remove(*version) {
                    self.ended(&entry, *ending);
                }
                self.remember(*operation, *version, *ending);
            }
            JournalRecord::Reserved { .. } | JournalRecord::Tick { .. } => {}
        }
    }

    /// Lets go of legs and entries that were being worked on: after recovery, nobody works on anything.
    /// A leg in flight may have happened. Entries for which nobody owes anything, but of which the last record was
    /// lost, are closed: gives the records that say so.
    #[must_use]
    pub fn release_all(&mut self) -> Vec<JournalRecord> {
        let versions: Vec<Version> = self.entries.keys().copied().collect();
        versions
            .into_iter()
            .filter_map(|version| {
                self.release(version);
                self.close(version)
            })
            .collect()
    }

    /// The caller of a saga that still works gets its receipt: readers see the write from here on. Gives the
    /// backends that owe it.
    pub fn acknowledge(&mut self, version: Version) -> Vec<BackendName> {
        let Some(entry) = self.entries.get_mut(&version) else { return Vec::new() };
        entry.acknowledged = true;
        entry.legs.iter().filter(|leg| leg.state.is_owing()).map(|leg| leg.backend.clone()).collect()
    }

    /// Adds an accepted write that a saga works on: the legs in `now` are in flight, the others owed.
    pub fn begin(&mut self, intent: &Arc<Intent>, now: &[BackendName], durable: bool) {
        self.highest = self.highest.max(intent.version);
        self.insert(Arc::clone(intent), durable, Some(now), false);
    }

    /// An entry that was begun and touched nothing is over, though the disk may have its intent. It stays until its end
    /// is written down.
    pub fn doom(&mut self, version: Version) {
        if let Some(entry) = self.entries.get_mut(&version) {
            (entry.doubtful, entry.doomed) = (true, true);
        }
        self.release(version);
    }

    /// Forgets an entry that was begun and never written down.
    pub fn abandon(&mut self, version: Version) {
        self.remove(version);
    }

    /// The entry is written down, or that it is over. Says whether that was what it, or another, waited for.
    pub fn set_durable(&mut self, version: Version) -> bool {
        let Some(entry) = self.entries.get_mut(&version) else { return false };
        if entry.doomed {
            self.records_of(version).iter().for_each(|over| self.apply(over));
            return true;
        }
        entry.durable = true;
        let waited = std::mem::take(&mut entry.doubtful);
        if waited {
            self.refresh_all(version);
        }
        waited
    }

    /// A decision to undo the entry could not be written down, or the intent of what a backend may have. It goes forward
    /// as soon as it is written down anew, which voids whatever the disk has.
    pub fn doubt(&mut self, version: Version) {
        if let Some(entry) = self.entries.get_mut(&version) {
            (entry.durable, entry.doubtful) = (false, true);
            self.refresh_all(version);
        }
    }

    /// The saga lets go of its entry: what is not finished is the drain's from here on, and readers see it. Says
    /// whether anything is left.
    pub fn release(&mut self, version: Version) -> bool {
        let Some(entry) = self.entries.get_mut(&version) else { return false };
        entry.held = false;
        for leg in entry.legs.iter_mut().filter(|leg| leg.state == LegState::InFlight) {
            leg.attempted = true;
        }
        for (backend, state) in entry.states() {
            let state = if state == LegState::InFlight { LegState::Owed } else { state };
            self.set(version, &backend, state);
        }
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
    /// may have, owe the compensation. Where a person gives up, what cannot be undone stays as it is.
    pub fn decide(&mut self, version: Version, cause: &BackendName, ending: Ending) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        let first = entry.decision.is_none();
        self.deciding += usize::from(first);
        entry.decision = Some(Decision { cause: cause.clone(), ending });
        let states: Vec<(BackendName, LegState)> = entry
            .legs
            .iter()
            .filter_map(|leg| {
                let is_dead = matches!(leg.state, LegState::Dead(_));
                let touched = leg.attempted || matches!(leg.state, LegState::Done | LegState::InFlight);
                let state = match (touched, entry.undo_for(&leg.backend)) {
                    _ if !first && (ending != Ending::Discarded || !is_dead) => return None,
                    (true, Some(_)) if first => LegState::UndoOwed,
                    (true, None) if ending != Ending::Discarded => LegState::Dead(NO_PRE_IMAGE.to_owned()),
                    _ => LegState::Undone,
                };
                Some((leg.backend.clone(), state))
            })
            .collect();
        for (backend, state) in states {
            self.set(version, &backend, state);
        }
    }

    /// Lets go of everything that is owed to a backend that is no longer there: gives what is to be written down.
    #[must_use]
    pub fn forget_backend(&mut self, backend: &BackendName) -> Vec<JournalRecord> {
        let mut records = Vec::new();
        let versions: Vec<Version> = self.entries.keys().copied().collect();
        for version in versions {
            let Some(entry) = self.entries.get(&version) else { continue };
            if entry.leg(backend).is_none_or(|leg| leg.state.is_finished()) {
                continue;
            }
            let (decided, backend) = (entry.decision.is_some(), backend.clone());
            let record = if decided {
                JournalRecord::Undone { version, backend }
            } else {
                JournalRecord::Done { version, backend }
            };
            self.apply(&record);
            records.push(self.close(version).unwrap_or(record));
        }
        records
    }

    /// A dead letter is to be tried again. A compensation without anything to go back to stays one.
    pub fn revive(&mut self, version: Version, backend: &BackendName) {
        let Some(entry) = self.entries.get(&version) else { return };
        let Some(Leg { state: LegState::Dead(_), .. }) = entry.leg(backend) else { return };
        let state = match &entry.decision {
            None => LegState::Owed,
            Some(_) if entry.undo_for(backend).is_some() => LegState::UndoOwed,
            Some(_) => return,
        };
        self.set(version, backend, state);
    }

    /// A person gives up on the dead letters of an entry, and that is durable as this `Decided`. What other backends
    /// have of it is undone where there is a pre-image to go back to; the rest stays as it is. Gives what else is to
    /// be written down.
    pub fn discard(&mut self, decided: &JournalRecord) -> Vec<JournalRecord> {
        self.apply(decided);
        decided.version().map(|version| self.undone(version)).unwrap_or_default()
    }

    /// The records that say which legs of an entry need no undoing, or that none does. They belong with a decision:
    /// who reads it back does not know which backends were reached.
    pub fn undone(&mut self, version: Version) -> Vec<JournalRecord> {
        if let Some(closed) = self.close(version) {
            return vec![closed];
        }
        let legs = self.entries.get(&version).map(|entry| entry.legs.as_slice()).unwrap_or_default();
        let undone = legs.iter().filter(|leg| leg.state == LegState::Undone);
        undone.map(|leg| JournalRecord::Undone { version, backend: leg.backend.clone() }).collect()
    }

    /// Closes the entry if nobody owes anything for it: gives the record that says so.
    pub fn close(&mut self, version: Version) -> Option<JournalRecord> {
        let entry = self.entries.get(&version)?;
        let ending = entry.ending()?;
        let record = JournalRecord::Closed { version, operation: entry.intent.operation, ending };
        self.apply(&record);
        Some(record)
    }

    /// Adds an entry. A saga that holds it says which legs are in flight.
    pub(super) fn insert(
        &mut self,
        intent: Arc<Intent>,
        durable: bool,
        in_flight: Option<&[BackendName]>,
        redriven: bool,
    ) {
        let (version, held) = (intent.version, in_flight.is_some());
        // Written down anew: the records that follow say the rest again.
        self.remove(version);
        let bytes = intent.weight();
        self.bytes += bytes;
        self.operations.insert(intent.operation, version);
        // What became of an earlier try says nothing about this one.
        self.finished.remove(&intent.operation);
        let mut alone = true;
        for change in &*intent.changes {
            let chain = self.chains.entry(change.key().clone()).or_default();
            let place = chain.partition_point(|other| *other < version);
            chain.insert(place, version);
            alone &= chain.len() == 1;
        }
        let is_in_flight = |backend| in_flight.is_some_and(|in_flight| in_flight.contains(backend));
        let legs: SmallVec<[Leg; 2]> = intent
            .owes
            .iter()
            .map(|backend| Leg {
                state: if is_in_flight(backend) { LegState::InFlight } else { LegState::Owed },
                // Read back after a crash: whoever registered how to take it back was about to do it.
                attempted: !held && intent.undo.iter().any(|(name, _)| name == backend),
                ..Leg::owed(backend.clone())
            })
            .collect();
        for backend in &intent.owes {
            match self.lanes.get_mut(backend) {
                Some(lane) => lane.owed += 1,
                None => self.lanes.entry(backend.clone()).or_default().owed = 1,
            }
        }
        let kept = Arc::clone(&intent);
        let entry = Entry {
            intent,
            legs,
            decision: None,
            durable,
            held,
            acknowledged: false,
            passable: false,
            recovered: !held,
            doubtful: false,
            doomed: false,
            redriven,
            bytes,
        };
        self.entries.insert(version, Box::new(entry));
        if held && alone {
            // Nobody is to work on it, and it is in nobody's way.
            return;
        }
        for backend in &kept.owes {
            self.refresh(version, backend);
            // After a record that is written down anew, there may be later ones already.
            self.refresh_followers(version, backend, true);
        }
    }

    fn remove(&mut self, version: Version) -> Option<Box<Entry>> {
        let mut entry = self.entries.remove(&version)?;
        self.bytes -= entry.bytes;
        if self.operations.get(&entry.intent.operation) == Some(&version) {
            self.operations.remove(&entry.intent.operation);
        }
        self.deciding -= usize::from(entry.decision.is_some());
        for change in &*entry.intent.changes {
            if let Some(chain) = self.chains.get_mut(change.key()) {
                chain.retain(|other| *other != version);
                if chain.is_empty() {
                    self.chains.remove(change.key());
                }
            }
        }
        for leg in &mut entry.legs {
            self.dead -= usize::from(matches!(leg.state, LegState::Dead(_)));
            if let Some(lane) = self.lanes.get_mut(&leg.backend) {
                lane.owed -= usize::from(!leg.state.is_finished());
                lane.put(&mut leg.place, None);
            }
        }
        for leg in entry.legs.iter().filter(|leg| leg.bar() != Bar::Open) {
            let later = self.later(&entry.intent, version, &leg.backend, leg.bar() == Bar::Merges);
            self.ripple(later, &leg.backend);
        }
        Some(entry)
    }

    pub(super) fn set(&mut self, version: Version, backend: &BackendName, state: LegState) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        let state = match state {
            // Too late: the write is being undone, so what has just arrived has to go again.
            LegState::Done | LegState::Owed if entry.decision.is_some() => match entry.undo_for(backend) {
                Some(_) => LegState::UndoOwed,
                // A person has discarded it meanwhile: what has arrived stays.
                None if entry.leg(backend).is_some_and(|leg| leg.state == LegState::Undone) => LegState::Undone,
                None => LegState::Dead(NO_PRE_IMAGE.to_owned()),
            },
            state => state,
        };
        let is_dead = matches!(state, LegState::Dead(_));
        entry.passable |= is_dead;
        let Some(leg) = entry.leg_mut(backend) else { return };
        leg.died |= is_dead;
        let (was, before) = (leg.bar(), std::mem::replace(&mut leg.state, state));
        self.dead = self.dead + usize::from(is_dead) - usize::from(matches!(before, LegState::Dead(_)));
        if let Some(lane) = self.lanes.get_mut(backend) {
            lane.owed = lane.owed + usize::from(before.is_finished()) - usize::from(leg.state.is_finished());
        }
        self.refresh(version, backend);
        let is = self.bar(version, backend);
        if was != is {
            self.refresh_followers(version, backend, [was, is].contains(&Bar::Merges));
        }
    }

    fn remember(&mut self, operation: OperationId, version: Version, ending: Ending) {
        let newer = self.finished.get(&operation).is_some_and(|(last, _)| *last > version);
        if newer || self.limits.outcomes == 0 {
            return;
        }
        if self.finished.insert(operation, (version, ending)).is_none_or(|(before, _)| before != version) {
            self.finished_order.push_back((operation, version));
        }
        while self.finished_order.len() > self.limits.outcomes {
            if let Some((oldest, version)) = self.finished_order.pop_front()
                && self.finished.get(&oldest).is_some_and(|(last, _)| *last == version)
            {
                self.finished.remove(&oldest);
            }
        }
    }
}
