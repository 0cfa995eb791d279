//! What clients and stores saw, and whether a store that keeps its promises could have shown them that.
//!
//! | rule | judged |
//! |---|---|
//! | a read gives what was acknowledged before it began, or something newer, or is refused; or it is a best-effort copy's, and says so | at each read |
//! | what was acknowledged is there in the end, once, with the version of its receipt | in the end |
//! | what was refused is nowhere | in the end |
//! | what is unknown is in all stores or in none | in the end |
//! | every store holds the fold of what is there, in the order of the versions; so deletes stay deleted | in the end |
//! | what a read showed is the fold up to its version | in the end |
//! | only what a store calls hopeless becomes a dead letter | at once |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use seawall::Refusal;
use seawall::backend::Fence;
use seawall::ledger::{JournalRecord, TRIED_AGAIN};
use seawall::operation::{Change, Held, OperationId, Outcome, Receipt, Retrieved, Source, Version, Write};
use seawall::record::{Key, Record};

use crate::scene::locked;
use crate::store::{COPY, Landing};

#[derive(Default)]
struct Operation {
    changes: Vec<Change>,
    /// Its receipt, durable or not.
    held: Option<Version>,
    volatile: bool,
    /// Refused at least once.
    refused: bool,
    /// At least one try was not answered, or with "unknown".
    unclear: bool,
    /// Tries that are not answered yet.
    open: u32,
    /// The versions with which stores were called for it.
    sent: BTreeSet<Version>,
}

struct Read {
    key: Key,
    version: Version,
    record: Option<Record>,
    /// This version was acknowledged when it was read. What is not may be on its way out, and look as if it was never
    /// there.
    acknowledged: bool,
    /// What older writes did to the key of which nobody was told how they end: it may land after this, and what was
    /// owed in memory only may be forgotten.
    unclear: Vec<(Version, Change)>,
}

#[derive(Default)]
struct Log {
    operations: BTreeMap<OperationId, Operation>,
    /// The newest acknowledged version of each key: what survives the process, and all.
    durable_floor: BTreeMap<Key, Version>,
    floor: BTreeMap<Key, Version>,
    /// The newest delete of each key that a store has forgotten.
    forgotten: BTreeMap<Key, Version>,
    reads: Vec<Read>,
    /// Keys of which nothing is promised any more: a person has to look, or the process took what was in its memory
    /// only.
    tainted: BTreeSet<Key>,
    problems: Vec<String>,
    counts: Counts,
}

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) committed: u64,
    pub(crate) queued: u64,
    pub(crate) volatile: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) unanswered: u64,
    pub(crate) reads: u64,
    pub(crate) reads_refused: u64,
    pub(crate) crashes: u64,
    pub(crate) landings: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { writes, committed, queued, volatile, refused, unknown, unanswered, .. } = other;
        self.writes += writes;
        self.committed += committed;
        self.queued += queued;
        self.volatile += volatile;
        self.refused += refused;
        self.unknown += unknown;
        self.unanswered += unanswered;
        self.reads += other.reads;
        self.reads_refused += other.reads_refused;
        self.crashes += other.crashes;
        self.landings += other.landings;
    }
}

/// Of which keys nothing is promised after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taint {
    /// Of none.
    Nothing,
    /// Those of writes that were in memory only, and may be half done.
    Forgotten,
    /// Those of all writes that were not acknowledged: with overlapped durability, what is undone may be found again.
    Unacknowledged,
}

/// What a store holds in the end of each key, and which writes went over what was there.
pub(crate) struct Holding {
    pub(crate) store: String,
    pub(crate) records: BTreeMap<Key, Option<Record>>,
    pub(crate) landings: Vec<Landing>,
}

/// The history of one run.
#[derive(Default)]
pub(crate) struct History(Mutex<Log>);

impl History {
    fn log(&self) -> MutexGuard<'_, Log> {
        locked(&self.0)
    }

    pub(crate) fn problem(&self, problem: String) {
        self.log().problems.push(problem);
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.log().problems.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.log().counts
    }

    /// A client sends a write, perhaps not for the first time.
    pub(crate) fn asked(&self, write: &Write) {
        let mut log = self.log();
        log.counts.writes += 1;
        let operation = log.operations.entry(write.operation).or_default();
        operation.changes.clone_from(&write.changes);
        operation.open += 1;
    }

    /// A client waits no longer.
    pub(crate) fn gave_up(&self, operation: OperationId) {
        let mut log = self.log();
        log.counts.unanswered += 1;
        if let Some(operation) = log.operations.get_mut(&operation) {
            operation.open -= 1;
            operation.unclear = true;
        }
    }

    /// A try was answered.
    pub(crate) fn told(&self, id: OperationId, answer: &Result<Receipt, Refusal>) {
        let log = &mut *self.log();
        let Some(operation) = log.operations.get_mut(&id) else { return };
        operation.open -= 1;
        match answer {
            Ok(Receipt { version, held, .. }) => {
                // A person may have discarded it in between.
                let discarded = operation.changes.iter().any(|change| log.tainted.contains(change.key()));
                if let Some(before) = operation.held.replace(*version)
                    && before != *version
                    && !discarded
                {
                    log.problems.push(format!("{id} was acknowledged as {before}, and then as {version}"));
                }
                operation.volatile = matches!(held, Held::Volatile { .. });
                for change in &operation.changes {
                    raise(&mut log.floor, change.key(), *version);
                    if !operation.volatile {
                        raise(&mut log.durable_floor, change.key(), *version);
                    }
                }
                match held {
                    Held::Committed => log.counts.committed += 1,
                    Held::Queued { .. } => log.counts.queued += 1,
                    Held::Volatile { .. } => log.counts.volatile += 1,
                }
            }
            Err(Refusal::Unknown { .. }) => {
                operation.unclear = true;
                log.counts.unknown += 1;
            }
            Err(_) => {
                operation.refused = true;
                log.counts.refused += 1;
            }
        }
    }

    /// A store is called for an operation.
    pub(crate) fn sent(&self, operation: OperationId, version: Version) {
        if let Some(operation) = self.log().operations.get_mut(&operation) {
            operation.sent.insert(version);
        }
    }

    /// Something is written to the journal.
    pub(crate) fn noted(&self, record: &JournalRecord) {
        let JournalRecord::DeadLetter { version, backend, reason } = record else { return };
        let log = &mut *self.log();
        if !reason.contains("Permanent") && reason != TRIED_AGAIN {
            log.problems.push(format!("{version} became a dead letter of {backend}: {reason}"));
        }
    }

    /// A backend will never take this write: what its keys are is for a person to decide.
    pub(crate) fn parked(&self, operation: OperationId) {
        let log = &mut *self.log();
        if let Some(operation) = log.operations.get(&operation) {
            log.tainted.extend(operation.changes.iter().map(|change| change.key().clone()));
        }
    }

    pub(crate) fn is_tainted(&self, key: &Key) -> bool {
        self.log().tainted.contains(key)
    }

    /// What a read of this key that begins now has to show at least.
    pub(crate) fn floor(&self, key: &Key) -> Version {
        self.log().floor.get(key).copied().unwrap_or_default()
    }

    /// A store forgets that a key was deleted at this version.
    pub(crate) fn forgot(&self, key: &Key, version: Version) {
        let mut log = self.log();
        let forgotten = log.forgotten.entry(key.clone()).or_default();
        *forgotten = version.max(*forgotten);
    }

    /// A read was answered. `copies`: there is a best-effort store.
    pub(crate) fn read(&self, key: &Key, floor: Version, answer: Option<Retrieved>, copies: bool) {
        let log = &mut *self.log();
        log.counts.reads += 1;
        let Some(answer) = answer else {
            log.counts.reads_refused += 1;
            return;
        };
        // Of what a store has forgotten, nobody knows the version any more.
        let forgotten = || log.forgotten.get(key).copied().unwrap_or_default();
        let version = answer.version.unwrap_or_else(forgotten);
        // A copy may have missed what it was told, and after a crash it is not known whether what is owed is still owed:
        // when nobody else can be asked, that is said.
        let excused = answer.stale
            && match &answer.source {
                Source::Backend(name) => *name == COPY.into(),
                Source::Owed => copies || log.counts.crashes > 0,
                Source::Cache { .. } => false,
            };
        if version < floor && !excused && !log.tainted.contains(key) {
            log.problems.push(format!(
                "a read of {key} gave {version} from {:?}{} after {floor} was acknowledged",
                answer.source,
                if answer.stale { ", stale," } else { "" }
            ));
        }
        // What is called stale may have missed anything, but for what was cached.
        if !answer.partial && (!answer.stale || matches!(answer.source, Source::Cache { .. })) {
            let acknowledged = log.floor.get(key).is_some_and(|floor| *floor >= version);
            let unclear = log
                .operations
                .values()
                .filter(|operation| operation.unclear && operation.held.is_none())
                .flat_map(|operation| {
                    let change = operation.changes.iter().find(|change| change.key() == key);
                    let sent = operation.sent.range(..version);
                    change.into_iter().flat_map(move |change| sent.clone().map(|version| (*version, change.clone())))
                })
                .collect();
            log.reads.push(Read { key: key.clone(), version, record: answer.record, acknowledged, unclear });
        }
    }

    /// The process is gone, and left these records.
    pub(crate) fn crashed(&self, left: &[JournalRecord], taint: Taint) {
        let log = &mut *self.log();
        log.counts.crashes += 1;
        let kept: BTreeSet<Version> = left
            .iter()
            .filter_map(|record| match record {
                JournalRecord::Intent(intent) => Some(intent.version),
                JournalRecord::Closed { version, .. } => Some(*version),
                _ => None,
            })
            .collect();
        let mut lost = BTreeSet::new();
        for operation in log.operations.values_mut() {
            log.counts.unanswered += u64::from(operation.open);
            operation.unclear |= operation.open > 0;
            operation.open = 0;
            if operation.volatile && operation.held.is_some_and(|held| !kept.contains(&held)) {
                (operation.held, operation.volatile, operation.unclear) = (None, false, true);
                lost.extend(operation.changes.iter().map(|change| change.key().clone()));
            }
            let forgotten = operation.sent.iter().any(|version| !kept.contains(version));
            if operation.held.is_none() && (taint == Taint::Unacknowledged || taint == Taint::Forgotten && forgotten) {
                log.tainted.extend(operation.changes.iter().map(|change| change.key().clone()));
            }
        }
        // What was read on top of what was in memory only cannot be told any more.
        log.reads.retain(|read| !lost.contains(&read.key));
        log.floor = log.durable_floor.clone();
    }

    /// Judges the end: what became of each operation, and what each store holds of each key. `remembers`: an outcome
    /// that is not known now was none.
    pub(crate) fn judge(&self, outcome: impl Fn(OperationId) -> Outcome, stores: &[Holding], remembers: bool) {
        let log = &mut *self.log();
        let mut problems = Vec::new();
        let mut effects: BTreeMap<Key, BTreeMap<Version, Change>> = BTreeMap::new();
        for (id, operation) in &log.operations {
            let outcome = outcome(*id);
            let tainted = operation.changes.iter().any(|change| log.tainted.contains(change.key()));
            let effect = match outcome {
                // The end of a write to a single store is not durable: of an earlier try more may be known than of it.
                Outcome::Committed(version) => Some(operation.held.filter(|_| !remembers).unwrap_or(version)),
                Outcome::RolledBack(version) if !remembers => {
                    operation.held.or_else(|| in_effect(stores, *id)).filter(|newer| *newer > version)
                }
                Outcome::NotFound if !remembers => operation.held.or_else(|| in_effect(stores, *id)),
                _ => None,
            };
            if !tainted && let Some(problem) = contradiction(operation, &outcome, effect) {
                problems.push(format!("{id}: {problem}"));
            }
            if !tainted && remembers {
                for Holding { store: name, landings, .. } in stores {
                    let versions = versions_in_effect(landings, *id);
                    if versions.len() > 1 {
                        problems.push(format!("{id} took effect in {name} more than once: {versions:?}"));
                    }
                }
            }
            let Some(version) = effect else { continue };
            // Of what nobody ever confirmed, a part may have come too late.
            let confirmed = operation.held.is_some() || matches!(outcome, Outcome::Committed(_));
            let landed = |change: &&Change| confirmed || went_over(stores, *id, version, change.key());
            for change in operation.changes.iter().filter(landed) {
                let of_key = effects.entry(change.key().clone()).or_default();
                if of_key.insert(version, change.clone()).is_some() {
                    problems.push(format!("two operations share {version} of {}", change.key()));
                }
            }
        }
        problems.extend(judge_stores(log, &effects, stores));
        problems.extend(judge_reads(log, &effects));
        log.counts.landings += stores.iter().map(|holding| holding.landings.len() as u64).sum::<u64>();
        log.problems.extend(problems);
    }
}

fn judge_stores(log: &Log, effects: &BTreeMap<Key, BTreeMap<Version, Change>>, stores: &[Holding]) -> Vec<String> {
    let mut problems = Vec::new();
    let nothing = BTreeMap::new();
    for Holding { store, records, .. } in stores {
        for (key, record) in records.iter().filter(|(key, _)| !log.tainted.contains(key)) {
            let effects = effects.get(key).unwrap_or(&nothing);
            let expected = fold(effects, Version(u64::MAX));
            if *record != expected {
                let newest = effects.keys().next_back().copied().unwrap_or_default();
                problems.push(format!(
                    "{store} holds {} under {key}, and not {} ({newest})",
                    show(record.as_ref()),
                    show(expected.as_ref())
                ));
            }
        }
    }
    problems
}

fn judge_reads(log: &Log, effects: &BTreeMap<Key, BTreeMap<Version, Change>>) -> Vec<String> {
    let mut problems = Vec::new();
    for read in log.reads.iter().filter(|read| !log.tainted.contains(&read.key)) {
        let Some(effects) = effects.get(&read.key) else { continue };
        // What was not acknowledged, and was then undone, may have been seen.
        if !effects.contains_key(&read.version) {
            continue;
        }
        let expected = fold(effects, read.version);
        if expected != read.record && !explained(read, effects) {
            problems.push(format!(
                "a read of {} at {} gave {} instead of {}",
                read.key,
                read.version,
                show(read.record.as_ref()),
                show(expected.as_ref())
            ));
        }
    }
    problems
}

/// Whether something that nobody was sure of was not there yet, or not any more, when this was read.
fn explained(read: &Read, effects: &BTreeMap<Version, Change>) -> bool {
    let own = effects.get(&read.version).filter(|_| !read.acknowledged).map(|change| (read.version, change.clone()));
    let unsure: Vec<_> = read.unclear.iter().cloned().chain(own).take(10).collect();
    (0_u32..1 << unsure.len()).any(|there| {
        let mut present = effects.clone();
        for (bit, (version, change)) in unsure.iter().enumerate() {
            match there & 1 << bit {
                0 => present.remove(version),
                _ => present.insert(*version, change.clone()),
            };
        }
        fold(&present, read.version) == read.record
    })
}

fn contradiction(operation: &Operation, outcome: &Outcome, effect: Option<Version>) -> Option<String> {
    let open = matches!(
        outcome,
        Outcome::Pending { .. } | Outcome::Compensating { .. } | Outcome::DeadLetter { .. } | Outcome::Discarded(_)
    );
    let fits = match (operation.held, effect) {
        _ if open => false,
        (Some(held), Some(effect)) => held == effect,
        (Some(_), None) => false,
        (None, Some(_)) => operation.unclear,
        (None, None) => true,
    };
    let Operation { held, refused, unclear, .. } = operation;
    (!fits).then(|| {
        format!(
            "acknowledged {held:?}, refused {refused}, unclear {unclear}; in the end {outcome:?}, effect {effect:?}"
        )
    })
}

/// The version by which an operation is in effect in one of the stores, if it is in any.
fn in_effect(stores: &[Holding], operation: OperationId) -> Option<Version> {
    stores.iter().flat_map(|holding| versions_in_effect(&holding.landings, operation)).max()
}

/// Whether an operation went over what was there under this key in one of the stores.
fn went_over(stores: &[Holding], operation: OperationId, version: Version, key: &Key) -> bool {
    let mut landings = stores.iter().flat_map(|holding| &holding.landings);
    landings.any(|landing| landing.operation == operation && landing.version == version && landing.keys.contains(key))
}

/// The versions by which an operation went over what was there, and was not taken back.
fn versions_in_effect(landings: &[Landing], operation: OperationId) -> BTreeSet<Version> {
    let mut versions = BTreeSet::new();
    for landing in landings.iter().filter(|landing| landing.operation == operation) {
        match landing.fence {
            Fence::Write => versions.insert(landing.version),
            Fence::Compensation => versions.remove(&landing.version),
        };
    }
    versions
}

fn raise(floors: &mut BTreeMap<Key, Version>, key: &Key, version: Version) {
    let floor = floors.entry(key.clone()).or_default();
    *floor = (*floor).max(version);
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
