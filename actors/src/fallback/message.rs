//! What the fallback manager hears.

use std::sync::Arc;
use std::time::Duration;

use ractor::RpcReplyPort;

use super::{Mode, Plan};
use crate::backend::{BackendName, Health};
use crate::breaker::BreakerState;
use crate::journal::JournalHealth;

/// A message to the [`FallbackManager`](super::FallbackManager). Sent through a
/// [`FallbackHandle`](super::FallbackHandle).
#[derive(Debug)]
pub enum FallbackMessage {
    /// Set a mode by hand; the reply is the plan that holds then.
    SetMode {
        /// Which.
        mode: Mode,
        /// Why.
        reason: String,
        /// For how long, if not until it is lifted.
        expires_in: Option<Duration>,
        /// For the plan.
        reply: RpcReplyPort<Arc<Plan>>,
    },
    /// Lift the mode that was set by hand; the reply is the plan that holds then.
    ClearMode(RpcReplyPort<Arc<Plan>>),
    /// A breaker is in this state. It is published on the bus before this is sent.
    BreakerChanged(BackendName, BreakerState),
    /// A probe found this.
    ProbeReported(BackendName, Health),
    /// A backend refused a write as one that takes none.
    WriteRefused(BackendName),
    /// A backend that was said to take no writes took one.
    WriteAccepted(BackendName),
    /// The journal is in this state.
    JournalChanged(JournalHealth),
    /// The timer of this number is due.
    TimerElapsed(u64),
}
