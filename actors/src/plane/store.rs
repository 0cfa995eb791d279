//! One backend with its gate, its bulkhead and its retry budget.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use super::permit::CallPermit;
use crate::backend::{Applied, Backend, BackendError, BackendName, Capabilities, ErrorKind, Fence, FencedWrite, Role};
use crate::breaker::{BreakerHandle, OwnedLease as Lease, Purpose, Rejected};
use crate::call::{Bulkhead, CallConfig, CallStats, Denied, RetryBudget};
use crate::plane::Versions;
use crate::threads::atomic::{AtomicU64, Ordering};
use crate::threads::{Mutex, MutexGuard};

/// The code of the error when a backend holds a version that this runtime never gave out.
pub const FOREIGN_VERSION: &str = "foreign_version";

/// One backend with its breaker. It is called with a [permit](Self::permit), and in no other way.
pub struct Store {
    /// Its name.
    pub name: BackendName,
    /// Whether writes need it.
    pub role: Role,
    /// What it can be asked for.
    pub capabilities: Capabilities,
    /// How many owed writes it takes in one call.
    pub max_batch: usize,
    /// Its breaker.
    pub breaker: BreakerHandle,
    /// How it is called.
    pub config: CallConfig,
    /// Places for calls to it; the drain steps back for those of users.
    pub bulkhead: Arc<Bulkhead>,
    backend: Arc<dyn Backend>,
    budget: Mutex<RetryBudget>,
    /// Calls of users that were no retries: they pay for the retries.
    calls: AtomicU64,
    retries: AtomicU64,
    exhausted: AtomicU64,
    swept: AtomicU64,
}

impl Store {
    /// A backend behind this breaker, called so.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, breaker: BreakerHandle, config: CallConfig) -> Self {
        Self {
            name: backend.name(),
            role: backend.role(),
            capabilities: backend.capabilities(),
            max_batch: backend.max_batch().max(1),
            breaker,
            bulkhead: Arc::new(Bulkhead::new(config.max_concurrent)),
            backend,
            budget: Mutex::new(RetryBudget::new(config.retry.budget.clone(), Instant::now())),
            config,
            calls: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            exhausted: AtomicU64::new(0),
            swept: AtomicU64::new(0),
        }
    }

    /// Asks to be let in: for a place in the bulkhead, and then for the breaker's lease of the first call. Touches
    /// nothing.
    ///
    /// # Errors
    /// [`Denied`]; the backend must not be touched then.
    pub fn permit(self: &Arc<Self>, purpose: Purpose) -> Result<CallPermit, Denied> {
        // In this order, for a lease that is not used costs a breaker in half-open one of its probes.
        let Some(place) = self.bulkhead.enter(purpose) else {
            return Err(Denied::Bulkhead { limit: self.bulkhead.limit(), retry_after: self.config.retry.backoff });
        };
        let lease = self.breaker.gate().try_acquire_owned(purpose)?;
        Ok(CallPermit::new(Arc::clone(self), purpose, place, lease))
    }

    /// Whether it has transactions of its own.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.backend.transactions().is_some()
    }

    /// The adapter, for the health prober: it asks the gate by itself, and no limit of calls keeps it from looking.
    #[must_use]
    pub fn probed(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// How the calls to it stand.
    #[must_use]
    pub fn stats(&self) -> CallStats {
        CallStats {
            in_flight: self.bulkhead.all() as u64,
            retries: self.retries.load(Ordering::Relaxed),
            budget_exhausted: self.exhausted.load(Ordering::Relaxed),
            bulkhead_rejections: self.bulkhead.rejected(),
            swept: self.swept.load(Ordering::Relaxed),
        }
    }

    /// Calls the adapter once under a lease, no later than until this moment; see [`begin`](Self::begin).
    pub(super) async fn attempt<'a, T>(
        &'a self,
        lease: Lease,
        until: Instant,
        call: impl FnOnce(&'a dyn Backend) -> Call<'a, T>,
    ) -> Result<T, BackendError> {
        let mut begin = Some((lease, call));
        let now = Instant::now();
        let begun = poll_fn(|cx| {
            let (lease, call) = begin.take().expect("it is ready at once, so nobody polls it again");
            Poll::Ready(self.begin(lease, now, until, cx, call))
        });
        begun.await.end().await
    }

    /// Makes a call under a lease. It takes no longer than the backend's timeout, and ends by this moment; a panic in the
    /// adapter is an error like another. The lease is settled with what comes out; dropping the call cancels both.
    ///
    /// What comes out is what the adapter said, or [`ErrorKind::Unknown`] when it did not answer in time or panicked.
    pub(super) fn begin<'a, T>(
        &'a self,
        mut lease: Lease,
        now: Instant,
        until: Instant,
        cx: &mut Context<'_>,
        call: impl FnOnce(&'a dyn Backend) -> Call<'a, T>,
    ) -> Begun<'a, T> {
        lease.called(now);
        let poll = || {
            let mut call = call(&*self.backend);
            (call.as_mut().poll(cx), call)
        };
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok((Poll::Ready(result), _)) => Begun::Over(settle(lease, result)),
            Ok((Poll::Pending, call)) => {
                let timeout = self.config.timeout.min(until.saturating_duration_since(now));
                Begun::Out(Outstanding { lease, call, timeout, until: now + timeout })
            }
            Err(_) => Begun::Over(settle(lease, Err(panicked()))),
        }
    }

    /// It has forgotten so many deletes.
    pub(crate) fn swept(&self, deletes: usize) {
        self.swept.fetch_add(deletes as u64, Ordering::Relaxed);
    }

    /// A user's call is made, and pays for a part of a retry.
    pub(super) fn pay_for_retries(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there is a token for a retry; counted if not.
    pub(super) fn affords_retry(&self) -> bool {
        self.check_budget(&mut self.budget())
    }

    /// The lease for a retry, which costs a token; `None` without one. The gate is asked first, and a call that it
    /// refuses costs nothing.
    pub(super) fn lease_retry(&self, purpose: Purpose) -> Result<Option<Lease>, Rejected> {
        let mut budget = self.budget();
        if !self.check_budget(&mut budget) {
            return Ok(None);
        }
        let lease = self.breaker.gate().try_acquire_owned(purpose)?;
        budget.take_token();
        self.retries.fetch_add(1, Ordering::Relaxed);
        Ok(Some(lease))
    }

    fn check_budget(&self, budget: &mut RetryBudget) -> bool {
        let has = budget.has_token(self.calls.load(Ordering::Relaxed), Instant::now());
        if !has {
            self.exhausted.fetch_add(1, Ordering::Relaxed);
        }
        has
    }

    fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call to a backend.
pub type Call<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// A call that was made.
pub(super) enum Begun<'a, T> {
    /// It ended at once.
    Over(Result<T, BackendError>),
    Out(Outstanding<'a, T>),
}

/// A call that has to be waited for.
pub(super) struct Outstanding<'a, T> {
    lease: Lease,
    call: Call<'a, T>,
    timeout: Duration,
    until: Instant,
}

impl<T> Begun<'_, T> {
    /// Waits for what comes out.
    pub(super) async fn end(self) -> Result<T, BackendError> {
        let Outstanding { lease, call, timeout, until } = match self {
            Self::Over(result) => return result,
            Self::Out(outstanding) => outstanding,
        };
        let result = match timeout_at(until, AssertUnwindSafe(call).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(panicked()),
            Err(_) => Err(BackendError::unknown(format!("no answer within {timeout:?}")).with_code("timeout")),
        };
        settle(lease, result)
    }
}

fn panicked() -> BackendError {
    BackendError::unknown("the backend panicked").with_code("panic")
}

fn settle<T>(lease: Lease, result: Result<T, BackendError>) -> Result<T, BackendError> {
    lease.settle_result(&result);
    result
}

/// Whether what stood in the way of a write is a version that this runtime gave out. A compensation gives way to
/// whatever is newer: what it would take back is not there. `newest` says that no later write to its keys was
/// accepted, so that nothing of ours can stand in its way.
///
/// # Errors
/// When it is not. The versions are raised above it, so that another write gets through; this one, which has its
/// version already, never does.
pub(crate) fn check_fence(
    applied: Applied,
    write: &FencedWrite,
    newest: bool,
    versions: &Versions,
) -> Result<Applied, BackendError> {
    let Some(held) = applied.superseded_by.filter(|held| *held > write.version) else { return Ok(applied) };
    if write.fence == Fence::Compensation || (!newest && versions.issued(held)) {
        return Ok(applied);
    }
    versions.skip(held);
    // Of several changes some may have gone through.
    let kind = if write.changes.len() > 1 { ErrorKind::Unknown } else { ErrorKind::Refused };
    let error = BackendError::new(kind, format!("the backend holds {held}, which this runtime never gave out"));
    Err(error.with_code(FOREIGN_VERSION).with_retry_after(Duration::ZERO))
}

/// Whether this is the error of [`check_fence`].
pub(crate) fn is_foreign(error: &BackendError) -> bool {
    error.code.as_deref() == Some(FOREIGN_VERSION)
}
