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
        let mut keys = HashSet::with_capacity(changes);
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
