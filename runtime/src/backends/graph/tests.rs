use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use seawall_actors::backend::{Backend, Fence, FencedWrite};
use seawall_actors::operation::{Change, Direction, Hit, OperationId, Traversal, Version};
use seawall_actors::record::{Properties, Record, Relation};

use super::{GraphBackend, GraphConfig};

async fn store(changes: impl IntoIterator<Item = Change>) -> GraphBackend {
    let store = GraphBackend::in_memory(GraphConfig::default());
    for (version, change) in (1..).zip(changes) {
        apply(&store, version, change).await;
    }
    store
}

async fn apply(store: &GraphBackend, version: u64, change: Change) {
    let (operation, version) = (OperationId::generate(), Version(version));
    let write = FencedWrite { operation, version, fence: Fence::Write, changes: Arc::new([change]) };
    store.apply(&write).await.expect("applies");
}

fn keys(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.record.key.as_str()).collect()
}

fn record(key: &str, to: &[(&str, &str)]) -> Change {
    Change::put(to.iter().fold(Record::new(key), |record, (kind, to)| record.with_relation(*kind, *to)))
}

#[tokio::test(start_paused = true)]
async fn a_walk_goes_nearest_first_around_cycles_and_says_by_which_relation_it_came() {
    let store = store([
        record("a", &[("x", "b"), ("y", "c"), ("x", "a")]),
        record("b", &[("x", "d"), ("x", "a"), ("x", "nobody")]),
        record("c", &[("y", "d")]),
        record("d", &[("x", "a")]),
    ])
    .await;
    let hits = store.traverse(&Traversal::from("a").depth(9)).await.expect("walks");
    assert_eq!(keys(&hits), ["b", "c", "d"]);
    assert_eq!(hits.iter().map(|hit| hit.score).collect::<Vec<_>>(), [1.0, 1.0, 2.0]);
    assert_eq!(hits[2].via, Some(Relation::new("x", "d")));
    let back = store.traverse(&Traversal::from("d").direction(Direction::Incoming)).await.expect("walks");
    assert_eq!(keys(&back), ["b", "c"]);
    assert_eq!(back[1].via, Some(Relation::new("y", "d")));
    let along = store.traverse(&Traversal::from("a").depth(9).along("y")).await.expect("walks");
    assert_eq!(keys(&along), ["c", "d"]);
    let first = store.traverse(&Traversal::from("a").depth(9).limit(1)).await.expect("walks");
    assert_eq!(keys(&first), ["b"]);
    let dangling = store.traverse(&Traversal::from("nobody").direction(Direction::Both)).await.expect("walks");
    assert_eq!(keys(&dangling), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn relations_of_replaced_and_deleted_records_are_followed_no_more() {
    let store = store([record("a", &[("x", "b"), ("x", "b"), ("y", "b")]), record("b", &[])]).await;
    let incoming = Traversal::from("b").direction(Direction::Incoming);
    assert_eq!(keys(&store.traverse(&incoming).await.expect("walks")), ["a"]);
    apply(&store, 10, Change::Merge { key: "a".into(), properties: Properties::new().with("p", 1) }).await;
    assert_eq!(keys(&store.traverse(&incoming).await.expect("walks")), ["a"]);
    apply(&store, 11, record("a", &[("z", "b")])).await;
    assert_eq!(keys(&store.traverse(&incoming.clone().along("x")).await.expect("walks")), [""; 0]);
    assert_eq!(keys(&store.traverse(&incoming.clone().along("z")).await.expect("walks")), ["a"]);
    apply(&store, 12, Change::Delete { key: "a".into() }).await;
    assert_eq!(keys(&store.traverse(&incoming).await.expect("walks")), [""; 0]);
    assert!(store.store.table().index().incoming.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_exact_match_asks_for_every_property() {
    let puts = [("b", 1, "u"), ("a", 1, "u"), ("c", 1, "v"), ("d", 2, "u")];
    let store = store(puts.map(|(key, n, s)| Change::put(Record::new(key).with("n", n).with("s", s)))).await;
    let filter = Properties::new().with("n", 1).with("s", "u");
    assert_eq!(keys(&store.find(&filter, 9).await.expect("finds")), ["a", "b"]);
    assert_eq!(keys(&store.find(&filter, 1).await.expect("finds")), ["a"]);
    assert_eq!(keys(&store.find(&Properties::new().with("no", ()), 9).await.expect("finds")), [""; 0]);
}

type Edges = Vec<(u8, u8, u8)>;

/// Distances by relaxing every edge until nothing changes.
fn distances(edges: &Edges, live: &[bool], from: u8, kinds: &[u8], direction: Direction) -> BTreeMap<u8, u32> {
    let mut found = BTreeMap::from([(from, 0)]);
    loop {
        let before = found.clone();
        for &(a, _, b) in edges.iter().filter(|(_, kind, _)| kinds.is_empty() || kinds.contains(kind)) {
            let ways: &[(u8, u8)] = match direction {
                Direction::Outgoing => &[(a, b)],
                Direction::Incoming => &[(b, a)],
                Direction::Both => &[(a, b), (b, a)],
            };
            for (from, to) in ways {
                if let (Some(steps), true, true) =
                    (found.get(from).copied(), live[usize::from(a)], live[usize::from(*to)])
                {
                    let known = found.entry(*to).or_insert(u32::MAX);
                    *known = (*known).min(steps + 1);
                }
            }
        }
        if found == before {
            found.remove(&from);
            return found;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_walk_finds_what_a_naive_search_finds(
        edges in proptest::collection::vec((0..8_u8, 0..3_u8, 0..8_u8), 0..24),
        live in proptest::collection::vec(proptest::bool::weighted(0.8), 8),
        from in 0..8_u8,
        kinds in proptest::collection::vec(0..3_u8, 0..2),
        direction in prop_oneof![Just(Direction::Outgoing), Just(Direction::Incoming), Just(Direction::Both)],
        depth in 1..6_u32,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let hits = runtime.block_on(async {
            let name = |n: u8| format!("k{n}");
            let puts = (0..8_u8).filter(|n| live[usize::from(*n)]).map(|n| {
                let own = edges.iter().filter(|(a, ..)| *a == n);
                Change::put(own.fold(Record::new(name(n)), |record, (_, kind, b)| record.with_relation(name(*kind), name(*b))))
            });
            let traversal = Traversal::from(name(from)).depth(depth).direction(direction);
            let traversal = kinds.iter().fold(traversal, |traversal, kind| traversal.along(name(*kind)));
            store(puts).await.traverse(&traversal).await.expect("walks")
        });
        let mut expected = distances(&edges, &live, from, &kinds, direction);
        expected.retain(|_, steps| *steps <= depth);
        let found: BTreeMap<u8, u32> =
            hits.iter().map(|hit| (hit.record.key.as_str()[1..].parse().expect("a number"), hit.score as u32)).collect();
        prop_assert_eq!(found, expected);
        prop_assert!(hits.is_sorted_by_key(|hit| hit.score as u32));
    }
}
