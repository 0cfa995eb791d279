//! The prober: timers over the policies, and one task for every probe.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::config::HealthConfig;
use super::policy::{AlertChange, Due, ProbePolicy, ProbeStatus};
use crate::backend::{Backend, BackendError, BackendName, ErrorKind, Health};
use crate::event::{EventBus, EventKind};
use crate::supervisor::{OperationTasks, Slot};

/// What a breaker says to a prober.
pub enum Admission {
    /// Probe.
    Granted(ProbePermit),
    /// Do not touch the backend.
    Refused {
        /// When to ask again, if that is known.
        retry_after: Option<Duration>,
    },
}

/// Takes the result of a probe.
pub type Settle = Box<dyn FnOnce(&Result<Health, BackendError>) + Send>;

/// The right to one probe.
pub struct ProbePermit {
    /// The breaker tries the backend out: it wants the next success soon.
    pub trial: bool,
    /// Told how the probe ended; dropped untold when it was cancelled.
    pub settle: Settle,
}

/// Asks a breaker for a probe. Called in the prober: must be quick.
pub type Admit = Arc<dyn Fn() -> Admission + Send + Sync>;

/// How a probe ended.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// What it found. A store that answers that it takes no writes is [`Health::ReadOnly`], however it says so.
    pub health: Result<Health, BackendError>,
    /// How long it took.
    pub latency: Duration,
    /// How well the backend is, by this probe and those before it: 1 is well, ½ is slower than it used to be or
    /// failing for the first time, 0 is failing.
    pub wellness: f64,
}

/// Told of every probe that ended. Must be quick.
pub type OnHealth = Arc<dyn Fn(BackendName, ProbeReport) + Send + Sync>;

/// A backend that is probed.
pub struct Target {
    name: BackendName,
    backend: Arc<dyn Backend>,
    admit: Admit,
    policy: Mutex<ProbePolicy>,
    /// Held by the task of a probe until the backend has let go of it.
    pub(super) single: Arc<Semaphore>,
}

impl Target {
    /// Probes this backend so, when `admit` lets it.
    pub fn new(backend: Arc<dyn Backend>, admit: Admit, config: HealthConfig) -> Self {
        let policy = Mutex::new(ProbePolicy::new(config, fastrand::u64(..), Instant::now()));
        Self { name: backend.name(), backend, admit, policy, single: Arc::new(Semaphore::new(1)) }
    }

    fn policy(&self) -> MutexGuard<'_, ProbePolicy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that outlives a prober; its arguments.
pub struct ProberSetup {
    /// Whom to probe.
    pub targets: Vec<Target>,
    /// Where the prober stands.
    pub slot: Slot<ProberMessage>,
    /// Where probes run.
    pub tasks: OperationTasks,
    /// Where alerts are published.
    pub events: Arc<EventBus>,
    /// Told of every probe.
    pub on_health: OnHealth,
}

impl ProberSetup {
    /// What is known of every backend. Does not ask the prober: it answers also while that is restarted.
    #[must_use]
    pub fn statuses(&self) -> Vec<ProbeStatus> {
        let now = Instant::now();
        self.targets.iter().map(|target| target.policy().status(target.name.clone(), now)).collect()
    }

    /// Enters how a probe ended, and tells everybody. Done by whoever knows first, the probe's task or the prober
    /// that has waited too long, so that no result is lost with a prober.
    fn conclude(&self, index: usize, turn: u64, report: ProbeReport) {
        let target = &self.targets[index];
        let changes = target.policy().concluded(turn, Instant::now(), &report.health, report.latency);
        let Some(changes) = changes else { return };
        // The schedule first: it has to go on whatever happens to those who are told. An empty slot is filled by a
        // prober that makes its own appointments.
        let _ = self.slot.cast(ProberMessage::Concluded(index));
        for change in changes {
            let backend = target.name.clone();
            self.events.publish(match change {
                AlertChange::Raised(alert) => EventKind::AlertRaised { backend, alert },
                AlertChange::Cleared(alert) => EventKind::AlertCleared { backend, alert },
            });
        }
        let wellness = target.policy().wellness();
        (self.on_health)(target.name.clone(), ProbeReport { wellness, ..report });
    }

    async fn probe(self: Arc<Self>, index: usize, turn: u64, permit: ProbePermit, single: OwnedSemaphorePermit) {
        let target = &self.targets[index];
        let (started, timeout) = (Instant::now(), target.policy().timeout());
        let probe = AssertUnwindSafe(async { target.backend.probe().await }).catch_unwind();
        let health = match tokio::time::timeout(timeout, probe).await {
            Ok(Ok(Err(error))) if error.kind == ErrorKind::ReadOnly => Ok(Health::ReadOnly),
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BackendError::unknown("the probe panicked")),
            Err(_) => Err(BackendError::unknown(format!("the probe had no answer within {timeout:?}"))),
        };
        let latency = started.elapsed();
        (permit.settle)(&health);
        drop(single);
        self.conclude(index, turn, ProbeReport { health, latency, wellness: 0.0 });
    }
}

/// What a prober hears.
pub enum ProberMessage {
    /// The breaker of this backend lets probes in again: look now.
    Nudge(BackendName),
    /// What is known of every backend.
    Statuses(RpcReplyPort<Vec<ProbeStatus>>),
    /// A probe of this target ended.
    Concluded(usize),
    /// An appointment is due.
    Due {
        /// Of this target.
        target: usize,
        /// For this turn.
        turn: u64,
    },
}

/// Probes backends. It keeps no verdict: breakers do.
pub struct Prober;

/// The state of a [`Prober`]: its timers.
pub struct State {
    myself: ActorRef<ProberMessage>,
    setup: Arc<ProberSetup>,
    timers: Vec<Option<AbortOnDropHandle<()>>>,
}

impl Actor for Prober {
    type Msg = ProberMessage;
    type State = State;
    type Arguments = Arc<ProberSetup>;

    async fn pre_start(
        &self,
        myself: ActorRef<ProberMessage>,
        setup: Arc<ProberSetup>,
    ) -> Result<State, ActorProcessingErr> {
        let timers = setup.targets.iter().map(|_| None).collect();
        Ok(State { myself, setup, timers })
    }

    async fn post_start(&self, _: ActorRef<ProberMessage>, state: &mut State) -> Result<(), ActorProcessingErr> {
        for index in 0..state.setup.targets.len() {
            state.arm(index);
        }
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<ProberMessage>,
        message: ProberMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ProberMessage::Nudge(backend) => state.nudge(&backend),
            ProberMessage::Statuses(reply) => {
                // A caller that no longer waits is no error.
                let _ = reply.send(state.setup.statuses());
            }
            ProberMessage::Concluded(index) => state.arm(index),
            ProberMessage::Due { target, turn } => state.due(target, turn),
        }
        Ok(())
    }
}

impl State {
    fn nudge(&mut self, backend: &BackendName) {
        let Some(index) = self.setup.targets.iter().position(|target| target.name == *backend) else { return };
        let look = self.setup.targets[index].policy().nudge();
        if look {
            self.look(index);
        }
    }

    fn due(&mut self, index: usize, turn: u64) {
        let due = self.setup.targets[index].policy().due(turn);
        match due {
            // Its probe ended while nobody stood in the slot to hear of it.
            Due::Nothing => self.arm(index),
            Due::Look => self.look(index),
            Due::Overdue => {
                let timeout = self.setup.targets[index].policy().timeout();
                self.setup.conclude(index, turn, stuck(timeout));
                self.arm(index);
            }
        }
    }

    /// Probes, if the breaker lets it.
    fn look(&mut self, index: usize) {
        let target = &self.setup.targets[index];
        let now = Instant::now();
        let Ok(single) = Arc::clone(&target.single).try_acquire_owned() else {
            let turn = target.policy().admitted(now, false);
            self.setup.conclude(index, turn, stuck(Duration::ZERO));
            return self.arm(index);
        };
        match (target.admit)() {
            Admission::Refused { retry_after } => target.policy().refused(now, retry_after),
            Admission::Granted(permit) => {
                let turn = target.policy().admitted(now, permit.trial);
                self.setup.tasks.spawn(Arc::clone(&self.setup).probe(index, turn, permit, single));
            }
        }
        self.arm(index);
    }

    /// Sets the timer for the next appointment, instead of the one before.
    fn arm(&mut self, index: usize) {
        let appointment = self.setup.targets[index].policy().appointment();
        let myself = self.myself.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(appointment.at).await;
            // A dead prober has no appointments.
            let _ = myself.send_message(ProberMessage::Due { target: index, turn: appointment.turn });
        });
        self.timers[index] = Some(AbortOnDropHandle::new(timer));
    }
}

/// The report of a probe that blocks its thread.
fn stuck(latency: Duration) -> ProbeReport {
    let health = Err(BackendError::unknown("a probe does not come back; it blocks its thread"));
    ProbeReport { health, latency, wellness: 0.0 }
}
