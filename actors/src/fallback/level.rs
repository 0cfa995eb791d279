//! What is lost now, derived from what can be done with each backend.

use serde::{Deserialize, Serialize};

use crate::backend::{BackendName, Capabilities, Capability, Role};

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
    /// A required backend cannot be reached or takes no writes, but neither traversal nor vector search is lost.
    /// Level 1.
    Reduced,
    /// Reads work, and no backend takes writes. Level 1 of an embedded engine.
    ReadOnly,
    /// No traversal; vector search works, where there was one. Level 1 of a graph and a vector store.
    NoGraph,
    /// No vector search; traversal works, where there was one. Level 2 of a graph and a vector store.
    NoVector,
    /// Neither traversal nor vector search, though a further backend still answers for whole records. Level 2.
    NoSearch,
    /// No backend can be reached. Level 3 of a graph and a vector store, level 2 of an embedded engine.
    InMemory,
}

/// Which table of levels numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Several stores (document 000): 0 normal, 1 no graph, 2 no vector, 3 in memory.
    Stores,
    /// One embedded engine (document 001): 0 normal, 1 read-only, 2 in memory.
    Engine,
}

impl Profile {
    /// The profile that fits these backends: one that writes need is an engine, more are stores.
    #[must_use]
    pub fn of(backends: &[BackendFacts]) -> Self {
        match backends.iter().filter(|b| b.role == Role::Required).count() {
            1 => Self::Engine,
            _ => Self::Stores,
        }
    }
}

/// What a backend offers, and what can be done with it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Which.
    pub name: BackendName,
    /// Whether writes need it.
    pub role: Role,
    /// What it can be asked for when it is well.
    pub capabilities: Capabilities,
    /// What can be done with it now.
    pub access: Access,
}

impl BackendFacts {
    /// Whether it can be asked.
    #[must_use]
    pub fn readable(&self) -> bool {
        self.access != Access::None
    }
}

/// A level in words, for status pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LevelWords {
    /// Its name.
    pub title: &'static str,
    /// What works.
    pub offers: &'static str,
    /// What does not.
    pub limits: &'static str,
}

impl DegradationLevel {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Normal, Self::Reduced, Self::ReadOnly, Self::NoGraph, Self::NoVector, Self::NoSearch, Self::InMemory];

    /// The level that these facts amount to.
    ///
    /// Only required backends count: a best-effort backend that is gone raises nothing, and one that is there
    /// makes nothing better. A lost capability outweighs lost writes.
    #[must_use]
    pub fn of(backends: &[BackendFacts]) -> Self {
        let required = || backends.iter().filter(|b| b.role == Role::Required);
        if required().all(|b| b.access == Access::ReadWrite) {
            return Self::Normal;
        }
        if !required().any(BackendFacts::readable) {
            return Self::InMemory;
        }
        let lost = |capability| {
            let has = |b: &BackendFacts| b.capabilities.has(capability);
            required().any(has) && !required().any(|b| has(b) && b.readable())
        };
        match (lost(Capability::GraphTraversal), lost(Capability::VectorSearch)) {
            (true, true) => Self::NoSearch,
            (true, false) => Self::NoGraph,
            (false, true) => Self::NoVector,
            (false, false) if required().all(|b| b.access == Access::ReadOnly) => Self::ReadOnly,
            (false, false) => Self::Reduced,
        }
    }

    /// The number of the level in the table of this profile: 0 to 3 for stores, 0 to 2 for an engine.
    #[must_use]
    pub fn number(self, profile: Profile) -> u8 {
        match (self, profile) {
            (Self::Normal, _) => 0,
            (Self::Reduced | Self::ReadOnly | Self::NoGraph, _) => 1,
            (Self::NoVector | Self::NoSearch, Profile::Stores) => 2,
            (Self::NoVector | Self::NoSearch, Profile::Engine) => 1,
            (Self::InMemory, Profile::Stores) => 3,
            (Self::InMemory, Profile::Engine) => 2,
        }
    }

    /// The name as configuration, metrics and events spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Reduced => "reduced",
            Self::ReadOnly => "read_only",
            Self::NoGraph => "no_graph",
            Self::NoVector => "no_vector",
            Self::NoSearch => "no_search",
            Self::InMemory => "in_memory",
        }
    }

    /// Whether this can be asked for at this level. What exactly is lost depends on which backend offers what:
    /// [`Plan::offers`](super::Plan::offers) knows.
    #[must_use]
    pub fn offers(self, capability: Capability) -> bool {
        !self.lost().contains(&capability)
    }

    /// What this level has lost.
    #[must_use]
    pub fn lost(self) -> &'static [Capability] {
        match self {
            Self::Normal | Self::Reduced | Self::ReadOnly => &[],
            Self::NoGraph => &[Capability::GraphTraversal],
            Self::NoVector => &[Capability::VectorSearch],
            Self::NoSearch => &[Capability::GraphTraversal, Capability::VectorSearch],
            Self::InMemory => &[Capability::VectorSearch, Capability::GraphTraversal, Capability::ExactMatch],
        }
    }

    /// What works and what does not, in words.
    #[must_use]
    pub fn words(self) -> LevelWords {
        let (title, offers, limits) = match self {
            Self::Normal => ("Normal", "everything", "none"),
            Self::Reduced => (
                "Reduced",
                "every kind of question; writes as the mode says",
                "at least one backend gets its writes later",
            ),
            Self::ReadOnly => ("Read-only", "reads, from what is stored", "no backend takes writes"),
            Self::NoGraph => {
                ("No graph", "vector search and whole records", "no traversal: no relationships, no queries along time")
            }
            Self::NoVector => {
                ("No vector", "traversal, exact match and whole records", "no similarity search: only exact matches")
            }
            Self::NoSearch => ("No search", "whole records by key", "neither traversal nor similarity search"),
            Self::InMemory => (
                "In memory",
                "accepted writes and the cache of recent records",
                "no backend can be asked; the cache is small and ages",
            ),
        };
        LevelWords { title, offers, limits }
    }
}
