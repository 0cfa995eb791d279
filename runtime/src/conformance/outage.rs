//! A store that is out, and comes back.

use std::time::Duration;

use tokio::time::timeout;

use super::ground::{Checked, Failure, Ground, ensure, record, told, until, write};
use super::{Outage, Subject, Supported};
use crate::backend::{Applied, BackendError, ErrorKind, Happened, Stored};
use crate::operation::Change;

/// How long a call is waited for that may never end.
const PATIENCE: Duration = Duration::from_millis(500);
/// Calls, each of which has to say what happened to it.
const CALLS: u64 = 8;

/// What came of a call; `None` if it was dropped.
type Called = Option<Result<Applied, BackendError>>;

pub(super) async fn during(subject: &dyn Subject, outage: Outage) -> Checked {
    let ground = Ground::open(subject).await?;
    let before = record("before", 1);
    ground.put(1, &before).await?;
    ground.put(1, &record("a", 1)).await?;
    if subject.begin(outage).await == Supported::No {
        return Err(Failure::Skipped("this outage cannot be had here"));
    }
    // One key for each call, so that each is seen by itself.
    let mut calls: Vec<(String, Called)> = Vec::new();
    for n in 0..CALLS {
        let key = format!("during {n}");
        let batch = write(10, [Change::put(record(&key, n))]);
        let called = timeout(PATIENCE, ground.backend.apply(&batch)).await.ok();
        calls.push((key, called));
    }
    let verdict = judge(outage, &calls);
    let probed = timeout(PATIENCE, ground.backend.probe()).await;
    subject.end(outage).await;
    verdict?;
    if outage != Outage::Reset {
        ensure!(!matches!(probed, Ok(Ok(_))), "a store that is out is told to be well: {probed:?}");
    }
    afterwards(&ground, &calls).await?;
    match ground.held("before").await? {
        None if ground.copy => Ok(()),
        _ => ground.holds(1, &before, "after an outage").await,
    }
}

/// Whether the calls were told as what they were.
fn judge(outage: Outage, calls: &[(String, Called)]) -> Checked {
    for (_, called) in calls {
        let Some(called) = called else {
            ensure!(outage != Outage::Refused, "a call to a dead server does not end within {PATIENCE:?}");
            continue;
        };
        let fine = match (outage, called.as_ref().map_err(|error| error.kind)) {
            // It may have found out that it was done, by asking again.
            (Outage::Reset, Ok(_)) => true,
            (_, Err(ErrorKind::Transient | ErrorKind::Unknown)) => true,
            _ => false,
        };
        ensure!(fine, "a call to a store that is out ({outage:?}) is told as {}", told(called));
    }
    // The first ones may have been on their way when it died.
    let last = calls.last().and_then(|(_, called)| called.as_ref());
    if let (Outage::Refused, Some(last)) = (outage, last) {
        let transient = last.as_ref().is_err_and(|error| error.kind == ErrorKind::Transient);
        ensure!(transient, "a refused connection is told as {}", told(last));
    }
    Ok(())
}

/// The store is back: every call has to have done what it was told to have done, and works when it comes again.
async fn afterwards(ground: &Ground, calls: &[(String, Called)]) -> Checked {
    until("a write after the outage", || async {
        let again = ground.backend.apply(&write(11, [Change::put(record("a", 11))])).await;
        again.map_err(|error| error.to_string())
    })
    .await?;
    ground.holds(11, &record("a", 11), "after an outage").await?;
    for (n, (key, called)) in (0..).zip(calls) {
        let held = ground.held(key.as_str()).await?;
        let there = matches!(&held, Some(Stored { record: Some(_), .. }));
        match called {
            Some(Ok(_)) => ensure!(there || ground.copy, "a write that was told as success is not there"),
            Some(Err(error)) if error.verdict().happened == Happened::No => {
                ensure!(!there, "a write that was told not to have happened is there: {error}");
            }
            _ => {}
        }
        ground.apply(&write(10, [Change::put(record(key, n))])).await?;
        match ground.held(key.as_str()).await? {
            None if ground.copy => {}
            _ => ground.holds(10, &record(key, n), "after a write of the outage came again").await?,
        }
    }
    Ok(())
}
