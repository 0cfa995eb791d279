//! Seawall: what stands between a service and its stores.

pub mod config;
pub mod telemetry;
