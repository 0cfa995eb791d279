//! What every [`Backend`] has to do, as a suite that the author of one runs against it.
//!
//! ```
//! use std::sync::Arc;
//!
//! use seawall::backend::Backend;
//! use seawall::backends::{GraphBackend, GraphConfig};
//! use seawall::conformance::{self, OpenError, Subject};
//!
//! struct Graph;
//!
//! #[async_trait::async_trait]
//! impl Subject for Graph {
//!     async fn open(&self) -> Result<Arc<dyn Backend>, OpenError> {
//!         Ok(Arc::new(GraphBackend::in_memory(GraphConfig::default())))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! conformance::check(&Graph).await.assert();
//! # }
//! ```
//!
//! [`check`] tries every [`Property`] and gives a [`Report`] with a line for each. A single one is tried by
//! [`Property::check`], where a test runner is to show each of them.
//!
//! A property that a backend does not have to have, for what it says of itself, is skipped and the report says why.
//! What cannot be seen from outside is asked of the [`Subject`]: a change that its store rejects, and outages of its
//! server. Nothing here asks that tombstones are swept, or how soon.
//!
//! A best-effort backend ([`Role::BestEffort`](crate::backend::Role::BestEffort)) is judged as any other, but for two
//! things that a copy cannot know: after a merge into a record that it does not hold, and after an outage, it may answer
//! that it holds nothing. It may never answer something older.

mod capabilities;
mod concurrency;
mod fence;
mod ground;
mod model;
mod outage;
mod property;
mod records;
mod report;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;

use crate::backend::Backend;
use crate::operation::Change;

pub use property::Property;
pub use report::{Finding, Judgement, Report};

/// Why a subject could not open a backend.
pub type OpenError = Box<dyn std::error::Error + Send + Sync>;

/// A kind of backend, as the suite has to know it.
#[async_trait]
pub trait Subject: Send + Sync {
    /// A backend over a store, or a namespace of one, in which nothing was ever written. Called once for each
    /// property; the backends may be used at the same time.
    async fn open(&self) -> Result<Arc<dyn Backend>, OpenError>;

    /// How many dimensions its embeddings have, at least 2. Default 4.
    fn dimension(&self) -> usize {
        4
    }

    /// A change to the key `rejected` that its store understands and will never make, where there is such a thing: an
    /// embedding of another dimension. Default: there is none.
    fn rejected(&self) -> Option<Change> {
        None
    }

    /// Whether a [`read`](Backend::read) of several keys sees them at one instant. Default: it does. Where it does
    /// not, a reader may see one half of a batch while that is being applied, and never for long.
    fn reads_at_one_instant(&self) -> bool {
        true
    }

    /// Begins an outage of the store of the backend that was opened last. Default: it cannot.
    async fn begin(&self, _outage: Outage) -> Supported {
        Supported::No
    }

    /// Ends it. The store has what it had, and what it acknowledged.
    async fn end(&self, _outage: Outage) {}

    /// Decides the random writes. Default: another one every time; the report tells it, and giving it here again
    /// repeats them.
    fn seed(&self) -> u64 {
        fastrand::u64(..)
    }
}

/// How a store can be out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outage {
    /// Its process is dead: connections are refused.
    Refused,
    /// Its process is frozen: connections are there, and nothing is answered.
    Hung,
    /// It takes what it is asked and does it, and the connection is reset before it has answered.
    Reset,
}

/// Whether a subject can have an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supported {
    /// It has begun.
    Yes,
    /// It cannot be had here.
    No,
}

/// Tries every property, one after another.
pub async fn check(subject: &dyn Subject) -> Report {
    let mut findings = Vec::with_capacity(Property::ALL.len());
    for property in Property::ALL {
        findings.push(property.check(subject).await);
    }
    Report { findings }
}
