//! What a breaker can be told and asked.

use std::time::Duration;

use ractor::RpcReplyPort;

use super::config::BreakerConfig;
use super::report::{BreakerSnapshot, Explanation};
use crate::config::ConfigProblem;

/// A message to a [`BreakerActor`](super::BreakerActor).
///
/// A [`BreakerHandle`](super::BreakerHandle) does the same without a message, also while the actor is being
/// restarted.
#[derive(Debug)]
pub enum BreakerMessage {
    /// Do this.
    Control(Control),
    /// Follow another configuration, or say what is wrong with it.
    Reconfigure(Box<BreakerConfig>, RpcReplyPort<Result<(), Vec<ConfigProblem>>>),
    /// The counters and times.
    Snapshot(RpcReplyPort<BreakerSnapshot>),
    /// Why the state is what it is.
    Explain(RpcReplyPort<Explanation>),
    /// A wait is over, of this generation or an older one.
    WaitElapsed(u64),
}

/// What a person can do to a breaker. Every override has a reason, and an end if it is given one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Refuse all calls.
    ForceOpen {
        /// Why.
        reason: String,
        /// For how long, if not until it is lifted.
        expires_in: Option<Duration>,
    },
    /// Admit all calls, whatever becomes of them.
    ForceClosed {
        /// Why.
        reason: String,
        /// For how long, if not until it is lifted.
        expires_in: Option<Duration>,
    },
    /// Admit all calls and count nothing.
    Disable {
        /// Why.
        reason: String,
        /// For how long, if not until it is lifted.
        expires_in: Option<Duration>,
    },
    /// Admit all calls and judge them, but never open.
    MetricsOnly {
        /// Why.
        reason: String,
        /// For how long, if not until it is lifted.
        expires_in: Option<Duration>,
    },
    /// End an override; the state that it covered is back.
    Lift,
    /// Close it and forget what led here.
    Reset,
}
