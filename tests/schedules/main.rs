//! Thousands of schedules: clients, failing stores, a slow disk, dying actors and crashes, in virtual time, from one
//! seed each; at the end the history is judged.
//!
//! `SEAWALL_SEEDS` sets how many seeds are run (default 150), `SEAWALL_SEED` runs one.

mod history;
mod journal;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use seawall::backend::{Backend, ErrorKind};
use seawall::backends::{
    Fault, FaultPlan, Faults, FaultyBackend, GraphBackend, GraphConfig, Op, Ops, VectorBackend, VectorConfig,
};
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::fallback::{JournalFallback, Mode};
use seawall::ledger::JournalRecord;
use seawall::operation::{Priority, Write};
use seawall::record::{Key, Properties, Record};
use seawall::saga::Durability;
use seawall::{Handle, Refusal, Runtime};
use tokio::time::{Instant, sleep, timeout};

use history::History;
use journal::SlowJournal;

const KEYS: u64 = 5;
const CLIENTS: u64 = 6;
const MS: Duration = Duration::from_millis(1);
/// How long a caller may wait at the most, in these runs.
const WRITE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What kind of trouble a seed brings.
#[derive(Clone, Copy, Debug)]
struct Weather {
    crashes: u32,
    backends: usize,
    permanent: bool,
    modes: bool,
    journal_fails: Option<u64>,
    overlapped: bool,
    kills: bool,
}

impl Weather {
    fn draw(random: &mut fastrand::Rng) -> Self {
        let crashes = if random.bool() { random.u32(1..4) } else { 0 };
        Self {
            crashes,
            // What one store alone holds is not in the journal: after a crash only the store knows.
            backends: if crashes == 0 && random.u8(0..4) == 0 { 1 } else { 2 },
            permanent: random.u8(0..4) == 0,
            modes: random.u8(0..3) == 0,
            journal_fails: (random.u8(0..4) == 0).then(|| random.u64(5..40)),
            overlapped: crashes == 0 && random.u8(0..3) == 0,
            kills: random.u8(0..3) == 0,
        }
    }
}

/// One run.
struct World {
    weather: Weather,
    stores: Vec<(Arc<dyn Backend>, Faults)>,
    history: Arc<History>,
}

impl World {
    fn new(seed: u64, weather: Weather) -> Self {
        let graph: Arc<dyn Backend> = Arc::new(GraphBackend::in_memory(GraphConfig::default()));
        let vector: Arc<dyn Backend> = Arc::new(VectorBackend::in_memory(VectorConfig::default()));
        let stores = [graph, vector].into_iter().take(weather.backends).enumerate();
        let with_faults = |(n, store)| (store, Faults::seeded(seed + n as u64, plan(weather)));
        Self { weather, stores: stores.map(with_faults).collect(), history: Arc::default() }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.gateway.write_timeout = WRITE_TIMEOUT;
        config.gateway.read_timeout = WRITE_TIMEOUT;
        config.saga.timeout = 1_000 * MS;
        config.saga.step_timeout = 200 * MS;
        config.saga.rollback_timeout = 400 * MS;
        config.saga.max_retries = 2;
        config.saga.backoff = 10 * MS;
        config.saga.max_backoff = 500 * MS;
        config.saga.durability = if self.weather.overlapped { Durability::Overlapped } else { Durability::Strict };
        config.sync.step_timeout = 200 * MS;
        config.sync.max_backoff = 1_000 * MS;
        config.breaker.failure_threshold = 3;
        config.breaker.reset_timeout = 500 * MS;
        config.breaker.half_open_lease = 500 * MS;
        config.health.interval = 400 * MS;
        config.health.timeout = 200 * MS;
        config.supervisor.intensity = 1_000_000;
        config.fallback.journal_unavailable = JournalFallback::ReadOnly;
        config
    }

    async fn start(&self, journal: &Arc<SlowJournal>, found: Vec<JournalRecord>) -> Runtime {
        let mut builder = Runtime::builder().config(self.config()).journal(Arc::clone(journal) as _, found);
        for (store, faults) in &self.stores {
            builder = builder.backend(FaultyBackend::around(Arc::clone(store), faults));
        }
        let runtime = builder.start().await.expect("it starts");
        let (mut events, history) = (runtime.subscribe(), Arc::clone(&self.history));
        tokio::spawn(async move {
            while let Some(update) = events.next().await {
                if let Update::Event(event) = update
                    && let EventKind::DeadLetterAdded { operation, .. } = event.kind
                {
                    history.parked(operation);
                }
            }
        });
        runtime
    }

    async fn run(&self, random: &mut fastrand::Rng) {
        let mut found = Vec::new();
        for life in 0..=self.weather.crashes {
            let slowest = MS * random.u32(1..30);
            let journal = SlowJournal::new(found.clone(), random.u64(..), slowest, self.weather.journal_fails);
            let runtime = self.start(&journal, std::mem::take(&mut found)).await;
            let writes = random.u32(4..20);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let client = Client {
                        number: client,
                        handle: runtime.handle(),
                        history: Arc::clone(&self.history),
                        random: random.fork(),
                    };
                    tokio::spawn(client.run(writes))
                })
                .collect();
            let mut weather = random.fork();
            if life < self.weather.crashes {
                let _ = timeout(MS * random.u32(20..4_000), self.storm(&runtime, &mut weather)).await;
                clients.iter().for_each(|client| client.abort());
                // The records are taken first: what a task does while it is dropped does not reach a dead disk.
                found = journal.crash(random.f64());
                drop(runtime);
                self.history.forget_volatile();
                sleep(MS * random.u32(0..500)).await;
                continue;
            }
            tokio::select! {
                () = self.storm(&runtime, &mut weather) => {}
                ended = join_all(clients) => ended.into_iter().for_each(|client| client.expect("a client ends")),
            }
            self.end(&runtime).await;
            for problem in self.verdict(&runtime.handle()).await {
                self.history.problem(problem);
            }
            let report = runtime.shutdown().await;
            if !report.killed.is_empty() || report.cancelled > 0 {
                self.history.problem(format!("the shutdown was not clean: {report:?}"));
            }
        }
    }

    /// Trouble without end.
    async fn storm(&self, runtime: &Runtime, random: &mut fastrand::Rng) {
        loop {
            sleep(MS * random.u32(5..400)).await;
            let (store, faults) = &self.stores[random.usize(0..self.stores.len())];
            let ops = [Ops::ALL, Ops::ALL, Ops::WRITES, Ops::READS][random.usize(0..4)];
            let control = runtime.control();
            match random.u8(0..16) {
                0..=2 => faults.set(ops, Fault::Down),
                3 => faults.set(ops, Fault::Hung),
                4 => faults.set(Op::Apply, Fault::AppliedHung),
                5 => faults.set(Op::Apply, Fault::ReadOnly),
                6 => faults.set(ops, Fault::Slow(MS * random.u32(1..250))),
                7 => {
                    let breaker = control.breaker(store.name()).expect("it is there");
                    breaker.force_open("rehearsal", Some(MS * random.u32(1..800)));
                }
                8 if self.weather.modes => {
                    let modes = [Mode::ReadOnly, Mode::LocalStorage, Mode::QueueWrites, Mode::MemoryOnly];
                    let modes = &modes[..if self.weather.crashes == 0 { 4 } else { 3 }];
                    let mode = modes[random.usize(0..modes.len())];
                    let _ = control.set_mode(mode, "rehearsal", Some(MS * random.u32(1..1_500))).await;
                }
                9..=10 if self.weather.kills => {
                    let actors = ["fallback", "saga", "sync", "prober", "breaker-graph", "core"];
                    control.kill_actor(actors[random.usize(0..actors.len())]);
                }
                _ => faults.heal(Ops::ALL),
            }
        }
    }

    /// Fair weather until nothing is owed, and then the verdict.
    async fn end(&self, runtime: &Runtime) {
        for (store, faults) in &self.stores {
            faults.replan(0, FaultPlan::new());
            faults.heal(Ops::ALL);
            let _ = runtime.control().breaker(store.name()).map(|breaker| breaker.lift());
        }
        let handle = runtime.handle();
        let _ = runtime.control().clear_mode().await;
        let began = Instant::now();
        while (handle.status().owed > 0 || handle.status().in_flight > 0) && began.elapsed() < 300_000 * MS {
            sleep(500 * MS).await;
            for letter in handle.dead_letters() {
                let _ = handle.retry_dead_letter(letter.operation, letter.backend).await;
            }
        }
        // Writes that a store does long after it said that it did not.
        sleep(10_000 * MS).await;
        let status = handle.status();
        if (status.owed, status.owed_bytes, status.in_flight) != (0, 0, 0) {
            self.history.problem(format!("it does not come to rest: {status:?}, {:?}", handle.dead_letters()));
        }
        for (store, _) in &self.stores {
            let Ok(breaker) = runtime.control().breaker(store.name()) else { continue };
            let s = breaker.snapshot();
            let out = s.successful + s.failed + s.ignored + s.cancelled + s.panicked + s.expired + s.in_flight;
            if s.admitted != out {
                self.history.problem(format!("calls went missing: {s:?}"));
            }
        }
    }

    async fn verdict(&self, handle: &Handle) -> Vec<String> {
        let keys: Vec<Key> = (0..KEYS).map(key).collect();
        let mut held = Vec::new();
        for (store, _) in &self.stores {
            let stored = store.read(&keys).await.expect("a store in memory is read");
            let stored = keys.iter().cloned().zip(stored);
            let stored: BTreeMap<_, _> = stored
                .filter_map(|(key, stored)| stored.map(|stored| (key, (stored.version, stored.record))))
                .collect();
            held.push((store.name(), stored));
        }
        let held: Vec<_> = held.iter().map(|(name, held)| (name.as_str(), held.clone())).collect();
        self.history.judge(|operation| handle.outcome(operation), &held)
    }
}

fn plan(weather: Weather) -> FaultPlan {
    let plan = FaultPlan::new()
        .with(Ops::WRITES, 0.03, Fault::AppliedReplyLost)
        .with(Ops::WRITES, 0.02, Fault::LateZombie(700 * MS))
        .with(Ops::WRITES, 0.02, Fault::LateZombie(30 * MS))
        .with(Ops::ALL, 0.02, Fault::Reset)
        .with(Ops::ALL, 0.02, Fault::Error(ErrorKind::Refused))
        .with(Ops::ALL, 0.03, Fault::Down)
        .with(Ops::ALL, 0.01, Fault::Panic)
        .with(Ops::ALL, 0.3, Fault::Slow(MS))
        .with(Ops::ALL, 0.3, Fault::Slow(12 * MS));
    if weather.permanent { plan.with(Ops::WRITES, 0.04, Fault::Error(ErrorKind::Permanent)) } else { plan }
}

fn key(n: u64) -> Key {
    Key::new(format!("key-{n}"))
}

struct Client {
    number: u64,
    handle: Handle,
    history: Arc<History>,
    random: fastrand::Rng,
}

impl Client {
    async fn run(mut self, requests: u32) {
        for request in 0..requests {
            if self.random.bool() {
                sleep(MS * self.random.u32(0..200)).await;
            }
            if self.random.u8(0..3) == 0 {
                self.read().await;
            } else {
                self.write(request).await;
            }
        }
    }

    async fn read(&mut self) {
        let key = key(self.random.u64(0..KEYS));
        let floor = self.history.floor(&key);
        let began = Instant::now();
        let answer = timeout(10 * WRITE_TIMEOUT, self.handle.retrieve(key.clone())).await;
        self.in_time("read", began, WRITE_TIMEOUT);
        match answer {
            Ok(Ok(retrieved)) => self.history.read(&key, floor, retrieved),
            Ok(Err(_)) => {}
            Err(_) => self.history.problem("a read without an answer".to_owned()),
        }
    }

    async fn write(&mut self, request: u32) {
        let mut write = self.draw(request);
        if self.random.u8(0..4) == 0 {
            write = write.with_timeout(MS * self.random.u32(1..300));
        }
        for _ in 0..3 {
            self.history.asked(&write);
            let began = Instant::now();
            let Ok(answer) = timeout(10 * WRITE_TIMEOUT, self.handle.write(write.clone())).await else {
                return self.history.problem("a write without an answer".to_owned());
            };
            self.in_time("write", began, write.timeout.unwrap_or(WRITE_TIMEOUT));
            self.history.told(write.operation, &answer);
            let again = match answer {
                // Sent again although it is there: a caller that lost the answer.
                Ok(_) => self.random.u8(0..10) == 0,
                Err(Refusal::Unknown { .. } | Refusal::RolledBack { .. }) => self.random.bool(),
                Err(_) => false,
            };
            if !again {
                return;
            }
            sleep(MS * self.random.u32(0..300)).await;
        }
    }

    fn draw(&mut self, request: u32) -> Write {
        let number = self.number * 10_000 + u64::from(request);
        let first = self.random.u64(0..KEYS);
        let record = |n: u64| Record::new(key(n)).with("stored", number);
        let priority = [Priority::Low, Priority::Normal, Priority::High][self.random.usize(0..3)];
        let write = match self.random.u8(0..10) {
            0..=2 => Write::store(record(first)),
            3..=5 => {
                // Its own property, and one that all of them change.
                let own = format!("by-{}", self.number);
                Write::update(key(first), Properties::new().with(own, number).with("last", number))
            }
            6..=7 => Write::delete(key(first)),
            _ => Write::store_batch([record(first), record((first + 1) % KEYS)]),
        };
        write.with_priority(priority)
    }

    fn in_time(&self, what: &str, began: Instant, limit: Duration) {
        if began.elapsed() > limit + 2 * MS {
            self.history.problem(format!("a {what} took {:?} of {limit:?}", began.elapsed()));
        }
    }
}

/// Runs one seed and gives what went wrong.
fn problems_of(seed: u64) -> (Vec<String>, [usize; 3], Weather) {
    let mut random = fastrand::Rng::with_seed(seed);
    // The jitter of the runtime itself.
    fastrand::seed(seed);
    let weather = Weather::draw(&mut random);
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime in one thread is built");
    let world = World::new(seed, weather);
    let run = async {
        let done = AssertUnwindSafe(timeout(Duration::from_secs(3_600), world.run(&mut random))).catch_unwind().await;
        match done {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(_)) => vec!["it hangs".to_owned()],
            Err(_) => vec!["it panicked".to_owned()],
        }
    };
    let mut problems = executor.block_on(run);
    problems.extend(world.history.problems());
    (problems, world.history.counts(), weather)
}

#[test]
fn whatever_the_schedule_every_promise_is_kept() {
    quiet_injected_panics();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEAWALL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEAWALL_SEEDS").unwrap_or(150),
    };
    let mut broken = Vec::new();
    let mut totals = [0; 3];
    for seed in seeds.clone() {
        let (problems, counts, weather) = catch_unwind(|| problems_of(seed)).expect("a seed is run");
        totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        if !problems.is_empty() {
            println!("seed {seed}: {weather:?}\n  {}", problems.join("\n  "));
            broken.push(seed);
        }
    }
    let [held, refused, unknown] = totals;
    println!("{} seeds: {held} writes held, {refused} refused, {unknown} unknown", seeds.end - seeds.start);
    assert!(
        broken.is_empty(),
        "seeds {broken:?} broke a promise; replay one with SEAWALL_SEED={} cargo test --test schedules",
        broken[0]
    );
}

/// Panics that are part of the plan need no backtrace.
fn quiet_injected_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<&str>().copied().unwrap_or_default();
        if !text.contains("injected") {
            usual(panic);
        }
    }));
}
