//! Where the Redis of a cache is, and for how long it keeps things.

use std::path::PathBuf;
use std::time::Duration;

use seawall_actors::config::{ConfigProblem, check_range};
use serde::{Deserialize, Serialize};

use crate::config::Secret;
use crate::redis_connection::{Endpoint, tls_problem};

/// A best-effort cache in Redis (document 002): `[backends.NAME.redis_cache]`.
///
/// Without [`tls`](Self::tls) the connection is not encrypted: give a Redis on this machine or in a network that you
/// trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisCacheConfig {
    /// The name or address of the machine. Default `localhost`.
    pub host: String,
    /// The port. Default 6379.
    pub port: u16,
    /// The number of the database. Default 0.
    pub db: u16,
    /// The user, where Redis has users. Default `None`: the one that is called `default`.
    pub username: Option<String>,
    /// The password. Default `None`.
    pub password: Option<Secret>,
    /// Whether the connection is encrypted and the server has to prove its name (cargo feature `redis-tls`). Default
    /// `false`.
    pub tls: bool,
    /// A file of certificates in PEM, in place of those that the system trusts. Default `None`.
    pub tls_ca_file: Option<PathBuf>,
    /// What the keys begin with: `seawall:cache:{key}`. Default `seawall:cache`. Services that share a database and
    /// not their records need different ones: versions of two runtimes do not compare.
    pub prefix: String,
    /// How long a call may take, with connecting. Default 100 ms, range 1 ms to 4 s: what takes longer than asking
    /// the store is no cache.
    #[serde(with = "seawall_actors::config::seconds")]
    pub timeout: Duration,
    /// How long a record is kept after it was stored. Default 1 h, range 1 s to 30 d. Nothing that the cache was never
    /// told of stays wrong in it for longer.
    #[serde(with = "seawall_actors::config::seconds")]
    pub ttl: Duration,
    /// How long it is remembered that a record was deleted. Default 24 h, range [`ttl`](Self::ttl) to 90 d: longer
    /// than any write may be on its way, or that write brings the record back until its own `ttl` is over.
    #[serde(with = "seawall_actors::config::seconds")]
    pub tombstone_ttl: Duration,
}

impl Default for RedisCacheConfig {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 6_379,
            db: 0,
            username: None,
            password: None,
            tls: false,
            tls_ca_file: None,
            prefix: "seawall:cache".to_owned(),
            timeout: Duration::from_millis(100),
            ttl: Duration::from_secs(3_600),
            tombstone_ttl: Duration::from_secs(24 * 3_600),
        }
    }
}

impl RedisCacheConfig {
    /// Adds everything that is wrong with these values, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let mut wrong = |field: &str, problem: &str| problems.push(ConfigProblem::new(path, field, problem));
        if self.host.is_empty() {
            wrong("host", "is empty; name a machine");
        }
        if self.port == 0 {
            wrong("port", "is 0; Redis is usually at 6379");
        }
        if self.password.as_ref().is_some_and(|password| password.reveal().is_empty()) {
            wrong("password", "is empty; leave it out where there is none");
        }
        if self.username.is_some() && self.password.is_none() {
            wrong("username", "has no password; set it too");
        }
        if let Some((field, problem)) = tls_problem(self.tls, self.tls_ca_file.as_deref()) {
            wrong(field, problem);
        }
        if !(1..=128).contains(&self.prefix.len()) {
            wrong("prefix", "must be 1 to 128 bytes long");
        }
        let day = Duration::from_secs(24 * 3_600);
        check_range(path, "timeout", self.timeout, Duration::from_millis(1)..=Duration::from_secs(4), problems);
        check_range(path, "ttl", self.ttl, Duration::from_secs(1)..=30 * day, problems);
        check_range(path, "tombstone_ttl", self.tombstone_ttl, self.ttl..=90 * day, problems);
    }

    pub(super) fn endpoint(&self) -> Endpoint<'_> {
        Endpoint {
            host: &self.host,
            port: self.port,
            db: self.db,
            username: self.username.as_deref(),
            password: self.password.as_ref(),
            tls: self.tls,
            tls_ca_file: self.tls_ca_file.as_deref(),
        }
    }
}
