//! A best-effort cache in Redis (document 002): told of every write, asked when the stores cannot answer, and missed
//! by nobody when it is gone.
//!
//! ```text
//! apply ── one script: fence, change and lives of all keys in one step
//! read ─── one script: every record and fence at one instant ── may it still be answered? ── else a miss
//! ```
//!
//! What it answers is never older than what it was told: a key whose write failed, or was not waited for, is a miss
//! until a later write of it succeeds (`told`). After a restart of Redis, which may have lost writes that it had
//! acknowledged, everything that was told before is a miss, but for the newest.

mod rows;
mod settings;
mod told;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, cmd};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use seawall_actors::backend::{
    Applied, Backend, BackendError, BackendName, ErrorKind, Fence, FencedWrite, Health, Role, Stored,
};
use seawall_actors::operation::{Change, OperationId, Version};
use seawall_actors::record::{Key, Record};

use crate::redis_connection::{Connection, Trouble};
use rows::{Row, Rows};
use told::Told;

pub use settings::RedisCacheConfig;

/// A best-effort cache in Redis (document 002).
///
/// As a [`Backend`] it is told of every write of a runtime, behind a breaker as every backend. By itself it is a cache
/// whose failure nobody has to handle: [`store`](Self::store), [`get`](Self::get) and [`invalidate`](Self::invalidate)
/// say what was not done and give no error, within [`RedisCacheConfig::timeout`].
///
/// A merge into a record that it does not hold is a miss afterwards and not a record of its own: what the rest of
/// the record is, only the stores know. It needs one Redis and not a cluster: the keys of a write are changed in one
/// step.
pub struct RedisCacheBackend {
    name: BackendName,
    connection: Connection,
    rows: Rows,
    told: Mutex<Told>,
    /// The run of the server that was spoken to last.
    run: Mutex<Option<String>>,
}

/// What became of a record that was to be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStore {
    /// It is in the cache.
    Stored,
    /// The cache knows of something newer.
    Superseded,
    /// The cache could not be asked in time. A `get` of this key is a miss until a later store of it succeeds.
    Skipped,
}

impl RedisCacheBackend {
    /// A cache in this Redis, to which it connects when it is asked the first time.
    ///
    /// # Errors
    /// [`ErrorKind::Permanent`] when the settings name no Redis, or a file of certificates that cannot be used.
    pub fn new(name: impl Into<BackendName>, config: &RedisCacheConfig) -> Result<Self, BackendError> {
        let connection = Connection::new(&config.endpoint(), config.timeout)
            .map_err(|error| BackendError::permanent(Trouble::Refused(error).describe()))?;
        let (told, run) = (Mutex::default(), Mutex::default());
        Ok(Self { name: name.into(), connection, rows: Rows::new(config), told, run })
    }

    /// Keeps this version of a record, unless the cache knows of a newer one.
    pub async fn store(&self, record: Record, version: Version) -> CacheStore {
        let changes = [Change::put(record)].into();
        let write = FencedWrite { operation: OperationId::generate(), version, fence: Fence::Write, changes };
        match self.apply(&write).await {
            Ok(Applied { superseded_by: Some(newer) }) if newer > version => CacheStore::Superseded,
            Ok(_) => CacheStore::Stored,
            Err(error) => {
                tracing::debug!(backend = %self.name, %error, "store skipped");
                CacheStore::Skipped
            }
        }
    }

    /// The record that is cached under this key, with its version. `None` is a miss: there is none, or it was
    /// deleted, or the cache could not be asked, or it does not know the newest that it was told.
    pub async fn get(&self, key: &Key) -> Option<(Record, Version)> {
        match self.read(std::slice::from_ref(key)).await {
            Ok(stored) => {
                let Stored { version, record } = stored.into_iter().next().flatten()?;
                record.map(|record| (record, version))
            }
            Err(error) => {
                tracing::debug!(backend = %self.name, %error, "get missed");
                None
            }
        }
    }

    /// Forgets what is cached under these keys, and gives how many records that were: 0 as well when the cache could
    /// not be asked. Each of them is a miss until something newer is stored, also then.
    pub async fn invalidate(&self, keys: &[Key]) -> u64 {
        {
            let mut told = self.told();
            keys.iter().for_each(|key| told.invalidate(key));
        }
        if keys.is_empty() {
            return 0;
        }
        let forget = &self.rows.invalidate(keys);
        let forgotten = self.run(|mut redis| async move { forget.query_async(&mut redis).await }.boxed()).await;
        forgotten.unwrap_or_else(|error| {
            tracing::debug!(backend = %self.name, %error, "invalidate skipped");
            0
        })
    }

    async fn run<'a, T>(
        &'a self,
        work: impl Fn(MultiplexedConnection) -> BoxFuture<'a, Result<T, RedisError>> + Send + Sync,
    ) -> Result<T, BackendError> {
        self.connection.run(|redis| self.greet(redis).boxed(), work).await.map_err(|trouble| classify(&trouble))
    }

    /// Sees to it that a server that was restarted, and may have lost something, is not taken at its word.
    async fn greet(&self, mut redis: MultiplexedConnection) -> Result<(), RedisError> {
        let info: Result<String, RedisError> = cmd("INFO").arg("server").query_async(&mut redis).await;
        let run = match info {
            Ok(info) => info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::to_owned),
            Err(error) if error.is_io_error() => return Err(error),
            // It is not told to everyone. Then any connection may be to another run.
            Err(_) => None,
        };
        let known = std::mem::replace(&mut *self.run.lock().unwrap_or_else(PoisonError::into_inner), run.clone());
        if run.is_none() || known.is_some_and(|known| Some(known) != run) {
            self.told().forget_all();
        }
        Ok(())
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RedisCacheBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCacheBackend").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for RedisCacheBackend {
    fn name(&self) -> BackendName {
        self.name.clone()
    }

    fn role(&self) -> Role {
        Role::BestEffort
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        // First: the caller may not wait for the end.
        self.told().begin(write);
        let script = &self.rows.apply(write)?;
        let newer: Vec<u8> = self.run(|mut redis| async move { script.invoke_async(&mut redis).await }.boxed()).await?;
        let superseded_by = (!newer.is_empty()).then(|| rows::version_of(&newer)).transpose()?;
        self.told().done(write);
        Ok(Applied { superseded_by })
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let script = &self.rows.read(keys);
        let rows: Vec<Row> = self.run(|mut redis| async move { script.invoke_async(&mut redis).await }.boxed()).await?;
        let held: Result<Vec<_>, _> = keys.iter().zip(rows).map(|(key, row)| rows::decode(key, row)).collect();
        let (mut held, told) = (held?, self.told());
        for (key, held) in keys.iter().zip(&mut held) {
            held.take_if(|stored| !told.allows(key, stored.version));
        }
        Ok(held)
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        let write = &cmd("SET").arg(self.rows.probe()).arg(1).arg("PX").arg(60_000).clone();
        let written = self.run(|mut redis| async move { write.query_async::<()>(&mut redis).await }.boxed()).await;
        match written {
            Ok(()) => Ok(Health::Healthy),
            Err(error) if error.kind == ErrorKind::ReadOnly => Ok(Health::ReadOnly),
            Err(error) => Err(error),
        }
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        let get = &cmd("GET").arg(self.rows.newest()).clone();
        let newest: Option<Vec<u8>> =
            self.run(|mut redis| async move { get.query_async(&mut redis).await }.boxed()).await?;
        rows::version_of(&newest.unwrap_or_default())
    }
}

/// What the runtime is to make of it.
fn classify(trouble: &Trouble) -> BackendError {
    let code = trouble.code().map(str::to_owned);
    let kind = match (trouble, code.as_deref()) {
        (Trouble::Unreachable(_) | Trouble::Late { asked: false }, _) => ErrorKind::Transient,
        (Trouble::Lost(_) | Trouble::Late { asked: true }, _) => ErrorKind::Unknown,
        (_, Some("LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN")) => ErrorKind::Refused,
        (_, Some("READONLY" | "MISCONF" | "OOM" | "NOREPLICAS")) => ErrorKind::ReadOnly,
        (_, Some("WRONGTYPE" | "CROSSSLOT")) => ErrorKind::Permanent,
        // A password, a right: it is for a person to put right, and no write is the worse for it.
        (Trouble::Refused(_), _) => ErrorKind::Transient,
    };
    let error = BackendError::new(kind, trouble.describe());
    match code {
        Some(code) => error.with_code(code),
        None => error,
    }
}
