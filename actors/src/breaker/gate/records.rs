//! What of a gate outlives the process: the record that the store is given, and the one that it gave.

use std::time::Duration;

use tokio::time::Instant;

use super::{Core, Gate, heard};
use crate::breaker::store::SavedBreaker;

impl Core {
    fn awaits_record(&self) -> bool {
        self.awaits_record && self.policy.generation() == 0
    }
}

impl Gate {
    /// A record for the store, newer than all before.
    pub(in crate::breaker) fn record(&self) -> SavedBreaker {
        let mut core = self.lock();
        core.sequence = core.sequence.saturating_add(1);
        core.policy.saved(core.sequence, Instant::now())
    }

    /// The store holds a record with this sequence. The next one will be newer.
    pub(in crate::breaker) fn follow(&self, sequence: u64) {
        let mut core = self.lock();
        core.sequence = core.sequence.max(sequence);
    }

    /// A record of an earlier process may come later.
    pub(in crate::breaker) fn await_record(&self) {
        self.lock().awaits_record = true;
    }

    /// Whether one may still come. A breaker that has changed its state knows better than any record.
    pub(in crate::breaker) fn awaits_record(&self) -> bool {
        self.lock().awaits_record()
    }

    /// Whether a call has succeeded in this process.
    pub(in crate::breaker) fn was_alive(&self) -> bool {
        self.tally.totals().successful > 0
    }

    /// No record comes any more: goes on where this one stops, if there is one and it is still awaited.
    pub(in crate::breaker) fn take_over(&self, saved: Option<SavedBreaker>) {
        let mut core = self.lock();
        let awaited = core.awaits_record();
        core.awaits_record = false;
        let Some(saved) = saved.filter(|_| awaited) else { return };
        let now = Instant::now();
        core.sequence = core.sequence.max(saved.sequence);
        core.loaded = saved.generation;
        core.policy.hear(heard(&self.tally.totals()));
        core.policy.take_over(saved, now);
        self.publish(&mut core, now);
    }

    /// Whether the store does not know the state, or a wait is running of which it should know what is left.
    pub(in crate::breaker) fn needs_saving(&self) -> bool {
        let core = self.lock();
        core.loaded != core.policy.generation() || core.policy.save_again_in().is_some()
    }

    /// How soon to save again, while a wait is running.
    pub(in crate::breaker) fn save_again_in(&self) -> Option<Duration> {
        self.lock().policy.save_again_in()
    }
}
