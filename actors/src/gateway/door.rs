//! The door: what is checked before anything is queued, and what is handed on.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::RpcReplyPort;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::GatewayConfig;
use super::admission::{Admission, Admitted, AtDeadline, Begun, Dropped};
use super::answer::{Answer, Port};
use super::read::Reader;
use crate::backend::BackendName;
use crate::breaker::Purpose;
use crate::call::{Bulkhead, Place};
use crate::error::Refusal;
use crate::event::EventKind;
use crate::journal::{DeadLetter, Ending, JournalHealth, JournalRecord, Ledger, appended};
use crate::operation::{
    BackendStatus, Found, OperationId, Outcome, Receipt, Retrieved, Search, Status, Traversal, Write,
};
use crate::plane::DataPlane;
use crate::record::Key;
use crate::saga::{Operation, SagaConfig};
use crate::supervisor::Started;

/// Nobody waits longer than this, whatever a write says: a year.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Checks requests and begins their work; shared by the actor and the handles.
pub struct Door {
    pub(super) plane: Arc<DataPlane>,
    saga: Arc<SagaConfig>,
    config: GatewayConfig,
    places: Arc<Bulkhead>,
    closed: AtomicBool,
}

impl Door {
    /// An open door.
    #[must_use]
    pub fn new(plane: Arc<DataPlane>, saga: Arc<SagaConfig>, config: GatewayConfig) -> Self {
        let places = Arc::new(Bulkhead::new(config.max_in_flight));
        Self { plane, saga, config, places, closed: AtomicBool::new(false) }
    }

    /// Lets nobody in any more; who is inside finishes.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.places.all()
    }

    pub(super) fn write(
        &self,
        write: Write,
    ) -> Admission<impl Future<Output = Result<Receipt, Refusal>> + use<>, Arc<Operation>> {
        self.plane.limits.check_write(&write)?;
        let place = self.place()?;
        if let Some(refusal) = Operation::refused_at_once(&self.plane, &write) {
            return Err(refusal);
        }
        let deadline = Instant::now() + write.timeout.unwrap_or(self.config.write_timeout).min(LONGEST_TIMEOUT);
        let otherwise = Refusal::Unknown { operation: write.operation };
        let span = tracing::debug_span!("write", operation = %write.operation, changes = write.changes.len());
        let operation = Operation::new(Arc::clone(&self.plane), Arc::clone(&self.saga), write);
        Ok(Admitted { work: Arc::clone(&operation).run(), at_deadline: operation, deadline, otherwise, place, span })
    }

    pub(super) fn retrieve(
        &self,
        key: Key,
    ) -> Admission<impl Future<Output = Result<Retrieved, Refusal>> + use<>, Dropped> {
        self.plane.limits.check_key(&key)?;
        self.read("retrieve", async move |reader: Reader| reader.retrieve(&key).await)
    }

    pub(super) fn search(
        &self,
        search: Search,
    ) -> Admission<impl Future<Output = Result<Found, Refusal>> + use<>, Dropped> {
        self.plane.limits.check_search(&search)?;
        self.read("search", async move |reader: Reader| reader.search(&search).await)
    }

    pub(super) fn traverse(
        &self,
        traversal: Traversal,
    ) -> Admission<impl Future<Output = Result<Found, Refusal>> + use<>, Dropped> {
        self.plane.limits.check_traversal(&traversal)?;
        self.read("traverse", async move |reader: Reader| reader.traverse(&traversal).await)
    }

    fn read<F>(&self, what: &'static str, read: impl FnOnce(Reader) -> F) -> Admission<F, Dropped> {
        let place = self.place()?;
        let deadline = Instant::now() + self.config.read_timeout;
        let work = read(Reader::new(Arc::clone(&self.plane), deadline));
        let (otherwise, span) = (Refusal::DeadlineExceeded, tracing::debug_span!("read", what));
        Ok(Admitted { work, at_deadline: Dropped, deadline, otherwise, place, span })
    }

    /// Does what was asked for here, as far as it goes without waiting. The rest is a task.
    pub(super) fn begin<T, W, D>(&self, admission: Admission<W, D>) -> Begun<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Refusal>> + Send + 'static,
        D: AtDeadline<T>,
    {
        let Admitted { work, at_deadline, deadline, otherwise, place, span } = match admission {
            Ok(admitted) => admitted,
            Err(refusal) => return Begun::Answered(Err(refusal)),
        };
        match span.in_scope(|| self.plane.tasks.start(work)) {
            Started::Done(result) => Begun::Answered(result),
            Started::Panicked => Begun::Answered(Err(otherwise)),
            Started::Waits(work) => {
                let (sender, receiver) = oneshot::channel();
                let rest = Admitted { work, at_deadline, deadline, otherwise, place, span };
                self.spawn(rest, Port::Caller(sender));
                Begun::Waits(receiver)
            }
        }
    }

    /// Does what was asked for in a task: whoever calls this has others to hear.
    pub(super) fn hand_over<T, W, D>(&self, admission: Admission<W, D>, port: RpcReplyPort<Result<T, Refusal>>)
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Refusal>> + Send + 'static,
        D: AtDeadline<T>,
    {
        match admission {
            Ok(admitted) => self.spawn(admitted, Port::Ractor(port)),
            // A caller that no longer waits is none of our business.
            Err(refusal) => drop(port.send(Err(refusal))),
        }
    }

    fn spawn<T, W, D>(&self, admitted: Admitted<W, D>, port: Port<T>)
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Refusal>> + Send + 'static,
        D: AtDeadline<T>,
    {
        let Admitted { work, at_deadline, deadline, otherwise, place, span } = admitted;
        let answer = Answer::new(port, otherwise);
        let work = async move {
            at_deadline.see_through(work, deadline, |result| answer.give(result)).await;
            drop(place);
        };
        self.plane.tasks.spawn(work.instrument(span));
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
        let place = match self.place() {
            Ok(place) => place,
            Err(refusal) => return answer.give(Err(refusal)),
        };
        let plane = Arc::clone(&self.plane);
        let deadline = Instant::now() + self.config.write_timeout;
        self.plane.tasks.spawn(async move {
            let _place = place;
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

    fn place(&self) -> Result<Place, Refusal> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Refusal::ShuttingDown);
        }
        let crowded = || Refusal::Overloaded { limit: self.config.max_in_flight, retry_after: self.config.retry_after };
        self.places.enter(Purpose::Live).ok_or_else(crowded)
    }
}
