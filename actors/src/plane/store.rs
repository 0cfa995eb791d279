//! One backend with its gate, and the one way to call it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Applied, Backend, BackendError, BackendName, Capabilities, FencedWrite, Role};
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
        lease: Lease,
        timeout: Duration,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let result = match tokio::time::timeout(timeout, AssertUnwindSafe(call).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BackendError::unknown("the backend panicked").with_code("panic")),
            Err(_) => Err(BackendError::unknown(format!("no answer within {timeout:?}")).with_code("timeout")),
        };
        lease.settle_result(&result);
        result
    }

    /// Applies a write under a lease, and makes sure that what stood in its way is a version of ours.
    ///
    /// # Errors
    /// As [`call`](Self::call); and when the backend holds a version that this runtime never gave out, so that
    /// its fence would swallow the write.
    pub async fn apply(
        &self,
        lease: Lease,
        timeout: Duration,
        write: &FencedWrite,
        versions: &Versions,
    ) -> Result<Applied, BackendError> {
        let applied = self.call(lease, timeout, self.backend.apply(write)).await?;
        check_fence(applied, versions)
    }
}

/// Whether what stood in the way of a write is a version that this runtime gave out.
///
/// # Errors
/// When it is not. The versions are raised above it, so that a new try gets through.
pub(crate) fn check_fence(applied: Applied, versions: &Versions) -> Result<Applied, BackendError> {
    match applied.superseded_by {
        Some(version) if !versions.issued(version) => {
            versions.skip(version);
            Err(BackendError::refused(format!("the backend holds {version}, which this runtime never gave out"))
                .with_code(FOREIGN_VERSION))
        }
        _ => Ok(applied),
    }
}
