//! P10: a ref that a user holds keeps working, whatever restarts behind it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use seawall::backends::{Fault, Op};
use seawall::breaker::{BreakerState, Purpose};
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::fallback::Mode;
use seawall::operation::Write;
use seawall::supervisor::ChildStatus;
use seawall::{Refusal, Request};
use support::{History, Rig, n, properties, record, until};

/// Actors may die as often as a test likes.
async fn hardy() -> Rig {
    let mut config = Config::default();
    config.supervisor.intensity = 1_000_000;
    config.supervisor.backoff_base = Duration::from_millis(1);
    config.supervisor.backoff_max = Duration::from_millis(10);
    Rig::with(config).await
}

fn names(actors: &[ChildStatus]) -> Vec<String> {
    let own = actors.iter().map(|actor| actor.name.clone());
    own.chain(actors.iter().flat_map(|actor| names(&actor.children))).collect()
}

fn restarts(actors: &[ChildStatus]) -> u64 {
    actors.iter().map(|actor| actor.restarts + restarts(&actor.children)).sum()
}

fn all_alive(actors: &[ChildStatus]) -> bool {
    actors.iter().all(|actor| actor.alive && all_alive(&actor.children))
}

#[tokio::test(start_paused = true)]
async fn every_ref_works_after_every_actor_was_killed() {
    let rig = hardy().await;
    let (gateway, handle, breaker) = (rig.runtime().gateway(), rig.handle(), rig.breaker(&rig.vector));
    let mut events = rig.runtime().subscribe();
    let actors = names(&rig.runtime().control().actors());
    for expected in ["core", "fallback", "saga", "sync", "breakers", "breaker-graph", "breaker-vector", "prober"] {
        assert!(actors.iter().any(|name| name == expected), "{expected} is in {actors:?}");
    }
    for (k, name) in actors.iter().enumerate() {
        let k = k as u64;
        assert!(rig.runtime().control().kill_actor(name), "{name}");
        // At once, with nobody restarted yet.
        let receipt = ractor::call_t!(gateway, Request::Store, 60_000, Write::store(record("a", k)));
        receipt.expect("an answer").unwrap_or_else(|refusal| panic!("{name} is dead: {refusal}"));
        assert_eq!(n(handle.retrieve("a").await.expect("is read").record), Some(k), "{name}");
        assert!(breaker.gate().try_acquire(Purpose::Live).is_ok());
        until("everybody is back", || all_alive(&rig.runtime().control().actors())).await;
        assert!(!rig.runtime().control().kill_actor("nobody"));
    }
    let mut told = 0;
    while let Some(update) = events.try_next() {
        told +=
            u64::from(matches!(update, Update::Event(event) if matches!(event.kind, EventKind::ActorRestarted { .. })));
    }
    assert!(told >= actors.len() as u64, "{told} restarts told");
    assert_eq!(n(rig.both("a").await), Some(actors.len() as u64 - 1));
}

#[tokio::test(start_paused = true)]
async fn under_load_with_everybody_dying_all_the_time_every_request_is_answered_and_nothing_is_lost() {
    for seed in 0..2 {
        let rig = Arc::new(hardy().await);
        rig.mode(Mode::QueueWrites).await;
        let mut rng = fastrand::Rng::with_seed(seed);
        for site in [&rig.graph, &rig.vector] {
            site.faults.set(Op::Apply, Fault::Slow(Duration::from_millis(5)));
        }
        let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers: Vec<_> = (0..8_u64)
            .map(|writer| {
                let (handle, gateway) = (rig.handle(), rig.runtime().gateway());
                let (done, answered) = (Arc::clone(&done), Arc::clone(&answered));
                tokio::spawn(async move {
                    let mut history = History::default();
                    // Each writer has keys of its own, so its history is theirs.
                    for k in 0..u64::MAX {
                        let key = format!("w{writer}-{}", k % 5);
                        let write = match k % 4 {
                            0 => Write::delete(key.as_str()),
                            1 => Write::update(key.as_str(), properties(&format!("p{k}"), k)),
                            _ => Write::store(record(&key, k)),
                        };
                        let changes = write.changes.clone();
                        let answer = if k % 2 == 0 {
                            handle.write(write).await
                        } else {
                            ractor::call_t!(gateway, Request::Store, 120_000, write).expect("an answer")
                        };
                        answered.fetch_add(1, Ordering::SeqCst);
                        match answer {
                            Ok(receipt) => history.acknowledge(&receipt, changes),
                            Err(Refusal::Unknown { .. }) => panic!("no operation depends on an actor"),
                            Err(refusal) => panic!("{refusal}"),
                        }
                        if done.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                    history
                })
            })
            .collect();
        for _ in 0..100 {
            let actors = names(&rig.runtime().control().actors());
            rig.runtime().control().kill_actor(&actors[rng.usize(..actors.len())]);
            match rng.u32(..10) {
                0 => rig.breaker(&rig.vector).force_open("a test", Some(Duration::from_millis(50))),
                1 => rig.graph.faults.next(Op::Apply, 3, Fault::AppliedReplyLost),
                2 => rig.vector.faults.next(Op::Apply, 3, Fault::Panic),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(1..20))).await;
        }
        done.store(true, Ordering::SeqCst);
        let mut histories = Vec::new();
        for writer in writers {
            histories.push(writer.await.expect("no panic"));
        }
        assert!(answered.load(Ordering::SeqCst) > 200, "{answered:?}");
        until("everybody is back", || all_alive(&rig.runtime().control().actors())).await;
        assert!(restarts(&rig.runtime().control().actors()) > 20);
        rig.recover().await;
        for history in histories {
            history.assert_held(&rig).await;
        }
        assert_eq!(rig.handle().status().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_actors_knew_they_know_again() {
    let rig = hardy().await;
    rig.lose(&rig.vector).await;
    rig.mode(Mode::LocalStorage).await;
    rig.handle().store(record("a", 1)).await.expect("is kept here");
    for name in names(&rig.runtime().control().actors()) {
        rig.runtime().control().kill_actor(&name);
        until("everybody is back", || all_alive(&rig.runtime().control().actors())).await;
        let status = rig.handle().status();
        assert_eq!((status.mode, status.owed), (Mode::LocalStorage, 1), "{name}");
        assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Open, "{name}");
    }
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn too_many_deaths_stop_the_runtime_with_a_reason_and_refs_still_answer() {
    let rig = Rig::start().await;
    let (handle, gateway) = (rig.handle(), rig.runtime().gateway());
    let failed = rig.runtime().failed();
    let killer = async {
        loop {
            rig.runtime().control().kill_actor("prober");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let escalation = tokio::select! {
        escalation = failed => escalation,
        () = killer => unreachable!("it never ends"),
    };
    assert!(!format!("{escalation:?}").is_empty());
    let refusal = support::refused(handle.store(record("a", 1)).await);
    assert!(matches!(refusal, Refusal::ShuttingDown), "{refusal}");
    let answer = ractor::call_t!(gateway, Request::Retrieve, 5_000, "a".into()).expect("an answer");
    assert!(matches!(answer, Err(Refusal::ShuttingDown)), "{answer:?}");
}
