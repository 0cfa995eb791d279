//! What the promises are tested on: two stores that fail on command, a disk that forgets what was not synced, and a
//! runtime over them that can be crashed and started again.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "every test uses its part of this room")]

mod disk;
mod history;
mod native;

pub use disk::Disk;
pub use history::History;
pub use native::{Named, Native, Seen};

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use seawall::backend::{Backend, Stored};
use seawall::backends::{Fault, Faults, FaultyBackend, GraphBackend, GraphConfig, Ops, VectorBackend, VectorConfig};
use seawall::breaker::{BreakerHandle, BreakerState, MemoryStateStore};
use seawall::config::Config;
use seawall::fallback::Mode;
use seawall::operation::{Held, Outcome, Receipt, Source, Write};
use seawall::record::{Key, Properties, Record};
use seawall::{Handle, Refusal, Runtime};

/// How long a test waits for something that must come, by tokio's clock.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// One store behind faults. It outlives the runtimes that use it, as a store does.
pub struct Site {
    pub name: &'static str,
    pub faults: Faults,
    pub backend: Arc<FaultyBackend<dyn Backend>>,
}

impl Site {
    /// This backend behind faults.
    pub fn new(name: &'static str, inner: Arc<dyn Backend>) -> Self {
        let faults = Faults::new();
        faults.keep_history();
        Self { name, backend: Arc::new(FaultyBackend::around(inner, &faults)), faults }
    }

    pub fn graph() -> Self {
        Self::new("graph", Arc::new(GraphBackend::in_memory(GraphConfig::default())))
    }

    pub fn vector() -> Self {
        Self::new("vector", Arc::new(VectorBackend::in_memory(VectorConfig::default())))
    }

    /// What the store holds under a key, asked without faults.
    pub async fn stored(&self, key: &Key) -> Option<Stored> {
        let mut stored = self.backend.inner().read(std::slice::from_ref(key)).await.expect("the store is well");
        stored.pop().expect("one answer for one key")
    }

    /// The record that the store holds.
    pub async fn record(&self, key: impl Into<Key>) -> Option<Record> {
        self.stored(&key.into()).await.and_then(|stored| stored.record)
    }

    /// Puts something there behind the runtime's back.
    pub fn set(&self, fault: Fault) {
        self.faults.set(Ops::ALL, fault);
    }

    pub fn heal(&self) {
        self.faults.heal(Ops::ALL);
    }
}

/// A runtime over its stores.
pub struct Rig {
    pub graph: Site,
    pub vector: Site,
    pub disk: Arc<Disk>,
    pub states: Arc<MemoryStateStore>,
    pub config: Config,
    runtime: Option<Runtime>,
}

impl Rig {
    /// Two stores in memory, with the default configuration.
    pub async fn start() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        Self::over(Site::graph(), Site::vector(), config).await
    }

    pub async fn over(graph: Site, vector: Site, config: Config) -> Self {
        let (disk, states) = (Arc::new(Disk::default()), Arc::default());
        let mut rig = Self { graph, vector, disk, states, config, runtime: None };
        rig.restart().await;
        rig
    }

    /// In a mode that is set by hand.
    pub async fn in_mode(mode: Mode) -> Self {
        let rig = Self::start().await;
        rig.mode(mode).await;
        rig
    }

    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime is started")
    }

    pub fn handle(&self) -> Handle {
        self.runtime().handle()
    }

    pub fn breaker(&self, site: &Site) -> BreakerHandle {
        self.runtime().control().breaker(site.name).expect("the backend is there")
    }

    /// The process dies: nothing is finished, and what the disk had not synced is gone.
    pub fn crash(&mut self) {
        self.disk.cut();
        self.runtime = None;
    }

    /// The process stops in order.
    pub async fn stop(&mut self) -> seawall::ShutdownReport {
        self.runtime.take().expect("the runtime is started").shutdown().await
    }

    /// The next process, on what the last one left.
    pub async fn restart(&mut self) {
        self.crash();
        self.disk = Arc::new(Disk::holding(self.disk.records()));
        let runtime = Runtime::builder()
            .config(self.config.clone())
            .shared_backend(Arc::clone(&self.graph.backend) as _)
            .shared_backend(Arc::clone(&self.vector.backend) as _)
            .journal(Arc::clone(&self.disk) as _, self.disk.records())
            .breaker_states(Arc::clone(&self.states) as _)
            .start()
            .await
            .expect("the runtime starts");
        self.runtime = Some(runtime);
    }

    pub async fn mode(&self, mode: Mode) {
        let plan = self.runtime().control().set_mode(mode, "a test", None).await.expect("the manager answers");
        assert_eq!(plan.mode, mode);
    }

    /// Refuses all calls to a store, at its breaker.
    pub async fn shut(&self, site: &Site) {
        self.breaker(site).force_open("a test", None);
        let control = self.runtime().control();
        let lost = || {
            control
                .fallback()
                .backends
                .iter()
                .any(|(name, access)| name.as_str() == site.name && *access == seawall::fallback::Access::None)
        };
        until("the level follows the breaker", lost).await;
    }

    /// Lets calls to a store through again.
    pub async fn open(&self, site: &Site) {
        self.breaker(site).reset();
        let closed = || self.breaker(site).view().state == BreakerState::Closed;
        until("the breaker closes", closed).await;
        let control = self.runtime().control();
        let back = || {
            control
                .fallback()
                .backends
                .iter()
                .any(|(name, access)| name.as_str() == site.name && *access == seawall::fallback::Access::ReadWrite)
        };
        until("the level follows the breaker", back).await;
    }

    /// Takes a store down and writes until its breaker has seen it.
    pub async fn lose(&self, site: &Site) {
        site.set(Fault::Down);
        let breaker = self.breaker(site);
        for n in 0.. {
            if breaker.view().state == BreakerState::Open {
                break;
            }
            let _ = self.handle().delete(format!("canary-{n}")).await;
        }
        let level = || self.handle().status().level != seawall::fallback::DegradationLevel::Normal;
        until("the level follows the breaker", level).await;
    }

    /// Waits until nothing is owed but dead letters, and nothing is in flight.
    pub async fn quiet(&self) {
        let handle = self.handle();
        until("everything owed is drained", || {
            let status = handle.status();
            status.in_flight == 0 && status.owed == status.dead_letters
        })
        .await;
    }

    /// Heals both stores, lifts the mode, and waits until nothing is owed.
    pub async fn recover(&self) {
        for site in [&self.graph, &self.vector] {
            site.heal();
            self.open(site).await;
        }
        self.runtime().control().clear_mode().await.expect("the manager answers");
        self.quiet().await;
    }

    /// The record that a read gives, and its source.
    pub async fn read(&self, key: &str) -> (Option<Record>, Source) {
        let read = self.handle().retrieve(key).await.expect("is read");
        (read.record, read.source)
    }

    /// What both stores hold under a key, which has to be the same.
    pub async fn both(&self, key: &str) -> Option<Record> {
        let (graph, vector) = (self.graph.record(key).await, self.vector.record(key).await);
        assert_eq!(graph.as_ref().map(contents), vector.as_ref().map(contents), "the stores differ in {key}");
        graph
    }
}

/// Waits for something that must come.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "in vain: {what}");
}

/// A record with one property.
pub fn record(key: &str, n: u64) -> Record {
    Record::new(key).with("n", n)
}

pub fn properties(name: &str, value: impl Into<serde_json::Value>) -> Properties {
    Properties::new().with(name, value)
}

/// The property `n` of a record.
pub fn n(record: Option<Record>) -> Option<u64> {
    record?.properties.get("n")?.as_u64()
}

/// The properties as they print, for a failing assertion: they hide themselves otherwise.
pub fn contents(record: &Record) -> String {
    let mut text = serde_json::to_string(&record.properties).expect("properties serialize");
    for relation in &record.relations {
        text.push_str(&format!(" {}->{}", relation.kind, relation.to));
    }
    text
}

pub fn is_queued(receipt: &Receipt) -> bool {
    matches!(receipt.held, Held::Queued { .. })
}

pub fn is_pending(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Pending { .. })
}

/// A write with a short deadline.
pub fn hasty(write: impl Into<Write>) -> Write {
    write.into().with_timeout(Duration::from_secs(1))
}

pub fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Refusal {
    result.expect_err("must be refused")
}

/// There is a test of this name, `file::test`, and it is one.
pub fn assert_is_a_test(root: &Path, test: &str) {
    let (file, name) = test.split_once("::").expect("`file::test`");
    let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let function = text.find(&format!("fn {name}("));
    let before = function.map(|at| text[..at].trim_end_matches("async ").trim_end());
    let is_test = before.is_some_and(|before| {
        before.lines().next_back().is_some_and(|line| line.ends_with(")]") || line.trim_start() == "#[test]")
    });
    assert!(is_test, "there is no test `{name}` in `{file}`");
}
