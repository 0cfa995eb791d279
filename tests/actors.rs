//! Actors die, by force and by panics around them, and nobody outside can tell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use ractor::{ActorRef, call_t};
use seawall::backend::{Backend, ErrorKind};
use seawall::backends::{
    Fault, FaultPlan, Faults, FaultyBackend, GraphBackend, GraphConfig, Op, Ops, VectorBackend, VectorConfig,
};
use seawall::breaker::BreakerState;
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::fallback::{Mode, ModeCause};
use seawall::ledger::{JournalRecord, MemoryJournal};
use seawall::operation::{OperationId, Outcome, Search, Version, Write};
use seawall::record::{Key, Record};
use seawall::supervisor::ChildStatus;
use seawall::{Handle, Refusal, Request, Runtime};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const CLIENTS: u64 = 16;
/// Far beyond every deadline of a request.
const PATIENCE_MS: u64 = 120_000;

/// Two stores in memory, and what makes them fail.
struct Stores {
    graph: Arc<GraphBackend>,
    vector: Arc<VectorBackend>,
    graph_faults: Faults,
    vector_faults: Faults,
}

impl Stores {
    fn new(seed: u64, plan: &FaultPlan) -> Self {
        Self {
            graph: Arc::new(GraphBackend::in_memory(GraphConfig::default())),
            vector: Arc::new(VectorBackend::in_memory(VectorConfig::default())),
            graph_faults: Faults::seeded(seed, plan.clone()),
            vector_faults: Faults::seeded(seed + 1, plan.clone()),
        }
    }

    async fn start(&self, config: Config, found: Vec<JournalRecord>) -> (Runtime, Arc<MemoryJournal>) {
        let journal = Arc::new(MemoryJournal::recording());
        let runtime = Runtime::builder()
            .config(config)
            .backend(FaultyBackend::around(Arc::clone(&self.graph), &self.graph_faults))
            .backend(FaultyBackend::around(Arc::clone(&self.vector), &self.vector_faults))
            .journal(Arc::clone(&journal) as _, found)
            .start()
            .await
            .expect("it starts");
        (runtime, journal)
    }

    fn heal(&self) {
        for faults in [&self.graph_faults, &self.vector_faults] {
            faults.replan(0, FaultPlan::new());
            faults.heal(Ops::ALL);
        }
    }

    /// What both stores hold, which must be the same.
    async fn contents(&self, keys: &[Key]) -> BTreeMap<Key, Record> {
        let of = |stored: Vec<Option<seawall::backend::Stored>>| -> BTreeMap<Key, Record> {
            let records = stored.into_iter().map(|stored| stored.and_then(|stored| stored.record));
            keys.iter().cloned().zip(records).filter_map(|(key, record)| Some((key, record?))).collect()
        };
        let graph = of(self.graph.read(keys).await.expect("a store in memory is read"));
        let vector = of(self.vector.read(keys).await.expect("a store in memory is read"));
        assert!(graph == vector, "the stores differ");
        graph
    }
}

/// Restarts without end and without long waits, and breakers that heal soon.
fn patient() -> Config {
    let mut config = Config::default();
    config.supervisor.intensity = 1_000_000;
    config.supervisor.backoff_base = MS;
    config.supervisor.backoff_max = 5 * MS;
    config.breaker.reset_timeout = 50 * MS;
    config.sync.backoff = 5 * MS;
    config.sync.max_backoff = 50 * MS;
    config.call.retry.backoff = 2 * MS;
    config.call.retry.max_backoff = 20 * MS;
    config.health.interval = 20 * MS;
    config.health.timeout = 20 * MS;
    config
}

/// The names of all actors, of those that supervise too.
fn names(actors: &[ChildStatus]) -> Vec<String> {
    actors.iter().flat_map(|actor| names(&actor.children).into_iter().chain([actor.name.clone()])).collect()
}

fn all_alive(actors: &[ChildStatus]) -> bool {
    actors.iter().all(|actor| actor.alive && all_alive(&actor.children))
}

fn restarts_of(name: &str, actors: &[ChildStatus]) -> u64 {
    let own =
        |actor: &ChildStatus| if actor.name == name { actor.restarts } else { restarts_of(name, &actor.children) };
    actors.iter().map(own).sum()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            sleep(5 * MS).await;
        }
    };
    timeout(Duration::from_secs(120), waited).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// A client that keeps to its own keys, and knows what they must hold.
async fn client(number: u64, requests: u64, gateway: ActorRef<Request>, handle: Handle) -> BTreeMap<Key, OperationId> {
    let mut last = BTreeMap::new();
    for request in 0..requests {
        let key = Key::new(format!("key-{number}-{}", request % 5));
        let write = Write::store(Record::new(key.clone()).with("n", request).with_embedding([number as f32, 1.0]));
        let operation = write.operation;
        match request % 4 {
            0 => {
                let reply = call_t!(gateway, Request::Store, PATIENCE_MS, write);
                let _ = reply.expect("a reply from the ref that was held all the time");
                last.insert(key, operation);
            }
            1 => {
                let _ = handle.write(write).await;
                last.insert(key, operation);
            }
            2 => drop(call_t!(gateway, Request::Retrieve, PATIENCE_MS, key).expect("a reply")),
            _ => {
                let search = Search::near([1.0, 1.0]).limit(3);
                drop(call_t!(gateway, Request::Search, PATIENCE_MS, search).expect("a reply"));
                drop(handle.retrieve(key).await);
            }
        }
        if request % 16 == 0 {
            call_t!(gateway, Request::Status, PATIENCE_MS).expect("a reply");
        }
    }
    last
}

/// Kills everybody in turn, so many times.
async fn kill_all(runtime: &Runtime, kills: u64, stop: &AtomicBool) -> u64 {
    let all = names(&runtime.control().actors());
    assert!(
        ["fallback", "saga", "sync", "prober", "breaker-graph", "breaker-vector"]
            .iter()
            .all(|n| all.contains(&(*n).to_owned()))
    );
    let mut killed = 0;
    for name in all.iter().cycle() {
        killed += u64::from(runtime.control().kill_actor(name));
        sleep(MS).await;
        if killed >= kills && stop.load(Ordering::Relaxed) {
            break;
        }
    }
    killed
}

/// A user's subscriber that panics at an event, again and again.
fn panicking_subscribers(runtime: &Runtime) -> Vec<tokio::task::JoinHandle<()>> {
    let subscribe = |number: u64| {
        let mut events = runtime.subscribe();
        tokio::spawn(async move {
            for _ in 0..number {
                events.next().await;
            }
            panic!("injected into a subscriber");
        })
    };
    (1..20).map(subscribe).collect()
}

async fn nobody_notices_that_actors_die(requests: u64, kills: u64) {
    quiet_injected_panics();
    let plan = FaultPlan::new().with(Ops::ALL, 0.02, Fault::Panic).with(Ops::ALL, 0.3, Fault::Slow(MS));
    let stores = Stores::new(11, &plan);
    let (runtime, _) = stores.start(patient(), Vec::new()).await;
    let subscribers = panicking_subscribers(&runtime);
    let stop = AtomicBool::new(false);
    let clients = async {
        let clients =
            (0..CLIENTS).map(|number| tokio::spawn(client(number, requests, runtime.gateway(), runtime.handle())));
        let ended = join_all(clients).await;
        stop.store(true, Ordering::Relaxed);
        ended.into_iter().flat_map(|last| last.expect("every request has a reply")).collect::<BTreeMap<_, _>>()
    };
    let (last, killed) = tokio::join!(clients, kill_all(&runtime, kills, &stop));
    assert!(killed >= kills);
    assert!(join_all(subscribers).await.into_iter().all(|ended| ended.is_err_and(|error| error.is_panic())));

    stores.heal();
    let handle = runtime.handle();
    until("everybody is back", || all_alive(&runtime.control().actors())).await;
    until("nothing is owed", || handle.status().owed == 0 && handle.status().in_flight == 0).await;
    for name in ["graph", "vector"] {
        let breaker = runtime.control().breaker(name).expect("it is there");
        // A probe may be out.
        until("every admitted call is accounted for", || {
            let s = breaker.snapshot();
            s.admitted == s.successful + s.failed + s.ignored + s.cancelled + s.panicked + s.expired + s.in_flight
        })
        .await;
    }
    let keys: Vec<Key> = last.keys().cloned().collect();
    let contents = stores.contents(&keys).await;
    for (key, operation) in &last {
        // Whoever wrote last, if that came to anything, is what is there.
        if let Outcome::Committed(_) = handle.outcome(*operation) {
            assert!(contents.contains_key(key), "{key} is lost");
        }
    }
    let report = runtime.shutdown().await;
    assert!(report.killed.is_empty() && report.cancelled == 0, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn under_load_every_actor_is_killed_hundreds_of_times_and_every_request_is_answered() {
    nobody_notices_that_actors_die(200, 1_500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_on_several_threads() {
    nobody_notices_that_actors_die(60, 300).await;
}

#[tokio::test(start_paused = true)]
async fn what_actors_know_outlives_them() {
    let stores = Stores::new(1, &FaultPlan::new());
    let mut config = Config::default();
    config.supervisor.intensity = 1_000_000;
    config.supervisor.backoff_base = MS;
    config.supervisor.backoff_max = 5 * MS;
    config.breaker.reset_timeout = Duration::from_secs(600);
    let (runtime, _) = stores.start(config, Vec::new()).await;
    let (handle, control) = (runtime.handle(), runtime.control());

    // A dead letter: refused for good when its turn came.
    control.set_mode(Mode::LocalStorage, "to queue", None).await.expect("is set");
    let doomed = handle.store(Record::new("doomed")).await.expect("is queued");
    stores.vector_faults.next(Op::Apply, 1, Fault::Error(ErrorKind::Permanent));
    control.clear_mode().await.expect("is lifted");
    until("a dead letter", || handle.status().dead_letters == 1).await;
    // An open breaker, by failures, and writes that are owed.
    stores.vector_faults.set(Ops::ALL, Fault::Down);
    let vector = control.breaker("vector").expect("it is there");
    while vector.view().state != BreakerState::Open {
        let _ = handle.store(Record::new("probe")).await;
    }
    let opened = Instant::now();
    until("writes are queued", || handle.status().mode == Mode::QueueWrites).await;
    for n in 0..20 {
        handle.store(Record::new(format!("owed-{n}")).with("n", n)).await.expect("is queued");
    }
    // A breaker that is forced open, and a mode that was set by hand, both with an end.
    let graph = control.breaker("graph").expect("it is there");
    graph.force_open("rehearsal", Some(300 * SECOND));
    control.set_mode(Mode::ReadOnly, "by hand", Some(200 * SECOND)).await.expect("is set");
    let began = Instant::now();
    let owed = handle.status().owed;
    assert!(owed >= 21, "{owed}");

    for round in 0..100 {
        for name in names(&control.actors()) {
            control.kill_actor(&name);
        }
        sleep(SECOND).await;
        until("everybody is back", || all_alive(&control.actors())).await;
        let status = handle.status();
        assert_eq!((status.owed, status.dead_letters), (owed, 1), "round {round}");
        assert_eq!(handle.dead_letters()[0].operation, doomed.operation);
        assert_eq!(status.mode, Mode::ReadOnly);
        let fallback = control.fallback();
        assert!(matches!(fallback.cause, ModeCause::Manual { .. }), "{fallback:?}");
        let left = fallback.manual_remaining.expect("it ends");
        assert!((left + began.elapsed()).abs_diff(200 * SECOND) < SECOND, "{left:?}");
        assert_eq!(graph.view().state, BreakerState::ForcedOpen);
        let left = vector.snapshot().retry_after.expect("it is open");
        assert!((left + opened.elapsed()).abs_diff(600 * SECOND) < SECOND, "{left:?}");
        assert!(matches!(handle.store(Record::new("x")).await, Err(Refusal::ReadOnly { .. })));
    }
    stores.heal();
    sleep((202 * SECOND).saturating_sub(began.elapsed())).await;
    assert_ne!(handle.status().mode, Mode::ReadOnly);
    sleep((302 * SECOND).saturating_sub(began.elapsed())).await;
    assert_eq!(graph.view().state, BreakerState::Closed);
    sleep((660 * SECOND).saturating_sub(opened.elapsed())).await;
    assert_eq!((vector.view().state, handle.status().owed), (BreakerState::Closed, 1));
    assert!(handle.retry_dead_letter(doomed.operation, "vector".into()).await.expect("is written down"));
    until("nothing is owed", || handle.status().owed == 0).await;
    let keys: Vec<Key> = (0..20).map(|n| Key::new(format!("owed-{n}"))).chain(["doomed".into()]).collect();
    assert_eq!(stores.contents(&keys).await.len(), 21);
}

#[tokio::test(start_paused = true)]
async fn too_many_deaths_end_the_runtime_with_a_reason_and_nothing_hangs() {
    for actor in ["prober", "core", "sync", "breaker-graph"] {
        let stores = Stores::new(3, &FaultPlan::new().with(Ops::ALL, 0.5, Fault::Slow(3 * MS)));
        let (runtime, _) = stores.start(Config::default(), Vec::new()).await;
        let began = Instant::now();
        let (gateway, handle) = (runtime.gateway(), runtime.handle());
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (handle, stop, answered) = (handle.clone(), Arc::clone(&stop), Arc::clone(&answered));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = handle.store(Record::new(format!("key-{number}"))).await;
                        sleep(200 * MS).await;
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let killer = async {
            loop {
                runtime.control().kill_actor(actor);
                sleep(10 * MS).await;
            }
        };
        let escalation = tokio::select! {
            () = killer => None,
            escalation = timeout(600 * SECOND, runtime.failed()) => escalation.ok(),
        };
        let escalation = escalation.unwrap_or_else(|| panic!("{actor} dies for ever"));
        assert!(!escalation.reason.is_empty(), "{escalation:?}");
        println!("{actor}: {escalation:?} after {:?}", began.elapsed());
        let reply = call_t!(gateway, Request::Store, PATIENCE_MS, Record::new("late").into()).expect("a reply");
        assert!(matches!(reply, Err(Refusal::ShuttingDown)), "{reply:?}");
        assert!(matches!(handle.retrieve("late").await, Err(Refusal::ShuttingDown)));
        until("nobody is inside", || handle.status().in_flight == 0).await;
        assert!(timeout(10 * SECOND, runtime.control().set_mode(Mode::ReadOnly, "too late", None)).await.is_ok());
        stop.store(true, Ordering::Relaxed);
        let all = timeout(60 * SECOND, join_all(clients)).await.expect("no client hangs");
        assert!(all.into_iter().all(|client| client.is_ok()) && answered.load(Ordering::Relaxed) > CLIENTS);
        timeout(60 * SECOND, runtime.shutdown()).await.expect("it stops");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_under_load_answers_everybody_and_keeps_what_was_acknowledged() {
    quiet_injected_panics();
    for seed in 0..20 {
        let plan = FaultPlan::new()
            .with(Ops::WRITES, 0.2, Fault::Down)
            .with(Ops::WRITES, 0.05, Fault::AppliedReplyLost)
            .with(Ops::ALL, 0.5, Fault::Slow(7 * MS));
        let stores = Stores::new(seed, &plan);
        let (runtime, journal) = stores.start(patient(), Vec::new()).await;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (gateway, handle) = (runtime.gateway(), runtime.handle());
                tokio::spawn(async move {
                    let mut acknowledged: Vec<(Key, Version)> = Vec::new();
                    for n in 0.. {
                        let key = Key::new(format!("key-{number}-{n}"));
                        let write = Write::store(Record::new(key.clone()).with("n", n));
                        let answer = if n % 2 == 0 {
                            handle.write(write).await
                        } else {
                            // The ref ends with its runtime, and then says so.
                            let reply = call_t!(gateway, Request::Store, PATIENCE_MS, write);
                            reply.unwrap_or(Err(Refusal::ShuttingDown))
                        };
                        match answer {
                            Ok(receipt) => acknowledged.push((key, receipt.version)),
                            Err(Refusal::ShuttingDown) => break,
                            Err(_) => {}
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        sleep(MS * u32::try_from(seed * 17).expect("small")).await;
        let report = timeout(120 * SECOND, runtime.shutdown()).await.expect("it stops");
        assert!(report.killed.is_empty() && report.cancelled == 0 && report.journal_closed, "{report:?}");
        let acknowledged = timeout(60 * SECOND, join_all(clients)).await.expect("every client has its answer");
        let acknowledged: Vec<_> =
            acknowledged.into_iter().flat_map(|client| client.expect("no client fails")).collect();

        stores.heal();
        let (runtime, _) = stores.start(patient(), journal.records()).await;
        let handle = runtime.handle();
        assert_eq!(handle.status().owed, report.owed);
        until("nothing is owed", || handle.status().owed == 0).await;
        let keys: Vec<Key> = acknowledged.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(stores.contents(&keys).await.len(), keys.len(), "seed {seed}");
        runtime.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_death_is_an_event_and_a_slow_subscriber_is_told_what_it_missed() {
    let stores = Stores::new(5, &FaultPlan::new());
    let (runtime, _) = stores.start(patient(), Vec::new()).await;
    let (mut events, mut slow) = (runtime.subscribe(), runtime.subscribe());
    let mut expected = events.start().sequence;
    let mut restarts = 0;
    for round in 0..400 {
        let restarted =
            || all_alive(&runtime.control().actors()) && restarts_of("sync", &runtime.control().actors()) > round;
        assert!(runtime.control().kill_actor("sync"));
        until("it is back", restarted).await;
        while let Some(update) = events.try_next() {
            let Update::Event(event) = update else { panic!("a subscriber that keeps up misses nothing") };
            expected += 1;
            assert_eq!(event.sequence, expected, "round {round}");
            restarts += u64::from(matches!(&event.kind, EventKind::ActorRestarted { actor, .. } if actor == "sync"));
        }
    }
    assert_eq!(restarts, 400);
    let mut seen = 0;
    while let Some(update) = slow.try_next() {
        seen += match update {
            Update::Event(_) => 1,
            Update::Lagged { missed } => missed,
        };
    }
    assert_eq!(seen, expected - slow.start().sequence);
}

/// Panics that are part of the plan need no backtrace.
fn quiet_injected_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.payload().downcast_ref::<&str>().copied().unwrap_or_default();
            if !text.contains("injected") {
                usual(panic);
            }
        }));
    });
}
