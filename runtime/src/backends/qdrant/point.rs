//! Records as points.
//!
//! ```text
//! id          UUID of version 5, of the key
//! vector      the embedding, under the name that the configuration gives; none in a record without one
//! payload
//!   _key        the key, which is compared whenever a point is read
//!   _version_high, _version_low
//!               the version of the write, in two halves: filters compare in floating point, which has 53 bits
//!   _attempt    another for every request that writes: who reads it back knows whose write is there
//!   _operation  the operation, for people
//!   _deleted    true in a tombstone; not there in a record
//!   _record     properties and relations, as JSON
//!   _embedding  the embedding, as base64 of its little-endian floats: Qdrant scales the vectors that it compares by
//!               their angle, and keeps no other
//!   _terms      each property as `"name":value`, to be found by; long ones as a UUID of that
//! ```
//!
//! A term is equal where name and value are: no path to quote, no list of which one element would do, no `1` that
//! equals `1.0`.

use std::collections::HashMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::{
    Condition, Filter, ListValue, NamedVectors, PointId, PointStruct, Range, Value, Vector, Vectors,
    WithPayloadSelector,
};
use seawall_actors::backend::{BackendError, Fence, FencedWrite, Stored};
use seawall_actors::operation::{OperationId, Version};
use seawall_actors::record::{Embedding, Key, Properties, Record, Relation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(super) const KEY: &str = "_key";
pub(super) const VERSION_HIGH: &str = "_version_high";
pub(super) const VERSION_LOW: &str = "_version_low";
pub(super) const ATTEMPT: &str = "_attempt";
pub(super) const OPERATION: &str = "_operation";
pub(super) const DELETED: &str = "_deleted";
pub(super) const RECORD: &str = "_record";
pub(super) const EMBEDDING: &str = "_embedding";
pub(super) const TERMS: &str = "_terms";

/// Terms that are longer are found by a UUID of them.
const TERM_BYTES: usize = 128;
/// Of which the names of the points and of long terms are.
const NAMESPACE: Uuid = Uuid::from_u128(0x0c5a_3a57_95b1_4c0b_8f0e_5b7d_4f1e_6a92);

/// The payload of a whole record, without its terms.
pub(super) fn whole() -> WithPayloadSelector {
    vec![KEY, VERSION_HIGH, VERSION_LOW, ATTEMPT, DELETED, RECORD, EMBEDDING].into()
}

/// The payload that says whose write a point is.
pub(super) fn head() -> WithPayloadSelector {
    vec![KEY, VERSION_HIGH, VERSION_LOW, ATTEMPT].into()
}

/// The id of the point of this key.
pub(super) fn id(key: &Key) -> PointId {
    uuid(Uuid::new_v5(&NAMESPACE, key.as_str().as_bytes()))
}

fn uuid(uuid: Uuid) -> PointId {
    PointIdOptions::Uuid(uuid.to_string()).into()
}

/// Whose write a point is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: Version,
    pub(super) attempt: String,
}

/// Who writes, in one request.
pub(super) struct Author<'a> {
    pub(super) operation: OperationId,
    pub(super) version: Version,
    pub(super) attempt: &'a str,
}

/// The point for a record, or for the tombstone of this key.
///
/// # Errors
/// When the record cannot be written as JSON.
pub(super) fn encode(
    key: &Key,
    record: Option<&Record>,
    author: &Author<'_>,
    vector: &str,
) -> Result<PointStruct, BackendError> {
    let mut payload: HashMap<String, Value> = HashMap::from([
        (KEY.to_owned(), key.as_str().into()),
        (VERSION_HIGH.to_owned(), high(author.version).into()),
        (VERSION_LOW.to_owned(), low(author.version).into()),
        (ATTEMPT.to_owned(), author.attempt.into()),
        (OPERATION.to_owned(), author.operation.to_string().into()),
    ]);
    let mut vectors = HashMap::new();
    match record {
        None => {
            payload.insert(DELETED.to_owned(), true.into());
        }
        Some(record) => {
            payload.insert(RECORD.to_owned(), json(&BodyRef::from(record))?.into());
            let terms = record.properties.iter().map(|(name, value)| Ok(term(name, value)?.into()));
            let values = terms.collect::<Result<_, BackendError>>()?;
            payload.insert(TERMS.to_owned(), Kind::ListValue(ListValue { values }).into());
            if let Some(embedding) = &record.embedding {
                let bytes: Vec<u8> = embedding.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect();
                payload.insert(EMBEDDING.to_owned(), BASE64_STANDARD.encode(bytes).into());
                vectors.insert(vector.to_owned(), Vector::from(embedding.as_slice()));
            }
        }
    }
    // Without vectors, it still has to be said that there are none.
    let vectors: Vectors = NamedVectors { vectors }.into();
    Ok(PointStruct { id: Some(id(key)), payload, vectors: Some(vectors) })
}

/// What a point says, as [`whole`] asks for it.
///
/// # Errors
/// When it is not what [`encode`] makes.
pub(super) fn decode(payload: &HashMap<String, Value>) -> Result<(Key, Head, Stored), BackendError> {
    let (key, head) = decode_head(payload)?;
    let record = match kind(payload, DELETED) {
        Some(Kind::BoolValue(true)) => None,
        _ => Some(decode_record(key.clone(), payload)?),
    };
    let version = head.version;
    Ok((key, head, Stored { version, record }))
}

/// The key of a point and whose write it is.
///
/// # Errors
/// When it is not what [`encode`] makes.
pub(super) fn decode_head(payload: &HashMap<String, Value>) -> Result<(Key, Head), BackendError> {
    let key = text(payload, KEY)?;
    let attempt = text(payload, ATTEMPT)?;
    let (high, low) = (half(payload, VERSION_HIGH)?, half(payload, VERSION_LOW)?);
    let version = Version(u64::from(high) << 32 | u64::from(low));
    Ok((Key::from(key), Head { version, attempt: attempt.to_owned() }))
}

fn decode_record(key: Key, payload: &HashMap<String, Value>) -> Result<Record, BackendError> {
    let body: Body = serde_json::from_str(text(payload, RECORD)?).map_err(|_| foreign(RECORD))?;
    let embedding = match payload.get(EMBEDDING) {
        None => None,
        Some(_) => {
            let bytes = BASE64_STANDARD.decode(text(payload, EMBEDDING)?).map_err(|_| foreign(EMBEDDING))?;
            let (floats, []) = bytes.as_chunks::<4>() else { return Err(foreign(EMBEDDING)) };
            Some(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>().into())
        }
    };
    Ok(Record { key, properties: body.properties, embedding, relations: body.relations })
}

fn text<'a>(payload: &'a HashMap<String, Value>, field: &str) -> Result<&'a str, BackendError> {
    match kind(payload, field) {
        Some(Kind::StringValue(text)) => Ok(text),
        _ => Err(foreign(field)),
    }
}

/// A half of a version.
fn half(payload: &HashMap<String, Value>, field: &str) -> Result<u32, BackendError> {
    match kind(payload, field) {
        Some(Kind::IntegerValue(half)) => u32::try_from(*half).map_err(|_| foreign(field)),
        _ => Err(foreign(field)),
    }
}

/// The upper half of a version.
pub(super) fn high(version: Version) -> i64 {
    i64::from((version.0 >> 32) as u32)
}

/// The lower half of a version.
fn low(version: Version) -> i64 {
    i64::from(version.0 as u32)
}

fn kind<'a>(payload: &'a HashMap<String, Value>, field: &str) -> Option<&'a Kind> {
    payload.get(field)?.kind.as_ref()
}

fn foreign(field: &str) -> BackendError {
    let message = format!("a point has a `{field}` that Seawall did not write; give Seawall a collection of its own");
    BackendError::permanent(message).with_code("foreign_point")
}

/// Properties and relations: what is in the text of a record.
#[derive(Deserialize)]
struct Body {
    properties: Properties,
    relations: Vec<Relation>,
}

#[derive(Serialize)]
struct BodyRef<'a> {
    properties: &'a Properties,
    relations: &'a [Relation],
}

impl<'a> From<&'a Record> for BodyRef<'a> {
    fn from(record: &'a Record) -> Self {
        Self { properties: &record.properties, relations: &record.relations }
    }
}

fn json(value: &impl Serialize) -> Result<String, BackendError> {
    serde_json::to_string(value).map_err(|_| BackendError::permanent("a record does not go into JSON"))
}

/// What a record with this property is found by.
fn term(name: &str, value: &serde_json::Value) -> Result<String, BackendError> {
    let term = format!("{}:{}", json(&name)?, json(&unsigned_zeros(value))?);
    if term.len() <= TERM_BYTES {
        return Ok(term);
    }
    Ok(Uuid::new_v5(&NAMESPACE, term.as_bytes()).to_string())
}

/// The same value without `-0.0`, which equals `0.0` and is written otherwise.
fn unsigned_zeros(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) if number.is_f64() && number.as_f64() == Some(0.0) => Value::from(0.0),
        Value::Array(items) => items.iter().map(unsigned_zeros).collect(),
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), unsigned_zeros(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Records with all of these properties, but for the one of `but`.
///
/// # Errors
/// When a property cannot be written as JSON.
pub(super) fn filter(properties: &Properties, but: Option<&Key>) -> Result<Filter, BackendError> {
    let terms = properties.iter().map(|(name, value)| Ok(equals(TERMS, term(name, value)?)));
    let must = terms.collect::<Result<_, BackendError>>()?;
    let mut must_not = vec![Condition::matches(DELETED, true)];
    must_not.extend(but.map(|key| Condition::has_id([id(key)])));
    Ok(Filter { must, must_not, ..Filter::default() })
}

/// Points of versions with this upper half.
pub(super) fn with_high(high: i64) -> Filter {
    Filter::must([Condition::matches(VERSION_HIGH, high)])
}

/// The whole text. (By itself, the crate takes a text with a space in it for words to look for.)
fn equals(field: &str, text: String) -> Condition {
    Condition::matches(field, MatchValue::Keyword(text))
}

/// Tombstones below this version.
pub(super) fn tombstones(below: Version) -> Filter {
    Filter::must([Condition::matches(DELETED, true), older(Fence::Write, below)])
}

/// Over what a request may write one point.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Over {
    /// Over what the fence lets it.
    Fence,
    /// Over nothing but what was read: this attempt, or no point at all.
    Seen(Option<String>),
}

/// The points, of those that a request writes for some writes, that are written over. A point that is not there is made
/// whatever the condition says: so does Qdrant define conditional updates.
pub(super) fn condition(sent: &[(&FencedWrite, &[(PointId, Over)])]) -> Filter {
    if let [(write, over)] = sent
        && over.iter().all(|(_, over)| *over == Over::Fence)
    {
        return Filter::must([older(write.fence, write.version)]);
    }
    let mut any: Vec<Condition> = Vec::new();
    for (write, over) in sent {
        let mut fenced: Vec<PointId> = Vec::new();
        for (id, over) in *over {
            match over {
                Over::Fence => fenced.push(id.clone()),
                Over::Seen(Some(attempt)) => {
                    let condition = [Condition::has_id([id.clone()]), equals(ATTEMPT, attempt.clone())];
                    any.push(Filter::must(condition).into());
                }
                Over::Seen(None) => {}
            }
        }
        if !fenced.is_empty() {
            any.push(Filter::must([Condition::has_id(fenced), older(write.fence, write.version)]).into());
        }
    }
    // A filter without conditions would let everything be written over; no version is below 0.
    any.push(older(Fence::Write, Version(0)));
    Filter::should(any)
}

/// Points that a write of this version goes over: of a lower upper half, or of the same and a lower lower one.
fn older(fence: Fence, version: Version) -> Condition {
    // Exact: halves have 32 bits.
    let (high, low) = (high(version), low(version) as f64);
    let range = match fence {
        Fence::Write => Range { lt: Some(low), ..Range::default() },
        Fence::Compensation => Range { lte: Some(low), ..Range::default() },
    };
    let same = Filter::must([Condition::matches(VERSION_HIGH, high), Condition::range(VERSION_LOW, range)]);
    let lower = Range { lt: Some(high as f64), ..Range::default() };
    Filter::should([Condition::range(VERSION_HIGH, lower), same.into()]).into()
}

/// The embedding as the components that a search is near to.
pub(super) fn components(embedding: &Embedding) -> Vec<f32> {
    embedding.as_slice().to_vec()
}
