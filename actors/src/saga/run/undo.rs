//! A write that is taken back.

use std::sync::Arc;

use futures::future::join_all;
use tokio::time::Instant;

use super::{Operation, give_up};
use crate::backend::BackendName;
use crate::breaker::Purpose;
use crate::error::Refusal;
use crate::event::EventKind;
use crate::journal::{Ending, JournalRecord, StepResult, appended};
use crate::operation::Version;
use crate::plane::Tries;
use crate::saga::Failure;
use crate::sync::lane;

impl Operation {
    /// Decides that the write is undone, durably, and undoes what can be undone while the caller waits.
    pub(super) async fn roll_back(
        &self,
        version: Version,
        cause: &BackendName,
        failure: &Failure,
        durable: bool,
    ) -> Result<(), Refusal> {
        let operation = self.write.operation;
        if durable {
            // Nothing is undone before a crash would remember why: read back without the decision, the write goes
            // forward, and no store takes it over its own compensation. So without it the write waits until it is
            // written down anew, and goes forward.
            let decided = JournalRecord::Decided {
                version,
                cause: cause.clone(),
                reason: failure.reason.clone(),
                ending: Ending::RolledBack,
            };
            if appended(self.plane.journal.append(vec![decided])).await.is_err() {
                self.plane.ledger().doubt(version);
                return Err(Refusal::Unknown { operation });
            }
        }
        let (records, finished) = {
            let mut ledger = self.plane.ledger();
            ledger.decide(version, cause, Ending::RolledBack);
            (ledger.undone(version), ledger.version_of(operation) != Some(version))
        };
        for change in &*self.changes {
            self.plane.fallback.cache().forget(change.key());
        }
        self.plane.note(records);
        self.plane.sagas.rolled_back();
        if durable {
            self.note_progress(|progress| progress.refusal = Some(give_up(cause.clone(), failure.clone())));
        }
        if !finished {
            self.plane.events.publish(EventKind::SagaCompensating { operation, version, cause: cause.clone() });
            self.compensate(version).await;
        }
        Ok(())
    }

    async fn compensate(&self, version: Version) {
        let until = Instant::now() + self.config.rollback_timeout;
        let steps = self.plane.ledger().take_undo(version);
        let undo = steps.into_iter().filter_map(|(backend, step)| {
            let store = Arc::clone(self.plane.store(&backend).ok()?);
            Some(async move {
                let result = match store.permit(Purpose::Compensation) {
                    Ok(mut permit) => lane::attempt(&self.plane, &mut permit, &step, until, Tries::Several).await,
                    // Done later: users come first, and nobody calls behind an open breaker.
                    Err(_) => StepResult::Again,
                };
                lane::settle(&self.plane, &store.name, &step, &result);
            })
        });
        join_all(undo).await;
    }
}
