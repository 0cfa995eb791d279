//! The client's book: what was sent, what was acknowledged, and what the stores must hold because of it.

use std::collections::{BTreeMap, HashMap};

use seawall::backend::BackendName;
use seawall::event::{Event, EventKind};
use seawall::operation::{Held, OperationId, Receipt, Version, Write};
use seawall::record::{Key, Properties, Record};
use serde::{Deserialize, Serialize};

use crate::input::Catalogue;
use crate::report::Report;

/// One write, told so briefly that it can be written down before it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Store the record as the input has it.
    Store { key: Key },
    /// Set the property `revision`.
    Update { key: Key, revision: u64 },
    /// Delete the record.
    Delete { key: Key },
}

impl Job {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Store { key } | Self::Update { key, .. } | Self::Delete { key } => key,
        }
    }

    /// The write that this is.
    pub(crate) fn write(&self, catalogue: &Catalogue, operation: OperationId) -> Write {
        let write = match self {
            Self::Store { key } => {
                Write::store(catalogue.get(key).cloned().unwrap_or_else(|| Record::new(key.clone())))
            }
            Self::Update { key, revision } => Write::update(key.clone(), Properties::new().with("revision", *revision)),
            Self::Delete { key } => Write::delete(key.clone()),
        };
        write.with_operation(operation)
    }
}

/// A write that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) operation: OperationId,
    pub(crate) job: Job,
    /// How it was acknowledged, if it was.
    pub(crate) receipt: Option<Receipt>,
}

/// What a store answered with success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Effect {
    pub(crate) store: BackendName,
    pub(crate) operation: OperationId,
    pub(crate) key: Key,
    pub(crate) version: Version,
    /// Whether it took a write back.
    pub(crate) compensation: bool,
    /// Whether it changed anything: a replay of what the store has already does not.
    pub(crate) changed: bool,
}

/// What the stores must hold for a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    /// The version of the last acknowledged write.
    pub(crate) version: Version,
    /// The record after it.
    pub(crate) record: Option<Record>,
}

/// All that the client knows, whatever becomes of the processes that it talks to.
#[derive(Debug, Default)]
pub(crate) struct Book {
    sent: Vec<Sent>,
    places: HashMap<OperationId, usize>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) refused: u64,
    pub(crate) wrong_reads: u64,
    /// Writes that were taken back, because a store could not take them.
    pub(crate) taken_back: u64,
    breakers: Vec<BackendName>,
}

impl Book {
    /// Writes down what is reported.
    pub(crate) fn hear(&mut self, report: &Report) {
        match report {
            Report::Sent { operation, job } => {
                let place = self.sent.len();
                self.sent.push(Sent { operation: *operation, job: job.clone(), receipt: None });
                self.places.insert(*operation, place);
            }
            Report::Acknowledged(receipt) => {
                if let Some(place) = self.places.get(&receipt.operation) {
                    self.sent[*place].receipt = Some(receipt.clone());
                }
            }
            Report::Refused { .. } => self.refused += 1,
            Report::WrongRead { .. } => self.wrong_reads += 1,
            Report::Effects(effects) => self.effects.extend_from_slice(effects),
            Report::Event(Event { kind: EventKind::BreakerChanged { backend, .. }, .. }) => {
                self.breakers.push(backend.clone());
            }
            Report::Event(Event { kind: EventKind::SagaRolledBack { .. }, .. }) => self.taken_back += 1,
            _ => {}
        }
    }

    /// Writes that were acknowledged, in the order in which they were sent.
    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = (&Sent, &Receipt)> {
        self.sent.iter().filter_map(|sent| Some((sent, sent.receipt.as_ref()?)))
    }

    /// Writes that were acknowledged as queued.
    pub(crate) fn queued(&self) -> impl Iterator<Item = OperationId> {
        self.acknowledged().filter(|(_, receipt)| receipt.held != Held::Committed).map(|(sent, _)| sent.operation)
    }

    /// Writes that were sent and not answered: nobody knows yet what became of them.
    pub(crate) fn unanswered(&self) -> Vec<Sent> {
        self.sent.iter().filter(|sent| sent.receipt.is_none()).cloned().collect()
    }

    /// How many transitions breakers made; of one backend, or of all.
    pub(crate) fn transitions(&self, backend: Option<&str>) -> usize {
        self.breakers.iter().filter(|name| backend.is_none_or(|wanted| name.as_str() == wanted)).count()
    }

    /// What every acknowledged key must hold. The client sends the writes of one key one after another.
    pub(crate) fn expected(&self, catalogue: &Catalogue) -> BTreeMap<Key, Expected> {
        let mut expected: BTreeMap<Key, Expected> = BTreeMap::new();
        for (sent, receipt) in self.acknowledged() {
            let mut record = expected.remove(sent.job.key()).and_then(|before| before.record);
            for change in &sent.job.write(catalogue, sent.operation).changes {
                record = change.apply_to(record);
            }
            expected.insert(sent.job.key().clone(), Expected { version: receipt.version, record });
        }
        expected
    }
}
