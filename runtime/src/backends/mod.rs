//! The backends that come with Seawall: two embedded stores that survive, adapters for servers, and a wrapper that makes
//! any backend fail.
//!
//! | backend | answers | use |
//! |---|---|---|
//! | [`GraphBackend`] | reads, traversals, exact matches | a graph store without a server |
//! | [`VectorBackend`] | reads, nearest-neighbour searches, exact matches | a vector store without a server |
//! | `Neo4jBackend` (feature `neo4j`) | reads, traversals, exact matches, native transactions | a Neo4j server |
//! | `QdrantBackend` (feature `qdrant`) | reads, nearest-neighbour searches, exact matches | a Qdrant server |
//! | [`FaultyBackend`] | what the backend in it answers, unless told to fail | tests and drills |
//!
//! Both embedded stores keep every record whole, in memory as well as on disk: they are for as many records as fit in
//! memory, and answer no read from the disk. Each needs a directory of its own.

pub(crate) mod configured;
mod fault;
mod graph;
#[cfg(feature = "neo4j")]
mod neo4j;
#[cfg(feature = "qdrant")]
mod qdrant;
mod records;
#[cfg(feature = "redis")]
mod redis_cache;
mod vector;

pub use fault::{Accepted, Calls, Counts, Fault, FaultPlan, Faults, FaultyBackend, Op, Ops};
pub use graph::{GraphBackend, GraphConfig};
#[cfg(feature = "neo4j")]
pub use neo4j::{Neo4jBackend, Neo4jConfig};
#[cfg(feature = "qdrant")]
pub use qdrant::{QdrantBackend, QdrantConfig};
#[cfg(feature = "redis")]
pub use redis_cache::{CacheStore, RedisCacheBackend, RedisCacheConfig};
pub use vector::{Metric, VectorBackend, VectorConfig};

use std::io;
use std::path::{Path, PathBuf};

use seawall_actors::backend::BackendError;

use crate::guard::OpenError;

/// Why an embedded store was not opened. Nothing in its directory is lost or replaced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreOpenError {
    /// Another process, or another store in this one, has it open.
    #[error("`{}` is in use by another process or store; give each store a directory of its own", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// What must be in it is not, or cannot be read.
    #[error("`{}` is damaged: {reason}; restore it, or move it aside to start with an empty store", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory belongs to a store of another kind or a later format.
    #[error("`{}` holds a `{found}`, not a `{expected}`", dir.display())]
    OtherStore {
        /// The directory.
        dir: PathBuf,
        /// What its mark says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// A record that is stored does not fit the configuration.
    #[error("`{}` holds a record that its configuration does not allow: {reason}", dir.display())]
    Unfit {
        /// The directory.
        dir: PathBuf,
        /// Why.
        reason: BackendError,
    },
    /// The operating system refused. The directory may be fine.
    #[error("cannot open `{}`: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl StoreOpenError {
    fn from_guard(dir: &Path, error: OpenError) -> Self {
        let dir = dir.to_owned();
        match error {
            OpenError::Locked { .. } => Self::Locked { dir },
            OpenError::Damaged { reason, .. } => Self::Damaged { dir, reason },
            OpenError::Io { source, .. } => Self::Io { dir, source },
        }
    }

    /// What a call to the store gets while it cannot be reopened.
    fn into_backend(self) -> BackendError {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match &self {
            Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem) => {
                BackendError::read_only(self.to_string()).with_code("read_only")
            }
            Self::Damaged { .. } => BackendError::transient(self.to_string()).with_code("damaged"),
            _ => BackendError::transient(self.to_string()).with_code("failed"),
        }
    }
}

/// The directory as the blocking pool opens it.
async fn open_blocking<T: Send + 'static>(
    dir: PathBuf,
    open: impl FnOnce(PathBuf) -> Result<T, StoreOpenError> + Send + 'static,
) -> Result<T, StoreOpenError> {
    let opened = tokio::task::spawn_blocking({
        let dir = dir.clone();
        move || open(dir)
    });
    opened.await.unwrap_or_else(|error| Err(StoreOpenError::Io { dir, source: io::Error::other(error) }))
}
