//! The whole runtime in virtual time: clients, failing stores, a disk that loses what was not durable, dying actors and
//! crashes, all from one seed; and at the end the history is judged.
//!
//! | variable | meaning |
//! |---|---|
//! | `SEAWALL_SEEDS` | how many seeds are run; default 50 000 in release, else 1 000 |
//! | `SEAWALL_FIRST` | the first of them; default 0 |
//! | `SEAWALL_SEED` | runs this one alone, and prints all that happens |
//!
//! ```text
//! SEAWALL_SEED=123 cargo test --release --test simulation -- --nocapture
//! ```

mod client;
mod disk;
mod history;
mod scene;
mod store;
mod trouble;
mod verdict;
mod weather;
mod world;

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use history::Counts;
use scene::{Scene, Tracing, locked};
use store::PLANNED;
use tokio::time::timeout;
use weather::{Flaw, Weather};
use world::World;

/// Seeds that found something once. Each finding has a test of its own; these are its neighbourhood.
const REGRESSIONS: &[u64] = &[
    579, 638, 1_570, 1_613, 11_372, 16_450, 18_643, 1_004_680, 1_017_877, 1_018_249, 1_029_146, 2_001_904, 2_007_445,
    2_014_579, 3_000_000, 3_004_810, 3_007_684, 10_006_787, 10_044_310, 10_069_569, 10_404_294, 10_422_768, 200156350,
    210613025,
];

/// Longer than any run may take.
const FOR_EVER: Duration = Duration::from_secs(48 * 3_600);

/// How many seeds that fail are told at the most.
const TOLD: usize = 20;

/// What came of one seed.
struct Run {
    problems: Vec<String>,
    counts: Counts,
    hash: u64,
}

/// Runs one seed on this thread.
fn run(seed: u64, flaw: Option<Flaw>, tracing: Tracing) -> Run {
    watch_panics();
    PANICS.take();
    let mut random = fastrand::Rng::with_seed(seed);
    let weather = Weather::draw(&mut random, flaw);
    if tracing == Tracing::Printed {
        println!("{weather:#?}");
    }
    // The jitter of the runtime itself.
    fastrand::seed(random.u64(..));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Who of several is woken first.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&random.u64(..).to_le_bytes()));
    let executor = builder.enable_time().start_paused(true).build().expect("a runtime in one thread is built");
    let guard = executor.enter();
    let scene = Arc::new(Scene::new(weather, tracing));
    let mut world = World::new(Arc::clone(&scene), random);
    drop(guard);
    let ended = catch_unwind(AssertUnwindSafe(|| executor.block_on(async { timeout(FOR_EVER, world.run()).await })));
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(_)) => scene.problem("it hangs".to_owned()),
        Err(_) => scene.problem("the simulation panicked".to_owned()),
    }
    drop(world);
    drop(executor);
    for panic in PANICS.take() {
        scene.problem(panic);
    }
    Run { problems: scene.history.problems(), counts: scene.history.counts(), hash: scene.hash() }
}

thread_local! {
    /// Panics on this thread that were not part of the plan.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes panics: most are caught where they happen, and nobody would know.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
            let text = panic.payload().downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.payload().downcast_ref::<&str>().copied()).unwrap_or_default();
            if text.contains(PLANNED) {
                return;
            }
            PANICS.with_borrow_mut(|panics| panics.push(format!("a panic: {panic}")));
            usual(panic);
        }));
    });
}

/// Runs seeds on all cores. Gives those that broke a promise.
fn run_all(seeds: Range<u64>) -> Vec<u64> {
    let next = AtomicU64::new(seeds.start);
    let broken = Mutex::new(Vec::new());
    let total = Mutex::new(Counts::default());
    let began = tokio::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut counts = Counts::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || locked(&broken).len() >= TOLD {
                        break;
                    }
                    let run = run(seed, None, Tracing::Off);
                    counts.add(&run.counts);
                    if !run.problems.is_empty() {
                        report(seed, &run.problems);
                        locked(&broken).push(seed);
                    }
                }
                locked(&total).add(&counts);
            });
        }
    });
    let (schedules, seconds) = (seeds.end - seeds.start, began.elapsed().as_secs_f64());
    let per_core = schedules as f64 / seconds / threads as f64;
    println!("{schedules} schedules in {seconds:.0} s, {per_core:.0}/s/core; {:?}", locked(&total));
    let mut broken = locked(&broken).clone();
    broken.sort_unstable();
    broken
}

fn report(seed: u64, problems: &[String]) {
    println!("seed {seed} broke a promise:");
    for problem in problems.iter().take(8) {
        println!("  {problem}");
    }
    println!("  replay: SEAWALL_SEED={seed} cargo test --release --test simulation -- --nocapture");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn whatever_the_schedule_every_promise_is_kept() {
    if let Some(seed) = number("SEAWALL_SEED") {
        let run = run(seed, None, Tracing::Printed);
        if !run.problems.is_empty() {
            report(seed, &run.problems);
        }
        assert!(run.problems.is_empty(), "seed {seed} broke a promise");
        return;
    }
    let first = number("SEAWALL_FIRST").unwrap_or(0);
    let schedules = number("SEAWALL_SEEDS").unwrap_or(if cfg!(debug_assertions) { 1_000 } else { 50_000 });
    let broken = run_all(first..first + schedules);
    assert!(broken.is_empty(), "these seeds broke a promise: {broken:?}");
}

#[test]
fn seeds_that_found_something_once_find_nothing_any_more() {
    for seed in REGRESSIONS {
        let run = run(*seed, None, Tracing::Off);
        assert!(run.problems.is_empty(), "seed {seed}: {:#?}", run.problems);
    }
}

#[test]
#[cfg_attr(not(tokio_unstable), ignore = "tokio chooses at random: RUSTFLAGS of your own hide .cargo/config.toml")]
fn the_same_seed_gives_the_same_trace_twice() {
    for seed in 0..20 {
        let first = run(seed, None, Tracing::Hashed);
        let second = run(seed, None, Tracing::Hashed);
        assert_eq!(first.hash, second.hash, "seed {seed} was not the same twice");
    }
}

#[test]
fn a_store_that_forgets_what_it_answered_is_found_out() {
    found_out(Flaw::StoreForgets);
}

#[test]
fn a_journal_that_answers_before_anything_is_durable_is_found_out() {
    found_out(Flaw::JournalLies);
}

/// What no runtime can make good for has to be seen by the checker, or the checker sees nothing.
fn found_out(flaw: Flaw) {
    let seen = (0..100).filter(|seed| !run(*seed, Some(flaw), Tracing::Off).problems.is_empty()).count();
    assert!(seen >= 5, "{flaw:?} was seen in {seen} of 100 runs");
}
