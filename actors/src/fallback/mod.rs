//! What is done when not everything works: five modes, degradation levels, the cache.
//!
//! *Level* is what is lost now, and follows from what can be done with each backend. *Mode* is what is done now,
//! and follows from the level through a policy, or is set by hand.
//!
//! ```text
//! breakers  ── state ───────────┐                        ┌─ Plan ───► every operation (read in place)
//! prober    ── what it found ───┤                        │     └────► sync worker (watch)
//! sagas     ── "takes no writes"┼─► FallbackManager ─────┤
//! journal   ── progress, 1/s ───┤   (FallbackPolicy)     └─ events ─► access, level, mode, journal
//! people    ── set, clear mode ─┘
//! ```
//!
//! # Modes
//!
//! | mode | write | read |
//! |---|---|---|
//! | `DISABLED` | straight through; rolled back and refused if a required backend cannot take it | backends |
//! | `READ_ONLY` | refused | backends, else the cache, with its age |
//! | `MEMORY_ONLY` | to who can take it, owed to the rest in memory | backends, else the cache |
//! | `LOCAL_STORAGE` | durable here, no backend is touched until the mode ends | the cache |
//! | `QUEUE_WRITES` | to who can take it, owed to the rest durably | backends, else the cache |
//!
//! In every mode a read looks first at what is owed for its key. Every mode can follow every other; what is owed
//! stays owed, and is drained in every mode but `LOCAL_STORAGE`.
//!
//! The mode is, in this order:
//! 1. the one that is set by hand, until it is lifted or ends;
//! 2. else the one for the level: [`FallbackConfig::mode_at`].
//!
//! While the journal takes no writes, a mode that would promise durability gives way to
//! [`FallbackConfig::journal_unavailable`]: `LOCAL_STORAGE` and `QUEUE_WRITES` however they were set, and
//! `DISABLED` where the policy set it, since a write to several backends needs a durable intent. `DISABLED` set by
//! hand stands: it keeps nothing for later, and refuses what it cannot do.
//!
//! # Levels
//!
//! | stores | level | lost | works |
//! |---|---|---|---|
//! | 0 | `Normal` | nothing | everything |
//! | 1 | `NoGraph` | traversal | vector search |
//! | 2 | `NoVector` | vector search | traversal, exact match |
//! | 3 | `InMemory` | every backend | accepted writes and the cache |
//!
//! | engine | level | lost | works |
//! |---|---|---|---|
//! | 0 | `Normal` | nothing | everything |
//! | 1 | `ReadOnly` | writes | reads |
//! | 2 | `InMemory` | the engine | accepted writes and the cache |
//!
//! Stores in other combinations may also be at `Reduced` (1), `ReadOnly` (1) and `NoSearch` (2). A backend counts
//! as lost while its breaker is open, forced open or half-open: half-open lets a few calls through, which is no
//! promise to anybody. It counts as read-only from the first write that it refuses as such, or probe that says so,
//! until the next probe that finds it healthy or write that it takes. Best-effort backends never count.
//!
//! # Defaults
//!
//! Mode `DISABLED` at level 0 and `QUEUE_WRITES` below; `READ_ONLY` while the journal takes no writes, which it is
//! said to do when a sync has failed or nothing was answered for 8 s; back to normal at once. Cache: 1 000 entries,
//! 64 MiB, records for 5 min, deletes for 1 h.
//!
//! # If I crash
//!
//! Plan and cache stand where they are, and every operation goes on by the last plan. The next incarnation finds
//! the policy, a mode set by hand and its end in its arguments, reads the breakers from the bus, looks at the
//! journal, and publishes what its predecessor did not get to. A restart of the *process* begins without
//! a mode set by hand, at the level that the restored breakers amount to, and with an empty cache.

mod actor;
mod cache;
mod config;
mod handle;
mod journal_watch;
mod level;
mod message;
mod mode;
mod plan;
mod policy;
#[cfg(test)]
mod tests;

pub use actor::{FallbackArguments, FallbackManager};
pub use cache::{Cache, CacheConfig, CacheHit, CacheStats, FillToken};
pub use config::{FallbackConfig, JournalFallback};
pub use handle::{FallbackHandle, FallbackStatus};
pub use journal_watch::{JournalWatch, WATCH_INTERVAL};
pub use level::{Access, BackendFacts, DegradationLevel, LevelWords, Profile};
pub use message::FallbackMessage;
pub use mode::{Mode, ModeCause};
pub use plan::{LegRule, Plan, PlanCell, ReadRule, WriteRule};
pub use policy::{FallbackPolicy, Input, REASON_BYTES};
