//! The records of a store in memory, and what a write makes of them. Plain state: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use seawall_actors::backend::{Applied, BackendError, FencedWrite, Stored};
use seawall_actors::operation::{Change, Hit, Version};
use seawall_actors::record::{Key, Properties, Record};
use serde_json::Value;

/// How deep lists and objects in a property may nest: as deep as `serde_json` reads them. What is deeper could be
/// written, and then not be read again.
const MAX_NESTING: usize = 128;

/// What a store keeps beside the records themselves, to search them.
pub(in crate::backends) trait Index: Send + Sync + 'static {
    /// What writes of one group have to know of each other before any of them is in the index.
    type Draft: Copy + Send;

    /// An index without records and with the same settings.
    fn emptied(&self) -> Self;

    /// Where a group of writes starts.
    fn draft(&self) -> Self::Draft;

    /// Whether the store takes this record.
    fn admit(draft: &mut Self::Draft, record: &Record) -> Result<(), BackendError>;

    /// A record came, changed or went.
    fn replace(&mut self, key: &Key, before: Option<&Record>, after: Option<&Record>);
}

/// What becomes of some keys: `None` forgets a key with its version.
pub(in crate::backends) type Changes = BTreeMap<Key, Option<Stored>>;

/// All records and tombstones of a store, by key.
pub(in crate::backends) struct Table<I> {
    records: BTreeMap<Key, Stored>,
    /// The oldest first.
    tombstones: BTreeSet<(Version, Key)>,
    newest: Version,
    index: I,
}

impl<I: Index> Table<I> {
    pub(in crate::backends) fn new(index: I) -> Self {
        Self { records: BTreeMap::new(), tombstones: BTreeSet::new(), newest: Version(0), index }
    }

    /// A table with these records, none of which the index may refuse.
    pub(super) fn load(
        index: I,
        records: impl IntoIterator<Item = (Key, Stored)>,
        newest: Version,
    ) -> Result<Self, BackendError> {
        let mut table = Self { newest, ..Self::new(index) };
        let mut draft = table.index.draft();
        for (key, stored) in records {
            if let Some(record) = &stored.record {
                I::admit(&mut draft, record)?;
            }
            table.replace(key, Some(stored));
        }
        Ok(table)
    }

    pub(in crate::backends) fn index(&self) -> &I {
        &self.index
    }

    /// Records and tombstones.
    pub(in crate::backends) fn len(&self) -> usize {
        self.records.len()
    }

    /// The highest version that was ever held, also when its tombstone is swept.
    pub(in crate::backends) fn newest(&self) -> Version {
        self.newest
    }

    pub(in crate::backends) fn get(&self, key: &Key) -> Option<&Stored> {
        self.records.get(key)
    }

    pub(in crate::backends) fn record(&self, key: &Key) -> Option<(&Record, Version)> {
        let stored = self.records.get(key)?;
        Some((stored.record.as_ref()?, stored.version))
    }

    /// The first records, by key, whose properties equal all of these.
    pub(in crate::backends) fn find(&self, filter: &Properties, limit: usize) -> Vec<Hit> {
        let live = self.records.values().filter_map(|stored| Some((stored.record.as_ref()?, stored.version)));
        live.filter(|(record, _)| matches(record, filter))
            .take(limit)
            .map(|(record, version)| Hit { record: record.clone(), version, score: 1.0, via: None })
            .collect()
    }

    /// Up to `limit` keys whose tombstones are older than this version.
    pub(super) fn tombstones(&self, older_than: Version, limit: usize) -> Vec<Key> {
        let old = self.tombstones.iter().take_while(|(version, _)| *version < older_than);
        old.map(|(_, key)| key.clone()).take(limit).collect()
    }

    /// Starts a group of writes, which see one another.
    pub(super) fn plan(&self) -> Plan<'_, I> {
        Plan { table: self, draft: self.index.draft(), changes: Changes::new() }
    }

    /// Makes planned changes visible.
    pub(super) fn install(&mut self, changes: Changes) {
        for (key, stored) in changes {
            self.replace(key, stored);
        }
    }

    fn replace(&mut self, key: Key, stored: Option<Stored>) {
        let before = self.records.get(&key);
        if let Some(Stored { version, record: None }) = before {
            self.tombstones.remove(&(*version, key.clone()));
        }
        let before = before.and_then(|stored| stored.record.as_ref());
        let after = stored.as_ref().and_then(|stored| stored.record.as_ref());
        self.index.replace(&key, before, after);
        match stored {
            Some(stored) => {
                self.newest = self.newest.max(stored.version);
                if stored.record.is_none() {
                    self.tombstones.insert((stored.version, key.clone()));
                }
                self.records.insert(key, stored);
            }
            None => {
                self.records.remove(&key);
            }
        }
    }
}

/// Writes that will be made durable and visible in one step.
pub(super) struct Plan<'a, I: Index> {
    table: &'a Table<I>,
    draft: I::Draft,
    changes: Changes,
}

impl<I: Index> Plan<'_, I> {
    /// Adds a write, over the ones that were added before. On an error nothing of it is added.
    pub(super) fn add(&mut self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let mut draft = self.draft;
        let mut added = Changes::new();
        let mut superseded_by = None;
        for change in write.changes.iter() {
            let held = self.held(change.key());
            let version = held.map_or(Version(0), |stored| stored.version);
            if !write.passes(version) {
                superseded_by = superseded_by.max(Some(version));
                continue;
            }
            let after = after(change, held);
            if let Some(record) = &after {
                admit_nesting(record, MAX_NESTING)?;
                I::admit(&mut draft, record)?;
            }
            let after = Stored { version: write.version, record: after };
            if held != Some(&after) {
                added.insert(change.key().clone(), Some(after));
            }
        }
        self.draft = draft;
        self.changes.append(&mut added);
        Ok(Applied { superseded_by })
    }

    pub(super) fn into_changes(self) -> Changes {
        self.changes
    }

    fn held(&self, key: &Key) -> Option<&Stored> {
        match self.changes.get(key) {
            Some(planned) => planned.as_ref(),
            None => self.table.get(key),
        }
    }
}

pub(in crate::backends) fn after(change: &Change, held: Option<&Stored>) -> Option<Record> {
    let before = match change {
        Change::Merge { .. } => held.and_then(|stored| stored.record.clone()),
        Change::Put(_) | Change::Delete { .. } => None,
    };
    change.apply_to(before)
}

/// Whether a record has all of these properties. A `null` asks for a `null`, not for absence.
pub(in crate::backends) fn matches(record: &Record, filter: &Properties) -> bool {
    filter.iter().all(|(name, value)| record.properties.get(name) == Some(value))
}

pub(in crate::backends) fn admit_nesting(record: &Record, most: usize) -> Result<(), BackendError> {
    if record.properties.iter().all(|(_, value)| nests_at_most(value, most)) {
        return Ok(());
    }
    let message = format!("a property nests deeper than {most} lists and objects");
    Err(BackendError::permanent(message).with_code("too_deep"))
}

/// Whether lists and objects in a value nest no deeper than this.
pub(in crate::backends) fn nests_at_most(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|item| nests_at_most(item, depth - 1)),
        Value::Object(map) => depth > 0 && map.values().all(|item| nests_at_most(item, depth - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}
