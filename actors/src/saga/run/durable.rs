//! What the journal is told of a write, and what is left of the write when its saga goes.

use std::sync::Arc;

use super::Operation;
use crate::error::Refusal;
use crate::journal::{Intent, JournalError, JournalRecord, appended};
use crate::operation::{Change, Version};
use crate::plane::DataPlane;

/// The saga's hold on its entry in the ledger. When it goes, also by a panic, the drain may finish what is left; an
/// entry that no backend has seen and that is not known to be written down is over with it.
pub(super) struct Hold<'a> {
    pub(super) plane: &'a DataPlane,
    pub(super) version: Version,
    pub(super) changes: &'a [Change],
    /// No backend was touched, and the entry is not known to be durable: nobody may finish it.
    pub(super) untouched: bool,
    /// The cache knows how the write ended.
    pub(super) remembered: bool,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.untouched {
            self.plane.ledger().doom(self.version);
            self.plane.unwritten.notify_one();
            return;
        }
        if !self.remembered {
            // Nobody knows how it ends, so what was there before may not be there any more.
            for change in self.changes {
                self.plane.fallback.cache().invalidate(change.key(), self.version);
            }
        }
        if self.plane.ledger().release(self.version) {
            self.plane.work.send_replace(());
        }
        // The mode may have changed meanwhile to one that keeps what this one did not.
        if self.plane.ledger().is_volatile(self.version) {
            self.plane.unwritten.notify_one();
        }
    }
}

impl Operation {
    /// Writes the intent down, with more versions where they run short.
    pub(super) async fn make_durable(&self, intent: &Arc<Intent>) -> Result<(), JournalError> {
        let mut records = vec![JournalRecord::Intent(Arc::clone(intent))];
        let reservation = self.plane.versions.reservation();
        records.extend(reservation.map(|up_to| JournalRecord::Reserved { up_to }));
        appended(self.plane.journal.append(records)).await?;
        reservation.into_iter().for_each(|up_to| self.plane.versions.reserved(up_to));
        self.plane.ledger().set_durable(intent.version);
        self.note_progress(|progress| progress.durable = true);
        Ok(())
    }

    /// Makes sure that no restart gives out a version again which a backend will see before its intent is durable.
    pub(super) async fn reserve(&self, version: Version) -> Result<(), Refusal> {
        let versions = &self.plane.versions;
        while !versions.is_reserved(version)
            && let Some(up_to) = versions.reservation()
        {
            appended(self.plane.journal.append(vec![JournalRecord::Reserved { up_to }])).await.map_err(|error| {
                match error {
                    JournalError::Closed => Refusal::ShuttingDown,
                    error => Refusal::JournalUnavailable {
                        reason: error.to_string(),
                        retry_after: self.plane.queue_retry_after,
                    },
                }
            })?;
            versions.reserved(up_to);
        }
        Ok(())
    }

    /// What to say of a write whose intent could not be kept. `perhaps` a backend has it all the same.
    pub(super) fn lost(&self, error: &JournalError, perhaps: bool) -> Refusal {
        match error {
            JournalError::Closed if !perhaps => Refusal::ShuttingDown,
            _ => Refusal::Unknown { operation: self.write.operation },
        }
    }
}
