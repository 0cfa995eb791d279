//! What is refused at the door: everything that is empty, too large, or not a number.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigProblem, check_range};
use crate::operation::{Change, Near, Search, Traversal, Write};
use crate::record::{Embedding, Key, Properties, Record};
use serde_json::Value;

/// The sizes that a request may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes in a key. Default 512, range 1 to 65 535.
    pub key_bytes: usize,
    /// Bytes in one write, all its changes together, as [`Write::weight`] counts them. Default 1 MiB, range 1 KiB
    /// to 64 MiB.
    pub write_bytes: usize,
    /// Changes in one batch. Default 1 000, range 1 to 100 000.
    pub batch: usize,
    /// Dimensions of every embedding; `None` accepts any. Default `None`, range 1 to 65 536.
    pub dimension: Option<usize>,
    /// Objects and lists within each other in a property. Default 64, range 1 to 100: the journal could not read
    /// deeper ones back.
    pub nesting: usize,
    /// Steps of a traversal. Default 16, range 1 to 1 000.
    pub depth: u32,
    /// Records that a search or traversal may ask for. Default 10 000, range 1 to 1 000 000.
    pub hits: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes: 512,
            write_bytes: 1 << 20,
            batch: 1_000,
            dimension: None,
            nesting: 64,
            depth: 16,
            hits: 10_000,
        }
    }
}

/// Which limit a request crossed. Nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInput {
    /// A key without text.
    #[error("a key is empty; give every record a name of at least one byte")]
    EmptyKey,
    /// A key that is too long.
    #[error("a key of {bytes} bytes exceeds the limit of {limit} (`limits.key_bytes`)")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A relation without a kind.
    #[error("a relation has an empty kind")]
    EmptyRelationKind,
    /// A write that is too large.
    #[error("a write of about {bytes} bytes exceeds the limit of {limit} (`limits.write_bytes`); split it")]
    WriteTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A batch without changes.
    #[error("the batch is empty")]
    EmptyBatch,
    /// A batch that is too long.
    #[error("a batch of {changes} changes exceeds the limit of {limit} (`limits.batch`); split it")]
    BatchTooLong {
        /// Its length.
        changes: usize,
        /// The limit.
        limit: usize,
    },
    /// Two changes to one key in a batch: which is meant?
    #[error("the batch changes one key twice")]
    DuplicateKey,
    /// An embedding with a component that is no number.
    #[error("component {component} of an embedding is NaN or infinite")]
    NotFinite {
        /// Which component, from 0.
        component: usize,
    },
    /// An embedding without components.
    #[error("an embedding is empty; leave it out instead")]
    EmptyEmbedding,
    /// An embedding of another dimension than the store's.
    #[error("an embedding has {dimension} dimensions, the store has {expected} (`limits.dimension`)")]
    WrongDimension {
        /// Its dimension.
        dimension: usize,
        /// The store's.
        expected: usize,
    },
    /// A property of objects within objects within objects.
    #[error("a property is nested deeper than {limit} levels (`limits.nesting`)")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// A traversal without or with too many steps.
    #[error("a traversal of depth {depth}; it must be 1 to {limit} (`limits.depth`)")]
    Depth {
        /// What was asked.
        depth: u32,
        /// The limit.
        limit: u32,
    },
    /// A search or traversal for no or too many records.
    #[error("{hits} records asked for; it must be 1 to {limit} (`limits.hits`)")]
    Hits {
        /// What was asked.
        hits: usize,
        /// The limit.
        limit: usize,
    },
    /// A backend that this runtime does not have.
    #[error("there is no backend named `{0}`")]
    UnknownBackend(String),
    /// A timeout of zero.
    #[error("a timeout of zero leaves no time for an answer")]
    ZeroTimeout,
}

impl Limits {
    /// Adds everything that is wrong with these values, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        check_range(path, "key_bytes", self.key_bytes, 1..=65_535, problems);
        check_range(path, "write_bytes", self.write_bytes, 1 << 10..=64 << 20, problems);
        check_range(path, "batch", self.batch, 1..=100_000, problems);
        check_range(path, "dimension", self.dimension.unwrap_or(1), 1..=65_536, problems);
        check_range(path, "nesting", self.nesting, 1..=100, problems);
        check_range(path, "depth", self.depth, 1..=1_000, problems);
        check_range(path, "hits", self.hits, 1..=1_000_000, problems);
    }

    /// Checks a write.
    ///
    /// # Errors
    /// The first limit that it crosses.
    pub fn check_write(&self, write: &Write) -> Result<(), InvalidInput> {
        let changes = write.changes.len();
        if changes == 0 {
            return Err(InvalidInput::EmptyBatch);
        }
        if changes > self.batch {
            return Err(InvalidInput::BatchTooLong { changes, limit: self.batch });
        }
        let mut keys = HashSet::with_capacity(if changes > 1 { changes } else { 0 });
        for change in &write.changes {
            self.check_key(change.key())?;
            if changes > 1 && !keys.insert(change.key()) {
                return Err(InvalidInput::DuplicateKey);
            }
            match change {
                Change::Put(record) => self.check_record(record)?,
                Change::Merge { properties, .. } => self.check_properties(properties)?,
                Change::Delete { .. } => {}
            }
        }
        let bytes = write.weight();
        if bytes > self.write_bytes {
            return Err(InvalidInput::WriteTooLarge { bytes, limit: self.write_bytes });
        }
        if write.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(InvalidInput::ZeroTimeout);
        }
        Ok(())
    }

    /// Checks a key.
    ///
    /// # Errors
    /// When it is empty or too long.
    pub fn check_key(&self, key: &Key) -> Result<(), InvalidInput> {
        match key.as_str().len() {
            0 => Err(InvalidInput::EmptyKey),
            bytes if bytes > self.key_bytes => Err(InvalidInput::KeyTooLong { bytes, limit: self.key_bytes }),
            _ => Ok(()),
        }
    }

    /// Checks a search.
    ///
    /// # Errors
    /// The first limit that it crosses.
    pub fn check_search(&self, search: &Search) -> Result<(), InvalidInput> {
        self.check_hits(search.limit)?;
        self.check_properties(&search.filter)?;
        match &search.near {
            Near::Embedding(embedding) => self.check_embedding(embedding),
            Near::Key(key) => self.check_key(key),
        }
    }

    /// Checks a traversal.
    ///
    /// # Errors
    /// The first limit that it crosses.
    pub fn check_traversal(&self, traversal: &Traversal) -> Result<(), InvalidInput> {
        self.check_hits(traversal.limit)?;
        self.check_key(&traversal.from)?;
        if traversal.depth == 0 || traversal.depth > self.depth {
            return Err(InvalidInput::Depth { depth: traversal.depth, limit: self.depth });
        }
        if traversal.kinds.iter().any(|kind| kind.is_empty()) {
            return Err(InvalidInput::EmptyRelationKind);
        }
        Ok(())
    }

    fn check_hits(&self, hits: usize) -> Result<(), InvalidInput> {
        if hits == 0 || hits > self.hits {
            return Err(InvalidInput::Hits { hits, limit: self.hits });
        }
        Ok(())
    }

    fn check_properties(&self, properties: &Properties) -> Result<(), InvalidInput> {
        match properties.iter().all(|(_, value)| is_within(value, self.nesting)) {
            true => Ok(()),
            false => Err(InvalidInput::TooDeep { limit: self.nesting }),
        }
    }

    fn check_record(&self, record: &Record) -> Result<(), InvalidInput> {
        self.check_properties(&record.properties)?;
        if let Some(embedding) = &record.embedding {
            self.check_embedding(embedding)?;
        }
        for relation in &record.relations {
            if relation.kind.is_empty() {
                return Err(InvalidInput::EmptyRelationKind);
            }
            self.check_key(&relation.to)?;
        }
        Ok(())
    }

    fn check_embedding(&self, embedding: &Embedding) -> Result<(), InvalidInput> {
        let dimension = embedding.dimension();
        if dimension == 0 {
            return Err(InvalidInput::EmptyEmbedding);
        }
        if let Some(expected) = self.dimension
            && dimension != expected
        {
            return Err(InvalidInput::WrongDimension { dimension, expected });
        }
        match embedding.as_slice().iter().position(|x| !x.is_finite()) {
            Some(component) => Err(InvalidInput::NotFinite { component }),
            None => Ok(()),
        }
    }
}

/// Whether a value has at most this many levels. Looks no deeper than that.
fn is_within(value: &Value, levels: usize) -> bool {
    let mut inside: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => return true,
    };
    levels > 0 && inside.all(|value| is_within(value, levels - 1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::record::Relation;

    fn put(record: Record) -> Result<(), InvalidInput> {
        Limits::default().check_write(&Write::store(record))
    }

    #[test]
    fn every_limit_is_kept_to_the_byte() {
        let limits = Limits { key_bytes: 4, batch: 2, write_bytes: 1 << 10, dimension: Some(2), ..Limits::default() };
        let write = |record: Record| limits.check_write(&Write::store(record));
        assert_eq!(write(Record::new("abcd")), Ok(()));
        assert_eq!(write(Record::new("abcde")), Err(InvalidInput::KeyTooLong { bytes: 5, limit: 4 }));
        // Four bytes in two characters.
        assert_eq!(write(Record::new("\u{df}\u{df}")), Ok(()));
        assert_eq!(write(Record::new("")), Err(InvalidInput::EmptyKey));
        let text = |bytes: usize| Record::new("a").with("b", "x".repeat(bytes - 3));
        assert_eq!((text(1_024).weight(), write(text(1_024))), (1_024, Ok(())));
        assert_eq!(write(text(1_025)), Err(InvalidInput::WriteTooLarge { bytes: 1_025, limit: 1_024 }));
        let batch =
            |keys: &[&'static str]| limits.check_write(&Write::store_batch(keys.iter().map(|key| Record::new(*key))));
        assert_eq!((batch(&["a", "b"]), batch(&[])), (Ok(()), Err(InvalidInput::EmptyBatch)));
        assert_eq!(batch(&["a", "b", "c"]), Err(InvalidInput::BatchTooLong { changes: 3, limit: 2 }));
        assert_eq!(batch(&["a", "a"]), Err(InvalidInput::DuplicateKey));
        let embedded = |components: Vec<f32>| write(Record::new("a").with_embedding(components));
        assert_eq!(embedded(vec![1.0, 2.0]), Ok(()));
        assert_eq!(embedded(vec![1.0]), Err(InvalidInput::WrongDimension { dimension: 1, expected: 2 }));
        assert_eq!(embedded(vec![]), Err(InvalidInput::EmptyEmbedding));
        assert_eq!(embedded(vec![1.0, f32::NAN]), Err(InvalidInput::NotFinite { component: 1 }));
    }

    #[test]
    fn relations_timeouts_and_walks_are_checked_too() {
        assert_eq!(put(Record::new("a").with_relation("", "b")), Err(InvalidInput::EmptyRelationKind));
        assert_eq!(put(Record::new("a").with_relation("k", "")), Err(InvalidInput::EmptyKey));
        let mut record = Record::new("a");
        record.relations = vec![Relation::new("kind", "b")];
        assert_eq!(put(record), Ok(()));
        let limits = Limits::default();
        let write = Write::store(Record::new("a")).with_timeout(Duration::ZERO);
        assert_eq!(limits.check_write(&write), Err(InvalidInput::ZeroTimeout));
        let walk = |depth, limit| limits.check_traversal(&Traversal::from("a").depth(depth).limit(limit));
        assert_eq!((walk(1, 1), walk(16, 10_000)), (Ok(()), Ok(())));
        assert_eq!(walk(0, 1), Err(InvalidInput::Depth { depth: 0, limit: 16 }));
        assert_eq!(walk(17, 1), Err(InvalidInput::Depth { depth: 17, limit: 16 }));
        assert_eq!(walk(1, 0), Err(InvalidInput::Hits { hits: 0, limit: 10_000 }));
        assert_eq!(walk(1, 10_001), Err(InvalidInput::Hits { hits: 10_001, limit: 10_000 }));
        let walk = Traversal::from("a").along("");
        assert_eq!(limits.check_traversal(&walk), Err(InvalidInput::EmptyRelationKind));
    }

    #[test]
    fn nesting_is_refused_before_anything_recurses_into_it() {
        let nested = |levels: usize| (0..levels).fold(Value::from(1), |inside, _| Value::Array(vec![inside]));
        let limits = Limits::default();
        for (levels, fits) in [(64, true), (65, false), (4_000, false)] {
            let write = Write::store(Record::new("a").with("deep", nested(levels)));
            assert_eq!(limits.check_write(&write).is_ok(), fits, "{levels}");
            let update = Write::update("a", Properties::new().with("deep", nested(levels)));
            assert_eq!(limits.check_write(&update).is_ok(), fits, "{levels}");
            let search = Search::like("a").filter("deep", nested(levels));
            assert_eq!(limits.check_search(&search).is_ok(), fits, "{levels}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 16, 4, |inside| {
            prop_oneof![
                prop::collection::vec(inside.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inside, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_merge_is_what_doing_its_parts_one_after_another_is(
            before in prop::option::of(prop::collection::btree_map("[ab]", any_value(), 0..3)),
            changes in prop::collection::vec(prop::collection::btree_map("[ab]", any_value(), 0..3), 0..4),
        ) {
            let properties = |map: &std::collections::BTreeMap<String, Value>| {
                map.iter().fold(Properties::new(), |all, (name, value)| all.with(name.clone(), value.clone()))
            };
            let before = before.map(|map| Record::new("k").with_properties(properties(&map)));
            let merge = |map| Change::Merge { key: Key::from("k"), properties: properties(map) };
            let one_by_one = changes.iter().fold(before.clone(), |record, map| merge(map).apply_to(record));
            // The same, merged into each other first; `null` has to be kept until it meets the record.
            let mut all = Properties::new();
            for (name, value) in changes.iter().flatten() {
                all.set(name.clone(), value.clone());
            }
            let at_once = if changes.is_empty() {
                before
            } else {
                Change::Merge { key: "k".into(), properties: all }.apply_to(before)
            };
            prop_assert_eq!(one_by_one, at_once);
        }

        #[test]
        fn no_payload_is_in_what_a_log_would_show(text in "[a-z]{12}", component in 1_000.0_f32..2_000.0) {
            let record = Record::new("key").with("name", text.clone()).with_embedding(vec![component]);
            let write = Write::store(record).with_timeout(Duration::from_secs(1));
            let shown = format!("{write:?}");
            prop_assert!(!shown.contains(&text) && !shown.contains(&component.to_string()), "{}", shown);
        }

        #[test]
        fn the_weight_of_a_record_is_no_less_than_its_text(value in any_value()) {
            let json = serde_json::to_string(&value).expect("is written");
            let record = Record::new("k").with("v", value);
            // Names, texts and numbers count; quotes, commas and braces need not.
            prop_assert!(4 * record.weight() + 8 >= json.chars().filter(|c| c.is_alphanumeric()).count());
        }
    }
}
