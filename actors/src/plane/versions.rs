//! Gives out versions.

use std::sync::PoisonError;

use crate::operation::Version;
use crate::threads::Mutex;
use crate::threads::atomic::{AtomicU64, Ordering};

/// How many versions are reserved at a time. A start gives up at most this many of the 2^64 there are.
const BLOCK: u64 = 1 << 20;

/// The highest version of somebody else's that is respected. A store that claims a higher one is damaged, and must
/// not use the versions up.
const HIGHEST_FOREIGN: u64 = 1 << 62;

/// How many stretches of foreign versions are told apart. What lies between those that are merged counts as foreign:
/// that makes a dead letter too many, never a lost write.
const STRETCHES: usize = 1_024;

/// A counter whose values are never given out twice, over restarts too: blocks of it are reserved in the journal.
#[derive(Debug)]
pub struct Versions {
    next: AtomicU64,
    /// The last one that is reserved, durably.
    reserved: AtomicU64,
    /// Versions that were skipped, as inclusive stretches, ascending: never given out, though lower than `next`.
    foreign: Mutex<Vec<(u64, u64)>>,
}

impl Versions {
    /// A counter that starts after this version.
    #[must_use]
    pub fn after(highest: Version) -> Self {
        let next = highest.0.min(HIGHEST_FOREIGN) + 1;
        Self { next: AtomicU64::new(next), reserved: AtomicU64::new(next - 1), foreign: Mutex::default() }
    }

    /// The next version.
    pub fn allocate(&self) -> Version {
        Version(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The last one that was given out, or skipped.
    #[must_use]
    pub fn last(&self) -> Version {
        Version(self.next.load(Ordering::Relaxed) - 1)
    }

    /// Whether this version may have been given out: by this process, or by one before it.
    #[must_use]
    pub fn issued(&self, version: Version) -> bool {
        let foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        version.0 < self.next.load(Ordering::Relaxed)
            && !foreign.iter().any(|(first, last)| (*first..=*last).contains(&version.0))
    }

    /// Never gives out this version or a lower one again: a backend holds it.
    pub fn skip(&self, version: Version) {
        if version.0 > HIGHEST_FOREIGN || version.0 < self.next.load(Ordering::Relaxed) {
            return;
        }
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.next.fetch_max(version.0 + 1, Ordering::Relaxed);
        if first > version.0 {
            return;
        }
        if foreign.len() == STRETCHES {
            let (_, last) = foreign.remove(1);
            foreign[0].1 = last;
        }
        foreign.push((first, version.0));
    }

    /// Up to where versions are to be reserved now, if that is due: when half of the last block is used.
    /// [`reserved`](Self::reserved) says when it is done; until then it is due for everybody.
    #[must_use]
    pub fn reservation(&self) -> Option<Version> {
        let next = self.next.load(Ordering::Relaxed);
        let reserved = self.reserved.load(Ordering::Relaxed);
        (next.saturating_add(BLOCK / 2) >= reserved).then(|| Version(next.saturating_add(BLOCK)))
    }

    /// A reservation is durable.
    pub fn reserved(&self, up_to: Version) {
        self.reserved.fetch_max(up_to.0, Ordering::Relaxed);
    }

    /// Whether no restart gives out this version again, even if nothing was written down that bears it. Only then
    /// may a store see it before its intent is durable.
    #[must_use]
    pub fn is_reserved(&self, version: Version) -> bool {
        version.0 <= self.reserved.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Do {
        Allocate,
        Skip(u64),
        Restart,
    }

    fn any_do() -> impl Strategy<Value = Do> {
        prop_oneof![
            6 => Just(Do::Allocate),
            2 => (0..5_000_000_u64).prop_map(Do::Skip),
            1 => any::<u64>().prop_map(Do::Skip),
            1 => Just(Do::Restart),
        ]
    }

    proptest! {
        #[test]
        fn no_version_is_given_out_twice_or_after_a_higher_one_over_restarts(
            steps in prop::collection::vec(any_do(), 1..60),
        ) {
            let mut versions = Versions::after(Version(0));
            let (mut highest, mut durable) = (0, Version(0));
            let mut skipped = Vec::new();
            for step in steps {
                // As at a start, and with every intent.
                if let Some(up_to) = versions.reservation() {
                    durable = up_to;
                    versions.reserved(up_to);
                }
                match step {
                    Do::Allocate => {
                        let version = versions.allocate();
                        prop_assert!(version.0 > highest && version.0 <= durable.0);
                        prop_assert!(versions.issued(version) && versions.is_reserved(version));
                        prop_assert_eq!(versions.last(), version);
                        highest = version.0;
                    }
                    Do::Skip(version) => {
                        let foreign = !versions.issued(Version(version));
                        versions.skip(Version(version));
                        prop_assert_eq!(versions.issued(Version(version)), !foreign);
                        if foreign && version <= HIGHEST_FOREIGN {
                            skipped.push(version);
                            highest = highest.max(version);
                        }
                    }
                    Do::Restart => {
                        versions = Versions::after(durable);
                        skipped.clear();
                    }
                }
                for version in &skipped {
                    prop_assert!(!versions.issued(Version(*version)));
                }
            }
        }
    }

    #[test]
    fn many_stretches_of_foreign_versions_take_bounded_memory_and_stay_foreign() {
        let versions = Versions::after(Version(0));
        for step in 0..3 * STRETCHES as u64 {
            versions.skip(Version(10 * step + 5));
            versions.allocate();
        }
        assert!(versions.foreign.lock().unwrap().len() <= STRETCHES);
        assert!((0..3 * STRETCHES as u64).all(|step| !versions.issued(Version(10 * step + 5))));
    }
}
