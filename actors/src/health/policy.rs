//! The schedule and the record of one backend's probes. No clock, no runtime.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::config::HealthConfig;
use crate::backend::{BackendError, BackendName, Health};
use crate::event::Alert;

/// How much later than its timeout a probe is given up by the schedule. The probe's own task is given the timeout; only
/// one that blocks its thread is ever this late.
const GRACE: Duration = Duration::from_secs(1);

/// How soon a refused prober may look again, whatever the gate says.
const SOONEST_LOOK: Duration = Duration::from_millis(100);

/// How soon after a good trial the next one comes: a breaker that is tried out wants more than one success.
const NEXT_TRIAL: Duration = Duration::from_secs(1);

/// How many probes a baseline needs before anything can be slower than it.
const WARM_UP: u32 = 10;

/// How much of the baseline the latest probe is: a memory of about 100 probes.
const BASELINE_WEIGHT: f64 = 0.01;

/// How much of the recent latency the latest probe is: a memory of about 3 probes.
const RECENT_WEIGHT: f64 = 0.3;

/// When to come back to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appointment {
    /// Which turn that is; a timer of an earlier turn means nothing any more.
    pub turn: u64,
    /// When.
    pub at: Instant,
}

/// What there is to do at an appointment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing: it is no longer this turn.
    Nothing,
    /// Ask the breaker, and probe.
    Look,
    /// The probe of this turn did not come back: conclude it as failed.
    Overdue,
}

/// An alert that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlertChange {
    /// It begins.
    Raised(Alert),
    /// It is over.
    Cleared(Alert),
}

/// What is known of a backend by its probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// Which backend.
    pub backend: BackendName,
    /// Probes that were begun.
    pub probes: u64,
    /// Those that failed: an error, a panic, or no answer in time.
    pub failures: u64,
    /// Those that failed since the last good one.
    pub consecutive_failures: u32,
    /// Looks at which the breaker refused, so that the backend was not touched.
    pub refused: u64,
    /// Results that came after their probe was given up. They are not counted anywhere else.
    pub late: u64,
    /// Whether a probe is in flight.
    pub in_flight: bool,
    /// How long the last good probe took.
    pub last_latency: Option<Duration>,
    /// The mean over the last few good probes.
    pub recent_latency: Option<Duration>,
    /// The mean over about a hundred.
    pub baseline_latency: Option<Duration>,
    /// How long ago the last probe ended.
    pub last_result_age: Option<Duration>,
    /// Whether the last probe found that writes do not work.
    pub read_only: bool,
    /// What the last probe said, when it failed.
    pub last_error: Option<String>,
    /// Alerts that are raised.
    pub alerts: Vec<Alert>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Waiting { until: Instant },
    InFlight { since: Instant, trial: bool },
}

/// An alert with hysteresis: so many bad ones in a row raise it, so many good ones clear it.
#[derive(Debug, Default)]
struct Alarm {
    raised: bool,
    bad: u32,
    good: u32,
}

impl Alarm {
    fn bad(&mut self, threshold: u32) -> bool {
        self.good = 0;
        self.bad = self.bad.saturating_add(1);
        let raise = !self.raised && self.bad >= threshold;
        self.raised |= raise;
        raise
    }

    fn good(&mut self, threshold: u32) -> bool {
        self.bad = 0;
        self.good = self.good.saturating_add(1);
        let clear = self.raised && self.good >= threshold;
        self.raised &= !clear;
        clear
    }

    /// Neither: both must start again.
    fn between(&mut self) {
        (self.bad, self.good) = (0, 0);
    }
}

/// Latencies in seconds; two means, of which one is slow to learn.
#[derive(Debug, Default)]
struct Trend {
    samples: u32,
    recent: f64,
    baseline: f64,
}

/// How a backend's recent latency stands to its baseline.
#[derive(Debug, PartialEq)]
enum Pace {
    Slow,
    Between,
    Calm,
}

impl Trend {
    fn observe(&mut self, seconds: f64, config: &HealthConfig) -> Pace {
        let pace_known = self.samples >= WARM_UP;
        self.recent = if self.samples == 0 { seconds } else { mix(self.recent, seconds, RECENT_WEIGHT) };
        let pace = if !pace_known || self.recent <= config.slow_floor.as_secs_f64() {
            Pace::Calm
        } else if self.recent > self.baseline * config.slow_factor {
            Pace::Slow
        } else if self.recent > self.baseline * f64::midpoint(1.0, config.slow_factor) {
            Pace::Between
        } else {
            Pace::Calm
        };
        // An outlier teaches the baseline no more than the slowest that would not be called slow. So a backend that
        // stays slow stays alerted for long, and becomes the new normal in the end.
        let lesson = if pace_known { seconds.min(self.baseline * config.slow_factor) } else { seconds };
        self.samples = self.samples.saturating_add(1);
        self.baseline = mix(self.baseline, lesson, BASELINE_WEIGHT.max(1.0 / f64::from(self.samples)));
        pace
    }
}

fn mix(mean: f64, sample: f64, weight: f64) -> f64 {
    mean + (sample - mean) * weight
}

/// When one backend is probed next, and what its probes have shown. At most one probe is in flight.
#[derive(Debug)]
pub struct ProbePolicy {
    config: HealthConfig,
    rng: fastrand::Rng,
    turn: u64,
    phase: Phase,
    /// Look again at once when the probe in flight is back: it was admitted before something changed.
    nudged: bool,
    failing: Alarm,
    slowing: Alarm,
    trend: Trend,
    probes: u64,
    failures: u64,
    refused: u64,
    late: u64,
    last_latency: Option<Duration>,
    last_result_at: Option<Instant>,
    read_only: bool,
    last_error: Option<String>,
}

impl ProbePolicy {
    /// A policy whose first appointment is within `jitter × interval` from now. The config is one without
    /// [problems](HealthConfig::problems); the seed is for the jitter.
    #[must_use]
    pub fn new(config: HealthConfig, seed: u64, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let until = now + config.interval.mul_f64(config.jitter * rng.f64());
        Self {
            config,
            rng,
            turn: 0,
            phase: Phase::Waiting { until },
            nudged: false,
            failing: Alarm::default(),
            slowing: Alarm::default(),
            trend: Trend::default(),
            probes: 0,
            failures: 0,
            refused: 0,
            late: 0,
            last_latency: None,
            last_result_at: None,
            read_only: false,
            last_error: None,
        }
    }

    /// How long a probe may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.config.timeout
    }

    /// When to come back; changes with every call that changes the policy. Perhaps already past.
    #[must_use]
    pub fn appointment(&self) -> Appointment {
        let at = match self.phase {
            Phase::Waiting { until } => until,
            Phase::InFlight { since, .. } => since + self.config.timeout + GRACE,
        };
        Appointment { turn: self.turn, at }
    }

    /// What to do at the appointment of this turn.
    #[must_use]
    pub fn due(&self, turn: u64) -> Due {
        match self.phase {
            _ if turn != self.turn => Due::Nothing,
            Phase::Waiting { .. } => Due::Look,
            Phase::InFlight { .. } => Due::Overdue,
        }
    }

    /// Something changed (a breaker lets probes in again). Gives whether to look now; if a probe is in flight, the
    /// look comes right after it.
    pub fn nudge(&mut self) -> bool {
        match self.phase {
            Phase::Waiting { .. } => true,
            Phase::InFlight { .. } => {
                self.nudged = true;
                false
            }
        }
    }

    /// The breaker refused; it may have said when it will not. Looks again then, and after an interval at the
    /// latest.
    pub fn refused(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.refused += 1;
        let interval = self.interval();
        let wait = retry_after.map_or(interval, |after| after.max(SOONEST_LOOK).min(interval));
        self.wait(now, wait);
    }

    /// A probe begins: gives its turn. A trial is one that the breaker admits to see whether the backend is back.
    pub fn admitted(&mut self, now: Instant, trial: bool) -> u64 {
        self.probes += 1;
        self.turn += 1;
        self.nudged = false;
        self.phase = Phase::InFlight { since: now, trial };
        self.turn
    }

    /// The probe of this turn ended so, after this long. `None`, and nothing is learned, when it was given up before.
    pub fn concluded(
        &mut self,
        turn: u64,
        now: Instant,
        result: &Result<Health, BackendError>,
        latency: Duration,
    ) -> Option<Vec<AlertChange>> {
        let trial = match self.phase {
            Phase::InFlight { trial, .. } if turn == self.turn => trial,
            _ => {
                self.late += 1;
                return None;
            }
        };
        self.last_result_at = Some(now);
        let changes = match result {
            Ok(health) => self.good(*health, latency),
            Err(error) => self.bad(error),
        };
        let wait = match result {
            _ if self.nudged => Duration::ZERO,
            Ok(_) if trial => NEXT_TRIAL.min(self.config.interval),
            _ => self.interval(),
        };
        self.wait(now, wait);
        Some(changes)
    }

    fn good(&mut self, health: Health, latency: Duration) -> Vec<AlertChange> {
        self.read_only = health == Health::ReadOnly;
        self.last_error = None;
        self.last_latency = Some(latency);
        let mut changes = Vec::new();
        if self.failing.good(self.config.clear_threshold) {
            changes.push(AlertChange::Cleared(Alert::ProbesFailing));
        }
        match self.trend.observe(latency.as_secs_f64(), &self.config) {
            Pace::Slow if self.slowing.bad(self.config.slow_threshold) => {
                changes.push(AlertChange::Raised(Alert::SlowingDown));
            }
            Pace::Calm if self.slowing.good(self.config.clear_threshold) => {
                changes.push(AlertChange::Cleared(Alert::SlowingDown));
            }
            Pace::Between => self.slowing.between(),
            Pace::Slow | Pace::Calm => {}
        }
        changes
    }

    fn bad(&mut self, error: &BackendError) -> Vec<AlertChange> {
        self.failures += 1;
        self.last_error = Some(error.to_string());
        if self.failing.bad(self.config.alert_threshold) {
            return vec![AlertChange::Raised(Alert::ProbesFailing)];
        }
        Vec::new()
    }

    /// How well the backend is, 0 to 1; see [`ProbeReport`](super::ProbeReport).
    #[must_use]
    pub fn wellness(&self) -> f64 {
        match (self.failing.raised, self.failing.bad > 0 || self.slowing.raised) {
            (true, _) => 0.0,
            (false, true) => 0.5,
            (false, false) => 1.0,
        }
    }

    /// What is known now.
    #[must_use]
    pub fn status(&self, backend: BackendName, now: Instant) -> ProbeStatus {
        let mean = |seconds| (self.trend.samples > 0).then(|| Duration::from_secs_f64(seconds));
        let alerts = [(&self.failing, Alert::ProbesFailing), (&self.slowing, Alert::SlowingDown)];
        ProbeStatus {
            backend,
            probes: self.probes,
            failures: self.failures,
            consecutive_failures: self.failing.bad,
            refused: self.refused,
            late: self.late,
            in_flight: matches!(self.phase, Phase::InFlight { .. }),
            last_latency: self.last_latency,
            recent_latency: mean(self.trend.recent),
            baseline_latency: mean(self.trend.baseline),
            last_result_age: self.last_result_at.map(|at| now.saturating_duration_since(at)),
            read_only: self.read_only,
            last_error: self.last_error.clone(),
            alerts: alerts.into_iter().filter(|(alarm, _)| alarm.raised).map(|(_, alert)| alert).collect(),
        }
    }

    fn wait(&mut self, now: Instant, wait: Duration) {
        self.turn += 1;
        self.phase = Phase::Waiting { until: now + wait };
    }

    /// The interval with its jitter.
    fn interval(&mut self) -> Duration {
        let part = 1.0 + self.config.jitter * (2.0 * self.rng.f64() - 1.0);
        self.config.interval.mul_f64(part)
    }
}
