//! A queue that is a thousand entries deep, for a long time: it never hangs, and disk and memory stay flat.
//!
//! `SEAWALL_SOAK_ENTRIES` sets how many entries go through (default 50 000; 5 000 000 for the long run),
//! `SEAWALL_BACKLOG_ENTRIES` how many are open when the journal is read again (default 20 000).
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use seawall::journal::{JournalConfig, OnDamage, SledJournal};
use seawall_actors::journal::{Appended, Ending, Intent, Journal, JournalRecord};
use seawall_actors::operation::{Change, OperationId, Priority, Version};
use seawall_actors::record::Record;
use tokio::time::Instant;

const DEPTH: u64 = 1_000;
const CALLERS: usize = 64;

fn intent(version: u64) -> JournalRecord {
    JournalRecord::Intent(Arc::new(Intent {
        version: Version(version),
        operation: OperationId::from(u128::from(version)),
        priority: Priority::Normal,
        changes: Arc::from([Change::put(Record::new(format!("key-{version}")).with("text", "x".repeat(400)))]),
        owes: vec!["graph".into(), "vector".into()],
        undo: Vec::new(),
    }))
}

fn ending(version: u64) -> Vec<JournalRecord> {
    let operation = OperationId::from(u128::from(version));
    let version = Version(version);
    vec![
        JournalRecord::Done { version, backend: "graph".into() },
        JournalRecord::Done { version, backend: "vector".into() },
        JournalRecord::Closed { version, operation, ending: Ending::Committed },
    ]
}

/// Resident memory in bytes, where the system tells.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).map_or(0, |pages| pages * 4_096)
}

async fn answered((asked, append): (Instant, Appended), latencies: &mut Vec<u32>) {
    let answer = tokio::time::timeout(Duration::from_secs(60), append).await;
    answer.expect("a commit within a minute").unwrap().unwrap();
    latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_steady_queue_neither_hangs_nor_grows() {
    let entries: u64 = std::env::var("SEAWALL_SOAK_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000);
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = SledJournal::open(dir.path(), JournalConfig::default(), OnDamage::Refuse).unwrap();
    let started = Instant::now();
    let mut waiting = VecDeque::new();
    let mut latencies = Vec::new();
    let (mut disk, mut generations, mut early, mut memory) = (0, 0, 0, 0);
    for version in 1..=entries {
        waiting.push_back((Instant::now(), journal.append(vec![intent(version)])));
        if waiting.len() >= CALLERS {
            answered(waiting.pop_front().unwrap(), &mut latencies).await;
        }
        if let Some(old) = version.checked_sub(DEPTH).filter(|old| *old > 0) {
            journal.note(ending(old));
        }
        if version.is_multiple_of(1_000) {
            let progress = journal.progress();
            disk = disk.max(progress.disk_bytes);
            generations = generations.max(progress.generations);
            memory = memory.max(resident());
        }
        if version == entries / 4 {
            early = memory;
        }
        if version.is_multiple_of(500_000) {
            println!("{version} entries, {:?}, {} MiB resident", started.elapsed(), resident() >> 20);
        }
    }
    for append in waiting {
        answered(append, &mut latencies).await;
    }
    let (elapsed, progress) = (started.elapsed(), journal.progress());
    latencies.sort_unstable();
    let share = |of: f64| latencies[((latencies.len() - 1) as f64 * of) as usize];
    println!(
        "answers after {} us (half), {} us (99 %), {} us (99.9 %), {} us (all)",
        share(0.5),
        share(0.99),
        share(0.999),
        share(1.0)
    );
    println!(
        "{entries} entries in {elapsed:?}: {} commits, at most {} MiB on disk in {generations} generations, {} MiB resident \
         (a quarter of the way: {} MiB)",
        progress.commits,
        disk >> 20,
        memory >> 20,
        early >> 20
    );
    assert!(generations <= 5);
    assert!(disk < 512 << 20);
    assert!(memory < early + (64 << 20), "memory grows: {early} bytes, then {memory}");
    journal.close().await;
    drop(journal);
    let (journal, recovered) = SledJournal::open(dir.path(), JournalConfig::default(), OnDamage::Refuse).unwrap();
    let open: Vec<u64> = recovered
        .records
        .iter()
        .filter(|record| matches!(record, JournalRecord::Intent(_)))
        .filter_map(|record| record.version().map(|version| version.0))
        .collect();
    assert_eq!(open, (entries - DEPTH + 1..=entries).collect::<Vec<_>>());
    journal.close().await;
}

#[test]
fn a_backlog_is_there_when_the_journal_is_read_again() {
    let entries: u64 = std::env::var("SEAWALL_BACKLOG_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = SledJournal::open(dir.path(), JournalConfig::default(), OnDamage::Refuse).unwrap();
    let mut waiting: Vec<_> = (1..=entries).map(|version| journal.append(vec![intent(version)])).collect();
    waiting.pop().unwrap().blocking_recv().unwrap().unwrap();
    futures::executor::block_on(journal.close());
    drop((journal, waiting));
    let (before, started) = (resident(), Instant::now());
    let (journal, recovered) = SledJournal::open(dir.path(), JournalConfig::default(), OnDamage::Refuse).unwrap();
    println!(
        "{entries} open entries read in {:?}, {} bytes each in memory, records included",
        started.elapsed(),
        resident().saturating_sub(before) / entries
    );
    assert!(recovered.records.iter().zip(1..).all(|(record, version)| *record == intent(version)));
    assert_eq!(recovered.records.len() as u64, entries);
    futures::executor::block_on(journal.close());
}
