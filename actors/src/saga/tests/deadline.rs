//! What the caller is told when the time is up, and what is true afterwards.

use super::SECOND;
use crate::backend::BackendError;
use crate::error::Refusal;
use crate::fallback::Mode;
use crate::operation::{Held, Outcome, Source, Write};
use crate::plane::rehearsal::{Act, Rig, put};
use crate::record::Properties;

#[tokio::test(start_paused = true)]
async fn a_write_that_has_not_begun_is_dropped_at_its_deadline() {
    let rig = Rig::two().await;
    rig.store("graph").reads(Act::Hang);
    let (answer, after) = rig.perform(put("a", 1), SECOND).await.expect("no panic");
    assert!(matches!(answer, Err(Refusal::DeadlineExceeded)), "{answer:?}");
    assert_eq!(after, SECOND);
    assert_eq!(rig.store("graph").calls() + rig.store("vector").calls(), 0);
    // Nothing but the reservation of the start.
    assert!(rig.plane.ledger().is_empty() && rig.tape.records().iter().all(|record| record.version().is_none()));
    rig.store("graph").reads(Act::Well);
    rig.put("a", 2).await.expect("the key is free");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_may_still_be_undone_is_unknown_at_its_deadline() {
    let rig = Rig::two().await;
    rig.store("graph").script([Act::Slow(5 * SECOND)]);
    let write = put("a", 1);
    let (answer, after) = rig.perform(write.clone(), SECOND).await.expect("no panic");
    assert!(matches!(answer, Err(Refusal::Unknown { .. })), "{answer:?}");
    assert_eq!(after, SECOND);
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::Committed(_)), "the saga went on");
}

#[tokio::test(start_paused = true)]
async fn a_durable_write_that_queues_is_acknowledged_at_its_deadline_and_seen_at_once() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.mode(Mode::QueueWrites).await;
    rig.store("graph").writes(Act::Hang);
    rig.store("vector").writes(Act::Hang);
    let handle = rig.handle();
    let receipt = handle.write(put("a", 2).with_timeout(SECOND)).await.expect("is acknowledged");
    assert!(matches!(receipt.held, Held::Queued { ref owing } if owing.len() == 2), "{receipt:?}");
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!(read.record.expect("is there").properties.get("n"), Some(&2.into()));
    assert_eq!((read.source, read.version), (Source::Owed, Some(receipt.version)));
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_at_the_deadline_is_in_the_cache_too() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.mode(Mode::QueueWrites).await;
    rig.store("graph").script([Act::Slow(3 * SECOND)]);
    let handle = rig.handle();
    let merge = Write::update("a", Properties::new().with("n", 2)).with_timeout(SECOND);
    handle.write(merge).await.expect("is acknowledged");
    rig.store("graph").reads(Act::Fail(BackendError::transient("down")));
    rig.store("vector").reads(Act::Fail(BackendError::transient("down")));
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!(read.record.expect("is there").properties.get("n"), Some(&2.into()));
    // And when the saga has ended.
    tokio::time::sleep(10 * SECOND).await;
    assert!(rig.plane.ledger().is_empty());
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!(read.record.expect("is there").properties.get("n"), Some(&2.into()));
}

#[tokio::test(start_paused = true)]
async fn no_receipt_is_given_for_a_write_that_is_being_undone() {
    let rig = Rig::two().await;
    rig.mode(Mode::QueueWrites).await;
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well, Act::Slow(5 * SECOND)]);
    let (answer, _) = rig.perform(put("a", 1), SECOND).await.expect("no panic");
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(rig.store("graph").held("a").expect("was undone").record, None);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_durable_is_told_at_the_deadline() {
    let rig = Rig::two().await;
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well, Act::Slow(5 * SECOND)]);
    let (answer, after) = rig.perform(put("a", 1), SECOND).await.expect("no panic");
    assert!(matches!(answer, Err(Refusal::Rejected { .. })), "{answer:?}");
    assert_eq!(after, SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_rejected_after_its_receipt_becomes_a_dead_letter() {
    let rig = Rig::two().await;
    rig.mode(Mode::QueueWrites).await;
    rig.store("vector").writes(Act::Hang);
    let write = put("a", 1);
    let writing = rig.perform(write.clone(), SECOND);
    tokio::time::sleep(2 * SECOND).await;
    rig.store("vector").writes(Act::Fail(BackendError::permanent("too wide")));
    let (answer, _) = writing.await.expect("no panic");
    assert!(answer.is_ok(), "{answer:?}");
    rig.drain(SECOND).await;
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::DeadLetter { .. }));
    assert_eq!(rig.store("graph").n("a"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_wait_for_ever_in_words() {
    let rig = Rig::two().await;
    let write = put("a", 1).with_timeout(std::time::Duration::MAX);
    rig.handle().write(write).await.expect("is stored");
}
