//! P4: for each key and store the last acknowledged write wins, and a replay never undoes a delete.

mod support;

use std::sync::Arc;
use std::time::Duration;

use seawall::backends::{Fault, Op};
use seawall::fallback::Mode;
use seawall::operation::{Change, Held, Priority, Version, Write};
use seawall::record::Key;
use support::{History, Rig, Site, is_queued, n, properties, record, until};

/// What a store was given for a key, in the order in which it answered.
fn given(site: &Site, key: &str) -> Vec<Version> {
    let history = site.faults.history();
    history.into_iter().filter(|one| one.key == Key::from(key)).map(|one| one.version).collect()
}

#[tokio::test(start_paused = true)]
async fn a_write_after_a_queued_one_waits_behind_it_although_the_store_is_back() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.faults.set(Op::Apply, Fault::Down);
    let first = rig.handle().store(record("a", 1)).await.expect("is queued");
    assert!(is_queued(&first));
    // The store is back, and the drain has not noticed: it waits after its last failure.
    rig.vector.heal();
    let second = rig.handle().store(record("a", 2)).await.expect("is queued");
    assert_eq!(second.held, Held::Queued { owing: vec!["vector".into()] }, "it does not pass the first");
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(2));
    let given = given(&rig.vector, "a");
    assert!(given.is_sorted(), "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn a_direct_write_behind_a_queued_one_waits_in_every_mode() {
    for mode in [Mode::Disabled, Mode::MemoryOnly, Mode::QueueWrites] {
        let rig = Rig::in_mode(Mode::QueueWrites).await;
        rig.vector.faults.set(Op::Apply, Fault::Down);
        rig.handle().update("a", properties("first", 1)).await.expect("is queued");
        rig.mode(mode).await;
        rig.vector.heal();
        let receipt = rig.handle().update("a", properties("second", 2)).await.expect("is accepted");
        assert_ne!(receipt.held, Held::Committed, "{mode:?}");
        rig.recover().await;
        let held = rig.both("a").await.expect("is there");
        assert_eq!(held.properties, properties("first", 1).with("second", 2), "{mode:?}: both merges are there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_zombie_that_lands_after_a_newer_write_changes_nothing() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.faults.next(Op::Apply, 1, Fault::LateZombie(Duration::from_secs(60)));
    rig.handle().store(record("a", 1)).await.expect("is queued");
    rig.quiet().await;
    rig.handle().store(record("a", 2)).await.expect("is stored");
    tokio::time::sleep(Duration::from_secs(90)).await;
    let given = given(&rig.vector, "a");
    assert!(!given.is_sorted(), "the zombie came last: {given:?}");
    assert_eq!(n(rig.both("a").await), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_zombie_that_lands_after_a_delete_does_not_bring_the_record_back() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.faults.next(Op::Apply, 1, Fault::LateZombie(Duration::from_secs(60)));
    rig.handle().store(record("a", 1)).await.expect("is queued");
    rig.quiet().await;
    rig.handle().delete("a").await.expect("is deleted");
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(rig.both("a").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_delete_while_the_stores_are_down_outlives_restart_cache_and_replay() {
    let mut rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.read("a").await;
    rig.mode(Mode::QueueWrites).await;
    rig.vector.faults.set(Op::Apply, Fault::Down);
    rig.handle().store(record("a", 2)).await.expect("is queued");
    rig.handle().delete("a").await.expect("is queued");
    assert_eq!(rig.read("a").await.0, None, "the cache knows it");
    rig.restart().await;
    assert_eq!(rig.read("a").await.0, None, "the next process knows it");
    rig.recover().await;
    assert_eq!(rig.both("a").await, None);
    assert_eq!(rig.read("a").await.0, None);
}

#[tokio::test(start_paused = true)]
async fn merges_keep_their_order_between_puts_and_deletes() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    let mut history = History::default();
    rig.vector.faults.set(Op::Apply, Fault::Down);
    let writes = [
        Write::update("a", properties("x", 1)),
        Write::update("a", properties("x", 2).with("y", 1)),
        Write::store(record("a", 1)),
        Write::update("a", properties("n", 2)),
        Write::delete("a"),
        Write::update("a", properties("z", 1)),
        Write::update("a", properties("z", serde_json::Value::Null).with("w", 1)),
    ];
    for write in writes {
        assert!(is_queued(&history.write(&rig.handle(), write).await.expect("is queued")));
        history.assert_read(&rig).await;
    }
    rig.recover().await;
    history.assert_held(&rig).await;
    assert_eq!(rig.both("a").await.expect("is there").properties, properties("w", 1));
}

#[tokio::test(start_paused = true)]
async fn of_owed_whole_writes_only_the_newest_is_sent_and_merges_after_it_are_kept() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    let mut newest = None;
    for n in 0..50 {
        newest = Some(rig.handle().store(record("a", n)).await.expect("is queued").version);
    }
    let merged = rig.handle().update("a", properties("merged", true)).await.expect("is queued").version;
    rig.recover().await;
    assert_eq!(given(&rig.vector, "a"), [newest.expect("there were some"), merged]);
    assert_eq!(given(&rig.graph, "a").len(), 51, "who was up got them all");
    assert_eq!(rig.both("a").await, Some(record("a", 49).with("merged", true)));
}

#[tokio::test(start_paused = true)]
async fn a_merge_is_never_coalesced_away_by_another_merge() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    for k in 0..20 {
        rig.handle().update("a", properties(&format!("p{k}"), k)).await.expect("is queued");
    }
    rig.recover().await;
    assert_eq!(rig.both("a").await.expect("is there").properties.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_never_coalesced_apart() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    let mut history = History::default();
    rig.shut(&rig.vector).await;
    let handle = rig.handle();
    for round in 0..5 {
        history.write(&handle, record("a", 10 * round)).await.expect("is queued");
        history.write(&handle, record("b", 10 * round + 1)).await.expect("is queued");
        // Were it sent in the place of the first, it would pass the second, which it says only a part of.
        let merged = Change::Merge { key: "b".into(), properties: properties("merged", round) };
        let batch = Write { changes: vec![Change::put(record("a", 10 * round + 2)), merged], ..Write::delete("a") };
        history.write(&handle, batch).await.expect("is queued");
        history.write(&handle, Write::update("a", properties("round", round))).await.expect("is queued");
    }
    rig.recover().await;
    history.assert_held(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn priority_orders_different_keys_and_never_the_writes_of_one() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    let handle = rig.handle();
    handle.write(Write::update("a", properties("n", 1)).with_priority(Priority::Low)).await.expect("is queued");
    handle.write(Write::store(record("low", 1)).with_priority(Priority::Low)).await.expect("is queued");
    handle.write(Write::store(record("high", 1)).with_priority(Priority::High)).await.expect("is queued");
    handle.write(Write::update("a", properties("n", 2)).with_priority(Priority::High)).await.expect("is queued");
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(2));
    let order = rig.vector.faults.history();
    let place = |key: &str| order.iter().position(|one| one.key == Key::from(key)).expect("was given");
    assert!(place("high") < place("low"));
}

#[tokio::test(start_paused = true)]
async fn writers_of_one_key_at_the_same_time_leave_the_stores_equal() {
    for mode in [Mode::Disabled, Mode::QueueWrites, Mode::MemoryOnly] {
        let rig = Arc::new(Rig::in_mode(mode).await);
        rig.graph.faults.next(Op::Apply, 7, Fault::Slow(Duration::from_millis(30)));
        rig.vector.faults.next(Op::Apply, 3, Fault::Slow(Duration::from_millis(70)));
        rig.vector.faults.next(Op::Apply, 3, Fault::AppliedReplyLost);
        let handle = rig.handle();
        let writes = (0..30).map(|k| {
            let write = match k % 3 {
                0 => Write::store(record("a", k)),
                1 => Write::update("a", properties(&format!("p{k}"), k)),
                _ => Write::store_batch([record("b", k), record("a", k)]),
            };
            let (handle, changes) = (handle.clone(), write.changes.clone());
            async move { (handle.write(write).await, changes) }
        });
        let mut history = History::default();
        for (result, changes) in futures::future::join_all(writes).await {
            if let Ok(receipt) = result {
                history.acknowledge(&receipt, changes);
            }
        }
        assert!(history.len() > 20, "{mode:?} acknowledged {}", history.len());
        rig.recover().await;
        history.assert_held(&rig).await;
        for site in [&rig.graph, &rig.vector] {
            assert!(given(site, "a").is_sorted(), "{mode:?}: one write at a time a key");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn local_storage_touches_no_store_and_is_reconciled_when_it_ends() {
    let mut rig = Rig::start().await;
    let mut history = History::default();
    let handle = rig.handle();
    history.write(&handle, record("a", 1)).await.expect("is stored");
    history.write(&handle, record("gone", 1)).await.expect("is stored");
    rig.mode(Mode::LocalStorage).await;
    let touched = || [&rig.graph, &rig.vector].map(|site| site.faults.counts().of(Op::Apply).made);
    let before = touched();
    history.write(&handle, Write::update("a", properties("m", 2))).await.expect("is kept here");
    history.write(&handle, Write::delete("gone")).await.expect("is kept here");
    history.write(&handle, record("b", 3)).await.expect("is kept here");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(touched(), before, "no store is written to while the mode lasts");
    history.assert_read(&rig).await;

    rig.runtime().control().clear_mode().await.expect("is lifted");
    rig.quiet().await;
    history.assert_held(&rig).await;
    rig.restart().await;
    history.assert_held(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn memory_only_is_given_to_the_stores_in_order_behind_what_was_durable() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    let mut history = History::default();
    let handle = rig.handle();
    rig.shut(&rig.vector).await;
    history.write(&handle, Write::update("a", properties("n", 1))).await.expect("is queued");
    rig.mode(Mode::MemoryOnly).await;
    history.write(&handle, Write::update("a", properties("n", 2).with("m", 2))).await.expect("is held");
    rig.mode(Mode::QueueWrites).await;
    history.write(&handle, Write::update("a", properties("n", 3))).await.expect("is queued");
    rig.recover().await;
    history.assert_held(&rig).await;
    assert!(given(&rig.vector, "a").is_sorted());
}

#[tokio::test(start_paused = true)]
async fn an_older_write_that_another_process_replays_does_not_win() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    rig.handle().store(record("a", 1)).await.expect("is queued");
    // What was drained is only noted: a crash forgets it, and the next process drains it again.
    let before = rig.disk.records();
    rig.recover().await;
    rig.handle().store(record("a", 2)).await.expect("is stored");
    rig.disk = Arc::new(support::Disk::holding(before));
    rig.restart().await;
    rig.quiet().await;
    until("the old write was replayed", || given(&rig.vector, "a").len() > 2).await;
    assert_eq!(n(rig.both("a").await), Some(2));
}
