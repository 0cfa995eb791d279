//! Records as bytes: `version u8 = 1 | place in the log u64 | MessagePack`.
//!
//! MessagePack in its compact form: structs as arrays, variants by name. The golden file pins it.

use seawall_actors::journal::JournalRecord;
use seawall_actors::operation::{Change, Version};
use serde::Serialize;
use serde_json::Value;

use super::retention::Moment;
use super::row::LAST;

const VERSION: u8 = 1;
/// Levels of lists and objects inside a property. What is nested deeper would be written and could not be read.
const MAX_NESTING: usize = 128;

/// What a record means for how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It opens an entry.
    Opens(Version),
    /// It is kept as long as its entry is open.
    Belongs(Version),
    /// It closes an entry, and is kept as an outcome.
    Closes(Version),
    /// It dates what is before it, and is never kept.
    Dates(Moment),
    /// It is kept until a higher one is there.
    Reserves(Version),
}

impl Meaning {
    pub(super) fn of(record: &JournalRecord) -> Self {
        match record {
            JournalRecord::Intent(intent) | JournalRecord::Redriven(intent) => Self::Opens(intent.version),
            JournalRecord::Closed { version, .. } => Self::Closes(*version),
            JournalRecord::Reserved { up_to } => Self::Reserves(*up_to),
            JournalRecord::Tick { wall, ran } => Self::Dates(Moment { wall: *wall, ran: *ran }),
            JournalRecord::Done { version, .. }
            | JournalRecord::Decided { version, .. }
            | JournalRecord::Undone { version, .. }
            | JournalRecord::DeadLetter { version, .. }
            | JournalRecord::Revived { version, .. } => Self::Belongs(*version),
        }
    }
}

/// A record on its way to the disk.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) meaning: Meaning,
}

impl Encoded {
    /// Encodes a record.
    ///
    /// # Errors
    /// When it could not be read back.
    pub(super) fn of(record: &JournalRecord) -> Result<Self, String> {
        check_nesting(record)?;
        let mut bytes = Vec::with_capacity(128);
        record.serialize(&mut rmp_serde::Serializer::new(&mut bytes)).map_err(|error| error.to_string())?;
        Ok(Self { bytes, meaning: Meaning::of(record) })
    }
}

pub(super) fn envelope(lsn: u64, encoded: &[u8]) -> Vec<u8> {
    let mut envelope = Vec::with_capacity(9 + encoded.len());
    envelope.push(VERSION);
    envelope.extend(lsn.to_be_bytes());
    envelope.extend(encoded);
    envelope
}

/// The record in an envelope, and its place in the log.
pub(super) fn open_envelope(envelope: &[u8]) -> Result<(u64, JournalRecord), String> {
    let (head, encoded) = envelope.split_first_chunk::<9>().ok_or("a record is too short")?;
    let [version, lsn @ ..] = *head;
    if version != VERSION {
        return Err(format!("a record has version {version}, which is unknown to this version of Seawall"));
    }
    let lsn = u64::from_be_bytes(lsn);
    if lsn > LAST {
        return Err("a record has a place in the log that there cannot be".to_owned());
    }
    let record = rmp_serde::from_slice(encoded).map_err(|error| format!("a record is unreadable: {error}"))?;
    Ok((lsn, record))
}

fn check_nesting(record: &JournalRecord) -> Result<(), String> {
    let (JournalRecord::Intent(intent) | JournalRecord::Redriven(intent)) = record else { return Ok(()) };
    let undo = intent.undo.iter().flat_map(|(_, changes)| changes.iter());
    for change in intent.changes.iter().chain(undo) {
        let properties = match change {
            Change::Put(record) => &record.properties,
            Change::Merge { properties, .. } => properties,
            Change::Delete { .. } => continue,
        };
        if properties.iter().any(|(_, value)| !nests_within(value, MAX_NESTING)) {
            return Err(format!("a property is nested deeper than {MAX_NESTING} levels"));
        }
    }
    Ok(())
}

fn nests_within(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => false,
        Value::Array(items) => items.iter().all(|item| nests_within(item, levels - 1)),
        Value::Object(map) => map.values().all(|item| nests_within(item, levels - 1)),
        _ => true,
    }
}
