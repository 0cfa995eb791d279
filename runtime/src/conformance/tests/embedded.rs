//! The embedded stores, in memory and on disk.

use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;

use crate::backend::Backend;
use crate::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use crate::conformance::{OpenError, Subject, check};
use crate::operation::Change;
use crate::record::Record;

/// A kind of store, and where it is if not in memory.
struct Embedded {
    vector: bool,
    disk: Option<TempDir>,
}

#[async_trait]
impl Subject for Embedded {
    async fn open(&self) -> Result<Arc<dyn Backend>, OpenError> {
        let dir = self.disk.as_ref().map(|disk| disk.path().join(fastrand::u64(..).to_string()));
        Ok(match (self.vector, dir) {
            (false, None) => Arc::new(GraphBackend::in_memory(GraphConfig::default())),
            (false, Some(dir)) => Arc::new(GraphBackend::open(dir, GraphConfig::default()).await?),
            (true, None) => Arc::new(VectorBackend::in_memory(VectorConfig::default())),
            (true, Some(dir)) => Arc::new(VectorBackend::open(dir, VectorConfig::default()).await?),
        })
    }

    fn rejected(&self) -> Option<Change> {
        let wrong = Record::new("rejected").with_embedding([1.0; 9]);
        self.vector.then_some(Change::put(wrong))
    }
}

async fn conforms(vector: bool, on_disk: bool) {
    let disk = on_disk.then(|| tempfile::tempdir().expect("a directory"));
    check(&Embedded { vector, disk }).await.assert();
}

#[tokio::test(start_paused = true)]
async fn a_graph_in_memory_conforms() {
    conforms(false, false).await;
}

#[tokio::test(start_paused = true)]
async fn vectors_in_memory_conform() {
    conforms(true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_on_disk_conforms() {
    conforms(false, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_on_disk_conform() {
    conforms(true, true).await;
}
