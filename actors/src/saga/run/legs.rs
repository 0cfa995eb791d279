//! The legs of one write: its calls to the backends, side by side, native transactions last.

use futures::FutureExt;
use futures::future::{join_all, ready};
use tokio::time::Instant;

use super::{Ends, Leg, Legs, Operation, tries};
use crate::backend::{Applied, BackendError, FencedWrite, Happened, Transaction};
use crate::fallback::WriteRule;
use crate::plane::{Called, FailedCall, Store, Tries, call_all, check_fence, fenced};
use crate::saga::{Failure, LegEnd};

impl Operation {
    /// Runs the legs side by side; native transactions are committed when the other legs are done.
    pub(super) async fn run_legs(&self, legs: Legs, write: &FencedWrite, until: Instant, rule: &WriteRule) -> Ends {
        if legs.iter().any(|leg| leg.permit.store().is_native()) {
            return Box::pin(self.run_native_legs(legs, write, until, rule)).await;
        }
        self.run_plain_legs(legs, write, until, rule).await
    }

    async fn run_plain_legs(&self, mut legs: Legs, write: &FencedWrite, until: Instant, rule: &WriteRule) -> Ends {
        let (permits, now) = (legs.iter_mut().map(|leg| &mut leg.permit), Instant::now());
        let called = call_all(permits, now, until, tries(rule), true, |backend| backend.apply(write)).await;
        let end = |(leg, called): (&Leg, Called<Applied>)| {
            let applied = called.and_then(|applied| fenced(applied, write, true, &self.plane.versions));
            (leg.name().clone(), self.end_of(leg.permit.store(), applied))
        };
        legs.iter().zip(called).map(end).collect()
    }

    async fn run_native_legs(&self, legs: Legs, write: &FencedWrite, until: Instant, rule: &WriteRule) -> Ends {
        let tries = tries(rule);
        let (native, plain): (Legs, Legs) = legs.into_iter().partition(|leg| leg.permit.store().is_native());
        let begun = join_all(native.into_iter().map(|leg| self.begin_native(leg, write, until, tries)));
        let (begun, mut ends) = tokio::join!(begun, self.run_plain_legs(plain, write, until, rule));
        let mut open = Vec::with_capacity(begun.len());
        for (leg, transaction) in begun {
            match transaction {
                Ok(transaction) => open.push((leg, transaction)),
                Err(failure) => ends.push((leg.name().clone(), LegEnd::Failed(failure))),
            }
        }
        let may_roll_back = *rule == WriteRule::Through;
        for (leg, transaction) in open {
            let goes = |(_, end): &(_, LegEnd)| if may_roll_back { *end == LegEnd::Done } else { !is_hopeless(end) };
            let name = leg.name().clone();
            let end = if ends.iter().all(goes) {
                self.commit_native(leg, transaction, write, until).await
            } else {
                self.roll_back_native(leg, transaction).await;
                LegEnd::Failed(Failure::without_effect("rolled back, because another backend failed"))
            };
            ends.push((name, end));
        }
        ends
    }

    async fn begin_native(
        &self,
        mut leg: Leg,
        write: &FencedWrite,
        until: Instant,
        tries: Tries,
    ) -> (Leg, Result<Box<dyn Transaction>, Failure>) {
        let begun = leg.permit.call(until, tries, |backend| match backend.transactions() {
            Some(transactions) => transactions.begin(write),
            None => ready(Err(BackendError::transient("no transactions"))).boxed(),
        });
        let begun = begun.await.map_err(|failed| {
            self.hear(leg.permit.store(), &failed);
            // It was never committed.
            Failure { happened: Happened::No, ..Failure::from(&failed) }
        });
        (leg, begun)
    }

    async fn commit_native(
        &self,
        mut leg: Leg,
        open: Box<dyn Transaction>,
        write: &FencedWrite,
        until: Instant,
    ) -> LegEnd {
        // Refused by the breaker, the transaction is dropped, and rolls back by itself.
        let committed = leg.permit.call_once(until, |_| open.commit()).await;
        let fenced = committed.and_then(|applied| Ok(check_fence(applied, write, true, &self.plane.versions)?));
        self.end_of(leg.permit.store(), fenced)
    }

    /// Takes back what never became visible; whether that succeeds or not, nothing of it ever will.
    async fn roll_back_native(&self, mut leg: Leg, open: Box<dyn Transaction>) {
        let until = Instant::now() + self.config.rollback_timeout;
        let _ = leg.permit.call_once(until, |_| open.rollback()).await;
    }

    fn end_of(&self, store: &Store, result: Result<Applied, FailedCall>) -> LegEnd {
        match result {
            Ok(_) => LegEnd::Done,
            Err(failed) => {
                self.hear(store, &failed);
                LegEnd::Failed(Failure::from(&failed))
            }
        }
    }
}

fn is_hopeless(end: &LegEnd) -> bool {
    matches!(end, LegEnd::Failed(failure) if failure.hopeless)
}
