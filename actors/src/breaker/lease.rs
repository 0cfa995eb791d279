//! An admission, and the promise to report what became of it.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::BreakerState;
use super::gate::Gate;
use super::policy::{Evidence, Grant};
use super::report::FailureKind;
use super::tally::Rare;
use crate::backend::BackendError;

/// What a call is for.
///
/// In half-open a call of any purpose may take a place: a backend heals through whichever comes first, also when
/// nobody but the prober or the drain calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Somebody waits for it.
    Live,
    /// To see whether the backend is well.
    Probe,
    /// To give the backend what it owes.
    Drain,
    /// To take back a write.
    Compensation,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallOutcome {
    /// It succeeded.
    Success,
    /// It succeeded, slowly.
    Slow,
    /// The backend answered that it did not do it: it is alive.
    Refused,
    /// It failed.
    Failure,
    /// It says nothing about the backend.
    Ignored,
    /// Nobody waits for it any more.
    Cancelled,
}

/// A call that was not admitted. The backend was not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the breaker is {state}; retry after {:?}", self.retry_after())]
#[non_exhaustive]
pub struct Rejected {
    /// The state that refused it. In a recovery the call was only throttled: another one may get through.
    pub state: BreakerState,
    /// When that may be over, if it is known.
    until: Option<Instant>,
    /// How long to wait at most.
    at_most: Duration,
}

impl Rejected {
    pub(super) fn new(state: BreakerState, until: Option<Instant>, at_most: Duration) -> Self {
        Self { state, until, at_most }
    }

    /// When to try again. Where nobody knows, because any report may make room or a person has to lift something, it is
    /// a guess that does no harm.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        left.map_or(self.at_most, |left| left.min(self.at_most))
    }

    /// Whether a recovery held it back, while others get through.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.state == BreakerState::Recovering
    }
}

/// An admission to call a backend, from [`Gate::try_acquire`].
///
/// Report with [`settle`](Self::settle) or [`settle_result`](Self::settle_result). A lease that is dropped counts
/// as cancelled, and for the verdict as a failure when it is dropped by a panic, or when the call had been out for
/// `slow_call` by then.
#[must_use = "a lease that is dropped counts as a cancelled call"]
#[derive(Debug)]
pub struct Lease<G: Deref<Target = Gate>> {
    gate: G,
    grant: Grant,
    /// Whether it has yet to report. Calls that are not counted never have to.
    open: bool,
    /// When the backend was called, if the caller told.
    called: Option<Instant>,
}

/// A lease that holds its gate, for a task that has nothing else to borrow it from.
pub type OwnedLease = Lease<Arc<Gate>>;

impl<G: Deref<Target = Gate>> Lease<G> {
    #[inline]
    pub(super) fn new(gate: G, grant: Grant, counted: bool) -> Self {
        Self { gate, grant, open: counted, called: None }
    }

    /// The generation in which it was given; `None` when the breaker is disabled and counts nothing.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.open.then_some(self.grant.generation)
    }

    /// When it loses its place in half-open or in a recovery. What the call reports later than that changes nothing.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.gate.deadline(self.grant)
    }

    /// The backend is called now. How long the call takes is then known exactly, and otherwise to within a quarter of
    /// `slow_call`.
    pub fn called(&mut self, at: Instant) {
        self.called = Some(at);
    }

    /// Reports what became of the call.
    #[inline]
    pub fn settle(mut self, outcome: CallOutcome) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let grant = self.grant;
        match outcome {
            CallOutcome::Success | CallOutcome::Refused => self.gate.succeeded(grant, false, self.called),
            CallOutcome::Slow => self.gate.succeeded(grant, true, None),
            CallOutcome::Failure => {
                let evidence = Evidence::Dead { kind: FailureKind::Unspecified, code: None };
                self.gate.ended(grant, evidence, Rare::Failed);
            }
            CallOutcome::Ignored => self.gate.ended(grant, Evidence::Nothing, Rare::Ignored),
            CallOutcome::Cancelled => self.gate.given_up(grant, self.called),
        }
    }

    /// Reports the result of the call: an error is judged by [`BackendError::verdict`], unless the configuration
    /// excludes it.
    #[inline]
    pub fn settle_result<T>(mut self, result: &Result<T, BackendError>) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let grant = self.grant;
        match result {
            Ok(_) => self.gate.succeeded(grant, false, self.called),
            Err(error) => self.gate.failed(grant, error, self.called),
        }
    }
}

impl<G: Deref<Target = Gate>> Drop for Lease<G> {
    #[inline]
    fn drop(&mut self) {
        if self.open {
            self.dropped(self.grant);
        }
    }
}

impl<G: Deref<Target = Gate>> Lease<G> {
    #[cold]
    fn dropped(&self, grant: Grant) {
        if std::thread::panicking() {
            let evidence = Evidence::Dead { kind: FailureKind::Panic, code: None };
            self.gate.ended(grant, evidence, Rare::Panicked);
        } else {
            self.gate.given_up(grant, self.called);
        }
    }
}
