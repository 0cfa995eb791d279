//! What a reader has to know of a key.

use super::Ledger;
use crate::operation::{Change, Version};
use crate::record::{Key, Record};

/// What the journal knows of a key that the backends may not know yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlay {
    /// The changes since the last one that says all, oldest first; never empty.
    pub changes: Vec<(Version, Change)>,
    /// A later write may have been finished before one of these, which is or was a dead letter or waits for one: a
    /// backend may hold something newer than they are.
    pub passed: bool,
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
        !self.passed && self.changes.first().is_some_and(|(_, change)| change.is_full())
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
    /// What is known of a key beyond what the backends hold. What a saga still works on is shown when its caller has
    /// a receipt, or when it is being undone.
    #[must_use]
    pub fn overlay(&self, key: &Key) -> Option<Overlay> {
        let mut overlay = Overlay { changes: Vec::new(), passed: false };
        for version in self.chain(key) {
            let entry = &self.entries[&version];
            let source = match &entry.decision {
                None if entry.held && !entry.acknowledged => continue,
                None => Some(&entry.intent.changes),
                // Being undone: readers see what was there before.
                Some(_) => entry.intent.undo.first().map(|(_, changes)| changes),
            };
            if let Some(change) = source.and_then(|changes| changes.iter().find(|change| change.key() == key)) {
                if change.is_full() {
                    overlay = Overlay { changes: Vec::new(), passed: false };
                }
                overlay.changes.push((version, change.clone()));
                overlay.passed |= entry.passable;
            }
        }
        (!overlay.changes.is_empty()).then_some(overlay)
    }
}
