//! Records as rows of a guarded database.
//!
//! ```text
//! key                      value
//! 'l'                      ledger: format u8, records u64, next id u64, newest version u64, digest u64, crc u32
//! 'p'                      what the last probe wrote
//! 'r' id u64 chunk u32     chunk 0: format u8, length u32, crc u32, then the first bytes of the record;
//!                          chunk 1..: the bytes after them
//! ```
//!
//! A record is `(key, version, record or nil)` in MessagePack; an id names its key for as long as the key is held.
//! All numbers are big-endian. The ledger changes in the batch of what it counts: a row that sled lost is found at
//! the next open, by the checksum of its record or by the digest, the sum of all checksums. A file that lost its
//! end, all of the last batches, is not found out by this.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use seawall_actors::backend::Stored;
use seawall_actors::operation::Version;
use seawall_actors::record::{Key, Record};

use super::table::Changes;
use crate::backends::StoreOpenError;
use crate::guard::{Batch, GuardError, GuardOptions, GuardedDb, MAX_ROW_BYTES, create_dir_durably, sync_dir};

const FORMAT: u8 = 1;
const LEDGER: &[u8] = b"l";
const PROBE: &[u8] = b"p";
const RECORD: u8 = b'r';
const CHUNK_KEY_BYTES: usize = 1 + 8 + 4;
const CHUNK_BYTES: usize = MAX_ROW_BYTES - CHUNK_KEY_BYTES;
const HEADER_BYTES: usize = 1 + 4 + 4;

/// Where a key's record lies.
#[derive(Clone, Copy)]
struct Place {
    id: u64,
    chunks: u32,
    crc: u32,
}

/// What must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ledger {
    records: u64,
    next_id: u64,
    newest: u64,
    digest: u64,
}

/// What an open found.
pub(super) struct Loaded {
    pub(super) records: Vec<(Key, Stored)>,
    pub(super) newest: Version,
}

/// The rows of one store. All calls block.
pub(super) struct Rows {
    db: GuardedDb,
    places: HashMap<Key, Place>,
    ledger: Ledger,
    probes: u64,
}

impl Rows {
    /// Opens a store of this kind, or makes one where there is none, and reads all of it.
    pub(super) fn open(dir: &Path, kind: &str, options: GuardOptions) -> Result<(Self, Loaded), StoreOpenError> {
        let io = |source| StoreOpenError::Io { dir: dir.to_owned(), source };
        let damaged = |reason: String| StoreOpenError::Damaged { dir: dir.to_owned(), reason };
        create_dir_durably(dir).map_err(io)?;
        let marked = read_mark(dir, kind)?;
        let db = GuardedDb::open(&dir.join("rows"), options).map_err(|error| StoreOpenError::from_guard(dir, error))?;
        let mut rows = Self { db, places: HashMap::new(), ledger: Ledger::default(), probes: 0 };
        let loaded = rows.load(marked).map_err(damaged)?;
        if !marked {
            let mut batch = Batch::new();
            batch.insert(LEDGER, rows.ledger.encode());
            rows.db.commit(batch).map_err(|error| io(io::Error::other(error)))?;
            write_mark(dir, kind).map_err(io)?;
        }
        Ok((rows, loaded))
    }

    fn load(&mut self, marked: bool) -> Result<Loaded, String> {
        let mut records = Vec::new();
        let mut ledger = None;
        let mut found = Ledger::default();
        let mut open: Option<Assembly> = None;
        for row in self.db.iter() {
            let (key, value) = row.map_err(|error| error.to_string())?;
            match key.first() {
                Some(&RECORD) => {
                    let (id, chunk) = decode_chunk_key(&key).ok_or("a row has a key that nobody wrote")?;
                    let assembly = match open.take() {
                        Some(assembly) => assembly.with(id, chunk, &value)?,
                        None => Assembly::begin(id, chunk, &value)?,
                    };
                    if assembly.is_complete() {
                        let (name, stored, place) = assembly.finish()?;
                        found.count(place.crc, stored.version.0, id);
                        if self.places.insert(name.clone(), place).is_some() {
                            return Err("a record is there twice".into());
                        }
                        records.push((name, stored));
                    } else {
                        open = Some(assembly);
                    }
                }
                _ if &*key == LEDGER => ledger = Some(Ledger::decode(&value).ok_or("the ledger is unreadable")?),
                _ if &*key == PROBE => {}
                _ => return Err("a row has a key that nobody wrote".into()),
            }
        }
        if open.is_some() {
            return Err("the last record has no end".into());
        }
        self.ledger = match ledger {
            Some(ledger) if ledger.allows(&found) => ledger,
            Some(ledger) => {
                return Err(format!("{} records should be there, {} are, or others", ledger.records, found.records));
            }
            None if marked || found.records > 0 => return Err("the ledger is missing".into()),
            None => found,
        };
        Ok(Loaded { records, newest: Version(self.ledger.newest) })
    }

    /// Makes changes durable, all or none. After an error this handle is of no more use, unless the error is
    /// [`WriteError::Encode`].
    pub(super) fn write(&mut self, changes: &Changes) -> Result<(), WriteError> {
        let mut batch = Batch::new();
        let mut ledger = self.ledger;
        let mut moved = Vec::with_capacity(changes.len());
        for (key, stored) in changes {
            let before = self.places.get(key).copied();
            if let Some(before) = before {
                ledger.records -= 1;
                ledger.digest = ledger.digest.wrapping_sub(u64::from(before.crc));
            }
            let after = match stored {
                Some(stored) => {
                    let id = before.map_or(ledger.next_id, |before| before.id);
                    let bytes = encode_record(id, key, stored)?;
                    let place = insert_chunks(&mut batch, id, &bytes);
                    ledger.count(place.crc, stored.version.0, id);
                    Some(place)
                }
                None => None,
            };
            if let Some(before) = before {
                for chunk in after.map_or(0, |after| after.chunks)..before.chunks {
                    batch.remove(&chunk_key(before.id, chunk)[..]);
                }
            }
            moved.push((key, after));
        }
        batch.insert(LEDGER, ledger.encode());
        self.db.commit(batch).map_err(WriteError::Guard)?;
        self.ledger = ledger;
        for (key, place) in moved {
            match place {
                Some(place) => self.places.insert(key.clone(), place),
                None => self.places.remove(key),
            };
        }
        Ok(())
    }

    /// Writes a row and reads it back.
    pub(super) fn probe(&mut self) -> Result<(), GuardError> {
        self.probes += 1;
        let wrote = self.probes.to_be_bytes();
        let mut batch = Batch::new();
        batch.insert(PROBE, &wrote[..]);
        self.db.commit(batch)?;
        match self.db.get(PROBE)? {
            Some(read) if *read == wrote => Ok(()),
            _ => Err(GuardError::Poisoned),
        }
    }
}

/// Why changes were not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("a record does not encode: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error(transparent)]
    Guard(GuardError),
}

impl Ledger {
    fn count(&mut self, crc: u32, version: u64, id: u64) {
        self.records += 1;
        self.digest = self.digest.wrapping_add(u64::from(crc));
        self.newest = self.newest.max(version);
        self.next_id = self.next_id.max(id + 1);
    }

    /// Whether these may be the records that this ledger counted. It may have seen newer ones that are gone.
    fn allows(&self, found: &Self) -> bool {
        self.records == found.records
            && self.digest == found.digest
            && self.newest >= found.newest
            && self.next_id >= found.next_id
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        for number in [self.records, self.next_id, self.newest, self.digest] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if body.first() != Some(&FORMAT) || crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return None;
        }
        let (numbers, []) = body[1..].as_chunks::<8>() else { return None };
        let [records, next_id, newest, digest] = *numbers else { return None };
        let [records, next_id, newest, digest] = [records, next_id, newest, digest].map(u64::from_be_bytes);
        Some(Self { records, next_id, newest, digest })
    }
}

fn chunk_key(id: u64, chunk: u32) -> [u8; CHUNK_KEY_BYTES] {
    let mut key = [RECORD; CHUNK_KEY_BYTES];
    key[1..9].copy_from_slice(&id.to_be_bytes());
    key[9..].copy_from_slice(&chunk.to_be_bytes());
    key
}

fn decode_chunk_key(key: &[u8]) -> Option<(u64, u32)> {
    let (id, chunk) = key.get(1..)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*id), u32::from_be_bytes(chunk.try_into().ok()?)))
}

/// The record with its header.
fn encode_record(id: u64, key: &Key, stored: &Stored) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let mut bytes = vec![0; HEADER_BYTES];
    rmp_serde::encode::write(&mut bytes, &(key, stored.version, &stored.record))?;
    let body = &bytes[HEADER_BYTES..];
    let length = u32::try_from(body.len())
        .map_err(|_| rmp_serde::encode::Error::Syntax("a record of more than 4 GiB".into()))?;
    let crc = checksum(id, body);
    bytes[0] = FORMAT;
    bytes[1..5].copy_from_slice(&length.to_be_bytes());
    bytes[5..9].copy_from_slice(&crc.to_be_bytes());
    Ok(bytes)
}

/// Covers the id too, so that a record in another's place is found out.
fn checksum(id: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc32fast::hash(&id.to_be_bytes()));
    hasher.update(body);
    hasher.finalize()
}

fn insert_chunks(batch: &mut Batch, id: u64, bytes: &[u8]) -> Place {
    let mut chunks = 0;
    for part in bytes.chunks(CHUNK_BYTES) {
        batch.insert(&chunk_key(id, chunks)[..], part);
        chunks += 1;
    }
    let crc = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
    Place { id, chunks, crc }
}

/// A record whose chunks are being read.
struct Assembly {
    id: u64,
    chunks: u32,
    length: usize,
    crc: u32,
    body: Vec<u8>,
}

impl Assembly {
    fn begin(id: u64, chunk: u32, value: &[u8]) -> Result<Self, String> {
        let Some((header, body)) = value.split_first_chunk::<HEADER_BYTES>().filter(|_| chunk == 0) else {
            return Err(format!("record {id} has no beginning"));
        };
        let &[format, l0, l1, l2, l3, c0, c1, c2, c3] = header;
        if format != FORMAT {
            return Err(format!("record {id} has format {format}, this version reads {FORMAT}"));
        }
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let crc = u32::from_be_bytes([c0, c1, c2, c3]);
        Ok(Self { id, chunks: 1, length, crc, body: body.to_vec() })
    }

    fn with(mut self, id: u64, chunk: u32, value: &[u8]) -> Result<Self, String> {
        if (id, chunk) != (self.id, self.chunks) {
            return Err(format!("record {} has no row {}", self.id, self.chunks));
        }
        self.chunks += 1;
        self.body.extend_from_slice(value);
        Ok(self)
    }

    fn is_complete(&self) -> bool {
        self.body.len() >= self.length
    }

    fn finish(self) -> Result<(Key, Stored, Place), String> {
        if self.body.len() != self.length || checksum(self.id, &self.body) != self.crc {
            return Err(format!("record {} fails its checksum", self.id));
        }
        let (key, version, record): (Key, Version, Option<Record>) =
            rmp_serde::from_slice(&self.body).map_err(|error| format!("record {} is unreadable: {error}", self.id))?;
        Ok((key, Stored { version, record }, Place { id: self.id, chunks: self.chunks, crc: self.crc }))
    }
}

fn mark_path(dir: &Path) -> PathBuf {
    dir.join("store")
}

fn mark_of(kind: &str) -> String {
    format!("seawall {kind} store, format {FORMAT}\n")
}

/// Whether the directory says that a store of this kind was made in it: then an empty database is a lost one.
fn read_mark(dir: &Path, kind: &str) -> Result<bool, StoreOpenError> {
    match fs::read_to_string(mark_path(dir)) {
        Ok(mark) if mark == mark_of(kind) => Ok(true),
        Ok(found) => {
            let found = found.lines().next().unwrap_or_default().to_owned();
            Err(StoreOpenError::OtherStore {
                dir: dir.to_owned(),
                found,
                expected: mark_of(kind).trim_end().to_owned(),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StoreOpenError::Io { dir: dir.to_owned(), source }),
    }
}

fn write_mark(dir: &Path, kind: &str) -> io::Result<()> {
    let unfinished = dir.join("store.new");
    let mut file = File::create(&unfinished)?;
    file.write_all(mark_of(kind).as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, mark_path(dir))?;
    sync_dir(dir)
}
