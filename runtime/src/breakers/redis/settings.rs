//! Where Redis is.

use std::path::PathBuf;
use std::time::Duration;

use seawall_actors::config::{ConfigProblem, check_range};
use serde::{Deserialize, Serialize};

use crate::config::Secret;
use crate::redis_connection::tls_problem;

/// Keeps the state of breakers in Redis instead of in the data directory (document 003).
///
/// Without [`tls`](Self::tls) the connection is not encrypted: give a Redis on this machine or in a network that you
/// trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// Whether it is used. Default `false` (document 003).
    pub enabled: bool,
    /// The name or address of the machine. Default `localhost` (document 003).
    pub host: String,
    /// The port. Default 6379 (document 003).
    pub port: u16,
    /// The number of the database. Default 0 (document 003).
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
    /// What the keys begin with: `circuit_breaker:{name}:state`. Default `circuit_breaker` (document 003). Services
    /// that share a database and have backends of the same name need different ones, or each of them takes over
    /// what the other knows.
    pub prefix: String,
    /// How long a load or a save may take, with connecting. Default 1 s, range 10 ms to 4 s. No call, and no start,
    /// waits for it; a shutdown does, once for each breaker.
    #[serde(with = "seawall_actors::config::seconds")]
    pub timeout: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            host: "localhost".to_owned(),
            port: 6_379,
            db: 0,
            username: None,
            password: None,
            tls: false,
            tls_ca_file: None,
            prefix: "circuit_breaker".to_owned(),
            timeout: Duration::from_secs(1),
        }
    }
}

impl RedisConfig {
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
        check_range(path, "timeout", self.timeout, Duration::from_millis(10)..=Duration::from_secs(4), problems);
    }
}
