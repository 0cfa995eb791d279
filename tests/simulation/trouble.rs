//! What happens beside the clients: stores come and go, actors die, people turn knobs.

use std::convert::Infallible;
use std::sync::Arc;

use seawall::Runtime;
use seawall::supervisor::ChildStatus;
use tokio::time::sleep;

use crate::scene::{Scene, trace};
use crate::store::{Condition, Store};
use crate::weather::{MS, time_between};

/// Trouble without end.
pub(crate) async fn trouble(
    scene: &Scene,
    stores: &[Arc<Store>],
    random: &mut fastrand::Rng,
    runtime: &Runtime,
) -> Infallible {
    let storm = &scene.weather.storm;
    let flap = storm.flap.max(MS);
    loop {
        let pace = if random.bool() { storm.pace } else { flap };
        sleep(time_between(random, MS, pace)).await;
        check_bounds(scene, runtime);
        let store = &stores[random.usize(0..stores.len())];
        match random.u8(0..20) {
            0..=2 => store.set(Condition::Down),
            3 => store.set(Condition::Hung),
            4 => store.set(Condition::Slow(time_between(random, MS, 2 * flap))),
            5 => store.set(Condition::ReadOnly),
            6 if scene.weather.required > 1 => stores.iter().for_each(|store| store.set(Condition::Down)),
            7..=8 if storm.overrides => turn_a_knob(scene, store, random, runtime),
            9..=10 if !storm.modes.is_empty() => set_a_mode(scene, random, runtime).await,
            11..=12 if storm.kills => kill_somebody(scene, random, runtime),
            13 if storm.letters => open_a_letter(scene, random, runtime).await,
            _ => store.set(Condition::Well),
        }
    }
}

/// Nothing holds more than it may.
fn check_bounds(scene: &Scene, runtime: &Runtime) {
    let (status, config) = (runtime.handle().status(), &scene.weather.config);
    if status.owed > config.queue.max_entries || status.in_flight > config.gateway.max_in_flight {
        scene.problem(format!("a bound does not hold: {status:?}"));
    }
}

fn turn_a_knob(scene: &Scene, store: &Store, random: &mut fastrand::Rng, runtime: &Runtime) {
    let Ok(breaker) = runtime.control().breaker(store.name.clone()) else {
        return scene.problem(format!("{} has no breaker", store.name));
    };
    let knob = random.u8(0..5);
    let until = random.bool().then(|| time_between(random, MS, scene.weather.storm.flap.max(MS)));
    trace!(scene, "the breaker of {} is turned: {knob}, for {until:?}", store.name);
    match knob {
        0 => breaker.force_open("a drill", until),
        1 => breaker.force_closed("a drill", until),
        2 => breaker.disable("a drill", until),
        3 => breaker.lift(),
        _ => breaker.reset(),
    }
}

async fn set_a_mode(scene: &Scene, random: &mut fastrand::Rng, runtime: &Runtime) {
    let modes = &scene.weather.storm.modes;
    let mode = modes[random.usize(0..modes.len())];
    let until = (random.u8(0..4) > 0).then(|| time_between(random, MS, 5 * scene.weather.storm.pace));
    trace!(scene, "mode {mode:?} for {until:?}");
    if random.u8(0..5) == 0 {
        let _ = runtime.control().clear_mode().await;
    } else {
        // The manager may be dead just now.
        let _ = runtime.control().set_mode(mode, "a drill", until).await;
    }
}

fn kill_somebody(scene: &Scene, random: &mut fastrand::Rng, runtime: &Runtime) {
    let mut names = Vec::new();
    gather(&runtime.control().actors(), &mut names);
    if names.is_empty() {
        return;
    }
    let name = &names[random.usize(0..names.len())];
    trace!(scene, "{name} is killed");
    runtime.control().kill_actor(name);
}

fn gather(children: &[ChildStatus], names: &mut Vec<String>) {
    for child in children {
        names.push(child.name.clone());
        gather(&child.children, names);
    }
}

async fn open_a_letter(scene: &Scene, random: &mut fastrand::Rng, runtime: &Runtime) {
    let handle = runtime.handle();
    let letters = handle.dead_letters();
    if letters.is_empty() {
        return;
    }
    let letter = letters[random.usize(0..letters.len())].clone();
    let retry = random.u8(0..3) > 0;
    trace!(scene, "{} of {} is {}", letter.version, letter.backend, if retry { "retried" } else { "discarded" });
    let done = if retry {
        handle.retry_dead_letter(letter.operation, letter.backend).await
    } else {
        handle.discard_dead_letter(letter.operation).await
    };
    trace!(scene, "{done:?}");
}
