//! One write, from its admission to its receipt, as one task.

mod durable;
mod legs;
mod told;
mod undo;

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until};

use self::durable::Hold;
use crate::backend::{BackendError, BackendName, ErrorKind, Fence, FencedWrite, Happened, Stored};
use crate::breaker::Purpose;
use crate::call::Denied;
use crate::error::Refusal;
use crate::event::EventKind;
use crate::fallback::{LegRule, Mode, Plan, WriteRule};
use crate::journal::{Full, Intent, JournalHealth, JournalRecord, appended};
use crate::operation::{Change, Held, Outcome, Receipt, Version, Write};
use crate::plane::{CallPermit, DataPlane, FailedCall, Store, Tries, call_all};
use crate::record::Key;
use crate::saga::{Durability, Failure, LegEnd, SagaConfig, Verdict, verdict};

/// One write on its way.
pub struct Operation {
    plane: Arc<DataPlane>,
    config: Arc<SagaConfig>,
    write: Write,
    changes: Arc<[Change]>,
    progress: Mutex<Progress>,
}

/// What the saga has come to, for the answer at the deadline.
#[derive(Default)]
struct Progress {
    begun: Option<Version>,
    rule: Option<WriteRule>,
    /// The intent is durable.
    durable: bool,
    /// The caller has a receipt: the write may no longer be rolled back.
    acknowledged: bool,
    /// It is decided how the write ends: too late for a receipt that says otherwise.
    concluded: bool,
    /// What the caller is told, once it is durable that the write is undone.
    refusal: Option<Refusal>,
}

/// A backend and, if it is tried now, the right to call it.
type Admitted = (Arc<Store>, Option<CallPermit>);

/// The backends that are tried at once. Most writes have two.
type Legs = SmallVec<[Leg; 2]>;

/// How each backend stands.
type Ends = SmallVec<[(BackendName, LegEnd); 2]>;

/// A backend that is tried at once, with what takes the write back there. It keeps the place that it was admitted to
/// until it is done: nobody is turned away in the middle of a write.
struct Leg {
    permit: CallPermit,
    undo: Option<Arc<[Change]>>,
}

impl Leg {
    fn name(&self) -> &BackendName {
        &self.permit.store().name
    }
}

impl Operation {
    /// A write that was checked at the door.
    #[must_use]
    pub fn new(plane: Arc<DataPlane>, config: Arc<SagaConfig>, mut write: Write) -> Arc<Self> {
        let changes = std::mem::take(&mut write.changes).into();
        Arc::new(Self { plane, config, write, changes, progress: Mutex::default() })
    }

    /// What a new write is told that only goes straight through and has an open breaker in its way: nothing has to be
    /// begun to find that out.
    #[must_use]
    pub fn refused_at_once(plane: &DataPlane, write: &Write) -> Option<Refusal> {
        let plan = plane.fallback.plan().load();
        if plan.mode != Mode::Disabled || plan.journal != JournalHealth::Healthy {
            return None;
        }
        let shut = plane.required().find(|store| store.breaker.gate().is_shut())?;
        let ledger = plane.ledger();
        let known = ledger.is_unsettled(write.operation) || ledger.outcome(write.operation) != Outcome::NotFound;
        if known || ledger.is_behind(&shut.name, write.changes.iter().map(Change::key)) {
            return None;
        }
        drop(ledger);
        // The gate may have opened since.
        let denied = Denied::from(shut.breaker.gate().try_refuse()?);
        Some(denied.refusal(shut.name.clone()))
    }

    /// Answers exactly once: when the saga, which is that of [`run`](Self::run), has ended, or at the deadline with
    /// what is known by then. A saga that has begun goes on after its deadline; one that has not is dropped, and did
    /// nothing.
    pub async fn see_through(
        &self,
        saga: impl Future<Output = Result<Receipt, Refusal>>,
        deadline: Instant,
        answer: impl FnOnce(Result<Receipt, Refusal>),
    ) {
        let mut saga = pin!(saga);
        tokio::select! {
            biased;
            result = &mut saga => answer(result),
            () = sleep_until(deadline) => match self.at_deadline() {
                None => answer(Err(Refusal::DeadlineExceeded)),
                Some(result) => {
                    answer(result);
                    // Its own timeouts end it.
                    let _ = saga.await;
                }
            },
        }
    }

    fn at_deadline(&self) -> Option<Result<Receipt, Refusal>> {
        let (version, rule) = {
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            let version = progress.begun?;
            if let Some(refusal) = &progress.refusal {
                return Some(Err(refusal.clone()));
            }
            let rule = progress.rule.clone().filter(|rule| matches!(rule, WriteRule::Queue | WriteRule::Local));
            let Some(rule) = rule.filter(|_| progress.durable && !progress.concluded) else {
                return Some(Err(Refusal::Unknown { operation: self.write.operation }));
            };
            progress.acknowledged = true;
            (version, rule)
        };
        // From here on it is read, by whatever way.
        self.remember(&rule, version);
        let owing = self.plane.ledger().acknowledge(version);
        Some(Ok(self.receipt(version, Held::Queued { owing })))
    }

    /// Does it.
    ///
    /// # Errors
    /// Why it is not done. Dropped, it did nothing, or is finished by the drain.
    pub async fn run(self: Arc<Self>) -> Result<Receipt, Refusal> {
        let _keys = self.plane.locks.lock(self.keys()).await;
        if let Some(known) = self.known() {
            return known;
        }
        let plan = self.plane.fallback.plan().get();
        let rule = plan.write_rule();
        if let WriteRule::Refused { reason } = rule {
            return Err(Refusal::ReadOnly { reason });
        }
        if rule != WriteRule::Memory && plan.journal != JournalHealth::Healthy {
            let retry_after = self.plane.queue_retry_after;
            return Err(Refusal::JournalUnavailable { reason: plan.reason(), retry_after });
        }
        let admitted = self.admit(&plan, &rule)?;
        let weight = self.changes.iter().map(Change::weight).sum();
        self.plane.ledger().room(weight).map_err(|full| self.full(full))?;
        let (legs, mut ends) = self.prepare(&rule, admitted).await?;
        self.execute(rule, legs, &mut ends).await
    }

    /// What is known of an operation with this id already.
    fn known(&self) -> Option<Result<Receipt, Refusal>> {
        let ledger = self.plane.ledger();
        let operation = self.write.operation;
        if ledger.is_unsettled(operation) {
            return Some(Err(Refusal::Unknown { operation }));
        }
        match ledger.outcome(operation) {
            Outcome::Committed(version) => Some(Ok(self.receipt(version, Held::Committed))),
            Outcome::Pending { version, owing, durable: true } => {
                Some(Ok(self.receipt(version, Held::Queued { owing })))
            }
            Outcome::Pending { version, owing, .. } => Some(Ok(self.receipt(version, Held::Volatile { owing }))),
            Outcome::Compensating { .. } => Some(Err(Refusal::Unknown { operation })),
            Outcome::DeadLetter { refused_by, .. } => Some(Err(Refusal::Rejected {
                backend: refused_by.into_iter().next().unwrap_or_else(|| "".into()),
                reason: "an earlier write with this operation id is a dead letter".to_owned(),
            })),
            // Nothing of it is left: the caller may try again under the same id.
            Outcome::RolledBack(_) | Outcome::Discarded(_) | Outcome::NotFound => None,
        }
    }

    /// Decides for each required backend whether it is tried now, and takes the right to call it.
    fn admit(&self, plan: &Plan, rule: &WriteRule) -> Result<SmallVec<[Admitted; 2]>, Refusal> {
        let mut admitted = SmallVec::new();
        for store in self.plane.required() {
            let owe = plan.leg_rule(&store.name) == LegRule::Owe
                || self.plane.ledger().is_behind(&store.name, self.changes.iter().map(Change::key));
            let permit = match (owe, rule) {
                (true, _) => None,
                (false, WriteRule::Through) => {
                    Some(store.permit(Purpose::Live).map_err(|denied| denied.refusal(store.name.clone()))?)
                }
                (false, _) => store.permit(Purpose::Live).ok(),
            };
            admitted.push((Arc::clone(store), permit));
        }
        Ok(admitted)
    }

    fn full(&self, Full { entries, bytes }: Full) -> Refusal {
        Refusal::QueueFull { entries, bytes, retry_after: self.plane.queue_retry_after }
    }

    /// Reads what is there, on every backend that is tried: the way back. Nothing is changed yet.
    async fn prepare(&self, rule: &WriteRule, admitted: SmallVec<[Admitted; 2]>) -> Result<(Legs, Ends), Refusal> {
        let alone = admitted.len() == 1;
        let (mut tried, mut ends) = (Legs::new(), Ends::new());
        for (store, permit) in admitted {
            match permit {
                Some(permit) => tried.push(Leg { permit, undo: None }),
                None => ends.push((store.name.clone(), LegEnd::Owed)),
            }
        }
        if alone {
            // One backend has nothing that could be half done.
            return Ok((tried, ends));
        }
        let keys: SmallVec<[Key; 1]> = self.keys().collect();
        let keys = keys.as_slice();
        let now = Instant::now();
        let (permits, until) = (tried.iter_mut().map(|leg| &mut leg.permit), now + self.config.timeout);
        let images = call_all(permits, now, until, tries(rule), false, |backend| backend.read(keys)).await;
        let mut legs = Legs::new();
        for (mut leg, images) in tried.into_iter().zip(images) {
            match images.and_then(|(images, _)| Ok(self.way_back(keys, images)?)) {
                Ok(undo) => {
                    leg.undo = Some(undo);
                    legs.push(leg);
                }
                Err(error) => {
                    self.hear(leg.permit.store(), &error);
                    // A read changes nothing, whatever became of it.
                    let failure = Failure { happened: Happened::No, hopeless: false, ..Failure::from(&error) };
                    if *rule == WriteRule::Through {
                        let Failure { reason, retry_after, .. } = failure;
                        return Err(Refusal::Unavailable { backend: leg.name().clone(), reason, retry_after });
                    }
                    ends.push((leg.name().clone(), LegEnd::Failed(failure)));
                }
            }
        }
        Ok((legs, ends))
    }

    /// What restores each key to what was read.
    ///
    /// # Errors
    /// When the backend did not answer for every key.
    fn way_back(&self, keys: &[Key], images: Vec<Option<Stored>>) -> Result<Arc<[Change]>, BackendError> {
        if images.len() != keys.len() {
            let message = format!("it was asked for {} keys and answered for {}", keys.len(), images.len());
            return Err(BackendError::transient(message));
        }
        // What is there must not stand in the way, whoever put it there.
        images.iter().flatten().for_each(|image| self.plane.versions.skip(image.version));
        let restore = |(key, image): (&Key, Option<Stored>)| match image.and_then(|stored| stored.record) {
            Some(record) => Change::put(record),
            None => Change::Delete { key: key.clone() },
        };
        Ok(keys.iter().zip(images).map(restore).collect())
    }

    async fn execute(&self, rule: WriteRule, legs: Legs, ends: &mut Ends) -> Result<Receipt, Refusal> {
        let intent = self.intent(&legs, ends);
        let version = intent.version;
        // A single leg needs no intent before it: there is nothing to be half done.
        let alone = ends.is_empty() && legs.len() == 1;
        let write_first = rule != WriteRule::Memory && !alone;
        let strict = write_first && self.config.durability == Durability::Strict;
        if rule != WriteRule::Memory && !strict {
            self.reserve(version).await?;
        }
        {
            let now: SmallVec<[BackendName; 2]> = legs.iter().map(|leg| leg.name().clone()).collect();
            let mut ledger = self.plane.ledger();
            // The same operation under other keys, at the same time.
            if ledger.version_of(self.write.operation).is_some() {
                return Err(Refusal::Unknown { operation: self.write.operation });
            }
            ledger.room(intent.weight()).map_err(|full| self.full(full))?;
            ledger.begin(&intent, &now, false);
        }
        let changes = &*self.changes;
        let mut hold = Hold { plane: &self.plane, version, changes, untouched: strict, remembered: false };
        self.note_progress(|progress| (progress.begun, progress.rule) = (Some(version), Some(rule.clone())));
        self.plane.sagas.begun();

        let write = FencedWrite {
            operation: self.write.operation,
            version,
            fence: Fence::Write,
            changes: Arc::clone(&self.changes),
        };
        let until = Instant::now() + self.config.timeout;
        if strict {
            self.make_durable(&intent).await.map_err(|error| self.lost(&error, false))?;
            hold.untouched = false;
            ends.extend(self.run_legs(legs, &write, until, &rule).await);
        } else if write_first {
            let both = futures::future::join(self.make_durable(&intent), self.run_legs(legs, &write, until, &rule));
            let (durable, done) = Box::pin(both).await;
            ends.extend(done);
            // In every backend is better than in the journal; in some of them is not.
            if durable.is_err()
                && let Some((cause, failure)) = first_not_done(ends)
            {
                self.note_progress(|progress| progress.concluded = true);
                hold.untouched = ends.iter().all(|(_, end)| end.is_without_effect());
                if hold.untouched {
                    return Err(Refusal::Unknown { operation: self.write.operation });
                }
                self.settle(version, ends);
                Box::pin(self.roll_back(version, &cause, &failure, false)).await?;
                return Err(Refusal::Unknown { operation: self.write.operation });
            }
        } else {
            ends.extend(self.run_legs(legs, &write, until, &rule).await);
        }
        self.settle(version, ends);
        self.conclude(&intent, &rule, ends, alone, hold).await
    }

    fn settle(&self, version: Version, ends: &[(BackendName, LegEnd)]) {
        let mut ledger = self.plane.ledger();
        for (backend, end) in ends {
            match end {
                LegEnd::Done => ledger.leg(version, backend, true, false),
                LegEnd::Failed(failure) => ledger.leg(version, backend, false, failure.happened == Happened::Perhaps),
                LegEnd::Owed => {}
            }
        }
    }

    async fn conclude(
        &self,
        intent: &Arc<Intent>,
        rule: &WriteRule,
        ends: &[(BackendName, LegEnd)],
        alone: bool,
        mut hold: Hold<'_>,
    ) -> Result<Receipt, Refusal> {
        let version = intent.version;
        let acknowledged = self.note_progress(|progress| {
            progress.concluded = true;
            progress.acknowledged
        });
        match verdict(rule, ends, acknowledged) {
            Verdict::Commit => {
                self.close(intent, rule).await;
                self.plane.sagas.committed();
                hold.remembered = true;
                if !acknowledged {
                    self.remember(rule, version);
                }
                Ok(self.receipt(version, Held::Committed))
            }
            Verdict::Owe(owing) => {
                if alone && *rule != WriteRule::Memory {
                    let written = self.make_durable(intent).await;
                    if let Err(error) = written {
                        hold.untouched = !perhaps(ends);
                        if perhaps(ends) {
                            self.plane.ledger().doubt(version);
                        }
                        return Err(self.lost(&error, perhaps(ends)));
                    }
                }
                self.plane.note(done_records(version, ends));
                self.plane.sagas.queued();
                hold.remembered = true;
                if !acknowledged {
                    self.remember(rule, version);
                }
                drop(hold);
                let held = match rule {
                    WriteRule::Memory => Held::Volatile { owing },
                    _ => Held::Queued { owing },
                };
                Ok(self.receipt(version, held))
            }
            Verdict::RollBack { cause, failure } if alone => {
                if failure.happened == Happened::Perhaps {
                    // Nobody knows; so it is made to have happened, and the caller can ask for that.
                    if self.make_durable(intent).await.is_err() {
                        self.plane.ledger().doubt(version);
                    }
                    return Err(Refusal::Unknown { operation: self.write.operation });
                }
                self.plane.ledger().abandon(version);
                Err(give_up(cause, failure))
            }
            Verdict::RollBack { cause, failure } => {
                let durable = *rule != WriteRule::Memory;
                Box::pin(self.roll_back(version, &cause, &failure, durable)).await?;
                Err(give_up(cause, failure))
            }
            Verdict::Park { cause, failure } => {
                hold.remembered = true;
                let letter =
                    JournalRecord::DeadLetter { version, backend: cause.clone(), reason: failure.reason.clone() };
                self.plane.ledger().apply(&letter);
                let mut records = done_records(version, ends);
                records.push(letter);
                self.plane.note(records);
                self.plane.sagas.parked();
                self.plane.events.publish(EventKind::DeadLetterAdded {
                    operation: self.write.operation,
                    version,
                    backend: cause.clone(),
                    reason: failure.reason.clone(),
                });
                Err(give_up(cause, failure))
            }
        }
    }

    /// The write is in every backend. One that was not written down before is now, if a backend may have to get it
    /// again.
    async fn close(&self, intent: &Arc<Intent>, rule: &WriteRule) {
        let (kept, closed) = {
            let mut ledger = self.plane.ledger();
            let kept = self.plane.journal.retains() && ledger.is_volatile(intent.version);
            (kept, ledger.close(intent.version))
        };
        if !kept {
            return self.plane.note(closed.into_iter().collect());
        }
        let records = std::iter::once(JournalRecord::Intent(Arc::clone(intent))).chain(closed).collect();
        if *rule == WriteRule::Memory {
            self.plane.note(records);
        } else if let Err(error) = appended(self.plane.journal.append(records)).await {
            tracing::warn!(%error, version = %intent.version, "a finished write is not kept for a replay");
        }
    }

    fn intent(&self, legs: &[Leg], ends: &[(BackendName, LegEnd)]) -> Arc<Intent> {
        let tried = legs.iter().map(|leg| leg.name().clone());
        Arc::new(Intent {
            version: self.plane.versions.allocate(),
            operation: self.write.operation,
            priority: self.write.priority,
            changes: Arc::clone(&self.changes),
            owes: tried.chain(ends.iter().map(|(name, _)| name.clone())).collect(),
            undo: legs.iter().filter_map(|leg| Some((leg.name().clone(), leg.undo.clone()?))).collect(),
        })
    }

    fn hear(&self, store: &Store, failed: &FailedCall) {
        if failed.backend().is_some_and(|error| error.kind == ErrorKind::ReadOnly) {
            self.plane.fallback.write_refused(store.name.clone());
        }
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        self.changes.iter().map(|change| change.key().clone())
    }

    fn receipt(&self, version: Version, held: Held) -> Receipt {
        Receipt { operation: self.write.operation, version, held }
    }

    fn note_progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where the mode may queue, nothing is tried again in front of the caller: the drain does it.
fn tries(rule: &WriteRule) -> Tries {
    if *rule == WriteRule::Through { Tries::Several } else { Tries::One }
}

fn done_records(version: Version, ends: &[(BackendName, LegEnd)]) -> Vec<JournalRecord> {
    ends.iter()
        .filter(|(_, end)| *end == LegEnd::Done)
        .map(|(backend, _)| JournalRecord::Done { version, backend: backend.clone() })
        .collect()
}

fn first_not_done(ends: &[(BackendName, LegEnd)]) -> Option<(BackendName, Failure)> {
    ends.iter().find_map(|(backend, end)| match end {
        LegEnd::Done => None,
        LegEnd::Owed => Some((backend.clone(), Failure::without_effect("it owes an older write"))),
        LegEnd::Failed(failure) => Some((backend.clone(), failure.clone())),
    })
}

/// Whether a leg that is not done may have been done all the same.
fn perhaps(ends: &[(BackendName, LegEnd)]) -> bool {
    ends.iter().any(|(_, end)| matches!(end, LegEnd::Failed(failure) if failure.happened == Happened::Perhaps))
}

fn give_up(backend: BackendName, failure: Failure) -> Refusal {
    let Failure { hopeless, reason, retry_after, .. } = failure;
    // What may be tried again, in another write, is not rejected for what it is.
    if hopeless && retry_after.is_none() {
        Refusal::Rejected { backend, reason }
    } else {
        Refusal::RolledBack { backend, reason, retry_after }
    }
}
