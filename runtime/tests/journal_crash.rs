//! A process that appends is killed at any moment; what it was answered is there, in order, and nothing else is.
//!
//! `SEAWALL_KILLS` sets how often (default 10).
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use seawall::journal::{JournalConfig, OnDamage, SledJournal};
use seawall_actors::journal::{Ending, Intent, Journal, JournalRecord};
use seawall_actors::operation::{Change, OperationId, Priority, Version};
use seawall_actors::record::Record;

const CHILD_DIR: &str = "SEAWALL_JOURNAL_CHILD_DIR";
const CHILD_FIRST: &str = "SEAWALL_JOURNAL_CHILD_FIRST";
/// How many entries the child leaves open.
const DEPTH: usize = 200;

fn config() -> JournalConfig {
    JournalConfig {
        generation_entries: 500,
        lock_patience: Duration::from_secs(30),
        outcomes: 50,
        ..JournalConfig::default()
    }
}

fn intent(version: u64) -> JournalRecord {
    let bytes = if version.is_multiple_of(50) { 20_000 } else { 300 };
    let record = Record::new(format!("key-{version}")).with("text", "x".repeat(bytes));
    JournalRecord::Intent(Arc::new(Intent {
        version: Version(version),
        operation: OperationId::from(u128::from(version)),
        priority: Priority::Normal,
        changes: Arc::from([Change::put(record)]),
        owes: vec!["graph".into()],
        undo: Vec::new(),
    }))
}

fn closed(version: u64) -> JournalRecord {
    let operation = OperationId::from(u128::from(version));
    JournalRecord::Closed { version: Version(version), operation, ending: Ending::Committed }
}

fn open(dir: &Path) -> (SledJournal, BTreeSet<u64>) {
    let (journal, recovered) = SledJournal::open(dir, config(), OnDamage::Refuse).expect("no damage after a kill");
    let live: Vec<u64> = recovered
        .records
        .iter()
        .filter_map(|record| match record {
            JournalRecord::Intent(open) => {
                assert_eq!(record, &intent(open.version.0), "not a byte is different");
                Some(open.version.0)
            }
            _ => None,
        })
        .collect();
    assert!(live.is_sorted_by(|a, b| a < b), "in the order in which they were appended, each once");
    (journal, live.into_iter().collect())
}

/// Not a test of its own: the process that is killed.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let first: u64 = std::env::var(CHILD_FIRST).unwrap().parse().unwrap();
    let (journal, mut live) = open(Path::new(&dir));
    let mut out = std::io::stdout().lock();
    // The test harness has begun a line.
    writeln!(out).unwrap();
    for burst in (first..).step_by(16) {
        let mut records = Vec::new();
        for version in burst..burst + 16 {
            live.insert(version);
            records.push((format!("i {version}"), intent(version)));
            // One in ten stays, so that there is something to carry forward.
            let oldest = live.iter().copied().find(|version| version % 10 != 0);
            let oldest = if live.len() > 2 * DEPTH { live.first().copied() } else { oldest };
            if let Some(oldest) = oldest.filter(|_| live.len() > DEPTH) {
                live.remove(&oldest);
                writeln!(out, "x {oldest}").unwrap();
                records.push((format!("c {oldest}"), closed(oldest)));
            }
        }
        // What it is about to close is said before it can be closed.
        out.flush().unwrap();
        let waiting: Vec<_> = records.into_iter().map(|(what, record)| (what, journal.append(vec![record]))).collect();
        for (what, answer) in waiting {
            answer.blocking_recv().unwrap().unwrap();
            writeln!(out, "{what}").unwrap();
        }
        out.flush().unwrap();
    }
}

/// Runs the child until it has said so many lines, kills it, and gives what it said.
fn run_and_kill(dir: &Path, first: u64, lines: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_appends_until_it_is_killed", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .env(CHILD_FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    for _ in 0..lines {
        output.read_line(&mut said).unwrap();
    }
    child.kill().unwrap();
    // What it said until its death counts, too; the very last line may be cut.
    output.read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
}

#[test]
fn a_killed_process_loses_nothing_that_it_was_answered() {
    let kills: usize = std::env::var("SEAWALL_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(10);
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    // Of this process's own answers: what is open, what may be closed, what is closed.
    let (mut must, mut maybe, mut ended) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut acknowledged = 0;
    for kill in 0..kills {
        // Now and then before it has even opened.
        let lines = if kill % 4 == 3 { random.usize(0..4) } else { random.usize(0..4_000) };
        let next = must.iter().chain(&ended).max().map_or(1, |last: &u64| last + 1_000);
        for line in run_and_kill(dir.path(), next, lines) {
            let Some((what, version)) = line.split_once(' ') else { continue };
            let Ok(version) = version.parse::<u64>() else { continue };
            match what {
                "i" => drop(must.insert(version)),
                "x" => drop(maybe.insert(version)),
                "c" => drop(ended.insert(version)),
                _ => continue,
            }
            acknowledged += 1;
        }
        let (journal, live) = open(dir.path());
        let lost: Vec<_> = must.difference(&live).filter(|version| !maybe.contains(*version)).collect();
        assert!(lost.is_empty(), "kill {kill}: entries {lost:?} are lost");
        let revived: Vec<_> = live.intersection(&ended).collect();
        assert!(revived.is_empty(), "kill {kill}: entries {revived:?} were closed and came back");
        must = live;
        maybe.clear();
        futures::executor::block_on(journal.close());
    }
    println!("{kills} kills, {acknowledged} acknowledged");
    assert!(kills < 10 || acknowledged > 1_000);
}
