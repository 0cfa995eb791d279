//! Looks after backends that nobody calls: probes each of them now and then, and warns before users notice.
//!
//! ```text
//!   breaker ── Nudge ──►┐                  ┌── admit ──► gate      (a lease for every probe)
//!                       ├─► Prober ── task ┼── probe ──► backend   (under a timeout, one at a time)
//!   anybody ─ Statuses ►┘                  ├── settle ─► gate      (the verdict stays with the breaker)
//!                                          └── on_health, alerts ─► fallback manager, event bus
//! ```
//!
//! Every probe spends a lease of its backend's breaker. So an open breaker keeps its backend untouched by probes too,
//! and an idle backend heals without a user paying for the trial: while the gate refuses, the prober looks again when
//! the gate says so, or when it is nudged.
//!
//! | setting | default | |
//! |---|---|---|
//! | `interval` | 30 s | between two probes, ± `jitter` |
//! | `timeout` | 5 s | of one probe |
//! | `alert_threshold` | 3 | failed probes in a row raise [`Alert::ProbesFailing`](crate::event::Alert::ProbesFailing) |
//! | `clear_threshold` | 3 | good probes in a row clear it |
//! | `slow_factor` | 3 | times slower than its baseline raises [`Alert::SlowingDown`](crate::event::Alert::SlowingDown) |
//!
//! | when | then |
//! |---|---|
//! | the prober dies | records and schedule survive it; a probe in flight reports all the same |
//! | a probe panics | it failed |
//! | a probe does not answer | it is dropped at its timeout and failed |
//! | a probe blocks its thread | it failed; the backend is not probed again before it is back, and that is a failure too |

mod actor;
mod config;
mod policy;

pub use actor::{
    Admission, Admit, OnHealth, ProbePermit, ProbeReport, Prober, ProberMessage, ProberSetup, Settle, Target,
};
pub use config::HealthConfig;
pub use policy::{AlertChange, Appointment, Due, ProbePolicy, ProbeStatus};

#[cfg(test)]
mod tests;
