//! What finished writes have made of their keys: for a store that has lost some of them.
//!
//! A store that lost writes may have taken later ones meanwhile, over what was left: given again one by one under their
//! own versions, the lost ones would not go over those. So what is given is, for each key, what its writes came to, at
//! the version of the last one, and over that version as well. Wherever the store stands then, it comes out right, and
//! doing so twice changes nothing. A write that was rolled back left its version at its keys, and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use crate::backend::BackendName;
use crate::journal::{Ending, Intent, JournalError, JournalRecord};
use crate::operation::{Change, Version};
use crate::record::Key;

/// Why finished writes cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// None are kept.
    #[error("finished writes are not kept; set `queue.retention` to keep them from then on")]
    Off,
    /// Some of that time are gone.
    #[error("finished writes are kept since {}; those before are gone", humantime(available_since))]
    TooFarBack {
        /// From here on all are there.
        available_since: SystemTime,
    },
    /// They cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

fn humantime(time: &SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{} s after 1970", since.as_secs())
}

/// The writes of one key by their versions, from the last that says all; `None` for one that was rolled back.
pub(crate) type History = BTreeMap<Version, Option<Change>>;

/// What finished writes have made of their keys, as a fold over the records of the journal.
#[derive(Debug, Default)]
pub struct Retained {
    open: HashMap<Version, Arc<Intent>>,
    keys: HashMap<Key, History>,
    /// What a backend was to hold again after the last write of a key that was rolled back: it may have lost that.
    restored: HashMap<(Key, BackendName), Change>,
    entries: usize,
}

impl Retained {
    /// Folds in the next record; `counts` when it is late enough for what it ends to count.
    pub fn record(&mut self, record: JournalRecord, counts: bool) {
        match record {
            JournalRecord::Intent(intent) | JournalRecord::Redriven(intent) => {
                self.open.insert(intent.version, intent);
            }
            JournalRecord::Closed { version, ending, .. } => {
                if let Some(intent) = self.open.remove(&version)
                    && counts
                {
                    self.entries += usize::from(ending == Ending::Committed);
                    intent.changes.iter().for_each(|change| self.ended(&intent, change, ending));
                }
            }
            _ => {}
        }
    }

    /// No more records: what is open is not finished.
    pub fn finish(&mut self) {
        self.open = HashMap::new();
    }

    /// A key that may have to be looked at, though no finished write of it is known.
    pub(crate) fn touch(&mut self, key: Key) {
        self.keys.entry(key).or_default();
    }

    /// An entry ended meanwhile: what that means for keys that are still here.
    pub(crate) fn meanwhile(&mut self, intent: &Intent, ending: Ending) {
        for change in &*intent.changes {
            if self.keys.contains_key(change.key()) {
                self.ended(intent, change, ending);
            }
        }
    }

    fn ended(&mut self, intent: &Intent, change: &Change, ending: Ending) {
        let (version, history) = (intent.version, self.keys.entry(change.key().clone()).or_default());
        match ending {
            Ending::Committed => {
                history.insert(version, Some(change.clone()));
                if change.is_full() {
                    *history = history.split_off(&version);
                }
            }
            Ending::RolledBack => {
                history.entry(version).or_default();
                for (backend, undo) in &intent.undo {
                    if let Some(undo) = undo.iter().find(|undo| undo.key() == change.key()) {
                        self.restored.insert((change.key().clone(), backend.clone()), undo.clone());
                    }
                }
            }
            // What is left of it nobody knows.
            Ending::Discarded => {}
        }
    }

    /// Writes that were finished.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// The keys that are still here.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.keys.keys().cloned().collect()
    }

    pub(crate) fn history(&self, key: &Key) -> Option<&History> {
        self.keys.get(key)
    }

    /// What the writes of a key are to be seen over on this backend, if none of them says all.
    pub(crate) fn base(&self, key: &Key, backend: &BackendName) -> Option<&Change> {
        self.restored.get(&(key.clone(), backend.clone()))
    }

    /// A key is done with.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.keys.remove(key);
    }
}

/// What changes of one key come to, in this order; `None` when there are none.
pub(crate) fn compose<'a>(changes: impl Iterator<Item = &'a Change>) -> Option<Change> {
    changes.fold(None, |before, change| {
        Some(match (before, change) {
            (Some(Change::Merge { key, mut properties }), Change::Merge { properties: later, .. }) => {
                for (name, value) in later.iter() {
                    // A `null` stays one: it removes what the store has.
                    properties.set(name, value.clone());
                }
                Change::Merge { key, properties }
            }
            (Some(Change::Put(record)), Change::Merge { .. }) => {
                change.apply_to(Some(Arc::unwrap_or_clone(record))).map_or_else(|| change.clone(), Change::put)
            }
            (Some(Change::Delete { .. }), Change::Merge { .. }) => {
                change.apply_to(None).map_or_else(|| change.clone(), Change::put)
            }
            (_, change) => change.clone(),
        })
    })
}
