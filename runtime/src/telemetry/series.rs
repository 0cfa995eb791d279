//! The metrics: their names, what they mean, and how an [`Observation`] sets them.
//!
//! Handles are resolved once per series, for a look-up by labels costs ten times what setting the value does.

use std::collections::HashMap;
use std::time::Duration;

use metrics::{Gauge, Histogram};
use seawall_actors::backend::BackendName;
use seawall_actors::breaker::{BreakerSnapshot, BreakerState};
use seawall_actors::fallback::{DegradationLevel, Mode};
use seawall_actors::journal::JournalHealth;

use super::observation::{BackendObservation, Observation};
use super::registry::{OneHot, Registry, Total};

const JOURNAL_HEALTH: [(JournalHealth, &str); 3] =
    [(JournalHealth::Healthy, "healthy"), (JournalHealth::Failed, "failed"), (JournalHealth::Stalled, "stalled")];

/// Every series that is sampled.
pub(super) struct Series {
    registry: Registry,
    backends: HashMap<BackendName, BackendSeries>,
    mode: OneHot<Mode>,
    level: OneHot<DegradationLevel>,
    level_number: Gauge,
    in_flight: Gauge,
    queue: QueueSeries,
    journal: JournalSeries,
    sagas: SagaSeries,
    cache: CacheSeries,
}

impl Series {
    pub(super) fn new(registry: Registry) -> Self {
        let r = &registry;
        Self {
            backends: HashMap::new(),
            mode: r.one_hot(
                "seawall_mode",
                "1 for the fallback mode in force, 0 for the others.",
                "mode",
                &Mode::ALL.map(|mode| (mode, mode.name())),
            ),
            level: r.one_hot(
                "seawall_degradation",
                "1 for the degradation level that holds, 0 for the others.",
                "level",
                &DegradationLevel::ALL.map(|level| (level, level.name())),
            ),
            level_number: r.gauge("seawall_degradation_level", "The number of the degradation level, 0 is normal."),
            in_flight: r.gauge("seawall_requests_in_flight", "Requests that are being worked on."),
            queue: QueueSeries::new(r),
            journal: JournalSeries::new(r),
            sagas: SagaSeries::new(r),
            cache: CacheSeries::new(r),
            registry,
        }
    }

    pub(super) fn record(&mut self, observation: &Observation) {
        for backend in &observation.backends {
            self.backend(&backend.breaker.name).record(backend);
        }
        self.mode.set(observation.mode);
        self.level.set(observation.level);
        self.level_number.set(observation.level_number);
        set(&self.in_flight, observation.in_flight);
        self.queue.record(observation);
        self.journal.record(observation);
        self.sagas.record(observation);
        self.cache.record(observation);
    }

    /// Where the durations of probes of this backend are recorded.
    pub(super) fn probe_duration(&mut self, backend: &BackendName) -> Histogram {
        self.backend(backend).probe_duration.clone()
    }

    fn backend(&mut self, name: &BackendName) -> &mut BackendSeries {
        self.backends
            .entry(name.clone())
            .or_insert_with(|| BackendSeries::new(&self.registry.with("backend", name.as_str().to_owned())))
    }
}

struct BreakerSeries {
    state: OneHot<BreakerState>,
    total: Total,
    successful: Total,
    slow: Total,
    failed: Total,
    rejected: Total,
    throttled: Total,
    ignored: Total,
    cancelled: Total,
    panicked: Total,
    expired: Total,
    stale: Total,
    in_flight: Gauge,
    transitions: Total,
    time_in_closed: Gauge,
    time_in_open: Gauge,
    time_in_half_open: Gauge,
    time_in_recovering: Gauge,
    time_in_manual: Gauge,
    failure_rate: Gauge,
    slow_call_rate: Gauge,
    shadow_opened: Total,
    last_failure: Gauge,
    last_success: Gauge,
    success_rate: Gauge,
    availability: Gauge,
}

struct BackendSeries {
    breaker: BreakerSeries,
    calls_in_flight: Gauge,
    retries: Total,
    budget_exhausted: Total,
    bulkhead_rejections: Total,
    swept: Total,
    owed: Gauge,
    drained: Total,
    probes: Total,
    failed_probes: Total,
    probe_duration: Histogram,
}

impl BreakerSeries {
    fn new(r: &Registry) -> Self {
        let time_in = |state: &'static str| {
            r.with("state", state)
                .gauge("seawall_breaker_time_in_state_seconds", "Time that the breaker has spent in this state.")
        };
        Self {
            state: r.one_hot(
                "seawall_breaker_state",
                "1 for the state that the breaker is in, 0 for the others.",
                "state",
                &BreakerState::ALL.map(|state| (state, state.as_str())),
            ),
            total: r.total(
                "seawall_breaker_requests_total",
                "Calls that asked the breaker for admission, admitted and rejected.",
            ),
            successful: r.total("seawall_breaker_successful_requests_total", "Calls that showed the backend alive."),
            slow: r.total("seawall_breaker_slow_requests_total", "Successful calls that were slow."),
            failed: r.total("seawall_breaker_failed_requests_total", "Calls that failed."),
            rejected: r.total(
                "seawall_breaker_rejected_requests_total",
                "Calls that the breaker refused; the backend was not touched.",
            ),
            throttled: r.total(
                "seawall_breaker_throttled_requests_total",
                "Calls that the breaker refused because the load comes back in steps; they are among the rejected.",
            ),
            ignored: r.total("seawall_breaker_ignored_requests_total", "Calls that ended in an excluded error."),
            cancelled: r.total("seawall_breaker_cancelled_requests_total", "Calls that the caller gave up."),
            panicked: r.total("seawall_breaker_panicked_requests_total", "Calls that panicked."),
            expired: r.total(
                "seawall_breaker_expired_requests_total",
                "Calls in half-open that lost their place because they did not report in time.",
            ),
            stale: r
                .total("seawall_breaker_stale_results_total", "Results that came too late to count for the verdict."),
            in_flight: r.gauge("seawall_breaker_in_flight_requests", "Admitted calls that have not reported yet."),
            transitions: r.total("seawall_breaker_state_transitions_total", "Changes of the breaker's state."),
            time_in_closed: time_in("closed"),
            time_in_open: time_in("open"),
            time_in_half_open: time_in("half_open"),
            time_in_recovering: time_in("recovering"),
            time_in_manual: time_in("manual"),
            failure_rate: r.gauge(
                "seawall_breaker_failure_rate",
                "Calls that failed among those in the rolling window, 0 to 1, since the last change of the state.",
            ),
            slow_call_rate: r.gauge(
                "seawall_breaker_slow_call_rate",
                "Calls that were slow among those in the rolling window, 0 to 1, since the last change of the state.",
            ),
            shadow_opened: r
                .total("seawall_breaker_shadow_opened_total", "How often the shadow would have opened the breaker."),
            last_failure: r.gauge(
                "seawall_breaker_last_failure_age_seconds",
                "Time since the last failed call; NaN before the first.",
            ),
            last_success: r.gauge(
                "seawall_breaker_last_success_age_seconds",
                "Time since the last successful call; NaN before the first.",
            ),
            success_rate: r.gauge(
                "seawall_breaker_success_rate",
                "Successes among successes and failures, 0 to 1; 0 without either.",
            ),
            availability: r.gauge(
                "seawall_breaker_availability",
                "Calls that were not rejected among all, 0 to 1; 1 without calls.",
            ),
        }
    }

    fn record(&mut self, breaker: &BreakerSnapshot) {
        self.state.set(breaker.state);
        self.total.advance(breaker.total_requests);
        self.successful.advance(breaker.successful);
        self.slow.advance(breaker.slow);
        self.failed.advance(breaker.failed);
        self.rejected.advance(breaker.rejected);
        self.throttled.advance(breaker.throttled);
        self.ignored.advance(breaker.ignored);
        self.cancelled.advance(breaker.cancelled);
        self.panicked.advance(breaker.panicked);
        self.expired.advance(breaker.expired);
        self.stale.advance(breaker.stale_results);
        set(&self.in_flight, breaker.in_flight);
        self.transitions.advance(breaker.state_transitions);
        self.time_in_closed.set(breaker.time_in_closed.as_secs_f64());
        self.time_in_open.set(breaker.time_in_open.as_secs_f64());
        self.time_in_half_open.set(breaker.time_in_half_open.as_secs_f64());
        self.time_in_recovering.set(breaker.time_in_recovering.as_secs_f64());
        self.failure_rate.set(breaker.failure_rate);
        self.slow_call_rate.set(breaker.slow_call_rate);
        self.shadow_opened.advance(breaker.shadow_opened);
        self.time_in_manual.set(breaker.time_in_manual.as_secs_f64());
        self.last_failure.set(age(breaker.last_failure));
        self.last_success.set(age(breaker.last_success));
        self.success_rate.set(breaker.success_rate());
        self.availability.set(breaker.availability());
    }
}

impl BackendSeries {
    fn new(r: &Registry) -> Self {
        Self {
            breaker: BreakerSeries::new(r),
            calls_in_flight: r.gauge(
                "seawall_backend_calls_in_flight",
                "Places for calls that are taken, by users and the background.",
            ),
            retries: r.total("seawall_backend_retries_total", "Calls that were made again because they had failed."),
            budget_exhausted: r.total(
                "seawall_backend_retry_budget_exhausted_total",
                "Calls that were not made again because the retry budget was empty.",
            ),
            bulkhead_rejections: r.total(
                "seawall_backend_bulkhead_rejections_total",
                "Calls of users that were refused because as many were out as may be; the backend was not touched.",
            ),
            swept: r.total("seawall_backend_swept_total", "Deletes that it has forgotten, as nothing older can come."),
            owed: r.gauge("seawall_backend_owed_writes", "Accepted writes that the backend has not been given yet."),
            drained: r.total("seawall_backend_drained_writes_total", "Owed writes that the backend has been given."),
            probes: r.total("seawall_probes_total", "Health probes."),
            failed_probes: r.total("seawall_failed_probes_total", "Health probes that failed."),
            probe_duration: r.histogram("seawall_probe_duration_seconds", "How long health probes took."),
        }
    }

    fn record(&mut self, now: &BackendObservation) {
        self.breaker.record(&now.breaker);
        set(&self.calls_in_flight, now.calls.in_flight);
        self.retries.advance(now.calls.retries);
        self.budget_exhausted.advance(now.calls.budget_exhausted);
        self.bulkhead_rejections.advance(now.calls.bulkhead_rejections);
        self.swept.advance(now.calls.swept);
        set(&self.owed, now.owed);
        self.drained.advance(now.drained);
        self.probes.advance(now.probes);
        self.failed_probes.advance(now.failed_probes);
    }
}

struct QueueSeries {
    entries: Gauge,
    bytes: Gauge,
    dead_letters: Gauge,
    enqueued: Total,
    drained: Total,
}

impl QueueSeries {
    fn new(r: &Registry) -> Self {
        Self {
            entries: r.gauge("seawall_queue_entries", "Accepted writes that are not finished."),
            bytes: r.gauge("seawall_queue_bytes", "Bytes that the unfinished writes take."),
            dead_letters: r.gauge("seawall_dead_letters", "Writes that a backend will never take."),
            enqueued: r.total(
                "seawall_queue_enqueued_total",
                "Writes that were acknowledged while some backend still owed them.",
            ),
            drained: r.total("seawall_queue_drained_total", "Owed writes that nobody owes any more."),
        }
    }

    fn record(&mut self, now: &Observation) {
        set(&self.entries, now.queue.entries);
        set(&self.bytes, now.queue.bytes);
        set(&self.dead_letters, now.queue.dead_letters);
        self.enqueued.advance(now.queue.enqueued);
        self.drained.advance(now.queue.drained);
    }
}

struct JournalSeries {
    health: OneHot<JournalHealth>,
    submitted: Total,
    answered: Total,
    commits: Total,
    disk_bytes: Gauge,
    generations: Gauge,
    retained_entries: Gauge,
    retained_bytes: Gauge,
    retention_cuts: Total,
}

impl JournalSeries {
    fn new(r: &Registry) -> Self {
        Self {
            health: r.one_hot(
                "seawall_journal_state",
                "1 for the state that the journal is in, 0 for the others.",
                "state",
                &JOURNAL_HEALTH,
            ),
            submitted: r.total("seawall_journal_appends_total", "Appends that were submitted."),
            answered: r.total("seawall_journal_answered_appends_total", "Appends that were answered."),
            commits: r.total("seawall_journal_commits_total", "Commits, each of them one sync of the disk."),
            disk_bytes: r.gauge("seawall_journal_disk_bytes", "Bytes that the journal takes on disk, about."),
            generations: r.gauge("seawall_journal_generations", "Generations of the journal on disk."),
            retained_entries: r.gauge("seawall_journal_retained_entries", "Finished writes that a replay still finds."),
            retained_bytes: r.gauge("seawall_journal_retained_bytes", "Bytes that are on disk only for a replay."),
            retention_cuts: r.total(
                "seawall_journal_retention_cuts_total",
                "How often finished writes went early, for the limit in bytes.",
            ),
        }
    }

    fn record(&mut self, now: &Observation) {
        self.health.set(now.journal_health);
        self.submitted.advance(now.journal.submitted);
        self.answered.advance(now.journal.answered);
        self.commits.advance(now.journal.commits);
        set(&self.disk_bytes, now.journal.disk_bytes);
        self.generations.set(now.journal.generations);
        set(&self.retained_entries, now.journal.retained_entries);
        set(&self.retained_bytes, now.journal.retained_bytes);
        self.retention_cuts.advance(now.journal.retention_cuts);
    }
}

struct SagaSeries {
    begun: Total,
    committed: Total,
    rolled_back: Total,
    compensating: Gauge,
    parked: Gauge,
}

impl SagaSeries {
    fn new(r: &Registry) -> Self {
        Self {
            begun: r.total("seawall_sagas_begun_total", "Writes that were begun."),
            committed: r.total("seawall_sagas_committed_total", "Writes that every required backend has."),
            rolled_back: r.total("seawall_sagas_rolled_back_total", "Writes that were undone everywhere."),
            compensating: r.gauge("seawall_sagas_compensating", "Writes that are being undone."),
            parked: r.gauge(
                "seawall_sagas_parked",
                "Legs that a backend refuses for good: dead letters, waiting for a person.",
            ),
        }
    }

    fn record(&mut self, now: &Observation) {
        self.begun.advance(now.sagas.begun);
        self.committed.advance(now.sagas.committed);
        self.rolled_back.advance(now.sagas.rolled_back);
        set(&self.compensating, now.sagas.compensating);
        set(&self.parked, now.sagas.parked);
    }
}

struct CacheSeries {
    entries: Gauge,
    bytes: Gauge,
    hits: Total,
    misses: Total,
    evictions: Total,
    hit_rate: Gauge,
}

impl CacheSeries {
    fn new(r: &Registry) -> Self {
        Self {
            entries: r.gauge("seawall_cache_entries", "Entries of the cache, tombstones included."),
            bytes: r.gauge("seawall_cache_bytes", "Bytes that the entries of the cache take, about."),
            hits: r.total("seawall_cache_hits_total", "Look-ups in the cache that gave something."),
            misses: r.total("seawall_cache_misses_total", "Look-ups in the cache that gave nothing."),
            evictions: r.total("seawall_cache_evictions_total", "Entries of the cache that made room for others."),
            hit_rate: r.gauge("seawall_cache_hit_rate", "Hits among all look-ups, 0 to 1; 0 without look-ups."),
        }
    }

    fn record(&mut self, now: &Observation) {
        let cache = &now.cache;
        set(&self.entries, cache.entries as u64);
        set(&self.bytes, cache.bytes as u64);
        self.hits.advance(cache.hits);
        self.misses.advance(cache.misses);
        self.evictions.advance(cache.evictions);
        self.hit_rate.set(cache.hit_rate());
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 52 bits are enough for what is shown")]
fn set(gauge: &Gauge, value: u64) {
    gauge.set(value as f64);
}

fn age(age: Option<Duration>) -> f64 {
    age.map_or(f64::NAN, |age| age.as_secs_f64())
}
