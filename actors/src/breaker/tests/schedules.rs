//! What holds in every order in which threads can take turns. See `tests/threads`.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::time::Instant;

use super::*;
use crate::breaker::tally::{Rare, Tally};
use crate::breaker::word::{Published, Word};
use crate::threads::atomic::{AtomicBool, Ordering};
use crate::threads::schedules::{Clock, explore, thread};

const LEASE: Duration = Duration::from_secs(30);

fn gate(config: BreakerConfig) -> Arc<Gate> {
    let now = Instant::now();
    Arc::new(Gate::new("graph".into(), BreakerPolicy::new(config, now), Arc::default(), 0, 0, now))
}

fn probing(places: u32) -> BreakerConfig {
    BreakerConfig { half_open_probes: Some(places), half_open_lease: LEASE, ..touchy() }
}

fn acquire(gate: &Arc<Gate>) -> Option<OwnedLease> {
    gate.try_acquire_owned(Purpose::Live).ok()
}

/// A gate that is open, and whose wait is over: the next caller makes it half-open.
fn due(config: BreakerConfig, clock: &Clock) -> Arc<Gate> {
    let gate = gate(config);
    acquire(&gate).expect("it is closed").settle(CallOutcome::Failure);
    clock.pass(WAIT);
    gate
}

fn control(gate: &Arc<Gate>, control: Control) {
    BreakerHandle::new(Arc::clone(gate)).control(control);
}

fn ended(seen: &BreakerSnapshot) -> u64 {
    seen.successful + seen.failed + seen.ignored + seen.cancelled + seen.panicked + seen.expired
}

#[test]
fn half_open_admits_exactly_as_many_as_it_has_places_the_caller_that_makes_it_half_open_included() {
    for places in [1, 2] {
        explore(move || {
            let clock = Clock::new();
            let _clock = clock.enter();
            let gate = due(probing(places), &clock);
            let callers: Vec<_> = (0..2)
                .map(|_| {
                    let gate = Arc::clone(&gate);
                    thread::spawn(move || acquire(&gate))
                })
                .collect();
            let own = acquire(&gate);
            let leases: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).chain([own]).collect();
            assert_eq!(leases.iter().flatten().count(), places as usize);
            let seen = gate.snapshot();
            assert_eq!((seen.state, seen.in_flight), (BreakerState::HalfOpen, u64::from(places)));
            assert_eq!((seen.total_requests, seen.state_transitions), (4, 2));
        });
    }
}

#[test]
fn a_place_that_is_given_back_is_never_held_by_two() {
    explore(|| {
        let clock = Clock::new();
        let _clock = clock.enter();
        let gate = due(probing(1), &clock);
        let held = Arc::new(AtomicUsize::new(0));
        let call = |gate: Arc<Gate>, held: Arc<AtomicUsize>, outcome: CallOutcome| {
            if let Some(lease) = acquire(&gate) {
                assert_eq!(held.fetch_add(1, SeqCst), 0, "two hold the one place");
                thread::yield_now();
                held.fetch_sub(1, SeqCst);
                lease.settle(outcome);
            }
        };
        let other = {
            let (gate, held) = (Arc::clone(&gate), Arc::clone(&held));
            thread::spawn(move || call(gate, held, CallOutcome::Ignored))
        };
        call(Arc::clone(&gate), held, CallOutcome::Cancelled);
        other.join().unwrap();
        let seen = gate.snapshot();
        assert_eq!((seen.state, seen.in_flight), (BreakerState::HalfOpen, 0));
        assert_eq!(seen.admitted, ended(&seen));
        assert_eq!(seen.total_requests, 3);
    });
}

#[test]
fn a_lease_that_expires_while_it_reports_is_counted_once_and_its_place_is_given_to_one_other() {
    for outcome in [Some(CallOutcome::Success), Some(CallOutcome::Failure), None] {
        explore(move || {
            let clock = Clock::new();
            let _clock = clock.enter();
            let gate = due(probing(1), &clock);
            let first = acquire(&gate).expect("the first probe");
            let reporter = thread::spawn(move || match outcome {
                Some(outcome) => first.settle(outcome),
                None => drop(first),
            });
            let time = {
                let clock = clock.clone();
                thread::spawn(move || clock.pass(LEASE))
            };
            let second = acquire(&gate);
            reporter.join().unwrap();
            time.join().unwrap();
            let seen = gate.snapshot();
            let out = second.iter().filter(|lease| lease.generation().is_some()).count() as u64;
            let own = seen.admitted - 1 - out;
            assert_eq!(own, 1, "the first probe was admitted once");
            assert_eq!(seen.admitted, ended(&seen) + seen.in_flight);
            assert!(seen.expired <= 2 && seen.stale_results <= 1);
            match (outcome, seen.successful + seen.failed - 1 + seen.cancelled) {
                // It reported in time, and its report counts.
                (_, 1) => assert_eq!(seen.stale_results, 0),
                // It came too late, and changes nothing.
                (_, 0) => assert_eq!((seen.stale_results, seen.state), (1, BreakerState::HalfOpen)),
                (_, reports) => panic!("{reports} reports of one call"),
            }
        });
    }
}

#[test]
fn a_result_of_an_older_generation_never_changes_the_state() {
    explore(|| {
        let clock = Clock::new();
        let _clock = clock.enter();
        let gate = gate(touchy());
        let lease = acquire(&gate).expect("it is closed");
        let reporter = thread::spawn(move || lease.settle(CallOutcome::Failure));
        control(&gate, Control::Reset);
        reporter.join().unwrap();
        let seen = gate.snapshot();
        assert_eq!((seen.state, seen.failed, seen.in_flight), (BreakerState::Closed, 1, 0));
        // Either it opened and was reset, or it was reset and the failure is from before.
        assert!(matches!((seen.generation, seen.stale_results), (2, 0) | (1, 1)), "{seen:?}");
    });
}

#[test]
fn a_probe_that_succeeds_while_a_person_forces_the_breaker_closes_it_or_is_stale() {
    explore(|| {
        let clock = Clock::new();
        let _clock = clock.enter();
        let gate = due(probing(1), &clock);
        let lease = acquire(&gate).expect("the first probe");
        let reporter = thread::spawn(move || lease.settle(CallOutcome::Success));
        control(&gate, Control::ForceOpen { reason: String::new(), expires_in: None });
        assert_eq!(acquire(&gate).map(drop), None, "nobody gets past a person");
        control(&gate, Control::Lift);
        reporter.join().unwrap();
        let seen = gate.snapshot();
        assert_eq!((seen.successful, seen.in_flight), (1, 0));
        assert!(
            matches!((seen.state, seen.stale_results), (BreakerState::Closed, 0) | (BreakerState::HalfOpen, 1)),
            "{seen:?}"
        );
    });
}

#[test]
fn who_knows_of_the_failure_that_opened_it_is_refused() {
    explore(|| {
        let clock = Clock::new();
        let _clock = clock.enter();
        let gate = gate(touchy());
        let told = Arc::new(AtomicBool::new(false));
        let failing = {
            let (gate, told) = (Arc::clone(&gate), Arc::clone(&told));
            thread::spawn(move || {
                acquire(&gate).expect("it is closed").settle(CallOutcome::Failure);
                told.store(true, Ordering::Release);
            })
        };
        let knew = told.load(Ordering::Acquire);
        let lease = acquire(&gate);
        assert!(!(knew && lease.is_some()), "a call was let through to a backend that is known to be down");
        failing.join().unwrap();
        drop(lease);
        assert_eq!(gate.view().state, BreakerState::Open);
    });
}

#[test]
fn no_snapshot_shows_more_calls_ended_than_admitted() {
    explore(|| {
        let clock = Clock::new();
        let _clock = clock.enter();
        let gate = gate(BreakerConfig { failure_threshold: 2, ..touchy() });
        let callers: Vec<_> = [CallOutcome::Success, CallOutcome::Failure]
            .into_iter()
            .map(|outcome| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || acquire(&gate).expect("it is closed").settle(outcome))
            })
            .collect();
        let seen = gate.snapshot();
        assert!(ended(&seen) <= seen.admitted, "{seen:?}");
        assert_eq!(seen.in_flight, seen.admitted - ended(&seen));
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        let seen = gate.snapshot();
        assert_eq!((seen.admitted, seen.successful, seen.failed, seen.in_flight), (2, 1, 1, 0));
    });
}

#[test]
fn a_call_that_ends_on_another_thread_is_never_seen_to_end_before_it_began() {
    explore(|| {
        let tally = Arc::new(Tally::default());
        let handed_over = Arc::new(AtomicBool::new(false));
        let caller = {
            let (tally, handed_over) = (Arc::clone(&tally), Arc::clone(&handed_over));
            thread::spawn(move || {
                tally.admitted();
                handed_over.store(true, Ordering::Release);
            })
        };
        let other = {
            let (tally, handed_over) = (Arc::clone(&tally), Arc::clone(&handed_over));
            thread::spawn(move || {
                if handed_over.load(Ordering::Acquire) {
                    tally.add(Rare::Failed, 1);
                }
            })
        };
        let seen = tally.totals();
        assert!(seen.failed <= seen.admitted, "{seen:?}");
        caller.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn who_sees_an_alarm_and_looks_again_sees_its_word_or_a_later_one() {
    explore(|| {
        let word = |generation| Word::new(BreakerState::Open, generation, false);
        let published = Arc::new(Published::new(word(0)));
        published.publish(word(0), 0);
        let writer = {
            let published = Arc::clone(&published);
            thread::spawn(move || (1..=2).for_each(|step| published.publish(word(step), step)))
        };
        let (alarm, seen) = (published.alarm(), published.word().generation());
        assert!(seen >= alarm, "word {seen} with the alarm {alarm}");
        writer.join().unwrap();
        assert_eq!((published.word().generation(), published.alarm()), (2, 2));
    });
}

/// Too many steps for all schedules: random ones, with random calls.
#[cfg(seawall_shuttle)]
#[test]
fn whatever_callers_people_and_the_clock_do_every_call_is_accounted_for() {
    use shuttle::rand::{Rng, thread_rng};

    const PLACES: usize = 2;

    fn outcome() -> CallOutcome {
        use CallOutcome::*;
        [Success, Slow, Refused, Failure, Failure, Ignored, Cancelled][thread_rng().gen_range(0..7)]
    }

    explore(|| {
        let clock = Clock::new();
        let _clock = clock.enter();
        let gate = gate(BreakerConfig { failure_threshold: 2, ..probing(PLACES as u32) });
        let tried = Arc::new(AtomicUsize::new(0));
        let callers = (0..3).map(|_| {
            let (gate, tried) = (Arc::clone(&gate), Arc::clone(&tried));
            thread::spawn(move || {
                let mut leases = Vec::new();
                for _ in 0..6 {
                    tried.fetch_add(1, SeqCst);
                    leases.extend(acquire(&gate));
                    if thread_rng().gen_bool(0.7) && !leases.is_empty() {
                        let lease = leases.swap_remove(thread_rng().gen_range(0..leases.len()));
                        if thread_rng().gen_bool(0.9) { lease.settle(outcome()) } else { drop(lease) }
                    }
                }
            })
        });
        let person = {
            let (gate, clock) = (Arc::clone(&gate), clock.clone());
            thread::spawn(move || {
                for _ in 0..4 {
                    match thread_rng().gen_range(0..5) {
                        0 => control(&gate, Control::Reset),
                        1 => control(&gate, Control::ForceClosed { reason: String::new(), expires_in: Some(LEASE) }),
                        2 => control(&gate, Control::Lift),
                        _ => clock.pass(if thread_rng().gen_bool(0.5) { WAIT } else { LEASE }),
                    }
                    let seen = gate.snapshot();
                    assert_eq!(seen.admitted, ended(&seen) + seen.in_flight);
                    assert!(gate.explain().probes.len() <= PLACES);
                }
            })
        };
        callers.chain([person]).collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
        let seen = gate.snapshot();
        assert_eq!((seen.in_flight, seen.admitted), (0, ended(&seen)), "{seen:?}");
        assert_eq!(seen.total_requests, tried.load(SeqCst) as u64);
        assert_eq!(gate.view(), BreakerView { state: seen.state, generation: seen.generation });
    });
}
