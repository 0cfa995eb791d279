//! One backend with its gate, and the one way to call it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Applied, Backend, BackendError, BackendName, Capabilities, ErrorKind, Fence, FencedWrite, Role};
use crate::breaker::{BreakerHandle, OwnedLease as Lease};
use crate::plane::Versions;
use crate::threads::atomic::{AtomicUsize, Ordering};
use futures::FutureExt;

/// The code of the error when a backend holds a version that this runtime never gave out.
pub const FOREIGN_VERSION: &str = "foreign_version";

/// One backend with its breaker.
pub struct Store {
    /// Its name.
    pub name: BackendName,
    /// Whether writes need it.
    pub role: Role,
    /// What it can be asked for.
    pub capabilities: Capabilities,
    /// The adapter.
    pub backend: Arc<dyn Backend>,
    /// Its breaker.
    pub breaker: BreakerHandle,
    /// How many calls of users it is working on now; the drain steps back for them.
    pub live: LiveCalls,
}

/// Counts the calls of users that a backend is working on.
#[derive(Clone, Default)]
pub struct LiveCalls(Arc<AtomicUsize>);

impl LiveCalls {
    /// Counts one call until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> LiveCall<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        LiveCall(&self.0)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One call that is counted.
pub struct LiveCall<'a>(&'a AtomicUsize);

impl Drop for LiveCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Store {
    /// Calls the adapter under a lease: no longer than `timeout`, and a panic in it is an error like another.
    /// The lease is settled with what came out; dropping the future cancels both.
    ///
    /// # Errors
    /// What the adapter said; [`ErrorKind::Unknown`](crate::backend::ErrorKind::Unknown) when it did not answer in
    /// time or panicked.
    pub async fn call<T>(
        &self,
        mut lease: Lease,
        timeout: Duration,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        lease.called(tokio::time::Instant::now());
        let result = match tokio::time::timeout(timeout, AssertUnwindSafe(call).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BackendError::unknown("the backend panicked").with_code("panic")),
            Err(_) => Err(BackendError::unknown(format!("no answer within {timeout:?}")).with_code("timeout")),
        };
        lease.settle_result(&result);
        result
    }

    /// Applies a write under a lease, and makes sure that what stood in its way is a version of ours. `newest` says
    /// that no later write to its keys was accepted, so that nothing of ours can stand in its way.
    ///
    /// # Errors
    /// As [`call`](Self::call); and when the backend holds a version that this runtime never gave out, so that
    /// its fence swallowed the write.
    pub async fn apply(
        &self,
        lease: Lease,
        timeout: Duration,
        write: &FencedWrite,
        newest: bool,
        versions: &Versions,
    ) -> Result<Applied, BackendError> {
        let applied = self.call(lease, timeout, self.backend.apply(write)).await?;
        check_fence(applied, write, newest, versions)
    }
}

/// Whether what stood in the way of a write is a version that this runtime gave out. A compensation gives way to
/// whatever is newer: what it would take back is not there.
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
