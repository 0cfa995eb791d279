//! Starting: what was kept is read back before the first request is served.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::join_all;
use ractor::Actor;
use seawall_actors::backend::{Backend, BackendError, BackendName, Role};
use seawall_actors::breaker::{BreakerActor, BreakerArguments, BreakerCell, BreakerState, BreakerStateStore, Purpose};
use seawall_actors::event::{EventBus, EventKind};
use seawall_actors::fallback::{Access, BackendFacts, FallbackArguments, FallbackManager};
use seawall_actors::gateway::{Door, Gateway, Handle};
use seawall_actors::health::{Admission, ProbePermit, Prober, ProberMessage, ProberSetup, Target};
use seawall_actors::journal::{Journal, JournalError, JournalRecord, Ledger, LossReport};
use seawall_actors::operation::Version;
use seawall_actors::plane::{DataPlane, Store, Versions};
use seawall_actors::saga::{SagaArguments, SagaCoordinator};
use seawall_actors::supervisor::{Branch, ChildSpec, OperationTasks, RestartConfig, Slot, Strategy, Tree};
use seawall_actors::sync::{SyncArguments, SyncWorker};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::backends::configured;
use crate::breakers::SledStateStore;
use crate::config::{Config, ConfigError};
use crate::guard::OpenError;
use crate::journal::{JournalOpenError, OnDamage, SledJournal};
use crate::runtime::{Observed, Runtime};
use crate::telemetry::{Telemetry, TelemetryError};

/// How long a backend may take to tell the newest version that it holds, when the journal is new.
const NEWEST_VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a runtime was not started. Nothing was changed or lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No backend is required: there is nothing to write to.
    #[error("no required backend; add one with `backend(..)`")]
    NoBackend,
    /// Two backends share a name.
    #[error("two backends are named `{0}`; give every backend a name of its own")]
    DuplicateBackend(BackendName),
    /// A backend without a name.
    #[error("a backend has an empty name, or one of more than 64 bytes")]
    BadBackendName,
    /// The configuration describes a backend that cannot be one. One that is only down is none of it.
    #[error("cannot use backend `{backend}` as it is configured: {error}")]
    Backend {
        /// Which.
        backend: BackendName,
        /// Why.
        error: BackendError,
    },
    /// The configuration speaks of a backend that was not given.
    #[error("the configuration has settings for backend `{0}`, which was not given to the builder")]
    UnknownBackend(BackendName),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalOpenError),
    /// The breaker states cannot be opened.
    #[error("cannot open the breaker states: {0}")]
    Breakers(#[source] OpenError),
    /// The Redis for the breaker states cannot be used as it is configured. One that is only down is none of it.
    #[cfg(feature = "redis")]
    #[error("cannot keep the breaker states in Redis: {0}")]
    RemoteBreakers(#[source] seawall_actors::breaker::StoreError),
    /// The journal owes writes to a backend that is not there any more.
    #[error(
        "{entries} accepted writes are owed to backend `{backend}`, which was not given to the builder; give it, \
         or let the writes go with `forget_backend`"
    )]
    OwedToUnknownBackend {
        /// Which.
        backend: BackendName,
        /// How many.
        entries: usize,
    },
    /// The journal took no write.
    #[error("the journal takes no writes: {0}")]
    JournalWrite(#[source] JournalError),
    /// The actors could not be started.
    #[error("the actors could not be started: {0}")]
    Actors(String),
    /// The metrics cannot be served.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// A task of the start was cancelled: the async runtime is stopping.
    #[error("the async runtime is stopping")]
    Cancelled,
}

/// Puts a [`Runtime`] together.
#[derive(Default)]
pub struct Builder {
    config: Config,
    backends: Vec<Arc<dyn Backend>>,
    on_damage: OnDamage,
    forgotten: HashSet<BackendName>,
    journal: Option<(Arc<dyn Journal>, Vec<JournalRecord>)>,
    states: Option<Arc<dyn BreakerStateStore>>,
}

impl Builder {
    /// With this configuration instead of the defaults.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Keeps everything durable in this directory.
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config.data_dir = dir.into();
        self
    }

    /// Adds a backend. Reads ask the first one first. Backends that only the configuration describes come after all
    /// that were given, in the order of their names.
    #[must_use]
    pub fn backend(mut self, backend: impl Backend) -> Self {
        self.backends.push(Arc::new(backend));
        self
    }

    /// Adds a backend that is shared with others.
    #[must_use]
    pub fn shared_backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.backends.push(backend);
        self
    }

    /// What to do when the journal is damaged. Default: refuse to start, with a report of what is lost.
    #[must_use]
    pub fn on_damage(mut self, on_damage: OnDamage) -> Self {
        self.on_damage = on_damage;
        self
    }

    /// Lets go of what is owed to a backend that is no longer there.
    #[must_use]
    pub fn forget_backend(mut self, backend: impl Into<BackendName>) -> Self {
        self.forgotten.insert(backend.into());
        self
    }

    /// Uses this journal, in which these records were found, instead of one on sled in the data directory; the data
    /// directory is then not used for anything, and breakers forget at a restart unless a
    /// [store](Self::breaker_states) is given or the configuration names a Redis.
    #[must_use]
    pub fn journal(mut self, journal: Arc<dyn Journal>, found: Vec<JournalRecord>) -> Self {
        self.journal = Some((journal, found));
        self
    }

    /// Keeps breaker states here, instead of in the data directory or where the configuration says.
    #[must_use]
    pub fn breaker_states(mut self, states: Arc<dyn BreakerStateStore>) -> Self {
        self.states = Some(states);
        self
    }

    /// Reads back what was kept, starts all actors and opens the door.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(mut self) -> Result<Runtime, StartError> {
        self.config.validate()?;
        self.open_configured()?;
        self.check()?;
        // On the heap: the future of a start would hold it twice.
        let config = Box::new(self.config.clone());
        let events = Arc::new(EventBus::new());
        let in_data_dir = self.journal.is_none();
        let (journal, found) = self.open_journal(&events).await?;
        let states = self.open_states(in_data_dir).await?;
        let fresh = found.is_empty();
        let (ledger, ended) = self.read_back(found)?;
        let recovered = ledger.len();

        let (stores, cells) = self.open_stores(&events, states.as_ref()).await;
        let versions = Versions::after(newest_version(&stores, ledger.highest(), fresh).await);
        let reservation = versions.reservation();
        let reserves = reservation.map(|up_to| JournalRecord::Reserved { up_to });
        let records: Vec<JournalRecord> = ended.into_iter().chain(reserves).collect();
        if !records.is_empty() {
            let written = journal.append(records).await;
            written.unwrap_or(Err(JournalError::Closed)).map_err(StartError::JournalWrite)?;
        }
        reservation.into_iter().for_each(|up_to| versions.reserved(up_to));

        let facts = stores.iter().map(|store| facts(store)).collect();
        let fallback =
            FallbackArguments::new(config.fallback.clone(), facts, Arc::clone(&journal), Arc::clone(&events));
        let slots = Slots::default();
        let tasks = OperationTasks::new();
        let plane = Arc::new(DataPlane::new(
            stores,
            ledger,
            journal,
            fallback.handle(slots.fallback.clone()),
            versions,
            config.limits.clone(),
            Arc::clone(&events),
            tasks,
        ));
        let sync = SyncArguments::writes(Arc::clone(&plane), Arc::new(config.sync.clone()));
        let durations = Arc::default();
        let prober = prober(&plane, &config, &slots, Arc::clone(&durations));
        let (failed, failure) = watch::channel(None);
        let door = Arc::new(Door::new(Arc::clone(&plane), Arc::new(config.saga.clone()), config.gateway.clone()));
        let closing = Arc::clone(&door);
        let on_escalation = Arc::new(move |escalation| {
            closing.close();
            failed.send_replace(Some(escalation));
        });
        let branch = tree(&plane, &config, &slots, &cells, fallback, sync.clone(), Arc::clone(&prober));
        let observed = Arc::new(Observed { plane: Arc::clone(&plane), sync, prober, door: Arc::clone(&door) });
        let telemetry = Telemetry::start(&config.metrics, Arc::clone(&observed) as _, events.subscribe()).await?;
        let names = plane.stores.iter().map(|store| store.name.clone());
        let histograms = names.map(|name| (name.clone(), telemetry.probe_duration(&name))).collect();
        // Set once, here.
        let _ = durations.set(histograms);
        let actors = |error: ractor::SpawnErr| StartError::Actors(error.to_string());
        let (gateway, _) = Gateway::spawn(None, Gateway, Arc::clone(&door)).await.map_err(actors)?;
        // Last, for nothing after it can fail and leave a tree behind.
        let tree = match Tree::start(branch, on_escalation).await {
            Ok(tree) => tree,
            Err(error) => {
                gateway.stop(None);
                return Err(actors(error));
            }
        };
        let heralds = plane.stores.iter().map(|store| herald(store, &plane, &slots)).collect();
        events.publish(EventKind::Started { recovered });
        Ok(Runtime {
            handle: Handle::new(Arc::clone(&door)),
            door,
            gateway,
            plane,
            tree,
            cells,
            observed,
            telemetry: Some(telemetry),
            heralds,
            failure,
            config: *config,
        })
    }

    /// Adds the backends that the configuration describes and nobody has given, after those that were given.
    fn open_configured(&mut self) -> Result<(), StartError> {
        let given: HashSet<BackendName> = self.backends.iter().map(|backend| backend.name()).collect();
        for (name, settings) in &self.config.backends {
            let backend = BackendName::from(name.as_str());
            if given.contains(&backend) {
                continue;
            }
            let opened = configured::open(&backend, settings);
            self.backends.extend(opened.map_err(|error| StartError::Backend { backend, error })?);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), StartError> {
        let mut names = HashSet::new();
        for backend in &self.backends {
            let name = backend.name();
            if !(1..=64).contains(&name.as_str().len()) {
                return Err(StartError::BadBackendName);
            }
            if !names.insert(name.clone()) {
                return Err(StartError::DuplicateBackend(name));
            }
        }
        if !self.backends.iter().any(|backend| backend.role() == Role::Required) {
            return Err(StartError::NoBackend);
        }
        let configured = self.config.backends.keys().map(|name| BackendName::from(name.as_str()));
        match configured.into_iter().find(|name| !names.contains(name)) {
            Some(unknown) => Err(StartError::UnknownBackend(unknown)),
            None => Ok(()),
        }
    }

    async fn open_journal(&mut self, events: &EventBus) -> Result<(Arc<dyn Journal>, Vec<JournalRecord>), StartError> {
        if let Some(given) = self.journal.take() {
            return Ok(given);
        }
        let (dir, on_damage) = (self.config.data_dir.join("journal"), self.on_damage);
        let mut settings = self.config.journal.clone();
        settings.outcomes = self.config.queue.outcomes;
        settings.retention = self.config.queue.retention;
        settings.retention_bytes = self.config.queue.retention_bytes;
        let opened = blocking(&self.config.data_dir, move || SledJournal::open(&dir, settings, on_damage)).await?;
        let (journal, recovered) = opened?;
        if recovered.loss != LossReport::default() {
            events.publish(EventKind::JournalDamaged { report: recovered.loss });
        }
        Ok((Arc::new(journal), recovered.records))
    }

    async fn open_states(&mut self, in_data_dir: bool) -> Result<Option<Arc<dyn BreakerStateStore>>, StartError> {
        if let Some(given) = self.states.take() {
            return Ok(Some(given));
        }
        #[cfg(feature = "redis")]
        if self.config.redis.enabled {
            let config = self.config.clone();
            let reset_timeout = move |backend: &BackendName| config.breaker_of(backend).reset_timeout;
            let opened = crate::breakers::RedisStateStore::new(&self.config.redis, reset_timeout);
            return Ok(Some(Arc::new(opened.map_err(StartError::RemoteBreakers)?)));
        }
        if !in_data_dir {
            return Ok(None);
        }
        let dir = self.config.data_dir.join("breakers");
        let opened = blocking(&self.config.data_dir, move || SledStateStore::open(&dir)).await?;
        Ok(Some(Arc::new(opened.map_err(StartError::Breakers)?)))
    }

    /// Folds what was found into a ledger. Gives it with the records of what ends by this start.
    fn read_back(&self, found: Vec<JournalRecord>) -> Result<(Ledger, Vec<JournalRecord>), StartError> {
        let mut ledger = Ledger::new(self.config.queue.clone());
        for record in &found {
            ledger.apply(record);
        }
        let mut ended = ledger.release_all();
        let known: HashSet<BackendName> = self.backends.iter().map(|backend| backend.name()).collect();
        let owed: HashMap<BackendName, usize> = ledger.backends().map(|(name, owed)| (name.clone(), owed)).collect();
        for (backend, entries) in owed {
            if known.contains(&backend) {
                continue;
            }
            if !self.forgotten.contains(&backend) {
                return Err(StartError::OwedToUnknownBackend { backend, entries });
            }
            ended.extend(ledger.forget_backend(&backend));
        }
        Ok((ledger, ended))
    }

    async fn open_stores(
        &mut self,
        events: &Arc<EventBus>,
        states: Option<&Arc<dyn BreakerStateStore>>,
    ) -> (Vec<Arc<Store>>, Vec<BreakerCell>) {
        let mut stores = Vec::with_capacity(self.backends.len());
        let mut cells = Vec::with_capacity(self.backends.len());
        for backend in self.backends.drain(..) {
            let name = backend.name();
            let settings = self.config.breaker_of(&name).clone();
            let cell = BreakerCell::open(name.clone(), settings, Arc::clone(events), states.cloned()).await;
            stores.push(Arc::new(Store::new(backend, cell.handle(), self.config.call_of(&name).clone())));
            cells.push(cell);
        }
        (stores, cells)
    }
}

/// Where the durations of probes are recorded, as soon as telemetry has started.
type Durations = OnceLock<HashMap<BackendName, metrics::Histogram>>;

/// Where the actors stand.
#[derive(Clone, Default)]
pub(crate) struct Slots {
    pub(crate) fallback: Slot<seawall_actors::fallback::FallbackMessage>,
    pub(crate) saga: Slot<seawall_actors::sync::SyncMessage>,
    pub(crate) sync: Slot<seawall_actors::sync::SyncMessage>,
    pub(crate) prober: Slot<ProberMessage>,
}

/// Opens something that blocks, off the runtime's threads, in a data directory that is there.
async fn blocking<T: Send + 'static>(
    data_dir: &Path,
    open: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    let dir = data_dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        // What is wrong with the directory is told by what is opened in it.
        let _ = std::fs::create_dir_all(dir);
        open()
    });
    opened.await.map_err(|_| StartError::Cancelled)
}

/// Where versions start. A journal that is new asks the backends what they hold, so that it does not give out
/// versions that their fences would refuse.
async fn newest_version(stores: &[Arc<Store>], highest: Version, fresh: bool) -> Version {
    if !fresh {
        return highest;
    }
    let asked = stores.iter().map(|store| async move {
        let mut permit = store.permit(Purpose::Live).ok()?;
        let until = Instant::now() + NEWEST_VERSION_TIMEOUT;
        match permit.call_once(until, |backend| backend.newest_version()).await {
            Ok(version) => Some(version),
            Err(error) => {
                tracing::warn!(backend = %store.name, %error, "a backend does not tell which versions it holds");
                None
            }
        }
    });
    join_all(asked).await.into_iter().flatten().fold(highest, Version::max)
}

fn facts(store: &Store) -> BackendFacts {
    let access = if store.breaker.view().state.admits_freely() { Access::ReadWrite } else { Access::None };
    BackendFacts { name: store.name.clone(), role: store.role, capabilities: store.capabilities, access }
}

fn prober(plane: &Arc<DataPlane>, config: &Config, slots: &Slots, durations: Arc<Durations>) -> Arc<ProberSetup> {
    let target = |store: &Arc<Store>| {
        let gate = Arc::clone(store.breaker.gate());
        let admit = move || match gate.try_acquire_owned(Purpose::Probe) {
            Ok(lease) => Admission::Granted(ProbePermit {
                trial: gate.view().state == BreakerState::HalfOpen,
                settle: Box::new(move |result| lease.settle_result(result)),
            }),
            Err(rejected) => Admission::Refused { retry_after: Some(rejected.retry_after()) },
        };
        Target::new(store.probed(), Arc::new(admit), config.health.clone())
    };
    let (fallback, stores) = (plane.fallback.clone(), plane.stores.clone());
    Arc::new(ProberSetup {
        targets: plane.stores.iter().map(target).collect(),
        slot: slots.prober.clone(),
        tasks: plane.tasks.clone(),
        events: Arc::clone(&plane.events),
        on_health: Arc::new(move |backend, report| {
            if let Some(histogram) = durations.get().and_then(|all| all.get(&backend)) {
                histogram.record(report.latency);
            }
            if let Some(store) = stores.iter().find(|store| store.name == backend) {
                store.breaker.probed_health(report.wellness);
            }
            if let Ok(health) = report.health {
                fallback.probe_reported(backend, health);
            }
        }),
    })
}

/// ```text
/// root            one for one
/// ├─ core         rest for one: fallback, sagas, sync
/// └─ breakers     one for one: one per backend, and the prober
/// ```
///
/// A branch gives up at its earliest when all the deaths that it forgives have been waited for. The root remembers
/// for so much longer that a branch which gives up again and again is not forgiven for ever.
fn tree(
    plane: &Arc<DataPlane>,
    config: &Config,
    slots: &Slots,
    cells: &[BreakerCell],
    fallback: FallbackArguments,
    sync: SyncArguments,
    prober: Arc<ProberSetup>,
) -> Branch {
    let restarts = &config.supervisor;
    let patient = RestartConfig {
        window: restarts.window.saturating_mul(restarts.intensity.saturating_add(1)),
        ..restarts.clone()
    };
    let branch = |name: &str, strategy, restarts: &RestartConfig, children| {
        Branch::new(name, strategy, restarts.clone(), Arc::clone(&plane.events), children)
    };
    let sagas = SagaArguments::new(Arc::clone(plane));
    let core = vec![
        ChildSpec::actor("fallback", slots.fallback.clone(), move || (FallbackManager, fallback.clone())).drained(),
        ChildSpec::actor("saga", slots.saga.clone(), move || (SagaCoordinator, sagas.clone())),
        ChildSpec::actor("sync", slots.sync.clone(), move || (SyncWorker, sync.clone())),
    ];
    let mut breakers: Vec<ChildSpec> = plane
        .stores
        .iter()
        .zip(cells)
        .map(|(store, cell)| {
            let cell = cell.clone();
            let name = format!("breaker-{}", store.name);
            ChildSpec::actor(name, Slot::default(), move || (BreakerActor, BreakerArguments { cell: cell.clone() }))
        })
        .collect();
    breakers.push(ChildSpec::actor("prober", slots.prober.clone(), move || (Prober, Arc::clone(&prober))));
    let children = vec![
        ChildSpec::branch(branch("core", Strategy::RestForOne, restarts, core)),
        ChildSpec::branch(branch("breakers", Strategy::OneForOne, restarts, breakers)),
    ];
    branch("root", Strategy::OneForOne, &patient, children)
}

/// Tells the fallback manager and the prober what a breaker decides.
fn herald(store: &Arc<Store>, plane: &Arc<DataPlane>, slots: &Slots) -> AbortOnDropHandle<()> {
    let mut breaker = store.breaker.watch();
    let (name, fallback, prober) = (store.name.clone(), plane.fallback.clone(), slots.prober.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let state = breaker.borrow_and_update().state;
            fallback.breaker_changed(name.clone(), state);
            if state == BreakerState::HalfOpen {
                // Nobody there: its successor looks by itself.
                let _ = prober.cast(ProberMessage::Nudge(name.clone()));
            }
            if breaker.changed().await.is_err() {
                return;
            }
        }
    }))
}
