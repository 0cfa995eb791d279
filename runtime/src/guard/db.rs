use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::batch::Writes;
use super::{Batch, GuardError, GuardOptions, OpenError, Step, create_dir_durably, pause, sync_dir};

/// One sled database that says the truth about durability. All calls block: keep them off the async workers.
///
/// Dropping it closes it, which writes and syncs, and never panics.
pub struct GuardedDb {
    dir: PathBuf,
    options: GuardOptions,
    db: Handle,
    file: File,
    poisoned: AtomicBool,
}

impl GuardedDb {
    /// Opens the database in this directory, or creates both.
    ///
    /// # Errors
    /// See [`OpenError`]. A damaged database is left as it is, but for sled's snapshots, which it rebuilds.
    pub fn open(dir: &Path, options: GuardOptions) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { dir: dir.to_owned(), source };
        options.check(Step::Open).map_err(failed)?;
        create_dir_durably(dir).map_err(failed)?;
        remove_snapshots(dir, |name| name.ends_with(".generating")).map_err(failed)?;
        let is_new = !dir.join("db").exists();
        let damaged = |reason| OpenError::Damaged { dir: dir.to_owned(), reason };
        let db = match open_unlocked(dir, &options)? {
            Attempt::Opened(db) => db,
            Attempt::Panicked(reason) => return Err(damaged(reason)),
            Attempt::Corrupt(_) => {
                remove_snapshots(dir, |_| true).map_err(failed)?;
                match open_unlocked(dir, &options)? {
                    Attempt::Opened(db) => db,
                    Attempt::Corrupt(reason) | Attempt::Panicked(reason) => return Err(damaged(reason)),
                }
            }
        };
        let file = File::open(dir.join("db")).map_err(failed)?;
        let guarded = Self { dir: dir.to_owned(), options, db, file, poisoned: AtomicBool::new(false) };
        if is_new {
            guarded.sync_creation().map_err(|error| failed(io::Error::other(error)))?;
        }
        Ok(guarded)
    }

    fn sync_creation(&self) -> Result<(), GuardError> {
        self.sync()?;
        let synced = File::open(self.dir.join("conf"))
            .and_then(|conf| conf.sync_all())
            .and_then(|()| sync_dir(&self.dir))
            .and_then(|()| sync_dir(&super::files::parent_of(&self.dir)));
        synced.map_err(|error| self.poison(Step::Open, error.to_string()))
    }

    /// Writes a batch in one atomic step and makes it durable, with everything written before it.
    ///
    /// # Errors
    /// [`GuardError::RowTooLarge`] leaves everything as it was. Any other error poisons.
    pub fn commit(&self, batch: Batch) -> Result<(), GuardError> {
        self.apply(batch)?;
        self.sync()
    }

    /// Writes a batch in one atomic step. It can be read at once, and is durable after the next
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn apply(&self, batch: Batch) -> Result<(), GuardError> {
        self.healthy()?;
        let writes = batch.into_checked()?;
        self.step(Step::Apply, || match writes {
            Writes::One((key, Some(value))) => self.db.insert(key, value).map(drop),
            Writes::One((key, None)) => self.db.remove(key).map(drop),
            Writes::Many(rows) => self.db.apply_batch(rows),
        })
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// Any error poisons.
    pub fn sync(&self) -> Result<(), GuardError> {
        self.healthy()?;
        self.step(Step::Flush, || self.db.flush())?;
        self.step(Step::Sync, || self.file.sync_data().map_err(sled::Error::Io))?;
        self.assert_no_blobs()
    }

    /// The value of this key.
    ///
    /// # Errors
    /// [`GuardError::Failed`] when sled cannot read its own page. Does not poison.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<sled::IVec>, GuardError> {
        let read = self.check_read().and_then(|()| caught(|| self.db.get(key.as_ref())));
        read.map_err(|reason| GuardError::Failed { step: Step::Read, reason })
    }

    /// The rows of a range of keys, ascending. A writer meanwhile is not waited for.
    pub fn range<K: AsRef<[u8]>>(&self, keys: impl RangeBounds<K>) -> Rows<'_> {
        self.rows(self.db.range(keys))
    }

    /// All rows, ascending by key.
    #[must_use]
    pub fn iter(&self) -> Rows<'_> {
        self.range::<&[u8]>(..)
    }

    /// The rows whose keys begin with this prefix, ascending.
    #[must_use]
    pub fn scan_prefix(&self, prefix: &[u8]) -> Rows<'_> {
        self.rows(self.db.scan_prefix(prefix))
    }

    /// The row with the highest key.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn last(&self) -> Result<Option<(sled::IVec, sled::IVec)>, GuardError> {
        let read = self.check_read().and_then(|()| caught(|| self.db.last()));
        read.map_err(|reason| GuardError::Failed { step: Step::Read, reason })
    }

    /// Bytes that the database file takes.
    #[must_use]
    pub fn size_on_disk(&self) -> u64 {
        self.file.metadata().map_or(0, |file| file.len())
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether an earlier write failed, so that only reads still work.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    fn rows(&self, rows: sled::Iter) -> Rows<'_> {
        Rows { rows: Some(rows), refused: self.check_read().err(), db: PhantomData }
    }

    fn healthy(&self) -> Result<(), GuardError> {
        if self.is_poisoned() { Err(GuardError::Poisoned) } else { Ok(()) }
    }

    fn check_read(&self) -> Result<(), String> {
        self.options.check(Step::Read).map_err(|error| error.to_string())
    }

    fn step<T>(&self, step: Step, act: impl FnOnce() -> sled::Result<T>) -> Result<(), GuardError> {
        let done = self.options.check(step).map_err(|error| error.to_string()).and_then(|()| caught(act));
        done.map(drop).map_err(|reason| self.poison(step, reason))
    }

    fn poison(&self, step: Step, reason: String) -> GuardError {
        self.poisoned.store(true, Ordering::Release);
        GuardError::Failed { step, reason }
    }

    fn assert_no_blobs(&self) -> Result<(), GuardError> {
        let blobs = fs::read_dir(self.dir.join("blobs")).map(|mut files| files.next().is_some());
        match blobs {
            Ok(false) => Ok(()),
            Ok(true) => Err(self.poison(Step::Sync, "a blob file appeared, which is never synced".into())),
            Err(error) => Err(self.poison(Step::Sync, format!("cannot list the blob files: {error}"))),
        }
    }
}

impl std::fmt::Debug for GuardedDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedDb")
            .field("dir", &self.dir)
            .field("poisoned", &self.is_poisoned())
            .finish_non_exhaustive()
    }
}

/// The last handle on a sled database. sled syncs when it is dropped, and panics when that fails; by then all
/// that was acknowledged is durable.
struct Handle(Option<sled::Db>);

impl Deref for Handle {
    type Target = sled::Db;

    fn deref(&self) -> &sled::Db {
        self.0.as_ref().expect("it is only taken out when it is dropped")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let db = self.0.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
    }
}

enum Attempt {
    Opened(Handle),
    /// sled says so.
    Corrupt(String),
    Panicked(String),
}

/// Opens, and waits for the lock as long as the options say.
fn open_unlocked(dir: &Path, options: &GuardOptions) -> Result<Attempt, OpenError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(options.cache_bytes)
        .segment_size(options.segment_bytes)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(None);
    let mut waited = Duration::ZERO;
    let mut wait = Duration::from_millis(5);
    loop {
        // Opened from a copy: what a panic left behind in one is not met again.
        match catch_unwind(AssertUnwindSafe(|| config.clone().open())) {
            Ok(Ok(db)) => return Ok(Attempt::Opened(Handle(Some(db)))),
            Ok(Err(sled::Error::Io(error))) if is_lock_error(&error) => {
                if waited >= options.lock_patience {
                    return Err(OpenError::Locked { dir: dir.to_owned() });
                }
                pause(wait);
                waited += wait;
                wait = (wait * 2).min(Duration::from_millis(200));
            }
            Ok(Err(sled::Error::Io(source))) if !is_nonsense(&source) => {
                return Err(OpenError::Io { dir: dir.to_owned(), source });
            }
            Ok(Err(error)) => return Ok(Attempt::Corrupt(error.to_string())),
            Err(panic) => return Ok(Attempt::Panicked(panic_text(&*panic))),
        }
    }
}

/// sled has no type for it: `could not acquire lock on "…/db": …`.
fn is_lock_error(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.to_string().contains("could not acquire lock")
}

/// I/O errors that come from what is in the file, not from the disk.
fn is_nonsense(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput)
}

fn remove_snapshots(dir: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    let mut removed = false;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && which(&name) {
            fs::remove_file(entry.path())?;
            removed = true;
        }
    }
    if removed { sync_dir(dir) } else { Ok(()) }
}

/// Runs what may panic on bytes that sled does not understand.
fn caught<T>(act: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic_text(&*panic)),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a text"))
}

/// Rows of a [`GuardedDb`], ascending by key. Ends after the first error.
pub struct Rows<'a> {
    rows: Option<sled::Iter>,
    refused: Option<String>,
    db: PhantomData<&'a GuardedDb>,
}

impl Iterator for Rows<'_> {
    type Item = Result<(sled::IVec, sled::IVec), GuardError>;

    fn next(&mut self) -> Option<Self::Item> {
        let failed = |reason| GuardError::Failed { step: Step::Read, reason };
        if let Some(reason) = self.refused.take() {
            self.rows = None;
            return Some(Err(failed(reason)));
        }
        let rows = self.rows.as_mut()?;
        let next = catch_unwind(AssertUnwindSafe(|| rows.next()));
        let row = match next {
            Ok(None) => None,
            Ok(Some(Ok(row))) => return Some(Ok(row)),
            Ok(Some(Err(error))) => Some(Err(failed(error.to_string()))),
            Err(panic) => Some(Err(failed(panic_text(&*panic)))),
        };
        self.rows = None;
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hooks only see that a sync is about to be asked for. This one is asked of what cannot be synced.
    #[cfg(unix)]
    #[test]
    fn a_sync_is_asked_of_the_file_and_its_answer_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = GuardedDb::open(dir.path(), GuardOptions::append_only()).unwrap();
        db.file = File::open("/dev/null").unwrap();
        assert!(matches!(db.sync(), Err(GuardError::Failed { step: Step::Sync, .. })));
        assert_eq!(db.sync(), Err(GuardError::Poisoned));
    }
}
