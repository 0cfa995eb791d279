//! A backend in memory that is right, but for one flaw.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use serde_json::Value;
use tokio::task::yield_now;

use crate::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, ErrorKind, Fence, FencedWrite, Health, Stored,
    Transaction, Transactions,
};
use crate::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use crate::conformance::{OpenError, Outage, Property, Subject, Supported};
use crate::operation::{Change, Hit, OperationId, Search, Traversal, Version};
use crate::record::{Embedding, Key, Properties, Record};

macro_rules! flaws {
    ($($flaw:ident caught by $property:ident,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Flaw {
            $($flaw,)+
        }

        impl Flaw {
            /// Each with the property that has to be broken.
            pub(super) const ALL: &[(Self, Property)] = &[$((Self::$flaw, Property::$property)),+];
        }
    };
}

flaws! {
    ReadsBackwards caught by ReadOrder,
    NoFence caught by Fence,
    SameVersionGoesOver caught by Fence,
    OneFenceForAllKeys caught by Fence,
    SupersededIsNotTold caught by Fence,
    VersionsAreFloats caught by Fence,
    CompensationIsFencedAsAWrite caught by Compensation,
    CompensationGoesOverAnything caught by Compensation,
    CompensationLeavesNoVersion caught by EarlyCompensation,
    ReplayedMergeToggles caught by Idempotence,
    TombstoneForgotten caught by Tombstones,
    MergeRevivesWhatWasDeleted caught by Tombstones,
    SweepForgetsRecords caught by Sweep,
    SweepForgetsWhatIsNewer caught by Sweep,
    SweepForgetsTheNewest caught by Sweep,
    CompensationKeepsProperties caught by PreImages,
    MergeReplaces caught by Merges,
    MergeKeepsNulls caught by Merges,
    MergeDropsRelations caught by Merges,
    MergeIsDeep caught by Merges,
    MergeNeedsARecord caught by Merges,
    BatchFencedByItsFirst caught by Batches,
    SeveralWritesShareAFence caught by SeveralWrites,
    SeveralWritesStopAtTheFirstError caught by SeveralWrites,
    SeveralWritesAreAnsweredBackwards caught by SeveralWrites,
    RejectedBatchHalfApplied caught by Rejection,
    RejectionIsTransient caught by Rejection,
    NumbersAreFloats caught by Fidelity,
    FloatsAreShortened caught by Fidelity,
    NullsAreLost caught by Fidelity,
    KeysAreFolded caught by Fidelity,
    EmbeddingIsScaled caught by Fidelity,
    RelationsAreSorted caught by Fidelity,
    TextIsCut caught by LargeRecords,
    NewestIgnoresDeletes caught by NewestVersion,
    ProbeIsNeverWell caught by Probe,
    FourthChangeIsLost caught by RandomWrites,
    DropLeavesAHalf caught by Cancellation,
    DropJamsTheBackend caught by Cancellation,
    CheckThenAct caught by ConcurrentWriters,
    BatchOneByOne caught by WholeBatches,
    DropCommits caught by Transactions,
    CommitDoesNothing caught by Transactions,
    FindIgnoresTheLimit caught by ExactMatch,
    FindGivesDeleted caught by ExactMatch,
    SearchIgnoresTheFilter caught by VectorSearch,
    SearchFiltersAfterTheLimit caught by VectorSearch,
    SearchIsWorstFirst caught by VectorSearch,
    WalkIgnoresTheKind caught by GraphTraversal,
    WalkIsOneStep caught by GraphTraversal,
    CannotAndPretends caught by MissingCapabilities,
    RefusalIsPermanent caught by RefusedConnections,
    RestartLosesWrites caught by RefusedConnections,
    HangIsTransientAndHappens caught by HungServer,
    LostReplyIsTransient caught by LostReplies,
}

/// A subject with this flaw.
pub(super) struct Flawed {
    flaw: Option<Flaw>,
    last: Mutex<Option<Arc<Store>>>,
}

impl Flawed {
    pub(super) fn with(flaw: Option<Flaw>) -> Self {
        Self { flaw, last: Mutex::default() }
    }

    fn last(&self) -> Arc<Store> {
        self.last.lock().unwrap().clone().expect("something was opened")
    }
}

#[async_trait]
impl Subject for Flawed {
    async fn open(&self) -> Result<Arc<dyn Backend>, OpenError> {
        let store = Arc::new(Store { flaw: self.flaw, ..Store::default() });
        *self.last.lock().unwrap() = Some(Arc::clone(&store));
        Ok(store)
    }

    fn rejected(&self) -> Option<Change> {
        Some(Change::put(Record::new("rejected").with_embedding([1.0; 5])))
    }

    async fn begin(&self, outage: Outage) -> Supported {
        *self.last().outage.lock().unwrap() = Some(outage);
        Supported::Yes
    }

    async fn end(&self, _: Outage) {
        let store = self.last();
        *store.outage.lock().unwrap() = None;
        if store.is(Flaw::RestartLosesWrites) {
            store.keys().clear();
        }
    }

    fn seed(&self) -> u64 {
        7
    }
}

type Keys = BTreeMap<Key, Stored>;

#[derive(Default)]
pub(super) struct Store {
    flaw: Option<Flaw>,
    keys: Arc<Mutex<Keys>>,
    outage: Mutex<Option<Outage>>,
    busy: AtomicBool,
}

impl Store {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap()
    }

    /// What an outage makes of a call before anything is done.
    async fn reach(&self) -> Result<(), BackendError> {
        yield_now().await;
        if self.busy.load(Ordering::SeqCst) {
            return Err(BackendError::refused("busy"));
        }
        let outage = *self.outage.lock().unwrap();
        match outage {
            Some(Outage::Refused) if self.is(Flaw::RefusalIsPermanent) => Err(BackendError::permanent("refused")),
            Some(Outage::Refused) => Err(BackendError::transient("refused")),
            Some(Outage::Hung) if !self.is(Flaw::HangIsTransientAndHappens) => pending().await,
            _ => Ok(()),
        }
    }

    /// What an outage makes of a write that was done.
    fn reply(&self, applied: Applied) -> Result<Applied, BackendError> {
        let outage = *self.outage.lock().unwrap();
        match outage {
            Some(Outage::Reset) if self.is(Flaw::LostReplyIsTransient) => Err(BackendError::transient("reset")),
            Some(Outage::Reset) => Err(BackendError::unknown("reset")),
            Some(_) => Err(BackendError::transient("hung")),
            None => Ok(applied),
        }
    }

    fn passes(&self, keys: &Keys, write: &FencedWrite, key: &Key) -> Result<(), Version> {
        let of = |key: &Key| keys.get(key).map_or(Version(0), |stored| stored.version);
        let held = match self.flaw {
            Some(Flaw::OneFenceForAllKeys) => keys.values().map(|stored| stored.version).max().unwrap_or_default(),
            Some(Flaw::BatchFencedByItsFirst) => of(write.changes[0].key()),
            _ => of(key),
        };
        let live = write.fence == Fence::Write;
        let passes = match self.flaw {
            Some(Flaw::NoFence) => true,
            Some(Flaw::SameVersionGoesOver) => held <= write.version,
            Some(Flaw::CompensationIsFencedAsAWrite) => held < write.version,
            Some(Flaw::CompensationGoesOverAnything) if !live => true,
            Some(Flaw::VersionsAreFloats) if live => (held.0 as f64) < write.version.0 as f64,
            _ => write.passes(held),
        };
        if passes { Ok(()) } else { Err(held) }
    }

    fn change(&self, keys: &mut Keys, write: &FencedWrite, change: &Change, passes: Result<(), Version>) {
        let key = self.fold(change.key());
        let before = keys.get(&key).cloned();
        let deleted = before.as_ref().is_some_and(|stored| stored.record.is_none());
        let merges = matches!(change, Change::Merge { .. });
        if passes.is_err() {
            let replayed = before.as_ref().is_some_and(|stored| stored.version == write.version);
            if self.is(Flaw::ReplayedMergeToggles) && merges && replayed {
                let record = keys.get_mut(&key).and_then(|stored| stored.record.as_mut());
                record.into_iter().for_each(|record| {
                    record.properties.set("again", true);
                });
            }
            if !(self.is(Flaw::MergeRevivesWhatWasDeleted) && merges && deleted) {
                return;
            }
        }
        let exists = before.is_some();
        let after = self.outcome(write, change, before.and_then(|stored| stored.record));
        let forgets = match self.flaw {
            Some(Flaw::TombstoneForgotten) => after.is_none(),
            Some(Flaw::CompensationLeavesNoVersion) => after.is_none() && write.fence == Fence::Compensation,
            Some(Flaw::MergeNeedsARecord) => merges && !exists,
            _ => false,
        };
        if forgets {
            keys.remove(&key);
        } else {
            keys.insert(key, Stored { version: write.version, record: after });
        }
    }

    fn outcome(&self, write: &FencedWrite, change: &Change, before: Option<Record>) -> Option<Record> {
        let after = change.apply_to(before.clone());
        match (self.flaw, change, before) {
            (Some(Flaw::CompensationKeepsProperties), Change::Put(put), Some(mut before))
                if write.fence == Fence::Compensation =>
            {
                before.properties.merge(&put.properties);
                Some(before)
            }
            (Some(Flaw::MergeReplaces), Change::Merge { key, properties }, _) => {
                let mut replaced = Record::new(key.clone());
                replaced.properties.merge(properties);
                Some(replaced)
            }
            (Some(Flaw::MergeKeepsNulls), Change::Merge { properties, .. }, Some(mut before)) => {
                properties.iter().for_each(|(name, value)| {
                    before.properties.set(name, value.clone());
                });
                Some(before)
            }
            (Some(Flaw::MergeDropsRelations), Change::Merge { .. }, Some(_)) => {
                after.map(|after| Record { relations: Vec::new(), ..after })
            }
            (Some(Flaw::MergeIsDeep), Change::Merge { properties, .. }, Some(mut before)) => {
                let deep = properties.iter().map(|(name, value)| {
                    let mut merged = before.properties.get(name).cloned().unwrap_or_default();
                    match (merged.as_object_mut(), value.as_object()) {
                        (Some(merged), Some(value)) => merged.extend(value.clone()),
                        _ => merged = value.clone(),
                    }
                    (name.to_owned(), merged)
                });
                let deep: serde_json::Map<_, _> = deep.collect();
                before.properties.merge(&Properties::from(deep));
                Some(before)
            }
            _ => after,
        }
    }

    fn fold(&self, key: &Key) -> Key {
        if self.is(Flaw::KeysAreFolded) { Key::from(key.as_str().to_lowercase()) } else { key.clone() }
    }

    /// The record as this store gives it back.
    fn bent(&self, mut record: Record) -> Record {
        let all: Vec<_> = record.properties.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let bent = all.into_iter().filter(|(_, value)| !(self.is(Flaw::NullsAreLost) && value.is_null()));
        let bent: serde_json::Map<_, _> = bent.map(|(name, value)| (name, self.bent_value(value))).collect();
        record.properties = Properties::from(bent);
        if self.is(Flaw::RelationsAreSorted) {
            record.relations.sort();
        }
        if let (true, Some(embedding)) = (self.is(Flaw::EmbeddingIsScaled), &record.embedding) {
            let scaled: Vec<f32> = embedding.as_slice().iter().map(|x| x * 3.0 / 3.0).collect();
            record.embedding = Some(Embedding::new(scaled));
        }
        record
    }

    fn bent_value(&self, value: Value) -> Value {
        match (self.flaw, value) {
            (Some(Flaw::NumbersAreFloats), Value::Number(number)) => {
                number.as_f64().filter(|float| float.abs() > 1e15).map_or(Value::Number(number), Value::from)
            }
            (Some(Flaw::FloatsAreShortened), Value::Number(number)) if number.is_f64() => {
                let short = number.as_f64().unwrap_or_default() as f32;
                if short.is_finite() { Value::from(f64::from(short)) } else { Value::Number(number) }
            }
            (Some(Flaw::TextIsCut), Value::String(text)) => Value::from(text.chars().take(65_535).collect::<String>()),
            (_, value) => value,
        }
    }

    /// The same records in an embedded store, which knows how to answer.
    async fn filled<B: Backend>(&self, store: B) -> B {
        let live: Vec<_> =
            self.keys().values().filter_map(|stored| stored.record.clone().zip(Some(stored.version))).collect();
        for (record, version) in live {
            let (operation, changes) = (OperationId::generate(), [Change::put(record)].into());
            let write = FencedWrite { operation, version, fence: Fence::Write, changes };
            store.apply(&write).await.expect("what was stored can be");
        }
        store
    }
}

#[async_trait]
impl Backend for Store {
    fn name(&self) -> BackendName {
        "flawed".into()
    }

    fn capabilities(&self) -> Capabilities {
        let can = !self.is(Flaw::CannotAndPretends);
        Capabilities { vector_search: can, graph_traversal: can, exact_match: can }
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.reach().await?;
        let wrong = |change: &Change| matches!(change, Change::Put(record) if record.embedding.as_ref().is_some_and(|e| e.dimension() == 5));
        if write.changes.iter().any(wrong) {
            if self.is(Flaw::RejectedBatchHalfApplied) {
                let mut keys = self.keys();
                write.changes.iter().take_while(|change| !wrong(change)).for_each(|change| {
                    self.change(&mut keys, write, change, Ok(()));
                });
            }
            let transient = self.is(Flaw::RejectionIsTransient);
            let kind = if transient { ErrorKind::Transient } else { ErrorKind::Permanent };
            return Err(BackendError::new(kind, "an embedding of five dimensions"));
        }
        if self.is(Flaw::DropJamsTheBackend) {
            self.busy.store(true, Ordering::SeqCst);
            yield_now().await;
            self.busy.store(false, Ordering::SeqCst);
        }
        let one_by_one = matches!(self.flaw, Some(Flaw::BatchOneByOne | Flaw::DropLeavesAHalf));
        let mut superseded_by = None;
        for group in write.changes.chunks(if one_by_one { 1 } else { usize::MAX }) {
            let passes: Vec<_> = {
                let keys = self.keys();
                group.iter().map(|change| self.passes(&keys, write, &self.fold(change.key()))).collect()
            };
            if self.is(Flaw::CheckThenAct) {
                yield_now().await;
            }
            {
                let mut keys = self.keys();
                let taken = if self.is(Flaw::FourthChangeIsLost) { 3 } else { usize::MAX };
                for (change, passes) in group.iter().zip(passes).take(taken) {
                    let passes = match self.flaw {
                        Some(Flaw::CheckThenAct | Flaw::BatchFencedByItsFirst) => passes,
                        _ => self.passes(&keys, write, &self.fold(change.key())),
                    };
                    superseded_by = superseded_by.max(passes.err());
                    self.change(&mut keys, write, change, passes);
                }
            }
            yield_now().await;
        }
        if self.is(Flaw::SupersededIsNotTold) {
            superseded_by = None;
        }
        self.reply(Applied { superseded_by })
    }

    async fn apply_batch(&self, writes: &[FencedWrite]) -> Result<Vec<Result<Applied, BackendError>>, BackendError> {
        let mut answers = Vec::new();
        let highest = writes.iter().map(|write| write.version).max().unwrap_or_default();
        for write in writes {
            let shared = FencedWrite { version: highest, ..write.clone() };
            let answer = self.apply(if self.is(Flaw::SeveralWritesShareAFence) { &shared } else { write }).await;
            if self.is(Flaw::SeveralWritesStopAtTheFirstError) {
                answer.as_ref().map_err(Clone::clone)?;
            }
            answers.push(answer);
        }
        if self.is(Flaw::SeveralWritesAreAnsweredBackwards) {
            answers.reverse();
        }
        Ok(answers)
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.reach().await?;
        let held = self.keys();
        let get = |key: &Key| {
            let stored = held.get(&self.fold(key)).cloned()?;
            Some(Stored {
                record: stored.record.map(|record| self.bent(Record { key: key.clone(), ..record })),
                ..stored
            })
        };
        let mut stored: Vec<_> = keys.iter().map(get).collect();
        if self.is(Flaw::ReadsBackwards) {
            stored.reverse();
        }
        Ok(stored)
    }

    async fn search(&self, search: &Search) -> Result<Vec<Hit>, BackendError> {
        let store = self.filled(VectorBackend::in_memory(VectorConfig::default())).await;
        let unfiltered = || Search { filter: Properties::new(), ..search.clone() };
        match self.flaw {
            Some(Flaw::SearchIgnoresTheFilter) => store.search(&unfiltered()).await,
            Some(Flaw::SearchFiltersAfterTheLimit) => {
                let mut hits = store.search(&unfiltered()).await?;
                let fits = |hit: &Hit| {
                    search.filter.iter().all(|(name, value)| hit.record.properties.get(name) == Some(value))
                };
                hits.retain(fits);
                Ok(hits)
            }
            Some(Flaw::SearchIsWorstFirst) => store.search(search).await.map(|hits| hits.into_iter().rev().collect()),
            _ => store.search(search).await,
        }
    }

    async fn traverse(&self, traversal: &Traversal) -> Result<Vec<Hit>, BackendError> {
        let store = self.filled(GraphBackend::in_memory(GraphConfig::default())).await;
        let mut traversal = traversal.clone();
        match self.flaw {
            Some(Flaw::WalkIgnoresTheKind) => traversal.kinds.clear(),
            Some(Flaw::WalkIsOneStep) => traversal.depth = 1,
            _ => {}
        }
        store.traverse(&traversal).await
    }

    async fn find(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        if self.is(Flaw::CannotAndPretends) {
            return Ok(Vec::new());
        }
        let store = self.filled(GraphBackend::in_memory(GraphConfig::default())).await;
        let limit = if self.is(Flaw::FindIgnoresTheLimit) { usize::MAX } else { limit };
        let mut hits = store.find(filter, limit).await?;
        if self.is(Flaw::FindGivesDeleted) {
            let deleted = self
                .keys()
                .iter()
                .filter(|(_, stored)| stored.record.is_none())
                .map(|(key, stored)| Hit {
                    record: Record::new(key.clone()),
                    version: stored.version,
                    score: 1.0,
                    via: None,
                })
                .collect::<Vec<_>>();
            hits.extend(deleted);
        }
        Ok(hits)
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        self.reach().await?;
        if self.is(Flaw::ProbeIsNeverWell) {
            Ok(Health::ReadOnly)
        } else {
            self.reply(Applied::default()).map(|_| Health::Healthy)
        }
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        let live = |stored: &&Stored| !self.is(Flaw::NewestIgnoresDeletes) || stored.record.is_some();
        Ok(self.keys().values().filter(live).map(|stored| stored.version).max().unwrap_or_default())
    }

    async fn sweep(&self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        let mut keys = self.keys();
        let newest = keys.values().map(|stored| stored.version).max().unwrap_or_default();
        let below = match self.flaw {
            Some(Flaw::SweepForgetsWhatIsNewer) => newest,
            Some(Flaw::SweepForgetsTheNewest) => older_than,
            _ => older_than.min(newest),
        };
        let goes =
            |stored: &Stored| stored.version < below && (stored.record.is_none() || self.is(Flaw::SweepForgetsRecords));
        let swept: Vec<Key> = keys.iter().filter(|(_, stored)| goes(stored)).map(|(key, _)| key.clone()).collect();
        swept.iter().take(at_most).for_each(|key| {
            keys.remove(key);
        });
        Ok(swept.len().min(at_most))
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        Some(self)
    }
}

/// A transaction is a copy of the store without the lock; nobody begins two here.
struct Pending {
    store: Store,
    write: Option<FencedWrite>,
}

#[async_trait]
impl Transactions for Store {
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError> {
        let store = Store { flaw: self.flaw, keys: Arc::clone(&self.keys), ..Store::default() };
        let early = self.is(Flaw::DropCommits);
        if early {
            store.apply(write).await?;
        }
        Ok(Box::new(Pending { store, write: (!early).then(|| write.clone()) }))
    }
}

#[async_trait]
impl Transaction for Pending {
    async fn commit(mut self: Box<Self>) -> Result<Applied, BackendError> {
        match self.write.take() {
            Some(write) if !self.store.is(Flaw::CommitDoesNothing) => self.store.apply(&write).await,
            _ => Ok(Applied::default()),
        }
    }

    async fn rollback(self: Box<Self>) -> Result<(), BackendError> {
        Ok(())
    }
}
