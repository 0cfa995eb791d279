//! What a runtime shows of itself at one moment. Whoever owns a number fills it in; nothing is computed here.

use seawall_actors::breaker::BreakerSnapshot;
use seawall_actors::call::CallStats;
use seawall_actors::fallback::{CacheStats, DegradationLevel, Mode};
use seawall_actors::journal::{JournalHealth, JournalProgress};

/// Who can be observed: the runtime.
pub trait Observe: Send + Sync + 'static {
    /// The state now. Called once per sample and once per scrape; must not block.
    fn observe(&self) -> Observation;
}

/// Everything that the metrics show, at one moment. Fields that count from the start never decrease while the
/// runtime lives, and start over with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Each backend.
    pub backends: Vec<BackendObservation>,
    /// The fallback mode.
    pub mode: Mode,
    /// The degradation level.
    pub level: DegradationLevel,
    /// The number of that level in the table in force, 0 for normal.
    pub level_number: u8,
    /// Requests that are being worked on.
    pub in_flight: u64,
    /// What is owed.
    pub queue: QueueObservation,
    /// Whether the journal takes writes.
    pub journal_health: JournalHealth,
    /// How far the journal is.
    pub journal: JournalProgress,
    /// Writes under way.
    pub sagas: SagaObservation,
    /// The cache.
    pub cache: CacheStats,
}

/// One backend.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendObservation {
    /// Its breaker, with the name of the backend.
    pub breaker: BreakerSnapshot,
    /// How the calls to it stand.
    pub calls: CallStats,
    /// Writes that it owes now.
    pub owed: u64,
    /// Writes that it was given late, since the start.
    pub drained: u64,
    /// Probes since the start.
    pub probes: u64,
    /// Those of them that failed.
    pub failed_probes: u64,
}

/// Accepted writes that are not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueObservation {
    /// Entries now: in flight, owed, compensating and dead.
    pub entries: u64,
    /// Bytes that those take.
    pub bytes: u64,
    /// Dead letters among them.
    pub dead_letters: u64,
    /// Writes that were acknowledged while some backend still owed them, since the start.
    pub enqueued: u64,
    /// Those of them that nobody owes any more.
    pub drained: u64,
}

/// Writes under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SagaObservation {
    /// Begun since the start.
    pub begun: u64,
    /// Ended with every required backend having the write, since the start.
    pub committed: u64,
    /// Ended with none having it, since the start.
    pub rolled_back: u64,
    /// Being undone now.
    pub compensating: u64,
    /// Refused for good by a backend, and waiting for a person.
    pub parked: u64,
}
