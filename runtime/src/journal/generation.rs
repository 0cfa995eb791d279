//! Generations: directories of rows, each one sled database that is only ever appended to.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use seawall_actors::journal::JournalRecord;

use super::row;
use crate::guard::{GuardOptions, GuardedDb, OpenError};

/// One generation on disk.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    /// The number of its first row, which names it.
    pub(super) first: u64,
    /// Records in it, needed or not.
    pub(super) records: usize,
    /// Bytes on disk, when it was last looked at.
    pub(super) bytes: u64,
}

/// The directory of a generation.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("gen-{first:020}"))
}

/// The first rows of all generations in a directory, ascending.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("gen-")).filter(|number| number.len() == 20);
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// What a scan of one generation found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The readable records with their places in the log, in the order of the rows.
    pub(super) records: Vec<(u64, JournalRecord)>,
    /// Rows that are missing or damaged, as inclusive ranges.
    pub(super) lost: Vec<(u64, u64)>,
    /// What is wrong, in words.
    pub(super) findings: Vec<String>,
    /// The row after the last one that was found.
    pub(super) end: u64,
}

/// Reads the rows of a generation from `first` on. Rows from `until` on were never acknowledged and are ignored;
/// rows before it, or up to `acknowledged` in the newest generation, must be there.
pub(super) fn scan(db: &GuardedDb, first: u64, until: Option<u64>, acknowledged: u64) -> Scan {
    scan_rows(db.iter(), first, until, acknowledged)
}

pub(super) fn scan_rows<B: AsRef<[u8]>, E: fmt::Display>(
    rows: impl Iterator<Item = Result<(B, B), E>>,
    first: u64,
    until: Option<u64>,
    acknowledged: u64,
) -> Scan {
    let mut scanner = Scanner { scan: Scan { end: first, ..Scan::default() }, stream: Vec::new(), started: None };
    for entry in rows {
        match entry {
            Ok((key, value)) => {
                let (key, value) = (key.as_ref(), value.as_ref());
                let number = <[u8; 8]>::try_from(key).ok().map(u64::from_be_bytes);
                match number {
                    Some(number) if until.is_some_and(|until| number >= until) => break,
                    Some(number) if (scanner.scan.end..=row::LAST).contains(&number) => scanner.row(number, key, value),
                    _ => scanner.scan.findings.push("a row has a key that does not belong here".into()),
                }
            }
            Err(error) => scanner.scan.findings.push(format!("rows from {} on: {error}", scanner.scan.end)),
        }
    }
    let end = until.unwrap_or((acknowledged + 1).max(scanner.scan.end));
    scanner.finish(end)
}

/// Puts rows together, and notes which are missing.
struct Scanner {
    scan: Scan,
    stream: Vec<u8>,
    /// The first row of the stream, while it is incomplete.
    started: Option<u64>,
}

impl Scanner {
    fn row(&mut self, number: u64, key: &[u8], value: &[u8]) {
        self.missing(number);
        self.scan.end = number + 1;
        let row = match row::decode(key, value) {
            Ok(row) => row,
            Err(reason) => {
                self.abandon(number);
                return self.lose(number, number, &format!("row {number} is damaged: {reason}"));
            }
        };
        let expected = self.started.map_or(0, |started| number - started);
        if u64::from(row.chunk) != expected {
            self.abandon(number);
            if row.chunk != 0 {
                return self.lose(number, number, &format!("row {number} continues a record that is lost"));
            }
        }
        let started = *self.started.get_or_insert(number);
        self.stream.extend_from_slice(row.payload);
        if row.chunk + 1 < row.chunks {
            return;
        }
        self.started = None;
        let stream = std::mem::take(&mut self.stream);
        match row::unpack(&stream) {
            Ok(records) => self.scan.records.extend(records),
            Err(reason) => self.lose(started, number, &format!("rows {started} to {number}: {reason}")),
        }
    }

    /// Everything from the expected row to before this one is missing.
    fn missing(&mut self, number: u64) {
        let expected = self.scan.end;
        if number > expected {
            self.abandon(expected);
            self.lose(expected, number - 1, &format!("rows {expected} to {} are missing", number - 1));
        }
    }

    /// The stream that was begun does not go on at this row, and is lost.
    fn abandon(&mut self, number: u64) {
        self.stream.clear();
        if let Some(started) = self.started.take() {
            self.lose(started, number - 1, &format!("rows {started} to {} hold a part of a record", number - 1));
        }
    }

    fn lose(&mut self, from: u64, to: u64, finding: &str) {
        self.scan.lost.push((from, to));
        self.scan.findings.push(finding.to_owned());
    }

    fn finish(mut self, end: u64) -> Scan {
        self.missing(end);
        self.abandon(self.scan.end);
        self.scan
    }
}

/// Opens a generation.
pub(super) fn open(dir: &Path, first: u64, options: &GuardOptions) -> Result<GuardedDb, OpenError> {
    GuardedDb::open(&path(dir, first), options.clone())
}
