//! Seawall stands between a service and the stores that it writes to.

pub mod backends;
pub mod config;
pub mod guard;
pub mod journal;
pub mod telemetry;
