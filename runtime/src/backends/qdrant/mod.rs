//! A collection of a Qdrant server: records as points, found by their embedding and by their properties.
//!
//! ```text
//! apply ── merges? get ── upsert, if the condition holds ── get: whose write is there now? ──► applied, superseded
//!            ▲                                                 │
//!            └────────────── somebody was faster ──────────────┘
//! ```
//!
//! | what a backend owes | how |
//! |---|---|
//! | the fence | one upsert of all points of a write, with `wait`, strong ordering and an `update_filter`: a point that is there is written over only where its version lets it |
//! | telling what stood in the way | the points are read back: each request writes a name of its own into them |
//! | a delete that an old write does not undo | a point without a vector stays, with the version; [`sweep`](seawall_actors::backend::Backend::sweep) removes it |
//! | a merge | read, merge, and write over exactly what was read; again if somebody was faster, 8 times at most |
//! | a compensation | the same upsert, over its own version too |
//! | a drain | up to 32 owed writes in one upsert, each point under the fence of its own write |
//!
//! **Several changes are not one atomic step**: Qdrant has no transactions. They are one entry of its log, so that
//! after a crash of the server all of them are there or none, if they are in one shard. A reader may see some before
//! the others. Of a collection with several shards, one may take its part and another fail; then the answer is
//! [`Unknown`](seawall_actors::backend::ErrorKind::Unknown) and the write is applied again, or taken back, under the
//! fence, until all of it is there or none. A merge that lost a race is written in a request of its own.
//!
//! A collection with replicas answers reads from any of them. To read what was written, have the writes wait for all:
//! `write_consistency_factor` equal to `replication_factor`.
//!
//! What fails, and as what, is in [`error`]; how a record looks in Qdrant, in [`point`].

mod client;
mod collection;
mod error;
mod fence;
mod point;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use qdrant_client::qdrant::vector_input::Variant;
use qdrant_client::qdrant::{
    CountPoints, DeletePoints, DenseVector, Direction, Filter, GetPoints, OrderBy, QueryPoints, RetrievedPoint,
    ScrollPoints, Value, VectorInput, WithPayloadSelector,
};
use seawall_actors::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, FencedWrite, Health, Role, Stored,
};
use seawall_actors::operation::{Hit, Near, Search, Version};
use seawall_actors::record::{Key, Properties, Record};
use tokio::sync::OnceCell;
use tokio::time::timeout;

pub use self::settings::QdrantConfig;

use self::client::Client;
use self::error::{completed, judge, late};
use self::point::Head;
use super::Metric;
use super::vector::check_embedding;

/// Writes that go in one request of a drain. Each record may have a megabyte, and servers take some 32 in a request.
const MAX_BATCH: usize = 32;

/// A vector store on a Qdrant server, of version 1.16 or later.
///
/// It connects when it is asked the first time, and then makes the collection and its indexes if they are not there;
/// so a service starts without its Qdrant, and finds it when it comes. A collection that cannot be used is told by the
/// code `unfit_collection`, and by [`check`](Self::check) at once. One that has gone since is told by the code
/// `collection_missing` and not made again: an empty one would pass for one that holds what was acknowledged.
///
/// Records without an embedding are stored too, and never found by a search. An embedding of another dimension is a
/// permanent error with the code `wrong_dimension`, one with a component that is no number `not_finite`; a search near
/// a key without an embedding is one with the code `no_embedding`; a version from 2^53 on, which Qdrant cannot compare,
/// one with the code `version_too_high`.
pub struct QdrantBackend {
    name: BackendName,
    config: QdrantConfig,
    client: Client,
    prepared: OnceCell<()>,
}

impl QdrantBackend {
    /// The backend of this name on this server. Asks nothing of it.
    ///
    /// # Errors
    /// Permanent, with the code `settings`, when the settings cannot be used.
    pub fn new(name: impl Into<BackendName>, config: &QdrantConfig) -> Result<Self, BackendError> {
        let mut problems = Vec::new();
        config.problems("", &mut problems);
        if let Some(problem) = problems.first() {
            return Err(BackendError::permanent(problem.to_string()).with_code("settings"));
        }
        let client = Client::new(config)?;
        Ok(Self { name: name.into(), config: config.clone(), client, prepared: OnceCell::new() })
    }

    /// Connects, and makes the collection or sees whether it can be used. Nobody has to call this.
    ///
    /// # Errors
    /// With the code `unfit_collection` or `old_server` when a person has to change something, with `unreachable` when
    /// it may work later by itself.
    pub async fn check(&self) -> Result<(), BackendError> {
        self.within(async { Ok(()) }).await
    }

    /// Does this with a collection that is there, in time.
    fn within<'a, T: 'a>(
        &'a self,
        work: impl Future<Output = Result<T, BackendError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, BackendError>> {
        let prepared = async {
            self.prepared.get_or_try_init(|| collection::prepare(&self.client, &self.config)).await?;
            work.await
        };
        // In a box, for the futures of requests are large.
        let in_time = timeout(self.config.timeout, prepared.boxed());
        in_time.map(|done| done.unwrap_or_else(|_| Err(late(self.config.timeout)))).boxed()
    }

    /// The points of these keys, as far as there are any.
    async fn get(&self, keys: &[&Key], fields: WithPayloadSelector) -> Result<Vec<RetrievedPoint>, BackendError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let request = GetPoints {
            collection_name: self.config.collection.clone(),
            ids: keys.iter().map(|key| point::id(key)).collect(),
            with_payload: Some(fields),
            ..GetPoints::default()
        };
        Ok(self.client.points().get(request).await.map_err(|status| judge(&status))?.into_inner().result)
    }

    /// What is held under these keys, and whose write it is.
    async fn held(&self, keys: &[&Key]) -> Result<HashMap<Key, (Head, Stored)>, BackendError> {
        let found = self.get(keys, point::whole()).await?;
        let held = found.iter().map(|found| {
            let (key, head, stored) = point::decode(&found.payload)?;
            Ok((key, (head, stored)))
        });
        held.collect()
    }

    async fn newest(&self) -> Result<Version, BackendError> {
        let Some(high) = self.highest(point::VERSION_HIGH, None).await? else { return Ok(Version(0)) };
        let of_those = point::with_high(point::high(high));
        Ok(self.highest(point::VERSION_LOW, Some(of_those)).await?.unwrap_or(high))
    }

    /// The version of the point with the highest number in this field.
    async fn highest(&self, field: &str, among: Option<Filter>) -> Result<Option<Version>, BackendError> {
        let order = OrderBy { key: field.to_owned(), direction: Some(Direction::Desc.into()), ..OrderBy::default() };
        let request = ScrollPoints {
            collection_name: self.config.collection.clone(),
            filter: among,
            limit: Some(1),
            with_payload: Some(point::head()),
            order_by: Some(order),
            ..ScrollPoints::default()
        };
        let found = self.client.points().scroll(request).await.map_err(|status| judge(&status))?.into_inner();
        let highest = found.result.first().map(|found| point::decode_head(&found.payload)).transpose()?;
        Ok(highest.map(|(_, head)| head.version))
    }

    async fn nearest(&self, search: &Search) -> Result<Vec<Hit>, BackendError> {
        let (near, own) = match &search.near {
            Near::Embedding(embedding) => (embedding.clone(), None),
            Near::Key(key) => {
                let held = self.held(&[key]).await?.remove(key).and_then(|(_, stored)| stored.record);
                let embedding = held.and_then(|record| record.embedding);
                (embedding.ok_or_else(no_embedding)?, Some(key))
            }
        };
        check_embedding(&near, Some(self.config.dimension))?;
        let dense = DenseVector { data: point::components(&near) };
        let request = QueryPoints {
            collection_name: self.config.collection.clone(),
            query: Some(VectorInput { variant: Some(Variant::Dense(dense)) }.into()),
            using: Some(self.config.vector.clone()),
            filter: Some(point::filter(&search.filter, own)?),
            limit: Some(search.limit as u64),
            with_payload: Some(point::whole()),
            ..QueryPoints::default()
        };
        let found = self.client.points().query(request).await.map_err(|status| judge(&status))?.into_inner().result;
        let hits = found.iter().filter_map(|found| hit(&found.payload, self.nearness(found.score)).transpose());
        let mut hits = hits.collect::<Result<Vec<_>, _>>()?;
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.record.key.cmp(&b.record.key)));
        Ok(hits)
    }

    /// Of a distance, where Qdrant gives one.
    fn nearness(&self, score: f32) -> f32 {
        match self.config.distance {
            Metric::Cosine | Metric::Dot => score,
            Metric::Euclidean => 0.0 - score,
        }
    }

    async fn matching(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        let request = ScrollPoints {
            collection_name: self.config.collection.clone(),
            filter: Some(point::filter(filter, None)?),
            limit: Some(u32::try_from(limit).unwrap_or(u32::MAX)),
            with_payload: Some(point::whole()),
            ..ScrollPoints::default()
        };
        let found = self.client.points().scroll(request).await.map_err(|status| judge(&status))?.into_inner().result;
        found.iter().filter_map(|found| hit(&found.payload, 1.0).transpose()).collect()
    }
}

/// What was found, unless it was deleted meanwhile.
fn hit(payload: &HashMap<String, Value>, score: f32) -> Result<Option<Hit>, BackendError> {
    let (_, _, Stored { version, record }) = point::decode(payload)?;
    Ok(record.map(|record: Record| Hit { record, version, score, via: None }))
}

fn no_embedding() -> BackendError {
    BackendError::permanent("the record to search near has no embedding").with_code("no_embedding")
}

impl fmt::Debug for QdrantBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QdrantBackend").field("name", &self.name).field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for QdrantBackend {
    fn name(&self) -> BackendName {
        self.name.clone()
    }

    fn role(&self) -> Role {
        self.config.role
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { vector_search: true, exact_match: true, ..Capabilities::default() }
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        fence::admit(write, self.config.dimension)?;
        self.within(async { only(self.apply_fenced(&[write]).await) }).await
    }

    fn max_batch(&self) -> usize {
        MAX_BATCH
    }

    /// One request for all of them.
    async fn apply_batch(&self, writes: &[FencedWrite]) -> Result<Vec<Result<Applied, BackendError>>, BackendError> {
        let admitted: Vec<_> = writes.iter().map(|write| fence::admit(write, self.config.dimension)).collect();
        let sent: Vec<&FencedWrite> =
            writes.iter().zip(&admitted).filter(|(_, admitted)| admitted.is_ok()).map(|(write, _)| write).collect();
        let mut answers = self.within(async { told(self.apply_fenced(&sent).await) }).await?.into_iter();
        let answer = |admitted: Result<(), BackendError>| match admitted {
            Ok(()) => answers.next().unwrap_or_else(|| Err(late(self.config.timeout))),
            Err(error) => Err(error),
        };
        Ok(admitted.into_iter().map(answer).collect())
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        let wanted: Vec<&Key> = keys.iter().collect();
        let held = self.within(self.held(&wanted)).await?;
        Ok(keys.iter().map(|key| held.get(key).map(|(_, stored)| stored.clone())).collect())
    }

    async fn search(&self, search: &Search) -> Result<Vec<Hit>, BackendError> {
        // Qdrant does not take a limit of nothing.
        if search.limit == 0 {
            return Ok(Vec::new());
        }
        self.within(self.nearest(search)).await
    }

    async fn find(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        self.within(self.matching(filter, limit)).await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        self.within(collection::probe(&self.client, &self.config)).await
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.within(self.newest()).await
    }

    /// All at once: there is no way to delete some of what a condition says.
    async fn sweep(&self, older_than: Version, _at_most: usize) -> Result<usize, BackendError> {
        self.within(async {
            // The highest version of all is not forgotten, or it would be given out again.
            let below = older_than.min(self.newest().await?);
            let count = CountPoints {
                collection_name: self.config.collection.clone(),
                filter: Some(point::tombstones(below)),
                exact: Some(true),
                ..CountPoints::default()
            };
            let counted = self.client.points().count(count).await.map_err(|status| judge(&status))?.into_inner();
            let counted = counted.result.map_or(0, |result| result.count);
            let delete = DeletePoints {
                collection_name: self.config.collection.clone(),
                wait: Some(true),
                points: Some(point::tombstones(below).into()),
                ordering: Some(collection::strong()),
                ..DeletePoints::default()
            };
            let deleted = self.client.points().delete(delete).await.map_err(|status| judge(&status))?;
            completed(deleted.into_inner().result)?;
            Ok(usize::try_from(counted).unwrap_or(usize::MAX))
        })
        .await
    }
}

type Answers = Vec<Result<Applied, BackendError>>;

/// The answer to a single write.
fn only(answers: Answers) -> Result<Applied, BackendError> {
    answers.into_iter().next().unwrap_or_else(|| Ok(Applied::default()))
}

/// The answers, or the first error where there is nothing else: then it was the request that failed.
fn told(answers: Answers) -> Result<Answers, BackendError> {
    match answers.iter().find_map(|answer| answer.as_ref().err()) {
        Some(error) if answers.iter().all(Result::is_err) => Err(error.clone()),
        _ => Ok(answers),
    }
}

/// How long a server is to wait for a write: no longer than the caller.
fn server_timeout(timeout: Duration) -> u64 {
    timeout.as_secs().max(1)
}
