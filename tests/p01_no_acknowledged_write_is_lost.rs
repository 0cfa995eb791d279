//! P1: an acknowledged write is never lost, and its receipt says how it is held.

mod support;

use std::sync::Arc;
use std::time::Duration;

use seawall::backends::{
    Fault, Faults, FaultyBackend, GraphBackend, GraphConfig, Op, Ops, VectorBackend, VectorConfig,
};
use seawall::config::Config;
use seawall::fallback::{JournalFallback, Mode};
use seawall::ledger::{Journal as _, JournalError, MemoryJournal};
use seawall::operation::{Held, Outcome, Version, Write};
use seawall::{Refusal, Runtime};
use support::{History, PATIENCE, Rig, Site, hasty, is_pending, n, properties, record, refused, until};

fn owing(site: &Site) -> Vec<seawall::backend::BackendName> {
    vec![site.name.into()]
}

#[tokio::test(start_paused = true)]
async fn committed_means_that_every_required_backend_has_it_now() {
    let rig = Rig::start().await;
    for mode in [Mode::Disabled, Mode::MemoryOnly, Mode::QueueWrites] {
        rig.mode(mode).await;
        let receipt = rig.handle().store(record("a", mode as u64)).await.expect("is stored");
        assert_eq!(receipt.held, Held::Committed, "{mode:?}");
        assert_eq!(n(rig.both("a").await), Some(mode as u64));
        assert_eq!(rig.handle().outcome(receipt.operation), Outcome::Committed(receipt.version));
    }
}

#[tokio::test(start_paused = true)]
async fn queued_names_who_owes_it_and_is_in_the_journal_already() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    let receipt = rig.handle().store(record("a", 1)).await.expect("is queued");
    assert_eq!(receipt.held, Held::Queued { owing: owing(&rig.vector) });
    rig.restart().await;
    assert!(is_pending(&rig.handle().outcome(receipt.operation)) || rig.handle().status().owed == 0);
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(1));
    assert_eq!(rig.handle().outcome(receipt.operation), Outcome::Committed(receipt.version));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_as_queued_before_its_sync_has_returned() {
    for mode in [Mode::QueueWrites, Mode::LocalStorage] {
        let mut rig = Rig::in_mode(mode).await;
        rig.shut(&rig.vector).await;
        rig.disk.hold();
        let write = hasty(record("a", 1));
        let operation = write.operation;
        let refusal = refused(rig.handle().write(write).await);
        assert!(matches!(refusal, Refusal::Unknown { operation: asked } if asked == operation), "{mode:?}: {refusal}");
        rig.restart().await;
        assert_eq!(rig.handle().outcome(operation), Outcome::NotFound, "it was never synced");
        rig.recover().await;
        assert_eq!(rig.both("a").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sync_that_fails_is_no_receipt() {
    for mode in [Mode::QueueWrites, Mode::LocalStorage] {
        let rig = Rig::in_mode(mode).await;
        rig.shut(&rig.vector).await;
        rig.disk.fail(true);
        let refusal = refused(rig.handle().store(record("a", 1)).await);
        assert!(matches!(refusal, Refusal::Unknown { .. }), "{mode:?}: {refusal}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        // By now the runtime knows that it cannot promise anything, and says so.
        let refusal = refused(rig.handle().store(record("a", 2)).await);
        assert!(matches!(refusal, Refusal::ReadOnly { .. }), "{mode:?}: {refusal}");
        rig.disk.fail(false);
        until("the mode comes back", || rig.handle().status().mode == mode).await;
        rig.handle().store(record("a", 3)).await.expect("is queued");
    }
}

#[tokio::test(start_paused = true)]
async fn volatile_is_said_in_memory_only_and_nowhere_else() {
    for mode in Mode::ALL {
        let rig = Rig::in_mode(mode).await;
        rig.shut(&rig.vector).await;
        let result = rig.handle().store(record("a", 1)).await;
        match (mode, result) {
            (Mode::MemoryOnly, Ok(receipt)) => assert_eq!(receipt.held, Held::Volatile { owing: owing(&rig.vector) }),
            (Mode::QueueWrites, Ok(receipt)) => assert_eq!(receipt.held, Held::Queued { owing: owing(&rig.vector) }),
            (Mode::LocalStorage, Ok(receipt)) => {
                assert_eq!(receipt.held, Held::Queued { owing: vec!["graph".into(), "vector".into()] });
            }
            (Mode::Disabled, Err(Refusal::Unavailable { .. })) | (Mode::ReadOnly, Err(Refusal::ReadOnly { .. })) => {}
            (mode, other) => panic!("{mode:?}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volatile_write_reaches_the_stores_while_the_process_lives_and_is_gone_with_it() {
    let mut rig = Rig::in_mode(Mode::MemoryOnly).await;
    rig.shut(&rig.vector).await;
    rig.shut(&rig.graph).await;
    rig.handle().store(record("kept", 1)).await.expect("is held");
    rig.recover().await;
    assert_eq!(n(rig.both("kept").await), Some(1));

    rig.mode(Mode::MemoryOnly).await;
    rig.shut(&rig.vector).await;
    rig.shut(&rig.graph).await;
    let receipt = rig.handle().store(record("lost", 1)).await.expect("is held");
    let outcome = rig.handle().outcome(receipt.operation);
    assert!(matches!(outcome, Outcome::Pending { durable: false, .. }), "{outcome:?}");
    rig.restart().await;
    rig.recover().await;
    assert_eq!(rig.handle().outcome(receipt.operation), Outcome::NotFound);
    assert_eq!(rig.both("lost").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_volatile_write_is_made_durable_as_soon_as_the_mode_allows_it() {
    let mut rig = Rig::in_mode(Mode::MemoryOnly).await;
    rig.shut(&rig.vector).await;
    let receipt = rig.handle().store(record("a", 1)).await.expect("is held");
    rig.mode(Mode::QueueWrites).await;
    let durable = || matches!(rig.handle().outcome(receipt.operation), Outcome::Pending { durable: true, .. });
    until("it is written down", durable).await;
    rig.restart().await;
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn unknown_at_the_deadline_is_resolved_by_the_outcome() {
    // In a mode that rolls back nobody may say "queued" while the roll-back is still possible.
    let rig = Rig::start().await;
    rig.vector.faults.next(Op::Apply, 1, Fault::Slow(Duration::from_secs(5)));
    let write = hasty(record("a", 1));
    let operation = write.operation;
    let refusal = refused(rig.handle().write(write).await);
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal}");
    assert!(is_pending(&rig.handle().outcome(operation)));
    rig.quiet().await;
    assert!(matches!(rig.handle().outcome(operation), Outcome::Committed(_)));
    assert_eq!(n(rig.both("a").await), Some(1));

    rig.vector.faults.next(Op::Apply, 4, Fault::Slow(Duration::from_secs(11)));
    let write = hasty(record("a", 2));
    let operation = write.operation;
    let refusal = refused(rig.handle().write(write).await);
    assert!(matches!(refusal, Refusal::Unknown { .. }), "{refusal}");
    rig.quiet().await;
    let outcome = rig.handle().outcome(operation);
    let expected = match outcome {
        Outcome::Committed(_) => 2,
        Outcome::RolledBack(_) => 1,
        other => panic!("unresolved: {other:?}"),
    };
    assert_eq!(n(rig.both("a").await), Some(expected));
}

#[tokio::test(start_paused = true)]
async fn a_slow_write_that_is_durable_is_acknowledged_as_queued_at_its_deadline() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.set(Fault::Hung);
    let receipt = rig.handle().write(hasty(record("a", 1))).await;
    // Nothing is written down while the pre-image is read: then the deadline finds nothing done.
    assert!(matches!(receipt, Err(Refusal::DeadlineExceeded)), "{receipt:?}");
    assert_eq!(rig.handle().status().owed, 0);
    rig.vector.heal();
    rig.vector.faults.set(Op::Apply, Fault::Hung);
    let receipt = rig.handle().write(hasty(record("a", 2))).await.expect("is queued");
    let Held::Queued { owing } = receipt.held else { panic!("{receipt:?}") };
    assert!(owing.contains(&"vector".into()));
    rig.recover().await;
    assert_eq!(n(rig.both("a").await), Some(2));
}

#[tokio::test(start_paused = true)]
async fn read_only_refuses_every_write_and_touches_nothing() {
    let rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.mode(Mode::ReadOnly).await;
    let before = rig.graph.faults.counts().of(Op::Apply);
    for write in [Write::store(record("a", 2)), Write::update("a", properties("n", 2)), Write::delete("a")] {
        let refusal = refused(rig.handle().write(write).await);
        let Refusal::ReadOnly { reason } = refusal else { panic!("{refusal}") };
        assert!(reason.contains("a test"), "{reason}");
    }
    assert_eq!(rig.graph.faults.counts().of(Op::Apply), before);
    assert_eq!(n(rig.both("a").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_failing_journal_lowers_the_mode_as_configured_and_no_receipt_hides_it() {
    let mut config = Config::default();
    config.fallback.journal_unavailable = JournalFallback::MemoryOnly;
    let rig = Rig::with(config).await;
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    rig.disk.fail(true);
    until("the mode gives way", || rig.handle().status().mode == Mode::MemoryOnly).await;
    assert!(!rig.handle().status().journal_healthy);
    let receipt = rig.handle().store(record("a", 1)).await.expect("is held");
    assert!(matches!(receipt.held, Held::Volatile { .. }), "{receipt:?}");
    rig.disk.fail(false);
    let durable = || matches!(rig.handle().outcome(receipt.operation), Outcome::Pending { durable: true, .. });
    until("it is written down when the journal is back", durable).await;
}

#[tokio::test(start_paused = true)]
async fn every_receipt_of_a_crash_in_the_middle_of_everything_is_kept() {
    for seed in 0..8 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut rig = Rig::in_mode(Mode::QueueWrites).await;
        let mut history = History::default();
        for n in 0..60 {
            match rng.u32(..12) {
                0 => rig.vector.set(Fault::Down),
                1 => rig.graph.set(Fault::AppliedReplyLost),
                2 => [&rig.graph, &rig.vector].into_iter().for_each(Site::heal),
                3 => {
                    rig.restart().await;
                    rig.mode(Mode::QueueWrites).await;
                }
                _ => {
                    let key = format!("k{}", rng.u32(..5));
                    let write = match rng.u32(..4) {
                        0 => Write::delete(key.as_str()),
                        1 => Write::update(key.as_str(), properties(&format!("p{n}"), n)),
                        _ => Write::store(record(&key, n)),
                    };
                    // No deadline passes here, so every write is acknowledged or refused for certain.
                    let _ = history.write(&rig.handle(), write).await;
                }
            }
            history.assert_read(&rig).await;
        }
        assert!(history.len() > 20, "seed {seed} acknowledged {}", history.len());
        rig.recover().await;
        history.assert_held(&rig).await;
    }
}

/// The same with the journal that the crate gives to everybody for tests.
#[tokio::test(start_paused = true)]
async fn owed_work_is_found_in_the_records_of_a_recording_memory_journal() {
    let (graph, vector) = (Site::graph(), Site::vector());
    let journal = Arc::new(MemoryJournal::recording());
    let dir = tempfile::tempdir().expect("a directory");
    let start = async |journal: &Arc<MemoryJournal>, found| {
        let builder = Runtime::builder()
            .data_dir(dir.path().join("unused"))
            .shared_backend(Arc::clone(&graph.backend) as _)
            .shared_backend(Arc::clone(&vector.backend) as _);
        builder.journal(Arc::clone(journal) as _, found).start().await.expect("starts")
    };
    let runtime = start(&journal, Vec::new()).await;
    runtime.control().set_mode(Mode::LocalStorage, "a test", None).await.expect("is set");
    for n in 0..10 {
        runtime.handle().store(record(&format!("k{n}"), n)).await.expect("is queued");
    }
    runtime.handle().delete("k3").await.expect("is queued");
    assert_eq!(vector.record("k1").await, None);
    drop(runtime);

    let runtime = start(&Arc::new(MemoryJournal::recording()), journal.records()).await;
    until("all is drained", || runtime.handle().status().owed == 0).await;
    for k in 0..10 {
        let expected = (k != 3).then_some(k);
        assert_eq!(n(graph.record(format!("k{k}")).await), expected);
        assert_eq!(n(vector.record(format!("k{k}")).await), expected);
    }
    assert!(!dir.path().join("unused").exists(), "nothing is kept on disk beside a journal that was given");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_says_that_the_journal_is_closed_has_closed_it() {
    let journal = Arc::new(MemoryJournal::recording());
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Runtime::builder()
        .data_dir(dir.path().join("unused"))
        .shared_backend(Site::graph().backend as _)
        .journal(Arc::clone(&journal) as _, Vec::new());
    let runtime = builder.start().await.expect("starts");
    runtime.handle().store(record("a", 1)).await.expect("is stored");
    assert!(runtime.shutdown().await.journal_closed);
    let late = journal.append(Vec::new()).await.expect("it answers");
    assert_eq!(late, Err(JournalError::Closed));
}

/// And on a real disk, with real stores on it, in real time.
#[tokio::test(flavor = "multi_thread")]
async fn owed_work_is_found_on_disk_by_the_next_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let faults = Faults::new();
    let start = async || {
        let graph = GraphBackend::open(dir.path().join("graph"), GraphConfig::default()).await.expect("opens");
        let vector = VectorBackend::open(dir.path().join("vector"), VectorConfig::default()).await.expect("opens");
        let (graph, vector) = (Arc::new(graph), Arc::new(vector));
        let runtime = Runtime::builder()
            .data_dir(dir.path().join("seawall"))
            .shared_backend(Arc::clone(&graph) as _)
            .backend(FaultyBackend::around(Arc::clone(&vector), &faults))
            .start()
            .await
            .expect("starts");
        (runtime, graph, vector)
    };
    let (runtime, graph, vector) = start().await;
    runtime.control().set_mode(Mode::QueueWrites, "a test", None).await.expect("is set");
    faults.set(Ops::ALL, Fault::Down);
    for k in 0..20 {
        let receipt = runtime.handle().store(record(&format!("k{k}"), k)).await.expect("is queued");
        assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
    }
    let report = runtime.shutdown().await;
    assert_eq!((report.owed, report.journal_closed), (20, true), "{report:?}");
    graph.close().await.expect("closes");
    vector.close().await.expect("closes");
    drop((graph, vector));

    faults.heal(Ops::ALL);
    let (runtime, graph, vector) = start().await;
    runtime.control().breaker("vector").expect("is there").reset();
    let drained = async {
        while runtime.handle().status().owed > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, drained).await.expect("all is drained");
    use seawall::backend::Backend;
    for k in 0..20 {
        let key = [format!("k{k}").into()];
        for stored in [graph.read(&key).await, vector.read(&key).await] {
            let stored = stored.expect("is read").pop().flatten().expect("is there");
            assert!(stored.version > Version(0));
            assert_eq!(n(stored.record), Some(k));
        }
    }
    runtime.shutdown().await;
}
