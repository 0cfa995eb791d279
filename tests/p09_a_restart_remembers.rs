//! P9: the next process knows breaker states and what is left of their waits, the queue, sagas in doubt, dead
//! letters and outcomes.

mod support;

use std::sync::Arc;
use std::time::Duration;

use seawall::backend::ErrorKind;
use seawall::backends::{
    Fault, Faults, FaultyBackend, GraphBackend, GraphConfig, Op, Ops, VectorBackend, VectorConfig,
};
use seawall::breaker::{BreakerState, TransitionCause};
use seawall::event::EventKind;
use seawall::fallback::Mode;
use seawall::operation::{Outcome, Write};
use seawall::{Runtime, StartError};
use support::{Disk, History, PATIENCE, Rig, hasty, n, properties, record, refused};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn an_open_breaker_waits_out_what_was_left_of_its_wait() {
    let mut rig = Rig::start().await;
    rig.lose(&rig.vector).await;
    let opened = Instant::now();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        rig.restart().await;
        assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Open);
        assert!(rig.handle().status().level != seawall::fallback::DegradationLevel::Normal);
    }
    let left = rig.breaker(&rig.vector).snapshot().retry_after.expect("it waits");
    let expected = Duration::from_secs(60).saturating_sub(opened.elapsed());
    assert!(left <= expected + Duration::from_secs(8) && left + Duration::from_secs(8) >= expected, "{left:?}");
    let touched = rig.vector.faults.counts().total;
    rig.vector.heal();
    let closed = || rig.breaker(&rig.vector).view().state == BreakerState::Closed;
    tokio::time::sleep(left.saturating_sub(Duration::from_secs(1))).await;
    assert_eq!(rig.vector.faults.counts().total, touched, "nothing went out during the wait");
    support::until("it heals", closed).await;
    assert!(opened.elapsed() < Duration::from_secs(140), "restarts did not start the wait anew");
}

#[tokio::test(start_paused = true)]
async fn what_was_forced_by_hand_and_the_history_are_kept() {
    let mut rig = Rig::start().await;
    rig.lose(&rig.vector).await;
    rig.breaker(&rig.graph).force_open("maintenance", Some(Duration::from_secs(600)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    rig.stop().await;
    rig.restart().await;
    assert_eq!(rig.breaker(&rig.graph).view().state, BreakerState::ForcedOpen);
    let history = rig.breaker(&rig.vector).explain().history;
    let opened = |cause: &TransitionCause| matches!(cause, TransitionCause::ConsecutiveFailures(5));
    assert!(history.iter().any(|transition| opened(&transition.cause)), "{history:?}");
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_ne!(rig.breaker(&rig.graph).view().state, BreakerState::ForcedOpen, "it had an end");
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_drained_by_the_next_process() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.set(Fault::Down);
    let (handle, mut history) = (rig.handle(), History::default());
    for k in 0..30 {
        history.write(&handle, record(&format!("k{}", k % 7), k)).await.expect("is queued");
        history.write(&handle, Write::update("merged", properties(&format!("p{k}"), k))).await.expect("is queued");
    }
    rig.restart().await;
    let status = rig.handle().status();
    assert_eq!((status.owed, status.backends[1].owed), (60, 60));
    history.assert_read(&rig).await;
    rig.recover().await;
    history.assert_held(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn a_saga_in_doubt_is_finished_and_one_that_was_decided_is_undone() {
    let mut rig = Rig::start().await;
    rig.handle().store(record("forward", 1)).await.expect("is stored");
    rig.handle().store(record("back", 1)).await.expect("is stored");

    rig.vector.faults.set(Op::Apply, Fault::Hung);
    let forward = hasty(record("forward", 2));
    let in_doubt = forward.operation;
    refused(rig.handle().write(forward).await);

    rig.vector.heal();
    rig.vector.faults.next(Op::Apply, 1, Fault::Error(ErrorKind::Permanent));
    rig.graph.faults.next(Op::Apply, 1, Fault::None);
    rig.graph.faults.set(Op::Apply, Fault::Down);
    let back = Write::store(record("back", 2));
    let decided = back.operation;
    refused(rig.handle().write(back).await);
    assert_eq!(n(rig.graph.record("back").await), Some(2));

    rig.restart().await;
    rig.recover().await;
    assert!(matches!(rig.handle().outcome(in_doubt), Outcome::Committed(_) | Outcome::RolledBack(_)));
    assert!(matches!(rig.handle().outcome(decided), Outcome::RolledBack(_)));
    assert!(rig.both("forward").await.is_some());
    assert_eq!(n(rig.both("back").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn every_record_of_the_journal_may_be_the_last_before_a_crash() {
    let mut rig = Rig::start().await;
    rig.handle().store_batch([record("a", 1), record("b", 1)]).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, 4, Fault::Down);
    refused(rig.handle().store_batch([record("a", 2), record("b", 2)]).await);
    rig.mode(Mode::QueueWrites).await;
    rig.vector.faults.set(Op::Apply, Fault::Down);
    for n in 3..6 {
        rig.handle().store(record("a", n)).await.expect("is queued");
        rig.handle().update("b", properties("n", n)).await.expect("is queued");
    }
    rig.recover().await;
    rig.stop().await;
    let all = rig.disk.records();
    for length in 0..=all.len() {
        // The stores are ahead of the journal here, which a crash cannot bring about; still they end up equal, and
        // what is new gets through.
        rig.disk = Arc::new(Disk::holding(all[..length].to_vec()));
        rig.restart().await;
        rig.quiet().await;
        let (a, b) = (n(rig.both("a").await), n(rig.both("b").await));
        assert_eq!((a, b), (Some(5), Some(5)), "after {length} of {} records", all.len());
    }
    rig.handle().store(record("a", 9)).await.expect("is stored");
    assert_eq!(n(rig.both("a").await), Some(9));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_and_outcomes_are_kept() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.faults.next(Op::Apply, 1, Fault::Down);
    rig.vector.faults.next(Op::Apply, 1, Fault::Error(ErrorKind::Permanent));
    let dead = rig.handle().store(record("dead", 1)).await.expect("is queued");
    rig.quiet().await;
    let committed = rig.handle().store(record("fine", 1)).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, 1, Fault::Error(ErrorKind::Permanent));
    let rejected = Write::store(record("rejected", 1));
    let operation = rejected.operation;
    refused(rig.handle().write(rejected).await);
    let before = [dead.operation, committed.operation, operation].map(|operation| rig.handle().outcome(operation));
    assert!(
        matches!(before, [Outcome::DeadLetter { .. }, Outcome::Committed(_), Outcome::RolledBack(_)]),
        "{before:?}"
    );
    let letters = rig.handle().dead_letters();
    rig.stop().await;
    rig.restart().await;
    assert_eq!(rig.handle().dead_letters(), letters);
    let after = [dead.operation, committed.operation, operation].map(|operation| rig.handle().outcome(operation));
    assert_eq!(after, before);
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_to_a_store_that_is_gone_is_not_forgotten_by_accident() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.set(Fault::Down);
    rig.handle().store(record("a", 1)).await.expect("is queued");
    rig.crash();
    let builder = || {
        let found = rig.disk.records();
        Runtime::builder()
            .shared_backend(Arc::clone(&rig.graph.backend) as _)
            .journal(Arc::new(Disk::holding(found.clone())), found)
    };
    match builder().start().await.err() {
        Some(StartError::OwedToUnknownBackend { backend, entries: 1 }) => assert_eq!(backend.as_str(), "vector"),
        other => panic!("{other:?}"),
    }
    let runtime = builder().forget_backend("vector").start().await.expect("starts");
    support::until("the rest is finished", || runtime.handle().status().owed == 0).await;
    assert_eq!(n(rig.graph.record("a").await), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn breakers_and_letters_are_found_on_disk_by_the_next_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let faults = Faults::new();
    let vector = Arc::new(VectorBackend::in_memory(VectorConfig::default()));
    let graph = Arc::new(GraphBackend::in_memory(GraphConfig::default()));
    let start = async || {
        Runtime::builder()
            .data_dir(dir.path())
            .shared_backend(Arc::clone(&graph) as _)
            .backend(FaultyBackend::around(Arc::clone(&vector), &faults))
            .start()
            .await
            .expect("starts")
    };
    let wait = async |condition: &dyn Fn() -> bool| {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("it comes");
    };
    let runtime = start().await;
    let handle = runtime.handle();
    runtime.control().set_mode(Mode::QueueWrites, "a test", None).await.expect("is set");
    faults.next(Op::Apply, 1, Fault::Down);
    faults.next(Op::Apply, 1, Fault::Error(ErrorKind::Permanent));
    let dead = handle.store(record("dead", 1)).await.expect("is queued");
    wait(&|| handle.status().dead_letters == 1).await;
    faults.set(Ops::ALL, Fault::Down);
    let breaker = runtime.control().breaker("vector").expect("is there");
    for k in 0.. {
        if breaker.view().state == BreakerState::Open {
            break;
        }
        handle.store(record(&format!("k{k}"), k)).await.expect("is queued");
    }
    let owed = handle.status().owed;
    runtime.shutdown().await;
    // Every ref to the old runtime holds its files.
    drop((handle, breaker));

    let runtime = start().await;
    let breaker = runtime.control().breaker("vector").expect("is there").snapshot();
    assert_eq!(breaker.state, BreakerState::Open);
    let left = breaker.retry_after.expect("it waits");
    assert!(!left.is_zero() && left <= Duration::from_secs(60), "{left:?}");
    assert_eq!(runtime.handle().status().owed, owed);
    assert!(matches!(runtime.handle().outcome(dead.operation), Outcome::DeadLetter { .. }));
    faults.heal(Ops::ALL);
    runtime.control().breaker("vector").expect("is there").reset();
    wait(&|| runtime.handle().status().owed == 1).await;
    runtime.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_tells_how_much_it_found() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.set(Fault::Down);
    rig.handle().store(record("a", 1)).await.expect("is queued");
    rig.restart().await;
    assert_eq!(rig.handle().status().owed, 1);
    assert!(rig.runtime().snapshot().sequence > 0, "{:?} was told", EventKind::Started { recovered: 1 });
}
