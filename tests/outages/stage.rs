//! A runtime over real servers, each behind a connection that can be broken.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use seawall::Runtime;
use seawall::backend::Backend;
use seawall::backends::{Neo4jBackend, QdrantBackend};
use seawall::breaker::{BreakerHandle, BreakerState};
use seawall::config::{BackendConfig, Config, Neo4jConfig, QdrantConfig, RedisCacheConfig, Secret};
use seawall::operation::{Status, Version};
use tempfile::TempDir;
use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::{sleep, timeout};

use crate::load::{Load, Log, WRITE_TIMEOUT};
use crate::servers::arcadedb::{ArcadeDb, ArcadeDbServer};
use crate::servers::neo4j::{Neo4j, Neo4jServer};
use crate::servers::proxy::{Protocol, Proxy};
use crate::servers::qdrant::{Qdrant, QdrantServer};
use crate::servers::{Server, Snapshot, listens};
use crate::torture::{Figures, Told};

/// How long anything may take that has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// As `torture::writer` makes its embeddings.
const DIMENSION: usize = 4;
/// How many write at the same time, and how many read.
const WRITERS: usize = 6;
const READERS: usize = 2;

/// The server of the graph: Neo4j, or ArcadeDB where that could not be had.
pub(crate) enum Graph {
    Neo4j(Neo4jServer),
    ArcadeDb(ArcadeDbServer),
}

impl Graph {
    async fn start() -> Option<Self> {
        let Some(why) = Neo4j::unreachable() else {
            return Server::start(Neo4j::default()).await.map(Self::Neo4j);
        };
        eprintln!("{why}; ArcadeDB stands in for it");
        Server::start(ArcadeDb).await.map(Self::ArcadeDb)
    }

    pub(crate) fn kill(&mut self) {
        match self {
            Self::Neo4j(server) => server.kill(),
            Self::ArcadeDb(server) => server.kill(),
        }
    }

    pub(crate) async fn restart(&mut self) {
        match self {
            Self::Neo4j(server) => server.restart().await,
            Self::ArcadeDb(server) => server.restart().await,
        }
    }

    pub(crate) async fn snapshot(&mut self) -> Snapshot {
        match self {
            Self::Neo4j(server) => server.snapshot().await,
            Self::ArcadeDb(server) => server.snapshot().await,
        }
    }

    pub(crate) async fn restore(&mut self, snapshot: &Snapshot) {
        match self {
            Self::Neo4j(server) => server.restore(snapshot).await,
            Self::ArcadeDb(server) => server.restore(snapshot).await,
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Neo4j(server) => server.port(),
            Self::ArcadeDb(server) => server.port(),
        }
    }
}

/// Where the stores of a stage are, told to another process as text.
#[derive(Clone)]
pub(crate) struct Stores {
    /// Whether ArcadeDB stands in for Neo4j.
    stand_in: bool,
    graph: u16,
    vector: u16,
    /// What tells the records of this stage from those of others.
    label: String,
}

impl Stores {
    pub(crate) fn to_text(&self) -> String {
        format!("{} {} {} {}", self.stand_in, self.graph, self.vector, self.label)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            stand_in: parts.next()?.parse().ok()?,
            graph: parts.next()?.parse().ok()?,
            vector: parts.next()?.parse().ok()?,
            label: parts.next()?.to_owned(),
        })
    }

    fn neo4j(&self) -> Neo4jConfig {
        let (user, password, database) = match self.stand_in {
            false => (Neo4j::USER, Neo4j::PASSWORD, None),
            true => (ArcadeDb::USER, ArcadeDb::PASSWORD, Some(ArcadeDb::DATABASE.to_owned())),
        };
        Neo4jConfig {
            uri: format!("bolt://127.0.0.1:{}", self.graph),
            user: user.to_owned(),
            password: Some(Secret::new(password)),
            database,
            label: self.label.clone(),
            connect_timeout: Duration::from_secs(1),
            ..Neo4jConfig::default()
        }
    }

    fn qdrant(&self) -> QdrantConfig {
        QdrantConfig {
            url: format!("http://127.0.0.1:{}", self.vector),
            dimension: DIMENSION,
            timeout: Duration::from_millis(1_400),
            connect_timeout: Duration::from_secs(1),
            ..QdrantConfig::default()
        }
    }

    pub(crate) fn open_graph(&self) -> Neo4jBackend {
        Neo4jBackend::new("graph", &self.neo4j()).expect("can be used")
    }

    fn open_vector(&self) -> QdrantBackend {
        QdrantBackend::new("vector", &self.qdrant()).expect("can be used")
    }
}

/// How a stage has the server of the graph, which all stages of a process share, each under a label of its own: it is
/// slow to start. It ends with the last of them.
pub(crate) enum Lease {
    Alone(OwnedRwLockWriteGuard<Graph>),
    Shared(OwnedRwLockReadGuard<Graph>),
}

impl Lease {
    async fn take(who: Cast) -> Option<Self> {
        static SERVER: Mutex<Weak<RwLock<Graph>>> = Mutex::const_new(Weak::new());
        let server = {
            let mut known = SERVER.lock().await;
            match known.upgrade() {
                Some(server) => server,
                None => {
                    let server = Arc::new(RwLock::new(Graph::start().await?));
                    *known = Arc::downgrade(&server);
                    server
                }
            }
        };
        if !listens(server.read().await.port()).await {
            // Whoever killed it has failed before it was back.
            let mut server = server.write().await;
            if !listens(server.port()).await {
                server.restart().await;
            }
        }
        Some(match who {
            Cast::Alone => Self::Alone(server.write_owned().await),
            Cast::Shared => Self::Shared(server.read_owned().await),
        })
    }

    fn server(&self) -> &Graph {
        match self {
            Self::Alone(server) => server,
            Self::Shared(server) => server,
        }
    }
}

/// Whether others may use the server of the graph at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cast {
    /// Nobody: it is going to be killed.
    Alone,
    Shared,
}

/// The servers, and what was written through them.
pub(crate) struct Stage {
    graph: Lease,
    pub(crate) graph_way: Proxy,
    pub(crate) vector: QdrantServer,
    pub(crate) vector_way: Proxy,
    pub(crate) log: Arc<Log>,
    /// Of the runtimes that are started from now on.
    pub(crate) config: Config,
    /// Where the stores are for a runtime.
    pub(crate) stores: Stores,
    runtime: Option<Runtime>,
    /// Requests that nobody could answer any more.
    pub(crate) cut_off: usize,
    /// The stores, asked without anything in between.
    held: (Neo4jBackend, QdrantBackend),
    pub(crate) dir: TempDir,
}

impl Stage {
    /// Servers that run, and no runtime yet. `None`, with a word about it, where none were installed.
    pub(crate) async fn set(who: Cast, told: Told) -> Option<Self> {
        static LABELS: AtomicU64 = AtomicU64::new(0);
        let graph = Lease::take(who).await?;
        let server = graph.server();
        let graph_way = Proxy::speaking(Protocol::Bolt, server.port()).await;
        let vector = QdrantServer::start(Qdrant::default()).await?;
        let vector_way = Proxy::speaking(Protocol::Grpc, vector.port()).await;
        let direct = Stores {
            stand_in: matches!(server, Graph::ArcadeDb(_)),
            graph: server.port(),
            vector: vector.port(),
            label: format!("Record{}", LABELS.fetch_add(1, Ordering::Relaxed)),
        };
        let stores = Stores { graph: graph_way.port(), vector: vector_way.port(), ..direct.clone() };
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path(), &stores);
        let held = (direct.open_graph(), direct.open_vector());
        let log = Arc::new(Log::new(told, false));
        Some(Self { graph, graph_way, vector, vector_way, log, config, stores, runtime: None, cut_off: 0, held, dir })
    }

    /// The same with a runtime.
    pub(crate) async fn start(who: Cast) -> Option<Self> {
        let mut stage = Self::set(who, Told::default()).await?;
        stage.open().await;
        Some(stage)
    }

    /// Gives the next runtime a best-effort copy of everything in a Redis at this port.
    pub(crate) fn add_cache(&mut self, port: u16) {
        let redis = RedisCacheConfig { host: "127.0.0.1".to_owned(), port, ..RedisCacheConfig::default() };
        let cache = backend(&self.config, |backend| backend.redis_cache = Some(redis));
        self.config.backends.insert("cache".to_owned(), cache);
    }

    /// Starts a runtime on what the last one left.
    pub(crate) async fn open(&mut self) {
        let runtime = Runtime::builder().config(self.config.clone()).start().await;
        self.runtime = Some(runtime.expect("the runtime starts"));
    }

    /// The server of the graph, to be killed by a stage that has it alone.
    pub(crate) fn graph(&mut self) -> &mut Graph {
        match &mut self.graph {
            Lease::Alone(server) => server,
            Lease::Shared(_) => panic!("others use it"),
        }
    }

    /// A runtime that was started in some other way.
    pub(crate) fn put(&mut self, runtime: Runtime) {
        self.runtime = Some(runtime);
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime is started")
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.log.told()
    }

    pub(crate) fn status(&self) -> Status {
        self.runtime().handle().status()
    }

    pub(crate) fn breaker(&self, backend: &str) -> BreakerHandle {
        self.runtime().control().breaker(backend).expect("the backend is there")
    }

    pub(crate) fn is(&self, backend: &str, state: BreakerState) -> bool {
        self.breaker(backend).view().state == state
    }

    /// Callers who write and read until they are stopped.
    pub(crate) fn load(&self) -> Load {
        Load::start(&self.runtime().handle(), &self.log, WRITERS, READERS)
    }

    /// Waits until so many writes more are acknowledged.
    pub(crate) async fn acknowledges(&self, more: usize) {
        let least = self.told().acknowledged() + more;
        self.until("writes are acknowledged", || self.told().acknowledged() >= least).await;
    }

    /// Waits until writes go to both stores: a server that has only just started can be too slow at first.
    pub(crate) async fn works(&self) {
        self.acknowledges(50).await;
        self.recovers().await;
        self.acknowledges(50).await;
    }

    /// Waits until both breakers are closed.
    pub(crate) async fn recovers(&self) {
        for backend in ["graph", "vector"] {
            self.until("the breaker closes", || self.is(backend, BreakerState::Closed)).await;
        }
    }

    /// Waits for something that must come.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let waited = timeout(PATIENCE, async {
            while !condition() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        if waited.await.is_err() {
            panic!(
                "in vain: {what}; {:?}; {:?}",
                self.runtime.as_ref().map(|r| r.handle().status()),
                self.told().problems
            );
        }
    }

    /// The newest version that each store holds.
    pub(crate) async fn newest(&self) -> [Version; 2] {
        let stores: [&dyn Backend; 2] = [&self.held.0, &self.held.1];
        let mut newest = [Version::default(); 2];
        for (store, newest) in stores.into_iter().zip(&mut newest) {
            *newest = store.newest_version().await.expect("the store is well");
        }
        newest
    }

    /// Waits until nothing is owed, and compares what the stores hold with what was acknowledged.
    pub(crate) async fn judge(&self) -> (Figures, Vec<String>) {
        self.until("everything owed is drained", || {
            let status = self.status();
            status.in_flight == 0 && status.owed == status.dead_letters
        })
        .await;
        let mut figures = Figures::default();
        let mut problems: Vec<String> =
            self.runtime().handle().dead_letters().iter().map(|letter| format!("a dead letter: {letter:?}")).collect();
        figures.lost += problems.len() as u64;
        assert_eq!(self.told().unanswered(), self.cut_off, "requests were not answered");
        let mut told = std::mem::take(&mut *self.told());
        let handle = self.runtime().handle();
        let stores: [(_, &dyn Backend); 2] = [("graph", &self.held.0), ("vector", &self.held.1)];
        told.compare(|operation| handle.outcome(operation), stores).await;
        figures += &told.take_figures();
        problems.append(&mut told.problems);
        *self.told() = told;
        (figures, problems)
    }

    /// Nothing was lost, duplicated, reordered, brought back or answered wrongly.
    pub(crate) async fn assert_kept(&self) -> Figures {
        let (figures, problems) = self.judge().await;
        eprintln!("{} acknowledged, {} refused, {} unknown", figures.acked, figures.refused, figures.unknown);
        assert!(figures.is_clean() && problems.is_empty(), "{figures:?}\n{}", problems.join("\n"));
        figures
    }
}

/// Quick to fail and quick to heal.
pub(crate) fn config(dir: &Path, stores: &Stores) -> Config {
    let mut config = Config { data_dir: dir.join("seawall"), ..Config::default() };
    let quick = Duration::from_millis(20);
    config.gateway.write_timeout = WRITE_TIMEOUT;
    config.gateway.read_timeout = WRITE_TIMEOUT;
    config.saga.timeout = WRITE_TIMEOUT * 2 / 3;
    config.saga.rollback_timeout = WRITE_TIMEOUT / 6;
    config.call.timeout = WRITE_TIMEOUT / 2;
    config.call.retry.backoff = quick;
    config.call.retry.max_backoff = 10 * quick;
    config.journal.lock_patience = Duration::from_secs(30);
    // All that is written is judged in the end.
    config.queue.outcomes = 200_000;
    config.breaker.reset_timeout = 5 * quick;
    config.breaker.slow_call = config.call.timeout;
    config.breaker.half_open_lease = WRITE_TIMEOUT;
    config.breaker.recovery_step = 2 * quick;
    config.health.interval = 10 * quick;
    config.health.timeout = 10 * quick;
    config.sync.backoff = quick;
    config.sync.max_backoff = 10 * quick;
    config.backends.insert("graph".to_owned(), backend(&config, |backend| backend.neo4j = Some(stores.neo4j())));
    config.backends.insert("vector".to_owned(), backend(&config, |backend| backend.qdrant = Some(stores.qdrant())));
    config
}

/// A backend that is called as all are.
fn backend(config: &Config, change: impl FnOnce(&mut BackendConfig)) -> BackendConfig {
    let mut backend =
        BackendConfig { breaker: config.breaker.clone(), call: config.call.clone(), ..BackendConfig::default() };
    change(&mut backend);
    backend
}
