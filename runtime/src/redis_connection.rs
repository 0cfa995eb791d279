//! The one connection to a Redis that breaker states and the cache use, each its own.
//!
//! A connection on which anything went wrong is given up. The connection manager of the crate `redis` would keep one
//! that does not answer, and for ever the error of one that could not be set up for another reason than I/O.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError,
};
use tokio::time::timeout;

use crate::config::Secret;

/// Where a Redis is, and as whom to speak to it.
pub(crate) struct Endpoint<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) db: u16,
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a Secret>,
    pub(crate) tls: bool,
    #[cfg_attr(not(feature = "redis-tls"), expect(dead_code, reason = "refused before it is read"))]
    pub(crate) tls_ca_file: Option<&'a Path>,
}

/// A connection that is made when it is first used, shared by all who use it at the same time, and made anew after
/// it broke.
pub(crate) struct Connection {
    client: Client,
    timeout: Duration,
    held: Mutex<Option<MultiplexedConnection>>,
}

/// Why something was not done, or nobody knows whether it was.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// There was no connection: nothing was asked.
    Unreachable(RedisError),
    /// Redis answered that it will not.
    Refused(RedisError),
    /// It was asked, and the answer never came or was no answer.
    Lost(RedisError),
    /// The time is over; `asked` says whether there was a connection to ask on.
    Late { asked: bool },
}

impl Connection {
    /// # Errors
    /// When the endpoint cannot be one.
    pub(crate) fn new(endpoint: &Endpoint<'_>, timeout: Duration) -> Result<Self, RedisError> {
        let mut login = RedisConnectionInfo::default().set_db(endpoint.db.into()).set_skip_set_lib_name();
        if let Some(username) = endpoint.username {
            login = login.set_username(username);
        }
        if let Some(password) = endpoint.password {
            login = login.set_password(password.reveal());
        }
        let client = client(endpoint, login)?;
        Ok(Self { client, timeout, held: Mutex::new(None) })
    }

    /// How long anything may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Does this on a connection, in time. Once more on a new one if it went wrong on one that may have been lost
    /// since it was used last; so it must not matter whether it is done twice. `greet` is done first on every new
    /// connection.
    pub(crate) async fn run<'a, T>(
        &'a self,
        greet: impl Fn(MultiplexedConnection) -> BoxFuture<'a, Result<(), RedisError>> + Send + Sync,
        work: impl Fn(MultiplexedConnection) -> BoxFuture<'a, Result<T, RedisError>> + Send + Sync,
    ) -> Result<T, Trouble> {
        let mut asked = false;
        let result = timeout(self.timeout, async {
            let held = self.held().clone();
            if let Some(held) = held {
                asked = true;
                if let Ok(done) = self.keeping(held, &work).await {
                    return Ok(done);
                }
            }
            let connection = async {
                let connection = self.connect().await?;
                greet(connection.clone()).await.map(|()| connection)
            };
            // Had it been asked before on the one that broke, it may have done it.
            let connection = connection.await.map_err(|error| match asked {
                true if !answered(&error) => Trouble::Lost(error),
                _ if answered(&error) => Trouble::Refused(error),
                _ => Trouble::Unreachable(error),
            })?;
            asked = true;
            self.keeping(connection, &work)
                .await
                .map_err(|error| if answered(&error) { Trouble::Refused(error) } else { Trouble::Lost(error) })
        });
        match result.await {
            Ok(result) => result,
            Err(_) => {
                *self.held() = None;
                Err(Trouble::Late { asked })
            }
        }
    }

    /// Keeps the connection for the next one, or gives it up if the work failed on it.
    async fn keeping<'a, T>(
        &self,
        connection: MultiplexedConnection,
        work: &(impl Fn(MultiplexedConnection) -> BoxFuture<'a, Result<T, RedisError>> + Send + Sync),
    ) -> Result<T, RedisError> {
        let result = work(connection.clone()).await;
        *self.held() = result.is_ok().then_some(connection);
        result
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        self.client.get_multiplexed_async_connection_with_config(&limits).await
    }

    fn held(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trouble {
    /// What it was, without anything that the other side said: that may be anything.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Unreachable(error) | Self::Lost(error) if error.kind() == ErrorKind::Io => {
                format!("Redis cannot be reached: {error}")
            }
            Self::Unreachable(error) | Self::Lost(error) | Self::Refused(error) => match code(error) {
                Some(code) => format!("Redis refuses with {code}"),
                None => format!("Redis: {}", error.category()),
            },
            Self::Late { .. } => "Redis did not answer in time".to_owned(),
        }
    }

    /// The code of Redis, such as `NOAUTH`.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Unreachable(error) | Self::Lost(error) | Self::Refused(error) => code(error),
            Self::Late { .. } => None,
        }
    }

    /// Whether only the time was too short.
    pub(crate) fn is_late(&self) -> bool {
        match self {
            Self::Late { .. } => true,
            Self::Unreachable(error) | Self::Lost(error) => error.is_timeout(),
            Self::Refused(_) => false,
        }
    }
}

/// What is wrong with these settings of TLS, by their field.
pub(crate) fn tls_problem(tls: bool, tls_ca_file: Option<&Path>) -> Option<(&'static str, &'static str)> {
    if tls && cfg!(not(feature = "redis-tls")) {
        return Some(("tls", "needs the cargo feature `redis-tls`"));
    }
    (tls_ca_file.is_some() && !tls).then_some(("tls_ca_file", "is of no use without `tls`; set it too"))
}

/// Whether this is an answer of the other side, which then did not do it.
fn answered(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed)
}

fn code(error: &RedisError) -> Option<&str> {
    error.code().filter(|code| code.len() <= 16 && code.bytes().all(|byte| byte.is_ascii_uppercase()))
}

#[cfg(not(feature = "redis-tls"))]
fn client(endpoint: &Endpoint<'_>, login: RedisConnectionInfo) -> Result<Client, RedisError> {
    if endpoint.tls {
        return Err((ErrorKind::InvalidClientConfig, "TLS needs the cargo feature `redis-tls`").into());
    }
    let address = ConnectionAddr::Tcp(endpoint.host.to_owned(), endpoint.port);
    Client::open(address.into_connection_info()?.set_redis_settings(login))
}

#[cfg(feature = "redis-tls")]
fn client(endpoint: &Endpoint<'_>, login: RedisConnectionInfo) -> Result<Client, RedisError> {
    let (host, port) = (endpoint.host.to_owned(), endpoint.port);
    if !endpoint.tls {
        return Client::open(ConnectionAddr::Tcp(host, port).into_connection_info()?.set_redis_settings(login));
    }
    // A process with none, or with two built in, has no default, and rustls would panic. Whoever was first has it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let address = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
    let root_cert = endpoint.tls_ca_file.map(std::fs::read).transpose()?;
    let certificates = redis::TlsCertificates { client_tls: None, root_cert };
    Client::build_with_tls(address.into_connection_info()?.set_redis_settings(login), certificates)
}
