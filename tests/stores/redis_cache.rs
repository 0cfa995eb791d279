//! The cache in Redis, on a redis-server that is killed, frozen and put back to older data.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use seawall::Runtime;
use seawall::backend::{Backend, ErrorKind, Fence, FencedWrite, Health, Role};
use seawall::backends::{CacheStore, GraphBackend, GraphConfig, RedisCacheBackend};
use seawall::config::{Config, RedisCacheConfig, Secret};
use seawall::conformance::{self, OpenError, Outage, Subject, Supported};
use seawall::ledger::MemoryJournal;
use seawall::operation::{Change, Held, OperationId, Source, Version};
use seawall::record::{Key, Properties, Record};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::servers::free_port;
use crate::servers::proxy::{Passage, Proxy};
use crate::servers::redis::{Redis, RedisServer};

/// A patience that a busy machine does not outlast.
fn at(port: u16) -> RedisCacheConfig {
    RedisCacheConfig {
        host: "127.0.0.1".to_owned(),
        port,
        timeout: Duration::from_secs(4),
        ..RedisCacheConfig::default()
    }
}

fn cache(config: &RedisCacheConfig) -> RedisCacheBackend {
    RedisCacheBackend::new("cache", config).expect("a cache")
}

fn record(n: u64) -> Record {
    Record::new("k").with("n", n)
}

fn key() -> Key {
    "k".into()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} never comes"));
}

#[path = "../../examples/redis_cache.rs"]
#[expect(dead_code, reason = "its `main` is for who runs it by itself")]
mod example;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_shows_what_it_says() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    for _ in 0..2 {
        example::run(&format!("127.0.0.1:{}", server.port())).await.expect("it runs");
    }
}

// ----- the suite

struct Caches {
    server: Mutex<RedisServer>,
    proxy: Proxy,
    opened: AtomicU32,
}

#[async_trait]
impl Subject for Caches {
    async fn open(&self) -> Result<Arc<dyn Backend>, OpenError> {
        let prefix = format!("cache {}", self.opened.fetch_add(1, Ordering::Relaxed));
        Ok(Arc::new(RedisCacheBackend::new("cache", &RedisCacheConfig { prefix, ..at(self.proxy.port()) })?))
    }

    async fn begin(&self, outage: Outage) -> Supported {
        let mut server = self.server.lock().await;
        match outage {
            Outage::Refused => server.kill(),
            Outage::Hung => server.freeze().await,
            Outage::Reset => self.proxy.set(Passage::ResetOnReply),
        }
        Supported::Yes
    }

    async fn end(&self, outage: Outage) {
        let mut server = self.server.lock().await;
        match outage {
            Outage::Refused => server.restart().await,
            Outage::Hung => server.thaw(),
            Outage::Reset => self.proxy.set(Passage::Open),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_in_redis_conforms() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let proxy = Proxy::start(server.port()).await;
    let caches = Caches { server: Mutex::new(server), proxy, opened: AtomicU32::new(0) };
    let report = conformance::check(&caches).await;
    eprintln!("{report}");
    report.assert();
}

// ----- document 002: store, get, invalidate

#[tokio::test]
async fn what_is_stored_is_got_and_what_is_invalid_is_missed() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let cache = cache(&at(server.port()));
    assert_eq!(cache.get(&key()).await, None);
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Stored);
    assert_eq!(cache.get(&key()).await, Some((record(1), Version(1))));
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Stored, "once more");
    assert_eq!(cache.store(record(3), Version(3)).await, CacheStore::Stored);
    assert_eq!(cache.store(record(2), Version(2)).await, CacheStore::Superseded);
    assert_eq!(cache.get(&key()).await, Some((record(3), Version(3))));
    assert_eq!(cache.invalidate(&[key(), "never".into()]).await, 1);
    assert_eq!(cache.get(&key()).await, None);
    assert_eq!(
        cache.store(record(2), Version(2)).await,
        CacheStore::Superseded,
        "late, and older than what is invalid"
    );
    assert_eq!(cache.get(&key()).await, None);
    assert_eq!(cache.store(record(4), Version(4)).await, CacheStore::Stored);
    assert_eq!(cache.get(&key()).await, Some((record(4), Version(4))));
    assert_eq!(cache.invalidate(&[]).await, 0);
}

#[tokio::test]
async fn a_cache_that_is_gone_skips_misses_and_says_zero() {
    let cache = cache(&at(free_port()));
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Skipped);
    assert_eq!(cache.get(&key()).await, None);
    assert_eq!(cache.invalidate(&[key()]).await, 0);
}

#[tokio::test]
async fn a_cache_that_hangs_takes_no_longer_than_its_timeout() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let timeout = Duration::from_millis(50);
    let hasty = cache(&RedisCacheConfig { timeout, ..at(server.port()) });
    until("a first store", async || hasty.store(record(1), Version(1)).await == CacheStore::Stored).await;
    server.freeze().await;
    for _ in 0..3 {
        let before = Instant::now();
        assert_eq!(hasty.store(record(2), Version(2)).await, CacheStore::Skipped);
        assert_eq!(hasty.get(&key()).await, None);
        assert_eq!(hasty.invalidate(&[key()]).await, 0);
        // Three times 50 ms, and what a busy machine adds.
        assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    }
    server.thaw();
    until("a store", async || hasty.store(record(3), Version(3)).await == CacheStore::Stored).await;
    until("a get", async || hasty.get(&key()).await == Some((record(3), Version(3)))).await;
}

// ----- never older than it was told

#[tokio::test]
async fn what_was_skipped_leaves_a_miss_and_not_what_was_there_before() {
    let Some(mut server) = RedisServer::start(Redis::default()).await else { return };
    let cache = cache(&at(server.port()));
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Stored);
    assert_eq!(cache.store(Record::new("other"), Version(2)).await, CacheStore::Stored);
    server.freeze().await;
    // Nobody waits for this one.
    let write = cache.store(record(3), Version(3));
    assert!(tokio::time::timeout(Duration::from_millis(20), write).await.is_err());
    server.kill();
    assert_eq!(cache.store(record(4), Version(4)).await, CacheStore::Skipped);
    server.restart().await;
    assert_eq!(cache.get(&key()).await, None);
    assert_eq!(cache.store(record(5), Version(5)).await, CacheStore::Stored);
    assert_eq!(cache.get(&key()).await, Some((record(5), Version(5))));
}

#[tokio::test]
async fn a_redis_that_is_back_with_older_data_is_not_taken_at_its_word() {
    let Some(mut server) = RedisServer::start(Redis::default()).await else { return };
    let cache = cache(&at(server.port()));
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Stored);
    let old = server.snapshot().await;
    assert_eq!(cache.store(record(2), Version(2)).await, CacheStore::Stored);
    server.restore(&old).await;
    assert_eq!(cache.get(&key()).await, None, "version 1 was there and was older than what it was told");
    assert_eq!(cache.store(record(3), Version(3)).await, CacheStore::Stored);
    assert_eq!(cache.get(&key()).await, Some((record(3), Version(3))));
}

#[tokio::test]
async fn a_merge_into_what_the_cache_does_not_hold_is_a_miss_and_no_record() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let cache = cache(&at(server.port()));
    let merge = |version: u64| {
        let changes = [Change::Merge { key: key(), properties: Properties::new().with("n", version) }].into();
        FencedWrite { operation: OperationId::generate(), version: Version(version), fence: Fence::Write, changes }
    };
    cache.apply(&merge(2)).await.expect("applies");
    assert_eq!(cache.get(&key()).await, None);
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Superseded, "the merge came over it");
    assert_eq!(cache.get(&key()).await, None);
    assert_eq!(cache.store(record(3).with("whole", true), Version(3)).await, CacheStore::Stored);
    cache.apply(&merge(4)).await.expect("applies");
    assert_eq!(cache.get(&key()).await, Some((record(4).with("whole", true), Version(4))));
}

#[tokio::test]
async fn a_record_that_is_over_is_a_miss_and_its_fence_stays() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let second = Duration::from_secs(1);
    let cache = cache(&RedisCacheConfig { ttl: second, ..at(server.port()) });
    assert_eq!(cache.store(record(2), Version(2)).await, CacheStore::Stored);
    until("the end of the record", async || cache.get(&key()).await.is_none()).await;
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Superseded);
    assert_eq!(cache.get(&key()).await, None);
}

// ----- what Redis says no to

#[tokio::test]
async fn what_redis_refuses_is_told_for_what_it_is() {
    let Some(server) = RedisServer::start(Redis::with(&["--requirepass", "right-hush"])).await else { return };
    let with = |password: &str| RedisCacheConfig { password: Some(Secret::new(password)), ..at(server.port()) };
    for config in [at(server.port()), with("wrong-hush")] {
        let error = cache(&config).probe().await.expect_err("is refused");
        assert_eq!(error.kind, ErrorKind::Transient, "{error}");
        assert!(!format!("{error} {error:?} {config:?}").contains("hush"), "{error:?}");
    }
    assert!(matches!(cache(&with("right-hush")).probe().await, Ok(Health::Healthy)));
}

#[tokio::test]
async fn a_redis_that_is_full_is_read_only() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let cache = cache(&at(server.port()));
    assert_eq!(cache.store(record(1), Version(1)).await, CacheStore::Stored);
    assert_eq!(cache.store(Record::new("other"), Version(2)).await, CacheStore::Stored);
    assert_eq!(server.say("CONFIG SET maxmemory 1000").await, "+OK");
    let changes = [Change::put(record(3))].into();
    let write = FencedWrite { operation: OperationId::generate(), version: Version(3), fence: Fence::Write, changes };
    let error = cache.apply(&write).await.expect_err("there is no room");
    assert_eq!(error.kind, ErrorKind::ReadOnly, "{error}");
    assert!(matches!(cache.probe().await, Ok(Health::ReadOnly)));
    assert_eq!(cache.get(&key()).await, None);
    assert!(cache.get(&"other".into()).await.is_some());
    assert_eq!(server.say("CONFIG SET maxmemory 0").await, "+OK");
    assert!(matches!(cache.probe().await, Ok(Health::Healthy)));
    assert_eq!(cache.store(record(3), Version(3)).await, CacheStore::Stored);
    assert_eq!(cache.get(&key()).await, Some((record(3), Version(3))));
}

#[tokio::test]
async fn what_others_have_put_under_a_key_is_left_alone_and_nothing_of_the_batch_is_there() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let cache = cache(&at(server.port()));
    assert_eq!(server.say("RPUSH seawall:cache:record:theirs 1").await, ":1");
    let changes = [Change::put(record(1)), Change::put(Record::new("theirs")), Change::put(Record::new("z"))].into();
    let write = FencedWrite { operation: OperationId::generate(), version: Version(1), fence: Fence::Write, changes };
    let error = cache.apply(&write).await.expect_err("that is no record");
    assert_eq!(error.kind, ErrorKind::Permanent, "{error}");
    let held = cache.read(&[key(), "z".into()]).await.expect("reads");
    assert_eq!(held, [None, None]);
    assert_eq!(server.say("TYPE seawall:cache:record:theirs").await, "+list");
}

#[cfg(feature = "redis-tls")]
#[tokio::test]
async fn an_encrypted_connection_is_made_to_who_can_prove_its_name_and_to_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    for of in [".", "other"] {
        std::fs::create_dir_all(dir.path().join(of)).expect("a directory");
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(dir.path().join(of))
            .output();
        assert!(made.expect("there is openssl").status.success());
    }
    let redis = Redis { tls: Some(dir.path().to_owned()), ..Redis::default() };
    let Some(server) = RedisServer::start(redis).await else { return };
    let trusting = |tls, file: &str| RedisCacheConfig {
        tls,
        tls_ca_file: tls.then(|| dir.path().join(file)),
        ..at(server.port())
    };
    let trusted = cache(&trusting(true, "cert.pem"));
    assert_eq!(trusted.store(record(1), Version(1)).await, CacheStore::Stored);
    assert_eq!(trusted.get(&key()).await, Some((record(1), Version(1))));
    for stranger in [trusting(true, "other/cert.pem"), trusting(false, "")] {
        assert_eq!(cache(&stranger).probe().await.expect_err("is no friend").kind, ErrorKind::Transient);
    }
    let named = RedisCacheConfig { host: "localhost".to_owned(), ..trusting(true, "cert.pem") };
    assert!(cache(&named).probe().await.is_err(), "the certificate has another name");
    let nowhere = RedisCacheBackend::new("cache", &trusting(true, "nowhere.pem"));
    assert_eq!(nowhere.expect_err("there is no such file").kind, ErrorKind::Permanent);
}

// ----- in a runtime

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_of_the_configuration_serves_when_the_store_is_gone_and_is_missed_by_nobody() {
    let Some(mut server) = RedisServer::start(Redis::default()).await else { return };
    let mut config = Config::default();
    config.backends.entry("cache".to_owned()).or_default().redis_cache = Some(at(server.port()));
    let runtime = Runtime::builder()
        .config(config)
        .journal(Arc::new(MemoryJournal::new()), Vec::new())
        .backend(GraphBackend::in_memory(GraphConfig::default()))
        .start()
        .await
        .expect("starts");
    let handle = runtime.handle();
    let reader = cache(&at(server.port()));
    let receipt = handle.store(record(1)).await.expect("is stored");
    assert_eq!((receipt.held, reader.role()), (Held::Committed, Role::BestEffort));
    until("the record in the cache", async || reader.get(&key()).await.is_some()).await;

    // Without its store, a read is answered by the cache, and says so.
    let graph = runtime.control().breaker("graph").expect("there is one");
    graph.force_open("a drill", None);
    let read = handle.retrieve("k").await.expect("is answered");
    assert_eq!((read.record, read.source, read.stale), (Some(record(1)), Source::Backend("cache".into()), true));
    graph.reset();

    // Without its cache, nothing is different.
    server.kill();
    for n in 2..20 {
        assert_eq!(handle.store(record(n)).await.expect("is stored").held, Held::Committed);
        assert_eq!(handle.retrieve("k").await.expect("is answered").record, Some(record(n)));
    }
    runtime.shutdown().await;
}
