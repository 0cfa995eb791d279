//! The sync worker: keeps one lane per backend running.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::backend::BackendName;
use crate::call::RetryConfig;
use crate::fallback::Mode;
use crate::journal::{Appended, JournalHealth, appended};
use crate::operation::Version;
use crate::plane::{DataPlane, Store};
use crate::supervisor::{CallError, Slot};
use crate::sync::lane::Lane;
use crate::sync::sweep::sweep;
use crate::sync::{DrainWindow, SyncConfig};

/// How long after its death a lane is started again.
const LANE_RESTART: Duration = Duration::from_secs(1);

/// How long a query may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a lane has done.
#[derive(Debug, Default)]
pub struct LaneStatus {
    drained: AtomicU64,
    failed: AtomicU64,
}

impl LaneStatus {
    /// Steps that were done or parked.
    #[must_use]
    pub fn drained_total(&self) -> u64 {
        self.drained.load(Ordering::Relaxed)
    }

    /// Steps that failed and are owed again.
    #[must_use]
    pub fn failed_total(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn drained(&self) {
        self.drained.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, window: &mut DrainWindow, config: &SyncConfig) -> Duration {
        self.failed.fetch_add(1, Ordering::Relaxed);
        window.failed(config, fastrand::f64())
    }
}

/// How the drain of one backend stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainProgress {
    /// Which backend.
    pub backend: BackendName,
    /// What it owes, dead letters included.
    pub owed: usize,
    /// Steps that were done or parked since the start.
    pub drained: u64,
    /// Steps that failed and are owed again, since the start.
    pub failed: u64,
}

/// What a keeper of lanes hears; the sync worker for writes, the saga coordinator for compensations.
#[derive(Debug)]
pub enum SyncMessage {
    /// How the drain of every backend stands.
    Progress(RpcReplyPort<Vec<DrainProgress>>),
    /// A lane died.
    LaneDied(BackendName),
    /// Time to start it again.
    LaneRestartElapsed(BackendName),
}

/// The actor.
#[derive(Clone, Copy, Debug, Default)]
pub struct SyncWorker;

/// What every incarnation is started with.
#[derive(Clone)]
pub struct SyncArguments {
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) config: Arc<SyncConfig>,
    pub(crate) status: Arc<HashMap<BackendName, Arc<LaneStatus>>>,
    pub(crate) undo: bool,
}

impl SyncArguments {
    /// For a worker that drains owed writes.
    #[must_use]
    pub fn writes(plane: Arc<DataPlane>, config: Arc<SyncConfig>) -> Self {
        Self::new(plane, config, false)
    }

    pub(crate) fn new(plane: Arc<DataPlane>, config: Arc<SyncConfig>, undo: bool) -> Self {
        let status = plane.required().map(|store| (store.name.clone(), Arc::default())).collect();
        Self { plane, config, status: Arc::new(status), undo }
    }

    /// Compensations wait between their tries as every call to their backend does.
    fn config_for(&self, store: &Store) -> Arc<SyncConfig> {
        if !self.undo {
            return Arc::clone(&self.config);
        }
        let RetryConfig { backoff, max_backoff, .. } = store.config.retry;
        Arc::new(SyncConfig { backoff, max_backoff, ..(*self.config).clone() })
    }

    /// How the drain of every backend stands.
    #[must_use]
    pub fn progress(&self) -> Vec<DrainProgress> {
        let ledger = self.plane.ledger();
        let mut progress: Vec<DrainProgress> = self
            .status
            .iter()
            .map(|(backend, status)| DrainProgress {
                backend: backend.clone(),
                owed: ledger.owed(backend),
                drained: status.drained_total(),
                failed: status.failed_total(),
            })
            .collect();
        progress.sort_by(|a, b| a.backend.cmp(&b.backend));
        progress
    }
}

/// The lanes that run now. Dropping this stops them; what they had in flight is owed again.
pub struct Lanes {
    arguments: SyncArguments,
    running: HashMap<BackendName, AbortOnDropHandle<()>>,
    /// What the worker for writes does beside its lanes.
    _beside: Vec<AbortOnDropHandle<()>>,
}

impl Lanes {
    pub(crate) fn start(arguments: SyncArguments, myself: &ActorRef<SyncMessage>) -> Self {
        let mut beside = Vec::new();
        if !arguments.undo {
            let plane = || Arc::clone(&arguments.plane);
            beside.push(AbortOnDropHandle::new(tokio::spawn(promote(plane()))));
            beside.push(AbortOnDropHandle::new(tokio::spawn(sweep(plane(), arguments.config.sweep_after))));
        }
        let mut lanes = Self { arguments, running: HashMap::new(), _beside: beside };
        let stores: Vec<Arc<Store>> = lanes.arguments.plane.required().cloned().collect();
        for store in stores {
            lanes.start_lane(store, myself);
        }
        lanes
    }

    fn start_lane(&mut self, store: Arc<Store>, myself: &ActorRef<SyncMessage>) {
        let name = store.name.clone();
        let lane = Lane {
            plane: Arc::clone(&self.arguments.plane),
            config: self.arguments.config_for(&store),
            store,
            status: self.arguments.status.get(&name).cloned().unwrap_or_default(),
            undo: self.arguments.undo,
        };
        let (owner, backend) = (myself.clone(), name.clone());
        let task = tokio::spawn(async move {
            // A lane ends by a panic only.
            let _ = AssertUnwindSafe(lane.run()).catch_unwind().await;
            let _ = owner.cast(SyncMessage::LaneDied(backend));
        });
        self.running.insert(name, AbortOnDropHandle::new(task));
    }

    pub(crate) fn hear(&mut self, message: SyncMessage, myself: &ActorRef<SyncMessage>) {
        match message {
            SyncMessage::Progress(reply) => {
                let _ = reply.send(self.arguments.progress());
            }
            SyncMessage::LaneDied(backend) => {
                tracing::error!(%backend, undo = self.arguments.undo, "a drain lane panicked");
                self.running.remove(&backend);
                myself.send_after(LANE_RESTART, move || SyncMessage::LaneRestartElapsed(backend.clone()));
            }
            SyncMessage::LaneRestartElapsed(backend) => {
                if let Ok(store) = self.arguments.plane.store(&backend) {
                    let store = Arc::clone(store);
                    self.start_lane(store, myself);
                }
            }
        }
    }
}

impl Actor for SyncWorker {
    type Msg = SyncMessage;
    type State = Lanes;
    type Arguments = SyncArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SyncMessage>,
        arguments: SyncArguments,
    ) -> Result<Lanes, ActorProcessingErr> {
        Ok(Lanes::start(arguments, &myself))
    }

    async fn handle(
        &self,
        myself: ActorRef<SyncMessage>,
        message: SyncMessage,
        lanes: &mut Lanes,
    ) -> Result<(), ActorProcessingErr> {
        lanes.hear(message, &myself);
        Ok(())
    }
}

/// How long what could not be written down waits for the next try.
const PROMOTE_AGAIN: Duration = Duration::from_secs(1);

/// Writes down what is held in memory only, and what is doubtful, as soon as there is a journal again and the mode
/// wants it.
async fn promote(plane: Arc<DataPlane>) {
    let mut plans = plane.fallback.plan().subscribe();
    loop {
        let (healthy, keeps) = {
            let plan = plans.borrow_and_update();
            (plan.journal == JournalHealth::Healthy, plan.mode != Mode::MemoryOnly)
        };
        let mut again = false;
        if healthy {
            let volatile = plane.ledger().volatile();
            for intent in volatile {
                // Whatever the mode, doubts are cleared.
                if !keeps && !plane.ledger().is_unsettled(intent.operation) {
                    continue;
                }
                let Some(append) = write_down(&plane, intent.version) else { continue };
                if appended(append).await.is_ok() {
                    let waited = plane.ledger().set_durable(intent.version);
                    if waited {
                        plane.work.send_replace(());
                    }
                } else {
                    again = true;
                    break;
                }
            }
        }
        tokio::select! {
            biased;
            changed = plans.changed() => if changed.is_err() {
                return;
            },
            () = plane.unwritten.notified() => {}
            () = sleep(PROMOTE_AGAIN), if again => {}
        }
    }
}

/// Appends all that is known of an entry. Under the ledger's lock: what changes of it afterwards is written down
/// afterwards.
fn write_down(plane: &DataPlane, version: Version) -> Option<Appended> {
    let ledger = plane.ledger();
    let records = ledger.records_of(version);
    (!records.is_empty()).then(|| plane.journal.append(records))
}

/// The way to the sync worker, whichever incarnation that is.
#[derive(Clone)]
pub struct SyncHandle {
    slot: Slot<SyncMessage>,
}

impl SyncHandle {
    /// For the worker that stands in this slot.
    #[must_use]
    pub fn new(slot: Slot<SyncMessage>) -> Self {
        Self { slot }
    }

    /// How the drain of every backend stands.
    ///
    /// # Errors
    /// When the worker is being restarted.
    pub async fn progress(&self) -> Result<Vec<DrainProgress>, CallError> {
        self.slot.call(CALL_TIMEOUT, SyncMessage::Progress).await
    }
}
