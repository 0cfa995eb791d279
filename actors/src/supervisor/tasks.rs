//! The work of single operations, which no actor may wait for.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that outlive the actor which started them, and are waited for before the runtime ends.
///
/// A handler gives its slow work to a task, with everything the work holds: reply port, permits, leases. Those
/// answer for themselves when they are dropped, so a task that panics or is cancelled leaves nothing behind.
/// Cloning gives another handle to the same tasks.
#[derive(Clone, Default)]
pub struct OperationTasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
    panics: Arc<AtomicU64>,
}

/// How far work has come without waiting.
pub enum Started<T> {
    /// To its end.
    Done(T),
    /// It waits for something: the rest is to be [spawned](OperationTasks::spawn).
    Waits(Pin<Box<dyn Future<Output = T> + Send>>),
    /// To a panic, which is counted.
    Panicked,
}

impl OperationTasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Does work in place, as far as it goes without waiting; much of it ends there, and needs no task. What waits is
    /// not left to whoever started it: a caller that stops to poll would keep the locks and places that it holds.
    pub fn start<T>(&self, work: impl Future<Output = T> + Send + 'static) -> Started<T> {
        let _running = self.tracker.token();
        let mut work = Box::pin(work);
        // Whoever goes on with it polls it first, and so makes itself known.
        let poll = || work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(Poll::Ready(done)) => Started::Done(done),
            Ok(Poll::Pending) => Started::Waits(work),
            Err(_) => {
                self.count_panic();
                Started::Panicked
            }
        }
    }

    /// Starts a task. A panic in it ends it alone, and is counted.
    ///
    /// Tasks are taken until [`close_and_wait`](Self::close_and_wait) runs out of time, for a task may need
    /// others to finish; after that they are dropped unpolled.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.clone();
        self.tracker.spawn(async move {
            let work = AssertUnwindSafe(work).catch_unwind();
            tokio::select! {
                biased;
                () = tasks.cancel.cancelled() => {}
                done = work => if done.is_err() {
                    tasks.count_panic();
                },
            }
        });
    }

    fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!("a task of an operation panicked");
    }

    /// How many tasks run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// How many tasks have panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Cancelled when the tasks are; for work that has something to say before it ends, select on it inside.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Waits until all tasks have ended, at most this long; then cancels those that are left, each at its next
    /// await. Gives how many those were.
    pub async fn close_and_wait(&self, patience: Duration) -> usize {
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tracker.len();
        self.cancel.cancel();
        // A task that blocks its thread cannot be cancelled, and is not waited for any longer.
        let _ = tokio::time::timeout(CANCEL_PATIENCE, self.tracker.wait()).await;
        left
    }
}

/// How long cancelled tasks may take to notice: they have only to be dropped.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_counted_and_ends_nothing_else() {
        let tasks = OperationTasks::new();
        let (reply, replied) = oneshot::channel();
        tasks.spawn(async { panic!("a backend's bug") });
        tasks.spawn(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = reply.send(());
        });
        assert_eq!(tasks.close_and_wait(Duration::from_secs(5)).await, 0);
        assert_eq!((replied.await, tasks.panics(), tasks.running()), (Ok(()), 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_in_time_is_cancelled_and_drops_what_it_holds() {
        let tasks = OperationTasks::new();
        let (held, dropped) = oneshot::channel::<()>();
        tasks.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let start = tokio::time::Instant::now();
        assert_eq!(tasks.close_and_wait(Duration::from_secs(5)).await, 1);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert!(dropped.await.is_err());
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_may_start_others_while_the_set_closes_but_not_after() {
        let tasks = OperationTasks::new();
        let (reply, replied) = oneshot::channel();
        let inner = tasks.clone();
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            inner.spawn(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let _ = reply.send(());
            });
        });
        assert_eq!(tasks.close_and_wait(Duration::from_secs(5)).await, 0);
        assert_eq!(replied.await, Ok(()));

        tasks.spawn(std::future::pending());
        assert_eq!(tasks.close_and_wait(Duration::ZERO).await, 1);
        let (never, late) = oneshot::channel::<()>();
        tasks.spawn(async move { never.send(()).unwrap_or_default() });
        assert!(late.await.is_err());
    }
}
