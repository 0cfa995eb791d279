//! Whole outages on real servers: Neo4j (or ArcadeDB in its place), the engine of Qdrant and Redis, where
//! `SEAWALL_SERVERS` says that there are any (see `servers`), killed, frozen, cut off and put back under load.
//!
//! Each scenario ends in the same judgement (`torture::told`): once nothing is owed, both stores hold what was
//! acknowledged, once and in its order, deletes stay deleted, what was refused is nowhere, every request was answered.
//!
//! ```text
//! stage.rs     the servers, the connections to them, and a runtime
//! load.rs      callers, and what they were told
//! service.rs   a process with a runtime that is killed
//! ```
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../servers/mod.rs"]
mod servers;
#[path = "../torture/mod.rs"]
mod torture;

mod load;
mod service;
mod stage;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use seawall::Runtime;
use seawall::backend::{Applied, Backend, BackendError, BackendName, FencedWrite, Health, Stored};
use seawall::backends::Neo4jBackend;
use seawall::breaker::{BreakerState, TransitionCause};
use seawall::config::RedisConfig;
use seawall::event::{EventKind, Update};
use seawall::fallback::Mode;
use seawall::guard::{FaultHook, Step};
use seawall::journal::{JournalConfig, OnDamage, SledJournal};
use seawall::operation::{Change, Version};
use seawall::record::{Key, Record};
use tokio::time::{Instant, sleep, timeout};

use load::{Load, WRITE_TIMEOUT};
use servers::proxy::Passage;
use servers::redis::{Redis, RedisServer};
use stage::{Cast, PATIENCE, Stage};
use torture::Told;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_that_is_killed_in_mid_saga_is_put_right_when_it_is_back() {
    let Some(mut stage) = Stage::start(Cast::Alone).await else { return };
    let load = stage.load();
    stage.works().await;
    stage.graph().kill();
    stage.until("the breaker sees it", || stage.is("graph", BreakerState::Open)).await;
    stage.acknowledges(100).await;
    assert!(stage.status().owed > 0, "nothing was cut off: {:?}", stage.status());
    stage.graph().restart().await;
    stage.recovers().await;
    stage.acknowledges(100).await;
    load.stop().await;
    stage.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vector_store_that_hangs_for_longer_than_every_timeout_is_put_right_when_it_goes_on() {
    let Some(stage) = Stage::start(Cast::Shared).await else { return };
    let load = stage.load();
    stage.works().await;
    stage.vector.freeze().await;
    let frozen = Instant::now();
    stage.until("the breaker sees it", || stage.is("vector", BreakerState::Open)).await;
    stage.acknowledges(100).await;
    // The longest patience that anybody has here.
    sleep(WRITE_TIMEOUT.mul_f64(1.1).saturating_sub(frozen.elapsed())).await;
    stage.acknowledges(10).await;
    stage.vector.thaw();
    stage.recovers().await;
    stage.acknowledges(100).await;
    load.stop().await;
    stage.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_down_and_the_runtime_killed_is_put_right_when_all_are_back() {
    let Some(mut stage) = Stage::set(Cast::Alone, Told::default()).await else { return };
    let mut service = service::start(&stage);
    assert!(service.says(service::BUSY), "{:?}", service.kill());
    stage.graph().kill();
    stage.vector.kill();
    assert!(service.says(service::OWING), "{:?}", service.kill());
    stage.log.hear(&service.kill());
    let unanswered = stage.told().unanswered();
    stage.cut_off = unanswered;
    stage.open().await;
    assert!(stage.status().owed > 0, "{:?}", stage.status());
    stage.graph().restart().await;
    stage.vector.restart().await;
    let load = stage.load();
    stage.recovers().await;
    stage.acknowledges(100).await;
    load.stop().await;
    stage.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_reset_between_apply_and_reply_leaves_one_effect() {
    let Some(stage) = Stage::start(Cast::Shared).await else { return };
    let load = stage.load();
    for _ in 0..3 {
        for way in [&stage.graph_way, &stage.vector_way] {
            stage.acknowledges(30).await;
            let lost = way.lost();
            way.set(Passage::ResetOnReply);
            stage.until("replies are lost", || way.lost() >= lost + 10).await;
            way.set(Passage::Open);
            stage.recovers().await;
        }
    }
    stage.acknowledges(30).await;
    load.stop().await;
    stage.assert_kept().await;
}

/// Writes that are owed when the drain begins.
const OWED: usize = 10_000;

/// Each operation stores a record of its own, so that none of those that are owed makes another needless.
fn one_of_many(operation: u64) -> Vec<Change> {
    let embedding: Vec<f32> = vec![1.0, 0.0, 0.0, operation as f32];
    vec![Change::put(Record::new(format!("owed-{operation}")).with("n", operation).with_embedding(embedding))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_owed_writes_are_drained_under_live_load() {
    let Some(mut stage) = Stage::set(Cast::Shared, Told::of(one_of_many)).await else { return };
    stage.config.queue.max_entries = 2 * OWED;
    stage.open().await;
    for way in [&stage.graph_way, &stage.vector_way] {
        way.set(Passage::Reset);
    }
    let load = Load::start(&stage.runtime().handle(), &stage.log, 256, 0);
    stage.until("writes are owed", || stage.status().owed >= OWED).await;
    load.stop().await;
    let load = stage.load();
    for way in [&stage.graph_way, &stage.vector_way] {
        way.set(Passage::Open);
    }
    let before = stage.told().acknowledged();
    stage.until("what was owed is drained", || stage.status().owed < OWED / 100).await;
    let live = stage.told().acknowledged() - before;
    assert!(live > 0, "nobody was served while it was drained");
    load.stop().await;
    stage.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_come_and_go_keep_what_was_acknowledged() {
    let Some(redis) = RedisServer::start(Redis::default()).await else { return };
    let Some(mut stage) = Stage::set(Cast::Shared, Told::default()).await else { return };
    stage.add_cache(redis.port());
    stage.open().await;
    let load = stage.load();
    let mut redis = redis;
    for round in 0..4 {
        let breakages = [Passage::Reset, Passage::HalfClosed, Passage::BlackHole, Passage::Narrow(2_000)];
        let (way, backend) = [(&stage.graph_way, "graph"), (&stage.vector_way, "vector")][round % 2];
        for passage in breakages {
            way.set(passage);
            stage.acknowledges(5).await;
            way.set(Passage::Open);
            stage.acknowledges(5).await;
        }
        way.set(Passage::Reset);
        stage.until("the breaker sees it", || stage.is(backend, BreakerState::Open)).await;
        redis.kill();
        stage.acknowledges(20).await;
        way.set(Passage::Open);
        redis.restart().await;
    }
    stage.vector.kill();
    stage.acknowledges(20).await;
    stage.vector.restart().await;
    stage.recovers().await;
    stage.acknowledges(20).await;
    load.stop().await;
    stage.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_opens_its_breaker_by_the_rule_for_slow_calls_and_a_quick_one_closes_it() {
    let Some(mut stage) = Stage::set(Cast::Shared, Told::default()).await else { return };
    // A call goes there and back several times: later than slow, sooner than failed.
    let late = Duration::from_millis(150);
    let graph = stage.config.backends.get_mut("graph").unwrap();
    graph.call.timeout = Duration::from_secs(20);
    graph.breaker.slow_call = 2 * late;
    graph.breaker.slow_call_rate = Some(0.5);
    (graph.breaker.minimum_calls, graph.breaker.window_calls) = (10, 20);
    (graph.breaker.failure_threshold, graph.breaker.overdue_calls) = (1_000, None);
    stage.open().await;
    let load = stage.load();
    stage.works().await;
    let mut events = stage.runtime().subscribe();
    stage.graph_way.set(Passage::Late(late));
    let cause = timeout(PATIENCE, async {
        loop {
            let Some(Update::Event(event)) = events.next().await else { continue };
            if let EventKind::BreakerChanged { backend, to: BreakerState::Open, cause, .. } = event.kind.clone()
                && backend.as_str() == "graph"
            {
                return cause;
            }
        }
    });
    let cause = cause.await.expect("the breaker opens");
    assert!(matches!(cause, TransitionCause::SlowCallRate { .. }), "{cause:?}");
    stage.acknowledges(50).await;
    stage.graph_way.set(Passage::Open);
    stage.recovers().await;
    stage.acknowledges(50).await;
    load.stop().await;
    stage.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_while_breakers_trip_fails_no_call() {
    let Some(mut redis) = RedisServer::start(Redis::default()).await else { return };
    let Some(mut stage) = Stage::set(Cast::Shared, Told::default()).await else { return };
    stage.config.redis =
        RedisConfig { enabled: true, host: "127.0.0.1".to_owned(), port: redis.port(), ..RedisConfig::default() };
    // Nobody is refused for what the breakers see, so that whoever is refused is refused for Redis.
    stage.config.fallback.mode_when_normal = Mode::QueueWrites;
    stage.open().await;
    let load = stage.load();
    stage.works().await;
    for backend in ["graph", "vector"] {
        let way = if backend == "graph" { &stage.graph_way } else { &stage.vector_way };
        redis.kill();
        way.set(Passage::Reset);
        stage.until("the breaker trips", || stage.is(backend, BreakerState::Open)).await;
        stage.acknowledges(50).await;
        redis.restart().await;
        assert_eq!(redis.say("FLUSHALL").await, "+OK");
        stage.acknowledges(20).await;
        way.set(Passage::Open);
        stage.recovers().await;
    }
    load.stop().await;
    let figures = stage.assert_kept().await;
    assert_eq!((figures.refused, figures.unknown), (0, 0));
    // It is used again.
    stage.graph_way.set(Passage::Reset);
    while stage.breaker("graph").view().state != BreakerState::Open {
        stage.log.write(&stage.runtime().handle()).await;
    }
    let saved = timeout(PATIENCE, async {
        while redis.say("EXISTS circuit_breaker:graph:state").await != ":1" {
            sleep(Duration::from_millis(20)).await;
        }
    });
    saved.await.expect("the state is kept in Redis");
}

/// A disk on which there is no room while it is full.
#[derive(Default)]
struct Disk {
    full: AtomicBool,
}

impl FaultHook for Disk {
    fn before(&self, step: Step) -> io::Result<()> {
        const ENOSPC: i32 = 28;
        match step {
            Step::Open | Step::Read => Ok(()),
            _ if self.full.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(ENOSPC)),
            _ => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_without_room_during_an_outage_refuses_and_keeps_what_it_acknowledged() {
    let Some(mut stage) = Stage::set(Cast::Shared, Told::default()).await else { return };
    let disk = Arc::new(Disk::default());
    let open = {
        let (dir, fault) = (stage.config.data_dir.clone(), Arc::clone(&disk) as Arc<dyn FaultHook>);
        let config = JournalConfig { outcomes: stage.config.queue.outcomes, ..stage.config.journal.clone() };
        move || SledJournal::open_with_faults(&dir, config, OnDamage::Refuse, Some(fault))
    };
    let (journal, found) = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
    let builder = Runtime::builder().config(stage.config.clone()).journal(Arc::new(journal), found.records);
    stage.put(builder.start().await.unwrap());
    let load = stage.load();
    stage.works().await;
    stage.graph_way.set(Passage::Reset);
    stage.until("writes are owed", || stage.status().owed >= 50).await;
    disk.full.store(true, Ordering::SeqCst);
    stage.until("the mode falls", || stage.status().mode == Mode::ReadOnly).await;
    let acknowledged = stage.told().acknowledged();
    assert!(!stage.log.write(&stage.runtime().handle()).await, "a full disk keeps nothing");
    // Back in this order, so that the outage is longer than the want of room.
    disk.full.store(false, Ordering::SeqCst);
    stage.until("the mode comes back", || stage.status().mode == Mode::QueueWrites).await;
    stage.until("writes are taken again", || stage.told().acknowledged() > acknowledged + 20).await;
    stage.graph_way.set(Passage::Open);
    stage.recovers().await;
    stage.acknowledges(50).await;
    load.stop().await;
    let figures = stage.assert_kept().await;
    assert!(figures.refused > 0, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_come_back_with_older_data_are_given_again_what_they_lost() {
    let Some(mut stage) = Stage::set(Cast::Alone, Told::default()).await else { return };
    stage.config.queue.retention = Duration::from_secs(600);
    stage.open().await;
    let load = stage.load();
    stage.works().await;
    load.stop().await;
    // What both have is in the copies.
    stage.assert_kept().await;
    #[expect(clippy::disallowed_methods, reason = "a replay is asked for by the wall clock")]
    let since = SystemTime::now();
    let graph = stage.graph().snapshot().await;
    let vector = stage.vector.snapshot().await;
    let load = stage.load();
    stage.works().await;
    load.stop().await;
    stage.assert_kept().await;
    let before = stage.newest().await;
    stage.graph().restore(&graph).await;
    stage.vector.restore(&vector).await;
    stage.recovers().await;
    let after = stage.newest().await;
    let older = |store: usize| Version(0) < after[store] && after[store] < before[store];
    assert!(older(0) && older(1), "not older: {before:?}, then {after:?}");

    let replayed = stage.runtime().control().replay_since(since).await.unwrap();
    assert!(replayed.keys > 0, "{replayed:?}");
    // Before anything is written over it.
    stage.assert_kept().await;
    let load = stage.load();
    stage.acknowledges(100).await;
    load.stop().await;
    stage.assert_kept().await;
}

/// A graph that says that it did what it did not do.
struct Forgetful {
    inner: Neo4jBackend,
    forgets: Arc<AtomicBool>,
}

#[async_trait]
impl Backend for Forgetful {
    fn name(&self) -> BackendName {
        self.inner.name()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        match self.forgets.swap(false, Ordering::SeqCst) {
            true => Ok(Applied::default()),
            false => self.inner.apply(write).await,
        }
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.inner.read(keys).await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        self.inner.probe().await
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.inner.newest_version().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judge_notices_a_single_write_that_a_store_did_not_keep() {
    let Some(mut stage) = Stage::set(Cast::Shared, Told::default()).await else { return };
    let forgets = Arc::new(AtomicBool::new(false));
    let graph = Forgetful { inner: stage.stores.open_graph(), forgets: Arc::clone(&forgets) };
    stage.put(Runtime::builder().config(stage.config.clone()).backend(graph).start().await.unwrap());
    let load = stage.load();
    stage.acknowledges(50).await;
    load.stop().await;
    stage.assert_kept().await;
    forgets.store(true, Ordering::SeqCst);
    while !stage.log.write(&stage.runtime().handle()).await || forgets.load(Ordering::SeqCst) {}
    let (figures, problems) = stage.judge().await;
    assert!(figures.lost + figures.reordered + figures.resurrected > 0, "{figures:?} {problems:?}");
}
