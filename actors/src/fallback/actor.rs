//! The fallback manager: moves facts into the policy, and its plan to everybody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::journal_watch::WATCH_INTERVAL;
use super::{
    BackendFacts, Cache, FallbackConfig, FallbackHandle, FallbackMessage, FallbackPolicy, Input, JournalWatch, Plan,
    PlanCell,
};
use crate::event::EventBus;
use crate::journal::Journal;
use crate::supervisor::Slot;

/// The actor.
#[derive(Clone, Copy, Debug, Default)]
pub struct FallbackManager;

/// What every incarnation is started with. What is decided lives in here and not in the actor, so that a crash
/// forgets nothing. Cloning gives another view of the same.
#[derive(Clone)]
pub struct FallbackArguments {
    memory: Arc<Mutex<Memory>>,
    plan: PlanCell,
    cache: Cache,
    bus: Arc<EventBus>,
    journal: Arc<dyn Journal>,
}

struct Memory {
    policy: FallbackPolicy,
    watch: JournalWatch,
}

impl FallbackArguments {
    /// The arguments for a runtime with these backends.
    #[must_use]
    pub fn new(
        config: FallbackConfig,
        backends: Vec<BackendFacts>,
        journal: Arc<dyn Journal>,
        bus: Arc<EventBus>,
    ) -> Self {
        let cache = Cache::new(config.cache.clone());
        let watch = JournalWatch::new(config.journal_stall);
        let policy = FallbackPolicy::new(config, backends);
        let plan = PlanCell::new(Arc::clone(policy.plan()));
        Self { memory: Arc::new(Mutex::new(Memory { policy, watch })), plan, cache, bus, journal }
    }

    /// What everybody else holds of the manager that stands in this slot.
    #[must_use]
    pub fn handle(&self, slot: Slot<FallbackMessage>) -> FallbackHandle {
        FallbackHandle::new(slot, self.plan.clone(), self.cache.clone())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an incarnation has of its own: its timer.
pub struct State {
    shared: FallbackArguments,
    next_look: Instant,
    generation: u64,
    timer: Option<(Instant, AbortHandle)>,
}

impl Actor for FallbackManager {
    type Msg = FallbackMessage;
    type State = State;
    type Arguments = FallbackArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        shared: Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State { shared, next_look: Instant::now(), generation: 0, timer: None })
    }

    async fn post_start(&self, myself: ActorRef<Self::Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.look();
        // The incarnation before may have died between a decision and its publication.
        let plan = Arc::clone(state.shared.memory().policy.plan());
        state.publish(plan);
        state.arm(&myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            FallbackMessage::SetMode { mode, reason, expires_in, reply } => {
                state.on_command(Input::SetMode { mode, reason, expires_in }, reply);
            }
            FallbackMessage::ClearMode(reply) => state.on_command(Input::ClearMode, reply),
            FallbackMessage::BreakerChanged(backend, breaker) => {
                state.step(Input::BreakerChanged { backend, state: breaker });
            }
            FallbackMessage::ProbeReported(backend, health) => state.step(Input::ProbeReported { backend, health }),
            FallbackMessage::WriteRefused(backend) => state.step(Input::WriteRefused { backend }),
            FallbackMessage::WriteAccepted(backend) => state.step(Input::WriteAccepted { backend }),
            FallbackMessage::JournalChanged(health) => state.step(Input::JournalChanged(health)),
            FallbackMessage::TimerElapsed(generation) => state.on_timer_elapsed(generation),
        }
        state.arm(&myself);
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<Self::Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        if let Some((_, timer)) = state.timer.take() {
            timer.abort();
        }
        Ok(())
    }
}

impl State {
    fn on_command(&mut self, input: Input, reply: RpcReplyPort<Arc<Plan>>) {
        self.step(input);
        // A caller that is gone can read the plan in its cell.
        let _ = reply.send(self.shared.plan.get());
    }

    fn on_timer_elapsed(&mut self, generation: u64) {
        if generation != self.generation {
            return;
        }
        self.timer = None;
        if Instant::now() >= self.next_look {
            self.look();
        } else {
            self.step(Input::Tick);
        }
    }

    /// Looks at what can be seen without being told: the journal, and the breakers as the bus knows them, for a
    /// message about them may have died with an earlier incarnation.
    fn look(&mut self) {
        let now = Instant::now();
        self.next_look = now + WATCH_INTERVAL;
        for (backend, state) in self.shared.bus.snapshot().breakers {
            self.step(Input::BreakerChanged { backend, state });
        }
        let progress = self.shared.journal.progress();
        let health = self.shared.memory().watch.observe(now, progress);
        self.step(Input::JournalChanged(health));
    }

    fn step(&mut self, input: Input) {
        let plan = self.shared.memory().policy.step(Instant::now(), input);
        if let Some(plan) = plan {
            self.publish(plan);
        }
    }

    /// The plan first: who hears of a change finds it done. The bus knows what changed, and says nothing else.
    fn publish(&self, plan: Arc<Plan>) {
        self.shared.plan.publish(Arc::clone(&plan));
        let bus = &self.shared.bus;
        bus.journal(plan.journal);
        for backend in &plan.backends {
            bus.access(&backend.name, backend.access);
        }
        bus.level(plan.level);
        bus.mode(plan.mode, plan.cause.clone());
    }

    fn arm(&mut self, myself: &ActorRef<FallbackMessage>) {
        let deadline = self.shared.memory().policy.next_deadline();
        let due = deadline.map_or(self.next_look, |deadline| deadline.min(self.next_look));
        if let Some((armed, timer)) = &self.timer {
            if *armed == due {
                return;
            }
            timer.abort();
        }
        self.generation += 1;
        let generation = self.generation;
        let wait = due.saturating_duration_since(Instant::now());
        let timer = myself.send_after(wait, move || FallbackMessage::TimerElapsed(generation));
        self.timer = Some((due, timer.abort_handle()));
    }
}
