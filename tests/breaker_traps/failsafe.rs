//! failsafe.

use std::time::Duration;

use ::failsafe::backoff::{self, Constant};
use ::failsafe::failure_policy::{self, ConsecutiveFailures, SuccessRateOverTimeWindow};
use ::failsafe::futures::CircuitBreaker;
use ::failsafe::{Config, Error, FailurePolicy, Instrument, StateMachine};
use futures::FutureExt;

use crate::breaker::{Answer, Backend, Breaker, Call, Counts, Listener, Rule, Settings, Trouble, Why};

/// One success in half-open closes it, one failure opens it again.
pub(crate) struct Failsafe(StateMachine<Policy, Heard>);

enum Policy {
    InARow(ConsecutiveFailures<Constant>),
    Window(SuccessRateOverTimeWindow<Constant>),
}

impl FailurePolicy for Policy {
    fn record_success(&mut self) {
        match self {
            Self::InARow(policy) => policy.record_success(),
            Self::Window(policy) => policy.record_success(),
        }
    }

    fn mark_dead_on_failure(&mut self) -> Option<Duration> {
        match self {
            Self::InARow(policy) => policy.mark_dead_on_failure(),
            Self::Window(policy) => policy.mark_dead_on_failure(),
        }
    }

    fn revived(&mut self) {
        match self {
            Self::InARow(policy) => policy.revived(),
            Self::Window(policy) => policy.revived(),
        }
    }
}

struct Heard(Option<Listener>);

impl Heard {
    fn tell(&self) {
        if let Some(listener) = &self.0 {
            listener();
        }
    }
}

impl Instrument for Heard {
    fn on_call_rejected(&self) {}

    fn on_open(&self) {
        self.tell();
    }

    fn on_half_open(&self) {
        self.tell();
    }

    fn on_closed(&self) {
        self.tell();
    }
}

fn open(Settings { wait, rule }: Settings, heard: Heard) -> Failsafe {
    let wait = backoff::constant(wait);
    let policy = match rule {
        // It has no ramp.
        Rule::Touchy | Rule::Ramp => Policy::InARow(failure_policy::consecutive_failures(1, wait)),
        // It knows no slow calls.
        Rule::Patient | Rule::Slow(_) => Policy::InARow(failure_policy::consecutive_failures(3, wait)),
        // It counts in time or in a row.
        Rule::LastFour => Policy::InARow(failure_policy::consecutive_failures(4, wait)),
        Rule::Window(window) => Policy::Window(failure_policy::success_rate_over_time_window(0.5, 3, window, wait)),
    };
    Failsafe(Config::new().failure_policy(policy).instrument(heard).build())
}

impl Breaker for Failsafe {
    const CRATE: &'static str = "failsafe";
    /// It counts whole seconds.
    const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

    async fn new(settings: Settings) -> Result<Self, Why> {
        Ok(open(settings, Heard(None)))
    }

    fn call(&self, backend: Backend) -> Call {
        let counts = |trouble: &Trouble| *trouble == Trouble::Failure;
        self.0
            .call_with(counts, backend)
            .map(|result| match result {
                Ok(()) => Answer::Made(Ok(())),
                Err(Error::Inner(trouble)) => Answer::Made(Err(trouble)),
                Err(Error::Rejected) => Answer::Refused { retry_after: None },
            })
            .boxed()
    }

    async fn heard(settings: Settings, listener: Listener) -> Result<Self, Why> {
        // It tells of being closed while it is made, when there is nothing to ask yet.
        Ok(open(settings, Heard(Some(listener))))
    }

    async fn measured(_: Settings) -> Result<(Self, &'static str), Why> {
        Err("it has no metrics")
    }

    async fn counts(&self) -> Result<Counts, Why> {
        Err("it shows no counters")
    }
}
