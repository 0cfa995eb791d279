//! Lanes: how fast, how far, and in which order they drain.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend::BackendError;
use crate::breaker::{BreakerConfig, BreakerState, CallOutcome, Purpose};
use crate::event::{EventKind, Update};
use crate::fallback::Mode;
use crate::journal::JournalRecord;
use crate::operation::{Held, Priority};
use crate::plane::rehearsal::{Act, Rig, Scripted, Settings, put};
use crate::sync::{SyncConfig, SyncMessage};

const SECOND: Duration = Duration::from_secs(1);

/// One store that owes a write under each of this many keys, and is not drained yet.
async fn owing(keys: i64, settings: Settings) -> Rig {
    let rig = Rig::with(settings, |log| vec![Scripted::new("engine", log)]).await;
    rig.mode(Mode::LocalStorage).await;
    for n in 0..keys {
        rig.put(&format!("k{n:03}"), n).await.expect("is queued");
    }
    assert_eq!(rig.store("engine").calls(), 0);
    rig.take_log();
    rig
}

fn owed(rig: &Rig) -> usize {
    rig.plane.ledger().owed(&"engine".into())
}

#[tokio::test(start_paused = true)]
async fn nothing_is_drained_in_local_storage_and_everything_when_it_ends() {
    let rig = owing(10, Settings::default()).await;
    let _workers = rig.workers().await;
    sleep(100 * SECOND).await;
    assert_eq!((rig.store("engine").calls(), owed(&rig)), (0, 10));
    rig.mode(Mode::QueueWrites).await;
    sleep(SECOND).await;
    assert_eq!(owed(&rig), 0);
    rig.mode(Mode::LocalStorage).await;
    rig.put("k000", -1).await.expect("is queued");
    sleep(100 * SECOND).await;
    assert_eq!((rig.store("engine").n("k000"), owed(&rig)), (Some(0), 1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_begins_with_one_step_and_grows_by_one_with_each() {
    let sync = SyncConfig { concurrency: 4, ..SyncConfig::default() };
    let rig = owing(20, Settings { sync, ..Settings::default() }).await;
    rig.store("engine").writes(Act::Slow(SECOND));
    rig.mode(Mode::QueueWrites).await;
    let _workers = rig.workers().await;
    // 1, then 2, then 4 side by side, and no more than 4.
    let mut seen = Vec::new();
    for _ in 0..4 {
        sleep(SECOND / 10).await;
        seen.push(rig.store("engine").calls());
        sleep(SECOND * 9 / 10).await;
    }
    assert_eq!(seen, [1, 3, 7, 11]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_stops_within_one_step_of_an_outage_and_waits_longer_each_time() {
    let breaker = BreakerConfig { failure_threshold: 1_000, ..BreakerConfig::default() };
    let rig = owing(50, Settings { breaker, ..Settings::default() }).await;
    rig.store("engine").writes(Act::Fail(BackendError::transient("down")));
    rig.mode(Mode::QueueWrites).await;
    let _workers = rig.workers().await;
    sleep(SECOND / 100).await;
    assert_eq!(rig.store("engine").calls(), 1);
    // 0.1 s, doubled each time up to 30 s, each between its half and its whole: 9 waits are 25 to 51 s.
    sleep(60 * SECOND).await;
    assert!((9..=13).contains(&rig.store("engine").calls()), "{}", rig.store("engine").calls());
    rig.store("engine").writes(Act::Well);
    sleep(31 * SECOND).await;
    assert_eq!(owed(&rig), 0);
    assert_eq!(rig.handle().dead_letters(), []);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_not_called_and_its_closing_wakes_the_drain() {
    let rig = owing(5, Settings::default()).await;
    rig.gate("engine").breaker.force_open("a test", None);
    rig.mode(Mode::QueueWrites).await;
    let _workers = rig.workers().await;
    sleep(600 * SECOND).await;
    assert_eq!(rig.store("engine").calls(), 0);
    rig.gate("engine").breaker.lift();
    rig.gate("engine").breaker.reset();
    sleep(SECOND / 100).await;
    assert_eq!((owed(&rig), rig.gate("engine").breaker.view().state), (0, BreakerState::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_drain_uses_the_places_that_a_recovery_gives_it_all_the_time() {
    let breaker = BreakerConfig { recovery_calls: 8, recovery_step: 20 * SECOND, ..BreakerConfig::default() };
    let rig = owing(500, Settings { breaker, ..Settings::default() }).await;
    rig.store("engine").writes(Act::Slow(SECOND / 100));
    let breaker = &rig.gate("engine").breaker;
    for _ in 0..5 {
        breaker.gate().try_acquire(Purpose::Live).expect("it is closed").settle(CallOutcome::Failure);
    }
    sleep(60 * SECOND).await;
    for _ in 0..2 {
        breaker.gate().try_acquire(Purpose::Probe).expect("it is half-open").settle(CallOutcome::Success);
    }
    assert_eq!(breaker.view().state, BreakerState::Recovering);
    rig.mode(Mode::QueueWrites).await;
    let _workers = rig.workers().await;
    // Half of the half of eight places: two, for a hundredth of a second each.
    sleep(3 * SECOND).await;
    assert_eq!((owed(&rig), breaker.view().state), (0, BreakerState::Recovering));
}

#[tokio::test(start_paused = true)]
async fn a_drain_steps_back_for_users() {
    let sync = SyncConfig { concurrency: 8, ..SyncConfig::default() };
    let rig = owing(100, Settings { sync, ..Settings::default() }).await;
    rig.store("engine").writes(Act::Slow(SECOND));
    let users: Vec<_> = (0..8).map(|_| rig.gate("engine").bulkhead.enter(Purpose::Live)).collect();
    rig.mode(Mode::QueueWrites).await;
    let _workers = rig.workers().await;
    sleep(5 * SECOND + SECOND / 10).await;
    assert_eq!(rig.store("engine").calls(), 6, "one at a time, but never none");
    drop(users);
    sleep(5 * SECOND).await;
    assert!(rig.store("engine").calls() > 25, "{}", rig.store("engine").calls());
}

#[tokio::test(start_paused = true)]
async fn high_priority_goes_first_and_a_key_keeps_its_order() {
    let sync = SyncConfig { concurrency: 1, ..SyncConfig::default() };
    let rig = owing(0, Settings { sync, ..Settings::default() }).await;
    for (key, n, priority) in [
        ("a", 1, Priority::Low),
        ("b", 2, Priority::Normal),
        ("c", 3, Priority::High),
        ("d", 4, Priority::Normal),
        ("e", 5, Priority::High),
    ] {
        rig.write(put(key, n).with_priority(priority)).await.expect("is queued");
    }
    rig.take_log();
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    let mut log = rig.take_log();
    log.retain(|line| line.starts_with("engine"));
    let order = ["v3", "v5", "v2", "v4", "v1"].map(|version| format!("engine: apply {version}"));
    assert_eq!(log, order);
}

#[tokio::test(start_paused = true)]
async fn what_a_later_write_replaces_is_not_sent() {
    let rig = owing(0, Settings::default()).await;
    for n in 1..=50 {
        rig.put("a", n).await.expect("is queued");
    }
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    assert_eq!((rig.store("engine").n("a"), rig.store("engine").calls()), (Some(50), 1));
    assert!(rig.plane.ledger().is_empty());
    let closed = |record: &&JournalRecord| matches!(record, JournalRecord::Closed { .. });
    assert_eq!(rig.tape.records().iter().filter(closed).count(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_rejected_is_parked_and_holds_up_nobody() {
    let rig = owing(5, Settings::default()).await;
    rig.store("engine").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    assert_eq!((owed(&rig), rig.handle().dead_letters().len()), (1, 1));
    assert_eq!(rig.store("engine").n("k004"), Some(4));
    let receipt = rig.put("k000", 7).await.expect("the key goes on");
    assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
    rig.drain(SECOND).await;
    assert_eq!(rig.store("engine").n("k000"), Some(7));
}

#[tokio::test(start_paused = true)]
async fn what_a_rejected_write_was_to_replace_gets_its_own_turn() {
    let rig = owing(0, Settings::default()).await;
    for n in [1, 2] {
        rig.put("a", n).await.expect("is queued");
    }
    rig.store("engine").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    assert_eq!((rig.store("engine").n("a"), rig.store("engine").calls()), (Some(1), 2));
    assert_eq!((owed(&rig), rig.handle().dead_letters().len()), (1, 1));
}

/// A store that cannot take what it is given under one key, and does not say why.
#[tokio::test(start_paused = true)]
async fn a_write_that_only_ever_fails_holds_up_nobody_for_good() {
    let breaker = BreakerConfig { failure_threshold: 1_000, ..BreakerConfig::default() };
    let rig = owing(20, Settings { breaker, ..Settings::default() }).await;
    rig.store("engine").poison("k000");
    rig.mode(Mode::QueueWrites).await;
    rig.drain(120 * SECOND).await;
    assert_eq!(owed(&rig), 1);
    assert_eq!(rig.store("engine").n("k019"), Some(19));
    assert_eq!(rig.handle().dead_letters(), [], "it may be taken one day");
}

#[tokio::test(start_paused = true)]
async fn a_merge_waits_for_the_dead_letter_of_its_key_and_a_record_does_not() {
    use crate::operation::Write;
    use crate::record::Properties;
    let rig = owing(0, Settings::default()).await;
    let letter = put("a", 1);
    rig.write(letter.clone()).await.expect("is queued");
    rig.store("engine").script([Act::Fail(BackendError::permanent("not now"))]);
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    rig.write(Write::update("a", Properties::new().with("m", 2))).await.expect("is queued");
    rig.drain(SECOND).await;
    assert_eq!(rig.store("engine").held("a"), None, "the merge would be merged into nothing");
    assert!(rig.handle().retry_dead_letter(letter.operation, "engine".into()).await.expect("is written down"));
    rig.drain(SECOND).await;
    let record = rig.store("engine").held("a").and_then(|held| held.record).expect("is there");
    assert_eq!((record.properties.get("n"), record.properties.get("m")), (Some(&1.into()), Some(&2.into())));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_in_flight_when_a_worker_died_is_drained_by_the_next() {
    let rig = owing(10, Settings::default()).await;
    rig.store("engine").script([Act::Well, Act::Hang, Act::Hang]);
    rig.mode(Mode::QueueWrites).await;
    let workers = rig.workers().await;
    sleep(SECOND).await;
    assert_eq!(rig.plane.ledger().ready(&"engine".into(), false), 7);
    workers.sync.kill_and_wait(None).await.expect("it dies");
    drop(workers);
    assert_eq!(rig.plane.ledger().ready(&"engine".into(), false), 9);
    rig.drain(SECOND).await;
    assert_eq!(owed(&rig), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_told_dead_is_started_again() {
    let rig = owing(3, Settings::default()).await;
    rig.store("engine").script([Act::Hang]);
    rig.mode(Mode::QueueWrites).await;
    let workers = rig.workers().await;
    sleep(SECOND / 10).await;
    workers.sync.cast(SyncMessage::LaneDied("engine".into())).expect("it listens");
    sleep(SECOND / 10).await;
    assert_eq!(owed(&rig), 3, "what was in flight is owed again");
    sleep(2 * SECOND).await;
    assert_eq!(owed(&rig), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_its_beginning_its_progress_and_its_end() {
    let sync = SyncConfig { batch: 4, ..SyncConfig::default() };
    let rig = owing(10, Settings { sync, ..Settings::default() }).await;
    let mut events = rig.plane.events.subscribe();
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    let mut told = Vec::new();
    while let Some(Update::Event(event)) = events.try_next() {
        match &event.kind {
            EventKind::DrainStarted { owed, .. } => told.push((0, *owed)),
            EventKind::DrainProgressed { drained, owed, .. } => told.push((*drained, *owed)),
            EventKind::DrainStopped { drained, owed, .. } => told.push((*drained, *owed)),
            _ => {}
        }
    }
    assert_eq!((told.first(), told.last()), (Some(&(0, 10)), Some(&(10, 0))));
    assert!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{told:?}");
    assert_eq!(told.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_in_memory_is_written_down_when_there_is_a_journal_again() {
    let rig = Rig::two().await;
    rig.mode(Mode::MemoryOnly).await;
    rig.store("graph").writes(Act::Fail(BackendError::transient("down")));
    let write = put("a", 1);
    let receipt = rig.write(write.clone()).await.expect("is held");
    assert!(matches!(receipt.held, Held::Volatile { .. }), "{receipt:?}");
    assert_eq!(rig.tape.records().iter().filter(|record| matches!(record, JournalRecord::Intent(_))).count(), 0);
    let _workers = rig.workers().await;
    rig.mode(Mode::QueueWrites).await;
    sleep(SECOND / 10).await;
    let records = rig.tape.records();
    let next = rig.restarted(&records).await;
    rig.store("graph").writes(Act::Well);
    next.drain(SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(1), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_lane_with_nothing_to_do_sleeps() {
    let rig = Rig::two().await;
    let _workers = rig.workers().await;
    let began = Instant::now();
    sleep(3_600 * SECOND).await;
    rig.put("a", 1).await.expect("is stored");
    assert_eq!(rig.store("graph").calls(), 1);
    assert!(began.elapsed() >= 3_600 * SECOND);
}
