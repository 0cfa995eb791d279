//! The stores of breaker states that need no server. The one in Redis is in `redis.rs`.

#[path = "breaker_states/conformance.rs"]
mod conformance;

use seawall::SledStateStore;
use seawall::breaker::MemoryStateStore;

#[tokio::test]
async fn memory_keeps_breaker_states_as_every_store_does() {
    conformance::check(&MemoryStateStore::default()).await;
}

#[tokio::test]
async fn sled_keeps_breaker_states_as_every_store_does() {
    let dir = tempfile::tempdir().expect("a directory");
    conformance::check(&SledStateStore::open(dir.path()).expect("opens")).await;
}
