use std::fmt;
use std::io;

/// A step of a [`GuardedDb`](super::GuardedDb) that touches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Creating or opening the files.
    Open,
    /// Reading rows.
    Read,
    /// Handing rows to sled.
    Apply,
    /// sled's own flush, which writes.
    Flush,
    /// The sync that makes rows durable.
    Sync,
    /// Writing the mark of a journal.
    Mark,
    /// Syncing the mark of a journal.
    MarkSync,
    /// Removing a finished directory.
    Remove,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "opening the store",
            Self::Read => "reading the store",
            Self::Apply => "writing to the store",
            Self::Flush => "flushing the store",
            Self::Sync => "syncing the store",
            Self::Mark => "writing the mark",
            Self::MarkSync => "syncing the mark",
            Self::Remove => "removing a finished generation",
        })
    }
}

/// Makes the disk fail where a test wants it to.
pub trait FaultHook: Send + Sync + 'static {
    /// Called before the step; an error is what the step then fails with. It may take its time, like a slow disk.
    ///
    /// # Errors
    /// Whatever the disk is to fail with.
    fn before(&self, step: Step) -> io::Result<()>;
}
