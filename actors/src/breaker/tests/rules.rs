//! What opens a breaker, one rule at a time and side by side.

use ractor::Actor;
use tokio::time::{advance, sleep};

use super::*;

fn rates() -> BreakerConfig {
    BreakerConfig { failure_threshold: 10_000, minimum_calls: 4, window_calls: 10, ..abrupt() }
}

fn opened_by(rig: &Rig) -> Option<TransitionCause> {
    rig.breaker.explain().opened_by
}

/// The same with its actor, which brings the ticks.
async fn living(config: BreakerConfig) -> Rig {
    let rig = rig(config).await;
    Actor::spawn(None, BreakerActor, BreakerArguments { cell: rig.cell.clone() }).await.expect("it starts");
    rig
}

#[tokio::test(start_paused = true)]
async fn trap_08_a_long_good_past_does_not_hide_failures_from_a_window_of_calls() {
    let config = BreakerConfig { failure_rate: Some(0.5), minimum_calls: 4, window_calls: 4, ..rates() };
    let rig = rig(config).await;
    for _ in 0..100_000 {
        rig.call(CallOutcome::Success);
    }
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Closed);
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Open);
    assert_eq!(opened_by(&rig), Some(TransitionCause::FailureRate { percent: 50, calls: 4 }));
}

#[tokio::test(start_paused = true)]
async fn a_failure_rate_waits_for_enough_calls_and_forgets_what_has_left_the_window() {
    let rig = rig(BreakerConfig { failure_rate: Some(0.5), ..rates() }).await;
    for _ in 0..3 {
        rig.call(CallOutcome::Failure);
    }
    assert_eq!(rig.state(), BreakerState::Closed, "three calls are no rate");
    for _ in 0..10 {
        rig.call(CallOutcome::Success);
    }
    for _ in 0..4 {
        rig.call(CallOutcome::Failure);
    }
    assert_eq!(rig.state(), BreakerState::Closed, "four of ten, whatever came before");
    rig.call(CallOutcome::Failure);
    assert_eq!(opened_by(&rig), Some(TransitionCause::FailureRate { percent: 50, calls: 10 }));
}

#[tokio::test(start_paused = true)]
async fn what_came_before_a_transition_is_in_no_window() {
    let rig = rig(BreakerConfig { failure_rate: Some(0.5), ..rates() }).await;
    (0..3).for_each(|_| rig.call(CallOutcome::Failure));
    rig.breaker.reset();
    (0..3).for_each(|_| rig.call(CallOutcome::Success));
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Closed, "one of four");
    assert!(rig.breaker.explain().rules.iter().all(|rule| rule.calls.is_none_or(|calls| calls == 4)));
}

#[tokio::test(start_paused = true)]
async fn ignored_and_cancelled_calls_are_in_no_rate_and_refusals_are_good() {
    let rig = rig(BreakerConfig { failure_rate: Some(0.5), ..rates() }).await;
    for _ in 0..3 {
        rig.call(CallOutcome::Failure);
        rig.call(CallOutcome::Ignored);
        rig.call(CallOutcome::Cancelled);
    }
    assert_eq!(rig.state(), BreakerState::Closed);
    rig.call(CallOutcome::Refused);
    for _ in 0..3 {
        rig.call(CallOutcome::Refused);
    }
    assert_eq!(rig.breaker.snapshot().failure_rate, 3.0 / 7.0);
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn what_a_long_good_past_hides_in_the_window_of_calls_shows_in_the_window_of_time() {
    let config = BreakerConfig { failure_rate: Some(0.5), minimum_calls: 20, window_calls: 1_000, ..rates() };
    for (passes, expected) in
        [(Duration::ZERO, None), (WAIT * 60, Some(TransitionCause::RollingFailureRate { percent: 50, calls: 20 }))]
    {
        let rig = rig(config.clone()).await;
        (0..1_000).for_each(|_| rig.call(CallOutcome::Success));
        assert_eq!(rig.breaker.snapshot().successful, 1_000);
        advance(passes).await;
        for _ in 0..10 {
            rig.call(CallOutcome::Success);
            rig.call(CallOutcome::Failure);
        }
        assert_eq!(opened_by(&rig), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_rolling_window_forgets_after_its_time() {
    let rig = rig(BreakerConfig { rolling_window: WAIT, ..rates() }).await;
    rig.call(CallOutcome::Failure);
    rig.call(CallOutcome::Success);
    assert_eq!(rig.breaker.snapshot().failure_rate, 0.5);
    advance(WAIT / 2).await;
    rig.call(CallOutcome::Slow);
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.failure_rate, seen.slow_call_rate), (1.0 / 3.0, 1.0 / 3.0));
    advance(WAIT / 2 + Duration::from_secs(2)).await;
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.failure_rate, seen.slow_call_rate), (0.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_opens_it_though_nothing_fails() {
    let config = BreakerConfig { slow_call_rate: Some(0.5), slow_call: Duration::from_secs(1), ..rates() };
    let rig = rig(config).await;
    for took in [10, 999, 1_000, 1_001] {
        let mut lease = rig.admit();
        lease.called(tokio::time::Instant::now());
        advance(MS * took).await;
        assert_eq!(rig.state(), BreakerState::Closed);
        lease.settle_result(&Ok::<_, crate::backend::BackendError>(()));
    }
    assert_eq!(opened_by(&rig), Some(TransitionCause::SlowCallRate { percent: 50, calls: 4 }));
    assert_eq!(rig.breaker.snapshot().slow, 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_found_out_though_nobody_said_when_it_began() {
    let rig = living(BreakerConfig { slow_call: Duration::from_secs(1), ..abrupt() }).await;
    let (quick, slow) = (rig.admit(), rig.admit());
    sleep(MS * 900).await;
    quick.settle(CallOutcome::Success);
    sleep(MS * 400).await;
    slow.settle(CallOutcome::Success);
    assert_eq!((rig.breaker.snapshot().successful, rig.breaker.snapshot().slow), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn trap_18_a_store_that_hangs_opens_it_before_anybody_gives_up() {
    let rig = living(BreakerConfig { slow_call: Duration::from_secs(2), ..abrupt() }).await;
    let _hanging: Vec<_> = (0..64).map(|_| rig.admit()).collect();
    sleep(MS * 1_999).await;
    assert_eq!(rig.state(), BreakerState::Closed);
    sleep(MS * 502).await;
    assert_eq!(rig.state(), BreakerState::Open);
    assert_eq!(opened_by(&rig), Some(TransitionCause::CallsOverdue(64)));
}

#[tokio::test(start_paused = true)]
async fn trap_18_calls_that_are_given_up_late_count_as_failures_and_early_ones_do_not() {
    for (patience, opens) in [(MS * 1_300, true), (MS * 900, false)] {
        let config = BreakerConfig { slow_call: Duration::from_secs(1), overdue_calls: None, ..abrupt() };
        let rig = living(config).await;
        for _ in 0..5 {
            assert_eq!(rig.state(), BreakerState::Closed);
            let lease = rig.admit();
            let hangs = async move {
                std::future::pending::<()>().await;
                drop(lease);
            };
            assert!(tokio::time::timeout(patience, hangs).await.is_err());
        }
        let seen = rig.breaker.snapshot();
        assert_eq!((seen.cancelled, seen.in_flight), (5, 0));
        assert_eq!(seen.state == BreakerState::Open, opens, "{patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_an_earlier_generation_that_are_still_out_do_not_open_the_next() {
    let rig = living(BreakerConfig { slow_call: Duration::from_secs(1), ..abrupt() }).await;
    let hanging: Vec<_> = (0..20).map(|_| rig.admit()).collect();
    rig.breaker.reset();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(rig.state(), BreakerState::Closed);
    drop(hanging);
    assert_eq!((rig.state(), rig.breaker.snapshot().stale_results), (BreakerState::Closed, 20));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_nobody_calls_has_nothing_to_wake_up_for() {
    let rig = living(abrupt()).await;
    rig.call(CallOutcome::Success);
    assert!(rig.breaker.gate().alarm().borrow().is_some());
    sleep(WAIT).await;
    assert!(rig.breaker.gate().alarm().borrow().is_none());
    let _out = rig.admit();
    sleep(WAIT).await;
    assert!(rig.breaker.gate().alarm().borrow().is_some(), "a call is out");
}

#[tokio::test(start_paused = true)]
async fn the_adaptive_rule_asks_for_fewer_failures_while_the_backend_is_not_well() {
    let config = BreakerConfig { failure_threshold: 8, adaptive: true, ..abrupt() };
    let well = rig(config.clone()).await;
    (0..5).for_each(|_| well.call(CallOutcome::Failure));
    assert_eq!(well.state(), BreakerState::Closed, "so far it was well");
    let slow = rig(config.clone()).await;
    slow.breaker.probed_health(0.5);
    (0..4).for_each(|_| slow.call(CallOutcome::Failure));
    assert_eq!(slow.state(), BreakerState::Closed);
    slow.call(CallOutcome::Failure);
    assert_eq!(opened_by(&slow), Some(TransitionCause::AdaptiveFailures(5)));
    let failing = rig(config.clone()).await;
    failing.breaker.probed_health(0.0);
    (0..2).for_each(|_| failing.call(CallOutcome::Failure));
    assert_eq!(opened_by(&failing), Some(TransitionCause::AdaptiveFailures(2)), "never less than `adaptive_minimum`");
    let shaky = rig(config.clone()).await;
    (0..30).for_each(|_| {
        shaky.call(CallOutcome::Failure);
        shaky.call(CallOutcome::Success);
    });
    (0..5).for_each(|_| shaky.call(CallOutcome::Failure));
    assert_eq!(opened_by(&shaky), Some(TransitionCause::AdaptiveFailures(5)), "half of its calls fail");
    let off = rig(BreakerConfig { adaptive: false, ..config }).await;
    off.breaker.probed_health(0.0);
    (0..7).for_each(|_| off.call(CallOutcome::Failure));
    assert_eq!(off.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_shadow_says_when_it_would_have_opened_and_opens_nothing() {
    let shadow = BreakerConfig { failure_threshold: 2, ..BreakerConfig::default() };
    let rig = rig(BreakerConfig { shadow: Some(Box::new(shadow)), ..abrupt() }).await;
    let mut events = rig.bus.subscribe();
    (0..4).for_each(|_| rig.call(CallOutcome::Failure));
    assert_eq!(
        (rig.state(), rig.breaker.snapshot().shadow_opened),
        (BreakerState::Closed, 1),
        "it would be open since"
    );
    rig.call(CallOutcome::Success);
    advance(WAIT).await;
    (0..2).for_each(|_| rig.call(CallOutcome::Failure));
    assert_eq!((rig.state(), rig.breaker.snapshot().shadow_opened), (BreakerState::Closed, 2));
    let told = drain(&mut events);
    assert_eq!(told.len(), 2);
    for event in told {
        let cause = TransitionCause::ConsecutiveFailures(2);
        let would_open =
            EventKind::BreakerWouldOpen { backend: "graph".into(), cause: cause.clone(), why: WouldOpen::Shadow };
        assert_eq!(event.kind, would_open);
    }
    let shadow = rig.breaker.explain().shadow.expect("there is one");
    assert_eq!((shadow.opened, shadow.age), (2, Some(Duration::ZERO)));
}

#[tokio::test(start_paused = true)]
async fn in_metrics_only_everything_is_judged_and_nothing_is_refused() {
    let rig = rig(BreakerConfig { failure_threshold: 2, ..abrupt() }).await;
    let mut events = rig.bus.subscribe();
    rig.breaker.metrics_only("a trial", Some(WAIT));
    for _ in 0..5 {
        rig.call(CallOutcome::Failure);
    }
    assert_eq!((rig.state(), rig.breaker.snapshot().failed), (BreakerState::MetricsOnly, 5));
    let told = drain(&mut events);
    let would = told.iter().filter(|event| matches!(event.kind, EventKind::BreakerWouldOpen { .. })).count();
    assert_eq!((told.len(), would), (3, 2));
    advance(WAIT).await;
    assert_eq!(rig.breaker.snapshot().state, BreakerState::Closed);
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Closed, "what came before does not count");
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_keeps_what_was_seen() {
    let config = BreakerConfig { failure_rate: Some(0.5), window_calls: 100, ..rates() };
    let rig = rig(config.clone()).await;
    for _ in 0..10 {
        rig.call(CallOutcome::Success);
        rig.call(CallOutcome::Success);
        rig.call(CallOutcome::Failure);
    }
    let reading = |rig: &Rig, rule| rig.breaker.explain().rules.into_iter().find(|reading| reading.rule == rule);
    assert_eq!(reading(&rig, "failure_rate").unwrap().reading, 1.0 / 3.0);
    rig.breaker.reconfigure(BreakerConfig { failure_rate: Some(0.9), window_calls: 60, ..config.clone() }).unwrap();
    let seen = reading(&rig, "failure_rate").unwrap();
    assert_eq!((seen.reading, seen.threshold, seen.calls), (1.0 / 3.0, 0.9, Some(30)));
    rig.breaker.reconfigure(BreakerConfig { rolling_window: WAIT * 2, ..config }).unwrap();
    assert_eq!(reading(&rig, "rolling_failure_rate").unwrap().calls, Some(30));
    assert_eq!(rig.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_open_wait_grows_with_every_probe_that_fails_and_starts_anew_once_it_was_closed() {
    let rig = rig(BreakerConfig { open_wait_growth: 2.0, open_wait_max: WAIT * 3, ..touchy() }).await;
    rig.open();
    for wait in [WAIT, WAIT * 2, WAIT * 3, WAIT * 3] {
        assert_eq!(rig.refused().retry_after(), wait);
        advance(wait).await;
        rig.call(CallOutcome::Failure);
    }
    advance(WAIT * 3).await;
    rig.call(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::Closed);
    rig.open();
    assert_eq!(rig.refused().retry_after(), WAIT);
}

#[tokio::test(start_paused = true)]
async fn jitter_makes_a_wait_shorter_and_never_longer() {
    let rig = rig(BreakerConfig { open_wait_jitter: 0.5, ..touchy() }).await;
    let mut waits = Vec::new();
    for _ in 0..50 {
        rig.open();
        waits.push(rig.refused().retry_after());
        rig.breaker.reset();
    }
    assert!(waits.iter().all(|wait| (WAIT / 2..=WAIT).contains(wait)), "{waits:?}");
    assert!(waits.iter().any(|wait| *wait != waits[0]));
}
