//! A cache in Redis that may fail without anyone noticing: told of every write, asked when the store cannot answer.
//!
//! Needs a Redis that may be written to, under keys that begin with `seawall:example:`.
//!
//! ```sh
//! cargo run --release --features redis --example redis_cache -- --redis 127.0.0.1:6379
//! ```

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use seawall::Runtime;
use seawall::backends::{CacheStore, GraphBackend, GraphConfig, RedisCacheBackend};
use seawall::config::{Config, RedisCacheConfig};
use seawall::operation::{Held, Source, Version};
use seawall::record::{Key, Record};
use tokio::time::{Instant, sleep};

#[derive(Parser)]
struct Arguments {
    /// Where Redis is.
    #[arg(long, env = "REDIS", default_value = "127.0.0.1:6379")]
    redis: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run(&Arguments::parse().redis).await
}

pub(crate) async fn run(redis: &str) -> Result<(), Box<dyn Error>> {
    let (host, port) = redis.rsplit_once(':').ok_or("write HOST:PORT")?;
    let settings = RedisCacheConfig {
        host: host.to_owned(),
        port: port.parse()?,
        prefix: "seawall:example".to_owned(),
        ..RedisCacheConfig::default()
    };
    by_itself(&settings).await?;
    in_a_runtime(settings.clone()).await?;
    gone(settings).await
}

/// Document 002: store, get, invalidate. None of them gives an error.
async fn by_itself(settings: &RedisCacheConfig) -> Result<(), Box<dyn Error>> {
    let cache = RedisCacheBackend::new("cache", settings)?;
    // A higher version is newer; one that is over whatever an earlier run has left.
    let newest = seawall::backend::Backend::newest_version(&cache).await?;
    let (first, second) = (Version(newest.0 + 1), Version(newest.0 + 2));
    let key = Key::from("answer");
    let record = |answer: u32| Record::new(key.clone()).with("answer", answer);

    println!("store     {:?}", cache.store(record(42), second).await);
    println!("get       {:?}", cache.get(&key).await.map(|(_, version)| version));
    let late = cache.store(record(41), first).await;
    println!("store     {late:?}, for it came late");
    assert_eq!(late, CacheStore::Superseded);
    assert_eq!(cache.get(&key).await, Some((record(42), second)));
    let keys = [key.clone()];
    println!("invalidate {}", cache.invalidate(&keys).await);
    assert_eq!(cache.get(&key).await, None);
    println!("get       a miss\n");
    Ok(())
}

/// A best-effort backend: the configuration is all that it takes.
async fn in_a_runtime(settings: RedisCacheConfig) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut config = Config::default();
    config.backends.entry("cache".to_owned()).or_default().redis_cache = Some(settings.clone());
    let runtime = Runtime::builder()
        .config(config)
        .data_dir(dir.path())
        .backend(GraphBackend::in_memory(GraphConfig::default()))
        .start()
        .await?;
    let handle = runtime.handle();
    let receipt = handle.store(Record::new("article").with("title", "Walls and the sea")).await?;
    assert_eq!(receipt.held, Held::Committed);

    // The cache is told beside the store, and nobody waits for it.
    let reader = RedisCacheBackend::new("cache", &settings)?;
    while reader.get(&"article".into()).await.is_none_or(|(_, version)| version < receipt.version) {
        sleep(Duration::from_millis(1)).await;
    }
    runtime.control().breaker("graph")?.force_open("a drill: the store is gone", None);
    let read = handle.retrieve("article").await?;
    assert_eq!(read.source, Source::Backend("cache".into()));
    println!("without the store, {:?} answers; it may be stale: {}\n", read.source, read.stale);
    runtime.shutdown().await;
    Ok(())
}

/// A Redis that is not there: nothing is cached, and that is all.
async fn gone(settings: RedisCacheConfig) -> Result<(), Box<dyn Error>> {
    // Held and never listened on, so nobody else is there either.
    let nobody = tokio::net::TcpSocket::new_v4()?;
    nobody.bind("127.0.0.1:0".parse()?)?;
    let port = nobody.local_addr()?.port();
    let cache = RedisCacheBackend::new("cache", &RedisCacheConfig { host: "127.0.0.1".to_owned(), port, ..settings })?;
    let started = Instant::now();
    let stored = cache.store(Record::new("answer"), Version(1)).await;
    let (got, forgotten) = (cache.get(&"answer".into()).await, cache.invalidate(&["answer".into()]).await);
    println!("without Redis: store {stored:?}, get a miss, invalidate {forgotten}, in {:?}", started.elapsed());
    assert_eq!((stored, got, forgotten), (CacheStore::Skipped, None, 0));
    Ok(())
}
