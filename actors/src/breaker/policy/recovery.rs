//! Load comes back in steps: a share of the calls, and so many at once.
//!
//! | call | let through in step `n` of a recovery |
//! |---|---|
//! | of a user | the share of the step, while a place is free |
//! | a probe | while a place is free |
//! | of a drain, or a compensation | while half of the places are free: it goes behind the users |
//!
//! A step is good when time is up and fewer of its calls failed than `failure_rate` says (half of them, where it says
//! nothing); a step in which nobody called is good. It is bad at once when a rule fires.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

use super::{Automatic, BreakerPolicy, Evidence, Probe};
use crate::breaker::config::BreakerConfig;
use crate::breaker::report::RecoveryReading;
use crate::breaker::rule::Bad;
use crate::breaker::{Purpose, TransitionCause};

/// The share of failures that makes a step bad where `failure_rate` is not set.
const BAD_SHARE: f64 = 0.5;
/// By this share a step is longer or shorter.
const JITTER: f64 = 0.1;
/// When a call that is throttled may ask again, as a share of the step: enough for a place to become free.
const ASK_AGAIN: u32 = 10;

/// How far the load is back.
#[derive(Debug)]
pub(super) struct Recovery {
    step: u32,
    until: Instant,
    length: Duration,
    /// What has been saved up for the next call of a user: at 1 it is let through.
    credit: f64,
    succeeded: u32,
    failed: u32,
    probes: Vec<Probe>,
}

impl Recovery {
    pub(super) fn new(config: &BreakerConfig, rng: &mut fastrand::Rng, now: Instant) -> Self {
        let mut recovery = Self {
            step: 0,
            until: now,
            length: Duration::ZERO,
            credit: 0.0,
            succeeded: 0,
            failed: 0,
            probes: Vec::new(),
        };
        recovery.begin(config, rng, now);
        recovery
    }

    fn begin(&mut self, config: &BreakerConfig, rng: &mut fastrand::Rng, now: Instant) {
        self.length = config.recovery_step.mul_f64(1.0 + JITTER * (2.0 * rng.f64() - 1.0));
        self.until = super::later(now, self.length);
        (self.succeeded, self.failed) = (0, 0);
        // Not all breakers let the same one of two calls through.
        self.credit = rng.f64();
    }

    /// Gives the places, if a call of this purpose may have one.
    pub(super) fn admit(&mut self, config: &BreakerConfig, purpose: Purpose) -> Option<&mut Vec<Probe>> {
        let share = config.recovery_share(self.step);
        let places = (f64::from(config.recovery_calls) * share).floor().max(1.0);
        let taken = f64::from(u32::try_from(self.probes.len()).unwrap_or(u32::MAX));
        let free = match purpose {
            Purpose::Live | Purpose::Probe => taken < places,
            Purpose::Drain | Purpose::Compensation => taken < (places / 2.0).ceil(),
        };
        if purpose == Purpose::Live {
            self.credit += share;
            if !free || self.credit < 1.0 {
                // What could not be used is not saved up.
                self.credit = self.credit.min(1.0);
                return None;
            }
            self.credit -= 1.0;
        }
        free.then_some(&mut self.probes)
    }

    /// When time alone changes something.
    pub(super) fn wake_at(&self) -> Instant {
        self.probes.iter().map(|probe| probe.deadline).fold(self.until, Instant::min)
    }

    /// When a call that was throttled may ask again.
    pub(super) fn ask_again_at(&self, now: Instant) -> Instant {
        self.until.min(super::later(now, self.length / ASK_AGAIN))
    }

    pub(super) fn probes(&self) -> &[Probe] {
        &self.probes
    }

    pub(super) fn reading(&self, config: &BreakerConfig, now: Instant) -> RecoveryReading {
        RecoveryReading {
            step: self.step,
            steps: config.recovery_steps,
            share: config.recovery_share(self.step),
            remaining: self.until.saturating_duration_since(now),
            succeeded: self.succeeded,
            failed: self.failed,
        }
    }

    fn is_bad(&self, config: &BreakerConfig) -> bool {
        let calls = self.succeeded.saturating_add(self.failed);
        self.failed > 0 && f64::from(self.failed) >= f64::from(calls) * config.failure_rate.unwrap_or(BAD_SHARE)
    }
}

impl BreakerPolicy {
    /// A call of the recovery ended.
    pub(super) fn recovery_call_ended(&mut self, place: NonZeroU64, evidence: Evidence<'_>, now: Instant) {
        let Automatic::Recovering(recovery) = &mut self.automatic else { return };
        recovery.probes.retain(|probe| probe.place != place);
        let bad = match evidence {
            Evidence::Nothing => return,
            Evidence::Alive => {
                recovery.succeeded = recovery.succeeded.saturating_add(1);
                return;
            }
            Evidence::Slow => {
                recovery.succeeded = recovery.succeeded.saturating_add(1);
                Bad::Slow
            }
            Evidence::Dead { .. } => {
                recovery.failed = recovery.failed.saturating_add(1);
                Bad::Failed
            }
        };
        let mut moment = self.moment(now);
        moment.successes += u64::from(bad == Bad::Slow);
        if self.rules.observe(bad, moment).is_some() {
            self.recovery_failed(now);
        }
    }

    /// Takes places from calls that hold them too long, and ends the step when its time is up.
    pub(super) fn go_on_recovering(&mut self, now: Instant) {
        let Automatic::Recovering(recovery) = &mut self.automatic else { return };
        for probe in recovery.probes.extract_if(.., |probe| now >= probe.deadline) {
            self.late.insert(probe.place);
            self.effects.expired += 1;
        }
        if now < recovery.until {
            return;
        }
        if recovery.is_bad(&self.config) {
            return self.recovery_failed(now);
        }
        recovery.step += 1;
        if recovery.step < self.config.recovery_steps {
            recovery.begin(&self.config, &mut self.rng, now);
        } else {
            self.close(TransitionCause::Recovered, now);
        }
    }

    fn recovery_failed(&mut self, now: Instant) {
        let Automatic::Recovering(recovery) = &self.automatic else { return };
        self.open(TransitionCause::RecoveryFailed { step: recovery.step + 1 }, now);
    }
}
