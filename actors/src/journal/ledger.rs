//! The meaning of the journal: which backend owes what.

/// The index over all unfinished entries.
pub struct Ledger;
