//! Breaker states in Redis, under the keys of document 003.
//!
//! ```text
//! load ── GET
//! save ── GET ── may it go over what is held? ── script: still that? then SET with its time to live
//! ```
//!
//! What may replace what is decided here and not in the script, which only compares bytes: Lua knows no whole number
//! beyond 2^53, and what others have put under the key is none of its business.
//!
//! A connection on which anything went wrong is given up. The connection manager of the crate `redis` would keep one
//! that does not answer, and for ever the error of one that could not be set up for another reason than I/O.

mod record;
mod settings;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    Script,
};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use seawall_actors::backend::BackendName;
use seawall_actors::breaker::{BreakerStateStore, SavedBreaker, StoreError};
use tokio::time::timeout;

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
    client: Client,
    prefix: String,
    timeout: Duration,
    reset_timeout: Box<dyn Fn(&BackendName) -> Duration + Send + Sync>,
    swap: Script,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Why something did not work on a connection.
enum Failure {
    Redis(RedisError),
    Store(StoreError),
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
        let mut login = RedisConnectionInfo::default().set_db(config.db.into()).set_skip_set_lib_name();
        if let Some(username) = &config.username {
            login = login.set_username(username);
        }
        if let Some(password) = &config.password {
            login = login.set_password(password.reveal());
        }
        let address = ConnectionAddr::Tcp(config.host.clone(), config.port);
        let client = address.into_connection_info().and_then(|info| Client::open(info.set_redis_settings(login)));
        Ok(Self {
            client: client.map_err(|error| self::failed(&error))?,
            prefix: config.prefix.clone(),
            timeout: config.timeout,
            reset_timeout: Box::new(reset_timeout),
            swap: Script::new(SWAP),
            connection: Mutex::new(None),
        })
    }

    fn key(&self, backend: &BackendName) -> String {
        format!("{}:{backend}:state", self.prefix)
    }

    /// Does this on a connection, in time. Once more on a new one if it went wrong on one that may have been lost
    /// since it was used last; so it must not matter whether it is done twice.
    async fn on_connection<'a, T>(
        &'a self,
        work: impl Fn(MultiplexedConnection) -> BoxFuture<'a, Result<T, Failure>> + Send + Sync,
    ) -> Result<T, StoreError> {
        let result = timeout(self.timeout, async {
            let held = self.connection().clone();
            if let Some(held) = held
                && let Ok(done) = self.keeping(held, &work).await?
            {
                return Ok(done);
            }
            let connection = self.connect().await?;
            self.keeping(connection, &work).await?.map_err(Failure::Redis)
        });
        match result.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Failure::Store(error))) => Err(error),
            Ok(Err(Failure::Redis(error))) if error.is_timeout() => Err(StoreError::Late(self.timeout)),
            Ok(Err(Failure::Redis(error))) => Err(failed(&error)),
            Err(_) => {
                *self.connection() = None;
                Err(StoreError::Late(self.timeout))
            }
        }
    }

    /// Keeps the connection for the next one, or gives it up if the work failed on it.
    async fn keeping<'a, T>(
        &self,
        connection: MultiplexedConnection,
        work: &(impl Fn(MultiplexedConnection) -> BoxFuture<'a, Result<T, Failure>> + Send + Sync),
    ) -> Result<Result<T, RedisError>, Failure> {
        let result = work(connection.clone()).await;
        let failed = matches!(result, Err(Failure::Redis(_)));
        *self.connection() = (!failed).then_some(connection);
        match result {
            Err(Failure::Redis(error)) => Ok(Err(error)),
            result => result.map(Ok),
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        Ok(self.client.get_multiplexed_async_connection_with_config(&limits).await?)
    }

    fn connection(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decode(&self, backend: &BackendName, object: &[u8]) -> Result<SavedBreaker, StoreError> {
        record::decode(object, (self.reset_timeout)(backend), wall_clock())
    }

    async fn get(&self, mut connection: MultiplexedConnection, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        Ok(::redis::cmd("GET").arg(key).query_async(&mut connection).await?)
    }

    async fn replace(
        &self,
        mut connection: MultiplexedConnection,
        backend: &BackendName,
        record: &SavedBreaker,
    ) -> Result<(), Failure> {
        let key = self.key(backend);
        let object = record::encode(record, wall_clock()).map_err(Failure::Store)?;
        let lives = record::time_to_live(record).map_or_else(String::new, |lives| lives.as_millis().to_string());
        for _ in 0..ROUNDS {
            let seen = self.get(connection.clone(), &key).await?;
            // What cannot be read is no newer record, and has to go.
            let held = seen.as_ref().and_then(|seen| self.decode(backend, seen).ok()).map(|held| held.sequence);
            record.may_replace(held).map_err(Failure::Store)?;
            let mut swap = self.swap.key(&key);
            swap.arg(u8::from(seen.is_some())).arg(seen.unwrap_or_default()).arg(&object).arg(&lives);
            if swap.invoke_async(&mut connection).await? {
                return Ok(());
            }
        }
        Err(Failure::Store(StoreError::Failed("others save the same breaker all the time".to_owned())))
    }
}

#[async_trait]
impl BreakerStateStore for RedisStateStore {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        let key = self.key(backend);
        let key = key.as_str();
        let held = self.on_connection(|connection| self.get(connection, key).boxed()).await?;
        held.map(|held| self.decode(backend, &held)).transpose()
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        let record = &record;
        self.on_connection(|connection| self.replace(connection, backend, record).boxed()).await
    }

    fn is_remote(&self) -> bool {
        true
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

/// Says what kind of failure it was, and nothing that the other side said: that may be anything.
fn failed(error: &RedisError) -> StoreError {
    let code = error.code().filter(|code| code.len() <= 16 && code.bytes().all(|byte| byte.is_ascii_uppercase()));
    StoreError::Failed(match (error.kind(), code) {
        (ErrorKind::Io, _) => format!("Redis cannot be reached: {error}"),
        (_, Some(code)) => format!("Redis refuses with {code}"),
        _ => format!("Redis: {}", error.category()),
    })
}

/// Time since the epoch.
#[expect(clippy::disallowed_methods, reason = "for `opened_at` alone, which is for others to read")]
fn wall_clock() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
