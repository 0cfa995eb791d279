//! The service that is cut off. It says everything on its standard output, a line at a time:
//!
//! ```text
//! ready          the stores and the runtime are open
//! drain          the store that was down is back, and is given what it is owed
//! a 17           operation 17 is asked for
//! h 17 203       … and acknowledged, at version 203
//! r 17           … or refused
//! u 17           … or its outcome is not known
//! x text         something is wrong that can be seen from here
//! ```

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use seawall::backend::ErrorKind;
use seawall::backends::{Fault, FaultPlan, Op, Ops};
use seawall::fallback::Mode;
use seawall::operation::{Change, OperationId, Version, Write};
use seawall::record::{Key, Properties, Record};
use seawall::{Handle, Refusal};

use super::site::Site;

/// Names the job of a process that is to be a writer.
pub const JOB: &str = "SEAWALL_TORTURE_JOB";
/// Keys that are written to.
const KEYS: u64 = 48;
/// Callers at the same time.
const CALLERS: u64 = 8;
/// Operations in one run at the most, so that all of their outcomes are remembered.
const OPERATIONS: u64 = 2_500;
/// How many writes wait for the store that is down before it comes back.
const BACKLOG: u64 = 250;

/// What the service is doing when it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Writes, with a store that fails now and then.
    Load,
    /// A store that was down is given what it is owed.
    Drain,
    /// Small generations: the journal rolls, carries forward and deletes all the time.
    Compaction,
    /// Sagas that fail half-way and are undone.
    Saga,
    /// It is only just opening.
    Open,
}

impl Scene {
    pub const ALL: [Self; 5] = [Self::Load, Self::Drain, Self::Compaction, Self::Saga, Self::Open];

    pub fn name(self) -> &'static str {
        ["load", "drain", "compaction", "saga", "open"][self as usize]
    }

    /// Records in a generation of the journal.
    pub fn generation(self) -> usize {
        if self == Self::Compaction { 40 } else { 400 }
    }
}

/// What a writer is told to do.
#[derive(Clone, Debug)]
pub struct Job {
    pub dir: PathBuf,
    pub scene: Scene,
    pub seed: u64,
    /// Its first operation.
    pub first: u64,
}

impl Job {
    pub fn to_text(&self) -> String {
        format!("{} {} {} {}", self.scene.name(), self.seed, self.first, self.dir.display())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let scene = parts.next()?;
        Some(Self {
            scene: Scene::ALL.into_iter().find(|known| known.name() == scene)?,
            seed: parts.next()?.parse().ok()?,
            first: parts.next()?.parse().ok()?,
            dir: parts.next()?.into(),
        })
    }

    /// The job of this process, if it was started as a writer.
    pub fn of_this_process() -> Option<Self> {
        Self::parse(&std::env::var(JOB).ok()?)
    }

    /// Does it, until somebody ends the process.
    pub fn run(self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(work(self));
    }
}

/// What an operation changes, which follows from its number alone.
pub fn changes(operation: u64) -> Vec<Change> {
    let mut random = fastrand::Rng::with_seed(operation);
    let count = if random.u32(..10) < 7 { 1 } else { random.usize(2..5) };
    let mut keys: Vec<u64> = Vec::new();
    while keys.len() < count {
        let key = random.u64(..KEYS);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.into_iter().map(|key| change(format!("key-{key}").into(), operation, &mut random)).collect()
}

fn change(key: Key, operation: u64, random: &mut fastrand::Rng) -> Change {
    match random.u32(..20) {
        0..3 => Change::Delete { key },
        3..8 => {
            let name = format!("merged-{}", random.u32(..4));
            Change::Merge { key, properties: Properties::new().with(name, operation) }
        }
        kind => {
            let bytes = if kind == 19 { random.usize(4_000..12_000) } else { random.usize(..400) };
            let embedding: Vec<f32> = (0..4).map(|_| random.f32()).collect();
            let record = Record::new(key).with("n", operation).with("text", "x".repeat(bytes));
            Change::put(record.with_embedding(embedding))
        }
    }
}

/// The id of an operation.
pub fn id(operation: u64) -> OperationId {
    OperationId::from(u128::from(operation))
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: the end is near.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

async fn work(job: Job) {
    // A test harness has begun a line.
    say("");
    let site = match open(&job.dir, job.scene).await {
        Ok(site) => Arc::new(site),
        Err(reason) => return say(&format!("x does not open: {reason}")),
    };
    say("ready");
    let mut random = fastrand::Rng::with_seed(job.seed);
    let next = Arc::new(AtomicU64::new(job.first));
    prepare(&site, &job, &next, &mut random).await;
    let mut callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (handle, next, until) = (site.runtime.handle(), Arc::clone(&next), job.first + OPERATIONS);
            let random = fastrand::Rng::with_seed(random.u64(..));
            tokio::spawn(call(handle, next, until, random))
        })
        .collect();
    if matches!(job.scene, Scene::Compaction | Scene::Load) {
        callers.push(tokio::spawn(come_and_go(Arc::clone(&site), random)));
    }
    for caller in callers {
        if caller.await.is_err() {
            say("x a caller panicked");
        }
    }
    std::future::pending::<()>().await;
}

async fn open(dir: &Path, scene: Scene) -> Result<Site, String> {
    Site::open(dir, scene.generation()).await
}

/// Sets the scene.
async fn prepare(site: &Site, job: &Job, next: &AtomicU64, random: &mut fastrand::Rng) {
    let control = site.runtime.control();
    let mode = match job.scene {
        Scene::Saga => Mode::Disabled,
        Scene::Drain | Scene::Compaction => Mode::QueueWrites,
        Scene::Load | Scene::Open => [Mode::Disabled, Mode::QueueWrites, Mode::LocalStorage][random.usize(..3)],
    };
    if control.set_mode(mode, "the scene", None).await.is_err() {
        say("x the mode cannot be set");
    }
    let slow = Fault::Slow(Duration::from_millis(3));
    match job.scene {
        Scene::Load | Scene::Open => {
            let plan = FaultPlan::new()
                .with(Op::Apply, 0.02, Fault::Error(ErrorKind::Transient))
                .with(Op::Apply, 0.02, Fault::AppliedReplyLost)
                .with(Op::Apply, 0.01, Fault::LateZombie(Duration::from_millis(15)))
                .with(Op::Apply, 0.05, slow);
            site.graph_faults.replan(job.seed, plan.clone());
            site.vector_faults.replan(!job.seed, plan);
        }
        Scene::Saga => {
            let plan = FaultPlan::new()
                .with(Op::Apply, 0.2, Fault::Error(ErrorKind::Refused))
                .with(Op::Apply, 0.1, Fault::Error(ErrorKind::Permanent))
                .with(Op::Apply, 0.1, Fault::AppliedReplyLost)
                .with(Op::Apply, 0.2, slow);
            site.vector_faults.replan(job.seed, plan);
        }
        Scene::Drain => {
            let faults = if random.bool() { &site.graph_faults } else { &site.vector_faults };
            faults.set(Ops::ALL, Fault::Down);
            let until = job.first + BACKLOG;
            let callers = (0..CALLERS).map(|_| one_after_the_other(site.runtime.handle(), next, until));
            futures::future::join_all(callers).await;
            say("drain");
            faults.heal(Ops::ALL);
        }
        Scene::Compaction => {}
    }
}

async fn one_after_the_other(handle: Handle, next: &AtomicU64, until: u64) {
    loop {
        let operation = next.fetch_add(1, Ordering::Relaxed);
        if operation >= until {
            return;
        }
        write(&handle, operation).await;
    }
}

/// Stores that are gone for a moment, over and over.
async fn come_and_go(site: Arc<Site>, mut random: fastrand::Rng) {
    loop {
        let faults = if random.bool() { &site.graph_faults } else { &site.vector_faults };
        faults.set(Ops::ALL, Fault::Down);
        tokio::time::sleep(Duration::from_millis(random.u64(5..60))).await;
        faults.heal(Ops::ALL);
        tokio::time::sleep(Duration::from_millis(random.u64(20..120))).await;
    }
}

/// One caller: writes, and reads what it wrote.
async fn call(handle: Handle, next: Arc<AtomicU64>, until: u64, mut random: fastrand::Rng) {
    loop {
        let operation = next.fetch_add(1, Ordering::Relaxed);
        if operation >= until {
            return;
        }
        let version = write(&handle, operation).await;
        if let Some(version) = version
            && random.u32(..4) == 0
        {
            read(&handle, operation, version).await;
        }
        if version.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn write(handle: &Handle, operation: u64) -> Option<Version> {
    say(&format!("a {operation}"));
    let batch = Write::store_batch([]).with_operation(id(operation)).with_timeout(Duration::from_secs(5));
    let answer = handle.write(Write { changes: changes(operation), ..batch }).await;
    match answer {
        Ok(receipt) => {
            say(&format!("h {operation} {}", receipt.version.0));
            Some(receipt.version)
        }
        Err(Refusal::Unknown { .. }) => {
            say(&format!("u {operation}"));
            None
        }
        Err(_) => {
            say(&format!("r {operation}"));
            None
        }
    }
}

/// A read gives what was acknowledged, or something newer.
async fn read(handle: &Handle, operation: u64, version: Version) {
    let Some(change) = changes(operation).into_iter().next() else { return };
    let key = change.key().clone();
    match handle.retrieve(key.clone()).await {
        Ok(read) if read.version.unwrap_or_default() < version => {
            let got = read.version.unwrap_or_default();
            say(&format!("x a read of {key} gave {got} from {:?} after {version}", read.source));
        }
        _ => {}
    }
}
