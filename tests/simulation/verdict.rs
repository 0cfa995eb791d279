//! The end of a run: everything is well again, comes to rest, and is judged.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall::Runtime;
use seawall::backend::Role;
use seawall::breaker::BreakerState;
use seawall::event::{EventKind, Snapshot, Update};
use seawall::fallback::DegradationLevel;
use seawall::ledger::JournalHealth;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::key;
use crate::history::Holding;
use crate::scene::{Life, Scene, locked, trace};
use crate::weather::MS;
use crate::world::{Process, World};

/// How long everything may take to come to rest when nothing goes wrong any more.
const REST: Duration = Duration::from_secs(2 * 3_600);
/// How long it takes until everybody knows how the disk is.
const NEWS: Duration = Duration::from_secs(3);
/// Who changes nothing for so long has nothing left to do.
const STILL: Duration = Duration::from_secs(3 * 60);

/// Folds the events of a runtime, and finds whether one is missing or says what is not so.
pub(crate) fn follow(runtime: &Runtime, scene: &Arc<Scene>, life: &Arc<Life>) -> Arc<Mutex<Snapshot>> {
    let mut events = runtime.subscribe();
    let seen = Arc::new(Mutex::new(events.start().clone()));
    let (scene, life, fold) = (Arc::clone(scene), Arc::clone(life), Arc::clone(&seen));
    tokio::spawn(async move {
        while let Some(update) = events.next().await {
            if life.is_over() {
                return;
            }
            let Update::Event(event) = update else {
                scene.problem(format!("events were missed: {update:?}"));
                return;
            };
            trace!(scene, "event: {} {:?}", event.sequence, event.kind);
            let mut seen = locked(&fold);
            if let Some(problem) = misfit(&seen, &event.kind) {
                scene.problem(format!("event {}: {problem}", event.sequence));
            }
            if !seen.apply(&event) {
                scene.problem(format!("event {} came after {}", event.sequence, seen.sequence));
            }
            if let EventKind::DeadLetterAdded { operation, .. } = event.kind {
                scene.history.parked(operation);
            }
        }
    });
    seen
}

/// What is wrong with an event that follows this state.
fn misfit(seen: &Snapshot, kind: &EventKind) -> Option<String> {
    let (was, said) = match kind {
        EventKind::BreakerChanged { backend, from, to, .. } => {
            let was = seen.breakers.get(backend).copied().unwrap_or_default();
            (was == *from && from != to, format!("{was:?}"))
        }
        EventKind::AccessChanged { backend, from, to } => {
            let was = seen.access.get(backend).copied().unwrap_or_default();
            (was == *from && from != to, format!("{was:?}"))
        }
        EventKind::ModeChanged { from, to, .. } => (seen.mode == *from && from != to, format!("{:?}", seen.mode)),
        EventKind::LevelChanged { from, to } => (seen.level == *from && from != to, format!("{:?}", seen.level)),
        EventKind::JournalChanged { from, to } => (seen.journal == *from && from != to, format!("{:?}", seen.journal)),
        _ => return None,
    };
    (!was).then(|| format!("{kind:?} after {said}"))
}

/// Nothing goes wrong any more, until nothing is owed and nothing is in flight.
pub(crate) async fn rest(world: &World, process: &Process) {
    let (scene, runtime) = (&world.scene, &process.runtime);
    trace!(scene, "everything is well from here on");
    world.stores.iter().for_each(|store| store.heal());
    process.disk.heal();
    for store in &world.stores {
        if let Ok(breaker) = runtime.control().breaker(store.name.clone()) {
            breaker.lift();
        }
    }
    while runtime.control().clear_mode().await.is_err() {
        sleep(50 * MS).await;
    }
    // What was asked before may still fail.
    let config = &scene.weather.config;
    let calls = world.stores.iter().map(|store| config.call_of(&store.name).timeout);
    let asked = calls.chain([config.health.timeout, config.gateway.read_timeout]);
    sleep(asked.max().unwrap_or_default()).await;
    if scene.weather.disk.fails > 0.0 {
        // A disk that has just failed is known to have, and those who know begin to heal.
        sleep(NEWS).await;
    }
    if scene.weather.habits.permanent && !scene.weather.revive {
        come_to_letters(world, runtime).await;
    }
    calm(world, runtime).await;
    // What stores do long after they said that they did not.
    sleep_until(scene.horizon() + 10 * MS).await;
    calm(world, runtime).await;
    trace!(scene, "at rest");
}

/// Waits until nothing is done any more, because dead letters stand in the way of all that is left.
async fn come_to_letters(world: &World, runtime: &Runtime) {
    let mut before = None;
    while before.as_ref() != Some(&runtime.handle().status()) {
        before = Some(runtime.handle().status());
        sleep(STILL).await;
    }
    let status = runtime.handle().status();
    if status.owed > 0 && status.dead_letters == 0 {
        world.scene.problem(format!("nothing is done any more: {status:?}"));
    }
}

/// Waits until everything is as it is in good times.
async fn calm(world: &World, runtime: &Runtime) {
    let scene = &world.scene;
    let (began, mut wait) = (Instant::now(), 50 * MS);
    while let Some(unrest) = unrest(world, runtime) {
        if began.elapsed() > REST {
            scene.problem(format!("it does not come to rest: {unrest}"));
            break;
        }
        sleep(wait).await;
        wait = (wait * 3 / 2).min(Duration::from_secs(30));
        revive(runtime).await;
    }
}

/// What is not as it is in good times.
fn unrest(world: &World, runtime: &Runtime) -> Option<String> {
    let status = runtime.handle().status();
    let well = |state| state == BreakerState::Closed;
    let good = status.in_flight == 0
        && status.owed == 0
        && runtime.control().drains().iter().all(|drain| drain.owed == 0)
        && status.journal_healthy
        && status.level == DegradationLevel::Normal
        && status.mode == world.scene.weather.config.fallback.mode_when_normal
        && status.backends.iter().all(|backend| well(backend.breaker));
    (!good).then(|| format!("{status:?} {:?}", runtime.handle().dead_letters()))
}

async fn revive(runtime: &Runtime) {
    let handle = runtime.handle();
    for letter in handle.dead_letters() {
        // Asked again, should it fail.
        let _ = handle.retry_dead_letter(letter.operation, letter.backend).await;
    }
}

/// Judges what it came to.
pub(crate) async fn judge(world: &World, process: &Process) {
    let (scene, runtime) = (&world.scene, &process.runtime);
    let handle = runtime.handle();
    let keys: Vec<_> = (0..scene.weather.keys).map(key).collect();
    for key in &keys {
        let floor = scene.history.floor(key);
        match handle.retrieve(key.clone()).await {
            Ok(read) if read.stale || read.partial => {
                scene.problem(format!("in good times {key} is read from {:?}", read.source));
            }
            Ok(read) => scene.history.read(key, floor, Some(read), false),
            Err(refusal) => scene.problem(format!("in good times {key} cannot be read: {refusal}")),
        }
    }
    let status = handle.status();
    if (status.owed == 0) != (status.owed_bytes == 0) {
        scene.problem(format!("what is owed does not add up: {status:?}"));
    }
    for store in &world.stores {
        let Ok(breaker) = runtime.control().breaker(store.name.clone()) else { continue };
        let s = breaker.snapshot();
        let out = s.successful + s.failed + s.ignored + s.cancelled + s.panicked + s.expired + s.in_flight;
        if s.admitted != out || s.total_requests != s.admitted + s.rejected {
            scene.problem(format!("calls went missing: {s:?}"));
        }
    }
    // What was published just now is on its way.
    sleep(MS).await;
    let (snapshot, seen) = (runtime.snapshot(), locked(&process.seen).clone());
    if snapshot != seen {
        scene.problem(format!("events add up to {seen:?}, and not to {snapshot:?}"));
    }
    if snapshot.journal != JournalHealth::Healthy {
        scene.problem("the journal does not recover".to_owned());
    }
    let mut stores = Vec::new();
    for store in world.stores.iter().filter(|store| store.role == Role::Required) {
        stores.push(Holding {
            store: store.name.to_string(),
            records: store.contents(&keys).await,
            landings: store.landings(),
        });
    }
    let remembers = scene.weather.is_strict();
    scene.history.judge(|operation| handle.outcome(operation), &stores, remembers);
}
