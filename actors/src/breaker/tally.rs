//! What became of calls, counted by many threads at once.
//!
//! An atomic addition costs as much as the rest of an admission (measured: 9 of 12 ns), so a thread adds to counters
//! that are its own: it has a seat, and every breaker has a shard for every seat. Who finds no seat shares a shard with
//! all others like it, and adds atomically.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use crate::threads::atomic::{AtomicU64, Ordering};

/// Seats for threads. A shard takes 128 bytes of every breaker, which more than eight are not worth. In the
/// tests of thread schedules everybody shares: there a thread is not what the operating system takes for one.
const SEATS: usize = if cfg!(any(seawall_loom, seawall_shuttle)) { 0 } else { 8 };

/// The counters of one breaker. They only grow.
#[derive(Debug, Default)]
pub(super) struct Tally {
    owned: [Shard; SEATS],
    shared: Shard,
    slow: AtomicU64,
    failed: AtomicU64,
    ignored: AtomicU64,
    cancelled: AtomicU64,
    panicked: AtomicU64,
    expired: AtomicU64,
    stale: AtomicU64,
    stale_successes: AtomicU64,
    throttled: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    admitted: AtomicU64,
    successful: AtomicU64,
    rejected: AtomicU64,
}

/// A counter that is rare enough to need no shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rare {
    Slow,
    Failed,
    Ignored,
    Cancelled,
    Panicked,
    Expired,
    Stale,
    /// Successes that came after their generation; they are among the successes, too.
    StaleSuccess,
    /// Rejections in a recovery; they are among the rejections, too.
    Throttled,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) admitted: u64,
    pub(super) successful: u64,
    pub(super) rejected: u64,
    pub(super) slow: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
    pub(super) cancelled: u64,
    pub(super) panicked: u64,
    pub(super) expired: u64,
    pub(super) stale: u64,
    pub(super) stale_successes: u64,
    pub(super) throttled: u64,
}

impl Totals {
    /// Calls that have not ended.
    pub(super) fn in_flight(&self) -> u64 {
        let ended = self.successful + self.failed + self.ignored + self.cancelled + self.panicked + self.expired;
        self.admitted.saturating_sub(ended)
    }
}

impl Tally {
    #[inline]
    pub(super) fn admitted(&self) {
        self.count(|shard| &shard.admitted);
    }

    #[inline]
    pub(super) fn successful(&self) {
        self.count(|shard| &shard.successful);
    }

    #[inline]
    pub(super) fn rejected(&self) {
        self.count(|shard| &shard.rejected);
    }

    /// Rejections that were counted where this thread counts.
    #[inline]
    pub(super) fn rejected_here(&self) -> u64 {
        self.owned.get(seat()).unwrap_or(&self.shared).rejected.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, rare: Rare, count: u64) {
        self.rare(rare).fetch_add(count, Ordering::Release);
    }

    /// Ends are counted with `Release` and read before admissions, with `Acquire`: who sees the end of a call
    /// sees its admission, and calls in flight never come out below zero.
    pub(super) fn totals(&self) -> Totals {
        let read = |rare| self.rare(rare).load(Ordering::Acquire);
        // A stale success is counted as stale first: who sees the success sees that, if it is read after it.
        let successful = self.shards().map(|shard| shard.successful.load(Ordering::Acquire)).sum();
        let mut totals = Totals {
            slow: read(Rare::Slow),
            failed: read(Rare::Failed),
            ignored: read(Rare::Ignored),
            cancelled: read(Rare::Cancelled),
            panicked: read(Rare::Panicked),
            expired: read(Rare::Expired),
            stale: read(Rare::Stale),
            stale_successes: read(Rare::StaleSuccess),
            throttled: read(Rare::Throttled),
            successful,
            ..Totals::default()
        };
        for shard in self.shards() {
            totals.admitted += shard.admitted.load(Ordering::Relaxed);
            totals.rejected += shard.rejected.load(Ordering::Relaxed);
        }
        totals
    }

    fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.owned.iter().chain([&self.shared])
    }

    fn rare(&self, rare: Rare) -> &AtomicU64 {
        match rare {
            Rare::Slow => &self.slow,
            Rare::Failed => &self.failed,
            Rare::Ignored => &self.ignored,
            Rare::Cancelled => &self.cancelled,
            Rare::Panicked => &self.panicked,
            Rare::Expired => &self.expired,
            Rare::Stale => &self.stale,
            Rare::StaleSuccess => &self.stale_successes,
            Rare::Throttled => &self.throttled,
        }
    }

    #[inline]
    fn count(&self, counter: impl Fn(&Shard) -> &AtomicU64) {
        match self.owned.get(seat()) {
            // Nobody else writes it.
            Some(own) => counter(own).store(counter(own).load(Ordering::Relaxed) + 1, Ordering::Release),
            None => _ = counter(&self.shared).fetch_add(1, Ordering::Release),
        }
    }
}

/// Which seats are taken, a bit each. Its lock also hands what the last owner of a seat has counted to the next.
static TAKEN: Mutex<u32> = Mutex::new(0);

/// No seat: for a thread that has not asked for one yet, and for one that found none or is ending.
const UNKNOWN: usize = usize::MAX;
const NONE: usize = usize::MAX - 1;

thread_local! {
    static SEAT: Cell<usize> = const { Cell::new(UNKNOWN) };
    /// Gives the seat back when the thread ends.
    static KEEPER: Keeper = const { Keeper };
}

struct Keeper;

impl Drop for Keeper {
    fn drop(&mut self) {
        // What other destructors of this thread may still count is shared.
        let seat = SEAT.replace(NONE);
        if seat < SEATS {
            *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) &= !(1 << seat);
        }
    }
}

/// The seat of this thread, or a number that is none.
#[inline]
fn seat() -> usize {
    match SEAT.get() {
        UNKNOWN => take_seat(),
        seat => seat,
    }
}

#[cold]
fn take_seat() -> usize {
    // A thread that is ending cannot keep one.
    let seat = KEEPER.try_with(|_| {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let seat = taken.trailing_ones() as usize;
        if seat >= SEATS {
            return NONE;
        }
        *taken |= 1 << seat;
        seat
    });
    let seat = seat.unwrap_or(NONE);
    SEAT.set(seat);
    seat
}

#[cfg(all(test, not(any(seawall_loom, seawall_shuttle))))]
mod tests {
    use std::collections::HashSet;
    use std::sync::{Arc, Barrier};

    use super::*;

    #[test]
    fn threads_that_live_at_the_same_time_never_share_a_seat_and_give_it_back() {
        let tally = Arc::new(Tally::default());
        for _ in 0..50 {
            let barrier = Arc::new(Barrier::new(2 * SEATS));
            let threads: Vec<_> = (0..2 * SEATS)
                .map(|_| {
                    let (tally, barrier) = (Arc::clone(&tally), Arc::clone(&barrier));
                    std::thread::spawn(move || {
                        let seat = seat();
                        (0..1_000).for_each(|_| tally.admitted());
                        barrier.wait();
                        seat
                    })
                })
                .collect();
            let seats: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            let owned: Vec<_> = seats.iter().filter(|seat| **seat < SEATS).collect();
            assert_eq!(owned.iter().collect::<HashSet<_>>().len(), owned.len());
            assert!(!owned.is_empty(), "seats are given back");
        }
        assert_eq!(tally.totals().admitted, 50 * 2 * SEATS as u64 * 1_000);
    }
}
