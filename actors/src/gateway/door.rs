//! The door: what is checked before anything is queued, and what is handed on.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::GatewayConfig;
use super::answer::{Answer, Port};
use super::read::Reader;
use crate::backend::BackendName;
use crate::error::Refusal;
use crate::event::EventKind;
use crate::journal::{DeadLetter, Ending, JournalHealth, JournalRecord, Ledger, appended};
use crate::operation::{
    BackendStatus, Found, OperationId, Outcome, Receipt, Retrieved, Search, Status, Traversal, Write,
};
use crate::plane::DataPlane;
use crate::record::Key;
use crate::saga::{Operation, SagaConfig};

/// Nobody waits longer than this, whatever a write says: a year.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Checks requests and starts their tasks; shared by the actor and the handles.
pub struct Door {
    pub(super) plane: Arc<DataPlane>,
    saga: Arc<SagaConfig>,
    config: GatewayConfig,
    permits: Arc<Semaphore>,
    closed: AtomicBool,
}

impl Door {
    /// An open door.
    #[must_use]
    pub fn new(plane: Arc<DataPlane>, saga: Arc<SagaConfig>, config: GatewayConfig) -> Self {
        let permits = Arc::new(Semaphore::new(config.max_in_flight));
        Self { plane, saga, config, permits, closed: AtomicBool::new(false) }
    }

    /// Lets nobody in any more; who is inside finishes.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.config.max_in_flight.saturating_sub(self.permits.available_permits())
    }

    pub(super) fn store(&self, write: Write, port: Port<Receipt>) {
        let answer = Answer::new(port, Refusal::Unknown { operation: write.operation });
        let checked = self.plane.limits.check_write(&write).map_err(Refusal::from);
        let permit = match checked.and_then(|()| self.permit()) {
            Ok(permit) => permit,
            Err(refusal) => return answer.give(Err(refusal)),
        };
        if let Some(refusal) = Operation::refused_at_once(&self.plane, &write) {
            return answer.give(Err(refusal));
        }
        let deadline = Instant::now() + write.timeout.unwrap_or(self.config.write_timeout).min(LONGEST_TIMEOUT);
        let span = tracing::debug_span!("write", operation = %write.operation, changes = write.changes.len());
        let operation = Operation::new(Arc::clone(&self.plane), Arc::clone(&self.saga), write);
        let work = async move {
            operation.perform(deadline, |result| answer.give(result)).await;
            drop(permit);
        };
        self.plane.tasks.spawn(work.instrument(span));
    }

    pub(super) fn retrieve(&self, key: Key, port: Port<Retrieved>) {
        let checked = self.plane.limits.check_key(&key).map_err(Refusal::from);
        self.read(checked, port, "retrieve", async move |reader: Reader| reader.retrieve(&key).await);
    }

    pub(super) fn search(&self, search: Search, port: Port<Found>) {
        let checked = self.plane.limits.check_search(&search).map_err(Refusal::from);
        self.read(checked, port, "search", async move |reader: Reader| reader.search(&search).await);
    }

    pub(super) fn traverse(&self, traversal: Traversal, port: Port<Found>) {
        let checked = self.plane.limits.check_traversal(&traversal).map_err(Refusal::from);
        self.read(checked, port, "traverse", async move |reader: Reader| reader.traverse(&traversal).await);
    }

    fn read<T, F>(
        &self,
        checked: Result<(), Refusal>,
        port: Port<T>,
        what: &'static str,
        read: impl FnOnce(Reader) -> F,
    ) where
        T: Send + 'static,
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let answer = Answer::new(port, Refusal::DeadlineExceeded);
        let permit = match checked.and_then(|()| self.permit()) {
            Ok(permit) => permit,
            Err(refusal) => return answer.give(Err(refusal)),
        };
        let deadline = Instant::now() + self.config.read_timeout;
        let work = read(Reader::new(Arc::clone(&self.plane), deadline));
        let work = async move {
            answer.give(timeout_at(deadline, work).await.unwrap_or(Err(Refusal::DeadlineExceeded)));
            drop(permit);
        };
        self.plane.tasks.spawn(work.instrument(tracing::debug_span!("read", what)));
    }

    /// What became of an operation.
    #[must_use]
    pub fn outcome(&self, operation: OperationId) -> Outcome {
        self.plane.ledger().outcome(operation)
    }

    /// The state in brief.
    #[must_use]
    pub fn status(&self) -> Status {
        let plan = self.plane.fallback.plan().get();
        let ledger = self.plane.ledger();
        Status {
            mode: plan.mode,
            level: plan.level,
            backends: self
                .plane
                .stores
                .iter()
                .map(|store| BackendStatus {
                    name: store.name.clone(),
                    breaker: store.breaker.view().state,
                    owed: ledger.owed(&store.name),
                })
                .collect(),
            owed: ledger.len(),
            owed_bytes: ledger.bytes(),
            dead_letters: ledger.dead(),
            in_flight: self.in_flight(),
            journal_healthy: plan.journal == JournalHealth::Healthy,
        }
    }

    /// The writes that a backend will never take.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.plane.ledger().dead_letters()
    }

    pub(super) fn retry_dead_letter(&self, operation: OperationId, backend: BackendName, port: Port<bool>) {
        let of =
            move |letter: &DeadLetter| letter.operation == operation && letter.backend == backend && letter.retriable;
        let revived = |DeadLetter { version, backend, .. }: DeadLetter| JournalRecord::Revived { version, backend };
        let revive = |ledger: &mut Ledger, record: &JournalRecord| {
            ledger.apply(record);
            Vec::new()
        };
        self.resolve(port, of, true, revived, revive);
    }

    pub(super) fn discard_dead_letter(&self, operation: OperationId, port: Port<bool>) {
        let of = move |letter: &DeadLetter| letter.operation == operation;
        let decided = |DeadLetter { version, backend: cause, .. }: DeadLetter| JournalRecord::Decided {
            version,
            cause,
            reason: "discarded".to_owned(),
            ending: Ending::Discarded,
        };
        self.resolve(port, of, false, decided, Ledger::discard);
    }

    /// Writes down what a person decides about dead letters, and only then does it.
    fn resolve(
        &self,
        port: Port<bool>,
        of: impl Fn(&DeadLetter) -> bool + Send + 'static,
        retried: bool,
        record: impl FnOnce(DeadLetter) -> JournalRecord + Send + 'static,
        then: impl FnOnce(&mut Ledger, &JournalRecord) -> Vec<JournalRecord> + Send + 'static,
    ) {
        let retry_after = self.config.retry_after;
        let unavailable = move |reason: String| Refusal::JournalUnavailable { reason, retry_after };
        let answer = Answer::new(port, unavailable("it has not answered; the change may be kept all the same".into()));
        let permit = match self.permit() {
            Ok(permit) => permit,
            Err(refusal) => return answer.give(Err(refusal)),
        };
        let plane = Arc::clone(&self.plane);
        let deadline = Instant::now() + self.config.write_timeout;
        self.plane.tasks.spawn(async move {
            let _permit = permit;
            let mut letters = plane.ledger().dead_letters();
            letters.retain(of);
            let Some(letter) = letters.first() else { return answer.give(Ok(false)) };
            let record = record(letter.clone());
            let mut append = pin!(appended(plane.journal.append(vec![record.clone()])));
            let mut waiting = Some(answer);
            let written = match timeout_at(deadline, &mut append).await {
                Ok(written) => written,
                Err(_) => {
                    // Dropped, the answer says so.
                    drop(waiting.take());
                    append.await
                }
            };
            if written.is_ok() {
                let records = then(&mut plane.ledger(), &record);
                plane.note(records);
                for DeadLetter { operation, version, backend, keys, .. } in letters {
                    for key in &keys {
                        plane.fallback.cache().forget(key);
                    }
                    plane.events.publish(EventKind::DeadLetterRemoved { operation, version, backend, retried });
                }
                plane.work.send_replace(());
            }
            if let Some(answer) = waiting {
                answer.give(written.map(|()| true).map_err(|error| unavailable(error.to_string())));
            }
        });
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Refusal::ShuttingDown);
        }
        Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| Refusal::Overloaded { limit: self.config.max_in_flight, retry_after: self.config.retry_after })
    }
}
