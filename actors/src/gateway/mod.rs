//! Where requests come in: the ref that a user holds, and the handle beside it.
//!
//! ```text
//!  Handle ──────────────┐
//!                       ├─► Door: limits, permit, deadline ─► one task per operation ─► exactly one answer
//!  ActorRef<Request> ─► Gateway ─┘
//! ```
//!
//! [`Gateway`] holds nothing that can crash: it checks and hands on, so the ref keeps working whatever restarts
//! behind it. Admission is a semaphore in front of everything that queues: without a permit a request is refused
//! at once with [`Overloaded`](crate::error::Refusal::Overloaded).
//!
//! A ractor mailbox is unbounded; callers that must not fill it use the [`Handle`], which takes the permit on the
//! caller's side and sends no message at all.

mod actor;
mod admission;
mod answer;
mod door;
mod handle;
mod read;
#[cfg(test)]
mod tests;

pub use actor::Gateway;
pub use door::Door;
pub use handle::Handle;

use std::time::Duration;

use ractor::RpcReplyPort;
use serde::{Deserialize, Serialize};

use crate::backend::BackendName;
use crate::config::{ConfigProblem, check_range};
use crate::error::Refusal;
use crate::journal::DeadLetter;
use crate::operation::{Found, OperationId, Outcome, Receipt, Retrieved, Search, Status, Traversal, Write};
use crate::record::Key;

/// What can be asked of a running Seawall.
///
/// Give the call a timeout of your own too (`call_t!`): the answer comes by the request's deadline, unless the
/// whole runtime is gone.
#[derive(Debug)]
pub enum Request {
    /// Stores, updates or deletes: what the [`Write`] says.
    Store(Write, RpcReplyPort<Result<Receipt, Refusal>>),
    /// Reads one record.
    Retrieve(Key, RpcReplyPort<Result<Retrieved, Refusal>>),
    /// Searches for the nearest records.
    Search(Search, RpcReplyPort<Result<Found, Refusal>>),
    /// Walks along relations.
    Traverse(Traversal, RpcReplyPort<Result<Found, Refusal>>),
    /// What became of an operation.
    Outcome(OperationId, RpcReplyPort<Outcome>),
    /// The state in brief.
    Status(RpcReplyPort<Status>),
    /// The writes that a backend will never take.
    DeadLetters(RpcReplyPort<Vec<DeadLetter>>),
    /// Tries a dead letter again; `false` when there is none of this operation and backend.
    RetryDeadLetter(OperationId, BackendName, RpcReplyPort<Result<bool, Refusal>>),
    /// Gives up on an operation that is a dead letter; `false` when it is none.
    DiscardDeadLetter(OperationId, RpcReplyPort<Result<bool, Refusal>>),
}

/// Settings of the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Operations that may be in flight at once. Default 1 024, range 1 to 1 000 000.
    pub max_in_flight: usize,
    /// How long a caller waits for the receipt of a write that names no timeout. Default 30 s (document 000), range
    /// 1 ms to 1 h.
    #[serde(with = "crate::config::seconds")]
    pub write_timeout: Duration,
    /// How long a caller waits for a read. Default 10 s, range 1 ms to 1 h.
    #[serde(with = "crate::config::seconds")]
    pub read_timeout: Duration,
    /// What a caller is told to wait when there is no permit. Default 50 ms, range 1 ms to 1 min.
    #[serde(with = "crate::config::seconds")]
    pub retry_after: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            max_in_flight: 1_024,
            write_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(10),
            retry_after: Duration::from_millis(50),
        }
    }
}

impl GatewayConfig {
    /// Adds all that is wrong with these settings.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let (ms, hour) = (Duration::from_millis(1), Duration::from_secs(3_600));
        check_range(path, "max_in_flight", self.max_in_flight, 1..=1_000_000, problems);
        check_range(path, "write_timeout", self.write_timeout, ms..=hour, problems);
        check_range(path, "read_timeout", self.read_timeout, ms..=hour, problems);
        check_range(path, "retry_after", self.retry_after, ms..=Duration::from_secs(60), problems);
    }
}
