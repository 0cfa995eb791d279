//! How a record looks in Redis, and the scripts that change it.
//!
//! | key | holds | lives |
//! |---|---|---|
//! | `{prefix}:record:{key}` | a hash: `v` the version, `e` the embedding, `l` the relations, `p:{name}` a property | `ttl` |
//! | `{prefix}:fence:{key}` | the newest version of the key, and what that made of it | `tombstone_ttl` |
//! | `{prefix}:newest` | the newest version of all | `tombstone_ttl` |
//!
//! The fence outlives the record, so that a write that comes late is refused also when the record is gone. A version is
//! 20 digits, which Redis compares as text: Lua knows no whole number beyond 2^53. Everything else is MessagePack, which
//! keeps every number as it is.

use std::collections::HashMap;

use ::redis::{Script, ScriptInvocation};
use seawall_actors::backend::{BackendError, Fence, FencedWrite, Stored};
use seawall_actors::operation::{Change, Version};
use seawall_actors::record::{Embedding, Key, Properties, Record};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Applies a write: all of it, since what can fail comes before the first change. (A fence is set first: a full Redis
/// refuses that, and would let a script that began with a `DEL` go on.)
///
/// After the version, the fence and the two lives come, for each pair of keys, the kind of the change (`P`ut, `M`erge,
/// `D`elete), the number of fields, and their names and values; an empty value removes the field. What a fence says of
/// its key: there is a `R`ecord, it was `D`eleted, or there is a `G`ap: a merge came whose base is not known.
const APPLY: &str = "
    local version, over, ttl, grave = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
    local newest = redis.call('GET', KEYS[1]) or ''
    local plan, highest, at = {}, '', 5
    for i = 2, #KEYS, 2 do
        local fence = redis.call('GET', KEYS[i]) or ''
        local held = redis.call('HGET', KEYS[i + 1], 'v') or ''
        local kind, fields = ARGV[at], tonumber(ARGV[at + 1])
        local last = at + 1 + 2 * fields
        local newer = string.sub(fence, 1, 20)
        if newer < held then newer = held end
        if newer < version or (newer == version and over == 'C') then
            local becomes = 'R'
            if kind == 'D' then becomes = 'D' end
            if kind == 'M' and held == '' and string.sub(fence, 21) ~= 'D' then becomes = 'G' end
            plan[#plan + 1] = {KEYS[i], KEYS[i + 1], kind, becomes, at + 2, last, held}
        elseif highest < newer then
            highest = newer
        end
        at = last + 1
    end
    for _, change in ipairs(plan) do
        local fence, record, kind, becomes, first, last, held = unpack(change)
        redis.call('SET', fence, version .. becomes, 'PX', grave)
        if kind ~= 'M' then redis.call('DEL', record) end
        if becomes == 'R' then
            redis.call('HSET', record, 'v', version)
            for j = first, last, 2 do
                if ARGV[j + 1] == '' then
                    redis.call('HDEL', record, ARGV[j])
                else
                    redis.call('HSET', record, ARGV[j], ARGV[j + 1])
                end
            end
            if kind ~= 'M' or held == '' then redis.call('PEXPIRE', record, ttl) end
        end
    end
    if #plan > 0 and newest < version then redis.call('SET', KEYS[1], version, 'PX', grave) end
    return highest";

/// What is held under each pair of keys, at one instant. (`MULTI` would do it too, but not in a Redis that is full.)
const READ: &str = "
    local rows = {}
    for i = 1, #KEYS, 2 do
        rows[#rows + 1] = {redis.call('HGETALL', KEYS[i + 1]), redis.call('GET', KEYS[i])}
    end
    return rows";

const VERSION: &[u8] = b"v";
const EMBEDDING: &[u8] = b"e";
const RELATIONS: &[u8] = b"l";
const PROPERTY: &[u8] = b"p:";

/// What Redis says of one key.
pub(super) type Row = (HashMap<Vec<u8>, Vec<u8>>, Option<Vec<u8>>);

/// The keys of a cache, and for how long they live.
pub(super) struct Rows {
    apply: Script,
    read: Script,
    prefix: String,
    /// In milliseconds.
    ttl: u128,
    tombstone_ttl: u128,
}

impl Rows {
    pub(super) fn new(config: &super::RedisCacheConfig) -> Self {
        let (ttl, tombstone_ttl) = (config.ttl.as_millis(), config.tombstone_ttl.as_millis());
        Self { apply: Script::new(APPLY), read: Script::new(READ), prefix: config.prefix.clone(), ttl, tombstone_ttl }
    }

    /// The script for this write. It answers with the highest version that stood in the way, or nothing.
    pub(super) fn apply(&self, write: &FencedWrite) -> Result<ScriptInvocation<'_>, BackendError> {
        let mut script = self.apply.prepare_invoke();
        script.key(self.newest()).arg(digits(write.version));
        script.arg(if write.fence == Fence::Compensation { "C" } else { "W" });
        script.arg(self.ttl.to_string()).arg(self.tombstone_ttl.to_string());
        for change in write.changes.iter() {
            script.key(self.fence(change.key())).key(self.record(change.key()));
            let (kind, fields) = match change {
                Change::Put(record) => ("P", record_fields(record)?),
                Change::Merge { properties, .. } => ("M", merge_fields(properties)?),
                Change::Delete { .. } => ("D", Vec::new()),
            };
            script.arg(kind).arg(fields.len());
            for (name, value) in fields {
                script.arg(name).arg(value);
            }
        }
        Ok(script)
    }

    /// The script for these keys. It answers with a [`Row`] for each.
    pub(super) fn read(&self, keys: &[Key]) -> ScriptInvocation<'_> {
        let mut script = self.read.prepare_invoke();
        keys.iter().for_each(|key| {
            script.key(self.fence(key)).key(self.record(key));
        });
        script
    }

    /// Forgets what is held under these keys. The fences stay.
    pub(super) fn invalidate(&self, keys: &[Key]) -> ::redis::Cmd {
        let mut command = ::redis::cmd("DEL");
        keys.iter().for_each(|key| {
            command.arg(self.record(key));
        });
        command
    }

    pub(super) fn newest(&self) -> String {
        format!("{}:newest", self.prefix)
    }

    pub(super) fn probe(&self) -> String {
        format!("{}:probe", self.prefix)
    }

    fn fence(&self, key: &Key) -> String {
        format!("{}:fence:{key}", self.prefix)
    }

    fn record(&self, key: &Key) -> String {
        format!("{}:record:{key}", self.prefix)
    }
}

/// What a row says; `None` where nothing is known of the key.
pub(super) fn decode(key: &Key, (mut fields, fence): Row) -> Result<Option<Stored>, BackendError> {
    if let Some(version) = fields.remove(VERSION) {
        let mut record = Record::new(key.clone());
        let mut properties = Map::new();
        for (name, value) in fields {
            match name.as_slice() {
                EMBEDDING => record.embedding = Some(unpack::<Embedding>(&value)?),
                RELATIONS => record.relations = unpack(&value)?,
                name => {
                    let name = name.strip_prefix(PROPERTY).and_then(|name| std::str::from_utf8(name).ok());
                    let name = name.ok_or_else(unreadable)?;
                    properties.insert(name.to_owned(), unpack::<Value>(&value)?);
                }
            }
        }
        record.properties = Properties::from(properties);
        return Ok(Some(Stored { version: version_of(&version)?, record: Some(record) }));
    }
    match fence.as_deref().and_then(|fence| fence.split_last()) {
        Some((b'D', version)) => Ok(Some(Stored { version: version_of(version)?, record: None })),
        _ => Ok(None),
    }
}

/// The version that these digits are; 0 where there are none.
pub(super) fn version_of(digits: &[u8]) -> Result<Version, BackendError> {
    if digits.is_empty() {
        return Ok(Version(0));
    }
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.map(Version).ok_or_else(unreadable)
}

fn digits(version: Version) -> String {
    format!("{:020}", version.0)
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn record_fields(record: &Record) -> Result<Fields, BackendError> {
    let mut fields: Fields =
        record.properties.iter().map(|(name, value)| Ok((property(name), pack(value)?))).collect::<Result<_, _>>()?;
    if let Some(embedding) = &record.embedding {
        fields.push((EMBEDDING.to_vec(), pack(embedding)?));
    }
    if !record.relations.is_empty() {
        fields.push((RELATIONS.to_vec(), pack(&record.relations)?));
    }
    Ok(fields)
}

/// A null removes, and nothing is packed into nothing.
fn merge_fields(properties: &Properties) -> Result<Fields, BackendError> {
    let field = |(name, value): (&str, &Value)| {
        let value = if value.is_null() { Vec::new() } else { pack(value)? };
        Ok((property(name), value))
    };
    properties.iter().map(field).collect()
}

fn property(name: &str) -> Vec<u8> {
    [PROPERTY, name.as_bytes()].concat()
}

fn pack<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, BackendError> {
    rmp_serde::to_vec(value).map_err(|_| BackendError::permanent("the record cannot be encoded").with_code("encode"))
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BackendError> {
    rmp_serde::from_slice(bytes).map_err(|_| unreadable())
}

fn unreadable() -> BackendError {
    BackendError::permanent("what Redis holds under this key is no record of a cache").with_code("unreadable")
}
