//! Asking a breaker allocates nothing.

use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use seawall_actors::backend::BackendError;
use seawall_actors::breaker::{BreakerCell, BreakerConfig, BreakerState, CallOutcome, Gate, Purpose};
use seawall_actors::event::EventBus;

const CALLS: u64 = 1_000;

async fn gate(config: BreakerConfig) -> Arc<Gate> {
    let cell = BreakerCell::open("graph".into(), config, Arc::new(EventBus::new()), None).await;
    Arc::clone(cell.handle().gate())
}

fn allocations(call: impl Fn()) -> u64 {
    measure(|| (0..CALLS).for_each(|_| call())).count_total
}

#[test]
fn the_measure_sees_an_allocation() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), CALLS);
}

#[tokio::test(start_paused = true)]
async fn a_call_through_a_closed_breaker_allocates_nothing() {
    let gate = gate(BreakerConfig::default()).await;
    let settled = allocations(|| gate.try_acquire(Purpose::Live).expect("it is closed").settle(CallOutcome::Success));
    let dropped = allocations(|| drop(gate.try_acquire(Purpose::Live).expect("it is closed")));
    let owned = allocations(|| {
        gate.try_acquire_owned(Purpose::Live).expect("it is closed").settle_result(&Ok::<_, BackendError>(()));
    });
    assert_eq!((settled, dropped, owned), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_success_after_a_failure_which_the_policy_has_to_hear_allocates_nothing() {
    let gate = gate(BreakerConfig::default()).await;
    let call = |outcome| gate.try_acquire(Purpose::Live).expect("it is closed").settle(outcome);
    // Until as many failures are remembered as ever will be.
    for _ in 0..100 {
        call(CallOutcome::Failure);
        call(CallOutcome::Success);
    }
    let heard = allocations(|| {
        call(CallOutcome::Failure);
        call(CallOutcome::Success);
    });
    assert_eq!((heard, gate.view().state), (0, BreakerState::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_allocates_nothing_whether_the_breaker_is_open_or_its_places_are_taken() {
    let config = BreakerConfig { failure_threshold: 1, success_threshold: 1, ..BreakerConfig::default() };
    let wait = config.reset_timeout;
    let gate = gate(config).await;
    gate.try_acquire(Purpose::Live).expect("it is closed").settle(CallOutcome::Failure);
    let refuse = || assert!(gate.try_acquire(Purpose::Live).is_err());
    let open = allocations(refuse);
    tokio::time::advance(wait + Duration::from_secs(1)).await;
    let _probe = gate.try_acquire(Purpose::Probe).expect("the wait is over");
    let half_open = allocations(refuse);
    assert_eq!((open, half_open, gate.view().state), (0, 0, BreakerState::HalfOpen));
}
