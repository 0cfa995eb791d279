//! What is done when not everything works: five modes, degradation levels, the cache.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Capability;

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

/// Who set a mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModeCause {
    /// The policy, for the level that holds now.
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

/// What can be done with a backend now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Access {
    /// Reads and writes.
    #[default]
    ReadWrite,
    /// Reads; it is alive, but takes no writes.
    ReadOnly,
    /// Nothing: its breaker refuses.
    None,
}

/// What is lost now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DegradationLevel {
    /// Nothing. Level 0.
    #[default]
    Normal,
    /// A required backend cannot be reached, but what it can do another one can do too. Level 1.
    Reduced,
    /// Reads work, and no backend takes writes. Level 1 of an embedded engine.
    ReadOnly,
    /// No traversal; vector search works. Level 1 of a graph and a vector store.
    NoGraph,
    /// No vector search; traversal works. Level 2 of a graph and a vector store.
    NoVector,
    /// No backend can be reached. Level 3 of a graph and a vector store, level 2 of an embedded engine.
    InMemory,
}

impl DegradationLevel {
    /// Whether this can be asked for at this level.
    #[must_use]
    pub fn offers(self, capability: Capability) -> bool {
        match self {
            Self::Normal | Self::Reduced | Self::ReadOnly => true,
            Self::NoGraph => capability != Capability::GraphTraversal,
            Self::NoVector => capability != Capability::VectorSearch,
            Self::InMemory => false,
        }
    }
}
