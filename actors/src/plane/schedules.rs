//! What holds in every order in which threads can take turns. See `tests/threads`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{LiveCalls, Versions};
use crate::journal::JournalRecord;
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
fn a_reservation_that_is_due_is_written_down_by_exactly_one_and_covers_what_all_of_them_were_given() {
    explore(|| {
        let versions = Arc::new(Versions::after(Version(7)));
        let other = {
            let versions = Arc::clone(&versions);
            thread::spawn(move || (versions.allocate(), versions.reservation()))
        };
        let (mine, own) = (versions.allocate(), versions.reservation());
        let (theirs, others) = other.join().unwrap();
        let reservations: Vec<_> = own.into_iter().chain(others).collect();
        let [JournalRecord::Reserved { up_to }] = reservations[..] else { panic!("{reservations:?}") };
        assert!(mine < up_to && theirs < up_to);
        assert_eq!(versions.reservation(), None, "half a million are left");
    });
}

#[test]
fn live_calls_are_all_counted_and_none_is_left_behind() {
    explore(|| {
        let live = LiveCalls::default();
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let live = live.clone();
                thread::spawn(move || {
                    let _call = live.enter();
                    assert!((1..=2).contains(&live.count()));
                })
            })
            .collect();
        assert!(live.count() <= 2);
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        assert_eq!(live.count(), 0);
    });
}
