//! What properties are tried on: a fresh backend, with words for what is done to it and expected of it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Subject;
use crate::backend::{Applied, Backend, BackendError, Fence, FencedWrite, Role, Stored};
use crate::operation::{Change, OperationId, Version};
use crate::record::{Key, Properties, Record};

/// How long something that has to come may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// How much of a record is shown.
const SHOWN: usize = 400;

/// Whether a property was seen to hold.
pub(super) type Checked<T = ()> = Result<T, Failure>;

pub(super) enum Failure {
    Broken(String),
    Skipped(&'static str),
}

/// Ends the attempt unless this is so.
macro_rules! ensure {
    ($holds:expr, $($told:tt)+) => {
        if !$holds {
            return Err($crate::conformance::ground::Failure::Broken(format!($($told)+)));
        }
    };
}
pub(super) use ensure;

/// A backend over an empty store.
pub(super) struct Ground {
    pub(super) backend: Arc<dyn Backend>,
    /// It is a copy, which may not know of everything.
    pub(super) copy: bool,
}

impl Ground {
    pub(super) async fn open(subject: &dyn Subject) -> Checked<Self> {
        let opened = subject.open().await;
        let backend = opened.map_err(|error| Failure::Broken(format!("no backend was opened: {error}")))?;
        let copy = backend.role() == Role::BestEffort;
        Ok(Self { backend, copy })
    }

    /// A write that has to be taken.
    pub(super) async fn apply(&self, write: &FencedWrite) -> Checked<Option<Version>> {
        let applied = self.backend.apply(write).await;
        let failed = |error| Failure::Broken(format!("{} fails: {error}", name(write)));
        applied.map(|Applied { superseded_by }| superseded_by).map_err(failed)
    }

    /// The same, which has to say what stood in its way.
    pub(super) async fn told(&self, write: &FencedWrite, in_the_way: Option<u64>) -> Checked {
        let told = self.apply(write).await?;
        let expected = in_the_way.map(Version);
        ensure!(told == expected, "{} is told to be superseded by {told:?}, not by {expected:?}", name(write));
        Ok(())
    }

    pub(super) async fn put(&self, version: u64, record: &Record) -> Checked {
        self.told(&write(version, [Change::put(record.clone())]), None).await
    }

    pub(super) async fn delete(&self, version: u64, key: &str) -> Checked {
        self.told(&write(version, [Change::Delete { key: key.into() }]), None).await
    }

    pub(super) async fn read(&self, keys: &[Key]) -> Checked<Vec<Option<Stored>>> {
        let stored = self.backend.read(keys).await;
        let stored = stored.map_err(|error| Failure::Broken(format!("a read fails: {error}")))?;
        ensure!(stored.len() == keys.len(), "a read of {} keys gives {} answers", keys.len(), stored.len());
        for (key, stored) in keys.iter().zip(&stored) {
            let record = stored.as_ref().and_then(|stored| stored.record.as_ref());
            let wrong = record.filter(|record| record.key != *key);
            ensure!(wrong.is_none(), "a read of {key:?} gives the record of another key");
        }
        Ok(stored)
    }

    pub(super) async fn held(&self, key: impl Into<Key>) -> Checked<Option<Stored>> {
        Ok(self.read(&[key.into()]).await?.into_iter().next().flatten())
    }

    /// This record has to be there, with this version.
    pub(super) async fn holds(&self, version: u64, record: &Record, when: &str) -> Checked {
        let held = self.held(record.key.clone()).await?;
        let expected = Some(Stored { version: Version(version), record: Some(record.clone()) });
        same(&record.key, held.as_ref(), expected.as_ref(), when)
    }

    /// There has to be a tombstone with this version.
    pub(super) async fn holds_delete(&self, version: u64, key: &str, when: &str) -> Checked {
        let held = self.held(key).await?;
        let expected = Stored { version: Version(version), record: None };
        same(&key.into(), held.as_ref(), Some(&expected), when)
    }

    /// Nothing may be known of this key; a copy may also have a tombstone.
    pub(super) async fn holds_nothing(&self, key: &str, when: &str) -> Checked {
        let held = self.held(key).await?;
        match held {
            Some(Stored { record: None, .. }) if self.copy => Ok(()),
            held => same(&key.into(), held.as_ref(), None, when),
        }
    }
}

/// A live write with these changes.
pub(super) fn write(version: u64, changes: impl Into<Arc<[Change]>>) -> FencedWrite {
    fenced(version, Fence::Write, changes)
}

/// A compensation with these changes.
pub(super) fn compensation(version: u64, changes: impl Into<Arc<[Change]>>) -> FencedWrite {
    fenced(version, Fence::Compensation, changes)
}

pub(super) fn fenced(version: u64, fence: Fence, changes: impl Into<Arc<[Change]>>) -> FencedWrite {
    FencedWrite { operation: OperationId::generate(), version: Version(version), fence, changes: changes.into() }
}

/// A small record that can be told from another of its key.
pub(super) fn record(key: &str, n: u64) -> Record {
    Record::new(key).with("n", n)
}

pub(super) fn merge(key: &str, properties: Properties) -> Change {
    Change::Merge { key: key.into(), properties }
}

pub(super) fn delete(key: &str) -> Change {
    Change::Delete { key: key.into() }
}

/// What a write is called in a report.
fn name(write: &FencedWrite) -> String {
    let kinds = write.changes.iter().map(|change| match change {
        Change::Put(record) => format!("put of {:?}", record.key),
        Change::Merge { key, .. } => format!("merge into {key:?}"),
        Change::Delete { key } => format!("delete of {key:?}"),
    });
    let kinds: Vec<_> = kinds.collect();
    let fence = match write.fence {
        Fence::Write => "",
        Fence::Compensation => ", a compensation",
    };
    let mut shown = kinds.join(" and ");
    if shown.len() > SHOWN {
        shown = format!("a batch of {}", write.changes.len());
    }
    format!("{} ({shown}{fence})", write.version)
}

/// What is held has to be this, to the last bit.
pub(super) fn same(key: &Key, held: Option<&Stored>, expected: Option<&Stored>, when: &str) -> Checked {
    let alike = match (held, expected) {
        (Some(held), Some(expected)) => held.version == expected.version && alike(held, expected),
        (None, None) => true,
        _ => false,
    };
    let (held, expected) = (show(held), show(expected));
    let key: String = key.as_str().chars().take(40).collect();
    ensure!(alike, "{when}, under {key:?} there is {held}, and there should be {expected}");
    Ok(())
}

fn alike(one: &Stored, other: &Stored) -> bool {
    match (&one.record, &other.record) {
        (Some(one), Some(other)) => records_alike(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Equality takes 0.0 for -0.0; the bits and the text do not.
pub(super) fn records_alike(one: &Record, other: &Record) -> bool {
    let bits = |record: &Record| {
        let embedding = record.embedding.as_ref();
        embedding.map(|embedding| embedding.as_slice().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    one == other && bits(one) == bits(other) && json(&one.properties) == json(&other.properties)
}

fn json(properties: &Properties) -> String {
    let object = properties.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    Value::Object(object).to_string()
}

/// Nothing here is a secret: the suite made it.
fn show(stored: Option<&Stored>) -> String {
    let Some(Stored { version, record }) = stored else { return "nothing".to_owned() };
    let Some(record) = record else { return format!("{version} deleted") };
    let embedding = record.embedding.as_ref().map(|embedding| format!(" at {:?}", embedding.as_slice()));
    let relations: Vec<_> = record.relations.iter().map(|to| format!("{}->{}", to.kind, to.to)).collect();
    let shown = format!("{version} {}{} {relations:?}", json(&record.properties), embedding.unwrap_or_default());
    shown.chars().take(SHOWN).collect()
}

/// Tries until this succeeds. Gives the last error when it never does.
pub(super) async fn until<T, F>(what: &str, attempt: impl Fn() -> F) -> Checked<T>
where
    F: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => {
                ensure!(started.elapsed() < PATIENCE, "{what} does not come within {PATIENCE:?}: {error}");
            }
        }
        sleep(LOOK).await;
    }
}

/// A word for what came of a call.
pub(super) fn told<T>(result: &Result<T, BackendError>) -> String {
    match result {
        Ok(_) => "success".to_owned(),
        Err(error) => format!("{error}"),
    }
}
