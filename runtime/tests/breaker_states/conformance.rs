//! What every store of breaker states has to do. It must be empty.

use std::time::Duration;

use futures::future::join_all;
use seawall::backend::BackendName;
use seawall::breaker::{
    BreakerState, BreakerStateStore, FORMAT, LAST_SEQUENCE, SavedBreaker, SavedOverride, StoreError, Transition,
    TransitionCause,
};

/// A record in which no field is what it is by default.
pub(crate) fn record(sequence: u64) -> SavedBreaker {
    let transition = |from, to, cause, age| Transition { from, to, cause, generation: 7, age };
    SavedBreaker {
        format: FORMAT,
        sequence,
        state: BreakerState::Open,
        generation: 8,
        failure_count: 5,
        remaining_wait: Duration::from_millis(41_237),
        attempts: 3,
        manual: Some(SavedOverride {
            state: BreakerState::ForcedOpen,
            reason: "\"maintenance\": {\\ ü\n".to_owned(),
            remaining: Some(Duration::from_secs(600)),
        }),
        half_open_attempts: 2,
        history: vec![
            transition(
                BreakerState::Closed,
                BreakerState::Open,
                TransitionCause::ConsecutiveFailures(5),
                Duration::from_nanos(18_763_000_001),
            ),
            transition(
                BreakerState::Open,
                BreakerState::ForcedOpen,
                TransitionCause::Manual("maintenance".to_owned()),
                Duration::ZERO,
            ),
        ],
    }
}

/// Checks all of it.
pub(crate) async fn check(store: &dyn BreakerStateStore) {
    let (graph, vector) = (BackendName::from("graph"), BackendName::from("vector: {2} \"ü\""));
    assert_eq!(store.load(&graph).await, Ok(None));

    // Every field comes back, and backends do not mix.
    assert_eq!(store.save(&graph, record(3)).await, Ok(()));
    assert_eq!(store.load(&graph).await, Ok(Some(record(3))));
    assert_eq!(store.load(&vector).await, Ok(None));
    let plain = SavedBreaker { manual: None, history: Vec::new(), state: BreakerState::Closed, ..record(1) };
    assert_eq!(store.save(&vector, plain.clone()).await, Ok(()));
    assert_eq!(store.load(&vector).await, Ok(Some(plain)));
    assert_eq!(store.load(&graph).await, Ok(Some(record(3))));

    // Never an older one over a newer one, nor one that is as old.
    for older in [0, 2, 3] {
        assert_eq!(store.save(&graph, record(older)).await, Err(StoreError::Stale { held: 3 }));
    }
    assert_eq!(store.load(&graph).await, Ok(Some(record(3))));

    // Saves that race: the newest is there in the end.
    let saved = join_all([6, 12, 5, 7].map(|n| store.save(&graph, record(n)))).await;
    assert!(saved[1].is_ok(), "{saved:?}");
    assert_eq!(store.load(&graph).await, Ok(Some(record(12))));

    // What is of another format is refused here or by the breaker, and in nobody's way.
    let newer = SavedBreaker { format: FORMAT + 1, ..record(13) };
    assert_eq!(store.save(&graph, newer.clone()).await, Ok(()));
    match store.load(&graph).await {
        Err(StoreError::Unreadable(_)) => {}
        loaded => assert_eq!(loaded, Ok(Some(newer))),
    }
    assert_eq!(store.save(&graph, record(14)).await, Ok(()));

    // Numbers are whole up to the last one.
    for last in [1 << 53, (1 << 53) + 1, LAST_SEQUENCE - 1, LAST_SEQUENCE] {
        assert_eq!(store.save(&graph, record(last)).await, Ok(()));
        assert_eq!(store.save(&graph, record(last)).await, Err(StoreError::Stale { held: last }));
        assert_eq!(store.save(&graph, record(last - 1)).await, Err(StoreError::Stale { held: last }));
        assert_eq!(store.load(&graph).await, Ok(Some(record(last))));
    }
}
