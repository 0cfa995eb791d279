//! The backends that the configuration describes.

use std::sync::Arc;

use seawall_actors::backend::{Backend, BackendError, BackendName};

use crate::config::BackendConfig;

/// The backend of this name that these settings describe, if they describe one. Asks nothing of its store: one that is
/// down keeps no runtime from starting.
///
/// # Errors
/// When the settings cannot be those of a store.
#[cfg_attr(
    not(any(feature = "neo4j", feature = "qdrant", feature = "redis")),
    expect(unused_variables, clippy::unnecessary_wraps, reason = "every kind of store is behind a feature")
)]
pub(crate) fn open(name: &BackendName, config: &BackendConfig) -> Result<Option<Arc<dyn Backend>>, BackendError> {
    #[cfg(feature = "neo4j")]
    if let Some(settings) = &config.neo4j {
        return Ok(Some(Arc::new(super::Neo4jBackend::new(name.clone(), settings)?)));
    }
    #[cfg(feature = "qdrant")]
    if let Some(settings) = &config.qdrant {
        return Ok(Some(Arc::new(super::QdrantBackend::new(name.clone(), settings)?)));
    }
    #[cfg(feature = "redis")]
    if let Some(settings) = &config.redis_cache {
        return Ok(Some(Arc::new(super::RedisCacheBackend::new(name.clone(), settings)?)));
    }
    Ok(None)
}
