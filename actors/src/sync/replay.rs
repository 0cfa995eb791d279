//! Giving stores again what they have lost of finished writes.

use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use crate::backend::BackendName;
use crate::event::EventKind;
use crate::journal::{JournalError, JournalRecord, Redriven, Retained, RetentionError, appended};
use crate::limits::InvalidInput;
use crate::operation::Version;
use crate::plane::DataPlane;
use crate::record::Key;

/// Keys whose writes are owed again in one step.
const KEYS: usize = 64;

/// How soon a step that finds no room, or keys that are being written, is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// What is owed again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Finished writes that were found.
    pub entries: usize,
    /// Keys that they changed: what is owed again is one change for each, and for each backend.
    pub keys: usize,
    /// The backends.
    pub backends: Vec<BackendName>,
}

/// Why nothing, or not all, is owed again. What is, is harmless; asking again is, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The finished writes are not there.
    #[error(transparent)]
    Retention(#[from] RetentionError),
    /// There is no such backend, or it is only told of writes.
    #[error(transparent)]
    Backend(#[from] InvalidInput),
    /// Another replay is under way.
    #[error("another replay is under way; ask again when it has returned")]
    Running,
    /// The journal failed in the middle.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Nobody follows any more when this goes.
struct Following<'a>(&'a DataPlane);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.ledger().unfollow();
    }
}

/// Makes the backends (all that are required, when none are named) owe again what was finished since then, as ordinary
/// owed writes: durable when this returns, drained behind live traffic, and read meanwhile.
///
/// Goes on until it is done or dropped: it waits for compensations that are owed of the same keys, and while the queue is
/// half full it waits for the drain, so that live writes find room. Interrupted, by a crash too, it has done no harm, and
/// is to be asked for again.
///
/// # Errors
/// See [`ReplayError`].
pub async fn replay_since(
    plane: &DataPlane,
    since: SystemTime,
    backends: &[BackendName],
) -> Result<Replayed, ReplayError> {
    let backends = targets(plane, backends)?;
    // First, so that nothing ends unseen between the journal and the ledger.
    let unfinished = plane.ledger().follow().ok_or(ReplayError::Running)?;
    let _following = Following(plane);
    let mut retained = plane.journal.retained(since).await?;
    unfinished.into_iter().for_each(|key| retained.touch(key));
    let mut replayed = Replayed { entries: retained.entries(), keys: 0, backends };
    plane.events.publish(EventKind::ReplayStarted { backends: replayed.backends.clone(), entries: replayed.entries });
    loop {
        let keys = retained.keys();
        if keys.is_empty() {
            break;
        }
        let mut owed = 0;
        for keys in keys.chunks(KEYS) {
            owed += step(plane, &mut retained, keys, &replayed.backends).await?;
        }
        replayed.keys += owed;
        if owed == 0 {
            sleep(AGAIN).await;
        }
    }
    plane.events.publish(EventKind::ReplayOwed { backends: replayed.backends.clone(), keys: replayed.keys });
    Ok(replayed)
}

fn targets(plane: &DataPlane, named: &[BackendName]) -> Result<Vec<BackendName>, ReplayError> {
    let required: Vec<BackendName> = plane.required().map(|store| store.name.clone()).collect();
    match named.iter().find(|name| !required.contains(name)) {
        Some(unknown) => Err(InvalidInput::UnknownBackend(unknown.to_string()).into()),
        None if named.is_empty() => Ok(required),
        None => Ok(named.to_vec()),
    }
}

/// Makes what is known of some keys owed, but for those that are being written just now. Gives how many are.
async fn step(
    plane: &DataPlane,
    retained: &mut Retained,
    keys: &[Key],
    backends: &[BackendName],
) -> Result<usize, ReplayError> {
    while !has_room(plane) {
        gather(plane, retained);
        sleep(AGAIN).await;
    }
    let _locked = plane.locks.lock(keys.iter().cloned()).await;
    let (mut versions, mut owed): (Vec<Version>, usize) = (Vec::new(), 0);
    let append = {
        let mut ledger = plane.ledger();
        for (intent, ending) in ledger.followed() {
            retained.meanwhile(&intent, ending);
        }
        for key in keys {
            let Some(history) = retained.history(key) else { continue };
            let came: Vec<Redriven> = backends
                .iter()
                .map(|backend| ledger.redrive(key, history, retained.base(key, backend), backend))
                .collect();
            versions.extend(came.iter().filter_map(|came| match came {
                Redriven::Owed(version) => Some(*version),
                Redriven::Nothing | Redriven::Busy => None,
            }));
            if !came.contains(&Redriven::Busy) {
                owed += usize::from(came.iter().any(|came| matches!(came, Redriven::Owed(_))));
                retained.forget(key);
            }
        }
        versions.sort_unstable();
        versions.dedup();
        // Under the lock: what changes of the entries afterwards is written down afterwards.
        let records: Vec<JournalRecord> = versions.iter().flat_map(|version| ledger.records_of(*version)).collect();
        (!records.is_empty()).then(|| plane.journal.append(records))
    };
    if let Some(append) = append {
        let written = appended(append).await;
        if written.is_err() {
            plane.unwritten.notify_one();
        }
        written?;
        let mut ledger = plane.ledger();
        versions.iter().for_each(|version| {
            ledger.set_durable(*version);
        });
    }
    plane.work.send_replace(());
    Ok(owed)
}

/// Half of the queue is left to live writes.
fn has_room(plane: &DataPlane) -> bool {
    let ledger = plane.ledger();
    let limits = ledger.limits();
    ledger.len() <= limits.max_entries / 2 && ledger.bytes() <= limits.max_bytes / 2
}

fn gather(plane: &DataPlane, retained: &mut Retained) {
    let ended = plane.ledger().followed();
    ended.iter().for_each(|(intent, ending)| retained.meanwhile(intent, *ending));
}
