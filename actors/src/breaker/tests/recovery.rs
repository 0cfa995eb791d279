//! The ramp between half-open and closed.

use tokio::time::advance;

use super::*;

const STEP: Duration = Duration::from_secs(10);

/// Two steps of 10 s, give or take a tenth: half of the calls, then three quarters.
fn ramp() -> BreakerConfig {
    BreakerConfig {
        gradual_recovery: true,
        recovery_steps: 2,
        recovery_step: STEP,
        recovery_calls: 8,
        success_threshold: 2,
        ..touchy()
    }
}

async fn recovering(config: BreakerConfig) -> Rig {
    let rig = rig(config).await;
    rig.open();
    advance(WAIT).await;
    while rig.state() != BreakerState::Recovering {
        rig.call(CallOutcome::Success);
    }
    rig
}

async fn next_step(rig: &Rig) {
    let remaining = rig.breaker.explain().recovery.expect("it is recovering").remaining;
    advance(remaining).await;
}

/// How many of a hundred calls of users are let through, one at a time.
fn let_through(rig: &Rig) -> usize {
    let call = |_: &i32| rig.breaker.gate().try_acquire(Purpose::Live).map(|lease| lease.settle(CallOutcome::Success));
    (0..100).filter(|n| call(n).is_ok()).count()
}

#[tokio::test(start_paused = true)]
async fn load_comes_back_in_steps_and_then_it_is_closed() {
    let rig = recovering(ramp()).await;
    assert_eq!(rig.breaker.explain().recovery.map(|seen| (seen.step, seen.steps, seen.share)), Some((0, 2, 0.5)));
    assert!((49..=51).contains(&let_through(&rig)));
    next_step(&rig).await;
    assert!((74..=76).contains(&let_through(&rig)));
    next_step(&rig).await;
    assert_eq!(rig.breaker.explain().recovery, None);
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.state, seen.in_flight), (BreakerState::Closed, 0));
    assert_eq!(seen.throttled, seen.rejected);
    assert!(seen.time_in_recovering >= STEP * 2 * 9 / 10 && seen.time_in_recovering <= STEP * 2 * 11 / 10);
    assert_eq!(let_through(&rig), 100);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_call_is_told_apart_from_a_refused_one_and_when_to_come_again() {
    let rig = recovering(ramp()).await;
    let refused = loop {
        match rig.breaker.gate().try_acquire(Purpose::Live) {
            Ok(lease) => lease.settle(CallOutcome::Success),
            Err(refused) => break refused,
        }
    };
    assert!(refused.is_throttled());
    assert!(refused.retry_after() > Duration::ZERO && refused.retry_after() <= STEP / 5, "{refused}");
    assert_eq!(rig.breaker.snapshot().throttled, 1);
}

#[tokio::test(start_paused = true)]
async fn trap_17_no_more_calls_are_out_than_the_ramp_allows_and_a_drain_leaves_half_of_them_to_users() {
    let rig = recovering(ramp()).await;
    let gate = rig.breaker.gate();
    let drained: Vec<_> = (0..100).filter_map(|_| gate.try_acquire(Purpose::Drain).ok()).collect();
    assert_eq!(drained.len(), 2, "half of the four places of the first step");
    assert!(gate.try_acquire(Purpose::Compensation).is_err());
    let live: Vec<_> = (0..100).filter_map(|_| gate.try_acquire(Purpose::Live).ok()).collect();
    assert_eq!(live.len(), 2);
    assert!(gate.try_acquire(Purpose::Probe).is_err());
    drop(live);
    assert!(gate.try_acquire(Purpose::Drain).is_err(), "its half is taken");
    drop(drained);
    assert!(gate.try_acquire(Purpose::Drain).is_ok());
    assert_eq!(rig.breaker.snapshot().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_fires_opens_it_again_at_once_and_the_wait_grows() {
    let rig = recovering(BreakerConfig { failure_threshold: 3, open_wait_growth: 2.0, ..ramp() }).await;
    for _ in 0..3 {
        assert_eq!(rig.state(), BreakerState::Recovering);
        rig.breaker.gate().try_acquire(Purpose::Probe).expect("a place is free").settle(CallOutcome::Failure);
    }
    assert_eq!((rig.state(), rig.refused().retry_after()), (BreakerState::Open, WAIT * 2));
    let explained = rig.breaker.explain();
    assert_eq!(explained.cause, Some(TransitionCause::RecoveryFailed { step: 1 }));
    assert_eq!(explained.opened_on.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_step_with_too_many_failures_is_bad_at_its_end() {
    for (failures, verdict) in [(4, BreakerState::Open), (3, BreakerState::Recovering)] {
        let rig = recovering(BreakerConfig { failure_threshold: 100, failure_rate: Some(0.4), ..ramp() }).await;
        for call in 0..10 {
            let outcome = if call < failures { CallOutcome::Failure } else { CallOutcome::Success };
            rig.breaker.gate().try_acquire(Purpose::Probe).expect("a place is free").settle(outcome);
        }
        assert_eq!(rig.state(), BreakerState::Recovering);
        next_step(&rig).await;
        assert_eq!(rig.breaker.snapshot().state, verdict, "{failures} of 10");
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_in_which_nobody_called_is_good() {
    let rig = recovering(ramp()).await;
    next_step(&rig).await;
    next_step(&rig).await;
    assert_eq!(rig.breaker.snapshot().state, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_holds_its_place_for_too_long_loses_it() {
    let rig = recovering(BreakerConfig { recovery_calls: 1, half_open_lease: STEP / 2, ..ramp() }).await;
    let gate = rig.breaker.gate();
    let lost = gate.try_acquire(Purpose::Probe).expect("there is one place");
    assert!(gate.try_acquire(Purpose::Probe).is_err());
    advance(STEP / 2).await;
    gate.try_acquire(Purpose::Probe).expect("it is free again").settle(CallOutcome::Success);
    lost.settle(CallOutcome::Failure);
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.state, seen.expired, seen.stale_results), (BreakerState::Recovering, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_called_in_half_open_no_longer_counts_in_the_recovery() {
    let rig = rig(BreakerConfig { success_threshold: 1, half_open_probes: Some(2), ..ramp() }).await;
    rig.open();
    advance(WAIT).await;
    let other = rig.admit();
    rig.call(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::Recovering);
    other.settle(CallOutcome::Failure);
    assert_eq!((rig.state(), rig.breaker.snapshot().stale_results), (BreakerState::Recovering, 1));
}

#[tokio::test(start_paused = true)]
async fn an_override_in_a_recovery_ends_in_probes_again() {
    let rig = recovering(ramp()).await;
    rig.breaker.force_open("maintenance", None);
    rig.breaker.lift();
    assert_eq!(rig.state(), BreakerState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_a_recovery_probes_again() {
    let store = Arc::new(MemoryStateStore::default());
    let first = rig_with(ramp(), Some(store.clone())).await;
    first.open();
    advance(WAIT).await;
    (0..2).for_each(|_| first.call(CallOutcome::Success));
    assert_eq!(first.state(), BreakerState::Recovering);
    first.cell.save().await.unwrap();
    let next = rig_with(ramp(), Some(store)).await;
    let _probe = next.admit();
    assert_eq!(next.state(), BreakerState::HalfOpen);
}
