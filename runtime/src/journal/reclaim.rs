//! Giving space back: which generation can go, and reading back what is still needed of it.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use super::codec::Encoded;
use super::generation::{self, Generation};
use super::inbox::Command;
use super::index::Index;
use crate::guard::GuardOptions;

/// Generations that may lie around before anything is carried forward.
const KEPT: usize = 4;
/// Bytes that are carried forward in one commit.
const CARRY_BYTES: usize = 1 << 20;

/// What to do about the oldest generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reclaim {
    Nothing,
    Remove,
    /// Append again what is needed of it; then it can be removed.
    Carry,
}

/// Only ever the oldest goes, so that the generations stay a chain. It is carried forward when that is cheap (a
/// tenth of it or less is needed), or when at least half of the journal is garbage: each record that is copied then
/// pays for one that goes, however long entries live.
///
/// A generation with finished entries that are to be kept stays, up to so many bytes in all.
pub(super) fn next(generations: &[Generation], index: &Index, retained_bytes: u64) -> Reclaim {
    let [oldest, _, ..] = generations else { return Reclaim::Nothing };
    if index.retention.holds(oldest.first) && !is_over(generations, retained_bytes) {
        return Reclaim::Nothing;
    }
    let needed = index.needed_in(oldest.first);
    if needed == 0 {
        return Reclaim::Remove;
    }
    let all: usize = generations.iter().map(|generation| generation.records).sum();
    if generations.len() > KEPT && (needed * 10 <= oldest.records || index.needed() * 2 <= all) {
        return Reclaim::Carry;
    }
    Reclaim::Nothing
}

/// Whether the generations take more than this.
fn is_over(generations: &[Generation], bytes: u64) -> bool {
    generations.iter().map(|generation| generation.bytes).sum::<u64>() > bytes
}

/// Reads records of a generation on a thread of its own, and sends them to the committer, which goes on meanwhile.
///
/// # Errors
/// When there is no thread to be had.
pub(super) fn read_back(
    dir: &Path,
    rows: Range<u64>,
    options: &GuardOptions,
    wanted: HashSet<u64>,
    to: &Sender<Command>,
) -> io::Result<JoinHandle<()>> {
    let (dir, options, to) = (dir.to_owned(), options.clone(), to.clone());
    let reader = move || {
        let result = send_wanted(&dir, rows, &options, wanted, &to);
        // Nobody listens any more when the journal was closed meanwhile.
        let _ = to.send(Command::CarryEnded(result));
    };
    std::thread::Builder::new().name("seawall-journal-carry".into()).spawn(reader)
}

fn send_wanted(
    dir: &Path,
    rows: Range<u64>,
    options: &GuardOptions,
    mut wanted: HashSet<u64>,
    to: &Sender<Command>,
) -> Result<(), String> {
    let db = generation::open(dir, rows.start, options).map_err(|error| error.to_string())?;
    let scan = generation::scan(&db, rows.start, Some(rows.end), 0);
    drop(db);
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for (lsn, record) in scan.records {
        if !wanted.remove(&lsn) {
            continue;
        }
        let encoded = Encoded::of(&record)?;
        bytes += encoded.bytes.len();
        chunk.push((lsn, encoded));
        if bytes >= CARRY_BYTES {
            let _ = to.send(Command::Carried(std::mem::take(&mut chunk)));
            bytes = 0;
        }
    }
    let _ = to.send(Command::Carried(chunk));
    if wanted.is_empty() { Ok(()) } else { Err(format!("{} records that are needed are not in it", wanted.len())) }
}
