//! The mark: what the journal remembers of itself outside of sled, to know what must be there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::row::LAST;
use crate::guard::sync_dir;

const NAME: &str = "mark";
const MAGIC: [u8; 4] = *b"SWM1";
const SLOT: usize = 32;
/// The slots lie in different sectors, so that a torn write harms one.
const OFFSETS: [usize; 2] = [0, 512];
const FILE: usize = 1024;

/// What the mark says. Every part only grows, so that of two marks the higher one is the later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// The highest row that was acknowledged; 0 is none.
    pub(super) row: u64,
    /// The first row of the first generation that is needed. What is older may be removed.
    pub(super) first: u64,
    /// The highest version that was reserved.
    pub(super) reserved: u64,
}

impl Mark {
    pub(super) fn encode(self) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        slot[..4].copy_from_slice(&MAGIC);
        for (part, at) in [self.row, self.first, self.reserved].into_iter().zip([4, 12, 20]) {
            slot[at..at + 8].copy_from_slice(&part.to_be_bytes());
        }
        let crc = crc32fast::hash(&slot[..28]);
        slot[28..].copy_from_slice(&crc.to_be_bytes());
        slot
    }

    fn decode(slot: &[u8]) -> Option<Self> {
        let (body, crc) = slot.split_last_chunk::<4>()?;
        if !body.starts_with(&MAGIC) || crc32fast::hash(body) != u32::from_be_bytes(*crc) {
            return None;
        }
        let part = |at: usize| Some(u64::from_be_bytes(body.get(at..at + 8)?.try_into().ok()?));
        let mark = Self { row: part(4)?, first: part(12)?, reserved: part(20)? };
        (mark.row <= LAST && mark.first <= LAST).then_some(mark)
    }
}

/// What was found in a directory.
#[derive(Debug)]
pub(super) enum Found {
    /// No mark: nothing was ever acknowledged here, or it was taken away.
    Nothing,
    /// A file in which neither slot is intact.
    Unreadable,
    /// The later of the intact slots.
    Mark(Mark),
}

/// Looks for the mark of a directory.
pub(super) fn find(dir: &Path) -> io::Result<Found> {
    let mut bytes = Vec::new();
    match File::open(dir.join(NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
        Ok(file) => file.take(FILE as u64).read_to_end(&mut bytes)?,
    };
    Ok(parse(&bytes))
}

/// What the bytes of the file say.
pub(super) fn parse(bytes: &[u8]) -> Found {
    let slots = OFFSETS.iter().filter_map(|at| Mark::decode(bytes.get(*at..at + SLOT)?));
    slots.max().map_or(Found::Unreadable, Found::Mark)
}

/// The file, open for writing.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    slot: usize,
    current: Mark,
    /// Whether there was a write since the last sync.
    dirty: bool,
}

impl MarkFile {
    /// Puts a new file with this mark in place of an older one, durably.
    pub(super) fn create(dir: &Path, mark: Mark) -> io::Result<Self> {
        let new = dir.join("mark.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
        let mut bytes = [0; FILE];
        bytes[..SLOT].copy_from_slice(&mark.encode());
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, dir.join(NAME))?;
        sync_dir(dir)?;
        Ok(Self { file, slot: 1, current: mark, dirty: false })
    }

    /// Raises the mark. The process may die then; against a power cut see [`sync`](Self::sync).
    pub(super) fn write(&mut self, mark: Mark) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(OFFSETS[self.slot] as u64))?;
        self.file.write_all(&mark.encode())?;
        self.slot = 1 - self.slot;
        self.current = mark;
        self.dirty = true;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    pub(super) fn get(&self) -> Mark {
        self.current
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }
}

/// The path of the mark, to move it aside.
pub(super) fn path(dir: &Path) -> std::path::PathBuf {
    dir.join(NAME)
}
