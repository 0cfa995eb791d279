use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use proptest::prelude::*;
use seawall_actors::backend::{Backend, ErrorKind, Fence, FencedWrite, Health, Stored};
use seawall_actors::operation::{Change, OperationId, Version};
use seawall_actors::record::{Key, Properties, Record};

use crate::backends::{GraphBackend, GraphConfig, Metric, StoreOpenError, VectorBackend, VectorConfig};
use crate::guard::{Batch, FaultHook, GuardOptions, GuardedDb, Step};

fn write(version: u64, fence: Fence, changes: impl Into<Arc<[Change]>>) -> FencedWrite {
    FencedWrite { operation: OperationId::generate(), version: Version(version), fence, changes: changes.into() }
}

fn put(version: u64, record: Record) -> FencedWrite {
    write(version, Fence::Write, [Change::put(record)])
}

fn delete(version: u64, key: &str) -> FencedWrite {
    write(version, Fence::Write, [Change::Delete { key: key.into() }])
}

async fn get(store: &dyn Backend, key: &str) -> Option<Stored> {
    store.read(&[key.into()]).await.expect("reads do not fail").remove(0)
}

fn graph(dir: &Path) -> GraphBackend {
    GraphBackend::open_blocking(dir, GraphConfig::default()).expect("opens")
}

/// What the documentation of a fence says, word for word.
#[derive(Default)]
struct Model(BTreeMap<Key, Stored>);

impl Model {
    fn apply(&mut self, write: &FencedWrite) -> Option<Version> {
        let mut in_the_way = None;
        for change in write.changes.iter() {
            let held = self.0.get(change.key()).cloned();
            let version = held.as_ref().map_or(Version(0), |held| held.version);
            let allowed = match write.fence {
                Fence::Write => version < write.version,
                Fence::Compensation => version <= write.version,
            };
            if allowed {
                let record = change.apply_to(held.and_then(|held| held.record));
                self.0.insert(change.key().clone(), Stored { version: write.version, record });
            } else {
                in_the_way = in_the_way.max(Some(version));
            }
        }
        in_the_way
    }
}

#[derive(Clone, Debug)]
enum Act {
    Write(FencedWrite),
    Again,
    Sweep(u64),
    Probe,
    Reopen,
}

const KEYS: [&str; 5] = ["a", "b", "c/ä", "d", "e"];

fn any_change(key: usize) -> impl Strategy<Value = Change> {
    let key = KEYS[key];
    prop_oneof![
        4 => (0..100_i64, any::<f64>(), 0..3_usize, prop_oneof![9 => 0..20_usize, 1 => 5_000..20_000_usize]).prop_map(
            move |(x, y, to, long)| {
                let record = Record::new(key).with("x", x).with("y", y).with("text", "ü".repeat(long));
                Change::put(record.with_relation("to", KEYS[to]).with_embedding([x as f32, 1.0, 2.0]))
            }
        ),
        2 => any::<u64>().prop_map(move |x| Change::Merge {
            key: key.into(),
            properties: Properties::new().with("m", x).with("x", serde_json::Value::Null),
        }),
        2 => Just(Change::Delete { key: key.into() }),
    ]
}

fn any_act() -> impl Strategy<Value = Act> {
    let fence = prop_oneof![3 => Just(Fence::Write), 1 => Just(Fence::Compensation)];
    let changes = proptest::sample::subsequence((0..KEYS.len()).collect::<Vec<_>>(), 1..4)
        .prop_flat_map(|keys| keys.into_iter().map(any_change).collect::<Vec<_>>());
    prop_oneof![
        12 => (1..30_u64, fence, changes).prop_map(|(version, fence, changes)| Act::Write(write(version, fence, changes))),
        2 => Just(Act::Again),
        1 => (1..30_u64).prop_map(Act::Sweep),
        1 => Just(Act::Probe),
        1 => Just(Act::Reopen),
    ]
}

/// What the test needs of both stores.
#[async_trait::async_trait]
trait Store: Backend + Sized {
    fn open_at(dir: Option<&Path>) -> Self;
    async fn forget(&self, older_than: Version) -> usize;
    async fn shut(&self);
}

#[async_trait::async_trait]
impl Store for GraphBackend {
    fn open_at(dir: Option<&Path>) -> Self {
        dir.map_or_else(|| Self::in_memory(GraphConfig::default()), graph)
    }
    async fn forget(&self, older_than: Version) -> usize {
        self.sweep(older_than, usize::MAX).await.expect("sweeps")
    }
    async fn shut(&self) {
        self.close().await.expect("closes");
    }
}

#[async_trait::async_trait]
impl Store for VectorBackend {
    fn open_at(dir: Option<&Path>) -> Self {
        let config = VectorConfig { metric: Metric::Euclidean, ..VectorConfig::default() };
        dir.map_or_else(
            || Self::in_memory(config.clone()),
            |dir| Self::open_blocking(dir, config.clone()).expect("opens"),
        )
    }
    async fn forget(&self, older_than: Version) -> usize {
        self.sweep(older_than, usize::MAX).await.expect("sweeps")
    }
    async fn shut(&self) {
        self.close().await.expect("closes");
    }
}

async fn agrees_with_the_model<S: Store>(acts: Vec<Act>, dir: Option<&Path>) {
    let mut model = Model::default();
    let mut newest = Version(0);
    let mut store = S::open_at(dir);
    let mut last = None;
    for act in acts {
        let act = if let Act::Again = act { last.clone().map_or(Act::Probe, Act::Write) } else { act };
        match act {
            Act::Write(write) => {
                let applied = store.apply(&write).await.expect("applies");
                assert_eq!(applied.superseded_by, model.apply(&write));
                last = Some(write);
            }
            Act::Sweep(older_than) => {
                let before = model.0.len();
                model.0.retain(|_, held| held.record.is_some() || held.version >= Version(older_than));
                assert_eq!(store.forget(Version(older_than)).await, before - model.0.len());
            }
            Act::Probe | Act::Again => assert_eq!(store.probe().await.expect("probes"), Health::Healthy),
            Act::Reopen if dir.is_some() => {
                store.shut().await;
                store = S::open_at(dir);
            }
            Act::Reopen => {}
        }
        let keys = KEYS.map(Key::from);
        let held = store.read(&keys).await.expect("reads");
        let expected: Vec<_> = keys.iter().map(|key| model.0.get(key).cloned()).collect();
        assert_eq!(held, expected);
        newest = model.0.values().map(|held| held.version).fold(newest, Version::max);
        assert_eq!(store.newest_version().await.expect("tells"), newest);
        let found = store.find(&Properties::new(), 100).await.expect("finds");
        let live = model.0.values().filter_map(|held| held.record.clone());
        assert!(found.into_iter().map(|hit| hit.record).eq(live));
    }
    store.shut().await;
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn stores_in_memory_do_what_the_model_does(acts in proptest::collection::vec(any_act(), 1..60)) {
        block_on(async {
            agrees_with_the_model::<GraphBackend>(acts.clone(), None).await;
            agrees_with_the_model::<VectorBackend>(acts, None).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn stores_on_disk_do_what_the_model_does_over_reopenings(acts in proptest::collection::vec(any_act(), 8..24)) {
        let dir = tempfile::tempdir().expect("a directory");
        block_on(async {
            agrees_with_the_model::<GraphBackend>(acts.clone(), Some(&dir.path().join("graph"))).await;
            agrees_with_the_model::<VectorBackend>(acts, Some(&dir.path().join("vector"))).await;
        });
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_replay_never_undoes_a_delete() {
    let store = GraphBackend::in_memory(GraphConfig::default());
    store.apply(&put(1, Record::new("k"))).await.expect("applies");
    store.apply(&delete(3, "k")).await.expect("applies");
    for version in [1, 2, 3] {
        let replay = store.apply(&put(version, Record::new("k"))).await.expect("applies");
        assert_eq!(replay.superseded_by, Some(Version(3)));
    }
    assert_eq!(get(&store, "k").await, Some(Stored { version: Version(3), record: None }));
}

#[tokio::test(start_paused = true)]
async fn a_compensation_that_comes_first_keeps_its_write_from_landing_later() {
    let store = VectorBackend::in_memory(VectorConfig::default());
    store.apply(&put(1, Record::new("k").with("x", 1))).await.expect("applies");
    let undo = write(2, Fence::Compensation, [Change::put(Record::new("k").with("x", 1))]);
    store.apply(&undo).await.expect("applies");
    let late = store.apply(&put(2, Record::new("k").with("x", 2))).await.expect("applies");
    assert_eq!(late.superseded_by, Some(Version(2)));
    store.apply(&undo).await.expect("applies");
    let held = get(&store, "k").await.expect("held");
    assert_eq!((held.version, held.record), (Version(2), Some(Record::new("k").with("x", 1))));
    let never = write(5, Fence::Compensation, [Change::Delete { key: "new".into() }]);
    store.apply(&never).await.expect("applies");
    store.apply(&put(5, Record::new("new"))).await.expect("applies");
    assert_eq!(get(&store, "new").await, Some(Stored { version: Version(5), record: None }));
}

#[tokio::test(start_paused = true)]
async fn a_batch_with_one_bad_change_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let on_disk = VectorBackend::open_blocking(dir.path(), VectorConfig::default()).expect("opens");
    for store in [VectorBackend::in_memory(VectorConfig::default()), on_disk] {
        let records = [Record::new("a").with_embedding([1.0, 2.0]), Record::new("b").with_embedding([1.0])];
        let batch = write(1, Fence::Write, records.map(Change::put));
        let error = store.apply(&batch).await.expect_err("the dimensions differ");
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Permanent, Some("wrong_dimension")));
        assert_eq!(get(&store, "a").await, None);
        store.apply(&put(2, Record::new("b").with_embedding([1.0]))).await.expect("nothing settled the dimension");
    }
}

#[tokio::test]
async fn a_property_that_could_not_be_read_again_is_refused() {
    let store = GraphBackend::in_memory(GraphConfig::default());
    let nested = |depth| (0..depth).fold(serde_json::Value::Null, |value, _| serde_json::Value::Array(vec![value]));
    let error = store.apply(&put(1, Record::new("k").with("x", nested(129)))).await.expect_err("too deep");
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Permanent, Some("too_deep")));
    let dir = tempfile::tempdir().expect("a directory");
    let store = graph(dir.path());
    store.apply(&put(1, Record::new("k").with("x", nested(128)))).await.expect("applies");
    store.close().await.expect("closes");
    assert_eq!(get(&graph(dir.path()), "k").await.expect("held").version, Version(1));
}

#[tokio::test]
async fn records_larger_than_a_row_survive_and_leave_no_blob() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = graph(dir.path());
    let sized = |bytes: usize| Record::new("k".repeat(600)).with("text", "x".repeat(bytes));
    for (version, bytes) in (1..).zip([3_000, 4_060, 4_100, 5_000, 300_000, 9_000, 10]) {
        store.apply(&put(version, sized(bytes))).await.expect("applies");
    }
    store.apply(&put(9, Record::new("large").with("text", "y".repeat(300_000)))).await.expect("applies");
    store.close().await.expect("closes");
    let store = graph(dir.path());
    let held = store.read(&["k".repeat(600).into(), "large".into()]).await.expect("reads");
    assert_eq!(held[0].as_ref().expect("held").record, Some(sized(10)));
    assert_eq!(held[1].as_ref().expect("held").record.as_ref().expect("a record").weight(), 5 + 4 + 300_001);
    assert_eq!(std::fs::read_dir(dir.path().join("rows/blobs")).expect("exists").count(), 0);
}

#[tokio::test]
async fn writes_that_come_together_are_all_there_after_a_reopen() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(graph(dir.path()));
    let writes = (1..=200_u64).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.apply(&put(n, Record::new(format!("k{}", n % 50)).with("n", n))).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.expect("no panic").expect("applies");
    }
    store.close().await.expect("closes");
    let store = graph(dir.path());
    for n in 151..=200_u64 {
        let held = get(&store, &format!("k{}", n % 50)).await.expect("held");
        assert_eq!((held.version, held.record.expect("a record").properties.get("n")), (Version(n), Some(&n.into())));
    }
}

#[tokio::test]
async fn a_write_whose_caller_went_away_is_done_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = graph(dir.path());
    let write = put(1, Record::new("k"));
    {
        let mut call = std::pin::pin!(store.apply(&write));
        assert!(futures::poll!(&mut call).is_pending());
    }
    store.close().await.expect("closes");
    assert_eq!(get(&graph(dir.path()), "k").await.expect("held").version, Version(1));
}

#[tokio::test]
async fn a_directory_in_use_is_told_by_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = graph(dir.path());
    let options = GuardOptions { lock_patience: std::time::Duration::ZERO, ..GuardOptions::rewriting() };
    let second = GraphBackend::open_with(dir.path().to_owned(), GraphConfig::default(), options);
    assert!(matches!(second, Err(StoreOpenError::Locked { dir: named }) if named == dir.path()));
    store.close().await.expect("closes");
    let error = VectorBackend::open(dir.path(), VectorConfig::default()).await.expect_err("holds a graph");
    assert!(matches!(error, StoreOpenError::OtherStore { .. }), "{error}");
    let closed = store.apply(&put(1, Record::new("k"))).await.expect_err("closed");
    assert_eq!((closed.kind, closed.code.as_deref()), (ErrorKind::Transient, Some("closed")));
}

#[tokio::test]
async fn rows_that_went_missing_are_found_at_the_next_open() {
    type Row = Vec<u8>;
    type Lose = fn(&[Row]) -> Vec<Row>;
    let lose: [Lose; 7] = [
        // A record whole, and all of them: only the ledger knows.
        |records| records[2..4].to_vec(),
        |records| records.to_vec(),
        |records| vec![records[0].clone()],
        |records| vec![records[1].clone()],
        |records| records[records.len() - 1..].to_vec(),
        |_| vec![b"l".to_vec()],
        |records| [records, &[b"l".to_vec()]].concat(),
    ];
    for lose in lose {
        let dir = tempfile::tempdir().expect("a directory");
        let store = graph(dir.path());
        for n in 1..=3 {
            store.apply(&put(n, Record::new(format!("k{n}")).with("x", "x".repeat(6_000)))).await.expect("applies");
        }
        store.close().await.expect("closes");
        let db = GuardedDb::open(&dir.path().join("rows"), GuardOptions::rewriting()).expect("opens");
        let records: Vec<_> = db.scan_prefix(b"r").map(|row| row.expect("reads").0.to_vec()).collect();
        assert_eq!(records.len(), 6);
        let mut batch = Batch::new();
        lose(&records).into_iter().for_each(|key| batch.remove(key));
        db.commit(batch).expect("commits");
        drop(db);
        let error = GraphBackend::open_blocking(dir.path(), GraphConfig::default()).expect_err("rows are missing");
        assert!(matches!(&error, StoreOpenError::Damaged { dir: named, .. } if named == dir.path()), "{error}");
    }
}

/// A disk whose writes fail while it is told so.
#[derive(Default)]
struct Disk {
    full: AtomicBool,
    gone: AtomicBool,
}

impl FaultHook for Disk {
    fn before(&self, step: Step) -> io::Result<()> {
        match step {
            Step::Sync if self.full.load(Ordering::SeqCst) => Err(io::ErrorKind::StorageFull.into()),
            Step::Open if self.gone.load(Ordering::SeqCst) => Err(io::Error::other("gone")),
            _ => Ok(()),
        }
    }
}

fn graph_on(disk: &Arc<Disk>, dir: &Path) -> GraphBackend {
    let options = GuardOptions { fault: Some(Arc::clone(disk) as _), ..GuardOptions::rewriting() };
    GraphBackend::open_with(dir.to_owned(), GraphConfig::default(), options).expect("opens")
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_leaves_reads_and_says_read_only_until_there_is_room() {
    let (dir, disk) = (tempfile::tempdir().expect("a directory"), Arc::new(Disk::default()));
    let store = graph_on(&disk, dir.path());
    store.apply(&put(1, Record::new("k"))).await.expect("applies");
    disk.full.store(true, Ordering::SeqCst);
    let error = store.apply(&put(2, Record::new("k"))).await.expect_err("the commit fails");
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Unknown, Some("commit_failed")));
    let error = store.apply(&put(3, Record::new("other"))).await.expect_err("it is left alone for a while");
    assert!(error.kind == ErrorKind::Transient && error.retry_after.is_some(), "{error}");
    assert_eq!(store.probe().await.expect("is read"), Health::ReadOnly);
    let error = store.apply(&put(3, Record::new("other"))).await.expect_err("no room");
    assert_eq!(error.kind, ErrorKind::ReadOnly);
    assert!(get(&store, "k").await.is_some());
    assert!(get(&store, "other").await.is_none());
    disk.full.store(false, Ordering::SeqCst);
    assert_eq!(store.probe().await.expect("heals"), Health::Healthy);
    store.apply(&put(4, Record::new("k").with("x", 4))).await.expect("applies");
    store.close().await.expect("closes");
    let store = graph(dir.path());
    assert_eq!(get(&store, "k").await.expect("held").version, Version(4));
    assert_eq!(get(&store, "other").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_failed_store_reopens_itself_on_the_next_use_after_its_backoff() {
    let (dir, disk) = (tempfile::tempdir().expect("a directory"), Arc::new(Disk::default()));
    let store = graph_on(&disk, dir.path());
    store.apply(&put(1, Record::new("k"))).await.expect("applies");
    disk.full.store(true, Ordering::SeqCst);
    disk.gone.store(true, Ordering::SeqCst);
    store.apply(&put(2, Record::new("k"))).await.expect_err("the commit fails");
    let error = store.probe().await.expect_err("it cannot be opened");
    assert_eq!(error.kind, ErrorKind::Transient);
    assert!(get(&store, "k").await.is_some(), "what was known is still read");
    disk.full.store(false, Ordering::SeqCst);
    disk.gone.store(false, Ordering::SeqCst);
    let error = store.apply(&put(3, Record::new("k"))).await.expect_err("too early");
    tokio::time::sleep(error.retry_after.expect("it says when")).await;
    store.apply(&put(3, Record::new("k"))).await.expect("applies");
    assert_eq!(get(&store, "k").await.expect("held").version, Version(3));
}

/// A disk one step of which fails.
struct OneStep(AtomicI64);

impl FaultHook for OneStep {
    fn before(&self, _: Step) -> io::Result<()> {
        // Input/output error.
        if self.0.fetch_sub(1, Ordering::SeqCst) == 0 { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

/// Trap 19, for the stores: whichever step of the disk fails, a write that was answered is there, and one whose outcome
/// is not known can be sent again.
#[tokio::test(start_paused = true)]
async fn trap_19_whatever_step_of_the_disk_fails_what_was_applied_is_there() {
    let scratch = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    for at in 0.. {
        let dir = scratch();
        let fault = Arc::new(OneStep(AtomicI64::new(at)));
        let options = GuardOptions { fault: Some(Arc::clone(&fault) as _), ..GuardOptions::rewriting() };
        let opened = GraphBackend::open_with(dir.path().to_owned(), GraphConfig::default(), options);
        let mut model = Model::default();
        if let Ok(store) = opened {
            for version in 1..=12 {
                let key = KEYS[version as usize % KEYS.len()];
                let write = match version % 4 {
                    0 => delete(version, key),
                    1 => put(version, Record::new(key).with("text", "x".repeat(6_000))),
                    _ => put(version, Record::new(key).with("x", version)),
                };
                let mut tries = 0;
                while let Err(error) = store.apply(&write).await {
                    assert_ne!(error.kind, ErrorKind::Permanent, "{error}");
                    tries += 1;
                    assert!(tries < 5, "step {at}: {error}");
                    tokio::time::sleep(error.retry_after.unwrap_or_default()).await;
                }
                model.apply(&write);
                assert_eq!(get(&store, key).await.as_ref(), model.0.get(&key.into()), "step {at}");
            }
            store.close().await.expect("closes");
        }
        let store = graph(dir.path());
        for key in KEYS {
            assert_eq!(get(&store, key).await.as_ref(), model.0.get(&key.into()), "step {at}: {key} after a reopen");
        }
        if fault.0.load(Ordering::SeqCst) >= 0 {
            assert!(at > 30, "only {at} steps");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_of_many_tasks_is_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(graph(dir.path()));
    let tasks: Vec<_> = (0..8_u64)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 1..=60 {
                    store.apply(&put(n, Record::new(format!("t{task}")))).await.expect("applies");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no write is abandoned");
    }
    assert_eq!(store.newest_version().await.expect("tells"), Version(60));
}

/// A disk on which the next sync panics.
struct PanicOnce(AtomicBool);

impl FaultHook for PanicOnce {
    fn before(&self, step: Step) -> io::Result<()> {
        assert!(step != Step::Sync || !self.0.swap(false, Ordering::SeqCst), "a panic was injected");
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_owner_costs_its_commit_and_no_more() {
    let (dir, disk) = (tempfile::tempdir().expect("a directory"), Arc::new(PanicOnce(AtomicBool::new(false))));
    let options = GuardOptions { fault: Some(Arc::clone(&disk) as _), ..GuardOptions::rewriting() };
    let store = GraphBackend::open_with(dir.path().to_owned(), GraphConfig::default(), options).expect("opens");
    disk.0.store(true, Ordering::SeqCst);
    let error = store.apply(&put(1, Record::new("k"))).await.expect_err("the owner panics");
    assert_eq!(error.kind, ErrorKind::Unknown);
    assert_eq!(store.probe().await.expect("reopens"), Health::Healthy);
    store.apply(&put(2, Record::new("k"))).await.expect("applies");
    assert_eq!(get(&store, "k").await.expect("held").version, Version(2));
}

const CHILD: &str = "SEAWALL_STORE_CHILD";

/// Writes until it is killed, and prints each version that was acknowledged.
fn be_the_child(dir: &Path) {
    block_on(async {
        let store = graph(dir);
        for n in store.newest_version().await.expect("tells").0 + 1.. {
            let record =
                Record::new(format!("k{}", n % 7)).with("n", n).with("text", "z".repeat(n as usize % 5 * 3_000));
            let change = if n % 5 == 4 { Change::Delete { key: record.key } } else { Change::put(record) };
            store.apply(&write(n, Fence::Write, [change])).await.expect("applies");
            println!("\nacked {n}");
        }
    });
}

#[test]
fn what_was_acknowledged_survives_a_killed_process() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return be_the_child(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut last = 0;
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().expect("a test runs from a file"))
            .args([
                "--exact",
                "--nocapture",
                "backends::records::tests::what_was_acknowledged_survives_a_killed_process",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("spawns itself");
        let lines = BufReader::new(child.stdout.take().expect("is piped")).lines().map_while(Result::ok);
        let mut acked = lines.filter_map(|line| line.strip_prefix("acked ")?.parse::<u64>().ok());
        last = acked.nth(round * 9).expect("the child writes");
        child.kill().expect("can be killed");
        last = acked.last().unwrap_or(last);
        child.wait().expect("ends");
        block_on(async {
            let store = graph(dir.path());
            let newest = store.newest_version().await.expect("tells").0;
            assert!(newest == last || newest == last + 1, "acknowledged {last}, found {newest}");
            for n in newest.saturating_sub(6).max(1)..=newest {
                let held = get(&store, &format!("k{}", n % 7)).await.expect("held");
                assert_eq!((held.version, held.record.is_none()), (Version(n), n % 5 == 4));
            }
            store.close().await.expect("closes");
        });
    }
    assert!(last > 60);
}
