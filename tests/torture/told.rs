//! What the writers were told, and what therefore has to be there.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;

use seawall::backend::{Backend, Stored};
use seawall::operation::{Change, OperationId, Outcome, Version};
use seawall::record::{Key, Record};
use serde::Serialize;

use super::site::Site;
use super::writer::{Scene, changes, id};

/// What was counted. Everything from `lost` on has to be zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Writes that were acknowledged.
    pub acked: u64,
    /// Writes that were refused.
    pub refused: u64,
    /// Writes that were not answered, or answered as unknown.
    pub unknown: u64,
    /// Writes that were found unfinished and drained.
    pub recovered: u64,
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// Operations that took effect more than once.
    pub duplicated: u64,
    /// Writes that took effect in another order than they were acknowledged.
    pub reordered: u64,
    /// Refused writes that took effect.
    pub revived: u64,
    /// Deleted records, and ones that nobody ever wrote, that are there.
    pub resurrected: u64,
    /// Reads that gave less than what was acknowledged, and whatever else a writer saw.
    pub misread: u64,
    /// Breakers whose counts of calls do not add up: admitted, and what became of those.
    pub miscounted: u64,
    /// Directories that did not open, or were never drained.
    pub open_failures: u64,
}

impl Figures {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        let Self { lost, duplicated, reordered, revived, resurrected, misread, miscounted, open_failures, .. } = *self;
        [lost, duplicated, reordered, revived, resurrected, misread, miscounted, open_failures] == [0; 8]
    }
}

impl AddAssign<&Self> for Figures {
    fn add_assign(&mut self, other: &Self) {
        self.acked += other.acked;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.recovered += other.recovered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.revived += other.revived;
        self.resurrected += other.resurrected;
        self.misread += other.misread;
        self.miscounted += other.miscounted;
        self.open_failures += other.open_failures;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Held(Version),
    Refused,
    Unknown,
}

struct Operation {
    answer: Answer,
    /// The newest acknowledged versions of its keys when it was asked for: its own has to be higher.
    floor: Version,
}

/// All that the writers of one directory were told.
pub struct Told {
    /// What an operation changes.
    changes: fn(u64) -> Vec<Change>,
    /// Since the last judgement.
    operations: BTreeMap<u64, Operation>,
    /// What the stores held at the last judgement.
    base: BTreeMap<Key, (Version, Option<Record>)>,
    floors: BTreeMap<Key, Version>,
    /// The version under which a store held a key at the last judgement.
    held: BTreeMap<(&'static str, Key), Version>,
    /// The highest version that was met by the last judgement. All that is begun later has to be above.
    known: Version,
    next: u64,
    figures: Figures,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

impl Default for Told {
    fn default() -> Self {
        Self::of(changes)
    }
}

impl Told {
    /// Of writers whose operations change this.
    pub fn of(changes: fn(u64) -> Vec<Change>) -> Self {
        Self {
            changes,
            operations: BTreeMap::new(),
            base: BTreeMap::new(),
            floors: BTreeMap::new(),
            held: BTreeMap::new(),
            known: Version::default(),
            next: 0,
            figures: Figures::default(),
            problems: Vec::new(),
        }
    }

    /// What this operation changes.
    pub fn changes(&self, operation: u64) -> Vec<Change> {
        (self.changes)(operation)
    }

    /// What was counted since the last time.
    pub fn take_figures(&mut self) -> Figures {
        std::mem::take(&mut self.figures)
    }

    /// How many operations were never answered, of those since the last judgement.
    pub fn unanswered(&self) -> usize {
        self.operations.values().filter(|operation| operation.answer == Answer::None).count()
    }

    /// How many were acknowledged, of those since the last judgement.
    pub fn acknowledged(&self) -> usize {
        self.operations.values().filter(|operation| matches!(operation.answer, Answer::Held(_))).count()
    }

    /// The newest version of a key that was acknowledged.
    pub fn floor(&self, key: &Key) -> Version {
        self.floors.get(key).copied().unwrap_or_default()
    }

    /// The number of the next operation.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes note of what a writer said.
    pub fn hear(&mut self, lines: &[String]) {
        for line in lines {
            let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
            let mut numbers = rest.split(' ').map(str::parse::<u64>);
            let number = numbers.next().and_then(Result::ok);
            match (what, number) {
                ("a", Some(operation)) => self.asked(operation),
                ("h", Some(operation)) => {
                    if let Some(Ok(version)) = numbers.next() {
                        self.answered(operation, Answer::Held(Version(version)));
                    }
                }
                ("r", Some(operation)) => self.answered(operation, Answer::Refused),
                ("u", Some(operation)) => self.answered(operation, Answer::Unknown),
                ("x", _) => {
                    let opens = !rest.starts_with("does not open");
                    *(if opens { &mut self.figures.misread } else { &mut self.figures.open_failures }) += 1;
                    self.problems.push(rest.to_owned());
                }
                _ => {}
            }
        }
    }

    fn asked(&mut self, operation: u64) {
        let floor = |change: &Change| self.floors.get(change.key()).copied().unwrap_or_default();
        let floor = (self.changes)(operation).iter().map(floor).max().unwrap_or_default().max(self.known);
        self.operations.insert(operation, Operation { answer: Answer::None, floor });
        // Far enough from those that were perhaps begun and not heard of.
        self.next = self.next.max(operation + 100);
    }

    fn answered(&mut self, operation: u64, answer: Answer) {
        let Some(asked) = self.operations.get_mut(&operation) else { return };
        if asked.answer != Answer::None {
            self.figures.misread += 1;
            self.problems.push(format!("operation {operation}: answered {:?}, and then {answer:?}", asked.answer));
            return;
        }
        asked.answer = answer;
        if let Answer::Held(version) = answer {
            for change in (self.changes)(operation) {
                let floor = self.floors.entry(change.key().clone()).or_default();
                *floor = version.max(*floor);
            }
        }
    }

    /// Opens what was left, lets it finish, and compares. Gives what was counted since the last judgement.
    pub async fn judge(&mut self, dir: &Path) -> Figures {
        match Site::open(dir, Scene::Load.generation()).await {
            Ok(site) => {
                self.figures.recovered += site.runtime.handle().status().owed as u64;
                if site.quiet().await {
                    let handle = site.runtime.handle();
                    let stores: [(_, &dyn Backend); 2] = [("graph", &*site.graph), ("vector", &*site.vector)];
                    self.compare(|operation| handle.outcome(operation), stores).await;
                    let miscounts = site.miscounts();
                    self.figures.miscounted += miscounts.len() as u64;
                    self.problems.extend(miscounts);
                } else {
                    self.figures.open_failures += 1;
                    self.problems.push(format!("never drained: {:?}", site.runtime.handle().status()));
                }
                site.close().await;
            }
            Err(reason) => {
                self.figures.open_failures += 1;
                self.problems.push(format!("does not open: {reason}"));
            }
        }
        self.take_figures()
    }

    /// Compares what these stores hold, once nothing is owed, with what the writers were told.
    pub async fn compare(
        &mut self,
        outcome: impl Fn(OperationId) -> Outcome,
        stores: [(&'static str, &dyn Backend); 2],
    ) {
        let effects = self.effects(|operation| outcome(id(operation)));
        let mut keys: Vec<Key> = effects.keys().chain(self.base.keys()).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        let [(one, first), (other, second)] = stores;
        let (first, second) = (read(first, &keys).await, read(second, &keys).await);
        for ((key, first), second) in keys.into_iter().zip(first).zip(second) {
            let none = BTreeMap::new();
            let effects = effects.get(&key).unwrap_or(&none);
            let (before, record) = self.base.get(&key).cloned().unwrap_or_default();
            let expected = effects.values().fold(record, |record, change| change.apply_to(record));
            let newest = effects.keys().next_back().copied().unwrap_or_default().max(before);
            for (store, held) in [(one, &first), (other, &second)] {
                self.check(store, &key, newest, expected.as_ref(), held.as_ref());
            }
            self.known = self.known.max(newest);
            self.base.insert(key, (newest, expected));
        }
        self.known = self.held.values().copied().fold(self.known, Version::max);
        self.operations.clear();
    }

    /// What took effect, by key and version, as far as it was told and can be asked for.
    fn effects(&mut self, outcome: impl Fn(u64) -> Outcome) -> BTreeMap<Key, BTreeMap<Version, Change>> {
        let mut effects: BTreeMap<Key, BTreeMap<Version, Change>> = BTreeMap::new();
        for (number, operation) in &self.operations {
            let outcome = outcome(*number);
            let figures = &mut self.figures;
            let mut wrong = None;
            let effect = match (operation.answer, &outcome) {
                (Answer::Held(told), Outcome::Committed(version)) => {
                    figures.acked += 1;
                    wrong = (told != *version).then_some(&mut figures.duplicated);
                    Some(*version)
                }
                (Answer::Held(told), _) => {
                    figures.acked += 1;
                    wrong = Some(&mut figures.lost);
                    Some(told)
                }
                (Answer::Refused, Outcome::Committed(version)) => {
                    figures.refused += 1;
                    wrong = Some(&mut figures.revived);
                    Some(*version)
                }
                (Answer::Refused, _) => {
                    figures.refused += 1;
                    None
                }
                (Answer::None | Answer::Unknown, outcome) => {
                    figures.unknown += 1;
                    if let Outcome::Committed(version) = outcome { Some(*version) } else { None }
                }
            };
            if let Some(count) = wrong {
                *count += 1;
                self.problems.push(format!("operation {number}: told {:?}, became {outcome:?}", operation.answer));
            }
            let Some(version) = effect else { continue };
            if version <= operation.floor {
                figures.reordered += 1;
                self.problems.push(format!("operation {number}: {version} is not above {}", operation.floor));
            }
            for change in (self.changes)(*number) {
                if effects.entry(change.key().clone()).or_default().insert(version, change).is_some() {
                    figures.duplicated += 1;
                    self.problems.push(format!("operation {number}: {version} was given twice"));
                }
            }
        }
        effects
    }

    /// Whether a store holds what it has to. A write that was undone leaves its version behind, not its contents.
    fn check(
        &mut self,
        store: &'static str,
        key: &Key,
        newest: Version,
        expected: Option<&Record>,
        held: Option<&Stored>,
    ) {
        let version = held.map(|held| held.version).unwrap_or_default();
        let record = held.and_then(|held| held.record.as_ref());
        let before = self.held.insert((store, key.clone()), version).unwrap_or_default();
        let least = newest.max(before);
        if version >= least && record == expected {
            return;
        }
        let figures = &mut self.figures;
        *(match (record, expected) {
            (Some(_), None) => &mut figures.resurrected,
            (Some(_), Some(_)) if version >= least => &mut figures.reordered,
            _ => &mut figures.lost,
        }) += 1;
        let (record, expected) = (show(record), show(expected));
        self.problems
            .push(format!("{store} holds {key} at {version} as {record}, must be {least} as {expected} or above"));
    }
}

/// What a store that is well holds, asked for in pieces that no store finds too large.
async fn read(store: &dyn Backend, keys: &[Key]) -> Vec<Option<Stored>> {
    let mut held = Vec::with_capacity(keys.len());
    for keys in keys.chunks(500) {
        held.extend(store.read(keys).await.expect("the store is well"));
    }
    held
}

fn show(record: Option<&Record>) -> String {
    let Some(record) = record else { return "nothing".into() };
    let numbers = record.properties.iter().filter(|(_, value)| value.is_u64());
    format!("{{{}}}", numbers.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
}

/// The judge is judged: each breach is shown to it once.
#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Told {
        let mut told = Told::default();
        told.hear(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
        told
    }

    /// What is counted when every operation ends like this.
    fn counted(mut told: Told, end: fn(u64) -> Outcome) -> Figures {
        told.effects(end);
        assert_eq!(told.figures.is_clean(), told.problems.is_empty(), "what is counted is told");
        told.figures
    }

    fn gone(_: u64) -> Outcome {
        Outcome::NotFound
    }

    /// An operation of one change that this finds.
    fn operation(which: impl Fn(&Change) -> bool) -> (u64, Change) {
        let one = |operation| <[Change; 1]>::try_from(changes(operation)).ok().map(|[change]| (operation, change));
        (0..).filter_map(one).find(|(_, change)| which(change)).expect("there are all kinds")
    }

    #[test]
    fn what_was_kept_is_clean() {
        let lines = ["a 1", "h 1 5", "a 2", "r 2", "a 3", "u 3", "a 4"];
        let end = |operation| if operation == 1 { Outcome::Committed(Version(5)) } else { Outcome::NotFound };
        let figures = counted(told(&lines), end);
        assert!(figures.is_clean());
        assert_eq!((figures.acked, figures.refused, figures.unknown), (1, 1, 2));
    }

    #[test]
    fn an_acknowledged_write_that_is_not_there_is_lost() {
        assert_eq!(counted(told(&["a 1", "h 1 5"]), gone).lost, 1);
    }

    #[test]
    fn a_refused_write_that_is_there_is_revived_however_it_was_asked_for() {
        let committed = |_| Outcome::Committed(Version(5));
        assert_eq!(counted(told(&["a 1", "r 1"]), committed).revived, 1);
        let unknown = counted(told(&["a 1", "u 1"]), committed);
        assert!(unknown.is_clean(), "of which nobody knew may be there: {unknown:?}");
        assert!(counted(told(&["a 1"]), committed).is_clean(), "nor is one that was never answered");
    }

    #[test]
    fn a_second_version_or_a_version_given_twice_is_a_duplicate() {
        assert_eq!(counted(told(&["a 1", "h 1 4"]), |_| Outcome::Committed(Version(5))).duplicated, 1);
        let (first, change) = operation(|_| true);
        let same = |other: &u64| changes(*other).iter().any(|other| other.key() == change.key());
        let second = (first + 1..).find(same).expect("a key is written to more than once");
        let lines = [format!("a {first}"), format!("a {second}")];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(counted(told(&lines), |_| Outcome::Committed(Version(5))).duplicated, 1);
    }

    #[test]
    fn a_version_that_is_not_above_what_was_acknowledged_before_is_reordered() {
        let (first, change) = operation(|_| true);
        let same = |other: &u64| matches!(&changes(*other)[..], [other] if other.key() == change.key());
        let second = (first + 1..).find(same).expect("a key is written to more than once");
        let mut told = told(&[]);
        told.hear(&[format!("a {first}"), format!("h {first} 9"), format!("a {second}"), format!("h {second} 8")]);
        told.effects(|operation| Outcome::Committed(Version(if operation == first { 9 } else { 8 })));
        assert_eq!((told.figures.reordered, told.problems.len()), (1, 1));
    }

    #[test]
    fn versions_only_grow_over_a_restart() {
        let mut told = told(&[]);
        told.known = Version(7);
        told.hear(&["a 1".to_owned(), "h 1 7".to_owned()]);
        assert_eq!(counted(told, |_| Outcome::Committed(Version(7))).reordered, 1);
    }

    #[test]
    fn a_request_that_is_answered_twice_is_misread() {
        assert_eq!(told(&["a 1", "h 1 5", "r 1"]).figures.misread, 1);
    }

    #[test]
    fn a_store_that_holds_something_else_is_found_out() {
        let key = Key::from("key-1");
        let (new, old) = (Record::new("key-1").with("n", 2), Record::new("key-1").with("n", 1));
        let check = |before: u64, expected: Option<&Record>, held: Option<(u64, Option<&Record>)>| {
            let mut told = Told::default();
            told.held.insert(("graph", key.clone()), Version(before));
            let held = held.map(|(version, record)| Stored { version: Version(version), record: record.cloned() });
            told.check("graph", &key, Version(5), expected, held.as_ref());
            assert_eq!(told.figures.is_clean(), told.problems.is_empty());
            told.figures
        };
        assert!(check(5, Some(&new), Some((5, Some(&new)))).is_clean());
        assert!(check(5, Some(&new), Some((6, Some(&new)))).is_clean(), "a write was undone");
        assert_eq!(check(0, Some(&new), None).lost, 1);
        assert_eq!(check(0, Some(&new), Some((4, Some(&old)))).lost, 1);
        assert_eq!(check(0, Some(&new), Some((5, Some(&old)))).reordered, 1, "an older write is over a newer one");
        assert_eq!(check(0, None, Some((5, Some(&old)))).resurrected, 1, "a delete stays deleted");
        assert_eq!(check(7, Some(&new), Some((6, Some(&new)))).lost, 1, "the version of a key went back");
    }
}
