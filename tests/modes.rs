//! Every mode can follow every other while writes are pending, and at quiescence both stores hold what was
//! acknowledged.

mod support;

use std::time::Duration;

use seawall::backends::{Fault, Op, Ops};
use seawall::fallback::Mode;
use seawall::operation::{Held, Receipt, Write};
use seawall::{Handle, Refusal};
use support::{History, Rig, Site, properties, record};

/// Writes of every kind to keys that have a past, and what became of them.
async fn work(handle: &Handle, history: &mut History, round: u64) -> Vec<Result<Receipt, Refusal>> {
    let mut results = Vec::new();
    for write in [
        Write::store(record("put", round)),
        Write::update("merged", properties(&format!("r{round}"), round)),
        Write::update("put", properties("last", round)),
        Write::delete("gone"),
        Write::store_batch([record("x", round), record("y", round)]),
        Write::update("x", properties("last", round)),
        Write::store(record("gone", round)),
        Write::delete("gone"),
        Write::store(record(&format!("only-{round}"), round)),
    ] {
        results.push(history.write(handle, write).await);
    }
    results
}

/// A receipt or refusal says no more than the mode has to give.
fn assert_honest(mode: Mode, results: &[Result<Receipt, Refusal>]) {
    for result in results {
        match (mode, result.as_ref().map(|receipt| &receipt.held)) {
            (_, Ok(Held::Committed)) => assert_ne!(mode, Mode::LocalStorage, "no store is touched in this mode"),
            (Mode::MemoryOnly, Ok(Held::Volatile { owing })) => assert!(!owing.is_empty()),
            // Without a fallback a write may still queue behind what its key owes already.
            (Mode::Disabled | Mode::LocalStorage | Mode::QueueWrites, Ok(Held::Queued { owing })) => {
                assert!(!owing.is_empty());
            }
            (Mode::ReadOnly, Err(Refusal::ReadOnly { .. })) => {}
            (Mode::Disabled, Err(Refusal::Unavailable { .. } | Refusal::RolledBack { .. })) => {}
            (mode, other) => panic!("{mode:?}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn from_every_mode_to_every_mode_with_writes_pending() {
    for from in Mode::ALL {
        for to in Mode::ALL {
            let rig = Rig::start().await;
            let (handle, mut history) = (rig.handle(), History::default());
            work(&handle, &mut history, 0).await;
            rig.mode(from).await;
            rig.shut(&rig.vector).await;
            assert_honest(from, &work(&handle, &mut history, 1).await);
            rig.mode(to).await;
            history.assert_read(&rig).await;
            assert_honest(to, &work(&handle, &mut history, 2).await);
            rig.open(&rig.vector).await;
            assert_honest(to, &work(&handle, &mut history, 3).await);
            history.assert_read(&rig).await;
            rig.recover().await;
            work(&handle, &mut history, 4).await;
            rig.quiet().await;
            history.assert_held(&rig).await;
            history.assert_read(&rig).await;
            assert_eq!(handle.status().owed, 0, "{from:?} to {to:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn from_every_mode_to_every_mode_over_a_restart() {
    for from in Mode::ALL {
        for to in Mode::ALL {
            let mut rig = Rig::start().await;
            let mut history = History::default();
            work(&rig.handle(), &mut history, 0).await;
            rig.mode(from).await;
            rig.shut(&rig.graph).await;
            let results = work(&rig.handle(), &mut history, 1).await;
            assert_honest(from, &results);
            if from == Mode::MemoryOnly {
                // What is volatile is lost with the process; it is written down by a mode that keeps things.
                rig.mode(Mode::QueueWrites).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            rig.restart().await;
            rig.mode(to).await;
            history.assert_read(&rig).await;
            assert_honest(to, &work(&rig.handle(), &mut history, 2).await);
            rig.recover().await;
            history.assert_held(&rig).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn modes_that_change_in_the_middle_of_everything_leave_the_stores_equal() {
    for seed in 0..10 {
        let rig = Rig::start().await;
        let mut rng = fastrand::Rng::with_seed(seed);
        let (handle, mut history) = (rig.handle(), History::default());
        let mut writers = tokio::task::JoinSet::new();
        for round in 0..60 {
            rig.mode(Mode::ALL[rng.usize(..5)]).await;
            let site = if rng.bool() { &rig.graph } else { &rig.vector };
            match rng.u32(..6) {
                0 => site.set(Fault::Down),
                1 => site.faults.next(Op::Apply, 2, Fault::AppliedReplyLost),
                2 => site.faults.next(Op::Apply, 2, Fault::LateZombie(Duration::from_secs(rng.u64(1..100)))),
                3 => site.faults.next(Op::Apply, 2, Fault::Slow(Duration::from_millis(300))),
                _ => [&rig.graph, &rig.vector].into_iter().for_each(Site::heal),
            }
            for _ in 0..4 {
                let key = format!("k{}", rng.u32(..4));
                let write = match rng.u32(..5) {
                    0 => Write::delete(key.as_str()),
                    1 | 2 => Write::update(key.as_str(), properties(&format!("p{round}"), rng.u64(..))),
                    3 => Write::store_batch([record(&key, round), record("both", round)]),
                    _ => Write::store(record(&key, round)),
                };
                let (handle, changes) = (handle.clone(), write.changes.clone());
                writers.spawn(async move { (handle.write(write).await, changes) });
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(..500))).await;
        }
        for site in [&rig.graph, &rig.vector] {
            site.faults.heal(Ops::ALL);
        }
        while let Some(written) = writers.join_next().await {
            match written.expect("no panic") {
                (Ok(receipt), changes) => history.acknowledge(&receipt, changes),
                (Err(Refusal::Unknown { operation }), changes) => {
                    // Undecided at its deadline; the outcome tells.
                    rig.quiet().await;
                    if let seawall::operation::Outcome::Committed(version) = handle.outcome(operation) {
                        history.acknowledge(&Receipt { operation, version, held: Held::Committed }, changes);
                    }
                }
                (Err(_), _) => {}
            }
        }
        rig.recover().await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(history.len() > 50, "seed {seed} acknowledged {}", history.len());
        history.assert_held(&rig).await;
        assert_eq!(handle.dead_letters(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mode_with_an_end_ends_by_itself_and_what_it_kept_is_given_to_the_stores() {
    let rig = Rig::start().await;
    let (handle, mut history) = (rig.handle(), History::default());
    let until = Some(Duration::from_secs(60));
    rig.runtime().control().set_mode(Mode::LocalStorage, "a batch import", until).await.expect("is set");
    work(&handle, &mut history, 1).await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!((handle.status().mode, rig.graph.record("put").await), (Mode::LocalStorage, None));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(handle.status().mode, Mode::Disabled);
    rig.quiet().await;
    history.assert_held(&rig).await;
}
