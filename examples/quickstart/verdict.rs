//! The comparison of a store with what was acknowledged. Plain code: the book and the store's content go in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use seawall::backend::{BackendName, Stored};
use seawall::operation::{OperationId, Version};
use seawall::record::Key;

use crate::book::{Book, Effect, Expected};

/// What is wrong with one store; nothing, if every set is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Records that the store holds for acknowledged keys.
    pub(crate) live: usize,
    /// Acknowledged deletes that it holds.
    pub(crate) deleted: usize,
    /// Keys whose last acknowledged write is not in the store, or not whole.
    pub(crate) lost: BTreeSet<Key>,
    /// Keys on which an operation had its effect more than once.
    pub(crate) duplicated: BTreeSet<Key>,
    /// Keys on which an older write went over a newer one, or where something stands that nobody acknowledged.
    pub(crate) reordered: BTreeSet<Key>,
}

impl Verdict {
    /// Compares what a store holds with what was acknowledged.
    pub(crate) fn of(
        store: &BackendName,
        held: &HashMap<Key, Option<Stored>>,
        expected: &BTreeMap<Key, Expected>,
        book: &Book,
    ) -> Self {
        let mut verdict = Self::default();
        for (key, expected) in expected {
            verdict.compare(key, held.get(key).and_then(Option::as_ref), expected);
        }
        verdict.check_receipts(book);
        verdict.check_effects(book.effects.iter().filter(|effect| effect.store == *store));
        verdict
    }

    fn compare(&mut self, key: &Key, held: Option<&Stored>, expected: &Expected) {
        let version = held.map_or(Version(0), |stored| stored.version);
        let record = held.and_then(|stored| stored.record.as_ref());
        match record {
            Some(_) => self.live += 1,
            None => self.deleted += usize::from(version > Version(0)),
        }
        if version > expected.version {
            self.reordered.insert(key.clone());
        } else if version < expected.version || record != expected.record.as_ref() {
            self.lost.insert(key.clone());
        }
    }

    /// Receipts of one key must have growing versions, and no two receipts the same.
    fn check_receipts(&mut self, book: &Book) {
        let mut newest: HashMap<&Key, Version> = HashMap::new();
        let mut seen = HashSet::new();
        for (sent, receipt) in book.acknowledged() {
            let before = newest.insert(sent.job.key(), receipt.version);
            if !seen.insert(receipt.version) {
                self.duplicated.insert(sent.job.key().clone());
            } else if before.is_some_and(|before| before > receipt.version) {
                self.reordered.insert(sent.job.key().clone());
            }
        }
    }

    /// What changed something must have done so in the order of the versions, and each operation once.
    fn check_effects<'a>(&mut self, effects: impl Iterator<Item = &'a Effect>) {
        let mut newest: HashMap<&Key, Version> = HashMap::new();
        let mut times: HashMap<(OperationId, &Key), i32> = HashMap::new();
        for Effect { operation, key, version, compensation, .. } in effects.filter(|effect| effect.changed) {
            let newest = newest.entry(key).or_default();
            let times = times.entry((*operation, key)).or_default();
            if *compensation {
                // It goes over the write that it takes back, and keeps that one's version. That one may never have
                // arrived.
                *times = (*times - 1).max(0);
            } else {
                *times += 1;
            }
            if *times > 1 {
                self.duplicated.insert(key.clone());
            }
            if *version < *newest {
                self.reordered.insert(key.clone());
            }
            *newest = (*version).max(*newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use seawall::operation::{Held, Receipt};
    use seawall::record::Record;

    use super::*;
    use crate::book::Job;
    use crate::input::Catalogue;
    use crate::report::Report;

    const KEY: &str = "a";

    /// A client that stored a record as version 2 and set its revision as version 5.
    struct Story {
        book: Book,
        catalogue: Catalogue,
        operations: [OperationId; 2],
    }

    fn story() -> Story {
        let catalogue = Catalogue::parse(br#"{"key": "a", "text": "t", "embedding_f32le_base64": "AACAPw=="}"#)
            .expect("is a record");
        let mut book = Book::default();
        let operations = [OperationId::generate(), OperationId::generate()];
        let jobs = [Job::Store { key: KEY.into() }, Job::Update { key: KEY.into(), revision: 1 }];
        for ((job, operation), version) in jobs.into_iter().zip(operations).zip([Version(2), Version(5)]) {
            book.hear(&Report::Sent { operation, job });
            book.hear(&Report::Acknowledged(Receipt { operation, version, held: Held::Committed }));
        }
        Story { book, catalogue, operations }
    }

    impl Story {
        fn record(&self) -> Record {
            self.catalogue.records[0].clone().with("revision", 1)
        }

        fn verdict(&self, version: u64, record: Option<Record>) -> Verdict {
            let held = HashMap::from([(KEY.into(), Some(Stored { version: Version(version), record }))]);
            Verdict::of(&"graph".into(), &held, &self.book.expected(&self.catalogue), &self.book)
        }

        fn effect(&mut self, operation: usize, version: u64, compensation: bool, changed: bool) {
            let operation = self.operations[operation];
            let (store, key, version) = ("graph".into(), KEY.into(), Version(version));
            self.book.effects.push(Effect { store, operation, key, version, compensation, changed });
        }
    }

    fn keys(is_there: bool) -> BTreeSet<Key> {
        is_there.then(|| KEY.into()).into_iter().collect()
    }

    #[test]
    fn a_store_that_holds_the_last_acknowledged_write_is_right() {
        let mut story = story();
        story.effect(0, 2, false, true);
        story.effect(1, 5, false, true);
        story.effect(1, 5, false, false);
        let verdict = story.verdict(5, Some(story.record()));
        assert_eq!(verdict, Verdict { live: 1, ..Verdict::default() });
    }

    #[test]
    fn a_missing_an_older_or_a_changed_record_is_lost() {
        let story = story();
        let other = story.record().with("revision", 0);
        for verdict in [story.verdict(0, None), story.verdict(2, None), story.verdict(5, Some(other))] {
            assert_eq!((verdict.lost, verdict.reordered), (keys(true), keys(false)));
        }
    }

    #[test]
    fn what_nobody_acknowledged_stands_out_of_order() {
        let story = story();
        assert_eq!(story.verdict(6, Some(story.record())).reordered, keys(true));
    }

    #[test]
    fn an_effect_out_of_order_and_a_second_one_are_found() {
        let mut story = story();
        story.effect(1, 5, false, true);
        story.effect(0, 2, false, true);
        let verdict = story.verdict(5, Some(story.record()));
        assert_eq!((verdict.duplicated, verdict.reordered), (keys(false), keys(true)));
        story.effect(1, 6, false, true);
        assert_eq!(story.verdict(5, Some(story.record())).duplicated, keys(true));
    }

    #[test]
    fn a_write_that_was_taken_back_may_be_tried_again_under_its_id() {
        let mut story = story();
        story.effect(0, 1, false, true);
        story.effect(0, 1, true, true);
        story.effect(0, 2, false, true);
        assert_eq!(story.verdict(5, Some(story.record())), Verdict { live: 1, ..Verdict::default() });
    }

    #[test]
    fn receipts_out_of_order_are_found() {
        let mut story = story();
        let operation = OperationId::generate();
        story.book.hear(&Report::Sent { operation, job: Job::Delete { key: KEY.into() } });
        story.book.hear(&Report::Acknowledged(Receipt { operation, version: Version(3), held: Held::Committed }));
        assert_eq!(story.verdict(3, None).reordered, keys(true));
    }
}
