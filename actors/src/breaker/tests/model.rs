//! Trap 15: random runs against a model that is as plain as can be.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use ractor::{Actor, ActorRef};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::*;
use crate::models;

/// One thing that happens. Numbers choose among the calls that are out.
#[derive(Clone, Debug)]
enum Step {
    Call,
    Settle(usize, CallOutcome),
    Drop(usize),
    Panic(usize),
    Pass(u64),
    Force(BreakerState, Option<u64>),
    Lift,
    Reset,
    /// The actor is killed, and its supervisor starts another.
    Kill,
    /// The process stops in order, or dies, and the next one goes on with what is in the store.
    Restart {
        saved: bool,
    },
}

/// The breaker as a person would write it on a page. Times are in seconds. A call remembers in which era it was
/// admitted; every change of state begins a new one.
#[derive(Clone, Debug)]
struct Model {
    now: u64,
    /// When this process started.
    since: u64,
    era: u64,
    automatic: Automatic,
    manual: Option<(BreakerState, Option<u64>)>,
    admitted: u64,
    rejected: u64,
    success: u64,
    failure: u64,
    ignored: u64,
    cancelled: u64,
    panicked: u64,
    expired: u64,
    stale: u64,
    /// The calls that are out.
    calls: Vec<Call>,
    /// Whether the last call was admitted.
    admits: bool,
    /// The era in which this process began. There is nothing to save while it lasts, unless a wait is running.
    loaded: u64,
    /// What the store holds, and since when.
    saved: Option<Saved>,
}

/// What the next process finds.
#[derive(Clone, Copy, Debug)]
struct Saved {
    at: u64,
    era: u64,
    automatic: Automatic,
    manual: Option<(BreakerState, Option<u64>)>,
}

#[derive(Clone, Copy, Debug)]
enum Automatic {
    Closed { streak: u32 },
    Open { until: u64 },
    HalfOpen { successes: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Call {
    era: u64,
    counted: bool,
    /// Until when it holds a place in half-open.
    place: Option<u64>,
    expired: bool,
}

const THRESHOLD: u32 = 3;
const SUCCESSES: u32 = 2;
const PROBES: usize = 2;
const OPEN_WAIT: u64 = 10;
const LEASE: u64 = 5;
/// How often what is left of an override is saved.
const SAVE_AGAIN: u64 = 5;

impl Model {
    fn new() -> Self {
        Self {
            now: 0,
            since: 0,
            era: 0,
            automatic: Automatic::Closed { streak: 0 },
            manual: None,
            admitted: 0,
            rejected: 0,
            success: 0,
            failure: 0,
            ignored: 0,
            cancelled: 0,
            panicked: 0,
            expired: 0,
            stale: 0,
            calls: Vec::new(),
            admits: false,
            loaded: 0,
            saved: None,
        }
    }

    fn state(&self) -> BreakerState {
        match (self.manual, self.automatic) {
            (Some((state, _)), _) => state,
            (None, Automatic::Closed { .. }) => BreakerState::Closed,
            (None, Automatic::Open { .. }) => BreakerState::Open,
            (None, Automatic::HalfOpen { .. }) => BreakerState::HalfOpen,
        }
    }

    /// Time does what is due.
    fn settle_time(&mut self) {
        if let Some((_, Some(until))) = self.manual
            && self.now >= until
        {
            self.manual = None;
            self.new_era();
        }
        if self.manual.is_some() {
            return;
        }
        if let Automatic::Open { until } = self.automatic
            && self.now >= until
        {
            self.automatic = Automatic::HalfOpen { successes: 0 };
            self.new_era();
        }
        for call in &mut self.calls {
            if call.era == self.era && !call.expired && call.place.is_some_and(|until| self.now >= until) {
                call.expired = true;
                self.expired += 1;
            }
        }
    }

    fn new_era(&mut self) {
        self.era += 1;
        if let Automatic::Closed { streak } = &mut self.automatic {
            *streak = 0;
        }
    }

    fn call(&mut self) {
        let held =
            self.calls.iter().filter(|call| call.era == self.era && call.place.is_some() && !call.expired).count();
        let (admitted, counted, place) = match self.state() {
            BreakerState::Disabled => (true, false, None),
            BreakerState::Closed | BreakerState::ForcedClosed | BreakerState::MetricsOnly => (true, true, None),
            BreakerState::HalfOpen => (held < PROBES, true, Some(self.now + LEASE)),
            BreakerState::Recovering => unreachable!("it closes at once"),
            BreakerState::Open | BreakerState::ForcedOpen => (false, true, None),
        };
        self.admits = admitted;
        if !admitted {
            self.rejected += 1;
            return;
        }
        self.admitted += u64::from(counted);
        self.calls.push(Call { era: self.era, counted, place, expired: false });
    }

    fn report(&mut self, call: Call, counter: fn(&mut Self) -> &mut u64, alive: Option<bool>) {
        if !call.counted {
            return;
        }
        if !call.expired {
            *counter(self) += 1;
        }
        if call.expired || call.era != self.era {
            self.stale += 1;
            return;
        }
        if self.manual.is_some() {
            return;
        }
        match (self.automatic, alive) {
            (_, None) => {}
            (Automatic::Closed { .. }, Some(true)) => self.automatic = Automatic::Closed { streak: 0 },
            (Automatic::Closed { streak }, Some(false)) if streak + 1 < THRESHOLD => {
                self.automatic = Automatic::Closed { streak: streak + 1 };
            }
            (Automatic::HalfOpen { successes }, Some(true)) if successes + 1 < SUCCESSES => {
                self.automatic = Automatic::HalfOpen { successes: successes + 1 };
            }
            (Automatic::HalfOpen { .. }, Some(true)) => {
                self.automatic = Automatic::Closed { streak: 0 };
                self.new_era();
            }
            (_, Some(false)) => {
                self.automatic = Automatic::Open { until: self.now + OPEN_WAIT };
                self.new_era();
            }
            (Automatic::Open { .. }, Some(true)) => unreachable!("no call is admitted in an open era"),
        }
    }

    fn force(&mut self, state: BreakerState, ends: Option<u64>) {
        if let Automatic::HalfOpen { .. } = self.automatic {
            self.automatic = Automatic::Open { until: self.now };
        }
        self.manual = Some((state, ends.map(|seconds| self.now + seconds)));
        self.new_era();
    }

    fn reset(&mut self) {
        self.manual = None;
        self.automatic = Automatic::Closed { streak: 0 };
        self.new_era();
    }

    fn needs_saving(&self) -> bool {
        self.era != self.loaded || self.waits()
    }

    /// Whether a wait is running of which the store has to know what is left.
    fn waits(&self) -> bool {
        matches!((self.automatic, self.manual), (Automatic::Open { .. }, _) | (_, Some((_, Some(_)))))
    }

    fn save(&mut self) {
        self.saved = Some(Saved { at: self.now, era: self.era, automatic: self.automatic, manual: self.manual });
    }

    /// What the actor does by itself: saves at every change, and what is left of a wait every thirtieth of it (which
    /// is less than the second that the model counts in), or every five seconds.
    fn keep_saved(&mut self, era: u64) {
        let since = self.saved.map_or(0, |saved| self.now - saved.at);
        let every = if let Automatic::Open { .. } = self.automatic { 1 } else { SAVE_AGAIN };
        if self.era != era || self.waits() && since >= every {
            self.save();
        }
    }

    /// The next process. Nothing passes while there is none.
    fn restart(&mut self) {
        let fresh = Self { now: self.now, since: self.now, saved: self.saved, ..Self::new() };
        *self = fresh;
        let Some(saved) = self.saved else { return };
        self.automatic = match saved.automatic {
            Automatic::Open { until } => Automatic::Open { until: self.now + until.saturating_sub(saved.at) },
            Automatic::HalfOpen { .. } => Automatic::Open { until: self.now },
            Automatic::Closed { .. } => Automatic::Closed { streak: 0 },
        };
        let left = |until: u64| self.now + until.saturating_sub(saved.at);
        self.manual = saved.manual.map(|(state, until)| (state, until.map(left)));
        (self.loaded, self.era) = (saved.era, saved.era);
        if self.state() != BreakerState::Closed {
            self.era += 1;
        }
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::new()).boxed()
    }

    fn transitions(model: &Self) -> BoxedStrategy<Step> {
        use CallOutcome::{Cancelled, Failure, Ignored, Refused, Slow, Success};
        let manual =
            [BreakerState::ForcedOpen, BreakerState::ForcedClosed, BreakerState::Disabled, BreakerState::MetricsOnly];
        let manual = prop::sample::select(manual.to_vec());
        let alone = prop_oneof![
            12 => Just(Step::Call),
            6 => (0_u64..8).prop_map(Step::Pass),
            1 => (manual, prop::option::of(1_u64..8)).prop_map(|(state, ends)| Step::Force(state, ends)),
            1 => Just(Step::Lift),
            1 => Just(Step::Reset),
            1 => Just(Step::Kill),
            1 => any::<bool>().prop_map(|saved| Step::Restart { saved }),
        ];
        if model.calls.is_empty() {
            return alone.boxed();
        }
        let outcome = prop_oneof![
            4 => Just(Failure),
            4 => Just(Success),
            1 => Just(Slow),
            1 => Just(Refused),
            1 => Just(Ignored),
            1 => Just(Cancelled)
        ];
        let which = 0..model.calls.len();
        prop_oneof![
            23 => alone,
            14 => (which.clone(), outcome).prop_map(|(at, outcome)| Step::Settle(at, outcome)),
            1 => which.clone().prop_map(Step::Drop),
            1 => which.prop_map(Step::Panic),
        ]
        .boxed()
    }

    fn preconditions(model: &Self, step: &Step) -> bool {
        match step {
            Step::Settle(at, _) | Step::Drop(at) | Step::Panic(at) => *at < model.calls.len(),
            _ => true,
        }
    }

    fn apply(mut model: Self, step: &Step) -> Self {
        let era = model.era;
        match *step {
            Step::Call => model.call(),
            Step::Settle(at, outcome) => {
                let call = model.calls.swap_remove(at);
                match outcome {
                    CallOutcome::Success | CallOutcome::Slow | CallOutcome::Refused => {
                        model.report(call, |model| &mut model.success, Some(true));
                    }
                    CallOutcome::Failure => model.report(call, |model| &mut model.failure, Some(false)),
                    CallOutcome::Ignored => model.report(call, |model| &mut model.ignored, None),
                    CallOutcome::Cancelled => model.report(call, |model| &mut model.cancelled, None),
                }
            }
            Step::Drop(at) => {
                let call = model.calls.swap_remove(at);
                model.report(call, |model| &mut model.cancelled, None);
            }
            Step::Panic(at) => {
                let call = model.calls.swap_remove(at);
                model.report(call, |model| &mut model.panicked, Some(false));
            }
            Step::Pass(seconds) => model.now += seconds,
            Step::Force(state, ends) => model.force(state, ends),
            Step::Lift => {
                if model.manual.take().is_some() {
                    model.new_era();
                }
            }
            Step::Reset => model.reset(),
            Step::Kill => {
                if model.needs_saving() {
                    model.save();
                }
            }
            Step::Restart { saved } => {
                if saved {
                    model.save();
                }
                model.restart();
                model.settle_time();
                if model.needs_saving() {
                    model.save();
                }
            }
        }
        model.settle_time();
        model.keep_saved(era);
        model
    }
}

struct Run {
    runtime: Runtime,
    world: World,
}

/// The breaker, its actor and its store; calls that are out are at the same index as in the model.
struct World {
    store: Arc<MemoryStateStore>,
    process: Option<Process>,
    leases: Vec<OwnedLease>,
}

struct Process {
    rig: Rig,
    actor: ActorRef<BreakerMessage>,
    events: Subscription,
    told: Vec<BreakerState>,
}

impl Process {
    async fn start(store: &Arc<MemoryStateStore>) -> Self {
        let config = BreakerConfig {
            failure_threshold: THRESHOLD,
            success_threshold: SUCCESSES,
            reset_timeout: Duration::from_secs(OPEN_WAIT),
            half_open_probes: Some(PROBES as u32),
            half_open_lease: Duration::from_secs(LEASE),
            // The model knows no ages.
            slow_call: Duration::from_secs(3_600),
            ..abrupt()
        };
        let rig = rig_with(config, Some(Arc::clone(store) as _)).await;
        let (events, told) = (rig.bus.subscribe(), vec![rig.state()]);
        let actor = spawn(&rig).await;
        Self { rig, actor, events, told }
    }

    fn breaker(&self) -> &BreakerHandle {
        &self.rig.breaker
    }
}

async fn spawn(rig: &Rig) -> ActorRef<BreakerMessage> {
    let arguments = BreakerArguments { cell: rig.cell.clone() };
    Actor::spawn(None, BreakerActor, arguments).await.expect("it starts").0
}

/// Lets the actor, its timer and its savings do what they have to do at this moment.
async fn come_to_rest() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

impl World {
    fn process(&self) -> &Process {
        self.process.as_ref().expect("there is always one")
    }

    async fn step(&mut self, model: &Model, step: Step) {
        match step {
            Step::Call => {
                let lease = self.process().breaker().gate().try_acquire_owned(Purpose::Live);
                assert_eq!(lease.is_ok(), model.admits, "admission at {} s", model.now);
                self.leases.extend(lease);
            }
            Step::Settle(at, outcome) => self.leases.swap_remove(at).settle(outcome),
            Step::Drop(at) => drop(self.leases.swap_remove(at)),
            Step::Panic(at) => {
                let lease = self.leases.swap_remove(at);
                let panicking = AssertUnwindSafe(move || {
                    let _lease = lease;
                    std::panic::resume_unwind(Box::new(()));
                });
                assert!(catch_unwind(panicking).is_err());
            }
            Step::Pass(seconds) => tokio::time::advance(Duration::from_secs(seconds)).await,
            Step::Force(state, ends) => {
                let expires_in = ends.map(Duration::from_secs);
                self.process().breaker().control(match state {
                    BreakerState::ForcedOpen => Control::ForceOpen { reason: String::new(), expires_in },
                    BreakerState::ForcedClosed => Control::ForceClosed { reason: String::new(), expires_in },
                    BreakerState::MetricsOnly => Control::MetricsOnly { reason: String::new(), expires_in },
                    _ => Control::Disable { reason: String::new(), expires_in },
                });
            }
            Step::Lift => self.process().breaker().lift(),
            Step::Reset => self.process().breaker().reset(),
            Step::Kill => {
                let process = self.process.as_mut().expect("there is always one");
                process.actor.kill_and_wait(None).await.expect("it can be killed");
                process.actor = spawn(&process.rig).await;
            }
            Step::Restart { saved } => self.restart(saved).await,
        }
        come_to_rest().await;
    }

    async fn restart(&mut self, saved: bool) {
        let process = self.process.take().expect("there is always one");
        if saved {
            process.rig.cell.save().await.expect("the store is well");
        }
        process.actor.kill_and_wait(None).await.expect("it can be killed");
        // What a dead process had out never reports.
        self.leases.drain(..).for_each(std::mem::forget);
        self.process = Some(Process::start(&self.store).await);
    }

    fn compare(&self, model: &Model) {
        let seen = self.process().breaker().snapshot();
        assert_eq!(seen.state, model.state());
        assert_eq!(seen.generation, model.era);
        assert_eq!(
            [seen.admitted, seen.rejected, seen.successful, seen.failed, seen.ignored],
            [model.admitted, model.rejected, model.success, model.failure, model.ignored]
        );
        assert_eq!(
            [seen.cancelled, seen.panicked, seen.expired, seen.stale_results],
            [model.cancelled, model.panicked, model.expired, model.stale]
        );
        let out = model.calls.iter().filter(|call| call.counted && !call.expired).count() as u64;
        assert_eq!(seen.in_flight, out, "conservation");
        let spent = seen.time_in_closed + seen.time_in_open + seen.time_in_half_open + seen.time_in_manual;
        assert_eq!(spent, Duration::from_secs(model.now - model.since), "exactly one state at any time");
        let saved = self.store.get(&"graph".into()).map(|saved| saved.generation);
        assert_eq!(saved, model.saved.map(|saved| saved.era), "what the store holds");
    }
}

/// The breaker with its actor and a store, against the model.
struct Breaker;

impl StateMachineTest for Breaker {
    type SystemUnderTest = Run;
    type Reference = Model;

    fn init_test(_: &Model) -> Run {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let store = Arc::new(MemoryStateStore::default());
        let process = Some(runtime.block_on(Process::start(&store)));
        Run { runtime, world: World { store, process, leases: Vec::new() } }
    }

    fn apply(mut run: Run, model: &Model, step: Step) -> Run {
        run.runtime.block_on(run.world.step(model, step));
        let process = run.world.process.as_mut().expect("there is always one");
        process.told.extend(states(&drain(&mut process.events)));
        assert_eq!(process.told.last().copied(), Some(model.state()), "what is told is what is");
        run
    }

    fn check_invariants(run: &Run, model: &Model) {
        let _time = run.runtime.enter();
        run.world.compare(model);
    }

    fn teardown(Run { runtime, world }: Run, _: Model) {
        let _time = runtime.enter();
        drop(world);
    }
}

prop_state_machine! {
    #![proptest_config(models::cases(192))]

    #[test]
    fn trap_15_after_any_run_the_breaker_agrees_with_the_model_and_every_call_is_accounted_for(
        sequential 1..150 => Breaker
    );
}

proptest! {
    #![proptest_config(models::cases(192))]

    #[test]
    fn trap_13_a_restored_wait_is_never_longer_than_configured(
        remaining in 0_u64..200, state in 0..3, format_age in 0_u64..100,
    ) {
        let saved = SavedBreaker {
            format: FORMAT,
            sequence: 9,
            state: [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen][state as usize],
            generation: u64::MAX,
            failure_count: 5,
            remaining_wait: Duration::from_secs(remaining),
            attempts: u32::MAX,
            manual: None,
            half_open_attempts: u32::MAX,
            history: vec![Transition {
                from: BreakerState::Closed,
                to: BreakerState::Open,
                cause: TransitionCause::ConsecutiveFailures(5),
                generation: 1,
                age: Duration::from_secs(format_age),
            }; 99],
        };
        let now = Instant::now();
        let mut policy = BreakerPolicy::restore(BreakerConfig::default(), saved, now);
        let wait = policy.wake_at().map(|at| at - now).unwrap_or_default();
        prop_assert!(wait <= WAIT);
        if state == 1 {
            prop_assert_eq!(wait, Duration::from_secs(remaining).min(WAIT));
        }
        policy.tick(now + wait);
        prop_assert!(policy.admit(Purpose::Live, now + wait).is_some());
        prop_assert!(policy.saved(10, now).history.len() <= HISTORY);
    }
}
