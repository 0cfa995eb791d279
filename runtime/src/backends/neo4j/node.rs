//! Records as nodes, and nodes as records. Plain data: no connection.

use std::collections::{BTreeMap, BTreeSet};

use neo4rs::{BoltList, BoltMap, BoltType, Row};
use seawall_actors::backend::{BackendError, Fence, FencedWrite, Stored};
use seawall_actors::operation::{Change, Version};
use seawall_actors::record::{Embedding, Key, Properties, Record, Relation};
use serde_json::{Map, Value};

use super::errors::unreadable;
use crate::backends::records::nests_at_most;

/// How many bytes a value may have that an index of Neo4j takes (8 167, with what it adds itself).
pub(super) const INDEXED_BYTES: usize = 8_000;
/// How deep lists and objects in a property may nest, within the object that all properties are: `serde_json` reads
/// 127 levels.
const MAX_NESTING: usize = 126;

/// What a write asks of the nodes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that are replaced, by key.
    pub(super) nodes: BTreeMap<Key, BoltMap>,
    /// The relations that they get.
    relations: Vec<(Key, Vec<Relation>)>,
    /// Properties that are merged, by key.
    pub(super) merges: BTreeMap<Key, Properties>,
    /// The version that they get.
    version: i64,
    /// Up to which version it goes over what is held.
    pub(super) over: i64,
}

impl Plan {
    /// Of a write; [`Permanent`](seawall_actors::backend::ErrorKind::Permanent) what no node can hold.
    pub(super) fn of(write: &FencedWrite) -> Result<Self, BackendError> {
        let too_high = || BackendError::permanent("the version is beyond what a node can hold").with_code("too_large");
        let version = i64::try_from(write.version.0).map_err(|_| too_high())?;
        let over = if write.fence == Fence::Compensation { version } else { version - 1 };
        let mut plan = Self { version, over, ..Self::default() };
        for change in write.changes.iter() {
            admit_key(change.key())?;
            match change {
                Change::Put(record) => {
                    record.relations.iter().try_for_each(|relation| admit_key(&relation.to))?;
                    let mut node = plan.node(&record.key);
                    set_properties(&mut node, &record.properties)?;
                    if let Some(embedding) = &record.embedding {
                        let components = embedding.as_slice().iter().map(|x| f64::from(*x).into()).collect();
                        put(&mut node, "_embedding", list(components));
                    }
                    plan.nodes.insert(record.key.clone(), node);
                    if !record.relations.is_empty() {
                        plan.relations.push((record.key.clone(), record.relations.clone()));
                    }
                }
                Change::Delete { key } => {
                    let mut node = plan.node(key);
                    put(&mut node, "_deleted", true);
                    plan.nodes.insert(key.clone(), node);
                }
                Change::Merge { key, properties } => {
                    admit_nesting(properties)?;
                    plan.merges.insert(key.clone(), properties.clone());
                }
            }
        }
        Ok(plan)
    }

    fn node(&self, key: &Key) -> BoltMap {
        let mut node = BoltMap::default();
        put(&mut node, "key", key.as_str());
        put(&mut node, "_version", self.version);
        put(&mut node, "_lock", true);
        node
    }

    /// `$rows` of the nodes that are replaced, in the order in which everybody locks them.
    pub(super) fn rows(&self) -> BoltType {
        list(self.nodes.iter().map(|(key, node)| row(key, node.clone())).collect())
    }

    /// The keys that it writes or relates to.
    pub(super) fn touched(&self) -> BoltType {
        let related = self.relations.iter().flat_map(|(_, relations)| relations.iter().map(|relation| &relation.to));
        let touched: BTreeSet<&Key> = self.nodes.keys().chain(self.merges.keys()).chain(related).collect();
        texts(touched.into_iter().map(Key::as_str))
    }

    /// `$rows` of the relations of these nodes.
    pub(super) fn relations(&self, replaced: &[Key]) -> Option<BoltType> {
        let mut rows = Vec::new();
        for (key, relations) in self.relations.iter().filter(|(key, _)| replaced.contains(key)) {
            for (position, relation) in (0_i64..).zip(relations) {
                let mut row = BoltMap::default();
                put(&mut row, "from", key.as_str());
                put(&mut row, "to", relation.to.as_str());
                put(&mut row, "kind", &*relation.kind);
                put(&mut row, "position", position);
                rows.push(BoltType::Map(row));
            }
        }
        (!rows.is_empty()).then(|| list(rows))
    }

    /// `$rows` of the nodes that properties are merged into, before it is known what is there.
    pub(super) fn locks(&self) -> BoltType {
        list(self.merges.keys().map(|key| row(key, BoltMap::default())).collect())
    }

    /// The row of one node that properties are merged into, where these were there. A null removes what is not there
    /// any more.
    pub(super) fn merged(&self, key: &Key, mut before: Properties) -> Result<BoltType, BackendError> {
        let changes = self.merges.get(key).ok_or_else(unreadable)?;
        before.merge(changes);
        let mut node = self.node(key);
        put(&mut node, "_deleted", BoltType::Null(neo4rs::BoltNull));
        for (name, _) in changes.iter().filter(|(name, _)| is_plain(name)) {
            put(&mut node, name, BoltType::Null(neo4rs::BoltNull));
        }
        set_properties(&mut node, &before)?;
        Ok(row(key, node))
    }
}

/// Properties of a filter that Neo4j can look for, in an order of their own.
pub(super) fn searchable(filter: &Properties) -> Vec<(&str, BoltType)> {
    let quotable = |name: &str| is_plain(name) && !name.contains(|c: char| c == '`' || c == '\\' || c.is_control());
    let single = |value: &Value| if value.is_array() { None } else { native(value) };
    filter.iter().filter(|(name, _)| quotable(name)).filter_map(|(name, value)| Some((name, single(value)?))).collect()
}

/// What is held, of a row that tells a node, and under which key.
pub(super) fn stored(row: &Row) -> Result<(Key, Stored), BackendError> {
    let key = Key::from(text(row, "key")?);
    let version = version(row)?;
    if optional::<bool>(row, "deleted")? == Some(true) {
        return Ok((key, Stored { version, record: None }));
    }
    let mut record = Record::new(key.clone());
    record.properties = properties(row)?;
    if let Some(components) = optional::<Vec<f64>>(row, "embedding")? {
        // They were of this precision.
        #[expect(clippy::cast_possible_truncation, reason = "widened when it was written")]
        let components: Vec<f32> = components.into_iter().map(|x| x as f32).collect();
        record.embedding = Some(Embedding::new(components));
    }
    let mut relations: Vec<(i64, String, String)> = row.get("relations").map_err(|_| unreadable())?;
    relations.sort_unstable();
    record.relations = relations.into_iter().map(|(_, kind, to)| Relation::new(kind, to)).collect();
    Ok((key, Stored { version, record: Some(record) }))
}

/// The properties that the column `properties` tells as JSON.
pub(super) fn properties(row: &Row) -> Result<Properties, BackendError> {
    let object: Map<String, Value> = serde_json::from_str(&text(row, "properties")?).map_err(|_| unreadable())?;
    Ok(Properties::from(object))
}

/// The column `version`; 0 where there is none.
pub(super) fn version(row: &Row) -> Result<Version, BackendError> {
    let version = optional::<i64>(row, "version")?.unwrap_or(0);
    u64::try_from(version).map(Version).map_err(|_| unreadable())
}

pub(super) fn text(row: &Row, column: &str) -> Result<String, BackendError> {
    row.get(column).map_err(|_| unreadable())
}

pub(super) fn number(row: &Row, column: &str) -> Result<usize, BackendError> {
    let number: i64 = row.get(column).map_err(|_| unreadable())?;
    usize::try_from(number).map_err(|_| unreadable())
}

pub(super) fn flag(row: &Row, column: &str) -> Result<bool, BackendError> {
    row.get(column).map_err(|_| unreadable())
}

fn optional<T: serde::de::DeserializeOwned>(row: &Row, column: &str) -> Result<Option<T>, BackendError> {
    row.get(column).map_err(|_| unreadable())
}

pub(super) fn list(items: Vec<BoltType>) -> BoltType {
    BoltType::List(BoltList { value: items })
}

/// Texts as a list.
pub(super) fn texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> BoltType {
    list(texts.into_iter().map(BoltType::from).collect())
}

fn row(key: &Key, properties: BoltMap) -> BoltType {
    let mut row = BoltMap::default();
    put(&mut row, "key", key.as_str());
    put(&mut row, "properties", BoltType::Map(properties));
    BoltType::Map(row)
}

fn put(map: &mut BoltMap, name: &str, value: impl Into<BoltType>) {
    map.put(name.into(), value.into());
}

/// All as JSON, and what Neo4j can hold by its own name.
fn set_properties(node: &mut BoltMap, properties: &Properties) -> Result<(), BackendError> {
    admit_nesting(properties)?;
    let json = serde_json::to_string(properties).map_err(|_| BackendError::permanent("a property is not JSON"))?;
    put(node, "_properties", json);
    for (name, value) in properties.iter().filter(|(name, _)| is_plain(name)) {
        if let Some(value) = native(value) {
            put(node, name, value);
        }
    }
    Ok(())
}

/// Whether a node can have a property of this name that is not Seawall's own.
fn is_plain(name: &str) -> bool {
    let reserved = name == "key" || name.starts_with('_') || name.starts_with('@');
    (1..=INDEXED_BYTES).contains(&name.len()) && !reserved && !name.contains('\0')
}

/// A value as Neo4j holds it; `None` for one that it cannot hold, or no index of it could.
fn native(value: &Value) -> Option<BoltType> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::Bool(value) => Some((*value).into()),
        Value::Number(number) if number.is_f64() => number.as_f64().map(BoltType::from),
        Value::Number(number) => number.as_i64().map(BoltType::from),
        Value::String(text) => (text.len() <= INDEXED_BYTES).then(|| text.as_str().into()),
        Value::Array(items) => native_list(items),
    }
}

/// Of one type all, for Neo4j has no others.
fn native_list(items: &[Value]) -> Option<BoltType> {
    let kind = |value: &Value| match value {
        Value::Bool(_) => Some(0),
        Value::Number(number) if number.is_f64() => Some(1),
        Value::Number(_) => Some(2),
        Value::String(_) => Some(3),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let first = items.first().map(kind)??;
    let bytes: usize = items.iter().map(|item| item.as_str().map_or(8, str::len)).sum();
    if bytes > INDEXED_BYTES || items.iter().any(|item| kind(item) != Some(first)) {
        return None;
    }
    items.iter().map(native).collect::<Option<Vec<_>>>().map(list)
}

fn admit_key(key: &Key) -> Result<(), BackendError> {
    if key.as_str().len() <= INDEXED_BYTES {
        return Ok(());
    }
    let message = format!("a key of {} bytes; the index of Neo4j takes {INDEXED_BYTES}", key.as_str().len());
    Err(BackendError::permanent(message).with_code("key_too_long"))
}

fn admit_nesting(properties: &Properties) -> Result<(), BackendError> {
    if properties.iter().all(|(_, value)| nests_at_most(value, MAX_NESTING)) {
        return Ok(());
    }
    let message = format!("a property nests deeper than {MAX_NESTING} lists and objects");
    Err(BackendError::permanent(message).with_code("too_deep"))
}
