//! A queue that is a thousand entries deep, for a long time: it never hangs, and disk and memory stay flat.
//!
//! `SEAWALL_SOAK_ENTRIES` sets how many entries go through (default 50 000; 5 000 000 for the long run).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use seawall::journal::{JournalConfig, OnDamage, SledJournal};
use seawall_actors::journal::{Appended, Ending, Intent, Journal, JournalRecord};
use seawall_actors::operation::{Change, OperationId, Priority, Version};
use seawall_actors::record::Record;

const DEPTH: u64 = 1_000;
const CALLERS: usize = 64;

fn intent(version: u64) -> JournalRecord {
    JournalRecord::Intent(Arc::new(Intent {
        version: Version(version),
        operation: OperationId::from(u128::from(version)),
        priority: Priority::Normal,
        changes: Arc::from([Change::Put(Record::new(format!("key-{version}")).with("text", "x".repeat(400)))]),
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

async fn answered(append: Appended) {
    let answer = tokio::time::timeout(Duration::from_secs(60), append).await;
    answer.expect("a commit within a minute").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_steady_queue_neither_hangs_nor_grows() {
    let entries: u64 = std::env::var("SEAWALL_SOAK_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000);
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = SledJournal::open(dir.path(), JournalConfig::default(), OnDamage::Refuse).unwrap();
    let started = tokio::time::Instant::now();
    let mut waiting = VecDeque::new();
    let (mut disk, mut generations, mut early, mut memory) = (0, 0, 0, 0);
    for version in 1..=entries {
        waiting.push_back(journal.append(vec![intent(version)]));
        if waiting.len() >= CALLERS {
            answered(waiting.pop_front().unwrap()).await;
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
        answered(append).await;
    }
    let (elapsed, progress) = (started.elapsed(), journal.progress());
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
