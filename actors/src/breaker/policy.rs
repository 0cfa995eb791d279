//! The verdict: a state machine without clock, lock or runtime.

mod control;
mod evidence;
mod explain;
mod recovery;
mod saved;
mod shadow;

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

pub use self::evidence::{Effects, Evidence, Grant, Heard, Settled, WouldOpen};
use self::recovery::Recovery;
use self::shadow::Shadow;
use super::ages::Ages;
use super::config::BreakerConfig;
use super::history::History;
use super::report::Transition;
use super::rule::{Bad, Moment, Rules};
use super::window::Sums;
use super::{BreakerState, Purpose, TransitionCause};
use crate::backend::BackendError;

/// After how long a call that found no place in half-open may ask again, when no place is lost earlier: any report of
/// a probe makes room.
pub(super) const PROBE_GUESS: Duration = Duration::from_secs(1);

/// The longest wait that is added to a point in time, so that no configuration overflows one: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Decides the state of one breaker. Every method that takes `now` first does what has become due by then.
#[derive(Debug)]
pub struct BreakerPolicy {
    config: BreakerConfig,
    rules: Rules,
    shadow: Option<Shadow>,
    ages: Ages,
    heard: Heard,
    rng: fastrand::Rng,
    automatic: Automatic,
    manual: Option<Manual>,
    generation: u64,
    attempts: u32,
    half_open_attempts: u32,
    opened: Option<(TransitionCause, u64)>,
    /// How many places were ever given.
    places: u64,
    /// Probes that lost their place and have not reported yet: as many as there are such calls in memory.
    late: HashSet<NonZeroU64>,
    history: History,
    effects: Effects,
}

/// The state that follows from results and time. Under an override it stands still.
#[derive(Debug)]
enum Automatic {
    Closed,
    Open { until: Instant },
    HalfOpen { successes: u32, probes: Vec<Probe> },
    Recovering(Recovery),
}

/// A call that holds a place, in half-open or in a recovery.
#[derive(Debug)]
struct Probe {
    place: NonZeroU64,
    purpose: Purpose,
    deadline: Instant,
}

/// What a person decided.
#[derive(Debug)]
struct Manual {
    state: BreakerState,
    reason: String,
    until: Option<Instant>,
}

impl BreakerPolicy {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        let moment = Moment { successes: 0, now };
        Self {
            rules: Rules::new(&config, moment),
            shadow: Shadow::of(&config, moment),
            ages: Ages::new(config.slow_call, now),
            heard: Heard::default(),
            rng: fastrand::Rng::new(),
            config,
            automatic: Automatic::Closed,
            manual: None,
            generation: 0,
            attempts: 0,
            half_open_attempts: 0,
            opened: None,
            places: 0,
            late: HashSet::new(),
            history: History::new(now),
            effects: Effects::default(),
        }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.manual.as_ref().map_or_else(|| self.automatic.state(), |manual| manual.state)
    }

    /// The generation: one more at every transition.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When time alone changes something the next time, or makes room for a call.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match (&self.manual, &self.automatic) {
            (Some(manual), _) => manual.until,
            (None, Automatic::Closed) => self.ages.due(),
            (None, Automatic::Open { until }) => Some(*until),
            (None, Automatic::HalfOpen { probes, .. }) => probes.iter().map(|probe| probe.deadline).min(),
            (None, Automatic::Recovering(recovery)) => Some(recovery.wake_at()),
        }
    }

    /// When to ask again after a refusal. When nobody knows, because any report may make room or a person has to lift
    /// something, it is a guess that does no harm.
    #[must_use]
    pub fn retry_after(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        if state.admits_freely() {
            return None;
        }
        let at = match (&self.manual, &self.automatic) {
            (None, Automatic::Recovering(recovery)) => Some(recovery.ask_again_at(now)),
            _ => self.wake_at(),
        };
        let wait = at.map_or(self.config.reset_timeout, |at| at.saturating_duration_since(now));
        Some(if state == BreakerState::HalfOpen { wait.min(PROBE_GUESS) } else { wait })
    }

    /// Whether an admission is for the policy to decide: it is half-open with room for a call, or recovering, or has
    /// to be woken.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        match (&self.manual, &self.automatic) {
            (None, Automatic::HalfOpen { probes, .. }) => probes.len() < self.config.permitted_probes(),
            (None, Automatic::Recovering(_)) => true,
            _ => self.counts_ages() && self.ages.asleep(),
        }
    }

    /// The tick that admissions take with them.
    #[must_use]
    pub fn tick_number(&self) -> u32 {
        self.ages.number()
    }

    /// The gate counted so far. To be told before anything else, with every call.
    pub fn hear(&mut self, heard: Heard) {
        self.heard = heard;
    }

    /// How long a call of this grant has been out, at least.
    #[must_use]
    pub fn age(&self, grant: Grant, now: Instant) -> Duration {
        self.ages.age(grant.tick, now)
    }

    /// How long a call may take.
    #[must_use]
    pub fn slow_call(&self) -> Duration {
        self.config.slow_call
    }

    /// What a refused caller is told to wait where nothing says more.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.config.reset_timeout
    }

    /// How often the shadow would have opened it.
    #[must_use]
    pub fn shadow_opened(&self) -> u64 {
        self.shadow.as_ref().map_or(0, Shadow::opened)
    }

    /// What the rolling window shows.
    pub(super) fn rolling(&mut self, now: Instant) -> Sums {
        let moment = self.moment(now);
        self.rules.rolling(moment)
    }

    /// Whether a call that took so long was slow.
    #[must_use]
    pub fn is_slow(&self, took: Duration) -> bool {
        took >= self.config.slow_call
    }

    /// What the prober finds, 0 (failing) to 1 (well), for the adaptive rule.
    pub fn probed_health(&mut self, health: f64) {
        self.rules.probed(health);
        if let Some(shadow) = &mut self.shadow {
            shadow.probed(health);
        }
    }

    /// Whether the configuration excludes this error.
    #[must_use]
    pub fn excludes(&self, error: &BackendError) -> bool {
        self.config.excludes(error)
    }

    /// What has to be told since the last time.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// Does what is due: ends the open wait (at `now == until`), takes places from calls that hold them too
    /// long, goes on with a recovery, ends an override, and looks at the age of the calls that are out.
    pub fn tick(&mut self, now: Instant) {
        if let Some(manual) = &self.manual {
            if manual.until.is_some_and(|until| now >= until) {
                self.uncover(TransitionCause::OverrideExpired, now);
            } else if manual.state == BreakerState::MetricsOnly {
                self.look_at_ages(now);
            }
            return;
        }
        match &mut self.automatic {
            Automatic::Closed => self.look_at_ages(now),
            Automatic::Recovering(_) => self.go_on_recovering(now),
            Automatic::Open { until } if now >= *until => {
                let half_open = Automatic::HalfOpen { successes: 0, probes: Vec::new() };
                self.half_open_attempts = self.half_open_attempts.saturating_add(1);
                self.enter(half_open, TransitionCause::WaitElapsed, now);
            }
            Automatic::HalfOpen { probes, .. } => {
                for probe in probes.extract_if(.., |probe| now >= probe.deadline) {
                    self.late.insert(probe.place);
                    self.effects.expired += 1;
                }
            }
            _ => {}
        }
    }

    /// Admits a call, or not.
    pub fn admit(&mut self, purpose: Purpose, now: Instant) -> Option<Grant> {
        self.tick(now);
        let generation = self.generation;
        if self.state().admits_freely() {
            if self.counts_ages() {
                self.ages.wake(self.heard, now);
            }
            return Some(Grant { generation, tick: self.ages.number(), place: None });
        }
        if self.manual.is_some() {
            return None;
        }
        let permitted = self.config.permitted_probes();
        let probes = match &mut self.automatic {
            Automatic::HalfOpen { probes, .. } if probes.len() < permitted => probes,
            Automatic::Recovering(recovery) => recovery.admit(&self.config, purpose)?,
            _ => return None,
        };
        self.places += 1;
        let (place, deadline) = (NonZeroU64::new(self.places)?, later(now, self.config.half_open_lease));
        probes.push(Probe { place, purpose, deadline });
        Some(Grant { generation, tick: self.ages.number(), place: Some(place) })
    }

    /// When a call loses the place that it holds now.
    #[must_use]
    pub fn deadline(&self, grant: Grant) -> Option<Instant> {
        let probes = match &self.automatic {
            Automatic::HalfOpen { probes, .. } => probes,
            Automatic::Recovering(recovery) => recovery.probes(),
            Automatic::Closed | Automatic::Open { .. } => return None,
        };
        probes.iter().find(|probe| Some(probe.place) == grant.place).map(|probe| probe.deadline)
    }

    /// Takes in the result of a call.
    pub fn settle(&mut self, grant: Grant, evidence: Evidence<'_>, now: Instant) -> Settled {
        self.tick(now);
        if let Some(place) = grant.place
            && self.late.remove(&place)
        {
            return Settled::Expired;
        }
        if grant.generation != self.generation {
            return Settled::Stale;
        }
        if let Evidence::Dead { kind, code } = evidence {
            self.history.failed(kind, code, self.generation, now);
        }
        match (&self.manual, grant.place) {
            (None, Some(place)) => self.probed(place, evidence, now),
            (None, None) => self.observe(evidence, now),
            (Some(manual), _) if manual.state == BreakerState::MetricsOnly => self.observe(evidence, now),
            (Some(_), _) => {}
        }
        Settled::InTime
    }

    /// The failures, transitions and times that it remembers.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// The result of a call that holds no place.
    fn observe(&mut self, evidence: Evidence<'_>, now: Instant) {
        let bad = match evidence {
            Evidence::Dead { .. } => Bad::Failed,
            Evidence::Slow => Bad::Slow,
            Evidence::Alive | Evidence::Nothing => return,
        };
        let mut moment = self.moment(now);
        // It has not been counted yet.
        moment.successes += u64::from(bad == Bad::Slow);
        let cause = self.rules.observe(bad, moment);
        self.fired(cause, now);
        if let Some(shadow) = &mut self.shadow
            && let Some(cause) = shadow.observe(bad, moment)
        {
            self.effects.would_open.push((cause, WouldOpen::Shadow));
        }
    }

    /// The ages of calls are looked at while calls are admitted freely and counted.
    fn look_at_ages(&mut self, now: Instant) {
        self.ages.tick(self.heard, now);
        let moment = self.moment(now);
        self.rules.count(moment);
        let overdue = self.ages.overdue(self.heard, now);
        let cause = self.rules.overdue(overdue);
        self.fired(cause, now);
        if let Some(shadow) = &mut self.shadow
            && let Some(cause) = shadow.overdue(overdue, moment)
        {
            self.effects.would_open.push((cause, WouldOpen::Shadow));
        }
    }

    fn counts_ages(&self) -> bool {
        matches!(self.state(), BreakerState::Closed | BreakerState::MetricsOnly)
    }

    /// A rule fired, perhaps.
    fn fired(&mut self, cause: Option<TransitionCause>, now: Instant) {
        let Some(cause) = cause else { return };
        if self.manual.is_none() {
            return self.open(cause, now);
        }
        self.effects.would_open.push((cause, WouldOpen::MetricsOnly));
        // As if it had been opened, and had closed again.
        self.rules.clear(self.moment(now));
        self.ages.clear(self.heard, now);
    }

    /// The result of a call that holds a place.
    fn probed(&mut self, place: NonZeroU64, evidence: Evidence<'_>, now: Instant) {
        match &mut self.automatic {
            Automatic::Closed | Automatic::Open { .. } => {}
            Automatic::Recovering(_) => self.recovery_call_ended(place, evidence, now),
            Automatic::HalfOpen { successes, probes } => {
                probes.retain(|probe| probe.place != place);
                match evidence {
                    Evidence::Nothing => {}
                    Evidence::Dead { .. } => self.open(TransitionCause::ProbeFailed, now),
                    Evidence::Alive | Evidence::Slow => {
                        *successes += 1;
                        let successes = *successes;
                        if successes >= self.config.success_threshold {
                            self.half_open_passed(successes, now);
                        }
                    }
                }
            }
        }
    }

    fn half_open_passed(&mut self, successes: u32, now: Instant) {
        let cause = TransitionCause::ProbesSucceeded(successes);
        if self.config.gradual_recovery {
            let recovery = Recovery::new(&self.config, &mut self.rng, now);
            self.enter(Automatic::Recovering(recovery), cause, now);
        } else {
            self.close(cause, now);
        }
    }

    fn close(&mut self, cause: TransitionCause, now: Instant) {
        self.forget_attempts();
        self.enter(Automatic::Closed, cause, now);
    }

    fn open(&mut self, cause: TransitionCause, now: Instant) {
        self.attempts = self.attempts.saturating_add(1);
        self.opened = Some((cause.clone(), self.generation));
        let shorter = 1.0 - self.config.open_wait_jitter.clamp(0.0, 1.0) * self.rng.f64();
        let wait = self.config.open_wait(self.attempts).mul_f64(shorter);
        self.enter(Automatic::Open { until: later(now, wait) }, cause, now);
    }

    fn enter(&mut self, automatic: Automatic, cause: TransitionCause, now: Instant) {
        let from = self.state();
        self.automatic = automatic;
        self.changed(from, cause, now);
    }

    /// Every transition ends here: a new generation, in which nothing that came before counts.
    fn changed(&mut self, from: BreakerState, cause: TransitionCause, now: Instant) {
        self.generation += 1;
        let moment = self.moment(now);
        self.rules.clear(moment);
        if let Some(shadow) = &mut self.shadow {
            shadow.clear(moment);
        }
        self.ages.clear(self.heard, now);
        let transition = Transition { from, to: self.state(), cause, generation: self.generation, age: Duration::ZERO };
        self.history.changed(transition.clone(), now);
        self.effects.transitions.push(transition);
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment { successes: self.heard.successes, now }
    }

    fn forget_attempts(&mut self) {
        self.attempts = 0;
        self.half_open_attempts = 0;
    }
}

impl Automatic {
    fn state(&self) -> BreakerState {
        match self {
            Self::Closed => BreakerState::Closed,
            Self::Open { .. } => BreakerState::Open,
            Self::HalfOpen { .. } => BreakerState::HalfOpen,
            Self::Recovering(_) => BreakerState::Recovering,
        }
    }
}

fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(LONGEST)
}
