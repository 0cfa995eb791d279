use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ractor::{Actor, ActorRef};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::{EVERYTHING, required, stores};
use crate::backend::Health;
use crate::breaker::{BreakerState, TransitionCause};
use crate::event::{EventBus, EventKind, Snapshot, Subscription, Update};
use crate::fallback::{
    Access, DegradationLevel as Level, FallbackArguments, FallbackConfig, FallbackHandle, FallbackManager,
    FallbackMessage, Mode, ModeCause,
};
use crate::journal::{Appended, Journal, JournalHealth, JournalProgress, JournalRecord};
use crate::supervisor::{CallError, Slot};

const SECOND: Duration = Duration::from_secs(1);

/// A journal that is as far as it is told to be.
#[derive(Default)]
struct ToldJournal(Mutex<JournalProgress>);

impl ToldJournal {
    fn tell(&self, progress: JournalProgress) {
        *self.0.lock().unwrap() = progress;
    }
}

#[async_trait]
impl Journal for ToldJournal {
    fn append(&self, _records: Vec<JournalRecord>) -> Appended {
        oneshot::channel().1
    }

    fn note(&self, _records: Vec<JournalRecord>) {}

    fn progress(&self) -> JournalProgress {
        *self.0.lock().unwrap()
    }

    async fn close(&self) {}
}

/// A manager in its slot, with what stands around it.
struct Around {
    arguments: FallbackArguments,
    slot: Slot<FallbackMessage>,
    handle: FallbackHandle,
    bus: Arc<EventBus>,
    journal: Arc<ToldJournal>,
}

impl Around {
    async fn started(config: FallbackConfig) -> Self {
        let (bus, journal) = (Arc::new(EventBus::new()), Arc::new(ToldJournal::default()));
        let backends = stores(Access::ReadWrite, Access::ReadWrite);
        let arguments = FallbackArguments::new(config, backends, journal.clone(), bus.clone());
        let slot = Slot::default();
        let around = Self { handle: arguments.handle(slot.clone()), arguments, slot, bus, journal };
        around.start().await;
        around
    }

    async fn start(&self) -> ActorRef<FallbackMessage> {
        let (actor, _) = Actor::spawn(None, FallbackManager, self.arguments.clone()).await.expect("it starts");
        self.slot.fill(actor.clone());
        self.settle().await;
        actor
    }

    async fn kill(&self) {
        let actor = self.slot.get().expect("it stands there");
        self.slot.clear();
        actor.kill_and_wait(None).await.expect("it dies");
    }

    /// Until the manager has nothing left to handle.
    async fn settle(&self) {
        sleep(Duration::from_millis(1)).await;
    }

    fn mode(&self) -> Mode {
        self.handle.plan().load().mode
    }

    fn open(&self, backend: &'static str, state: BreakerState) {
        self.bus.breaker(&backend.into(), state, TransitionCause::WaitElapsed, 1);
        self.handle.breaker_changed(backend.into(), state);
    }
}

/// Folds all events so far over the start, and checks that each begins where the one before it ended.
fn fold(subscription: &mut Subscription) -> Snapshot {
    let mut snapshot = subscription.start().clone();
    while let Some(update) = subscription.try_next() {
        let Update::Event(event) = update else { panic!("no event is missed here") };
        match &event.kind {
            EventKind::ModeChanged { from, to, .. } => {
                assert_eq!(*from, snapshot.mode);
                assert_ne!(from, to);
            }
            EventKind::LevelChanged { from, .. } => assert_eq!(*from, snapshot.level),
            EventKind::JournalChanged { from, .. } => assert_eq!(*from, snapshot.journal),
            EventKind::AccessChanged { backend, from, .. } => {
                assert_eq!(*from, snapshot.access.get(backend).copied().unwrap_or_default());
            }
            _ => {}
        }
        assert!(snapshot.apply(&event));
    }
    snapshot
}

#[tokio::test(start_paused = true)]
async fn a_lost_backend_changes_the_plan_and_then_the_events() {
    let around = Around::started(FallbackConfig::default()).await;
    let mut events = around.bus.subscribe();
    let mut plans = around.handle.plan().subscribe();
    around.open("graph", BreakerState::Open);
    plans.changed().await.expect("the cell lives");
    around.settle().await;
    assert_eq!((around.mode(), plans.borrow().level), (Mode::QueueWrites, Level::NoGraph));
    let told = fold(&mut events);
    assert_eq!((told.mode, told.level), (Mode::QueueWrites, Level::NoGraph));
    assert_eq!(told.access[&"graph".into()], Access::None);
    let status = around.handle.status();
    assert_eq!((status.mode, status.level_number, status.words.title), (Mode::QueueWrites, 1, "No graph"));
    assert!(serde_json::to_value(&status).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_hears_an_event_finds_the_plan_changed() {
    let around = Around::started(FallbackConfig::default()).await;
    let mut events = around.bus.subscribe();
    let cell = around.handle.plan().clone();
    let (heard, mut listener) = mpsc::unbounded_channel();
    // On a thread of its own, as close behind the manager as can be.
    std::thread::spawn(move || {
        while !heard.is_closed() {
            if let Some(Update::Event(event)) = events.try_next()
                && let EventKind::ModeChanged { to, .. } = &event.kind
            {
                let _ = heard.send((*to, cell.load().mode));
            }
        }
    });
    for mode in [Mode::ReadOnly, Mode::LocalStorage].into_iter().cycle().take(20_000) {
        around.handle.set_mode(mode, "maintenance", None).await.expect("it answers");
        assert_eq!(listener.recv().await, Some((mode, mode)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_from_of_an_event_is_the_to_of_the_one_before_also_over_crashes() {
    let around = Around::started(FallbackConfig::default()).await;
    let mut events = around.bus.subscribe();
    let states = [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed, BreakerState::ForcedOpen];
    for round in 0..40_usize {
        around.open(["graph", "vector"][round % 2], states[round / 2 % 4]);
        match round % 5 {
            0 => around.handle.probe_reported("vector".into(), Health::ReadOnly),
            1 => around.handle.probe_reported("vector".into(), Health::Healthy),
            2 => drop(around.handle.set_mode(Mode::ALL[round / 5 % 5], "by hand", Some(SECOND)).await),
            3 => {
                around.kill().await;
                around.start().await;
            }
            _ => around.handle.journal_changed(JournalHealth::Failed),
        }
        sleep(Duration::from_millis(700)).await;
    }
    let told = fold(&mut events);
    let plan = around.handle.plan().get();
    assert_eq!((told.mode, told.level, told.journal), (plan.mode, plan.level, plan.journal));
    for backend in &plan.backends {
        assert_eq!(told.access.get(&backend.name).copied().unwrap_or_default(), backend.access);
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_keeps_the_mode_that_was_set_by_hand_and_its_end() {
    let around = Around::started(FallbackConfig::default()).await;
    let set = Instant::now();
    let plan = around.handle.set_mode(Mode::LocalStorage, "import", Some(60 * SECOND)).await.expect("it answers");
    assert_eq!(plan.mode, Mode::LocalStorage);
    // Not a whole number of looks at the journal, or one of those would end it.
    sleep(Duration::from_millis(30_300)).await;
    around.kill().await;
    assert_eq!(around.mode(), Mode::LocalStorage, "the plan outlives the manager");
    assert_eq!(around.handle.set_mode(Mode::Disabled, "", None).await, Err(CallError::Vacant));
    around.start().await;
    let plan = around.handle.plan().get();
    assert_eq!(plan.manual_until, Some(set + 60 * SECOND));
    assert!(matches!(&plan.cause, ModeCause::Manual { reason, .. } if reason == "import"));
    tokio::time::sleep_until(set + 60 * SECOND - Duration::from_millis(1)).await;
    assert_eq!(around.mode(), Mode::LocalStorage);
    sleep(Duration::from_millis(2)).await;
    assert_eq!(around.mode(), Mode::Disabled, "it ends to the millisecond, not to the second");
}

#[tokio::test(start_paused = true)]
async fn a_mode_that_ended_while_nobody_stood_there_is_lifted_by_the_next_incarnation() {
    let around = Around::started(FallbackConfig::default()).await;
    around.handle.set_mode(Mode::ReadOnly, "maintenance", Some(SECOND)).await.expect("it answers");
    around.kill().await;
    sleep(5 * SECOND).await;
    assert_eq!(around.mode(), Mode::ReadOnly);
    around.start().await;
    assert_eq!((around.mode(), around.bus.snapshot().mode), (Mode::Disabled, Mode::Disabled));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_changed_while_nobody_stood_there_is_found_on_the_bus() {
    let around = Around::started(FallbackConfig::default()).await;
    around.kill().await;
    around.open("vector", BreakerState::Open);
    around.start().await;
    assert_eq!(around.mode(), Mode::QueueWrites);
    // And one of which no message ever came, within a second.
    around.bus.breaker(&"vector".into(), BreakerState::Closed, TransitionCause::ProbesSucceeded(2), 3);
    sleep(SECOND).await;
    assert_eq!(around.mode(), Mode::Disabled);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_journal_makes_the_runtime_read_only_until_it_answers_again() {
    let around = Around::started(FallbackConfig::default()).await;
    let mut events = around.bus.subscribe();
    around.journal.tell(JournalProgress { submitted: 1, ..JournalProgress::default() });
    sleep(8 * SECOND).await;
    assert_eq!(around.mode(), Mode::Disabled);
    sleep(2 * SECOND).await;
    let plan = around.handle.plan().get();
    assert_eq!((plan.mode, plan.cause.clone()), (Mode::ReadOnly, ModeCause::JournalUnavailable));
    assert_eq!(around.bus.snapshot().journal, JournalHealth::Stalled);
    around.journal.tell(JournalProgress { submitted: 1, answered: 1, ..JournalProgress::default() });
    sleep(SECOND).await;
    assert_eq!((around.mode(), fold(&mut events).journal), (Mode::Disabled, JournalHealth::Healthy));
}

#[tokio::test(start_paused = true)]
async fn a_failed_journal_is_believed_at_once_and_looked_at_again() {
    let around = Around::started(FallbackConfig::default()).await;
    around.handle.set_mode(Mode::QueueWrites, "import", None).await.expect("it answers");
    around.journal.tell(JournalProgress { failed: true, ..JournalProgress::default() });
    around.handle.journal_changed(JournalHealth::Failed);
    around.settle().await;
    assert_eq!(around.mode(), Mode::ReadOnly);
    sleep(60 * SECOND).await;
    assert_eq!(around.mode(), Mode::ReadOnly);
    around.journal.tell(JournalProgress::default());
    sleep(SECOND).await;
    assert_eq!(around.mode(), Mode::QueueWrites, "what was set by hand is in force again");
    around.handle.clear_mode().await.expect("it answers");
    assert_eq!(around.mode(), Mode::Disabled);
}

#[tokio::test(start_paused = true)]
async fn an_engine_on_a_full_disk_is_read_only_until_a_probe_finds_it_well() {
    let (bus, journal) = (Arc::new(EventBus::new()), Arc::new(ToldJournal::default()));
    let engine = vec![required("engine", EVERYTHING, Access::ReadWrite)];
    let arguments = FallbackArguments::new(FallbackConfig::default(), engine, journal.clone(), bus.clone());
    let slot = Slot::default();
    let handle = arguments.handle(slot.clone());
    let around = Around { arguments, slot, handle, bus, journal };
    around.start().await;
    around.handle.write_refused("engine".into());
    around.settle().await;
    let plan = around.handle.plan().get();
    assert_eq!((plan.level, plan.level_number(), plan.mode), (Level::ReadOnly, 1, Mode::QueueWrites));
    around.handle.probe_reported("engine".into(), Health::Healthy);
    around.settle().await;
    assert_eq!(around.handle.plan().load().level, Level::Normal);
}

#[tokio::test(start_paused = true)]
async fn trap_14_waits_follow_the_monotonic_clock_alone() {
    // The wall clock stands still here while a year goes by: whoever asked it would be wrong by a year.
    let around = Around::started(FallbackConfig::default()).await;
    let year = 365 * 24 * 3_600 * SECOND;
    around.handle.set_mode(Mode::ReadOnly, "maintenance", Some(year)).await.expect("it answers");
    around.slot.get().expect("it stands there").stop_and_wait(None, None).await.expect("it stops");
    tokio::time::advance(year - SECOND).await;
    around.start().await;
    assert_eq!(around.mode(), Mode::ReadOnly);
    sleep(SECOND).await;
    assert_eq!(around.mode(), Mode::Disabled);
}
