//! Seawall in front of a Neo4j and a Qdrant, as a service would start it; and the two servers, if they are ours.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall::Runtime;
use seawall::backend::{Backend, BackendError};
use seawall::backends::{Neo4jBackend, Neo4jConfig, QdrantBackend, QdrantConfig};
use seawall::config::{Config, Secret};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::report::Reporter;
use crate::servers::arcadedb::{ArcadeDb, ArcadeDbServer};
use crate::servers::neo4j::{Neo4j, Neo4jServer};
use crate::servers::qdrant::{Qdrant, QdrantServer};
use crate::servers::{Program, Server};
use crate::switch::Switch;

/// How long a server may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the demonstration shortens, in words.
const SHORTENED: &str = "shortened for the demonstration: breakers wait 2 s (default 60 s), probes come every second \
     (default 30 s),\ncalls are given up after 2 s (default 10 s)";

/// Where the servers are.
pub(crate) enum Place {
    /// To be started from this directory.
    Installed(PathBuf),
    /// Somewhere.
    Yours { neo4j: String, qdrant: String },
}

/// A runtime, its two stores, and their servers.
pub(crate) struct Site {
    pub(crate) runtime: Runtime,
    pub(crate) graph: Switch<Neo4jBackend>,
    pub(crate) vector: Switch<QdrantBackend>,
    /// What may be killed.
    pub(crate) servers: Option<Servers>,
    neo4j: Neo4jConfig,
    qdrant: QdrantConfig,
    _journal: TempDir,
}

/// The servers, where they are ours.
pub(crate) struct Servers {
    pub(crate) graph: GraphServer,
    pub(crate) vector: QdrantServer,
}

/// The server for the graph: Neo4j, or what stands in for it where it could not be installed.
pub(crate) enum GraphServer {
    Neo4j(Neo4jServer),
    ArcadeDb(ArcadeDbServer),
}

impl Site {
    /// Starts what has to be started, and Seawall on it.
    pub(crate) async fn open(place: Place, dimension: usize, reporter: &Reporter) -> Result<Self, Box<dyn Error>> {
        let (servers, mut neo4j, mut qdrant) = match place {
            Place::Installed(dir) => start_servers(&dir).await?,
            Place::Yours { neo4j, qdrant } => (None, yours_in_neo4j(neo4j), yours_in_qdrant(qdrant)),
        };
        neo4j.label = "SeawallExample".to_owned();
        neo4j.connect_timeout = Duration::from_secs(1);
        qdrant.collection = "seawall_example".to_owned();
        qdrant.dimension = dimension;
        qdrant.timeout = Duration::from_millis(1_500);
        qdrant.connect_timeout = Duration::from_secs(1);
        let graph = Switch::new(Neo4jBackend::new("graph", &neo4j)?);
        let vector = Switch::new(QdrantBackend::new("vector", &qdrant)?);
        for (store, at) in [(&*graph.store as &dyn Backend, &neo4j.uri), (&*vector.store, &qdrant.url)] {
            let asked = answers(store).await;
            asked.map_err(|error| format!("{} at {at} does not answer as it has to: {error}", store.name()))?;
        }
        let what = servers.as_ref().map_or("your Neo4j", |servers| servers.graph.what());
        let journal = tempfile::Builder::new().prefix("seawall-").tempdir()?;
        reporter.line(format!(
            "graph: {what} at {}, label {}\nvector: Qdrant at {}, collection {}\njournal: {}\n{SHORTENED}",
            neo4j.uri,
            neo4j.label,
            qdrant.url,
            qdrant.collection,
            journal.path().display()
        ));
        let runtime = Runtime::builder()
            .config(config(dimension))
            .data_dir(journal.path())
            .backend(graph.backend())
            .backend(vector.backend())
            .start()
            .await?;
        Ok(Self { runtime, graph, vector, servers, neo4j, qdrant, _journal: journal })
    }

    /// The stores as somebody sees them who has nothing to do with this runtime.
    pub(crate) fn anew(&self) -> Result<(Neo4jBackend, QdrantBackend), BackendError> {
        // Nothing is in a hurry any more.
        let neo4j = Neo4jConfig { connect_timeout: Duration::from_secs(30), ..self.neo4j.clone() };
        let qdrant = QdrantConfig { timeout: Duration::from_secs(30), ..self.qdrant.clone() };
        Ok((Neo4jBackend::new("graph", &neo4j)?, QdrantBackend::new("vector", &qdrant)?))
    }
}

impl GraphServer {
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::Neo4j(_) => "Neo4j",
            Self::ArcadeDb(_) => "ArcadeDB, in place of Neo4j, which could not be installed,",
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Neo4j(server) => server.kill(),
            Self::ArcadeDb(server) => server.kill(),
        }
    }

    /// Starts it again on its data.
    pub(crate) async fn restart(&mut self) {
        match self {
            Self::Neo4j(server) => server.restart().await,
            Self::ArcadeDb(server) => server.restart().await,
        }
    }
}

fn config(dimension: usize) -> Config {
    let mut config = Config::default();
    config.breaker.reset_timeout = Duration::from_secs(2);
    config.health.interval = Duration::from_secs(1);
    config.health.timeout = Duration::from_secs(1);
    config.call.timeout = Duration::from_secs(2);
    config.limits.dimension = Some(dimension);
    config
}

async fn start_servers(dir: &Path) -> Result<(Option<Servers>, Neo4jConfig, QdrantConfig), Box<dyn Error>> {
    for name in [Neo4j::NAME, Qdrant::NAME] {
        if !dir.join(name).is_dir() {
            let dir = dir.display();
            return Err(format!("there is no {name} in {dir}; `tests/servers/install {dir}` installs it").into());
        }
    }
    let vector = Server::start_from(dir, Qdrant::default()).await;
    let (graph, port, user, password) = if dir.join(Neo4j::NAME).join("UNREACHABLE").exists() {
        let server = Server::start_from(dir, ArcadeDb).await;
        let port = server.port();
        (GraphServer::ArcadeDb(server), port, ArcadeDb::USER, ArcadeDb::PASSWORD)
    } else {
        let server = Server::start_from(dir, Neo4j::default()).await;
        let port = server.port();
        (GraphServer::Neo4j(server), port, Neo4j::USER, Neo4j::PASSWORD)
    };
    let neo4j = Neo4jConfig {
        uri: format!("bolt://127.0.0.1:{port}"),
        user: user.to_owned(),
        password: Some(Secret::new(password)),
        database: matches!(graph, GraphServer::ArcadeDb(_)).then(|| ArcadeDb::DATABASE.to_owned()),
        ..Neo4jConfig::default()
    };
    let url = format!("http://127.0.0.1:{}", vector.port());
    Ok((Some(Servers { graph, vector }), neo4j, QdrantConfig { url, ..QdrantConfig::default() }))
}

fn yours_in_neo4j(uri: String) -> Neo4jConfig {
    let default = Neo4jConfig::default();
    Neo4jConfig {
        uri,
        user: env::var("NEO4J_USER").unwrap_or(default.user),
        password: secret("NEO4J_PASSWORD"),
        database: env::var("NEO4J_DATABASE").ok(),
        ..Neo4jConfig::default()
    }
}

fn yours_in_qdrant(url: String) -> QdrantConfig {
    QdrantConfig { url, api_key: secret("QDRANT_API_KEY"), ..QdrantConfig::default() }
}

fn secret(variable: &str) -> Option<Secret> {
    env::var(variable).ok().filter(|secret| !secret.is_empty()).map(Secret::new)
}

/// Waits for the first answer. A server that was just started is slow.
async fn answers(store: &dyn Backend) -> Result<(), BackendError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match store.probe().await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}
