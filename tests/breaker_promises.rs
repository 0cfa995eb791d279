//! The traps that circuit breakers fall into, and the tests that keep them shut.
//!
//! [`TRAPS`] names at least one test for each; those that need a whole runtime, or fit nowhere else, are here. What
//! three other breakers do in the same traps is in `tests/breaker_traps`.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use metrics_exporter_prometheus::PrometheusBuilder;
use ractor::Actor;
use seawall::Refusal;
use seawall::backend::{BackendName, ErrorKind};
use seawall::backends::{Fault, FaultPlan, Op, Ops};
use seawall::breaker::{
    BreakerActor, BreakerArguments, BreakerCell, BreakerConfig, BreakerState, BreakerStateStore, CallOutcome,
    MemoryStateStore, Purpose, SavedBreaker, StoreError,
};
use seawall::event::EventBus;
use seawall::fallback::Mode;
use support::{Rig, record, refused, until};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// A trap, and the tests that name it: `file::test`.
const TRAPS: [(&str, &[&str]); 18] = [
    (
        "1: stale result",
        &[
            "actors/src/breaker/tests/traps.rs::trap_01_a_stale_result_is_counted_and_changes_nothing",
            "actors/src/breaker/tests/traps.rs::trap_01_a_stale_success_does_not_close_it",
            "actors/src/breaker/tests/schedules.rs::a_result_of_an_older_generation_never_changes_the_state",
        ],
    ),
    (
        "2: stale across a full cycle",
        &["actors/src/breaker/tests/traps.rs::trap_02_a_result_that_is_stale_across_a_full_cycle_changes_nothing"],
    ),
    (
        "3: lost probe",
        &[
            "actors/src/breaker/tests/traps.rs::trap_03_a_lost_probe_gives_its_place_to_exactly_one_other_and_its_late_report_changes_nothing",
            "actors/src/breaker/tests/traps.rs::trap_03_a_report_after_the_lease_changes_nothing_even_if_nobody_took_the_place",
            "actors/src/breaker/tests/schedules.rs::a_lease_that_expires_while_it_reports_is_counted_once_and_its_place_is_given_to_one_other",
        ],
    ),
    (
        "4: dropped future",
        &["actors/src/breaker/tests/traps.rs::trap_04_a_dropped_call_frees_its_place_and_counts_as_cancelled"],
    ),
    (
        "5: admission race",
        &[
            "actors/src/breaker/tests/traps.rs::trap_05_threads_that_are_released_at_the_end_of_the_wait_get_no_more_places_than_there_are",
            "actors/src/breaker/tests/schedules.rs::half_open_admits_exactly_as_many_as_it_has_places_the_caller_that_makes_it_half_open_included",
        ],
    ),
    (
        "6: probe rejected by an inner gate",
        &["actors/src/breaker/tests/traps.rs::trap_06_a_probe_that_an_inner_gate_refuses_gives_its_place_back"],
    ),
    (
        "7: ignored outcomes starve the recovery",
        &["actors/src/breaker/tests/traps.rs::trap_07_outcomes_that_do_not_count_cannot_starve_the_recovery"],
    ),
    (
        "8: window eviction",
        &["tests/breaker_promises.rs::trap_08_after_a_million_successes_it_opens_as_if_there_had_been_none"],
    ),
    (
        "9: half-open uses the time window",
        &["actors/src/breaker/tests/traps.rs::trap_09_probes_that_come_rarely_still_close_it"],
    ),
    (
        "10: panic and unwinding",
        &["actors/src/breaker/tests/traps.rs::trap_10_a_panic_is_a_failure_in_every_state_and_leaks_nothing"],
    ),
    (
        "11: re-entrancy and order of callbacks",
        &[
            "actors/src/breaker/tests/traps.rs::trap_11_a_subscriber_may_call_the_breaker_and_events_are_in_order_without_gaps",
        ],
    ),
    (
        "12: time",
        &[
            "actors/src/breaker/tests/traps.rs::trap_12_it_is_half_open_at_exactly_the_end_of_the_wait_and_not_before",
            "tests/traps.rs::trap_14_nothing_that_decides_looks_at_the_clock_on_the_wall",
        ],
    ),
    (
        "13: restore",
        &[
            "actors/src/breaker/tests/persistence.rs::trap_13_a_process_that_is_killed_every_ten_seconds_still_gets_to_half_open",
            "actors/src/breaker/tests/persistence.rs::trap_13_an_older_save_never_replaces_a_newer_one",
            "actors/src/breaker/tests/model.rs::trap_13_a_restored_wait_is_never_longer_than_configured",
            "tests/breaker_promises.rs::trap_13_whichever_save_is_the_last_one_the_next_process_waits_no_longer_than_configured",
        ],
    ),
    (
        "14: two gates that wait for each other",
        &[
            "actors/src/breaker/tests/traps.rs::trap_14_probes_alone_heal_a_backend_without_traffic",
            "tests/breaker_promises.rs::trap_14_a_store_that_nobody_ever_used_is_given_up_and_found_again",
        ],
    ),
    (
        "15: conservation of metrics",
        &[
            "actors/src/breaker/tests/model.rs::trap_15_after_any_run_the_breaker_agrees_with_the_model_and_every_call_is_accounted_for",
            "actors/src/breaker/tests/schedules.rs::whatever_callers_people_and_the_clock_do_every_call_is_accounted_for",
            "tests/breaker_promises.rs::trap_15_whatever_happens_the_page_adds_up_and_shows_one_state",
        ],
    ),
    (
        "16: retry over breaker",
        &[
            "actors/src/breaker/tests/traps.rs::trap_16_a_refusal_touches_nothing_and_says_when_to_come_again",
            "tests/breaker_promises.rs::trap_16_an_open_breaker_is_asked_once_and_not_retried",
        ],
    ),
    ("17: recovery storm", &["tests/traps.rs::trap_17_a_store_that_comes_back_is_not_run_over"]),
    (
        "18: blind to the deadlines of callers",
        &["tests/breaker_promises.rs::trap_18_callers_who_give_up_on_a_store_that_hangs_do_not_hide_it"],
    ),
];

#[test]
fn every_trap_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (at, (trap, tests)) in TRAPS.iter().enumerate() {
        assert!(trap.starts_with(&format!("{}:", at + 1)) && !tests.is_empty(), "{trap}");
        for test in *tests {
            support::assert_is_a_test(root, test);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn trap_08_after_a_million_successes_it_opens_as_if_there_had_been_none() {
    let config = BreakerConfig::default();
    let threshold = config.failure_threshold;
    let cell = BreakerCell::open("graph".into(), config, Arc::new(EventBus::new()), None).await;
    let breaker = cell.handle();
    let call = |outcome| breaker.gate().try_acquire(Purpose::Live).map(|lease| lease.settle(outcome)).is_ok();
    assert!((0..1_000_000).all(|_| call(CallOutcome::Success)));
    let failures = (0..1_000).take_while(|_| call(CallOutcome::Failure)).count();
    assert_eq!(failures, threshold as usize);
}

/// A store that the process cannot reach any more after so many saves.
struct Cut {
    states: MemoryStateStore,
    saves: AtomicUsize,
    last: usize,
}

#[async_trait]
impl BreakerStateStore for Cut {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        self.states.load(backend).await
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        if self.saves.fetch_add(1, Ordering::SeqCst) < self.last {
            self.states.save(backend, record).await
        } else {
            Err(StoreError::Failed("the process is dead".to_owned()))
        }
    }
}

/// A life of a breaker: it opens, fails a probe, is forced open and let go, closes. Dies after this many saves; gives
/// how many it would have made.
async fn live(store: &Arc<Cut>, config: &BreakerConfig) -> usize {
    let states = Arc::clone(store) as Arc<dyn BreakerStateStore>;
    let cell = BreakerCell::open("graph".into(), config.clone(), Arc::new(EventBus::new()), Some(states)).await;
    let breaker = cell.handle();
    let (actor, _) = Actor::spawn(None, BreakerActor, BreakerArguments { cell }).await.expect("the actor starts");
    let call = |outcome| breaker.gate().try_acquire(Purpose::Live).expect("is admitted").settle(outcome);
    (0..config.failure_threshold).for_each(|_| call(CallOutcome::Failure));
    sleep(config.reset_timeout + SECOND).await;
    call(CallOutcome::Failure);
    sleep(config.reset_timeout / 2).await;
    breaker.force_open("maintenance", Some(config.reset_timeout));
    sleep(config.reset_timeout + SECOND).await;
    (0..config.success_threshold).for_each(|_| call(CallOutcome::Success));
    sleep(SECOND).await;
    let saves = store.saves.load(Ordering::SeqCst);
    let _ = actor.kill_and_wait(None).await;
    saves
}

#[tokio::test(start_paused = true)]
async fn trap_13_whichever_save_is_the_last_one_the_next_process_waits_no_longer_than_configured() {
    let config = BreakerConfig::default();
    let dies_after = |last| Arc::new(Cut { states: MemoryStateStore::default(), saves: AtomicUsize::new(0), last });
    let saves = live(&dies_after(usize::MAX), &config).await;
    assert!(saves > 20, "a wait is saved now and then: {saves}");
    let mut shortened = 0;
    for last in 0..=saves {
        let store = dies_after(last);
        live(&store, &config).await;
        let held = store.states.get(&"graph".into());
        let states = Arc::clone(&store) as Arc<dyn BreakerStateStore>;
        let cell = BreakerCell::open("graph".into(), config.clone(), Arc::new(EventBus::new()), Some(states)).await;
        let (breaker, started) = (cell.handle(), Instant::now());
        let seen = breaker.snapshot();
        let open = held.as_ref().is_some_and(|held| {
            let forced = held.manual.as_ref().and_then(|manual| manual.remaining).unwrap_or_default();
            held.remaining_wait.max(forced) > Duration::ZERO
        });
        assert_eq!(breaker.gate().try_acquire(Purpose::Live).is_err(), open, "after save {last}: {held:?}");
        if let Some(wait) = seen.retry_after {
            assert!(wait <= config.reset_timeout, "after save {last}: {wait:?}");
            shortened += usize::from(wait < config.reset_timeout * 9 / 10);
        }
        // An override covers a wait of its own, which goes on beneath it.
        until("it admits again", || breaker.gate().try_acquire(Purpose::Live).is_ok()).await;
        assert!(started.elapsed() <= config.reset_timeout + SECOND, "after save {last}: {:?}", started.elapsed());
    }
    assert!(shortened > 10, "the time that had passed is remembered: {shortened} of {saves}");
}

#[tokio::test(start_paused = true)]
async fn trap_14_a_store_that_nobody_ever_used_is_given_up_and_found_again() {
    let rig = Rig::start().await;
    let state = || rig.breaker(&rig.vector).view().state;
    for fault in [Fault::Down, Fault::Hung, Fault::Reset] {
        rig.vector.set(fault);
        until("it is given up", || state() == BreakerState::Open).await;
        rig.vector.heal();
        let healed = Instant::now();
        until("it is found again", || state() == BreakerState::Closed).await;
        let config = rig.runtime().config();
        let bearable = config.breaker.reset_timeout + config.health.interval * 4;
        assert!(healed.elapsed() <= bearable, "{fault:?}: {:?}", healed.elapsed());
        rig.handle().store(record("a", 1)).await.expect("traffic is back");
    }
}

/// The samples of a page by name and labels.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| line.rsplit_once(' ').map(|(series, value)| (series.to_owned(), value.parse()));
    let lines = page.lines().filter(|line| line.starts_with("seawall_breaker_")).filter_map(sample);
    lines.map(|(series, value)| (series, value.expect("a sample is a number"))).collect()
}

/// What of the page of one backend does not hold by itself.
fn assert_adds_up(page: &BTreeMap<String, f64>, backend: &str) {
    let of = |name: &str| page[&format!("seawall_breaker_{name}{{backend=\"{backend}\"}}")];
    let ended: f64 = ["successful", "failed", "ignored", "cancelled", "panicked", "expired"]
        .iter()
        .map(|outcome| of(&format!("{outcome}_requests_total")))
        .sum();
    let (admitted, out) = (of("requests_total") - of("rejected_requests_total"), of("in_flight_requests"));
    assert!((admitted - ended - out).abs() < 0.5, "{backend}: {admitted} admitted, {ended} ended, {out} out");
    let states: Vec<_> = page
        .iter()
        .filter(|(series, _)| series.starts_with("seawall_breaker_state{") && series.contains(backend))
        .filter(|(_, value)| **value > 0.5)
        .collect();
    assert_eq!(states.len(), 1, "{states:?}");
}

#[tokio::test(start_paused = true)]
async fn trap_15_whatever_happens_the_page_adds_up_and_shows_one_state() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    let plan = FaultPlan::new()
        .with(Ops::ALL, 0.1, Fault::Down)
        .with(Ops::ALL, 0.1, Fault::Slow(SECOND * 3))
        .with(Ops::ALL, 0.1, Fault::Hung)
        .with(Ops::ALL, 0.1, Fault::Panic)
        .with(Ops::ALL, 0.1, Fault::Error(ErrorKind::Refused));
    let outage = FaultPlan::new().with(Ops::ALL, 0.9, Fault::Down).with(Ops::ALL, 0.1, Fault::Hung);
    let weather = [FaultPlan::new(), plan, outage];
    let (mut before, mut dice) = (BTreeMap::new(), fastrand::Rng::with_seed(15));
    for step in 0_u64..400 {
        if step % 20 == 0 {
            rig.graph.faults.replan(step, dice.choice(&weather).cloned().unwrap_or_default());
            rig.vector.faults.replan(step + 1, dice.choice(&weather).cloned().unwrap_or_default());
        }
        match dice.u8(0..12) {
            0 => rig.breaker(&rig.vector).force_open("a test", Some(SECOND * 10)),
            1 => rig.breaker(&rig.graph).reset(),
            2 => rig.breaker(&rig.graph).disable("a test", Some(SECOND * 3)),
            _ => {}
        }
        let patience = SECOND * dice.u32(1..5);
        let _ = timeout(patience, rig.handle().store(record(&format!("k{}", step % 7), step))).await;
        sleep(SECOND * 2).await;
        let now = samples(&page.render());
        for backend in ["graph", "vector"] {
            assert_adds_up(&now, backend);
        }
        for (series, value) in now.iter().filter(|(series, _)| series.contains("_total{")) {
            assert!(before.get(series).is_none_or(|before| before <= value), "{series} decreased at step {step}");
        }
        before = now;
    }
    for told in ["successful_requests", "failed_requests", "rejected_requests", "stale_results"] {
        let both =
            ["graph", "vector"].map(|name| before[&format!("seawall_breaker_{told}_total{{backend=\"{name}\"}}")]);
        assert!(both.iter().sum::<f64>() > 0.0, "{told} was not put to the test");
    }
    assert!(before.keys().any(|series| series.contains("from=\"half_open\"")), "{before:#?}");
}

#[tokio::test(start_paused = true)]
async fn trap_16_an_open_breaker_is_asked_once_and_not_retried() {
    let rig = Rig::start().await;
    rig.lose(&rig.vector).await;
    rig.mode(Mode::Disabled).await;
    assert!(rig.runtime().config().call.retry.max_retries > 0, "there is something to retry with");
    let (rejected, calls) = (rig.breaker(&rig.vector).snapshot().rejected, rig.vector.faults.counts().of(Op::Apply));
    let asked = Instant::now();
    let refusal = refused(rig.handle().store(record("a", 1)).await);
    assert!(matches!(refusal, Refusal::Unavailable { .. }) && refusal.retry_after().is_some(), "{refusal}");
    assert_eq!(asked.elapsed(), Duration::ZERO, "no retry was waited for");
    assert!(rig.breaker(&rig.vector).snapshot().rejected <= rejected + 1);
    assert_eq!(rig.vector.faults.counts().of(Op::Apply), calls);
}

#[tokio::test(start_paused = true)]
async fn trap_18_callers_who_give_up_on_a_store_that_hangs_do_not_hide_it() {
    let rig = Rig::start().await;
    rig.vector.faults.set(Op::Apply, Fault::Hung);
    let config = rig.runtime().config().clone();
    let given_up = Instant::now();
    for k in 0..u64::from(config.breaker.failure_threshold) + 1 {
        let impatient = timeout(SECOND / 10, rig.handle().store(record(&format!("k{k}"), k))).await;
        assert!(impatient.is_err(), "nobody stayed to hear of it");
    }
    let state = || rig.breaker(&rig.vector).view().state;
    until("what they left behind opens it", || state() == BreakerState::Open).await;
    assert!(given_up.elapsed() <= config.saga.timeout + SECOND * 2, "{:?}", given_up.elapsed());
    let seen = rig.breaker(&rig.vector).snapshot();
    assert!(seen.failed >= u64::from(config.breaker.failure_threshold), "{seen:?}");
}
