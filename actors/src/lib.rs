//! The behaviour of Seawall: what is stored, what is decided, and the actors that act on it.
//!
//! Nothing here opens a file or a socket or reads a clock of its own: stores, the journal and the breaker-state
//! store are ports (traits), time is tokio's. The crate `seawall` implements the ports and starts the tree.

pub mod backend;
pub mod breaker;
pub mod call;
pub mod config;
pub mod error;
pub mod event;
pub mod fallback;
pub mod gateway;
pub mod health;
pub mod journal;
pub mod limits;
#[cfg(test)]
mod models;
pub mod operation;
pub mod plane;
pub mod record;
pub mod saga;
pub mod supervisor;
pub mod sync;
mod threads;
