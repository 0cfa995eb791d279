//! What the tests of sagas, drains and reads stand on: stores that do what a script says, a journal that is slow or
//! fails on command, and a data plane over them that can be started again from what the journal has.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ractor::{Actor, ActorRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{DataPlane, Store, Versions};
use crate::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, Fence, FencedWrite, Health, Role, Stored, Transaction,
    Transactions,
};
use crate::breaker::{BreakerCell, BreakerConfig};
use crate::call::CallConfig;
use crate::error::Refusal;
use crate::event::EventBus;
use crate::fallback::{Access, BackendFacts, FallbackArguments, FallbackConfig, FallbackManager, Mode};
use crate::gateway::{Door, GatewayConfig, Handle};
use crate::journal::{Appended, Journal, JournalError, JournalProgress, JournalRecord, Ledger, QueueConfig};
use crate::limits::Limits;
use crate::operation::{Change, Hit, Receipt, Search, Traversal, Version, Write};
use crate::record::{Key, Record};
use crate::saga::{Operation, SagaArguments, SagaConfig, SagaCoordinator};
use crate::supervisor::{OperationTasks, Slot};
use crate::sync::{SyncArguments, SyncConfig, SyncMessage, SyncWorker};

/// What happened, in order, over all stores and the journal.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// What a store does with a call.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// What it should.
    Well,
    /// Fails without an effect.
    Fail(BackendError),
    /// Has its effect and loses the reply.
    LoseReply,
    /// Never answers, and has no effect.
    Hang,
    /// What it should, this much later.
    Slow(Duration),
    /// Fails without an effect, this much later.
    SlowlyFail(Duration, BackendError),
    Panic,
    /// Panics, this much later.
    SlowlyPanic(Duration),
}

/// A store that follows a script, and then goes on as it is told.
pub(crate) struct Scripted {
    pub(crate) name: &'static str,
    role: Role,
    capabilities: Capabilities,
    native: bool,
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    log: Log,
    held: Mutex<BTreeMap<Key, Stored>>,
    writes: Mutex<VecDeque<Act>>,
    otherwise: Mutex<Act>,
    reads: Mutex<Act>,
    poisoned: Mutex<Option<Key>>,
    calls: AtomicU64,
}

impl Inner {
    fn log(&self, what: &str) {
        self.log.lock().unwrap().push(format!("{}: {what}", self.name));
    }

    fn apply(&self, write: &FencedWrite) -> Applied {
        let mut held = self.held.lock().unwrap();
        let mut superseded_by = None;
        for change in &*write.changes {
            let stored = held.get(change.key()).cloned().unwrap_or(Stored { version: Version(0), record: None });
            if write.passes(stored.version) {
                let record = change.apply_to(stored.record);
                held.insert(change.key().clone(), Stored { version: write.version, record });
            } else {
                superseded_by = superseded_by.max(Some(stored.version));
            }
        }
        Applied { superseded_by }
    }

    async fn act<T>(&self, act: Act, work: impl FnOnce() -> T) -> Result<T, BackendError> {
        match act {
            Act::Well => Ok(work()),
            Act::Fail(error) => Err(error),
            Act::LoseReply => {
                work();
                Err(BackendError::unknown("the reply was lost"))
            }
            Act::Hang => std::future::pending().await,
            Act::Slow(after) => {
                sleep(after).await;
                Ok(work())
            }
            Act::SlowlyFail(after, error) => {
                sleep(after).await;
                Err(error)
            }
            Act::Panic => panic!("a bug of the backend"),
            Act::SlowlyPanic(after) => {
                sleep(after).await;
                panic!("a late bug of the backend");
            }
        }
    }

    fn next(&self) -> Act {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.writes.lock().unwrap().pop_front().unwrap_or_else(|| self.otherwise.lock().unwrap().clone())
    }

    async fn write(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let what = if write.fence == Fence::Compensation { "undo" } else { "apply" };
        self.log(&format!("{what} {}", write.version));
        let poisoned = |change: &Change| self.poisoned.lock().unwrap().as_ref() == Some(change.key());
        let act = self.next();
        let act = if write.changes.iter().any(poisoned) { Act::Fail(BackendError::refused("locked")) } else { act };
        self.act(act, || self.apply(write)).await
    }
}

impl Scripted {
    pub(crate) fn new(name: &'static str, log: &Log) -> Self {
        let inner = Inner {
            name,
            log: Arc::clone(log),
            held: Mutex::default(),
            writes: Mutex::default(),
            otherwise: Mutex::new(Act::Well),
            reads: Mutex::new(Act::Well),
            poisoned: Mutex::default(),
            calls: AtomicU64::new(0),
        };
        let capabilities = Capabilities { vector_search: true, graph_traversal: true, exact_match: true };
        Self { name, role: Role::Required, capabilities, native: false, inner: Arc::new(inner) }
    }

    pub(crate) fn native(mut self) -> Self {
        self.native = true;
        self
    }

    pub(crate) fn best_effort(mut self) -> Self {
        self.role = Role::BestEffort;
        self
    }

    pub(crate) fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// What it does with its next writes, one after another.
    pub(crate) fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.inner.writes.lock().unwrap().extend(acts);
    }

    /// What it does with writes from here on, when the script is at its end.
    pub(crate) fn writes(&self, act: Act) {
        *self.inner.otherwise.lock().unwrap() = act;
    }

    /// It never takes a write to this key, and never says that it will not.
    pub(crate) fn poison(&self, key: &str) {
        *self.inner.poisoned.lock().unwrap() = Some(key.into());
    }

    /// What it does with reads from here on.
    pub(crate) fn reads(&self, act: Act) {
        *self.inner.reads.lock().unwrap() = act;
    }

    /// What it does from here on.
    pub(crate) fn all(&self, act: Act) {
        self.writes(act.clone());
        self.reads(act);
    }

    /// Writes that reached it.
    pub(crate) fn calls(&self) -> u64 {
        self.inner.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn held(&self, key: &str) -> Option<Stored> {
        self.inner.held.lock().unwrap().get(&Key::from(key)).cloned()
    }

    /// The number that the record of this key has as `n`.
    pub(crate) fn n(&self, key: &str) -> Option<i64> {
        self.held(key)?.record?.properties.get("n")?.as_i64()
    }

    /// Somebody else writes.
    pub(crate) fn put(&self, record: Record, version: Version) {
        self.inner.held.lock().unwrap().insert(record.key.clone(), Stored { version, record: Some(record) });
    }

    fn hits(&self) -> Vec<Hit> {
        let held = self.inner.held.lock().unwrap();
        let hit = |stored: &Stored| {
            Some(Hit { record: stored.record.clone()?, version: stored.version, score: 1.0, via: None })
        };
        held.values().filter_map(hit).collect()
    }

    async fn find_all(&self) -> Result<Vec<Hit>, BackendError> {
        let act = self.inner.reads.lock().unwrap().clone();
        self.inner.act(act, || self.hits()).await
    }
}

#[async_trait]
impl Backend for Scripted {
    fn name(&self) -> BackendName {
        self.name.into()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.inner.write(write).await
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        let act = self.inner.reads.lock().unwrap().clone();
        self.inner.act(act, || keys.iter().map(|key| self.held(key.as_str())).collect()).await
    }

    async fn search(&self, search: &Search) -> Result<Vec<Hit>, BackendError> {
        let mut hits = self.find_all().await?;
        hits.retain(|hit| search.filter.iter().all(|(name, value)| hit.record.properties.get(name) == Some(value)));
        Ok(hits)
    }

    async fn traverse(&self, _: &Traversal) -> Result<Vec<Hit>, BackendError> {
        self.find_all().await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        Ok(Health::Healthy)
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Ok(Version(0))
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        self.native.then_some(self as &dyn Transactions)
    }
}

#[async_trait]
impl Transactions for Scripted {
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError> {
        self.inner.log(&format!("begin {}", write.version));
        let act = self.inner.next();
        let open = Open { inner: Arc::clone(&self.inner), write: write.clone() };
        self.inner.act(act, || Box::new(open) as Box<dyn Transaction>).await
    }
}

struct Open {
    inner: Arc<Inner>,
    write: FencedWrite,
}

#[async_trait]
impl Transaction for Open {
    async fn commit(self: Box<Self>) -> Result<Applied, BackendError> {
        self.inner.log(&format!("commit {}", self.write.version));
        self.inner.act(self.inner.next(), || self.inner.apply(&self.write)).await
    }

    async fn rollback(self: Box<Self>) -> Result<(), BackendError> {
        self.inner.log(&format!("rollback {}", self.write.version));
        Ok(())
    }
}

/// A journal in memory that is as slow, or as broken, as it is told to be.
pub(crate) struct Tape {
    log: Log,
    /// Every record with whether it is durable, in order.
    records: Arc<Mutex<Vec<JournalRecord>>>,
    delay: Mutex<Duration>,
    pub(crate) fails: AtomicBool,
    closed: AtomicBool,
}

impl Tape {
    pub(crate) fn new(log: &Log) -> Self {
        Self {
            log: Arc::clone(log),
            records: Arc::default(),
            delay: Mutex::default(),
            fails: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// How long a commit takes from here on.
    pub(crate) fn takes(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    pub(crate) fn shut(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// What is durable.
    pub(crate) fn records(&self) -> Vec<JournalRecord> {
        self.records.lock().unwrap().clone()
    }

    fn keep(log: &Log, kept: &Mutex<Vec<JournalRecord>>, records: Vec<JournalRecord>) {
        for record in &records {
            log.lock().unwrap().push(format!("journal: {}", name(record)));
        }
        kept.lock().unwrap().extend(records);
    }
}

fn name(record: &JournalRecord) -> String {
    match record {
        JournalRecord::Intent(intent) => format!("intent {}", intent.version),
        JournalRecord::Done { version, backend } => format!("done {version} {backend}"),
        JournalRecord::Decided { version, .. } => format!("decided {version}"),
        JournalRecord::Undone { version, backend } => format!("undone {version} {backend}"),
        JournalRecord::DeadLetter { version, backend, .. } => format!("dead {version} {backend}"),
        JournalRecord::Revived { version, backend } => format!("revived {version} {backend}"),
        JournalRecord::Closed { version, ending, .. } => format!("closed {version} {ending:?}"),
        JournalRecord::Reserved { .. } => "reserved".to_owned(),
        JournalRecord::Redriven(intent) => format!("redriven {}", intent.version),
        JournalRecord::Tick { .. } => "tick".to_owned(),
    }
}

#[async_trait]
impl Journal for Tape {
    fn append(&self, records: Vec<JournalRecord>) -> Appended {
        let (sender, receiver) = oneshot::channel();
        let answer = match (self.closed.load(Ordering::SeqCst), self.fails.load(Ordering::SeqCst)) {
            (true, _) => Err(JournalError::Closed),
            (_, true) => Err(JournalError::Failed("made to fail".to_owned())),
            _ => Ok(()),
        };
        let delay = *self.delay.lock().unwrap();
        let (log, kept) = (Arc::clone(&self.log), Arc::clone(&self.records));
        let commit = move || {
            if answer.is_ok() {
                Self::keep(&log, &kept, records);
            }
            let _ = sender.send(answer);
        };
        if delay.is_zero() {
            commit();
        } else {
            tokio::spawn(async move {
                sleep(delay).await;
                commit();
            });
        }
        receiver
    }

    fn note(&self, records: Vec<JournalRecord>) {
        // Notes outlast a failure.
        Self::keep(&self.log, &self.records, records);
    }

    fn progress(&self) -> JournalProgress {
        JournalProgress::default()
    }

    async fn close(&self) {
        self.shut();
    }
}

/// Settings of a [`Rig`].
#[derive(Clone, Default)]
pub(crate) struct Settings {
    pub(crate) saga: SagaConfig,
    pub(crate) sync: SyncConfig,
    pub(crate) queue: QueueConfig,
    pub(crate) breaker: BreakerConfig,
    pub(crate) call: CallConfig,
    pub(crate) gateway: GatewayConfig,
}

/// A data plane over scripted stores, with a fallback manager and nothing else that runs.
pub(crate) struct Rig {
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) stores: Vec<Arc<Scripted>>,
    pub(crate) tape: Arc<Tape>,
    pub(crate) log: Log,
    pub(crate) settings: Settings,
    manager: ActorRef<crate::fallback::FallbackMessage>,
}

impl Rig {
    /// Two stores, `graph` and `vector`, with the default settings.
    pub(crate) async fn two() -> Self {
        Self::with(Settings::default(), |log| vec![Scripted::new("graph", log), Scripted::new("vector", log)]).await
    }

    /// One store, `engine`.
    pub(crate) async fn one() -> Self {
        Self::with(Settings::default(), |log| vec![Scripted::new("engine", log)]).await
    }

    pub(crate) async fn with(settings: Settings, stores: impl FnOnce(&Log) -> Vec<Scripted>) -> Self {
        let log = Log::default();
        let stores = stores(&log).into_iter().map(Arc::new).collect();
        Self::over(settings, stores, Arc::new(Tape::new(&log)), log, &[]).await
    }

    /// The next process, over the same stores, from these records.
    pub(crate) async fn restarted(&self, records: &[JournalRecord]) -> Self {
        let (stores, log) = (self.stores.clone(), Arc::clone(&self.log));
        let tape = Tape::new(&log);
        tape.records.lock().unwrap().extend(records.iter().cloned());
        Self::over(self.settings.clone(), stores, Arc::new(tape), log, records).await
    }

    async fn over(
        settings: Settings,
        stores: Vec<Arc<Scripted>>,
        tape: Arc<Tape>,
        log: Log,
        records: &[JournalRecord],
    ) -> Self {
        let bus = Arc::new(EventBus::new());
        let mut opened = Vec::with_capacity(stores.len());
        for store in &stores {
            let cell = BreakerCell::open(store.name(), settings.breaker.clone(), Arc::clone(&bus), None).await;
            opened.push(Arc::new(Store::new(Arc::clone(store) as _, cell.handle(), settings.call.clone())));
        }
        let mut ledger = Ledger::new(settings.queue.clone());
        for record in records {
            ledger.apply(record);
        }
        let _ = ledger.release_all();
        let versions = Versions::after(ledger.highest());
        // As a start does.
        if let Some(up_to) = versions.reservation() {
            tape.records.lock().unwrap().push(JournalRecord::Reserved { up_to });
            versions.reserved(up_to);
        }
        let facts = |store: &Arc<Store>| BackendFacts {
            name: store.name.clone(),
            role: store.role,
            capabilities: store.capabilities,
            access: Access::ReadWrite,
        };
        let facts = opened.iter().map(facts).collect();
        let fallback =
            FallbackArguments::new(FallbackConfig::default(), facts, Arc::clone(&tape) as _, Arc::clone(&bus));
        let slot = Slot::default();
        let (manager, _) = Actor::spawn(None, FallbackManager, fallback.clone()).await.expect("it starts");
        slot.fill(manager.clone());
        let plane = DataPlane::new(
            opened,
            ledger,
            Arc::clone(&tape) as _,
            fallback.handle(slot),
            versions,
            Limits::default(),
            bus,
            OperationTasks::new(),
        );
        Self { plane: Arc::new(plane), stores, tape, log, settings, manager }
    }

    pub(crate) fn store(&self, name: &str) -> &Scripted {
        self.stores.iter().find(|store| store.name == name).expect("there is one of this name")
    }

    pub(crate) fn gate(&self, name: &str) -> &Arc<Store> {
        self.plane.store(&name.into()).expect("there is one of this name")
    }

    pub(crate) async fn mode(&self, mode: Mode) {
        let plan = self.plane.fallback.set_mode(mode, "a test", None).await.expect("the manager answers");
        assert_eq!(plan.mode, mode);
    }

    pub(crate) fn handle(&self) -> Handle {
        let saga = Arc::new(self.settings.saga.clone());
        Handle::new(Arc::new(Door::new(Arc::clone(&self.plane), saga, self.settings.gateway.clone())))
    }

    /// Performs a write, and waits until its saga has ended too. Gives the answer, and when it was given.
    pub(crate) fn perform(&self, write: Write, deadline: Duration) -> JoinHandle<(Result<Receipt, Refusal>, Duration)> {
        let operation = Operation::new(Arc::clone(&self.plane), Arc::new(self.settings.saga.clone()), write);
        let began = Instant::now();
        tokio::spawn(async move {
            let mut answered = None;
            let saga = Arc::clone(&operation).run();
            operation.see_through(saga, began + deadline, |answer| answered = Some((answer, began.elapsed()))).await;
            answered.expect("every write is answered")
        })
    }

    pub(crate) async fn write(&self, write: Write) -> Result<Receipt, Refusal> {
        self.perform(write, Duration::from_secs(600)).await.expect("no saga panics").0
    }

    /// Stores `n` under a key.
    pub(crate) async fn put(&self, key: &str, n: i64) -> Result<Receipt, Refusal> {
        self.write(put(key, n)).await
    }

    /// Starts the sync worker and the coordinator, and gives them this long.
    pub(crate) async fn drain(&self, time: Duration) {
        let _workers = self.workers().await;
        sleep(time).await;
    }

    pub(crate) async fn workers(&self) -> Workers {
        let sync = SyncArguments::writes(Arc::clone(&self.plane), Arc::new(self.settings.sync.clone()));
        let (sync, _) = Actor::spawn(None, SyncWorker, sync).await.expect("it starts");
        let sagas = SagaArguments::new(Arc::clone(&self.plane));
        let (saga, _) = Actor::spawn(None, SagaCoordinator, sagas).await.expect("it starts");
        Workers { sync, saga }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The log of stores and journal since the last time.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.manager.kill();
    }
}

/// What drains, until it is dropped.
pub(crate) struct Workers {
    pub(crate) sync: ActorRef<SyncMessage>,
    pub(crate) saga: ActorRef<SyncMessage>,
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.sync.kill();
        self.saga.kill();
    }
}

/// Stores `n` under a key.
pub(crate) fn put(key: &str, n: i64) -> Write {
    Write::store(Record::new(key).with("n", n))
}
