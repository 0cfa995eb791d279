//! Gives out versions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::journal::JournalRecord;
use crate::operation::Version;

/// How many versions are reserved at a time. A start gives up at most this many of the 2^64 there are.
const BLOCK: u64 = 1 << 20;

/// A counter whose values are never given out twice, over restarts too: blocks of it are reserved in the journal.
#[derive(Debug)]
pub struct Versions {
    next: AtomicU64,
    reserved: AtomicU64,
    /// Versions that were skipped, `from..to`, ascending: below `next`, and not ours.
    skipped: RwLock<Vec<(u64, u64)>>,
}

impl Versions {
    /// A counter that starts after this version.
    #[must_use]
    pub fn after(highest: Version) -> Self {
        let next = highest.0.saturating_add(1);
        Self { next: AtomicU64::new(next), reserved: AtomicU64::new(next), skipped: RwLock::default() }
    }

    /// The next version.
    pub fn allocate(&self) -> Version {
        Version(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether this version may have been given out.
    #[must_use]
    pub fn issued(&self, version: Version) -> bool {
        let skipped = self.skipped.read().unwrap_or_else(PoisonError::into_inner);
        version.0 < self.next.load(Ordering::Acquire)
            && !skipped.iter().any(|(from, to)| (*from..*to).contains(&version.0))
    }

    /// Never gives out this version or a lower one from here on: a backend holds it, and had it from somebody else.
    pub fn skip(&self, version: Version) {
        let mut skipped = self.skipped.write().unwrap_or_else(PoisonError::into_inner);
        let to = version.0.saturating_add(1);
        let from = self.next.fetch_max(to, Ordering::AcqRel);
        match skipped.last_mut() {
            _ if from >= to => {}
            Some(last) if last.1 == from => last.1 = to,
            _ => skipped.push((from, to)),
        }
    }

    /// The reservation to write down now, if one is due: when half of the last block is used.
    pub fn reservation(&self) -> Option<JournalRecord> {
        let next = self.next.load(Ordering::Relaxed);
        let reserved = self.reserved.load(Ordering::Relaxed);
        if next.saturating_add(BLOCK / 2) < reserved {
            return None;
        }
        let up_to = next.saturating_add(BLOCK);
        self.reserved
            .compare_exchange(reserved, up_to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            .then_some(JournalRecord::Reserved { up_to: Version(up_to) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_version_was_not_given_out_however_often_one_asks() {
        let versions = Versions::after(Version(4));
        assert_eq!(versions.allocate(), Version(5));
        versions.skip(Version(100));
        versions.skip(Version(90));
        versions.skip(Version(120));
        assert_eq!(versions.allocate(), Version(121));
        let foreign = [6, 90, 100, 101, 120];
        assert!(foreign.iter().all(|version| !versions.issued(Version(*version))));
        assert!([1, 5, 121].iter().all(|version| versions.issued(Version(*version))));
        assert!(!versions.issued(Version(122)));
        versions.skip(Version(200));
        assert!(!versions.issued(Version(150)) && versions.issued(Version(121)));
    }
}
