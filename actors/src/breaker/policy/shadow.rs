//! Rules that are tried out: they see what the others see, and open nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::later;
use crate::breaker::TransitionCause;
use crate::breaker::config::BreakerConfig;
use crate::breaker::report::ShadowReading;
use crate::breaker::rule::{Bad, Moment, Rules};

/// Other rules, and what would have come of them.
#[derive(Debug)]
pub(super) struct Shadow {
    rules: Rules,
    wait: Duration,
    /// Until then the breaker would have been open.
    open_until: Option<Instant>,
    opened: u64,
    last: Option<(TransitionCause, Instant)>,
}

impl Shadow {
    /// The shadow that this configuration asks for.
    pub(super) fn of(config: &BreakerConfig, moment: Moment) -> Option<Self> {
        let rules = Rules::new(config.shadow.as_ref()?, moment);
        Some(Self { rules, wait: config.reset_timeout, open_until: None, opened: 0, last: None })
    }

    pub(super) fn observe(&mut self, bad: Bad, moment: Moment) -> Option<TransitionCause> {
        if self.would_be_open(moment) {
            return None;
        }
        let cause = self.rules.observe(bad, moment)?;
        Some(self.fired(cause, moment))
    }

    pub(super) fn overdue(&mut self, calls: u64, moment: Moment) -> Option<TransitionCause> {
        if self.would_be_open(moment) {
            return None;
        }
        let cause = self.rules.overdue(calls)?;
        Some(self.fired(cause, moment))
    }

    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    pub(super) fn probed(&mut self, health: f64) {
        self.rules.probed(health);
    }

    pub(super) fn clear(&mut self, moment: Moment) {
        self.rules.clear(moment);
    }

    pub(super) fn reading(&mut self, moment: Moment) -> ShadowReading {
        ShadowReading {
            opened: self.opened,
            cause: self.last.as_ref().map(|(cause, _)| cause.clone()),
            age: self.last.as_ref().map(|(_, at)| moment.now.saturating_duration_since(*at)),
            rules: self.rules.readings(moment),
        }
    }

    fn fired(&mut self, cause: TransitionCause, moment: Moment) -> TransitionCause {
        self.opened += 1;
        self.last = Some((cause.clone(), moment.now));
        self.open_until = Some(later(moment.now, self.wait));
        self.rules.clear(moment);
        cause
    }

    /// While it would have been open, nothing would have been called: what comes now is no evidence.
    fn would_be_open(&mut self, moment: Moment) -> bool {
        if self.open_until.is_some_and(|until| moment.now >= until) {
            self.open_until = None;
            self.rules.clear(moment);
        }
        self.open_until.is_some()
    }
}
