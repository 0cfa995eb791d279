//! Where Qdrant is, and what the collection is like.

use std::path::PathBuf;
use std::time::Duration;

use seawall_actors::backend::Role;
use seawall_actors::config::{ConfigProblem, check_range};
use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

use crate::backends::Metric;
use crate::config::Secret;

/// A collection of a Qdrant server as a backend: `[backends.NAME.qdrant]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QdrantConfig {
    /// Where its gRPC is, with the port. Default `http://localhost:6334`. With `https://` the connection is encrypted
    /// and the server has to prove its name; without, everything can be read on the way, the key too.
    pub url: String,
    /// The key that the server wants. Default `None`.
    pub api_key: Option<Secret>,
    /// A file of certificates in PEM, in place of those that the system trusts. Default `None`. For `https://` only.
    pub tls_ca_file: Option<PathBuf>,
    /// The collection. Made when it is not there. Default `seawall`. It must be this service's alone: versions of two
    /// runtimes do not compare.
    pub collection: String,
    /// What the vector in the collection is called. Default `embedding`. It has a name so that a record without an
    /// embedding can be stored too.
    pub vector: String,
    /// Dimensions of every embedding, 1 to 65 536. Must be set. A collection of another dimension is not used.
    pub dimension: usize,
    /// How near is measured. Default [`Metric::Cosine`]. A collection that measures otherwise is not used.
    pub distance: Metric,
    /// Whether writes need it. Default: they do.
    pub role: Role,
    /// How long a call may take. Default 5 s, range 10 ms to 1 h; give it less than `call.timeout`, which cuts off the
    /// same calls and knows less about them.
    #[serde(with = "seawall_actors::config::seconds")]
    pub timeout: Duration,
    /// How long connecting may take, of that. Default 2 s, range 10 ms to `timeout`. What fails for this was not sent.
    #[serde(with = "seawall_actors::config::seconds")]
    pub connect_timeout: Duration,
}

impl Default for QdrantConfig {
    fn default() -> Self {
        Self {
            url: "http://localhost:6334".to_owned(),
            api_key: None,
            tls_ca_file: None,
            collection: "seawall".to_owned(),
            vector: "embedding".to_owned(),
            dimension: 0,
            distance: Metric::default(),
            role: Role::default(),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
        }
    }
}

impl QdrantConfig {
    /// Adds everything that is wrong with these values, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let mut wrong = |field: &str, problem: &str| problems.push(ConfigProblem::new(path, field, problem));
        if let Some(problem) = self.url_problem() {
            wrong("url", problem);
        }
        match self.api_key.as_ref().map(Secret::reveal) {
            Some("") => wrong("api_key", "is empty; leave it out where there is none"),
            Some(key) if !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                wrong("api_key", "has characters that no key has: spaces, or what is not ASCII");
            }
            _ => {}
        }
        if self.tls_ca_file.is_some() && !self.is_encrypted() {
            wrong("tls_ca_file", "needs a `url` that begins with https://");
        }
        let forbidden = |c: char| c.is_control() || "<>:\"/\\|?*".contains(c);
        if !(1..=255).contains(&self.collection.len()) || self.collection.contains(forbidden) {
            wrong("collection", "must be 1 to 255 bytes long, without any of < > : \" / \\ | ? *");
        }
        if !(1..=255).contains(&self.vector.len()) || self.vector.contains(forbidden) {
            wrong("vector", "must be 1 to 255 bytes long, without any of < > : \" / \\ | ? *");
        }
        if !(1..=65_536).contains(&self.dimension) {
            wrong("dimension", "must be set, to the dimensions of your embeddings: 1 to 65536");
        }
        let least = Duration::from_millis(10);
        check_range(path, "timeout", self.timeout, least..=Duration::from_secs(3_600), problems);
        check_range(path, "connect_timeout", self.connect_timeout, least..=self.timeout.max(least), problems);
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.url.starts_with("https://")
    }

    fn url_problem(&self) -> Option<&'static str> {
        let Ok(uri) = self.url.parse::<Uri>() else { return Some("is no URL; write http://HOST:PORT") };
        match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) if authority.as_str().contains('@') => {
                Some("has a user or password in it, which Qdrant does not know; set `api_key`")
            }
            (Some("http" | "https"), Some(authority)) if authority.host().is_empty() => Some("names no machine"),
            (Some("http" | "https"), Some(authority)) if authority.port().is_none() => {
                Some("has no port; the gRPC of Qdrant is usually at 6334")
            }
            (Some("http" | "https"), Some(_)) => None,
            _ => Some("must begin with http:// or https://"),
        }
    }
}
