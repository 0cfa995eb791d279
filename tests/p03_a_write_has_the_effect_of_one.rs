//! P3: a write that is sent again, or replayed, has the effect of one.

mod support;

use std::time::Duration;

use seawall::Refusal;
use seawall::backend::Fence;
use seawall::backends::{Fault, Op};
use seawall::fallback::Mode;
use seawall::operation::{Held, OperationId, Outcome, Write};
use support::{Rig, hasty, n, properties, record, refused};

#[tokio::test(start_paused = true)]
async fn two_of_one_id_at_the_same_time_are_one() {
    for mode in [Mode::Disabled, Mode::QueueWrites, Mode::LocalStorage, Mode::MemoryOnly] {
        let rig = Rig::in_mode(mode).await;
        rig.graph.faults.set(Op::Apply, Fault::Slow(Duration::from_millis(100)));
        let write = Write::store(record("a", 1));
        let handle = rig.handle();
        let receipts = futures::future::join_all((0..10).map(|_| handle.write(write.clone()))).await;
        let mut versions: Vec<_> = receipts.into_iter().map(|receipt| receipt.expect("is stored").version).collect();
        versions.dedup();
        assert_eq!(versions.len(), 1, "{mode:?}");
        rig.recover().await;
        assert_eq!(n(rig.both("a").await), Some(1));
        for site in [&rig.graph, &rig.vector] {
            assert_eq!(site.faults.history().len(), 1, "{mode:?}: {} was given it once", site.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_id_with_two_keys_at_the_same_time_is_one_write() {
    let rig = Rig::start().await;
    rig.graph.faults.set(Op::Apply, Fault::Slow(Duration::from_millis(100)));
    let operation = OperationId::generate();
    let handle = rig.handle();
    let (first, second) = tokio::join!(
        handle.write(Write::store(record("a", 1)).with_operation(operation)),
        handle.write(Write::store(record("b", 1)).with_operation(operation)),
    );
    first.expect("is stored");
    // It has another key, so it did not wait for the first: it is told to ask.
    assert!(matches!(refused(second), Refusal::Unknown { operation: asked } if asked == operation));
    rig.quiet().await;
    assert_eq!((n(rig.both("a").await), rig.both("b").await), (Some(1), None));
}

#[tokio::test(start_paused = true)]
async fn a_write_sent_again_after_its_commit_gets_the_same_receipt_and_changes_nothing() {
    let rig = Rig::start().await;
    let first = Write::store(record("a", 1));
    let receipt = rig.handle().write(first.clone()).await.expect("is stored");
    rig.handle().store(record("a", 2)).await.expect("is stored");
    assert_eq!(rig.handle().write(first).await.expect("is known"), receipt);
    assert_eq!(n(rig.both("a").await), Some(2), "the later write stands");
}

#[tokio::test(start_paused = true)]
async fn a_write_sent_again_while_it_is_queued_is_not_queued_twice() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    let first = Write::update("a", properties("n", 1));
    let receipt = rig.handle().write(first.clone()).await.expect("is queued");
    rig.handle().update("a", properties("n", 2)).await.expect("is queued");
    let again = rig.handle().write(first.clone()).await.expect("is known");
    assert_eq!((again.version, again.held), (receipt.version, receipt.held));
    assert_eq!(rig.handle().status().owed, 2);
    rig.recover().await;
    let again = rig.handle().write(first).await.expect("is known");
    assert_eq!((again.version, again.held), (receipt.version, Held::Committed));
    assert_eq!(n(rig.both("a").await), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_write_sent_again_to_the_next_process_is_known_there() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    let committed = Write::store(record("committed", 1));
    rig.handle().write(committed.clone()).await.expect("is stored");
    rig.handle().store(record("committed", 2)).await.expect("is stored");
    rig.shut(&rig.vector).await;
    let queued = Write::store(record("queued", 1));
    let receipt = rig.handle().write(queued.clone()).await.expect("is queued");
    rig.handle().store(record("queued", 2)).await.expect("is queued");
    rig.restart().await;
    assert_eq!(rig.handle().write(queued).await.expect("is known").version, receipt.version);
    rig.handle().write(committed).await.expect("is known");
    rig.recover().await;
    assert_eq!(n(rig.both("committed").await), Some(2));
    assert_eq!(n(rig.both("queued").await), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_write_sent_again_after_an_unknown_answer_is_one() {
    let rig = Rig::start().await;
    rig.vector.faults.next(Op::Apply, 1, Fault::Slow(Duration::from_secs(5)));
    let write = Write::update("a", properties("n", 1));
    let refusal = refused(rig.handle().write(hasty(write.clone())).await);
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal}");
    let receipt = rig.handle().write(write.clone()).await.expect("waits for the first, and is that one");
    assert_eq!(receipt.held, Held::Committed);
    assert_eq!(rig.handle().outcome(write.operation), Outcome::Committed(receipt.version));
    assert_eq!(rig.vector.faults.history().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_rolled_back_may_be_sent_again_under_its_id() {
    let rig = Rig::start().await;
    let write = Write::store(record("a", 1));
    rig.vector.faults.next(Op::Apply, 4, Fault::Down);
    refused(rig.handle().write(write.clone()).await);
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::RolledBack(_)));
    let receipt = rig.handle().write(write.clone()).await.expect("is stored");
    assert_eq!(rig.handle().outcome(write.operation), Outcome::Committed(receipt.version));
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_replay_of_what_arrived_though_nobody_heard_is_harmless() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.handle().store(record("a", 0).with("kept", true)).await.expect("is stored");
    rig.vector.faults.next(Op::Apply, 3, Fault::AppliedReplyLost);
    rig.handle().update("a", properties("n", 1)).await.expect("is queued");
    rig.restart().await;
    rig.recover().await;
    let applied: Vec<_> = rig.vector.faults.history().into_iter().filter(|one| one.key == "a".into()).collect();
    assert!(applied.len() > 2, "it was replayed");
    assert!(applied.iter().skip(2).all(|one| one.applied.superseded_by.is_some() && one.fence == Fence::Write));
    let held = rig.both("a").await.expect("is there");
    assert_eq!(held, record("a", 1).with("kept", true));
}

#[tokio::test(start_paused = true)]
async fn versions_are_never_given_out_twice_over_restarts() {
    let mut rig = Rig::start().await;
    let mut last = None;
    for round in 0..5 {
        for _ in 0..3 {
            let receipt = rig.handle().store(record("a", round)).await.expect("is stored");
            assert!(Some(receipt.version) > last);
            last = Some(receipt.version);
        }
        rig.restart().await;
    }
    rig.recover().await;
    // A new journal over old stores: their versions are asked for.
    rig.disk = std::sync::Arc::default();
    rig.restart().await;
    let receipt = rig.handle().store(record("a", 99)).await.expect("is stored");
    assert!(Some(receipt.version) > last);
    assert_eq!(n(rig.both("a").await), Some(99));
}
