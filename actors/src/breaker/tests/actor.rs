//! The actor: its timer, its messages, and its death at any moment.

use ractor::{Actor, ActorRef, call_t};
use tokio::time::{advance, sleep};

use super::*;

async fn start(rig: &Rig) -> ActorRef<BreakerMessage> {
    let arguments = BreakerArguments { cell: rig.cell.clone() };
    Actor::spawn(None, BreakerActor, arguments).await.expect("the actor starts").0
}

#[tokio::test(start_paused = true)]
async fn watchers_without_traffic_see_the_end_of_a_wait() {
    let rig = rig(touchy()).await;
    let _actor = start(&rig).await;
    let (mut view, mut events) = (rig.breaker.watch(), rig.bus.subscribe());
    rig.open();
    let opened = tokio::time::Instant::now();
    view.wait_for(|view| view.state == BreakerState::HalfOpen).await.unwrap();
    assert!((WAIT..=WAIT + MS * 2).contains(&opened.elapsed()), "{:?}", opened.elapsed());
    assert_eq!(states(&drain(&mut events)), [BreakerState::Open, BreakerState::HalfOpen]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_probe_expires_without_traffic() {
    let rig = rig(touchy()).await;
    let _actor = start(&rig).await;
    rig.open();
    sleep(WAIT).await;
    let _lost = rig.admit();
    let lease = touchy().half_open_lease;
    sleep(lease + MS * 5).await;
    // Read past the snapshot, which would expire it as well.
    assert_eq!(rig.cell.gate.alarm().borrow().as_ref(), None);
    assert_eq!(rig.breaker.snapshot().expired, 1);
}

#[tokio::test(start_paused = true)]
async fn it_answers_messages() {
    let rig = rig(touchy()).await;
    let actor = start(&rig).await;
    let reason = "maintenance".to_owned();
    actor.cast(BreakerMessage::Control(Control::ForceOpen { reason, expires_in: None })).unwrap();
    let seen = call_t!(actor, BreakerMessage::Snapshot, 1_000).unwrap();
    assert_eq!(seen.state, BreakerState::ForcedOpen);
    let explained = call_t!(actor, BreakerMessage::Explain, 1_000).unwrap();
    assert_eq!(explained.cause, Some(TransitionCause::Manual("maintenance".into())));
    assert!(explained.to_string().starts_with("breaker `graph` is forced_open since 0ns, because"), "{explained}");
    let wrong = Box::new(BreakerConfig { success_threshold: 0, ..touchy() });
    let answer = actor.call(|port| BreakerMessage::Reconfigure(wrong, port), None).await.unwrap().unwrap();
    assert_eq!(answer.unwrap_err().len(), 1);
    actor.cast(BreakerMessage::Control(Control::Reset)).unwrap();
    assert_eq!(call_t!(actor, BreakerMessage::Snapshot, 1_000).unwrap().state, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_whose_actor_dies_while_open_stays_open_and_the_next_one_finds_the_wait_again() {
    let rig = rig(touchy()).await;
    let actor = start(&rig).await;
    rig.open();
    sleep(WAIT / 2).await;
    actor.kill_and_wait(None).await.unwrap();
    assert_eq!(rig.refused().retry_after(), WAIT / 2);
    let _next = start(&rig).await;
    assert_eq!(rig.refused().retry_after(), WAIT / 2);
    sleep(WAIT / 2 + MS).await;
    assert_eq!(rig.state(), BreakerState::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_without_an_actor_opens_recovers_and_tells_of_it() {
    let rig = rig(touchy()).await;
    let actor = start(&rig).await;
    actor.kill_and_wait(None).await.unwrap();
    let mut events = rig.bus.subscribe();
    rig.open();
    advance(WAIT).await;
    rig.call(CallOutcome::Success);
    assert_eq!(states(&drain(&mut events)), [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_actor_that_is_killed_under_load_loses_no_call_and_no_event() {
    let config = BreakerConfig { reset_timeout: MS, failure_threshold: 3, ..abrupt() };
    let rig = rig(config).await;
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let gate = Arc::clone(rig.breaker.gate());
            tokio::spawn(async move {
                for call in 0..20_000_u64 {
                    if let Ok(lease) = gate.try_acquire(Purpose::Live) {
                        let failed = (call + caller) % 64 < 8;
                        lease.settle(if failed { CallOutcome::Failure } else { CallOutcome::Success });
                    }
                    if call % 32 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    let killer = {
        let cell = rig.cell.clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                let arguments = BreakerArguments { cell: cell.clone() };
                let (actor, _) = Actor::spawn(None, BreakerActor, arguments).await.unwrap();
                for _ in 0..4 {
                    let _ = actor.cast(BreakerMessage::WaitElapsed(0));
                    tokio::task::yield_now().await;
                }
                let _ = actor.kill_and_wait(None).await;
            }
        })
    };
    for caller in callers {
        caller.await.unwrap();
    }
    killer.await.unwrap();
    let seen = rig.breaker.snapshot();
    assert_eq!(seen.total_requests, 80_000);
    assert_eq!((seen.in_flight, seen.admitted), (0, seen.successful + seen.failed));
    assert!(seen.state_transitions > 0);
    // One event for each transition: the numbers of the bus have no gaps, and nobody else publishes here.
    assert_eq!(rig.bus.snapshot().sequence, seen.state_transitions);
    assert_eq!(rig.bus.snapshot().breakers[&"graph".into()], seen.state);
}
