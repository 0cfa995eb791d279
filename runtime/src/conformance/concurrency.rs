//! Calls at the same time, and calls that nobody waits for.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::task::JoinSet;

use super::Subject;
use super::ground::{Checked, Failure, Ground, ensure, record, until, write};
use crate::backend::{Backend, Stored};
use crate::operation::Change;
use crate::record::{Key, Record};

/// Polls of one call after which it is taken to be one that ends by itself.
const POLLS: usize = 200;
const WRITERS: u64 = 16;
const WRITES: u64 = 8;

/// Polls a call up to so many times and drops it then, where it waits. `None` if it was dropped.
async fn polled<F: Future>(call: F, times: usize) -> Option<F::Output> {
    if times == 0 {
        return None;
    }
    let (mut call, mut left) = (pin!(call), times);
    poll_fn(|context| {
        left -= 1;
        match call.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

fn version(held: &Option<Stored>) -> u64 {
    held.as_ref().map_or(0, |held| held.version.0)
}

pub(super) async fn cancellation(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let anchor = record("anchor", 1).with("text", "x".repeat(10_000));
    ground.put(1, &anchor).await?;
    let keys: [Key; 2] = ["a".into(), "b".into()];
    for (polls, n) in (0..POLLS).zip(10..) {
        let batch = write(n, [Change::put(record("a", n)), Change::put(record("b", n))]);
        let ended = polled(ground.backend.apply(&batch), polls).await.is_some();
        // Calls that came to nothing have to be in nobody's way.
        let _ = polled(ground.backend.read(std::slice::from_ref(&anchor.key)), polls).await;
        ground.holds(1, &anchor, &format!("after calls were dropped at await {polls}")).await?;
        until("a whole write, or none,", || async {
            let held = ground.backend.read(&keys).await.map_err(|error| error.to_string())?;
            match (version(&held[0]), version(&held[1])) {
                // A copy may take what it was told and not waited for as a reason to answer nothing.
                (a, b) if a == b => Ok(()),
                (a, b) => {
                    Err(format!("after a batch was dropped at await {polls}, its keys have versions {a} and {b}"))
                }
            }
        })
        .await?;
        ground.apply(&batch).await?;
        ground.holds(n, &record("a", n), "after the dropped write came again").await?;
        ground.holds(n, &record("b", n), "after the dropped write came again").await?;
        if ended {
            return Ok(());
        }
    }
    Err(Failure::Broken(format!("a write does not end within {POLLS} polls")))
}

pub(super) async fn writers(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let backend = Arc::clone(&ground.backend);
        tasks.spawn(async move {
            for n in 0..WRITES {
                // Neighbours in version are written by different writers, newer ones first by every other. The highest
                // comes first of all: whoever has looked before it came must not go over it.
                let turn = if writer % 2 == 1 { n } else { WRITES - 1 - n };
                let version = version_of(writer, turn);
                let changes =
                    [Change::put(record("one", version)), Change::put(record(&format!("own {writer}"), turn))];
                retried(Arc::clone(&backend), version, changes.into()).await?;
            }
            Ok(())
        });
    }
    finish(tasks).await?;
    let highest = WRITERS * WRITES;
    ground.holds(highest, &record("one", highest), "after many writers").await?;
    for writer in 0..WRITERS {
        let (turn, version) = (WRITES - 1, version_of(writer, WRITES - 1));
        ground.holds(version, &record(&format!("own {writer}"), turn), "after many writers").await?;
    }
    Ok(())
}

fn version_of(writer: u64, turn: u64) -> u64 {
    WRITERS - writer + turn * WRITERS
}

/// A store may turn down a write that meets another one, and be asked again.
async fn retried(backend: Arc<dyn Backend>, version: u64, changes: Arc<[Change]>) -> Checked {
    let batch = write(version, changes);
    let written = until("a write beside others", async || match backend.apply(&batch).await {
        Err(error) if error.verdict().hopeless => Ok(Err(error)),
        Err(error) => Err(error.to_string()),
        Ok(applied) => Ok(Ok(applied)),
    });
    written.await?.map_err(|error| Failure::Broken(format!("a write beside others fails: {error}")))?;
    Ok(())
}

async fn finish(mut tasks: JoinSet<Checked>) -> Checked {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Failure::Broken(format!("a call panicked: {error}")))??;
    }
    Ok(())
}

pub(super) async fn batches(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let keys: Vec<Key> = (0..5).map(|n| Key::from(format!("k{n}"))).collect();
    let at = |n: u64| keys.iter().map(|key| Change::put(Record::new(key.clone()).with("n", n))).collect::<Vec<_>>();
    ground.told(&write(1, at(1)), None).await?;
    let mut tasks = JoinSet::new();
    for writer in 0..4 {
        let (backend, batches) = (Arc::clone(&ground.backend), (0..WRITES).map(|n| 2 + writer + 4 * n));
        let batches: Vec<_> = batches.map(|version| (version, at(version))).collect();
        tasks.spawn(async move {
            for (version, mut changes) in batches {
                // Stores that lock keys have to get along with any order of them.
                let places = changes.len() as u64;
                changes.rotate_left(usize::try_from(version % places).unwrap_or_default());
                retried(Arc::clone(&backend), version, changes.into()).await?;
            }
            Ok(())
        });
    }
    if subject.reads_at_one_instant() {
        for _ in 0..2 {
            let (backend, keys, copy) = (Arc::clone(&ground.backend), keys.clone(), ground.copy);
            tasks.spawn(async move {
                for _ in 0..3 * WRITES {
                    let held = backend.read(&keys).await;
                    let held = held.map_err(|error| Failure::Broken(format!("a read beside writes fails: {error}")))?;
                    let mut versions: Vec<_> = held.iter().map(version).collect();
                    versions.retain(|version| !copy || *version > 0);
                    versions.dedup();
                    ensure!(versions.len() <= 1, "a reader sees parts of batches: versions {versions:?}");
                    tokio::task::yield_now().await;
                }
                Ok(())
            });
        }
    }
    finish(tasks).await?;
    let newest = 1 + 4 * WRITES;
    for key in &keys {
        ground.holds(newest, &Record::new(key.clone()).with("n", newest), "after batches that raced").await?;
    }
    Ok(())
}
