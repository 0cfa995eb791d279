//! Records in Neo4j, or in another store that speaks Bolt 4.4 and the same Cypher.
//!
//! ```text
//! apply ── begin ── nodes under their fence ── relations ── merges under their fence ── commit
//! ```
//!
//! One statement for each kind of change, however many records it is about, and one transaction for all of them. What
//! the graph looks like is in `statements`; connections are in `pool`; what an error means is in `errors`.
//!
//! | when | then |
//! |---|---|
//! | no connection, no login, no begin in time | `Transient`: nothing was asked. Also for a wrong password: it can be put right, and until then the breaker keeps logins away |
//! | the connection breaks before the commit | `Transient`: the server rolls back |
//! | it breaks during the commit | `Unknown` |
//! | another transaction is in the way | `Refused`: it did not happen, and may the next time |
//! | a caller goes away | the connection is closed with its transaction, and another one is made when it is needed |
//! | the server takes no writes | `ReadOnly`; reads go on |
//!
//! The unique constraint on the keys, without which two writes could make two nodes of one key, is there before the
//! first write is: a probe makes it, or the first write itself if the server came later, and again after a connection
//! was lost, for it may be another server that came back.

mod errors;
mod node;
mod pool;
mod settings;
mod statements;
#[cfg(test)]
mod tests;
mod tls;
mod walk;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use neo4rs::query;
use seawall_actors::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, ErrorKind, FencedWrite, Health, Role, Stored,
    Transaction, Transactions,
};
use seawall_actors::operation::{Hit, Traversal, Version};
use seawall_actors::record::{Key, Properties};
use tokio::sync::OnceCell;

use node::Plan;
use pool::{Pool, Session};
use statements::Statements;
use walk::{Walk, Way};

pub use settings::Neo4jConfig;

use super::records::matches;

/// Records in Neo4j, in native transactions.
///
/// Every node with the label of the configuration is Seawall's, and so is every relationship of type `RELATES` that
/// leads away from one. Other properties, labels and relationships that others give to these nodes are kept by a merge
/// and lost when the record is stored anew or deleted, but for the relationships, which are kept.
pub struct Neo4jBackend {
    name: BackendName,
    role: Role,
    statements: Statements,
    pool: Arc<Pool>,
    /// Whether the constraint is there, as far as is known.
    schema: Mutex<Arc<OnceCell<()>>>,
}

impl Neo4jBackend {
    /// A backend on this server, to which it connects when it is asked the first time.
    ///
    /// # Errors
    /// [`ErrorKind::Permanent`] when the settings name no server, or a file of certificates that cannot be used.
    pub fn new(name: impl Into<BackendName>, config: &Neo4jConfig) -> Result<Self, BackendError> {
        let mut problems = Vec::new();
        config.problems("neo4j", &mut problems);
        if let Some(problem) = problems.first() {
            return Err(BackendError::permanent(problem.to_string()));
        }
        Ok(Self {
            name: name.into(),
            role: config.role,
            statements: Statements::new(&config.label),
            pool: Arc::new(Pool::new(config)?),
            schema: Mutex::default(),
        })
    }

    /// Runs a statement that tells a number, in a transaction of its own.
    async fn count(&self, statement: neo4rs::Query, column: &str) -> Result<usize, BackendError> {
        let mut session = self.begin().await?;
        let rows = session.rows(statement).await?;
        let count = rows.first().map_or(Ok(0), |row| node::number(row, column))?;
        session.commit().await?;
        Ok(count)
    }

    /// A transaction. When there is none to be had, the server that comes back may be another one.
    async fn begin(&self) -> Result<Session, BackendError> {
        let begun = self.pool.begin().await;
        if begun.as_ref().is_err_and(|error| error.kind == ErrorKind::Transient) {
            *self.schema() = Arc::default();
        }
        begun
    }

    /// Sees to it that keys are unique.
    async fn ensure_schema(&self) -> Result<(), BackendError> {
        let schema = Arc::clone(&self.schema());
        schema.get_or_try_init(|| self.create_schema()).await?;
        Ok(())
    }

    async fn create_schema(&self) -> Result<(), BackendError> {
        for statement in [&self.statements.constraint, &self.statements.index] {
            let mut session = self.begin().await?;
            let created = match session.run(query(statement)).await {
                Ok(()) => session.commit().await,
                Err(error) => Err(error),
            };
            match created {
                // Somebody else has made it under another name.
                Err(error) if error.code.as_deref().is_some_and(|code| code.ends_with("AlreadyExists")) => {}
                // It says nothing about the write that waits for it.
                Err(error) if matches!(error.kind, ErrorKind::Permanent | ErrorKind::Unknown) => {
                    let message = format!("keys cannot be made unique: {}", error.message);
                    return Err(BackendError { kind: ErrorKind::Transient, message: message.into(), ..error });
                }
                created => created?,
            }
        }
        Ok(())
    }

    fn schema(&self) -> MutexGuard<'_, Arc<OnceCell<()>>> {
        self.schema.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a write in a transaction that is not committed yet.
    async fn open(&self, write: &FencedWrite) -> Result<Open, BackendError> {
        let plan = Plan::of(write)?;
        self.ensure_schema().await?;
        let mut session = self.begin().await?;
        let mut passed = self.replace(&mut session, &plan).await?;
        passed.extend(self.merge(&mut session, &plan).await?);
        let fenced: Vec<&str> = write
            .changes
            .iter()
            .map(|change| change.key())
            .filter(|key| !passed.contains(key))
            .map(Key::as_str)
            .collect();
        let superseded_by = if fenced.is_empty() {
            None
        } else {
            let held = query(&self.statements.versions).param("keys", node::texts(fenced));
            session.rows(held).await?.first().map(node::version).transpose()?
        };
        Ok(Open { session, applied: Applied { superseded_by } })
    }

    /// Puts and deletes. Gives the keys that the fence let through.
    async fn replace(&self, session: &mut Session, plan: &Plan) -> Result<Vec<Key>, BackendError> {
        if plan.nodes.is_empty() {
            return Ok(Vec::new());
        }
        let put = query(&self.statements.put);
        let put = put.param("touched", plan.touched()).param("rows", plan.rows()).param("over", plan.over);
        let rows = session.rows(put).await?;
        let passed: Vec<Key> =
            rows.iter().map(|row| Ok(Key::from(node::text(row, "key")?))).collect::<Result<_, BackendError>>()?;
        if let Some(rows) = plan.relations(&passed) {
            session.run(query(&self.statements.relate).param("rows", rows)).await?;
        }
        Ok(passed)
    }

    /// Merges. Gives the keys that the fence let through.
    async fn merge(&self, session: &mut Session, plan: &Plan) -> Result<Vec<Key>, BackendError> {
        if plan.merges.is_empty() {
            return Ok(Vec::new());
        }
        let lock = query(&self.statements.lock).param("rows", plan.locks()).param("over", plan.over);
        let mut passed = Vec::new();
        let mut rows = Vec::new();
        for row in session.rows(lock).await? {
            let key = Key::from(node::text(&row, "key")?);
            let before = if node::flag(&row, "blank")? { Properties::new() } else { node::properties(&row)? };
            rows.push(plan.merged(&key, before)?);
            passed.push(key);
        }
        if !rows.is_empty() {
            session.run(query(&self.statements.merge).param("rows", node::list(rows))).await?;
        }
        Ok(passed)
    }

    /// What is held under these keys.
    async fn held(&self, session: &mut Session, keys: &[Key]) -> Result<HashMap<Key, Stored>, BackendError> {
        let read = query(&self.statements.read).param("keys", node::texts(keys.iter().map(Key::as_str)));
        session.rows(read).await?.iter().map(node::stored).collect()
    }
}

impl fmt::Debug for Neo4jBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neo4jBackend").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for Neo4jBackend {
    fn name(&self) -> BackendName {
        self.name.clone()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { graph_traversal: true, exact_match: true, ..Capabilities::default() }
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        Box::new(self.open(write).await?).commit().await
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut session = self.begin().await?;
        let held = self.held(&mut session, keys).await?;
        session.rollback().await?;
        Ok(keys.iter().map(|key| held.get(key).cloned()).collect())
    }

    async fn traverse(&self, traversal: &Traversal) -> Result<Vec<Hit>, BackendError> {
        let mut session = self.begin().await?;
        let mut walk = Walk::new(traversal);
        let statement = self.statements.step(walk.arrow());
        let kinds = node::texts(traversal.kinds.iter().map(|kind| &**kind));
        while let Some((frontier, seen)) = walk.advance() {
            let step = query(&statement)
                .param("frontier", node::texts(frontier.iter().map(Key::as_str)))
                .param("seen", node::texts(seen.iter().map(Key::as_str)))
                .param("kinds", kinds.clone());
            let take = |row: neo4rs::Row| {
                let (place, outgoing) = (node::number(&row, "place")?, node::flag(&row, "outgoing")?);
                let (to, kind) = (Key::from(node::text(&row, "key")?), node::text(&row, "kind")?);
                Ok(walk.take(Way { place, outgoing, to, kind }))
            };
            session.each(step, take).await?;
        }
        let reached = walk.into_reached();
        let keys: Vec<Key> = reached.iter().map(|reached| reached.key.clone()).collect();
        let mut held = if keys.is_empty() { HashMap::new() } else { self.held(&mut session, &keys).await? };
        session.rollback().await?;
        let hit = |reached: walk::Reached| {
            // It may have gone meanwhile.
            let Stored { version, record } = held.remove(&reached.key)?;
            // A walk is far shorter than the 2^24 steps that an f32 counts exactly.
            Some(Hit { record: record?, version, score: reached.step as f32, via: Some(reached.via) })
        };
        Ok(reached.into_iter().filter_map(hit).collect())
    }

    async fn find(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let searchable = node::searchable(filter);
        let names: Vec<&str> = searchable.iter().map(|(name, _)| *name).collect();
        let mut find = query(&self.statements.find(&names));
        for (place, (_, value)) in searchable.into_iter().enumerate() {
            find = find.param(&format!("f{place}"), value);
        }
        let mut session = self.begin().await?;
        let mut hits = Vec::new();
        // Neo4j narrows it down, and for it 1 equals 1.0; what equals what is decided here, as everywhere.
        let take = |row: neo4rs::Row| {
            if let (_, Stored { version, record: Some(record) }) = node::stored(&row)?
                && matches(&record, filter)
            {
                hits.push(Hit { record, version, score: 1.0, via: None });
            }
            Ok(hits.len() < limit)
        };
        session.each(find, take).await?;
        session.rollback().await?;
        Ok(hits)
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        let probed = async {
            self.ensure_schema().await?;
            let mut session = self.begin().await?;
            session.run(query(&self.statements.probe)).await?;
            session.rollback().await
        };
        match probed.await {
            Ok(()) => Ok(Health::Healthy),
            Err(error) if error.kind == ErrorKind::ReadOnly => Ok(Health::ReadOnly),
            Err(error) => Err(error),
        }
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        let mut session = self.begin().await?;
        let rows = session.rows(query(&self.statements.newest)).await?;
        session.rollback().await?;
        rows.first().map_or(Ok(Version(0)), node::version)
    }

    async fn sweep(&self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        // The highest version of all is not forgotten, or it would be given out again.
        let older = i64::try_from(older_than.min(self.newest_version().await?).0).unwrap_or(i64::MAX);
        let batch = i64::try_from(at_most).unwrap_or(i64::MAX);
        let swept =
            self.count(query(&self.statements.sweep).param("older", older).param("batch", batch), "swept").await?;
        self.count(query(&self.statements.clean).param("batch", batch), "cleaned").await?;
        Ok(swept)
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        Some(self)
    }
}

#[async_trait]
impl Transactions for Neo4jBackend {
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError> {
        Ok(Box::new(self.open(write).await?))
    }
}

/// A write that is applied and not yet committed.
struct Open {
    session: Session,
    applied: Applied,
}

#[async_trait]
impl Transaction for Open {
    async fn commit(self: Box<Self>) -> Result<Applied, BackendError> {
        self.session.commit().await.map(|()| self.applied)
    }

    async fn rollback(self: Box<Self>) -> Result<(), BackendError> {
        self.session.rollback().await
    }
}
