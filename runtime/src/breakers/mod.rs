//! Where breaker states survive a restart: a small sled database in the data directory, or Redis.

#[cfg(feature = "redis")]
mod redis;
mod sled;

#[cfg(feature = "redis")]
pub use redis::{RedisConfig, RedisStateStore};
pub use sled::SledStateStore;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use sled::decode;
