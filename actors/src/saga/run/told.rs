//! Who else hears of a write: the cache, and the backends that are only told.

use std::sync::Arc;

use tokio::time::Instant;

use super::Operation;
use crate::backend::{Fence, FencedWrite};
use crate::breaker::Purpose;
use crate::fallback::WriteRule;
use crate::operation::{Change, Version};

impl Operation {
    /// Tells the cache, and the backends that are only told.
    pub(super) fn remember(&self, rule: &WriteRule, version: Version) {
        let (cache, now) = (self.plane.fallback.cache(), Instant::now());
        for change in &*self.changes {
            let key = change.key();
            let known = match change {
                Change::Put(record) => Some(Some(Arc::clone(record))),
                Change::Delete { .. } => Some(None),
                // Writes of a key come one after another, so what the cache holds is what this was merged into.
                Change::Merge { .. } => {
                    cache.get(key, now).map(|hit| change.apply_to(hit.record.as_deref().cloned()).map(Arc::new))
                }
            };
            match known {
                Some(record) => {
                    cache.put(key, version, record, now);
                }
                None => cache.invalidate(key, version),
            }
        }
        // `LOCAL_STORAGE` touches no backend.
        if *rule != WriteRule::Local {
            self.tell_best_effort(version);
        }
    }

    /// Tells the write to caches and copies. Nobody waits for them, and what they miss is their loss.
    fn tell_best_effort(&self, version: Version) {
        for store in self.plane.best_effort() {
            let Ok(mut permit) = store.permit(Purpose::Live) else { continue };
            let write = FencedWrite {
                operation: self.write.operation,
                version,
                fence: Fence::Write,
                changes: self.changes.iter().map(whole).collect(),
            };
            let until = Instant::now() + self.config.timeout;
            self.plane.tasks.spawn(async move {
                let _ = permit.call_once(until, |backend| backend.apply(&write)).await;
            });
        }
    }
}

/// A change that can be told to a copy which may have missed earlier ones: it cannot merge, only forget.
fn whole(change: &Change) -> Change {
    if change.is_full() { change.clone() } else { Change::Delete { key: change.key().clone() } }
}
