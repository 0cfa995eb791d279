//! Where Neo4j is, and how it is spoken to.

use std::path::PathBuf;
use std::time::Duration;

use seawall_actors::backend::Role;
use seawall_actors::config::{ConfigProblem, check_range};
use serde::{Deserialize, Serialize};

use crate::config::Secret;

/// Records in Neo4j: `[backends.NAME.neo4j]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Neo4jConfig {
    /// One server: `bolt://HOST:PORT`, not encrypted; `bolt+s://` encrypted, and the server has to prove its name;
    /// `bolt+ssc://` encrypted, whoever it is. Of a cluster, the leader: nothing is routed. Default
    /// `bolt://localhost:7687`.
    pub uri: String,
    /// The user. Default `neo4j`.
    pub user: String,
    /// The password. Default `None`, for a server that asks for none.
    pub password: Option<Secret>,
    /// The database. Default `None`: the one that the server has made the user's.
    pub database: Option<String>,
    /// Whether writes need it. Default: they do.
    pub role: Role,
    /// The label of all nodes that are Seawall's. Default `Record`, up to 64 ASCII letters, digits and `_`. Services
    /// that share a database and not their records need different ones.
    pub label: String,
    /// How many connections there are at the most. Default 16, range 1 to 1000. A call has one to itself; who finds
    /// none waits for [`connect_timeout`](Self::connect_timeout) and is refused.
    pub max_connections: usize,
    /// How long a call may wait before anything is asked: for a connection, and for the server to take it up (TCP,
    /// TLS, version, login, begin of the transaction). Default 5 s, range 10 ms to 60 s. Shorter than
    /// `call.timeout`, so that a server that hangs is known not to have done anything.
    #[serde(with = "seawall_actors::config::seconds")]
    pub connect_timeout: Duration,
    /// A file of certificates in PEM that may have signed the server's, in place of those that the system trusts.
    /// For `bolt+s://`. Default `None`.
    pub tls_ca_file: Option<PathBuf>,
    /// A certificate in PEM by which the server knows this client. Default `None`.
    pub tls_client_certificate: Option<PathBuf>,
    /// The key of that certificate, in PEM. Default `None`.
    pub tls_client_key: Option<PathBuf>,
}

impl Default for Neo4jConfig {
    fn default() -> Self {
        Self {
            uri: "bolt://localhost:7687".to_owned(),
            user: "neo4j".to_owned(),
            password: None,
            database: None,
            role: Role::Required,
            label: "Record".to_owned(),
            max_connections: 16,
            connect_timeout: Duration::from_secs(5),
            tls_ca_file: None,
            tls_client_certificate: None,
            tls_client_key: None,
        }
    }
}

impl Neo4jConfig {
    /// Adds everything that is wrong with these values, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let mut wrong = |field: &str, problem: &str| problems.push(ConfigProblem::new(path, field, problem));
        if let Some(problem) = self.uri_problem() {
            wrong("uri", problem);
        }
        if self.user.is_empty() {
            wrong("user", "is empty; name one (any will do where the server asks for no password)");
        }
        if self.password.as_ref().is_some_and(|password| password.reveal().is_empty()) {
            wrong("password", "is empty; leave it out where there is none");
        }
        if self.database.as_ref().is_some_and(String::is_empty) {
            wrong("database", "is empty; leave it out for the default of the server");
        }
        // It is a part of the statements, where nothing but a plain name is safe.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !(1..=64).contains(&self.label.len())
            || !self.label.bytes().all(plain)
            || self.label.starts_with(|first: char| first.is_ascii_digit())
        {
            wrong("label", "must be 1 to 64 ASCII letters, digits and `_`, and not begin with a digit");
        }
        if !(1..=1_000).contains(&self.max_connections) {
            wrong("max_connections", "must be 1 to 1000");
        }
        if self.tls_ca_file.is_some() && !self.uri.starts_with("bolt+s://") {
            wrong("tls_ca_file", "is of no use unless `uri` begins with `bolt+s://`");
        }
        if self.tls_client_certificate.is_some() != self.tls_client_key.is_some() {
            wrong("tls_client_key", "and `tls_client_certificate` are of no use without each other; set both");
        }
        if self.tls_client_certificate.is_some() && !self.encrypted() {
            wrong("tls_client_certificate", "is of no use unless `uri` begins with `bolt+s://` or `bolt+ssc://`");
        }
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(60));
        check_range(path, "connect_timeout", self.connect_timeout, least..=most, problems);
    }

    /// What is wrong with the URI, without repeating it: somebody may have put a password into it.
    fn uri_problem(&self) -> Option<&'static str> {
        let Some((scheme, place)) = self.uri.split_once("://") else {
            return Some("names no protocol; write `bolt://HOST:PORT`");
        };
        match scheme {
            "bolt" | "bolt+s" | "bolt+ssc" => {}
            "neo4j" | "neo4j+s" | "neo4j+ssc" => {
                return Some("asks for routing, which there is none of; name one server with `bolt://`");
            }
            _ => return Some("must begin with `bolt://`, `bolt+s://` or `bolt+ssc://`"),
        }
        if place.contains('@') {
            return Some("holds a user; set `user` and `password` instead");
        }
        let plain = !place.is_empty() && !place.contains(|c: char| "/?#\\".contains(c) || c.is_whitespace());
        (!plain).then_some("must end with the port; name the database in `database`")
    }

    pub(super) fn encrypted(&self) -> bool {
        !self.uri.starts_with("bolt://")
    }
}
