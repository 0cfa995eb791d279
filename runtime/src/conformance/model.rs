//! What the fence says, in memory, and random writes against it.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::{Value, json};

use super::Subject;
use super::ground::{Checked, Failure, Ground, fenced, merge, same};
use crate::backend::{Fence, FencedWrite, Stored};
use crate::operation::{Change, Version};
use crate::record::{Key, Properties, Record};

/// Stores of random writes, each with keys of its own, and writes in each.
const ROUNDS: u32 = 30;
const WRITES: usize = 12;

/// What is known of a key.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) version: Version,
    /// `None` where a copy was told of a merge into what it does not hold.
    pub(super) known: Option<Option<Record>>,
}

/// A store that is right.
#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) keys: BTreeMap<Key, Held>,
    /// It is a copy: it may not know what a merge goes into.
    pub(super) copy: bool,
}

impl Model {
    /// Applies a write; gives the highest version that stood in its way.
    pub(super) fn apply(&mut self, write: &FencedWrite) -> Option<Version> {
        write.changes.iter().filter_map(|change| self.change(write, change)).max()
    }

    fn change(&mut self, write: &FencedWrite, change: &Change) -> Option<Version> {
        let held = self.keys.get(change.key());
        if let Some(held) = held.filter(|held| !write.passes(held.version)) {
            return Some(held.version);
        }
        let before = match held {
            Some(held) => held.known.clone(),
            None => (!self.copy).then_some(None),
        };
        let known = match before {
            None if !change.is_full() => None,
            before => Some(change.apply_to(before.flatten())),
        };
        self.keys.insert(change.key().clone(), Held { version: write.version, known });
        None
    }

    pub(super) fn stored(&self, key: &Key) -> Option<Stored> {
        let Held { version, known } = self.keys.get(key)?.clone();
        known.map(|record| Stored { version, record })
    }
}

pub(super) async fn random(subject: &dyn Subject) -> Checked {
    let seed = subject.seed();
    let ground = Ground::open(subject).await?;
    let mut rng = Rng::with_seed(seed);
    for round in 0..ROUNDS {
        sequence(&ground, &mut rng, round).await.map_err(|failure| match failure {
            Failure::Broken(how) => Failure::Broken(format!("seed {seed}, round {round}: {how}")),
            skipped => skipped,
        })?;
    }
    Ok(())
}

async fn sequence(ground: &Ground, rng: &mut Rng, round: u32) -> Checked {
    let keys: Vec<Key> = (0..4).map(|n| Key::from(format!("{round}/{n}"))).collect();
    let mut model = Model { copy: ground.copy, ..Model::default() };
    let mut sent: Vec<FencedWrite> = Vec::new();
    for _ in 0..WRITES {
        let again = (!sent.is_empty() && rng.u8(..4) == 0).then(|| sent[rng.usize(..sent.len())].clone());
        let write = again.unwrap_or_else(|| random_write(rng, &keys));
        let expected = model.apply(&write);
        ground.told(&write, expected.map(|version| version.0)).await?;
        sent.push(write);
        for (key, held) in keys.iter().zip(ground.read(&keys).await?) {
            let expected = model.stored(key);
            // Of what it does not know, a copy may remember the version.
            let remembered = held.as_ref().is_some_and(|held| held.record.is_none());
            if expected.is_none() && ground.copy && remembered {
                continue;
            }
            same(key, held.as_ref(), expected.as_ref(), &format!("after {} writes", sent.len()))?;
        }
    }
    Ok(())
}

fn random_write(rng: &mut Rng, keys: &[Key]) -> FencedWrite {
    let fence = if rng.u8(..4) == 0 { Fence::Compensation } else { Fence::Write };
    let mut changed = keys.to_vec();
    rng.shuffle(&mut changed);
    changed.truncate(rng.usize(1..=keys.len()));
    let changes: Vec<_> = changed.iter().map(|key| random_change(rng, key, keys)).collect();
    fenced(rng.u64(1..=10), fence, changes)
}

fn random_change(rng: &mut Rng, key: &Key, keys: &[Key]) -> Change {
    match rng.u8(..5) {
        0 => Change::Delete { key: key.clone() },
        1 | 2 => merge(key.as_str(), random_properties(rng)),
        _ => {
            let record = Record::new(key.clone()).with_properties(random_properties(rng));
            let related = (0..rng.usize(..3)).map(|_| keys[rng.usize(..keys.len())].clone());
            Change::put(related.fold(record, |record, to| {
                // Not twice the same.
                if record.relations.iter().any(|relation| relation.to == to) {
                    return record;
                }
                record.with_relation("to", to)
            }))
        }
    }
}

fn random_properties(rng: &mut Rng) -> Properties {
    let mut properties = Properties::new();
    for name in ["a", "b", "c"] {
        let value = match rng.u8(..6) {
            0 => continue,
            1 => Value::Null,
            2 => json!(rng.i64(..)),
            3 => json!(rng.f64()),
            4 => json!({"x": rng.u8(..), "y": [rng.bool(), null]}),
            _ => json!(rng.u32(..).to_string()),
        };
        properties.set(name, value);
    }
    properties
}
