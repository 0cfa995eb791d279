//! The stores, which outlive the processes that call them, and the wires in between, on which anything can happen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use seawall::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, ErrorKind, Fence, FencedWrite, Health, Role, Stored,
    Transaction, Transactions,
};
use seawall::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::breaker::{BreakerStateStore, MemoryStateStore, SavedBreaker, StoreError};
use seawall::operation::{Hit, OperationId, Search, Traversal, Version};
use seawall::record::{Key, Properties, Record};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::disk::Disk;
use crate::scene::{Life, Scene, locked, trace};
use crate::weather::{Flaw, Habits, MS, time_between, time_up_to};

/// The message of panics that are part of the plan.
pub(crate) const PLANNED: &str = "a panic that was planned";

/// The best-effort store.
pub(crate) const COPY: &str = "copy";

/// What is wrong with a store as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Well,
    Down,
    Hung,
    Slow(Duration),
    ReadOnly,
}

/// One store.
pub(crate) struct Store {
    pub(crate) name: BackendName,
    pub(crate) role: Role,
    native: bool,
    inner: Box<dyn Backend>,
    scene: Arc<Scene>,
    state: Mutex<State>,
}

struct State {
    random: fastrand::Rng,
    condition: Condition,
    habits: Habits,
    held: BTreeMap<Key, Version>,
    landings: Vec<Landing>,
}

/// A write that went over what was there, for at least one of its keys.
#[derive(Clone, Debug)]
pub(crate) struct Landing {
    pub(crate) operation: OperationId,
    pub(crate) version: Version,
    pub(crate) fence: Fence,
    /// The keys for which it did.
    pub(crate) keys: Vec<Key>,
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Done after this time, done again as much later, answered after yet another time, if at all.
    Done {
        before: Duration,
        again: Option<Duration>,
        after: Duration,
        reply: Reply,
    },
    Failed(ErrorKind),
    Lost,
    Panic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Arrives,
    Lost,
    Never,
}

impl Store {
    pub(crate) fn all(scene: &Arc<Scene>, random: &mut fastrand::Rng) -> Vec<Arc<Self>> {
        let weather = &scene.weather;
        let graph = |name: &str, role| Box::new(GraphBackend::in_memory(GraphConfig { name: name.into(), role }));
        let vector = Box::new(VectorBackend::in_memory(VectorConfig { dimension: Some(2), ..VectorConfig::default() }));
        let required: [Box<dyn Backend>; 3] =
            [graph("graph", Role::Required), vector, graph("archive", Role::Required)];
        let copy: Box<dyn Backend> = graph(COPY, Role::BestEffort);
        let inner = required.into_iter().take(weather.required).chain(weather.copy.then_some(copy));
        let last = weather.required - 1;
        let store = |(n, inner): (usize, Box<dyn Backend>)| {
            let state = State {
                random: random.fork(),
                condition: Condition::Well,
                habits: weather.habits,
                held: BTreeMap::new(),
                landings: Vec::new(),
            };
            Arc::new(Self {
                name: inner.name(),
                role: inner.role(),
                native: weather.native && n == last,
                inner,
                scene: Arc::clone(scene),
                state: Mutex::new(state),
            })
        };
        inner.enumerate().map(store).collect()
    }

    pub(crate) fn set(&self, condition: Condition) {
        trace!(self.scene, "{}: {condition:?}", self.name);
        locked(&self.state).condition = condition;
    }

    /// From here on nothing goes wrong, but what is on its way still arrives.
    pub(crate) fn heal(&self) {
        self.set(Condition::Well);
        let habits = &mut locked(&self.state).habits;
        (habits.trouble, habits.twice, habits.permanent) = (0.0, 0.0, false);
        habits.latency = habits.latency.min(MS);
    }

    pub(crate) fn landings(&self) -> Vec<Landing> {
        locked(&self.state).landings.clone()
    }

    /// What it holds under each of these keys.
    pub(crate) async fn contents(&self, keys: &[Key]) -> BTreeMap<Key, Option<Record>> {
        let stored = self.inner.read(keys).await.expect("a store in memory is read");
        for (key, stored) in keys.iter().zip(&stored) {
            let (held, kept) =
                (stored.as_ref().map(|stored| stored.version), locked(&self.state).held.get(key).copied());
            assert_eq!(held, kept, "{} keeps count of what it holds of {key}", self.name);
        }
        keys.iter().cloned().zip(stored).map(|(key, stored)| (key, stored.and_then(|stored| stored.record))).collect()
    }

    fn fate(&self, write: bool) -> Fate {
        let State { random, condition, habits, .. } = &mut *locked(&self.state);
        let quick = |random: &mut fastrand::Rng| time_up_to(random, habits.latency);
        let slow = |random: &mut fastrand::Rng| time_between(random, MS, habits.delay);
        match *condition {
            Condition::Down if random.u8(0..4) == 0 => return Fate::Failed(ErrorKind::Unknown),
            Condition::Down => return Fate::Failed(ErrorKind::Transient),
            Condition::Hung => return Fate::Lost,
            Condition::ReadOnly if write => return Fate::Failed(ErrorKind::ReadOnly),
            Condition::Slow(limit) => {
                let (before, after) = (time_up_to(random, limit), time_up_to(random, limit));
                return Fate::Done { before, again: None, after, reply: Reply::Arrives };
            }
            Condition::Well | Condition::ReadOnly => {}
        }
        let again = (write && random.f64() < habits.twice).then(|| slow(random));
        let (before, after) = (quick(random), quick(random));
        let done = Fate::Done { before, again, after, reply: Reply::Arrives };
        if random.f64() >= habits.trouble {
            return done;
        }
        match random.u8(0..12) {
            0 | 1 => Fate::Done { before: slow(random), again, after, reply: Reply::Arrives },
            2 => Fate::Done { before, again, after: slow(random), reply: Reply::Arrives },
            // The caller hears at once that nobody knows, or nothing, and the write is done whenever it likes.
            3 => Fate::Done { before: slow(random), again, after, reply: Reply::Lost },
            4 => Fate::Done { before, again, after, reply: Reply::Lost },
            5 => Fate::Done { before, again, after, reply: Reply::Never },
            6 => Fate::Lost,
            7 => Fate::Failed(ErrorKind::Unknown),
            8 => Fate::Failed(ErrorKind::Transient),
            9 => Fate::Failed(ErrorKind::Refused),
            10 if habits.permanent => Fate::Failed(ErrorKind::Permanent),
            11 if habits.panics => Fate::Panic,
            _ => Fate::Failed(ErrorKind::Transient),
        }
    }

    /// Forgets deletes.
    async fn forget(&self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        let swept = self.inner.sweep(older_than, at_most).await?;
        let keys: Vec<Key> = locked(&self.state).held.keys().cloned().collect();
        let left = self.inner.read(&keys).await?;
        let gone = keys.into_iter().zip(left).filter(|(_, stored)| stored.is_none());
        let held = &mut locked(&self.state).held;
        for (key, _) in gone {
            if let Some(version) = held.remove(&key) {
                self.scene.history.forgot(&key, version);
            }
        }
        trace!(self.scene, "{}: forgets {swept} deletes below {older_than}", self.name);
        Ok(swept)
    }

    /// A write arrives.
    async fn land(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        if self.scene.weather.flaw == Some(Flaw::StoreForgets) && locked(&self.state).random.u8(0..8) == 0 {
            return Ok(Applied::default());
        }
        let applied = self.inner.apply(write).await?;
        let mut state = locked(&self.state);
        let mut keys = Vec::new();
        for change in &*write.changes {
            let held = state.held.entry(change.key().clone()).or_default();
            if write.passes(*held) {
                *held = write.version;
                keys.push(change.key().clone());
            }
        }
        trace!(
            self.scene,
            "{}: {:?} {} {} lands{}",
            self.name,
            write.fence,
            write.version,
            write.operation,
            if keys.is_empty() { " too late" } else { "" }
        );
        if !keys.is_empty() {
            let FencedWrite { operation, version, fence, .. } = *write;
            state.landings.push(Landing { operation, version, fence, keys });
        }
        Ok(applied)
    }
}

/// A process's connection to a store. Cloning gives another hold of it.
#[derive(Clone)]
pub(crate) struct Wire {
    store: Arc<Store>,
    life: Arc<Life>,
    disk: Arc<Disk>,
    /// Calls that are out, but for probes.
    calls: Arc<AtomicUsize>,
}

impl Wire {
    pub(crate) fn new(store: &Arc<Store>, life: &Arc<Life>, disk: &Arc<Disk>) -> Self {
        Self { store: Arc::clone(store), life: Arc::clone(life), disk: Arc::clone(disk), calls: Arc::default() }
    }

    /// A call goes out, unless as many are out as may be.
    fn enter(&self) -> Call {
        let (out, scene) = (self.calls.fetch_add(1, Ordering::Relaxed) + 1, &self.store.scene);
        let limit = scene.weather.config.call_of(&self.store.name).max_concurrent;
        if out > limit {
            scene.problem(format!("{out} calls to {} are out, and {limit} may be", self.store.name));
        }
        Call(Arc::clone(&self.calls))
    }

    /// Sends a write that was let out. Dropping the future does not stop what is on its way.
    async fn send(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let _call = self.enter();
        self.deliver(write).await
    }

    async fn deliver(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.life.act().await;
        let Self { store, life, disk, .. } = self;
        let scene = &store.scene;
        let fate = store.fate(true);
        trace!(scene, "{}: {:?} {} meets {fate:?}", store.name, write.fence, write.version);
        scene.history.sent(write.operation, write.version);
        if scene.weather.is_strict() && store.role == Role::Required && !disk.has_intent(write.version) {
            scene.problem(format!("{} was sent {} before its intent was durable", store.name, write.version));
        }
        let (before, again, after, reply) = match fate {
            Fate::Done { before, again, after, reply } => (before, again, after, reply),
            Fate::Failed(kind) => return Err(failure(kind)),
            Fate::Lost => return std::future::pending().await,
            Fate::Panic => panic!("{PLANNED}"),
        };
        if let Some(again) = again {
            later(store, write, before + again);
        }
        if reply == Reply::Lost && !before.is_zero() {
            later(store, write, before);
            return Err(failure(ErrorKind::Unknown));
        }
        let applied = if before.is_zero() {
            store.land(write).await
        } else {
            let arrived = later(store, write, before);
            arrived.await.unwrap_or_else(|_| Err(failure(ErrorKind::Unknown)))
        };
        sleep(after).await;
        life.must_live().await;
        match reply {
            Reply::Arrives => applied,
            Reply::Lost => Err(failure(ErrorKind::Unknown)),
            Reply::Never => std::future::pending().await,
        }
    }

    /// Asks something that changes nothing.
    async fn ask<T>(&self, what: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        let _call = self.enter();
        self.look(what).await
    }

    async fn look<T>(&self, what: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        self.life.act().await;
        let fate = self.store.fate(false);
        trace!(self.store.scene, "{}: a question meets {fate:?}", self.store.name);
        let (before, after, reply) = match fate {
            Fate::Done { before, after, reply, .. } => (before, after, reply),
            Fate::Failed(kind) => return Err(failure(kind)),
            Fate::Lost => return std::future::pending().await,
            Fate::Panic => panic!("{PLANNED}"),
        };
        sleep(before).await;
        let answer = what.await;
        sleep(after).await;
        self.life.must_live().await;
        match reply {
            Reply::Arrives => answer,
            Reply::Lost => Err(failure(ErrorKind::Unknown)),
            Reply::Never => std::future::pending().await,
        }
    }
}

/// A call that is out.
struct Call(Arc<AtomicUsize>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A write that is on its way, and arrives whatever becomes of its sender.
fn later(store: &Arc<Store>, write: &FencedWrite, delay: Duration) -> oneshot::Receiver<Result<Applied, BackendError>> {
    store.scene.lands_in(delay);
    let (sender, receiver) = oneshot::channel();
    let (store, write) = (Arc::clone(store), write.clone());
    tokio::spawn(async move {
        sleep(delay).await;
        let _ = sender.send(store.land(&write).await);
    });
    receiver
}

fn failure(kind: ErrorKind) -> BackendError {
    BackendError::new(kind, "trouble")
}

#[async_trait]
impl Backend for Wire {
    fn name(&self) -> BackendName {
        self.store.name.clone()
    }

    fn role(&self) -> Role {
        self.store.role
    }

    fn capabilities(&self) -> Capabilities {
        self.store.inner.capabilities()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.send(write).await
    }

    fn max_batch(&self) -> usize {
        self.store.scene.weather.batch
    }

    /// Each write meets its own fate, and now and then nobody hears of any of them.
    async fn apply_batch(&self, writes: &[FencedWrite]) -> Result<Vec<Result<Applied, BackendError>>, BackendError> {
        let _call = self.enter();
        let answers = join_all(writes.iter().map(|write| self.deliver(write))).await;
        match locked(&self.store.state).random.u8(0..16) {
            0 => Err(failure(ErrorKind::Unknown)),
            _ => Ok(answers),
        }
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.ask(self.store.inner.read(keys)).await
    }

    async fn search(&self, search: &Search) -> Result<Vec<Hit>, BackendError> {
        self.ask(self.store.inner.search(search)).await
    }

    async fn traverse(&self, traversal: &Traversal) -> Result<Vec<Hit>, BackendError> {
        self.ask(self.store.inner.traverse(traversal)).await
    }

    async fn find(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        self.ask(self.store.inner.find(filter, limit)).await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        let condition = locked(&self.store.state).condition;
        self.look(async { Ok(if condition == Condition::ReadOnly { Health::ReadOnly } else { Health::Healthy }) }).await
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.ask(self.store.inner.newest_version()).await
    }

    async fn sweep(&self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        self.ask(self.store.forget(older_than, at_most)).await
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        self.store.native.then_some(self as &dyn Transactions)
    }
}

#[async_trait]
impl Transactions for Wire {
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError> {
        self.ask(async { Ok(()) }).await?;
        Ok(Box::new(Begun { wire: self.clone(), write: write.clone() }))
    }
}

/// A transaction of which nothing is visible before its commit.
struct Begun {
    wire: Wire,
    write: FencedWrite,
}

#[async_trait]
impl Transaction for Begun {
    async fn commit(self: Box<Self>) -> Result<Applied, BackendError> {
        self.wire.send(&self.write).await
    }

    async fn rollback(self: Box<Self>) -> Result<(), BackendError> {
        self.wire.ask(async { Ok(()) }).await
    }
}

/// Where breakers are saved: it fails now and then, and outlives the processes.
pub(crate) struct States {
    kept: Arc<MemoryStateStore>,
    life: Arc<Life>,
    random: Mutex<fastrand::Rng>,
}

impl States {
    pub(crate) fn new(kept: &Arc<MemoryStateStore>, life: &Arc<Life>, random: fastrand::Rng) -> Self {
        Self { kept: Arc::clone(kept), life: Arc::clone(life), random: Mutex::new(random) }
    }

    async fn meet(&self) -> Result<(), StoreError> {
        self.life.act().await;
        let drawn = locked(&self.random).u8(0..32);
        match drawn {
            0 => std::future::pending().await,
            1 => Err(StoreError::Failed("trouble".to_owned())),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl BreakerStateStore for States {
    async fn load(&self, backend: &BackendName) -> Result<Option<SavedBreaker>, StoreError> {
        self.meet().await?;
        self.kept.load(backend).await
    }

    async fn save(&self, backend: &BackendName, record: SavedBreaker) -> Result<(), StoreError> {
        self.meet().await?;
        self.kept.save(backend, record).await
    }
}
