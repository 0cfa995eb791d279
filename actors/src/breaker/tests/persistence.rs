//! What a restart remembers, and what a store can do to it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use ractor::Actor;
use tokio::time::{advance, sleep};

use super::*;
use crate::backend::BackendName;

/// Starts the actor of a new "process" over this store. Dropping the guard kills it.
struct Process {
    rig: Rig,
    actor: ractor::ActorRef<BreakerMessage>,
}

impl Process {
    async fn start(store: Arc<dyn BreakerStateStore>, config: BreakerConfig) -> Self {
        let rig = rig_with(config, Some(store)).await;
        let (actor, _) = Actor::spawn(None, BreakerActor, BreakerArguments { cell: rig.cell.clone() }).await.unwrap();
        Self { rig, actor }
    }

    async fn kill(self) {
        let _ = self.actor.kill_and_wait(None).await;
    }
}

fn graph() -> BackendName {
    "graph".into()
}

#[tokio::test(start_paused = true)]
async fn a_restart_remembers_an_open_breaker_and_what_was_left_of_its_wait() {
    let store = Arc::new(MemoryStateStore::default());
    let process = Process::start(store.clone(), BreakerConfig::default()).await;
    process.rig.open();
    let generation = process.rig.breaker.view().generation;
    sleep(WAIT / 3).await;
    process.rig.cell.save().await.unwrap();
    process.kill().await;
    // However long nothing runs, and wherever the wall clock is by then.
    advance(WAIT * 100).await;
    let next = Process::start(store, BreakerConfig::default()).await;
    let refused = next.rig.refused();
    assert_eq!((refused.state, refused.retry_after()), (BreakerState::Open, WAIT * 2 / 3));
    assert!(next.rig.breaker.view().generation > generation);
    assert_eq!(next.rig.bus.snapshot().breakers[&graph()], BreakerState::Open);
    let explained = next.rig.breaker.explain();
    let causes: Vec<_> = explained.history.iter().map(|transition| transition.cause.clone()).collect();
    assert_eq!(causes, [TransitionCause::ConsecutiveFailures(5), TransitionCause::Restored]);
    assert_eq!(explained.history[0].age, WAIT / 3);
    next.kill().await;
}

#[tokio::test(start_paused = true)]
async fn trap_13_a_process_that_is_killed_every_ten_seconds_still_gets_to_half_open() {
    let store = Arc::new(MemoryStateStore::default());
    let mut up = Duration::ZERO;
    let first = Process::start(store.clone(), BreakerConfig::default()).await;
    first.rig.open();
    let mut process = first;
    loop {
        sleep(Duration::from_secs(10)).await;
        up += Duration::from_secs(10);
        process.kill().await;
        process = Process::start(store.clone(), BreakerConfig::default()).await;
        if process.rig.breaker.snapshot().state == BreakerState::HalfOpen {
            break;
        }
        assert!(up < WAIT * 5 / 4, "it waits much longer than configured");
    }
    assert!(up >= WAIT, "the wait is not cut short");
    assert!(up <= WAIT * 5 / 4);
    process.kill().await;
}

#[tokio::test(start_paused = true)]
async fn half_open_is_restored_as_open_without_a_wait() {
    let store = Arc::new(MemoryStateStore::default());
    let process = Process::start(store.clone(), touchy()).await;
    process.rig.open();
    advance(WAIT).await;
    let _probe = process.rig.admit();
    sleep(MS).await;
    assert_eq!(store.get(&graph()).unwrap().state, BreakerState::HalfOpen);
    process.kill().await;
    let next = rig_with(touchy(), Some(store)).await;
    next.call(CallOutcome::Success);
    assert_eq!(next.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_override_survives_a_restart_with_its_reason_and_what_is_left_of_it() {
    let store = Arc::new(MemoryStateStore::default());
    let process = Process::start(store.clone(), touchy()).await;
    process.rig.breaker.force_open("maintenance", Some(WAIT * 10));
    sleep(WAIT).await;
    process.kill().await;
    let next = rig_with(touchy(), Some(store)).await;
    let rejected = next.refused();
    assert_eq!(rejected.state, BreakerState::ForcedOpen);
    assert!(rejected.retry_after() <= WAIT * 9 + Duration::from_secs(5), "{rejected:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_saved_without_a_transition() {
    let store = Arc::new(MemoryStateStore::default());
    let process = Process::start(store.clone(), touchy()).await;
    for _ in 0..100 {
        process.rig.call(CallOutcome::Success);
        sleep(WAIT).await;
    }
    assert_eq!(store.get(&graph()), None);
    process.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_transition_is_saved_once_and_a_running_wait_now_and_then() {
    let store = Arc::new(Nasty::default());
    let process = Process::start(store.clone(), BreakerConfig::default()).await;
    let asked = store.asked.load(Ordering::SeqCst);
    process.rig.breaker.force_closed("trial", None);
    sleep(WAIT * 10).await;
    assert_eq!(store.asked.load(Ordering::SeqCst) - asked, 1);
    process.rig.breaker.reset();
    process.rig.open();
    sleep(WAIT / 2).await;
    // Once for both transitions, then every thirtieth of the wait (and the millisecond that timers round up).
    assert_eq!(store.asked.load(Ordering::SeqCst) - asked, 1 + 1 + 14);
    process.kill().await;
}

#[tokio::test(start_paused = true)]
async fn trap_13_an_older_save_never_replaces_a_newer_one() {
    let rig = rig(touchy()).await;
    let mut records = Vec::new();
    for _ in 0..4 {
        records.push(rig.cell.gate.record());
        rig.breaker.force_open("again", None);
    }
    // All orders of four.
    for first in 0..4 {
        for second in 0..4 {
            for third in 0..4 {
                let order = [first, second, third, 6_usize.saturating_sub(first + second + third)];
                let mut sorted = order;
                sorted.sort_unstable();
                if sorted != [0, 1, 2, 3] {
                    continue;
                }
                let store = MemoryStateStore::default();
                for at in order {
                    let held = store.get(&graph()).map(|record| record.sequence);
                    let result = store.save(&graph(), records[at].clone()).await;
                    assert_eq!(result.is_ok(), held.is_none_or(|held| held < records[at].sequence));
                }
                assert_eq!(store.get(&graph()).unwrap(), records[3], "{order:?}");
            }
        }
    }
}

/// A store that can hang, fail and panic, and counts what it is asked.
#[derive(Default)]
struct Nasty {
    behaviour: Mutex<Behaviour>,
    asked: AtomicU64,
    inner: MemoryStateStore,
}

#[derive(Clone, Copy, Default)]
enum Behaviour {
    #[default]
    Work,
    Fail,
    Hang,
    Panic,
}

impl Nasty {
    fn be(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    async fn misbehave(&self) -> Result<(), StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let behaviour = *self.behaviour.lock().unwrap();
        match behaviour {
            Behaviour::Work => Ok(()),
            Behaviour::Fail => Err(StoreError::Failed("out of order".into())),
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Panic => panic!("a bug in a store"),
        }
    }
}

#[async_trait]
impl BreakerStateStore for Nasty {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        self.misbehave().await?;
        self.inner.load(backend).await
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        self.misbehave().await?;
        self.inner.save(backend, record).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_hangs_or_panics_delays_no_call_and_gets_the_newest_state_when_it_is_back() {
    for behaviour in [Behaviour::Fail, Behaviour::Hang, Behaviour::Panic] {
        let store = Arc::new(Nasty::default());
        let process = Process::start(store.clone(), touchy()).await;
        store.be(behaviour);
        let before = tokio::time::Instant::now();
        process.rig.open();
        process.rig.breaker.reset();
        process.rig.call(CallOutcome::Success);
        process.rig.open();
        assert_eq!(before.elapsed(), Duration::ZERO);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(store.inner.get(&graph()), None);
        let asked = store.asked.load(Ordering::SeqCst);
        assert!((4..=25).contains(&asked), "tried again, but not in a tight loop: {asked}");
        store.be(Behaviour::Work);
        sleep(Duration::from_secs(7)).await;
        assert_eq!(store.inner.get(&graph()).unwrap().state, BreakerState::Open);
        process.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_loaded_starts_closed_and_is_written_over_by_the_next_transition() {
    for behaviour in [Behaviour::Fail, Behaviour::Hang, Behaviour::Panic] {
        let store = Arc::new(Nasty::default());
        let first = rig_with(touchy(), Some(store.clone())).await;
        for _ in 0..50 {
            first.cell.save().await.unwrap();
        }
        store.be(behaviour);
        let process = Process::start(store.clone(), touchy()).await;
        assert_eq!(process.rig.state(), BreakerState::Closed);
        store.be(Behaviour::Work);
        process.rig.open();
        sleep(Duration::from_secs(3)).await;
        assert_eq!(store.inner.get(&graph()).unwrap().state, BreakerState::Open);
        process.kill().await;
    }
}

/// Numbers begin anew where nothing could be loaded, so the store may hold another process's record under the number
/// of this one's.
#[tokio::test(start_paused = true)]
async fn a_record_of_another_process_under_the_same_number_is_written_over_too() {
    for sequence in 1..=3 {
        let store = Arc::new(Nasty::default());
        let first = rig_with(touchy(), Some(store.clone())).await;
        for _ in 0..sequence {
            first.cell.save().await.unwrap();
        }
        store.be(Behaviour::Fail);
        let process = Process::start(store.clone(), touchy()).await;
        store.be(Behaviour::Work);
        process.rig.breaker.force_closed("a person knows better", None);
        sleep(MS).await;
        assert_eq!(store.inner.get(&graph()).unwrap().manual.unwrap().state, BreakerState::ForcedClosed);
        process.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_format_is_not_used() {
    let store = Arc::new(MemoryStateStore::default());
    let first = rig_with(touchy(), Some(store.clone())).await;
    first.open();
    let record = SavedBreaker { format: FORMAT + 1, ..first.cell.gate.record() };
    store.save(&graph(), record).await.unwrap();
    assert_eq!(rig_with(touchy(), Some(store)).await.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_record_is_read_back_as_it_was_written() {
    let rig = rig(touchy()).await;
    rig.open();
    rig.breaker.force_open("maintenance", Some(WAIT));
    advance(MS * 1_234).await;
    let record = rig.cell.gate.record();
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<SavedBreaker>(&json).unwrap(), record);
    let bytes = rmp_serde::to_vec(&record).unwrap();
    assert_eq!(rmp_serde::from_slice::<SavedBreaker>(&bytes).unwrap(), record);
}

/// A store on another machine, which answers when it is let.
#[derive(Default)]
struct Far {
    near: Nasty,
    answers: tokio::sync::Notify,
}

impl Far {
    /// A store with the record of a breaker that was opened and had half of its wait before it.
    async fn with_an_open_breaker() -> Arc<Self> {
        let far = Arc::new(Self::default());
        let first = rig(touchy()).await;
        first.open();
        advance(WAIT / 2).await;
        far.near.inner.save(&graph(), first.cell.gate.record()).await.unwrap();
        far
    }
}

#[async_trait]
impl BreakerStateStore for Far {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        self.answers.notified().await;
        self.near.load(backend).await
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        self.near.save(backend, record).await
    }

    fn is_remote(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn no_start_waits_for_a_remote_store_and_its_record_is_taken_over_when_it_comes() {
    let store = Far::with_an_open_breaker().await;
    let before = tokio::time::Instant::now();
    let process = Process::start(store.clone(), touchy()).await;
    let mut events = process.rig.bus.subscribe();
    let early = process.rig.admit();
    assert_eq!((process.rig.state(), before.elapsed()), (BreakerState::Closed, Duration::ZERO));
    sleep(Duration::from_secs(2)).await;
    store.answers.notify_one();
    sleep(MS).await;
    let refused = process.rig.refused();
    assert_eq!((refused.state, refused.retry_after()), (BreakerState::Open, WAIT / 2 - MS));
    assert_eq!(states(&drain(&mut events)), [BreakerState::Open]);
    // What was let in before does not count for the verdict any more.
    early.settle(CallOutcome::Failure);
    let seen = process.rig.breaker.snapshot();
    assert_eq!((seen.stale_results, seen.failed, seen.in_flight), (1, 1, 0));
    assert_eq!(process.rig.breaker.explain().cause, Some(TransitionCause::Restored));
    process.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_has_changed_its_state_takes_no_record_over_and_its_own_is_saved() {
    let store = Far::with_an_open_breaker().await;
    let process = Process::start(store.clone(), touchy()).await;
    sleep(MS).await;
    process.rig.breaker.force_closed("a person knows better", None);
    sleep(Duration::from_secs(2)).await;
    store.answers.notify_one();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(process.rig.state(), BreakerState::ForcedClosed);
    let saved = store.near.inner.get(&graph()).unwrap();
    assert_eq!(saved.manual.unwrap().state, BreakerState::ForcedClosed);
    process.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_remote_store_that_is_back_is_heard_unless_a_call_has_succeeded_meanwhile() {
    for (succeeded, then) in [(false, BreakerState::Open), (true, BreakerState::Closed)] {
        let store = Far::with_an_open_breaker().await;
        store.near.be(Behaviour::Fail);
        let process = Process::start(store.clone(), BreakerConfig::default()).await;
        process.rig.call(if succeeded { CallOutcome::Success } else { CallOutcome::Failure });
        store.answers.notify_one();
        sleep(MS).await;
        store.near.be(Behaviour::Work);
        store.answers.notify_one();
        sleep(Duration::from_secs(2)).await;
        assert_eq!(process.rig.state(), then);
        process.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_before_the_record_came_leaves_it_as_it_is() {
    let store = Far::with_an_open_breaker().await;
    let kept = store.near.inner.get(&graph());
    let process = Process::start(store.clone(), touchy()).await;
    sleep(MS).await;
    assert_eq!(process.rig.cell.save().await, Ok(()));
    process.kill().await;
    assert_eq!(store.near.inner.get(&graph()), kept);
    // Nor is it lost to an actor that is restarted.
    let next = Process::start(store.clone(), touchy()).await;
    let cell = next.rig.cell.clone();
    next.actor.kill_and_wait(None).await.unwrap();
    let (actor, _) = Actor::spawn(None, BreakerActor, BreakerArguments { cell }).await.unwrap();
    store.answers.notify_one();
    sleep(MS).await;
    assert_eq!(next.rig.state(), BreakerState::Open);
    actor.kill_and_wait(None).await.unwrap();
}
