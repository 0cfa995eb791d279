//! What a breaker remembers about itself, in fixed memory.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::report::{FailureKind, FailureSample, Transition};
use super::{BreakerState, TransitionCause};

/// How many failures a breaker remembers (document 002).
pub const SAMPLES: usize = 50;
/// How many transitions a breaker remembers.
pub const HISTORY: usize = 32;
/// How much of an error code is kept: codes come from adapters, and nothing else bounds them.
const CODE_BYTES: usize = 64;

/// Failures, transitions and times of one breaker.
#[derive(Clone, Debug)]
pub(super) struct History {
    failures: VecDeque<Failure>,
    transitions: VecDeque<Past>,
    changes: u64,
    entered: Instant,
    spent: [Duration; 5],
}

#[derive(Clone, Debug)]
struct Failure {
    kind: FailureKind,
    code: Option<String>,
    generation: u64,
    at: Instant,
}

/// A transition, `at` an instant of this process, or, if it was restored, as old as it was then.
#[derive(Clone, Debug)]
struct Past {
    transition: Transition,
    at: Instant,
}

impl Past {
    fn told(&self, now: Instant) -> Transition {
        let age = self.transition.age.saturating_add(now.saturating_duration_since(self.at));
        Transition { age, ..self.transition.clone() }
    }
}

impl History {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            failures: VecDeque::new(),
            transitions: VecDeque::new(),
            changes: 0,
            entered: now,
            spent: [Duration::ZERO; 5],
        }
    }

    /// Takes over what an earlier process remembered.
    pub(super) fn restore(&mut self, transitions: Vec<Transition>, now: Instant) {
        let surplus = transitions.len().saturating_sub(HISTORY);
        self.transitions =
            transitions.into_iter().skip(surplus).map(|transition| Past { transition, at: now }).collect();
    }

    pub(super) fn failed(&mut self, kind: FailureKind, code: Option<&str>, generation: u64, now: Instant) {
        if self.failures.len() == SAMPLES {
            self.failures.pop_front();
        }
        let code = code.map(|code| code[..code.floor_char_boundary(CODE_BYTES)].to_owned());
        self.failures.push_back(Failure { kind, code, generation, at: now });
    }

    /// Remembers a transition and closes the account of the state before.
    pub(super) fn changed(&mut self, transition: Transition, now: Instant) {
        let from = transition.from;
        self.spent[account(from)] += now.saturating_duration_since(self.entered);
        self.entered = now;
        self.changes += u64::from(from != transition.to);
        if self.transitions.len() == HISTORY {
            self.transitions.pop_front();
        }
        self.transitions.push_back(Past { transition, at: now });
    }

    /// The state after the last transition that is remembered.
    pub(super) fn last_state(&self) -> Option<BreakerState> {
        self.transitions.back().map(|past| past.transition.to)
    }

    pub(super) fn last_cause(&self) -> Option<&TransitionCause> {
        self.transitions.back().map(|past| &past.transition.cause)
    }

    pub(super) fn transitions(&self, now: Instant) -> Vec<Transition> {
        self.transitions.iter().map(|past| past.told(now)).collect()
    }

    pub(super) fn failures(&self, now: Instant) -> Vec<FailureSample> {
        let told = |failure: &Failure| FailureSample {
            kind: failure.kind,
            code: failure.code.clone(),
            generation: failure.generation,
            age: now.saturating_duration_since(failure.at),
        };
        self.failures.iter().map(told).collect()
    }

    /// How long it is in its state.
    pub(super) fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.entered)
    }

    /// Changes of the state in this process.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Time spent in a state (in all manual states together), when it is in `current` now.
    pub(super) fn spent(&self, state: BreakerState, current: BreakerState, now: Instant) -> Duration {
        let running = if account(state) == account(current) { self.since(now) } else { Duration::ZERO };
        self.spent[account(state)] + running
    }
}

fn account(state: BreakerState) -> usize {
    match state {
        BreakerState::Closed => 0,
        BreakerState::Open => 1,
        BreakerState::HalfOpen => 2,
        BreakerState::Recovering => 3,
        BreakerState::ForcedOpen | BreakerState::ForcedClosed | BreakerState::Disabled | BreakerState::MetricsOnly => 4,
    }
}
