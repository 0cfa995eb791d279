use std::sync::Arc;

use proptest::prelude::*;
use seawall_actors::backend::{Backend, BackendError, ErrorKind, Fence, FencedWrite};
use seawall_actors::operation::{Change, Hit, OperationId, Search, Version};
use seawall_actors::record::{Properties, Record};

use super::{Metric, VectorBackend, VectorConfig};

fn with(metric: Metric, dimension: Option<usize>) -> VectorBackend {
    VectorBackend::in_memory(VectorConfig { metric, dimension, ..VectorConfig::default() })
}

async fn apply(store: &VectorBackend, version: u64, change: Change) -> Result<(), BackendError> {
    let (operation, version) = (OperationId::generate(), Version(version));
    let write = FencedWrite { operation, version, fence: Fence::Write, changes: Arc::new([change]) };
    store.apply(&write).await.map(drop)
}

async fn put(store: &VectorBackend, version: u64, record: Record) -> Result<(), BackendError> {
    apply(store, version, Change::put(record)).await
}

fn keys(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.record.key.as_str()).collect()
}

fn code(result: Result<impl Sized, BackendError>) -> (ErrorKind, String) {
    let error = result.err().expect("an error");
    (error.kind, error.code.expect("a code").into_owned())
}

#[tokio::test(start_paused = true)]
async fn a_search_near_a_key_leaves_the_key_out_and_a_filter_asks_for_equality() {
    let store = with(Metric::Cosine, None);
    let records = [("a", [1.0, 0.0], 1), ("b", [1.0, 0.1], 1), ("c", [1.0, 0.2], 2), ("d", [-1.0, 0.0], 1)];
    for (version, (key, at, n)) in (1..).zip(records) {
        put(&store, version, Record::new(key).with("n", n).with_embedding(at)).await.expect("stores");
    }
    put(&store, 5, Record::new("bare").with("n", 1)).await.expect("stores");
    assert_eq!(keys(&store.search(&Search::like("a")).await.expect("finds")), ["b", "c", "d"]);
    let filtered = store.search(&Search::like("a").filter("n", 1).limit(2)).await.expect("finds");
    assert_eq!(keys(&filtered), ["b", "d"]);
    assert!((filtered[1].score + 1.0).abs() < 1e-6);
    assert_eq!(filtered[1].version, Version(4));
    let (kind, code) = code(store.search(&Search::like("bare")).await);
    assert_eq!((kind, code.as_str()), (ErrorKind::Permanent, "no_embedding"));
    assert_eq!(keys(&store.find(&Properties::new().with("n", 1), 9).await.expect("finds")), ["a", "b", "bare", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_dimension_is_refused_for_good() {
    let store = with(Metric::Dot, None);
    put(&store, 1, Record::new("a").with_embedding([1.0, 2.0])).await.expect("settles the dimension");
    let wrong = (ErrorKind::Permanent, "wrong_dimension".to_owned());
    assert_eq!(code(put(&store, 2, Record::new("b").with_embedding([1.0])).await), wrong);
    assert_eq!(code(put(&store, 2, Record::new("a").with_embedding([1.0])).await), wrong);
    assert_eq!(code(store.search(&Search::near([1.0])).await), wrong);
    assert_eq!(code(put(&store, 2, Record::new("b").with_embedding([f32::NAN, 0.0])).await).1, "not_finite");
    apply(&store, 3, Change::Delete { key: "a".into() }).await.expect("deletes");
    put(&store, 4, Record::new("b").with_embedding([1.0])).await.expect("an empty store takes any");
    let fixed = with(Metric::Dot, Some(3));
    assert_eq!(code(put(&fixed, 1, Record::new("a").with_embedding([1.0])).await), wrong);
    assert!(fixed.search(&Search::near([1.0, 2.0, 3.0])).await.expect("finds nothing").is_empty());
}

#[tokio::test(start_paused = true)]
async fn points_that_overflow_come_last_and_break_nothing() {
    let store = with(Metric::Cosine, Some(2));
    put(&store, 1, Record::new("huge").with_embedding([f32::MAX, f32::MAX])).await.expect("stores");
    put(&store, 2, Record::new("zero").with_embedding([0.0, 0.0])).await.expect("stores");
    put(&store, 3, Record::new("near").with_embedding([1.0, 0.5])).await.expect("stores");
    let hits = store.search(&Search::near([1.0, 1.0])).await.expect("finds");
    assert_eq!((hits.len(), keys(&hits)[0]), (3, "near"));
}

fn naive(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = || a.iter().zip(b).map(|(x, y)| (f64::from(*x), f64::from(*y)));
    let dot: f64 = pairs().map(|(x, y)| x * y).sum();
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    match metric {
        Metric::Dot => dot,
        Metric::Euclidean => -pairs().map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt(),
        Metric::Cosine if norm(a) * norm(b) == 0.0 => 0.0,
        Metric::Cosine => dot / (norm(a) * norm(b)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_search_finds_what_a_naive_scan_finds(
        dimension in prop_oneof![1..5_usize, Just(16), 30..36_usize],
        seed in any::<u64>(),
        metric in prop_oneof![Just(Metric::Cosine), Just(Metric::Dot), Just(Metric::Euclidean)],
        puts in proptest::collection::vec((0..20_u8, 0..3_u8, proptest::bool::weighted(0.8)), 0..60),
        limit in 1..12_usize,
        wanted in proptest::option::of(0..3_u8),
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut point = || (0..dimension).map(|_| rng.i8(-4..=4).into()).collect::<Vec<f32>>();
        let target = point();
        let mut model = std::collections::BTreeMap::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let hits = runtime.block_on(async {
            let store = with(metric, Some(dimension));
            for (version, (key, n, stays)) in (1..).zip(puts) {
                let key = format!("k{key:02}");
                let at = point();
                if stays {
                    put(&store, version, Record::new(key.clone()).with("n", n).with_embedding(at.clone())).await.expect("stores");
                    model.insert(key, (n, at));
                } else {
                    apply(&store, version, Change::Delete { key: key.clone().into() }).await.expect("deletes");
                    model.remove(&key);
                }
            }
            let search = Search::near(target.clone()).limit(limit);
            let search = wanted.map_or(search.clone(), |n| search.filter("n", n));
            store.search(&search).await.expect("finds")
        });
        let mut expected: Vec<f64> = model
            .values()
            .filter(|(n, _)| wanted.is_none_or(|wanted| wanted == *n))
            .map(|(_, at)| naive(metric, at, &target))
            .collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        expected.truncate(limit);
        prop_assert_eq!(hits.len(), expected.len());
        for (hit, expected) in hits.iter().zip(&expected) {
            let (n, at) = &model[hit.record.key.as_str()];
            prop_assert!(wanted.is_none_or(|wanted| wanted == *n));
            prop_assert!((f64::from(hit.score) - naive(metric, at, &target)).abs() < 1e-4);
            prop_assert!((f64::from(hit.score) - expected).abs() < 1e-4);
        }
    }
}

/// `cargo test --release -p seawall --lib measure_a_search -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement, to be read"]
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
async fn measure_a_search_among_a_hundred_thousand_vectors() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut point = || (0..384).map(|_| rng.f32() - 0.5).collect::<Vec<f32>>();
    let store = with(Metric::Cosine, Some(384));
    for n in 0..100_000_u64 {
        put(&store, n + 1, Record::new(format!("k{n}")).with("n", n % 10).with_embedding(point()))
            .await
            .expect("stores");
    }
    for (what, filter) in [("no filter", None), ("a tenth passes the filter", Some(3))] {
        let mut times: Vec<_> = Vec::new();
        for _ in 0..50 {
            let search = Search::near(point());
            let search = filter.map_or(search.clone(), |n| search.filter("n", n));
            let start = std::time::Instant::now();
            assert_eq!(store.search(&search).await.expect("finds").len(), 10);
            times.push(start.elapsed());
        }
        times.sort();
        println!("{what}: median {:?}, best {:?}, worst {:?}", times[25], times[0], times[49]);
    }
}
