//! The five systems of the documents, each in its own words and numbers.

mod support;

use std::sync::Arc;
use std::time::Duration;

use seawall::backend::{Capability, Role};
use seawall::backends::{Fault, GraphBackend, GraphConfig, Op, Ops, VectorBackend, VectorConfig};
use seawall::breaker::BreakerState;
use seawall::config::{BackendConfig, Config};
use seawall::event::{Alert, EventKind, Update};
use seawall::fallback::{DegradationLevel, Mode};
use seawall::operation::{Held, Search, Source, StandIn, Traversal};
use seawall::record::Record;
use seawall::{Handle, Refusal, Runtime};
use support::{Disk, History, Rig, Site, is_queued, n, record, refused, until};

/// What a test needs of a runtime that is not over a graph and a vector store.
async fn start(config: Config, sites: &[&Site]) -> Runtime {
    let mut builder = Runtime::builder().config(config).journal(Arc::new(Disk::default()), Vec::new());
    for site in sites {
        builder = builder.shared_backend(Arc::clone(&site.backend) as _);
    }
    builder.start().await.expect("starts")
}

fn level(runtime: &Runtime) -> u8 {
    runtime.control().fallback().level_number
}

/// Writes until the level is this.
async fn write_until(runtime: &Runtime, expected: u8) {
    for k in 0..100 {
        if level(runtime) == expected {
            return;
        }
        let _ = runtime.handle().delete(format!("canary-{k}")).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the level stays {}", level(runtime));
}

fn episode(key: &str, k: u16) -> Record {
    let next = format!("e{}", k + 1);
    record(key, k.into()).with_embedding(vec![f32::from(k), 1.0]).with_relation("next", next.as_str())
}

// ----- document 000: two stores, levels 0 to 3, an LRU of 1000, a replay queue ------------------------------------

#[tokio::test(start_paused = true)]
async fn document_000_the_four_levels_offer_and_lack_what_the_table_says() {
    let rig = Rig::start().await;
    let handle = rig.handle();
    for k in 0..5 {
        handle.store(episode(&format!("e{k}"), k)).await.expect("is stored");
    }
    assert_eq!((level(rig.runtime()), handle.status().mode), (0, Mode::Disabled));
    let walk = || Traversal::from("e0").depth(2);
    assert_eq!(handle.traverse(walk()).await.expect("is walked").degraded, None);
    assert_eq!(handle.search(Search::like("e0")).await.expect("is found").degraded, None);

    // 1: no graph. Vector search stands in for a traversal, and the answer says so.
    rig.lose(&rig.graph).await;
    assert_eq!((level(rig.runtime()), handle.status().mode), (1, Mode::QueueWrites));
    assert!(!handle.status().level.offers(Capability::GraphTraversal));
    let found = handle.traverse(walk()).await.expect("something stands in");
    let degraded = found.degraded.expect("it is not what was asked");
    assert_eq!((degraded.level, degraded.served_by), (DegradationLevel::NoGraph, StandIn::VectorSearch));
    assert!(!found.hits.is_empty());
    assert_eq!(handle.search(Search::near(vec![1.0, 1.0])).await.expect("is found").degraded, None);
    assert!(is_queued(&handle.store(episode("e5", 5)).await.expect("is queued")));
    rig.recover().await;
    assert_eq!(level(rig.runtime()), 0);

    // 2: no vector. Neighbours stand in for what is like a record; a bare point has nothing to stand in.
    rig.lose(&rig.vector).await;
    assert_eq!((level(rig.runtime()), handle.status().mode), (2, Mode::QueueWrites));
    let found = handle.search(Search::like("e1")).await.expect("something stands in");
    assert_eq!(found.degraded.expect("it is not what was asked").served_by, StandIn::Neighbours);
    let found = handle.search(Search::near(vec![1.0, 1.0]).filter("n", 3)).await.expect("something stands in");
    assert_eq!(found.degraded.expect("it is not what was asked").served_by, StandIn::ExactMatch);
    assert_eq!(found.hits.len(), 1);
    let refusal = refused(handle.search(Search::near(vec![1.0, 1.0])).await);
    assert!(
        matches!(refusal, Refusal::CapabilityUnavailable { capability: Capability::VectorSearch, .. }),
        "{refusal}"
    );
    assert_eq!(handle.traverse(walk()).await.expect("is walked").degraded, None);
    assert!(is_queued(&handle.store(episode("e6", 6)).await.expect("is queued")));

    // 3: in memory.
    rig.lose(&rig.graph).await;
    write_until(rig.runtime(), 3).await;
    assert!(is_queued(&handle.store(episode("e7", 7)).await.expect("is queued")));
    assert_eq!(n(rig.read("e7").await.0), Some(7));
    let (known, source) = rig.read("e3").await;
    assert!(known.is_some() && matches!(source, Source::Cache { .. }), "{source:?}");
    let refusal = refused(handle.traverse(walk()).await);
    assert!(matches!(refusal, Refusal::CapabilityUnavailable { .. }), "{refusal}");

    // Recovery drains the queue and restores service.
    rig.recover().await;
    assert_eq!((level(rig.runtime()), handle.status().mode), (0, Mode::Disabled));
    for k in 0..8 {
        assert_eq!(n(rig.both(&format!("e{k}")).await), Some(k));
    }
}

#[tokio::test(start_paused = true)]
async fn document_000_the_cache_holds_the_thousand_records_used_last() {
    let rig = Rig::start().await;
    let handle = rig.handle();
    for k in 0..1_000 {
        handle.store(record(&format!("k{k}"), k)).await.expect("is stored");
    }
    rig.shut(&rig.graph).await;
    rig.shut(&rig.vector).await;
    assert_eq!(level(rig.runtime()), 3);
    assert_eq!(n(rig.read("k0").await.0), Some(0), "and it is used now");
    rig.recover().await;
    handle.store(record("one-more", 1)).await.expect("is stored");
    rig.shut(&rig.graph).await;
    rig.shut(&rig.vector).await;
    assert_eq!(n(rig.read("k0").await.0), Some(0));
    assert!(matches!(refused(handle.retrieve("k1").await), Refusal::Unavailable { .. }), "it was used longest ago");
    assert_eq!(rig.runtime().control().fallback().cache.entries, 1_000);
}

#[test]
fn document_000_its_settings_are_the_defaults() {
    let text = "
        [breaker]
        failure_threshold = 5
        success_threshold = 2
        reset_timeout = 60.0
        [saga]
        timeout_seconds = 30.0
        max_retries = 3
        rollback_timeout = 10.0
        [fallback.cache]
        max_size = 1000
        [queue]
        max_queue_size = 10000
        [sync]
        drain_batch_size = 100
        [health]
        check_interval_seconds = 30.0
        timeout_seconds = 5.0
        alert_threshold = 3
    ";
    assert_eq!(Config::from_toml(text).expect("can be read"), Config::default());
}

#[tokio::test(start_paused = true)]
async fn document_000_the_prober_alerts_after_three_failures_before_any_user_notices() {
    let rig = Rig::start().await;
    let mut events = rig.runtime().subscribe();
    rig.vector.faults.set(Op::Probe, Fault::Down);
    tokio::time::sleep(Duration::from_secs(110)).await;
    let mut raised = false;
    while let Some(update) = events.try_next() {
        let Update::Event(event) = update else { continue };
        raised |= matches!(&event.kind, EventKind::AlertRaised { backend, alert: Alert::ProbesFailing }
            if backend.as_str() == "vector");
    }
    assert!(raised);
}

// ----- document 001: one embedded engine, levels 0 to 2 -----------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn document_001_an_engine_goes_read_only_on_a_full_disk_and_in_memory_when_its_log_fails() {
    let engine = Site::new(
        "engine",
        Arc::new(GraphBackend::in_memory(GraphConfig { name: "engine".into(), ..GraphConfig::default() })),
    );
    let runtime = start(Config::default(), &[&engine]).await;
    let handle = runtime.handle();
    assert_eq!(handle.store(record("a", 1)).await.expect("is stored").held, Held::Committed);
    assert_eq!(level(&runtime), 0);

    // 1: disk errors on write. Reads come from the engine, writes queue; the breaker stays closed: it is alive.
    engine.set(Fault::ReadOnly);
    let _ = handle.store(record("a", 2)).await;
    until("it is known to be read-only", || level(&runtime) == 1).await;
    assert_eq!(handle.status().level, DegradationLevel::ReadOnly);
    let queued = handle.store(record("a", 3)).await.expect("is queued");
    assert_eq!(queued.held, Held::Queued { owing: vec!["engine".into()] });
    handle.store(record("b", 3)).await.expect("is queued");
    assert_eq!(runtime.control().breaker("engine").expect("is there").view().state, BreakerState::Closed);
    let read = handle.retrieve("canary").await.expect("it still reads");
    assert_eq!((read.source, read.record), (Source::Backend("engine".into()), None));
    assert_eq!(n(handle.retrieve("a").await.expect("is read").record), Some(3));

    // 2: the log is gone.
    engine.set(Fault::Down);
    for _ in 0..6 {
        let _ = handle.retrieve("canary").await;
    }
    until("it is known to be gone", || level(&runtime) == 2).await;
    assert_eq!(handle.status().level, DegradationLevel::InMemory);
    assert!(is_queued(&handle.store(record("c", 4)).await.expect("is queued")));
    assert_eq!(n(handle.retrieve("a").await.expect("is read").record), Some(3));

    // It recovers: the queue is drained, in order, and nobody had to do anything.
    engine.heal();
    until("the queue is drained", || handle.status().owed == 0).await;
    until("service is restored", || level(&runtime) == 0).await;
    for (key, expected) in [("a", 3), ("b", 3), ("c", 4)] {
        assert_eq!(n(engine.record(key).await), Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn document_001_one_store_alone_has_nothing_half_done_and_journals_only_what_it_could_not_do() {
    let engine = Site::graph();
    let disk = Arc::new(Disk::default());
    let runtime = Runtime::builder()
        .shared_backend(Arc::clone(&engine.backend) as _)
        .journal(Arc::clone(&disk) as _, Vec::new())
        .start()
        .await
        .expect("starts");
    let handle = runtime.handle();
    let before = disk.records().len();
    for k in 0..10 {
        handle.store(record("a", k)).await.expect("is stored");
    }
    assert_eq!(disk.records().len(), before, "no sync for a write that is in its only store");
    runtime.control().set_mode(Mode::QueueWrites, "a test", None).await.expect("is set");
    engine.faults.next(Op::Apply, 1, Fault::Down);
    assert!(is_queued(&handle.store(record("a", 10)).await.expect("is queued")));
    assert!(disk.records().len() > before, "this one was made durable before its receipt");
    until("the queue is drained", || handle.status().owed == 0).await;
    assert_eq!(n(engine.record("a").await), Some(10));
}

// ----- document 002: a cache that may fail without anyone noticing -------------------------------------------------

/// A store and a cache beside it, with the settings of the document. Its gradual recovery is not there yet: after
/// three successes in half-open the breaker closes at once.
async fn with_cache() -> (Runtime, Handle, Site, Site) {
    let config = VectorConfig { name: "cache".into(), role: Role::BestEffort, ..VectorConfig::default() };
    let (graph, cache) = (Site::graph(), Site::new("cache", Arc::new(VectorBackend::in_memory(config))));
    let text = "
        [backends.cache.breaker]
        failure_threshold = 5
        success_threshold = 3
        timeout_seconds = 60.0
    ";
    let runtime = start(Config::from_toml(text).expect("can be read"), &[&graph, &cache]).await;
    let handle = runtime.handle();
    (runtime, handle, graph, cache)
}

#[tokio::test(start_paused = true)]
async fn document_002_a_cache_that_fails_is_noticed_by_nobody() {
    for fault in [Fault::Down, Fault::Hung, Fault::Panic, Fault::Reset, Fault::ReadOnly] {
        let (runtime, handle, graph, cache) = with_cache().await;
        cache.set(fault);
        for k in 0..20 {
            let asked = tokio::time::Instant::now();
            let receipt = handle.store(record("a", k)).await.expect("is stored");
            assert_eq!((receipt.held, asked.elapsed()), (Held::Committed, Duration::ZERO), "{fault:?}");
            assert_eq!(n(handle.retrieve("a").await.expect("is read").record), Some(k));
        }
        assert_eq!((level(&runtime), handle.status().mode, handle.status().owed), (0, Mode::Disabled, 0));
        assert_eq!(n(graph.record("a").await), Some(19));
    }
}

#[tokio::test(start_paused = true)]
async fn document_002_the_cache_is_left_alone_and_comes_back_after_three_successes() {
    let (runtime, handle, _graph, cache) = with_cache().await;
    cache.set(Fault::Down);
    let breaker = runtime.control().breaker("cache").expect("is there");
    for k in 0..10 {
        handle.store(record("a", k)).await.expect("is stored");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(breaker.view().state, BreakerState::Open);
    let touched = cache.faults.counts().total;
    cache.heal();
    handle.store(record("a", 99)).await.expect("is stored");
    assert_eq!(cache.faults.counts().total, touched);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut successes = 0;
    while breaker.view().state != BreakerState::Recovering {
        successes += 1;
        handle.store(record("b", successes)).await.expect("is stored");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!((1..=3).contains(&successes), "{successes} writes beside the probes");
    while breaker.view().state != BreakerState::Closed {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    handle.store(record("a", 100)).await.expect("is stored");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(n(cache.record("a").await), Some(100));
}

#[tokio::test(start_paused = true)]
async fn document_002_a_cache_that_missed_a_write_never_answers_for_the_store() {
    let (runtime, handle, graph, cache) = with_cache().await;
    handle.store(record("a", 1)).await.expect("is stored");
    tokio::time::sleep(Duration::from_millis(1)).await;
    cache.faults.next(Ops::WRITES, 1, Fault::Down);
    handle.update("a", support::properties("n", 2)).await.expect("is stored");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!((read.source, n(read.record)), (Source::Backend("graph".into()), Some(2)));
    // The store is gone, and the cache is what is left: it says that nobody could be asked.
    graph.set(Fault::Down);
    runtime.control().set_mode(Mode::QueueWrites, "a test", None).await.expect("is set");
    let read = handle.retrieve("a").await.expect("is read");
    assert!(read.stale, "{read:?}");
}

// ----- document 003: breaker state across restarts ----------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn document_003_a_restart_goes_on_refusing_and_tries_again_only_after_the_timeout() {
    let mut rig = Rig::start().await;
    rig.lose(&rig.vector).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    rig.stop().await;
    rig.restart().await;
    let touched = rig.vector.faults.counts().total;
    assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Open);
    rig.mode(Mode::Disabled).await;
    for k in 0..20 {
        let refusal = refused(rig.handle().store(record("a", k)).await);
        assert!(matches!(refusal, Refusal::Unavailable { .. }), "{refusal}");
    }
    assert_eq!(rig.vector.faults.counts().total, touched, "no immediate failures after the restart");
    rig.vector.heal();
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert_eq!(rig.vector.faults.counts().total, touched, "55 of 60 seconds");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Closed);
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.restart().await;
    assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Closed, "and that is remembered too");
}

#[tokio::test(start_paused = true)]
async fn document_003_without_a_place_for_its_state_a_breaker_starts_closed() {
    let sites = [Site::graph(), Site::vector()];
    let runtime = start(Config::default(), &[&sites[0], &sites[1]]).await;
    sites[1].set(Fault::Down);
    write_until(&runtime, 2).await;
    drop(runtime);
    let runtime = start(Config::default(), &[&sites[0], &sites[1]]).await;
    assert_eq!(runtime.control().breaker("vector").expect("is there").view().state, BreakerState::Closed);
}

// ----- document 004: five modes -----------------------------------------------------------------------------------

#[test]
fn document_004_its_variables_are_understood() {
    let variables = [
        ("FALLBACK_MODE", "local_storage"),
        ("CIRCUIT_FAILURE_THRESHOLD", "3"),
        ("CIRCUIT_SUCCESS_THRESHOLD", "1"),
        ("CIRCUIT_TIMEOUT", "30"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::load_with(None, variables).expect("can be read");
    assert_eq!(config.fallback.mode_when_degraded, Mode::LocalStorage);
    assert_eq!(config.fallback.mode_when_normal, Mode::Disabled);
    let breaker = config.breaker_of(&"anything".into());
    assert_eq!((breaker.failure_threshold, breaker.success_threshold), (3, 1));
    assert_eq!(breaker.reset_timeout, Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn document_004_a_walk_through_the_five_modes() {
    let rig = Rig::start().await;
    let (handle, mut history) = (rig.handle(), History::default());
    // Disabled is the default: fails when the service is gone.
    assert_eq!(handle.status().mode, Mode::Disabled);
    history.write(&handle, record("q0", 0)).await.expect("is stored");
    rig.shut(&rig.graph).await;
    rig.shut(&rig.vector).await;
    // Below level 0 the policy has taken over; by hand it is as the mode says.
    assert_eq!(handle.status().mode, Mode::QueueWrites);
    rig.mode(Mode::Disabled).await;
    assert!(matches!(refused(handle.store(record("q1", 1)).await), Refusal::Unavailable { .. }));

    rig.mode(Mode::ReadOnly).await;
    assert!(matches!(refused(handle.store(record("q1", 1)).await), Refusal::ReadOnly { .. }));
    let read = handle.retrieve("q0").await.expect("the cache answers");
    assert!(read.stale && matches!(read.source, Source::Cache { .. }));

    rig.mode(Mode::MemoryOnly).await;
    let receipt = history.write(&handle, record("q2", 2)).await.expect("is held");
    assert!(matches!(receipt.held, Held::Volatile { .. }));

    rig.mode(Mode::LocalStorage).await;
    let receipt = history.write(&handle, record("q3", 3)).await.expect("is kept here");
    assert!(is_queued(&receipt));

    rig.mode(Mode::QueueWrites).await;
    assert!(is_queued(&history.write(&handle, record("q4", 4)).await.expect("is queued")));
    history.assert_read(&rig).await;
    assert_eq!(rig.runtime().control().drains().iter().map(|drain| drain.owed).collect::<Vec<_>>(), [3, 3]);

    // The service is back: all is given to it without anybody asking.
    rig.recover().await;
    assert_eq!(handle.status().mode, Mode::Disabled);
    history.assert_held(&rig).await;
    assert!(rig.runtime().control().drains().iter().all(|drain| drain.owed == 0 && drain.drained == 3));
}

#[tokio::test(start_paused = true)]
async fn document_004_fallback_activates_and_ends_by_itself_and_says_so() {
    let mut config = Config::default();
    config.backends.insert("vector".into(), BackendConfig::default());
    let rig = Rig::with(config).await;
    let mut events = rig.runtime().subscribe();
    rig.lose(&rig.vector).await;
    rig.handle().store(record("q", 1)).await.expect("is queued");
    rig.vector.heal();
    until("it ends by itself", || rig.handle().status().mode == Mode::Disabled).await;
    rig.quiet().await;
    let mut modes = Vec::new();
    while let Some(Update::Event(event)) = events.try_next() {
        if let EventKind::ModeChanged { to, .. } = event.kind {
            modes.push(to);
        }
    }
    assert_eq!(modes, [Mode::QueueWrites, Mode::Disabled]);
    assert_eq!(n(rig.both("q").await), Some(1));
}
