//! Events become log lines and counters, here and nowhere else: what is counted is logged, and the reverse.
//!
//! A line has the fields of its event and a message in small letters. No event carries a payload, so no line does.

use std::collections::HashMap;

use metrics::Counter;
use seawall_actors::breaker::BreakerState;
use seawall_actors::event::{Alert, Event, EventKind, Subscription, Update};
use seawall_actors::fallback::{DegradationLevel, Mode};
use seawall_actors::journal::JournalHealth;
use tracing::{debug, error, info, warn};

use super::registry::Registry;

/// Counts and logs what happens.
pub(super) struct Observer {
    registry: Registry,
    /// Counters by name and labels; few, since labels are names of backends, states and actors.
    counters: HashMap<(&'static str, Vec<String>), Counter>,
    lagged: Counter,
}

impl Observer {
    pub(super) fn new(registry: Registry) -> Self {
        let lagged = registry.counter("seawall_events_lagged_total", "Events that the logs and metrics have missed.");
        Self { registry, counters: HashMap::new(), lagged }
    }

    /// Follows a subscription until the runtime is gone.
    pub(super) async fn follow(mut self, mut events: Subscription) {
        while let Some(update) = events.next().await {
            self.observe(&update);
        }
    }

    pub(super) fn observe(&mut self, update: &Update) {
        match update {
            Update::Event(event) => {
                log(event);
                self.count(&event.kind);
            }
            Update::Lagged { missed } => {
                warn!(missed, "events came faster than they could be logged");
                self.lagged.increment(*missed);
            }
        }
    }

    fn count(&mut self, kind: &EventKind) {
        self.counter("seawall_events_total", "Events by kind.", &[("kind", name(kind))]).increment(1);
        match kind {
            EventKind::BreakerChanged { backend, from, to, .. } => self
                .counter(
                    "seawall_breaker_transitions_total",
                    "Changes of a breaker's state, by state before and after.",
                    &[("backend", backend.as_str()), ("from", from.as_str()), ("to", to.as_str())],
                )
                .increment(1),
            EventKind::ModeChanged { to, .. } => self
                .counter("seawall_mode_changes_total", "Changes of the mode, by the mode after.", &[("to", to.name())])
                .increment(1),
            EventKind::LevelChanged { to, .. } => self
                .counter(
                    "seawall_degradation_changes_total",
                    "Changes of the degradation level, by the level after.",
                    &[("to", to.name())],
                )
                .increment(1),
            EventKind::AlertRaised { backend, alert } => self
                .counter(
                    "seawall_alerts_total",
                    "Alerts that were raised.",
                    &[("backend", backend.as_str()), ("alert", alert_name(*alert))],
                )
                .increment(1),
            EventKind::DeadLetterAdded { backend, .. } => self
                .counter(
                    "seawall_dead_letters_added_total",
                    "Writes that became dead letters.",
                    &[("backend", backend.as_str())],
                )
                .increment(1),
            // The event has the count, so one that was missed is made up for by the next.
            EventKind::ActorRestarted { actor, restarts, .. } => self
                .counter("seawall_actor_restarts_total", "Restarts of an actor.", &[("actor", actor)])
                .absolute(*restarts),
            _ => {}
        }
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> &Counter {
        let values = labels.iter().map(|(_, value)| (*value).to_owned()).collect();
        self.counters.entry((name, values)).or_insert_with(|| {
            labels
                .iter()
                .fold(self.registry.clone(), |registry, (label, value)| registry.with(label, (*value).to_owned()))
                .counter(name, help)
        })
    }
}

fn name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::BreakerChanged { .. } => "breaker_changed",
        EventKind::BreakerWouldOpen { .. } => "breaker_would_open",
        EventKind::AccessChanged { .. } => "access_changed",
        EventKind::ModeChanged { .. } => "mode_changed",
        EventKind::LevelChanged { .. } => "level_changed",
        EventKind::JournalChanged { .. } => "journal_changed",
        EventKind::JournalDamaged { .. } => "journal_damaged",
        EventKind::AlertRaised { .. } => "alert_raised",
        EventKind::AlertCleared { .. } => "alert_cleared",
        EventKind::DrainStarted { .. } => "drain_started",
        EventKind::DrainProgressed { .. } => "drain_progressed",
        EventKind::DrainStopped { .. } => "drain_stopped",
        EventKind::ReplayStarted { .. } => "replay_started",
        EventKind::ReplayOwed { .. } => "replay_owed",
        EventKind::SagaCompensating { .. } => "saga_compensating",
        EventKind::SagaRolledBack { .. } => "saga_rolled_back",
        EventKind::DeadLetterAdded { .. } => "dead_letter_added",
        EventKind::DeadLetterRemoved { .. } => "dead_letter_removed",
        EventKind::ActorRestarted { .. } => "actor_restarted",
        EventKind::Escalated { .. } => "escalated",
        EventKind::Started { .. } => "started",
        EventKind::Stopping => "stopping",
        _ => "other",
    }
}

fn alert_name(alert: Alert) -> &'static str {
    match alert {
        Alert::ProbesFailing => "probes_failing",
        Alert::SlowingDown => "slowing_down",
    }
}

fn log(event: &Event) {
    let sequence = event.sequence;
    match &event.kind {
        EventKind::BreakerChanged { backend, from, to, cause, generation } => {
            let (from, to) = (from.as_str(), to.as_str());
            match event.kind {
                EventKind::BreakerChanged { to: BreakerState::Open | BreakerState::ForcedOpen, .. } => {
                    warn!(sequence, %backend, from, to, %cause, generation, "breaker opened");
                }
                _ => info!(sequence, %backend, from, to, %cause, generation, "breaker changed"),
            }
        }
        EventKind::BreakerWouldOpen { backend, cause, why } => {
            info!(sequence, %backend, %cause, ?why, "breaker would have opened");
        }
        EventKind::ModeChanged { from, to: Mode::Disabled, cause } => {
            info!(sequence, from = from.name(), to = Mode::Disabled.name(), ?cause, "fallback ended");
        }
        EventKind::ModeChanged { from, to, cause } => {
            warn!(sequence, from = from.name(), to = to.name(), ?cause, "fallback mode changed");
        }
        EventKind::LevelChanged { from, to: DegradationLevel::Normal } => {
            info!(sequence, from = from.name(), to = "normal", "no longer degraded");
        }
        EventKind::LevelChanged { from, to } => {
            warn!(sequence, from = from.name(), to = to.name(), "degradation level changed");
        }
        EventKind::AccessChanged { backend, from, to } => {
            debug!(sequence, %backend, ?from, ?to, "access to a backend changed");
        }
        EventKind::AlertRaised { backend, alert } => {
            warn!(sequence, %backend, alert = alert_name(*alert), "alert raised");
        }
        EventKind::AlertCleared { backend, alert } => {
            info!(sequence, %backend, alert = alert_name(*alert), "alert cleared");
        }
        kind @ (EventKind::JournalChanged { .. } | EventKind::JournalDamaged { .. }) => log_journal(sequence, kind),
        kind
        @ (EventKind::DrainStarted { .. } | EventKind::DrainProgressed { .. } | EventKind::DrainStopped { .. }) => {
            log_drain(sequence, kind);
        }
        kind => log_writes_and_tree(sequence, kind),
    }
}

fn log_journal(sequence: u64, kind: &EventKind) {
    match kind {
        EventKind::JournalChanged { from, to: JournalHealth::Healthy } => {
            info!(sequence, ?from, "the journal takes writes again");
        }
        EventKind::JournalChanged { from, to } => {
            error!(sequence, ?from, ?to, "the journal takes no writes");
        }
        EventKind::JournalDamaged { report } => {
            let (rows, quarantined, findings) = (&report.rows, &report.quarantined, &report.findings);
            error!(sequence, ?rows, ?quarantined, ?findings, "the journal was damaged; what is listed is lost");
        }
        _ => {}
    }
}

fn log_drain(sequence: u64, kind: &EventKind) {
    match kind {
        EventKind::DrainStarted { backend, owed } => info!(sequence, %backend, owed, "drain started"),
        EventKind::DrainProgressed { backend, drained, owed } => {
            debug!(sequence, %backend, drained, owed, "drain progressed");
        }
        EventKind::DrainStopped { backend, drained, owed } if *owed > 0 => {
            warn!(sequence, %backend, drained, owed, "drain interrupted");
        }
        EventKind::DrainStopped { backend, drained, .. } => info!(sequence, %backend, drained, "drain finished"),
        _ => {}
    }
}

fn log_writes_and_tree(sequence: u64, kind: &EventKind) {
    match kind {
        EventKind::ReplayStarted { backends, entries } => {
            warn!(sequence, ?backends, entries, "finished writes are given to stores again");
        }
        EventKind::ReplayOwed { backends, keys } => {
            info!(sequence, ?backends, keys, "what stores have lost is owed to them");
        }
        EventKind::SagaCompensating { operation, version, cause } => {
            warn!(sequence, %operation, version = version.0, backend = %cause, "a write is being undone");
        }
        EventKind::SagaRolledBack { operation, version } => {
            info!(sequence, %operation, version = version.0, "a write is undone");
        }
        EventKind::DeadLetterAdded { operation, version, backend, reason } => {
            error!(sequence, %operation, version = version.0, %backend, reason, "a write became a dead letter");
        }
        EventKind::DeadLetterRemoved { operation, version, backend, retried } => {
            info!(sequence, %operation, version = version.0, %backend, retried, "a dead letter is gone");
        }
        EventKind::ActorRestarted { actor, reason, restarts } => {
            warn!(sequence, actor, reason, restarts, "an actor was restarted");
        }
        EventKind::Escalated { actor, reason } => {
            error!(sequence, actor, reason, "an actor died too often; the runtime stops");
        }
        EventKind::Started { recovered } => info!(sequence, recovered, "started"),
        EventKind::Stopping => info!(sequence, "stopping"),
        kind => info!(sequence, kind = name(kind), "something happened"),
    }
}
