//! The five modes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::DegradationLevel;

/// What a write or a read does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// No fallback: a write goes straight through, or is rolled back and refused.
    #[default]
    Disabled,
    /// Writes are refused; reads come from the backends, else from the cache.
    ReadOnly,
    /// What a backend cannot take now is owed, in memory only.
    MemoryOnly,
    /// Writes are durable here and nowhere else, until the mode ends.
    LocalStorage,
    /// What a backend cannot take now is owed, durably, and drained as soon as possible.
    QueueWrites,
}

impl Mode {
    /// All five.
    pub const ALL: [Self; 5] =
        [Self::Disabled, Self::ReadOnly, Self::MemoryOnly, Self::LocalStorage, Self::QueueWrites];

    /// The name as configuration, metrics and status pages spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::ReadOnly => "read_only",
            Self::MemoryOnly => "memory_only",
            Self::LocalStorage => "local_storage",
            Self::QueueWrites => "queue_writes",
        }
    }

    /// Whether the mode promises to keep a write durably here, which only a journal that takes writes can do.
    #[must_use]
    pub fn keeps_durably(self) -> bool {
        matches!(self, Self::LocalStorage | Self::QueueWrites)
    }
}

/// Who set a mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModeCause {
    /// The policy, for this level. After a recovery it is the level that was, until
    /// [`recover_after`](super::FallbackConfig::recover_after) has passed.
    Policy(DegradationLevel),
    /// The policy, because the journal takes no writes.
    JournalUnavailable,
    /// A person or the service.
    Manual {
        /// Why.
        reason: String,
        /// For how long, if not until it is lifted.
        expires_in: Option<Duration>,
    },
}
