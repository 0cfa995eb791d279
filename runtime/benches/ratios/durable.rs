//! Durable stores, against the same bytes appended to a file and synced by hand: rows 7 and 8.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use futures::future::join_all;
use seawall::journal::{JournalConfig, OnDamage, SledJournal};
use seawall::ledger::{Journal, MemoryJournal};
use seawall::record::Record;
use seawall::{Handle, Runtime};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::measure::{Effort, Spread, interleave, p99, per_task_wait, spawned, wall};
use crate::stage::{Noop, current_thread, roomy};
use crate::table::{Aim, Row, both, nanoseconds, short};

/// Callers at once.
const CALLERS: u64 = 64;

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    let mut rows = together(effort);
    rows.push(alone(effort));
    rows
}

/// Records of about half a kilobyte.
fn weighty(numbers: Range<u64>) -> Vec<Record> {
    numbers.map(|n| Record::new(format!("key-{n}")).with("text", "x".repeat(480))).collect()
}

/// Seawall on a journal that can be asked how often it synced.
struct Subject {
    runtime: Runtime,
    journal: Arc<SledJournal>,
    _dir: TempDir,
}

impl Subject {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("there is a directory for temporary files");
        let opened = SledJournal::open(dir.path(), JournalConfig::default(), OnDamage::Refuse);
        let (journal, found) = opened.expect("a new journal opens");
        let journal = Arc::new(journal);
        let runtime = with_two(Arc::clone(&journal) as _, found.records).await;
        Self { runtime, journal, _dir: dir }
    }
}

async fn with_two(journal: Arc<dyn Journal>, found: Vec<seawall::ledger::JournalRecord>) -> Runtime {
    let mut builder = Runtime::builder().config(roomy()).journal(journal, found);
    for backend in Noop::two() {
        builder = builder.shared_backend(backend);
    }
    builder.start().await.expect("nothing stands in the way of a start")
}

/// What the journal writes down for one such store.
fn bytes_of_a_store(tokio: &tokio::runtime::Runtime) -> Arc<[u8]> {
    let journal = Arc::new(MemoryJournal::recording());
    let runtime = tokio.block_on(with_two(Arc::clone(&journal) as _, Vec::new()));
    let before = journal.records().len();
    spawned(tokio, crate::stage::store_all(runtime.handle(), weighty(0..1)));
    let records = journal.records().split_off(before);
    let encoded = records.iter().flat_map(|record| rmp_serde::to_vec_named(record).expect("a record encodes"));
    encoded.collect()
}

type Append = (Arc<[u8]>, oneshot::Sender<()>);

/// What one would write by hand: a thread that gathers for 20 µs, appends and syncs.
struct Appender {
    appends: Sender<Append>,
    syncs: Arc<AtomicU64>,
}

impl Appender {
    fn start(dir: &Path) -> Self {
        let file = File::create(dir.join("appended")).expect("the directory takes files");
        let (appends, inbox) = channel();
        let syncs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&syncs);
        std::thread::spawn(move || commit(&inbox, file, &counted));
        Self { appends, syncs }
    }
}

fn commit(inbox: &Receiver<Append>, mut file: File, syncs: &AtomicU64) {
    const LINGER: Duration = Duration::from_micros(20);
    let mut bytes = Vec::new();
    while let Ok((first, waiting)) = inbox.recv() {
        bytes.clear();
        bytes.extend_from_slice(&first);
        let mut waiting = vec![waiting];
        let began = Instant::now();
        while waiting.len() < 256 {
            match inbox.try_recv() {
                Ok((more, too)) => {
                    bytes.extend_from_slice(&more);
                    waiting.push(too);
                }
                Err(_) if began.elapsed() >= LINGER => break,
                Err(_) => std::thread::yield_now(),
            }
        }
        file.write_all(&bytes).and_then(|()| file.sync_data()).expect("the disk takes it");
        syncs.fetch_add(1, Ordering::Relaxed);
        for waiting in waiting {
            let _ = waiting.send(());
        }
    }
}

/// What a round of many callers came to.
struct Stretch {
    seconds: f64,
    p99: f64,
    per_sync: f64,
}

/// All these callers at once.
async fn callers<F>(all: Vec<F>, syncs: impl Fn() -> u64, calls: u64) -> Stretch
where
    F: Future<Output = Vec<f64>> + Send + 'static,
{
    let (began, synced) = (wall(), syncs());
    let waits = join_all(all.into_iter().map(tokio::spawn)).await;
    let (seconds, synced) = (wall() - began, syncs() - synced);
    let waits = waits.into_iter().flat_map(|waits| waits.expect("a caller does not panic")).collect();
    Stretch { seconds, p99: p99(waits), per_sync: (CALLERS * calls) as f64 / synced as f64 }
}

async fn store_each(handle: Handle, records: Vec<Record>) -> Vec<f64> {
    let mut waits = Vec::with_capacity(records.len());
    for record in records {
        let began = wall();
        handle.store(record).await.expect("is stored");
        waits.push(wall() - began);
    }
    waits
}

async fn append_each(appends: Sender<Append>, bytes: Arc<[u8]>, calls: u64) -> Vec<f64> {
    let mut waits = Vec::new();
    for _ in 0..calls {
        let began = wall();
        let (sender, appended) = oneshot::channel();
        appends.send((Arc::clone(&bytes), sender)).expect("the thread is there");
        appended.await.expect("it answers");
        waits.push(wall() - began);
    }
    waits
}

fn together(effort: Effort) -> Vec<Row> {
    let (calls, rounds) = effort.pick((50, 41), (10, 5));
    let tokio = current_thread();
    let subject = tokio.block_on(Subject::start());
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let appender = Appender::start(dir.path());
    let bytes = bytes_of_a_store(&tokio);
    let commits = || subject.journal.progress().commits;
    let storing = || {
        let records = (0..CALLERS).map(|caller| weighty(caller * calls..(caller + 1) * calls));
        records.map(|records| store_each(subject.runtime.handle(), records)).collect()
    };
    let appending = || (0..CALLERS).map(|_| append_each(appender.appends.clone(), Arc::clone(&bytes), calls)).collect();
    let (mut stored, mut appended) = (Vec::new(), Vec::new());
    let total = (CALLERS * calls) as f64;
    let measured = interleave(
        rounds,
        [
            &mut || {
                let stretch = tokio.block_on(callers(storing(), commits, calls));
                stored.push((stretch.p99, stretch.per_sync));
                stretch.seconds / total * 1e9
            },
            &mut || {
                let syncs = || appender.syncs.load(Ordering::Relaxed);
                let stretch = tokio.block_on(callers(appending(), syncs, calls));
                appended.push((stretch.p99, stretch.per_sync));
                stretch.seconds / total * 1e9
            },
        ],
    );
    let tail = Spread::of(stored.iter().zip(&appended).skip(1).map(|(one, other)| one.0 / other.0));
    let tails = |of: &[(f64, f64)]| Spread::of(of.iter().map(|one| one.0 * 1e9)).map_or(f64::NAN, |all| all.median);
    let shared = Spread::of(stored.iter().skip(1).map(|one| one.1 / CALLERS as f64));
    let by_hand = Spread::of(appended.iter().skip(1).map(|one| one.1)).map_or(f64::NAN, |all| all.median);
    let what = "durable store, 64 callers, wall";
    let against = format!("append of the same {} bytes and `fdatasync`, in groups, by hand", bytes.len());
    let medians = both(measured.median(0), measured.median(1));
    let synced = format!("by hand {}", short(by_hand / CALLERS as f64));
    vec![
        Row::ratio("7a", what, against, measured.ratio(0, 1), medians, Aim::AtMost(1.5)),
        Row::ratio("7b", "stores in one sync", "callers", shared, synced, Aim::AtLeast(0.9)),
        Row::ratio("7c", "its p99", "the same p99", tail, both(tails(&stored), tails(&appended)), Aim::AtMost(2.0)),
    ]
}

fn alone(effort: Effort) -> Row {
    let calls = effort.pick(50, 10);
    let tokio = current_thread();
    let subject = tokio.block_on(Subject::start());
    let bytes = bytes_of_a_store(&tokio);
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let mut file = File::create(dir.path().join("appended")).expect("the directory takes files");
    let rounds = interleave(
        effort.rounds(),
        [
            &mut || {
                let task = crate::stage::store_all(subject.runtime.handle(), weighty(0..calls));
                per_task_wait(&tokio, calls, task) * 1e9
            },
            &mut || {
                let began = wall();
                for _ in 0..calls {
                    file.write_all(&bytes).and_then(|()| file.sync_data()).expect("the disk takes it");
                }
                (wall() - began) / calls as f64 * 1e9
            },
        ],
    );
    let medians = format!("{} / {}", nanoseconds(rounds.median(0)), nanoseconds(rounds.median(1)));
    let what = "one durable store alone, wall";
    Row::ratio("8", what, "one append and `fdatasync`", rounds.ratio(0, 1), medians, Aim::AtMost(1.3))
}
