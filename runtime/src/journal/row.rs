//! Rows: what lies under one key of a generation.
//!
//! ```text
//! key    row number, u64 big-endian
//! value  format u8 = 1 | chunk u32 | chunks u32 | row number u64 | length u16 | payload | crc32
//! ```
//!
//! Integers are big-endian; the checksum covers key, header and payload. The payloads of `chunks` consecutive rows
//! make one stream of records, each `length u32 | envelope`. Records that fit share a row (`chunks` is 1 then); a
//! record that is larger than a row has a stream of its own.

use seawall_actors::journal::JournalRecord;

use super::codec;
use crate::guard::{Batch, MAX_ROW_BYTES};

const FORMAT: u8 = 1;
const HEADER: usize = 1 + 4 + 4 + 8 + 2;
const KEY: usize = 8;
const CRC: usize = 4;
const LENGTH: usize = 4;
/// The highest number of a row, and the highest place in the log: there is always one after it.
pub(super) const LAST: u64 = u64::MAX >> 1;
/// Bytes of payload in a full row.
pub(super) const MAX_PAYLOAD: usize = MAX_ROW_BYTES - KEY - HEADER - CRC;

/// One row that is intact.
pub(super) struct Row<'a> {
    pub(super) chunk: u32,
    pub(super) chunks: u32,
    pub(super) payload: &'a [u8],
}

pub(super) fn encode(number: u64, chunk: u32, chunks: u32, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + payload.len() + CRC);
    value.push(FORMAT);
    value.extend(chunk.to_be_bytes());
    value.extend(chunks.to_be_bytes());
    value.extend(number.to_be_bytes());
    let length = u16::try_from(payload.len()).expect("a payload is at most 4 KiB");
    value.extend(length.to_be_bytes());
    value.extend(payload);
    let crc = checksum(&number.to_be_bytes(), &value);
    value.extend(crc.to_be_bytes());
    value
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// Reads a row.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn decode<'a>(key: &[u8], value: &'a [u8]) -> Result<Row<'a>, &'static str> {
    let (body, crc) = value.split_last_chunk::<CRC>().ok_or("too short")?;
    if body.len() < HEADER {
        return Err("too short");
    }
    if checksum(key, body) != u32::from_be_bytes(*crc) {
        return Err("its checksum does not match");
    }
    let mut at = Reader(body);
    if at.bytes()? != [FORMAT] {
        return Err("its format is unknown to this version");
    }
    let chunk = u32::from_be_bytes(at.bytes()?);
    let chunks = u32::from_be_bytes(at.bytes()?);
    let number: [u8; KEY] = at.bytes()?;
    let length = u16::from_be_bytes(at.bytes()?);
    if number != key || usize::from(length) != at.0.len() || chunk >= chunks {
        return Err("its header contradicts itself");
    }
    Ok(Row { chunk, chunks, payload: at.0 })
}

/// Packs records into rows.
pub(super) struct Packer {
    next: u64,
    batch: Batch,
    open: Vec<u8>,
}

impl Packer {
    /// For rows from this number on.
    pub(super) fn new(next: u64) -> Self {
        Self { next, batch: Batch::new(), open: Vec::new() }
    }

    /// Adds one record with its place in the log.
    pub(super) fn push(&mut self, lsn: u64, encoded: &[u8]) {
        let envelope = codec::envelope(lsn, encoded);
        let length = u32::try_from(envelope.len()).expect("a record is far smaller than 4 GiB");
        let need = LENGTH + envelope.len();
        if need > MAX_PAYLOAD - self.open.len() {
            self.seal();
        }
        self.open.extend(length.to_be_bytes());
        self.open.extend(envelope);
        if need > MAX_PAYLOAD {
            self.seal();
        }
    }

    fn seal(&mut self) {
        let stream = std::mem::take(&mut self.open);
        let chunks = u32::try_from(stream.len().div_ceil(MAX_PAYLOAD)).expect("a record is far smaller than 4 GiB");
        for (payload, chunk) in stream.chunks(MAX_PAYLOAD).zip(0..) {
            let value = encode(self.next, chunk, chunks, payload);
            self.batch.insert(&self.next.to_be_bytes(), value);
            self.next += 1;
        }
    }

    /// The rows, and the number after the last of them.
    pub(super) fn finish(mut self) -> (Batch, u64) {
        self.seal();
        (self.batch, self.next)
    }
}

/// The records of a stream, with their places in the log.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn unpack(stream: &[u8]) -> Result<Vec<(u64, JournalRecord)>, String> {
    let mut at = Reader(stream);
    let mut records = Vec::new();
    while !at.0.is_empty() {
        let length = u32::from_be_bytes(at.bytes()?);
        let length = usize::try_from(length).map_err(|_| "too long")?;
        let (envelope, rest) = at.0.split_at_checked(length).ok_or("a record ends early")?;
        at.0 = rest;
        records.push(codec::open_envelope(envelope)?);
    }
    Ok(records)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or("too short")?;
        self.0 = rest;
        Ok(*bytes)
    }
}
