//! The configuration: one section per actor, from defaults, a TOML file and the environment.
//!
//! Sources, each over the one before it:
//!
//! 1. the defaults of the sections;
//! 2. a TOML file: `[breaker]`, `failure_threshold = 5`;
//! 3. the variables of document 004, as below;
//! 4. `SEAWALL__SECTION__KEY`: `SEAWALL__BREAKER__FAILURE_THRESHOLD=5` sets `breaker.failure_threshold`,
//!    `SEAWALL__BACKENDS__GRAPH__BREAKER__FAILURE_THRESHOLD=3` that of the backend `graph` (which is in small
//!    letters here). A list is given as JSON: `["a", "b"]`.
//!
//! | variable | sets |
//! |---|---|
//! | `CIRCUIT_FAILURE_THRESHOLD` | `breaker.failure_threshold` |
//! | `CIRCUIT_SUCCESS_THRESHOLD` | `breaker.success_threshold` |
//! | `CIRCUIT_TIMEOUT` (seconds) | `breaker.reset_timeout` |
//! | `FALLBACK_MODE` | the mode below level 0 |
//! | `FALLBACK_DB_PATH` | `data_dir`, a directory here |
//! | `FALLBACK_CACHE_DIR` | nothing, with a warning: the cache is in memory |
//! | `ENABLE_CIRCUIT_BREAKER_PERSISTENCE` | `redis.enabled`. Breaker state is always kept: in `data_dir` when it is off, which is told in a warning |
//! | `REDIS_HOST`, `REDIS_PORT`, `REDIS_DB`, `REDIS_PASSWORD` | when that is on: `redis.host`, `.port`, `.db`, `.password`. Else they are the service's own |
//!
//! Without the cargo feature `redis` there is no section `redis`: breaker state is in `data_dir`, and the last five
//! variables are warnings that say so.
//!
//! `[backends.NAME.neo4j]`, `[backends.NAME.qdrant]` and `[backends.NAME.redis_cache]` make the backend of this name from
//! these settings, unless the runtime is given one.
//!
//! `saga.max_retries` of document 000 is `call.retry.max_retries` here, and known by both names.
//!
//! Durations are `"60s"`, `"250ms"`, or a number of seconds. An empty variable counts as not set. Unknown keys and
//! unknown `SEAWALL__` variables are refused, and everything that is wrong is told at once.

mod load;
mod names;
#[cfg(test)]
#[cfg(feature = "redis")]
mod redis_tests;
mod secret;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use seawall_actors::backend::BackendName;
use seawall_actors::breaker::BreakerConfig;
use seawall_actors::call::CallConfig;
use seawall_actors::config::ConfigProblem;
use seawall_actors::fallback::FallbackConfig;
use seawall_actors::gateway::GatewayConfig;
use seawall_actors::health::HealthConfig;
use seawall_actors::journal::QueueConfig;
use seawall_actors::limits::Limits;
use seawall_actors::saga::SagaConfig;
use seawall_actors::supervisor::RestartConfig;
use seawall_actors::sync::SyncConfig;
use serde::{Deserialize, Serialize};

#[cfg(feature = "neo4j")]
pub use crate::backends::Neo4jConfig;
#[cfg(feature = "qdrant")]
pub use crate::backends::QdrantConfig;
#[cfg(feature = "redis")]
pub use crate::backends::RedisCacheConfig;
#[cfg(feature = "redis")]
pub use crate::breakers::RedisConfig;
use crate::journal::JournalConfig;
use crate::telemetry::MetricsConfig;
use load::Tree;
use names::Environment;
pub use secret::Secret;

/// The configuration of a runtime.
///
/// Read it with [`load`](Self::load), or start from [`Config::default`] and set what differs; a runtime
/// [validates](Self::validate) what it is given.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Where everything durable is kept: the journal and the breaker states. One runtime owns it at a time; it is
    /// made when it is not there. A leading `~` is the home directory. Default `seawall-data`, in the directory
    /// that the process runs in.
    pub data_dir: PathBuf,
    /// How many requests are let in, and how long they may take.
    pub gateway: GatewayConfig,
    /// What a request may ask for.
    pub limits: Limits,
    /// How much may be owed.
    pub queue: QueueConfig,
    /// How the journal uses the disk.
    pub journal: JournalConfig,
    /// When a backend is left alone, and when it is tried again.
    pub breaker: BreakerConfig,
    /// How a backend is called: for how long, how often again, how many calls at the same time.
    pub call: CallConfig,
    /// How writes are carried to the backends.
    pub saga: SagaConfig,
    /// What is done when not everything works.
    pub fallback: FallbackConfig,
    /// How backends are given what they owe.
    pub sync: SyncConfig,
    /// How often actors are restarted before the runtime gives up.
    pub supervisor: RestartConfig,
    /// How backends are probed.
    pub health: HealthConfig,
    /// Where the metrics go.
    pub metrics: MetricsConfig,
    /// Whether breaker states are kept in Redis, and where it is.
    #[cfg(feature = "redis")]
    pub redis: RedisConfig,
    /// What differs for single backends, by their names. A backend that is not here is as all are.
    pub backends: BTreeMap<String, BackendConfig>,
}

/// What differs for one backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendConfig {
    /// Its breaker. What a file or the environment leaves out is as in [`Config::breaker`].
    pub breaker: BreakerConfig,
    /// How it is called. What a file or the environment leaves out is as in [`Config::call`].
    pub call: CallConfig,
    /// A store in Neo4j. A runtime that is given no backend of this name makes it from these settings.
    #[cfg(feature = "neo4j")]
    pub neo4j: Option<Neo4jConfig>,
    /// A collection in Qdrant. A runtime that is given no backend of this name makes it from these settings.
    #[cfg(feature = "qdrant")]
    pub qdrant: Option<QdrantConfig>,
    /// A cache in Redis. A runtime that is given no backend of this name makes it from these settings.
    #[cfg(feature = "redis")]
    pub redis_cache: Option<RedisCacheConfig>,
}

impl BackendConfig {
    /// Adds everything that is wrong with these values; paths begin at this backend.
    fn problems(&self, problems: &mut Vec<ConfigProblem>) {
        self.breaker.problems("breaker", problems);
        self.call.problems("call", problems);
        let mut adapters: Vec<&str> = Vec::new();
        #[cfg(feature = "neo4j")]
        if let Some(settings) = &self.neo4j {
            settings.problems("neo4j", problems);
            adapters.push("neo4j");
        }
        #[cfg(feature = "qdrant")]
        if let Some(settings) = &self.qdrant {
            settings.problems("qdrant", problems);
            adapters.push("qdrant");
        }
        #[cfg(feature = "redis")]
        if let Some(settings) = &self.redis_cache {
            settings.problems("redis_cache", problems);
            adapters.push("redis_cache");
        }
        if let [one, other, ..] = *std::mem::take(&mut adapters) {
            problems.push(ConfigProblem::new("", other, format!("cannot be where `{one}` is; a backend is one store")));
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("seawall-data"),
            gateway: GatewayConfig::default(),
            limits: Limits::default(),
            queue: QueueConfig::default(),
            journal: JournalConfig::default(),
            breaker: BreakerConfig::default(),
            call: CallConfig::default(),
            saga: SagaConfig::default(),
            fallback: FallbackConfig::default(),
            sync: SyncConfig::default(),
            supervisor: RestartConfig::default(),
            health: HealthConfig::default(),
            metrics: MetricsConfig::default(),
            #[cfg(feature = "redis")]
            redis: RedisConfig::default(),
            backends: BTreeMap::new(),
        }
    }
}

impl Config {
    /// The defaults, this file over them if there is one, and the environment of this process over both.
    ///
    /// Variables that mean something in the documents and nothing here are logged as warnings.
    ///
    /// # Errors
    /// Everything that is wrong in the file, in the environment, and with the values that result.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let readable = |text: std::ffi::OsString| text.into_string().ok();
        Self::load_with(path, std::env::vars_os().filter_map(|(name, text)| readable(name).zip(readable(text))))
    }

    /// The same with these variables in place of the environment.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn load_with(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut tree = Tree::default();
        if let Some(path) = path {
            tree.merge_file(path);
        }
        let environment = Environment::read(variables);
        for ConfigProblem { path, problem } in &environment.unused {
            tracing::warn!(variable = path, "{problem}");
        }
        tree.problems.extend(environment.problems);
        tree.merge_variables(environment.variables);
        Self::read(tree, environment.home.as_deref())
    }

    /// The defaults and this TOML text over them.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let mut tree = Tree::default();
        tree.merge_text(text);
        Self::read(tree, None)
    }

    /// Whether the values can be used, alone and together.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::unless_none(self.problems())
    }

    /// The breaker of this backend.
    #[must_use]
    pub fn breaker_of(&self, backend: &BackendName) -> &BreakerConfig {
        self.backends.get(backend.as_str()).map_or(&self.breaker, |own| &own.breaker)
    }

    /// How this backend is called.
    #[must_use]
    pub fn call_of(&self, backend: &BackendName) -> &CallConfig {
        self.backends.get(backend.as_str()).map_or(&self.call, |own| &own.call)
    }

    fn read(mut tree: Tree, home: Option<&str>) -> Result<Self, ConfigError> {
        let defaults = Self::default();
        let mut config = Self {
            data_dir: tree.section("data_dir", defaults.data_dir),
            gateway: tree.section("gateway", defaults.gateway),
            limits: tree.section("limits", defaults.limits),
            queue: tree.section("queue", defaults.queue),
            journal: tree.section("journal", defaults.journal),
            breaker: tree.section("breaker", defaults.breaker),
            call: tree.section("call", defaults.call),
            saga: tree.section("saga", defaults.saga),
            fallback: tree.section("fallback", defaults.fallback),
            sync: tree.section("sync", defaults.sync),
            supervisor: tree.section("supervisor", defaults.supervisor),
            health: tree.section("health", defaults.health),
            metrics: tree.section("metrics", defaults.metrics),
            #[cfg(feature = "redis")]
            redis: tree.section("redis", defaults.redis),
            backends: tree.sections("backends", &["breaker", "call"]),
        };
        if let (Ok(inside), Some(home)) = (config.data_dir.strip_prefix("~"), home) {
            config.data_dir = Path::new(home).join(inside);
        }
        let mut problems = tree.finish();
        problems.extend(config.problems());
        ConfigError::unless_none(problems).map(|()| config)
    }

    fn problems(&self) -> Vec<ConfigProblem> {
        let Self {
            data_dir,
            gateway,
            limits,
            queue,
            journal,
            breaker,
            call,
            saga,
            fallback,
            sync,
            supervisor,
            health,
            metrics,
            #[cfg(feature = "redis")]
            redis,
            backends,
        } = self;
        let mut problems = Vec::new();
        gateway.problems("gateway", &mut problems);
        limits.problems("limits", &mut problems);
        queue.problems("queue", &mut problems);
        journal.problems("journal", &mut problems);
        breaker.problems("breaker", &mut problems);
        call.problems("call", &mut problems);
        saga.problems("saga", &mut problems);
        fallback.problems("fallback", &mut problems);
        sync.problems("sync", &mut problems);
        supervisor.problems("supervisor", &mut problems);
        health.problems("health", &mut problems);
        metrics.problems("metrics", &mut problems);
        #[cfg(feature = "redis")]
        redis.problems("redis", &mut problems);
        for (name, backend) in backends {
            // A value that is wrong for all is told once, not once more for everyone who has it from there.
            let mut own = Vec::new();
            backend.problems(&mut own);
            own.retain(|found| !problems.contains(found));
            problems.extend(
                own.into_iter()
                    .map(|found| ConfigProblem::new("backends", &format!("{name}.{}", found.path), found.problem)),
            );
        }
        // Between sections.
        if sync.batch > queue.max_entries {
            let problem = format!("{} is more than queue.max_entries, {}", sync.batch, queue.max_entries);
            problems.push(ConfigProblem::new("sync", "batch", problem));
        }
        if limits.write_bytes > queue.max_bytes {
            let problem = format!("{} is more than queue.max_bytes, {}", limits.write_bytes, queue.max_bytes);
            problems.push(ConfigProblem::new("limits", "write_bytes", problem));
        }
        if data_dir.as_os_str().is_empty() {
            problems.push(ConfigProblem::new("", "data_dir", "is empty; name a directory"));
        }
        if data_dir.starts_with("~") {
            problems.push(ConfigProblem::new("", "data_dir", "starts with `~`, and HOME is not set; write it out"));
        }
        problems
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<ConfigProblem>,
}

impl ConfigError {
    fn unless_none(mut problems: Vec<ConfigProblem>) -> Result<(), Self> {
        problems.sort_by(|a, b| a.path.cmp(&b.path));
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration cannot be used:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}
