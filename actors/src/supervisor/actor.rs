//! The supervisor: hears of deaths, and carries out what its policy decides.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::branch::{Branch, Escalation};
use super::policy::{Decision, RestartPolicy};
use super::spec::ChildSpec;

/// How long a start may take: it is awaited, so the supervisor is deaf meanwhile.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// Supervises one [`Branch`].
pub(super) struct Supervisor;

/// What a supervisor tells itself.
pub(super) enum SupervisorMessage {
    /// The wait of this plan is over: start whom it still covers.
    Revive(Plan),
}

/// A number for a set of children that wait to be started together. A newer plan takes children over from an
/// older one, which then finds nobody to start: a late timer does no harm.
type Plan = u64;

pub(super) struct State {
    myself: ActorRef<SupervisorMessage>,
    branch: Branch,
    policy: RestartPolicy,
    children: Vec<Child>,
    last_plan: Plan,
    timers: HashMap<Plan, AbortOnDropHandle<()>>,
}

#[derive(Default)]
struct Child {
    /// The plan by which it will be started.
    awaits: Option<Plan>,
    /// Cancelled when the incarnation before is surely gone: two must never work at the same time.
    gone: Option<CancellationToken>,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = State;
    type Arguments = Branch;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, branch: Branch) -> Result<State, ActorProcessingErr> {
        let specs = branch.children().len();
        let policy = RestartPolicy::new(branch.strategy(), branch.config().clone(), specs, fastrand::u64(..));
        let children = std::iter::repeat_with(Child::default).take(specs).collect();
        let mut state = State { myself, branch, policy, children, last_plan: 0, timers: HashMap::new() };
        let inherited = state.bury(0..specs, "its supervisor died");
        if inherited {
            state.schedule(0..specs, Duration::ZERO);
        } else {
            // Nobody to wait for. So whoever starts a tree finds everybody in place when that returns.
            let plan = state.plan(0..specs);
            state.revive(plan).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: SupervisorMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Revive(plan) => state.revive(plan).await,
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, last_state, reason) => {
                // A destructor in it that panics must not take the supervisor along.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(last_state)));
                state.died(&cell, &reason.unwrap_or_else(|| "stopped unasked".to_owned()))
            }
            SupervisionEvent::ActorFailed(cell, error) => state.died(&cell, &error.to_string()),
            // Starts are known already. Features of ractor add more variants.
            _ => Ok(()),
        }
    }
}

impl State {
    /// A child is dead. One that this supervisor killed or was told to stop is no longer its child.
    fn died(&mut self, cell: &ActorCell, reason: &str) -> Result<(), ActorProcessingErr> {
        match self.branch.position(cell) {
            Some(index) => self.lost(index, reason),
            None => Ok(()),
        }
    }

    /// A child is dead or could not be started.
    fn lost(&mut self, index: usize, reason: &str) -> Result<(), ActorProcessingErr> {
        self.bury(index..index + 1, reason);
        if !self.branch.is_wanted(index) {
            return Ok(());
        }
        let actor = self.branch.children()[index].name.clone();
        match self.policy.died(Instant::now(), index) {
            Decision::Restart { children, after } => {
                tracing::debug!(actor, reason, ?after, "an actor died");
                self.bury(index + 1..children.end, &format!("leans on `{actor}`, which died: {reason}"));
                self.schedule(children, after);
                Ok(())
            }
            Decision::Escalate => {
                let config = self.branch.config();
                let text = format!(
                    "`{actor}` died; more than {} deaths within {:?}: {reason}",
                    config.intensity, config.window
                );
                self.branch.give_up(Escalation { actor, reason: reason.to_owned() });
                Err(text.into())
            }
        }
    }

    /// Takes these children out, kills those that live, and watches until they are gone. Gives whether there
    /// were any.
    fn bury(&mut self, children: Range<usize>, reason: &str) -> bool {
        let mut any = false;
        for index in children {
            let Some(cell) = self.branch.remove(index, reason) else { continue };
            any = true;
            cell.kill();
            let spec = &self.branch.children()[index];
            self.children[index].gone = Some(until_gone(cell, spec));
        }
        any
    }

    /// A new plan for these children.
    fn plan(&mut self, children: Range<usize>) -> Plan {
        self.last_plan += 1;
        for child in &mut self.children[children] {
            child.awaits = Some(self.last_plan);
        }
        self.last_plan
    }

    /// Starts these children after this time, but not before their former incarnations are gone.
    fn schedule(&mut self, children: Range<usize>, after: Duration) {
        let plan = self.plan(children.clone());
        let gone: Vec<_> = self.children[children].iter().filter_map(|child| child.gone.clone()).collect();
        let myself = self.myself.clone();
        let timer = tokio::spawn(async move {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            join_all(gone.iter().map(CancellationToken::cancelled)).await;
            // When the supervisor is gone, so is the plan.
            let _ = myself.send_message(SupervisorMessage::Revive(plan));
        });
        self.timers.insert(plan, AbortOnDropHandle::new(timer));
    }

    /// Starts the children that await this plan, in their order. One that cannot be started gets, with those that
    /// lean on it, a new plan.
    async fn revive(&mut self, plan: Plan) -> Result<(), ActorProcessingErr> {
        self.timers.remove(&plan);
        for index in 0..self.children.len() {
            if self.children[index].awaits != Some(plan) {
                continue;
            }
            self.children[index] = Child::default();
            if !self.branch.is_wanted(index) {
                continue;
            }
            match start(&self.branch.children()[index], self.myself.get_cell()).await {
                Ok(cell) => {
                    if !self.branch.enter(index, cell.clone()) {
                        (self.branch.children()[index].vacate)();
                        cell.kill();
                    }
                }
                Err(reason) => {
                    self.branch.note(index, &reason);
                    self.lost(index, &reason)?;
                }
            }
        }
        Ok(())
    }
}

/// Starts a child, and outlives whatever its start does.
async fn start(spec: &ChildSpec, supervisor: ActorCell) -> Result<ActorCell, String> {
    let started = AssertUnwindSafe(async { (spec.start)(supervisor).await }).catch_unwind();
    match tokio::time::timeout(START_PATIENCE, started).await {
        Ok(Ok(Ok(cell))) => Ok(cell),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(_)) => Err("its start panicked".to_owned()),
        Err(_) => Err(format!("its start took longer than {START_PATIENCE:?}")),
    }
}

/// Cancelled when this actor is gone, or has refused to go for as long as it may. The watching task alone holds the
/// cell, and drops it as soon as it can: while somebody holds it, so is what was queued for the dead actor.
fn until_gone(cell: ActorCell, spec: &ChildSpec) -> CancellationToken {
    let gone = CancellationToken::new();
    let (signal, patience, name) = (gone.clone().drop_guard(), spec.stop_timeout, spec.name.clone());
    tokio::spawn(async move {
        if cell.wait(Some(patience)).await.is_err() {
            tracing::error!(actor = name, "a killed actor blocks its thread; a new one is started beside it");
        }
        drop(signal);
    });
    gone
}
