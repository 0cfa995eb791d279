//! The one owner of a store's database: takes waiting jobs in order, writes that wait together in one commit, and
//! opens the database anew after a failure.
//!
//! It runs on the blocking pool while there are jobs, one at a time, so that no sled call is made on an async
//! worker and time that tests have paused does not run on meanwhile.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use seawall_actors::backend::{Applied, BackendError, ErrorKind, FencedWrite, Health};
use seawall_actors::operation::Version;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::rows::{Rows, WriteError};
use super::table::{Changes, Index, Table};
use crate::backends::StoreOpenError;
use crate::guard::GuardOptions;

/// Jobs that may wait. Admission in front of the store keeps it far below; this is the bound if nobody does.
const WAITING_MAX: usize = 10_000;
/// Writes in one commit, and about how many bytes of them, so that a commit stays well below a second.
const GROUP_WRITES: usize = 512;
const GROUP_BYTES: usize = 4 << 20;
/// How long a failed database is left alone, doubled with every failure in a row.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

pub(super) type Reply<T> = oneshot::Sender<Result<T, BackendError>>;

/// What the owner can be asked to do.
pub(super) enum Job {
    Apply(FencedWrite, Reply<Applied>),
    Probe(Reply<Health>),
    Sweep(Version, usize, Reply<usize>),
    Close(Reply<()>),
}

/// The way to the owner.
pub(super) struct Writer<I: Index> {
    queue: Mutex<Queue>,
    owner: Mutex<Owner<I>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    draining: bool,
}

impl<I: Index> Writer<I> {
    pub(super) fn new(owner: Owner<I>) -> Self {
        Self { queue: Mutex::default(), owner: Mutex::new(owner) }
    }

    /// Hands over a job and waits for its end. The job is done also when this future is dropped.
    pub(super) async fn ask<T>(self: &Arc<Self>, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, BackendError> {
        let (reply, answer) = oneshot::channel();
        self.submit(job(reply))?;
        answer.await.unwrap_or_else(|_| Err(BackendError::unknown("the store stopped before it answered")))
    }

    fn submit(self: &Arc<Self>, job: Job) -> Result<(), BackendError> {
        let mut queue = self.queue();
        if queue.waiting.len() >= WAITING_MAX {
            return Err(BackendError::refused("too many writes wait for the store").with_code("queue_full"));
        }
        queue.waiting.push_back(job);
        if !mem::replace(&mut queue.draining, true) {
            let draining = Draining { writer: Arc::clone(self), finished: false };
            tokio::task::spawn_blocking(move || draining.run());
        }
        Ok(())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to drain the queue. When its runtime ends before it ran, the jobs that it leaves are told.
struct Draining<I: Index> {
    writer: Arc<Writer<I>>,
    /// Whether the right was given back, so that another may have it by now.
    finished: bool,
}

impl<I: Index> Draining<I> {
    /// Does what waits. A panic costs the work in which it happens, and the database is read again.
    fn run(mut self) {
        let writer = Arc::clone(&self.writer);
        let mut owner = writer.owner.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(work) = self.next() {
            if catch_unwind(AssertUnwindSafe(|| owner.work(work))).is_err() {
                owner.fail(BackendError::transient("the store panicked and is being reopened").with_code("panicked"));
            }
        }
    }

    /// The next work. With none, draining ends in the same step, so that a job that comes later starts it again.
    fn next(&mut self) -> Option<Work> {
        let mut queue = self.writer.queue();
        let mut group = Vec::new();
        let mut bytes = 0;
        while group.len() < GROUP_WRITES && bytes < GROUP_BYTES {
            match queue.waiting.pop_front() {
                Some(Job::Apply(write, reply)) => {
                    bytes += write.changes.iter().map(|change| change.weight()).sum::<usize>();
                    group.push((write, reply));
                }
                Some(job) if group.is_empty() => return Some(Work::Single(job)),
                Some(job) => {
                    queue.waiting.push_front(job);
                    break;
                }
                None => break,
            }
        }
        if group.is_empty() {
            queue.draining = false;
            self.finished = true;
            return None;
        }
        Some(Work::Group(group))
    }
}

impl<I: Index> Drop for Draining<I> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut queue = self.writer.queue();
        queue.draining = false;
        let abandoned = mem::take(&mut queue.waiting);
        drop(queue);
        drop(abandoned);
    }
}

/// Writes that share a commit.
type Group = Vec<(FencedWrite, Reply<Applied>)>;

enum Work {
    Group(Group),
    Single(Job),
}

/// A caller that stopped waiting needs no answer.
fn answer<T>(reply: Reply<T>, answer: Result<T, BackendError>) {
    let _ = reply.send(answer);
}

/// The database and what is known of it.
pub(super) struct Owner<I: Index> {
    dir: PathBuf,
    kind: &'static str,
    options: GuardOptions,
    table: Arc<RwLock<Table<I>>>,
    disk: Disk,
    failures: u32,
}

enum Disk {
    Open(Rows),
    Failed { why: BackendError, retry_at: Instant },
    Closed,
}

impl<I: Index> Owner<I> {
    /// Opens the database and reads all of it.
    pub(super) fn open(
        dir: PathBuf,
        kind: &'static str,
        options: GuardOptions,
        index: I,
    ) -> Result<Self, StoreOpenError> {
        let (rows, loaded) = Rows::open(&dir, kind, options.clone())?;
        let table = Table::load(index, loaded.records, loaded.newest)
            .map_err(|reason| StoreOpenError::Unfit { dir: dir.clone(), reason })?;
        let table = Arc::new(RwLock::new(table));
        Ok(Self { dir, kind, options, table, disk: Disk::Open(rows), failures: 0 })
    }

    /// The records as they are visible.
    pub(super) fn table(&self) -> Arc<RwLock<Table<I>>> {
        Arc::clone(&self.table)
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Group(group) => self.apply(group),
            Work::Single(Job::Apply(write, reply)) => self.apply(vec![(write, reply)]),
            Work::Single(Job::Probe(reply)) => answer(reply, self.probe()),
            Work::Single(Job::Sweep(older_than, at_most, reply)) => answer(reply, self.sweep(older_than, at_most)),
            Work::Single(Job::Close(reply)) => {
                self.disk = Disk::Closed;
                answer(reply, Ok(()));
            }
        }
    }

    fn apply(&mut self, group: Group) {
        if let Err(error) = self.ready(Retry::AfterBackoff) {
            group.into_iter().for_each(|(_, reply)| answer(reply, Err(error.clone())));
            return;
        }
        let (planned, changes) = self.plan(group.iter().map(|(write, _)| write));
        let written = self.write(changes);
        for ((_, reply), planned) in group.into_iter().zip(planned) {
            answer(reply, planned.and_then(|applied| written.clone().map(|()| applied)));
        }
    }

    /// What each write is to be told once the changes are made, and those changes.
    fn plan<'a>(&self, writes: impl Iterator<Item = &'a FencedWrite>) -> (Vec<Result<Applied, BackendError>>, Changes) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut plan = table.plan();
        let planned = writes.map(|write| plan.add(write)).collect();
        (planned, plan.into_changes())
    }

    /// Makes changes durable, then visible. After a failure nobody knows whether they will be there.
    fn write(&mut self, changes: Changes) -> Result<(), BackendError> {
        let Disk::Open(rows) = &mut self.disk else {
            return Err(BackendError::transient("the store is closed").with_code("closed"));
        };
        if changes.is_empty() {
            return Ok(());
        }
        match rows.write(&changes) {
            Ok(()) => {
                self.table.write().unwrap_or_else(PoisonError::into_inner).install(changes);
                Ok(())
            }
            Err(error @ WriteError::Encode(_)) => Err(BackendError::transient(error.to_string()).with_code("encode")),
            Err(WriteError::Guard(error)) => {
                let unknown = BackendError::unknown(format!("the commit failed: {error}")).with_code("commit_failed");
                self.fail(
                    BackendError::transient(format!("the store has to be reopened: {error}")).with_code("failed"),
                );
                Err(unknown)
            }
        }
    }

    /// Healthy when a row can be written and read back, read-only when the rows can only be read.
    fn probe(&mut self) -> Result<Health, BackendError> {
        let probed = match self.ready(Retry::Now) {
            Ok(rows) => rows.probe(),
            Err(error) => return health_of(error),
        };
        let Err(error) = probed else { return Ok(Health::Healthy) };
        self.fail(BackendError::transient(error.to_string()).with_code("failed"));
        match self.ready(Retry::Now) {
            Ok(_) => Ok(Health::Healthy),
            Err(error) => health_of(error),
        }
    }

    fn sweep(&mut self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        self.ready(Retry::AfterBackoff)?;
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let keys = table.tombstones(older_than, at_most);
        drop(table);
        let swept = keys.len();
        if swept > 0 {
            self.write(keys.into_iter().map(|key| (key, None)).collect())?;
        }
        Ok(swept)
    }

    /// The open database; one that failed is opened anew.
    fn ready(&mut self, retry: Retry) -> Result<&mut Rows, BackendError> {
        if let Disk::Failed { why, retry_at } = &self.disk {
            let left = retry_at.saturating_duration_since(Instant::now());
            if retry == Retry::AfterBackoff && !left.is_zero() {
                return Err(why.clone().with_retry_after(left));
            }
            self.reopen();
        }
        match &mut self.disk {
            Disk::Open(rows) => Ok(rows),
            Disk::Failed { why, .. } => Err(why.clone()),
            Disk::Closed => Err(BackendError::transient("the store is closed").with_code("closed")),
        }
    }

    /// Reads everything again and tries a write. What was visible stays so until that succeeded.
    fn reopen(&mut self) {
        let opened = Rows::open(&self.dir, self.kind, self.options.clone()).map_err(|error| error.into_backend());
        let reopened = opened.and_then(|(mut rows, loaded)| {
            let index = self.table.read().unwrap_or_else(PoisonError::into_inner).index().emptied();
            let table = Table::load(index, loaded.records, loaded.newest)?;
            *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
            rows.probe().map_err(|error| {
                BackendError::read_only(format!("the store can be read but not written: {error}"))
                    .with_code("read_only")
            })?;
            Ok(rows)
        });
        match reopened {
            Ok(rows) => {
                tracing::info!(store = self.kind, dir = %self.dir.display(), "store reopened");
                self.disk = Disk::Open(rows);
                self.failures = 0;
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, why: BackendError) {
        tracing::warn!(store = self.kind, dir = %self.dir.display(), %why, failures = self.failures, "store failed");
        let backoff = BACKOFF.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.disk = Disk::Failed { why, retry_at: Instant::now() + backoff };
    }
}

impl<I: Index> Drop for Owner<I> {
    /// Closing a database writes: that is no work for an async worker.
    fn drop(&mut self) {
        let disk = mem::replace(&mut self.disk, Disk::Closed);
        if let (Disk::Open(_), Ok(runtime)) = (&disk, tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(disk));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    Now,
    AfterBackoff,
}

fn health_of(error: BackendError) -> Result<Health, BackendError> {
    if error.kind == ErrorKind::ReadOnly { Ok(Health::ReadOnly) } else { Err(error) }
}
