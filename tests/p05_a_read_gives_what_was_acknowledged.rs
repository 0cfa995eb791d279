//! P5: a read after an acknowledged write gives that write or a newer one, and says where it is from.

mod support;

use std::sync::Arc;
use std::time::Duration;

use seawall::Refusal;
use seawall::backend::{Fence, FencedWrite};
use seawall::backends::{Fault, Op, Ops};
use seawall::config::Config;
use seawall::fallback::Mode;
use seawall::ledger::{Intent, JournalRecord};
use seawall::operation::{Priority, Search, Source, Traversal, Version, Write};
use seawall::record::Record;
use support::{Disk, History, Rig, is_queued, n, properties, record, refused};

/// Which stores can be reached.
const STATES: [[bool; 2]; 4] = [[true, true], [true, false], [false, true], [false, false]];

async fn shut(rig: &Rig, [graph, vector]: [bool; 2]) {
    for (site, up) in [(&rig.graph, graph), (&rig.vector, vector)] {
        if !up {
            rig.shut(site).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_every_mode_and_state_a_write_is_read_back() {
    for mode in Mode::ALL {
        for state in STATES {
            let rig = Rig::start().await;
            let (handle, mut history) = (rig.handle(), History::default());
            for key in ["put", "updated", "deleted", "untouched"] {
                history.write(&handle, record(key, 1)).await.expect("is stored");
            }
            assert_eq!(rig.read("upserted").await.0, None);
            rig.mode(mode).await;
            shut(&rig, state).await;
            for write in [
                Write::store(record("put", 2)),
                Write::update("updated", properties("m", 2)),
                Write::delete("deleted"),
                Write::store(record("new", 2)),
                Write::update("upserted", properties("m", 2)),
            ] {
                let _ = history.write(&handle, write).await;
                for (key, expected) in history.fold() {
                    match handle.retrieve(key.clone()).await {
                        Ok(read) => {
                            assert!(!read.partial, "{mode:?} {state:?}: the cache knows {key}");
                            assert_eq!(read.record, expected, "{mode:?} {state:?}: {key}");
                        }
                        // Without a fallback there is no cache.
                        Err(Refusal::Unavailable { .. }) => assert_eq!((mode, state), (Mode::Disabled, [false, false])),
                        Err(refusal) => panic!("{mode:?} {state:?}: {refusal}"),
                    }
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_process_reads_what_the_last_one_acknowledged() {
    for mode in [Mode::QueueWrites, Mode::LocalStorage] {
        for state in STATES {
            let mut rig = Rig::start().await;
            let mut history = History::default();
            for key in ["put", "updated", "deleted"] {
                history.write(&rig.handle(), record(key, 1)).await.expect("is stored");
            }
            rig.mode(mode).await;
            shut(&rig, state).await;
            history.write(&rig.handle(), record("put", 2)).await.expect("is accepted");
            history.write(&rig.handle(), Write::update("updated", properties("m", 2))).await.expect("is accepted");
            history.write(&rig.handle(), Write::update("put", properties("m", 3))).await.expect("is accepted");
            history.write(&rig.handle(), Write::delete("deleted")).await.expect("is accepted");
            rig.restart().await;
            history.assert_read(&rig).await;
            for (key, expected) in [("put", Some(record("put", 2).with("m", 3))), ("deleted", None)] {
                assert_eq!(rig.read(key).await.0, expected, "{mode:?} {state:?}: no base is needed for {key}");
            }
            rig.recover().await;
            history.assert_read(&rig).await;
            history.assert_held(&rig).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_of_a_finished_write_hides_nothing_newer() {
    let mut rig = Rig::start().await;
    for n in [1, 2] {
        // The second needs no journal where there is one store, and its end need not be durable where there are two.
        let write = Write::store(record("a", n));
        let (version, changes) = (Version(n), write.changes.clone().into());
        let write = FencedWrite { operation: write.operation, version, fence: Fence::Write, changes };
        for site in [&rig.graph, &rig.vector] {
            site.backend.inner().apply(&write).await.expect("is stored");
        }
        if n == 1 {
            rig.crash();
            rig.disk = Arc::new(Disk::holding(vec![
                JournalRecord::Reserved { up_to: Version(1_000) },
                JournalRecord::Intent(Arc::new(Intent {
                    version,
                    operation: write.operation,
                    priority: Priority::default(),
                    changes: Arc::clone(&write.changes),
                    owes: vec!["graph".into(), "vector".into()],
                    undo: Vec::new(),
                })),
            ]));
        }
    }
    for site in [&rig.graph, &rig.vector] {
        site.faults.set(Ops::WRITES, Fault::Down);
    }
    rig.restart().await;
    assert_eq!(n(rig.read("a").await.0), Some(2));
    // Nobody can be asked: that is said.
    rig.graph.set(Fault::Down);
    rig.vector.set(Fault::Down);
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert_eq!((n(read.record), read.source, read.stale), (Some(1), Source::Owed, true));
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(2));
}

#[tokio::test(start_paused = true)]
async fn every_answer_names_its_source_and_its_age() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    let handle = rig.handle();
    handle.store(record("a", 1)).await.expect("is stored");
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!((read.source, read.stale, read.partial), (Source::Backend("graph".into()), false, false));
    rig.shut(&rig.graph).await;
    assert_eq!(handle.retrieve("a").await.expect("is read").source, Source::Backend("vector".into()));
    rig.shut(&rig.vector).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let read = handle.retrieve("a").await.expect("is read");
    let Source::Cache { age } = read.source else { panic!("{read:?}") };
    assert!(read.stale && age >= Duration::from_secs(7) && age < Duration::from_secs(8), "{age:?}");
    let receipt = handle.store(record("a", 2)).await.expect("is queued");
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!((read.source, read.version, read.stale), (Source::Owed, Some(receipt.version), false));
    // What is older than its lifetime is not given at all.
    handle.delete("b").await.expect("is queued");
    rig.recover().await;
    rig.shut(&rig.graph).await;
    rig.shut(&rig.vector).await;
    rig.mode(Mode::QueueWrites).await;
    tokio::time::sleep(Duration::from_secs(301)).await;
    let refusal = refused(handle.retrieve("a").await);
    assert!(matches!(refusal, Refusal::Unavailable { .. }), "{refusal}");
    assert_eq!(handle.retrieve("b").await.expect("a delete is remembered longer").record, None);
}

#[tokio::test(start_paused = true)]
async fn an_update_over_what_nobody_can_tell_is_shown_alone_and_called_partial() {
    let mut rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    // No cache survives a restart.
    rig.restart().await;
    rig.mode(Mode::QueueWrites).await;
    shut(&rig, [false, false]).await;
    rig.handle().update("a", properties("m", 2)).await.expect("is queued");
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert!(read.partial && read.source == Source::Owed, "{read:?}");
    assert_eq!(read.record.expect("is there").properties, properties("m", 2));
    rig.open(&rig.graph).await;
    rig.recover().await;
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert!(!read.partial);
    assert_eq!(read.record.expect("is there").properties, properties("m", 2).with("n", 1));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_behind_does_not_hide_a_write_that_another_has() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    // The graph is read first, and it is the one that misses the write.
    rig.graph.faults.set(Op::Apply, Fault::Down);
    rig.handle().update("a", properties("n", 2)).await.expect("is queued");
    rig.handle().store(record("b", 2)).await.expect("is queued");
    assert_eq!(n(rig.read("a").await.0), Some(2));
    assert_eq!(n(rig.read("b").await.0), Some(2));
    assert_eq!(n(rig.graph.record("a").await), Some(1), "the test is right about where things stand");
}

#[tokio::test(start_paused = true)]
async fn a_slow_read_of_the_old_value_does_not_spoil_the_cache() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    let handle = rig.handle();
    handle.store(record("a", 1)).await.expect("is stored");
    rig.graph.faults.next(Op::Read, 1, Fault::AppliedHung);
    let slow = tokio::spawn({
        let handle = handle.clone();
        async move { handle.retrieve("a").await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    handle.store(record("a", 2)).await.expect("is stored");
    rig.graph.faults.heal(Ops::ALL);
    let _ = slow.await.expect("no panic");
    shut(&rig, [false, false]).await;
    assert_eq!(n(rig.read("a").await.0), Some(2));
}

#[tokio::test(start_paused = true)]
async fn searches_and_walks_show_owed_writes_and_leave_out_owed_deletes() {
    let rig = Rig::start().await;
    let handle = rig.handle();
    for (key, x) in [("a", 1.0), ("b", 0.9), ("c", 0.8)] {
        let record = record(key, 1).with_embedding(vec![x, 1.0 - x]).with_relation("next", "b");
        handle.store(record).await.expect("is stored");
    }
    rig.mode(Mode::QueueWrites).await;
    rig.graph.faults.set(Op::Apply, Fault::Down);
    rig.vector.faults.set(Op::Apply, Fault::Down);
    handle.update("b", properties("n", 2)).await.expect("is queued");
    handle.delete("c").await.expect("is queued");
    let found = handle.search(Search::near(vec![1.0, 0.0])).await.expect("is found");
    let hits: Vec<_> = found.hits.iter().map(|hit| (hit.record.key.as_str(), n(Some(hit.record.clone())))).collect();
    assert_eq!(hits, [("a", Some(1)), ("b", Some(2))]);
    assert!(found.pending > 0 && found.degraded.is_none());
    let found = handle.traverse(Traversal::from("a")).await.expect("is walked");
    assert_eq!(found.hits.iter().map(|hit| n(Some(hit.record.clone()))).collect::<Vec<_>>(), [Some(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_nobody_can_answer_is_refused_and_not_answered_with_nothing() {
    let mut rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.restart().await;
    rig.mode(Mode::QueueWrites).await;
    shut(&rig, [false, false]).await;
    for key in ["a", "never-there"] {
        let refusal = refused(rig.handle().retrieve(key).await);
        assert!(matches!(refusal, Refusal::Unavailable { .. }), "{refusal}");
    }
    let refusal = refused(rig.handle().search(Search::like("a")).await);
    assert!(matches!(refusal, Refusal::CapabilityUnavailable { .. } | Refusal::Unavailable { .. }), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn readers_never_go_back_in_time_while_writers_write_and_stores_come_and_go() {
    for seed in 0..6 {
        let rig = Rig::with(Config::default()).await;
        rig.mode(Mode::QueueWrites).await;
        let handle = rig.handle();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut acknowledged = 0;
        for n in 1..80 {
            match rng.u32(..8) {
                0 => rig.graph.set(Fault::Down),
                1 => rig.vector.set(Fault::Reset),
                2 => {
                    rig.graph.heal();
                    rig.vector.heal();
                }
                3 => tokio::time::sleep(Duration::from_secs(rng.u64(..70))).await,
                _ => {
                    let receipt = handle.store(record("a", n)).await.expect("is accepted");
                    assert!(is_queued(&receipt) || receipt.held == seawall::operation::Held::Committed);
                    acknowledged = n;
                }
            }
            if acknowledged > 0
                && let Ok(read) = handle.retrieve("a").await
            {
                assert!(support::n(read.record) >= Some(acknowledged), "seed {seed}");
            }
        }
        rig.recover().await;
        assert_eq!(n(rig.both("a").await), Some(acknowledged), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_near_what_has_no_place_is_refused_and_not_answered_with_something_else() {
    let rig = Rig::start().await;
    let handle = rig.handle();
    handle.store(Record::new("nowhere").with_relation("knows", "other")).await.expect("is stored");
    handle.store(Record::new("other")).await.expect("is stored");
    for key in ["nowhere", "never written"] {
        let refusal = refused(handle.search(Search::like(key)).await);
        assert!(matches!(refusal, Refusal::Rejected { .. }), "{key}: {refusal}");
    }
    assert!(rig.vector.faults.counts().of(Op::Search).reached > 0);
}
