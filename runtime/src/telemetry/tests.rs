use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use seawall_actors::breaker::{BreakerSnapshot, BreakerState, TransitionCause};
use seawall_actors::call::CallStats;
use seawall_actors::event::{Alert, CAPACITY, EventBus, EventKind, Update};
use seawall_actors::fallback::{CacheStats, DegradationLevel, Mode, ModeCause};
use seawall_actors::journal::{JournalHealth, JournalProgress, LossReport};
use seawall_actors::operation::{OperationId, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

struct Source(Mutex<Observation>);

impl Source {
    fn new(observation: Observation) -> Arc<Self> {
        Arc::new(Self(Mutex::new(observation)))
    }

    fn change(&self, change: impl FnOnce(&mut Observation)) {
        change(&mut self.0.lock().unwrap());
    }
}

impl Observe for Source {
    fn observe(&self) -> Observation {
        self.0.lock().unwrap().clone()
    }
}

fn breaker(name: &str) -> BreakerSnapshot {
    BreakerSnapshot {
        name: name.into(),
        state: BreakerState::HalfOpen,
        generation: 3,
        total_requests: 100,
        admitted: 80,
        successful: 60,
        slow: 5,
        failed: 9,
        rejected: 20,
        throttled: 6,
        ignored: 4,
        cancelled: 3,
        panicked: 1,
        expired: 2,
        in_flight: 1,
        stale_results: 7,
        state_transitions: 11,
        time_in_closed: Duration::from_millis(1_500),
        time_in_open: Duration::from_secs(120),
        time_in_half_open: Duration::from_millis(250),
        time_in_recovering: Duration::from_secs(15),
        time_in_manual: Duration::ZERO,
        failure_rate: 0.25,
        slow_call_rate: 0.125,
        shadow_opened: 8,
        last_failure: Some(Duration::from_millis(500)),
        last_success: None,
        retry_after: None,
    }
}

fn observation() -> Observation {
    Observation {
        backends: ["graph", "vector"]
            .map(|name| BackendObservation {
                breaker: breaker(name),
                calls: CallStats { in_flight: 8, retries: 9, budget_exhausted: 10, bulkhead_rejections: 11, swept: 19 },
                owed: 12,
                drained: 13,
                probes: 14,
                failed_probes: 2,
            })
            .into(),
        mode: Mode::QueueWrites,
        level: DegradationLevel::NoGraph,
        level_number: 1,
        in_flight: 21,
        queue: QueueObservation { entries: 31, bytes: 32, dead_letters: 33, enqueued: 34, drained: 35 },
        journal_health: JournalHealth::Stalled,
        journal: JournalProgress {
            submitted: 41,
            answered: 42,
            failed: false,
            commits: 43,
            disk_bytes: 44,
            generations: 45,
            retained_entries: 46,
            retained_bytes: 47,
            retention_cuts: 48,
        },
        sagas: SagaObservation { begun: 51, committed: 52, rolled_back: 53, compensating: 54, parked: 55 },
        cache: CacheStats { hits: 3, misses: 1, evictions: 63, refused: 64, entries: 65, bytes: 66 },
    }
}

fn listening() -> MetricsConfig {
    MetricsConfig { listen: Some((Ipv4Addr::LOCALHOST, 0).into()), ..MetricsConfig::default() }
}

async fn start(source: Arc<Source>, bus: &EventBus) -> Telemetry {
    Telemetry::start(&listening(), source, bus.subscribe()).await.unwrap()
}

/// The samples of a page by name and labels, as they are written.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut samples = BTreeMap::new();
    for line in lines {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {series}");
    }
    samples
}

#[track_caller]
fn assert_samples(page: &str, expected: &[(&str, f64)]) {
    let samples = samples(page);
    for (series, value) in expected {
        let found = samples.get(*series).copied();
        let same = found.is_some_and(|found| found == *value || (found.is_nan() && value.is_nan()));
        assert!(same, "{series} is {found:?}, not {value}\n{page}");
    }
}

#[tokio::test]
async fn every_number_of_a_breaker_is_shown_per_backend() {
    let telemetry = start(Source::new(observation()), &EventBus::new()).await;
    let page = telemetry.render().unwrap();
    for backend in ["graph", "vector"] {
        let labelled = |name: &str| format!("seawall_breaker_{name}{{backend=\"{backend}\"}}");
        for (name, value) in [
            ("requests_total", 100.0),
            ("successful_requests_total", 60.0),
            ("slow_requests_total", 5.0),
            ("failed_requests_total", 9.0),
            ("rejected_requests_total", 20.0),
            ("throttled_requests_total", 6.0),
            ("failure_rate", 0.25),
            ("slow_call_rate", 0.125),
            ("shadow_opened_total", 8.0),
            ("ignored_requests_total", 4.0),
            ("cancelled_requests_total", 3.0),
            ("panicked_requests_total", 1.0),
            ("expired_requests_total", 2.0),
            ("stale_results_total", 7.0),
            ("in_flight_requests", 1.0),
            ("state_transitions_total", 11.0),
            ("last_failure_age_seconds", 0.5),
            ("last_success_age_seconds", f64::NAN),
            ("success_rate", breaker(backend).success_rate()),
            ("availability", 0.8),
        ] {
            assert_samples(&page, &[(&labelled(name), value)]);
        }
        for (state, seconds) in
            [("closed", 1.5), ("open", 120.0), ("half_open", 0.25), ("recovering", 15.0), ("manual", 0.0)]
        {
            let series = format!("seawall_breaker_time_in_state_seconds{{backend=\"{backend}\",state=\"{state}\"}}");
            assert_samples(&page, &[(&series, seconds)]);
        }
    }
}

#[tokio::test]
async fn every_other_number_is_shown() {
    let telemetry = start(Source::new(observation()), &EventBus::new()).await;
    let page = telemetry.render().unwrap();
    assert_samples(
        &page,
        &[
            ("seawall_backend_calls_in_flight{backend=\"graph\"}", 8.0),
            ("seawall_backend_retries_total{backend=\"graph\"}", 9.0),
            ("seawall_backend_retry_budget_exhausted_total{backend=\"graph\"}", 10.0),
            ("seawall_backend_bulkhead_rejections_total{backend=\"graph\"}", 11.0),
            ("seawall_backend_swept_total{backend=\"graph\"}", 19.0),
            ("seawall_backend_owed_writes{backend=\"graph\"}", 12.0),
            ("seawall_backend_drained_writes_total{backend=\"graph\"}", 13.0),
            ("seawall_probes_total{backend=\"graph\"}", 14.0),
            ("seawall_failed_probes_total{backend=\"graph\"}", 2.0),
            ("seawall_mode{mode=\"queue_writes\"}", 1.0),
            ("seawall_degradation{level=\"no_graph\"}", 1.0),
            ("seawall_degradation_level", 1.0),
            ("seawall_requests_in_flight", 21.0),
            ("seawall_queue_entries", 31.0),
            ("seawall_queue_bytes", 32.0),
            ("seawall_dead_letters", 33.0),
            ("seawall_queue_enqueued_total", 34.0),
            ("seawall_queue_drained_total", 35.0),
            ("seawall_journal_state{state=\"stalled\"}", 1.0),
            ("seawall_journal_appends_total", 41.0),
            ("seawall_journal_answered_appends_total", 42.0),
            ("seawall_journal_commits_total", 43.0),
            ("seawall_journal_disk_bytes", 44.0),
            ("seawall_journal_generations", 45.0),
            ("seawall_journal_retained_entries", 46.0),
            ("seawall_journal_retained_bytes", 47.0),
            ("seawall_journal_retention_cuts_total", 48.0),
            ("seawall_sagas_begun_total", 51.0),
            ("seawall_sagas_committed_total", 52.0),
            ("seawall_sagas_rolled_back_total", 53.0),
            ("seawall_sagas_compensating", 54.0),
            ("seawall_sagas_parked", 55.0),
            ("seawall_cache_entries", 65.0),
            ("seawall_cache_bytes", 66.0),
            ("seawall_cache_hits_total", 3.0),
            ("seawall_cache_misses_total", 1.0),
            ("seawall_cache_evictions_total", 63.0),
            ("seawall_cache_hit_rate", 0.75),
        ],
    );
}

#[tokio::test]
async fn exactly_one_state_is_1_whatever_the_state() {
    let source = Source::new(observation());
    let telemetry = start(Arc::clone(&source), &EventBus::new()).await;
    let one_hot = |page: &str, family: &str| {
        let ones = samples(page)
            .into_iter()
            .filter(|(series, value)| series.starts_with(&format!("{family}{{")) && *value == 1.0)
            .map(|(series, _)| series);
        ones.collect::<Vec<_>>()
    };
    for state in BreakerState::ALL {
        source.change(|now| now.backends[0].breaker.state = state);
        let page = telemetry.render().unwrap();
        let ones = one_hot(&page, "seawall_breaker_state");
        let name = serde_json::to_value(state).unwrap();
        let graph: Vec<_> = ones.iter().filter(|series| series.contains("graph")).collect();
        assert_eq!(graph, [&format!("seawall_breaker_state{{backend=\"graph\",state={name}}}")]);
        assert_eq!(ones.len(), 2, "one of each backend");
    }
    for mode in Mode::ALL {
        source.change(|now| now.mode = mode);
        let page = telemetry.render().unwrap();
        assert_eq!(one_hot(&page, "seawall_mode"), [format!("seawall_mode{{mode=\"{}\"}}", mode.name())]);
    }
    for level in DegradationLevel::ALL {
        source.change(|now| now.level = level);
        let ones = one_hot(&telemetry.render().unwrap(), "seawall_degradation");
        assert_eq!(ones, [format!("seawall_degradation{{level=\"{}\"}}", level.name())]);
    }
    for health in [JournalHealth::Healthy, JournalHealth::Failed, JournalHealth::Stalled] {
        source.change(|now| now.journal_health = health);
        assert_eq!(one_hot(&telemetry.render().unwrap(), "seawall_journal_state").len(), 1);
    }
}

#[tokio::test]
async fn counters_never_decrease() {
    let source = Source::new(observation());
    let telemetry = start(Arc::clone(&source), &EventBus::new()).await;
    telemetry.render().unwrap();
    source.change(|now| now.backends[0].breaker.total_requests = 5);
    assert_samples(&telemetry.render().unwrap(), &[("seawall_breaker_requests_total{backend=\"graph\"}", 100.0)]);
    source.change(|now| now.backends[0].breaker.total_requests = 130);
    assert_samples(&telemetry.render().unwrap(), &[("seawall_breaker_requests_total{backend=\"graph\"}", 130.0)]);
}

#[tokio::test]
async fn two_runtimes_in_a_process_do_not_meet() {
    let (one, other) = (Source::new(observation()), Source::new(Observation::default()));
    let (one, other) = (start(one, &EventBus::new()).await, start(other, &EventBus::new()).await);
    assert_samples(&one.render().unwrap(), &[("seawall_queue_entries", 31.0)]);
    assert_samples(&other.render().unwrap(), &[("seawall_queue_entries", 0.0)]);
    assert!(!other.render().unwrap().contains("backend="));
    assert_ne!(one.address(), other.address());
}

#[tokio::test]
async fn a_runtime_may_be_named_in_every_series() {
    let config = MetricsConfig { runtime: Some("orders".to_owned()), ..listening() };
    let bus = EventBus::new();
    let telemetry = Telemetry::start(&config, Source::new(observation()), bus.subscribe()).await.unwrap();
    let page = telemetry.render().unwrap();
    assert!(samples(&page).keys().all(|series| series.contains("runtime=\"orders\"")), "{page}");
}

#[tokio::test]
async fn without_a_page_nothing_is_served_and_nothing_breaks() {
    let bus = EventBus::new();
    let config = MetricsConfig::default();
    let telemetry = Telemetry::start(&config, Source::new(observation()), bus.subscribe()).await.unwrap();
    assert_eq!((telemetry.address(), telemetry.render()), (None, None));
    telemetry.probe_duration(&"graph".into()).record(0.1);
    telemetry.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let config = MetricsConfig { listen: Some(taken.local_addr().unwrap()), ..MetricsConfig::default() };
    let bus = EventBus::new();
    let error = Telemetry::start(&config, Source::new(observation()), bus.subscribe()).await.err().unwrap();
    let text = error.to_string();
    assert!(text.contains("metrics.listen") && text.contains(&taken.local_addr().unwrap().to_string()), "{text}");
}

async fn request(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_page_is_served_over_loopback_and_is_as_new_as_the_request() {
    let source = Source::new(observation());
    let telemetry = start(Arc::clone(&source), &EventBus::new()).await;
    let address = telemetry.address().unwrap();
    assert!(address.ip().is_loopback() && address.port() != 0);
    source.change(|now| now.queue.entries = 77);
    let answer = request(address, "GET /metrics HTTP/1.1").await;
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert_samples(page, &[("seawall_queue_entries", 77.0)]);
    assert!(request(address, "GET /other HTTP/1.1").await.starts_with("HTTP/1.1 404"));
    assert!(request(address, "POST /metrics HTTP/1.1").await.starts_with("HTTP/1.1 405"));
    telemetry.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens after the stop");
}

#[tokio::test]
async fn readers_that_say_nothing_do_not_keep_the_page_from_others_for_long() {
    let telemetry = start(Source::new(observation()), &EventBus::new()).await;
    let address = telemetry.address().unwrap();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    tokio::time::pause();
    let answer = request(address, "GET /metrics HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn the_page_is_in_the_text_format_and_well_named() {
    let bus = EventBus::new();
    let telemetry = start(Source::new(observation()), &bus).await;
    telemetry.probe_duration(&"graph".into()).record(0.003);
    publish_one_of_each(&bus);
    settle().await;
    let page = telemetry.render().unwrap();
    let mut types = HashMap::new();
    let mut helps = BTreeSet::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(help)) => {
                assert!(help.ends_with('.') && help.len() > 9, "{line}");
                assert!(helps.insert(name.to_owned()), "{line}");
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                assert!(helps.contains(name), "no help: {line}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(name.starts_with("seawall_"), "{line}");
                assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
            }
            _ => {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let known = |name: &str| types.contains_key(name);
                assert!(known(name) || family.is_some_and(known), "no type: {line}");
            }
        }
    }
    samples(&page);
    assert_samples(
        &page,
        &[
            ("seawall_probe_duration_seconds_count{backend=\"graph\"}", 1.0),
            ("seawall_probe_duration_seconds_bucket{backend=\"graph\",le=\"0.0025\"}", 0.0),
            ("seawall_probe_duration_seconds_bucket{backend=\"graph\",le=\"0.005\"}", 1.0),
        ],
    );
}

/// Lets the tasks that follow events catch up.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn publish_one_of_each(bus: &EventBus) {
    let (operation, version, backend) = (OperationId::generate(), Version(1), || "graph".into());
    bus.breaker(&backend(), BreakerState::Open, TransitionCause::ConsecutiveFailures(5), 1);
    bus.mode(Mode::QueueWrites, ModeCause::JournalUnavailable);
    bus.mode(Mode::Disabled, ModeCause::JournalUnavailable);
    bus.level(DegradationLevel::NoGraph);
    bus.level(DegradationLevel::Normal);
    bus.journal(JournalHealth::Failed);
    bus.journal(JournalHealth::Healthy);
    bus.access(&backend(), seawall_actors::fallback::Access::None);
    for kind in [
        EventKind::JournalDamaged { report: LossReport::default() },
        EventKind::AlertRaised { backend: backend(), alert: Alert::ProbesFailing },
        EventKind::AlertCleared { backend: backend(), alert: Alert::ProbesFailing },
        EventKind::DrainStarted { backend: backend(), owed: 2 },
        EventKind::DrainProgressed { backend: backend(), drained: 1, owed: 1 },
        EventKind::DrainStopped { backend: backend(), drained: 1, owed: 1 },
        EventKind::DrainStopped { backend: backend(), drained: 2, owed: 0 },
        EventKind::SagaCompensating { operation, version, cause: backend() },
        EventKind::SagaRolledBack { operation, version },
        EventKind::DeadLetterAdded { operation, version, backend: backend(), reason: "no such index".to_owned() },
        EventKind::DeadLetterRemoved { operation, version, backend: backend(), retried: true },
        EventKind::ActorRestarted { actor: "sync".to_owned(), reason: "panic".to_owned(), restarts: 4 },
        EventKind::Escalated { actor: "sync".to_owned(), reason: "panic".to_owned() },
        EventKind::Started { recovered: 3 },
        EventKind::Stopping,
    ] {
        bus.publish(kind);
    }
}

#[tokio::test]
async fn what_happens_is_counted() {
    let bus = EventBus::new();
    let telemetry = start(Source::new(observation()), &bus).await;
    publish_one_of_each(&bus);
    bus.breaker(&"graph".into(), BreakerState::HalfOpen, TransitionCause::WaitElapsed, 2);
    settle().await;
    assert_samples(
        &telemetry.render().unwrap(),
        &[
            ("seawall_events_total{kind=\"breaker_changed\"}", 2.0),
            ("seawall_events_total{kind=\"stopping\"}", 1.0),
            ("seawall_breaker_transitions_total{backend=\"graph\",from=\"closed\",to=\"open\"}", 1.0),
            ("seawall_breaker_transitions_total{backend=\"graph\",from=\"open\",to=\"half_open\"}", 1.0),
            ("seawall_mode_changes_total{to=\"queue_writes\"}", 1.0),
            ("seawall_degradation_changes_total{to=\"no_graph\"}", 1.0),
            ("seawall_alerts_total{backend=\"graph\",alert=\"probes_failing\"}", 1.0),
            ("seawall_dead_letters_added_total{backend=\"graph\"}", 1.0),
            ("seawall_actor_restarts_total{actor=\"sync\"}", 4.0),
            ("seawall_events_lagged_total", 0.0),
        ],
    );
}

#[tokio::test]
async fn events_that_were_missed_are_counted_as_missed() {
    let bus = EventBus::new();
    let telemetry = start(Source::new(observation()), &bus).await;
    for _ in 0..CAPACITY + 10 {
        bus.publish(EventKind::Stopping);
    }
    settle_until(|| {
        let samples = samples(&telemetry.render().unwrap());
        samples.get("seawall_events_total{kind=\"stopping\"}") == Some(&(CAPACITY as f64))
    })
    .await;
    assert_samples(&telemetry.render().unwrap(), &[("seawall_events_lagged_total", 10.0)]);
}

async fn settle_until(done: impl Fn() -> bool) {
    for _ in 0..CAPACITY {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never came to be");
}

/// What a subscriber of `tracing` sees.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_happens_is_logged_at_its_level_with_its_fields() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::DEBUG)
        .without_time()
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let bus = EventBus::new();
        let mut events = bus.subscribe();
        publish_one_of_each(&bus);
        let mut observer = Observer::new(Registry::new(None, None));
        while let Some(update) = events.try_next() {
            observer.observe(&update);
        }
        observer.observe(&Update::Lagged { missed: 7 });
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for (level, message, field) in [
        ("WARN", "breaker opened", "backend=graph"),
        ("WARN", "fallback mode changed", "to=\"queue_writes\""),
        ("INFO", "fallback ended", "from=\"queue_writes\""),
        ("WARN", "degradation level changed", "to=\"no_graph\""),
        ("INFO", "no longer degraded", "from=\"no_graph\""),
        ("ERROR", "the journal takes no writes", "to=Failed"),
        ("ERROR", "the journal was damaged", "rows=[]"),
        ("DEBUG", "drain progressed", "owed=1"),
        ("WARN", "drain interrupted", "owed=1"),
        ("INFO", "drain finished", "drained=2"),
        ("ERROR", "a write became a dead letter", "reason=\"no such index\""),
        ("WARN", "an actor was restarted", "restarts=4"),
        ("ERROR", "an actor died too often", "actor=\"sync\""),
        ("INFO", "started", "recovered=3"),
        ("WARN", "events came faster", "missed=7"),
    ] {
        let fits = |line: &str| line.contains(level) && line.contains(message) && line.contains(field);
        assert!(text.lines().any(fits), "{level} {message} {field}\n{text}");
    }
    assert_eq!(text.lines().count(), 8 + 15 + 1, "one line per event and one for those missed:\n{text}");
}

#[tokio::test(start_paused = true)]
async fn the_state_is_sampled_without_anybody_asking() {
    let source = Source::new(observation());
    let bus = EventBus::new();
    let telemetry = start(Arc::clone(&source), &bus).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    source.change(|now| now.queue.entries = 99);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let page = telemetry.sampler.page.as_ref().unwrap().render();
    assert_samples(&page, &[("seawall_queue_entries", 99.0)]);
}

#[tokio::test]
async fn a_recorder_of_the_service_counts_on_when_the_runtime_starts_anew() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _installed = metrics::set_default_local_recorder(&recorder);
    for total in [100.0, 200.0] {
        let bus = EventBus::new();
        let source = Source::new(observation());
        let telemetry = Telemetry::start(&MetricsConfig::default(), source, bus.subscribe()).await.unwrap();
        assert_eq!(telemetry.render(), None);
        telemetry.stop().await;
        let page = recorder.handle().render();
        assert_samples(&page, &[("seawall_breaker_requests_total{backend=\"graph\"}", total)]);
    }
}
