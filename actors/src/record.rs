//! What is stored: a record with a key, properties, perhaps an embedding, and relations to other keys.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The name of a record, unique over all backends.
///
/// Any UTF-8 text of 1 to [`Limits::key_bytes`](crate::limits::Limits::key_bytes) bytes; the length is checked
/// where a request enters, not here. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Arc<str>);

impl Key {
    /// A key with this text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text of the key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Arc<str>>> From<T> for Key {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// The properties of a record: a JSON object, with typed access both ways.
///
/// `Debug` shows the number of properties and never a value, so that payloads cannot reach a log by accident.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Properties(Map<String, Value>);

impl Properties {
    /// No properties.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The properties that a serializable value (a struct, a map) consists of.
    ///
    /// # Errors
    /// When the value does not serialize to an object: a number, a list, a map with keys that are not text.
    /// Floats that JSON cannot express (NaN, infinities) become `null`, as everywhere in `serde_json`.
    pub fn from_typed<T: Serialize>(value: &T) -> Result<Self, PropertiesError> {
        match serde_json::to_value(value).map_err(PropertiesError::Serde)? {
            Value::Object(map) => Ok(Self(map)),
            other => Err(PropertiesError::NotAnObject(json_type(&other))),
        }
    }

    /// These properties as a typed value.
    ///
    /// # Errors
    /// When a property is missing or of another type than `T` asks for.
    pub fn to_typed<T: DeserializeOwned>(&self) -> Result<T, PropertiesError> {
        T::deserialize(Value::Object(self.0.clone())).map_err(PropertiesError::Serde)
    }

    /// The property of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Sets one property and gives the one that it replaced.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.0.insert(name.into(), value.into())
    }

    /// The same, for building in one expression.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// Merges `changes` over these properties, as an update does: a value replaces, `null` removes.
    /// Objects inside are replaced whole, not merged.
    pub fn merge(&mut self, changes: &Self) {
        for (name, value) in &changes.0 {
            if value.is_null() {
                self.0.remove(name);
            } else {
                self.0.insert(name.clone(), value.clone());
            }
        }
    }

    /// How many properties there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl From<Map<String, Value>> for Properties {
    fn from(map: Map<String, Value>) -> Self {
        Self(map)
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Properties({} hidden)", self.0.len())
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Why a value could not become [`Properties`], or properties a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PropertiesError {
    /// The value serializes to something without names.
    #[error("properties must be an object with names, but the value is {0}")]
    NotAnObject(&'static str),
    /// Serialization or deserialization failed.
    #[error("the properties do not fit the type: {0}")]
    Serde(#[source] serde_json::Error),
}

/// A vector of 32-bit floats. Cloning is cheap. Encoded as little-endian bytes, four a float.
#[derive(Clone, PartialEq)]
pub struct Embedding(Arc<[f32]>);

impl Embedding {
    /// An embedding with these components.
    pub fn new(components: impl Into<Arc<[f32]>>) -> Self {
        Self(components.into())
    }

    /// The components.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The number of components.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.0.len()
    }
}

impl<T: Into<Arc<[f32]>>> From<T> for Embedding {
    fn from(components: T) -> Self {
        Self(components.into())
    }
}

impl fmt::Debug for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embedding({} dimensions hidden)", self.0.len())
    }
}

impl Serialize for Embedding {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|x| x.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Embedding {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl<'de> serde::de::Visitor<'de> for Bytes {
            type Value = Embedding;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("little-endian 32-bit floats as bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Embedding, E> {
                let (floats, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::invalid_length(bytes.len(), &"a multiple of four bytes"));
                }
                Ok(Embedding(floats.iter().map(|b| f32::from_le_bytes(*b)).collect()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Embedding, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element::<u8>()? {
                    bytes.push(byte);
                }
                self.visit_bytes(&bytes)
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// A directed, named relation from the record that holds it to another key.
///
/// The other record need not exist: a traversal then ends there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Relation {
    /// What the relation means, for example `depends` or `authored_by`.
    pub kind: Arc<str>,
    /// The key that it points to.
    pub to: Key,
}

impl Relation {
    /// A relation of this kind to this key.
    pub fn new(kind: impl Into<Arc<str>>, to: impl Into<Key>) -> Self {
        Self { kind: kind.into(), to: to.into() }
    }
}

/// One record. Every backend holds it whole, so that any one of them can answer for it alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub key: Key,
    /// What it says.
    pub properties: Properties,
    /// Where it lies in the vector space, for a vector search.
    pub embedding: Option<Embedding>,
    /// What it is related to, for a traversal.
    pub relations: Vec<Relation>,
}

impl Record {
    /// A record without properties, embedding or relations.
    pub fn new(key: impl Into<Key>) -> Self {
        Self { key: key.into(), properties: Properties::new(), embedding: None, relations: Vec::new() }
    }

    /// With these properties.
    #[must_use]
    pub fn with_properties(mut self, properties: Properties) -> Self {
        self.properties = properties;
        self
    }

    /// With one property more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.properties.set(name, value);
        self
    }

    /// With this embedding.
    #[must_use]
    pub fn with_embedding(mut self, embedding: impl Into<Embedding>) -> Self {
        self.embedding = Some(embedding.into());
        self
    }

    /// With one relation more.
    #[must_use]
    pub fn with_relation(mut self, kind: impl Into<Arc<str>>, to: impl Into<Key>) -> Self {
        self.relations.push(Relation::new(kind, to));
        self
    }

    /// About how many bytes the record takes, for limits.
    #[must_use]
    pub fn weight(&self) -> usize {
        let properties: usize = self.properties.iter().map(|(name, value)| name.len() + value_weight(value)).sum();
        let embedding = self.embedding.as_ref().map_or(0, |e| e.dimension() * 4);
        let relations: usize = self.relations.iter().map(|r| r.kind.len() + r.to.as_str().len()).sum();
        self.key.as_str().len() + properties + embedding + relations
    }
}

pub(crate) fn value_weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 1,
        Value::Number(_) => 9,
        Value::String(text) => text.len() + 1,
        Value::Array(items) => items.iter().map(value_weight).sum::<usize>() + 1,
        Value::Object(map) => map.iter().map(|(name, value)| name.len() + value_weight(value)).sum::<usize>() + 1,
    }
}
