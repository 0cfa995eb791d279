//! What the rest of the runtime holds of the fallback.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{
    Access, Cache, CacheStats, DegradationLevel, FallbackMessage, LevelWords, Mode, ModeCause, Plan, PlanCell,
};
use crate::backend::{BackendName, Health};
use crate::breaker::BreakerState;
use crate::journal::JournalHealth;
use crate::supervisor::{CallError, Slot};

/// How long a caller waits for the manager to set a mode. It answers in microseconds, or is being restarted.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The plan, the cache, and the way to the manager. Cloning is cheap.
///
/// Plan and cache are read in place, whether the manager lives or not. The facts are sent and not waited for; one
/// that is lost with a dying manager is found again: breaker states on the bus within a second, what a probe or a
/// write found by the next one.
#[derive(Clone)]
pub struct FallbackHandle {
    slot: Slot<FallbackMessage>,
    plan: PlanCell,
    cache: Cache,
}

/// The fallback in brief, for status pages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FallbackStatus {
    /// The mode in force.
    pub mode: Mode,
    /// Who set it.
    pub cause: ModeCause,
    /// How long a mode that was set by hand still holds, if it ends by itself.
    pub manual_remaining: Option<Duration>,
    /// The level.
    pub level: DegradationLevel,
    /// Its number in its table.
    pub level_number: u8,
    /// What it means.
    pub words: LevelWords,
    /// Whether the journal takes writes.
    pub journal: JournalHealth,
    /// What can be done with each backend.
    pub backends: Vec<(BackendName, Access)>,
    /// The cache.
    pub cache: CacheStats,
}

impl FallbackHandle {
    pub(super) fn new(slot: Slot<FallbackMessage>, plan: PlanCell, cache: Cache) -> Self {
        Self { slot, plan, cache }
    }

    /// Where the plan is read.
    #[must_use]
    pub fn plan(&self) -> &PlanCell {
        &self.plan
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The fallback in brief. A snapshot, taken without a message.
    #[must_use]
    pub fn status(&self) -> FallbackStatus {
        let plan = self.plan.get();
        FallbackStatus {
            mode: plan.mode,
            cause: plan.cause.clone(),
            manual_remaining: plan.manual_until.map(|until| until.saturating_duration_since(Instant::now())),
            level: plan.level,
            level_number: plan.level_number(),
            words: plan.level.words(),
            journal: plan.journal,
            backends: plan.backends.iter().map(|b| (b.name.clone(), b.access)).collect(),
            cache: self.cache.stats(),
        }
    }

    /// Sets a mode by hand, for so long or until it is lifted, in place of what was set by hand before. Gives the
    /// plan that holds then, which says what is really in force: a mode that keeps writes durably gives way while
    /// the journal takes none, and a mode that ends after no time at all has ended.
    ///
    /// # Errors
    /// [`CallError::Vacant`] when nothing was set; otherwise it may have been, as the plan will say.
    pub async fn set_mode(
        &self,
        mode: Mode,
        reason: impl Into<String>,
        expires_in: Option<Duration>,
    ) -> Result<Arc<Plan>, CallError> {
        let reason = reason.into();
        self.slot.call(CALL_TIMEOUT, |reply| FallbackMessage::SetMode { mode, reason, expires_in, reply }).await
    }

    /// Lifts the mode that was set by hand, if one is. Gives the plan that holds then.
    ///
    /// # Errors
    /// As for [`set_mode`](Self::set_mode).
    pub async fn clear_mode(&self) -> Result<Arc<Plan>, CallError> {
        self.slot.call(CALL_TIMEOUT, FallbackMessage::ClearMode).await
    }

    /// Tells that a breaker changed. Publish it on the bus before.
    pub fn breaker_changed(&self, backend: BackendName, state: BreakerState) {
        self.tell(FallbackMessage::BreakerChanged(backend, state));
    }

    /// Tells what a probe found. A probe that failed is the breaker's business.
    pub fn probe_reported(&self, backend: BackendName, health: Health) {
        self.tell(FallbackMessage::ProbeReported(backend, health));
    }

    /// Tells that a backend refused a write as one that takes none.
    pub fn write_refused(&self, backend: BackendName) {
        self.tell(FallbackMessage::WriteRefused(backend));
    }

    /// Tells that a backend took a write though the plan has its access as [`Access::ReadOnly`].
    pub fn write_accepted(&self, backend: BackendName) {
        self.tell(FallbackMessage::WriteAccepted(backend));
    }

    /// Tells that the journal failed or is back, without waiting for the next look at it.
    pub fn journal_changed(&self, health: JournalHealth) {
        self.tell(FallbackMessage::JournalChanged(health));
    }

    fn tell(&self, message: FallbackMessage) {
        // Nobody there: see the type for why a lost fact does no harm.
        let _ = self.slot.cast(message);
    }
}
