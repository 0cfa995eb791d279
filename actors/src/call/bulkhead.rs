//! How many calls a backend works on at the same time, so that one that is slow does not take everything.

use std::sync::Arc;

use crate::breaker::Purpose;
use crate::threads::atomic::{AtomicU64, Ordering};

/// One call of the background, beside being one of all.
const BACKGROUND: u64 = 1 << 32;

/// The places for calls to one backend.
///
/// Calls of users take whatever place is free. The background (the drain, and compensations) takes what those leave,
/// and never the last place, unless there is only one: however much is owed, a user finds one.
#[derive(Debug)]
pub struct Bulkhead {
    /// All calls in the lower half, those of the background in the upper: one number, so that whoever enters decides
    /// on both at once. It guards nothing else, hence no ordering.
    taken: AtomicU64,
    limit: u64,
    rejected: AtomicU64,
}

impl Bulkhead {
    /// With places for this many calls, at least one.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX));
        Self { taken: AtomicU64::new(0), limit, rejected: AtomicU64::new(0) }
    }

    /// A place for a call, held until it is dropped; `None` when there is none for this purpose.
    #[must_use]
    pub fn enter(self: &Arc<Self>, purpose: Purpose) -> Option<Place> {
        let background = matches!(purpose, Purpose::Drain | Purpose::Compensation);
        let weight = if background { 1 + BACKGROUND } else { 1 };
        let fits = |taken: u64| {
            let (all, behind) = (taken % BACKGROUND, taken / BACKGROUND);
            let free = all < self.limit && (!background || behind < self.limit.saturating_sub(1).max(1));
            free.then(|| taken + weight)
        };
        if self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok() {
            return Some(Place { bulkhead: Arc::clone(self), weight });
        }
        if !background {
            self.rejected.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    /// Calls of all purposes that are out now.
    #[must_use]
    pub fn all(&self) -> usize {
        count(self.taken.load(Ordering::Relaxed) % BACKGROUND)
    }

    /// Calls of users that are out now.
    #[must_use]
    pub fn live(&self) -> usize {
        let taken = self.taken.load(Ordering::Relaxed);
        count(taken % BACKGROUND - taken / BACKGROUND)
    }

    /// How many may be out.
    #[must_use]
    pub fn limit(&self) -> usize {
        count(self.limit)
    }

    /// Calls of users that found no place, since the start. The background comes again by itself.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).expect("half of a word is no more than a usize")
}

/// A place in a [`Bulkhead`].
#[derive(Debug)]
pub struct Place {
    bulkhead: Arc<Bulkhead>,
    weight: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.bulkhead.taken.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(any(seawall_loom, seawall_shuttle))))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn users_find_a_place_while_one_is_free_and_the_background_while_it_leaves_one(
            limit in 1..6_usize,
            // Who comes; who goes, of those who are there.
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0..6_usize), 0..200),
        ) {
            let bulkhead = Arc::new(Bulkhead::new(limit));
            let (mut live, mut behind, mut rejected) = (Vec::new(), Vec::new(), 0);
            for (comes, is_live, which) in steps {
                let all = live.len() + behind.len();
                match (comes, is_live) {
                    (true, true) => {
                        let place = bulkhead.enter(Purpose::Live);
                        prop_assert_eq!(place.is_some(), all < limit);
                        rejected += u64::from(place.is_none());
                        live.extend(place);
                    }
                    (true, false) => {
                        let purpose = if which % 2 == 0 { Purpose::Drain } else { Purpose::Compensation };
                        let place = bulkhead.enter(purpose);
                        prop_assert_eq!(place.is_some(), all < limit && (limit == 1 || behind.len() + 1 < limit));
                        behind.extend(place);
                    }
                    (false, true) if !live.is_empty() => drop(live.swap_remove(which % live.len())),
                    (false, false) if !behind.is_empty() => drop(behind.swap_remove(which % behind.len())),
                    _ => {}
                }
                prop_assert_eq!(bulkhead.all(), live.len() + behind.len());
                prop_assert_eq!(bulkhead.live(), live.len());
                prop_assert_eq!(bulkhead.rejected(), rejected);
            }
            drop((live, behind));
            prop_assert_eq!(bulkhead.all(), 0);
        }
    }
}

#[cfg(all(test, any(seawall_loom, seawall_shuttle)))]
mod schedules {
    //! What holds in every order in which threads can take turns. See `tests/threads`.

    use super::*;
    use crate::threads::schedules::{explore, thread};

    #[test]
    fn no_schedule_lets_one_call_too_many_in_and_none_is_left_behind() {
        explore(|| {
            let bulkhead = Arc::new(Bulkhead::new(2));
            let callers = [Purpose::Live, Purpose::Drain].map(|purpose| {
                let bulkhead = Arc::clone(&bulkhead);
                thread::spawn(move || {
                    let place = bulkhead.enter(purpose);
                    assert!(bulkhead.all() <= 2 && bulkhead.live() <= 2);
                    place.is_some()
                })
            });
            let own = bulkhead.enter(Purpose::Live);
            assert!(bulkhead.all() <= 2);
            let entered = callers.into_iter().map(|caller| caller.join().unwrap());
            let entered = entered.filter(|entered| *entered).count() + usize::from(own.is_some());
            assert!(entered >= 2, "there were two places");
            drop(own);
            assert_eq!((bulkhead.all(), bulkhead.live()), (0, 0));
        });
    }

    #[test]
    fn no_schedule_lets_the_background_have_the_last_place() {
        explore(|| {
            let bulkhead = Arc::new(Bulkhead::new(2));
            let drains = [Purpose::Drain, Purpose::Compensation].map(|purpose| {
                let bulkhead = Arc::clone(&bulkhead);
                thread::spawn(move || {
                    let place = bulkhead.enter(purpose);
                    assert!(bulkhead.taken.load(Ordering::Relaxed) / BACKGROUND <= 1);
                    drop(place);
                })
            });
            assert!(bulkhead.enter(Purpose::Live).is_some());
            drains.into_iter().for_each(|drain| drain.join().unwrap());
            assert_eq!(bulkhead.all(), 0);
        });
    }
}
