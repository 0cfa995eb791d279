//! A crash between any two records of the journal.

use super::{SECOND, overlapped};
use crate::backend::BackendError;
use crate::error::Refusal;
use crate::fallback::Mode;
use crate::journal::JournalRecord;
use crate::operation::{Outcome, Write};
use crate::plane::rehearsal::{Act, Rig, put};
use crate::record::{Properties, Record};

/// What the journal had when the caller was answered is what a crash leaves at the least.
struct Run {
    rig: Rig,
    write: Write,
    answer: Result<(), Refusal>,
    /// Records that were durable at the answer.
    durable: usize,
}

async fn run(rig: Rig, write: Write) -> Run {
    let answer = rig.write(write.clone()).await.map(|_| ());
    let durable = rig.tape.records().len();
    Run { rig, write, answer, durable }
}

/// Crashes after every number of records, lets the next process come to rest over stores as they are now, and checks
/// that what the caller was told stays true.
async fn check(run: Run, was: Option<i64>, will: i64) {
    let Run { rig, write, answer, durable } = run;
    rig.drain(300 * SECOND).await;
    let records = rig.tape.records();
    for cut in 0..=records.len() {
        let next = rig.restarted(&records[..cut]).await;
        next.stores.iter().for_each(|store| store.all(Act::Well));
        next.drain(600 * SECOND).await;
        let told = if cut >= durable { Some(&answer) } else { None };
        let held: Vec<Option<i64>> = next.stores.iter().map(|store| store.n("a")).collect();
        assert!(held.windows(2).all(|pair| pair[0] == pair[1]), "cut {cut}: {held:?}");
        let ledger = next.plane.ledger();
        assert_eq!((ledger.len(), ledger.dead()), (0, 0), "cut {cut}");
        let outcome = ledger.outcome(write.operation);
        match told {
            Some(Ok(())) => {
                assert_eq!(held[0], Some(will), "cut {cut}");
                assert!(matches!(outcome, Outcome::Committed(_)), "cut {cut}: {outcome:?}");
            }
            Some(Err(Refusal::RolledBack { .. } | Refusal::Rejected { .. })) => {
                assert_eq!(held[0], was, "cut {cut}");
                assert!(matches!(outcome, Outcome::RolledBack(_)), "cut {cut}: {outcome:?}");
            }
            _ => assert!(held[0] == Some(will) || held[0] == was, "cut {cut}: {held:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_committed_write_stays_whatever_is_cut() {
    check(run(Rig::two().await, put("a", 1)).await, None, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_queued_write_comes_whatever_is_cut() {
    let rig = Rig::two().await;
    rig.mode(Mode::QueueWrites).await;
    rig.store("graph").script([Act::LoseReply]);
    check(run(rig, put("a", 1)).await, None, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_rolled_back_write_stays_away_whatever_is_cut() {
    for reply in [Act::Well, Act::LoseReply] {
        let rig = Rig::two().await;
        rig.put("a", 1).await.expect("is stored");
        let before = rig.tape.records().len();
        rig.store("graph").script([reply, Act::Fail(BackendError::transient("down"))]);
        rig.store("vector").script(vec![Act::Fail(BackendError::transient("down")); 4]);
        let mut run = run(rig, put("a", 2)).await;
        assert!(run.answer.is_err());
        run.durable = run.durable.max(before);
        let Run { rig, write, answer, durable } = run;
        rig.drain(300 * SECOND).await;
        // Only cuts in the second write: without the first one there is nothing to go back to.
        let records = rig.tape.records();
        for cut in durable..=records.len() {
            let next = rig.restarted(&records[..cut]).await;
            next.drain(600 * SECOND).await;
            assert!(matches!(answer, Err(Refusal::RolledBack { .. })), "{answer:?}");
            assert_eq!((next.store("graph").n("a"), next.store("vector").n("a")), (Some(1), Some(1)), "cut {cut}");
            let outcome = next.plane.ledger().outcome(write.operation);
            assert!(matches!(outcome, Outcome::RolledBack(_)), "cut {cut}: {outcome:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn overlapped_stays_atomic_over_a_crash_once_the_intent_is_durable() {
    let rig = overlapped().await;
    rig.mode(Mode::QueueWrites).await;
    rig.store("vector").script([Act::Fail(BackendError::transient("down"))]);
    check(run(rig, put("a", 1)).await, None, 1).await;
}

#[tokio::test(start_paused = true)]
async fn several_writes_of_a_key_end_in_the_last_one_whatever_is_cut() {
    let rig = Rig::two().await;
    rig.mode(Mode::QueueWrites).await;
    rig.store("graph").writes(Act::Fail(BackendError::transient("down")));
    let mut answered = Vec::new();
    for n in 1..=4 {
        let write = match n {
            3 => Write::update("a", Properties::new().with("m", n)),
            _ => Write::store(Record::new("a").with("n", n)),
        };
        rig.write(write).await.expect("is queued");
        answered.push(rig.tape.records().len());
    }
    rig.store("graph").writes(Act::Well);
    rig.drain(300 * SECOND).await;
    let records = rig.tape.records();
    for cut in answered[0]..=records.len() {
        let next = rig.restarted(&records[..cut]).await;
        next.drain(600 * SECOND).await;
        let held = (next.store("graph").held("a"), next.store("vector").held("a"));
        assert_eq!(held.0, held.1, "cut {cut}");
        assert_eq!(next.store("graph").n("a"), Some(4), "cut {cut}: an older write never comes back");
        assert!(next.plane.ledger().is_empty(), "cut {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_one_after_a_crash_and_a_discarded_one_is_none() {
    let rig = Rig::two().await;
    rig.mode(Mode::LocalStorage).await;
    let write = put("a", 1);
    rig.write(write.clone()).await.expect("is queued");
    rig.store("graph").writes(Act::Fail(BackendError::permanent("too wide")));
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    let dead = rig.tape.records();
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::DeadLetter { .. }));
    rig.handle().discard_dead_letter(write.operation).await.expect("is written down");
    let records = rig.tape.records();
    for cut in dead.len()..=records.len() {
        let next = rig.restarted(&records[..cut]).await;
        next.drain(SECOND).await;
        match next.handle().outcome(write.operation) {
            Outcome::DeadLetter { .. } => assert!(cut < records.len()),
            Outcome::Discarded(_) => {}
            other => panic!("cut {cut}: {other:?}"),
        }
    }
    let closed = |record: &&JournalRecord| matches!(record, JournalRecord::Closed { .. });
    assert_eq!(records.iter().filter(closed).count(), 1);
}
