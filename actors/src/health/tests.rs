//! The policy against plain models, and the prober with scripted backends under paused time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::{Just, Strategy as Generator, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use tokio::time::Instant;

use super::*;
use crate::backend::{Applied, Backend, BackendError, BackendName, FencedWrite, Health, Stored};
use crate::event::{Alert, EventBus, EventKind, Update};
use crate::operation::Version;
use crate::record::Key;
use crate::supervisor::{Branch, ChildSpec, OperationTasks, RestartConfig, Slot, Strategy, Tree};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

fn steady() -> HealthConfig {
    HealthConfig { jitter: 0.0, ..HealthConfig::default() }
}

fn refused() -> BackendError {
    BackendError::transient("connection refused")
}

/// Lets a policy make one probe, and gives what alerts changed.
fn probe(
    policy: &mut ProbePolicy,
    now: &mut Instant,
    result: Result<Health, BackendError>,
    took: Duration,
) -> Vec<AlertChange> {
    *now = policy.appointment().at.max(*now);
    let turn = policy.admitted(*now, false);
    *now += took;
    policy.concluded(turn, *now, &result, took).unwrap()
}

#[test]
fn three_failures_in_a_row_raise_an_alert_and_three_good_probes_clear_it() {
    let mut now = Instant::now();
    let mut policy = ProbePolicy::new(steady(), 1, now);
    let script = [false, false, true, false, false, false, false, true, true, false, true, true, true, true];
    let changes: Vec<_> = script
        .map(|good| probe(&mut policy, &mut now, if good { Ok(Health::Healthy) } else { Err(refused()) }, MILLI))
        .into_iter()
        .enumerate()
        .flat_map(|(index, changes)| changes.into_iter().map(move |change| (index, change)))
        .collect();
    let alert = Alert::ProbesFailing;
    assert_eq!(changes, [(5, AlertChange::Raised(alert)), (12, AlertChange::Cleared(alert))]);
}

#[test]
fn slow_degradation_is_an_alert_before_anything_fails() {
    let mut now = Instant::now();
    let mut policy = ProbePolicy::new(steady(), 1, now);
    let mut latency = 20.0_f64;
    for _ in 0..100 {
        assert_eq!(probe(&mut policy, &mut now, Ok(Health::Healthy), Duration::from_secs_f64(latency / 1_000.0)), []);
    }
    let mut raised_at = None;
    while latency < 5_000.0 && raised_at.is_none() {
        latency *= 1.02;
        let changes = probe(&mut policy, &mut now, Ok(Health::Healthy), Duration::from_secs_f64(latency / 1_000.0));
        raised_at = changes.contains(&AlertChange::Raised(Alert::SlowingDown)).then_some(latency);
    }
    let raised_at = raised_at.expect("an alert long before the timeout of 5 s");
    assert!(raised_at < 500.0, "{raised_at} ms");
    let status = policy.status("graph".into(), now);
    assert_eq!((status.failures, status.alerts), (0, vec![Alert::SlowingDown]));

    let mut probes = 0;
    while probe(&mut policy, &mut now, Ok(Health::Healthy), 20 * MILLI).is_empty() {
        probes += 1;
        assert!(probes < 20, "it clears when the backend is fast again");
    }
    assert!(policy.status("graph".into(), now).alerts.is_empty());
}

#[test]
fn a_single_outlier_and_noise_below_the_floor_are_no_alert() {
    let mut now = Instant::now();
    let mut policy = ProbePolicy::new(steady(), 1, now);
    for index in 0..200 {
        let took = if index % 50 == 49 { 300 * MILLI } else { 20 * MILLI };
        assert_eq!(probe(&mut policy, &mut now, Ok(Health::Healthy), took), [], "probe {index}");
    }
    let mut policy = ProbePolicy::new(steady(), 1, now);
    for index in 0..200 {
        let took = if index > 100 { 9 * MILLI } else { MILLI / 10 };
        assert_eq!(probe(&mut policy, &mut now, Ok(Health::Healthy), took), [], "probe {index}");
    }
}

#[test]
fn a_backend_that_stays_slower_becomes_the_new_normal() {
    let mut now = Instant::now();
    let mut policy = ProbePolicy::new(steady(), 1, now);
    let mut changes = Vec::new();
    for index in 0..1_000 {
        let took = if index < 100 { 20 * MILLI } else { 100 * MILLI };
        changes.extend(probe(&mut policy, &mut now, Ok(Health::Healthy), took));
    }
    let alert = Alert::SlowingDown;
    assert_eq!(changes, [AlertChange::Raised(alert), AlertChange::Cleared(alert)]);
}

#[test]
fn a_late_result_changes_nothing_but_its_counter() {
    let now = Instant::now();
    let mut policy = ProbePolicy::new(steady(), 1, now);
    let turn = policy.admitted(now, false);
    assert_eq!(policy.due(turn), Due::Overdue);
    assert!(policy.concluded(turn, now + 6 * SECOND, &Err(refused()), 6 * SECOND).is_some());
    let (before, appointment) = (policy.status("graph".into(), now), policy.appointment());
    assert_eq!(policy.due(turn), Due::Nothing);
    assert_eq!(policy.concluded(turn, now + 7 * SECOND, &Ok(Health::Healthy), 7 * SECOND), None);
    assert_eq!(policy.appointment(), appointment);
    assert_eq!(policy.status("graph".into(), now), ProbeStatus { late: 1, ..before });
}

#[test]
fn a_refused_look_comes_again_when_the_gate_says_so_and_never_in_a_hot_loop() {
    let now = Instant::now();
    let mut policy = ProbePolicy::new(steady(), 1, now);
    for (retry_after, wait) in [
        (Some(12 * SECOND), 12 * SECOND),
        (Some(300 * SECOND), 30 * SECOND),
        (None, 30 * SECOND),
        (Some(Duration::ZERO), 100 * MILLI),
    ] {
        policy.refused(now, retry_after);
        assert_eq!(policy.appointment().at, now + wait, "{retry_after:?}");
    }
    assert_eq!(policy.status("graph".into(), now).refused, 4);
}

#[test]
fn good_trials_follow_each_other_quickly_and_a_nudge_during_a_probe_is_not_forgotten() {
    let now = Instant::now();
    let mut policy = ProbePolicy::new(steady(), 1, now);
    let turn = policy.admitted(now, true);
    policy.concluded(turn, now, &Ok(Health::Healthy), MILLI);
    assert_eq!(policy.appointment().at, now + SECOND);
    let turn = policy.admitted(now, true);
    policy.concluded(turn, now, &Err(refused()), MILLI);
    assert_eq!(policy.appointment().at, now + 30 * SECOND);
    assert!(policy.nudge());
    let turn = policy.admitted(now, false);
    assert!(!policy.nudge());
    policy.concluded(turn, now, &Err(refused()), MILLI);
    assert_eq!(policy.appointment().at, now);
    let turn = policy.admitted(now, false);
    policy.concluded(turn, now, &Ok(Health::Healthy), MILLI);
    assert_eq!(policy.appointment().at, now + 30 * SECOND);
}

#[derive(Clone, Debug)]
enum Input {
    /// Time passes to the appointment, and the breaker grants (a trial or not) or refuses (with a hint or not).
    Granted {
        trial: bool,
    },
    Refused {
        hint: Option<u64>,
    },
    /// The probe ends, of this turn or an older one.
    Ends {
        good: bool,
        millis: u64,
        stale: bool,
    },
    Nudge,
}

fn inputs() -> impl Generator<Value = Vec<Input>> {
    let input = prop_oneof![
        3 => any::<bool>().prop_map(|trial| Input::Granted { trial }),
        1 => prop::option::of(0_u64..100).prop_map(|hint| Input::Refused { hint }),
        6 => (any::<bool>(), 1_u64..200, prop::bool::weighted(0.1))
            .prop_map(|(good, millis, stale)| Input::Ends { good, millis, stale }),
        1 => Just(Input::Nudge),
    ];
    prop::collection::vec(input, 1..200)
}

/// Whether an alert stands after these probes, each bad, good or neither.
fn stands(probes: &[Option<bool>], raise: usize, clear: usize) -> bool {
    let mut raised = false;
    for end in 1..=probes.len() {
        let last = |n: usize, of: Option<bool>| end >= n && probes[end - n..end].iter().all(|probe| *probe == of);
        raised = if raised { !last(clear, Some(true)) } else { last(raise, Some(false)) };
    }
    raised
}

proptest! {
    /// Against a model that keeps all results and computes everything anew.
    #[test]
    fn the_policy_agrees_with_a_model_that_forgets_nothing(inputs in inputs(), seed in any::<u64>()) {
        let config = HealthConfig { alert_threshold: 2, clear_threshold: 3, ..HealthConfig::default() };
        let mut now = Instant::now();
        let mut policy = ProbePolicy::new(config, seed, now);
        let mut results: Vec<Option<bool>> = Vec::new();
        let (mut in_flight, mut late, mut begun, mut refusals) = (None, 0, 0, 0);
        let mut raised = Vec::new();
        for input in inputs {
            match input {
                Input::Granted { trial } if in_flight.is_none() => {
                    now = now.max(policy.appointment().at);
                    prop_assert_eq!(policy.due(policy.appointment().turn), Due::Look);
                    in_flight = Some(policy.admitted(now, trial));
                    begun += 1;
                }
                Input::Refused { hint } if in_flight.is_none() => {
                    now = now.max(policy.appointment().at);
                    policy.refused(now, hint.map(|seconds| SECOND * u32::try_from(seconds).unwrap()));
                    refusals += 1;
                }
                Input::Ends { good, millis, stale } => {
                    let turn = match in_flight {
                        Some(turn) if !stale => turn,
                        _ => policy.appointment().turn.wrapping_sub(1),
                    };
                    let took = Duration::from_millis(millis);
                    now += took;
                    let before = policy.appointment();
                    let result = if good { Ok(Health::Healthy) } else { Err(refused()) };
                    let changes = policy.concluded(turn, now, &result, took);
                    if in_flight == Some(turn) {
                        in_flight = None;
                        results.push(Some(good));
                        raised.extend(changes.unwrap());
                    } else {
                        prop_assert_eq!(changes, None);
                        prop_assert_eq!(policy.appointment(), before);
                        late += 1;
                    }
                }
                Input::Nudge => prop_assert_eq!(policy.nudge(), in_flight.is_none()),
                Input::Granted { .. } | Input::Refused { .. } => {}
            }
            let status = policy.status("graph".into(), now);
            prop_assert_eq!(status.in_flight, in_flight.is_some());
            prop_assert_eq!((status.probes, status.refused, status.late), (begun, refusals, late));
            prop_assert_eq!(status.failures, results.iter().filter(|good| **good == Some(false)).count() as u64);
            let in_a_row = results.iter().rev().take_while(|good| **good == Some(false)).count();
            prop_assert_eq!(status.consecutive_failures as usize, in_a_row);
            prop_assert_eq!(status.alerts.contains(&Alert::ProbesFailing), stands(&results, 2, 3));
            let wait = policy.appointment().at.saturating_duration_since(now);
            prop_assert!(wait <= 33 * SECOND, "an appointment in {wait:?}");
        }
        for alert in [Alert::ProbesFailing, Alert::SlowingDown] {
            let of: Vec<_> = raised.iter().filter_map(|change| match change {
                AlertChange::Raised(which) => (*which == alert).then_some(true),
                AlertChange::Cleared(which) => (*which == alert).then_some(false),
            }).collect();
            prop_assert!(of.iter().enumerate().all(|(index, raised)| *raised == (index % 2 == 0)), "they alternate");
        }
    }

    /// The slow alert, against sums over the whole history.
    #[test]
    fn the_trend_agrees_with_sums_over_the_whole_history(
        stretches in prop::collection::vec((1_u64..400, 1_usize..30), 1..8),
    ) {
        let mut now = Instant::now();
        let mut policy = ProbePolicy::new(steady(), 1, now);
        let mut lessons: Vec<f64> = Vec::new();
        let mut latencies: Vec<f64> = Vec::new();
        let mut paces: Vec<Option<bool>> = Vec::new();
        for millis in stretches.into_iter().flat_map(|(millis, times)| std::iter::repeat_n(millis, times)) {
            let took = Duration::from_millis(millis);
            probe(&mut policy, &mut now, Ok(Health::Healthy), took);
            // The baseline: a mean of the first hundred, then one with a weight of 1 %.
            let mut baseline = 0.0;
            for (index, lesson) in lessons.iter().enumerate() {
                let weight = (1.0 / (index + 1) as f64).max(0.01);
                baseline = baseline * (1.0 - weight) + lesson * weight;
            }
            latencies.push(took.as_secs_f64());
            let mut recent = latencies[0];
            for latency in &latencies {
                recent = recent * 0.7 + latency * 0.3;
            }
            let warm = lessons.len() >= 10;
            let ratio = if warm && recent > 0.010 { recent / baseline } else { 0.0 };
            // Too near to a border for floating point: not this test's subject.
            if (ratio - 3.0).abs() < 1e-9 || (ratio - 2.0).abs() < 1e-9 {
                return Ok(());
            }
            paces.push(if ratio > 3.0 { Some(false) } else if ratio > 2.0 { None } else { Some(true) });
            lessons.push(if warm { took.as_secs_f64().min(baseline * 3.0) } else { took.as_secs_f64() });
            let alerts = policy.status("graph".into(), now).alerts;
            prop_assert_eq!(alerts == [Alert::SlowingDown], stands(&paces, 3, 3), "after {} probes", paces.len());
        }
    }
}

/// What a probe of a [`Scripted`] backend does.
#[derive(Clone)]
enum Act {
    Answer(Health),
    Fail(BackendError),
    Panic,
    PanicAtOnce,
    Hang,
    Take(Duration),
}

struct Scripted {
    name: BackendName,
    act: Mutex<Act>,
    touched: AtomicU32,
    in_flight: AtomicU32,
    most_in_flight: AtomicU32,
    touched_at: Mutex<Vec<Instant>>,
}

impl Scripted {
    fn new(name: &str, act: Act) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            act: Mutex::new(act),
            touched: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            most_in_flight: AtomicU32::new(0),
            touched_at: Mutex::default(),
        })
    }

    fn now_does(&self, act: Act) {
        *self.act.lock().unwrap() = act;
    }

    fn touched(&self) -> u32 {
        self.touched.load(Ordering::Relaxed)
    }
}

struct InFlight<'a>(&'a AtomicU32);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Backend for Scripted {
    fn name(&self) -> BackendName {
        self.name.clone()
    }

    async fn apply(&self, _: &FencedWrite) -> Result<Applied, BackendError> {
        Err(refused())
    }

    async fn read(&self, _: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        Err(refused())
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Err(refused())
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        self.touched.fetch_add(1, Ordering::Relaxed);
        self.touched_at.lock().unwrap().push(Instant::now());
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_flight.fetch_max(now, Ordering::Relaxed);
        let _in_flight = InFlight(&self.in_flight);
        let act = self.act.lock().unwrap().clone();
        match act {
            Act::Answer(health) => Ok(health),
            Act::Fail(error) => Err(error),
            Act::Panic => {
                tokio::time::sleep(MILLI).await;
                panic!("a bug in an adapter")
            }
            Act::PanicAtOnce => panic!("a bug in an adapter"),
            Act::Hang => std::future::pending().await,
            Act::Take(time) => {
                tokio::time::sleep(time).await;
                Ok(Health::Healthy)
            }
        }
    }
}

/// A breaker as a prober sees one.
#[derive(Default)]
struct Gate {
    closed_for: Mutex<Option<Duration>>,
    trial: AtomicBool,
    granted: AtomicU32,
    settled: Mutex<Vec<bool>>,
}

impl Gate {
    fn admit(self: &Arc<Self>) -> Admit {
        let gate = Arc::clone(self);
        Arc::new(move || {
            if let Some(retry_after) = *gate.closed_for.lock().unwrap() {
                return Admission::Refused { retry_after: Some(retry_after) };
            }
            gate.granted.fetch_add(1, Ordering::Relaxed);
            let settled = Arc::clone(&gate);
            let settle: Settle = Box::new(move |result| settled.settled.lock().unwrap().push(result.is_ok()));
            Admission::Granted(ProbePermit { trial: gate.trial.load(Ordering::Relaxed), settle })
        })
    }
}

struct Ward {
    tree: Tree,
    setup: Arc<ProberSetup>,
    slot: Slot<ProberMessage>,
    events: Arc<EventBus>,
    reports: Arc<Mutex<Vec<(BackendName, Result<Health, BackendError>, Duration)>>>,
}

impl Ward {
    async fn start(backends: &[(&Arc<Scripted>, &Arc<Gate>)], config: HealthConfig) -> Self {
        let (slot, events) = (Slot::default(), Arc::new(EventBus::new()));
        let reports = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&reports);
        let targets = backends.iter().map(|(backend, gate)| {
            let backend: Arc<dyn Backend> = Arc::<Scripted>::clone(backend);
            Target::new(backend, gate.admit(), config.clone())
        });
        let setup = Arc::new(ProberSetup {
            targets: targets.collect(),
            slot: slot.clone(),
            tasks: OperationTasks::new(),
            events: Arc::clone(&events),
            on_health: Arc::new(move |name, report: ProbeReport| {
                told.lock().unwrap().push((name, report.health, report.latency));
            }),
        });
        let arguments = Arc::clone(&setup);
        let child = ChildSpec::actor("prober", slot.clone(), move || (Prober, Arc::clone(&arguments)));
        let restart = RestartConfig {
            intensity: 1_000,
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
            ..RestartConfig::default()
        };
        let branch = Branch::new("root", Strategy::OneForOne, restart, Arc::clone(&events), vec![child]);
        let tree = Tree::start(branch, Arc::new(|escalation| panic!("{escalation:?}"))).await.unwrap();
        Self { tree, setup, slot, events, reports }
    }

    fn status(&self) -> ProbeStatus {
        self.setup.statuses().remove(0)
    }

    fn nudge(&self, name: &str) {
        assert!(self.slot.cast(ProberMessage::Nudge(name.into())).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_is_probed_every_interval_and_everybody_is_told() {
    let (backend, gate) = (Scripted::new("graph", Act::Take(10 * MILLI)), Arc::default());
    let ward = Ward::start(&[(&backend, &gate)], steady()).await;
    tokio::time::sleep(3_600 * SECOND).await;
    assert_eq!(backend.touched(), 120);
    assert_eq!(gate.settled.lock().unwrap().len(), 120);
    let reports = ward.reports.lock().unwrap().clone();
    assert_eq!(reports.len(), 120);
    assert!(reports.iter().all(|(name, health, latency)| {
        name.as_str() == "graph" && *health.as_ref().unwrap() == Health::Healthy && latency.as_millis() == 10
    }));
    let statuses = ward.slot.call(SECOND, ProberMessage::Statuses).await.unwrap();
    assert_eq!(statuses, ward.setup.statuses());
    assert_eq!((statuses[0].probes, statuses[0].failures), (120, 0));
    let text = serde_json::to_string(&statuses).unwrap();
    assert_eq!(serde_json::from_str::<Vec<ProbeStatus>>(&text).unwrap(), statuses);
}

#[tokio::test(start_paused = true)]
async fn backends_are_not_probed_in_lockstep() {
    let backends: Vec<_> =
        (0..8).map(|index| Scripted::new(&index.to_string(), Act::Answer(Health::Healthy))).collect();
    let gate = Arc::default();
    let targets: Vec<_> = backends.iter().map(|backend| (backend, &gate)).collect();
    let _ward = Ward::start(&targets, HealthConfig::default()).await;
    tokio::time::sleep(3_600 * SECOND).await;
    let mut instants: Vec<_> = backends.iter().flat_map(|backend| backend.touched_at.lock().unwrap().clone()).collect();
    let all = instants.len();
    instants.sort();
    instants.dedup();
    assert!(all >= 8 * 108 && instants.len() > all * 9 / 10, "{} of {all}", instants.len());
}

#[tokio::test(start_paused = true)]
async fn errors_panics_and_hangs_are_failures_and_the_next_probe_comes_as_always() {
    let (backend, gate) = (Scripted::new("graph", Act::Fail(refused())), Arc::default());
    let ward = Ward::start(&[(&backend, &gate)], steady()).await;
    let mut subscription = ward.events.subscribe();
    tokio::time::sleep(SECOND).await;
    for (index, act) in [Act::Panic, Act::PanicAtOnce, Act::Hang, Act::Answer(Health::Healthy)].into_iter().enumerate()
    {
        backend.now_does(act);
        tokio::time::sleep(36 * SECOND).await;
        assert_eq!(backend.touched() as usize, index + 2);
    }
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(
        *gate.settled.lock().unwrap(),
        [false, false, false, false, true, true, true][..gate.settled.lock().unwrap().len()]
    );
    let status = ward.status();
    assert_eq!((status.failures, status.consecutive_failures, status.late), (4, 0, 0));
    let texts: Vec<_> = ward
        .reports
        .lock()
        .unwrap()
        .iter()
        .filter_map(|(_, health, _)| health.clone().err())
        .map(|error| error.to_string())
        .collect();
    assert!(
        texts[1].contains("panicked") && texts[2].contains("panicked") && texts[3].contains("no answer within 5s"),
        "{texts:?}"
    );
    let alerts: Vec<_> = std::iter::from_fn(|| subscription.try_next())
        .filter_map(|update| match update {
            Update::Event(event) => Some(event.kind.clone()),
            Update::Lagged { .. } => None,
        })
        .collect();
    let (backend, alert) = (BackendName::from("graph"), Alert::ProbesFailing);
    assert_eq!(
        alerts,
        [EventKind::AlertRaised { backend: backend.clone(), alert }, EventKind::AlertCleared { backend, alert }]
    );
    assert!(ward.events.snapshot().alerts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_that_it_is_read_only_is_alive() {
    let (backend, gate) = (Scripted::new("graph", Act::Fail(BackendError::read_only("disk full"))), Arc::default());
    let ward = Ward::start(&[(&backend, &gate)], steady()).await;
    tokio::time::sleep(SECOND).await;
    assert_eq!((ward.status().failures, ward.status().read_only), (0, true));
    assert_eq!(*ward.reports.lock().unwrap()[0].1.as_ref().unwrap(), Health::ReadOnly);
}

#[tokio::test(start_paused = true)]
async fn while_the_breaker_refuses_the_backend_is_not_touched_and_heals_without_a_user() {
    let (backend, gate) = (Scripted::new("graph", Act::Answer(Health::Healthy)), Arc::<Gate>::default());
    let open = |wait| *gate.closed_for.lock().unwrap() = wait;
    open(Some(600 * SECOND));
    let ward = Ward::start(&[(&backend, &gate)], steady()).await;
    tokio::time::sleep(300 * SECOND).await;
    assert_eq!((backend.touched(), ward.status().probes), (0, 0));
    assert!((9..=11).contains(&ward.status().refused), "{}", ward.status().refused);
    assert!(ward.reports.lock().unwrap().is_empty());

    // The breaker says when: nobody has to nudge.
    open(Some(7 * SECOND));
    ward.nudge("graph");
    tokio::time::sleep(MILLI).await;
    open(None);
    gate.trial.store(true, Ordering::Relaxed);
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(backend.touched(), 0);
    tokio::time::sleep(SECOND).await;
    assert_eq!(backend.touched(), 1);
    // A trial that went well is followed by the next one, which a breaker needs to close.
    tokio::time::sleep(SECOND).await;
    assert_eq!(backend.touched(), 2);

    // And a nudge is a look at once.
    gate.trial.store(false, Ordering::Relaxed);
    tokio::time::sleep(2 * SECOND).await;
    let before = backend.touched();
    ward.nudge("graph");
    ward.nudge("nobody");
    tokio::time::sleep(MILLI).await;
    assert_eq!(backend.touched(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_nudges_never_has_two_probes_in_flight() {
    let (backend, gate) = (Scripted::new("graph", Act::Take(100 * MILLI)), Arc::default());
    let ward = Ward::start(&[(&backend, &gate)], steady()).await;
    for _ in 0..1_000 {
        ward.nudge("graph");
        tokio::time::sleep(MILLI).await;
    }
    assert_eq!(backend.most_in_flight.load(Ordering::Relaxed), 1);
    assert!((9..=12).contains(&backend.touched()), "{}", backend.touched());
}

#[tokio::test(start_paused = true)]
async fn a_prober_that_dies_all_the_time_loses_no_result_and_keeps_the_schedule() {
    let (backend, gate) = (Scripted::new("graph", Act::Take(2 * SECOND)), Arc::default());
    let ward = Ward::start(&[(&backend, &gate)], steady()).await;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        ward.slot.get().expect("restarted").kill();
    }
    tokio::time::sleep(5 * SECOND).await;
    assert!(ward.tree.status()[0].restarts >= 299);
    let (status, touched) = (ward.status(), backend.touched());
    // 335 s, a probe every 32 s.
    assert!((10..=12).contains(&touched), "{touched}");
    assert_eq!((status.probes, status.failures, status.late), (u64::from(touched), 0, 0));
    assert_eq!(ward.reports.lock().unwrap().len() as u64, status.probes - u64::from(status.in_flight));
    assert_eq!(backend.most_in_flight.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_ends_while_nobody_stands_in_the_slot_does_not_stop_the_schedule() {
    let (backend, gate) = (Scripted::new("graph", Act::Take(SECOND)), Arc::default());
    let ward = Ward::start(&[(&backend, &gate)], steady()).await;
    tokio::time::sleep(SECOND / 2).await;
    let actor = ward.slot.get().unwrap();
    ward.slot.clear();
    tokio::time::sleep(SECOND).await;
    assert_eq!(ward.reports.lock().unwrap().len(), 1);
    ward.slot.fill(actor);
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(ward.reports.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_permit_whose_settling_panics_costs_one_probe_and_not_the_prober() {
    let backend = Scripted::new("graph", Act::Answer(Health::Healthy));
    let admit: Admit =
        Arc::new(|| Admission::Granted(ProbePermit { trial: false, settle: Box::new(|_| panic!("a bug in a gate")) }));
    let (slot, events) = (Slot::default(), Arc::new(EventBus::new()));
    let probed: Arc<dyn Backend> = Arc::<Scripted>::clone(&backend);
    let setup = Arc::new(ProberSetup {
        targets: vec![Target::new(probed, admit, steady())],
        slot: slot.clone(),
        tasks: OperationTasks::new(),
        events: Arc::clone(&events),
        on_health: Arc::new(|_, _| {}),
    });
    let arguments = Arc::clone(&setup);
    let child = ChildSpec::actor("prober", slot, move || (Prober, Arc::clone(&arguments)));
    let branch = Branch::new("root", Strategy::OneForOne, RestartConfig::default(), events, vec![child]);
    let tree = Tree::start(branch, Arc::new(|_| {})).await.unwrap();
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!((tree.status()[0].restarts, setup.tasks.panics()), (0, 3));
    assert_eq!(setup.statuses()[0].failures, 3);
}
