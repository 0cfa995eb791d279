//! Seawall in front of two durable stores, as a service would start it, with switches that make the stores fail.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use seawall::Runtime;
use seawall::backend::BackendError;
use seawall::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::config::Config;

use crate::book::Effect;
use crate::switch::Switch;

/// What the demonstration shortens, in words.
pub(crate) const SHORTENED: &str =
    "shortened for the demonstration: breakers wait 1 s (default 60 s), probes come every 0.5 s (default 30 s)";

/// A runtime and its two stores.
pub(crate) struct Service {
    pub(crate) runtime: Runtime,
    pub(crate) graph: Switch<GraphBackend>,
    pub(crate) vector: Switch<VectorBackend>,
}

impl Service {
    /// Starts on what is in this directory.
    pub(crate) async fn start(dir: &Path, dimension: usize, reachable: bool) -> Result<Self, Box<dyn Error>> {
        let mut config = Config::default();
        config.breaker.reset_timeout = Duration::from_secs(1);
        config.health.interval = Duration::from_millis(500);
        config.health.timeout = Duration::from_millis(400);
        config.limits.dimension = Some(dimension);

        let graph = Switch::new(GraphBackend::open(dir.join("graph"), GraphConfig::default()).await?);
        let vector = Switch::new(VectorBackend::open(dir.join("vector"), VectorConfig::default()).await?);
        if !reachable {
            graph.down();
            vector.down();
        }
        let runtime = Runtime::builder()
            .config(config)
            .data_dir(dir.join("seawall"))
            .backend(graph.backend())
            .backend(vector.backend())
            .start()
            .await?;
        Ok(Self { runtime, graph, vector })
    }

    /// Waits until no call to a store is running.
    pub(crate) async fn quiet(&self) {
        let running = || self.graph.running() + self.vector.running();
        while running() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the stores did so far.
    pub(crate) fn effects(&self) -> Vec<Effect> {
        self.graph.effects().chain(self.vector.effects()).collect()
    }

    /// Stops in order, and lets go of the stores.
    pub(crate) async fn stop(self) -> Result<(), BackendError> {
        self.runtime.shutdown().await;
        self.graph.store.close().await?;
        self.vector.store.close().await
    }
}
