//! A store that lost what it had confirmed is given it again: P1 and P4 beyond the failure model.

#![allow(clippy::disallowed_methods, reason = "a replay is asked for by the wall clock")]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use seawall::backend::{Applied, Backend, BackendError, BackendName, FencedWrite, Health, Stored};
use seawall::backends::{Fault, GraphBackend, GraphConfig};
use seawall::config::Config;
use seawall::event::EventKind;
use seawall::fallback::Mode;
use seawall::ledger::RetentionError;
use seawall::operation::{Version, Write};
use seawall::record::Key;
use seawall::sync::ReplayError;
use seawall::{Refusal, Runtime};
use support::{History, Rig, Site, n, properties, record};

/// A store that can be put back to any state that it was in.
struct Forgetful {
    name: &'static str,
    states: Mutex<Vec<BTreeMap<Key, Stored>>>,
}

impl Forgetful {
    fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self { name, states: Mutex::new(vec![BTreeMap::new()]) })
    }

    /// The last writes are gone.
    fn forget(&self, writes: usize) {
        let mut states = self.states.lock().unwrap();
        let left = states.len().saturating_sub(writes).max(1);
        states.truncate(left);
    }

    fn now(&self) -> BTreeMap<Key, Stored> {
        self.states.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Backend for Forgetful {
    fn name(&self) -> BackendName {
        self.name.into()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let (mut held, mut superseded_by) = (self.now(), None);
        for change in &*write.changes {
            let stored = held.get(change.key()).cloned().unwrap_or(Stored { version: Version(0), record: None });
            if write.passes(stored.version) {
                let record = change.apply_to(stored.record);
                held.insert(change.key().clone(), Stored { version: write.version, record });
            } else {
                superseded_by = superseded_by.max(Some(stored.version));
            }
        }
        self.states.lock().unwrap().push(held);
        Ok(Applied { superseded_by })
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        let held = self.now();
        Ok(keys.iter().map(|key| held.get(key).cloned()).collect())
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        Ok(Health::Healthy)
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Ok(self.now().values().map(|stored| stored.version).max().unwrap_or_default())
    }
}

/// Two such stores and what runs over them.
async fn forgetful() -> (Rig, [Arc<Forgetful>; 2]) {
    let stores = [Forgetful::new("graph"), Forgetful::new("vector")];
    let site = |at: usize| Site::new(stores[at].name, Arc::clone(&stores[at]) as _);
    (Rig::over(site(0), site(1), Config::default()).await, stores)
}

async fn replayed(rig: &Rig) -> seawall::sync::Replayed {
    let control = rig.runtime().control();
    let replay = control.replay_since(SystemTime::UNIX_EPOCH);
    let replayed = tokio::time::timeout(support::PATIENCE, replay).await;
    replayed.expect("it returns").expect("it is owed")
}

#[derive(Clone, Debug)]
enum Do {
    Put(u8),
    Merge(u8, u8),
    Delete(u8),
    Both(u8, u8),
    /// A write that one store does not take: undone.
    Undone(u8, usize),
    /// A store is down, and what it misses is owed.
    Down(usize),
    Up,
    Forget(usize, usize),
    /// A replay that is awaited.
    Replay,
    /// A replay that is given up, or cut off by a crash.
    Begin(u8),
    Crash,
}

fn any_do() -> impl Strategy<Value = Do> {
    let key = 0..4_u8;
    prop_oneof![
        3 => key.clone().prop_map(Do::Put),
        4 => (key.clone(), 0..3_u8).prop_map(|(key, name)| Do::Merge(key, name)),
        1 => key.clone().prop_map(Do::Delete),
        2 => (key.clone(), key.clone()).prop_map(|(a, b)| Do::Both(a, b)),
        1 => (key, 0..2_usize).prop_map(|(key, at)| Do::Undone(key, at)),
        1 => (0..2_usize).prop_map(Do::Down),
        2 => Just(Do::Up),
        3 => (0..2_usize, 1..12_usize).prop_map(|(at, writes)| Do::Forget(at, writes)),
        1 => Just(Do::Replay),
        1 => (0..6_u8).prop_map(Do::Begin),
        1 => Just(Do::Crash),
    ]
}

async fn model(steps: Vec<Do>) -> Result<(), TestCaseError> {
    let (mut rig, stores) = forgetful().await;
    let mut history = History::default();
    let mut down = false;
    for (count, step) in (1_u64..).zip(steps) {
        let handle = rig.handle();
        let site = |rig: &Rig, at: usize| if at == 0 { rig.graph.faults.clone() } else { rig.vector.faults.clone() };
        let key = |key: u8| format!("k{key}");
        let write: Option<Write> = match step {
            Do::Put(k) => Some(record(&key(k), count).into()),
            Do::Merge(k, name) => Some(Write::update(key(k), properties(&format!("p{name}"), count))),
            Do::Delete(k) => Some(Write::delete(key(k))),
            Do::Both(a, b) if a != b => Some(Write::store_batch([record(&key(a), count), record(&key(b), count)])),
            Do::Undone(k, at) if !down => {
                // The fault is for this write, and not for what is owed.
                rig.quiet().await;
                site(&rig, at).next(
                    seawall::backends::Op::Apply,
                    1,
                    Fault::Error(seawall::backend::ErrorKind::Permanent),
                );
                Some(Write::update(key(k), properties("undone", count)))
            }
            Do::Down(at) if !down => {
                rig.mode(Mode::QueueWrites).await;
                site(&rig, at).set(seawall::backends::Ops::ALL, Fault::Down);
                down = true;
                None
            }
            Do::Up if down => {
                rig.recover().await;
                down = false;
                None
            }
            Do::Forget(at, writes) => {
                stores[at].forget(writes);
                None
            }
            // It waits for a compensation that a store owes.
            Do::Replay if !down => {
                replayed(&rig).await;
                None
            }
            Do::Begin(ms) => {
                let control = rig.runtime().control();
                let replay = control.replay_since(SystemTime::UNIX_EPOCH);
                let _ = tokio::time::timeout(Duration::from_millis(ms.into()), replay).await;
                if ms % 2 == 0 {
                    rig.restart().await;
                }
                None
            }
            Do::Crash => {
                rig.restart().await;
                None
            }
            _ => None,
        };
        if let Some(write) = write {
            match history.write(&handle, write).await {
                Ok(_) | Err(Refusal::RolledBack { .. } | Refusal::Rejected { .. } | Refusal::Unavailable { .. }) => {}
                Err(refusal) => return Err(TestCaseError::fail(refusal.to_string())),
            }
        }
    }
    rig.recover().await;
    replayed(&rig).await;
    history.assert_read(&rig).await;
    rig.quiet().await;
    history.assert_held(&rig).await;
    prop_assert_eq!(rig.handle().status().dead_letters, 0);
    // Again, it changes nothing.
    let before = stores.each_ref().map(|store| store.now());
    replayed(&rig).await;
    rig.quiet().await;
    prop_assert!(before == stores.each_ref().map(|store| store.now()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_store_forgets_a_replay_makes_it_what_was_acknowledged(
        steps in prop::collection::vec(any_do(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(model(steps))?;
    }
}

#[tokio::test(start_paused = true)]
async fn writes_that_a_store_took_after_its_loss_do_not_keep_what_it_lost_away() {
    let (rig, [graph, _]) = forgetful().await;
    let mut history = History::default();
    history.write(&rig.handle(), record("a", 1)).await.expect("is stored");
    history.write(&rig.handle(), record("gone", 1)).await.expect("is stored");
    history.write(&rig.handle(), Write::delete("gone")).await.expect("is deleted");
    graph.forget(2);
    graph.forget(1);
    history.write(&rig.handle(), Write::update("a", properties("later", 2))).await.expect("is merged");
    assert_eq!(n(rig.graph.record("a").await), None, "it was merged into nothing");
    let replayed = replayed(&rig).await;
    assert_eq!((replayed.entries, replayed.keys, replayed.backends.len()), (4, 2, 2));
    rig.quiet().await;
    history.assert_held(&rig).await;
    assert_eq!(rig.both("gone").await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_again_is_owed_in_sight_and_read_before_it_has_arrived() {
    let (mut rig, [graph, vector]) = forgetful().await;
    let mut history = History::default();
    for k in 0..20 {
        history.write(&rig.handle(), record(&format!("k{k}"), k)).await.expect("is stored");
    }
    graph.forget(15);
    vector.forget(15);
    rig.mode(Mode::QueueWrites).await;
    rig.graph.faults.set(seawall::backends::Op::Apply, Fault::Down);
    rig.vector.faults.set(seawall::backends::Op::Apply, Fault::Down);
    let mut events = rig.runtime().subscribe();
    replayed(&rig).await;
    assert_eq!(rig.handle().status().owed, 20);
    history.assert_read(&rig).await;
    rig.restart().await;
    assert_eq!(rig.handle().status().owed, 20, "a crash does not forget it");
    history.assert_read(&rig).await;
    let mut seen = Vec::new();
    while let Some(update) = events.next().await {
        let seawall::event::Update::Event(event) = update else { panic!("it was read in time") };
        match &event.kind {
            EventKind::ReplayStarted { entries, .. } => seen.push(("started", *entries)),
            EventKind::ReplayOwed { keys, .. } => seen.push(("owed", *keys)),
            _ => {}
        }
    }
    assert_eq!(seen, [("started", 20), ("owed", 20)]);
    rig.recover().await;
    history.assert_held(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_finished_is_given_again_to_a_store_that_had_it() {
    let (rig, [graph, vector]) = forgetful().await;
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    rig.handle().store(record("a", 1)).await.expect("is queued");
    graph.forget(1);
    assert_eq!(replayed(&rig).await.entries, 0, "it is finished nowhere");
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(1));
    assert!(vector.now().len() == 1);
}

#[tokio::test(start_paused = true)]
async fn one_backend_can_be_named_and_an_unknown_one_is_refused() {
    let (rig, [graph, vector]) = forgetful().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    let before = vector.states.lock().unwrap().len();
    graph.forget(1);
    let control = rig.runtime().control();
    control.replay_backend_since("graph", SystemTime::UNIX_EPOCH).await.expect("it is owed");
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(1));
    assert_eq!(vector.states.lock().unwrap().len(), before, "the other was not touched");
    let unknown = control.replay_backend_since("nobody", SystemTime::UNIX_EPOCH).await;
    assert!(matches!(unknown, Err(ReplayError::Backend(_))));
}

#[tokio::test]
async fn a_write_to_a_single_backend_is_kept_on_disk_and_given_again_after_restarts() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Forgetful::new("graph"));
    let mut config = Config::default();
    config.queue.retention = Duration::from_secs(3_600);
    let start = || {
        let builder = Runtime::builder().config(config.clone()).data_dir(dir.path());
        builder.shared_backend(Arc::clone(&store) as _).start()
    };
    let runtime = start().await.expect("starts");
    let before = SystemTime::now();
    for k in 0..50 {
        runtime.handle().store(record(&format!("k{k}"), k)).await.expect("is stored");
    }
    drop(runtime);
    store.forget(40);
    let runtime = start().await.expect("starts");
    let replayed = runtime.control().replay_since(before).await.expect("it is owed");
    assert!(replayed.keys >= 40, "{replayed:?}");
    let handle = runtime.handle();
    tokio::time::timeout(support::PATIENCE, async {
        while handle.status().owed > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is drained");
    assert_eq!(store.now().len(), 50);
    assert!(runtime.shutdown().await.journal_closed);
}

#[tokio::test]
async fn without_retention_a_replay_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let graph = GraphBackend::in_memory(GraphConfig::default());
    let runtime = Runtime::builder().data_dir(dir.path()).backend(graph).start().await.expect("starts");
    let refused = runtime.control().replay_since(SystemTime::now()).await;
    assert_eq!(refused, Err(ReplayError::Retention(RetentionError::Off)));
}
