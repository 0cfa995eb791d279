//! The tree: what is started, restarted and given up, and refs that survive it.

mod slot;

pub use slot::{CallError, Slot};
