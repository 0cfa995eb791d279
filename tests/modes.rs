//! Every mode can follow every other while writes are pending, and at quiescence both stores hold what was
//! acknowledged.

mod support;

use std::time::Duration;

use seawall::backends::{Fault, Op, Ops};
use seawall::fallback::Mode;
use seawall::operation::{Held, OperationId, Outcome, Receipt, Version, Write};
use seawall::{Handle, Refusal};
use support::{History, Rig, Site, n, properties, record, until};

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

/// What is pending when a mode gives way to another: a write that was queued before, one that the old mode took, and
/// one that it was just taking.
struct Pending {
    acknowledged: Vec<(&'static str, Receipt)>,
}

impl Pending {
    async fn in_mode(rig: &Rig, from: Mode, to: Mode) -> Self {
        let mut acknowledged = Vec::new();
        rig.handle().store(record("mine", 0)).await.expect("all is well");
        rig.shut(&rig.vector).await;
        rig.mode(Mode::QueueWrites).await;
        acknowledged.push(("owed", rig.handle().store(record("owed", 1)).await.expect("is queued")));
        rig.mode(from).await;
        let mine = rig.handle().store(record("mine", 1)).await;
        assert_honest(from, std::slice::from_ref(&mine));
        acknowledged.extend(mine.map(|receipt| ("mine", receipt)));
        rig.graph.faults.next(Op::Apply, 1, Fault::Slow(Duration::from_secs(2)));
        let handle = rig.handle();
        let slow = tokio::spawn(async move { handle.store(record("slow", 1)).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.mode(to).await;
        acknowledged.extend(slow.await.expect("no panic").map(|receipt| ("slow", receipt)));
        rig.graph.heal();
        Self { acknowledged }
    }

    fn is_volatile(rig: &Rig, operation: OperationId) -> bool {
        matches!(rig.handle().outcome(operation), Outcome::Pending { durable: false, .. })
    }

    /// Only a mode that keeps nothing durably leaves a volatile write as it is.
    async fn assert_promoted(&self, rig: &Rig, to: Mode) {
        for (key, receipt) in &self.acknowledged {
            match receipt.held {
                Held::Volatile { .. } if to == Mode::MemoryOnly => {
                    assert!(Self::is_volatile(rig, receipt.operation), "{key}: {receipt:?}");
                }
                Held::Volatile { .. } => {
                    until("it is written down", || !Self::is_volatile(rig, receipt.operation)).await;
                }
                _ => assert!(!Self::is_volatile(rig, receipt.operation), "{key}: {receipt:?}"),
            }
        }
    }

    async fn assert_read(&self, rig: &Rig) {
        for (key, _) in &self.acknowledged {
            assert_eq!(n(rig.read(key).await.0), Some(1), "a read of {key}");
        }
    }

    async fn assert_held(&self, rig: &Rig) {
        for (key, _) in &self.acknowledged {
            assert_eq!(n(rig.both(key).await), Some(1), "{key}");
        }
    }

    /// What a process that dies now keeps.
    fn after_a_crash(mut self, rig: &Rig) -> Self {
        self.acknowledged.retain(|(_, receipt)| !Self::is_volatile(rig, receipt.operation));
        self
    }
}

/// What a mode does with a write once all stores are back.
async fn assert_takes_writes(rig: &Rig, mode: Mode) {
    let result = rig.handle().store(record("new", 2)).await;
    match (mode, &result) {
        (Mode::ReadOnly, Err(Refusal::ReadOnly { .. })) => {}
        (Mode::LocalStorage, Ok(Receipt { held: Held::Queued { .. }, .. })) => {
            assert_eq!(rig.graph.stored(&"new".into()).await, None, "no store is touched");
            assert_eq!(n(rig.read("new").await.0), Some(2));
        }
        (Mode::Disabled | Mode::MemoryOnly | Mode::QueueWrites, Ok(Receipt { held: Held::Committed, .. })) => {}
        _ => panic!("{mode:?}: {result:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_the_25_changes_keeps_what_both_modes_promise() {
    for from in Mode::ALL {
        for to in Mode::ALL {
            println!("{from:?} to {to:?}");
            let rig = Rig::start().await;
            let pending = Pending::in_mode(&rig, from, to).await;
            pending.assert_promoted(&rig, to).await;
            pending.assert_read(&rig).await;
            if from == Mode::LocalStorage {
                let held = rig.graph.stored(&"mine".into()).await.map_or(Version(0), |held| held.version);
                let mine = pending.acknowledged.iter().find(|(key, _)| *key == "mine").expect("it was taken");
                assert!(to != Mode::LocalStorage || held < mine.1.version, "it was given away");
            }
            rig.open(&rig.vector).await;
            if to == Mode::LocalStorage {
                tokio::time::sleep(Duration::from_secs(600)).await;
                assert_eq!(rig.vector.record("owed").await, None, "nothing is drained in this mode");
                pending.assert_read(&rig).await;
            } else {
                rig.quiet().await;
                pending.assert_held(&rig).await;
            }
            assert_takes_writes(&rig, to).await;
            rig.recover().await;
            pending.assert_held(&rig).await;
            pending.assert_read(&rig).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_the_25_changes_and_then_a_crash_keeps_what_is_durable() {
    for from in Mode::ALL {
        for to in Mode::ALL {
            println!("{from:?} to {to:?}");
            let mut rig = Rig::start().await;
            let pending = Pending::in_mode(&rig, from, to).await;
            pending.assert_promoted(&rig, to).await;
            let pending = pending.after_a_crash(&rig);
            rig.restart().await;
            pending.assert_read(&rig).await;
            rig.recover().await;
            pending.assert_held(&rig).await;
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
                    if let Outcome::Committed(version) = handle.outcome(operation) {
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
