//! What was acknowledged, and what the stores have to hold for it.

use std::collections::BTreeMap;

use seawall::operation::{Change, Receipt, Version, Write};
use seawall::record::{Key, Record};
use seawall::{Handle, Refusal};

use super::{Rig, contents};

/// Acknowledged writes, folded in the order of their versions.
#[derive(Default)]
pub struct History {
    acknowledged: BTreeMap<Version, Vec<Change>>,
}

impl History {
    /// Performs a write, and remembers it if it is acknowledged.
    pub async fn write(&mut self, handle: &Handle, write: impl Into<Write>) -> Result<Receipt, Refusal> {
        let write = write.into();
        let changes = write.changes.clone();
        let receipt = handle.write(write).await?;
        self.acknowledge(&receipt, changes);
        Ok(receipt)
    }

    pub fn acknowledge(&mut self, receipt: &Receipt, changes: Vec<Change>) {
        self.acknowledged.insert(receipt.version, changes);
    }

    pub fn len(&self) -> usize {
        self.acknowledged.len()
    }

    /// What every key has to be.
    pub fn fold(&self) -> BTreeMap<Key, Option<Record>> {
        let mut records = BTreeMap::new();
        for change in self.acknowledged.values().flatten() {
            let record = records.entry(change.key().clone()).or_default();
            *record = change.apply_to(Option::take(record));
        }
        records
    }

    /// Both stores hold what was acknowledged, key by key.
    pub async fn assert_held(&self, rig: &Rig) {
        for (key, expected) in self.fold() {
            for site in [&rig.graph, &rig.vector] {
                let held = site.record(key.clone()).await;
                let (held, expected) = (held.as_ref().map(contents), expected.as_ref().map(contents));
                assert_eq!(held, expected, "{key} in {}", site.name);
            }
        }
    }

    /// Reads give what was acknowledged, key by key, whatever the stores hold, or say that they cannot.
    pub async fn assert_read(&self, rig: &Rig) {
        for (key, expected) in self.fold() {
            let read = match rig.handle().retrieve(key.clone()).await {
                Ok(read) if !read.partial => read,
                Ok(_) | Err(Refusal::Unavailable { .. }) => continue,
                Err(refusal) => panic!("a read of {key}: {refusal}"),
            };
            let (read, expected) = (read.record.as_ref().map(contents), expected.as_ref().map(contents));
            assert_eq!(read, expected, "a read of {key}");
        }
    }
}
