//! Trap 15: random runs against a model that is as plain as can be.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Call,
    Settle(prop::sample::Index, CallOutcome),
    Drop(prop::sample::Index),
    Panic(prop::sample::Index),
    Pass(u64),
    Force(BreakerState, Option<u64>),
    Lift,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use CallOutcome::{Cancelled, Failure, Ignored, Refused, Slow, Success};
    let outcome = prop_oneof![
        4 => Just(Failure), 4 => Just(Success), 1 => Just(Slow), 1 => Just(Refused), 1 => Just(Ignored), 1 => Just(Cancelled)
    ];
    let manual =
        prop_oneof![Just(BreakerState::ForcedOpen), Just(BreakerState::ForcedClosed), Just(BreakerState::Disabled)];
    let step = prop_oneof![
        12 => Just(Step::Call),
        14 => (any::<prop::sample::Index>(), outcome).prop_map(|(at, outcome)| Step::Settle(at, outcome)),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
        1 => any::<prop::sample::Index>().prop_map(Step::Panic),
        6 => (0_u64..8).prop_map(Step::Pass),
        1 => (manual, prop::option::of(1_u64..8)).prop_map(|(state, ends)| Step::Force(state, ends)),
        1 => Just(Step::Lift),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..150)
}

/// The breaker as a person would write it on a page. Times are in seconds. A call remembers in which era it was
/// admitted; every change of state begins a new one.
struct Model {
    now: u64,
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
}

#[derive(Clone, Copy)]
enum Automatic {
    Closed { streak: u32 },
    Open { until: u64 },
    HalfOpen { successes: u32 },
}

#[derive(Clone, Copy)]
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

impl Model {
    fn new() -> Self {
        Self {
            now: 0,
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
    fn settle_time(&mut self, calls: &mut [Call]) {
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
        for call in calls {
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

    fn call(&mut self, calls: &mut [Call]) -> Option<Call> {
        self.settle_time(calls);
        let held = calls.iter().filter(|call| call.era == self.era && call.place.is_some() && !call.expired).count();
        let (admitted, counted, place) = match self.state() {
            BreakerState::Disabled => (true, false, None),
            BreakerState::Closed | BreakerState::ForcedClosed => (true, true, None),
            BreakerState::HalfOpen => (held < PROBES, true, Some(self.now + LEASE)),
            BreakerState::Open | BreakerState::ForcedOpen => (false, true, None),
        };
        if !admitted {
            self.rejected += 1;
            return None;
        }
        self.admitted += u64::from(counted);
        Some(Call { era: self.era, counted, place, expired: false })
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
}

/// Breaker and model side by side; calls that are out are at the same index in both.
struct Run {
    rig: Rig,
    model: Model,
    leases: Vec<OwnedLease>,
    calls: Vec<Call>,
}

impl Run {
    async fn step(&mut self, step: Step) {
        match step {
            Step::Call => self.call(),
            Step::Settle(at, outcome) => self.end(at, outcome),
            Step::Drop(at) => {
                if let Some((lease, call)) = self.take(at) {
                    drop(lease);
                    self.model.report(call, |model| &mut model.cancelled, None);
                }
            }
            Step::Panic(at) => {
                if let Some((lease, call)) = self.take(at) {
                    let panicking = AssertUnwindSafe(move || {
                        let _lease = lease;
                        std::panic::resume_unwind(Box::new(()));
                    });
                    assert!(catch_unwind(panicking).is_err());
                    self.model.report(call, |model| &mut model.panicked, Some(false));
                }
            }
            Step::Pass(seconds) => {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                self.model.now += seconds;
            }
            Step::Force(state, ends) => self.force(state, ends),
            Step::Lift => {
                self.rig.breaker.lift();
                self.model.settle_time(&mut self.calls);
                if self.model.manual.take().is_some() {
                    self.model.new_era();
                }
                self.model.settle_time(&mut self.calls);
            }
            Step::Reset => {
                self.rig.breaker.reset();
                self.model.manual = None;
                self.model.automatic = Automatic::Closed { streak: 0 };
                self.model.new_era();
            }
        }
    }

    fn call(&mut self) {
        let lease = self.rig.breaker.gate().try_acquire_owned(Purpose::Live);
        let call = self.model.call(&mut self.calls);
        assert_eq!(lease.is_ok(), call.is_some(), "admission at {} s", self.model.now);
        if let (Ok(lease), Some(call)) = (lease, call) {
            self.leases.push(lease);
            self.calls.push(call);
        }
    }

    fn take(&mut self, at: prop::sample::Index) -> Option<(OwnedLease, Call)> {
        let at = (!self.leases.is_empty()).then(|| at.index(self.leases.len()))?;
        // The gate looks at the time when a call reports that can change something; asking it for a snapshot
        // makes both look now.
        let _ = self.rig.breaker.snapshot();
        self.model.settle_time(&mut self.calls);
        Some((self.leases.swap_remove(at), self.calls.swap_remove(at)))
    }

    fn end(&mut self, at: prop::sample::Index, outcome: CallOutcome) {
        let Some((lease, call)) = self.take(at) else { return };
        lease.settle(outcome);
        let (counter, alive): (fn(&mut Model) -> &mut u64, _) = match outcome {
            CallOutcome::Success | CallOutcome::Slow | CallOutcome::Refused => (|model| &mut model.success, Some(true)),
            CallOutcome::Failure => (|model| &mut model.failure, Some(false)),
            CallOutcome::Ignored => (|model| &mut model.ignored, None),
            CallOutcome::Cancelled => (|model| &mut model.cancelled, None),
        };
        self.model.report(call, counter, alive);
    }

    fn force(&mut self, state: BreakerState, ends: Option<u64>) {
        let expires_in = ends.map(Duration::from_secs);
        self.rig.breaker.control(match state {
            BreakerState::ForcedOpen => Control::ForceOpen { reason: String::new(), expires_in },
            BreakerState::ForcedClosed => Control::ForceClosed { reason: String::new(), expires_in },
            _ => Control::Disable { reason: String::new(), expires_in },
        });
        self.model.settle_time(&mut self.calls);
        if let Automatic::HalfOpen { .. } = self.model.automatic {
            self.model.automatic = Automatic::Open { until: self.model.now };
        }
        self.model.manual = Some((state, ends.map(|seconds| self.model.now + seconds)));
        self.model.new_era();
    }

    fn compare(&mut self) {
        let seen = self.rig.breaker.snapshot();
        self.model.settle_time(&mut self.calls);
        let model = &self.model;
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
        let out = self.calls.iter().filter(|call| call.counted && !call.expired).count() as u64;
        assert_eq!(seen.in_flight, out, "conservation");
        let spent = seen.time_in_closed + seen.time_in_open + seen.time_in_half_open + seen.time_in_manual;
        assert_eq!(spent, Duration::from_secs(model.now), "exactly one state at any time");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn trap_15_after_any_run_the_breaker_agrees_with_the_model_and_every_call_is_accounted_for(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let config = BreakerConfig {
                failure_threshold: THRESHOLD,
                success_threshold: SUCCESSES,
                reset_timeout: Duration::from_secs(OPEN_WAIT),
                half_open_probes: Some(PROBES as u32),
                half_open_lease: Duration::from_secs(LEASE),
                ..BreakerConfig::default()
            };
            let rig = rig(config).await;
            let mut events = rig.bus.subscribe();
            let mut run = Run { rig, model: Model::new(), leases: Vec::new(), calls: Vec::new() };
            for step in steps {
                run.step(step).await;
                run.compare();
            }
            let told = states(&drain(&mut events));
            assert_eq!(told.last().copied().unwrap_or_default(), run.rig.state());
        });
    }

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
