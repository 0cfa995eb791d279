mod damage;
mod failure;
mod format;
mod generations;
mod model;
mod retention;
mod sweep;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use seawall_actors::backend::BackendName;
use seawall_actors::journal::{Ending, Intent, Journal, JournalRecord};
use seawall_actors::operation::{Change, OperationId, Priority, Version};
use seawall_actors::record::Record;

use super::*;

/// A journal that rolls after a few records and never waits for a lock.
fn small() -> JournalConfig {
    JournalConfig {
        generation_entries: 8,
        lock_patience: Duration::from_secs(5),
        linger: Duration::ZERO,
        idle_note_delay: Duration::from_millis(1),
        outcomes: 3,
        ..JournalConfig::default()
    }
}

/// A directory in memory where there is one, so that a sync costs nothing.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// So many cases, unless `PROPTEST_CASES` says otherwise.
fn cases(ordinary: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig::default();
    ProptestConfig { cases: if asked { config.cases } else { ordinary }, ..config }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn opened(dir: &Path, config: &JournalConfig) -> (SledJournal, Vec<JournalRecord>) {
    let (journal, recovered) = SledJournal::open(dir, config.clone(), OnDamage::Refuse).unwrap();
    assert!(recovered.loss.is_empty());
    (journal, recovered.records)
}

fn append(journal: &SledJournal, records: Vec<JournalRecord>) -> Result<(), JournalError> {
    journal.append(records).blocking_recv().unwrap()
}

fn close(journal: SledJournal) {
    futures::executor::block_on(journal.close());
}

fn name(text: &str) -> BackendName {
    BackendName::from(text)
}

fn operation(version: u64) -> OperationId {
    OperationId::from(u128::from(version) << 64 | 7)
}

fn intent(version: u64, bytes: usize) -> JournalRecord {
    let record = Record::new(format!("key-{version}")).with("text", "x".repeat(bytes));
    JournalRecord::Intent(Arc::new(Intent {
        version: Version(version),
        operation: operation(version),
        priority: Priority::Normal,
        changes: Arc::from([Change::put(record)]),
        owes: vec![name("graph"), name("vector")],
        undo: Vec::new(),
    }))
}

fn done(version: u64, backend: &str) -> JournalRecord {
    JournalRecord::Done { version: Version(version), backend: name(backend) }
}

fn closed(version: u64) -> JournalRecord {
    JournalRecord::Closed { version: Version(version), operation: operation(version), ending: Ending::Committed }
}

fn reserved(up_to: u64) -> JournalRecord {
    JournalRecord::Reserved { up_to: Version(up_to) }
}

/// What has to be kept of everything that was ever appended, by the simplest means.
fn needed(history: &[JournalRecord], outcomes: usize) -> Vec<JournalRecord> {
    let mut keep = vec![false; history.len()];
    let mut closings = Vec::new();
    let highest = history.iter().enumerate().filter_map(|(at, record)| match record {
        JournalRecord::Reserved { up_to } => Some((*up_to, at)),
        _ => None,
    });
    if let Some((_, at)) = highest.max() {
        keep[at] = true;
    }
    for (at, record) in history.iter().enumerate() {
        let Some(version) = record.version() else { continue };
        let own = |other: usize| history[other].version() == Some(version);
        let opened = (0..at).rev().find(|&other| own(other) && matches!(history[other], JournalRecord::Intent(_)));
        let ended = |from: usize| (from..at).any(|o| own(o) && matches!(history[o], JournalRecord::Closed { .. }));
        match record {
            JournalRecord::Intent(_) => {
                (0..at)
                    .filter(|&o| own(o) && !matches!(history[o], JournalRecord::Closed { .. }))
                    .for_each(|o| keep[o] = false);
                keep[at] = true;
            }
            JournalRecord::Closed { .. } => {
                (0..at).filter(|&other| own(other)).for_each(|other| keep[other] = false);
                closings.retain(|&other| !own(other));
                closings.push(at);
            }
            _ => keep[at] = opened.is_some_and(|opened| !ended(opened)),
        }
    }
    for at in closings.into_iter().rev().take(outcomes) {
        keep[at] = true;
    }
    history.iter().zip(keep).filter(|(_, keep)| *keep).map(|(record, _)| record.clone()).collect()
}
