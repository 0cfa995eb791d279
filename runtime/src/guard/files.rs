//! Directories whose creation, removal and renaming survive a power cut.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Makes what was created, renamed or removed in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates a directory and all that lead to it, and syncs each that is new, and the one that holds it.
pub(crate) fn create_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = parent_of(dir);
    create_dir_durably(&parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_dir(dir)?;
    sync_dir(&parent)
}

pub(super) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Blocks the calling thread; about as long as asked.
pub(crate) fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

/// Moves a damaged directory (or file) aside, to `quarantine/<name>-<n>` next to it, with the lowest `n` from 1 on that is
/// free. Nothing in it is changed. Gives its new path.
///
/// # Errors
/// When the file system refuses; then it is where it was, or already where it should be but not synced.
pub fn quarantine(dir: &Path) -> io::Result<PathBuf> {
    let name = dir.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let parent = parent_of(dir);
    let aside = parent.join("quarantine");
    create_dir_durably(&aside)?;
    for n in 1_u32.. {
        let target = aside.join(format!("{name}-{n}"));
        if !target.exists() {
            fs::rename(dir, &target)?;
            sync_dir(&aside)?;
            sync_dir(&parent)?;
            return Ok(target);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
