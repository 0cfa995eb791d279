//! What holds in every order in which threads can take turns. See `tests/threads`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::Versions;
use crate::operation::Version;
use crate::threads::schedules::{explore, thread};

#[test]
fn no_version_is_given_out_twice_nor_after_a_skip_one_that_is_not_above_it() {
    explore(|| {
        let versions = Arc::new(Versions::after(Version(0)));
        let skipped = Version(2);
        let writer = {
            let versions = Arc::clone(&versions);
            thread::spawn(move || [versions.allocate(), versions.allocate()])
        };
        let skipper = {
            let versions = Arc::clone(&versions);
            thread::spawn(move || {
                versions.skip(skipped);
                versions.allocate()
            })
        };
        let own = versions.allocate();
        assert!(versions.issued(own));
        let after = skipper.join().unwrap();
        assert!(after > skipped, "{after}");
        let given: BTreeSet<Version> = writer.join().unwrap().into_iter().chain([after, own]).collect();
        assert_eq!(given.len(), 4, "{given:?}");
        assert!(given.iter().all(|version| versions.issued(*version)));
        assert!(!versions.issued(Version(given.last().unwrap().0 + 1)));
    });
}

#[test]
fn a_version_that_counts_as_reserved_is_below_a_reservation_that_is_durable() {
    explore(|| {
        let versions = Arc::new(Versions::after(Version(7)));
        let durable = Arc::new(AtomicU64::new(0));
        let write = |versions: &Versions, durable: &AtomicU64| {
            let version = versions.allocate();
            if !versions.is_reserved(version)
                && let Some(up_to) = versions.reservation()
            {
                durable.fetch_max(up_to.0, SeqCst);
                versions.reserved(up_to);
            }
            assert!(version.0 <= durable.load(SeqCst) && versions.is_reserved(version));
        };
        let other = {
            let (versions, durable) = (Arc::clone(&versions), Arc::clone(&durable));
            thread::spawn(move || {
                write(&versions, &durable);
                write(&versions, &durable);
            })
        };
        write(&versions, &durable);
        other.join().unwrap();
        assert_eq!(versions.reservation(), None, "half a million are left");
    });
}
