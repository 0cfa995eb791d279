//! What the cache was told, so that it never answers with less. Plain state: no clock, no I/O.
//!
//! A write that failed, or is still on its way, leaves what Redis holds for its keys too old to be answered. So every
//! key of a write is written down here before Redis is asked, and struck off when Redis has said that it has it.

use std::collections::HashMap;

use seawall_actors::backend::{Fence, FencedWrite};
use seawall_actors::operation::Version;
use seawall_actors::record::Key;

/// How many keys are remembered one by one: 1 MB or so.
const KEYS: usize = 10_000;

/// Which versions may still be answered.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The lowest version that may be answered for a key that Redis may not be up to date with.
    keys: HashMap<Key, u64>,
    /// The same for every other key.
    floor: u64,
    /// The lowest version above all that was ever told.
    above: u64,
}

/// The lowest version that is as new as this write.
fn needed(write: &FencedWrite) -> u64 {
    let version = write.version.0;
    match write.fence {
        Fence::Write => version,
        // What it takes back has the same version.
        Fence::Compensation => version.saturating_add(1),
    }
}

impl Told {
    /// A write begins. Whatever becomes of it, nothing older is answered from here on.
    pub(super) fn begin(&mut self, write: &FencedWrite) {
        let needed = needed(write);
        self.above = self.above.max(write.version.0.saturating_add(1));
        write.changes.iter().for_each(|change| self.need(change.key(), needed));
    }

    /// Redis has the write, or something newer.
    pub(super) fn done(&mut self, write: &FencedWrite) {
        for change in write.changes.iter() {
            if self.keys.get(change.key()).is_some_and(|held| *held <= needed(write)) {
                self.keys.remove(change.key());
            }
        }
    }

    /// Nothing that was ever told is good enough any more for this key.
    pub(super) fn invalidate(&mut self, key: &Key) {
        self.need(key, self.above);
    }

    /// Redis may have lost anything that it was ever told.
    pub(super) fn forget_all(&mut self) {
        self.floor = self.above.saturating_sub(1).max(self.floor);
    }

    /// Whether this version of a key may be answered.
    pub(super) fn allows(&self, key: &Key, held: Version) -> bool {
        held.0 >= self.keys.get(key).copied().unwrap_or_default().max(self.floor)
    }

    fn need(&mut self, key: &Key, needed: u64) {
        if self.keys.len() >= KEYS && !self.keys.contains_key(key) {
            // Too much went wrong to know what is right: none of it is answered, and nothing else as old.
            let highest = self.keys.drain().map(|(_, needed)| needed).max();
            self.floor = self.floor.max(highest.unwrap_or_default());
        }
        let held = self.keys.entry(key.clone()).or_default();
        *held = needed.max(*held);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use seawall_actors::operation::{Change, OperationId};

    use super::*;

    fn write(version: u64, fence: Fence, key: &str) -> FencedWrite {
        let changes = Arc::new([Change::Delete { key: key.into() }]);
        FencedWrite { operation: OperationId::generate(), version: Version(version), fence, changes }
    }

    fn allowed(told: &Told, key: &str) -> u64 {
        (0..).find(|version| told.allows(&key.into(), Version(*version))).expect("some version is")
    }

    #[test]
    fn a_write_that_was_not_done_leaves_nothing_older_to_answer() {
        let mut told = Told::default();
        told.begin(&write(5, Fence::Write, "a"));
        assert_eq!((allowed(&told, "a"), allowed(&told, "b")), (5, 0));
        told.begin(&write(7, Fence::Write, "a"));
        told.done(&write(5, Fence::Write, "a"));
        assert_eq!(allowed(&told, "a"), 7);
        told.done(&write(7, Fence::Write, "a"));
        assert_eq!(allowed(&told, "a"), 0);
    }

    #[test]
    fn a_compensation_that_was_not_done_leaves_not_even_its_own_version() {
        let mut told = Told::default();
        told.begin(&write(5, Fence::Compensation, "a"));
        told.done(&write(5, Fence::Write, "a"));
        assert_eq!(allowed(&told, "a"), 6);
        told.done(&write(5, Fence::Compensation, "a"));
        assert_eq!(allowed(&told, "a"), 0);
    }

    #[test]
    fn what_is_invalid_is_answered_after_the_next_write_alone() {
        let mut told = Told::default();
        told.begin(&write(5, Fence::Write, "b"));
        told.invalidate(&"a".into());
        assert_eq!(allowed(&told, "a"), 6);
        told.begin(&write(6, Fence::Write, "a"));
        told.done(&write(6, Fence::Write, "a"));
        assert_eq!(allowed(&told, "a"), 0);
    }

    #[test]
    fn a_server_that_may_have_lost_writes_answers_with_the_newest_alone() {
        let mut told = Told::default();
        for (version, key) in [(5, "a"), (6, "b")] {
            told.begin(&write(version, Fence::Write, key));
            told.done(&write(version, Fence::Write, key));
        }
        told.forget_all();
        assert_eq!((allowed(&told, "a"), allowed(&told, "b")), (6, 6));
    }

    #[test]
    fn more_failures_than_can_be_remembered_are_answered_with_less_and_never_with_older() {
        let mut told = Told::default();
        let last = KEYS as u64 + 1;
        (1..=last).for_each(|n| told.begin(&write(n, Fence::Write, &format!("k{n}"))));
        assert!(told.keys.len() <= KEYS);
        assert_eq!(allowed(&told, "k1"), KEYS as u64);
        assert_eq!(allowed(&told, &format!("k{last}")), last);
    }
}
