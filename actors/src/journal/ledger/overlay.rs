//! What a reader has to know of a key.

use super::Ledger;
use crate::operation::{Change, Version};
use crate::record::{Key, Record};

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

impl Ledger {
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
}
