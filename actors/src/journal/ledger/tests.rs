//! The ledger against a model that remembers everything and works everything out anew; single cases are in `cases`.

mod cases;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::{Ledger, LegState, Overlay, Pending, Step, StepResult};
use crate::backend::{BackendName, Fence, FencedWrite, Stored};
use crate::journal::{Ending, Intent, JournalRecord, QueueConfig};
use crate::operation::{Change, OperationId, Outcome, Priority, Version};
use crate::record::{Key, Properties, Record};

const BACKENDS: [&str; 2] = ["graph", "vector"];
const KEYS: [&str; 3] = ["a", "b", "c"];

/// One thing that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Do {
    /// A saga begins: what kinds of change to which keys, and the backends that it would try at once.
    Begin {
        keys: Vec<(usize, u8)>,
        priority: Priority,
        tries: [bool; 2],
        durable: bool,
    },
    /// A leg of a saga ends: done, not done, or nobody knows.
    Leg {
        which: usize,
        backend: usize,
        end: u8,
    },
    /// A saga's caller gets its receipt before the saga has ended.
    Acknowledge(usize),
    /// A saga ends: it closes, lets go, or decides to undo.
    End {
        which: usize,
        undo: bool,
    },
    Take {
        backend: usize,
        undo: bool,
        most: usize,
    },
    /// A step is given back: done, not done, nobody knows, or never.
    Settle {
        which: usize,
        end: u8,
    },
    Revive(usize),
    Discard(usize),
    /// An entry is written down anew.
    Carry(usize),
    Crash,
}

fn any_do() -> impl Strategy<Value = Do> {
    let priority = prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
    let keys = prop::collection::vec((0..KEYS.len(), 0..4_u8), 1..3);
    let begin = (keys, priority, any::<[bool; 2]>(), prop::bool::weighted(0.8))
        .prop_map(|(keys, priority, tries, durable)| Do::Begin { keys, priority, tries, durable });
    let n = || 0..8_usize;
    prop_oneof![
        6 => begin,
        6 => (n(), 0..2_usize, 0..4_u8).prop_map(|(which, backend, end)| Do::Leg { which, backend, end }),
        1 => n().prop_map(Do::Acknowledge),
        6 => (n(), prop::bool::weighted(0.3)).prop_map(|(which, undo)| Do::End { which, undo }),
        6 => (0..2_usize, any::<bool>(), 1..4_usize).prop_map(|(backend, undo, most)| Do::Take { backend, undo, most }),
        6 => (n(), 0..8_u8).prop_map(|(which, end)| Do::Settle { which, end }),
        1 => n().prop_map(Do::Revive),
        1 => n().prop_map(Do::Discard),
        1 => n().prop_map(Do::Carry),
        1 => Just(Do::Crash),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Owed,
    InFlight,
    Done,
    UndoOwed,
    Undone,
    Dead,
}

#[derive(Clone, Debug)]
struct ModelEntry {
    intent: Arc<Intent>,
    legs: [State; 2],
    attempted: [bool; 2],
    failed: [u32; 2],
    decided: Option<Ending>,
    held: bool,
    acknowledged: bool,
    durable: bool,
    passable: bool,
}

/// All entries that are not closed, in order, and stores that do as they are told.
#[derive(Default)]
struct Model {
    entries: BTreeMap<Version, ModelEntry>,
    stores: [BTreeMap<Key, Stored>; 2],
    /// Writes that are meant to be there, in order: acknowledged, and not taken back.
    truth: BTreeMap<Version, Arc<[Change]>>,
    /// Keys of which a discarded write may be left somewhere.
    tainted: BTreeSet<Key>,
    /// Once something was discarded, the ledger may be more careful than it has to be.
    discarded: bool,
    closed: BTreeSet<Version>,
}

impl Model {
    fn changes<'a>(&'a self, entry: &'a ModelEntry) -> impl Iterator<Item = &'a Change> {
        entry.intent.changes.iter()
    }

    fn earlier(&self, key: &Key, version: Version) -> Vec<Version> {
        let has = |entry: &ModelEntry| entry.intent.changes.iter().any(|change| change.key() == key);
        self.entries.range(..version).filter(|(_, entry)| has(entry)).map(|(version, _)| *version).collect()
    }

    fn parked(&self, version: Version, backend: usize) -> bool {
        let entry = &self.entries[&version];
        entry.legs[backend] == State::Owed
            && self.changes(entry).filter(|change| !change.is_full()).any(|change| {
                self.earlier(change.key(), version)
                    .into_iter()
                    .any(|earlier| self.entries[&earlier].legs[backend] == State::Dead || self.parked(earlier, backend))
            })
    }

    /// 0: nothing has to wait, 1: merges, 2: everything.
    fn bar(&self, version: Version, backend: usize) -> u8 {
        match self.entries[&version].legs[backend] {
            State::Done | State::Undone => 0,
            State::Dead => 1,
            State::Owed if self.parked(version, backend) => 1,
            State::Owed | State::InFlight | State::UndoOwed => 2,
        }
    }

    fn is_ready(&self, version: Version, backend: usize, undo: bool) -> bool {
        let entry = &self.entries[&version];
        let wanted = if undo { State::UndoOwed } else { State::Owed };
        !entry.held
            && entry.legs[backend] == wanted
            && !self.changes(entry).any(|change| {
                let least = if undo || change.is_full() { 2 } else { 1 };
                self.earlier(change.key(), version).into_iter().any(|earlier| self.bar(earlier, backend) >= least)
            })
    }

    fn ready(&self, backend: usize, undo: bool) -> Vec<Version> {
        let mut ready: Vec<Version> =
            self.entries.keys().copied().filter(|version| self.is_ready(*version, backend, undo)).collect();
        ready.sort_by_key(|version| {
            let entry = &self.entries[version];
            (entry.failed[backend] / 8, Reverse(entry.intent.priority), *version)
        });
        ready
    }

    fn is_behind(&self, backend: usize, key: &Key) -> bool {
        self.earlier(key, Version(u64::MAX)).into_iter().any(|version| self.bar(version, backend) > 0)
    }

    fn overlay(&self, key: &Key) -> Option<Overlay> {
        let mut seen: Vec<(Pending, bool)> = Vec::new();
        for (version, entry) in &self.entries {
            if entry.held && !entry.acknowledged && entry.decided.is_none() {
                continue;
            }
            let source = match entry.decided {
                None => Some(&entry.intent.changes),
                Some(_) => entry.intent.undo.first().map(|(_, changes)| changes),
            };
            let change = source.and_then(|changes| changes.iter().find(|change| change.key() == key));
            let (version, undo) = (*version, entry.decided.is_some());
            seen.extend(change.map(|change| (Pending { version, change: change.clone(), undo }, entry.passable)));
        }
        let start = seen.iter().rposition(|(pending, _)| pending.change.is_full()).unwrap_or(0);
        let seen = seen.split_off(start);
        let passed = seen.iter().any(|(_, passable)| *passable);
        let changes: Vec<Pending> = seen.into_iter().map(|(pending, _)| pending).collect();
        (!changes.is_empty()).then_some(Overlay { changes, passed, recovered: false })
    }

    fn owed(&self, backend: usize) -> usize {
        let finished = |entry: &&ModelEntry| matches!(entry.legs[backend], State::Done | State::Undone);
        self.entries.values().filter(|entry| !finished(entry)).count()
    }

    fn dead(&self) -> Vec<(Version, usize)> {
        let legs = self.entries.iter().flat_map(|(version, entry)| {
            (0..2).filter(|backend| entry.legs[*backend] == State::Dead).map(|backend| (*version, backend))
        });
        legs.collect()
    }

    fn held(&self) -> Vec<Version> {
        self.entries.iter().filter(|(_, entry)| entry.held).map(|(version, _)| *version).collect()
    }

    /// What becomes of a leg that is told to be `state`, seen that its write may be being undone.
    fn set(&mut self, version: Version, backend: usize, state: State) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        let late = entry.decided.is_some() && matches!(state, State::Done | State::Owed);
        entry.legs[backend] = match (late, undo_of(&entry.intent, backend)) {
            (false, _) => state,
            (true, Some(_)) => State::UndoOwed,
            (true, None) if entry.legs[backend] == State::Undone => State::Undone,
            (true, None) => State::Dead,
        };
    }

    fn decide(&mut self, version: Version, ending: Ending) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        if entry.decided.replace(ending).is_some() {
            return;
        }
        for backend in 0..2 {
            let touched = entry.attempted[backend] || matches!(entry.legs[backend], State::Done | State::InFlight);
            entry.legs[backend] = match (touched, undo_of(&entry.intent, backend)) {
                (false, _) => State::Undone,
                (true, Some(_)) => State::UndoOwed,
                (true, None) => State::Dead,
            };
        }
        self.truth.remove(&version);
    }

    fn close_finished(&mut self, version: Version) {
        let Some(entry) = self.entries.get(&version) else { return };
        let goal = if entry.decided.is_some() { State::Undone } else { State::Done };
        if entry.legs == [goal; 2] {
            self.entries.remove(&version);
            self.closed.insert(version);
        }
    }

    fn release(&mut self, version: Version) {
        let Some(entry) = self.entries.get_mut(&version) else { return };
        entry.held = false;
        for backend in 0..2 {
            if entry.legs[backend] == State::InFlight {
                entry.attempted[backend] = true;
                entry.legs[backend] = if entry.decided.is_some() { State::UndoOwed } else { State::Owed };
            }
        }
        if entry.decided.is_none() {
            let changes = Arc::clone(&entry.intent.changes);
            self.truth.insert(version, changes);
        }
    }

    /// Marks what could be passed by now.
    fn mark(&mut self) {
        let versions: Vec<Version> = self.entries.keys().copied().collect();
        for version in versions {
            let stuck = (0..2)
                .any(|backend| self.entries[&version].legs[backend] == State::Dead || self.parked(version, backend));
            if let Some(entry) = self.entries.get_mut(&version) {
                entry.passable |= stuck;
            }
        }
    }

    fn apply(&mut self, backend: usize, version: Version, fence: Fence, changes: &Arc<[Change]>) {
        let write = FencedWrite { operation: OperationId::from(0), version, fence, changes: Arc::clone(changes) };
        for change in changes.iter() {
            let held = self.stores[backend].get(change.key()).cloned();
            let held = held.unwrap_or(Stored { version: Version(0), record: None });
            if write.passes(held.version) {
                let record = change.apply_to(held.record);
                self.stores[backend].insert(change.key().clone(), Stored { version, record });
            }
        }
    }

    /// What a key should be by all that was acknowledged.
    fn record(&self, key: &Key) -> Option<Record> {
        let changes = self.truth.values().flat_map(|changes| changes.iter()).filter(|change| change.key() == key);
        changes.fold(None, |record, change| change.apply_to(record))
    }
}

fn undo_of(intent: &Intent, backend: usize) -> Option<&Arc<[Change]>> {
    intent.undo.iter().find(|(name, _)| *name == name_of(backend)).map(|(_, changes)| changes)
}

fn name_of(backend: usize) -> BackendName {
    BACKENDS[backend].into()
}

/// The ledger, the model, and the journal between them and the next process.
struct Pair {
    ledger: Ledger,
    model: Model,
    log: Vec<JournalRecord>,
    steps: Vec<(usize, Step)>,
    next: u64,
}

impl Pair {
    fn new() -> Self {
        let ledger = Ledger::new(QueueConfig::default());
        Self { ledger, model: Model::default(), log: Vec::new(), steps: Vec::new(), next: 1 }
    }

    fn step(&mut self, what: Do) {
        match what {
            Do::Begin { keys, priority, tries, durable } => self.begin(&keys, priority, tries, durable),
            Do::Leg { which, backend, end } => self.leg(which, backend, end),
            Do::Acknowledge(which) => {
                let Some(version) = pick(&self.model.held(), which) else { return };
                let entry = self.model.entries.get_mut(&version).expect("it is held");
                if entry.durable && entry.decided.is_none() {
                    entry.acknowledged = true;
                    self.model.truth.insert(version, Arc::clone(&entry.intent.changes));
                    self.ledger.acknowledge(version);
                }
            }
            Do::End { which, undo } => {
                if let Some(version) = pick(&self.model.held(), which) {
                    self.end(version, undo);
                }
            }
            Do::Take { backend, undo, most } => self.take(backend, undo, most),
            Do::Settle { which, end } => {
                if !self.steps.is_empty() {
                    let (backend, step) = self.steps.remove(which % self.steps.len());
                    self.settle(backend, &step, end);
                }
            }
            Do::Revive(which) => {
                let Some((version, backend)) = pick(&self.model.dead(), which) else { return };
                let record = JournalRecord::Revived { version, backend: name_of(backend) };
                self.ledger.apply(&record);
                self.log.push(record);
                let undo = self.model.entries[&version].decided.is_some();
                self.model.set(version, backend, if undo { State::UndoOwed } else { State::Owed });
            }
            Do::Discard(which) => {
                if let Some((version, _)) = pick(&self.model.dead(), which) {
                    self.discard(version);
                }
            }
            Do::Carry(which) => {
                let all: Vec<Version> = self.model.entries.keys().copied().collect();
                let Some(version) = pick(&all, which) else { return };
                if !self.model.entries[&version].held {
                    self.log.extend(self.ledger.records_of(version));
                    self.ledger.set_durable(version);
                    self.model.entries.get_mut(&version).expect("it is there").durable = true;
                }
            }
            Do::Crash => self.crash(),
        }
    }

    fn begin(&mut self, keys: &[(usize, u8)], priority: Priority, tries: [bool; 2], durable: bool) {
        let chosen: BTreeMap<usize, u8> = keys.iter().copied().collect();
        let keys: Vec<Key> = chosen.keys().map(|key| Key::from(KEYS[*key])).collect();
        let held = self.model.entries.values().filter(|entry| entry.held);
        let locked =
            |key: &Key| held.clone().any(|entry| entry.intent.changes.iter().any(|change| change.key() == key));
        if keys.iter().any(locked) {
            return;
        }
        let version = Version(self.next);
        self.next += 1;
        let change = |(key, kind): (&usize, &u8)| match kind {
            0 => Change::Delete { key: KEYS[*key].into() },
            1 => Change::put(Record::new(KEYS[*key]).with("p", version.0)),
            kind => {
                let name = if *kind == 2 { "x" } else { "y" };
                Change::Merge { key: KEYS[*key].into(), properties: Properties::new().with(name, version.0) }
            }
        };
        let behind = |backend: usize| keys.iter().any(|key| self.model.is_behind(backend, key));
        let tried: Vec<usize> = (0..2).filter(|backend| tries[*backend] && !behind(*backend)).collect();
        let way_back = |backend: usize| -> Arc<[Change]> {
            let restore = |key: &Key| match self.model.stores[backend].get(key).and_then(|held| held.record.clone()) {
                Some(record) => Change::put(record),
                None => Change::Delete { key: key.clone() },
            };
            keys.iter().map(restore).collect()
        };
        let intent = Arc::new(Intent {
            version,
            operation: OperationId::from(u128::from(version.0)),
            priority,
            changes: chosen.iter().map(change).collect(),
            owes: (0..2).map(name_of).collect(),
            undo: tried.iter().map(|backend| (name_of(*backend), way_back(*backend))).collect(),
        });
        let now: Vec<BackendName> = tried.iter().map(|backend| name_of(*backend)).collect();
        self.ledger.begin(&intent, &now, durable);
        if durable {
            self.log.push(JournalRecord::Intent(Arc::clone(&intent)));
        }
        let legs = [0, 1].map(|backend| if tried.contains(&backend) { State::InFlight } else { State::Owed });
        let entry = ModelEntry {
            intent,
            legs,
            attempted: [false; 2],
            failed: [0; 2],
            decided: None,
            held: true,
            acknowledged: false,
            durable,
            passable: false,
        };
        self.model.entries.insert(version, entry);
    }

    fn leg(&mut self, which: usize, backend: usize, end: u8) {
        let tried: Vec<Version> = self
            .model
            .held()
            .into_iter()
            .filter(|version| self.model.entries[version].legs[backend] == State::InFlight)
            .filter(|version| self.model.entries[version].decided.is_none())
            .collect();
        let Some(version) = pick(&tried, which) else { return };
        let changes = Arc::clone(&self.model.entries[&version].intent.changes);
        // Done, done with a lost reply, perhaps but not, or surely not.
        if end <= 1 {
            self.model.apply(backend, version, Fence::Write, &changes);
        }
        let (done, perhaps) = (end == 0, end == 1 || end == 2);
        self.ledger.leg(version, &name_of(backend), done, perhaps);
        let entry = self.model.entries.get_mut(&version).expect("it is there");
        entry.attempted[backend] |= perhaps;
        entry.legs[backend] = if done { State::Done } else { State::Owed };
    }

    fn end(&mut self, version: Version, undo: bool) {
        let entry = &self.model.entries[&version];
        let (durable, acknowledged) = (entry.durable, entry.acknowledged);
        if undo && !acknowledged {
            let cause = name_of(0);
            self.ledger.decide(version, &cause, Ending::RolledBack);
            self.model.decide(version, Ending::RolledBack);
            let record = self.ledger.close(version).unwrap_or_else(|| {
                let (reason, ending) = (String::new(), Ending::RolledBack);
                JournalRecord::Decided { version, cause, reason, ending }
            });
            if durable {
                self.log.push(record);
            }
        } else {
            let done: Vec<usize> = (0..2).filter(|backend| entry.legs[*backend] == State::Done).collect();
            let all = done.len() == 2;
            self.model.truth.insert(version, Arc::clone(&entry.intent.changes));
            let closed = self.ledger.close(version);
            assert_eq!(closed.is_some(), all);
            let note = |backend| JournalRecord::Done { version, backend: name_of(backend) };
            self.log.extend(closed.map_or_else(|| done.into_iter().map(note).collect(), |closed| vec![closed]));
        }
        self.model.close_finished(version);
        self.ledger.release(version);
        self.model.release(version);
    }

    fn take(&mut self, backend: usize, undo: bool, most: usize) {
        let expected: Vec<Version> = self.model.ready(backend, undo).into_iter().take(most).collect();
        let steps = self.ledger.take(&name_of(backend), undo, most);
        assert_eq!(steps.len(), expected.len());
        for (step, first) in steps.into_iter().zip(expected) {
            assert_eq!(*step.supersedes.first().unwrap_or(&step.version), first);
            assert!(step.supersedes.iter().all(|version| *version < step.version));
            let entry = &self.model.entries[&step.version];
            let expected = if undo { undo_of(&entry.intent, backend) } else { Some(&entry.intent.changes) };
            assert_eq!(Some(&step.changes), expected);
            if let Some(passed) = step.supersedes.first() {
                assert!(!undo && entry.intent.changes.iter().all(Change::is_full), "{step:?} replaces {passed}");
            }
            for version in step.supersedes.iter().chain([&step.version]) {
                assert_eq!(self.model.entries[version].legs[backend], if undo { State::UndoOwed } else { State::Owed });
                self.model.set(*version, backend, State::InFlight);
            }
            self.steps.push((backend, step));
        }
        // Of one key at most one step runs on a backend, unless a dead letter was revived under a later one.
        if !self.model.entries.values().any(|entry| entry.passable) && !self.model.discarded {
            let running = self.steps.iter().filter(|(other, _)| *other == backend);
            let keys: Vec<&Key> = running.flat_map(|(_, step)| step.changes.iter().map(Change::key)).collect();
            let different: BTreeSet<&&Key> = keys.iter().collect();
            assert_eq!(keys.len(), different.len());
        }
    }

    fn settle(&mut self, backend: usize, step: &Step, end: u8) {
        let fence = if step.undo { Fence::Compensation } else { Fence::Write };
        let result = match end {
            0..=3 => StepResult::Done,
            4..=6 => StepResult::Again,
            _ => StepResult::Dead("never".to_owned()),
        };
        if end <= 4 {
            self.model.apply(backend, step.version, fence, &step.changes);
        }
        let name = name_of(backend);
        let decided = self.model.entries.get(&step.version).is_some_and(|entry| entry.decided.is_some());
        self.log.extend(self.ledger.settle(&name, step, &result));
        if end == 5 {
            self.ledger.failed(&name, step);
        }
        let all = step.supersedes.iter().chain([&step.version]);
        let again = if step.undo { State::UndoOwed } else { State::Owed };
        match result {
            StepResult::Done => {
                for version in all {
                    self.model.set(*version, backend, if step.undo { State::Undone } else { State::Done });
                    self.model.close_finished(*version);
                }
            }
            StepResult::Dead(_) if step.undo || !decided => {
                step.supersedes.iter().for_each(|version| self.model.set(*version, backend, State::Owed));
                self.model.set(step.version, backend, State::Dead);
            }
            _ => {
                for version in all {
                    if let Some(entry) = self.model.entries.get_mut(version) {
                        entry.attempted[backend] = true;
                        entry.failed[backend] += u32::from(end == 5);
                    }
                    self.model.set(*version, backend, again);
                }
            }
        }
    }

    fn discard(&mut self, version: Version) {
        self.model.discarded = true;
        for change in self.model.entries[&version].intent.changes.iter() {
            self.model.tainted.insert(change.key().clone());
        }
        let letters = self.ledger.dead_letters();
        let letter = letters.into_iter().find(|letter| letter.version == version).expect("it is a dead letter");
        let decided = JournalRecord::Decided {
            version,
            cause: letter.backend,
            reason: "discarded".to_owned(),
            ending: Ending::Discarded,
        };
        let records = self.ledger.discard(&decided);
        self.log.push(decided);
        self.log.extend(records);
        self.model.decide(version, Ending::Discarded);
        for backend in 0..2 {
            if self.model.entries[&version].legs[backend] == State::Dead {
                self.model.set(version, backend, State::Undone);
            }
        }
        self.model.close_finished(version);
    }

    /// The process dies; the next one has the log, and what was in flight may arrive or not.
    fn crash(&mut self) {
        self.check_log();
        let ledger = recover(&self.log);
        self.steps.clear();
        let model = &mut self.model;
        // What was not durable is gone, and what a store has of it stays. It was never more than volatile.
        let lost: Vec<Version> = model.entries.iter().filter(|(_, e)| !e.durable).map(|(v, _)| *v).collect();
        for version in lost {
            let entry = model.entries.remove(&version).expect("it is there");
            model.truth.remove(&version);
            model.tainted.extend(entry.intent.changes.iter().map(|change| change.key().clone()));
        }
        let versions: Vec<Version> = model.entries.keys().copied().collect();
        for version in versions {
            let live = &model.entries[&version];
            let found = ledger.entries.get(&version).expect("what is durable and not closed is found");
            assert_eq!(found.decision.is_some(), live.decided.is_some(), "{version}");
            let mut next = live.clone();
            (next.held, next.acknowledged, next.failed) = (false, false, [0; 2]);
            next.passable = found.passable;
            for (backend, leg) in found.legs.iter().enumerate() {
                let state = state_of(&leg.state);
                assert!(is_no_less(live.legs[backend], state), "{version}: {:?} became {state:?}", live.legs[backend]);
                (next.legs[backend], next.attempted[backend]) = (state, leg.attempted);
            }
            if next.decided.is_none() {
                model.truth.insert(version, Arc::clone(&next.intent.changes));
            }
            model.entries.insert(version, next);
        }
        self.ledger = ledger;
    }

    /// The next process owes at least what this one does, and nothing that is closed.
    fn check_log(&self) {
        let next = recover(&self.log);
        for version in next.entries.keys() {
            let durable = self.model.entries.get(version).is_some_and(|entry| entry.durable);
            assert!(durable && !self.model.closed.contains(version), "{version} came back");
        }
        assert!(next.highest() <= Version(self.next));
    }

    fn check(&mut self) {
        self.model.mark();
        let (ledger, model) = (&self.ledger, &self.model);
        for (backend, name) in (0..2).map(|backend| (backend, name_of(backend))) {
            assert_eq!(ledger.owed(&name), model.owed(backend));
            for undo in [false, true] {
                assert_eq!(ledger.ready(&name, undo), model.ready(backend, undo).len(), "{name} {undo}");
            }
            for key in KEYS.map(Key::from) {
                assert_eq!(ledger.is_behind(&name, [&key]), model.is_behind(backend, &key), "{name} {key}");
            }
        }
        assert_eq!(ledger.len(), model.entries.len());
        assert_eq!(ledger.bytes(), model.entries.values().map(|entry| entry.intent.weight()).sum::<usize>());
        assert_eq!(ledger.dead(), model.dead().len());
        assert_eq!(ledger.dead_letters().len(), model.dead().len());
        assert_eq!(ledger.compensating(), model.entries.values().filter(|entry| entry.decided.is_some()).count());
        for (version, entry) in &model.entries {
            assert_eq!(ledger.version_of(entry.intent.operation), Some(*version));
            assert_eq!(ledger.is_unsettled(entry.intent.operation), entry.held);
            let dead = entry.legs.contains(&State::Dead);
            match ledger.outcome(entry.intent.operation) {
                Outcome::DeadLetter { .. } => assert!(dead),
                Outcome::Compensating { .. } => assert!(!dead && entry.decided.is_some()),
                Outcome::Pending { durable, .. } => assert!(!dead && durable == entry.durable),
                other => panic!("{version}: {other:?}"),
            }
        }
        for key in KEYS.map(Key::from) {
            self.check_reads(&key);
        }
    }

    /// A reader sees what was acknowledged, whichever store it asks.
    fn check_reads(&self, key: &Key) {
        let (found, expected) = (self.ledger.overlay(key), self.model.overlay(key));
        let passed = |overlay: &Option<Overlay>| overlay.as_ref().is_some_and(|overlay| overlay.passed);
        assert!(!passed(&expected) || passed(&found), "{key}");
        if !self.model.discarded {
            assert_eq!(passed(&found), passed(&expected), "{key}");
        }
        let changes = |overlay: Option<Overlay>| overlay.map(|overlay| overlay.changes);
        assert_eq!(changes(found.clone()), changes(expected), "{key}");
        let held = |entry: &ModelEntry| entry.held && !entry.acknowledged;
        let mut unsettled = self.model.entries.values().filter(|entry| held(entry));
        let unsettled = unsettled.any(|entry| entry.intent.changes.iter().any(|change| change.key() == key));
        if unsettled || self.model.tainted.contains(key) {
            return;
        }
        let truth = self.model.record(key);
        for (name, store) in BACKENDS.iter().zip(&self.model.stores) {
            let base = store.get(key).cloned();
            let base = base.unwrap_or(Stored { version: Version(0), record: None });
            let read = match &found {
                Some(overlay) if overlay.is_full() => overlay.over(None, Version(0)),
                Some(overlay) => overlay.over(base.record, base.version),
                None => base.record,
            };
            assert_eq!(read, truth, "{key} from {name}");
        }
    }

    /// Everything that can be done is done: what is left waits for a person.
    fn finish(mut self) {
        for version in self.model.held() {
            self.end(version, false);
        }
        for (backend, step) in std::mem::take(&mut self.steps) {
            self.settle(backend, &step, 0);
        }
        loop {
            self.check();
            for backend in 0..2 {
                self.take(backend, false, 100);
                self.take(backend, true, 100);
            }
            if self.steps.is_empty() {
                break;
            }
            for (backend, step) in std::mem::take(&mut self.steps) {
                self.settle(backend, &step, 0);
            }
        }
        for (version, entry) in &self.model.entries {
            let waits = |backend| entry.legs[backend] == State::Dead || self.model.parked(*version, backend);
            let mut left = (0..2).filter(|backend| !matches!(entry.legs[*backend], State::Done | State::Undone));
            // A change that says all may wait with a merge of its batch, or behind such a batch.
            assert!(left.all(|backend| waits(backend) || self.waits_behind(*version, backend)), "{version} {entry:?}");
        }
        for key in KEYS.map(Key::from) {
            let dead = self.model.entries.values().any(|e| e.intent.changes.iter().any(|c| *c.key() == key));
            if !dead && !self.model.tainted.contains(&key) {
                for store in &self.model.stores {
                    let record = store.get(&key).and_then(|held| held.record.clone());
                    assert_eq!(record, self.model.record(&key), "{key}");
                }
            }
        }
        self.check_log();
    }

    fn waits_behind(&self, version: Version, backend: usize) -> bool {
        let entry = &self.model.entries[&version];
        let mut keys = entry.intent.changes.iter().map(Change::key);
        keys.any(|key| {
            let earlier = self.model.earlier(key, version);
            earlier.into_iter().any(|earlier| self.model.bar(earlier, backend) > 0)
        })
    }
}

fn recover(log: &[JournalRecord]) -> Ledger {
    let mut ledger = Ledger::new(QueueConfig::default());
    log.iter().for_each(|record| ledger.apply(record));
    let ended = ledger.release_all();
    assert_eq!(ended, [], "whoever finishes an entry closes it");
    ledger
}

fn state_of(state: &LegState) -> State {
    match state {
        LegState::Owed => State::Owed,
        LegState::InFlight => State::InFlight,
        LegState::Done => State::Done,
        LegState::UndoOwed => State::UndoOwed,
        LegState::Undone => State::Undone,
        LegState::Dead(_) => State::Dead,
    }
}

/// Whether a leg that is found in this state after a crash owes no less than it did.
fn is_no_less(live: State, found: State) -> bool {
    match live {
        State::Owed | State::Done => {
            matches!(found, State::Owed | State::Done) && (live == State::Done || found == live)
        }
        State::InFlight => matches!(found, State::Owed | State::UndoOwed),
        State::UndoOwed => found == State::UndoOwed,
        State::Undone => matches!(found, State::UndoOwed | State::Undone),
        State::Dead => found == State::Dead,
    }
}

fn pick<T: Clone>(of: &[T], which: usize) -> Option<T> {
    (!of.is_empty()).then(|| of[which % of.len()].clone())
}

proptest! {
    #[test]
    fn the_ledger_does_what_the_model_does(steps in prop::collection::vec(any_do(), 1..60)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
            pair.check();
        }
        pair.finish();
    }
}
