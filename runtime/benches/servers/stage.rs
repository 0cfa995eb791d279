//! The servers, Seawall in front of them, and the work that is done both ways.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::{BoxFuture, join};
use seawall::backend::Backend;
use seawall::backends::{Neo4jBackend, Neo4jConfig, QdrantBackend, QdrantConfig};
use seawall::config::{Config, Secret};
use seawall::record::Record;
use seawall::{Handle, Runtime};
use tempfile::TempDir;

use crate::by_hand::{ByHand, InNeo4j, InQdrant};
use crate::servers::arcadedb::{ArcadeDb, ArcadeDbServer};
use crate::servers::neo4j::{Neo4j, Neo4jServer};
use crate::servers::qdrant::{Qdrant, QdrantServer};
use crate::{Call, Work};

/// Components of every embedding: those of a small model for texts.
pub(crate) const DIMENSION: usize = 384;
/// Numbers all calls, and with them what is written by hand: it never meets a newer version.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Everything that is measured.
pub(crate) struct Stage {
    graph: (Runtime, InNeo4j),
    vector: (Runtime, InQdrant),
    pair: Runtime,
    servers: (Result<Neo4jServer, ArcadeDbServer>, QdrantServer),
    _journals: TempDir,
}

impl Stage {
    /// `None`, with a word about it, where no servers were installed.
    pub(crate) async fn set() -> Option<Self> {
        let vector_server = QdrantServer::start(Qdrant::default()).await?;
        let graph_server = if Neo4j::unreachable().is_some() {
            Err(ArcadeDbServer::start(ArcadeDb).await?)
        } else {
            Ok(Neo4jServer::start(Neo4j::default()).await?)
        };
        let journals = tempfile::tempdir().expect("there is a directory for temporary files");
        let neo4j = |label: &str| neo4j(&graph_server, label);
        let qdrant = |collection: &str| qdrant(&vector_server, collection);
        let journal = |name: &str| journals.path().join(name);
        let graph = start(&journal("graph"), vec![in_neo4j(&neo4j("Alone")).await]).await;
        let vector = start(&journal("vector"), vec![in_qdrant(&qdrant("alone")).await]).await;
        let pair =
            start(&journal("pair"), vec![in_neo4j(&neo4j("Pair")).await, in_qdrant(&qdrant("pair")).await]).await;
        // What is done by hand needs the same constraint, the same collection and the same indexes.
        in_neo4j(&neo4j("ByHand")).await;
        in_qdrant(&qdrant("by_hand")).await;
        let by_hand = InNeo4j::open(&neo4j("ByHand"));
        let and_by_hand = InQdrant::open(&qdrant("by_hand")).await;
        let servers = (graph_server, vector_server);
        Some(Self { graph: (graph, by_hand), vector: (vector, and_by_hand), pair, servers, _journals: journals })
    }

    pub(crate) fn graph_server(&self) -> &'static str {
        if self.servers.0.is_ok() { "Neo4j" } else { "ArcadeDB, for Neo4j could not be installed" }
    }

    pub(crate) async fn clear(self) {
        for runtime in [self.graph.0, self.vector.0, self.pair] {
            runtime.shutdown().await;
        }
    }
}

/// What is measured.
pub(crate) fn work(stage: &Stage) -> Vec<Work> {
    let (graph, neo4j) = (&stage.graph.0, &stage.graph.1);
    let (vector, qdrant) = (&stage.vector.0, &stage.vector.1);
    let (transaction, upsert) = ("the same statements with neo4rs", "the same requests with qdrant-client");
    let (neo4j, qdrant) = (neo4j.clone(), qdrant.clone());
    vec![
        Work {
            what: "store, Neo4j",
            against: "the same with neo4rs, but for locking in one order",
            seawall: storing(graph),
            by_hand: by_hand(&neo4j, true),
        },
        Work {
            what: "retrieve, Neo4j",
            against: transaction,
            seawall: reading(graph),
            by_hand: by_hand(&neo4j, false),
        },
        Work { what: "store, Qdrant", against: upsert, seawall: storing(vector), by_hand: by_hand(&qdrant, true) },
        Work { what: "retrieve, Qdrant", against: upsert, seawall: reading(vector), by_hand: by_hand(&qdrant, false) },
        Work {
            what: "store, both",
            against: "the two writes at once",
            seawall: storing(&stage.pair),
            by_hand: both_by_hand(&neo4j, &qdrant, false),
        },
        Work {
            what: "store, both",
            against: "the two reads at once, then the two writes",
            seawall: storing(&stage.pair),
            by_hand: both_by_hand(&neo4j, &qdrant, true),
        },
    ]
}

/// The next record of a caller. It has one key, so that all but the first of its stores replace a record.
fn record(caller: u64, number: u64) -> Record {
    let component = |at: usize| ((at as u64 * 31 + number * 17 + caller * 7) % 199) as f32 / 199.0 - 0.5;
    let embedding: Vec<f32> = (0..DIMENSION).map(component).collect();
    Record::new(key(caller))
        .with("text", "a one-line description of the length that those of packages have")
        .with("number", number)
        .with_embedding(embedding)
}

fn key(caller: u64) -> String {
    format!("key-{caller}")
}

/// Numbers calls.
fn numbered(call: impl Fn(u64, u64) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Call {
    Arc::new(move |caller| call(caller, NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn storing(runtime: &Runtime) -> Call {
    let handle = runtime.handle();
    let store = |handle: Handle, record| async move { handle.store(record).await.map(|_| ()).expect("is stored") };
    numbered(move |caller, number| store(handle.clone(), record(caller, number)).boxed())
}

fn reading(runtime: &Runtime) -> Call {
    let handle = runtime.handle();
    let read = |handle: Handle, key: String| async move { handle.retrieve(key).await.map(|_| ()).expect("is read") };
    numbered(move |caller, _| read(handle.clone(), key(caller)).boxed())
}

fn by_hand<S: ByHand>(server: &S, stores: bool) -> Call {
    let server = server.clone();
    numbered(move |caller, number| {
        let server = server.clone();
        async move {
            if stores {
                server.store(&record(caller, number), number).await;
            } else {
                server.read(&key(caller)).await;
            }
        }
        .boxed()
    })
}

fn both_by_hand(neo4j: &InNeo4j, qdrant: &InQdrant, reads: bool) -> Call {
    let (neo4j, qdrant) = (neo4j.clone(), qdrant.clone());
    numbered(move |caller, number| {
        let (neo4j, qdrant) = (neo4j.clone(), qdrant.clone());
        async move {
            let record = record(caller, number);
            if reads {
                join(neo4j.read(record.key.as_str()), qdrant.read(record.key.as_str())).await;
            }
            join(neo4j.store(&record, number), qdrant.store(&record, number)).await;
        }
        .boxed()
    })
}

/// Seawall with a durable journal, as it is by default.
async fn start(journal: &Path, backends: Vec<Arc<dyn Backend>>) -> Runtime {
    let mut builder = Runtime::builder().config(Config::default()).data_dir(journal);
    for backend in backends {
        builder = builder.shared_backend(backend);
    }
    builder.start().await.expect("nothing stands in the way of a start")
}

fn neo4j(server: &Result<Neo4jServer, ArcadeDbServer>, label: &str) -> Neo4jConfig {
    let (port, user, password, database) = match server {
        Ok(server) => (server.port(), Neo4j::USER, Neo4j::PASSWORD, None),
        Err(server) => (server.port(), ArcadeDb::USER, ArcadeDb::PASSWORD, Some(ArcadeDb::DATABASE)),
    };
    Neo4jConfig {
        uri: format!("bolt://127.0.0.1:{port}"),
        user: user.to_owned(),
        password: Some(Secret::new(password)),
        database: database.map(str::to_owned),
        label: label.to_owned(),
        ..Neo4jConfig::default()
    }
}

fn qdrant(server: &QdrantServer, collection: &str) -> QdrantConfig {
    QdrantConfig {
        url: format!("http://127.0.0.1:{}", server.port()),
        collection: collection.to_owned(),
        dimension: DIMENSION,
        ..QdrantConfig::default()
    }
}

async fn in_neo4j(config: &Neo4jConfig) -> Arc<dyn Backend> {
    ready(Neo4jBackend::new("graph", config).expect("the settings are good")).await
}

async fn in_qdrant(config: &QdrantConfig) -> Arc<dyn Backend> {
    ready(QdrantBackend::new("vector", config).expect("the settings are good")).await
}

/// Makes what has to be there before the first write.
async fn ready(backend: impl Backend + 'static) -> Arc<dyn Backend> {
    let mut asked = backend.probe().await;
    for _ in 0..20 {
        if asked.is_ok() {
            break;
        }
        // A server that was just started is slow.
        asked = backend.probe().await;
    }
    asked.expect("it answers");
    Arc::new(backend)
}
