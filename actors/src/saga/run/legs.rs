//! The legs of one write: its calls to the backends, side by side, native transactions last.

use std::sync::Arc;

use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::{Leg, Operation};
use crate::backend::{BackendError, BackendName, FencedWrite, Happened, Transaction};
use crate::breaker::{OwnedLease as Lease, Purpose};
use crate::plane::{Store, check_fence};
use crate::saga::{Failure, LegEnd};

impl Operation {
    /// Runs the legs side by side; native transactions are committed when the other legs are done.
    pub(super) async fn run_legs(
        &self,
        legs: &mut [Leg],
        write: &FencedWrite,
        until: Instant,
        may_roll_back: bool,
    ) -> Vec<(BackendName, LegEnd)> {
        let (plain, native): (Vec<&mut Leg>, Vec<&mut Leg>) =
            legs.iter_mut().partition(|leg| leg.store.backend.transactions().is_none());
        let begun = join_all(native.into_iter().map(|leg| self.begin_native(leg, write, until)));
        let done = join_all(plain.into_iter().map(|leg| self.run_leg(leg, write, until, may_roll_back)));
        let (begun, mut ends) = tokio::join!(begun, done);
        let mut open = Vec::with_capacity(begun.len());
        for (store, transaction) in begun {
            match transaction {
                Ok(transaction) => open.push((store, transaction)),
                Err(failure) => ends.push((store.name.clone(), LegEnd::Failed(failure))),
            }
        }
        for (store, transaction) in open {
            let goes = |(_, end): &(_, LegEnd)| if may_roll_back { *end == LegEnd::Done } else { !is_hopeless(end) };
            let end = if ends.iter().all(goes) {
                self.commit_native(&store, transaction, write, until).await
            } else {
                self.roll_back_native(&store, transaction).await;
                LegEnd::Failed(Failure::without_effect("rolled back, because another backend failed"))
            };
            ends.push((store.name.clone(), end));
        }
        ends
    }

    async fn begin_native(
        &self,
        leg: &mut Leg,
        write: &FencedWrite,
        until: Instant,
    ) -> (Arc<Store>, Result<Box<dyn Transaction>, Failure>) {
        let store = Arc::clone(&leg.store);
        let result = match (self.lease(leg), store.backend.transactions()) {
            (Ok(lease), Some(transactions)) => {
                let timeout = self.config.step_timeout.min(until.saturating_duration_since(Instant::now()));
                let begun = store.call(lease, timeout, transactions.begin(write)).await;
                begun.map_err(|error| {
                    self.hear(&store, &error);
                    // It was never committed.
                    Failure { happened: Happened::No, ..Failure::from(&error) }
                })
            }
            (Err(failure), _) => Err(failure),
            (Ok(_), None) => Err(Failure::from(&BackendError::transient("no transactions"))),
        };
        (store, result)
    }

    async fn commit_native(
        &self,
        store: &Store,
        open: Box<dyn Transaction>,
        write: &FencedWrite,
        until: Instant,
    ) -> LegEnd {
        let Ok(lease) = store.breaker.gate().try_acquire_owned(Purpose::Live) else {
            // Dropped, it rolls back by itself: nobody calls behind an open breaker.
            return LegEnd::Failed(Failure::without_effect("its breaker opened before the commit"));
        };
        let timeout = self.config.step_timeout.min(until.saturating_duration_since(Instant::now()));
        let committed = store.call(lease, timeout, open.commit()).await;
        match committed.and_then(|applied| check_fence(applied, write, true, &self.plane.versions)) {
            Ok(_) => LegEnd::Done,
            Err(error) => {
                self.hear(store, &error);
                LegEnd::Failed(Failure::from(&error))
            }
        }
    }

    /// Takes back what never became visible; whether that succeeds or not, nothing of it ever will.
    async fn roll_back_native(&self, store: &Store, open: Box<dyn Transaction>) {
        if let Ok(lease) = store.breaker.gate().try_acquire_owned(Purpose::Compensation) {
            let _ = store.call(lease, self.config.step_timeout, open.rollback()).await;
        }
    }

    /// Applies the write to one backend, with retries while there is time and hope.
    async fn run_leg(
        &self,
        leg: &mut Leg,
        write: &FencedWrite,
        until: Instant,
        may_roll_back: bool,
    ) -> (BackendName, LegEnd) {
        let store = Arc::clone(&leg.store);
        let _live = store.live.enter();
        let mut happened = Happened::No;
        for retry in 0.. {
            let lease = match self.lease(leg) {
                Ok(lease) => lease,
                Err(failure) => return (store.name.clone(), LegEnd::Failed(Failure { happened, ..failure })),
            };
            let timeout = self.config.step_timeout.min(until.saturating_duration_since(Instant::now()));
            let error = match store.apply(lease, timeout, write, true, &self.plane.versions).await {
                Ok(_) => break,
                Err(error) => error,
            };
            self.hear(&store, &error);
            let failure = Failure::from(&error);
            if failure.happened == Happened::Perhaps {
                happened = Happened::Perhaps;
            }
            let wait = error.retry_after.unwrap_or_default().max(self.config.wait_before(retry));
            let again = may_roll_back && !failure.hopeless && retry < self.config.max_retries;
            // A store may ask for any wait.
            if !again || wait >= until.saturating_duration_since(Instant::now()) {
                return (store.name.clone(), LegEnd::Failed(Failure { happened, ..failure }));
            }
            sleep(wait).await;
        }
        (store.name.clone(), LegEnd::Done)
    }

    pub(super) fn lease(&self, leg: &mut Leg) -> Result<Lease, Failure> {
        match leg.lease.take() {
            Some(lease) => Ok(lease),
            None => leg.store.breaker.gate().try_acquire_owned(Purpose::Live).map_err(|rejected| Failure {
                happened: Happened::No,
                hopeless: false,
                reason: rejected.to_string(),
                retry_after: rejected.retry_after,
            }),
        }
    }
}

fn is_hopeless(end: &LegEnd) -> bool {
    matches!(end, LegEnd::Failed(failure) if failure.hopeless)
}
