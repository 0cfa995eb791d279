//! The convenience beside the actor ref.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::coop::consume_budget;

use super::Door;
use super::admission::Begun;
use super::answer::Port;
use crate::backend::BackendName;
use crate::error::Refusal;
use crate::journal::DeadLetter;
use crate::operation::{Found, OperationId, Outcome, Receipt, Retrieved, Search, Status, Traversal, Write};
use crate::record::{Key, Properties, Record};

/// Typed methods for every request. The permit is taken on the caller's side, and no message is sent, so nothing
/// can pile up. Cloning is cheap.
#[derive(Clone)]
pub struct Handle {
    door: Arc<Door>,
}

impl Handle {
    /// A handle for this door.
    #[must_use]
    pub fn new(door: Arc<Door>) -> Self {
        Self { door }
    }

    /// Performs a write.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn write(&self, write: impl Into<Write>) -> Result<Receipt, Refusal> {
        let write = write.into();
        let operation = write.operation;
        self.begin(|door| door.begin(door.write(write)), Refusal::Unknown { operation }).await
    }

    /// Stores a record, over whatever was there.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn store(&self, record: Record) -> Result<Receipt, Refusal> {
        self.write(Write::store(record)).await
    }

    /// Stores several records, all or none.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn store_batch(&self, records: impl IntoIterator<Item = Record>) -> Result<Receipt, Refusal> {
        self.write(Write::store_batch(records)).await
    }

    /// Merges properties into a record; see [`Change::Merge`](crate::operation::Change::Merge).
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn update(&self, key: impl Into<Key>, properties: Properties) -> Result<Receipt, Refusal> {
        self.write(Write::update(key, properties)).await
    }

    /// Deletes a record.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn delete(&self, key: impl Into<Key>) -> Result<Receipt, Refusal> {
        self.write(Write::delete(key)).await
    }

    /// Reads one record.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn retrieve(&self, key: impl Into<Key>) -> Result<Retrieved, Refusal> {
        self.begin(|door| door.begin(door.retrieve(key.into())), Refusal::ShuttingDown).await
    }

    /// Searches for the nearest records.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn search(&self, search: Search) -> Result<Found, Refusal> {
        self.begin(|door| door.begin(door.search(search)), Refusal::ShuttingDown).await
    }

    /// Walks along relations.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn traverse(&self, traversal: Traversal) -> Result<Found, Refusal> {
        self.begin(|door| door.begin(door.traverse(traversal)), Refusal::ShuttingDown).await
    }

    /// What became of an operation.
    #[must_use]
    pub fn outcome(&self, operation: OperationId) -> Outcome {
        self.door.outcome(operation)
    }

    /// The state in brief.
    #[must_use]
    pub fn status(&self) -> Status {
        self.door.status()
    }

    /// The writes that a backend will never take.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.door.dead_letters()
    }

    /// Tries a dead letter again; `false` when there is none of this operation and backend that
    /// [can be](DeadLetter::retriable).
    ///
    /// # Errors
    /// When that could not be written down.
    pub async fn retry_dead_letter(&self, operation: OperationId, backend: BackendName) -> Result<bool, Refusal> {
        self.ask(Refusal::ShuttingDown, |port| self.door.retry_dead_letter(operation, backend, port)).await
    }

    /// Gives up on an operation that is a dead letter: what other backends have of it is undone where that is
    /// possible. `false` when it is no dead letter.
    ///
    /// # Errors
    /// When that could not be written down.
    pub async fn discard_dead_letter(&self, operation: OperationId) -> Result<bool, Refusal> {
        self.ask(Refusal::ShuttingDown, |port| self.door.discard_dead_letter(operation, port)).await
    }

    /// What ends without waiting needs no task and no message.
    async fn begin<T>(&self, begin: impl FnOnce(&Door) -> Begun<T>, otherwise: Refusal) -> Result<T, Refusal> {
        // A caller that never has to wait lets others run all the same.
        consume_budget().await;
        match begin(&self.door) {
            Begun::Answered(result) => result,
            Begun::Waits(answer) => answer.await.unwrap_or(Err(otherwise)),
        }
    }

    async fn ask<T: Send + 'static>(&self, otherwise: Refusal, send: impl FnOnce(Port<T>)) -> Result<T, Refusal> {
        let (sender, receiver) = oneshot::channel();
        send(Port::Caller(sender));
        receiver.await.unwrap_or(Err(otherwise))
    }
}
