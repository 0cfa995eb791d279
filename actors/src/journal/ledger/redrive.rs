//! Owing a store again what it has lost of finished writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Entry, Ledger, Leg, LegState};
use crate::backend::BackendName;
use crate::journal::retained::{History, compose};
use crate::journal::{Ending, Intent};
use crate::operation::{Change, OperationId, Priority, Version};
use crate::record::Key;

/// What came of owing a key again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redriven {
    /// By the entry of this version, which is to be written down.
    Owed(Version),
    /// There is nothing to owe.
    Nothing,
    /// Not now: the backend is just being given a write of this key, or owes a compensation of it.
    Busy,
}

impl Ledger {
    /// From here on, entries that end are remembered for [`followed`](Self::followed). Gives the keys of those that
    /// have not ended.
    /// `None` when somebody follows already.
    pub fn follow(&mut self) -> Option<Vec<Key>> {
        if self.following.is_some() {
            return None;
        }
        self.following = Some(Vec::new());
        Some(self.chains.keys().cloned().collect())
    }

    /// What has ended since the last time.
    pub fn followed(&mut self) -> Vec<(Arc<Intent>, Ending)> {
        self.following.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Nobody asks any more.
    pub fn unfollow(&mut self) {
        self.following = None;
    }

    /// Owes a backend again what the writes of a key have come to: those in `history`, which are finished, and those
    /// that are not. Nobody else may begin a write of the key meanwhile.
    /// Where none of them says all, they go over `base`, if there is one.
    pub(crate) fn redrive(
        &mut self,
        key: &Key,
        history: &History,
        base: Option<&Change>,
        backend: &BackendName,
    ) -> Redriven {
        let mut all: History = history.clone();
        for version in self.chain(key) {
            let entry = &self.entries[&version];
            let state = entry.leg(backend).map(|leg| &leg.state);
            match state {
                _ if entry.held => return Redriven::Busy,
                // Being undone, it leaves its version behind; unless it waits for a person.
                _ if entry.decision.is_some() && !entry.legs.iter().any(Leg::is_dead) => return Redriven::Busy,
                Some(LegState::InFlight | LegState::UndoOwed) => return Redriven::Busy,
                Some(LegState::Done | LegState::Owed) if entry.decision.is_none() && !entry.doomed => {
                    let change = entry.intent.changes.iter().find(|change| change.key() == key);
                    all.insert(version, change.cloned());
                }
                // Its other legs say what has to be owed to this backend, too.
                None if entry.redriven => {
                    let change = entry.intent.changes.iter().find(|change| change.key() == key);
                    all.insert(version, change.cloned());
                }
                _ => {}
            }
        }
        let Some((version, _)) = all.last_key_value() else { return Redriven::Nothing };
        let version = *version;
        let Some(change) = compose(base.into_iter().chain(all.values().flatten())) else { return Redriven::Nothing };
        match self.entries.get(&version) {
            // It was rolled back and waits for a person, or was never begun.
            Some(entry) if entry.decision.is_some() || entry.doomed => return Redriven::Busy,
            Some(_) => self.extend(version, change, backend),
            None => self.reopen(version, change, backend),
        }
        Redriven::Owed(version)
    }

    fn reopen(&mut self, version: Version, change: Change, backend: &BackendName) {
        let intent = Intent {
            version,
            // The write that had this version keeps its outcome.
            operation: OperationId::generate(),
            priority: Priority::Low,
            changes: Arc::from([change]),
            owes: vec![backend.clone()],
            undo: Vec::new(),
        };
        self.insert(Arc::new(intent), false, None, true);
    }

    fn extend(&mut self, version: Version, change: Change, backend: &BackendName) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        let mut intent = Intent::clone(&entry.intent);
        let mut changes: BTreeMap<Key, Change> =
            intent.changes.iter().map(|change| (change.key().clone(), change.clone())).collect();
        let key = change.key().clone();
        let is_new = changes.insert(key.clone(), change).is_none();
        intent.changes = changes.into_values().collect();
        let is_owed = intent.owes.contains(backend);
        if !is_owed {
            intent.owes.push(backend.clone());
            entry.legs.push(Leg::owed(backend.clone()));
        }
        (entry.redriven, entry.durable) = (true, false);
        let before = std::mem::replace(&mut entry.bytes, intent.weight());
        self.bytes = self.bytes + entry.bytes - before;
        entry.intent = Arc::new(intent);
        if is_new {
            let chain = self.chains.entry(key).or_default();
            let place = chain.partition_point(|other| *other < version);
            chain.insert(place, version);
        }
        if is_owed {
            self.set(version, backend, LegState::Owed);
        } else {
            self.lanes.entry(backend.clone()).or_default().owed += 1;
        }
        let backends: Vec<BackendName> = self
            .entries
            .get(&version)
            .map(|entry| entry.states())
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
            .collect();
        for backend in backends {
            self.refresh(version, &backend);
            self.refresh_followers(version, &backend, true);
        }
    }

    /// An entry ends: whoever follows hears of it.
    pub(super) fn ended(&mut self, entry: &Entry, ending: Ending) {
        if let Some(following) = &mut self.following {
            following.push((Arc::clone(&entry.intent), ending));
        }
    }
}
