//! What clients saw, and whether a store that keeps its promises could have shown them that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use seawall::Refusal;
use seawall::operation::{Change, Held, OperationId, Outcome, Receipt, Retrieved, Version, Write};
use seawall::record::{Key, Record};

/// What a client was last told of an operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// Nothing: the process died before.
    Nothing,
    /// It is held.
    Held(Version),
    /// It is held in memory.
    Volatile(Version),
    /// Nothing of it will ever be there.
    Refused(String),
    /// Nobody knows.
    Unknown,
}

struct Operation {
    changes: Vec<Change>,
    told: Told,
    /// Told to be unknown at some time, or not answered: a later refusal of a retry says nothing of the first try.
    ever_unknown: bool,
}

struct Read {
    key: Key,
    version: Version,
    record: Option<Record>,
}

#[derive(Default)]
struct Log {
    operations: HashMap<OperationId, Operation>,
    /// The newest acknowledged version of each key.
    floor: HashMap<Key, Version>,
    reads: Vec<Read>,
    tainted: HashSet<Key>,
    problems: Vec<String>,
}

/// The history of one run.
#[derive(Default)]
pub(crate) struct History(Mutex<Log>);

/// What a store holds of each key.
pub(crate) type Contents = BTreeMap<Key, (Version, Option<Record>)>;

impl History {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client sends a write, perhaps not for the first time.
    pub(crate) fn asked(&self, write: &Write) {
        let mut log = self.log();
        let fresh = || Operation { changes: write.changes.clone(), told: Told::Nothing, ever_unknown: false };
        let operation = log.operations.entry(write.operation).or_insert_with(fresh);
        operation.ever_unknown |= operation.told == Told::Nothing;
        operation.told = Told::Nothing;
    }

    /// It was answered.
    pub(crate) fn told(&self, operation: OperationId, answer: &Result<Receipt, Refusal>) {
        let mut log = self.log();
        let told = match answer {
            Ok(Receipt { version, held: Held::Volatile { .. }, .. }) => Told::Volatile(*version),
            Ok(Receipt { version, .. }) => Told::Held(*version),
            Err(Refusal::Unknown { .. }) => Told::Unknown,
            Err(refusal) => Told::Refused(refusal.to_string()),
        };
        let Some(known) = log.operations.get_mut(&operation) else { return };
        known.ever_unknown |= told == Told::Unknown;
        known.told = told.clone();
        let keys: Vec<Key> = known.changes.iter().map(|change| change.key().clone()).collect();
        if let Told::Held(version) | Told::Volatile(version) = told {
            for key in keys {
                let floor = log.floor.entry(key).or_default();
                *floor = (*floor).max(version);
            }
        }
    }

    /// What a read of this key that begins now has to show at least.
    pub(crate) fn floor(&self, key: &Key) -> Version {
        self.log().floor.get(key).copied().unwrap_or_default()
    }

    /// A read was answered.
    pub(crate) fn read(&self, key: &Key, floor: Version, answer: Retrieved) {
        let mut log = self.log();
        let version = answer.version.unwrap_or_default();
        if version < floor && !log.tainted.contains(key) {
            let problem = format!("a read of {key} gave {version} from {:?} after {floor}", answer.source);
            log.problems.push(problem);
        }
        if !answer.partial {
            log.reads.push(Read { key: key.clone(), version, record: answer.record });
        }
    }

    /// A backend will never take this write: the key is no longer one that both stores have to agree on.
    pub(crate) fn parked(&self, operation: OperationId) {
        let mut log = self.log();
        let keys = log.operations.get(&operation).map(|known| known.changes.clone()).unwrap_or_default();
        log.tainted.extend(keys.iter().map(|change| change.key().clone()));
    }

    /// Something that must not happen did.
    pub(crate) fn problem(&self, problem: String) {
        self.log().problems.push(problem);
    }

    /// What was acknowledged in memory only is gone with its process.
    pub(crate) fn forget_volatile(&self) {
        let mut log = self.log();
        log.floor.clear();
        log.reads.clear();
        for operation in log.operations.values_mut() {
            if matches!(operation.told, Told::Volatile(_)) {
                operation.told = Told::Unknown;
                operation.ever_unknown = true;
            }
        }
    }

    /// Judges the end: what became of each operation, and what each store holds of each key.
    pub(crate) fn judge(&self, outcome: impl Fn(OperationId) -> Outcome, stores: &[(&str, Contents)]) -> Vec<String> {
        let log = self.log();
        let mut problems = Vec::new();
        let mut effects: BTreeMap<Key, BTreeMap<Version, Change>> = BTreeMap::new();
        for (id, operation) in &log.operations {
            let outcome = outcome(*id);
            let tainted = operation.changes.iter().any(|change| log.tainted.contains(change.key()));
            if let Some(problem) = contradiction(operation, &outcome)
                && !tainted
            {
                problems.push(format!("{id}: {problem}"));
            }
            if let Outcome::Committed(version) = outcome {
                for change in &operation.changes {
                    let of_key = effects.entry(change.key().clone()).or_default();
                    if of_key.insert(version, change.clone()).is_some() {
                        problems.push(format!("two operations share {version} of {}", change.key()));
                    }
                }
            }
        }
        for (key, effects) in effects.iter().filter(|(key, _)| !log.tainted.contains(key)) {
            let expected = fold(effects, Version(u64::MAX));
            for (store, held) in stores {
                let record = held.get(key).and_then(|(_, record)| record.clone());
                if record != expected {
                    let what = if record.is_none() { "lost" } else { "wrong" };
                    let held = held.get(key).map(|(version, _)| *version).unwrap_or_default();
                    let newest = effects.keys().next_back().copied().unwrap_or_default();
                    problems.push(format!(
                        "{store} has {key} {what} at {held}, newest effect {newest}: {} instead of {}",
                        show(record.as_ref()),
                        show(expected.as_ref())
                    ));
                }
            }
        }
        for read in log.reads.iter().filter(|read| !log.tainted.contains(&read.key)) {
            let Some(effects) = effects.get(&read.key) else { continue };
            if effects.contains_key(&read.version) && fold(effects, read.version) != read.record {
                problems.push(format!(
                    "a read of {} at {} gave {} instead of {}",
                    read.key,
                    read.version,
                    show(read.record.as_ref()),
                    show(fold(effects, read.version).as_ref())
                ));
            }
        }
        problems
    }

    /// What must not have happened and did.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.log().problems.clone()
    }

    /// How many operations were told to be held, refused, unknown.
    pub(crate) fn counts(&self) -> [usize; 3] {
        let log = self.log();
        let count = |wanted: fn(&Told) -> bool| log.operations.values().filter(|known| wanted(&known.told)).count();
        [
            count(|told| matches!(told, Told::Held(_) | Told::Volatile(_))),
            count(|told| matches!(told, Told::Refused(_))),
            count(|told| matches!(told, Told::Unknown | Told::Nothing)),
        ]
    }
}

fn contradiction(operation: &Operation, outcome: &Outcome) -> Option<String> {
    let fits = match (&operation.told, outcome) {
        (_, Outcome::Pending { .. } | Outcome::Compensating { .. } | Outcome::DeadLetter { .. }) => false,
        (Told::Held(told) | Told::Volatile(told), Outcome::Committed(version)) => told == version,
        (Told::Held(_) | Told::Volatile(_), _) => false,
        (Told::Refused(_), Outcome::Committed(_)) => operation.ever_unknown,
        (Told::Refused(_) | Told::Unknown | Told::Nothing, _) => true,
    };
    (!fits).then(|| format!("told {:?}, and in the end it is {outcome:?}", operation.told))
}

fn fold(effects: &BTreeMap<Version, Change>, up_to: Version) -> Option<Record> {
    effects.range(..=up_to).fold(None, |record, (_, change)| change.apply_to(record))
}

fn show(record: Option<&Record>) -> String {
    let properties = |record: &Record| {
        let pairs: Vec<String> = record.properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{{{}}}", pairs.join(" "))
    };
    record.map_or_else(|| "nothing".to_owned(), properties)
}
