//! Writes that are taken back, and journals that fail.

use std::sync::atomic::Ordering;

use super::{SECOND, overlapped, place};
use crate::backend::BackendError;
use crate::error::Refusal;
use crate::fallback::Mode;
use crate::journal::JournalRecord;
use crate::operation::{Held, Outcome};
use crate::plane::rehearsal::{Act, Rig, Scripted, Settings, put};
use crate::saga::{Durability, SagaConfig};

fn down() -> Act {
    Act::Fail(BackendError::transient("down"))
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_being_undone_is_not_read_into_the_cache() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well, Act::Slow(5 * SECOND)]);
    let handle = rig.handle();
    let writing = rig.perform(put("a", 2), 60 * SECOND);
    tokio::time::sleep(SECOND).await;
    assert_eq!(rig.store("graph").n("a"), Some(2), "not undone yet");
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!(read.record.expect("is there").properties.get("n"), Some(&1.into()));
    writing.await.expect("no panic").0.expect_err("is refused");
    assert_eq!(rig.store("graph").n("a"), Some(1));
    rig.mode(Mode::QueueWrites).await;
    rig.stores.iter().for_each(|store| store.all(down()));
    if let Ok(read) = handle.retrieve("a").await {
        assert_eq!(read.record.expect("is there").properties.get("n"), Some(&1.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_compensation_whose_store_is_down_is_owed_until_it_is_done() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well]);
    rig.store("graph").writes(down());
    let write = put("a", 2);
    rig.write(write.clone()).await.expect_err("is refused");
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::Compensating { .. }));
    let workers = rig.workers().await;
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(rig.handle().dead_letters(), [], "an outage makes no dead letter");
    rig.store("graph").writes(Act::Well);
    tokio::time::sleep(200 * SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(1), Some(1)));
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::RolledBack(_)));
    drop(workers);
}

#[tokio::test(start_paused = true)]
async fn a_compensation_leaves_an_open_breaker_alone() {
    let rig = Rig::two().await;
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well]);
    rig.store("graph").writes(down());
    rig.put("a", 1).await.expect_err("is refused");
    rig.gate("graph").breaker.force_open("a test", None);
    let before = rig.store("graph").calls();
    rig.drain(600 * SECOND).await;
    assert_eq!(rig.store("graph").calls(), before);
    assert_eq!(rig.plane.ledger().owed(&"graph".into()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_behind_a_compensation_goes_as_soon_as_that_is_done() {
    let rig = Rig::two().await;
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well]);
    rig.store("graph").writes(down());
    rig.put("a", 1).await.expect_err("is refused");
    rig.store("graph").writes(Act::Slow(SECOND));
    let receipt = rig.put("a", 2).await.expect("queues behind the compensation");
    assert_eq!(receipt.held, Held::Queued { owing: vec!["graph".into()] });
    rig.drain(60 * SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(2), Some(2)));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_compensation_never_overwrites_a_newer_write() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well]);
    rig.store("graph").writes(down());
    rig.put("a", 2).await.expect_err("is refused");
    // Somebody writes something newer past us, with a version of ours.
    let newer = rig.plane.versions.allocate();
    rig.store("graph").put(crate::record::Record::new("a").with("n", 3), newer);
    rig.store("graph").writes(Act::Well);
    rig.drain(60 * SECOND).await;
    assert_eq!(rig.store("graph").n("a"), Some(3));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_undone_leaves_what_another_writer_of_its_key_was_told_is_stored() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    // Were the third begun before the second has ended, it would read the first, and put that back.
    rig.store("graph").script([Act::Slow(SECOND)]);
    rig.store("vector").script([Act::Slow(SECOND), Act::Fail(BackendError::permanent("too wide"))]);
    let second = rig.perform(put("a", 2), 60 * SECOND);
    tokio::time::sleep(SECOND / 2).await;
    let third = rig.perform(put("a", 3), 60 * SECOND);
    second.await.expect("no panic").0.expect("is stored");
    third.await.expect("no panic").0.expect_err("is refused");
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(2), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_intent_is_not_durable_touches_no_store_and_does_not_come_back() {
    let rig = Rig::two().await;
    rig.tape.fails.store(true, Ordering::SeqCst);
    let refusal = rig.put("a", 1).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal:?}");
    assert_eq!(rig.store("graph").calls() + rig.store("vector").calls(), 0);
    rig.tape.fails.store(false, Ordering::SeqCst);
    rig.drain(5 * SECOND).await;
    assert!(rig.plane.ledger().is_empty());
    // Should the disk have kept the intent after all, this ends it.
    place(&rig.log(), "journal: closed v1 RolledBack");
    assert_eq!(rig.store("graph").calls() + rig.store("vector").calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_passes_a_write_whose_intent_the_disk_may_have() {
    let rig = Rig::one().await;
    rig.put("a", 1).await.expect("is stored");
    rig.mode(Mode::QueueWrites).await;
    rig.store("engine").writes(down());
    rig.tape.fails.store(true, Ordering::SeqCst);
    rig.put("a", 2).await.expect_err("the disk did not take it, it says");
    rig.mode(Mode::Disabled).await;
    rig.store("engine").writes(Act::Well);
    // Straight to the store, this would be older than what a restart may find, and newer at the same time.
    rig.put("a", 3).await.expect_err("waits for the disk");
    assert_eq!(rig.store("engine").n("a"), Some(1));
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert_eq!(read.record.expect("is there").properties.get("n"), Some(&1.into()), "it is not shown either");
    rig.tape.fails.store(false, Ordering::SeqCst);
    rig.drain(5 * SECOND).await;
    assert!(rig.plane.ledger().is_empty());
    rig.put("a", 4).await.expect("is stored");
    assert_eq!(rig.store("engine").n("a"), Some(4));
}

#[tokio::test(start_paused = true)]
async fn overlapped_leaves_nothing_half_done_when_the_journal_fails() {
    let rig = overlapped().await;
    rig.put("a", 1).await.expect("is stored");
    rig.tape.fails.store(true, Ordering::SeqCst);
    rig.store("vector").writes(down());
    let refusal = rig.put("a", 2).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal:?}");
    rig.store("vector").writes(Act::Well);
    rig.drain(60 * SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(1), Some(1)));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_passes_it_with_overlapped_durability_either() {
    let saga = SagaConfig { durability: Durability::Overlapped, ..SagaConfig::default() };
    let settings = Settings { saga, ..Settings::default() };
    let rig = Rig::with(settings, |log| vec![Scripted::new("engine", log)]).await;
    rig.put("a", 1).await.expect("is stored");
    rig.mode(Mode::LocalStorage).await;
    rig.tape.fails.store(true, Ordering::SeqCst);
    rig.put("a", 2).await.expect_err("the disk did not take it, it says");
    rig.mode(Mode::Disabled).await;
    rig.put("a", 3).await.expect_err("waits for the disk");
    assert_eq!(rig.store("engine").n("a"), Some(1));
    rig.tape.fails.store(false, Ordering::SeqCst);
    rig.drain(5 * SECOND).await;
    rig.put("a", 4).await.expect("is stored");
    assert_eq!(rig.store("engine").n("a"), Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_may_have_happened_is_unknown_also_when_the_journal_is_closed() {
    let rig = Rig::one().await;
    rig.store("engine").writes(Act::LoseReply);
    rig.tape.shut();
    let refusal = rig.put("a", 1).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_with_an_unknown_outcome_is_done_and_the_cache_forgets_what_was_there() {
    let rig = Rig::one().await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("engine").writes(Act::LoseReply);
    let write = put("a", 2);
    let refusal = rig.write(write.clone()).await.expect_err("is refused");
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal:?}");
    rig.store("engine").writes(Act::Well);
    rig.drain(60 * SECOND).await;
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::Committed(_)));
    rig.mode(Mode::QueueWrites).await;
    rig.store("engine").all(down());
    if let Ok(read) = rig.handle().retrieve("a").await {
        assert_eq!(read.record.expect("is there").properties.get("n"), Some(&2.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_the_disk_did_not_take_is_not_acted_upon() {
    let rig = Rig::two().await;
    rig.store("vector").script([Act::Slow(SECOND), Act::Well]);
    rig.store("graph").writes(Act::Fail(BackendError::permanent("too wide")));
    let writing = rig.perform(put("a", 1), 60 * SECOND);
    tokio::time::sleep(SECOND / 2).await;
    rig.tape.fails.store(true, Ordering::SeqCst);
    let (answer, _) = writing.await.expect("no panic");
    assert!(matches!(answer, Err(Refusal::Unknown { .. })), "{answer:?}");
    // Whoever reads the journal back goes forward, so nothing may have been undone.
    assert!(!rig.tape.records().iter().any(|record| matches!(record, JournalRecord::Decided { .. })));
    assert_eq!(rig.store("vector").n("a"), Some(1));
    rig.tape.fails.store(false, Ordering::SeqCst);
    rig.store("graph").writes(Act::Well);
    rig.drain(60 * SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(1), Some(1)));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_undoing_may_have_been_written_down_is_unknown_until_it_is_written_down_anew() {
    let rig = Rig::two().await;
    rig.store("vector").script([Act::Slow(SECOND), Act::Well]);
    rig.stores.iter().for_each(|store| store.writes(Act::Fail(BackendError::transient("down"))));
    let write = put("a", 1);
    let writing = rig.perform(write.clone(), 60 * SECOND);
    tokio::time::sleep(SECOND / 2).await;
    rig.tape.fails.store(true, Ordering::SeqCst);
    let (answer, _) = writing.await.expect("no panic");
    assert!(matches!(answer, Err(Refusal::Unknown { .. })), "{answer:?}");
    let workers = rig.workers().await;
    tokio::time::sleep(5 * SECOND).await;
    // A crash now could find the decision, whatever this process was told of it: no receipt.
    let answer = rig.write(write.clone()).await;
    assert!(matches!(answer, Err(Refusal::Unknown { .. })), "{answer:?}");
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::Pending { durable: false, .. }));
    rig.tape.fails.store(false, Ordering::SeqCst);
    tokio::time::sleep(5 * SECOND).await;
    let receipt = rig.write(write).await.expect("is owed for certain");
    assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
    let intents = rig.tape.records().into_iter().filter(|record| matches!(record, JournalRecord::Intent(_)));
    assert_eq!(intents.count(), 2);
    drop(workers);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_one_backend_may_have_is_made_to_have_happened_though_no_journal_took_it() {
    let rig = Rig::one().await;
    rig.store("engine").writes(Act::LoseReply);
    rig.tape.fails.store(true, Ordering::SeqCst);
    let write = put("a", 1);
    rig.write(write.clone()).await.expect_err("nobody knows");
    rig.store("engine").writes(down());
    let answer = rig.write(write.clone()).await;
    assert!(matches!(answer, Err(Refusal::Unknown { .. })), "still nobody knows: {answer:?}");
    rig.tape.fails.store(false, Ordering::SeqCst);
    rig.store("engine").writes(Act::Well);
    rig.drain(60 * SECOND).await;
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::Committed(_)));
    assert_eq!(rig.store("engine").n("a"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_dropped_while_its_intent_is_on_its_way_does_not_come_back() {
    let rig = Rig::two().await;
    rig.tape.takes(SECOND);
    let writing = rig.perform(put("a", 1), 60 * SECOND);
    tokio::time::sleep(SECOND / 2).await;
    writing.abort();
    tokio::time::sleep(SECOND).await;
    // Its end may be written before its beginning, here: then the next process finishes it.
    let records = rig.tape.records();
    let next = rig.restarted(&records).await;
    next.drain(SECOND).await;
    assert_eq!(rig.store("graph").n("a"), rig.store("vector").n("a"));
    assert!(next.plane.ledger().is_empty());
}
