//! All atomics of a breaker: the word that a caller asks, and the counters that it leaves behind.
//!
//! Whoever writes the word or the alarm holds the lock of the policy, so plain stores will do, and the word never
//! disagrees with the policy for longer than the lock is held. Readers hold nothing.

use std::cell::Cell;
use std::time::Duration;

use super::BreakerState;
use crate::threads::atomic::{AtomicU32, AtomicU64, Ordering};

/// Generations have 56 bits; a restored one must leave room for more.
pub(super) const LAST_GENERATION: u64 = 1 << 48;

/// Counters are spread over this many cache lines, so that threads that admit at once do not share one
/// (measured: 7 ns against 71 ns for an admission and a report by two threads).
const SHARDS: usize = if cfg!(seawall_loom) { 1 } else { 8 };

/// What a caller has to do to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Go.
    Open,
    /// Ask the policy, under its lock.
    Guarded,
    /// Be refused, unless the alarm is due.
    Shut,
}

/// The verdict as one number: what a caller must know to be admitted, in one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    /// `guarded`: an admission is for the policy to decide.
    pub(super) fn new(state: BreakerState, generation: u64, guarded: bool) -> Self {
        Self(generation << 8 | u64::from(guarded) << 3 | state as u64)
    }

    pub(super) fn state(self) -> BreakerState {
        match self.0 & 0b111 {
            0 => BreakerState::Closed,
            1 => BreakerState::Open,
            2 => BreakerState::HalfOpen,
            3 => BreakerState::ForcedOpen,
            4 => BreakerState::ForcedClosed,
            5 => BreakerState::Disabled,
            6 => BreakerState::Recovering,
            _ => BreakerState::MetricsOnly,
        }
    }

    pub(super) fn generation(self) -> u64 {
        self.0 >> 8
    }

    pub(super) fn door(self) -> Door {
        match self.state() {
            _ if self.0 & 1 << 3 != 0 => Door::Guarded,
            state if state.admits_freely() => Door::Open,
            _ => Door::Shut,
        }
    }
}

/// The published word, and the time at which a shut door is worth knocking at.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Published {
    word: AtomicU64,
    /// Nanoseconds since the gate was made; `u64::MAX` for never.
    alarm: AtomicU64,
    /// What a refused caller is told to wait where no alarm says more, in nanoseconds.
    patience: AtomicU64,
    /// How long a call may take, in nanoseconds.
    slow_call: AtomicU64,
    /// The tick that admissions take with them.
    tick: AtomicU32,
}

impl Published {
    pub(super) fn new(word: Word) -> Self {
        Self {
            word: AtomicU64::new(word.0),
            alarm: AtomicU64::new(u64::MAX),
            patience: AtomicU64::new(0),
            slow_call: AtomicU64::new(u64::MAX),
            tick: AtomicU32::new(0),
        }
    }

    pub(super) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    pub(super) fn alarm(&self) -> u64 {
        self.alarm.load(Ordering::Acquire)
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_nanos(self.patience.load(Ordering::Relaxed))
    }

    /// A tick that is one behind only makes a call look older by what has passed since the tick began.
    pub(super) fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    pub(super) fn slow_call(&self) -> Duration {
        Duration::from_nanos(self.slow_call.load(Ordering::Relaxed))
    }

    pub(super) fn publish_tick(&self, tick: u32, slow_call: Duration, patience: Duration) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.tick.store(tick, Ordering::Relaxed);
        self.slow_call.store(nanos(slow_call), Ordering::Relaxed);
        self.patience.store(nanos(patience), Ordering::Relaxed);
    }

    /// The word is stored first: who sees the new alarm, and looks at the word again, sees the word that belongs to
    /// it, or a later one.
    pub(super) fn publish(&self, word: Word, alarm: u64) {
        self.word.store(word.0, Ordering::Release);
        self.alarm.store(alarm, Ordering::Release);
    }
}

/// What became of calls. Only adds.
#[derive(Debug, Default)]
pub(super) struct Tally {
    shards: [Shard; SHARDS],
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
    pub(super) fn admitted(&self) {
        self.shard().admitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends are counted with `Release` and read before admissions, with `Acquire`: who sees the end of a call
    /// sees its admission, and calls in flight never come out below zero.
    pub(super) fn successful(&self) {
        self.shard().successful.fetch_add(1, Ordering::Release);
    }

    pub(super) fn rejected(&self) {
        self.shard().rejected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add(&self, rare: Rare, count: u64) {
        self.rare(rare).fetch_add(count, Ordering::Release);
    }

    pub(super) fn totals(&self) -> Totals {
        let read = |rare| self.rare(rare).load(Ordering::Acquire);
        // A stale success is counted as stale first: who sees the success sees that, if it is read after it.
        let successful = self.successes();
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
        for shard in &self.shards {
            totals.admitted += shard.admitted.load(Ordering::Relaxed);
            totals.rejected += shard.rejected.load(Ordering::Relaxed);
        }
        totals
    }

    fn successes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.successful.load(Ordering::Acquire)).sum()
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

    fn shard(&self) -> &Shard {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: Cell<Option<usize>> = const { Cell::new(None) };
        }
        let index = MINE.try_with(|mine| match mine.get() {
            Some(index) => index,
            None => {
                let index = NEXT.fetch_add(1, Ordering::Relaxed);
                mine.set(Some(index));
                index
            }
        });
        // A thread that is ending counts in the first shard.
        &self.shards[index.unwrap_or(0) % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_what_it_was_made_of() {
        use BreakerState::*;
        for state in BreakerState::ALL {
            for guarded in [false, true] {
                for generation in [0, 1, LAST_GENERATION] {
                    let word = Word::new(state, generation, guarded);
                    assert_eq!((word.state(), word.generation()), (state, generation));
                    let door = match (state, guarded) {
                        (_, true) => Door::Guarded,
                        (Closed | ForcedClosed | Disabled | MetricsOnly, _) => Door::Open,
                        (HalfOpen | Open | ForcedOpen | Recovering, _) => Door::Shut,
                    };
                    assert_eq!(word.door(), door);
                }
            }
        }
    }
}
