//! The tree: what is started, restarted and given up, and refs that survive it.
//!
//! ```text
//!  Tree ── root supervisor (one for one) ─┬─ actor ─── Slot ◄── everybody else
//!            ▲ deaths                     └─ supervisor (rest for one) ─┬─ actor ── Slot
//!            │ on_escalation                                           └─ actor ── Slot
//! ```
//!
//! ractor tells a supervisor of a child's death and does nothing else. Here a death, however it came (panic, error,
//! kill, cancelled task, unasked stop, failed start), empties the child's slot and asks a
//! [`RestartPolicy`]; the child is started again, after a growing wait and never before its former incarnation is
//! gone, and its slot filled. Too many deaths within the window are a death of the supervisor; at the root they are
//! the end of the runtime, which is told why.
//!
//! | when this dies | then |
//! |---|---|
//! | an actor | calls to it end as [`CallError::Died`], later ones as [`CallError::Vacant`] until it is back |
//! | a supervisor | everybody under it is killed, and started again by its next incarnation |
//! | the root | everybody is killed, all slots are empty, `on_escalation` is called |
//!
//! Events: `ActorRestarted` after each restart, `Escalated` when the root gives up. Panics have to unwind: with
//! `panic = "abort"` nothing is restarted.

mod actor;
mod branch;
mod policy;
mod slot;
mod spec;
mod tasks;
mod tree;

pub use branch::{Branch, ChildStatus, Escalation, StopReport};
pub use policy::{Decision, RestartConfig, RestartPolicy, Strategy};
pub use slot::{CallError, Slot};
pub use spec::{ChildSpec, DEFAULT_STOP_TIMEOUT};
pub use tasks::{OperationTasks, Started};
pub use tree::{OnEscalation, Tree};

#[cfg(test)]
mod tests;
