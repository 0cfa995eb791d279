//! What all parts of a run share: its trace, its lives, its end.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::history::History;
use crate::weather::Weather;

/// What is done with the trace of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracing {
    Off,
    /// Two runs of one seed are compared by this.
    Hashed,
    /// For somebody who reads it.
    Printed,
}

/// What outlives the processes of a run.
pub(crate) struct Scene {
    pub(crate) weather: Weather,
    pub(crate) history: History,
    began: Instant,
    tracing: Tracing,
    hash: Mutex<DefaultHasher>,
    /// When the last call that is still on its way reaches its store.
    horizon: Mutex<Instant>,
}

impl Scene {
    pub(crate) fn new(weather: Weather, tracing: Tracing) -> Self {
        let now = Instant::now();
        Self {
            weather,
            history: History::default(),
            began: now,
            tracing,
            hash: Mutex::new(DefaultHasher::new()),
            horizon: Mutex::new(now),
        }
    }

    pub(crate) fn traces(&self) -> bool {
        self.tracing != Tracing::Off
    }

    /// Use [`trace!`](crate::trace), which formats nothing when nobody wants it.
    pub(crate) fn line(&self, line: fmt::Arguments<'_>) {
        let at = self.began.elapsed();
        match self.tracing {
            Tracing::Off => {}
            Tracing::Hashed => {
                let mut hash = locked(&self.hash);
                hash.write_u128(at.as_micros());
                hash.write(line.to_string().as_bytes());
            }
            Tracing::Printed => println!("{:>14.3?} {line}", at),
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        locked(&self.hash).finish()
    }

    /// Something reaches a store this much later, whatever becomes of its sender.
    pub(crate) fn lands_in(&self, delay: Duration) {
        let mut horizon = locked(&self.horizon);
        *horizon = (*horizon).max(Instant::now() + delay);
    }

    pub(crate) fn horizon(&self) -> Instant {
        *locked(&self.horizon)
    }

    /// Something that must not happen did.
    pub(crate) fn problem(&self, problem: String) {
        trace!(self, "PROBLEM {problem}");
        self.history.problem(problem);
    }
}

/// Adds a line to the trace.
macro_rules! trace {
    ($scene:expr, $($line:tt)*) => {
        if $scene.traces() {
            $scene.line(format_args!($($line)*));
        }
    };
}
pub(crate) use trace;

/// One process. It ends at a chosen action of its own, in the middle of whatever it does, or when it is told to; from
/// that moment on nothing that it does has an effect outside.
pub(crate) struct Life {
    left: AtomicU64,
    end: Notify,
}

impl Life {
    /// A process that dies before it has done this many things.
    pub(crate) fn of(actions: u64) -> Self {
        Self { left: AtomicU64::new(actions), end: Notify::new() }
    }

    /// It is about to do something. Says whether it still can.
    pub(crate) fn acts(&self) -> bool {
        let before = self.left.load(Ordering::Relaxed);
        self.left.store(before.saturating_sub(1), Ordering::Relaxed);
        if before == 1 {
            self.end.notify_one();
        }
        before > 1
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn kill(&self) {
        self.left.store(0, Ordering::Relaxed);
    }

    /// It dies before it has done this many things more.
    pub(crate) fn shorten(&self, actions: u64) {
        self.left.store(actions, Ordering::Relaxed);
    }

    /// Resolves at the chosen action.
    pub(crate) async fn ended(&self) {
        self.end.notified().await;
    }

    /// What a dead process waits for never comes.
    pub(crate) async fn must_live(&self) {
        if self.is_over() {
            std::future::pending::<()>().await;
        }
    }

    /// The same, for what is an action.
    pub(crate) async fn act(&self) {
        if !self.acts() {
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
