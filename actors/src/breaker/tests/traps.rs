//! What good breakers catch. Each test names the trap that it keeps shut.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::sync::{Barrier, oneshot};
use tokio::time::advance;

use super::*;

#[tokio::test(start_paused = true)]
async fn trap_01_a_stale_result_is_counted_and_changes_nothing() {
    let rig = rig(touchy()).await;
    let stale = rig.admit();
    rig.open();
    advance(WAIT).await;
    let probe = rig.admit();
    stale.settle(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::HalfOpen);
    probe.settle(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::Closed);
    let seen = rig.breaker.snapshot();
    assert_eq!(seen.stale_results, 1);
    assert_eq!(rig.breaker.explain().failures.len(), 1, "only the failure that opened it is remembered");
}

#[tokio::test(start_paused = true)]
async fn trap_01_a_stale_success_does_not_close_it() {
    let rig = rig(touchy()).await;
    let stale = rig.admit();
    rig.open();
    advance(WAIT).await;
    let probe = rig.admit();
    stale.settle(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::HalfOpen);
    rig.refused();
    probe.settle(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn trap_02_a_result_that_is_stale_across_a_full_cycle_changes_nothing() {
    let rig = rig(touchy()).await;
    let stale = rig.admit();
    rig.open();
    advance(WAIT).await;
    rig.call(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::Closed);
    stale.settle(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Closed);
    assert_eq!(rig.breaker.snapshot().stale_results, 1);
}

#[tokio::test(start_paused = true)]
async fn trap_03_a_lost_probe_gives_its_place_to_exactly_one_other_and_its_late_report_changes_nothing() {
    for late in [CallOutcome::Success, CallOutcome::Failure] {
        let config = touchy();
        let lease = config.half_open_lease;
        let rig = rig(config).await;
        rig.open();
        advance(WAIT).await;
        let lost = rig.admit();
        advance(lease - MS).await;
        rig.refused();
        advance(MS * 2).await;
        let next = rig.admit();
        rig.refused();
        lost.settle(late);
        assert_eq!(rig.state(), BreakerState::HalfOpen);
        rig.refused();
        let seen = rig.breaker.snapshot();
        assert_eq!((seen.expired, seen.stale_results, seen.in_flight), (1, 1, 1));
        next.settle(CallOutcome::Success);
        assert_eq!(rig.state(), BreakerState::Closed);
        assert_eq!(rig.breaker.snapshot().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn trap_03_a_report_after_the_lease_changes_nothing_even_if_nobody_took_the_place() {
    let config = touchy();
    let lease = config.half_open_lease;
    let rig = rig(config).await;
    rig.open();
    advance(WAIT).await;
    let lost = rig.admit();
    assert_eq!(lost.deadline(), Some(tokio::time::Instant::now() + lease));
    advance(lease).await;
    lost.settle(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::HalfOpen);
    rig.call(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn trap_04_a_dropped_call_frees_its_place_and_counts_as_cancelled() {
    let rig = rig(touchy()).await;
    rig.open();
    advance(WAIT).await;
    let call = |lease: OwnedLease| async move {
        std::future::pending::<()>().await;
        lease.settle(CallOutcome::Failure);
    };
    // Between admission and the first poll.
    drop(call(rig.admit()));
    // After the first poll.
    let mut polled = Box::pin(call(rig.admit()));
    assert!(polled.as_mut().now_or_never().is_none());
    drop(polled);
    // Inside a `select!`.
    tokio::select! {
        () = call(rig.admit()) => {}
        () = tokio::time::sleep(MS) => {}
    }
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.in_flight, seen.cancelled, seen.successful), (0, 3, 0));
    assert_eq!(seen.state, BreakerState::HalfOpen);
    rig.call(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::Closed);
}

#[test]
fn trap_05_threads_that_are_released_at_the_end_of_the_wait_get_no_more_places_than_there_are() {
    for round in 0..200 {
        let permitted = 1 + round % 3;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        let admitted = runtime.block_on(async {
            // The wait is over at once; the first caller makes it half-open and takes a place itself.
            let saved = SavedBreaker {
                format: FORMAT,
                sequence: 1,
                state: BreakerState::HalfOpen,
                generation: 1,
                failure_count: 0,
                remaining_wait: Duration::ZERO,
                attempts: 1,
                manual: None,
                half_open_attempts: 1,
                history: Vec::new(),
            };
            let store = Arc::new(MemoryStateStore::default());
            store.save(&"graph".into(), saved).await.unwrap();
            let config = BreakerConfig { half_open_probes: Some(permitted), ..touchy() };
            let rig = rig_with(config, Some(store)).await;
            let barrier = Arc::new(Barrier::new(64));
            let callers: Vec<_> = (0..64)
                .map(|_| {
                    let (gate, barrier) = (Arc::clone(rig.breaker.gate()), Arc::clone(&barrier));
                    tokio::spawn(async move {
                        barrier.wait().await;
                        gate.try_acquire_owned(Purpose::Live)
                    })
                })
                .collect();
            let leases = futures::future::join_all(callers).await;
            leases.into_iter().filter_map(|lease| lease.unwrap().ok()).collect::<Vec<_>>().len()
        });
        assert_eq!(admitted, permitted as usize);
    }
}

#[tokio::test(start_paused = true)]
async fn trap_06_a_probe_that_an_inner_gate_refuses_gives_its_place_back() {
    let (outer, inner) = (rig(touchy()).await, rig(touchy()).await);
    outer.open();
    inner.open();
    inner.breaker.force_open("maintenance", None);
    advance(WAIT).await;
    let lease = outer.admit();
    inner.refused();
    lease.settle(CallOutcome::Cancelled);
    assert_eq!(outer.breaker.snapshot().in_flight, 0);
    outer.call(CallOutcome::Success);
    assert_eq!(outer.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn trap_07_outcomes_that_do_not_count_cannot_starve_the_recovery() {
    let rig = rig(abrupt()).await;
    rig.open();
    advance(WAIT).await;
    for _ in 0..100 {
        rig.call(CallOutcome::Ignored);
    }
    assert_eq!(rig.state(), BreakerState::HalfOpen, "ignored outcomes return their place");
    rig.call(CallOutcome::Refused);
    rig.call(CallOutcome::Refused);
    assert_eq!(rig.state(), BreakerState::Closed, "a backend that says no is alive");
}

#[tokio::test(start_paused = true)]
async fn trap_09_probes_that_come_rarely_still_close_it() {
    let rig = rig(BreakerConfig { success_threshold: 3, ..abrupt() }).await;
    rig.open();
    advance(WAIT).await;
    for _ in 0..3 {
        advance(WAIT * 10).await;
        rig.call(CallOutcome::Success);
    }
    assert_eq!(rig.state(), BreakerState::Closed);
}

/// Calls, and panics while the lease is held.
async fn panic_with(lease: OwnedLease) {
    let call = async move {
        let _lease = lease;
        tokio::task::yield_now().await;
        panic!("a bug in a backend");
    };
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn trap_10_a_panic_is_a_failure_in_every_state_and_leaks_nothing() {
    let rig = rig(BreakerConfig { failure_threshold: 3, ..touchy() }).await;
    for _ in 0..3 {
        panic_with(rig.admit()).await;
    }
    assert_eq!(rig.state(), BreakerState::Open);
    advance(WAIT).await;
    panic_with(rig.admit()).await;
    assert_eq!(rig.state(), BreakerState::Open);
    rig.breaker.force_closed("to try", None);
    panic_with(rig.admit()).await;
    rig.breaker.disable("to try", None);
    panic_with(rig.admit()).await;
    rig.breaker.reset();
    rig.call(CallOutcome::Success);
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.panicked, seen.failed, seen.cancelled, seen.in_flight), (5, 0, 0, 0));
    assert_eq!(rig.breaker.explain().opened_by, None);
}

#[tokio::test(start_paused = true)]
async fn trap_11_a_subscriber_may_call_the_breaker_and_events_are_in_order_without_gaps() {
    let rig = rig(touchy()).await;
    let mut events = rig.bus.subscribe();
    let breaker = rig.breaker.clone();
    let (done, forced) = oneshot::channel();
    let listener = tokio::spawn(async move {
        let mut seen = Vec::new();
        let mut done = Some(done);
        while let Some(Update::Event(event)) = events.next().await {
            let _ = (breaker.view(), breaker.snapshot(), breaker.explain());
            let _ = breaker.gate().try_acquire(Purpose::Live).map(|lease| lease.settle(CallOutcome::Success));
            seen.push(event);
            if let Some(done) = done.take() {
                breaker.force_open("the listener says so", None);
                let _ = done.send(());
            }
            if seen.len() == 4 {
                return seen;
            }
        }
        seen
    });
    rig.open();
    forced.await.unwrap();
    assert_eq!(rig.state(), BreakerState::ForcedOpen);
    rig.breaker.lift();
    rig.breaker.reset();
    let seen = listener.await.unwrap();
    let sequences: Vec<_> = seen.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
    assert_eq!(states(&seen), [BreakerState::Open, BreakerState::ForcedOpen, BreakerState::Open, BreakerState::Closed]);
}

#[tokio::test(start_paused = true)]
async fn trap_12_it_is_half_open_at_exactly_the_end_of_the_wait_and_not_before() {
    let rig = rig(touchy()).await;
    rig.open();
    advance(WAIT - Duration::from_nanos(1)).await;
    assert_eq!(rig.refused().retry_after(), Duration::from_nanos(1));
    assert_eq!(rig.state(), BreakerState::Open);
    advance(Duration::from_nanos(1)).await;
    let _probe = rig.admit();
    assert_eq!(rig.state(), BreakerState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn trap_14_probes_alone_heal_a_backend_without_traffic() {
    let rig = rig(abrupt()).await;
    rig.open();
    advance(WAIT).await;
    for _ in 0..2 {
        rig.breaker.gate().try_acquire(Purpose::Probe).unwrap().settle(CallOutcome::Success);
    }
    assert_eq!(rig.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn trap_16_a_refusal_touches_nothing_and_says_when_to_come_again() {
    let rig = rig(touchy()).await;
    rig.open();
    let before = rig.breaker.snapshot();
    for _ in 0..1_000 {
        assert_eq!(rig.refused().retry_after(), WAIT);
    }
    let after = rig.breaker.snapshot();
    assert_eq!((after.rejected, after.admitted, after.failed), (1_000, before.admitted, before.failed));
    assert_eq!(rig.refused().to_string(), "the breaker is open; retry after 60s");
}
