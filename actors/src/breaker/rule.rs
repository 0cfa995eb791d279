//! What opens a breaker: rules side by side, of which the first that fires is the cause.
//!
//! Rules are asked when a call fails, is slow, or is out for too long, never when one succeeds: a success opens
//! nothing, and what it changes is in the number of successes, which the gate counts without a lock. So all rules
//! together cost a call in good times nothing.

use tokio::time::Instant;

use super::TransitionCause;
use super::config::BreakerConfig;
use super::report::RuleReading;
use super::window::{CallWindow, RollingWindow, Sums};

/// How much of the health the latest call is: a memory of about 20 calls.
const HEALTH_WEIGHT: f64 = 0.05;
/// A call that is slow counts as this much of a failure for the health.
const SLOW_SHARE: f64 = 0.5;

/// A call that did not go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// It failed.
    Failed,
    /// It succeeded, slowly.
    Slow,
}

/// What the rules are told with everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Calls that succeeded so far, in all generations, slow ones included.
    pub(super) successes: u64,
    pub(super) now: Instant,
}

/// All rules of one configuration.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    settings: Settings,
    streak: Streak,
    health: Health,
    calls: CallWindow,
    /// Failures since the rules were cleared.
    failed: u64,
    /// Successes when they were.
    base: u64,
    rolling: RollingWindow,
    /// Calls that are known to be out for too long.
    overdue: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Settings {
    failure_threshold: u32,
    failure_rate: Option<f64>,
    slow_call_rate: Option<f64>,
    minimum_calls: u64,
    window_calls: u32,
    rolling_window: std::time::Duration,
    overdue_calls: Option<u32>,
    adaptive_minimum: Option<u32>,
}

impl Settings {
    fn of(config: &BreakerConfig) -> Self {
        let failure_threshold = config.failure_threshold.max(1);
        let rated = config.failure_rate.is_some() || config.slow_call_rate.is_some();
        Self {
            failure_threshold,
            failure_rate: config.failure_rate,
            slow_call_rate: config.slow_call_rate,
            minimum_calls: u64::from(config.minimum_calls.max(1)),
            // Where no rate is asked for, nothing has to be remembered for one.
            window_calls: if rated { config.window_calls.max(1) } else { 1 },
            rolling_window: config.rolling_window,
            overdue_calls: config.overdue_calls,
            adaptive_minimum: config.adaptive.then(|| config.adaptive_minimum.clamp(1, failure_threshold)),
        }
    }
}

/// Failures in a row. A success in between shows in the number of successes.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    failures: u32,
    successes: u64,
}

impl Streak {
    fn failed(&mut self, successes: u64) {
        let before = self.now(successes);
        *self = Self { failures: before.saturating_add(1), successes };
    }

    fn now(self, successes: u64) -> u32 {
        if self.successes == successes { self.failures } else { 0 }
    }
}

/// How well the backend is, 0 to 1: the mean over the last calls, and what the probes say, whichever is worse.
#[derive(Clone, Copy, Debug)]
struct Health {
    calls: f64,
    probes: f64,
    successes: u64,
}

impl Health {
    fn bad(&mut self, bad: Bad, successes: u64) {
        self.calls = self.after(successes);
        self.successes = successes;
        self.calls *= 1.0 - HEALTH_WEIGHT * if bad == Bad::Failed { 1.0 } else { SLOW_SHARE };
    }

    /// The mean when this many calls have succeeded.
    fn after(&self, successes: u64) -> f64 {
        let new = i32::try_from(successes.saturating_sub(self.successes)).unwrap_or(i32::MAX);
        1.0 - (1.0 - self.calls) * (1.0 - HEALTH_WEIGHT).powi(new)
    }

    fn now(&self, successes: u64) -> f64 {
        self.after(successes).min(self.probes)
    }
}

impl Rules {
    /// The rules of this configuration, that have seen nothing.
    pub(super) fn new(config: &BreakerConfig, moment: Moment) -> Self {
        let settings = Settings::of(config);
        Self {
            calls: CallWindow::new(settings.window_calls),
            rolling: RollingWindow::new(settings.rolling_window, moment.successes, moment.now),
            streak: Streak::default(),
            health: Health { calls: 1.0, probes: 1.0, successes: moment.successes },
            failed: 0,
            base: moment.successes,
            overdue: 0,
            settings,
        }
    }

    /// Takes in a call that did not go well; says why the breaker has to open, if it has to.
    pub(super) fn observe(&mut self, bad: Bad, moment: Moment) -> Option<TransitionCause> {
        let Moment { successes, now } = moment;
        let failed = bad == Bad::Failed;
        self.rolling.count(successes, now);
        self.rolling.bad(failed, now);
        self.health.bad(bad, successes);
        if failed {
            self.failed += 1;
            self.streak.failed(successes);
        }
        let position = self.position(successes);
        self.calls.bad(position, failed);
        self.tripped(moment)
    }

    /// Time has passed: successes until now belong to the past.
    pub(super) fn count(&mut self, moment: Moment) {
        self.rolling.count(moment.successes, moment.now);
    }

    /// This many calls are known to be out for longer than a call may take.
    pub(super) fn overdue(&mut self, calls: u64) -> Option<TransitionCause> {
        self.overdue = calls;
        let threshold = u64::from(self.settings.overdue_calls?);
        (calls >= threshold).then_some(TransitionCause::CallsOverdue(calls))
    }

    /// What the prober says, 0 (failing) to 1 (well).
    pub(super) fn probed(&mut self, health: f64) {
        self.health.probes = health.clamp(0.0, 1.0);
    }

    /// Forgets what led here: in a new generation it is no evidence any more. The health is what it is.
    pub(super) fn clear(&mut self, moment: Moment) {
        self.streak = Streak { failures: 0, successes: moment.successes };
        self.calls.clear();
        self.rolling = RollingWindow::new(self.settings.rolling_window, moment.successes, moment.now);
        (self.failed, self.base, self.overdue) = (0, moment.successes, 0);
    }

    /// Failures in a row.
    pub(super) fn failures(&self, successes: u64) -> u32 {
        self.streak.now(successes)
    }

    /// What the last stretch of time shows.
    pub(super) fn rolling(&mut self, moment: Moment) -> Sums {
        self.count(moment);
        self.rolling.sums()
    }

    /// Follows another configuration without forgetting what was seen: of a window of calls, as much as fits.
    pub(super) fn reconfigure(&mut self, config: &BreakerConfig, moment: Moment) {
        let settings = Settings::of(config);
        self.count(moment);
        if settings.rolling_window != self.settings.rolling_window {
            self.rolling.resize(settings.rolling_window, moment.now);
        }
        if settings.window_calls != self.settings.window_calls {
            let position = self.position(moment.successes);
            let seen = self.calls.sums(position);
            self.calls = CallWindow::new(settings.window_calls);
            self.calls.take_over(seen, position);
        }
        self.settings = settings;
    }

    /// How close each rule is to opening the breaker.
    pub(super) fn readings(&mut self, moment: Moment) -> Vec<RuleReading> {
        let Settings { failure_threshold, failure_rate, slow_call_rate, minimum_calls, .. } = self.settings;
        let reading = |rule, reading: f64, threshold: f64| RuleReading { rule, reading, threshold, calls: None };
        let rate = |rule, (part, sums): (u64, Sums), threshold: f64| RuleReading {
            rule,
            reading: share(part, sums.calls, minimum_calls).unwrap_or(0.0),
            threshold,
            calls: Some(sums.calls),
        };
        let streak = f64::from(self.streak.now(moment.successes));
        let calls = self.calls.sums(self.position(moment.successes));
        let rolling = self.rolling(moment);
        let mut readings = vec![reading("consecutive_failures", streak, f64::from(failure_threshold))];
        if let Some(threshold) = failure_rate {
            readings.push(rate("failure_rate", (calls.failed, calls), threshold));
            readings.push(rate("rolling_failure_rate", (rolling.failed, rolling), threshold));
        }
        if let Some(threshold) = slow_call_rate {
            readings.push(rate("slow_call_rate", (calls.slow, calls), threshold));
        }
        if let Some(threshold) = self.settings.overdue_calls {
            readings.push(reading("overdue_calls", to_f64(self.overdue), f64::from(threshold)));
        }
        if let Some(threshold) = self.adapted(moment.successes) {
            readings.push(reading("adaptive_failures", streak, f64::from(threshold)));
        }
        readings
    }

    fn tripped(&mut self, moment: Moment) -> Option<TransitionCause> {
        let Settings { failure_threshold, failure_rate, slow_call_rate, minimum_calls, .. } = self.settings;
        let streak = self.streak.now(moment.successes);
        if streak >= failure_threshold {
            return Some(TransitionCause::ConsecutiveFailures(streak));
        }
        let threshold = self.adapted(moment.successes);
        if threshold.is_some_and(|threshold| streak >= threshold) {
            return Some(TransitionCause::AdaptiveFailures(streak));
        }
        let calls = self.calls.sums(self.position(moment.successes));
        let over = |part, sums: Sums, threshold: Option<f64>| {
            let share = share(part, sums.calls, minimum_calls)?;
            (share >= threshold?).then_some((percent(share), sums.calls))
        };
        if let Some((percent, calls)) = over(calls.failed, calls, failure_rate) {
            return Some(TransitionCause::FailureRate { percent, calls });
        }
        if let Some((percent, calls)) = over(calls.slow, calls, slow_call_rate) {
            return Some(TransitionCause::SlowCallRate { percent, calls });
        }
        let rolling = self.rolling.sums();
        let (percent, calls) = over(rolling.failed, rolling, failure_rate)?;
        Some(TransitionCause::RollingFailureRate { percent, calls })
    }

    /// At how many failures in a row the adaptive rule opens it now.
    fn adapted(&self, successes: u64) -> Option<u32> {
        let minimum = self.settings.adaptive_minimum?;
        let span = f64::from(self.settings.failure_threshold - minimum);
        let room = (span * self.health.now(successes)).round();
        (0..=self.settings.failure_threshold - minimum).find(|more| f64::from(*more) >= room).map(|more| minimum + more)
    }

    /// Calls that counted since the rules were cleared.
    fn position(&self, successes: u64) -> u64 {
        successes.saturating_sub(self.base) + self.failed
    }
}

/// A share, once there are enough calls.
fn share(part: u64, calls: u64, minimum: u64) -> Option<f64> {
    (calls >= minimum).then(|| to_f64(part) / to_f64(calls.max(1)))
}

fn percent(share: f64) -> u8 {
    (0..=100_u8).rev().find(|percent| f64::from(*percent) <= share * 100.0 + 1e-9).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
fn to_f64(count: u64) -> f64 {
    count as f64
}
