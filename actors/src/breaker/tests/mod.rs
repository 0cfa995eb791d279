//! The promises of a breaker, through its public face and under paused time.

mod actor;
mod model;
mod persistence;
mod recovery;
mod rules;
#[cfg(any(seawall_loom, seawall_shuttle))]
mod schedules;
mod traps;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::event::{Event, EventBus, EventKind, Subscription, Update};

const MS: Duration = Duration::from_millis(1);
const WAIT: Duration = Duration::from_secs(60);

/// A breaker without its actor, and the bus that it publishes on.
struct Rig {
    cell: BreakerCell,
    breaker: BreakerHandle,
    bus: Arc<EventBus>,
}

async fn rig(config: BreakerConfig) -> Rig {
    rig_with(config, None).await
}

async fn rig_with(config: BreakerConfig, store: Option<Arc<dyn BreakerStateStore>>) -> Rig {
    let bus = Arc::new(EventBus::new());
    let cell = BreakerCell::open("graph".into(), config, Arc::clone(&bus), store).await;
    Rig { breaker: cell.handle(), cell, bus }
}

/// Opens at the first failure, closes at the first success, one probe at a time.
fn touchy() -> BreakerConfig {
    BreakerConfig { failure_threshold: 1, success_threshold: 1, ..abrupt() }
}

/// The defaults, but closed as soon as the probes succeed.
fn abrupt() -> BreakerConfig {
    BreakerConfig { gradual_recovery: false, ..BreakerConfig::default() }
}

impl Rig {
    fn call(&self, outcome: CallOutcome) {
        self.admit().settle(outcome);
    }

    fn admit(&self) -> OwnedLease {
        self.breaker.gate().try_acquire_owned(Purpose::Live).expect("the call is admitted")
    }

    fn refused(&self) -> Rejected {
        self.breaker.gate().try_acquire(Purpose::Live).expect_err("the call is refused")
    }

    fn open(&self) {
        while self.state() != BreakerState::Open {
            self.call(CallOutcome::Failure);
        }
    }

    fn state(&self) -> BreakerState {
        self.breaker.view().state
    }
}

fn drain(events: &mut Subscription) -> Vec<Arc<Event>> {
    std::iter::from_fn(|| events.try_next())
        .map(|update| match update {
            Update::Event(event) => event,
            Update::Lagged { missed } => panic!("missed {missed} events"),
        })
        .collect()
}

fn states(events: &[Arc<Event>]) -> Vec<BreakerState> {
    let mut states = Vec::new();
    for event in events {
        let (from, to) = match &event.kind {
            EventKind::BreakerChanged { from, to, .. } => (from, to),
            EventKind::BreakerWouldOpen { .. } => continue,
            other => panic!("{other:?}"),
        };
        assert_eq!(*from, states.last().copied().unwrap_or(*from), "events form a chain");
        states.push(*to);
    }
    states
}

#[tokio::test(start_paused = true)]
async fn it_opens_at_the_fifth_failure_in_a_row_and_closes_at_the_second_success() {
    let rig = rig(abrupt()).await;
    let mut events = rig.bus.subscribe();
    for _ in 0..4 {
        rig.call(CallOutcome::Failure);
    }
    rig.call(CallOutcome::Success);
    for _ in 0..4 {
        rig.call(CallOutcome::Failure);
    }
    assert_eq!(rig.state(), BreakerState::Closed);
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Open);
    let refused = rig.refused();
    assert_eq!((refused.state, refused.retry_after()), (BreakerState::Open, WAIT));
    tokio::time::advance(WAIT).await;
    rig.call(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::HalfOpen);
    rig.call(CallOutcome::Refused);
    assert_eq!(rig.state(), BreakerState::Closed);
    assert_eq!(states(&drain(&mut events)), [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed]);
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.total_requests, seen.admitted, seen.rejected), (13, 12, 1));
    assert_eq!((seen.successful, seen.failed, seen.in_flight), (3, 9, 0));
    assert_eq!((seen.state_transitions, seen.time_in_open), (3, WAIT));
    assert!((seen.success_rate() - 0.25).abs() < 1e-9 && (seen.availability() - 12.0 / 13.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_opens_it_again_for_the_whole_wait() {
    let rig = rig(BreakerConfig::default()).await;
    rig.open();
    tokio::time::advance(WAIT).await;
    rig.call(CallOutcome::Success);
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.refused().retry_after(), WAIT);
    assert_eq!(rig.breaker.explain().cause, Some(TransitionCause::ProbeFailed));
}

#[tokio::test(start_paused = true)]
async fn an_override_dominates_until_it_is_lifted_and_the_wait_goes_on_beneath() {
    let rig = rig(touchy()).await;
    rig.open();
    rig.breaker.force_closed("the alarm is wrong", None);
    for _ in 0..10 {
        rig.call(CallOutcome::Failure);
    }
    assert_eq!(rig.state(), BreakerState::ForcedClosed);
    tokio::time::advance(WAIT / 2).await;
    rig.breaker.lift();
    let refused = rig.refused();
    assert_eq!((refused.state, refused.retry_after()), (BreakerState::Open, WAIT / 2));
    rig.breaker.force_open("maintenance", None);
    tokio::time::advance(WAIT).await;
    let refused = rig.refused();
    let guess = (BreakerState::ForcedOpen, WAIT);
    assert_eq!((refused.state, refused.retry_after()), guess, "nobody knows when, so it is a guess");
    rig.breaker.lift();
    assert_eq!(rig.state(), BreakerState::HalfOpen, "the wait is over");
}

#[tokio::test(start_paused = true)]
async fn an_override_ends_when_its_time_is_up_without_an_actor() {
    let rig = rig(touchy()).await;
    rig.breaker.force_open("maintenance", Some(WAIT));
    assert_eq!(rig.refused().retry_after(), WAIT);
    tokio::time::advance(WAIT).await;
    rig.call(CallOutcome::Success);
    assert_eq!(rig.state(), BreakerState::Closed);
    assert_eq!(rig.breaker.explain().cause, Some(TransitionCause::OverrideExpired));
}

#[tokio::test(start_paused = true)]
async fn a_disabled_breaker_counts_nothing_and_a_call_from_before_is_still_accounted_for() {
    let rig = rig(touchy()).await;
    let before = rig.admit();
    rig.breaker.disable("trial", None);
    for _ in 0..10 {
        rig.call(CallOutcome::Failure);
    }
    let within = rig.admit();
    before.settle(CallOutcome::Failure);
    rig.breaker.lift();
    within.settle(CallOutcome::Failure);
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.state, seen.admitted, seen.failed, seen.in_flight), (BreakerState::Closed, 1, 1, 0));
    assert_eq!(seen.stale_results, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reset_closes_it_and_calls_from_before_no_longer_count() {
    let rig = rig(BreakerConfig { failure_threshold: 2, ..touchy() }).await;
    let before = rig.admit();
    rig.call(CallOutcome::Failure);
    rig.breaker.reset();
    before.settle(CallOutcome::Failure);
    rig.call(CallOutcome::Failure);
    assert_eq!(rig.state(), BreakerState::Closed);
    rig.breaker.force_open("maintenance", None);
    rig.breaker.reset();
    assert_eq!(rig.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn errors_are_judged_by_their_verdict_unless_they_are_excluded() {
    use crate::backend::BackendError;
    let rig = rig(BreakerConfig { excluded_errors: vec!["lint".into()], ..touchy() }).await;
    let settle = |error: BackendError| rig.admit().settle_result(&Err::<(), _>(error));
    settle(BackendError::refused("conflict"));
    settle(BackendError::permanent("no such label").with_code("label"));
    settle(BackendError::read_only("disk full"));
    settle(BackendError::transient("bad query").with_code("lint"));
    rig.admit().settle_result(&Ok::<_, BackendError>(7));
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.state, seen.successful, seen.ignored), (BreakerState::Closed, 4, 1));
    assert_eq!((seen.admitted, seen.in_flight, seen.cancelled), (5, 0, 0), "each reports once");
    settle(BackendError::unknown("secret payload").with_code("reset"));
    assert_eq!(rig.state(), BreakerState::Open);
    let explained = rig.breaker.explain();
    assert_eq!(explained.opened_by, Some(TransitionCause::ConsecutiveFailures(1)));
    assert_eq!(explained.opened_on.len(), 1);
    assert_eq!(explained.opened_on[0].code.as_deref(), Some("reset"));
    assert_eq!(explained.until, Some(WAIT));
    assert!(!format!("{explained:?}{explained}").contains("secret"), "messages of errors are not kept");
}

#[tokio::test(start_paused = true)]
async fn what_it_remembers_is_bounded() {
    let rig = rig(touchy()).await;
    rig.breaker.force_closed("to fail a lot", None);
    for _ in 0..200 {
        let error = crate::backend::BackendError::unknown("").with_code("ä".repeat(1_000));
        rig.admit().settle_result(&Err::<(), _>(error));
        rig.breaker.force_closed("again", None);
    }
    let explained = rig.breaker.explain();
    assert_eq!((explained.failures.len(), explained.history.len()), (SAMPLES, HISTORY));
    assert_eq!(explained.failures[0].code.as_ref().map(String::len), Some(64));
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_shortens_a_wait_and_a_wrong_one_changes_nothing() {
    let rig = rig(touchy()).await;
    rig.open();
    rig.breaker.reconfigure(BreakerConfig { reset_timeout: WAIT * 2, ..touchy() }).unwrap();
    assert_eq!(rig.refused().retry_after(), WAIT);
    rig.breaker.reconfigure(BreakerConfig { reset_timeout: WAIT / 2, ..touchy() }).unwrap();
    assert_eq!(rig.refused().retry_after(), WAIT / 2);
    let problems = rig.breaker.reconfigure(BreakerConfig { failure_threshold: 0, ..touchy() }).unwrap_err();
    assert_eq!(problems[0].path, "failure_threshold");
    assert_eq!(rig.refused().retry_after(), WAIT / 2);
}

#[tokio::test(start_paused = true)]
async fn the_age_of_the_last_success_and_failure_is_told() {
    let rig = rig(BreakerConfig::default()).await;
    assert_eq!((rig.breaker.snapshot().last_success, rig.breaker.snapshot().last_failure), (None, None));
    rig.call(CallOutcome::Success);
    rig.call(CallOutcome::Failure);
    tokio::time::advance(WAIT).await;
    let seen = rig.breaker.snapshot();
    assert_eq!((seen.last_success, seen.last_failure), (Some(WAIT), Some(WAIT)));
}
