//! A request that was let in, and how far it has come.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use crate::call::Place;
use crate::error::Refusal;
use crate::operation::Receipt;
use crate::saga::Operation;

/// A request with its place, or why it is refused.
pub(super) type Admission<W, D> = Result<Admitted<W, D>, Refusal>;

/// A request that was let in.
pub(super) struct Admitted<W, D> {
    pub(super) work: W,
    pub(super) at_deadline: D,
    pub(super) deadline: Instant,
    /// What is true if the work ends without an answer.
    pub(super) otherwise: Refusal,
    pub(super) place: Place,
    pub(super) span: Span,
}

/// How far a request has come without waiting.
pub(super) enum Begun<T> {
    Answered(Result<T, Refusal>),
    Waits(oneshot::Receiver<Result<T, Refusal>>),
}

/// What becomes of work that is not done by its deadline.
pub(super) trait AtDeadline<T>: Send + 'static {
    /// Waits for the work, and answers once.
    fn see_through(
        self,
        work: impl Future<Output = Result<T, Refusal>> + Send,
        deadline: Instant,
        answer: impl FnOnce(Result<T, Refusal>) + Send,
    ) -> impl Future<Output = ()> + Send;
}

/// A read that is not done by then is dropped.
pub(super) struct Dropped;

impl<T: Send> AtDeadline<T> for Dropped {
    async fn see_through(
        self,
        work: impl Future<Output = Result<T, Refusal>> + Send,
        deadline: Instant,
        answer: impl FnOnce(Result<T, Refusal>) + Send,
    ) {
        answer(timeout_at(deadline, work).await.unwrap_or(Err(Refusal::DeadlineExceeded)));
    }
}

/// A write may go on.
impl AtDeadline<Receipt> for Arc<Operation> {
    async fn see_through(
        self,
        saga: impl Future<Output = Result<Receipt, Refusal>> + Send,
        deadline: Instant,
        answer: impl FnOnce(Result<Receipt, Refusal>) + Send,
    ) {
        Operation::see_through(&self, saga, deadline, answer).await;
    }
}
