//! A journal in memory.

/// A journal that keeps nothing: for `MEMORY_ONLY` and for measurements.
pub struct MemoryJournal;
