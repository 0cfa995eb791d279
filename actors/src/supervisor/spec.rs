//! A child of a supervisor, as data: how it is started, where it stands, how it is stopped.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorStatus, SpawnErr};

use super::actor::Supervisor;
use super::branch::Branch;
use super::slot::Slot;

/// How long a child may take to stop, unless its spec says otherwise.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(5);

type Start = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;
type Vacate = Arc<dyn Fn() + Send + Sync>;

/// How a child is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It finishes the message that it handles; queued ones are dropped.
    Stop,
    /// It handles everything that is queued, and is sent nothing more.
    Drain,
}

/// One child of a supervisor.
#[derive(Clone)]
pub struct ChildSpec {
    pub(super) name: String,
    pub(super) start: Start,
    pub(super) vacate: Vacate,
    pub(super) stop_timeout: Duration,
    pub(super) farewell: Farewell,
    pub(super) branch: Option<Branch>,
}

impl ChildSpec {
    /// A child that `start` spawns, linked to the supervisor whose cell it is given, and for which `vacate` undoes
    /// whatever let others find it. The supervisor is deaf while `start` runs: it must be quick, and counts as
    /// failed when it panics or takes longer than 5 s.
    pub fn new<F>(
        name: impl Into<String>,
        start: impl Fn(ActorCell) -> F + Send + Sync + 'static,
        vacate: impl Fn() + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<ActorCell, SpawnErr>> + Send + 'static,
    {
        Self {
            name: name.into(),
            start: Arc::new(move |supervisor| start(supervisor).boxed()),
            vacate: Arc::new(vacate),
            stop_timeout: DEFAULT_STOP_TIMEOUT,
            farewell: Farewell::Stop,
            branch: None,
        }
    }

    /// An actor in a slot. `make` is asked for a new actor and its arguments at every start; what has to survive a
    /// death is shared between them (an `Arc` in the arguments). Its `pre_start` must do no I/O.
    pub fn actor<A: Actor>(
        name: impl Into<String>,
        slot: Slot<A::Msg>,
        make: impl Fn() -> (A, A::Arguments) + Send + Sync + 'static,
    ) -> Self {
        let place = slot.clone();
        let start = move |supervisor| {
            let ((actor, arguments), slot) = (make(), slot.clone());
            async move {
                let (started, _) = A::spawn_linked(None, actor, arguments, supervisor).await?;
                let cell = started.get_cell();
                slot.fill(started);
                Ok(cell)
            }
        };
        Self::new(name, start, move || place.clear())
    }

    /// A supervisor with children of its own. When it escalates, that is a death of this child.
    #[must_use]
    pub fn branch(branch: Branch) -> Self {
        let (started, vacated) = (branch.clone(), branch.clone());
        let start = move |supervisor| {
            let branch = started.clone();
            async move { Ok(Supervisor::spawn_linked(None, Supervisor, branch, supervisor).await?.0.get_cell()) }
        };
        let name = branch.name().to_owned();
        Self { branch: Some(branch), ..Self::new(name, start, move || vacated.vacate()) }
    }

    /// How long it may take to stop before it is killed; also how long a restart waits for a killed one to be
    /// gone. Default 5 s.
    #[must_use]
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.stop_timeout = timeout;
        self
    }

    /// When the tree is stopped, it handles what is queued before it ends, instead of dropping it.
    #[must_use]
    pub fn drained(mut self) -> Self {
        self.farewell = Farewell::Drain;
        self
    }

    /// Asks a child of this spec to stop, and kills it when it does not. Gives whether it stopped by itself.
    pub(super) async fn say_farewell(&self, cell: &ActorCell, patience: Duration) -> bool {
        if cell.get_status() == ActorStatus::Stopped {
            return true;
        }
        let asked = match self.farewell {
            Farewell::Stop => {
                cell.stop(Some(ASKED.to_owned()));
                true
            }
            Farewell::Drain => cell.drain().is_ok(),
        };
        if asked && cell.wait(Some(patience.min(self.stop_timeout))).await.is_ok() {
            return true;
        }
        cell.kill();
        if cell.wait(Some(KILL_PATIENCE)).await.is_err() {
            tracing::error!(actor = self.name, "an actor blocks its thread and cannot be killed; it is left behind");
        }
        false
    }
}

/// The reason with which an actor ends that was asked to.
const ASKED: &str = "asked to stop";

/// How long a killed actor may take to notice: until its next await.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(1);
