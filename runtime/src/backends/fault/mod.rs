//! A backend that fails on command: for tests, drills and demonstrations.
//!
//! [`FaultyBackend`] stands in front of any backend, and [`Faults`] is the handle that tells it what to do:
//!
//! ```
//! # use seawall::backends::{Fault, Faults, FaultyBackend, GraphBackend, Op, Ops};
//! let faults = Faults::new();
//! let backend = FaultyBackend::new(GraphBackend::in_memory(Default::default()), &faults);
//! faults.set(Ops::ALL, Fault::Down); // until healed
//! faults.next(Op::Apply, 3, Fault::AppliedReplyLost); // the next three writes, before anything that is set
//! faults.heal(Ops::ALL);
//! # drop(backend);
//! ```
//!
//! Which fault a call meets: one that was scripted for the next calls, else one that is set, else one that the
//! seeded plan draws, else none.

mod backend;
mod control;
mod plan;
#[cfg(test)]
mod tests;

pub use backend::FaultyBackend;
pub use control::{Accepted, Calls, Counts, Faults};
pub use plan::FaultPlan;

use std::time::Duration;

use seawall_actors::backend::ErrorKind;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing: shields a call from a fault that is set or planned.
    None,
    /// Refused at once, as by a store that is not there: transient, nothing done.
    Down,
    /// Done, after this time.
    Slow(Duration),
    /// Never answered, nothing done. Healing ends the wait with a transient error.
    Hung,
    /// Fails with this kind of error, nothing done.
    Error(ErrorKind),
    /// The connection breaks before the store did anything, which the caller cannot know: an unknown outcome.
    Reset,
    /// Done, and the reply is lost: an unknown outcome.
    AppliedReplyLost,
    /// Done, and never answered. Healing ends the wait with an unknown outcome.
    AppliedHung,
    /// Answered with an unknown outcome at once, and done this long afterwards, whoever may have moved on by then.
    /// For what is no write the same as [`Fault::Reset`].
    LateZombie(Duration),
    /// Of every `m` calls the first `n` fail with a transient error.
    FailsNofM {
        /// How many fail.
        n: u32,
        /// Of how many.
        m: u32,
    },
    /// The backend panics, nothing done.
    Panic,
    /// Writes are refused as by a full disk, probes say read-only, everything else works.
    ReadOnly,
}

/// What a backend is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Op {
    /// [`Backend::apply`](seawall_actors::backend::Backend::apply), the same for several writes in one call, and
    /// beginning a native transaction.
    Apply,
    /// Committing a native transaction.
    Commit,
    /// [`Backend::read`](seawall_actors::backend::Backend::read).
    Read,
    /// [`Backend::search`](seawall_actors::backend::Backend::search).
    Search,
    /// [`Backend::traverse`](seawall_actors::backend::Backend::traverse).
    Traverse,
    /// [`Backend::find`](seawall_actors::backend::Backend::find).
    Find,
    /// [`Backend::probe`](seawall_actors::backend::Backend::probe).
    Probe,
    /// [`Backend::newest_version`](seawall_actors::backend::Backend::newest_version).
    Newest,
    /// [`Backend::sweep`](seawall_actors::backend::Backend::sweep).
    Sweep,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Apply,
        Self::Commit,
        Self::Read,
        Self::Search,
        Self::Traverse,
        Self::Find,
        Self::Probe,
        Self::Newest,
        Self::Sweep,
    ];

    fn is_write(self) -> bool {
        matches!(self, Self::Apply | Self::Commit | Self::Sweep)
    }
}

/// A set of [`Op`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ops(u16);

impl Ops {
    /// Everything.
    pub const ALL: Self = Self(u16::MAX);
    /// Writes: [`Op::Apply`] and [`Op::Commit`].
    pub const WRITES: Self = Self(1 << Op::Apply as u8 | 1 << Op::Commit as u8);
    /// What only looks: all but writes, probes and sweeps.
    pub const READS: Self = Self(Self::ALL.0 & !Self::WRITES.0 & !(1 << Op::Probe as u8 | 1 << Op::Sweep as u8));

    /// These and this one.
    #[must_use]
    pub fn and(self, op: Op) -> Self {
        Self(self.0 | 1 << op as u8)
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn has(self, op: Op) -> bool {
        self.0 & 1 << op as u8 != 0
    }
}

impl From<Op> for Ops {
    fn from(op: Op) -> Self {
        Self(1 << op as u8)
    }
}
