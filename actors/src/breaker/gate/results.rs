//! How calls end. Only what says something against the backend, or holds a place, is told to the policy.

use std::time::Duration;

use tokio::time::Instant;

use super::{Gate, heard};
use crate::backend::BackendError;
use crate::breaker::ages::TICKS;
use crate::breaker::policy::{Evidence, Grant, Settled};
use crate::breaker::report::FailureKind;
use crate::breaker::tally::Rare;

/// As what a call is counted.
#[derive(Clone, Copy, PartialEq)]
enum Counted {
    Success,
    Rare(Rare),
}

impl Gate {
    /// A call succeeded. `slow`: the caller says that it took too long; else that is found out, from when it `called`.
    #[inline]
    pub(in crate::breaker) fn succeeded(&self, grant: Grant, slow: bool, called: Option<Instant>) {
        let old = self.published.tick().wrapping_sub(grant.tick) >= TICKS;
        if grant.place.is_none() && !slow && !old && called.is_none() {
            return self.count_success(grant);
        }
        let took = called.map(|at| at.elapsed());
        if grant.place.is_none() && !slow && took.is_some_and(|took| took < self.published.slow_call()) {
            return self.count_success(grant);
        }
        self.report(grant, took, if slow { Evidence::Slow } else { Evidence::Alive }, Counted::Success);
    }

    /// A call ended in an error.
    pub(in crate::breaker) fn failed(&self, grant: Grant, error: &BackendError, called: Option<Instant>) {
        let code = error.code.as_deref();
        if code.is_some() && self.lock().policy.excludes(error) {
            return self.ended(grant, Evidence::Nothing, Rare::Ignored);
        }
        if error.verdict().alive {
            return self.succeeded(grant, false, called);
        }
        let evidence = Evidence::Dead { kind: FailureKind::Error(error.kind), code };
        self.report(grant, None, evidence, Counted::Rare(Rare::Failed));
    }

    /// A caller stopped waiting.
    pub(in crate::breaker) fn given_up(&self, grant: Grant, called: Option<Instant>) {
        let took = called.map(|at| at.elapsed());
        self.report(grant, took, Evidence::Nothing, Counted::Rare(Rare::Cancelled));
    }

    /// A call ended in another way.
    pub(in crate::breaker) fn ended(&self, grant: Grant, evidence: Evidence<'_>, counted: Rare) {
        self.report(grant, None, evidence, Counted::Rare(counted));
    }

    /// Reports to the policy.
    #[cold]
    fn report(&self, grant: Grant, took: Option<Duration>, evidence: Evidence<'_>, counted: Counted) {
        let mut core = self.lock();
        let now = Instant::now();
        core.policy.hear(heard(&self.tally.totals()));
        let old = || core.policy.is_slow(took.unwrap_or_else(|| core.policy.age(grant, now)));
        let evidence = match (evidence, counted) {
            (Evidence::Alive, _) if old() => Evidence::Slow,
            (Evidence::Nothing, Counted::Rare(Rare::Cancelled)) if old() => {
                Evidence::Dead { kind: FailureKind::Abandoned, code: None }
            }
            (evidence, _) => evidence,
        };
        let settled = core.policy.settle(grant, evidence, now);
        // Counted under the lock, so that a snapshot shows a transition and the result that caused it together.
        match (settled, counted) {
            (Settled::Expired, _) => self.tally.add(Rare::Stale, 1),
            (Settled::Stale, Counted::Success) => self.count_stale_success(),
            (Settled::InTime, Counted::Success) => self.tally.successful(),
            (settled, Counted::Rare(rare)) => {
                self.tally.add(rare, 1);
                self.tally.add(Rare::Stale, u64::from(settled == Settled::Stale));
            }
        }
        if settled != Settled::Expired {
            self.tally.add(Rare::Slow, u64::from(evidence == Evidence::Slow));
            if let Evidence::Dead { .. } = evidence {
                core.last_failure = Some(now);
            }
        }
        self.publish(&mut core, now);
    }

    #[inline]
    fn count_success(&self, grant: Grant) {
        if self.published.word().generation() == grant.generation {
            self.tally.successful();
        } else {
            self.count_stale_success();
        }
    }

    /// A success that came after its generation is none of this one.
    fn count_stale_success(&self) {
        // First, so that it is never taken for one.
        self.tally.add(Rare::StaleSuccess, 1);
        self.tally.add(Rare::Stale, 1);
        self.tally.successful();
    }
}
