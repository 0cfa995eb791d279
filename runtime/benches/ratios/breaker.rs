//! Asking a breaker, against the breakers of others: rows 1 to 4.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use failsafe::CircuitBreaker as _;
use futures::FutureExt as _;
use ractor::Actor;
use recloser::Recloser;
use seawall::breaker::{
    BreakerActor, BreakerArguments, BreakerCell, BreakerConfig, BreakerState, CallOutcome, Gate, Purpose,
};
use seawall::event::EventBus;
use seawall::fallback::Mode;
use seawall::record::Record;
use seawall::{Handle, Runtime};
use tower::{Service, ServiceExt};
use tower_resilience_circuitbreaker::CircuitBreakerLayer;

use crate::measure::{Effort, interleave, per_call, per_contended_call, per_task_call};
use crate::stage::{Echo, Noop, current_thread, records, start};
use crate::table::{Aim, Row, both};

/// So long that it does not end.
const DAY: Duration = Duration::from_secs(24 * 3_600);

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    let mut rows = vec![consecutive(effort)];
    rows.extend(all_on(effort));
    rows.extend(contended(effort));
    rows.push(window(effort));
    rows.extend(refusal(effort));
    rows.push(refused_store(effort));
    rows
}

/// Only failures in a row count: no clock has to be read.
fn only_consecutive() -> BreakerConfig {
    BreakerConfig { reset_timeout: DAY, ..BreakerConfig::default() }
}

/// Every rule there is.
fn all_rules() -> BreakerConfig {
    windowed(100)
}

/// Every rule there is, over so many calls.
fn windowed(calls: u32) -> BreakerConfig {
    let shadow = BreakerConfig { failure_threshold: 3, ..BreakerConfig::default() };
    BreakerConfig {
        reset_timeout: DAY,
        failure_rate: Some(0.5),
        slow_call_rate: Some(0.5),
        window_calls: calls,
        adaptive: true,
        shadow: Some(Box::new(shadow)),
        ..BreakerConfig::default()
    }
}

/// A breaker without its actor: whatever it costs, no message is in it.
fn gate(config: BreakerConfig) -> Arc<Gate> {
    let cell = BreakerCell::open("graph".into(), config, Arc::new(EventBus::new()), None);
    let cell = cell.now_or_never().expect("without a store there is nothing to wait for");
    Arc::clone(cell.handle().gate())
}

fn call(gate: &Gate) {
    if let Ok(lease) = black_box(gate).try_acquire(Purpose::Live) {
        lease.settle(CallOutcome::Success);
    }
}

fn succeed() -> Result<(), ()> {
    black_box(Ok(()))
}

fn failsafe_breaker() -> impl failsafe::CircuitBreaker + Sync {
    failsafe::Config::new().build()
}

/// As a service that does nothing, behind the breaker.
fn tower_breaker() -> impl Service<(), Response = (), Future: Send> + Send + 'static {
    let layer = CircuitBreakerLayer::builder().wait_duration_in_open(DAY).build().expect("the defaults are in range");
    layer.layer_fn(tower::service_fn(async |()| Ok::<(), std::io::Error>(())))
}

/// What a call through a tower service costs.
fn per_tower_call(calls: u64, mut service: impl Service<(), Future: Send> + Send + 'static) -> f64 {
    let runtime = current_thread();
    per_task_call(&runtime, calls, async move {
        for _ in 0..calls {
            let Ok(ready) = service.ready().await else { continue };
            let _ = black_box(ready.call(()).await.is_ok());
        }
    })
}

fn consecutive(effort: Effort) -> Row {
    let calls = effort.pick(500_000, 50_000);
    let (gate, recloser) = (gate(only_consecutive()), Recloser::default());
    let rounds = interleave(
        effort.rounds(),
        [&mut || per_call(calls, || call(&gate)), &mut || per_call(calls, || drop(recloser.call(succeed)))],
    );
    let medians = both(rounds.median(0), rounds.median(1));
    let what = "breaker: admit and report a success, failures in a row count";
    Row::ratio("1", what, "recloser", rounds.ratio(0, 1), medians, Aim::AtMost(0.5))
}

fn all_on(effort: Effort) -> Vec<Row> {
    let calls = effort.pick(300_000, 30_000);
    let (gate, recloser, failsafe) = (gate(all_rules()), Recloser::default(), failsafe_breaker());
    let rounds = interleave(
        effort.rounds(),
        [
            &mut || per_call(calls, || call(&gate)),
            &mut || per_call(calls, || drop(recloser.call(succeed))),
            &mut || per_call(calls, || drop(failsafe.call(succeed))),
            &mut || per_tower_call(calls / 5, tower_breaker()),
        ],
    );
    let against = |number, other, variant| {
        let medians = both(rounds.median(0), rounds.median(variant));
        let what = "the same with all rules on";
        Row::ratio(number, what, other, rounds.ratio(0, variant), medians, Aim::AtMost(1.0))
    };
    vec![against("2a", "recloser", 1), against("2b", "failsafe", 2), against("2c", "tower-resilience", 3)]
}

fn contended(effort: Effort) -> Vec<Row> {
    // About a millisecond: a longer stretch is interrupted, where others want the processors too.
    let calls = 5_000;
    let (gate, recloser, failsafe) = (gate(all_rules()), Recloser::default(), failsafe_breaker());
    let rounds = interleave(
        effort.rounds(),
        [
            &mut || per_contended_call(calls, || call(&gate)),
            &mut || per_contended_call(calls, || drop(recloser.call(succeed))),
            &mut || per_contended_call(calls, || drop(failsafe.call(succeed))),
        ],
    );
    let against = |number, other, variant, aim| {
        let medians = both(rounds.median(0), rounds.median(variant));
        let what = "the same by two threads at once";
        Row::ratio(number, what, other, rounds.ratio(0, variant), medians, aim)
    };
    vec![against("2d", "recloser", 1, Aim::AtMost(0.3)), against("2e", "failsafe", 2, Aim::AtMost(1.0))]
}

fn window(effort: Effort) -> Row {
    let calls = effort.pick(300_000, 30_000);
    let (few, many) = (gate(windowed(1_000)), gate(windowed(1_000_000)));
    (0..1_000).for_each(|_| call(&few));
    (0..1_000_000).for_each(|_| call(&many));
    let rounds =
        interleave(effort.rounds(), [&mut || per_call(calls, || call(&many)), &mut || per_call(calls, || call(&few))]);
    let medians = both(rounds.median(0), rounds.median(1));
    let what = "the same with 1 000 000 calls in the window";
    Row::ratio("3", what, "1 000 in the window", rounds.ratio(0, 1), medians, Aim::AtMost(1.1))
}

/// An open breaker with its actor, whose timer is set: as it is in a runtime.
async fn watched_and_open() -> Arc<Gate> {
    let config = BreakerConfig { failure_threshold: 1, ..only_consecutive() };
    let cell = BreakerCell::open("graph".into(), config, Arc::new(EventBus::new()), None).await;
    let gate = Arc::clone(cell.handle().gate());
    Actor::spawn(None, BreakerActor, BreakerArguments { cell }).await.expect("it starts");
    gate.try_acquire(Purpose::Live).expect("it is closed").settle(CallOutcome::Failure);
    assert_eq!(gate.view().state, BreakerState::Open);
    tokio::time::sleep(Duration::from_millis(5)).await;
    gate
}

fn refusal(effort: Effort) -> Vec<Row> {
    let calls = effort.pick(500_000, 50_000);
    let tokio = current_thread();
    let gate = tokio.block_on(watched_and_open());
    let recloser = Recloser::custom().closed_len(1).open_wait(DAY).build();
    while recloser.call(|| Err::<(), ()>(())).is_err_and(|error| matches!(error, recloser::Error::Inner(()))) {}
    let policy = failsafe::failure_policy::consecutive_failures(1, failsafe::backoff::constant(DAY));
    let failsafe = failsafe::Config::new().failure_policy(policy).build();
    let _ = failsafe.call(|| Err::<(), ()>(()));
    assert!(!failsafe.is_call_permitted());
    let open = CircuitBreakerLayer::builder().consecutive_failures(1).wait_duration_in_open(DAY).build();
    let open = open.expect("the settings are in range");
    let tower = open.layer_fn(tower::service_fn(async |()| Err::<(), _>(std::io::Error::other("down"))));
    assert!(tower.clone().oneshot(()).now_or_never().is_some_and(|answer| answer.is_err()) && tower.is_open());
    let rounds = interleave(
        effort.rounds(),
        [
            &mut || per_call(calls, || assert!(black_box(&gate).try_acquire(Purpose::Live).is_err())),
            &mut || per_call(calls, || assert!(recloser.call(succeed).is_err())),
            &mut || per_call(calls, || assert!(failsafe.call(succeed).is_err())),
            &mut || per_tower_call(calls / 5, tower.clone()),
        ],
    );
    let against = |number, other, variant, aim| {
        let medians = both(rounds.median(0), rounds.median(variant));
        Row::ratio(number, "refusal by an open breaker", other, rounds.ratio(0, variant), medians, aim)
    };
    vec![
        against("4a", "recloser", 1, Aim::AtMost(0.3)),
        against("4b", "failsafe", 2, Aim::AtMost(1.0)),
        against("4c", "tower-resilience", 3, Aim::AtMost(1.0)),
    ]
}

async fn refusing() -> (Runtime, Handle) {
    let runtime = start(Noop::two(), crate::stage::roomy()).await;
    let control = runtime.control();
    control.set_mode(Mode::Disabled, "to refuse", None).await.expect("the manager answers");
    for backend in ["graph", "vector"] {
        control.breaker(backend).expect("it is there").force_open("to refuse", None);
    }
    let handle = runtime.handle();
    (runtime, handle)
}

async fn refuse_all(handle: Handle, records: Vec<Record>) {
    for record in records {
        assert!(handle.store(record).await.is_err());
    }
}

fn refused_store(effort: Effort) -> Row {
    let calls = effort.pick(20_000, 2_000);
    let tokio = current_thread();
    let (_runtime, handle) = tokio.block_on(refusing());
    let echo = tokio.block_on(Echo::start());
    let rounds = interleave(
        effort.rounds(),
        [&mut || per_task_call(&tokio, calls, refuse_all(handle.clone(), records(calls))), &mut || {
            per_task_call(&tokio, calls, Echo::call(echo.clone(), calls))
        }],
    );
    let medians = both(rounds.median(0), rounds.median(1));
    let what = "a whole store, refused by open breakers";
    Row::ratio("4d", what, "one ractor `call!`", rounds.ratio(0, 1), medians, Aim::AtMost(0.5))
}
