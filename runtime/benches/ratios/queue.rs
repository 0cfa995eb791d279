//! What a long queue costs: reopening it, its disk and its memory: row 12.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use seawall::Runtime;
use seawall::backend::{Applied, Backend, BackendError, BackendName, FencedWrite, Health, Stored};
use seawall::journal::{JournalConfig, OnDamage, SledJournal};
use seawall::ledger::{Intent, Journal, JournalRecord};
use seawall::operation::{Change, OperationId, Priority, Version};
use seawall::record::{Key, Record};
use tokio::sync::watch;

use crate::measure::{Effort, Spread, process_cpu, wall};
use crate::stage::{current_thread, roomy, until};
use crate::table::{Aim, Row, nanoseconds};

/// The argument with which this program opens a queue as a process of its own, so that its memory is its own.
pub(crate) const REOPEN: &str = "reopen";

const PAYLOAD: usize = 512;

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    let (few, many) = effort.pick((100_000, 1_000_000), (10_000, 100_000));
    let mut ratios = Vec::new();
    let mut last = None;
    for _ in 0..effort.pick(2, 1) {
        let (short, long) = (measure(few), measure(many));
        ratios.push((long.cpu / many as f64) / (short.cpu / few as f64));
        last = Some((short, long));
    }
    let Some((short, long)) = last else { return Vec::new() };
    let payload = (many as usize * PAYLOAD) as f64;
    let medians = format!(
        "{} ({} on the wall) / {} ({})",
        nanoseconds(long.cpu * 1e9),
        nanoseconds(long.wall * 1e9),
        nanoseconds(short.cpu * 1e9),
        nanoseconds(short.wall * 1e9)
    );
    let what = format!("start with {many} owed writes, CPU per write");
    let full = format!("disk of {many} owed writes of {PAYLOAD} bytes");
    let full_disk = Some(Spread::exactly(long.full_bytes / payload));
    let mib = format!("{:.0} MiB, {} generations", long.full_bytes / MIB, long.full_generations);
    let drained = Some(Spread::exactly(long.drained_bytes / payload));
    let drained_mib = format!("{:.1} MiB", long.drained_bytes / MIB);
    vec![
        Row::ratio("12a", what, format!("with {few}"), Spread::of(ratios), medians, Aim::AtMost(1.2)),
        Row::ratio("12b", full, "the payload", full_disk, mib, Aim::AtMost(2.2)),
        Row::ratio("12c", "the same disk, drained", "the payload", drained, drained_mib, Aim::Shown),
        Row::plain(
            "12d",
            "generations left, drained",
            long.drained_generations as f64,
            "generations",
            Aim::AtMost(1.0),
        ),
        Row::plain("12e", format!("memory with {many} owed writes"), long.memory / MIB, "MiB", Aim::AtMost(130.0)),
        Row::plain("12f", "memory of one of them", long.memory / many as f64, "bytes", Aim::Shown),
    ]
}

const MIB: f64 = (1 << 20) as f64;

/// What a queue of one length costs.
struct Cost {
    cpu: f64,
    wall: f64,
    memory: f64,
    full_bytes: f64,
    full_generations: usize,
    drained_bytes: f64,
    drained_generations: usize,
}

fn measure(count: u64) -> Cost {
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let journal = dir.path().join("journal");
    fill(&journal, count);
    let (full_bytes, full_generations) = occupied(&journal);
    let [cpu, wall, memory, owed] = reopened(dir.path());
    assert_eq!(owed as u64, count, "all that was owed is owed");
    let (drained_bytes, drained_generations) = occupied(&journal);
    Cost { cpu, wall, memory, full_bytes, full_generations, drained_bytes, drained_generations }
}

/// Bytes of a runtime on a new journal, in a process of its own.
pub(crate) fn idle() -> f64 {
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let [_, _, memory, _] = reopened(dir.path());
    memory
}

/// What another process says of starting on this directory: CPU and wall seconds, bytes of memory, owed writes.
fn reopened(dir: &Path) -> [f64; 4] {
    let program = std::env::current_exe().expect("a program knows where it is");
    let output = Command::new(program).arg(REOPEN).arg(dir).output().expect("it can be started again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = printed.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().expect("it prints four numbers")
}

/// Writes down so many writes that one backend owes.
fn fill(dir: &Path, count: u64) {
    const BATCH: u64 = 1_000;
    let config = JournalConfig { outcomes: 10_000, ..JournalConfig::default() };
    let tokio = current_thread();
    let (journal, _) = SledJournal::open(dir, config, OnDamage::Refuse).expect("a new journal opens");
    tokio.block_on(async {
        for batch in 0..count / BATCH {
            let records = (1..=BATCH).map(|n| intent(batch * BATCH + n)).collect();
            journal.append(records).await.expect("it answers").expect("the disk takes it");
        }
        journal.close().await;
    });
}

fn intent(n: u64) -> JournalRecord {
    let key = format!("key-{n}");
    let text = "x".repeat(PAYLOAD - key.len() - "text".len());
    JournalRecord::Intent(Arc::new(Intent {
        version: Version(n),
        operation: OperationId::from(u128::from(n)),
        priority: Priority::Normal,
        changes: [Change::put(Record::new(key).with("text", text))].into(),
        owes: vec!["graph".into()],
        undo: Vec::new(),
    }))
}

/// Bytes that the files of a journal take, and its generations.
fn occupied(dir: &Path) -> (f64, usize) {
    let (mut bytes, mut generations) = (0, 0);
    for entry in std::fs::read_dir(dir).expect("the journal is there").flatten() {
        generations += usize::from(entry.file_name().to_string_lossy().starts_with("gen-"));
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => occupied(&entry.path()).0 as u64,
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
    }
    (bytes as f64, generations)
}

/// What a process of its own does: starts on a queue, says what that cost, drains it, and stops.
pub(crate) fn reopen(dir: &Path) -> std::io::Result<()> {
    let tokio = current_thread();
    tokio.block_on(async {
        let (cpu, began, memory) = (process_cpu(), wall(), resident()?);
        let held = watch::Sender::new(true);
        let backend = Held(held.subscribe());
        let started = Runtime::builder().config(roomy()).data_dir(dir).backend(backend).start().await;
        let runtime = started.map_err(std::io::Error::other)?;
        let (cpu, took, owed) = (process_cpu() - cpu, wall() - began, runtime.handle().status().owed);
        println!("{cpu} {took} {} {owed}", resident()? - memory);
        held.send_replace(false);
        until("nothing is owed", || runtime.handle().status().owed == 0).await;
        // Notes are written after 50 ms, and generations that are not needed any more go with them.
        tokio::time::sleep(Duration::from_secs(1)).await;
        runtime.shutdown().await;
        Ok(())
    })
}

/// Bytes of memory that this process has.
fn resident() -> std::io::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| std::io::Error::other("this system does not tell its memory"))
}

/// A backend that does nothing, and not before it is let go.
struct Held(watch::Receiver<bool>);

#[async_trait]
impl Backend for Held {
    fn name(&self) -> BackendName {
        "graph".into()
    }

    async fn apply(&self, _: &FencedWrite) -> Result<Applied, BackendError> {
        let let_go = self.0.clone().wait_for(|held| !held).await.is_ok();
        assert!(let_go, "its sender outlives the runtime");
        Ok(Applied::default())
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        Ok(vec![None; keys.len()])
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        Ok(Health::Healthy)
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Ok(Version(0))
    }
}
