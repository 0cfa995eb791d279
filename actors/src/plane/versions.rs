//! Gives out versions.

use crate::journal::JournalRecord;
use crate::operation::Version;
use crate::threads::atomic::{AtomicU64, Ordering};

/// How many versions are reserved at a time. A start gives up at most this many of the 2^64 there are.
const BLOCK: u64 = 1 << 20;

/// A counter whose values are never given out twice, over restarts too: blocks of it are reserved in the journal.
#[derive(Debug)]
pub struct Versions {
    next: AtomicU64,
    reserved: AtomicU64,
}

impl Versions {
    /// A counter that starts after this version.
    #[must_use]
    pub fn after(highest: Version) -> Self {
        let next = highest.0.saturating_add(1);
        Self { next: AtomicU64::new(next), reserved: AtomicU64::new(next) }
    }

    /// The next version.
    pub fn allocate(&self) -> Version {
        Version(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether this version may have been given out.
    #[must_use]
    pub fn issued(&self, version: Version) -> bool {
        version.0 < self.next.load(Ordering::Relaxed)
    }

    /// Never gives out this version or a lower one again: a backend holds it.
    pub fn skip(&self, version: Version) {
        self.next.fetch_max(version.0.saturating_add(1), Ordering::Relaxed);
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
