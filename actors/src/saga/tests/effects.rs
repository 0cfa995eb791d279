//! What happens in which order, how often and for how long.

use std::time::Duration;

use tokio::time::Instant;

use super::{SECOND, called, overlapped, place, rig};
use crate::backend::BackendError;
use crate::call::{CallConfig, RetryConfig};
use crate::error::Refusal;
use crate::fallback::Mode;
use crate::journal::QueueConfig;
use crate::operation::{Held, Outcome, Write};
use crate::plane::rehearsal::{Act, Rig, Scripted, Settings, put};
use crate::record::Record;
use crate::saga::SagaConfig;

#[tokio::test(start_paused = true)]
async fn strict_writes_the_intent_down_before_it_touches_a_store() {
    let rig = Rig::two().await;
    rig.tape.takes(SECOND);
    let receipt = rig.put("a", 1).await.expect("is stored");
    assert_eq!(receipt.held, Held::Committed);
    let log = rig.log();
    let intent = place(&log, "journal: intent v1");
    assert!(intent < place(&log, "graph: apply v1") && intent < place(&log, "vector: apply v1"), "{log:?}");
    assert_eq!(log.last().map(String::as_str), Some("journal: closed v1 Committed"));
}

#[tokio::test(start_paused = true)]
async fn overlapped_touches_the_stores_meanwhile_and_the_receipt_waits_for_both() {
    let rig = overlapped().await;
    rig.tape.takes(SECOND);
    let began = Instant::now();
    let receipt = rig.put("a", 1).await.expect("is stored");
    assert_eq!((receipt.held, began.elapsed()), (Held::Committed, SECOND));
    let log = rig.log();
    assert!(place(&log, "graph: apply v1") < place(&log, "journal: intent v1"), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn one_store_needs_no_intent_unless_it_could_not_be_reached() {
    let rig = Rig::one().await;
    assert_eq!(rig.put("a", 1).await.expect("is stored").held, Held::Committed);
    assert!(!rig.log().iter().any(|line| line.contains("intent")), "{:?}", rig.log());
    rig.mode(Mode::QueueWrites).await;
    rig.store("engine").writes(Act::Fail(BackendError::transient("down")));
    let receipt = rig.put("a", 2).await.expect("is queued");
    assert_eq!(receipt.held, Held::Queued { owing: vec!["engine".into()] });
    place(&rig.log(), "journal: intent v2");
    assert_eq!(rig.store("engine").n("a"), Some(1));
    rig.store("engine").writes(Act::Well);
    rig.drain(SECOND).await;
    assert_eq!(rig.store("engine").n("a"), Some(2));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_tried_three_times_more_with_growing_waits() {
    let retry = RetryConfig { backoff: SECOND, max_backoff: 3 * SECOND, ..RetryConfig::default() };
    let rig = called(CallConfig { retry, ..CallConfig::default() }).await;
    rig.store("graph").writes(Act::Fail(BackendError::transient("down")));
    let began = Instant::now();
    let refusal = rig.put("a", 1).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::RolledBack { .. }), "{refusal:?}");
    assert_eq!(rig.store("graph").calls(), 4);
    // Waits of 1, 2 and 3 s, each between its half and its whole.
    let waited = began.elapsed();
    assert!((3 * SECOND..=6 * SECOND + SECOND / 10).contains(&waited), "{waited:?}");
    assert_eq!(rig.store("vector").held("a").expect("was undone").record, None);
}

#[tokio::test(start_paused = true)]
async fn where_writes_queue_nobody_waits_for_retries() {
    let rig = Rig::two().await;
    rig.mode(Mode::QueueWrites).await;
    rig.store("graph").writes(Act::Fail(BackendError::transient("down")));
    let began = Instant::now();
    let receipt = rig.put("a", 1).await.expect("is queued");
    assert_eq!(receipt.held, Held::Queued { owing: vec!["graph".into()] });
    assert_eq!((rig.store("graph").calls(), began.elapsed()), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_timeout_and_all_of_them_at_the_sagas() {
    let config = SagaConfig { timeout: 25 * SECOND, ..SagaConfig::default() };
    let rig = rig(config).await;
    rig.store("graph").writes(Act::Hang);
    let began = Instant::now();
    let writing = rig.perform(put("a", 1), 600 * SECOND);
    tokio::time::sleep(26 * SECOND).await;
    assert_eq!(rig.store("graph").calls(), 4, "three tries, of which the last was cut short, and the way back");
    rig.store("graph").writes(Act::Well);
    let (answer, _) = writing.await.expect("no panic");
    assert!(matches!(answer, Err(Refusal::RolledBack { .. })), "{answer:?}");
    assert!(began.elapsed() <= 36 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_asks_for_an_endless_wait_ends_the_tries() {
    let rig = Rig::two().await;
    rig.store("graph").script([Act::Fail(BackendError::transient("down").with_retry_after(Duration::MAX))]);
    let refusal = rig.put("a", 1).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::RolledBack { .. }), "{refusal:?}");
}

#[tokio::test(start_paused = true)]
async fn the_decision_is_durable_before_the_refusal() {
    let rig = Rig::two().await;
    rig.store("vector").writes(Act::Fail(BackendError::permanent("too wide")));
    let refusal = rig.put("a", 1).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::Rejected { .. }), "{refusal:?}");
    let log = rig.log();
    assert!(place(&log, "journal: decided v1") < place(&log, "graph: undo v1"), "{log:?}");
    assert_eq!(rig.store("graph").held("a").expect("was undone").record, None);
    place(&log, "journal: closed v1 RolledBack");
    assert!(matches!(rig.handle().outcome(operation_of(&rig)), Outcome::RolledBack(_)));
}

/// The operation that the journal has closed.
fn operation_of(rig: &Rig) -> crate::operation::OperationId {
    let closed = |record: &crate::journal::JournalRecord| match record {
        crate::journal::JournalRecord::Closed { operation, .. } => Some(*operation),
        _ => None,
    };
    rig.tape.records().iter().find_map(closed).expect("something is closed")
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_and_touches_no_store() {
    let queue = QueueConfig { max_entries: 3, ..QueueConfig::default() };
    let settings = Settings { queue, ..Settings::default() };
    let rig = Rig::with(settings, |log| vec![Scripted::new("graph", log), Scripted::new("vector", log)]).await;
    rig.mode(Mode::LocalStorage).await;
    for n in 0..3 {
        rig.put(&format!("k{n}"), n).await.expect("is queued");
    }
    let refusal = rig.put("k3", 3).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::QueueFull { entries: 3, .. }), "{refusal:?}");
    assert_eq!(rig.store("graph").calls() + rig.store("vector").calls(), 0);
    assert_eq!(rig.plane.ledger().len(), 3);
    rig.mode(Mode::Disabled).await;
    rig.drain(SECOND).await;
    rig.put("k3", 3).await.expect("is stored");
}

#[tokio::test(start_paused = true)]
async fn writes_that_come_at_once_do_not_overfill_the_queue() {
    let queue = QueueConfig { max_entries: 3, ..QueueConfig::default() };
    let settings = Settings { queue, ..Settings::default() };
    let rig = Rig::with(settings, |log| vec![Scripted::new("graph", log), Scripted::new("vector", log)]).await;
    rig.mode(Mode::QueueWrites).await;
    rig.store("graph").all(Act::Slow(SECOND));
    let writing: Vec<_> = (0..10).map(|n| rig.perform(put(&format!("k{n}"), n), 60 * SECOND)).collect();
    let mut refused = 0;
    for writing in writing {
        match writing.await.expect("no panic").0 {
            Ok(_) => {}
            Err(Refusal::QueueFull { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 7);
}

#[tokio::test(start_paused = true)]
async fn native_transactions_commit_last_and_roll_back_when_anything_fails() {
    let stores = |log: &_| vec![Scripted::new("graph", log).native(), Scripted::new("vector", log)];
    let rig = Rig::with(Settings::default(), stores).await;
    rig.store("vector").script([Act::Slow(SECOND)]);
    rig.put("a", 1).await.expect("is stored");
    let log = rig.take_log();
    assert!(place(&log, "vector: apply v1") < place(&log, "graph: commit v1"), "{log:?}");
    rig.store("vector").writes(Act::Fail(BackendError::permanent("too wide")));
    rig.put("a", 2).await.expect_err("is refused");
    let log = rig.take_log();
    place(&log, "graph: rollback v2");
    assert!(!log.contains(&"graph: commit v2".to_owned()), "{log:?}");
    assert_eq!(rig.store("graph").n("a"), Some(1));
    assert_eq!(rig.store("vector").n("a"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_reply_is_lost_is_undone_with_the_rest() {
    let stores = |log: &_| vec![Scripted::new("graph", log).native(), Scripted::new("vector", log)];
    let rig = Rig::with(Settings::default(), stores).await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("graph").script([Act::Well, Act::LoseReply]);
    let refusal = rig.put("a", 2).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::RolledBack { .. }), "{refusal:?}");
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(1), Some(1)));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_store_is_an_unknown_outcome_and_nothing_stays_behind() {
    for panic in [Act::Panic, Act::SlowlyPanic(SECOND)] {
        let rig = Rig::two().await;
        rig.store("graph").script(std::array::from_fn::<_, 4, _>(|_| panic.clone()));
        let refusal = rig.put("a", 1).await.expect_err("is refused");
        assert!(matches!(refusal, Refusal::RolledBack { .. }), "{refusal:?}");
        assert!(rig.plane.ledger().is_empty());
        rig.put("a", 2).await.expect("the key is free");
        assert_eq!(rig.store("graph").n("a"), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_dropped_leaves_its_write_to_the_drain() {
    let rig = Rig::two().await;
    rig.store("graph").script([Act::Hang]);
    let writing = rig.perform(put("a", 1), 600 * SECOND);
    tokio::time::sleep(SECOND).await;
    writing.abort();
    assert!(writing.await.is_err());
    assert_eq!(rig.plane.ledger().owed(&"graph".into()), 1);
    rig.drain(SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(1), Some(1)));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_undone_whole() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    let batch = Write::store_batch([Record::new("a").with("n", 2), Record::new("b").with("n", 2)]);
    rig.write(batch).await.expect_err("is refused");
    for store in &rig.stores {
        assert_eq!((store.n("a"), store.n("b")), (Some(1), None), "{}", store.name);
    }
}

#[tokio::test(start_paused = true)]
async fn one_operation_twice_has_the_effect_of_one() {
    let rig = Rig::two().await;
    let write = put("a", 1);
    let first = rig.write(write.clone()).await.expect("is stored");
    rig.put("a", 2).await.expect("is stored");
    assert_eq!(rig.write(write).await.expect("is known"), first);
    assert_eq!(rig.store("graph").n("a"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn one_operation_twice_at_once_under_two_keys_is_done_once() {
    let rig = Rig::two().await;
    rig.store("graph").all(Act::Slow(SECOND));
    let first = put("a", 1);
    let second = put("b", 1).with_operation(first.operation);
    let writing = (rig.perform(first.clone(), 60 * SECOND), rig.perform(second, 60 * SECOND));
    let (a, b) = (writing.0.await.expect("no panic").0, writing.1.await.expect("no panic").0);
    assert!(a.is_ok() && matches!(b, Err(Refusal::Unknown { .. })), "{a:?} {b:?}");
    assert_eq!(rig.store("graph").held("b"), None);
    assert!(matches!(rig.handle().outcome(first.operation), Outcome::Committed(_)));
}

#[tokio::test(start_paused = true)]
async fn direct_writes_reserve_their_versions_too() {
    let rig = Rig::one().await;
    rig.plane.versions.skip(crate::operation::Version(2_000_000));
    let receipt = rig.put("a", 1).await.expect("is stored");
    let reserved = rig.tape.records().into_iter().filter_map(|record| match record {
        crate::journal::JournalRecord::Reserved { up_to } => Some(up_to),
        _ => None,
    });
    let reserved = reserved.max();
    assert!(reserved.is_some_and(|up_to| up_to > receipt.version), "{reserved:?}");
    let log = rig.log();
    assert!(place(&log, "journal: reserved") < place(&log, "engine: apply v2000001"), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_was_not_written_is_made_again() {
    let rig = Rig::two().await;
    rig.plane.versions.skip(crate::operation::Version(2_000_000));
    rig.tape.fails.store(true, std::sync::atomic::Ordering::SeqCst);
    rig.put("a", 1).await.expect_err("the disk fails");
    rig.tape.fails.store(false, std::sync::atomic::Ordering::SeqCst);
    rig.put("a", 2).await.expect("is stored");
    place(&rig.log(), "journal: reserved");
}
