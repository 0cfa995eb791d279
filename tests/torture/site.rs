//! Everything that a service keeps, in one directory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use seawall::Runtime;
use seawall::backends::{Faults, FaultyBackend, GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::config::Config;

/// A runtime over two stores on disk.
pub struct Site {
    pub runtime: Runtime,
    pub graph: Arc<GraphBackend>,
    pub vector: Arc<VectorBackend>,
    pub graph_faults: Faults,
    pub vector_faults: Faults,
}

/// Quick to fail and quick to heal, with generations of this many records.
fn config(dir: &Path, generation: usize) -> Config {
    let mut config = Config { data_dir: dir.join("seawall"), ..Config::default() };
    let quick = Duration::from_millis(20);
    config.journal.generation_entries = generation;
    config.journal.lock_patience = Duration::from_secs(30);
    config.queue.outcomes = 4_000;
    config.breaker.reset_timeout = quick;
    config.health.interval = 10 * quick;
    config.health.timeout = 10 * quick;
    config.sync.backoff = quick / 4;
    config.sync.max_backoff = 4 * quick;
    config
}

impl Site {
    /// Opens what is there, or makes it.
    ///
    /// # Errors
    /// What did not open, in words.
    pub async fn open(dir: &Path, generation: usize) -> Result<Self, String> {
        let graph = GraphBackend::open(dir.join("graph"), GraphConfig::default()).await;
        let graph = Arc::new(graph.map_err(|error| error.to_string())?);
        let vector = VectorBackend::open(dir.join("vector"), VectorConfig::default()).await;
        let vector = Arc::new(vector.map_err(|error| error.to_string())?);
        let (graph_faults, vector_faults) = (Faults::new(), Faults::new());
        let runtime = Runtime::builder()
            .config(config(dir, generation))
            .backend(FaultyBackend::around(Arc::clone(&graph), &graph_faults))
            .backend(FaultyBackend::around(Arc::clone(&vector), &vector_faults))
            .start();
        let runtime = runtime.await.map_err(|error| error.to_string())?;
        Ok(Self { runtime, graph, vector, graph_faults, vector_faults })
    }

    /// Waits until nothing is owed, and has dead letters tried again. Gives `false` when that does not come to be.
    pub async fn quiet(&self) -> bool {
        let handle = self.runtime.handle();
        let drained = async {
            while handle.status().owed > 0 {
                for letter in handle.dead_letters() {
                    let _ = handle.retry_dead_letter(letter.operation, letter.backend).await;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), drained).await.is_ok()
    }

    /// The breakers that lost count of a call: every admitted one has come to something, or is still out.
    pub fn miscounts(&self) -> Vec<String> {
        let control = self.runtime.control();
        let snapshots = ["graph", "vector"].into_iter().filter_map(|name| Some(control.breaker(name).ok()?.snapshot()));
        snapshots
            .filter(|s| {
                let out = s.successful + s.failed + s.ignored + s.cancelled + s.panicked + s.expired + s.in_flight;
                s.admitted != out || s.total_requests != s.admitted + s.rejected
            })
            .map(|snapshot| format!("calls went missing: {snapshot:?}"))
            .collect()
    }

    /// Stops in order and lets go of the directory.
    pub async fn close(self) {
        self.runtime.shutdown().await;
        let _ = self.graph.close().await;
        let _ = self.vector.close().await;
    }
}
