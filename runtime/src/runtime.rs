//! What a service holds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ractor::ActorRef;
use seawall_actors::backend::BackendName;
use seawall_actors::breaker::{BreakerCell, BreakerHandle};
use seawall_actors::event::{Snapshot, Subscription};
use seawall_actors::fallback::{FallbackStatus, Mode, Plan};
use seawall_actors::gateway::{Door, Handle, Request};
use seawall_actors::health::{ProbeStatus, ProberSetup};
use seawall_actors::limits::InvalidInput;
use seawall_actors::plane::DataPlane;
use seawall_actors::supervisor::{CallError, ChildStatus, Escalation, Tree};
use seawall_actors::sync::{DrainProgress, ReplayError, Replayed, SyncArguments, replay_since};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::start::Builder;
use crate::telemetry::{BackendObservation, Observation, Observe, QueueObservation, SagaObservation, Telemetry};

/// A running Seawall. Stop it with [`shutdown`](Self::shutdown); dropping it is as a crash: what was acknowledged is
/// kept, what was in flight is not finished.
pub struct Runtime {
    pub(crate) handle: Handle,
    pub(crate) door: Arc<Door>,
    pub(crate) gateway: ActorRef<Request>,
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) tree: Tree,
    pub(crate) cells: Vec<BreakerCell>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) heralds: Vec<AbortOnDropHandle<()>>,
    pub(crate) failure: watch::Receiver<Option<Escalation>>,
    pub(crate) config: Config,
}

impl Runtime {
    /// Begins to put one together.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The ref to send [`Request`]s to. It keeps working, whatever restarts behind it.
    #[must_use]
    pub fn gateway(&self) -> ActorRef<Request> {
        self.gateway.clone()
    }

    /// Typed methods for the same requests.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// All state changes from now on, with the state that they start from.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.plane.events.subscribe()
    }

    /// The state now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.plane.events.snapshot()
    }

    /// What people do to it.
    #[must_use]
    pub fn control(&self) -> Control<'_> {
        Control(self)
    }

    /// The configuration that it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The metrics as Prometheus reads them; `None` unless they are served (`metrics.listen`).
    #[must_use]
    pub fn metrics(&self) -> Option<String> {
        self.telemetry.as_ref().and_then(Telemetry::render)
    }

    /// Where the metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<std::net::SocketAddr> {
        self.telemetry.as_ref().and_then(Telemetry::address)
    }

    /// Resolves when an actor has died too often and the runtime has stopped taking requests, with the reason.
    pub async fn failed(&self) -> Escalation {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(escalation)) => escalation,
            // The tree is stopped: it cannot fail any more.
            _ => std::future::pending().await,
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.door.close();
        self.heralds.clear();
        self.plane.tasks.cancelled().cancel();
        self.tree.kill();
        self.gateway.stop(None);
        // Handles that users keep must not keep subscribers waiting.
        self.plane.events.close();
    }
}

/// What people can do to a running Seawall, and see of it.
#[derive(Clone, Copy)]
pub struct Control<'a>(&'a Runtime);

impl Control<'_> {
    /// The breaker of a backend: its state, its explanation, and what can be done to it by hand.
    ///
    /// # Errors
    /// When there is no such backend.
    pub fn breaker(&self, backend: impl Into<BackendName>) -> Result<BreakerHandle, InvalidInput> {
        Ok(self.0.plane.store(&backend.into())?.breaker.clone())
    }

    /// Sets the fallback mode by hand, for so long or until it is lifted.
    ///
    /// # Errors
    /// When the fallback manager does not answer; it may have been set all the same.
    pub async fn set_mode(
        &self,
        mode: Mode,
        reason: impl Into<String>,
        expires_in: Option<Duration>,
    ) -> Result<Arc<Plan>, CallError> {
        self.0.plane.fallback.set_mode(mode, reason, expires_in).await
    }

    /// Lifts the mode that was set by hand.
    ///
    /// # Errors
    /// When the fallback manager does not answer; it may have been lifted all the same.
    pub async fn clear_mode(&self) -> Result<Arc<Plan>, CallError> {
        self.0.plane.fallback.clear_mode().await
    }

    /// The fallback in brief.
    #[must_use]
    pub fn fallback(&self) -> FallbackStatus {
        self.0.plane.fallback.status()
    }

    /// How the drain of each backend stands.
    #[must_use]
    pub fn drains(&self) -> Vec<DrainProgress> {
        self.0.observed.sync.progress()
    }

    /// Gives all required backends again what was finished since this time: for a store that has lost writes which it
    /// had confirmed, because it was restored from a copy or went down before its last seconds were on its disk. Take a
    /// time before the oldest thing that it may have lost; what it still has is harmless.
    ///
    /// It comes back when all of that is owed, durably, as one change for each key; the drain does the rest, behind live
    /// traffic, and readers see it meanwhile. It needs memory for the last state of every key that was written since
    /// then, and waits while the queue is half full. Interrupted by a crash before it came back, ask again.
    ///
    /// # Errors
    /// See [`ReplayError`]: finished writes are not kept (`queue.retention`), or not since this time.
    pub async fn replay_since(&self, since: SystemTime) -> Result<Replayed, ReplayError> {
        replay_since(&self.0.plane, since, &[]).await
    }

    /// The same for one backend.
    ///
    /// # Errors
    /// As [`replay_since`](Self::replay_since), and when there is no such required backend.
    pub async fn replay_backend_since(
        &self,
        backend: impl Into<BackendName>,
        since: SystemTime,
    ) -> Result<Replayed, ReplayError> {
        replay_since(&self.0.plane, since, &[backend.into()]).await
    }

    /// What the prober knows of each backend.
    #[must_use]
    pub fn probes(&self) -> Vec<ProbeStatus> {
        self.0.observed.prober.statuses()
    }

    /// The actors.
    #[must_use]
    pub fn actors(&self) -> Vec<ChildStatus> {
        self.0.tree.status()
    }

    /// Kills an actor, as a rehearsal: it comes back. `false` when there is none of this name in
    /// [`actors`](Self::actors), or it is being restarted already.
    pub fn kill_actor(&self, name: &str) -> bool {
        self.0.tree.kill_child(name)
    }
}

/// What telemetry looks at.
pub(crate) struct Observed {
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) sync: SyncArguments,
    pub(crate) prober: Arc<ProberSetup>,
    pub(crate) door: Arc<Door>,
}

impl Observe for Observed {
    fn observe(&self) -> Observation {
        let plan = self.plane.fallback.plan().get();
        let drains = self.sync.progress();
        let probes = self.prober.statuses();
        let totals = self.plane.sagas.totals();
        let ledger = self.plane.ledger();
        let backends = self
            .plane
            .stores
            .iter()
            .map(|store| {
                let probe = probes.iter().find(|probe| probe.backend == store.name);
                BackendObservation {
                    breaker: store.breaker.snapshot(),
                    calls: store.stats(),
                    owed: ledger.owed(&store.name) as u64,
                    drained: drains.iter().find(|drain| drain.backend == store.name).map_or(0, |drain| drain.drained),
                    probes: probe.map_or(0, |probe| probe.probes),
                    failed_probes: probe.map_or(0, |probe| probe.failures),
                }
            })
            .collect();
        Observation {
            backends,
            mode: plan.mode,
            level: plan.level,
            level_number: plan.level_number(),
            in_flight: self.door.in_flight() as u64,
            queue: QueueObservation {
                entries: ledger.len() as u64,
                bytes: ledger.bytes() as u64,
                dead_letters: ledger.dead() as u64,
                enqueued: totals.queued,
                drained: drains.iter().map(|drain| drain.drained).sum(),
            },
            journal_health: plan.journal,
            journal: self.plane.journal.progress(),
            sagas: SagaObservation {
                begun: totals.begun,
                committed: totals.committed,
                rolled_back: totals.rolled_back,
                compensating: ledger.compensating() as u64,
                parked: ledger.dead() as u64,
            },
            cache: self.plane.fallback.cache().stats(),
        }
    }
}
