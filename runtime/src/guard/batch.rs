use std::fmt;

use super::{GuardError, MAX_ROW_BYTES};

type Row = (sled::IVec, Option<sled::IVec>);

/// What sled is given.
pub(super) enum Writes {
    /// A row alone is atomic by itself. As a batch it would be written twice: sled writes down the extent of a batch
    /// first, with a wait for the disk of its own.
    One(Row),
    Many(sled::Batch),
}

/// Rows that are written in one atomic step. Of several writes to one key the last counts.
#[derive(Clone, Default)]
pub struct Batch {
    rows: sled::Batch,
    /// The first of them, with its value unless it is removed.
    first: Option<Row>,
    count: usize,
    bytes: usize,
    largest: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a row. One that is too large is found out by [`GuardedDb::commit`](super::GuardedDb::commit).
    pub fn insert(&mut self, key: impl Into<sled::IVec>, value: impl Into<sled::IVec>) {
        let (key, value) = (key.into(), value.into());
        let bytes = key.len() + value.len();
        if self.is_empty() {
            self.first = Some((key.clone(), Some(value.clone())));
        }
        self.count += 1;
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
        self.rows.insert(key, value);
    }

    /// Removes a row, if it is there.
    pub fn remove(&mut self, key: impl Into<sled::IVec>) {
        let key = key.into();
        if self.is_empty() {
            self.first = Some((key.clone(), None));
        }
        self.count += 1;
        self.bytes += key.len();
        self.rows.remove(key);
    }

    /// How many rows are set or removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn into_checked(self) -> Result<Writes, GuardError> {
        if self.largest > MAX_ROW_BYTES {
            return Err(GuardError::RowTooLarge { bytes: self.largest });
        }
        Ok(match self.first {
            Some(row) if self.count == 1 => Writes::One(row),
            _ => Writes::Many(self.rows),
        })
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} rows, {} bytes)", self.count, self.bytes)
    }
}
