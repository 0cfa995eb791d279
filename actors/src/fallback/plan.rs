//! The plan: what a write or a read may do now, published so that every operation reads it without a message.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Access, BackendFacts, DegradationLevel, Mode, ModeCause, Profile};
use crate::backend::{BackendName, Capability, Role};
use crate::journal::JournalHealth;

/// What holds now. Immutable; an operation loads it once and keeps to it until it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Grows by one with every change of the mode. An operation that was admitted under another epoch was admitted
    /// under another mode: what it has not yet decided, it decides by the plan that holds now.
    pub epoch: u64,
    /// The mode in force.
    pub mode: Mode,
    /// Who set it.
    pub cause: ModeCause,
    /// The mode that was set by hand, if one is: [`mode`](Self::mode) differs from it only while the journal takes
    /// no writes.
    pub manual: Option<Mode>,
    /// When the mode that was set by hand ends by itself.
    pub manual_until: Option<Instant>,
    /// What is lost.
    pub level: DegradationLevel,
    /// Which table numbers the level.
    pub profile: Profile,
    /// Whether the journal takes writes.
    pub journal: JournalHealth,
    /// Every backend, in the order in which the runtime was given them.
    pub backends: Vec<BackendFacts>,
}

/// What becomes of a write now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteRule {
    /// To every required backend, or rolled back and refused.
    Through,
    /// Refused with [`Refusal::ReadOnly`](crate::error::Refusal::ReadOnly).
    Refused {
        /// Who set the mode, and why.
        reason: String,
    },
    /// To the backends that can take it, owed to the others in memory; receipt `Volatile` while anything is owed.
    Memory,
    /// Into the journal, owed to every backend; no backend is touched.
    Local,
    /// To the backends that can take it, owed to the others in the journal.
    Queue,
}

/// What becomes of one leg of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegRule {
    /// Ask its breaker's gate, and call.
    Try,
    /// Do not call: it is owed from the start.
    Owe,
}

/// Where a record may be read.
///
/// First of all, in every mode, in what is owed for its key: without it an acknowledged write could be missed
/// while an earlier mode's queue still drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRule {
    /// The backends may be asked, in the order of [`Plan::readers`].
    pub backends: bool,
    /// When nobody before could answer, the cache may, with the age of what it says. What is not in the cache is
    /// unknown, not absent: the read is refused.
    pub cache: bool,
}

impl Plan {
    /// What becomes of a write.
    #[must_use]
    pub fn write_rule(&self) -> WriteRule {
        match self.mode {
            Mode::Disabled => WriteRule::Through,
            Mode::ReadOnly => WriteRule::Refused { reason: self.reason() },
            Mode::MemoryOnly => WriteRule::Memory,
            Mode::LocalStorage => WriteRule::Local,
            Mode::QueueWrites => WriteRule::Queue,
        }
    }

    /// What becomes of a write's leg to this backend.
    ///
    /// Access `None` does not forbid to try: the gate has the verdict on a breaker, and refuses an open one for
    /// nothing. Were it asked only when the plan says so, a half-open breaker could wait for calls that the plan
    /// keeps away from it. A backend that takes no writes has no gate that knows it, so its legs are owed; the
    /// drain tries it again.
    #[must_use]
    pub fn leg_rule(&self, backend: &BackendName) -> LegRule {
        let owe = match self.mode {
            Mode::Disabled | Mode::ReadOnly => false,
            Mode::LocalStorage => true,
            Mode::MemoryOnly | Mode::QueueWrites => {
                self.facts(backend).is_some_and(|b| b.role == Role::Required && b.access == Access::ReadOnly)
            }
        };
        if owe { LegRule::Owe } else { LegRule::Try }
    }

    /// Where a record may be read.
    #[must_use]
    pub fn read_rule(&self) -> ReadRule {
        match self.mode {
            Mode::Disabled => ReadRule { backends: true, cache: false },
            Mode::ReadOnly | Mode::MemoryOnly | Mode::QueueWrites => ReadRule { backends: true, cache: true },
            Mode::LocalStorage => ReadRule { backends: false, cache: true },
        }
    }

    /// Whether what is owed may be given to the backends now: always, but in `LOCAL_STORAGE`.
    #[must_use]
    pub fn may_drain(&self) -> bool {
        self.mode != Mode::LocalStorage
    }

    /// All backends in the order in which a read asks them: required before best-effort, those that can be reached
    /// before those that cannot. The latter are not left out, for the same reason as in
    /// [`leg_rule`](Self::leg_rule).
    pub fn readers(&self) -> impl Iterator<Item = &BackendFacts> {
        let rank = |b: &BackendFacts| 2 * u8::from(!b.readable()) + u8::from(b.role == Role::BestEffort);
        (0..4).flat_map(move |wanted| self.backends.iter().filter(move |b| rank(b) == wanted))
    }

    /// The backends that can answer this, in the same order.
    pub fn readers_of(&self, capability: Capability) -> impl Iterator<Item = &BackendFacts> {
        self.readers().filter(move |b| b.capabilities.has(capability))
    }

    /// Whether a backend that can be reached answers this.
    #[must_use]
    pub fn offers(&self, capability: Capability) -> bool {
        self.backends.iter().any(|b| b.readable() && b.capabilities.has(capability))
    }

    /// Whether a backend would answer this if all were well. If not, asking later is of no use.
    #[must_use]
    pub fn supports(&self, capability: Capability) -> bool {
        self.backends.iter().any(|b| b.capabilities.has(capability))
    }

    /// What can be done with this backend; nothing, if there is none of this name.
    #[must_use]
    pub fn access(&self, backend: &BackendName) -> Access {
        self.facts(backend).map_or(Access::None, |b| b.access)
    }

    /// The number of the level; see [`DegradationLevel::number`].
    #[must_use]
    pub fn level_number(&self) -> u8 {
        self.level.number(self.profile)
    }

    /// Who set the mode and why, in words.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.cause {
            ModeCause::Policy(level) => format!("mode {} at level `{}`", self.mode.name(), level.name()),
            ModeCause::JournalUnavailable => {
                format!("mode {}, because the journal takes no writes", self.mode.name())
            }
            ModeCause::Manual { reason, .. } => format!("mode {} set by hand: {reason}", self.mode.name()),
        }
    }

    fn facts(&self, backend: &BackendName) -> Option<&BackendFacts> {
        self.backends.iter().find(|b| b.name == *backend)
    }
}

/// Where the plan that holds now is read. Cloning gives another view of the same place.
#[derive(Clone)]
pub struct PlanCell {
    current: Arc<ArcSwap<Plan>>,
    changes: watch::Sender<Arc<Plan>>,
}

impl PlanCell {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        Self { current: Arc::new(ArcSwap::new(Arc::clone(&plan))), changes: watch::Sender::new(plan) }
    }

    /// The plan that holds now. Costs a few nanoseconds; do not keep it over an await, take
    /// [`get`](Self::get) for that.
    pub fn load(&self) -> Guard<Arc<Plan>> {
        self.current.load()
    }

    /// The plan that holds now, to keep.
    #[must_use]
    pub fn get(&self) -> Arc<Plan> {
        self.current.load_full()
    }

    /// For waiting until the plan changes. Plans in between may be missed, the last one never.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Plan>> {
        self.changes.subscribe()
    }

    pub(super) fn publish(&self, plan: Arc<Plan>) {
        self.current.store(Arc::clone(&plan));
        self.changes.send_replace(plan);
    }
}
