//! What a caller asks: the verdict as one word, and the times that belong to it.
//!
//! Whoever writes the word or the alarm holds the lock of the policy, so plain stores will do, and the word never
//! disagrees with the policy for longer than the lock is held. Readers hold nothing.

use std::time::Duration;

use super::BreakerState;
use crate::threads::atomic::{AtomicU32, AtomicU64, Ordering};

/// Generations have 56 bits; a restored one must leave room for more.
pub(super) const LAST_GENERATION: u64 = 1 << 48;

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
        let free = state.admits_freely() && state != BreakerState::Disabled && !guarded;
        Self(generation << 8 | u64::from(free) << 4 | u64::from(guarded) << 3 | state as u64)
    }

    /// Whether a call is admitted and counted, and nobody has to be asked.
    #[inline]
    pub(super) fn is_free(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    #[inline]
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

    #[inline]
    pub(super) fn generation(self) -> u64 {
        self.0 >> 8
    }

    #[inline]
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
    /// The alarm that a timer is set for; `u64::MAX` for none.
    watched: AtomicU64,
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
            watched: AtomicU64::new(u64::MAX),
            patience: AtomicU64::new(0),
            slow_call: AtomicU64::new(u64::MAX),
            tick: AtomicU32::new(0),
        }
    }

    #[inline]
    pub(super) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn alarm(&self) -> u64 {
        self.alarm.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn patience(&self) -> Duration {
        Duration::from_nanos(self.patience.load(Ordering::Relaxed))
    }

    /// Whether a timer is set for this alarm, so that nobody else has to look at the clock.
    #[inline]
    pub(super) fn is_watched(&self, alarm: u64) -> bool {
        self.watched.load(Ordering::Acquire) == alarm || alarm == u64::MAX
    }

    /// A timer is set for this alarm; `u64::MAX` for none.
    pub(super) fn watch(&self, alarm: u64) {
        self.watched.store(alarm, Ordering::Release);
    }

    /// A tick that is one behind only makes a call look older by what has passed since the tick began.
    #[inline]
    pub(super) fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    #[inline]
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
                    assert_eq!(word.is_free(), door == Door::Open && state != Disabled);
                }
            }
        }
    }
}
