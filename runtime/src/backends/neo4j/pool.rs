//! Connections, each for one transaction at a time.
//!
//! Every connection is a [`Graph`] of its own, because the pool of the crate takes back what nobody should have: a
//! connection whose transaction was abandoned stays open in it, with its locks, until somebody happens to get it. Here
//! a transaction that does not end well takes its connection with it, and the server rolls it back at once. The crate
//! also has no limit for the handshake, and none for the wait for a connection; here both have one.
//!
//! `Graph::run` and `Graph::execute` are not used: they try again by themselves, for up to a minute. A transaction of
//! its own is never tried again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use neo4rs::{ConfigBuilder, Graph, Query, Row, Txn};
use seawall_actors::backend::BackendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::errors::{Stage, classify};
use super::{Neo4jConfig, tls};

/// How long an answer may take where nobody else sets a limit. What a call may take is for its caller to say.
const ANSWER: Duration = Duration::from_secs(600);

/// The connections to one server.
pub(super) struct Pool {
    config: neo4rs::Config,
    encrypted: bool,
    connect_timeout: Duration,
    places: Arc<Semaphore>,
    /// What was used last comes first.
    idle: Mutex<Vec<Graph>>,
}

/// An open transaction. Dropping it closes its connection, on which the server rolls it back.
pub(super) struct Session {
    // In this order: the connection goes back to its graph, and ends with it.
    transaction: Txn,
    graph: Graph,
    pool: Arc<Pool>,
    _place: OwnedSemaphorePermit,
}

impl Pool {
    /// Connects to nothing yet.
    pub(super) fn new(config: &Neo4jConfig) -> Result<Self, BackendError> {
        let password = config.password.as_ref().map_or("", |password| password.reveal());
        let mut builder = ConfigBuilder::new()
            .uri(&config.uri)
            .user(&config.user)
            .password(password)
            .max_connections(1)
            .connection_timeout(ANSWER);
        if let Some(database) = &config.database {
            builder = builder.db(database.as_str());
        }
        if let (Some(certificate), Some(key)) = (&config.tls_client_certificate, &config.tls_client_key) {
            builder = builder.with_mutual_tls_validation(config.tls_ca_file.as_ref(), certificate, key);
        } else if let Some(file) = &config.tls_ca_file {
            builder = builder.with_client_certificate(file);
        }
        let pool = Self {
            config: builder.build().map_err(|_| unusable())?,
            encrypted: config.encrypted(),
            connect_timeout: config.connect_timeout,
            places: Arc::new(Semaphore::new(config.max_connections)),
            idle: Mutex::default(),
        };
        if pool.encrypted {
            tls::choose_ciphers();
            config.tls_ca_file.as_deref().map_or(Ok(()), tls::check_certificate)?;
            config.tls_client_certificate.as_deref().map_or(Ok(()), tls::check_certificate)?;
            config.tls_client_key.as_deref().map_or(Ok(()), tls::check_key)?;
        }
        Graph::connect(pool.config.clone()).map_err(|_| unusable())?;
        Ok(pool)
    }

    /// Begins a transaction. Nothing has happened when this fails, or is not waited for.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<Session, BackendError> {
        let begun = timeout(self.connect_timeout, async {
            let place = self.place().await?;
            let graph = self.graph().await?;
            match graph.start_txn().await {
                Ok(transaction) => Ok(Session { transaction, graph, pool: Arc::clone(self), _place: place }),
                Err(error) => Err(classify(&error, Stage::Open)),
            }
        });
        match begun.await {
            Ok(Ok(session)) => Ok(session),
            failed => {
                let exhausted = failed.is_err() && self.places.available_permits() == 0;
                if !exhausted {
                    // The others are of the same time, and each of them would be found out one by one.
                    self.idle().clear();
                }
                failed.unwrap_or_else(|_| Err(self.late(exhausted)))
            }
        }
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, BackendError> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        place.map_err(|_| BackendError::transient("the backend is closed"))
    }

    async fn graph(&self) -> Result<Graph, BackendError> {
        let idle = self.idle().pop();
        match idle {
            Some(graph) => Ok(graph),
            None if self.encrypted => {
                // Reads files.
                let config = self.config.clone();
                let graph = tokio::task::spawn_blocking(move || Graph::connect(config)).await;
                graph.map_err(|_| unusable())?.map_err(|error| classify(&error, Stage::Open))
            }
            None => Graph::connect(self.config.clone()).map_err(|error| classify(&error, Stage::Open)),
        }
    }

    fn late(&self, exhausted: bool) -> BackendError {
        let limit = self.connect_timeout;
        if exhausted {
            let message = format!("no connection was free within {limit:?}; raise `max_connections` of the backend");
            return BackendError::refused(message).with_code("no_connection");
        }
        BackendError::transient(format!("Neo4j took up no connection within {limit:?}")).with_code("connect_timeout")
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Graph>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Runs a statement whose rows nobody wants.
    pub(super) async fn run(&mut self, statement: Query) -> Result<(), BackendError> {
        self.transaction.run(statement).await.map_err(|error| classify(&error, Stage::Open))
    }

    /// All rows of a statement.
    pub(super) async fn rows(&mut self, statement: Query) -> Result<Vec<Row>, BackendError> {
        let mut rows = Vec::new();
        self.each(statement, |row| {
            rows.push(row);
            Ok(true)
        })
        .await?;
        Ok(rows)
    }

    /// The rows of a statement one by one, for as long as they are wanted.
    pub(super) async fn each(
        &mut self,
        statement: Query,
        mut wanted: impl FnMut(Row) -> Result<bool, BackendError> + Send,
    ) -> Result<(), BackendError> {
        let open = |error: neo4rs::Error| classify(&error, Stage::Open);
        let mut rows = self.transaction.execute(statement).await.map_err(open)?;
        while let Some(row) = rows.next(self.transaction.handle()).await.map_err(open)? {
            if !wanted(row)? {
                return rows.finish(self.transaction.handle()).await.map_err(open);
            }
        }
        Ok(())
    }

    /// Ends it. What fails here may have happened all the same.
    pub(super) async fn commit(self) -> Result<(), BackendError> {
        let Self { transaction, graph, pool, _place } = self;
        transaction.commit().await.map_err(|error| classify(&error, Stage::Commit))?;
        pool.idle().push(graph);
        Ok(())
    }

    /// Takes it back.
    pub(super) async fn rollback(self) -> Result<(), BackendError> {
        let Self { transaction, graph, pool, _place } = self;
        transaction.rollback().await.map_err(|error| classify(&error, Stage::Open))?;
        pool.idle().push(graph);
        Ok(())
    }
}

fn unusable() -> BackendError {
    BackendError::permanent("`uri` or a file of certificates cannot be used")
}
