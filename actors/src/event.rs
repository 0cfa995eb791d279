//! State changes, numbered without gaps.
//!
//! Metrics, logs and users hear of every change through one bus. The bus folds all events into a
//! [`Snapshot`], so a subscriber starts with the present, and the `from` of a change is by construction the `to`
//! of the one before it. Memory is bounded: a subscriber that does not keep up is told how many it missed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::backend::BackendName;
use crate::breaker::{BreakerState, TransitionCause, WouldOpen};
use crate::fallback::{Access, DegradationLevel, Mode, ModeCause};
use crate::journal::{JournalHealth, LossReport};
use crate::operation::{OperationId, Version};

/// How many events a subscriber may be behind before it misses some.
pub const CAPACITY: usize = 1_024;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than that of the event before it, from 1.
    pub sequence: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum EventKind {
    /// A breaker changed its state.
    BreakerChanged {
        /// Whose.
        backend: BackendName,
        /// From this state.
        from: BreakerState,
        /// To this one.
        to: BreakerState,
        /// Because.
        cause: TransitionCause,
        /// Its generation from here on; results of calls that were admitted in an older one no longer count.
        generation: u64,
    },
    /// A rule fired that opens nothing: a shadow's, or one of a breaker in metrics-only.
    BreakerWouldOpen {
        /// Whose breaker.
        backend: BackendName,
        /// Why it would have been opened.
        cause: TransitionCause,
        /// Why it was not.
        why: WouldOpen,
    },
    /// What can be done with a backend changed.
    AccessChanged {
        /// Which backend.
        backend: BackendName,
        /// Before.
        from: Access,
        /// Now.
        to: Access,
    },
    /// The fallback mode changed.
    ModeChanged {
        /// Before.
        from: Mode,
        /// Now.
        to: Mode,
        /// Because.
        cause: ModeCause,
    },
    /// The degradation level changed.
    LevelChanged {
        /// Before.
        from: DegradationLevel,
        /// Now.
        to: DegradationLevel,
    },
    /// The journal changed its state.
    JournalChanged {
        /// Before.
        from: JournalHealth,
        /// Now.
        to: JournalHealth,
    },
    /// The journal was found damaged at its opening, and was told to go on with what is left.
    JournalDamaged {
        /// What is lost, exactly.
        report: LossReport,
    },
    /// Something is wrong with a backend, or will be soon.
    AlertRaised {
        /// Which backend.
        backend: BackendName,
        /// What.
        alert: Alert,
    },
    /// That is over.
    AlertCleared {
        /// Which backend.
        backend: BackendName,
        /// What.
        alert: Alert,
    },
    /// A backend started to be given what it owes.
    DrainStarted {
        /// Which backend.
        backend: BackendName,
        /// How many writes it owes.
        owed: usize,
    },
    /// A batch was drained.
    DrainProgressed {
        /// Which backend.
        backend: BackendName,
        /// Writes that are drained since the start.
        drained: usize,
        /// Writes that it still owes.
        owed: usize,
    },
    /// A drain ended.
    DrainStopped {
        /// Which backend.
        backend: BackendName,
        /// Writes that it was given.
        drained: usize,
        /// Writes that it still owes: none, unless the drain was interrupted.
        owed: usize,
    },
    /// Stores are to be given again what was finished since some time.
    ReplayStarted {
        /// Which.
        backends: Vec<BackendName>,
        /// How many finished writes were found.
        entries: usize,
    },
    /// All of that is owed now, durably, and is being drained.
    ReplayOwed {
        /// To whom.
        backends: Vec<BackendName>,
        /// How many keys they owe again.
        keys: usize,
    },
    /// A write is being undone.
    SagaCompensating {
        /// Which.
        operation: OperationId,
        /// Its version.
        version: Version,
        /// The backend that could not take it.
        cause: BackendName,
    },
    /// A write is undone everywhere.
    SagaRolledBack {
        /// Which.
        operation: OperationId,
        /// Its version.
        version: Version,
    },
    /// A backend will never take a write; it waits for a person.
    DeadLetterAdded {
        /// Which.
        operation: OperationId,
        /// Its version.
        version: Version,
        /// The backend.
        backend: BackendName,
        /// What the backend said.
        reason: String,
    },
    /// A dead letter was sent again or discarded.
    DeadLetterRemoved {
        /// Which.
        operation: OperationId,
        /// Its version.
        version: Version,
        /// The backend.
        backend: BackendName,
        /// Whether it is tried again; else it was discarded.
        retried: bool,
    },
    /// An actor died and was started again.
    ActorRestarted {
        /// Its name in the tree.
        actor: String,
        /// Why it died.
        reason: String,
        /// How often it was restarted so far.
        restarts: u64,
    },
    /// An actor died too often; the runtime stops.
    Escalated {
        /// Its name in the tree.
        actor: String,
        /// Why it died the last time.
        reason: String,
    },
    /// The runtime has recovered what it had accepted, and serves.
    Started {
        /// Accepted writes that were found unfinished.
        recovered: usize,
    },
    /// The runtime takes no more requests.
    Stopping,
}

/// What a prober warns of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Alert {
    /// Probes failed several times in a row (3 by default).
    ProbesFailing,
    /// Probes succeed, but take much longer than they used to.
    SlowingDown,
}

/// The state that all events up to one have led to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The number of the last event in it.
    pub sequence: u64,
    /// The breakers.
    pub breakers: BTreeMap<BackendName, BreakerState>,
    /// What can be done with each backend.
    pub access: BTreeMap<BackendName, Access>,
    /// The mode.
    pub mode: Mode,
    /// The level.
    pub level: DegradationLevel,
    /// The journal.
    pub journal: JournalHealth,
    /// Alerts that are raised.
    pub alerts: Vec<(BackendName, Alert)>,
}

impl Snapshot {
    /// Folds one event in. Gives `false`, and changes nothing, when the event does not follow this snapshot.
    pub fn apply(&mut self, event: &Event) -> bool {
        if event.sequence != self.sequence + 1 {
            return false;
        }
        self.sequence = event.sequence;
        match &event.kind {
            EventKind::BreakerChanged { backend, to, .. } => {
                self.breakers.insert(backend.clone(), *to);
            }
            EventKind::AccessChanged { backend, to, .. } => {
                self.access.insert(backend.clone(), *to);
            }
            EventKind::ModeChanged { to, .. } => self.mode = *to,
            EventKind::LevelChanged { to, .. } => self.level = *to,
            EventKind::JournalChanged { to, .. } => self.journal = *to,
            EventKind::AlertRaised { backend, alert } => {
                let raised = (backend.clone(), *alert);
                if !self.alerts.contains(&raised) {
                    self.alerts.push(raised);
                }
            }
            EventKind::AlertCleared { backend, alert } => {
                self.alerts.retain(|(b, a)| (b, a) != (backend, alert));
            }
            _ => {}
        }
        true
    }
}

/// Where events are published and subscribed to.
pub struct EventBus {
    state: Mutex<BusState>,
}

struct BusState {
    snapshot: Snapshot,
    /// `None` when the bus is closed.
    sender: Option<broadcast::Sender<Arc<Event>>>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new()
    }
}

impl EventBus {
    /// A bus without events.
    #[must_use]
    pub fn new() -> Self {
        let sender = Some(broadcast::Sender::new(CAPACITY));
        Self { state: Mutex::new(BusState { snapshot: Snapshot::default(), sender }) }
    }

    /// Publishes what has no state before and after.
    pub fn publish(&self, kind: EventKind) {
        let mut state = self.lock();
        state.send(kind);
    }

    /// Publishes that a breaker changed, unless it did not.
    pub fn breaker(&self, backend: &BackendName, to: BreakerState, cause: TransitionCause, generation: u64) {
        let mut state = self.lock();
        let from = state.snapshot.breakers.get(backend).copied().unwrap_or_default();
        if from != to {
            state.send(EventKind::BreakerChanged { backend: backend.clone(), from, to, cause, generation });
        }
    }

    /// Publishes that the access to a backend changed, unless it did not.
    pub fn access(&self, backend: &BackendName, to: Access) {
        let mut state = self.lock();
        let from = state.snapshot.access.get(backend).copied().unwrap_or_default();
        if from != to {
            state.send(EventKind::AccessChanged { backend: backend.clone(), from, to });
        }
    }

    /// Publishes that the mode changed, unless it did not.
    pub fn mode(&self, to: Mode, cause: ModeCause) {
        let mut state = self.lock();
        let from = state.snapshot.mode;
        if from != to {
            state.send(EventKind::ModeChanged { from, to, cause });
        }
    }

    /// Publishes that the level changed, unless it did not.
    pub fn level(&self, to: DegradationLevel) {
        let mut state = self.lock();
        let from = state.snapshot.level;
        if from != to {
            state.send(EventKind::LevelChanged { from, to });
        }
    }

    /// Publishes that the journal changed, unless it did not.
    pub fn journal(&self, to: JournalHealth) {
        let mut state = self.lock();
        let from = state.snapshot.journal;
        if from != to {
            state.send(EventKind::JournalChanged { from, to });
        }
    }

    /// The state now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.lock().snapshot.clone()
    }

    /// All events from now on, and the state that they start from.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        let state = self.lock();
        // Of a closed bus: a receiver whose sender is gone.
        let receiver = state.sender.as_ref().map_or_else(|| broadcast::Sender::new(1).subscribe(), |s| s.subscribe());
        Subscription { start: state.snapshot.clone(), receiver }
    }

    /// Ends all subscriptions, after the events that are published already. The runtime is gone, though others may
    /// still hold a part of it.
    pub fn close(&self) {
        self.lock().sender = None;
    }

    fn lock(&self) -> MutexGuard<'_, BusState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusState {
    fn send(&mut self, kind: EventKind) {
        let event = Event { sequence: self.snapshot.sequence + 1, kind };
        self.snapshot.apply(&event);
        // Sent under the lock, so that the order of the numbers is the order of the channel. No receiver is fine.
        if let Some(sender) = &self.sender {
            let _ = sender.send(Arc::new(event));
        }
    }
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The next event.
    Event(Arc<Event>),
    /// The subscriber was too slow and missed this many. Later events follow; take a new snapshot to know the
    /// state.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// A subscription to all events. Dropping it ends it.
pub struct Subscription {
    start: Snapshot,
    receiver: broadcast::Receiver<Arc<Event>>,
}

impl Subscription {
    /// The state at the beginning of the subscription; the first event has the number after its.
    #[must_use]
    pub fn start(&self) -> &Snapshot {
        &self.start
    }

    /// The next event, or how many were missed; `None` when the runtime is gone.
    pub async fn next(&mut self) -> Option<Update> {
        match self.receiver.recv().await {
            Ok(event) => Some(Update::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Update::Lagged { missed }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<Update> {
        match self.receiver.try_recv() {
            Ok(event) => Some(Update::Event(event)),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(Update::Lagged { missed }),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_state() -> impl Strategy<Value = BreakerState> {
        prop_oneof![Just(BreakerState::Closed), Just(BreakerState::Open), Just(BreakerState::HalfOpen)]
    }

    /// What somebody publishes.
    #[derive(Clone, Debug)]
    enum Tell {
        Breaker(bool, BreakerState),
        Access(bool, Access),
        Mode(Mode),
        Level(DegradationLevel),
        Journal(bool),
        Alert(bool),
        Drained,
    }

    fn any_tell() -> impl Strategy<Value = Tell> {
        let access = prop_oneof![Just(Access::ReadWrite), Just(Access::ReadOnly), Just(Access::None)];
        prop_oneof![
            (any::<bool>(), any_state()).prop_map(|(graph, state)| Tell::Breaker(graph, state)),
            (any::<bool>(), access).prop_map(|(graph, access)| Tell::Access(graph, access)),
            prop::sample::select(Mode::ALL.to_vec()).prop_map(Tell::Mode),
            prop::sample::select(DegradationLevel::ALL.to_vec()).prop_map(Tell::Level),
            any::<bool>().prop_map(Tell::Journal),
            any::<bool>().prop_map(Tell::Alert),
            Just(Tell::Drained),
        ]
    }

    fn tell(bus: &EventBus, what: &Tell) {
        let name = |graph: bool| BackendName::from(if graph { "graph" } else { "vector" });
        match what {
            Tell::Breaker(graph, to) => bus.breaker(&name(*graph), *to, TransitionCause::WaitElapsed, 1),
            Tell::Access(graph, to) => bus.access(&name(*graph), *to),
            Tell::Mode(to) => bus.mode(*to, ModeCause::JournalUnavailable),
            Tell::Level(to) => bus.level(*to),
            Tell::Journal(well) => {
                bus.journal(if *well { JournalHealth::Healthy } else { JournalHealth::Failed });
            }
            Tell::Alert(raised) => {
                let (backend, alert) = (name(true), Alert::SlowingDown);
                bus.publish(match raised {
                    true => EventKind::AlertRaised { backend, alert },
                    false => EventKind::AlertCleared { backend, alert },
                });
            }
            Tell::Drained => bus.publish(EventKind::DrainStopped { backend: name(true), drained: 1, owed: 0 }),
        }
    }

    /// Whether a change begins at what the snapshot has, and is one.
    fn follows(snapshot: &Snapshot, event: &Event) -> bool {
        match &event.kind {
            EventKind::BreakerChanged { backend, from, to, .. } => {
                *from == snapshot.breakers.get(backend).copied().unwrap_or_default() && from != to
            }
            EventKind::AccessChanged { backend, from, to } => {
                *from == snapshot.access.get(backend).copied().unwrap_or_default() && from != to
            }
            EventKind::ModeChanged { from, to, .. } => *from == snapshot.mode && from != to,
            EventKind::LevelChanged { from, to } => *from == snapshot.level && from != to,
            EventKind::JournalChanged { from, to } => *from == snapshot.journal && from != to,
            _ => true,
        }
    }

    proptest! {
        #[test]
        fn events_are_numbered_without_gaps_and_each_change_begins_where_the_last_one_ended(
            before in prop::collection::vec(any_tell(), 0..40),
            after in prop::collection::vec(any_tell(), 0..80),
        ) {
            let bus = EventBus::new();
            before.iter().for_each(|what| tell(&bus, what));
            let mut subscription = bus.subscribe();
            let mut snapshot = subscription.start().clone();
            prop_assert_eq!(&snapshot, &bus.snapshot());
            after.iter().for_each(|what| tell(&bus, what));
            while let Some(update) = subscription.try_next() {
                let Update::Event(event) = update else { panic!("nobody is behind") };
                prop_assert!(follows(&snapshot, &event), "{:?} after {:?}", event, snapshot);
                let mut later = Snapshot { sequence: snapshot.sequence + 1, ..snapshot.clone() };
                prop_assert!(!later.apply(&event), "out of order");
                prop_assert!(snapshot.apply(&event));
            }
            prop_assert_eq!(snapshot, bus.snapshot());
        }
    }

    #[tokio::test]
    async fn a_subscriber_that_is_behind_is_told_how_many_it_missed() {
        let bus = EventBus::new();
        let mut slow = bus.subscribe();
        for _ in 0..CAPACITY + 10 {
            tell(&bus, &Tell::Drained);
        }
        assert_eq!(slow.next().await, Some(Update::Lagged { missed: 10 }));
        let mut next = 11;
        while let Some(Update::Event(event)) = slow.try_next() {
            assert_eq!(event.sequence, next);
            next += 1;
        }
        assert_eq!(next, CAPACITY as u64 + 11);
        drop(bus);
        assert_eq!(slow.next().await, None);
    }

    #[test]
    fn events_of_many_threads_have_one_order() {
        let bus = EventBus::new();
        let mut subscription = bus.subscribe();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| tell(&bus, &Tell::Drained)));
            }
        });
        for expected in 1..=800 {
            let Some(Update::Event(event)) = subscription.try_next() else { panic!("{expected} is missing") };
            assert_eq!(event.sequence, expected);
        }
    }

    #[test]
    fn an_alert_that_is_raised_twice_is_raised_once() {
        let bus = EventBus::new();
        tell(&bus, &Tell::Alert(true));
        tell(&bus, &Tell::Alert(true));
        assert_eq!(bus.snapshot().alerts.len(), 1);
        tell(&bus, &Tell::Alert(false));
        assert_eq!(bus.snapshot().alerts, []);
    }

    #[tokio::test]
    async fn a_closed_bus_ends_its_subscriptions_after_what_was_published() {
        let bus = EventBus::new();
        let mut before = bus.subscribe();
        bus.publish(EventKind::Stopping);
        bus.close();
        bus.publish(EventKind::Stopping);
        assert!(matches!(before.next().await, Some(Update::Event(event)) if event.sequence == 1));
        assert_eq!(before.next().await, None);
        let mut after = bus.subscribe();
        assert_eq!((after.start().sequence, after.next().await), (2, None));
    }
}
