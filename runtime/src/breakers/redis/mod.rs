//! Breaker states in Redis, under the keys of document 003.
//!
//! ```text
//! load ── GET
//! save ── GET ── may it go over what is held? ── script: still that? then SET with its time to live
//! ```
//!
//! What may replace what is decided here and not in the script, which only compares bytes: Lua knows no whole number
//! beyond 2^53, and what others have put under the key is none of its business.

mod record;
mod settings;

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, Script};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use seawall_actors::backend::BackendName;
use seawall_actors::breaker::{BreakerStateStore, SavedBreaker, StoreError};

use crate::redis_connection::{Connection, Endpoint, Trouble};

pub use settings::RedisConfig;

/// Sets a key to `ARGV[3]`, for `ARGV[4]` ms if that is not empty, provided that it holds `ARGV[2]`, or nothing if
/// `ARGV[1]` is not 1.
const SWAP: &str = "
    local seen = ARGV[1] == '1' and ARGV[2]
    if redis.call('GET', KEYS[1]) ~= seen then return 0 end
    if ARGV[4] == '' then
        redis.call('SET', KEYS[1], ARGV[3])
    else
        redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
    end
    return 1";

/// How often a save begins anew because somebody else was faster.
const ROUNDS: usize = 4;

/// Breaker states in Redis. Nothing waits for it but a shutdown, for as long as [`RedisConfig::timeout`].
pub struct RedisStateStore {
    connection: Connection,
    prefix: String,
    reset_timeout: Box<dyn Fn(&BackendName) -> Duration + Send + Sync>,
    swap: Script,
}

impl RedisStateStore {
    /// A store on this Redis, to which it connects when it is asked the first time. What another implementation has
    /// saved of an open breaker tells when that was opened; `reset_timeout` gives how long it waits.
    ///
    /// # Errors
    /// [`StoreError::Failed`] when the configuration names no Redis.
    pub fn new(
        config: &RedisConfig,
        reset_timeout: impl Fn(&BackendName) -> Duration + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let endpoint = Endpoint {
            host: &config.host,
            port: config.port,
            db: config.db,
            username: config.username.as_deref(),
            password: config.password.as_ref(),
            tls: config.tls,
            tls_ca_file: config.tls_ca_file.as_deref(),
        };
        let connection = Connection::new(&endpoint, config.timeout);
        Ok(Self {
            connection: connection.map_err(|error| StoreError::Failed(Trouble::Refused(error).describe()))?,
            prefix: config.prefix.clone(),
            reset_timeout: Box::new(reset_timeout),
            swap: Script::new(SWAP),
        })
    }

    fn key(&self, backend: &BackendName) -> String {
        format!("{}:{backend}:state", self.prefix)
    }

    /// Does this on the connection.
    async fn run<'a, T>(
        &'a self,
        work: impl Fn(MultiplexedConnection) -> BoxFuture<'a, Result<T, RedisError>> + Send + Sync,
    ) -> Result<T, StoreError> {
        let done = self.connection.run(|_| ready(Ok(())).boxed(), work).await;
        done.map_err(|trouble| match trouble.is_late() {
            true => StoreError::Late(self.connection.timeout()),
            false => StoreError::Failed(trouble.describe()),
        })
    }

    fn decode(&self, backend: &BackendName, object: &[u8]) -> Result<SavedBreaker, StoreError> {
        record::decode(object, (self.reset_timeout)(backend), wall_clock())
    }

    async fn get(&self, mut connection: MultiplexedConnection, key: &str) -> Result<Option<Vec<u8>>, RedisError> {
        ::redis::cmd("GET").arg(key).query_async(&mut connection).await
    }

    /// What went wrong with the connection, or else with the record.
    async fn replace(
        &self,
        mut connection: MultiplexedConnection,
        backend: &BackendName,
        record: &SavedBreaker,
    ) -> Result<Result<(), StoreError>, RedisError> {
        let key = self.key(backend);
        let object = match record::encode(record, wall_clock()) {
            Ok(object) => object,
            Err(error) => return Ok(Err(error)),
        };
        let lives = record::time_to_live(record).map_or_else(String::new, |lives| lives.as_millis().to_string());
        for _ in 0..ROUNDS {
            let seen = self.get(connection.clone(), &key).await?;
            // What cannot be read is no newer record, and has to go.
            let held = seen.as_ref().and_then(|seen| self.decode(backend, seen).ok()).map(|held| held.sequence);
            if let Err(stale) = record.may_replace(held) {
                return Ok(Err(stale));
            }
            let mut swap = self.swap.key(&key);
            swap.arg(u8::from(seen.is_some())).arg(seen.unwrap_or_default()).arg(&object).arg(&lives);
            if swap.invoke_async(&mut connection).await? {
                return Ok(Ok(()));
            }
        }
        Ok(Err(StoreError::Failed("others save the same breaker all the time".to_owned())))
    }
}

#[async_trait]
impl BreakerStateStore for RedisStateStore {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        let key = self.key(backend);
        let key = key.as_str();
        let held = self.run(|connection| self.get(connection, key).boxed()).await?;
        held.map(|held| self.decode(backend, &held)).transpose()
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        let record = &record;
        self.run(|connection| self.replace(connection, backend, record).boxed()).await?
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// Time since the epoch.
#[expect(clippy::disallowed_methods, reason = "for `opened_at` alone, which is for others to read")]
fn wall_clock() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
