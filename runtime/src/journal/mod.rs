//! The one durable journal, on sled 0.34.
//!
//! # What it has to be
//!
//! An append that was answered is there after any crash and any power cut; one that was not may be there or not; one
//! that failed does not come alive later. What is lost all the same (a bad disk, a deleted file) is told exactly,
//! and never taken for an empty journal. Disk and memory follow what is unfinished, not what was ever written.
//!
//! sled gives atomic batches and ordered reads. It gives no fsync, opens files with a damaged tail without a word,
//! and may deadlock when rows are removed from the front of a tree. So: every commit is synced by the
//! [`guard`](crate::guard), what must be there is remembered outside of sled, and no row is ever removed or
//! overwritten.
//!
//! # On disk
//!
//! ```text
//! lock                       locked by the one process that has the journal open
//! mark                       highest acknowledged row, first needed generation, highest reserved version
//! gen-00000000000000000001/  rows 1 to 812, one sled database
//! gen-00000000000000000813/  rows 813 to …; a generation is named after its first row
//! quarantine/                damaged parts that were moved aside, for a person to look at
//! ```
//!
//! Rows are numbered without gaps over all generations. A row is at most 4 KiB and has a header with its own number
//! and a checksum (`row.rs`). Small records share a row; a large one takes several, in one batch. Each record carries
//! its place in the log, which it keeps when it is copied: sorting by place, and dropping what is there twice, gives
//! the order in which records were appended, whatever was copied where and when.
//!
//! # Commit
//!
//! One thread owns sled. It takes what is queued, lingers 20 µs for more, and commits that as one batch:
//! `apply_batch`, `flush`, `sync_data`, then a write to the mark, then all answers. Notes ride along, or go alone
//! after 50 ms.
//!
//! The mark has two slots that are written in turn, each with a checksum, so a torn write leaves the other. It is
//! *written* before every answer, so it is exact when only the process dies. It is *synced* when a second has
//! passed since the last time, when the journal is closed, before a generation is unlinked, and before the first
//! answer out of a new generation. The rows themselves never wait for that. After a power cut the mark can
//! therefore be up to a second old; only if, in the same moment, sled also lost rows that it had synced would the
//! loss of those go unreported.
//!
//! # Failure
//!
//! The first failed write or sync fails everything that waits. The database is dropped, opened again after
//! 0.1 s to 5 s, and what was acknowledged is read. Then a *new* generation begins at the row after the last
//! acknowledged one: what the old one holds from there on was answered as failed, and a row that is beyond the
//! beginning of the next generation is void. Notes are kept and written then.
//!
//! # Generations
//!
//! A new one begins after 50 000 records or 64 MiB. Needed records are those of open entries (an `Intent`, no
//! `Closed` yet), the last outcomes, and the highest `Reserved`. The oldest generation is removed whole when none
//! is in it. When there are more than four, and either a tenth or less of the oldest or at most half of the whole
//! journal is needed, its needed records are appended again first (read back by a thread of its own), and are
//! durable before it goes. The mark then moves past it, is synced, and only then it is unlinked; what a crash leaves
//! before the mark, the next open removes.
//!
//! A copy is made only of what is needed at that moment, so a record that closes an entry never lies in an older
//! generation than a record that opens it, and cannot be removed before it.
//!
//! # Retention
//!
//! With a [retention](JournalConfig::retention) a generation also stays until the last of the entries that were begun
//! or finished in it has been finished for that long, or all generations together take more than
//! [`retention_bytes`](JournalConfig::retention_bytes); then the oldest goes, and [`retained`](Journal::retained)
//! refuses to go back beyond what went with it. For a replay the newest generation is sealed, and a thread of its own
//! reads all of them; none is removed meanwhile. A journal that was repaired begins anew with what it retains.
//!
//! # Opening
//!
//! Every row of every generation is read: its checksum, its number, the chain of generations, and the mark as to
//! what must be there at the end. A newest generation that does not open and out of which nothing was acknowledged
//! was not finished when the power went, and is made anew. Anything else that is wrong is damage. With
//! [`OnDamage::Refuse`] the open fails with an exact report; nothing is moved, removed or appended (sled itself may
//! rewrite its snapshot and the unreadable end of its file, as in every open). With [`OnDamage::Continue`] the
//! survivors are written to a new generation, damaged parts are moved to `quarantine/`, and only then the mark
//! declares the rest finished; interrupted, it is simply done again.
//!
//! What comes out is what is needed, in the order in which it was appended: of an entry that is closed only the
//! `Closed`, of an open one every record from its `Intent` on. An intent that comes twice for one version replaces the
//! entry.

mod codec;
mod committer;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod generation;
mod inbox;
mod index;
mod mark;
mod reclaim;
mod recovery;
mod retention;
mod row;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use seawall_actors::config::{ConfigProblem, check_range};
use seawall_actors::journal::{
    Appended, Journal, JournalError, JournalProgress, JournalRecord, LossReport, Retained, RetentionError,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use self::codec::Encoded;
use self::committer::Committer;
use self::inbox::{Command, Reply};
use crate::guard::{FaultHook, GuardOptions, OpenError};

/// How the journal uses the disk. The defaults were measured; there is seldom a reason to change them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// Records after which a new generation begins. Default 50 000, range 1 to 10 000 000.
    pub generation_entries: usize,
    /// Bytes on disk after which a new generation begins. Default 64 MiB, range 1 MiB to 16 GiB.
    pub generation_bytes: u64,
    /// How long a commit waits for more appends to share its sync. Default 20 µs, range 0 to 10 ms; 100 µs is
    /// already slower.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// Appends that share a commit at the most. Default 256, range 1 to 65 536.
    pub max_batch: usize,
    /// How long a note waits for an append to ride along with. Default 50 ms, range 1 ms to 10 s.
    #[serde(with = "humantime_serde")]
    pub idle_note_delay: Duration,
    /// Bytes of pages that sled keeps in memory. Default 8 MiB, range 1 MiB to 1 GiB.
    pub cache_bytes: u64,
    /// How long an open waits for another process to let go of the journal. Default 2 s, range 0 to 1 min.
    #[serde(with = "humantime_serde")]
    pub lock_patience: Duration,
    /// Finished operations whose outcome is kept: [`QueueConfig::outcomes`](seawall_actors::journal::QueueConfig),
    /// set by whoever opens the journal. Default 10 000.
    #[serde(skip)]
    pub outcomes: usize,
    /// How long finished entries are kept: [`QueueConfig::retention`](seawall_actors::journal::QueueConfig), set by
    /// whoever opens the journal. Default 0: not at all.
    #[serde(skip)]
    pub retention: Duration,
    /// Bytes on disk up to which they are:
    /// [`QueueConfig::retention_bytes`](seawall_actors::journal::QueueConfig), set by whoever opens the journal.
    #[serde(skip)]
    pub retention_bytes: u64,
}

impl JournalConfig {
    /// Adds everything that is wrong with these values, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let (ms, minute) = (Duration::from_millis(1), Duration::from_secs(60));
        check_range(path, "generation_entries", self.generation_entries, 1..=10_000_000, problems);
        check_range(path, "generation_bytes", self.generation_bytes, 1 << 20..=16 << 30, problems);
        check_range(path, "linger", self.linger, Duration::ZERO..=10 * ms, problems);
        check_range(path, "max_batch", self.max_batch, 1..=65_536, problems);
        check_range(path, "idle_note_delay", self.idle_note_delay, ms..=10_000 * ms, problems);
        check_range(path, "cache_bytes", self.cache_bytes, 1 << 20..=1 << 30, problems);
        check_range(path, "lock_patience", self.lock_patience, Duration::ZERO..=minute, problems);
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            generation_entries: 50_000,
            generation_bytes: 64 << 20,
            linger: Duration::from_micros(20),
            max_batch: 256,
            idle_note_delay: Duration::from_millis(50),
            cache_bytes: 8 << 20,
            lock_patience: Duration::from_secs(2),
            outcomes: 10_000,
            retention: Duration::ZERO,
            retention_bytes: 1 << 30,
        }
    }
}

/// What an open does when acknowledged rows are missing or damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDamage {
    /// Fail with the report, so that a person decides: restore a copy, or continue.
    #[default]
    Refuse,
    /// Move the damaged parts aside, go on with what is left, and report what is not.
    Continue,
}

/// Why the journal was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalOpenError {
    /// Another process, or another handle in this one, has it open. Nothing was written.
    #[error("the journal in `{}` is open in another process; stop that one, or give this one its own data directory", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Acknowledged rows are missing or damaged.
    #[error(
        "the journal in `{}` is damaged ({} row ranges lost; {}); restore it, or go on without them with `OnDamage::Continue`",
        dir.display(), report.rows.len(), report.findings.first().map_or("", String::as_str)
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is lost.
        report: LossReport,
    },
    /// The operating system refused.
    #[error("cannot open the journal in `{}`: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl JournalOpenError {
    fn from_guard(error: OpenError, dir: &Path) -> Self {
        match error {
            OpenError::Locked { dir } => Self::Locked { dir },
            OpenError::Io { dir, source } => Self::Io { dir, source },
            error @ OpenError::Damaged { .. } => Self::Io { dir: dir.to_owned(), source: io::Error::other(error) },
        }
    }
}

/// What an open found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// Every record that is still needed, in the order in which they were appended.
    pub records: Vec<JournalRecord>,
    /// What is lost. Empty unless the journal was damaged and [`OnDamage::Continue`] given.
    pub loss: LossReport,
}

/// What was asked for, once and for all.
#[derive(Clone)]
struct Settings {
    config: JournalConfig,
    guard: GuardOptions,
    clock: retention::Clock,
}

/// What can be told without asking the thread.
#[derive(Debug, Default)]
struct Counters {
    submitted: AtomicU64,
    answered: AtomicU64,
    commits: AtomicU64,
    disk_bytes: AtomicU64,
    generations: AtomicU32,
    retained_entries: AtomicU64,
    retained_bytes: AtomicU64,
    retention_cuts: AtomicU64,
    failed: AtomicBool,
}

/// The journal on sled. See the [module](self).
///
/// Dropped without [`close`](Journal::close), it still commits what was appended, a little later.
pub struct SledJournal {
    commands: Sender<Command>,
    counters: Arc<Counters>,
    retains: bool,
}

impl SledJournal {
    /// Opens the journal in this directory, or creates both. Blocks, for about 3 s per million
    /// open entries.
    ///
    /// # Errors
    /// See [`JournalOpenError`].
    pub fn open(dir: &Path, config: JournalConfig, on_damage: OnDamage) -> Result<(Self, Recovered), JournalOpenError> {
        Self::open_with_faults(dir, config, on_damage, None)
    }

    /// The same on a disk that fails where the hook says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[doc(hidden)]
    pub fn open_with_faults(
        dir: &Path,
        config: JournalConfig,
        on_damage: OnDamage,
        fault: Option<Arc<dyn FaultHook>>,
    ) -> Result<(Self, Recovered), JournalOpenError> {
        Self::open_by_clock(dir, config, on_damage, fault, retention::clock())
    }

    fn open_by_clock(
        dir: &Path,
        config: JournalConfig,
        on_damage: OnDamage,
        fault: Option<Arc<dyn FaultHook>>,
        clock: retention::Clock,
    ) -> Result<(Self, Recovered), JournalOpenError> {
        let retains = !config.retention.is_zero();
        let (cache_bytes, lock_patience) = (config.cache_bytes, config.lock_patience);
        let guard = GuardOptions { cache_bytes, lock_patience, fault, ..GuardOptions::append_only() };
        let settings = Settings { config, guard, clock };
        let mut opened = recovery::open(dir, &settings, on_damage)?;
        let recovered = std::mem::take(&mut opened.recovered);
        let counters = Arc::new(Counters::default());
        let (commands, inbox) = channel();
        let committer =
            Committer::new(dir.to_owned(), settings, opened, (commands.clone(), inbox), Arc::clone(&counters));
        let panicked = Arc::clone(&counters);
        let thread = move || {
            if catch_unwind(AssertUnwindSafe(|| committer.run())).is_err() {
                panicked.failed.store(true, Ordering::Release);
                tracing::error!("the journal's committer panicked; restart to open the journal again");
            }
        };
        let spawned = std::thread::Builder::new().name("seawall-journal".into()).spawn(thread);
        spawned.map_err(|source| JournalOpenError::Io { dir: dir.to_owned(), source })?;
        Ok((Self { commands, counters, retains }, recovered))
    }
}

#[async_trait]
impl Journal for SledJournal {
    fn append(&self, records: Vec<JournalRecord>) -> Appended {
        let (sender, appended) = oneshot::channel();
        self.counters.submitted.fetch_add(1, Ordering::Relaxed);
        let reply = Reply::new(sender, Arc::clone(&self.counters));
        match records.iter().map(Encoded::of).collect() {
            // A closed journal gives the command back; dropping it answers.
            Ok(records) => drop(self.commands.send(Command::Append(records, reply))),
            Err(reason) => reply.answer(Err(JournalError::Failed(reason))),
        }
        appended
    }

    fn note(&self, records: Vec<JournalRecord>) {
        match records.iter().map(Encoded::of).collect() {
            Ok(records) => drop(self.commands.send(Command::Note(records))),
            Err(reason) => tracing::error!(reason, "a note cannot be kept"),
        }
    }

    fn retains(&self) -> bool {
        self.retains
    }

    async fn retained(&self, since: SystemTime) -> Result<Retained, RetentionError> {
        if !self.retains {
            return Err(RetentionError::Off);
        }
        let (sender, retained) = oneshot::channel();
        // A closed journal gives the command back, and with it the sender.
        let _ = self.commands.send(Command::Retained(since, sender));
        retained.await.unwrap_or(Err(RetentionError::Journal(JournalError::Closed)))
    }

    fn progress(&self) -> JournalProgress {
        let Counters { submitted, answered, commits, disk_bytes, generations, failed, .. } = &*self.counters;
        // The answers first: an append that is answered in between is then not counted as answered before submitted.
        let answered = answered.load(Ordering::Acquire);
        JournalProgress {
            submitted: submitted.load(Ordering::Acquire),
            answered,
            failed: failed.load(Ordering::Acquire),
            commits: commits.load(Ordering::Relaxed),
            disk_bytes: disk_bytes.load(Ordering::Relaxed),
            generations: generations.load(Ordering::Relaxed),
            retained_entries: self.counters.retained_entries.load(Ordering::Relaxed),
            retained_bytes: self.counters.retained_bytes.load(Ordering::Relaxed),
            retention_cuts: self.counters.retention_cuts.load(Ordering::Relaxed),
        }
    }

    async fn close(&self) {
        let (sender, closed) = oneshot::channel();
        if self.commands.send(Command::Close(sender)).is_ok() {
            // An error means that it was closed by somebody else meanwhile.
            let _ = closed.await;
        }
    }
}

impl Drop for SledJournal {
    fn drop(&mut self) {
        let (sender, _) = oneshot::channel();
        // Closed already, perhaps.
        let _ = self.commands.send(Command::Close(sender));
    }
}

impl fmt::Debug for SledJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SledJournal").field(&self.progress()).finish()
    }
}
