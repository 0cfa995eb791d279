//! What a reader has to know of a key.

use super::Ledger;
use crate::operation::{Change, Version};
use crate::record::{Key, Record};

/// One change that a backend may not know yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// Its version.
    pub version: Version,
    /// What it changes.
    pub change: Change,
    /// Whether it goes over this version itself: it takes back the write of it, or gives it again to a store that has
    /// lost something before it.
    pub undo: bool,
}

impl Pending {
    /// Whether it changes what a backend holds in this version: as the fences have it.
    #[must_use]
    pub fn goes_over(&self, held: Version) -> bool {
        held < self.version || (self.undo && held == self.version)
    }
}

/// What the journal knows of a key that the backends may not know yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlay {
    /// The changes since the last one that says all, oldest first; never empty.
    pub changes: Vec<Pending>,
    /// A later write may have been finished before one of these, which is or was a dead letter or waits for one: a
    /// backend may hold something newer than they are.
    pub passed: bool,
    /// One of these was found by a restart. That it is finished, and what came after it, may not have been written
    /// down: a backend may hold something newer.
    pub recovered: bool,
}

impl Overlay {
    /// The newest version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.changes.last().map(|pending| pending.version).unwrap_or_default()
    }

    /// Whether the changes are all that a reader needs, without a base from a backend or the cache.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.passed && !self.recovered && self.says_all()
    }

    /// Whether the changes begin with one that says all.
    #[must_use]
    pub fn says_all(&self) -> bool {
        self.changes.first().is_some_and(|pending| pending.change.is_full())
    }

    /// Whether any of the changes goes over a base of this version.
    #[must_use]
    pub fn goes_over(&self, base_version: Version) -> bool {
        self.changes.iter().any(|pending| pending.goes_over(base_version))
    }

    /// The record that the changes make of a base of this version: only what goes over the base is applied.
    #[must_use]
    pub fn over(&self, base: Option<Record>, base_version: Version) -> Option<Record> {
        self.changes
            .iter()
            .filter(|pending| pending.goes_over(base_version))
            .fold(base, |record, pending| pending.change.apply_to(record))
    }
}

impl Ledger {
    /// What is known of a key beyond what the backends hold. What a saga still works on is shown when its caller has
    /// a receipt, or when it is being undone.
    #[must_use]
    pub fn overlay(&self, key: &Key) -> Option<Overlay> {
        let mut overlay = Overlay::default();
        for version in self.chain(key) {
            let entry = &self.entries[&version];
            let source = match &entry.decision {
                None if entry.doomed || (entry.held && !entry.acknowledged) => continue,
                None => Some(&entry.intent.changes),
                // Being undone: readers see what was there before.
                Some(_) => entry.intent.undo.first().map(|(_, changes)| changes),
            };
            if let Some(change) = source.and_then(|changes| changes.iter().find(|change| change.key() == key)) {
                if change.is_full() {
                    overlay = Overlay::default();
                }
                let undo = entry.decision.is_some() || entry.redriven;
                overlay.changes.push(Pending { version, change: change.clone(), undo });
                overlay.passed |= entry.passable;
                overlay.recovered |= entry.recovered;
            }
        }
        (!overlay.changes.is_empty()).then_some(overlay)
    }
}
