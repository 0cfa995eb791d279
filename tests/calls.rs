//! How hard backends are called, each in its own way: for how long, how often again, and how many calls at a time.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use seawall::Refusal;
use seawall::backend::{Applied, Backend, BackendError, BackendName, Capabilities, FencedWrite, Health, Stored};
use seawall::backends::{Fault, GraphBackend, GraphConfig, Op, Ops};
use seawall::breaker::BreakerState;
use seawall::call::{BudgetConfig, CallConfig, RetryConfig};
use seawall::config::{BackendConfig, Config};
use seawall::fallback::Mode;
use seawall::operation::{Held, Source, Version};
use seawall::record::Key;
use support::{Rig, Site, n, record, refused, until};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// A store that takes a second for everything, and counts the calls in it.
struct Narrow {
    inner: GraphBackend,
    inside: AtomicUsize,
    most: AtomicUsize,
    probed: AtomicUsize,
}

impl Narrow {
    fn new() -> Arc<Self> {
        let inner = GraphBackend::in_memory(GraphConfig::default());
        Arc::new(Self { inner, inside: AtomicUsize::new(0), most: AtomicUsize::new(0), probed: AtomicUsize::new(0) })
    }

    async fn slowly<T>(&self, work: impl Future<Output = T>) -> T {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        sleep(SECOND).await;
        let done = work.await;
        self.inside.fetch_sub(1, Ordering::SeqCst);
        done
    }
}

#[async_trait]
impl Backend for Narrow {
    fn name(&self) -> BackendName {
        self.inner.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.slowly(self.inner.apply(write)).await
    }
    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.slowly(self.inner.read(keys)).await
    }
    async fn probe(&self) -> Result<Health, BackendError> {
        self.probed.fetch_add(1, Ordering::SeqCst);
        Ok(Health::Healthy)
    }
    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.inner.newest_version().await
    }
}

/// The graph is called so, and everything else as by default.
fn graph_called(call: CallConfig) -> Config {
    let mut config = Config::default();
    config.backends.insert("graph".to_owned(), BackendConfig { call, ..BackendConfig::default() });
    config
}

/// Two stores, of which the graph takes a second for everything and has two places.
async fn narrow() -> (Rig, Arc<Narrow>) {
    let narrow = Narrow::new();
    let graph = Site::new("graph", Arc::clone(&narrow) as _);
    let config = graph_called(CallConfig { max_concurrent: 2, ..CallConfig::default() });
    (Rig::over(graph, Site::vector(), config).await, narrow)
}

/// What a metric of the graph says.
fn metric(rig: &Rig, name: &str) -> f64 {
    let page = rig.runtime().metrics().expect("metrics are served");
    let series = format!("seawall_backend_{name}{{backend=\"graph\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&series));
    line.unwrap_or_else(|| panic!("no {series} in {page}")).parse().expect("is a number")
}

#[tokio::test(start_paused = true)]
async fn a_hundred_users_and_a_drain_never_put_more_calls_into_a_slow_store_than_it_has_places() {
    let (rig, narrow) = narrow().await;
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.graph).await;
    for k in 0..20 {
        rig.handle().store(record(&format!("old-{k}"), k)).await.expect("is queued");
    }
    rig.open(&rig.graph).await;
    let users = (0..100_u64).map(|user| {
        let handle = rig.handle();
        async move {
            for turn in 0..20 {
                let (key, asked) = (format!("k{user}"), Instant::now());
                let receipt = handle.store(record(&key, turn)).await.expect("is committed or queued");
                assert!(matches!(receipt.held, Held::Committed | Held::Queued { .. }), "{receipt:?}");
                let read = handle.retrieve(key.as_str()).await.expect("somebody can be asked");
                assert_eq!((n(read.record), read.stale), (Some(turn), false), "{key}");
                assert!(asked.elapsed() <= 4 * SECOND, "{:?}", asked.elapsed());
                sleep(SECOND).await;
            }
        }
    });
    join_all(users).await;
    assert!(rig.handle().status().owed > 0, "it is far too slow for them");
    rig.quiet().await;
    assert_eq!(narrow.most.load(Ordering::SeqCst), 2);
    for k in 0..20 {
        assert_eq!(n(rig.both(&format!("old-{k}")).await), Some(k));
    }
    for user in 0..100 {
        assert_eq!(n(rig.both(&format!("k{user}")).await), Some(19));
    }
    let breaker = rig.breaker(&rig.graph).snapshot();
    assert_eq!((breaker.state, breaker.failed, breaker.in_flight), (BreakerState::Closed, 0, 0), "{breaker:?}");
}

#[tokio::test(start_paused = true)]
async fn where_writes_go_straight_through_those_without_a_place_are_refused_before_anything_is_done() {
    let (rig, narrow) = narrow().await;
    let writes = (0..100_u64).map(|k| {
        let handle = rig.handle();
        async move {
            let asked = Instant::now();
            (k, handle.store(record(&format!("k{k}"), k)).await, asked.elapsed())
        }
    });
    let mut stored = 0;
    for (k, result, after) in join_all(writes).await {
        let kept = n(rig.both(&format!("k{k}")).await);
        match result {
            Ok(receipt) => {
                assert_eq!((receipt.held, kept), (Held::Committed, Some(k)));
                stored += 1;
            }
            Err(refusal) => {
                assert!(matches!(&refusal, Refusal::Unavailable { backend, .. } if backend.as_str() == "graph"));
                assert!(refusal.retry_after().is_some(), "{refusal:?}");
                assert_eq!((kept, after), (None, Duration::ZERO));
            }
        }
    }
    assert_eq!((stored, narrow.most.load(Ordering::SeqCst)), (2, 2));
    assert_eq!((rig.handle().status().owed, rig.breaker(&rig.graph).snapshot().failed), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_place_is_probed_all_the_same() {
    let (rig, narrow) = narrow().await;
    let probed = narrow.probed.load(Ordering::SeqCst);
    let until = Instant::now() + 90 * SECOND;
    let readers = (0..8).map(|_| async {
        while Instant::now() < until {
            let _ = rig.handle().retrieve("a").await;
            sleep(SECOND / 100).await;
        }
    });
    join_all(readers).await;
    assert!(narrow.probed.load(Ordering::SeqCst) >= probed + 2);
    assert_eq!(narrow.most.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_retries_end_with_the_budget_and_each_store_has_its_own() {
    let budget = BudgetConfig { capacity: 10, per_call: 0.1, per_second: 0.0 };
    let call = CallConfig { retry: RetryConfig { budget, ..RetryConfig::default() }, ..CallConfig::default() };
    let mut config = graph_called(call);
    config.metrics.listen = Some(([127, 0, 0, 1], 0).into());
    config.breaker.failure_threshold = 10_000;
    config.backends.values_mut().for_each(|backend| backend.breaker.failure_threshold = 10_000);
    let rig = Rig::with(config).await;
    rig.graph.faults.set(Op::Apply, Fault::Down);
    let before = rig.graph.faults.counts().of(Op::Apply).made;
    for k in 0..200 {
        let refusal = refused(rig.handle().store(record(&format!("k{k}"), k)).await);
        assert!(matches!(refusal, Refusal::RolledBack { .. }), "{refusal:?}");
    }
    let made = rig.graph.faults.counts().of(Op::Apply).made - before;
    // Each write also reads what is there: two calls that are no retries.
    assert!((240..=250).contains(&made), "{made} tries of 200 writes, and 10 + a tenth of 400 retries");
    let retries = metric(&rig, "retries_total");
    assert!((40.0..=50.0).contains(&retries), "{retries}");
    assert!(metric(&rig, "retry_budget_exhausted_total") >= 150.0);
    assert_eq!((metric(&rig, "bulkhead_rejections_total"), metric(&rig, "calls_in_flight")), (0.0, 0.0));
    // The other store has all of its own.
    rig.graph.heal();
    let before = rig.vector.faults.counts().of(Op::Apply).made;
    rig.vector.faults.set(Op::Apply, Fault::Down);
    refused(rig.handle().store(record("last", 1)).await);
    assert_eq!(rig.vector.faults.counts().of(Op::Apply).made - before, 1 + 3);
    rig.recover().await;
}

#[tokio::test(start_paused = true)]
async fn each_store_has_the_time_that_it_is_given() {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut config = graph_called(CallConfig { timeout: SECOND / 5, retry: retry.clone(), ..CallConfig::default() });
    config.call.retry = retry;
    let rig = Rig::with(config).await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    for (site, time) in [(&rig.graph, SECOND / 5), (&rig.vector, 10 * SECOND)] {
        site.set(Fault::Hung);
        let asked = Instant::now();
        let refusal = refused(rig.handle().store(record("a", 2)).await);
        assert!(matches!(&refusal, Refusal::Unavailable { backend, .. } if backend.as_str() == site.name));
        assert_eq!(asked.elapsed(), time, "{}", site.name);
        site.heal();
    }
    // Half of a read's ten seconds would be the graph's.
    rig.graph.faults.set(Ops::READS, Fault::Hung);
    let asked = Instant::now();
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert_eq!((read.source, asked.elapsed()), (Source::Backend("vector".into()), SECOND / 5));
    until("all calls are over", || rig.breaker(&rig.graph).snapshot().in_flight == 0).await;
}
