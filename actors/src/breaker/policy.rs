//! The verdict: a state machine without clock, lock or runtime.

mod explain;
mod saved;

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::config::BreakerConfig;
use super::history::History;
use super::report::{FailureKind, Transition};
use super::rule::Rule;
use super::{BreakerState, Purpose, TransitionCause};
use crate::backend::BackendError;

/// The longest wait that is added to a point in time, so that no configuration overflows one: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Decides the state of one breaker. Every method that takes `now` first does what has become due by then.
#[derive(Debug)]
pub struct BreakerPolicy {
    config: BreakerConfig,
    rules: Vec<Rule>,
    automatic: Automatic,
    manual: Option<Manual>,
    generation: u64,
    attempts: u32,
    half_open_attempts: u32,
    opened: Option<(TransitionCause, u64)>,
    last_probe: u64,
    /// Probes that lost their place and have not reported yet: as many as there are such calls in memory.
    late: HashSet<u64>,
    history: History,
    effects: Effects,
}

/// The state that follows from results and time. Under an override it stands still.
#[derive(Debug)]
enum Automatic {
    Closed,
    Open { until: Instant },
    HalfOpen { successes: u32, probes: Vec<Probe> },
}

#[derive(Debug)]
struct Probe {
    id: u64,
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

/// An admission, as its call has to present it when it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The generation in which it was given.
    pub generation: u64,
    /// Its place in half-open.
    pub probe: Option<ProbeGrant>,
}

/// A place in half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeGrant {
    id: u64,
    /// When it is lost.
    pub deadline: Instant,
}

/// What the result of a call says about the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence<'a> {
    /// It answered.
    Alive,
    /// It did not, or failed.
    Dead {
        /// How.
        kind: FailureKind,
        /// With which code.
        code: Option<&'a str>,
    },
    /// Neither.
    Nothing,
}

/// What became of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It counts for the verdict.
    InTime,
    /// Its generation is over: it counts as a call, not for the verdict.
    Stale,
    /// The call was counted as expired before: nothing more happens.
    Expired,
}

/// What has to be told to others.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Transitions, oldest first.
    pub transitions: Vec<Transition>,
    /// Calls that lost their place in half-open.
    pub expired: u64,
}

impl BreakerPolicy {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            rules: Rule::all(&config),
            config,
            automatic: Automatic::Closed,
            manual: None,
            generation: 0,
            attempts: 0,
            half_open_attempts: 0,
            opened: None,
            last_probe: 0,
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
            (None, Automatic::Closed) => None,
            (None, Automatic::Open { until }) => Some(*until),
            (None, Automatic::HalfOpen { probes, .. }) => probes.iter().map(|probe| probe.deadline).min(),
        }
    }

    /// When the next call may be admitted, if that is known. In half-open it is not: any report may make room.
    #[must_use]
    pub fn retry_after(&self, now: Instant) -> Option<Duration> {
        matches!(self.state(), BreakerState::Open | BreakerState::ForcedOpen)
            .then(|| self.wake_at())
            .flatten()
            .map(|at| at.saturating_duration_since(now))
    }

    /// Whether a call would be admitted in half-open.
    #[must_use]
    pub fn has_room(&self) -> bool {
        match &self.automatic {
            Automatic::HalfOpen { probes, .. } => probes.len() < self.config.permitted_probes(),
            _ => false,
        }
    }

    /// Whether a success would change anything but a counter.
    #[must_use]
    pub fn hears_success(&self) -> bool {
        self.state() == BreakerState::Closed && self.rules.iter().any(Rule::hears_success)
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
    /// long, ends an override.
    pub fn tick(&mut self, now: Instant) {
        if let Some(manual) = &self.manual {
            if manual.until.is_some_and(|until| now >= until) {
                self.uncover(TransitionCause::OverrideExpired, now);
            }
            return;
        }
        match &mut self.automatic {
            Automatic::Open { until } if now >= *until => {
                let half_open = Automatic::HalfOpen { successes: 0, probes: Vec::new() };
                self.half_open_attempts = self.half_open_attempts.saturating_add(1);
                self.enter(half_open, TransitionCause::WaitElapsed, now);
            }
            Automatic::HalfOpen { probes, .. } => {
                for probe in probes.extract_if(.., |probe| now >= probe.deadline) {
                    self.late.insert(probe.id);
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
            return Some(Grant { generation, probe: None });
        }
        if self.manual.is_some() || !self.has_room() {
            return None;
        }
        let Automatic::HalfOpen { probes, .. } = &mut self.automatic else { return None };
        self.last_probe += 1;
        let (id, deadline) = (self.last_probe, later(now, self.config.half_open_lease));
        probes.push(Probe { id, purpose, deadline });
        Some(Grant { generation, probe: Some(ProbeGrant { id, deadline }) })
    }

    /// Takes in the result of a call.
    pub fn settle(&mut self, grant: Grant, evidence: Evidence<'_>, now: Instant) -> Settled {
        self.tick(now);
        if let Some(probe) = grant.probe
            && self.late.remove(&probe.id)
        {
            return Settled::Expired;
        }
        if grant.generation != self.generation {
            return Settled::Stale;
        }
        if let Evidence::Dead { kind, code } = evidence {
            self.history.failed(kind, code, self.generation, now);
        }
        if self.manual.is_none() {
            match grant.probe {
                Some(probe) => self.probed(probe.id, evidence, now),
                None => self.observe(evidence, now),
            }
        }
        Settled::InTime
    }

    /// Puts the breaker into a manual state, until it is lifted or this long.
    pub fn force(&mut self, state: BreakerState, reason: String, expires_in: Option<Duration>, now: Instant) {
        self.tick(now);
        let from = self.state();
        if let Automatic::HalfOpen { .. } = self.automatic {
            // The calls that hold its places no longer count; it probes anew when the override ends.
            self.automatic = Automatic::Open { until: now };
        }
        let until = expires_in.map(|wait| later(now, wait));
        self.manual = Some(Manual { state, reason: reason.clone(), until });
        self.changed(from, TransitionCause::Manual(reason), now);
    }

    /// Ends an override: the state that it covered is back, and an open wait has gone on meanwhile.
    pub fn lift(&mut self, now: Instant) {
        self.tick(now);
        if self.manual.is_some() {
            self.uncover(TransitionCause::Lifted, now);
        }
    }

    /// Closes it and forgets what led here, an override included. Calls that are out no longer count.
    pub fn reset(&mut self, now: Instant) {
        let from = self.state();
        self.manual = None;
        self.automatic = Automatic::Closed;
        self.forget_attempts();
        self.opened = None;
        self.changed(from, TransitionCause::Reset, now);
    }

    /// Follows a new configuration without a transition. A wait that is running gets shorter with it, not longer.
    pub fn reconfigure(&mut self, config: BreakerConfig, now: Instant) {
        self.tick(now);
        for rule in &mut self.rules {
            rule.reconfigure(&config);
        }
        if let Automatic::Open { until } = &mut self.automatic {
            *until = (*until).min(later(now, config.reset_timeout));
        }
        self.config = config;
        self.tick(now);
    }

    /// The failures, transitions and times that it remembers.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// The result of a call in the closed state.
    fn observe(&mut self, evidence: Evidence<'_>, now: Instant) {
        let alive = match evidence {
            Evidence::Alive => true,
            Evidence::Dead { .. } => false,
            Evidence::Nothing => return,
        };
        let mut cause = None;
        for rule in &mut self.rules {
            let tripped = rule.observe(alive);
            cause = cause.or(tripped);
        }
        if let Some(cause) = cause {
            self.open(cause, now);
        }
    }

    /// The result of a call in half-open.
    fn probed(&mut self, id: u64, evidence: Evidence<'_>, now: Instant) {
        let Automatic::HalfOpen { successes, probes } = &mut self.automatic else { return };
        probes.retain(|probe| probe.id != id);
        match evidence {
            Evidence::Nothing => {}
            Evidence::Dead { .. } => self.open(TransitionCause::ProbeFailed, now),
            Evidence::Alive => {
                *successes += 1;
                let successes = *successes;
                if successes >= self.config.success_threshold {
                    self.forget_attempts();
                    self.enter(Automatic::Closed, TransitionCause::ProbesSucceeded(successes), now);
                }
            }
        }
    }

    fn open(&mut self, cause: TransitionCause, now: Instant) {
        self.attempts = self.attempts.saturating_add(1);
        self.opened = Some((cause.clone(), self.generation));
        let until = later(now, self.config.reset_timeout);
        self.enter(Automatic::Open { until }, cause, now);
    }

    fn enter(&mut self, automatic: Automatic, cause: TransitionCause, now: Instant) {
        let from = self.state();
        self.automatic = automatic;
        self.changed(from, cause, now);
    }

    fn uncover(&mut self, cause: TransitionCause, now: Instant) {
        let from = self.state();
        self.manual = None;
        self.changed(from, cause, now);
        self.tick(now);
    }

    /// Every transition ends here: a new generation, in which nothing that came before counts.
    fn changed(&mut self, from: BreakerState, cause: TransitionCause, now: Instant) {
        self.generation += 1;
        self.rules.iter_mut().for_each(Rule::clear);
        let transition = Transition { from, to: self.state(), cause, generation: self.generation, age: Duration::ZERO };
        self.history.changed(transition.clone(), now);
        self.effects.transitions.push(transition);
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
        }
    }
}

fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(LONGEST)
}
