//! Seawall stands between a service and the stores that it writes to.
//!
//! ```text
//! Runtime ── what a service starts, asks and stops            runtime.rs, start.rs, stop.rs
//!   ├─ config      defaults, TOML, environment                config/
//!   ├─ journal     the one durable log, on sled               journal/, guard/
//!   ├─ breakers    their saved states, on sled or in Redis    breakers/
//!   ├─ backends    embedded graph and vector stores, faults   backends/
//!   ├─ conformance what every backend has to do, to be run    conformance/
//!   └─ telemetry   metrics, logs                              telemetry/
//! ```
//!
//! What is decided is in the crate `seawall-actors`, whose vocabulary is given on here.

pub mod backends;
mod breakers;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
pub mod journal;
#[cfg(feature = "redis")]
mod redis_connection;
mod runtime;
mod start;
mod stop;
pub mod telemetry;

#[cfg(feature = "redis")]
pub use breakers::RedisStateStore;
pub use breakers::SledStateStore;
pub use runtime::{Control, Runtime};
pub use seawall_actors::backend;
pub use seawall_actors::breaker;
pub use seawall_actors::call;
pub use seawall_actors::error::Refusal;
pub use seawall_actors::event;
pub use seawall_actors::fallback;
pub use seawall_actors::gateway::{Handle, Request};
pub use seawall_actors::health;
pub use seawall_actors::journal as ledger;
pub use seawall_actors::limits;
pub use seawall_actors::operation;
pub use seawall_actors::record;
pub use seawall_actors::saga;
pub use seawall_actors::supervisor;
pub use seawall_actors::sync;
pub use start::{Builder, StartError};
pub use stop::ShutdownReport;

/// The README, so that its example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
