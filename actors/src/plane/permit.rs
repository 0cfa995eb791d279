//! The one way to call a backend.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::join_all;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use super::store::{Begun, Call, Store};
use crate::backend::{Applied, Backend, BackendError, FencedWrite, Happened};
use crate::breaker::{BreakerState, OwnedLease as Lease, Purpose};
use crate::call::{Denied, Place};
use crate::plane::{Versions, check_fence};

/// How often a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tries {
    /// Once: somebody else is asked instead, or it is tried again later.
    One,
    /// As often as the backend's [`RetryConfig`](crate::call::RetryConfig) says, while there is time and hope.
    Several,
}

/// The right to call a backend, one call after another, from [`Store::permit`]. It holds a place in the bulkhead until
/// it is dropped; a lease of the breaker is taken for every call anew.
#[must_use = "a permit that is dropped gives up its place"]
pub struct CallPermit {
    store: Arc<Store>,
    purpose: Purpose,
    /// Until nothing is left to be called.
    place: Option<Place>,
    /// For the first call.
    lease: Option<Lease>,
}

/// A call that came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}")]
pub struct FailedCall {
    /// Whether any of its tries may have had its effect all the same.
    pub happened: Happened,
    /// Why there was no further try.
    pub cause: Cause,
}

/// Why a call came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Cause {
    /// The backend was not touched, or not touched again.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl FailedCall {
    /// What the backend said last, if that is why.
    #[must_use]
    pub fn backend(&self) -> Option<&BackendError> {
        match &self.cause {
            Cause::Backend(error) => Some(error),
            Cause::Denied(_) => None,
        }
    }

    /// Why it was not made, if it was not.
    #[must_use]
    pub fn denied(&self) -> Option<&Denied> {
        match &self.cause {
            Cause::Backend(_) => None,
            Cause::Denied(denied) => Some(denied),
        }
    }

    /// When to try again, if that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.cause {
            Cause::Backend(error) => error.retry_after,
            Cause::Denied(denied) => Some(denied.retry_after()),
        }
    }
}

impl From<BackendError> for FailedCall {
    fn from(error: BackendError) -> Self {
        Self { happened: error.verdict().happened, cause: error.into() }
    }
}

impl From<Denied> for FailedCall {
    fn from(denied: Denied) -> Self {
        Self { happened: Happened::No, cause: denied.into() }
    }
}

impl CallPermit {
    pub(super) fn new(store: Arc<Store>, purpose: Purpose, place: Place, lease: Lease) -> Self {
        Self { store, purpose, place: Some(place), lease: Some(lease) }
    }

    /// Whom it lets call.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Calls the backend once, no later than until this moment.
    ///
    /// # Errors
    /// When the breaker refuses, and what the backend said.
    pub async fn call_once<'a, T>(
        &'a mut self,
        until: Instant,
        call: impl FnOnce(&'a dyn Backend) -> Call<'a, T>,
    ) -> Result<T, FailedCall> {
        let lease = self.first_lease()?;
        Ok(self.store.attempt(lease, until, call).await?)
    }

    /// Calls the backend, and again when that fails, all no later than until this moment.
    ///
    /// # Errors
    /// The last one: what the backend said, also where the budget has no further try; or that the breaker, which may
    /// have opened meanwhile, refuses one.
    pub async fn call<'a, T>(
        &'a mut self,
        until: Instant,
        tries: Tries,
        mut call: impl FnMut(&'a dyn Backend) -> Call<'a, T>,
    ) -> Result<T, FailedCall> {
        let lease = self.first_lease()?;
        let result = self.store.attempt(lease, until, &mut call).await;
        Ok(self.go_on(result, until, tries, call).await?.0)
    }

    /// Calls again while that helps, when the first try came to this. Gives also whether a try that failed may have had
    /// its effect.
    async fn go_on<'a, T>(
        &'a self,
        mut result: Result<T, BackendError>,
        until: Instant,
        tries: Tries,
        mut call: impl FnMut(&'a dyn Backend) -> Call<'a, T>,
    ) -> Result<(T, Happened), FailedCall> {
        let (mut happened, mut retries) = (Happened::No, 0);
        loop {
            let error = match result {
                Ok(value) => return Ok((value, happened)),
                Err(error) => error,
            };
            if error.verdict().happened == Happened::Perhaps {
                happened = Happened::Perhaps;
            }
            let next = match tries {
                Tries::One => None,
                Tries::Several => self.next_lease(retries, &error, until).await.transpose(),
            };
            let lease = match next {
                Some(Ok(lease)) => lease,
                Some(Err(denied)) => return Err(FailedCall { happened, cause: denied.into() }),
                None => return Err(FailedCall { happened, cause: error.into() }),
            };
            retries += 1;
            result = self.store.attempt(lease, until, &mut call).await;
        }
    }
    /// Applies a write, and makes sure that what stood in its way is a version of ours. `newest` says that no later
    /// write to its keys was accepted, so that nothing of ours can stand in its way.
    ///
    /// # Errors
    /// As [`call`](Self::call); and when the backend holds a version that this runtime never gave out, so that its
    /// fence swallowed the write.
    pub async fn apply<'a>(
        &'a mut self,
        until: Instant,
        tries: Tries,
        write: &'a FencedWrite,
        newest: bool,
        versions: &Versions,
    ) -> Result<Applied, FailedCall> {
        let lease = self.first_lease()?;
        let result = self.store.attempt(lease, until, |backend| backend.apply(write)).await;
        let applied = self.go_on(result, until, tries, |backend| backend.apply(write)).await?;
        fenced(applied, write, newest, versions)
    }

    /// Applies several writes in one call, each as [`apply`](Self::apply) does.
    ///
    /// # Errors
    /// When the breaker refuses, or the backend says so of all of them.
    pub async fn apply_batch(
        &mut self,
        until: Instant,
        writes: &[FencedWrite],
        versions: &Versions,
    ) -> Result<Vec<Result<Applied, FailedCall>>, FailedCall> {
        let lease = self.first_lease()?;
        let applied = self.store.attempt(lease, until, |backend| backend.apply_batch(writes)).await?;
        let fenced =
            |(applied, write): (Result<_, BackendError>, _)| fenced((applied?, Happened::No), write, false, versions);
        Ok(applied.into_iter().zip(writes).map(fenced).collect())
    }

    fn first_lease(&mut self) -> Result<Lease, FailedCall> {
        let lease = match self.lease.take() {
            Some(lease) => lease,
            None => self.store.breaker.gate().try_acquire_owned(self.purpose).map_err(Denied::from)?,
        };
        if self.purpose == Purpose::Live {
            self.store.pay_for_retries();
        }
        Ok(lease)
    }

    /// Waits for the time of the next try, and takes its lease; `None` when there is none.
    async fn next_lease(&self, retries: u32, error: &BackendError, until: Instant) -> Result<Option<Lease>, Denied> {
        let store = &self.store;
        let Some(wait) = store.config.retry.wait(retries, error, fastrand::f64()) else { return Ok(None) };
        // A store may ask for any wait.
        if wait >= until.saturating_duration_since(Instant::now()) || !store.affords_retry() {
            return Ok(None);
        }
        // Nobody waits to be refused.
        if !matches!(store.breaker.view().state, BreakerState::Open | BreakerState::ForcedOpen) {
            sleep(wait).await;
        }
        Ok(store.lease_retry(self.purpose)?)
    }
}

/// What came of a call, and whether a try that failed before may have had its effect.
pub(crate) type Called<T> = Result<(T, Happened), FailedCall>;

/// Calls several backends side by side, each as [`CallPermit::call`] does. What ends at once costs no waiting. After the
/// `last` call each gives up its place, whatever the others do.
pub(crate) async fn call_all<'a, T>(
    permits: impl Iterator<Item = &'a mut CallPermit>,
    now: Instant,
    until: Instant,
    tries: Tries,
    last: bool,
    call: impl Fn(&'a dyn Backend) -> Call<'a, T> + Copy,
) -> SmallVec<[Called<T>; 2]> {
    let mut permits = Some(permits);
    let begin = |cx: &mut Context<'_>| {
        let begin = |permit: &'a mut CallPermit| {
            let place = if last { permit.place.take() } else { None };
            let lease = permit.first_lease();
            let permit = &*permit;
            match lease.map(|lease| permit.store.begin(lease, now, until, cx, call)) {
                Ok(Begun::Over(Ok(value))) => Progress::Done(value),
                begun => Progress::Waits(permit, place, begun),
            }
        };
        Poll::Ready(permits.take().into_iter().flatten().map(begin).collect())
    };
    let begun: SmallVec<[Progress<'_, T>; 2]> = poll_fn(begin).await;
    if begun.iter().any(|begun| matches!(begun, Progress::Waits(..))) {
        let ends = begun.into_iter().map(|begun| async move {
            match begun {
                Progress::Done(value) => Ok((value, Happened::No)),
                Progress::Waits(permit, _place, begun) => permit.go_on(begun?.end().await, until, tries, call).await,
            }
        });
        return join_all(ends).await.into();
    }
    let done = |begun| if let Progress::Done(value) = begun { Some(Ok((value, Happened::No))) } else { None };
    begun.into_iter().filter_map(done).collect()
}

/// How far one of several calls is.
enum Progress<'a, T> {
    Done(T),
    Waits(&'a CallPermit, Option<Place>, Result<Begun<'a, T>, FailedCall>),
}

/// Makes sure that what stood in the way of a write is a version of ours; see [`check_fence`].
pub(crate) fn fenced(
    (applied, happened): (Applied, Happened),
    write: &FencedWrite,
    newest: bool,
    versions: &Versions,
) -> Result<Applied, FailedCall> {
    check_fence(applied, write, newest, versions).map_err(|error| match happened {
        Happened::No => error.into(),
        Happened::Perhaps => FailedCall { happened, cause: error.into() },
    })
}

impl fmt::Debug for CallPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallPermit").field("store", &self.store.name).field("purpose", &self.purpose).finish()
    }
}
