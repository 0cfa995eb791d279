//! x

pub mod backends;
pub mod guard;
