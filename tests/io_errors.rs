//! A disk that fails under the whole runtime: loudly, without losing what was acknowledged, and not for longer than it
//! fails.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use seawall::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::event::{EventKind, Subscription, Update};
use seawall::fallback::Mode;
use seawall::guard::{FaultHook, Step};
use seawall::journal::{JournalConfig, OnDamage, SledJournal};
use seawall::ledger::JournalHealth;
use seawall::operation::{Held, Outcome, Version, Write};
use seawall::{Refusal, Runtime};
use support::{is_pending, n, record};

/// How long anything may take that has to come, in real time: the journal has a thread of its own.
const PATIENCE: Duration = Duration::from_secs(120);
/// No space left on device.
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// A disk that fails from its n-th step on, until it is healed.
struct Failing {
    left: AtomicI64,
    errno: i32,
}

impl Failing {
    fn from(step: i64, errno: i32) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(step), errno })
    }

    fn heal(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    fn fails(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }
}

impl FaultHook for Failing {
    fn before(&self, step: Step) -> io::Result<()> {
        // A disk that fails can mostly still be read.
        let writes = !matches!(step, Step::Open | Step::Read);
        if writes && self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.left.fetch_min(-1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(self.errno));
        }
        Ok(())
    }
}

fn journal_config() -> JournalConfig {
    JournalConfig { generation_entries: 10, lock_patience: Duration::from_secs(30), ..JournalConfig::default() }
}

async fn runtime_on(dir: &Path, fault: Option<Arc<dyn FaultHook>>) -> Runtime {
    let dir = dir.to_owned();
    let open = move || SledJournal::open_with_faults(&dir, journal_config(), OnDamage::Refuse, fault);
    let (journal, recovered) = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
    let runtime = Runtime::builder()
        .backend(GraphBackend::in_memory(GraphConfig::default()))
        .backend(VectorBackend::in_memory(VectorConfig::default()))
        .journal(Arc::new(journal), recovered.records)
        .start()
        .await
        .unwrap();
    runtime.control().set_mode(Mode::QueueWrites, "a test", None).await.unwrap();
    runtime.control().breaker("vector").unwrap().force_open("a test", None);
    runtime
}

/// Still owed, or delivered before the breaker of the new process was forced open.
fn is_kept(outcome: &Outcome) -> bool {
    is_pending(outcome) || matches!(outcome, Outcome::Committed(_))
}

async fn hears(events: &mut Subscription, what: &str, wanted: impl Fn(&EventKind) -> bool) {
    let heard = async {
        while let Some(update) = events.next().await {
            if matches!(&update, Update::Event(event) if wanted(&event.kind)) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(PATIENCE, heard).await == Ok(true), "in vain: {what}");
}

/// Trap 19, through the whole runtime: the disk fails from its n-th write on. Everybody hears of it, the mode falls,
/// nothing is acknowledged; the disk heals, the mode comes back, and what was acknowledged survives a restart.
async fn the_disk_fails_from(step: i64, errno: i32) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    // The reservation of versions and what belongs to it must succeed, or nothing starts.
    let disk = Failing::from(i64::MAX, errno);
    let runtime = runtime_on(&dir, Some(Arc::clone(&disk) as _)).await;
    let handle = runtime.handle();
    let mut events = runtime.subscribe();
    disk.left.store(step, Ordering::SeqCst);
    let mut acknowledged = BTreeMap::new();
    let mut refused = Vec::new();
    for k in 0..200 {
        let write = Write::store(record(&format!("k{k}"), k)).with_timeout(PATIENCE);
        let operation = write.operation;
        let failed = disk.fails();
        match handle.write(write).await {
            Ok(receipt) => {
                assert!(!failed, "step {step}: {receipt:?} after the disk had failed");
                assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
                acknowledged.insert(k, operation);
            }
            Err(Refusal::Unknown { .. } | Refusal::JournalUnavailable { .. } | Refusal::ReadOnly { .. }) => {
                refused.push((k, operation));
                break;
            }
            Err(refusal) => panic!("step {step}: {refusal}"),
        }
    }
    assert!(!refused.is_empty(), "step {step} never came");
    hears(&mut events, "the journal is said to have failed", |event| {
        matches!(event, EventKind::JournalChanged { to: JournalHealth::Failed, .. })
    })
    .await;
    hears(&mut events, "the mode falls", |event| matches!(event, EventKind::ModeChanged { to: Mode::ReadOnly, .. }))
        .await;
    let refusal = handle.store(record("late", 1)).await.unwrap_err();
    assert!(matches!(refusal, Refusal::ReadOnly { .. }), "step {step}: {refusal}");

    disk.heal();
    hears(&mut events, "the mode comes back", |event| {
        matches!(event, EventKind::ModeChanged { to: Mode::QueueWrites, .. })
    })
    .await;
    let receipt = handle.store(record("healed", 1)).await.unwrap();
    acknowledged.insert(1_000, receipt.operation);
    runtime.shutdown().await;
    let runtime = runtime_on(&dir, None).await;
    for (k, operation) in acknowledged {
        let outcome = runtime.handle().outcome(operation);
        assert!(is_kept(&outcome), "step {step}: write {k} is {outcome:?}");
    }
    for (k, operation) in refused {
        // It was told to be unknown: it may have become anything by now, but it has to be decided.
        let outcome = runtime.handle().outcome(operation);
        let decided = is_kept(&outcome) || matches!(outcome, Outcome::NotFound | Outcome::RolledBack(_));
        assert!(decided, "step {step}: write {k} is {outcome:?}");
    }
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn trap_19_a_failing_disk_is_heard_of_and_lowers_the_mode_until_it_heals() {
    let cases = (0..60).map(|step| tokio::spawn(the_disk_fails_from(step, if step % 2 == 0 { EIO } else { ENOSPC })));
    for case in futures::future::join_all(cases).await {
        case.unwrap();
    }
}

/// A file system of this many bytes in memory, if this process may make one.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("seawall-small-").tempdir().ok()?;
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// A real full disk, short writes and all: the journal's, with nothing simulated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_11_a_disk_that_is_really_full_refuses_and_goes_on_when_there_is_room() {
    let Some(small) = Small::mount(6 << 20) else {
        println!("skipped: a small file system can only be mounted by root");
        return;
    };
    let dir = small.path().join("journal");
    let runtime = runtime_on(&dir, None).await;
    let handle = runtime.handle();
    let mut acknowledged = Vec::new();
    for k in 0.. {
        let large = record(&format!("k{k}"), k).with("text", "x".repeat(60_000));
        let write = Write::store(large).with_timeout(PATIENCE);
        let operation = write.operation;
        match handle.write(write).await {
            Ok(_) => acknowledged.push((k, operation)),
            Err(refusal) => {
                let expected = matches!(
                    refusal,
                    Refusal::Unknown { .. } | Refusal::JournalUnavailable { .. } | Refusal::ReadOnly { .. }
                );
                assert!(expected, "{refusal}");
                break;
            }
        }
        assert!(k < 1_000, "6 MiB are never full");
    }
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    // What is acknowledged by a full disk is acknowledged.
    for (k, _) in &acknowledged {
        let read = handle.retrieve(format!("k{k}")).await.unwrap();
        assert_eq!(n(read.record), Some(*k));
        assert!(read.version > Some(Version(0)));
    }
    let size = format!("remount,size={}", 64 << 20);
    let remounted = Command::new("mount").args(["-o", &size]).arg(small.path()).status();
    assert!(remounted.is_ok_and(|status| status.success()));
    let healed = async {
        while handle.store(record("healed", 1)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, healed).await.expect("there is room again");
    runtime.shutdown().await;
    let runtime = runtime_on(&dir, None).await;
    for (k, operation) in acknowledged {
        let outcome = runtime.handle().outcome(operation);
        assert!(is_kept(&outcome), "write {k} is {outcome:?}");
    }
    runtime.shutdown().await;
}
