use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

fn options() -> GuardOptions {
    GuardOptions { lock_patience: Duration::from_millis(20), ..GuardOptions::append_only() }
}

fn row(key: u64, value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.insert(&key.to_be_bytes(), value);
    batch
}

fn count(db: &GuardedDb) -> usize {
    db.iter().collect::<Result<Vec<_>, _>>().unwrap().len()
}

/// Fails one kind of step from its n-th time on.
struct FailFrom(Step, AtomicU32);

impl FaultHook for FailFrom {
    fn before(&self, step: Step) -> io::Result<()> {
        if step != self.0 || self.1.load(Ordering::SeqCst) > 0 && self.1.fetch_sub(1, Ordering::SeqCst) > 1 {
            return Ok(());
        }
        Err(io::Error::other("injected"))
    }
}

#[test]
fn committed_rows_are_there_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/store");
    let db = GuardedDb::open(&path, options()).unwrap();
    db.commit(row(1, b"one")).unwrap();
    db.commit(row(2, b"two")).unwrap();
    drop(db);
    let db = GuardedDb::open(&path, options()).unwrap();
    assert_eq!(db.get(1_u64.to_be_bytes()).unwrap().unwrap(), b"one");
    assert_eq!(db.last().unwrap().unwrap().1, b"two");
    assert_eq!(count(&db), 2);
    assert!(db.size_on_disk() > 0);
}

#[test]
fn a_second_handle_is_refused_as_locked_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    assert!(matches!(GuardedDb::open(dir.path(), options()), Err(OpenError::Locked { .. })));
    db.commit(row(1, b"one")).unwrap();
    drop(db);
    GuardedDb::open(dir.path(), options()).unwrap();
}

#[test]
fn an_open_waits_for_the_holder_to_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    let path = dir.path().to_owned();
    let (started, starts) = std::sync::mpsc::channel();
    let opener = std::thread::spawn(move || {
        started.send(()).unwrap();
        GuardedDb::open(&path, GuardOptions { lock_patience: Duration::from_secs(60), ..options() }).map(drop)
    });
    starts.recv().unwrap();
    drop(db);
    opener.join().unwrap().unwrap();
}

#[test]
fn a_row_that_is_too_large_is_refused_and_poisons_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    let mut batch = row(1, b"small");
    batch.insert(&2_u64.to_be_bytes(), vec![0; MAX_ROW_BYTES]);
    assert_eq!(db.commit(batch), Err(GuardError::RowTooLarge { bytes: MAX_ROW_BYTES + 8 }));
    assert_eq!(count(&db), 0, "nothing of a refused batch is written");
    db.commit(row(1, &[7; MAX_ROW_BYTES - 8])).unwrap();
}

#[test]
fn full_rows_never_make_a_blob_file() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    for commit in 0..20_u64 {
        let mut batch = Batch::new();
        for n in 0..40 {
            batch.insert(&(commit * 40 + n).to_be_bytes(), vec![commit as u8; MAX_ROW_BYTES - 8]);
        }
        db.commit(batch).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
}

#[test]
fn a_blob_file_poisons() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    fs::write(dir.path().join("blobs/1"), b"x").unwrap();
    assert!(matches!(db.commit(row(1, b"one")), Err(GuardError::Failed { .. })));
    assert_eq!(db.commit(row(2, b"two")), Err(GuardError::Poisoned));
}

#[test]
fn a_failed_step_poisons_until_the_reopen() {
    for step in [Step::Apply, Step::Flush, Step::Sync] {
        let dir = tempfile::tempdir().unwrap();
        let fault: Arc<dyn FaultHook> = Arc::new(FailFrom(step, AtomicU32::new(4)));
        let db = GuardedDb::open(dir.path(), GuardOptions { fault: Some(fault), ..options() }).unwrap();
        let mut acknowledged = Vec::new();
        for n in 0..8 {
            match db.commit(row(n, b"x")) {
                Ok(()) => acknowledged.push(n),
                Err(GuardError::Failed { step: failed, .. }) => assert_eq!(failed, step),
                Err(error) => assert_eq!(error, GuardError::Poisoned),
            }
        }
        assert!(db.is_poisoned());
        assert!(acknowledged.len() < 5, "nothing is acknowledged after the failure");
        assert!(db.get(0_u64.to_be_bytes()).unwrap().is_some(), "reads still work");
        drop(db);
        let db = GuardedDb::open(dir.path(), options()).unwrap();
        for n in acknowledged {
            assert!(db.get(n.to_be_bytes()).unwrap().is_some());
        }
        db.commit(row(9, b"again")).unwrap();
    }
}

/// Fails the n-th step of a kind, and no other.
struct FailOnce(Step, AtomicU32);

impl FaultHook for FailOnce {
    fn before(&self, step: Step) -> io::Result<()> {
        let fails = step == self.0 && self.1.fetch_sub(1, Ordering::SeqCst) == 1;
        if fails { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

/// After a sync that failed, the next one may succeed without having written anything.
#[test]
fn a_failed_sync_is_never_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let fault: Arc<dyn FaultHook> = Arc::new(FailOnce(Step::Sync, AtomicU32::new(2)));
    let db = GuardedDb::open(dir.path(), GuardOptions { fault: Some(fault), ..options() }).unwrap();
    assert!(matches!(db.commit(row(1, b"one")), Err(GuardError::Failed { step: Step::Sync, .. })));
    assert_eq!(db.sync(), Err(GuardError::Poisoned));
    assert_eq!(db.commit(row(2, b"two")), Err(GuardError::Poisoned));
}

#[test]
fn a_snapshot_that_was_never_finished_does_not_brick_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    db.commit(row(1, b"one")).unwrap();
    drop(db);
    fs::write(dir.path().join("snap.00000000FFFFFFFF.generating"), b"half a snapsh").unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    assert_eq!(count(&db), 1);
}

#[test]
fn a_torn_snapshot_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    db.commit(row(1, b"one")).unwrap();
    drop(db);
    fs::write(dir.path().join("snap.00000000FFFFFFFF"), b"half a snapsh").unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    assert_eq!(count(&db), 1);
}

#[test]
fn a_file_of_nonsense_is_an_error_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let db = GuardedDb::open(dir.path(), options()).unwrap();
    db.commit(row(1, b"one")).unwrap();
    drop(db);
    fs::write(dir.path().join("conf"), b"nonsense").unwrap();
    match GuardedDb::open(dir.path(), options()) {
        Ok(_) | Err(OpenError::Damaged { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn quarantine_moves_aside_and_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=3 {
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        fs::write(store.join("evidence"), n.to_string()).unwrap();
        assert_eq!(quarantine(&store).unwrap(), dir.path().join(format!("quarantine/store-{n}")));
        assert!(!store.exists());
    }
    assert_eq!(fs::read(dir.path().join("quarantine/store-2/evidence")).unwrap(), b"2");
}
