//! P2: once things are quiet every required backend has a write or none has, and its outcome can be asked for.

mod support;

use std::sync::Arc;
use std::time::Duration;

use seawall::backend::ErrorKind;
use seawall::backends::{Fault, Op};
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::fallback::Mode;
use seawall::operation::{Held, Outcome, Version, Write};
use seawall::record::Record;
use seawall::{Refusal, Request};
use support::{Native, Rig, Seen, Site, hasty, n, properties, record, refused};

const TRIES: u64 = 4;

#[tokio::test(start_paused = true)]
async fn a_leg_that_fails_takes_the_other_back_to_what_was_there() {
    let rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, TRIES, Fault::Down);
    let write = Write::store(record("a", 2));
    let operation = write.operation;
    let refusal = refused(rig.handle().write(write).await);
    assert!(matches!(refusal, Refusal::RolledBack { ref backend, .. } if backend.as_str() == "vector"), "{refusal}");
    assert_eq!(n(rig.both("a").await), Some(1), "the pre-image is back");
    assert!(matches!(rig.handle().outcome(operation), Outcome::RolledBack(_)));
    assert_eq!(rig.read("a").await.0, Some(record("a", 1)), "also for readers");
    assert_eq!(rig.handle().status().owed, 0);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_was_a_tombstone_stands_after_the_undo() {
    let rig = Rig::start().await;
    rig.vector.faults.next(Op::Apply, TRIES, Fault::Down);
    let write = Write::store(record("new", 1));
    let operation = write.operation;
    refused(rig.handle().write(write).await);
    assert_eq!(rig.both("new").await, None);
    let Outcome::RolledBack(version) = rig.handle().outcome(operation) else { panic!("not rolled back") };
    let stored = rig.graph.stored(&"new".into()).await.expect("the key was touched");
    assert_eq!((stored.version, stored.record), (version, None), "the undo keeps the version, so the write stays out");
}

#[tokio::test(start_paused = true)]
async fn an_update_and_a_delete_are_taken_back_too() {
    let rig = Rig::start().await;
    let before = record("a", 1).with("kept", true).with_embedding(vec![1.0, 0.0]).with_relation("knows", "b");
    rig.handle().store(before.clone()).await.expect("is stored");
    for write in [Write::update("a", properties("n", 2).with("kept", serde_json::Value::Null)), Write::delete("a")] {
        rig.vector.faults.next(Op::Apply, TRIES, Fault::Down);
        refused(rig.handle().write(write).await);
        assert_eq!(rig.graph.record("a").await, Some(before.clone()));
        assert_eq!(rig.vector.record("a").await, Some(before.clone()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_was_done_though_its_reply_was_lost_is_undone_as_well() {
    let rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, 1, Fault::AppliedReplyLost);
    rig.vector.faults.next(Op::Apply, TRIES - 1, Fault::Down);
    let refusal = refused(rig.handle().store(record("a", 2)).await);
    assert!(matches!(refusal, Refusal::RolledBack { .. }), "{refusal}");
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_that_a_retry_clears_up_is_a_commit() {
    let rig = Rig::start().await;
    rig.vector.faults.next(Op::Apply, 2, Fault::AppliedReplyLost);
    let receipt = rig.handle().store(record("a", 1)).await.expect("is stored");
    assert_eq!(receipt.held, Held::Committed);
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_zombie_that_lands_after_the_undo_changes_nothing() {
    let rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    for key in ["a", "never-there"] {
        rig.vector.faults.next(Op::Apply, 1, Fault::LateZombie(Duration::from_secs(30)));
        rig.vector.faults.next(Op::Apply, TRIES - 1, Fault::Down);
        refused(rig.handle().store(record(key, 2)).await);
    }
    rig.quiet().await;
    let reached = rig.vector.faults.counts().of(Op::Apply).reached;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(rig.vector.faults.counts().of(Op::Apply).reached > reached, "the zombies did land");
    assert_eq!(n(rig.both("a").await), Some(1));
    assert_eq!(rig.both("never-there").await, None);
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_cannot_be_done_now_is_owed_and_readers_see_what_was_there() {
    let mut rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.vector.faults.set(Op::Apply, Fault::Down);
    // The graph takes the write, and then nothing more.
    rig.graph.faults.next(Op::Apply, 1, Fault::None);
    rig.graph.faults.next(Op::Apply, 1_000, Fault::Down);
    let write = Write::store(record("a", 2));
    let operation = write.operation;
    let mut events = rig.runtime().subscribe();
    let refusal = refused(rig.handle().write(write).await);
    assert!(matches!(refusal, Refusal::RolledBack { .. }), "{refusal}");
    let outcome = rig.handle().outcome(operation);
    assert!(matches!(outcome, Outcome::Compensating { .. }), "{outcome:?}");
    assert_eq!(n(rig.graph.record("a").await), Some(2), "the test is right about where things stand");
    assert_eq!(n(rig.read("a").await.0), Some(1));
    let mut told = false;
    while let Some(Update::Event(event)) = events.try_next() {
        told |= matches!(event.kind, EventKind::SagaCompensating { operation: which, .. } if which == operation);
    }
    assert!(told);

    rig.restart().await;
    assert!(matches!(rig.handle().outcome(operation), Outcome::Compensating { .. } | Outcome::RolledBack(_)));
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(1));
    assert!(matches!(rig.handle().outcome(operation), Outcome::RolledBack(_)));
}

#[tokio::test(start_paused = true)]
async fn an_undo_does_not_overwrite_a_later_write() {
    let rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.vector.faults.set(Op::Apply, Fault::Down);
    rig.graph.faults.next(Op::Apply, 1, Fault::None);
    rig.graph.faults.next(Op::Apply, 1_000, Fault::Down);
    refused(rig.handle().store(record("a", 2)).await);
    rig.mode(Mode::QueueWrites).await;
    let receipt = rig.handle().store(record("a", 3)).await.expect("queues behind the undo");
    assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(3));
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_lands_late_does_not_overwrite_a_later_write() {
    let rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, TRIES, Fault::Down);
    rig.graph.faults.next(Op::Apply, 1, Fault::None);
    rig.graph.faults.next(Op::Apply, 1, Fault::LateZombie(Duration::from_secs(30)));
    refused(rig.handle().store(record("a", 2)).await);
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(1));
    rig.handle().store(record("a", 3)).await.expect("is stored");
    let reached = rig.graph.faults.counts().of(Op::Apply).reached;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.graph.faults.counts().of(Op::Apply).reached, reached + 1, "the undo did land");
    assert_eq!(n(rig.both("a").await), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_there_whole_or_not_at_all() {
    let rig = Rig::start().await;
    let batch = |from: u64| (0..5).map(move |k| record(&format!("k{k}"), from + k));
    rig.handle().store_batch(batch(10)).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, TRIES, Fault::Down);
    refused(rig.handle().store_batch(batch(20)).await);
    for k in 0..5 {
        assert_eq!(n(rig.both(&format!("k{k}")).await), Some(10 + k));
    }
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    rig.handle().store_batch(batch(30)).await.expect("is queued");
    rig.handle().store(record("k2", 99)).await.expect("is queued");
    rig.recover().await;
    for k in 0..5 {
        assert_eq!(n(rig.both(&format!("k{k}")).await), Some(if k == 2 { 99 } else { 30 + k }));
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_store_rejects_for_what_it_is_no_store_keeps() {
    for mode in [Mode::Disabled, Mode::QueueWrites, Mode::MemoryOnly] {
        let rig = Rig::in_mode(mode).await;
        rig.handle().store(record("a", 1).with_embedding(vec![1.0, 0.0])).await.expect("is stored");
        let write = Write::store(record("b", 1).with_embedding(vec![1.0, 0.0, 0.0]));
        let operation = write.operation;
        // The door knows no dimension; the vector store learnt one from the first record.
        let refusal = refused(rig.handle().write(write).await);
        assert!(matches!(refusal, Refusal::Rejected { ref backend, .. } if backend.as_str() == "vector"), "{refusal}");
        rig.quiet().await;
        assert_eq!(rig.both("b").await, None, "{mode:?}");
        assert!(matches!(rig.handle().outcome(operation), Outcome::RolledBack(_)));
        assert_eq!(rig.breaker(&rig.vector).snapshot().failed, 0, "a rejection is an answer");
    }
}

#[tokio::test(start_paused = true)]
async fn every_error_of_every_kind_leaves_all_or_nothing() {
    let faults = [
        Fault::Down,
        Fault::Hung,
        Fault::Reset,
        Fault::AppliedReplyLost,
        Fault::AppliedHung,
        Fault::LateZombie(Duration::from_secs(20)),
        Fault::Panic,
        Fault::ReadOnly,
        Fault::Error(ErrorKind::Transient),
        Fault::Error(ErrorKind::Permanent),
        Fault::Error(ErrorKind::Unknown),
        Fault::Error(ErrorKind::Refused),
    ];
    for (tries, fault) in [1, TRIES].into_iter().flat_map(|tries| faults.map(|fault| (tries, fault))) {
        let rig = Rig::start().await;
        rig.handle().store(record("a", 1)).await.expect("is stored");
        rig.vector.faults.next(Op::Apply, tries, fault);
        let write = Write::store(record("a", 2));
        let operation = write.operation;
        let result = rig.handle().write(write).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        rig.recover().await;
        let expected = match rig.handle().outcome(operation) {
            Outcome::Committed(_) => 2,
            Outcome::RolledBack(_) => 1,
            other => panic!("{fault:?} x {tries} leaves {other:?}"),
        };
        assert_eq!(n(rig.both("a").await), Some(expected), "{fault:?} x {tries}");
        match result {
            Ok(receipt) => assert_eq!((receipt.held, expected), (Held::Committed, 2), "{fault:?}"),
            Err(Refusal::Unknown { .. }) => {}
            Err(_) => assert_eq!(expected, 1, "{fault:?} was refused"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_legs_is_finished_by_the_next_process() {
    let mut rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, 1, Fault::Hung);
    let write = hasty(record("a", 2));
    let operation = write.operation;
    refused(rig.handle().write(write).await);
    assert_eq!(n(rig.graph.record("a").await), Some(2), "one leg is done");
    assert_eq!(n(rig.vector.record("a").await), Some(1), "and one is not");
    rig.restart().await;
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(2));
    assert!(matches!(rig.handle().outcome(operation), Outcome::Committed(_)));
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_what_was_never_sent_is_not_found() {
    let rig = Rig::start().await;
    let outcome = ractor::call_t!(rig.runtime().gateway(), Request::Outcome, 1_000, 7.into()).expect("an answer");
    assert_eq!(outcome, Outcome::NotFound);
}

// ----- native transactions ------------------------------------------------------------------------------------

async fn native() -> (Rig, Arc<Seen>) {
    let (store, seen) = Native::new();
    (Rig::over(Site::new("graph", Arc::new(store)), Site::vector(), Config::default()).await, seen)
}

#[tokio::test(start_paused = true)]
async fn a_native_transaction_is_committed_last() {
    let (rig, seen) = native().await;
    rig.vector.faults.next(Op::Apply, 1, Fault::Slow(Duration::from_secs(2)));
    let handle = rig.handle();
    let store = tokio::spawn(async move { handle.store(record("a", 1)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((seen.counts(), rig.graph.record("a").await), ([1, 0, 0], None), "it waits for the other leg");
    let receipt = store.await.expect("no panic").expect("is stored");
    assert_eq!(receipt.held, Held::Committed);
    assert_eq!(seen.counts(), [1, 1, 0]);
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_native_transaction_is_rolled_back_when_another_leg_fails() {
    let (rig, seen) = native().await;
    rig.vector.faults.next(Op::Apply, TRIES, Fault::Down);
    refused(rig.handle().store(record("a", 1)).await);
    rig.quiet().await;
    assert_eq!(seen.counts(), [1, 0, 1]);
    assert_eq!(rig.graph.stored(&"a".into()).await, None, "nothing of it was ever to be seen");
    assert_eq!(rig.both("a").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_reply_was_lost_is_undone_everywhere_or_done_everywhere() {
    for fault in [Fault::AppliedReplyLost, Fault::AppliedHung, Fault::Reset, Fault::Panic, Fault::Down] {
        let (rig, _) = native().await;
        rig.handle().store(record("a", 1)).await.expect("is stored");
        rig.graph.faults.next(Op::Commit, 1, fault);
        let write = Write::store(record("a", 2));
        let operation = write.operation;
        refused(rig.handle().write(write).await);
        rig.quiet().await;
        assert!(matches!(rig.handle().outcome(operation), Outcome::RolledBack(_)), "{fault:?}");
        assert_eq!(n(rig.both("a").await), Some(1), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_lands_after_its_undo_changes_nothing() {
    let (rig, _) = native().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.graph.faults.next(Op::Commit, 1, Fault::LateZombie(Duration::from_secs(30)));
    refused(rig.handle().store(record("a", 2)).await);
    rig.quiet().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_native_leg_that_cannot_be_begun_is_owed_where_the_mode_queues() {
    let (rig, _) = native().await;
    rig.mode(Mode::QueueWrites).await;
    rig.graph.faults.next(Op::Apply, 1, Fault::Down);
    let receipt = rig.handle().store(Record::new("a").with("n", 1)).await.expect("is queued");
    assert!(receipt.version > Version(0) && matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(1));
}
